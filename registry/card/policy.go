package card

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// Limits of a policy.
const (
	maxEnvironments = 64
	maxGates        = 64 // of one environment; its alerts and its hooks too
	maxApprovals    = 100
	maxAge          = 10 * 365 * 24 * time.Hour
)

var (
	hookName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	alertName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,62}$`)
	duration  = regexp.MustCompile(`^([1-9][0-9]{0,9})([smhd])$`)
)

// ParsePolicy reads herdbook.yaml. check is asked about the expression of every gate; nil asks
// nobody. A file that is empty or has no environments is a policy with none.
//
// The error is a [registry.FieldError] of one sentence: the line, what is wrong there, and what to
// write instead.
func ParsePolicy(data []byte, check func(expr string) error) (*registry.Policy, error) {
	if check == nil {
		check = func(string) error { return nil }
	}
	root, flaws := readYAML(data, 1)
	if len(flaws) > 0 {
		slices.SortStableFunc(flaws, func(a, b flaw) int { return a.line - b.line })
		return nil, registry.Invalid("", "%s", flaws[0])
	}
	r := policyReader{check: check, policy: &registry.Policy{}}
	if root.kind != null {
		r.root(root)
	}
	if r.err != nil {
		return nil, r.err
	}
	return r.policy, nil
}

// policyReader fills a policy. After the first error it does nothing more, so that each method
// can go on as if all were well.
type policyReader struct {
	check  func(string) error
	policy *registry.Policy
	err    error
	env    *registry.Environment // that is being read
}

func (r *policyReader) fail(line int, format string, args ...any) {
	if r.err == nil {
		r.err = registry.Invalid("", "%s", flaw{line, fmt.Sprintf(format, args...)})
	}
}

// where begins a sentence about the environment that is being read.
func (r *policyReader) where() string {
	if r.env == nil {
		return ""
	}
	return fmt.Sprintf("in environment %s, ", r.env.Name)
}

// fields reads a mapping, each field by its own function. Other fields are errors.
func (r *policyReader) fields(v value, of string, readers map[string]func(field)) {
	if v.kind != mapping {
		r.fail(v.line, "%s%s is %s; write fields with values below it", r.where(), of, v.kind)
		return
	}
	for _, f := range v.fields {
		read, known := readers[f.name]
		if !known {
			r.fail(f.line, "%s%s has no field %q; use one of %s", r.where(), of, clip(f.name), strings.Join(names(readers), ", "))
			return
		}
		if read(f); r.err != nil {
			return
		}
	}
}

func names[V any](m map[string]V) []string {
	var list []string
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func (r *policyReader) root(v value) {
	r.fields(v, "the policy", map[string]func(field){"environments": func(f field) {
		if f.value.kind == null {
			return
		}
		if f.value.kind != mapping {
			r.fail(f.line, "environments is %s; write the name of each environment with its fields below it", f.value.kind)
			return
		}
		if len(f.value.fields) > maxEnvironments {
			r.fail(f.value.fields[maxEnvironments].line, "a policy has at most %d environments; remove some", maxEnvironments)
			return
		}
		for _, e := range f.value.fields {
			r.environment(e)
		}
	}})
}

func (r *policyReader) environment(f field) {
	name, err := registry.ParseEnvironmentName(f.name)
	if err != nil {
		r.fail(f.line, "%v", err)
		return
	}
	env := registry.Environment{Name: name, Promote: registry.PromoteManual}
	r.env = &env
	defer func() { r.env = nil }()
	if f.value.kind != null {
		r.fields(f.value, "an environment", map[string]func(field){
			"after":       func(f field) { r.after(&env, f) },
			"promote":     func(f field) { env.Promote = registry.PromoteMode(r.oneOf(f, "auto", "manual")) },
			"prereleases": func(f field) { env.Prereleases = r.boolean(f) },
			"approvals":   func(f field) { env.Approvals = r.count(f, maxApprovals) },
			"evidence":    func(f field) { env.Evidence = r.evidence(f) },
			"gates": func(f field) {
				for _, item := range r.list(f, maxGates) {
					env.Gates = append(env.Gates, r.gate(item))
				}
			},
			"slices":  func(f field) { env.Slices = r.slices(f) },
			"card":    func(f field) { env.Card = r.card(f) },
			"deploy":  func(f field) { env.Deploy = r.hooks(f) },
			"monitor": func(f field) { env.Monitor = r.monitor(f) },
		})
	}
	r.policy.Environments = append(r.policy.Environments, env)
}

// after must name an environment that stands before, so that there are no circles.
func (r *policyReader) after(env *registry.Environment, f field) {
	name, err := registry.ParseEnvironmentName(r.text(f))
	switch _, before := r.policy.Environment(name); {
	case r.err != nil:
	case err != nil:
		r.fail(f.line, "%safter: %v", r.where(), err)
	case name == env.Name:
		r.fail(f.line, "environment %s comes after itself; name another one", name)
	case !before:
		r.fail(f.line, "%safter names %s, which is not written above; write %s above %s or name another one", r.where(), name, name, env.Name)
	}
	env.After = name
}

func (r *policyReader) evidence(f field) *registry.Evidence {
	var e registry.Evidence
	if f.value.kind == mapping && len(f.value.fields) == 0 {
		r.fail(f.line, "%sevidence selects nothing; name a dataset or remove it", r.where())
	}
	r.fields(f.value, "evidence", map[string]func(field){
		"dataset":  func(f field) { e.Dataset = r.text(f) },
		"revision": func(f field) { e.Revision = r.text(f) },
		"digest": func(f field) {
			e.Digest = digest.Digest(r.text(f))
			if r.err == nil && (e.Digest.Validate() != nil || e.Digest.Algorithm() != digest.SHA256) {
				r.fail(f.line, "%sdigest is %q; write sha256: and 64 hex digits", r.where(), clip(string(e.Digest)))
			}
		},
		"split": func(f field) { e.Split = r.text(f) },
		"slice": func(f field) {
			slice := ""
			if f.value.kind != text || f.value.text() != "" {
				slice = r.text(f)
			}
			e.Slice = &slice
		},
		"evaluators": func(f field) {
			for _, item := range r.list(f, maxGates) {
				e.Evaluators = append(e.Evaluators, r.text(field{"evaluators", item.line, item}))
			}
			if len(e.Evaluators) == 0 {
				r.fail(f.line, "%sevaluators names nobody; name one or remove it", r.where())
			}
		},
		"max_age":       func(f field) { e.MaxAge = r.duration(f) },
		"self_reported": func(f field) { e.SelfReported = r.boolean(f) },
	})
	return &e
}

func (r *policyReader) slices(f field) *registry.Slices {
	var s registry.Slices
	r.fields(f.value, "slices", map[string]func(field){
		"required": func(f field) { s.Required = r.texts(f, registry.MaxSlices) },
		"gates": func(f field) {
			for _, item := range r.list(f, maxGates) {
				s.Gates = append(s.Gates, r.gate(item))
			}
		},
	})
	if len(s.Gates) == 0 {
		r.fail(f.line, "%sslices has no gates; write what each slice must pass, such as metrics.recall >= 0.8", r.where())
	}
	return &s
}

func (r *policyReader) card(f field) *registry.CardRules {
	var c registry.CardRules
	r.fields(f.value, "card", map[string]func(field){
		"sections": func(f field) { c.Sections = r.texts(f, maxGates) },
		"fields":   func(f field) { c.Fields = r.texts(f, maxGates) },
	})
	if len(c.Sections)+len(c.Fields) == 0 {
		r.fail(f.line, "%scard asks for nothing; name sections or fields, or remove it", r.where())
	}
	return &c
}

// texts is a list of texts, each once.
func (r *policyReader) texts(f field, most int) []string {
	var texts []string
	for _, item := range r.list(f, most) {
		t := r.text(field{f.name, item.line, item})
		if slices.Contains(texts, t) {
			r.fail(item.line, "%s%s names %q twice; remove one", r.where(), f.name, clip(t))
		}
		texts = append(texts, t)
	}
	return texts
}

// gate is an expression, or a name and an expression.
func (r *policyReader) gate(v value) registry.Gate {
	var g registry.Gate
	line := v.line
	switch v.kind {
	case text:
		g.Expr = r.expression(field{"the gate", v.line, v})
		g.Name = g.Expr
	case mapping:
		r.fields(v, "a gate", map[string]func(field){
			"name": func(f field) { g.Name = r.text(f) },
			"expr": func(f field) { g.Expr, line = r.expression(f), f.value.line },
		})
		switch {
		case r.err != nil:
		case g.Expr == "":
			r.fail(v.line, "%sa gate has no expr; write the expression that must be true", r.where())
		case g.Name == "":
			g.Name = g.Expr
		}
	default:
		r.fail(v.line, "%sa gate is %s; write an expression in quotes, or name and expr", r.where(), v.kind)
	}
	if r.err != nil {
		return g
	}
	if err := r.check(g.Expr); err != nil {
		r.fail(line, "%sgate %q: %v; correct the expression", r.where(), clip(g.Name), err)
	}
	return g
}

func (r *policyReader) hooks(f field) []string {
	var hooks []string
	for _, item := range r.list(f, maxGates) {
		name := r.text(field{"deploy", item.line, item})
		switch {
		case r.err != nil:
		case !hookName.MatchString(name):
			r.fail(item.line, "%s%q is not a hook's name; write a lower-case letter, then at most 62 of a-z, 0-9 and '-'", r.where(), clip(name))
		case slices.Contains(hooks, name):
			r.fail(item.line, "%sdeploy names %s twice; remove one", r.where(), name)
		}
		hooks = append(hooks, name)
	}
	return hooks
}

func (r *policyReader) monitor(f field) *registry.Monitor {
	var m registry.Monitor
	r.fields(f.value, "monitor", map[string]func(field){"alerts": func(f field) {
		for _, item := range r.list(f, maxGates) {
			m.Alerts = append(m.Alerts, r.alert(item, m.Alerts))
		}
	}})
	return &m
}

// alert has an expression in PromQL, which is Prometheus's to check.
func (r *policyReader) alert(v value, before []registry.Alert) registry.Alert {
	a := registry.Alert{Action: "notify"}
	r.fields(v, "an alert", map[string]func(field){
		"name": func(f field) {
			a.Name = r.text(f)
			if r.err == nil && !alertName.MatchString(a.Name) {
				r.fail(f.line, "%s%q is not an alert's name; write a letter, then at most 62 letters, digits, '_' or '-'", r.where(), clip(a.Name))
			}
		},
		"expr": func(f field) { a.Expr = r.expression(f) },
		"for": func(f field) {
			r.duration(f)
			a.For = f.value.text()
		},
		"action": func(f field) { a.Action = r.oneOf(f, "notify", "rollback", "quarantine") },
	})
	switch {
	case r.err != nil:
	case a.Name == "":
		r.fail(v.line, "%san alert has no name; give it one", r.where())
	case a.Expr == "":
		r.fail(v.line, "%salert %s has no expr; write the PromQL expression that fires it", r.where(), a.Name)
	case slices.ContainsFunc(before, func(b registry.Alert) bool { return b.Name == a.Name }):
		r.fail(v.line, "%stwo alerts are named %s; rename one", r.where(), a.Name)
	}
	return a
}

// list of a field; a list may be empty.
func (r *policyReader) list(f field, most int) []value {
	switch {
	case f.value.kind != list:
		r.fail(f.line, "%s%s is %s; write a list", r.where(), f.name, f.value.kind)
		return nil
	case len(f.value.list) > most:
		r.fail(f.value.list[most].line, "%s%s has more than %d entries; remove some", r.where(), f.name, most)
		return nil
	}
	return f.value.list
}

// text of one line that is not empty.
func (r *policyReader) text(f field) string {
	s := f.value.text()
	switch {
	case f.value.kind == number || f.value.kind == boolean:
		r.fail(f.value.line, "%s%s is %s; put it in quotes", r.where(), f.name, f.value.kind)
	case f.value.kind != text:
		r.fail(f.value.line, "%s%s is %s; write a text", r.where(), f.name, f.value.kind)
	case strings.TrimSpace(s) == "":
		r.fail(f.value.line, "%s%s is empty; write something or remove it", r.where(), f.name)
	default:
		if why := badText(s); why != "" {
			r.fail(f.value.line, "%s%s %s; shorten it to one plain line", r.where(), f.name, why)
		}
	}
	return s
}

// expression may go over several lines. Its length is for check to judge; the bound here is for
// the expressions that nobody checks.
func (r *policyReader) expression(f field) string {
	const maxExpression = 16 << 10
	s := strings.TrimSpace(f.value.text())
	switch {
	case f.value.kind != text:
		r.fail(f.value.line, "%s%s is %s; write an expression in quotes", r.where(), f.name, f.value.kind)
	case s == "":
		r.fail(f.value.line, "%s%s is empty; write an expression or remove it", r.where(), f.name)
	case len(s) > maxExpression:
		r.fail(f.value.line, "%s%s is longer than %d bytes; shorten it", r.where(), f.name, maxExpression)
	}
	return s
}

func (r *policyReader) oneOf(f field, allowed ...string) string {
	if f.value.kind != text || !slices.Contains(allowed, f.value.text()) {
		r.fail(f.value.line, "%s%s is not one of %s; write one of them", r.where(), f.name, strings.Join(allowed, ", "))
	}
	return f.value.text()
}

func (r *policyReader) boolean(f field) bool {
	b, ok := f.value.scalar.(bool)
	if !ok {
		r.fail(f.value.line, "%s%s is %s; write true or false", r.where(), f.name, f.value.kind)
	}
	return b
}

func (r *policyReader) count(f field, most int64) int {
	n, ok := f.value.scalar.(int64)
	if !ok || n < 0 || n > most {
		r.fail(f.value.line, "%s%s is not a count; write a whole number from 0 to %d", r.where(), f.name, most)
	}
	return int(n)
}

// duration is a number with one unit: 90m, 12h, 30d. A day has 24 hours.
func (r *policyReader) duration(f field) time.Duration {
	m := duration.FindStringSubmatch(f.value.text())
	if m == nil {
		r.fail(f.value.line, "%s%s is not a duration; write a number and s, m, h or d, such as 30d", r.where(), f.name)
		return 0
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // at most ten digits
	unit := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
	if n > int64(maxAge/unit) {
		r.fail(f.value.line, "%s%s is longer than ten years; shorten it", r.where(), f.name)
		return 0
	}
	return time.Duration(n) * unit
}
