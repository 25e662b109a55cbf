package results

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
)

type object = map[string]any

// parseJSON reads one JSON value. Python writes NaN and infinities as they are, which JSON does not have: they become null.
func parseJSON(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(withoutNaN(text)))
	var v any
	if err := d.Decode(&v); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n"))
			return nil, fmt.Errorf("line %d: the file is not JSON: %w", line, err)
		}
		return nil, fmt.Errorf("the file is not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value in the file; JSON lines are not read")
	}
	return v, nil
}

// withoutNaN puts null where NaN, Infinity or -Infinity stand outside of strings.
func withoutNaN(text []byte) []byte {
	if !bytes.Contains(text, []byte("NaN")) && !bytes.Contains(text, []byte("Infinity")) {
		return text
	}
	out := make([]byte, 0, len(text)+64)
	quoted := false
	for i := 0; i < len(text); i++ {
		if !quoted {
			if n := notFinite(text[i:]); n > 0 {
				out = append(out, "null"...)
				i += n - 1
				continue
			}
		}
		out = append(out, text[i])
		switch {
		case text[i] == '"':
			quoted = !quoted
		case quoted && text[i] == '\\' && i+1 < len(text):
			i++
			out = append(out, text[i])
		}
	}
	return out
}

// notFinite is the length of the word for such a number at the beginning of text, or 0.
func notFinite(text []byte) int {
	for _, word := range []string{"NaN", "Infinity", "-Infinity"} {
		if bytes.HasPrefix(text, []byte(word)) {
			return len(word)
		}
	}
	return 0
}

// shapeOf tells which program wrote a document.
func shapeOf(document any) (Format, error) {
	if list, ok := document.([]any); ok && len(list) > 0 {
		document = list[0] // a list has one kind of things in it
		if o, ok := document.(object); !ok || o["dataset"] == nil {
			document = nil
		}
	}
	o, _ := document.(object)
	has := func(name string) bool { return o[name] != nil }
	_, resultsOfTasks := o["results"].(object)
	_, run := o["run"].(object)
	_, data := o["data"].(object)
	_, dataset := o["dataset"].(object)
	switch {
	case dataset && (has("metrics") || has("confusion")):
		return Herdbook, nil
	case run, data && has("info"):
		return MLflow, nil
	case resultsOfTasks:
		return LMEval, nil
	case has("_timestamp") || has("_evaluate_version"):
		return HuggingFace, nil
	case len(o) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(o)), func(v any) bool { return !scalar(v) }):
		return MLflow, nil // names and values
	}
	return "", errors.New("the file is JSON of no shape that is known here; if it is one of MLflow, Hugging Face or the LM Evaluation Harness, say so with --format")
}

func scalar(v any) bool {
	switch v.(type) {
	case nil, float64, string, bool:
		return true
	}
	return false
}

// readDocument reads JSON of a format.
func readDocument(document any, text []byte, format Format, warnings *[]string) ([]registry.EvaluationInput, error) {
	if format == Herdbook {
		return readOwn(text)
	}
	o, ok := document.(object)
	if !ok {
		return nil, fmt.Errorf("the file is not one of %s: it is no JSON object", format)
	}
	switch format {
	case MLflow:
		return readMLflow(o, warnings)
	case HuggingFace:
		return readHuggingFace(o, warnings)
	}
	return readLMEval(o, warnings)
}

// readOwn reads what the JSON API takes, one object or a list, strictly.
func readOwn(text []byte) ([]registry.EvaluationInput, error) {
	var list []registry.EvaluationInput
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		if err := d.Decode(&list); err != nil {
			return nil, fmt.Errorf("the file is not a list of evaluations: %w", err)
		}
		return list, nil
	}
	var one registry.EvaluationInput
	if err := d.Decode(&one); err != nil {
		return nil, fmt.Errorf("the file is not an evaluation: %w", err)
	}
	return []registry.EvaluationInput{one}, nil
}

// gather puts a metric into an evaluation, or a warning why not. What is a parameter rather than a metric is passed over where quiet says so.
func gather(in *registry.EvaluationInput, name string, value any, quiet bool, warnings *[]string) {
	number, ok := value.(float64)
	switch v := value.(type) {
	case string:
		if quiet {
			return
		}
		parsed, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		number, ok = parsed, err == nil
	case nil:
		warn(warnings, "%s is not a finite number; it is left out", clip(name))
		return
	case []any:
		warn(warnings, "%s is a list, one value for each class perhaps; it is left out", clip(name))
		return
	case bool, object:
		if !quiet {
			warn(warnings, "%s is no number; it is left out", clip(name))
		}
		return
	}
	if !ok {
		warn(warnings, "%s is %q, which is no number; it is left out", clip(name), clip(fmt.Sprint(value)))
		return
	}
	key := card.MetricName(name)
	if err := registry.CheckMetric(key, number); err != nil {
		warn(warnings, "%v; it is left out", err)
		return
	}
	if _, taken := in.Metrics[key]; taken {
		warn(warnings, "%s is there under two names; the first counts", clip(key))
		return
	}
	if len(in.Metrics) == registry.MaxMetrics {
		warn(warnings, "an evaluation has at most %d metrics; the rest is left out", registry.MaxMetrics)
		return
	}
	if in.Metrics == nil {
		in.Metrics = map[string]float64{}
	}
	in.Metrics[key] = number
}

// sortedNames are the names of an object in their order, so that the same file always gives the same.
func sortedNames(o object) []string { return slices.Sorted(maps.Keys(o)) }

// ofMLflow are the names that MLflow gives to metrics that have a name of their own here.
// Source: mlflow/models/evaluation/default_evaluator.py.
var ofMLflow = map[string]string{"accuracy_score": "accuracy", "precision_score": "precision", "recall_score": "recall", "f1_score": "f1"}

// readMLflow reads a run, {"run": {"data": {"metrics": [{"key", "value", "timestamp", "step"}]}, "inputs": {...}}} of the REST API or the same
// without "run" and with metrics as names and values, as Python's Run.to_dictionary has it; or metrics.json of EvaluationResult.save, names and
// values alone. Of a metric that was logged more than once the last step counts. example_count is the number of samples.
// Source: https://mlflow.org/docs/latest/rest-api.html, "Run" and "RunData"; mlflow/models/evaluation/base.py.
func readMLflow(o object, warnings *[]string) ([]registry.EvaluationInput, error) {
	if run, ok := o["run"].(object); ok {
		o = run
	}
	in := registry.EvaluationInput{Harness: &registry.Harness{Name: "mlflow"}}
	metrics := o
	data, isRun := o["data"].(object)
	if isRun {
		var err error
		if metrics, err = lastSteps(data["metrics"]); err != nil {
			return nil, err
		}
		inputs, _ := o["inputs"].(object)
		in.Dataset = ofInputs(inputs, warnings)
	}
	for _, name := range sortedNames(metrics) {
		if count, ok := metrics[name].(float64); ok && name == "example_count" && count == float64(int64(count)) {
			n := int64(count)
			in.Samples = &n
			continue
		}
		gather(&in, cmp.Or(ofMLflow[name], name), metrics[name], false, warnings)
	}
	return some(in), nil
}

// some are the evaluations that have metrics.
func some(all ...registry.EvaluationInput) []registry.EvaluationInput {
	return slices.DeleteFunc(all, func(in registry.EvaluationInput) bool { return len(in.Metrics) == 0 && in.Confusion == nil })
}

// lastSteps are the metrics of a run by their keys.
func lastSteps(v any) (object, error) {
	switch v := v.(type) {
	case object:
		return v, nil
	case nil:
		return object{}, nil
	case []any:
		last, found := map[string][2]float64{}, object{}
		for _, entry := range v {
			m, _ := entry.(object)
			key, ok := m["key"].(string)
			if !ok {
				return nil, errors.New("the metrics of the run are not a list of keys and values")
			}
			at := [2]float64{numeric(m["step"]), numeric(m["timestamp"])}
			before, seen := last[key]
			if !seen || at[0] > before[0] || at[0] == before[0] && at[1] >= before[1] {
				last[key], found[key] = at, m["value"]
			}
		}
		return found, nil
	}
	return nil, errors.New("the metrics of the run are neither a list nor an object")
}

// numeric is a number; 64-bit ones are texts in the JSON of protocol buffers.
func numeric(v any) float64 {
	switch v := v.(type) {
	case float64:
		return v
	case string:
		n, _ := strconv.ParseFloat(v, 64)
		return n
	}
	return 0
}

// contexts are what MLflow users say of a dataset that was evaluated on, in the tag mlflow.data.context.
var contexts = []string{"eval", "evaluation", "test", "testing", "validation"}

// ofInputs is the dataset of a run: the only one, or the only one that was evaluated on.
func ofInputs(inputs object, warnings *[]string) registry.Dataset {
	list, _ := inputs["dataset_inputs"].([]any)
	var all, evaluated []registry.Dataset
	for _, entry := range list {
		input, _ := entry.(object)
		described, _ := input["dataset"].(object)
		name, _ := described["name"].(string)
		if name == "" {
			continue
		}
		digest, _ := described["digest"].(string)
		source, _ := described["source"].(string)
		d := registry.Dataset{Name: name, Revision: digest, URI: uriOf(source)}
		all = append(all, d)
		tags, _ := input["tags"].([]any)
		for _, t := range tags {
			tag, _ := t.(object)
			value, _ := tag["value"].(string)
			if tag["key"] == "mlflow.data.context" && slices.Contains(contexts, strings.ToLower(value)) {
				evaluated = append(evaluated, d)
			}
		}
	}
	switch {
	case len(evaluated) == 1:
		return evaluated[0]
	case len(all) == 1:
		return all[0]
	case len(all) > 1:
		warn(warnings, "the run names %d datasets, and not which of them it was evaluated on", len(all))
	}
	return registry.Dataset{}
}

// uriOf is where the data is: MLflow writes an address, or JSON with one.
func uriOf(source string) string {
	var in struct {
		URI  string `json:"uri"`
		URL  string `json:"url"`
		Path string `json:"path"`
	}
	if json.Unmarshal([]byte(source), &in) == nil {
		source = cmp.Or(in.URI, in.URL, in.Path)
	}
	if len(source) > 1024 || strings.ContainsAny(source, "\n\r\t") {
		return ""
	}
	return source
}

// readHuggingFace reads what evaluate.save writes: the metrics, what the caller added, and fields that begin with "_". A text "dataset" is the
// dataset's name; other texts and objects are parameters and not read.
// Source: https://huggingface.co/docs/evaluate, "Saving and sharing"; evaluate/saving.py.
func readHuggingFace(o object, warnings *[]string) ([]registry.EvaluationInput, error) {
	in := registry.EvaluationInput{Harness: &registry.Harness{Name: "evaluate"}}
	if version, ok := o["_evaluate_version"].(string); ok {
		in.Harness.Name += " " + version
	}
	in.Dataset.Name, _ = o["dataset"].(string)
	for _, name := range sortedNames(o) {
		if strings.HasPrefix(name, "_") || name == "dataset" {
			continue
		}
		gather(&in, name, o[name], true, warnings)
	}
	return some(in), nil
}

// readLMEval reads {"results": {TASK: {"METRIC,FILTER": value}}, "versions": {TASK: n}, "n-shot": {TASK: n}, "n-samples": {TASK: {"effective": n}},
// "configs": {TASK: {"test_split"}}}: an evaluation for each task, whose name is the dataset's. The filter "none" is left out of a metric's name,
// another is put behind it; the number of examples in the prompt is the metric n_shot.
// Source: https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/evaluator.py and evaluator_utils.py.
func readLMEval(o object, warnings *[]string) ([]registry.EvaluationInput, error) {
	tasks, ok := o["results"].(object)
	if !ok {
		return nil, errors.New("the file has no results of tasks")
	}
	of := func(section, task string) any {
		all, _ := o[section].(object)
		return all[task]
	}
	harness := registry.Harness{Name: "lm-evaluation-harness"}
	for _, field := range []string{"lm_eval_version", "git_hash"} {
		if version, ok := o[field].(string); ok && version != "" {
			harness.Name += " " + version
			break
		}
	}
	var all []registry.EvaluationInput
	for _, task := range sortedNames(tasks) {
		values, ok := tasks[task].(object)
		if !ok {
			warn(warnings, "the results of %s are no object; they are left out", clip(task))
			continue
		}
		in := registry.EvaluationInput{Dataset: registry.Dataset{Name: task}, Harness: &harness}
		switch version := of("versions", task).(type) {
		case float64:
			in.Dataset.Revision = strconv.FormatFloat(version, 'g', -1, 64)
		case string:
			in.Dataset.Revision = version
		}
		config, _ := of("configs", task).(object)
		for _, field := range []string{"test_split", "validation_split"} {
			if in.Dataset.Split == "" {
				in.Dataset.Split, _ = config[field].(string)
			}
		}
		counts, _ := of("n-samples", task).(object)
		if n, ok := counts["effective"].(float64); ok && n == float64(int64(n)) {
			count := int64(n)
			in.Samples = &count
		}
		if measured(&in, values, warnings); len(in.Metrics) > 0 {
			if shots, ok := of("n-shot", task).(float64); ok {
				gather(&in, "n_shot", shots, true, warnings)
			}
			all = append(all, in)
		}
	}
	return all, nil
}

// measured are the metrics of one task.
func measured(in *registry.EvaluationInput, values object, warnings *[]string) {
	for _, key := range sortedNames(values) {
		name, filter, _ := strings.Cut(key, ",")
		if key == "sample_len" || key == "sample_count" {
			continue
		}
		if _, isText := values[key].(string); isText {
			continue // the task's alias, and N/A where there is no standard error
		}
		if filter != "" && filter != "none" {
			name += "_" + strings.ReplaceAll(filter, "-", "_")
		}
		gather(in, name, values[key], true, warnings)
	}
}
