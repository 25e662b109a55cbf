package registry

import (
	"encoding/base64"
	"math"
	"math/bits"

	"github.com/opencontainers/go-digest"
)

// MaxExamples bounds the outcomes of one evaluation.
const MaxExamples = 1 << 20

// Outcomes says of each example whether it was predicted right, so that two versions that were evaluated on the same examples are
// compared example by example.
type Outcomes struct {
	Examples digest.Digest `json:"examples"`          // names the examples and their order
	Count    int64         `json:"count"`             // how many there are
	Correct  Bitmap        `json:"correct,omitempty"` // empty where an answer leaves it out, see [Evaluation.Brief]
}

// Bitmap holds a bit for each example, bit i in byte i/8, the least significant first; 1 is an example that was predicted right. In JSON
// it is standard base64 with padding.
type Bitmap []byte

// Ones is the number of bits that are 1.
func (b Bitmap) Ones() int64 {
	ones := 0
	for _, part := range b {
		ones += bits.OnesCount8(part)
	}
	return int64(ones)
}

// MarshalText writes base64.
func (b Bitmap) MarshalText() ([]byte, error) { return base64.StdEncoding.AppendEncode(nil, b), nil }

// UnmarshalText reads base64, strictly: what MarshalText writes of it is the same text. The error is a [FieldError] on "outcomes.correct".
func (b *Bitmap) UnmarshalText(text []byte) error {
	// The decoder passes over line breaks.
	decoded, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil || base64.StdEncoding.EncodedLen(len(decoded)) != len(text) {
		return Invalid("outcomes.correct", "correct is not base64 in its standard alphabet, with padding and without line breaks")
	}
	*b = decoded
	return nil
}

// check reports the first thing that is wrong with the outcomes of an evaluation, as a [FieldError]. The matrix has been checked before.
func (o *Outcomes) check(in *EvaluationInput) error {
	if o.Examples == "" {
		return Invalid("outcomes.examples", "outcomes name their examples by a digest of the list of them, in its order")
	}
	if err := checkDigest("outcomes.examples", o.Examples); err != nil {
		return err
	}
	if o.Count < 1 || o.Count > MaxExamples {
		return Invalid("outcomes.count", "count is a number of examples between 1 and %d, got %d", MaxExamples, o.Count)
	}
	if want := (o.Count + 7) / 8; int64(len(o.Correct)) != want {
		return Invalid("outcomes.correct", "correct has %d bytes, and %d examples take %d", len(o.Correct), o.Count, want)
	}
	if used := o.Count % 8; used != 0 && o.Correct[len(o.Correct)-1]>>used != 0 {
		return Invalid("outcomes.correct", "correct has a bit that is 1 behind the last of %d examples", o.Count)
	}
	if in.Samples != nil && *in.Samples != o.Count {
		return Invalid("outcomes.count", "count is %d and samples is %d", o.Count, *in.Samples)
	}
	right := o.Correct.Ones()
	if in.Confusion != nil {
		if counted := in.Confusion.Samples(); counted != o.Count {
			return Invalid("outcomes.count", "count is %d and the matrix counts %d examples", o.Count, counted)
		}
		if diagonal := in.Confusion.correct(); diagonal != right {
			return Invalid("outcomes.correct", "correct has %d examples that were predicted right, and the diagonal of the matrix counts %d", right, diagonal)
		}
		return nil
	}
	accuracy := float64(right) / float64(o.Count)
	if given, ok := in.Metrics["accuracy"]; ok && math.Abs(given-accuracy) > tolerance {
		return Invalid("metrics.accuracy", "accuracy is given as %v and the outcomes yield %v", given, accuracy)
	}
	return nil
}

// Brief is the evaluation without its largest part, the outcome of each example, for events and answers: their number and the name of
// the examples stay.
func (e Evaluation) Brief() Evaluation {
	if e.Outcomes != nil {
		brief := *e.Outcomes
		brief.Correct = nil
		e.Outcomes = &brief
	}
	return e
}
