package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// uses holds for each model who uses what it owns: uploads and pushes share it, and who lets go of blobs has it
// alone.
type uses struct{ models sync.Map }

func (u *uses) of(modelID string) *sync.RWMutex {
	use, _ := u.models.LoadOrStore(modelID, &sync.RWMutex{})
	return use.(*sync.RWMutex)
}

// Released is what a model does not own any more.
type Released struct {
	Model registry.Model
	Blobs []registry.LinkedBlob
	Busy  bool   // the model was in use all the time: nothing was let go of
	Error string // why nobody can tell what the model needs: nothing was let go of
}

// maxReleased bounds the blobs of one group.
const maxReleased = 10_000

// Release lets models go of the LFS objects that no commit which a ref leads to names any more, and that nobody has sent since
// before. What a version consists of is never let go of, nor what a manifest or an evaluation names. In a dry run nothing
// changes. Told is called for each model that has or had such objects.
//
// The content stays in the store until nobody owns it.
func (s *Service) Release(ctx context.Context, before time.Time, dryRun bool, told func(Released)) error {
	models, err := s.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	for _, m := range models {
		released, err := s.release(ctx, m, before, dryRun)
		if errors.Is(err, registry.ErrNotFound) {
			continue // deleted since
		}
		if err != nil {
			// The others are looked at all the same.
			if ctx.Err() != nil {
				return ctx.Err()
			}
			released = Released{Model: m, Error: err.Error()}
		}
		if len(released.Blobs) > 0 || released.Busy || released.Error != "" {
			told(released)
		}
	}
	return nil
}

func (s *Service) release(ctx context.Context, m registry.Model, before time.Time, dryRun bool) (Released, error) {
	r := Released{Model: m}
	repo, err := s.openOf(ctx, m)
	if err != nil {
		return r, err
	}
	// What is found now holds as long as no ref moves.
	signature, err := repo.Signature(ctx)
	if err != nil {
		return r, err
	}
	unused, err := s.unnamed(ctx, m, repo)
	if err != nil || len(unused) == 0 {
		return r, err
	}
	if dryRun {
		r.Blobs, err = s.unusedSince(ctx, unused, before)
		return r, err
	}
	use := s.uses.of(m.ID)
	if !tryLock(ctx, use) {
		r.Busy = true
		return r, ctx.Err()
	}
	defer use.Unlock()
	now, err := repo.Signature(ctx)
	if err != nil {
		return r, err
	}
	if now != signature {
		r.Busy = true
		return r, nil
	}
	// Nobody sends anything to the model any more until the lock is let go of.
	if r.Blobs, err = s.unusedSince(ctx, unused, before); err != nil {
		return r, err
	}
	for part := range slices.Chunk(r.Blobs, maxReleased) {
		record := registry.BlobsUnlinked{ModelID: m.ID}
		for _, b := range part {
			record.Digests = append(record.Digests, b.Digest)
		}
		if err := s.commit(ctx, registry.Group{At: s.Now(), Actor: access.System.Name, Records: []registry.Record{record}}); err != nil {
			return r, err
		}
	}
	return r, nil
}

// How long Release waits for a model.
const (
	lockTries = 100
	lockEvery = 100 * time.Millisecond
)

// tryLock waits for the lock without keeping others from it meanwhile: a push may take its time.
func tryLock(ctx context.Context, use *sync.RWMutex) bool {
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for range lockTries {
		if use.TryLock() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// unnamed are the blobs of a model that nothing names.
func (s *Service) unnamed(ctx context.Context, m registry.Model, repo Repository) ([]registry.LinkedBlob, error) {
	owned, err := s.Index.OwnedBlobs(ctx, m.ID)
	if err != nil || len(owned) == 0 {
		return nil, err
	}
	keep := func(d digest.Digest) { delete(owned, d.String()) }
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	for _, v := range versions {
		keep(v.Version.Config.Digest)
		for _, f := range v.Version.Files {
			keep(f.Digest)
		}
	}
	if err := s.keepManifests(ctx, m, keep); err != nil {
		return nil, err
	}
	attachments, err := s.Index.AttachmentsOf(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	for _, d := range attachments {
		keep(d)
	}
	if len(owned) == 0 {
		return nil, nil
	}
	err = repo.SmallBlobs(ctx, registry.MaxPointerLen, func(data []byte) error {
		if pointer, ok := registry.ParsePointer(data); ok {
			keep(pointer.Digest)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var unnamed []registry.LinkedBlob
	for d, size := range owned {
		unnamed = append(unnamed, registry.LinkedBlob{Digest: digest.Digest(d), SizeBytes: size})
	}
	slices.SortFunc(unnamed, func(a, b registry.LinkedBlob) int { return compareText(a.Digest.String(), b.Digest.String()) })
	return unnamed, nil
}

// maxManifestBytes bounds a manifest. Source: OCI distribution spec v1.1, "Pushing Manifests".
const maxManifestBytes = 4 << 20

// keepManifests keeps what the manifests of a model name.
func (s *Service) keepManifests(ctx context.Context, m registry.Model, keep func(digest.Digest)) error {
	manifests, err := s.Index.ManifestsOf(ctx, m.ID)
	if err != nil {
		return err
	}
	for _, stored := range manifests {
		keep(stored.Digest)
		content, err := s.Blobs.Get(ctx, stored.Digest)
		if err != nil {
			return err // what it names is not known, so that nothing may go
		}
		data, err := io.ReadAll(io.LimitReader(content, maxManifestBytes))
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
		type named struct{ Digest digest.Digest }
		var manifest struct {
			Config            named
			Layers, Manifests []named
		}
		if err := json.Unmarshal(data, &manifest); err != nil {
			return err
		}
		keep(manifest.Config.Digest)
		for _, n := range append(manifest.Layers, manifest.Manifests...) {
			keep(n.Digest)
		}
	}
	return nil
}

// unusedSince are those that nobody has sent since a time.
func (s *Service) unusedSince(ctx context.Context, blobs []registry.LinkedBlob, before time.Time) ([]registry.LinkedBlob, error) {
	var unused []registry.LinkedBlob
	for _, b := range blobs {
		at, err := s.Blobs.UsedAt(ctx, b.Digest)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return nil, err
		}
		if err != nil || at.Before(before) {
			unused = append(unused, b)
		}
	}
	return unused, nil
}
