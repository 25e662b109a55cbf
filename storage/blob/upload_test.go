package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

func TestUploadInPiecesOverRestarts(t *testing.T) {
	root := t.TempDir()
	content := bytes.Repeat([]byte("a model "), 100_000)
	d := blobs(t, root, durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := u.ID()
	for offset := 0; offset < len(content); offset += 123_457 {
		piece := content[offset:min(offset+123_457, len(content))]
		if got := u.Offset(); got != int64(offset) {
			t.Fatalf("Offset = %d, want %d", got, offset)
		}
		if n, err := u.Append(t.Context(), int64(offset), bytes.NewReader(piece)); n != int64(len(piece)) || err != nil {
			t.Fatalf("Append at %d = %d, %v, want %d", offset, n, err, len(piece))
		}
		if err := errors.Join(u.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
		d = blobs(t, root, durabletest.NoSync())
		if u, err = d.OpenUpload(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	want := blob.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
	if got, err := u.Commit(want.Digest, want.Size); got != want || err != nil {
		t.Fatalf("Commit = %v, %v, want %v", got, err, want)
	}
	if got := read(t, d, want.Digest); !bytes.Equal(got, content) {
		t.Error("the blob is not the content that was uploaded")
	}
	info, err := os.Stat(filepath.Join(root, "blobs", "sha256", want.Digest.Encoded()[:2], want.Digest.Encoded()))
	if err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("mode of the blob = %v, %v, want 0444", info.Mode(), err)
	}
	if err := u.Close(); err != nil {
		t.Errorf("Close after Commit = %v", err)
	}
	if _, err := d.OpenUpload(t.Context(), id); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("OpenUpload after Commit = %v, want ErrNotFound", err)
	}
	if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
		t.Errorf("files in uploads = %v, want none", got)
	}
}

func TestEmptyUpload(t *testing.T) {
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := u.Append(t.Context(), 0, strings.NewReader("")); n != 0 || err != nil {
		t.Errorf("Append of nothing = %d, %v, want 0", n, err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if u, err = d.OpenUpload(t.Context(), u.ID()); err != nil {
		t.Fatal(err)
	}
	if got, err := u.Commit("", 0); got.Digest != digest.FromString("") || err != nil {
		t.Errorf("Commit = %v, %v, want the empty blob", got, err)
	}
}

func TestUploadRefusals(t *testing.T) {
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("begin")); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{0, 4, 6, -1} {
		if n, err := u.Append(t.Context(), offset, strings.NewReader("x")); n != 0 || !errors.Is(err, blob.ErrOffset) {
			t.Errorf("Append at %d of an upload at 5 = %d, %v, want ErrOffset", offset, n, err)
		}
	}
	if _, err := d.OpenUpload(t.Context(), u.ID()); !errors.Is(err, blob.ErrInUse) {
		t.Errorf("OpenUpload of an open upload = %v, want ErrInUse", err)
	}
	absent, upper := strings.Repeat("0", 32), strings.Repeat("A", 32)
	for _, id := range []string{"", ".", "..", "../blobs", absent, upper, u.ID() + "/"} {
		if _, err := d.OpenUpload(t.Context(), id); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("OpenUpload(%q) = %v, want ErrNotFound", id, err)
		}
	}
	if _, err := u.Commit(digest.FromString("other"), -1); !errors.Is(err, blob.ErrDigestMismatch) {
		t.Errorf("Commit = %v, want ErrDigestMismatch", err)
	}
	if _, err := d.OpenUpload(t.Context(), u.ID()); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("OpenUpload after a failed Commit = %v, want ErrNotFound", err)
	}
	if _, err := u.Append(t.Context(), u.Offset(), strings.NewReader("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Append after Commit = %v, want os.ErrClosed", err)
	}
	if _, err := u.Commit("", -1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Commit = %v, want os.ErrClosed", err)
	}
}

func TestUploadCancel(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Cancel(), u.Cancel(), u.Close()); err != nil {
		t.Error(err)
	}
	if _, err := d.OpenUpload(t.Context(), u.ID()); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("OpenUpload after Cancel = %v, want ErrNotFound", err)
	}
	if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
		t.Errorf("files in uploads = %v, want none", got)
	}
}

func TestUploadKeepsWhatCameBeforeTheConnectionBroke(t *testing.T) {
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(strings.NewReader("first half, "), iotest.ErrReader(io.ErrUnexpectedEOF))
	if n, err := u.Append(t.Context(), 0, broken); n != 12 || err != io.ErrUnexpectedEOF {
		t.Errorf("Append = %d, %v, want 12, io.ErrUnexpectedEOF itself", n, err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if u, err = d.OpenUpload(t.Context(), u.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 12, strings.NewReader("second half")); err != nil {
		t.Error(err)
	}
	if _, err := u.Commit(digest.FromString("first half, second half"), 23); err != nil {
		t.Error(err)
	}
}

func TestUploadOnFullDisk(t *testing.T) {
	full := false
	d := blobs(t, t.TempDir(), durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if full && op == durable.OpWrite && filepath.Base(path) == "data" {
			_ = do() // a part of the write may be done
			return &os.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
		}
		return do()
	}})
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("fits, ")); err != nil {
		t.Fatal(err)
	}
	full = true
	n, err := u.Append(t.Context(), 6, strings.NewReader("longer than the rest"))
	if n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Append on a full disk = %d, %v, want 0, ENOSPC", n, err)
	}
	full = false
	if _, err := u.Append(t.Context(), u.Offset(), strings.NewReader("more")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Append after a failed one = %v, want ENOSPC until it is opened again", err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if u, err = d.OpenUpload(t.Context(), u.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 6, strings.NewReader("rest")); err != nil {
		t.Error(err)
	}
	if _, err := u.Commit(digest.FromString("fits, rest"), 10); err != nil {
		t.Error(err)
	}
	if got := read(t, d, digest.FromString("fits, rest")); string(got) != "fits, rest" {
		t.Errorf("blob = %q, want %q", got, "fits, rest")
	}
}

// Clients that are slow are many.
func TestUploadsThatWaitTakeLittleMemory(t *testing.T) {
	const uploads, mostBytes = 200, 200 << 10
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	allocated := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := allocated()
	var wait sync.WaitGroup
	var clients []*io.PipeWriter
	for range uploads {
		u, err := d.NewUpload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		clients = append(clients, w)
		wait.Go(func() {
			if n, err := u.Append(t.Context(), 0, r); n != 1 || err != nil {
				t.Errorf("Append = %d, %v, want 1", n, err)
			}
			if err := u.Cancel(); err != nil {
				t.Error(err)
			}
		})
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if took := (allocated() - before) / uploads; took > mostBytes {
		t.Errorf("an upload that waits for its client takes %d bytes, want at most %d", took, mostBytes)
	}
	for _, w := range clients {
		w.Close()
	}
	wait.Wait()
}

func TestUploadExpires(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	var uploads []*blob.Upload
	for range 3 {
		u, err := d.NewUpload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		uploads = append(uploads, u)
	}
	old, open, fresh := uploads[0], uploads[1], uploads[2]
	if err := errors.Join(old.Close(), fresh.Close()); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-48 * time.Hour)
	for _, u := range []*blob.Upload{old, open} {
		if err := os.Chtimes(filepath.Join(root, "uploads", u.ID()), past, past); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := d.ExpireUploads(t.Context(), time.Now().Add(-24*time.Hour)); n != 1 || err != nil {
		t.Errorf("ExpireUploads = %d, %v, want 1", n, err)
	}
	if _, err := d.OpenUpload(t.Context(), old.ID()); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("OpenUpload of an expired upload = %v, want ErrNotFound", err)
	}
	if _, err := d.OpenUpload(t.Context(), fresh.ID()); err != nil {
		t.Errorf("OpenUpload of a fresh upload = %v", err)
	}
	if _, err := open.Append(t.Context(), 0, strings.NewReader("still there")); err != nil {
		t.Errorf("Append to an old upload that is open = %v", err)
	}
}

// A save is what counts as use: an upload that receives something every hour does not expire.
func TestUploadSaveRenewsIt(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(filepath.Join(root, "uploads", u.ID()), past, past); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := d.ExpireUploads(t.Context(), time.Now().Add(-24*time.Hour)); n != 0 || err != nil {
		t.Errorf("ExpireUploads = %d, %v, want 0", n, err)
	}
}

// Parts that do not fit together are dropped: they could only become a blob under a wrong digest.
func TestUploadWithDamagedParts(t *testing.T) {
	damage := map[string]func(dir string) error{
		"state cut":   func(dir string) error { return os.Truncate(filepath.Join(dir, "state"), 40) },
		"state empty": func(dir string) error { return os.Truncate(filepath.Join(dir, "state"), 0) },
		"state changed": func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "state"))
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(filepath.Join(dir, "state"), data, 0o600)
		},
		"data cut":     func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 3) },
		"data missing": func(dir string) error { return os.Remove(filepath.Join(dir, "data")) },
	}
	for name, damage := range damage {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			d := blobs(t, root, durabletest.NoSync())
			u, err := d.NewUpload(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := u.Append(t.Context(), 0, strings.NewReader("content")); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(u.Close(), damage(filepath.Join(root, "uploads", u.ID()))); err != nil {
				t.Fatal(err)
			}
			if _, err := d.OpenUpload(t.Context(), u.ID()); !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("OpenUpload = %v, want ErrNotFound", err)
			}
			if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
				t.Errorf("files in uploads = %v, want none", got)
			}
		})
	}
}

// An upload in two pieces over a restart, broken at every step: what was acknowledged can be continued
// and ends as the blob.
func TestUploadCrash(t *testing.T) {
	first, second := []byte("first piece, "), []byte("second piece")
	content := append(bytes.Clone(first), second...)
	durabletest.EachStep(t, func() durabletest.Case {
		var id string
		var acknowledged int64
		var committed bool
		return durabletest.Case{
			Work: func(fsys durable.FS, dir string) {
				config := blob.Config{Dir: filepath.Join(dir, "blobs"), FS: fsys}
				d, err := blob.Open(config)
				if err != nil {
					return
				}
				u, err := d.NewUpload(context.Background())
				if err == nil {
					id = u.ID()
					acknowledged, _ = u.Append(context.Background(), 0, bytes.NewReader(first))
					u.Close()
				}
				d.Close()
				if d, err = blob.Open(config); err != nil {
					return
				}
				defer d.Close()
				if u, err = d.OpenUpload(context.Background(), id); err != nil {
					return
				}
				defer u.Close()
				n, err := u.Append(context.Background(), u.Offset(), bytes.NewReader(content[u.Offset():]))
				acknowledged += n
				if err == nil {
					_, err = u.Commit(digest.FromBytes(content), int64(len(content)))
					committed = err == nil
					if err != nil {
						acknowledged = 0 // a failed commit ends the upload
					}
				}
			},
			Check: func(t *testing.T, dir string) {
				d := open(t, filepath.Join(dir, "blobs"), durabletest.NoSync())
				_, err := d.Stat(t.Context(), digest.FromBytes(content))
				if err == nil {
					if got := read(t, d, digest.FromBytes(content)); !bytes.Equal(got, content) {
						t.Errorf("blob = %q, want %q", got, content)
					}
					return
				}
				if committed {
					t.Fatalf("acknowledged blob: %v", err)
				}
				u, err := d.OpenUpload(t.Context(), id)
				if err != nil {
					if acknowledged > 0 {
						t.Fatalf("upload with %d acknowledged bytes: %v", acknowledged, err)
					}
					return
				}
				if u.Offset() < acknowledged {
					t.Errorf("Offset = %d, want at least the acknowledged %d", u.Offset(), acknowledged)
				}
				if _, err := u.Append(t.Context(), u.Offset(), bytes.NewReader(content[u.Offset():])); err != nil {
					t.Error(err)
				}
				if _, err := u.Commit(digest.FromBytes(content), int64(len(content))); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

// While a body comes, what came is made durable from time to time: after 64 MiB at the earliest, and not
// more often than every two seconds.
func TestCheckpoints(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := blobs(t, root, durabletest.NoSync())
		u, err := d.NewUpload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		state := filepath.Join(root, "uploads", u.ID(), "state")
		piece := make([]byte, 16<<20)
		var seen []string
		var pieces []io.Reader
		for i := range 18 {
			pieces = append(pieces, bytes.NewReader(piece), readerFunc(func([]byte) (int, error) {
				line, err := os.ReadFile(state)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
				at := "0"
				if fields := strings.Fields(string(line)); len(fields) > 3 {
					at = fields[3]
				}
				if len(seen) == 0 || seen[len(seen)-1] != at {
					seen = append(seen, at)
				}
				if i >= 8 { // slow from here on
					time.Sleep(time.Second)
				}
				return 0, io.EOF
			}))
		}
		n, err := u.Append(t.Context(), 0, io.MultiReader(pieces...))
		if n != 18<<24 || err != nil {
			t.Fatalf("Append = %d, %v, want %d", n, err, 18<<24)
		}
		if want := []string{"0", strconv.Itoa(12 << 24), strconv.Itoa(16 << 24)}; !slices.Equal(seen, want) {
			t.Errorf("while the body came the upload was durable up to bytes %v, want %v", seen, want)
		}
		if err := u.Cancel(); err != nil {
			t.Error(err)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// An upload by an id of the caller's choice is found again after a restart, whoever began it.
func TestResumeUpload(t *testing.T) {
	root, id := t.TempDir(), strings.Repeat("0af1", 8)
	content := []byte("begun, continued")
	d := blobs(t, root, durabletest.NoSync())
	if _, err := d.OpenUpload(t.Context(), id); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("OpenUpload of what nobody began = %v, want ErrNotFound", err)
	}
	u, err := d.ResumeUpload(t.Context(), id)
	if err != nil || u.ID() != id || u.Offset() != 0 {
		t.Fatalf("ResumeUpload = %v, %v, want one at 0", u, err)
	}
	if _, err := d.ResumeUpload(t.Context(), id); !errors.Is(err, blob.ErrInUse) {
		t.Errorf("ResumeUpload of an open upload = %v, want ErrInUse", err)
	}
	if _, err := u.Append(t.Context(), 0, bytes.NewReader(content[:6])); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	d = blobs(t, root, durabletest.NoSync())
	if u, err = d.ResumeUpload(t.Context(), id); err != nil || u.Offset() != 6 {
		t.Fatalf("ResumeUpload after a restart = %v, want one at 6", err)
	}
	if _, err := u.Append(t.Context(), 6, bytes.NewReader(content[6:])); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(digest.FromBytes(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if u, err = d.ResumeUpload(t.Context(), id); err != nil || u.Offset() != 0 {
		t.Fatalf("ResumeUpload after Commit = %v, want a new one at 0", err)
	}
	if err := u.Cancel(); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", "..", strings.Repeat("A", 32), strings.Repeat("0", 31), "../" + strings.Repeat("0", 29)} {
		if u, err := d.ResumeUpload(t.Context(), id); err == nil {
			t.Errorf("ResumeUpload(%q) = %s, want an error", id, u.ID())
		}
	}
	if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
		t.Errorf("files in uploads = %v, want none", got)
	}
}

// What cannot be continued begins anew.
func TestResumeUploadThatIsDamaged(t *testing.T) {
	root, id := t.TempDir(), strings.Repeat("0", 32)
	d := blobs(t, root, durabletest.NoSync())
	u, err := d.ResumeUpload(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Close(), os.Truncate(filepath.Join(root, "uploads", id, "state"), 40)); err != nil {
		t.Fatal(err)
	}
	if u, err = d.ResumeUpload(t.Context(), id); err != nil || u.Offset() != 0 {
		t.Fatalf("ResumeUpload of a damaged upload = %v, want a new one at 0", err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("content")); err != nil {
		t.Error(err)
	}
	if _, err := u.Commit(digest.FromString("content"), 7); err != nil {
		t.Error(err)
	}
}

// What found no space gives it back when the upload is closed, for somebody else to use.
func TestUploadGivesBackWhatItDidNotKeep(t *testing.T) {
	root := t.TempDir()
	full := false
	d := blobs(t, root, durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if full && op == durable.OpWrite && filepath.Base(path) == "data" {
			return errors.Join(do(), &os.PathError{Op: "write", Path: path, Err: syscall.ENOSPC})
		}
		return do()
	}})
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	full = true
	if _, err := u.Append(t.Context(), 4, strings.NewReader("no space for this")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Append on a full disk = %v, want ENOSPC", err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(root, "uploads", u.ID(), "data")); string(data) != "kept" || err != nil {
		t.Errorf("data after Close = %q, %v, want what was acknowledged", data, err)
	}
}
