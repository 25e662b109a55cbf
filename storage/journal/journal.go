// Package journal keeps what the server has acknowledged, as an append-only list of groups of records.
//
// A group is durable as a whole or not there. It has a number, a checksum, and the hash of everything
// before it, so that damage and later changes are found; the files are text that an auditor can read
// with less. The journal does not know what is in a group. It promises nothing for what it was not
// asked to make durable, and nothing about two processes with the same directory open.
package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// Errors that callers treat differently. A full disk is syscall.ENOSPC and passes when there is space
// again.
var (
	// ErrClosed reports that the journal was closed. The group was not written.
	ErrClosed = errors.New("journal is closed")
	// ErrFailed reports that a write or a sync failed and nothing more can be promised: the journal
	// must be opened again. A group may be durable or not when its Append returned this.
	ErrFailed = errors.New("journal has failed")
	// ErrCorrupt reports damage of something that was durable, or a change by somebody else.
	ErrCorrupt = errors.New("journal is corrupt")
	// ErrTooLarge reports that a group is longer than Config.MaxGroupBytes.
	ErrTooLarge = errors.New("group is too large for the journal")
)

const (
	defaultSegmentBytes  = 64 << 20
	defaultMaxGroupBytes = 8 << 20
	// batchBytes ends a batch that is large enough for a sync to be cheap.
	batchBytes = 4 << 20
)

// Config says where the journal is and who follows it.
type Config struct {
	// Dir is made if it is missing.
	Dir string
	// SegmentBytes is the size from which the next batch begins a new segment. The default is 64 MiB.
	SegmentBytes int64
	// MaxGroupBytes is the length of the longest payload. The default is 8 MiB.
	MaxGroupBytes int
	// Apply, if set, brings the groups into a view after they are durable and before their Append
	// returns: each group that is appended, in order, never two calls at once. When it fails, all of
	// its batch must be undone: the same groups come again in a later call, and no new ones are written
	// before that succeeds. It must not call Append. The groups that Open finds do not come; a view
	// that is behind reads them before the first Append.
	Apply func(batch []Group) error
	// Durable is the number of a group that is known to have been durable, as the last one that a view
	// has applied is; 0 if none is known. A journal that ends before it is not opened: the error is a
	// [LostError], and nothing is changed.
	Durable uint64
	// FS changes the disk; tests break it. The default works.
	FS durable.FS
}

// LostError reports that groups are missing which were durable. It is an [ErrCorrupt].
type LostError struct {
	Durable   uint64 // number of the last group that was durable
	Last      uint64 // number of the last group that is there, 0 for none
	Segment   string // file name of the last segment, empty when there is none
	Offset    int64  // in bytes, of the end of the last group in it
	TornBytes int64  // that follow there and are no group
}

func (e *LostError) Error() string {
	missing := fmt.Sprintf("the groups from %d to %d are missing, %d in all", e.Last+1, e.Durable, e.Durable-e.Last)
	switch {
	case e.Segment == "":
		return missing + ": there is no segment"
	case e.TornBytes > 0:
		return fmt.Sprintf("%s: segment %s has %d bytes at byte %d that are no group", missing, e.Segment, e.TornBytes, e.Offset)
	}
	return fmt.Sprintf("%s: segment %s ends at byte %d", missing, e.Segment, e.Offset)
}

func (e *LostError) Unwrap() error { return ErrCorrupt }

// Group is one entry of the journal.
type Group struct {
	Seq     uint64 // 1, 2, 3, ...
	Batch   uint64 // Seq of the first group that became durable together with this one
	Payload []byte // the holder may not change it
	Value   any    // what AppendValue was given with it; nil when the group was read from the files
}

// Recovery tells what Open had to cut off: the end of a batch that was being written at a crash.
// Nothing of it was acknowledged, unless the disk has lost what it said is durable.
type Recovery struct {
	TruncatedBytes int64  // 0 if nothing was cut off
	Segment        string // file name
	Offset         int64  // in bytes, of what was cut off
}

// Journal is an open journal. Its methods are safe for concurrent use.
type Journal struct {
	dir      string
	config   Config
	recovery Recovery

	requests chan *request // without room: who has sent a request knows that the writer has taken it
	closing  chan struct{}
	closed   sync.Once
	done     chan struct{} // closed when the writer has returned

	mu       sync.Mutex
	next     uint64   // number of the first group that is not durable
	segments []uint64 // first numbers, rising, at least one

	// All below belongs to the writer.
	file      *durable.File // the last segment
	size      int64         // of the durable part of it
	room      int64         // up to where it is filled with newlines that are durable; no more than size without any
	at        position      // of the last durable group
	failed    error
	unapplied []Group // durable, and Apply has not succeeded
	hash      hash.Hash
	buffer    []byte
}

type request struct {
	payload []byte
	value   any
	seq     uint64
	err     error
	done    chan struct{} // closed when seq and err are set
}

// Open opens the journal in a directory, and makes it when it is not there. It reads the last segment
// and cuts off what a crash has left of an unfinished batch; see [Journal.Recovery]. Damage before that
// is ErrCorrupt, and nothing is changed.
func Open(config Config) (*Journal, error) {
	if config.SegmentBytes == 0 {
		config.SegmentBytes = defaultSegmentBytes
	}
	if config.MaxGroupBytes == 0 {
		config.MaxGroupBytes = defaultMaxGroupBytes
	}
	j := &Journal{
		dir:      config.Dir,
		config:   config,
		requests: make(chan *request),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		hash:     sha256.New(),
	}
	if err := j.open(); err != nil {
		return nil, fmt.Errorf("open journal in %s: %w", config.Dir, err)
	}
	go j.write()
	return j, nil
}

func (j *Journal) open() error {
	if err := j.config.FS.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	if err := j.config.FS.RemoveTemps(j.dir); err != nil {
		return err
	}
	// A process that was killed may have left the name of a segment unsynced.
	if err := j.config.FS.SyncDir(j.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return err
	}
	for _, e := range entries { // sorted by name, and so by number
		if first, ok := parseSegmentName(e.Name()); ok {
			j.segments = append(j.segments, first)
		}
	}
	if len(j.segments) == 0 {
		if j.config.Durable > 0 {
			return &LostError{Durable: j.config.Durable}
		}
		return j.newSegment()
	}
	if j.segments[0] != 1 {
		return fmt.Errorf("segment %s is missing: %w", segmentName(1), ErrCorrupt)
	}
	return j.recover(j.segments[len(j.segments)-1])
}

// recover reads the last segment, cuts off a torn end, and makes the rest durable.
func (j *Journal) recover(first uint64) error {
	s, err := openSegment(j.dir, first)
	if err != nil {
		return err
	}
	defer s.close()
	good, batchStart := s.end, s.end
	for {
		e, err := s.next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, ErrCorrupt) {
			if err := j.torn(s, err); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return err
		}
		good = s.end
		if e.batch == e.seq {
			batchStart = s.start
		}
	}
	torn := max(0, s.text-good)
	if s.at.seq < j.config.Durable {
		return &LostError{Durable: j.config.Durable, Last: s.at.seq, Segment: s.name, Offset: good, TornBytes: torn}
	}
	j.at, j.next, j.size = s.at, s.at.seq+1, good
	if torn > 0 {
		j.recovery = Recovery{TruncatedBytes: torn, Segment: s.name, Offset: good}
	}
	return j.rewrite(s.name, batchStart, s.end > good)
}

// torn returns nil when the line at which the scan stopped with err is where a torn batch begins to be
// bad. A line whose checksum is right was written like that and is not torn, however little it fits.
func (j *Journal) torn(s *scanner, err error) error {
	if _, parseErr := parseEntry(s.line); parseErr == nil {
		return err
	}
	later, readErr := s.laterBatch()
	if readErr != nil {
		return readErr
	}
	if later {
		return err
	}
	return nil
}

// rewrite opens the last segment for writing, cuts it to its good size and writes the last batch once
// more, with the same bytes in the same place. A crash in it leaves the batch, or a torn end.
//
// The last process may have died between the write and the sync; the batch must not be read before it
// is durable. A sync alone does not do: if that process died of a failed one, the kernel may hold the
// batch in pages that it takes for clean, and a second sync would say yes to what is not on the disk.
func (j *Journal) rewrite(name string, batchStart int64, longer bool) error {
	f, err := j.config.FS.OpenFile(filepath.Join(j.dir, name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	batch := make([]byte, j.size-batchStart)
	_, err = f.OS().ReadAt(batch, batchStart)
	if err == nil && longer {
		err = f.Truncate(j.size)
	}
	if err == nil {
		_, err = f.WriteAt(batch, batchStart)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.file = f
	return nil
}

// Recovery returns what Open cut off.
func (j *Journal) Recovery() Recovery { return j.recovery }

// Next returns the number that the next group gets. All groups before it are durable.
func (j *Journal) Next() uint64 {
	next, _ := j.durable()
	return next
}

func (j *Journal) durable() (next uint64, segments []uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.next, j.segments
}

// Append adds a group and returns its number. When the error is nil, the group is durable and applied.
// Appends that wait at the same time share a sync.
//
// An error together with a number is that of Apply: the group is durable and will be applied before any
// other. With ErrFailed, or when ctx is cancelled, the group may be durable, or become so. With any
// other error it is not there and never will be.
func (j *Journal) Append(ctx context.Context, payload []byte) (seq uint64, err error) {
	return j.AppendValue(ctx, payload, nil)
}

// AppendValue is [Journal.Append] of a payload that was made from a value, which Apply gets with it and need not decode again.
func (j *Journal) AppendValue(ctx context.Context, payload []byte, value any) (seq uint64, err error) {
	switch {
	case len(payload) == 0 || bytes.IndexByte(payload, '\n') >= 0:
		return 0, errors.New("append to journal: payload is empty or has a newline")
	case len(payload) > j.config.MaxGroupBytes:
		return 0, fmt.Errorf("append to journal: %d bytes, at most %d: %w", len(payload), j.config.MaxGroupBytes, ErrTooLarge)
	}
	// A copy, since the writer may use it longer than a caller that was cancelled.
	r := &request{payload: bytes.Clone(payload), value: value, done: make(chan struct{})}
	select {
	case j.requests <- r:
	case <-j.done:
		return 0, ErrClosed
	case <-ctx.Done():
		return 0, fmt.Errorf("append to journal: %w", ctx.Err())
	}
	select {
	case <-r.done:
		return r.seq, r.err
	case <-ctx.Done():
		return 0, fmt.Errorf("append to journal: %w", ctx.Err())
	}
}

// Close waits for the batch that is being written, and for the running Apply.
func (j *Journal) Close() error {
	j.closed.Do(func() { close(j.closing) })
	<-j.done
	return nil
}

// write is the only goroutine that changes the files.
func (j *Journal) write() {
	defer close(j.done)
	defer func() { _ = errors.Join(j.trim(), j.file.Close()) }() // everything in it is synced, or was reported as failed
	var batch []*request
	for {
		select {
		case <-j.closing:
			return
		case r := <-j.requests:
			batch = j.gather(append(batch[:0], r))
		}
		j.commit(batch)
		for _, r := range batch {
			close(r.done)
		}
		clear(batch)
	}
}

// gather adds the requests that are waiting. Those whom the last batch has just woken get to run first:
// many append again at once, and would else find this batch gone and wait for the next. That halved the
// groups per sync.
func (j *Journal) gather(batch []*request) []*request {
	runtime.Gosched()
	size := len(batch[0].payload)
	for size < batchBytes {
		select {
		case r := <-j.requests:
			batch = append(batch, r)
			size += len(r.payload)
		default:
			return batch
		}
	}
	return batch
}

// commit makes a batch durable, applies it, and sets the results.
func (j *Journal) commit(batch []*request) {
	err := j.ready()
	var groups []Group
	if err == nil {
		groups, err = j.store(batch)
	}
	if err != nil {
		for _, r := range batch {
			r.err = err
		}
		return
	}
	j.unapplied = groups
	err = j.apply()
	for i, r := range batch {
		r.seq, r.err = groups[i].Seq, err
	}
}

// ready returns an error if nothing can be stored now.
func (j *Journal) ready() error {
	if j.failed != nil {
		return j.failed
	}
	return j.apply()
}

// apply hands over what is durable and not applied.
func (j *Journal) apply() error {
	if len(j.unapplied) == 0 || j.config.Apply == nil {
		j.unapplied = nil
		return nil
	}
	if err := j.config.Apply(j.unapplied); err != nil {
		return fmt.Errorf("apply %d groups of the journal from %d: %w", len(j.unapplied), j.unapplied[0].Seq, err)
	}
	j.unapplied = nil
	return nil
}

// store makes a batch durable.
//
//	new segment     when the last one is full; see newSegment
//	grow            when there is no room; a crash leaves newlines, which Open cuts off
//	write           a crash leaves any part of the batch, which Open keeps or cuts off
//	sync            from here on the groups are durable
func (j *Journal) store(batch []*request) ([]Group, error) {
	if j.size >= j.config.SegmentBytes && j.at.batch != 0 {
		if err := j.newSegment(); err != nil {
			return nil, j.fail(err, isFull(err))
		}
	}
	at := j.at
	at.batch = at.seq + 1
	groups := make([]Group, len(batch))
	j.buffer = j.buffer[:0]
	for i, r := range batch {
		at.seq++
		at.chain = link(j.hash, at.chain, at.seq, r.payload)
		j.buffer = appendEntry(j.buffer, entry{chain: at.chain, batch: at.batch, seq: at.seq, payload: r.payload})
		groups[i] = Group{Seq: at.seq, Batch: at.batch, Payload: r.payload, Value: r.value}
	}
	end := j.size + int64(len(j.buffer))
	if err := j.grow(end); err != nil {
		return nil, j.fail(err, false)
	}
	if _, err := j.file.WriteAt(j.buffer, j.size); err != nil {
		return nil, j.fail(err, isFull(err) && j.takeBack() == nil)
	}
	sync := j.file.SyncData
	if end > j.room {
		sync = j.file.Sync
	}
	if err := sync(); err != nil {
		return nil, j.fail(err, false)
	}
	j.size = end
	j.at = at
	j.mu.Lock()
	j.next = at.seq + 1
	j.mu.Unlock()
	return groups, nil
}

// growBytes is how much room is made at a time.
const growBytes = 1 << 20

// newlines fill the room.
var newlines = bytes.Repeat([]byte("\n"), 64<<10)

// grow makes room for a batch that ends at byte end, and for some more: to write over what is there is a third cheaper to sync than to make
// a file longer. When the disk is too full for that, there is no room, and the batch may still fit.
func (j *Journal) grow(end int64) error {
	to := min(end+growBytes, j.config.SegmentBytes)
	if end <= j.room || to <= end {
		return nil
	}
	var err error
	for at := max(j.room, j.size); at < to && err == nil; at += int64(len(newlines)) {
		_, err = j.file.WriteAt(newlines[:min(int64(len(newlines)), to-at)], at)
	}
	if err == nil {
		err = j.file.Sync()
	}
	switch {
	case err == nil:
		j.room = to
	case isFull(err):
		return j.takeBack()
	}
	return err
}

// trim cuts off the room that is left. A segment that is full has none: room ends where the segment is to.
func (j *Journal) trim() error {
	if j.failed != nil || j.room <= j.size {
		return nil
	}
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	return j.file.Sync()
}

// newSegment begins a segment after the last durable group. The file appears at once with its header,
// synced under a synced name, so a crash leaves a whole segment without groups, or nothing.
func (j *Journal) newSegment() error {
	first := j.at.seq + 1
	path := filepath.Join(j.dir, segmentName(first))
	head := appendHeader(nil, header{chain: j.at.chain, first: first})
	// There may be such a file, from an earlier try that failed. It holds no group.
	if err := j.config.FS.WriteFile(path, head, 0o600); err != nil {
		return err
	}
	f, err := j.config.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if j.file != nil {
		_ = j.file.Close() // all of it is synced
	}
	j.file, j.size, j.room, j.at.batch = f, int64(len(head)), 0, 0
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next = first
	j.segments = append(slices.Clip(j.segments), first) // readers keep the old one
	return nil
}

// takeBack removes what a write has left that did not find space for all of the batch, so that the
// journal can go on when there is space again.
//
// That is safe because nothing of the batch was synced or acknowledged, and no other byte is written
// before the removal is durable: the groups that get the same numbers later cannot mix with the
// remains. It takes a new descriptor. The old one may owe us an error of pages that the kernel has
// written in the meantime; Linux reports an error that nobody has seen to a descriptor opened after it,
// so the sync here fails if there is one.
func (j *Journal) takeBack() error {
	f, err := j.config.FS.OpenFile(j.file.Name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(j.size)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	_ = j.file.Close()
	j.file, j.room = f, 0
	return nil
}

// fail returns the error for the waiting requests. Unless the failure was undone, nothing can be
// appended any more.
func (j *Journal) fail(err error, undone bool) error {
	err = fmt.Errorf("append to journal: %w", err)
	if !undone {
		err = fmt.Errorf("%w: %w", ErrFailed, err)
		j.failed = err
	}
	return err
}

// isFull reports whether err says that there is no space, or none left for us.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
