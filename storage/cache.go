package storage

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// What the cache holds was computed from blobs and can be computed again. Each file is complete when it has its name; it is not synced, so
// that after a power cut it may hold anything: whoever reads it checks it.
const (
	cacheDir   = "cache"
	tensorsDir = "tensors" // <64 hex>.jsonl: the tensors of the weight file with that SHA-256; see registry/inspect
	tensorsExt = ".jsonl"

	maxTensorLists      = 2000
	maxTensorListsBytes = 2 << 30
	usedAtPrecision     = time.Hour // of the time at which a list was read last
)

// TensorLists keeps lists of tensors by the digest of their weight file. Those that were not used for the longest time make room for
// others. It is safe for use by many goroutines.
type TensorLists struct {
	dir string

	maxFiles int
	maxBytes int64
	mu       sync.Mutex // held while files are counted and removed
}

// TensorLists is the cache of lists of tensors.
func (d *Data) TensorLists() *TensorLists { return d.tensorLists }

func newTensorLists(dir string) *TensorLists {
	return &TensorLists{dir: filepath.Join(dir, cacheDir, tensorsDir), maxFiles: maxTensorLists, maxBytes: maxTensorListsBytes}
}

func (l *TensorLists) path(dgst digest.Digest) string {
	return filepath.Join(l.dir, dgst.Encoded()+tensorsExt)
}

// Open opens what is kept for a weight file; without any it is [registry.ErrNotFound].
func (l *TensorLists) Open(dgst digest.Digest) (io.ReadCloser, error) {
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("tensors of %q: %w", dgst, err)
	}
	f, err := os.Open(l.path(dgst))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tensors of %s: %w", dgst, registry.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && time.Since(info.ModTime()) > usedAtPrecision {
		// What is lost by a failure is only that it was used now.
		_ = os.Chtimes(f.Name(), time.Time{}, time.Now())
	}
	return f, nil
}

// Keep keeps what write writes for a weight file, in place of what there was. A failure keeps that.
func (l *TensorLists) Keep(dgst digest.Digest, write func(io.Writer) error) error {
	if err := dgst.Validate(); err != nil {
		return fmt.Errorf("tensors of %q: %w", dgst, err)
	}
	if err := os.MkdirAll(l.dir, dirPerm); err != nil {
		return err
	}
	part := filepath.Join(l.dir, durable.TempName())
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, secretPerm)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 64<<10)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(part, l.path(dgst))
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return l.prune(time.Now().Add(-usedAtPrecision))
}

// Remove removes what is kept for a weight file, if there is anything.
func (l *TensorLists) Remove(dgst digest.Digest) error {
	if err := os.Remove(l.path(dgst)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// prune removes what is too much, and what was begun before a time and never ended.
func (l *TensorLists) prune(before time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	var kept []fs.FileInfo
	total := int64(0)
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case strings.HasSuffix(e.Name(), tensorsExt):
			kept = append(kept, info)
			total += info.Size()
		case durable.IsTemp(e.Name()) && info.ModTime().Before(before):
			if err := os.Remove(filepath.Join(l.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	slices.SortFunc(kept, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), strings.Compare(a.Name(), b.Name()))
	})
	// The newest stays, however large it is: somebody waits for it.
	for i := 0; i < len(kept)-1 && (len(kept)-i > l.maxFiles || total > l.maxBytes); i++ {
		if err := os.Remove(filepath.Join(l.dir, kept[i].Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		total -= kept[i].Size()
	}
	return nil
}
