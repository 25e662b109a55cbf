package registry_test

import (
	"errors"
	"path"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
)

func TestCheckLockPath(t *testing.T) {
	tests := []struct {
		path string
		want bool
	}{
		{"weights.bin", true},
		{"models/onnx/weights.bin", true},
		{"new folder/ü — 模型.bin", true},
		{".gitattributes", true},
		{"...", true},
		{"..a/b", true},
		{`back\slash`, true},
		{strings.Repeat("a", registry.MaxLockPathLen), true},
		{strings.Repeat("a", registry.MaxLockPathLen+1), false},
		{"", false},
		{".", false},
		{"..", false},
		{"/", false},
		{"/etc/passwd", false},
		{"./a", false},
		{"a/./b", false},
		{"a/../b", false},
		{"../a", false},
		{"a/..", false},
		{"a//b", false},
		{"a/", false},
		{"a\nb", false},
		{"a\x00b", false},
		{"a\x1b[31mb", false},
		{"a\u0085b", false},
		{"a\xffb", false},
	}
	for _, test := range tests {
		err := registry.CheckLockPath(test.path)
		var field *registry.FieldError
		if (err == nil) != test.want || err != nil && (!errors.As(err, &field) || field.Field != "path") {
			t.Errorf("CheckLockPath(%.60q) = %v, want nil: %v", test.path, err, test.want)
		}
	}
}

// FuzzCheckLockPath: a path that is taken leads to one place below the root, and can stand in a message.
func FuzzCheckLockPath(f *testing.F) {
	for _, seed := range []string{"weights.bin", "a/b", "../a", "a/../../b", "/a", "a//b", ".", "", "a\tb", "\xff", "a/..b/c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if registry.CheckLockPath(p) != nil {
			return
		}
		if below := strings.TrimPrefix(path.Join("/root", p), "/root/"); below != p {
			t.Errorf("CheckLockPath(%q) = nil, and below /root it is %q", p, below)
		}
		if len(p) > registry.MaxLockPathLen || !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl) {
			t.Errorf("CheckLockPath(%q) = nil, and it cannot stand in a message", p)
		}
	})
}
