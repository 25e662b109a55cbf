package journal

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// CopyTo makes dir hold a journal of the groups that are durable when it begins, durably, and returns the last of them.
// Each group is checked on the way. An earlier copy of the same journal may be there. Bytes is called with what was
// written.
func (j *Journal) CopyTo(ctx context.Context, fsys durable.FS, dir string, bytes func(n int)) (Head, error) {
	next, segments := j.durable()
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return Head{}, err
	}
	if err := fsys.RemoveTemps(dir); err != nil {
		return Head{}, err
	}
	var head Head
	for i, first := range segments {
		end := next
		sealed := i+1 < len(segments)
		if sealed {
			end = segments[i+1]
		}
		at, err := j.copySegment(ctx, fsys, dir, part{first: first, end: end, sealed: sealed}, bytes)
		if err != nil {
			return head, err
		}
		head = Head{at.seq, at.chain}
	}
	// Of a longer journal that this one has parted from.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return head, err
	}
	for _, e := range entries {
		if first, ok := parseSegmentName(e.Name()); ok && !slices.Contains(segments, first) {
			if err := fsys.Remove(filepath.Join(dir, e.Name())); err != nil {
				return head, err
			}
		}
	}
	return head, fsys.SyncDir(dir)
}

// copySegment copies one segment up to a group.
//
//	write, sync     a crash leaves a temporary file
//	rename          the copy
func (j *Journal) copySegment(ctx context.Context, fsys durable.FS, dir string, p part, bytes func(n int)) (at position, err error) {
	s, err := openSegment(j.dir, p.first)
	if err != nil {
		return at, err
	}
	defer s.close()
	out, err := fsys.CreateTemp(dir, 0o600)
	if err != nil {
		return at, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close(), fsys.Remove(out.Name()))
		}
	}()
	lines := bufio.NewWriterSize(out, scanBufferBytes)
	put := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		bytes(len(s.line))
		_, err := lines.Write(s.line)
		return err
	}
	if err := put(); err != nil { // the header
		return at, err
	}
	for s.at.seq+1 < p.end {
		if _, err := s.next(); err != nil {
			return at, s.ended(err, p.end)
		}
		if err := put(); err != nil {
			return at, err
		}
	}
	if err := lines.Flush(); err != nil {
		return at, err
	}
	if err := out.Sync(); err != nil {
		return at, err
	}
	if err := out.Close(); err != nil {
		return at, err
	}
	return s.at, fsys.RenameUnsynced(out.Name(), filepath.Join(dir, segmentName(p.first)))
}
