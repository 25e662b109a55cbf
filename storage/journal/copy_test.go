package journal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
	"github.com/herdbook/herdbook/storage/journal"
)

func TestCopyTo(t *testing.T) {
	dir, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	j := open(t, journal.Config{Dir: dir, SegmentBytes: 400})
	var want []string
	for i := range 3 { // rounds: each brings the copy up to date
		for n := range 10 {
			payload := fmt.Sprintf(`{"round":%d,"group":%d}`, i, n)
			mustAppend(t, j, payload)
			want = append(want, payload)
		}
		copied := 0
		head, err := j.CopyTo(t.Context(), durable.FS{}, to, func(n int) { copied += n })
		if err != nil || head.Seq != uint64(len(want)) || copied == 0 {
			t.Fatalf("CopyTo = group %d, %v after %d bytes, want group %d", head.Seq, err, copied, len(want))
		}
		there := open(t, journal.Config{Dir: to})
		if diff := cmp.Diff(want, read(t, there, 1)); diff != "" {
			t.Errorf("groups of the copy (-want +got):\n%s", diff)
		}
		verified, err := there.Verify(t.Context())
		if err != nil || verified != head {
			t.Errorf("Verify of the copy = %v, %v, want %v", verified, err, head)
		}
		if err := there.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Segments of a journal that this one has parted from do not stay.
func TestCopyToRemovesOtherSegments(t *testing.T) {
	to := t.TempDir()
	j := open(t, journal.Config{Dir: t.TempDir()})
	mustAppend(t, j, `{"group":1}`)
	stale := filepath.Join(to, "00000000000000ff.log")
	if err := os.WriteFile(stale, []byte("of another time\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := j.CopyTo(t.Context(), durable.FS{}, to, func(int) {}); err != nil {
		t.Fatal(err)
	}
	if names := list(t, to); len(names) != 1 || names[0] == filepath.Base(stale) {
		t.Errorf("files of the copy = %v, want its own segment alone", names)
	}
}

func TestCopyToOfADamagedJournal(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	j := open(t, journal.Config{Dir: dir})
	for n := range 10 {
		mustAppend(t, j, fmt.Sprintf(`{"group":%d}`, n))
	}
	path := filepath.Join(dir, list(t, dir)[0])
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(bytes.TrimSpace(text))/2] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := j.CopyTo(t.Context(), durable.FS{}, to, func(int) {}); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("CopyTo of a damaged journal = %v, want ErrCorrupt", err)
	}
	if names := list(t, to); len(names) != 0 {
		t.Errorf("files of the copy = %v, want none", names)
	}
}

// A copy that is broken off leaves what was there before, or the new one; never a part.
func TestCrashOfACopy(t *testing.T) {
	durabletest.EachStep(t, func() durabletest.Case {
		source := t.TempDir()
		return durabletest.Case{
			Prepare: func(dir string) error {
				j, err := journal.Open(journal.Config{Dir: source})
				if err != nil {
					return err
				}
				_, err = j.Append(context.Background(), []byte(`{"group":1}`))
				if err == nil {
					_, err = j.CopyTo(context.Background(), durabletest.NoSync(), dir, func(int) {})
				}
				return errors.Join(err, j.Close())
			},
			Work: func(fsys durable.FS, dir string) {
				j, err := journal.Open(journal.Config{Dir: source})
				if err != nil {
					return
				}
				defer j.Close()
				_, _ = j.Append(context.Background(), []byte(`{"group":2}`))
				_, _ = j.CopyTo(context.Background(), fsys, dir, func(int) {})
			},
			Check: func(t *testing.T, dir string) {
				j := open(t, journal.Config{Dir: dir})
				got := read(t, j, 1)
				if len(got) < 1 || got[0] != `{"group":1}` {
					t.Errorf("groups of the copy = %q, want the first at least", got)
				}
			},
		}
	})
}
