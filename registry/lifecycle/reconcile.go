package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/card"
)

// Report is what a reconciliation did, for the one who pushed.
type Report struct {
	Published []PublishedVersion
	Promoted  []registry.EnvironmentChange
	Policy    *registry.PolicyState // the policy in force, when it changed
	Notes     []string              // what the user should know besides
	Pending   bool                  // a version cannot be published yet
}

// PublishedVersion is a version that came to be, with the verdict of each environment.
type PublishedVersion struct {
	Record   registry.VersionRecord
	Verdicts []registry.Verdict
}

// Reconcile compares the refs in Git with the last announced ones and does what is missing:
// it publishes versions, takes over the policy, announces moved branches and promotes what has
// become promotable. Nothing else makes events about refs.
func (s *Service) Reconcile(ctx context.Context, modelID string) (Report, error) {
	return s.reconcile(ctx, modelID, nil)
}

func (s *Service) reconcile(ctx context.Context, modelID string, pushed []registry.RefUpdate) (Report, error) {
	unlock := s.locks.lock(modelID)
	defer unlock()
	m, err := s.Index.ModelByID(ctx, modelID)
	if err != nil {
		return Report{}, err
	}
	repo, err := s.Repositories.Open(ctx, m.Name)
	if err != nil {
		return Report{}, err
	}
	r := reconciliation{Service: s, m: m, repo: repo, at: s.Now()}
	if err := r.run(ctx, pushed); err != nil {
		return Report{}, fmt.Errorf("reconcile %s: %w", m.Name, err)
	}
	return r.report, nil
}

// reconciliation is the work of one call, under the model's lock.
type reconciliation struct {
	*Service
	m      registry.Model
	repo   Repository
	at     time.Time
	report Report

	refs    map[string]registry.Ref
	known   map[string]registry.AnnouncedRef
	intents []registry.PushIntent
	group   registry.Group
}

func (r *reconciliation) run(ctx context.Context, pushed []registry.RefUpdate) error {
	if err := r.load(ctx); err != nil {
		return err
	}
	changed := r.changed()
	if len(changed) > 0 {
		// Nothing is announced that a power cut could take back.
		if err := r.repo.Sync(ctx, covering(pushed, changed)); err != nil {
			return err
		}
	}
	r.group = registry.Group{At: r.at, Actor: r.actor("")}
	if err := r.chooseDefaultBranch(ctx); err != nil {
		return err
	}
	if err := r.takePolicy(ctx); err != nil {
		return err
	}
	var tags []registry.Tag
	for _, u := range changed {
		if tag, ok := registry.VersionOf(u.Ref); ok {
			tags = append(tags, tag)
			continue
		}
		r.moved(u)
	}
	slices.SortFunc(tags, registry.Tag.Compare)
	for _, tag := range tags {
		if err := r.version(ctx, tag); err != nil {
			return err
		}
	}
	for _, i := range r.intents {
		r.group.Records = append(r.group.Records, registry.PushFinished{PushID: i.PushID, ModelID: r.m.ID})
	}
	if len(r.group.Records) > 0 {
		if err := r.commit(ctx, r.group); err != nil {
			return err
		}
	}
	promoted, err := r.settle(ctx, r.m.ID, publishedTags(r.report.Published))
	if err != nil {
		return err
	}
	r.report.Promoted = promoted
	return r.addVerdicts(ctx)
}

// load reads what Git has and what was announced.
func (r *reconciliation) load(ctx context.Context) error {
	refs, err := r.repo.Refs(ctx)
	if err != nil {
		return err
	}
	r.refs = make(map[string]registry.Ref, len(refs))
	for _, ref := range refs {
		r.refs[ref.Name] = ref
	}
	if r.known, err = r.Index.Refs(ctx, r.m.ID); err != nil {
		return err
	}
	intents, err := r.Index.Intents(ctx, r.m.ID)
	for _, i := range intents {
		if !r.pushActive(i.PushID) {
			r.intents = append(r.intents, i)
		}
	}
	return err
}

// changed are the refs whose value was not announced yet, by name.
func (r *reconciliation) changed() []registry.RefUpdate {
	var updates []registry.RefUpdate
	for name, ref := range r.refs {
		if known := r.known[name].ID; known != ref.ID && !registry.ServerOwned(name) {
			updates = append(updates, registry.RefUpdate{Ref: name, Old: known, New: ref.ID})
		}
	}
	for name, known := range r.known {
		if _, there := r.refs[name]; !there && known.ID != "" {
			updates = append(updates, registry.RefUpdate{Ref: name, Old: known.ID})
		}
	}
	slices.SortFunc(updates, func(a, b registry.RefUpdate) int {
		return compareText(a.Ref, b.Ref)
	})
	return updates
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// covering gives the pushed updates when they are all that changed; nil, which stands for
// everything, when a ref was written by somebody else.
func covering(pushed, changed []registry.RefUpdate) []registry.RefUpdate {
	for _, c := range changed {
		if !slices.ContainsFunc(pushed, func(p registry.RefUpdate) bool { return p.Ref == c.Ref && p.New == c.New }) {
			return nil
		}
	}
	return pushed
}

// actor is who moved a ref to a value: the one whose push says so, or the server when nobody's
// does. Without a ref it is whoever pushed last.
func (r *reconciliation) actor(ref string) string {
	for _, i := range slices.Backward(r.intents) {
		if ref == "" || slices.ContainsFunc(i.Updates, func(u registry.RefUpdate) bool { return u.Ref == ref && u.New == r.refs[ref].ID }) {
			return i.Actor
		}
	}
	return access.System.Name
}

// refEvent is the data of ref.updated.
type refEvent struct {
	registry.RefUpdate
	Branch string `json:"branch,omitempty"`
}

// moved announces a ref that is no version.
func (r *reconciliation) moved(u registry.RefUpdate) {
	record := r.refMoved(u)
	branch, _ := registry.BranchOf(u.Ref)
	r.add(registry.NewEvent(registry.EventRefUpdated, r.m, r.actor(u.Ref), r.at, refEvent{u, branch},
		u.Ref, string(u.New), strconv.FormatUint(record.Generation, 10)))
	if text, isTag := registry.TagOf(u.Ref); isTag && u.New != "" {
		r.note("tag %s is not a version of the form v1.2.3; it is kept as a plain Git tag", text)
	}
}

func (r *reconciliation) refMoved(u registry.RefUpdate) registry.RefMoved {
	record := registry.RefMoved{ModelID: r.m.ID, Generation: r.known[u.Ref].Generation + 1, RefUpdate: u}
	r.group.Records = append(r.group.Records, record)
	return record
}

func (r *reconciliation) add(e registry.Event) {
	r.group.Records = append(r.group.Records, announce(e))
}

func (r *reconciliation) note(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

// chooseDefaultBranch makes the first branch that is pushed the default, as the one that HEAD
// points to; main goes before others that came with it.
func (r *reconciliation) chooseDefaultBranch(ctx context.Context) error {
	if r.m.DefaultBranch != "" {
		return nil
	}
	var branches []string
	for name := range maps.Keys(r.refs) {
		if branch, ok := registry.BranchOf(name); ok {
			branches = append(branches, branch)
		}
	}
	if len(branches) == 0 {
		if len(r.refs) > 0 {
			r.note("the model has no branch yet: without a default branch it has no %s and no environments", registry.PolicyFile)
		}
		return nil
	}
	slices.Sort(branches)
	branch := branches[0]
	for _, usual := range []string{"main", "master"} {
		if slices.Contains(branches, usual) {
			branch = usual
			break
		}
	}
	if err := r.repo.SetHEAD(ctx, branch); err != nil {
		return err
	}
	r.m.DefaultBranch = branch
	r.group.Records = append(r.group.Records, registry.DefaultBranchSet{ModelID: r.m.ID, Branch: branch})
	return nil
}

// maxPolicyBytes bounds herdbook.yaml.
const maxPolicyBytes = 256 << 10

// policyEvent is the data of policy.changed.
type policyEvent struct {
	Commit  registry.ObjectID `json:"commit"`
	Problem string            `json:"problem,omitempty"`
}

// takePolicy reads the policy at the head of the default branch when it changed there.
func (r *reconciliation) takePolicy(ctx context.Context) error {
	head := r.refs[registry.BranchRef(r.m.DefaultBranch)].ID
	if r.m.DefaultBranch == "" || head == r.known[registry.BranchRef(r.m.DefaultBranch)].ID {
		return nil
	}
	before, err := r.Index.Policy(ctx, r.m.ID)
	if err != nil {
		return err
	}
	now, err := r.readPolicy(ctx, r.repo, head)
	if err != nil {
		return err
	}
	if before.Commit != "" && before.Blob == now.Blob && before.Problem == now.Problem {
		return nil
	}
	if now.Problem != "" {
		r.note("%s at %s is not in force: %s; every gate stays closed until it is mended", registry.PolicyFile, head.Short(), now.Problem)
	}
	r.report.Policy = &now
	r.group.Records = append(r.group.Records, registry.PolicySet{ModelID: r.m.ID, Policy: now})
	generation := r.known[registry.BranchRef(r.m.DefaultBranch)].Generation + 1
	r.add(registry.NewEvent(registry.EventPolicyChanged, r.m, r.actor(registry.BranchRef(r.m.DefaultBranch)), r.at,
		policyEvent{head, now.Problem}, string(head), strconv.FormatUint(generation, 10)))
	return nil
}

// readPolicy reads the policy at a commit, the head of the default branch.
func (s *Service) readPolicy(ctx context.Context, repo Repository, head registry.ObjectID) (registry.PolicyState, error) {
	state := registry.PolicyState{Commit: head}
	if head == "" {
		return state, nil // the branch was deleted, and with it the policy
	}
	file, err := repo.File(ctx, head, registry.PolicyFile)
	var data []byte
	if err == nil {
		data, err = repo.ReadFile(ctx, head, registry.PolicyFile, maxPolicyBytes)
	}
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return state, nil
	case errors.Is(err, registry.ErrTooLarge):
		state.Problem = fmt.Sprintf("it is larger than %d bytes", maxPolicyBytes)
		return state, nil
	case err != nil:
		return state, err
	}
	state.Blob = file.ID
	policy, err := card.ParsePolicy(data, s.gates.Check)
	if err != nil {
		state.Problem = err.Error()
		return state, nil
	}
	state.Policy = policy
	return state, nil
}

// version publishes a tag that is new, or puts back one that was published and moved behind
// the server's back.
func (r *reconciliation) version(ctx context.Context, tag registry.Tag) error {
	name := registry.TagRef(tag)
	published, err := r.Index.Version(ctx, r.m.ID, tag)
	if errors.Is(err, registry.ErrNotFound) {
		return r.publish(ctx, tag, r.refs[name])
	}
	if err != nil {
		return err
	}
	want := published.Version.TagObject
	if want == "" {
		want = published.Version.Commit
	}
	r.Log.WarnContext(ctx, "a published version's tag was moved outside of the server and is put back",
		"model", r.m.Name, "version", tag, "found", r.refs[name].ID, "published", want)
	if err := r.repo.SetRef(ctx, name, want); !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	// Somebody deleted the objects too. The artifact is whole; the rest of the model goes on.
	r.Log.ErrorContext(ctx, "the tag of a published version cannot be put back: its object is gone from the repository; push it again or restore a backup",
		"model", r.m.Name, "version", tag, "object", want)
	return nil
}

func publishedTags(published []PublishedVersion) []registry.Tag {
	tags := make([]registry.Tag, len(published))
	for i, p := range published {
		tags[i] = p.Record.Version.Tag
	}
	return tags
}

// addVerdicts fills in what the gates say of the versions that were published.
func (r *reconciliation) addVerdicts(ctx context.Context) error {
	for i := range r.report.Published {
		p := &r.report.Published[i]
		verdicts, err := r.verdicts(ctx, r.m.ID, p.Record)
		if err != nil {
			return err
		}
		p.Verdicts = verdicts
	}
	return nil
}
