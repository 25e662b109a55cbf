package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Content is the store of content, for attachments.
type Content interface {
	// Put stores content that has this digest and this size in bytes; a size of -1 is any. Other content is a registry.ErrInvalid and
	// leaves nothing.
	Put(ctx context.Context, r io.Reader, d digest.Digest, sizeBytes int64) error
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
}

// Attachment is what a model has of an attachment.
type Attachment struct {
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes"`
}

// attachment is the digest of the path.
func attachment(c echo.Context) (digest.Digest, error) {
	text, err := door.Param(c, "digest")
	if err != nil {
		return "", err
	}
	d := digest.Digest(text)
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", registry.Invalid("digest", "an attachment is named by sha256: and 64 hex digits, not by %q", clip(text))
	}
	return d, nil
}

// putAttachment takes a file that an evaluation will name. It is the model's from then on; one that no evaluation names is let go of by the
// next collection of garbage after its grace period.
func (s *Server) putAttachment(c echo.Context) error {
	m, err := s.model(c, access.Evaluate)
	if err != nil {
		return err
	}
	d, err := attachment(c)
	if err != nil {
		return err
	}
	ctx, length := c.Request().Context(), c.Request().ContentLength
	if length > s.MaxAttachmentBytes {
		return s.attachmentTooLarge()
	}
	status := http.StatusOK
	if _, err := s.Index.BlobSize(ctx, m.ID, d.String()); errors.Is(err, registry.ErrNotFound) {
		status = http.StatusCreated
		// Before anything is received: the store keeps what came until its garbage is collected.
		err = s.Lifecycle.CheckQuota(ctx, m.Name.String(), max(length, 1))
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// Also what is there already is received: it may have been lost.
	body := &counted{Reader: http.MaxBytesReader(c.Response(), c.Request().Body, s.MaxAttachmentBytes)}
	if err := s.Content.Put(ctx, body, d, length); err != nil {
		var tooLong *http.MaxBytesError
		switch {
		case errors.As(err, &tooLong):
			return s.attachmentTooLarge()
		case body.err != nil:
			return registry.Invalid("", "the body ended after %d bytes, before the attachment did; send it again", body.n)
		case errors.Is(err, registry.ErrInvalid):
			return registry.Invalid("digest", "the body of %d bytes is not %s; send exactly the file of that digest", body.n, d)
		}
		return err
	}
	if kind, _, err := mime.ParseMediaType(c.Request().Header.Get(echo.HeaderContentType)); err == nil && kind == registry.ExplanationType {
		if err := s.Lifecycle.CheckExplanation(ctx, d); err != nil {
			return err // nobody owns what was stored
		}
	}
	// It is complete, so that it does not matter any more whether the client is still there.
	ctx = context.WithoutCancel(ctx)
	if err := s.Lifecycle.LinkBlobs(ctx, door.Request(c), m, registry.LinkedBlob{Digest: d, SizeBytes: body.n}); err != nil {
		return err
	}
	return c.JSON(status, Attachment{d, body.n})
}

func (s *Server) attachmentTooLarge() error {
	return fmt.Errorf("an attachment has at most %d bytes here; keep larger files in the model's repository and give their address: %w", s.MaxAttachmentBytes, registry.ErrTooLarge)
}

// counted counts what a client sent and remembers whether it broke off.
type counted struct {
	io.Reader
	n   int64
	err error
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// attachmentHeaders keep an attachment from doing anything when a browser opens it.
var attachmentHeaders = map[string]string{
	echo.HeaderContentSecurityPolicy: "default-src 'none'; sandbox",
	echo.HeaderXContentTypeOptions:   "nosniff",
	echo.HeaderReferrerPolicy:        "no-referrer",
	echo.HeaderContentDisposition:    "attachment", // without a name: the page's link has one
	echo.HeaderVary:                  "Authorization",
	// A digest never changes what it names, but a right to read it may be taken away.
	echo.HeaderCacheControl: "private, max-age=300",
}

// pictures are the media types that an attachment is served with; of all others a browser learns nothing. None of them is active content.
var pictures = []string{"image/png", "image/jpeg", "image/webp"}

func (s *Server) getAttachment(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	d, err := attachment(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if _, err := s.Index.BlobSize(ctx, m.ID, d.String()); err != nil {
		return err
	}
	if change, err := s.Index.Withdrawn(ctx, m.ID, d); err != nil {
		return err
	} else if change != nil {
		return &registry.RevokedError{Model: m.Name, Change: *change}
	}
	content, err := s.Content.Open(ctx, d)
	if err != nil {
		return err
	}
	defer content.Close()
	head := make([]byte, 512) // as much as DetectContentType looks at
	n, err := content.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	header := c.Response().Header()
	for key, value := range attachmentHeaders {
		header.Set(key, value)
	}
	kind := http.DetectContentType(head[:n])
	if !slices.Contains(pictures, kind) {
		kind = echo.MIMEOctetStream
	}
	header.Set(echo.HeaderContentType, kind)
	header.Set("ETag", strconv.Quote(d.String()))
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}
