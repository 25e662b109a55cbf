package registry

import (
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// PolicyFile is where a model's policy stands, on its default branch.
const PolicyFile = "herdbook.yaml"

// Policy is the content of herdbook.yaml: the environments of a model in the order in which
// they are written.
type Policy struct {
	Environments []Environment `json:"environments"`
}

// Environment finds an environment of the policy by its name.
func (p *Policy) Environment(name EnvironmentName) (*Environment, bool) {
	if p == nil {
		return nil, false
	}
	for i := range p.Environments {
		if p.Environments[i].Name == name {
			return &p.Environments[i], true
		}
	}
	return nil, false
}

// PromoteMode says who promotes to an environment.
type PromoteMode string

// The modes of promotion.
const (
	PromoteManual PromoteMode = "manual" // a person, or a program with a token
	PromoteAuto   PromoteMode = "auto"   // the server, when the last condition becomes true
)

// Environment is one place that a version can be promoted to, and what it must meet.
type Environment struct {
	Name        EnvironmentName `json:"name"`
	After       EnvironmentName `json:"after,omitzero"` // the version must have been live there
	Promote     PromoteMode     `json:"promote"`
	Prereleases bool            `json:"prereleases,omitempty"`
	Approvals   int             `json:"approvals,omitempty"`
	Evidence    *Evidence       `json:"evidence,omitempty"`
	Gates       []Gate          `json:"gates,omitempty"`
	Slices      *Slices         `json:"slices,omitempty"`
	Card        *CardRules      `json:"card,omitempty"`
	Deploy      []string        `json:"deploy,omitempty"` // hooks of the operator's configuration
	Monitor     *Monitor        `json:"monitor,omitempty"`
}

// Gate is one condition, in the Common Expression Language.
type Gate struct {
	Name string `json:"name"` // the expression itself when the policy gives none
	Expr string `json:"expr"`
}

// Slices are gates that each slice of the data passes by itself: the slices that are required, and every other one that was evaluated on the
// data that the evidence names.
type Slices struct {
	Required []string `json:"required,omitempty"`
	Gates    []Gate   `json:"gates"`
}

// MaxSlices is the largest number of slices that the gates of an environment look at.
const MaxSlices = 256

// Names of the slices that the gates look at, sorted: the required ones and those of the evaluations.
func (s *Slices) Names(evidence *Evidence, evaluations []Evaluation, now time.Time) []string {
	names := slices.Clone(s.Required)
	of := evidence.ofAllSlices()
	for i := range evaluations {
		if e := &evaluations[i]; e.Dataset.Slice != "" && of.Selects(e, now) {
			names = append(names, e.Dataset.Slice)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// ofAllSlices is the evidence that selects the same data and every slice of it.
func (s *Evidence) ofAllSlices() Evidence {
	var of Evidence
	if s != nil {
		of = *s
	}
	of.Slice = nil
	return of
}

// OfSlice is the evidence that selects the same data, but one slice of it.
func (s *Evidence) OfSlice(name string) *Evidence {
	var of Evidence
	if s != nil {
		of = *s
	}
	of.Slice = &name
	return &of
}

// CardRules are what a model card has to have.
type CardRules struct {
	Sections []string `json:"sections,omitempty"` // headings with something below them
	Fields   []string `json:"fields,omitempty"`   // of the front matter, not empty
}

// Monitor holds what is watched while a version is live.
type Monitor struct {
	Alerts []Alert `json:"alerts,omitempty"`
}

// Alert is one alerting rule and what happens when it fires.
type Alert struct {
	Name   string `json:"name"`
	Expr   string `json:"expr"`
	For    string `json:"for,omitempty"`
	Action string `json:"action,omitempty"` // notify, rollback or quarantine
}

// Evidence selects the evaluations that count in an environment. An empty field selects all.
type Evidence struct {
	Dataset      string        `json:"dataset,omitempty"`
	Revision     string        `json:"revision,omitempty"`
	Digest       digest.Digest `json:"digest,omitempty"`
	Split        string        `json:"split,omitempty"`
	Slice        *string       `json:"slice,omitempty"` // nil selects all, "" the evaluations without a slice
	Evaluators   []string      `json:"evaluators,omitempty"`
	MaxAge       time.Duration `json:"max_age,omitempty"` // nanoseconds
	SelfReported bool          `json:"self_reported,omitempty"`
}

// Selects reports whether e counts as evidence at the time now. A nil Evidence selects every
// evaluation that is not self-reported.
func (s *Evidence) Selects(e *Evaluation, now time.Time) bool {
	if s == nil {
		return !e.SelfReported
	}
	matches := func(want, got string) bool { return want == "" || want == got }
	return (s.SelfReported || !e.SelfReported) &&
		matches(s.Dataset, e.Dataset.Name) &&
		matches(s.Revision, e.Dataset.Revision) &&
		matches(string(s.Digest), string(e.Dataset.Digest)) &&
		matches(s.Split, e.Dataset.Split) &&
		(s.Slice == nil || *s.Slice == e.Dataset.Slice) &&
		(len(s.Evaluators) == 0 || slices.Contains(s.Evaluators, e.Evaluator)) &&
		(s.MaxAge == 0 || now.Sub(e.RecordedAt) <= s.MaxAge)
}

// Evidenced is what a selector found among the evaluations of one commit.
type Evidenced struct {
	Evaluation *Evaluation // the newest that matches; nil when none does
	Matched    int         // how many match
	Ambiguous  string      // why Evaluation is nil although some match
}

// Select finds the evidence in evaluations, which are in the order in which they were recorded.
// Without a selector that names the data, the records must agree on what they were measured on,
// because "the f1" of a commit with two datasets is no fact.
func (s *Evidence) Select(evaluations []Evaluation, now time.Time) Evidenced {
	var found Evidenced
	named := s != nil && (s.Dataset != "" || s.Digest != "")
	for i := range evaluations {
		e := &evaluations[i]
		if !s.Selects(e, now) {
			continue
		}
		found.Matched++
		if !named && found.Evaluation != nil && !found.Evaluation.Dataset.Same(e.Dataset) {
			found.Ambiguous = ambiguous(found.Evaluation.Dataset, e.Dataset)
		}
		found.Evaluation = e
	}
	if found.Ambiguous != "" {
		found.Evaluation = nil
	}
	return found
}

// Same reports whether two evaluations were on the same data, wherever each found it.
func (d Dataset) Same(b Dataset) bool {
	return d.Name == b.Name && d.Revision == b.Revision && d.Digest == b.Digest && d.Split == b.Split && d.Slice == b.Slice
}

// Label of a dataset for a sentence: "calls-2026@9f3c/test/night". The digest stands for a
// revision that is not given.
func (d Dataset) Label() string {
	var b strings.Builder
	b.WriteString(d.Name)
	if d.Revision != "" {
		b.WriteString("@" + d.Revision)
	} else if d.Digest != "" {
		b.WriteString("@" + string(d.Digest))
	}
	for _, part := range []string{d.Split, d.Slice} {
		if part != "" {
			b.WriteString("/" + part)
		}
	}
	return b.String()
}

// PolicyState is the policy in force for a model, or why there is none.
type PolicyState struct {
	Commit  ObjectID `json:"commit"`            // the head of the default branch, at which it was read
	Blob    ObjectID `json:"blob,omitempty"`    // the file's content; empty when there is no such file
	Policy  *Policy  `json:"policy,omitempty"`  // nil when there is none or it cannot be read
	Problem string   `json:"problem,omitempty"` // why it cannot be read: every gate is closed
}

// Verdict is the decision of an environment's gates on a version, with all that it was
// decided from.
type Verdict struct {
	Environment  EnvironmentName `json:"environment"`
	Open         bool            `json:"open"`
	PolicyCommit ObjectID        `json:"policy_commit,omitempty"`
	Gates        []GateVerdict   `json:"gates"`
	Evaluation   string          `json:"evaluation,omitempty"` // the id of the evidence
	Matched      int             `json:"matched"`              // evaluations that the evidence selector matched
}

// GateVerdict is the decision of one gate.
type GateVerdict struct {
	Name   string         `json:"name"`
	Expr   string         `json:"expr"`
	Open   bool           `json:"open"`
	Values map[string]any `json:"values"` // each fact that the expression names, as it was
	Reason string         `json:"reason"` // one sentence

	Slice      string `json:"slice,omitempty"`      // of the data, when the gate judges it by itself
	Evaluation string `json:"evaluation,omitempty"` // the id of the evidence of that slice
}

// Reason says in one sentence why the verdict is what it is: the reasons of the closed gates,
// or that all are open.
func (v Verdict) Reason() string {
	var reasons []string
	for _, g := range v.Gates {
		if !g.Open {
			reasons = append(reasons, g.Reason)
		}
	}
	switch {
	case len(reasons) > 0:
		return strings.Join(reasons, "; ")
	case len(v.Gates) == 0:
		return "no gate stands before it"
	}
	return "every gate is open"
}
