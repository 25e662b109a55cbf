// Package door holds what every protocol of the server needs of an HTTP request: who sent it,
// which model it names, and a response that keeps sendfile.
package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
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
	if strings.Contains(c.Param(name), "/") { // echo lets the last parameter of a path run on to its end
		return "", registry.Invalid(name, "%s is one part of the path: a slash in it is written as %%2F", name)
	}
	if c.Request().URL.RawPath == "" {
		return c.Param(name), nil // net/url decoded it already, and nothing was lost by that
	}
	value, err := url.PathUnescape(c.Param(name))
	if err != nil {
		return "", registry.Invalid(name, "%s is not percent-encoded as it should be", name)
	}
	return value, nil
}

// PublicURL is where the client of a request reaches the server: where the operator says, or, when
// that is only that the server listens on all addresses, where the client called it.
func PublicURL(c echo.Context, configured *url.URL) *url.URL {
	u := *configured
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsUnspecified() && c.Request().Host != "" {
		u.Host = c.Request().Host
	}
	return &u
}

// Writer is a response for big bodies: it hands an *os.File through to the connection, so that
// the kernel sends it, which echo's own response does not.
type Writer struct{ *echo.Response }

// ranger is content that is composed while it is sent, and that knows how to hand the files it is
// composed of to the connection; see [github.com/herdbook/herdbook/registry/modelpack.Layer].
type ranger interface {
	io.Seeker
	WriteRange(w io.Writer, offset, length int64) error
}

// ReadFrom implements io.ReaderFrom.
func (w Writer) ReadFrom(r io.Reader) (int64, error) {
	if !w.Committed {
		w.WriteHeader(http.StatusOK)
	}
	// This is how http.ServeContent asks for a part of something.
	if part, ok := r.(*io.LimitedReader); ok {
		if content, ok := part.R.(ranger); ok {
			return w.sendRange(content, part)
		}
	}
	n, err := io.Copy(w.Response.Writer, r)
	w.Size += n
	return n, err
}

// sendRange sends content from where it stands on.
func (w Writer) sendRange(content ranger, part *io.LimitedReader) (int64, error) {
	start, err := content.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	err = content.WriteRange(w.Response.Writer, start, part.N)
	end, seekErr := content.Seek(0, io.SeekCurrent)
	n := end - start
	part.N -= n
	w.Size += n
	return n, errors.Join(err, seekErr)
}

var _ io.ReaderFrom = Writer{}
