package registry_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// pointer is a pointer file as git-lfs writes it.
// Source: Git LFS specification, docs/spec.md, "The Pointer".
func pointer(oid digest.Digest, sizeBytes int64) string {
	return fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid %s\nsize %d\n", oid, sizeBytes)
}

func TestParsePointer(t *testing.T) {
	const (
		version = "version https://git-lfs.github.com/spec/v1\n"
		size    = "size 12345\n"
	)
	oid := "oid " + someDigest.String() + "\n"
	extension := "ext-0-foo " + someDigest.String() + "\n"
	tests := []struct {
		name, data string
		good       bool
	}{
		{"as git-lfs writes it", version + oid + size, true},
		{"without the last line end", strings.TrimSuffix(version+oid+size, "\n"), true},
		{"with an extension", version + extension + oid + size, true},
		{"with two extensions", version + extension + strings.Replace(extension, "ext-0-foo", "ext-1-bar", 1) + oid + size, true},

		{"empty", "", false},
		{"a text", "The version of this model.\n", false},
		{"version alone", version, false},
		{"version without a line end", strings.TrimSuffix(version, "\n"), false},
		{"no size", version + oid, false},
		{"no oid", version + size, false},
		{"version last", oid + size + version, false},
		{"size before oid", version + size + oid, false},
		{"another version", strings.Replace(version, "v1", "v2", 1) + oid + size, false},
		{"a longer version", strings.Replace(version, "v1\n", "v11\n", 1) + oid + size, false},
		{"a byte before", "\n" + version + oid + size, false},
		{"two oids", version + oid + oid + size, false},
		{"two sizes", version + oid + size + size, false},
		{"two versions", version + version + oid + size, false},
		{"an unknown line", version + oid + size + "weight 7\n", false},
		{"an unknown line between", version + "mode 644\n" + oid + size, false},
		{"a text behind", version + oid + size + "\nmore\n", false},
		{"another algorithm", version + "oid sha512:" + strings.Repeat("ab", 64) + "\n" + size, false},
		{"an oid without its algorithm", version + "oid " + strings.Repeat("ab", 32) + "\n" + size, false},
		{"a short oid", version + strings.TrimSuffix(oid, "b\n") + "\n" + size, false},
		{"an upper-case oid", version + "oid sha256:" + strings.Repeat("AB", 32) + "\n" + size, false},
		{"an empty oid", version + "oid \n" + size, false},
		{"an oid with a path", version + "oid sha256:../../" + strings.Repeat("ab", 29) + "\n" + size, false},
		{"two spaces", version + "oid  " + someDigest.String() + "\n" + size, false},
		{"a tab", version + "oid\t" + someDigest.String() + "\n" + size, false},
		{"a negative size", version + oid + "size -1\n", false},
		{"a size with a sign", version + oid + "size +1\n", false},
		{"a size with a leading zero", version + oid + "size 01\n", false},
		{"a size that is hexadecimal", version + oid + "size 0x10\n", false},
		{"a size with a fraction", version + oid + "size 1.5\n", false},
		{"a size with a space", version + oid + "size 1 \n", false},
		{"a size of 2^63", version + oid + "size 9223372036854775808\n", false},
		{"an empty size", version + oid + "size \n", false},
		{"an extension without an oid", version + "ext-0-foo 12\n" + oid + size, false},
		{"an extension without a name", version + "ext-0- " + someDigest.String() + "\n" + oid + size, false},
		{"an extension of two digits", version + "ext-10-foo " + someDigest.String() + "\n" + oid + size, false},
	}
	for _, tt := range tests {
		want := registry.Pointer{Digest: someDigest, SizeBytes: 12345}
		if !tt.good {
			want = registry.Pointer{}
		}
		if got, ok := registry.ParsePointer([]byte(tt.data)); ok != tt.good || got != want {
			t.Errorf("ParsePointer of %s = %v, %t, want %v, %t", tt.name, got, ok, want, tt.good)
		}
	}
	for _, n := range []int64{0, 1, 1 << 40, 1<<63 - 1} {
		if got, ok := registry.ParsePointer([]byte(pointer(someDigest, n))); !ok || got.SizeBytes != n {
			t.Errorf("ParsePointer with size %d = %v, %t", n, got, ok)
		}
	}
	padded := func(length int) []byte {
		name := "ext-0-" + strings.Repeat("x", length-len(pointer(someDigest, 1))-len("ext-0- \n")-len(someDigest))
		return []byte(version + name + " " + someDigest.String() + "\n" + oid + "size 1\n")
	}
	for length, want := range map[int]bool{registry.MaxPointerLen - 1: true, registry.MaxPointerLen: false} {
		data := padded(length)
		if _, ok := registry.ParsePointer(data); ok != want || len(data) != length {
			t.Errorf("ParsePointer of %d bytes = %t, want %t of %d", len(data), ok, want, length)
		}
	}
}

func FuzzParsePointer(f *testing.F) {
	whole := pointer(someDigest, 7)
	for _, seed := range []string{whole, "", whole[:len(whole)-1], strings.Replace(whole, "oid", "ext-0-a "+someDigest.String()+"\noid", 1), strings.ReplaceAll(whole, "\n", "\r\n"), whole + whole} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := registry.ParsePointer(data)
		if !ok {
			if p != (registry.Pointer{}) {
				t.Errorf("ParsePointer(%q) = %v beside false", data, p)
			}
			return
		}
		if p.Digest.Validate() != nil || p.Digest.Algorithm() != digest.SHA256 || p.SizeBytes < 0 || len(data) >= registry.MaxPointerLen {
			t.Errorf("ParsePointer(%q) = %v, want a SHA-256 and a size of a short file", data, p)
		}
		canonical := pointer(p.Digest, p.SizeBytes)
		if again, ok := registry.ParsePointer([]byte(canonical)); !ok || again != p {
			t.Errorf("ParsePointer(%q) = %v, %t, want %v as of %q", canonical, again, ok, p, data)
		}
		var plain strings.Builder // without extensions it is the canonical pointer, to the last byte
		for line := range strings.Lines(string(data)) {
			if !strings.HasPrefix(line, "ext-") {
				plain.WriteString(line)
			}
		}
		if strings.TrimSuffix(plain.String(), "\n") != strings.TrimSuffix(canonical, "\n") {
			t.Errorf("ParsePointer(%q) takes what git-lfs does not write; it would write %q", data, canonical)
		}
	})
}

func BenchmarkParsePointer(b *testing.B) {
	good, bad := []byte(pointer(someDigest, 123456789)), []byte("import torch\n"+strings.Repeat("# training code\n", 40))
	b.Run("pointer", func(b *testing.B) {
		for b.Loop() {
			if _, ok := registry.ParsePointer(good); !ok {
				b.Fatal("no pointer")
			}
		}
	})
	b.Run("other", func(b *testing.B) {
		for b.Loop() {
			if _, ok := registry.ParsePointer(bad); ok {
				b.Fatal("a pointer")
			}
		}
	})
}
