package index

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

// A key begins with a prefix only when its parts do, whatever is in them: nobody's rows are under
// the prefix of somebody else.
func FuzzKeys(f *testing.F) {
	f.Add("m1", "v1.0.0", "m1", "v1.0.0")
	f.Add("m1", "v1", "m1\x00v1", "")
	f.Add("m", "1", "m1", "")
	f.Add("", "a", "", "")
	f.Add("m1", "\x00", "m1\x00", "")
	f.Add("a\x00b", "c", "a", "b\x00c")
	f.Fuzz(func(t *testing.T, a, b, x, y string) {
		var c checker
		if c.parts(a, b); c.err != nil {
			return
		}
		if c.parts(x, y); c.err != nil {
			return
		}
		k := key(a, b)
		if got := parts(k); !slices.Equal(got, []string{a, b}) {
			t.Errorf("parts(key(%q, %q)) = %q", a, b, got)
		}
		if got, want := bytes.HasPrefix(k, prefix(x)), x == a; got != want {
			t.Errorf("key(%q, %q) is under the prefix of %q: %t, want %t", a, b, x, got, want)
		}
		if got, want := bytes.HasPrefix(key(a, b, ordered(1)), prefix(x, y)), x == a && y == b; got != want {
			t.Errorf("key(%q, %q, 1) is under the prefix of %q, %q: %t, want %t", a, b, x, y, got, want)
		}
		if got, want := bytes.Compare(key(a, b), key(x, y)) < 0, slices.Compare([]string{a, b}, []string{x, y}) < 0; got != want {
			t.Errorf("key(%q, %q) sorts before key(%q, %q): %t, want %t", a, b, x, y, got, want)
		}
	})
}

func TestCheckParts(t *testing.T) {
	tests := []struct {
		name  string
		parts []string
		ok    bool
	}{
		{"one", []string{"a"}, true},
		{"spaces and slashes", []string{"a b", "c/d"}, true},
		{"as long as it may be", []string{strings.Repeat("x", maxKeyBytes-1)}, true},
		{"one byte longer", []string{strings.Repeat("x", maxKeyBytes)}, false},
		{"too long together", []string{strings.Repeat("x", maxKeyBytes/2), strings.Repeat("x", maxKeyBytes/2)}, false},
		{"empty", []string{""}, false},
		{"the first is empty", []string{"", "a"}, false},
		{"the second is empty", []string{"a", ""}, true},
		{"a NUL", []string{"a", "b\x00c"}, false},
		{"a NUL at the end", []string{"a\x00"}, false},
	}
	for _, tt := range tests {
		var c checker
		if c.parts(tt.parts...); (c.err == nil) != tt.ok {
			t.Errorf("parts of %s: error %v, want one: %t", tt.name, c.err, !tt.ok)
		}
	}
}

// A cursor that comes from outside begins a page under the prefix that was asked for, or is
// refused; nothing of it reaches further.
func FuzzCursor(f *testing.F) {
	f.Add("")
	f.Add("AAAAAAAAAAE")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte("acme/fraud")))
	f.Add("not base64!")
	f.Add("AA==")
	f.Add(strings.Repeat("A", 2000))
	f.Fuzz(func(t *testing.T, cursor string) {
		p := prefix("m1", "commit")
		from, err := after(registry.Page{Cursor: cursor}, p)
		switch {
		case err != nil:
			var field *registry.FieldError
			if from != nil || !errors.As(err, &field) || field.Field != "cursor" {
				t.Errorf("after(%q) = %q, %v, want nothing and an error about the cursor", cursor, from, err)
			}
		case cursor == "":
			if from != nil {
				t.Errorf("after of no cursor = %q, want nothing", from)
			}
		case !bytes.HasPrefix(from, p):
			t.Errorf("after(%q) = %q, want it under %q", cursor, from, p)
		}
	})
}
