package registry

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
)

// MaxLabels bounds the side of a confusion matrix.
const MaxLabels = 1000

// Confusion is a confusion matrix: Matrix[i][j] counts the examples whose true label is
// Labels[i] and whose prediction is Labels[j], the convention of scikit-learn's
// confusion_matrix. Positive names the label that counts as "yes" when there are two.
type Confusion struct {
	Labels   []string  `json:"labels"`
	Positive string    `json:"positive,omitempty"`
	Matrix   [][]int64 `json:"matrix"`
}

// Validate reports the first thing that is wrong with the matrix, as a [FieldError].
func (c *Confusion) Validate() error {
	n := len(c.Labels)
	switch {
	case n < 2:
		return Invalid("confusion.labels", "a confusion matrix has at least two labels, got %d", n)
	case n > MaxLabels:
		return Invalid("confusion.labels", "a confusion matrix has at most %d labels, got %d", MaxLabels, n)
	case len(c.Matrix) != n:
		return Invalid("confusion.matrix", "the matrix has %d rows for %d labels", len(c.Matrix), n)
	case c.Positive != "" && n != 2:
		return Invalid("confusion.positive", "a positive label is for two labels, got %d", n)
	case c.Positive != "" && !slices.Contains(c.Labels, c.Positive):
		return Invalid("confusion.positive", "%q is none of the labels", clip(c.Positive))
	}
	seen := make(map[string]bool, n)
	for i, label := range c.Labels {
		if label == "" {
			return Invalid(fmt.Sprintf("confusion.labels[%d]", i), "a label is empty")
		}
		if why := badText(label); why != "" {
			return Invalid(fmt.Sprintf("confusion.labels[%d]", i), "the label %s", why)
		}
		if seen[label] {
			return Invalid(fmt.Sprintf("confusion.labels[%d]", i), "the label %q stands twice", clip(label))
		}
		seen[label] = true
	}
	total := int64(0)
	for i, row := range c.Matrix {
		if len(row) != n {
			return Invalid(fmt.Sprintf("confusion.matrix[%d]", i), "the row has %d counts for %d labels", len(row), n)
		}
		for j, count := range row {
			if count < 0 {
				return Invalid(fmt.Sprintf("confusion.matrix[%d][%d]", i, j), "a count is negative: %d", count)
			}
			if count > maxSamples-total {
				return Invalid(fmt.Sprintf("confusion.matrix[%d][%d]", i, j), "the counts add up to more than %d", int64(maxSamples))
			}
			total += count
		}
	}
	if total == 0 {
		return Invalid("confusion.matrix", "the matrix counts no example")
	}
	return nil
}

// maxSamples is the largest count that every JSON reader holds exactly: 2^53.
const maxSamples = 1 << 53

// Samples is the number of examples counted.
func (c *Confusion) Samples() int64 {
	total := int64(0)
	for _, row := range c.Matrix {
		for _, count := range row {
			total += count
		}
	}
	return total
}

// correct is the number of examples that were predicted right: the sum of the diagonal.
func (c *Confusion) correct() int64 {
	correct := int64(0)
	for i := range c.Matrix {
		correct += c.Matrix[i][i]
	}
	return correct
}

// ClassMetrics are the metrics of one label against all others. A metric whose denominator
// is 0 is absent.
type ClassMetrics struct {
	Precision   *float64 `json:"precision,omitempty"`
	Recall      *float64 `json:"recall,omitempty"`
	Specificity *float64 `json:"specificity,omitempty"`
	F1          *float64 `json:"f1,omitempty"`
	Support     int64    `json:"support"` // examples whose true label this is
}

// Classes are the metrics of each label against all others, one-vs-rest:
//
//	precision   = TP / (TP + FP)
//	recall      = TP / (TP + FN)
//	specificity = TN / (TN + FP)
//	f1          = 2 TP / (2 TP + FP + FN)
//
// Source: D. M. W. Powers, "Evaluation: from precision, recall and F-measure to ROC,
// informedness, markedness and correlation", 2011, section 2.
func (c *Confusion) Classes() map[string]ClassMetrics {
	total := c.Samples()
	classes := make(map[string]ClassMetrics, len(c.Labels))
	for i, label := range c.Labels {
		tp, actual, predicted := c.counts(i)
		fp, fn := predicted-tp, actual-tp
		classes[label] = ClassMetrics{
			Precision:   ratio(tp, predicted),
			Recall:      ratio(tp, actual),
			Specificity: ratio(total-actual-fp, total-actual),
			F1:          ratio(2*tp, 2*tp+fp+fn),
			Support:     actual,
		}
	}
	return classes
}

// counts of label i: predicted right, truly of it, predicted as it.
func (c *Confusion) counts(i int) (tp, actual, predicted int64) {
	for j := range c.Labels {
		actual += c.Matrix[i][j]
		predicted += c.Matrix[j][i]
	}
	return c.Matrix[i][i], actual, predicted
}

// Metrics computes what the matrix yields. A metric whose denominator is 0 is absent, so
// that no gate opens on it.
//
// For any number of labels: accuracy (the share predicted right), balanced_accuracy (the mean
// recall), mcc, and precision, recall and f1 as _macro (the mean over labels), _weighted (the
// mean weighted by support) and _micro (of the pooled counts). With two labels and a positive one
// also its precision, recall, specificity and f1 under their bare names.
//
// mcc is Matthews' coefficient in its form for any number of labels, which is the well-known one
// for two. Source: J. Gorodkin, "Comparing two K-category assignments by a K-category correlation
// coefficient", 2004, equation 8.
func (c *Confusion) Metrics() map[string]float64 {
	metrics := map[string]float64{}
	put := func(name string, value *float64) {
		if value != nil {
			metrics[name] = *value
		}
	}
	classes := c.Classes()
	if c.Positive != "" {
		positive := classes[c.Positive]
		put("precision", positive.Precision)
		put("recall", positive.Recall)
		put("specificity", positive.Specificity)
		put("f1", positive.F1)
	}
	total, correct := c.Samples(), c.correct()
	put("accuracy", ratio(correct, total))
	// Every example is predicted once, so that pooled precision, recall and F1 are all accuracy.
	for _, name := range []string{"precision_micro", "recall_micro", "f1_micro"} {
		put(name, ratio(correct, total))
	}
	of := map[string]func(ClassMetrics) *float64{
		"precision": func(m ClassMetrics) *float64 { return m.Precision },
		"recall":    func(m ClassMetrics) *float64 { return m.Recall },
		"f1":        func(m ClassMetrics) *float64 { return m.F1 },
	}
	for name, get := range of {
		put(name+"_macro", c.mean(classes, get, func(ClassMetrics) int64 { return 1 }))
		put(name+"_weighted", c.mean(classes, get, func(m ClassMetrics) int64 { return m.Support }))
	}
	if recall, ok := metrics["recall_macro"]; ok {
		metrics["balanced_accuracy"] = recall
	}
	put("mcc", c.mcc(correct, total))
	return metrics
}

// yields are the names of the metrics that Metrics gives when no denominator is 0.
func (c *Confusion) yields() []string {
	names := []string{
		"accuracy", "balanced_accuracy", "mcc", "precision_micro", "recall_micro", "f1_micro", "precision_macro", "recall_macro", "f1_macro",
		"precision_weighted", "recall_weighted", "f1_weighted",
	}
	if c.Positive != "" {
		names = append(names, "precision", "recall", "specificity", "f1")
	}
	return names
}

// mean of a metric over the labels with a weight; absent when a label with weight lacks it.
// It adds in the order of the labels, so that the last bit is always the same.
func (c *Confusion) mean(classes map[string]ClassMetrics, get func(ClassMetrics) *float64, weight func(ClassMetrics) int64) *float64 {
	sum, weights := 0.0, int64(0)
	for _, label := range c.Labels {
		w := weight(classes[label])
		if w == 0 {
			continue
		}
		value := get(classes[label])
		if value == nil {
			return nil
		}
		sum += *value * float64(w)
		weights += w
	}
	mean := sum / float64(weights)
	return &mean
}

// mcc computes with whole numbers to the last step: the squares of large, unbalanced counts
// differ in digits that a float64 does not have.
func (c *Confusion) mcc(correct, total int64) *float64 {
	times := func(a, b int64) *big.Int { return new(big.Int).Mul(big.NewInt(a), big.NewInt(b)) }
	covariance := times(correct, total)
	var predictedSpread, actualSpread big.Int
	for i := range c.Labels {
		_, actual, predicted := c.counts(i)
		covariance.Sub(covariance, times(actual, predicted))
		predictedSpread.Add(&predictedSpread, times(predicted, total-predicted))
		actualSpread.Add(&actualSpread, times(actual, total-actual))
	}
	product := new(big.Int).Mul(&predictedSpread, &actualSpread)
	if product.Sign() == 0 {
		return nil
	}
	denominator := new(big.Float).SetInt(product)
	quotient := new(big.Float).Quo(new(big.Float).SetInt(covariance), denominator.Sqrt(denominator))
	mcc, _ := quotient.Float64()
	mcc = max(-1, min(1, mcc))
	return &mcc
}

func ratio(a, b int64) *float64 {
	if b == 0 {
		return nil
	}
	r := float64(a) / float64(b)
	return &r
}

// sortedKeys of a map, for loops whose order people see.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
