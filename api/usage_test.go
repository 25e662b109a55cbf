package api_test

import (
	"strings"
	"testing"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

func TestUsage(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	loop(s, "acme/secret", registry.Private)
	a := s.As("GET", "/api/v1/models/acme/fraud/usage", "")
	for _, want := range []string{`"blobs":`, `"logical_bytes":`, `"git_bytes":`, `"exclusive_bytes":`} {
		if a.Status != 200 || !strings.Contains(a.Body, want) {
			t.Errorf("usage of a model for an administrator = %d %s, want %s in it", a.Status, a.Body, want)
		}
	}
	// What is shared with other models tells what is in them.
	if a := s.Do("GET", "/api/v1/models/acme/fraud/usage", ""); a.Status != 200 || strings.Contains(a.Body, "exclusive") || !strings.Contains(a.Body, `"logical_bytes":`) {
		t.Errorf("usage of a model for a stranger = %d %s, want it without what is shared", a.Status, a.Body)
	}
	if a := s.Do("GET", "/api/v1/usage", ""); a.Status != 401 {
		t.Errorf("usage of all for a stranger = %d %s, want 401", a.Status, a.Body)
	}
	if a := s.As("GET", "/api/v1/usage", ""); a.Status != 200 || !strings.Contains(a.Body, `"namespaces":[{"namespace":"acme","models":2,`) || !strings.Contains(a.Body, `"saved_bytes":`) {
		t.Errorf("usage of all for an administrator = %d %s", a.Status, a.Body)
	}
}
