package lifecycle

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
)

// importNew takes over repositories that lie in the data directory and that the journal does
// not know: mirror clones of a model, of this or of another server. What their own record refs
// say becomes part of the journal, and nothing of it is announced again. Such a model is
// private until an administrator says otherwise.
func (s *Service) importNew(ctx context.Context) (imported []registry.Model, err error) {
	names, err := s.Repositories.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		_, err := s.Index.ModelByName(ctx, name)
		if err == nil {
			continue
		}
		if !errors.Is(err, registry.ErrNotFound) {
			return nil, err
		}
		if err := s.importModel(ctx, name); err != nil {
			s.Log.ErrorContext(ctx, "a repository that the journal does not know cannot be taken over", "model", name, "error", err.Error())
			continue
		}
		m, err := s.Index.ModelByName(ctx, name)
		switch {
		case err == nil:
			imported = append(imported, m)
		case !errors.Is(err, registry.ErrNotFound): // it was moved aside
			return nil, err
		}
	}
	return imported, nil
}

// setAside moves a repository away that stands in the place of a deleted model, if one does.
func (s *Service) setAside(ctx context.Context, name registry.ModelName) error {
	to, err := s.Repositories.SetAside(ctx, name)
	if err == nil && to != "" {
		s.Log.WarnContext(ctx, "a repository stood where a model was deleted; it is moved aside: delete it, or push its branches and tags to a new model",
			"model", name, "path", to)
	}
	return err
}

func (s *Service) importModel(ctx context.Context, name registry.ModelName) error {
	deleted, err := s.Index.Deleted(ctx, name)
	if err != nil {
		return err
	}
	if deleted {
		// What a crash left of a deletion, or what an operator brought back. Only a person can tell.
		return s.setAside(ctx, name)
	}
	repo, err := s.Repositories.Open(ctx, name)
	if err != nil {
		return err
	}
	i := importer{Service: s, repo: repo, decoder: registry.NewDecoder(), refs: map[string]registry.Ref{}}
	if err := i.read(ctx); err != nil {
		return err
	}
	if len(i.refs) == 0 {
		return nil // what a first push left that was refused, or did not end
	}
	// Nothing is recorded that a power cut could take back.
	if err := repo.Sync(ctx, nil); err != nil {
		return err
	}
	now := s.Now()
	if i.modelID == "" {
		i.modelID = Request{}.newID("", "")
	}
	switch original, err := s.Index.ModelByID(ctx, i.modelID); {
	case err == nil:
		return fmt.Errorf("it is a copy of %s, which is here; push its branches and tags to the new model instead", original.Name)
	case !errors.Is(err, registry.ErrNotFound):
		return err
	}
	if err := i.plainFiles(ctx); err != nil {
		return err
	}
	m := registry.Model{
		ID: i.modelID, Name: name, Visibility: registry.Private, CreatedAt: now, CreatedBy: access.System.Name, UpdatedAt: now,
	}
	vacated, done, err := s.vacate(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	records := []registry.Record{registry.ModelImported{ModelID: m.ID}, registry.ModelCreated{Model: m}}
	records = append(records, i.records...)
	records = append(records, i.announced()...)
	policy, err := i.policy(ctx)
	if err != nil {
		return err
	}
	records = append(append(records, policy...), vacated...)
	s.Log.InfoContext(ctx, "a repository was taken over; the model is private", "model", name, "records", len(i.records))
	if err := s.commit(ctx, registry.Group{At: now, Actor: access.System.Name, Records: records}); err != nil {
		return err
	}
	// The gates stand as they stood: that they are open is no news.
	gates := settlement{Service: s, m: m, budget: gate.NewBudget(nil, 1), group: registry.Group{At: s.Now(), Actor: access.System.Name}, quiet: true}
	var tags []registry.Tag
	for _, v := range i.found {
		tags = append(tags, v.Tag)
	}
	if _, err := gates.run(ctx, tags); err != nil || len(gates.group.Records) == 0 {
		return err
	}
	return s.commit(ctx, gates.group)
}

// importer reads the record refs of a repository.
type importer struct {
	*Service
	repo    Repository
	decoder *registry.Decoder
	refs    map[string]registry.Ref
	modelID string
	found   []registry.Version // that the records say were published
	records []registry.Record
}

func (i *importer) read(ctx context.Context) error {
	refs, err := i.repo.Refs(ctx)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		i.refs[ref.Name] = ref
	}
	if err := i.versions(ctx); err != nil {
		return err
	}
	for _, ref := range refs {
		if strings.HasPrefix(ref.Name, registry.EnvironmentsPrefix) {
			if err := i.environment(ctx, ref); err != nil {
				return fmt.Errorf("%s: %w", ref.Name, err)
			}
		}
	}
	return i.evaluations(ctx)
}

// announced are the refs that nothing has to be said of any more: the tags of published versions as
// their records have them, and all others as they are, but for version tags that no record knows.
// Those the next reconciliation publishes; and it puts a tag back that is not what its record says.
func (i *importer) announced() []registry.Record {
	var moved []registry.Record
	add := func(name string, id registry.ObjectID) {
		moved = append(moved, registry.RefMoved{ModelID: i.modelID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: name, New: id}})
	}
	for name, ref := range i.refs {
		if _, isVersion := registry.VersionOf(name); !isVersion && !registry.ServerOwned(name) {
			add(name, ref.ID)
		}
	}
	for _, v := range i.found {
		add(registry.TagRef(v.Tag), tagged(v))
	}
	slices.SortFunc(moved, func(a, b registry.Record) int {
		return compareText(a.(registry.RefMoved).Ref, b.(registry.RefMoved).Ref)
	})
	return moved
}

// policy takes over the default branch and what it says.
func (i *importer) policy(ctx context.Context) ([]registry.Record, error) {
	branch, err := i.repo.HEAD()
	if err != nil {
		return nil, err
	}
	head, ok := i.refs[registry.BranchRef(branch)]
	if !ok {
		return nil, nil // the next reconciliation chooses one
	}
	policy, err := i.readPolicy(ctx, i.repo, head.ID)
	return []registry.Record{
		registry.DefaultBranchSet{ModelID: i.modelID, Branch: branch},
		registry.PolicySet{ModelID: i.modelID, Policy: policy},
	}, err
}

// Limits of what is read of a record ref.
const (
	maxRecordBytes = 64 << 20
	maxRecords     = 1_000_000
)

// decode reads one record and keeps it, with the id of the model that it was made for.
func (i *importer) decode(data []byte) (registry.Record, error) {
	var encoded registry.EncodedRecord
	if err := json.Unmarshal(data, &encoded); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	record, err := i.decoder.DecodeRecord(encoded)
	if err != nil {
		return nil, err
	}
	var of struct {
		ModelID string `json:"model_id"`
	}
	if err := json.Unmarshal(encoded.Data, &of); err != nil {
		return nil, err
	}
	if i.modelID == "" {
		i.modelID = of.ModelID
	}
	if of.ModelID != i.modelID {
		return nil, fmt.Errorf("records of two models: %s and %s", i.modelID, of.ModelID)
	}
	i.records = append(i.records, record)
	return record, nil
}

// misplaced reports a record that does not belong where it stands. Whoever made the repository could
// have put any record there.
func misplaced(r registry.Record) error {
	encoded, err := registry.EncodeRecord(r)
	if err != nil {
		return err
	}
	return fmt.Errorf("a record of type %s does not belong there", encoded.Type)
}

// plainFiles puts the files of the versions that are plain Git blobs into the store, unless they are
// there. Those of Git LFS come with the blobs or are uploaded again.
func (i *importer) plainFiles(ctx context.Context) error {
	for _, v := range i.found {
		want := map[string]registry.File{}
		for _, f := range v.Files {
			if content, err := i.Blobs.Get(ctx, f.Digest); err == nil {
				content.Close()
			} else if !f.LFS {
				want[f.Path] = f
			}
		}
		if len(want) == 0 {
			continue
		}
		entries, err := i.files(ctx, v.Commit)
		if err != nil {
			return fmt.Errorf("files of %s: %w", v.Tag, err)
		}
		for _, entry := range entries {
			f, ok := want[entry.Path]
			if !ok {
				continue
			}
			content, _, err := i.repo.OpenBlob(ctx, entry.ID)
			if err != nil {
				return err
			}
			info, err := i.Blobs.Put(ctx, content)
			content.Close()
			if err == nil && info.Digest != f.Digest {
				err = errors.New("it is something else than the record says")
			}
			if err != nil {
				return fmt.Errorf("%s of %s: %w", f.Path, v.Tag, err)
			}
		}
	}
	return nil
}

func (i *importer) files(ctx context.Context, commit registry.ObjectID) ([]registry.TreeEntry, error) {
	var files []registry.TreeEntry
	for f, err := range i.repo.Files(ctx, commit) {
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// versions reads what was published, with the bytes of the documents.
func (i *importer) versions(ctx context.Context) error {
	tip, ok := i.refs[registry.VersionsRef]
	if !ok {
		return nil
	}
	files, err := i.files(ctx, tip.ID)
	if err != nil {
		return err
	}
	var states []registry.VersionStateSet
	// The record of a version sorts behind that of its image, which needs it.
	slices.SortFunc(files, func(a, b registry.TreeEntry) int { return compareText(b.Path, a.Path) })
	for _, f := range files {
		data, err := i.repo.ReadFile(ctx, tip.ID, f.Path, maxRecordBytes)
		if err != nil {
			return err
		}
		parts := strings.Split(f.Path, "/")
		if len(parts) == 3 && parts[1] == documentsDir {
			info, err := i.Blobs.Put(ctx, bytes.NewReader(data))
			if err == nil && info.Digest != digest.NewDigestFromEncoded(digest.SHA256, parts[2]) {
				err = fmt.Errorf("%s holds something else than its name says", f.Path)
			}
			if err != nil {
				return err
			}
			continue
		}
		record, err := i.decode(data)
		switch r := record.(type) {
		case registry.VersionPublished:
			i.found = append(i.found, r.Version)
		case registry.VersionStateSet:
			states = append(states, r)
			i.records = i.records[:len(i.records)-1] // behind the versions, in their order
		case registry.ImageBuilt:
		default:
			if err == nil {
				err = misplaced(r)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	slices.SortStableFunc(states, func(a, b registry.VersionStateSet) int { return a.Change.At.Compare(b.Change.At) })
	for _, r := range states {
		i.records = append(i.records, r)
	}
	return nil
}

// environment reads the history of an environment, which is one commit a record.
func (i *importer) environment(ctx context.Context, ref registry.Ref) error {
	var commits []registry.ObjectID
	for id := ref.ID; id != ""; {
		c, err := i.repo.Commit(ctx, id)
		if err != nil {
			return err
		}
		if commits = append(commits, id); len(commits) > maxRecords {
			return fmt.Errorf("more than %d records: %w", maxRecords, registry.ErrTooLarge)
		}
		id = ""
		if len(c.Parents) > 0 {
			id = c.Parents[0]
		}
	}
	for _, id := range slices.Backward(commits) {
		data, err := i.repo.ReadFile(ctx, id, recordName, maxRecordBytes)
		if err != nil {
			return err
		}
		record, err := i.decode(data)
		if err != nil {
			return err
		}
		var of registry.EnvironmentName
		switch r := record.(type) {
		case registry.EnvironmentChanged:
			of = r.Change.Environment
		case registry.ApprovalGiven:
			of = r.Approval.Environment
		case registry.EnvironmentFrozen:
			of = r.Freeze.Environment
		}
		if registry.EnvironmentsPrefix+of.String() != ref.Name {
			return misplaced(record)
		}
	}
	return nil
}

// evaluations reads the archive and the notes, whose path is the commit's name, perhaps with slashes. Those of one commit keep their order, by
// which they are numbered; those of several are taken in the order of time.
func (i *importer) evaluations(ctx context.Context) error {
	if i.modelID == "" {
		i.modelID = Request{}.newID("", "")
	}
	type timed struct {
		registry.Evaluation
		at time.Time // the latest of the commit up to here
	}
	var all []timed
	latest, seen := map[registry.ObjectID]time.Time{}, map[string]bool{}
	for _, ref := range []string{registry.EvaluationsRef, registry.EvaluationNotesRef} {
		tip, ok := i.refs[ref]
		if !ok {
			continue
		}
		files, err := i.files(ctx, tip.ID)
		if err != nil {
			return err
		}
		slices.SortFunc(files, func(a, b registry.TreeEntry) int { return compareText(a.Path, b.Path) })
		for _, f := range files {
			err := i.evaluationLines(ctx, tip.ID, f.Path, func(e registry.Evaluation) {
				if seen[e.ID] { // a clone may have got the notes of before the archive
					return
				}
				seen[e.ID] = true
				if at := latest[e.Commit]; e.RecordedAt.After(at) {
					latest[e.Commit] = e.RecordedAt
				}
				all = append(all, timed{e, latest[e.Commit]})
			})
			if err != nil {
				return err
			}
			if len(all) > maxRecords {
				return fmt.Errorf("%s has more than %d evaluations: %w", ref, maxRecords, registry.ErrTooLarge)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b timed) int { return a.at.Compare(b.at) })
	for _, e := range all {
		i.records = append(i.records, registry.EvaluationRecorded{ModelID: i.modelID, Evaluation: e.Evaluation})
	}
	return nil
}

// evaluationLines gives the evaluations of a file, one JSON object a line.
func (i *importer) evaluationLines(ctx context.Context, commit registry.ObjectID, path string, give func(registry.Evaluation)) error {
	data, err := i.repo.ReadFile(ctx, commit, path, maxRecordBytes)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxRecordBytes)
	for lines.Scan() {
		var e registry.Evaluation
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("note of %s: %w", path, err)
		}
		give(e)
	}
	return lines.Err()
}
