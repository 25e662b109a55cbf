package card

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

// The model index of a card as the Hub documents it, with two results for the same data.
const indexed = `license: mit
model-index:
- name: fraud
  results:
  - task: {type: audio-classification, name: Audio Classification}
    dataset: {name: Calls 2026, type: acme/calls-2026, config: night, split: test, revision: 9f3c, args: {few_shot: 5}}
    metrics:
    - {type: accuracy, value: 0.85, name: Accuracy, verified: true, verifyToken: abc}
    - {type: precision, value: 0.8, name: Precision Macro}
    - {type: precision, value: 0.7, name: Precision Micro}
    source: {name: Open Leaderboard, url: "https://example.org/board"}
  - task: {type: audio-classification}
    dataset: {name: Calls 2026, type: acme/calls-2026, config: night, split: test, revision: 9f3c, args: {few_shot: 5}}
    metrics:
    - {type: F1, value: "93.2%"}
    source: {name: Open Leaderboard, url: "https://example.org/board"}
`

func TestReported(t *testing.T) {
	calls := registry.Dataset{Name: "calls"}
	// of makes a model-index with one metric.
	of := func(metric string) string {
		return fenced("model-index:\n- name: m\n  results:\n  - dataset: {type: calls}\n    metrics:\n    - " + metric + "\n")
	}
	with := func(dataset string) string {
		return fenced("model-index:\n- name: m\n  results:\n  - dataset: " + dataset + "\n    metrics: [{type: f1, value: 0.5}]\n")
	}
	f1 := map[string]float64{"f1": 0.5}
	tests := []struct {
		name, card string
		want       []registry.EvaluationInput
		problem    string
	}{
		{"no card", "", nil, ""},
		{"no front matter", "model-index:\n", nil, ""},
		{"no model index", fenced("license: mit # model-index\n"), nil, ""},
		{"as on the Hub", fenced(indexed), []registry.EvaluationInput{{
			Dataset: registry.Dataset{Name: "acme/calls-2026", Revision: "9f3c", Split: "test", Slice: "night"},
			Metrics: map[string]float64{"accuracy": 0.85, "precision_macro": 0.8, "precision_micro": 0.7, "f1": 0.932},
			Harness: &registry.Harness{Name: "Open Leaderboard"}, SourceURL: "https://example.org/board",
		}}, ""},
		{"a name where there is no type", with("{name: calls}"), []registry.EvaluationInput{{Dataset: calls, Metrics: f1}}, ""},
		{"a config that says nothing", with("{type: calls, name: Calls, config: default}"), []registry.EvaluationInput{{Dataset: calls, Metrics: f1}}, ""},
		{"args that are a config", with("{type: calls, args: night}"), []registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls", Slice: "night"}, Metrics: f1}}, ""},
		{"args that are the dataset", with("{type: calls, args: calls}"), []registry.EvaluationInput{{Dataset: calls, Metrics: f1}}, ""},
		{"a number in quotes", of(`{type: wer, value: " 12.5 "}`), []registry.EvaluationInput{{Dataset: calls, Metrics: map[string]float64{"wer": 12.5}}}, ""},
		{"a percentage", of(`{type: accuracy, value: 7 %}`), []registry.EvaluationInput{{Dataset: calls, Metrics: map[string]float64{"accuracy": 0.07}}}, ""},
		{"a name with spaces", of(`{name: "Exact  Match", value: 3}`), []registry.EvaluationInput{{Dataset: calls, Metrics: map[string]float64{"exact_match": 3}}}, ""},
		{"a percentage of what may lie above 1", of(`{type: wer, value: "12.5%"}`), nil, `line 7: wer is "12.5%", which is no number; it is left out`},
		{"a text", of(`{type: accuracy, value: "high"}`), nil, `line 7: accuracy is "high", which is no number; it is left out`},
		{"not a number", of(`{type: accuracy, value: .nan}`), nil, "line 7: accuracy has nothing where a number belongs; it is left out"},
		{"NaN in quotes", of(`{type: accuracy, value: "NaN"}`), nil, `line 7: accuracy is "NaN", which is no number; it is left out`},
		{"no value", of(`{type: accuracy}`), nil, "line 7: accuracy has nothing where a number belongs; it is left out"},
		{"a mapping as the value", of(`{type: accuracy, value: {a: 1}}`), nil, "line 7: accuracy has a mapping where a number belongs; it is left out"},
		{"out of range", of(`{type: accuracy, value: 93.2}`), nil, "line 7: accuracy is 93.2, and lies between 0 and 1; it is left out; a share of 93.2 % is written as 0.932"},
		{"far out of range", of(`{type: accuracy, value: -3}`), nil, "line 7: accuracy is -3, and lies between 0 and 1; it is left out"},
		{
			"one out of range, one not", of("{type: accuracy, value: 93.2}\n    - {type: f1, value: 0.5}"),
			[]registry.EvaluationInput{{Dataset: calls, Metrics: f1}},
			"line 7: accuracy is 93.2, and lies between 0 and 1; it is left out; a share of 93.2 % is written as 0.932",
		},
		{
			"one metric twice", of("{type: f1, value: 0.5}\n    - {type: f1, value: 0.6}"),
			[]registry.EvaluationInput{{Dataset: calls, Metrics: f1}},
			"line 8: f1 on calls is given twice, as 0.5 and as 0.6; the first counts",
		},
		{"the same twice", of("{type: f1, value: 0.5}\n    - {type: f1, value: 0.5}"), []registry.EvaluationInput{{Dataset: calls, Metrics: f1}}, ""},
		{"a metric without a name", of("{value: 1}"), nil, "line 7: a metric has no type"},
		{"a name that is none", of("{type: 1f, value: 1}"), nil, `line 7: "1f" is not a metric's name: a letter, then at most 63 letters, digits or any of _ . @ / -; it is left out`},
		{"no dataset", fenced("model-index:\n- results:\n  - metrics: [{type: f1, value: 1}]\n"), nil, "line 4: a result names no dataset; give it a dataset with a type"},
		{"no metrics", fenced("model-index:\n- results:\n  - dataset: {type: calls}\n"), nil, "line 4: the result on calls has no metrics"},
		{"no results", fenced("model-index:\n- name: m\n"), nil, "line 3: an entry of model-index has no results"},
		{"no list", fenced("model-index: yes\n"), nil, "line 2: model-index is a text where a list belongs"},
		{"texts in the list", fenced("model-index: [a]\n"), nil, "line 2: model-index holds a text where fields with values belong"},
		{"a dataset that is a text", fenced("model-index:\n- results:\n  - dataset: calls\n    metrics: []\n"), nil, "line 4: dataset is a text where fields with values belong; line 4: a result names no dataset; give it a dataset with a type"},
		{"a revision that is a number", with("{type: calls, revision: 12}"), []registry.EvaluationInput{{Dataset: calls, Metrics: f1}}, "line 5: revision holds a number; put it in quotes if it is meant as text"},
		{
			"a source that is no address", fenced("model-index:\n- results:\n  - dataset: {type: calls}\n    metrics: [{type: f1, value: 0.5}]\n    source: {url: 'javascript:alert(1)'}\n"),
			[]registry.EvaluationInput{{Dataset: calls, Metrics: f1}},
			"line 6: the url of a source is not an http or https address",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, problem := Reported([]byte(tt.card))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Reported(%q) (-want +got):\n%s", tt.card, diff)
			}
			if problem != tt.problem {
				t.Errorf("Reported(%q): problem %q, want %q", tt.card, problem, tt.problem)
			}
		})
	}
}

func TestReportedFile(t *testing.T) {
	tests := []struct {
		name, file string
		want       []registry.EvaluationInput
		problem    string
	}{
		{"empty", "", nil, "line 1: the file is nothing where a list belongs"},
		{
			"as on the Hub",
			`- dataset:
    id: SWE-bench/SWE-bench_Verified
    task_id: swe_bench_%_resolved
    revision: abc
  value: 75.80
  date: "2026-01-15"
  verifyToken: x.y.z
  source:
    url: https://www.swebench.com/
    name: SWE-Bench official evaluation
    user: ada
  notes: high reasoning
- dataset: {id: gsm8k, task_id: default}
  value: 0.5
`,
			[]registry.EvaluationInput{
				{
					Dataset: registry.Dataset{Name: "SWE-bench/SWE-bench_Verified", Revision: "abc", Slice: "swe_bench_%_resolved"}, Metrics: map[string]float64{"score": 75.8},
					Harness: &registry.Harness{Name: "SWE-Bench official evaluation"}, SourceURL: "https://www.swebench.com/",
				},
				{Dataset: registry.Dataset{Name: "gsm8k", Slice: "default"}, Metrics: map[string]float64{"score": 0.5}},
			},
			"",
		},
		{"no dataset", "- value: 1\n", nil, "line 1: an entry names no dataset; give it a dataset with an id"},
		{"no value", "- dataset: {id: a}\n", nil, "line 1: score has nothing where a number belongs; it is left out"},
		{"a percentage", "- dataset: {id: a}\n  value: 50%\n", nil, `line 2: score is "50%", which is no number; it is left out`},
		{"a mapping", "dataset: {id: a}\n", nil, "line 1: the file is a mapping where a list belongs"},
		{"no YAML", "\t- a\n", nil, "line 1: this is not YAML (found character that cannot start any token); check indentation and quotes here and in the lines around it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, problem := ReportedFile([]byte(tt.file))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ReportedFile(%q) (-want +got):\n%s", tt.file, diff)
			}
			if problem != tt.problem {
				t.Errorf("ReportedFile(%q): problem %q, want %q", tt.file, problem, tt.problem)
			}
		})
	}
}

func TestReportedIsBounded(t *testing.T) {
	var entries, metrics strings.Builder
	for i := range maxReported + 2 {
		fmt.Fprintf(&entries, "- {dataset: {id: d%d}, value: 1}\n", i)
	}
	got, problem := ReportedFile([]byte(entries.String()))
	if len(got) != maxReported || problem != "line 257: there are more than 256 evaluations; the rest is left out" {
		t.Errorf("ReportedFile of %d evaluations = %d of them, %q", maxReported+2, len(got), problem)
	}
	for i := range registry.MaxMetrics + 1 {
		fmt.Fprintf(&metrics, "    - {type: m%d, value: 1}\n", i)
	}
	got, problem = Reported([]byte(fenced("model-index:\n- results:\n  - dataset: {type: calls}\n    metrics:\n" + metrics.String())))
	if len(got) != 1 || len(got[0].Metrics) != registry.MaxMetrics || problem != "line 262: m256 is left out: an evaluation has at most 256 metrics" {
		t.Errorf("Reported of %d metrics = %d evaluations, %q", registry.MaxMetrics+1, len(got), problem)
	}
}

func TestIsResults(t *testing.T) {
	for name, want := range map[string]bool{
		".eval_results/a.yaml": true, ".eval_results/a.yml": true, ".eval_results/a.json": false, ".eval_results/b/a.yaml": false,
		"eval_results/a.yaml": false, "x/.eval_results/a.yaml": false, ".eval_results": false,
	} {
		if got := IsResults(name); got != want {
			t.Errorf("IsResults(%q) = %v, want %v", name, got, want)
		}
	}
}

func FuzzReported(f *testing.F) {
	for _, seed := range []string{
		"", fenced(indexed), fenced("model-index: [&a {results: [*a]}]\n"), fenced("model-index:\n- results:\n  - dataset: {type: a}\n    metrics: [{type: f1, value: '1e400'}]\n"),
		"- dataset: {id: a, task_id: b}\n  value: 1\n", "- dataset: {id: a}\n  value: '99.99999%'\n", "- *a\n", "- {dataset: {id: \"\\0\"}, value: 18446744073709551615}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, read := range map[string]func([]byte) ([]registry.EvaluationInput, string){"Reported": Reported, "ReportedFile": ReportedFile} {
			evaluations, problem := read(data)
			if !utf8.ValidString(problem) || len(problem) > 4096 {
				t.Errorf("%s: problem %q is not a short sentence", name, problem)
			}
			if len(evaluations) > maxReported {
				t.Errorf("%s gave %d evaluations", name, len(evaluations))
			}
			for _, in := range evaluations {
				if _, err := registry.NewEvaluation(in, "", "", "", time.Time{}); err != nil {
					t.Errorf("%s gave an evaluation that the server refuses: %v", name, err)
				}
			}
		}
	})
}

// BenchmarkReported reads a card with a hundred results.
func BenchmarkReported(b *testing.B) {
	var results strings.Builder
	for i := range 100 {
		fmt.Fprintf(&results, "  - dataset: {type: d%d, split: test}\n    metrics: [{type: accuracy, value: 0.5}, {type: f1, value: 0.6}]\n", i)
	}
	data := []byte(fenced("model-index:\n- results:\n" + results.String()))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if got, problem := Reported(data); len(got) != 100 || problem != "" {
			b.Fatalf("Reported = %d evaluations, %q", len(got), problem)
		}
	}
}
