package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// OCIRepository finds a repository by the name that OCI clients know, and asks for the right to do something with it. One
// that is not there yet has no key; whoever may make it may write to it.
//
// A model NAMESPACE/NAME has two: that name, and NAMESPACE/NAME/image.
func (s *Service) OCIRepository(ctx context.Context, by Request, name string, action access.Action) (registry.OCIRepository, error) {
	r, err := s.findOCI(ctx, name)
	if errors.Is(err, registry.ErrNotFound) {
		return registry.OCIRepository{Name: name}, s.absentOCI(ctx, by, name, action)
	}
	if err != nil {
		return r, err
	}
	return r, authorizeOCI(by.Identity, action, r)
}

// authorizeOCI asks for the right to do something with a repository. That of a model is as the model is.
func authorizeOCI(id access.Identity, action access.Action, r registry.OCIRepository) error {
	if err := access.Authorize(id, action, &r.Model); err != nil {
		return fmt.Errorf("repository %s: %w", r.Name, err)
	}
	return nil
}

// absentOCI says why nothing can be done with a repository that is not there, or nil if it can be made.
func (s *Service) absentOCI(ctx context.Context, by Request, name string, action access.Action) error {
	if action != access.Write {
		err := access.Authorize(by.Identity, action, nil)
		if err == nil {
			err = registry.ErrNotFound
		}
		return fmt.Errorf("repository %s: %w", name, err)
	}
	if err := access.Authorize(by.Identity, access.Create, nil); err != nil {
		return fmt.Errorf("repository %s: %w", name, err)
	}
	of, _ := imageOf(name)
	if model, err := registry.ParseModelName(of); err == nil {
		if _, err := s.deleted(ctx, by, model); err != nil {
			return err
		}
	}
	return registry.CheckRepositoryName(name)
}

// imageOf is the name of the model whose images are in a repository of that name.
func imageOf(name string) (model string, ok bool) {
	model, ok = strings.CutSuffix(name, "/image")
	return model, ok && strings.Count(model, "/") == 1
}

// nameLock is what is locked while something of a name is made or goes: a model takes its own name and that of its images.
func nameLock(name string) string {
	if model, ok := imageOf(name); ok {
		name = model
	}
	return "name:" + name
}

func (s *Service) findOCI(ctx context.Context, name string) (registry.OCIRepository, error) {
	r := registry.OCIRepository{Name: name}
	model := name
	if of, ok := imageOf(name); ok {
		model, r.Image = of, true
	}
	if parsed, err := registry.ParseModelName(model); err == nil {
		m, err := s.Index.ModelByName(ctx, parsed)
		if err == nil {
			r.Model, r.Key, r.OwnerID = m, m.ID, m.ID
			if r.Image {
				r.Key = registry.ImageRepository(m.ID)
			}
			return r, nil
		}
		if !errors.Is(err, registry.ErrNotFound) {
			return r, err
		}
	}
	found, err := s.Index.RepositoryByName(ctx, name)
	if err != nil {
		return r, err
	}
	return registry.OCIRepository{
		Key: found.ID, OwnerID: found.ID, Name: name,
		Model: registry.Model{ID: found.ID, Visibility: found.Visibility, CreatedAt: found.CreatedAt, CreatedBy: found.CreatedBy},
	}, nil
}

// EnsureOCI is the repository of that name for who wants to write to it; it makes the repository when there is none.
func (s *Service) EnsureOCI(ctx context.Context, by Request, name string) (registry.OCIRepository, error) {
	r, err := s.OCIRepository(ctx, by, name, access.Write)
	if err != nil || r.Key != "" {
		return r, err
	}
	unlock := s.locks.lock(nameLock(name))
	defer unlock()
	if r, err = s.OCIRepository(ctx, by, name, access.Write); err != nil || r.Key != "" {
		return r, err
	}
	now := s.Now()
	made := registry.Repository{ID: Request{}.newID("", ""), Name: name, Visibility: s.Visibility, CreatedAt: now, CreatedBy: by.Identity.Name}
	err = s.commit(ctx, registry.Group{At: now, Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.RepositoryCreated{Repository: made},
	}})
	if err != nil {
		return r, err
	}
	return s.findOCI(ctx, name)
}

// still is an error when a repository is not what it was: it was deleted, or a model has its name now. Whoever writes to it asks
// under a lock that keeps it as it is.
func (s *Service) still(ctx context.Context, r registry.OCIRepository) error {
	now, err := s.findOCI(ctx, r.Name)
	if err == nil && now.Key != r.Key {
		err = registry.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("repository %s: %w", r.Name, err)
	}
	return nil
}

// LinkOCI records that a repository owns a blob, which is in the store.
func (s *Service) LinkOCI(ctx context.Context, by Request, r registry.OCIRepository, b registry.LinkedBlob) error {
	use := s.uses.of(r.OwnerID)
	use.RLock()
	defer use.RUnlock()
	if err := s.still(ctx, r); err != nil {
		return err
	}
	if err := s.touch(ctx, b.Digest); err != nil {
		return err
	}
	return s.linkBlobs(ctx, by, r.OwnerID, r.Name, b)
}

// touch keeps what is linked, and may be old, from being let go of before the manifest comes that names it.
func (s *Service) touch(ctx context.Context, d digest.Digest) error {
	if err := s.Blobs.Touch(ctx, d); !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	return nil // lost content is for fsck
}

// LinkLayer lets a repository serve a layer of an image of another one, from the same blobs. The caller may read these.
func (s *Service) LinkLayer(ctx context.Context, by Request, r registry.OCIRepository, layer registry.ImageLayer) error {
	use := s.uses.of(r.OwnerID)
	use.RLock()
	defer use.RUnlock()
	if err := s.still(ctx, r); err != nil {
		return err
	}
	for _, f := range layer.Files {
		if err := s.touch(ctx, f.Digest); err != nil {
			return err
		}
	}
	if _, err := s.Index.Layer(ctx, r.OwnerID, layer.Digest); !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	var bytes int64
	for _, f := range layer.Files {
		switch _, err := s.Index.BlobSize(ctx, r.OwnerID, f.Digest.String()); {
		case errors.Is(err, registry.ErrNotFound):
			bytes += f.SizeBytes
		case err != nil:
			return err
		}
	}
	if err := s.CheckQuota(ctx, r.Name, bytes); err != nil {
		return err
	}
	err := s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.LayerLinked{ModelID: r.OwnerID, Layer: layer},
	}})
	if err == nil {
		s.quotas.counted(s.Quotas, r.Name, bytes)
	}
	return err
}

// knownBy reports whether an owner knows a blob or a manifest by an alias already. It does without one.
func (s *Service) knownBy(ctx context.Context, owner string, alias, d digest.Digest) (bool, error) {
	if alias == "" {
		return true, nil
	}
	of, err := s.Index.Canonical(ctx, owner, alias)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return of == d, err
}

// tagForm is a tag. Source: OCI distribution specification v1.1, "Pulling manifests".
var tagForm = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// PushedManifest is a manifest that a client sends.
type PushedManifest struct {
	MediaType string
	Content   []byte
	Digest    digest.Digest // as the client names it, empty when it names it by a tag only
	Tags      []string
}

// PushManifest stores a manifest whose parts are in the repository. In that of a model nobody can take the tag of a version or of an
// environment, nor send anew what the server made.
func (s *Service) PushManifest(ctx context.Context, by Request, r registry.OCIRepository, p PushedManifest) (registry.StoredManifest, error) {
	m, err := registry.ParseManifest(p.MediaType, p.Content)
	if err != nil {
		return registry.StoredManifest{}, err
	}
	stored := registry.StoredManifest{
		Descriptor:   registry.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(p.Content), SizeBytes: int64(len(p.Content))},
		ArtifactType: m.ArtifactType, Subject: m.Subject, PushedBy: by.Identity.Name,
	}
	if m.Subject != "" { // only lists of referrers show them
		stored.Annotations = m.Annotations
	}
	var alias digest.Digest
	switch {
	case p.Digest == "", p.Digest == stored.Digest:
	case p.Digest.Algorithm() == digest.SHA512 && p.Digest == digest.SHA512.FromBytes(p.Content):
		alias = p.Digest
	default:
		return stored, registry.Invalid("digest", "the manifest has the digest %s, not %s", stored.Digest, p.Digest)
	}
	for _, tag := range p.Tags {
		if !tagForm.MatchString(tag) {
			return stored, registry.Invalid("tag", "%.130q is no tag: at most 128 letters, digits, '_', '.' and '-', and neither '.' nor '-' first", tag)
		}
	}
	unlock := s.locks.lock(r.OwnerID)
	defer unlock()
	// Nothing that it names can be let go of until it is there.
	use := s.uses.of(r.OwnerID)
	use.RLock()
	defer use.RUnlock()
	if err := s.still(ctx, r); err != nil {
		return stored, err
	}
	for _, tag := range p.Tags {
		if err := freeTag(r, tag); err != nil {
			return stored, err
		}
	}
	if err := s.checkParts(ctx, r, m); err != nil {
		return stored, err
	}
	there, err := s.Index.Manifest(ctx, r.Key, stored.Digest)
	found := err == nil
	switch {
	case found:
		stored = there // perhaps one that the server made
	case !errors.Is(err, registry.ErrNotFound):
		return stored, err
	}
	// Also what is there: its content may have been lost.
	if _, err := s.Blobs.Put(ctx, bytes.NewReader(p.Content)); err != nil {
		return stored, err
	}
	record := registry.ManifestPushed{Repository: r.Key, Manifest: stored, Alias: alias, Tags: p.Tags}
	if found {
		if same, err := s.nothingNew(ctx, record); err != nil || same {
			return stored, err
		}
	}
	return stored, s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{record}})
}

// nothingNew reports whether a manifest that is there has all tags and the alias of a record already.
func (s *Service) nothingNew(ctx context.Context, r registry.ManifestPushed) (bool, error) {
	named := r.Manifest.Digest
	if r.Alias != "" {
		named = r.Alias
	}
	for _, tag := range r.Tags {
		d, err := s.Index.TagDigest(ctx, r.Repository, tag)
		if errors.Is(err, registry.ErrNotFound) || err == nil && d != named {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return s.knownBy(ctx, r.Repository, r.Alias, r.Manifest.Digest)
}

// freeTag says why a client cannot have a tag, or nil. In a model's repositories those of versions and environments are the
// server's, also while there is no such version or environment: nobody shall take one for what was never published or promoted.
func freeTag(r registry.OCIRepository, tag string) error {
	if r.Model.Name.IsZero() || !registry.ServerTag(tag) {
		return nil
	}
	return fmt.Errorf("the tag %q has the form of a version or an environment, and in the repositories of a model those come from git push and from promotions: %w",
		tag, registry.ErrForbidden)
}

// MissingPartError says that a manifest names what is not in its repository. It is a [registry.ErrInvalid].
type MissingPartError struct {
	Digest digest.Digest
	Err    error
}

func (e *MissingPartError) Error() string { return e.Err.Error() }

func (e *MissingPartError) Unwrap() error { return e.Err }

// checkParts makes sure that all that a manifest names is there, as long as it says.
func (s *Service) checkParts(ctx context.Context, r registry.OCIRepository, m registry.Manifest) error {
	check := func(d v1.Descriptor, what string, size int64, err error) error {
		if errors.Is(err, registry.ErrNotFound) {
			return &MissingPartError{d.Digest, registry.Invalid("manifest", "it names the %s %s, which is not in %s; push that first", what, d.Digest, r.Name)}
		}
		if err == nil && size != d.Size {
			err = registry.Invalid("manifest", "it says that the %s %s has %d bytes; it has %d", what, d.Digest, d.Size, size)
		}
		return err
	}
	for _, d := range m.Blobs {
		size, err := s.ociBlobSize(ctx, r, d.Digest)
		if err := check(d, "blob", size, err); err != nil {
			return err
		}
	}
	for _, d := range m.Manifests {
		of, err := s.Index.Canonical(ctx, r.Key, d.Digest)
		var there registry.StoredManifest
		if err == nil {
			there, err = s.Index.Manifest(ctx, r.Key, of)
		}
		if err := check(d, "manifest", there.SizeBytes, err); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) ociBlobSize(ctx context.Context, r registry.OCIRepository, d digest.Digest) (int64, error) {
	of, err := s.Index.Canonical(ctx, r.OwnerID, d)
	if err != nil {
		return 0, err
	}
	size, err := s.Index.BlobSize(ctx, r.OwnerID, of.String())
	if errors.Is(err, registry.ErrNotFound) {
		var layer registry.ImageLayer
		if layer, err = s.Index.Layer(ctx, r.OwnerID, of); err == nil {
			size = layer.SizeBytes
		}
	}
	return size, err
}

// made is why something that the server made of a version cannot be deleted.
func made(r registry.OCIRepository, what string) error {
	return fmt.Errorf("%s belongs to a version of %s, which is for ever: %w", what, r.Model.Name, registry.ErrForbidden)
}

// DeleteManifest deletes a manifest that a client pushed, and the tags that name it.
func (s *Service) DeleteManifest(ctx context.Context, by Request, r registry.OCIRepository, d digest.Digest) error {
	unlock := s.locks.lock(r.OwnerID)
	defer unlock()
	of, err := s.Index.Canonical(ctx, r.Key, d)
	if err != nil {
		return err
	}
	m, err := s.Index.Manifest(ctx, r.Key, of)
	if err != nil {
		return err
	}
	if m.PushedBy == "" {
		return made(r, "the manifest "+d.String())
	}
	return s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.ManifestDeleted{Repository: r.Key, Digest: of},
	}})
}

// DeleteTag deletes a tag that a client gave; the manifest stays.
func (s *Service) DeleteTag(ctx context.Context, by Request, r registry.OCIRepository, tag string) error {
	unlock := s.locks.lock(r.OwnerID)
	defer unlock()
	if _, err := s.Index.TagDigest(ctx, r.Key, tag); err != nil {
		return err
	}
	if err := freeTag(r, tag); err != nil {
		return err
	}
	return s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.TagDeleted{Repository: r.Key, Tag: tag},
	}})
}

// UnlinkOCI lets a repository without a model go of a blob. The content stays in the store as long as somebody owns it.
func (s *Service) UnlinkOCI(ctx context.Context, by Request, r registry.OCIRepository, d digest.Digest) error {
	if !r.Model.Name.IsZero() {
		return fmt.Errorf("blobs of a model are let go of when nothing names them, by herdbook gc: %w", registry.ErrForbidden)
	}
	unlock := s.locks.lock(r.OwnerID) // a manifest that names it is stored before or not at all
	defer unlock()
	of, err := s.Index.Canonical(ctx, r.OwnerID, d)
	if err == nil {
		_, err = s.ociBlobSize(ctx, r, of)
	}
	if err != nil {
		return err
	}
	return s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.BlobsUnlinked{ModelID: r.OwnerID, Digests: []digest.Digest{of}},
	}})
}
