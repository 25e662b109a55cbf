package index

import (
	"container/list"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// maxCatalogBytes bounds what all catalogs take in memory together; one that is longer than that is kept while it is the only one.
// It is enough for half a million evaluations.
const maxCatalogBytes = 32 << 20

// catalogs keep those of the commits that were asked for last. Evaluations are only ever added to a commit, so that a catalog is
// brought up to date by the rows behind its last one. A model's id is never used again.
type catalogs struct {
	mu    sync.Mutex
	byKey map[string]*list.Element // of *cataloged
	used  list.List                // the last asked for first
	bytes int
}

type cataloged struct {
	key string

	mu      sync.Mutex // held while it is brought up to date
	catalog registry.Catalog
	counted int // bytes, as they are in catalogs.bytes
}

// get gives the one of a key, which may be empty.
func (c *catalogs) get(k string) *cataloged {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil {
		c.byKey = map[string]*list.Element{}
	}
	if at, ok := c.byKey[k]; ok {
		c.used.MoveToFront(at)
		return at.Value.(*cataloged)
	}
	one := &cataloged{key: k}
	c.byKey[k] = c.used.PushFront(one)
	return one
}

// count notes how long one has become, and lets go of those that were not asked for the longest.
func (c *catalogs) count(one *cataloged, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.byKey[one.key]; !ok || at.Value.(*cataloged) != one {
		return // it was let go of meanwhile
	}
	c.bytes += bytes - one.counted
	one.counted = bytes
	for c.bytes > maxCatalogBytes && c.used.Len() > 1 {
		last := c.used.Back()
		old := c.used.Remove(last).(*cataloged)
		delete(c.byKey, old.key)
		c.bytes -= old.counted
	}
}

// rowBytes is what a catalog takes beside what is in it.
const rowBytes = 512

// Catalog is what evidence is selected by among the evaluations of a commit. It reads only evaluations that it has not met before.
func (db *DB) Catalog(ctx context.Context, modelID string, commit registry.ObjectID) (*registry.Catalog, error) {
	p := prefix(modelID, string(commit))
	one := db.catalogs.get(string(p))
	one.mu.Lock()
	defer one.mu.Unlock()
	err := db.view(ctx, func(t tx) error {
		var known []byte
		if last := one.catalog.Last(); last > 0 {
			known = append(p[:len(p):len(p)], ordered(last)...)
		}
		for r := range t.scan(bucketEvaluations, p, known) {
			if known != nil { // recorded just now, and looked at next
				var e registry.Evaluation
				if err := t.memos.evaluations.decode(r.bucket, r.key, r.value, &e); err != nil {
					return err
				}
				one.catalog.Add(binary.BigEndian.Uint64(r.key[len(p):]), &e)
				continue
			}
			var e struct { // what counts of registry.Evaluation
				Dataset      registry.Dataset `json:"dataset"`
				Evaluator    string           `json:"evaluator"`
				SelfReported bool             `json:"self_reported"`
				RecordedAt   time.Time        `json:"recorded_at"`
			}
			if err := r.decode(&e); err != nil {
				return err
			}
			one.catalog.Add(binary.BigEndian.Uint64(r.key[len(p):]), &registry.Evaluation{
				Dataset: e.Dataset, Evaluator: e.Evaluator, SelfReported: e.SelfReported, RecordedAt: e.RecordedAt,
			})
		}
		return nil
	})
	db.catalogs.count(one, rowBytes+one.catalog.SizeBytes())
	return one.catalog.Snapshot(), err
}

// Evaluation is the evaluation of a commit that has a number; see [registry.Catalog].
func (db *DB) Evaluation(ctx context.Context, modelID string, commit registry.ObjectID, number uint64) (*registry.Evaluation, error) {
	var e registry.Evaluation
	err := db.view(ctx, func(t tx) error {
		k := append(prefix(modelID, string(commit)), ordered(number)...)
		found, err := recall(t, &t.memos.evaluations, bucketEvaluations, k, &e)
		if err == nil && !found {
			return fmt.Errorf("evaluation %d of commit %s: %w", number, commit, registry.ErrNotFound)
		}
		return err
	})
	return &e, err
}

// Headline is the evaluation that [registry.Headline] chooses for a commit, or nil.
func (db *DB) Headline(ctx context.Context, modelID string, commit registry.ObjectID) (*registry.Evaluation, error) {
	c, err := db.Catalog(ctx, modelID, commit)
	if err != nil || c.Headline() == 0 {
		return nil, err
	}
	return db.Evaluation(ctx, modelID, commit, c.Headline())
}

// NewestEvaluations are the last evaluations of a commit, at most limit of them, in the order in which they were recorded, and how many there
// are in all.
func (db *DB) NewestEvaluations(ctx context.Context, modelID string, commit registry.ObjectID, limit int) (newest []registry.Evaluation, total int, err error) {
	err = db.view(ctx, func(t tx) error {
		first, last, err := newestNumbers(t, modelID, commit, limit)
		if err != nil || last == 0 {
			return err
		}
		total = int(last)
		p := prefix(modelID, string(commit))
		for r := range t.scan(bucketEvaluations, p, append(p[:len(p):len(p)], ordered(first-1)...)) {
			var e registry.Evaluation
			if err := r.decode(&e); err != nil {
				return err
			}
			newest = append(newest, e)
		}
		return nil
	})
	return newest, total, err
}

// newestNumbers are those of the first and the last of the newest evaluations of a commit; 0 when there are none.
func newestNumbers(t tx, modelID string, commit registry.ObjectID, limit int) (first, last uint64, err error) {
	p := prefix(modelID, string(commit))
	for r := range t.backward(bucketEvaluations, p, nil) {
		if err := r.check(); err != nil {
			return 0, 0, err
		}
		last = binary.BigEndian.Uint64(r.key[len(p):])
		break
	}
	if last == 0 {
		return 0, 0, nil
	}
	return max(1, last+1-min(uint64(limit), last)), last, nil
}

// CountEvaluations is how many evaluations a commit has.
func (db *DB) CountEvaluations(ctx context.Context, modelID string, commit registry.ObjectID) (total int, err error) {
	err = db.view(ctx, func(t tx) error {
		_, last, err := newestNumbers(t, modelID, commit, 1)
		total = int(last)
		return err
	})
	return total, err
}

// EvaluationLines are evaluations of a commit as JSON, each on one line, as they are kept: at most limit of them, from the one that has the number
// first.
func (db *DB) EvaluationLines(ctx context.Context, modelID string, commit registry.ObjectID, first uint64, limit int) (lines [][]byte, err error) {
	err = db.view(ctx, func(t tx) error {
		p := prefix(modelID, string(commit))
		for r := range t.scan(bucketEvaluations, p, append(p[:len(p):len(p)], ordered(first-1)...)) {
			if len(lines) == limit {
				return nil
			}
			if err := r.check(); err != nil {
				return err
			}
			lines = append(lines, append([]byte(nil), r.value[sum:]...))
		}
		return nil
	})
	return lines, err
}

// unattested notes that what is stated of a version lacks an evaluation or an edge. It is taken away by the next statement, which the
// model's lock keeps from overlooking one.
func unattested(t tx, modelID string, tag registry.Tag) error {
	k := key(modelID, tag.String())
	if t.has(bucketUnattested, k) {
		return nil
	}
	return t.put(bucketUnattested, k, nil)
}

// Unattested are versions of all models of which an evaluation was recorded that no statement has yet, at most limit of them.
func (db *DB) Unattested(ctx context.Context, limit int) (versions []registry.VersionRecord, err error) {
	err = db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketUnattested, nil, nil) {
			if len(versions) == limit {
				return nil
			}
			if err := r.check(); err != nil {
				return err
			}
			var row registry.VersionRecord
			if _, err := t.get(bucketVersions, r.key, &row); err != nil {
				return err
			}
			versions = append(versions, row)
		}
		return nil
	})
	return versions, err
}
