package gitrepo_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// node is a commit that has some content at the path "f", or no such file.
type node struct {
	name, content string
	parents       string // names
}

// commitNodes makes commits out of nodes, each with a branch of its name behind prefix.
func (c *client) commitNodes(prefix string, nodes []node) {
	c.tb.Helper()
	var b strings.Builder
	for _, n := range nodes {
		message := prefix + n.name
		fmt.Fprintf(&b, "commit refs/heads/%s%s\ncommitter A <a@example.org> 1700000000 +0000\ndata %d\n%s\n", prefix, n.name, len(message), message)
		word := "from"
		for parent := range strings.FieldsSeq(n.parents) {
			fmt.Fprintf(&b, "%s refs/heads/%s%s\n", word, prefix, parent)
			word = "merge"
		}
		b.WriteString("deleteall\n")
		if n.content != "" {
			fmt.Fprintf(&b, "M 100644 inline f\ndata %d\n%s\n", len(n.content), n.content)
		}
		b.WriteByte('\n')
	}
	cmd := c.command(context.Background(), "fast-import", "--quiet")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		c.tb.Fatalf("git fast-import: %v\n%s", err, out)
	}
}

// A merge touches a path unless it has there what a three-way merge gives without a conflict.
func TestTouchedPathsOfAMerge(t *testing.T) {
	// There since long, with a branch each; behind them the changes of somebody else.
	simple := []node{{"root", "old", ""}, {"main", "new", "root"}, {"feature", "old", "root"}}
	both := []node{{"root", "old", ""}, {"main", "new", "root"}, {"feature", "own", "root"}}
	added := []node{{"root", "", ""}, {"main", "new", "root"}, {"feature", "", "root"}}
	deleted := []node{{"root", "old", ""}, {"main", "", "root"}, {"feature", "old", "root"}}
	unrelated := []node{{"main", "new", ""}, {"empty", "", ""}, {"filled", "old", ""}}
	// Each side has merged the other's first commit; then one goes on.
	crissCross := []node{
		{"root", "old", ""},
		{"m1", "new", "root"},
		{"f1", "old", "root"},
		{"m2", "new", "m1 f1"},
		{"feature", "new", "f1 m1"},
		{"main", "newer", "m2"},
	}
	crissCrossBack := []node{
		{"root", "old", ""},
		{"m1", "old", "root"},
		{"f1", "new", "root"},
		{"m2", "new", "m1 f1"},
		{"feature", "new", "f1 m1"},
		{"main", "newer", "m2"},
	}
	crissCrossConflict := func(resolved string) []node {
		return []node{
			{"root", "old", ""},
			{"m1", "one", "root"},
			{"f1", "two", "root"},
			{"m2", resolved, "m1 f1"},
			{"feature", resolved, "f1 m1"},
			{"main", "newer", "m2"},
		}
	}
	threeBases := func(first string) []node {
		return []node{
			{"root", "old", ""},
			{"b1", first, "root"},
			{"b2", "old", "root"},
			{"b3", "old", "root"},
			{"feature", first, "b1 b2 b3"},
			{"m2", first, "b1 b2 b3"},
			{"main", "newer", "m2"},
		}
	}
	octopus := []node{{"root", "old", ""}, {"main", "new", "root"}, {"a", "old", "root"}, {"b", "old", "root"}, {"own", "own", "root"}}
	tests := []struct {
		name  string
		there []node
		push  []node // the last one
		want  bool
	}{
		{"another's change", simple, []node{{"merge", "new", "feature main"}}, false},
		{"another's change, into its branch", simple, []node{{"merge", "new", "main feature"}}, false},
		{"the old state as its own", simple, []node{{"merge", "old", "feature main"}}, true},
		{"the old state of the other side", simple, []node{{"merge", "old", "main feature"}}, true},
		{"a third state", simple, []node{{"merge", "third", "main feature"}}, true},
		{"nothing", simple, []node{{"merge", "", "main feature"}}, true},
		{"the old state, with a commit on top", simple, []node{{"merge", "old", "main feature"}, {"top", "old", "merge"}}, true},
		{"the old state, merged once more", simple, []node{{"merge", "old", "feature main"}, {"top", "old", "main merge"}}, true},
		{"a good merge with a commit on top", simple, []node{{"merge", "new", "main feature"}, {"top", "new", "merge"}}, false},
		{"the first of two changes", both, []node{{"merge", "new", "main feature"}}, true},
		{"the second of two changes", both, []node{{"merge", "own", "main feature"}}, true},
		{"neither of two changes", both, []node{{"merge", "old", "main feature"}}, true},
		{"a new file", added, []node{{"merge", "new", "feature main"}}, false},
		{"without a new file", added, []node{{"merge", "", "feature main"}}, true},
		{"a deleted file", deleted, []node{{"merge", "", "feature main"}}, false},
		{"a deleted file that comes back", deleted, []node{{"merge", "old", "feature main"}}, true},
		{"no common history, without the file", unrelated, []node{{"merge", "new", "empty main"}}, false},
		{"no common history, and the file goes", unrelated, []node{{"merge", "", "empty main"}}, true},
		{"no common history, with another file", unrelated, []node{{"merge", "new", "filled main"}}, true},
		{"no common history, and the other file wins", unrelated, []node{{"merge", "old", "filled main"}}, true},
		{"two bases, another's change", crissCross, []node{{"merge", "newer", "feature main"}}, false},
		{"two bases, the state before", crissCross, []node{{"merge", "new", "feature main"}}, true},
		{"two bases, the state long before", crissCross, []node{{"merge", "old", "feature main"}}, true},
		{"two bases the other way, another's change", crissCrossBack, []node{{"merge", "newer", "feature main"}}, false},
		{"two bases the other way, the state before", crissCrossBack, []node{{"merge", "new", "feature main"}}, true},
		{"two bases in conflict", crissCrossConflict("one"), []node{{"merge", "newer", "feature main"}}, true},
		{"two bases in conflict, the other way", crissCrossConflict("two"), []node{{"merge", "newer", "feature main"}}, true},
		{"two bases in conflict, and the file is gone", crissCrossConflict(""), []node{{"merge", "newer", "feature main"}}, true},
		{"three bases that have the same", threeBases("old"), []node{{"merge", "newer", "feature main"}}, false},
		{"three bases, the state before", threeBases("old"), []node{{"merge", "old", "feature main"}}, true},
		{"three bases that differ", threeBases("new"), []node{{"merge", "newer", "feature main"}}, true},
		{"three parents, another's change", octopus, []node{{"merge", "new", "a b main"}}, false},
		{"three parents, the old state", octopus, []node{{"merge", "old", "a main b"}}, true},
		{"three parents, two of them changed", octopus, []node{{"merge", "new", "a own main"}}, true},
	}
	s := newServer(t)
	c := newClient(t).work(s, 0)
	there, merges := []string{"push", "-q", s.url()}, []string{"push", "-q", s.url()}
	for i, test := range tests {
		c.commitNodes(fmt.Sprintf("%d/", i), slices.Concat(test.there, test.push))
		for _, n := range test.there {
			there = append(there, fmt.Sprintf("%d/%s", i, n.name))
		}
		// A branch that is there moves on, to the merge that has it as its last parent.
		parents := strings.Fields(test.push[0].parents)
		merges = append(merges, fmt.Sprintf("%d/%s:%[1]d/%s", i, test.push[len(test.push)-1].name, parents[len(parents)-1]))
	}
	c.git(there...)
	got := map[string]bool{}
	s.check = func(ctx context.Context, p *gitrepo.Push) error {
		for _, u := range p.Updates {
			touched, err := p.TouchedPaths(ctx, u.Old, u.New, []string{"f"})
			if err != nil {
				return err
			}
			number, _, _ := strings.Cut(strings.TrimPrefix(u.Ref, "refs/heads/"), "/")
			got[number] = len(touched) > 0
		}
		return nil
	}
	c.git(merges...)
	for i, test := range tests {
		if touched, checked := got[fmt.Sprint(i)]; touched != test.want || !checked {
			t.Errorf("a merge that takes %s touches the path: %v (checked: %v), want %v", test.name, touched, checked, test.want)
		}
	}
}

// Git is asked for a bounded number of merge bases, and only where the parents of a merge differ.
func TestTouchedPathsOfManyMerges(t *testing.T) {
	const most = 256
	s := newServer(t)
	c := newClient(t).work(s, 0)
	nodes := []node{{"root", "old", ""}, {"main0", "new", "root"}}
	for i := range most + 1 {
		nodes = append(nodes, node{fmt.Sprintf("side%d", i), "old", "root"}, node{fmt.Sprintf("main%d", i+1), "new", fmt.Sprintf("main%d side%d", i, i)})
	}
	c.commitNodes("", nodes)
	c.git("push", "-q", s.url(), "main0:main")
	tests := []struct {
		tip   string
		paths []string
		want  error
	}{
		{fmt.Sprintf("main%d", most+1), []string{"f"}, registry.ErrTooLarge},
		{fmt.Sprintf("main%d", most+1), []string{"g"}, nil},
		{fmt.Sprintf("main%d", most), []string{"g", "f"}, nil},
	}
	for _, test := range tests {
		var touched []string
		var err error
		s.check = func(ctx context.Context, p *gitrepo.Push) error {
			touched, err = p.TouchedPaths(ctx, p.Updates[0].Old, p.Updates[0].New, test.paths)
			return &gitrepo.Refusal{Lines: []string{"seen"}}
		}
		c.fails("push", s.url(), test.tip+":main")
		if !errors.Is(err, test.want) || len(touched) > 0 {
			t.Errorf("TouchedPaths(%s) of %s = %q, %v, want none, %v", test.paths, test.tip, touched, err, test.want)
		}
	}
}

// The bound is on parents too: a commit may have any number of them, and one more than once.
func TestTouchedPathsOfManyParents(t *testing.T) {
	s := newServer(t)
	c := newClient(t).work(s, 2)
	c.git("push", "-q", s.url(), "main")
	var sides []node
	names := ""
	for i := range 20 {
		sides = append(sides, node{fmt.Sprintf("side%d", i), "", ""})
		names += fmt.Sprintf(" side%d", i)
	}
	c.commitNodes("", append(sides, node{"distinct", "", names}))
	c.git(append([]string{"push", "-q", s.url()}, strings.Fields(names)...)...)
	twice := fmt.Sprintf("parent %s\nparent %s\n", c.rev("HEAD"), c.rev("HEAD~"))
	c.write("commit", fmt.Sprintf("tree %s\n%sauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n\nmany\n", c.rev("HEAD^{tree}"), strings.Repeat(twice, 10_000)))
	c.git("branch", "twice", c.git("hash-object", "-t", "commit", "-w", "commit"))
	// So many that only a few commits may be looked at; and no repository can have them.
	paths := slices.Repeat([]string{"\n"}, 250_000)
	for branch, want := range map[string]error{"distinct": registry.ErrTooLarge, "twice": nil} {
		var err error
		s.check = func(ctx context.Context, p *gitrepo.Push) error {
			_, err = p.TouchedPaths(ctx, "", p.Updates[0].New, paths)
			return &gitrepo.Refusal{Lines: []string{"seen"}}
		}
		c.fails("push", s.url(), branch)
		if !errors.Is(err, want) {
			t.Errorf("TouchedPaths of a commit with %s parents = %v, want %v", branch, err, want)
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
