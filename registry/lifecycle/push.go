package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Push is a push whose objects arrived and whose refs did not move yet.
type Push interface {
	ID() string
	Updates() []registry.RefUpdate
	Options() []string
	// Peel is the commit that an object is or, as a tag, leads to; anything else is
	// registry.ErrNotFound.
	Peel(ctx context.Context, id registry.ObjectID) (registry.ObjectID, error)
	// IsAncestor reports whether a commit is another one or came before it.
	IsAncestor(ctx context.Context, ancestor, descendant registry.ObjectID) (bool, error)
	// FileID is the object at a path in a commit, or registry.ErrNotFound.
	FileID(ctx context.Context, commit registry.ObjectID, path string) (registry.ObjectID, error)
	// Files are all files of a commit, by path. An error is the last that it yields:
	// registry.ErrTooLarge when there are too many or they lie too deep.
	Files(ctx context.Context, commit registry.ObjectID) iter.Seq2[registry.TreeEntry, error]
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

// NewPushID names a push. It is never what a client says: two pushes of one name would be taken for one.
func NewPushID() string { return Request{}.newID("", "") }

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
	s.beginPush(p.ID(), m.ID)
	// As it is now: the push may have been on its way for hours.
	m, err := s.Index.ModelByID(ctx, m.ID)
	if err == nil {
		err = s.checkRules(ctx, by, m, p)
	}
	if err == nil {
		err = s.admit(ctx, by, m, p)
	}
	if err != nil {
		s.endPush(p.ID())
	}
	return err
}

// admit records that the refs of a push that keeps all rules are about to move.
func (s *Service) admit(ctx context.Context, by Request, m registry.Model, p Push) error {
	return s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.PushStarted{PushID: p.ID(), ModelID: m.ID, Options: p.Options(), Updates: p.Updates()},
	}})
}

// CheckFirstPush is CheckPush for a name that [Service.PushTarget] found no model for. The model is
// made once the push keeps all rules, so that one that is refused leaves nothing behind.
func (s *Service) CheckFirstPush(ctx context.Context, by Request, name registry.ModelName, p Push) (registry.Model, error) {
	if err := s.checkRules(ctx, by, registry.Model{Name: name}, p); err != nil {
		return registry.Model{}, err
	}
	m, made, err := s.ensure(ctx, by, name)
	switch {
	case err != nil:
		return m, err
	case made:
		s.beginPush(p.ID(), m.ID)
		if err := s.admit(ctx, by, m, p); err != nil {
			s.endPush(p.ID())
			return m, err
		}
		return m, nil
	}
	// Another first push came before: its versions are there now.
	return m, s.CheckPush(ctx, by, m, p)
}

// checkRules decides on a push. A model that is not there yet has no ID: it owns nothing.
func (s *Service) checkRules(ctx context.Context, by Request, m registry.Model, p Push) error {
	updates := p.Updates()
	if len(updates) > maxRefUpdates {
		return refuse("this push moves %d refs and at most %d may move at once; push fewer refs at a time", len(updates), maxRefUpdates)
	}
	if err := checkOptions(by, m, p); err != nil {
		return err
	}
	used, err := s.Index.UsedTags(ctx, m.Name)
	if err != nil {
		return err
	}
	for _, u := range updates {
		if err := s.checkUpdate(ctx, m, u, used); err != nil {
			return err
		}
		if err := s.checkPolicy(ctx, by, m, p, u); err != nil {
			return err
		}
		if err := checkProtection(ctx, by, m, p, u); err != nil {
			return err
		}
		if err := checkVersion(ctx, p, u); err != nil {
			return err
		}
	}
	if err := s.checkBlobs(ctx, m, p); err != nil {
		return err
	}
	return s.checkLocks(ctx, by, m, p)
}

// checkVersion refuses a version that could never be published: one that is no commit, or whose files
// are too many.
func checkVersion(ctx context.Context, p Push, u registry.RefUpdate) error {
	tag, ok := registry.VersionOf(u.Ref)
	if !ok || u.New == "" {
		return nil
	}
	commit, err := p.Peel(ctx, u.New)
	if errors.Is(err, registry.ErrNotFound) {
		return refuse("%s names a tree or a file, not a commit\nTag the commit: git tag -f %s COMMIT", tag, tag)
	}
	if err != nil {
		return err
	}
	for _, err := range p.Files(ctx, commit) {
		if errors.Is(err, registry.ErrTooLarge) {
			return refuse("%s cannot become a version: %v\nPack the many small files into archives, or tag a commit with fewer.", tag, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkPolicy refuses to change the policy in force for those who may not: nobody lowers the bar that their own
// version has to pass. The first policy of a model is whoever's who pushes to it.
func (s *Service) checkPolicy(ctx context.Context, by Request, m registry.Model, p Push, u registry.RefUpdate) error {
	if m.ID == "" || u.New == "" || u.Ref != registry.BranchRef(m.DefaultBranch) || access.Authorize(by.Identity, access.ChangePolicy, &m) == nil {
		return nil
	}
	state, err := s.Index.Policy(ctx, m.ID)
	if err != nil || state.Blob == "" {
		return err
	}
	id, err := p.FileID(ctx, u.New, registry.PolicyFile)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	if id == state.Blob {
		return nil
	}
	return refuse("this push changes %s on %s, and only maintainers of %s do that\nPush it to another branch and ask a maintainer to take it over.", registry.PolicyFile, m.DefaultBranch, m.Name)
}

// checkProtection holds the rules for the branches and tags that a model protects.
func checkProtection(ctx context.Context, by Request, m registry.Model, p Push, u registry.RefUpdate) error {
	if !m.Protected.Covers(u.Ref) {
		return nil
	}
	name := strings.TrimPrefix(strings.TrimPrefix(u.Ref, "refs/heads/"), "refs/tags/")
	if err := access.Authorize(by.Identity, access.PushProtected, &m); err != nil {
		return refuse("%s is protected in %s: only maintainers push to it\nPush to another branch and ask a maintainer to take it over.", name, m.Name)
	}
	_, isTag := registry.TagOf(u.Ref)
	switch {
	case u.New == "":
		return refuse("%s is protected in %s and cannot be deleted\nA maintainer can end the protection first: PATCH /api/v1/models/%s.", name, m.Name, m.Name)
	case isTag && u.Old != "":
		return refuse("%s is protected in %s and cannot be moved\nChoose another name for the tag.", name, m.Name)
	case isTag || u.Old == "":
		return nil
	}
	follows, err := p.IsAncestor(ctx, u.Old, u.New)
	if err != nil || follows {
		return err
	}
	return refuse("%s is protected in %s, and this push would take commits out of its history\nMerge or rebase on what is there: git pull --rebase origin %s", name, m.Name, name)
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
	malformed := missingObjects{}
	var total int64
	for b, err := range p.NewBlobs(ctx) {
		if err != nil {
			return err
		}
		if b.SizeBytes > s.MaxPlainBytes {
			return refuseBig(b, s.MaxPlainBytes)
		}
		total += b.SizeBytes
		if b.SizeBytes < registry.MaxPointerLen {
			small = append(small, b.ID)
			paths[b.ID] = b.Path
		}
	}
	if err := s.CheckQuota(ctx, m.Name.String(), total); errors.Is(err, registry.ErrQuota) {
		return refuse("%v", err)
	} else if err != nil {
		return err
	}
	missing := missingObjects{}
	err := p.ReadBlobs(ctx, small, registry.MaxPointerLen, func(id registry.ObjectID, data []byte) error {
		if path.Base(paths[id]) == ".gitmodules" && bytes.Contains(data, []byte("\r\"")) {
			return refuse("%s has a carriage return at the end of a value, with which older Git clients write where they must not\nWrite the file without it.", paths[id])
		}
		pointer, ok := registry.ParsePointer(data)
		if !ok {
			if registry.MeansPointer(data) {
				malformed.note(paths[id])
			}
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
	if len(malformed.lines) > 0 {
		return &RefusedError{append(append([]string{"these files look like Git LFS pointers and are none:"}, malformed.lines...),
			"Add them again with git-lfs installed: git rm --cached FILE; git add FILE; git commit --amend")}
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

func (o *missingObjects) note(path string) {
	if o.count++; o.count <= maxMissingShown {
		o.lines = append(o.lines, "    "+path)
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
	report, err := s.reconcile(ctx, m.ID, updates)
	if errors.Is(err, registry.ErrUnavailable) {
		// Files of a version were taken for garbage before the version named them: they are stored again.
		report, err = s.reconcile(ctx, m.ID, updates)
	}
	return report, err
}

// EndPush is called when a push has ended, whatever came of it, also after [Service.FinishPush]. A push that was admitted
// and moved no ref is over then: another one was faster, or git failed.
func (s *Service) EndPush(ctx context.Context, m registry.Model, pushID string) error {
	if !s.pushActive(pushID) {
		return nil
	}
	s.endPush(pushID)
	_, err := s.reconcile(ctx, m.ID, nil)
	return err
}

// beginPush keeps what a model owns from being let go of, until endPush.
func (s *Service) beginPush(id, modelID string) {
	use := s.uses.of(modelID)
	use.RLock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active[id] = use.RUnlock
}

func (s *Service) endPush(id string) {
	s.mu.Lock()
	end := s.active[id]
	delete(s.active, id)
	s.mu.Unlock()
	if end != nil {
		end()
	}
}

func (s *Service) pushActive(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[id] != nil
}
