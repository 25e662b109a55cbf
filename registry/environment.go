package registry

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// ChangeKind says how a version came to an environment.
type ChangeKind string

// The kinds of change of an environment.
const (
	Promotion ChangeKind = "promotion"
	Rollback  ChangeKind = "rollback"
)

// EnvironmentChange is one entry of an environment's history: which version went there, when,
// why and by whom.
type EnvironmentChange struct {
	ID          string          `json:"id"`
	Environment EnvironmentName `json:"environment"`
	Kind        ChangeKind      `json:"kind"`
	Version     Tag             `json:"version"`
	Commit      ObjectID        `json:"commit"`
	Artifact    digest.Digest   `json:"artifact"`
	Previous    Tag             `json:"previous,omitzero"`
	Reason      string          `json:"reason,omitempty"`
	Automatic   bool            `json:"automatic"`
	By          string          `json:"by"`
	At          time.Time       `json:"at"`
	Live        bool            `json:"live"` // false while a deployment has not reported it
	Deploy      []string        `json:"deploy,omitempty"`
	Verdict     *Verdict        `json:"verdict,omitempty"`
}

// EnvironmentState is what runs in an environment and what was ever there.
type EnvironmentState struct {
	Name    EnvironmentName     `json:"name"`
	Current *EnvironmentChange  `json:"current,omitempty"`
	Held    []Tag               `json:"held,omitempty"`   // every version that was ever promoted there
	Barred  []Tag               `json:"barred,omitempty"` // not promoted there automatically
	Freeze  *Freeze             `json:"freeze,omitempty"` // while nothing is promoted there
	History []EnvironmentChange `json:"-"`                // filled where asked for, oldest first
}

// Version is the version in the environment now; the zero tag while there is none.
func (s *EnvironmentState) Version() Tag {
	if s == nil || s.Current == nil {
		return Tag{}
	}
	return s.Current.Version
}

// HasHeld reports whether tag was ever promoted there.
func (s *EnvironmentState) HasHeld(tag Tag) bool { return s != nil && slices.Contains(s.Held, tag) }

// Before is the version to go back to: the one that the current one replaced, unless that was
// rolled back itself or is not usable; then the last that came there and is neither. It is the
// zero tag when there is none.
func (s *EnvironmentState) Before(usable func(Tag) bool) Tag {
	if s == nil || s.Current == nil {
		return Tag{}
	}
	fit := func(t Tag) bool {
		return !t.IsZero() && t != s.Version() && !slices.Contains(s.Barred, t) && usable(t)
	}
	if fit(s.Current.Previous) {
		return s.Current.Previous
	}
	for _, t := range slices.Backward(s.Held) {
		if fit(t) {
			return t
		}
	}
	return Tag{}
}

// Apply adds a change to the state. Copies of the state that were made before do not change.
func (s *EnvironmentState) Apply(c EnvironmentChange) {
	if c.Kind == Rollback && !s.Version().IsZero() && !slices.Contains(s.Barred, s.Version()) {
		s.Barred = append(slices.Clip(s.Barred), s.Version())
	}
	if c.Kind == Promotion && !c.Automatic {
		s.Barred = slices.DeleteFunc(slices.Clone(s.Barred), func(t Tag) bool { return t == c.Version })
	}
	if !slices.Contains(s.Held, c.Version) {
		s.Held = append(slices.Clip(s.Held), c.Version)
	}
	s.Current = &c
}

// Place is an environment of a model: what the policy says of it, and what is there.
type Place struct {
	Policy *Environment // nil when the policy in force does not name it
	State  EnvironmentState
}

// Places are the environments of the policy, in its order, and then those that only once held a
// version, in theirs.
func Places(policy *Policy, states []EnvironmentState) []Place {
	var places []Place
	if policy != nil {
		for i := range policy.Environments {
			env := &policy.Environments[i]
			at := Place{Policy: env, State: EnvironmentState{Name: env.Name}}
			if j := slices.IndexFunc(states, func(s EnvironmentState) bool { return s.Name == env.Name }); j >= 0 {
				at.State = states[j]
			}
			places = append(places, at)
		}
	}
	for _, s := range states {
		if _, ok := policy.Environment(s.Name); !ok {
			places = append(places, Place{State: s})
		}
	}
	return places
}

// MayPromoteAutomatically reports whether the server itself may promote tag to env: only what
// comes after every version that the environment has held, so that neither a rollback nor an
// old version that passes late is ever undone, never what left it by a rollback, nothing while
// the environment is frozen, and pre-releases only where the policy takes them.
func MayPromoteAutomatically(env *Environment, state *EnvironmentState, tag Tag) bool {
	if env.Promote != PromoteAuto || (tag.Prerelease() && !env.Prereleases) {
		return false
	}
	if state == nil {
		return true
	}
	if state.Freeze != nil {
		return false
	}
	if slices.Contains(state.Barred, tag) {
		return false
	}
	return !slices.ContainsFunc(state.Held, func(held Tag) bool { return tag.Compare(held) <= 0 })
}

// Approval is one person's word that a version may go to an environment.
type Approval struct {
	Environment EnvironmentName `json:"environment"`
	Version     Tag             `json:"version"`
	By          string          `json:"by"`
	At          time.Time       `json:"at"`
	Reason      string          `json:"reason,omitempty"`
}
