package api

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// maxBodyBytes bounds the body of a request to the JSON API that says nothing else.
const maxBodyBytes = 1 << 20

// Model is a model as the API shows it.
type Model struct {
	Name          registry.ModelName  `json:"name"`
	Visibility    registry.Visibility `json:"visibility"`
	Description   string              `json:"description"`
	DefaultBranch string              `json:"default_branch,omitempty"`
	Protected     registry.Protection `json:"protected,omitzero"`
	CreatedAt     time.Time           `json:"created_at"`
	CreatedBy     string              `json:"created_by"`
	UpdatedAt     time.Time           `json:"updated_at"`
	CloneURL      string              `json:"clone_url"`
	URL           string              `json:"url"`
	LatestVersion registry.Tag        `json:"latest_version,omitzero"`
	Policy        *Policy             `json:"policy,omitempty"`
}

// Policy says which herdbook.yaml is in force, or why none is.
type Policy struct {
	Commit  registry.ObjectID `json:"commit"`
	Problem string            `json:"problem,omitempty"`
}

func (s *Server) showModel(m registry.Model) Model {
	return Model{
		Name: m.Name, Visibility: m.Visibility, Description: m.Description, DefaultBranch: m.DefaultBranch, Protected: m.Protected,
		CreatedAt: m.CreatedAt, CreatedBy: m.CreatedBy, UpdatedAt: m.UpdatedAt,
		CloneURL: s.page(m.Name.String() + ".git"), URL: s.page(m.Name.String()),
	}
}

func (s *Server) listModels(c echo.Context) error {
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	if err := s.mayList(c); err != nil {
		return err
	}
	models, next, err := s.Index.Models(c.Request().Context(), door.Identity(c), at)
	if err != nil {
		return err
	}
	items := make([]Model, len(models))
	for i, m := range models {
		items[i] = s.showModel(m)
	}
	return answerList(c, items, next)
}

// mayList refuses callers that may read nothing at all; what a list holds is filtered.
func (s *Server) mayList(c echo.Context) error {
	if door.Identity(c).Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	return nil
}

type newModel struct {
	Name        string `json:"name"`
	Visibility  string `json:"visibility"`
	Description string `json:"description"`
}

func (s *Server) createModel(c echo.Context) error {
	if err := access.Authorize(door.Identity(c), access.Create, nil); err != nil {
		return err
	}
	var in newModel
	if err := decode(c, maxBodyBytes, &in); err != nil {
		return err
	}
	name, err := registry.ParseModelName(in.Name)
	if err != nil {
		return err
	}
	visibility, err := registry.ParseVisibility(in.Visibility, s.Lifecycle.Visibility)
	if err != nil {
		return err
	}
	m, err := s.Lifecycle.CreateModel(c.Request().Context(), door.Request(c), name, visibility, in.Description)
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderLocation, "/api/v1/models/"+m.Name.String())
	return c.JSON(http.StatusCreated, s.showModel(m))
}

func (s *Server) getModel(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return err
	}
	policy, err := s.Index.Policy(ctx, m.ID)
	if err != nil {
		return err
	}
	shown := s.showModel(m)
	if latest, ok := registry.Latest(versions); ok {
		shown.LatestVersion = latest.Version.Tag
	}
	if policy.Commit != "" {
		shown.Policy = &Policy{Commit: policy.Commit, Problem: policy.Problem}
	}
	return c.JSON(http.StatusOK, shown)
}

type modelPatch struct {
	Description *string `json:"description"`
	Visibility  *string `json:"visibility"`

	// What is not given is empty.
	Protected *registry.Protection `json:"protected"`
}

func (s *Server) changeModel(c echo.Context) error {
	m, err := s.model(c, access.Describe)
	if err != nil {
		return err
	}
	var in modelPatch
	if err := decode(c, maxBodyBytes, &in); err != nil {
		return err
	}
	change := lifecycle.ModelChange{Description: in.Description, Protected: in.Protected}
	if in.Visibility != nil {
		v, err := registry.ParseVisibility(*in.Visibility, "")
		if err != nil {
			return err
		}
		if v == "" {
			return registry.Invalid("visibility", "a visibility is public, internal or private")
		}
		change.Visibility = &v
	}
	m, err = s.Lifecycle.ChangeModel(c.Request().Context(), door.Request(c), m, change)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.showModel(m))
}

func (s *Server) deleteModel(c echo.Context) error {
	m, err := s.model(c, access.Delete)
	if err != nil {
		return err
	}
	if err := s.Lifecycle.DeleteModel(c.Request().Context(), door.Request(c), m); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) whoami(c echo.Context) error {
	id := door.Identity(c)
	return c.JSON(http.StatusOK, struct {
		Name    string `json:"name"`
		Role    string `json:"role"`
		TokenID string `json:"token_id,omitempty"`
		Server  string `json:"server_version"`
	}{id.Name, id.Role.String(), id.TokenID, s.Version})
}
