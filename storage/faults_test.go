package storage_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// breaker is a file system of which one step fails.
type breaker struct {
	mu    sync.Mutex
	count int    // of steps since the last reset
	at    int    // the step that fails; 0 is none
	what  string // it was
}

func (b *breaker) fs() durable.FS { return durable.FS{Hook: b.step} }

func (b *breaker) step(op durable.Op, path string, do func() error) error {
	b.mu.Lock()
	b.count++
	broken := b.count == b.at
	if broken {
		b.what = fmt.Sprintf("%s %s", op, filepath.Base(path))
	}
	b.mu.Unlock()
	if broken {
		return &os.PathError{Op: string(op), Path: path, Err: syscall.EIO}
	}
	return do()
}

func (b *breaker) breakAt(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count, b.at, b.what = 0, n, ""
}

// eachFault does work once for each step that it takes, which fails, and once without a fault. After each fault the error is told,
// and check looks at what there is.
func (b *breaker) eachFault(t *testing.T, work func() error, check func(t *testing.T, failedAt string)) {
	t.Helper()
	for n := 1; ; n++ {
		b.breakAt(n)
		err := work()
		taken, what := b.count, b.what
		b.breakAt(0)
		if taken < n {
			if err != nil {
				t.Errorf("without a fault: %v", err)
			}
			if n < 3 {
				t.Errorf("the work takes %d steps, want some to break", n-1)
			}
			return
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("with a fault at step %d, %s: %v, want the fault", n, what, err)
		}
		check(t, what)
	}
}

func openBroken(t *testing.T) (*storage.Data, *breaker) {
	t.Helper()
	b := &breaker{}
	d, err := storage.Open(t.Context(), storage.Config{Dir: t.TempDir(), Log: discard, FS: b.fs()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeData(t, d) })
	return d, b
}

// A secret that could not be kept is not handed out: the next start would make another one.
func TestSecretOnABrokenDisk(t *testing.T) {
	d, b := openBroken(t)
	n := 0
	var got []byte
	secret := func() (err error) {
		got, err = d.Secret(fmt.Sprintf("secret%d", n), func() []byte { return fmt.Appendf(nil, "made %d", n) })
		return err
	}
	b.eachFault(t, secret, func(t *testing.T, failedAt string) {
		if err := secret(); err != nil || string(got) != fmt.Sprintf("made %d", n) {
			t.Errorf("Secret after a fault at %s = %q, %v, want it made", failedAt, got, err)
		}
		n++
	})
	b.eachFault(t, func() error { _, err := d.WriteAdminToken("hb_1_x"); return err }, func(t *testing.T, failedAt string) {
		if path, err := d.WriteAdminToken("hb_1_y"); err != nil || string(readFile(t, path)) != "hb_1_y\n" {
			t.Errorf("WriteAdminToken after a fault at %s = %v, want it written", failedAt, err)
		}
	})
}

// fill gives a data directory a model with a repository, a blob and some groups.
func fill(t *testing.T, d *storage.Data) {
	t.Helper()
	m := model("m1", "acme/fraud", registry.Public)
	blob := putBlob(t, d, "weights")
	if _, err := d.Repositories.Create(t.Context(), m.Name); err != nil {
		t.Fatal(err)
	}
	for _, record := range []registry.Record{registry.ModelCreated{Model: m}, registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{blob}}} {
		if err := d.Commit(t.Context(), registry.Group{At: begin, Records: []registry.Record{record}}); err != nil {
			t.Fatal(err)
		}
	}
}

func putBlob(t *testing.T, d *storage.Data, text string) registry.LinkedBlob {
	t.Helper()
	w, err := d.Blobs.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	put, err := w.Commit("", -1)
	if err != nil {
		t.Fatal(err)
	}
	return registry.LinkedBlob{Digest: put.Digest, SizeBytes: put.Size}
}

// A backup that could not be finished is not taken for one, and is finished by the next.
func TestBackupOnABrokenDisk(t *testing.T) {
	d, b := openBroken(t)
	fill(t, d)
	to, n := "", 0
	fresh := func() string {
		n++
		return filepath.Join(t.TempDir(), fmt.Sprintf("backup%d", n))
	}
	to = fresh()
	backup := func() error { _, err := d.Backup(t.Context(), to, storage.Report{}); return err }
	restored := func(t *testing.T, from string) error {
		t.Helper()
		_, err := storage.Restore(t.Context(), from, filepath.Join(t.TempDir(), "data"), false, storage.Report{})
		return err
	}
	b.eachFault(t, backup, func(t *testing.T, failedAt string) {
		// Of the last steps the file that says that it is whole may be there, but then it is.
		if err := restored(t, to); err == nil && failedAt != "syncdir "+filepath.Base(to) {
			t.Errorf("a backup that failed at %s can be restored", failedAt)
		}
		if err := backup(); err != nil {
			t.Errorf("Backup after a fault at %s = %v", failedAt, err)
		}
		if n%5 != 0 {
			// Each takes as long as all the rest.
		} else if err := restored(t, to); err != nil {
			t.Errorf("Restore from a backup that was finished after a fault at %s = %v", failedAt, err)
		}
		to = fresh()
	})
}

// What is restored appears as a whole or not at all.
func TestRestoreOnABrokenDisk(t *testing.T) {
	d, _ := openBroken(t)
	fill(t, d)
	from := filepath.Join(t.TempDir(), "backup")
	if _, err := d.Backup(t.Context(), from, storage.Report{}); err != nil {
		t.Fatal(err)
	}
	var b breaker
	parent := t.TempDir()
	n := 0
	to := func() string { return filepath.Join(parent, fmt.Sprintf("data%d", n)) }
	b.eachFault(t, func() error { return storage.RestoreOn(t.Context(), b.fs(), from, to()) }, func(t *testing.T, failedAt string) {
		if exists(to()) && failedAt != "syncdir "+filepath.Base(parent) {
			t.Errorf("after a fault at %s there is a data directory", failedAt)
		}
		if left, err := filepath.Glob(filepath.Join(parent, ".herdbook-tmp-*")); err != nil || len(left) > 0 {
			t.Errorf("after a fault at %s there is %v, %v, want nothing unfinished", failedAt, left, err)
		}
		n++
	})
	if err := openAndClose(t, to()); err != nil {
		t.Errorf("Open of what was restored = %v", err)
	}
}

func openAndClose(t *testing.T, dir string) error {
	t.Helper()
	d, err := storage.Open(t.Context(), storage.Config{Dir: dir, Log: discard})
	if err != nil {
		return err
	}
	return d.Close()
}

// A commit that a broken disk did not take is none, whatever the step.
func TestCommitOnABrokenDisk(t *testing.T) {
	d, b := openBroken(t)
	b.breakAt(2) // write, sync
	group := registry.Group{At: begin, Records: []registry.Record{registry.ModelCreated{Model: model("m1", "acme/fraud", registry.Public)}}}
	if err := d.Commit(t.Context(), group); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Commit whose sync fails = %v, want ErrUnavailable", err)
	}
	b.breakAt(0)
	if err := d.Commit(t.Context(), group); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Commit after a sync that failed = %v, want ErrUnavailable: nothing can be promised any more", err)
	}
	if _, err := d.Index.ModelByID(t.Context(), "m1"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("the model of a commit that failed = %v, want ErrNotFound", err)
	}
}

// collect removes everything that nothing names, however new.
func collect(t *testing.T, d *storage.Data, removed func(digest.Digest)) storage.Collected {
	t.Helper()
	c, err := d.Collect(t.Context(), time.Now().Add(time.Hour), false, storage.Report{}, func(dgst digest.Digest, _ int64) { removed(dgst) })
	if err != nil {
		t.Fatalf("Collect = %v", err)
	}
	return c
}

// What was removed as garbage cannot be named, until it is sent again.
func TestNameWhatWasRemoved(t *testing.T) {
	d, _ := openBroken(t)
	fill(t, d)
	blob := putBlob(t, d, "sent, and not yet named")
	link := func() error {
		return d.Commit(t.Context(), registry.Group{At: begin, Records: []registry.Record{registry.BlobsLinked{ModelID: "m1", Blobs: []registry.LinkedBlob{blob}}}})
	}
	if c := collect(t, d, func(digest.Digest) {}); c.Blobs != 1 || c.Kept != 1 {
		t.Fatalf("Collect = %+v, want one blob removed and one kept", c)
	}
	if err := link(); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Commit that names a blob that was removed = %v, want ErrUnavailable", err)
	}
	if _, err := d.Index.BlobSize(t.Context(), "m1", blob.Digest.String()); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("the model owns a blob that was removed: %v, want ErrNotFound", err)
	}
	putBlob(t, d, "sent, and not yet named")
	if err := link(); err != nil {
		t.Errorf("Commit that names a blob that was sent again = %v", err)
	}
	if c := collect(t, d, func(digest.Digest) {}); c.Blobs != 0 || c.Kept != 2 {
		t.Errorf("Collect = %+v, want all kept", c)
	}
}

// What is named while garbage is collected is not removed.
func TestNameWhileCollecting(t *testing.T) {
	d, _ := openBroken(t)
	fill(t, d)
	blobs := map[digest.Digest]registry.LinkedBlob{}
	for i := range 5 {
		b := putBlob(t, d, fmt.Sprint("blob ", i))
		blobs[b.Digest] = b
	}
	var gone digest.Digest
	c := collect(t, d, func(dgst digest.Digest) {
		gone = dgst
		record := registry.BlobsLinked{ModelID: "m1"}
		for other, b := range blobs {
			if other != dgst {
				record.Blobs = append(record.Blobs, b)
			}
		}
		if err := d.Commit(t.Context(), registry.Group{At: begin, Records: []registry.Record{record}}); err != nil {
			t.Errorf("Commit while garbage is collected = %v", err)
		}
	})
	if c.Blobs != 1 {
		t.Errorf("Collect = %+v, want one blob removed: the others were named then", c)
	}
	for dgst := range blobs {
		if _, err := d.Blobs.Stat(t.Context(), dgst); (err == nil) == (dgst == gone) {
			t.Errorf("blob %s: %v, and the one that was removed is %s", dgst, err, gone)
		}
	}
}
