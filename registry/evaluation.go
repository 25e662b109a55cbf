package registry

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
)

// Limits of one evaluation.
const (
	MaxMetrics     = 256
	MaxAttachments = 64
	maxText        = 1024 // bytes of a name, a URI or the like
)

// Dataset names the data that a version was evaluated on, exactly enough to compare like
// with like.
type Dataset struct {
	Name     string        `json:"name"`
	URI      string        `json:"uri,omitempty"`
	Revision string        `json:"revision,omitempty"`
	Digest   digest.Digest `json:"digest,omitempty"`
	Split    string        `json:"split,omitempty"`
	Slice    string        `json:"slice,omitempty"` // a named part of the data, such as "night"
}

// Harness names the program that evaluated.
type Harness struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest,omitempty"`
}

// Attachment is a report, a plot or an explanation that belongs to an evaluation.
type Attachment struct {
	Name      string        `json:"name"`
	MediaType string        `json:"media_type,omitempty"`
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes,omitempty"`
}

// EvaluationInput is what a client records: metrics, a confusion matrix, or both; and the outcome of each example, if it likes.
type EvaluationInput struct {
	Dataset     Dataset            `json:"dataset"`
	Confusion   *Confusion         `json:"confusion,omitempty"`
	Metrics     map[string]float64 `json:"metrics,omitempty"`
	Samples     *int64             `json:"samples,omitempty"`
	Outcomes    *Outcomes          `json:"outcomes,omitempty"`
	Harness     *Harness           `json:"harness,omitempty"`
	Evaluator   string             `json:"evaluator,omitempty"`
	SourceURL   string             `json:"source_url,omitempty"`
	Attachments []Attachment       `json:"attachments,omitempty"`
}

// Evaluation is a record of how well a commit did on a dataset. Metrics holds what was given
// and what the server computed from the matrix, Intervals how far that can be trusted: an evaluation
// that was recorded before intervals were has none, see [Evaluation.Interval]. It never changes once recorded.
type Evaluation struct {
	ID           string                  `json:"id"`
	Commit       ObjectID                `json:"commit"`
	Dataset      Dataset                 `json:"dataset"`
	Confusion    *Confusion              `json:"confusion,omitempty"`
	Classes      map[string]ClassMetrics `json:"classes,omitempty"`
	Metrics      map[string]float64      `json:"metrics"`
	Intervals    map[string]Interval     `json:"intervals,omitempty"` // by metric
	Samples      *int64                  `json:"samples,omitempty"`
	Outcomes     *Outcomes               `json:"outcomes,omitempty"`
	Harness      *Harness                `json:"harness,omitempty"`
	Evaluator    string                  `json:"evaluator,omitempty"`
	SourceURL    string                  `json:"source_url,omitempty"`
	Attachments  []Attachment            `json:"attachments,omitempty"`
	SelfReported bool                    `json:"self_reported"`
	RecordedBy   string                  `json:"recorded_by"`
	RecordedAt   time.Time               `json:"recorded_at"`
}

var metricName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.@/-]{0,63}$`)

// tolerance is how far a given metric may lie from the one that its matrix yields.
const tolerance = 1e-9

// NewEvaluation checks what a client gave and computes the rest. id, actor and at are the
// server's. The error is a [FieldError] that names the field as the client spells it.
func NewEvaluation(in EvaluationInput, commit ObjectID, id, actor string, at time.Time) (Evaluation, error) {
	e := Evaluation{
		ID: id, Commit: commit, Dataset: in.Dataset, Confusion: in.Confusion, Metrics: map[string]float64{},
		Samples: in.Samples, Outcomes: in.Outcomes, Harness: in.Harness, Evaluator: in.Evaluator, SourceURL: in.SourceURL,
		Attachments: in.Attachments, RecordedBy: actor, RecordedAt: at,
	}
	for _, check := range []func() error{in.checkTexts, in.checkMetrics, in.checkSamples, in.checkAttachments} {
		if err := check(); err != nil {
			return Evaluation{}, err
		}
	}
	if in.Confusion == nil && len(in.Metrics) == 0 && in.Outcomes == nil {
		return Evaluation{}, Invalid("metrics", "an evaluation has metrics, a confusion matrix, or both, or the outcomes of its examples")
	}
	for name, value := range in.Metrics {
		e.Metrics[name] = value
	}
	if in.Confusion != nil {
		if err := e.addConfusion(in); err != nil {
			return Evaluation{}, err
		}
	}
	if in.Outcomes != nil {
		if err := in.Outcomes.check(&in); err != nil {
			return Evaluation{}, err
		}
		if count := in.Outcomes.Count; in.Confusion == nil {
			e.Samples, e.Metrics["accuracy"] = &count, float64(in.Outcomes.Correct.Ones())/float64(count)
		}
	}
	e.Intervals = e.intervals()
	return e, nil
}

// addConfusion checks the matrix and adds what it yields.
func (e *Evaluation) addConfusion(in EvaluationInput) error {
	if err := in.Confusion.Validate(); err != nil {
		return err
	}
	counted := in.Confusion.Samples()
	if in.Samples != nil && *in.Samples != counted {
		return Invalid("samples", "samples is %d and the matrix counts %d examples", *in.Samples, counted)
	}
	computed := in.Confusion.Metrics()
	for _, name := range sortedKeys(computed) {
		given, ok := in.Metrics[name]
		if ok && math.Abs(given-computed[name]) > tolerance {
			return Invalid("metrics."+name, "%s is given as %v and the confusion matrix yields %v", name, given, computed[name])
		}
		e.Metrics[name] = computed[name]
	}
	for _, name := range in.Confusion.yields() {
		_, given := in.Metrics[name]
		if _, defined := computed[name]; given && !defined {
			return Invalid("metrics."+name, "%s is given and the confusion matrix leaves it undefined: its denominator is 0", name)
		}
	}
	e.Samples, e.Classes = &counted, in.Confusion.Classes()
	return nil
}

func (in *EvaluationInput) checkTexts() error {
	if in.Dataset.Name == "" {
		return Invalid("dataset.name", "an evaluation names its dataset")
	}
	texts := map[string]string{
		"dataset.name": in.Dataset.Name, "dataset.uri": in.Dataset.URI, "dataset.revision": in.Dataset.Revision,
		"dataset.split": in.Dataset.Split, "dataset.slice": in.Dataset.Slice,
		"evaluator": in.Evaluator, "source_url": in.SourceURL,
	}
	if in.Harness != nil {
		if in.Harness.Name == "" {
			return Invalid("harness.name", "a harness has a name")
		}
		texts["harness.name"] = in.Harness.Name
		if err := checkDigest("harness.digest", in.Harness.Digest); err != nil {
			return err
		}
	}
	for _, field := range sortedKeys(texts) {
		if why := badText(texts[field]); why != "" {
			return Invalid(field, "%s %s", field, why)
		}
	}
	if in.SourceURL != "" {
		u, err := url.Parse(in.SourceURL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return Invalid("source_url", "source_url is not an http or https address")
		}
	}
	return checkDigest("dataset.digest", in.Dataset.Digest)
}

func (in *EvaluationInput) checkMetrics() error {
	if len(in.Metrics) > MaxMetrics {
		return Invalid("metrics", "an evaluation has at most %d metrics, got %d", MaxMetrics, len(in.Metrics))
	}
	for _, name := range sortedKeys(in.Metrics) {
		if err := CheckMetric(name, in.Metrics[name]); err != nil {
			return err
		}
	}
	return nil
}

// CheckMetric says why an evaluation cannot have a metric of that name and value, or nil. The error is a [FieldError].
func CheckMetric(name string, value float64) error {
	if !metricName.MatchString(name) {
		return Invalid("metrics", "%q is not a metric's name: a letter, then at most 63 letters, digits or any of _ . @ / -", clip(name))
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return Invalid("metrics."+name, "%s is not a finite number", name)
	}
	if low, known := lowest[name]; known && (value < low || value > 1) {
		return Invalid("metrics."+name, "%s is %v, and lies between %v and 1", name, value, low)
	}
	return nil
}

// LowestOf is the lowest value of a metric whose highest is 1, if its range is known.
func LowestOf(name string) (low float64, known bool) {
	low, known = lowest[name]
	return low, known
}

// lowest value of the metrics whose range is known; the highest is 1.
var lowest = map[string]float64{
	"accuracy": 0, "balanced_accuracy": 0, "precision": 0, "recall": 0, "specificity": 0, "f1": 0, "mcc": -1,
	"precision_macro": 0, "recall_macro": 0, "f1_macro": 0, "precision_micro": 0, "recall_micro": 0, "f1_micro": 0,
	"precision_weighted": 0, "recall_weighted": 0, "f1_weighted": 0, "auc": 0, "roc_auc": 0,
}

func (in *EvaluationInput) checkSamples() error {
	if in.Samples != nil && (*in.Samples < 0 || *in.Samples > maxSamples) {
		return Invalid("samples", "samples is a count between 0 and %d", int64(maxSamples))
	}
	return nil
}

func (in *EvaluationInput) checkAttachments() error {
	if len(in.Attachments) > MaxAttachments {
		return Invalid("attachments", "an evaluation has at most %d attachments, got %d", MaxAttachments, len(in.Attachments))
	}
	for i, a := range in.Attachments {
		field := fmt.Sprintf("attachments[%d]", i)
		if a.Name == "" {
			return Invalid(field+".name", "an attachment has a name")
		}
		if why := badText(a.Name); why != "" {
			return Invalid(field+".name", "the name of an attachment %s", why)
		}
		if a.Digest == "" {
			return Invalid(field+".digest", "an attachment has a digest")
		}
		if err := checkDigest(field+".digest", a.Digest); err != nil {
			return err
		}
		if why := badText(a.MediaType); why != "" {
			return Invalid(field+".media_type", "a media type %s", why)
		}
		if a.SizeBytes < 0 || a.SizeBytes > maxSamples {
			return Invalid(field+".size_bytes", "size_bytes is a count between 0 and %d", int64(maxSamples))
		}
	}
	return nil
}

func checkDigest(field string, d digest.Digest) error {
	if d == "" {
		return nil
	}
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return Invalid(field, "%s is not a digest of the form sha256:<64 hex digits>", field)
	}
	return nil
}

// badText says what is wrong with a short text, or nothing.
func badText(s string) string {
	if len(s) > maxText {
		return fmt.Sprintf("is longer than %d bytes", maxText)
	}
	for _, r := range s {
		if unicode.IsControl(r) || r == '\ufffd' {
			return "holds a control character or is not UTF-8"
		}
	}
	return ""
}

// Headline is the evaluation that speaks for a commit where there is room for one: the newest
// that is not self-reported, one of a whole dataset before one of a slice. It is nil when there
// is none. Evaluations are in the order in which they were recorded.
func Headline(evaluations []Evaluation) *Evaluation {
	var found *Evaluation
	for i := range evaluations {
		e := &evaluations[i]
		if !e.SelfReported && (found == nil || e.Dataset.Slice == "" || found.Dataset.Slice != "") {
			found = e
		}
	}
	return found
}
