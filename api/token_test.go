package api_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// newToken makes a token as the administrator.
func newToken(t *testing.T, s *apitest.Server, body string) api.Token {
	t.Helper()
	a := s.As("POST", "/api/v1/tokens", body)
	var made api.Token
	if err := json.Unmarshal([]byte(a.Body), &made); a.Status != 201 || err != nil {
		t.Fatalf("POST tokens %s = %d %s", body, a.Status, a.Body)
	}
	return made
}

func TestTokenLifetime(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Private)
	made := newToken(t, s, `{"owner":"jenkins","role":"writer"}`)
	if !strings.HasPrefix(made.Secret, "hb_") {
		t.Fatalf("secret of a new token = %q, want one that begins with hb_", made.Secret)
	}
	with := []string{"Authorization", "Bearer " + made.Secret}
	if a := s.Do("GET", "/api/v1/whoami", "", with...); !strings.HasPrefix(a.Body, `{"name":"jenkins","role":"writer","token_id":"`+made.ID+`"`) {
		t.Errorf("whoami with the new token = %d %s, want jenkins as a writer", a.Status, a.Body)
	}
	// What the role may do, and what it may not.
	for _, test := range []struct {
		method, target, body string
		status               int
	}{
		{"GET", "/api/v1/models/acme/fraud", "", 200},
		{"POST", "/api/v1/models/acme/fraud/evaluations/v1.0.0", `{"dataset":{"name":"d"},"metrics":{"f1":0.5}}`, 201},
		{"POST", "/api/v1/models/acme/fraud/environments/staging/promotions", `{"version":"v1.0.0"}`, 403},
		{"PATCH", "/api/v1/models/acme/fraud", `{"description":"mine"}`, 403},
		{"DELETE", "/api/v1/models/acme/fraud", "", 403},
		{"GET", "/api/v1/deliveries", "", 403},
		{"GET", "/api/v1/tokens", "", 403},
		{"POST", "/api/v1/tokens", `{"owner":"eve","role":"admin"}`, 403},
		{"DELETE", "/api/v1/tokens/" + made.ID, "", 403},
	} {
		if a := s.Do(test.method, test.target, test.body, append(with, "Content-Type", "application/json")...); a.Status != test.status {
			t.Errorf("%s %s as a writer = %d %s, want %d", test.method, test.target, a.Status, a.Body, test.status)
		}
	}
	if a := s.As("GET", "/api/v1/tokens", ""); !strings.Contains(a.Body, made.ID) || strings.Contains(a.Body, made.Secret) || strings.Contains(a.Body, "hash") {
		t.Errorf("list of tokens = %s, want the id and nothing of the secret", a.Body)
	}
	if a := s.As("DELETE", "/api/v1/tokens/"+made.ID, ""); a.Status != 204 {
		t.Errorf("DELETE of the token = %d %s, want 204", a.Status, a.Body)
	}
	if a := s.Do("GET", "/api/v1/whoami", "", with...); a.Status != 401 {
		t.Errorf("whoami with a revoked token = %d, want 401", a.Status)
	}
	if a := s.As("DELETE", "/api/v1/tokens/"+made.ID, ""); a.Status != 404 {
		t.Errorf("DELETE of a revoked token = %d, want 404", a.Status)
	}
	if a := s.As("GET", "/api/v1/tokens", ""); strings.Contains(a.Body, made.ID) {
		t.Errorf("list of tokens = %s, want no revoked one", a.Body)
	}
}

func publicKey(t *testing.T, key any) string {
	t.Helper()
	public, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

func TestSSHKeys(t *testing.T) {
	s := apitest.Start(t)
	key, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	line := publicKey(t, key)
	request := func(line string) string {
		body, err := json.Marshal(api.TokenRequest{Owner: "ada", Role: "maintainer", SSHKey: line})
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	made := newToken(t, s, request(line+" ada@laptop\n"))
	if made.Secret != "" || made.SSHKey != line {
		t.Errorf("answer = %+v, want the key %s and no secret", made, line)
	}
	if a := s.As("POST", "/api/v1/tokens", request(line)); a.Status != 409 || !strings.Contains(a.Body, "ada") {
		t.Errorf("the same key again = %d %s, want 409", a.Status, a.Body)
	}
	// A key that was revoked and added again is another token: the old id stays worth nothing.
	old := made
	if a := s.As("DELETE", "/api/v1/tokens/"+old.ID, ""); a.Status != 204 {
		t.Fatalf("DELETE of the key = %d %s", a.Status, a.Body)
	}
	made = newToken(t, s, request(line))
	if a := s.As("GET", "/api/v1/tokens", ""); strings.Contains(a.Body, old.ID) || strings.Count(a.Body, made.ID) != 1 {
		t.Errorf("list of tokens = %s, want %s once and not %s", a.Body, made.ID, old.ID)
	}
	if a := s.As("DELETE", "/api/v1/tokens/"+old.ID, ""); a.Status != 404 {
		t.Errorf("DELETE of the revoked id = %d, want 404", a.Status)
	}
	// The public half of a key proves nothing over HTTP, in whatever form.
	raw, _ := base64.StdEncoding.DecodeString(strings.Fields(line)[1])
	for _, secret := range []string{line, strings.Fields(line)[1], string(raw), "ssh:" + string(raw)} {
		a := s.Do("GET", "/api/v1/whoami", "", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("ada:"+secret)))
		if a.Status != 401 {
			t.Errorf("whoami with the public key as a password = %d %s, want 401", a.Status, a.Body)
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"no key":         "hello",
		"a private key":  "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n",
		"options":        `command="sh" ` + line,
		"two keys":       line + "\n" + line,
		"a weak key":     publicKey(t, &weak.PublicKey),
		"a broken key":   strings.Fields(line)[0] + " AAAA",
		"another's type": "ssh-rsa " + strings.Fields(line)[1],
	} {
		if a := s.As("POST", "/api/v1/tokens", request(bad)); a.Status != 400 || !strings.Contains(a.Body, `"field":"ssh_key"`) {
			t.Errorf("%s = %d %s, want 400 on the field ssh_key", name, a.Status, a.Body)
		}
	}
}

func TestTokenRequests(t *testing.T) {
	s := apitest.Start(t)
	for body, field := range map[string]string{
		`{"owner":"","role":"writer"}`:          "owner",
		`{"owner":"Ada L","role":"writer"}`:     "owner",
		`{"owner":"herdbook","role":"admin"}`:   "owner",
		`{"owner":"anonymous","role":"reader"}`: "owner",
		`{"owner":"ada","role":"owner"}`:        "role",
		`{"owner":"ada","role":"guest"}`:        "role",
		`{"owner":"ada"}`:                       "role",
	} {
		if a := s.As("POST", "/api/v1/tokens", body); a.Status != 400 || !strings.Contains(a.Body, `"field":"`+field+`"`) {
			t.Errorf("POST tokens %s = %d %s, want 400 on the field %s", body, a.Status, a.Body, field)
		}
	}
	if a := s.Do("POST", "/api/v1/tokens", `{"owner":"eve","role":"admin"}`); a.Status != 401 {
		t.Errorf("POST tokens as a stranger = %d %s, want 401", a.Status, a.Body)
	}
}
