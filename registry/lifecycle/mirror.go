package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// Records that concern a model are written into its own repository too, so that a mirror clone
// carries all of them along; see [Service.importModel]. Each commit says in its last line up to
// which record of which journal its ref goes: "Herdbook-Seq: SEQ.PLACE JOURNAL". A record is
// written once, however often it is looked at.
const seqTrailer = "Herdbook-Seq: "

// The files of the record refs. Each holds one record of the journal, {"type": ..., "data": ...},
// or the bytes of a published document.
//
//	refs/herdbook/versions             TAG/record.json, TAG/image.json, TAG/states/ID.json, TAG/documents/HEX of a sha256
//	refs/herdbook/environments/NAME    record.json: one commit a record
//	refs/notes/evaluations             registry.Evaluation as JSON, one a line: the newest of the commit
//	refs/herdbook/evaluations          COMMIT/NUMBER.jsonl: those before them, archiveLen in each file, which never changes
const (
	recordName   = "record.json"
	imageName    = "image.json"
	documentsDir = "documents"
	statesDir    = "states"
)

// maxMirrored bounds the records that are written at once.
const maxMirrored = 1000

// A note is written anew when an evaluation is added, so that the number of those in it bounds what one more costs: the oldest move to a
// file of their own when there are more than maxNotes. What stands where follows from the number of evaluations alone.
const (
	maxNotes   = 128 // evaluations in the note of one commit
	archiveLen = 64  // evaluations in a file of the archive
)

// archivedOf is the number of files in the archive of a commit that has some evaluations.
func archivedOf(total int) int { return (max(total-maxNotes, 0) + archiveLen - 1) / archiveLen }

// archivePath is the file with the evaluations of a commit from the one with the number place*archiveLen + 1 on.
func archivePath(commit registry.ObjectID, place int) string {
	return fmt.Sprintf("%s/%010d.jsonl", commit, place*archiveLen+1)
}

// maxNotedOutcomes bounds what the outcomes of examples take in the note of one commit, and in one file of the archive, in bytes before
// base64: those of the newest evaluations are kept. Each is read as a whole.
const maxNotedOutcomes = 4 << 20

// maxArchivedBytes bounds what is written to the archive at once.
const maxArchivedBytes = 16 << 20

// Mirror writes the records that are not there yet into the repositories of their models.
func (s *Service) Mirror(ctx context.Context) error {
	var failures []error
	var last registry.Mark
	for {
		// Behind the last ones, or those of the first models would keep the others waiting while more come.
		marks, err := s.Index.UnmirroredAfter(ctx, last, maxMirrored)
		if err != nil || len(marks) == 0 {
			return errors.Join(append(failures, err)...)
		}
		last = marks[len(marks)-1]
		done, failed := s.mirrorModels(ctx, byModel(marks))
		failures = append(failures, failed...)
		// At once, because the index does nothing else meanwhile. A crash here has them looked at again.
		if len(done) > 0 {
			if err := s.Index.Mirrored(done); err != nil {
				return err
			}
		}
		if len(marks) < maxMirrored {
			return errors.Join(failures...)
		}
	}
}

// mirrorsAtOnce is the number of repositories that records are written into at the same time: most of it is waiting for the disk.
const mirrorsAtOnce = 4

// mirrorModels writes the records of several models, and gives the marks of those for which it succeeded.
func (s *Service) mirrorModels(ctx context.Context, models [][]registry.Mark) (done []registry.Mark, failures []error) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	next := make(chan []registry.Mark)
	for range min(mirrorsAtOnce, len(models)) {
		wait.Go(func() {
			for marks := range next {
				err := s.mirrorModel(ctx, marks)
				mu.Lock()
				if err != nil {
					failures = append(failures, err)
				} else {
					done = append(done, marks...)
				}
				mu.Unlock()
			}
		})
	}
	for _, marks := range models {
		next <- marks
	}
	close(next)
	wait.Wait()
	return done, failures
}

// byModel splits marks, which are sorted by model, into those of each.
func byModel(marks []registry.Mark) [][]registry.Mark {
	var split [][]registry.Mark
	for i, m := range marks {
		if i == 0 || marks[i-1].ModelID != m.ModelID {
			split = append(split, nil)
		}
		split[len(split)-1] = append(split[len(split)-1], m)
	}
	return split
}

func (s *Service) mirrorModel(ctx context.Context, marks []registry.Mark) error {
	unlock := s.locks.lock("mirror:" + marks[0].ModelID)
	defer unlock()
	m, err := s.Index.ModelByID(ctx, marks[0].ModelID)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // deleted, and its repository with it
	}
	if err != nil {
		return err
	}
	repo, err := s.Repositories.Open(ctx, m.Name)
	if err != nil {
		return err
	}
	journal, err := s.Index.JournalID(ctx)
	if err != nil {
		return err
	}
	w := mirrorWriter{Service: s, m: m, repo: repo, journal: journal, tips: map[string]place{}, reached: map[string]place{}, decoder: registry.NewDecoder()}
	for _, mark := range marks {
		if err := w.add(ctx, mark); err != nil {
			return fmt.Errorf("write records into the repository of %s: %w", m.Name, err)
		}
	}
	if err := w.addNotes(ctx); err != nil {
		return err
	}
	if len(w.commits) == 0 {
		return nil
	}
	err = repo.WriteRecords(ctx, w.commits)
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, p := range w.reached {
		if delete(s.reached, m.ID+"/"+ref); err != nil {
			continue // some of the refs may have been written
		}
		keepSome(s.reached, m.ID+"/"+ref, p, maxKnown)
	}
	return err
}

// maxKnown bounds what is remembered of the repositories, which they say themselves when they are asked.
const maxKnown = 10_000

// keepSome sets a value of a map that has no more than limit.
func keepSome[V any](m map[string]V, k string, v V, limit int) {
	if len(m) >= limit {
		clear(m)
	}
	m[k] = v
}

// place of a record in the journal.
type place struct {
	seq   uint64
	index int
}

func (p place) before(q place) bool { return p.seq < q.seq || (p.seq == q.seq && p.index < q.index) }

func (p place) trailer(journal string) string {
	return fmt.Sprintf("%s%d.%d %s", seqTrailer, p.seq, p.index, journal)
}

// parsePlace finds the place in a commit's message; the zero place when there is none, or one
// of another journal. Only the last line counts: a reason that a person gave may stand before it.
func parsePlace(message, journal string) place {
	message = strings.TrimSuffix(message, "\n")
	line := message[strings.LastIndex(message, "\n")+1:]
	var p place
	if _, err := fmt.Sscanf(line, seqTrailer+"%d.%d ", &p.seq, &p.index); err != nil || p.index < 0 || p.trailer(journal) != line {
		return place{}
	}
	return p
}

// mirrorWriter turns records into commits.
type mirrorWriter struct {
	*Service
	m       registry.Model
	repo    Repository
	journal string // its id
	decoder *registry.Decoder
	tips    map[string]place // how far each ref goes
	reached map[string]place // how far it goes with the commits
	commits []registry.RecordCommit

	noted  []registry.ObjectID // commits with a new evaluation
	noteAt registry.Mark       // the newest of their marks
}

func (w *mirrorWriter) add(ctx context.Context, mark registry.Mark) error {
	if mark.Evaluated != "" {
		if there, err := w.there(ctx, registry.EvaluationNotesRef, mark); err != nil || there {
			return err
		}
		if !slices.Contains(w.noted, mark.Evaluated) {
			w.noted = append(w.noted, mark.Evaluated)
		}
		w.noteAt = mark
		return nil
	}
	record, err := w.decoder.DecodeRecord(mark.Record)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(mark.Record, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	switch r := record.(type) {
	case registry.VersionPublished:
		tag, by := r.Version.Tag.String(), r.Version.PublishedBy
		return w.commitVersion(ctx, mark, by, "publish "+tag, tag, recordName, data, r.Version.Artifact.Digest, r.Version.Config.Digest)
	case registry.ImageBuilt:
		var documents []digest.Digest
		for _, m := range r.Manifests {
			documents = append(documents, m.Digest)
		}
		for _, b := range r.Blobs {
			documents = append(documents, b.Digest)
		}
		return w.commitVersion(ctx, mark, "herdbook", "image of "+r.Tag.String(), r.Tag.String(), imageName, data, documents...)
	case registry.EnvironmentChanged:
		c := r.Change
		return w.commitTo(ctx, registry.EnvironmentsPrefix+c.Environment.String(), mark, c.By,
			withReason(fmt.Sprintf("%s: %s", c.Kind, c.Version), c.Reason), map[string][]byte{recordName: data})
	case registry.ApprovalGiven:
		a := r.Approval
		return w.commitTo(ctx, registry.EnvironmentsPrefix+a.Environment.String(), mark, a.By,
			withReason(fmt.Sprintf("approval: %s", a.Version), a.Reason), map[string][]byte{recordName: data})
	case registry.VersionStateSet:
		c := r.Change
		return w.commitTo(ctx, registry.VersionsRef, mark, c.By,
			withReason(fmt.Sprintf("%s %s", c.State, c.Version), c.Reason), map[string][]byte{c.Version.String() + "/" + statesDir + "/" + c.ID + ".json": data})
	case registry.EnvironmentFrozen:
		f := r.Freeze
		verb := "unfreeze"
		if f.Frozen {
			verb = "freeze"
		}
		return w.commitTo(ctx, registry.EnvironmentsPrefix+f.Environment.String(), mark, f.By, withReason(verb, f.Reason), map[string][]byte{recordName: data})
	}
	return nil
}

func withReason(message, reason string) string {
	if reason == "" {
		return message
	}
	return message + "\n\n" + reason
}

// commitVersion adds a record about a version and the documents that it names.
func (w *mirrorWriter) commitVersion(ctx context.Context, mark registry.Mark, by, message, tag, name string, record []byte, documents ...digest.Digest) error {
	files := map[string][]byte{tag + "/" + name: record}
	for _, d := range documents {
		content, err := w.Blobs.Get(ctx, d)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(content)
		content.Close()
		if err != nil {
			return err
		}
		files[tag+"/"+documentsDir+"/"+d.Encoded()] = data
	}
	return w.commitTo(ctx, registry.VersionsRef, mark, by, message, files)
}

// there reports whether a ref goes as far as mark already.
func (w *mirrorWriter) there(ctx context.Context, ref string, mark registry.Mark) (bool, error) {
	tip, known := w.tips[ref]
	if !known {
		w.mu.Lock()
		tip, known = w.Service.reached[w.m.ID+"/"+ref]
		w.mu.Unlock()
		w.tips[ref] = tip
	}
	if !known {
		message, _, err := w.repo.RecordTip(ctx, ref)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return false, err
		}
		tip = parsePlace(message, w.journal)
		w.tips[ref] = tip
	}
	return !tip.before(place{mark.Seq, mark.Place}), nil
}

// signature is how a caller of the server signs a commit.
func signature(actor string, at time.Time) registry.Signature {
	return registry.Signature{Name: actor, Email: actor + "@herdbook", At: at}
}

func (w *mirrorWriter) commitTo(ctx context.Context, ref string, mark registry.Mark, author, message string, files map[string][]byte) error {
	if there, err := w.there(ctx, ref, mark); err != nil || there {
		return err
	}
	w.reached[ref] = place{mark.Seq, mark.Place}
	w.commits = append(w.commits, registry.RecordCommit{
		Ref: ref, Author: signature(author, mark.At), Files: files,
		Message: message + "\n\n" + place{mark.Seq, mark.Place}.trailer(w.journal) + "\n",
	})
	return nil
}

// addNotes writes the note of each commit with a new evaluation: its newest evaluations, one JSON object a line. Those that have no room in it
// are in the archive before they leave it, so that a clone has all of them whenever it is made.
func (w *mirrorWriter) addNotes(ctx context.Context) error {
	if len(w.noted) == 0 {
		return nil
	}
	notes := map[registry.ObjectID][]byte{}
	for _, commit := range w.noted {
		if _, err := w.repo.Commit(ctx, commit); errors.Is(err, registry.ErrNotFound) {
			// Git cannot keep a note on what somebody removed, and would keep none at all.
			w.Log.WarnContext(ctx, "the commit of evaluations is gone from the repository, and they are not noted there", "model", w.m.Name, "commit", commit)
			continue
		} else if err != nil {
			return err
		}
		total, err := w.Index.CountEvaluations(ctx, w.m.ID, commit)
		if err != nil {
			return err
		}
		archived := archivedOf(total)
		if err := w.archive(ctx, commit, archived); err != nil {
			return err
		}
		if notes[commit], err = w.lines(ctx, commit, archived*archiveLen+1, maxNotes); err != nil {
			return err
		}
	}
	if len(notes) == 0 {
		return nil
	}
	w.commits = append(w.commits, w.evaluationsCommit(registry.EvaluationNotesRef, "record evaluations"))
	w.commits[len(w.commits)-1].Notes = notes
	w.reached[registry.EvaluationNotesRef] = place{w.noteAt.Seq, w.noteAt.Place}
	return nil
}

func (w *mirrorWriter) evaluationsCommit(ref, message string) registry.RecordCommit {
	return registry.RecordCommit{
		Ref: ref, Author: signature("herdbook", w.noteAt.At),
		Message: message + "\n\n" + place{w.noteAt.Seq, w.noteAt.Place}.trailer(w.journal) + "\n",
	}
}

// archive writes those of the first files of a commit that are not there yet. They are written before the notes, by a git process of their own.
func (w *mirrorWriter) archive(ctx context.Context, commit registry.ObjectID, files int) error {
	known := w.m.ID + "/" + string(commit)
	w.mu.Lock()
	there := w.archived[known]
	w.mu.Unlock()
	if there >= files {
		return nil
	}
	_, tip, err := w.repo.RecordTip(ctx, registry.EvaluationsRef)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	first := files // that is not there
	for ; tip != "" && first > there; first-- {
		_, err := w.repo.File(ctx, tip, archivePath(commit, first-1))
		if err == nil {
			break
		}
		if !errors.Is(err, registry.ErrNotFound) {
			return err
		}
	}
	if tip == "" {
		first = 0
	}
	for first < files {
		c := w.evaluationsCommit(registry.EvaluationsRef, "archive evaluations")
		c.Files = map[string][]byte{}
		for size := 0; first < files && size < maxArchivedBytes; first++ {
			data, err := w.lines(ctx, commit, first*archiveLen+1, archiveLen)
			if err != nil {
				return err
			}
			c.Files[archivePath(commit, first)] = data
			size += len(data)
		}
		if err := w.repo.WriteRecords(ctx, []registry.RecordCommit{c}); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	keepSome(w.Service.archived, known, files, maxKnown)
	return nil
}

// lines are evaluations of a commit, from the one with the number first on, one JSON object a line.
func (w *mirrorWriter) lines(ctx context.Context, commit registry.ObjectID, first, limit int) ([]byte, error) {
	lines, err := w.Index.EvaluationLines(ctx, w.m.ID, commit, uint64(first), limit)
	if err != nil {
		return nil, err
	}
	room := maxNotedOutcomes
	for i, line := range slices.Backward(lines) {
		if !bytes.Contains(line, []byte(`"outcomes":`)) {
			continue
		}
		var e registry.Evaluation
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("evaluation of %s: %w", commit, err)
		}
		if e.Outcomes == nil {
			continue
		}
		if room -= len(e.Outcomes.Correct); room >= 0 {
			continue
		}
		if lines[i], err = json.Marshal(e.Brief()); err != nil {
			return nil, err
		}
	}
	return append(bytes.Join(lines, []byte{'\n'}), '\n'), nil
}
