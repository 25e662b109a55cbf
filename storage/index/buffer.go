package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/herdbook/herdbook/registry"
)

// writeBuffer holds the rows that a transaction has put or deleted until they are given to bbolt, each once and in the
// order of the keys, which is several times as fast as one by one in the order of the journal. Whoever
// walks a bucket has its rows given to bbolt first; see [tx.cursor].
type writeBuffer struct {
	tables map[string]*memtable
	seed   maphash.Seed
	runs   runs   // during DB.Bulk
	made   []*run // of them
	batch  uint64 // number of the run that is made
	json   []byte // room to encode a value
	arena  []byte // room for keys and values
	room   *reserve
	used   [][]byte // that came from there or go there
	err    error    // the first of what cannot return one
}

func newWriteBuffer(seed maphash.Seed, before runs, room *reserve) *writeBuffer {
	return &writeBuffer{tables: map[string]*memtable{}, seed: seed, runs: before, room: room}
}

// reserve is memory that an earlier transaction has used. To get it from the kernel, page by page, takes longer than to fill it.
type reserve struct{ chunks [][]byte }

// grow makes room for n bytes at least, of which there are not more than arenaBytes.
func (w *writeBuffer) grow(n int) {
	if w.room == nil {
		w.arena = make([]byte, 0, max(n, min(arenaBytes, max(firstBytes, 2*cap(w.arena)))))
		return
	}
	if last := len(w.room.chunks) - 1; last >= 0 {
		w.arena = w.room.chunks[last]
		w.room.chunks = w.room.chunks[:last]
	} else {
		w.arena = make([]byte, 0, arenaBytes)
	}
	w.used = append(w.used, w.arena)
}

// release gives back what the buffer has used, when nothing refers to it any more.
func (w *writeBuffer) release() {
	if w.room != nil {
		w.room.chunks = append(w.room.chunks, w.used...)
	}
}

// Room is taken in pieces that get larger, from firstBytes to arenaBytes. bbolt refers to the values in it until the
// transaction ends.
const (
	firstBytes = 8 << 10
	arenaBytes = 256 << 10
)

// keep returns a copy of the parts, one behind the other, that lives as long as the buffer.
func (w *writeBuffer) keep(parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > arenaBytes/4 {
		return bytes.Join(parts, nil)
	}
	if cap(w.arena)-len(w.arena) < n {
		w.grow(n)
	}
	start := len(w.arena)
	for _, p := range parts {
		w.arena = append(w.arena, p...)
	}
	return w.arena[start:len(w.arena):len(w.arena)]
}

// memtable holds what a transaction has done to one bucket: a hash table with open addressing.
type memtable struct {
	bucket *bolt.Bucket
	fresh  bool         // bucket was empty when the transaction began, and still is
	kept   *bolt.Bucket // has the sorted runs; nil for a bucket that has none
	runs   []*run       // the oldest first
	rows   []pendingRow
	slots  []uint32 // 1 + place in rows, 0 when free; their number is a power of two, and at least twice that of rows
}

// pendingRow is what a key stands for: an encoded value with its checksum; a value that is not encoded yet; or nothing, when both
// are nil: then the row is deleted.
type pendingRow struct {
	hash  uint64
	key   []byte
	value []byte
	held  any
	clean bool // it is what is stored
}

func (w *writeBuffer) table(b *bolt.Tx, bucket string) *memtable {
	m := w.tables[bucket]
	if m == nil {
		m = &memtable{bucket: b.Bucket([]byte(bucket))}
		if w.runs != nil && slices.Contains(scattered, bucket) {
			m.kept, m.runs = b.Bucket([]byte(bucketRuns)), w.runs[bucket]
		}
		first, _ := m.bucket.Cursor().First()
		m.fresh = first == nil
		w.tables[bucket] = m
	}
	return m
}

// none reports whether there is no row, but for those of this table.
func (m *memtable) none() bool { return m.fresh && len(m.runs) == 0 }

// find returns the row of a key, or nil.
func (m *memtable) find(hash uint64, k []byte) *pendingRow {
	if len(m.rows) == 0 {
		return nil
	}
	for at := hash; ; at++ {
		slot := m.slots[at&uint64(len(m.slots)-1)]
		if slot == 0 {
			return nil
		}
		if r := &m.rows[slot-1]; r.hash == hash && bytes.Equal(r.key, k) {
			return r
		}
	}
}

// add makes a row for a key that has none. The key has to stay as it is.
func (m *memtable) add(hash uint64, k []byte) *pendingRow {
	m.rows = append(m.rows, pendingRow{hash: hash, key: k})
	if 2*len(m.rows) > len(m.slots) {
		m.slots = make([]uint32, max(16, 2*len(m.slots)))
		for i := range m.rows {
			m.take(m.rows[i].hash, i)
		}
	} else {
		m.take(hash, len(m.rows)-1)
	}
	return &m.rows[len(m.rows)-1]
}

func (m *memtable) take(hash uint64, i int) {
	for at := hash; ; at++ {
		if slot := &m.slots[at&uint64(len(m.slots)-1)]; *slot == 0 {
			*slot = uint32(i + 1)
			return
		}
	}
}

// put sets the value of a key. One that changes all the time is not encoded before it has to be.
func (w *writeBuffer) put(b *bolt.Tx, bucket string, k []byte, v any) error {
	switch {
	case len(k) == 0:
		return bolterrors.ErrKeyRequired
	case len(k) > bolt.MaxKeySize:
		return bolterrors.ErrKeyTooLarge
	}
	m := w.table(b, bucket)
	hash := maphash.Bytes(w.seed, k)
	r := m.find(hash, k)
	if r == nil {
		r = m.add(hash, w.keep(k))
	}
	r.clean = false
	switch v.(type) {
	case registry.Model, registry.Usage:
		r.value, r.held = nil, v
		return nil
	}
	return w.encode(bucket, r, v)
}

// encode gives a row its value.
func (w *writeBuffer) encode(bucket string, r *pendingRow, v any) (err error) {
	if data, ok := v.(plain); ok {
		w.json = append(w.json[:0], data...)
	} else if w.json, err = appendJSON(w.json[:0], v); err != nil {
		return fmt.Errorf("encode %s: %w", bucket, err)
	}
	var head [sum]byte
	binary.BigEndian.PutUint32(head[:], checksum(bucket, r.key, w.json))
	r.value, r.held = w.keep(head[:], w.json), nil
	return nil
}

// delete takes a key away.
func (w *writeBuffer) delete(b *bolt.Tx, bucket string, k []byte) {
	m := w.table(b, bucket)
	hash := maphash.Bytes(w.seed, k)
	r := m.find(hash, k)
	if r == nil {
		if m.none() {
			return
		}
		r = m.add(hash, w.keep(k))
	}
	r.value, r.held, r.clean = nil, nil, false
}

// held puts the value of a key into v and reports whether there is one that is not encoded.
func (w *writeBuffer) held(b *bolt.Tx, bucket string, k []byte, v any) bool {
	r := w.table(b, bucket).find(maphash.Bytes(w.seed, k), k)
	if r == nil {
		return false
	}
	switch held := r.held.(type) {
	case registry.Model:
		if v, ok := v.(*registry.Model); ok {
			*v = held
			return true
		}
	case registry.Usage:
		if v, ok := v.(*registry.Usage); ok {
			*v = held
			return true
		}
	}
	return false
}

// value is the encoded value of a key; nil when there is none.
func (w *writeBuffer) value(b *bolt.Tx, bucket string, k []byte) []byte {
	m := w.table(b, bucket)
	hash := maphash.Bytes(w.seed, k)
	r := m.find(hash, k)
	if r == nil {
		return w.stored(m, hash, k)
	}
	if r.held != nil {
		w.note(w.encode(bucket, r, r.held))
	}
	return r.value
}

// stored is value of a key that the transaction has not touched. What was found in a run is kept, because the next batch
// of work asks for the same: many versions share a file.
func (w *writeBuffer) stored(m *memtable, hash uint64, k []byte) []byte {
	for _, run := range slices.Backward(m.runs) {
		value, found, err := run.find(m.kept, hash, k)
		w.note(err)
		if found {
			r := m.add(hash, w.keep(k))
			r.value, r.clean = value, true
			return value
		}
	}
	if m.fresh {
		return nil
	}
	return m.bucket.Get(k)
}

// note keeps the first error of what cannot return one. It ends the transaction.
func (w *writeBuffer) note(err error) {
	if w.err == nil && err != nil {
		w.err = err
	}
}

// flush gives the rows of a bucket to bbolt.
func (w *writeBuffer) flush(bucket string) {
	m := w.tables[bucket]
	if m == nil || len(m.rows) == 0 {
		return
	}
	order := make([]place, 0, len(m.rows))
	for i := range m.rows {
		if !m.rows[i].clean {
			order = append(order, place{row: i})
		}
	}
	m.sort(order, 0)
	if m.kept != nil {
		if len(order) > 0 {
			r, err := writeRun(m.kept, bucket, w.batch, m, order)
			w.note(err)
			w.made = append(w.made, r)
		}
		return
	}
	for _, p := range order {
		r := &m.rows[p.row]
		if r.held != nil {
			w.note(w.encode(bucket, r, r.held))
		}
		if r.value != nil {
			w.note(m.bucket.Put(r.key, r.value))
		} else if !m.fresh {
			w.note(m.bucket.Delete(r.key))
		}
	}
	m.fresh = false
	clear(m.rows)
	m.rows, m.slots = m.rows[:0], nil
}

// flushAll gives all rows to bbolt.
func (w *writeBuffer) flushAll() error {
	for _, bucket := range buckets {
		w.flush(bucket)
	}
	return w.err
}

// scan are the rows of a bucket with runs whose keys start with p, in order.
func (w *writeBuffer) scan(m *memtable, bucket string, p []byte) []row {
	values := map[string][]byte{}
	cursor := m.bucket.Cursor()
	for k, v := cursor.Seek(p); bytes.HasPrefix(k, p) && k != nil; k, v = cursor.Next() {
		values[string(k)] = v
	}
	for _, r := range m.runs {
		w.note(r.collect(m.kept, p, values))
	}
	for i := range m.rows {
		if r := &m.rows[i]; bytes.HasPrefix(r.key, p) {
			values[string(r.key)] = r.value
		}
	}
	var rows []row
	for k, v := range values {
		if v != nil {
			rows = append(rows, row{bucket, []byte(k), v})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return bytes.Compare(a.key, b.key) })
	return rows
}

// place is a row while rows are sorted.
type place struct {
	word uint64 // a part of its key
	row  int
}

// sort sorts rows whose keys agree in their first depth bytes: by the next eight bytes as a number, and those that agree in
// these by the rest. Keys begin with ids and digests, so that most comparisons of whole keys would find the same
// bytes over and over.
func (m *memtable) sort(order []place, depth int) {
	for i := range order {
		order[i].word = wordAt(m.rows[order[i].row].key, depth)
	}
	slices.SortFunc(order, func(a, b place) int { return cmp.Compare(a.word, b.word) })
	for start := 0; start < len(order); {
		end := start + 1
		for end < len(order) && order[end].word == order[start].word {
			end++
		}
		switch same := order[start:end]; {
		case len(same) == 1:
		case len(same) < fewRows || depth > maxSharedBytes:
			slices.SortFunc(same, func(a, b place) int { return bytes.Compare(m.rows[a.row].key, m.rows[b.row].key) })
		default:
			m.sort(same, depth+8)
		}
		start = end
	}
}

const (
	fewRows        = 12  // that are sorted by comparing them
	maxSharedBytes = 512 // after which keys that agree are compared too: one may be the other with NULs behind it
)

// wordAt is the number that sorts as the eight bytes of k from depth do, which count as 0 behind the end.
func wordAt(k []byte, depth int) uint64 {
	if len(k) >= depth+8 {
		return binary.BigEndian.Uint64(k[depth:])
	}
	var word [8]byte
	if depth < len(k) {
		copy(word[:], k[depth:])
	}
	return binary.BigEndian.Uint64(word[:])
}
