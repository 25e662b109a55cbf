package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
)

// maxReasonLen is the longest reason that a person gives, in bytes.
const maxReasonLen = 4096

func checkReason(reason string) error {
	if len(reason) > maxReasonLen || !printable(reason) {
		return registry.Invalid("reason", "a reason is UTF-8 text of at most %d bytes, without control characters", maxReasonLen)
	}
	return nil
}

// printable reports whether a text can be shown as it is: it is UTF-8, and nothing in it but the
// end of a line and the tabulator steers a terminal.
func printable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' })
}

// Promotion is what a person asks for.
type Promotion struct {
	Version  registry.Tag
	Reason   string
	Replaces *registry.Tag // what the caller takes to be in the environment, the zero tag for nothing; nil when that does not matter

	withheld bool // its events are delivered to nobody
}

// Promote puts a version into an environment when every gate is open. A closed gate is a
// [registry.GateClosedError], and the refusal is recorded. It is an [registry.ErrConflict] when the environment is frozen, or
// holds another version than the one to be replaced: somebody else was faster.
func (s *Service) Promote(ctx context.Context, by Request, m registry.Model, env registry.EnvironmentName, what Promotion) (registry.EnvironmentChange, error) {
	if err := access.Authorize(by.Identity, access.Promote, &m); err != nil {
		return registry.EnvironmentChange{}, err
	}
	if err := checkReason(what.Reason); err != nil {
		return registry.EnvironmentChange{}, err
	}
	unlock := s.locks.lock(m.ID)
	defer unlock()
	return s.promoteLocked(ctx, by, m, env, what)
}

// promoteLocked is Promote for whoever may promote and holds the model's lock.
func (s *Service) promoteLocked(ctx context.Context, by Request, m registry.Model, env registry.EnvironmentName, what Promotion) (registry.EnvironmentChange, error) {
	tag, reason := what.Version, what.Reason
	p, err := s.attempt(ctx, by, m, env, tag, promotion)
	if err != nil || p.done != nil {
		return p.result(), err
	}
	p.withheld = what.withheld
	if err := p.mayChange(what); err != nil {
		return registry.EnvironmentChange{}, err
	}
	if p.state.Version() == tag {
		return registry.EnvironmentChange{}, registry.Conflict("%s %s is in %s already", m.Name, tag, env)
	}
	if err := p.deployProblem(p.env); err != nil {
		return registry.EnvironmentChange{}, registry.Conflict("%s cannot be deployed to %s: %v", tag, env, err)
	}
	if !p.decision.Verdict.Open {
		p.group.Records = append(p.group.Records, registry.PromotionRefused{ModelID: m.ID, Tag: tag, Verdict: p.decision.Verdict, Reason: reason})
		if err := s.commit(ctx, p.group); err != nil {
			return registry.EnvironmentChange{}, err
		}
		return registry.EnvironmentChange{}, &registry.GateClosedError{Model: m.Name, Version: tag, Verdict: p.decision.Verdict}
	}
	change := p.promote(ctx, &p.state, p.version, p.decision, registry.EnvironmentChange{
		ID: p.id, Kind: registry.Promotion, By: by.Identity.Name, At: p.group.At, Reason: reason,
	})
	if err := s.commit(ctx, p.group); err != nil {
		return change, err
	}
	_, err = s.settleAfter(ctx, m.ID, []registry.Tag{tag}, what.withheld)
	return change, err
}

// RollBack puts a version that was live in an environment back there: the one before the
// current one, or the one named. Gates are not asked, because it ran there before; a
// quarantined or revoked version is refused all the same, and so is another name of it. What is taken out is barred from
// automatic promotion there until a person promotes it.
func (s *Service) RollBack(ctx context.Context, by Request, m registry.Model, env registry.EnvironmentName, tag registry.Tag, reason string) (registry.EnvironmentChange, error) {
	if err := access.Authorize(by.Identity, access.Promote, &m); err != nil {
		return registry.EnvironmentChange{}, err
	}
	if err := checkReason(reason); err != nil {
		return registry.EnvironmentChange{}, err
	}
	unlock := s.locks.lock(m.ID)
	defer unlock()
	state, err := s.Index.Environment(ctx, m.ID, env)
	if err != nil {
		return registry.EnvironmentChange{}, err
	}
	if tag.IsZero() {
		if tag = state.Before(s.usable(ctx, m.ID)); tag.IsZero() {
			return registry.EnvironmentChange{}, registry.Conflict("nothing was in %s before that could go back there", env)
		}
	}
	p, err := s.attempt(ctx, by, m, env, tag, rollback)
	if err != nil || p.done != nil {
		return p.result(), err
	}
	switch {
	case !state.HasHeld(tag):
		return registry.EnvironmentChange{}, registry.Conflict("%s was never in %s: promote it instead", tag, env)
	case state.Version() == tag:
		return registry.EnvironmentChange{}, registry.Conflict("%s %s is in %s already", m.Name, tag, env)
	case !p.version.State.Usable():
		return registry.EnvironmentChange{}, registry.Conflict("%s is %s", tag, p.version.State)
	case p.decision.Facts.Twin != nil:
		twin := p.decision.Facts.Twin
		return registry.EnvironmentChange{}, registry.Conflict("%s stands at the same commit as %s, which is %s", tag, twin.Tag, twin.State)
	}
	change := p.promote(ctx, &state, p.version, p.decision, registry.EnvironmentChange{
		ID: p.id, Kind: registry.Rollback, By: by.Identity.Name, At: p.group.At, Reason: reason,
	})
	if err := s.commit(ctx, p.group); err != nil {
		return change, err
	}
	_, err = s.settle(ctx, m.ID, []registry.Tag{tag})
	return change, err
}

// mayChange reports why an environment stays as it is, whatever its gates say.
func (a *attempt) mayChange(what Promotion) error {
	held := a.state.Version()
	if f := a.state.Freeze; f != nil {
		return registry.Conflict("%s is frozen by %s since %s%s: unfreeze it first", f.Environment, f.By, f.At.Format(time.RFC3339), because(f.Reason))
	}
	if what.Replaces == nil || *what.Replaces == held {
		return nil
	}
	if held.IsZero() {
		return registry.Conflict("nothing is in %s, and %s was to be replaced", a.env.Name, what.Replaces)
	}
	expected := "nothing was to be replaced"
	if !what.Replaces.IsZero() {
		expected = what.Replaces.String() + " was to be replaced"
	}
	return registry.Conflict("%s is in %s, promoted by %s at %s, and %s", held, a.env.Name, a.state.Current.By, a.state.Current.At.Format(time.RFC3339), expected)
}

// because gives a reason in parentheses, if there is one.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// usable tells which versions may be gone back to.
func (s *Service) usable(ctx context.Context, modelID string) func(registry.Tag) bool {
	return func(tag registry.Tag) bool {
		v, err := s.Index.Version(ctx, modelID, tag)
		if err != nil || !v.State.Usable() {
			return false
		}
		twin, err := s.twin(ctx, modelID, v)
		return err == nil && twin == nil
	}
}

// What is attempted, in words for the caller.
const (
	promotion = "promotion"
	rollback  = "rollback"
)

// attempt is what a change of an environment is decided from.
type attempt struct {
	settlement
	id       string
	env      *registry.Environment
	state    registry.EnvironmentState
	version  registry.VersionRecord
	decision gate.Decision
	done     *registry.EnvironmentChange // the same request was carried out before
}

func (a attempt) result() registry.EnvironmentChange {
	if a.done == nil {
		return registry.EnvironmentChange{}
	}
	return *a.done
}

func (s *Service) attempt(ctx context.Context, by Request, m registry.Model, env registry.EnvironmentName, tag registry.Tag, what string) (attempt, error) {
	a := attempt{
		settlement: settlement{Service: s, m: m, group: registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID}},
		id:         by.newID(m.ID, what),
	}
	switch before, err := s.Index.ChangeByID(ctx, m.ID, a.id); {
	case err == nil && (before.Environment != env || before.Version != tag):
		return a, registry.Conflict("the idempotency key was used for another %s", what)
	case err == nil:
		a.done = &before
		return a, nil
	case !errors.Is(err, registry.ErrNotFound):
		return a, err
	}
	var err error
	if a.state, err = s.Index.Environment(ctx, m.ID, env); err != nil {
		return a, err
	}
	policy, err := s.environmentPolicy(ctx, m, env)
	switch unusable := errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrNotFound); {
	case unusable && what == rollback && a.state.Current != nil:
		// The way back must not depend on what may just have been broken.
		a.env = &registry.Environment{Name: env, Deploy: a.state.Current.Deploy}
	case err != nil:
		return a, err
	default:
		a.env, _ = policy.Policy.Environment(env)
	}
	if a.version, err = s.Index.Version(ctx, m.ID, tag); err != nil {
		return a, err
	}
	a.decision, err = s.decision(ctx, m.ID, a.version, a.env, policy.Commit)
	return a, err
}

// environmentPolicy is the policy in force, which has the environment.
func (s *Service) environmentPolicy(ctx context.Context, m registry.Model, env registry.EnvironmentName) (registry.PolicyState, error) {
	policy, err := s.Index.Policy(ctx, m.ID)
	if err != nil {
		return policy, err
	}
	if policy.Problem != "" {
		return policy, registry.Conflict("%s at %s is not in force: %s", registry.PolicyFile, policy.Commit.Short(), policy.Problem)
	}
	if _, ok := policy.Policy.Environment(env); !ok {
		return policy, fmt.Errorf("%s of %s has no environment %s: %w", registry.PolicyFile, m.Name, env, registry.ErrNotFound)
	}
	return policy, nil
}

// Approve records that the caller approves of a version for an environment. Whoever published
// the version cannot approve of it alone: the gate does not count that approval.
func (s *Service) Approve(ctx context.Context, by Request, m registry.Model, env registry.EnvironmentName, tag registry.Tag, reason string) (registry.Approval, error) {
	if err := access.Authorize(by.Identity, access.Approve, &m); err != nil {
		return registry.Approval{}, err
	}
	if err := checkReason(reason); err != nil {
		return registry.Approval{}, err
	}
	unlock := s.locks.lock(m.ID)
	defer unlock()
	if _, err := s.environmentPolicy(ctx, m, env); err != nil {
		return registry.Approval{}, err
	}
	if _, err := s.Index.Version(ctx, m.ID, tag); err != nil {
		return registry.Approval{}, err
	}
	given, err := s.Index.Approvals(ctx, m.ID, tag, env)
	if err != nil {
		return registry.Approval{}, err
	}
	if i := slices.IndexFunc(given, func(a registry.Approval) bool { return a.By == by.Identity.Name }); i >= 0 {
		return given[i], nil
	}
	a := registry.Approval{Environment: env, Version: tag, By: by.Identity.Name, At: s.Now(), Reason: reason}
	e := registry.NewEvent(registry.EventEnvironmentApproved, m, a.By, a.At, a, env.String(), tag.String(), a.By)
	e.Version, e.Environment = tag, env
	err = s.commit(ctx, registry.Group{At: a.At, Actor: a.By, Request: by.ID, Records: []registry.Record{
		registry.ApprovalGiven{ModelID: m.ID, Approval: a}, announce(e),
	}})
	if err != nil {
		return registry.Approval{}, err
	}
	_, err = s.settle(ctx, m.ID, []registry.Tag{tag})
	return a, err
}
