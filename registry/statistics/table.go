package statistics

import "math"

// Table is a confusion matrix with its sums.
type Table struct {
	cells                      [][]int64
	n                          float64
	correct, actual, predicted []float64 // by label
}

// NewTable sums up a confusion matrix: cells[i][j] counts the examples whose true label is i and whose
// prediction is j. It keeps the cells. It reports false when the matrix is not square, holds a negative count or
// counts no example; the counts add up to 2^53 at most.
func NewTable(cells [][]int64) (*Table, bool) {
	k := len(cells)
	t := &Table{cells: cells, correct: make([]float64, k), actual: make([]float64, k), predicted: make([]float64, k)}
	for i, row := range cells {
		if len(row) != k {
			return nil, false
		}
		for j, count := range row {
			if count < 0 {
				return nil, false
			}
			t.actual[i] += float64(count)
			t.predicted[j] += float64(count)
		}
		t.correct[i] = float64(row[i])
		t.n += t.actual[i]
	}
	return t, t.n > 0
}

// Measure is a metric of one label against all others.
type Measure int

// The measures of a label, with TP, FP and FN as usual. Each is a proportion, or one with a formula around it:
// F1 = 2q / (1 + q) of the share q of TP among TP + FP + FN.
const (
	Precision Measure = iota // TP / (TP + FP)
	Recall                   // TP / (TP + FN)
	F1                       // 2 TP / (2 TP + FP + FN)
)

// share of the measure for a label: right out of all.
func (t *Table) share(m Measure, label int) (right, all float64) {
	right = t.correct[label]
	switch m {
	case Precision:
		return right, t.predicted[label]
	case Recall:
		return right, t.actual[label]
	}
	return right, t.actual[label] + t.predicted[label] - right
}

// of a share q the measure's value, and its derivative.
func (m Measure) of(q float64) (value, slope float64) {
	if m == F1 {
		return 2 * q / (1 + q), 2 / ((1 + q) * (1 + q))
	}
	return q, 1
}

// Accuracy is the share of examples that were predicted right; so are precision, recall and F1 of the pooled counts.
func (t *Table) Accuracy() Estimate {
	correct := 0.0
	for _, c := range t.correct {
		correct += c
	}
	e, _ := Proportion(correct, t.n)
	return e
}

// Specificity of a label: TN / (TN + FP).
func (t *Table) Specificity(label int) (Estimate, bool) {
	others := t.n - t.actual[label]
	return Proportion(others-(t.predicted[label]-t.correct[label]), others)
}

// Label is a measure of one label; it reports false when its denominator is 0.
func (t *Table) Label(m Measure, label int) (Estimate, bool) {
	right, all := t.share(m, label)
	if all == 0 || m != F1 {
		return Proportion(right, all)
	}
	value, own, smooth, midpoint := m.variances(right, all)
	return Estimate{Value: value, Variance: own, Examples: midpoint * (1 - midpoint) / max(own, smooth)}, true
}

// variances of a measure of right out of all: as the delta method has it, and where two examples of each kind are added, which is never 0;
// midpoint is the measure there. A proportion of one label has as many effective examples as it has examples.
func (m Measure) variances(right, all float64) (value, own, smooth, midpoint float64) {
	q := right / all
	value, slope := m.of(q)
	own = slope * slope * q * (1 - q) / all
	q = (right + added) / (all + 2*added)
	midpoint, slope = m.of(q)
	return value, own, slope * slope * q * (1 - q) / all, midpoint
}

// Macro is the mean of a measure over all labels. The macro recall is also known as balanced accuracy.
func (t *Table) Macro(m Measure) (Estimate, bool) {
	weights := make([]float64, len(t.cells))
	for i := range weights {
		weights[i] = 1 / float64(len(weights))
	}
	return t.average(m, weights, false)
}

// Weighted is the mean of a measure over all labels, each weighted by its share of the examples. The weighted recall is the accuracy.
func (t *Table) Weighted(m Measure) (Estimate, bool) {
	if m == Recall {
		return t.Accuracy(), true
	}
	weights := make([]float64, len(t.cells))
	for i := range weights {
		weights[i] = t.actual[i] / t.n
	}
	return t.average(m, weights, true)
}

// average of a measure; vary says that the weights are the labels' shares of the sample, and vary as it does. It reports false when the measure
// of a label with weight has the denominator 0.
//
// A label without an error adds nothing to the variance of the delta method, however few its examples are. So each label's own variance is
// taken where two examples of each kind are added, if it is larger there. The effective number is x (1 - x) / variance at the mean x of such measures:
// at 0 and 1 it would be 0 / 0. For a proportion of n examples it is n, and for one label of many with few examples it is about as few.
func (t *Table) average(m Measure, weights []float64, vary bool) (Estimate, bool) {
	k := len(weights)
	values, onDiagonal, inRow, inColumn := make([]float64, k), make([]float64, k), make([]float64, k), make([]float64, k)
	mean, midpoint, more := 0.0, 0.0, 0.0
	for l, w := range weights {
		if w == 0 {
			continue
		}
		right, all := t.share(m, l)
		if all == 0 {
			return Estimate{}, false
		}
		value, own, smooth, middle := m.variances(right, all)
		values[l] = value
		mean += w * value
		midpoint += w * middle
		more += w * w * max(0, smooth-own)
		// The derivatives of the label's measure by the counts of its row and its column.
		switch m {
		case Precision:
			onDiagonal[l], inColumn[l] = w*(1-value)/all, -w*value/all
		case Recall:
			onDiagonal[l], inRow[l] = w*(1-value)/all, -w*value/all
		case F1:
			sum := t.actual[l] + t.predicted[l]
			onDiagonal[l], inRow[l], inColumn[l] = w*2*(1-value)/sum, -w*value/sum, -w*value/sum
		}
	}
	variance := t.delta(func(i, j int) float64 {
		gradient := inRow[i] + inColumn[j]
		if i == j {
			gradient = onDiagonal[i]
		}
		if vary {
			gradient += (values[i] - mean) / t.n
		}
		return gradient
	})
	mean = max(0, min(1, mean))
	return Estimate{Value: mean, Variance: variance, Examples: midpoint * (1 - midpoint) / (variance + more)}, true
}

// delta is the variance of a metric with these derivatives by the counts of the cells. In Agresti's terms, with g the derivatives by the
// proportions π, the variance is (Σ π g² - (Σ π g)²) / n. All metrics here stay the same when every count is multiplied by one number, so that
// by Euler's theorem the second sum is 0; and the derivative by a count is g/n, so that the first is the sum over all counts of the derivative squared.
func (t *Table) delta(derivative func(i, j int) float64) float64 {
	variance := 0.0
	for i, row := range t.cells {
		for j, count := range row {
			if count > 0 {
				d := derivative(i, j)
				variance += float64(count) * d * d
			}
		}
	}
	return variance
}

// MCC is Matthews' coefficient for any number of labels. It reports false when all examples are of one label or were predicted as one.
//
// The effective number of examples is that of the variance, and at most the number of examples times that of labels. Without an error it is
// what it tends to as the last errors go: twice the chance that two examples differ in their label, times the number of examples.
//
// Source: J. Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004, equation 8; the derivatives
// are ours, and a test holds them against differences.
func (t *Table) MCC() (Estimate, bool) {
	covariance, spreadActual, spreadPredicted, correct := 0.0, 0.0, 0.0, 0.0
	for l, tp := range t.correct {
		actual, predicted := t.actual[l], t.predicted[l]
		// n TP - actual predicted, without the difference of two large numbers.
		covariance += tp*(t.n-actual-predicted+tp) - (actual-tp)*(predicted-tp)
		spreadActual += actual * (t.n - actual)
		spreadPredicted += predicted * (t.n - predicted)
		correct += tp
	}
	if spreadActual == 0 || spreadPredicted == 0 {
		return Estimate{}, false
	}
	scale := math.Sqrt(spreadActual * spreadPredicted) // up to 2^104 each
	value := max(-1, min(1, covariance/scale))
	variance := t.delta(func(i, j int) float64 {
		rise := correct - t.predicted[i] - t.actual[j] // of the covariance
		if i == j {
			rise += t.n
		}
		return rise/scale - value*((t.n-t.predicted[j])/spreadPredicted+(t.n-t.actual[i])/spreadActual)
	})
	most := t.n * float64(len(t.cells))
	examples := 2 * min(spreadActual, spreadPredicted) / t.n
	if rest := 1 - value*value; rest > 0 {
		examples = rest / max(variance, rest/most)
	}
	return Estimate{Value: value, Variance: variance, Examples: examples, Signed: true}, true
}
