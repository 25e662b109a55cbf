package gate_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

var (
	production = registry.MustEnvironmentName("production")
	now        = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
)

const (
	commit    = registry.ObjectID("0123456789abcdef0123456789abcdef01234567")
	oldCommit = registry.ObjectID("89abcdef0123456789abcdef0123456789abcdef")
)

func judge(t testing.TB) *gate.Judge {
	t.Helper()
	j, err := gate.New()
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// evaluation of a commit with what is given; the rest is always the same.
func evaluation(id string, metrics map[string]float64) registry.Evaluation {
	samples := int64(200)
	return registry.Evaluation{
		ID: id, Commit: commit, Dataset: registry.Dataset{Name: "calls", Revision: "9f3c", Split: "test"}, Metrics: metrics, Samples: &samples,
		Evaluator: "jenkins", RecordedBy: "ada", RecordedAt: now.Add(-time.Hour),
	}
}

// facts of a version that has everything: v2.0.0, where v1.0.0 runs.
func facts() gate.Facts {
	return gate.Facts{
		Subject: gate.Subject{
			Tag: registry.MustTag("v2.0.0"), Commit: commit, PublishedAt: now.Add(-2 * time.Hour), PublishedBy: "ada",
			Card: registry.CardFacts{
				License: "mit", Datasets: []string{"acme/calls"}, BaseModels: []registry.BaseModel{{Model: "snakers4/silero-vad", Relation: registry.Finetune}},
				FrontMatter: json.RawMessage(`{"license":"mit","datasets":["acme/calls"],"limits":{"max_seconds":30}}`),
			},
		},
		Now: now, State: registry.Published,
		Evaluations: []registry.Evaluation{evaluation("e1", map[string]float64{"f1": 0.9, "recall": 0.8, "recall@5": 0.95})},
		Incumbent: &gate.Incumbent{
			Subject:     gate.Subject{Tag: registry.MustTag("v1.0.0"), Commit: oldCommit, PublishedAt: now.Add(-time.Hour), PublishedBy: "ada"},
			Evaluations: []registry.Evaluation{evaluation("e0", map[string]float64{"f1": 0.85, "recall": 0.9})},
		},
		PolicyCommit: oldCommit,
	}
}

func TestExpressions(t *testing.T) {
	none := func(f *gate.Facts) { f.Evaluations = nil }
	first := func(f *gate.Facts) { f.Incumbent = nil }
	unevaluated := func(f *gate.Facts) { f.Incumbent.Evaluations = nil }
	badCard := func(f *gate.Facts) { f.Card.Problem = "line 3: not YAML" }
	metric := func(name string, value float64) func(*gate.Facts) {
		return func(f *gate.Facts) { f.Evaluations[0].Metrics[name] = value }
	}
	ten := "[1,2,3,4,5,6,7,8,9,10]"
	nested := ten + ".all(a," + ten + ".all(b," + ten + ".all(c," + ten + ".all(d," + ten + ".all(e," + ten + ".all(f,true))))))"
	tests := []struct {
		name, expr string
		change     func(*gate.Facts)
		open       bool
		reason     string // a part of it
		values     map[string]any
	}{
		{"holds", "metrics.f1 >= 0.9", nil, true, "metrics.f1 >= 0.9 holds: metrics.f1 is 0.9", map[string]any{"metrics.f1": 0.9}},
		{"does not hold", "metrics.f1 > 0.9", nil, false, "metrics.f1 > 0.9 does not hold: metrics.f1 is 0.9", map[string]any{"metrics.f1": 0.9}},
		{"whole numbers", "metrics.f1 < 1", nil, true, "holds", map[string]any{"metrics.f1": 0.9}},
		{"a name that is no identifier", `metrics["recall@5"] > 0.9`, nil, true, "holds", map[string]any{"metrics.recall@5": 0.95}},
		{"every fact is named", "metrics.f1 > 0.8 && evaluation.samples >= 200 && evaluation.dataset.name == 'calls'", nil, true, "holds", map[string]any{"metrics.f1": 0.9, "evaluation.samples": int64(200), "evaluation.dataset.name": "calls"}},
		{"too few samples", "evaluation.samples >= 201", nil, false, "evaluation.samples is 200", map[string]any{"evaluation.samples": int64(200)}},
		{"true alone", "true", none, true, "true holds", map[string]any{}},
		{"false alone", "false", nil, false, "false does not hold", map[string]any{}},

		{"a missing metric", "metrics.precision > 0.5", nil, false, "metrics.precision is not recorded", map[string]any{"metrics.precision": nil}},
		{"a missing metric by its name in brackets", `metrics["precision"] > 0.5`, nil, false, "metrics.precision is not recorded", map[string]any{"metrics.precision": nil}},
		{"a missing metric behind or", "metrics.f1 > 0.5 || metrics.precision > 0.5", nil, false, "metrics.precision is not recorded", map[string]any{"metrics.f1": 0.9, "metrics.precision": nil}},
		{"a missing metric before or", "metrics.precision > 0.5 || metrics.f1 > 0.5", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric behind and", "metrics.f1 < 0.5 && metrics.precision > 0.5", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric in the branch not taken", "metrics.f1 > 0.5 ? true : metrics.precision > 0.5", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric in a negation", "!(metrics.precision < 0.5)", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric in a macro", "[0.5].exists(x, metrics.f1 > x || metrics.precision > x)", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric behind dyn", "metrics.f1 > 0.5 || dyn(metrics).precision > 0.5", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric with a leading dot", "metrics.f1 > 0.5 || .metrics.precision > 0.5", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric where a macro has the name", "[1].exists(metrics, metrics == 1 || .metrics.precision > 0.5)", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric in a map", "{'a': metrics.precision, 'b': 1.0}['b'] == 1.0", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric in an argument", "size(string(metrics.precision)) > 0 || true", nil, false, "metrics.precision is not recorded", nil},
		{"a missing metric with a computed name", "['f1', 'precision'].all(m, metrics[m] > 0.5)", nil, false, "cannot be decided: no such key: precision", nil},
		{"a missing metric of a record in the list", "evaluations[0].metrics.f1 > 0.5 || evaluations[0].metrics.precision > 0.5", nil, false, "evaluations[0].metrics.precision is not recorded", map[string]any{"evaluations[0].metrics.f1": 0.9, "evaluations[0].metrics.precision": nil}},
		{"a record that is not in the list", "true || evaluations[1].samples > 0", nil, false, "evaluations[1].samples is not recorded", nil},
		{"a record before the list", "true || evaluations[-1].samples > 0", nil, false, "evaluations[-1].samples is not recorded", nil},
		{"a missing field of the evaluation", "evaluation.harness.name == 'x' || true", nil, false, "evaluation.harness.name is not recorded", nil},
		{"a field below a value", "metrics.f1 > 0.5 || evaluation.samples.x == 1", nil, false, "evaluation.samples.x is not recorded", nil},
		{"asked for whether it is there", "has(metrics.precision)", nil, false, "does not hold", map[string]any{"size(metrics)": 3}},
		{"asked for whether it is missing", "!has(metrics.precision)", nil, true, "holds", nil},
		{"asked for first, and named", "!has(metrics.precision) || metrics.precision > 0.5", nil, false, "metrics.precision is not recorded", nil},
		{"what is named only inside a macro", "metrics.all(metrics, metrics != 'x')", nil, true, "holds", map[string]any{"size(metrics)": 3}},
		{"a type is no fact", "type(evaluation.evaluator) == string", nil, true, "holds: evaluation.evaluator is jenkins", map[string]any{"evaluation.evaluator": "jenkins"}},

		{"a division of numbers", "metrics.f1 / 0.5 > 1.0", nil, true, "holds", nil},
		{"a division of whole numbers", "7 / 2 == 3", nil, true, "holds", nil},
		{"a division by zero", "metrics.f1 / 0.0 > 1.0", nil, false, "cannot be decided: a division by zero", nil},
		{"a division by zero of numbers that are written out", "1.0 / 0.0 > 1.0", nil, false, "a division by zero", nil},
		{"zero by zero", "0.0 / 0.0 != 1.0", nil, false, "a division by zero", nil},
		{"a division by zero in a macro", "[0.0, 1.0].exists(x, metrics.f1 / x > 1.0) && metrics.f1 / 0.0 > 1.0", nil, false, "a division by zero", nil},
		{"a division by zero in one turn of a macro", "[0.0, 2.0].all(x, metrics.f1 / x > 0.1)", nil, false, "a division by zero", nil},
		{"a whole number by zero", "1 / 0 > 1", nil, false, "division by zero", nil},
		{"a product that is too large", "metrics.f1 * 1e308 * 1e308 > 1.0", nil, false, "too large", nil},
		{"a sum that is too large", "1.7e308 + 1.7e308 > metrics.f1", nil, false, "too large", nil},
		{"a difference that is too large", "-1.7e308 - 1.7e308 < metrics.f1", nil, false, "too large", nil},
		{"a text that is no number", "!(double('NaN') < metrics.f1)", nil, false, "too large", nil},
		{"a text that is infinite", "double('inf') > metrics.f1", nil, false, "too large", nil},
		{"not a number", "metrics.loss < 0.5", metric("loss", math.NaN()), false, "metrics.loss is not recorded", map[string]any{"metrics.loss": nil}},
		{"not a number, negated", "!(metrics.loss > 0.5)", metric("loss", math.NaN()), false, "metrics.loss is not recorded", nil},
		{"not a number, unequal to itself", "metrics.loss != metrics.loss", metric("loss", math.NaN()), false, "metrics.loss is not recorded", nil},
		{"infinity", "metrics.loss > 0.5", metric("loss", math.Inf(1)), false, "metrics.loss is not recorded", nil},
		{"not a number by the evaluation", "!(evaluation.metrics.loss > 0.5)", metric("loss", math.NaN()), false, "evaluation.metrics.loss is not recorded", nil},
		{"only numbers that are none", "metrics.all(m, metrics[m] > 0.5)", func(f *gate.Facts) { f.Evaluations[0].Metrics = map[string]float64{"f1": math.NaN()} }, false, "metrics is not recorded", nil},
		{"an evaluation without metrics", "!metrics.exists(m, metrics[m] < 0.5)", func(f *gate.Facts) { f.Evaluations[0].Metrics = nil }, false, "metrics is not recorded", nil},
		{"an evaluation without metrics, by itself", "evaluation.metrics.all(m, false)", func(f *gate.Facts) { f.Evaluations[0].Metrics = nil }, false, "evaluation.metrics is not recorded", nil},

		{"no evaluation", "metrics.f1 > 0.5", none, false, "metrics.f1 is not known: no evaluation of v2.0.0 is recorded", map[string]any{"metrics.f1": nil}},
		{"no evaluation, all metrics", "metrics.all(m, metrics[m] > 0.5)", none, false, "metrics is not known: no evaluation", nil},
		{"no evaluation, not there", "!has(metrics.f1)", none, false, "metrics is not known: no evaluation", nil},
		{"no evaluation, not in", "!('f1' in metrics)", none, false, "metrics is not known: no evaluation", nil},
		{"no evaluation, size", "size(metrics) == 0", none, false, "metrics is not known: no evaluation", nil},
		{"no evaluation, its fields", "!has(evaluation.samples)", none, false, "evaluation is not known: no evaluation", nil},
		{"no evaluation, none of them", "evaluations.all(e, e.metrics.f1 > 0.5)", none, false, "evaluations is not known: no evaluation", nil},
		{"no evaluation, behind or", "true || metrics.f1 > 0.5", none, false, "metrics.f1 is not known", nil},
		{"no evaluation and no need of one", "version.tag == 'v2.0.0'", none, true, "holds: version.tag is v2.0.0", map[string]any{"version.tag": "v2.0.0"}},
		{"only self-reported", "metrics.f1 > 0.5", func(f *gate.Facts) { f.Evaluations[0].SelfReported = true }, false, "none of the 1 evaluations of v2.0.0 matches the evidence", nil},
		{"two datasets", "metrics.f1 > 0.5", func(f *gate.Facts) {
			e := evaluation("e2", map[string]float64{"f1": 0.9})
			e.Dataset.Name = "noise"
			f.Evaluations = append(f.Evaluations, e)
		}, false, "metrics.f1 is not known: the evaluations differ in their dataset (calls@9f3c/test and noise@9f3c/test): name one under evidence", nil},
		{"all evaluations", "evaluations.all(e, e.metrics.f1 > 0.5) && size(evaluations) == 1", nil, true, "size(evaluations) is 1", map[string]any{"size(evaluations)": 1}},
		{"one of all lacks the metric", "evaluations.all(e, e.metrics.f1 > 0.5)", func(f *gate.Facts) {
			f.Evaluations = append(f.Evaluations, evaluation("e2", map[string]float64{"recall": 1}))
		}, false, "cannot be decided: no such key: f1", nil},

		{"better than what runs", "metrics.f1 > incumbent.metrics.f1", nil, true, "holds: incumbent.metrics.f1 is 0.85, metrics.f1 is 0.9", map[string]any{"metrics.f1": 0.9, "incumbent.metrics.f1": 0.85}},
		{"nothing runs", "incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005", first, true, "incumbent is null", map[string]any{"metrics.f1": 0.9, "incumbent": nil, "incumbent.metrics.f1": nil}},
		{"nothing runs, the other way round", "metrics.f1 >= incumbent.metrics.f1 || incumbent == null", first, true, "holds", nil},
		{"something runs", "incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005", nil, true, "incumbent is v1.0.0", map[string]any{"metrics.f1": 0.9, "incumbent": "v1.0.0", "incumbent.metrics.f1": 0.85}},
		{"worse than what runs", "incumbent == null || metrics.recall >= incumbent.metrics.recall", nil, false, "does not hold: incumbent is v1.0.0, incumbent.metrics.recall is 0.9, metrics.recall is 0.8", nil},
		{"nothing runs, and that is not asked", "metrics.f1 >= incumbent.metrics.f1", first, false, "cannot be decided", nil},
		{"what runs lacks the metric", `incumbent == null || metrics["recall@5"] >= incumbent.metrics["recall@5"]`, nil, false, "incumbent.metrics.recall@5 is not recorded for what runs there", nil},
		{"what runs lacks it behind or", "metrics.f1 > 0.5 || incumbent.metrics.precision > 0.5", nil, false, "incumbent.metrics.precision is not recorded for what runs there", nil},
		{"what runs was never evaluated", "incumbent == null || metrics.f1 >= incumbent.metrics.f1", unevaluated, false, "incumbent.metrics.f1 is not recorded for what runs there", nil},
		{"no worse in any metric", "incumbent == null || incumbent.metrics.all(m, metrics[m] >= incumbent.metrics[m] - 0.2)", nil, true, "holds", map[string]any{"incumbent": "v1.0.0", "size(incumbent.metrics)": 2, "size(metrics)": 3}},
		{"no worse in any metric of none", "incumbent == null || incumbent.metrics.all(m, metrics[m] >= incumbent.metrics[m])", unevaluated, false, "incumbent.metrics is not recorded for what runs there", nil},
		{"no worse in any field of none", "incumbent == null || !('samples' in incumbent.evaluation)", unevaluated, false, "incumbent.evaluation is not recorded for what runs there", nil},
		{"the card of what runs cannot be read", "incumbent == null || !has(incumbent.card.gated)", func(f *gate.Facts) { f.Incumbent.Card.Problem = "line 3" }, false, "incumbent.card is not recorded for what runs there", nil},
		{"what runs has self-reported only", "incumbent == null || metrics.f1 >= incumbent.metrics.f1", func(f *gate.Facts) { f.Incumbent.Evaluations[0].SelfReported = true }, false, "incumbent.metrics.f1 is not recorded", nil},
		{"which version runs", "incumbent.tag == 'v1.0.0' && incumbent.commit != version.commit", nil, true, "holds", map[string]any{"incumbent.tag": "v1.0.0", "incumbent.commit": string(oldCommit), "version.commit": string(commit)}},

		{"the card", "card.license in ['mit', 'apache-2.0'] && card.limits.max_seconds <= 60", nil, true, "holds", map[string]any{"card.license": "mit", "card.limits.max_seconds": 30.0}},
		{"not in the card", "card.gated != true", nil, false, "card.gated is not recorded", nil},
		{"the first of a list of the card", "card.datasets[0] == 'acme/calls'", nil, true, "holds: card.datasets[0] is acme/calls", map[string]any{"card.datasets[0]": "acme/calls"}},
		{"a card that cannot be read", "card.license == 'mit'", badCard, false, "card.license is not known: the model card cannot be read: line 3: not YAML", nil},
		{"nothing in a card that cannot be read", "!has(card.gated)", badCard, false, "card is not known: the model card cannot be read", nil},
		{"no card", "!has(card.gated)", func(f *gate.Facts) { f.Card = registry.CardFacts{} }, true, "holds", nil},
		{"base models", "lineage.base_models.all(b, b.model.startsWith('snakers4/'))", nil, true, "size(lineage.base_models) is 1", map[string]any{"size(lineage.base_models)": 1}},
		{"base models of a card that cannot be read", "lineage.base_models.all(b, b.model.startsWith('snakers4/'))", badCard, false, "lineage.base_models is not known: the model card cannot be read", nil},
		{"no base models, says the card", "size(lineage.base_models) == 0", func(f *gate.Facts) { f.Card.BaseModels = nil }, true, "holds", nil},
		{"datasets", "'acme/calls' in lineage.datasets", nil, true, "holds", nil},
		{"the version", "version.prerelease == false && version.published_by == 'ada' && version.published_at < timestamp('2027-01-01T00:00:00Z')", nil, true, "holds", nil},
		{"approvals", "approvals.exists(a, a.by == 'grace')", func(f *gate.Facts) { f.Approvals = []registry.Approval{{By: "grace"}} }, true, "size(approvals) is 1", map[string]any{"size(approvals)": 1}},
		{"no approvals", "approvals.exists(a, a.by == 'grace')", nil, false, "size(approvals) is 0", map[string]any{"size(approvals)": 0}},

		{"no bool", "metrics.f1", nil, false, "the expression gives a double, not a bool", map[string]any{}},
		{"no bool, known late", "evaluation.samples", nil, false, "evaluation.samples gives a int, not a bool", nil},
		{"null", "null", nil, false, "the expression gives a null", nil},
		{"a text that says true", "evaluation.evaluator == 'x' ? 'false' : 'true'", nil, false, "the expression gives a string, not a bool", nil},
		{"wrong types, known early", "metrics.f1 > '0.5'", nil, false, "does not compile: 1:12: found no matching overload", nil},
		{"wrong types, known late", "evaluation.evaluator > 5", nil, false, "cannot be decided: no such overload", nil},
		{"an unknown variable", "metrics.f1 > 0.5 || metric.f1 > 0.5", nil, false, "does not compile: 1:21: undeclared reference to 'metric'", nil},
		{"an unknown function", "now() > 5", nil, false, "does not compile: 1:4: undeclared reference to 'now'", nil},
		{"not CEL", "metrics.f1 >>= 0.5", nil, false, "does not compile: 1:13: Syntax error", nil},
		{"empty", "", nil, false, "does not compile", nil},
		{"a bad pattern", "version.tag.matches('(')", nil, false, "the expression does not compile", nil},
		{"division by zero", "1 / 0 == 1", nil, false, "cannot be decided: division by zero", nil},
		{"too long", strings.Repeat(" ", gate.MaxExprLen-3) + "true", nil, false, "the expression is longer than 4096 bytes", nil},
		{"as long as may be", strings.Repeat(" ", gate.MaxExprLen-4) + "true", nil, true, "holds", nil},
		{"too deep", strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300), nil, false, "the expression does not compile", nil},

		{"too many steps", nested, nil, false, "cost limit exceeded", nil},
		{"a text that doubles", "['x']" + strings.Repeat(".map(a, a + a)", 40) + ".exists(a, size(a) > 0)", nil, false, "limit exceeded", nil},
		{"a list that doubles", "[[1]]" + strings.Repeat(".map(a, a + a)", 40) + ".exists(a, size(a) > 0)", nil, false, "limit exceeded", nil},
		{"lists of lists that double", "[dyn([1])]" + strings.Repeat(".map(a, [a, a])", 26) + ".all(a, a == a)", nil, false, "limit exceeded", nil},
		{"maps of maps that double", "[dyn([1])]" + strings.Repeat(".map(a, {'a': a, 'b': a})", 23) + ".all(a, a == a)", nil, false, "limit exceeded", nil},
		{"many steps over large lists", "[dyn([1])]" + strings.Repeat(".map(a, [a, a])", 18) + ".all(a, " + ten + ".all(b, " + ten + ".all(c, a == a)))", nil, false, "limit exceeded", nil},
	}
	j := judge(t)
	for _, tt := range tests {
		f := facts()
		if tt.change != nil {
			tt.change(&f)
		}
		v := j.Decide(&registry.Environment{Name: production, Gates: []registry.Gate{{Name: tt.expr, Expr: tt.expr}}}, f)
		if len(v.Gates) != 1 {
			t.Errorf("%s: %d gates in %+v, want 1", tt.name, len(v.Gates), v)
			continue
		}
		g := v.Gates[0]
		if v.Open != tt.open || g.Open != tt.open || !strings.Contains(g.Reason, tt.reason) || g.Expr != tt.expr || g.Name != tt.expr {
			t.Errorf("%s: the gate %q is open: %t, because %q, want %t, because %q", tt.name, g.Expr, g.Open, g.Reason, tt.open, tt.reason)
		}
		if tt.values != nil {
			if diff := cmp.Diff(tt.values, g.Values); diff != "" {
				t.Errorf("%s: values of %q (-want +got):\n%s", tt.name, tt.expr, diff)
			}
		}
	}
}

func TestConditions(t *testing.T) {
	staging := registry.MustEnvironmentName("staging")
	by := func(names ...string) func(*gate.Facts) {
		return func(f *gate.Facts) {
			for _, name := range names {
				f.Approvals = append(f.Approvals, registry.Approval{Environment: production, Version: f.Tag, By: name})
			}
		}
	}
	state := func(s registry.VersionState) func(*gate.Facts) { return func(f *gate.Facts) { f.State = s } }
	tests := []struct {
		name   string
		env    registry.Environment
		change func(*gate.Facts)
		open   bool
		gates  []registry.GateVerdict
	}{
		{"nothing is asked", registry.Environment{}, nil, true, nil},
		{"deprecated warns and does not close", registry.Environment{}, state(registry.Deprecated), true, nil},
		{"quarantined", registry.Environment{}, state(registry.Quarantined), false, []registry.GateVerdict{
			{Name: "state", Values: map[string]any{"version.state": "quarantined"}, Reason: "v2.0.0 is quarantined"},
		}},
		{"revoked", registry.Environment{}, state(registry.Revoked), false, []registry.GateVerdict{
			{Name: "state", Values: map[string]any{"version.state": "revoked"}, Reason: "v2.0.0 is revoked"},
		}},
		{"a state that nobody knows", registry.Environment{}, state("suspended"), false, []registry.GateVerdict{
			{Name: "state", Values: map[string]any{"version.state": "suspended"}, Reason: "v2.0.0 is suspended"},
		}},
		{"no state", registry.Environment{}, state(""), false, []registry.GateVerdict{
			{Name: "state", Values: map[string]any{"version.state": ""}, Reason: "the state of v2.0.0 is not known"},
		}},
		{"after, and was there", registry.Environment{After: staging}, func(f *gate.Facts) { f.WasLiveBefore = true }, true, []registry.GateVerdict{
			{Name: "after staging", Open: true, Values: map[string]any{"live_in_staging": true}, Reason: "v2.0.0 was live in staging"},
		}},
		{"after, and was not there", registry.Environment{After: staging}, nil, false, []registry.GateVerdict{
			{Name: "after staging", Values: map[string]any{"live_in_staging": false}, Reason: "v2.0.0 was never live in staging"},
		}},
		{"no approval", registry.Environment{Approvals: 1}, nil, false, []registry.GateVerdict{
			{Name: "approvals", Values: map[string]any{"approvals": 0}, Reason: "0 of 1 approvals by others than ada, who published it"},
		}},
		{"the publisher's own", registry.Environment{Approvals: 1}, by("ada"), false, []registry.GateVerdict{
			{Name: "approvals", Values: map[string]any{"approvals": 0}, Reason: "0 of 1 approvals by others than ada, who published it"},
		}},
		{"somebody else's", registry.Environment{Approvals: 1}, by("ada", "grace"), true, []registry.GateVerdict{
			{Name: "approvals", Open: true, Values: map[string]any{"approvals": 1}, Reason: "1 of 1 approvals by others than ada, who published it"},
		}},
		{"one person twice", registry.Environment{Approvals: 2}, by("grace", "grace"), false, []registry.GateVerdict{
			{Name: "approvals", Values: map[string]any{"approvals": 1}, Reason: "1 of 2 approvals by others than ada, who published it"},
		}},
		{"two people", registry.Environment{Approvals: 2}, by("grace", "alan"), true, []registry.GateVerdict{
			{Name: "approvals", Open: true, Values: map[string]any{"approvals": 2}, Reason: "2 of 2 approvals by others than ada, who published it"},
		}},
		{"more than are needed", registry.Environment{Approvals: 1}, by("grace", "alan"), true, []registry.GateVerdict{
			{Name: "approvals", Open: true, Values: map[string]any{"approvals": 2}, Reason: "2 of 1 approvals by others than ada, who published it"},
		}},
		{"one closed gate closes all", registry.Environment{After: staging, Approvals: 1, Gates: []registry.Gate{{Name: "good", Expr: "true"}}}, by("grace"), false, []registry.GateVerdict{
			{Name: "after staging", Values: map[string]any{"live_in_staging": false}, Reason: "v2.0.0 was never live in staging"},
			{Name: "approvals", Open: true, Values: map[string]any{"approvals": 1}, Reason: "1 of 1 approvals by others than ada, who published it"},
			{Name: "good", Expr: "true", Open: true, Values: map[string]any{}, Reason: "good: true holds"},
		}},
		{"a revoked version passes no gate", registry.Environment{Gates: []registry.Gate{{Name: "good", Expr: "metrics.f1 > 0.5"}}}, state(registry.Revoked), false, []registry.GateVerdict{
			{Name: "state", Values: map[string]any{"version.state": "revoked"}, Reason: "v2.0.0 is revoked"},
			{Name: "good", Expr: "metrics.f1 > 0.5", Open: true, Values: map[string]any{"metrics.f1": 0.9}, Reason: "good: metrics.f1 > 0.5 holds: metrics.f1 is 0.9"},
		}},
	}
	j := judge(t)
	for _, tt := range tests {
		f := facts()
		if tt.change != nil {
			tt.change(&f)
		}
		tt.env.Name = production
		want := registry.Verdict{Environment: production, Open: tt.open, PolicyCommit: oldCommit, Gates: tt.gates, Evaluation: "e1", Matched: 1}
		if want.Gates == nil {
			want.Gates = []registry.GateVerdict{}
		}
		if diff := cmp.Diff(want, j.Decide(&tt.env, f), cmp.Comparer(func(a, b registry.EnvironmentName) bool { return a == b })); diff != "" {
			t.Errorf("verdict of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// The evidence that the policy names decides which record is read, of the version and of what runs.
func TestEvidence(t *testing.T) {
	night := "night"
	env := registry.Environment{
		Name: production, Evidence: &registry.Evidence{Dataset: "calls", Slice: &night, Evaluators: []string{"jenkins"}, MaxAge: 24 * time.Hour},
		Gates: []registry.Gate{{Name: "better", Expr: "metrics.f1 > incumbent.metrics.f1"}},
	}
	record := func(id string, f1 float64, change func(*registry.Evaluation)) registry.Evaluation {
		e := evaluation(id, map[string]float64{"f1": f1})
		e.Dataset.Slice = "night"
		if change != nil {
			change(&e)
		}
		return e
	}
	decoys := []registry.Evaluation{
		record("other dataset", 1, func(e *registry.Evaluation) { e.Dataset.Name = "noise" }),
		record("other slice", 1, func(e *registry.Evaluation) { e.Dataset.Slice = "" }),
		record("other evaluator", 1, func(e *registry.Evaluation) { e.Evaluator = "ada" }),
		record("stale", 1, func(e *registry.Evaluation) { e.RecordedAt = now.Add(-25 * time.Hour) }),
		record("self-reported", 1, func(e *registry.Evaluation) { e.SelfReported = true }),
	}
	tests := []struct {
		name          string
		ours, running []registry.Evaluation
		open          bool
		reason        string
		evaluation    string
		matched       int
	}{
		{"better", []registry.Evaluation{record("a", 0.9, nil)}, []registry.Evaluation{record("b", 0.8, nil)}, true, "metrics.f1 is 0.9", "a", 1},
		{"the newest counts", []registry.Evaluation{record("a", 0.9, nil), record("c", 0.7, nil)}, []registry.Evaluation{record("b", 0.8, nil)}, false, "metrics.f1 is 0.7", "c", 2},
		{"others do not count", append([]registry.Evaluation{record("a", 0.7, nil)}, decoys...), []registry.Evaluation{record("b", 0.8, nil)}, false, "metrics.f1 is 0.7", "a", 1},
		{"only others", decoys, []registry.Evaluation{record("b", 0.8, nil)}, false, "none of the 5 evaluations of v2.0.0 matches the evidence that the policy asks for", "", 0},
		{"what runs has only others", []registry.Evaluation{record("a", 0.9, nil)}, decoys, false, "incumbent.metrics.f1 is not recorded for what runs there", "a", 1},
		{"others of what runs do not count", []registry.Evaluation{record("a", 0.9, nil)}, append([]registry.Evaluation{record("b", 0.8, nil)}, decoys[2]), true, "incumbent.metrics.f1 is 0.8", "a", 1},
		{"what runs has its newest read", []registry.Evaluation{record("a", 0.9, nil)}, []registry.Evaluation{record("b", 0.8, nil), record("d", 0.95, nil)}, false, "incumbent.metrics.f1 is 0.95", "a", 1},
	}
	j := judge(t)
	for _, tt := range tests {
		f := facts()
		f.Evaluations, f.Incumbent.Evaluations = tt.ours, tt.running
		v := j.Decide(&env, f)
		if v.Open != tt.open || !strings.Contains(v.Reason(), tt.reason) && !strings.Contains(v.Gates[0].Reason, tt.reason) || v.Evaluation != tt.evaluation || v.Matched != tt.matched {
			t.Errorf("%s: open %t, because %q, by %q of %d, want %t, because %q, by %q of %d", tt.name, v.Open, v.Gates[0].Reason, v.Evaluation, v.Matched, tt.open, tt.reason, tt.evaluation, tt.matched)
		}
	}
}

func TestCheck(t *testing.T) {
	j := judge(t)
	for expr, want := range map[string]string{
		"metrics.f1 > 0.5":                  "",
		"evaluation.samples":                "", // its type is known only with the facts
		"metrics.f1 >":                      "does not compile",
		"metrics.f1 + 1.0":                  "gives a double, not a bool",
		"f1 > 0.5":                          "undeclared reference to 'f1'",
		"":                                  "does not compile",
		strings.Repeat("x", 4097):           "longer than 4096 bytes",
		"[" + strings.Repeat("1,", 2000):    "does not compile",
		"\xff":                              "does not compile",
		"metrics.f1 > 0.5 // no worse than": "",
	} {
		err := j.Check(expr)
		var field *registry.FieldError
		if want == "" && err != nil || want != "" && (!errors.As(err, &field) || field.Field != "expr" || !strings.Contains(err.Error(), want)) {
			t.Errorf("Check(%.40q) = %v, want an error on expr with %q", expr, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "<input>")) {
			t.Errorf("Check(%.40q) says %q, want one sentence", expr, err)
		}
	}
}

func verdictJSON(t testing.TB, v registry.Verdict) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("verdict %+v is no JSON: %v", v, err)
	}
	return string(data)
}

// lines are the JSON of a verdict, cut so that a difference is easy to see.
func lines(t testing.TB, v registry.Verdict) []string {
	t.Helper()
	return strings.SplitAfter(verdictJSON(t, v), "},")
}

// policy has expressions that a random order of maps, or a state kept between decisions, would show in.
func policy() registry.Environment {
	env := registry.Environment{Name: production, After: registry.MustEnvironmentName("staging"), Approvals: 1}
	for _, expr := range []string{
		"metrics.f1 >= 0.84 && (incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005)",
		"evaluation.samples >= 200",
		"metrics.map(m, m)[0] == 'f1'",
		"metrics.all(m, evaluation[m] == 1)",
		"evaluation.dataset.map(k, k) == ['name', 'revision', 'split']",
		"{'z': 1, 'y': 2, 'x': 3, 'w': 4}.map(k, k)[0] == 'w'",
		"{'z': metrics.f1, 'y': 2.0, 'x': 3.0, 'w': 4.0}.map(k, k)[0] == 'w'",
		"{3: 'c', 1u: 'a', true: 'd', '2': 'b'}.map(k, k)[0] == true",
		"evaluations.exists(e, e.metrics.map(m, m)[2] == 'recall@5')",
		"card.map(k, k)[1] == 'license'",
		"metrics.f1 >= 0.84 && metrics.precision > 0.5 && metrics.recall > 0.5",
		"approvals.all(a, a.by != version.published_by)",
		"metrics.f1 >",
	} {
		env.Gates = append(env.Gates, registry.Gate{Name: expr, Expr: expr})
	}
	return env
}

func TestDecideIsPure(t *testing.T) {
	env, f := policy(), facts()
	j := judge(t)
	want := lines(t, j.Decide(&env, f))
	for range 50 {
		if diff := cmp.Diff(want, lines(t, j.Decide(&env, f))); diff != "" {
			t.Fatalf("Decide of the same facts (-before +now):\n%s", diff)
		}
	}
	if diff := cmp.Diff(want, lines(t, judge(t).Decide(&env, f))); diff != "" {
		t.Errorf("Decide of another judge (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(facts(), f, cmp.Comparer(func(a, b registry.Tag) bool { return a == b }), cmp.Comparer(func(a, b registry.EnvironmentName) bool { return a == b })); diff != "" {
		t.Errorf("Decide changed the facts:\n%s", diff)
	}
	for _, g := range j.Decide(&env, f).Gates[2:] {
		open := !strings.Contains(g.Expr, "precision") && !strings.Contains(g.Expr, "evaluation[m]") && !strings.HasSuffix(g.Expr, ">")
		if g.Open != open {
			t.Errorf("the gate %q is open: %t, because %q, want %t", g.Expr, g.Open, g.Reason, open)
		}
	}
	var back registry.Verdict
	if err := json.Unmarshal([]byte(verdictJSON(t, j.Decide(&env, f))), &back); err != nil || !cmp.Equal(lines(t, back), want) {
		t.Errorf("a verdict that was kept reads (-want +got), %v:\n%s", err, cmp.Diff(want, lines(t, back)))
	}
}

func TestDecideConcurrently(t *testing.T) {
	env, f := policy(), facts()
	want := lines(t, judge(t).Decide(&env, f))
	j := judge(t)
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for i := range 10 {
				if diff := cmp.Diff(want, lines(t, j.Decide(&env, f))); diff != "" {
					t.Errorf("Decide beside others (-want +got):\n%s", diff)
				}
				if err := j.Check(fmt.Sprintf("metrics.f1 > %d.%d", worker, i)); err != nil {
					t.Errorf("Check beside others: %v", err)
				}
			}
		})
	}
	workers.Wait()
}

// A judge keeps so many expressions; one that was dropped is compiled again.
func TestDecideAfterManyExpressions(t *testing.T) {
	j := judge(t)
	env := registry.Environment{Name: production, Gates: []registry.Gate{{Name: "good", Expr: "metrics.f1 > 0.5"}}}
	for i := range 10_050 {
		// Too long to be compiled, so that the test is quick; such a program is kept as any other.
		_ = j.Check(fmt.Sprint(i, strings.Repeat(" ", gate.MaxExprLen)))
		if i%5000 == 0 && !j.Decide(&env, facts()).Open {
			t.Fatalf("the gate is closed after %d other expressions", i)
		}
	}
}

// expressions are seeds of many forms.
func expressions() []string {
	return []string{
		"metrics.f1 > 0.5", "!has(metrics.f1)", "true", "false", "", "metrics", "incumbent", "evaluations.all(e, e.metrics.f1 > 0.1)", "size(metrics) == 0",
		"[1].exists(metrics, .metrics.f1 > 0.5 || true)", "dyn(metrics) == {}", "metrics == metrics", "[metrics][0] == {}", "{'a': metrics}.a == {}", "'metrics' == 'metrics'",
		"[1].all(metrics, metrics == 1)", "true || metrics.f1 > 0.5", "true ? true : metrics.f1 > 0.5", "[0].exists(x, true || metrics.f1 > 0.5)", "type(metrics) == map",
		"evaluation.metrics.f1 > 0.5 || true", "!(metrics.f1 < 0.5)", "metrics.all(m, false)", "'f1' in metrics || true", "metrics['f' + '1'] > 0.5 || true", "incumbent == null", "incumbent.x == 1 || true",
		"card.a[0].b == 1", "lineage.base_models[9223372036854775807] == 1 || true", "b'\\xff' == b'a'", "\xff", "version.tag.matches('(a*)*b')", "[[1]].map(a, [a, a]).all(a, a == a)",
		"lower(metrics.f1) > 0.1 || true", "upper(incumbent.metrics.f1, 0.9) < 2.0", "worse_than(incumbent, 'f1', 0.05)", "!worse_than(incumbent, 'f1', 0.05)", "[1].exists(metrics, lower(metrics.f1) > 0.1)", "dyn(lower(metrics.f1)).x == 1 || true",
	}
}

func FuzzCheck(f *testing.F) {
	for _, expr := range expressions() {
		f.Add(expr)
	}
	j := judge(f)
	f.Fuzz(func(t *testing.T, expr string) {
		err := j.Check(expr)
		if err != nil && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Check(%q) = %v, want a value's error", expr, err)
		}
		env := registry.Environment{Name: production, Gates: []registry.Gate{{Name: "g", Expr: expr}}}
		v := j.Decide(&env, facts())
		if err != nil && (v.Open || !strings.Contains(v.Gates[0].Reason, err.Error())) {
			t.Errorf("Check(%q) = %v, and Decide = open %t, because %q", expr, err, v.Open, v.Gates[0].Reason)
		}
		if again := j.Decide(&env, facts()); verdictJSON(t, again) != verdictJSON(t, v) {
			t.Errorf("Decide(%q) = %s, then %s", expr, verdictJSON(t, v), verdictJSON(t, again))
		}
		if v.Gates[0].Reason == "" || v.Gates[0].Values == nil {
			t.Errorf("Decide(%q) = %+v, want values and a reason", expr, v.Gates[0])
		}
	})
}

// Without any evaluation no gate opens that speaks of metrics or evaluations. Whether an
// expression does is asked of CEL itself: then it does not compile where they are not declared.
func FuzzDecide(f *testing.F) {
	for _, expr := range expressions() {
		f.Add(expr, true)
		f.Add(expr, false)
	}
	object := cel.MapType(cel.StringType, cel.DynType)
	bare, err := cel.NewEnv(
		cel.Variable("incumbent", cel.DynType), cel.Variable("version", object), cel.Variable("card", object), cel.Variable("lineage", object),
		cel.Variable("approvals", cel.ListType(object)), cel.CrossTypeNumericComparisons(true), cel.ParserExpressionSizeLimit(gate.MaxExprLen),
	)
	if err != nil {
		f.Fatal(err)
	}
	j := judge(f)
	f.Fuzz(func(t *testing.T, expr string, incumbent bool) {
		without := facts()
		without.Evaluations = nil
		if !incumbent {
			without.Incumbent = nil
		}
		env := registry.Environment{Name: production, Gates: []registry.Gate{{Name: "g", Expr: expr}}}
		v := j.Decide(&env, without)
		_, issues := bare.Compile(expr)
		if mentions := issues.Err() != nil; mentions && v.Open {
			t.Errorf("the gate %q is open without an evaluation: %s", expr, v.Gates[0].Reason)
		}
		if v.Open != v.Gates[0].Open || v.Evaluation != "" || v.Matched != 0 {
			t.Errorf("the verdict of %q is %+v, want that of its gate, and no evaluation", expr, v)
		}
		verdictJSON(t, v)
	})
}

func BenchmarkDecide(b *testing.B) {
	j := judge(b)
	env := registry.Environment{Name: production, After: registry.MustEnvironmentName("staging"), Approvals: 1, Gates: []registry.Gate{
		{Name: "no worse", Expr: "metrics.f1 >= 0.84 && (incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005)"},
		{Name: "enough", Expr: "evaluation.samples >= 200"},
	}}
	whole := env
	whole.Gates = append(slices.Clone(env.Gates), registry.Gate{Name: "all", Expr: "evaluations.all(e, e.metrics.f1 >= 0.84)"})
	for name, env := range map[string]registry.Environment{"newest": env, "all": whole} {
		for _, count := range []int{1, 100} {
			f := facts()
			f.WasLiveBefore, f.Approvals, f.Evaluations = true, []registry.Approval{{By: "grace"}}, slices.Repeat(f.Evaluations, count)
			b.Run(fmt.Sprintf("read=%s/evaluations=%d", name, count), func(b *testing.B) {
				for b.Loop() {
					if v := j.Decide(&env, f); !v.Open {
						b.Fatal(v.Reason())
					}
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	j := judge(b)
	for i := 0; b.Loop(); i++ { // each is another expression, so that none is kept compiled
		if err := j.Check(fmt.Sprintf("metrics.f1 >= 0.84 && (incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.%09d)", i)); err != nil {
			b.Fatal(err)
		}
	}
}
