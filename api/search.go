package api

import (
	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/search"
)

// Found is a model or a version that a query finds.
type Found struct {
	search.Hit
	URL string `json:"url"`
}

func (s *Server) search(c echo.Context) error {
	if err := s.mayList(c); err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	q, err := search.Parse(c.QueryParam("q"))
	if err != nil {
		return err
	}
	if text := c.QueryParam("sort"); text != "" {
		if q.Sort.Field != "" {
			return registry.Invalid("sort", "the query says already how to sort: leave out sort:%s there, or this", q.Sort)
		}
		if q.Sort, err = search.ParseSort(text); err != nil {
			return err
		}
	}
	hits, next, err := s.Index.Search(c.Request().Context(), door.Identity(c), q, at)
	if err != nil {
		return err
	}
	items := make([]Found, len(hits))
	for i, h := range hits {
		parts := []string{h.Model.String()}
		if h.Kind == search.Versions {
			parts = append(parts, "versions", h.Tag.String())
		}
		items[i] = Found{h, s.page(parts...)}
	}
	return answerList(c, items, next)
}
