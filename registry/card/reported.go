package card

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// ResultsDir is the folder of a repository whose YAML files state results of evaluations.
const ResultsDir = ".eval_results"

// Limits of what a model may say of itself.
const (
	maxReported     = 256 // evaluations of one file
	maxMetricsTried = 4096
)

// IsResults reports whether a file of a repository is one that [ReportedFile] reads.
func IsResults(name string) bool {
	dir, file := path.Split(name)
	return dir == ResultsDir+"/" && (path.Ext(file) == ".yaml" || path.Ext(file) == ".yml")
}

// Reported reads the evaluations that a model card states under model-index in its front matter. What cannot be used is left out and
// named in problem; the rest is kept. One evaluation is made of the results of one task on the same data from the same source:
//
//	dataset.type, else dataset.name      the dataset's name
//	dataset.revision, split              the same
//	dataset.config, else args as a text  the slice, unless it is "default" or the dataset's own name
//	metrics[].type                       the metric's name, in lower case; the name where that says more, as in "Precision Macro"
//	metrics[].value                      a number, or a text that is one; "93.2%" is 0.932 where the metric is known to lie below 1
//	source.url, source.name              the source's address, the harness
//
// What is said to be verified is as much the model's own word as the rest.
// Source: https://github.com/huggingface/hub-docs, modelcard.md; huggingface_hub, repocard_data.py.
func Reported(data []byte) (evaluations []registry.EvaluationInput, problem string) {
	s := split(data)
	if !s.found || !bytes.Contains(s.front, []byte("model-index")) {
		return nil, ""
	}
	v, _ := readYAML(s.front, s.line+1) // what is wrong with the YAML is Parse's to say
	index, ok := v.field("model-index")
	if !ok {
		return nil, ""
	}
	var r reporter
	for _, model := range r.items(index.value, "model-index") {
		results, ok := model.field("results")
		if !ok {
			r.problem(model.line, "an entry of model-index has no results")
			continue
		}
		for _, result := range r.items(results.value, "results") {
			r.result(result)
		}
	}
	return r.done()
}

// ReportedFile reads the evaluations that a file of [ResultsDir] states: a list of entries, each the value of one task of a benchmark.
//
//	dataset.id        the dataset's name
//	dataset.revision  the same
//	dataset.task_id   the slice
//	value             the metric "score"
//	source            as in [Reported]
//
// The date, the notes and the token of verification are not read.
// Source: https://huggingface.co/docs/hub/eval-results.
func ReportedFile(data []byte) (evaluations []registry.EvaluationInput, problem string) {
	v, flaws := readYAML(data, 1)
	r := reporter{cardReader: cardReader{problems: flaws}}
	if len(flaws) == 0 || v.kind != null {
		for _, entry := range r.items(v, "the file") {
			r.entry(entry)
		}
	}
	return r.done()
}

// reporter gathers evaluations.
type reporter struct {
	cardReader
	found []reported
	tried int // metrics
	full  bool
}

// reported is one evaluation as it grows.
type reported struct {
	key   string // of what belongs together
	line  int
	input registry.EvaluationInput
}

// done checks what was gathered as if a client had sent it.
func (r *reporter) done() ([]registry.EvaluationInput, string) {
	var evaluations []registry.EvaluationInput
	for _, found := range r.found {
		if len(found.input.Metrics) == 0 {
			continue // there is a problem for each
		}
		if _, err := registry.NewEvaluation(found.input, "", "", "", time.Time{}); err != nil {
			r.problem(found.line, "the evaluation on %s is left out: %v", clip(found.input.Dataset.Name), err)
			continue
		}
		evaluations = append(evaluations, found.input)
	}
	return evaluations, join(r.problems)
}

// items are the mappings of a list.
func (r *reporter) items(v value, name string) []value {
	if v.kind != list {
		r.problem(v.line, "%s is %s where a list belongs", name, v.kind)
		return nil
	}
	items := slices.Clone(v.list)
	return slices.DeleteFunc(items, func(item value) bool {
		if item.kind != mapping {
			r.problem(item.line, "%s holds %s where fields with values belong", name, item.kind)
		}
		return item.kind != mapping
	})
}

// within is a field that is a mapping; without it all its fields are missing.
func (r *reporter) within(v value, name string) value {
	f, ok := v.field(name)
	if !ok || f.value.kind == null {
		return value{line: v.line}
	}
	if f.value.kind != mapping {
		r.problem(f.line, "%s is %s where fields with values belong", name, f.value.kind)
	}
	return f.value
}

// result reads one entry of results in a model-index.
func (r *reporter) result(v value) {
	dataset := r.within(v, "dataset")
	title := r.text(dataset, "name")
	in := registry.EvaluationInput{Dataset: registry.Dataset{
		Name: cmp.Or(r.text(dataset, "type"), title), Revision: r.text(dataset, "revision"), Split: r.text(dataset, "split"),
	}}
	slice, args := r.text(dataset, "config"), ""
	if f, ok := dataset.field("args"); ok {
		if f.value.kind == text && slice == "" {
			slice = r.text(dataset, "args") // what config was called before
		} else {
			args = string(encode(f.value))
		}
	}
	if slice != "default" && slice != in.Dataset.Name && slice != title {
		in.Dataset.Slice = slice
	}
	if in.Dataset.Name == "" {
		r.problem(v.line, "a result names no dataset; give it a dataset with a type")
		return
	}
	r.source(v, &in)
	to := r.evaluation(v.line, in, r.text(r.within(v, "task"), "type"), args)
	metrics, ok := v.field("metrics")
	if !ok || to == nil {
		if !ok {
			r.problem(v.line, "the result on %s has no metrics", clip(in.Dataset.Name))
		}
		return
	}
	for _, m := range r.items(metrics.value, "metrics") {
		r.metric(to, m)
	}
}

// metric reads one entry of metrics.
func (r *reporter) metric(to *reported, v value) {
	kind, title := MetricName(r.text(v, "type")), MetricName(r.text(v, "name"))
	name := cmp.Or(kind, title)
	if strings.HasPrefix(title, kind+"_") {
		name = title
	}
	if _, taken := to.input.Metrics[name]; taken && title != "" {
		name = title
	}
	if name == "" {
		r.problem(v.line, "a metric has no type")
		return
	}
	f, _ := v.field("value")
	r.put(to, cmp.Or(f.line, v.line), name, f.value)
}

// entry reads one entry of a file of results.
func (r *reporter) entry(v value) {
	dataset := r.within(v, "dataset")
	in := registry.EvaluationInput{Dataset: registry.Dataset{
		Name: r.text(dataset, "id"), Revision: r.text(dataset, "revision"), Slice: r.text(dataset, "task_id"),
	}}
	if in.Dataset.Name == "" {
		r.problem(v.line, "an entry names no dataset; give it a dataset with an id")
		return
	}
	r.source(v, &in)
	to := r.evaluation(v.line, in)
	if to == nil {
		return
	}
	f, _ := v.field("value")
	r.put(to, cmp.Or(f.line, v.line), "score", f.value)
}

// source reads where a result comes from.
func (r *reporter) source(v value, in *registry.EvaluationInput) {
	source := r.within(v, "source")
	if name := r.text(source, "name"); name != "" {
		in.Harness = &registry.Harness{Name: name}
	}
	address := r.text(source, "url")
	if address == "" {
		return
	}
	if u, err := url.Parse(address); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		f, _ := source.field("url")
		r.problem(f.line, "the url of a source is not an http or https address")
		return
	}
	in.SourceURL = address
}

// evaluation is the one that belongs to in and more, a new one where there is none; nil when there are too many.
func (r *reporter) evaluation(line int, in registry.EvaluationInput, more ...string) *reported {
	harness := ""
	if in.Harness != nil {
		harness = in.Harness.Name
	}
	key := fmt.Sprintf("%q", append([]string{in.Dataset.Name, in.Dataset.Revision, in.Dataset.Split, in.Dataset.Slice, in.SourceURL, harness}, more...))
	if i := slices.IndexFunc(r.found, func(f reported) bool { return f.key == key }); i >= 0 {
		return &r.found[i]
	}
	if len(r.found) == maxReported {
		if !r.full {
			r.problem(line, "there are more than %d evaluations; the rest is left out", maxReported)
		}
		r.full = true
		return nil
	}
	in.Metrics = map[string]float64{}
	r.found = append(r.found, reported{key, line, in})
	return &r.found[len(r.found)-1]
}

// put adds a metric, or the reason why it is left out.
func (r *reporter) put(to *reported, line int, name string, v value) {
	if r.tried++; r.tried > maxMetricsTried {
		if r.tried == maxMetricsTried+1 {
			r.problem(line, "there are more than %d metrics; the rest is left out", maxMetricsTried)
		}
		return
	}
	number, ok := numberOf(name, v)
	before, taken := to.input.Metrics[name]
	switch {
	case !ok && v.kind == text:
		r.problem(line, "%s is %q, which is no number; it is left out", clip(name), clip(v.text()))
		return
	case !ok:
		r.problem(line, "%s has %s where a number belongs; it is left out", clip(name), v.kind)
		return
	case taken && before != number:
		r.problem(line, "%s on %s is given twice, as %v and as %v; the first counts", clip(name), clip(to.input.Dataset.Name), before, number)
		return
	case !taken && len(to.input.Metrics) == registry.MaxMetrics:
		r.problem(line, "%s is left out: an evaluation has at most %d metrics", clip(name), registry.MaxMetrics)
		return
	}
	if err := registry.CheckMetric(name, number); err != nil {
		advice := "it is left out"
		if lowest, known := registry.LowestOf(name); known && number > 1 && number <= 100 && number/100 >= lowest {
			advice = fmt.Sprintf("it is left out; a share of %v %% is written as %v", number, percent(number))
		}
		r.problem(line, "%v; %s", err, advice)
		return
	}
	to.input.Metrics[name] = number
}

// percentage is a text of a number of hundredths.
var percentage = regexp.MustCompile(`^([0-9]{1,3}(?:\.[0-9]{1,15})?) ?%$`)

// numberOf is the finite number that a value is or spells. "93.2%" is one only where the metric is a share: of others nobody can tell
// whether they are counted in hundredths.
func numberOf(name string, v value) (float64, bool) {
	switch s := v.scalar.(type) {
	case int64:
		return float64(s), true
	case uint64:
		return float64(s), true
	case float64:
		return s, true
	case string:
		s = strings.TrimSpace(s)
		if m := percentage.FindStringSubmatch(s); m != nil {
			if _, known := registry.LowestOf(name); !known {
				return 0, false
			}
			number, err := strconv.ParseFloat(m[1], 64)
			return percent(number), err == nil
		}
		number, err := strconv.ParseFloat(s, 64)
		return number, err == nil && !math.IsNaN(number) && !math.IsInf(number, 0)
	}
	return 0, false
}

// percent is the share that so many hundredths are, as people would write it: 93.2 is 0.932 and not 0.9320000000000001.
func percent(number float64) float64 {
	return math.Round(number*1e10) / 1e12
}

var underscores = regexp.MustCompile(`__+`)

// MetricName makes a metric's name of what people call it: "Exact Match" is exact_match.
func MetricName(text string) string {
	key := strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', strings.ContainsRune("_.@/-", r):
			return r
		}
		return '_'
	}, text)
	return strings.Trim(underscores.ReplaceAllString(key, "_"), "_")
}
