package index

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"slices"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/herdbook/herdbook/registry"
)

// Snapshot is the index as it was at one moment, whatever is applied meanwhile.
type Snapshot struct{ t tx }

// Snapshot calls fn with the index as it is now.
func (db *DB) Snapshot(ctx context.Context, fn func(Snapshot) error) error {
	return db.view(ctx, func(t tx) error { return fn(Snapshot{t}) })
}

// Applied is [DB.Applied].
func (s Snapshot) Applied() (seq uint64, err error) {
	_, err = s.t.get(bucketMeta, key("applied"), &seq)
	return seq, err
}

// derived yields every row that follows from the journal alone. What is mirrored, and what refs looked like, is known
// from the repositories and noted without the journal.
func (s Snapshot) derived() iter.Seq2[string, error] {
	return s.t.lines(bucketUnmirrored, bucketSignatures)
}

// lines yields every row but those of some buckets, in order, as a line of text. An error ends it.
func (t tx) lines(but ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, bucket := range buckets {
			if slices.Contains(but, bucket) {
				continue
			}
			for r := range t.scan(bucket, nil, nil) {
				if err := r.check(); err != nil {
					yield("", err)
					return
				}
				if !yield(fmt.Sprintf("%s %q %s", bucket, r.key, r.value[sum:]), nil) {
					return
				}
			}
		}
	}
}

// Difference says where two indexes differ in what follows from the journal: the first row of each that the other has
// not so. It is empty when they do not.
func Difference(a, b Snapshot) (string, error) {
	left, stopLeft := iter.Pull2(a.derived())
	defer stopLeft()
	right, stopRight := iter.Pull2(b.derived())
	defer stopRight()
	for {
		one, err, more := left()
		if err != nil {
			return "", err
		}
		other, err, otherMore := right()
		if err != nil {
			return "", err
		}
		switch {
		case one != other:
			return fmt.Sprintf("%s instead of %s", rowName(one), rowName(other)), nil
		case !more && !otherMore:
			return "", nil
		}
	}
}

// rowName is what a line of derived says of bucket and key, which holds no secret.
func rowName(line string) string {
	bucket, rest, ok := strings.Cut(line, " ")
	if !ok {
		return "no row"
	}
	key, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return "a row of " + bucket
	}
	return fmt.Sprintf("row %s of %s", key, bucket)
}

// OpenCopy opens an empty index at path for a comparison. Nothing is promised for it when the process ends.
func OpenCopy(path string) (*DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", path, err)
	}
	db := &DB{bolt: b, seed: maphash.MakeSeed(), mergeBytes: mergeBytes}
	if err := db.prepare(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return db, nil
}

// NamedBlob is a blob that the index names.
type NamedBlob struct {
	Owner     string // id of the model or repository that owns it; of a manifest, the repository that has it
	Digest    string
	SizeBytes int64 // -1 when the index does not say
}

// NamedBlobs calls fn for each blob that a model or a repository owns, and for each manifest.
func (s Snapshot) NamedBlobs(fn func(NamedBlob) error) error {
	for r := range s.t.scan(bucketBlobs, nil, nil) {
		owner, digest, ok := strings.Cut(string(r.key), "\x00")
		var size int64
		if err := r.decode(&size); err != nil || !ok {
			return fmt.Errorf("row %q of %s: %w", r.key, bucketBlobs, errors.Join(err, ErrDamaged))
		}
		if err := fn(NamedBlob{owner, digest, size}); err != nil {
			return err
		}
	}
	for r := range s.t.scan(bucketManifests, nil, nil) {
		repository, digest, ok := strings.Cut(string(r.key), "\x00")
		var m registry.StoredManifest
		if err := r.decode(&m); err != nil || !ok {
			return fmt.Errorf("row %q of %s: %w", r.key, bucketManifests, errors.Join(err, ErrDamaged))
		}
		if err := fn(NamedBlob{repository, digest, m.SizeBytes}); err != nil {
			return err
		}
	}
	return nil
}

// OwnerName is the name of a model, of its images' repository, or of a repository, as clients know it; empty when it is gone.
func (s Snapshot) OwnerName(id string) (string, error) {
	model, image := strings.CutSuffix(id, registry.ImageRepository(""))
	name, err := ownerName(s.t, model)
	if image && name != "" {
		name += "/image"
	}
	return name, err
}

// Attachments calls fn with each digest that an evaluation names as an attachment.
func (s Snapshot) Attachments(fn func(modelID, digest string) error) error {
	for r := range s.t.scan(bucketEvaluations, nil, nil) {
		modelID, _, _ := strings.Cut(string(r.key), "\x00")
		var e registry.Evaluation
		if err := r.decode(&e); err != nil {
			return err
		}
		for _, a := range e.Attachments {
			if err := fn(modelID, a.Digest.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Discard closes an index that [OpenCopy] opened.
func (db *DB) Discard() error { return db.bolt.Close() }
