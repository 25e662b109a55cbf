package blob

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

const (
	// bufferBytes is read, hashed and written at a time. It stays in the cache of a core.
	bufferBytes = 512 << 10
	// largeBuffers is how many uploads have a buffer of that size at a time: each keeps it, also while it waits for its client. More uploads
	// than these do with smallBytes, which costs a tenth more CPU.
	largeBuffers = 32
	smallBytes   = 64 << 10
	// writebackBytes is how much may wait in memory before the disk is asked to begin. Then the sync of
	// a large blob is short, and small blobs that are committed meanwhile do not wait for its data.
	writebackBytes = 8 << 20
)

// Writer receives the content of one blob. It is not safe for concurrent use.
type Writer struct {
	dir     *Dir
	file    *durable.File // nil after Commit or Abort
	hash    hash.Hash
	size    int64
	flushed int64 // bytes whose writeback was started
	err     error // of a write; the file cannot be used any more
}

var _ io.ReaderFrom = (*Writer)(nil)

// Create begins a blob. The caller ends it with Commit or Abort.
func (d *Dir) Create(ctx context.Context) (*Writer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := d.fs.CreateTemp(d.uploads, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return &Writer{dir: d, file: f, hash: sha256.New()}, nil
}

// Write appends p to the content. Many small pieces are better given to [Writer.ReadFrom].
func (w *Writer) Write(p []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.file == nil {
		return 0, fmt.Errorf("write blob: %w", os.ErrClosed)
	}
	n, err = w.file.Write(p)
	if err != nil {
		w.err = fmt.Errorf("write blob: %w", err)
		return n, w.err
	}
	w.hash.Write(p)
	w.size += int64(n)
	if ahead := w.size - w.flushed; ahead >= writebackBytes {
		w.file.StartWriteback(w.flushed, ahead)
		w.flushed = w.size
	}
	return n, nil
}

// ReadFrom appends what r yields until EOF. An error of r is returned as it is, and what came before it
// is kept.
func (w *Writer) ReadFrom(r io.Reader) (n int64, err error) {
	buffer, release := w.dir.buffer()
	defer release()
	for {
		// Up to a multiple of the buffer: writes across the borders of pages cost half as much again.
		filled, readErr := fill(r, buffer[:len(buffer)-int(w.size%int64(len(buffer)))])
		if filled > 0 {
			written, err := w.Write(buffer[:filled])
			n += int64(written)
			if err != nil {
				return n, err
			}
		}
		if readErr == io.EOF {
			return n, nil
		}
		if readErr != nil {
			return n, readErr
		}
	}
}

// buffer is what an upload reads into until release is called.
func (d *Dir) buffer() (buf []byte, release func()) {
	select {
	case d.large <- struct{}{}:
	default:
		return make([]byte, smallBytes), func() {}
	}
	buffer := d.buffers.Get().(*[]byte)
	return *buffer, func() {
		d.buffers.Put(buffer)
		<-d.large
	}
}

// fill reads until buf is full or r returns an error. io.ReadFull would hide whether an early end is
// the reader's own io.ErrUnexpectedEOF, which is how a broken HTTP body ends.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Commit makes the content a blob and returns its digest and size; when it returns nil the blob is
// durable. The content must hash to want, if want is not empty, and be wantSize bytes long, if that is
// not negative; otherwise the error is ErrDigestMismatch or ErrSizeMismatch. A blob that is there
// already is kept. Whatever happens the writer is done.
func (w *Writer) Commit(want digest.Digest, wantSize int64) (Descriptor, error) {
	blob, err := w.check(want, wantSize)
	if err != nil {
		w.Abort()
		return Descriptor{}, err
	}
	moved, err := w.dir.install(w.file, blob)
	if moved {
		w.close()
	} else {
		w.Abort()
	}
	if err != nil {
		return Descriptor{}, fmt.Errorf("commit blob %s: %w", blob.Digest, err)
	}
	return blob, nil
}

func (w *Writer) check(want digest.Digest, wantSize int64) (Descriptor, error) {
	if w.err != nil {
		return Descriptor{}, w.err
	}
	if w.file == nil {
		return Descriptor{}, fmt.Errorf("commit blob: %w", os.ErrClosed)
	}
	blob := Descriptor{digest.NewDigest(digest.SHA256, w.hash), w.size}
	if want != "" {
		if _, _, err := w.dir.place(want); err != nil {
			return Descriptor{}, err
		}
	}
	// The size comes first: an upload that was cut off should be called that.
	if wantSize >= 0 && blob.Size != wantSize {
		return Descriptor{}, fmt.Errorf("blob of %d bytes, want %d: %w", blob.Size, wantSize, ErrSizeMismatch)
	}
	if want != "" && blob.Digest != want {
		return Descriptor{}, fmt.Errorf("blob %s, want %s: %w", blob.Digest, want, ErrDigestMismatch)
	}
	return blob, nil
}

// Abort drops the content. It does nothing after Commit. A file that cannot be removed is left for the
// next Open.
func (w *Writer) Abort() {
	if w.file == nil {
		return
	}
	name := w.file.Name()
	w.close()
	_ = w.dir.fs.Remove(name)
}

// close ignores the error: either the content was synced, or it is not wanted.
func (w *Writer) close() {
	_ = w.file.Close()
	w.file = nil
}
