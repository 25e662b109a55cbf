package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/hooks/webhook"
	"github.com/herdbook/herdbook/registry"
)

const secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// A proxy of the environment would connect in place of this program, to anything: with one that
// nobody answers at, the tests see that none is asked. net/http reads the environment once.
func TestMain(m *testing.M) {
	os.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	os.Exit(m.Run())
}

var event = registry.Event{
	Seq: 7, ID: "0123456789abcdef", Type: registry.EventEnvironmentPromoted, ModelID: "internal-id", Model: registry.MustModelName("acme/fraud"),
	Version: registry.MustTag("v1.0.0"), Environment: registry.MustEnvironmentName("production"), Actor: "ada",
	At: time.Date(2026, 11, 1, 12, 0, 0, 123456000, time.UTC), Data: json.RawMessage(`{"reason":"good","verdict":{"open":true}}`), Sinks: []string{"notify"},
}

// request is what a receiver got.
type request struct {
	method string
	header http.Header
	body   []byte
}

// receive starts a receiver that answers with handler, and gives what it gets.
func receive(t testing.TB, handler http.HandlerFunc) (url string, got chan request) {
	t.Helper()
	got = make(chan request, 16)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- request{r.Method, r.Header, body}
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

func ok(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

func open(t testing.TB, url string, change ...func(*webhook.Config)) *webhook.Sink {
	t.Helper()
	c := webhook.Config{URL: url, Secret: secret, AllowPrivate: true, Source: "https://models.example.org/", UserAgent: "herdbook/test"}
	for _, f := range change {
		f(&c)
	}
	s, err := webhook.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDeliver(t *testing.T) {
	url, got := receive(t, ok)
	before := time.Now().Add(-time.Second)
	status, err := open(t, url+"/hooks?token=x").Deliver(t.Context(), event)
	if status != 204 || err != nil {
		t.Fatalf("Deliver = %d, %v, want 204", status, err)
	}
	r := <-got
	var body map[string]any
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"specversion": "1.0", "id": event.ID, "source": "https://models.example.org/acme/fraud", "type": "environment.promoted",
		"subject": "production/v1.0.0", "time": "2026-11-01T12:00:00.123456Z", "datacontenttype": "application/json",
		"data": map[string]any{
			"model": "acme/fraud", "version": "v1.0.0", "environment": "production", "actor": "ada", "reason": "good", "verdict": map[string]any{"open": true},
		},
	}
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/cloudevents+json; charset=utf-8", "User-Agent": "herdbook/test", "Webhook-Id": event.ID,
	} {
		if got := r.header.Get(name); got != want || r.method != "POST" {
			t.Errorf("%s with %s = %q, want POST with %q", r.method, name, got, want)
		}
	}
	seconds, err := strconv.ParseInt(r.header.Get("Webhook-Timestamp"), 10, 64)
	if at := time.Unix(seconds, 0); err != nil || at.Before(before) || at.After(time.Now()) {
		t.Errorf("Webhook-Timestamp = %q, want now in seconds", r.header.Get("Webhook-Timestamp"))
	}
}

// TestSignature computes the signature anew from what was received.
// Source: Standard Webhooks specification, "Signature scheme".
func TestSignature(t *testing.T) {
	tests := []struct {
		name, secret string
		key          []byte
	}{
		{"base64 behind whsec_", secret, []byte("01234567890123456789012345678901")},
		{"any text", "a secret that is just some text", []byte("a secret that is just some text")},
		{"text that would be base64", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", []byte("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			url, got := receive(t, ok)
			if _, err := open(t, url, func(c *webhook.Config) { c.Secret = test.secret }).Deliver(t.Context(), event); err != nil {
				t.Fatal(err)
			}
			r := <-got
			mac := hmac.New(sha256.New, test.key)
			mac.Write([]byte(r.header.Get("Webhook-Id") + "." + r.header.Get("Webhook-Timestamp") + "." + string(r.body)))
			if got, want := r.header.Get("Webhook-Signature"), "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)); got != want {
				t.Errorf("Webhook-Signature = %q, want %q", got, want)
			}
		})
	}
}

// TestSignatureOfTheSpecification is the example of the specification's own libraries.
// Source: github.com/standard-webhooks/standard-webhooks, libraries/go/webhook_test.go, TestWebhookSign.
func TestSignatureOfTheSpecification(t *testing.T) {
	got, err := webhook.Sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want || err != nil {
		t.Errorf("Sign = %q, %v, want %q", got, err, want)
	}
}

func TestBody(t *testing.T) {
	s := open(t, "http://127.0.0.1:1")
	for _, test := range []struct {
		name, subject string
		change        func(*registry.Event)
	}{
		{"of a version", "v1.0.0", func(e *registry.Event) { e.Environment = registry.EnvironmentName{} }},
		{"of an environment", "production", func(e *registry.Event) { e.Version = registry.Tag{} }},
		{"of a model", "", func(e *registry.Event) { e.Version, e.Environment = registry.Tag{}, registry.EnvironmentName{} }},
		{"without data", "production/v1.0.0", func(e *registry.Event) { e.Data = nil }},
	} {
		e := event
		test.change(&e)
		data, err := s.Body(e)
		var body struct {
			Subject *string
			Data    map[string]any
		}
		if err != nil || json.Unmarshal(data, &body) != nil {
			t.Fatalf("Body %s = %s, %v", test.name, data, err)
		}
		if (body.Subject == nil) != (test.subject == "") || (body.Subject != nil && *body.Subject != test.subject) || body.Data["model"] != "acme/fraud" {
			t.Errorf("Body %s = %s, want the subject %q and the model", test.name, data, test.subject)
		}
	}
	again, err := s.Body(event)
	if first, _ := s.Body(event); err != nil || string(first) != string(again) {
		t.Errorf("Body of one event differs: %s, %s", first, again)
	}
}

func TestAnswers(t *testing.T) {
	var followed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer elsewhere.Close()
	tests := []struct {
		status int
		header map[string]string
		want   string // of the error; empty for success
	}{
		{200, nil, ""},
		{202, nil, ""},
		{204, nil, ""},
		{301, map[string]string{"Location": elsewhere.URL}, "301 Moved Permanently"},
		{302, map[string]string{"Location": elsewhere.URL}, "302 Found"},
		{307, map[string]string{"Location": elsewhere.URL}, "307 Temporary Redirect"},
		{308, map[string]string{"Location": elsewhere.URL}, "308 Permanent Redirect"},
		{400, nil, "400 Bad Request"},
		{410, nil, "410 Gone"},
		{429, map[string]string{"Retry-After": "1"}, "429 Too Many Requests"},
		{500, nil, "500 Internal Server Error"},
		{599, nil, "599"},
	}
	for _, test := range tests {
		url, _ := receive(t, func(w http.ResponseWriter, _ *http.Request) {
			for name, value := range test.header {
				w.Header().Set(name, value)
			}
			w.WriteHeader(test.status)
		})
		status, err := open(t, url).Deliver(t.Context(), event)
		if status != test.status || (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
			t.Errorf("Deliver to a receiver that answers %d = %d, %v; want the error %q", test.status, status, err, test.want)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d redirects were followed, want none", n)
	}
}

// TestAnswerThatGoesOn: what a receiver sends back is not waited for without end, nor kept.
func TestAnswerThatGoesOn(t *testing.T) {
	closed := make(chan struct{})
	url, _ := receive(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(closed)
		chunk := make([]byte, 32<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if status, err := open(t, url).Deliver(t.Context(), event); status != 200 || err != nil {
		t.Errorf("Deliver = %d, %v, want 200 as soon as the status is known", status, err)
	}
	<-closed

	long := receiveRaw(t, "HTTP/1.1 500 "+strings.Repeat("x", 60_000)+"\r\nContent-Length: 0\r\n\r\n")
	if _, err := open(t, long).Deliver(t.Context(), event); err == nil || len(err.Error()) > 200 {
		t.Errorf("the error after a status line of 60 kB has %d bytes, want it short", len(fmt.Sprint(err)))
	}
}

// receiveRaw starts a receiver that answers with exactly that.
func receiveRaw(t *testing.T, answer string) (url string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, answer)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestReceiverThatHangs(t *testing.T) {
	end := make(chan struct{})
	url, got := receive(t, func(http.ResponseWriter, *http.Request) { <-end })
	t.Cleanup(func() { close(end) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-got
		cancel()
	}()
	if status, err := open(t, url).Deliver(ctx, event); status != 0 || err == nil {
		t.Errorf("Deliver to a receiver that hangs = %d, %v, want an error when the context ends", status, err)
	}
}

// TestAddresses: what address is called is decided at the connection, whatever name led there.
func TestAddresses(t *testing.T) {
	url, got := receive(t, ok)
	port := url[strings.LastIndexByte(url, ':'):]
	tests := []struct {
		url          string
		allowPrivate bool
		want         string // of the error; empty for success
	}{
		{"http://127.0.0.1" + port, true, ""},
		{"http://127.0.0.1" + port, false, "private network"},
		{"http://localhost" + port, false, "private network"},
		{"http://[::ffff:127.0.0.1]" + port, false, "private network"},
		{"http://[::ffff:7f00:1]" + port, false, "private network"},
		{"http://[::1]" + port, false, "private network"},
		{"http://10.0.0.1:1", false, "private network"},
		{"http://172.16.0.1:1", false, "private network"},
		{"http://192.168.1.1:1", false, "private network"},
		{"http://100.64.0.1:1", false, "private network"},
		{"http://[fd00::1]:1", false, "private network"},
		{"http://[64:ff9b::7f00:1]:1", false, "private network"}, // 127.0.0.1 through NAT64
		{"http://[64:ff9b::a9fe:a9fe]:1", true, "never called"},  // 169.254.169.254 through NAT64
		{"http://[2002:7f00:1::]:1", false, "private network"},   // 127.0.0.1 through 6to4
		{"http://[::127.0.0.1]:1", false, "private network"},     // IPv4-compatible
		{"http://169.254.169.254:1", false, "never called"},
		{"http://169.254.169.254:1", true, "never called"},
		{"http://[::ffff:169.254.169.254]:1", true, "never called"},
		{"http://[fe80::1]:1", true, "never called"},
		{"http://0.0.0.0" + port, true, "never called"},
		{"http://0.0.0.7" + port, true, "never called"},
		{"http://[::]" + port, true, "never called"},
		{"http://224.0.0.1:1", true, "never called"},
		{"http://[ff02::1]:1", true, "never called"},
		{"http://255.255.255.255:1", true, "never called"},
	}
	for _, test := range tests {
		_, err := open(t, test.url, func(c *webhook.Config) { c.AllowPrivate = test.allowPrivate }).Deliver(t.Context(), event)
		if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
			t.Errorf("Deliver to %s (private allowed: %v) = %v, want %q", test.url, test.allowPrivate, err, test.want)
		}
	}
	if len(got) != 1 {
		t.Errorf("the receiver got %d requests, want the one that is allowed", len(got))
	}
}

func TestErrorsKeepSecrets(t *testing.T) {
	refused := httptest.NewServer(http.HandlerFunc(ok))
	refused.Close()
	for _, url := range []string{refused.URL + "/sesame?token=sesame", "http://user:sesame@127.0.0.1:1/sesame", "https" + strings.TrimPrefix(refused.URL, "http") + "/sesame", "http://sesame.invalid@127.0.0.1:1"} {
		_, err := open(t, url).Deliver(t.Context(), event)
		if err == nil || strings.Contains(err.Error(), "sesame") || strings.Contains(err.Error(), "MDEy") {
			t.Errorf("Deliver to an address with a secret = %v, want an error without it", err)
		}
	}
}

func TestNew(t *testing.T) {
	const long = "0123456789abcdef"
	tests := []struct {
		name, url, secret, want string
	}{
		{"http", "http://example.org", long, ""},
		{"https with a path", "https://example.org/a?b", long, ""},
		{"no address", "", long, "http or https"},
		{"no scheme", "example.org/x", long, "http or https"},
		{"another scheme", "ftp://example.org", long, "http or https"},
		{"no host", "http:///x", long, "http or https"},
		{"address that is none", "http://[::1", long, "http or https"},
		{"no secret", "http://example.org", "", "16 bytes"},
		{"short secret", "http://example.org", "0123456789abcde", "16 bytes"},
		{"short secret in base64", "http://example.org", "whsec_MDEyMzQ1", "16 bytes"},
		{"not base64", "http://example.org", "whsec_sesame sesame sesame!", "not base64"},
	}
	for _, test := range tests {
		_, err := webhook.New(webhook.Config{URL: test.url, Secret: test.secret})
		if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: New = %v, want %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: New = %v, which tells the secret", test.name, err)
		}
	}
}

func BenchmarkDeliver(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(ok))
	b.Cleanup(s.Close)
	sink := open(b, s.URL)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sink.Deliver(b.Context(), event); err != nil {
			b.Fatal(err)
		}
	}
}
