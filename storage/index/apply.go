package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

type tombstone struct {
	Model     registry.Model `json:"model"`
	DeletedAt time.Time      `json:"deleted_at"`
	DeletedBy string         `json:"deleted_by"`
	Tags      []registry.Tag `json:"tags,omitempty"`
}

// outboxRow is an event that a sink has not got yet.
type outboxRow struct {
	Attempts int       `json:"attempts"`
	NextAt   time.Time `json:"next_at,omitzero"`
	Since    time.Time `json:"since"`
}

// deliveryRow is the history of an event and a sink.
type deliveryRow struct {
	State    registry.Outcome   `json:"state,omitempty"`
	Attempts []registry.Attempt `json:"attempts,omitempty"`
	NextAt   time.Time          `json:"next_at,omitzero"`
}

// maxAttemptsKept bounds the history of one delivery.
const maxAttemptsKept = 50

// apply adds one group. It reads no clock and nothing outside of the transaction, so that a
// rebuild ends in the same state.
func apply(t tx, e Entry) error {
	for i, record := range e.Group.Records {
		if err := applyRecord(t, e, i, record); err != nil {
			return fmt.Errorf("record %d (%T): %w", i, record, err)
		}
	}
	return nil
}

func applyRecord(t tx, e Entry, place int, record registry.Record) error {
	g := e.Group
	switch r := record.(type) {
	case registry.JournalStarted:
		return t.put(bucketMeta, key("journal"), r.ID)
	case registry.ModelImported:
		return nil // says something about the other records of its group
	case registry.ModelCreated:
		t.counts.Models++
		if err := t.put(bucketNames, key(r.Model.Name.String()), r.Model.ID); err != nil {
			return err
		}
		if err := t.put(bucketModels, key(r.Model.ID), r.Model); err != nil {
			return err
		}
		return t.searchModel(r.Model.ID)
	case registry.ModelChanged:
		var before registry.Model
		found, err := t.get(bucketModels, key(r.ModelID), &before)
		if err != nil {
			return err
		}
		if found && (before.Visibility == registry.Public) != (r.Visibility == registry.Public) {
			if err := restateKin(t, before); err != nil {
				return err
			}
		}
		err = changeModel(t, r.ModelID, func(m *registry.Model) {
			m.Description, m.Visibility, m.Protected, m.UpdatedAt = r.Description, r.Visibility, r.Protected, g.At
		})
		if err != nil {
			return err
		}
		return t.searchModel(r.ModelID)
	case registry.DefaultBranchSet:
		return changeModel(t, r.ModelID, func(m *registry.Model) { m.DefaultBranch = r.Branch })
	case registry.ModelDeleted:
		return deleteModel(t, r.ModelID, g)
	case registry.PushStarted:
		return t.put(bucketIntents, key(r.ModelID, r.PushID), registry.PushIntent{PushStarted: r, Actor: g.Actor, At: g.At})
	case registry.PushFinished:
		return t.delete(bucketIntents, key(r.ModelID, r.PushID))
	case registry.RefMoved:
		if err := touch(t, r.ModelID, g.At); err != nil {
			return err
		}
		return t.put(bucketRefs, key(r.ModelID, r.Ref), registry.AnnouncedRef{ID: r.New, Generation: r.Generation})
	case registry.BlobsLinked:
		// An upload may end after its model is gone. Nobody would ever let go of what it brings.
		if name, err := ownerName(t, r.ModelID); err != nil || name == "" {
			return err
		}
		for _, b := range r.Blobs {
			if err := own(t, r.ModelID, b.Digest.String(), b.SizeBytes); err != nil {
				return err
			}
			if err := putAlias(t, r.ModelID, b.Alias, b.Digest); err != nil {
				return err
			}
		}
		return nil
	case registry.BlobsUnlinked:
		for _, d := range r.Digests {
			if err := disown(t, r.ModelID, d.String()); err != nil {
				return err
			}
		}
		return errors.Join(dropAliases(t, r.ModelID, r.Digests...), dropLayers(t, r.ModelID, r.Digests...))
	case registry.LayerLinked:
		return layerLinked(t, r)
	case registry.RepositoryCreated:
		if err := t.put(bucketRepoNames, key(r.Repository.Name), r.Repository.ID); err != nil {
			return err
		}
		return t.put(bucketRepositories, key(r.Repository.ID), r.Repository)
	case registry.RepositoryDeleted:
		return deleteRepository(t, r.RepositoryID)
	case registry.ManifestPushed:
		return manifestPushed(t, r)
	case registry.ManifestDeleted:
		return deleteManifest(t, r.Repository, r.Digest)
	case registry.TagDeleted:
		return t.delete(bucketTags, key(r.Repository, r.Tag))
	case registry.VersionPublished:
		return publish(t, r, e, place)
	case registry.ImageBuilt:
		return imageBuilt(t, r, e, place)
	case registry.VersionAttested:
		return attested(t, r)
	case registry.EvaluationRecorded:
		return evaluated(t, r, e, place)
	case registry.PolicySet:
		return t.put(bucketPolicies, key(r.ModelID), r.Policy)
	case registry.GateMoved:
		if r.Verdict.Open {
			t.counts.GatesOpened++
		} else {
			t.counts.GatesClosed++
		}
		return t.put(bucketGates, key(r.ModelID, r.Tag.String(), r.Verdict.Environment.String()), r.Verdict)
	case registry.PromotionRefused:
		t.counts.Refused++
		k, err := t.numbered(bucketRefused, r.ModelID)
		if err != nil {
			return err
		}
		return t.put(bucketRefused, k, registry.Refusal{Tag: r.Tag, Verdict: r.Verdict, Reason: r.Reason, Actor: g.Actor, At: g.At})
	case registry.EnvironmentChanged:
		return environmentChanged(t, r, e, place)
	case registry.ApprovalGiven:
		a := r.Approval
		if err := t.put(bucketApprovals, key(r.ModelID, a.Version.String(), a.Environment.String(), a.By), a); err != nil {
			return err
		}
		return unmirrored(t, r.ModelID, e, place)
	case registry.VersionStateSet:
		return stateSet(t, r, e, place)
	case registry.EnvironmentFrozen:
		return frozen(t, r, e, place)
	case registry.EdgesAdded:
		return declareEdges(t, r)
	case registry.EventAnnounced:
		return announce(t, r.Event, e.encoded(place).Fields("event")[0])
	case registry.DeliveryTried:
		return tried(t, r.Attempt)
	case registry.TokenCreated:
		if err := t.put(bucketTokenIDs, key(r.Token.ID), r.Token.Hash); err != nil {
			return err
		}
		return t.put(bucketTokens, key(r.Token.Hash), r.Token)
	case registry.TokenRevoked:
		var hash string
		if found, err := t.get(bucketTokenIDs, key(r.TokenID), &hash); err != nil || !found {
			return err
		}
		var token registry.Token
		if found, err := t.get(bucketTokens, key(hash), &token); err != nil || !found || token.ID != r.TokenID {
			return err
		}
		return t.delete(bucketTokens, key(hash))
	case registry.LockCreated:
		return lockFile(t, r)
	case registry.LockRemoved:
		return unlockFile(t, r.ModelID, r.LockID)
	}
	return fmt.Errorf("no rule to apply a %T", record)
}

func changeModel(t tx, id string, change func(*registry.Model)) error {
	var m registry.Model
	found, err := t.get(bucketModels, key(id), &m)
	if err != nil || !found {
		return err // a record about a model that is gone says nothing any more
	}
	change(&m)
	return t.put(bucketModels, key(id), m)
}

func touch(t tx, id string, at time.Time) error {
	return changeModel(t, id, func(m *registry.Model) { m.UpdatedAt = at })
}

// deleteModel removes all that is kept under the model's id and leaves a tombstone, so that
// its tags are never used again. Events stay.
func deleteModel(t tx, id string, g registry.Group) error {
	var m registry.Model
	found, err := t.get(bucketModels, key(id), &m)
	if err != nil || !found {
		return err
	}
	if err := restateKin(t, m); err != nil {
		return err
	}
	grave := tombstone{Model: m, DeletedAt: g.At, DeletedBy: g.Actor}
	rows, err := all[registry.VersionRecord](t, bucketVersions, prefix(id))
	if err != nil {
		return err
	}
	t.counts.Models--
	t.counts.Versions -= int64(len(rows))
	for range t.scan(bucketEvaluations, prefix(id), nil) {
		t.counts.Evaluations--
	}
	for _, row := range rows {
		grave.Tags = append(grave.Tags, row.Version.Tag)
	}
	if err := deleteLineage(t, m, grave.Tags); err != nil {
		return err
	}
	if err := t.unsearch(id, rows); err != nil {
		return err
	}
	if err := t.put(bucketTombstones, key(m.Name.String(), id), grave); err != nil {
		return err
	}
	if err := disownAll(t, id); err != nil {
		return err
	}
	for _, bucket := range []string{
		bucketRefs, bucketIntents, bucketVersions, bucketCommits, bucketManifests, bucketTags,
		bucketReferrers, bucketLayers, bucketEvaluations, bucketGates, bucketRefused, bucketEnvironments,
		bucketHistory, bucketApprovals, bucketIDs, bucketUnmirrored, bucketLocks, bucketLockPaths, bucketAliases,
		bucketStates, bucketWithdrawn, bucketUnattested,
	} {
		for _, owner := range []string{id, registry.ImageRepository(id)} {
			if err := t.deletePrefix(bucket, prefix(owner)); err != nil {
				return err
			}
		}
	}
	if err := t.delete(bucketPolicies, key(id)); err != nil {
		return err
	}
	if err := t.delete(bucketNames, key(m.Name.String())); err != nil {
		return err
	}
	return t.delete(bucketModels, key(id))
}

func publish(t tx, r registry.VersionPublished, e Entry, place int) error {
	v := r.Version
	t.counts.Versions++
	text := e.encoded(place).Fields("version", "manifest")
	row := registry.VersionRecord{ModelID: r.ModelID, Version: v, State: registry.Published, Image: registry.ImageStatus{State: registry.ImageBuilding}}
	if err := t.put(bucketVersions, key(r.ModelID, v.Tag.String()), versionText{row, text[0]}); err != nil {
		return err
	}
	if err := t.put(bucketCommits, key(r.ModelID, string(v.Commit), v.Tag.String()), nil); err != nil {
		return err
	}
	usage, err := take(t, r.ModelID, v.Config.Digest.String(), v.Config.SizeBytes)
	if err != nil {
		return err
	}
	for _, f := range v.Files {
		change, err := take(t, r.ModelID, f.Digest.String(), f.SizeBytes)
		if err != nil {
			return err
		}
		usage.Blobs += change.Blobs
		usage.LogicalBytes += change.LogicalBytes
	}
	if usage != (registry.Usage{}) {
		if err := addUsage(t, r.ModelID, usage); err != nil {
			return err
		}
	}
	if err := putManifest(t, r.ModelID, r.Manifest, text[1]); err != nil {
		return err
	}
	if err := t.put(bucketTags, key(r.ModelID, v.Tag.String()), v.Artifact.Digest); err != nil {
		return err
	}
	if _, err := t.nodePublished(r.ModelID, v); err != nil {
		return err
	}
	if err := addEdges(t, r.ModelID, r.Edges); err != nil {
		return err
	}
	before, err := all[registry.Evaluation](t, bucketEvaluations, prefix(r.ModelID, string(v.Commit)))
	if err != nil {
		return err
	}
	for _, e := range before {
		if err := addEdges(t, r.ModelID, evaluatedWith(r.ModelID, v.Tag, e)); err != nil {
			return err
		}
	}
	if err := t.searchPublished(r.ModelID, v, before); err != nil {
		return err
	}
	named := []digest.Digest{r.Manifest.Digest, v.Config.Digest}
	for _, f := range v.Files {
		named = append(named, f.Digest)
	}
	if err := bringBack(t, r.ModelID, v.Commit, named); err != nil {
		return err
	}
	return unmirrored(t, r.ModelID, e, place)
}

// bringBack lets everybody have again what only revoked versions named, because one of another commit does now.
func bringBack(t tx, modelID string, commit registry.ObjectID, named []digest.Digest) error {
	if !t.hasPrefix(bucketWithdrawn, prefix(modelID)) {
		return nil // as nearly always
	}
	p := prefix(modelID, string(commit))
	for r := range t.scan(bucketCommits, p, nil) {
		var twin registry.VersionRecord
		if _, err := t.get(bucketVersions, key(modelID, string(r.key[len(p):])), &twin); err != nil {
			return err
		}
		if twin.State == registry.Revoked {
			return nil
		}
	}
	for _, d := range named {
		if err := t.delete(bucketWithdrawn, key(modelID, d.String())); err != nil {
			return err
		}
	}
	return nil
}

func stateSet(t tx, r registry.VersionStateSet, e Entry, place int) error {
	c := r.Change
	var row registry.VersionRecord
	k := key(r.ModelID, c.Version.String())
	found, err := t.get(bucketVersions, k, &row)
	if err != nil || !found {
		return err
	}
	row.State, row.Changed = c.State, &c
	if err := t.put(bucketVersions, k, row); err != nil {
		return err
	}
	if err := t.nodeState(r.ModelID, c.Version, c.State); err != nil {
		return err
	}
	if err := t.searchState(r.ModelID, c.Version, c.State); err != nil {
		return err
	}
	entry, err := t.numbered(bucketStates, r.ModelID, c.Version.String())
	if err != nil {
		return err
	}
	if err := t.put(bucketStates, entry, c); err != nil {
		return err
	}
	if err := t.put(bucketIDs, key(r.ModelID, c.ID), reference{bucketStates, entry}); err != nil {
		return err
	}
	for _, d := range r.Withdrawn {
		if err := t.put(bucketWithdrawn, key(r.ModelID, d.String()), c.Version); err != nil {
			return err
		}
	}
	if err := touch(t, r.ModelID, c.At); err != nil {
		return err
	}
	return unmirrored(t, r.ModelID, e, place)
}

func frozen(t tx, r registry.EnvironmentFrozen, e Entry, place int) error {
	state := registry.EnvironmentState{Name: r.Freeze.Environment}
	k := key(r.ModelID, r.Freeze.Environment.String())
	if _, err := t.get(bucketEnvironments, k, &state); err != nil {
		return err
	}
	if state.Freeze = nil; r.Freeze.Frozen {
		state.Freeze = &r.Freeze
	}
	if err := t.put(bucketEnvironments, k, state); err != nil {
		return err
	}
	if err := touch(t, r.ModelID, r.Freeze.At); err != nil {
		return err
	}
	return unmirrored(t, r.ModelID, e, place)
}

// digestsOf an image are all that a client asks for.
func digestsOf(r registry.ImageBuilt) []digest.Digest {
	var all []digest.Digest
	for _, m := range r.Manifests {
		all = append(all, m.Digest)
	}
	for _, b := range r.Blobs {
		all = append(all, b.Digest)
	}
	for _, l := range r.Layers {
		all = append(all, l.Digest)
	}
	return all
}

// putManifest keeps a manifest. Its text is what it is encoded as, if that is known.
func putManifest(t tx, repository string, m registry.StoredManifest, text json.RawMessage) error {
	if m.Subject != "" {
		if err := t.put(bucketReferrers, key(repository, m.Subject.String(), m.Digest.String()), nil); err != nil {
			return err
		}
	}
	if text != nil {
		return t.put(bucketManifests, key(repository, m.Digest.String()), text)
	}
	return t.put(bucketManifests, key(repository, m.Digest.String()), m)
}

func imageBuilt(t tx, r registry.ImageBuilt, e Entry, place int) error {
	var row registry.VersionRecord
	found, err := t.get(bucketVersions, key(r.ModelID, r.Tag.String()), &row)
	if err != nil || !found {
		return err
	}
	if err := t.searchImage(r.ModelID, r.Tag, row.Image.Digest, r.Status.Digest); err != nil {
		return err
	}
	row.Image = r.Status
	if err := t.put(bucketVersions, key(r.ModelID, r.Tag.String()), row); err != nil {
		return err
	}
	// The artifact's repository holds the image too, untagged: whoever copies an artifact with
	// its referrers gets all of it from one place.
	repository := registry.ImageRepository(r.ModelID)
	for _, m := range r.Manifests {
		for _, in := range []string{repository, r.ModelID} {
			if err := putManifest(t, in, m, nil); err != nil {
				return err
			}
		}
	}
	for _, b := range r.Blobs {
		if err := own(t, r.ModelID, b.Digest.String(), b.SizeBytes); err != nil {
			return err
		}
	}
	for _, layer := range r.Layers {
		if err := t.put(bucketLayers, key(r.ModelID, layer.Digest.String()), layer); err != nil {
			return err
		}
	}
	if err := bringBack(t, r.ModelID, row.Version.Commit, digestsOf(r)); err != nil {
		return err
	}
	if r.Status.State != registry.ImageReady {
		return nil
	}
	if err := unmirrored(t, r.ModelID, e, place); err != nil {
		return err
	}
	if err := t.put(bucketTags, key(repository, r.Tag.String()), r.Status.Digest); err != nil {
		return err
	}
	// An environment that holds the version already gets its tag now.
	states, err := all[registry.EnvironmentState](t, bucketEnvironments, prefix(r.ModelID))
	if err != nil {
		return err
	}
	for _, s := range states {
		if s.Version() == r.Tag {
			if err := t.put(bucketTags, key(repository, s.Name.String()), r.Status.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

func evaluated(t tx, r registry.EvaluationRecorded, e Entry, place int) error {
	t.counts.Evaluations++
	k, err := t.numbered(bucketEvaluations, r.ModelID, string(r.Evaluation.Commit))
	if err != nil {
		return err
	}
	if err := t.put(bucketEvaluations, k, r.Evaluation); err != nil {
		return err
	}
	if err := t.put(bucketIDs, key(r.ModelID, r.Evaluation.ID), reference{bucketEvaluations, k}); err != nil {
		return err
	}
	if err := touch(t, r.ModelID, e.Group.At); err != nil {
		return err
	}
	p := prefix(r.ModelID, string(r.Evaluation.Commit))
	for row := range t.scan(bucketCommits, p, nil) {
		if err := row.check(); err != nil {
			return err
		}
		tag, err := registry.ParseTag(string(row.key[len(p):]))
		if err != nil {
			return err
		}
		if err := unattested(t, r.ModelID, tag); err != nil {
			return err
		}
		if err := addEdges(t, r.ModelID, evaluatedWith(r.ModelID, tag, r.Evaluation)); err != nil {
			return err
		}
		if err := t.searchEvaluated(r.ModelID, tag.String(), r.Evaluation); err != nil {
			return err
		}
	}
	if fromMirror(e) {
		return nil
	}
	// The note is made from all evaluations of the commit.
	return t.put(bucketUnmirrored, key(r.ModelID, ordered(e.Seq), ordered(uint64(place))), unmirroredRow{At: e.Group.At, Evaluated: r.Evaluation.Commit})
}

// evaluatedWith are the edges of an evaluation of a version.
func evaluatedWith(modelID string, tag registry.Tag, e registry.Evaluation) []registry.LineageEdge {
	if e.Dataset.Name == "" {
		return nil
	}
	return []registry.LineageEdge{{From: registry.VersionNodeID(modelID, tag), To: registry.DatasetNodeID(e.Dataset.Name), Kind: registry.EvaluatedWith}}
}

func environmentChanged(t tx, r registry.EnvironmentChanged, e Entry, place int) error {
	c := r.Change
	state := registry.EnvironmentState{Name: c.Environment}
	k := key(r.ModelID, c.Environment.String())
	if _, err := t.get(bucketEnvironments, k, &state); err != nil {
		return err
	}
	state.Apply(c)
	if err := t.put(bucketEnvironments, k, state); err != nil {
		return err
	}
	if err := t.searchMoved(r.ModelID, c.Environment, c.Version); err != nil {
		return err
	}
	historyKey, err := t.numbered(bucketHistory, r.ModelID, c.Environment.String())
	if err != nil {
		return err
	}
	if err := t.put(bucketHistory, historyKey, c); err != nil {
		return err
	}
	if err := t.put(bucketIDs, key(r.ModelID, c.ID), reference{bucketHistory, historyKey}); err != nil {
		return err
	}
	if err := moveTags(t, r.ModelID, c); err != nil {
		return err
	}
	if err := touch(t, r.ModelID, c.At); err != nil {
		return err
	}
	return unmirrored(t, r.ModelID, e, place)
}

// moveTags points the environment's tag in both artifact repositories at the version. While
// its image is not ready the image's tag is taken away: it must never name another version
// than the artifact's does.
func moveTags(t tx, modelID string, c registry.EnvironmentChange) error {
	if err := t.put(bucketTags, key(modelID, c.Environment.String()), c.Artifact); err != nil {
		return err
	}
	repository := registry.ImageRepository(modelID)
	var image digest.Digest
	found, err := t.get(bucketTags, key(repository, c.Version.String()), &image)
	if err != nil {
		return err
	}
	if !found {
		return t.delete(bucketTags, key(repository, c.Environment.String()))
	}
	return t.put(bucketTags, key(repository, c.Environment.String()), image)
}

// announce stores an event once: the same id again is the same event. Text is what it is encoded as, if that is known.
func announce(t tx, event registry.Event, text json.RawMessage) error {
	if t.has(bucketEventIDs, key(event.ID)) {
		return nil
	}
	seq, err := t.next(bucketEvents)
	if err != nil {
		return err
	}
	event.Seq = seq
	if err := t.put(bucketEvents, key(ordered(seq)), eventText{event, text}); err != nil {
		return err
	}
	t.counts.Waiting += int64(len(event.Sinks))
	if len(event.Sinks) > 0 {
		if err := t.put(bucketSent, key(event.ModelID, ordered(seq)), event.Version.String()); err != nil {
			return err
		}
	}
	for _, sink := range event.Sinks {
		if err := t.put(bucketOutbox, key(sink, ordered(seq)), outboxRow{Since: event.At}); err != nil {
			return err
		}
		if err := t.put(bucketDeliveries, key(ordered(seq), sink), deliveryRow{}); err != nil {
			return err
		}
	}
	return t.put(bucketEventIDs, key(event.ID), seq)
}

func tried(t tx, a registry.Attempt) error {
	var seq uint64
	found, err := t.get(bucketEventIDs, key(a.EventID), &seq)
	if err != nil || !found {
		return err
	}
	var event registry.Event
	if _, err := t.get(bucketEvents, key(ordered(seq)), &event); err != nil {
		return err
	}
	k := key(ordered(seq), a.Sink)
	var d deliveryRow
	if _, err := t.get(bucketDeliveries, k, &d); err != nil {
		return err
	}
	d.State, d.NextAt = a.Outcome, a.NextAt
	d.Attempts = append(d.Attempts, a)
	d.Attempts = d.Attempts[max(0, len(d.Attempts)-maxAttemptsKept):]
	if err := t.put(bucketDeliveries, k, d); err != nil {
		return err
	}
	waiting := key(a.Sink, ordered(seq))
	if t.has(bucketOutbox, waiting) {
		t.counts.Waiting--
	}
	if a.Outcome == registry.Delivered || a.Outcome == registry.Dead {
		return t.delete(bucketOutbox, waiting)
	}
	attempts := a.Number
	if a.Outcome == registry.Requeued {
		attempts = 0
	}
	t.counts.Waiting++
	return t.put(bucketOutbox, waiting, outboxRow{Attempts: attempts, NextAt: a.NextAt, Since: event.At})
}

// unmirroredRow is a record that has to be written into the model's own repository.
type unmirroredRow struct {
	At        time.Time              `json:"at"`
	Record    registry.EncodedRecord `json:"record,omitzero"`
	Evaluated registry.ObjectID      `json:"evaluated,omitempty"` // commit of an evaluation, in place of its record
}

// unmirrored keeps a record until it stands in the model's own repository.
func unmirrored(t tx, modelID string, e Entry, place int) error {
	if fromMirror(e) {
		return nil
	}
	if place < len(e.Encoded) {
		return t.put(bucketUnmirrored, key(modelID, ordered(e.Seq), ordered(uint64(place))), unmirroredRow{At: e.Group.At, Record: e.Encoded[place]})
	}
	encoded, err := registry.EncodeRecord(e.Group.Records[place])
	if err != nil {
		return err
	}
	return t.put(bucketUnmirrored, key(modelID, ordered(e.Seq), ordered(uint64(place))), unmirroredRow{At: e.Group.At, Record: encoded})
}

// fromMirror reports whether the records of a group come from the model's own repository.
func fromMirror(e Entry) bool {
	_, imported := e.Group.Records[0].(registry.ModelImported)
	return imported
}

// reference is where the thing with an id is kept.
type reference struct {
	Bucket string `json:"bucket"`
	Key    []byte `json:"key"`
}
