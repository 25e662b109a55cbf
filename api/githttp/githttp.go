// Package githttp serves repositories by Git's smart HTTP protocol, at /NAMESPACE/NAME.git and
// without the ".git".
//
// The git program does the talking; this package finds out who calls, which model is meant and
// what the caller may do, and passes the bytes on. A push to a name that has no model yet makes
// the model. The old "dumb" protocol is refused.
// Source: gitprotocol-http(5).
package githttp

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/registry/problem"
)

// The services of the protocol.
const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

// Transport speaks Git's protocol on a repository.
type Transport interface {
	// AdvertiseRefs writes what a client is shown first; a model that is not there yet looks
	// like an empty repository.
	AdvertiseRefs(ctx context.Context, name registry.ModelName, exists bool, service, protocol string, w io.Writer) error
	UploadPack(ctx context.Context, name registry.ModelName, protocol string, in io.Reader, out io.Writer) error
	ReceivePack(ctx context.Context, r Receive) error
}

// Receive is a push on its way in.
type Receive struct {
	Model    registry.ModelName
	Protocol string
	PushID   string
	In       io.Reader
	Out      io.Writer
	Check    func(ctx context.Context, p lifecycle.Push) error
	// Finish is called when the refs have moved; its lines are shown to the user before the
	// push is reported as done, and its error replaces the report.
	Finish func(ctx context.Context, updates []registry.RefUpdate) (lines []string, err error)
}

// Models finds models by name.
type Models interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
}

// Config is what a Handler works with.
type Config struct {
	Models    Models
	Lifecycle *lifecycle.Service
	Transport Transport
	// Lines tells the user what came of a push.
	Lines func(m registry.Model, r lifecycle.Report) []string
	// Pushed counts a push by what came of it: "accepted", "refused" or "failed".
	Pushed func(outcome string)
	Log    *slog.Logger

	// Patience is how long a client may take for a part of an answer; by default [door.Patience].
	Patience time.Duration
}

// Handler is the door.
type Handler struct{ Config }

// New assembles a Handler.
func New(c Config) *Handler {
	c.Patience = cmp.Or(c.Patience, door.Patience)
	return &Handler{c}
}

// routes are the addresses of the protocol.
var routes = []string{"/:ns/:name/info/refs", "/:ns/:name/git-upload-pack", "/:ns/:name/git-receive-pack"}

// Register adds the routes.
func (h *Handler) Register(e *echo.Echo) {
	e.GET(routes[0], h.door(h.infoRefs))
	e.POST(routes[1], h.door(h.upload))
	e.POST(routes[2], h.door(h.receive))
}

// door answers errors as Git shows them: a line of text.
func (h *Handler) door(handler echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		// A fetch that nobody reads would keep its place from others.
		defer door.Patient(c, h.Patience)()
		err := handler(c)
		if err == nil || c.Response().Committed || problem.Of(err) == problem.Internal {
			return err
		}
		return answer(c, err)
	}
}

// Fail implements api.Failer.
func (h *Handler) Fail(c echo.Context, err error) bool {
	return slices.Contains(routes, c.Path()) && answer(c, err) == nil
}

func answer(c echo.Context, err error) error {
	class := problem.Of(err)
	if class == problem.NotFound && !door.Identity(c).Authenticated() {
		// A private model has to be asked for with a token, and one that is not there looks
		// the same.
		class, err = problem.Unauthenticated, registry.ErrUnauthenticated
	}
	if class == problem.Unauthenticated {
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Basic realm="herdbook", charset="UTF-8"`)
	}
	return c.String(class.Status(), "herdbook: "+problem.Detail(err)+"\n")
}

// protocolForm is what a client may put into GIT_PROTOCOL.
var protocolForm = regexp.MustCompile(`^version=[0-2]$`)

func protocol(r *http.Request) string {
	if p := r.Header.Get("Git-Protocol"); protocolForm.MatchString(p) {
		return p
	}
	return ""
}

func (h *Handler) infoRefs(c echo.Context) error {
	service := c.QueryParam("service")
	name, err := door.ModelName(c)
	if err != nil {
		return err
	}
	exists := true
	switch service {
	case uploadPack:
		_, err = door.Authorized(c, h.Models, name, access.Read)
	case receivePack:
		exists, err = h.mayPush(c, name)
	case "":
		return fmt.Errorf("this server speaks Git's smart HTTP protocol only: %w", registry.ErrForbidden)
	default:
		return registry.Invalid("service", "there is no service %q", service)
	}
	if err != nil {
		return err
	}
	noCache(c, "application/x-"+service+"-advertisement")
	return h.Transport.AdvertiseRefs(c.Request().Context(), name, exists, service, protocol(c.Request()), c.Response())
}

// mayPush reports whether the model is there; it need not be for a caller that may make it.
func (h *Handler) mayPush(c echo.Context, name registry.ModelName) (exists bool, err error) {
	_, err = door.Authorized(c, h.Models, name, access.Write)
	if errors.Is(err, registry.ErrNotFound) {
		return false, access.Authorize(door.Identity(c), access.Create, nil)
	}
	return true, err
}

func noCache(c echo.Context, contentType string) {
	header := c.Response().Header()
	header.Set(echo.HeaderContentType, contentType)
	header.Set(echo.HeaderCacheControl, "no-cache, max-age=0, must-revalidate")
}

// maxWantBytes bounds what a client says it wants and has, unpacked.
const maxWantBytes = 64 << 20

func (h *Handler) upload(c echo.Context) error {
	m, err := door.Model(c, h.Models, access.Read)
	if err != nil {
		return err
	}
	in, err := body(c, uploadPack)
	if err != nil {
		return err
	}
	noCache(c, "application/x-git-upload-pack-result")
	defer drain(c)
	return h.Transport.UploadPack(c.Request().Context(), m.Name, protocol(c.Request()), io.LimitReader(in, maxWantBytes), fetched{door.Writer{Response: stream(c)}})
}

// fetched is the answer to a fetch. One that is kept as a file is sent by the kernel, and its length is known.
type fetched struct{ door.Writer }

// ExpectBytes says the length of the whole answer before it begins.
func (f fetched) ExpectBytes(n int64) {
	f.Header().Set(echo.HeaderContentLength, strconv.FormatInt(n, 10))
}

func (h *Handler) receive(c echo.Context) error {
	name, err := door.ModelName(c)
	if err != nil {
		return err
	}
	by := door.Request(c)
	m, err := h.Lifecycle.PushTarget(c.Request().Context(), by, name)
	if err != nil {
		return err
	}
	in, err := body(c, receivePack)
	if err != nil {
		return err
	}
	noCache(c, "application/x-git-receive-pack-result")
	outcome, id := "failed", lifecycle.NewPushID()
	defer func() { h.Pushed(outcome) }()
	defer drain(c)
	defer func() {
		if m.ID == "" {
			return
		}
		if err := h.Lifecycle.EndPush(context.WithoutCancel(c.Request().Context()), m, id); err != nil {
			h.Log.ErrorContext(c.Request().Context(), "end of a push", "model", name, "push", id, "error", err.Error())
		}
	}()
	return h.Transport.ReceivePack(c.Request().Context(), Receive{
		Model: name, Protocol: protocol(c.Request()), PushID: id, In: in, Out: stream(c),
		Check: func(ctx context.Context, p lifecycle.Push) error {
			var err error
			if m.ID == "" {
				m, err = h.Lifecycle.CheckFirstPush(ctx, by, name, p)
			} else {
				err = h.Lifecycle.CheckPush(ctx, by, m, p)
			}
			var refused *lifecycle.RefusedError
			if errors.As(err, &refused) {
				outcome = "refused"
			}
			return err
		},
		Finish: func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
			report, err := h.Lifecycle.FinishPush(ctx, m, id, updates)
			if err != nil {
				return nil, err
			}
			if len(updates) > 0 {
				outcome = "accepted"
			}
			return h.Lines(m, report), nil
		},
	})
}

// body is the request's body, unpacked when the client packed it.
func body(c echo.Context, service string) (io.Reader, error) {
	r := c.Request()
	if want := "application/x-" + service + "-request"; r.Header.Get(echo.HeaderContentType) != want {
		return nil, &echo.HTTPError{Code: http.StatusUnsupportedMediaType, Message: "the body must be " + want}
	}
	switch strings.ToLower(r.Header.Get(echo.HeaderContentEncoding)) {
	case "", "identity":
		return r.Body, nil
	case "gzip", "x-gzip":
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, registry.Invalid("", "the body is not gzip")
		}
		return unpacked, nil
	}
	return nil, &echo.HTTPError{Code: http.StatusUnsupportedMediaType, Message: "the body may be plain or gzip"}
}

// stream lets the body be read while the answer is written: that is how progress reaches the
// user's terminal during a push.
func stream(c echo.Context) *echo.Response {
	_ = http.NewResponseController(c.Response()).EnableFullDuplex() // HTTP/2 always is
	return c.Response()
}

// maxDrain is how much of a body is read that nobody wants any more.
const maxDrain = 64 << 20

// drain reads the rest of the body. Where a body is read while the answer is written, net/http
// panics if it comes to the body's end only after the handler has returned.
func drain(c echo.Context) {
	if _, err := io.CopyN(io.Discard, c.Request().Body, maxDrain); err == nil {
		panic(http.ErrAbortHandler) // there is still more: the connection is worth nothing
	}
}
