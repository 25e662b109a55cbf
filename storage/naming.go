package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/blob"
)

// naming keeps commits and the removal of blobs apart. Content is stored before a group names it, and in between nothing tells
// that somebody is about to. So a removal and a commit that names blobs never run at the same time, what was named since
// a collection began is not removed by it, and what was removed is not named.
type naming struct {
	mu sync.RWMutex // shared by commits that name blobs; a removal has it alone

	set    sync.Mutex
	lately map[digest.Digest]struct{}  // named since a collection began; nil when none runs
	gone   map[digest.Digest]time.Time // removed by this process, and when
}

// goneFor is longer than it takes from content that is stored to a group that names it.
const goneFor = 24 * time.Hour

// collect begins a collection.
func (n *naming) collect() (end func()) {
	n.mu.Lock() // waits for commits that are not in the index yet
	defer n.mu.Unlock()
	n.set.Lock()
	defer n.set.Unlock()
	n.lately = map[digest.Digest]struct{}{}
	if n.gone == nil {
		n.gone = map[digest.Digest]time.Time{}
	}
	for d, at := range n.gone {
		if time.Since(at) > goneFor {
			delete(n.gone, d)
		}
	}
	return func() {
		n.set.Lock()
		defer n.set.Unlock()
		n.lately = nil
	}
}

// remove removes a blob unless it was named since the collection began.
func (n *naming) remove(d digest.Digest, do func() (bool, error)) (removed bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set.Lock()
	defer n.set.Unlock()
	if _, named := n.lately[d]; named {
		return false, nil
	}
	n.gone[d] = time.Now() // also when it is not known whether it is
	if removed, err = do(); err == nil && !removed {
		delete(n.gone, d)
	}
	return removed, err
}

// name lets a group name blobs, until done is called. What was removed lately has to be there again.
func (n *naming) name(ctx context.Context, blobs []digest.Digest, store *blob.Dir) (done func(), err error) {
	n.mu.RLock()
	n.set.Lock()
	defer n.set.Unlock()
	for _, d := range blobs {
		if _, gone := n.gone[d]; gone {
			_, err := store.Stat(ctx, d)
			if errors.Is(err, blob.ErrNotFound) {
				err = fmt.Errorf("%s was removed as garbage before it was named; it has to be sent again: %w", d, registry.ErrUnavailable)
			}
			if err != nil {
				n.mu.RUnlock()
				return nil, err
			}
		}
		if n.lately != nil {
			n.lately[d] = struct{}{}
		}
	}
	return n.mu.RUnlock, nil
}

// namedBy are the blobs that a group names.
func namedBy(g registry.Group) (named []digest.Digest) {
	link := func(blobs []registry.LinkedBlob) {
		for _, b := range blobs {
			named = append(named, b.Digest)
		}
	}
	for _, record := range g.Records {
		switch r := record.(type) {
		case registry.BlobsLinked:
			link(r.Blobs)
		case registry.LayerLinked:
			for _, f := range r.Layer.Files {
				named = append(named, f.Digest)
			}
		case registry.ManifestPushed:
			named = append(named, r.Manifest.Digest)
		case registry.VersionPublished:
			named = append(named, r.Manifest.Digest, r.Version.Config.Digest)
			for _, f := range r.Version.Files {
				named = append(named, f.Digest)
			}
		case registry.ImageBuilt:
			link(r.Blobs)
			for _, m := range r.Manifests {
				named = append(named, m.Digest)
			}
		case registry.VersionAttested:
			link(r.Blobs)
			for _, m := range r.Manifests {
				named = append(named, m.Digest)
			}
		case registry.EvaluationRecorded:
			for _, a := range r.Evaluation.Attachments {
				named = append(named, a.Digest)
			}
		}
	}
	return named
}
