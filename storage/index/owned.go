package index

import (
	"context"
	"errors"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// OwnedBlobs are the sizes in bytes of all blobs that a model or a repository owns, by digest.
func (db *DB) OwnedBlobs(ctx context.Context, modelID string) (map[string]int64, error) {
	owned := map[string]int64{}
	err := db.view(ctx, func(t tx) error {
		p := prefix(modelID)
		for r := range t.scan(bucketBlobs, p, nil) {
			var size int64
			if err := r.decode(&size); err != nil {
				return err
			}
			owned[string(r.key[len(p):])] = size
		}
		return nil
	})
	return owned, err
}

// ManifestsOf are the manifests in a model's repository of artifacts and in that of its image; or those in a repository that no
// model stands behind.
func (db *DB) ManifestsOf(ctx context.Context, modelID string) ([]registry.StoredManifest, error) {
	artifacts, err := getAll[registry.StoredManifest](ctx, db, bucketManifests, prefix(modelID))
	if err != nil {
		return nil, err
	}
	images, err := getAll[registry.StoredManifest](ctx, db, bucketManifests, prefix(registry.ImageRepository(modelID)))
	return append(artifacts, images...), err
}

// WithIntents are the models with pushes that are not known to have ended.
func (db *DB) WithIntents(ctx context.Context) ([]registry.Model, error) {
	var models []registry.Model
	err := db.view(ctx, func(t tx) error {
		last := ""
		for r := range t.scan(bucketIntents, nil, nil) {
			id, _, _ := strings.Cut(string(r.key), "\x00")
			if id == last {
				continue
			}
			last = id
			var m registry.Model
			found, err := t.get(bucketModels, key(id), &m)
			if err != nil {
				return err
			}
			if found {
				models = append(models, m)
			}
		}
		return nil
	})
	return models, err
}

// Signatures are what [DB.KeepSignatures] kept last, by model id.
func (db *DB) Signatures(ctx context.Context) (map[string]string, error) {
	kept := map[string]string{}
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketSignatures, nil, nil) {
			var text string
			if err := r.decode(&text); err != nil {
				return err
			}
			kept[string(r.key)] = text
		}
		return nil
	})
	return kept, err
}

// errUnchanged ends a transaction that has nothing to write.
var errUnchanged = errors.New("nothing has changed")

// KeepSignatures replaces what is kept. It is not in the journal: what is lost is found out again.
func (db *DB) KeepSignatures(ctx context.Context, signatures map[string]string) error {
	before, err := db.Signatures(ctx)
	if err != nil {
		return err
	}
	err = db.update(func(t tx) error {
		changed := false
		for id, text := range signatures {
			if before[id] != text {
				changed = true
				if err := t.put(bucketSignatures, key(id), text); err != nil {
					return err
				}
			}
		}
		for id := range before {
			if _, there := signatures[id]; !there {
				changed = true
				if err := t.delete(bucketSignatures, key(id)); err != nil {
					return err
				}
			}
		}
		if !changed {
			return errUnchanged
		}
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// AttachmentsOf are the blobs that the evaluations of a model name.
func (db *DB) AttachmentsOf(ctx context.Context, modelID string) ([]digest.Digest, error) {
	var named []digest.Digest
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketEvaluations, prefix(modelID), nil) {
			var e registry.Evaluation
			if err := r.decode(&e); err != nil {
				return err
			}
			for _, a := range e.Attachments {
				named = append(named, a.Digest)
			}
		}
		return nil
	})
	return named, err
}

// ownerName is the name of a model or a repository; empty when it is gone.
func ownerName(t tx, id string) (string, error) {
	var m registry.Model
	if found, err := t.get(bucketModels, key(id), &m); err != nil || found {
		return m.Name.String(), err
	}
	var r registry.Repository
	_, err := t.get(bucketRepositories, key(id), &r)
	return r.Name, err
}
