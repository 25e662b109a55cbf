package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/results"
	"github.com/herdbook/herdbook/storage"
)

type evaluateCommand struct {
	Model  string   `arg:"" help:"NAMESPACE/NAME."`
	Rev    string   `arg:"" help:"Version, commit, env:NAME or branch:NAME."`
	File   string   `name:"file" short:"f" required:"" xor:"source" help:"File with the evaluation as the server takes it, JSON; - reads it from standard input." placeholder:"FILE"`
	From   string   `name:"from" required:"" xor:"source" help:"File that another program wrote, or a table of predictions with labels; - reads it from standard input." placeholder:"FILE"`
	Attach []string `name:"attach" sep:"none" help:"File to upload and to attach, FILE or FILE:MEDIA-TYPE; may be given more than once." placeholder:"FILE"`
	DryRun bool     `name:"dry-run" help:"Print what would be recorded as JSON, and send nothing."`
	imported
	remote
}

// imported are the flags of --from.
type imported struct {
	Format     string `name:"format" group:"Flags of --from:" help:"What the file is: herdbook, mlflow, huggingface, lm-eval, model-card, eval-results, csv or tsv; by default what it looks like." placeholder:"NAME"`
	Dataset    string `name:"dataset" group:"Flags of --from:" help:"The dataset's name, where the file does not say." placeholder:"NAME"`
	Revision   string `name:"revision" group:"Flags of --from:" help:"The dataset's revision, where the file does not say." placeholder:"TEXT"`
	Split      string `name:"split" group:"Flags of --from:" help:"The dataset's split, where the file does not say." placeholder:"NAME"`
	Slice      string `name:"slice" group:"Flags of --from:" help:"The slice of the dataset, where the file does not say." placeholder:"NAME"`
	Evaluator  string `name:"evaluator" group:"Flags of --from:" help:"Who evaluated, such as jenkins." placeholder:"NAME"`
	SourceURL  string `name:"source-url" group:"Flags of --from:" help:"Where to read more, such as the address of the CI job." placeholder:"URL"`
	Label      string `name:"label-column" group:"Flags of --from:" help:"Column of a table with the true label; by default label, y_true, target and the like." placeholder:"NAME"`
	Prediction string `name:"prediction-column" group:"Flags of --from:" help:"Column of a table with the prediction; by default prediction, y_pred and the like." placeholder:"NAME"`
	SliceBy    string `name:"slice-column" group:"Flags of --from:" help:"Column of a table by which to evaluate slices too, one evaluation each." placeholder:"NAME"`
	Positive   string `name:"positive" group:"Flags of --from:" help:"The label that counts as yes when there are two; by default 1, true, yes or positive." placeholder:"LABEL"`
	Strict     bool   `name:"strict" group:"Flags of --from:" help:"Record nothing when something of the file would be left out."`
}

// Help describes the command.
func (evaluateCommand) Help() string {
	return "It writes to the server: evaluations of the commit, what is attached to them, and what the gates promote because of them.\n\nExamples:\n\n" +
		"  herdbook evaluate acme/fraud v1.0.0 --file evaluation.json --attach roc.png\n" +
		"  herdbook evaluate acme/fraud v1.0.0 --from results.json --dataset calls-2026\n" +
		"  herdbook evaluate acme/fraud v1.0.0 --from predictions.csv --dataset calls-2026 --split test --slice-column hour --positive fraud\n\n" +
		"With --file, it is what the server takes: a dataset and metrics, a confusion matrix or both:\n\n" +
		`  {"dataset": {"name": "calls-2026", "split": "test"},` + "\n" +
		`   "confusion": {"labels": ["fraud", "ok"], "positive": "fraud", "matrix": [[80, 10], [20, 90]]}}` + "\n\n" +
		"With --from, it is that or a list of it, a run or metrics.json of MLflow, what evaluate.save of Hugging Face or the LM Evaluation Harness wrote, a model card " +
		"with model-index, or a table (CSV, TSV) of predictions with labels, of any length, whose confusion matrix is counted here. What cannot be recorded is left out " +
		"and named on standard error. The same file for the same commit is recorded once, so that a job may be run again.\n\n" +
		"An attachment whose name ends in explanation.json says how much each feature matters and is shown as a table: see docs/evaluations.md. " +
		"An attachment goes to each evaluation of the file; with --slice-column, to that of the whole. It exits 1 when not all was recorded."
}

// Run records evaluations.
func (c evaluateCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	attachments, err := hashFiles(c.Attach)
	if err != nil {
		return err
	}
	if c.File != "" {
		return c.record(ctx, t, server, m, attachments)
	}
	found, err := c.read(t)
	if err != nil {
		return fmt.Errorf("%s: %w", c.From, err)
	}
	for i := range found.Evaluations {
		in := &found.Evaluations[i]
		in.Evaluator, in.SourceURL = cmp.Or(c.Evaluator, in.Evaluator), cmp.Or(c.SourceURL, in.SourceURL)
		if c.SliceBy == "" || i == len(found.Evaluations)-1 {
			for _, a := range attachments {
				in.Attachments = append(in.Attachments, a.Attachment)
			}
		}
	}
	for _, w := range found.Warnings {
		fmt.Fprintf(t.err, "herdbook: %s: %s\n", c.From, w)
	}
	switch {
	case c.Strict && len(found.Warnings) > 0:
		return fmt.Errorf("%s: nothing was recorded, because something would be left out and --strict was given", c.From)
	case c.DryRun:
		return printJSON(t.out, found)
	}
	return c.recordAll(ctx, t, server, m, found, attachments)
}

// record sends one evaluation as it stands in the file.
func (c evaluateCommand) record(ctx context.Context, t terminal, server *client.Client, m registry.ModelName, attachments []attachedFile) error {
	if given := (imported{}); c.imported != given {
		return errors.New("the flags that say what is in a file are for --from, and --file takes one as it is")
	}
	data, err := readInput(t, c.File)
	if err != nil {
		return err
	}
	if !json.Valid(data) {
		return fmt.Errorf("%s is not JSON", c.File)
	}
	if data, err = withAttachments(data, attachments); err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if c.DryRun {
		return printJSON(t.out, json.RawMessage(data))
	}
	if err := uploadAll(ctx, t, server, m, attachments); err != nil {
		return err
	}
	recorded, err := server.Evaluate(ctx, m, c.Rev, data)
	if err != nil {
		return err
	}
	return c.show(t, recorded, func(w io.Writer) { printRecorded(w, m, recorded) })
}

// recordAll sends what was read, each once however often it is called.
func (c evaluateCommand) recordAll(ctx context.Context, t terminal, server *client.Client, m registry.ModelName, found results.Result, attachments []attachedFile) error {
	// Of a branch the commit may be another when this is tried again.
	commit, err := server.Commit(ctx, m, c.Rev)
	if err != nil {
		return err
	}
	if err := uploadAll(ctx, t, server, m, attachments); err != nil {
		return err
	}
	all := struct {
		Items []api.Recorded `json:"items"`
	}{[]api.Recorded{}}
	for i, in := range found.Evaluations {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(append(append([]byte(commit), '\n'), data...))
		recorded, err := server.EvaluateOnce(ctx, m, string(commit), "content-"+hex.EncodeToString(sum[:]), data)
		if err != nil {
			return fmt.Errorf("evaluation %d of %d, on %s: %w", i+1, len(found.Evaluations), datasetLine(in.Dataset), err)
		}
		all.Items = append(all.Items, recorded)
		if !c.JSON {
			w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
			printRecorded(w, m, recorded)
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	if c.JSON {
		return printJSON(t.out, all)
	}
	return nil
}

// read reads what another program wrote, and shows how far it is.
func (c evaluateCommand) read(t terminal) (results.Result, error) {
	o := results.Options{
		Dataset: registry.Dataset{Name: c.Dataset, Revision: c.Revision, Split: c.Split, Slice: c.Slice},
		Label:   c.Label, Prediction: c.Prediction, Slice: c.SliceBy, Positive: c.Positive,
	}
	if c.Format != "" {
		var err error
		if o.Format, err = results.ParseFormat(c.Format); err != nil {
			return results.Result{}, err
		}
	}
	in, total := t.in, int64(0)
	if c.From != "-" {
		f, err := os.Open(c.From)
		if err != nil {
			return results.Result{}, reason(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return results.Result{}, err
		}
		in, total = f, info.Size()
	}
	v := newViewer(t, false)
	defer v.end()
	return results.Read(&metered{Reader: in, view: v, step: "read " + filepath.Base(c.From), total: total}, o)
}

// metered shows how far a reader is, when that takes a while.
type metered struct {
	io.Reader
	view        *viewer
	step        string
	done, total int64
	shown       time.Time
}

// Read implements io.Reader.
func (r *metered) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.done += int64(n)
	if r.shown.IsZero() {
		r.shown = time.Now()
	}
	if now := time.Now(); now.Sub(r.shown) >= time.Second/5 {
		r.view.hear(said{Progress: &storage.Progress{Step: r.step, Done: r.done, Total: r.total, Unit: "bytes"}})
		r.shown = now
	}
	return n, err
}

// attachedFile is an attachment and the file that it is made of.
type attachedFile struct {
	registry.Attachment
	path string
}

// hashFiles finds out what is to be attached.
func hashFiles(arguments []string) ([]attachedFile, error) {
	var files []attachedFile
	for _, argument := range arguments {
		file, mediaType := splitType(argument)
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("attachment %s: %w", file, reason(err))
		}
		digester := digest.SHA256.Digester()
		n, err := io.Copy(digester.Hash(), f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("attachment %s: %w", file, reason(err))
		}
		files = append(files, attachedFile{registry.Attachment{Name: filepath.Base(file), MediaType: mediaType, Digest: digester.Digest(), SizeBytes: n}, file})
	}
	return files, nil
}

// reason is why something could not be done to a file, without its name, which stands before.
func reason(err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// splitType splits FILE:MEDIA-TYPE. Without a type it is told by the end of the file's name.
func splitType(argument string) (file, mediaType string) {
	if i := strings.LastIndexByte(argument, ':'); i > 0 && strings.Count(argument[i+1:], "/") == 1 {
		if _, err := os.Stat(argument); err != nil {
			return argument[:i], argument[i+1:]
		}
	}
	return argument, mediaTypeOf(argument)
}

// mediaTypeOf is the media type of a file, by its name alone: what the machine has in its tables does not matter.
func mediaTypeOf(name string) string {
	name = strings.ToLower(filepath.Base(name))
	if strings.HasSuffix(name, ".explanation.json") || name == "explanation.json" {
		return registry.ExplanationType
	}
	types := map[string]string{
		".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".svg": "image/svg+xml", ".gif": "image/gif",
		".html": "text/html", ".txt": "text/plain", ".log": "text/plain", ".md": "text/markdown", ".csv": "text/csv", ".tsv": "text/tab-separated-values",
		".json": "application/json", ".yaml": "application/yaml", ".yml": "application/yaml", ".pdf": "application/pdf", ".zip": "application/zip", ".gz": "application/gzip",
	}
	return cmp.Or(types[filepath.Ext(name)], "application/octet-stream")
}

// withAttachments adds attachments to an evaluation as it stands in a file, whose other fields stay as they are.
func withAttachments(data []byte, attachments []attachedFile) ([]byte, error) {
	if len(attachments) == 0 {
		return data, nil
	}
	var fields map[string]json.RawMessage
	var named []json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil || fields == nil {
		return nil, errors.New("it is not a JSON object")
	}
	if err := json.Unmarshal([]byte(cmp.Or(string(fields["attachments"]), "[]")), &named); err != nil {
		return nil, errors.New("its attachments are not a list")
	}
	for _, a := range attachments {
		one, err := json.Marshal(a.Attachment)
		if err != nil {
			return nil, err
		}
		named = append(named, one)
	}
	list, err := json.Marshal(named)
	if err != nil {
		return nil, err
	}
	fields["attachments"] = list
	return json.Marshal(fields)
}

// uploadAll sends attachments, and shows how far it is.
func uploadAll(ctx context.Context, t terminal, server *client.Client, m registry.ModelName, attachments []attachedFile) error {
	v := newViewer(t, false)
	defer v.end()
	for _, a := range attachments {
		f, err := os.Open(a.path)
		if err != nil {
			return err
		}
		// No more than was hashed: of a file that grew meanwhile the server gets what it is told.
		err = server.Attach(ctx, m, a.Attachment, &metered{Reader: io.LimitReader(f, a.SizeBytes), view: v, step: "upload " + a.Name, total: a.SizeBytes})
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("attachment %s: %w", a.path, err)
		}
	}
	return nil
}

// readInput reads a file, or standard input as "-".
func readInput(t terminal, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(t.in)
	}
	return os.ReadFile(name)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// datasetLine is a dataset in one line: its name, split and slice.
func datasetLine(d registry.Dataset) string {
	return strings.Join(slices.DeleteFunc([]string{d.Name, d.Split, d.Slice}, func(s string) bool { return s == "" }), " · ")
}

func printRecorded(w io.Writer, m registry.ModelName, recorded api.Recorded) {
	fmt.Fprintf(w, "recorded %s for %s at %s, on %s\n", recorded.ID, m, recorded.Commit, datasetLine(recorded.Dataset))
	for _, name := range slices.Sorted(maps.Keys(recorded.Metrics)) {
		fmt.Fprintf(w, "  %s\t%.6g", name, recorded.Metrics[name])
		if in, ok := recorded.Intervals[name]; ok {
			fmt.Fprintf(w, "\t%s", in)
		}
		fmt.Fprintln(w)
	}
	for _, a := range recorded.Attachments {
		fmt.Fprintf(w, "  attached %s, %s\n", a.Name, registry.ByteSize(a.SizeBytes))
	}
	for _, v := range recorded.Verdicts {
		fmt.Fprintf(w, "%s in %s: %s\n", v.Version, v.Environment, verdictLine(v.Verdict))
	}
	for _, p := range recorded.Promoted {
		fmt.Fprintf(w, "%s was promoted to %s\n", p.Version, p.Environment)
	}
}
