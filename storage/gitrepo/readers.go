package gitrepo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"

	"github.com/herdbook/herdbook/registry"
)

const (
	// maxInMemory is the largest object that go-git may hold in memory, in bytes. It unpacks a delta of a file
	// of 100 MB in 6 s and 290 MB of our memory; git needs 0.3 s and as much memory, which is not ours.
	maxInMemory = 1 << 20
	// maxMetadata is the largest commit, tree or tag that is read, in bytes.
	maxMetadata = 16 << 20
	// maxIdleReaders is the number of storages kept open; each holds the parsed indexes of its packs, about
	// 150 bytes an object.
	maxIdleReaders = 8
	// objectCacheBytes bounds the objects kept for all readers together.
	objectCacheBytes = 16 << 20
)

// readers keeps some go-git storages open, since to open one it parses every pack index. The zero value is
// ready.
type readers struct {
	mu      sync.Mutex
	idle    []*reader // the longest idle one first
	closed  bool
	objects cache.Object // by content, which is looked up only after it was found in the repository at hand
}

// reader is a go-git storage that sees packs which git adds or removes while it is open. It is not
// safe for concurrent use.
type reader struct {
	*filesystem.Storage
	path  string
	dir   fs.FileInfo // the repository: a new one may have got the name of a removed one
	packs packsState
}

var _ storer.EncodedObjectStorer = (*reader)(nil)

// packsState tells one state of a directory of packs from another.
type packsState struct {
	info   fs.FileInfo
	recent bool // another change might leave the same time
}

func statPacks(path string) (packsState, error) {
	info, err := os.Stat(filepath.Join(path, "objects", "pack"))
	if err != nil {
		return packsState{}, err
	}
	return packsState{info: info, recent: time.Since(info.ModTime()) < time.Second}, nil
}

func (s packsState) surely(t packsState) bool {
	return !s.recent && os.SameFile(s.info, t.info) && s.info.ModTime().Equal(t.info.ModTime())
}

// get returns a reader of the repository at path for one caller, who has to put it back.
func (rs *readers) get(path string) (*reader, error) {
	dir, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	rs.mu.Lock()
	for i := len(rs.idle) - 1; i >= 0; i-- {
		if r := rs.idle[i]; r.path == path && os.SameFile(r.dir, dir) {
			rs.idle = slices.Delete(rs.idle, i, i+1)
			rs.mu.Unlock()
			return r, nil
		}
	}
	if rs.objects == nil {
		rs.objects = cache.NewObjectLRU(objectCacheBytes)
	}
	objects := rs.objects
	rs.mu.Unlock()

	packs, err := statPacks(path)
	if err != nil {
		return nil, err
	}
	return &reader{
		Storage: filesystem.NewStorageWithOptions(osfs.New(path), objects, filesystem.Options{
			LargeObjectThreshold: maxInMemory,
			MaxOpenDescriptors:   4,
		}),
		path: path, dir: dir, packs: packs,
	}, nil
}

// put takes a reader back.
func (rs *readers) put(r *reader) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed {
		return r.Close()
	}
	rs.idle = append(rs.idle, r)
	if len(rs.idle) <= maxIdleReaders {
		return nil
	}
	oldest := rs.idle[0]
	rs.idle = slices.Delete(rs.idle, 0, 1)
	return oldest.Close()
}

// drop closes the idle readers of the repository at path. One that is in use is not used again once
// the repository is gone.
func (rs *readers) drop(path string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.idle = slices.DeleteFunc(rs.idle, func(r *reader) bool {
		if r.path == path {
			_ = r.Close() // it was only read from
		}
		return r.path == path
	})
}

func (rs *readers) close() error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var errs []error
	for _, r := range rs.idle {
		errs = append(errs, r.Close())
	}
	rs.idle, rs.closed = nil, true
	return errors.Join(errs...)
}

// refresh forgets the list of packs if it may have changed since it was made.
func (r *reader) refresh() bool {
	now, err := statPacks(r.path)
	if err != nil || r.packs.surely(now) {
		return false
	}
	_ = r.Close() // closes packs, and opens them again at the next use
	r.Reindex()
	r.packs = now
	return true
}

// stale reports whether err may come from a list of packs that is too old.
func stale(err error) bool {
	return errors.Is(err, plumbing.ErrObjectNotFound) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, dotgit.ErrPackfileNotFound)
}

// EncodedObject is that of go-git, and looks a second time when packs came or went.
func (r *reader) EncodedObject(kind plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error) {
	// Of any kind, because one of another kind is no reason to look again.
	o, err := r.Storage.EncodedObject(plumbing.AnyObject, id)
	if stale(err) && r.refresh() {
		o, err = r.Storage.EncodedObject(plumbing.AnyObject, id)
	}
	switch {
	case err != nil:
		return nil, err
	case kind != plumbing.AnyObject && kind != o.Type():
		return nil, plumbing.ErrObjectNotFound
	case o.Type() != plumbing.BlobObject && o.Size() > maxMetadata:
		return nil, fmt.Errorf("%s %s has %d bytes: %w", o.Type(), id, o.Size(), registry.ErrTooLarge)
	}
	return o, nil
}
