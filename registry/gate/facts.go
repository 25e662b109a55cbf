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

// bind gives the variables their values; the list of all evaluations and statistics only when they are asked for,
// because they can take long.
func bind(env *registry.Environment, f Facts, found registry.Evidenced, refs []ref) facts {
	all := slices.ContainsFunc(refs, func(r ref) bool { return r[0] == "evaluations" })
	var evaluations []any
	for i := range f.Evaluations {
		if all {
			evaluations = append(evaluations, object(&f.Evaluations[i]))
		}
	}
	approvals := make([]any, len(f.Approvals))
	for i := range f.Approvals {
		approvals[i] = object(f.Approvals[i])
	}
	g := facts{found: found, problem: f.Card.Problem, lacks: map[string]string{}, seen: map[string]any{}, vars: map[string]any{
		"metrics":     metrics(found.Evaluation),
		"evaluation":  object(found.Evaluation),
		"evaluations": evaluations,
		"approvals":   approvals,
		"version":     version(f.Subject),
		"card":        cardObject(f.Card),
		"lineage":     lineage(f.Card),
		"incumbent":   nil,
	}}
	var runs *registry.Evaluation
	if f.Incumbent != nil {
		evidence := env.Evidence.Select(f.Incumbent.Evaluations, f.Now)
		incumbent := version(f.Incumbent.Subject)
		// What is not known of it is absent, not empty: "no metric is worse" would hold of no metrics.
		if m := metrics(evidence.Evaluation); len(m) > 0 {
			incumbent["metrics"] = m
		}
		if evidence.Evaluation != nil {
			incumbent["evaluation"] = object(evidence.Evaluation)
		}
		if f.Incumbent.Card.Problem == "" {
			incumbent["card"] = cardObject(f.Incumbent.Card)
		}
		g.vars["incumbent"], runs = incumbent, evidence.Evaluation
	}
	g.addStatistics(refs, found.Evaluation, runs)
	switch {
	case found.Ambiguous != "":
		g.why = found.Ambiguous
	case found.Evaluation == nil && len(f.Evaluations) == 0:
		g.why = fmt.Sprintf("no evaluation of %s is recorded", f.Tag)
	case found.Evaluation == nil:
		g.why = fmt.Sprintf("none of the %d evaluations of %s matches the evidence that the policy asks for", len(f.Evaluations), f.Tag)
	}
	return g
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

// object is the JSON form of a record, which is what users know of it. Counts stay integers. Intervals are left to lower and
// upper, so that many evaluations do not use up the limits.
func object(v any) map[string]any {
	fields := map[string]any{}
	if e, ok := v.(*registry.Evaluation); ok && e == nil {
		return fields
	}
	if e, ok := v.(*registry.Evaluation); ok {
		brief := e.Brief()
		brief.Intervals = nil
		v = &brief
	}
	data, err := json.Marshal(v)
	if err == nil {
		_ = json.Unmarshal(data, &fields)
	}
	if e, ok := v.(*registry.Evaluation); ok {
		if fields["metrics"] = metrics(e); len(metrics(e)) == 0 {
			delete(fields, "metrics")
		}
		if e.Samples != nil {
			fields["samples"] = *e.Samples
		}
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
