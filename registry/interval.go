package registry

import (
	"fmt"
	"math"
	"slices"

	"github.com/herdbook/herdbook/registry/statistics"
)

// IntervalLevel is the level of the intervals that are recorded.
const IntervalLevel = 0.95

// The methods by which intervals are computed; see [statistics.Estimate.Interval].
const (
	Wilson = "wilson" // of a proportion
	Delta  = "delta"  // of any other metric of a confusion matrix: Wilson's interval for the variance of the delta method
)

// Interval is a two-sided confidence interval of a metric. Its ends are rounded outwards to six decimals, so that they are the same
// on every machine, and lie in the metric's range.
type Interval struct {
	Lower  float64 `json:"lower"`
	Upper  float64 `json:"upper"`
	Level  float64 `json:"level"`
	Method string  `json:"method"` // wilson or delta
}

// String is the interval for people, with as many decimals as its width is worth: "0.78 - 0.89".
func (i Interval) String() string {
	decimals := 2
	for width := i.Upper - i.Lower; width < 0.03 && decimals < 6; width *= 10 {
		decimals++
	}
	return fmt.Sprintf("%.*f - %.*f", decimals, i.Lower, decimals, i.Upper)
}

// measured is a metric with what is known of its variance.
type measured struct {
	statistics.Estimate
	method string
}

func (m measured) interval(level float64) Interval {
	const decimals = 1e6
	in := m.Interval(level)
	return Interval{Lower: math.Floor(in.Lower*decimals) / decimals, Upper: math.Ceil(in.Upper*decimals) / decimals, Level: level, Method: m.method}
}

// Interval is the interval of one of the metrics at a level between 0 and 1. There is one for what the confusion matrix yields, and for
// the accuracy where only the number of samples is known; not for other metrics, whose variance nobody knows.
func (e *Evaluation) Interval(metric string, level float64) (Interval, bool) {
	if in, ok := e.Intervals[metric]; ok && in.Level == level {
		return in, true
	}
	m, ok := e.measured(metric)
	if !ok {
		return Interval{}, false
	}
	return m.interval(level), true
}

// Estimate is one of the metrics with its variance, where there is an interval of it.
func (e *Evaluation) Estimate(metric string) (statistics.Estimate, bool) {
	m, ok := e.measured(metric)
	return m.Estimate, ok
}

func (e *Evaluation) measured(metric string) (measured, bool) {
	all := e.estimates(metric)
	m, ok := all[metric]
	return m, ok
}

// intervals of all metrics that have one, at the usual level.
func (e *Evaluation) intervals() map[string]Interval {
	var found map[string]Interval
	for name, m := range e.estimates() {
		if found == nil {
			found = map[string]Interval{}
		}
		found[name] = m.interval(IntervalLevel)
	}
	return found
}

// estimates of the metrics with these names, or of all, that the evaluation has and whose variance is known.
func (e *Evaluation) estimates(names ...string) map[string]measured {
	found := map[string]measured{}
	put := func(name, method string, of func() (statistics.Estimate, bool)) {
		if _, has := e.Metrics[name]; !has || (len(names) > 0 && !slices.Contains(names, name)) {
			return
		}
		if estimate, ok := of(); ok {
			found[name] = measured{estimate, method}
		}
	}
	if e.Confusion == nil {
		// A rounded accuracy is no whole number of examples, which makes no difference.
		if e.Samples != nil {
			put("accuracy", Wilson, func() (statistics.Estimate, bool) {
				return statistics.Proportion(e.Metrics["accuracy"]*float64(*e.Samples), float64(*e.Samples))
			})
		}
		return found
	}
	table, ok := statistics.NewTable(e.Confusion.Matrix)
	if !ok {
		return found
	}
	if i := slices.Index(e.Confusion.Labels, e.Confusion.Positive); i >= 0 && i < len(e.Confusion.Matrix) {
		put("precision", Wilson, func() (statistics.Estimate, bool) { return table.Label(statistics.Precision, i) })
		put("recall", Wilson, func() (statistics.Estimate, bool) { return table.Label(statistics.Recall, i) })
		put("specificity", Wilson, func() (statistics.Estimate, bool) { return table.Specificity(i) })
		put("f1", Delta, func() (statistics.Estimate, bool) { return table.Label(statistics.F1, i) })
	}
	for _, name := range []string{"accuracy", "precision_micro", "recall_micro", "f1_micro", "recall_weighted"} {
		put(name, Wilson, func() (statistics.Estimate, bool) { return table.Accuracy(), true })
	}
	for name, measure := range map[string]statistics.Measure{"precision": statistics.Precision, "recall": statistics.Recall, "f1": statistics.F1} {
		put(name+"_macro", Delta, func() (statistics.Estimate, bool) { return table.Macro(measure) })
		if measure != statistics.Recall { // which is the accuracy
			put(name+"_weighted", Delta, func() (statistics.Estimate, bool) { return table.Weighted(measure) })
		}
	}
	put("balanced_accuracy", Delta, func() (statistics.Estimate, bool) { return table.Macro(statistics.Recall) })
	put("mcc", Delta, table.MCC)
	return found
}
