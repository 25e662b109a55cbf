package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// uses holds for each model and each repository who uses what it owns: uploads and pushes share it, and who lets go of blobs
// has it alone.
type uses struct{ models sync.Map }

func (u *uses) of(modelID string) *sync.RWMutex {
	use, _ := u.models.LoadOrStore(modelID, &sync.RWMutex{})
	return use.(*sync.RWMutex)
}

// Released is what a model, or a repository that no model stands behind, does not own any more.
type Released struct {
	Name       string
	Repository bool // it is no model
	Blobs      []registry.LinkedBlob
	Gone       bool   // the repository was empty, and is deleted
	Busy       bool   // it was in use all the time: nothing was let go of
	Error      string // why nobody can tell what it needs: nothing was let go of
}

// maxReleased bounds the blobs of one group.
const maxReleased = 10_000

// Release lets models go of the LFS objects that no commit which a ref leads to names any more, and that nobody has sent since
// before. What a version consists of is never let go of, nor what a manifest or an evaluation names. Repositories without a model
// go of what no manifest in them names; one that is empty and was made before is deleted. In a dry run nothing
// changes. Told is called for each that has or had something to let go of.
//
// The content stays in the store until nobody owns it.
func (s *Service) Release(ctx context.Context, before time.Time, dryRun bool, told func(Released)) error {
	tell := func(r Released, err error) error {
		switch {
		case errors.Is(err, registry.ErrNotFound):
			return nil // deleted since
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil: // the others are looked at all the same
			r = Released{Name: r.Name, Repository: r.Repository, Error: err.Error()}
		}
		if len(r.Blobs) > 0 || r.Gone || r.Busy || r.Error != "" {
			told(r)
		}
		return nil
	}
	models, err := s.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	for _, m := range models {
		r, err := s.release(ctx, m, before, dryRun)
		if err != nil {
			if _, gone := s.Index.ModelByID(ctx, m.ID); errors.Is(gone, registry.ErrNotFound) {
				err = gone // while it was looked into
			}
		}
		if err := tell(r, err); err != nil {
			return err
		}
	}
	repositories, err := s.Index.Repositories(ctx)
	if err != nil {
		return err
	}
	for _, repository := range repositories {
		if err := tell(s.releaseRepository(ctx, repository, before, dryRun)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) release(ctx context.Context, m registry.Model, before time.Time, dryRun bool) (Released, error) {
	r := Released{Name: m.Name.String()}
	repo, err := s.openOf(ctx, m)
	if err != nil {
		return r, err
	}
	// What is found now holds as long as no ref moves and no manifest comes.
	signature, err := repo.Signature(ctx)
	if err != nil {
		return r, err
	}
	unnamed, err := s.unnamed(ctx, m, repo)
	if err != nil || len(unnamed.blobs) == 0 {
		return r, err
	}
	if dryRun {
		r.Blobs, err = s.unusedSince(ctx, unnamed, before)
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
	r.Blobs, err = s.letGo(ctx, unnamed, before)
	return r, err
}

// releaseRepository is release for a repository that no model stands behind.
func (s *Service) releaseRepository(ctx context.Context, repository registry.Repository, before time.Time, dryRun bool) (Released, error) {
	r := Released{Name: repository.Name, Repository: true}
	unnamed, err := s.ownedBy(ctx, repository.ID)
	if err != nil {
		return r, err
	}
	owned := len(unnamed.blobs)
	if err := s.keepManifests(ctx, unnamed); err != nil {
		return r, err
	}
	mayGo := len(unnamed.read) == 0 && repository.CreatedAt.Before(before)
	if dryRun {
		r.Blobs, err = s.unusedSince(ctx, unnamed, before)
		r.Gone = mayGo && len(r.Blobs) == owned
		return r, err
	}
	if len(unnamed.blobs) == 0 && !mayGo {
		return r, nil
	}
	// Nobody makes another repository or a model of that name meanwhile.
	unlock := s.locks.lock(nameLock(repository.Name))
	defer unlock()
	use := s.uses.of(repository.ID)
	if !tryLock(ctx, use) {
		r.Busy = true
		return r, ctx.Err()
	}
	defer use.Unlock()
	if now, err := s.Index.RepositoryByName(ctx, repository.Name); err != nil || now.ID != repository.ID {
		return r, errors.Join(err, registry.ErrNotFound)
	}
	if r.Blobs, err = s.letGo(ctx, unnamed, before); err != nil || !mayGo {
		return r, err
	}
	left, err := s.Index.OwnedBlobs(ctx, repository.ID) // what came meanwhile among them
	if err != nil || len(left) > 0 || len(unnamed.read) > 0 {
		return r, err
	}
	r.Gone = true
	return r, s.commit(ctx, registry.Group{At: s.Now(), Actor: access.System.Name, Records: []registry.Record{
		registry.RepositoryDeleted{RepositoryID: repository.ID},
	}})
}

// letGo unlinks what nothing names and nobody has sent since a time. Its owner is not in use: nobody sends anything to it.
func (s *Service) letGo(ctx context.Context, unnamed *unnamed, before time.Time) ([]registry.LinkedBlob, error) {
	if err := errors.Join(s.keepManifests(ctx, unnamed), s.keepAttachments(ctx, unnamed)); err != nil { // that came since
		return nil, err
	}
	unused, err := s.unusedSince(ctx, unnamed, before)
	if err != nil {
		return nil, err
	}
	for part := range slices.Chunk(unused, maxReleased) {
		record := registry.BlobsUnlinked{ModelID: unnamed.owner}
		for _, b := range part {
			record.Digests = append(record.Digests, b.Digest)
		}
		if err := s.commit(ctx, registry.Group{At: s.Now(), Actor: access.System.Name, Records: []registry.Record{record}}); err != nil {
			return nil, err
		}
	}
	return unused, nil
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

// unnamed are the blobs of a model or a repository, but those that were found to be named.
type unnamed struct {
	owner string
	blobs map[string]int64       // size by digest
	read  map[digest.Digest]bool // the manifests that were looked into
}

func (u *unnamed) keep(d digest.Digest) { delete(u.blobs, d.String()) }

func (s *Service) ownedBy(ctx context.Context, owner string) (*unnamed, error) {
	owned, err := s.Index.OwnedBlobs(ctx, owner)
	return &unnamed{owner, owned, map[digest.Digest]bool{}}, err
}

// unnamed are the blobs of a model that nothing names.
func (s *Service) unnamed(ctx context.Context, m registry.Model, repo Repository) (*unnamed, error) {
	found, err := s.ownedBy(ctx, m.ID)
	if err != nil || len(found.blobs) == 0 {
		return found, err
	}
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	for _, v := range versions {
		found.keep(v.Version.Config.Digest)
		for _, f := range v.Version.Files {
			found.keep(f.Digest)
		}
	}
	if err := s.keepManifests(ctx, found); err != nil {
		return nil, err
	}
	if err := s.keepAttachments(ctx, found); err != nil || len(found.blobs) == 0 {
		return found, err
	}
	return found, repo.SmallBlobs(ctx, registry.MaxPointerLen, func(data []byte) error {
		if pointer, ok := registry.ParsePointer(data); ok {
			found.keep(pointer.Digest)
		}
		return nil
	})
}

// keepAttachments keeps what the evaluations of the owner name.
func (s *Service) keepAttachments(ctx context.Context, unnamed *unnamed) error {
	attachments, err := s.Index.AttachmentsOf(ctx, unnamed.owner)
	for _, d := range attachments {
		unnamed.keep(d)
	}
	return err
}

// keepManifests keeps what those manifests of the owner name that were not looked into yet.
func (s *Service) keepManifests(ctx context.Context, unnamed *unnamed) error {
	manifests, err := s.Index.ManifestsOf(ctx, unnamed.owner)
	if err != nil {
		return err
	}
	for _, stored := range manifests {
		if unnamed.read[stored.Digest] {
			continue
		}
		unnamed.keep(stored.Digest)
		content, err := s.Blobs.Get(ctx, stored.Digest)
		if err != nil {
			// What it names is not known, so that nothing may go.
			return fmt.Errorf("manifest %s: %v", stored.Digest, err)
		}
		data, err := io.ReadAll(io.LimitReader(content, registry.MaxManifestBytes))
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
		type named struct{ Digest digest.Digest }
		var manifest struct {
			Config            named
			Layers, Manifests []named
		}
		if err := json.Unmarshal(data, &manifest); err != nil {
			return fmt.Errorf("manifest %s: %w", stored.Digest, err)
		}
		for _, n := range append(manifest.Layers, append(manifest.Manifests, manifest.Config)...) {
			if n.Digest == "" {
				continue // an index has no config
			}
			of, err := s.Index.Canonical(ctx, unnamed.owner, n.Digest)
			switch {
			case err == nil:
				unnamed.keep(of)
				if err := s.keepLayer(ctx, unnamed, of); err != nil {
					return err
				}
			case !errors.Is(err, registry.ErrNotFound):
				return err
			}
		}
		unnamed.read[stored.Digest] = true
	}
	return nil
}

// keepLayer keeps what a layer is composed of, if d is one.
func (s *Service) keepLayer(ctx context.Context, unnamed *unnamed, d digest.Digest) error {
	layer, err := s.Index.Layer(ctx, unnamed.owner, d)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	for _, f := range layer.Files {
		unnamed.keep(f.Digest)
	}
	return err
}

// unusedSince are those that nobody has sent since a time.
func (s *Service) unusedSince(ctx context.Context, unnamed *unnamed, before time.Time) ([]registry.LinkedBlob, error) {
	var unused []registry.LinkedBlob
	for _, d := range slices.Sorted(maps.Keys(unnamed.blobs)) {
		b := registry.LinkedBlob{Digest: digest.Digest(d), SizeBytes: unnamed.blobs[d]}
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
