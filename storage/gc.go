package storage

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/index"
)

// Collected is what garbage collection removed, or would remove.
type Collected struct {
	Blobs   int64 `json:"blobs"`
	Bytes   int64 `json:"bytes"`
	Kept    int64 `json:"kept_blobs"`
	Recent  int64 `json:"recent_blobs"` // that nothing names and that came too lately
	Damaged int64 `json:"damaged"`      // that were set aside and have been sent again
}

// Collect removes the blobs that nothing names and that nobody has sent since before. In a dry run nothing is removed. Each
// is given to removed.
//
// A blob comes before what names it, and then its time is new. So what is named by nothing and is old is wanted by nobody; who
// sends it just now makes it new, under the lock under which it would be removed.
func (d *Data) Collect(ctx context.Context, before time.Time, dryRun bool, report Report, removed func(digest.Digest, int64)) (Collected, error) {
	d.collecting.Lock()
	defer d.collecting.Unlock()
	defer d.naming.collect()()
	var c Collected
	var unnamed []blob.Descriptor
	named, err := d.named(ctx)
	if err != nil {
		return c, err
	}
	count, _, err := d.Blobs.Usage(ctx)
	if err != nil {
		return c, err
	}
	s := report.step("blobs", "blobs", count)
	err = d.Blobs.Walk(ctx, func(b blob.Descriptor, usedAt time.Time) error {
		s.add(1)
		switch {
		case named[b.Digest]:
			c.Kept++
		case usedAt.Before(before):
			unnamed = append(unnamed, b)
		default:
			c.Recent++
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	s.done()
	s = report.step("remove", "blobs", int64(len(unnamed)))
	for _, b := range unnamed {
		s.add(1)
		deleted := true
		if !dryRun {
			deleted, err = d.naming.remove(b.Digest, func() (bool, error) { return d.Blobs.DeleteUnused(ctx, b.Digest, before) })
			if errors.Is(err, blob.ErrNotFound) {
				continue
			}
			if err != nil {
				return c, err
			}
		}
		if !deleted {
			c.Recent++
			continue
		}
		if !dryRun {
			if err := d.tensorLists.Remove(b.Digest); err != nil {
				return c, err
			}
		}
		c.Blobs++
		c.Bytes += b.Size
		removed(b.Digest, b.Size)
	}
	s.done()
	return c, d.collectDamaged(ctx, dryRun, &c)
}

// named are the blobs that something names.
func (d *Data) named(ctx context.Context) (map[digest.Digest]bool, error) {
	named := map[digest.Digest]bool{}
	err := d.Index.Snapshot(ctx, func(s index.Snapshot) error {
		if err := s.NamedBlobs(func(b index.NamedBlob) error {
			named[digest.Digest(b.Digest)] = true
			return nil
		}); err != nil {
			return err
		}
		return s.Attachments(func(_, dgst string) error {
			named[digest.Digest(dgst)] = true
			return nil
		})
	})
	return named, err
}

// collectDamaged removes what was set aside of blobs that are whole again.
func (d *Data) collectDamaged(ctx context.Context, dryRun bool, c *Collected) error {
	aside, err := d.Blobs.Damaged(ctx)
	if err != nil {
		return err
	}
	for _, dgst := range aside {
		if _, err := d.Blobs.Stat(ctx, dgst); err != nil {
			continue
		}
		c.Damaged++
		if dryRun {
			continue
		}
		if err := d.Blobs.RemoveDamaged(dgst); err != nil {
			return err
		}
	}
	return nil
}
