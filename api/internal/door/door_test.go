package door_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// serve calls handler with a request through a router, as the server does.
func serve(route, target string, handler echo.HandlerFunc) *httptest.ResponseRecorder {
	e := echo.New()
	e.GET(route, handler)
	w := httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	return w
}

func TestParam(t *testing.T) {
	tests := []struct{ target, want string }{
		{"/r/main", "main"},
		{"/r/a%2Fb", "a/b"},
		{"/r/a%252Fb", "a%2Fb"}, // once
		{"/r/env:staging", "env:staging"},
		{"/r/env%3Astaging", "env:staging"},
		{"/r/%2e%2e%2fx", "../x"}, // the grammar of what it names refuses that
		{"/r/a+b", "a+b"},
		{"/r/a/b", "error"},
		{"/r/a%2Fb/c", "error"},
	}
	for _, test := range tests {
		got := "not called"
		serve("/r/:rev", test.target, func(c echo.Context) error {
			var err error
			if got, err = door.Param(c, "rev"); err != nil {
				got = "error"
			}
			return nil
		})
		if got != test.want {
			t.Errorf("Param of %s = %q, want %q", test.target, got, test.want)
		}
	}
}

type models map[string]registry.Model

func (m models) ModelByName(_ context.Context, name registry.ModelName) (registry.Model, error) {
	if found, ok := m[name.String()]; ok {
		return found, nil
	}
	return registry.Model{}, registry.ErrNotFound
}

func TestModel(t *testing.T) {
	known := models{"acme/open": {ID: "1", Visibility: registry.Public}, "acme/hidden": {ID: "2", Visibility: registry.Private}}
	admin, reader, nobody := access.Identity{Name: "ada", Role: access.Admin}, access.Anonymous(true), access.Anonymous(false)
	tests := []struct {
		target string
		id     access.Identity
		action access.Action
		want   string // the id
		err    error
	}{
		{"/acme/open", reader, access.Read, "1", nil},
		{"/acme/open.git", reader, access.Read, "1", nil},
		{"/acme/open", reader, access.Write, "", registry.ErrUnauthenticated},
		{"/acme/open", nobody, access.Read, "", registry.ErrUnauthenticated},
		{"/acme/hidden", reader, access.Read, "", registry.ErrNotFound},
		{"/acme/absent", reader, access.Read, "", registry.ErrNotFound},
		{"/acme/hidden", admin, access.Write, "2", nil},
		{"/acme/absent", admin, access.Read, "", registry.ErrNotFound},
		{"/acme/open.git.git", admin, access.Read, "", registry.ErrInvalid},
		{"/acme/UP", nobody, access.Read, "", registry.ErrInvalid},
	}
	for _, test := range tests {
		serve("/:ns/:name", test.target, func(c echo.Context) error {
			door.SetIdentity(c, test.id)
			m, err := door.Model(c, known, test.action)
			if !errors.Is(err, test.err) || (err == nil && m.ID != test.want) {
				t.Errorf("Model(%s) for %s as %s = %q, %v; want %q, %v", test.target, test.action, test.id.Name, m.ID, err, test.want, test.err)
			}
			return nil
		})
	}
	serve("/:ns/:name", "/acme/open", func(c echo.Context) error {
		if id := door.Identity(c); id.Role != access.Nobody {
			t.Errorf("Identity before anybody was identified = %+v, want nobody", id)
		}
		return nil
	})
}

func TestPublicURL(t *testing.T) {
	for configured, want := range map[string]string{
		"https://models.example.org": "https://models.example.org",
		"http://127.0.0.1:8080":      "http://127.0.0.1:8080",
		"http://[::]:8080":           "http://example.com", // as httptest calls it
		"http://0.0.0.0:8080":        "http://example.com",
	} {
		public, err := url.Parse(configured)
		if err != nil {
			t.Fatal(err)
		}
		serve("/", "/", func(c echo.Context) error {
			if got := door.PublicURL(c, public).String(); got != want || public.String() != configured {
				t.Errorf("PublicURL of %s = %s, want %s, and the configured one as it was: %s", configured, got, want, public)
			}
			return nil
		})
	}
}

func TestWriter(t *testing.T) {
	w := serve("/", "/", func(c echo.Context) error {
		out := door.Writer{Response: c.Response()}
		n, err := io.Copy(out, strings.NewReader("hello "))
		if n != 6 || err != nil {
			t.Errorf("Copy = %d, %v, want 6", n, err)
		}
		if _, err := io.CopyN(out, strings.NewReader("world and more"), 5); err != nil {
			t.Error(err)
		}
		if got := c.Response().Size; got != 11 || !c.Response().Committed || c.Response().Status != 200 {
			t.Errorf("the response has %d bytes and status %d, want 11 and 200 for the log", got, c.Response().Status)
		}
		return nil
	})
	if w.Body.String() != "hello world" {
		t.Errorf("body = %q, want hello world", w.Body)
	}
}
