package index

import (
	"context"

	"github.com/herdbook/herdbook/registry"
)

// own records that a model or a repository owns a blob, once.
func own(t tx, modelID, digest string, sizeBytes int64) error {
	change, err := take(t, modelID, digest, sizeBytes)
	if err != nil || change == (registry.Usage{}) {
		return err
	}
	return addUsage(t, modelID, change)
}

// take is own without the usage, whose change it returns.
func take(t tx, modelID, digest string, sizeBytes int64) (registry.Usage, error) {
	var before int64
	k := key(modelID, digest)
	found, err := t.get(bucketBlobs, k, &before)
	if err != nil || found && before == sizeBytes {
		return registry.Usage{}, err
	}
	if err := t.put(bucketOwners, key(digest, modelID), nil); err != nil {
		return registry.Usage{}, err
	}
	if err := t.put(bucketBlobs, k, sizeBytes); err != nil {
		return registry.Usage{}, err
	}
	if found {
		return registry.Usage{LogicalBytes: sizeBytes - before}, nil
	}
	return registry.Usage{Blobs: 1, LogicalBytes: sizeBytes}, nil
}

// disown records that a model owns a blob no more.
func disown(t tx, modelID, digest string) error {
	var size int64
	found, err := t.get(bucketBlobs, key(modelID, digest), &size)
	if err != nil || !found {
		return err
	}
	if err := addUsage(t, modelID, registry.Usage{Blobs: -1, LogicalBytes: -size}); err != nil {
		return err
	}
	if err := t.delete(bucketOwners, key(digest, modelID)); err != nil {
		return err
	}
	return t.delete(bucketBlobs, key(modelID, digest))
}

func addUsage(t tx, modelID string, change registry.Usage) error {
	var u registry.Usage
	if _, err := t.get(bucketUsage, key(modelID), &u); err != nil {
		return err
	}
	u.Blobs += change.Blobs
	u.LogicalBytes += change.LogicalBytes
	t.counts.LogicalBytes += change.LogicalBytes
	if u == (registry.Usage{}) {
		return t.delete(bucketUsage, key(modelID))
	}
	return t.put(bucketUsage, key(modelID), u)
}

// disownAll does away with everything that a model owns.
func disownAll(t tx, modelID string) error {
	p := prefix(modelID)
	var digests []string
	for r := range t.scan(bucketBlobs, p, nil) {
		digests = append(digests, string(r.key[len(p):]))
	}
	for _, digest := range digests {
		if err := disown(t, modelID, digest); err != nil {
			return err
		}
	}
	return nil
}

// Usage is how much a model or a repository owns. A blob that other models own too counts in full.
func (db *DB) Usage(ctx context.Context, modelID string) (registry.Usage, error) {
	var u registry.Usage
	err := db.view(ctx, func(t tx) error {
		_, err := t.get(bucketUsage, key(modelID), &u)
		return err
	})
	return u, err
}

// Usages is how much each model and each repository owns, by id; those that own nothing are left out.
func (db *DB) Usages(ctx context.Context) (map[string]registry.Usage, error) {
	all := map[string]registry.Usage{}
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketUsage, nil, nil) {
			var u registry.Usage
			if err := r.decode(&u); err != nil {
				return err
			}
			all[string(r.key)] = u
		}
		return nil
	})
	return all, err
}

// ExclusiveBytes is the size of what a model owns and no other one does: what would be free without it.
func (db *DB) ExclusiveBytes(ctx context.Context, modelID string) (int64, error) {
	var bytes int64
	err := db.view(ctx, func(t tx) error {
		p := prefix(modelID)
		for r := range t.scan(bucketBlobs, p, nil) {
			var size int64
			if err := r.decode(&size); err != nil {
				return err
			}
			owners := 0
			for range t.scan(bucketOwners, prefix(string(r.key[len(p):])), nil) {
				if owners++; owners > 1 {
					break
				}
			}
			if owners == 1 {
				bytes += size
			}
		}
		return nil
	})
	return bytes, err
}

// Owners are the names of the models and the repositories that own a blob, in no particular order.
func (db *DB) Owners(ctx context.Context, digest string) ([]string, error) {
	var names []string
	err := db.view(ctx, func(t tx) error {
		p := prefix(digest)
		for r := range t.scan(bucketOwners, p, nil) {
			name, err := ownerName(t, string(r.key[len(p):]))
			if err != nil {
				return err
			}
			if name != "" {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}
