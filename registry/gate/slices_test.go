package gate_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

// sliced is an evaluation of one slice.
func sliced(id, slice string, recall float64) registry.Evaluation {
	e := evaluation(id, map[string]float64{"recall": recall})
	e.Dataset.Slice = slice
	return e
}

// Each slice passes by itself, whether the policy names it or somebody evaluated it.
func TestSlices(t *testing.T) {
	rules := func(required ...string) *registry.Slices {
		return &registry.Slices{Required: required, Gates: []registry.Gate{{Name: "fair", Expr: "metrics.recall >= 0.8"}}}
	}
	tests := []struct {
		name        string
		slices      *registry.Slices
		evidence    *registry.Evidence
		evaluations []registry.Evaluation
		open        bool
		want        []string // SLICE EVALUATION REASON
	}{
		{"nobody evaluated a slice", rules(), nil, []registry.Evaluation{sliced("e1", "", 0.9)}, false, []string{"  no slice of the data was evaluated"}},
		{"all pass", rules(), nil, []registry.Evaluation{sliced("e1", "day", 0.9), sliced("e2", "night", 0.8)}, true, []string{
			"day e1 slice day: fair: metrics.recall >= 0.8 holds: metrics.recall is 0.9",
			"night e2 slice night: fair: metrics.recall >= 0.8 holds: metrics.recall is 0.8",
		}},
		{"one fails", rules(), nil, []registry.Evaluation{sliced("e1", "day", 0.9), sliced("e2", "night", 0.7)}, false, []string{
			"day e1 slice day: fair: metrics.recall >= 0.8 holds: metrics.recall is 0.9",
			"night e2 slice night: fair: metrics.recall >= 0.8 does not hold: metrics.recall is 0.7",
		}},
		{"the newest of a slice counts", rules(), nil, []registry.Evaluation{sliced("e1", "day", 0.9), sliced("e2", "day", 0.7)}, false, []string{
			"day e2 slice day: fair: metrics.recall >= 0.8 does not hold: metrics.recall is 0.7",
		}},
		{"a required one is missing", rules("night"), nil, []registry.Evaluation{sliced("e1", "day", 0.9)}, false, []string{
			"day e1 slice day: fair: metrics.recall >= 0.8 holds: metrics.recall is 0.9",
			"night  slice night: fair: metrics.recall is not known: none of the 1 evaluations of v2.0.0 matches the evidence that the policy asks for",
		}},
		{"of other data", rules(), &registry.Evidence{Dataset: "calls", Split: "validation"}, []registry.Evaluation{sliced("e1", "day", 0.1)}, false, []string{"  no slice of the data was evaluated"}},
		{"the evidence's own slice does not limit them", rules(), &registry.Evidence{Dataset: "calls", Slice: new(string)}, []registry.Evaluation{sliced("e1", "day", 0.9)}, true, []string{
			"day e1 slice day: fair: metrics.recall >= 0.8 holds: metrics.recall is 0.9",
		}},
		{"self-reported ones do not count", rules(), nil, []registry.Evaluation{func() registry.Evaluation {
			e := sliced("e1", "day", 0.9)
			e.SelfReported = true
			return e
		}()}, false, []string{"  no slice of the data was evaluated"}},
		{"too many", rules(), nil, many(registry.MaxSlices + 1), false, []string{"  257 slices were evaluated, and at most 256 are looked at"}},
	}
	j := judge(t)
	for _, tt := range tests {
		f := facts()
		f.Evaluations = tt.evaluations
		v := j.Decide(&registry.Environment{Name: production, Slices: tt.slices, Evidence: tt.evidence}, f)
		var got []string
		for _, g := range v.Gates {
			got = append(got, g.Slice+" "+g.Evaluation+" "+g.Reason)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || v.Open != tt.open {
			t.Errorf("%s: open is %t, want %t; gates (-want +got):\n%s", tt.name, v.Open, tt.open, diff)
		}
	}
}

func many(n int) []registry.Evaluation {
	var all []registry.Evaluation
	for i := range n {
		all = append(all, sliced(fmt.Sprintf("e%d", i), fmt.Sprintf("s%d", i), 1))
	}
	return all
}

// In a slice the incumbent is the same slice's.
func TestSlicesOfTheIncumbent(t *testing.T) {
	f := facts()
	f.Evaluations = []registry.Evaluation{sliced("e1", "day", 0.9), sliced("e2", "night", 0.8)}
	f.Incumbent.Evaluations = []registry.Evaluation{sliced("e3", "day", 0.9), sliced("e4", "night", 0.85)}
	v := judge(t).Decide(&registry.Environment{Name: production, Slices: &registry.Slices{Gates: []registry.Gate{{Name: "no worse", Expr: "metrics.recall >= incumbent.metrics.recall"}}}}, f)
	if len(v.Gates) != 2 || !v.Gates[0].Open || v.Gates[1].Open || v.Gates[1].Values["incumbent.metrics.recall"] != 0.85 {
		t.Errorf("verdict = %+v, want the gate open for day, and closed for night beside 0.85", v.Gates)
	}
}

func TestCardRules(t *testing.T) {
	with := func(sections []string, front, problem string) func(*gate.Facts) {
		return func(f *gate.Facts) {
			f.Card = registry.CardFacts{Sections: sections, FrontMatter: []byte(front), Problem: problem}
		}
	}
	rules := &registry.CardRules{Sections: []string{"Intended use", "Limitations"}, Fields: []string{"license", "datasets"}}
	tests := []struct {
		name   string
		change func(*gate.Facts)
		open   bool
		reason string
	}{
		{"all there", with([]string{"Intended Use", "Limitations"}, `{"license": "mit", "datasets": ["calls"]}`, ""), true, "the model card has all that it must have"},
		{"no card", with(nil, "", ""), false, `the model card lacks the section "Intended use", the section "Limitations", the field license, the field datasets`},
		{"empty fields", with([]string{"Intended use", "Limitations"}, `{"license": " ", "datasets": []}`, ""), false, "the model card lacks the field license, the field datasets"},
		{"a card that cannot be read", with([]string{"Intended use", "Limitations"}, `{"license": "mit", "datasets": ["calls"]}`, "line 3: not YAML"), false, "the model card cannot be read: line 3: not YAML"},
	}
	for _, tt := range tests {
		f := facts()
		tt.change(&f)
		v := judge(t).Decide(&registry.Environment{Name: production, Card: rules}, f)
		if len(v.Gates) != 1 || v.Gates[0].Name != "card" || v.Open != tt.open || v.Gates[0].Reason != tt.reason {
			t.Errorf("%s: verdict = %+v, want open: %t, because %q", tt.name, v, tt.open, tt.reason)
		}
	}
}
