package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
	"github.com/herdbook/herdbook/registry/inspect"
	"github.com/herdbook/herdbook/registry/modelpack"
)

// maxCardBytes bounds the model card that is read.
const maxCardBytes = 1 << 20

// versionEvent is the data of version.published and version.image_ready.
type versionEvent struct {
	Commit   registry.ObjectID `json:"commit"`
	Artifact digest.Digest     `json:"artifact"`
	Image    digest.Digest     `json:"image,omitempty"`
}

var (
	// errIncomplete reports that a version's content is not all here, so that it cannot be
	// published yet.
	errIncomplete = errors.New("content is missing")

	// errUnfit reports that a tag can be no version while it names what it names.
	errUnfit = errors.New("not a version")
)

// publish makes a tag a version. The blobs come first; the commit of the group is what makes
// the version exist, so that a crash before it leaves only blobs that nothing names.
func (r *reconciliation) publish(ctx context.Context, tag registry.Tag, ref registry.Ref) error {
	p := publication{reconciliation: r, tag: tag, ref: ref}
	err := p.build(ctx)
	if err == nil {
		err = p.add(ctx)
	}
	switch {
	case err == nil:
		record := registry.VersionRecord{
			ModelID: r.m.ID, Version: p.version, State: registry.Published, Image: registry.ImageStatus{State: registry.ImageBuilding},
		}
		r.versions = append(r.versions, record)
		r.report.Published = append(r.report.Published, PublishedVersion{Record: record})
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errUnfit), errors.Is(err, registry.ErrTooLarge):
		p.unpublished(ctx, err)
	case errors.Is(err, errIncomplete):
		// Not announced: the next reconciliation tries again, though no ref moves.
		r.report.Pending, r.waiting[ref.Name] = true, true
		p.unpublished(ctx, err)
	default:
		r.waiting[ref.Name] = true
		r.failures = append(r.failures, fmt.Errorf("publish %s: %w", tag, err))
	}
	return nil
}

func (p *publication) unpublished(ctx context.Context, why error) {
	p.note("%s is not published: %v", p.tag, why)
	p.Log.WarnContext(ctx, "a version cannot be published", "model", p.m.Name, "version", p.tag, "reason", why.Error())
}

// add puts the records that make the version exist into the group, with those of the evaluations that it states.
func (p *publication) add(ctx context.Context) error {
	v := p.version
	e := registry.NewEvent(registry.EventVersionPublished, p.m, v.PublishedBy, p.at, versionEvent{Commit: v.Commit, Artifact: v.Artifact.Digest}, p.tag.String())
	e.Version, e.Withheld = p.tag, v.Withheld
	records := []registry.Record{
		p.refMoved(registry.RefUpdate{Ref: p.ref.Name, Old: p.known[p.ref.Name].ID, New: p.ref.ID}),
		registry.VersionPublished{ModelID: p.m.ID, Version: v, Manifest: p.manifest, Edges: p.edges},
		announce(e),
	}
	err := p.reconciliation.add(ctx, append(records, p.reportedRecords()...)...)
	if errors.Is(err, registry.ErrTooLarge) && len(p.reported) > 0 {
		p.note("the evaluations that %s states are not recorded: with its %d files they are too much for one record", p.tag, len(v.Files))
		p.reported = nil
		err = p.reconciliation.add(ctx, records...)
	}
	if err != nil {
		return err
	}
	for _, e := range p.reported {
		p.recorded[e.ID] = true
	}
	return nil
}

// publication gathers what one version is made of.
type publication struct {
	*reconciliation
	tag registry.Tag
	ref registry.Ref

	version  registry.Version
	manifest registry.StoredManifest
	edges    []registry.LineageEdge

	reported      []registry.Evaluation // that its files state and that are not recorded yet
	reportedBytes int                   // of all that were found, as JSON
}

func (p *publication) build(ctx context.Context) error {
	if slices.Contains(p.used, p.tag) {
		return fmt.Errorf("a deleted model of this name had that version: %w", errUnfit)
	}
	commit, err := p.repo.Commit(ctx, p.ref.Peeled)
	if errors.Is(err, registry.ErrNotFound) {
		return fmt.Errorf("it names no commit: %w", errUnfit)
	}
	if err != nil {
		return err
	}
	p.version = registry.Version{
		Tag: p.tag, Commit: commit.ID, Message: clipMessage(commit.Message), Format: modelpack.Format,
		PublishedAt: p.at, PublishedBy: p.actor(p.ref.Name), Withheld: p.withheld(p.ref.Name),
	}
	source := modelpack.Source{Model: p.m.Name, Tag: p.tag, Commit: commit.ID, CreatedAt: commit.Committer.At, Author: commit.Author.Name}
	if p.ref.ID != p.ref.Peeled {
		object, err := p.repo.TagObject(ctx, p.ref.ID)
		if err != nil {
			return err
		}
		p.version.TagObject, p.version.Message, source.CreatedAt = p.ref.ID, clipMessage(object.Message), object.Tagger.At
	}
	if err := p.gather(ctx); err != nil {
		return err
	}
	if err := p.readCard(ctx); err != nil {
		return err
	}
	if err := p.readReported(ctx); err != nil {
		return err
	}
	source.Files, source.Card = p.version.Files, p.version.Card
	if source.Weights, err = p.inspect(ctx); err != nil {
		return err
	}
	if err := p.store(ctx, source); err != nil {
		return err
	}
	p.edges, err = p.lineage(ctx)
	return err
}

// maxMessageLen is the longest message that is kept of a version, in bytes; Git has all of it.
const maxMessageLen = 16 << 10

func clipMessage(message string) string {
	if len(message) <= maxMessageLen {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessageLen], "") + "..."
}

// gather lists the files of the version: an LFS pointer gives digest and size at once, a plain
// file is put into the store.
func (p *publication) gather(ctx context.Context) error {
	for entry, err := range p.repo.Files(ctx, p.version.Commit) {
		if err != nil {
			return err
		}
		if entry.Mode == registry.Symlink || entry.Mode == registry.Submodule {
			p.warn("%s is a %s and is not part of the artifact", entry.Path, entry.Mode)
			continue
		}
		if why := modelpack.BadPath(entry.Path); why != "" {
			p.warn("%q is not part of the artifact: its path %s", entry.Path, why)
			continue
		}
		file, err := p.file(ctx, entry)
		if err != nil {
			return err
		}
		p.version.Files = append(p.version.Files, file)
	}
	if len(p.version.Files) == 0 {
		return fmt.Errorf("the tree of %s has no file: %w", p.version.Commit.Short(), errUnfit)
	}
	slices.SortFunc(p.version.Files, func(a, b registry.File) int { return compareText(a.Path, b.Path) })
	return nil
}

// maxWarnings bounds what is kept about one version.
const maxWarnings = 100

func (p *publication) warn(format string, args ...any) {
	if len(p.version.Warnings) < maxWarnings {
		p.version.Warnings = append(p.version.Warnings, fmt.Sprintf(format, args...))
	}
	p.note(format, args...)
}

func (p *publication) file(ctx context.Context, entry registry.TreeEntry) (registry.File, error) {
	f := registry.File{Path: entry.Path, Executable: entry.Mode == registry.Executable}
	content, _, err := p.repo.OpenBlob(ctx, entry.ID)
	if err != nil {
		return f, err
	}
	defer content.Close()
	var plain io.Reader = content
	if entry.SizeBytes < registry.MaxPointerLen {
		data, err := io.ReadAll(io.LimitReader(content, registry.MaxPointerLen))
		if err != nil {
			return f, err
		}
		if pointer, ok := registry.ParsePointer(data); ok {
			f.Digest, f.SizeBytes, f.LFS = pointer.Digest, pointer.SizeBytes, true
			return f, p.owned(ctx, f)
		}
		plain = bytes.NewReader(data)
	}
	info, err := p.Blobs.Put(ctx, plain)
	f.Digest, f.SizeBytes = info.Digest, info.SizeBytes
	return f, err
}

// owned makes sure that the model owns the object that a pointer names. A push is refused
// without it; a tag that was written behind the server's back is not.
func (p *publication) owned(ctx context.Context, f registry.File) error {
	size, err := p.Index.BlobSize(ctx, p.m.ID, f.Digest.String())
	if errors.Is(err, registry.ErrNotFound) || (err == nil && size != f.SizeBytes) {
		return fmt.Errorf("LFS object %s of %s is not on the server: %w", f.Digest.Encoded(), f.Path, errIncomplete)
	}
	return err
}

func (p *publication) readCard(ctx context.Context) error {
	data, err := p.repo.ReadFile(ctx, p.version.Commit, card.File, maxCardBytes)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case errors.Is(err, registry.ErrTooLarge):
		p.version.Card.Problem = fmt.Sprintf("%s is larger than %d bytes", card.File, maxCardBytes)
	case err != nil:
		return err
	default:
		p.version.Card = card.Parse(data)
	}
	if problem := p.version.Card.Problem; problem != "" {
		p.warn("the model card of %s cannot be read: %s", p.tag, problem)
	}
	evaluations, problem := card.Reported(data)
	return p.report(ctx, card.File, evaluations, problem)
}

// inspect reads the headers of the weight files, and never more of them than that.
func (p *publication) inspect(ctx context.Context) ([]inspect.Weights, error) {
	var found []inspect.Weights
	for _, f := range p.version.Files {
		if !inspect.Knows(path.Base(f.Path)) {
			continue
		}
		content, err := p.Blobs.Get(ctx, f.Digest)
		if err != nil {
			return nil, err
		}
		weights, err := inspect.Header(f.Path, content, f.SizeBytes)
		content.Close()
		if err != nil {
			p.warn("the header of %s cannot be read: %v", f.Path, err)
			continue
		}
		found = append(found, weights)
	}
	return found, nil
}

// store packs the version and keeps the bytes of its manifest and config: they are never
// computed again.
func (p *publication) store(ctx context.Context, source modelpack.Source) error {
	artifact, err := modelpack.Pack(source)
	if err != nil {
		return err
	}
	for _, document := range []modelpack.Document{artifact.Config, artifact.Manifest} {
		if _, err := p.Blobs.Put(ctx, bytes.NewReader(document.Bytes)); err != nil {
			return err
		}
	}
	p.version.Artifact, p.version.Config = artifact.Manifest.Descriptor, artifact.Config.Descriptor
	p.manifest = artifact.Manifest.Stored()
	return nil
}

// lineage are the edges from the version to what it came from: the version before it, the
// versions that Git knows as its nearest ancestors, and what its card names.
func (p *publication) lineage(ctx context.Context) ([]registry.LineageEdge, error) {
	self := registry.VersionNodeID(p.m.ID, p.tag)
	var edges []registry.LineageEdge
	var previous registry.Tag
	commits := map[registry.ObjectID]bool{}
	for _, v := range p.versions {
		commits[v.Version.Commit] = true
		if t := v.Version.Tag; t.Compare(p.tag) < 0 && t.Compare(previous) > 0 {
			previous = t
		}
	}
	if !previous.IsZero() {
		edges = append(edges, registry.LineageEdge{From: self, To: registry.VersionNodeID(p.m.ID, previous), Kind: registry.DerivedFrom, Relation: registry.Previous})
	}
	ancestors, err := p.repo.Ancestors(ctx, p.version.Commit, func(id registry.ObjectID) bool { return commits[id] })
	if errors.Is(err, registry.ErrTooLarge) {
		p.warn("the versions that %s came from are not recorded: %v", p.tag, err)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	for _, v := range p.versions {
		if slices.Contains(ancestors, v.Version.Commit) && v.Version.Tag != previous {
			edges = append(edges, registry.LineageEdge{From: self, To: registry.VersionNodeID(p.m.ID, v.Version.Tag), Kind: registry.DerivedFrom, Relation: registry.Ancestor})
		}
	}
	for _, e := range cardEdges(self, p.version.Card) {
		way, err := p.closes(ctx, e)
		if err != nil {
			return nil, err
		}
		if way != "" {
			p.warn("the card of %s names a base that came from it; that is not recorded: %s", p.tag, way)
			continue
		}
		edges = append(edges, e)
	}
	return edges, nil
}

// closes is the cycle that an edge from the new version would close with what its readers know, or nothing.
func (p *publication) closes(ctx context.Context, e registry.LineageEdge) (string, error) {
	// Before it is there, the version is known by its name only.
	name := registry.ExternalModelNodeID(p.m.Name.String(), p.tag.String())
	if e.To == name {
		return name + " <- " + name, nil
	}
	way, err := p.Index.Way(ctx, readers(p.m), e.To, name)
	if err != nil || len(way) == 0 {
		return "", err
	}
	return shownWay(append([]string{name}, shownNodes(way)...)), nil
}

// cardEdges are what a card says its model came from.
func cardEdges(self string, c registry.CardFacts) []registry.LineageEdge {
	var edges []registry.LineageEdge
	for _, base := range c.BaseModels {
		edges = append(edges, registry.LineageEdge{
			From: self, To: registry.ExternalModelNodeID(base.Model, base.Revision), Kind: registry.DerivedFrom, Relation: base.Relation,
		})
	}
	for _, dataset := range c.Datasets {
		edges = append(edges, registry.LineageEdge{From: self, To: registry.DatasetNodeID(dataset), Kind: registry.Used})
	}
	return edges
}
