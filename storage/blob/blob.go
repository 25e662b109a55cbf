// Package blob keeps content under its SHA-256, each content once: Git LFS objects, OCI layers and
// configs, attachments of evaluations.
//
// What [Writer.Commit] acknowledged survives a killed process and a power cut, and what [Dir.Stat] or
// [Dir.Open] find is acknowledged. A blob never changes; its bytes were hashed while they were received
// and are not hashed again when they are read, but by [Dir.Verify]. The package knows nothing of models or rights: who may
// read a blob is decided before it is asked.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// The layout, below Config.Dir and Config.UploadsDir:
//
//	blobs/sha256/<first 2 hex digits>/<64 hex digits>   a blob, mode 0444
//	uploads/.herdbook-tmp-*                             of a Writer, removed by Open
//	uploads/<32 hex digits>/data, state                 of an Upload, see upload.go
const (
	algorithmDir = string(digest.SHA256)
	shardCount   = 256
)

// Errors that callers treat differently. A full disk is syscall.ENOSPC.
var (
	// ErrNotFound reports that there is no such blob or upload.
	ErrNotFound = errors.New("blob not found")
	// ErrDigestMismatch reports that the content does not hash to the digest that was announced.
	ErrDigestMismatch = errors.New("digest does not match the content")
	// ErrSizeMismatch reports that the content is not as long as was announced.
	ErrSizeMismatch = errors.New("size does not match the content")
)

// Descriptor names a blob.
type Descriptor struct {
	Digest digest.Digest
	Size   int64 // in bytes
}

// Config says where the blobs are.
type Config struct {
	// Dir is made if it is missing.
	Dir string
	// UploadsDir holds what is not finished and must be on the file system of Dir. By default it is
	// "uploads" beside Dir.
	UploadsDir string
	// Prepared makes Open make all directories of the store, so that no commit has to wait until one is made and
	// durable. It costs some milliseconds, once.
	Prepared bool
	// FS changes the disk; tests break it. The default works.
	FS durable.FS
}

// Dir is a directory of blobs. Its methods are safe for concurrent use. No two processes may have the
// same directory open.
type Dir struct {
	fs      durable.FS
	path    string   // of sha256, for changes
	root    *os.Root // the same, for reading
	uploads string
	shards  [shardCount]shard
	buffers sync.Pool     // of *[]byte, bufferBytes long
	large   chan struct{} // has an element for each upload with one of them

	shardsSync  durable.SyncGroup // of path
	uploadsSync durable.SyncGroup // of uploads
	openMu      sync.Mutex
	openUploads map[string]struct{} // by id

	stopCount  context.CancelFunc
	counted    chan struct{} // closed when the count is over
	countError error         // read after counted is closed
}

// Open opens the directory, and makes it when it is not there. It removes what writers had not
// committed when an earlier process died; unfinished uploads stay.
func Open(config Config) (*Dir, error) {
	d := &Dir{
		fs:          config.FS,
		path:        filepath.Join(config.Dir, algorithmDir),
		uploads:     config.UploadsDir,
		openUploads: map[string]struct{}{},
		counted:     make(chan struct{}),
	}
	if d.uploads == "" {
		d.uploads = filepath.Join(filepath.Dir(config.Dir), "uploads")
	}
	d.large = make(chan struct{}, largeBuffers)
	d.buffers.New = func() any { b := make([]byte, bufferBytes); return &b }
	if err := d.prepare(config.Prepared); err != nil {
		return nil, fmt.Errorf("open blobs in %s: %w", config.Dir, err)
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	d.root = root
	ctx, cancel := context.WithCancel(context.Background())
	d.stopCount = cancel
	go d.count(ctx)
	return d, nil
}

// prepare cleans up after a killed process. That one may have made a shard or renamed a blob into it,
// and died before the sync, so what is found is made durable before anybody can see it.
func (d *Dir) prepare(prepared bool) error {
	for _, path := range []string{d.path, d.uploads} {
		if err := d.fs.MkdirAll(path, 0o700); err != nil {
			return err
		}
	}
	if err := sameFileSystem(d.path, d.uploads); err != nil {
		return err
	}
	if err := d.removeTemps(); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, e := range entries {
		found[e.Name()] = true
	}
	for i := range d.shards {
		s := &d.shards[i]
		s.name = fmt.Sprintf("%02x", i)
		s.committing = map[digest.Digest]chan struct{}{}
		s.hidden = map[digest.Digest]struct{}{}
		s.made.Store(found[s.name])
		if prepared && !found[s.name] {
			if err := d.fs.Mkdir(filepath.Join(d.path, s.name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	switch {
	case len(found) > 0:
		err = d.fs.SyncTree(d.path)
	case prepared:
		err = d.fs.SyncDir(d.path)
	}
	for i := range d.shards {
		if prepared && err == nil {
			d.shards[i].made.Store(true)
		}
	}
	return err
}

// removeTemps removes what is unfinished beside the uploads and in each of them; the uploads themselves can be resumed.
func (d *Dir) removeTemps() error {
	if err := d.fs.RemoveTemps(d.uploads); err != nil {
		return err
	}
	uploads, err := os.ReadDir(d.uploads)
	if err != nil {
		return err
	}
	for _, u := range uploads {
		if !u.IsDir() {
			continue
		}
		if err := d.fs.RemoveTemps(filepath.Join(d.uploads, u.Name())); err != nil {
			return err
		}
	}
	return nil
}

func sameFileSystem(a, b string) error {
	var device [2]uint64
	for i, path := range []string{a, b} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			device[i] = uint64(stat.Dev)
		}
	}
	if device[0] != device[1] {
		return fmt.Errorf("%s and %s are on different file systems: blobs are renamed from one to the other", a, b)
	}
	return nil
}

// Close waits for what Dir does in the background. Nothing may be committed after it.
func (d *Dir) Close() error {
	d.stopCount()
	<-d.counted
	return d.root.Close()
}

// File is a blob open for reading. It is an [os.File], so that a copy to a network connection is a
// sendfile and a range is a seek.
type File struct {
	*os.File
	size int64
}

// Size returns the length of the blob in bytes.
func (f *File) Size() int64 { return f.size }

// Open opens a blob. When there is none the error is ErrNotFound.
func (d *Dir) Open(ctx context.Context, dgst digest.Digest) (*File, error) {
	s, name, err := d.find(ctx, dgst)
	if err != nil {
		return nil, err
	}
	f, err := d.root.Open(filepath.Join(s.name, name))
	if err != nil {
		return nil, blobError("open", dgst, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		return nil, errors.Join(blobError("open", dgst, err), f.Close())
	}
	return &File{f, info.Size()}, nil
}

// Stat returns the size of a blob in bytes. When there is none the error is ErrNotFound.
func (d *Dir) Stat(ctx context.Context, dgst digest.Digest) (size int64, err error) {
	s, name, err := d.find(ctx, dgst)
	if err != nil {
		return 0, err
	}
	info, err := d.root.Stat(filepath.Join(s.name, name))
	if err != nil {
		return 0, blobError("stat", dgst, err)
	}
	return info.Size(), nil
}

// Delete removes a blob durably; who has it open reads on. When there is none the error is ErrNotFound.
// Whether somebody has committed the same content again just before is the caller's concern; see
// [Dir.Walk].
func (d *Dir) Delete(ctx context.Context, dgst digest.Digest) error {
	s, name, err := d.find(ctx, dgst)
	if err != nil {
		return err
	}
	defer s.lock(dgst)()
	if err := d.remove(s, name); err != nil {
		return blobError("delete", dgst, err)
	}
	if err := d.syncShard(s); err != nil {
		return blobError("delete", dgst, err)
	}
	return nil
}

// Walk calls fn for every blob in the order of the digests, until fn returns an error. usedAt is when
// the content was last committed, also when it was there already: what was used lately may be about to
// be referenced, though nothing names it yet. Blobs that come or go meanwhile may be missed.
func (d *Dir) Walk(ctx context.Context, fn func(blob Descriptor, usedAt time.Time) error) error {
	for i := range d.shards {
		s := &d.shards[i]
		blobs, err := d.list(s)
		if err != nil {
			return fmt.Errorf("walk blobs: %w", err)
		}
		for _, b := range blobs {
			if err := ctx.Err(); err != nil {
				return err
			}
			if s.isHidden(b.Digest) {
				continue
			}
			if err := fn(b.Descriptor, b.usedAt); err != nil {
				return err
			}
		}
	}
	return nil
}

// find returns where a blob is if it is there. It does not look at the disk.
func (d *Dir) find(ctx context.Context, dgst digest.Digest) (s *shard, name string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	s, name, err = d.place(dgst)
	if err != nil {
		return nil, "", err
	}
	if s.isHidden(dgst) {
		return nil, "", fmt.Errorf("blob %s: %w", dgst, ErrNotFound)
	}
	return s, name, nil
}

// place returns the shard and the file name of a digest. It is the only way from a digest to a path, so
// a digest that is not one goes no further.
func (d *Dir) place(dgst digest.Digest) (s *shard, name string, err error) {
	algorithm, name, ok := strings.Cut(string(dgst), ":")
	if ok && algorithm != string(digest.SHA256) {
		return nil, "", fmt.Errorf("blob %q: %w", dgst, digest.ErrDigestUnsupported)
	}
	i, ok := shardOf(name)
	if !ok {
		return nil, "", fmt.Errorf("blob %q: %w", dgst, digest.ErrDigestInvalidFormat)
	}
	return &d.shards[i], name, nil
}

func blobError(verb string, dgst digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	return fmt.Errorf("%s blob %s: %w", verb, dgst, err)
}
