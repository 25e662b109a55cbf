package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// Lifecycle records what clients push.
type Lifecycle interface {
	OCIRepository(ctx context.Context, by lifecycle.Request, name string, action access.Action) (registry.OCIRepository, error)
	EnsureOCI(ctx context.Context, by lifecycle.Request, name string) (registry.OCIRepository, error)
	LinkLayer(ctx context.Context, by lifecycle.Request, r registry.OCIRepository, layer registry.ImageLayer) error
	LinkOCI(ctx context.Context, by lifecycle.Request, r registry.OCIRepository, b registry.LinkedBlob) error
	UnlinkOCI(ctx context.Context, by lifecycle.Request, r registry.OCIRepository, d digest.Digest) error
	CheckQuota(ctx context.Context, name string, bytes int64) error
	PushManifest(ctx context.Context, by lifecycle.Request, r registry.OCIRepository, p lifecycle.PushedManifest) (registry.StoredManifest, error)
	DeleteManifest(ctx context.Context, by lifecycle.Request, r registry.OCIRepository, d digest.Digest) error
	DeleteTag(ctx context.Context, by lifecycle.Request, r registry.OCIRepository, tag string) error
}

// Upload is a blob that comes in parts, over several requests and restarts of the server.
type Upload interface {
	// Offset is how many bytes have come.
	Offset() int64
	// Append adds what r yields and returns how much of it is durable. An error of r is returned as
	// it is, and what came before it is kept.
	Append(ctx context.Context, offset int64, r io.Reader) (int64, error)
	// Commit stores the content when it has that digest; otherwise the error is registry.ErrInvalid.
	// Whatever happens the upload is over and gone.
	Commit(d digest.Digest) (registry.LinkedBlob, error)
	// Cancel drops what has come.
	Cancel() error
	// Close lets go of the upload, so that it can be resumed. It does nothing after Commit and Cancel.
	Close() error
}

// Uploads are where blobs come in.
type Uploads interface {
	// Resume continues the upload with that id, 32 hex digits. When there is none, it begins one, or the error is registry.ErrNotFound.
	Resume(ctx context.Context, id string, begin bool) (Upload, error)
	// Put stores content that comes at once, when it has that digest; otherwise the error is registry.ErrInvalid. An error of
	// r is returned as it is, and nothing is kept.
	Put(ctx context.Context, r io.Reader, d digest.Digest) (registry.LinkedBlob, error)
}

// write takes the path of a request that changes something apart.
func (h *Handler) write(c echo.Context) error {
	path, method := c.Param("*"), c.Request().Method
	if strings.Contains(path, "%") {
		return coded(http.StatusNotFound, "NAME_INVALID", "a repository's name has no escaped characters")
	}
	if name, ok := strings.CutSuffix(strings.TrimSuffix(path, "/"), "/blobs/uploads"); ok && method == http.MethodPost {
		return h.begin(c, name)
	}
	rest, last, _ := cutLast(path)
	if name, ok := strings.CutSuffix(rest, "/blobs/uploads"); ok && last != "" {
		switch method {
		case http.MethodPatch:
			return h.part(c, name, last)
		case http.MethodPut:
			return h.finish(c, name, last)
		case http.MethodDelete:
			return h.cancel(c, name, last)
		}
	}
	name, kind, _ := cutLast(rest)
	switch {
	case kind == "manifests" && method == http.MethodPut:
		return h.putManifest(c, name, last)
	case kind == "manifests" && method == http.MethodDelete:
		return h.deleteManifest(c, name, last)
	case kind == "blobs" && method == http.MethodDelete:
		return h.deleteBlob(c, name, last)
	}
	return unsupported(c, path)
}

// unsupported says that an address has no such method, or that there is no such address.
func unsupported(c echo.Context, path string) error {
	rest, last, _ := cutLast(path)
	name, kind, _ := cutLast(rest)
	allow := ""
	switch {
	case kind == "blobs" && last == "uploads", strings.HasSuffix(path, "/blobs/uploads/"):
		allow = "POST"
	case strings.HasSuffix(rest, "/blobs/uploads"):
		allow = "DELETE, GET, PATCH, PUT"
	case kind == "manifests" && name != "":
		allow = "DELETE, GET, HEAD, PUT"
	case kind == "blobs" && name != "":
		allow = "DELETE, GET, HEAD"
	case kind == "referrers", kind == "tags" && last == "list", path == "_catalog":
		allow = "GET, HEAD"
	default:
		return coded(http.StatusNotFound, "UNSUPPORTED", "there is no such address in the distribution protocol")
	}
	c.Response().Header().Set(echo.HeaderAllow, allow)
	return coded(http.StatusMethodNotAllowed, "UNSUPPORTED", "there is no such request in the distribution protocol")
}

// target is the repository that a client writes to. One that is not there is made when something is in it: see link.
func (h *Handler) target(c echo.Context, name string) (registry.OCIRepository, error) {
	return h.repository(c, name, push)
}

// link gives a repository, which is made when it is not there, a blob that is in the store.
func (h *Handler) link(c echo.Context, r registry.OCIRepository, b registry.LinkedBlob) error {
	return h.into(c, r, func(ctx context.Context, by lifecycle.Request, r registry.OCIRepository) error {
		return h.Lifecycle.LinkOCI(ctx, by, r, b)
	})
}

func (h *Handler) into(c echo.Context, r registry.OCIRepository, put func(context.Context, lifecycle.Request, registry.OCIRepository) error) (err error) {
	// What is put there is complete, so that it does not matter any more whether the client is still there.
	ctx, by := context.WithoutCancel(c.Request().Context()), door.Request(c)
	if r.Key == "" {
		if r, err = h.Lifecycle.EnsureOCI(ctx, by, r.Name); err != nil {
			return err
		}
	}
	return put(ctx, by, r)
}

// location is where an upload goes on. Clients follow a relative one only on the host that they know.
func (h *Handler) location(c echo.Context, r registry.OCIRepository, id string, offset int64) {
	header := c.Response().Header()
	header.Set(echo.HeaderLocation, fmt.Sprintf("/v2/%s/blobs/uploads/%s", r.Name, h.Sessions.Sign(r.Name, id, time.Now())))
	header.Set("Docker-Upload-UUID", id)
	header.Set("Range", fmt.Sprintf("0-%d", max(0, offset-1)))
	header.Set("OCI-Chunk-Min-Length", "1")
}

// begin begins an upload; or takes a blob that another repository has; or takes one that comes with the request.
// Source: distribution specification v1.1, "Pushing Blobs", "Mounting a blob from another repository".
func (h *Handler) begin(c echo.Context, name string) error {
	r, err := h.target(c, name)
	if err != nil {
		return err
	}
	query, id := c.QueryParams(), newUploadID()
	if d := digest.Digest(query.Get("mount")); d != "" {
		mounted, err := h.mount(c, r, d, query.Get("from"))
		if err != nil || mounted {
			return err
		}
	}
	if d := digest.Digest(query.Get("digest")); d != "" {
		return h.complete(c, r, id, d)
	}
	// Nothing is stored of it before something comes: an upload that was only begun costs nothing.
	h.location(c, r, id, 0)
	return c.NoContent(http.StatusAccepted)
}

// mount links a blob of another repository that the caller may read. Where it cannot, the caller uploads it, and learns nothing.
func (h *Handler) mount(c echo.Context, r registry.OCIRepository, d digest.Digest, from string) (bool, error) {
	if err := checkDigest(d); err != nil {
		return false, err
	}
	if from == "" {
		return false, nil
	}
	ctx := c.Request().Context()
	source, err := h.repository(c, from, pull)
	if err != nil || source.Key == "" {
		return false, nil
	}
	of, size, err := h.blobOf(ctx, source, d)
	if errors.Is(err, registry.ErrNotFound) {
		return h.mountLayer(c, r, d, source)
	}
	if err != nil {
		return false, err
	}
	if h.refused(ctx, source, of) != nil {
		return false, nil
	}
	b := registry.LinkedBlob{Digest: of, SizeBytes: size}
	if of != d {
		b.Alias = d
	}
	if err := h.link(c, r, b); err != nil {
		return false, err
	}
	return true, h.created(c, r, d)
}

// mountLayer links what a layer of an image is composed of.
func (h *Handler) mountLayer(c echo.Context, r registry.OCIRepository, d digest.Digest, source registry.OCIRepository) (bool, error) {
	if h.refused(c.Request().Context(), source, d) != nil {
		return false, nil
	}
	layer, err := h.Index.Layer(c.Request().Context(), source.OwnerID, d)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	if err == nil {
		err = h.into(c, r, func(ctx context.Context, by lifecycle.Request, r registry.OCIRepository) error {
			return h.Lifecycle.LinkLayer(ctx, by, r, layer)
		})
	}
	if err != nil {
		return false, err
	}
	return true, h.created(c, r, d)
}

// created answers that a blob is there.
func (h *Handler) created(c echo.Context, r registry.OCIRepository, d digest.Digest) error {
	header := c.Response().Header()
	header.Set(echo.HeaderLocation, fmt.Sprintf("/v2/%s/blobs/%s", r.Name, d))
	header.Set("Docker-Content-Digest", d.String())
	return c.NoContent(http.StatusCreated)
}

// uploadPatience is how long a request waits for another one that has the same upload: that of a connection that was lost, and that
// the server still takes to be there.
const uploadPatience = 20 * time.Second

// session is an upload to a repository that nobody else has until release is called.
func (h *Handler) session(c echo.Context, name, address string) (r registry.OCIRepository, id string, release func(), err error) {
	if r, err = h.target(c, name); err != nil {
		return r, "", nil, err
	}
	id, ok := h.Sessions.Verify(r.Name, address, time.Now())
	if ok {
		if release, err = h.uploads.Hold(c.Request().Context(), id, uploadPatience); err != nil {
			return r, "", nil, err
		}
		if !h.ended.has(id) {
			return r, id, release, nil
		}
		release()
	}
	return r, "", nil, coded(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such upload, or it waited for too long; begin anew")
}

var contentRange = regexp.MustCompile(`^(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?$`)

// parseContentRange reads where a part begins, and how long it is; -1 without a header.
// Source: distribution specification v1.1, "Pushing a blob in chunks": <start>-<end>, both included.
func parseContentRange(text string) (start, length int64, err error) {
	if text == "" {
		return -1, -1, nil
	}
	m := contentRange.FindStringSubmatch(text)
	if m == nil {
		return 0, 0, coded(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "Content-Range is START-END")
	}
	start, _ = strconv.ParseInt(m[1], 10, 64)
	end, _ := strconv.ParseInt(m[2], 10, 64)
	if end < start {
		return 0, 0, coded(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "Content-Range ends before it begins")
	}
	return start, end - start + 1, nil
}

// place says where the body of a request goes in an upload that is at offset, and makes sure that there is room for it. What the
// repository has already, by the digest d, if that is known, needs none.
func (h *Handler) place(c echo.Context, r registry.OCIRepository, id string, offset int64, d digest.Digest) error {
	request := c.Request()
	start, length, err := parseContentRange(request.Header.Get("Content-Range"))
	if err != nil {
		return err
	}
	if start >= 0 && start != offset {
		h.location(c, r, id, offset)
		return coded(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload is at byte %d, and the part begins at %d", offset, start)
	}
	if length >= 0 && request.ContentLength >= 0 && request.ContentLength != length {
		return coded(http.StatusBadRequest, "SIZE_INVALID", "the body has %d bytes and Content-Range says %d", request.ContentLength, length)
	}
	if d != "" && r.Key != "" {
		if _, _, err := h.blobOf(request.Context(), r, d); !errors.Is(err, registry.ErrNotFound) {
			return err
		}
	}
	// Of a body of unknown length there has to be room for something.
	return h.Lifecycle.CheckQuota(request.Context(), r.Name, offset+max(1, request.ContentLength))
}

// take adds the body to an upload.
func (h *Handler) take(c echo.Context, r registry.OCIRepository, id string, u Upload, d digest.Digest) error {
	if err := h.place(c, r, id, u.Offset(), d); err != nil {
		return err
	}
	body := &broken{Reader: c.Request().Body}
	n, err := u.Append(c.Request().Context(), u.Offset(), body)
	if body.err != nil {
		return coded(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the body ended after %d bytes, before the part did; ask for the status of the upload and send the rest", n)
	}
	return err
}

// broken remembers whether the client broke off.
type broken struct {
	io.Reader
	err error
}

// Read implements io.Reader.
func (b *broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (h *Handler) part(c echo.Context, name, address string) error {
	r, id, release, err := h.session(c, name, address)
	if err != nil {
		return err
	}
	defer release()
	u, err := h.Uploads.Resume(c.Request().Context(), id, true)
	if err != nil {
		return err
	}
	defer u.Close()
	if err := h.take(c, r, id, u, ""); err != nil {
		return err
	}
	h.location(c, r, id, u.Offset())
	return c.NoContent(http.StatusAccepted)
}

func (h *Handler) finish(c echo.Context, name, address string) error {
	r, id, release, err := h.session(c, name, address)
	if err != nil {
		return err
	}
	defer release()
	return h.complete(c, r, id, digest.Digest(c.QueryParam("digest")))
}

// complete takes the last part and makes a blob of the upload.
func (h *Handler) complete(c echo.Context, r registry.OCIRepository, id string, d digest.Digest) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	b, err := h.receive(c, r, id, d)
	if errors.Is(err, registry.ErrInvalid) {
		h.ended.add(id)
		return coded(http.StatusBadRequest, "DIGEST_INVALID", "what was sent is not %s", d)
	}
	if err == nil {
		err = h.link(c, r, b)
	}
	if err != nil {
		return err
	}
	h.ended.add(id)
	return h.created(c, r, d)
}

// atOnceBytes is what is sent again as a whole when the connection breaks, instead of being kept for the rest to come: to keep it
// takes longer than to send it.
const atOnceBytes = 8 << 20

// receive stores the content of an upload of which the request has the last part.
func (h *Handler) receive(c echo.Context, r registry.OCIRepository, id string, d digest.Digest) (b registry.LinkedBlob, err error) {
	ctx, length := c.Request().Context(), c.Request().ContentLength
	small := length >= 0 && length <= atOnceBytes
	u, err := h.Uploads.Resume(ctx, id, !small)
	if small && errors.Is(err, registry.ErrNotFound) {
		if err := h.place(c, r, id, 0, d); err != nil {
			return b, err
		}
		body := &broken{Reader: c.Request().Body}
		b, err = h.Uploads.Put(ctx, body, d)
		if body.err != nil {
			return b, coded(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the body ended before the blob did; send it again")
		}
		return b, err
	}
	if err != nil {
		return b, err
	}
	defer u.Close()
	if err := h.take(c, r, id, u, d); err != nil {
		return b, err
	}
	return u.Commit(d)
}

// status tells how far an upload is.
func (h *Handler) status(c echo.Context, name, address string) error {
	r, id, release, err := h.session(c, name, address)
	if err != nil {
		return err
	}
	defer release()
	var offset int64
	switch u, err := h.Uploads.Resume(c.Request().Context(), id, false); {
	case err == nil:
		offset = u.Offset()
		if err := u.Close(); err != nil {
			return err
		}
	case !errors.Is(err, registry.ErrNotFound):
		return err
	}
	h.location(c, r, id, offset)
	return c.NoContent(http.StatusNoContent)
}

func (h *Handler) cancel(c echo.Context, name, address string) error {
	_, id, release, err := h.session(c, name, address)
	if err != nil {
		return err
	}
	defer release()
	u, err := h.Uploads.Resume(c.Request().Context(), id, false)
	if err == nil {
		err = u.Cancel()
	}
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	h.ended.add(id)
	return c.NoContent(http.StatusNoContent)
}

// putManifest stores a manifest under its digest, and under tags.
// Source: distribution specification v1.1, "Pushing Manifests".
func (h *Handler) putManifest(c echo.Context, name, ref string) error {
	r, err := h.target(c, name)
	if err != nil {
		return err
	}
	p := lifecycle.PushedManifest{MediaType: c.Request().Header.Get(echo.HeaderContentType), Tags: c.QueryParams()["tag"]}
	if strings.Contains(ref, ":") {
		if p.Digest = digest.Digest(ref); checkDigest(p.Digest) != nil {
			return checkDigest(p.Digest)
		}
	} else {
		p.Tags = append(p.Tags, ref)
	}
	text, done, err := h.documents.Read(c, registry.MaxManifestBytes)
	if err != nil {
		return documentError(c, err)
	}
	defer done()
	if len(text) > maxKeptBytes { // it is here as a whole, so that no client can make others wait
		leave, err := h.long.enter(c.Request().Context())
		if err != nil {
			return err
		}
		defer leave()
	}
	p.Content = text
	if r.Key == "" { // what cannot be stored makes no repository
		m, err := registry.ParseManifest(p.MediaType, text)
		if err != nil {
			return manifestError(err)
		}
		if len(m.Blobs)+len(m.Manifests) > 0 {
			return coded(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "nothing that the manifest names is in %s, which is empty; push that first", name)
		}
		if r, err = h.Lifecycle.EnsureOCI(c.Request().Context(), door.Request(c), name); err != nil {
			return err
		}
	}
	m, err := h.Lifecycle.PushManifest(c.Request().Context(), door.Request(c), r, p)
	if err != nil {
		return manifestError(err)
	}
	header := c.Response().Header()
	d := m.Digest
	if p.Digest != "" {
		d = p.Digest
	}
	header.Set(echo.HeaderLocation, fmt.Sprintf("/v2/%s/manifests/%s", r.Name, url.PathEscape(ref)))
	header.Set("Docker-Content-Digest", d.String())
	if m.Subject != "" {
		header.Set("OCI-Subject", m.Subject.String())
	}
	for _, tag := range c.QueryParams()["tag"] {
		header.Add("OCI-Tag", tag)
	}
	return c.NoContent(http.StatusCreated)
}

// documentError gives the error of reading a manifest its code.
func documentError(c echo.Context, err error) error {
	var busy *door.BusyError
	switch {
	case errors.Is(err, registry.ErrTooLarge):
		return coded(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "a manifest is at most %d bytes long", registry.MaxManifestBytes)
	case errors.As(err, &busy):
		c.Response().Header().Set(echo.HeaderRetryAfter, strconv.Itoa(int(math.Ceil(busy.Wait.Seconds()))))
		return coded(http.StatusTooManyRequests, "TOOMANYREQUESTS", "%s", busy.Error())
	case errors.Is(err, door.ErrLate):
		return coded(http.StatusRequestTimeout, "MANIFEST_INVALID", "the manifest did not come in time")
	}
	return coded(http.StatusBadRequest, "MANIFEST_INVALID", "the body ended before the manifest did")
}

// manifestError gives the error of a manifest its code.
// Source: distribution specification v1.1, "Error Codes".
func manifestError(err error) error {
	var missing *lifecycle.MissingPartError
	var field *registry.FieldError
	switch {
	case errors.As(err, &missing):
		return coded(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "%s", missing.Error())
	case errors.Is(err, registry.ErrTooLarge): // each '<' takes six bytes in the journal
		return coded(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "the annotations of what has a subject are kept for lists of referrers, and these are too long")
	case errors.As(err, &field) && field.Field == "tag":
		return coded(http.StatusBadRequest, "TAG_INVALID", "%s", field.Error())
	case errors.As(err, &field) && field.Field == "digest":
		return coded(http.StatusBadRequest, "DIGEST_INVALID", "%s", field.Error())
	case errors.As(err, &field):
		return coded(http.StatusBadRequest, "MANIFEST_INVALID", "%s", field.Error())
	}
	return err
}

func (h *Handler) deleteManifest(c echo.Context, name, ref string) error {
	ctx, by := c.Request().Context(), door.Request(c)
	r, err := h.repository(c, name, remove)
	if err != nil {
		return err
	}
	if strings.Contains(ref, ":") {
		if err := checkDigest(digest.Digest(ref)); err != nil {
			return err
		}
		err = h.Lifecycle.DeleteManifest(ctx, by, r, digest.Digest(ref))
	} else {
		err = h.Lifecycle.DeleteTag(ctx, by, r, ref)
	}
	if errors.Is(err, registry.ErrNotFound) {
		return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no manifest %s", name, ref)
	}
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusAccepted)
}

func (h *Handler) deleteBlob(c echo.Context, name, ref string) error {
	if err := checkDigest(digest.Digest(ref)); err != nil {
		return err
	}
	ctx, by := c.Request().Context(), door.Request(c)
	r, err := h.repository(c, name, remove)
	if err == nil {
		err = h.Lifecycle.UnlinkOCI(ctx, by, r, digest.Digest(ref))
	}
	if errors.Is(err, registry.ErrNotFound) {
		return coded(http.StatusNotFound, "BLOB_UNKNOWN", "%s has no blob %s", name, ref)
	}
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusAccepted)
}
