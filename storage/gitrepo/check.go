package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// maxProblems bounds what Check returns.
const maxProblems = 100

// Check reads all of the repository and returns what is wrong with it, in Git's words: objects that are damaged or
// missing, refs to nothing. Pushes go on meanwhile. The error is about the check itself.
// Source: git-fsck(1), "EXTRACTED DIAGNOSTICS".
func (r *Repository) Check(ctx context.Context) (problems []string, err error) {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := r.mustExist(); err != nil {
		return nil, err
	}
	defer r.store.share(r)() // a repack takes packs away
	cmd := r.store.command(ctx, r.path, "fsck", "--full", "--no-dangling", "--no-progress", "--no-reflogs")
	cmd.stderr.most = 64 << 10
	out := clipped{most: 64 << 10}
	cmd.Stdout = &out
	err = cmd.run()
	for line := range strings.Lines(out.buf.String() + cmd.stderr.buf.String()) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "notice:") || strings.HasPrefix(line, "warning") {
			continue
		}
		if problems = append(problems, line); len(problems) == maxProblems {
			break
		}
	}
	switch {
	case exitCode(err) > 0 && ctx.Err() == nil:
		if len(problems) == 0 {
			problems = []string{err.Error()}
		}
		return problems, nil
	case err != nil:
		return nil, fmt.Errorf("check the repository of %s: %w", r.name, err)
	}
	return nil, nil
}

// DiskUsage is the size of all files of the repository, in bytes; 0 when there is none.
func (r *Repository) DiskUsage(ctx context.Context) (int64, error) {
	var bytes int64
	err := filepath.WalkDir(r.path, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil && e.Type().IsRegular() {
			if info, err = e.Info(); err == nil {
				bytes += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("size of the repository of %s: %w", r.name, err)
	}
	return bytes, nil
}

// Copy is where and how CopyTo copies.
type Copy struct {
	// To becomes the copy. An earlier copy that is there makes it shorter.
	To string
	// FS changes the disk. Nothing is synced.
	FS durable.FS
	// Trust reports whether a file of objects that is there from an earlier copy, with the right name and size, has the right
	// content. By default each has.
	Trust func(fs.FileInfo) bool
	// Object is called with the path of each file of objects that was written. Its owner may write to it, what git
	// forbids for its own.
	Object func(path string)
	// Bytes is called with what was written.
	Bytes func(n int)
}

// CopyTo makes a copy of the repository as it is now. Pushes go on meanwhile; of a push that moves its refs while the copy
// is made the copy has all or nothing, if the push is atomic. A repository that is removed before all of it was read, also
// when another one takes its place, is a [registry.ErrNotFound]; then nothing is removed from an earlier copy.
func (r *Repository) CopyTo(ctx context.Context, to Copy) error {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	if err := r.mustExist(); err != nil {
		return err
	}
	if to.Trust == nil {
		to.Trust = func(fs.FileInfo) bool { return true }
	}
	if to.Object == nil {
		to.Object = func(string) {}
	}
	if to.Bytes == nil {
		to.Bytes = func(int) {}
	}
	c := copying{Copy: to, ctx: ctx, repo: r}
	err = c.run()
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(r.mustExist(), err)
	}
	if err != nil {
		return fmt.Errorf("copy the repository of %s: %w", r.name, err)
	}
	return nil
}

// copying is the work of CopyTo. The refs are read before the objects, so that each object that they reach is there; and
// written behind them, so that a copy that was broken off has no ref to nothing.
type copying struct {
	Copy
	ctx  context.Context
	repo *Repository
	made map[string]bool // directories
}

func (c *copying) makeDir(path string) error {
	if c.made[path] {
		return nil
	}
	if err := c.FS.MkdirAll(path, 0o750); err != nil {
		return err
	}
	if c.made == nil {
		c.made = map[string]bool{}
	}
	c.made[path] = true
	return nil
}

func (c *copying) run() error {
	// While it is open no other directory is the same file.
	dir, err := os.Open(c.repo.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	refs, err := c.steadyRefs()
	if err != nil {
		return err
	}
	defer c.repo.store.share(c.repo)() // a repack takes packs away
	if err := c.makeDir(c.To); err != nil {
		return err
	}
	wanted, err := c.objects()
	if err != nil {
		return err
	}
	// From here on nothing is read, and what the copy should not have any more is removed from it.
	if err := c.stayed(dir); err != nil {
		return err
	}
	if err := c.dropPacks(wanted); err != nil {
		return err
	}
	// Refs that are gone must not come back.
	if err := c.FS.RemoveAll(filepath.Join(c.To, "refs")); err != nil {
		return err
	}
	if err := c.FS.RemoveAll(filepath.Join(c.To, "packed-refs")); err != nil {
		return err
	}
	clear(c.made)
	for _, dir := range []string{"refs", "refs/heads", "refs/tags"} {
		if err := c.makeDir(filepath.Join(c.To, dir)); err != nil {
			return err
		}
	}
	for name, file := range refs {
		if err := c.write(name, strings.NewReader(file.content)); err != nil {
			return err
		}
	}
	return c.write("config", strings.NewReader(repositoryConfig))
}

// stayed returns an error unless the directory of the repository is still the one that was opened. A file that is absent
// while a repository is removed looks as if it had never been there.
func (c *copying) stayed(dir *os.File) error {
	opened, err := dir.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(c.repo.path)
	if err == nil && !os.SameFile(opened, now) {
		err = fmt.Errorf("another repository took its place: %w", registry.ErrNotFound)
	}
	return err
}

// How often, and with which waits in between, steadyRefs tries to read the refs beside those who write them: for some three
// seconds.
const (
	refTries    = 20
	minRefsWait = 5 * time.Millisecond
	maxRefsWait = 200 * time.Millisecond
)

// refFile is a file that holds refs.
type refFile struct {
	stamp   fileStamp
	content string
}

// steadyRefs are the files that hold refs, by their names, at one moment at which no transaction of git has moved some of
// its refs and others not yet.
//
// When two readings agree, the files were at the moment in between what they say. A transaction that was half-way at that
// moment has at least the lock of the ref that it moves last, from before the moment on until it moves that ref, and so the
// second reading has met the lock.
// Source: git, refs/files-backend.c, files_transaction_prepare() and files_transaction_finish().
//
// A lock that stays was left by a git that was killed, or there is always a push. In the end nobody else may write to the
// repository for a moment; what locks are there then belong to nobody.
func (c *copying) steadyRefs() (map[string]refFile, error) {
	wait := minRefsWait
	for range refTries {
		first, _, err := c.readRefs()
		if err != nil {
			return nil, err
		}
		second, locked, err := c.readRefs()
		if err != nil {
			return nil, err
		}
		if !locked && maps.Equal(first, second) {
			return second, nil
		}
		select {
		case <-c.ctx.Done():
			return nil, context.Cause(c.ctx)
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRefsWait)
	}
	lock := c.repo.store.writerLock(c.repo)
	lock.Lock()
	defer lock.Unlock()
	refs, _, err := c.readRefs()
	return refs, err
}

// readRefs reads the files that hold refs, and reports whether git locks one of them. The loose ones come first: git writes
// packed-refs before it removes a loose ref, so that one that moves there meanwhile is seen.
func (c *copying) readRefs() (refs map[string]refFile, locked bool, err error) {
	refs = map[string]refFile{}
	read := func(name string) error {
		path := filepath.Join(c.repo.path, name)
		stamp, err := c.repo.store.snapshots.lstat(path)
		var content []byte
		if err == nil {
			content, err = os.ReadFile(path)
		}
		if err == nil {
			refs[name] = refFile{stamp, string(content)}
		}
		if errors.Is(err, fs.ErrNotExist) && name != "HEAD" {
			return nil // removed just now, or never there
		}
		return err
	}
	err = c.walk("refs", func(name string, _ fs.DirEntry) error {
		if strings.HasSuffix(name, ".lock") {
			locked = true
			return nil
		}
		return read(name)
	})
	if err == nil {
		err = read("packed-refs")
	}
	if err == nil {
		_, lockErr := os.Lstat(filepath.Join(c.repo.path, "packed-refs.lock"))
		locked = locked || lockErr == nil
		err = read("HEAD")
	}
	return refs, locked, err
}

// walk calls fn for each regular file below a directory of the repository.
func (c *copying) walk(dir string, fn func(name string, e fs.DirEntry) error) error {
	return filepath.WalkDir(filepath.Join(c.repo.path, dir), func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = c.ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(c.repo.path, path)
		if err != nil {
			return err
		}
		return fn(name, e)
	})
}

// objects copies the files of objects and returns their names.
func (c *copying) objects() (wanted map[string]bool, err error) {
	wanted = map[string]bool{}
	err = c.walk("objects", func(name string, e fs.DirEntry) error {
		base := filepath.Base(name)
		if strings.HasPrefix(base, "tmp_") || strings.Contains(name, "/tmp_objdir-") || strings.HasSuffix(base, ".lock") {
			return nil // of a push that runs
		}
		if strings.HasPrefix(base, "multi-pack-index") || strings.HasPrefix(name, "objects/info/") {
			return nil // made from the others, and the only ones that change
		}
		wanted[name] = true
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		// Git never changes a file of objects.
		if there, err := os.Stat(filepath.Join(c.To, name)); err == nil && there.Size() == info.Size() && c.Trust(there) {
			return nil
		}
		in, err := os.Open(filepath.Join(c.repo.path, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer in.Close()
		if err := c.write(name, in); err != nil {
			return err
		}
		c.Object(filepath.Join(c.To, name))
		return nil
	})
	return wanted, err
}

// dropPacks removes the packs that are not wanted.
func (c *copying) dropPacks(wanted map[string]bool) error {
	for _, dir := range []string{"objects", "objects/pack", "objects/info"} {
		if err := c.makeDir(filepath.Join(c.To, dir)); err != nil {
			return err
		}
	}
	packs, err := os.ReadDir(filepath.Join(c.To, "objects/pack"))
	if err != nil {
		return err
	}
	for _, e := range packs {
		if name := "objects/pack/" + e.Name(); !wanted[name] {
			if err := c.FS.Remove(filepath.Join(c.To, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// write makes a file of the copy appear with all of its content.
func (c *copying) write(name string, in io.Reader) error {
	path := filepath.Join(c.To, name)
	if err := c.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	out, err := c.FS.CreateTemp(filepath.Dir(path), 0o640)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	err = errors.Join(err, out.Close())
	if err == nil {
		err = c.FS.RenameUnsynced(out.Name(), path)
	}
	if err != nil {
		return errors.Join(err, c.FS.Remove(out.Name()))
	}
	c.Bytes(int(n))
	return nil
}
