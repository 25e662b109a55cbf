package gate

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/statistics"
)

// The calls of lower, upper and worse_than become look-ups in these variables, which no expression can name by itself:
//
//	lower(metrics.f1)                    @lower["metrics"]["f1"]["0.95"]
//	upper(incumbent.metrics.f1, 0.9)     @upper["incumbent"]["f1"]["0.9"]
//	worse_than(incumbent, "f1", 0.05)    @worse_than["incumbent"]["f1"]["0.05"]
//
// So what they need is known before the expression runs, as for any other fact, and what is missing closes the gate.
const (
	lowerVar = "@lower"
	upperVar = "@upper"
	worseVar = "@worse_than"
)

func isStatistic(r ref) bool { return strings.HasPrefix(r[0], "@") }

// statisticVariables are the types of those variables: whose metric it is, the metric, and the level or the significance.
func statisticVariables() map[string]*cel.Type {
	three := func(t *cel.Type) *cel.Type {
		for range 3 {
			t = cel.MapType(cel.StringType, t)
		}
		return t
	}
	return map[string]*cel.Type{lowerVar: three(cel.DoubleType), upperVar: three(cel.DoubleType), worseVar: three(cel.BoolType)}
}

// statisticMacros replace the calls when an expression is parsed.
func statisticMacros() cel.EnvOption {
	return cel.Macros(cel.GlobalVarArgMacro("lower", bound(lowerVar)), cel.GlobalVarArgMacro("upper", bound(upperVar)), cel.GlobalVarArgMacro("worse_than", worseThan))
}

// bound is the macro of lower and upper.
func bound(variable string) cel.MacroFactory {
	name := strings.TrimPrefix(variable, "@")
	return func(f cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
		if len(args) != 1 && len(args) != 2 {
			return nil, f.NewError(0, fmt.Sprintf("%s takes a metric, and perhaps a level: %s(metrics.f1, 0.9)", name, name))
		}
		r, _ := chain(args[0])
		whose, metric := "", ""
		if len(r) > 0 {
			r[0] = strings.TrimPrefix(r[0], ".")
		}
		switch {
		case len(r) == 2 && r[0] == "metrics":
			whose, metric = r[0], r[1]
		case len(r) == 3 && r[0] == "incumbent" && r[1] == "metrics":
			whose, metric = r[0], r[2]
		default:
			return nil, f.NewError(args[0].ID(), fmt.Sprintf("%s takes a metric that is written out, such as metrics.f1 or incumbent.metrics.f1", name))
		}
		level := registry.IntervalLevel
		if len(args) == 2 {
			var ok bool
			if level, ok = number(args[1]); !ok || level < 0.5 || level >= 1 {
				return nil, f.NewError(args[1].ID(), fmt.Sprintf("the level of %s is a number that is at least 0.5 and below 1, such as 0.95", name))
			}
		}
		return lookUp(f, variable, whose, metric, level), nil
	}
}

// worseThan is the macro of worse_than.
func worseThan(f cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
	if len(args) != 3 {
		return nil, f.NewError(0, `worse_than takes the incumbent, the name of a metric and a significance: worse_than(incumbent, "f1", 0.05)`)
	}
	if r, ok := chain(args[0]); !ok || len(r) != 1 || strings.TrimPrefix(r[0], ".") != "incumbent" {
		return nil, f.NewError(args[0].ID(), "worse_than compares with incumbent")
	}
	var metric types.String
	if args[1].Kind() == ast.LiteralKind {
		metric, _ = args[1].AsLiteral().(types.String)
	}
	if metric == "" {
		return nil, f.NewError(args[1].ID(), `worse_than takes the name of a metric that is written out, such as "f1"`)
	}
	significance, ok := number(args[2])
	if !ok || significance <= 0 || significance > 0.5 {
		return nil, f.NewError(args[2].ID(), "the significance of worse_than is a number above 0 and at most 0.5, such as 0.05")
	}
	return lookUp(f, worseVar, "incumbent", string(metric), significance), nil
}

// number that is written out.
func number(e ast.Expr) (float64, bool) {
	if e.Kind() != ast.LiteralKind {
		return 0, false
	}
	switch v := e.AsLiteral().(type) {
	case types.Double:
		return float64(v), true
	case types.Int:
		return float64(v), true
	}
	return 0, false
}

func lookUp(f cel.MacroExprFactory, variable, whose, metric string, n float64) ast.Expr {
	e := f.NewIdent(variable)
	for _, key := range []string{whose, metric, strconv.FormatFloat(n, 'g', -1, 64)} {
		e = f.NewCall(operators.Index, e, f.NewLiteral(types.String(key)))
	}
	return e
}

// call is the statistic as it is written in an expression.
func (r ref) call() string {
	name, whose, metric, n := strings.TrimPrefix(r[0], "@"), r[1], r[2], r[3]
	switch {
	case r[0] == worseVar:
		return fmt.Sprintf("%s(%s, %q, %s)", name, whose, metric, n)
	case n == strconv.FormatFloat(registry.IntervalLevel, 'g', -1, 64):
		return fmt.Sprintf("%s(%s)", name, r.metrics()[0])
	}
	return fmt.Sprintf("%s(%s, %s)", name, r.metrics()[0], n)
}

// metrics are the facts that a statistic is of.
func (r ref) metrics() []ref {
	of, incumbent := ref{"metrics", r[2]}, ref{"incumbent", "metrics", r[2]}
	switch {
	case r[0] == worseVar:
		return []ref{of, incumbent}
	case r[1] == "incumbent":
		return []ref{incumbent}
	}
	return []ref{of}
}

// addStatistics computes those that expressions ask for. One that cannot be computed has a reason in f.lacks, if not because a
// metric is missing, which is a reason of its own.
func (f facts) addStatistics(refs []ref, version, incumbent *registry.Evaluation) {
	for name := range statisticVariables() {
		f.vars[name] = map[string]any{}
	}
	for _, r := range refs {
		if !isStatistic(r) {
			continue
		}
		n, _ := strconv.ParseFloat(r[3], 64) // as the macro wrote it
		var value any
		var lack string
		switch {
		case r[0] == worseVar && f.vars["incumbent"] == nil:
			value = false
		case r[0] == worseVar:
			value, lack = f.worse(r[2], n, version, incumbent)
		case r[1] == "incumbent":
			value, lack = end(r, incumbent, n)
		default:
			value, lack = end(r, version, n)
		}
		if value == nil {
			f.lacks[r.String()] = lack
			continue
		}
		fields := f.vars[r[0]].(map[string]any)
		for _, key := range r[1:3] {
			if _, ok := fields[key]; !ok {
				fields[key] = map[string]any{}
			}
			fields = fields[key].(map[string]any)
		}
		fields[r[3]] = value
	}
}

// end of the interval of a metric, or why there is none.
func end(r ref, e *registry.Evaluation, level float64) (value any, lack string) {
	if e == nil {
		return nil, ""
	}
	in, ok := e.Interval(r[2], level)
	if !ok || math.IsNaN(in.Lower) || math.IsNaN(in.Upper) {
		return nil, fmt.Sprintf("%s is not known: %s, and %s has none", r, howMeasured, r.metrics()[0])
	}
	if r[0] == lowerVar {
		return in.Lower, ""
	}
	return in.Upper, ""
}

// howMeasured says of what metrics a variance is known.
const howMeasured = "a metric has an interval when it comes from a confusion matrix, and accuracy also when the number of samples is recorded"

// worse decides whether a metric of version is lower than that of incumbent beyond noise, or says why that cannot be known.
func (f facts) worse(metric string, significance float64, version, incumbent *registry.Evaluation) (value any, lack string) {
	if version == nil || incumbent == nil {
		return nil, ""
	}
	call := ref{worseVar, "incumbent", metric, strconv.FormatFloat(significance, 'g', -1, 64)}.call()
	if !version.Dataset.Same(incumbent.Dataset) {
		return nil, fmt.Sprintf("%s is not known: the version was evaluated on %s, and what runs there on %s", call, version.Dataset.Label(), incumbent.Dataset.Label())
	}
	p, test, ok := compare(metric, version, incumbent)
	p, _ = strconv.ParseFloat(strconv.FormatFloat(p, 'g', 9, 64), 64) // the same on every machine
	if !ok {
		return nil, fmt.Sprintf("%s is not known: %s, and %s of the two versions has not", call, howMeasured, metric)
	}
	f.seen["p_value("+metric+")"], f.seen["test("+metric+")"] = p, test
	return p <= significance, ""
}

// compare is the p-value of the better of two tests: McNemar's, where it is known which examples both versions got right, and the
// z test of the two metrics otherwise.
func compare(metric string, version, incumbent *registry.Evaluation) (p float64, test string, ok bool) {
	a, b := incumbent.Outcomes, version.Outcomes
	if metric == "accuracy" && a != nil && b != nil && a.Examples == b.Examples && a.Count == b.Count && len(a.Correct) > 0 {
		if d, ok := statistics.Compare(a.Correct, b.Correct); ok {
			return d.Lower(), "mcnemar", true
		}
	}
	before, okBefore := incumbent.Estimate(metric)
	after, okAfter := version.Estimate(metric)
	if p = statistics.Lower(before, after); !okBefore || !okAfter || math.IsNaN(p) {
		return 0, "", false
	}
	return p, "z", true
}
