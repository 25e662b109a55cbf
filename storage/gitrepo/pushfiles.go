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

// maxLookups bounds the questions of TouchedPaths: commits times paths.
const maxLookups = 1_000_000

// TouchedPaths returns those of paths at which moving a branch from one commit to another changes, adds or deletes something:
// by what the commits do that no ref of the repository reaches, and, when to does not come after from, by how the two
// differ. From is empty for a branch that was not there. A merge changes what is in none of its parents. A push with so many
// commits that it cannot be told is a [registry.ErrTooLarge].
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
	var touched []string
	for _, path := range paths {
		at, err := p.entries(ctx, commits, path)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(steps, func(step []registry.ObjectID) bool { return changes(step, at) }) {
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

// newSteps are the commits of the push that no ref of the repository reaches, each with its parents behind it.
func (p *Push) newSteps(ctx context.Context, tip registry.ObjectID, most int) ([][]registry.ObjectID, error) {
	cmd := p.command(ctx, "rev-list", "--parents", "--max-count="+strconv.Itoa(most+1), "--not", "--all", "--not", "--end-of-options", string(tip))
	out, err := cmd.output()
	if err != nil {
		return nil, err
	}
	var steps [][]registry.ObjectID
	for line := range strings.Lines(string(out)) {
		var step []registry.ObjectID
		for field := range strings.FieldsSeq(line) {
			id, err := registry.ParseObjectID(field)
			if err != nil {
				return nil, err
			}
			step = append(step, id)
		}
		steps = append(steps, step)
	}
	if len(steps) > most {
		return nil, fmt.Errorf("more than %d commits: %w", most, registry.ErrTooLarge)
	}
	return steps, nil
}

// entries are the objects at a path in commits, without those in which there is none.
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
			if info.kind != "" {
				at[batch[i]] = info.id
			}
		}
	}
	return at, nil
}
