package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// ErrDamaged reports that the content of a blob is not what its digest says. The blob is set aside: it is not found
// any more, and whoever has the content can put it back by committing it again.
var ErrDamaged = errors.New("blob is damaged")

// damagedSuffix is added to the name of a blob that is set aside. It is kept for whoever wants to know what happened.
const damagedSuffix = ".damaged"

// Verify reads a blob and compares it with its digest. Before each piece is read it calls pace, if that is not nil, with the
// number of bytes. A blob that differs is set aside durably; the error is then ErrDamaged. Without
// such a blob it is ErrNotFound.
func (d *Dir) Verify(ctx context.Context, dgst digest.Digest, pace func(bytes int) error) error {
	f, err := d.Open(ctx, dgst)
	if err != nil {
		return err
	}
	defer f.Close()
	err = d.compare(ctx, f, dgst, pace)
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	if aside := d.setAside(dgst, f); aside != nil {
		return errors.Join(err, aside)
	}
	return err
}

func (d *Dir) compare(ctx context.Context, f *File, dgst digest.Digest, pace func(bytes int) error) error {
	buf := d.buffers.Get().(*[]byte)
	defer d.buffers.Put(buf)
	hash := sha256.New()
	for left := f.Size(); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if pace != nil {
			part := min(int64(len(*buf)), left)
			left -= part
			if err := pace(int(part)); err != nil {
				return err
			}
		}
		n, err := io.ReadFull(f, *buf)
		hash.Write((*buf)[:n])
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			if found := hex.EncodeToString(hash.Sum(nil)); found != dgst.Encoded() {
				return fmt.Errorf("blob %s holds content of sha256:%s: %w", dgst, found, ErrDamaged)
			}
			return nil
		case err != nil:
			return fmt.Errorf("read blob %s: %w", dgst, err) // which may pass
		}
	}
}

// setAside takes the file that f is open on out of the place of a blob, unless another has come there.
func (d *Dir) setAside(dgst digest.Digest, f *File) error {
	s, name, err := d.find(context.Background(), dgst)
	if err != nil {
		return err
	}
	defer s.lock(dgst)()
	read, err := f.Stat()
	if err != nil {
		return blobError("set aside", dgst, err)
	}
	there, err := d.root.Stat(filepath.Join(s.name, name))
	if err != nil || !os.SameFile(read, there) {
		return nil // somebody mended or deleted it
	}
	s.countMu.Lock()
	err = d.fs.RenameUnsynced(filepath.Join(d.path, s.name, name), filepath.Join(d.path, s.name, name+damagedSuffix))
	if err == nil {
		s.usage.count--
		s.usage.bytes -= there.Size()
	}
	s.countMu.Unlock()
	if err == nil {
		err = d.syncShard(s)
	}
	if err != nil {
		return blobError("set aside", dgst, err)
	}
	return nil
}

// UsedAt returns when the content of a blob was last committed, also when it was there already. When there is none the
// error is ErrNotFound.
func (d *Dir) UsedAt(ctx context.Context, dgst digest.Digest) (time.Time, error) {
	s, name, err := d.find(ctx, dgst)
	if err != nil {
		return time.Time{}, err
	}
	info, err := d.root.Stat(filepath.Join(s.name, name))
	if err != nil {
		return time.Time{}, blobError("stat", dgst, err)
	}
	return info.ModTime(), nil
}

// Touch makes a blob count as committed now, because somebody is about to name it. When there is none the error is ErrNotFound.
func (d *Dir) Touch(ctx context.Context, dgst digest.Digest) error {
	s, name, err := d.find(ctx, dgst)
	if err != nil {
		return err
	}
	// See DeleteUnused.
	defer s.lock(dgst)()
	if err := d.root.Chtimes(filepath.Join(s.name, name), time.Time{}, time.Now()); err != nil {
		return blobError("touch", dgst, err)
	}
	return nil
}

// DeleteUnused removes a blob durably if nobody has committed its content since a time, and reports whether it did. That
// nothing names the blob is the caller's to know.
func (d *Dir) DeleteUnused(ctx context.Context, dgst digest.Digest, since time.Time) (deleted bool, err error) {
	s, name, err := d.find(ctx, dgst)
	if err != nil {
		return false, err
	}
	// Who commits the same content holds the lock while it sets the time.
	defer s.lock(dgst)()
	info, err := d.root.Stat(filepath.Join(s.name, name))
	if err != nil {
		return false, blobError("delete", dgst, err)
	}
	if !info.ModTime().Before(since) {
		return false, nil
	}
	if err := d.remove(s, name); err != nil {
		return false, blobError("delete", dgst, err)
	}
	if err := d.syncShard(s); err != nil {
		return false, blobError("delete", dgst, err)
	}
	return true, nil
}

// Damaged returns the digests of the blobs that were set aside, in order.
func (d *Dir) Damaged(ctx context.Context) ([]digest.Digest, error) {
	var found []digest.Digest
	for i := range d.shards {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		entries, err := fs.ReadDir(d.root.FS(), d.shards[i].name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list damaged blobs: %w", err)
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), damagedSuffix)
			if _, isBlob := shardOf(name); ok && isBlob {
				found = append(found, digest.NewDigestFromEncoded(digest.SHA256, name))
			}
		}
	}
	return found, nil
}

// RemoveDamaged removes what was set aside of a blob.
func (d *Dir) RemoveDamaged(dgst digest.Digest) error {
	s, name, err := d.place(dgst)
	if err != nil {
		return err
	}
	if err := d.fs.Remove(filepath.Join(d.path, s.name, name+damagedSuffix)); err != nil {
		return blobError("remove what was set aside of", dgst, err)
	}
	return d.syncShard(s)
}
