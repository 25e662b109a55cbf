package lifecycle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// What a policy would mean is told, and comes true when it is pushed.
func TestTryPolicy(t *testing.T) {
	s, m := prepared(t, alone)
	for i, tag := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
		s.evaluate(m, s.release(m, tag), []float64{0.9, 0.7, 0.6}[i])
	}
	try := func(text, tag string) []string {
		t.Helper()
		var version registry.Tag
		if tag != "" {
			version = registry.MustTag(tag)
		}
		groups := s.groups()
		run, err := s.TryPolicy(t.Context(), by("ada"), m, []byte(text), version)
		if err != nil {
			t.Fatal(err)
		}
		if s.groups() != groups {
			t.Errorf("TryPolicy wrote %d groups, want none", s.groups()-groups)
		}
		var list []string
		for _, v := range run.Versions {
			for _, e := range v.Environments {
				now := "new"
				if e.Now != nil {
					now = fmt.Sprint(*e.Now)
				}
				list = append(list, fmt.Sprintf("%s %s: %s, then %t, held %t, promotes %t", v.Version, e.Verdict.Environment, now, e.Verdict.Open, e.Held, e.Promotes))
			}
		}
		return list
	}
	lower := strings.ReplaceAll(alone, "0.80", "0.65") + "  qa:\n    promote: auto\n    gates: [metrics.f1 > 0.95]\n"
	if diff := cmp.Diff([]string{
		"v1.2.0 staging: false, then false, held false, promotes false", "v1.2.0 qa: new, then false, held false, promotes false",
		"v1.1.0 staging: false, then true, held false, promotes true", "v1.1.0 qa: new, then false, held false, promotes false",
		"v1.0.0 staging: true, then true, held true, promotes false", "v1.0.0 qa: new, then false, held false, promotes false",
	}, try(lower, "")); diff != "" {
		t.Errorf("what a lower bar would mean (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"v1.2.0 staging: false, then true, held false, promotes true"}, try(strings.ReplaceAll(alone, "0.80", "0.5"), "v1.2.0")); diff != "" {
		t.Errorf("what a still lower bar would mean for one version (-want +got):\n%s", diff)
	}
	if got := try("", ""); len(got) != 0 {
		t.Errorf("what no environments would mean = %q, want nothing", got)
	}
	if s.in(m, staging) != "v1.0.0" {
		t.Errorf("%s is in staging after trials, want v1.0.0", s.in(m, staging))
	}
	if s.policy(m, lower); s.in(m, staging) != "v1.1.0" {
		t.Errorf("%s is in staging when the bar is lower, want v1.1.0 as foretold", s.in(m, staging))
	}

	reader := lifecycle.Request{Identity: access.Identity{Name: "eve", Role: access.Reader}}
	refused := []struct {
		name string
		by   lifecycle.Request
		text string
		tag  string
		want error
	}{
		{"a reader", reader, alone, "", registry.ErrForbidden},
		{"no YAML", by("ada"), "environments: [", "", registry.ErrInvalid},
		{"a long one", by("ada"), "# " + strings.Repeat("x", 300<<10), "", registry.ErrInvalid},
		{"no such version", by("ada"), alone, "v9.0.0", registry.ErrNotFound},
	}
	for _, tt := range refused {
		var tag registry.Tag
		if tt.tag != "" {
			tag = registry.MustTag(tt.tag)
		}
		if _, err := s.TryPolicy(t.Context(), tt.by, m, []byte(tt.text), tag); !errors.Is(err, tt.want) {
			t.Errorf("TryPolicy of %s = %v, want %v", tt.name, err, tt.want)
		}
	}
	hooked, err := s.TryPolicy(t.Context(), by("ada"), m, []byte(alone+"    deploy: [nowhere]\n"), registry.Tag{})
	if err != nil || len(hooked.Warnings) != 1 || !strings.Contains(hooked.Warnings[0], `staging: no hook "nowhere"`) {
		t.Errorf("warnings of a policy with a hook that is not there = %q, %v, want one", hooked.Warnings, err)
	}
}
