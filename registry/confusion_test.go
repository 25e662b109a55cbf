package registry_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

// near compares numbers to 12 digits: the order of sums moves the last ones.
var near = cmp.Comparer(func(a, b float64) bool {
	return math.Abs(a-b) <= 1e-12*math.Max(1, math.Max(math.Abs(a), math.Abs(b)))
})

func ptr[T any](v T) *T { return &v }

func TestConfusionMetrics(t *testing.T) {
	yesNo := func(matrix [][]int64) registry.Confusion {
		return registry.Confusion{Labels: []string{"yes", "no"}, Positive: "yes", Matrix: matrix}
	}
	tests := []struct {
		name string
		c    registry.Confusion
		want map[string]float64
	}{
		{
			// TP 80, FN 10, FP 20, TN 90. The other label: precision 90/100, recall 90/110, F1 180/(180+10+20).
			// MCC = (80*90 - 20*10) / sqrt(100 * 90 * 110 * 100).
			"two labels",
			registry.Confusion{Labels: []string{"speech", "silence"}, Positive: "speech", Matrix: [][]int64{{80, 10}, {20, 90}}},
			map[string]float64{
				"precision": 0.8, "recall": 80.0 / 90, "specificity": 90.0 / 110, "f1": 2 * 80.0 / (2*80 + 20 + 10),
				"accuracy": 0.85, "precision_micro": 0.85, "recall_micro": 0.85, "f1_micro": 0.85,
				"precision_macro": (0.8 + 0.9) / 2, "recall_macro": (80.0/90 + 90.0/110) / 2, "f1_macro": (160.0/190 + 180.0/210) / 2,
				"precision_weighted": (90*0.8 + 110*0.9) / 200, "recall_weighted": 0.85, "f1_weighted": (90*160.0/190 + 110*180.0/210) / 200,
				"balanced_accuracy": (80.0/90 + 90.0/110) / 2, "mcc": 7000 / math.Sqrt(100*90*110*100),
			},
		},
		{
			// The same counts with the labels the other way round: what is said of the positive label is the same.
			"the positive label second",
			registry.Confusion{Labels: []string{"silence", "speech"}, Positive: "speech", Matrix: [][]int64{{90, 20}, {10, 80}}},
			map[string]float64{
				"precision": 0.8, "recall": 80.0 / 90, "specificity": 90.0 / 110, "f1": 2 * 80.0 / (2*80 + 20 + 10),
				"accuracy": 0.85, "precision_micro": 0.85, "recall_micro": 0.85, "f1_micro": 0.85,
				"precision_macro": (0.8 + 0.9) / 2, "recall_macro": (80.0/90 + 90.0/110) / 2, "f1_macro": (160.0/190 + 180.0/210) / 2,
				"precision_weighted": (90*0.8 + 110*0.9) / 200, "recall_weighted": 0.85, "f1_weighted": (90*160.0/190 + 110*180.0/210) / 200,
				"balanced_accuracy": (80.0/90 + 90.0/110) / 2, "mcc": 7000 / math.Sqrt(100*90*110*100),
			},
		},
		{
			// Of a, b, c truly 6, 6, 8; predicted 7, 5, 8; right 5 + 3 + 7 = 15 of 20.
			// Precision 5/7, 3/5, 7/8. Recall 5/6, 3/6, 7/8. F1 10/13, 6/11, 14/16.
			// MCC: (15*20 - 7*6 - 5*6 - 8*8) / sqrt((400 - 49 - 25 - 64) * (400 - 36 - 36 - 64)) = 164 / sqrt(262 * 264).
			"three labels",
			registry.Confusion{Labels: []string{"a", "b", "c"}, Matrix: [][]int64{{5, 1, 0}, {2, 3, 1}, {0, 1, 7}}},
			map[string]float64{
				"accuracy": 0.75, "precision_micro": 0.75, "recall_micro": 0.75, "f1_micro": 0.75,
				"precision_macro": (5.0/7 + 3.0/5 + 7.0/8) / 3, "recall_macro": (5.0/6 + 3.0/6 + 7.0/8) / 3, "f1_macro": (10.0/13 + 6.0/11 + 7.0/8) / 3,
				"precision_weighted": (6*5.0/7 + 6*3.0/5 + 8*7.0/8) / 20, "recall_weighted": 0.75, "f1_weighted": (6*10.0/13 + 6*6.0/11 + 8*7.0/8) / 20,
				"balanced_accuracy": (5.0/6 + 3.0/6 + 7.0/8) / 3, "mcc": 164 / math.Sqrt(262*264),
			},
		},
		{
			"all right",
			yesNo([][]int64{{3, 0}, {0, 4}}),
			map[string]float64{
				"precision": 1, "recall": 1, "specificity": 1, "f1": 1, "accuracy": 1, "precision_micro": 1, "recall_micro": 1, "f1_micro": 1,
				"precision_macro": 1, "recall_macro": 1, "f1_macro": 1, "precision_weighted": 1, "recall_weighted": 1, "f1_weighted": 1, "balanced_accuracy": 1, "mcc": 1,
			},
		},
		{
			"all wrong",
			yesNo([][]int64{{0, 3}, {4, 0}}),
			map[string]float64{
				"precision": 0, "recall": 0, "specificity": 0, "f1": 0, "accuracy": 0, "precision_micro": 0, "recall_micro": 0, "f1_micro": 0,
				"precision_macro": 0, "recall_macro": 0, "f1_macro": 0, "precision_weighted": 0, "recall_weighted": 0, "f1_weighted": 0, "balanced_accuracy": 0, "mcc": -1,
			},
		},
		{
			// TP 0, FN 5, FP 0, TN 5: nothing was predicted "yes", so that its precision is 0/0.
			"never predicted",
			yesNo([][]int64{{0, 5}, {0, 5}}),
			map[string]float64{
				"recall": 0, "specificity": 1, "f1": 0, "accuracy": 0.5, "precision_micro": 0.5, "recall_micro": 0.5, "f1_micro": 0.5,
				"recall_macro": 0.5, "f1_macro": (0 + 10.0/15) / 2, "recall_weighted": 0.5, "f1_weighted": (0 + 5*10.0/15) / 10, "balanced_accuracy": 0.5,
			},
		},
		{
			// TP 0, FN 0, FP 3, TN 7: nothing is "yes", so that its recall is 0/0 and its weight 0.
			"never there",
			yesNo([][]int64{{0, 0}, {3, 7}}),
			map[string]float64{
				"precision": 0, "specificity": 0.7, "f1": 0, "accuracy": 0.7, "precision_micro": 0.7, "recall_micro": 0.7, "f1_micro": 0.7,
				"precision_macro": 0.5, "f1_macro": (0 + 14.0/17) / 2, "precision_weighted": 1, "recall_weighted": 0.7, "f1_weighted": 14.0 / 17,
			},
		},
		{
			"only true negatives",
			yesNo([][]int64{{0, 0}, {0, 9}}),
			map[string]float64{
				"specificity": 1, "accuracy": 1, "precision_micro": 1, "recall_micro": 1, "f1_micro": 1,
				"precision_weighted": 1, "recall_weighted": 1, "f1_weighted": 1,
			},
		},
		{
			"only true positives",
			yesNo([][]int64{{9, 0}, {0, 0}}),
			map[string]float64{
				"precision": 1, "recall": 1, "f1": 1, "accuracy": 1, "precision_micro": 1, "recall_micro": 1, "f1_micro": 1,
				"precision_weighted": 1, "recall_weighted": 1, "f1_weighted": 1,
			},
		},
	}
	for _, tt := range tests {
		if err := tt.c.Validate(); err != nil {
			t.Errorf("%s: Validate() = %v, want a good matrix", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, tt.c.Metrics(), near); diff != "" {
			t.Errorf("Metrics() of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestConfusionClasses(t *testing.T) {
	c := registry.Confusion{Labels: []string{"a", "b", "c", "d"}, Matrix: [][]int64{{5, 1, 0, 0}, {2, 3, 1, 0}, {0, 1, 7, 0}, {0, 0, 0, 0}}}
	want := map[string]registry.ClassMetrics{
		// TN of a: of 14 others 2 were predicted as it.
		"a": {Precision: ptr(5.0 / 7), Recall: ptr(5.0 / 6), Specificity: ptr(12.0 / 14), F1: ptr(10.0 / 13), Support: 6},
		"b": {Precision: ptr(3.0 / 5), Recall: ptr(3.0 / 6), Specificity: ptr(12.0 / 14), F1: ptr(6.0 / 11), Support: 6},
		"c": {Precision: ptr(7.0 / 8), Recall: ptr(7.0 / 8), Specificity: ptr(11.0 / 12), F1: ptr(14.0 / 16), Support: 8},
		"d": {Specificity: ptr(1.0)}, // neither there nor predicted
	}
	if diff := cmp.Diff(want, c.Classes(), near); diff != "" {
		t.Errorf("Classes() (-want +got):\n%s", diff)
	}
	data, err := json.Marshal(c.Classes()["d"])
	if want := `{"specificity":1,"support":0}`; err != nil || string(data) != want {
		t.Errorf("JSON of a class without examples = %s, %v, want %s", data, err, want)
	}
}

// With the squares of such counts in a float64 the coefficient would be 0, above 1 or NaN.
func TestMCCOfLargeCounts(t *testing.T) {
	const most = 1 << 53
	tests := []struct {
		matrix [][]int64
		want   float64
	}{
		{[][]int64{{most/2 - 1, 1}, {0, most / 2}}, 1},
		{[][]int64{{1, 0}, {0, most - 1}}, 1},
		{[][]int64{{0, 1}, {most - 1, 0}}, -1},
		// (1 * (2^53-3) - 1*1) / sqrt(2 * 2 * (2^53-2) * (2^53-2)), which is a half all but 2^-53.
		{[][]int64{{1, 1}, {1, most - 3}}, 0.5},
		{[][]int64{{most / 4, most / 4}, {most / 4, most / 4}}, 0},
	}
	for _, tt := range tests {
		c := registry.Confusion{Labels: []string{"y", "n"}, Matrix: tt.matrix}
		if err := c.Validate(); err != nil {
			t.Errorf("Validate(%v) = %v, want nil: it counts 2^53 examples at most", tt.matrix, err)
		}
		if got, ok := c.Metrics()["mcc"]; !ok || math.Abs(got-tt.want) > 1e-15 || math.Abs(got) > 1 {
			t.Errorf("mcc of %v = %v, %t, want %v", tt.matrix, got, ok, tt.want)
		}
	}
}

func TestConfusionValidate(t *testing.T) {
	labels := func(n int) []string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprint("l", i))
		}
		return list
	}
	square := func(n int) [][]int64 {
		m := make([][]int64, n)
		for i := range m {
			m[i] = make([]int64, n)
			m[i][i] = 1
		}
		return m
	}
	two := [][]int64{{1, 2}, {3, 4}}
	const most = 1 << 53
	tests := []struct {
		name  string
		c     registry.Confusion
		field string // of the error
	}{
		{"two labels", registry.Confusion{Labels: []string{"a", "b"}, Matrix: two}, "no error"},
		{"as many labels as may be", registry.Confusion{Labels: labels(registry.MaxLabels), Matrix: square(registry.MaxLabels)}, "no error"},
		{"as many examples as may be", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{most - 6, 1}, {2, 3}}}, "no error"},
		{"labels that differ in case", registry.Confusion{Labels: []string{"a", "A"}, Matrix: two, Positive: "A"}, "no error"},

		{"nothing", registry.Confusion{}, "confusion.labels"},
		{"one label", registry.Confusion{Labels: []string{"a"}, Matrix: [][]int64{{1}}}, "confusion.labels"},
		{"too many labels", registry.Confusion{Labels: labels(registry.MaxLabels + 1), Matrix: square(registry.MaxLabels + 1)}, "confusion.labels"},
		{"a label twice", registry.Confusion{Labels: []string{"a", "b", "a"}, Matrix: square(3)}, "confusion.labels[2]"},
		{"an empty label", registry.Confusion{Labels: []string{"a", ""}, Matrix: two}, "confusion.labels[1]"},
		{"a label with a line break", registry.Confusion{Labels: []string{"a\nb", "c"}, Matrix: two}, "confusion.labels[0]"},
		{"a label that is not UTF-8", registry.Confusion{Labels: []string{"a", "\xff"}, Matrix: two}, "confusion.labels[1]"},
		{"a row too few", registry.Confusion{Labels: []string{"a", "b"}, Matrix: two[:1]}, "confusion.matrix"},
		{"a row too many", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{1, 2}, {3, 4}, {5, 6}}}, "confusion.matrix"},
		{"a short row", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{1, 2}, {3}}}, "confusion.matrix[1]"},
		{"a long row", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{1, 2, 3}, {3, 4}}}, "confusion.matrix[0]"},
		{"a missing row", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{1, 2}, nil}}, "confusion.matrix[1]"},
		{"a negative count", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{1, 2}, {-3, 4}}}, "confusion.matrix[1][0]"},
		{"no example", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{0, 0}, {0, 0}}}, "confusion.matrix"},
		{"one example too many", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{most - 6, 1}, {2, 4}}}, "confusion.matrix[1][1]"},
		{"a sum that would overflow", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{math.MaxInt64, math.MaxInt64}, {2, 4}}}, "confusion.matrix[0][0]"},
		{"a sum that overflows", registry.Confusion{Labels: []string{"a", "b"}, Matrix: [][]int64{{1, math.MaxInt64}, {2, 4}}}, "confusion.matrix[0][1]"},
		{"an unknown positive label", registry.Confusion{Labels: []string{"a", "b"}, Matrix: two, Positive: "c"}, "confusion.positive"},
		{"a positive label among three", registry.Confusion{Labels: labels(3), Matrix: square(3), Positive: "l0"}, "confusion.positive"},
	}
	for _, tt := range tests {
		if got := fieldOf(tt.c.Validate()); got != tt.field {
			t.Errorf("Validate() of %s: error on %s, want %s", tt.name, got, tt.field)
		}
	}
}

// matrixOf makes a matrix of 2 to 6 labels from bytes: each count is one of a byte's high four
// bits, shifted by three times its low four, so that it covers 0 to 15 * 2^45.
func matrixOf(side uint8, data []byte) registry.Confusion {
	n := 2 + int(side)%5
	c := registry.Confusion{Matrix: make([][]int64, n)}
	for i := range n {
		c.Labels = append(c.Labels, fmt.Sprint("l", i))
		c.Matrix[i] = make([]int64, n)
		for j := range n {
			if at := i*n + j; at < len(data) {
				c.Matrix[i][j] = int64(data[at]>>4) << (3 * (data[at] & 15))
			}
		}
	}
	return c
}

// permuted is the same matrix with its labels in another order.
func permuted(c registry.Confusion, order []int) registry.Confusion {
	p := registry.Confusion{Positive: c.Positive}
	for _, i := range order {
		p.Labels = append(p.Labels, c.Labels[i])
		var row []int64
		for _, j := range order {
			row = append(row, c.Matrix[i][j])
		}
		p.Matrix = append(p.Matrix, row)
	}
	return p
}

func FuzzConfusionMetrics(f *testing.F) {
	f.Add(uint8(0), true, []byte{0x80, 0x10, 0x20, 0x90})
	f.Add(uint8(0), false, []byte{0, 0x50, 0, 0x50})
	f.Add(uint8(0), true, []byte{0xff, 0x10, 0x10, 0x10})
	f.Add(uint8(1), false, []byte{0x50, 0x10, 0, 0x20, 0x30, 0x10, 0, 0x10, 0x70})
	f.Add(uint8(4), false, []byte{1: 0x1f, 8: 0x1e, 35: 0xf0})
	f.Fuzz(func(t *testing.T, side uint8, hasPositive bool, data []byte) {
		c := matrixOf(side, data)
		if hasPositive && len(c.Labels) == 2 {
			c.Positive = c.Labels[1]
		}
		if c.Validate() != nil {
			return
		}
		metrics, classes := c.Metrics(), c.Classes()
		for name, value := range metrics {
			low := 0.0
			if name == "mcc" {
				low = -1
			}
			if !(value >= low && value <= 1) {
				t.Errorf("%s of %v = %v, want %v to 1", name, c.Matrix, value, low)
			}
		}
		support := int64(0)
		for label, class := range classes {
			support += class.Support
			for _, value := range []*float64{class.Precision, class.Recall, class.Specificity, class.F1} {
				if value != nil && !(*value >= 0 && *value <= 1) {
					t.Errorf("a metric of %s in %v is %v, want 0 to 1", label, c.Matrix, *value)
				}
			}
			if p, r := class.Precision, class.Recall; p != nil && r != nil && *p+*r > 0 {
				if mean := 2 * *p * *r / (*p + *r); !cmp.Equal(mean, *class.F1, near) {
					t.Errorf("f1 of %s in %v = %v, want the harmonic mean %v", label, c.Matrix, *class.F1, mean)
				}
			}
		}
		if support != c.Samples() {
			t.Errorf("support in %v adds up to %d, want %d", c.Matrix, support, c.Samples())
		}
		if got, want := metrics["recall_weighted"], metrics["accuracy"]; !cmp.Equal(got, want, near) {
			t.Errorf("recall_weighted of %v = %v, want the accuracy %v", c.Matrix, got, want)
		}

		order := make([]int, len(c.Labels))
		for i := range order {
			order[i] = (i + 1 + int(side)/5) % len(order)
		}
		slices.Reverse(order[:len(order)-1])
		other := permuted(c, order)
		if diff := cmp.Diff(classes, other.Classes()); diff != "" {
			t.Errorf("classes of %v with the labels in order %v:\n%s", c.Matrix, order, diff)
		}
		if diff := cmp.Diff(metrics, other.Metrics(), near); diff != "" {
			t.Errorf("metrics of %v with the labels in order %v:\n%s", c.Matrix, order, diff)
		}

		if len(c.Labels) != 2 {
			return
		}
		// The well-known form: (TP TN - FP FN) / sqrt((TP+FP) (TP+FN) (TN+FP) (TN+FN)).
		tp, fn, fp, tn := float64(c.Matrix[0][0]), float64(c.Matrix[0][1]), float64(c.Matrix[1][0]), float64(c.Matrix[1][1])
		got, defined := metrics["mcc"]
		denominator := math.Sqrt(tp+fp) * math.Sqrt(tp+fn) * math.Sqrt(tn+fp) * math.Sqrt(tn+fn)
		if defined != (denominator > 0) || defined && math.Abs(got-(tp*tn-fp*fn)/denominator) > 1e-9 {
			t.Errorf("mcc of %v = %v, %t, want %v", c.Matrix, got, defined, (tp*tn-fp*fn)/denominator)
		}
		names := slices.Sorted(maps.Keys(metrics))
		if _, bare := metrics["specificity"]; bare && c.Positive == "" {
			t.Errorf("metrics of %v without a positive label are %v, want none of one label", c.Matrix, names)
		}
	})
}

func BenchmarkConfusionMetrics(b *testing.B) {
	for _, n := range []int{2, 10, 1000} {
		c := registry.Confusion{Matrix: make([][]int64, n)}
		for i := range n {
			c.Labels = append(c.Labels, fmt.Sprint(i))
			c.Matrix[i] = make([]int64, n)
			for j := range n {
				c.Matrix[i][j] = int64(1 + (i*j)%7)
			}
		}
		b.Run(fmt.Sprint("labels=", n), func(b *testing.B) {
			for b.Loop() {
				if err := c.Validate(); err != nil || len(c.Metrics()) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}
