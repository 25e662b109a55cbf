package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// shard is one of the directories that the blobs are spread over.
type shard struct {
	name string            // two hex digits
	made atomic.Bool       // the directory is there and durable
	sync durable.SyncGroup // of the directory

	mu         sync.Mutex
	committing map[digest.Digest]chan struct{} // committed or deleted right now; closed at the end
	// hidden are blobs that have their name and are not yet durable under it. Nobody may see one: who
	// is told that a blob is there does not send it.
	hidden map[digest.Digest]struct{}

	// countMu is held while a name changes and while the names are counted, so that none is counted
	// twice or missed.
	countMu sync.Mutex
	usage   usage // true once the shard is counted
}

type usage struct{ count, bytes int64 }

// shardOf returns the number of the shard for a file name, and whether it is the name of a blob.
func shardOf(name string) (i int, ok bool) {
	if len(name) != hex.EncodedLen(sha256.Size) || !isHex(name) {
		return 0, false
	}
	n, err := strconv.ParseUint(name[:2], 16, 8)
	return int(n), err == nil
}

// isHex reports whether s consists of hex digits in lower case.
func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// lock makes the caller the only one to commit or delete the blob until it calls unlock.
func (s *shard) lock(dgst digest.Digest) (unlock func()) {
	for {
		s.mu.Lock()
		other, busy := s.committing[dgst]
		if !busy {
			break
		}
		s.mu.Unlock()
		<-other
	}
	mine := make(chan struct{})
	s.committing[dgst] = mine
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(s.committing, dgst)
		s.mu.Unlock()
		close(mine)
	}
}

func (s *shard) hide(dgst digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hidden[dgst] = struct{}{}
}

func (s *shard) show(dgst digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.hidden, dgst)
}

func (s *shard) isHidden(dgst digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, hidden := s.hidden[dgst]
	return hidden
}

// install gives a written file the name of its blob, durably, and reports whether it did; otherwise the
// file is still under its own name, for the caller to remove. The order of the steps and what a crash
// after each leaves:
//
//	sync file               an unfinished file, which the next Open removes
//	make shard, sync it     the same, and perhaps an empty directory
//	rename                  the blob, or still the unfinished file: a power cut may undo the name
//	sync shard              the blob
//
// The blob is hidden until the last step is done.
func (d *Dir) install(f *durable.File, blob Descriptor) (moved bool, err error) {
	s, name, err := d.place(blob.Digest)
	if err != nil {
		return false, err
	}
	defer s.lock(blob.Digest)()
	path := filepath.Join(s.name, name)
	var replaced usage
	old, err := d.root.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case old.Size() == blob.Size && !s.isHidden(blob.Digest):
		// The time tells that somebody counts on the blob again; see Walk.
		return false, d.root.Chtimes(path, time.Time{}, time.Now())
	default:
		// Either the file is damaged, since other content has another digest, or a commit left it that
		// could not be synced. Here is the content that belongs there.
		replaced = usage{1, old.Size()}
	}

	if err := f.Sync(); err != nil {
		return false, err
	}
	if err := d.makeShard(s); err != nil {
		return false, err
	}
	s.hide(blob.Digest)
	if err := d.rename(f.Name(), s, name, usage{1 - replaced.count, blob.Size - replaced.bytes}); err != nil {
		s.show(blob.Digest)
		return false, err
	}
	if err := d.syncShard(s); err != nil {
		// Nobody can tell whether the name will survive, and a later sync may claim success for it. So
		// the blob goes, and if even that fails it stays hidden until the next Open.
		if d.remove(s, name) == nil {
			s.show(blob.Digest)
		}
		return true, err
	}
	s.show(blob.Digest)
	return true, nil
}

// makeShard makes the directory of a shard durably, unless it is there. Where another commit made it
// and is not done with the sync, both sync.
func (d *Dir) makeShard(s *shard) error {
	if s.made.Load() {
		return nil
	}
	if err := d.fs.Mkdir(filepath.Join(d.path, s.name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.shardsSync.Do(func() error { return d.fs.SyncDir(d.path) }); err != nil {
		return err
	}
	s.made.Store(true)
	return nil
}

func (d *Dir) rename(from string, s *shard, name string, change usage) error {
	s.countMu.Lock()
	defer s.countMu.Unlock()
	if err := d.fs.RenameUnsynced(from, filepath.Join(d.path, s.name, name)); err != nil {
		return err
	}
	s.usage.count += change.count
	s.usage.bytes += change.bytes
	return nil
}

func (d *Dir) remove(s *shard, name string) error {
	s.countMu.Lock()
	defer s.countMu.Unlock()
	info, err := d.root.Stat(filepath.Join(s.name, name))
	if err != nil {
		return err
	}
	if err := d.fs.Remove(filepath.Join(d.path, s.name, name)); err != nil {
		return err
	}
	s.usage.count--
	s.usage.bytes -= info.Size()
	return nil
}

func (d *Dir) syncShard(s *shard) error {
	return s.sync.Do(func() error { return d.fs.SyncDir(filepath.Join(d.path, s.name)) })
}

type listed struct {
	Descriptor
	usedAt time.Time
}

// list returns the blobs of a shard in the order of their digests.
func (d *Dir) list(s *shard) ([]listed, error) {
	entries, err := fs.ReadDir(d.root.FS(), s.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // not made yet
	}
	if err != nil {
		return nil, err
	}
	blobs := make([]listed, 0, len(entries))
	for _, e := range entries {
		if _, ok := shardOf(e.Name()); !ok || e.Name()[:2] != s.name || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		dgst := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		blobs = append(blobs, listed{Descriptor{dgst, info.Size()}, info.ModTime()})
	}
	return blobs, nil
}

// count fills in the usage of every shard that Open found.
func (d *Dir) count(ctx context.Context) {
	defer close(d.counted)
	for i := range d.shards {
		err := ctx.Err()
		if err == nil {
			err = d.countShard(&d.shards[i])
		}
		if err != nil {
			d.countError = fmt.Errorf("count blobs: %w", err)
			return
		}
	}
}

func (d *Dir) countShard(s *shard) error {
	s.countMu.Lock()
	defer s.countMu.Unlock()
	blobs, err := d.list(s)
	if err != nil {
		return err
	}
	s.usage = usage{count: int64(len(blobs))}
	for _, b := range blobs {
		s.usage.bytes += b.Size
	}
	return nil
}

// Usage returns the number of blobs and the sum of their sizes. It is kept in memory; after Open it
// waits until the blobs are counted.
func (d *Dir) Usage(ctx context.Context) (count, bytes int64, err error) {
	select {
	case <-d.counted:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	if d.countError != nil {
		return 0, 0, d.countError
	}
	for i := range d.shards {
		s := &d.shards[i]
		s.countMu.Lock()
		count += s.usage.count
		bytes += s.usage.bytes
		s.countMu.Unlock()
	}
	return count, bytes, nil
}
