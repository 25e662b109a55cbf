package card

import (
	"bytes"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/herdbook/herdbook/docs/schemas"
)

// The schema of a policy takes what ParsePolicy takes, and refuses what an editor should underline.
func TestPolicySchema(t *testing.T) {
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemas.Policy))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("policy.json", parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	in := func(text string) string { return "environments:\n  staging:\n    " + text + "\n" }
	tests := []struct {
		text string
		good bool
	}{
		{designed, true},
		{"", true},
		{"environments:\n", true},
		{"environments:\n  a:\n  b: {after: a, promote: auto, prereleases: true, approvals: 2}\n", true},
		{in("evidence: {dataset: d, slice: '', evaluators: [x], max_age: 90m, self_reported: true}"), true},
		{in("slices: {required: [night], gates: [metrics.f1 > 0.5, {name: x, expr: y}]}"), true},
		{in("card: {sections: [Uses], fields: [license]}"), true},
		{in("monitor: {alerts: [{name: A, expr: up, for: 5m, action: rollback}]}"), true},
		{in("deploy: []"), true},

		{"environment: {}\n", false},
		{"environments:\n  Prod:\n", false},
		{"environments:\n  latest:\n", false},
		{in("gate: x"), false},
		{in("promote: automatic"), false},
		{in("approvals: -1"), false},
		{in("approvals: 0.5"), false},
		{in("evidence: {}"), false},
		{in("evidence: {max_age: 2w}"), false},
		{in("evidence: {digest: 'md5:00'}"), false},
		{in("gates: metrics.f1 > 0.5"), false},
		{in("gates: [{name: x}]"), false},
		{in("gates: ['']"), false},
		{in("slices: {required: [night]}"), false},
		{in("slices: {gates: []}"), false},
		{in("card: {}"), false},
		{in("deploy: [a, a]"), false},
		{in("monitor: {alerts: [{name: A, expr: up, action: reboot}]}"), false},
	}
	for _, tt := range tests {
		_, parseErr := ParsePolicy([]byte(tt.text), nil)
		if (parseErr == nil) != tt.good {
			t.Errorf("ParsePolicy(%q) = %v, want it good: %t", tt.text, parseErr, tt.good)
		}
		root, flaws := readYAML([]byte(tt.text), 1)
		if len(flaws) > 0 {
			t.Fatalf("readYAML(%q): %v", tt.text, flaws)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(encode(root)))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(value); (err == nil) != tt.good {
			t.Errorf("the schema says of %q: %v, want it good: %t", tt.text, err, tt.good)
		}
	}
}
