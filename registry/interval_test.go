package registry_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

func evaluate(t testing.TB, in registry.EvaluationInput) registry.Evaluation {
	t.Helper()
	in.Dataset.Name = "calls"
	e, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
	if err != nil {
		t.Fatalf("NewEvaluation(%+v): %v", in, err)
	}
	return e
}

func TestIntervals(t *testing.T) {
	wilson := func(lower, upper float64) registry.Interval {
		return registry.Interval{lower, upper, 0.95, registry.Wilson}
	}
	delta := func(lower, upper float64) registry.Interval {
		return registry.Interval{lower, upper, 0.95, registry.Delta}
	}
	tests := []struct {
		name string
		in   registry.EvaluationInput
		want map[string]registry.Interval
	}{
		{"metrics alone", registry.EvaluationInput{Metrics: map[string]float64{"accuracy": 0.85, "f1": 0.8}}, nil},
		// Wilson's interval of 81 of 263 as Newcombe 1998 has it, to four decimals: 0.2553 to 0.3662.
		{"accuracy and a number of samples", registry.EvaluationInput{Metrics: map[string]float64{"accuracy": 81.0 / 263, "f1": 0.8}, Samples: ptr(int64(263))}, map[string]registry.Interval{"accuracy": wilson(0.255288, 0.36621)}},
		{"no samples", registry.EvaluationInput{Metrics: map[string]float64{"accuracy": 0.85}, Samples: ptr(int64(0))}, nil},
		{"outcomes alone", registry.EvaluationInput{Outcomes: &registry.Outcomes{Examples: someDigest, Count: 20, Correct: make([]byte, 3)}}, map[string]registry.Interval{"accuracy": wilson(0, 0.161126)}},
		{
			"two labels, of which one is positive",
			registry.EvaluationInput{Confusion: &registry.Confusion{Labels: []string{"yes", "no"}, Positive: "yes", Matrix: [][]int64{{80, 10}, {20, 90}}}},
			map[string]registry.Interval{
				"precision": wilson(0.71117, 0.866634), "recall": wilson(0.807422, 0.938517), "specificity": wilson(0.735785, 0.879105), "f1": delta(0.778248, 0.890169),
				"accuracy": wilson(0.793944, 0.892865), "precision_micro": wilson(0.793944, 0.892865), "recall_micro": wilson(0.793944, 0.892865),
				"f1_micro": wilson(0.793944, 0.892865), "recall_weighted": wilson(0.793944, 0.892865), "balanced_accuracy": delta(0.798332, 0.895604),
				"recall_macro": delta(0.798332, 0.895604), "precision_macro": delta(0.794472, 0.892555), "precision_weighted": delta(0.800965, 0.896265),
				"f1_macro": delta(0.793649, 0.892473), "f1_weighted": delta(0.79477, 0.892945), "mcc": delta(0.59367, 0.78764),
			},
		},
		{
			"a matrix that leaves most undefined",
			registry.EvaluationInput{Confusion: &registry.Confusion{Labels: []string{"yes", "no"}, Positive: "yes", Matrix: [][]int64{{0, 0}, {0, 20}}}},
			map[string]registry.Interval{
				"specificity": wilson(0.838874, 1), "accuracy": wilson(0.838874, 1), "precision_micro": wilson(0.838874, 1), "recall_micro": wilson(0.838874, 1),
				"f1_micro": wilson(0.838874, 1), "recall_weighted": wilson(0.838874, 1), "precision_weighted": delta(0.838874, 1), "f1_weighted": delta(0.90533, 1),
			},
		},
	}
	for _, tt := range tests {
		got := evaluate(t, tt.in).Intervals
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("intervals of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Every metric that a matrix yields has an interval, whatever the metrics are called one day.
func TestEveryMetricOfAMatrixHasAnInterval(t *testing.T) {
	for _, in := range []registry.EvaluationInput{
		{Confusion: &registry.Confusion{Labels: []string{"yes", "no"}, Positive: "no", Matrix: [][]int64{{80, 10}, {20, 90}}}},
		{Confusion: &registry.Confusion{Labels: []string{"a", "b", "c"}, Matrix: [][]int64{{8, 1, 0}, {2, 9, 3}, {0, 0, 5}}}, Metrics: map[string]float64{"accuracy": 22.0 / 28}},
	} {
		e := evaluate(t, in)
		if got, want := slices.Sorted(maps.Keys(e.Intervals)), slices.Sorted(maps.Keys(e.Metrics)); !slices.Equal(got, want) {
			t.Errorf("there are intervals of %q, want %q", got, want)
		}
		for name, value := range e.Metrics {
			estimate, ok := e.Estimate(name)
			if diff := estimate.Value - value; !ok || diff > 1e-12 || diff < -1e-12 {
				t.Errorf("the estimate of %s is %v, %t, want the metric itself, %v", name, estimate.Value, ok, value)
			}
		}
	}
}

// An evaluation of an earlier server has no intervals: they are computed when they are asked for. One that is recorded stays as it is.
func TestIntervalOfAnOldEvaluation(t *testing.T) {
	e := evaluate(t, registry.EvaluationInput{Confusion: &registry.Confusion{Labels: []string{"yes", "no"}, Positive: "yes", Matrix: [][]int64{{80, 10}, {20, 90}}}, Metrics: map[string]float64{"latency": 3}})
	recorded := e.Intervals
	e.Intervals = nil
	for name, want := range recorded {
		if got, ok := e.Interval(name, 0.95); !ok || got != want {
			t.Errorf("Interval(%s, 0.95) of an evaluation without intervals = %+v, %t, want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{"latency", "auc", ""} {
		if got, ok := e.Interval(name, 0.95); ok {
			t.Errorf("Interval(%q, 0.95) = %+v, want none", name, got)
		}
	}
	narrow, ok := e.Interval("f1", 0.5)
	if wide := recorded["f1"]; !ok || narrow.Lower <= wide.Lower || narrow.Upper >= wide.Upper || narrow.Level != 0.5 {
		t.Errorf("Interval(f1, 0.5) = %+v, %t, want one within %+v", narrow, ok, wide)
	}
	e.Intervals = map[string]registry.Interval{"f1": {Lower: 0.1, Upper: 0.2, Level: 0.95, Method: registry.Delta}}
	if got, ok := e.Interval("f1", 0.95); !ok || got != e.Intervals["f1"] {
		t.Errorf("Interval(f1, 0.95) = %+v, %t, want the one that is recorded", got, ok)
	}
	e.Intervals = nil
	for _, matrix := range [][][]int64{nil, {{1, 2}, {3}}, {{1, -1}, {1, 1}}} {
		e.Confusion.Matrix = matrix // as a repository from elsewhere may have it
		if got, ok := e.Interval("f1", 0.95); ok {
			t.Errorf("Interval(f1, 0.95) of the matrix %v = %+v, want none", matrix, got)
		}
	}
}

func TestIntervalString(t *testing.T) {
	tests := []struct {
		lower, upper float64
		want         string
	}{
		{0.778248, 0.890169, "0.78 - 0.89"},
		{0.793944, 0.892865, "0.79 - 0.89"},
		{-0.31, 0.204, "-0.31 - 0.20"},
		{0.998104, 0.998533, "0.9981 - 0.9985"},
		{0.98, 0.995, "0.980 - 0.995"},
		{0.5, 0.5, "0.500000 - 0.500000"},
		{0, 1, "0.00 - 1.00"},
	}
	for _, tt := range tests {
		if got := (registry.Interval{Lower: tt.lower, Upper: tt.upper}).String(); got != tt.want {
			t.Errorf("the interval from %v to %v reads %q, want %q", tt.lower, tt.upper, got, tt.want)
		}
	}
}

func BenchmarkIntervals(b *testing.B) {
	for _, k := range []int{2, 100} {
		in := registry.EvaluationInput{Confusion: &registry.Confusion{}}
		in.Dataset.Name = "calls"
		for i := range k {
			row := make([]int64, k)
			for j := range row {
				row[j] = int64((i*7 + j*3) % 5)
			}
			row[i] = 500
			in.Confusion.Labels, in.Confusion.Matrix = append(in.Confusion.Labels, fmt.Sprint("label ", i)), append(in.Confusion.Matrix, row)
		}
		b.Run(fmt.Sprintf("labels=%d", k), func(b *testing.B) {
			for b.Loop() {
				if e, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime); err != nil || len(e.Intervals) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}
