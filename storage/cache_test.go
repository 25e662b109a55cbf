package storage_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// keepList keeps a text for the file whose content is of.
func keepList(t *testing.T, l *storage.TensorLists, of, text string) {
	t.Helper()
	if err := l.Keep(digest.FromString(of), func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}); err != nil {
		t.Fatalf("Keep of %s: %v", of, err)
	}
}

// readList is what is kept for the file whose content is of, or the error.
func readList(l *storage.TensorLists, of string) (string, error) {
	r, err := l.Open(digest.FromString(of))
	if err != nil {
		return "", err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	return string(text), err
}

// names are the files in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestTensorListsAreKept(t *testing.T) {
	dir := t.TempDir()
	l := storage.NewTensorLists(dir, 10, 1000)
	if text, err := readList(l, "a"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Open before Keep = %q, %v, want ErrNotFound", text, err)
	}
	keepList(t, l, "a", "first")
	keepList(t, l, "a", "second")
	keepList(t, storage.NewTensorLists(dir, 10, 1000), "b", "other")
	for of, want := range map[string]string{"a": "second", "b": "other"} {
		if text, err := readList(l, of); text != want || err != nil {
			t.Errorf("Open of %s = %q, %v, want %q", of, text, err, want)
		}
	}
	if err := l.Remove(digest.FromString("a")); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if text, err := readList(l, "a"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Open after Remove = %q, %v, want ErrNotFound", text, err)
	}
	if err := l.Remove(digest.FromString("a")); err != nil {
		t.Errorf("Remove of what is not there: %v", err)
	}
	for _, bad := range []digest.Digest{"", "sha256:..", "sha256:../../../../etc/passwd"} {
		if r, err := l.Open(bad); err == nil {
			t.Errorf("Open(%q) = %v, want an error", bad, r)
		}
		if err := l.Keep(bad, func(io.Writer) error { return nil }); err == nil {
			t.Errorf("Keep(%q): no error", bad)
		}
	}
}

// A list that cannot be written to its end leaves what there was, and nothing else.
func TestTensorListIsWrittenWholeOrNot(t *testing.T) {
	dir := t.TempDir()
	l := storage.NewTensorLists(dir, 10, 1000)
	keepList(t, l, "a", "whole")
	broken := errors.New("broken")
	err := l.Keep(digest.FromString("a"), func(w io.Writer) error {
		_, _ = io.WriteString(w, strings.Repeat("part", 100_000))
		if text, err := readList(l, "a"); text != "whole" {
			t.Errorf("Open while another list is written = %.20q, %v, want the old one", text, err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("Keep of a list that breaks: %v, want its error", err)
	}
	if text, err := readList(l, "a"); text != "whole" || err != nil {
		t.Errorf("Open after a list that broke = %.20q, %v, want the old one", text, err)
	}
	if left := names(t, filepath.Join(dir, "cache", "tensors")); len(left) != 1 {
		t.Errorf("a list that broke leaves %v, want only the old one", left)
	}
}

// Those that were used last stay; what a crash left goes.
func TestTensorListsAreBounded(t *testing.T) {
	tests := []struct {
		name     string
		maxFiles int
		maxBytes int64
		last     string
		want     []string
	}{
		{"by number", 3, 1000, "d", []string{"b", "c", "d"}},
		{"by size", 10, 25, "0123456789", []string{"b", "d"}},
		{"one that is too large stays", 10, 5, "0123456789", []string{"d"}},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		l := storage.NewTensorLists(dir, 10, 1000)
		old := time.Now().Add(-48 * time.Hour)
		for i, of := range []string{"b", "a", "c"} { // the oldest first
			keepList(t, l, of, "0123456789")
			at := old.Add(time.Duration(i) * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "cache", "tensors", digest.FromString(of).Encoded()+".jsonl"), at, at); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := readList(l, "b"); err != nil { // and so it is not the oldest any more
			t.Fatal(err)
		}
		crashed := filepath.Join(dir, "cache", "tensors", durable.TempName())
		writing := filepath.Join(dir, "cache", "tensors", durable.TempName())
		writeFile(t, crashed, []byte("part"))
		writeFile(t, writing, []byte("part"))
		if err := os.Chtimes(crashed, old, old); err != nil {
			t.Fatal(err)
		}
		keepList(t, storage.NewTensorLists(dir, tt.maxFiles, tt.maxBytes), "d", tt.last)
		var got []string
		for _, of := range []string{"a", "b", "c", "d"} {
			if _, err := readList(l, of); err == nil {
				got = append(got, of)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("bounded %s (-want +got):\n%s", tt.name, diff)
		}
		if exists(crashed) || !exists(writing) {
			t.Errorf("bounded %s: what a crash left is there: %t, what somebody writes: %t; want only the latter", tt.name, exists(crashed), exists(writing))
		}
	}
}

// Garbage collection removes what was kept of a file with the file, and nothing else; fsck and a rebuild do not care for any of it.
func TestTensorListsGoWithTheirFile(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	defer closeData(t, d)
	const unnamed = "weights that nobody names"
	putBlob(t, d, unnamed)
	l := d.TensorLists()
	keepList(t, l, unnamed, "list")
	keepList(t, l, "a file of Git only", "list")
	if r, err := d.Fsck(t.Context(), storage.FsckOptions{}, storage.Report{}); err != nil || r.Damages > 0 {
		t.Errorf("Fsck with lists of tensors = %+v, %v, want no damage", r, err)
	}
	collect := func(dryRun bool) {
		t.Helper()
		c, err := d.Collect(t.Context(), time.Now().Add(time.Hour), dryRun, storage.Report{}, func(digest.Digest, int64) {})
		if err != nil || c.Blobs != 1 {
			t.Fatalf("Collect = %+v, %v, want one blob", c, err)
		}
	}
	collect(true)
	if _, err := readList(l, unnamed); err != nil {
		t.Errorf("Open after a dry run: %v", err)
	}
	collect(false)
	if _, err := readList(l, unnamed); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Open after the file was removed: %v, want ErrNotFound", err)
	}
	if _, err := readList(l, "a file of Git only"); err != nil {
		t.Errorf("Open of another list after Collect: %v", err)
	}
}
