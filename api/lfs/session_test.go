package lfs_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// userOf is the user name that a session travels as.
func userOf(tb testing.TB, header string) string {
	tb.Helper()
	r := http.Request{Header: http.Header{"Authorization": {header}}}
	user, _, ok := r.BasicAuth()
	if !ok {
		tb.Fatalf("%q is no Basic authentication", header)
	}
	return user
}

func TestSession(t *testing.T) {
	const minute = time.Minute
	for _, want := range []lfs.Session{
		{Model: "acme/fraud", ModelID: "m1", TokenID: "t1", Upload: true},
		{Model: "acme/fraud", TokenID: "t1"},
	} {
		header, expiresIn := signer.Authorization(want, at)
		user := userOf(t, header)
		if got, ok := signer.Session(user, at); !ok || got != want || expiresIn != 15*minute {
			t.Errorf("Session of %+v = %+v, %v, for %s", want, got, ok, expiresIn)
		}
		for name, wrong := range map[string]struct {
			user string
			now  time.Time
		}{
			"a moment too late":       {user, at.Add(15*minute + time.Second)},
			"another prefix":          {"hb_" + user, at},
			"no prefix":               {strings.TrimPrefix(user, "lfs-session."), at},
			"no MAC":                  {user[:strings.LastIndex(user, ".")+1], at},
			"half a MAC":              {user[:len(user)-32], at},
			"MAC in upper case":       {user[:len(user)-64] + strings.ToUpper(user[len(user)-64:]), at},
			"another payload":         {strings.Replace(user, ".", ".A", 1), at},
			"the MAC of an address":   {user[:len(user)-64] + signer.Sign(signed, at).Get("signature"), at},
			"no session":              {"", at},
			"made by somebody else":   {userOf(t, first(lfs.NewSigner([]byte(strings.Repeat("x", 32))).Authorization(want, at))), at},
			"one field more":          {resign(user, "\nx"), at},
			"signed long ago by time": {user, at.Add(24 * time.Hour)},
		} {
			if got, ok := signer.Session(wrong.user, wrong.now); ok {
				t.Errorf("%s: Session(%q) = %+v, want that it is refused", name, wrong.user, got)
			}
		}
	}
}

func first[T, U any](one T, _ U) T { return one }

// resign puts more into a session and keeps its MAC.
func resign(user, more string) string {
	parts := strings.Split(user, ".")
	text, _ := base64.RawURLEncoding.DecodeString(parts[1])
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString(append(text, more...)) + "." + parts[2]
}

// FuzzSession: nothing is a session but what the signer made.
func FuzzSession(f *testing.F) {
	want := lfs.Session{Model: "acme/fraud", ModelID: "m1", TokenID: "t1", Upload: true}
	user := userOf(f, first(signer.Authorization(want, at)))
	for _, seed := range []string{user, user[:20], "lfs-session..", "lfs-session.YQ.YQ", "", strings.ToUpper(user), user + "0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := signer.Session(text, at)
		if ok != (text == user) || ok && got != want {
			t.Errorf("Session(%q) = %+v, %v; the only session is %q", text, got, ok, user)
		}
	})
}

// sessions is a server, and a key for SSH whose sessions it makes.
func sessions(t *testing.T, role access.Role, change ...func(*apitest.Config)) (s *apitest.Server, m registry.Model, token registry.Token, header func(lfs.Session) string) {
	s, m = start(t, change...)
	token = registry.Token{ID: "0123456789abcdef", Owner: "rita", Role: role.String(), Hash: "ssh:" + strings.Repeat("0", 64)}
	s.Commit(registry.TokenCreated{Token: token})
	return s, m, token, func(session lfs.Session) string {
		session.TokenID = token.ID
		return first(s.Signer.Authorization(session, time.Now()))
	}
}

const (
	askDownload = `{"operation":"download","objects":[{"oid":"` + zeros + `","size":1}]}`
	askUpload   = `{"operation":"upload","objects":[{"oid":"` + zeros + `","size":1}]}`
	zeros       = "0000000000000000000000000000000000000000000000000000000000000000"
)

// TestSessionRights: a session is for one model and one operation, and for no other door.
func TestSessionRights(t *testing.T) {
	s, m, _, header := sessions(t, access.Writer, func(c *apitest.Config) { c.API.AnonymousRead = false })
	other := s.Model("acme/other", registry.Public)
	name := m.Name.String()
	down, up := lfs.Session{Model: name, ModelID: m.ID}, lfs.Session{Model: name, ModelID: m.ID, Upload: true}
	unborn := lfs.Session{Model: "acme/unborn", Upload: true}
	root := "/" + name + ".git/info/lfs"
	tests := []struct {
		name, method, target, body string
		session                    lfs.Session
		status                     int
	}{
		{"download", "POST", root + "/objects/batch", askDownload, down, 200},
		{"download without .git", "POST", "/" + name + "/info/lfs/objects/batch", askDownload, down, 200},
		{"download by a session for uploads", "POST", root + "/objects/batch", askDownload, up, 200},
		{"upload", "POST", root + "/objects/batch", askUpload, up, 200},
		{"upload by a session for downloads", "POST", root + "/objects/batch", askUpload, down, 403},
		{"upload to a model that is to be", "POST", "/acme/unborn.git/info/lfs/objects/batch", askUpload, unborn, 200},
		{"locks", "GET", root + "/locks", "", down, 200},
		{"lock", "POST", root + "/locks", `{"path":"a.bin"}`, up, 201},
		{"lock by a session for downloads", "POST", root + "/locks", `{"path":"b.bin"}`, down, 403},
		{"verify locks", "POST", root + "/locks/verify", `{}`, up, 200},
		{"an object", "GET", root + "/objects/" + zeros, "", down, 404},
		{"send an object by a session for downloads", "PUT", root + "/objects/" + zeros, "x", down, 403},
		{"another model", "POST", "/acme/other.git/info/lfs/objects/batch", askDownload, down, 401},
		{"a model that was deleted", "POST", root + "/objects/batch", askDownload, lfs.Session{Model: name, ModelID: "gone"}, 401},
		{"another model of that name", "POST", "/acme/other.git/info/lfs/objects/batch", askDownload, lfs.Session{Model: name, ModelID: other.ID}, 401},
		{"the API", "GET", "/api/v1/models", "", up, 401}, // as a stranger
		{"the model in the API", "GET", "/api/v1/models/" + name, "", up, 401},
		{"tokens", "GET", "/api/v1/tokens", "", up, 401},
		{"Git", "GET", "/" + name + ".git/info/refs?service=git-upload-pack", "", up, 401},
		{"a push by Git", "GET", "/" + name + ".git/info/refs?service=git-receive-pack", "", up, 401},
		{"OCI", "GET", "/v2/" + name + "/manifests/v1.0.0", "", up, 401},
	}
	for _, test := range tests {
		a := s.Do(test.method, test.target, test.body, "Authorization", header(test.session), "Content-Type", "application/vnd.git-lfs+json")
		if a.Status != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
		if test.status == 401 && strings.Contains(test.target, "/info/lfs") && !strings.Contains(a.Body, "the token is wrong, or it was revoked") {
			t.Errorf("%s: %s", test.name, a.Body)
		}
	}
	if log := s.Log.String(); !strings.Contains(log, `"actor":"rita"`) || strings.Contains(log, "lfs-session") {
		t.Errorf("the log does not name the owner of the key, or tells the session:\n%s", log)
	}
}

// TestSessionKey: a session is worth what its key is worth now.
func TestSessionKey(t *testing.T) {
	s, m, token, header := sessions(t, access.Reader)
	up := lfs.Session{Model: m.Name.String(), ModelID: m.ID, Upload: true}
	ask := func(body string) int {
		return s.Do("POST", "/"+m.Name.String()+".git/info/lfs/objects/batch", body, "Authorization", header(up)).Status
	}
	if got := ask(askUpload); got != 403 {
		t.Errorf("an upload when the key is a reader's: %d, want 403", got)
	}
	if got := ask(askDownload); got != 200 {
		t.Errorf("a download when the key is a reader's: %d, want 200", got)
	}
	by := lifecycle.Request{Identity: access.Identity{Name: apitest.Admin, Role: access.Admin}}
	if err := s.Lifecycle.RevokeToken(t.Context(), by, token.ID); err != nil {
		t.Fatal(err)
	}
	if got := ask(askDownload); got != 401 {
		t.Errorf("a download when the key was revoked: %d, want 401, also where strangers may read", got)
	}
}
