package storage

import (
	"context"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// RestoreOn is Restore on a file system that tests break.
func RestoreOn(ctx context.Context, fsys durable.FS, from, to string) error {
	_, err := restore(ctx, fsys, from, to, false, Report{})
	return err
}

// NewTensorLists is a cache below dir that keeps at most so many files, of so many bytes together.
func NewTensorLists(dir string, maxFiles int, maxBytes int64) *TensorLists {
	l := newTensorLists(dir)
	l.maxFiles, l.maxBytes = maxFiles, maxBytes
	return l
}
