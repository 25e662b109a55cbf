package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// NewState is what a person says about a version.
type NewState struct {
	State     registry.VersionState
	Reason    string
	ForceLive bool // revoke it although it runs somewhere
}

// stateEvent is the data of version.deprecated, version.quarantined, version.revoked and version.restored.
type stateEvent struct {
	Change registry.StateChange       `json:"change"`
	LiveIn []registry.EnvironmentName `json:"live_in"` // the environments that hold the version
}

// SetState brings a version into another state. What is quarantined or revoked stays where it runs until somebody rolls back; the
// event says where that is. A version that runs somewhere is revoked only when that is asked for. OCI clients are refused what only revoked
// versions have; what Git and Git LFS give stays readable.
func (s *Service) SetState(ctx context.Context, by Request, m registry.Model, tag registry.Tag, to NewState) (registry.StateChange, error) {
	if err := access.Authorize(by.Identity, access.SetState, &m); err != nil {
		return registry.StateChange{}, err
	}
	if err := checkReason(to.Reason); err != nil {
		return registry.StateChange{}, err
	}
	if to.Reason == "" {
		return registry.StateChange{}, registry.Invalid("reason", "say why: the reason is kept, and shown to whoever asks for the version")
	}
	unlock := s.locks.lock(m.ID)
	defer unlock()
	id := by.newID(m.ID, "state")
	switch before, err := s.Index.StateChangeByID(ctx, m.ID, id); {
	case err == nil && (before.Version != tag || before.State != to.State || before.Reason != to.Reason):
		return registry.StateChange{}, registry.Conflict("the idempotency key was used for another change of a state")
	case err == nil:
		return before, nil
	case !errors.Is(err, registry.ErrNotFound):
		return registry.StateChange{}, err
	}
	v, err := s.Index.Version(ctx, m.ID, tag)
	if err != nil {
		return registry.StateChange{}, err
	}
	if err := registry.CheckStateChange(tag, v.State, to.State); err != nil {
		return registry.StateChange{}, err
	}
	live, err := s.holding(ctx, m.ID, tag)
	if err != nil {
		return registry.StateChange{}, err
	}
	record := registry.VersionStateSet{ModelID: m.ID, Change: registry.StateChange{
		ID: id, Version: tag, State: to.State, Previous: v.State, Reason: to.Reason, By: by.Identity.Name, At: s.Now(),
	}}
	if to.State == registry.Revoked {
		if len(live) > 0 && !to.ForceLive {
			return registry.StateChange{}, registry.Conflict("%s is in %s: roll back first, or force it", tag, live[0])
		}
		if record.Withdrawn, err = s.withdrawn(ctx, m, v); err != nil {
			return registry.StateChange{}, err
		}
	}
	c := record.Change
	e := registry.NewEvent(c.Event(), m, c.By, c.At, stateEvent{c, live}, c.ID)
	e.Version = tag
	if err := s.commit(ctx, registry.Group{At: c.At, Actor: c.By, Request: by.ID, Records: []registry.Record{record, announce(e)}}); err != nil {
		return registry.StateChange{}, err
	}
	_, err = s.settle(ctx, m.ID, []registry.Tag{tag})
	return c, err
}

// holding are the environments that hold a version.
func (s *Service) holding(ctx context.Context, modelID string, tag registry.Tag) ([]registry.EnvironmentName, error) {
	states, err := s.Index.Environments(ctx, modelID)
	held := []registry.EnvironmentName{}
	for _, state := range states {
		if state.Version() == tag {
			held = append(held, state.Name)
		}
	}
	return held, err
}

// withdrawn is what a version has and no other that is not revoked, and of another commit.
func (s *Service) withdrawn(ctx context.Context, m registry.Model, v registry.VersionRecord) ([]digest.Digest, error) {
	own, err := s.content(ctx, v)
	if err != nil {
		return nil, err
	}
	only := map[digest.Digest]bool{}
	for _, d := range own {
		only[d] = true
	}
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	for _, other := range versions {
		if other.State == registry.Revoked || other.Version.Commit == v.Version.Commit {
			continue
		}
		shared, err := s.content(ctx, other)
		if err != nil {
			return nil, err
		}
		for _, d := range shared {
			delete(only, d)
		}
	}
	var found []digest.Digest
	for d := range only {
		found = append(found, d)
	}
	slices.Sort(found)
	return found, nil
}

// content is all that OCI clients pull of a version, by digest. A document that is lost leads nowhere: nobody can pull it anyway.
func (s *Service) content(ctx context.Context, v registry.VersionRecord) ([]digest.Digest, error) {
	all := []digest.Digest{v.Version.Artifact.Digest, v.Version.Config.Digest}
	for _, f := range v.Version.Files {
		all = append(all, f.Digest)
	}
	if v.Image.State != registry.ImageReady {
		return all, nil
	}
	all = append(all, v.Image.Digest)
	var index v1.Index
	if err := s.readDocument(ctx, v.Image.Digest, &index); err != nil {
		return nil, err
	}
	for _, platform := range index.Manifests {
		var manifest v1.Manifest
		if err := s.readDocument(ctx, platform.Digest, &manifest); err != nil {
			return nil, err
		}
		all = append(all, platform.Digest, manifest.Config.Digest)
		for _, layer := range manifest.Layers {
			all = append(all, layer.Digest)
		}
	}
	return all, nil
}

// maxDocumentBytes is far more than any manifest that this program makes.
const maxDocumentBytes = 64 << 20

// readDocument reads a manifest that this program made. One that is lost has nothing in it.
func (s *Service) readDocument(ctx context.Context, d digest.Digest, into any) error {
	if d == "" {
		return nil
	}
	content, err := s.Blobs.Get(ctx, d)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer content.Close()
	data, err := io.ReadAll(io.LimitReader(content, maxDocumentBytes))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// Freeze keeps an environment as it is, or lets it go again. A rollback is possible all the same.
func (s *Service) Freeze(ctx context.Context, by Request, m registry.Model, env registry.EnvironmentName, frozen bool, reason string) (registry.Freeze, error) {
	if err := access.Authorize(by.Identity, access.Freeze, &m); err != nil {
		return registry.Freeze{}, err
	}
	if err := checkReason(reason); err != nil {
		return registry.Freeze{}, err
	}
	unlock := s.locks.lock(m.ID)
	defer unlock()
	state, err := s.Index.Environment(ctx, m.ID, env)
	if err != nil {
		return registry.Freeze{}, err
	}
	if state.Current == nil && state.Freeze == nil {
		if _, err := s.environmentPolicy(ctx, m, env); err != nil {
			return registry.Freeze{}, err
		}
	}
	id := by.newID(m.ID, "freeze")
	switch {
	case frozen && state.Freeze != nil && state.Freeze.ID == id:
		return *state.Freeze, nil // asked for again
	case frozen && state.Freeze != nil:
		return registry.Freeze{}, registry.Conflict("%s is frozen already, by %s since %s%s", env, state.Freeze.By, state.Freeze.At.Format(time.RFC3339), because(state.Freeze.Reason))
	case !frozen && state.Freeze == nil:
		return registry.Freeze{}, registry.Conflict("%s is not frozen", env)
	}
	f := registry.Freeze{ID: id, Environment: env, Frozen: frozen, Reason: reason, By: by.Identity.Name, At: s.Now()}
	kind := registry.EventEnvironmentUnfrozen
	if frozen {
		kind = registry.EventEnvironmentFrozen
	}
	e := registry.NewEvent(kind, m, f.By, f.At, f, f.ID, f.At.String())
	e.Environment = env
	err = s.commit(ctx, registry.Group{At: f.At, Actor: f.By, Request: by.ID, Records: []registry.Record{
		registry.EnvironmentFrozen{ModelID: m.ID, Freeze: f}, announce(e),
	}})
	if err != nil {
		return registry.Freeze{}, err
	}
	_, err = s.settle(ctx, m.ID, nil)
	return f, err
}
