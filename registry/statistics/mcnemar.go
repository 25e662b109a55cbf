package statistics

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Discordant counts the examples on which two predictors differ: one was right and the other wrong. Those on which they agree
// say nothing about which is better.
// Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947.
type Discordant struct {
	Lost   int64 // right before, wrong after
	Gained int64 // wrong before, right after
}

// Compare counts where two bitmaps of the same examples differ; a 1 is an example that was predicted right. It reports false when
// they differ in length.
func Compare(before, after []byte) (Discordant, bool) {
	if len(before) != len(after) {
		return Discordant{}, false
	}
	var d Discordant
	for ; len(before) >= 8; before, after = before[8:], after[8:] {
		a, b := binary.LittleEndian.Uint64(before), binary.LittleEndian.Uint64(after)
		d.Lost += int64(bits.OnesCount64(a &^ b))
		d.Gained += int64(bits.OnesCount64(b &^ a))
	}
	for i := range before {
		d.Lost += int64(bits.OnesCount8(before[i] &^ after[i]))
		d.Gained += int64(bits.OnesCount8(after[i] &^ before[i]))
	}
	return d, true
}

// Lower is the p-value of McNemar's exact test whether the predictor became worse: how likely it is that as many of the discordant
// examples are lost, or more, when losing and gaining are equally likely.
func (d Discordant) Lower() float64 { return tail(d.Lost, d.Lost+d.Gained) }

// Differ is the two-sided p-value of McNemar's exact test.
func (d Discordant) Differ() float64 { return min(1, 2*tail(max(d.Lost, d.Gained), d.Lost+d.Gained)) }

// DifferMid is the two-sided mid-p-value, which counts what was seen by half. It rejects more often than the exact test, whose errors
// are rarer than its significance says.
// Source: M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are
// better than exact conditional", 2013.
func (d Discordant) DifferMid() float64 {
	if d.Lost == d.Gained {
		return 1 - probability(d.Lost, d.Lost+d.Gained)/2
	}
	return d.Differ() - probability(d.Lost, d.Lost+d.Gained)
}

// Many is from how many discordant examples on the chi-square of [Discordant.DifferMany] is close to the exact test.
const Many = 25

// DifferMany is McNemar's chi-square statistic with one degree of freedom, and its two-sided p-value, with the correction for
// continuity. It is for [Many] discordant examples or more.
// Source: A. L. Edwards, "Note on the correction for continuity in testing the significance of the difference between correlated proportions", 1948.
func (d Discordant) DifferMany() (chiSquare, p float64) {
	if d.Lost == d.Gained {
		return 0, 1
	}
	difference := math.Abs(float64(d.Lost-d.Gained)) - 1
	chiSquare = difference * difference / float64(d.Lost+d.Gained)
	return chiSquare, math.Erfc(math.Sqrt(chiSquare / 2))
}

// tail is the chance of at least k heads in n throws of a coin.
func tail(k, n int64) float64 {
	if 2*k <= n { // the sum begins at its largest term
		return 1 - tail(n-k+1, n)
	}
	sum := 0.0
	for term := probability(k, n); k <= n && term > sum*1e-17; k++ {
		sum += term
		term *= float64(n-k) / float64(k+1)
	}
	return min(1, sum)
}

// probability of exactly k heads in n throws of a coin.
func probability(k, n int64) float64 {
	if k < 0 || k > n {
		return 0
	}
	all, _ := math.Lgamma(float64(n) + 1)
	heads, _ := math.Lgamma(float64(k) + 1)
	tails, _ := math.Lgamma(float64(n-k) + 1)
	return math.Exp(all - heads - tails - float64(n)*math.Ln2)
}
