// Package blobtest is the suite that every backend of the blob store passes.
//
// It checks what callers rely on and can see: content comes back whole under its own digest, once, or
// not at all. What survives a crash is a matter of the backend and its own tests.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/blob"
)

// Store is what a backend provides, with its own types of writer and file.
type Store[W Writer, F File] interface {
	Create(ctx context.Context) (W, error)
	Open(ctx context.Context, dgst digest.Digest) (F, error)
	Stat(ctx context.Context, dgst digest.Digest) (size int64, err error)
	Delete(ctx context.Context, dgst digest.Digest) error
	Walk(ctx context.Context, fn func(blob blob.Descriptor, usedAt time.Time) error) error
	Usage(ctx context.Context) (count, bytes int64, err error)
}

// Writer receives one blob.
type Writer interface {
	io.Writer
	io.ReaderFrom
	Commit(want digest.Digest, wantSize int64) (blob.Descriptor, error)
	Abort()
}

// File is a blob open for reading.
type File interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// Run runs the suite. open returns an empty store that lives as long as the test.
func Run[W Writer, F File](t *testing.T, open func(t *testing.T) Store[W, F]) {
	tests := []struct {
		name string
		test func(s suite[W, F], t *testing.T)
	}{
		{"content comes back", suite[W, F].contentComesBack},
		{"wrong announcement", suite[W, F].wrongAnnouncement},
		{"invalid digest", suite[W, F].invalidDigest},
		{"same content twice", suite[W, F].sameContentTwice},
		{"not found", suite[W, F].notFound},
		{"writer is done once", suite[W, F].writerIsDoneOnce},
		{"broken reader", suite[W, F].brokenReader},
		{"delete", suite[W, F].deleteWhileOpen},
		{"walk", suite[W, F].walk},
		{"cancelled context", suite[W, F].cancelledContext},
		{"concurrent commits of one content", suite[W, F].concurrentSame},
		{"concurrent use", suite[W, F].concurrentUse},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.test(suite[W, F]{open(t)}, t) })
	}
}

type suite[W Writer, F File] struct{ Store[W, F] }

func (s suite[W, F]) contentComesBack(t *testing.T) {
	for _, size := range []int{0, 1, 1000, 512<<10 - 1, 512 << 10, 512<<10 + 1, 3 << 20} {
		content := random(size)
		want := blob.Descriptor{Digest: digest.FromBytes(content), Size: int64(size)}
		ways := map[string]func(w W) error{
			"Write":    func(w W) error { _, err := w.Write(content); return err },
			"ReadFrom": func(w W) error { _, err := w.ReadFrom(bytes.NewReader(content)); return err },
			"one byte at a time": func(w W) error {
				_, err := w.ReadFrom(iotest.OneByteReader(bytes.NewReader(content[:min(size, 1000)])))
				if err == nil {
					_, err = w.Write(content[min(size, 1000):])
				}
				return err
			},
		}
		for name, write := range ways {
			w := s.create(t)
			if err := write(w); err != nil {
				t.Fatalf("%s of %d bytes: %v", name, size, err)
			}
			got, err := w.Commit(want.Digest, want.Size)
			if err != nil {
				t.Fatalf("Commit of %d bytes: %v", size, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Commit of %d bytes by %s (-want +got):\n%s", size, name, diff)
			}
			s.has(t, content)
		}
		s.partly(t, content)
	}
}

func (s suite[W, F]) partly(t *testing.T, content []byte) {
	t.Helper()
	f, err := s.Open(t.Context(), digest.FromBytes(content))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	half := int64(len(content) / 2)
	if _, err := f.Seek(half, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content[half:]) {
		t.Errorf("from byte %d: %d bytes, %v; want %d bytes of the content", half, len(got), err, len(content[half:]))
	}
	got := make([]byte, half)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content[:half]) {
		t.Errorf("ReadAt(%d bytes, 0) = %v, want the content", half, err)
	}
}

func (s suite[W, F]) wrongAnnouncement(t *testing.T) {
	content := []byte("announced as something else")
	right := digest.FromBytes(content)
	tests := []struct {
		name   string
		digest digest.Digest
		size   int64
		want   error
	}{
		{"digest", digest.FromString("other"), int64(len(content)), blob.ErrDigestMismatch},
		{"longer", right, int64(len(content)) + 1, blob.ErrSizeMismatch},
		{"shorter", right, int64(len(content)) - 1, blob.ErrSizeMismatch},
		{"empty", "", 0, blob.ErrSizeMismatch},
		{"other algorithm", digest.Digest("sha512:" + strings.Repeat("0", 128)), -1, digest.ErrDigestUnsupported},
		{"no digest", "latest", -1, digest.ErrDigestInvalidFormat},
	}
	for _, tt := range tests {
		w := s.create(t)
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(tt.digest, tt.size); !errors.Is(err, tt.want) {
			t.Errorf("%s: Commit(%s, %d) = %v, want %v", tt.name, tt.digest, tt.size, err, tt.want)
		}
	}
	s.usage(t) // nothing
	w := s.create(t)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Commit("", -1); err != nil || got.Digest != right || got.Size != int64(len(content)) {
		t.Errorf("Commit of anything = %v, %v, want %s, %d", got, err, right, len(content))
	}
}

func (s suite[W, F]) invalidDigest(t *testing.T) {
	hex := strings.Repeat("0", 64)
	for _, dgst := range []string{
		"", "sha256", "sha256:", hex, "sha256:" + hex[1:], "sha256:" + hex + "0", "sha256:" + strings.Repeat("A", 64),
		"sha256:" + hex[4:] + "/../", "sha256:../" + hex[3:], "SHA256:" + hex, "sha256:" + hex[1:] + "\x00", "../:" + hex,
		"sha256:" + hex[1:] + "g", "sha512:" + hex + hex,
	} {
		_, openErr := s.Open(t.Context(), digest.Digest(dgst))
		_, statErr := s.Stat(t.Context(), digest.Digest(dgst))
		deleteErr := s.Delete(t.Context(), digest.Digest(dgst))
		for name, err := range map[string]error{"Open": openErr, "Stat": statErr, "Delete": deleteErr} {
			if !errors.Is(err, digest.ErrDigestInvalidFormat) && !errors.Is(err, digest.ErrDigestUnsupported) {
				t.Errorf("%s(%q) = %v, want that it is no digest of ours", name, dgst, err)
			}
		}
	}
}

func (s suite[W, F]) sameContentTwice(t *testing.T) {
	content := random(1000)
	s.put(t, content)
	first := s.usedAt(t, content)
	for range 1000 { // a clock of a file system may tick slowly
		s.put(t, content)
		s.usage(t, content)
		if s.usedAt(t, content).After(first) {
			s.has(t, content)
			return
		}
	}
	t.Errorf("used at %v, and no later after the content was committed again many times", first)
}

func (s suite[W, F]) notFound(t *testing.T) {
	s.put(t, random(10))
	dgst := digest.FromString("absent")
	if _, err := s.Open(t.Context(), dgst); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Open = %v, want ErrNotFound", err)
	}
	if _, err := s.Stat(t.Context(), dgst); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Stat = %v, want ErrNotFound", err)
	}
	if err := s.Delete(t.Context(), dgst); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Delete = %v, want ErrNotFound", err)
	}
}

func (s suite[W, F]) writerIsDoneOnce(t *testing.T) {
	content := random(100)
	w := s.create(t)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit("", -1); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	s.has(t, content)
	if _, err := w.Commit("", -1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Commit = %v, want os.ErrClosed", err)
	}
	if _, err := w.Write(content); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Commit = %v, want os.ErrClosed", err)
	}

	w = s.create(t)
	if _, err := w.Write([]byte("aborted")); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	w.Abort()
	if _, err := w.Commit("", -1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Commit after Abort = %v, want os.ErrClosed", err)
	}
	s.usage(t, content)
}

func (s suite[W, F]) brokenReader(t *testing.T) {
	for _, broken := range []error{io.ErrUnexpectedEOF, errors.New("connection reset")} {
		w := s.create(t)
		n, err := w.ReadFrom(io.MultiReader(strings.NewReader("begin"), iotest.ErrReader(broken)))
		if err != broken || n != 5 {
			t.Errorf("ReadFrom = %d, %v, want 5, %v itself", n, err, broken)
		}
		w.Abort()
	}
	s.usage(t)
}

func (s suite[W, F]) deleteWhileOpen(t *testing.T) {
	kept, deleted := random(500), random(600)
	s.put(t, kept)
	s.put(t, deleted)
	f, err := s.Open(t.Context(), digest.FromBytes(deleted))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Delete(t.Context(), digest.FromBytes(deleted)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), digest.FromBytes(deleted)); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Stat after Delete = %v, want ErrNotFound", err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, deleted) {
		t.Errorf("file that was open when its blob was deleted: %d bytes, %v, want the content", len(got), err)
	}
	s.usage(t, kept)
	s.put(t, deleted)
	s.has(t, deleted)
	s.usage(t, kept, deleted)
}

func (s suite[W, F]) walk(t *testing.T) {
	want := map[digest.Digest]int64{}
	for i := range 300 {
		content := random(i)
		s.put(t, content)
		want[digest.FromBytes(content)] = int64(len(content))
	}
	got := map[digest.Digest]int64{}
	var last digest.Digest
	err := s.Walk(t.Context(), func(b blob.Descriptor, usedAt time.Time) error {
		if b.Digest <= last {
			t.Errorf("Walk came to %s after %s", b.Digest, last)
		}
		if age := time.Since(usedAt); age < -time.Minute || age > time.Hour {
			t.Errorf("blob %s was used at %v", b.Digest, usedAt)
		}
		last, got[b.Digest] = b.Digest, b.Size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Walk (-want +got):\n%s", diff)
	}
	stop := errors.New("enough")
	calls := 0
	err = s.Walk(t.Context(), func(blob.Descriptor, time.Time) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Errorf("Walk = %v after %d calls, want the error of the first call", err, calls)
	}
}

func (s suite[W, F]) cancelledContext(t *testing.T) {
	content := random(10)
	s.put(t, content)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dgst := digest.FromBytes(content)
	_, createErr := s.Create(ctx)
	_, openErr := s.Open(ctx, dgst)
	_, statErr := s.Stat(ctx, dgst)
	for name, err := range map[string]error{
		"Create": createErr, "Open": openErr, "Stat": statErr, "Delete": s.Delete(ctx, dgst),
		"Walk": s.Walk(ctx, func(blob.Descriptor, time.Time) error { return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s = %v, want context.Canceled", name, err)
		}
	}
}

func (s suite[W, F]) concurrentSame(t *testing.T) {
	content := random(100 << 10)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			s.put(t, content)
			s.has(t, content)
		})
	}
	wg.Wait()
	s.usage(t, content)
}

// concurrentUse lets readers look for blobs while they come and go: whoever sees one gets the whole of
// it.
func (s suite[W, F]) concurrentUse(t *testing.T) {
	var contents [][]byte
	for range 8 {
		contents = append(contents, random(64<<10+rand.IntN(64<<10)))
	}
	var users sync.WaitGroup
	for i := range 4 {
		users.Go(func() {
			for round := range 20 {
				content := contents[(i+round)%len(contents)]
				s.put(t, content)
				if err := s.Delete(t.Context(), digest.FromBytes(content)); err != nil && !errors.Is(err, blob.ErrNotFound) {
					t.Errorf("Delete: %v", err)
				}
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				content := contents[i%len(contents)]
				f, err := s.Open(t.Context(), digest.FromBytes(content))
				if errors.Is(err, blob.ErrNotFound) {
					continue
				}
				if err != nil {
					t.Errorf("Open: %v", err)
					return
				}
				if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
					t.Errorf("blob seen by a reader: %d bytes, %v, want the %d of the content", len(got), err, len(content))
				}
				f.Close()
			}
		})
	}
	users.Wait()
	close(stop)
	readers.Wait()

	for _, content := range contents {
		s.put(t, content)
	}
	s.usage(t, contents...)
}

func (s suite[W, F]) create(t *testing.T) W {
	t.Helper()
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// put stores content. It may be called from any goroutine of the test.
func (s suite[W, F]) put(t *testing.T, content []byte) {
	t.Helper()
	w, err := s.Create(t.Context())
	if err != nil {
		t.Errorf("Create: %v", err)
		return
	}
	defer w.Abort()
	if _, err := io.Copy(w, bytes.NewReader(content)); err != nil {
		t.Errorf("write: %v", err)
	}
	if _, err := w.Commit(digest.FromBytes(content), int64(len(content))); err != nil {
		t.Errorf("Commit: %v", err)
	}
}

// has checks that content is there. It may be called from any goroutine of the test.
func (s suite[W, F]) has(t *testing.T, content []byte) {
	t.Helper()
	dgst := digest.FromBytes(content)
	if size, err := s.Stat(t.Context(), dgst); err != nil || size != int64(len(content)) {
		t.Errorf("Stat(%s) = %d, %v, want %d", dgst, size, err, len(content))
	}
	f, err := s.Open(t.Context(), dgst)
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	defer f.Close()
	if f.Size() != int64(len(content)) {
		t.Errorf("Size of %s = %d, want %d", dgst, f.Size(), len(content))
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("content of %s: %d bytes, %v, want the %d that were committed", dgst, len(got), err, len(content))
	}
}

func (s suite[W, F]) usedAt(t *testing.T, content []byte) (at time.Time) {
	t.Helper()
	err := s.Walk(t.Context(), func(b blob.Descriptor, usedAt time.Time) error {
		if b.Digest == digest.FromBytes(content) {
			at = usedAt
		}
		return nil
	})
	if err != nil || at.IsZero() {
		t.Fatalf("Walk = %v, used at %v, want it to come to the blob", err, at)
	}
	return at
}

// usage checks that the store holds the contents and nothing else.
func (s suite[W, F]) usage(t *testing.T, contents ...[]byte) {
	t.Helper()
	want := "0 blobs, 0 bytes"
	var sum int
	for i, c := range contents {
		sum += len(c)
		want = fmt.Sprintf("%d blobs, %d bytes", i+1, sum)
	}
	count, size, err := s.Usage(t.Context())
	if got := fmt.Sprintf("%d blobs, %d bytes", count, size); err != nil || got != want {
		t.Errorf("Usage = %s, %v, want %s", got, err, want)
	}
	var walked, walkedBytes int64
	err = s.Walk(t.Context(), func(b blob.Descriptor, _ time.Time) error {
		walked++
		walkedBytes += b.Size
		return nil
	})
	if walked != count || walkedBytes != size || err != nil {
		t.Errorf("Walk = %d blobs, %d bytes, %v, want what Usage says: %d, %d", walked, walkedBytes, err, count, size)
	}
}

func random(size int) []byte {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	return content
}
