// Package storage opens a data directory: the journal, the blobs, the repositories and the
// index over them, for one server at a time.
//
// The journal is what counts. The index is brought up to it when the directory is opened, and
// by every commit; it can be deleted while the server is stopped.
//
// It also looks after the directory: [Data.Fsck] checks all of it, [Data.Scrub] reads the blobs over and over,
// [Data.Collect] removes what nothing names, [Data.Backup] and [Restore] copy it. What a damaged
// blob held nobody gets any more; only who has the content can bring it back.
package storage

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/index"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/journal"
)

// The names in a data directory.
const (
	lockFile    = "lock"
	journalDir  = "journal"
	blobsDir    = "blobs"
	uploadsDir  = "uploads"
	reposDir    = "repos"
	runDir      = "run"
	indexFile   = "index.db"
	secretsDir  = "secrets"
	adminToken  = "admin-token"
	dirPerm     = 0o750
	secretPerm  = 0o600
	secretsPerm = 0o700
)

// Config says what to open.
type Config struct {
	Dir          string // made if it is missing
	Log          *slog.Logger
	MaxPushBytes int64 // of one pack; by default what gitrepo allows

	FS durable.FS // changes the disk, beside what git and the index do; tests break it. The default works.
}

// Data is an open data directory.
type Data struct {
	Blobs        *blob.Dir
	Index        *index.DB
	Repositories *gitrepo.Store
	Scrubbed     ScrubStats

	dir     string
	lock    *os.File
	fsys    durable.FS
	journal *journal.Journal
	decoder *registry.Decoder

	collecting  sync.Mutex // held while blobs are removed for good
	naming      naming
	tensorLists *TensorLists
}

// Open opens a data directory and brings the index up to the journal. A second server on the
// same directory is refused.
func Open(ctx context.Context, c Config) (_ *Data, err error) {
	d := &Data{dir: c.Dir, fsys: c.FS, decoder: registry.NewDecoder(), tensorLists: newTensorLists(c.Dir)}
	if err := d.fsys.MkdirAll(c.Dir, dirPerm); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if d.lock, err = lock(d.path(lockFile)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	d.Blobs, err = blob.Open(blob.Config{Dir: d.path(blobsDir), UploadsDir: d.path(uploadsDir), FS: c.FS, Prepared: true})
	if err != nil {
		return nil, fmt.Errorf("blobs: %w", err)
	}
	if err := d.openJournal(ctx, c.Log); err != nil {
		return nil, err
	}
	if err := d.bringUp(ctx, c.Log); err != nil {
		return nil, err
	}
	if d.journal.Next() == 1 {
		if err := d.startJournal(ctx); err != nil {
			return nil, err
		}
	}
	d.Repositories, err = gitrepo.Open(ctx, gitrepo.Config{
		Dir: d.path(reposDir), RunDir: d.path(runDir), Log: c.Log, MaxPushBytes: c.MaxPushBytes, FS: c.FS,
	})
	if err != nil {
		return nil, fmt.Errorf("repositories: %w", err)
	}
	return d, nil
}

// startJournal gives a new journal its id.
func (d *Data) startJournal(ctx context.Context) error {
	var id [16]byte
	rand.Read(id[:]) // crypto/rand never fails
	return d.Commit(ctx, registry.Group{At: time.Now().UTC().Truncate(time.Microsecond), Records: []registry.Record{
		registry.JournalStarted{ID: hex.EncodeToString(id[:])},
	}})
}

func (d *Data) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// lock makes this process the only one that has the directory open. The kernel lets go of it
// when the process ends, however it does.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, secretPerm)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s: another herdbook server has it open: stop that one, or choose another directory with --data", filepath.Dir(path))
	}
	return f, nil
}

// openJournal opens the index and the journal. An index that is ahead of the journal knows of
// groups that were acknowledged and are lost. Then the directory is not opened, and nothing in
// it changes, so that the journal can still be repaired: to go on without them is the operator's
// to decide.
func (d *Data) openJournal(ctx context.Context, log *slog.Logger) (err error) {
	if d.Index, err = index.Open(d.path(indexFile), log); err != nil {
		return err
	}
	applied, err := d.Index.Applied(ctx)
	if err != nil {
		return err
	}
	d.journal, err = journal.Open(journal.Config{Dir: d.path(journalDir), Apply: d.apply, Durable: applied, FS: d.fsys})
	var lost *journal.LostError
	switch {
	case errors.As(err, &lost):
		return fmt.Errorf("%w. They were acknowledged, and the index has them. Put the journal back from a backup that has them too; or, to go on without them, move %s away. Then start again",
			err, d.path(indexFile))
	case err != nil:
		return fmt.Errorf("journal: %w", err)
	}
	if cut := d.journal.Recovery(); cut.TruncatedBytes > 0 {
		log.WarnContext(ctx, "the end of the journal was not finished when the server stopped, and was cut off; nothing in it was acknowledged",
			"segment", cut.Segment, "offset", cut.Offset, "bytes", cut.TruncatedBytes)
	}
	return nil
}

// bringUp applies what the index lacks of the journal. An index of another journal, or one that is
// damaged, is set aside and made anew.
func (d *Data) bringUp(ctx context.Context, log *slog.Logger) error {
	err := d.checkOrigin(ctx)
	if err == nil {
		err = d.replay(ctx, log)
	}
	if !errors.Is(err, index.ErrDamaged) {
		return err
	}
	log.WarnContext(ctx, "the index does not fit the journal; it is set aside and rebuilt", "reason", err.Error())
	err, d.Index = d.Index.Close(), nil
	if err != nil {
		return err
	}
	if err := os.Rename(d.path(indexFile), d.path(indexFile+".damaged")); err != nil {
		return fmt.Errorf("set the index aside: %w", err)
	}
	if d.Index, err = index.Open(d.path(indexFile), log); err != nil {
		return err
	}
	return d.replay(ctx, log)
}

// checkOrigin returns an error when the index is a view of another journal.
func (d *Data) checkOrigin(ctx context.Context) error {
	applied, err := d.Index.Applied(ctx)
	if err != nil || applied == 0 {
		return err
	}
	viewed, err := d.Index.JournalID(ctx)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	id, err := d.journalID(ctx)
	if err == nil && id != viewed {
		err = fmt.Errorf("the index is a view of journal %q, and the journal is %q: %w", viewed, id, index.ErrDamaged)
	}
	return err
}

// journalID is the name that the first record of the journal gives it.
func (d *Data) journalID(ctx context.Context) (string, error) {
	for g, err := range d.journal.Read(ctx, 1) {
		if err != nil {
			return "", fmt.Errorf("read the journal: %w", err)
		}
		group, err := d.decoder.Decode(g.Payload)
		if err != nil {
			return "", fmt.Errorf("group %d: %w", g.Seq, err)
		}
		if len(group.Records) > 0 {
			started, _ := group.Records[0].(registry.JournalStarted)
			return started.ID, nil
		}
	}
	return "", nil
}

func (d *Data) replay(ctx context.Context, log *slog.Logger) error {
	applied, err := d.Index.Applied(ctx)
	if err != nil {
		return err
	}
	next := d.journal.Next()
	if applied+1 == next {
		return nil
	}
	start := time.Now()
	if err := d.replayInto(ctx, d.Index, applied, next-1, func(int) {}); err != nil {
		return err
	}
	log.InfoContext(ctx, "the index was brought up to the journal", "groups", next-1-applied, "took", time.Since(start))
	return nil
}

// replayInto applies the groups behind one up to another to an index, and says after each batch how many that were.
func (d *Data) replayInto(ctx context.Context, db *index.DB, after, upTo uint64, applied func(groups int)) error {
	apply := func(apply func([]index.Entry) error) error {
		for batch, err := range d.decoded(ctx, after+1, upTo) {
			if err != nil {
				return err
			}
			if err := apply(batch); err != nil {
				return err
			}
			applied(len(batch))
		}
		return nil
	}
	if upTo-after < bulkGroups {
		return apply(db.Apply)
	}
	return db.Bulk(apply)
}

// A batch of the replay is applied in one transaction, and takes about twenty times as much memory as the text of its groups.
const (
	replayGroups = 20_000
	replayBytes  = 12 << 20 // of text, above which a batch is not added to
	bulkGroups   = 2000     // from which on it is worth while to merge at the end; see [index.DB.Bulk]
)

// decoded yields the groups of the journal from one to another in batches. While one is worked on the next is read.
func (d *Data) decoded(ctx context.Context, from, to uint64) iter.Seq2[[]index.Entry, error] {
	type result struct {
		batch []index.Entry
		err   error
	}
	return func(yield func([]index.Entry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		results := make(chan result)
		go func() {
			defer close(results)
			for batch, err := range d.decode(ctx, from, to) {
				select {
				case results <- result{batch, err}:
				case <-ctx.Done():
					return
				}
			}
		}()
		defer func() {
			cancel()
			for range results { // until the goroutine has ended
			}
		}()
		for r := range results {
			if !yield(r.batch, r.err) || r.err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// decode is decoded without looking ahead.
func (d *Data) decode(ctx context.Context, from, to uint64) iter.Seq2[[]index.Entry, error] {
	return func(yield func([]index.Entry, error) bool) {
		var batch []index.Entry
		size := 0
		for g, err := range d.journal.Read(ctx, from) {
			if err != nil {
				yield(nil, fmt.Errorf("read the journal: %w", err))
				return
			}
			if g.Seq > to {
				break
			}
			e, err := d.entry(g)
			if err != nil {
				yield(nil, err)
				return
			}
			batch = append(batch, e)
			if size += len(g.Payload); size < replayBytes && len(batch) < replayGroups {
				continue
			}
			if !yield(batch, nil) {
				return
			}
			batch, size = nil, 0
		}
		if len(batch) > 0 {
			yield(batch, nil)
		}
	}
}

// entry is a group of the journal as the index takes it.
func (d *Data) entry(g journal.Group) (index.Entry, error) {
	e, ok := g.Value.(index.Entry) // which Commit has decoded
	if !ok {
		var err error
		if e.Group, e.Encoded, err = d.decoder.DecodeGroup(g.Payload); err != nil {
			return e, fmt.Errorf("group %d: %w", g.Seq, err)
		}
	}
	e.Seq = g.Seq
	return e, nil
}

// apply brings groups of the journal into the index. It is what the journal calls after each
// batch, so that a rebuild goes exactly the same way.
func (d *Data) apply(batch []journal.Group) error {
	entries := make([]index.Entry, len(batch))
	for i, g := range batch {
		var err error
		if entries[i], err = d.entry(g); err != nil {
			return err
		}
	}
	return d.Index.Apply(entries)
}

// Commit makes a group durable and visible, or reports why not. A group that could not be read
// back or applied never gets into the journal, where it would stand before all others for ever.
func (d *Data) Commit(ctx context.Context, g registry.Group) error {
	payload, err := registry.EncodeGroup(g)
	if err != nil {
		return err
	}
	var read index.Entry
	read.Group, read.Encoded, err = d.decoder.DecodeGroup(payload)
	if err == nil {
		err = index.Check(read.Group)
	}
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if blobs := namedBy(read.Group); len(blobs) > 0 {
		done, err := d.naming.name(ctx, blobs, d.Blobs)
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		defer done()
	}
	_, err = d.journal.AppendValue(ctx, payload, read)
	switch {
	case errors.Is(err, journal.ErrTooLarge):
		return fmt.Errorf("%w: %w", err, registry.ErrTooLarge)
	case errors.Is(err, journal.ErrClosed), errors.Is(err, journal.ErrFailed):
		return fmt.Errorf("%w: %w", err, registry.ErrUnavailable)
	}
	return err
}

// Ready reports whether commits can be made.
func (d *Data) Ready(ctx context.Context) error {
	_, err := d.Index.Applied(ctx)
	return err
}

// Close closes everything, the journal before what it writes to.
func (d *Data) Close() error {
	var errs []error
	if d.Repositories != nil {
		errs = append(errs, d.Repositories.Close())
	}
	if d.journal != nil {
		errs = append(errs, d.journal.Close())
	}
	if d.Index != nil {
		errs = append(errs, d.Index.Close())
	}
	if d.Blobs != nil {
		errs = append(errs, d.Blobs.Close())
	}
	return errors.Join(append(errs, d.lock.Close())...)
}

// Secret reads the server's own secret of that name, and makes it by make when there is none.
// It lies in a file that only the server's user reads; backups leave it out.
func (d *Data) Secret(name string, make func() []byte) ([]byte, error) {
	if err := d.fsys.MkdirAll(d.path(secretsDir), secretsPerm); err != nil {
		return nil, err
	}
	path := d.path(secretsDir, name)
	secret, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		return secret, err
	}
	secret = make()
	return secret, d.fsys.WriteFile(path, secret, secretPerm)
}

// WriteAdminToken keeps the first token where its owner finds it, and gives the path.
func (d *Data) WriteAdminToken(secret string) (path string, err error) {
	path = d.path(adminToken)
	return path, d.fsys.WriteFile(path, []byte(secret+"\n"), secretPerm)
}
