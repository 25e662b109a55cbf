package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// Push is a push whose objects arrived and whose refs did not move yet.
type Push interface {
	ID() string
	Updates() []registry.RefUpdate
	Options() []string
	// Peel is the commit that an object is or, as a tag, leads to; anything else is
	// registry.ErrNotFound.
	Peel(ctx context.Context, id registry.ObjectID) (registry.ObjectID, error)
	// NewBlobs are the blobs that the push brings, by id and size; the path is one where the
	// blob stands, if that is known.
	NewBlobs(ctx context.Context) iter.Seq2[NewBlob, error]
	// ReadBlobs gives the content of blobs, each at most maxBytes long.
	ReadBlobs(ctx context.Context, ids []registry.ObjectID, maxBytes int64, give func(registry.ObjectID, []byte) error) error
}

// NewBlob is a blob that a push brings.
type NewBlob struct {
	ID        registry.ObjectID
	SizeBytes int64
	Path      string
}

// RefusedError says why a push was refused and what to do, in lines for the user's terminal.
type RefusedError struct{ Lines []string }

func (e *RefusedError) Error() string { return strings.Join(e.Lines, "\n") }

func refuse(format string, args ...any) error {
	return &RefusedError{Lines: strings.Split(fmt.Sprintf(format, args...), "\n")}
}

// maxRefUpdates bounds the refs that one push moves.
const maxRefUpdates = 10_000

// CheckPush decides on a push before any ref moves, and records that its refs are about to. A
// [RefusedError] refuses the whole push. After nil, the caller reports the end of the push by
// [Service.FinishPush], whatever came of it.
func (s *Service) CheckPush(ctx context.Context, by Request, m registry.Model, p Push) error {
	if err := s.checkRules(ctx, m, p); err != nil {
		return err
	}
	return s.admit(ctx, by, m, p)
}

// admit records that the refs of a push that keeps all rules are about to move.
func (s *Service) admit(ctx context.Context, by Request, m registry.Model, p Push) error {
	s.mu.Lock()
	s.active[p.ID()] = true
	s.mu.Unlock()
	err := s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.PushStarted{PushID: p.ID(), ModelID: m.ID, Options: p.Options(), Updates: p.Updates()},
	}})
	if err != nil {
		s.endPush(p.ID())
	}
	return err
}

// CheckFirstPush is CheckPush for a name that [Service.PushTarget] found no model for. The model is
// made once the push keeps all rules, so that one that is refused leaves nothing behind.
func (s *Service) CheckFirstPush(ctx context.Context, by Request, name registry.ModelName, p Push) (registry.Model, error) {
	if err := s.checkRules(ctx, registry.Model{Name: name}, p); err != nil {
		return registry.Model{}, err
	}
	m, made, err := s.ensure(ctx, by, name)
	switch {
	case err != nil:
		return m, err
	case made:
		return m, s.admit(ctx, by, m, p)
	}
	// Another first push came before: its versions are there now.
	return m, s.CheckPush(ctx, by, m, p)
}

// checkRules decides on a push. A model that is not there yet has no ID: it owns nothing.
func (s *Service) checkRules(ctx context.Context, m registry.Model, p Push) error {
	updates := p.Updates()
	if len(updates) > maxRefUpdates {
		return refuse("this push moves %d refs and at most %d may move at once; push fewer refs at a time", len(updates), maxRefUpdates)
	}
	used, err := s.Index.UsedTags(ctx, m.Name)
	if err != nil {
		return err
	}
	for _, u := range updates {
		if err := s.checkUpdate(ctx, m, u, used); err != nil {
			return err
		}
		if err := checkCommit(ctx, p, u); err != nil {
			return err
		}
	}
	return s.checkBlobs(ctx, m, p)
}

// checkCommit refuses a version that is no commit, which could never be published.
func checkCommit(ctx context.Context, p Push, u registry.RefUpdate) error {
	tag, ok := registry.VersionOf(u.Ref)
	if !ok || u.New == "" {
		return nil
	}
	if _, err := p.Peel(ctx, u.New); errors.Is(err, registry.ErrNotFound) {
		return refuse("%s names a tree or a file, not a commit\nTag the commit: git tag -f %s COMMIT", tag, tag)
	} else if err != nil {
		return err
	}
	return nil
}

// checkUpdate holds the rules for one ref.
func (s *Service) checkUpdate(ctx context.Context, m registry.Model, u registry.RefUpdate, used []registry.Tag) error {
	if registry.ServerOwned(u.Ref) {
		return refuse("%s is written by the server only\nPush without it: name the branches and tags to push.", u.Ref)
	}
	if !registry.ValidRefName(u.Ref) {
		return refuse("%q is not a name that a ref may have here\nChoose a shorter name without spaces, '..', '~', '^', ':', '?', '*' or '['.", u.Ref)
	}
	if branch, ok := registry.BranchOf(u.Ref); ok && u.New != "" && (branch == "HEAD" || strings.HasPrefix(branch, "-")) {
		return refuse("%q is a name that git programs take for something else\nChoose another name for the branch.", branch)
	}
	// Git would refuse it by itself, but only after it let the other refs of the push go.
	if branch, ok := registry.BranchOf(u.Ref); ok && u.New == "" && branch == m.DefaultBranch {
		return refuse("%s is the default branch of %s and cannot be deleted\nIts %s is the policy of the model: push another commit to it instead.", branch, m.Name, registry.PolicyFile)
	}
	text, isTag := registry.TagOf(u.Ref)
	if !isTag {
		return nil
	}
	if registry.HasBuildMetadata(text) && u.New != "" {
		return refuse("tag %s carries build metadata (+...), which an OCI tag cannot\nTag the version without it: git tag %s %s", text, text[:strings.Index(text, "+")], u.New.Short())
	}
	tag, isVersion := registry.VersionOf(u.Ref)
	if !isVersion {
		return nil
	}
	if slices.Contains(used, tag) {
		return refuse("%s was a version of a model %s that was deleted; a version's name is never used again\nPush the next version instead.", tag, m.Name)
	}
	switch _, err := s.Index.Version(ctx, m.ID, tag); {
	case err == nil && u.New == "":
		return refuse("%s is a published version and cannot be deleted\nWhoever pulls it has to find it; push the next version beside it.", tag)
	case err == nil:
		return refuse("%s is a published version and cannot be moved\nPush the change as a new version; git fetch --tags --force brings the published tag back.", tag)
	case !errors.Is(err, registry.ErrNotFound):
		return err
	}
	return nil
}

// checkBlobs refuses big plain blobs and pointers to objects that the model does not own.
func (s *Service) checkBlobs(ctx context.Context, m registry.Model, p Push) error {
	var small []registry.ObjectID
	paths := map[registry.ObjectID]string{}
	for b, err := range p.NewBlobs(ctx) {
		if err != nil {
			return err
		}
		if b.SizeBytes > s.MaxPlainBytes {
			return refuseBig(b, s.MaxPlainBytes)
		}
		if b.SizeBytes < registry.MaxPointerLen {
			small = append(small, b.ID)
			paths[b.ID] = b.Path
		}
	}
	missing := missingObjects{}
	err := p.ReadBlobs(ctx, small, registry.MaxPointerLen, func(id registry.ObjectID, data []byte) error {
		pointer, ok := registry.ParsePointer(data)
		if !ok {
			return nil
		}
		size, err := s.Index.BlobSize(ctx, m.ID, pointer.Digest.String())
		switch {
		case errors.Is(err, registry.ErrNotFound):
			missing.add(pointer, paths[id], "")
		case err != nil:
			return err
		case size != pointer.SizeBytes:
			missing.add(pointer, paths[id], fmt.Sprintf(" (the object has %d bytes, the pointer says %d)", size, pointer.SizeBytes))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return missing.refuse()
}

func refuseBig(b NewBlob, limit int64) error {
	name := cmpOr(b.Path, string(b.ID))
	return refuse("%s is a plain Git blob of %d bytes; above %d bytes a file belongs in Git LFS\n"+
		"Move it there and push again: git lfs migrate import --include=%q --everything", name, b.SizeBytes, limit, cmpOr(b.Path, "*.bin"))
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// missingObjects collects the LFS objects that a push names and the model does not own.
type missingObjects struct {
	count int
	lines []string
}

// maxMissingShown bounds the lines of a refusal.
const maxMissingShown = 20

func (o *missingObjects) add(p registry.Pointer, path, note string) {
	if o.count++; o.count <= maxMissingShown {
		o.lines = append(o.lines, strings.TrimSpace(fmt.Sprintf("  %s %s", p.Digest.Encoded(), path))+note)
	}
}

func (o *missingObjects) refuse() error {
	if o.count == 0 {
		return nil
	}
	lines := []string{fmt.Sprintf("%d Git LFS objects that this push refers to are missing on the server:", o.count)}
	for _, line := range o.lines {
		lines = append(lines, "  "+line)
	}
	if o.count > maxMissingShown {
		lines = append(lines, fmt.Sprintf("  and %d more", o.count-maxMissingShown))
	}
	return &RefusedError{append(lines, "Upload them and push again: git lfs push --all origin")}
}

// FinishPush announces what a push did. It is called once receive-pack has ended, also when
// the client is gone.
func (s *Service) FinishPush(ctx context.Context, m registry.Model, pushID string, updates []registry.RefUpdate) (Report, error) {
	s.endPush(pushID)
	return s.reconcile(ctx, m.ID, updates)
}

func (s *Service) endPush(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, id)
}

func (s *Service) pushActive(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[id]
}
