package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// Records that concern a model are written into its own repository too, so that a mirror clone
// carries all of them along. Each commit says in its last line up to which record of the
// journal its ref goes; a record is written once, however often it is looked at.
const seqTrailer = "Herdbook-Seq: "

// maxMirrored bounds the records that are written at once.
const maxMirrored = 1000

// maxNotes is the number of evaluations that the note of one commit holds: the newest.
const maxNotes = 1000

// Mirror writes the records that are not there yet into the repositories of their models.
func (s *Service) Mirror(ctx context.Context) error {
	var failures []error
	for {
		marks, err := s.Index.Unmirrored(ctx, maxMirrored)
		if err != nil || len(marks) == 0 {
			return errors.Join(append(failures, err)...)
		}
		done := 0
		for model := range slices.Values(byModel(marks)) {
			if err := s.mirrorModel(ctx, model); err != nil {
				failures = append(failures, err)
				continue
			}
			if err := s.Index.Mirrored(model); err != nil {
				return err
			}
			done += len(model)
		}
		if done == 0 || len(marks) < maxMirrored {
			return errors.Join(failures...)
		}
	}
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
	m, err := s.Index.ModelByID(ctx, marks[0].ModelID)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // deleted, and its repository with it
	}
	if err != nil {
		return err
	}
	unlock := s.locks.lock("mirror:" + m.ID)
	defer unlock()
	repo, err := s.Repositories.Open(ctx, m.Name)
	if err != nil {
		return err
	}
	w := mirrorWriter{Service: s, m: m, repo: repo, tips: map[string]place{}, decoder: registry.NewDecoder()}
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
	return repo.WriteRecords(ctx, w.commits)
}

// place of a record in the journal.
type place struct {
	seq   uint64
	index int
}

func (p place) String() string { return fmt.Sprintf("%s%d.%d", seqTrailer, p.seq, p.index) }

func (p place) before(q place) bool { return p.seq < q.seq || (p.seq == q.seq && p.index < q.index) }

// parsePlace finds the place in a commit's message; the zero place when there is none.
func parsePlace(message string) place {
	for line := range strings.Lines(message) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), seqTrailer)
		if !ok {
			continue
		}
		seq, index, _ := strings.Cut(text, ".")
		n, err := strconv.ParseUint(seq, 10, 64)
		i, err2 := strconv.Atoi(index)
		if err == nil && err2 == nil {
			return place{n, i}
		}
	}
	return place{}
}

// mirrorWriter turns records into commits.
type mirrorWriter struct {
	*Service
	m       registry.Model
	repo    Repository
	decoder *registry.Decoder
	tips    map[string]place // how far each ref goes
	commits []registry.RecordCommit

	noted  []registry.ObjectID // commits with a new evaluation
	noteAt registry.Mark       // the newest of their marks
}

func (w *mirrorWriter) add(ctx context.Context, mark registry.Mark) error {
	record, err := w.decoder.DecodeRecord(mark.Record)
	if err != nil {
		return err
	}
	switch r := record.(type) {
	case registry.VersionPublished:
		files, err := w.versionFiles(ctx, r)
		if err != nil {
			return err
		}
		return w.commitTo(ctx, registry.VersionsRef, mark, r.Version.PublishedBy, "publish "+r.Version.Tag.String(), files)
	case registry.EnvironmentChanged:
		c := r.Change
		message := fmt.Sprintf("%s: %s", c.Kind, c.Version)
		if c.Reason != "" {
			message += "\n\n" + c.Reason
		}
		data, err := recordFile(c)
		if err != nil {
			return err
		}
		return w.commitTo(ctx, registry.EnvironmentsPrefix+c.Environment.String(), mark, c.By, message, map[string][]byte{"record.json": data})
	case registry.EvaluationRecorded:
		if there, err := w.there(ctx, registry.EvaluationNotesRef, mark); err != nil || there {
			return err
		}
		if !slices.Contains(w.noted, r.Evaluation.Commit) {
			w.noted = append(w.noted, r.Evaluation.Commit)
		}
		w.noteAt = mark
	}
	return nil
}

// recordFile is a record as people and programs read it.
func recordFile(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	return append(data, '\n'), err
}

// versionFiles are what a rebuild needs of a version: its record and the bytes that were
// published.
func (w *mirrorWriter) versionFiles(ctx context.Context, r registry.VersionPublished) (map[string][]byte, error) {
	record, err := recordFile(r.Version)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{r.Version.Tag.String() + "/record.json": record}
	for name, d := range map[string]digest.Digest{"manifest.json": r.Version.Artifact.Digest, "config.json": r.Version.Config.Digest} {
		content, err := w.Blobs.Get(ctx, d)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(content)
		content.Close()
		if err != nil {
			return nil, err
		}
		files[r.Version.Tag.String()+"/"+name] = data
	}
	return files, nil
}

// there reports whether a ref goes as far as mark already.
func (w *mirrorWriter) there(ctx context.Context, ref string, mark registry.Mark) (bool, error) {
	tip, known := w.tips[ref]
	if !known {
		message, err := w.repo.RecordTip(ctx, ref)
		if err != nil {
			return false, err
		}
		tip = parsePlace(message)
		w.tips[ref] = tip
	}
	return !tip.before(place{mark.Seq, mark.Place}), nil
}

func (w *mirrorWriter) commitTo(ctx context.Context, ref string, mark registry.Mark, author, message string, files map[string][]byte) error {
	if there, err := w.there(ctx, ref, mark); err != nil || there {
		return err
	}
	w.commits = append(w.commits, registry.RecordCommit{
		Ref: ref, Author: author, At: mark.At, Files: files,
		Message: message + "\n\n" + place{mark.Seq, mark.Place}.String() + "\n",
	})
	return nil
}

// addNotes writes the note of each commit with a new evaluation: all its evaluations, one JSON
// object a line.
func (w *mirrorWriter) addNotes(ctx context.Context) error {
	if len(w.noted) == 0 {
		return nil
	}
	notes := map[registry.ObjectID][]byte{}
	for _, commit := range w.noted {
		evaluations, err := w.Index.Evaluations(ctx, w.m.ID, commit)
		if err != nil {
			return err
		}
		var note bytes.Buffer
		lines := json.NewEncoder(&note)
		for _, e := range evaluations[max(0, len(evaluations)-maxNotes):] {
			if err := lines.Encode(e); err != nil {
				return err
			}
		}
		notes[commit] = note.Bytes()
	}
	w.commits = append(w.commits, registry.RecordCommit{
		Ref: registry.EvaluationNotesRef, Author: "herdbook", At: w.noteAt.At, Notes: notes,
		Message: "record evaluations\n\n" + place{w.noteAt.Seq, w.noteAt.Place}.String() + "\n",
	})
	return nil
}
