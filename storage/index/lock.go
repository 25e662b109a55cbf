package index

import (
	"context"

	"github.com/herdbook/herdbook/registry"
)

// lockFile keeps a lock. A path has one at a time: an older one gives way.
func lockFile(t tx, r registry.LockCreated) error {
	var before string
	found, err := t.get(bucketLockPaths, key(r.ModelID, r.Lock.Path), &before)
	if err != nil {
		return err
	}
	if found {
		if err := t.delete(bucketLocks, key(r.ModelID, before)); err != nil {
			return err
		}
	}
	if err := t.put(bucketLockPaths, key(r.ModelID, r.Lock.Path), r.Lock.ID); err != nil {
		return err
	}
	return t.put(bucketLocks, key(r.ModelID, r.Lock.ID), r.Lock)
}

func unlockFile(t tx, modelID, id string) error {
	var l registry.Lock
	found, err := t.get(bucketLocks, key(modelID, id), &l)
	if err != nil || !found {
		return err
	}
	if err := t.delete(bucketLockPaths, key(modelID, l.Path)); err != nil {
		return err
	}
	return t.delete(bucketLocks, key(modelID, id))
}

// Locks are all locks of a model, in the order of their ids.
func (db *DB) Locks(ctx context.Context, modelID string) ([]registry.Lock, error) {
	return getAll[registry.Lock](ctx, db, bucketLocks, prefix(modelID))
}

// LocksPage is a page of them.
func (db *DB) LocksPage(ctx context.Context, modelID string, at registry.Page) (locks []registry.Lock, next string, err error) {
	err = db.view(ctx, func(t tx) (err error) {
		locks, next, err = page(t, bucketLocks, prefix(modelID), at, func([]byte, *registry.Lock) (bool, error) { return true, nil })
		return err
	})
	return locks, next, err
}

// LockCount is how many locks a model has.
func (db *DB) LockCount(ctx context.Context, modelID string) (n int, err error) {
	err = db.view(ctx, func(t tx) error {
		for range t.scan(bucketLocks, prefix(modelID), nil) {
			n++
		}
		return nil
	})
	return n, err
}

// Lock is the lock of a model with that id.
func (db *DB) Lock(ctx context.Context, modelID, id string) (registry.Lock, error) {
	return get1[registry.Lock](ctx, db, bucketLocks, key(modelID, id), "lock")
}

// LockOf is the lock of a path of a model.
func (db *DB) LockOf(ctx context.Context, modelID, path string) (registry.Lock, error) {
	id, err := get1[string](ctx, db, bucketLockPaths, key(modelID, path), "lock of "+path)
	if err != nil {
		return registry.Lock{}, err
	}
	return db.Lock(ctx, modelID, id)
}
