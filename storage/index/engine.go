package index

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/herdbook/herdbook/registry"
)

// ErrDamaged reports that a value is not what was written: the file has to be rebuilt.
var ErrDamaged = errors.New("index is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the length in bytes of the checksum before each value: bbolt has none of its own, and
// a flipped bit would be read as data.
const sum = 4

// bucketSums are the checksums of the names of the buckets, with which those of all their rows begin.
var bucketSums = func() map[string]uint32 {
	sums := map[string]uint32{}
	for _, name := range buckets {
		sums[name] = crc32.Checksum([]byte(name), castagnoli)
	}
	return sums
}()

// checksum is over all that makes a row, so that neither a key that changed nor a value that came
// to another key passes.
func checksum(bucket string, k, data []byte) uint32 {
	c, ok := bucketSums[bucket]
	if !ok {
		c = crc32.Checksum([]byte(bucket), castagnoli)
	}
	return crc32.Update(crc32.Update(c, castagnoli, k), castagnoli, data)
}

// key joins parts with NUL, which no name, tag, ref or digest contains, so that a key sorts by
// its parts and a prefix of whole parts is a prefix of bytes.
func key(parts ...string) []byte {
	k := prefix(parts...)
	return k[:len(k)-1]
}

// prefix is the start of all keys that begin with these parts.
func prefix(parts ...string) []byte {
	length := 0
	for _, p := range parts {
		length += len(p) + 1
	}
	k := make([]byte, 0, length)
	for _, p := range parts {
		k = append(append(k, p...), 0)
	}
	return k
}

// ordered is a number as text that sorts as the number does.
func ordered(n uint64) string {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], n)
	return string(number[:])
}

// parts splits a key that has no number in it.
func parts(k []byte) []string { return strings.Split(string(k), "\x00") }

// tx is one transaction on the ordered key-value engine: everything that the rest of the
// package uses of it.
type tx struct {
	bolt    *bolt.Tx
	memos   *memos
	counts  *registry.Counts // while groups are applied
	pending *writeBuffer     // what is not in bolt yet, while groups are applied
	grown   *growth          // what they add to the lineage
	found   *findings        // what they change of what is searched
}

func (t tx) put(bucket string, k []byte, v any) error {
	if t.pending != nil {
		return t.pending.put(t.bolt, bucket, k, v)
	}
	data, err := appendJSON(nil, v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", bucket, err)
	}
	return t.putBytes(bucket, k, data)
}

// plain is a value that is not JSON.
type plain []byte

// putBytes writes a value that is not JSON.
func (t tx) putBytes(bucket string, k, data []byte) error {
	if t.pending != nil {
		return t.pending.put(t.bolt, bucket, k, plain(data))
	}
	value := binary.BigEndian.AppendUint32(make([]byte, 0, sum+len(data)), checksum(bucket, k, data))
	return t.bolt.Bucket([]byte(bucket)).Put(k, append(value, data...))
}

// bytes is a value that is not JSON, or nil when there is none. It is valid until the transaction ends.
func (t tx) bytes(bucket string, k []byte) ([]byte, error) {
	value := t.value(bucket, k)
	if value == nil {
		return nil, nil
	}
	if err := check(bucket, k, value); err != nil {
		return nil, err
	}
	return value[sum:], nil
}

// reader reads many values of one bucket, with less effort than one by one.
type reader struct {
	bucket string
	cursor *bolt.Cursor
}

func (t tx) reader(bucket string) reader {
	return reader{bucket, t.cursor(bucket)}
}

// bytes is what [tx.bytes] gives.
func (r reader) bytes(k []byte) ([]byte, error) {
	found, value := r.cursor.Seek(k)
	if !bytes.Equal(found, k) {
		return nil, nil
	}
	if err := check(r.bucket, k, value); err != nil {
		return nil, err
	}
	return value[sum:], nil
}

// get reads the value of k into v and reports whether there is one.
func (t tx) get(bucket string, k []byte, v any) (bool, error) {
	if t.pending != nil && t.pending.held(t.bolt, bucket, k, v) {
		return true, nil
	}
	value := t.value(bucket, k)
	if value == nil {
		return false, nil
	}
	switch v := v.(type) {
	case *registry.Model:
		return true, t.memos.models.decode(bucket, k, value, v)
	case *registry.Token:
		return true, t.memos.tokens.decode(bucket, k, value, v)
	case *registry.StoredManifest:
		return true, t.memos.manifests.decode(bucket, k, value, v)
	case *registry.Repository:
		return true, t.memos.repositories.decode(bucket, k, value, v)
	}
	return true, decode(bucket, k, value, v)
}

// value is the encoded value of k; nil when there is none.
func (t tx) value(bucket string, k []byte) []byte {
	if t.pending != nil {
		return t.pending.value(t.bolt, bucket, k)
	}
	return t.bolt.Bucket([]byte(bucket)).Get(k)
}

func (t tx) has(bucket string, k []byte) bool { return t.value(bucket, k) != nil }

// hasPrefix reports whether a key starts with p.
func (t tx) hasPrefix(bucket string, p []byte) bool {
	if t.pending != nil {
		if m := t.pending.table(t.bolt, bucket); m.none() && len(m.rows) == 0 {
			return false
		}
	}
	k, _ := t.cursor(bucket).Seek(p)
	return bytes.HasPrefix(k, p)
}

func (t tx) delete(bucket string, k []byte) error {
	if t.pending != nil {
		t.pending.delete(t.bolt, bucket, k)
		return nil
	}
	return t.bolt.Bucket([]byte(bucket)).Delete(k)
}

// kept are the rows of a bucket whose keys start with p, in order, if the bucket has sorted runs.
func (t tx) kept(bucket string, p []byte) (rows []row, kept bool) {
	if t.pending == nil || t.pending.runs == nil || !slices.Contains(scattered, bucket) {
		return nil, false
	}
	return t.pending.scan(t.pending.table(t.bolt, bucket), bucket, p), true
}

// cursor walks all rows of a bucket, which has no sorted runs.
func (t tx) cursor(bucket string) *bolt.Cursor {
	if t.pending != nil {
		t.pending.flush(bucket)
	}
	return t.bolt.Bucket([]byte(bucket)).Cursor()
}

// deletePrefix removes all keys that start with p.
func (t tx) deletePrefix(bucket string, p []byte) error {
	if rows, kept := t.kept(bucket, p); kept {
		for _, r := range rows {
			t.pending.delete(t.bolt, bucket, r.key)
		}
		return nil
	}
	cursor := t.cursor(bucket)
	for k, _ := cursor.Seek(p); k != nil && bytes.HasPrefix(k, p); k, _ = cursor.Seek(p) {
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// next is one more than the highest number ever given in the bucket.
func (t tx) next(bucket string) (uint64, error) {
	return t.bolt.Bucket([]byte(bucket)).NextSequence()
}

// numbered makes the key of a new row behind the others that begin with these parts, by a number
// that counts from 1. Each prefix counts for itself: a number that everybody's rows share would
// tell in a cursor how many there are of those that the caller may not read.
func (t tx) numbered(bucket string, parts ...string) ([]byte, error) {
	p := prefix(parts...)
	cursor := t.cursor(bucket)
	before := cursor.Prev
	if behind, _ := cursor.Seek(append(key(parts...), 1)); behind == nil {
		before = cursor.Last
	}
	k, v := before()
	n := uint64(1)
	if bytes.HasPrefix(k, p) {
		if err := (row{bucket, k, v}).check(); err != nil {
			return nil, err
		}
		n += binary.BigEndian.Uint64(k[len(p):])
	}
	return append(p, ordered(n)...), nil
}

// row is a key and its still encoded value. Both are valid until the transaction ends.
type row struct {
	bucket     string
	key, value []byte
}

func (r row) decode(v any) error { return decode(r.bucket, r.key, r.value, v) }

// check is decode for a row whose key says all.
func (r row) check() error { return check(r.bucket, r.key, r.value) }

// scan walks the keys that start with p in order, beginning behind after when that is given.
func (t tx) scan(bucket string, p, after []byte) iter.Seq[row] {
	return func(yield func(row) bool) {
		if rows, kept := t.kept(bucket, p); kept {
			for _, r := range rows {
				if bytes.Compare(r.key, after) > 0 && !yield(r) {
					return
				}
			}
			return
		}
		cursor := t.cursor(bucket)
		k, v := cursor.Seek(p)
		if len(after) > 0 {
			k, v = cursor.Seek(after)
			if bytes.Equal(k, after) {
				k, v = cursor.Next()
			}
		}
		for ; k != nil && bytes.HasPrefix(k, p); k, v = cursor.Next() {
			if !yield(row{bucket, k, v}) {
				return
			}
		}
	}
}

// backward walks the keys that start with p from the last to the first, beginning before the key before when that is given.
func (t tx) backward(bucket string, p, before []byte) iter.Seq[row] {
	return func(yield func(row) bool) {
		if before == nil && len(p) > 0 {
			before = append(slices.Clone(p[:len(p)-1]), 1) // prefixes end in a NUL
		}
		cursor := t.cursor(bucket)
		k, v := cursor.Last()
		if before != nil {
			// Where nothing comes behind, the last key is the one before.
			if behind, _ := cursor.Seek(before); behind == nil {
				k, v = cursor.Last()
			} else {
				k, v = cursor.Prev()
			}
		}
		for ; k != nil && bytes.HasPrefix(k, p); k, v = cursor.Prev() {
			if !yield(row{bucket, k, v}) {
				return
			}
		}
	}
}

// all decodes the values of the keys that start with p, in order.
func all[V any](t tx, bucket string, p []byte) ([]V, error) {
	var values []V
	for r := range t.scan(bucket, p, nil) {
		var v V
		if err := r.decode(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

func check(bucket string, k, value []byte) error {
	if len(value) < sum || binary.BigEndian.Uint32(value) != checksum(bucket, k, value[sum:]) {
		return fmt.Errorf("%s %q: checksum: %w", bucket, k, ErrDamaged)
	}
	return nil
}

func decode(bucket string, k, value []byte, v any) error {
	if err := check(bucket, k, value); err != nil {
		return err
	}
	if err := json.Unmarshal(value[sum:], v); err != nil {
		return fmt.Errorf("%s %q: %v: %w", bucket, k, err, ErrDamaged)
	}
	return nil
}
