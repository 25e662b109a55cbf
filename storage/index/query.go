package index

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// after is the key behind which the page begins.
func after(p registry.Page, prefix []byte) ([]byte, error) {
	if p.Cursor == "" {
		return nil, nil
	}
	rest, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err != nil || len(rest) > 1024 {
		return nil, registry.Invalid("cursor", "the cursor is not one that this server gave")
	}
	return append(slices.Clone(prefix), rest...), nil
}

// page collects the values under p that keep takes. The cursor names the last one given.
func page[V any](t tx, bucket string, p []byte, at registry.Page, keep func(k []byte, v *V) (bool, error)) (items []V, next string, err error) {
	from, err := after(at, p)
	if err != nil {
		return nil, "", err
	}
	items = []V{}
	var last []byte
	for r := range t.scan(bucket, p, from) {
		var v V
		if err := r.decode(&v); err != nil {
			return nil, "", err
		}
		ok, err := keep(r.key, &v)
		if err != nil {
			return nil, "", err
		}
		if !ok {
			continue
		}
		if len(items) == at.Bound() {
			return items, base64.RawURLEncoding.EncodeToString(last), nil
		}
		items, last = append(items, v), slices.Clone(r.key[len(p):])
	}
	return items, "", nil
}

// get1 reads one value, or registry.ErrNotFound with what it is that is missing.
func get1[V any](ctx context.Context, db *DB, bucket string, k []byte, what string) (V, error) {
	var v V
	err := db.view(ctx, func(t tx) error {
		found, err := t.get(bucket, k, &v)
		if err == nil && !found {
			return fmt.Errorf("%s: %w", what, registry.ErrNotFound)
		}
		return err
	})
	return v, err
}

// getAll reads all values under a prefix.
func getAll[V any](ctx context.Context, db *DB, bucket string, p []byte) ([]V, error) {
	var values []V
	err := db.view(ctx, func(t tx) (err error) {
		values, err = all[V](t, bucket, p)
		return err
	})
	return values, err
}

// ModelByName is the model with that name. Who may know of it is the caller's to ask.
func (db *DB) ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error) {
	var m registry.Model
	err := db.view(ctx, func(t tx) error {
		found, err := modelByName(t, name.String(), &m)
		if err == nil && !found {
			return fmt.Errorf("model %s: %w", name, registry.ErrNotFound)
		}
		return err
	})
	return m, err
}

func modelByName(t tx, name string, m *registry.Model) (bool, error) {
	var id string
	if found, err := t.get(bucketNames, key(name), &id); err != nil || !found {
		return false, err
	}
	return t.get(bucketModels, key(id), m)
}

// ModelByID is the model with that id.
func (db *DB) ModelByID(ctx context.Context, id string) (registry.Model, error) {
	return get1[registry.Model](ctx, db, bucketModels, key(id), "model")
}

// Models are the models that id may read, by name.
func (db *DB) Models(ctx context.Context, id access.Identity, at registry.Page) (models []registry.Model, next string, err error) {
	err = db.view(ctx, func(t tx) error {
		from, err := after(at, nil)
		if err != nil {
			return err
		}
		models = []registry.Model{}
		for r := range t.scan(bucketNames, nil, from) {
			var modelID string
			if err := r.decode(&modelID); err != nil {
				return err
			}
			var m registry.Model
			if _, err := t.get(bucketModels, key(modelID), &m); err != nil {
				return err
			}
			if !access.CanRead(id, &m) {
				continue
			}
			if len(models) == at.Bound() {
				next = base64.RawURLEncoding.EncodeToString([]byte(models[len(models)-1].Name.String()))
				return nil
			}
			models = append(models, m)
		}
		return nil
	})
	return models, next, err
}

// AllModels are all models, for the server itself.
func (db *DB) AllModels(ctx context.Context) ([]registry.Model, error) {
	return getAll[registry.Model](ctx, db, bucketModels, nil)
}

// UsedTags are the tags of deleted models that had this name: they are never used again.
func (db *DB) UsedTags(ctx context.Context, name registry.ModelName) ([]registry.Tag, error) {
	graves, err := getAll[tombstone](ctx, db, bucketTombstones, prefix(name.String()))
	var tags []registry.Tag
	for _, g := range graves {
		tags = append(tags, g.Tags...)
	}
	return tags, err
}

// Deleted reports whether a model of this name was ever deleted.
func (db *DB) Deleted(ctx context.Context, name registry.ModelName) (bool, error) {
	graves, err := getAll[tombstone](ctx, db, bucketTombstones, prefix(name.String()))
	return len(graves) > 0, err
}

// Refs are the announced refs of a model, the deleted ones among them with an empty id.
func (db *DB) Refs(ctx context.Context, modelID string) (map[string]registry.AnnouncedRef, error) {
	refs := map[string]registry.AnnouncedRef{}
	err := db.view(ctx, func(t tx) error {
		p := prefix(modelID)
		for r := range t.scan(bucketRefs, p, nil) {
			var ref registry.AnnouncedRef
			if err := r.decode(&ref); err != nil {
				return err
			}
			refs[string(r.key[len(p):])] = ref
		}
		return nil
	})
	return refs, err
}

// Intents are the pushes to a model that were not announced yet, the oldest first.
func (db *DB) Intents(ctx context.Context, modelID string) ([]registry.PushIntent, error) {
	intents, err := getAll[registry.PushIntent](ctx, db, bucketIntents, prefix(modelID))
	slices.SortFunc(intents, func(a, b registry.PushIntent) int { return a.At.Compare(b.At) })
	return intents, err
}

// BlobSize is the size of a blob that the model owns, or registry.ErrNotFound: also when the
// store holds the blob for another model.
func (db *DB) BlobSize(ctx context.Context, modelID, digest string) (int64, error) {
	return get1[int64](ctx, db, bucketBlobs, key(modelID, digest), "blob "+digest)
}

// Version is one version of a model.
func (db *DB) Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error) {
	var v registry.VersionRecord
	err := db.view(ctx, func(t tx) error {
		found, err := recall(t, &t.memos.versions, bucketVersions, key(modelID, tag.String()), &v)
		if err == nil && !found {
			return fmt.Errorf("version %s: %w", tag, registry.ErrNotFound)
		}
		return err
	})
	return v, err
}

// Versions are all versions of a model, the highest precedence first.
func (db *DB) Versions(ctx context.Context, modelID string) ([]registry.VersionRecord, error) {
	var rows []registry.VersionRecord
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketVersions, prefix(modelID), nil) {
			var row registry.VersionRecord
			if err := t.memos.versions.decode(r.bucket, r.key, r.value, &row); err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	})
	slices.SortFunc(rows, func(a, b registry.VersionRecord) int { return b.Version.Tag.Compare(a.Version.Tag) })
	return rows, err
}

// VersionsAt are the versions whose commit is commit, the highest precedence first.
func (db *DB) VersionsAt(ctx context.Context, modelID string, commit registry.ObjectID) ([]registry.VersionRecord, error) {
	var rows []registry.VersionRecord
	err := db.view(ctx, func(t tx) error {
		p := prefix(modelID, string(commit))
		for r := range t.scan(bucketCommits, p, nil) {
			if err := r.check(); err != nil {
				return err
			}
			var row registry.VersionRecord
			if _, err := recall(t, &t.memos.versions, bucketVersions, key(modelID, string(r.key[len(p):])), &row); err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	})
	slices.SortFunc(rows, func(a, b registry.VersionRecord) int { return b.Version.Tag.Compare(a.Version.Tag) })
	return rows, err
}

// BuildingImages are the versions of all models whose image is not made yet.
func (db *DB) BuildingImages(ctx context.Context) ([]registry.VersionRecord, error) {
	rows, err := getAll[registry.VersionRecord](ctx, db, bucketVersions, nil)
	return slices.DeleteFunc(rows, func(r registry.VersionRecord) bool { return r.Image.State != registry.ImageBuilding }), err
}

// Evaluations are the evaluations of a commit in the order in which they were recorded.
func (db *DB) Evaluations(ctx context.Context, modelID string, commit registry.ObjectID) ([]registry.Evaluation, error) {
	return getAll[registry.Evaluation](ctx, db, bucketEvaluations, prefix(modelID, string(commit)))
}

// EvaluationsPage is a page of the evaluations of a commit.
func (db *DB) EvaluationsPage(ctx context.Context, modelID string, commit registry.ObjectID, at registry.Page) (items []registry.Evaluation, next string, err error) {
	err = db.view(ctx, func(t tx) (err error) {
		items, next, err = page(t, bucketEvaluations, prefix(modelID, string(commit)), at, func([]byte, *registry.Evaluation) (bool, error) { return true, nil })
		return err
	})
	return items, next, err
}

// Policy is the policy in force for a model. A model whose default branch was never seen has
// the zero state.
func (db *DB) Policy(ctx context.Context, modelID string) (registry.PolicyState, error) {
	var p registry.PolicyState
	err := db.view(ctx, func(t tx) error {
		_, err := recall(t, &t.memos.policies, bucketPolicies, key(modelID), &p)
		return err
	})
	return p, err
}

// AnnouncedGate is the verdict that was last announced for a version and an environment.
func (db *DB) AnnouncedGate(ctx context.Context, modelID string, tag registry.Tag, env registry.EnvironmentName) (registry.Verdict, bool, error) {
	var v registry.Verdict
	var found bool
	err := db.view(ctx, func(t tx) (err error) {
		found, err = recall(t, &t.memos.gates, bucketGates, key(modelID, tag.String(), env.String()), &v)
		return err
	})
	return v, found, err
}

// Environment is the state of an environment; the zero state with its name while nothing was
// ever promoted there.
func (db *DB) Environment(ctx context.Context, modelID string, env registry.EnvironmentName) (registry.EnvironmentState, error) {
	s := registry.EnvironmentState{Name: env}
	err := db.view(ctx, func(t tx) error {
		_, err := recall(t, &t.memos.environments, bucketEnvironments, key(modelID, env.String()), &s)
		return err
	})
	return s, err
}

// Environments are the states of all environments that ever held a version.
func (db *DB) Environments(ctx context.Context, modelID string) ([]registry.EnvironmentState, error) {
	return getAll[registry.EnvironmentState](ctx, db, bucketEnvironments, prefix(modelID))
}

// History is a page of an environment's changes, the oldest first.
func (db *DB) History(ctx context.Context, modelID string, env registry.EnvironmentName, at registry.Page) (items []registry.EnvironmentChange, next string, err error) {
	err = db.view(ctx, func(t tx) (err error) {
		items, next, err = page(t, bucketHistory, prefix(modelID, env.String()), at, func([]byte, *registry.EnvironmentChange) (bool, error) { return true, nil })
		return err
	})
	return items, next, err
}

// StateHistory are the changes of a version's state, the oldest first.
func (db *DB) StateHistory(ctx context.Context, modelID string, tag registry.Tag) ([]registry.StateChange, error) {
	return getAll[registry.StateChange](ctx, db, bucketStates, prefix(modelID, tag.String()))
}

// StateChangeByID is a change of the state of one of a model's versions.
func (db *DB) StateChangeByID(ctx context.Context, modelID, id string) (registry.StateChange, error) {
	return byID[registry.StateChange](ctx, db, bucketStates, modelID, id)
}

// Withdrawn is why a model gives a digest to no OCI client, or nil: only revoked versions name it.
func (db *DB) Withdrawn(ctx context.Context, modelID string, d digest.Digest) (change *registry.StateChange, err error) {
	err = db.view(ctx, func(t tx) error {
		var tag registry.Tag
		if found, err := t.get(bucketWithdrawn, key(modelID, d.String()), &tag); err != nil || !found {
			return err
		}
		var row registry.VersionRecord
		if _, err := t.get(bucketVersions, key(modelID, tag.String()), &row); err != nil {
			return err
		}
		change = row.Changed
		return nil
	})
	return change, err
}

// EnvironmentAt is the change by which an environment came to what it held at a time: the last one that was made by then. It is nil when
// there was none.
func (db *DB) EnvironmentAt(ctx context.Context, modelID string, env registry.EnvironmentName, at time.Time) (last *registry.EnvironmentChange, err error) {
	err = db.view(ctx, func(t tx) error {
		for r := range t.backward(bucketHistory, prefix(modelID, env.String()), nil) {
			var c registry.EnvironmentChange
			if err := r.decode(&c); err != nil {
				return err
			}
			if !c.At.After(at) {
				last = &c
				break
			}
		}
		return nil
	})
	return last, err
}

// Approvals are those given to a version for an environment.
func (db *DB) Approvals(ctx context.Context, modelID string, tag registry.Tag, env registry.EnvironmentName) ([]registry.Approval, error) {
	return getAll[registry.Approval](ctx, db, bucketApprovals, prefix(modelID, tag.String(), env.String()))
}

// EvaluationByID is an evaluation of a model.
func (db *DB) EvaluationByID(ctx context.Context, modelID, id string) (registry.Evaluation, error) {
	return byID[registry.Evaluation](ctx, db, bucketEvaluations, modelID, id)
}

// ChangeByID is a change of one of a model's environments.
func (db *DB) ChangeByID(ctx context.Context, modelID, id string) (registry.EnvironmentChange, error) {
	return byID[registry.EnvironmentChange](ctx, db, bucketHistory, modelID, id)
}

func byID[V any](ctx context.Context, db *DB, bucket, modelID, id string) (V, error) {
	var v V
	err := db.view(ctx, func(t tx) error {
		var at reference
		found, err := t.get(bucketIDs, key(modelID, id), &at)
		if err == nil && (!found || at.Bucket != bucket) {
			return fmt.Errorf("%s: %w", id, registry.ErrNotFound)
		}
		if err != nil {
			return err
		}
		_, err = t.get(bucket, at.Key, &v)
		return err
	})
	return v, err
}

// Events is a page of the events of models that id may read, with numbers above after, the
// oldest first.
func (db *DB) Events(ctx context.Context, id access.Identity, after uint64, limit int) ([]registry.Event, error) {
	events := []registry.Event{}
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketEvents, nil, key(ordered(after))) {
			if len(events) == (registry.Page{Limit: limit}).Bound() {
				return nil
			}
			var e registry.Event
			if err := r.decode(&e); err != nil {
				return err
			}
			readable, err := canReadEvent(t, id, e)
			if err != nil {
				return err
			}
			if readable {
				events = append(events, e)
			}
		}
		return nil
	})
	return events, err
}

// canReadEvent reports whether id may know of the event: it may read its model. The events of
// a model that is gone are an administrator's.
func canReadEvent(t tx, id access.Identity, e registry.Event) (bool, error) {
	var m registry.Model
	found, err := t.get(bucketModels, key(e.ModelID), &m)
	if err != nil || !found {
		return id.Role == access.Admin, err
	}
	return access.CanRead(id, &m), nil
}

// Deliveries is a page of the deliveries that f asks for of events of models that id may read, the
// newest first.
func (db *DB) Deliveries(ctx context.Context, id access.Identity, f registry.DeliveryFilter, at registry.Page) (items []registry.Delivery, next string, err error) {
	items = []registry.Delivery{}
	from, err := after(at, nil)
	if err != nil {
		return nil, "", err
	}
	err = db.view(ctx, func(t tx) error {
		var last []byte
		for r, err := range deliveryRows(t, f, from) {
			if err != nil {
				return err
			}
			d, err := delivery(t, r)
			if err != nil {
				return err
			}
			readable, err := canReadEvent(t, id, d.Event)
			if err != nil {
				return err
			}
			if !readable {
				continue
			}
			if len(items) == at.Bound() {
				next = base64.RawURLEncoding.EncodeToString(last)
				return nil
			}
			items, last = append(items, d), slices.Clone(r.key)
		}
		return nil
	})
	return items, next, err
}

// deliveryRows are the rows of the deliveries that f asks for, the newest first, beginning before the key from when that is given.
func deliveryRows(t tx, f registry.DeliveryFilter, from []byte) iter.Seq2[row, error] {
	toHook := func(r row) bool { return f.Hook == "" || string(r.key[9:]) == f.Hook }
	return func(yield func(row, error) bool) {
		if f.ModelID == "" {
			for r := range t.backward(bucketDeliveries, nil, from) {
				if toHook(r) && !yield(r, nil) {
					return
				}
			}
			return
		}
		p := prefix(f.ModelID)
		var before []byte
		if len(from) >= 8 {
			before = prefix(f.ModelID, string(from[:8])) // behind the event, which may have gone to more hooks
		}
		for sent := range t.backward(bucketSent, p, before) {
			var version string
			if err := sent.decode(&version); err != nil {
				yield(row{}, err)
				return
			}
			if !f.Version.IsZero() && version != f.Version.String() {
				continue
			}
			for r := range t.backward(bucketDeliveries, prefix(string(sent.key[len(p):])), nil) {
				if (from == nil || bytes.Compare(r.key, from) < 0) && toHook(r) && !yield(r, nil) {
					return
				}
			}
		}
	}
}

// delivery joins a row of the deliveries with its event.
func delivery(t tx, r row) (registry.Delivery, error) {
	var d deliveryRow
	if err := r.decode(&d); err != nil {
		return registry.Delivery{}, err
	}
	var e registry.Event
	if _, err := t.get(bucketEvents, r.key[:8], &e); err != nil {
		return registry.Delivery{}, err
	}
	sink := string(r.key[9:])
	if d.Attempts == nil {
		d.Attempts = []registry.Attempt{}
	}
	return registry.Delivery{ID: sink + "/" + e.ID, Sink: sink, Event: e, State: d.State, Attempts: d.Attempts, NextAt: d.NextAt}, nil
}

// Delivery is one event and one sink.
func (db *DB) Delivery(ctx context.Context, sink, eventID string) (registry.Delivery, error) {
	var d registry.Delivery
	err := db.view(ctx, func(t tx) error {
		missing := fmt.Errorf("delivery %s/%s: %w", sink, eventID, registry.ErrNotFound)
		var seq uint64
		if found, err := t.get(bucketEventIDs, key(eventID), &seq); err != nil {
			return err
		} else if !found {
			return missing
		}
		k := key(ordered(seq), sink)
		value := t.bolt.Bucket([]byte(bucketDeliveries)).Get(k)
		if value == nil {
			return missing
		}
		var err error
		d, err = delivery(t, row{bucketDeliveries, k, value})
		return err
	})
	return d, err
}

// Waiting are the events that a sink has not got, in their order, at most limit of them.
func (db *DB) Waiting(ctx context.Context, sink string, limit int) ([]registry.Delivery, error) {
	var waiting []registry.Delivery
	err := db.view(ctx, func(t tx) error {
		p := prefix(sink)
		for r := range t.scan(bucketOutbox, p, nil) {
			if len(waiting) == limit {
				return nil
			}
			var o outboxRow
			if err := r.decode(&o); err != nil {
				return err
			}
			var e registry.Event
			if _, err := t.get(bucketEvents, r.key[len(p):], &e); err != nil {
				return err
			}
			waiting = append(waiting, registry.Delivery{
				ID: sink + "/" + e.ID, Sink: sink, Event: e, NextAt: o.NextAt, Attempts: make([]registry.Attempt, o.Attempts),
			})
		}
		return nil
	})
	return waiting, err
}

// JournalID is the id of the journal that the index is a view of.
func (db *DB) JournalID(ctx context.Context) (string, error) {
	return get1[string](ctx, db, bucketMeta, key("journal"), "id of the journal")
}

// Counts are the totals of what is kept.
func (db *DB) Counts(ctx context.Context) (registry.Counts, error) {
	var counts registry.Counts
	err := db.view(ctx, func(t tx) error {
		if _, err := t.get(bucketMeta, key("counts"), &counts); err != nil {
			return err
		}
		// The events of each sink are in their order, so that its first is its oldest.
		cursor := t.bolt.Bucket([]byte(bucketOutbox)).Cursor()
		for k, v := cursor.First(); k != nil; {
			var o outboxRow
			if err := (row{bucketOutbox, k, v}).decode(&o); err != nil {
				return err
			}
			if counts.OldestWaiting.IsZero() || o.Since.Before(counts.OldestWaiting) {
				counts.OldestWaiting = o.Since
			}
			sink, _, _ := bytes.Cut(k, []byte{0})
			k, v = cursor.Seek(append(slices.Clone(sink), 1))
		}
		return nil
	})
	return counts, err
}

// Unmirrored are records that were not written into their model's repository yet, in order,
// at most limit of them.
func (db *DB) Unmirrored(ctx context.Context, limit int) ([]registry.Mark, error) {
	return db.UnmirroredAfter(ctx, registry.Mark{}, limit)
}

// UnmirroredAfter are those that follow another one, or from the first on when that is the zero mark.
func (db *DB) UnmirroredAfter(ctx context.Context, after registry.Mark, limit int) ([]registry.Mark, error) {
	var marks []registry.Mark
	var from []byte
	if after.ModelID != "" {
		from = key(after.ModelID, ordered(after.Seq), ordered(uint64(after.Place)))
	}
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketUnmirrored, nil, from) {
			if len(marks) == limit {
				return nil
			}
			n := len(r.key)
			if n < 18 {
				return fmt.Errorf("unmirrored %q: %w", r.key, ErrDamaged)
			}
			var u unmirroredRow
			if err := r.decode(&u); err != nil {
				return err
			}
			marks = append(marks, registry.Mark{
				ModelID: string(r.key[:n-18]),
				Seq:     binary.BigEndian.Uint64(r.key[n-17 : n-9]),
				Place:   int(binary.BigEndian.Uint64(r.key[n-8:])),
				At:      u.At,
				Record:  u.Record,

				Evaluated: u.Evaluated,
			})
		}
		return nil
	})
	return marks, err
}

// Mirrored takes marks away. It is not in the journal: after a rebuild the records are looked
// at again, and found to be there.
func (db *DB) Mirrored(marks []registry.Mark) error {
	return db.update(func(t tx) error {
		for _, m := range marks {
			if err := t.delete(bucketUnmirrored, key(m.ModelID, ordered(m.Seq), ordered(uint64(m.Place)))); err != nil {
				return err
			}
		}
		return nil
	})
}
