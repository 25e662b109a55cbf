package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

var ada = registry.Signature{Name: "Ada", Email: "ada@example.org", At: time.Unix(1700000000, 0).UTC()}

const absentID = registry.ObjectID("1234567890123456789012345678901234567890")

func TestRead(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	c := newClient(t)
	w := c.work(s, 1)
	first := w.rev("HEAD")
	w.write("bin/run", "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(w.dir, "bin/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../etc/passwd", filepath.Join(w.dir, "link")); err != nil {
		t.Fatal(err)
	}
	w.write("bin-x", "sorts between bin and bin/run in a tree, and before both as a path")
	w.write("näh \"quoted\"\n", "odd")
	w.git("add", "-A")
	w.git("update-index", "--add", "--cacheinfo", "160000,"+string(first)+",sub")
	w.git("commit", "-q", "-m", "the subject\n\nthe body")
	second := w.rev("HEAD")
	w.git("tag", "light")
	w.git("tag", "-a", "-m", "version one\n\nwith notes", "v1.0.0")
	w.git("tag", "-a", "-m", "nested", "nested", "v1.0.0")
	w.git("tag", "tree", "HEAD^{tree}")
	w.git("push", "-q", "origin", "main", "--tags")
	repo := s.repo()

	wantRefs := []registry.Ref{
		{Name: "refs/heads/main", ID: second, Peeled: second},
		{Name: "refs/tags/light", ID: second, Peeled: second},
		{Name: "refs/tags/nested", ID: w.rev("nested"), Peeled: second},
		{Name: "refs/tags/tree", ID: w.rev("HEAD^{tree}"), Peeled: w.rev("HEAD^{tree}")},
		{Name: "refs/tags/v1.0.0", ID: w.rev("v1.0.0"), Peeled: second},
	}
	if diff := cmp.Diff(wantRefs, must(repo.Refs(ctx))); diff != "" {
		t.Errorf("Refs: (-want +got)\n%s", diff)
	}
	for _, want := range wantRefs {
		if got, err := repo.Resolve(ctx, want.Name); err != nil || got != want {
			t.Errorf("Resolve(%s) = %v, %v, want %v", want.Name, got, err, want)
		}
	}

	wantCommit := registry.Commit{
		ID: second, Tree: w.rev("HEAD^{tree}"), Parents: []registry.ObjectID{first},
		Author: ada, Committer: ada, Message: "the subject\n\nthe body\n",
	}
	sameTime := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })
	if diff := cmp.Diff(wantCommit, must(repo.Commit(ctx, second)), sameTime); diff != "" {
		t.Errorf("Commit: (-want +got)\n%s", diff)
	}
	wantTag := registry.TagObject{ID: w.rev("v1.0.0"), Target: second, Name: "v1.0.0", Tagger: ada, Message: "version one\n\nwith notes\n"}
	if diff := cmp.Diff(wantTag, must(repo.TagObject(ctx, w.rev("v1.0.0"))), sameTime); diff != "" {
		t.Errorf("TagObject: (-want +got)\n%s", diff)
	}

	wantFiles := []registry.TreeEntry{
		{Path: "README.md", Mode: registry.Regular, ID: w.rev("HEAD:README.md"), SizeBytes: 16},
		{Path: "bin-x", Mode: registry.Regular, ID: w.rev("HEAD:bin-x"), SizeBytes: 66},
		{Path: "bin/run", Mode: registry.Executable, ID: w.rev("HEAD:bin/run"), SizeBytes: 10},
		{Path: "link", Mode: registry.Symlink, ID: w.rev("HEAD:link"), SizeBytes: 16},
		{Path: "näh \"quoted\"\n", Mode: registry.Regular, ID: "bafe9de4f53e0ee5a6f7ff3e6d23b2d2a4c64fdb", SizeBytes: 3},
		{Path: "sub", Mode: registry.Submodule, ID: first, SizeBytes: 0},
	}
	wantFiles[4].ID = w.rev("HEAD:näh \"quoted\"\n")
	var files []registry.TreeEntry
	for f, err := range repo.Files(ctx, second) {
		if err != nil {
			t.Fatalf("Files: %v", err)
		}
		files = append(files, f)
	}
	if diff := cmp.Diff(wantFiles, files); diff != "" {
		t.Errorf("Files: (-want +got)\n%s", diff)
	}
	for range repo.Files(ctx, second) {
		break // and no process is left
	}
	for _, want := range wantFiles {
		if got, err := repo.File(ctx, second, want.Path); err != nil || got != want {
			t.Errorf("File(%s) = %v, %v, want %v", want.Path, got, err, want)
		}
	}

	if data, err := repo.ReadFile(ctx, second, "bin/run", 10); err != nil || string(data) != "#!/bin/sh\n" {
		t.Errorf("ReadFile(bin/run) = %q, %v", data, err)
	}
	for path, want := range map[string]error{
		"bin": registry.ErrNotFound, "bin/run/x": registry.ErrNotFound, "absent/x": registry.ErrNotFound, "sub": registry.ErrNotFound,
		"link": registry.ErrNotFound, "": registry.ErrNotFound, ".": registry.ErrNotFound, "../x": registry.ErrNotFound,
		"/bin/run": registry.ErrNotFound, "bin//run": registry.ErrNotFound, ".git/config": registry.ErrNotFound, "README.md": registry.ErrTooLarge,
	} {
		if _, err := repo.ReadFile(ctx, second, path, 10); !errors.Is(err, want) {
			t.Errorf("ReadFile(%q) = %v, want %v", path, err, want)
		}
	}

	absent := map[string]func() error{
		"Commit of a tree":     func() error { _, err := repo.Commit(ctx, w.rev("HEAD^{tree}")); return err },
		"Commit":               func() error { _, err := repo.Commit(ctx, absentID); return err },
		"Commit of nothing":    func() error { _, err := repo.Commit(ctx, ""); return err },
		"TagObject, a commit":  func() error { _, err := repo.TagObject(ctx, second); return err },
		"ReadFile":             func() error { _, err := repo.ReadFile(ctx, absentID, "x", 1); return err },
		"OpenBlob":             func() error { _, _, err := repo.OpenBlob(ctx, absentID); return err },
		"OpenBlob of a commit": func() error { _, _, err := repo.OpenBlob(ctx, second); return err },
		"Log":                  func() error { _, err := repo.Log(ctx, absentID, 0, 1); return err },
		"Ancestors":            func() error { _, err := repo.Ancestors(ctx, absentID, nil); return err },
		"Resolve":              func() error { _, err := repo.Resolve(ctx, "refs/heads/absent"); return err },
		"Resolve, no ref":      func() error { _, err := repo.Resolve(ctx, "refs/heads/../../config"); return err },
		"Files": func() error {
			for _, err := range repo.Files(ctx, absentID) {
				return err
			}
			return nil
		},
		"Refs of no repository": func() error { _, err := s.store.Repository(registry.MustModelName("no/no")).Refs(ctx); return err },
		"Commit of no repository": func() error {
			_, err := s.store.Repository(registry.MustModelName("no/no")).Commit(ctx, second)
			return err
		},
	}
	for name, call := range absent {
		if err := call(); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s that is absent = %v, want ErrNotFound", name, err)
		}
	}

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := repo.Refs(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Refs with a context that ended = %v, want Canceled", err)
	}
	if _, err := repo.Commit(cancelled, second); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit with a context that ended = %v, want Canceled", err)
	}
}

func TestRefsWithoutAny(t *testing.T) {
	s := newServer(t)
	repo := must(s.store.Create(t.Context(), fraud))
	if got, err := repo.Refs(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Refs of an empty repository = %v, %v, want none", got, err)
	}
}

// A push that runs has a lock file beside its ref, which is no ref.
func TestRefsWhileOneIsLocked(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	for _, content := range []string{"", string(w.rev("HEAD")) + "\n"} {
		writeFile(t, filepath.Join(repoDir(s), "refs/heads/main.lock"), content)
		if got := refs(t, s.repo()); len(got) != 1 {
			t.Errorf("refs beside a lock that holds %q = %v, want main", content, got)
		}
	}
}

// Readers are kept open. What git writes meanwhile is seen at once, and what it packs anew as well.
// One ref whose object is missing does not hide the others.
func TestRefsWithAMissingObject(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 2)
	w.git("tag", "-a", "-m", "one", "v1.0.0")
	w.git("push", "-q", "origin", "main", "v1.0.0")
	for _, ref := range []string{"refs/tags/v0.1.0", "refs/heads/lost"} {
		writeFile(t, filepath.Join(repoDir(s), ref), strings.Repeat("a", 40)+"\n")
	}
	lost := registry.ObjectID(strings.Repeat("a", 40))
	want := []registry.Ref{
		{Name: "refs/heads/lost", ID: lost, Peeled: lost},
		{Name: "refs/heads/main", ID: w.rev("HEAD"), Peeled: w.rev("HEAD")},
		{Name: "refs/tags/v0.1.0", ID: lost, Peeled: lost},
		{Name: "refs/tags/v1.0.0", ID: w.rev("v1.0.0"), Peeled: w.rev("HEAD")},
	}
	got, err := s.repo().Refs(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Refs = %v (-want +got):\n%s", err, diff)
	}
}

func TestReadSeesWrites(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	for i := range 5 {
		id := w.commit("f", fmt.Sprint(i))
		if _, err := s.repo().Commit(ctx, id); !errors.Is(err, registry.ErrNotFound) {
			t.Fatalf("commit before its push = %v, want ErrNotFound", err)
		}
		w.git("push", "-q", "origin", "main")
		if got, err := s.repo().Commit(ctx, id); err != nil || got.ID != id {
			t.Errorf("commit after its push = %v, %v", got, err)
		}
		if got, err := s.repo().Resolve(ctx, "refs/heads/main"); err != nil || got.ID != id {
			t.Errorf("main after the push = %v, %v, want %s", got, err, id)
		}
	}
	for _, args := range [][]string{{"repack", "-adq"}, {"pack-refs", "--all"}} {
		cmd := w.in("").command(ctx, args...)
		cmd.Dir = repoDir(s)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		if got, err := s.repo().ReadFile(ctx, w.rev("HEAD~3"), "f", 10); err != nil || string(got) != "1" {
			t.Errorf("file after %v = %q, %v", args, got, err)
		}
		if got, err := s.repo().Resolve(ctx, "refs/heads/main"); err != nil || got.ID != w.rev("HEAD") {
			t.Errorf("main after %v = %v, %v", args, got, err)
		}
	}
	// A new repository of the same name knows nothing of the old one.
	id := w.rev("HEAD")
	if err := s.store.Remove(ctx, fraud); err != nil {
		t.Fatal(err)
	}
	if _, err := s.repo().Commit(ctx, id); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("commit of a removed repository = %v, want ErrNotFound", err)
	}
	if _, err := s.store.Create(ctx, fraud); err != nil {
		t.Fatal(err)
	}
	if _, err := s.repo().Commit(ctx, id); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("commit of the repository before = %v, want ErrNotFound", err)
	}
}

func TestConcurrentReads(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 20)
	w.git("push", "-q", "origin", "main")
	head := w.rev("HEAD")
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for range 20 {
				log, err := s.repo().Log(context.Background(), head, 0, 100)
				if err != nil || len(log) != 20 {
					t.Errorf("Log = %d commits, %v, want 20", len(log), err)
				}
				if _, err := s.repo().ReadFile(context.Background(), log[7].ID, "README.md", 100); err != nil {
					t.Errorf("ReadFile: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestFilesLimits(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxFiles, c.MaxDepth = 20, 5 })
	w := newClient(t).work(s, 1)
	tree := func(lines ...string) string {
		cmd := w.command(t.Context(), "mktree", "--missing")
		cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
		return strings.TrimSpace(string(must(cmd.Output())))
	}
	blob, empty := string(w.rev("HEAD:README.md")), w.git("hash-object", "-t", "tree", "-w", "/dev/null")
	// bomb doubles at each level what is below it: 2^30 directories with nothing in them.
	bomb := empty
	for range 30 {
		bomb = tree("040000 tree "+bomb+"\ta", "040000 tree "+bomb+"\tb")
	}
	deep := tree("100644 blob " + blob + "\tf")
	for range 5 {
		deep = tree("040000 tree " + deep + "\td")
	}
	var wide, dirs []string
	for i := range 21 {
		wide = append(wide, fmt.Sprintf("100644 blob %s\tf%02d", blob, i))
		dirs = append(dirs, fmt.Sprintf("040000 tree %s\td%02d", empty, i))
	}
	for name, test := range map[string]struct {
		tree string
		want string
	}{
		"a bomb of directories": {bomb, "deeper than 5"},
		"deep":                  {deep, "deeper than 5"},
		"many":                  {tree(wide...), "more than 20"},
		"many directories":      {tree(dirs...), "more than 20"},
		"almost many":           {tree(wide[1:]...), ""},
	} {
		commit := w.git("commit-tree", "-m", name, test.tree)
		w.git("push", "-q", "origin", commit+":refs/heads/x"+commit)
		var err error
		for _, err = range s.repo().Files(t.Context(), registry.ObjectID(commit)) {
		}
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, registry.ErrTooLarge) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("Files of %s = %v, want %q", name, err, test.want)
		}
	}
}

func TestOpenBlob(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	sizes := []int{0, 1, 1000, 1 << 20, 1<<20 + 1, 5 << 20}
	for _, n := range sizes {
		w.write(fmt.Sprint(n), noise(n))
	}
	w.commit("x", "")
	w.git("push", "-q", "origin", "main")
	for _, n := range sizes {
		id := w.rev(fmt.Sprintf("HEAD:%d", n))
		content, size, err := s.repo().OpenBlob(t.Context(), id)
		if err != nil {
			t.Errorf("OpenBlob of %d bytes: %v", n, err)
			continue
		}
		data, err := io.ReadAll(content)
		if err != nil || size != int64(n) || string(data) != noise(n) {
			t.Errorf("blob of %d bytes: read %d, size %d, %v", n, len(data), size, err)
		}
		if err := content.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	id := w.rev(fmt.Sprintf("HEAD:%d", 5<<20))
	half, _, err := s.repo().OpenBlob(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, half, 1000); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, half); !errors.Is(err, context.Canceled) {
		t.Errorf("read after the context ended = %v, want Canceled", err)
	}
	_ = half.Close()
	unread, _, err := s.repo().OpenBlob(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := unread.Close(); err != nil {
		t.Errorf("Close before the end = %v", err)
	}
	if _, err := unread.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("Read after Close = %v, want an error", err)
	}
}

// The history is
//
//	root - a - b(v1) - c(v3) - m
//	        \- d(v2) --------/
func TestLogAndAncestors(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxCommits = 7 })
	c := newClient(t)
	ctx := t.Context()
	w := c.work(s, 1)
	date := 1700000000
	commit := func(name string) registry.ObjectID {
		date += 100
		for _, role := range []string{"AUTHOR", "COMMITTER"} {
			w.env = append(slices.Clone(w.env), fmt.Sprintf("GIT_%s_DATE=%d +0000", role, date))
		}
		return w.commit(name, name)
	}
	commit("a")
	v1 := commit("b")
	v3 := commit("c")
	w.git("checkout", "-q", "-b", "side", "HEAD~2")
	v2 := commit("d")
	w.git("checkout", "-q", "main")
	w.git("merge", "-q", "-m", "merge", "side")
	m := w.rev("HEAD")
	w.git("push", "-q", "origin", "main")
	tagged := map[registry.ObjectID]bool{v1: true, v2: true, v3: true, m: true}
	stop := func(id registry.ObjectID) bool { return tagged[id] }
	tests := []struct {
		from registry.ObjectID
		want []registry.ObjectID
	}{{m, []registry.ObjectID{v2, v3}}, {v3, []registry.ObjectID{v1}}, {v1, nil}, {v2, nil}}
	for _, test := range tests {
		got, err := s.repo().Ancestors(ctx, test.from, stop)
		slices.Sort(got)
		slices.Sort(test.want)
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("Ancestors(%s) = %v, %v: (-want +got)\n%s", test.from, got, err, diff)
		}
	}
	log, err := s.repo().Log(ctx, m, 0, 7)
	if err != nil || len(log) != 6 || log[0].ID != m || len(log[0].Parents) != 2 || log[5].Parents != nil {
		t.Errorf("Log = %v, %v, want 6 commits from %s on", log, err, m)
	}
	page, err := s.repo().Log(ctx, m, 2, 2)
	if diff := cmp.Diff(log[2:4], page); err != nil || diff != "" {
		t.Errorf("second page of Log = %v: (-want +got)\n%s", err, diff)
	}
	for range 3 {
		commit(fmt.Sprint("more", date))
	}
	w.git("push", "-q", "origin", "main")
	if _, err := s.repo().Ancestors(ctx, w.rev("HEAD"), func(registry.ObjectID) bool { return false }); !errors.Is(err, registry.ErrTooLarge) {
		t.Errorf("Ancestors of a long history = %v, want ErrTooLarge", err)
	}
	if _, err := s.repo().Log(ctx, w.rev("HEAD"), 6, 2); !errors.Is(err, registry.ErrTooLarge) {
		t.Errorf("Log of a long history = %v, want ErrTooLarge", err)
	}
}
