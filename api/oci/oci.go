// Package oci serves the artifacts and images of versions by the OCI distribution protocol, at
// /v2/.
//
// A model NAMESPACE/NAME has two repositories: that name holds the ModelPack artifacts, and
// NAMESPACE/NAME/image the runnable images. What is served by digest never changes; a tag may
// move when it is an environment's. The layers of an image are composed while they are read.
// Clients push to any other name too, which needs no model, and to a model's repositories what does
// not take the place of what the server makes: signatures, attestations, tags of their own.
//
// A client is always asked who it is, also where strangers may read: those built on
// containers/image send no credentials to a registry that does not ask at once. Who has none is
// given a token that says so.
// Source: OCI distribution specification v1.1.
package oci

import (
	"context"
	"encoding/json"
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

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/modelpack"
	"github.com/herdbook/herdbook/registry/problem"
)

// Index tells what the repositories hold.
type Index interface {
	Models(ctx context.Context, id access.Identity, at registry.Page) ([]registry.Model, string, error)
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	artifacts
	tokens
}

type artifacts interface {
	Manifest(ctx context.Context, repository string, d digest.Digest) (registry.StoredManifest, error)
	TagDigest(ctx context.Context, repository, tag string) (digest.Digest, error)
	Tags(ctx context.Context, repository, last string, limit int) ([]string, bool, error)
	ReferrersPage(ctx context.Context, repository string, d digest.Digest, artifactType string, last digest.Digest, maxBytes int) ([]registry.StoredManifest, bool, error)
	BlobSize(ctx context.Context, modelID, digest string) (int64, error)
	Layer(ctx context.Context, modelID string, d digest.Digest) (registry.ImageLayer, error)
	Canonical(ctx context.Context, owner string, d digest.Digest) (digest.Digest, error)
	Repositories(ctx context.Context) ([]registry.Repository, error)
	// Withdrawn is why a model gives a digest to nobody, or nil.
	Withdrawn(ctx context.Context, modelID string, d digest.Digest) (*registry.StateChange, error)
}

// Blobs is the store of the content.
type Blobs interface {
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
}

// Config is what a Handler works with.
type Config struct {
	Index     Index
	Blobs     Blobs
	Uploads   Uploads
	Lifecycle Lifecycle
	Sessions  Sessions
	Tokens    Tokens // by default with another key in each process
	PublicURL *url.URL
	Log       *slog.Logger

	documents door.Documents // tests make its times short
}

// Handler is the door.
type Handler struct {
	Config
	uploads   door.Exclusive // by id
	ended     ended
	contents  contents
	documents *door.Documents
	long      few // long manifests that are looked into
	lists     few // of referrers, that are made
}

// New assembles a Handler.
func New(c Config) *Handler {
	c.Tokens = newTokens(c.Tokens)
	return &Handler{Config: c, documents: door.NewDocuments(c.documents), long: make(few, 1), lists: make(few, 4)}
}

// Register adds the routes. A repository's name has slashes in it, so that one handler takes
// the path apart.
func (h *Handler) Register(e *echo.Echo) {
	for _, path := range []string{"/v2", "/v2/"} {
		e.Match([]string{http.MethodGet, http.MethodHead}, path, h.door(h.base))
	}
	e.Match([]string{http.MethodGet, http.MethodHead}, "/v2/token", h.door(h.token))
	e.POST("/v2/token", h.door(h.exchange))
	e.Match([]string{http.MethodGet, http.MethodHead}, "/v2/*", h.door(h.pull))
	e.Match([]string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, "/v2/*", h.door(h.write))
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
		err := h.enter(c)
		if err == nil {
			err = handler(c)
		}
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
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, h.challenge(c, err))
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

func (h *Handler) base(c echo.Context) error {
	id := door.Identity(c)
	if id.Role == access.Nobody || (!id.Authenticated() && c.Request().Header.Get(echo.HeaderAuthorization) == "") {
		return registry.ErrUnauthenticated
	}
	return c.JSON(http.StatusOK, struct{}{})
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
		return h.in(c, name, func(r registry.OCIRepository) error { return h.tags(c, r) })
	}
	rest, last, ok := cutLast(path)
	if name, upload := strings.CutSuffix(rest, "/blobs/uploads"); upload && c.Request().Method == http.MethodGet {
		return h.status(c, name, last)
	}
	if ok {
		name, kind, _ := cutLast(rest)
		switch kind {
		case "manifests":
			return h.in(c, name, func(r registry.OCIRepository) error { return h.manifest(c, r, last) })
		case "blobs":
			return h.in(c, name, func(r registry.OCIRepository) error { return h.blob(c, r, last) })
		case "referrers":
			err := h.in(c, name, func(r registry.OCIRepository) error { return h.referrers(c, r, last) })
			if errors.Is(err, registry.ErrNotFound) && door.Identity(c).Authenticated() {
				// Nothing refers to what is not there, and that is no error.
				err = h.referrers(c, registry.OCIRepository{Name: name}, last)
			}
			return err
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
func (h *Handler) in(c echo.Context, name string, do func(registry.OCIRepository) error) error {
	r, err := h.repository(c, name, pull)
	if err != nil {
		return err
	}
	return do(r)
}

func (h *Handler) manifest(c echo.Context, r registry.OCIRepository, ref string) error {
	ctx := c.Request().Context()
	d := digest.Digest(ref)
	byTag := !strings.Contains(ref, ":")
	if byTag {
		found, err := h.Index.TagDigest(ctx, r.Key, ref)
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
	m, err := h.stored(ctx, r.Key, d)
	if r.Image && errors.Is(err, registry.ErrNotFound) {
		// The subject of an image is the version's artifact. Who copies the image follows it without leaving the repository.
		m, err = h.stored(ctx, r.OwnerID, d)
	}
	if errors.Is(err, registry.ErrNotFound) {
		return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no manifest %s", r.Name, d)
	}
	if err != nil {
		return err
	}
	if err := h.refused(ctx, r, m.Digest); err != nil {
		return err
	}
	content, err := h.openManifest(ctx, m)
	if err != nil {
		return err
	}
	defer content.Close()
	caching(c, r.Model, d, byTag)
	c.Response().Header().Set(echo.HeaderContentType, m.MediaType)
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}

// refused reports why nobody gets what a digest names: only revoked versions have it.
func (h *Handler) refused(ctx context.Context, r registry.OCIRepository, d digest.Digest) error {
	if r.OwnerID == "" {
		return nil
	}
	change, err := h.Index.Withdrawn(ctx, r.OwnerID, d)
	if err != nil || change == nil {
		return err
	}
	return &registry.RevokedError{Model: r.Model.Name, Change: *change}
}

// stored is the manifest that a repository knows by a digest.
func (h *Handler) stored(ctx context.Context, key string, d digest.Digest) (m registry.StoredManifest, err error) {
	of, err := h.Index.Canonical(ctx, key, d)
	if err == nil {
		m, err = h.Index.Manifest(ctx, key, of)
	}
	return m, err
}

// noTag says why there is no such tag: the version's image may just not be made yet.
func (h *Handler) noTag(ctx context.Context, r registry.OCIRepository, ref string) error {
	if tag, err := registry.ParseTag(ref); err == nil && r.Image {
		v, err := h.Index.Version(ctx, r.OwnerID, tag)
		switch {
		case err == nil && v.State == registry.Revoked && v.Changed != nil:
			return &registry.RevokedError{Model: r.Model.Name, Change: *v.Changed}
		case err == nil && v.Image.State == registry.ImageBuilding:
			return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "the image of %s %s is being made; try again in a moment", r.Model.Name, tag)
		case err == nil && v.Image.State == registry.ImageFailed:
			return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s %s has no image: %s", r.Model.Name, tag, v.Image.Error)
		}
	}
	return coded(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no tag %q", r.Name, ref)
}

func checkDigest(d digest.Digest) error {
	if err := registry.CheckDigest(d); err != nil {
		return coded(http.StatusBadRequest, "DIGEST_INVALID", "%s", problem.Detail(err))
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

func (h *Handler) blob(c echo.Context, r registry.OCIRepository, ref string) error {
	d := digest.Digest(ref)
	if err := checkDigest(d); err != nil {
		return err
	}
	ctx := c.Request().Context()
	content, err := h.content(ctx, r, d)
	if errors.Is(err, registry.ErrNotFound) {
		return coded(http.StatusNotFound, "BLOB_UNKNOWN", "%s has no blob %s", r.Name, d)
	}
	if err != nil {
		return err
	}
	defer content.Close()
	caching(c, r.Model, d, false)
	c.Response().Header().Set(echo.HeaderContentType, "application/octet-stream")
	http.ServeContent(door.Writer{Response: c.Response()}, c.Request(), "", time.Time{}, content)
	return nil
}

// content opens a blob that the repository owns, or composes a layer of an image of its model.
func (h *Handler) content(ctx context.Context, r registry.OCIRepository, d digest.Digest) (io.ReadSeekCloser, error) {
	of, _, err := h.blobOf(ctx, r, d)
	if err == nil {
		if err := h.refused(ctx, r, of); err != nil {
			return nil, err
		}
		return h.Blobs.Open(ctx, of)
	}
	if !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	if err := h.refused(ctx, r, d); err != nil {
		return nil, err
	}
	layer, err := h.Index.Layer(ctx, r.OwnerID, d)
	if err != nil {
		return nil, err
	}
	return modelpack.OpenLayer(layer, func(d digest.Digest) (io.ReadSeekCloser, error) { return h.Blobs.Open(ctx, d) })
}

// blobOf is what a repository owns by a digest: the SHA-256 and the size.
func (h *Handler) blobOf(ctx context.Context, r registry.OCIRepository, d digest.Digest) (of digest.Digest, size int64, err error) {
	if of, err = h.Index.Canonical(ctx, r.OwnerID, d); err == nil {
		size, err = h.Index.BlobSize(ctx, r.OwnerID, of.String())
	}
	return of, size, err
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

func (h *Handler) tags(c echo.Context, r registry.OCIRepository) error {
	n, last, err := listParams(c)
	if err != nil {
		return err
	}
	tags, more, err := h.Index.Tags(c.Request().Context(), r.Key, last, n)
	if err != nil {
		return err
	}
	if more && len(tags) > 0 {
		linkNext(c, n, tags[len(tags)-1])
	}
	return c.JSON(http.StatusOK, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{r.Name, tags})
}

// maxReferrersBytes is about how long a page of referrers is.
const maxReferrersBytes = 1 << 20

func (h *Handler) referrers(c echo.Context, r registry.OCIRepository, ref string) error {
	d := digest.Digest(ref)
	if err := checkDigest(d); err != nil {
		return err
	}
	wanted := c.QueryParam("artifactType")
	text, next, err := h.referrersPage(c.Request().Context(), r, d, wanted, digest.Digest(c.QueryParam("last")))
	if err != nil {
		return err
	}
	if next != "" {
		q := url.Values{"last": {next.String()}}
		if wanted != "" {
			q.Set("artifactType", wanted)
		}
		c.Response().Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, c.Request().URL.Path, q.Encode()))
	}
	if wanted != "" {
		c.Response().Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return c.Blob(http.StatusOK, v1.MediaTypeImageIndex, text)
}

// referrersPage is a page of a list of referrers, and behind which of them the next one begins, if there is one.
func (h *Handler) referrersPage(ctx context.Context, r registry.OCIRepository, d digest.Digest, artifactType string, last digest.Digest) (text []byte, next digest.Digest, err error) {
	leave, err := h.lists.enter(ctx)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	var found []registry.StoredManifest
	if r.Key != "" {
		var more bool
		if found, more, err = h.Index.ReferrersPage(ctx, r.Key, d, artifactType, last, maxReferrersBytes); err != nil {
			return nil, "", err
		}
		if more {
			next = found[len(found)-1].Digest
		}
	}
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	index.SchemaVersion = 2
	for _, m := range found {
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: m.MediaType, Digest: m.Digest, Size: m.SizeBytes, ArtifactType: m.ArtifactType, Annotations: m.Annotations,
		})
	}
	text, err = json.Marshal(index)
	return append(text, '\n'), next, err
}

// few lets a few at a time do what takes many times the memory of what it reads.
type few chan struct{}

func (f few) enter(ctx context.Context) (leave func(), err error) {
	select {
	case f <- struct{}{}:
		return func() { <-f }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// catalog lists the repositories that the caller may read.
func (h *Handler) catalog(c echo.Context) error {
	if door.Identity(c).Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	if _, err := h.reach(c, "", every); err != nil {
		return err
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
			break
		}
		at.Cursor = next
	}
	repositories, err := h.Index.Repositories(c.Request().Context())
	if err != nil {
		return nil, err
	}
	for _, r := range repositories {
		if access.CanRead(door.Identity(c), &registry.Model{ID: r.ID, Visibility: r.Visibility}) {
			names = append(names, r.Name)
		}
	}
	return names, nil
}
