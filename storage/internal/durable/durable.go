// Package durable changes files so that the change survives a power cut.
//
// When a method of [FS] that says so returns nil, the bytes and the name that leads to them are on the
// disk. A rename is synced with the directory that holds the name, a new directory with its parent. A
// failed sync is an error of that one item and is never tried again on the same descriptor: after it
// the kernel may hold pages marked clean that the disk does not have, and a second sync would call that
// a success.
//
// Paths are the caller's: nothing here checks where they lead.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Op names a step that changes what is on the disk.
type Op string

// The steps that go through [FS].Hook.
const (
	OpCreate   Op = "create"
	OpWrite    Op = "write"
	OpTruncate Op = "truncate"
	OpSync     Op = "sync"
	OpSyncDir  Op = "syncdir"
	OpSyncTree Op = "synctree"
	OpChmod    Op = "chmod"
	OpMkdir    Op = "mkdir"
	OpRename   Op = "rename"
	OpRemove   Op = "remove"
)

// FS takes the steps that change the disk. The zero value is the real thing.
type FS struct {
	// Hook, if set, is called in place of every step. It calls do to take the step, or returns an error
	// without. It exists so that tests can break each step and see what a power cut there leaves; see
	// durabletest. For a rename, path is the new name.
	Hook func(op Op, path string, do func() error) error
}

func (fsys FS) step(op Op, path string, do func() error) error {
	if fsys.Hook == nil {
		return do()
	}
	return fsys.Hook(op, path, do)
}

// SyncDir makes the names in the directory path durable: created, renamed and removed ones.
func (fsys FS) SyncDir(path string) error {
	return fsys.step(OpSyncDir, path, func() error {
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(dir.Sync(), dir.Close())
	})
}

// SyncTree makes everything below the directory path durable, names and contents. It may sync more than
// that, and so take long on a busy disk: on Linux it is one syncfs.
func (fsys FS) SyncTree(path string) error {
	return fsys.step(OpSyncTree, path, func() error { return syncTree(path) })
}

// Mkdir makes one directory. The name is durable once its parent is synced.
func (fsys FS) Mkdir(path string, perm fs.FileMode) error {
	return fsys.step(OpMkdir, path, func() error { return os.Mkdir(path, perm) })
}

// MkdirAll makes the directory path and the parents it lacks, all durable.
//
// Each directory is synced into its parent before the next one is made in it. So a crash leaves at most
// the deepest one unsynced, and that is the one which the next call finds there and syncs first.
func (fsys FS) MkdirAll(path string, perm fs.FileMode) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	parent := filepath.Dir(path)
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("is not a directory")}
		}
		// A parent that we may not even read is one in which we made nothing.
		if err := fsys.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := fsys.MkdirAll(parent, perm); err != nil {
		return err
	}
	if err := fsys.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

// Rename moves oldpath to newpath, replacing a file there, and makes that durable. When it fails in the
// sync, the new name is in place but a power cut may still undo it.
func (fsys FS) Rename(oldpath, newpath string) error {
	if err := fsys.RenameUnsynced(oldpath, newpath); err != nil {
		return err
	}
	if err := fsys.SyncDir(filepath.Dir(newpath)); err != nil {
		return err
	}
	if filepath.Dir(oldpath) == filepath.Dir(newpath) {
		return nil
	}
	return fsys.SyncDir(filepath.Dir(oldpath))
}

// RenameUnsynced is the first half of [FS.Rename], for callers that share the syncs of a directory.
func (fsys FS) RenameUnsynced(oldpath, newpath string) error {
	return fsys.step(OpRename, newpath, func() error { return os.Rename(oldpath, newpath) })
}

// Remove removes a file or an empty directory. It is durable once the directory is synced.
func (fsys FS) Remove(path string) error {
	return fsys.step(OpRemove, path, func() error { return os.Remove(path) })
}

// RemoveAll removes a file or a whole directory, if it is there, in no particular order.
func (fsys FS) RemoveAll(path string) error {
	return fsys.step(OpRemove, path, func() error { return os.RemoveAll(path) })
}

// WriteFile makes data the content of the file path, at once and durably: a crash at any step leaves
// the old content or the new, and perhaps a temporary file for [FS.RemoveTemps]. When it fails in the
// last step, the sync of the directory, the new content is in place but a power cut may still undo it.
func (fsys FS) WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := fsys.CreateTemp(filepath.Dir(path), perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = fsys.RenameUnsynced(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(f.Name()))
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// tempPrefix starts the name of everything that is not finished.
const tempPrefix = ".herdbook-tmp-"

// TempName returns a new name for an unfinished file or directory.
func TempName() string { return tempPrefix + rand.Text() }

// IsTemp reports whether a name is that of something unfinished.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// CreateTemp creates an unfinished file in dir. Its mode is perm less the umask also when that forbids
// writing: only the file returned here can write to it.
func (fsys FS) CreateTemp(dir string, perm fs.FileMode) (*File, error) {
	return fsys.OpenFile(filepath.Join(dir, TempName()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
}

// RemoveTemps removes the unfinished files and directories directly in dir that a crash left there.
// Nobody else may be making any at that time.
func (fsys FS) RemoveTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !IsTemp(e.Name()) {
			continue
		}
		if err := fsys.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// File is a file open for writing. It is not safe for concurrent use.
type File struct {
	fsys   FS
	f      *os.File
	failed error // of a sync: the descriptor can promise nothing any more
}

// OpenFile opens a file as [os.OpenFile] does.
func (fsys FS) OpenFile(path string, flag int, perm fs.FileMode) (*File, error) {
	file := &File{fsys: fsys}
	open := func() (err error) {
		file.f, err = os.OpenFile(path, flag, perm)
		return err
	}
	var err error
	if flag&os.O_CREATE != 0 {
		err = fsys.step(OpCreate, path, open)
	} else {
		err = open()
	}
	if err != nil {
		return nil, err
	}
	return file, nil
}

// Name returns the path that the file was opened with.
func (f *File) Name() string { return f.f.Name() }

// OS returns the open file itself, to read from it or to ask the system about it. Changes do not go
// this way.
func (f *File) OS() *os.File { return f.f }

func (f *File) Write(p []byte) (n int, err error) {
	err = f.step(OpWrite, func() (err error) {
		n, err = f.f.Write(p)
		return err
	})
	return n, err
}

// WriteAt writes p at offset off.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.step(OpWrite, func() (err error) {
		n, err = f.f.WriteAt(p, off)
		return err
	})
	return n, err
}

// Truncate makes the file size bytes long.
func (f *File) Truncate(size int64) error {
	return f.step(OpTruncate, func() error { return f.f.Truncate(size) })
}

// Chmod sets the mode, whatever the umask.
func (f *File) Chmod(mode fs.FileMode) error {
	return f.step(OpChmod, func() error { return f.f.Chmod(mode) })
}

// StartWriteback asks the system to begin writing the n bytes at off to the disk, so that a later Sync
// finds less to do. It promises nothing: a failure to write is the error of that Sync.
func (f *File) StartWriteback(off, n int64) { startWriteback(f.f, off, n) }

// Sync makes the content durable. After an error every further change of this file is refused.
func (f *File) Sync() error { return f.sync(f.f.Sync) }

func (f *File) sync(do func() error) error {
	err := f.step(OpSync, do)
	if err != nil && f.failed == nil {
		f.failed = err
	}
	return err
}

// SyncData is [File.Sync] without what nobody needs to read the content, such as the time of the last change. Where
// neither the length nor the place of the content changed, it saves the file system a commit of its own journal.
// Source: fdatasync(2).
func (f *File) SyncData() error { return f.sync(func() error { return syncData(f.f) }) }

// Close closes the file. What was not synced may not be durable.
func (f *File) Close() error { return f.f.Close() }

func (f *File) step(op Op, do func() error) error {
	if f.failed != nil {
		return fmt.Errorf("%s %s after a failed sync: %w", op, f.Name(), f.failed)
	}
	return f.fsys.step(op, f.Name(), do)
}
