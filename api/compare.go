package api

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// compare answers how the second revision differs from the first.
func (s *Server) compare(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	base := m
	if text := c.QueryParam("base"); text != "" {
		name, err := registry.ParseModelName(text)
		if err != nil {
			return registry.Invalid("base", "%v", err)
		}
		if base, err = door.Authorized(c, s.Index, name, access.Read); err != nil {
			return err
		}
	}
	text, err := door.Param(c, "revs")
	if err != nil {
		return err
	}
	a, b, err := registry.ParseRevs(text)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	find := Resolver{s.Index, s.Commits}
	left, right := registry.Side{Model: base}, registry.Side{Model: m}
	left.Rev, right.Rev, _ = strings.Cut(text, "...")
	if left.Commit, err = find.Commit(ctx, base, a); err != nil {
		return err
	}
	if right.Commit, err = find.Commit(ctx, m, b); err != nil {
		return err
	}
	comparison, err := s.Lifecycle.Compare(ctx, left, right)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, comparison)
}
