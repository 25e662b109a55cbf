package registry

import (
	"slices"
	"time"
)

// StateChange is one entry of a version's history of states: what may be done with it from then on, why, and who says so.
type StateChange struct {
	ID       string       `json:"id"`
	Version  Tag          `json:"version"`
	State    VersionState `json:"state"`
	Previous VersionState `json:"previous"`
	Reason   string       `json:"reason"`
	By       string       `json:"by"`
	At       time.Time    `json:"at"`
}

// ParseVersionState reads a state that a version can be given. The error is a [FieldError] on "state".
func ParseVersionState(s string) (VersionState, error) {
	state := VersionState(s)
	if !slices.Contains([]VersionState{Published, Deprecated, Quarantined, Revoked}, state) {
		return "", Invalid("state", "a version is published, deprecated, quarantined or revoked, not %.40q", s)
	}
	return state, nil
}

// CheckStateChange reports a change that cannot be, as an [ErrConflict]: what is revoked stays so, and what is quarantined comes out of
// it by being published again only, so that to deprecate it does not open its gates.
func CheckStateChange(tag Tag, from, to VersionState) error {
	switch {
	case from == to:
		return Conflict("%s is %s already", tag, to)
	case from == Revoked:
		return Conflict("%s is revoked, and that is for ever: publish another version", tag)
	case from == Quarantined && to == Deprecated:
		return Conflict("%s is quarantined: restore it before it is deprecated", tag)
	}
	return nil
}

// Usable reports whether a version in this state may be promoted and rolled back to.
func (s VersionState) Usable() bool { return s == Published || s == Deprecated }

// Event is the type of the event that announces the change.
func (c StateChange) Event() EventType {
	switch c.State {
	case Deprecated:
		return EventVersionDeprecated
	case Quarantined:
		return EventVersionQuarantined
	case Revoked:
		return EventVersionRevoked
	}
	return EventVersionRestored
}

// RevokedError reports that what was asked for belongs to revoked versions only. It is an [ErrForbidden].
type RevokedError struct {
	Model  ModelName
	Change StateChange
}

func (e *RevokedError) Error() string {
	return e.Model.String() + " " + e.Change.Version.String() + " was revoked by " + e.Change.By + ": " + e.Change.Reason
}

func (e *RevokedError) Unwrap() error { return ErrForbidden }

// Freeze says that nothing is promoted to an environment until somebody says otherwise. A rollback is possible all the same.
type Freeze struct {
	ID          string          `json:"id"`
	Environment EnvironmentName `json:"environment"`
	Frozen      bool            `json:"frozen"`
	Reason      string          `json:"reason,omitempty"`
	By          string          `json:"by"`
	At          time.Time       `json:"at"`
}
