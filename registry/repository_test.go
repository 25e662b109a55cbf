package registry_test

import (
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestCheckRepositoryName(t *testing.T) {
	tests := []struct {
		in   string
		want bool
	}{
		{"busybox", true},
		{"acme/tools", true},
		{"acme/tools/scan/v2", true},
		{"a.b_c__d---e/0", true},
		{"acme/fraud.git", true},
		{"image", true},
		{strings.Repeat("a/", 127) + "a", true},
		{strings.Repeat("a/", 127) + "aa", false},
		{"", false},
		{"/", false},
		{"acme/", false},
		{"/acme", false},
		{"acme//tools", false},
		{"Acme/tools", false},
		{"acme/.", false},
		{"acme/..", false},
		{"acme/.tools", false},
		{"acme/tools-", false},
		{"acme/a..b", false},
		{"acme/a___b", false},
		{"acme/a b", false},
		{"acme/a\n", false},
		{"acme/a%2fb", false},
		{"acme/ü", false},
		{"acme:tools", false},
	}
	for _, tt := range tests {
		if err := registry.CheckRepositoryName(tt.in); (err == nil) != tt.want || err != nil && fieldOf(err) != "name" {
			t.Errorf("CheckRepositoryName(%.300q) = %v, want it to be one: %t", tt.in, err, tt.want)
		}
	}
}

func FuzzCheckRepositoryName(f *testing.F) {
	for _, seed := range []string{"busybox", "acme/tools/scan", "acme//x", "a/..", "A", "a\x00", "a__b/c--d", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		err := registry.CheckRepositoryName(in)
		if err != nil && fieldOf(err) != "name" {
			t.Errorf("CheckRepositoryName(%q) = %v, want an error on name", in, err)
		}
		if got, want := err == nil, ociRepository.MatchString(in) && len(in) <= 255; got != want {
			t.Errorf("CheckRepositoryName(%q) takes it: %t, want %t: the specification's pattern and length", in, got, want)
		}
	})
}
