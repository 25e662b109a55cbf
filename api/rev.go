package api

import (
	"context"
	"fmt"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// Resolver finds the commit that a revision names.
type Resolver struct {
	Index   revisions
	Commits Commits
}

type revisions interface {
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	Environment(ctx context.Context, modelID string, env registry.EnvironmentName) (registry.EnvironmentState, error)
	Refs(ctx context.Context, modelID string) (map[string]registry.AnnouncedRef, error)
}

// Commit is the commit that rev names now, or registry.ErrNotFound.
func (r Resolver) Commit(ctx context.Context, m registry.Model, rev registry.Rev) (registry.ObjectID, error) {
	switch rev.Kind {
	case registry.RevVersion:
		v, err := r.Index.Version(ctx, m.ID, rev.Tag)
		return v.Version.Commit, err
	case registry.RevEnvironment:
		state, err := r.Index.Environment(ctx, m.ID, rev.Environment)
		if err == nil && state.Current == nil {
			err = fmt.Errorf("nothing is in %s: %w", rev.Environment, registry.ErrNotFound)
		}
		if err != nil {
			return "", err
		}
		return state.Current.Commit, nil
	case registry.RevBranch:
		refs, err := r.Index.Refs(ctx, m.ID)
		if err != nil {
			return "", err
		}
		if id := refs[registry.BranchRef(rev.Branch)].ID; id != "" {
			return id, nil
		}
		return "", fmt.Errorf("branch %s: %w", rev.Branch, registry.ErrNotFound)
	}
	has, err := r.Commits.HasCommit(ctx, m.Name, rev.Commit)
	if err == nil && !has {
		err = fmt.Errorf("commit %s: %w", rev.Commit, registry.ErrNotFound)
	}
	return rev.Commit, err
}

func errNoVersionAt(commit registry.ObjectID) error {
	return fmt.Errorf("no version stands at commit %s: %w", commit, registry.ErrNotFound)
}

// kindsParam reads a list of kinds of edges, joined by commas.
func kindsParam(text string) ([]registry.EdgeKind, error) {
	if text == "" {
		return nil, nil
	}
	var kinds []registry.EdgeKind
	for name := range strings.SplitSeq(text, ",") {
		kind := registry.EdgeKind(name)
		switch kind {
		case registry.DerivedFrom, registry.Used, registry.GeneratedBy, registry.EvaluatedWith:
			kinds = append(kinds, kind)
		default:
			return nil, registry.Invalid("kinds", "kinds are %s, %s, %s and %s, joined by commas", registry.DerivedFrom, registry.Used, registry.GeneratedBy, registry.EvaluatedWith)
		}
	}
	return kinds, nil
}
