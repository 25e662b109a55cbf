package lfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Upload is an object that comes in parts, over several requests and restarts of the server.
type Upload interface {
	// Offset is how many bytes have come.
	Offset() int64
	// Append adds what r yields and returns how much of it is durable. An error of r is returned as
	// it is, and what came before it is kept.
	Append(ctx context.Context, offset int64, r io.Reader) (int64, error)
	// Commit stores the content when it has that digest and size; otherwise the error is
	// registry.ErrInvalid. Whatever happens the upload is over and gone.
	Commit(d digest.Digest, sizeBytes int64) error
	// Close lets go of the upload, so that it can be resumed. It does nothing after Commit.
	Close() error
}

// The headers and values of tus. Only the core protocol is spoken, as git-lfs does: the batch answer
// takes the place of the creation. Source: tus 1.0.0, "Core Protocol"; git-lfs, tq/tus_upload.go.
const (
	tusVersion   = "1.0.0"
	headerTus    = "Tus-Resumable"
	headerOffset = "Upload-Offset"
	headerLength = "Upload-Length"
	partType     = "application/offset+octet-stream"
)

// uploadID names the upload of an object to a model by somebody. Who comes back, after a restart of
// either side, finds the same; nobody can spoil or continue what somebody else sends.
func uploadID(x transfer) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "tus\n%s\n%s\n%d\n%s", x.model.Name, x.OID, x.Size, x.by.Identity.Name))
	return hex.EncodeToString(sum[:16])
}

// tus begins a request about an upload: nobody else has the upload until release is called.
func (h *Handler) tus(c echo.Context) (x transfer, id string, release func(), err error) {
	c.Response().Header().Set(headerTus, tusVersion)
	c.Response().Header().Set(echo.HeaderCacheControl, "no-store")
	if x, err = h.transfer(c, http.MethodPatch, access.Write); err != nil {
		return x, "", nil, err
	}
	if x.Size < 0 {
		return x, "", nil, registry.Invalid("", "a resumable upload goes to the address that a batch request gives")
	}
	if c.Request().Header.Get(headerTus) != tusVersion {
		c.Response().Header().Set("Tus-Version", tusVersion)
		return x, "", nil, statusError{http.StatusPreconditionFailed, fmt.Sprintf("the header %s has to be %s", headerTus, tusVersion)}
	}
	id = uploadID(x)
	release, err = h.uploads.Hold(c.Request().Context(), id, uploadPatience)
	return x, id, release, err
}

// offset tells how far an upload is. One whose last byte has come is finished here: the server may
// have died in between, and the client will not send anything more.
func (h *Handler) offset(c echo.Context) error {
	x, id, release, err := h.tus(c)
	if err != nil {
		return err
	}
	defer release()
	at, err := h.progress(c.Request().Context(), x, id)
	if err != nil {
		return err
	}
	c.Response().Header().Set(headerOffset, strconv.FormatInt(at, 10))
	c.Response().Header().Set(headerLength, strconv.FormatInt(x.Size, 10))
	return c.NoContent(http.StatusOK)
}

func (h *Handler) progress(ctx context.Context, x transfer, id string) (at int64, err error) {
	if there, err := h.complete(ctx, x); there || err != nil {
		return x.Size, err
	}
	u, err := h.Blobs.Resume(ctx, id, x.Size == 0) // of nothing no part ever comes
	if errors.Is(err, registry.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer u.Close()
	if u.Offset() < x.Size {
		return u.Offset(), nil
	}
	err = h.finish(ctx, x, u)
	var wrong unprocessableError
	if errors.As(err, &wrong) && x.Size > 0 {
		return 0, nil // it is gone, and can be sent again
	}
	return x.Size, err
}

// complete reports whether the model has the object already.
func (h *Handler) complete(ctx context.Context, x transfer) (bool, error) {
	size, owned, err := h.owned(ctx, x.model, x.digest())
	if err != nil || !owned {
		return false, err
	}
	if size != x.Size {
		return false, unprocessableError{registry.Invalid("size", "the object has %d bytes, not %d", size, x.Size)}
	}
	return h.Blobs.Has(ctx, x.digest())
}

// resume takes the next part of an upload.
func (h *Handler) resume(c echo.Context) error {
	r := c.Request()
	if kind, _, err := mime.ParseMediaType(r.Header.Get(echo.HeaderContentType)); err != nil || kind != partType {
		return statusError{http.StatusUnsupportedMediaType, "a part of an upload is " + partType}
	}
	x, id, release, err := h.tus(c)
	if err != nil {
		return err
	}
	defer release()
	offset, err := parseOffset(r.Header.Get(headerOffset))
	if err != nil {
		return err
	}
	ctx := r.Context()
	if there, err := h.complete(ctx, x); err != nil {
		return err
	} else if there {
		return h.received(c, x, offset, x.Size)
	}
	if err := h.room(ctx, x, x.Size); err != nil {
		return err
	}
	u, err := h.Blobs.Resume(ctx, id, true)
	if err != nil {
		return err
	}
	defer u.Close()
	if offset != u.Offset() {
		return h.received(c, x, offset, u.Offset())
	}
	if err := h.receive(r, x, u); err != nil {
		return err
	}
	if u.Offset() == x.Size {
		if err := h.finish(ctx, x, u); err != nil {
			return err
		}
		return h.received(c, x, x.Size, x.Size)
	}
	return h.received(c, x, u.Offset(), u.Offset())
}

// received answers that the upload is at a byte, which has to be the one that the client means.
func (h *Handler) received(c echo.Context, x transfer, meant, at int64) error {
	if meant != at {
		return registry.Conflict("the upload of %s is at byte %d, not %d; ask for its offset again", x.OID, at, meant)
	}
	c.Response().Header().Set(headerOffset, strconv.FormatInt(at, 10))
	return c.NoContent(http.StatusNoContent)
}

// receive adds the body to the upload. What came before the client broke off is kept.
func (h *Handler) receive(r *http.Request, x transfer, u Upload) error {
	offset := u.Offset()
	left := x.Size - offset
	if r.ContentLength > left {
		return fmt.Errorf("the object has %d bytes; behind byte %d there come at most %d, not %d: %w", x.Size, offset, left, r.ContentLength, registry.ErrTooLarge)
	}
	body := &counter{Reader: r.Body}
	if _, err := u.Append(r.Context(), offset, io.LimitReader(body, left)); err != nil {
		if body.err != nil {
			return registry.Invalid("", "the body ended after %d bytes; ask for the offset and send the rest", body.n)
		}
		return err
	}
	if u.Offset() == x.Size {
		if n, _ := io.ReadFull(body, make([]byte, 1)); n > 0 {
			return fmt.Errorf("the object has %d bytes and more were sent: %w", x.Size, registry.ErrTooLarge)
		}
	}
	return nil
}

// finish makes a complete upload an object of the model. A crash behind Commit leaves a blob that
// nobody owns: the client sends the object again.
func (h *Handler) finish(ctx context.Context, x transfer, u Upload) error {
	err := u.Commit(x.digest(), x.Size)
	if errors.Is(err, registry.ErrInvalid) {
		return unprocessableError{err}
	}
	if err != nil {
		return err
	}
	return h.link(ctx, x)
}

// parseOffset reads the header Upload-Offset: a whole number, 0 or more.
func parseOffset(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != text || n < 0 {
		return 0, registry.Invalid("", "the header %s is a whole number of bytes, 0 or more", headerOffset)
	}
	return n, nil
}

// uploadPatience is how long a request waits for another one that has the same upload. It is less than
// the time without a byte after which git-lfs gives up a connection, 30 s.
const uploadPatience = 20 * time.Second
