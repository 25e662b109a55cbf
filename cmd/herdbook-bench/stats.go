package main

import (
	"cmp"
	"math"
	"slices"
)

// spread is the middle of some values, and how far they lie apart.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// spreadOf leaves out values that are no number: those that were not measured.
func spreadOf(values []float64) spread {
	v := slices.DeleteFunc(slices.Clone(values), func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) })
	if len(v) == 0 {
		return spread{}
	}
	slices.SortFunc(v, cmp.Compare)
	middle := v[len(v)/2]
	if len(v)%2 == 0 {
		middle = v[len(v)/2-1]/2 + v[len(v)/2]/2
	}
	return spread{middle, v[0], v[len(v)-1], len(v)}
}

// ratios divides value by value: both of a pair were measured in the same round. Where the base is 0, it is
// too small to be seen and gives no ratio.
func ratios(values, base []float64) []float64 {
	return pairs(values, base, func(a, b float64) float64 {
		if b == 0 {
			return math.NaN()
		}
		return a / b
	})
}

func differences(values, base []float64) []float64 {
	return pairs(values, base, func(a, b float64) float64 { return a - b })
}

func pairs(a, b []float64, of func(a, b float64) float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = of(a[i], b[i])
	}
	return out
}
