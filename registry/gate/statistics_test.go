package gate_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

// measured is an evaluation of 200 examples with a confusion matrix, and metrics that are not of the matrix.
func measured(t testing.TB, id string, matrix [2][2]int64, correct registry.Bitmap) registry.Evaluation {
	t.Helper()
	in := registry.EvaluationInput{
		Dataset:   registry.Dataset{Name: "calls", Revision: "9f3c", Split: "test"},
		Confusion: &registry.Confusion{Labels: []string{"fraud", "ok"}, Positive: "fraud", Matrix: [][]int64{matrix[0][:], matrix[1][:]}},
		Metrics:   map[string]float64{"latency": 11.5},
	}
	if correct != nil {
		in.Outcomes = &registry.Outcomes{Examples: digest.FromString("examples"), Count: int64(8 * len(correct)), Correct: correct}
	}
	e, err := registry.NewEvaluation(in, commit, id, "ada", now)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// bits is a bitmap of 200 examples of which the ones from first to last are wrong.
func bits(first, last int) registry.Bitmap {
	b := make(registry.Bitmap, 25)
	for i := range 200 {
		if i < first || i >= last {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return b
}

// drop is a version that was measured, where one runs that was measured too: f1 0.842 after 0.9.
func drop(t testing.TB) gate.Facts {
	f := facts()
	f.Evaluations = []registry.Evaluation{measured(t, "e1", [2][2]int64{{80, 10}, {20, 90}}, nil)}
	f.Incumbent.Evaluations = []registry.Evaluation{measured(t, "e0", [2][2]int64{{90, 10}, {10, 90}}, nil)}
	return f
}

func TestStatistics(t *testing.T) {
	none := func(f *gate.Facts) { f.Evaluations = nil }
	first := func(f *gate.Facts) { f.Incumbent = nil }
	unevaluated := func(f *gate.Facts) { f.Incumbent.Evaluations = nil }
	earlier := func(f *gate.Facts) { f.Evaluations[0].Intervals, f.Incumbent.Evaluations[0].Intervals = nil, nil }
	unmeasured := func(f *gate.Facts) {
		f.Incumbent.Evaluations[0].Confusion, f.Incumbent.Evaluations[0].Intervals = nil, nil
	}
	much := func(f *gate.Facts) {
		f.Evaluations = []registry.Evaluation{measured(t, "e1", [2][2]int64{{60, 40}, {40, 60}}, nil)}
	}
	revision := func(f *gate.Facts) { f.Incumbent.Evaluations[0].Dataset.Revision = "77aa" }
	// 10 are wrong before; after, the same and 6 more, or 16 others. The accuracy is the same in both.
	outcomes := func(before, after registry.Bitmap) func(*gate.Facts) {
		return func(f *gate.Facts) {
			wrong := func(b registry.Bitmap) int64 { return 200 - b.Ones() }
			f.Evaluations = []registry.Evaluation{measured(t, "e1", [2][2]int64{{100, 0}, {wrong(after), 100 - wrong(after)}}, after)}
			f.Incumbent.Evaluations = []registry.Evaluation{measured(t, "e0", [2][2]int64{{100, 0}, {wrong(before), 100 - wrong(before)}}, before)}
		}
	}
	same := outcomes(bits(0, 10), bits(0, 16))
	others := outcomes(bits(0, 10), bits(100, 116))
	renamed := func(f *gate.Facts) {
		same(f)
		f.Evaluations[0].Outcomes.Examples = digest.FromString("other examples")
	}
	cut := func(f *gate.Facts) { // as a repository from elsewhere may have it
		same(f)
		f.Evaluations[0].Outcomes.Correct = f.Evaluations[0].Outcomes.Correct[:3]
	}
	const f1 = `worse_than(incumbent, "f1", 0.05)`
	const accuracy = `worse_than(incumbent, "accuracy", 0.05)`
	const howMeasured = "a metric has an interval when it comes from a confusion matrix, and accuracy also when the number of samples is recorded"
	tests := []struct {
		name, expr string
		change     func(*gate.Facts)
		open       bool
		reason     string // a part of it
		values     map[string]any
	}{
		{"a lower end that is high enough", "lower(metrics.f1) >= 0.77", nil, true, "holds: lower(metrics.f1) is 0.778248, metrics.f1 is 0.842105", map[string]any{"lower(metrics.f1)": 0.778248, "metrics.f1": 16.0 / 19}},
		{"a metric that is high enough, and its lower end is not", "lower(metrics.f1) >= 0.8", nil, false, "does not hold: lower(metrics.f1) is 0.778248", nil},
		{"an upper end", "upper(metrics.f1) < 0.9", nil, true, "upper(metrics.f1) is 0.890169", map[string]any{"upper(metrics.f1)": 0.890169, "metrics.f1": 16.0 / 19}},
		{"another level", "lower(metrics.f1, 0.8) >= 0.8 && lower(metrics.f1) < 0.8", nil, true, "lower(metrics.f1, 0.8) is 0.80", nil},
		{"the usual level, written out", "lower(metrics.f1, 0.95) == lower(metrics.f1)", nil, true, "holds: lower(metrics.f1) is 0.778248, metrics.f1 is 0.842105", map[string]any{"lower(metrics.f1)": 0.778248, "metrics.f1": 16.0 / 19}},
		{"in brackets", `lower(metrics["f1"]) > 0.7`, nil, true, "lower(metrics.f1)", nil},
		{"with a leading dot", "lower(.metrics.f1) > 0.7", nil, true, "lower(metrics.f1)", nil},
		{"what runs", "upper(metrics.f1) >= lower(incumbent.metrics.f1)", nil, true, "holds: incumbent.metrics.f1 is 0.9, lower(incumbent.metrics.f1) is 0.84", nil},
		{"an evaluation of before there were intervals", "lower(metrics.f1) == 0.778248", earlier, true, "lower(metrics.f1) is 0.778248", nil},
		{"the evaluation's own field leaves them out", "has(evaluation.intervals)", nil, false, "does not hold", nil},
		{"accuracy with a number of samples", "lower(metrics.accuracy) > 0.79", func(f *gate.Facts) {
			f.Evaluations = []registry.Evaluation{evaluation("e1", map[string]float64{"accuracy": 0.85})}
		}, true, "lower(metrics.accuracy) is 0.793944", nil},

		{"a metric without an interval", "lower(metrics.latency) < 100.0", nil, false, "lower(metrics.latency) is not known: " + howMeasured + ", and metrics.latency has none", map[string]any{"lower(metrics.latency)": nil, "metrics.latency": 11.5}},
		{"a metric without an interval behind or", "metrics.f1 > 0.5 || lower(metrics.latency) < 100.0", nil, false, "lower(metrics.latency) is not known", nil},
		{"a metric without an interval before or", "lower(metrics.latency) < 100.0 || metrics.f1 > 0.5", nil, false, "lower(metrics.latency) is not known", nil},
		{"a metric without an interval in the branch not taken", "true ? true : lower(metrics.latency) < 100.0", nil, false, "lower(metrics.latency) is not known", nil},
		{"a metric without an interval in a negation", "!(lower(metrics.latency) > 100.0)", nil, false, "lower(metrics.latency) is not known", nil},
		{"a metric without an interval in a macro", "[1].exists(x, x == 1 || lower(metrics.latency) > 100.0)", nil, false, "lower(metrics.latency) is not known", nil},
		{"a metric without an interval, in dyn", "true || dyn(lower(metrics.latency)) == 'x'", nil, false, "lower(metrics.latency) is not known", nil},
		{"a metric that is missing", "true || lower(metrics.auc) > 0.5", nil, false, "metrics.auc is not recorded", nil},
		{"no evaluation", "true || lower(metrics.f1) > 0.5", none, false, "metrics.f1 is not known: no evaluation of v2.0.0 is recorded", nil},
		{"what runs has no interval", "incumbent == null || lower(incumbent.metrics.f1) > 0.1", unmeasured, false, "lower(incumbent.metrics.f1) is not known: " + howMeasured + ", and incumbent.metrics.f1 has none", nil},
		{"what runs was never evaluated", "incumbent == null || lower(incumbent.metrics.f1) > 0.1", unevaluated, false, "incumbent.metrics.f1 is not recorded for what runs there", nil},
		{"nothing runs", "incumbent == null || lower(metrics.f1) > upper(incumbent.metrics.f1)", first, true, "incumbent is null", nil},
		{"nothing runs, and that is not asked", "lower(metrics.f1) > upper(incumbent.metrics.f1)", first, false, "cannot be decided", nil},

		{"a drop within noise", "!" + f1, nil, true, "!" + f1 + " holds: incumbent.metrics.f1 is 0.9, metrics.f1 is 0.842105, p_value(f1) is 0.06", nil},
		{"a drop within noise is one beyond it at another significance", `!worse_than(incumbent, "f1", 0.2)`, nil, false, "does not hold", nil},
		{"a drop beyond noise", "!" + f1, much, false, "!" + f1 + " does not hold: incumbent.metrics.f1 is 0.9, metrics.f1 is 0.6, p_value(f1) is ", nil},
		{"a drop beyond noise, of an average", `!worse_than(incumbent, "f1_macro", 0.05)`, much, false, "test(f1_macro) is z", nil},
		{"a rise", f1, func(f *gate.Facts) { f.Evaluations, f.Incumbent.Evaluations = f.Incumbent.Evaluations, f.Evaluations }, false, "does not hold", nil},
		{"no change", `worse_than(incumbent, "f1", 0.5)`, func(f *gate.Facts) { f.Incumbent.Evaluations = f.Evaluations }, true, "p_value(f1) is 0.5", nil},
		{"a drop in one of two metrics", "!" + f1 + ` && !worse_than(incumbent, "recall", 0.05)`, func(f *gate.Facts) {
			f.Evaluations = []registry.Evaluation{measured(t, "e1", [2][2]int64{{78, 22}, {2, 98}}, nil)}
		}, false, "p_value(recall) is 0.01", nil},
		{"no incumbent", "!" + f1, first, true, "holds", map[string]any{f1: false, "metrics.f1": 16.0 / 19, "incumbent.metrics.f1": nil}},
		{"no incumbent, and no metric", `!worse_than(incumbent, "auc", 0.05)`, first, false, "metrics.auc is not recorded", nil},
		{"no incumbent, and no evaluation", "!" + f1, func(f *gate.Facts) { first(f); none(f) }, false, "metrics.f1 is not known", nil},
		{"an unknown metric", `!worse_than(incumbent, "auc", 0.05)`, nil, false, "metrics.auc is not recorded", nil},
		{"an unknown metric behind or", `true || worse_than(incumbent, "auc", 0.05)`, nil, false, "metrics.auc is not recorded", nil},
		{"a metric without a variance", `!worse_than(incumbent, "latency", 0.05)`, nil, false, `worse_than(incumbent, "latency", 0.05) is not known: ` + howMeasured + ", and latency of the two versions has not", nil},
		{"a metric without a variance behind or", `true || worse_than(incumbent, "latency", 0.05)`, nil, false, "is not known", nil},
		{"what runs has no matrix", "!" + f1, unmeasured, false, f1 + " is not known", nil},
		{"what runs was never evaluated, for a test", "!" + f1, unevaluated, false, "incumbent.metrics.f1 is not recorded for what runs there", nil},
		{"another revision of the dataset", "!" + f1, revision, false, f1 + " is not known: the version was evaluated on calls@9f3c/test, and what runs there on calls@77aa/test", nil},
		{"another revision of the dataset behind or", "true || " + f1, revision, false, "is not known", nil},

		// 6 lost of 6: (1/2)^6.
		{"the same examples and 6 more are wrong", "!" + accuracy, same, false, "", map[string]any{accuracy: true, "metrics.accuracy": 0.92, "incumbent.metrics.accuracy": 0.95, "p_value(accuracy)": 0.015625, "test(accuracy)": "mcnemar"}},
		{"6 more are wrong of others", "!" + accuracy, others, true, "test(accuracy) is mcnemar", nil},
		{"6 more are wrong of examples that are not the same", "!" + accuracy, renamed, true, "test(accuracy) is z", nil},
		{"outcomes that are cut off", "!" + accuracy, cut, true, "test(accuracy) is z", nil},
		{"another metric than accuracy", `!worse_than(incumbent, "mcc", 0.05)`, same, true, "test(mcc) is z", nil},
	}
	j := judge(t)
	for _, tt := range tests {
		f := drop(t)
		if tt.change != nil {
			tt.change(&f)
		}
		v := j.Decide(&registry.Environment{Name: production, Gates: []registry.Gate{{Name: tt.expr, Expr: tt.expr}}}, f)
		g := v.Gates[0]
		if v.Open != tt.open || !strings.Contains(g.Reason, tt.reason) {
			t.Errorf("%s: the gate %q is open: %t, because %q, want %t, because %q", tt.name, g.Expr, g.Open, g.Reason, tt.open, tt.reason)
		}
		if tt.values != nil {
			if diff := cmp.Diff(tt.values, g.Values); diff != "" {
				t.Errorf("%s: values of %q (-want +got):\n%s", tt.name, tt.expr, diff)
			}
		}
		if again := j.Decide(&registry.Environment{Name: production, Gates: []registry.Gate{{Name: tt.expr, Expr: tt.expr}}}, f); verdictJSON(t, again) != verdictJSON(t, v) {
			t.Errorf("%s: a second verdict differs: %s, then %s", tt.name, verdictJSON(t, v), verdictJSON(t, again))
		}
	}
}

// What is wrong with a call is said before any facts are known.
func TestStatisticsThatAreNone(t *testing.T) {
	tests := []struct{ expr, reason string }{
		{"lower() > 0.5", "lower takes a metric, and perhaps a level"},
		{"lower(metrics.f1, 0.9, 1) > 0.5", "lower takes a metric, and perhaps a level"},
		{"upper(metrics) > 0.5", "upper takes a metric that is written out, such as metrics.f1 or incumbent.metrics.f1"},
		{"lower(0.5) > 0.5", "takes a metric that is written out"},
		{"lower(metrics.f1 + 1.0) > 0.5", "takes a metric that is written out"},
		{"lower(metrics[evaluation.name]) > 0.5", "takes a metric that is written out"},
		{"lower(evaluation.samples) > 0.5", "takes a metric that is written out"},
		{"lower(lower(metrics.f1)) > 0.5", "takes a metric that is written out"},
		{"lower(incumbent.f1) > 0.5", "takes a metric that is written out"},
		{"lower(metrics.f1, 0.05) > 0.5", "the level of lower is a number that is at least 0.5 and below 1"},
		{"lower(metrics.f1, 1) > 0.5", "the level of lower"},
		{"lower(metrics.f1, 95) > 0.5", "the level of lower"},
		{"lower(metrics.f1, -0.9) > 0.5", "the level of lower"},
		{"lower(metrics.f1, evaluation.level) > 0.5", "the level of lower"},
		{"lower(metrics.f1) > 'x'", "found no matching overload"},
		{"has(lower(metrics.f1))", "invalid argument to has() macro"},
		{"[{'f1': 0.9}].exists(metrics, lower(metrics.f1) > 0.5)", "lower(metrics.f1) stands where metrics is not the fact of that name"},
		{"[1].exists(incumbent, worse_than(incumbent, 'f1', 0.05))", "is not the fact of that name"},
		{"worse_than(incumbent, 'f1')", "worse_than takes the incumbent, the name of a metric and a significance"},
		{"worse_than(version, 'f1', 0.05)", "worse_than compares with incumbent"},
		{"worse_than(incumbent.metrics, 'f1', 0.05)", "worse_than compares with incumbent"},
		{"worse_than(incumbent, metrics.f1, 0.05)", "worse_than takes the name of a metric that is written out"},
		{"worse_than(incumbent, '', 0.05)", "worse_than takes the name of a metric that is written out"},
		{"['f1'].all(m, !worse_than(incumbent, m, 0.05))", "worse_than takes the name of a metric that is written out"},
		{"worse_than(incumbent, 'f1', 0)", "the significance of worse_than is a number above 0 and at most 0.5"},
		{"worse_than(incumbent, 'f1', 0.51)", "the significance of worse_than"},
		{"worse_than(incumbent, 'f1', -0.05)", "the significance of worse_than"},
		{"worse_than(incumbent, 'f1', 5)", "the significance of worse_than"},
		{"worse_than(incumbent, 'f1', '0.05')", "the significance of worse_than"},
		{"worse_than(incumbent, 'f1', 0.05) > 0.5", "found no matching overload"},
	}
	j := judge(t)
	for _, tt := range tests {
		err := j.Check(tt.expr)
		if !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("Check(%s) = %v, want %q", tt.expr, err, tt.reason)
		}
		for _, expr := range []string{tt.expr, "true || " + tt.expr} {
			if v := j.Decide(&registry.Environment{Name: production, Gates: []registry.Gate{{Name: expr, Expr: expr}}}, drop(t)); v.Open {
				t.Errorf("the gate %q is open, because %q", expr, v.Gates[0].Reason)
			}
		}
	}
}

func BenchmarkWorseThan(b *testing.B) {
	j := judge(b)
	env := registry.Environment{Name: production, Gates: []registry.Gate{
		{Name: "high enough", Expr: "lower(metrics.f1) >= 0.77"}, {Name: "no drop", Expr: `!worse_than(incumbent, "f1", 0.05)`},
	}}
	f := drop(b)
	for b.Loop() {
		if v := j.Decide(&env, f); !v.Open {
			b.Fatal(v.Reason())
		}
	}
}
