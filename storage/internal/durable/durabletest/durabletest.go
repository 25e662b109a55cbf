// Package durabletest breaks durable code at every step and shows what a crash there leaves.
//
// Two crashes are simulated. After a killed process everything is there that was written, synced or
// not. After a power cut only what was synced is there: the content that each file had when its last
// sync began, under the names that each directory had when its last sync began. A real disk may keep
// more; code that is correct with the least and with all of it has its syncs in the right places.
package durabletest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// ErrCut is the error of every step after the power was cut.
var ErrCut = errors.New("power was cut")

// Case is one run of some work that is broken at one step.
type Case struct {
	// Prepare, if set, fills dir before the run. What it leaves is durable.
	Prepare func(dir string) error
	// Work changes files in dir through fsys and notes what it was told is done.
	Work func(fsys durable.FS, dir string)
	// Check looks at what the crash left in dir, as the next process will find it. It is called twice,
	// for the killed process and for the power cut.
	Check func(t *testing.T, dir string)
}

// EachStep runs cases from newCase until one finishes all its steps unbroken, in two series: in one the
// n-th step and all after it fail, since the machine is gone; in the other only the n-th fails, with
// EIO. It returns the number of steps that the work takes when nothing fails.
func EachStep(t *testing.T, newCase func() Case) int {
	t.Helper()
	steps := 0
	for _, mode := range []string{"cut", "EIO"} {
		for n := 1; ; n++ {
			var last string
			finished := false
			t.Run(fmt.Sprintf("%s at step %d", mode, n), func(t *testing.T) {
				c := newCase()
				dir := t.TempDir()
				if c.Prepare != nil {
					if err := c.Prepare(dir); err != nil {
						t.Fatal(err)
					}
				}
				disk := NewDisk(t, dir)
				var mu sync.Mutex
				count := 0
				disk.Fault = func(op durable.Op, path string) error {
					mu.Lock()
					defer mu.Unlock()
					count++
					switch {
					case count == n:
						last = fmt.Sprintf("%s %s", op, filepath.Base(path))
					case count < n || mode == "EIO":
						return nil
					}
					if mode == "EIO" {
						return &os.PathError{Op: string(op), Path: path, Err: syscall.EIO}
					}
					return ErrCut
				}
				c.Work(disk.FS(), dir)
				finished = count < n
				steps = n - 1
				t.Logf("broken at: %s", last)
				after := filepath.Join(t.TempDir(), "disk")
				disk.PowerCut(after)
				t.Run("killed", func(t *testing.T) { c.Check(t, dir) })
				t.Run("power cut", func(t *testing.T) { c.Check(t, after) })
			})
			if finished || t.Failed() {
				break
			}
		}
	}
	return steps
}

// NoSync returns a file system that does everything but wait for the disk, for tests about something
// else.
func NoSync() durable.FS { return durable.FS{Hook: noSync} }

func noSync(op durable.Op, _ string, do func() error) error {
	switch op {
	case durable.OpSync, durable.OpSyncDir, durable.OpSyncTree:
		return nil
	default:
		return do()
	}
}

// Disk watches the changes below one directory and knows which of them are durable. It does not sync:
// the machine under the test is in no danger.
type Disk struct {
	// Fault, if set, is asked before each step; its error becomes the step's, and the step is not
	// taken.
	Fault func(op durable.Op, path string) error

	tb    testing.TB
	root  uint64
	mu    sync.Mutex
	files map[uint64][]byte              // inode -> durable content
	dirs  map[uint64]map[string]nameInfo // inode -> durable names
	held  []*os.File                     // keeps inode numbers from being used again
}

type nameInfo struct {
	inode uint64
	dir   bool
	mode  os.FileMode
}

// NewDisk returns a Disk for everything below dir. What is there already is taken as durable.
func NewDisk(tb testing.TB, dir string) *Disk {
	tb.Helper()
	d := &Disk{tb: tb, files: map[uint64][]byte{}, dirs: map[uint64]map[string]nameInfo{}}
	tb.Cleanup(func() {
		for _, f := range d.held {
			_ = f.Close()
		}
	})
	d.root = d.inode(dir)
	d.snapshot(dir, d.files, d.dirs)
	d.check(filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		d.hold(path)
		return err
	}))
	return d
}

// FS returns the file system that the code under test gets.
func (d *Disk) FS() durable.FS { return durable.FS{Hook: d.step} }

func (d *Disk) step(op durable.Op, path string, do func() error) error {
	d.mu.Lock()
	fault := d.Fault
	d.mu.Unlock()
	if fault != nil {
		if err := fault(op, path); err != nil {
			return err
		}
	}
	// What counts is the state when the sync begins: later changes may have missed it.
	files, dirs := map[uint64][]byte{}, map[uint64]map[string]nameInfo{}
	switch op {
	case durable.OpSync:
		files[d.inode(path)] = d.content(path)
	case durable.OpSyncDir:
		dirs[d.inode(path)] = d.names(path)
	case durable.OpSyncTree:
		d.snapshot(path, files, dirs)
	}
	if err := noSync(op, path, do); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(d.files, files)
	maps.Copy(d.dirs, dirs)
	if op == durable.OpCreate || op == durable.OpMkdir {
		d.hold(path)
	}
	return nil
}

func (d *Disk) snapshot(root string, files map[uint64][]byte, dirs map[uint64]map[string]nameInfo) {
	d.check(filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			dirs[d.inode(path)] = d.names(path)
		default:
			files[d.inode(path)] = d.content(path)
		}
		return nil
	}))
}

// PowerCut makes the directory dst as the watched one would be after a power cut now. A file that has a
// durable name and was never synced is empty.
func (d *Disk) PowerCut(dst string) {
	d.tb.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restore(d.root, dst)
}

func (d *Disk) restore(dir uint64, dst string) {
	d.check(os.Mkdir(dst, 0o700))
	for name, info := range d.dirs[dir] {
		path := filepath.Join(dst, name)
		if info.dir {
			d.restore(info.inode, path)
			continue
		}
		d.check(os.WriteFile(path, d.files[info.inode], 0o600))
		d.check(os.Chmod(path, info.mode))
	}
}

func (d *Disk) names(path string) map[string]nameInfo {
	entries, err := os.ReadDir(path)
	d.check(err)
	names := make(map[string]nameInfo, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		d.check(err)
		names[e.Name()] = nameInfo{info.Sys().(*syscall.Stat_t).Ino, e.IsDir(), info.Mode().Perm()}
	}
	return names
}

func (d *Disk) content(path string) []byte {
	data, err := os.ReadFile(path)
	d.check(err)
	return data
}

func (d *Disk) inode(path string) uint64 {
	info, err := os.Stat(path)
	d.check(err)
	return info.Sys().(*syscall.Stat_t).Ino
}

func (d *Disk) hold(path string) {
	f, err := os.Open(path)
	d.check(err)
	d.held = append(d.held, f)
}

func (d *Disk) check(err error) {
	d.tb.Helper()
	if err != nil {
		d.tb.Error(err)
	}
}
