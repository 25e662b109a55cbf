package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/registry"
)

// body is a type with everything that a body may hold.
type body struct {
	Name    string                 `json:"name"`
	Count   *int64                 `json:"count,omitempty"`
	Inner   *inner                 `json:"inner,omitempty"`
	List    []inner                `json:"list,omitempty"`
	Numbers map[string]float64     `json:"numbers,omitempty"`
	Matrix  [][]int64              `json:"matrix,omitempty"`
	ByName  map[string]inner       `json:"by_name,omitempty"`
	At      time.Time              `json:"at,omitzero"`
	Raw     json.RawMessage        `json:"raw,omitempty"`
	Deep    map[string]*body       `json:"deep,omitempty"`
	Hidden  map[string]interface{} `json:"-"`
}

type inner struct {
	Name string `json:"name"`
}

func TestDecodeJSON(t *testing.T) {
	count := int64(3)
	tests := []struct {
		name string
		in   string
		want body
	}{
		{"empty object", `{}`, body{}},
		{"space around", " \t\r\n{} \n", body{}},
		{"everything", `{"name":"a","count":3,"inner":{"name":"b"},"list":[{"name":"c"},{}],"numbers":{"F1":1,"f1":2},"matrix":[[1],[]],"by_name":{"x":{"name":"d"}},"at":"1970-01-01T00:00:00Z","raw":{"b":1}}`, body{
			Name: "a", Count: &count, Inner: &inner{"b"}, List: []inner{{"c"}, {}}, Numbers: map[string]float64{"F1": 1, "f1": 2},
			Matrix: [][]int64{{1}, {}}, ByName: map[string]inner{"x": {"d"}}, At: time.Unix(0, 0).UTC(), Raw: json.RawMessage(`{"b":1}`),
		}},
		{"null is nothing", `{"count":null,"inner":null,"list":null,"numbers":null,"name":null,"raw":{"a":null}}`, body{Raw: json.RawMessage(`{"a":null}`)}},
		{"equal names in different objects", `{"name":"a","inner":{"name":"b"},"list":[{"name":"c"},{"name":"c"}]}`, body{
			Name: "a", Inner: &inner{"b"}, List: []inner{{"c"}, {"c"}},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got body
			if err := api.DecodeJSON([]byte(test.in), &got); err != nil {
				t.Fatalf("DecodeJSON(%s) = %v, want nil", test.in, err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("DecodeJSON(%s) (-want +got):\n%s", test.in, diff)
			}
		})
	}
}

func TestDecodeJSONNamesTheField(t *testing.T) {
	deep := strings.Repeat(`{"deep":{"k":`, 60)
	tests := []struct {
		name, in, field, detail string
	}{
		{"empty", ``, "", "ends before"},
		{"blank", "  \n", "", "ends before"},
		{"cut off", `{"name":"a`, "", "ends before"},
		{"cut off in an array", `{"matrix":[[1,2],[3`, "", "ends before"},
		{"not JSON", `name=a`, "", "not JSON"},
		{"null", `null`, "", "not a JSON object"},
		{"array", `[]`, "", "array"},
		{"text", `"a"`, "", "string"},
		{"trailing value", `{} {}`, "", "follows"},
		{"trailing garbage", `{}x`, "", "follows"},
		{"trailing brace", `{}}`, "", "follows"},
		{"byte order mark", "\ufeff{}", "", "not JSON"},
		{"unknown field", `{"nmae":"a"}`, "nmae", "no field"},
		{"unknown field inside", `{"inner":{"nmae":"a"}}`, "inner.nmae", "no field"},
		{"unknown field in a list", `{"list":[{},{"nmae":"a"}]}`, "list[1].nmae", "no field"},
		{"unknown field in a map", `{"by_name":{"x":{"nmae":"a"}}}`, "by_name.x.nmae", "no field"},
		{"field that is not read", `{"Hidden":{}}`, "Hidden", "no field"},
		{"the mark of a field that is not read", `{"-":{}}`, "-", "no field"},
		{"name of no length", `{"":1}`, "", "no field"},
		{"another case", `{"Name":"a"}`, "Name", "no field"},
		{"twice", `{"name":"a","name":"b"}`, "name", "twice"},
		{"twice in a map", `{"numbers":{"f1":0.1,"f1":0.9}}`, "numbers.f1", "twice"},
		{"twice, once escaped", `{"numbers":{"f1":0.1,"\u00661":0.9}}`, "numbers.f1", "twice"},
		{"wrong type", `{"name":1}`, "name", "number"},
		{"object for a text", `{"name":{}}`, "name", "object"},
		{"array for a text", `{"name":[]}`, "name", "array"},
		{"text for an object", `{"inner":"x"}`, "inner", "string"},
		{"text for a number", `{"numbers":{"a":1,"f1":"high"}}`, "numbers.f1", "string"},
		{"fraction for a count", `{"matrix":[[1,2],[3,1.5]]}`, "matrix[1][1]", "number 1.5"},
		{"number for a row", `{"matrix":[[1,2],3]}`, "matrix[1]", "number"},
		{"NaN", `{"numbers":{"a":1,"f1":NaN}}`, "numbers.f1", "not JSON"},
		{"Infinity", `{"numbers":{"f1":Infinity}}`, "numbers.f1", "not JSON"},
		{"minus infinity", `{"numbers":{"f1":-Infinity}}`, "numbers.f1", "not JSON"},
		{"too big for a float", `{"numbers":{"a":1,"f1":1e999}}`, "numbers.f1", "number 1e999"},
		{"too big for a count", `{"count":9223372036854775808}`, "count", "number"},
		{"NaN in an array", `{"matrix":[[1,2],[NaN]]}`, "matrix[1][0]", "not JSON"},
		{"null for a metric", `{"numbers":{"f1":1,"wer":null}}`, "numbers.wer", "null is no value"},
		{"null for a count", `{"matrix":[[1,2],[3,null]]}`, "matrix[1][1]", "null is no value"},
		{"null for a row", `{"matrix":[[1,2],null]}`, "matrix[1]", "null is no value"},
		{"null in a list", `{"list":[{},null]}`, "list[1]", "null is no value"},
		{"null in a map", `{"by_name":{"x":null}}`, "by_name.x", "null is no value"},
		{"null in a list in a list", `{"list":[{}],"deep":{"k":{"matrix":[[null]]}}}`, "deep.k.matrix[0][0]", "null is no value"},
		{"hexadecimal", `{"count":0x10}`, "count", "not JSON"},
		{"comment", `{"name":"a"/* */}`, "name", "not JSON"},
		{"single quotes", `{'name':'a'}`, "", "not JSON"},
		{"nested deeper than can be read", strings.Repeat(`[`, 20_000), strings.Repeat("[0]", 85), "not JSON"},
		{"name longer than can be shown", `{"` + strings.Repeat("n", 1000) + `":1}`, "", "no field"},
		{"deeper than can be shown", deep + `{"nope":1}` + strings.Repeat(`}}`, 60), strings.TrimSuffix(strings.Repeat("deep.k.", 36)+"deep", "."), "no field"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got body
			err := api.DecodeJSON([]byte(test.in), &got)
			var field *registry.FieldError
			if !errors.As(err, &field) {
				t.Fatalf("DecodeJSON(%.80s) = %v, want a FieldError", test.in, err)
			}
			if field.Field != test.field || !strings.Contains(field.Detail, test.detail) || len(field.Detail) > 400 {
				t.Errorf("DecodeJSON(%.80s) = field %q, detail %q; want field %q, detail with %q", test.in, field.Field, field.Detail, test.field, test.detail)
			}
		})
	}
}

// resolves reports whether the name of a field leads to something in v. The names of members may
// hold dots and brackets themselves.
func resolves(v any, field string) bool {
	if field == "" {
		return true
	}
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if rest, ok := strings.CutPrefix(field, key); ok {
				if rest == "" || (rest[0] == '.' && resolves(value, rest[1:])) || (rest[0] == '[' && resolves(value, rest)) {
					return true
				}
			}
		}
	case []any:
		index, rest, ok := strings.Cut(strings.TrimPrefix(field, "["), "]")
		i, err := strconv.Atoi(index)
		return ok && err == nil && i < len(v) && resolves(v[i], strings.TrimPrefix(rest, "."))
	}
	return false
}

// FuzzDecodeJSON: what is not taken is refused as invalid, with a field that the body has; what
// is taken is JSON and reads the same when it is written again.
func FuzzDecodeJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"name":"a","count":3}`, `{"inner":{"nmae":"a"}}`, `{"list":[{},{"name":3}]}`, `{"numbers":{"f1":NaN}}`, `{"matrix":[[1,2],[3,1.5]]}`,
		`{"name":"a","name":"b"}`, `{"at":"v1"}`, `{"by_name":{"a.b":{"c[0]":1}}}`, `null`, `[[[[`, `{"a":{"a":{"a":[{},{"b":"\ud800"}]}}}`, `{"raw":[1,{"a":2}]} x`,
		"{\"\xff\":1}", `{"deep":{"x":{"deep":{"y":{"name":1}}}}}`, `{"":{"":1}}`, `{"numbers":{"":"x"}}`, `{"by_name":{"":{"0":0}}}`, `{"matrix":[[]],}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var got body
		err := api.DecodeJSON(in, &got)
		if err == nil {
			again, err := json.Marshal(got)
			if err != nil {
				t.Fatalf("DecodeJSON(%q) gave what cannot be written: %v", in, err)
			}
			var second body
			if err := api.DecodeJSON(again, &second); err != nil {
				t.Fatalf("DecodeJSON(%q) after DecodeJSON(%q) = %v, want nil", again, in, err)
			}
			if third, err := json.Marshal(second); err != nil || !bytes.Equal(again, third) {
				t.Fatalf("DecodeJSON(%q) is written as %s, and after reading that as %s (%v)", in, again, third, err)
			}
			return
		}
		var field *registry.FieldError
		if !errors.As(err, &field) {
			t.Fatalf("DecodeJSON(%q) = %v, want a FieldError", in, err)
		}
		var whole any
		if json.Unmarshal(in, &whole) == nil && !strings.Contains(field.Detail, "twice") && unique(in) && !resolves(whole, field.Field) {
			t.Fatalf("DecodeJSON(%q) names the field %q, which the body does not have", in, field.Field)
		}
	})
}

// unique reports whether no object in the JSON text has two members of one name.
func unique(in []byte) bool {
	var text any
	if json.Unmarshal(in, &text) != nil {
		return false
	}
	return strings.Count(string(in), `":`) == members(text)
}

func members(v any) int {
	n := 0
	switch v := v.(type) {
	case map[string]any:
		for _, value := range v {
			n += 1 + members(value)
		}
	case []any:
		for _, value := range v {
			n += members(value)
		}
	}
	return n
}
