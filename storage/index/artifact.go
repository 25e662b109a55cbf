package index

import (
	"context"
	"math"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// Manifest is a manifest that the artifact repository serves.
func (db *DB) Manifest(ctx context.Context, repository string, d digest.Digest) (registry.StoredManifest, error) {
	return get1[registry.StoredManifest](ctx, db, bucketManifests, key(repository, d.String()), "manifest "+d.String())
}

// TagDigest is the manifest that a tag of the artifact repository names.
func (db *DB) TagDigest(ctx context.Context, repository, tag string) (digest.Digest, error) {
	return get1[digest.Digest](ctx, db, bucketTags, key(repository, tag), "tag "+tag)
}

// Layer is the recipe of a layer of one of the model's images.
func (db *DB) Layer(ctx context.Context, modelID string, d digest.Digest) (registry.ImageLayer, error) {
	return get1[registry.ImageLayer](ctx, db, bucketLayers, key(modelID, d.String()), "layer "+d.String())
}

// Tags are the tags of an artifact repository that sort behind last, in the order of their
// bytes, at most limit of them, and whether there are more.
func (db *DB) Tags(ctx context.Context, repository, last string, limit int) (tags []string, more bool, err error) {
	tags = []string{}
	err = db.view(ctx, func(t tx) error {
		p := prefix(repository)
		var after []byte
		if last != "" {
			after = key(repository, last)
		}
		for r := range t.scan(bucketTags, p, after) {
			if len(tags) == limit {
				more = true
				return nil
			}
			if err := r.check(); err != nil {
				return err
			}
			tags = append(tags, string(r.key[len(p):]))
		}
		return nil
	})
	return tags, more, err
}

// Referrers are the manifests of an artifact repository whose subject is d, by digest.
func (db *DB) Referrers(ctx context.Context, repository string, d digest.Digest) ([]registry.StoredManifest, error) {
	referrers, _, err := db.ReferrersPage(ctx, repository, d, "", "", math.MaxInt)
	return referrers, err
}

// ReferrersPage are the manifests of an artifact repository whose subject is d, by digest, that sort behind last; only those of an
// artifact type, if that is not empty. There are more when these, and one at least, take maxBytes: clients choose how long an annotation is.
func (db *DB) ReferrersPage(ctx context.Context, repository string, d digest.Digest, artifactType string, last digest.Digest, maxBytes int) (page []registry.StoredManifest, more bool, err error) {
	page = []registry.StoredManifest{}
	err = db.view(ctx, func(t tx) error {
		p := prefix(repository, d.String())
		var after []byte
		if last != "" {
			after = key(repository, d.String(), last.String())
		}
		size := 0
		for r := range t.scan(bucketReferrers, p, after) {
			if err := r.check(); err != nil {
				return err
			}
			var m registry.StoredManifest
			found, err := t.get(bucketManifests, key(repository, string(r.key[len(p):])), &m)
			if err != nil {
				return err
			}
			if !found || artifactType != "" && m.ArtifactType != artifactType {
				continue
			}
			if size >= maxBytes {
				more = true
				return nil
			}
			size += 512 // about what one takes without annotations
			for name, value := range m.Annotations {
				size += len(name) + len(value)
			}
			page = append(page, m)
		}
		return nil
	})
	return page, more, err
}
