package gate_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

// decided is a decision of every kind of gate, by the facts of these tests.
func decided(tb testing.TB, expr string, change func(*gate.Facts)) gate.Decision {
	tb.Helper()
	f := facts()
	if change != nil {
		change(&f)
	}
	env := registry.Environment{
		Name: production, Promote: registry.PromoteManual, After: registry.MustEnvironmentName("staging"), Approvals: 1, Evidence: &registry.Evidence{Dataset: "calls"},
		Gates: []registry.Gate{{Name: "given", Expr: expr}}, Slices: &registry.Slices{Required: []string{"night"}, Gates: []registry.Gate{{Name: "fair", Expr: "metrics.f1 > 0.5"}}},
		Card: &registry.CardRules{Sections: []string{"Uses"}, Fields: []string{"license"}},
	}
	return gate.Decision{Model: registry.MustModelName("acme/fraud"), Policy: env, Facts: &f, Verdict: judge(tb).Decide(&env, f)}
}

// What was decided is decided again, from what is written down of it, to the last byte.
func TestReplay(t *testing.T) {
	for _, expr := range []string{
		"metrics.f1 >= 0.9", "metrics.precision > 0.5", "evaluation.samples >= 200", "evaluations[0].metrics.f1 > 0.5 && size(evaluations) == 1",
		"incumbent == null || metrics.f1 >= incumbent.metrics.f1", "version.published_at < timestamp('2027-01-01T00:00:00Z')", "card.license == 'mit'",
		"lineage.base_models.all(b, b.model != 'x')", "approvals.exists(a, a.by == 'grace')", "metrics.f1 >>", "1 / 0 == 1", `!worse_than(incumbent, "f1", 0.05)`, "lower(metrics.f1) > 0.1",
	} {
		for name, change := range map[string]func(*gate.Facts){
			"as they are":      nil,
			"nothing runs":     func(f *gate.Facts) { f.Incumbent = nil },
			"nothing measured": func(f *gate.Facts) { f.Evaluations = nil },
			"approved, a slice measured": func(f *gate.Facts) {
				f.WasLiveBefore, f.Approvals = true, []registry.Approval{{By: "grace", Version: f.Tag, Environment: production}}
				f.Evaluations = append(f.Evaluations, sliced("e9", "night", 0.9))
			},
		} {
			d := decided(t, expr, change)
			data, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			statement, err := json.Marshal(map[string]any{"_type": "https://in-toto.io/Statement/v1", "predicate": json.RawMessage(data)})
			if err != nil {
				t.Fatal(err)
			}
			envelope, err := json.Marshal(map[string]any{"payloadType": "application/vnd.in-toto+json", "payload": statement, "signatures": []any{}})
			if err != nil {
				t.Fatal(err)
			}
			for form, text := range map[string][]byte{"decision": data, "statement": statement, "envelope": envelope} {
				parsed, err := gate.ParseDecision(text)
				if err != nil {
					t.Errorf("ParseDecision of the %s about %q, %s: %v", form, expr, name, err)
					continue
				}
				if again, same, err := judge(t).Replay(parsed); !same || err != nil {
					t.Errorf("Replay of the %s about %q, %s: %v, and differs (-then +now):\n%s", form, expr, name, err, cmp.Diff(d.Verdict, again, cmp.AllowUnexported(registry.EnvironmentName{})))
				}
			}
		}
	}
}

// A verdict, or a fact, that somebody changed is seen.
func TestReplayOfWhatWasChanged(t *testing.T) {
	good := decided(t, "metrics.f1 >= 0.95", nil)
	data, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new string }{
		{`"open":false`, `"open":true`},
		{`"f1":0.9`, `"f1":0.99`},
		{`metrics.f1 \u003e= 0.95`, `metrics.f1 \u003e= 0.5`},
	} {
		changed := strings.Replace(string(data), tt.old, tt.new, 1)
		if changed == string(data) {
			t.Fatalf("%s has no %s", data, tt.old)
		}
		d, err := gate.ParseDecision([]byte(changed))
		if err != nil {
			t.Fatal(err)
		}
		if _, same, err := judge(t).Replay(d); same || err != nil {
			t.Errorf("Replay with %s in the place of %s = same: %t, %v, want another verdict", tt.new, tt.old, same, err)
		}
	}
}

func TestParseDecisionRefuses(t *testing.T) {
	for _, tt := range []struct{ text, says string }{
		{"", "not JSON"},
		{"[]", "not JSON"},
		{"{}", "no decision about a version"},
		{`{"payload": "!"}`, "not JSON"},
		{`{"policy": {"name": "production"}, "verdict": {"environment": "production"}}`, "too long to be kept"},
		{`{"policy": {"name": "Production"}}`, "not JSON"},
	} {
		if _, err := gate.ParseDecision([]byte(tt.text)); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("ParseDecision(%s) = %v, want ErrInvalid that says %q", tt.text, err, tt.says)
		}
	}
}

func FuzzParseDecision(f *testing.F) {
	seed, err := json.Marshal(decided(f, "metrics.f1 > 0.5", nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	for _, text := range []string{"{}", `{"payload":"e30="}`, `{"predicate":{"predicate":{"predicate":{}}}}`, `{"policy":{"name":"a","gates":[{"name":"x","expr":"true"}]},"facts":{"version":{"tag":"v1.0.0"}},"verdict":{"environment":"a"}}`} {
		f.Add([]byte(text))
	}
	j := judge(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := gate.ParseDecision(data)
		if err != nil {
			return
		}
		again, _, err := j.Replay(d)
		if err != nil {
			return
		}
		d.Verdict = again
		if _, same, err := j.Replay(d); !same || err != nil {
			t.Errorf("Replay of what was replayed: same: %t, %v", same, err)
		}
	})
}
