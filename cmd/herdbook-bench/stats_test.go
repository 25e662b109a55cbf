package main

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSpreadOf(t *testing.T) {
	tests := []struct {
		name   string
		values []float64
		want   spread
	}{
		{"none", nil, spread{}},
		{"one", []float64{3}, spread{3, 3, 3, 1}},
		{"odd, not sorted", []float64{9, 1, 2}, spread{2, 1, 9, 3}},
		{"even", []float64{1, 2, 4, 100}, spread{3, 1, 100, 4}},
		{"not measured", []float64{math.NaN(), 5, math.Inf(1)}, spread{5, 5, 5, 1}},
		{"nothing measured", []float64{math.NaN()}, spread{}},
		{"large", []float64{math.MaxFloat64, math.MaxFloat64}, spread{math.MaxFloat64, math.MaxFloat64, math.MaxFloat64, 2}},
	}
	for _, tt := range tests {
		before := slices.Clone(tt.values)
		if got := spreadOf(tt.values); got != tt.want {
			t.Errorf("%s: spreadOf(%v) = %+v, want %+v", tt.name, tt.values, got, tt.want)
		}
		if diff := cmp.Diff(before, tt.values, cmpopts.EquateNaNs()); diff != "" {
			t.Errorf("%s: spreadOf changed its argument: %s", tt.name, diff)
		}
	}
}

func TestRatios(t *testing.T) {
	// The base of a round is that of the same round: a slow round slows both.
	got := ratios([]float64{2, 30, 5, 7}, []float64{1, 10, 0})
	if diff := cmp.Diff([]float64{2, 3, math.NaN()}, got, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("ratios: %s", diff)
	}
	if diff := cmp.Diff([]float64{1, -20}, differences([]float64{2, 10}, []float64{1, 30})); diff != "" {
		t.Errorf("differences: %s", diff)
	}
}

// measured makes a series of one step with CPU times in milliseconds.
func measured(step, server, base string, operations int, cpu ...int) *series {
	s := &series{Step: step, Server: server, Base: base, Operations: operations}
	for _, ms := range cpu {
		s.Samples = append(s.Samples, sample{CPU: time.Duration(ms) * time.Millisecond, PeakBytes: int64(ms) << 20, Wall: time.Second})
	}
	return s
}

func TestJudge(t *testing.T) {
	f := figures{
		measured("a", judged, floorName, 1, 110, 120, 400), measured("a", floorName, floorName, 1, 100, 100, 400),
		measured("b", judged, floorName, 1, 90), measured("b", floorName, floorName, 1, 100),
		measured("one", judged, gitBackend, 10, 350), measured("one", gitBackend, gitBackend, 10, 100),
		measured("alone", judged, floorName, 1, 50),
	}
	f[0].BodyBytes = 7
	tests := []struct {
		name string
		goal goal
		want *verdict
	}{
		{"the median of the rounds' ratios", goal{"", []string{"a"}, 1.1, cpuRatio, nil}, &verdict{Step: "a", Measured: spread{1.1, 1, 1.2, 3}, Met: true}},
		{"above the limit", goal{"", []string{"a"}, 1.09, cpuRatio, nil}, &verdict{Step: "a", Measured: spread{1.1, 1, 1.2, 3}}},
		{"the worst of several", goal{"", []string{"b", "a"}, 1, cpuRatio, nil}, &verdict{Step: "a", Measured: spread{1.1, 1, 1.2, 3}}},
		{"of one operation", goal{"", []string{"one"}, 0.020, cpuAbove, nil}, &verdict{Step: "one", Measured: spread{0.025, 0.025, 0.025, 1}}},
		{"no base", goal{"", []string{"alone"}, 1, cpuRatio, nil}, nil},
		{"not measured", goal{"", []string{"nothing"}, 1, cpuRatio, nil}, nil},
		{"bytes", goal{"", []string{"a", "b"}, 0, bodyBytes, nil}, &verdict{Step: "a", Measured: spread{7, 7, 7, 1}}},
		{"the most of all rounds", goal{"", []string{"a"}, 100 << 20, peakBytes, nil}, &verdict{Step: "a", Measured: spread{400 << 20, 400 << 20, 400 << 20, 1}}},
		{"wall time", goal{"", []string{"a"}, 1, wallRatio, nil}, &verdict{Step: "a", Measured: spread{1, 1, 1, 3}, Met: true}},
	}
	for _, tt := range tests {
		got := judge(f, []goal{tt.goal})
		var want []verdict
		if tt.want != nil {
			tt.want.Limit = tt.goal.limit
			want = []verdict{*tt.want}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(verdict{}), cmpopts.IgnoreFields(verdict{}, "text"), cmpopts.EquateApprox(0, 1e-9)); diff != "" {
			t.Errorf("%s: judge (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestGoalsNameSteps holds the goals to the work there is: a goal of a misspelled step would never be missed.
func TestGoalsNameSteps(t *testing.T) {
	bases := map[string]string{}
	for _, sc := range scenarios {
		for _, st := range sc.steps {
			if _, ok := bases[st.name]; ok {
				t.Errorf("two steps are named %s", st.name)
			}
			bases[st.name] = st.base
		}
	}
	for _, g := range goals {
		for _, step := range g.steps {
			if _, ok := bases[step]; !ok {
				t.Errorf("the goal %q is about step %s, which is not there", g.what, step)
			}
		}
	}
}

func TestTexts(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0", 1.234: "1.23 s", 123.4: "123 s", 0.01: "10 ms", 0.0014: "1.4 ms", 0.000024: "24 us", -0.004: "-4 ms", 1: "1 s",
	} {
		if got := secondsText(seconds); got != want {
			t.Errorf("secondsText(%v) = %q, want %q", seconds, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 64 << 10: "64 KiB", 1 << 30: "1 GiB", 1 << 40: "1024 GiB", 5 << 19: "2.5 MiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestChosen(t *testing.T) {
	all := []scenario{
		{name: "x", steps: []step{{name: "push", setup: true}, {name: "again"}, {name: "pull"}}},
		{name: "y", steps: []step{{name: "clone"}}},
	}
	tests := []struct {
		names, want []string
	}{
		{nil, []string{"push", "again", "pull", "clone"}},
		{[]string{"pull"}, []string{"push", "pull"}}, // which needs what was pushed
		{[]string{"x"}, []string{"push", "again", "pull"}},
		{[]string{"clone", "y"}, []string{"clone"}},
	}
	for _, tt := range tests {
		got, err := chosen(all, tt.names)
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		for _, sc := range got {
			for _, st := range sc.steps {
				steps = append(steps, st.name)
			}
		}
		if diff := cmp.Diff(tt.want, steps); diff != "" {
			t.Errorf("chosen(%v) (-want +got):\n%s", tt.names, diff)
		}
	}
	if got, err := chosen(all, []string{"pul"}); err == nil {
		t.Errorf("chosen of a name that is not there = %v, want an error", got)
	}
}
