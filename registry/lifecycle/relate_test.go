package lifecycle_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

func (s *site) declare(by lifecycle.Request, m registry.Model, edges ...registry.LineageEdge) error {
	s.tb.Helper()
	return s.Declare(s.tb.Context(), by, m, edges)
}

func edge(from string, kind registry.EdgeKind, to string) registry.LineageEdge {
	return registry.LineageEdge{From: from, To: to, Kind: kind}
}

func TestDeclare(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	v := s.release(m, "v1.0.0")
	if err := s.BuildImages(t.Context()); err != nil { // what is stated of a version comes with its image
		t.Fatal(err)
	}
	self := registry.VersionNodeID(m.ID, v.Version.Tag)
	edges := []registry.LineageEdge{
		edge(self, registry.GeneratedBy, "run:jenkins/7"), edge("run:jenkins/7", registry.Used, "code:https://git.example/train@4f1"),
		edge("dataset:calls", registry.DerivedFrom, "dataset:raw calls"),
		{From: self, To: "model:other/base@main", Kind: registry.DerivedFrom, Relation: registry.Finetune},
	}
	for range 2 { // the second time it is no change
		if err := s.declare(by("ada"), m, edges...); err != nil {
			t.Fatalf("Declare = %v", err)
		}
	}
	got := s.edges(self)
	for _, want := range []registry.LineageEdge{edges[0], edges[3]} {
		if !slices.Contains(got, want) {
			t.Errorf("edges of %s = %v, want %v among them", self, got, want)
		}
	}
	if got := s.edges("run:jenkins/7"); !slices.Contains(got, edges[1]) {
		t.Errorf("edges of the run = %v, want %v", got, edges[1])
	}
	// The artifact says so too.
	if err := s.AttestEvaluations(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stated := s.statements(m, v)["lineage-v1"]; !slices.Contains(stated.Predicate.Edges, edges[0]) || !slices.Contains(stated.Predicate.Edges, edges[3]) {
		t.Errorf("edges that the artifact states = %v, want %v and %v among them", stated.Predicate.Edges, edges[0], edges[3])
	}
}

func TestDeclareRefuses(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	self := registry.VersionNodeID(m.ID, s.release(m, "v1.0.0").Version.Tag)
	other := s.model(registry.MustModelName("acme/other"))
	theirs := registry.VersionNodeID(other.ID, s.release(other, "v1.0.0").Version.Tag)
	long := strings.Repeat("x", 1025)
	tests := []struct {
		edge  registry.LineageEdge
		field string // "" means that something is not found
	}{
		{edge(self, "wrote", "run:7"), "edges[0].kind"},
		{edge(self, registry.EvaluatedWith, "dataset:calls"), "edges[0].kind"},
		{edge(self, "", "run:7"), "edges[0].kind"},
		{registry.LineageEdge{From: self, To: "run:7", Kind: registry.GeneratedBy, Relation: registry.Finetune}, "edges[0].relation"},
		{registry.LineageEdge{From: self, To: "model:a/b", Kind: registry.DerivedFrom, Relation: registry.Previous}, "edges[0].relation"},
		{edge(self, registry.GeneratedBy, "dataset:calls"), "edges[0].to"},
		{edge(self, registry.DerivedFrom, "run:7"), "edges[0].to"},
		{edge("run:7", registry.DerivedFrom, "run:8"), "edges[0].from"},
		{edge("dataset:calls", registry.Used, "dataset:raw"), "edges[0].from"},
		{edge(self, registry.Used, "dataset:"), "edges[0].to"},
		{edge(self, registry.Used, "dataset: calls"), "edges[0].to"},
		{edge(self, registry.Used, "dataset:a\nb"), "edges[0].to"},
		{edge(self, registry.Used, "dataset:\xff"), "edges[0].to"},
		{edge(self, registry.Used, "dataset:a\x00b"), "edges[0].to"},
		{edge(self, registry.Used, "dataset:"+long), "edges[0].to"},
		{edge(self, registry.Used, "calls"), "edges[0].to"},
		{edge(self, registry.DerivedFrom, "model:acme/base@"), "edges[0].to"},
		{edge(self, registry.DerivedFrom, "model:@v1.0.0"), "edges[0].to"},
		{edge(self, registry.Used, "commit:4f1"), "edges[0].to"},
		{edge(self, registry.DerivedFrom, "version:nonsense"), "edges[0].to"},
		{edge("", registry.Used, "dataset:calls"), "edges[0].from"},
		{edge(theirs, registry.Used, "dataset:calls"), "edges[0].from"},
		{edge(registry.VersionNodeID(m.ID, registry.MustTag("v9.0.0")), registry.Used, "dataset:calls"), ""},
		{edge(self, registry.DerivedFrom, registry.VersionNodeID(m.ID, registry.MustTag("v9.0.0"))), ""},
		{edge(self, registry.DerivedFrom, "version:never:v1.0.0"), ""},
	}
	before := s.groups()
	for _, tt := range tests {
		err := s.declare(by("ada"), m, tt.edge)
		var field *registry.FieldError
		if tt.field == "" {
			if !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("Declare(%v) = %v, want %v", tt.edge, err, registry.ErrNotFound)
			}
		} else if !errors.As(err, &field) || field.Field != tt.field {
			t.Errorf("Declare(%v) = %v, want an error of %s", tt.edge, err, tt.field)
		}
	}
	for _, n := range []int{0, 101} {
		if err := s.declare(by("ada"), m, make([]registry.LineageEdge, n)...); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Declare of %d edges = %v, want %v", n, err, registry.ErrInvalid)
		}
	}
	reader := lifecycle.Request{Identity: access.Identity{Name: "rita", Role: access.Reader}}
	if err := s.declare(reader, m, edge(self, registry.Used, "dataset:calls")); !errors.Is(err, registry.ErrForbidden) {
		t.Errorf("Declare by a reader = %v, want %v", err, registry.ErrForbidden)
	}
	if got := s.groups(); got != before {
		t.Errorf("refused edges took %d groups of the journal", got-before)
	}
}

func TestDeclaredCycles(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	v1 := registry.VersionNodeID(m.ID, s.release(m, "v1.0.0").Version.Tag)
	v2 := registry.VersionNodeID(m.ID, s.release(m, "v2.0.0").Version.Tag) // came from v1.0.0
	d := func(from, to string) registry.LineageEdge { return edge(from, registry.DerivedFrom, to) }
	if err := s.declare(by("ada"), m, d("dataset:b", "dataset:a"), d("dataset:c", "dataset:b"), d(v1, "dataset:c")); err != nil {
		t.Fatal(err)
	}
	name := m.Name.String()
	tests := []struct {
		edges []registry.LineageEdge
		want  string // of the error; "" means none
	}{
		{[]registry.LineageEdge{d(v1, v2)}, fmt.Sprintf("that %[1]s@v1.0.0 came from %[1]s@v2.0.0 would close a cycle: %[1]s@v2.0.0 <- %[1]s@v1.0.0 <- %[1]s@v2.0.0", name)},
		{[]registry.LineageEdge{d(v1, "model:"+name+"@v2.0.0")}, "would close a cycle"},
		{[]registry.LineageEdge{d("dataset:a", "dataset:c")}, "that dataset:a came from dataset:c would close a cycle: dataset:c <- dataset:b <- dataset:a <- dataset:c"},
		{[]registry.LineageEdge{d("dataset:a", v2)}, "would close a cycle: " + name + "@v2.0.0 <- " + name + "@v1.0.0 <- dataset:c <- dataset:b <- dataset:a <- " + name + "@v2.0.0"},
		{[]registry.LineageEdge{d("dataset:x", "dataset:x")}, "cannot come from itself"},
		{[]registry.LineageEdge{d("dataset:x", "dataset:y"), d("dataset:y", "dataset:x")}, "would close a cycle"},
		{[]registry.LineageEdge{d("dataset:x", "dataset:c"), d("dataset:a", "dataset:y"), d("dataset:y", "dataset:x")}, "would close a cycle"},
		{[]registry.LineageEdge{d("dataset:x", "dataset:c"), d("dataset:y", "dataset:x"), d("dataset:y", "dataset:c")}, ""},
	}
	for _, tt := range tests {
		before := s.groups()
		err := s.declare(by("ada"), m, tt.edges...)
		if tt.want == "" {
			if err != nil {
				t.Errorf("Declare(%v) = %v, want nil", tt.edges, err)
			}
			continue
		}
		if !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Declare(%v) = %v, want a conflict with %q", tt.edges, err, tt.want)
		}
		if got := s.groups(); got != before {
			t.Errorf("Declare(%v) took %d groups of the journal", tt.edges, got-before)
		}
	}
}

// Many edges beside a long chain cost little, and what closes a cycle is told in short.
func TestDeclaredCyclesOfLongChains(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	const length = 900
	var chain []registry.LineageEdge
	for i := range length {
		chain = append(chain, edge(fmt.Sprintf("dataset:n%d", i+1), registry.DerivedFrom, fmt.Sprintf("dataset:n%d", i)))
	}
	for some := range slices.Chunk(chain, lifecycle.MaxDeclaredEdges) {
		if err := s.declare(by("ada"), m, some...); err != nil {
			t.Fatal(err)
		}
	}
	var edges []registry.LineageEdge
	for i := range lifecycle.MaxDeclaredEdges {
		edges = append(edges, edge(fmt.Sprintf("dataset:n%d", i), registry.DerivedFrom, fmt.Sprintf("dataset:n%d", length-i)))
	}
	err := s.declare(by("ada"), m, edges...)
	if !errors.Is(err, registry.ErrConflict) || len(err.Error()) > 500 || !strings.Contains(err.Error(), " <- 890 more <- ") {
		t.Errorf("Declare = %.1000v, want a conflict in short", err)
	}
}

// Two cards that name each other make no cycle: what the second says is a warning.
func TestCardsThatNameEachOther(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	other := s.model(registry.MustModelName("acme/other"))
	based := func(base string) map[string]string {
		return map[string]string{"README.md": "---\nbase_model: " + base + "\n---\n# Model\n", "w.bin": base}
	}
	first := s.publish(m, "v1.0.0", based("acme/other@v1.0.0"))
	if len(first.Version.Warnings) != 0 {
		t.Errorf("warnings of the first = %v", first.Version.Warnings)
	}
	second := s.publish(other, "v1.0.0", based(m.Name.String()+"@v1.0.0"))
	self := registry.VersionNodeID(other.ID, second.Version.Tag)
	if got := strings.Join(second.Version.Warnings, "\n"); !strings.Contains(got, "names a base that came from it; that is not recorded: model:acme/other@v1.0.0 <- ") {
		t.Errorf("warnings of the second = %q", got)
	}
	for _, e := range s.edges(self) {
		if e.From == self && e.To == registry.VersionNodeID(m.ID, first.Version.Tag) {
			t.Errorf("the cycle is recorded: %v", e)
		}
	}
}
