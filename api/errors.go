package api

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/problem"
)

// problemType is the media type of errors. Source: RFC 9457, section 3.
const problemType = "application/problem+json"

// Problem is an error as a client reads it.
type Problem struct {
	Type    string            `json:"type"` // "about:blank": the title says it all
	Title   string            `json:"title"`
	Status  int               `json:"status"`
	Detail  string            `json:"detail"`
	Field   string            `json:"field,omitempty"`
	Verdict *registry.Verdict `json:"verdict,omitempty"` // of a closed gate
}

// newProblem classes an error.
func newProblem(err error) Problem {
	class := problem.Of(err)
	p := Problem{Type: "about:blank", Title: class.Title(), Status: class.Status(), Detail: problem.Detail(err)}
	var fromEcho *echo.HTTPError
	if errors.As(err, &fromEcho) {
		p.Status, p.Title, p.Detail = fromEcho.Code, http.StatusText(fromEcho.Code), http.StatusText(fromEcho.Code)
		if text, ok := fromEcho.Message.(string); ok {
			p.Detail = text
		}
	}
	var field *registry.FieldError
	if errors.As(err, &field) {
		p.Field = field.Field
	}
	var closed *registry.GateClosedError
	if errors.As(err, &closed) {
		p.Verdict = &closed.Verdict
	}
	return p
}

// fail answers with an error, once. It is echo's error handler.
func (s *Server) fail(err error, c echo.Context) {
	p := newProblem(err)
	if p.Status >= http.StatusInternalServerError {
		level := slog.LevelError
		if c.Request().Context().Err() != nil { // the client is gone
			level = slog.LevelInfo
		}
		s.Log.Log(c.Request().Context(), level, "request failed", "method", c.Request().Method, "path", c.Request().URL.Path,
			"request", c.Response().Header().Get(echo.HeaderXRequestID), "error", err.Error())
	}
	if c.Response().Committed {
		return // the client sees a body that ends too early
	}
	if p.Status < http.StatusInternalServerError && !errors.As(err, new(*echo.HTTPError)) {
		for _, d := range s.Doors {
			if f, ok := d.(Failer); ok && f.Fail(c, err) {
				return
			}
		}
	}
	if p.Status == http.StatusUnauthorized {
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, challenge)
	}
	if s.Pages != nil && wantsPage(c.Request()) {
		if s.Pages.Error(c, p.Status, p.Title, p.Detail) == nil {
			return
		}
	}
	body, _ := json.Marshal(p) // plain data: always encodes
	_ = c.Blob(p.Status, problemType, append(body, '\n'))
}

// challenge asks for a token. Source: RFC 7617, section 2.
const challenge = `Basic realm="herdbook", charset="UTF-8"`
