package web

import (
	"cmp"
	"errors"
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/search"
)

const (
	searchPath  = "/search"
	hitsPerPage = 50
)

// hitRow is what a query has found.
type hitRow struct {
	search.Hit
	Cells []*float64 // one for each column; nil where there is none
}

// searchView is the page that answers a query.
type searchView struct {
	Query    string
	Problem  string // why the query was not understood
	Versions bool   // are found, not models
	Sort     search.Sort
	Columns  []string // of metrics
	Rows     []hitRow
	Next     string
	First    bool
}

func (p *Pages) search(c echo.Context) error {
	id := p.Identity(c)
	if id.Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	view := searchView{Query: c.QueryParam("q"), First: c.QueryParam("cursor") == ""}
	q, err := search.Parse(view.Query)
	var wrong *registry.FieldError
	if errors.As(err, &wrong) {
		view.Problem = wrong.Detail
		return p.show(c, http.StatusBadRequest, "search", "Search", view)
	}
	hits, next, err := p.Index.Search(c.Request().Context(), id, q, registry.Page{Cursor: c.QueryParam("cursor"), Limit: hitsPerPage})
	if err != nil {
		return err
	}
	view.Next, view.Versions, view.Sort, view.Columns = next, q.Finds() == search.Versions, q.Order(), hitColumns(q, hits)
	for _, h := range hits {
		row := hitRow{Hit: h}
		for _, name := range view.Columns {
			var cell *float64
			if value, ok := h.Metrics[name]; ok {
				cell = &value
			}
			row.Cells = append(row.Cells, cell)
		}
		view.Rows = append(view.Rows, row)
	}
	return p.show(c, http.StatusOK, "search", cmp.Or(view.Query, "Search"), view)
}

// hitColumns are the metrics that are shown: those that the query names, then others that were found.
func hitColumns(q search.Query, hits []search.Hit) []string {
	var named, others []string
	if q.Sort.Field == search.ByMetric {
		named = append(named, q.Sort.Metric)
	}
	for _, t := range q.Terms {
		if t.Field == search.Metric && !t.Not && !slices.Contains(named, t.Text) {
			named = append(named, t.Text)
		}
	}
	seen := map[string]bool{}
	for _, h := range hits {
		for name := range h.Metrics {
			if !seen[name] && !slices.Contains(named, name) {
				others = append(others, name)
			}
			seen[name] = true
		}
	}
	slices.SortFunc(others, metricOrder)
	columns := append(named, others...)
	return columns[:min(len(columns), max(len(named), maxHeadline))]
}
