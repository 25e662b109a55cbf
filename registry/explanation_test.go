package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/herdbook/herdbook/registry"
)

const explained = `{"method": "shap", "baseline": "mean of the training data", "features": [{"name": "amount", "importance": 0.5, "std": 0.1}, {"name": "hour", "importance": -0.25}],
 "classes": [{"label": "fraud", "features": [{"name": "amount", "importance": 1}]}]}`

// explanationSchema is the published one.
func explanationSchema(tb testing.TB) *jsonschema.Schema {
	tb.Helper()
	text, err := os.ReadFile("../docs/schemas/explanation-v1.json")
	if err != nil {
		tb.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		tb.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("explanation-v1.json", document); err != nil {
		tb.Fatal(err)
	}
	schema, err := c.Compile("explanation-v1.json")
	if err != nil {
		tb.Fatal(err)
	}
	return schema
}

func TestParseExplanation(t *testing.T) {
	half, tenth, minus, one := 0.5, 0.1, -0.25, 1.0
	want := registry.Explanation{
		Method: "shap", Baseline: "mean of the training data",
		Features: []registry.FeatureImportance{{Name: "amount", Importance: &half, Std: &tenth}, {Name: "hour", Importance: &minus}},
		Classes:  []registry.ClassExplanation{{Label: "fraud", Features: []registry.FeatureImportance{{Name: "amount", Importance: &one}}}},
	}
	got, err := registry.ParseExplanation([]byte(explained))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("ParseExplanation = %v (-want +got):\n%s", err, diff)
	}
	var many strings.Builder
	for i := range registry.MaxExplanationFeatures {
		fmt.Fprintf(&many, `{"name":"f%d","importance":1},`, i)
	}
	features := func(list string) string { return `{"method": "shap", "features": [` + list + `]}` }
	schema := explanationSchema(t)
	tests := []struct {
		name, text, field string
		valid             bool // by the schema, which cannot say everything
	}{
		{"no JSON", `{`, "", false},
		{"a list", `[]`, "", false},
		{"two values", explained + explained, "", false},
		{"an unknown field", `{"method": "shap", "features": [{"name": "a", "importance": 1}], "x": 1}`, "", false},
		{"no method", `{"features": [{"name": "a", "importance": 1}]}`, "method", false},
		{"a long method", `{"method": "` + strings.Repeat("x", 1025) + `", "features": [{"name": "a", "importance": 1}]}`, "method", false},
		{"a number as the method", `{"method": 1}`, "method", false},
		{"no features", `{"method": "shap"}`, "features", false},
		{"no name", features(`{"importance": 1}`), "features[0].name", false},
		{"no importance", features(`{"name": "a"}`), "features[0].importance", false},
		{"null importance", features(`{"name": "a", "importance": null}`), "features[0].importance", false},
		{"a negative deviation", features(`{"name": "a", "importance": 1, "std": -1}`), "features[0].std", false},
		{"a feature twice", features(`{"name": "a", "importance": 1}, {"name": "a", "importance": 2}`), "features[1].name", true},
		{"a line break", features(`{"name": "a\nb", "importance": 1}`), "features[0].name", true},
		{"a class without a label", `{"method": "shap", "classes": [{"features": [{"name": "a", "importance": 1}]}]}`, "classes[0].label", false},
		{"a class without features", `{"method": "shap", "classes": [{"label": "a", "features": []}]}`, "classes[0].features", false},
		{"a class twice", `{"method": "shap", "classes": [{"label": "a", "features": [{"name": "a", "importance": 1}]}, {"label": "a", "features": [{"name": "a", "importance": 1}]}]}`, "classes[1].label", true},
		{"too many features", features(many.String() + `{"name": "one more", "importance": 1}`), "features", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := registry.ParseExplanation([]byte(tt.text))
			var bad *registry.FieldError
			if !errors.As(err, &bad) || bad.Field != tt.field {
				t.Errorf("ParseExplanation = %v, want a field error on %q", err, tt.field)
			}
			document, err := jsonschema.UnmarshalJSON(strings.NewReader(tt.text))
			if err == nil {
				err = schema.Validate(document)
			}
			if (err == nil) != tt.valid {
				t.Errorf("the schema says %v, want it to be valid: %v", err, tt.valid)
			}
		})
	}
}

// What is read as an explanation is one by the published schema, and reads the same when it is written again.
func FuzzParseExplanation(f *testing.F) {
	schema := explanationSchema(f)
	for _, seed := range []string{explained, `{}`, `{"method":"a","features":[{"name":"b","importance":1e308,"std":0}]}`, `{"method":"a","classes":[]}`, `{"METHOD":"a"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := registry.ParseExplanation(data)
		if err != nil {
			return
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("encode %+v: %v", e, err)
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err == nil {
			err = schema.Validate(document)
		}
		if err != nil {
			t.Errorf("the schema refuses %s: %v", text, err)
		}
		again, err := registry.ParseExplanation(text)
		if diff := cmp.Diff(e, again); err != nil || diff != "" {
			t.Errorf("read again: %v\n%s", err, diff)
		}
	})
}

// BenchmarkParseExplanation reads an explanation of the most features.
func BenchmarkParseExplanation(b *testing.B) {
	var list strings.Builder
	for i := range registry.MaxExplanationFeatures {
		fmt.Fprintf(&list, `,{"name":"feature %d","importance":0.25,"std":0.01}`, i)
	}
	data := []byte(`{"method":"shap","features":[` + list.String()[1:] + `]}`)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := registry.ParseExplanation(data); err != nil {
			b.Fatal(err)
		}
	}
}
