// Package results reads evaluations that other programs wrote: MLflow, Hugging Face evaluate, the LM Evaluation Harness, model cards, and tables
// of predictions with their labels, of which it counts the confusion matrix.
//
// It finds out by the content what a file is. What cannot be used of a file is left out and told in a warning, never guessed; a table of
// predictions is read as a whole or not at all, because a matrix that lacks some rows is another matrix. All reading is bounded: a table
// may be of any length, everything else of at most [MaxDocumentBytes].
package results

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
)

// MaxDocumentBytes is the longest file that is not a table.
const MaxDocumentBytes = 16 << 20

// Format of a file.
type Format string

// The formats.
const (
	Herdbook    Format = "herdbook"    // what the JSON API takes: one object, or a list of them
	MLflow      Format = "mlflow"      // a run as the REST API or the Python client gives it, or names and values of metrics
	HuggingFace Format = "huggingface" // what evaluate.save of Hugging Face's evaluate writes
	LMEval      Format = "lm-eval"     // results of the LM Evaluation Harness
	ModelCard   Format = "model-card"  // a card with model-index in its front matter
	EvalResults Format = "eval-results"
	CSV         Format = "csv" // predictions with labels
	TSV         Format = "tsv"
)

// Formats are all that there are.
var Formats = []Format{Herdbook, MLflow, HuggingFace, LMEval, ModelCard, EvalResults, CSV, TSV}

// ParseFormat reads a format's name.
func ParseFormat(text string) (Format, error) {
	if f := Format(text); slices.Contains(Formats, f) {
		return f, nil
	}
	var names []string
	for _, f := range Formats {
		names = append(names, string(f))
	}
	return "", fmt.Errorf("there is no format %q; there are %s", clip(text), strings.Join(names, ", "))
}

// Options are what a file does not say, or what is to be read otherwise.
type Options struct {
	Format  Format           // by default the one that the content looks like
	Dataset registry.Dataset // its name replaces the only one of the file; its other fields fill what the file leaves empty

	// Of tables: the names of columns, by default the first that is usual, and the label that counts as "yes" when there are two.
	Label, Prediction, Slice, Positive string
}

// Result is what was read.
type Result struct {
	Format      Format                     `json:"format"`
	Evaluations []registry.EvaluationInput `json:"items"` // in the order in which to record them: a slice before the whole
	Warnings    []string                   `json:"warnings"`
}

// Read reads a file. The evaluations that it gives are such that a server takes them, and at least one.
func Read(r io.Reader, o Options) (Result, error) {
	in := bufio.NewReaderSize(r, sniffed)
	head, err := in.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return Result{}, err
	}
	result := Result{Format: o.Format, Warnings: []string{}}
	if len(bytes.TrimSpace(bytes.TrimPrefix(head, byteOrderMark))) == 0 {
		return result, errors.New("the file is empty")
	}
	var document any
	var text []byte
	if result.Format == "" {
		result.Format = kindOf(head)
	}
	switch result.Format {
	case CSV, TSV:
		result.Evaluations, err = readTable(in, result.Format, o, &result.Warnings)
	case ModelCard, EvalResults:
		if text, err = readAll(in); err == nil {
			result.Evaluations, result.Warnings, err = readStated(text, result.Format)
		}
	default: // JSON
		if text, err = readAll(in); err != nil {
			break
		}
		if document, err = parseJSON(text); err != nil {
			break
		}
		if result.Format = o.Format; result.Format == "" {
			result.Format, err = shapeOf(document)
		}
		if err == nil {
			result.Evaluations, err = readDocument(document, text, result.Format, &result.Warnings)
		}
	}
	if err == nil {
		err = fill(result.Evaluations, o.Dataset)
	}
	if err != nil {
		return result, err
	}
	return result, check(&result)
}

// sniffed is how much of a file is looked at to find out what it is.
const sniffed = 64 << 10

var byteOrderMark = []byte("\ufeff")

// kindOf tells by the first bytes which reader is to look at the whole: a card, a list in YAML, a table, or, as Herdbook, any JSON.
func kindOf(head []byte) Format {
	text := bytes.TrimSpace(bytes.TrimPrefix(head, byteOrderMark))
	line, _, _ := bytes.Cut(text, []byte("\n"))
	switch {
	case text[0] == '{' || text[0] == '[':
		return Herdbook
	case bytes.Equal(bytes.TrimSpace(line), []byte("---")):
		return ModelCard
	case bytes.HasPrefix(text, []byte("- ")) || bytes.Equal(bytes.TrimSpace(line), []byte("-")):
		return EvalResults
	case bytes.ContainsRune(line, '\t'):
		return TSV
	}
	return CSV
}

func readAll(in io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(in, MaxDocumentBytes+1))
	if err == nil && len(text) > MaxDocumentBytes {
		return nil, fmt.Errorf("the file is longer than %d bytes; only tables of predictions may be", MaxDocumentBytes)
	}
	if err == nil && !utf8.Valid(text) {
		return nil, errors.New("the file is not UTF-8 text")
	}
	return bytes.TrimPrefix(text, byteOrderMark), err
}

// readStated reads what a card or a file of results states.
func readStated(text []byte, format Format) ([]registry.EvaluationInput, []string, error) {
	read := card.Reported
	if format == EvalResults {
		read = card.ReportedFile
	}
	evaluations, problem := read(text)
	warnings := []string{}
	if problem != "" {
		warnings = append(warnings, problem)
	}
	if len(evaluations) > 0 {
		return evaluations, warnings, nil
	}
	if format == ModelCard && problem == "" {
		if problem = card.Parse(text).Problem; problem == "" {
			problem = "its front matter has no model-index"
		}
	}
	return nil, warnings, fmt.Errorf("the file states no evaluation: %s", problem)
}

// fill puts what was given beside the file into its evaluations.
func fill(evaluations []registry.EvaluationInput, given registry.Dataset) error {
	for i := range evaluations {
		d := &evaluations[i].Dataset
		if given.Name != "" && d.Name != given.Name && d.Name != "" {
			for _, other := range evaluations {
				if other.Dataset.Name != d.Name {
					return fmt.Errorf("the file names several datasets (%s and %s among them), so that %s cannot be the name of all", clip(evaluations[0].Dataset.Name), clip(other.Dataset.Name), clip(given.Name))
				}
			}
		}
	}
	for i := range evaluations {
		d := &evaluations[i].Dataset
		if given.Name != "" {
			d.Name = given.Name
		}
		for _, f := range []struct {
			to    *string
			given string
		}{{&d.URI, given.URI}, {&d.Revision, given.Revision}, {&d.Split, given.Split}, {&d.Slice, given.Slice}} {
			if *f.to == "" {
				*f.to = f.given
			}
		}
		if d.Digest == "" {
			d.Digest = given.Digest
		}
		if d.Name == "" {
			return errNoDataset
		}
	}
	return nil
}

// errNoDataset reports that nothing says on what was evaluated.
var errNoDataset = errors.New("the file names no dataset; give one with --dataset NAME")

// check makes sure that a server would take the evaluations.
func check(r *Result) error {
	if len(r.Evaluations) == 0 {
		why := ""
		if len(r.Warnings) > 0 {
			why = ": " + strings.Join(r.Warnings, "; ")
		}
		return fmt.Errorf("the file has no metric that can be recorded%s", why)
	}
	for i, in := range r.Evaluations {
		if _, err := registry.NewEvaluation(in, "", "", "", time.Time{}); err != nil {
			var field *registry.FieldError
			if errors.As(err, &field) && field.Field != "" {
				return fmt.Errorf("evaluation %d of the file, on %s: %s: %w", i+1, clip(in.Dataset.Name), field.Field, err)
			}
			return fmt.Errorf("evaluation %d of the file, on %s: %w", i+1, clip(in.Dataset.Name), err)
		}
	}
	return nil
}

// maxWarnings bounds what is told about one file.
const maxWarnings = 20

func warn(warnings *[]string, format string, args ...any) {
	switch {
	case len(*warnings) < maxWarnings:
		*warnings = append(*warnings, fmt.Sprintf(format, args...))
	case len(*warnings) == maxWarnings:
		*warnings = append(*warnings, "there is more that is left out")
	}
}

// clip bounds what a sentence repeats of its input.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
