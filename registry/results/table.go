package results

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
)

// Limits of a table.
const (
	MaxSlices   = 200
	maxPairs    = 4_000_000  // of a label, a prediction and a slice, which are kept in memory
	maxCells    = 16_000_000 // of all matrices
	maxRowBytes = 1 << 20
)

// Usual names of columns, in the order in which they are looked for.
var (
	labelColumns      = []string{"label", "labels", "y_true", "true_label", "ground_truth", "target", "targets", "truth", "actual", "expected", "gold", "reference"}
	predictionColumns = []string{"prediction", "predictions", "y_pred", "predicted_label", "predicted", "pred", "output"}
)

// negative and positive labels of which everybody knows which is which.
var usual = map[string]string{"0": "1", "false": "true", "no": "yes", "negative": "positive"}

// readTable counts a table of predictions and labels: its first line names the columns. With a column of slices there is an evaluation of each
// slice, in the order of their names, before that of the whole.
func readTable(in *bufio.Reader, format Format, o Options, warnings *[]string) ([]registry.EvaluationInput, error) {
	if head, _ := in.Peek(len(byteOrderMark)); bytes.Equal(head, byteOrderMark) {
		_, _ = in.Discard(len(byteOrderMark)) // it was peeked at
	}
	bounded := &boundedRows{Reader: in}
	rows := csv.NewReader(bounded)
	rows.ReuseRecord = true
	switch head, _ := in.Peek(in.Size()); {
	case format == TSV:
		rows.Comma, rows.LazyQuotes = '\t', true
	case semicolons(head):
		rows.Comma = ';'
	}
	next := func() ([]string, error) {
		bounded.left = maxRowBytes
		row, err := rows.Read()
		if errors.Is(err, errLongRow) {
			// The reader has counted lines up to where a quote was never closed.
			return nil, fmt.Errorf("a row is longer than %d bytes; is a quote not closed?", maxRowBytes)
		}
		return row, err
	}
	header, err := next()
	if err != nil {
		return nil, tableError(err)
	}
	columns, err := columnsOf(slices.Clone(header), o)
	if err != nil {
		return nil, err
	}
	t := tally{numbers: map[string]int{}, slices: map[string]counts{}}
	for {
		row, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = t.add(row, columns)
			if err != nil {
				line, _ := rows.FieldPos(0)
				err = fmt.Errorf("line %d: %w", line, err)
			}
		}
		if err != nil {
			return nil, tableError(err)
		}
	}
	return t.evaluations(o, columns.slice >= 0, warnings)
}

// semicolons reports whether the first line separates columns as spreadsheets do where a comma stands in numbers.
func semicolons(head []byte) bool {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	return bytes.ContainsRune(line, ';') && !bytes.ContainsRune(line, ',')
}

// tableError makes the library's errors read like all others.
func tableError(err error) error {
	var at *csv.ParseError
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the table has no line with the names of its columns")
	case errors.As(err, &at) && errors.Is(at.Err, csv.ErrFieldCount):
		return fmt.Errorf("line %d: the row has not as many columns as the first line", at.Line)
	case errors.As(err, &at):
		return fmt.Errorf("line %d: the table cannot be read: %w", at.Line, at.Err)
	}
	return err
}

// boundedRows fails when more is read than a row may have.
type boundedRows struct {
	io.Reader
	left int
}

var errLongRow = errors.New("row is too long")

func (b *boundedRows) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errLongRow
	}
	n, err := b.Reader.Read(p)
	b.left -= n
	return n, err
}

// columns are the places of the columns that are read; that of the slice is -1 when there is none.
type columns struct{ label, prediction, slice int }

func columnsOf(header []string, o Options) (columns, error) {
	for i := range header {
		header[i] = strings.TrimSpace(header[i])
	}
	find := func(what, given, flag string, usual []string) (int, error) {
		names := usual
		if given != "" {
			names = []string{given}
		}
		for _, name := range names {
			for i, column := range header {
				if column == name || given == "" && strings.EqualFold(column, name) {
					return i, nil
				}
			}
		}
		return -1, fmt.Errorf("the table has no column for the %s; its columns are %s: name one with %s", what, clip(strings.Join(header, ", ")), flag)
	}
	c := columns{slice: -1}
	var err error
	if c.label, err = find("label", o.Label, "--label-column", labelColumns); err != nil {
		return c, err
	}
	if c.prediction, err = find("prediction", o.Prediction, "--prediction-column", predictionColumns); err != nil {
		return c, err
	}
	if c.label == c.prediction {
		return c, fmt.Errorf("the label and the prediction are the same column, %s", clip(header[c.label]))
	}
	if o.Slice != "" {
		c.slice, err = find("slice", o.Slice, "--slice-column", nil)
	}
	return c, err
}

// tally counts rows. Labels are numbered as they come.
type tally struct {
	labels  []string
	numbers map[string]int
	whole   counts
	slices  map[string]counts
	pairs   int
}

// counts are how often a label, the first, was predicted as another, the second.
type counts map[[2]int]int64

func (t *tally) add(row []string, c columns) error {
	label, err := t.number(row[c.label], "label")
	if err != nil {
		return err
	}
	prediction, err := t.number(row[c.prediction], "prediction")
	if err != nil {
		return err
	}
	pair := [2]int{label, prediction}
	if t.whole == nil {
		t.whole = counts{}
	}
	if err := t.count(t.whole, pair); err != nil || c.slice < 0 {
		return err
	}
	name := strings.TrimSpace(row[c.slice])
	if name == "" {
		return errors.New("the slice is empty")
	}
	slice, known := t.slices[name]
	if !known {
		if len(t.slices) == MaxSlices {
			return fmt.Errorf("there are more than %d slices; is the column one of names?", MaxSlices)
		}
		slice = counts{}
		t.slices[strings.Clone(name)] = slice
	}
	return t.count(slice, pair)
}

func (t *tally) count(in counts, pair [2]int) error {
	before := len(in)
	in[pair]++
	if t.pairs += len(in) - before; t.pairs > maxPairs {
		return errTooMany
	}
	return nil
}

var errTooMany = errors.New("there are too many slices for so many labels; leave the column of slices out")

func (t *tally) number(text, what string) (int, error) {
	text = strings.TrimSpace(text)
	if n, known := t.numbers[text]; known {
		return n, nil
	}
	switch {
	case text == "":
		return 0, fmt.Errorf("the %s is empty", what)
	case !utf8.ValidString(text):
		return 0, fmt.Errorf("the %s is not UTF-8", what)
	case len(t.labels) == registry.MaxLabels:
		return 0, fmt.Errorf("there are more than %d labels; is the column of the %s one of classes?", registry.MaxLabels, what)
	}
	text = strings.Clone(text) // not the whole row
	t.numbers[text] = len(t.labels)
	t.labels = append(t.labels, text)
	return len(t.labels) - 1, nil
}

func (t *tally) evaluations(o Options, sliced bool, warnings *[]string) ([]registry.EvaluationInput, error) {
	switch {
	case len(t.labels) == 0:
		return nil, errors.New("the table has no rows")
	case len(t.labels) == 1:
		return nil, fmt.Errorf("the table has one label only, %s: there is nothing to tell apart", clip(t.labels[0]))
	}
	positive, err := t.positive(o.Positive, warnings)
	if err != nil {
		return nil, err
	}
	var all []registry.EvaluationInput
	if sliced {
		cells := 0
		for _, name := range slices.Sorted(maps.Keys(t.slices)) {
			in := registry.EvaluationInput{Dataset: registry.Dataset{Slice: name}, Confusion: t.matrix(t.slices[name], positive)}
			if cells += len(in.Confusion.Labels) * len(in.Confusion.Labels); cells > maxCells {
				return nil, errTooMany
			}
			all = append(all, in)
		}
	}
	return append(all, registry.EvaluationInput{Confusion: t.matrix(t.whole, positive)}), nil
}

// positive is the label that counts as "yes": the one that was asked for, or the one that everybody takes for it.
func (t *tally) positive(asked string, warnings *[]string) (string, error) {
	switch {
	case asked == "" && len(t.labels) != 2:
		return "", nil
	case asked != "" && !slices.Contains(t.labels, asked):
		return "", fmt.Errorf("the positive label %s is none of the labels in the table, which are %s", clip(asked), clip(strings.Join(t.labels, ", ")))
	case asked != "" && len(t.labels) != 2:
		return "", fmt.Errorf("a positive label is for two labels, and the table has %d", len(t.labels))
	case asked != "":
		return asked, nil
	}
	for i, label := range t.labels {
		if other := t.labels[1-i]; usual[strings.ToLower(label)] == strings.ToLower(other) {
			return other, nil
		}
	}
	warn(warnings, "which of %s and %s is positive is not known, so that there is no precision, recall and f1 of one of them; say so with --positive",
		clip(t.labels[0]), clip(t.labels[1]))
	return "", nil
}

// matrix is the confusion matrix of some rows. Of more than two labels those are in it that occur in the rows.
func (t *tally) matrix(c counts, positive string) *registry.Confusion {
	occurs := make([]bool, len(t.labels))
	n := 0
	for pair := range c {
		for _, label := range pair {
			if !occurs[label] {
				occurs[label] = true
				n++
			}
		}
	}
	var order []int
	for label := range t.labels {
		if occurs[label] || len(t.labels) == 2 || n < 2 {
			order = append(order, label)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return compareLabels(t.labels[a], t.labels[b]) })
	m := &registry.Confusion{Positive: positive, Matrix: make([][]int64, len(order))}
	for i, label := range order {
		m.Labels = append(m.Labels, t.labels[label])
		m.Matrix[i] = make([]int64, len(order))
		for j, prediction := range order {
			m.Matrix[i][j] = c[[2]int{label, prediction}]
		}
	}
	return m
}

// compareLabels puts numbers in their order, before words in theirs.
func compareLabels(a, b string) int {
	x, errX := strconv.ParseInt(a, 10, 64)
	y, errY := strconv.ParseInt(b, 10, 64)
	switch {
	case errX == nil && errY == nil:
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a, b))
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return cmp.Compare(a, b)
}
