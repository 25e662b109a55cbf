// Package api answers over HTTP: it lists all routes of the server, speaks the JSON API and
// serves health and metrics. The other protocols are doors of their own, in the packages below
// this one.
//
// Answers are JSON with snake_case names and RFC 3339 times in UTC; lists are {"items": [...]};
// errors are application/problem+json (RFC 9457). Every handler asks for the caller's right
// first, so that what does not exist and what may not be seen get the same answer.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/registry/search"
)

// Index answers queries.
type Index interface {
	modelQueries
	versionQueries
	environmentQueries
	eventQueries
	tokenQueries
	usageQueries
}

type modelQueries interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
	Models(ctx context.Context, id access.Identity, at registry.Page) ([]registry.Model, string, error)
	Refs(ctx context.Context, modelID string) (map[string]registry.AnnouncedRef, error)
	BlobSize(ctx context.Context, modelID, digest string) (int64, error)
	Lineage(ctx context.Context, id access.Identity, w registry.Walk) (registry.Graph, error)
	Path(ctx context.Context, id access.Identity, from, to string) (registry.Path, error)
	LineageDiff(ctx context.Context, id access.Identity, a, b string, at registry.Page) ([]registry.Related, string, error)
	Shared(ctx context.Context, id access.Identity, modelID string, tag registry.Tag, at registry.Page) ([]registry.SharedFile, string, error)
	Impact(ctx context.Context, id access.Identity, of registry.Concern, at registry.Page) (registry.Impact, error)
	Search(ctx context.Context, id access.Identity, q search.Query, at registry.Page) ([]search.Hit, string, error)
}

type versionQueries interface {
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	Versions(ctx context.Context, modelID string) ([]registry.VersionRecord, error)
	VersionsAt(ctx context.Context, modelID string, commit registry.ObjectID) ([]registry.VersionRecord, error)
	Withdrawn(ctx context.Context, modelID string, d digest.Digest) (*registry.StateChange, error)
	StateHistory(ctx context.Context, modelID string, tag registry.Tag) ([]registry.StateChange, error)
	// Headline is the evaluation that speaks for a commit, or nil.
	Headline(ctx context.Context, modelID string, commit registry.ObjectID) (*registry.Evaluation, error)
	EvaluationsPage(ctx context.Context, modelID string, commit registry.ObjectID, at registry.Page) ([]registry.Evaluation, string, error)
}

type environmentQueries interface {
	Policy(ctx context.Context, modelID string) (registry.PolicyState, error)
	Environment(ctx context.Context, modelID string, env registry.EnvironmentName) (registry.EnvironmentState, error)
	Environments(ctx context.Context, modelID string) ([]registry.EnvironmentState, error)
	EnvironmentAt(ctx context.Context, modelID string, env registry.EnvironmentName, at time.Time) (*registry.EnvironmentChange, error)
	History(ctx context.Context, modelID string, env registry.EnvironmentName, at registry.Page) ([]registry.EnvironmentChange, string, error)
}

type eventQueries interface {
	Events(ctx context.Context, id access.Identity, after uint64, limit int) ([]registry.Event, error)
	Deliveries(ctx context.Context, id access.Identity, f registry.DeliveryFilter, at registry.Page) ([]registry.Delivery, string, error)
	Delivery(ctx context.Context, sink, eventID string) (registry.Delivery, error)
}

type usageQueries interface {
	AllModels(ctx context.Context) ([]registry.Model, error)
	Usage(ctx context.Context, modelID string) (registry.Usage, error)
	Usages(ctx context.Context) (map[string]registry.Usage, error)
	Repositories(ctx context.Context) ([]registry.Repository, error)
	ExclusiveBytes(ctx context.Context, modelID string) (int64, error)
}

type tokenQueries interface {
	auth.Tokens
	Tokens(ctx context.Context, at registry.Page) ([]registry.Token, string, error)
}

// Commits tells of repositories.
type Commits interface {
	HasCommit(ctx context.Context, name registry.ModelName, id registry.ObjectID) (bool, error)
	// DiskUsage is what the repository takes on disk, in bytes.
	DiskUsage(ctx context.Context, name registry.ModelName) (int64, error)
}

// Store tells of the store of content.
type Store interface {
	// Usage is the number and the size of all blobs, each counted once.
	Usage(ctx context.Context) (count, bytes int64, err error)
}

// Redeliverer sends an event to a sink once more.
type Redeliverer interface {
	Redeliver(ctx context.Context, actor, sink, eventID string) error
}

// Door is another protocol: it adds its routes.
type Door interface{ Register(e *echo.Echo) }

// Failer is a door that says errors in its protocol's words also where they come up before its
// handlers are reached, such as a wrong token.
type Failer interface {
	// Fail answers, unless the request is not the door's or the error is not for clients.
	Fail(c echo.Context, err error) (answered bool)
}

// Pages are the web pages: routes, and errors as people read them.
type Pages interface {
	Door
	Error(c echo.Context, status int, title, detail string) error
}

// Config is what a Server works with.
type Config struct {
	Index     Index
	Lifecycle *lifecycle.Service
	Commits   Commits
	Store     Store
	Content   Content
	Sinks     Redeliverer
	Doors     []Door
	Pages     Pages // may be nil: then errors are always JSON
	Log       *slog.Logger
	Metrics   *prometheus.Registry
	Ready     func(context.Context) error // why the server is not ready, or nil

	PublicURL     *url.URL // where clients reach the server
	AnonymousRead bool
	NoAuth        bool

	// PositionKey hides how many events there are from who may not read all; 32 bytes, by default
	// other ones in each process.
	PositionKey []byte

	// MaxAttachmentBytes is the largest attachment; by default 64 MiB.
	MaxAttachmentBytes int64

	// Patience is how long a client may send nothing in the middle of a body; by default one
	// minute.
	Patience time.Duration
	Version  string
}

// DefaultMaxAttachmentBytes is the default of Config.MaxAttachmentBytes.
const DefaultMaxAttachmentBytes = 64 << 20

// Server answers requests.
type Server struct {
	Config
	echo      *echo.Echo
	auth      *auth.Authenticator
	metrics   requestMetrics
	positions positions
}

// New assembles a Server.
func New(c Config) *Server {
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	if c.MaxAttachmentBytes == 0 {
		c.MaxAttachmentBytes = DefaultMaxAttachmentBytes
	}
	s := &Server{Config: c, echo: echo.New(), metrics: newRequestMetrics(c.Metrics), positions: newPositions(c.PositionKey)}
	s.auth = &auth.Authenticator{Tokens: c.Index, AnonymousRead: c.AnonymousRead, NoAuth: c.NoAuth}
	s.echo.HideBanner, s.echo.HidePort = true, true
	s.echo.HTTPErrorHandler = s.fail
	s.echo.IPExtractor = echo.ExtractIPFromXFFHeader() // what a proxy in the same network says, and nobody else
	s.routes()
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.echo.ServeHTTP(w, r) }

// routes lists every address of the server, but those inside the other doors.
func (s *Server) routes() {
	e := s.echo
	read := []string{http.MethodGet, http.MethodHead}
	e.Use(s.requestID, s.observe, s.recover, s.patience, s.sameOrigin, s.identify)

	e.Match(read, "/healthz", s.health)
	e.Match(read, "/readyz", s.ready)
	e.Match(read, "/metrics", s.exposeMetrics)

	v1 := e.Group("/api/v1")
	v1.Match(read, "/schemas/:schema", s.getSchema)
	v1.Match(read, "/whoami", s.whoami)
	v1.Match(read, "/tokens", s.listTokens)
	v1.POST("/tokens", s.createToken)
	v1.DELETE("/tokens/:id", s.revokeToken)
	v1.Match(read, "/usage", s.getUsage)
	v1.Match(read, "/models", s.listModels)
	v1.POST("/models", s.createModel)
	v1.Match(read, "/impact", s.getImpact)
	v1.Match(read, "/search", s.search)
	v1.Match(read, "/events", s.listEvents)
	v1.Match(read, "/deliveries", s.listDeliveries)
	v1.POST("/deliveries/:sink/:event/redeliver", s.redeliver)

	m := v1.Group("/models/:ns/:name")
	m.Match(read, "", s.getModel)
	m.PATCH("", s.changeModel)
	m.DELETE("", s.deleteModel)
	m.Match(read, "/usage", s.getModelUsage)
	m.Match(read, "/versions", s.listVersions)
	m.Match(read, "/versions/:tag", s.getVersion)
	m.Match(read, "/versions/:tag/state", s.listStates)
	m.POST("/versions/:tag/state", s.setState)
	m.Match(read, "/evaluations/:rev", s.listEvaluations)
	m.POST("/evaluations/:rev", s.recordEvaluation)
	m.Match(read, "/attachments/:digest", s.getAttachment)
	m.PUT("/attachments/:digest", s.putAttachment)
	m.Match(read, "/gates/:rev", s.getGates)
	m.POST("/policy/check", s.tryPolicy)
	m.Match(read, "/environments", s.listEnvironments)
	m.Match(read, "/environments/:env", s.getEnvironment)
	m.Match(read, "/environments/:env/history", s.listHistory)
	m.POST("/environments/:env/promotions", s.promote)
	m.POST("/environments/:env/approvals", s.approve)
	m.POST("/environments/:env/rollback", s.rollBack)
	m.POST("/environments/:env/freeze", s.freeze)
	m.Match(read, "/lineage/:rev", s.getLineage)
	m.POST("/lineage/:rev", s.declareEdges)
	m.Match(read, "/lineage/:rev/path", s.getPath)
	m.Match(read, "/lineage/:rev/diff", s.diffLineage)
	m.Match(read, "/shared/:rev", s.listShared)
	m.Match(read, "/compare/:revs", s.compare)

	for _, d := range s.Doors {
		d.Register(e)
	}
	if s.Pages != nil {
		s.Pages.Register(e)
	}
}

// list is a page of anything.
type list[T any] struct {
	Items []T `json:"items"`
}

// answerList sends a page and says in a Link header where the next one is.
// Source: RFC 8288, section 3.
func answerList[T any](c echo.Context, items []T, next string) error {
	if next != "" {
		link(c, "cursor", next)
	}
	if items == nil {
		items = []T{}
	}
	return c.JSON(http.StatusOK, list[T]{items})
}

// link says where the next page is: at the same address, with another value of a parameter.
func link(c echo.Context, name, value string) {
	u := *c.Request().URL
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	c.Response().Header().Set("Link", "<"+u.RequestURI()+`>; rel="next"`)
}

// pageOf reads "limit" and "cursor".
func pageOf(c echo.Context) (registry.Page, error) {
	limit, err := intParam(c, "limit", registry.MaxPage)
	return registry.Page{Cursor: c.QueryParam("cursor"), Limit: limit}, err
}

// host is the part of the public address that artifact references begin with.
func (s *Server) host() string { return s.PublicURL.Host }

// page is the address of a page of the web site.
func (s *Server) page(parts ...string) string {
	return s.PublicURL.JoinPath(parts...).String()
}

// model is the model of the path, when the caller may do action to it.
func (s *Server) model(c echo.Context, action access.Action) (registry.Model, error) {
	return door.Model(c, s.Index, action)
}

// commit finds the commit that the parameter "rev" names.
func (s *Server) commit(c echo.Context, m registry.Model) (registry.ObjectID, error) {
	text, err := door.Param(c, "rev")
	if err != nil {
		return "", err
	}
	rev, err := registry.ParseRev(text)
	if err != nil {
		return "", err
	}
	return Resolver{s.Index, s.Commits}.Commit(c.Request().Context(), m, rev)
}

// wantsPage reports whether a person with a browser asked, and not for a part of the API.
func wantsPage(r *http.Request) bool {
	return !strings.HasPrefix(r.URL.Path, "/api/") && !strings.HasPrefix(r.URL.Path, "/v2/") &&
		r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
}
