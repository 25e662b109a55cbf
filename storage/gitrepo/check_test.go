package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

func TestCheck(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 3)
	w.git("push", "-q", "origin", "main")
	if problems, err := s.repo().Check(t.Context()); err != nil || problems != nil {
		t.Fatalf("Check of a good repository = %q, %v, want nothing", problems, err)
	}
	// A repository that lost an object, and one with a flipped bit.
	pack := must(filepath.Glob(filepath.Join(s.path(), "objects", "pack", "*.pack")))[0]
	content := must(os.ReadFile(pack))
	content[len(content)/2] ^= 1
	if err := os.Chmod(pack, 0o600); err != nil {
		t.Fatal(err)
	}
	writeFile(t, pack, string(content))
	problems, err := s.repo().Check(t.Context())
	if err != nil || len(problems) == 0 {
		t.Errorf("Check of a repository with a flipped bit = %q, %v, want problems", problems, err)
	}
	if err := os.Remove(pack); err != nil {
		t.Fatal(err)
	}
	problems, err = s.repo().Check(t.Context())
	if err != nil || !strings.Contains(strings.Join(problems, "\n"), "refs/heads/main") {
		t.Errorf("Check of a repository without its pack = %q, %v, want a ref to nothing", problems, err)
	}
}

// path is where the repository lies.
func (s *server) path() string { return filepath.Join(gitrepo.DirOf(s.store), "acme", "fraud.git") }

func TestCopyTo(t *testing.T) {
	s := newServer(t)
	c := newClient(t)
	w := c.work(s, 3)
	w.git("tag", "-a", "-m", "first", "v1.0.0")
	w.git("push", "-q", "origin", "main", "v1.0.0", "main:refs/heads/gone")
	to := filepath.Join(t.TempDir(), "copy.git")
	compare := func(when string) {
		t.Helper()
		if err := s.repo().CopyTo(t.Context(), gitrepo.Copy{To: to, FS: durabletest.NoSync()}); err != nil {
			t.Fatalf("%s: CopyTo = %v", when, err)
		}
		there := c.in(".")
		there.dir = to
		want := map[string]string{}
		for name, id := range refs(t, s.repo()) {
			want[name] = string(id)
		}
		got := map[string]string{}
		for line := range strings.Lines(there.git("--git-dir", to, "for-each-ref", "--format=%(refname) %(objectname)")) {
			name, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[name] = id
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: refs of the copy (-want +got):\n%s", when, diff)
		}
		there.git("--git-dir", to, "fsck", "--full", "--strict")
	}
	compare("the first copy")
	for i := range 5 {
		w.commit(fmt.Sprintf("file %d", i), "x")
		w.git("push", "-q", "origin", "main")
	}
	w.git("push", "-q", "origin", ":gone")
	compare("after pushes and a deleted branch")
	w.git("--git-dir", s.path(), "-c", "gc.auto=0", "repack", "-a", "-d", "-q")
	w.git("--git-dir", s.path(), "pack-refs", "--all")
	compare("after a repack")
	if packs := must(filepath.Glob(filepath.Join(to, "objects", "pack", "*.pack"))); len(packs) != 1 {
		t.Errorf("the copy has %d packs, want the one that is there now", len(packs))
	}
}

// What an atomic push does is in a copy as a whole or not at all, also when refs come and go by it.
func TestCopyToBesideAtomicPushes(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	var together []string
	for i := range 20 {
		together = append(together, fmt.Sprintf("+HEAD:refs/heads/%02d", i))
	}
	push := func(message string, args ...string) {
		w.git("commit", "-q", "--allow-empty", "-m", message)
		w.git(slices.Concat([]string{"push", "-q", "--atomic", "origin"}, together, args)...)
	}
	push("first", "HEAD:refs/heads/left/x")
	to := filepath.Join(t.TempDir(), "copy.git")
	check := func() {
		if err := s.repo().CopyTo(t.Context(), gitrepo.Copy{To: to, FS: durabletest.NoSync()}); err != nil {
			t.Errorf("CopyTo beside pushes = %v", err)
			return
		}
		ids := map[string]bool{}
		for _, path := range must(filepath.Glob(filepath.Join(to, "refs", "heads", "[0-9]*"))) {
			ids[string(must(os.ReadFile(path)))] = true
		}
		if len(ids) != 1 {
			t.Errorf("refs that move together have %d values in the copy, want one", len(ids))
		}
		if sides := must(filepath.Glob(filepath.Join(to, "refs", "heads", "*", "x"))); len(sides) != 1 {
			t.Errorf("of two refs of which always one is there the copy has %q", sides)
		}
	}
	copies := 0
	var pushed atomic.Bool
	var wait sync.WaitGroup
	wait.Go(func() {
		for ; !pushed.Load() && !t.Failed(); copies++ {
			check()
		}
	})
	defer func() {
		pushed.Store(true)
		if wait.Wait(); copies < 5 {
			t.Errorf("%d copies were made beside 12 pushes, want more", copies)
		}
	}()
	for i := range 6 {
		push(fmt.Sprint("there ", i), ":left/x", "HEAD:refs/heads/right/x")
		push(fmt.Sprint("back ", i), ":right/x", "HEAD:refs/heads/left/x")
	}
}

// copied copies the repository of a server and returns its refs there, loose ones only.
func copied(t *testing.T, s *server) (map[string]string, error) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy.git")
	err := s.repo().CopyTo(t.Context(), gitrepo.Copy{To: to, FS: durabletest.NoSync()})
	refs := map[string]string{}
	for _, path := range must(filepath.Glob(filepath.Join(to, "refs", "heads", "*"))) {
		refs[filepath.Base(path)] = strings.TrimSpace(string(must(os.ReadFile(path))))
	}
	return refs, err
}

// pushTwo pushes the branches a and b, and returns a commit that comes next, which the server has too.
func pushTwo(t *testing.T, s *server) (now, next string) {
	t.Helper()
	w := newClient(t).work(s, 2)
	w.git("push", "-q", "origin", "HEAD~:refs/heads/a", "HEAD~:refs/heads/b", "HEAD:refs/tags/next")
	return string(w.rev("HEAD~")), string(w.rev("HEAD"))
}

// A copy waits for a transaction of git that has moved one of its refs and not yet the other.
func TestCopyToWaitsForATransaction(t *testing.T) {
	s := newServer(t)
	_, next := pushTwo(t, s)
	a, b := filepath.Join(s.path(), "refs", "heads", "a"), filepath.Join(s.path(), "refs", "heads", "b")
	for _, lock := range []string{b + ".lock", filepath.Join(s.path(), "packed-refs.lock")} {
		writeFile(t, lock, next+"\n")
		writeFile(t, a, next+"\n")
		synctest.Test(t, func(t *testing.T) {
			var got map[string]string
			var err error
			var wait sync.WaitGroup
			wait.Go(func() { got, err = copied(t, s) })
			synctest.Wait() // it has looked, and waits
			writeFile(t, b, next+"\n")
			if err := os.Remove(lock); err != nil {
				t.Error(err)
			}
			wait.Wait()
			if diff := cmp.Diff(map[string]string{"a": next, "b": next}, got); diff != "" || err != nil {
				t.Errorf("copy beside a transaction with %s: %v, refs (-want +got):\n%s", filepath.Base(lock), err, diff)
			}
		})
		writeFile(t, b, "")
	}
}

// A whole transaction between the looks at two refs is seen.
func TestCopyToReadsTwice(t *testing.T) {
	for look := 1; look <= 4; look++ {
		s := newServer(t)
		now, next := pushTwo(t, s)
		w := newClient(t)
		looks := 0
		s.store.OnLook(func(path string) {
			if filepath.Base(path) != "b" {
				return
			}
			if looks++; looks == look {
				cmd := w.command(t.Context(), "--git-dir", s.path(), "update-ref", "--stdin")
				cmd.Stdin = strings.NewReader(fmt.Sprintf("start\nupdate refs/heads/a %[1]s\nupdate refs/heads/b %[1]s\ncommit\n", next))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("git update-ref: %v\n%s", err, out)
				}
			}
		})
		got, err := copied(t, s)
		want := map[string]string{"a": next, "b": next}
		if looks < look { // no more looks than that
			want = map[string]string{"a": now, "b": now}
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("a transaction at look %d: CopyTo = %v, refs (-want +got):\n%s", look, err, diff)
		}
	}
}

// A lock that a killed git left does not hold up a copy for ever: that nobody writes then is made sure of.
func TestCopyToWithALockThatStays(t *testing.T) {
	s := newServer(t)
	now, _ := pushTwo(t, s)
	writeFile(t, filepath.Join(s.path(), "refs", "heads", "b.lock"), "")
	// Outside of the bubble, whose time stands still while somebody waits for a lock of this process.
	written := s.store.Share(s.repo())
	var ended, waited atomic.Bool
	var wait sync.WaitGroup
	wait.Go(func() {
		defer written()
		for !ended.Load() && !waited.Load() {
			waited.Store(s.store.SomebodyWaits(s.repo()))
			runtime.Gosched()
		}
	})
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		got, err := copied(t, s)
		if diff := cmp.Diff(map[string]string{"a": now, "b": now}, got); diff != "" || err != nil {
			t.Errorf("copy beside a lock that stays: %v, refs (-want +got):\n%s", err, diff)
		}
		if took := time.Since(began); took < time.Second || took > 10*time.Second {
			t.Errorf("CopyTo waits %s for a lock to go, want some seconds", took)
		}
	})
	ended.Store(true)
	wait.Wait()
	if !waited.Load() {
		t.Error("CopyTo did not wait for those who write, want it to, as a lock stays")
	}
}

// What is copied of a repository that is removed meanwhile is a copy of all of it, or none; and what an earlier copy has is
// kept. Also when another repository takes its place.
func TestCopyToOfARepositoryThatGoesAway(t *testing.T) {
	tests := map[string]func(s *server) error{
		"removed": func(s *server) error { return s.store.Remove(context.Background(), fraud) },
		"removed and made again": func(s *server) error {
			err := s.store.Remove(context.Background(), fraud)
			if err == nil {
				_, err = s.store.Create(context.Background(), fraud)
			}
			return err
		},
	}
	s := newServer(t)
	pushTwo(t, s)
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.CopyFS(kept, os.DirFS(s.path())); err != nil {
		t.Fatal(err)
	}
	w := newClient(t)
	want := w.git("--git-dir", s.path(), "rev-parse", "a", "b", "next")
	for name, remove := range tests {
		steps, whole := 0, 0
		for at := 1; ; at++ {
			steps = 0
			fsys := durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
				if steps++; steps == at {
					if err := remove(s); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				return durabletest.NoSync().Hook(op, path, do)
			}}
			to := filepath.Join(t.TempDir(), "copy.git")
			if at%2 == 1 { // an earlier copy, with a pack that it lacks
				if err := os.CopyFS(to, os.DirFS(kept)); err != nil {
					t.Fatal(err)
				}
				lost := must(filepath.Glob(filepath.Join(to, "objects", "pack", "*.idx")))[0]
				if err := os.Remove(lost); err != nil {
					t.Fatal(err)
				}
			}
			err := s.repo().CopyTo(t.Context(), gitrepo.Copy{To: to, FS: fsys})
			switch {
			case err == nil:
				whole++
				w.git("--git-dir", to, "fsck", "--full", "--strict", "--connectivity-only")
				if w.git("--git-dir", to, "rev-parse", "a", "b", "next") != want {
					t.Errorf("a copy of a repository that was %s at step %d has not its refs", name, at)
				}
			case !errors.Is(err, registry.ErrNotFound):
				t.Errorf("CopyTo of a repository that was %s at step %d = %v, want ErrNotFound", name, at, err)
			case at%2 == 1 && len(must(filepath.Glob(filepath.Join(to, "objects", "pack", "*.pack")))) == 0:
				t.Errorf("CopyTo of a repository that was %s at step %d has removed the packs of an earlier copy", name, at)
			}
			if steps < at {
				break
			}
			if err := errors.Join(s.store.Remove(t.Context(), fraud), os.CopyFS(s.path(), os.DirFS(kept))); err != nil {
				t.Fatal(err)
			}
		}
		if steps < 10 || whole < 2 || whole > steps-5 {
			t.Errorf("CopyTo of a repository that was %s at one of %d steps made %d copies, want some and not all", name, steps, whole)
		}
	}
}

// A file of an earlier copy that is not trusted is copied again, and told of.
func TestCopyToOverWhatIsNotTrusted(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 3)
	w.git("push", "-q", "origin", "main")
	to := filepath.Join(t.TempDir(), "copy.git")
	var objects []string
	copyTo := func(trust func(fs.FileInfo) bool) {
		t.Helper()
		objects = nil
		c := gitrepo.Copy{To: to, FS: durabletest.NoSync(), Trust: trust, Object: func(path string) { objects = append(objects, filepath.Ext(path)) }}
		if err := s.repo().CopyTo(t.Context(), c); err != nil {
			t.Fatalf("CopyTo = %v", err)
		}
		slices.Sort(objects)
	}
	trusting := func(info fs.FileInfo) bool { return info.Mode()&0o200 == 0 }
	copyTo(trusting)
	want := objects
	if !slices.Contains(want, ".pack") || !slices.Contains(want, ".idx") {
		t.Fatalf("CopyTo has written %q, want a pack and its index", want)
	}
	pack := must(filepath.Glob(filepath.Join(to, "objects", "pack", "*.pack")))[0]
	size := must(os.Stat(pack)).Size()
	writeFile(t, pack, string(make([]byte, size)))
	copyTo(trusting)
	if diff := cmp.Diff(want, objects); diff != "" {
		t.Errorf("files that were not trusted and are copied again (-want +got):\n%s", diff)
	}
	w.git("--git-dir", to, "fsck", "--full", "--strict")
	if err := os.Chmod(pack, 0o440); err != nil {
		t.Fatal(err)
	}
	copyTo(trusting)
	if slices.Contains(objects, ".pack") {
		t.Errorf("CopyTo has written %q, want no pack: it is trusted", objects)
	}
	copyTo(nil)
	if len(objects) != 0 {
		t.Errorf("CopyTo has written %q, want nothing: all is there", objects)
	}
}
