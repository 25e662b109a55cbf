package gitrepo_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// importCommits makes one pack of n commits on a branch, without a push.
func importCommits(tb testing.TB, dir, branch, from string, n, fileBytes int) {
	tb.Helper()
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "commit refs/heads/%s\ncommitter Ada <ada@example.org> %d +0000\ndata 1\nc\n", branch, 1700000000+i)
		if i == 0 && from != "" {
			fmt.Fprintf(&b, "from %s\n", from)
		}
		content := fmt.Sprintf("%s %d %s", branch, i, fresh(fileBytes))
		fmt.Fprintf(&b, "M 100644 inline %s/f%d\ndata %d\n%s\n", branch, i%40, len(content), content)
	}
	b.WriteString("done\n")
	bareGit(tb, dir, b.String(), "-c", "fastimport.unpackLimit=0", "-c", "core.fsync=none", "fast-import", "--quiet", "--done")
}

// fresh is noise that never comes twice.
func fresh(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(b)
}

func packFiles(dir, kind string) []string {
	return must(filepath.Glob(filepath.Join(dir, "objects/pack/*."+kind)))
}

func TestRepackMakesBitmaps(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	if _, err := s.store.Create(ctx, fraud); err != nil {
		t.Fatal(err)
	}
	dir := repoDir(s)
	steps := []struct {
		name           string
		commits, bytes int
		packs, bitmaps int
	}{
		{"a few commits", 10, 100, 1, 0},
		{"a large repository", 150, 10_000, 1, 1},
		{"a little more", 10, 1000, 2, 1},
		{"half as much again", 120, 10_000, 1, 1},
	}
	var unreachable string
	for i, step := range steps {
		importCommits(t, dir, fmt.Sprint("b", i), "", step.commits, step.bytes)
		if i == 0 {
			unreachable = bareGit(t, dir, "", "rev-parse", "refs/heads/b0")
			bareGit(t, dir, "", "update-ref", "-d", "refs/heads/b0")
		}
		if _, err := s.repo().Repack(ctx); err != nil {
			t.Fatalf("%s: Repack = %v", step.name, err)
		}
		packs, bitmaps := len(packFiles(dir, "pack"))-len(packFiles(dir, "mtimes")), len(packFiles(dir, "bitmap"))
		if packs != step.packs || bitmaps != step.bitmaps {
			t.Errorf("%s: %d packs and %d bitmaps, want %d and %d", step.name, packs, bitmaps, step.packs, step.bitmaps)
		}
		if again, err := s.repo().Repack(ctx); again || err != nil {
			t.Errorf("%s: Repack at once again = %v, %v, want nothing to do", step.name, again, err)
		}
	}
	bareGit(t, dir, "", "fsck", "--strict")
	bareGit(t, dir, "", "cat-file", "-p", unreachable+":b0/f0")
	c := newClient(t)
	c.git("clone", "-q", "--mirror", s.url(), "mirror")
	if got, want := c.in("mirror").git("for-each-ref"), bareGit(t, dir, "", "for-each-ref"); got != want {
		t.Errorf("refs of a clone by bitmap = %s, want %s", got, want)
	}
	c.in("mirror").git("fsck", "--strict")
}

// In a repository that is too large to be joined into one pack, the large packs stay what they are.
func TestRepackOfALargeRepository(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxRepackBytes, c.MaxPacks = 1<<20, 4 })
	ctx := t.Context()
	if _, err := s.store.Create(ctx, fraud); err != nil {
		t.Fatal(err)
	}
	dir := repoDir(s)
	importCommits(t, dir, "main", "", 200, 10_000)
	large := packFiles(dir, "pack")
	for i := range 12 {
		importCommits(t, dir, fmt.Sprint("b", i), "", 2, 100)
		if _, err := s.repo().Repack(ctx); err != nil {
			t.Fatal(err)
		}
		if packs := packFiles(dir, "pack"); len(packs) > 5 || !strings.Contains(strings.Join(packs, " "), large[0]) {
			t.Errorf("after push %d: packs %q, want at most 5, with %q", i, packs, large)
		}
		if n := len(packFiles(dir, "bitmap")); n != 1 {
			t.Errorf("after push %d: %d bitmaps, want 1", i, n)
		}
	}
	bareGit(t, dir, "", "fsck", "--strict")
	if id, err := s.repo().Resolve(ctx, "refs/heads/b11"); err != nil {
		t.Errorf("Resolve = %v", err)
	} else if _, err := s.repo().Commit(ctx, id.ID); err != nil {
		t.Errorf("Commit = %v", err)
	}
}

func TestPacksStayFewAfterManyPushes(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxPacks = 20 })
	ctx := t.Context()
	if _, err := s.store.Create(ctx, fraud); err != nil {
		t.Fatal(err)
	}
	dir := repoDir(s)
	// One fast-import makes a pack at each checkpoint.
	var b strings.Builder
	n := 0
	for range 10 {
		b.Reset()
		for i := range 100 {
			n++
			fmt.Fprintf(&b, "commit refs/heads/main\ncommitter Ada <ada@example.org> %d +0000\ndata 1\nc\n", n)
			if i == 0 && n > 1 {
				b.WriteString("from refs/heads/main^0\n")
			}
			fmt.Fprintf(&b, "M 100644 inline f\ndata 4\n%04d\ncheckpoint\n", n)
		}
		b.WriteString("done\n")
		bareGit(t, dir, b.String(), "-c", "fastimport.unpackLimit=0", "-c", "core.fsync=none", "fast-import", "--quiet", "--done")
		if _, err := s.repo().Repack(ctx); err != nil {
			t.Fatal(err)
		}
		if packs := len(packFiles(dir, "pack")); packs > 20 {
			t.Errorf("after %d pushes: %d packs, want at most 20", n, packs)
		}
	}
	main := must(s.repo().Resolve(ctx, "refs/heads/main")).ID
	if log := must(s.repo().Log(ctx, main, 0, n+1)); len(log) != n {
		t.Errorf("%d commits after all pushes, want %d", len(log), n)
	}
	bareGit(t, dir, "", "fsck", "--strict")
}

// Who reads does not notice that packs come and go.
func TestReadWhileRepacking(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxPacks = 1 })
	ctx := t.Context()
	if _, err := s.store.Create(ctx, fraud); err != nil {
		t.Fatal(err)
	}
	dir := repoDir(s)
	importCommits(t, dir, "main", "", 100, 4000)
	main := must(s.repo().Resolve(ctx, "refs/heads/main")).ID
	over := make(chan struct{})
	var all sync.WaitGroup
	for _, read := range []func() error{
		func() error { _, err := s.repo().Log(ctx, main, 0, 100); return err },
		func() error { _, err := s.repo().ReadFile(ctx, main, "main/f7", 10_000); return err },
		func() error { return cloneOf(ctx, s, fetchRequest(main), io.Discard) },
		func() error {
			// All refs, as they come and go.
			request := pkt("command=fetch") + "0001" + pkt("ofs-delta") + wantAll(bareGit(t, dir, "", "for-each-ref", "--format=%(objectname)")) + pkt("done\n") + "0000"
			var answer bytes.Buffer
			if err := cloneOf(ctx, s, request, &answer); err != nil {
				return err
			}
			return unpackable(t, answer.Bytes())
		},
		func() error {
			_, err := gitServes(s.store, dir, "version=2", fetchRequest(main), "--stateless-rpc")
			return err
		},
	} {
		all.Go(func() {
			for {
				if err := read(); err != nil {
					t.Errorf("read while repacking = %v", err)
					return
				}
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	for i := range 8 {
		importCommits(t, dir, fmt.Sprint("b", i), "", 20, 4000)
		if done, err := s.repo().Repack(ctx); !done || err != nil {
			t.Errorf("Repack = %v, %v, want it done", done, err)
		}
	}
	close(over)
	all.Wait()
}

// A repack that is killed leaves everything readable, and what it left is removed by the next one.
func TestRepackKilled(t *testing.T) {
	s := newServer(t)
	if _, err := s.store.Create(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	dir := repoDir(s)
	importCommits(t, dir, "main", "", 150, 10_000)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(must(filepath.Glob(filepath.Join(dir, "objects/pack/.tmp-*"))))+len(must(filepath.Glob(filepath.Join(dir, "objects/pack/tmp_*")))) == 0 && ctx.Err() == nil {
		}
		cancel()
	}()
	done, err := s.repo().Repack(ctx)
	cancel()
	if done == (err != nil) {
		t.Errorf("Repack that is killed = %v, %v", done, err)
	}
	if left := processesBelow(s.store.Dir()); len(left) > 0 {
		t.Errorf("a repack that was killed left %q", left)
	}
	for _, name := range []string{"tmp_pack_1", ".tmp-1-pack-x.pack", "multi-pack-index.lock"} {
		writeFile(t, filepath.Join(dir, "objects/pack", name), "x")
	}
	for _, name := range packFiles(dir, "bitmap") {
		mustDo(t, os.Remove(name))
	}
	bareGit(t, dir, "", "fsck", "--strict")
	if done, err := s.repo().Repack(t.Context()); !done || err != nil {
		t.Errorf("the next Repack = %v, %v, want it done", done, err)
	}
	noLeftovers(t, dir)
	bareGit(t, dir, "", "fsck", "--strict")
}

func TestRepackPacksRefs(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	repo, dir := newRefRepo(t, s.store, 2)
	bareGit(t, dir, manyRefs(bareGit(t, dir, "", "rev-parse", "refs/heads/main"), 600), "update-ref", "--stdin")
	before := must(repo.Refs(ctx))
	if done, err := repo.Repack(ctx); !done || err != nil {
		t.Errorf("Repack of many refs = %v, %v, want it done", done, err)
	}
	if diff := cmp.Diff(before, must(repo.Refs(ctx))); diff != "" {
		t.Errorf("refs after Repack: (-before +after)\n%s", clip(diff))
	}
	if n := strings.Count(string(must(os.ReadFile(filepath.Join(dir, "packed-refs")))), " refs/"); n != len(before) {
		t.Errorf("%d refs are packed, want %d", n, len(before))
	}
	if done, err := repo.Repack(ctx); done || err != nil {
		t.Errorf("Repack at once again = %v, %v, want nothing to do", done, err)
	}
	if err := repo.SetRef(ctx, "refs/heads/main", registry.ObjectID(bareGit(t, dir, "", "rev-parse", "refs/heads/feature/x"))); err != nil {
		t.Errorf("SetRef of a packed ref = %v", err)
	}
}
