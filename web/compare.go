package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
)

// Comparer says how two commits differ; what takes it long is for a later call.
type Comparer interface {
	Compare(ctx context.Context, a, b registry.Side) (registry.Comparison, error)
}

// Revisions finds the commit that a revision names now.
type Revisions interface {
	Commit(ctx context.Context, m registry.Model, rev registry.Rev) (registry.ObjectID, error)
}

// compareView is the page of a comparison.
type compareView struct {
	Model registry.Model
	registry.Comparison
	Address string // of the same in the API
	Across  bool   // the two are of different models
}

func (p *Pages) compare(c echo.Context) error {
	m, err := p.read(c)
	if err != nil {
		return err
	}
	base := m
	address := url.URL{Path: "/api/v1/models/" + m.Name.String() + "/compare/"}
	if text := c.QueryParam("base"); text != "" {
		name, err := registry.ParseModelName(text)
		if err != nil {
			return registry.Invalid("base", "%v", err)
		}
		if base, err = p.readNamed(c, name); err != nil {
			return err
		}
		address.RawQuery = "base=" + url.QueryEscape(text)
	}
	text, err := onePart(c, "revs")
	if err != nil {
		return err
	}
	a, b, err := registry.ParseRevs(text)
	if err != nil {
		return err
	}
	address.RawPath = address.Path + url.PathEscape(text)
	address.Path += text
	ctx := c.Request().Context()
	left, right := registry.Side{Model: base}, registry.Side{Model: m}
	left.Rev, right.Rev, _ = strings.Cut(text, "...")
	if left.Commit, err = p.Revisions.Commit(ctx, base, a); err != nil {
		return err
	}
	if right.Commit, err = p.Revisions.Commit(ctx, m, b); err != nil {
		return err
	}
	d, err := p.Comparer.Compare(ctx, left, right)
	if err != nil {
		return err
	}
	view := compareView{Model: m, Comparison: d, Address: address.String(), Across: base.ID != m.ID}
	return p.show(c, http.StatusOK, "compare", m.Name.String()+": "+left.Rev+" and "+right.Rev, view)
}

// onePart is a parameter of the path, percent-decoded once; a slash in it is written as %2F.
func onePart(c echo.Context, name string) (string, error) {
	text := c.Param(name)
	if strings.Contains(text, "/") {
		return "", registry.Invalid(name, "a slash in a revision is written as %%2F")
	}
	if c.Request().URL.RawPath == "" {
		return text, nil // net/url decoded it already
	}
	value, err := url.PathUnescape(text)
	if err != nil {
		return "", registry.Invalid(name, "the revisions are not percent-encoded as they should be")
	}
	return value, nil
}

// plainValue is a JSON value as people read it: a text without its quotes, and nothing as "none".
func plainValue(v json.RawMessage) string {
	if len(v) == 0 {
		return "none"
	}
	var text string
	if v[0] == '"' && json.Unmarshal(v, &text) == nil {
		return clipValue(text)
	}
	return clipValue(string(v))
}

func clipValue(s string) string {
	const most = 400
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}

// signed is a difference with its sign.
func signed(f float64) string {
	if f > 0 {
		return "+" + number(f)
	}
	return strings.Replace(number(f), "-", "−", 1)
}

// percent is how much of a whole is done.
func percent(done, total int64) int64 {
	if total <= 0 {
		return 0
	}
	return min(100, 100*done/total)
}

// previous finds the version before one, by precedence; versions are sorted with the highest first.
func previous(versions []registry.VersionRecord, tag registry.Tag) registry.Tag {
	for _, v := range versions {
		if v.Version.Tag.Compare(tag) < 0 {
			return v.Version.Tag
		}
	}
	return registry.Tag{}
}
