package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herdbook/herdbook/storage/blob"
)

// An upload for which nothing came in a day is removed within the hour, and no other is.
func TestExpireUploads(t *testing.T) {
	root := t.TempDir()
	store, err := blob.Open(blob.Config{Dir: filepath.Join(root, "blobs")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	begin := func(name string, at time.Time) {
		t.Helper()
		u, err := store.ResumeUpload(t.Context(), strings.Repeat(name, 32))
		if err != nil {
			t.Fatal(err)
		}
		_, err = u.Append(t.Context(), 0, strings.NewReader("part"))
		if err := errors.Join(err, u.Close(), os.Chtimes(filepath.Join(root, "uploads", u.ID()), at, at)); err != nil {
			t.Fatal(err)
		}
	}
	left := func() string {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(root, "uploads"))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name()[:1])
		}
		slices.Sort(names)
		return strings.Join(names, "")
	}
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		begin("a", now.Add(-25*time.Hour)) // is over when the server starts
		begin("b", now.Add(-23*time.Hour))
		begin("c", now)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			expireUploads(ctx, store, slog.New(slog.NewTextHandler(&log, nil)))
			close(done)
		}()
		for _, step := range []struct {
			after time.Duration
			want  string
		}{{time.Minute, "bc"}, {59 * time.Minute, "bc"}, {time.Hour + time.Minute, "c"}, {22*time.Hour - 2*time.Minute, "c"}, {2 * time.Hour, ""}} {
			time.Sleep(step.after)
			synctest.Wait()
			if got := left(); got != step.want {
				t.Errorf("uploads after %v = %q, want %q", time.Since(now), got, step.want)
			}
		}
		cancel()
		<-done
	})
	if got := strings.Count(log.String(), "unfinished uploads were removed"); got != 3 {
		t.Errorf("the log says %d times that uploads were removed, want 3:\n%s", got, log.String())
	}
}
