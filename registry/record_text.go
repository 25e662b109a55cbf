package registry

import (
	"bytes"
	"encoding/json"
	"slices"
)

// The text of a group and of its records is JSON as [json.Marshal] writes it, without white space. What is here finds its parts without
// reading it as a whole, because a journal is long. It never trusts that it is such text: what it cuts out is a part
// of it, and has to be read by encoding/json where it counts.

// Fields are the texts of the fields of the record that have these names, nil for each that is not there. The record has to be what
// EncodeRecord made; of any other text they may be anything, but a part of it.
func (r EncodedRecord) Fields(names ...string) []json.RawMessage {
	values := make([]json.RawMessage, len(names))
	for rest := []byte(r.Data); len(rest) > 1 && rest[1] == '"'; {
		nameEnd := skipString(rest, 1)
		if nameEnd >= len(rest) {
			break
		}
		end := skipValue(rest, nameEnd+1)
		if i := slices.Index(names, string(rest[2:nameEnd-1])); i >= 0 {
			values[i] = json.RawMessage(rest[nameEnd+1 : end : end])
		}
		rest = rest[end:]
	}
	return values
}

// splitGroup reads a group as EncodeGroup writes it. It is not ok when the text is any other, though it may be a group. The text of each
// record is a part of line, and it is not known whether it is JSON.
func splitGroup(line []byte) (g groupJSON, ok bool) {
	text := groupText{rest: line, ok: true}
	text.skip(`{"at":`)
	if at := text.quoted(); !text.ok || g.At.UnmarshalJSON(at) != nil {
		return g, false
	}
	text.skip(`,`)
	if text.has(`"actor":`) {
		g.Actor = text.plain()
		text.skip(`,`)
	}
	if text.has(`"request":`) {
		g.Request = text.plain()
		text.skip(`,`)
	}
	text.skip(`"records":[`)
	g.Records = []EncodedRecord{}
	for text.ok && !text.has(`]}`) {
		if len(g.Records) > 0 {
			text.skip(`,`)
		}
		var r EncodedRecord
		text.skip(`{"type":`)
		r.Type = text.plain()
		text.skip(`,"data":`)
		r.Data = text.value()
		text.skip(`}`)
		g.Records = append(g.Records, r)
	}
	return g, text.ok && len(text.rest) == 0
}

// groupText is what is left of a text. Once something else was met than what is asked for, it is not ok.
type groupText struct {
	rest []byte
	ok   bool
}

// has reports whether the text goes on with s, and passes over it.
func (t *groupText) has(s string) bool {
	rest, found := bytes.CutPrefix(t.rest, []byte(s))
	t.rest = rest
	return found
}

func (t *groupText) skip(s string) { t.ok = t.has(s) && t.ok }

// quoted is a string with its quotes, which stands for itself: it has no escapes, and only ASCII.
func (t *groupText) quoted() []byte {
	if t.ok = t.ok && len(t.rest) > 0 && t.rest[0] == '"'; !t.ok {
		return nil
	}
	for i := 1; i < len(t.rest); i++ {
		switch c := t.rest[i]; {
		case c == '"':
			text := t.rest[:i+1]
			t.rest = t.rest[i+1:]
			return text
		case c < ' ' || c > '~' || c == '\\':
			t.ok = false
			return nil
		}
	}
	t.ok = false
	return nil
}

func (t *groupText) plain() string {
	text := t.quoted()
	if !t.ok {
		return ""
	}
	return string(text[1 : len(text)-1])
}

func (t *groupText) value() json.RawMessage {
	end := skipValue(t.rest, 0)
	text := t.rest[:end:end]
	t.rest = t.rest[end:]
	return json.RawMessage(text)
}

// skipString is the end of the string that begins at a quote.
func skipString(text []byte, at int) int {
	for at++; at < len(text); at++ {
		switch text[at] {
		case '\\':
			at++
		case '"':
			return at + 1
		}
	}
	return len(text)
}

// skipValue is the end of the value that begins at at.
func skipValue(text []byte, at int) int {
	for depth := 0; at < len(text); {
		switch text[at] {
		case '"':
			at = skipString(text, at)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return at
			}
		case ',':
			if depth == 0 {
				return at
			}
		}
		at++
	}
	return len(text)
}
