package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// tokens are found by their hash.
type tokens map[string]registry.Token

func (t tokens) Token(_ context.Context, hash string) (registry.Token, error) {
	if found, ok := t[hash]; ok {
		return found, nil
	}
	return registry.Token{}, registry.ErrNotFound
}

var errDisk = errors.New("input/output error")

type broken struct{}

func (broken) Token(context.Context, string) (registry.Token, error) {
	return registry.Token{}, errDisk
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestIdentify(t *testing.T) {
	secret, kept := auth.NewToken("ada", access.Admin)
	ada := access.Identity{Name: "ada", Role: access.Admin, TokenID: kept.ID}
	newer, keptNewer := auth.NewToken("eve", access.Admin)
	keptNewer.Role = "owner"
	known := tokens{kept.Hash: kept, keptNewer.Hash: keptNewer}
	tests := []struct {
		name, header string
		want         access.Identity
		err          error
	}{
		{"bearer", "Bearer " + secret, ada, nil},
		{"bearer in another case", "bEARER " + secret, ada, nil},
		{"bearer with spaces", "Bearer   " + secret + " ", ada, nil},
		{"password", basic("any", secret), ada, nil},
		{"password of nobody", basic("", secret), ada, nil},
		{"user without a password", basic(secret, ""), ada, nil},
		{"user with a fixed password", basic(secret, "x-oauth-basic"), ada, nil},
		{"basic in another case", strings.Replace(basic("any", secret), "Basic", "basic", 1), ada, nil},
		{"no credentials", "", access.Identity{Name: "anonymous", Role: access.Guest}, nil},
		{"the token of those who have none", "Bearer " + auth.Anonymous, access.Identity{Name: "anonymous", Role: access.Guest}, nil},
		{"a role of a later version", "Bearer " + newer, access.Identity{}, registry.ErrForbidden},
		{"unknown token", "Bearer hb_0123", access.Identity{}, registry.ErrUnauthenticated},
		{"unknown password", basic("ada", "hb_0123"), access.Identity{}, registry.ErrUnauthenticated},
		{"the hash itself", "Bearer " + kept.Hash, access.Identity{}, registry.ErrUnauthenticated},
		{"the token cut off", "Bearer " + secret[:len(secret)-1], access.Identity{}, registry.ErrUnauthenticated},
		{"the token in upper case", "Bearer " + strings.ToUpper(secret), access.Identity{}, registry.ErrUnauthenticated},
		{"no token", "Bearer ", access.Identity{}, registry.ErrUnauthenticated},
		{"only a scheme", "Bearer", access.Identity{}, registry.ErrUnauthenticated},
		{"only a token", secret, access.Identity{}, registry.ErrUnauthenticated},
		{"no password", basic("ada", ""), access.Identity{}, registry.ErrUnauthenticated},
		{"not base64", "Basic !!!", access.Identity{}, registry.ErrUnauthenticated},
		{"no colon", "Basic " + base64.StdEncoding.EncodeToString([]byte(secret)), access.Identity{}, registry.ErrUnauthenticated},
		{"another scheme", "Digest " + secret, access.Identity{}, registry.ErrUnauthenticated},
		{"too long", "Bearer " + strings.Repeat("a", 17000), access.Identity{}, registry.ErrUnauthenticated},
	}
	for _, test := range tests {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if test.header != "" {
			r.Header.Set("Authorization", test.header)
		}
		got, err := (&auth.Authenticator{Tokens: known, AnonymousRead: true}).Identify(r)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: Identify = %+v, %v; want %+v, %v", test.name, got, err, test.want, test.err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the token: %v", test.name, err)
		}
	}
}

func TestIdentifyOtherwise(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if id, err := (&auth.Authenticator{Tokens: tokens{}}).Identify(r); err != nil || id != (access.Identity{Name: "anonymous"}) {
		t.Errorf("Identify where strangers read nothing = %+v, %v, want nobody", id, err)
	}
	r.Header.Set("Authorization", "Bearer "+auth.Anonymous)
	if id, err := (&auth.Authenticator{Tokens: tokens{}}).Identify(r); err != nil || id != (access.Identity{Name: "anonymous"}) {
		t.Errorf("Identify of the token of strangers where they read nothing = %+v, %v, want nobody", id, err)
	}
	r.Header.Set("Authorization", "Bearer x")
	if id, err := (&auth.Authenticator{Tokens: tokens{}, NoAuth: true}).Identify(r); err != nil || id.Role != access.Admin || id.TokenID != "" {
		t.Errorf("Identify where everybody may do everything = %+v, %v, want an administrator", id, err)
	}
	if _, err := (&auth.Authenticator{Tokens: broken{}}).Identify(r); !errors.Is(err, errDisk) || errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("Identify with a broken store = %v, want that it is broken, not that the token is wrong", err)
	}
}

func TestTokenOf(t *testing.T) {
	for header, want := range map[string]string{"": auth.Anonymous, "Bearer hb_1": "hb_1", basic("any", "hb_1"): "hb_1", basic("hb_1", ""): "hb_1", basic("", ""): auth.Anonymous, "Digest x": auth.Anonymous} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", header)
		if got := auth.TokenOf(r); got != want {
			t.Errorf("TokenOf(%q) = %q, want %q", header, got, want)
		}
	}
}

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		secret, kept := auth.NewToken("ada", access.Admin)
		if !strings.HasPrefix(secret, "hb_"+kept.ID+"_") || len(secret) != 3+16+1+64 || kept.Hash != auth.Hash(secret) || kept.Owner != "ada" || kept.Role != "admin" {
			t.Fatalf("NewToken = %q, %+v", secret, kept)
		}
		if strings.Contains(kept.Hash, secret[20:]) || seen[secret] || seen[kept.ID] {
			t.Fatalf("NewToken = %q, %+v: known before, or kept as it is", secret, kept)
		}
		seen[secret], seen[kept.ID] = true, true
	}
}

// A token of OCI clients is left to their door, where its bearer is a stranger until the door has looked.
func TestIdentifyOCI(t *testing.T) {
	for _, test := range []struct {
		path string
		want error
	}{
		{"/v2", nil},
		{"/v2/", nil},
		{"/v2/acme/fraud/tags/list", nil},
		{"/", registry.ErrWrongToken},
		{"/v2x", registry.ErrWrongToken},
		{"/api/v1/whoami", registry.ErrWrongToken},
		{"/acme/fraud.git/info/refs", registry.ErrWrongToken},
		{"/acme/v2/", registry.ErrWrongToken},
	} {
		for _, header := range []string{"Bearer hbr_x", basic("any", "hbr_x")} {
			for _, mayRead := range []bool{false, true} {
				r := httptest.NewRequest(http.MethodGet, test.path, nil)
				r.Header.Set("Authorization", header)
				id, err := (&auth.Authenticator{Tokens: tokens{}, AnonymousRead: mayRead}).Identify(r)
				if !errors.Is(err, test.want) || (err == nil && id != access.Anonymous(mayRead)) {
					t.Errorf("Identify of %s at %s = %+v, %v; want a stranger, %v", header, test.path, id, err, test.want)
				}
			}
		}
	}
}

func TestOf(t *testing.T) {
	secret, kept := auth.NewToken("ada", access.Admin)
	known := tokens{kept.Hash: kept}
	if id, err := auth.Of(t.Context(), known, secret); err != nil || id != (access.Identity{Name: "ada", Role: access.Admin, TokenID: kept.ID}) {
		t.Errorf("Of a token = %+v, %v, want ada", id, err)
	}
	for _, wrong := range []string{"", "hb_wrong", kept.Hash, auth.Anonymous} {
		if id, err := auth.Of(t.Context(), known, wrong); !errors.Is(err, registry.ErrWrongToken) {
			t.Errorf("Of(%q) = %+v, %v, want ErrWrongToken", wrong, id, err)
		}
	}
	if _, err := auth.Of(t.Context(), broken{}, secret); !errors.Is(err, errDisk) || errors.Is(err, registry.ErrUnauthenticated) {
		t.Errorf("Of with a broken store = %v, want that it is broken, not that the token is wrong", err)
	}
}

// FuzzIdentify: no header but the right ones makes anybody an administrator.
func FuzzIdentify(f *testing.F) {
	secret, kept := auth.NewToken("ada", access.Admin)
	for _, seed := range []string{"Bearer x", "Basic eDp5", "bearer\t" + secret, "Basic", " ", "Bearer  ", "Basic OjpfOg==", "\x00"} {
		f.Add(seed)
	}
	a := &auth.Authenticator{Tokens: tokens{kept.Hash: kept}, AnonymousRead: true}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Authorization"] = []string{header}
		id, err := a.Identify(r)
		decoded := header
		if _, rest, ok := strings.Cut(header, " "); ok {
			if text, err := base64.StdEncoding.DecodeString(rest); err == nil {
				decoded += string(text)
			}
		}
		switch {
		case id.Role == access.Admin && !strings.Contains(decoded, secret):
			t.Errorf("Identify(%q) = %+v without the token", header, id)
		case err == nil && id.Role == access.Guest && header != "" && !strings.Contains(decoded, auth.Anonymous):
			t.Errorf("Identify(%q) = %+v: credentials that are wrong make a stranger", header, id)
		case err != nil && !errors.Is(err, registry.ErrUnauthenticated):
			t.Errorf("Identify(%q) = %v, want ErrUnauthenticated", header, err)
		}
	})
}
