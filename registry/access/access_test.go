package access_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// models are the states in which a model can be; nil is none.
var models = []struct {
	name  string
	model *registry.Model
}{
	{"no model", nil},
	{"a public model", &registry.Model{ID: "m1", Visibility: registry.Public}},
	{"an internal model", &registry.Model{ID: "m2", Visibility: registry.Internal}},
	{"a private model", &registry.Model{ID: "m3", Visibility: registry.Private}},
	{"a model of unknown visibility", &registry.Model{ID: "m4"}},
}

// onServer are the actions that need no model.
var onServer = map[access.Action]bool{
	access.Create: true, access.ReadDeliveries: true, access.Redeliver: true, access.ReadAudit: true, access.ManageTokens: true,
}

// onModel are the actions on a model.
var onModel = map[access.Action]bool{
	access.Read: true, access.Write: true, access.Describe: true, access.Delete: true, access.Evaluate: true, access.Promote: true, access.Approve: true, access.Relate: true,
}

// actions are all of them, read from the source: a new one has to be put into one of the two tables above.
func actions(t *testing.T) []access.Action {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "access.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []access.Action
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Action" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		action := access.Action(text)
		if onServer[action] == onModel[action] {
			t.Errorf("action %q is in neither table of this test, or in both: say whether it needs a model", action)
		}
		found = append(found, action)
		return true
	})
	if len(found) != len(onServer)+len(onModel) {
		t.Errorf("the source has %d actions and the tables of this test %d", len(found), len(onServer)+len(onModel))
	}
	return found
}

func TestAuthorize(t *testing.T) {
	const future = access.Admin + 1
	for _, action := range actions(t) {
		for _, m := range models {
			public := m.model != nil && m.model.Visibility == registry.Public
			want := map[access.Role]error{
				access.Role(-1): registry.ErrUnauthenticated,
				access.Nobody:   registry.ErrUnauthenticated,
				access.Reader:   registry.ErrUnauthenticated,
				access.Admin:    nil,
				future:          registry.ErrUnauthenticated,
			}
			switch {
			case action == access.Read && public:
				want[access.Reader] = nil
			case action == access.Read:
				want[access.Reader] = registry.ErrNotFound
			}
			if action == access.Read {
				want[future], want[access.Role(-1)] = registry.ErrNotFound, registry.ErrNotFound
			}
			if m.model == nil && onModel[action] {
				want[access.Admin] = registry.ErrNotFound
			}
			for role, want := range want {
				id := access.Identity{Name: "ada", Role: role}
				// The very same value: a wrapped one could tell more to one caller than to another.
				if got := access.Authorize(id, action, m.model); got != want {
					t.Errorf("Authorize(role %d, %s, %s) = %v, want %v", role, action, m.name, got, want)
				}
			}
		}
	}
}

// Who may not read a model learns nothing of it by any action: the answer is that of no model.
func TestForbiddenLooksLikeAbsent(t *testing.T) {
	for _, role := range []access.Role{-1, access.Nobody, access.Reader, access.Admin, access.Admin + 1} {
		id := access.Identity{Name: "ada", Role: role}
		for _, m := range models {
			if access.CanRead(id, m.model) {
				continue
			}
			for _, action := range actions(t) {
				absent, there := access.Authorize(id, action, nil), access.Authorize(id, action, m.model)
				if absent != there {
					t.Errorf("Authorize(role %d, %s) of no model = %v, of %s = %v, want the same", role, action, absent, m.name, there)
				}
				if onModel[action] && there == nil {
					t.Errorf("Authorize(role %d, %s, %s) = nil, and the role may not read it", role, action, m.name)
				}
			}
		}
	}
}

func TestCanReadAgreesWithAuthorize(t *testing.T) {
	for _, role := range []access.Role{-1, access.Nobody, access.Reader, access.Admin, access.Admin + 1} {
		id := access.Identity{Role: role}
		for _, m := range models {
			if can, err := access.CanRead(id, m.model), access.Authorize(id, access.Read, m.model); can != (err == nil) {
				t.Errorf("CanRead(role %d, %s) = %t, and Authorize(Read) = %v", role, m.name, can, err)
			}
		}
	}
}

// An action that the program does not know is nobody's but the administrator's.
func TestUnknownActionIsDenied(t *testing.T) {
	for _, role := range []access.Role{access.Nobody, access.Reader} {
		for _, m := range models {
			if err := access.Authorize(access.Identity{Role: role}, "fly", m.model); !errors.Is(err, registry.ErrUnauthenticated) {
				t.Errorf("Authorize(role %d, fly, %s) = %v, want %v", role, m.name, err, registry.ErrUnauthenticated)
			}
		}
	}
}

func TestIdentities(t *testing.T) {
	tests := []struct {
		name          string
		id            access.Identity
		role          access.Role
		authenticated bool
	}{
		{"anonymous on loopback", access.Anonymous(true), access.Reader, false},
		{"anonymous elsewhere", access.Anonymous(false), access.Nobody, false},
		{"the server itself", access.System, access.Admin, true},
		{"the zero identity", access.Identity{}, access.Nobody, false},
	}
	for _, tt := range tests {
		if tt.id.Role != tt.role || tt.id.Authenticated() != tt.authenticated {
			t.Errorf("%s has role %d, authenticated %t, want %d, %t", tt.name, tt.id.Role, tt.id.Authenticated(), tt.role, tt.authenticated)
		}
	}
}

func BenchmarkAuthorize(b *testing.B) {
	id, m := access.Anonymous(true), &registry.Model{Visibility: registry.Public}
	for b.Loop() {
		if err := access.Authorize(id, access.Read, m); err != nil {
			b.Fatal(err)
		}
	}
}
