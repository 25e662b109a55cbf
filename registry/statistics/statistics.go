// Package statistics says how far a measured metric can be trusted: confidence intervals of what a
// confusion matrix yields, and tests whether one version is worse than another beyond noise.
//
// A matrix is taken for a sample: its examples were drawn independently, and each cell counts how
// often that pair of true and predicted label came up (a multinomial sample). A proportion has
// Wilson's interval. Any other metric gets the variance that the delta method gives, and its interval
// is Wilson's for as many examples as a proportion of the same variance would have: its effective
// number of examples. So no interval leaves the range of its metric, and none has the width 0: where
// every example agrees, the delta method knows no variance, and an interval from that alone would
// claim certainty.
//
// All is computed by formula, so that the same counts always give the same numbers.
//
// Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927;
// L. D. Brown, T. T. Cai, A. DasGupta, "Interval estimation for a binomial proportion", 2001, section 3.1.1;
// A. Agresti, "Categorical data analysis", 2nd edition, 2002, section 14.1 (the delta method for multinomial counts);
// K. Takahashi et al., "Confidence interval for micro-averaged F1 and macro-averaged F1 scores", 2022;
// K. F. Y. Lam, V. Gopal, J. Qian, "Confidence intervals for the F1 score: a comparison of four methods", 2023
// (Wilson's interval for F1, of which "Wilson direct" is the one here);
// N. Dean, M. Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys", 2015
// (Wilson's interval with an effective sample size).
package statistics

import "math"

// Interval is a confidence interval; both ends belong to it.
type Interval struct {
	Lower, Upper float64
}

// Estimate is a metric as it was measured on a sample. The zero Estimate is none.
type Estimate struct {
	Value float64

	// Variance of the metric by the delta method. It is 0 where every example agrees.
	Variance float64

	// Examples is the effective number of examples, above 0: a proportion of so many examples is as
	// uncertain as the metric. For a proportion it is the number of examples that it is a share of.
	Examples float64

	// Signed says that the metric lies between -1 and 1; otherwise it lies between 0 and 1.
	Signed bool
}

// Proportion is the share of successes among trials. Successes need not be a whole number, because a
// rounded share is often all that is known. It is none when trials is not above 0 or successes is not
// between 0 and trials.
func Proportion(successes, trials float64) (Estimate, bool) {
	if !(trials > 0) || !(successes >= 0) || !(successes <= trials) || math.IsInf(trials, 0) {
		return Estimate{}, false
	}
	p := successes / trials
	return Estimate{Value: p, Variance: p * (1 - p) / trials, Examples: trials}, true
}

// share is the value on the scale from 0 to 1, and the length of the metric's own scale.
func (e Estimate) share() (p, length float64) {
	if e.Signed {
		return (1 + e.Value) / 2, 2
	}
	return e.Value, 1
}

// Interval is the two-sided interval at a level between 0 and 1, such as 0.95: of intervals made in
// this way about that share hold the true value. It lies in the metric's range, holds the value, and
// is never of width 0 at a level above 0.
//
// With p on the scale from 0 to 1 and n the effective number of examples it is Wilson's interval:
//
//	(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
//
// Source: Brown, Cai, DasGupta 2001, equation 4.
func (e Estimate) Interval(level float64) Interval {
	p, length := e.share()
	z := quantile(level)
	shift := e.Value - length*p
	if math.IsInf(z, 1) {
		return Interval{shift, shift + length}
	}
	n := e.Examples
	centre := (p + z*z/(2*n)) / (1 + z*z/n)
	half := z / (1 + z*z/n) * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	// The ends are exact where the formula is: 0 of n begins at 0, n of n ends at 1.
	lower, upper := max(0, min(p, centre-half)), min(1, max(p, centre+half))
	if p <= 0 {
		lower = 0
	}
	if p >= 1 {
		upper = 1
	}
	return Interval{shift + length*lower, shift + length*upper}
}

// quantile is how many standard deviations about the mean hold that share of a normal distribution.
func quantile(level float64) float64 {
	switch {
	case !(level > 0):
		return 0
	case level >= 1:
		return math.Inf(1)
	}
	return math.Sqrt2 * math.Erfinv(level)
}

// spread is the variance that tests use. It is that of a proportion of the effective number of
// examples, at a share to which two examples of each kind were added, so that a sample in which every
// example agrees is not taken for certain.
// Source: A. Agresti, B. A. Coull, "Approximate is better than exact for interval estimation of binomial proportions", 1998.
func (e Estimate) spread() float64 {
	p, length := e.share()
	p = (p*e.Examples + added) / (e.Examples + 2*added)
	return length * length * p * (1 - p) / e.Examples
}

// added is how many examples of each kind are added to a share where its variance is looked at.
const added = 2

// Lower is the p-value of a one-sided test whether the metric of after is lower than that of before:
// how likely so large a drop is, or a larger one, when both are equally good. The two were measured
// on samples that know nothing of each other. On the same examples both tend to be right and wrong
// together, so that the test finds fewer drops than there are; see [Discordant.Lower] for those.
//
// Source: the z test of two independent estimates, as in A. Agresti, B. Caffo, "Simple and effective confidence
// intervals for proportions and differences of proportions result from adding two successes and two failures", 2000.
func Lower(before, after Estimate) float64 {
	z := (before.Value - after.Value) / math.Sqrt(before.spread()+after.spread())
	return math.Erfc(z/math.Sqrt2) / 2
}
