package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// Environment is an environment as the API shows it: what the policy says of it and what is
// there.
type Environment struct {
	Name    registry.EnvironmentName    `json:"name"`
	Current *registry.EnvironmentChange `json:"current"` // null while nothing was ever promoted there
	After   registry.EnvironmentName    `json:"after,omitzero"`
	Promote registry.PromoteMode        `json:"promote,omitempty"` // empty when the policy has it no more
	Barred  []registry.Tag              `json:"barred,omitempty"`
	Freeze  *registry.Freeze            `json:"freeze,omitempty"` // while nothing is promoted there

	State    registry.VersionState `json:"version_state,omitempty"` // of what is there
	Fallback *registry.Tag         `json:"fallback,omitempty"`      // where a rollback goes, when what is there should not run
}

func (s *Server) showEnvironment(ctx context.Context, m registry.Model, at registry.Place) (Environment, error) {
	shown := Environment{Name: at.State.Name, Current: at.State.Current, Barred: at.State.Barred, Freeze: at.State.Freeze}
	if at.Policy != nil {
		shown.After, shown.Promote = at.Policy.After, at.Policy.Promote
	}
	if shown.Current == nil {
		return shown, nil
	}
	v, err := s.Index.Version(ctx, m.ID, shown.Current.Version)
	if err != nil {
		return shown, err
	}
	if shown.State = v.State; !v.State.Usable() {
		fallback := at.State.Before(func(tag registry.Tag) bool {
			v, err := s.Index.Version(ctx, m.ID, tag)
			return err == nil && v.State.Usable()
		})
		if !fallback.IsZero() {
			shown.Fallback = &fallback
		}
	}
	return shown, nil
}

func (s *Server) listEnvironments(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	policy, err := s.Index.Policy(ctx, m.ID)
	if err != nil {
		return err
	}
	states, err := s.Index.Environments(ctx, m.ID)
	if err != nil {
		return err
	}
	items := []Environment{}
	for _, at := range registry.Places(policy.Policy, states) {
		shown, err := s.showEnvironment(ctx, m, at)
		if err != nil {
			return err
		}
		items = append(items, shown)
	}
	return answerList(c, items, "")
}

// environment is the environment of the path, which the policy names or which once held a
// version.
func (s *Server) environment(c echo.Context, action access.Action) (registry.Model, Environment, error) {
	m, err := s.model(c, action)
	if err != nil {
		return m, Environment{}, err
	}
	name, err := registry.ParseEnvironmentName(c.Param("env"))
	if err != nil {
		return m, Environment{}, err
	}
	ctx := c.Request().Context()
	policy, err := s.Index.Policy(ctx, m.ID)
	if err != nil {
		return m, Environment{}, err
	}
	state, err := s.Index.Environment(ctx, m.ID, name)
	if err != nil {
		return m, Environment{}, err
	}
	env, ok := policy.Policy.Environment(name)
	if !ok && state.Current == nil && state.Freeze == nil {
		return m, Environment{}, fmt.Errorf("environment %s: %w", name, registry.ErrNotFound)
	}
	shown, err := s.showEnvironment(ctx, m, registry.Place{Policy: env, State: state})
	return m, shown, err
}

// EnvironmentAt is what an environment held at a time.
type EnvironmentAt struct {
	Name    registry.EnvironmentName    `json:"name"`
	At      time.Time                   `json:"at"`
	Current *registry.EnvironmentChange `json:"current"` // null while nothing was there yet
}

func (s *Server) getEnvironment(c echo.Context) error {
	m, env, err := s.environment(c, access.Read)
	if err != nil {
		return err
	}
	text := c.QueryParam("at")
	if text == "" {
		return c.JSON(http.StatusOK, env)
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return registry.Invalid("at", "at is a time such as 2026-11-23T12:00:00Z")
	}
	then := EnvironmentAt{Name: env.Name, At: at.UTC()}
	if then.Current, err = s.Index.EnvironmentAt(c.Request().Context(), m.ID, env.Name, at); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, then)
}

func (s *Server) listHistory(c echo.Context) error {
	m, env, err := s.environment(c, access.Read)
	if err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	items, next, err := s.Index.History(c.Request().Context(), m.ID, env.Name, at)
	if err != nil {
		return err
	}
	return answerList(c, items, next)
}

// change is what a promotion, an approval and a rollback say.
type change struct {
	Version  string  `json:"version"`
	Reason   string  `json:"reason"`
	Replaces *string `json:"replaces"` // of a promotion

	tag registry.Tag // parsed
}

// readChange reads the environment of the path and the body. It asks only for the right: a
// promotion to an environment that the policy does not have gets its own answer.
func (s *Server) readChange(c echo.Context, action access.Action, needsVersion bool) (m registry.Model, env registry.EnvironmentName, in change, err error) {
	if m, err = s.model(c, action); err != nil {
		return m, env, in, err
	}
	if env, err = registry.ParseEnvironmentName(c.Param("env")); err != nil {
		return m, env, in, err
	}
	if err = decode(c, maxBodyBytes, &in); err != nil {
		return m, env, in, err
	}
	if in.Version != "" || needsVersion {
		in.tag, err = registry.ParseTag(in.Version)
	}
	return m, env, in, err
}

func (s *Server) promote(c echo.Context) error {
	m, env, in, err := s.readChange(c, access.Promote, true)
	if err != nil {
		return err
	}
	what := lifecycle.Promotion{Version: in.tag, Reason: in.Reason}
	if in.Replaces != nil {
		var replaced registry.Tag
		if *in.Replaces != "" {
			if replaced, err = registry.ParseTag(*in.Replaces); err != nil {
				return registry.Invalid("replaces", "replaces is the version that is there, or empty for none: %v", err)
			}
		}
		what.Replaces = &replaced
	}
	if _, err := s.Lifecycle.Promote(c.Request().Context(), door.Request(c), m, env, what); err != nil {
		return err
	}
	return s.answerEnvironment(c)
}

// Freezing is the body of a freeze.
type Freezing struct {
	Frozen *bool  `json:"frozen,omitempty"` // by default true
	Reason string `json:"reason,omitempty"`
}

func (s *Server) freeze(c echo.Context) error {
	m, err := s.model(c, access.Freeze)
	if err != nil {
		return err
	}
	env, err := registry.ParseEnvironmentName(c.Param("env"))
	if err != nil {
		return err
	}
	var in Freezing
	if err := decode(c, maxBodyBytes, &in); err != nil {
		return err
	}
	if _, err := s.Lifecycle.Freeze(c.Request().Context(), door.Request(c), m, env, in.Frozen == nil || *in.Frozen, in.Reason); err != nil {
		return err
	}
	return s.answerEnvironment(c)
}

func (s *Server) rollBack(c echo.Context) error {
	m, env, in, err := s.readChange(c, access.Promote, false)
	if err != nil {
		return err
	}
	if _, err := s.Lifecycle.RollBack(c.Request().Context(), door.Request(c), m, env, in.tag, in.Reason); err != nil {
		return err
	}
	return s.answerEnvironment(c)
}

func (s *Server) answerEnvironment(c echo.Context) error {
	_, shown, err := s.environment(c, access.Read)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, shown)
}

func (s *Server) approve(c echo.Context) error {
	m, env, in, err := s.readChange(c, access.Approve, true)
	if err != nil {
		return err
	}
	approval, err := s.Lifecycle.Approve(c.Request().Context(), door.Request(c), m, env, in.tag, in.Reason)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, approval)
}

func (s *Server) listDeliveries(c echo.Context) error {
	if err := access.Authorize(door.Identity(c), access.ReadDeliveries, nil); err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	filter, err := s.deliveryFilter(c)
	if err != nil {
		return err
	}
	deliveries, next, err := s.Index.Deliveries(c.Request().Context(), door.Identity(c), filter, at)
	if err != nil {
		return err
	}
	return answerList(c, deliveries, next)
}

// deliveryFilter reads "model", "version" and "hook".
func (s *Server) deliveryFilter(c echo.Context) (registry.DeliveryFilter, error) {
	f := registry.DeliveryFilter{Hook: c.QueryParam("hook")}
	if text := c.QueryParam("model"); text != "" {
		name, err := registry.ParseModelName(text)
		if err != nil {
			return f, registry.Invalid("model", "%.100q is not NAMESPACE/NAME of a model", text)
		}
		m, err := s.Index.ModelByName(c.Request().Context(), name)
		if err != nil {
			return f, err
		}
		f.ModelID = m.ID
	}
	text := c.QueryParam("version")
	if text == "" {
		return f, nil
	}
	if f.ModelID == "" {
		return f, registry.Invalid("version", "a version needs its model")
	}
	tag, err := registry.ParseTag(text)
	f.Version = tag
	return f, err
}

func (s *Server) redeliver(c echo.Context) error {
	id := door.Identity(c)
	if err := access.Authorize(id, access.Redeliver, nil); err != nil {
		return err
	}
	ctx := c.Request().Context()
	if err := s.Sinks.Redeliver(ctx, id.Name, c.Param("sink"), c.Param("event")); err != nil {
		return err
	}
	delivery, err := s.Index.Delivery(ctx, c.Param("sink"), c.Param("event"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusAccepted, delivery)
}
