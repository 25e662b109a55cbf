// Package lfs serves Git LFS: the batch API, the transfers "basic" and "tus", and locks, at
// /NAMESPACE/NAME.git/info/lfs.
//
// An object goes straight into the store under its SHA-256, where the OCI registry serves the
// same bytes as a layer. It can be reached only through a model that was shown its content: to
// know an oid is not enough. Clients send the transfers themselves without credentials, so
// that their addresses are signed, for one method, model, object, token and some minutes; the
// token's right is asked again when they are used. The first object that is complete makes the
// model when there is none yet.
//
// A lock is for a path of a model on all of its branches, whatever ref the client names.
// Source: docs/api/batch.md, basic-transfers.md and locking.md of Git LFS 3.8.
package lfs

import (
	"cmp"
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
	TokenByID(ctx context.Context, id string) (registry.Token, error)
	locks
}

// Blobs is the store of the objects.
type Blobs interface {
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
	// Has reports whether the content is there.
	Has(ctx context.Context, d digest.Digest) (bool, error)
	// Put stores what r yields when it has that digest and size; otherwise the error is
	// registry.ErrInvalid and nothing is stored.
	Put(ctx context.Context, r io.Reader, d digest.Digest, sizeBytes int64) error
	// Resume opens an upload that comes in parts by its id, 32 hex digits. When there is none it is
	// begun, or the error is registry.ErrNotFound. One caller at a time has an upload open.
	Resume(ctx context.Context, id string, begin bool) (Upload, error)
}

// Config is what a Handler works with.
type Config struct {
	Index     Index
	Blobs     Blobs
	Lifecycle *lifecycle.Service
	Signer    *Signer
	PublicURL *url.URL
	Log       *slog.Logger

	// BatchRate is how many batch requests a minute one token, or one address without a token, may
	// send; 0 is any number.
	BatchRate int
	// Patience is how long a client may take for a part of an answer; by default [door.Patience].
	Patience time.Duration

	documents door.Documents // tests make its times short
}

// Handler is the door.
type Handler struct {
	Config
	batches    *limits
	batchTexts *door.Documents
	uploads    door.Exclusive
}

// New assembles a Handler.
func New(c Config) *Handler {
	c.Patience = cmp.Or(c.Patience, door.Patience)
	return &Handler{Config: c, batches: newLimits(c.BatchRate), batchTexts: door.NewDocuments(c.documents)}
}

// base is what all routes begin with.
const base = "/:ns/:name/info/lfs"

// Register adds the routes.
func (h *Handler) Register(e *echo.Echo) {
	e.POST(base+"/objects/batch", h.door(h.batch))
	e.GET(base+"/objects/:oid", h.door(h.download))
	e.HEAD(base+"/objects/:oid", h.door(h.download))
	e.PUT(base+"/objects/:oid", h.door(h.upload))
	e.POST(base+"/objects/:oid/verify", h.door(h.verify))
	e.HEAD(base+"/objects/:oid/tus", h.door(h.offset))
	e.PATCH(base+"/objects/:oid/tus", h.door(h.resume))
	e.GET(base+"/locks", h.door(h.listLocks))
	e.POST(base+"/locks", h.door(h.lock))
	e.POST(base+"/locks/verify", h.door(h.verifyLocks))
	e.POST(base+"/locks/:id/unlock", h.door(h.unlock))
}

// message is an error as LFS clients show it. Source: docs/api/batch.md, "Response Errors".
type message struct {
	Message   string `json:"message"`
	RequestID string `json:"request_id,omitempty"`
}

func (h *Handler) door(handler echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		defer door.Patient(c, h.Patience)()
		err := h.enter(c)
		if err == nil {
			err = handler(c)
		}
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
	var often tooOftenError
	var other statusError
	switch {
	case errors.As(err, &often):
		c.Response().Header().Set(echo.HeaderRetryAfter, strconv.Itoa(often.seconds()))
		return answer(c, http.StatusTooManyRequests, message{often.Error(), requestID(c)})
	case errors.As(err, &other):
		return answer(c, other.status, message{other.detail, requestID(c)})
	case class == problem.Internal:
		h.Log.ErrorContext(c.Request().Context(), "LFS request failed", "path", c.Request().URL.Path, "error", err.Error())
	case class == problem.Unauthenticated:
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Basic realm="herdbook", charset="UTF-8"`)
		c.Response().Header().Set("LFS-Authenticate", `Basic realm="herdbook"`)
	case errors.As(err, &unprocessable):
		status = http.StatusUnprocessableEntity
	}
	return answer(c, status, message{problem.Detail(err), requestID(c)})
}

func requestID(c echo.Context) string { return c.Response().Header().Get(echo.HeaderXRequestID) }

// statusError is an answer that no other protocol has.
type statusError struct {
	status int
	detail string
}

func (e statusError) Error() string { return e.detail }

// unprocessableError is a 422, which LFS has for wrong content and wrong objects.
type unprocessableError struct{ error }

func (e unprocessableError) Unwrap() error { return e.error }

func answer(c echo.Context, status int, v any) error {
	c.Response().Header().Set(echo.HeaderContentType, mediaType)
	c.Response().WriteHeader(status)
	return c.Echo().JSONSerializer.Serialize(c, v, "")
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
	maxObjectBytes  = 1 << 48 // so that the sum over a batch is a number
)

func (h *Handler) batch(c echo.Context) error {
	if wait := h.batches.take(caller(c)); wait > 0 {
		return tooOftenError{wait}
	}
	var in batchRequest
	done, err := h.readBatch(c, &in)
	if err != nil {
		return err
	}
	defer done()
	m, err := h.batchModel(c, in.Operation)
	if err != nil {
		return err
	}
	switch in.HashAlgo {
	case "", "sha256", "sha_256": // the latter is how @huggingface/hub spells it
	default:
		return registry.Conflict("the hash algorithm is sha256, not %.40q", in.HashAlgo)
	}
	adapter, err := adapterOf(in.Operation, in.Transfers)
	if err != nil {
		return err
	}
	if len(in.Objects) > maxBatchObjects {
		return fmt.Errorf("a batch names at most %d objects: %w", maxBatchObjects, registry.ErrTooLarge)
	}
	out := batchAnswer{Transfer: adapter, HashAlgo: "sha256", Objects: []objectAnswer{}}
	var bytes int64
	for _, o := range in.Objects {
		a, err := h.object(c, m, in.Operation, adapter, o)
		if err != nil {
			return err
		}
		if in.Operation == "upload" && a.Actions != nil {
			bytes += o.Size
		}
		out.Objects = append(out.Objects, a)
	}
	if err := h.Lifecycle.CheckQuota(c.Request().Context(), m.Name.String(), bytes); errors.Is(err, registry.ErrQuota) {
		refuseAll(out.Objects, err)
	} else if err != nil {
		return err
	}
	return answer(c, http.StatusOK, out)
}

// refuseAll answers for each object that would have to be sent that it is not taken. For a whole batch that is refused with 507
// a client asks again and again before it says so.
func refuseAll(objects []objectAnswer, why error) {
	for i, o := range objects {
		if o.Actions != nil {
			objects[i] = objectAnswer{object: o.object, Error: &objectError{http.StatusInsufficientStorage, problem.Detail(why)}}
		}
	}
}

// The transfers that clients know and this server has. Source: docs/api/batch.md, "Requests".
const (
	basic = "basic"
	tus   = "tus" // for uploads; a client offers it when lfs.tustransfers is set
)

// adapterOf chooses among the transfers that a client offers.
func adapterOf(operation string, offered []string) (string, error) {
	switch {
	case operation == "upload" && slices.Contains(offered, tus):
		return tus, nil
	case len(offered) == 0, slices.Contains(offered, basic):
		return basic, nil
	}
	return "", unprocessableError{registry.Invalid("transfers", "this server has the transfers basic and, for uploads, tus")}
}

// batchModel is the model that the batch is about; without an ID for an upload to a name that has no
// model yet.
func (h *Handler) batchModel(c echo.Context, operation string) (registry.Model, error) {
	switch operation {
	case "download":
		return door.Model(c, h.Index, access.Read)
	case "upload":
		name, err := door.ModelName(c)
		if err != nil {
			return registry.Model{}, err
		}
		return h.Lifecycle.UploadTarget(c.Request().Context(), door.Request(c), name)
	}
	return registry.Model{}, unprocessableError{registry.Invalid("operation", "an operation is download or upload, not %.40q", operation)}
}

func (h *Handler) object(c echo.Context, m registry.Model, operation, adapter string, o object) (objectAnswer, error) {
	a := objectAnswer{object: o}
	d := digest.NewDigestFromEncoded(digest.SHA256, o.OID)
	if d.Validate() != nil || o.Size < 0 {
		a.Error = &objectError{http.StatusUnprocessableEntity, "an object has an oid of 64 lower-case hex digits and a size of 0 or more"}
		return a, nil
	}
	if o.Size > maxObjectBytes {
		a.Error = &objectError{http.StatusUnprocessableEntity, fmt.Sprintf("an object has at most %d bytes, not %d", int64(maxObjectBytes), o.Size)}
		return a, nil
	}
	size, owned, err := h.owned(c.Request().Context(), m, d)
	if err == nil && operation == "upload" && owned {
		// The model of a mirror clone owns objects that nobody has sent yet; and what was lost is
		// mended by sending it again.
		owned, err = h.Blobs.Has(c.Request().Context(), d)
	}
	if err != nil {
		return a, err
	}
	switch {
	case owned && size != o.Size:
		a.Error = &objectError{http.StatusUnprocessableEntity, fmt.Sprintf("the object has %d bytes, not %d", size, o.Size)}
	case operation == "upload" && owned:
		// Nothing to send: an answer without actions says so.
	case operation == "upload":
		a.Authenticated = true
		upload := h.href(c, m, http.MethodPut, o, "")
		if adapter == tus {
			upload = h.href(c, m, http.MethodPatch, o, "/tus")
		}
		// No "verify": what was acknowledged is there, and each object costs one request less.
		a.Actions = map[string]action{"upload": upload}
	case !owned:
		a.Error = &objectError{http.StatusNotFound, "the object is not on the server"}
	default:
		a.Authenticated = true
		a.Actions = map[string]action{"download": h.href(c, m, http.MethodGet, o, "")}
	}
	return a, nil
}

// owned is the size of an object that the model owns.
func (h *Handler) owned(ctx context.Context, m registry.Model, d digest.Digest) (size int64, owned bool, err error) {
	size, err = h.Index.BlobSize(ctx, m.ID, d.String())
	if errors.Is(err, registry.ErrNotFound) {
		return 0, false, nil
	}
	return size, err == nil, err
}

// href is a signed address of an object.
func (h *Handler) href(c echo.Context, m registry.Model, method string, o object, suffix string) action {
	u := door.PublicURL(c, h.PublicURL).JoinPath(m.Name.String()+".git", "info/lfs/objects", o.OID+suffix)
	u.RawQuery = h.Signer.Sign(Grant{
		Method: method, Model: m.Name.String(), ModelID: m.ID, OID: o.OID, Size: o.Size, TokenID: door.Identity(c).TokenID,
	}, time.Now()).Encode()
	return action{u.String(), int(validFor.Seconds())}
}

// signed reports whether the address carries a signature, right or wrong.
func signed(c echo.Context) bool { return c.QueryParam("signature") != "" }

// transfer is an object on its way and by whose right it goes.
type transfer struct {
	object                // its size is -1 when nothing says it
	model  registry.Model // without an ID for an upload to a name that has none yet
	by     lifecycle.Request
}

func (x transfer) digest() digest.Digest { return digest.NewDigestFromEncoded(digest.SHA256, x.OID) }

// transfer is what a request is about, when its address was signed for it, or the caller's own
// credentials let it: method is what the address was signed for, right what is done.
func (h *Handler) transfer(c echo.Context, method string, right access.Action) (x transfer, err error) {
	x.OID, x.Size = c.Param("oid"), -1
	if x.digest().Validate() != nil {
		return x, registry.Invalid("oid", "an oid has 64 lower-case hex digits")
	}
	name, err := door.ModelName(c)
	if err != nil {
		return x, err
	}
	var grant Grant
	if signed(c) {
		if grant, err = h.granted(c, Grant{Method: method, Model: name.String(), OID: x.OID}); err != nil {
			return x, err
		}
		x.Size = grant.Size
	}
	x.by = door.Request(c)
	if right == access.Read {
		x.model, err = door.Authorized(c, h.Index, name, right)
	} else {
		x.model, err = h.Lifecycle.UploadTarget(c.Request().Context(), x.by, name)
	}
	switch {
	case !signed(c):
		return x, err
	case problem.Of(err) == problem.Internal && err != nil:
		return x, err
	case err != nil || grant.ModelID != x.model.ID && (grant.ModelID != "" || right == access.Read):
		// The token lost its right, or the model was deleted, and perhaps another has its name.
		return x, errNotGranted
	}
	return x, nil
}

// errNotGranted does not say why: whoever found an address learns nothing.
var errNotGranted = fmt.Errorf("the address of the object is not valid any more; ask for it again: %w", registry.ErrForbidden)

// granted reads the signature of the address and makes the request that of the token which it was made
// for, with the right that the token has now. Without one the request is that of whoever sends it.
func (h *Handler) granted(c echo.Context, asked Grant) (Grant, error) {
	grant, ok := h.Signer.Verify(c.QueryParams(), asked, time.Now())
	if !ok {
		return grant, errNotGranted
	}
	if grant.TokenID == "" {
		return grant, nil
	}
	token, err := h.Index.TokenByID(c.Request().Context(), grant.TokenID)
	if errors.Is(err, registry.ErrNotFound) {
		return grant, errNotGranted
	}
	if err != nil {
		return grant, err
	}
	id, err := access.Of(token)
	if err != nil {
		return grant, errNotGranted
	}
	door.SetIdentity(c, id)
	return grant, nil
}

func (h *Handler) download(c echo.Context) error {
	x, err := h.transfer(c, http.MethodGet, access.Read)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if _, err := h.Index.BlobSize(ctx, x.model.ID, x.digest().String()); err != nil {
		return err
	}
	content, err := h.Blobs.Open(ctx, x.digest())
	if err != nil {
		return err
	}
	defer content.Close()
	header := c.Response().Header()
	header.Set(echo.HeaderContentType, "application/octet-stream")
	header.Set("ETag", strconv.Quote(x.OID))
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}

func (h *Handler) upload(c echo.Context) error {
	x, err := h.transfer(c, http.MethodPut, access.Write)
	if err != nil {
		return err
	}
	if length := c.Request().ContentLength; x.Size >= 0 && length > x.Size {
		return unprocessableError{registry.Invalid("size", "the object has %d bytes and %d were announced", x.Size, length)}
	}
	if err := h.room(c.Request().Context(), x, c.Request().ContentLength); err != nil {
		return err
	}
	var in io.Reader = c.Request().Body
	if x.Size >= 0 {
		in = io.LimitReader(in, x.Size+1) // one byte more than that is too long, and is seen
	}
	counted := &counter{Reader: in}
	if err := h.Blobs.Put(c.Request().Context(), counted, x.digest(), x.Size); err != nil {
		if counted.err != nil {
			return registry.Invalid("", "the body ended after %d bytes, before the object did; send it again", counted.n)
		}
		if errors.Is(err, registry.ErrInvalid) {
			return unprocessableError{err}
		}
		return err
	}
	x.Size = counted.n
	if err := h.link(c.Request().Context(), x); err != nil {
		return err
	}
	return c.NoContent(http.StatusOK)
}

// room refuses what would exceed a quota before it is received: the store keeps what came until a person
// removes what nobody owns. Length is that of the body, or -1: then there has to be room for something.
func (h *Handler) room(ctx context.Context, x transfer, length int64) error {
	size := x.Size
	if size < 0 {
		size = length
	}
	if size < 0 {
		size = 1
	}
	if _, owned, err := h.owned(ctx, x.model, x.digest()); err != nil || owned {
		return err
	}
	return h.Lifecycle.CheckQuota(ctx, x.model.Name.String(), size)
}

// link records that the model was shown the object, and makes the model when there is none yet. The
// object is complete, so that it does not matter any more whether the client is still there.
func (h *Handler) link(ctx context.Context, x transfer) error {
	ctx = context.WithoutCancel(ctx)
	m := x.model
	if m.ID == "" {
		var err error
		if m, err = h.Lifecycle.EnsureModel(ctx, x.by, m.Name); err != nil {
			return err
		}
	}
	return h.Lifecycle.LinkBlobs(ctx, x.by, m, registry.LinkedBlob{Digest: x.digest(), SizeBytes: x.Size})
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
	x, err := h.transfer(c, http.MethodPost, access.Write)
	if err != nil {
		return err
	}
	var in object
	c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, 4096)
	if err := c.Echo().JSONSerializer.Deserialize(c, &in); err != nil || in.OID != x.OID {
		return unprocessableError{registry.Invalid("oid", "the body names another object than the address")}
	}
	size, err := h.Index.BlobSize(c.Request().Context(), x.model.ID, x.digest().String())
	if err != nil {
		return err
	}
	if size != in.Size {
		return unprocessableError{registry.Invalid("size", "the object has %d bytes, not %d", size, in.Size)}
	}
	return answer(c, http.StatusOK, in)
}
