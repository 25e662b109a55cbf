package registry_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

var (
	someDigest = digest.Digest("sha256:" + strings.Repeat("ab", 32))
	someTime   = time.Date(2026, 3, 4, 5, 6, 7, 890_000_000, time.UTC)
)

// fullInput is an evaluation with every field.
func fullInput() registry.EvaluationInput {
	return registry.EvaluationInput{
		Dataset:   registry.Dataset{Name: "calls-2026", URI: "s3://data/calls", Revision: "9f3c", Digest: someDigest, Split: "test", Slice: "night"},
		Confusion: &registry.Confusion{Labels: []string{"speech", "silence"}, Positive: "speech", Matrix: [][]int64{{80, 10}, {20, 90}}},
		Metrics:   map[string]float64{"latency_p95_ms": 11.5}, Samples: ptr(int64(200)),
		Harness: &registry.Harness{Name: "vad-eval", Digest: someDigest}, Evaluator: "jenkins", SourceURL: "https://ci.example/job/7",
		Attachments: []registry.Attachment{{Name: "report.html", MediaType: "text/html", Digest: someDigest, SizeBytes: 7}},
	}
}

func TestNewEvaluation(t *testing.T) {
	in := fullInput()
	got, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
	if err != nil {
		t.Fatalf("NewEvaluation: %v", err)
	}
	metrics := in.Confusion.Metrics()
	metrics["latency_p95_ms"] = 11.5
	want := registry.Evaluation{
		ID: "e1", Commit: someCommit, Dataset: in.Dataset, Confusion: in.Confusion, Classes: in.Confusion.Classes(), Metrics: metrics, Samples: ptr(int64(200)),
		Intervals: got.Intervals, Harness: in.Harness, Evaluator: "jenkins", SourceURL: "https://ci.example/job/7", Attachments: in.Attachments, RecordedBy: "ada", RecordedAt: someTime,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("NewEvaluation (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fullInput(), in); diff != "" {
		t.Errorf("NewEvaluation changed what it was given:\n%s", diff)
	}
	if got.SelfReported {
		t.Error("an evaluation that a client records is self-reported, want not")
	}
}

func TestNewEvaluationFields(t *testing.T) {
	long := strings.Repeat("x", 1025)
	many := map[string]float64{}
	for i := range registry.MaxMetrics + 1 {
		many[fmt.Sprint("m", i)] = 1
	}
	tests := []struct {
		name   string
		change func(*registry.EvaluationInput)
		field  string // of the error
	}{
		{"every field", func(*registry.EvaluationInput) {}, "no error"},
		{"a matrix alone", func(in *registry.EvaluationInput) { in.Metrics, in.Samples = nil, nil }, "no error"},
		{"metrics alone", func(in *registry.EvaluationInput) { in.Confusion = nil }, "no error"},
		{"only a dataset's name and a metric", func(in *registry.EvaluationInput) {
			*in = registry.EvaluationInput{Dataset: registry.Dataset{Name: "d"}, Metrics: map[string]float64{"m": 0}}
		}, "no error"},
		{"neither metrics nor matrix", func(in *registry.EvaluationInput) { in.Metrics, in.Confusion = nil, nil }, "metrics"},
		{"empty metrics", func(in *registry.EvaluationInput) { in.Metrics, in.Confusion = map[string]float64{}, nil }, "metrics"},

		{"no dataset", func(in *registry.EvaluationInput) { in.Dataset.Name = "" }, "dataset.name"},
		{"a text of full length", func(in *registry.EvaluationInput) { in.Dataset.Name = long[1:] }, "no error"},
		{"a long dataset name", func(in *registry.EvaluationInput) { in.Dataset.Name = long }, "dataset.name"},
		{"a long dataset address", func(in *registry.EvaluationInput) { in.Dataset.URI = long }, "dataset.uri"},
		{"a long revision", func(in *registry.EvaluationInput) { in.Dataset.Revision = long }, "dataset.revision"},
		{"a long split", func(in *registry.EvaluationInput) { in.Dataset.Split = long }, "dataset.split"},
		{"a long slice", func(in *registry.EvaluationInput) { in.Dataset.Slice = long }, "dataset.slice"},
		{"a long evaluator", func(in *registry.EvaluationInput) { in.Evaluator = long }, "evaluator"},
		{"a long harness", func(in *registry.EvaluationInput) { in.Harness.Name = long }, "harness.name"},
		{"a long source", func(in *registry.EvaluationInput) { in.SourceURL = "https://ci.example/" + long }, "source_url"},
		{"a NUL", func(in *registry.EvaluationInput) { in.Dataset.Name = "a\x00b" }, "dataset.name"},
		{"a line break", func(in *registry.EvaluationInput) { in.Dataset.Split = "a\nb" }, "dataset.split"},
		{"an escape", func(in *registry.EvaluationInput) { in.Evaluator = "\x1b[31mred" }, "evaluator"},
		{"a delete character", func(in *registry.EvaluationInput) { in.Dataset.Slice = "\x7f" }, "dataset.slice"},
		{"a control character above ASCII", func(in *registry.EvaluationInput) { in.Dataset.Slice = "a\u0085b" }, "dataset.slice"},
		{"not UTF-8", func(in *registry.EvaluationInput) { in.Dataset.Revision = "\xff" }, "dataset.revision"},
		{"letters of any language", func(in *registry.EvaluationInput) { in.Dataset.Name = "Anrufe für 模型 🙂" }, "no error"},

		{"a harness without a name", func(in *registry.EvaluationInput) { in.Harness.Name = "" }, "harness.name"},
		{"no harness", func(in *registry.EvaluationInput) { in.Harness = nil }, "no error"},
		{"a bad digest of the harness", func(in *registry.EvaluationInput) { in.Harness.Digest = "sha256:1" }, "harness.digest"},
		{"a bad digest of the dataset", func(in *registry.EvaluationInput) { in.Dataset.Digest = "9f3c" }, "dataset.digest"},
		{"another algorithm", func(in *registry.EvaluationInput) {
			in.Dataset.Digest = digest.Digest("sha512:" + strings.Repeat("ab", 64))
		}, "dataset.digest"},
		{"an upper-case digest", func(in *registry.EvaluationInput) {
			in.Dataset.Digest = digest.Digest("sha256:" + strings.Repeat("AB", 32))
		}, "dataset.digest"},

		{"a source by http", func(in *registry.EvaluationInput) { in.SourceURL = "http://ci.example" }, "no error"},
		{"a source that is a script", func(in *registry.EvaluationInput) { in.SourceURL = "javascript:alert(1)" }, "source_url"},
		{"a source without a host", func(in *registry.EvaluationInput) { in.SourceURL = "https:///job/7" }, "source_url"},
		{"a source that is a path", func(in *registry.EvaluationInput) { in.SourceURL = "/job/7" }, "source_url"},
		{"a source that is no address", func(in *registry.EvaluationInput) { in.SourceURL = "https://[" }, "source_url"},

		{"not a number", func(in *registry.EvaluationInput) { in.Metrics["loss"] = math.NaN() }, "metrics.loss"},
		{"infinity", func(in *registry.EvaluationInput) { in.Metrics["loss"] = math.Inf(1) }, "metrics.loss"},
		{"minus infinity", func(in *registry.EvaluationInput) { in.Metrics["loss"] = math.Inf(-1) }, "metrics.loss"},
		{"not a number where the matrix has one", func(in *registry.EvaluationInput) { in.Metrics["f1"] = math.NaN() }, "metrics.f1"},
		{"a name with any allowed character", func(in *registry.EvaluationInput) { in.Metrics["Recall_at.k@5/x-1"] = 1 }, "no error"},
		{"a name of full length", func(in *registry.EvaluationInput) { in.Metrics["m"+strings.Repeat("x", 63)] = 1 }, "no error"},
		{"a long name", func(in *registry.EvaluationInput) { in.Metrics["m"+strings.Repeat("x", 64)] = 1 }, "metrics"},
		{"an empty name", func(in *registry.EvaluationInput) { in.Metrics[""] = 1 }, "metrics"},
		{"a name that begins with a digit", func(in *registry.EvaluationInput) { in.Metrics["1st"] = 1 }, "metrics"},
		{"a name with a space", func(in *registry.EvaluationInput) { in.Metrics["a b"] = 1 }, "metrics"},
		{"a name with a line break", func(in *registry.EvaluationInput) { in.Metrics["a\n"] = 1 }, "metrics"},
		{"too many metrics", func(in *registry.EvaluationInput) { in.Metrics = many }, "metrics"},
		{"a share above 1", func(in *registry.EvaluationInput) { in.Confusion, in.Metrics["f1"] = nil, 1.01 }, "metrics.f1"},
		{"a percentage", func(in *registry.EvaluationInput) { in.Confusion, in.Metrics["accuracy"] = nil, 85 }, "metrics.accuracy"},
		{"a share below 0", func(in *registry.EvaluationInput) { in.Metrics["auc"] = -0.1 }, "metrics.auc"},
		{"a coefficient below 0", func(in *registry.EvaluationInput) { in.Confusion, in.Metrics["mcc"] = nil, -1 }, "no error"},
		{"a coefficient below -1", func(in *registry.EvaluationInput) { in.Confusion, in.Metrics["mcc"] = nil, -1.1 }, "metrics.mcc"},

		{"the matrix's own number", func(in *registry.EvaluationInput) { in.Metrics["precision"] = 0.8 }, "no error"},
		{"a number as near as may be", func(in *registry.EvaluationInput) { in.Metrics["precision"] = 0.8 + 0.9e-9 }, "no error"},
		{"a number as near as may be from below", func(in *registry.EvaluationInput) { in.Metrics["precision"] = 0.8 - 0.9e-9 }, "no error"},
		{"a number just too far", func(in *registry.EvaluationInput) { in.Metrics["precision"] = 0.8 + 1.1e-9 }, "metrics.precision"},
		{"a number just too far from below", func(in *registry.EvaluationInput) { in.Metrics["precision"] = 0.8 - 1.1e-9 }, "metrics.precision"},
		{"precision that is the accuracy", func(in *registry.EvaluationInput) { in.Metrics["precision"] = 0.85 }, "metrics.precision"},
		{"a macro mean that differs", func(in *registry.EvaluationInput) { in.Metrics["f1_macro"] = 0.5 }, "metrics.f1_macro"},
		{"a metric that the matrix leaves undefined", func(in *registry.EvaluationInput) {
			in.Confusion.Matrix, in.Samples, in.Metrics["precision"] = [][]int64{{0, 5}, {0, 5}}, nil, 1
		}, "metrics.precision"},
		{"a metric that the matrix leaves undefined as 0", func(in *registry.EvaluationInput) {
			in.Confusion.Matrix, in.Samples, in.Metrics["mcc"] = [][]int64{{0, 5}, {0, 5}}, nil, 0
		}, "metrics.mcc"},
		{"a metric that a matrix without a positive label does not yield", func(in *registry.EvaluationInput) {
			in.Confusion.Positive, in.Metrics["precision"] = "", 0.1
		}, "no error"},

		{"samples that differ", func(in *registry.EvaluationInput) { in.Samples = ptr(int64(199)) }, "samples"},
		{"negative samples", func(in *registry.EvaluationInput) { in.Confusion, in.Samples = nil, ptr(int64(-1)) }, "samples"},
		{"no samples", func(in *registry.EvaluationInput) { in.Confusion, in.Samples = nil, ptr(int64(0)) }, "no error"},
		{"as many samples as may be", func(in *registry.EvaluationInput) { in.Confusion, in.Samples = nil, ptr(int64(1<<53)) }, "no error"},
		{"too many samples", func(in *registry.EvaluationInput) { in.Confusion, in.Samples = nil, ptr(int64(1<<53+1)) }, "samples"},

		{"a bad matrix", func(in *registry.EvaluationInput) { in.Confusion.Matrix[1][0] = -1 }, "confusion.matrix[1][0]"},
		{"a bad label", func(in *registry.EvaluationInput) { in.Confusion.Labels[1] = "speech" }, "confusion.labels[1]"},

		{"an attachment without a name", func(in *registry.EvaluationInput) { in.Attachments[0].Name = "" }, "attachments[0].name"},
		{"an attachment with a line break", func(in *registry.EvaluationInput) { in.Attachments[0].Name = "a\r\nb" }, "attachments[0].name"},
		{"an attachment without a digest", func(in *registry.EvaluationInput) { in.Attachments[0].Digest = "" }, "attachments[0].digest"},
		{"an attachment with a bad digest", func(in *registry.EvaluationInput) { in.Attachments[0].Digest = "sha256:xyz" }, "attachments[0].digest"},
		{"an attachment with a long media type", func(in *registry.EvaluationInput) { in.Attachments[0].MediaType = long }, "attachments[0].media_type"},
		{"an attachment with a line break in its media type", func(in *registry.EvaluationInput) {
			in.Attachments[0].MediaType = "text/html\r\nSet-Cookie: a"
		}, "attachments[0].media_type"},
		{"an attachment of negative size", func(in *registry.EvaluationInput) { in.Attachments[0].SizeBytes = -1 }, "attachments[0].size_bytes"},
		{"a second attachment that is bad", func(in *registry.EvaluationInput) {
			in.Attachments = append(in.Attachments, registry.Attachment{Name: "b"})
		}, "attachments[1].digest"},
		{"as many attachments as may be", func(in *registry.EvaluationInput) {
			in.Attachments = slices.Repeat(in.Attachments, registry.MaxAttachments)
		}, "no error"},
		{"too many attachments", func(in *registry.EvaluationInput) {
			in.Attachments = slices.Repeat(in.Attachments, registry.MaxAttachments+1)
		}, "attachments"},
	}
	for _, tt := range tests {
		in := fullInput()
		tt.change(&in)
		e, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
		if got := fieldOf(err); got != tt.field {
			t.Errorf("NewEvaluation of %s: error on %s (%v), want %s", tt.name, got, err, tt.field)
		}
		if err != nil && !cmp.Equal(e, registry.Evaluation{}) {
			t.Errorf("NewEvaluation of %s gives %+v beside its error, want nothing", tt.name, e)
		}
	}
}

// What the matrix yields stands in the record, not what a client rounded; and samples are its sum.
func TestNewEvaluationTakesTheMatrix(t *testing.T) {
	in := fullInput()
	in.Metrics["precision"], in.Samples = 0.8+0.9e-9, nil
	e, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
	if err != nil || e.Metrics["precision"] != 0.8 || e.Samples == nil || *e.Samples != 200 {
		t.Errorf("NewEvaluation = precision %v, samples %v, %v, want 0.8 and 200", e.Metrics["precision"], e.Samples, err)
	}
	in.Confusion.Matrix = [][]int64{{0, 5}, {0, 5}}
	delete(in.Metrics, "precision")
	e, err = registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
	if _, ok := e.Metrics["precision"]; ok || err != nil {
		t.Errorf("metrics of a matrix without a positive prediction = %v, %v, want no precision", e.Metrics, err)
	}
	data, err := json.Marshal(e)
	if err != nil || strings.Contains(string(data), "NaN") || !strings.Contains(string(data), `"self_reported":false`) {
		t.Errorf("JSON of it = %s, %v, want no NaN and self_reported false", data, err)
	}
}

func FuzzNewEvaluation(f *testing.F) {
	full, err := json.Marshal(fullInput())
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(full), `{"dataset":{"name":"d"},"outcomes":{"examples":"` + string(someDigest) + `","count":10,"correct":"/wM="}}`, `{"dataset":{"name":"d"},"outcomes":{}}`,
		`{"dataset":{"name":"d"},"outcomes":{"correct":"/wM"}}`, `{"dataset":{"name":"d"},"metrics":{"accuracy":0.857},"samples":7}`, `{}`, `{"dataset":{"name":"d"},"metrics":{"f1":0.5}}`, `{"dataset":{"name":"d"},"metrics":{"f1":1e999}}`,
		`{"dataset":{"name":"d"},"confusion":{"labels":["a","b"],"matrix":[[1,2],[3,4]]},"metrics":{"accuracy":0.5}}`,
		`{"dataset":{"name":"d"},"confusion":{"labels":["a","b"],"positive":"a","matrix":[[0,0],[3,4]]},"samples":7}`,
		`{"dataset":{"name":"\u0000"},"samples":-1}`, `{"dataset":{"name":"d"},"metrics":{"x":1},"attachments":[{"name":"a","digest":"sha256:","size_bytes":-1}]}`,
	} {
		f.Add([]byte(seed))
	}
	fields := []string{"dataset", "confusion", "metrics", "samples", "harness", "evaluator", "source_url", "attachments", "outcomes"}
	f.Fuzz(func(t *testing.T, data []byte) {
		var in registry.EvaluationInput
		if json.Unmarshal(data, &in) != nil {
			return
		}
		e, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
		if err != nil {
			root := strings.FieldsFunc(fieldOf(err), func(r rune) bool { return r == '.' || r == '[' })[0]
			if !slices.Contains(fields, root) {
				t.Errorf("NewEvaluation(%s): the error %v is on %q, which is no field", data, err, fieldOf(err))
			}
			return
		}
		if len(e.Metrics) == 0 || e.Dataset.Name == "" || e.SelfReported || e.ID != "e1" || e.Commit != someCommit || e.RecordedBy != "ada" || !e.RecordedAt.Equal(someTime) {
			t.Errorf("NewEvaluation(%s) = %+v, want metrics, a dataset, and the server's own fields", data, e)
		}
		for name, value := range e.Metrics {
			if math.IsNaN(value) || math.IsInf(value, 0) {
				t.Errorf("NewEvaluation(%s) has %s = %v", data, name, value)
			}
		}
		for name, in := range e.Intervals {
			if value, ok := e.Metrics[name]; !ok || !(in.Lower <= value+1e-12 && value-1e-12 <= in.Upper && in.Lower < in.Upper && in.Upper <= 1) {
				t.Errorf("NewEvaluation(%s) has %s = %v with the interval %+v", data, name, value, in)
			}
		}
		if e.Confusion != nil && (e.Samples == nil || *e.Samples != e.Confusion.Samples() || len(e.Classes) != len(e.Confusion.Labels)) {
			t.Errorf("NewEvaluation(%s) has samples %v and %d classes, want those of its matrix", data, e.Samples, len(e.Classes))
		}
		kept, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("NewEvaluation(%s) gives what JSON cannot hold: %v", data, err)
		}
		var back registry.Evaluation
		if err := json.Unmarshal(kept, &back); err != nil {
			t.Fatalf("what was kept of %s cannot be read: %v", data, err)
		}
		if again, err := json.Marshal(back); err != nil || string(again) != string(kept) {
			t.Errorf("what was kept of %s reads back as another:\n%s\n%s", data, kept, again)
		}
		// What the server computed, given again by a client, is no contradiction.
		in.Metrics = e.Metrics
		if len(in.Metrics) <= registry.MaxMetrics {
			if second, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime); err != nil || !cmp.Equal(second.Metrics, e.Metrics) {
				t.Errorf("NewEvaluation with the computed metrics of %s = %v, %v, want %v", data, second.Metrics, err, e.Metrics)
			}
		}
	})
}

func TestHeadline(t *testing.T) {
	e := func(id, slice string, selfReported bool) registry.Evaluation {
		return registry.Evaluation{ID: id, Dataset: registry.Dataset{Name: "d", Slice: slice}, SelfReported: selfReported}
	}
	tests := []struct {
		name        string
		evaluations []registry.Evaluation
		want        string
	}{
		{"none", nil, ""},
		{"the newest", []registry.Evaluation{e("1", "", false), e("2", "", false)}, "2"},
		{"a whole dataset before a newer slice", []registry.Evaluation{e("1", "", false), e("2", "night", false)}, "1"},
		{"the newest slice when there are only those", []registry.Evaluation{e("1", "day", false), e("2", "night", false)}, "2"},
		{"never self-reported", []registry.Evaluation{e("1", "night", false), e("2", "", true)}, "1"},
		{"only self-reported", []registry.Evaluation{e("1", "", true)}, ""},
	}
	for _, tt := range tests {
		got := ""
		if found := registry.Headline(tt.evaluations); found != nil {
			got = found.ID
		}
		if got != tt.want {
			t.Errorf("Headline of %s = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func BenchmarkNewEvaluation(b *testing.B) {
	in := fullInput()
	for b.Loop() {
		if _, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime); err != nil {
			b.Fatal(err)
		}
	}
}
