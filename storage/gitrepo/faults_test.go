package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

func outside(t *testing.T) func(*gitrepo.Config) {
	return func(c *gitrepo.Config) { c.RunDir = filepath.Join(t.TempDir(), "run") }
}

// eachStep breaks each step that work takes on a store with one repository, whose HEAD is the branch main.
func eachStep(t *testing.T, work func(ctx context.Context, s *gitrepo.Store) error, check func(t *testing.T, s *gitrepo.Store, acknowledged bool)) {
	t.Helper()
	prepared := filepath.Join(t.TempDir(), "repos")
	s := openStore(t, prepared, outside(t))
	must(s.Create(t.Context(), fraud))
	must(s.Create(t.Context(), registry.MustModelName(fraud.Namespace()+"/beside"))) // or the namespace goes too, which is a sync more
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	steps := durabletest.EachStep(t, func() durabletest.Case {
		acknowledged := false
		return durabletest.Case{
			Prepare: func(dir string) error { return os.CopyFS(dir, os.DirFS(prepared)) },
			Work: func(fsys durable.FS, dir string) {
				s := openStore(t, dir, outside(t))
				s.SetFS(fsys)
				acknowledged = work(t.Context(), s) == nil
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			},
			Check: func(t *testing.T, dir string) {
				s := openStore(t, dir, outside(t))
				check(t, s, acknowledged)
				if r, err := s.Create(t.Context(), fraud); err != nil {
					t.Errorf("Create after the crash = %v", err)
				} else if _, err := r.HEAD(); err != nil {
					t.Errorf("HEAD after the crash: %v", err)
				}
				noLeftovers(t, dir)
			},
		}
	})
	if steps < 2 {
		t.Errorf("the work takes %d steps, want some to break", steps)
	}
}

// A crash at any step of Remove leaves all of the repository or nothing, and one that is removed does not come back.
func TestRemoveIsAtomicAndDurable(t *testing.T) {
	eachStep(t, func(ctx context.Context, s *gitrepo.Store) error { return s.Remove(ctx, fraud) }, func(t *testing.T, s *gitrepo.Store, acknowledged bool) {
		r := s.Repository(fraud)
		switch ok, err := r.Exists(); {
		case err != nil, ok && acknowledged:
			t.Errorf("after the crash: Exists = %v, %v, acknowledged = %v", ok, err, acknowledged)
		case ok:
			if branch, err := r.HEAD(); branch != "main" || err != nil {
				t.Errorf("HEAD = %q, %v, want main: all of it or nothing", branch, err)
			}
		}
	})
}

// A repository that is set aside is in one of the two places, whole.
func TestSetAsideIsAtomicAndDurable(t *testing.T) {
	eachStep(t, func(ctx context.Context, s *gitrepo.Store) error { _, err := s.SetAside(ctx, fraud); return err }, func(t *testing.T, s *gitrepo.Store, acknowledged bool) {
		here, err := s.Repository(fraud).Exists()
		aside, _ := filepath.Glob(filepath.Join(s.Dir(), ".aside", "*", "HEAD"))
		if err != nil || here && acknowledged || !here && len(aside) != 1 {
			t.Errorf("after the crash the repository is in its place: %v (%v), and set aside: %q; acknowledged = %v", here, err, aside, acknowledged)
		}
		for _, path := range aside {
			if head, err := os.ReadFile(path); string(head) != "ref: refs/heads/main\n" {
				t.Errorf("HEAD of what was set aside is %q, %v", head, err)
			}
		}
	})
}

// A step of SetHEAD that fails is told, and what was acknowledged stays.
func TestSetHEADIsDurable(t *testing.T) {
	eachStep(t, func(ctx context.Context, s *gitrepo.Store) error { return s.Repository(fraud).SetHEAD(ctx, "trunk") }, func(t *testing.T, s *gitrepo.Store, acknowledged bool) {
		branch, err := s.Repository(fraud).HEAD()
		if err != nil || branch != "trunk" && (acknowledged || branch != "main") {
			t.Errorf("HEAD after the crash = %q, %v, acknowledged trunk: %v", branch, err, acknowledged)
		}
	})
}

// Every directory that Sync promises is one whose failure it tells; so is that of the file system.
func TestSyncFails(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := must(s.Create(t.Context(), fraud))
	count, fail := 0, 0
	s.SetFS(durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if count++; count == fail {
			return &os.PathError{Op: string(op), Path: path, Err: syscall.EIO}
		}
		return do()
	}})
	for name, sync := range map[string]func() error{
		"Sync": func() error {
			return r.Sync(t.Context(), []registry.RefUpdate{{Ref: "refs/heads/main"}, {Ref: "refs/tags/v1.0.0"}})
		},
		"SyncAll": func() error { return s.SyncAll(t.Context()) },
		"WriteRecords": func() error {
			return r.WriteRecords(t.Context(), []registry.RecordCommit{{Ref: registry.VersionsRef, Author: ada}})
		},
	} {
		for fail = 1; ; fail++ {
			count = 0
			err := sync()
			if count < fail {
				if err != nil || fail == 1 {
					t.Errorf("%s without a fault = %v, in %d steps", name, err, count)
				}
				break
			}
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%s whose step %d fails = %v, want EIO", name, fail, err)
			}
		}
	}
}

// The files of single refs stay until the file with all refs is durable.
func TestPackRefsOnABrokenDisk(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	repo := filepath.Join(s.store.Dir(), "acme/fraud.git")
	head := w.rev("HEAD")
	var stdin strings.Builder
	for i := range 600 {
		fmt.Fprintf(&stdin, "create refs/heads/b%d %s\n", i, head)
	}
	cmd := exec.CommandContext(t.Context(), "git", "--git-dir", repo, "update-ref", "--stdin")
	cmd.Stdin = strings.NewReader(stdin.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("update-ref: %v\n%s", err, out)
	}
	s.store.SetTimeSlack(0)
	s.store.SetFS(durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == durable.OpSyncDir && path == repo {
			return &os.PathError{Op: string(op), Path: path, Err: syscall.EIO}
		}
		return do()
	}})
	if _, err := s.repo().Repack(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Errorf("Repack whose refs cannot be synced = %v, want EIO", err)
	}
	if loose, err := filepath.Glob(filepath.Join(repo, "refs/heads/b*")); len(loose) != 600 {
		t.Errorf("%d files of single refs are left, %v, want all 600", len(loose), err)
	}
}

// A full disk is told, with what to expect, also where git says only what it could not do.
func TestPushToABrokenDisk(t *testing.T) {
	for _, fault := range []struct {
		err  error
		want string
	}{
		{syscall.ENOSPC, "herdbook: the server has no space left for new content; reading still works"},
		{syscall.EROFS, "herdbook: the server cannot write to its disk now; reading still works"},
		{syscall.EMFILE, "herdbook: the server cannot do this now; try again later"},
	} {
		s := newServer(t)
		w := newClient(t).work(s, 1)
		s.check = func(context.Context, *gitrepo.Push) error { return fmt.Errorf("commit: %w", fault.err) }
		contains(t, "push whose check fails with "+fault.err.Error(), w.fails("push", "origin", "main"), "remote: "+fault.want+"; the push was refused")
		s.check = nil
		s.finish = func(context.Context, []registry.RefUpdate) ([]string, error) { return nil, fault.err }
		contains(t, "push whose end fails with "+fault.err.Error(), w.fails("push", "origin", "main"), "push again: "+strings.TrimPrefix(fault.want, "herdbook: "))
	}
	// A pack that git does not take, for whatever reason.
	s := newServer(t, func(c *gitrepo.Config) { c.MaxPushBytes = 1000 })
	w := newClient(t).work(s, 1)
	w.commit("f", string(noise(5000)))
	if out := w.fails("push", "origin", "main"); strings.Contains(out, "no space left") {
		t.Errorf("a push that is too large is told that the disk is full\n%s", out)
	}
	s.store.SetFS(durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == durable.OpWrite {
			return &os.PathError{Op: string(op), Path: path, Err: syscall.ENOSPC}
		}
		return do()
	}})
	contains(t, "push to a full disk", w.fails("push", "origin", "main"), "remote: herdbook: the server has no space left for new content; reading still works")
	noLeftovers(t, s.store.Dir())
}
