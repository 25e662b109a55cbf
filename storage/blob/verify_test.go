package blob_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

// flip changes one bit of a blob on disk.
func flip(t *testing.T, root string, dgst digest.Digest, offset int64) {
	t.Helper()
	path := filepath.Join(root, "blobs", "sha256", dgst.Encoded()[:2], dgst.Encoded())
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

func TestVerify(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	good, long := put(t, d, []byte("good")), bytes.Repeat([]byte("0123456789"), 300_000)
	bad := put(t, d, long)
	read := 0
	if err := d.Verify(t.Context(), bad, func(n int) error { read += n; return nil }); err != nil || read < len(long) {
		t.Errorf("Verify of a good blob = %v after it asked for %d bytes, want nil and %d", err, read, len(long))
	}
	flip(t, root, bad, 2_999_999)
	if err := d.Verify(t.Context(), bad, nil); !errors.Is(err, blob.ErrDamaged) {
		t.Fatalf("Verify of a blob with a flipped bit = %v, want ErrDamaged", err)
	}
	if _, err := d.Stat(t.Context(), bad); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Stat of a damaged blob = %v, want ErrNotFound", err)
	}
	if found, err := d.Damaged(t.Context()); err != nil || !slices.Equal(found, []digest.Digest{bad}) {
		t.Errorf("Damaged = %v, %v, want the one", found, err)
	}
	if count, size, err := d.Usage(t.Context()); count != 1 || size != 4 || err != nil {
		t.Errorf("Usage = %d, %d, %v, want the good blob alone", count, size, err)
	}
	if err := d.Verify(t.Context(), bad, nil); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Verify of what was set aside = %v, want ErrNotFound", err)
	}
	if err := d.Verify(t.Context(), good, nil); err != nil {
		t.Errorf("Verify of a good blob = %v, want nil", err)
	}

	// Whoever sends it again mends it, also after a restart.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = blobs(t, root, durabletest.NoSync())
	if got := put(t, d, long); got != bad {
		t.Fatalf("the same content has the digest %s, want %s", got, bad)
	}
	if err := d.Verify(t.Context(), bad, nil); err != nil {
		t.Errorf("Verify of the blob that was sent again = %v, want nil", err)
	}
	if err := d.RemoveDamaged(bad); err != nil {
		t.Errorf("RemoveDamaged = %v", err)
	}
	if found, err := d.Damaged(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("Damaged after it was removed = %v, %v, want none", found, err)
	}
}

// A blob that is replaced while the damaged one is read is not set aside.
func TestVerifyOfABlobThatIsMendedMeanwhile(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	content := []byte("mended")
	dgst := put(t, d, content)
	flip(t, root, dgst, 0)
	mended := false
	err := d.Verify(t.Context(), dgst, func(int) error {
		if mended {
			return nil
		}
		mended = true
		// Another check finds the damage, and a client sends the file again.
		if err := d.Verify(t.Context(), dgst, nil); !errors.Is(err, blob.ErrDamaged) {
			t.Errorf("the other check = %v, want ErrDamaged", err)
		}
		put(t, d, content)
		return nil
	})
	if !errors.Is(err, blob.ErrDamaged) {
		t.Errorf("Verify = %v, want ErrDamaged: it read the old file", err)
	}
	if got := read(t, d, dgst); !bytes.Equal(got, content) {
		t.Errorf("content after that = %q, want %q", got, content)
	}
}

func TestVerifyEnds(t *testing.T) {
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	dgst := put(t, d, []byte("x"))
	stop := errors.New("stop")
	if err := d.Verify(t.Context(), dgst, func(int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Verify = %v, want the error of pace", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Verify(ctx, dgst, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify with a context that has ended = %v, want that", err)
	}
	if _, err := d.Stat(t.Context(), dgst); err != nil {
		t.Errorf("Stat after checks that were broken off = %v, want the blob", err)
	}
}

func TestDeleteUnused(t *testing.T) {
	d := blobs(t, t.TempDir(), durabletest.NoSync())
	dgst := put(t, d, []byte("x"))
	if deleted, err := d.DeleteUnused(t.Context(), dgst, time.Now().Add(-time.Minute)); deleted || err != nil {
		t.Errorf("DeleteUnused of what was committed since = %t, %v, want false", deleted, err)
	}
	if deleted, err := d.DeleteUnused(t.Context(), dgst, time.Now().Add(time.Minute)); !deleted || err != nil {
		t.Errorf("DeleteUnused of what was committed before = %t, %v, want true", deleted, err)
	}
	if _, err := d.DeleteUnused(t.Context(), dgst, time.Now()); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("DeleteUnused of what is gone = %v, want ErrNotFound", err)
	}
}

// A power cut while a damaged blob is set aside leaves it where it was, or aside; never another content under its name.
func TestCrashWhileSettingAside(t *testing.T) {
	content := []byte("flipped")
	dgst := digest.FromBytes(content)
	durabletest.EachStep(t, func() durabletest.Case {
		return durabletest.Case{
			Prepare: func(dir string) error {
				d, err := blob.Open(blob.Config{Dir: filepath.Join(dir, "blobs"), FS: durabletest.NoSync()})
				if err != nil {
					return err
				}
				err = errors.Join(try(d, content), d.Close())
				flip(t, dir, dgst, 0)
				return err
			},
			Work: func(fsys durable.FS, dir string) {
				d, err := blob.Open(blob.Config{Dir: filepath.Join(dir, "blobs"), FS: fsys})
				if err != nil {
					return
				}
				_ = d.Verify(context.Background(), dgst, nil)
				_ = d.Close()
			},
			Check: func(t *testing.T, dir string) {
				d := open(t, filepath.Join(dir, "blobs"), durabletest.NoSync())
				_ = d.Verify(t.Context(), dgst, nil)
				if _, err := d.Stat(t.Context(), dgst); !errors.Is(err, blob.ErrNotFound) {
					t.Errorf("Stat of the damaged blob after another check = %v, want ErrNotFound", err)
				}
				put(t, d, content)
				if got := read(t, d, dgst); !bytes.Equal(got, content) {
					t.Errorf("content after it was sent again = %q, want %q", got, content)
				}
			},
		}
	})
}
