package results_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/results"
)

func count(n int64) *int64 { return &n }

const (
	// As GET /api/2.0/mlflow/runs/get answers.
	mlflowRun = `{"run": {"info": {"run_id": "d0e1", "status": "FINISHED"},
 "data": {"metrics": [
   {"key": "accuracy_score", "value": 0.5, "timestamp": "1700000000001", "step": "0"},
   {"key": "accuracy_score", "value": 0.9, "timestamp": "1700000000000", "step": "1"},
   {"key": "loss", "value": "NaN", "timestamp": 1700000000000, "step": 0},
   {"key": "example_count", "value": 200, "timestamp": 1700000000000, "step": 0}],
  "params": [{"key": "lr", "value": "0.1"}], "tags": []},
 "inputs": {"dataset_inputs": [
   {"dataset": {"name": "train", "digest": "aa", "source_type": "local", "source": "{\"uri\": \"train.csv\"}"}, "tags": [{"key": "mlflow.data.context", "value": "training"}]},
   {"dataset": {"name": "calls", "digest": "9f3c", "source_type": "s3", "source": "{\"uri\": \"s3://data/calls\"}"}, "tags": [{"key": "mlflow.data.context", "value": "eval"}]}]}}}`
	mlflowMetrics = `{"accuracy_score": 0.9, "f1_score": 0.8, "log_loss": 1.25, "roc_auc": NaN, "example_count": 200, "toxicity/v1/mean": 0.01}`
	savedByHF     = `{"accuracy": 0.9, "f1": [0.8, 0.9], "dataset": "calls", "model": "bert", "hyperparams": {"lr": 0.1}, "_timestamp": "2026-01-01T00:00:00", "_evaluate_version": "0.4.3"}`
	lmEval        = `{"results": {
  "hellaswag": {"alias": "hellaswag", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.6, "acc_norm_stderr,none": "N/A", "sample_len": 10},
  "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5, "alias": "gsm8k"},
  "empty": {"alias": "empty"}},
 "versions": {"hellaswag": 1.0, "gsm8k": 3}, "n-shot": {"hellaswag": 0, "gsm8k": 5}, "n-samples": {"gsm8k": {"original": 1319, "effective": 100}},
 "configs": {"hellaswag": {"validation_split": "validation"}, "gsm8k": {"test_split": "test", "validation_split": "x"}}, "git_hash": "abc123", "date": 1700000000.5}`
	stated = "---\nmodel-index:\n- results:\n  - dataset: {type: calls}\n    metrics: [{type: f1, value: 0.5}, {type: accuracy, value: 93}]\n---\n# Model\n"
)

func TestRead(t *testing.T) {
	harness := func(name string) *registry.Harness { return &registry.Harness{Name: name} }
	binary := &registry.Confusion{Labels: []string{"0", "1"}, Positive: "1", Matrix: [][]int64{{1, 1}, {0, 2}}}
	tests := []struct {
		name, file string
		options    results.Options
		format     results.Format
		want       []registry.EvaluationInput
		warnings   []string
	}{
		{
			"our own", `{"dataset": {"name": "calls"}, "metrics": {"F1": 0.5}}`,
			results.Options{},
			results.Herdbook,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{"F1": 0.5}}},
			nil,
		},
		{
			"a list of our own, with what was given beside it", "\ufeff" + ` [{"dataset": {"name": "calls", "slice": "night"}, "metrics": {"f1": 0.5}}, {"dataset": {"name": "calls"}, "metrics": {"f1": 0.6}}]`,
			results.Options{Dataset: registry.Dataset{Name: "calls-2026", Revision: "9f3c", Split: "test"}},
			results.Herdbook,
			[]registry.EvaluationInput{
				{Dataset: registry.Dataset{Name: "calls-2026", Revision: "9f3c", Split: "test", Slice: "night"}, Metrics: map[string]float64{"f1": 0.5}},
				{Dataset: registry.Dataset{Name: "calls-2026", Revision: "9f3c", Split: "test"}, Metrics: map[string]float64{"f1": 0.6}},
			},
			nil,
		},
		{
			"a run of MLflow", mlflowRun,
			results.Options{},
			results.MLflow,
			[]registry.EvaluationInput{{
				Dataset: registry.Dataset{Name: "calls", Revision: "9f3c", URI: "s3://data/calls"}, Metrics: map[string]float64{"accuracy": 0.9},
				Samples: count(200), Harness: harness("mlflow"),
			}},
			[]string{"loss is not a finite number; it is left out"},
		},
		{
			"a run as Python has it", `{"info": {}, "data": {"metrics": {"rmse": 3}, "params": {}, "tags": {}}, "inputs": {"dataset_inputs": [{"dataset": {"name": "calls", "digest": "d", "source": "s3://x"}}]}}`,
			results.Options{},
			results.MLflow,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls", Revision: "d", URI: "s3://x"}, Metrics: map[string]float64{"rmse": 3}, Harness: harness("mlflow")}},
			nil,
		},
		{
			"metrics of MLflow", mlflowMetrics,
			results.Options{Dataset: registry.Dataset{Name: "calls"}},
			results.MLflow,
			[]registry.EvaluationInput{{
				Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{"accuracy": 0.9, "f1": 0.8, "log_loss": 1.25, "toxicity/v1/mean": 0.01},
				Samples: count(200), Harness: harness("mlflow"),
			}},
			[]string{"roc_auc is not a finite number; it is left out"},
		},
		{
			"what evaluate.save wrote", savedByHF,
			results.Options{},
			results.HuggingFace,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{"accuracy": 0.9}, Harness: harness("evaluate 0.4.3")}},
			[]string{"f1 is a list, one value for each class perhaps; it is left out"},
		},
		{
			"the LM Evaluation Harness", lmEval,
			results.Options{},
			results.LMEval,
			[]registry.EvaluationInput{
				{
					Dataset: registry.Dataset{Name: "gsm8k", Revision: "3", Split: "test"}, Samples: count(100), Harness: harness("lm-evaluation-harness abc123"),
					Metrics: map[string]float64{"exact_match_strict_match": 0.25, "exact_match_flexible_extract": 0.5, "n_shot": 5},
				},
				{
					Dataset: registry.Dataset{Name: "hellaswag", Revision: "1", Split: "validation"}, Harness: harness("lm-evaluation-harness abc123"),
					Metrics: map[string]float64{"acc": 0.5, "acc_stderr": 0.01, "acc_norm": 0.6, "n_shot": 0},
				},
			},
			nil,
		},
		{
			"a model card", stated,
			results.Options{},
			results.ModelCard,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{"f1": 0.5}}},
			[]string{"line 5: accuracy is 93, and lies between 0 and 1; it is left out; a share of 93 % is written as 0.93"},
		},
		{
			"a file of results", "- dataset: {id: swe, task_id: all}\n  value: 75.8\n",
			results.Options{},
			results.EvalResults,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "swe", Slice: "all"}, Metrics: map[string]float64{"score": 75.8}}},
			nil,
		},
		{
			"a table", "id,y_true,y_pred\na,0,0\nb,0,1\nc,1,1\nd,1,1\n",
			results.Options{Dataset: registry.Dataset{Name: "calls"}},
			results.CSV,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Confusion: binary}},
			nil,
		},
		{
			"a table with tabs, quotes and Windows line ends", "prediction\tlabel\r\n0\t0\r\n1\t0\r\n 1\t1 \r\n1\t1",
			results.Options{Dataset: registry.Dataset{Name: "calls"}},
			results.TSV,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Confusion: binary}},
			nil,
		},
		{
			"a table with semicolons", "Label;Prediction\n0;0\n0;1\n1;1\n\"1\";1\n",
			results.Options{Dataset: registry.Dataset{Name: "calls"}},
			results.CSV,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Confusion: binary}},
			nil,
		},
		{
			"slices, and columns that were named", "truth,label,guess,part\nno,x,no,day\nno,x,yes,night\nyes,x,yes,night\nyes,x,yes,night\n",
			results.Options{Dataset: registry.Dataset{Name: "calls", Split: "test"}, Label: "truth", Prediction: "guess", Slice: "part", Positive: "no"},
			results.CSV,
			[]registry.EvaluationInput{
				{Dataset: registry.Dataset{Name: "calls", Split: "test", Slice: "day"}, Confusion: &registry.Confusion{Labels: []string{"no", "yes"}, Positive: "no", Matrix: [][]int64{{1, 0}, {0, 0}}}},
				{Dataset: registry.Dataset{Name: "calls", Split: "test", Slice: "night"}, Confusion: &registry.Confusion{Labels: []string{"no", "yes"}, Positive: "no", Matrix: [][]int64{{0, 1}, {0, 2}}}},
				{Dataset: registry.Dataset{Name: "calls", Split: "test"}, Confusion: &registry.Confusion{Labels: []string{"no", "yes"}, Positive: "no", Matrix: [][]int64{{1, 1}, {0, 2}}}},
			},
			nil,
		},
		{
			"numbers sort as such, and a slice has the labels that occur in it", "label,prediction,part\n10,9,a\n9,10,a\nx,9,b\nx,x,b\n",
			results.Options{Dataset: registry.Dataset{Name: "calls"}, Slice: "part"},
			results.CSV,
			[]registry.EvaluationInput{
				{Dataset: registry.Dataset{Name: "calls", Slice: "a"}, Confusion: &registry.Confusion{Labels: []string{"9", "10"}, Matrix: [][]int64{{0, 1}, {1, 0}}}},
				{Dataset: registry.Dataset{Name: "calls", Slice: "b"}, Confusion: &registry.Confusion{Labels: []string{"9", "x"}, Matrix: [][]int64{{0, 0}, {1, 1}}}},
				{Dataset: registry.Dataset{Name: "calls"}, Confusion: &registry.Confusion{Labels: []string{"9", "10", "x"}, Matrix: [][]int64{{0, 1, 0}, {1, 0, 0}, {1, 0, 1}}}},
			},
			nil,
		},
		{
			"two labels of which none is known to be positive", "label,prediction\ncat,dog\ndog,dog\n",
			results.Options{Dataset: registry.Dataset{Name: "calls"}},
			results.CSV,
			[]registry.EvaluationInput{{Dataset: registry.Dataset{Name: "calls"}, Confusion: &registry.Confusion{Labels: []string{"cat", "dog"}, Matrix: [][]int64{{0, 1}, {0, 1}}}}},
			[]string{"which of cat and dog is positive is not known, so that there is no precision, recall and f1 of one of them; say so with --positive"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := results.Read(strings.NewReader(tt.file), tt.options)
			if err != nil {
				t.Fatalf("Read = %v", err)
			}
			if tt.warnings == nil {
				tt.warnings = []string{}
			}
			if diff := cmp.Diff(results.Result{Format: tt.format, Evaluations: tt.want, Warnings: tt.warnings}, got); diff != "" {
				t.Errorf("Read (-want +got):\n%s", diff)
			}
			if _, err := results.Read(iotest.OneByteReader(strings.NewReader(tt.file)), tt.options); err != nil {
				t.Errorf("Read of one byte at a time = %v", err)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	calls := results.Options{Dataset: registry.Dataset{Name: "calls"}}
	with := func(f func(*results.Options)) results.Options {
		o := calls
		f(&o)
		return o
	}
	var labels, parts strings.Builder
	for i := range registry.MaxLabels + 1 {
		fmt.Fprintf(&labels, "%d,%d\n", i, i)
		fmt.Fprintf(&parts, "0,1,%d\n", i)
	}
	tests := []struct {
		name, file string
		options    results.Options
		want       string
	}{
		{"an empty file", " \n", calls, "the file is empty"},
		{"half a JSON", "{\n\"a\": [", calls, "the file is not JSON: unexpected EOF"},
		{"no JSON", "{\n\"a\": x}", calls, "line 2: the file is not JSON: invalid character 'x' looking for beginning of value"},
		{"JSON lines", "{}\n{}", calls, "something follows the JSON value in the file; JSON lines are not read"},
		{"another JSON", `{"a": {"b": 1}}`, calls, "the file is JSON of no shape that is known here"},
		{"an empty object", `{}`, calls, "the file is JSON of no shape that is known here"},
		{"a list of numbers", `[1]`, calls, "the file is JSON of no shape that is known here"},
		{"a field that we do not have", `{"dataset": {"name": "calls"}, "metrics": {"f1": 1}, "x": 1}`, calls, `the file is not an evaluation: json: unknown field "x"`},
		{"a matrix that is none", `{"dataset": {"name": "calls"}, "confusion": {"labels": ["a"], "matrix": [[1]]}}`, calls, "evaluation 1 of the file, on calls: confusion.labels: a confusion matrix has at least two labels, got 1"},
		{"no dataset", mlflowMetrics, results.Options{}, "the file names no dataset; give one with --dataset NAME"},
		{"many datasets under one name", lmEval, calls, "the file names several datasets (gsm8k and hellaswag among them), so that calls cannot be the name of all"},
		{"nothing but NaN", `{"f1": NaN, "a": -Infinity, "b": "NaN \" Infinity"}`, calls, `the file has no metric that can be recorded: a is not a finite number; it is left out; b is "NaN \" Infinity", which is no number; it is left out; f1 is not a finite number; it is left out`},
		{"a list as a run", `[]`, with(func(o *results.Options) { o.Format = results.MLflow }), "the file is not one of mlflow: it is no JSON object"},
		{"metrics that are no metrics", `{"run": {"data": {"metrics": [1]}}}`, calls, "the metrics of the run are not a list of keys and values"},
		{"results of no tasks", `{"f1": 1}`, with(func(o *results.Options) { o.Format = results.LMEval }), "the file has no results of tasks"},
		{"a card without an index", "---\nlicense: mit\n---\n", calls, "the file states no evaluation: its front matter has no model-index"},
		{"a card that is no YAML", "---\na: [\n---\n", calls, "the file states no evaluation: line 2: this is not YAML"},
		{"a table without rows", "label,prediction\n", calls, "the table has no rows"},
		{"a table without labels", "a,prediction\n1,1\n", calls, "the table has no column for the label; its columns are a, prediction: name one with --label-column"},
		{"a table without predictions", "label,b\n1,1\n", calls, "the table has no column for the prediction; its columns are label, b: name one with --prediction-column"},
		{"a table without slices", "label,prediction\n1,0\n", with(func(o *results.Options) { o.Slice = "night" }), "the table has no column for the slice; its columns are label, prediction: name one with --slice-column"},
		{"one column for both", "label,prediction\n1,0\n", with(func(o *results.Options) { o.Prediction = "label" }), "the label and the prediction are the same column, label"},
		{"one label", "label,prediction\n1,1\n", calls, "the table has one label only, 1: there is nothing to tell apart"},
		{"a row with less", "label,prediction\n1,1\n0\n", calls, "line 3: the row has not as many columns as the first line"},
		{"an empty label", "label,prediction\n1,1\n,0\n", calls, "line 3: the label is empty"},
		{"an empty prediction", "label,prediction\n1,1\n0,\n", calls, "line 3: the prediction is empty"},
		{"an empty slice", "label,prediction,s\n1,1,a\n0,0, \n", with(func(o *results.Options) { o.Slice = "s" }), "line 3: the slice is empty"},
		{"a label that is not UTF-8", "label,prediction\n1,\xff\n", calls, "line 2: the prediction is not UTF-8"},
		{"too many labels", "label,prediction\n" + labels.String(), calls, "line 1002: there are more than 1000 labels; is the column of the label one of classes?"},
		{"too many slices", "label,prediction,s\n" + parts.String(), with(func(o *results.Options) { o.Slice = "s" }), "line 202: there are more than 200 slices; is the column one of names?"},
		{"a quote in the middle", "label,prediction\n1,a\"b\n", calls, "line 2: the table cannot be read: bare \" in non-quoted-field"},
		{"a quote that is not closed", "label,prediction\n1,\"" + strings.Repeat("x\n", 1<<20), calls, "a row is longer than 1048576 bytes; is a quote not closed?"},
		{"a positive label that is none", "label,prediction\n1,0\n", with(func(o *results.Options) { o.Positive = "x" }), "the positive label x is none of the labels in the table, which are 1, 0"},
		{"a positive one of three", "label,prediction\n1,0\n2,2\n", with(func(o *results.Options) { o.Positive = "1" }), "a positive label is for two labels, and the table has 3"},
		{"a long document", "{" + strings.Repeat(" ", results.MaxDocumentBytes), calls, "the file is longer than 16777216 bytes; only tables of predictions may be"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := results.Read(strings.NewReader(tt.file), tt.options)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Read = %+v, %v, want the error %q", got, err, tt.want)
			}
		})
	}
}

func TestReadGivesTheReadersError(t *testing.T) {
	broken := errors.New("the disk fails")
	for _, head := range []string{"", "label,prediction\n" + strings.Repeat("1,0\n", 40_000), `{"f1": 1`} {
		_, err := results.Read(io.MultiReader(strings.NewReader(head), iotest.ErrReader(broken)), results.Options{})
		if !errors.Is(err, broken) {
			t.Errorf("Read of %d bytes of a file that breaks off = %v, want %v", len(head), err, broken)
		}
	}
}

func TestParseFormat(t *testing.T) {
	for _, f := range results.Formats {
		if got, err := results.ParseFormat(string(f)); got != f || err != nil {
			t.Errorf("ParseFormat(%q) = %q, %v", f, got, err)
		}
	}
	if got, err := results.ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), "mlflow") {
		t.Errorf("ParseFormat(xml) = %q, %v, want an error that names the formats", got, err)
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		mlflowRun, mlflowMetrics, savedByHF, lmEval, stated, "- dataset: {id: a}\n  value: 1\n", "label,prediction,s\n1,0,a\n0,0,b\n",
		"label\tprediction\n\"a\tb\n", `[{"dataset": {"name": "a"}, "metrics": {"f1": 1}}]`, `{"a": NaN, "b": "\"NaN", "c": 1e999}`, `{"results": {"a": {"acc,none": 1, ",": 2}}}`,
	} {
		f.Add([]byte(seed), "", "s")
		f.Add([]byte(seed), "mlflow", "")
		f.Add([]byte(seed), "csv", "label")
	}
	f.Fuzz(func(t *testing.T, data []byte, format, slice string) {
		o := results.Options{Format: results.Format(format), Dataset: registry.Dataset{Name: "calls"}, Slice: slice}
		if _, err := results.ParseFormat(format); err != nil {
			o.Format = ""
		}
		got, err := results.Read(strings.NewReader(string(data)), o)
		if err != nil {
			if err.Error() == "" || len(err.Error()) > 16<<10 {
				t.Errorf("Read: error of %d bytes", len(err.Error()))
			}
			return
		}
		if len(got.Evaluations) == 0 || got.Format == "" {
			t.Errorf("Read = %+v, want an evaluation, or an error", got)
		}
		for _, in := range got.Evaluations {
			if _, err := registry.NewEvaluation(in, "", "", "", time.Time{}); err != nil {
				t.Errorf("Read gave an evaluation that the server refuses: %v", err)
			}
		}
		for _, w := range got.Warnings {
			if !utf8.ValidString(w) && utf8.Valid(data) {
				t.Errorf("warning %q is not UTF-8", w)
			}
		}
	})
}

// BenchmarkTable counts a table of a hundred thousand rows with ten labels and four slices.
func BenchmarkTable(b *testing.B) {
	var table strings.Builder
	table.WriteString("id,label,prediction,part\n")
	for i := range 100_000 {
		fmt.Fprintf(&table, "row-%d,class-%d,class-%d,part-%d\n", i, i%10, i*7%10, i%4)
	}
	b.SetBytes(int64(table.Len()))
	b.ReportAllocs()
	for b.Loop() {
		got, err := results.Read(strings.NewReader(table.String()), results.Options{Dataset: registry.Dataset{Name: "calls"}, Slice: "part"})
		if err != nil || len(got.Evaluations) != 5 {
			b.Fatalf("Read = %d evaluations, %v", len(got.Evaluations), err)
		}
	}
}
