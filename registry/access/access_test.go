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
	access.ReadUsage: true,
}

// onModel are the actions on a model.
var onModel = map[access.Action]bool{
	access.Read: true, access.Write: true, access.Describe: true, access.Delete: true, access.Evaluate: true, access.Promote: true, access.Approve: true, access.Relate: true,
	access.ForceUnlock: true, access.PushProtected: true, access.Withhold: true, access.ChangePolicy: true,
	access.SetState: true, access.Freeze: true,
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

// allRoles are those that there are, and two that there are not.
var allRoles = []access.Role{-1, access.Nobody, access.Guest, access.Reader, access.Writer, access.Maintainer, access.Admin, access.Admin + 1}

// weakest is the weakest role that may do an action to a model whatever its visibility.
var weakest = map[access.Action]access.Role{
	access.Read: access.Reader,

	access.Write: access.Writer, access.Create: access.Writer, access.Evaluate: access.Writer, access.Relate: access.Writer,

	access.Describe: access.Maintainer, access.Promote: access.Maintainer, access.Approve: access.Maintainer,
	access.SetState: access.Maintainer, access.Freeze: access.Maintainer,
	access.ForceUnlock: access.Maintainer, access.PushProtected: access.Maintainer, access.Withhold: access.Maintainer, access.ChangePolicy: access.Maintainer,

	access.Delete: access.Admin, access.ReadDeliveries: access.Admin, access.Redeliver: access.Admin,
	access.ReadAudit: access.Admin, access.ManageTokens: access.Admin, access.ReadUsage: access.Admin,
}

// authorized is what Authorize has to say, written down a second time.
func authorized(role access.Role, action access.Action, m *registry.Model) error {
	real := role >= access.Nobody && role <= access.Admin
	public := m != nil && m.Visibility == registry.Public
	switch {
	case !real || role == access.Nobody:
		return registry.ErrUnauthenticated
	case role == access.Guest && action != access.Read:
		return registry.ErrUnauthenticated
	case m == nil && onModel[action]:
		return registry.ErrNotFound
	case role == access.Guest && !public:
		return registry.ErrNotFound
	case role == access.Guest, role >= weakest[action]:
		return nil
	}
	return registry.ErrForbidden
}

func TestAuthorize(t *testing.T) {
	for _, action := range actions(t) {
		for _, m := range models {
			for _, role := range allRoles {
				id := access.Identity{Name: "ada", Role: role}
				want := authorized(role, action, m.model)
				// The very same value: a wrapped one could tell more to one caller than to another.
				if got := access.Authorize(id, action, m.model); got != want {
					t.Errorf("Authorize(%s, %s, %s) = %v, want %v", role, action, m.name, got, want)
				}
			}
		}
	}
}

// Who may not read a model learns nothing of it by any action: the answer is that of no model.
func TestForbiddenLooksLikeAbsent(t *testing.T) {
	for _, role := range allRoles {
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
	for _, role := range allRoles {
		id := access.Identity{Role: role}
		for _, m := range models {
			if can, err := access.CanRead(id, m.model), access.Authorize(id, access.Read, m.model); can != (err == nil) {
				t.Errorf("CanRead(role %d, %s) = %t, and Authorize(Read) = %v", role, m.name, can, err)
			}
		}
	}
}

func TestUnknownActionIsDenied(t *testing.T) {
	for _, role := range allRoles {
		for _, m := range models {
			if access.Authorize(access.Identity{Role: role}, "fly", m.model) == nil {
				t.Errorf("Authorize(%s, fly, %s) = nil, and nobody may do what the program does not know", role, m.name)
			}
		}
	}
}

func TestParseRole(t *testing.T) {
	for _, role := range []access.Role{access.Reader, access.Writer, access.Maintainer, access.Admin} {
		if got, err := access.ParseRole(role.String()); got != role || err != nil {
			t.Errorf("ParseRole(%q) = %v, %v, want the role itself", role, got, err)
		}
	}
	for _, text := range []string{"", "Admin", "guest", "nobody", "role 9", "owner"} {
		var field *registry.FieldError
		if got, err := access.ParseRole(text); !errors.As(err, &field) || field.Field != "role" || got != access.Nobody {
			t.Errorf("ParseRole(%q) = %v, %v, want an error on the field role", text, got, err)
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
		{"anonymous on loopback", access.Anonymous(true), access.Guest, false},
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
