package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// content is bytes that a seed stands for, made while they are read: they cost next to nothing, cannot be
// compressed, and what comes back is compared with them byte by byte, which is cheaper than a hash.
type content struct {
	seed uint64
	size int64
}

// pieceBytes is the length of the pieces that content repeats. Each begins with the seed and its number.
const pieceBytes = 1 << 20

var piece = sync.OnceValue(func() []byte {
	p := make([]byte, pieceBytes)
	_, _ = rand.NewChaCha8([32]byte{'h', 'e', 'r', 'd', 'b', 'o', 'o', 'k'}).Read(p) // never fails
	return p
})

func (c content) head(number int64) [16]byte {
	var h [16]byte
	binary.BigEndian.PutUint64(h[:], c.seed)
	binary.BigEndian.PutUint64(h[8:], uint64(number))
	return h
}

// at gives bytes of the content from offset, as many as lie in one row; none at its end.
func (c content) at(offset int64) []byte {
	in := offset % pieceBytes
	rest := c.size - offset
	if in < 16 {
		h := c.head(offset / pieceBytes)
		return h[in:min(16, in+rest)]
	}
	return piece()[in:min(pieceBytes, in+rest)]
}

// reader reads the content from its beginning.
func (c content) reader() *contentReader { return &contentReader{content: c} }

type contentReader struct {
	content
	offset int64
}

func (r *contentReader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(p[n:], r.at(r.offset))
		if m == 0 {
			break
		}
		n += m
		r.offset += int64(m)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// sum is the SHA-256 in hex.
func (c content) sum() string {
	h := sha256.New()
	_, _ = io.Copy(h, c.reader())
	return hex.EncodeToString(h.Sum(nil))
}

// same reads r to its end and reports where it differs from the content.
func (c content) same(r io.Reader, buf []byte) error {
	for offset := int64(0); ; {
		n, err := r.Read(buf)
		for got := buf[:n]; len(got) > 0; {
			want := c.at(offset)
			m := min(len(want), len(got))
			if m == 0 || !bytes.Equal(got[:m], want[:m]) {
				return fmt.Errorf("what came is not what was pushed, near byte %d of %d", offset, c.size)
			}
			got, offset = got[m:], offset+int64(m)
		}
		switch {
		case err == io.EOF && offset == c.size:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%d bytes came of %d", offset, c.size)
		case err != nil:
			return err
		}
	}
}
