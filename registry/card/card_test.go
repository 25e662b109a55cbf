package card

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

// fenced is a card with front matter.
func fenced(front string) string { return "---\n" + front + "---\n# Title\n" }

func TestParse(t *testing.T) {
	base := func(names ...string) []registry.BaseModel {
		var list []registry.BaseModel
		for _, name := range names {
			list = append(list, registry.BaseModel{Model: name})
		}
		return list
	}
	tests := []struct {
		name, card string
		want       registry.CardFacts
	}{
		{"empty", "", registry.CardFacts{}},
		{"no front matter", "# Title\n\n---\nlicense: mit\n---\n", registry.CardFacts{}},
		{"empty front matter", fenced(""), registry.CardFacts{}},
		{"only a comment", fenced("# license: mit\n"), registry.CardFacts{}},
		{
			"as on the Hub",
			fenced(`license: apache-2.0
library_name: onnx
pipeline_tag: voice-activity-detection
tags: [vad, speech]
language: en
datasets:
- acme/calls
- acme/noise
base_model: snakers4/silero-vad
base_model_relation: finetune
metrics: [f1]
`),
			registry.CardFacts{
				License: "apache-2.0", Library: "onnx", Task: "voice-activity-detection", Tags: []string{"vad", "speech"}, Languages: []string{"en"},
				Datasets: []string{"acme/calls", "acme/noise"}, BaseModels: []registry.BaseModel{{Model: "snakers4/silero-vad", Relation: registry.Finetune}},
			},
		},
		{"lists where a text may be", fenced("license: [mit, apache-2.0]\nlanguage: [en, no, en]\n"), registry.CardFacts{License: "mit, apache-2.0", Languages: []string{"en", "no"}}},
		{"texts where a list may be", fenced("tags: vad\ndatasets: acme/calls\n"), registry.CardFacts{Tags: []string{"vad"}, Datasets: []string{"acme/calls"}}},
		{"fields without a value", fenced("license:\ntags:\n- \n- a\nbase_model: ~\nbase_model_revision: ~\n"), registry.CardFacts{Tags: []string{"a"}}},
		{"one revision for all base models", fenced("base_model: [a/b, c/d]\nbase_model_revision: v1.0.0\n"), registry.CardFacts{BaseModels: []registry.BaseModel{{Model: "a/b", Revision: "v1.0.0"}, {Model: "c/d", Revision: "v1.0.0"}}}},
		{"a revision for each base model", fenced("base_model: [a/b, c/d]\nbase_model_revision: [v1.0.0, main]\nbase_model_relation: merge\n"), registry.CardFacts{BaseModels: []registry.BaseModel{{Model: "a/b", Revision: "v1.0.0", Relation: registry.Merge}, {Model: "c/d", Revision: "main", Relation: registry.Merge}}}},
		{"Windows line ends and a byte order mark", "\ufeff---\r\nlicense: mit\r\n---\r\nText\r\n", registry.CardFacts{License: "mit"}},
		{"empty lines before, spaces behind", "\n \n---  \nlicense: mit\n--- \n", registry.CardFacts{License: "mit"}},
		{"closed by the last line", "---\nlicense: mit\n---", registry.CardFacts{License: "mit"}},
		{"an alias", fenced("tags: &t [a, b]\nlanguage: *t\n"), registry.CardFacts{Tags: []string{"a", "b"}, Languages: []string{"a", "b"}}},
		{"a date", fenced("license: 2024-01-01\n"), registry.CardFacts{License: "2024-01-01"}},

		{"not closed", "---\nlicense: mit\n", registry.CardFacts{Problem: `line 1: the front matter is not closed; end it with a line "---"`}},
		{"no mapping", fenced("- a\n"), registry.CardFacts{Problem: "line 2: the front matter is a list, not fields with values"}},
		{"not YAML", fenced("license: mit\n  tags: [\n"), registry.CardFacts{Problem: "line 3: this is not YAML (mapping values are not allowed in this context); check indentation and quotes here and in the lines around it"}},
		{"not UTF-8", fenced("a: b\nlicense: \xff\n"), registry.CardFacts{Problem: "line 3: a control character, or a byte that is not UTF-8; remove it"}},
		{
			"wrong types leave the rest",
			fenced("license: {name: mit}\nlibrary_name: [onnx]\npipeline_tag: vad\ntags: [a, 2024, true, b]\n"),
			registry.CardFacts{Task: "vad", Tags: []string{"a", "b"}, Problem: "line 2: license holds a mapping where a text belongs; line 3: library_name holds a list where a text belongs; " +
				"line 5: tags holds a number; put it in quotes if it is meant as text; line 5: tags holds true or false; put it in quotes if it is meant as text"},
		},
		{"an unknown relation", fenced("base_model: a/b\nbase_model_relation: distilled\n"), registry.CardFacts{BaseModels: base("a/b"), Problem: `line 3: base_model_relation is "distilled"; write finetune, adapter, merge or quantized`}},
		{"too few revisions", fenced("base_model: [a/b, c/d]\nbase_model_revision: [v1]\n"), registry.CardFacts{BaseModels: base("a/b", "c/d"), Problem: "line 3: base_model_revision has 1 entries for 2 base models; write one revision, or one for each"}},
		{"a revision of nothing", fenced("base_model_revision: [v1]\n"), registry.CardFacts{Problem: "line 2: base_model_revision has 1 entries for 0 base models; write one revision, or one for each"}},
		{"a revision that YAML reads as a number", fenced("base_model: a/b\nbase_model_revision: 1234567\n"), registry.CardFacts{BaseModels: base("a/b"), Problem: "line 3: base_model_revision holds a number; put it in quotes if it is meant as text"}},
		{"not a number", fenced("license: mit\nx: .nan\n"), registry.CardFacts{License: "mit", Problem: "line 3: .nan is not a number that JSON has; remove it or put it in quotes"}},
		{"infinity", fenced("license: mit\nx: [-.inf]\n"), registry.CardFacts{License: "mit", Problem: "line 3: -.inf is not a number that JSON has; remove it or put it in quotes"}},
		{"a key that is no text", fenced("license: mit\n1: x\n"), registry.CardFacts{License: "mit", Problem: "line 3: a field's name is not a text; put it in quotes"}},
		{"a key that is a list", fenced("license: mit\n? [a]\n: x\n"), registry.CardFacts{License: "mit", Problem: "line 3: a field's name is not a text; put it in quotes"}},
		{"a field twice", fenced("license: mit\nlicense: gpl\n"), registry.CardFacts{License: "mit", Problem: `line 3: "license" stands twice, first in line 2; remove one`}},
		{"a merge key", fenced("a: &a {license: mit}\n<<: *a\n"), registry.CardFacts{Problem: "line 3: merge keys (<<) are not read; write the fields out"}},
		{"an unknown tag", fenced("license: !secret mit\n"), registry.CardFacts{Problem: "line 2: the tag !secret is not read; remove it"}},
		{"an unknown alias", fenced("license: mit\ntags: *t\n"), registry.CardFacts{Problem: "line 3: this is not YAML (unknown anchor 't' referenced); check indentation and quotes here and in the lines around it"}},
		{"a line break", fenced("license: \"a\\nb\"\n"), registry.CardFacts{Problem: "line 2: a text of license holds a line break or another control character"}},
		{"a long text", fenced("license: " + strings.Repeat("x", 1025) + "\n"), registry.CardFacts{Problem: "line 2: a text of license is longer than 1024 bytes"}},
		{"many problems", fenced("tags:\n" + strings.Repeat("- 1\n", 9)), registry.CardFacts{Problem: strings.TrimSuffix(func() string {
			s := ""
			for line := range 5 {
				s += fmt.Sprintf("line %d: tags holds a number; put it in quotes if it is meant as text; ", line+3)
			}
			return s
		}(), "; ") + "; and 4 more"}},
	}
	for _, tt := range tests {
		got := Parse([]byte(tt.card))
		got.FrontMatter = nil
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Parse of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestFrontMatterAsJSON(t *testing.T) {
	tests := []struct{ name, front, want string }{
		{"sorted", "b: 1\na: {z: 2, c: 3}\n", `{"a":{"c":3,"z":2},"b":1}`},
		{"every type", "s: x\ni: -3\nu: 18446744073709551615\nf: 0.25\nt: true\nn: ~\nl: [1, a]\nd: 2024-01-31\nq: '1'\nno: no\n", `{"d":"2024-01-31","f":0.25,"i":-3,"l":[1,"a"],"n":null,"no":"no","q":"1","s":"x","t":true,"u":18446744073709551615}`},
		{"explicit tags", "a: !!str 1\nb: !!int '2'\n", `{"a":"1","b":2}`},
		{"aliases", "a: &a [1]\nb: *a\n", `{"a":[1],"b":[1]}`},
		{"wrong types are kept", "license: 3\n", `{"license":3}`},
		{"a problem with JSON leaves it out", "x: .inf\n", ``},
		{"nothing", "", ``},
	}
	for _, tt := range tests {
		if got := string(Parse([]byte(fenced(tt.front))).FrontMatter); got != tt.want {
			t.Errorf("%s: front matter = %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestBody(t *testing.T) {
	tests := []struct{ name, card, want string }{
		{"no front matter", "# Title\n", "# Title\n"},
		{"front matter", "---\na: b\n---\n# Title\n", "# Title\n"},
		{"a rule further down", "---\na: b\n---\nx\n---\ny\n", "x\n---\ny\n"},
		{"rules below text", "text\n---\nmore\n---\n", "text\n---\nmore\n---\n"},
		{"not closed", "---\na: b\n", "---\na: b\n"},
		{"a byte order mark", "\ufeff# Title\n", "# Title\n"},
		{"front matter that is not YAML", "---\n[\n---\nx", "x"},
		{"four dashes", "----\na: b\n----\n", "----\na: b\n----\n"},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		if got := string(Body([]byte(tt.card))); got != tt.want {
			t.Errorf("Body of %s = %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What would make a reader run out of time or memory.
func TestParseIsBounded(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%[1]d [%s]\n", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	tests := []struct{ name, front, want string }{
		{"an alias bomb", bomb.String(), "line 2: the YAML holds more than 50000 values; shorten it"},
		{"an alias in itself", "a: &a [*a]\n", "line 2: the YAML is nested more than 64 deep; make it flatter"},
		{"deep lists", "a: " + strings.Repeat("[", 70) + strings.Repeat("]", 70) + "\n", "line 2: the YAML is nested more than 64 deep; make it flatter"},
		{"deeper lists", strings.Repeat("[", 200_000) + "\n", "line 2: this is not YAML (exceeded max depth of 10000); check indentation and quotes here and in the lines around it"},
		{"many values", "a:\n" + strings.Repeat("- x\n", 50_001), "line 2: the YAML holds more than 50000 values; shorten it"},
		{"many bytes", "a: " + strings.Repeat("x", 256<<10) + "\n", "line 2: the YAML is longer than 262144 bytes; shorten it"},
		{"many entries", "tags:\n" + func() string {
			var b strings.Builder
			for i := range 2001 {
				fmt.Fprintf(&b, "- t%d\n", i)
			}
			return b.String()
		}(), "line 2: tags has more than 2000 entries; the rest is left out"},
	}
	for _, tt := range tests {
		if got := Parse([]byte(fenced(tt.front))).Problem; got != tt.want {
			t.Errorf("Parse of %s: problem %q, want %q", tt.name, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "---\n---\n", fenced("license: mit\nbase_model: [a, b]\nbase_model_revision: [c, d]\n"), fenced("a: &a [*a]\n"), fenced("? x\n: .nan\n"),
		"\ufeff\n---\r\na: !!binary aGk=\r\n---", fenced("<<: {a: b}\n"), fenced("a: |\n  x\n...\n"), fenced("%YAML 1.2\n"), fenced("a: 0x1p-2\nb: 1_000\nc: 1e999\n"),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		facts := Parse(data)
		if !utf8.ValidString(facts.Problem) || len(facts.Problem) > 4096 {
			t.Errorf("problem %q is not a short sentence", facts.Problem)
		}
		if len(facts.FrontMatter) > 0 {
			var fields map[string]any
			if err := json.Unmarshal(facts.FrontMatter, &fields); err != nil {
				t.Errorf("front matter %s is no JSON object: %v", facts.FrontMatter, err)
			}
		}
		if body := Body(data); len(body) > len(data) {
			t.Errorf("body of %d bytes from a card of %d", len(body), len(data))
		}
		again := Parse(data)
		if diff := cmp.Diff(facts, again); diff != "" {
			t.Errorf("the same card read twice:\n%s", diff)
		}
	})
}
