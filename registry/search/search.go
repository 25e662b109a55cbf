// Package search says what can be asked of all models and versions at once: the query language, one
// query as a tree, and what is found. docs/search.md describes the language for its users.
//
// A query is parsed strictly: a field that is not known, a value that the field cannot have or a number that is none is an error
// that names the place and says what to write instead. Nothing here reads anything; the index answers.
package search

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/semver"

	"github.com/herdbook/herdbook/registry"
)

// Limits of one query.
const (
	MaxQueryBytes = 1024
	MaxTerms      = 32
)

// Query is what was asked. All its terms have to hold.
type Query struct {
	Terms    []Term
	Kind     Kind // empty when the query leaves it open, see [Query.Finds]
	Sort     Sort
	Reported bool // a version that nobody has evaluated is taken at its author's word
}

// Kind says what a query finds.
type Kind string

// The kinds.
const (
	Models   Kind = "model"
	Versions Kind = "version"
)

// Finds is the kind that is looked for: the one that the query names, else versions when a term or the order is about a single version, and models
// when none is.
func (q Query) Finds() Kind {
	switch {
	case q.Kind != "":
		return q.Kind
	case q.Sort.Field == ByMetric, q.Sort.Field == ByPublished, q.Reported:
		return Versions
	case slices.ContainsFunc(q.Terms, func(t Term) bool { return !t.Field.ofModel() }):
		return Versions
	}
	return Models
}

// Order is the order of what is found: the one that the query names, else models by name and versions by when they were published, the newest first.
func (q Query) Order() Sort {
	switch {
	case q.Sort.Field != "":
		return q.Sort
	case q.Finds() == Models:
		return Sort{Field: ByName}
	}
	return Sort{Field: ByPublished}
}

// Sort is an order. Metrics come with the highest first, times with the newest, names from A to Z and the versions of a model from the highest
// precedence down; Reverse turns that around. What lacks the metric is not found.
type Sort struct {
	Field   SortField
	Metric  string // of ByMetric
	Reverse bool
}

// SortField is what an order goes by.
type SortField string

// What an order can go by.
const (
	ByMetric    SortField = "metric"
	ByPublished SortField = "published"
	ByName      SortField = "name"
)

// Field is what a term is about.
type Field string

// The fields. A term about Name, Model or Word holds of all versions of a model, but that words are looked for in a version's tags too.
const (
	Word      Field = ""          // Text stands in the model's name or description, or in a tag of the card
	Name      Field = "name"      // Text stands in the model's name
	Model     Field = "model"     // the model's name
	CardTag   Field = "tag"       // one of the card's tags
	License   Field = "license"   // one of the card's licences
	Task      Field = "task"      // the card's pipeline_tag
	Library   Field = "library"   // the card's library_name
	Language  Field = "language"  // one of the card's languages
	Dataset   Field = "dataset"   // one of the card's datasets
	Base      Field = "base"      // one of the card's base models, with @REVISION or without
	Version   Field = "version"   // the version's tag, by precedence
	State     Field = "state"     // the version's state
	Env       Field = "env"       // an environment that holds the version now
	Digest    Field = "digest"    // of the version's artifact or image, or its beginning
	By        Field = "by"        // who published the version
	Published Field = "published" // when the version was published
	Metric    Field = "metric"    // a metric that the version has, or its value
)

// fields by the words that a query calls them.
var fields = []Field{Name, Model, CardTag, License, Task, Library, Language, Dataset, Base, Version, State, Env, Digest, By, Published, Metric}

// ofModel reports whether a term about the field makes sense of a model as a whole, which is then shown as its latest version is.
func (f Field) ofModel() bool {
	switch f {
	case Word, Name, Model, CardTag, License, Task, Library, Language, Dataset, Base:
		return true
	}
	return false
}

// Op compares. The zero Op asks for equality, and of a metric whether there is one.
type Op string

// The comparisons.
const (
	Is             Op = ""
	Equal          Op = "=" // of metrics only; elsewhere it is read as Is
	Less           Op = "<"
	LessOrEqual    Op = "<="
	Greater        Op = ">"
	GreaterOrEqual Op = ">="
)

// Term is one condition.
type Term struct {
	Not    bool // it must not hold
	Field  Field
	Op     Op      // of Version, Published and Metric
	Text   string  // what is looked for, or the metric's name
	Number float64 // that a metric is compared with

	from, until time.Time // of Published: the times that pass, without until itself; zero is no bound
	pattern     pattern   // of Text
}

// Exact is the text, folded by [Fold], that a value must equal to pass, or false where other values pass too.
func (t Term) Exact() (string, bool) { return t.pattern.exact() }

// Matches reports whether a text passes, whatever its case. It is for the fields that hold text. In the text of the
// term a * stands for any characters, but in a Word or a Name, which are looked for as they are.
func (t Term) Matches(value string) bool {
	if t.Field == Word || t.Field == Name {
		return strings.Contains(Fold(value), t.pattern.folded)
	}
	return t.pattern.matches(value)
}

// MatchesNumber reports whether a value of the metric passes.
func (t Term) MatchesNumber(v float64) bool {
	switch t.Op {
	case Equal:
		return v == t.Number
	case Less:
		return v < t.Number
	case LessOrEqual:
		return v <= t.Number
	case Greater:
		return v > t.Number
	case GreaterOrEqual:
		return v >= t.Number
	}
	return true
}

// MatchesTime reports whether a time passes.
func (t Term) MatchesTime(at time.Time) bool {
	return (t.from.IsZero() || !at.Before(t.from)) && (t.until.IsZero() || at.Before(t.until))
}

// MatchesTag reports whether a version's tag passes, by the precedence of Semantic Versioning 2.0.0, item 11.
func (t Term) MatchesTag(tag string) bool {
	if t.Op == Is {
		switch strings.Count(t.Text, ".") {
		case 0:
			return semver.Major(tag) == t.Text
		case 1:
			return semver.MajorMinor(tag) == t.Text
		}
	}
	switch c := semver.Compare(tag, t.Text); t.Op {
	case Less:
		return c < 0
	case LessOrEqual:
		return c <= 0
	case Greater:
		return c > 0
	case GreaterOrEqual:
		return c >= 0
	default:
		return c == 0
	}
}

// Fold is a text as it is compared: without a difference between upper and lower case.
func Fold(s string) string { return strings.ToLower(s) }

// pattern is a text with * for any characters.
type pattern struct {
	folded string
	parts  []string // between the *; nil where there is none
}

func newPattern(text string, literal bool) pattern {
	p := pattern{folded: Fold(text)}
	if !literal && strings.Contains(text, "*") {
		p.parts = strings.Split(p.folded, "*")
	}
	return p
}

func (p pattern) exact() (string, bool) { return p.folded, p.parts == nil }

func (p pattern) matches(value string) bool {
	if p.parts == nil {
		return equalFold(value, p.folded)
	}
	value = Fold(value)
	first, last := p.parts[0], p.parts[len(p.parts)-1]
	if len(value) < len(first)+len(last) || !strings.HasPrefix(value, first) || !strings.HasSuffix(value, last) {
		return false
	}
	value = value[len(first) : len(value)-len(last)]
	for _, part := range p.parts[1 : len(p.parts)-1] {
		i := strings.Index(value, part)
		if i < 0 {
			return false
		}
		value = value[i+len(part):]
	}
	return true
}

// equalFold reports whether Fold(s) is folded, for most texts without making it.
func equalFold(s, folded string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= 0x80 {
			return Fold(s) == folded
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if i >= len(folded) || c != folded[i] {
			return false
		}
	}
	return len(s) == len(folded)
}

// String writes the query so that it parses to an equal one.
func (q Query) String() string {
	var parts []string
	for _, t := range q.Terms {
		parts = append(parts, t.String())
	}
	if q.Kind != "" {
		parts = append(parts, "kind:"+string(q.Kind))
	}
	if q.Reported {
		parts = append(parts, "reported:true")
	}
	if q.Sort.Field != "" {
		parts = append(parts, "sort:"+q.Sort.String())
	}
	return strings.Join(parts, " ")
}

// String writes the order as it stands behind "sort:".
func (s Sort) String() string {
	text := string(s.Field)
	if s.Field == ByMetric {
		if text = s.Metric; text == string(ByPublished) || text == string(ByName) {
			text = "metric:" + text
		}
	}
	if s.Reverse {
		text = "-" + text
	}
	return text
}

// String writes the term so that it parses to an equal one.
func (t Term) String() string {
	text := ""
	if t.Not {
		text = "-"
	}
	switch {
	case t.Field == Word:
		return text + quoteWord(t.Text)
	case t.Field == Metric && t.Op != Is:
		name := t.Text
		if isField(name) {
			name = "metric:" + name
		}
		return text + name + string(t.Op) + strconv.FormatFloat(t.Number, 'g', -1, 64)
	case t.Op != Is:
		return text + string(t.Field) + string(t.Op) + quote(t.Text)
	}
	return text + string(t.Field) + ":" + quote(t.Text)
}

// quote puts a value in quotes where it would not be read as it is without.
func quote(s string) string {
	if s != "" && !strings.ContainsAny(s, `"\`) && !strings.ContainsFunc(s, unicode.IsSpace) {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// quoteWord does so for a text without a field.
func quoteWord(s string) string {
	if s == "" || strings.ContainsAny(s, ":<>=") || s[0] == '-' {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return quote(s)
}

// isField reports whether a comparison with name would be read as one of a field.
func isField(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains(fields, Field(name)) || name == "kind" || name == "sort" || name == "reported"
}

// Hit is what a query finds: a model or a version of one. Of a model the facts are those of its latest version, see [registry.Latest]; there are none
// while it has no version.
type Hit struct {
	Kind         Kind                       `json:"kind"`
	Model        registry.ModelName         `json:"model"`
	Description  string                     `json:"description,omitempty"`   // of a model
	Tag          registry.Tag               `json:"tag,omitzero"`            // of a version
	Latest       registry.Tag               `json:"latest_version,omitzero"` // of a model
	State        registry.VersionState      `json:"state,omitempty"`
	License      string                     `json:"license,omitempty"`
	Task         string                     `json:"task,omitempty"`
	Metrics      map[string]float64         `json:"metrics,omitempty"`
	SelfReported bool                       `json:"self_reported,omitempty"` // the metrics are the author's own word
	Environments []registry.EnvironmentName `json:"environments,omitempty"`  // that hold the version now
	PublishedAt  time.Time                  `json:"published_at,omitzero"`
	PublishedBy  string                     `json:"published_by,omitempty"`
}

// Version is the tag of the version whose facts the hit has; the zero tag where there is none.
func (h Hit) Version() registry.Tag {
	if h.Kind == Models {
		return h.Latest
	}
	return h.Tag
}
