// Package oci serves the artifacts and images of versions by the OCI distribution protocol, at
// /v2/.
//
// A model NAMESPACE/NAME has two repositories: that name holds the ModelPack artifacts, and
// NAMESPACE/NAME/image the runnable images. What is served by digest never changes; a tag may
// move when it is an environment's. The layers of an image are composed while they are read.
// So far clients can pull; what they push is refused.
//
// A client is always asked who it is, also where strangers may read: those built on
// containers/image send no credentials to a registry that does not ask at once. Who has none is
// given a token that says so.
// Source: OCI distribution specification v1.1.
package oci

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
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/modelpack"
	"github.com/herdbook/herdbook/registry/problem"
)

// Index tells what the repositories hold.
type Index interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
	Models(ctx context.Context, id access.Identity, at registry.Page) ([]registry.Model, string, error)
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	artifacts
}

type artifacts interface {
	Manifest(ctx context.Context, repository string, d digest.Digest) (registry.StoredManifest, error)
	TagDigest(ctx context.Context, repository, tag string) (digest.Digest, error)
	Tags(ctx context.Context, repository, last string, limit int) ([]string, bool, error)
	Referrers(ctx context.Context, repository string, d digest.Digest) ([]registry.StoredManifest, error)
	BlobSize(ctx context.Context, modelID, digest string) (int64, error)
	Layer(ctx context.Context, modelID string, d digest.Digest) (registry.ImageLayer, error)
}

// Blobs is the store of the content.
type Blobs interface {
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
}

// Config is what a Handler works with.
type Config struct {
	Index     Index
	Blobs     Blobs
	PublicURL *url.URL
	Log       *slog.Logger
}

// Handler is the door.
type Handler struct{ Config }

// New assembles a Handler.
func New(c Config) *Handler { return &Handler{c} }

// Register adds the routes. A repository's name has slashes in it, so that one handler takes
// the path apart.
func (h *Handler) Register(e *echo.Echo) {
	for _, path := range []string{"/v2", "/v2/"} {
		e.Match([]string{http.MethodGet, http.MethodHead}, path, h.door(h.base))
	}
	e.Match([]string{http.MethodGet, http.MethodHead}, "/v2/token", h.door(h.token))
	e.Match([]string{http.MethodGet, http.MethodHead}, "/v2/*", h.door(h.pull))
	e.Match([]string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, "/v2/*", h.door(h.refuseWrite))
}

// codeError is an error with a code of the specification.
// Source: distribution specification v1.1, "Error Codes".
type codeError struct {
	code   string
	status int
	detail string
}

func (e *codeError) Error() string { return e.detail }

func coded(status int, code, format string, args ...any) error {
	return &codeError{code, status, fmt.Sprintf(format, args...)}
}

type errorBody struct {
	Errors []errorItem `json:"errors"`
}

type errorItem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (h *Handler) door(handler echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		c.Response().Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		// Who reads nothing would keep a file open.
		defer door.Patient(c, door.Patience)()
		err := handler(c)
		if err == nil || c.Response().Committed {
			return err
		}
		return h.answer(c, err)
	}
}

// Fail implements api.Failer.
func (h *Handler) Fail(c echo.Context, err error) bool {
	return strings.HasPrefix(c.Path(), "/v2") && h.answer(c, err) == nil
}

func (h *Handler) answer(c echo.Context, err error) error {
	var fault *codeError
	if !errors.As(err, &fault) {
		fault = h.classed(c, err)
	}
	if fault.status == http.StatusUnauthorized {
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, h.challenge(c))
	}
	return c.JSON(fault.status, errorBody{[]errorItem{{fault.code, fault.detail}}})
}

// classed gives an error the code of its class. To a caller without credentials a repository
// that is not there looks like one that it may not read.
func (h *Handler) classed(c echo.Context, err error) *codeError {
	class := problem.Of(err)
	if class == problem.NotFound && !door.Identity(c).Authenticated() {
		class, err = problem.Unauthenticated, registry.ErrUnauthenticated
	}
	if class == problem.Internal {
		h.Log.ErrorContext(c.Request().Context(), "OCI request failed", "path", c.Request().URL.Path, "error", err.Error())
	}
	code := map[problem.Class]string{
		problem.Unauthenticated: "UNAUTHORIZED", problem.Forbidden: "DENIED", problem.NotFound: "NAME_UNKNOWN",
		problem.Invalid: "NAME_INVALID", problem.TooLarge: "SIZE_INVALID", problem.NotReady: "MANIFEST_UNKNOWN",
	}[class]
	if code == "" {
		code = "UNKNOWN"
	}
	return &codeError{code, class.Status(), problem.Detail(err)}
}

// challenge says where to get a token. The place itself asks for the password.
// Source: distribution project, docs/spec/auth/token.md, "How to authenticate".
func (h *Handler) challenge(c echo.Context) string {
	if c.Path() == "/v2/token" {
		return `Basic realm="herdbook", charset="UTF-8"`
	}
	public := door.PublicURL(c, h.PublicURL)
	return fmt.Sprintf("Bearer realm=%q,service=%q", public.JoinPath("v2", "token"), public.Host)
}

func (h *Handler) base(c echo.Context) error {
	id := door.Identity(c)
	if id.Role == access.Nobody || (!id.Authenticated() && c.Request().Header.Get(echo.HeaderAuthorization) == "") {
		return registry.ErrUnauthenticated
	}
	return c.JSON(http.StatusOK, struct{}{})
}

// token gives a client the token back that it sent as its password: that is what it shows from
// then on. Source: distribution project, docs/spec/auth/token.md, "Requesting a Token".
func (h *Handler) token(c echo.Context) error {
	if door.Identity(c).Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	c.Response().Header().Set(echo.HeaderCacheControl, "no-store")
	token := auth.TokenOf(c.Request())
	return c.JSON(http.StatusOK, struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"` // by its name in OAuth 2
		ExpiresIn   int    `json:"expires_in"`   // seconds, after which the client asks again
	}{token, token, 300})
}

func (h *Handler) refuseWrite(c echo.Context) error {
	c.Response().Header().Set(echo.HeaderAllow, "GET, HEAD")
	return coded(http.StatusMethodNotAllowed, "UNSUPPORTED", "versions are published with git push; this registry takes no uploads yet")
}

// repository is one that a model stands behind.
type repository struct {
	model registry.Model
	name  string // as the client spells it
	key   string // in the index
	image bool
}

// pull takes the path apart: NAME/manifests/REF, NAME/blobs/DIGEST, NAME/tags/list,
// NAME/referrers/DIGEST, _catalog.
func (h *Handler) pull(c echo.Context) error {
	path := c.Param("*")
	if path == "_catalog" {
		return h.catalog(c)
	}
	if strings.Contains(path, "%") {
		return coded(http.StatusNotFound, "NAME_INVALID", "a repository's name has no escaped characters")
	}
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok {
		return h.in(c, name, func(r repository) error { return h.tags(c, r) })
	}
	rest, last, ok := cutLast(path)
	if ok {
		name, kind, _ := cutLast(rest)
		switch kind {
		case "manifests":
			return h.in(c, name, func(r repository) error { return h.manifest(c, r, last) })
		case "blobs":
			return h.in(c, name, func(r repository) error { return h.blob(c, r, last) })
		case "referrers":
			return h.in(c, name, func(r repository) error { return h.referrers(c, r, last) })
		}
	}
	return coded(http.StatusNotFound, "UNSUPPORTED", "there is no such address in the distribution protocol")
}

// cutLast splits a path before its last part.
func cutLast(path string) (before, last string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// in finds the repository and asks for the right to read it.
func (h *Handler) in(c echo.Context, name string, do func(repository) error) error {
	r := repository{name: name}
	modelName := name
	if parent, last, _ := cutLast(name); last == "image" && strings.Contains(parent, "/") {
		modelName, r.image = parent, true
	}
	parsed, err := registry.ParseModelName(modelName)
	if err != nil {
		return coded(http.StatusNotFound, "NAME_UNKNOWN", "there is no repository %q", name)
	}
	if r.model, err = door.Authorized(c, h.Index, parsed, access.Read); err != nil {
		return err
	}
	r.key = r.model.ID
	if r.image {
		r.key = registry.ImageRepository(r.model.ID)
	}
	return do(r)
}

func (h *Handler) manifest(c echo.Context, r repository, ref string) error {
	ctx := c.Request().Context()
	d := digest.Digest(ref)
	byTag := !strings.Contains(ref, ":")
	if byTag {
		found, err := h.Index.TagDigest(ctx, r.key, ref)
		if errors.Is(err, registry.ErrNotFound) {
			return h.noTag(ctx, r, ref)
		}
		if err != nil {
			return err
		}
		d = found
	} else if err := checkDigest(d); err != nil {
		return err
	}
	m, err := h.Index.Manifest(ctx, r.key, d)
	if errors.Is(err, registry.ErrNotFound) {
		return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no manifest %s", r.name, d)
	}
	if err != nil {
		return err
	}
	content, err := h.Blobs.Open(ctx, m.Digest)
	if err != nil {
		return err
	}
	defer content.Close()
	caching(c, r.model, m.Digest, byTag)
	c.Response().Header().Set(echo.HeaderContentType, m.MediaType)
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}

// noTag says why there is no such tag: the version's image may just not be made yet.
func (h *Handler) noTag(ctx context.Context, r repository, ref string) error {
	if tag, err := registry.ParseTag(ref); err == nil && r.image {
		v, err := h.Index.Version(ctx, r.model.ID, tag)
		switch {
		case err == nil && v.Image.State == registry.ImageBuilding:
			return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "the image of %s %s is being made; try again in a moment", r.model.Name, tag)
		case err == nil && v.Image.State == registry.ImageFailed:
			return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s %s has no image: %s", r.model.Name, tag, v.Image.Error)
		}
	}
	return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no tag %q", r.name, ref)
}

func checkDigest(d digest.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return coded(http.StatusBadRequest, "DIGEST_INVALID", "a digest is sha256: and 64 lower-case hex digits")
	}
	return nil
}

// caching says how long an answer may be kept: what a digest names for ever, what a tag names
// not at all without asking again. What not everybody may read is for the caller's own cache.
func caching(c echo.Context, m registry.Model, d digest.Digest, byTag bool) {
	header := c.Response().Header()
	header.Set("Docker-Content-Digest", d.String())
	header.Set("ETag", strconv.Quote(d.String()))
	header.Set("X-Content-Type-Options", "nosniff")
	scope := "public"
	if m.Visibility != registry.Public {
		scope = "private"
	}
	if byTag {
		header.Set(echo.HeaderCacheControl, "no-cache")
		return
	}
	header.Set(echo.HeaderCacheControl, scope+", max-age=31536000, immutable")
}

func (h *Handler) blob(c echo.Context, r repository, ref string) error {
	d := digest.Digest(ref)
	if err := checkDigest(d); err != nil {
		return err
	}
	ctx := c.Request().Context()
	content, err := h.content(ctx, r, d)
	if errors.Is(err, registry.ErrNotFound) {
		return coded(http.StatusNotFound, "BLOB_UNKNOWN", "%s has no blob %s", r.name, d)
	}
	if err != nil {
		return err
	}
	defer content.Close()
	caching(c, r.model, d, false)
	c.Response().Header().Set(echo.HeaderContentType, "application/octet-stream")
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}

// content opens a blob that the model owns, or composes a layer of one of its images.
func (h *Handler) content(ctx context.Context, r repository, d digest.Digest) (io.ReadSeekCloser, error) {
	_, err := h.Index.BlobSize(ctx, r.model.ID, d.String())
	if err == nil {
		return h.Blobs.Open(ctx, d)
	}
	if !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	layer, err := h.Index.Layer(ctx, r.model.ID, d)
	if err != nil {
		return nil, err
	}
	return modelpack.OpenLayer(layer, func(d digest.Digest) (io.ReadSeekCloser, error) { return h.Blobs.Open(ctx, d) })
}

// maxListed is the longest list of tags or repositories in one answer.
const maxListed = 1000

// listParams reads "n" and "last". Source: distribution specification v1.1, "Listing Tags".
func listParams(c echo.Context) (n int, last string, err error) {
	n, last = maxListed, c.QueryParam("last")
	if text := c.QueryParam("n"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 0 {
			return 0, "", coded(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n is a whole number of 0 or more")
		}
	}
	return min(n, maxListed), last, nil
}

func linkNext(c echo.Context, n int, last string) {
	q := url.Values{"n": {strconv.Itoa(n)}, "last": {last}}
	c.Response().Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, c.Request().URL.Path, q.Encode()))
}

func (h *Handler) tags(c echo.Context, r repository) error {
	n, last, err := listParams(c)
	if err != nil {
		return err
	}
	tags, more, err := h.Index.Tags(c.Request().Context(), r.key, last, n)
	if err != nil {
		return err
	}
	if more && len(tags) > 0 {
		linkNext(c, n, tags[len(tags)-1])
	}
	return c.JSON(http.StatusOK, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{r.name, tags})
}

func (h *Handler) referrers(c echo.Context, r repository, ref string) error {
	d := digest.Digest(ref)
	if err := checkDigest(d); err != nil {
		return err
	}
	found, err := h.Index.Referrers(c.Request().Context(), r.key, d)
	if err != nil {
		return err
	}
	wanted := c.QueryParam("artifactType")
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	index.SchemaVersion = 2
	for _, m := range found {
		if wanted != "" && m.ArtifactType != wanted {
			continue
		}
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: m.MediaType, Digest: m.Digest, Size: m.SizeBytes, ArtifactType: m.ArtifactType, Annotations: m.Annotations,
		})
	}
	if wanted != "" {
		c.Response().Header().Set("OCI-Filters-Applied", "artifactType")
	}
	c.Response().Header().Set(echo.HeaderContentType, v1.MediaTypeImageIndex)
	c.Response().WriteHeader(http.StatusOK)
	return c.Echo().JSONSerializer.Serialize(c, index, "")
}

// catalog lists the repositories that the caller may read.
func (h *Handler) catalog(c echo.Context) error {
	if door.Identity(c).Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	n, last, err := listParams(c)
	if err != nil {
		return err
	}
	names, err := h.repositories(c)
	if err != nil {
		return err
	}
	// "a/b/image" sorts behind "a/b-c", so that the order is that of all names, not of the models.
	slices.Sort(names)
	start, found := slices.BinarySearch(names, last)
	if found {
		start++
	}
	names = names[start:]
	if len(names) > n {
		names = names[:n]
		if n > 0 {
			linkNext(c, n, names[n-1])
		}
	}
	return c.JSON(http.StatusOK, struct {
		Repositories []string `json:"repositories"`
	}{names})
}

// repositories are the names of all repositories that the caller may read.
func (h *Handler) repositories(c echo.Context) ([]string, error) {
	names := []string{}
	for at := (registry.Page{}); ; {
		models, next, err := h.Index.Models(c.Request().Context(), door.Identity(c), at)
		if err != nil {
			return nil, err
		}
		for _, m := range models {
			names = append(names, m.Name.String(), m.Name.String()+"/image")
		}
		if next == "" {
			return names, nil
		}
		at.Cursor = next
	}
}
