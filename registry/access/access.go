// Package access decides who may do what. Every door of the server, whatever protocol it
// speaks, asks this one function, so that there is one place to read and to test.
//
// It is default deny. It does no I/O: the caller brings who asks and, when there is one, the
// model; a model that does not exist and one that the caller may not know of get the same
// answer.
package access

import (
	"fmt"

	"github.com/herdbook/herdbook/registry"
)

// Role is what a caller may do everywhere.
type Role int

// The roles, from the weakest to the strongest; each may do what the one before it may.
const (
	Nobody     Role = iota // may do nothing
	Guest                  // reads public models without having said who it is
	Reader                 // reads all models
	Writer                 // pushes, evaluates, locks
	Maintainer             // promotes and approves, pushes to protected branches, undoes what writers did
	Admin                  // may do everything
)

// roleNames are the roles that a person or a program can be given.
var roleNames = map[Role]string{Reader: "reader", Writer: "writer", Maintainer: "maintainer", Admin: "admin"}

// ParseRole reads the name of a role that can be given. The error is a [registry.FieldError] on "role".
func ParseRole(s string) (Role, error) {
	for role, name := range roleNames {
		if name == s {
			return role, nil
		}
	}
	return Nobody, registry.Invalid("role", "a role is reader, writer, maintainer or admin, not %.40q", s)
}

func (r Role) String() string {
	switch r {
	case Nobody:
		return "nobody"
	case Guest:
		return "guest"
	}
	if name, ok := roleNames[r]; ok {
		return name
	}
	return fmt.Sprintf("role %d", int(r))
}

// Identity is who asks.
type Identity struct {
	Name    string // "anonymous", or the owner of the token
	Role    Role
	TokenID string // of the token that proved it, if one did
}

// Of is who a token, or the key of an SSH client, stands for. A role that this program does not know is a
// [registry.ErrForbidden].
func Of(t registry.Token) (Identity, error) {
	role, err := ParseRole(t.Role)
	if err != nil {
		return Identity{}, fmt.Errorf("token %s has the role %q, which this version of Herdbook does not know: %w", t.ID, t.Role, registry.ErrForbidden)
	}
	return Identity{Name: t.Owner, Role: role, TokenID: t.ID}, nil
}

// Anonymous is a caller without credentials. It reads public models only where the operator
// lets it, which by default is on loopback.
func Anonymous(mayRead bool) Identity {
	if mayRead {
		return Identity{Name: "anonymous", Role: Guest}
	}
	return Identity{Name: "anonymous"}
}

// System is the server itself, acting on what it was told before.
var System = Identity{Name: "herdbook", Role: Admin}

// Authenticated reports whether the caller proved who it is.
func (id Identity) Authenticated() bool { return id.role() > Guest }

// role is the caller's role; one that is none of the known ones is Nobody.
func (id Identity) role() Role {
	if id.Role < Nobody || id.Role > Admin {
		return Nobody
	}
	return id.Role
}

// Action is something that a caller wants to do.
type Action string

// The actions on a model.
const (
	Read     Action = "read"
	Write    Action = "write" // push, upload
	Create   Action = "create"
	Describe Action = "describe" // change description or visibility
	Delete   Action = "delete"
	Evaluate Action = "evaluate"
	Promote  Action = "promote"
	Approve  Action = "approve"
	Relate   Action = "relate" // add edges of lineage

	SetState Action = "set state" // deprecate, quarantine, revoke or restore a version
	Freeze   Action = "freeze"    // keep an environment as it is, or let it go again

	ForceUnlock   Action = "force unlock"   // take away the LFS lock of somebody else
	PushProtected Action = "push protected" // push to a protected branch or tag
	Withhold      Action = "withhold"       // push without telling the sinks
	ChangePolicy  Action = "change policy"  // push another herdbook.yaml to the default branch
)

// The actions on the server.
const (
	ReadDeliveries Action = "read deliveries"
	Redeliver      Action = "redeliver"
	ReadAudit      Action = "read audit"
	ManageTokens   Action = "manage tokens"
	ReadUsage      Action = "read usage"
)

// Authorize reports whether id may do action to m; m is nil when there is no such model, or
// when the action is on the server. It returns nil, [registry.ErrUnauthenticated] when a token
// is needed and none was brought, [registry.ErrNotFound] when the caller may not know whether
// the model exists, or [registry.ErrForbidden].
func Authorize(id Identity, action Action, m *registry.Model) error {
	needed, known := needs[action]
	switch {
	case known && (m != nil || onServer(action)) && id.role() >= needed:
		return nil
	case action == Read && CanRead(id, m):
		return nil
	case id.role() == Nobody, id.role() == Guest && action != Read:
		return registry.ErrUnauthenticated
	case onServer(action), CanRead(id, m):
		return registry.ErrForbidden
	}
	return registry.ErrNotFound
}

// needs is the weakest role that may do an action.
var needs = map[Action]Role{
	Read:     Reader, // and less for what is public, see [CanRead]
	Write:    Writer,
	Create:   Writer,
	Evaluate: Writer,
	Relate:   Writer,
	Describe: Maintainer,
	Promote:  Maintainer,
	Approve:  Maintainer,
	SetState: Maintainer,
	Freeze:   Maintainer,

	ForceUnlock:   Maintainer,
	PushProtected: Maintainer,
	Withhold:      Maintainer,
	ChangePolicy:  Maintainer,

	Delete:         Admin,
	ReadDeliveries: Admin,
	Redeliver:      Admin,
	ReadAudit:      Admin,
	ManageTokens:   Admin,
	ReadUsage:      Admin,
}

// onServer reports whether action needs no model.
func onServer(action Action) bool {
	switch action {
	case Create, ReadDeliveries, Redeliver, ReadAudit, ManageTokens, ReadUsage:
		return true
	}
	return false
}

// CanRead reports whether id may know of m. Queries use it to leave out what the caller may
// not read before they count, sort or page.
func CanRead(id Identity, m *registry.Model) bool {
	switch {
	case m == nil:
		return false
	case id.role() == Guest:
		return m.Visibility == registry.Public
	}
	return id.role() >= Reader
}
