// Package web shows the registry to people: the models, each with its card, versions and
// environments, and each version with its files, evaluations, gates and lineage.
//
// Pages are rendered on the server and work without JavaScript; they send none. What a caller
// may not read is left out by the same rules as in the API, and a page that does not exist
// reads the same as one that may not be seen. Content that comes from a repository is
// sanitised, loads nothing from other sites, and is served raw only in a sandbox.
package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/search"
)

// Index answers queries.
type Index interface {
	modelQueries
	versionQueries
	environmentQueries
	Deliveries(ctx context.Context, id access.Identity, f registry.DeliveryFilter, at registry.Page) ([]registry.Delivery, string, error)
}

type modelQueries interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
	Models(ctx context.Context, id access.Identity, at registry.Page) ([]registry.Model, string, error)
	Refs(ctx context.Context, modelID string) (map[string]registry.AnnouncedRef, error)
	BlobSize(ctx context.Context, modelID, digest string) (int64, error)
	Usage(ctx context.Context, modelID string) (registry.Usage, error)
	Lineage(ctx context.Context, id access.Identity, w registry.Walk) (registry.Graph, error)
	Shared(ctx context.Context, id access.Identity, modelID string, tag registry.Tag, at registry.Page) ([]registry.SharedFile, string, error)
	Search(ctx context.Context, id access.Identity, q search.Query, at registry.Page) ([]search.Hit, string, error)
}

type versionQueries interface {
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	Versions(ctx context.Context, modelID string) ([]registry.VersionRecord, error)
	// NewestEvaluations are the last of a commit in the order of recording, and how many there are.
	NewestEvaluations(ctx context.Context, modelID string, commit registry.ObjectID, limit int) ([]registry.Evaluation, int, error)
	// Headline is the evaluation that speaks for a commit, or nil.
	Headline(ctx context.Context, modelID string, commit registry.ObjectID) (*registry.Evaluation, error)
	CountEvaluations(ctx context.Context, modelID string, commit registry.ObjectID) (int, error)
}

type environmentQueries interface {
	Policy(ctx context.Context, modelID string) (registry.PolicyState, error)
	Environment(ctx context.Context, modelID string, env registry.EnvironmentName) (registry.EnvironmentState, error)
	Environments(ctx context.Context, modelID string) ([]registry.EnvironmentState, error)
	History(ctx context.Context, modelID string, env registry.EnvironmentName, at registry.Page) ([]registry.EnvironmentChange, string, error)
}

// Judge decides what the gates of each environment say of versions now. Its answer costs no more for many than for one: of what costs too much
// it says so.
type Judge interface {
	VerdictsOf(ctx context.Context, m registry.Model, versions []registry.VersionRecord) ([][]registry.Verdict, error)
}

// Files reads what repositories hold.
type Files interface {
	// OpenFile is the content of a file of a commit and its size in bytes. What is no file, or
	// is not there, is registry.ErrNotFound.
	OpenFile(ctx context.Context, model registry.ModelName, commit registry.ObjectID, path string) (io.ReadCloser, int64, error)
}

// Blobs is the store of content.
type Blobs interface {
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
}

// Config is what the pages work with. All fields are needed.
type Config struct {
	Index     Index
	Judge     Judge
	Files     Files
	Blobs     Blobs
	Comparer  Comparer
	Revisions Revisions
	Identity  func(echo.Context) access.Identity // of the caller
	PublicURL *url.URL
	Version   string // of the program
}

// Pages are the web pages.
type Pages struct {
	Config
	templates  map[string]*template.Template
	stylesheet asset
	icon       asset
	markdown   *markdown
}

//go:embed templates
var templateFiles embed.FS

//go:embed assets
var assetFiles embed.FS

// New makes the pages.
func New(c Config) (*Pages, error) {
	p := &Pages{Config: c, templates: map[string]*template.Template{}, markdown: newMarkdown()}
	for _, name := range []string{"index", "search", "model", "version", "compare", "lineage", "error"} {
		t, err := template.New("layout.html").Funcs(functions).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html", "templates/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("template %s: %w", name, err)
		}
		p.templates[name] = t
	}
	code, err := p.markdown.stylesheet()
	if err != nil {
		return nil, err
	}
	if p.stylesheet, err = newAsset("herdbook.css", "text/css; charset=utf-8", code); err != nil {
		return nil, err
	}
	p.icon, err = newAsset("herdbook.svg", "image/svg+xml", nil)
	return p, err
}

// Register adds the routes.
func (p *Pages) Register(e *echo.Echo) {
	for path, handler := range map[string]echo.HandlerFunc{
		"/":                                p.index,
		searchPath:                         p.search,
		"/login":                           p.logIn,
		"/favicon.ico":                     p.icon.serve,
		p.stylesheet.path:                  p.stylesheet.serve,
		p.icon.path:                        p.icon.serve,
		"/:ns/:name":                       p.model,
		"/:ns/:name/versions/:tag":         p.version,
		"/:ns/:name/versions/:tag/lineage": p.lineage,
		"/:ns/:name/compare/:revs":         p.compare,
		"/:ns/:name/raw/:commit/*":         p.raw,
	} {
		e.Match([]string{http.MethodGet, http.MethodHead}, path, handler)
	}
}

// asset is a file that belongs to the pages. Its address holds a part of its SHA-256, so that
// browsers keep it for ever and still never use an old one.
type asset struct {
	path, mediaType string
	content         []byte
}

func newAsset(name, mediaType string, more []byte) (asset, error) {
	content, err := assetFiles.ReadFile("assets/" + name)
	if err != nil {
		return asset{}, err
	}
	content = append(content, more...)
	sum := sha256.Sum256(content)
	ext := path.Ext(name)
	return asset{"/assets/" + name[:len(name)-len(ext)] + "." + hex.EncodeToString(sum[:6]) + ext, mediaType, content}, nil
}

func (a asset) serve(c echo.Context) error {
	h := c.Response().Header()
	h.Set(echo.HeaderCacheControl, "public, max-age=31536000, immutable")
	if c.Path() != a.path {
		h.Set(echo.HeaderCacheControl, "public, max-age=86400")
	}
	h.Set(echo.HeaderXContentTypeOptions, "nosniff")
	return c.Blob(http.StatusOK, a.mediaType, a.content)
}

// page is what the layout shows around each page.
type page struct {
	Title      string
	Stylesheet string
	Icon       string
	Version    string
	SignedInAs string // empty for an anonymous caller
	Query      string // that was asked, on the page that answers it
	Data       any
}

// pageHeaders let a page load nothing but our own style and pictures.
// Source: Content Security Policy Level 3, W3C.
var pageHeaders = map[string]string{
	echo.HeaderContentSecurityPolicy: "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
	echo.HeaderXContentTypeOptions:   "nosniff",
	echo.HeaderReferrerPolicy:        "same-origin",
	echo.HeaderCacheControl:          "private, no-cache",
	echo.HeaderVary:                  "Authorization",
}

func (p *Pages) show(c echo.Context, status int, name, title string, data any) error {
	view := page{Title: title, Stylesheet: p.stylesheet.path, Icon: p.icon.path, Version: p.Version, Data: data}
	if id := p.Identity(c); id.Authenticated() {
		view.SignedInAs = id.Name
	}
	if c.Path() == searchPath {
		view.Query = c.QueryParam("q")
	}
	// Into memory first: an error in a template must not leave half a page. Pages are bounded.
	var out bytes.Buffer
	if err := p.templates[name].Execute(&out, view); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	for key, value := range pageHeaders {
		c.Response().Header().Set(key, value)
	}
	return c.HTMLBlob(status, out.Bytes())
}

// Error shows an error to a person.
func (p *Pages) Error(c echo.Context, status int, title, detail string) error {
	return p.show(c, status, "error", title, struct {
		Status        int
		Title, Detail string
		MayLogIn      bool
	}{status, title, detail, status == http.StatusUnauthorized || status == http.StatusNotFound && !p.Identity(c).Authenticated()})
}

// logIn asks for a token by way of the browser's own dialogue, which keeps it until the
// browser ends, and goes on to the start. Source: RFC 7617.
func (p *Pages) logIn(c echo.Context) error {
	if !p.Identity(c).Authenticated() {
		return registry.ErrUnauthenticated
	}
	return c.Redirect(http.StatusSeeOther, "/")
}

// read is the model of the path, when the caller may read it.
func (p *Pages) read(c echo.Context) (registry.Model, error) {
	name, err := registry.ParseModelName(c.Param("ns") + "/" + c.Param("name"))
	if err != nil {
		return registry.Model{}, err
	}
	return p.readNamed(c, name)
}

// readNamed is the model of that name, when the caller may read it.
func (p *Pages) readNamed(c echo.Context, name registry.ModelName) (registry.Model, error) {
	m, err := p.Index.ModelByName(c.Request().Context(), name)
	known := &m
	switch {
	case isNotFound(err):
		known = nil
	case err != nil:
		return m, err
	}
	if err := access.Authorize(p.Identity(c), access.Read, known); err != nil {
		return m, fmt.Errorf("model %s: %w", name, err)
	}
	return m, nil
}

// moment is a time as pages show it; the exact one is in the element's title.
func moment(t time.Time) string { return t.UTC().Format("2 Jan 2006, 15:04") }
