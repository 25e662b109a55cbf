package main

import (
	"fmt"
	"math"
	"slices"
)

// goal is a limit that Herdbook is to stay within.
type goal struct {
	what  string
	steps []string // of several, the worst counts
	limit float64
	// of gives the values, one for each round, that are held against the limit.
	of func(f figures, step string) []float64
	// text writes a value.
	text func(float64) string
}

// goals are those of the plan: each is a ratio within one run, so that it holds on any machine.
var goals = []goal{
	{"LFS push: CPU beside the floor", []string{"lfs-push"}, 1.1, cpuRatio, timesText},
	{"LFS pull: CPU beside the floor", []string{"lfs-pull"}, 1.3, cpuRatio, timesText},
	{"LFS push of many objects: wall time beside the floor", []string{"lfs-push-many"}, 1.35, wallRatio, timesText},
	{"pushed again: bytes of objects sent", []string{"lfs-push-again", "lfs-push-many-again"}, 0, bodyBytes, bytesOf},
	{"OCI push: CPU beside the floor", []string{"oci-push"}, 1.1, cpuRatio, timesText},
	{"OCI push: CPU beside distribution", []string{"oci-push"}, 0.7, cpuRatioTo("distribution"), timesText},
	{"OCI pull: CPU beside the floor", []string{"oci-pull"}, 1.3, cpuRatio, timesText},
	{"OCI pull: CPU beside distribution", []string{"oci-pull"}, 0.3, cpuRatioTo("distribution"), timesText},
	{"OCI push of many layers: wall time beside distribution", []string{"oci-push-many"}, 0.2, wallRatioTo("distribution"), timesText},
	{"OCI manifest: CPU beside the floor", []string{"oci-manifest"}, 1.5, cpuRatio, timesText},
	{"OCI manifest: CPU beside distribution", []string{"oci-manifest"}, 1.0 / 7, cpuRatioTo("distribution"), timesText},
	{"git clone: CPU beside git http-backend", []string{"git-clone"}, 0.6, cpuRatio, timesText},
	{"8 clones at once: CPU beside git http-backend", []string{"git-clone-8"}, 0.5, cpuRatio, timesText},
	{"git push: CPU beside git http-backend", []string{"git-push"}, 1.4, cpuRatio, timesText},
	{"git push of one commit: CPU above git http-backend", []string{"git-push-one"}, 0.020, cpuAbove, secondsText},
	{"git ls-remote: CPU beside git http-backend", []string{"git-ls-remote"}, 0.2, cpuRatio, timesText},
	{"evaluations by 64 clients to 64 models: wall time of each", []string{"evaluations"}, 1.0 / 2000, wallEach, secondsText},
	{"evaluation of a commit that has 10,000: wall time beside its first", []string{"evaluations-last"}, 2, wallRatioToStep("evaluations-first"), timesText},
	{
		"anonymous memory for any one transfer, git children apart",
		[]string{"lfs-push", "lfs-pull", "oci-push", "oci-pull", "git-push", "git-push-one", "git-clone"},
		40 << 20, peakBytes, bytesOf,
	},
}

// beside gives the figures of a step of the judged server and of another; none when one was not measured.
func beside(f figures, step, other string) (ours, theirs *series) {
	if ours, theirs = f.of(step, judged), f.of(step, other); ours == nil || theirs == nil {
		return &series{}, &series{}
	}
	return ours, theirs
}

// baseOf is the server whose figure of a step is the measure.
func baseOf(f figures, step string) string {
	if ours := f.of(step, judged); ours != nil {
		return ours.Base
	}
	return ""
}

func cpuRatio(f figures, step string) []float64 { return cpuRatioTo(baseOf(f, step))(f, step) }

func wallRatio(f figures, step string) []float64 { return wallRatioTo(baseOf(f, step))(f, step) }

func cpuRatioTo(other string) func(figures, string) []float64 {
	return func(f figures, step string) []float64 {
		ours, theirs := beside(f, step, other)
		return ratios(ours.cpu(), theirs.cpu())
	}
}

func wallRatioTo(other string) func(figures, string) []float64 {
	return func(f figures, step string) []float64 {
		ours, theirs := beside(f, step, other)
		return ratios(ours.wall(), theirs.wall())
	}
}

func wallEach(f figures, step string) []float64 {
	if ours := f.of(step, judged); ours != nil {
		return ours.wall()
	}
	return nil
}

func wallRatioToStep(first string) func(figures, string) []float64 {
	return func(f figures, step string) []float64 {
		before, after := f.of(first, judged), f.of(step, judged)
		if before == nil || after == nil {
			return nil
		}
		return ratios(after.wall(), before.wall())
	}
}

func cpuAbove(f figures, step string) []float64 {
	ours, theirs := beside(f, step, baseOf(f, step))
	return differences(ours.cpu(), theirs.cpu())
}

func bodyBytes(f figures, step string) []float64 {
	if ours := f.of(step, judged); ours != nil {
		return []float64{float64(ours.BodyBytes)}
	}
	return nil
}

// peakBytes is the most of all rounds: a median would hide it.
func peakBytes(f figures, step string) []float64 {
	if ours := f.of(step, judged); ours != nil && len(ours.Samples) > 0 {
		return []float64{float64(ours.peak())}
	}
	return nil
}

// verdict is how a goal was met.
type verdict struct {
	Goal     string  `json:"goal"`
	Limit    float64 `json:"limit"`
	Measured spread  `json:"measured"`
	Step     string  `json:"step"` // that was the worst
	Met      bool    `json:"met"`
	text     func(float64) string
}

// judge holds the figures against the goals. What was not measured has no verdict.
func judge(f figures, goals []goal) []verdict {
	var all []verdict
	for _, g := range goals {
		worst := verdict{Goal: g.what, Limit: g.limit, text: g.text}
		for _, step := range g.steps {
			if m := spreadOf(g.of(f, step)); m.N > 0 && (worst.Step == "" || m.Median > worst.Measured.Median) {
				worst.Measured, worst.Step = m, step
			}
		}
		if worst.Step != "" {
			worst.Met = worst.Measured.Median <= g.limit
			all = append(all, worst)
		}
	}
	return all
}

func timesText(x float64) string { return fmt.Sprintf("%.2f x", x) }

func bytesOf(x float64) string { return bytesText(int64(math.Round(x))) }

// bytesText writes a number of bytes with three digits at most.
func bytesText(n int64) string {
	const step = 1024
	units := []string{"B", "KiB", "MiB", "GiB"}
	x := float64(n)
	for len(units) > 1 && math.Abs(x) >= step {
		x, units = x/step, units[1:]
	}
	return short(x) + " " + units[0]
}

// secondsText writes a time.
func secondsText(x float64) string {
	switch a := math.Abs(x); {
	case a == 0:
		return "0"
	case a < 1e-3:
		return short(x*1e6) + " us"
	case a < 1:
		return short(x*1e3) + " ms"
	}
	return short(x) + " s"
}

// short writes three digits, and more only before the point.
func short(x float64) string {
	decimals := 2
	for limit := 10.0; decimals > 0 && math.Abs(x) >= limit; limit *= 10 {
		decimals--
	}
	text := fmt.Sprintf("%.*f", decimals, x)
	if decimals > 0 {
		for text[len(text)-1] == '0' {
			text = text[:len(text)-1]
		}
		if text[len(text)-1] == '.' {
			text = text[:len(text)-1]
		}
	}
	return text
}

// stepNames are all that --only takes.
func stepNames() []string {
	var names []string
	for _, sc := range scenarios {
		names = append(names, sc.name)
		for _, st := range sc.steps {
			names = append(names, st.name)
		}
	}
	return slices.Clip(names)
}
