package oci

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/problem"
)

// tokens finds the tokens that callers log in with.
type tokens interface {
	auth.Tokens
	TokenByID(ctx context.Context, id string) (registry.Token, error)
}

// The actions of a scope. Source: distribution project, docs/spec/auth/scope.md.
const (
	pull   = "pull"
	push   = "push"
	remove = "delete"
	every  = "*"
)

// rights is what each action on a repository needs.
var rights = map[string]access.Action{pull: access.Read, push: access.Write, remove: access.Write}

// Scope is what a token is for: actions on a repository, or, without one, to list them all.
type Scope struct {
	Repository string
	Actions    []string // some of "pull", "push" and "delete", in this order; or "*" alone
}

// String is the scope as clients write it.
func (s Scope) String() string {
	kind := "repository:" + s.Repository
	if s.Repository == "" {
		kind = "registry:catalog"
	}
	return kind + ":" + strings.Join(s.Actions, ",")
}

// All that one token is for is at most maxScopes scopes, which are asked for in at most maxScopeBytes.
const (
	maxScopes     = 100
	maxScopeBytes = 8 << 10
)

// ParseScopes reads scopes, each in a text of its own or several with spaces between. What it does not know it leaves out, as the
// reference does. Each repository is in one of the results.
// Source: distribution project, docs/spec/auth/scope.md, "Resource Scope Grammar".
func ParseScopes(texts []string) ([]Scope, error) {
	bytes := 0
	for _, text := range texts {
		if bytes += len(text); bytes > maxScopeBytes {
			return nil, registry.Invalid("scope", "the scopes are longer than %d bytes", maxScopeBytes)
		}
	}
	return parseScopes(texts)
}

func parseScopes(texts []string) ([]Scope, error) {
	var scopes []Scope
	for _, text := range texts {
		for field := range strings.FieldsSeq(text) {
			s, ok := parseScope(field)
			if !ok {
				continue
			}
			i := slices.IndexFunc(scopes, func(t Scope) bool { return t.Repository == s.Repository })
			switch {
			case i < 0 && len(scopes) == maxScopes:
				return nil, registry.Invalid("scope", "there are more than %d scopes", maxScopes)
			case i < 0:
				scopes = append(scopes, s)
			case s.Repository != "":
				scopes[i].Actions = ordered(append(scopes[i].Actions, s.Actions...))
			}
		}
	}
	return scopes, nil
}

func parseScope(text string) (Scope, bool) {
	kind, rest, _ := strings.Cut(text, ":")
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return Scope{}, false
	}
	name, actions := rest[:i], strings.Split(rest[i+1:], ",")
	if kind == "registry" && name == "catalog" && slices.Contains(actions, every) {
		return Scope{Actions: []string{every}}, true
	}
	s := Scope{Repository: name, Actions: ordered(actions)}
	return s, kind == "repository" && registry.CheckRepositoryName(name) == nil && len(s.Actions) > 0
}

// ordered are the known ones of actions, each once.
func ordered(actions []string) []string {
	var known []string
	for _, action := range []string{pull, push, remove} {
		if slices.Contains(actions, action) || slices.Contains(actions, every) {
			known = append(known, action)
		}
	}
	return known
}

// tokenLife is how long a token is good for. Its bearer asks again in the middle of a long push, and nobody is asked for a password.
const tokenLife = 5 * time.Minute

// Grant is what a token lets its bearer do here, as long as who asked for it still may.
type Grant struct {
	TokenID  string // of the token that it was asked for with; empty for callers without one
	IssuedAt time.Time
	Scopes   []Scope
}

// Tokens makes the tokens that clients show after they logged in, and reads them:
//
//	hbr_<base64url of the token's id, the time in Unix seconds, and the scopes with spaces between, a line each>.<hex MAC>
//
// Whoever sees one in a log or a cache has little of it: it is no secret of its owner's, ends soon, and is good at no other door.
type Tokens struct{ Key []byte }

// newTokens is t, with a key that only this process has when it has none.
func newTokens(t Tokens) Tokens {
	if len(t.Key) == 0 {
		t.Key = make([]byte, 32)
		_, _ = rand.Read(t.Key) // never fails
	}
	return t
}

// Sign makes a token.
func (t Tokens) Sign(g Grant) string {
	scopes := make([]string, len(g.Scopes))
	for i, s := range g.Scopes {
		scopes[i] = s.String()
	}
	payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s\n%d\n%s", g.TokenID, g.IssuedAt.Unix(), strings.Join(scopes, " ")))
	return auth.RegistryPrefix + payload + "." + t.mac(payload)
}

// Verify reads a token. It is ok if it was made with this key and is in time.
func (t Tokens) Verify(token string, now time.Time) (g Grant, ok bool) {
	payload, mac, _ := strings.Cut(strings.TrimPrefix(token, auth.RegistryPrefix), ".")
	if !strings.HasPrefix(token, auth.RegistryPrefix) || !hmac.Equal([]byte(mac), []byte(t.mac(payload))) {
		return g, false
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	fields := strings.Split(string(text), "\n")
	if err != nil || len(fields) != 3 {
		return g, false
	}
	at, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return g, false
	}
	g = Grant{TokenID: fields[0], IssuedAt: time.Unix(at, 0).UTC()}
	// They may be longer than they were asked for: "*" stands for every action.
	if g.Scopes, err = parseScopes(fields[2:]); err != nil {
		return g, false
	}
	return g, !now.Before(g.IssuedAt) && now.Before(g.IssuedAt.Add(tokenLife))
}

func (t Tokens) mac(payload string) string {
	mac := hmac.New(sha256.New, t.Key)
	fmt.Fprintf(mac, "oci token 1\n%s", payload)
	return hex.EncodeToString(mac.Sum(nil))
}

// scopesKey is where a request keeps what its token is for. Without, it may do what the caller may.
const scopesKey = "oci scopes"

// errToken does not say why.
var errToken = fmt.Errorf("the token is not valid: %w", registry.ErrWrongToken)

// enter makes a request that brings one of the tokens of this door that of who asked for the token, with the right that this one has now.
// Other requests stay what they are.
func (h *Handler) enter(c echo.Context) error {
	token := auth.TokenOf(c.Request())
	if !strings.HasPrefix(token, auth.RegistryPrefix) || door.Identity(c).Authenticated() { // everybody may do everything
		return nil
	}
	g, ok := h.Tokens.Verify(token, time.Now())
	if !ok {
		return errToken
	}
	c.Set(scopesKey, g.Scopes)
	if g.TokenID == "" {
		return nil
	}
	known, err := h.Index.TokenByID(c.Request().Context(), g.TokenID)
	if errors.Is(err, registry.ErrNotFound) {
		return errToken // revoked
	}
	if err != nil {
		return err
	}
	id, err := access.Of(known)
	if err != nil {
		return err
	}
	door.SetIdentity(c, id)
	return nil
}

// errScope reports that the token of the request is not for that.
var errScope = errors.New("insufficient scope")

// reach makes sure that the token of the request is for the action in the repository, and tells whether it is for anything there.
func (h *Handler) reach(c echo.Context, repository, action string) (known bool, err error) {
	scopes, limited := c.Get(scopesKey).([]Scope)
	i := slices.IndexFunc(scopes, func(s Scope) bool { return s.Repository == repository })
	if !limited || i >= 0 && slices.Contains(scopes[i].Actions, action) {
		return true, nil
	}
	wanted := Scope{repository, []string{action}}
	return i >= 0, fmt.Errorf("%w: %w", errScope, coded(http.StatusUnauthorized, "UNAUTHORIZED", "the token is not for this; ask for one with the scope %s", wanted))
}

// repository finds a repository when the token of the request is for the action there and the caller may do it. To who may not, no other
// token helps; the error says so, unless the token is for nothing in that repository, of which its bearer learns nothing.
func (h *Handler) repository(c echo.Context, name, action string) (registry.OCIRepository, error) {
	known, scopeErr := h.reach(c, name, action)
	if !known {
		return registry.OCIRepository{}, scopeErr
	}
	r, err := h.Lifecycle.OCIRepository(c.Request().Context(), door.Request(c), name, rights[action])
	if err == nil {
		err = scopeErr
	}
	return r, err
}

// challenge says where to get a token, for what, and what is wrong with the one that came. The place itself asks for the password.
// Source: distribution project, docs/spec/auth/token.md, "How to authenticate"; RFC 6750, section 3.1.
func (h *Handler) challenge(c echo.Context, err error) string {
	if c.Path() == "/v2/token" {
		return `Basic realm="herdbook", charset="UTF-8"`
	}
	public := door.PublicURL(c, h.PublicURL)
	challenge := fmt.Sprintf("Bearer realm=%q,service=%q", public.JoinPath("v2", "token"), public.Host)
	if s, ok := needed(c.Request().Method, c.Param("*")); ok {
		scope := s.String()
		// A blob that is mounted comes from another repository, which the token has to be for, too.
		if from := c.QueryParam("from"); c.QueryParam("mount") != "" && c.Request().Method == http.MethodPost && registry.CheckRepositoryName(from) == nil {
			scope += " " + Scope{Repository: from, Actions: []string{pull}}.String()
		}
		challenge += fmt.Sprintf(",scope=%q", scope)
	}
	switch {
	case errors.Is(err, errScope):
		challenge += `,error="insufficient_scope"`
	case errors.Is(err, registry.ErrWrongToken):
		challenge += `,error="invalid_token"`
	}
	return challenge
}

// needed is the scope that a request with that path below /v2/ needs, if it is known.
func needed(method, path string) (s Scope, ok bool) {
	if path == "_catalog" {
		return Scope{Actions: []string{every}}, true
	}
	switch method {
	case http.MethodGet, http.MethodHead:
		s.Actions = []string{pull}
	case http.MethodDelete:
		s.Actions = []string{remove}
	default:
		s.Actions = []string{pull, push}
	}
	if s.Repository, ok = strings.CutSuffix(path, "/tags/list"); !ok {
		rest, _, _ := cutLast(path)
		if s.Repository, ok = strings.CutSuffix(rest, "/blobs/uploads"); ok {
			s.Actions = []string{pull, push}
		} else {
			var kind string
			s.Repository, kind, _ = cutLast(rest)
			ok = slices.Contains([]string{"manifests", "blobs", "referrers"}, kind)
		}
	}
	return s, ok && registry.CheckRepositoryName(s.Repository) == nil
}

// tokenAnswer is a token as clients read it.
// Source: distribution project, docs/spec/auth/token.md and oauth.md, "Token Response Fields".
type tokenAnswer struct {
	Token        string    `json:"token"`
	AccessToken  string    `json:"access_token"` // the same, by its name in OAuth 2
	ExpiresIn    int       `json:"expires_in"`   // seconds
	IssuedAt     time.Time `json:"issued_at"`
	Scope        string    `json:"scope"`
	RefreshToken string    `json:"refresh_token,omitempty"`
}

// token gives a token to who said in the header of the request who it is, or to a stranger where strangers read.
// Source: distribution project, docs/spec/auth/token.md, "Requesting a Token".
func (h *Handler) token(c echo.Context) error { return h.issue(c, c.QueryParams()["scope"], "") }

// maxTokenForm bounds the body that asks for a token, in bytes.
const maxTokenForm = 64 << 10

// exchange gives a token to who says in the body who it is. Source: distribution project, docs/spec/auth/oauth.md.
func (h *Handler) exchange(c echo.Context) error {
	r := c.Request()
	r.Body = http.MaxBytesReader(c.Response(), r.Body, maxTokenForm)
	if err := r.ParseForm(); err != nil {
		return coded(http.StatusBadRequest, "UNSUPPORTED", "the body is no form of at most %d bytes", maxTokenForm)
	}
	var secret string
	switch r.PostForm.Get("grant_type") {
	case "password":
		secret = r.PostForm.Get("password")
	case "refresh_token":
		secret = r.PostForm.Get("refresh_token")
	default:
		return coded(http.StatusBadRequest, "UNSUPPORTED", "the grant_type is password or refresh_token")
	}
	if !door.Identity(c).Authenticated() && secret != auth.Anonymous {
		id, err := auth.Of(r.Context(), h.Index, secret)
		if err != nil {
			return err
		}
		door.SetIdentity(c, id)
	}
	if r.PostForm.Get("access_type") != "offline" {
		secret = ""
	}
	return h.issue(c, r.PostForm["scope"], secret)
}

// issue answers with a token of the caller's.
func (h *Handler) issue(c echo.Context, asked []string, refresh string) error {
	id := door.Identity(c)
	if id.Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	if c.Get(scopesKey) != nil { // else whoever finds one has it for ever
		return errToken
	}
	scopes, err := ParseScopes(asked)
	if err != nil {
		return coded(http.StatusBadRequest, "UNSUPPORTED", "%s", problem.Detail(err))
	}
	g := Grant{TokenID: id.TokenID, IssuedAt: time.Now().UTC().Truncate(time.Second)}
	granted := []string{}
	for _, s := range scopes {
		if s, err = h.grant(c, s); err != nil {
			return err
		}
		if len(s.Actions) > 0 {
			g.Scopes, granted = append(g.Scopes, s), append(granted, s.String())
		}
	}
	token := h.Tokens.Sign(g)
	c.Response().Header().Set(echo.HeaderCacheControl, "no-store")
	return c.JSON(http.StatusOK, tokenAnswer{
		Token: token, AccessToken: token, ExpiresIn: int(tokenLife.Seconds()), IssuedAt: g.IssuedAt, Scope: strings.Join(granted, " "), RefreshToken: refresh,
	})
}

// grant leaves of a scope what the caller may do. Who said who it is may also ask for what is not there, and is then told that it is not
// there; to a stranger that is the same as what it may not read.
// Source: distribution project, docs/spec/auth/token.md, "Requesting a Token": an action that is not granted is left out.
func (h *Handler) grant(c echo.Context, s Scope) (Scope, error) {
	if s.Repository == "" {
		return s, nil // the list has in it what the caller may read
	}
	by := door.Request(c)
	granted := Scope{Repository: s.Repository}
	for _, action := range s.Actions {
		_, err := h.Lifecycle.OCIRepository(c.Request().Context(), by, s.Repository, rights[action])
		if err != nil {
			switch class := problem.Of(err); {
			case class == problem.NotFound && action == pull && by.Identity.Authenticated():
			case class == problem.Internal, class == problem.Unavailable, class == problem.Canceled:
				return s, err
			default:
				continue
			}
		}
		granted.Actions = append(granted.Actions, action)
	}
	return granted, nil
}
