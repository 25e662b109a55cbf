package card

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Limits of a YAML text. The library bounds its own work: on the inputs that make other readers
// quadratic in the nesting it stays linear. These bound what is made of it.
const (
	maxYAMLBytes = 256 << 10
	maxDepth     = 64
	maxValues    = 50_000 // an alias counts for all values behind it, every time
)

// kind of a YAML value.
type kind int

const (
	null kind = iota
	boolean
	number
	text
	list
	mapping
)

func (k kind) String() string {
	return [...]string{null: "nothing", boolean: "true or false", number: "a number", text: "a text", list: "a list", mapping: "a mapping"}[k]
}

// value is a YAML value with the line that it stands in. The zero value is null.
type value struct {
	kind   kind
	line   int
	scalar any // bool, int64, uint64, a finite float64 or string
	list   []value
	fields []field // in the order in which they are written, each name once
}

// field of a mapping.
type field struct {
	name  string
	line  int
	value value
}

func (v value) field(name string) (field, bool) {
	for _, f := range v.fields {
		if f.name == name {
			return f, true
		}
	}
	return field{}, false
}

func (v value) text() string {
	s, _ := v.scalar.(string)
	return s
}

// plain is the value as encoding/json takes it.
func (v value) plain() any {
	switch v.kind {
	case list:
		items := make([]any, len(v.list))
		for i, item := range v.list {
			items[i] = item.plain()
		}
		return items
	case mapping:
		fields := make(map[string]any, len(v.fields))
		for _, f := range v.fields {
			fields[f.name] = f.value.plain()
		}
		return fields
	}
	return v.scalar
}

// flaw is something in a text that cannot be used.
type flaw struct {
	line int
	what string
}

func (f flaw) String() string { return fmt.Sprintf("line %d: %s", f.line, f.what) }

// readYAML reads one YAML document. firstLine is the number of data's first line in its file. A
// value that JSON does not have (NaN, infinity, a key that is no text) is left out and is a flaw;
// so is a field that is written twice, of which the first counts.
func readYAML(data []byte, firstLine int) (value, []flaw) {
	r := yamlReader{firstLine: firstLine, data: data}
	if len(data) > maxYAMLBytes {
		return value{}, []flaw{{firstLine, fmt.Sprintf("the YAML is longer than %d bytes; shorten it", maxYAMLBytes)}}
	}
	if offset := badByte(data); offset >= 0 {
		r.flaw(1+bytes.Count(data[:offset], []byte("\n")), "a control character, or a byte that is not UTF-8; remove it")
		return value{}, r.flaws
	}
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return value{line: firstLine}, nil
	case err != nil:
		r.syntax(err)
		return value{}, r.flaws
	}
	switch err := decoder.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		r.syntax(err)
		return value{}, r.flaws
	default:
		r.flaw(second.Line, "a second YAML document starts; write one only")
		return value{}, r.flaws
	}
	v := r.read(&document, 0)
	if r.exceeded != "" {
		return value{}, []flaw{{firstLine, r.exceeded}}
	}
	return v, r.flaws
}

// badByte finds the first byte that YAML does not allow and that the library would report
// without a line; -1 when there is none. Source: YAML 1.2.2, section 5.1.
func badByte(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if (r == utf8.RuneError && size == 1) || (r < ' ' && r != '\t' && r != '\n' && r != '\r') || r == 0x7f || (r >= 0x80 && r < 0xa0 && r != 0x85) {
			return i
		}
		i += size
	}
	return -1
}

type yamlReader struct {
	data      []byte
	firstLine int
	values    int
	flaws     []flaw
	exceeded  string
}

// flaw notes what is wrong in a line of data, counted from 1.
func (r *yamlReader) flaw(line int, format string, args ...any) {
	r.flaws = append(r.flaws, flaw{r.firstLine + max(line, 1) - 1, fmt.Sprintf(format, args...)})
}

var (
	syntaxLine = regexp.MustCompile(`^line (\d+): (.*)$`)
	alias      = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// syntax turns an error of the library into a flaw. It gives no line for errors in the first one
// and for aliases.
func (r *yamlReader) syntax(err error) {
	message, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "yaml: "), "\n")
	line := 1
	if m := syntaxLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = m[2]
	} else if m := alias.FindStringSubmatch(message); m != nil {
		before, _, _ := bytes.Cut(r.data, []byte("*"+m[1]))
		line = 1 + bytes.Count(before, []byte("\n"))
	}
	r.flaw(line, "this is not YAML (%s); check indentation and quotes here and in the lines around it", clip(message))
}

func (r *yamlReader) read(n *yaml.Node, depth int) value {
	r.values++
	switch {
	case r.exceeded != "":
		return value{}
	case depth > maxDepth:
		r.exceeded = fmt.Sprintf("the YAML is nested more than %d deep; make it flatter", maxDepth)
		return value{}
	case r.values > maxValues:
		r.exceeded = fmt.Sprintf("the YAML holds more than %d values; shorten it", maxValues)
		return value{}
	}
	switch n.Kind {
	case yaml.DocumentNode:
		return r.read(n.Content[0], depth+1)
	case yaml.AliasNode:
		return r.read(n.Alias, depth+1)
	case yaml.SequenceNode:
		v := value{kind: list, line: r.firstLine + n.Line - 1}
		for _, item := range n.Content {
			v.list = append(v.list, r.read(item, depth+1))
		}
		return v
	case yaml.MappingNode:
		return r.mapping(n, depth)
	}
	return r.scalar(n)
}

func (r *yamlReader) mapping(n *yaml.Node, depth int) value {
	v := value{kind: mapping, line: r.firstLine + n.Line - 1}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		for key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge":
			r.flaw(n.Content[i].Line, "merge keys (<<) are not read; write the fields out")
			continue
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			r.flaw(n.Content[i].Line, "a field's name is not a text; put it in quotes")
			continue
		case seen[key.Value] > 0:
			r.flaw(n.Content[i].Line, "%q stands twice, first in line %d; remove one", clip(key.Value), r.firstLine+seen[key.Value]-1)
			continue
		}
		seen[key.Value] = max(n.Content[i].Line, 1)
		v.fields = append(v.fields, field{key.Value, r.firstLine + n.Content[i].Line - 1, r.read(n.Content[i+1], depth+1)})
	}
	return v
}

func (r *yamlReader) scalar(n *yaml.Node) value {
	v := value{line: r.firstLine + max(n.Line, 1) - 1}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		v.kind, v.scalar = text, n.Value
		return v
	case "!!null":
		return v
	case "!!bool", "!!int", "!!float":
	default:
		r.flaw(n.Line, "the tag %s is not read; remove it", clip(n.Tag))
		return v
	}
	var scalar any
	if err := n.Decode(&scalar); err != nil {
		r.flaw(n.Line, "%q cannot be read; put it in quotes", clip(n.Value))
		return v
	}
	switch s := scalar.(type) {
	case bool:
		v.kind, v.scalar = boolean, s
	case int:
		v.kind, v.scalar = number, int64(s)
	case int64, uint64:
		v.kind, v.scalar = number, s
	case float64:
		if math.IsNaN(s) || math.IsInf(s, 0) {
			r.flaw(n.Line, "%s is not a number that JSON has; remove it or put it in quotes", clip(n.Value))
			return v
		}
		v.kind, v.scalar = number, s
	default:
		r.flaw(n.Line, "%q cannot be read; put it in quotes", clip(n.Value))
	}
	return v
}
