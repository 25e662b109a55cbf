package registry_test

import (
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestParseVisibility(t *testing.T) {
	tests := []struct {
		in       string
		fallback registry.Visibility
		want     registry.Visibility // empty when it is refused
	}{
		{"public", registry.Private, registry.Public},
		{"internal", registry.Private, registry.Internal},
		{"private", registry.Public, registry.Private},
		{"", registry.Internal, registry.Internal},
		{"Public", registry.Private, ""},
		{"public ", registry.Private, ""},
		{"secret", registry.Public, ""},
	}
	for _, tt := range tests {
		got, err := registry.ParseVisibility(tt.in, tt.fallback)
		if got != tt.want || (err != nil) != (tt.want == "") || err != nil && fieldOf(err) != "visibility" {
			t.Errorf("ParseVisibility(%q, %s) = %q, %v, want %q", tt.in, tt.fallback, got, err, tt.want)
		}
	}
}

func TestLatest(t *testing.T) {
	tests := []struct{ versions, want string }{ // the highest first
		{"", ""},
		{"v1.0.0", "v1.0.0"},
		{"v2.0.0 v1.0.0", "v2.0.0"},
		{"v2.0.0-rc.1 v1.1.0 v1.0.0", "v1.1.0"},
		{"v2.0.0-rc.2 v2.0.0-rc.1", "v2.0.0-rc.2"},
	}
	for _, tt := range tests {
		var versions []registry.VersionRecord
		for _, tag := range tags(tt.versions) {
			versions = append(versions, registry.VersionRecord{Version: registry.Version{Tag: tag}})
		}
		if got, ok := registry.Latest(versions); got.Version.Tag.String() != tt.want || ok != (tt.want != "") {
			t.Errorf("Latest(%s) = %s, %t, want %s", tt.versions, got.Version.Tag, ok, tt.want)
		}
	}
}

func TestPageBound(t *testing.T) {
	for limit, want := range map[int]int{-1: registry.MaxPage, 0: registry.MaxPage, 1: 1, registry.MaxPage: registry.MaxPage, registry.MaxPage + 1: registry.MaxPage} {
		if got := (registry.Page{Limit: limit}).Bound(); got != want {
			t.Errorf("Bound() of limit %d = %d, want %d", limit, got, want)
		}
	}
}

func TestImageRepository(t *testing.T) {
	if got, want := registry.ImageRepository("m1"), "m1/image"; got != want {
		t.Errorf("ImageRepository(m1) = %q, want %q", got, want)
	}
}
