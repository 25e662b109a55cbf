// Package access decides who may do what. Every door of the server, whatever protocol it
// speaks, asks this one function, so that there is one place to read and to test.
//
// It is default deny. It does no I/O: the caller brings who asks and, when there is one, the
// model; a model that does not exist and one that the caller may not know of get the same
// answer.
package access

import "github.com/herdbook/herdbook/registry"

// Role is what a caller may do everywhere.
type Role int

// The roles, from the weakest to the strongest.
const (
	Nobody Role = iota // may do nothing
	Reader             // reads public models without having said who it is
	Admin              // may do everything
)

// Identity is who asks.
type Identity struct {
	Name    string // "anonymous", or the owner of the token
	Role    Role
	TokenID string // of the token that proved it, if one did
}

// Anonymous is a caller without credentials. It reads public models only where the operator
// lets it, which by default is on loopback.
func Anonymous(mayRead bool) Identity {
	if mayRead {
		return Identity{Name: "anonymous", Role: Reader}
	}
	return Identity{Name: "anonymous"}
}

// System is the server itself, acting on what it was told before.
var System = Identity{Name: "herdbook", Role: Admin}

// Authenticated reports whether the caller proved who it is.
func (id Identity) Authenticated() bool { return id.Role > Reader }

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
)

// The actions on the server.
const (
	ReadDeliveries Action = "read deliveries"
	Redeliver      Action = "redeliver"
	ReadAudit      Action = "read audit"
	ManageTokens   Action = "manage tokens"
)

// Authorize reports whether id may do action to m; m is nil when there is no such model, or
// when the action is on the server. It returns nil, [registry.ErrUnauthenticated] when a token
// is needed and none was brought, [registry.ErrNotFound] when the caller may not know whether
// the model exists, or [registry.ErrForbidden].
func Authorize(id Identity, action Action, m *registry.Model) error {
	switch {
	case id.Role == Admin:
		if m == nil && needsModel(action) {
			return registry.ErrNotFound
		}
		return nil
	case action != Read || id.Role == Nobody:
		return registry.ErrUnauthenticated
	case CanRead(id, m):
		return nil
	}
	return registry.ErrNotFound
}

func needsModel(action Action) bool {
	switch action {
	case Create, ReadDeliveries, Redeliver, ReadAudit, ManageTokens:
		return false
	}
	return true
}

// CanRead reports whether id may know of m. Queries use it to leave out what the caller may
// not read before they count, sort or page.
func CanRead(id Identity, m *registry.Model) bool {
	if m == nil {
		return false
	}
	switch id.Role {
	case Admin:
		return true
	case Reader:
		return m.Visibility == registry.Public
	}
	return false
}
