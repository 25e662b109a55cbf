package gitrepo

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// Files is [Repository.Files] for a commit of the push.
func (p *Push) Files(ctx context.Context, commit registry.ObjectID) iter.Seq2[registry.TreeEntry, error] {
	return func(yield func(registry.TreeEntry, error) bool) {
		err := p.store.listFiles(p.command(ctx, listFilesArgs(commit)...), func(e registry.TreeEntry) bool { return yield(e, nil) })
		if err != nil {
			yield(registry.TreeEntry{}, fmt.Errorf("files of commit %s of the push: %w", commit.Short(), err))
		}
	}
}

// FileID returns the object at a path in a commit of the push. Without one it is a [registry.ErrNotFound].
func (p *Push) FileID(ctx context.Context, commit registry.ObjectID, path string) (registry.ObjectID, error) {
	at, err := p.entries(ctx, []registry.ObjectID{commit}, path)
	if err == nil && at[commit] == "" {
		err = fmt.Errorf("file %q in commit %s: %w", path, commit.Short(), registry.ErrNotFound)
	}
	return at[commit], err
}

// Bounds of TouchedPaths.
const (
	maxLookups    = 1_000_000 // of a path in a commit
	maxMergeBases = 256       // pairs of commits for which git looks for merge bases, with a process each
)

// TouchedPaths returns those of paths at which moving a branch from one commit to another changes, adds or deletes something:
// by what the commits do that no ref of the repository reaches, and, when to does not come after from, by how the two
// differ. From is empty for a branch that was not there. A merge changes a path unless it has there what Git makes of its
// parents without a conflict; see [merges.changes]. A push with so many commits or merges that it cannot be told is a
// [registry.ErrTooLarge].
//
// Each path is looked up in each commit, and no two trees are compared: a few kilobytes of trees can list more
// files than there is memory.
func (p *Push) TouchedPaths(ctx context.Context, from, to registry.ObjectID, paths []string) ([]string, error) {
	touched, err := p.touchedPaths(ctx, from, to, paths)
	if err != nil {
		return nil, fmt.Errorf("paths that the push changes: %w", err)
	}
	return touched, nil
}

func (p *Push) touchedPaths(ctx context.Context, from, to registry.ObjectID, paths []string) ([]string, error) {
	steps, err := p.newSteps(ctx, to, maxLookups/max(1, len(paths)))
	if err != nil {
		return nil, err
	}
	if from != "" {
		follows, err := p.IsAncestor(ctx, from, to)
		if err != nil {
			return nil, err
		}
		if !follows {
			steps = append(steps, []registry.ObjectID{to, from})
		}
	}
	var commits []registry.ObjectID
	known := map[registry.ObjectID]bool{}
	for _, step := range steps {
		for _, id := range step {
			if !known[id] {
				known[id] = true
				commits = append(commits, id)
			}
		}
	}
	m := merges{push: p, bases: map[[2]registry.ObjectID][]registry.ObjectID{}}
	var touched []string
	for _, path := range paths {
		changed, err := m.touch(ctx, steps, commits, path)
		if err != nil {
			return nil, err
		}
		if changed {
			touched = append(touched, path)
		}
	}
	return touched, nil
}

// changes reports whether a commit, the first of step, has at a path what none of its parents has, the others.
func changes(step []registry.ObjectID, at map[registry.ObjectID]registry.ObjectID) bool {
	mine := at[step[0]]
	if len(step) == 1 {
		return mine != ""
	}
	return !slices.ContainsFunc(step[1:], func(parent registry.ObjectID) bool { return at[parent] == mine })
}

// merges tells what the merges of a push change.
type merges struct {
	push    *Push
	bases   map[[2]registry.ObjectID][]registry.ObjectID // the merge bases of two commits, as far as they were asked for
	lookups int                                          // of a path in a merge base

	path string
	at   map[registry.ObjectID]registry.ObjectID // what is at the path, by commit; empty for nothing
}

// touch reports whether one of steps changes a path. All their commits are among commits.
func (m *merges) touch(ctx context.Context, steps [][]registry.ObjectID, commits []registry.ObjectID, path string) (bool, error) {
	at, err := m.push.entries(ctx, commits, path)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(steps, func(step []registry.ObjectID) bool { return changes(step, at) }) {
		return true, nil
	}
	// Only now git is asked for merge bases.
	m.path, m.at = path, at
	for _, step := range steps {
		if changed, err := m.changes(ctx, step); changed || err != nil {
			return changed, err
		}
	}
	return false, nil
}

// changes reports whether a merge whose parents differ at the path takes from one of them what another had changed: who
// merges so undoes the change. A parent whose content the merge does not have must not have changed the path since the
// merge base with each parent whose content it has. That is the three-way merge; and for more than two parents, of any two
// of them.
func (m *merges) changes(ctx context.Context, step []registry.ObjectID) (bool, error) {
	mine, parents := m.at[step[0]], step[1:]
	for _, left := range parents {
		if m.at[left] == mine {
			continue
		}
		for _, taken := range parents {
			if m.at[taken] != mine {
				continue
			}
			base, clean, err := m.base(ctx, taken, left)
			if err != nil || !clean || base != m.at[left] {
				return true, err
			}
		}
	}
	return false, nil
}

// base is what the merge base of two commits has at the path. Without one it is nothing, as for Git. Two merge bases are
// merged themselves, again as Git does it; of more than two all have to have the same. Where that gives no answer it is not
// clean.
func (m *merges) base(ctx context.Context, a, b registry.ObjectID) (id registry.ObjectID, clean bool, err error) {
	bases, err := m.basesOf(ctx, a, b)
	if err != nil || len(bases) == 0 {
		return "", err == nil, err
	}
	for _, base := range bases {
		if err := m.look(ctx, base); err != nil {
			return "", false, err
		}
	}
	id = m.at[bases[0]]
	if !slices.ContainsFunc(bases, func(base registry.ObjectID) bool { return m.at[base] != id }) {
		return id, true, nil
	}
	if len(bases) > 2 {
		return "", false, nil
	}
	other := m.at[bases[1]]
	switch before, clean, err := m.base(ctx, bases[0], bases[1]); {
	case err != nil || !clean:
		return "", false, err
	case before == id:
		return other, true, nil
	case before == other:
		return id, true, nil
	}
	return "", false, nil
}

// look makes sure that it is known what a commit has at the path.
func (m *merges) look(ctx context.Context, commit registry.ObjectID) error {
	if _, known := m.at[commit]; known {
		return nil
	}
	if m.lookups++; m.lookups > maxLookups {
		return fmt.Errorf("more than %d merge bases and paths: %w", maxLookups, registry.ErrTooLarge)
	}
	at, err := m.push.entries(ctx, []registry.ObjectID{commit}, m.path)
	m.at[commit] = at[commit]
	return err
}

// basesOf are the best common ancestors of two commits.
func (m *merges) basesOf(ctx context.Context, a, b registry.ObjectID) ([]registry.ObjectID, error) {
	pair := [2]registry.ObjectID{min(a, b), max(a, b)}
	if bases, known := m.bases[pair]; known {
		return bases, nil
	}
	if len(m.bases) == maxMergeBases {
		return nil, fmt.Errorf("more than %d merges of what is not the same on both sides: %w", maxMergeBases, registry.ErrTooLarge)
	}
	out, err := m.push.command(ctx, "merge-base", "--all", string(a), string(b)).output()
	if exitCode(err) == 1 && len(out) == 0 {
		err = nil // there is none
	}
	if err != nil {
		return nil, err
	}
	bases, err := parseObjectIDs(string(out))
	m.bases[pair] = bases
	return bases, err
}

func parseObjectIDs(text string) (ids []registry.ObjectID, err error) {
	for field := range strings.FieldsSeq(text) {
		id, err := registry.ParseObjectID(field)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// newSteps are the commits of the push that no ref of the repository reaches, each with its parents behind it, every one
// once.
func (p *Push) newSteps(ctx context.Context, tip registry.ObjectID, most int) ([][]registry.ObjectID, error) {
	cmd := p.command(ctx, "rev-list", "--parents", "--max-count="+strconv.Itoa(most+1), "--not", "--all", "--not", "--end-of-options", string(tip))
	out, err := cmd.output()
	if err != nil {
		return nil, err
	}
	var steps [][]registry.ObjectID
	ids := 0
	for line := range strings.Lines(string(out)) {
		step, err := parseObjectIDs(line)
		if err != nil {
			return nil, err
		}
		slices.Sort(step[1:])
		step = slices.Compact(step)
		steps = append(steps, step)
		ids += len(step)
	}
	// A commit has one parent or two; one could have them by the thousand.
	if len(steps) > most || ids > 4*most {
		return nil, fmt.Errorf("more than %d commits: %w", most, registry.ErrTooLarge)
	}
	return steps, nil
}

// entries are the objects at a path in commits; empty where there is none.
func (p *Push) entries(ctx context.Context, commits []registry.ObjectID, path string) (map[registry.ObjectID]registry.ObjectID, error) {
	at := map[registry.ObjectID]registry.ObjectID{}
	if strings.ContainsAny(path, "\n\x00") {
		return at, nil // no such name can be asked for
	}
	for batch := range slices.Chunk(commits, objectBatch) {
		names := make([]string, len(batch))
		for i, id := range batch {
			names[i] = string(id) + ":" + path
		}
		infos, err := p.infos(ctx, names)
		if err != nil {
			return nil, err
		}
		for i, info := range infos {
			at[batch[i]] = info.id
		}
	}
	return at, nil
}
