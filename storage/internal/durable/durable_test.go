package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

func TestWriteFileLeavesOldOrNew(t *testing.T) {
	steps := durabletest.EachStep(t, func() durabletest.Case {
		var acknowledged bool
		return durabletest.Case{
			Prepare: func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o600)
			},
			Work: func(fsys durable.FS, dir string) {
				acknowledged = fsys.WriteFile(filepath.Join(dir, "f"), []byte("new"), 0o640) == nil
			},
			Check: func(t *testing.T, dir string) {
				got, err := os.ReadFile(filepath.Join(dir, "f"))
				if err != nil {
					t.Fatalf("file after the crash: %v", err)
				}
				if string(got) != "new" && (acknowledged || string(got) != "old") {
					t.Errorf("content after the crash = %q, acknowledged = %v", got, acknowledged)
				}
				if err := (durable.FS{}).RemoveTemps(dir); err != nil {
					t.Fatal(err)
				}
				if names := list(t, dir); len(names) != 1 {
					t.Errorf("files after RemoveTemps = %v, want only f", names)
				}
			},
		}
	})
	if want := 5; steps != want { // create, write, sync, rename, syncdir
		t.Errorf("WriteFile takes %d steps, want %d", steps, want)
	}
}

func TestMkdirAllIsDurable(t *testing.T) {
	durabletest.EachStep(t, func() durabletest.Case {
		var acknowledged bool
		return durabletest.Case{
			Work: func(fsys durable.FS, dir string) {
				path := filepath.Join(dir, "a", "b", "c")
				acknowledged = fsys.MkdirAll(path, 0o755) == nil
				if !acknowledged {
					// Like the next process after a kill: it finds a directory that may be unsynced.
					acknowledged = fsys.MkdirAll(path, 0o755) == nil
				}
			},
			Check: func(t *testing.T, dir string) {
				_, err := os.Stat(filepath.Join(dir, "a", "b", "c"))
				if acknowledged && err != nil {
					t.Errorf("acknowledged directory: %v", err)
				}
			},
		}
	})
}

func TestMkdirAllOverFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, filepath.Join(path, "sub")} {
		if err := (durable.FS{}).MkdirAll(p, 0o755); err == nil {
			t.Errorf("MkdirAll(%s) = nil, want an error", p)
		}
	}
}

func TestRenameIsDurable(t *testing.T) {
	durabletest.EachStep(t, func() durabletest.Case {
		var acknowledged bool
		return durabletest.Case{
			Prepare: func(dir string) error {
				return errors.Join(
					os.Mkdir(filepath.Join(dir, "from"), 0o755),
					os.Mkdir(filepath.Join(dir, "to"), 0o755),
					os.WriteFile(filepath.Join(dir, "from", "f"), []byte("x"), 0o600))
			},
			Work: func(fsys durable.FS, dir string) {
				acknowledged = fsys.Rename(filepath.Join(dir, "from", "f"), filepath.Join(dir, "to", "f")) == nil
			},
			Check: func(t *testing.T, dir string) {
				from, to := list(t, filepath.Join(dir, "from")), list(t, filepath.Join(dir, "to"))
				if acknowledged && (len(from) != 0 || len(to) != 1) {
					t.Errorf("after an acknowledged rename: from = %v, to = %v", from, to)
				}
				if len(from)+len(to) == 0 {
					t.Error("the crash lost the file")
				}
			},
		}
	})
}

func TestFailedSyncIsNotRetried(t *testing.T) {
	broken := true
	var syncs int
	fsys := durable.FS{Hook: func(op durable.Op, _ string, do func() error) error {
		if op == durable.OpSync {
			syncs++
			if broken {
				return syscall.EIO
			}
		}
		return do()
	}}
	f, err := fsys.CreateTemp(t.TempDir(), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync = %v, want EIO", err)
	}
	broken = false
	if err := f.Sync(); !errors.Is(err, syscall.EIO) || syncs != 1 {
		t.Errorf("second Sync = %v after %d syncs, want EIO and no second one", err, syncs)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, syscall.EIO) {
		t.Errorf("Write after a failed sync = %v, want EIO", err)
	}
	if err := f.Truncate(0); !errors.Is(err, syscall.EIO) {
		t.Errorf("Truncate after a failed sync = %v, want EIO", err)
	}
}

func TestRemoveTemps(t *testing.T) {
	dir := t.TempDir()
	var fsys durable.FS
	f, err := fsys.CreateTemp(dir, 0o444)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("the only way to write to it")); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, durable.TempName(), "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fsys.RemoveTemps(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"kept"}, list(t, dir)); diff != "" {
		t.Errorf("files after RemoveTemps (-want +got):\n%s", diff)
	}
}

// A caller must never be served by a sync that began before it came: here the value that a run of sync
// sees stands for the state of the directory when the real sync begins.
func TestSyncGroupCoversEarlierChanges(t *testing.T) {
	var group durable.SyncGroup
	var changes, syncs atomic.Int64
	var synced atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				mine := changes.Add(1)
				if err := group.Do(func() error {
					syncs.Add(1)
					synced.Store(changes.Load())
					return nil
				}); err != nil {
					t.Error(err)
				}
				if got := synced.Load(); got < mine {
					t.Errorf("change %d was acknowledged by a sync that covers %d", mine, got)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d syncs for %d changes", syncs.Load(), changes.Load())
}

func TestSyncGroupSharesOneRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var group durable.SyncGroup
		var runs atomic.Int64
		release := make(chan struct{})
		run := func() error {
			runs.Add(1)
			<-release
			return fs.ErrInvalid
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := group.Do(run); !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("Do = %v, want the error of the sync", err)
				}
			})
			synctest.Wait()
		}
		close(release)
		wg.Wait()
		if got := runs.Load(); got != 2 {
			t.Errorf("%d runs for one caller and nine that came during its run, want 2", got)
		}
	})
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
