package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

type lockIndex interface {
	Locks(ctx context.Context, modelID string) ([]registry.Lock, error)
	Lock(ctx context.Context, modelID, id string) (registry.Lock, error)
	LockOf(ctx context.Context, modelID, path string) (registry.Lock, error)
	LockCount(ctx context.Context, modelID string) (int, error)
}

// LockFile locks a file for the caller. When it is locked already, by whomever, the error is
// registry.ErrConflict and the lock is the one that there is.
func (s *Service) LockFile(ctx context.Context, by Request, m registry.Model, path string) (registry.Lock, error) {
	if err := access.Authorize(by.Identity, access.Write, &m); err != nil {
		return registry.Lock{}, err
	}
	if err := registry.CheckLockPath(path); err != nil {
		return registry.Lock{}, err
	}
	defer s.locks.lock(m.ID)()
	if _, err := s.Index.ModelByID(ctx, m.ID); err != nil {
		return registry.Lock{}, err
	}
	switch held, err := s.Index.LockOf(ctx, m.ID, path); {
	case err == nil && held.Owner == by.Identity.Name:
		return held, registry.Conflict("you have locked %q since %s", path, when(held.LockedAt))
	case err == nil:
		return held, registry.Conflict("%q is locked by %s since %s", path, held.Owner, when(held.LockedAt))
	case !errors.Is(err, registry.ErrNotFound):
		return registry.Lock{}, err
	}
	count, err := s.Index.LockCount(ctx, m.ID)
	if err != nil {
		return registry.Lock{}, err
	}
	if count >= registry.MaxLocks {
		return registry.Lock{}, fmt.Errorf("%s has %d locks and may not have more; unlock files that nobody works on: %w", m.Name, count, registry.ErrTooLarge)
	}
	now := s.Now()
	l := registry.Lock{ID: lockID(now), Path: path, Owner: by.Identity.Name, LockedAt: now}
	return l, s.commit(ctx, registry.Group{At: now, Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.LockCreated{ModelID: m.ID, Lock: l},
	}})
}

// lockID sorts by the time of the lock, so that who pages through the locks meets the new ones last.
func lockID(at time.Time) string {
	var random [8]byte
	rand.Read(random[:]) // never fails: crypto/rand
	return fmt.Sprintf("%016x%s", at.UnixMicro(), hex.EncodeToString(random[:]))
}

// UnlockFile removes a lock, which is the caller's own, or force is set and the caller may do that.
// Only a lock of this model is found, whoever knows its id.
func (s *Service) UnlockFile(ctx context.Context, by Request, m registry.Model, id string, force bool) (registry.Lock, error) {
	if err := access.Authorize(by.Identity, access.Write, &m); err != nil {
		return registry.Lock{}, err
	}
	defer s.locks.lock(m.ID)()
	l, err := s.Index.Lock(ctx, m.ID, id)
	if errors.Is(err, registry.ErrNotFound) {
		return l, fmt.Errorf("%s has no lock of that id, or not any more: %w", m.Name, registry.ErrNotFound)
	}
	if err != nil {
		return l, err
	}
	foreign := l.Owner != by.Identity.Name
	switch {
	case foreign && access.Authorize(by.Identity, access.ForceUnlock, &m) != nil:
		return registry.Lock{}, fmt.Errorf("%q is locked by %s since %s; only %s or a maintainer may unlock it: %w", l.Path, l.Owner, when(l.LockedAt), l.Owner, registry.ErrForbidden)
	case foreign && !force:
		return registry.Lock{}, fmt.Errorf("%q is locked by %s since %s; to take that lock away, unlock it with --force: %w", l.Path, l.Owner, when(l.LockedAt), registry.ErrForbidden)
	}
	return l, s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.LockRemoved{ModelID: m.ID, LockID: l.ID, Path: l.Path, Owner: l.Owner, Forced: foreign},
	}})
}

// when is a time as people read it.
func when(at time.Time) string { return at.UTC().Format("2006-01-02 15:04 UTC") }

// toucher is a [Push] that can tell which files it changes.
type toucher interface {
	// TouchedPaths returns those of paths at which moving a branch from one commit to another changes, adds
	// or deletes something: by what the commits do that no ref of the repository reaches, and, when to
	// does not come after from, by how the two differ. From is empty for a branch that was not there. A
	// merge changes a path unless it has there what Git makes of its parents without a conflict. A push
	// with too many commits or merges to tell is a registry.ErrTooLarge.
	TouchedPaths(ctx context.Context, from, to registry.ObjectID, paths []string) ([]string, error)
}

// maxLocksShown bounds the lines of a refusal.
const maxLocksShown = 20

// checkLocks refuses a push that changes a file which somebody else has locked. Where nobody has,
// it does not look at what is pushed.
func (s *Service) checkLocks(ctx context.Context, by Request, m registry.Model, p Push) error {
	if m.ID == "" {
		return nil
	}
	locks, err := s.Index.Locks(ctx, m.ID)
	if err != nil {
		return err
	}
	theirs := map[string]registry.Lock{}
	for _, l := range locks {
		if l.Owner != by.Identity.Name {
			theirs[l.Path] = l
		}
	}
	if len(theirs) == 0 {
		return nil
	}
	pushed, ok := p.(toucher)
	if !ok {
		return errors.New("files are locked and nothing tells which files the push changes")
	}
	paths := slices.Sorted(maps.Keys(theirs))
	touched := map[string]bool{}
	for _, u := range p.Updates() {
		found, err := touchedBy(ctx, p, pushed, u, paths)
		if errors.Is(err, registry.ErrTooLarge) {
			return refuse("%s has locked files, and this push has too many commits or merges to tell whether they change one\nPush fewer commits at a time.", m.Name)
		}
		if err != nil {
			return err
		}
		for _, path := range found {
			touched[path] = true
		}
	}
	var refused []registry.Lock
	for _, path := range slices.Sorted(maps.Keys(touched)) {
		refused = append(refused, theirs[path])
	}
	return refuseLocked(refused)
}

// touchedBy returns those of paths that an update of a ref changes. A tag, wherever it stood before, only
// brings the commits that are new; that a ref goes away changes no file.
func touchedBy(ctx context.Context, p Push, pushed toucher, u registry.RefUpdate, paths []string) ([]string, error) {
	if u.New == "" {
		return nil, nil
	}
	tip, err := p.Peel(ctx, u.New)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil // no commit
	}
	if err != nil {
		return nil, err
	}
	from := u.Old
	if _, isBranch := registry.BranchOf(u.Ref); !isBranch {
		from = ""
	}
	return pushed.TouchedPaths(ctx, from, tip, paths)
}

func refuseLocked(touched []registry.Lock) error {
	if len(touched) == 0 {
		return nil
	}
	lines := []string{"this push changes files that somebody else has locked:"}
	for i, l := range touched {
		if i == maxLocksShown {
			lines = append(lines, fmt.Sprintf("  and %d more", len(touched)-i))
			break
		}
		lines = append(lines, fmt.Sprintf("  %q, locked by %s since %s", l.Path, l.Owner, when(l.LockedAt)))
	}
	return &RefusedError{append(lines, fmt.Sprintf("Ask %s to unlock: git lfs unlock %q; a maintainer can do so with --force. Then push again.", owners(touched), touched[0].Path))}
}

// owners names who has the locks, each once.
func owners(locks []registry.Lock) string {
	var names []string
	for _, l := range locks {
		if !slices.Contains(names, l.Owner) {
			names = append(names, l.Owner)
		}
	}
	if len(names) > 3 {
		names = append(names[:3], "others")
	}
	return strings.Join(names, ", ")
}
