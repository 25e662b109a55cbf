package search

import (
	"encoding/hex"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/semver"

	"github.com/herdbook/herdbook/registry"
)

// Parse reads a query. The error is a [registry.FieldError] on "q" that names the term, where it begins, and what to write instead.
func Parse(text string) (Query, error) {
	if len(text) > MaxQueryBytes {
		return Query{}, registry.Invalid("q", "a query is at most %d bytes long, and this one has %d", MaxQueryBytes, len(text))
	}
	if !utf8.ValidString(text) {
		return Query{}, registry.Invalid("q", "the query is not UTF-8")
	}
	var p parser
	for rest := text; ; {
		trimmed := strings.TrimLeftFunc(rest, unicode.IsSpace)
		if trimmed == "" {
			return p.q, nil
		}
		at := utf8.RuneCountInString(text[:len(text)-len(trimmed)]) + 1
		tok, left, err := next(trimmed, at)
		if err != nil {
			return Query{}, err
		}
		if err := p.add(tok); err != nil {
			return Query{}, err
		}
		if len(p.q.Terms) > MaxTerms {
			return Query{}, registry.Invalid("q", "a query has at most %d terms", MaxTerms)
		}
		rest = left
	}
}

// ParseSort reads an order as it stands behind "sort:". The error is a [registry.FieldError] on "sort".
func ParseSort(text string) (Sort, error) {
	s, why := parseSort(text)
	if why != "" {
		return Sort{}, registry.Invalid("sort", "%s", why)
	}
	return s, nil
}

// token is a term as it is written: a name before one of ": < <= > >= =", and a value. Without such a sign it has only a value.
type token struct {
	text        string // as written
	at          int    // the character that it begins at, from 1
	not         bool
	name, sign  string
	value       string
	valueQuoted bool
}

// fail says what is wrong with a term.
func (t token) fail(format string, args ...any) error {
	why := registry.Invalid("q", format, args...)
	return registry.Invalid("q", "%s, at character %d: %s", clip(t.text), t.at, why)
}

// signs, the longer ones first.
var signs = []string{">=", "<=", ">", "<", "=", ":"}

// next takes the first term off a text that begins with one.
func next(text string, at int) (t token, rest string, err error) {
	t.at = at
	body := text
	if after, ok := strings.CutPrefix(body, "-"); ok {
		t.not, body = true, after
	}
	n := strings.IndexFunc(body, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`"<>=:`, r) })
	if n >= 0 {
		for _, sign := range signs {
			if strings.HasPrefix(body[n:], sign) {
				t.name, t.sign, body = body[:n], sign, body[n+len(sign):]
				break
			}
		}
	}
	// metric:f1>0.9 and sort:metric:f1
	if strings.EqualFold(t.name, string(Metric)) && t.sign == ":" && !strings.HasPrefix(body, `"`) {
		end := strings.IndexFunc(body, unicode.IsSpace)
		if end < 0 {
			end = len(body)
		}
		for i := range end {
			if j := slices.IndexFunc(signs[:5], func(sign string) bool { return strings.HasPrefix(body[i:end], sign) }); j >= 0 {
				t.name, t.sign, body = "metric:"+body[:i], signs[j], body[i+len(signs[j]):]
				break
			}
		}
	}
	if quoted, ok := strings.CutPrefix(body, `"`); ok {
		t.valueQuoted = true
		t.value, body, ok = unquote(quoted)
		t.text = text[:len(text)-len(body)]
		if !ok {
			return t, "", t.fail(`the quote is not closed: end it with "`)
		}
		if r, _ := utf8.DecodeRuneInString(body); body != "" && !unicode.IsSpace(r) {
			return t, "", t.fail("something follows the closing quote: put a space between")
		}
	} else {
		end := strings.IndexFunc(body, unicode.IsSpace)
		if end < 0 {
			end = len(body)
		}
		t.value, body = body[:end], body[end:]
		t.text = text[:len(text)-len(body)]
		if strings.Contains(t.value, `"`) {
			return t, "", t.fail(`a quote stands in the middle of it: put the whole value in quotes, and \" for a quote in it`)
		}
	}
	switch {
	case strings.ContainsFunc(t.value, unicode.IsControl):
		return t, "", t.fail("it holds a control character")
	case t.value == "" && t.sign == "" && !t.valueQuoted:
		return t, "", t.fail("a - stands before what must not hold, such as -state:revoked")
	case t.value == "":
		return t, "", t.fail("there is no value: write it right behind, without a space")
	}
	return t, body, nil
}

// unquote reads up to the closing quote. A backslash takes the sign behind it as it is.
func unquote(s string) (value, rest string, closed bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

type parser struct {
	q                    Query
	kind, sort, reported bool // was given
}

var metricName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.@/-]{0,63}$`)

// add takes in one term.
func (p *parser) add(t token) error {
	name := strings.ToLower(t.name)
	switch {
	case t.sign == "":
		p.term(Term{Not: t.not, Field: Word, Text: t.value})
		return nil
	case name == "kind", name == "sort", name == "reported":
		return p.setting(t, name)
	case t.name == "":
		return t.fail("there is no field before %s; to look for the text itself put it in quotes", t.sign)
	case !slices.Contains(fields, Field(name)) && t.sign == ":":
		return t.fail("there is no field %q; there are %s, and kind, sort and reported. A metric is compared by > >= < <= or =, as in f1>0.9, and text that holds a colon stands in quotes",
			clip(t.name), fieldList())
	case name == string(Metric) && t.sign != ":":
		return t.fail("compare a metric by its own name, as in f1>0.9")
	case slices.Contains(fields, Field(name)):
		return p.field(t, Field(name))
	}
	return p.compare(t)
}

func (p *parser) term(t Term) {
	t.pattern = newPattern(t.Text, t.Field == Word || t.Field == Name)
	p.q.Terms = append(p.q.Terms, t)
}

func fieldList() string {
	var list []string
	for _, f := range fields {
		list = append(list, string(f))
	}
	return strings.Join(list, ", ")
}

// setting reads what says how to answer and is no condition.
func (p *parser) setting(t token, name string) error {
	given := map[string]*bool{"kind": &p.kind, "sort": &p.sort, "reported": &p.reported}[name]
	switch {
	case t.sign != ":":
		return t.fail("write %s:%s", name, clip(t.value))
	case t.not:
		return t.fail("%s is no condition, so that there is no - before it", name)
	case *given:
		return t.fail("%s stands there twice: leave one of them out", name)
	}
	*given = true
	switch name {
	case "kind":
		if p.q.Kind = Kind(t.value); p.q.Kind != Models && p.q.Kind != Versions {
			return t.fail("write kind:model or kind:version")
		}
	case "reported":
		if p.q.Reported = t.value == "true"; !p.q.Reported && t.value != "false" {
			return t.fail("write reported:true or reported:false")
		}
	case "sort":
		var why string
		if p.q.Sort, why = parseSort(t.value); why != "" {
			return t.fail("%s", why)
		}
	}
	return nil
}

func parseSort(text string) (s Sort, why string) {
	name, reverse := strings.CutPrefix(text, "-")
	s = Sort{Field: SortField(name), Reverse: reverse}
	if s.Field == ByPublished || s.Field == ByName {
		return s, ""
	}
	s.Field, s.Metric = ByMetric, strings.TrimPrefix(name, "metric:")
	if !metricName.MatchString(s.Metric) {
		return Sort{}, "sort by published, name or a metric, as in sort:f1 for the highest first and sort:-loss for the lowest first"
	}
	return s, ""
}

// compare reads a comparison with a metric.
func (p *parser) compare(t token) error {
	name := strings.TrimPrefix(t.name, "metric:")
	if !metricName.MatchString(name) {
		return t.fail("%q is not a metric's name: a letter, then at most 63 letters, digits or any of _ . @ / -", clip(name))
	}
	number, err := strconv.ParseFloat(t.value, 64)
	if err != nil || math.IsNaN(number) || math.IsInf(number, 0) || strings.ContainsAny(t.value, "_xX") {
		return t.fail("%s is compared with a number, such as %s%s0.9", name, name, t.sign)
	}
	if number == 0 {
		number = 0 // not the negative one
	}
	p.term(Term{Not: t.not, Field: Metric, Op: Op(t.sign), Text: name, Number: number})
	return nil
}

// field reads a condition on one of the fields.
func (p *parser) field(t token, f Field) error {
	term := Term{Not: t.not, Field: f, Text: t.value}
	if t.sign != ":" {
		if f != Version && f != Published && t.sign != "=" {
			return t.fail("%s has no order; write %s:%s", f, f, quote(clip(t.value)))
		}
		if t.sign != "=" {
			term.Op = Op(t.sign)
		}
	}
	switch f {
	case Version:
		text := "v" + strings.TrimPrefix(t.value, "v")
		if !semver.IsValid(text) || semver.Build(text) != "" {
			return t.fail("a version is MAJOR, MAJOR.MINOR or MAJOR.MINOR.PATCH, such as version>=1.2 or version:v1.2.0-rc.1")
		}
		term.Text = text
	case State:
		if _, err := registry.ParseVersionState(t.value); err != nil {
			return t.fail("%v", err)
		}
	case Env:
		if _, err := registry.ParseEnvironmentName(t.value); err != nil && t.value != "*" {
			return t.fail("%v; env:* is any", err)
		}
	case Metric:
		if !metricName.MatchString(t.value) {
			return t.fail("%q is not a metric's name: a letter, then at most 63 letters, digits or any of _ . @ / -", clip(t.value))
		}
	case Digest:
		if term.Text = digestStart(t.value); term.Text == "" {
			return t.fail("a digest is sha256: and %d to 64 hex digits, such as digest:sha256:9f86d081", minDigest)
		}
		if t.not {
			return t.fail("a digest names one version, and everything else is too much: leave the - out")
		}
	case Published:
		var ok bool
		if term.from, term.until, ok = period(t.value, term.Op); !ok {
			return t.fail("a time is a day such as 2026-01-31, or a moment such as 2026-01-31T12:00:00Z")
		}
	}
	p.term(term)
	return nil
}

// minDigest is how many hex digits name a digest at least.
const minDigest = 7

// digestStart is a digest or its beginning as it is looked for, or nothing.
func digestStart(s string) string {
	s = strings.ToLower(strings.TrimPrefix(strings.ToLower(s), "sha256:"))
	if len(s) < minDigest || len(s) > 64 {
		return ""
	}
	if _, err := hex.DecodeString(s + strings.Repeat("0", len(s)%2)); err != nil {
		return ""
	}
	return "sha256:" + s
}

// period is the times that a comparison lets pass. A day stands for all of it, in UTC.
func period(text string, op Op) (from, until time.Time, ok bool) {
	start, err := time.Parse(time.DateOnly, text)
	end := start.AddDate(0, 0, 1)
	if err != nil {
		if start, err = time.Parse(time.RFC3339, text); err != nil {
			return from, until, false
		}
		end = start.Add(1)
	}
	if start.Year() < 1 || end.Year() > 9999 || start.IsZero() {
		return from, until, false
	}
	switch op {
	case Less:
		return from, start, true
	case LessOrEqual:
		return from, end, true
	case Greater:
		return end, until, true
	case GreaterOrEqual:
		return start, until, true
	}
	return start, end, true
}

// clip bounds what an error repeats of its input.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
