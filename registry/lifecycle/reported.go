package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
)

// Limits of what a version says of itself. More is left out.
const (
	maxReportedFiles = 100
	maxReported      = 256       // evaluations
	maxReportedBytes = 512 << 10 // of them, as JSON; each is recorded and announced
	maxResultsBytes  = 256 << 10 // of a file
)

// readReported reads the evaluations that the files of a version state, and makes records of those that are not recorded yet. Nothing that
// is wrong with them keeps the version from being published.
func (p *publication) readReported(ctx context.Context) error {
	files := 0
	for _, f := range p.version.Files {
		if !card.IsResults(f.Path) {
			continue
		}
		if files++; files > maxReportedFiles {
			p.warn("of the files in %s only %d are read", card.ResultsDir, maxReportedFiles)
			return nil
		}
		if f.LFS {
			p.warn("the evaluations in %s are not read: it is in Git LFS; keep it as a plain file", f.Path)
			continue
		}
		data, err := p.repo.ReadFile(ctx, p.version.Commit, f.Path, maxResultsBytes)
		if errors.Is(err, registry.ErrTooLarge) {
			p.warn("the evaluations in %s are not read: it is larger than %d bytes; split it", f.Path, maxResultsBytes)
			continue
		}
		if err != nil {
			return err
		}
		evaluations, problem := card.ReportedFile(data)
		if err := p.report(ctx, f.Path, evaluations, problem); err != nil {
			return err
		}
	}
	return nil
}

// report makes records of what one file states.
func (p *publication) report(ctx context.Context, file string, evaluations []registry.EvaluationInput, problem string) error {
	if problem != "" {
		p.warn("not all evaluations in %s are recorded: %s", file, problem)
	}
	for i, in := range evaluations {
		id, size, err := p.reportedID(in)
		if err != nil {
			return err
		}
		if p.recorded[id] || slices.ContainsFunc(p.reported, func(e registry.Evaluation) bool { return e.ID == id }) {
			continue
		}
		switch _, err := p.Index.EvaluationByID(ctx, p.m.ID, id); {
		case err == nil:
			continue // with an earlier version at this commit
		case !errors.Is(err, registry.ErrNotFound):
			return err
		}
		p.reportedBytes += size
		if len(p.reported) == maxReported || p.reportedBytes > maxReportedBytes {
			p.warn("%d evaluations in %s are left out: a version may state %d of them, and %d bytes", len(evaluations)-i, file, maxReported, maxReportedBytes)
			return nil
		}
		e, err := registry.NewEvaluation(in, p.version.Commit, id, p.version.PublishedBy, p.at)
		if err != nil {
			p.warn("an evaluation in %s is left out: %v", file, err)
			continue
		}
		e.SelfReported = true
		p.reported = append(p.reported, e)
	}
	return nil
}

// reportedID is the id of an evaluation that a commit states, and its size as JSON. It follows from model, commit and content, so that another
// tag at the commit, a second try after a crash and a copy of the model have the same.
func (p *publication) reportedID(in registry.EvaluationInput) (id string, size int, err error) {
	content, err := json.Marshal(in)
	if err != nil {
		return "", 0, fmt.Errorf("encode an evaluation: %w", err)
	}
	return registry.EventID(p.m.ID, "self-reported evaluation", string(p.version.Commit), string(content)), len(content), nil
}

// reportedRecords are the records of what the version states, each with the event that announces it.
func (p *publication) reportedRecords() []registry.Record {
	var records []registry.Record
	for _, e := range p.reported {
		event := registry.NewEvent(registry.EventEvaluationRecorded, p.m, p.version.PublishedBy, p.at, evaluationEvent{e}, e.ID)
		event.Withheld = p.version.Withheld
		records = append(records, registry.EvaluationRecorded{ModelID: p.m.ID, Evaluation: e}, announce(event))
	}
	return records
}
