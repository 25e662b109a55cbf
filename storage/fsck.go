package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/index"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/journal"
)

// FsckOptions say how thoroughly to look.
type FsckOptions struct {
	BytesPerSecond int64 `json:"bytes_per_second"` // of blobs, at most; 0 is as fast as the disk
	SkipContent    bool  `json:"skip_content"`     // do not read the blobs, nor the objects of repositories
}

// FsckResult is what a check has looked at.
type FsckResult struct {
	Groups   uint64 `json:"groups"`
	Models   int    `json:"models"`
	Versions int    `json:"versions"`
	Blobs    int64  `json:"blobs"`
	Bytes    int64  `json:"bytes"`
	Unnamed  int64  `json:"unnamed_blobs"` // that nothing names: gc removes them
	Damages  int    `json:"damages"`
	Notes    int    `json:"notes"`
}

// Fsck looks whether everything that was acknowledged is there and is what it was: the journal's chain, the index against
// the journal, the repositories and the index against them, every blob against its digest. What it finds goes to the
// report. A damaged blob is set aside, so that nobody gets it; beside that nothing is changed. The server may
// be running. The error is about the check itself.
func (d *Data) Fsck(ctx context.Context, o FsckOptions, report Report) (FsckResult, error) {
	c := check{Data: d, options: o, report: report}
	found := report.Found
	c.report.Found = func(f Finding) {
		if f.Severity == Damage {
			c.result.Damages++
		} else {
			c.result.Notes++
		}
		if found != nil {
			found(f)
		}
	}
	for _, look := range []func(context.Context) error{c.journal, c.index, c.repositories, c.blobs} {
		if err := look(ctx); err != nil {
			return c.result, err
		}
	}
	return c.result, nil
}

type check struct {
	*Data
	options FsckOptions
	report  Report
	result  FsckResult
}

func (c *check) damage(what, name, advice, problem string, args ...any) {
	c.report.found(Finding{Severity: Damage, What: what, Name: name, Problem: fmt.Sprintf(problem, args...), Advice: advice})
}

func (c *check) note(what, name, advice, problem string, args ...any) {
	c.report.found(Finding{Severity: Note, What: what, Name: name, Problem: fmt.Sprintf(problem, args...), Advice: advice})
}

func (c *check) journal(ctx context.Context) error {
	next := c.Data.journal.Next()
	s := c.report.step("journal", "groups", int64(next-1))
	head, err := c.Data.journal.Verify(ctx)
	if errors.Is(err, journal.ErrCorrupt) {
		c.damage("journal", "", "stop the server and put the journal back from a backup", "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	c.result.Groups = head.Seq
	s.add(int64(head.Seq))
	s.done()
	return nil
}

// index makes a second index from the journal and compares.
func (c *check) index(ctx context.Context) error {
	path := c.path("run", durable.TempName()+".db")
	if err := os.MkdirAll(filepath.Dir(path), secretsPerm); err != nil {
		return err
	}
	other, err := index.OpenCopy(path)
	if err != nil {
		return err
	}
	defer func() {
		_ = other.Discard()
		_ = os.Remove(path)
	}()
	s := c.report.step("index", "groups", int64(c.Data.journal.Next()-1))
	// Most of it before the index that is in use is held still.
	applied := c.Data.journal.Next() - 1
	add := func(groups int) { s.add(int64(groups)) }
	if err := c.replayInto(ctx, other, 0, applied, add); err != nil {
		return c.indexError(err)
	}
	return c.indexError(c.Index.Snapshot(ctx, func(now index.Snapshot) error {
		seq, err := now.Applied()
		if err != nil {
			return err
		}
		if err := c.replayInto(ctx, other, min(applied, seq), seq, add); err != nil {
			return err
		}
		s.done()
		return other.Snapshot(ctx, func(made index.Snapshot) error {
			difference, err := index.Difference(now, made)
			if err == nil && difference != "" {
				c.damage("index", "", "stop the server and run: herdbook reindex", "it is not what follows from the journal: %s", difference)
			}
			return err
		})
	}))
}

// indexError reports damage of the index or the journal, and gives back any other error.
func (c *check) indexError(err error) error {
	switch {
	case errors.Is(err, index.ErrDamaged):
		c.damage("index", "", "stop the server and run: herdbook reindex", "%v", err)
	case errors.Is(err, journal.ErrCorrupt): // said before
	default:
		return err
	}
	return nil
}

func (c *check) repositories(ctx context.Context) error {
	models, err := c.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	known := map[registry.ModelName]bool{}
	s := c.report.step("repositories", "models", int64(len(models)))
	for _, m := range models {
		known[m.Name] = true
		if err := c.repository(ctx, m); err != nil {
			return err
		}
		c.result.Models++
		s.add(1)
	}
	names, err := c.Repositories.List(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if known[name] {
			continue
		}
		// One that was made just now is no stranger.
		if _, err := c.Index.ModelByName(ctx, name); errors.Is(err, registry.ErrNotFound) {
			c.note("repository", name.String(), "it becomes a model at the next start; move it away if it should not", "there is no model of that name")
		}
	}
	s.done()
	return nil
}

func (c *check) repository(ctx context.Context, m registry.Model) error {
	repo := c.Repositories.Repository(m.Name)
	there, err := repo.Exists()
	if err != nil {
		return err
	}
	versions, err := c.Index.Versions(ctx, m.ID)
	if err != nil {
		return err
	}
	c.result.Versions += len(versions)
	const advice = "put the repository back from a backup, or push its branches and tags again"
	if !there {
		if len(versions) > 0 || m.DefaultBranch != "" {
			c.damage("repository", m.Name.String(), advice, "it is gone")
		}
		return nil
	}
	refs, err := repo.Refs(ctx)
	if err != nil && ctx.Err() == nil {
		c.damage("repository", m.Name.String(), advice, "its refs cannot be read: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.refs(ctx, m, refs, versions); err != nil {
		return err
	}
	if c.options.SkipContent {
		return nil
	}
	problems, err := repo.Check(ctx)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // deleted just now
	}
	if err != nil {
		return err
	}
	for _, p := range problems {
		c.damage("repository", m.Name.String(), advice, "%s", p)
	}
	return nil
}

// refs compares the refs of a repository with what was announced. A push that runs may be ahead.
func (c *check) refs(ctx context.Context, m registry.Model, refs []registry.Ref, versions []registry.VersionRecord) error {
	at := map[string]registry.Ref{}
	for _, r := range refs {
		at[r.Name] = r
	}
	for _, v := range versions {
		ref, there := at[registry.TagRef(v.Version.Tag)]
		switch {
		case !there:
			c.damage("repository", m.Name.String(), "push the tag again, or wait: the server puts it back when its object is there", "the tag of %s is gone", v.Version.Tag)
		case ref.Peeled != v.Version.Commit:
			c.damage("repository", m.Name.String(), "the server puts the tag back within a minute", "%s names %s instead of %s", v.Version.Tag, ref.Peeled.Short(), v.Version.Commit.Short())
		}
	}
	announced, err := c.Index.Refs(ctx, m.ID)
	if err != nil {
		return err
	}
	behind := 0
	for name, ref := range at {
		if !registry.ServerOwned(name) && announced[name].ID != ref.ID {
			behind++
		}
	}
	for name, was := range announced {
		if _, there := at[name]; !there && was.ID != "" {
			behind++
		}
	}
	if behind > 0 {
		c.note("index", m.Name.String(), "the server announces them within a minute", "%d refs are not what was announced last", behind)
	}
	return nil
}

func (c *check) blobs(ctx context.Context) error {
	named := map[digest.Digest]int64{}
	err := c.Index.Snapshot(ctx, func(s index.Snapshot) error {
		return s.NamedBlobs(func(b index.NamedBlob) error {
			named[digest.Digest(b.Digest)] = b.SizeBytes
			return nil
		})
	})
	if err != nil {
		return c.indexError(err)
	}
	aside, err := c.Blobs.Damaged(ctx)
	if err != nil {
		return err
	}
	_, bytes, err := c.Blobs.Usage(ctx)
	if err != nil {
		return err
	}
	step := c.report.step("blobs", "bytes", bytes)
	pace := newPace(c.options.BytesPerSecond)
	const advice = "send the file again: git lfs push --all, push the version's commit, or push the artifact or the image with the tool that it came from"
	err = c.Blobs.Walk(ctx, func(b blob.Descriptor, _ time.Time) error {
		size, isNamed := named[b.Digest]
		delete(named, b.Digest)
		if !isNamed {
			c.result.Unnamed++
		}
		c.result.Blobs++
		c.result.Bytes += b.Size
		if isNamed && size >= 0 && size != b.Size {
			c.damage("blob", b.Digest.String(), advice, "it has %d bytes and should have %d", b.Size, size)
		}
		if c.options.SkipContent {
			step.add(b.Size)
			return nil
		}
		err := c.Blobs.Verify(ctx, b.Digest, func(n int) error {
			step.add(int64(n))
			return pace.wait(ctx, n)
		})
		switch {
		case errors.Is(err, blob.ErrDamaged):
			problem := strings.TrimPrefix(err.Error(), "blob "+b.Digest.String())
			c.damage("blob", b.Digest.String(), advice, "it %s and is set aside", strings.TrimLeft(strings.TrimSuffix(problem, ": "+blob.ErrDamaged.Error()), ": "))
			return nil
		case errors.Is(err, blob.ErrNotFound): // deleted since
			return nil
		case err != nil && ctx.Err() == nil:
			c.damage("blob", b.Digest.String(), "look at the disk", "%v", err)
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	step.done()
	return c.missing(ctx, named, aside, advice)
}

// missing reports the blobs that the index names and nobody has found, and those that were set aside before.
func (c *check) missing(ctx context.Context, named map[digest.Digest]int64, aside []digest.Digest, advice string) error {
	owners := map[digest.Digest][]string{}
	for dgst := range named {
		// Deleted with its model, or sent, since the walk began.
		if _, err := c.Blobs.Stat(ctx, dgst); err != nil {
			owners[dgst] = nil
		}
	}
	if err := c.findOwners(ctx, owners); err != nil {
		return err
	}
	for _, dgst := range slices.Sorted(maps.Keys(owners)) {
		of := strings.Join(owners[dgst], ", ")
		switch {
		case of == "": // let go of since
		case slices.Contains(aside, dgst):
			c.damage("blob", dgst.String(), advice, "it was damaged and is set aside; it belongs to %s", of)
		default:
			c.damage("blob", dgst.String(), advice, "it is gone; it belongs to %s", of)
		}
	}
	for _, dgst := range aside {
		if _, err := c.Blobs.Stat(ctx, dgst); err == nil {
			c.note("blob", dgst.String(), "herdbook gc removes what is left of it", "it was damaged, and was sent again")
		}
	}
	return nil
}

// findOwners adds to each blob the names of the models and repositories that have it, as a blob or as a manifest.
func (c *check) findOwners(ctx context.Context, blobs map[digest.Digest][]string) error {
	if len(blobs) == 0 {
		return nil
	}
	return c.indexError(c.Index.Snapshot(ctx, func(s index.Snapshot) error {
		return s.NamedBlobs(func(b index.NamedBlob) error {
			names, wanted := blobs[digest.Digest(b.Digest)]
			if !wanted {
				return nil
			}
			name, err := s.OwnerName(b.Owner)
			if name == "" {
				name = b.Owner // that is no more; what it left is damage too
			}
			if err == nil && !slices.Contains(names, name) {
				blobs[digest.Digest(b.Digest)] = append(names, name)
			}
			return err
		})
	}))
}
