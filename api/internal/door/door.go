// Package door holds what every protocol of the server needs of an HTTP request: who sent it,
// which model it names, and a response that keeps sendfile.
package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

const identityKey = "identity"

// SetIdentity remembers who sent the request.
func SetIdentity(c echo.Context, id access.Identity) { c.Set(identityKey, id) }

// Identity is who sent the request; nobody, when nothing was found out.
func Identity(c echo.Context) access.Identity {
	id, _ := c.Get(identityKey).(access.Identity)
	return id
}

// Request is the caller and the request as a step of the lifecycle wants to know them.
func Request(c echo.Context) lifecycle.Request {
	return lifecycle.Request{
		Identity: Identity(c),
		ID:       c.Response().Header().Get(echo.HeaderXRequestID),
		Key:      c.Request().Header.Get("Idempotency-Key"),
	}
}

// Models finds a model by its name.
type Models interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
}

// Model is the model that the request's path names, when the caller may do action to it. The
// answer is the same whether there is no such model or the caller may not know of it.
func Model(c echo.Context, models Models, action access.Action) (registry.Model, error) {
	name, err := ModelName(c)
	if err != nil {
		return registry.Model{}, err
	}
	return Authorized(c, models, name, action)
}

// Authorized is the model of that name, when the caller may do action to it.
func Authorized(c echo.Context, models Models, name registry.ModelName, action access.Action) (registry.Model, error) {
	m, err := models.ModelByName(c.Request().Context(), name)
	known := &m
	if errors.Is(err, registry.ErrNotFound) {
		known = nil
	} else if err != nil {
		return m, err
	}
	if err := access.Authorize(Identity(c), action, known); err != nil {
		return m, fmt.Errorf("model %s: %w", name, err)
	}
	return m, nil
}

// ModelName reads the parameters "ns" and "name" of the path; ".git" behind the name is left
// out.
func ModelName(c echo.Context) (registry.ModelName, error) {
	return registry.ParseModelName(c.Param("ns") + "/" + strings.TrimSuffix(c.Param("name"), ".git"))
}

// Param is a parameter of the path, percent-decoded once. Only a parameter that may hold a
// slash is read with it; all others are parsed as they are, and no grammar has a '%' in it.
func Param(c echo.Context, name string) (string, error) {
	if c.Request().URL.RawPath == "" {
		return c.Param(name), nil // net/url decoded it already, and nothing was lost by that
	}
	value, err := url.PathUnescape(c.Param(name))
	if err != nil {
		return "", registry.Invalid(name, "%s is not percent-encoded as it should be", name)
	}
	return value, nil
}

// Writer is a response for big bodies: it hands an *os.File through to the connection, so that
// the kernel sends it, which echo's own response does not.
type Writer struct{ *echo.Response }

// ReadFrom implements io.ReaderFrom.
func (w Writer) ReadFrom(r io.Reader) (int64, error) {
	if !w.Committed {
		w.WriteHeader(http.StatusOK)
	}
	n, err := io.Copy(w.Response.Writer, r)
	w.Size += n
	return n, err
}

var _ io.ReaderFrom = Writer{}
