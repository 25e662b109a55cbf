package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// modelEvent is the data of the events about a model itself.
type modelEvent struct {
	Visibility  registry.Visibility `json:"visibility"`
	Description string              `json:"description"`
}

// CreateModel makes a model with an empty repository. The name of a deleted model is an
// administrator's to use again.
func (s *Service) CreateModel(ctx context.Context, by Request, name registry.ModelName, visibility registry.Visibility, description string) (registry.Model, error) {
	if err := access.Authorize(by.Identity, access.Create, nil); err != nil {
		return registry.Model{}, err
	}
	if err := checkDescription(description); err != nil {
		return registry.Model{}, err
	}
	unlock := s.locks.lock("name:" + name.String())
	defer unlock()
	return s.create(ctx, by, name, visibility, description)
}

// PushTarget is the model that a push goes to, when the caller may push to it; without an ID when
// there is none yet, which [Service.CheckFirstPush] then makes. The name of a deleted model is used
// again at once: what may lie in the place of its repository has to go before the push comes.
func (s *Service) PushTarget(ctx context.Context, by Request, name registry.ModelName) (registry.Model, error) {
	m, err := s.Index.ModelByName(ctx, name)
	switch {
	case err == nil:
		return m, access.Authorize(by.Identity, access.Write, &m)
	case !errors.Is(err, registry.ErrNotFound):
		return m, err
	}
	deleted, err := s.mayCreate(ctx, by, name)
	if err != nil || !deleted {
		return registry.Model{Name: name}, err
	}
	return s.EnsureModel(ctx, by, name)
}

// UploadTarget is the model that content for a push goes to, when the caller may push to it; without an
// ID when there is none yet. It makes nothing: [Service.EnsureModel] does, once there is content.
func (s *Service) UploadTarget(ctx context.Context, by Request, name registry.ModelName) (registry.Model, error) {
	m, err := s.Index.ModelByName(ctx, name)
	switch {
	case err == nil:
		return m, access.Authorize(by.Identity, access.Write, &m)
	case !errors.Is(err, registry.ErrNotFound):
		return m, err
	}
	_, err = s.mayCreate(ctx, by, name)
	return registry.Model{Name: name}, err
}

// EnsureModel is the model of that name; it makes the model when there is none.
func (s *Service) EnsureModel(ctx context.Context, by Request, name registry.ModelName) (registry.Model, error) {
	m, _, err := s.ensure(ctx, by, name)
	return m, err
}

func (s *Service) ensure(ctx context.Context, by Request, name registry.ModelName) (m registry.Model, made bool, err error) {
	unlock := s.locks.lock("name:" + name.String())
	defer unlock()
	m, err = s.Index.ModelByName(ctx, name)
	if err == nil {
		return m, false, access.Authorize(by.Identity, access.Write, &m)
	}
	if !errors.Is(err, registry.ErrNotFound) {
		return m, false, err
	}
	if err := access.Authorize(by.Identity, access.Create, nil); err != nil {
		return m, false, err
	}
	m, err = s.create(ctx, by, name, s.Visibility, "")
	return m, err == nil, err
}

func (s *Service) create(ctx context.Context, by Request, name registry.ModelName, visibility registry.Visibility, description string) (registry.Model, error) {
	switch _, err := s.Index.ModelByName(ctx, name); {
	case err == nil:
		return registry.Model{}, fmt.Errorf("model %s: %w", name, registry.ErrExists)
	case !errors.Is(err, registry.ErrNotFound):
		return registry.Model{}, err
	}
	deleted, err := s.mayCreate(ctx, by, name)
	if err != nil {
		return registry.Model{}, err
	}
	records, done, err := s.vacate(ctx, name)
	if err != nil {
		return registry.Model{}, err
	}
	defer done()
	if deleted {
		// What a crash left of the deletion is not the new model's.
		if err := s.setAside(ctx, name); err != nil {
			return registry.Model{}, err
		}
	}
	now := s.Now()
	m := registry.Model{
		ID: Request{}.newID("", ""), Name: name, Visibility: visibility, Description: description,
		CreatedAt: now, CreatedBy: by.Identity.Name, UpdatedAt: now,
	}
	event := registry.NewEvent(registry.EventModelCreated, m, by.Identity.Name, now, modelEvent{m.Visibility, m.Description})
	// The repository is made from the record: after a crash here the next who opens it does so.
	err = s.commit(ctx, registry.Group{At: now, Actor: by.Identity.Name, Request: by.ID, Records: append(records,
		registry.ModelCreated{Model: m}, announce(event),
	)})
	if err != nil {
		return registry.Model{}, err
	}
	_, err = s.Repositories.Open(ctx, name)
	return m, err
}

// mayCreate reports why the caller cannot make a model of that name, or nil, and whether a model of
// that name was deleted.
func (s *Service) mayCreate(ctx context.Context, by Request, name registry.ModelName) (deleted bool, err error) {
	if err := access.Authorize(by.Identity, access.Create, nil); err != nil {
		return false, err
	}
	deleted, err = s.deleted(ctx, by, name)
	if err == nil {
		_, err = s.inTheWay(ctx, name)
	}
	return deleted, err
}

// deleted reports whether a model of that name was deleted. It is an error when the caller may not use the name again.
func (s *Service) deleted(ctx context.Context, by Request, name registry.ModelName) (bool, error) {
	deleted, err := s.Index.Deleted(ctx, name)
	if err == nil && deleted && by.Identity.Role != access.Admin {
		err = fmt.Errorf("a model %s was deleted, and only an administrator may use its name again: %w", name, registry.ErrForbidden)
	}
	return deleted, err
}

// inTheWay are the repositories without a model that have the names which those of a model of that name would have. It is a
// [registry.Conflict] when clients have pushed something to one of them.
func (s *Service) inTheWay(ctx context.Context, name registry.ModelName) ([]registry.Repository, error) {
	var found []registry.Repository
	for _, at := range []string{name.String(), name.String() + "/image"} {
		r, err := s.Index.RepositoryByName(ctx, at)
		if errors.Is(err, registry.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		manifests, err := s.Index.ManifestsOf(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		if len(manifests) > 0 {
			return nil, registry.Conflict("%s is a repository of OCI artifacts without a model and holds %d manifests: delete them, or choose another name for the model", at, len(manifests))
		}
		found = append(found, r)
	}
	return found, nil
}

// vacate gives the records that make room for a model of that name, whose lock is held. Nobody pushes to what they delete until done is
// called.
func (s *Service) vacate(ctx context.Context, name registry.ModelName) (records []registry.Record, done func(), err error) {
	repositories, err := s.inTheWay(ctx, name)
	if err != nil || len(repositories) == 0 {
		return nil, func() {}, err
	}
	var held []*sync.RWMutex
	done = func() {
		for _, use := range held {
			use.Unlock()
		}
	}
	for _, r := range repositories {
		use := s.uses.of(r.ID)
		use.Lock()
		held = append(held, use)
		records = append(records, registry.RepositoryDeleted{RepositoryID: r.ID})
	}
	// As they are now: somebody may just have pushed something.
	if _, err := s.inTheWay(ctx, name); err != nil {
		done()
		return nil, nil, err
	}
	return records, done, nil
}

func checkDescription(text string) error {
	if len(text) > registry.MaxDescriptionLen || !printable(text) {
		return registry.Invalid("description", "a description is UTF-8 text of at most %d bytes, without control characters", registry.MaxDescriptionLen)
	}
	return nil
}

// ModelChange is what a client sets of a model; nil leaves it as it is.
type ModelChange struct {
	Description *string
	Visibility  *registry.Visibility
	Protected   *registry.Protection
}

// ChangeModel sets what the change names.
func (s *Service) ChangeModel(ctx context.Context, by Request, m registry.Model, change ModelChange) (registry.Model, error) {
	if err := access.Authorize(by.Identity, access.Describe, &m); err != nil {
		return m, err
	}
	unlock := s.locks.lock(m.ID)
	defer unlock()
	m, err := s.Index.ModelByID(ctx, m.ID)
	if err != nil {
		return m, err
	}
	before := m.Visibility
	if change.Description != nil {
		if err := checkDescription(*change.Description); err != nil {
			return m, err
		}
		m.Description = *change.Description
	}
	if change.Visibility != nil {
		m.Visibility = *change.Visibility
	}
	if change.Protected != nil {
		if err := change.Protected.Check(); err != nil {
			return m, err
		}
		m.Protected = *change.Protected
	}
	if m.Visibility == registry.Public && before != registry.Public {
		if err := s.attestAnew(ctx, m); err != nil {
			return m, err
		}
	}
	g := registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.ModelChanged{ModelID: m.ID, Description: m.Description, Visibility: m.Visibility, Protected: m.Protected},
	}}
	if m.Visibility != before {
		g.Records = append(g.Records, announce(registry.NewEvent(registry.EventModelVisibilityChanged, m, g.Actor, g.At,
			modelEvent{m.Visibility, m.Description}, string(m.Visibility), g.At.String())))
	}
	if err := s.commit(ctx, g); err != nil {
		return m, err
	}
	return s.Index.ModelByID(ctx, m.ID)
}

// DeleteModel takes a model away. Its tombstone keeps its version tags from ever being used
// again under its name.
func (s *Service) DeleteModel(ctx context.Context, by Request, m registry.Model) error {
	if err := access.Authorize(by.Identity, access.Delete, &m); err != nil {
		return err
	}
	// Until the repository is gone nobody makes another model of that name, and nothing of the model
	// opens it again.
	for _, what := range []string{"name:" + m.Name.String(), m.ID, "mirror:" + m.ID} {
		defer s.locks.lock(what)()
	}
	if _, err := s.Index.ModelByID(ctx, m.ID); err != nil {
		return err
	}
	now := s.Now()
	err := s.commit(ctx, registry.Group{At: now, Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		announce(registry.NewEvent(registry.EventModelDeleted, m, by.Identity.Name, now, modelEvent{m.Visibility, m.Description})),
		registry.ModelDeleted{ModelID: m.ID},
	}})
	if err != nil {
		return err
	}
	// A crash here leaves a repository without a model; see Start.
	s.mu.Lock()
	delete(s.signatures, m.ID)
	s.mu.Unlock()
	return s.Repositories.Remove(ctx, m.Name)
}

// LinkBlobs records that the model was shown the content of these blobs, so that it may refer
// to them and its readers may fetch them.
func (s *Service) LinkBlobs(ctx context.Context, by Request, m registry.Model, blobs ...registry.LinkedBlob) error {
	use := s.uses.of(m.ID)
	use.RLock()
	defer use.RUnlock()
	return s.linkBlobs(ctx, by, m.ID, m.Name.String(), blobs...)
}

// linkBlobs records what of some blobs its owner does not have yet. The owner is in use.
func (s *Service) linkBlobs(ctx context.Context, by Request, ownerID, name string, blobs ...registry.LinkedBlob) error {
	var bytes int64
	var missing []registry.LinkedBlob
	for _, b := range blobs {
		size, err := s.Index.BlobSize(ctx, ownerID, b.Digest.String())
		known := err == nil && size == b.SizeBytes
		switch {
		case errors.Is(err, registry.ErrNotFound): // what it has already, and was lost, is not counted twice
			bytes += b.SizeBytes
		case err != nil:
			return err
		}
		if known {
			if known, err = s.knownBy(ctx, ownerID, b.Alias, b.Digest); err != nil {
				return err
			}
		}
		if !known {
			missing = append(missing, b)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := s.CheckQuota(ctx, name, bytes); err != nil {
		return err
	}
	err := s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.BlobsLinked{ModelID: ownerID, Blobs: missing},
	}})
	if err == nil {
		s.quotas.counted(s.Quotas, name, bytes)
	}
	return err
}
