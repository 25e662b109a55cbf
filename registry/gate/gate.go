// Package gate decides whether a version may go to an environment, from expressions in the
// Common Expression Language and the facts that are recorded about the version.
//
// A gate never opens for lack of evidence: a metric that was not recorded, an expression that
// fails, does not compile, gives no bool or costs too much, and a fact that nobody knows all
// close it, with a sentence that says why. That holds behind a short circuit too: in
// "metrics.f1 > 0.9 || metrics.recall > 0.9" both metrics must have been recorded. Only what is
// said of the incumbent may be absent, and only while there is no incumbent. A name that is computed
// is known only when the expression runs: ["f1", "recall"].exists(m, metrics[m] > 0.9) asks for one
// of the two.
//
// Noise is told from a drop by three functions. lower(metrics.f1) and upper(metrics.f1) are the ends of the metric's 95 %
// confidence interval, also of incumbent.metrics; a second argument is another level: lower(metrics.f1, 0.9).
// worse_than(incumbent, "f1", 0.05) is true when the metric, of which more is better, is lower than the incumbent's by more than
// chance explains at that significance, and false while there is no incumbent. For accuracy McNemar's exact test decides where both
// evaluations say which of the same examples were predicted right; otherwise it is a z test that takes the two for independent, which
// finds fewer drops. A metric without an interval and an incumbent that was evaluated on other data close the gate. The
// metric and the number are written out; see package statistics for what is computed.
//
// The same expression and facts always give the same verdict, to the last byte of its JSON.
package gate

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"

	"github.com/herdbook/herdbook/registry"
)

// MaxExprLen is the longest expression, in bytes.
const MaxExprLen = 4096

// costLimit bounds the work of one expression, in the units of CEL's runtime cost. Kubernetes
// allows as much for one call of a validation rule, which takes about a tenth of a second.
const costLimit = 1_000_000

// sizeLimit bounds each value that an expression makes or looks at, in elements of lists and maps
// and in bytes of text, at any depth. The cost of a step is charged when it is done, so that this
// is what bounds a single step: [[1]].map(a, [a, a]).map(a, [a, a])... .all(a, a == a) compares
// lists for hours. It leaves room for thousands of evaluations of the usual length.
const sizeLimit = 1 << 22

// sizes are how both limits measure a value. By default a list counts for its own elements only.
func sizes() []types.SizeCalculatorOption {
	return []types.SizeCalculatorOption{
		types.SizeCalculatorMaxDepth(100), types.SizeCalculatorMaxTraversal(sizeLimit), types.SizeCalculatorStringUnitLength(1),
	}
}

// Subject is a version as gates see it.
type Subject struct {
	Tag         registry.Tag       `json:"tag"`
	Commit      registry.ObjectID  `json:"commit"`
	PublishedAt time.Time          `json:"published_at"`
	PublishedBy string             `json:"published_by"`
	Card        registry.CardFacts `json:"card"`
}

// Facts are what a verdict is decided from.
type Facts struct {
	Subject       `json:"version"`
	Now           time.Time             `json:"now"`
	State         registry.VersionState `json:"state"`
	Twin          *Twin                 `json:"twin,omitempty"`        // nil unless another version of the same commit may not be promoted
	Evaluations   []registry.Evaluation `json:"evaluations,omitempty"` // of exactly the version's commit, in the order of recording
	Approvals     []registry.Approval   `json:"approvals,omitempty"`   // of the version for the environment
	WasLiveBefore bool                  `json:"was_live_before"`       // in the environment that this one comes after
	Incumbent     *Incumbent            `json:"incumbent,omitempty"`   // nil while nothing was ever live there
	PolicyCommit  registry.ObjectID     `json:"policy_commit,omitempty"`

	// Selected is what [Select] finds among Evaluations. When it is given they may be left out, unless [Judge.NamesAll] is true.
	Selected *Selected `json:"-"`
}

// Twin is another version of the same commit that nobody may promote: to give what was revoked another name does not make it another thing.
type Twin struct {
	Tag   registry.Tag          `json:"tag"`
	State registry.VersionState `json:"state"`
}

// Incumbent is the version that runs in the environment.
type Incumbent struct {
	Subject     `json:"version"`
	Evaluations []registry.Evaluation `json:"evaluations,omitempty"`

	Selected *Selected `json:"-"` // as of Facts, for the slices of the version in question
}

// Judge compiles expressions, keeps them compiled, and decides. It is safe for use by many
// goroutines.
type Judge struct {
	env *cel.Env

	mu       sync.Mutex
	programs map[string]program
}

// maxPrograms bounds what is kept compiled.
const maxPrograms = 10_000

// New makes a Judge.
func New() (*Judge, error) {
	options := []cel.EnvOption{
		statisticMacros(),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(MaxExprLen),
		cel.CustomTypeAdapter(ordered{}),
		cel.CostSizingStrategy(cost.AggregateSizingStrategy(sizes()...)),
	}
	for name, of := range variables() {
		options = append(options, cel.Variable(name, of))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("environment of gate expressions: %w", err)
	}
	return &Judge{env: env, programs: map[string]program{}}, nil
}

// program is an expression, compiled, or the reason why it is not.
type program struct {
	cel.Program
	refs    []ref
	problem string
}

// Check reports what is wrong with an expression before any facts are known.
func (j *Judge) Check(expr string) error {
	if p := j.program(expr); p.problem != "" {
		return registry.Invalid("expr", "%s", p.problem)
	}
	return nil
}

func (j *Judge) program(expr string) program {
	j.mu.Lock()
	defer j.mu.Unlock()
	if p, ok := j.programs[expr]; ok {
		return p
	}
	if len(j.programs) >= maxPrograms {
		clear(j.programs)
	}
	p := j.compile(expr)
	j.programs[expr] = p
	return p
}

func (j *Judge) compile(expr string) program {
	if len(expr) > MaxExprLen {
		return program{problem: fmt.Sprintf("the expression is longer than %d bytes", MaxExprLen)}
	}
	ast, issues := j.env.Compile(expr)
	if err := issues.Err(); err != nil {
		return program{problem: "the expression does not compile: " + firstLine(err)}
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return program{problem: fmt.Sprintf("the expression gives a %s, not a bool", t)}
	}
	p, err := j.env.Program(ast, cel.CostLimit(costLimit), cel.MemoryLimit(sizeLimit), cel.EvalOptions(cel.OptOptimize), cel.CustomDecoratorV2(orderedLiterals), cel.CustomDecoratorV2(finite),
		cel.MemoryTracking(types.MemoryTrackerSizeCalculator(types.NewSizeCalculator(sizes()...))))
	if err != nil {
		return program{problem: "the expression does not compile: " + firstLine(err)}
	}
	refs, problem := references(ast)
	return program{Program: p, refs: refs, problem: problem}
}

// firstLine of CEL's message, without the name of a source that has none.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return strings.TrimPrefix(line, "ERROR: <input>:")
}

// Decide lets every gate of an environment judge a version, within what a whole request may cost.
func (j *Judge) Decide(env *registry.Environment, facts Facts) registry.Verdict {
	return j.DecideWithin(NewBudget(nil, 1), env, facts)
}

// DecideWithin lets every gate of an environment judge a version. Besides the expressions of the
// policy stand the conditions that the environment itself makes: the version's state, the
// environment that comes before, and the approvals. A gate for which the budget leaves nothing is closed.
func (j *Judge) DecideWithin(b *Budget, env *registry.Environment, facts Facts) registry.Verdict {
	s := facts.Selected
	if s == nil {
		s = Select(env, facts.Evaluations, facts.Now)
	}
	v := registry.Verdict{Environment: env.Name, Open: true, PolicyCommit: facts.PolicyCommit, Gates: []registry.GateVerdict{}, Matched: s.Whole.Matched}
	if s.Whole.Evaluation != nil {
		v.Evaluation = s.Whole.Evaluation.ID
	}
	v.Gates = append(v.Gates, conditions(env, facts)...)
	given := source{budget: b, facts: facts, total: s.Total, incumbent: incumbentSelected(env, facts, s)}
	gates := gates{Judge: j, source: &given}
	v.Gates = append(v.Gates, gates.decide(env.Gates, s.Whole, given.incumbent.Whole)...)
	v.Gates = append(v.Gates, gates.slices(env, s)...)
	v.Open = !slices.ContainsFunc(v.Gates, func(g registry.GateVerdict) bool { return !g.Open })
	return v
}

// incumbentSelected is what is found of the version that runs there, if any does.
func incumbentSelected(env *registry.Environment, facts Facts, s *Selected) *Selected {
	switch {
	case facts.Incumbent == nil:
		return &Selected{}
	case facts.Incumbent.Selected != nil:
		return facts.Incumbent.Selected
	}
	return SelectIncumbent(env, facts.Incumbent.Evaluations, s, facts.Now)
}

// NamesAll reports whether a gate of the environment looks at the list of all evaluations.
func (j *Judge) NamesAll(env *registry.Environment) bool {
	gates := env.Gates
	if env.Slices != nil {
		gates = slices.Concat(gates, env.Slices.Gates)
	}
	return namesAll(j.names(gates))
}

func namesAll(refs []ref) bool {
	return slices.ContainsFunc(refs, func(r ref) bool { return r[0] == "evaluations" })
}

// names are the facts that gates name.
func (j *Judge) names(gates []registry.Gate) []ref {
	var refs []ref
	for _, g := range gates {
		refs = append(refs, j.program(g.Expr).refs...)
	}
	return refs
}

// gates are decided from the facts of one version.
type gates struct {
	*Judge
	*source
}

// decide lets gates look at one record of evidence, beside that of the incumbent.
func (j gates) decide(all []registry.Gate, found, runs registry.Evidenced) []registry.GateVerdict {
	if len(all) == 0 {
		return nil
	}
	refs := j.names(all)
	if namesAll(refs) && j.budget.closed() == "" {
		j.bindAll()
	}
	given := j.bind(found, runs, refs)
	var verdicts []registry.GateVerdict
	for _, g := range all {
		verdicts = append(verdicts, j.Judge.decide(j.budget, g, given))
	}
	return verdicts
}

// slices lets each slice of the data be judged by itself. A model that is good on the whole can fail those who are few.
func (j gates) slices(env *registry.Environment, s *Selected) []registry.GateVerdict {
	if env.Slices == nil {
		return nil
	}
	closed := func(reason string) []registry.GateVerdict {
		return []registry.GateVerdict{{Name: "slices", Values: map[string]any{"slices": len(s.Slices)}, Reason: reason}}
	}
	switch {
	case len(s.Slices) == 0:
		return closed("no slice of the data was evaluated")
	case len(s.Slices) > registry.MaxSlices:
		return closed(fmt.Sprintf("%d slices were evaluated, and at most %d are looked at", len(s.Slices), registry.MaxSlices))
	}
	var all []registry.GateVerdict
	for i, found := range s.Slices {
		var runs registry.Evidenced
		if i < len(j.incumbent.Slices) {
			runs = j.incumbent.Slices[i].Evidenced
		}
		for _, v := range j.decide(env.Slices.Gates, found.Evidenced, runs) {
			v.Slice, v.Reason = found.Name, "slice "+found.Name+": "+v.Reason
			if found.Evaluation != nil {
				v.Evaluation = found.Evaluation.ID
			}
			all = append(all, v)
		}
	}
	return all
}

// cardRules is the gate of what a model card has to have.
func cardRules(rules registry.CardRules, card registry.CardFacts) registry.GateVerdict {
	g := registry.GateVerdict{Name: "card", Values: map[string]any{}}
	if card.Problem != "" {
		g.Reason = "the model card cannot be read: " + card.Problem
		return g
	}
	var lacks []string
	for _, section := range rules.Sections {
		if !slices.ContainsFunc(card.Sections, func(s string) bool { return strings.EqualFold(s, section) }) {
			lacks = append(lacks, fmt.Sprintf("the section %q", section))
		}
	}
	fields := cardObject(card)
	for _, name := range rules.Fields {
		if empty(fields[name]) {
			lacks = append(lacks, fmt.Sprintf("the field %s", name))
		}
	}
	g.Values["lacks"] = len(lacks)
	if g.Open = len(lacks) == 0; g.Open {
		g.Reason = "the model card has all that it must have"
	} else {
		g.Reason = "the model card lacks " + strings.Join(lacks, ", ")
	}
	return g
}

// empty reports whether a field of a card says nothing.
func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case string:
		return strings.TrimSpace(v) == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// conditions are the gates that are not expressions.
func conditions(env *registry.Environment, facts Facts) []registry.GateVerdict {
	var gates []registry.GateVerdict
	if facts.State != registry.Published && facts.State != registry.Deprecated {
		g := registry.GateVerdict{Name: "state", Values: map[string]any{"version.state": string(facts.State)}}
		g.Reason = fmt.Sprintf("%s is %s", facts.Tag, facts.State)
		if facts.State == "" {
			g.Reason = fmt.Sprintf("the state of %s is not known", facts.Tag)
		}
		gates = append(gates, g)
	}
	if t := facts.Twin; t != nil {
		gates = append(gates, registry.GateVerdict{
			Name: "state", Values: map[string]any{"version.state of " + t.Tag.String(): string(t.State)},
			Reason: fmt.Sprintf("%s stands at the same commit and is %s", t.Tag, t.State),
		})
	}
	if !env.After.IsZero() {
		g := registry.GateVerdict{Name: "after " + env.After.String(), Open: facts.WasLiveBefore, Values: map[string]any{"live_in_" + env.After.String(): facts.WasLiveBefore}}
		g.Reason = fmt.Sprintf("%s was live in %s", facts.Tag, env.After)
		if !g.Open {
			g.Reason = fmt.Sprintf("%s was never live in %s", facts.Tag, env.After)
		}
		gates = append(gates, g)
	}
	if env.Card != nil {
		gates = append(gates, cardRules(*env.Card, facts.Card))
	}
	if env.Approvals > 0 {
		// The word of whoever pushed the version does not count: a second person has to look. Nor
		// does the second word of one person.
		people := map[string]bool{}
		for _, a := range facts.Approvals {
			if a.By != facts.PublishedBy {
				people[a.By] = true
			}
		}
		count := len(people)
		gates = append(gates, registry.GateVerdict{
			Name: "approvals", Open: count >= env.Approvals, Values: map[string]any{"approvals": count},
			Reason: fmt.Sprintf("%d of %d approvals by others than %s, who published it", count, env.Approvals, facts.PublishedBy),
		})
	}
	return gates
}

func (j *Judge) decide(b *Budget, g registry.Gate, given facts) registry.GateVerdict {
	p := j.program(g.Expr)
	verdict := registry.GateVerdict{Name: g.Name, Expr: g.Expr, Values: given.values(p.refs)}
	says := func(format string, args ...any) registry.GateVerdict {
		verdict.Reason = fmt.Sprintf(format, args...)
		if g.Name != g.Expr {
			verdict.Reason = g.Name + ": " + verdict.Reason
		}
		return verdict
	}
	if p.problem != "" {
		return says("%s", p.problem)
	}
	if why := b.closed(); why != "" {
		return says("%s", why)
	}
	if lack := given.lack(p.refs); lack != "" {
		return says("%s", lack)
	}
	out, details, err := p.Eval(given.vars)
	cost := uint64(costLimit) // of one that was broken off
	if err == nil && details != nil && details.ActualCost() != nil {
		cost = *details.ActualCost()
	}
	b.spend(cost)
	if err != nil {
		return says("%s cannot be decided: %s", g.Expr, firstLine(err))
	}
	open, isBool := out.(types.Bool)
	if !isBool {
		return says("%s gives a %s, not a bool", g.Expr, out.Type())
	}
	verdict.Open = bool(open)
	if verdict.Open {
		return says("%s holds%s", g.Expr, saw(verdict.Values))
	}
	return says("%s does not hold%s", g.Expr, saw(verdict.Values))
}
