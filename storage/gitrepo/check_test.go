package gitrepo_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/gitrepo"
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
		written := 0
		if err := s.repo().CopyTo(t.Context(), durabletest.NoSync(), to, func(n int) { written += n }); err != nil {
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
