package gate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

// bomb takes more steps than one expression may.
var bomb = func() string {
	const ten = "[1,2,3,4,5,6,7,8,9,0]"
	expr := "true"
	for _, name := range []string{"f", "e", "d", "c", "b", "a"} {
		expr = ten + ".all(" + name + "," + expr + ")"
	}
	return expr
}()

// gatesOf makes gates with different names of expressions.
func gatesOf(exprs ...string) (gates []registry.Gate) {
	for i, expr := range exprs {
		gates = append(gates, registry.Gate{Name: fmt.Sprintf("gate %d", i), Expr: expr})
	}
	return gates
}

// outcomes of gates in a word each.
func outcomes(verdicts ...registry.Verdict) (list []string) {
	for _, v := range verdicts {
		for _, g := range v.Gates {
			word := "closed"
			switch {
			case g.Open:
				word = "open"
			case strings.Contains(g.Reason, "cost limit exceeded"):
				word = "too much"
			case strings.Contains(g.Reason, "the gates before it used up the cost of 4000000 that one request may have"):
				word = "not reached"
			case strings.Contains(g.Reason, "the request ended before"):
				word = "ended"
			}
			list = append(list, word)
		}
	}
	return list
}

func TestBudgetIsShared(t *testing.T) {
	j := judge(t)
	env := registry.Environment{Name: production, Gates: gatesOf("metrics.f1 > 0.5", bomb, "metrics.f1 > 0.6")}
	b := gate.NewBudget(nil, 2) // half of a request's is as much as two such gates cost
	got := outcomes(j.DecideWithin(b, &env, facts()), j.DecideWithin(b, &env, facts()), j.DecideWithin(b, &env, facts()))
	want := []string{"open", "too much", "open", "open", "too much", "not reached", "not reached", "not reached", "not reached"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("gates of three verdicts within one budget (-want +got):\n%s", diff)
	}
	if !b.Spent() {
		t.Error("Spent() = false when gates were not reached, want true")
	}
	// The next request begins anew.
	if got := outcomes(j.Decide(&env, facts())); !slices.Equal(got, want[:3]) {
		t.Errorf("gates of one verdict = %q, want %q", got, want[:3])
	}
}

// What cheap gates cost is counted too, and so is the list of all evaluations.
func TestBudgetCounts(t *testing.T) {
	j := judge(t)
	many := facts()
	for i := range 999 {
		many.Evaluations = append(many.Evaluations, evaluation(fmt.Sprint("m", i), map[string]float64{"f1": 0.9}))
	}
	for _, tt := range []struct {
		name  string
		exprs []string
		facts gate.Facts
		left  uint64
		want  []string
	}{
		{"cheap gates", []string{"metrics.f1 > 0.5", "metrics.f1 > 0.5", "metrics.f1 > 0.5"}, many, 5, []string{"open", "open", "not reached"}},
		{"a list of many", []string{"size(evaluations) > 1", "metrics.f1 > 0.5"}, many, 40_000, []string{"not reached", "not reached"}},
		{"a list of one", []string{"size(evaluations) == 1", "metrics.f1 > 0.5"}, facts(), 40_000, []string{"open", "open"}},
		{"a list is made once", []string{"size(evaluations) > 1", "size(evaluations) > 2"}, many, 80_000, []string{"open", "open"}},
	} {
		env := registry.Environment{Name: production, Gates: gatesOf(tt.exprs...)}
		if got := outcomes(j.DecideWithin(gate.NewBudget(nil, gate.RequestCost/tt.left), &env, tt.facts)); !slices.Equal(got, tt.want) {
			t.Errorf("%s with %d left = %q, want %q", tt.name, tt.left, got, tt.want)
		}
	}
}

func TestBudgetEndsWithTheRequest(t *testing.T) {
	done := make(chan struct{})
	env := registry.Environment{Name: production, Gates: gatesOf("metrics.f1 > 0.5", "metrics.f1 > 0.6")}
	b := gate.NewBudget(done, 1)
	if got := outcomes(judge(t).DecideWithin(b, &env, facts())); !slices.Equal(got, []string{"open", "open"}) {
		t.Errorf("gates of a request that goes on = %q, want open", got)
	}
	close(done)
	if got := outcomes(judge(t).DecideWithin(b, &env, facts())); !slices.Equal(got, []string{"ended", "ended"}) {
		t.Errorf("gates of a request that has ended = %q, want none looked at", got)
	}
}

// What was selected beforehand gives the same verdict as all evaluations.
func TestSelectedBeforehand(t *testing.T) {
	j := judge(t)
	all := facts()
	all.Evaluations = append(all.Evaluations, sliced("e8", "night", 0.4), sliced("e9", "day", 0.9))
	all.Incumbent.Evaluations = append(all.Incumbent.Evaluations, sliced("e5", "night", 0.5))
	fair := &registry.Slices{Required: []string{"dawn"}, Gates: gatesOf("metrics.f1 > 0.5", "incumbent == null || metrics.f1 >= incumbent.metrics.f1")}
	for name, evidence := range map[string]*registry.Evidence{
		"none": nil, "a dataset": {Dataset: "calls"}, "another": {Dataset: "news"}, "a slice": {Dataset: "calls", Slice: new("night")},
	} {
		for _, rules := range []*registry.Slices{nil, fair} {
			env := registry.Environment{Name: production, Evidence: evidence, Slices: rules, Gates: gatesOf("metrics.f1 > 0.5", "metrics.f1 >= incumbent.metrics.f1")}
			given := all
			given.Selected = gate.Select(&env, all.Evaluations, all.Now)
			given.Incumbent = &gate.Incumbent{Subject: all.Incumbent.Subject, Selected: gate.SelectIncumbent(&env, all.Incumbent.Evaluations, given.Selected, all.Now)}
			given.Evaluations = nil
			if diff := cmp.Diff(j.Decide(&env, all), j.Decide(&env, given), cmp.Comparer(func(a, b registry.EnvironmentName) bool { return a == b })); diff != "" {
				t.Errorf("verdict with evidence %s (-from all +from what was selected):\n%s", name, diff)
			}
		}
	}
}
