package gate

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"

	"github.com/herdbook/herdbook/registry"
)

// variables are the facts that an expression can name.
func variables() map[string]*cel.Type {
	object := cel.MapType(cel.StringType, cel.DynType)
	all := map[string]*cel.Type{
		"metrics": cel.MapType(cel.StringType, cel.DoubleType), "evaluation": object, "evaluations": cel.ListType(object),
		"incumbent": cel.DynType, "version": object, "card": object, "lineage": object, "approvals": cel.ListType(object),
	}
	maps.Copy(all, statisticVariables())
	return all
}

// facts are the variables of an expression, as plain values.
type facts struct {
	vars    map[string]any
	found   registry.Evidenced
	why     string // why there is no evaluation, when there is none
	problem string // why the card cannot be read, when it cannot

	lacks map[string]string // why a statistic is not known, by its call
	seen  map[string]any    // what statistics were decided from, by name
}

// source is what the facts of one verdict are taken from.
type source struct {
	budget    *Budget
	facts     Facts
	total     int // evaluations of the version
	incumbent *Selected
	all       []any // the evaluations, once bindAll was called
	bound     bool
}

// bindAll makes the list of all evaluations. It takes long where there are many, and is done once.
func (s *source) bindAll() {
	if s.bound {
		return
	}
	s.bound = true
	s.budget.spend(uint64(len(s.facts.Evaluations)) * evaluationCost)
	for i := range s.facts.Evaluations {
		s.all = append(s.all, evaluationObject(&s.facts.Evaluations[i]))
	}
}

// bind gives the variables their values for one record of evidence and that of the incumbent: those that gates name, because to make the others
// takes longer than the gates.
func (s *source) bind(found, runs registry.Evidenced, refs []ref) facts {
	f := &s.facts
	named := func(name string) bool { return slices.ContainsFunc(refs, func(r ref) bool { return r[0] == name }) }
	g := facts{found: found, problem: f.Card.Problem, lacks: map[string]string{}, seen: map[string]any{}, vars: map[string]any{
		"metrics":     metrics(found.Evaluation),
		"evaluation":  map[string]any{},
		"evaluations": s.all,
		"approvals":   []any{},
		"version":     version(f.Subject),
		"card":        map[string]any{},
		"lineage":     map[string]any{},
		"incumbent":   nil,
	}}
	if named("evaluation") {
		g.vars["evaluation"] = evaluationObject(found.Evaluation)
	}
	if named("approvals") {
		approvals := make([]any, len(f.Approvals))
		for i := range f.Approvals {
			approvals[i] = object(f.Approvals[i])
		}
		g.vars["approvals"] = approvals
	}
	if named("card") {
		g.vars["card"] = cardObject(f.Card)
	}
	if named("lineage") {
		g.vars["lineage"] = lineage(f.Card)
	}
	if f.Incumbent != nil {
		g.vars["incumbent"] = incumbentObject(f.Incumbent, runs.Evaluation)
	}
	g.addStatistics(refs, found.Evaluation, runs.Evaluation)
	switch {
	case found.Ambiguous != "":
		g.why = found.Ambiguous
	case found.Evaluation == nil && s.total == 0:
		g.why = fmt.Sprintf("no evaluation of %s is recorded", f.Tag)
	case found.Evaluation == nil:
		g.why = fmt.Sprintf("none of the %d evaluations of %s matches the evidence that the policy asks for", s.total, f.Tag)
	}
	return g
}

// incumbentObject is what is known of the version that runs there. What is not known is absent, not empty: "no metric is worse" would hold of no
// metrics.
func incumbentObject(i *Incumbent, runs *registry.Evaluation) map[string]any {
	fields := version(i.Subject)
	if m := metrics(runs); len(m) > 0 {
		fields["metrics"] = m
	}
	if runs != nil {
		fields["evaluation"] = evaluationObject(runs)
	}
	if i.Card.Problem == "" {
		fields["card"] = cardObject(i.Card)
	}
	return fields
}

// metrics of an evaluation. One that is not a finite number is none: every comparison with it
// would be false, and its negation true.
func metrics(e *registry.Evaluation) map[string]float64 {
	finite := map[string]float64{}
	if e == nil {
		return finite
	}
	for name, value := range e.Metrics {
		if !math.IsNaN(value) && !math.IsInf(value, 0) {
			finite[name] = value
		}
	}
	return finite
}

func version(s Subject) map[string]any {
	return map[string]any{
		"tag": s.Tag.String(), "commit": string(s.Commit), "prerelease": s.Tag.Prerelease(),
		"published_at": s.PublishedAt, "published_by": s.PublishedBy,
	}
}

// cardObject is the front matter of a card; empty when it cannot be read, so that a gate which
// asks for something in it is closed.
func cardObject(c registry.CardFacts) map[string]any {
	fields := map[string]any{}
	if len(c.FrontMatter) > 0 && c.Problem == "" {
		_ = json.Unmarshal(c.FrontMatter, &fields) // written by this program; an empty card closes gates
	}
	return fields
}

// lineage is what a card names; nothing is known of it when the card cannot be read, so that
// "all base models are allowed" does not hold for want of base models.
func lineage(c registry.CardFacts) map[string]any {
	if c.Problem != "" {
		return map[string]any{}
	}
	return map[string]any{"base_models": list(c.BaseModels), "datasets": list(c.Datasets)}
}

// object is the JSON form of a record, which is what users know of it.
func object(v any) map[string]any {
	fields := map[string]any{}
	data, err := json.Marshal(v)
	if err == nil {
		_ = json.Unmarshal(data, &fields)
	}
	return fields
}

func list[T any](values []T) []any {
	out := []any{}
	data, err := json.Marshal(values)
	if err == nil && values != nil {
		_ = json.Unmarshal(data, &out)
	}
	return out
}

// ref is a fact that an expression names: a variable and the fields after it. A place in a list
// is "[0]".
type ref []string

func (r ref) String() string {
	if isStatistic(r) {
		return r.call()
	}
	return strings.ReplaceAll(strings.Join(r, "."), ".[", "[")
}

// references finds the facts that an expression names, each as far as its fields are written
// out. has(x.y) does not name x.y: it asks whether it is there. The name of a type is no fact. A problem is a statistic of
// something that a macro gave the name of a fact.
func references(compiled *cel.Ast) (refs []ref, problem string) {
	known := variables()
	add := func(r ref) {
		if !slices.ContainsFunc(refs, func(other ref) bool { return slices.Equal(other, r) }) {
			refs = append(refs, r)
		}
	}
	var visit func(e ast.Expr, local map[string]bool)
	visit = func(e ast.Expr, local map[string]bool) {
		if r, ok := chain(e); ok {
			// ".metrics" is the variable, where a macro gave its name to something else.
			name, global := strings.CutPrefix(r[0], ".")
			if _, isFact := known[name]; isFact && (global || !local[name]) {
				r[0] = name
				if isStatistic(r) {
					for _, m := range r.metrics() {
						if local[m[0]] {
							problem = fmt.Sprintf("%s stands where %s is not the fact of that name", r, m[0])
						}
						add(m)
					}
				}
				add(r)
			}
			return
		}
		switch e.Kind() {
		case ast.SelectKind:
			visit(e.AsSelect().Operand(), local)
		case ast.CallKind:
			call := e.AsCall()
			if call.IsMemberFunction() {
				visit(call.Target(), local)
			}
			for _, a := range call.Args() {
				visit(a, local)
			}
		case ast.ListKind:
			for _, x := range e.AsList().Elements() {
				visit(x, local)
			}
		case ast.MapKind:
			for _, x := range e.AsMap().Entries() {
				visit(x.AsMapEntry().Key(), local)
				visit(x.AsMapEntry().Value(), local)
			}
		case ast.ComprehensionKind:
			c := e.AsComprehension()
			visit(c.IterRange(), local)
			inner := maps.Clone(local)
			for _, name := range []string{c.IterVar(), c.IterVar2(), c.AccuVar()} {
				inner[name] = true
			}
			for _, x := range []ast.Expr{c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()} {
				visit(x, inner)
			}
		}
	}
	visit(compiled.NativeRep().Expr(), map[string]bool{})
	return refs, problem
}

// chain reads "a.b.c", "a['b'].c", "a[0].c" and "dyn(a).b"; a test by has() is none.
func chain(e ast.Expr) (ref, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		return ref{e.AsIdent()}, true
	case ast.SelectKind:
		s := e.AsSelect()
		r, ok := chain(s.Operand())
		if !ok || s.IsTestOnly() {
			return nil, false
		}
		return append(r, s.FieldName()), true
	case ast.CallKind:
		call := e.AsCall()
		if call.FunctionName() == overloads.TypeConvertDyn {
			return chain(call.Args()[0])
		}
		if call.FunctionName() != operators.Index || call.Args()[1].Kind() != ast.LiteralKind {
			return nil, false
		}
		r, ok := chain(call.Args()[0])
		switch field := call.Args()[1].AsLiteral().Value().(type) {
		case string:
			return append(r, field), ok
		case int64:
			return append(r, fmt.Sprintf("[%d]", field)), ok
		}
	}
	return nil, false
}

// look follows a reference; ok is false where the path ends before it.
func (f facts) look(r ref) (value any, ok bool) {
	value = f.vars
	for _, name := range r {
		switch fields := value.(type) {
		case map[string]any:
			value, ok = fields[name]
		case map[string]float64:
			value, ok = fields[name]
		case []any:
			place, err := strconv.Atoi(strings.Trim(name, "[]"))
			if ok = err == nil && place >= 0 && place < len(fields); ok {
				value = fields[place]
			}
		default:
			return nil, false
		}
		if !ok {
			return nil, false
		}
	}
	return value, true
}

// lack says which fact is missing that the expression names, or nothing. What is said of the
// incumbent is not missing while there is none.
func (f facts) lack(refs []ref) string {
	for _, r := range refs {
		switch {
		case (r[0] == "metrics" || r[0] == "evaluation") && f.found.Evaluation == nil:
			return fmt.Sprintf("%s is not known: %s", r, f.why)
		case r[0] == "metrics" && len(f.vars["metrics"].(map[string]float64)) == 0:
			return fmt.Sprintf("%s is not recorded", r)
		case (r[0] == "card" || r[0] == "lineage") && f.problem != "":
			return fmt.Sprintf("%s is not known: the model card cannot be read: %s", r, f.problem)
		case r[0] == "evaluations" && len(f.vars["evaluations"].([]any)) == 0:
			return fmt.Sprintf("%s is not known: %s", r, f.why)
		case (r[0] == "incumbent" || (isStatistic(r) && r[1] == "incumbent")) && f.vars["incumbent"] == nil:
			continue
		}
		if _, ok := f.look(r); !ok {
			if why := f.lacks[r.String()]; why != "" {
				return why
			}
			if r[0] == "incumbent" {
				return fmt.Sprintf("%s is not recorded for what runs there", r)
			}
			return fmt.Sprintf("%s is not recorded", r)
		}
	}
	return ""
}

// values are the facts that an expression names, for the verdict. Whole lists and records are
// given by their length: the verdict names the evaluation, which holds the rest.
func (f facts) values(refs []ref) map[string]any {
	values := map[string]any{}
	for _, r := range refs {
		value, _ := f.look(r)
		if r[0] == worseVar {
			for _, name := range []string{"p_value", "test"} {
				if seen, ok := f.seen[name+"("+r[2]+")"]; ok {
					values[name+"("+r[2]+")"] = seen
				}
			}
		}
		switch v := value.(type) {
		case []any:
			values["size("+r.String()+")"] = len(v)
		case map[string]any:
			// "incumbent == null" is answered by which version it is.
			if tag, ok := v["tag"]; ok && len(r) == 1 {
				values[r.String()] = tag
				continue
			}
			values["size("+r.String()+")"] = len(v)
		case map[string]float64:
			values["size("+r.String()+")"] = len(v)
		default:
			values[r.String()] = value
		}
	}
	return values
}

// saw lists values for a sentence, in the order of their names.
func saw(values map[string]any) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch v := values[name].(type) {
		case nil:
			list = append(list, name+" is null")
		case float64:
			list = append(list, fmt.Sprintf("%s is %.6g", name, v))
		default:
			list = append(list, fmt.Sprintf("%s is %v", name, v))
		}
	}
	if len(list) == 0 {
		return ""
	}
	return ": " + strings.Join(list, ", ")
}
