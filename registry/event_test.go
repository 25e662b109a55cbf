package registry_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

func TestEventID(t *testing.T) {
	id := func(modelID string, kind registry.EventType, parts ...string) string {
		return registry.EventID(modelID, kind, parts...)
	}
	all := []struct{ name, id string }{
		{"base", id("m1", registry.EventRefUpdated, "refs/heads/main", "3", someCommit)},
		{"another model", id("m2", registry.EventRefUpdated, "refs/heads/main", "3", someCommit)},
		{"another type", id("m1", registry.EventVersionPublished, "refs/heads/main", "3", someCommit)},
		{"another ref", id("m1", registry.EventRefUpdated, "refs/heads/next", "3", someCommit)},
		{"another generation", id("m1", registry.EventRefUpdated, "refs/heads/main", "4", someCommit)},
		{"another object", id("m1", registry.EventRefUpdated, "refs/heads/main", "3", strings.Repeat("0", 40))},
		{"another order", id("m1", registry.EventRefUpdated, "3", "refs/heads/main", someCommit)},
		{"a part less", id("m1", registry.EventRefUpdated, "refs/heads/main", "3")},
		{"a part more", id("m1", registry.EventRefUpdated, "refs/heads/main", "3", someCommit, "")},
		{"no parts", id("m1", registry.EventRefUpdated)},
		{"parts cut elsewhere", id("m1", registry.EventRefUpdated, "refs/heads/main3", "", someCommit)},
		{"parts in one", id("m1", registry.EventRefUpdated, "refs/heads/main3"+someCommit)},
		{"model and type cut elsewhere", id("m1ref.", "updated", "refs/heads/main", "3", someCommit)},
	}
	form := regexp.MustCompile(`^[0-9a-f]{32}$`)
	seen := map[string]string{}
	for _, e := range all {
		if other, ok := seen[e.id]; ok {
			t.Errorf("EventID of %s and of %s are the same", e.name, other)
		}
		if seen[e.id] = e.name; !form.MatchString(e.id) {
			t.Errorf("EventID of %s = %q, want 32 hex digits", e.name, e.id)
		}
	}
	if again := id("m1", registry.EventRefUpdated, "refs/heads/main", "3", someCommit); again != all[0].id {
		t.Errorf("EventID of the same = %s, then %s", all[0].id, again)
	}
	// SHA-256 of "m1\x00ref.updated\x00a", its first 16 bytes: receivers keep these ids for ever.
	if got, want := id("m1", registry.EventRefUpdated, "a"), "5f4ebb267b8be374ab5aecebabfb4161"; got != want {
		t.Errorf("EventID(m1, ref.updated, a) = %s, want %s", got, want)
	}
}

func FuzzEventID(f *testing.F) {
	f.Add("m1", "a", "b", "ab", "")
	f.Add("m1", "a", "b", "a", "b")
	f.Fuzz(func(t *testing.T, modelID, a, b, c, d string) {
		if strings.Contains(modelID+a+b+c+d, "\x00") {
			return // no part of an event holds it
		}
		same := registry.EventID(modelID, registry.EventRefUpdated, a, b) == registry.EventID(modelID, registry.EventRefUpdated, c, d)
		if want := a == c && b == d; same != want {
			t.Errorf("EventID of parts %q and of %q are the same: %t, want %t", []string{a, b}, []string{c, d}, same, want)
		}
	})
}

func TestNewEvent(t *testing.T) {
	m := registry.Model{ID: "m1", Name: registry.MustModelName("acme/fraud")}
	got := registry.NewEvent(registry.EventModelDeleted, m, "ada", someTime, map[string]int{"b": 2, "a": 1}, "x", "y")
	want := registry.Event{
		ID: registry.EventID("m1", registry.EventModelDeleted, "x", "y"), Type: registry.EventModelDeleted, ModelID: "m1", Model: m.Name,
		Actor: "ada", At: someTime, Data: []byte(`{"a":1,"b":2}`),
	}
	if diff := cmp.Diff(want, got, sameGroups...); diff != "" {
		t.Errorf("NewEvent (-want +got):\n%s", diff)
	}
	defer func() {
		if recover() == nil {
			t.Error("NewEvent with data that JSON cannot hold does not panic")
		}
	}()
	registry.NewEvent(registry.EventModelDeleted, m, "ada", someTime, math.NaN())
}

// A sink asks for events by type: what is missing in the list can never be asked for.
func TestEventTypesIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, kind := range registry.EventTypes {
		listed[string(kind)]++
	}
	form := regexp.MustCompile(`^[a-z]+\.[a-z_]+$`)
	constants := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "EventType" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if constants++; err != nil || listed[text] != 1 || !form.MatchString(text) {
			t.Errorf("%s = %q stands %d times in EventTypes, want once, and of the form noun.verb", spec.Names[0].Name, text, listed[text])
		}
		return true
	})
	if constants == 0 || constants != len(registry.EventTypes) {
		t.Errorf("the source has %d types of events and EventTypes lists %d", constants, len(registry.EventTypes))
	}
}

func BenchmarkEventID(b *testing.B) {
	for b.Loop() {
		registry.EventID("0123456789abcdef", registry.EventRefUpdated, "refs/heads/main", "17", someCommit)
	}
}
