package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/blob"
)

// keep puts content into the store.
func keep(t *testing.T, d *storage.Data, text string) digest.Digest {
	t.Helper()
	w, err := d.Blobs.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	b, err := w.Commit("", -1)
	if err != nil {
		t.Fatal(err)
	}
	return b.Digest
}

// spoil changes the content of a blob on disk.
func spoil(t *testing.T, dir string, dgst digest.Digest) {
	t.Helper()
	path := filepath.Join(dir, "blobs", "sha256", dgst.Encoded()[:2], dgst.Encoded())
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, []byte("something else"))
}

// scrubFor runs the scrub until a condition holds.
func scrubFor(t *testing.T, d *storage.Data, period time.Duration, until func() bool) string {
	t.Helper()
	var log bytes.Buffer
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Scrub(ctx, period, slog.New(slog.NewJSONHandler(&log, nil)))
	}()
	for deadline := time.Now().Add(20 * time.Second); !until() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	<-ended
	if !until() {
		t.Errorf("the scrub did not come to its end within 20 s; it logged\n%s", &log)
	}
	return log.String()
}

func TestScrub(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	defer closeData(t, d)
	m := model(fraud, "acme/fraud", registry.Private)
	good, bad := keep(t, d, "good"), keep(t, d, "bad")
	commit := func(records ...registry.Record) {
		t.Helper()
		if err := d.Commit(t.Context(), registry.Group{At: begin, Actor: "ada", Records: records}); err != nil {
			t.Fatal(err)
		}
	}
	commit(registry.ModelCreated{Model: m}, registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{{Digest: good, SizeBytes: 4}, {Digest: bad, SizeBytes: 3}}})
	spoil(t, dir, bad)
	log := scrubFor(t, d, 50*time.Millisecond, func() bool { return d.Scrubbed.Rounds.Load() >= 2 })
	if got := d.Scrubbed.Damaged.Load(); got != 1 {
		t.Errorf("damaged files found in two rounds = %d, want 1", got)
	}
	if strings.Count(log, bad.String()) == 0 || !strings.Contains(log, `"models":["acme/fraud"]`) || strings.Contains(log, good.String()) {
		t.Errorf("log = %s, want a line that names the damaged file and the model that owns it", log)
	}
	if _, err := d.Blobs.Stat(t.Context(), bad); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Stat of the damaged file = %v, want ErrNotFound", err)
	}
	if _, err := d.Blobs.Stat(t.Context(), good); err != nil {
		t.Errorf("Stat of the other file = %v, want it", err)
	}
}

// What was read before a restart is not read again in the same round.
func TestScrubGoesOn(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	for i := range 40 {
		keep(t, d, strings.Repeat("x", i+1))
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		for d.Scrubbed.Bytes.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		stop()
	}()
	d.Scrub(ctx, time.Second, slog.New(slog.DiscardHandler))
	text := string(readFile(t, filepath.Join(dir, "scrub.json")))
	closeData(t, d)
	if !strings.Contains(text, `"after":"sha256:`) {
		t.Fatalf("scrub.json = %s, want it to name the last file", text)
	}
	d = openDir(t, dir)
	defer closeData(t, d)
	before := d.Scrubbed.Bytes.Load()
	scrubFor(t, d, time.Second, func() bool { return d.Scrubbed.Rounds.Load() == 1 })
	if read := d.Scrubbed.Bytes.Load() - before; read == 0 {
		t.Errorf("the rest of the round read %d bytes, want some", read)
	}
	// A file that makes no sense begins a new round.
	writeFile(t, filepath.Join(dir, "scrub.json"), []byte(`{"after":"../../etc"}`))
	scrubFor(t, d, 20*time.Millisecond, func() bool { return d.Scrubbed.Rounds.Load() >= 2 })
}
