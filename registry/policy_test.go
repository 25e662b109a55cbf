package registry_test

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

func TestEvidenceSelects(t *testing.T) {
	e := registry.Evaluation{
		Dataset:   registry.Dataset{Name: "calls", URI: "s3://calls", Revision: "9f3c", Digest: someDigest, Split: "test", Slice: "night"},
		Evaluator: "jenkins", RecordedAt: someTime,
	}
	selfReported := e
	selfReported.SelfReported = true
	whole := e
	whole.Dataset.Slice = ""
	other := digest.Digest("sha256:" + strings.Repeat("cd", 32))
	tests := []struct {
		name     string
		evidence *registry.Evidence
		e        registry.Evaluation
		age      time.Duration
		want     bool
	}{
		{"no selector", nil, e, 0, true},
		{"no selector, self-reported", nil, selfReported, 0, false},
		{"an empty selector", &registry.Evidence{}, e, 0, true},
		{"an empty selector, self-reported", &registry.Evidence{}, selfReported, 0, false},
		{"self-reported asked for", &registry.Evidence{SelfReported: true}, selfReported, 0, true},
		{"self-reported asked for, and not", &registry.Evidence{SelfReported: true}, e, 0, true},
		{"self-reported, of the dataset asked for", &registry.Evidence{Dataset: "calls"}, selfReported, 0, false},

		{"everything", &registry.Evidence{Dataset: "calls", Revision: "9f3c", Digest: someDigest, Split: "test", Slice: ptr("night"), Evaluators: []string{"ada", "jenkins"}, MaxAge: time.Hour}, e, time.Hour, true},
		{"another dataset", &registry.Evidence{Dataset: "call"}, e, 0, false},
		{"a dataset in another case", &registry.Evidence{Dataset: "Calls"}, e, 0, false},
		{"another revision", &registry.Evidence{Dataset: "calls", Revision: "9f3d"}, e, 0, false},
		{"another digest", &registry.Evidence{Digest: other}, e, 0, false},
		{"another split", &registry.Evidence{Split: "train"}, e, 0, false},
		{"a split where none is recorded", &registry.Evidence{Split: "test"}, registry.Evaluation{Dataset: registry.Dataset{Name: "calls"}}, 0, false},

		{"any slice", &registry.Evidence{Slice: nil}, e, 0, true},
		{"another slice", &registry.Evidence{Slice: ptr("day")}, e, 0, false},
		{"the whole, of a slice", &registry.Evidence{Slice: ptr("")}, e, 0, false},
		{"the whole, of the whole", &registry.Evidence{Slice: ptr("")}, whole, 0, true},
		{"a slice, of the whole", &registry.Evidence{Slice: ptr("night")}, whole, 0, false},

		{"another evaluator", &registry.Evidence{Evaluators: []string{"ada"}}, e, 0, false},
		{"an evaluator where none is recorded", &registry.Evidence{Evaluators: []string{"jenkins"}}, registry.Evaluation{}, 0, false},

		{"just fresh", &registry.Evidence{MaxAge: time.Hour}, e, time.Hour, true},
		{"just stale", &registry.Evidence{MaxAge: time.Hour}, e, time.Hour + 1, false},
		{"of another clock", &registry.Evidence{MaxAge: time.Hour}, e, -time.Minute, true},
		{"without a time", &registry.Evidence{MaxAge: 24 * 365 * 200 * time.Hour}, registry.Evaluation{}, 0, false},
		{"no age asked for", &registry.Evidence{}, e, 24 * 365 * 200 * time.Hour, true},
	}
	for _, tt := range tests {
		if got := tt.evidence.Selects(&tt.e, someTime.Add(tt.age)); got != tt.want {
			t.Errorf("Selects of %s = %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestEvidenceSelect(t *testing.T) {
	calls := registry.Dataset{Name: "calls", Revision: "1", Split: "test"}
	at := func(id string, data registry.Dataset, minutes int) registry.Evaluation {
		return registry.Evaluation{ID: id, Dataset: data, RecordedAt: someTime.Add(time.Duration(minutes) * time.Minute)}
	}
	with := func(change func(*registry.Dataset)) registry.Dataset {
		d := calls
		change(&d)
		return d
	}
	self := at("self", calls, 9)
	self.SelfReported = true
	night := with(func(d *registry.Dataset) { d.Slice = "night" })
	tests := []struct {
		name        string
		evidence    *registry.Evidence
		evaluations []registry.Evaluation
		want        string // the id
		matched     int
		ambiguous   string
	}{
		{"nothing", nil, nil, "", 0, ""},
		{"the newest", nil, []registry.Evaluation{at("a", calls, 0), at("b", calls, 1)}, "b", 2, ""},
		{"the newest is the last recorded, whatever its clock says", nil, []registry.Evaluation{at("a", calls, 1), at("b", calls, 0)}, "b", 2, ""},
		{"the newest that is not self-reported", nil, []registry.Evaluation{at("a", calls, 0), self}, "a", 1, ""},
		{"only self-reported", nil, []registry.Evaluation{self}, "", 0, ""},
		{"another address of the same data", nil, []registry.Evaluation{at("a", calls, 0), at("b", with(func(d *registry.Dataset) { d.URI = "s3://x" }), 1)}, "b", 2, ""},

		{"two datasets", nil, []registry.Evaluation{at("a", calls, 0), at("b", with(func(d *registry.Dataset) { d.Name = "noise" }), 1)}, "", 2, "calls@1/test and noise@1/test"},
		{"two revisions", nil, []registry.Evaluation{at("a", calls, 0), at("b", with(func(d *registry.Dataset) { d.Revision = "2" }), 1)}, "", 2, "calls@1/test and calls@2/test"},
		{"two splits", nil, []registry.Evaluation{at("a", calls, 0), at("b", with(func(d *registry.Dataset) { d.Split = "train" }), 1)}, "", 2, "calls@1/test and calls@1/train"},
		{"two slices", nil, []registry.Evaluation{at("a", calls, 0), at("b", night, 1)}, "", 2, "calls@1/test and calls@1/test/night"},
		{"two digests", nil, []registry.Evaluation{at("a", registry.Dataset{Name: "calls"}, 0), at("b", registry.Dataset{Name: "calls", Digest: someDigest}, 1)}, "", 2, "calls and calls@" + someDigest.String()},
		{"the odd one in the middle", nil, []registry.Evaluation{at("a", calls, 0), at("b", night, 1), at("c", calls, 2)}, "", 3, "calls"},
		{"the odd one is self-reported", nil, []registry.Evaluation{at("a", calls, 0), {ID: "b", Dataset: night, SelfReported: true}}, "a", 1, ""},

		{"a named dataset leaves the rest", &registry.Evidence{Dataset: "calls"}, []registry.Evaluation{at("a", calls, 0), at("b", registry.Dataset{Name: "noise"}, 1)}, "a", 1, ""},
		{"a named dataset, its newest", &registry.Evidence{Dataset: "calls"}, []registry.Evaluation{at("a", calls, 0), at("b", night, 1)}, "b", 2, ""},
		{"a named digest", &registry.Evidence{Digest: someDigest}, []registry.Evaluation{at("a", registry.Dataset{Name: "x", Digest: someDigest}, 0), at("b", registry.Dataset{Name: "y", Digest: someDigest}, 1)}, "b", 2, ""},
		{"a slice without a dataset", &registry.Evidence{Slice: ptr("night")}, []registry.Evaluation{at("a", calls, 0), at("b", night, 1)}, "b", 1, ""},
		{"an evaluator does not name the data", &registry.Evidence{Evaluators: []string{""}}, []registry.Evaluation{at("a", calls, 0), at("b", night, 1)}, "", 2, "calls"},
		{"a split does not name the data", &registry.Evidence{Split: "test"}, []registry.Evaluation{at("a", calls, 0), at("b", with(func(d *registry.Dataset) { d.Name = "noise" }), 1)}, "", 2, "noise"},
		{"stale ones do not make it ambiguous", &registry.Evidence{MaxAge: time.Minute}, []registry.Evaluation{at("a", calls, -9), at("b", night, 0)}, "b", 1, ""},
		{"all stale", &registry.Evidence{Dataset: "calls", MaxAge: time.Minute}, []registry.Evaluation{at("a", calls, -9)}, "", 0, ""},
	}
	for _, tt := range tests {
		got := tt.evidence.Select(tt.evaluations, someTime)
		id := ""
		if got.Evaluation != nil {
			id = got.Evaluation.ID
		}
		if id != tt.want || got.Matched != tt.matched || !strings.Contains(got.Ambiguous, tt.ambiguous) || (got.Ambiguous == "") != (tt.ambiguous == "") {
			t.Errorf("Select of %s = %q of %d, ambiguous %q, want %q of %d, ambiguous %q", tt.name, id, got.Matched, got.Ambiguous, tt.want, tt.matched, tt.ambiguous)
		}
	}
}

func TestPolicyEnvironment(t *testing.T) {
	staging, production := registry.MustEnvironmentName("staging"), registry.MustEnvironmentName("production")
	p := &registry.Policy{Environments: []registry.Environment{{Name: staging}, {Name: production, Approvals: 2}}}
	if env, ok := p.Environment(production); !ok || env != &p.Environments[1] {
		t.Errorf("Environment(production) = %v, %t, want the second", env, ok)
	}
	if env, ok := p.Environment(registry.MustEnvironmentName("test")); ok || env != nil {
		t.Errorf("Environment(test) = %v, %t, want none", env, ok)
	}
	var none *registry.Policy
	if env, ok := none.Environment(staging); ok || env != nil {
		t.Errorf("Environment of no policy = %v, %t, want none", env, ok)
	}
}

func TestVerdictReason(t *testing.T) {
	open := registry.GateVerdict{Open: true, Reason: "f1 holds"}
	closed := func(reason string) registry.GateVerdict { return registry.GateVerdict{Reason: reason} }
	tests := []struct {
		gates []registry.GateVerdict
		want  string
	}{
		{nil, "no gate stands before it"},
		{[]registry.GateVerdict{open, open}, "every gate is open"},
		{[]registry.GateVerdict{open, closed("a")}, "a"},
		{[]registry.GateVerdict{closed("a"), open, closed("b")}, "a; b"},
	}
	for _, tt := range tests {
		if got := (registry.Verdict{Gates: tt.gates}).Reason(); got != tt.want {
			t.Errorf("Reason of %v = %q, want %q", tt.gates, got, tt.want)
		}
	}
}

func BenchmarkEvidenceSelect(b *testing.B) {
	evaluations := make([]registry.Evaluation, 1000)
	for i := range evaluations {
		evaluations[i] = registry.Evaluation{Dataset: registry.Dataset{Name: "calls", Split: "test"}, Evaluator: "jenkins", RecordedAt: someTime}
	}
	evidence := &registry.Evidence{Dataset: "calls", Split: "test", Evaluators: []string{"ada", "jenkins"}, MaxAge: time.Hour}
	for b.Loop() {
		if found := evidence.Select(evaluations, someTime); found.Matched != len(evaluations) {
			b.Fatal(found)
		}
	}
}
