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
