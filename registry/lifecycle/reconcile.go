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
	"github.com/herdbook/herdbook/registry/gate"
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
	r := reconciliation{Service: s, m: m, repo: repo, at: s.Now(), waiting: map[string]bool{}, recorded: map[string]bool{}}
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

	refs     map[string]registry.Ref
	known    map[string]registry.AnnouncedRef
	intents  []registry.PushIntent // whose refs may have moved
	finished []registry.PushIntent // those of them whose refs move no more
	used     []registry.Tag        // of deleted models of this name

	group      registry.Group
	groupBytes int
	versions   []registry.VersionRecord // all that are published, those of this call among them
	waiting    map[string]bool          // refs of versions that a later reconciliation may publish
	failures   []error                  // of versions; they do not keep the others from being published
	recorded   map[string]bool          // evaluations that versions of this call state, by id
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
	r.group = registry.Group{At: r.at, Actor: r.pusher()}
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
		if err := r.moved(ctx, u); err != nil {
			return err
		}
	}
	slices.SortFunc(tags, registry.Tag.Compare)
	if len(tags) > 0 {
		var err error
		if r.used, err = r.Index.UsedTags(ctx, r.m.Name); err != nil {
			return err
		}
		if r.versions, err = r.Index.Versions(ctx, r.m.ID); err != nil {
			return err
		}
	}
	for _, tag := range tags {
		if err := r.version(ctx, tag); err != nil {
			return err
		}
	}
	commands, err := r.finish(ctx)
	if err != nil {
		return err
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	if r.report.Promoted, err = r.settleAfter(ctx, r.m.ID, publishedTags(r.report.Published), r.allWithheld()); err != nil {
		return err
	}
	// A push that asked for promotions is finished when they were tried.
	for _, i := range commands {
		if err := r.promotePushed(ctx, i); err != nil {
			return err
		}
		if err := r.add(ctx, registry.PushFinished{PushID: i.PushID, ModelID: r.m.ID}); err != nil {
			return err
		}
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	return errors.Join(append(r.failures, r.addVerdicts(ctx))...)
}

// finish puts the end of each push into the group, but for those that asked for more, which it gives back.
func (r *reconciliation) finish(ctx context.Context) (commands []registry.PushIntent, err error) {
	for _, i := range r.finished {
		// A version that is published later is published by whoever pushed it.
		if slices.ContainsFunc(i.Updates, func(u registry.RefUpdate) bool { return r.waiting[u.Ref] && u.New == r.refs[u.Ref].ID }) {
			continue
		}
		options := optionsOf(i)
		for _, option := range options.unknown {
			r.note("the push option %q is not known here and did nothing; there are promote=ENVIRONMENT and no-deliver", option)
		}
		if len(options.promote) > 0 {
			commands = append(commands, i)
			continue
		}
		if err := r.add(ctx, registry.PushFinished{PushID: i.PushID, ModelID: r.m.ID}); err != nil {
			return nil, err
		}
	}
	return commands, nil
}

// Bounds of what is committed at once, in bytes of JSON. The journal takes somewhat more than
// maxAddedBytes.
const (
	maxGroupBytes = 1 << 20 // from which on a group of several changes is committed in parts
	maxAddedBytes = 6 << 20 // of one change: a version with its files
)

// add puts records into the group, all or none: a change and the event that announces it stay
// together. A group that would grow too long is committed before. What a crash leaves between
// two groups is found by the next reconciliation.
func (r *reconciliation) add(ctx context.Context, records ...registry.Record) error {
	size := 0
	for _, record := range records {
		encoded, err := registry.EncodeRecord(record)
		if err != nil {
			return err
		}
		size += len(encoded.Data)
	}
	if size > maxAddedBytes {
		return fmt.Errorf("its record would have %d bytes and may have %d: %w", size, maxAddedBytes, registry.ErrTooLarge)
	}
	if r.groupBytes+size > maxGroupBytes {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.group.Records = append(r.group.Records, records...)
	r.groupBytes += size
	return nil
}

// flush commits the group and begins another.
func (r *reconciliation) flush(ctx context.Context) error {
	if len(r.group.Records) == 0 {
		return nil
	}
	if err := r.commit(ctx, r.group); err != nil {
		return err
	}
	r.group.Records, r.groupBytes = nil, 0
	return nil
}

// load reads what Git has and what was announced. Pushes go on meanwhile: one that ended before
// the refs were read has moved them, and one that moved them has its record in the journal then.
func (r *reconciliation) load(ctx context.Context) error {
	before, err := r.Index.Intents(ctx, r.m.ID)
	if err != nil {
		return err
	}
	for _, i := range before {
		if !r.pushActive(i.PushID) {
			r.finished = append(r.finished, i)
		}
	}
	refs, err := r.repo.Refs(ctx)
	if err != nil {
		return err
	}
	r.refs = make(map[string]registry.Ref, len(refs))
	for _, ref := range refs {
		r.refs[ref.Name] = ref
	}
	if r.intents, err = r.Index.Intents(ctx, r.m.ID); err != nil {
		return err
	}
	r.known, err = r.Index.Refs(ctx, r.m.ID)
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

// actor is who moved a ref to a value: the one whose push says so, also while that push is under
// way, or the server when nobody's does.
func (r *reconciliation) actor(ref string) string {
	for _, i := range slices.Backward(r.intents) {
		if slices.ContainsFunc(i.Updates, func(u registry.RefUpdate) bool { return u.Ref == ref && u.New == r.refs[ref].ID }) {
			return i.Actor
		}
	}
	return access.System.Name
}

// pusher is whoever finished a push last.
func (r *reconciliation) pusher() string {
	if n := len(r.finished); n > 0 {
		return r.finished[n-1].Actor
	}
	return access.System.Name
}

// refEvent is the data of ref.updated.
type refEvent struct {
	registry.RefUpdate
	Branch string `json:"branch,omitempty"`
}

// moved announces a ref that is no version.
func (r *reconciliation) moved(ctx context.Context, u registry.RefUpdate) error {
	record := r.refMoved(u)
	branch, _ := registry.BranchOf(u.Ref)
	e := registry.NewEvent(registry.EventRefUpdated, r.m, r.actor(u.Ref), r.at, refEvent{u, branch},
		u.Ref, string(u.New), strconv.FormatUint(record.Generation, 10))
	e.Withheld = r.withheld(u.Ref)
	err := r.add(ctx, record, announce(e))
	if text, isTag := registry.TagOf(u.Ref); isTag && u.New != "" {
		r.note("tag %s is not a version of the form v1.2.3; it is kept as a plain Git tag", text)
	}
	return err
}

func (r *reconciliation) refMoved(u registry.RefUpdate) registry.RefMoved {
	return registry.RefMoved{ModelID: r.m.ID, Generation: r.known[u.Ref].Generation + 1, RefUpdate: u}
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
	return r.add(ctx, registry.DefaultBranchSet{ModelID: r.m.ID, Branch: branch})
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
		// Nothing to announce; but a mirror of the repository, which knows the newest head alone, has to
		// say the same of it.
		return r.add(ctx, registry.PolicySet{ModelID: r.m.ID, Policy: now})
	}
	if now.Problem != "" {
		r.note("%s at %s is not in force: %s; every gate stays closed until it is mended", registry.PolicyFile, head.Short(), now.Problem)
	}
	if before.Policy != nil && now.Blob == "" && now.Problem == "" {
		r.note("%s is gone from the default branch: the model has no environments any more", registry.PolicyFile)
	}
	r.remarkOn(now.Policy)
	r.report.Policy = &now
	generation := r.known[registry.BranchRef(r.m.DefaultBranch)].Generation + 1
	e := registry.NewEvent(registry.EventPolicyChanged, r.m, r.actor(registry.BranchRef(r.m.DefaultBranch)), r.at,
		policyEvent{head, now.Problem}, string(head), strconv.FormatUint(generation, 10))
	e.Withheld = r.withheld(registry.BranchRef(r.m.DefaultBranch))
	return r.add(ctx, registry.PolicySet{ModelID: r.m.ID, Policy: now}, announce(e))
}

// remarkOn warns of environments to which everything goes, or nothing can.
func (r *reconciliation) remarkOn(policy *registry.Policy) {
	if policy == nil {
		return
	}
	for _, env := range policy.Environments {
		if env.Promote == registry.PromoteAuto && len(env.Gates) == 0 && env.Approvals == 0 && env.Slices == nil && env.Card == nil {
			r.note("%s has no gates and promotes automatically: every version goes there without any evidence", env.Name)
		}
		for _, hook := range env.Deploy {
			if why := r.Deployer(r.m.Name, hook); why != nil {
				r.note("nothing can be promoted to %s: %v", env.Name, why)
			}
		}
	}
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
	want := tagged(published.Version)
	r.Log.WarnContext(ctx, "a published version's tag was moved outside of the server and is put back",
		"model", r.m.Name, "version", tag, "found", r.refs[name].ID, "published", want)
	r.note("%s was published already and stays what it is; git fetch --tags --force brings the published tag", tag)
	if err := r.repo.SetRef(ctx, name, want); !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	// Somebody deleted the objects too. The artifact is whole; the rest of the model goes on.
	r.Log.ErrorContext(ctx, "the tag of a published version cannot be put back: its object is gone from the repository; push it again or restore a backup",
		"model", r.m.Name, "version", tag, "object", want)
	return nil
}

// tagged is the object that a version's tag points to.
func tagged(v registry.Version) registry.ObjectID {
	if v.TagObject != "" {
		return v.TagObject
	}
	return v.Commit
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
	budget := gate.NewBudget(ctx.Done(), 1)
	for i := range r.report.Published {
		p := &r.report.Published[i]
		verdicts, err := r.verdicts(ctx, budget, r.m.ID, p.Record)
		if err != nil {
			return err
		}
		p.Verdicts = verdicts
	}
	return nil
}
