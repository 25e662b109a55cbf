package registry_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestProtectionCovers(t *testing.T) {
	p := registry.Protection{Branches: []string{"main", "release/*", "*-stable"}, Tags: []string{"audited-*"}}
	for ref, want := range map[string]bool{
		"refs/heads/main":            true,
		"refs/heads/main2":           false,
		"refs/heads/feature/main":    false,
		"refs/heads/release/1.2":     true,
		"refs/heads/release/1/2":     true,
		"refs/heads/release":         false,
		"refs/heads/2026-stable":     true,
		"refs/tags/main":             false,
		"refs/tags/audited-2026":     true,
		"refs/heads/audited-2026":    false,
		"refs/notes/main":            false,
		"refs/herdbook/versions":     false,
		"refs/heads/release/x.lock/": true, // a name that is none is refused elsewhere
	} {
		if got := p.Covers(ref); got != want {
			t.Errorf("Covers(%s) = %t, want %t", ref, got, want)
		}
	}
}

func TestProtectionCheck(t *testing.T) {
	for _, p := range []registry.Protection{{}, {Branches: []string{"*"}}, {Branches: []string{"a/b-*"}, Tags: []string{"*.final"}}} {
		if err := p.Check(); err != nil {
			t.Errorf("Check(%v) = %v, want nil", p, err)
		}
	}
	for _, pattern := range []string{"", "a b", "a?", "[a]", "refs/heads/main", "a\nb", strings.Repeat("a", 201)} {
		var field *registry.FieldError
		if err := (registry.Protection{Tags: []string{pattern}}).Check(); !errors.As(err, &field) || field.Field != "protected.tags" {
			t.Errorf("Check of the tag pattern %q = %v, want an error on protected.tags", pattern, err)
		}
	}
	if err := (registry.Protection{Branches: make([]string, 101)}).Check(); err == nil {
		t.Error("Check of 101 patterns = nil, want an error")
	}
}

// A pattern means what a regular expression with .* in the place of each * means.
func FuzzProtectionCovers(f *testing.F) {
	for _, seed := range [][2]string{{"main", "main"}, {"*", "x"}, {"a*b*c", "a--b--b-c"}, {"a*a", "a"}, {"**", ""}, {"*ab", "aab"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.ContainsAny(name, "\n") || !isText(pattern) || !isText(name) || name == "" {
			return
		}
		form := regexp.MustCompile("(?s)^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$")
		p := registry.Protection{Branches: []string{pattern}}
		if got, want := p.Covers("refs/heads/"+name), form.MatchString(name); got != want {
			t.Errorf("pattern %q covers %q = %t, want %t", pattern, name, got, want)
		}
	})
}

func isText(s string) bool { return strings.ToValidUTF8(s, "") == s }
