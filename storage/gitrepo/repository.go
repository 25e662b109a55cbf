package gitrepo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// Repository is the repository of one model, whether or not it exists. It is safe for concurrent use.
type Repository struct {
	store *Store
	name  registry.ModelName
	path  string
}

// Repository returns the repository of a model.
func (s *Store) Repository(name registry.ModelName) *Repository {
	return &Repository{store: s, name: name, path: s.path(name)}
}

// path cannot lead out of the directory, nor to what the store keeps beside the repositories: no part of a
// model's name begins with a dot or holds a separator.
func (s *Store) path(name registry.ModelName) string {
	return filepath.Join(s.dir, name.Namespace(), name.Name()+".git")
}

// Name is the model's name.
func (r *Repository) Name() registry.ModelName { return r.name }

// Exists reports whether there is such a repository.
func (r *Repository) Exists() (bool, error) {
	_, err := os.Stat(filepath.Join(r.path, "HEAD"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (r *Repository) mustExist() error {
	ok, err := r.Exists()
	if err == nil && !ok {
		err = fmt.Errorf("repository of %s: %w", r.name, registry.ErrNotFound)
	}
	return err
}

// The configuration in each repository, for a git that an operator runs there by hand: it must not pack or
// prune beside the server.
const repositoryConfig = `[core]
	repositoryformatversion = 0
	filemode = true
	bare = true
[gc]
	auto = 0
[maintenance]
	auto = false
`

// newHead is the file HEAD of a new repository.
const newHead = "ref: refs/heads/main\n"

// initRepository makes an empty bare repository at dir, which must not exist. It is durable but for its own name.
// Source: gitrepository-layout(5).
func initRepository(fsys durable.FS, dir string) error {
	for _, d := range []string{"", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"} {
		if err := fsys.Mkdir(filepath.Join(dir, d), 0o750); err != nil {
			return err
		}
	}
	if err := fsys.WriteFile(filepath.Join(dir, "config"), []byte(repositoryConfig), 0o640); err != nil {
		return err
	}
	if err := fsys.WriteFile(filepath.Join(dir, "HEAD"), []byte(newHead), 0o640); err != nil {
		return err
	}
	for _, d := range []string{"objects", "refs", ""} {
		if err := fsys.SyncDir(filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	return nil
}

// Create makes the repository of a model, whose HEAD is the branch main, unless it exists. When it returns, the
// repository is durable. A crash leaves all of it or nothing.
func (s *Store) Create(ctx context.Context, name registry.ModelName) (*Repository, error) {
	_, done, err := s.begin(ctx, draining)
	if err != nil {
		return nil, err
	}
	defer done()
	s.names.Lock()
	defer s.names.Unlock()
	r := s.Repository(name)
	if _, durable := s.made[r.path]; durable {
		if ok, err := r.Exists(); err != nil || ok {
			return r, err
		}
	}
	if err := s.create(r); err != nil {
		return nil, fmt.Errorf("create the repository of %s: %w", name, err)
	}
	s.made[r.path] = struct{}{}
	return r, nil
}

func (s *Store) create(r *Repository) error {
	namespace := filepath.Dir(r.path)
	if ok, err := r.Exists(); err != nil {
		return err
	} else if ok {
		// A crash may have come before the syncs that make the name durable.
		return errors.Join(s.fsys.SyncDir(namespace), s.fsys.SyncDir(s.dir))
	}
	temp := filepath.Join(s.dir, durable.TempName())
	err := initRepository(s.fsys, temp)
	if err == nil {
		err = s.fsys.MkdirAll(namespace, 0o750)
	}
	if err == nil {
		err = s.fsys.Rename(temp, r.path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return nil
}

// Remove removes the repository of a model, if there is one. Pushes to it that run fail.
func (s *Store) Remove(ctx context.Context, name registry.ModelName) error {
	_, done, err := s.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	s.names.Lock()
	defer s.names.Unlock()
	if err := s.remove(s.Repository(name)); err != nil {
		return fmt.Errorf("remove the repository of %s: %w", name, err)
	}
	return nil
}

// RemoveUnused removes the repository of a model if it has no refs and no objects and nobody pushes to it, as a first push
// that was refused leaves it. The next Create makes it again.
func (s *Store) RemoveUnused(ctx context.Context, name registry.ModelName) error {
	ctx, done, err := s.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	r := s.Repository(name)
	lock := s.writerLock(r)
	if !lock.TryLock() {
		return nil
	}
	defer lock.Unlock()
	s.names.Lock()
	defer s.names.Unlock()
	if s.pushing[r.path] > 0 {
		return nil
	}
	// Somebody may have made a model of it meanwhile and chosen its branch.
	if head, err := os.ReadFile(filepath.Join(r.path, "HEAD")); err != nil || string(head) != newHead {
		return nil
	}
	refs, err := r.Refs(ctx)
	if err == nil && len(refs) == 0 {
		var stored []string
		if stored, err = storedIn(filepath.Join(r.path, "objects")); err == nil && len(stored) == 0 {
			err = s.remove(r)
		}
	}
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return fmt.Errorf("remove the unused repository of %s: %w", name, err)
	}
	return nil
}

// beginPush notes that somebody pushes to a repository, which is there, until end is called.
func (s *Store) beginPush(r *Repository) (end func(), err error) {
	s.names.Lock()
	defer s.names.Unlock()
	if err := r.mustExist(); err != nil {
		return nil, err
	}
	s.pushing[r.path]++
	return func() {
		s.names.Lock()
		defer s.names.Unlock()
		if s.pushing[r.path]--; s.pushing[r.path] == 0 {
			delete(s.pushing, r.path)
		}
	}, nil
}

// SetAside moves the repository of a model out of the way, durably, and returns where it is now; nowhere when there is none.
func (s *Store) SetAside(ctx context.Context, name registry.ModelName) (to string, err error) {
	_, done, err := s.begin(ctx, draining)
	if err != nil {
		return "", err
	}
	defer done()
	s.names.Lock()
	defer s.names.Unlock()
	r := s.Repository(name)
	delete(s.made, r.path)
	s.readers.drop(r.path)
	s.snapshots.drop(r.path)
	s.answers.drop(r.path, nil)
	aside := filepath.Join(s.dir, asideDir)
	if err := s.fsys.MkdirAll(aside, 0o750); err != nil {
		return "", err
	}
	to = filepath.Join(aside, fmt.Sprintf("%s-%s.%d.git", name.Namespace(), name.Name(), time.Now().UnixNano()))
	err = s.fsys.Rename(r.path, to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("move the repository of %s aside: %w", name, err)
	}
	return to, nil
}

// removeRemains removes what git made again of a repository that was removed while it took a push: directories for
// objects, and no more.
func (s *Store) removeRemains(r *Repository) error {
	s.names.Lock()
	defer s.names.Unlock()
	for _, name := range []string{"HEAD", "config", "refs", "packed-refs"} {
		if _, err := os.Lstat(filepath.Join(r.path, name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.remove(r)
}

func (s *Store) remove(r *Repository) error {
	delete(s.made, r.path)
	s.readers.drop(r.path)
	s.snapshots.drop(r.path)
	s.answers.drop(r.path, nil)
	trash := filepath.Join(s.dir, trashDir)
	if err := s.fsys.MkdirAll(trash, 0o750); err != nil {
		return err
	}
	removed := filepath.Join(trash, durable.TempName())
	namespace := filepath.Dir(r.path)
	err := s.fsys.Rename(r.path, removed)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	err = os.RemoveAll(removed) // what stays here is removed by the next Open
	// The namespace goes with its last repository.
	if rmErr := s.fsys.Remove(namespace); rmErr == nil {
		err = errors.Join(err, s.fsys.SyncDir(s.dir))
	} else if !errors.Is(rmErr, syscall.ENOTEMPTY) && !errors.Is(rmErr, syscall.EEXIST) {
		err = errors.Join(err, rmErr)
	}
	return err
}

// List returns the models that have a repository, in order of their names.
func (s *Store) List(ctx context.Context) ([]registry.ModelName, error) {
	ctx, done, err := s.begin(ctx, draining)
	if err != nil {
		return nil, err
	}
	defer done()
	return s.list(ctx)
}

func (s *Store) list(ctx context.Context) ([]registry.ModelName, error) {
	namespaces, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []registry.ModelName
	for _, ns := range namespaces {
		if !ns.IsDir() || strings.HasPrefix(ns.Name(), ".") {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(filepath.Join(s.dir, ns.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed just now
			continue
		case err != nil:
			return nil, err
		}
		for _, e := range entries {
			base, ok := strings.CutSuffix(e.Name(), ".git")
			name, err := registry.ParseModelName(ns.Name() + "/" + base)
			if !ok || err != nil || !e.IsDir() {
				s.log.Warn("not a repository of a model", "path", filepath.Join(s.dir, ns.Name(), e.Name()))
				continue
			}
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b registry.ModelName) int { return strings.Compare(a.String(), b.String()) })
	return names, nil
}

const symbolicRef = "ref: refs/heads/"

// HEAD returns the default branch, which need not exist yet. It is empty when HEAD names no branch.
func (r *Repository) HEAD() (branch string, err error) {
	head, err := os.ReadFile(filepath.Join(r.path, "HEAD"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("repository of %s: %w", r.name, registry.ErrNotFound)
	case err != nil:
		return "", err
	}
	branch, ok := strings.CutPrefix(strings.TrimSuffix(string(head), "\n"), symbolicRef)
	if !ok {
		return "", nil
	}
	return branch, nil
}

// SetHEAD makes branch the default branch, durably. The branch need not exist.
func (r *Repository) SetHEAD(ctx context.Context, branch string) error {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	ref := registry.BranchRef(branch)
	if !registry.ValidRefName(ref) {
		return registry.Invalid("branch", "%.80q is not a name for a branch", branch)
	}
	if err := r.mustExist(); err != nil {
		return err
	}
	cmd := r.store.command(ctx, r.path, "symbolic-ref", "HEAD", ref)
	cmd.holdLock(r.store)
	if err := cmd.run(); err != nil {
		return fmt.Errorf("set the default branch of %s: %w", r.name, err)
	}
	// Git syncs neither the file nor the name of a symbolic ref.
	head, err := r.store.fsys.OpenFile(filepath.Join(r.path, "HEAD"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := closeAnd(head.Sync(), head); err != nil {
		return err
	}
	return r.store.fsys.SyncDir(r.path)
}

// SetRef makes ref point to id, whatever it pointed to, durably. No hook runs. That there is no such object is a
// [registry.ErrNotFound].
func (r *Repository) SetRef(ctx context.Context, ref string, id registry.ObjectID) error {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	if !registry.ValidRefName(ref) {
		return registry.Invalid("ref", "%.80q is not a name for a ref", ref)
	}
	what := fmt.Sprintf("object %s", id)
	_, err = read(ctx, r, what, func(s *reader) (plumbing.EncodedObject, error) {
		return s.EncodedObject(plumbing.AnyObject, plumbing.NewHash(string(id)))
	})
	if err != nil {
		return err
	}
	defer r.store.share(r)()
	// Killed half-way it would leave its lock. But it is short, and better done.
	life, cancel := r.store.untilKilled(context.WithoutCancel(ctx))
	defer cancel()
	cmd := r.store.command(life, r.path, "update-ref", "--no-deref", "--end-of-options", ref, string(id))
	cmd.holdLock(r.store)
	if err := cmd.run(); err != nil {
		return fmt.Errorf("set the ref %s of %s: %w", ref, r.name, err)
	}
	return r.Sync(life, []registry.RefUpdate{{Ref: ref, New: id}})
}

// Sync makes updates durable that git has made: the names of the refs and of new packs. Their contents git has
// synced itself.
func (r *Repository) Sync(ctx context.Context, updates []registry.RefUpdate) error {
	_, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	// Objects first: after a power cut in between, no ref may point to nothing.
	dirs := []string{"objects/pack", "objects"}
	seen := map[string]bool{}
	for _, u := range updates {
		// Also the odd ones that were made behind the server's back, such as refs/stash.
		if !strings.HasPrefix(u.Ref, "refs/") || !fs.ValidPath(u.Ref) {
			return fmt.Errorf("sync the ref %q of %s: it is no ref", u.Ref, r.name)
		}
		// Up to the repository itself, which holds packed-refs.
		for dir := path.Dir(u.Ref); !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		// With the last ref in it a directory goes too, and then its parent has to be synced.
		if err := r.store.fsys.SyncDir(filepath.Join(r.path, dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sync the repository of %s: %w", r.name, err)
		}
	}
	return r.mustExist()
}

// SyncAll makes everything durable that anybody wrote to the file system of the repositories: refs that were moved behind
// the server's back. It costs as much as there is to write, for all programs on that file system.
func (s *Store) SyncAll(ctx context.Context) error {
	_, done, err := s.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	if err := s.fsys.SyncTree(s.dir); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", s.dir, err)
	}
	return nil
}

// Signature returns a text that differs whenever a ref differs from what it was at the last call: it is made
// of the names, inodes, sizes and times of the files that hold refs. A copy of the repository has another one.
//
// Git replaces such a file by a new one that it made while the old one was there, so that one change is always
// visible in the inode, however coarse the times are.
func (r *Repository) Signature(ctx context.Context) (string, error) {
	sum := sha256.New()
	add := func(name string, info fs.FileInfo) {
		var inode uint64
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			inode = st.Ino
		}
		fmt.Fprintf(sum, "%q %d %d %d\n", name, inode, info.Size(), info.ModTime().UnixNano())
	}
	for _, name := range []string{"HEAD", "packed-refs"} {
		info, err := os.Stat(filepath.Join(r.path, name))
		switch {
		case err == nil:
			add(name, info)
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		case name == "HEAD":
			return "", fmt.Errorf("repository of %s: %w", r.name, registry.ErrNotFound)
		}
	}
	err := filepath.WalkDir(filepath.Join(r.path, "refs"), func(path string, e fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			info, err = e.Info()
		}
		switch {
		case err == nil:
			add(path, info)
		case errors.Is(err, fs.ErrNotExist): // removed just now, which its directory shows
			return nil
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("signature of the refs of %s: %w", r.name, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
