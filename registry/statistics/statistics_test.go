package statistics_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/herdbook/herdbook/registry/statistics"
)

func near(got, want, tolerance float64) bool { return math.Abs(got-want) <= tolerance }

// The examples of R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of seven methods", 1998,
// table I, method 3.
func TestProportionInterval(t *testing.T) {
	tests := []struct {
		successes, trials, level, lower, upper float64
	}{
		{81, 263, 0.95, 0.2553, 0.3662},
		{15, 148, 0.95, 0.0624, 0.1605},
		{0, 20, 0.95, 0, 0.1611},
		{1, 29, 0.95, 0.0061, 0.1718},
		{20, 20, 0.95, 0.8389, 1},
		{1, 1, 0.95, 0.2065, 1},
		{10, 20, 0, 0.5, 0.5},
		{10, 20, 1, 0, 1},
	}
	for _, tt := range tests {
		e, ok := statistics.Proportion(tt.successes, tt.trials)
		got := e.Interval(tt.level)
		if !ok || !near(got.Lower, tt.lower, 5e-5) || !near(got.Upper, tt.upper, 5e-5) {
			t.Errorf("Proportion(%v, %v).Interval(%v) = %v, %t, want {%v %v}", tt.successes, tt.trials, tt.level, got, ok, tt.lower, tt.upper)
		}
	}
	for _, none := range [][2]float64{{0, 0}, {1, 0}, {-1, 2}, {3, 2}, {math.NaN(), 2}, {1, math.NaN()}, {1, math.Inf(1)}, {1, -1}} {
		if got, ok := statistics.Proportion(none[0], none[1]); ok {
			t.Errorf("Proportion(%v, %v) = %v, want none", none[0], none[1], got)
		}
	}
}

// metrics are all that a table yields; those of a label are of the first.
var metrics = map[string]func(*statistics.Table) (statistics.Estimate, bool){
	"accuracy":           func(t *statistics.Table) (statistics.Estimate, bool) { return t.Accuracy(), true },
	"precision":          func(t *statistics.Table) (statistics.Estimate, bool) { return t.Label(statistics.Precision, 0) },
	"recall":             func(t *statistics.Table) (statistics.Estimate, bool) { return t.Label(statistics.Recall, 0) },
	"specificity":        func(t *statistics.Table) (statistics.Estimate, bool) { return t.Specificity(0) },
	"f1":                 func(t *statistics.Table) (statistics.Estimate, bool) { return t.Label(statistics.F1, 0) },
	"precision_macro":    func(t *statistics.Table) (statistics.Estimate, bool) { return t.Macro(statistics.Precision) },
	"recall_macro":       func(t *statistics.Table) (statistics.Estimate, bool) { return t.Macro(statistics.Recall) },
	"f1_macro":           func(t *statistics.Table) (statistics.Estimate, bool) { return t.Macro(statistics.F1) },
	"precision_weighted": func(t *statistics.Table) (statistics.Estimate, bool) { return t.Weighted(statistics.Precision) },
	"recall_weighted":    func(t *statistics.Table) (statistics.Estimate, bool) { return t.Weighted(statistics.Recall) },
	"f1_weighted":        func(t *statistics.Table) (statistics.Estimate, bool) { return t.Weighted(statistics.F1) },
	"mcc":                (*statistics.Table).MCC,
}

func table(t testing.TB, cells [][]int64) *statistics.Table {
	t.Helper()
	sums, ok := statistics.NewTable(cells)
	if !ok {
		t.Fatalf("NewTable(%v) = none", cells)
	}
	return sums
}

var tables = map[string][][]int64{
	"two labels":   {{80, 10}, {20, 90}},
	"rare":         {{8, 2}, {5, 185}},
	"three labels": {{60, 10, 4}, {8, 50, 8}, {6, 4, 50}},
	"five labels":  {{30, 1, 2, 0, 3}, {2, 25, 0, 1, 1}, {0, 4, 40, 2, 0}, {1, 1, 1, 18, 2}, {3, 0, 0, 2, 11}},
}

// The variance of the delta method is the sum of the squared derivatives by the counts, each times its count. Here the derivatives
// are differences, taken where all counts are larger so that 1 is a small step.
func TestVarianceIsThatOfDifferences(t *testing.T) {
	const times = 10_000
	for name, cells := range tables {
		large := make([][]int64, len(cells))
		for i, row := range cells {
			for _, count := range row {
				large[i] = append(large[i], count*times)
			}
		}
		for metric, get := range metrics {
			value := func() float64 {
				e, _ := get(table(t, large))
				return e.Value
			}
			want := 0.0
			for i, row := range cells {
				for j, count := range row {
					if count == 0 {
						continue
					}
					large[i][j]++
					above := value()
					large[i][j] -= 2
					slope := times * (above - value()) / 2
					large[i][j]++
					want += float64(count) * slope * slope
				}
			}
			got, ok := get(table(t, cells))
			if !ok || math.Abs(got.Variance-want) > 1e-6*want {
				t.Errorf("the variance of %s of %s is %v, %t, want %v", metric, name, got.Variance, ok, want)
			}
		}
	}
}

// The closed form of the variance of macro F1, with p the cells' shares, s the sum of a label's row and column, and k labels.
// Source: K. Takahashi et al., "Confidence interval for micro-averaged F1 and macro-averaged F1 scores", 2022, section 3.2.
func TestVarianceOfMacroF1IsThePublishedOne(t *testing.T) {
	for name, cells := range tables {
		k, n := len(cells), 0.0
		sums, f1 := make([]float64, k), make([]float64, k)
		for i, row := range cells {
			for j, count := range row {
				n += float64(count)
				sums[i] += float64(count)
				sums[j] += float64(count)
			}
		}
		a, b := 0.0, 0.0
		for i := range cells {
			s := sums[i] / n
			p := float64(cells[i][i]) / n
			f1[i] = 2 * p / s
			a += f1[i] * (s - 2*p) / (s * s) * ((s-2*p)/s + f1[i]/2)
		}
		for i, row := range cells {
			for j, count := range row {
				if i != j {
					b += float64(count) / n * f1[i] * f1[j] / (sums[i] / n * sums[j] / n)
				}
			}
		}
		want := 2 * (a + b) / (n * float64(k*k))
		if got, ok := table(t, cells).Macro(statistics.F1); !ok || math.Abs(got.Variance-want) > 1e-12 {
			t.Errorf("the variance of macro F1 of %s is %v, %t, want %v", name, got.Variance, ok, want)
		}
	}
}

// Values computed apart from this package, from the definitions, in exact fractions.
func TestValues(t *testing.T) {
	tests := []struct {
		table, metric string
		want          float64
	}{
		{"two labels", "accuracy", 0.85},
		{"two labels", "precision", 0.8},
		{"two labels", "recall", 8.0 / 9},
		{"two labels", "specificity", 9.0 / 11},
		{"two labels", "f1", 16.0 / 19},
		{"two labels", "recall_macro", (8.0/9 + 9.0/11) / 2},
		{"two labels", "mcc", 7000 / math.Sqrt(100*90*100*110)},
		{"three labels", "accuracy", 0.8},
		{"three labels", "recall_weighted", 0.8},
		{"rare", "f1", 16.0 / 23},
	}
	for _, tt := range tests {
		if got, ok := metrics[tt.metric](table(t, tables[tt.table])); !ok || !near(got.Value, tt.want, 1e-12) {
			t.Errorf("%s of %s = %v, %t, want %v", tt.metric, tt.table, got.Value, ok, tt.want)
		}
	}
}

// No interval claims certainty: where every example agrees, and where one label of many has an example or two.
func TestIntervalWithoutErrors(t *testing.T) {
	tests := []struct {
		name         string
		cells        [][]int64
		metric       string
		lower, upper float64 // bounds that the interval reaches at least
	}{
		// Wilson's interval of 100 of 100 for the share TP of TP + FP + FN gives 0.963, and F1 2q/(1+q).
		{"no error", [][]int64{{100, 0}, {0, 100}}, "f1", 0.9813, 1},
		{"no error", [][]int64{{100, 0}, {0, 100}}, "accuracy", 0.982, 1},
		{"no error", [][]int64{{100, 0}, {0, 100}}, "mcc", 0.97, 1},
		{"no error", [][]int64{{100, 0}, {0, 100}}, "f1_macro", 0.9906, 1},
		{"no error", [][]int64{{100, 0}, {0, 100}}, "recall_macro", 0.982, 1},
		{"no error in two examples", [][]int64{{1, 0}, {0, 1}}, "f1", 0.35, 1},
		{"no error in two examples", [][]int64{{1, 0}, {0, 1}}, "mcc", -0.3, 1},
		{"one right, one wrong", [][]int64{{100, 0}, {100, 0}}, "recall_macro", 0.485, 0.515},
		{"all wrong", [][]int64{{0, 100}, {100, 0}}, "f1", 0, 0.03},
		{"all wrong", [][]int64{{0, 100}, {100, 0}}, "mcc", -1, -0.97},
		{"each label taken for the next", [][]int64{{0, 100, 0}, {0, 0, 100}, {100, 0, 0}}, "mcc", -0.55, -0.45},
		// The recall of one of one is between 0.2 and 1, so that the mean is between 0.35 and 0.77.
		{"a label with one example", [][]int64{{1, 0}, {500, 500}}, "recall_macro", 0.35, 0.77},
	}
	for _, tt := range tests {
		e, ok := metrics[tt.metric](table(t, tt.cells))
		got := e.Interval(0.95)
		if !ok || got.Lower > tt.lower || got.Upper < tt.upper || got.Upper-got.Lower < 0.001 {
			t.Errorf("%s: the interval of %s %v is %v, %t, want one that reaches from %v to %v", tt.name, tt.metric, e.Value, got, ok, tt.lower, tt.upper)
		}
	}
}

// One error more makes no metric of a label better, at either end: there is no jump where the last error goes.
func TestIntervalFallsWithErrors(t *testing.T) {
	for name, get := range metrics {
		var last statistics.Interval
		for errors := range int64(100) {
			e, ok := get(table(t, [][]int64{{100 - errors, errors}, {errors, 100 - errors}}))
			got := e.Interval(0.95)
			if !ok || (errors > 0 && (got.Lower >= last.Lower || got.Upper > last.Upper)) {
				t.Errorf("the interval of %s with %d errors of each label is %v, %t, and with one fewer %v", name, errors, got, ok, last)
			}
			last = got
		}
	}
}

func TestNone(t *testing.T) {
	for _, cells := range [][][]int64{nil, {{0}}, {{0, 0}, {0, 0}}, {{1, 2}}, {{1, 2}, {3}}, {{1, -1}, {0, 0}}, {{1, 2}, {3, 4, 5}}} {
		if _, ok := statistics.NewTable(cells); ok {
			t.Errorf("NewTable(%v) is a table, want none", cells)
		}
	}
	tests := []struct {
		cells  [][]int64
		metric string
		ok     bool
	}{
		{[][]int64{{0, 5}, {0, 5}}, "precision", false},
		{[][]int64{{0, 5}, {0, 5}}, "precision_macro", false},
		{[][]int64{{0, 5}, {0, 5}}, "precision_weighted", false},
		{[][]int64{{0, 0}, {5, 5}}, "recall", false},
		{[][]int64{{0, 0}, {5, 5}}, "recall_macro", false},
		{[][]int64{{0, 0}, {5, 5}}, "precision_weighted", true}, // the label without examples has no weight
		{[][]int64{{0, 0}, {0, 5}}, "f1", false},
		{[][]int64{{0, 0}, {0, 5}}, "f1_macro", false},
		{[][]int64{{0, 0}, {0, 5}}, "f1_weighted", true},
		{[][]int64{{5, 5}, {0, 0}}, "specificity", false},
		{[][]int64{{5, 5}, {0, 0}}, "mcc", false},
		{[][]int64{{5, 0}, {5, 0}}, "mcc", false},
	}
	for _, tt := range tests {
		if got, ok := metrics[tt.metric](table(t, tt.cells)); ok != tt.ok {
			t.Errorf("%s of %v = %v, %t, want %t", tt.metric, tt.cells, got, ok, tt.ok)
		}
	}
}

// sample draws n examples; population[i][j] is the chance of true label i and prediction j.
func sample(random *rand.Rand, population [][]float64, n int) [][]int64 {
	cells := make([][]int64, len(population))
	for i := range cells {
		cells[i] = make([]int64, len(population))
	}
	one := func() {
		u := random.Float64()
		for i, row := range population {
			for j, chance := range row {
				if u -= chance; u < 0 {
					cells[i][j]++
					return
				}
			}
		}
		cells[0][0]++ // the chances add up to a little less than 1
	}
	for range n {
		one()
	}
	return cells
}

// Of intervals at 95 % as many hold the truth, and a test at 5 % finds as many drops where there is none. The draws are always the same.
func TestCoverage(t *testing.T) {
	populations := map[string][][]float64{
		"two labels":   {{0.4, 0.1}, {0.1, 0.4}},
		"good":         {{0.47, 0.03}, {0.02, 0.48}},
		"rare":         {{0.08, 0.02}, {0.05, 0.85}},
		"three labels": {{0.3, 0.05, 0.02}, {0.04, 0.25, 0.04}, {0.03, 0.02, 0.25}},
		"skewed":       {{0.6, 0.03, 0.02}, {0.03, 0.2, 0.02}, {0.02, 0.01, 0.07}},
	}
	const n, draws = 500, 3000
	for name, population := range populations {
		large := make([][]int64, len(population))
		for i, row := range population {
			for _, chance := range row {
				large[i] = append(large[i], int64(math.Round(chance*1e9)))
			}
		}
		truth := table(t, large)
		random := rand.New(rand.NewPCG(1, 2))
		held, found := map[string]int{}, map[string]int{}
		last := map[string]statistics.Estimate{}
		for draw := range draws {
			measured := table(t, sample(random, population, n))
			for metric, get := range metrics {
				want, _ := get(truth)
				got, ok := get(measured)
				if !ok {
					t.Fatalf("%s of a draw of %s is none", metric, name)
				}
				if in := got.Interval(0.95); in.Lower <= want.Value && want.Value <= in.Upper {
					held[metric]++
				}
				if draw > 0 && statistics.Lower(last[metric], got) <= 0.05 {
					found[metric]++
				}
				last[metric] = got
			}
		}
		for metric := range metrics {
			if share := float64(held[metric]) / draws; share < 0.93 || share > 0.97 {
				t.Errorf("%.3f of the intervals of %s of %s hold the truth, want 0.93 to 0.97", share, metric, name)
			}
			if share := float64(found[metric]) / draws; share < 0.03 || share > 0.07 {
				t.Errorf("the test finds a drop of %s of %s in %.3f of pairs without one, want 0.03 to 0.07", metric, name, share)
			}
		}
	}
}

func TestLower(t *testing.T) {
	proportion := func(successes, trials float64) statistics.Estimate {
		e, _ := statistics.Proportion(successes, trials)
		return e
	}
	tests := []struct {
		name          string
		before, after statistics.Estimate
		low, high     float64
	}{
		{"equal", proportion(80, 100), proportion(80, 100), 0.5, 0.5},
		{"equal, without an error", proportion(100, 100), proportion(100, 100), 0.5, 0.5},
		// (0.9 - 0.8) / √(0.9*0.1/1000 + 0.8*0.2/1000) = 6.32, of which the chance is 1.3e-10.
		{"much lower", proportion(900, 1000), proportion(800, 1000), 1e-10, 3e-10},
		// (0.85 - 0.8) / √(0.85*0.15/200 + 0.8*0.2/200) = 1.318, of which the chance is 0.094.
		{"a little lower", proportion(170, 200), proportion(160, 200), 0.090, 0.100},
		{"a little higher", proportion(160, 200), proportion(170, 200), 0.900, 0.910},
		{"from one of one to none of one", proportion(1, 1), proportion(0, 1), 0.05, 0.25},
	}
	for _, tt := range tests {
		if got := statistics.Lower(tt.before, tt.after); got < tt.low || got > tt.high {
			t.Errorf("%s: Lower = %v, want %v to %v", tt.name, got, tt.low, tt.high)
		}
	}
}

// Whatever the counts, an interval lies in the range of its metric, holds the value and has a width; a higher level never has a narrower one.
func FuzzInterval(f *testing.F) {
	for _, seed := range [][9]uint64{{80, 10, 0, 20, 90, 0, 0, 0, 0}, {1}, {1, 0, 0, 0, 1, 0, 0, 0, 1}, {0, 1, 0, 0, 0, 1, 1}, {1 << 52, 1, 0, 0, 1 << 51}, {5, 0, 0, 1 << 50, 0, 0, 0, 0, 1}} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7], seed[8])
	}
	f.Fuzz(func(t *testing.T, a, b, c, d, e, g, h, i, j uint64) {
		const most = 1 << 49 // so that they add up to less than 2^53
		cells := [][]int64{{int64(a % most), int64(b % most), int64(c % most)}, {int64(d % most), int64(e % most), int64(g % most)}, {int64(h % most), int64(i % most), int64(j % most)}}
		sums, ok := statistics.NewTable(cells)
		if !ok {
			return
		}
		for name, get := range metrics {
			e, ok := get(sums)
			if !ok {
				continue
			}
			low := 0.0
			if e.Signed {
				low = -1
			}
			wide, narrow := e.Interval(0.99), e.Interval(0.9)
			const slack = 1e-12 // what rounding takes
			if !(e.Variance >= 0) || !(e.Examples > 0) || !(low <= wide.Lower) || !(wide.Lower <= narrow.Lower+slack) || !(narrow.Lower <= e.Value) ||
				!(e.Value <= narrow.Upper) || !(narrow.Upper <= wide.Upper+slack) || !(wide.Upper <= 1) || wide.Lower == wide.Upper {
				t.Errorf("%s of %v = %+v, at 0.9 %v, at 0.99 %v", name, cells, e, narrow, wide)
			}
			if p := statistics.Lower(e, e); p != 0.5 {
				t.Errorf("Lower of %s of %v and itself = %v, want 0.5", name, cells, p)
			}
		}
	})
}

func BenchmarkTable(b *testing.B) {
	for _, k := range []int{2, 100, 1000} {
		cells := make([][]int64, k)
		for i := range cells {
			cells[i] = make([]int64, k)
			for j := range cells[i] {
				cells[i][j] = int64((i*7+j*3)%5 + 1)
			}
			cells[i][i] = 1000
		}
		b.Run(fmt.Sprintf("labels=%d", k), func(b *testing.B) {
			for b.Loop() {
				sums := table(b, cells)
				for _, get := range metrics {
					if e, ok := get(sums); !ok || e.Interval(0.95).Lower > e.Value {
						b.Fatal(e, ok)
					}
				}
			}
		})
	}
}
