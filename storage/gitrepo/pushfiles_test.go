package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// touched collects which of some paths the pushes to a server change, as the check sees them.
type touched struct {
	mu    sync.Mutex
	all   []string
	found []string
}

func (w *touched) check(ctx context.Context, p *gitrepo.Push) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range p.Updates {
		found, err := p.TouchedPaths(ctx, u.Old, u.New, w.all)
		if err != nil {
			return err
		}
		w.found = append(w.found, found...)
	}
	return nil
}

// take gives what was found since the last call.
func (w *touched) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := w.found
	w.found = nil
	return found
}

func TestPushTouchedPaths(t *testing.T) {
	seen := &touched{all: []string{"dir/naïve \"name\"", "kept", "moved", "never", "passing", "renamed", "side", "dir", "a\nb"}}
	s := newServer(t)
	s.check = seen.check
	c := newClient(t).work(s, 0)
	c.write("kept", "1")
	c.write("dir/naïve \"name\"", "1")
	c.commit("moved", "some text that git would see again under another name\n")
	steps := []struct {
		name string
		do   func()
		args []string
		want []string
	}{
		{"a first push", func() {}, []string{"main"}, []string{"dir/naïve \"name\"", "kept", "moved", "dir"}},
		{"nothing new under another name", func() {}, []string{"main:again"}, nil},
		{"a file renamed and one deleted", func() {
			c.git("mv", "moved", "renamed")
			c.git("rm", "-q", "kept")
			c.git("commit", "-q", "-m", "rename")
		}, []string{"main"}, []string{"kept", "moved", "renamed"}},
		{"two commits, the second takes the first back", func() {
			c.commit("passing", "1")
			c.git("rm", "-q", "passing")
			c.git("commit", "-q", "-m", "away")
		}, []string{"main"}, []string{"passing"}},
		{"a merge of what is there already", func() {
			c.git("checkout", "-q", "-b", "side", "HEAD~1")
			c.commit("side", "1")
			c.git("push", "-q", s.url(), "side")
			c.git("checkout", "-q", "main")
			c.git("merge", "-q", "--no-edit", "side")
		}, []string{"main"}, nil},
		{"a branch set back", func() { c.git("reset", "-q", "--hard", "HEAD~1") }, []string{"+main"}, []string{"side"}},
	}
	for _, step := range steps {
		step.do()
		seen.take()
		c.git(append([]string{"push", "-q", s.url()}, step.args...)...)
		if diff := cmp.Diff(step.want, seen.take()); diff != "" {
			t.Errorf("%s: changed paths (-want +got):\n%s", step.name, diff)
		}
	}
}

// A tree of few objects that lists more files than there are atoms ends the walk, and soon.
func TestPushOfATreeBomb(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxFiles, c.MaxPushObjects = 1000, 1000 })
	c := newClient(t).work(s, 0)
	c.commit("f", "x")
	tree := c.git("rev-parse", "HEAD^{tree}")
	for range 10 {
		list := ""
		for n := range 10 {
			list += fmt.Sprintf("040000 tree %s\t%d\n", tree, n)
		}
		c.write("list", list)
		tree = c.git("-c", "alias.mk=!git mktree < list", "mk")
	}
	commit := registry.ObjectID(c.git("commit-tree", "-m", "bomb", tree))
	var filesErr, pathsErr error
	var touched []string
	s.check = func(ctx context.Context, p *gitrepo.Push) error {
		for _, err := range p.Files(ctx, commit) {
			filesErr = err
		}
		touched, pathsErr = p.TouchedPaths(ctx, "", commit, []string{"0/1/2", "0/x"})
		return &gitrepo.Refusal{Lines: []string{"seen"}}
	}
	c.fails("push", s.url(), string(commit)+":refs/heads/bomb")
	if !errors.Is(filesErr, registry.ErrTooLarge) {
		t.Errorf("Files of a tree bomb end with %v, want ErrTooLarge", filesErr)
	}
	if pathsErr != nil || !slices.Equal(touched, []string{"0/1/2"}) {
		t.Errorf("TouchedPaths of a tree bomb = %q, %v, want 0/1/2", touched, pathsErr)
	}
}
