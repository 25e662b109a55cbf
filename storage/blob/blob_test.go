package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/blob/blobtest"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

var _ blobtest.Store[*blob.Writer, *blob.File] = (*blob.Dir)(nil)

func TestDir(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Store[*blob.Writer, *blob.File] {
		return open(t, filepath.Join(t.TempDir(), "blobs"), durable.FS{})
	})
}

func TestLayout(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "blobs")
	d := open(t, dir, durable.FS{})
	content := []byte("hello\n")
	dgst := put(t, d, content)
	want := filepath.Join(dir, "sha256", dgst.Encoded()[:2], dgst.Encoded())
	info, err := os.Stat(want)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o222 != 0 {
		t.Errorf("mode of a blob = %v, want it read-only", info.Mode())
	}
	if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
		t.Errorf("files in uploads after a commit = %v, want none", got)
	}
}

func TestReopen(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "blobs")
	d := open(t, dir, durabletest.NoSync())
	content := []byte("kept")
	dgst := put(t, d, content)
	w, err := d.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("neither committed nor aborted")); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, dir, durabletest.NoSync())
	if got := read(t, d, dgst); !bytes.Equal(got, content) {
		t.Errorf("content after reopening = %q, want %q", got, content)
	}
	if count, size, err := d.Usage(t.Context()); count != 1 || size != int64(len(content)) || err != nil {
		t.Errorf("Usage after reopening = %d, %d, %v, want 1, %d", count, size, err, len(content))
	}
	if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
		t.Errorf("files in uploads after reopening = %v, want none", got)
	}
}

func TestOpenRefusesOtherFileSystem(t *testing.T) {
	if _, err := blob.Open(blob.Config{Dir: filepath.Join(t.TempDir(), "blobs"), UploadsDir: "/proc"}); err == nil {
		t.Error("Open with uploads on another file system = nil, want an error")
	}
}

func TestForeignFilesAreNoBlobs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	d := open(t, dir, durabletest.NoSync())
	dgst := put(t, d, []byte("x"))
	shard := dgst.Encoded()[:2]
	for _, path := range []string{shard + "/README", shard + "/00" + dgst.Encoded()[2:], "lost+found"} {
		if err := os.WriteFile(filepath.Join(dir, "sha256", path), []byte("?"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, dir, durabletest.NoSync())
	if count, _, err := d.Usage(t.Context()); count != 1 || err != nil {
		t.Errorf("Usage = %d blobs, %v, want 1", count, err)
	}
}

// A commit of something new, of something that is there, and a delete, broken at every step.
func TestCrash(t *testing.T) {
	kept, added, deleted := []byte("kept"), []byte("added"), []byte("deleted")
	durabletest.EachStep(t, func() durabletest.Case {
		var hasAdded, hasAgain, hasDeleted bool
		return durabletest.Case{
			Prepare: func(dir string) error {
				d, err := blob.Open(blob.Config{Dir: filepath.Join(dir, "blobs"), FS: durabletest.NoSync()})
				if err != nil {
					return err
				}
				return errors.Join(try(d, kept), try(d, deleted), d.Close())
			},
			Work: func(fsys durable.FS, dir string) {
				d, err := blob.Open(blob.Config{Dir: filepath.Join(dir, "blobs"), FS: fsys})
				if err != nil {
					return
				}
				defer d.Close()
				hasAdded = try(d, added) == nil
				hasAgain = try(d, kept) == nil
				hasDeleted = d.Delete(context.Background(), digest.FromBytes(deleted)) == nil
			},
			Check: func(t *testing.T, dir string) {
				d := open(t, filepath.Join(dir, "blobs"), durabletest.NoSync())
				there := map[string]bool{}
				for _, content := range [][]byte{kept, added, deleted} {
					_, err := d.Stat(t.Context(), digest.FromBytes(content))
					if err != nil && !errors.Is(err, blob.ErrNotFound) {
						t.Error(err)
					}
					if there[string(content)] = err == nil; err != nil {
						continue
					}
					if got := read(t, d, digest.FromBytes(content)); !bytes.Equal(got, content) {
						t.Errorf("blob after the crash = %q, want %q", got, content)
					}
				}
				if !there["kept"] {
					t.Errorf("an old blob is gone; committed again = %v", hasAgain)
				}
				if hasAdded && !there["added"] {
					t.Error("an acknowledged blob is gone")
				}
				if hasDeleted && there["deleted"] {
					t.Error("a deleted blob is back")
				}
				if got := list(t, filepath.Join(dir, "uploads")); len(got) != 0 {
					t.Errorf("files in uploads after reopening = %v, want none", got)
				}
			},
		}
	})
}

// The first blob of a new store, whose directories are all new. After a failure the next process goes
// on with what the first one left unsynced on the same machine.
func TestCrashInNewStore(t *testing.T) {
	content := []byte("the first")
	durabletest.EachStep(t, func() durabletest.Case {
		var acknowledged bool
		return durabletest.Case{
			Work: func(fsys durable.FS, dir string) {
				for range 2 {
					d, err := blob.Open(blob.Config{Dir: filepath.Join(dir, "blobs"), FS: fsys})
					if err != nil {
						continue
					}
					_, err = d.Stat(context.Background(), digest.FromBytes(content))
					acknowledged = acknowledged || err == nil || try(d, content) == nil
					d.Close()
				}
			},
			Check: func(t *testing.T, dir string) {
				d := open(t, filepath.Join(dir, "blobs"), durabletest.NoSync())
				if _, err := d.Stat(t.Context(), digest.FromBytes(content)); err != nil && acknowledged {
					t.Errorf("acknowledged blob: %v", err)
				}
			},
		}
	})
}

// A process that was killed between rename and sync leaves a name that a power cut would undo.
func TestOpenSyncsWhatAKilledProcessLeft(t *testing.T) {
	root := t.TempDir()
	content := []byte("renamed, not synced")
	if err := blobs(t, root, durabletest.NoSync()).Close(); err != nil {
		t.Fatal(err)
	}
	disk := durabletest.NewDisk(t, root)
	dead := false
	disk.Fault = func(op durable.Op, path string) error {
		dead = dead || op == durable.OpSyncDir && filepath.Base(filepath.Dir(path)) == "sha256"
		if dead {
			return durabletest.ErrCut
		}
		return nil
	}
	d := blobs(t, root, disk.FS())
	if err := try(d, content); !errors.Is(err, durabletest.ErrCut) {
		t.Fatalf("Commit = %v, want it broken at the sync of the shard", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Fault = nil
	d = blobs(t, root, disk.FS())
	if _, err := d.Stat(t.Context(), digest.FromBytes(content)); err != nil {
		t.Fatalf("Stat after the kill = %v, want the blob that was renamed", err)
	}
	after := filepath.Join(t.TempDir(), "disk")
	disk.PowerCut(after)
	if got := read(t, blobs(t, after, durabletest.NoSync()), digest.FromBytes(content)); !bytes.Equal(got, content) {
		t.Errorf("blob that Stat found, after a power cut = %q, want %q", got, content)
	}
}

func TestBlobIsHiddenUntilDurable(t *testing.T) { synctest.Test(t, testBlobIsHiddenUntilDurable) }

func testBlobIsHiddenUntilDurable(t *testing.T) {
	syncing, release := make(chan struct{}), make(chan struct{})
	d := blobs(t, t.TempDir(), durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == durable.OpSyncDir && filepath.Base(filepath.Dir(path)) == "sha256" {
			syncing <- struct{}{}
			<-release
		}
		return do()
	}})
	content := []byte("not yet")
	dgst := digest.FromBytes(content)
	check := func(want error) {
		t.Helper()
		_, statErr := d.Stat(t.Context(), dgst)
		f, openErr := d.Open(t.Context(), dgst)
		if openErr == nil {
			f.Close()
		}
		walked := 0
		if err := d.Walk(t.Context(), func(blob.Descriptor, time.Time) error { walked++; return nil }); err != nil {
			t.Error(err)
		}
		if !errors.Is(statErr, want) || !errors.Is(openErr, want) || (walked == 0) != (want != nil) {
			t.Errorf("Stat = %v, Open = %v, Walk found %d; want %v", statErr, openErr, walked, want)
		}
	}
	var wg sync.WaitGroup
	var acknowledged atomic.Int64
	commit := func() {
		if err := try(d, content); err != nil {
			t.Error(err)
		}
		acknowledged.Add(1)
	}
	wg.Go(commit)
	<-syncing
	check(blob.ErrNotFound)
	if err := d.Delete(t.Context(), dgst); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Delete = %v, want ErrNotFound", err)
	}
	wg.Go(commit) // finds the name there, and must not be told so yet
	synctest.Wait()
	if got := acknowledged.Load(); got != 0 {
		t.Errorf("%d commits were acknowledged before the sync", got)
	}
	release <- struct{}{}
	wg.Wait()
	check(nil)
}

func TestFailedSyncOfShardTakesBlobBack(t *testing.T) {
	broken := true
	var removable atomic.Bool
	removable.Store(true)
	d := blobs(t, t.TempDir(), durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if broken && op == durable.OpSyncDir && filepath.Base(filepath.Dir(path)) == "sha256" {
			return syscall.EIO
		}
		if op == durable.OpRemove && !removable.Load() {
			return syscall.EROFS
		}
		return do()
	}})
	content := []byte("content")
	for _, can := range []bool{true, false} {
		removable.Store(can)
		broken = true
		if err := try(d, content); !errors.Is(err, syscall.EIO) {
			t.Errorf("Commit = %v, want EIO", err)
		}
		if _, err := d.Stat(t.Context(), digest.FromBytes(content)); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Stat after the failure = %v, want ErrNotFound", err)
		}
	}
	broken = false
	removable.Store(true)
	dgst := put(t, d, content)
	if got := read(t, d, dgst); !bytes.Equal(got, content) {
		t.Errorf("content after it was committed again = %q, want %q", got, content)
	}
	if count, size, err := d.Usage(t.Context()); count != 1 || size != int64(len(content)) || err != nil {
		t.Errorf("Usage = %d, %d, %v, want 1, %d", count, size, err, len(content))
	}
}

func TestFullDisk(t *testing.T) {
	full := true
	root := t.TempDir()
	d := blobs(t, root, durable.FS{Hook: func(op durable.Op, _ string, do func() error) error {
		if full && op == durable.OpWrite {
			return &os.PathError{Op: "write", Path: "blob", Err: syscall.ENOSPC}
		}
		return do()
	}})
	w, err := d.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(make([]byte, 1<<20))); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("io.Copy = %v, want ENOSPC", err)
	}
	full = false
	if _, err := w.Write([]byte("more")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Write after a failed one = %v, want ENOSPC again", err)
	}
	if _, err := w.Commit("", -1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Commit = %v, want ENOSPC", err)
	}
	if got := list(t, filepath.Join(root, "uploads")); len(got) != 0 {
		t.Errorf("files in uploads = %v, want none", got)
	}
	put(t, d, []byte("there is space again"))
}

func TestCommitReplacesDamagedBlob(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	content := []byte("will be cut short")
	dgst := put(t, d, content)
	path := filepath.Join(root, "blobs", "sha256", dgst.Encoded()[:2], dgst.Encoded())
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = blobs(t, root, durabletest.NoSync())
	put(t, d, content)
	if got := read(t, d, dgst); !bytes.Equal(got, content) {
		t.Errorf("content after it was committed again = %q, want %q", got, content)
	}
	if count, size, err := d.Usage(t.Context()); count != 1 || size != int64(len(content)) || err != nil {
		t.Errorf("Usage = %d, %d, %v, want 1, %d", count, size, err, len(content))
	}
}

func TestCommitsShareSyncs(t *testing.T) { synctest.Test(t, testCommitsShareSyncs) }

func testCommitsShareSyncs(t *testing.T) {
	var syncs atomic.Int64
	release := make(chan struct{})
	d := blobs(t, t.TempDir(), durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == durable.OpSyncDir && filepath.Base(filepath.Dir(path)) == "sha256" {
			syncs.Add(1)
			<-release
		}
		return do()
	}})
	var wg sync.WaitGroup
	for i, n := 0, 0; n < 16; i++ {
		content := fmt.Appendf(nil, "content %d", i)
		if sha256.Sum256(content)[0] != 7 {
			continue
		}
		n++
		wg.Go(func() {
			if err := try(d, content); err != nil {
				t.Error(err)
			}
		})
	}
	synctest.Wait()
	close(release)
	wg.Wait()
	if got := syncs.Load(); got != 2 {
		t.Errorf("%d syncs for a commit and fifteen more into its shard during the sync, want 2", got)
	}
}

// net/http finds the file behind a *blob.File, so the kernel copies it to the connection: no byte of it
// passes through this process.
func TestFileIsSentByTheKernel(t *testing.T) {
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	dgst := put(t, d, content)
	f, err := d.Open(t.Context(), dgst)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var file any = f
	if _, ok := file.(syscall.Conn); !ok {
		t.Error("*File is no syscall.Conn, so net does not use sendfile for it")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, f)
	}))
	defer server.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Range", "bytes=16-")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(got, content[16:]) {
		t.Errorf("body = %d bytes, %v, want %d", len(got), err, len(content)-16)
	}
}

func TestUsageOfUnreadableShard(t *testing.T) {
	root := t.TempDir()
	if err := blobs(t, root, durabletest.NoSync()).Close(); err != nil {
		t.Fatal(err)
	}
	shard := filepath.Join(root, "blobs", "sha256", "7f")
	if err := os.WriteFile(shard, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := blobs(t, root, durabletest.NoSync()).Usage(t.Context()); err == nil {
		t.Error("Usage when a shard cannot be read = nil, want an error and no wrong number")
	}
}

func blobs(t testing.TB, root string, fsys durable.FS) *blob.Dir {
	t.Helper()
	return open(t, filepath.Join(root, "blobs"), fsys)
}

func open(t testing.TB, dir string, fsys durable.FS) *blob.Dir {
	t.Helper()
	d, err := blob.Open(blob.Config{Dir: dir, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func try(d *blob.Dir, content []byte) error {
	w, err := d.Create(context.Background())
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(content); err != nil {
		return err
	}
	_, err = w.Commit(digest.FromBytes(content), int64(len(content)))
	return err
}

func put(t testing.TB, d *blob.Dir, content []byte) digest.Digest {
	t.Helper()
	if err := try(d, content); err != nil {
		t.Fatal(err)
	}
	return digest.FromBytes(content)
}

func read(t testing.TB, d *blob.Dir, dgst digest.Digest) []byte {
	t.Helper()
	f, err := d.Open(t.Context(), dgst)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func list(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func BenchmarkPutLarge(b *testing.B) {
	const size = 1 << 30
	d := blobs(b, b.TempDir(), durable.FS{})
	block := make([]byte, 1<<20)
	b.SetBytes(size)
	start := cpu()
	for i := 0; b.Loop(); i++ {
		w, err := d.Create(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		r := io.LimitReader(repeat{block}, size-1)
		if _, err := fmt.Fprintf(w, "%c", i); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			b.Fatal(err)
		}
		blob, err := w.Commit("", -1)
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Delete(b.Context(), blob.Digest); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpu()-start).Seconds()/float64(b.N), "cpu-s/op")
}

// repeat is an endless reader that costs one copy, as a connection does.
type repeat struct{ block []byte }

func (r repeat) Read(p []byte) (int, error) { return copy(p, r.block), nil }

func BenchmarkPutSmall2000(b *testing.B) {
	const blobCount, writers = 2000, 8
	content := make([]byte, 64<<10)
	d := blobs(b, b.TempDir(), durable.FS{})
	start := cpu()
	for round := 0; b.Loop(); round++ {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				content := bytes.Clone(content)
				for i := next.Add(1); i <= blobCount; i = next.Add(1) {
					copy(content, fmt.Sprintf("%d %d", round, i))
					if err := try(d, content); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric((cpu()-start).Seconds()/float64(b.N), "cpu-s/op")
}

func BenchmarkOpenRead(b *testing.B) {
	d := blobs(b, b.TempDir(), durable.FS{})
	content := make([]byte, 64<<10)
	dgst := put(b, d, content)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		f, err := d.Open(b.Context(), dgst)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(f, content); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkStat(b *testing.B) {
	d := blobs(b, b.TempDir(), durable.FS{})
	dgst := put(b, d, []byte("x"))
	for b.Loop() {
		if _, err := d.Stat(b.Context(), dgst); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenStore(b *testing.B) {
	root := b.TempDir()
	blobs(b, root, durable.FS{})
	for b.Loop() {
		d, err := blob.Open(blob.Config{Dir: filepath.Join(root, "blobs")})
		if err != nil {
			b.Fatal(err)
		}
		d.Close()
	}
}

func cpu() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
