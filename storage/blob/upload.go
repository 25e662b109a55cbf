package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
)

// The files of an upload, in a directory named by its id.
//
// state is one line of text, replaced as a whole each time after data was synced. Without it the upload
// is at byte 0; bytes of data beyond the offset do not count.
//
//	<crc32c, 8 hex digits> herdbook-upload 1 <offset, decimal> <state of SHA-256, hex>\n
//
// The checksum is of what follows it and one space, without the newline. The hash state is that of Go's
// crypto/sha256 after the first offset bytes of data.
const (
	uploadData   = "data"
	uploadState  = "state"
	stateVersion = "herdbook-upload 1"

	// What one Append loses when the server dies in the middle of it is at most checkpointBytes or what
	// came in checkpointEvery, whichever is more: what comes fast is sent again as fast, and a checkpoint
	// of each 64 MiB costs a tenth of the CPU of a fast push.
	checkpointBytes = 64 << 20
	checkpointEvery = 2 * time.Second
)

// Errors of uploads that callers treat differently.
var (
	// ErrOffset reports that bytes were sent for another offset than the one the upload is at.
	ErrOffset = errors.New("upload is at another offset")
	// ErrInUse reports that another request has the upload open.
	ErrInUse = errors.New("upload is in use")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Upload receives the content of one blob in pieces, over several requests and restarts of the server.
// It is not safe for concurrent use; only one caller can have an upload open.
type Upload struct {
	id     string
	path   string // of its directory
	dir    *Dir
	writer *Writer
	saved  int64 // the offset in the state file
	unsure bool  // a save failed: the state file may be at another offset than saved
	ended  bool
}

// NewUpload begins an upload. It is there after a crash, until it is committed, cancelled or expired.
func (d *Dir) NewUpload(ctx context.Context) (*Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	d.claim(id)
	err := d.fs.Mkdir(filepath.Join(d.uploads, id), 0o700)
	if err == nil {
		err = d.uploadsSync.Do(func() error { return d.fs.SyncDir(d.uploads) })
	}
	if err != nil {
		d.release(id)
		return nil, fmt.Errorf("new upload: %w", err)
	}
	return d.openClaimed(id)
}

// ResumeUpload continues the upload with an id of the caller's choice, 32 hex digits, or begins it. What
// cannot be continued begins anew. The error is ErrInUse while somebody else has it open. The caller
// ends with Close, Commit or Cancel.
func (d *Dir) ResumeUpload(ctx context.Context, id string) (*Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !validUploadID(id) {
		return nil, fmt.Errorf("upload %q is not named by 32 hex digits", id)
	}
	for first := true; ; first = false {
		if !d.claim(id) {
			return nil, fmt.Errorf("upload %s: %w", id, ErrInUse)
		}
		err := d.fs.Mkdir(filepath.Join(d.uploads, id), 0o700)
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		if err == nil {
			// Also when it was there: whoever made it may have died before the sync.
			err = d.uploadsSync.Do(func() error { return d.fs.SyncDir(d.uploads) })
		}
		if err != nil {
			d.release(id)
			return nil, fmt.Errorf("upload %s: %w", id, err)
		}
		u, err := d.openClaimed(id)
		if first && errors.Is(err, ErrNotFound) {
			continue // it was damaged, and is removed now
		}
		return u, err
	}
}

// OpenUpload continues an upload at its offset. The error is ErrNotFound when there is none, or none
// that can be continued, and ErrInUse while somebody else has it open. The caller ends with Close,
// Commit or Cancel.
func (d *Dir) OpenUpload(ctx context.Context, id string) (*Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !validUploadID(id) {
		return nil, fmt.Errorf("upload %q: %w", id, ErrNotFound)
	}
	if !d.claim(id) {
		return nil, fmt.Errorf("upload %s: %w", id, ErrInUse)
	}
	return d.openClaimed(id)
}

func (d *Dir) openClaimed(id string) (*Upload, error) {
	u := &Upload{id: id, path: filepath.Join(d.uploads, id), dir: d}
	err := u.load()
	if err == nil {
		return u, nil
	}
	defer d.release(id)
	if errors.Is(err, errUnusable) {
		// Parts that do not fit together can only grow into a blob under a wrong digest.
		err = errors.Join(err, d.fs.RemoveAll(u.path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	return nil, fmt.Errorf("upload %s: %w", id, err)
}

// errUnusable reports that what is stored of an upload does not fit together: it was damaged, another
// version wrote it, or the server died between committing it and removing it.
var errUnusable = fmt.Errorf("parts do not fit together: %w", ErrNotFound)

func (u *Upload) load() error {
	var offset int64
	h := sha256.New()
	line, err := os.ReadFile(filepath.Join(u.path, uploadState))
	switch {
	case err == nil:
		var state []byte
		if offset, state, err = parseState(line); err != nil {
			return errors.Join(errUnusable, err)
		}
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
			return errors.Join(errUnusable, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}

	f, err := u.dir.fs.OpenFile(filepath.Join(u.path, uploadData), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	end, err := f.OS().Seek(0, io.SeekEnd)
	switch {
	case err != nil:
	case end < offset:
		err = errUnusable
	case end > offset:
		if err = f.Truncate(offset); err == nil {
			_, err = f.OS().Seek(offset, io.SeekStart)
		}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	u.writer = &Writer{dir: u.dir, file: f, hash: h, size: offset, flushed: offset}
	u.saved = offset
	return nil
}

// ID returns the name under which the upload can be opened again.
func (u *Upload) ID() string { return u.id }

// Offset returns the number of bytes received.
func (u *Upload) Offset() int64 { return u.writer.size }

// Append adds what r yields until EOF, and returns how much that was. offset must be Offset(), or the
// error is ErrOffset. What it returns as added is durable. An error of r is returned as it is, and what
// came before it is kept; after any other error the upload must be opened again, and may be at an
// earlier offset than before.
func (u *Upload) Append(ctx context.Context, offset int64, r io.Reader) (n int64, err error) {
	if offset != u.Offset() {
		return 0, fmt.Errorf("upload %s is at byte %d, not %d: %w", u.id, u.Offset(), offset, ErrOffset)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	before, saved := u.saved, time.Now()
	for {
		part, readErr := u.writer.ReadFrom(io.LimitReader(r, checkpointBytes))
		ended := readErr != nil || part < checkpointBytes
		if !ended {
			readErr = ctx.Err()
			ended = readErr != nil
		}
		if ended || time.Since(saved) >= checkpointEvery {
			if err := u.save(); err != nil {
				return u.saved - before, err
			}
			saved = time.Now()
		}
		if ended {
			return u.saved - before, readErr
		}
	}
}

// save makes what was received durable. A crash before its last step leaves the state of the last save.
func (u *Upload) save() error {
	w := u.writer
	if w.err != nil || w.size == u.saved {
		return w.err
	}
	state, err := w.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err == nil {
		err = w.file.Sync()
	}
	if err == nil {
		err = u.dir.fs.WriteFile(filepath.Join(u.path, uploadState), appendState(nil, w.size, state), 0o600)
		u.unsure = err != nil
	}
	if err != nil {
		w.err = fmt.Errorf("save upload %s: %w", u.id, err)
		return w.err
	}
	u.saved = w.size
	return nil
}

// Commit makes the content a blob as [Writer.Commit] does. Whatever happens the upload is over and
// gone.
func (u *Upload) Commit(want digest.Digest, wantSize int64) (Descriptor, error) {
	w := u.writer
	if w.file != nil && w.err == nil {
		w.err = w.file.Chmod(0o444)
	}
	blob, err := w.Commit(want, wantSize)
	_ = u.Cancel() // what is left of it expires
	return blob, err
}

// Cancel drops the upload and what it has received.
func (u *Upload) Cancel() error {
	u.writer.Abort()
	return u.end(func() error { return u.dir.fs.RemoveAll(u.path) })
}

// Close lets go of the upload, so that it can be opened again. It does nothing after Commit or Cancel.
// What a failed Append could not keep gives its space back.
func (u *Upload) Close() error {
	return u.end(func() error {
		if u.writer.err != nil && !u.unsure {
			_ = u.writer.file.Truncate(u.saved) // or the next one who opens it does so
		}
		u.writer.close()
		return nil
	})
}

func (u *Upload) end(last func() error) error {
	if u.ended {
		return nil
	}
	u.ended = true
	defer u.dir.release(u.id)
	return last()
}

// ExpireUploads removes the uploads that nobody has open and that got nothing since before, and returns
// their number.
func (d *Dir) ExpireUploads(ctx context.Context, before time.Time) (expired int, err error) {
	entries, err := os.ReadDir(d.uploads)
	if err != nil {
		return 0, fmt.Errorf("expire uploads: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return expired, err
		}
		removed, err := d.expireUpload(e.Name(), before)
		if err != nil {
			return expired, fmt.Errorf("expire upload %s: %w", e.Name(), err)
		}
		if removed {
			expired++
		}
	}
	return expired, nil
}

func (d *Dir) expireUpload(id string, before time.Time) (removed bool, err error) {
	if !validUploadID(id) || !d.claim(id) {
		return false, nil
	}
	defer d.release(id)
	path := filepath.Join(d.uploads, id)
	info, err := os.Stat(path) // each save changes the time of the directory
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.ModTime().Before(before) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, d.fs.RemoveAll(path)
}

func (d *Dir) claim(id string) bool {
	d.openMu.Lock()
	defer d.openMu.Unlock()
	if _, taken := d.openUploads[id]; taken {
		return false
	}
	d.openUploads[id] = struct{}{}
	return true
}

func (d *Dir) release(id string) {
	d.openMu.Lock()
	defer d.openMu.Unlock()
	delete(d.openUploads, id)
}

func validUploadID(id string) bool {
	return len(id) == 32 && isHex(id)
}

func appendState(dst []byte, offset int64, state []byte) []byte {
	body := fmt.Appendf(nil, "%s %d %x", stateVersion, offset, state)
	return fmt.Appendf(dst, "%08x %s\n", crc32.Checksum(body, castagnoli), body)
}

// parseState reads what appendState wrote. It accepts nothing else, so a line that it accepts is the
// one it would write.
func parseState(line []byte) (offset int64, state []byte, err error) {
	fields := bytes.Fields(line)
	if len(fields) != 5 {
		return 0, nil, errors.New("upload state: not a line of five fields")
	}
	offset, err = strconv.ParseInt(string(fields[3]), 10, 64)
	if err != nil || offset < 0 {
		return 0, nil, fmt.Errorf("upload state: offset %q", fields[3])
	}
	state, err = hex.DecodeString(string(fields[4]))
	if err != nil {
		return 0, nil, fmt.Errorf("upload state: %w", err)
	}
	if !bytes.Equal(line, appendState(nil, offset, state)) {
		return 0, nil, errors.New("upload state: damaged or of another version")
	}
	return offset, state, nil
}
