// Package lfs serves Git LFS: the batch API and the "basic" transfer, at /NAMESPACE/NAME.git/info/lfs.
//
// An object goes straight into the store under its SHA-256, where the OCI registry serves the
// same bytes as a layer. It can be reached only through a model that was shown its content: to
// know an oid is not enough. Clients send the transfers themselves without credentials, so
// that their addresses are signed, for one method, model, object and some minutes.
// Source: docs/api/batch.md and docs/api/basic-transfers.md of Git LFS 3.8.
package lfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/registry/problem"
)

// mediaType of requests and answers. Source: docs/api/batch.md, "Requests".
const mediaType = "application/vnd.git-lfs+json"

// Index tells who owns what.
type Index interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
	BlobSize(ctx context.Context, modelID, digest string) (int64, error)
}

// Blobs is the store of the objects.
type Blobs interface {
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
	// Has reports whether the content is there.
	Has(ctx context.Context, d digest.Digest) (bool, error)
	// Put stores what r yields when it has that digest and size; otherwise the error is
	// registry.ErrInvalid and nothing is stored.
	Put(ctx context.Context, r io.Reader, d digest.Digest, sizeBytes int64) error
}

// Config is what a Handler works with.
type Config struct {
	Index     Index
	Blobs     Blobs
	Lifecycle *lifecycle.Service
	Signer    *Signer
	PublicURL *url.URL
	Log       *slog.Logger
}

// Handler is the door.
type Handler struct{ Config }

// New assembles a Handler.
func New(c Config) *Handler { return &Handler{c} }

// base is what all routes begin with.
const base = "/:ns/:name/info/lfs"

// Register adds the routes.
func (h *Handler) Register(e *echo.Echo) {
	e.POST(base+"/objects/batch", h.door(h.batch))
	e.GET(base+"/objects/:oid", h.door(h.download))
	e.HEAD(base+"/objects/:oid", h.door(h.download))
	e.PUT(base+"/objects/:oid", h.door(h.upload))
	e.POST(base+"/objects/:oid/verify", h.door(h.verify))
	e.Any(base+"/locks*", h.door(h.noLocks))
}

// message is an error as LFS clients show it. Source: docs/api/batch.md, "Response Errors".
type message struct {
	Message   string `json:"message"`
	RequestID string `json:"request_id,omitempty"`
}

func (h *Handler) door(handler echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		err := handler(c)
		if err == nil || c.Response().Committed {
			return err
		}
		return h.fail(c, err)
	}
}

// Fail implements api.Failer.
func (h *Handler) Fail(c echo.Context, err error) bool {
	return strings.HasPrefix(c.Path(), base) && h.fail(c, err) == nil
}

func (h *Handler) fail(c echo.Context, err error) error {
	class := problem.Of(err)
	if class == problem.NotFound && !door.Identity(c).Authenticated() && !signed(c) {
		class, err = problem.Unauthenticated, registry.ErrUnauthenticated
	}
	status := class.Status()
	var unprocessable unprocessableError
	switch {
	case class == problem.Internal:
		h.Log.ErrorContext(c.Request().Context(), "LFS request failed", "path", c.Request().URL.Path, "error", err.Error())
	case class == problem.Unauthenticated:
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Basic realm="herdbook", charset="UTF-8"`)
		c.Response().Header().Set("LFS-Authenticate", `Basic realm="herdbook"`)
	case errors.As(err, &unprocessable):
		status = http.StatusUnprocessableEntity
	}
	return answer(c, status, message{problem.Detail(err), c.Response().Header().Get(echo.HeaderXRequestID)})
}

// unprocessableError is a 422, which LFS has for wrong content and wrong objects.
type unprocessableError struct{ error }

func (e unprocessableError) Unwrap() error { return e.error }

func answer(c echo.Context, status int, v any) error {
	c.Response().Header().Set(echo.HeaderContentType, mediaType)
	c.Response().WriteHeader(status)
	return c.Echo().JSONSerializer.Serialize(c, v, "")
}

func (h *Handler) noLocks(c echo.Context) error {
	return answer(c, http.StatusNotImplemented, message{Message: "this server does not keep LFS locks"})
}

// object names an object that a client asks for. Source: docs/api/batch.md.
type object struct {
	OID  string `json:"oid"`
	Size int64  `json:"size"`
}

type batchRequest struct {
	Operation string   `json:"operation"`
	Transfers []string `json:"transfers"`
	Objects   []object `json:"objects"`
	HashAlgo  string   `json:"hash_algo"`
}

type batchAnswer struct {
	Transfer string         `json:"transfer"`
	Objects  []objectAnswer `json:"objects"`
	HashAlgo string         `json:"hash_algo"`
}

type objectAnswer struct {
	object
	Authenticated bool              `json:"authenticated,omitempty"`
	Actions       map[string]action `json:"actions,omitempty"`
	Error         *objectError      `json:"error,omitempty"`
}

type action struct {
	Href      string `json:"href"`
	ExpiresIn int    `json:"expires_in"` // seconds
}

type objectError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Limits of one batch request.
const (
	maxBatchBytes   = 8 << 20
	maxBatchObjects = 10_000
)

func (h *Handler) batch(c echo.Context) error {
	var in batchRequest
	c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, maxBatchBytes)
	if err := c.Echo().JSONSerializer.Deserialize(c, &in); err != nil {
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			return fmt.Errorf("a batch is at most %d bytes long: %w", maxBatchBytes, registry.ErrTooLarge)
		}
		return unprocessableError{registry.Invalid("", "the body is not a batch request in JSON")}
	}
	m, err := h.batchModel(c, in.Operation)
	if err != nil {
		return err
	}
	switch in.HashAlgo {
	case "", "sha256", "sha_256": // the latter is how @huggingface/hub spells it
	default:
		return answer(c, http.StatusConflict, message{Message: fmt.Sprintf("the hash algorithm is sha256, not %q", in.HashAlgo)})
	}
	if len(in.Transfers) > 0 && !slices.Contains(in.Transfers, "basic") {
		return unprocessableError{registry.Invalid("transfers", "this server has the transfer basic only")}
	}
	if len(in.Objects) > maxBatchObjects {
		return fmt.Errorf("a batch names at most %d objects: %w", maxBatchObjects, registry.ErrTooLarge)
	}
	out := batchAnswer{Transfer: "basic", HashAlgo: "sha256", Objects: []objectAnswer{}}
	for _, o := range in.Objects {
		a, err := h.object(c, m, in.Operation, o)
		if err != nil {
			return err
		}
		out.Objects = append(out.Objects, a)
	}
	return answer(c, http.StatusOK, out)
}

// batchModel is the model that the batch is about. The first upload to a name makes the model,
// because a first push uploads its objects before anything else.
func (h *Handler) batchModel(c echo.Context, operation string) (registry.Model, error) {
	switch operation {
	case "download":
		return door.Model(c, h.Index, access.Read)
	case "upload":
		name, err := door.ModelName(c)
		if err != nil {
			return registry.Model{}, err
		}
		return h.Lifecycle.EnsureModel(c.Request().Context(), door.Request(c), name)
	}
	return registry.Model{}, unprocessableError{registry.Invalid("operation", "an operation is download or upload, not %q", operation)}
}

func (h *Handler) object(c echo.Context, m registry.Model, operation string, o object) (objectAnswer, error) {
	a := objectAnswer{object: o}
	d := digest.NewDigestFromEncoded(digest.SHA256, o.OID)
	if d.Validate() != nil || o.Size < 0 {
		a.Error = &objectError{http.StatusUnprocessableEntity, "an object has an oid of 64 lower-case hex digits and a size of 0 or more"}
		return a, nil
	}
	size, err := h.Index.BlobSize(c.Request().Context(), m.ID, d.String())
	owned := err == nil
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return a, err
	}
	if operation == "upload" && owned {
		// The model of a mirror clone owns objects that nobody has sent yet; and what was lost is
		// mended by sending it again.
		if owned, err = h.Blobs.Has(c.Request().Context(), d); err != nil {
			return a, err
		}
	}
	switch {
	case owned && size != o.Size:
		a.Error = &objectError{http.StatusUnprocessableEntity, fmt.Sprintf("the object has %d bytes, not %d", size, o.Size)}
	case operation == "upload" && owned:
		// Nothing to send: an answer without actions says so.
	case operation == "upload":
		a.Authenticated = true
		a.Actions = map[string]action{"upload": h.href(c, m, http.MethodPut, o, ""), "verify": h.href(c, m, http.MethodPost, o, "/verify")}
	case !owned:
		a.Error = &objectError{http.StatusNotFound, "the object is not on the server"}
	default:
		a.Authenticated = true
		a.Actions = map[string]action{"download": h.href(c, m, http.MethodGet, o, "")}
	}
	return a, nil
}

// href is a signed address of an object.
func (h *Handler) href(c echo.Context, m registry.Model, method string, o object, suffix string) action {
	u := door.PublicURL(c, h.PublicURL).JoinPath(m.Name.String()+".git", "info/lfs/objects", o.OID+suffix)
	u.RawQuery = h.Signer.Sign(Grant{
		Method: method, ModelID: m.ID, OID: o.OID, Size: o.Size, Actor: door.Identity(c).Name,
	}, time.Now()).Encode()
	return action{u.String(), int(validFor.Seconds())}
}

// signed reports whether the address carries a signature, right or wrong.
func signed(c echo.Context) bool { return c.QueryParam("signature") != "" }

// transfer is the object that a request is about, and the model by whose right it is reached:
// that of the signature in the address, or that of the caller's own credentials.
func (h *Handler) transfer(c echo.Context, method string, right access.Action) (m registry.Model, o object, by lifecycle.Request, err error) {
	o.OID = c.Param("oid")
	if digest.NewDigestFromEncoded(digest.SHA256, o.OID).Validate() != nil {
		return m, o, by, registry.Invalid("oid", "an oid has 64 lower-case hex digits")
	}
	by = door.Request(c)
	if !signed(c) {
		o.Size = -1
		m, err = door.Model(c, h.Index, right)
		return m, o, by, err
	}
	name, err := door.ModelName(c)
	if err != nil {
		return m, o, by, err
	}
	m, err = h.Index.ModelByName(c.Request().Context(), name)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return m, o, by, err
	}
	grant, ok := h.Signer.Verify(c.QueryParams(), Grant{Method: method, ModelID: m.ID, OID: o.OID}, time.Now())
	if err != nil || !ok {
		return m, o, by, fmt.Errorf("the address of the object is not valid any more; ask for it again: %w", registry.ErrForbidden)
	}
	// Whoever asked without a token has no right of their own: only while the model is public may
	// they have what they were promised.
	if stranger := access.Anonymous(true); grant.Actor == stranger.Name && !access.CanRead(stranger, &m) {
		return m, o, by, fmt.Errorf("the address of the object is not valid any more; ask for it again: %w", registry.ErrForbidden)
	}
	o.Size, by.Identity = grant.Size, access.Identity{Name: grant.Actor}
	door.SetIdentity(c, by.Identity) // for the access log
	return m, o, by, nil
}

func (h *Handler) download(c echo.Context) error {
	m, o, _, err := h.transfer(c, http.MethodGet, access.Read)
	if err != nil {
		return err
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, o.OID)
	ctx := c.Request().Context()
	if _, err := h.Index.BlobSize(ctx, m.ID, d.String()); err != nil {
		return err
	}
	content, err := h.Blobs.Open(ctx, d)
	if err != nil {
		return err
	}
	defer content.Close()
	header := c.Response().Header()
	header.Set(echo.HeaderContentType, "application/octet-stream")
	header.Set("ETag", strconv.Quote(o.OID))
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}

func (h *Handler) upload(c echo.Context) error {
	m, o, by, err := h.transfer(c, http.MethodPut, access.Write)
	if err != nil {
		return err
	}
	if length := c.Request().ContentLength; o.Size >= 0 && length > o.Size {
		return unprocessableError{registry.Invalid("size", "the object has %d bytes and %d were announced", o.Size, length)}
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, o.OID)
	ctx := c.Request().Context()
	var in io.Reader = c.Request().Body
	if o.Size >= 0 {
		in = io.LimitReader(in, o.Size+1) // one byte more than that is too long, and is seen
	}
	counted := &counter{Reader: in}
	if err := h.Blobs.Put(ctx, counted, d, o.Size); err != nil {
		if counted.err != nil {
			return registry.Invalid("", "the body ended after %d bytes, before the object did; send it again", counted.n)
		}
		if errors.Is(err, registry.ErrInvalid) {
			return unprocessableError{err}
		}
		return err
	}
	if err := h.Lifecycle.LinkBlobs(ctx, by, m, registry.LinkedBlob{Digest: d, SizeBytes: counted.n}); err != nil {
		return err
	}
	return c.NoContent(http.StatusOK)
}

// counter counts what a client sent and remembers whether it broke off.
type counter struct {
	io.Reader
	n   int64
	err error
}

func (r *counter) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func (h *Handler) verify(c echo.Context) error {
	m, o, _, err := h.transfer(c, http.MethodPost, access.Write)
	if err != nil {
		return err
	}
	var in object
	c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, 4096)
	if err := c.Echo().JSONSerializer.Deserialize(c, &in); err != nil || in.OID != o.OID {
		return unprocessableError{registry.Invalid("oid", "the body names another object than the address")}
	}
	size, err := h.Index.BlobSize(c.Request().Context(), m.ID, "sha256:"+o.OID)
	if err != nil {
		return err
	}
	if size != in.Size {
		return unprocessableError{registry.Invalid("size", "the object has %d bytes, not %d", size, in.Size)}
	}
	return answer(c, http.StatusOK, in)
}
