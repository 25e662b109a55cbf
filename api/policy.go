package api

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/docs/schemas"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// PolicyTrial asks what a policy would mean.
type PolicyTrial struct {
	Policy  string `json:"policy"`            // the content of a herdbook.yaml
	Version string `json:"version,omitempty"` // only for this version; empty means those that it may concern
}

// PolicyOutcome is what a policy would mean.
type PolicyOutcome struct {
	Warnings []string                   `json:"warnings"`
	Items    []lifecycle.VersionOutcome `json:"items"`
}

func (s *Server) tryPolicy(c echo.Context) error {
	m, err := s.model(c, access.Write)
	if err != nil {
		return err
	}
	var in PolicyTrial
	if err := decode(c, maxBodyBytes, &in); err != nil {
		return err
	}
	var tag registry.Tag
	if in.Version != "" {
		if tag, err = registry.ParseTag(in.Version); err != nil {
			return err
		}
	}
	run, err := s.Lifecycle.TryPolicy(c.Request().Context(), door.Request(c), m, []byte(in.Policy), tag)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, PolicyOutcome{run.Warnings, run.Versions})
}

// published are the JSON Schemas that the server gives out, by name.
var published = map[string][]byte{"policy-v1.json": schemas.Policy, "explanation-v1.json": schemas.Explanation}

// getSchema needs no token: what it tells is not the server's secret but in its documentation.
func (s *Server) getSchema(c echo.Context) error {
	schema, ok := published[c.Param("schema")]
	if !ok {
		return registry.ErrNotFound
	}
	return c.Blob(http.StatusOK, "application/schema+json", schema)
}
