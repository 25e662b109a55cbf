package registry_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// outcomes of 20 examples, of which the first 17 were predicted right.
func outcomes() *registry.Outcomes {
	return &registry.Outcomes{Examples: someDigest, Count: 20, Correct: registry.Bitmap{0xff, 0xff, 0x01}}
}

func TestOutcomes(t *testing.T) {
	matrix := func(in *registry.EvaluationInput) {
		in.Confusion = &registry.Confusion{Labels: []string{"yes", "no"}, Matrix: [][]int64{{7, 1}, {2, 10}}}
	}
	tests := []struct {
		name   string
		change func(*registry.EvaluationInput)
		field  string // of the error
	}{
		{"outcomes alone", func(*registry.EvaluationInput) {}, ""},
		{"with a matrix", matrix, ""},
		{"with samples", func(in *registry.EvaluationInput) { in.Samples = ptr(int64(20)) }, ""},
		{"with the accuracy that they yield", func(in *registry.EvaluationInput) { in.Metrics = map[string]float64{"accuracy": 0.85} }, ""},
		{"with another metric", func(in *registry.EvaluationInput) { in.Metrics = map[string]float64{"f1": 0.1} }, ""},
		{"the most examples", func(in *registry.EvaluationInput) {
			in.Outcomes.Count, in.Outcomes.Correct = registry.MaxExamples, make([]byte, registry.MaxExamples/8)
		}, ""},
		{"one example", func(in *registry.EvaluationInput) { in.Outcomes.Count, in.Outcomes.Correct = 1, []byte{1} }, ""},

		{"no name of the examples", func(in *registry.EvaluationInput) { in.Outcomes.Examples = "" }, "outcomes.examples"},
		{"a name that is no digest", func(in *registry.EvaluationInput) { in.Outcomes.Examples = "calls" }, "outcomes.examples"},
		{"a digest of another algorithm", func(in *registry.EvaluationInput) {
			in.Outcomes.Examples = digest.Digest("sha512:" + strings.Repeat("ab", 64))
		}, "outcomes.examples"},
		{"no count", func(in *registry.EvaluationInput) { in.Outcomes.Count = 0 }, "outcomes.count"},
		{"a count below 0", func(in *registry.EvaluationInput) { in.Outcomes.Count = -8 }, "outcomes.count"},
		{"too many examples", func(in *registry.EvaluationInput) {
			in.Outcomes.Count, in.Outcomes.Correct = registry.MaxExamples+1, make([]byte, registry.MaxExamples/8+1)
		}, "outcomes.count"},
		{"no bitmap", func(in *registry.EvaluationInput) { in.Outcomes.Correct = nil }, "outcomes.correct"},
		{"a bitmap that is too short", func(in *registry.EvaluationInput) { in.Outcomes.Correct = []byte{1, 1} }, "outcomes.correct"},
		{"a bitmap that is too long", func(in *registry.EvaluationInput) { in.Outcomes.Correct = []byte{1, 1, 1, 0} }, "outcomes.correct"},
		{"a bit behind the last example", func(in *registry.EvaluationInput) { in.Outcomes.Correct[2] = 0x10 }, "outcomes.correct"},
		{"another number of samples", func(in *registry.EvaluationInput) { in.Samples = ptr(int64(21)) }, "outcomes.count"},
		{"another number of examples in the matrix", func(in *registry.EvaluationInput) { matrix(in); in.Confusion.Matrix[0][1]++ }, "outcomes.count"},
		{"another number on the diagonal", func(in *registry.EvaluationInput) {
			matrix(in)
			in.Confusion.Matrix[0][0]++
			in.Confusion.Matrix[0][1]--
		}, "outcomes.correct"},
		{"another accuracy", func(in *registry.EvaluationInput) { in.Metrics = map[string]float64{"accuracy": 0.9} }, "metrics.accuracy"},
	}
	for _, tt := range tests {
		in := registry.EvaluationInput{Dataset: registry.Dataset{Name: "calls"}, Outcomes: outcomes()}
		tt.change(&in)
		e, err := registry.NewEvaluation(in, someCommit, "e1", "ada", someTime)
		if tt.field == "" {
			right := float64(in.Outcomes.Correct.Ones()) / float64(in.Outcomes.Count)
			if err != nil || e.Samples == nil || *e.Samples != in.Outcomes.Count || e.Metrics["accuracy"] != right || e.Outcomes == nil {
				t.Errorf("%s: NewEvaluation = %+v, %v, want %d samples and the accuracy %v", tt.name, e, err, in.Outcomes.Count, right)
			}
			continue
		}
		if got := fieldOf(err); got != tt.field {
			t.Errorf("%s: NewEvaluation = %v on %q, want an error on %q", tt.name, err, got, tt.field)
		}
	}
}

// Bit i of byte i/8, the least significant first.
func TestBitmap(t *testing.T) {
	tests := []struct {
		text string
		want registry.Bitmap // nil when it is refused
	}{
		{`"BQ=="`, registry.Bitmap{0b101}},
		{`"/wM="`, registry.Bitmap{0xff, 0x03}},
		{`""`, registry.Bitmap{}},
		{`"BQ"`, nil},                   // without padding
		{`"BR=="`, nil},                 // with bits behind the last byte
		{`"_wM="`, nil},                 // in the alphabet of URLs
		{`"/w` + "\\n" + `M="`, nil},    // with a line break
		{`"BQ== "`, nil},                // with a space
		{`"BQ==BQ=="`, nil},             // two of them
		{`"` + "\\u00ff" + `AAA"`, nil}, // not ASCII
	}
	for _, tt := range tests {
		var got registry.Bitmap
		err := json.Unmarshal([]byte(tt.text), &got)
		if (tt.want == nil) != (err != nil) || !slices.Equal(got, tt.want) {
			t.Errorf("the bitmap %s = %x, %v, want %x", tt.text, got, err, tt.want)
		}
		if err != nil && fieldOf(err) != "outcomes.correct" {
			t.Errorf("the bitmap %s = %v on the field %q, want outcomes.correct", tt.text, err, fieldOf(err))
		}
	}
}

func FuzzBitmap(f *testing.F) {
	for _, seed := range []string{"", "BQ==", "/wM=", "BQ", "BR==", "_wM=", "/w\nM=", "====", "AAAA", "AAA=AAA="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got registry.Bitmap
		if err := got.UnmarshalText([]byte(text)); err != nil {
			if !errors.Is(err, registry.ErrInvalid) || got != nil {
				t.Errorf("UnmarshalText(%q) = %x, %v, want nothing and the error of a value", text, got, err)
			}
			return
		}
		if back, err := got.MarshalText(); err != nil || string(back) != text {
			t.Errorf("UnmarshalText(%q) = %x, which is written as %q, %v", text, got, back, err)
		}
		if got.Ones() > int64(8*len(got)) {
			t.Errorf("%x has %d ones", got, got.Ones())
		}
	})
}

func TestBrief(t *testing.T) {
	e := evaluate(t, registry.EvaluationInput{Outcomes: outcomes()})
	brief := e.Brief()
	if data, err := json.Marshal(brief.Outcomes); err != nil || string(data) != `{"examples":"`+string(someDigest)+`","count":20}` {
		t.Errorf("the outcomes of a brief evaluation = %s, %v, want no bitmap", data, err)
	}
	if e.Outcomes.Correct.Ones() != 17 {
		t.Errorf("Brief changed the evaluation itself: %d examples are right, want 17", e.Outcomes.Correct.Ones())
	}
	if none := (registry.Evaluation{}).Brief(); none.Outcomes != nil {
		t.Errorf("Brief of an evaluation without outcomes has %+v", none.Outcomes)
	}
}
