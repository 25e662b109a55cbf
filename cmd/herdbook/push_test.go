package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/hooks/ocipush"
	"github.com/herdbook/herdbook/registry"
)

// rival starts somebody else's registry, and skips the test when it is not installed.
func rival(t *testing.T, program string) (address string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("HERDBOOK_TEST_ALL") != "" && program == "docker-registry" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", filepath.Join(dir, "content"), address)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventuallyNil(t, 20*time.Second, func() error {
		r, err := httpClient.Get("http://" + address + "/v2/")
		if err == nil {
			r.Body.Close()
		}
		return err
	})
	return address
}

// faulty stands before a registry and fails the next upload of a large blob as fault says; the registry itself sees half of it, or nothing.
func faulty(t *testing.T, address string) (proxy *httptest.Server, fault *atomic.Value, hits *atomic.Int64) {
	t.Helper()
	fault, hits = &atomic.Value{}, &atomic.Int64{}
	fault.Store("")
	to := &url.URL{Scheme: "http", Host: address}
	forward := &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host // the registry makes addresses of it
	}}
	proxy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wanted := fault.Load().(string)
		if r.Method != http.MethodPut || r.ContentLength < 1<<20 || wanted == "" {
			forward.ServeHTTP(w, r)
			return
		}
		fault.Store("")
		hits.Add(1)
		switch wanted {
		case "503":
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			w.WriteHeader(http.StatusServiceUnavailable)
		case "401":
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			w.Header().Set("Www-Authenticate", `Bearer realm="http://`+r.Host+`/v2/token",error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
		case "cut": // the registry gets half of the body
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.LimitReader(r.Body, r.ContentLength/2), r.Body}
			forward.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case "lost": // the registry itself says so
			end := r.Clone(r.Context())
			end.Method, end.Body, end.ContentLength = http.MethodDelete, http.NoBody, 0
			answer := httptest.NewRecorder()
			forward.ServeHTTP(answer, end)
			if answer.Code > 299 {
				t.Errorf("the upload could not be ended: %d %s", answer.Code, answer.Body)
			}
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(proxy.Close)
	return proxy, fault, hits
}

// TestFaultPush pushes to registries on lines that fail.
func TestFaultPush(t *testing.T) {
	from := newMachine(t, "")
	from.start()
	dir := from.clone("acme/fraud", "model")
	weights := make([]byte, 0, 3<<20)
	for block := sha256.Sum256(nil); len(weights) < cap(weights); block = sha256.Sum256(block[:]) {
		weights = append(weights, block[:]...)
	}
	from.write(dir, "weights.bin", string(weights))
	from.commit(dir, "weights")
	from.mustGit(dir, "tag", "v1.0.0")
	from.mustGit(dir, "push", "-q", "origin", "main", "v1.0.0")
	from.settled("acme/fraud")

	for _, target := range []struct {
		name  string
		start func(t *testing.T) (address, token string)
	}{
		{"herdbook", func(t *testing.T) (string, string) {
			to := newMachine(t, "")
			to.start()
			return to.addr, to.token
		}},
		{"docker-registry", func(t *testing.T) (string, string) { return rival(t, "docker-registry"), "" }},
		{"registry", func(t *testing.T) (string, string) { return rival(t, "registry"), "" }},
	} {
		t.Run(target.name, func(t *testing.T) {
			address, token := target.start(t)
			proxy, fault, hits := faulty(t, address)
			host := strings.TrimPrefix(proxy.URL, "http://")
			home := t.TempDir()
			if token != "" {
				login, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("any:" + token))}}})
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(home, "config.json"), login, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("DOCKER_CONFIG", home)
			t.Setenv("HERDBOOK_TOKEN", from.token)
			for _, f := range []string{"", "503", "cut", "lost", "401"} {
				if f == "401" && token == "" {
					continue // nobody asks for a token there
				}
				fault.Store(f)
				hits.Store(0)
				to := host + "/mirror/fault" + f + "/fraud"
				code, out, errText := runCLI(t, "", "push", "--server", from.url(), "acme/fraud:v1.0.0", to, "--plain-http")
				if code != 0 || !strings.Contains(out, to+":v1.0.0") || !strings.Contains(out, to+"/image:v1.0.0") {
					t.Errorf("with the fault %q: push = %d, %q, %q", f, code, out, errText)
					continue
				}
				if f != "" && hits.Load() != 1 {
					t.Errorf("the fault %q happened %d times, want once", f, hits.Load())
				}
				for _, repository := range []string{"", "/image"} {
					want := digestOf(t, from.url(), "acme/fraud"+repository, from.token)
					if got := digestOf(t, "http://"+address, "mirror/fault"+f+"/fraud"+repository, token); got != want {
						t.Errorf("with the fault %q: %s:v1.0.0 is %s there, want %s", f, repository, got, want)
					}
				}
				// Everything is there, and nothing goes over a second time.
				code, out, errText = runCLI(t, "", "push", "--server", from.url(), "acme/fraud:v1.0.0", to, "--plain-http", "--json")
				var again []struct {
					Artifact, Image struct{ Copied, Mounted map[string]int }
				}
				if err := json.Unmarshal([]byte(out), &again); code != 0 || err != nil || len(again) != 1 {
					t.Fatalf("the second push after %q = %d, %q, %q", f, code, out, errText)
				}
				nothing := map[string]int{"items": 0, "bytes": 0}
				for _, got := range []map[string]int{again[0].Artifact.Copied, again[0].Image.Copied, again[0].Image.Mounted} {
					if diff := cmp.Diff(nothing, got); diff != "" {
						t.Errorf("the second push after %q (-want +got):\n%s", f, diff)
					}
				}
			}
		})
	}
}

func TestPushAdvice(t *testing.T) {
	c := pushCommand{To: "registry.example/team/x"}
	to, err := c.destination()
	if err != nil {
		t.Fatal(err)
	}
	const artifact, image, from = "registry.example/team/x", "registry.example/team/x/image", "models.example/acme/fraud"
	sent := func(err error) error {
		return &url.Error{Op: "Put", URL: "https://registry.example/?_state=secret", Err: err}
	}
	for _, test := range []struct {
		fault ocipush.Fault
		want  string
	}{
		{ocipush.Fault{Repository: artifact, Status: 401}, "docker login registry.example"},
		{ocipush.Fault{Repository: from, Status: 401}, "HERDBOOK_TOKEN"},
		{ocipush.Fault{Repository: artifact, Status: 403}, ""},
		{ocipush.Fault{Repository: image, Status: 403}, "--image-repo"},
		{ocipush.Fault{Repository: image, Status: 400}, "--image-repo"},
		{ocipush.Fault{Repository: from + "/image", Err: registry.ErrNotFound}, "--no-image"},
		{ocipush.Fault{Repository: from, Err: registry.ErrNotFound}, ""},
		{ocipush.Fault{Repository: artifact, Err: sent(http.ErrSchemeMismatch)}, "--plain-http"},
		{ocipush.Fault{Repository: artifact, Err: sent(io.ErrUnexpectedEOF)}, "call it again"},
		{ocipush.Fault{Repository: from, Err: context.Canceled}, "call it again"},
		{ocipush.Fault{Repository: artifact, Status: 503}, "call it again"},
		{ocipush.Fault{Repository: artifact, Err: errors.New("the tag names another")}, ""},
	} {
		if got := c.advice(fmt.Errorf("wrapped: %w", &test.fault), to); (got == "") != (test.want == "") || !strings.Contains(got, test.want) || strings.Contains(got, "secret") {
			t.Errorf("advice(%+v) = %q, want %q", test.fault, got, test.want)
		}
	}
	if got := c.advice(errors.New("another"), to); got != "" {
		t.Errorf("advice about another error = %q, want none", got)
	}
}

// digestOf asks a registry what v1.0.0 names, and reads all its parts.
func digestOf(t *testing.T, server, repository, token string) string {
	t.Helper()
	get := func(path string) ([]byte, http.Header) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server+"/v2/"+repository+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		r.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		answer, err := httpClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("GET %s = %d, %v, %.300s", r.URL, answer.StatusCode, err, data)
		}
		return data, answer.Header
	}
	var read func(path string) string
	read = func(path string) string {
		data, header := get(path)
		var m struct {
			Layers, Manifests []struct{ Digest string }
			Config            struct{ Digest string }
		}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		for _, d := range m.Manifests {
			read("/manifests/" + d.Digest)
		}
		if m.Config.Digest != "" {
			m.Layers = append(m.Layers, m.Config)
		}
		for _, d := range m.Layers {
			if content, _ := get("/blobs/" + d.Digest); fmt.Sprintf("sha256:%x", sha256.Sum256(content)) != d.Digest {
				t.Errorf("blob %s of %s has other content", d.Digest, repository)
			}
		}
		return header.Get("Docker-Content-Digest")
	}
	return read("/manifests/v1.0.0")
}
