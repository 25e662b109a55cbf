package card

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

func compare(t *testing.T, name string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b registry.EnvironmentName) bool { return a == b })); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// The policy of DESIGN.md.
const designed = `
environments:
  staging:
    promote: auto
    evidence: {dataset: calls-2026, split: test}
    gates: ["metrics.f1 >= 0.80"]
  production:
    after: staging                 # must have been live there
    promote: manual                # or auto
    approvals: 1
    evidence: {dataset: calls-2026, revision: 9f3c, split: test, evaluators: [jenkins], max_age: 30d}
    gates:
      - name: no worse than what runs
        expr: metrics.f1 >= 0.84 && (incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005)
      - name: enough evidence
        expr: evaluation.samples >= 200
    deploy: [prod-cluster, notify] # hooks the operator configured and allows this model to name
    monitor:
      alerts:
        - {name: F1Low, expr: 'model_f1 < 0.8', for: 5m, action: rollback}
`

func TestParsePolicy(t *testing.T) {
	judge, err := gate.New()
	if err != nil {
		t.Fatal(err)
	}
	staging, production := registry.MustEnvironmentName("staging"), registry.MustEnvironmentName("production")
	night, whole := "night", ""
	tests := []struct {
		name, text string
		want       []registry.Environment
	}{
		{"empty", "", nil},
		{"a comment", "# nothing yet\n", nil},
		{"no environments", "environments:\n", nil},
		{"no environments in a mapping", "environments: {}\n", nil},
		{"the designed one", designed, []registry.Environment{
			{
				Name: staging, Promote: registry.PromoteAuto, Evidence: &registry.Evidence{Dataset: "calls-2026", Split: "test"},
				Gates: []registry.Gate{{Name: "metrics.f1 >= 0.80", Expr: "metrics.f1 >= 0.80"}},
			},
			{
				Name: production, After: staging, Promote: registry.PromoteManual, Approvals: 1,
				Evidence: &registry.Evidence{Dataset: "calls-2026", Revision: "9f3c", Split: "test", Evaluators: []string{"jenkins"}, MaxAge: 30 * 24 * time.Hour},
				Gates: []registry.Gate{
					{Name: "no worse than what runs", Expr: "metrics.f1 >= 0.84 && (incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005)"},
					{Name: "enough evidence", Expr: "evaluation.samples >= 200"},
				},
				Deploy:  []string{"prod-cluster", "notify"},
				Monitor: &registry.Monitor{Alerts: []registry.Alert{{Name: "F1Low", Expr: "model_f1 < 0.8", For: "5m", Action: "rollback"}}},
			},
		}},
		{"written order", "environments:\n  zeta:\n  alpha: {}\n  mid:\n    after: zeta\n", []registry.Environment{
			{Name: registry.MustEnvironmentName("zeta"), Promote: registry.PromoteManual},
			{Name: registry.MustEnvironmentName("alpha"), Promote: registry.PromoteManual},
			{Name: registry.MustEnvironmentName("mid"), Promote: registry.PromoteManual, After: registry.MustEnvironmentName("zeta")},
		}},
		{"every other field", `
environments:
  staging:
    prereleases: true
    approvals: 100
    evidence:
      digest: sha256:` + strings.Repeat("ab", 32) + `
      slice: night
      self_reported: true
      max_age: 90m
    gates:
      - expr: |
          metrics.f1 > 0.5
          && metrics.recall > 0.5
    slices:
      required: [night, day]
      gates: [{name: fair, expr: metrics.recall > 0.4}]
    card: {sections: [Intended use], fields: [license]}
    deploy: []
    monitor: {alerts: [{name: A, expr: up == 0}]}
`, []registry.Environment{{
			Name: staging, Promote: registry.PromoteManual, Prereleases: true, Approvals: 100,
			Evidence: &registry.Evidence{Digest: "sha256:abababababababababababababababababababababababababababababababab", Slice: &night, SelfReported: true, MaxAge: 90 * time.Minute},
			Gates:    []registry.Gate{{Name: "metrics.f1 > 0.5\n&& metrics.recall > 0.5", Expr: "metrics.f1 > 0.5\n&& metrics.recall > 0.5"}},
			Slices:   &registry.Slices{Required: []string{"night", "day"}, Gates: []registry.Gate{{Name: "fair", Expr: "metrics.recall > 0.4"}}},
			Card:     &registry.CardRules{Sections: []string{"Intended use"}, Fields: []string{"license"}},
			Monitor:  &registry.Monitor{Alerts: []registry.Alert{{Name: "A", Expr: "up == 0", Action: "notify"}}},
		}}},
		{"gates written once", "environments:\n  staging:\n    gates: &g [metrics.f1 > 0.5]\n  production:\n    gates: *g\n", []registry.Environment{
			{Name: staging, Promote: registry.PromoteManual, Gates: []registry.Gate{{Name: "metrics.f1 > 0.5", Expr: "metrics.f1 > 0.5"}}},
			{Name: production, Promote: registry.PromoteManual, Gates: []registry.Gate{{Name: "metrics.f1 > 0.5", Expr: "metrics.f1 > 0.5"}}},
		}},
		{"the whole and no slice", "environments:\n  staging:\n    evidence: {dataset: d, slice: ''}\n", []registry.Environment{
			{Name: staging, Promote: registry.PromoteManual, Evidence: &registry.Evidence{Dataset: "d", Slice: &whole}},
		}},
	}
	for _, tt := range tests {
		got, err := ParsePolicy([]byte(tt.text), judge.Check)
		if err != nil {
			t.Errorf("ParsePolicy of %s: %v", tt.name, err)
			continue
		}
		compare(t, tt.name, tt.want, got.Environments)
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	check := func(expr string) error {
		if strings.Contains(expr, "bad") {
			return errors.New("the expression does not compile: 1:1: undeclared reference to 'bad'")
		}
		return nil
	}
	in := func(lines ...string) string {
		return "environments:\n  staging:\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	tests := []struct{ name, text, want string }{
		{"not YAML", "environments: [", "line 1: this is not YAML (did not find expected node content); check indentation and quotes here and in the lines around it"},
		{"a tab", "environments:\n\tstaging:\n", "line 2: this is not YAML (found character that cannot start any token); check indentation and quotes here and in the lines around it"},
		{"a list", "- a\n", "line 1: the policy is a list; write fields with values below it"},
		{"a text", "hello\n", "line 1: the policy is a text; write fields with values below it"},
		{"an unknown field", "environments:\nenvironment:\n", `line 2: the policy has no field "environment"; use one of environments`},
		{"environments in a list", "environments:\n- staging\n", "line 1: environments is a list; write the name of each environment with its fields below it"},
		{"a second document", "environments:\n---\nenvironments:\n", "line 2: a second YAML document starts; write one only"},
		{"an environment twice", "environments:\n  a:\n  b:\n  a:\n", `line 4: "a" stands twice, first in line 2; remove one`},
		{"a field twice", in("promote: auto", "promote: manual"), `line 4: "promote" stands twice, first in line 3; remove one`},
		{"a bad name", "environments:\n  Prod:\n", `line 2: "Prod" is not an environment's name: a lower-case letter, then at most 30 of a-z, 0-9 and '-'`},
		{"a name like a version", "environments:\n  v1:\n", `line 2: "v1" cannot name an environment: it would read as a version`},
		{"a name that is a number", "environments:\n  1:\n", "line 2: a field's name is not a text; put it in quotes"},
		{"an environment that is a list", "environments:\n  a: []\n", "line 2: in environment a, an environment is a list; write fields with values below it"},
		{"an unknown field of an environment", in("gate: x"), `line 3: in environment staging, an environment has no field "gate"; use one of after, approvals, card, deploy, evidence, gates, monitor, prereleases, promote, slices`},
		{"slices without gates", in("slices: {required: [night]}"), `line 3: in environment staging, slices has no gates; write what each slice must pass, such as metrics.recall >= 0.8`},
		{"a slice twice", in("slices: {required: [night, night], gates: ['true']}"), `line 3: in environment staging, required names "night" twice; remove one`},
		{"a card that is asked for nothing", in("card: {}"), `line 3: in environment staging, card asks for nothing; name sections or fields, or remove it`},
		{"after itself", in("after: staging"), "line 3: environment staging comes after itself; name another one"},
		{"after what comes later", "environments:\n  a:\n    after: b\n  b:\n    after: a\n", "line 3: in environment a, after names b, which is not written above; write b above a or name another one"},
		{"after a bad name", in("after: B"), `line 3: in environment staging, after: "B" is not an environment's name: a lower-case letter, then at most 30 of a-z, 0-9 and '-'`},
		{"after nothing", in("after:"), "line 3: in environment staging, after is nothing; write a text"},
		{"another way to promote", in("promote: automatic"), "line 3: in environment staging, promote is not one of auto, manual; write one of them"},
		{"a text for a bool", in("prereleases: 'yes'"), "line 3: in environment staging, prereleases is a text; write true or false"},
		{"too many approvals", in("approvals: 101"), "line 3: in environment staging, approvals is not a count; write a whole number from 0 to 100"},
		{"negative approvals", in("approvals: -1"), "line 3: in environment staging, approvals is not a count; write a whole number from 0 to 100"},
		{"half an approval", in("approvals: 0.5"), "line 3: in environment staging, approvals is not a count; write a whole number from 0 to 100"},
		{"approvals in quotes", in("approvals: '1'"), "line 3: in environment staging, approvals is not a count; write a whole number from 0 to 100"},
		{"evidence that is a text", in("evidence: calls"), "line 3: in environment staging, evidence is a text; write fields with values below it"},
		{"evidence of nothing", in("evidence: {}"), "line 3: in environment staging, evidence selects nothing; name a dataset or remove it"},
		{"evidence without a value", in("evidence:"), "line 3: in environment staging, evidence is nothing; write fields with values below it"},
		{"an unknown field of evidence", in("evidence:", "  data: x"), `line 4: in environment staging, evidence has no field "data"; use one of dataset, digest, evaluators, max_age, revision, self_reported, slice, split`},
		{"a revision that is a number", in("evidence: {revision: 1234}"), "line 3: in environment staging, revision is a number; put it in quotes"},
		{"an empty dataset", in("evidence: {dataset: ' '}"), "line 3: in environment staging, dataset is empty; write something or remove it"},
		{"a slice without a value", in("evidence: {dataset: d, slice: }"), "line 3: in environment staging, slice is nothing; write a text"},
		{"a digest of another kind", in("evidence: {digest: 'md5:00'}"), `line 3: in environment staging, digest is "md5:00"; write sha256: and 64 hex digits`},
		{"no evaluators", in("evidence: {evaluators: []}"), "line 3: in environment staging, evaluators names nobody; name one or remove it"},
		{"evaluators that are a text", in("evidence: {evaluators: jenkins}"), "line 3: in environment staging, evaluators is a text; write a list"},
		{"an age without a unit", in("evidence: {max_age: 30}"), "line 3: in environment staging, max_age is not a duration; write a number and s, m, h or d, such as 30d"},
		{"an age of nothing", in("evidence: {max_age: 0d}"), "line 3: in environment staging, max_age is not a duration; write a number and s, m, h or d, such as 30d"},
		{"an age in weeks", in("evidence: {max_age: 2w}"), "line 3: in environment staging, max_age is not a duration; write a number and s, m, h or d, such as 30d"},
		{"a long age", in("evidence: {max_age: 3651d}"), "line 3: in environment staging, max_age is longer than ten years; shorten it"},
		{"a very long age", in("evidence: {max_age: 9999999999d}"), "line 3: in environment staging, max_age is longer than ten years; shorten it"},
		{"gates without a value", in("gates:"), "line 3: in environment staging, gates is nothing; write a list"},
		{"gates that are a text", in("gates: metrics.f1 > 0.5"), "line 3: in environment staging, gates is a text; write a list"},
		{"a gate that is a bool", in("gates:", "- true"), "line 4: in environment staging, a gate is true or false; write an expression in quotes, or name and expr"},
		{"an empty gate", in("gates: ['']"), "line 3: in environment staging, the gate is empty; write an expression or remove it"},
		{"a gate without an expression", in("gates:", "- name: x"), "line 4: in environment staging, a gate has no expr; write the expression that must be true"},
		{"an unknown field of a gate", in("gates:", "- {name: x, expression: y}"), `line 4: in environment staging, a gate has no field "expression"; use one of expr, name`},
		{"an expression that is a number", in("gates:", "- {name: x, expr: 1}"), "line 4: in environment staging, expr is a number; write an expression in quotes"},
		{"an expression that does not compile", in("gates:", "- good", "- bad"), `line 5: in environment staging, gate "bad": the expression does not compile: 1:1: undeclared reference to 'bad'; correct the expression`},
		{"a named expression that does not compile", in("gates:", "- name: quality", "  expr: bad"), `line 5: in environment staging, gate "quality": the expression does not compile: 1:1: undeclared reference to 'bad'; correct the expression`},
		{"a long expression", in("gates: ['" + strings.Repeat("x", 17<<10) + "']"), "line 3: in environment staging, the gate is longer than 16384 bytes; shorten it"},
		{"a bad hook", in("deploy: [Prod]"), `line 3: in environment staging, "Prod" is not a hook's name; write a lower-case letter, then at most 62 of a-z, 0-9 and '-'`},
		{"a hook twice", in("deploy:", "- a", "- a"), "line 5: in environment staging, deploy names a twice; remove one"},
		{"a hook that is a text", in("deploy: prod"), "line 3: in environment staging, deploy is a text; write a list"},
		{"an unknown field of monitor", in("monitor: {alert: []}"), `line 3: in environment staging, monitor has no field "alert"; use one of alerts`},
		{"an alert without a name", in("monitor: {alerts: [{expr: up}]}"), "line 3: in environment staging, an alert has no name; give it one"},
		{"an alert without an expression", in("monitor: {alerts: [{name: A}]}"), "line 3: in environment staging, alert A has no expr; write the PromQL expression that fires it"},
		{"a bad alert's name", in("monitor: {alerts: [{name: a b, expr: up}]}"), `line 3: in environment staging, "a b" is not an alert's name; write a letter, then at most 62 letters, digits, '_' or '-'`},
		{"an alert twice", in("monitor:", "  alerts:", "  - {name: A, expr: up}", "  - {name: A, expr: down}"), "line 6: in environment staging, two alerts are named A; rename one"},
		{"an action that is none", in("monitor: {alerts: [{name: A, expr: up, action: reboot}]}"), "line 3: in environment staging, action is not one of notify, rollback, quarantine; write one of them"},
		{"a duration that is none", in("monitor: {alerts: [{name: A, expr: up, for: soon}]}"), "line 3: in environment staging, for is not a duration; write a number and s, m, h or d, such as 30d"},
		{"too many environments", "environments:\n" + many(65, "  e%d:\n"), "line 66: a policy has at most 64 environments; remove some"},
		{"too many gates", in("gates:") + many(65, "    - g%d\n"), "line 68: in environment staging, gates has more than 64 entries; remove some"},
		{"a merge key", "environments:\n  a: &a\n    promote: auto\n  b:\n    <<: *a\n", "line 5: merge keys (<<) are not read; write the fields out"},
		{"a control character", "environments:\n  a: \x01\n", "line 2: a control character, or a byte that is not UTF-8; remove it"},
		{"too long", "# " + strings.Repeat("x", 256<<10), "line 1: the YAML is longer than 262144 bytes; shorten it"},
	}
	for _, tt := range tests {
		got, err := ParsePolicy([]byte(tt.text), check)
		var field *registry.FieldError
		if !errors.As(err, &field) || err.Error() != tt.want {
			t.Errorf("ParsePolicy of %s = %+v, %v\nwant the FieldError %s", tt.name, got, err, tt.want)
		}
	}
}

// Each expression is checked once, in its place, and nothing is checked behind an error.
func TestParsePolicyChecksExpressions(t *testing.T) {
	var checked []string
	text := "environments:\n  a:\n    gates: [one, {expr: two}]\n    monitor: {alerts: [{name: A, expr: promql}]}\n  b:\n    gates: [three, stop, four]\n"
	_, err := ParsePolicy([]byte(text), func(expr string) error {
		checked = append(checked, expr)
		if expr == "stop" {
			return errors.New("no")
		}
		return nil
	})
	if err == nil {
		t.Error("ParsePolicy with an expression that is refused: no error")
	}
	if diff := cmp.Diff([]string{"one", "two", "three", "stop"}, checked); diff != "" {
		t.Errorf("checked expressions (-want +got):\n%s", diff)
	}
	if _, err := ParsePolicy([]byte(text), nil); err != nil {
		t.Errorf("ParsePolicy without a check: %v", err)
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(designed))
	for _, seed := range []string{"", "environments:\n  a: {gates: [x, {name: y, expr: z}], after: a}\n", "environments: &a {b: *a}\n", "environments:\n  a: {slices: {required: [x], gates: [y]}, card: {fields: [z]}}\n", "%YAML 1.2\n---\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		policy, err := ParsePolicy(data, nil)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") || len(err.Error()) > 2048 || !errors.Is(err, registry.ErrInvalid) {
				t.Errorf("error %q does not begin with the line", err)
			}
			return
		}
		seen := map[registry.EnvironmentName]bool{}
		for _, e := range policy.Environments {
			if e.Name.IsZero() || seen[e.Name] || (!e.After.IsZero() && !seen[e.After]) {
				t.Errorf("environment %+v has no name, one that was there, or comes after none", e)
			}
			if e.Promote != registry.PromoteAuto && e.Promote != registry.PromoteManual {
				t.Errorf("environment %+v is promoted to by nobody", e)
			}
			for _, g := range e.Gates {
				if g.Name == "" || g.Expr == "" {
					t.Errorf("gate %+v has no name or no expression", g)
				}
			}
			seen[e.Name] = true
		}
	})
}
