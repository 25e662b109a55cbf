package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/oci"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage/index"
)

const (
	weights  = "weights of a model"
	mainPage = "/api/v1/models/acme/fraud"
)

// loop publishes two versions of a model with an environment that takes everything and one whose
// gate wants a metric.
func loop(s *apitest.Server, name string, visibility registry.Visibility) registry.Model {
	m := s.Model(name, visibility)
	s.Publish(m, "v1.0.0", map[string]string{"README.md": "# one", "model.onnx": weights})
	s.Publish(m, "v1.1.0", map[string]string{"README.md": "# two", "model.onnx": weights})
	s.Policy(m,
		registry.Environment{Name: registry.MustEnvironmentName("staging"), Promote: registry.PromoteManual},
		registry.Environment{
			Name: registry.MustEnvironmentName("production"), Promote: registry.PromoteManual,
			Gates: []registry.Gate{{Name: "good", Expr: "metrics.f1 >= 0.9"}},
		},
	)
	s.As("POST", "/api/v1/models/"+name+"/evaluations/v1.0.0", `{"dataset":{"name":"calls"},"metrics":{"f1":0.5}}`)
	s.As("POST", "/api/v1/models/"+name+"/environments/staging/promotions", `{"version":"v1.0.0"}`)
	return m
}

// notAboutOneModel are the routes whose answer does not depend on a model in the path.
var notAboutOneModel = []string{
	"/healthz", "/readyz", "/metrics", "/api/v1/whoami", "/api/v1/models", "/api/v1/search", "/api/v1/events", "/api/v1/deliveries",
	"/api/v1/deliveries/:sink/:event/redeliver", "/api/v1/tokens", "/api/v1/tokens/:id", "/api/v1/usage", "/api/v1/schemas/:schema", "/v2", "/v2/", "/v2/token",
}

// values of the parameters of routes, for a model that has all of them.
var values = map[string][]string{
	":ns": {"acme"}, ":name": {"NAME", "NAME.git"}, ":tag": {"v1.0.0", "v9.9.9"}, ":env": {"staging", "nowhere"},
	":rev": {"v1.0.0", "main", "env:staging", "branch%3Amain", string(apitest.CommitOf("v1.0.0"))},
	":oid": {digest.FromString(weights).Encoded()}, ":digest": {digest.FromString(weights).String(), "x"}, ":id": {"0123456789abcdef0123456789abcdef"}, ":revs": {"v1.0.0...v1.1.0", "branch%3Amain...env%3Astaging", "v1.0.0"},
}

// concrete fills the parameters of a route in every way; nil when one is not known.
func concrete(route string) []string {
	if route == "/v2/*" {
		var all []string
		for _, repository := range []string{"acme/NAME", "acme/NAME/image"} {
			for _, rest := range []string{
				"/manifests/v1.0.0", "/manifests/staging", "/manifests/" + digest.FromString("x").String(), "/blobs/" + digest.FromString(weights).String(),
				"/tags/list", "/referrers/" + digest.FromString("x").String(), "/blobs/uploads/", "/manifests/" + strings.Repeat("a", 200),
			} {
				all = append(all, "/v2/"+repository+rest)
			}
		}
		return all
	}
	all := []string{""}
	for _, part := range strings.Split(strings.TrimPrefix(route, "/"), "/") {
		choices, isParameter := values[part]
		if !isParameter {
			if strings.HasPrefix(part, ":") {
				return nil
			}
			choices = []string{strings.TrimSuffix(part, "*")}
		}
		var longer []string
		for _, head := range all {
			for _, choice := range choices {
				longer = append(longer, head+"/"+choice)
			}
		}
		all = longer
	}
	return all
}

// comparable is an answer without what differs from request to request.
func comparable(a apitest.Answer, name string) string {
	a.Header.Del("Date")
	id := a.Header.Get("X-Request-Id")
	a.Header.Del("X-Request-Id")
	var b strings.Builder
	fmt.Fprintln(&b, a.Status)
	for _, key := range slices.Sorted(maps.Keys(a.Header)) {
		fmt.Fprintf(&b, "%s: %s\n", key, strings.Join(a.Header[key], ", "))
	}
	return strings.NewReplacer(name, "NAME", id, "ID").Replace(b.String() + "\n" + a.Body)
}

func TestAbsentAndForbiddenLookAlike(t *testing.T) {
	for _, mayRead := range []bool{true, false} {
		t.Run(fmt.Sprintf("anonymous read %v", mayRead), func(t *testing.T) {
			s := apitest.Start(t, func(c *apitest.Config) { c.API.AnonymousRead = mayRead })
			loop(s, "acme/secret", registry.Private)
			if a := s.As("GET", "/api/v1/models/acme/secret/environments/staging", ""); !strings.Contains(a.Body, `"version":"v1.0.0"`) {
				t.Fatalf("the model was not seeded: %d %s", a.Status, a.Body)
			}
			for _, route := range s.API.Routes() {
				if slices.Contains(notAboutOneModel, route.Path) {
					continue
				}
				targets := concrete(route.Path)
				if len(targets) == 0 {
					t.Errorf("route %s %s has a parameter that this test does not know: give it values, or list the route in notAboutOneModel", route.Method, route.Path)
				}
				if route.Method == http.MethodConnect {
					continue // Go's client sends no path with it
				}
				for _, target := range targets {
					compareStrangers(t, s, route.Method, target)
				}
			}
		})
	}
}

func compareStrangers(t *testing.T, s *apitest.Server, method, target string) {
	t.Helper()
	kind := "application/json"
	if i := strings.LastIndex(target, "/git-"); i >= 0 {
		kind = "application/x-" + target[i+1:] + "-request"
	}
	body := ""
	if method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch {
		body = `{"operation":"download","objects":[],"version":"v1.0.0"}`
	}
	queries := []string{""}
	if strings.HasSuffix(target, "/info/refs") {
		queries = []string{"?service=git-upload-pack", "?service=git-receive-pack", "?service=x", ""}
	}
	for _, query := range queries {
		ask := func(name string) string {
			a := s.Do(method, strings.ReplaceAll(target, "NAME", name)+query, body, "Content-Type", kind)
			if a.Status < 400 {
				t.Errorf("%s %s as a stranger = %d, want a refusal", method, strings.ReplaceAll(target, "NAME", name)+query, a.Status)
			}
			return comparable(a, name)
		}
		if diff := cmp.Diff(ask("secret"), ask("absent")); diff != "" {
			t.Errorf("%s %s tells a stranger whether the model exists (-private +absent):\n%s", method, target+query, diff)
		}
	}
}

// Who may read nothing at all is asked for a token, and does not get an empty list.
func TestListsOfAClosedServer(t *testing.T) {
	s := apitest.Start(t, func(c *apitest.Config) { c.API.AnonymousRead = false })
	for _, target := range []string{"/api/v1/models", "/api/v1/search", "/api/v1/events", "/api/v1/impact?dataset=calls", "/api/v1/impact"} {
		if a := s.Do("GET", target, ""); a.Status != 401 {
			t.Errorf("GET %s of a closed server as a stranger = %d %s, want 401", target, a.Status, a.Body)
		}
	}
}

// TestListsLeaveOut asks what strangers get where many models are listed.
func TestListsLeaveOut(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/secret", registry.Private)
	loop(s, "acme/inner", registry.Internal)
	loop(s, "acme/open", registry.Public)
	for _, target := range []string{"/api/v1/models", "/api/v1/search", "/api/v1/search?q=sort:f1", "/api/v1/search?q=env:staging", "/api/v1/events", "/v2/_catalog", "/api/v1/models/acme/open/lineage/v1.0.0?direction=both"} {
		a := s.Do("GET", target, "")
		if a.Status != 200 || !strings.Contains(a.Body, "open") || strings.Contains(a.Body, "secret") || strings.Contains(a.Body, "inner") {
			t.Errorf("GET %s as a stranger = %d %s, want what is public and nothing else", target, a.Status, a.Body)
		}
	}
	for _, target := range []string{"/api/v1/deliveries", "/v2/acme/secret/tags/list"} {
		if a := s.Do("GET", target, ""); a.Status != 401 {
			t.Errorf("GET %s as a stranger = %d, want 401", target, a.Status)
		}
	}
	if a := s.As("GET", "/v2/_catalog", ""); !strings.Contains(a.Body, "acme/secret/image") {
		t.Errorf("GET /v2/_catalog as administrator = %s, want all repositories", a.Body)
	}
}

func TestProblems(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	s.Model("acme/hidden", registry.Private)
	authorization, bearer := s.Bearer()
	tests := []struct {
		name           string
		method, target string
		body           string
		header         []string
		status         int
		title, field   string
		detail         string
	}{
		{"no such model", "GET", "/api/v1/models/acme/none", "", nil, 404, "not found", "", "acme/none"},
		{"no such address", "GET", "/api/v1/nothing", "", nil, 404, "Not Found", "", ""},
		{"name that cannot be", "GET", "/api/v1/models/acme/UPPER", "", nil, 400, "invalid request", "name", "UPPER"},
		{"tag that cannot be", "GET", mainPage + "/versions/1.0", "", nil, 400, "invalid request", "version", "1.0"},
		{"no such version", "GET", mainPage + "/versions/v7.0.0", "", nil, 404, "not found", "", "v7.0.0"},
		{"environment that cannot be", "GET", mainPage + "/environments/UP", "", nil, 400, "invalid request", "environment", ""},
		{"no such environment", "GET", mainPage + "/environments/nowhere", "", nil, 404, "not found", "", "nowhere"},
		{"bad revision", "GET", mainPage + "/evaluations/..", "", nil, 400, "invalid request", "rev", ".."},
		{"bad encoding in a revision", "GET", mainPage + "/evaluations/branch:a%2fb%2f%2e%2e", "", nil, 400, "invalid request", "rev", ""},
		{"bad limit", "GET", "/api/v1/models?limit=201", "", nil, 400, "invalid request", "limit", "1 to 200"},
		{"limit that is no number", "GET", "/api/v1/models?limit=x", "", nil, 400, "invalid request", "limit", ""},
		{"bad cursor", "GET", "/api/v1/models?cursor=!!", "", nil, 400, "invalid request", "cursor", ""},
		{"bad cursor of versions", "GET", mainPage + "/versions?cursor=x", "", nil, 400, "invalid request", "cursor", ""},
		{"bad direction", "GET", mainPage + "/lineage/v1.0.0?direction=up", "", nil, 400, "invalid request", "direction", ""},
		{"bad kinds", "GET", mainPage + "/lineage/v1.0.0?kinds=used,x", "", nil, 400, "invalid request", "kinds", ""},
		{"bad depth", "GET", mainPage + "/lineage/v1.0.0?depth=51", "", nil, 400, "invalid request", "depth", "1 to 50"},
		{"bad format of lineage", "GET", mainPage + "/lineage/v1.0.0?format=dot", "", nil, 400, "invalid request", "format", "openlineage"},
		{"bad cursor of lineage", "GET", mainPage + "/lineage/v1.0.0?cursor=x", "", nil, 400, "invalid request", "cursor", ""},
		{"path to nothing", "GET", mainPage + "/lineage/v1.0.0/path", "", nil, 400, "invalid request", "to", "dataset:NAME"},
		{"path to what is no node", "GET", mainPage + "/lineage/v1.0.0/path?to=calls", "", nil, 400, "invalid request", "to", "dataset:NAME"},
		{"path to a hidden version", "GET", mainPage + "/lineage/v1.0.0/path?to=acme/hidden@v1.0.0", "", nil, 404, "not found", "", "acme/hidden"},
		{"path to no version", "GET", mainPage + "/lineage/v1.0.0/path?to=acme/fraud@v8.0.0", "", nil, 404, "not found", "", "v8.0.0"},
		{"path to a bad version", "GET", mainPage + "/lineage/v1.0.0/path?to=acme/fraud@1", "", nil, 400, "invalid request", "to", ""},
		{"difference with a hidden version", "GET", mainPage + "/lineage/v1.0.0/diff?with=acme/hidden@v1.0.0", "", nil, 404, "not found", "", "acme/hidden"},
		{"impact of nothing", "GET", "/api/v1/impact", "", nil, 400, "invalid request", "dataset", "digest"},
		{"impact of two things", "GET", "/api/v1/impact?dataset=a&model=b", "", nil, 400, "invalid request", "dataset", "one of"},
		{"impact of a bad digest", "GET", "/api/v1/impact?digest=sha256:12", "", nil, 400, "invalid request", "digest", "64 hex"},
		{"impact of a bad node", "GET", "/api/v1/impact?node=calls", "", nil, 400, "invalid request", "node", ""},
		{"no edges", "POST", mainPage + "/lineage/v1.0.0", `{"edges":[]}`, []string{authorization, bearer}, 400, "invalid request", "edges", "1 to 100"},
		{"an edge to nothing", "POST", mainPage + "/lineage/v1.0.0", `{"edges":[{"kind":"used"}]}`, []string{authorization, bearer}, 400, "invalid request", "edges[0].to", "names no node"},
		{"an edge of no kind", "POST", mainPage + "/lineage/v1.0.0", `{"edges":[{"to":"dataset:a"}]}`, []string{authorization, bearer}, 400, "invalid request", "edges[0].kind", ""},
		{"an edge to no version", "POST", mainPage + "/lineage/v1.0.0", `{"edges":[{"to":"acme/fraud@v8.0.0","kind":"derived_from"}]}`, []string{authorization, bearer}, 404, "not found", "", "v8.0.0"},
		{"an edge to itself", "POST", mainPage + "/lineage/v1.0.0", `{"edges":[{"to":"acme/fraud@v1.0.0","kind":"derived_from"}]}`, []string{authorization, bearer}, 409, "conflict", "", "itself"},
		{"an edge without a token", "POST", mainPage + "/lineage/v1.0.0", `{"edges":[{"to":"dataset:a","kind":"used"}]}`, nil, 401, "authentication required", "", "token"},
		{"bad after", "GET", "/api/v1/events?after=-1", "", nil, 400, "invalid request", "after", ""},
		{"bad query", "GET", "/api/v1/search?q=f1%3Ehigh", "", nil, 400, "invalid request", "q", "at character 1: f1 is compared with a number"},
		{"bad order", "GET", "/api/v1/search?sort=3", "", nil, 400, "invalid request", "sort", "sort by"},
		{"two orders", "GET", "/api/v1/search?q=sort:f1&sort=loss", "", nil, 400, "invalid request", "sort", "already"},
		{"bad limit of a search", "GET", "/api/v1/search?limit=201", "", nil, 400, "invalid request", "limit", "1 to 200"},
		{"bad cursor of a search", "GET", "/api/v1/search?cursor=x", "", nil, 400, "invalid request", "cursor", "first page"},
		{"no token", "POST", "/api/v1/models", `{"name":"acme/x"}`, nil, 401, "authentication required", "", "token"},
		{"wrong token", "GET", "/api/v1/models", "", []string{"Authorization", "Bearer hb_nonsense"}, 401, "authentication required", "", "token"},
		{"wrong scheme", "GET", "/api/v1/models", "", []string{"Authorization", "Digest x"}, 401, "authentication required", "", "token"},
		{"from another site", "POST", "/api/v1/models", `{}`, []string{authorization, bearer, "Sec-Fetch-Site", "cross-site"}, 403, "not allowed", "", "another site"},
		{"from another origin", "POST", "/api/v1/models", `{}`, []string{authorization, bearer, "Origin", "http://evil.example"}, 403, "not allowed", "", "another site"},
		{"taken name", "POST", "/api/v1/models", `{"name":"acme/hidden"}`, []string{authorization, bearer}, 409, "conflict", "", "acme/hidden"},
		{"not JSON", "POST", "/api/v1/models", `{"name":`, []string{authorization, bearer}, 400, "invalid request", "", "ends before"},
		{"empty body", "POST", "/api/v1/models", "", []string{authorization, bearer}, 400, "invalid request", "", "ends before"},
		{"a form", "POST", "/api/v1/models", "name=x", []string{authorization, bearer, "Content-Type", "application/x-www-form-urlencoded"}, 400, "invalid request", "", "not JSON"},
		{"plain text", "POST", "/api/v1/models", `{"name":"acme/x"}`, []string{authorization, bearer, "Content-Type", "text/plain"}, 415, "Unsupported Media Type", "", "application/json"},
		{"a type that cannot be read", "POST", "/api/v1/models", `{"name":"acme/x"}`, []string{authorization, bearer, "Content-Type", "/;"}, 415, "Unsupported Media Type", "", ""},
		{"too long", "POST", "/api/v1/models", strings.Repeat(" ", 1<<20+1), []string{authorization, bearer}, 413, "too large", "", "1048576"},
		{"description too long", "POST", "/api/v1/models", `{"name":"acme/x","description":"` + strings.Repeat("d", 5000) + `"}`, []string{authorization, bearer}, 400, "invalid request", "description", ""},
		{"unknown field inside", "POST", mainPage + "/evaluations/v1.0.0", `{"dataset":{"nmae":"d"}}`, []string{authorization, bearer}, 400, "invalid request", "dataset.nmae", ""},
		{"outcomes that are not base64", "POST", mainPage + "/evaluations/v1.0.0", `{"dataset":{"name":"d"},"outcomes":{"examples":"sha256:` + strings.Repeat("ab", 32) + `","count":3,"correct":"B"}}`, []string{authorization, bearer}, 400, "invalid request", "outcomes.correct", "not base64"},
		{"outcomes that are null", "POST", mainPage + "/evaluations/v1.0.0", `{"dataset":{"name":"d"},"outcomes":{"examples":"sha256:` + strings.Repeat("ab", 32) + `","count":3,"correct":null}}`, []string{authorization, bearer}, 400, "invalid request", "outcomes.correct", "0 bytes"},
		{"unknown field of outcomes", "POST", mainPage + "/evaluations/v1.0.0", `{"dataset":{"name":"d"},"outcomes":{"wrong":1}}`, []string{authorization, bearer}, 400, "invalid request", "outcomes.wrong", ""},
		{"outcomes twice", "POST", mainPage + "/evaluations/v1.0.0", `{"dataset":{"name":"d"},"outcomes":{"count":1,"count":2}}`, []string{authorization, bearer}, 400, "invalid request", "outcomes.count", "twice"},
		{"metric twice", "POST", mainPage + "/evaluations/v1.0.0", `{"dataset":{"name":"d"},"metrics":{"f1":0.1,"f1":0.9}}`, []string{authorization, bearer}, 400, "invalid request", "metrics.f1", "twice"},
		{"bad version of a promotion", "POST", mainPage + "/environments/staging/promotions", `{"version":"1"}`, []string{authorization, bearer}, 400, "invalid request", "version", ""},
		{"no version of a promotion", "POST", mainPage + "/environments/staging/promotions", `{}`, []string{authorization, bearer}, 400, "invalid request", "version", ""},
		{"nothing to patch", "PATCH", mainPage, `{"visibility":""}`, []string{authorization, bearer}, 400, "invalid request", "visibility", ""},
		{"closed gate", "POST", mainPage + "/environments/production/promotions", `{"version":"v1.0.0"}`, []string{authorization, bearer}, 409, "conflict", "", "metrics.f1"},
		{"nothing to roll back to", "POST", mainPage + "/environments/staging/rollback", `{}`, []string{authorization, bearer}, 409, "conflict", "", "staging"},
		{"deliveries of what is no model", "GET", "/api/v1/deliveries?model=fraud", "", []string{authorization, bearer}, 400, "invalid request", "model", "fraud"},
		{"deliveries of no model", "GET", "/api/v1/deliveries?model=acme/none", "", []string{authorization, bearer}, 404, "not found", "", "acme/none"},
		{"deliveries of no model, asked by a stranger", "GET", "/api/v1/deliveries?model=acme/none", "", nil, 401, "authentication required", "", "token"},
		{"deliveries of a bad version", "GET", "/api/v1/deliveries?model=acme/fraud&version=1", "", []string{authorization, bearer}, 400, "invalid request", "version", ""},
		{"deliveries of a version alone", "GET", "/api/v1/deliveries?version=v1.0.0", "", []string{authorization, bearer}, 400, "invalid request", "version", "model"},
		{"no such hook", "POST", "/api/v1/deliveries/none/x/redeliver", "", []string{authorization, bearer}, 404, "not found", "", ""},
		{"no such event", "POST", "/api/v1/deliveries/notify/x/redeliver", "", []string{authorization, bearer}, 404, "not found", "", ""},
		{"method", "DELETE", "/api/v1/models", "", []string{authorization, bearer}, 405, "Method Not Allowed", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := s.Do(test.method, test.target, test.body, test.header...)
			var p api.Problem
			if err := json.Unmarshal([]byte(a.Body), &p); err != nil {
				t.Fatalf("%s %s = %d %s: not JSON: %v", test.method, test.target, a.Status, a.Body, err)
			}
			verdict := p.Verdict
			p.Verdict = nil
			want := api.Problem{Type: "about:blank", Title: test.title, Status: test.status, Detail: p.Detail, Field: test.field}
			if diff := cmp.Diff(want, p); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", test.method, test.target, diff)
			}
			if p.Detail == "" || !strings.Contains(p.Detail, test.detail) {
				t.Errorf("detail = %q, want it to say %q", p.Detail, test.detail)
			}
			if a.Status != test.status {
				t.Errorf("status = %d, want %d as in the body", a.Status, test.status)
			}
			if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("Content-Type = %q, want application/problem+json", got)
			}
			if got, want := a.Header.Get("WWW-Authenticate") != "", test.status == 401; got != want {
				t.Errorf("WWW-Authenticate is there: %v, want %v", got, want)
			}
			if got, want := verdict != nil, test.name == "closed gate"; got != want {
				t.Errorf("a verdict is there: %v, want %v", got, want)
			}
			if a.Header.Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
		})
	}
}

// broken is an index whose disk fails.
type broken struct{ *index.DB }

const failure = "read /srv/data/index.db: input/output error"

func (broken) ModelByName(context.Context, registry.ModelName) (registry.Model, error) {
	return registry.Model{}, errors.New(failure)
}

// brokenLifecycle finds no repository for the same reason.
type brokenLifecycle struct{ oci.Lifecycle }

func (brokenLifecycle) OCIRepository(context.Context, lifecycle.Request, string, access.Action) (registry.OCIRepository, error) {
	return registry.OCIRepository{}, errors.New(failure)
}

func TestInternalErrorLeaksNothing(t *testing.T) {
	var db *index.DB
	s := apitest.Start(t, func(c *apitest.Config) {
		db = c.API.Index.(*index.DB)
		c.API.Index, c.LFS.Index, c.OCI.Lifecycle, c.Git.Models = broken{db}, broken{db}, brokenLifecycle{}, broken{db}
		c.API.Ready = func(context.Context) error { return errors.New(failure) }
	})
	oid := strings.Repeat("a", 64)
	tests := []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"GET", mainPage, "", 500, `"detail":"internal error"`},
		{"PATCH", mainPage, `{}`, 500, `"detail":"internal error"`},
		{"POST", mainPage + "/evaluations/v1.0.0", `{}`, 500, `"detail":"internal error"`},
		{"GET", "/acme/fraud.git/info/refs?service=git-upload-pack", "", 500, `"detail":"internal error"`},
		{"POST", "/acme/fraud.git/info/lfs/objects/batch", `{"operation":"download"}`, 500, `"message":"internal error"`},
		{"GET", "/acme/fraud.git/info/lfs/objects/" + oid, "", 500, `"message":"internal error"`},
		{"GET", "/acme/fraud.git/info/lfs/locks", "", 500, `"message":"internal error"`},
		{"GET", "/v2/acme/fraud/manifests/v1.0.0", "", 500, `"code":"UNKNOWN","message":"internal error"`},
		{"GET", "/readyz", "", 503, "not ready\n"},
	}
	for _, test := range tests {
		a := s.As(test.method, test.target, test.body)
		if a.Status != test.status || !strings.Contains(a.Body, test.want) {
			t.Errorf("%s %s = %d %s, want %d with %s", test.method, test.target, a.Status, a.Body, test.status, test.want)
		}
		if strings.Contains(a.Body+fmt.Sprint(a.Header), "srv") {
			t.Errorf("%s %s tells what failed: %s %v", test.method, test.target, a.Body, a.Header)
		}
	}
	if got := strings.Count(s.Log.String(), failure); got != len(tests) {
		t.Errorf("the log has the failure %d times, want %d:\n%s", got, len(tests), s.Log)
	}
}

// faulty is a door whose handlers fail in the middle.
type faulty struct{}

func (faulty) Register(e *echo.Echo) {
	e.GET("/faulty/panic", func(echo.Context) error { panic("a bug at /srv/data") })
	e.GET("/faulty/late", func(c echo.Context) error {
		_ = c.String(http.StatusOK, "half")
		panic("a late bug")
	})
	e.GET("/faulty/abort", func(c echo.Context) error {
		_ = c.String(http.StatusOK, "half")
		panic(http.ErrAbortHandler)
	})
}

func TestPanicInAHandler(t *testing.T) {
	s := apitest.Start(t, func(c *apitest.Config) { c.API.Doors = append(c.API.Doors, faulty{}) })
	a := s.Do("GET", "/faulty/panic", "")
	if a.Status != 500 || strings.Contains(a.Body, "bug") || !strings.Contains(a.Body, "internal error") {
		t.Errorf("GET /faulty/panic = %d %s, want 500 and nothing of the panic", a.Status, a.Body)
	}
	if log := s.Log.String(); !strings.Contains(log, "a bug at /srv/data") || !strings.Contains(log, "api_test.faulty") {
		t.Errorf("the log has not the panic and where it was:\n%s", log)
	}
	if a := s.Do("GET", "/faulty/late", ""); a.Body != "half" {
		t.Errorf("GET /faulty/late = %q, want what was sent before the panic and no more", a.Body)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/faulty/abort", nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := http.DefaultTransport.RoundTrip(r); err == nil {
		if _, err = io.ReadAll(answer.Body); err == nil {
			t.Error("GET /faulty/abort ended in good order, want a broken connection")
		}
		answer.Body.Close()
	}
	if a := s.Do("GET", "/healthz", ""); a.Status != 200 {
		t.Errorf("GET /healthz after panics = %d, want 200", a.Status)
	}
	if a := s.Do("GET", "/metrics", ""); !strings.Contains(a.Body, `herdbook_http_requests_total{method="GET",protocol="web",status="500"} 1`) {
		t.Errorf("the panic was not counted as a 500:\n%s", a.Body)
	}
}

// raw sends a request line as it is.
func raw(t *testing.T, s *apitest.Server, method, target string) apitest.Answer {
	t.Helper()
	host := strings.TrimPrefix(s.URL, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n", method, target, host, s.Token)
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %q: %v", method, target, err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%s %q: %v", method, target, err)
	}
	return apitest.Answer{Status: answer.StatusCode, Header: answer.Header, Body: string(data)}
}

// TestOddPaths sends names that are written in odd ways, everywhere. None is found, none is
// taken for another, and none makes the server fail.
func TestOddPaths(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	odd := []string{
		"acme%2ffraud", "acme%2Ffraud", "..", "%2e%2e", ".%2e", "%252e%252e", "acme/..", "acme/../fraud", "acme/%2e%2e/fraud", "acme/..%2ffraud",
		"acme/fraud%00", "acme/fraud%2500", "acme/%00", "acme%00/fraud", "acme/fraud%0a", "acme/fraud%20", "acme/fraud%", "acme/fraud%zz",
		"acme/fraud%c0%af", "acme/" + strings.Repeat("a", 4000), "acme/fraud.git.git", "acme/fraud;x", "acme//fraud", "/acme/fraud", "acme/fraud\\..",
		"acme/fr%61ud%2f", "ACME/fraud", "acme/Fraud", "acme/fraud%3f", "acme/fraud%23", "acme/%e2%80%aefraud",
	}
	for _, name := range odd {
		for _, form := range []string{
			"/api/v1/models/%s", "/api/v1/models/%s/versions", "/%s.git/info/refs?service=git-upload-pack", "/%s/info/lfs/objects/" + strings.Repeat("0", 64),
			"/v2/%s/tags/list", "/v2/%s/manifests/v1.0.0",
		} {
			target := fmt.Sprintf(form, name)
			if a := raw(t, s, "GET", target); a.Status < 400 || a.Status >= 500 {
				t.Errorf("GET %.100q = %d %.200s, want it refused", target, a.Status, a.Body)
			}
		}
	}
	for _, tail := range []string{
		"/versions/v1.0.0%00", "/versions/v1.0.0%2f", "/versions/%76%31.0.0%20", "/versions/v1.0.0%2520", "/environments/staging%00", "/environments/%2e%2e", "/evaluations/main%00",
		"/evaluations/%2e%2e", "/evaluations/branch:..%2f..", "/evaluations/%252e", "/evaluations/" + strings.Repeat("a", 5000), "/gates/%zz", "/compare/......", "/compare/main...%2e%2e", "/lineage/env:staging%2f", "/nothing", "/versions/", "/",
	} {
		if a := raw(t, s, "GET", mainPage+tail); a.Status < 400 || a.Status >= 500 {
			t.Errorf("GET %.100q = %d %.200s, want it refused", mainPage+tail, a.Status, a.Body)
		}
	}
	for _, tail := range []string{
		"manifests/v1.0.0%00", "manifests/v1.0.0%2f", "manifests/%76", "manifests/sha256:..", "manifests/sha256:" + strings.Repeat("A", 64), "manifests/" + strings.Repeat("a", 5000), "manifests/",
		"blobs/", "blobs/sha512:" + strings.Repeat("a", 128), "blobs/sha256%3a" + strings.Repeat("a", 64), "referrers/x", "tags/list/", "tags", "", "../_catalog", "%5fcatalog",
	} {
		if a := raw(t, s, "GET", "/v2/acme/fraud/"+tail); a.Status < 400 || a.Status >= 500 || !strings.Contains(a.Body, `"errors"`) {
			t.Errorf("GET /v2/acme/fraud/%.100q = %d %.200s, want it refused as the distribution specification says", tail, a.Status, a.Body)
		}
	}
	// Written in another way and the same all the same: what net/url decodes without loss.
	for _, target := range []string{"/api/v1/models/acme/fr%61ud", mainPage + "/versions/v1%2e0.0", mainPage + "/evaluations/branch%3Amain", mainPage + "/evaluations/env%3Astaging"} {
		if a := raw(t, s, "GET", target); a.Status != 200 && a.Status != 400 {
			t.Errorf("GET %s = %d %s, want it found, or refused as odd", target, a.Status, a.Body)
		}
	}
}

// FuzzPaths: whatever path a stranger asks for, the server does not fail, and nothing of a private
// model comes back.
func FuzzPaths(f *testing.F) {
	s := apitest.Start(f)
	const sesame = "open sesame"
	hidden := s.Model("acme/secret", registry.Private)
	s.Publish(hidden, "v1.0.0", map[string]string{"sesame.txt": sesame})
	loop(s, "acme/fraud", registry.Public)
	for _, route := range s.API.Routes() {
		for _, target := range concrete(route.Path) {
			f.Add(route.Method, strings.ReplaceAll(target, "NAME", "secret"))
			f.Add(route.Method, strings.ReplaceAll(target, "NAME", "fraud")+"?limit=1&cursor=x&n=1&last=a&depth=2&service=git-upload-pack&kinds=used&artifactType=x")
		}
	}
	f.Add("GET", "/v2/acme/fraud/../secret/blobs/"+digest.FromString(sesame).String())
	f.Add("GET", "/v2/acme/fraud/blobs/"+digest.FromString(sesame).String())
	f.Add("GET", "/acme/fraud.git/info/lfs/objects/"+digest.FromString(sesame).Encoded()+"?signature=x&expires=99999999999&size=1")
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !token.MatchString(method) {
			return
		}
		w := httptest.NewRecorder()
		s.API.ServeHTTP(w, &http.Request{Method: method, URL: u, Header: http.Header{}, Body: http.NoBody, Host: "models.example.org", RequestURI: target})
		if w.Code >= 500 && w.Code != http.StatusNotImplemented { // locks of Git LFS
			t.Errorf("%s %q = %d %s", method, target, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "sesame") && !strings.Contains(target, "sesame") {
			t.Errorf("%s %q shows something of a private model: %d %s", method, target, w.Code, w.Body)
		}
	})
}

// token is what a method may be. Source: RFC 9110, section 5.6.2.
var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func TestEncodedSlashInABranch(t *testing.T) {
	s := apitest.Start(t)
	m := loop(s, "acme/fraud", registry.Public)
	s.Commit(registry.RefMoved{ModelID: m.ID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: registry.BranchRef("feature/a%2fb"), New: apitest.CommitOf("v1.0.0")}})
	for target, want := range map[string]int{
		"/evaluations/branch:feature%2Fa%252fb": 200, // decoded once
		"/evaluations/feature%2Fa%252fb":        200,
		"/evaluations/branch:feature%2Fa%2fb":   404,
		"/evaluations/feature/a%252fb":          400, // a revision is one part of the path
	} {
		if a := raw(t, s, "GET", mainPage+target); a.Status != want {
			t.Errorf("GET %s = %d %s, want %d", target, a.Status, a.Body, want)
		}
	}
}

func TestMethods(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	for _, target := range []string{
		"/healthz", "/readyz", "/metrics", "/api/v1/whoami", "/api/v1/schemas/explanation-v1.json", "/api/v1/models", mainPage, mainPage + "/versions", mainPage + "/versions/v1.0.0",
		mainPage + "/evaluations/v1.0.0", mainPage + "/gates/v1.0.0", mainPage + "/environments", mainPage + "/environments/staging/history",
		mainPage + "/lineage/v1.0.0", "/api/v1/models/acme/none", "/v2/", "/v2/acme/fraud/tags/list", "/v2/acme/fraud/manifests/v1.0.0",
	} {
		get, head := s.Do("GET", target, ""), s.Do("HEAD", target, "")
		if head.Status != get.Status || head.Body != "" || head.Header.Get("Content-Type") != get.Header.Get("Content-Type") {
			t.Errorf("HEAD %s = %d %q with %q, want what GET says, without a body: %d with %q", target,
				head.Status, head.Header.Get("Content-Type"), head.Body, get.Status, get.Header.Get("Content-Type"))
		}
	}
	tests := []struct {
		method, target string
		status         int
		allow          []string
	}{
		{"DELETE", "/api/v1/models", 405, []string{"GET", "HEAD", "POST"}},
		{"PUT", mainPage, 405, []string{"DELETE", "GET", "HEAD", "PATCH"}},
		{"POST", mainPage + "/versions/v1.0.0", 405, []string{"GET", "HEAD"}},
		{"POST", "/healthz", 405, []string{"GET", "HEAD"}},
		{"BREW", "/healthz", 405, []string{"GET", "HEAD"}},
		{"OPTIONS", mainPage, 204, []string{"DELETE", "GET", "HEAD", "PATCH"}},
		{"POST", "/v2/acme/fraud/manifests/v1.0.0", 405, []string{"DELETE", "GET", "HEAD", "PUT"}},
		{"PUT", "/v2/acme/fraud/blobs/uploads/", 405, []string{"POST"}},
		{"POST", "/v2/acme/fraud/tags/list", 405, []string{"GET", "HEAD"}},
	}
	for _, test := range tests {
		a := s.As(test.method, test.target, "")
		var allow []string
		for name := range strings.SplitSeq(a.Header.Get("Allow"), ",") {
			if name = strings.TrimSpace(name); name != "OPTIONS" {
				allow = append(allow, name)
			}
		}
		slices.Sort(allow)
		if a.Status != test.status || !slices.Equal(allow, test.allow) {
			t.Errorf("%s %s = %d with Allow: %s, want %d with %s", test.method, test.target, a.Status, a.Header.Get("Allow"), test.status, test.allow)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	const evaluation = `{"dataset":{"name":"calls"},"metrics":{"f1":0.95}}`
	evaluations := mainPage + "/evaluations/v1.1.0"
	id := func(a apitest.Answer) string {
		var e registry.Evaluation
		if err := json.Unmarshal([]byte(a.Body), &e); err != nil || e.ID == "" {
			t.Fatalf("no evaluation: %d %s", a.Status, a.Body)
		}
		return e.ID
	}
	first := s.As("POST", evaluations, evaluation, "Idempotency-Key", "job-7")
	again := s.As("POST", evaluations, evaluation, "Idempotency-Key", "job-7")
	if id(first) != id(again) || again.Status != 201 {
		t.Errorf("the same evaluation under one key = %d %s, want what the first request made: %s", again.Status, again.Body, first.Body)
	}
	if a := s.As("POST", evaluations, `{"dataset":{"name":"calls"},"metrics":{"f1":0.1}}`, "Idempotency-Key", "job-7"); a.Status != 409 {
		t.Errorf("another evaluation under the same key = %d %s, want 409", a.Status, a.Body)
	}
	if a := s.As("POST", evaluations, evaluation, "Idempotency-Key", "job-8"); id(a) == id(first) {
		t.Errorf("the same evaluation under another key is the first one again: %s", a.Body)
	}
	if a := s.As("POST", evaluations, evaluation); id(a) == id(first) {
		t.Errorf("the same evaluation without a key is the first one again: %s", a.Body)
	}
	var listed struct{ Items []registry.Evaluation }
	if a := s.Do("GET", evaluations, ""); json.Unmarshal([]byte(a.Body), &listed) != nil || len(listed.Items) != 3 {
		t.Errorf("GET %s = %s, want three evaluations", evaluations, a.Body)
	}

	promotions := mainPage + "/environments/production/promotions"
	for range 2 {
		if a := s.As("POST", promotions, `{"version":"v1.1.0"}`, "Idempotency-Key", "release-1"); a.Status != 201 {
			t.Errorf("promotion under a key = %d %s, want 201 both times", a.Status, a.Body)
		}
	}
	if a := s.As("POST", promotions, `{"version":"v1.0.0"}`, "Idempotency-Key", "release-1"); a.Status != 409 {
		t.Errorf("another promotion under the same key = %d %s, want 409", a.Status, a.Body)
	}
	if a := s.Do("GET", mainPage+"/environments/production/history", ""); strings.Count(a.Body, `"kind":"promotion"`) != 1 {
		t.Errorf("history of production = %s, want one promotion", a.Body)
	}
}

var nextPage = func(a apitest.Answer) string {
	link, ok := strings.CutSuffix(a.Header.Get("Link"), `>; rel="next"`)
	if !ok {
		return ""
	}
	return strings.TrimPrefix(link, "<")
}

func TestPaging(t *testing.T) {
	s := apitest.Start(t)
	for i := range 7 {
		s.Model(fmt.Sprintf("acme/m%d", i), registry.Public)
		s.Model(fmt.Sprintf("acme/s%d", i), registry.Private)
	}
	m := s.Model("acme/fraud", registry.Public)
	for i := range 5 {
		s.Publish(m, fmt.Sprintf("v1.%d.0", i), map[string]string{"f": fmt.Sprint(i)})
		s.As("POST", mainPage+"/evaluations/v1.0.0", fmt.Sprintf(`{"dataset":{"name":"d%d"},"metrics":{"f1":0.5}}`, i))
	}
	s.Policy(m, registry.Environment{Name: registry.MustEnvironmentName("staging"), Promote: registry.PromoteManual})
	for i := range 5 {
		s.As("POST", mainPage+"/environments/staging/promotions", fmt.Sprintf(`{"version":"v1.%d.0"}`, i))
	}
	tests := []struct {
		target string
		items  int
	}{
		{"/api/v1/models?limit=3", 8},
		{"/api/v1/models", 8},
		{mainPage + "/versions?limit=2", 5},
		{mainPage + "/versions?limit=5", 5},
		{mainPage + "/evaluations/v1.0.0?limit=2", 5},
		{mainPage + "/environments/staging/history?limit=1", 5},
		{mainPage + "/environments", 1},
		{mainPage + "/evaluations/v1.1.0", 0},
	}
	for _, test := range tests {
		t.Run(test.target, func(t *testing.T) {
			limit := 200
			if u, err := url.Parse(test.target); err == nil && u.Query().Has("limit") {
				fmt.Sscan(u.Query().Get("limit"), &limit)
			}
			seen := map[string]bool{}
			total := 0
			for next, pages := test.target, 0; next != ""; pages++ {
				if pages > 10 {
					t.Fatal("the pages do not end")
				}
				a := s.Do("GET", next, "")
				var page struct{ Items []json.RawMessage }
				if err := json.Unmarshal([]byte(a.Body), &page); err != nil || a.Status != 200 || page.Items == nil {
					t.Fatalf("GET %s = %d %s, want a list", next, a.Status, a.Body)
				}
				if len(page.Items) > limit {
					t.Errorf("GET %s has %d items, want at most %d", next, len(page.Items), limit)
				}
				for _, item := range page.Items {
					if seen[string(item)] {
						t.Errorf("GET %s repeats %s", next, item)
					}
					seen[string(item)] = true
				}
				total += len(page.Items)
				if next = nextPage(a); next != "" && len(page.Items) == 0 {
					t.Errorf("an empty page has a next one: %s", next)
				}
			}
			if total != test.items {
				t.Errorf("%d items in all pages, want %d", total, test.items)
			}
		})
	}
}

// The list of deliveries is that of one model, version or hook when they are asked for, on every page.
func TestDeliveriesOfAVersion(t *testing.T) {
	s := apitest.Start(t)
	announced := func(m registry.Model, tag string, sinks ...string) registry.EventAnnounced {
		e := registry.NewEvent(registry.EventVersionPublished, m, apitest.Admin, time.Now().UTC(), struct{}{}, tag)
		e.Version, e.Sinks = registry.MustTag(tag), sinks
		return registry.EventAnnounced{Event: e}
	}
	fraud, secret := s.Model("acme/fraud", registry.Public), s.Model("acme/secret", registry.Private)
	s.Commit(announced(fraud, "v1.0.0", "notify", "pager"), announced(secret, "v1.0.0", "notify"), announced(fraud, "v1.1.0", "notify", "mirror"))
	for query, want := range map[string]string{
		"":                                 "acme/fraud v1.1.0 notify, acme/fraud v1.1.0 mirror, acme/secret v1.0.0 notify, acme/fraud v1.0.0 pager, acme/fraud v1.0.0 notify",
		"&hook=notify":                     "acme/fraud v1.1.0 notify, acme/secret v1.0.0 notify, acme/fraud v1.0.0 notify",
		"&model=acme/fraud":                "acme/fraud v1.1.0 notify, acme/fraud v1.1.0 mirror, acme/fraud v1.0.0 pager, acme/fraud v1.0.0 notify",
		"&model=acme%2Fsecret":             "acme/secret v1.0.0 notify",
		"&model=acme/fraud&version=v1.0.0": "acme/fraud v1.0.0 pager, acme/fraud v1.0.0 notify",
		"&model=acme/fraud&version=v1.0.0&hook=notify": "acme/fraud v1.0.0 notify",
		"&model=acme/fraud&version=v9.0.0":             "",
	} {
		var got []string
		for target := "/api/v1/deliveries?limit=1" + query; target != ""; {
			a := s.As("GET", target, "")
			var page struct{ Items []registry.Delivery }
			if err := json.Unmarshal([]byte(a.Body), &page); err != nil || a.Status != 200 || len(page.Items) > 1 {
				t.Fatalf("GET %s = %d %s, want a page of one", target, a.Status, a.Body)
			}
			for _, d := range page.Items {
				if d.Event.Type != registry.EventModelCreated {
					got = append(got, fmt.Sprintf("%s %s %s", d.Event.Model, d.Event.Version, d.Sink))
				}
			}
			target, _, _ = strings.Cut(strings.TrimPrefix(a.Header.Get("Link"), "<"), ">")
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("deliveries with %q = %s, want %s", query, text, want)
		}
	}
}

func TestOperations(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	for _, target := range []string{"/healthz", "/readyz"} {
		if a := s.Do("GET", target, "", "Authorization", "Bearer nonsense"); a.Status != 200 || a.Body != "ok\n" {
			t.Errorf("GET %s = %d %q, want 200 and ok, whoever asks", target, a.Status, a.Body)
		}
	}
	for _, method := range []string{"BREW", "FOO1", "FOO2"} {
		s.Do(method, "/healthz", "")
	}
	s.Do("GET", "/v2/acme/fraud/tags/list", "")
	s.Do("GET", "/acme/fraud.git/info/refs?service=git-upload-pack", "")
	s.Do("POST", "/acme/fraud.git/info/lfs/objects/batch", `{"operation":"download"}`)
	a := s.Do("GET", "/metrics", "")
	if a.Status != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain; version=") {
		t.Fatalf("GET /metrics = %d %s", a.Status, a.Header.Get("Content-Type"))
	}
	problems, err := promlint.New(strings.NewReader(a.Body)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics that Prometheus would not like: %v %v", problems, err)
	}
	for _, want := range []string{
		`herdbook_http_requests_total{method="other",protocol="operations",status="405"} 3`,
		`herdbook_http_requests_total{method="GET",protocol="oci",status="200"} 1`,
		`herdbook_http_requests_total{method="GET",protocol="git",status="200"} 1`,
		`herdbook_http_requests_total{method="POST",protocol="lfs",status="200"} 1`,
		`herdbook_http_requests_total{method="POST",protocol="api",status="201"} 2`,
		`herdbook_http_body_bytes_total{direction="out",protocol="operations"}`,
	} {
		if !strings.Contains(a.Body, want) {
			t.Errorf("the metrics have no line %s in:\n%s", want, a.Body)
		}
	}
}

func TestRequestLog(t *testing.T) {
	s := apitest.Start(t)
	s.Model("acme/fraud", registry.Public)
	s.As("GET", mainPage+"?signature=sesame", "", "X-Request-Id", "from-the-proxy", "X-Forwarded-For", "192.0.2.7")
	s.Do("GET", mainPage+"/versions", "", "X-Request-Id", "no good\tid")
	s.Do("GET", "/healthz", "")
	log := s.Log.String()
	for _, secret := range []string{"sesame", s.Token, "Bearer", "no good"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds %q:\n%s", secret, log)
		}
	}
	if strings.Contains(log, "healthz") {
		t.Errorf("the log holds requests for health:\n%s", log)
	}
	var line struct {
		Msg, Method, Path, Actor, Request, Remote string
		Status                                    int
		Bytes                                     int64
	}
	for text := range strings.Lines(log) {
		if strings.Contains(text, `"msg":"request"`) {
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if line.Method != "GET" || line.Path != mainPage || line.Actor != apitest.Admin || line.Request != "from-the-proxy" || line.Status != 200 || line.Bytes == 0 || line.Remote != "192.0.2.7" {
		t.Errorf("the log's first request = %+v, want method, path without query, actor, status, size, the proxy's id and address", line)
	}
}

func TestWhoami(t *testing.T) {
	s := apitest.Start(t)
	if a := s.Do("GET", "/api/v1/whoami", ""); a.Body != `{"name":"anonymous","role":"guest","server_version":"test"}`+"\n" {
		t.Errorf("whoami of a stranger = %s", a.Body)
	}
	if a := s.As("GET", "/api/v1/whoami", ""); !strings.HasPrefix(a.Body, `{"name":"ada","role":"admin","token_id":"`) {
		t.Errorf("whoami of the administrator = %s", a.Body)
	}
	open := apitest.Start(t, func(c *apitest.Config) { c.API.NoAuth = true })
	if a := open.Do("POST", "/api/v1/models", `{"name":"acme/x"}`); a.Status != 201 || a.Header.Get("Location") != "/api/v1/models/acme/x" {
		t.Errorf("creation where everybody may do everything = %d %s", a.Status, a.Body)
	}
}

func BenchmarkGetModel(b *testing.B) {
	s := apitest.Start(b)
	s.Model("acme/fraud", registry.Public)
	r, err := http.NewRequest("GET", mainPage, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w := discard{http.Header{}}
		s.API.ServeHTTP(w, r)
	}
}

// discard is a response that goes nowhere.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
