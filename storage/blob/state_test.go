package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash/crc32"
	"testing"
)

func FuzzUploadState(f *testing.F) {
	for _, content := range []string{"", "x", "a longer piece of content that fills more than one block of SHA-256"} {
		h := sha256.New()
		h.Write([]byte(content))
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(appendState(nil, int64(len(content)), state))
	}
	f.Add([]byte("00000000 herdbook-upload 1 -1 00\n"))
	f.Add([]byte("herdbook-upload 1 0"))
	f.Fuzz(func(t *testing.T, line []byte) {
		lines := [][]byte{line}
		if body, ok := bytes.CutSuffix(line, []byte("\n")); ok && len(body) > 9 {
			body = body[9:] // with the right checksum, or no change would come past it
			lines = append(lines, fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body))
		}
		for _, line := range lines {
			offset, state, err := parseState(line)
			if err != nil {
				continue
			}
			if offset < 0 {
				t.Errorf("parseState(%q) = offset %d", line, offset)
			}
			if again := appendState(nil, offset, state); !bytes.Equal(again, line) {
				t.Errorf("parseState accepted %q, which appendState writes as %q", line, again)
			}
			// Whatever the checksum lets through must be refused or taken by the hash, never panic.
			_ = sha256.New().(encoding.BinaryUnmarshaler).UnmarshalBinary(state)
		}
	})
}

func TestUploadStateComesBack(t *testing.T) {
	state := []byte{0, 1, 0xfe, 0xff}
	line := appendState(nil, 1<<62, state)
	offset, got, err := parseState(line)
	if offset != 1<<62 || !bytes.Equal(got, state) || err != nil {
		t.Errorf("parseState(%q) = %d, %x, %v, want %d, %x", line, offset, got, err, int64(1<<62), state)
	}
	for i := range line {
		for bit := range 8 {
			damaged := bytes.Clone(line)
			damaged[i] ^= 1 << bit
			if _, _, err := parseState(damaged); err == nil {
				t.Errorf("parseState(%q) = nil, want an error for the bit that changed", damaged)
			}
		}
	}
}
