package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

const (
	// maxKeptBytes is how long a manifest may be that is kept in memory, and maxContentsBytes how much all take.
	maxKeptBytes     = 64 << 10
	maxContentsBytes = 8 << 20
)

// contents keeps manifests in memory: they are small, asked for often and never change. Its zero value is ready.
type contents struct {
	mu       sync.RWMutex
	byDigest map[digest.Digest][]byte
	bytes    int
}

func (c *contents) get(d digest.Digest) ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	content, ok := c.byDigest[d]
	return content, ok
}

func (c *contents) keep(d digest.Digest, content []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byDigest == nil || c.bytes+len(content) > maxContentsBytes {
		c.byDigest, c.bytes = map[digest.Digest][]byte{}, 0
	}
	if _, there := c.byDigest[d]; !there {
		c.byDigest[d] = content
		c.bytes += len(content)
	}
}

// openManifest opens the content of a manifest. One that is kept has the digest; another is sent as it is in the store.
func (h *Handler) openManifest(ctx context.Context, m registry.StoredManifest) (io.ReadSeekCloser, error) {
	if content, ok := h.contents.get(m.Digest); ok {
		return nopCloser{bytes.NewReader(content)}, nil
	}
	file, err := h.Blobs.Open(ctx, m.Digest)
	if err != nil || m.SizeBytes > maxKeptBytes {
		return file, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, m.SizeBytes+1))
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(content); got != m.Digest {
		return nil, fmt.Errorf("manifest %s is damaged: what the store has is %s", m.Digest, got)
	}
	h.contents.keep(m.Digest, content)
	return nopCloser{bytes.NewReader(content)}, nil
}

type nopCloser struct{ io.ReadSeeker }

// Close implements io.Closer.
func (nopCloser) Close() error { return nil }
