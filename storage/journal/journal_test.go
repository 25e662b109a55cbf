package journal_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
	"github.com/herdbook/herdbook/storage/journal"
)

// childDir tells a copy of the test program to append to the journal in that directory until it is
// killed.
const childDir = "HERDBOOK_TEST_JOURNAL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		appendUntilKilled(dir)
		return
	}
	os.Exit(m.Run())
}

// step takes a step that a hook stands in for.
type step = func() error

// The format is a promise to auditors: here it is built by hand from what the comment in format.go
// says.
func TestFormat(t *testing.T) {
	dir := t.TempDir()
	j := open(t, journal.Config{Dir: dir, FS: durabletest.NoSync()})
	line := func(rest string) string {
		return fmt.Sprintf("%08x %s\n", crc32.Checksum([]byte(rest), crc32.MakeTable(crc32.Castagnoli)), rest)
	}
	want := line("herdbook-journal 1 " + strings.Repeat("0", 64) + " 0000000000000001")
	var chain [32]byte
	for i, payload := range []string{`{"kind":"model.created"}`, `{"kind":"ref.updated"}`} {
		mustAppend(t, j, payload)
		chain = sha256.Sum256(slices.Concat(chain[:], binary.BigEndian.AppendUint64(nil, uint64(i+1)), []byte(payload)))
		want += line(fmt.Sprintf("%x %016x %016x %s", chain, i+1, i+1, payload))
	}
	path := filepath.Join(dir, "0000000000000001.log")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text, ok := strings.CutPrefix(string(got), want); !ok || strings.Trim(text, "\n") != "" || len(text) < 1<<19 {
		t.Errorf("segment that is open = %q and %d bytes, want %q and room", clip(string(got)), len(got), want)
	}
	defer func() {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("segment (-want +got):\n%s", diff)
		}
	}()
	if head, err := j.Verify(t.Context()); err != nil || head != (journal.Head{Seq: 2, Chain: chain}) {
		t.Errorf("Verify = %v, %v, want group 2 with chain %x", head, err, chain)
	}
}

func clip(text string) string { return text[:min(len(text), 1000)] }

// Groups go into room that is there: a group changes nothing but its bytes, and what a server that is killed leaves
// of the room is nothing that was lost.
func TestRoom(t *testing.T) {
	dir := t.TempDir()
	config := journal.Config{Dir: dir, SegmentBytes: 3 << 20}
	path := filepath.Join(dir, "0000000000000001.log")
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	var synced []string
	config.FS = durable.FS{Hook: func(op durable.Op, path string, do step) error {
		if op == durable.OpSync {
			synced = append(synced, filepath.Base(path))
		}
		return do()
	}}
	j := open(t, config)
	mustAppend(t, j, "1")
	before := size()
	synced = nil
	payload := strings.Repeat("x", 1000)
	for range 100 {
		mustAppend(t, j, payload)
	}
	if got := size(); got != before || len(synced) != 100 {
		t.Errorf("after 100 groups: %d bytes and %d syncs, want the %d bytes of before and 100 syncs", got, len(synced), before)
	}
	killed := t.TempDir()
	mustDo(t, os.CopyFS(killed, os.DirFS(dir)))
	again := open(t, journal.Config{Dir: killed, Durable: 101})
	if got := again.Recovery(); got != (journal.Recovery{}) {
		t.Errorf("Recovery of a journal with room = %v, want nothing cut", got)
	}
	if seq, err := again.Append(t.Context(), []byte("102")); seq != 102 || err != nil {
		t.Errorf("Append = %d, %v, want 102", seq, err)
	}
	if _, err := journal.Open(journal.Config{Dir: killed, Durable: 103}); !strings.Contains(fmt.Sprint(err), "are missing") || strings.Contains(fmt.Sprint(err), "no group") {
		t.Errorf("Open of a journal that lost a group = %v, want that, and nothing about room", err)
	}
	// A segment that is full has none left.
	for range 3500 {
		mustAppend(t, j, payload)
	}
	if got := list(t, dir); len(got) != 2 {
		t.Fatalf("segments = %q, want 2", got)
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.HasSuffix(string(text), "\n\n") || int64(len(text)) < config.SegmentBytes {
		t.Errorf("a full segment has %d bytes and ends in %q, %v", len(text), text[len(text)-10:], err)
	}
	if head, err := j.Verify(t.Context()); err != nil || head.Seq != 3601 {
		t.Errorf("Verify = %v, %v, want 3601 groups", head, err)
	}
}

// A disk with space for a group and none for room takes the group.
func TestNoSpaceForRoom(t *testing.T) {
	dir := t.TempDir()
	full := true
	j := open(t, journal.Config{Dir: dir, FS: durable.FS{Hook: func(op durable.Op, path string, do step) error {
		if info, err := os.Stat(path); full && op == durable.OpWrite && err == nil && info.Size() > 200<<10 {
			return syscall.ENOSPC
		}
		return do()
	}}})
	for i := range 3 {
		mustAppend(t, j, fmt.Sprint(i))
	}
	full = false
	mustAppend(t, j, "3")
	if got := read(t, j, 1); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("groups = %q, want 0 to 3", got)
	}
	info, err := os.Stat(filepath.Join(dir, "0000000000000001.log"))
	if err != nil || info.Size() < 1<<20 {
		t.Errorf("once there is space: %v, %v, want room again", info, err)
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadOverSegmentsAndRestarts(t *testing.T) {
	dir := t.TempDir()
	config := journal.Config{Dir: dir, SegmentBytes: 700, FS: durabletest.NoSync()}
	var want []string
	long := strings.Repeat("x", 700<<10) // more than the scan holds in its buffer
	for restart := range 4 {
		j, err := journal.Open(config)
		if err != nil {
			t.Fatal(err)
		}
		if got := j.Next(); got != uint64(len(want)+1) {
			t.Errorf("Next after %d groups = %d, want %d", len(want), got, len(want)+1)
		}
		for i := range 10 {
			payload := fmt.Sprintf(`{"restart":%d,"n":%d}`, restart, i)
			if i == 5 {
				payload += long
			}
			want = append(want, payload)
			if seq := mustAppend(t, j, payload); seq != uint64(len(want)) {
				t.Errorf("Append = %d, want %d", seq, len(want))
			}
		}
		for from := range uint64(len(want) + 3) {
			got := read(t, j, from)
			if expected := want[min(int(max(from, 1))-1, len(want)):]; !slices.Equal(got, expected) {
				t.Errorf("Read from %d = %d groups, want the last %d", from, len(got), len(expected))
			}
		}
		if head, err := j.Verify(t.Context()); err != nil || head.Seq != uint64(len(want)) {
			t.Errorf("Verify = %d, %v, want %d", head.Seq, err, len(want))
		}
		if j.Recovery() != (journal.Recovery{}) {
			t.Errorf("Recovery = %v, want none", j.Recovery())
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if names := list(t, dir); len(names) < 4 {
		t.Errorf("files = %v, want several segments", names)
	}
}

func TestReadStops(t *testing.T) {
	j := open(t, journal.Config{Dir: t.TempDir(), FS: durabletest.NoSync()})
	for i := range 5 {
		mustAppend(t, j, fmt.Sprint(i))
	}
	n := 0
	for range j.Read(t.Context(), 1) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("loop ran %d times, want the 2 it asked for", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n = 0
	for _, err := range j.Read(ctx, 1) {
		if n++; n == 2 {
			cancel()
		}
		if n == 3 && !errors.Is(err, context.Canceled) {
			t.Errorf("error after the context was cancelled = %v, want context.Canceled", err)
		}
	}
	if n != 3 {
		t.Errorf("loop ran %d times, want 2 groups and the error", n)
	}
	if _, err := j.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify = %v, want context.Canceled", err)
	}
}

func TestRefusals(t *testing.T) {
	j := open(t, journal.Config{Dir: t.TempDir(), MaxGroupBytes: 10, FS: durabletest.NoSync()})
	for _, payload := range []string{"", "a\nb", "\n"} {
		if _, err := j.Append(t.Context(), []byte(payload)); err == nil {
			t.Errorf("Append(%q) = nil, want an error", payload)
		}
	}
	if _, err := j.Append(t.Context(), make([]byte, 11)); !errors.Is(err, journal.ErrTooLarge) {
		t.Errorf("Append of 11 bytes = %v, want ErrTooLarge", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // the writer may be ready to take it
		if _, err := j.Append(cancelled, []byte("x")); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Append with a cancelled context = %v, want context.Canceled or nil", err)
		}
	}
	if err := errors.Join(j.Close(), j.Close()); err != nil {
		t.Error(err)
	}
	next := j.Next()
	if _, err := j.Append(t.Context(), []byte("x")); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("Append after Close = %v, want ErrClosed", err)
	}
	if got := len(read(t, j, 1)); uint64(got+1) != next {
		t.Errorf("Read after Close = %d groups, want %d", got, next-1)
	}
}

// All that wait while a sync runs share the next one.
func TestAppendsShareSyncs(t *testing.T) { synctest.Test(t, testAppendsShareSyncs) }

func testAppendsShareSyncs(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, journal.Config{Dir: dir}).Close(); err != nil {
		t.Fatal(err)
	}
	var syncs atomic.Int64
	opened := false
	release := make(chan struct{})
	var applied [][]journal.Group
	j := open(t, journal.Config{
		Dir: dir,
		FS: durable.FS{Hook: func(op durable.Op, _ string, do step) error {
			if opened && op == durable.OpSync {
				syncs.Add(1)
				<-release
			}
			return do()
		}},
		Apply: func(batch []journal.Group) error {
			applied = append(applied, slices.Clone(batch))
			return nil
		},
	})
	mustAppend(t, j, "first") // which makes room
	applied, opened = nil, true
	var wg sync.WaitGroup
	var seqs sync.Map
	for i := range 100 {
		wg.Go(func() {
			seq, err := j.Append(t.Context(), fmt.Appendf(nil, `{"n":%d}`, i))
			if err != nil {
				t.Error(err)
			}
			if _, twice := seqs.LoadOrStore(seq, i); twice {
				t.Errorf("two groups got the number %d", seq)
			}
		})
		if i == 0 {
			synctest.Wait() // until its sync
		}
	}
	synctest.Wait()
	if got := j.Next(); got != 2 || len(read(t, j, 2)) != 0 {
		t.Errorf("before the sync is done: Next = %d, want 2 and no group to read", got)
	}
	close(release)
	wg.Wait()
	if got := syncs.Load(); got != 2 {
		t.Errorf("%d syncs for a group and 99 more that came during its sync, want 2", got)
	}
	if len(applied) != 2 || len(applied[0]) != 1 || len(applied[1]) != 99 {
		t.Fatalf("Apply was called %d times, want 1 group, then 99", len(applied))
	}
	want := journal.Group{Seq: 2, Batch: 2}
	for _, got := range slices.Concat(applied...) {
		if got.Seq != want.Seq || got.Batch != want.Batch {
			t.Errorf("applied group %d of batch %d, want %d of %d", got.Seq, got.Batch, want.Seq, want.Batch)
		}
		i, _ := seqs.Load(got.Seq)
		if payload := fmt.Sprintf(`{"n":%d}`, i); string(got.Payload) != payload {
			t.Errorf("group %d = %s, want %s, which was told that number", got.Seq, got.Payload, payload)
		}
		want = journal.Group{Seq: want.Seq + 1, Batch: 3}
	}
}

func TestContextCancelledWhileWaiting(t *testing.T) {
	synctest.Test(t, testContextCancelledWhileWaiting)
}

func testContextCancelledWhileWaiting(t *testing.T) {
	release := make(chan struct{})
	block := false
	var applied []string
	j := open(t, journal.Config{
		Dir: t.TempDir(),
		FS: durable.FS{Hook: func(op durable.Op, _ string, do step) error {
			if block && op == durable.OpWrite {
				<-release
			}
			return do()
		}},
		Apply: func(batch []journal.Group) error {
			for _, g := range batch {
				applied = append(applied, string(g.Payload))
			}
			return nil
		},
	})
	block = true
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	payload := []byte("taken by the writer")
	wg.Go(func() {
		if _, err := j.Append(ctx, payload); !errors.Is(err, context.Canceled) {
			t.Errorf("Append = %v, want context.Canceled", err)
		}
		clear(payload) // it is the caller's again
	})
	synctest.Wait()
	wg.Go(func() {
		if _, err := j.Append(ctx, []byte("not yet taken")); !errors.Is(err, context.Canceled) {
			t.Errorf("Append = %v, want context.Canceled", err)
		}
	})
	synctest.Wait()
	cancel()
	wg.Wait()
	close(release)
	mustAppend(t, j, "later")
	want := []string{"taken by the writer", "later"}
	if got := read(t, j, 1); !slices.Equal(got, want) || !slices.Equal(applied, want) {
		t.Errorf("groups = %q, applied = %q, want %q", got, applied, want)
	}
}

func TestConcurrentAppendAndRead(t *testing.T) {
	var applied []uint64
	j := open(t, journal.Config{
		Dir: t.TempDir(), SegmentBytes: 4 << 10, FS: durabletest.NoSync(),
		Apply: func(batch []journal.Group) error {
			for _, g := range batch {
				applied = append(applied, g.Seq)
			}
			return nil
		},
	})
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if seq, err := j.Append(t.Context(), fmt.Appendf(nil, `{"writer":%d,"n":%d}`, w, i)); err != nil {
					t.Error(err)
				} else if next := j.Next(); next <= seq {
					t.Errorf("Next = %d after group %d was acknowledged", next, seq)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			next := j.Next()
			count := uint64(0)
			for _, err := range j.Read(t.Context(), 1) {
				if err != nil {
					t.Errorf("Read: %v", err)
					return
				}
				count++
			}
			if count < next-1 {
				t.Errorf("Read found %d groups, want at least %d", count, next-1)
			}
		}
	})
	wg.Wait()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	want := make([]uint64, writers*each)
	for i := range want {
		want[i] = uint64(i + 1)
	}
	if !slices.Equal(applied, want) {
		t.Errorf("applied = %v, want every group once and in order", applied)
	}
}

func TestApplyFails(t *testing.T) {
	broken := errors.New("index is full")
	var applyErr error
	var applied []string
	j := open(t, journal.Config{Dir: t.TempDir(), FS: durabletest.NoSync(), Apply: func(batch []journal.Group) error {
		if applyErr == nil {
			for _, g := range batch {
				applied = append(applied, string(g.Payload))
			}
		}
		return applyErr
	}})
	mustAppend(t, j, "1")
	applyErr = broken
	if seq, err := j.Append(t.Context(), []byte("2")); seq != 2 || !errors.Is(err, broken) {
		t.Errorf("Append = %d, %v, want 2 and the error of Apply", seq, err)
	}
	if seq, err := j.Append(t.Context(), []byte("refused")); seq != 0 || !errors.Is(err, broken) {
		t.Errorf("Append while the group before it is not applied = %d, %v, want 0 and the error of Apply", seq, err)
	}
	applyErr = nil
	if seq := mustAppend(t, j, "3"); seq != 3 {
		t.Errorf("Append = %d, want 3", seq)
	}
	want := []string{"1", "2", "3"}
	if !slices.Equal(applied, want) {
		t.Errorf("applied = %q, want %q", applied, want)
	}
	if got := read(t, j, 1); !slices.Equal(got, want) {
		t.Errorf("groups = %q, want %q", got, want)
	}
}

func TestFailedSyncPoisons(t *testing.T) {
	dir := t.TempDir()
	var broken, syncs, writes int
	config := journal.Config{Dir: dir, FS: durable.FS{Hook: func(op durable.Op, _ string, do step) error {
		switch op {
		case durable.OpWrite:
			writes++
		case durable.OpSync:
			syncs++
			if broken > 0 {
				broken--
				return syscall.EIO
			}
		}
		return do()
	}}}
	j := open(t, config)
	mustAppend(t, j, "1")
	broken = 1
	syncs, writes = 0, 0
	for range 3 {
		seq, err := j.Append(t.Context(), []byte("2"))
		if seq != 0 || !errors.Is(err, journal.ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("Append = %d, %v, want ErrFailed and EIO", seq, err)
		}
	}
	if syncs != 1 || writes != 1 {
		t.Errorf("%d writes, %d syncs after a sync failed, want no second one of either", writes, syncs)
	}
	if got := read(t, j, 1); !slices.Equal(got, []string{"1"}) || j.Next() != 2 {
		t.Errorf("groups = %q, Next = %d, want only what is durable", got, j.Next())
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// The group is in the page cache and taken for clean: it has to be written again before it is
	// synced.
	syncs, writes = 0, 0
	j = open(t, config)
	if syncs != 1 || writes != 1 {
		t.Errorf("Open after a failed sync: %d writes, %d syncs of the last batch, want 1 and 1", writes, syncs)
	}
	if got := read(t, j, 1); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("groups after reopening = %q, want 1 and 2", got)
	}
	mustAppend(t, j, "3")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	broken = 1
	if _, err := journal.Open(config); !errors.Is(err, syscall.EIO) {
		t.Errorf("Open when the last batch cannot be synced = %v, want EIO", err)
	}
}

func TestFullDisk(t *testing.T) {
	full := func(path string) error { return &os.PathError{Op: "write", Path: path, Err: syscall.ENOSPC} }
	tests := []struct {
		name string
		// hook breaks steps while the disk is full.
		hook         func(op durable.Op, path string, do step) error
		segmentBytes int64
		wantFails    bool
	}{
		{name: "write to a new segment", segmentBytes: 1, hook: func(op durable.Op, path string, do step) error {
			if op == durable.OpWrite && filepath.Ext(path) == ".log" {
				return full(path)
			}
			return do()
		}},
		{name: "write", hook: func(op durable.Op, path string, do step) error {
			if op != durable.OpWrite {
				return do()
			}
			before, err := os.Stat(path)
			if err != nil {
				return err
			}
			// A part of the batch is there, more than a line of it.
			return errors.Join(do(), os.Truncate(path, before.Size()+150), full(path))
		}},
		{name: "write, and nothing can be taken back", hook: func(op durable.Op, path string, do step) error {
			switch op {
			case durable.OpWrite:
				return full(path)
			case durable.OpTruncate:
				return syscall.EIO
			default:
				return do()
			}
		}, wantFails: true},
		{name: "write, and the removal cannot be synced", hook: func(op durable.Op, path string, do step) error {
			switch op {
			case durable.OpWrite:
				return full(path)
			case durable.OpSync:
				return syscall.EIO
			default:
				return do()
			}
		}, wantFails: true},
		{name: "sync", hook: func(op durable.Op, path string, do step) error {
			if op == durable.OpSync {
				return full(path)
			}
			return do()
		}, wantFails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var isFull atomic.Bool
			fsys := durable.FS{Hook: func(op durable.Op, path string, do step) error {
				if isFull.Load() {
					return tt.hook(op, path, do)
				}
				return do()
			}}
			config := journal.Config{Dir: t.TempDir(), SegmentBytes: tt.segmentBytes, FS: fsys}
			j := open(t, config)
			mustAppend(t, j, "1")
			isFull.Store(true)
			_, err := j.Append(t.Context(), []byte(strings.Repeat("lost", 100)))
			if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, journal.ErrFailed) != tt.wantFails {
				t.Errorf("Append on a full disk = %v, want ENOSPC, ErrFailed = %v", err, tt.wantFails)
			}
			isFull.Store(false)
			seq, err := j.Append(t.Context(), []byte("2"))
			if errors.Is(err, journal.ErrFailed) != tt.wantFails || !tt.wantFails && (seq != 2 || err != nil) {
				t.Errorf("Append when there is space again = %d, %v, want ErrFailed = %v", seq, err, tt.wantFails)
			}
			if _, err := j.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			j = open(t, config)
			got := read(t, j, 1)
			if tt.wantFails {
				got = got[:1] // the second group may be there or not
			} else if j.Recovery() != (journal.Recovery{}) {
				t.Errorf("Recovery = %v, want nothing left to cut off", j.Recovery())
			}
			if want := []string{"1", "2"}[:len(got)]; !slices.Equal(got, want) {
				t.Errorf("groups = %q, want %q", got, want)
			}
			if _, err := j.Verify(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFullDiskForNewSegment(t *testing.T) {
	for _, broken := range []durable.Op{
		durable.OpCreate, durable.OpWrite, durable.OpSync, durable.OpRename, durable.OpSyncDir,
	} {
		var full atomic.Bool
		fsys := durable.FS{Hook: func(op durable.Op, path string, do step) error {
			if full.Load() && op == broken {
				return &os.PathError{Op: string(op), Path: path, Err: syscall.ENOSPC}
			}
			return do()
		}}
		config := journal.Config{Dir: t.TempDir(), SegmentBytes: 1, FS: fsys}
		j := open(t, config)
		mustAppend(t, j, "1")
		full.Store(true)
		_, err := j.Append(t.Context(), []byte("lost"))
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, journal.ErrFailed) {
			t.Errorf("%s: Append on a full disk = %v, want ENOSPC", broken, err)
		}
		full.Store(false)
		mustAppend(t, j, "2")
		mustAppend(t, j, "3")
		want := []string{"1", "2", "3"}
		if got := read(t, j, 1); !slices.Equal(got, want) {
			t.Errorf("%s: groups = %q, want %q", broken, got, want)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = open(t, config)
		if got := read(t, j, 1); !slices.Equal(got, want) {
			t.Errorf("%s: groups after reopening = %q, want %q", broken, got, want)
		}
		if got := list(t, config.Dir); len(got) != 3 {
			t.Errorf("%s: files = %v, want 3 segments", broken, got)
		}
	}
}

func TestNewSegmentFails(t *testing.T) {
	broken := false
	fsys := durable.FS{Hook: func(op durable.Op, _ string, do step) error {
		if broken && op == durable.OpCreate {
			return syscall.EIO
		}
		return do()
	}}
	j := open(t, journal.Config{Dir: t.TempDir(), SegmentBytes: 1, FS: fsys})
	mustAppend(t, j, "1")
	broken = true
	if _, err := j.Append(t.Context(), []byte("2")); !errors.Is(err, journal.ErrFailed) {
		t.Errorf("Append = %v, want ErrFailed", err)
	}
	broken = false
	if _, err := j.Append(t.Context(), []byte("2")); !errors.Is(err, journal.ErrFailed) {
		t.Errorf("Append after a failure = %v, want ErrFailed", err)
	}
}

// Groups over several segments, and a restart in between, broken at every step.
func TestCrash(t *testing.T)       { testCrash(t, 300) }
func TestCrashInRoom(t *testing.T) { testCrash(t, 3000) }

func testCrash(t *testing.T, segmentBytes int64) {
	durabletest.EachStep(t, func() durabletest.Case {
		acknowledged := map[uint64]string{}
		var tried []string
		return durabletest.Case{
			Work: func(fsys durable.FS, dir string) {
				config := journal.Config{Dir: filepath.Join(dir, "journal"), SegmentBytes: segmentBytes, FS: fsys}
				for restart, appends := range []int{3, 3, 1} {
					j, err := journal.Open(config)
					if err != nil {
						continue
					}
					// What can be read may be acted on: it is as good as acknowledged.
					for g, err := range j.Read(context.Background(), 1) {
						if err == nil {
							acknowledged[g.Seq] = string(g.Payload)
						}
					}
					for i := range appends {
						payload := fmt.Sprintf(`{"restart":%d,"n":%d}`, restart, i)
						tried = append(tried, payload)
						if seq, err := j.Append(context.Background(), []byte(payload)); err == nil {
							acknowledged[seq] = payload
						}
					}
					_ = j.Close()
				}
			},
			Check: func(t *testing.T, dir string) {
				j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal"), FS: durabletest.NoSync()})
				if err != nil {
					t.Fatal(err)
				}
				defer j.Close()
				groups := read(t, j, 1)
				for seq, payload := range acknowledged {
					if uint64(len(groups)) < seq || groups[seq-1] != payload {
						t.Errorf("group %d was acknowledged as %s; the journal has %q", seq, payload, groups)
					}
				}
				rest := tried
				for i, payload := range groups {
					at := slices.Index(rest, payload)
					if at < 0 {
						t.Fatalf("group %d = %s, which was not appended, or not after the one before it", i+1, payload)
					}
					rest = rest[at+1:]
				}
				if _, err := j.Verify(t.Context()); err != nil {
					t.Error(err)
				}
				mustAppend(t, j, "after the crash")
				for _, name := range list(t, filepath.Join(dir, "journal")) {
					if filepath.Ext(name) != ".log" {
						t.Errorf("file %s is left", name)
					}
				}
			},
		}
	})
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[uint64]string{}
	for round := range 8 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		enough := 1 + rand.IntN(300)
		for n := 0; lines.Scan(); n++ {
			var seq uint64
			var payload string
			if _, err := fmt.Sscanf(lines.Text(), "%d %s", &seq, &payload); err != nil {
				t.Fatalf("line of the child %q: %v", lines.Text(), err)
			}
			if other, twice := acknowledged[seq]; twice {
				t.Errorf("group %d was acknowledged as %s and as %s", seq, other, payload)
			}
			acknowledged[seq] = payload
			if n == enough {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait()

		j, err := journal.Open(journal.Config{Dir: dir})
		if err != nil {
			t.Fatalf("Open after kill %d: %v", round, err)
		}
		groups := read(t, j, 1)
		for seq, payload := range acknowledged {
			if uint64(len(groups)) < seq || groups[seq-1] != payload {
				t.Errorf("after kill %d: group %d was acknowledged as %s and is not there", round, seq, payload)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d groups were acknowledged", len(acknowledged))
}

func appendUntilKilled(dir string) {
	j, err := journal.Open(journal.Config{Dir: dir, SegmentBytes: 8 << 10})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for writer := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				payload := fmt.Sprintf(`{"pid":%d,"writer":%d,"n":%d}`, os.Getpid(), writer, i)
				seq, err := j.Append(context.Background(), []byte(payload))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(seq, payload)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func open(t testing.TB, config journal.Config) *journal.Journal {
	t.Helper()
	j, err := journal.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

func mustAppend(t testing.TB, j *journal.Journal, payload string) (seq uint64) {
	t.Helper()
	seq, err := j.Append(t.Context(), []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// read returns the payloads from the group from on, and checks the numbers.
func read(t testing.TB, j *journal.Journal, from uint64) (payloads []string) {
	t.Helper()
	want := max(from, 1)
	var groups []journal.Group
	for g, err := range j.Read(context.Background(), from) {
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g)
	}
	for _, g := range groups {
		if g.Seq != want || g.Batch > g.Seq {
			t.Errorf("Read came to group %d of batch %d, want group %d", g.Seq, g.Batch, want)
		}
		want++
		payloads = append(payloads, string(g.Payload))
	}
	return payloads
}

func list(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func BenchmarkAppend(b *testing.B) {
	payload := bytes.Repeat([]byte("x"), 300)
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			var syncs atomic.Int64
			fsys := durable.FS{Hook: func(op durable.Op, _ string, do step) error {
				if op == durable.OpSync {
					syncs.Add(1)
				}
				return do()
			}}
			j := open(b, journal.Config{Dir: b.TempDir(), FS: fsys})
			var next atomic.Int64
			var wg sync.WaitGroup
			start := cpu()
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if _, err := j.Append(b.Context(), payload); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/float64(syncs.Load()), "groups/sync")
			b.ReportMetric(float64((cpu()-start).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	const groups = 200_000
	j := open(b, journal.Config{Dir: b.TempDir(), FS: durabletest.NoSync()})
	payload := bytes.Repeat([]byte("x"), 300)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range groups / 64 {
				if _, err := j.Append(b.Context(), payload); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	total := int(j.Next() - 1)
	for _, bench := range []struct {
		name string
		from uint64
	}{{"all", 1}, {"last", j.Next() - 1}} {
		b.Run(bench.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				for _, err := range j.Read(b.Context(), bench.from) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "groups/s")
		})
	}
	if total != groups {
		b.Errorf("%d groups, want %d", total, groups)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	j := open(b, journal.Config{Dir: dir, FS: durabletest.NoSync()})
	payload := bytes.Repeat([]byte("x"), 300)
	for size := 0; size < 60<<20; size += 410 * 64 {
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if _, err := j.Append(b.Context(), payload); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		j, err := journal.Open(journal.Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		j.Close()
	}
}

func cpu() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// A journal that lacks what is known to have been durable is not opened and not changed: neither is a
// torn end cut off nor a new segment begun.
func TestLostGroups(t *testing.T) {
	whole := func(t *testing.T, dir string) []byte {
		j, err := journal.Open(journal.Config{Dir: dir, FS: durabletest.NoSync()})
		if err != nil {
			t.Fatal(err)
		}
		for _, payload := range []string{"a", "b", "c"} {
			mustAppend(t, j, payload)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "0000000000000001.log"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	sample := whole(t, t.TempDir())
	ends := []int64{0} // of each line, the header first
	for line := range bytes.Lines(sample) {
		ends = append(ends, ends[len(ends)-1]+int64(len(line)))
	}
	tests := []struct {
		name    string
		keep    int64 // bytes of the segment
		durable uint64
		want    *journal.LostError // nil when it opens
	}{
		{"all is there", ends[4], 3, nil},
		{"more is there than is known", ends[4], 2, nil},
		{"nothing is known", ends[3] + 5, 0, nil},
		{"a torn end behind what is known", ends[3] + 5, 2, nil},
		{"a torn end in what is known", ends[3] + 5, 3, &journal.LostError{Durable: 3, Last: 2, Segment: "0000000000000001.log", Offset: ends[3], TornBytes: 5}},
		{"lines are missing", ends[2], 3, &journal.LostError{Durable: 3, Last: 1, Segment: "0000000000000001.log", Offset: ends[2]}},
		{"all groups are missing", ends[1], 3, &journal.LostError{Durable: 3, Segment: "0000000000000001.log", Offset: ends[1]}},
		{"the segment is missing", -1, 3, &journal.LostError{Durable: 3}},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		path := filepath.Join(dir, "0000000000000001.log")
		if tt.keep >= 0 {
			if err := os.WriteFile(path, sample[:tt.keep], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := list(t, dir)
		j, err := journal.Open(journal.Config{Dir: dir, Durable: tt.durable, FS: durabletest.NoSync()})
		if tt.want == nil {
			if err != nil {
				t.Errorf("Open when %s = %v, want nil", tt.name, err)
			} else if err := j.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		var lost *journal.LostError
		if !errors.As(err, &lost) || *lost != *tt.want || !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("Open when %s = %v, want %+v", tt.name, err, *tt.want)
		}
		if got := list(t, dir); !slices.Equal(got, before) {
			t.Errorf("files after Open when %s = %v, want %v", tt.name, got, before)
		}
		if tt.keep >= 0 {
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, sample[:tt.keep]) {
				t.Errorf("segment after Open when %s = %d bytes, %v, want it as it was", tt.name, len(got), err)
			}
		}
	}
}
