package api_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// oneTensor writes a safetensors file with a tensor w of those bytes.
func oneTensor(content string) string {
	header := `{"w":{"dtype":"U8","shape":[` + string(rune('0'+len(content))) + `],"data_offsets":[0,` + string(rune('0'+len(content))) + `]}}`
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header + content
}

// reading lets the server read tensors until the test ends.
func reading(t *testing.T, s *apitest.Server) {
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Lifecycle.ReadTensors(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
}

// known asks until everything is known.
func known(t *testing.T, c *client.Client, m, base registry.ModelName, a, b string) registry.Comparison {
	t.Helper()
	for {
		d, err := c.Compare(t.Context(), m, base, a, b)
		if err != nil {
			t.Fatalf("compare %s...%s: %v", a, b, err)
		}
		if !d.Computing() {
			return d
		}
	}
}

func TestCompare(t *testing.T) {
	s := apitest.Start(t)
	m := s.Model("acme/fraud", registry.Public)
	s.Publish(m, "v1.0.0", map[string]string{"w.safetensors": oneTensor("12")})
	s.Publish(m, "v1.1.0", map[string]string{"w.safetensors": oneTensor("13")})
	c := &client.Client{URL: s.URL}
	// Nobody reads tensors yet, so the answer says so, and does not wait for ever.
	d, err := c.Compare(t.Context(), m.Name, registry.ModelName{}, "v1.0.0", "main")
	if err != nil || !d.Computing() || d.Weights[0].State != registry.WeightsComputing || d.B.Version.String() != "v1.1.0" || d.B.Rev != "main" {
		t.Errorf("compare before tensors are read = %+v, %v, want computing, and main as v1.1.0", d, err)
	}
	reading(t, s)
	d = known(t, c, m.Name, registry.ModelName{}, "v1.0.0", "branch:main")
	if w := d.Weights[0]; w.State != registry.WeightsReady || len(w.Tensors.Items) != 1 || w.Tensors.Items[0].Change != registry.WasWritten {
		t.Errorf("compare = %+v, want that the bytes of w differ", d.Weights)
	}
	// Lists are lists, also without anything in them.
	a := s.Do("GET", "/api/v1/models/acme/fraud/compare/v1.0.0...v1.0.0", "")
	var fields map[string]any
	if err := json.Unmarshal([]byte(a.Body), &fields); err != nil || a.Status != 200 || strings.Contains(a.Body, "null") {
		t.Errorf("compare of a version with itself = %d %s, %v, want JSON without null", a.Status, a.Body, err)
	}
}

// Two models are compared by who may read both, and nobody learns whether another one exists.
func TestCompareOfTwoModels(t *testing.T) {
	s := apitest.Start(t)
	reading(t, s)
	open, secret := s.Model("acme/open", registry.Public), s.Model("acme/secret", registry.Private)
	s.Publish(open, "v1.0.0", map[string]string{"w.safetensors": oneTensor("12"), "README.md": "# Open"})
	s.Publish(secret, "v2.0.0", map[string]string{"w.safetensors": oneTensor("13"), "README.md": "# Open"})
	d := known(t, &client.Client{URL: s.URL, Token: s.Token}, open.Name, secret.Name, "v2.0.0", "v1.0.0")
	if d.A.Model != secret.Name || d.B.Model != open.Name || d.Files.Same != 1 || d.Weights[0].Tensors == nil {
		t.Errorf("compare of two models = %+v, want secret as A, open as B, one file the same", d)
	}
	ask := func(name string) string {
		return comparable(s.Do("GET", "/api/v1/models/acme/open/compare/v2.0.0...v1.0.0?base=acme/"+name, ""), name)
	}
	if diff := cmp.Diff(ask("secret"), ask("absent")); diff != "" {
		t.Errorf("the base tells a stranger whether a model exists (-private +absent):\n%s", diff)
	}
	if a := s.Do("GET", "/api/v1/models/acme/open/compare/v2.0.0...v1.0.0?base=acme/secret", ""); a.Status < 400 {
		t.Errorf("compare with a base that the caller may not read = %d %s, want a refusal", a.Status, a.Body)
	}
	// A version of another model is none of this one.
	if a := s.As("GET", "/api/v1/models/acme/open/compare/v1.0.0...v2.0.0", ""); a.Status != 404 {
		t.Errorf("compare with a version of another model = %d %s, want 404", a.Status, a.Body)
	}
}

func TestCompareRefuses(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	for _, tt := range []struct {
		target string
		status int
		want   string
	}{
		{"v1.0.0", 400, "three dots"},
		{"v1.0.0..v1.1.0", 400, `"field":"rev"`},
		{"v1.0.0...", 400, `"field":"rev"`},
		{"v1.0.0...a/b", 400, "%2F"},
		{"v1.0.0...%ff", 400, `"field":"rev"`},
		{"v1.0.0...v1.9.0", 404, "not found"},
		{"v1.0.0...env:nowhere", 404, "not found"},
		{"v1.0.0..." + strings.Repeat("0", 40), 404, "not found"},
		{"v1.0.0...v1.1.0?base=nonsense", 400, `"field":"base"`},
	} {
		a := s.As("GET", "/api/v1/models/acme/fraud/compare/"+tt.target, "")
		if a.Status != tt.status || !strings.Contains(a.Body, tt.want) {
			t.Errorf("GET compare/%s = %d %s, want %d with %q", tt.target, a.Status, a.Body, tt.status, tt.want)
		}
	}
}
