package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/herdbook/herdbook/registry"
)

// WriteRecords writes commits in their order, by one git process, and makes them durable. On an error some of the
// refs may have been written and others not; each has all its commits or none. Nothing is written when a note is about a
// commit that is absent, a [registry.ErrNotFound].
//
// Two calls for one repository must not run at the same time.
func (r *Repository) WriteRecords(ctx context.Context, commits []registry.RecordCommit) error {
	if len(commits) == 0 {
		return nil
	}
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	defer r.store.share(r)()
	if err := r.writeRecords(ctx, commits); err != nil {
		return fmt.Errorf("write records of %s: %w", r.name, err)
	}
	return nil
}

func (r *Repository) writeRecords(ctx context.Context, commits []registry.RecordCommit) error {
	exists := map[string]bool{}
	var updates []registry.RefUpdate
	for _, c := range commits {
		if !registry.ValidRefName(c.Ref) {
			return fmt.Errorf("%q is no ref", c.Ref)
		}
		if err := r.mustHaveCommits(ctx, slices.Collect(maps.Keys(c.Notes))); err != nil {
			return err
		}
		if _, seen := exists[c.Ref]; seen {
			continue
		}
		var err error
		if exists[c.Ref], err = r.hasRef(ctx, c.Ref); err != nil {
			return err
		}
		updates = append(updates, registry.RefUpdate{Ref: c.Ref})
	}
	stream, err := importStream(commits, exists)
	if err != nil {
		return err
	}
	// Killed half-way it would leave its refs alone. But it is short, and better done.
	life, cancel := r.store.untilKilled(context.WithoutCancel(ctx))
	defer cancel()
	cmd := r.store.command(life, r.path, "fast-import", "--quiet", "--done", "--date-format=raw")
	cmd.holdLock(r.store)
	cmd.Stdin = bytes.NewReader(stream)
	if err := cmd.run(); err != nil {
		return errors.Join(err, r.removeFailedImport())
	}
	return r.Sync(life, updates)
}

func (r *Repository) hasRef(ctx context.Context, ref string) (bool, error) {
	_, err := read(ctx, r, "ref "+ref, func(s *reader) (*plumbing.Reference, error) {
		return s.Reference(plumbing.ReferenceName(ref))
	})
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (r *Repository) mustHaveCommits(ctx context.Context, ids []registry.ObjectID) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := read(ctx, r, "commits", func(s *reader) (struct{}, error) {
		for _, id := range ids {
			if _, err := s.EncodedObject(plumbing.CommitObject, plumbing.NewHash(string(id))); err != nil {
				return struct{}{}, fmt.Errorf("commit %s: %w", id, err)
			}
		}
		return struct{}{}, nil
	})
	return err
}

// importStream is what git-fast-import(1) reads. Each ref begins with its present tip if it exists.
func importStream(commits []registry.RecordCommit, exists map[string]bool) ([]byte, error) {
	var b bytes.Buffer
	data := func(content []byte) {
		fmt.Fprintf(&b, "data %d\n", len(content))
		b.Write(content)
		b.WriteByte('\n')
	}
	started := map[string]bool{}
	for _, c := range commits {
		fmt.Fprintf(&b, "commit %s\n", c.Ref)
		for _, role := range []string{"author", "committer"} {
			fmt.Fprintf(&b, "%s %s <%s> %d +0000\n", role, identity(c.Author.Name), identity(c.Author.Email), c.Author.At.Unix())
		}
		data([]byte(c.Message))
		if exists[c.Ref] && !started[c.Ref] {
			fmt.Fprintf(&b, "from %s^0\n", c.Ref)
		}
		started[c.Ref] = true
		for _, path := range slices.Sorted(maps.Keys(c.Files)) {
			if !recordPath(path) {
				return nil, fmt.Errorf("record file %q: not a path for a record", path)
			}
			fmt.Fprintf(&b, "M 100644 inline %s\n", path)
			data(c.Files[path])
		}
		for _, id := range slices.Sorted(maps.Keys(c.Notes)) {
			fmt.Fprintf(&b, "N inline %s\n", id)
			data(c.Notes[id])
		}
	}
	b.WriteString("done\n")
	return b.Bytes(), nil
}

// identity drops what would end a name or an address in a commit.
func identity(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == '<' || r == '>' || r == 0x7f {
			return -1
		}
		return r
	}, s))
}

// recordPath reports whether Git takes path as it is.
func recordPath(path string) bool {
	if !fs.ValidPath(path) || path == "." || strings.ContainsAny(path, "\"\\\n\x00") {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.EqualFold(part, ".git") {
			return false
		}
	}
	return true
}

// removeFailedImport removes what a fast-import that failed leaves: a report, whose error says the same, and its pack. Pushes write
// theirs in quarantine, and a repack does not run meanwhile.
func (r *Repository) removeFailedImport() error {
	entries, err := os.ReadDir(r.path)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "fast_import_crash_") {
			err = errors.Join(err, os.Remove(filepath.Join(r.path, e.Name())))
		}
	}
	return errors.Join(err, r.store.removeLeftoversFrom(r.path, "objects/pack"))
}

// RecordTip returns the message and the name of the last commit of a ref. No such ref is a
// [registry.ErrNotFound].
func (r *Repository) RecordTip(ctx context.Context, ref string) (message string, id registry.ObjectID, err error) {
	found, err := r.Resolve(ctx, ref)
	if err != nil {
		return "", "", err
	}
	commit, err := r.Commit(ctx, found.ID)
	return commit.Message, found.ID, err
}
