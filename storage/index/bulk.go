package index

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// bucketRuns is there only during [DB.Bulk], and after a crash in it until the file is opened again. It holds the rows of the
// buckets whose keys come in no order, as sorted runs: what each batch did to such a bucket, in the order of the keys.
//
//	key    name of the bucket, NUL, number of the batch, number of the block; both are 8 bytes, big endian
//	value  CRC-32C of key and block, and the block: rows, one behind the other
//	row    length of the key; the key; 0 when the row is deleted, or 1 more than the length of the value; the value
//
// Lengths are unsigned varints. Later batches win over earlier ones, and all win over the bucket itself.
const bucketRuns = "runs"

// scattered are the buckets whose keys come in no order. To put the rows of one batch into such a bucket touches nearly every
// page of it, for each batch again.
var scattered = []string{bucketBlobs, bucketOwners, bucketCommits, bucketManifests, bucketEventIDs, bucketNodeIDs, bucketOrder, bucketDigests}

const (
	blockBytes = 15 << 10 // of a run; with what bbolt adds it fits into four pages
	mergeBytes = 16 << 20 // of rows that are merged in one transaction, see DB.mergeBytes
)

// run is what is known of a sorted run in memory.
type run struct {
	bucket string
	number uint64
	first  [][]byte // keys of the blocks
	filter filter

	intact []bool // of the blocks that were read
}

// runs are the sorted runs of each scattered bucket, the oldest first.
type runs map[string][]*run

func (all runs) add(made []*run) {
	for _, r := range made {
		all[r.bucket] = append(all[r.bucket], r)
	}
}

func runKey(bucket string, number uint64, block int) []byte {
	k := binary.BigEndian.AppendUint64(prefix(bucket), number)
	return binary.BigEndian.AppendUint64(k, uint64(block))
}

// writeRun makes a run of rows that are in order.
func writeRun(to *bolt.Bucket, bucket string, number uint64, m *memtable, order []place) (*run, error) {
	r := &run{bucket: bucket, number: number, filter: newFilter(len(order))}
	block := make([]byte, sum, blockBytes+bolt.MaxKeySize)
	flush := func() error {
		k := runKey(bucket, number, len(r.first)-1)
		binary.BigEndian.PutUint32(block, checksum(bucketRuns, k, block[sum:]))
		err := to.Put(k, bytes.Clone(block))
		block = block[:sum]
		return err
	}
	for _, p := range order {
		row := &m.rows[p.row]
		if len(block) > sum && len(block)+len(row.key)+len(row.value) > blockBytes {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		if len(block) == sum {
			r.first = append(r.first, bytes.Clone(row.key))
		}
		r.filter.add(row.hash)
		block = appendRow(block, row.key, row.value)
	}
	return r, flush()
}

func appendRow(block, k, value []byte) []byte {
	block = append(binary.AppendUvarint(block, uint64(len(k))), k...)
	if value == nil {
		return append(block, 0)
	}
	return append(binary.AppendUvarint(block, uint64(len(value))+1), value...)
}

// cutRow reads the row that a block begins with. The value is nil when the row is deleted.
func cutRow(block []byte) (k, value, rest []byte, ok bool) {
	k, rest, ok = cutBytes(block, 0)
	if !ok || len(k) == 0 {
		return nil, nil, nil, false
	}
	if len(rest) > 0 && rest[0] == 0 {
		return k, nil, rest[1:], true
	}
	value, rest, ok = cutBytes(rest, 1)
	return k, value, rest, ok
}

// cutBytes reads a length, which is less than what is written, and as many bytes.
func cutBytes(from []byte, less uint64) (data, rest []byte, ok bool) {
	length, n := binary.Uvarint(from)
	if n <= 0 || length-less > uint64(len(from)-n) {
		return nil, nil, false
	}
	end := n + int(length-less)
	return from[n:end:end], from[end:], true
}

// block is the rows of a block.
func (r *run) block(from *bolt.Bucket, number int) ([]byte, error) {
	k := runKey(r.bucket, r.number, number)
	value := from.Get(k)
	if value == nil {
		return nil, fmt.Errorf("%s %q is missing: %w", bucketRuns, k, ErrDamaged)
	}
	if number < len(r.intact) && r.intact[number] {
		return value[sum:], nil
	}
	if err := check(bucketRuns, k, value); err != nil {
		return nil, err
	}
	if r.intact == nil {
		r.intact = make([]bool, len(r.first))
	}
	r.intact[number] = true
	return value[sum:], nil
}

// find reports whether the run says something of a key, and what.
func (r *run) find(from *bolt.Bucket, hash uint64, k []byte) (value []byte, found bool, err error) {
	if !r.filter.has(hash) {
		return nil, false, nil
	}
	number, exact := slices.BinarySearchFunc(r.first, k, bytes.Compare)
	if !exact {
		number--
	}
	if number < 0 {
		return nil, false, nil
	}
	block, err := r.block(from, number)
	for len(block) > 0 && err == nil {
		here, value, rest, ok := cutRow(block)
		if !ok {
			return nil, false, r.damaged(number)
		}
		switch bytes.Compare(here, k) {
		case 0:
			return value, true, nil
		case 1:
			return nil, false, nil
		}
		block = rest
	}
	return nil, false, err
}

// collect notes in rows what the run says of the keys that start with p.
func (r *run) collect(from *bolt.Bucket, p []byte, rows map[string][]byte) error {
	number, _ := slices.BinarySearchFunc(r.first, p, bytes.Compare)
	for number = max(number-1, 0); number < len(r.first); number++ {
		if bytes.Compare(r.first[number], p) > 0 && !bytes.HasPrefix(r.first[number], p) {
			return nil
		}
		block, err := r.block(from, number)
		if err != nil {
			return err
		}
		for len(block) > 0 {
			k, value, rest, ok := cutRow(block)
			if !ok {
				return r.damaged(number)
			}
			if bytes.HasPrefix(k, p) {
				rows[string(k)] = value
			}
			block = rest
		}
	}
	return nil
}

func (r *run) damaged(block int) error {
	return fmt.Errorf("%s %q: its rows cannot be read: %w", bucketRuns, runKey(r.bucket, r.number, block), ErrDamaged)
}

// filter says of a key that a run has nothing of it, or that it may have.
// Source: B. H. Bloom, Space/Time Trade-offs in Hash Coding with Allowable Errors, CACM 13(7), 1970.
type filter []uint64

const (
	filterBits   = 12 // for each key
	filterProbes = 6  // 0.4 % of the keys that are not there seem to be
)

func newFilter(keys int) filter { return make(filter, (keys*filterBits+63)/64+1) }

func (f filter) add(hash uint64) {
	for i := range uint64(filterProbes) {
		at := f.at(hash, i)
		f[at/64] |= 1 << (at % 64)
	}
}

func (f filter) has(hash uint64) bool {
	for i := range uint64(filterProbes) {
		if at := f.at(hash, i); f[at/64]&(1<<(at%64)) == 0 {
			return false
		}
	}
	return true
}

// at is the place of the i-th probe, by double hashing.
func (f filter) at(hash, i uint64) uint64 {
	probe := (hash>>32 + i*(hash|1)) & math.MaxUint32
	return probe * (64 * uint64(len(f))) >> 32
}

// Bulk applies many groups at less cost: fn gets a function to use in place of [DB.Apply], one call after the other. The rows of some buckets are
// kept apart until fn returns, so nothing else may read or write the index meanwhile. What a crash or an error leaves says
// how far it was applied, as always.
func (db *DB) Bulk(fn func(apply func([]Entry) error) error) error {
	db.runs, db.room = runs{}, &reserve{}
	err := fn(db.Apply)
	left := db.runs
	db.runs, db.room = nil, nil
	if mergeErr := db.note(db.merge(left)); err == nil {
		err = mergeErr
	}
	return err
}

// resume merges the runs that a crash left.
func (db *DB) resume() error {
	left := runs{}
	err := db.bolt.View(func(b *bolt.Tx) error {
		from := b.Bucket([]byte(bucketRuns))
		if from == nil {
			return nil
		}
		return from.ForEach(func(k, _ []byte) error {
			bucket, numbers, _ := bytes.Cut(k, []byte{0})
			if !slices.Contains(scattered, string(bucket)) || len(numbers) != 16 {
				return fmt.Errorf("%s %q: %w", bucketRuns, k, ErrDamaged)
			}
			list := left[string(bucket)]
			if number := binary.BigEndian.Uint64(numbers); len(list) == 0 || list[len(list)-1].number != number {
				list = append(list, &run{bucket: string(bucket), number: number})
				left[string(bucket)] = list
			}
			last := list[len(list)-1]
			last.first = append(last.first, nil)
			return nil
		})
	})
	if err != nil {
		return err
	}
	return db.merge(left)
}

// merge puts the rows of all runs into their buckets, and takes the runs away. A crash in between leaves the runs, so that it can
// begin again: the same rows are put, and deleted, once more.
func (db *DB) merge(all runs) error {
	for _, bucket := range slices.Sorted(maps.Keys(all)) {
		m := newMerge(all[bucket])
		for more := true; more; {
			err := db.bolt.Update(func(b *bolt.Tx) (err error) {
				more, err = m.some(b, bucket, db.mergeBytes)
				return err
			})
			if err != nil {
				return fmt.Errorf("merge the rows of %s: %w", bucket, err)
			}
		}
	}
	return db.bolt.Update(func(b *bolt.Tx) error {
		if b.Bucket([]byte(bucketRuns)) == nil {
			return nil
		}
		return b.DeleteBucket([]byte(bucketRuns))
	})
}

// merge walks several runs at once, in the order of the keys, and of a key first the run that wins.
type merge struct{ readers []*runReader }

// runReader is the place in a run.
type runReader struct {
	*run
	age        int    // the newest is 0
	number     int    // of the block
	rows       []byte // of the block
	start, end int    // of the current row in them
	key, value []byte // of the current row
}

func newMerge(list []*run) *merge {
	m := &merge{}
	for i, r := range list {
		m.readers = append(m.readers, &runReader{run: r, age: len(list) - i, number: -1})
	}
	return m
}

func (m *merge) Len() int           { return len(m.readers) }
func (m *merge) Swap(i, j int)      { m.readers[i], m.readers[j] = m.readers[j], m.readers[i] }
func (m *merge) Push(r any)         { m.readers = append(m.readers, r.(*runReader)) }
func (m *merge) Less(i, j int) bool { return m.readers[i].before(m.readers[j]) }
func (m *merge) Pop() any {
	last := m.readers[len(m.readers)-1]
	m.readers = m.readers[:len(m.readers)-1]
	return last
}

func (r *runReader) before(o *runReader) bool {
	if c := bytes.Compare(r.key, o.key); c != 0 {
		return c < 0
	}
	return cmp.Less(r.age, o.age)
}

// open takes up the place in another transaction.
func (r *runReader) open(from *bolt.Bucket) (err error) {
	if r.number < 0 {
		return r.next(from)
	}
	if r.rows, err = r.block(from, r.number); err != nil {
		return err
	}
	return r.read()
}

// next goes to the next row. Behind the last the key is nil.
func (r *runReader) next(from *bolt.Bucket) (err error) {
	if r.start = r.end; r.start == len(r.rows) {
		if r.number++; r.number == len(r.first) {
			r.key = nil
			return nil
		}
		r.start = 0
		if r.rows, err = r.block(from, r.number); err != nil {
			return err
		}
	}
	return r.read()
}

// read reads the row at start.
func (r *runReader) read() error {
	k, value, rest, ok := cutRow(r.rows[min(r.start, len(r.rows)):])
	if !ok {
		return r.damaged(r.number)
	}
	r.key, r.value, r.end = k, value, len(r.rows)-len(rest)
	return nil
}

// some puts rows into the bucket, of at least so many bytes if there are as many, and reports whether there are more. All rows of
// a key are passed over together, because the first of them wins.
func (m *merge) some(b *bolt.Tx, bucket string, atLeast int) (more bool, err error) {
	from, to := b.Bucket([]byte(bucketRuns)), b.Bucket([]byte(bucket))
	to.FillPercent = mergedFill
	for _, r := range m.readers {
		if err := r.open(from); err != nil {
			return false, err
		}
	}
	heap.Init(m)
	var last []byte
	for size := 0; len(m.readers) > 0; {
		r := m.readers[0]
		if !bytes.Equal(r.key, last) {
			if size >= atLeast {
				return true, nil
			}
			last = r.key
			if r.value != nil {
				err = to.Put(r.key, r.value)
			} else {
				err = to.Delete(r.key)
			}
			size += len(r.key) + len(r.value)
		}
		if err == nil {
			err = r.next(from)
		}
		if err != nil {
			return false, err
		}
		if r.key == nil {
			heap.Pop(m)
		} else {
			heap.Fix(m, 0)
		}
	}
	return false, nil
}

// mergedFill is how full pages are made of rows that come in order. Some room is left, because more will come in between.
const mergedFill = 0.9
