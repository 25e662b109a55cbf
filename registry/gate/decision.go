package gate

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/herdbook/herdbook/registry"
)

// Decision is a verdict with all that it was decided from, so that anybody can decide again, without the server and with another
// program: the environment as the policy had it, and the facts.
type Decision struct {
	Model   registry.ModelName          `json:"model"`
	Change  *registry.EnvironmentChange `json:"change,omitempty"` // what was done because of it; its own verdict is left out
	Policy  registry.Environment        `json:"policy"`
	Facts   *Facts                      `json:"facts,omitempty"` // nil when they were too long to be kept
	Verdict registry.Verdict            `json:"verdict"`
}

// MaxDecisionBytes is the longest decision that is read, in bytes.
const MaxDecisionBytes = 64 << 20

// ParseDecision reads a decision: as the server answers it, or in the statement that is attached to a version's artifact, with or without its
// envelope. The error is a [registry.FieldError].
// Source: in-toto attestation framework v1.1, spec/v1/statement.md and spec/v1/envelope.md.
func ParseDecision(data []byte) (Decision, error) {
	var outer struct {
		Payload   []byte          `json:"payload"`
		Predicate json.RawMessage `json:"predicate"`
	}
	if len(data) > MaxDecisionBytes {
		return Decision{}, registry.Invalid("", "a decision has at most %d bytes", MaxDecisionBytes)
	}
	for range 3 { // an envelope around a statement around a decision
		outer.Payload, outer.Predicate = nil, nil
		if err := json.Unmarshal(data, &outer); err != nil {
			return Decision{}, registry.Invalid("", "this is not JSON of a decision: %v", err)
		}
		switch {
		case len(outer.Payload) > 0:
			data = outer.Payload
		case len(outer.Predicate) > 0:
			data = outer.Predicate
		default:
			return readDecision(data)
		}
	}
	return readDecision(data)
}

func readDecision(data []byte) (Decision, error) {
	var d Decision
	if err := json.Unmarshal(data, &d); err != nil {
		return d, registry.Invalid("", "this is not JSON of a decision: %v", err)
	}
	switch {
	case d.Policy.Name.IsZero() || d.Verdict.Environment.IsZero():
		return d, registry.Invalid("policy", "this is no decision about a version: it has no policy and verdict of an environment")
	case d.Facts == nil:
		return d, registry.Invalid("facts", "the facts of this decision were too long to be kept with it; it cannot be replayed")
	}
	return d, nil
}

// Replay decides again from the facts of a decision, and reports whether the verdict is the same to the last byte of its JSON.
func (j *Judge) Replay(d Decision) (again registry.Verdict, same bool, err error) {
	if d.Facts == nil {
		return again, false, registry.Invalid("facts", "a decision without its facts cannot be replayed")
	}
	again = j.Decide(&d.Policy, *d.Facts)
	was, err := json.Marshal(d.Verdict)
	if err != nil {
		return again, false, fmt.Errorf("encode verdict: %w", err)
	}
	is, err := json.Marshal(again)
	if err != nil {
		return again, false, fmt.Errorf("encode verdict: %w", err)
	}
	return again, bytes.Equal(was, is), nil
}
