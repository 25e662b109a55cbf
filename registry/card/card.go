// Package card reads what people write about a model: its model card (README.md with front
// matter, as on the Hugging Face Hub) and its policy (herdbook.yaml).
//
// A card is read leniently: what cannot be used is named in the facts' Problem, with its line, and
// the rest is kept. A policy is read strictly, because it decides what may be deployed: an unknown
// field, a field written twice or an expression that does not compile is an error, with its line.
// Both are bounded in size, depth and number of values, aliases counted as often as they are used.
package card

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
)

// File is where a model's card stands in its repository.
const File = "README.md"

// Limits of a card.
const (
	maxItems    = 2000 // of one list: some cards name more than a thousand languages
	maxText     = 1024 // bytes of one text that becomes a fact
	maxProblems = 5    // that are told about one card
)

// Parse reads the front matter of a model card: the YAML between a first line "---" and the next
// line "---". Its fields are those of Hugging Face's model cards, and base_model_revision, which is
// ours: the revision of all base models, or a list with one for each.
//
// A card without front matter has no facts but its sections, and no problem.
// Source: https://github.com/huggingface/hub-docs, modelcard.md and docs/hub/model-cards.md.
func Parse(data []byte) registry.CardFacts {
	s := split(data)
	facts := read(s)
	facts.Sections = sections(s.body)
	return facts
}

func read(s parts) registry.CardFacts {
	switch {
	case s.unclosed:
		return registry.CardFacts{Problem: flaw{s.line, `the front matter is not closed; end it with a line "---"`}.String()}
	case !s.found:
		return registry.CardFacts{}
	}
	v, flaws := readYAML(s.front, s.line+1)
	r := cardReader{problems: flaws}
	switch v.kind {
	case mapping:
		r.read(v)
	case null:
	default:
		r.problem(v.line, "the front matter is %s, not fields with values", v.kind)
	}
	if v.kind == mapping && len(v.fields) > 0 && len(flaws) == 0 {
		r.facts.FrontMatter = encode(v)
	}
	r.facts.Problem = join(r.problems)
	return r.facts
}

// Body is the Markdown of a card, without the front matter.
func Body(data []byte) []byte { return split(data).body }

// parts of a card.
type parts struct {
	found, unclosed bool
	line            int // of the opening "---", from 1
	front, body     []byte
}

var byteOrderMark = []byte("\ufeff")

// split finds the front matter. Empty lines may stand before it, as huggingface_hub allows
// (repocard.py, REGEX_YAML_BLOCK).
func split(data []byte) parts {
	rest := bytes.TrimPrefix(data, byteOrderMark)
	p := parts{body: rest}
	open := false
	start := 0
	for offset := 0; offset < len(rest); {
		end := len(rest)
		if i := bytes.IndexByte(rest[offset:], '\n'); i >= 0 {
			end = offset + i + 1
		}
		fence := bytes.HasPrefix(rest[offset:end], []byte("---")) && len(bytes.TrimSpace(rest[offset+3:end])) == 0
		switch {
		case !open:
			p.line++
			if !fence && len(bytes.TrimSpace(rest[offset:end])) > 0 {
				return p
			}
			open, start = fence, end
		case fence:
			p.found, p.front, p.body = true, rest[start:offset], rest[end:]
			return p
		}
		offset = end
	}
	p.unclosed = open
	return p
}

// cardReader takes the facts out of a card's fields.
type cardReader struct {
	facts    registry.CardFacts
	problems []flaw
}

func (r *cardReader) problem(line int, format string, args ...any) {
	r.problems = append(r.problems, flaw{line, fmt.Sprintf(format, args...)})
}

func (r *cardReader) read(v value) {
	r.facts.License = strings.Join(r.texts(v, "license"), ", ")
	r.facts.Library = r.text(v, "library_name")
	r.facts.Task = r.text(v, "pipeline_tag")
	r.facts.Tags = r.texts(v, "tags")
	r.facts.Languages = r.texts(v, "language")
	r.facts.Datasets = r.texts(v, "datasets")
	r.baseModels(v)
}

// text reads a field that is one text.
func (r *cardReader) text(v value, name string) string {
	f, ok := v.field(name)
	if !ok || f.value.kind == null {
		return ""
	}
	return r.usable(f.value, name)
}

// texts reads a field that is a text or a list of texts, each once.
func (r *cardReader) texts(v value, name string) []string {
	texts := r.list(v, name)
	var once []string
	seen := map[string]bool{}
	for _, t := range texts {
		if !seen[t] {
			once = append(once, t)
		}
		seen[t] = true
	}
	return once
}

// list reads a field that is a text or a list of texts, as it is written.
func (r *cardReader) list(v value, name string) []string {
	f, ok := v.field(name)
	if !ok {
		return nil
	}
	items := []value{f.value}
	if f.value.kind == list {
		items = f.value.list
	}
	if len(items) > maxItems {
		r.problem(f.line, "%s has more than %d entries; the rest is left out", name, maxItems)
		items = items[:maxItems]
	}
	var texts []string
	for _, item := range items {
		if item.kind == null {
			continue
		}
		if t := r.usable(item, name); t != "" {
			texts = append(texts, t)
		}
	}
	return texts
}

// usable is the text of a value, or nothing and a problem.
func (r *cardReader) usable(v value, name string) string {
	switch v.kind {
	case text:
	case number, boolean:
		r.problem(v.line, "%s holds %s; put it in quotes if it is meant as text", name, v.kind)
		return ""
	default:
		r.problem(v.line, "%s holds %s where a text belongs", name, v.kind)
		return ""
	}
	if why := badText(v.text()); why != "" {
		r.problem(v.line, "a text of %s %s", name, why)
		return ""
	}
	return strings.TrimSpace(v.text())
}

// relations that a card may give, from base_model_relation.
var relations = []registry.Relation{registry.Finetune, registry.Adapter, registry.Merge, registry.Quantized}

func (r *cardReader) baseModels(v value) {
	names := r.list(v, "base_model")
	relation := registry.Relation(r.text(v, "base_model_relation"))
	if relation != "" && !slices.Contains(relations, relation) {
		f, _ := v.field("base_model_relation")
		r.problem(f.line, "base_model_relation is %q; write finetune, adapter, merge or quantized", clip(string(relation)))
		relation = ""
	}
	revisions := r.list(v, "base_model_revision")
	if f, ok := v.field("base_model_revision"); ok {
		switch {
		case f.value.kind == text && len(revisions) == 1:
			revisions = slices.Repeat(revisions, len(names))
		case len(revisions) == 0 && f.value.kind != list:
		case len(revisions) != len(names):
			r.problem(f.line, "base_model_revision has %d entries for %d base models; write one revision, or one for each", len(revisions), len(names))
			revisions = nil
		}
	}
	for i, name := range names {
		base := registry.BaseModel{Model: name, Relation: relation}
		if len(revisions) > 0 {
			base.Revision = revisions[i]
		}
		if !slices.Contains(r.facts.BaseModels, base) {
			r.facts.BaseModels = append(r.facts.BaseModels, base)
		}
	}
}

// encode writes a value as JSON, the fields of a mapping sorted by their names.
func encode(v value) json.RawMessage {
	data, err := json.Marshal(v.plain())
	if err != nil {
		panic(fmt.Sprintf("card: %v", err)) // a bug: readYAML lets nothing through that JSON lacks
	}
	return data
}

// join puts problems into one sentence.
func join(problems []flaw) string {
	slices.SortStableFunc(problems, func(a, b flaw) int { return a.line - b.line })
	var sentences []string
	for i, p := range problems {
		if i == maxProblems {
			sentences = append(sentences, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		sentences = append(sentences, p.String())
	}
	return strings.Join(sentences, "; ")
}

// badText says why a text cannot be a fact, or nothing.
func badText(s string) string {
	switch {
	case len(s) > maxText:
		return fmt.Sprintf("is longer than %d bytes", maxText)
	case strings.ContainsFunc(strings.TrimSpace(s), func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }):
		return "holds a line break or another control character"
	}
	return ""
}

// clip bounds what a sentence repeats of its input.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
