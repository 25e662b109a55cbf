package index

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/herdbook/herdbook/registry"
)

// AppendJSON is appendJSON.
func AppendJSON(dst []byte, v any) ([]byte, error) { return appendJSON(dst, v) }

// VersionText, EventText and UnmirroredText are rows that are made of the text of their records.
func VersionText(row registry.VersionRecord, text json.RawMessage) any { return versionText{row, text} }

func EventText(event registry.Event, text json.RawMessage) any { return eventText{event, text} }

func UnmirroredText(at time.Time, r registry.EncodedRecord) any {
	return unmirroredRow{At: at, Record: r}
}

func EvaluatedText(at time.Time, commit registry.ObjectID) any {
	return unmirroredRow{At: at, Evaluated: commit}
}

// Sorted gives the keys in the order in which a transaction puts them.
func Sorted(keys [][]byte) [][]byte {
	m := &memtable{}
	order := make([]place, len(keys))
	for i, k := range keys {
		m.rows = append(m.rows, pendingRow{key: k})
		order[i].row = i
	}
	m.sort(order, 0)
	sorted := make([][]byte, len(keys))
	for i, p := range order {
		sorted[i] = keys[p.row]
	}
	return sorted
}

// Filtered says for how many of others the filter of keys says that they may be among them, and of how many of the keys it says so.
func Filtered(keys, others [][]byte) (own, wrong int) {
	seed := maphash.MakeSeed()
	f := newFilter(len(keys))
	for _, k := range keys {
		f.add(maphash.Bytes(seed, k))
	}
	count := func(keys [][]byte) (n int) {
		for _, k := range keys {
			if f.has(maphash.Bytes(seed, k)) {
				n++
			}
		}
		return n
	}
	return count(keys), count(others)
}

// Rows reads the rows of a block of a run, and puts them together again.
func Rows(block []byte) (again []byte, ok bool) {
	for len(block) > 0 {
		k, value, rest, ok := cutRow(block)
		if !ok || len(rest) >= len(block) {
			return again, false
		}
		again = appendRow(again, k, value)
		block = rest
	}
	return again, true
}

// FlipRun changes one bit of what the n-th block of all runs holds.
func (db *DB) FlipRun(n, bit int) error { return db.Flip(bucketRuns, n, false, bit) }

// MergeInSteps makes each transaction of a merge end after about as many bytes.
func (db *DB) MergeInSteps(bytes int) { db.mergeBytes = bytes }

// Runs is how many blocks of runs are kept.
func (db *DB) Runs() (blocks int) {
	_ = db.bolt.View(func(b *bolt.Tx) error {
		if runs := b.Bucket([]byte(bucketRuns)); runs != nil {
			blocks = runs.Stats().KeyN
		}
		return nil
	})
	return blocks
}

// Kill leaves the file as a killed process does.
func (db *DB) Kill() error { return db.bolt.Close() }

// Flip changes one bit of the n-th row of a bucket: of its key, or of its value.
func (db *DB) Flip(bucket string, n int, inKey bool, bit int) error {
	return db.bolt.Update(func(b *bolt.Tx) error {
		rows := b.Bucket([]byte(bucket))
		cursor := rows.Cursor()
		k, v := cursor.First()
		for ; n > 0; n-- {
			k, v = cursor.Next()
		}
		if k == nil {
			return fmt.Errorf("bucket %s has no such row", bucket)
		}
		newKey, newValue := append([]byte(nil), k...), append([]byte(nil), v...)
		part := newValue
		if inKey {
			part = newKey
		}
		bit %= len(part) * 8
		part[bit/8] ^= 1 << (bit % 8)
		if err := rows.Delete(k); err != nil {
			return err
		}
		return rows.Put(newKey, newValue)
	})
}

// SetSchema makes the file one of another schema.
func (db *DB) SetSchema(n int) error {
	return db.update(func(t tx) error { return t.put(bucketMeta, key("schema"), n) })
}

// DropBucket takes away a bucket, as if the file were one of before it was thought of.
func (db *DB) DropBucket(name string) error {
	return db.bolt.Update(func(b *bolt.Tx) error { return b.DeleteBucket([]byte(name)) })
}

// SetEffort bounds what a query reads; with zeros it is bounded as always.
func (db *DB) SetEffort(few, most int) { db.effort = effort{few, most} }

// HoldMemory holds what is kept in memory for reading, as a long walk and a long search do, until release is called.
func (db *DB) HoldMemory() (release func()) {
	db.graph.mu.RLock()
	db.catalog.mu.RLock()
	return func() {
		db.graph.mu.RUnlock()
		db.catalog.mu.RUnlock()
	}
}
