package gate

import (
	"time"

	"github.com/herdbook/herdbook/registry"
)

// evaluationObject is the JSON form of an evaluation, as object would make it, without the way over JSON: there can be thousands of them.
// Counts of its confusion matrix are floating-point numbers, as in JSON, and samples is an integer. Intervals are left to lower and upper, so that
// many evaluations do not use up the limits, and which examples were right to worse_than.
func evaluationObject(e *registry.Evaluation) map[string]any {
	fields := map[string]any{}
	if e == nil {
		return fields
	}
	text := func(in map[string]any, name, value string) {
		if value != "" {
			in[name] = value
		}
	}
	dataset := map[string]any{"name": e.Dataset.Name}
	text(dataset, "uri", e.Dataset.URI)
	text(dataset, "revision", e.Dataset.Revision)
	text(dataset, "digest", string(e.Dataset.Digest))
	text(dataset, "split", e.Dataset.Split)
	text(dataset, "slice", e.Dataset.Slice)
	fields["id"], fields["commit"], fields["dataset"] = e.ID, string(e.Commit), dataset
	fields["self_reported"], fields["recorded_by"], fields["recorded_at"] = e.SelfReported, e.RecordedBy, e.RecordedAt.Format(time.RFC3339Nano)
	text(fields, "evaluator", e.Evaluator)
	text(fields, "source_url", e.SourceURL)
	if m := metrics(e); len(m) > 0 {
		fields["metrics"] = m
	}
	if e.Samples != nil {
		fields["samples"] = *e.Samples
	}
	if e.Confusion != nil {
		fields["confusion"] = confusionObject(e.Confusion)
	}
	if len(e.Classes) > 0 {
		fields["classes"] = classesObject(e.Classes)
	}
	if h := e.Harness; h != nil {
		harness := map[string]any{"name": h.Name}
		text(harness, "digest", string(h.Digest))
		fields["harness"] = harness
	}
	if o := e.Outcomes; o != nil {
		fields["outcomes"] = map[string]any{"examples": string(o.Examples), "count": float64(o.Count)}
	}
	if len(e.Attachments) > 0 {
		fields["attachments"] = list(e.Attachments)
	}
	return fields
}

func confusionObject(c *registry.Confusion) map[string]any {
	labels, matrix := make([]any, len(c.Labels)), make([]any, len(c.Matrix))
	for i, l := range c.Labels {
		labels[i] = l
	}
	for i, counts := range c.Matrix {
		row := make([]any, len(counts))
		for j, n := range counts {
			row[j] = float64(n)
		}
		matrix[i] = row
	}
	fields := map[string]any{"labels": labels, "matrix": matrix}
	if c.Positive != "" {
		fields["positive"] = c.Positive
	}
	return fields
}

func classesObject(classes map[string]registry.ClassMetrics) map[string]any {
	fields := make(map[string]any, len(classes))
	for label, c := range classes {
		class := map[string]any{"support": float64(c.Support)}
		for name, value := range map[string]*float64{"precision": c.Precision, "recall": c.Recall, "specificity": c.Specificity, "f1": c.F1} {
			if value != nil {
				class[name] = *value
			}
		}
		fields[label] = class
	}
	return fields
}
