package oci_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/oci"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

func TestParseScopes(t *testing.T) {
	long := strings.Repeat("a", 255)
	tests := []struct {
		name  string
		texts []string
		want  string
	}{
		{"none", nil, ""},
		{"an empty one", []string{""}, ""},
		{"one", []string{"repository:acme/fraud:pull"}, "repository:acme/fraud:pull"},
		{"several parameters", []string{"repository:a:pull", "repository:b:push"}, "repository:a:pull repository:b:push"},
		{"several in one", []string{" repository:a:pull  repository:b:push "}, "repository:a:pull repository:b:push"},
		{"actions in another order", []string{"repository:a:delete,push,pull"}, "repository:a:pull,push,delete"},
		{"an action twice", []string{"repository:a:pull,pull"}, "repository:a:pull"},
		{"every action", []string{"repository:a:*"}, "repository:a:pull,push,delete"},
		{"every action and one", []string{"repository:a:*,pull"}, "repository:a:pull,push,delete"},
		{"a repository twice", []string{"repository:a:push", "repository:b:pull", "repository:a:pull"}, "repository:a:pull,push repository:b:pull"},
		{"the catalog", []string{"registry:catalog:*"}, "registry:catalog:*"},
		{"the catalog twice", []string{"registry:catalog:*", "registry:catalog:*"}, "registry:catalog:*"},
		{"the longest name", []string{"repository:" + long + ":pull"}, "repository:" + long + ":pull"},
		{"an action that nobody knows", []string{"repository:a:pull,fly"}, "repository:a:pull"},
		{"only actions that nobody knows", []string{"repository:a:fly"}, ""},
		{"no action", []string{"repository:a:"}, ""},
		{"no colon", []string{"repository"}, ""},
		{"one colon", []string{"repository:a"}, ""},
		{"no name", []string{"repository::pull"}, ""},
		{"a host", []string{"repository:127.0.0.1:5000/a:pull"}, ""},
		{"upper case", []string{"repository:A:pull"}, ""},
		{"a longer name", []string{"repository:" + long + "a:pull"}, ""},
		{"another type", []string{"repository(plugin):a:pull", "user:a:pull"}, ""},
		{"a part of the catalog", []string{"registry:catalog:pull", "registry:other:*"}, ""},
		{"a bad one between good ones", []string{"repository:a:pull ::: repository:b:pull"}, "repository:a:pull repository:b:pull"},
	}
	for _, test := range tests {
		got, err := oci.ParseScopes(test.texts)
		if text := join(got); text != test.want || err != nil {
			t.Errorf("%s: ParseScopes(%q) = %q, %v, want %q", test.name, test.texts, text, err, test.want)
		}
	}
}

func TestParseScopesBounds(t *testing.T) {
	scopes := func(n int) []string {
		texts := make([]string, n)
		for i := range texts {
			texts[i] = fmt.Sprintf("repository:team/r%d:pull", i)
		}
		return texts
	}
	tests := []struct {
		name  string
		texts []string
		want  int // -1 for too much
	}{
		{"100 scopes", scopes(100), 100},
		{"101 scopes", scopes(101), -1},
		{"101 scopes in one text", []string{strings.Join(scopes(101), " ")}, -1},
		{"8 KiB", []string{strings.Repeat(" ", 8<<10)}, 0},
		{"more than 8 KiB", []string{strings.Repeat(" ", 8<<10), " "}, -1},
	}
	for _, test := range tests {
		got, err := oci.ParseScopes(test.texts)
		if (err != nil) != (test.want < 0) || (err == nil && len(got) != test.want) {
			t.Errorf("%s: ParseScopes = %d scopes, %v, want %d, -1 for an error", test.name, len(got), err, test.want)
		}
	}
}

func join(scopes []oci.Scope) string {
	texts := make([]string, len(scopes))
	for i, s := range scopes {
		texts[i] = s.String()
	}
	return strings.Join(texts, " ")
}

// FuzzParseScopes: what is taken is a scope that this server knows, each repository comes once, and written out it is read as the same.
func FuzzParseScopes(f *testing.F) {
	for _, seed := range []string{
		"repository:acme/fraud:pull,push", "repository:a:*", "registry:catalog:*", "repository:a:b:pull", "::", "repository:a:pull repository:a:delete",
		"repository:a\x00:pull", "registry:catalog:* registry:catalog:*", "repository:a:pull,*,fly\trepository:b/c_d:push",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		scopes, err := oci.ParseScopes([]string{text})
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, s := range scopes {
			ok := s.Repository == "" && cmp.Equal(s.Actions, []string{"*"})
			if s.Repository != "" && len(s.Actions) > 0 && strings.Contains(text, s.Repository) {
				ok = registry.CheckRepositoryName(s.Repository) == nil && strings.Contains("pull,push,delete pull,delete", strings.Join(s.Actions, ","))
			}
			if !ok || seen[s.Repository] {
				t.Errorf("ParseScopes(%q) has %+v in it, or twice", text, s)
			}
			seen[s.Repository] = true
		}
		again, err := oci.ParseScopes([]string{join(scopes)})
		if diff := cmp.Diff(scopes, again); diff != "" || err != nil {
			t.Errorf("ParseScopes of what it gave for %q (- first, + again; %v):\n%s", text, err, diff)
		}
	})
}

var (
	testTokens = oci.Tokens{Key: []byte("0123456789abcdef0123456789abcdef")}
	issuedAt   = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
)

func TestTokens(t *testing.T) {
	full := oci.Grant{TokenID: "0123456789abcdef", IssuedAt: issuedAt, Scopes: []oci.Scope{{Repository: "acme/fraud", Actions: []string{"pull", "push"}}, {Actions: []string{"*"}}}}
	asked := ""
	for i := range 100 { // as much as may be asked for
		asked += fmt.Sprintf(" repository:%s%03d:*", strings.Repeat("a", 64), i)
	}
	scopes, err := oci.ParseScopes([]string{asked})
	if err != nil || len(scopes) != 100 {
		t.Fatalf("ParseScopes of %d bytes = %d scopes, %v, want 100", len(asked), len(scopes), err)
	}
	for _, g := range []oci.Grant{full, {IssuedAt: issuedAt}, {IssuedAt: issuedAt, Scopes: scopes}} {
		token := testTokens.Sign(g)
		got, ok := testTokens.Verify(token, issuedAt)
		if diff := cmp.Diff(g, got); diff != "" || !ok {
			t.Errorf("Verify(Sign(%+v)) = %v (- want, + got):\n%s", g, ok, diff)
		}
	}
	token := testTokens.Sign(full)
	payload, mac, _ := strings.Cut(token, ".")
	tests := []struct {
		name, token string
		tokens      oci.Tokens
		age         time.Duration
		want        bool
	}{
		{"new", token, testTokens, 0, true},
		{"in its last second", token, testTokens, 5*time.Minute - time.Second, true},
		{"expired", token, testTokens, 5 * time.Minute, false},
		{"long expired", token, testTokens, 1000 * time.Hour, false},
		{"of the future", token, testTokens, -time.Second, false},
		{"of another server", token, oci.Tokens{Key: []byte("another")}, 0, false},
		{"without its prefix", strings.TrimPrefix(token, "hbr_"), testTokens, 0, false},
		{"without its MAC", payload, testTokens, 0, false},
		{"with an empty MAC", payload + ".", testTokens, 0, false},
		{"with a part of its MAC", token[:len(token)-2], testTokens, 0, false},
		{"with more behind", token + "0", testTokens, 0, false},
		{"with the MAC in upper case", payload + "." + strings.ToUpper(mac), testTokens, 0, false},
		{"with the MAC of another", payload + testTokens.Sign(oci.Grant{IssuedAt: issuedAt})[len(testTokens.Sign(oci.Grant{IssuedAt: issuedAt}))-65:], testTokens, 0, false},
		{"nothing", "", testTokens, 0, false},
		{"only the prefix", "hbr_", testTokens, 0, false},
	}
	for _, test := range tests {
		if _, ok := test.tokens.Verify(test.token, issuedAt.Add(test.age)); ok != test.want {
			t.Errorf("Verify of a token %s = %v, want %v", test.name, ok, test.want)
		}
	}
}

// FuzzTokens: a token says what was signed, and with any other byte in it nothing.
func FuzzTokens(f *testing.F) {
	f.Add("0123456789abcdef", "repository:acme/fraud:pull", int64(1_800_000_000), uint16(10), byte('x'))
	f.Add("", "registry:catalog:*", int64(0), uint16(3), byte('_'))
	f.Add("a", "repository:a:* repository:b:push", int64(-1), uint16(65535), byte(0))
	f.Fuzz(func(t *testing.T, id, scope string, at int64, position uint16, other byte) {
		scopes, err := oci.ParseScopes([]string{scope})
		if err != nil || strings.Contains(id, "\n") || at < -1<<40 || at > 1<<40 {
			return
		}
		g := oci.Grant{TokenID: id, IssuedAt: time.Unix(at, 0).UTC(), Scopes: scopes}
		token := testTokens.Sign(g)
		got, ok := testTokens.Verify(token, g.IssuedAt)
		if diff := cmp.Diff(g, got); diff != "" || !ok {
			t.Errorf("Verify(%q) = %v (- signed, + got):\n%s", token, ok, diff)
		}
		changed := []byte(token)
		changed[int(position)%len(changed)] = other
		if _, ok := testTokens.Verify(string(changed), g.IssuedAt); ok && string(changed) != token {
			t.Errorf("Verify(%q) is ok, and only %q was signed", changed, token)
		}
	})
}

// FuzzVerify: what is a token was made by Sign.
func FuzzVerify(f *testing.F) {
	f.Add(testTokens.Sign(oci.Grant{TokenID: "1", IssuedAt: issuedAt}))
	f.Add(testTokens.Sign(oci.Grant{IssuedAt: issuedAt, Scopes: []oci.Scope{{Repository: "a", Actions: []string{"pull"}}}}))
	f.Add("hbr_.")
	f.Add("hbr_" + strings.Repeat("A", 100) + "." + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, token string) {
		if g, ok := testTokens.Verify(token, issuedAt); ok && testTokens.Sign(g) != token {
			t.Errorf("Verify(%q) = %+v, and that is signed as %q", token, g, testTokens.Sign(g))
		}
	})
}

// startTokens starts a server with testTokens, a public model acme/fraud and a private one acme/hidden.
func startTokens(tb testing.TB, change ...func(*apitest.Config)) *apitest.Server {
	tb.Helper()
	s := apitest.Start(tb, append(change, func(c *apitest.Config) { c.OCI.Tokens = testTokens })...)
	s.Model("acme/fraud", registry.Public)
	s.Model("acme/hidden", registry.Private)
	return s
}

// tokenOf makes a token of Herdbook's for somebody.
func tokenOf(s *apitest.Server, owner string, role access.Role) (secret string, kept registry.Token) {
	secret, kept = api.NewToken(owner, role)
	s.Commit(registry.TokenCreated{Token: kept})
	return secret, kept
}

type issued struct {
	Token, Scope string
	AccessToken  string    `json:"access_token"`
	RefreshToken string    `json:"refresh_token"`
	ExpiresIn    int       `json:"expires_in"`
	IssuedAt     time.Time `json:"issued_at"`
}

// ask gets a token with the secret as the password; without one, as a stranger.
func ask(tb testing.TB, s *apitest.Server, secret string, scopes ...string) issued {
	tb.Helper()
	var header []string
	if secret != "" {
		r := &http.Request{Header: http.Header{}}
		r.SetBasicAuth("any", secret)
		header = []string{"Authorization", r.Header.Get("Authorization")}
	}
	a := s.Do("GET", "/v2/token?"+url.Values{"service": {"x"}, "account": {"any"}, "client_id": {"docker"}, "offline_token": {"true"}, "scope": scopes}.Encode(), "", header...)
	return answered(tb, a)
}

func answered(tb testing.TB, a apitest.Answer) issued {
	tb.Helper()
	var got issued
	if err := json.Unmarshal([]byte(a.Body), &got); a.Status != 200 || err != nil {
		tb.Fatalf("/v2/token = %d %s, %v, want 200", a.Status, a.Body, err)
	}
	if age := time.Since(got.IssuedAt); got.Token == "" || got.AccessToken != got.Token || got.ExpiresIn != 300 || age < 0 || age > time.Minute || a.Header.Get("Cache-Control") != "no-store" {
		tb.Fatalf("/v2/token = %s %v, want a token under both names, issued now, for 300 s, that no cache keeps", a.Body, a.Header)
	}
	return got
}

// with sends a request with a token.
func with(s *apitest.Server, token, method, path string) apitest.Answer {
	return s.Do(method, path, "", "Authorization", "Bearer "+token)
}

func TestToken(t *testing.T) {
	s := startTokens(t)
	closed := startTokens(t, func(c *apitest.Config) { c.API.AnonymousRead = false })
	everybody := startTokens(t, func(c *apitest.Config) { c.API.NoAuth = true })
	const fraudScope, hiddenScope = "repository:acme/fraud:pull", "repository:acme/hidden:pull"
	stranger, admin := ask(t, s, "", fraudScope, hiddenScope), ask(t, s, s.Token, fraudScope, hiddenScope)
	for _, test := range []struct {
		name, token, path string
		server            *apitest.Server
		status            int
	}{
		{"a stranger", stranger.Token, "/v2/", s, 200},
		{"a stranger", stranger.Token, "/v2/acme/fraud/tags/list", s, 200},
		{"a stranger", stranger.Token, "/v2/acme/hidden/tags/list", s, 401},
		{"an administrator", admin.Token, "/v2/", s, 200},
		{"an administrator", admin.Token, "/v2", s, 200},
		{"an administrator", admin.Token, "/v2/acme/hidden/tags/list", s, 200},
		{"a stranger who got a token while strangers read", stranger.Token, "/v2/acme/fraud/tags/list", closed, 401},
		{"a stranger who got a token while strangers read", stranger.Token, "/v2/", closed, 401},
		{"anybody where everybody may do everything", ask(t, everybody, "").Token, "/v2/acme/hidden/tags/list", everybody, 200},
	} {
		if a := with(test.server, test.token, "GET", test.path); a.Status != test.status {
			t.Errorf("GET %s as %s = %d %s, want %d", test.path, test.name, a.Status, a.Body, test.status)
		}
	}
	for _, got := range []issued{stranger, admin} {
		if strings.Contains(got.Token, s.Token) || !strings.HasPrefix(got.Token, "hbr_") || got.RefreshToken != "" {
			t.Errorf("GET /v2/token = %+v, want a token that is not the one that was sent, and no refresh_token", got)
		}
	}
	for name, a := range map[string]apitest.Answer{
		"a wrong password":                         s.Do("GET", "/v2/token", "", "Authorization", "Basic YW55OmhiX3dyb25n"),
		"a stranger, where strangers read nothing": closed.Do("GET", "/v2/token", ""),
		"a token of its own":                       with(s, admin.Token, "GET", "/v2/token"),
		"a stranger's token of its own":            with(s, stranger.Token, "GET", "/v2/token?scope="+fraudScope),
	} {
		if a.Status != 401 || !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Basic ") || codeOf(a) != "UNAUTHORIZED" {
			t.Errorf("GET /v2/token with %s = %d %s %v, want 401 that asks for a password", name, a.Status, a.Body, a.Header)
		}
	}
	if a := s.Do("GET", "/v2/token?scope="+strings.Repeat("a", 9000), ""); a.Status != 400 || codeOf(a) != "UNSUPPORTED" {
		t.Errorf("GET /v2/token with a scope of 9,000 bytes = %d %s, want 400", a.Status, a.Body)
	}
	for _, secret := range []string{s.Token, stranger.Token, admin.Token, "hb_wrong", "YW55OmhiX3dyb25n"} {
		if strings.Contains(s.Log.String(), secret) {
			t.Errorf("the log has the secret %q in it:\n%s", secret, s.Log)
		}
	}
}

func TestTokenByPost(t *testing.T) {
	s := startTokens(t)
	closed := startTokens(t, func(c *apitest.Config) { c.API.AnonymousRead = false })
	everybody := startTokens(t, func(c *apitest.Config) { c.API.NoAuth = true })
	const scope = "repository:acme/hidden:pull repository:acme/fraud:pull"
	secret, _ := tokenOf(s, "bob", access.Writer)
	form := func(pairs ...string) url.Values {
		v := url.Values{"service": {"x"}, "client_id": {"containerd-client"}, "scope": {scope}}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	tests := []struct {
		name           string
		server         *apitest.Server
		form           url.Values
		status         int
		scope, refresh string
	}{
		{"password", s, form("grant_type", "password", "username", "any", "password", secret), 200, scope, ""},
		{"password, to be refreshed", s, form("grant_type", "password", "password", secret, "access_type", "offline"), 200, scope, secret},
		{"refresh token", s, form("grant_type", "refresh_token", "refresh_token", secret), 200, scope, ""},
		{"refresh token, to be refreshed again", s, form("grant_type", "refresh_token", "refresh_token", secret, "access_type", "offline"), 200, scope, secret},
		{"a stranger's password", s, form("grant_type", "password", "password", "anonymous"), 200, "repository:acme/fraud:pull", ""},
		{"a stranger's password where strangers read nothing", closed, form("grant_type", "password", "password", "anonymous"), 401, "", ""},
		{"anything where everybody may do everything", everybody, form("grant_type", "password", "password", "x"), 200, scope, ""},
		{"a wrong password", s, form("grant_type", "password", "password", "hb_wrong"), 401, "", ""},
		{"no password", s, form("grant_type", "password"), 401, "", ""},
		{"the password under another name", s, form("grant_type", "refresh_token", "password", secret), 401, "", ""},
		{"a token of its own", s, form("grant_type", "refresh_token", "refresh_token", ask(t, s, secret).Token), 401, "", ""},
		{"no type", s, form("password", secret), 400, "", ""},
		{"another type", s, form("grant_type", "authorization_code", "password", secret), 400, "", ""},
		{"too long", s, form("grant_type", "password", "password", strings.Repeat("a", 70<<10)), 400, "", ""},
	}
	for _, test := range tests {
		a := test.server.Do("POST", "/v2/token", test.form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		if a.Status != test.status {
			t.Errorf("%s: POST /v2/token = %d %s, want %d", test.name, a.Status, a.Body, test.status)
			continue
		}
		if test.status != 200 {
			if codeOf(a) == "" {
				t.Errorf("%s: POST /v2/token = %s, want an error of the distribution specification", test.name, a.Body)
			}
			continue
		}
		if got := answered(t, a); got.Scope != test.scope || got.RefreshToken != test.refresh {
			t.Errorf("%s: POST /v2/token gives the scope %q and the refresh_token %q, want %q and %q", test.name, got.Scope, got.RefreshToken, test.scope, test.refresh)
		}
	}
	// What a query says is in logs on the way.
	a := s.Do("POST", "/v2/token?"+form("grant_type", "password", "password", secret).Encode(), "", "Content-Type", "application/x-www-form-urlencoded")
	if a.Status != 400 {
		t.Errorf("POST /v2/token with everything in the query = %d %s, want 400", a.Status, a.Body)
	}
	if strings.Contains(s.Log.String(), secret) {
		t.Errorf("the log has the secret in it:\n%s", s.Log)
	}
}

func TestGranted(t *testing.T) {
	s := startTokens(t)
	reader, _ := tokenOf(s, "ron", access.Reader)
	writer, _ := tokenOf(s, "wim", access.Writer)
	tests := []struct{ name, secret, asked, want string }{
		{"a stranger", "", "repository:acme/fraud:pull,push,delete", "repository:acme/fraud:pull"},
		{"a stranger", "", "repository:acme/hidden:pull,push", ""},
		{"a stranger", "", "repository:acme/absent:pull,push", ""},
		{"a stranger", "", "registry:catalog:*", "registry:catalog:*"},
		{"a reader", reader, "repository:acme/fraud:*", "repository:acme/fraud:pull"},
		{"a reader", reader, "repository:acme/hidden:pull,push", "repository:acme/hidden:pull"},
		{"a reader", reader, "repository:acme/absent:pull,push", "repository:acme/absent:pull"},
		{"a writer", writer, "repository:acme/fraud:*", "repository:acme/fraud:pull,push,delete"},
		{"a writer", writer, "repository:acme/fraud:pull", "repository:acme/fraud:pull"},
		{"a writer", writer, "repository:team/new/deep:pull,push", "repository:team/new/deep:pull,push"},
		{"a writer", writer, "repository:acme/fraud/image:push", "repository:acme/fraud/image:push"},
		{"a writer, without such a model", writer, "repository:acme/absent/image:pull,push", "repository:acme/absent/image:pull,push"},
		{"a writer", writer, "repository:x:push registry:catalog:* nonsense", "repository:x:push registry:catalog:*"},
	}
	for _, test := range tests {
		if got := ask(t, s, test.secret, test.asked).Scope; got != test.want {
			t.Errorf("%s asks for %q and gets %q, want %q", test.name, test.asked, got, test.want)
		}
	}
}

// A token does what it was asked for; the answer to anything else says what to ask for.
func TestScopes(t *testing.T) {
	s := startTokens(t)
	const fraud = "repository:acme/fraud:"
	d := "sha256:" + strings.Repeat("0", 64)
	scopes := []string{fraud + "pull", fraud + "push", fraud + "delete", fraud + "pull,push", fraud + "pull,push,delete", "registry:catalog:*", "repository:acme/hidden:pull,push,delete", ""}
	tests := []struct {
		method, path string
		needed       string   // as the challenge says
		enough       []string // of scopes
	}{
		{"GET", "/v2/acme/fraud/tags/list", fraud + "pull", []string{fraud + "pull", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"GET", "/v2/acme/fraud/manifests/x", fraud + "pull", []string{fraud + "pull", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"HEAD", "/v2/acme/fraud/blobs/" + d, fraud + "pull", []string{fraud + "pull", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"GET", "/v2/acme/fraud/referrers/" + d, fraud + "pull", []string{fraud + "pull", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"GET", "/v2/acme/fraud/blobs/uploads/x", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"POST", "/v2/acme/fraud/blobs/uploads/", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"POST", "/v2/acme/fraud/blobs/uploads", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"PATCH", "/v2/acme/fraud/blobs/uploads/x", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"PUT", "/v2/acme/fraud/blobs/uploads/x", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"DELETE", "/v2/acme/fraud/blobs/uploads/x", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"PUT", "/v2/acme/fraud/manifests/x", fraud + "pull,push", []string{fraud + "push", fraud + "pull,push", fraud + "pull,push,delete"}},
		{"DELETE", "/v2/acme/fraud/manifests/x", fraud + "delete", []string{fraud + "delete", fraud + "pull,push,delete"}},
		{"DELETE", "/v2/acme/fraud/manifests/" + d, fraud + "delete", []string{fraud + "delete", fraud + "pull,push,delete"}},
		{"DELETE", "/v2/acme/fraud/blobs/" + d, fraud + "delete", []string{fraud + "delete", fraud + "pull,push,delete"}},
		{"GET", "/v2/_catalog", "registry:catalog:*", []string{"registry:catalog:*"}},
		{"GET", "/v2/", "", scopes},
	}
	for _, scope := range scopes {
		token := ask(t, s, s.Token, scope).Token
		for _, test := range tests {
			a := with(s, token, test.method, test.path)
			enough := strings.Contains(strings.Join(test.enough, " ")+" ", scope+" ") && (scope != "" || test.needed == "")
			switch challenge := a.Header.Get("WWW-Authenticate"); {
			case enough && a.Status == 401, a.Status >= 500:
				t.Errorf("%s %s with a token for %q = %d %s, want that it is let in", test.method, test.path, scope, a.Status, a.Body)
			case enough:
			case a.Status != 401 || !strings.HasSuffix(challenge, fmt.Sprintf(`,scope="%s",error="insufficient_scope"`, test.needed)) || (codeOf(a) != "UNAUTHORIZED" && test.method != "HEAD"):
				t.Errorf("%s %s with a token for %q = %d %s, asks %s; want 401 that asks for %q", test.method, test.path, scope, a.Status, a.Body, challenge, test.needed)
			}
		}
	}
}

// Who may not do something is told so, also by way of a token that does not allow it, and is not sent for another one.
func TestScopeThatNobodyGives(t *testing.T) {
	s := startTokens(t)
	reader, _ := tokenOf(s, "ron", access.Reader)
	for _, test := range []struct {
		name, secret, method, path, scope string
		status                            int
		code                              string
	}{
		{"a stranger", "", "POST", "/v2/acme/fraud/blobs/uploads/", "repository:acme/fraud:pull,push", 401, "UNAUTHORIZED"},
		{"a reader", reader, "POST", "/v2/acme/fraud/blobs/uploads/", "repository:acme/fraud:pull,push", 403, "DENIED"},
		{"a reader", reader, "DELETE", "/v2/acme/fraud/manifests/x", "repository:acme/fraud:*", 403, "DENIED"},
		{"a reader", reader, "POST", "/v2/acme/absent/blobs/uploads/", "repository:acme/absent:pull,push", 403, "DENIED"},
		{"a reader", reader, "GET", "/v2/acme/absent/tags/list", "repository:acme/absent:pull,push", 404, "NAME_UNKNOWN"},
	} {
		if a := with(s, ask(t, s, test.secret, test.scope).Token, test.method, test.path); a.Status != test.status || codeOf(a) != test.code {
			t.Errorf("%s %s as %s with a token for %q = %d %s, want %d %s", test.method, test.path, test.name, test.scope, a.Status, a.Body, test.status, test.code)
		}
	}
}

// What a token is not for looks the same whether it is there or not, and so does what a stranger may not read.
func TestTokenTellsNothing(t *testing.T) {
	s := startTokens(t)
	for _, test := range []struct{ name, secret string }{{"a stranger", ""}, {"an administrator", s.Token}} {
		var seen []string
		for _, name := range []string{"acme/hidden", "acme/absent"} {
			asked := []string{"repository:acme/fraud:pull"}
			if test.secret == "" {
				asked = append(asked, "repository:"+name+":pull,push,delete")
			}
			got := ask(t, s, test.secret, asked...)
			text := got.Scope
			for _, request := range []string{"GET tags/list", "GET manifests/v1.0.0", "POST blobs/uploads/", "PUT manifests/x", "DELETE manifests/x"} {
				method, path, _ := strings.Cut(request, " ")
				a := with(s, got.Token, method, "/v2/"+name+"/"+path)
				text += fmt.Sprintf("\n%s: %d %s %s", request, a.Status, a.Header.Get("WWW-Authenticate"), a.Body)
			}
			seen = append(seen, strings.ReplaceAll(text, name, "NAME"))
		}
		if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
			t.Errorf("%s sees what is hidden (-) unlike what is not there (+):\n%s", test.name, diff)
		}
	}
}

// What strangers are asked for when they bring nothing is what the request needs.
func TestChallenge(t *testing.T) {
	s := startTokens(t)
	for _, test := range []struct{ method, path, want string }{
		{"GET", "/v2/", ""},
		{"GET", "/v2/_catalog", `,scope="registry:catalog:*"`},
		{"GET", "/v2/acme/fraud/manifests/latest", `,scope="repository:acme/fraud:pull"`},
		{"GET", "/v2/acme/fraud/image/tags/list", `,scope="repository:acme/fraud/image:pull"`},
		{"PUT", "/v2/team/x/manifests/v1", `,scope="repository:team/x:pull,push"`},
		{"POST", "/v2/team/x/blobs/uploads/?mount=x&from=y", `,scope="repository:team/x:pull,push repository:y:pull"`},
		{"GET", "/v2/a/blobs/uploads/b/manifests/v1", `,scope="repository:a/blobs/uploads/b:pull"`},
		{"GET", "/v2/UPPER/manifests/v1", ""},
		{"GET", `/v2/a"b/manifests/v1`, ""},
	} {
		a := s.Do(test.method, test.path, "", "Authorization", "Bearer hb_wrong")
		want := fmt.Sprintf("Bearer realm=%q,service=%q%s,error=\"invalid_token\"", s.URL+"/v2/token", strings.TrimPrefix(s.URL, "http://"), test.want)
		if got := a.Header.Get("WWW-Authenticate"); a.Status != 401 || got != want {
			t.Errorf("%s %s with a wrong token = %d, asks %s; want 401, %s", test.method, test.path, a.Status, got, want)
		}
	}
	if a := s.Do("POST", "/v2/team/x/blobs/uploads/", ""); a.Status != 401 || !strings.HasSuffix(a.Header.Get("WWW-Authenticate"), `,scope="repository:team/x:pull,push"`) {
		t.Errorf("POST of a stranger = %d %v, want 401 that asks for pull and push and finds nothing wrong", a.Status, a.Header)
	}
}

func TestTokenThatIsNoMore(t *testing.T) {
	s := startTokens(t)
	secret, kept := tokenOf(s, "wim", access.Writer)
	now := time.Now()
	sign := func(id string, at time.Time) string {
		return testTokens.Sign(oci.Grant{TokenID: id, IssuedAt: at, Scopes: []oci.Scope{{Repository: "acme/fraud", Actions: []string{"pull", "push"}}}})
	}
	good := sign(kept.ID, now)
	for _, test := range []struct {
		name, token string
		status      int
	}{
		{"good", good, 202},
		{"a stranger's, that was signed for more than strangers may", sign("", now), 401},
		{"expired", sign(kept.ID, now.Add(-6*time.Minute)), 401},
		{"of the future", sign(kept.ID, now.Add(time.Minute)), 401},
		{"of a token that never was", sign("0123", now), 401},
		{"of another server", oci.Tokens{Key: []byte("another")}.Sign(oci.Grant{TokenID: kept.ID, IssuedAt: now}), 401},
	} {
		a := with(s, test.token, "POST", "/v2/acme/fraud/blobs/uploads/")
		if a.Status != test.status {
			t.Errorf("a push with a token that is %s = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
		if wrong := !strings.HasPrefix(test.name, "a stranger") && test.status == 401; wrong != strings.HasSuffix(a.Header.Get("WWW-Authenticate"), `,error="invalid_token"`) {
			t.Errorf("a push with a token that is %s asks %q, invalid_token is there: want %v", test.name, a.Header.Get("WWW-Authenticate"), wrong)
		}
	}
	// The right is that of now.
	weaker := kept
	weaker.Role = "reader"
	s.Commit(registry.TokenCreated{Token: weaker})
	if a := with(s, good, "POST", "/v2/acme/fraud/blobs/uploads/"); a.Status != 403 {
		t.Errorf("a push with a token of a writer who is only a reader now = %d %s, want 403", a.Status, a.Body)
	}
	if a := with(s, good, "GET", "/v2/acme/fraud/tags/list"); a.Status != 200 {
		t.Errorf("a pull with that token = %d %s, want 200", a.Status, a.Body)
	}
	s.Commit(registry.TokenRevoked{TokenID: kept.ID})
	for _, path := range []string{"/v2/", "/v2/acme/fraud/tags/list"} {
		if a := with(s, good, "GET", path); a.Status != 401 {
			t.Errorf("GET %s with a token of one that was revoked = %d %s, want 401", path, a.Status, a.Body)
		}
	}
	if a := with(s, secret, "GET", "/v2/token"); a.Status != 401 {
		t.Errorf("GET /v2/token with the token that was revoked = %d %s, want 401", a.Status, a.Body)
	}
}

// At every other door the token is as good as a wrong one.
func TestTokenElsewhere(t *testing.T) {
	s := startTokens(t)
	token := ask(t, s, s.Token, "repository:acme/fraud:*", "registry:catalog:*").Token
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth("any", token)
	for _, test := range []struct{ method, path, body string }{
		{"GET", "/api/v1/models", ""},
		{"GET", "/api/v1/whoami", ""},
		{"GET", "/api/v1/models/acme/fraud", ""},
		{"GET", "/api/v1/../../v2/../api/v1/models", ""},
		{"GET", "/acme/fraud.git/info/refs?service=git-upload-pack", ""},
		{"POST", "/acme/fraud.git/info/lfs/objects/batch", `{"operation":"download","objects":[]}`},
	} {
		for _, authorization := range []string{"Bearer " + token, r.Header.Get("Authorization")} {
			a := s.Do(test.method, test.path, test.body, "Authorization", authorization, "Content-Type", "application/vnd.git-lfs+json", "Accept", "application/vnd.git-lfs+json")
			if a.Status != 401 {
				t.Errorf("%s %s with a token of OCI clients = %d %s, want 401", test.method, test.path, a.Status, a.Body)
			}
		}
	}
}

func TestTokenAndMount(t *testing.T) {
	s := startTokens(t)
	m := s.Model("acme/source", registry.Private)
	d := s.Blob(m, []byte("shared"))
	writer, _ := tokenOf(s, "wim", access.Writer)
	for _, test := range []struct {
		name   string
		scopes []string
		status int
	}{
		{"both", []string{"repository:team/x:pull,push", "repository:acme/source:pull"}, 201},
		{"the target", []string{"repository:team/y:pull,push"}, 202},
		{"the target, and pushes to the source", []string{"repository:team/z:pull,push", "repository:acme/source:push"}, 202},
		{"the source", []string{"repository:acme/source:pull,push"}, 401},
	} {
		name, _, _ := strings.Cut(strings.TrimPrefix(test.scopes[0], "repository:"), ":")
		if name == "acme/source" {
			name = "team/w"
		}
		a := with(s, ask(t, s, writer, test.scopes...).Token, "POST", "/v2/"+name+"/blobs/uploads/?mount="+d.String()+"&from=acme/source")
		if a.Status != test.status {
			t.Errorf("a mount with a token for %s = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
	}
}

func BenchmarkToken(b *testing.B) {
	s := startTokens(b)
	r, err := http.NewRequest("GET", "/v2/token?service=x&scope=repository:acme/fraud:pull,push&scope=repository:acme/hidden:pull", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.SetBasicAuth("any", s.Token)
	b.ReportAllocs()
	for b.Loop() {
		s.API.ServeHTTP(discard{http.Header{}}, r)
	}
}

// BenchmarkTags is what a request costs by what it brings.
func BenchmarkTags(b *testing.B) {
	s := startTokens(b)
	for name, token := range map[string]string{"own token": s.Token, "short-lived": ask(b, s, s.Token, "repository:acme/fraud:pull").Token} {
		b.Run(name, func(b *testing.B) {
			r, err := http.NewRequest("GET", "/v2/acme/fraud/tags/list", nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+token)
			b.ReportAllocs()
			for b.Loop() {
				s.API.ServeHTTP(discard{http.Header{}}, r)
			}
		})
	}
}
