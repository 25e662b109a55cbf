package blob_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

// What a killed process was writing is gone after Open, also in an upload, which goes on from where its state says.
func TestOpenRemovesLeftovers(t *testing.T) {
	root := t.TempDir()
	d := blobs(t, root, durabletest.NoSync())
	u, err := d.NewUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, bytes.NewReader([]byte("half"))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	left := []string{
		filepath.Join(root, "uploads", durable.TempName()),
		filepath.Join(root, "uploads", u.ID(), durable.TempName()),
	}
	for _, path := range left {
		if err := os.WriteFile(path, []byte("unfinished"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = blobs(t, root, durabletest.NoSync())
	for _, path := range left {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after Open: %v, want it removed", path, err)
		}
	}
	if u, err = d.OpenUpload(t.Context(), u.ID()); err != nil || u.Offset() != 4 {
		t.Fatalf("OpenUpload = %v, want the upload at byte 4", err)
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
}
