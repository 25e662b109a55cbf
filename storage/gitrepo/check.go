package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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

// CopyTo makes to a copy of the repository as it is now, which an earlier copy at that place makes shorter. Nothing is synced.
// Pushes go on meanwhile; of one that moves its refs while the copy is made the copy has all or nothing. Bytes is called
// with what was written.
func (r *Repository) CopyTo(ctx context.Context, fsys durable.FS, to string, bytes func(n int)) error {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	if err := r.mustExist(); err != nil {
		return err
	}
	defer r.store.share(r)() // a repack takes packs away
	c := copying{ctx: ctx, fsys: fsys, from: r.path, to: to, bytes: bytes}
	if err := c.run(); err != nil {
		return fmt.Errorf("copy the repository of %s: %w", r.name, err)
	}
	return nil
}

// copying is the work of CopyTo. The refs are read before the objects, so that each object that they reach is there; and
// written behind them, so that a copy that was broken off has no ref to nothing.
type copying struct {
	ctx      context.Context
	fsys     durable.FS
	from, to string
	bytes    func(n int)
	made     map[string]bool // directories
}

func (c *copying) makeDir(path string) error {
	if c.made[path] {
		return nil
	}
	if err := c.fsys.MkdirAll(path, 0o750); err != nil {
		return err
	}
	if c.made == nil {
		c.made = map[string]bool{}
	}
	c.made[path] = true
	return nil
}

func (c *copying) run() error {
	refs, err := c.readRefs()
	if err != nil {
		return err
	}
	if err := c.makeDir(c.to); err != nil {
		return err
	}
	if err := c.objects(); err != nil {
		return err
	}
	// Refs that are gone must not come back.
	if err := c.fsys.RemoveAll(filepath.Join(c.to, "refs")); err != nil {
		return err
	}
	if err := c.fsys.RemoveAll(filepath.Join(c.to, "packed-refs")); err != nil {
		return err
	}
	clear(c.made)
	for _, dir := range []string{"refs", "refs/heads", "refs/tags"} {
		if err := c.makeDir(filepath.Join(c.to, dir)); err != nil {
			return err
		}
	}
	for name, content := range refs {
		if err := c.write(name, strings.NewReader(content), 0o640); err != nil {
			return err
		}
	}
	return c.write("config", strings.NewReader(repositoryConfig), 0o640)
}

// readRefs are the files that hold refs, by their names. The loose ones come first: git writes packed-refs before
// it removes a loose ref, so that one that moves there meanwhile is seen.
func (c *copying) readRefs() (map[string]string, error) {
	refs := map[string]string{}
	read := func(name string) error {
		content, err := os.ReadFile(filepath.Join(c.from, name))
		if err == nil {
			refs[name] = string(content)
		}
		if errors.Is(err, fs.ErrNotExist) && name != "HEAD" {
			return nil // removed just now, or never there
		}
		return err
	}
	err := c.walk("refs", func(name string, _ fs.DirEntry) error {
		if strings.HasSuffix(name, ".lock") {
			return nil
		}
		return read(name)
	})
	if err == nil {
		err = read("packed-refs")
	}
	if err == nil {
		err = read("HEAD")
	}
	return refs, err
}

// walk calls fn for each regular file below a directory of the repository.
func (c *copying) walk(dir string, fn func(name string, e fs.DirEntry) error) error {
	return filepath.WalkDir(filepath.Join(c.from, dir), func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = c.ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(c.from, path)
		if err != nil {
			return err
		}
		return fn(name, e)
	})
}

func (c *copying) objects() error {
	wanted := map[string]bool{}
	err := c.walk("objects", func(name string, e fs.DirEntry) error {
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
		if there, err := os.Stat(filepath.Join(c.to, name)); err == nil && there.Size() == info.Size() {
			return nil
		}
		in, err := os.Open(filepath.Join(c.from, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer in.Close()
		return c.write(name, in, 0o440)
	})
	if err != nil {
		return err
	}
	for _, dir := range []string{"objects", "objects/pack", "objects/info"} {
		if err := c.makeDir(filepath.Join(c.to, dir)); err != nil {
			return err
		}
	}
	packs, err := os.ReadDir(filepath.Join(c.to, "objects/pack"))
	if err != nil {
		return err
	}
	for _, e := range packs {
		if name := "objects/pack/" + e.Name(); !wanted[name] {
			if err := c.fsys.Remove(filepath.Join(c.to, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// write makes a file of the copy appear with all of its content.
func (c *copying) write(name string, in io.Reader, perm fs.FileMode) error {
	path := filepath.Join(c.to, name)
	if err := c.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	out, err := c.fsys.CreateTemp(filepath.Dir(path), perm)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	err = errors.Join(err, out.Close())
	if err == nil {
		err = c.fsys.RenameUnsynced(out.Name(), path)
	}
	if err != nil {
		return errors.Join(err, c.fsys.Remove(out.Name()))
	}
	c.bytes(int(n))
	return nil
}
