package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

func TestOpenChecksGit(t *testing.T) {
	for version, want := range map[string]string{
		"git version 2.38.9":                      "too old",
		"git version 1.99.0":                      "too old",
		"hello":                                   "install git 2.39 or newer",
		"git version 2.39.0.windows.1":            "",
		"git version 2.52.0 (Apple Git-999)":      "",
		"git version 3.0.0-rc1\nand another line": "",
	} {
		fake := filepath.Join(t.TempDir(), "git")
		script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && printf '%%s\\n' '%s' || exec git \"$@\"\n", version)
		if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := gitrepo.Open(t.Context(), gitrepo.Config{Dir: t.TempDir(), Git: fake})
		if err == nil {
			err = s.Close()
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("Open with %q = %v, want %q", version, err, want)
		}
	}
	_, err := gitrepo.Open(t.Context(), gitrepo.Config{Dir: t.TempDir(), Git: "/nowhere/git"})
	if err == nil || !strings.Contains(err.Error(), "apt-get install git") {
		t.Errorf("Open without git = %v, want how to install it", err)
	}
}

func TestOpenTwice(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if second, err := gitrepo.Open(ctx, gitrepo.Config{Dir: dir}); err == nil {
		t.Error("a second store opened the same directory")
		_ = second.Close()
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("Close twice = %v", err)
	}
	openStore(t, dir)
}

func TestLongSocketPath(t *testing.T) {
	dir := t.TempDir()
	run := filepath.Join(dir, strings.Repeat("long/", 20))
	s := &server{store: openStore(t, filepath.Join(dir, "repos"), func(c *gitrepo.Config) { c.RunDir = run })}
	s.start(t)
	newClient(t).work(s, 1).git("push", "-q", "origin", "main")
}

func TestOpenNeedsAHookThatRuns(t *testing.T) {
	dir := t.TempDir()
	// As on a file system that is mounted noexec: what is in the place of the hook cannot be replaced.
	if err := os.MkdirAll(filepath.Join(dir, "run/hooks/pre-receive/x"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := gitrepo.Open(t.Context(), gitrepo.Config{Dir: filepath.Join(dir, "repos"), RunDir: filepath.Join(dir, "run")})
	if err == nil {
		t.Error("Open without a hook = nil, want an error")
		_ = s.Close()
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repos")
	s := &server{store: openStore(t, dir)}
	s.start(t)
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	s.Close()
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	repo := filepath.Join(dir, "acme/fraud.git")
	for _, path := range []string{
		repo + "/objects/tmp_objdir-incoming-abc/pack/tmp_pack_1", repo + "/objects/pack/tmp_pack_2", repo + "/objects/pack/.tmp-3-pack-x",
		repo + "/objects/info/commit-graph.lock", repo + "/HEAD.lock", repo + "/packed-refs.lock", repo + "/packed-refs.new", repo + "/refs/heads/main.lock",
		repo + "/refs/tags/deep/er/v1.lock", repo + "/fast_import_crash_17", dir + "/.trash/x/HEAD", dir + "/" + durable.TempName() + "/HEAD",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, "x")
	}
	s = &server{store: openStore(t, dir)}
	s.start(t)
	noLeftovers(t, dir)
	for _, gone := range []string{".trash", "acme/fraud.git/packed-refs.new", "acme/fraud.git/objects/pack/.tmp-3-pack-x"} {
		if _, err := os.Stat(filepath.Join(dir, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	w.commit("f", "x")
	w.git("push", "-q", s.url(), "main")
}

func TestCreateRemoveList(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	names := []registry.ModelName{
		registry.MustModelName("a/b"), registry.MustModelName("acme/fraud"), registry.MustModelName("acme/vad"), registry.MustModelName("b.c/d_e"),
	}
	for _, name := range slices.Backward(names) {
		r, err := s.Create(ctx, name)
		if err != nil {
			t.Fatalf("Create(%s): %v", name, err)
		}
		if again, err := s.Create(ctx, name); err != nil || again.Name() != name {
			t.Errorf("second Create(%s) = %v", name, err)
		}
		if ok, err := r.Exists(); !ok || err != nil {
			t.Errorf("Exists(%s) = %v, %v", name, ok, err)
		}
		if branch, err := r.HEAD(); branch != "main" || err != nil {
			t.Errorf("HEAD(%s) = %q, %v, want main", name, branch, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(s.Dir(), "acme", "Not A Model.git"), 0o755); err != nil {
		t.Fatal(err)
	}
	list := func() string {
		t.Helper()
		return fmt.Sprint(must(s.List(ctx)))
	}
	if got, want := list(), fmt.Sprint(names); got != want {
		t.Errorf("List = %v, want %v", got, want)
	}
	for _, name := range []registry.ModelName{names[0], names[1], names[0]} {
		if err := s.Remove(ctx, name); err != nil {
			t.Errorf("Remove(%s) = %v", name, err)
		}
	}
	if ok, err := s.Repository(names[0]).Exists(); ok || err != nil {
		t.Errorf("Exists after Remove = %v, %v", ok, err)
	}
	if got, want := list(), fmt.Sprint(names[2:]); got != want {
		t.Errorf("List after Remove = %v, want %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(s.Dir(), "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the namespace of the last removed repository is still there: %v", err)
	}
	if entries := must(os.ReadDir(filepath.Join(s.Dir(), ".trash"))); len(entries) > 0 {
		t.Errorf("in the trash: %v", entries)
	}
}

// A crash at any step of Create leaves a whole repository or none, and an acknowledged one stays.
func TestCreateIsAtomicAndDurable(t *testing.T) {
	durabletest.EachStep(t, func() durabletest.Case {
		acknowledged := false
		return durabletest.Case{
			Work: func(fsys durable.FS, dir string) {
				s := openStore(t, dir, func(c *gitrepo.Config) { c.RunDir = filepath.Join(t.TempDir(), "run") })
				s.SetFS(fsys)
				_, err := s.Create(t.Context(), fraud)
				if err != nil {
					// Like the next request after an error, perhaps of the last sync.
					_, err = s.Create(t.Context(), fraud)
				}
				acknowledged = err == nil
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			},
			Check: func(t *testing.T, dir string) {
				s := openStore(t, dir, func(c *gitrepo.Config) { c.RunDir = filepath.Join(t.TempDir(), "run") })
				r := s.Repository(fraud)
				ok, err := r.Exists()
				if err != nil || acknowledged && !ok {
					t.Errorf("after the crash: Exists = %v, %v, acknowledged = %v", ok, err, acknowledged)
				}
				if r, err = s.Create(t.Context(), fraud); err != nil {
					t.Fatalf("Create after the crash: %v", err)
				}
				if err := r.WriteRecords(t.Context(), []registry.RecordCommit{{Ref: registry.VersionsRef, Author: ada}}); err != nil {
					t.Errorf("the repository is of no use: %v", err)
				}
				if branch, err := r.HEAD(); branch != "main" || err != nil {
					t.Errorf("HEAD = %q, %v", branch, err)
				}
				noLeftovers(t, dir)
			},
		}
	})
}

func TestHEAD(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := t.Context()
	r := must(s.Create(ctx, fraud))
	for _, branch := range []string{"trunk", "feature/x", "main"} {
		if err := r.SetHEAD(ctx, branch); err != nil {
			t.Errorf("SetHEAD(%s) = %v", branch, err)
		}
		if got, err := r.HEAD(); got != branch || err != nil {
			t.Errorf("HEAD = %q, %v, want %q", got, err, branch)
		}
	}
	for _, branch := range []string{"", "-d", "a..b", "../../x", "a b"} {
		if err := r.SetHEAD(ctx, branch); branch != "-d" && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("SetHEAD(%q) = %v, want ErrInvalid", branch, err)
		}
	}
	absent := s.Repository(registry.MustModelName("no/no"))
	if err := absent.SetHEAD(ctx, "main"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("SetHEAD of no repository = %v, want ErrNotFound", err)
	}
	if _, err := absent.HEAD(); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("HEAD of no repository = %v, want ErrNotFound", err)
	}
	writeFile(t, filepath.Join(s.Dir(), "acme/fraud.git/HEAD"), string(absentID)+"\n")
	if got, err := r.HEAD(); got != "" || err != nil {
		t.Errorf("HEAD of a commit = %q, %v, want none", got, err)
	}
}

func TestSetAside(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := t.Context()
	if to, err := s.SetAside(ctx, fraud); to != "" || err != nil {
		t.Errorf("SetAside of no repository = %q, %v, want nothing", to, err)
	}
	var places []string
	for range 2 {
		r := must(s.Create(ctx, fraud))
		if err := r.SetHEAD(ctx, "kept"); err != nil {
			t.Fatal(err)
		}
		to, err := s.SetAside(ctx, fraud)
		if err != nil {
			t.Fatalf("SetAside = %v", err)
		}
		places = append(places, to)
		if exists, err := r.Exists(); exists || err != nil {
			t.Errorf("after SetAside the repository exists: %v, %v", exists, err)
		}
	}
	if places[0] == places[1] {
		t.Errorf("two repositories were moved to %s", places[0])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	for _, place := range places {
		if head, err := os.ReadFile(filepath.Join(place, "HEAD")); string(head) != "ref: refs/heads/kept\n" {
			t.Errorf("HEAD of what was moved to %s, after the next start: %q, %v", place, head, err)
		}
	}
	if names, err := s.List(ctx); len(names) != 0 || err != nil {
		t.Errorf("List = %v, %v, want nothing of what was moved aside", names, err)
	}
}

func TestSetRef(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	w := newClient(t).work(s, 2)
	w.git("tag", "-a", "-m", "one", "v1.0.0")
	w.git("push", "-q", "origin", "main", "v1.0.0")
	repo, tag := s.repo(), w.rev("v1.0.0")
	s.check = func(context.Context, *gitrepo.Push) error {
		t.Error("SetRef ran a hook")
		return nil
	}
	for _, id := range []registry.ObjectID{w.rev("HEAD~1"), w.rev("HEAD"), tag} {
		if err := repo.SetRef(ctx, "refs/tags/v1.0.0", id); err != nil {
			t.Fatalf("SetRef = %v", err)
		}
		if got, err := repo.Resolve(ctx, "refs/tags/v1.0.0"); got.ID != id || err != nil {
			t.Errorf("the ref that was set to %s is %s, %v", id, got.ID, err)
		}
	}
	if err := repo.SetRef(ctx, "refs/tags/made/anew", tag); err != nil {
		t.Errorf("SetRef of a ref that there is not = %v", err)
	}
	for _, tt := range []struct {
		name, ref string
		id        registry.ObjectID
		want      error
	}{
		{"no such object", "refs/tags/v1.0.0", absentID, registry.ErrNotFound},
		{"no object at all", "refs/tags/v1.0.0", "x", registry.ErrNotFound},
		{"no ref", "refs/tags/../x", tag, registry.ErrInvalid},
		{"an option", "--stdin", tag, registry.ErrInvalid},
	} {
		if err := repo.SetRef(ctx, tt.ref, tt.id); !errors.Is(err, tt.want) {
			t.Errorf("SetRef with %s = %v, want %v", tt.name, err, tt.want)
		}
	}
	if got, err := repo.Resolve(ctx, "refs/tags/v1.0.0"); got.ID != tag || err != nil {
		t.Errorf("after calls that failed the ref is %s, %v, want %s", got.ID, err, tag)
	}
	if err := s.store.Repository(registry.MustModelName("no/no")).SetRef(ctx, "refs/tags/v1.0.0", tag); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("SetRef of no repository = %v, want ErrNotFound", err)
	}
	broken := errors.New("the disk is gone")
	s.store.SetFS(durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == durable.OpSyncDir && strings.HasSuffix(path, "refs/tags") {
			return broken
		}
		return do()
	}})
	if err := repo.SetRef(ctx, "refs/tags/v1.0.0", w.rev("HEAD")); !errors.Is(err, broken) {
		t.Errorf("SetRef with a broken disk = %v, want %v", err, broken)
	}
}

func TestSync(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := must(s.Create(t.Context(), fraud))
	var synced []string
	var fail error
	s.SetFS(durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == durable.OpSyncDir {
			rel, _ := filepath.Rel(filepath.Join(s.Dir(), "acme/fraud.git"), path)
			synced = append(synced, rel)
			if rel == "refs" && fail != nil {
				return fail
			}
		}
		return do()
	}})
	updates := []registry.RefUpdate{{Ref: "refs/heads/main"}, {Ref: "refs/heads/gone/branch"}, {Ref: "refs/tags/v1.0.0"}}
	if err := r.Sync(t.Context(), updates); err != nil {
		t.Errorf("Sync = %v", err)
	}
	want := []string{"objects/pack", "objects", "refs/heads", "refs", ".", "refs/heads/gone", "refs/tags"}
	if diff := cmp.Diff(want, synced); diff != "" {
		t.Errorf("synced directories: (-want +got)\n%s", diff)
	}
	fail = errors.New("the disk is gone")
	if err := r.Sync(t.Context(), updates); !errors.Is(err, fail) {
		t.Errorf("Sync with a broken disk = %v, want %v", err, fail)
	}
	if err := s.SyncAll(t.Context()); err != nil {
		t.Errorf("SyncAll = %v", err)
	}
	if err := s.Repository(registry.MustModelName("no/no")).Sync(t.Context(), nil); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Sync of no repository = %v, want ErrNotFound", err)
	}
}

func TestSignature(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	w := newClient(t).work(s, 3)
	w.git("push", "-q", "origin", "HEAD~2:refs/heads/main")
	seen := map[string]string{}
	now := func() string { return must(s.repo().Signature(ctx)) }
	seen[now()] = "the first push"
	steps := []struct {
		name string
		do   func()
	}{
		{"update", func() { w.git("push", "-q", "origin", "HEAD~1:refs/heads/main") }},
		{"create", func() { w.git("push", "-q", "origin", "HEAD:refs/heads/b") }},
		{"create in a directory", func() { w.git("push", "-q", "origin", "HEAD:refs/heads/c/d") }},
		{"delete", func() { w.git("push", "-q", "origin", ":refs/heads/b") }},
		{"HEAD", func() {
			if err := s.repo().SetHEAD(ctx, "c/d"); err != nil {
				t.Fatal(err)
			}
		}},
		{"update-ref", func() { plainGit(t, s, "update-ref", "refs/heads/main", string(w.rev("HEAD"))) }},
		{"update-ref back", func() { plainGit(t, s, "update-ref", "refs/heads/main", string(w.rev("HEAD~1"))) }},
		{"pack-refs", func() { plainGit(t, s, "pack-refs", "--all") }},
		{"delete of a packed ref", func() { w.git("push", "-q", "origin", ":refs/heads/main") }},
		{"records", func() {
			if err := s.repo().WriteRecords(ctx, []registry.RecordCommit{{Ref: registry.VersionsRef, Author: ada}}); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, step := range steps {
		before := now()
		if again := now(); again != before {
			t.Errorf("before %s: two signatures of the same refs", step.name)
		}
		step.do()
		if other, ok := seen[now()]; ok {
			t.Errorf("signature after %s is that after %s", step.name, other)
		}
		seen[now()] = step.name
	}
	if _, err := s.store.Repository(registry.MustModelName("no/no")).Signature(ctx); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Signature of no repository = %v, want ErrNotFound", err)
	}
}

func TestRepack(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxPacks = 5 })
	ctx := t.Context()
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	unreachable := w.rev("HEAD")
	w.git("commit", "-q", "--amend", "-m", "another")
	w.git("push", "-q", "--force", "origin", "main")
	packs := func() int {
		return len(must(filepath.Glob(filepath.Join(repoDir(s), "objects/pack/*.pack"))))
	}
	write := func(n int) {
		t.Helper()
		for range n {
			if err := s.repo().WriteRecords(ctx, []registry.RecordCommit{{Ref: registry.VersionsRef, Message: "x", Author: ada}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(3)
	if done, err := s.repo().Repack(ctx); done || err != nil || packs() != 5 {
		t.Errorf("Repack of few packs = %v, %v, and %d packs, want none of it", done, err, packs())
	}
	write(5)
	if _, err := s.repo().Commit(ctx, unreachable); err != nil { // now a reader knows the packs
		t.Fatal(err)
	}

	s.check = func(ctx context.Context, _ *gitrepo.Push) error {
		done, err := s.repo().Repack(ctx)
		if done || err != nil {
			t.Errorf("Repack while a push runs = %v, %v, want none", done, err)
		}
		return nil
	}
	w.git("push", "-q", "origin", "main:refs/heads/other")

	if done, err := s.repo().Repack(ctx); !done || err != nil || packs() > 2 {
		t.Errorf("Repack = %v, %v, and %d packs, want at most 2", done, err, packs())
	}
	for _, id := range []registry.ObjectID{unreachable, w.rev("HEAD")} {
		if got, err := s.repo().Commit(ctx, id); err != nil || got.ID != id {
			t.Errorf("commit after Repack = %v, %v", got, err)
		}
	}
	plainGit(t, s, "fsck", "--strict")
	w.commit("f", "x")
	w.git("push", "-q", "origin", "main:refs/heads/third")
	noLeftovers(t, s.store.Dir())
	if _, err := s.store.Repository(registry.MustModelName("no/no")).Repack(ctx); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Repack of no repository = %v, want ErrNotFound", err)
	}
}
