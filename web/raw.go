package web

import (
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
)

// rawHeaders keep a file of a repository from doing anything when a browser opens it.
var rawHeaders = map[string]string{
	echo.HeaderContentSecurityPolicy: "default-src 'none'; style-src 'unsafe-inline'; sandbox",
	echo.HeaderXContentTypeOptions:   "nosniff",
	echo.HeaderReferrerPolicy:        "no-referrer",
	echo.HeaderVary:                  "Authorization",
	// A commit never changes, but a right to read it may be taken away.
	echo.HeaderCacheControl: "private, max-age=300",
}

// shown are the kinds of files that a browser shows; it saves all others.
var shown = map[string]string{
	".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
	".avif": "image/avif", ".svg": "image/svg+xml",
	".md": plainText, ".txt": plainText, ".json": plainText, ".yaml": plainText, ".yml": plainText, ".py": plainText,
	".toml": plainText, ".cfg": plainText, ".csv": plainText, ".sh": plainText,
}

const plainText = "text/plain; charset=utf-8"

// raw serves a file of a commit, so that a card can show its pictures. A file of Git LFS is
// served with its content.
func (p *Pages) raw(c echo.Context) error {
	m, err := p.read(c)
	if err != nil {
		return err
	}
	commit, err := registry.ParseObjectID(c.Param("commit"))
	if err != nil {
		return err
	}
	name := c.Param("*")
	if c.Request().URL.RawPath != "" {
		if name, err = url.PathUnescape(name); err != nil {
			return registry.Invalid("path", "the path is not percent-encoded as it should be")
		}
	}
	ctx := c.Request().Context()
	file, size, err := p.Files.OpenFile(ctx, m.Name, commit, name)
	if err != nil {
		return err
	}
	defer file.Close()
	for key, value := range rawHeaders {
		c.Response().Header().Set(key, value)
	}
	mediaType, ok := shown[strings.ToLower(path.Ext(name))]
	if !ok {
		mediaType = echo.MIMEOctetStream
		c.Response().Header().Set(echo.HeaderContentDisposition, mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(name)}))
	}
	c.Response().Header().Set(echo.HeaderContentType, mediaType)
	if size > registry.MaxPointerLen {
		_, err := io.Copy(c.Response(), file)
		return err
	}
	text, err := io.ReadAll(io.LimitReader(file, registry.MaxPointerLen))
	if err != nil {
		return err
	}
	pointer, ok := registry.ParsePointer(text)
	if !ok {
		_, err := c.Response().Write(text)
		return err
	}
	if _, err := p.Index.BlobSize(ctx, m.ID, string(pointer.Digest)); err != nil {
		return err
	}
	blob, err := p.Blobs.Open(ctx, pointer.Digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	http.ServeContent(sender{c.Response()}, c.Request(), "", time.Time{}, blob)
	return nil
}

// sender hands a file through to the connection, so that the kernel sends it.
type sender struct{ *echo.Response }

// ReadFrom implements io.ReaderFrom.
func (s sender) ReadFrom(r io.Reader) (int64, error) {
	if !s.Committed {
		s.WriteHeader(http.StatusOK)
	}
	n, err := io.Copy(s.Writer, r)
	s.Size += n
	return n, err
}

var _ io.ReaderFrom = sender{}
