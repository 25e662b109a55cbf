package gitrepo

import (
	"bufio"
	"context"
	"fmt"

	"github.com/herdbook/herdbook/registry"
)

// SmallBlobs calls give with the content of each blob of at most maxBytes that a ref leads to, each once. Data is of
// use until give returns.
func (r *Repository) SmallBlobs(ctx context.Context, maxBytes int64, give func(data []byte) error) error {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	if err := r.mustExist(); err != nil {
		return err
	}
	if err := r.smallBlobs(ctx, maxBytes, give); err != nil {
		return fmt.Errorf("small blobs of %s: %w", r.name, err)
	}
	return nil
}

func (r *Repository) smallBlobs(ctx context.Context, maxBytes int64, give func(data []byte) error) error {
	reader := Push{Repository: r, store: r.store}
	defer reader.close()
	revs := r.store.command(ctx, r.path, "rev-list", "--objects", "--no-object-names", "--filter-provided-objects",
		"--filter=combine:object:type=blob+"+fmt.Sprintf("blob:limit=%d", maxBytes+1), "--all")
	out, err := revs.StdoutPipe()
	if err != nil {
		return err
	}
	if err := revs.start(); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(out, 64<<10)
	for {
		batch, done, err := readObjectLines(lines, objectBatch)
		if err == nil && len(batch) > 0 {
			ids := make([]registry.ObjectID, len(batch))
			for i, b := range batch {
				ids[i] = b.id
			}
			err = reader.ReadBlobs(ctx, ids, maxBytes, func(_ registry.ObjectID, data []byte) error { return give(data) })
		}
		if err != nil {
			revs.abandon(out)
			return err
		}
		if done {
			return revs.wait()
		}
	}
}
