package lifecycle

import (
	"context"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
)

// maxPending bounds the versions that are looked at when something changed: those of the
// highest precedence above all that an environment has held. The verdict of any other version
// is there whenever it is asked for.
const maxPending = 20

// settle announces the gates that moved and promotes what the server may promote itself. It
// is called, under the model's lock, after anything that a gate may read has changed; focus
// are versions to look at besides the pending ones. What changed is committed, so that it does not
// end with the caller.
func (s *Service) settle(ctx context.Context, modelID string, focus []registry.Tag) ([]registry.EnvironmentChange, error) {
	return s.settleAfter(ctx, modelID, focus, false)
}

// settleAfter is settle after something whose events are withheld, or not: those that follow are too.
func (s *Service) settleAfter(ctx context.Context, modelID string, focus []registry.Tag, withheld bool) ([]registry.EnvironmentChange, error) {
	return s.settleWithin(ctx, gate.NewBudget(nil, 1), modelID, focus, withheld)
}

// settleWithin is settleAfter that leaves as they are the gates for which the budget leaves nothing. Verdicts that are known already, of what is
// committed, are not asked for again.
func (s *Service) settleWithin(ctx context.Context, budget *gate.Budget, modelID string, focus []registry.Tag, withheld bool, known ...ChangedVerdict) ([]registry.EnvironmentChange, error) {
	ctx = context.WithoutCancel(ctx)
	var promoted []registry.EnvironmentChange
	for {
		m, err := s.Index.ModelByID(ctx, modelID)
		if err != nil {
			return promoted, err
		}
		round := settlement{Service: s, m: m, budget: budget, known: known, withheld: withheld, group: registry.Group{At: s.Now(), Actor: access.System.Name}}
		change, err := round.run(ctx, focus)
		if err != nil {
			return promoted, err
		}
		if len(round.group.Records) > 0 {
			if err := s.commit(ctx, round.group); err != nil {
				return promoted, err
			}
			known = nil
		}
		if change == nil {
			return promoted, nil
		}
		// What was promoted may be the condition of another environment. It ends, because each
		// promotion raises the version that an environment has held.
		promoted = append(promoted, *change)
	}
}

// settlement is one round: it promotes at most one version.
type settlement struct {
	*Service
	m     registry.Model
	group registry.Group
	quiet bool // record the gates, and neither announce nor promote anything

	budget   *gate.Budget
	known    []ChangedVerdict
	withheld bool // the events are delivered to nobody
}

func (r *settlement) run(ctx context.Context, focus []registry.Tag) (*registry.EnvironmentChange, error) {
	policy, err := r.Index.Policy(ctx, r.m.ID)
	if err != nil || policy.Policy == nil {
		return nil, err
	}
	versions, err := r.Index.Versions(ctx, r.m.ID)
	if err != nil {
		return nil, err
	}
	for i := range policy.Policy.Environments {
		env := &policy.Policy.Environments[i]
		state, err := r.Index.Environment(ctx, r.m.ID, env.Name)
		if err != nil {
			return nil, err
		}
		for _, v := range pending(versions, &state, focus) {
			verdict, err := r.look(ctx, v, env, policy.Commit)
			if err != nil {
				return nil, err
			}
			if !verdict.Open && r.budget.Spent() {
				// That nobody looked at a gate is no news of it.
				r.Log.WarnContext(ctx, "the gates of a model cost too much to look at all of them; make them cheaper",
					"model", r.m.Name, "version", v.Version.Tag, "environment", env.Name)
				return nil, nil
			}
			if err := r.announceGate(ctx, v, verdict); err != nil {
				return nil, err
			}
			if r.quiet || !verdict.Open || !registry.MayPromoteAutomatically(env, &state, v.Version.Tag) || r.deployProblem(env) != nil {
				continue
			}
			decision, err := r.decision(ctx, r.m.ID, v, env, policy.Commit)
			if err != nil {
				return nil, err
			}
			if !decision.Verdict.Open { // the evidence became too old this moment
				continue
			}
			change := r.promote(ctx, &state, v, decision, registry.EnvironmentChange{
				Kind: registry.Promotion, Automatic: true, By: r.group.Actor, At: r.group.At,
				Reason: "every gate is open and the policy promotes automatically",
			})
			return &change, nil
		}
	}
	return nil, nil
}

// look is the verdict of an environment, which may be known.
func (r *settlement) look(ctx context.Context, v registry.VersionRecord, env *registry.Environment, policyCommit registry.ObjectID) (registry.Verdict, error) {
	for _, k := range r.known {
		if k.Version == v.Version.Tag && k.Verdict.Environment == env.Name {
			return k.Verdict, nil
		}
	}
	return r.verdict(ctx, r.budget, r.m.ID, v, env, policyCommit)
}

// pending are the versions that may still come to an environment, the highest first, and the
// ones in focus.
func pending(versions []registry.VersionRecord, state *registry.EnvironmentState, focus []registry.Tag) []registry.VersionRecord {
	var highest registry.Tag
	for _, held := range state.Held {
		if held.Compare(highest) > 0 {
			highest = held
		}
	}
	var found []registry.VersionRecord
	for i, v := range versions {
		if (i < maxPending && v.Version.Tag.Compare(highest) > 0) || slices.Contains(focus, v.Version.Tag) {
			found = append(found, v)
		}
	}
	return found
}

// gateEvent is the data of gate.opened and gate.closed.
type gateEvent struct {
	Verdict registry.Verdict `json:"verdict"`
}

// announceGate records a verdict that differs from the one announced last. A gate that was
// never announced is closed.
func (r *settlement) announceGate(ctx context.Context, v registry.VersionRecord, verdict registry.Verdict) error {
	last, _, err := r.Index.AnnouncedGate(ctx, r.m.ID, v.Version.Tag, verdict.Environment)
	if err != nil || last.Open == verdict.Open {
		return err
	}
	r.group.Records = append(r.group.Records, registry.GateMoved{ModelID: r.m.ID, Tag: v.Version.Tag, Verdict: verdict})
	if r.quiet {
		return nil
	}
	kind := registry.EventGateClosed
	if verdict.Open {
		kind = registry.EventGateOpened
	}
	e := registry.NewEvent(kind, r.m, r.group.Actor, r.group.At, gateEvent{verdict},
		v.Version.Tag.String(), verdict.Environment.String(), r.group.At.String())
	e.Version, e.Environment, e.Withheld = v.Version.Tag, verdict.Environment, r.withheld
	r.group.Records = append(r.group.Records, announce(e))
	return nil
}

// changeEvent is the data of environment.promoted and environment.rolledback.
type changeEvent struct {
	Change registry.EnvironmentChange `json:"change"`
}

// promote adds a change of an environment to the group, its event, and the statement of what it was decided from.
func (r *settlement) promote(ctx context.Context, state *registry.EnvironmentState, v registry.VersionRecord, d gate.Decision, c registry.EnvironmentChange) registry.EnvironmentChange {
	env, verdict := d.Policy, d.Verdict
	c.Environment, c.Version, c.Commit, c.Artifact = env.Name, v.Version.Tag, v.Version.Commit, v.Version.Artifact.Digest
	c.Previous, c.Deploy, c.Verdict = state.Version(), env.Deploy, &verdict
	// No hook reports a deployment back yet, so that a version is live where it was promoted.
	c.Live = true
	kind := registry.EventEnvironmentPromoted
	if c.Kind == registry.Rollback {
		kind = registry.EventEnvironmentRolledBack
	}
	if c.ID == "" {
		c.ID = registry.EventID(r.m.ID, kind, c.Environment.String(), c.Version.String(), c.At.String())
	}
	e := registry.NewEvent(kind, r.m, c.By, c.At, changeEvent{c}, c.ID)
	e.Version, e.Environment, e.Withheld = c.Version, c.Environment, r.withheld
	r.group.Records = append(r.group.Records, registry.EnvironmentChanged{ModelID: r.m.ID, Change: c}, announce(e))
	r.group.Records = append(r.group.Records, r.attestVerdict(ctx, r.m, v, d, c)...)
	return c
}

// deployProblem says why a version cannot be deployed to an environment: its policy names a
// hook that the operator did not give to the model.
func (r *settlement) deployProblem(env *registry.Environment) error {
	for _, hook := range env.Deploy {
		if err := r.Deployer(r.m.Name, hook); err != nil {
			return err
		}
	}
	return nil
}

// Verdicts are what the gates of each environment say of a version now.
func (s *Service) Verdicts(ctx context.Context, m registry.Model, v registry.VersionRecord) ([]registry.Verdict, error) {
	return s.verdicts(ctx, gate.NewBudget(ctx.Done(), 1), m.ID, v)
}

// VerdictsOf are the Verdicts of each of some versions, which cost together what those of one may cost.
func (s *Service) VerdictsOf(ctx context.Context, m registry.Model, versions []registry.VersionRecord) ([][]registry.Verdict, error) {
	budget := gate.NewBudget(ctx.Done(), 1)
	all := make([][]registry.Verdict, len(versions))
	for i, v := range versions {
		var err error
		if all[i], err = s.verdicts(ctx, budget, m.ID, v); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (s *Service) verdicts(ctx context.Context, budget *gate.Budget, modelID string, v registry.VersionRecord) ([]registry.Verdict, error) {
	verdicts := []registry.Verdict{}
	policy, err := s.Index.Policy(ctx, modelID)
	if err != nil || policy.Policy == nil {
		return verdicts, err
	}
	for i := range policy.Policy.Environments {
		verdict, err := s.verdict(ctx, budget, modelID, v, &policy.Policy.Environments[i], policy.Commit)
		if err != nil {
			return nil, err
		}
		verdicts = append(verdicts, verdict)
	}
	return verdicts, nil
}

// Decision is the verdict of one environment of the policy with all that it was decided from. It can be long, so that it needs the right to
// write.
func (s *Service) Decision(ctx context.Context, by Request, m registry.Model, v registry.VersionRecord, name registry.EnvironmentName) (gate.Decision, error) {
	if err := access.Authorize(by.Identity, access.Write, &m); err != nil {
		return gate.Decision{}, err
	}
	policy, err := s.environmentPolicy(ctx, m, name)
	if err != nil {
		return gate.Decision{}, err
	}
	env, _ := policy.Policy.Environment(name)
	d, err := s.decision(ctx, m.ID, v, env, policy.Commit)
	d.Model = m.Name
	return lean(d), err
}

// lean leaves out of the facts what no gate of the environment looks at and takes much room: which examples were right.
func lean(d gate.Decision) gate.Decision {
	gates := d.Policy.Gates
	if d.Policy.Slices != nil {
		gates = slices.Concat(gates, d.Policy.Slices.Gates)
	}
	if d.Facts == nil || slices.ContainsFunc(gates, func(g registry.Gate) bool { return strings.Contains(g.Expr, "worse_than") }) {
		return d
	}
	strip := func(evaluations []registry.Evaluation) []registry.Evaluation {
		evaluations = slices.Clone(evaluations)
		for i := range evaluations {
			evaluations[i].Outcomes = nil
		}
		return evaluations
	}
	facts := *d.Facts
	facts.Evaluations = strip(facts.Evaluations)
	if facts.Incumbent != nil {
		incumbent := *facts.Incumbent
		incumbent.Evaluations = strip(incumbent.Evaluations)
		facts.Incumbent = &incumbent
	}
	d.Facts = &facts
	return d
}

// verdict lets the gates of an environment decide on a version. It reads only those evaluations that they look at.
func (s *Service) verdict(ctx context.Context, budget *gate.Budget, modelID string, v registry.VersionRecord, env *registry.Environment, policyCommit registry.ObjectID) (registry.Verdict, error) {
	d, err := s.decide(ctx, budget, modelID, v, env, policyCommit, s.gates.NamesAll(env))
	return d.Verdict, err
}

// decision is the verdict with all that is known. It reads all evaluations of the version and of what runs there, and has the budget of a request for
// itself, as whoever replays it has.
func (s *Service) decision(ctx context.Context, modelID string, v registry.VersionRecord, env *registry.Environment, policyCommit registry.ObjectID) (gate.Decision, error) {
	return s.decide(ctx, gate.NewBudget(ctx.Done(), 1), modelID, v, env, policyCommit, true)
}

// decide gathers the facts of a version and lets the gates of an environment decide.
func (s *Service) decide(ctx context.Context, budget *gate.Budget, modelID string, v registry.VersionRecord, env *registry.Environment, policyCommit registry.ObjectID, all bool) (gate.Decision, error) {
	facts := gate.Facts{
		Now: s.Now(), PolicyCommit: policyCommit, State: v.State, Subject: subject(v.Version),
	}
	var err error
	if facts.Twin, err = s.twin(ctx, modelID, v); err != nil {
		return gate.Decision{}, err
	}
	if all {
		facts.Evaluations, err = s.Index.Evaluations(ctx, modelID, v.Version.Commit)
	} else {
		facts.Selected, err = s.selected(ctx, modelID, v.Version.Commit, func(c gate.Cataloged) (*gate.Selected, error) { return c.Select(env, facts.Now) })
	}
	if err != nil {
		return gate.Decision{}, err
	}
	if facts.Approvals, err = s.Index.Approvals(ctx, modelID, v.Version.Tag, env.Name); err != nil {
		return gate.Decision{}, err
	}
	if !env.After.IsZero() {
		before, err := s.Index.Environment(ctx, modelID, env.After)
		if err != nil {
			return gate.Decision{}, err
		}
		facts.WasLiveBefore = before.HasHeld(v.Version.Tag)
	}
	if facts.Incumbent, err = s.incumbent(ctx, modelID, env, v.Version.Tag, facts); err != nil {
		return gate.Decision{}, err
	}
	d := gate.Decision{Policy: *env, Facts: &facts, Verdict: s.gates.DecideWithin(budget, env, facts)}
	return d, ctx.Err() // whoever asked may have gone, and then not all gates were looked at
}

func subject(v registry.Version) gate.Subject {
	return gate.Subject{Tag: v.Tag, Commit: v.Commit, PublishedAt: v.PublishedAt, PublishedBy: v.PublishedBy, Card: v.Card}
}

// selected is what gates look at of the evaluations of a commit.
func (s *Service) selected(ctx context.Context, modelID string, commit registry.ObjectID, choose func(gate.Cataloged) (*gate.Selected, error)) (*gate.Selected, error) {
	catalog, err := s.Index.Catalog(ctx, modelID, commit)
	if err != nil {
		return nil, err
	}
	return choose(gate.Cataloged{Catalog: catalog, Load: func(number uint64) (*registry.Evaluation, error) {
		return s.Index.Evaluation(ctx, modelID, commit, number)
	}})
}

// twin is another version of the same commit that is not usable; nil when there is none.
func (s *Service) twin(ctx context.Context, modelID string, v registry.VersionRecord) (*gate.Twin, error) {
	versions, err := s.Index.VersionsAt(ctx, modelID, v.Version.Commit)
	for _, other := range versions {
		if other.Version.Tag != v.Version.Tag && !other.State.Usable() {
			return &gate.Twin{Tag: other.Version.Tag, State: other.State}, err
		}
	}
	return nil, err
}

// incumbent is what runs in an environment; nil while nothing was ever live there. The version
// in question is compared with what it would replace: when it is there itself, with the one
// before it. Its evaluations are read as those of the version, whose facts are given, were.
func (s *Service) incumbent(ctx context.Context, modelID string, env *registry.Environment, tag registry.Tag, of gate.Facts) (*gate.Incumbent, error) {
	state, err := s.Index.Environment(ctx, modelID, env.Name)
	if err != nil || state.Current == nil {
		return nil, err
	}
	running := state.Version()
	if running == tag {
		if running = state.Current.Previous; running.IsZero() {
			return nil, nil
		}
	}
	v, err := s.Index.Version(ctx, modelID, running)
	if err != nil {
		return nil, err
	}
	incumbent := &gate.Incumbent{Subject: subject(v.Version)}
	if of.Selected == nil {
		incumbent.Evaluations, err = s.Index.Evaluations(ctx, modelID, v.Version.Commit)
	} else {
		incumbent.Selected, err = s.selected(ctx, modelID, v.Version.Commit, func(c gate.Cataloged) (*gate.Selected, error) {
			return c.SelectIncumbent(env, of.Selected, of.Now)
		})
	}
	return incumbent, err
}
