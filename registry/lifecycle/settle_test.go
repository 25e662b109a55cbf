package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// automatic promotes by itself: first to staging, then to production.
const automatic = `
environments:
  staging:
    promote: auto
    gates: ["metrics.f1 >= 0.80"]
  production:
    after: staging
    promote: auto
    gates: ["metrics.f1 >= 0.80"]
`

// manual waits for a person.
const manual = `
environments:
  production:
    gates: ["metrics.f1 >= 0.80"]
`

// prepared has a model with a policy.
func prepared(tb testing.TB, yaml string, change ...func(*faults)) (*site, registry.Model) {
	tb.Helper()
	s := open(tb, change...)
	m := s.model(fraud)
	s.policy(m, yaml)
	return s, s.reload(m)
}

// release publishes a version whose commit no other has.
func (s *site) release(m registry.Model, tag string) registry.VersionRecord {
	s.tb.Helper()
	s.tag(m.Name, tag, s.commit(m.Name, "work", map[string]string{"README.md": "# " + tag + "\n"}))
	report := s.reconcile(m)
	if got := publishedTags(report); !slices.Equal(got, []string{tag}) {
		s.tb.Fatalf("Reconcile after %s was written published %q, notes %q", tag, got, report.Notes)
	}
	return s.version(m, tag)
}

func TestAutomaticPromotion(t *testing.T) {
	s, m := prepared(t, automatic)
	v := s.release(m, "v1.0.0")
	if got := s.evaluate(m, v, 0.7).Promoted; len(got) != 0 || s.in(m, staging) != "" {
		t.Fatalf("f1 0.7 promoted %v, want nothing", got)
	}
	last := s.lastEvent()
	recorded := s.evaluate(m, v, 0.9)
	var promoted []string
	for _, c := range recorded.Promoted {
		promoted = append(promoted, fmt.Sprintf("%s to %s, automatic %v", c.Version, c.Environment, c.Automatic))
	}
	if diff := cmp.Diff([]string{"v1.0.0 to staging, automatic true", "v1.0.0 to production, automatic true"}, promoted); diff != "" {
		t.Errorf("promoted by the evaluation (-want +got):\n%s", diff)
	}
	if len(recorded.Changed) != 2 || !recorded.Changed[0].Verdict.Open {
		t.Errorf("changed verdicts = %+v, want those of both environments, the first open", recorded.Changed)
	}
	if diff := cmp.Diff([]string{
		"evaluation.recorded by jenkins",
		"gate.opened v1.0.0 staging by herdbook",
		"environment.promoted v1.0.0 staging by herdbook",
		"gate.opened v1.0.0 production by herdbook",
		"environment.promoted v1.0.0 production by herdbook",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// What left an environment by a rollback does not come back by itself, and nothing old does.
func TestAutomaticPromotionDoesNotFlap(t *testing.T) {
	s, m := prepared(t, automatic)
	v1, v2 := s.release(m, "v1.0.0"), s.release(m, "v2.0.0")
	s.evaluate(m, v1, 0.9)
	s.evaluate(m, v2, 0.9)
	if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.Tag{}, "slow"); err != nil {
		t.Fatalf("RollBack = %v", err)
	}
	steps := []struct {
		name string
		do   func()
		want string // in staging
	}{
		{"after the rollback", func() {}, "v1.0.0"},
		{"a better evaluation of what was rolled back", func() { s.evaluate(m, v2, 0.99) }, "v1.0.0"},
		{"a reconciliation", func() { s.reconcile(m) }, "v1.0.0"},
		{"a lower bar", func() { s.policy(m, strings.ReplaceAll(automatic, "0.80", "0.50")) }, "v1.0.0"},
		{"a version between the two", func() { s.evaluate(m, s.release(m, "v1.5.0"), 0.9) }, "v1.0.0"},
		{"a pre-release above", func() { s.evaluate(m, s.release(m, "v3.0.0-rc.1"), 0.9) }, "v1.0.0"},
		{"a version above", func() { s.evaluate(m, s.release(m, "v2.0.1"), 0.9) }, "v2.0.1"},
		{"an evaluation of one below", func() { s.evaluate(m, v1, 0.99) }, "v2.0.1"},
		{"a person's word for what was rolled back", func() { s.promote(m, staging, "v2.0.0") }, "v2.0.0"},
		{"an evaluation of the one that the person replaced", func() { s.evaluate(m, s.version(m, "v2.0.1"), 0.99) }, "v2.0.0"},
	}
	for _, step := range steps {
		if step.do(); s.in(m, staging) != step.want {
			t.Fatalf("%s: %s is in staging, want %s; history %q", step.name, s.in(m, staging), step.want, s.history(m, staging))
		}
	}
}

func TestPolicyOfTheDefaultBranchOnly(t *testing.T) {
	s, m := prepared(t, manual)
	before, err := s.data.Index.Policy(t.Context(), m.ID)
	if err != nil || before.Policy == nil {
		t.Fatalf("Policy = %+v, %v, want one", before, err)
	}
	lower := strings.ReplaceAll(manual, "0.80", "0.10")
	last := s.lastEvent()
	commit := s.commit(m.Name, "feature", map[string]string{registry.PolicyFile: lower})
	s.tag(m.Name, "v1.0.0", commit)
	s.reconcile(m)
	s.evaluate(m, s.version(m, "v1.0.0"), 0.5)
	after, err := s.data.Index.Policy(t.Context(), m.ID)
	if diff := cmp.Diff(before, after, named); err != nil || diff != "" {
		t.Errorf("policy after another one on a branch and in a tag: %v (-want +got):\n%s", err, diff)
	}
	_, err = s.Promote(t.Context(), by("ada"), m, production, lifecycle.Promotion{Version: registry.MustTag("v1.0.0")})
	if !errors.Is(err, registry.ErrGateClosed) {
		t.Errorf("Promote with f1 0.5 = %v, want ErrGateClosed: the version's own policy does not count", err)
	}
	if got := told(s.events(last)); slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, "policy.changed") }) {
		t.Errorf("events %q, want no policy.changed", got)
	}
	report := s.policy(m, lower)
	if report.Policy == nil || report.Policy.Policy == nil {
		t.Errorf("Report.Policy = %+v, want the new policy", report.Policy)
	}
	if c := s.promote(m, production, "v1.0.0"); !c.Verdict.Open {
		t.Errorf("verdict of the promotion = %+v, want open", c.Verdict)
	}
}

func TestMalformedPolicyClosesTheGates(t *testing.T) {
	tests := []struct {
		name, yaml, want string
	}{
		{"no YAML", "environments: [", "line "},
		{"unknown field", "environments: {production: {gate: []}}", `no field "gate"`},
		{"expression", `environments: {production: {gates: ["metrics.f1 >"]}}`, "does not compile"},
		{"large", "# " + strings.Repeat("x", 256<<10), "larger than 262144 bytes"},
	}
	s, m := prepared(t, manual)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := s.release(m, fmt.Sprintf("v1.%d.0", i))
			s.evaluate(m, v, 0.9)
			report := s.policy(m, tt.yaml)
			if report.Policy == nil || report.Policy.Policy != nil || !strings.Contains(report.Policy.Problem, tt.want) {
				t.Errorf("Report.Policy = %+v, want a problem with %q", report.Policy, tt.want)
			}
			if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "every gate stays closed") {
				t.Errorf("notes = %q, want one that every gate stays closed", report.Notes)
			}
			_, err := s.Promote(t.Context(), by("ada"), m, production, lifecycle.Promotion{Version: v.Version.Tag})
			if !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Promote = %v, want a conflict with %q", err, tt.want)
			}
			if verdicts, err := s.Verdicts(t.Context(), m, v); err != nil || len(verdicts) != 0 {
				t.Errorf("Verdicts = %v, %v, want none", verdicts, err)
			}
			s.policy(m, manual)
			s.promote(m, production, v.Version.Tag.String())
		})
	}
}

func TestPolicyChangeJudgesWhatIsPending(t *testing.T) {
	s, m := prepared(t, `environments: {staging: {promote: auto, gates: ["metrics.f1 >= 0.80"]}}`)
	running, waiting := s.release(m, "v1.0.0"), s.release(m, "v1.1.0")
	s.evaluate(m, running, 0.85)
	if got := s.in(m, staging); got != "v1.0.0" {
		t.Fatalf("staging holds %q, want v1.0.0", got)
	}
	s.evaluate(m, waiting, 0.75)
	last := s.lastEvent()

	s.policy(m, `environments: {staging: {promote: auto, gates: ["metrics.f1 >= 0.95"]}}`)
	if diff := cmp.Diff([]string{"policy.changed by herdbook", "ref.updated refs/heads/main by herdbook"}, told(s.events(last))); diff != "" {
		t.Errorf("events of a higher bar, which the running version misses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"promotion v1.0.0, before "}, s.history(m, staging)); diff != "" {
		t.Errorf("history after a higher bar (-want +got):\n%s", diff)
	}
	last = s.lastEvent()
	report := s.policy(m, `environments: {staging: {promote: auto, gates: ["metrics.f1 >= 0.70"]}}`)
	if diff := cmp.Diff([]string{
		"policy.changed by herdbook",
		"ref.updated refs/heads/main by herdbook",
		"gate.opened v1.1.0 staging by herdbook",
		"environment.promoted v1.1.0 staging by herdbook",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events of a lower bar (-want +got):\n%s", diff)
	}
	if len(report.Promoted) != 1 || report.Promoted[0].Previous != registry.MustTag("v1.0.0") {
		t.Errorf("Report.Promoted = %+v, want v1.1.0 in place of v1.0.0", report.Promoted)
	}
}

func TestGateThatClosesAgain(t *testing.T) {
	s, m := prepared(t, manual)
	v := s.release(m, "v1.0.0")
	last := s.lastEvent()
	for _, f1 := range []float64{0.9, 0.91, 0.5, 0.4, 0.95} {
		s.evaluate(m, v, f1)
	}
	moves := slices.DeleteFunc(told(s.events(last)), func(e string) bool { return !strings.HasPrefix(e, "gate.") })
	if diff := cmp.Diff([]string{
		"gate.opened v1.0.0 production by herdbook", "gate.closed v1.0.0 production by herdbook", "gate.opened v1.0.0 production by herdbook",
	}, moves); diff != "" {
		t.Errorf("moves of the gate (-want +got):\n%s", diff)
	}
}

func TestEvaluationOfCommitWithSeveralVersions(t *testing.T) {
	s, m := prepared(t, automatic)
	commit := s.commit(m.Name, "work", map[string]string{"README.md": "# Same\n"})
	for _, tag := range []string{"v1.0.0", "v1.1.0", "v1.2.0-rc.1"} {
		s.tag(m.Name, tag, commit)
	}
	s.reconcile(m)
	recorded := s.evaluate(m, s.version(m, "v1.0.0"), 0.9)
	changed := map[string]bool{}
	for _, c := range recorded.Changed {
		changed[c.Version.String()] = true
	}
	if diff := cmp.Diff(map[string]bool{"v1.0.0": true, "v1.1.0": true, "v1.2.0-rc.1": true}, changed); diff != "" {
		t.Errorf("versions whose verdicts changed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"promotion v1.1.0, before "}, s.history(m, staging)); diff != "" {
		t.Errorf("history of staging: only the highest is promoted (-want +got):\n%s", diff)
	}
}

func TestConcurrentPromotions(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	var tags []string
	for i := range 8 {
		tags = append(tags, fmt.Sprintf("v1.%d.0", i))
	}
	commit := s.commit(m.Name, "work", map[string]string{"README.md": "# Model\n"})
	for _, tag := range tags {
		s.tag(m.Name, tag, commit)
	}
	s.reconcile(m)
	var wait sync.WaitGroup
	for _, tag := range tags {
		wait.Go(func() {
			if _, err := s.Promote(t.Context(), by("ada"), m, production, lifecycle.Promotion{Version: registry.MustTag(tag)}); err != nil {
				t.Errorf("Promote(%s) = %v", tag, err)
			}
		})
	}
	wait.Wait()
	history := s.history(m, production)
	if len(history) != len(tags) {
		t.Fatalf("history has %d changes, want %d: %q", len(history), len(tags), history)
	}
	before := ""
	for i, change := range history {
		tag, previous, _ := strings.Cut(strings.TrimPrefix(change, "promotion "), ", before ")
		if previous != before {
			t.Errorf("change %d is %q, want %q before it", i, change, before)
		}
		before = tag
	}
	if got := s.in(m, production); got != before {
		t.Errorf("production holds %s, want %s, the last of the history", got, before)
	}
}

func TestRefusedPromotion(t *testing.T) {
	s, m := prepared(t, manual)
	v := s.release(m, "v1.0.0")
	_, err := s.Promote(t.Context(), by("ada"), m, production, lifecycle.Promotion{Version: v.Version.Tag, Reason: "now"})
	var closed *registry.GateClosedError
	if !errors.As(err, &closed) || !strings.Contains(err.Error(), "no evaluation of v1.0.0 is recorded") {
		t.Fatalf("Promote without evidence = %v, want a GateClosedError that says so", err)
	}
	counts, err := s.data.Index.Counts(t.Context())
	if err != nil || counts.Refused != 1 {
		t.Errorf("refused promotions = %d, %v, want 1", counts.Refused, err)
	}
	if got := s.in(m, production); got != "" {
		t.Errorf("production holds %q, want nothing", got)
	}
}

func TestPromotionConflicts(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}, production: {deploy: [cluster]}}", func(f *faults) {
		f.deployer = func(registry.ModelName, string) error { return errors.New("cluster is not for this model") }
	})
	s.release(m, "v1.0.0")
	s.promote(m, staging, "v1.0.0")
	tests := []struct {
		name string
		env  registry.EnvironmentName
		tag  string
		want error
		text string
	}{
		{"already there", staging, "v1.0.0", registry.ErrConflict, "is in staging already"},
		{"no such version", staging, "v9.0.0", registry.ErrNotFound, "v9.0.0"},
		{"no such environment", registry.MustEnvironmentName("lab"), "v1.0.0", registry.ErrNotFound, "no environment lab"},
		{"hook that the model may not use", production, "v1.0.0", registry.ErrConflict, "cluster is not for this model"},
	}
	for _, tt := range tests {
		groups := s.groups()
		_, err := s.Promote(t.Context(), by("ada"), m, tt.env, lifecycle.Promotion{Version: registry.MustTag(tt.tag)})
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: Promote = %v, want %v with %q", tt.name, err, tt.want, tt.text)
		}
		if got := s.groups(); got != groups {
			t.Errorf("%s: %d groups were added to the journal, want 0", tt.name, got-groups)
		}
	}
}

func TestRollBack(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	ctx := t.Context()
	for _, tag := range []string{"v1.0.0", "v2.0.0", "v3.0.0", "v4.0.0"} {
		s.release(m, tag)
	}
	if _, err := s.RollBack(ctx, by("ada"), m, production, registry.Tag{}, ""); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("RollBack of an empty environment = %v, want a conflict", err)
	}
	for _, tag := range []string{"v1.0.0", "v2.0.0", "v3.0.0"} {
		s.promote(m, production, tag)
	}
	for tag, want := range map[string]string{"v4.0.0": "was never in production", "v3.0.0": "is in production already"} {
		if _, err := s.RollBack(ctx, by("ada"), m, production, registry.MustTag(tag), ""); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("RollBack to %s = %v, want a conflict with %q", tag, err, want)
		}
	}
	last := s.lastEvent()
	if _, err := s.RollBack(ctx, by("grace"), m, production, registry.Tag{}, "slow"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RollBack(ctx, by("grace"), m, production, registry.MustTag("v1.0.0"), "slow too"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"promotion v1.0.0, before ", "promotion v2.0.0, before v1.0.0", "promotion v3.0.0, before v2.0.0",
		"rollback v2.0.0, before v3.0.0", "rollback v1.0.0, before v2.0.0",
	}, s.history(m, production)); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"environment.rolledback v2.0.0 production by grace", "environment.rolledback v1.0.0 production by grace",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	state, err := s.data.Index.Environment(ctx, m.ID, production)
	want := []registry.Tag{registry.MustTag("v3.0.0"), registry.MustTag("v2.0.0")}
	if diff := cmp.Diff(want, state.Barred, named); err != nil || diff != "" {
		t.Errorf("barred: %v (-want +got):\n%s", err, diff)
	}
}

// Gates are not asked: what ran there may go back, whatever is asked of new versions meanwhile.
func TestRollBackPassesClosedGates(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	s.release(m, "v1.0.0")
	s.release(m, "v2.0.0")
	s.promote(m, production, "v1.0.0")
	s.promote(m, production, "v2.0.0")
	s.policy(m, manual)
	c, err := s.RollBack(t.Context(), by("ada"), m, production, registry.Tag{}, "")
	if err != nil || c.Version != registry.MustTag("v1.0.0") || c.Verdict == nil || c.Verdict.Open {
		t.Errorf("RollBack behind a closed gate = %+v, %v, want v1.0.0 with the closed verdict", c, err)
	}
}

// The way back is open whatever became of the policy.
func TestRollBackWithoutAUsablePolicy(t *testing.T) {
	for name, text := range map[string]string{"malformed": "environments: [", "without the environment": "environments: {staging: {}}", "gone": ""} {
		t.Run(name, func(t *testing.T) {
			s, m := prepared(t, "environments: {production: {deploy: [notify]}}", func(f *faults) { f.deployer = func(registry.ModelName, string) error { return nil } })
			s.release(m, "v1.0.0")
			s.release(m, "v2.0.0")
			s.promote(m, production, "v1.0.0")
			s.promote(m, production, "v2.0.0")
			s.policy(m, text)
			c, err := s.RollBack(t.Context(), by("ada"), m, production, registry.Tag{}, "it misbehaves")
			if err != nil || c.Version != registry.MustTag("v1.0.0") || !slices.Equal(c.Deploy, []string{"notify"}) {
				t.Errorf("RollBack = %+v, %v, want v1.0.0 deployed as before", c, err)
			}
			if _, err := s.Promote(t.Context(), by("ada"), m, production, lifecycle.Promotion{Version: registry.MustTag("v2.0.0")}); err == nil {
				t.Error("Promote without a usable policy = nil, want it refused")
			}
			if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.Tag{}, ""); err == nil {
				t.Error("RollBack of an environment that never held a version = nil, want it refused")
			}
		})
	}
}

func TestPolicyIsRemarkedOn(t *testing.T) {
	s := open(t, func(f *faults) {
		f.deployer = func(_ registry.ModelName, hook string) error {
			return registry.Invalid("deploy", "no hook %q is configured", hook)
		}
	})
	m := s.model(fraud)
	s.policy(m, "environments: {staging: {promote: auto}, production: {gates: ['metrics.f1 > 0.5'], deploy: [nowhere]}}")
	tests := []struct{ policy, want string }{
		{"environments: {staging: {promote: auto}}", "staging has no gates and promotes automatically"},
		{"environments: {production: {gates: ['metrics.f1 > 0.5'], deploy: [nowhere]}}", `nothing can be promoted to production: no hook "nowhere" is configured`},
		{"", "herdbook.yaml is gone from the default branch"},
	}
	for _, tt := range tests {
		files := map[string]string{"README.md": "# Model\n"}
		if tt.policy != "" {
			files[registry.PolicyFile] = tt.policy
		}
		s.commit(m.Name, "main", files)
		if notes := s.reconcile(m).Notes; len(notes) != 1 || !strings.Contains(notes[0], tt.want) {
			t.Errorf("notes on %q = %q, want %q", tt.policy, notes, tt.want)
		}
	}
}

func TestTextsThatSteerATerminalAreRefused(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	s.release(m, "v1.0.0")
	for _, text := range []string{"\x1b[31m", "a\x00b", "a\x7f", "\u009b2J", "\xff"} {
		if _, err := s.Promote(t.Context(), by("ada"), m, production, lifecycle.Promotion{Version: registry.MustTag("v1.0.0"), Reason: text}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Promote with the reason %q = %v, want ErrInvalid", text, err)
		}
		if _, err := s.ChangeModel(t.Context(), by("ada"), m, lifecycle.ModelChange{Description: &text}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("ChangeModel with the description %q = %v, want ErrInvalid", text, err)
		}
	}
}

func TestApprovals(t *testing.T) {
	s, m := prepared(t, "environments: {production: {approvals: 2}}")
	commit := s.commit(m.Name, "work", map[string]string{"README.md": "# Model\n"})
	update := registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit}
	if err := s.CheckPush(t.Context(), by("ada"), m, &push{id: "p", updates: []registry.RefUpdate{update}}); err != nil {
		t.Fatal(err)
	}
	s.tag(m.Name, "v1.0.0", commit)
	if _, err := s.FinishPush(t.Context(), m, "p", []registry.RefUpdate{update}); err != nil {
		t.Fatal(err)
	}
	tag := registry.MustTag("v1.0.0")
	steps := []struct {
		by     string
		events []string
		open   bool
	}{
		{"ada", []string{"environment.approved v1.0.0 production by ada"}, false}, // who published it
		{"grace", []string{"environment.approved v1.0.0 production by grace"}, false},
		{"grace", []string{}, false}, // has said so
		{"alan", []string{"environment.approved v1.0.0 production by alan", "gate.opened v1.0.0 production by herdbook"}, true},
	}
	for i, step := range steps {
		last := s.lastEvent()
		a, err := s.Approve(t.Context(), by(step.by), m, production, tag, "read it")
		if err != nil || a.By != step.by {
			t.Fatalf("step %d: Approve by %s = %+v, %v", i, step.by, a, err)
		}
		if diff := cmp.Diff(step.events, told(s.events(last))); diff != "" {
			t.Errorf("step %d: events of %s's approval (-want +got):\n%s", i, step.by, diff)
		}
		verdicts, err := s.Verdicts(t.Context(), m, s.version(m, "v1.0.0"))
		if err != nil || len(verdicts) != 1 || verdicts[0].Open != step.open {
			t.Errorf("step %d: verdicts = %+v, %v, want one, open %v", i, verdicts, err, step.open)
		}
	}
	if _, err := s.Approve(t.Context(), by("alan"), m, production, registry.MustTag("v9.0.0"), ""); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Approve of a version that is not there = %v, want ErrNotFound", err)
	}
	if _, err := s.Approve(t.Context(), by("alan"), m, staging, tag, ""); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Approve for an environment that is not there = %v, want ErrNotFound", err)
	}
}

func TestRequestsWithAKeyAreCarriedOutOnce(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	v := s.release(m, "v1.0.0")
	s.release(m, "v1.1.0")
	again := by("ada")
	again.Key = "key-1"
	first, err := s.Promote(t.Context(), again, m, production, lifecycle.Promotion{Version: v.Version.Tag, Reason: "once"})
	if err != nil {
		t.Fatal(err)
	}
	s.promote(m, production, "v1.1.0")
	second, err := s.Promote(t.Context(), again, m, production, lifecycle.Promotion{Version: v.Version.Tag, Reason: "once"})
	if diff := cmp.Diff(first, second, named, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("the same promotion again: %v (-want +got):\n%s", err, diff)
	}
	if got := s.in(m, production); got != "v1.1.0" {
		t.Errorf("production holds %s after the first request came again, want v1.1.0", got)
	}
	if _, err := s.Promote(t.Context(), again, m, production, lifecycle.Promotion{Version: registry.MustTag("v1.1.0")}); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("another promotion with the same key = %v, want a conflict", err)
	}

	one, err := s.RecordEvaluation(t.Context(), again, m, v.Version.Commit, f1Of(0.9))
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.RecordEvaluation(t.Context(), again, m, v.Version.Commit, f1Of(0.9))
	if err != nil || two.Evaluation.ID != one.Evaluation.ID {
		t.Errorf("the same evaluation again = %v, %v, want the first one, %s", two.Evaluation.ID, err, one.Evaluation.ID)
	}
	if _, err := s.RecordEvaluation(t.Context(), again, m, v.Version.Commit, f1Of(0.8)); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("another evaluation with the same key = %v, want a conflict", err)
	}
	evaluations, err := s.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	if err != nil || len(evaluations) != 1 {
		t.Errorf("%d evaluations, %v, want 1", len(evaluations), err)
	}
}

// impatient is a journal whose caller goes away when a commit begins.
type impatient struct {
	lifecycle.Journal
	leave context.CancelFunc
}

func (j *impatient) Commit(ctx context.Context, g registry.Group) error {
	if j.leave != nil {
		j.leave()
	}
	return j.Journal.Commit(ctx, g)
}

// What follows a commit does not need its caller.
func TestCallerThatGoesAway(t *testing.T) {
	const follows = "environments: {staging: {gates: [%q]}, production: {after: staging, promote: auto, gates: [%q]}}"
	tag := registry.MustTag("v1.0.0")
	tests := []struct {
		name string
		yaml string
		do   func(ctx context.Context, s *site, m registry.Model) error
		want registry.EnvironmentName // that holds the version then
	}{
		{"RecordEvaluation", automatic, func(ctx context.Context, s *site, m registry.Model) error {
			_, err := s.RecordEvaluation(ctx, by("jenkins"), m, s.version(m, "v1.0.0").Version.Commit, f1Of(0.9))
			return err
		}, production},
		{"Promote", fmt.Sprintf(follows, "true", "true"), func(ctx context.Context, s *site, m registry.Model) error {
			_, err := s.Promote(ctx, by("ada"), m, staging, lifecycle.Promotion{Version: tag})
			return err
		}, production},
		{"Approve", "environments: {staging: {promote: auto, approvals: 1}}", func(ctx context.Context, s *site, m registry.Model) error {
			_, err := s.Approve(ctx, by("ada"), m, staging, tag, "")
			return err
		}, staging},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			journal := &impatient{}
			s, m := prepared(t, tt.yaml, func(f *faults) { journal.Journal, f.Journal = f.Journal, journal })
			s.release(m, "v1.0.0")
			ctx, cancel := context.WithCancel(t.Context())
			journal.leave = cancel
			if err := tt.do(ctx, s, m); err != nil {
				t.Errorf("%s for a caller that goes away = %v, want nil: it was done", tt.name, err)
			}
			if got := s.in(m, tt.want); got != "v1.0.0" {
				t.Errorf("%s holds %q, want v1.0.0", tt.want, got)
			}
			groups := s.groups()
			if err := tt.do(ctx, s, m); !errors.Is(err, context.Canceled) {
				t.Errorf("%s for a caller that is gone = %v, want context.Canceled", tt.name, err)
			}
			if got := s.groups(); got != groups {
				t.Errorf("%s for a caller that is gone added %d groups to the journal, want 0", tt.name, got-groups)
			}
		})
	}
}
