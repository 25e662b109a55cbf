package lifecycle

import (
	"context"
	"slices"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/card"
	"github.com/herdbook/herdbook/registry/gate"
)

// DryRun is what would be if another policy were in force.
type DryRun struct {
	Warnings []string         // hooks that the model may not name
	Versions []VersionOutcome // the highest first
}

// VersionOutcome is what a policy would mean for a version.
type VersionOutcome struct {
	Version      registry.Tag         `json:"version"`
	Environments []EnvironmentOutcome `json:"environments"` // in the order of the policy
}

// EnvironmentOutcome is what a policy would mean for a version in one environment.
type EnvironmentOutcome struct {
	Verdict  registry.Verdict `json:"verdict"`
	Now      *bool            `json:"now"`      // whether its gates are open by the policy in force; nil when that does not name the environment, or nobody could look
	Held     bool             `json:"held"`     // the version is there; a policy takes nothing back
	Promotes bool             `json:"promotes"` // the server would promote it there at once
}

// TryPolicy tells what the content of a herdbook.yaml would mean: for one version, or, with the zero tag, for those that may still come
// to an environment and those that are in one. It changes nothing. Promotions that only follow from other promotions are not foreseen. What cannot be read is a
// [registry.FieldError] on "policy".
func (s *Service) TryPolicy(ctx context.Context, by Request, m registry.Model, text []byte, tag registry.Tag) (DryRun, error) {
	// It costs what a push of the policy costs.
	if err := access.Authorize(by.Identity, access.Write, &m); err != nil {
		return DryRun{}, err
	}
	if len(text) > maxPolicyBytes {
		return DryRun{}, registry.Invalid("policy", "%s is larger than %d bytes", registry.PolicyFile, maxPolicyBytes)
	}
	policy, err := card.ParsePolicy(text, s.gates.Check)
	if err != nil {
		return DryRun{}, registry.Invalid("policy", "%v", err)
	}
	run := DryRun{Warnings: []string{}, Versions: []VersionOutcome{}}
	deploy := settlement{Service: s, m: m}
	for i := range policy.Environments {
		if err := deploy.deployProblem(&policy.Environments[i]); err != nil {
			run.Warnings = append(run.Warnings, policy.Environments[i].Name.String()+": "+err.Error())
		}
	}
	versions, err := s.concerned(ctx, m, policy, tag)
	if err != nil {
		return DryRun{}, err
	}
	budget := gate.NewBudget(ctx.Done(), 1)
	for _, v := range versions {
		outcome := VersionOutcome{Version: v.Version.Tag}
		for i := range policy.Environments {
			env, err := s.tryEnvironment(ctx, budget, m, v, &policy.Environments[i])
			if err != nil {
				return DryRun{}, err
			}
			outcome.Environments = append(outcome.Environments, env)
		}
		run.Versions = append(run.Versions, outcome)
	}
	return run, nil
}

// concerned are the versions that a policy means something for, the highest first.
func (s *Service) concerned(ctx context.Context, m registry.Model, policy *registry.Policy, tag registry.Tag) ([]registry.VersionRecord, error) {
	if !tag.IsZero() {
		v, err := s.Index.Version(ctx, m.ID, tag)
		return []registry.VersionRecord{v}, err
	}
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	concerned := map[registry.Tag]bool{}
	for i := range policy.Environments {
		state, err := s.Index.Environment(ctx, m.ID, policy.Environments[i].Name)
		if err != nil {
			return nil, err
		}
		for _, v := range pending(versions, &state, []registry.Tag{state.Version()}) {
			concerned[v.Version.Tag] = true
		}
	}
	return slices.DeleteFunc(versions, func(v registry.VersionRecord) bool { return !concerned[v.Version.Tag] }), nil
}

func (s *Service) tryEnvironment(ctx context.Context, budget *gate.Budget, m registry.Model, v registry.VersionRecord, env *registry.Environment) (EnvironmentOutcome, error) {
	verdict, err := s.verdict(ctx, budget, m.ID, v, env, "")
	if err != nil {
		return EnvironmentOutcome{}, err
	}
	state, err := s.Index.Environment(ctx, m.ID, env.Name)
	if err != nil {
		return EnvironmentOutcome{}, err
	}
	deploy := settlement{Service: s, m: m}
	out := EnvironmentOutcome{
		Verdict: verdict, Held: state.Version() == v.Version.Tag,
		Promotes: verdict.Open && registry.MayPromoteAutomatically(env, &state, v.Version.Tag) && deploy.deployProblem(env) == nil,
	}
	policy, err := s.Index.Policy(ctx, m.ID)
	if err != nil {
		return out, err
	}
	if inForce, ok := policy.Policy.Environment(env.Name); ok {
		now, err := s.verdict(ctx, budget, m.ID, v, inForce, policy.Commit)
		if err != nil {
			return out, err
		}
		if now.Open || !budget.Spent() {
			out.Now = &now.Open
		}
	}
	return out, nil
}
