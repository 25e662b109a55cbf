// Package index keeps the searchable state of the registry in one bbolt file.
//
// The file is a view of what the journal holds: it can be deleted and is then rebuilt by
// applying every group of the journal again, which gives the same answers. It is written
// without waiting for the disk, because the journal is: after a power cut it is made anew. A
// write is therefore not acknowledged by this package but by the journal. After a process that
// was killed the groups that it had not applied are applied from where the file itself says.
//
// Each row carries a checksum, and so does a file that was closed; one that is not known to be
// what was written last is not opened but made anew.
//
// Queries that list take the identity of the caller and leave out what it may not read before
// they count, sort or page.
package index

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"os"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/herdbook/herdbook/registry"
)

// schema is the version of all formats below. A file of another version is rebuilt.
const schema = 6

// The buckets, each with the format of its keys and values. Parts of a key are joined by NUL;
// numbers are 8 bytes, big endian; values are a CRC-32C of bucket, key and JSON, and the JSON, or for nodes and edges
// the bytes that are said there.
const (
	bucketMeta         = "meta"         // "schema" -> number, "applied" -> the last journal sequence number, "counts" -> registry.Counts, "journal" -> its id
	bucketModels       = "models"       // model id -> registry.Model
	bucketNames        = "names"        // model name -> model id
	bucketTombstones   = "tombstones"   // model name, model id -> tombstone
	bucketRefs         = "refs"         // model id, ref -> registry.AnnouncedRef
	bucketIntents      = "intents"      // model id, push id -> registry.PushIntent
	bucketBlobs        = "blobs"        // model id, digest -> size in bytes
	bucketOwners       = "owners"       // digest, model id -> nothing
	bucketUsage        = "usage"        // model id -> registry.Usage
	bucketVersions     = "versions"     // model id, tag -> registry.VersionRecord
	bucketCommits      = "commits"      // model id, commit, tag -> nothing
	bucketManifests    = "manifests"    // artifact repository, digest -> registry.StoredManifest
	bucketTags         = "tags"         // artifact repository, tag -> digest
	bucketReferrers    = "referrers"    // artifact repository, subject, digest -> nothing
	bucketAliases      = "aliases"      // model, repository or artifact repository, digest of another algorithm -> digest
	bucketRepositories = "repositories" // id -> registry.Repository
	bucketRepoNames    = "repo_names"   // name of a repository -> its id
	bucketLayers       = "layers"       // model id, digest -> registry.ImageLayer
	bucketEvaluations  = "evaluations"  // model id, commit, number -> registry.Evaluation
	bucketUnattested   = "unattested"   // model id, tag of a version whose statement lacks an evaluation -> nothing
	bucketPolicies     = "policies"     // model id -> registry.PolicyState
	bucketGates        = "gates"        // model id, tag, environment -> registry.Verdict, as last announced
	bucketRefused      = "refused"      // model id, number -> registry.Refusal
	bucketEnvironments = "environments" // model id, environment -> registry.EnvironmentState
	bucketHistory      = "history"      // model id, environment, number -> registry.EnvironmentChange
	bucketStates       = "states"       // model id, tag, number -> registry.StateChange
	bucketWithdrawn    = "withdrawn"    // model id, digest that only revoked versions name -> tag of the last one
	bucketApprovals    = "approvals"    // model id, tag, environment, actor -> registry.Approval
	bucketNodes        = "nodes"        // number -> what a node of lineage is, see nodeRow
	bucketNodeIDs      = "node_ids"     // id of a node -> its number
	bucketOut          = "edges_out"    // numbers of from and to, label, number of the owner, without NULs -> number of the edge, see edgeRow
	bucketIn           = "edges_in"     // the same with to before from
	bucketDeclared     = "declared"     // numbers of the owner, from and to, and label, without NULs, of an edge that a client declared -> nothing
	bucketSame         = "same"         // numbers of a model's name with revision and of the version that it stands for, without a NUL -> nothing
	bucketCatalog      = "catalog"      // model id -> what is searched of it, see catalogRow
	bucketFacts        = "facts"        // number of the model and tag, without a NUL -> what is searched of a version, see facts
	bucketOrder        = "order"        // what it orders, value and number of a version, see orderKey -> number of the model and tag
	bucketDigests      = "digests"      // beginning of a digest, number of the model and tag, without NULs -> nothing
	bucketEvents       = "events"       // number -> registry.Event
	bucketEventIDs     = "event_ids"    // event id -> number
	bucketOutbox       = "outbox"       // sink, number of the event -> outboxRow, while it is not delivered
	bucketDeliveries   = "deliveries"   // number of the event, sink -> deliveryRow
	bucketSent         = "sent"         // model id, number of an event that went to some sink -> its version, or ""
	bucketTokens       = "tokens"       // hash -> registry.Token
	bucketTokenIDs     = "token_ids"    // token id -> hash
	bucketIDs          = "ids"          // model id, id of an evaluation or a change -> bucket and key
	bucketLocks        = "locks"        // model id, lock id -> registry.Lock
	bucketLockPaths    = "lock_paths"   // model id, path -> lock id
	bucketSignatures   = "signatures"   // model id -> what the files of its refs looked like, see lifecycle; without the journal
	bucketUnmirrored   = "unmirrored"   // model id, journal sequence number, place in the group -> unmirroredRow
)

var buckets = []string{
	bucketMeta, bucketModels, bucketNames, bucketTombstones, bucketRefs, bucketIntents, bucketBlobs, bucketOwners, bucketUsage, bucketVersions,
	bucketCommits, bucketManifests, bucketTags, bucketReferrers, bucketLayers, bucketEvaluations, bucketUnattested, bucketPolicies,
	bucketGates, bucketRefused, bucketEnvironments, bucketHistory, bucketApprovals, bucketOut, bucketIn, bucketEvents,
	bucketEventIDs, bucketOutbox, bucketDeliveries, bucketSent, bucketTokens, bucketTokenIDs, bucketIDs, bucketSignatures, bucketUnmirrored,
	bucketLocks, bucketLockPaths, bucketAliases, bucketRepositories, bucketRepoNames, bucketStates, bucketWithdrawn,
	bucketNodes, bucketNodeIDs, bucketSame, bucketDeclared,
	bucketCatalog, bucketFacts, bucketOrder, bucketDigests,
}

// Buckets are the names of all buckets; docs/formats.md has a row for each.
func Buckets() []string { return append([]string(nil), buckets...) }

// DB is an open index. It is safe for use by many goroutines.
type DB struct {
	bolt    *bolt.DB
	damaged atomic.Bool // a value was met that is not what was written
	memos   memos
	graph   graph
	seed    maphash.Seed // of the hashes of keys
	runs    runs         // nil but during Bulk, as room is
	room    *reserve

	mergeBytes int // tests make it less

	catalogs catalogs
	catalog  catalog
	effort   effort // of a query; the default when it is zero
}

// Open opens the index at path, or makes an empty one. A file that cannot be read, or is of
// another schema, is set aside as path + ".damaged" and replaced by an empty one, with one
// line in the log; the caller then applies the journal from [DB.Applied].
func Open(path string, log *slog.Logger) (*DB, error) {
	err := trust(path)
	if err == nil {
		var db *DB
		db, err = open(path)
		if err == nil {
			return db, nil
		}
	}
	if errors.Is(err, bolterrors.ErrTimeout) || errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	aside := path + damagedSuffix
	log.Warn("the index cannot be read; it is set aside and rebuilt from the journal", "file", path, "aside", aside, "reason", err.Error())
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("set the damaged index aside: %w", err)
	}
	return open(path)
}

// damagedSuffix is added to the name of a file that is set aside. It is kept for whoever wants to
// know what happened; the next one replaces it.
const damagedSuffix = ".damaged"

// mapBytes is how much of the address space is set aside for the file. When it outgrows that, the next change waits for all who
// read, of whom one may compare the whole index. It takes no memory.
const mapBytes = (1 << 34) * (math.MaxInt >> 62) // 16 GiB, and on 32 bits as much as bbolt likes

func open(path string) (_ *DB, err error) {
	// NoSync: see the package comment. The free list is stored, because to find it again would
	// read the whole file at each start.
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 2 * time.Second, NoSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: mapBytes})
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	// Said before the first change: from here on the file is not the one that was closed.
	now, err := opened(path)
	if err == nil {
		err = now.write(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", path, err)
	}
	db := &DB{bolt: b, seed: maphash.MakeSeed(), mergeBytes: mergeBytes}
	return db, db.prepare()
}

// prepare makes the buckets of a new file and refuses one of another schema.
func (db *DB) prepare() error {
	err := db.bolt.Update(func(b *bolt.Tx) error {
		t := tx{bolt: b, memos: &db.memos}
		fresh := b.Bucket([]byte(bucketMeta)) == nil
		for _, name := range buckets {
			if _, err := b.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		if fresh {
			return t.put(bucketMeta, key("schema"), schema)
		}
		var found int
		if _, err := t.get(bucketMeta, key("schema"), &found); err != nil {
			return err
		}
		if found != schema {
			return fmt.Errorf("index has format %d and this version of Herdbook writes %d", found, schema)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return db.resume()
}

// Close writes what is pending and closes the file. One in which damage was met is not closed in
// order: the next Open sets it aside.
func (db *DB) Close() error {
	path := db.bolt.Path()
	if err := errors.Join(db.bolt.Sync(), db.bolt.Close()); err != nil {
		return err
	}
	if db.damaged.Load() {
		return os.Remove(path + stateSuffix)
	}
	left, err := measure(path)
	if err != nil {
		return err
	}
	return left.write(path)
}

// Applied is the sequence number of the last journal group in the index; 0 when it is empty.
func (db *DB) Applied(ctx context.Context) (uint64, error) {
	var seq uint64
	err := db.view(ctx, func(t tx) error {
		_, err := t.get(bucketMeta, key("applied"), &seq)
		return err
	})
	return seq, err
}

// Entry is a group of the journal and its place there.
type Entry struct {
	Seq     uint64
	Group   registry.Group
	Encoded []registry.EncodedRecord // the records as the journal has them; they are encoded again when it is nil
}

// encoded is the text of a record, without any when it is not known.
func (e Entry) encoded(place int) registry.EncodedRecord {
	if place < len(e.Encoded) {
		return e.Encoded[place]
	}
	return registry.EncodedRecord{}
}

// Apply adds groups to the index, all in one transaction. They follow each other and the last
// one that was applied; groups that are there already are passed over. An error leaves the
// index as it was.
func (db *DB) Apply(entries []Entry) error {
	var grown growth
	var found findings
	pending := newWriteBuffer(db.seed, db.runs, db.room)
	err := db.update(func(t tx) error {
		t.pending, t.grown, t.found = pending, &grown, &found
		if db.runs != nil {
			if _, err := t.bolt.CreateBucketIfNotExists([]byte(bucketRuns)); err != nil {
				return err
			}
		}
		var applied uint64
		if _, err := t.get(bucketMeta, key("applied"), &applied); err != nil {
			return err
		}
		pending.batch = applied
		t.counts = &registry.Counts{}
		if _, err := t.get(bucketMeta, key("counts"), t.counts); err != nil {
			return err
		}
		for _, e := range entries {
			if e.Seq <= applied {
				continue
			}
			if e.Seq != applied+1 {
				return fmt.Errorf("apply group %d: the index is at %d: %w", e.Seq, applied, ErrDamaged)
			}
			if err := apply(t, e); err != nil {
				return fmt.Errorf("apply group %d: %w", e.Seq, err)
			}
			applied = e.Seq
		}
		if err := t.writeFindings(); err != nil {
			return err
		}
		if err := t.put(bucketMeta, key("counts"), t.counts); err != nil {
			return err
		}
		if err := t.put(bucketMeta, key("applied"), applied); err != nil {
			return err
		}
		return pending.flushAll()
	})
	pending.release()
	if err == nil {
		db.runs.add(pending.made)
		db.graph.grow(grown)
		db.catalog.change(found.changed)
	}
	return err
}

// update makes a transaction that changes something.
func (db *DB) update(f func(t tx) error) error {
	return db.note(db.bolt.Update(func(b *bolt.Tx) error { return f(tx{bolt: b, memos: &db.memos}) }))
}

func (db *DB) view(ctx context.Context, f func(t tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return db.note(db.bolt.View(func(b *bolt.Tx) error { return f(tx{bolt: b, memos: &db.memos}) }))
}

// note remembers that damage was met.
func (db *DB) note(err error) error {
	if errors.Is(err, ErrDamaged) {
		db.damaged.Store(true)
	}
	return err
}
