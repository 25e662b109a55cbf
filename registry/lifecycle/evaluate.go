package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
)

// evaluationEvent is the data of evaluation.recorded, without the outcome of each example.
type evaluationEvent struct {
	Evaluation registry.Evaluation `json:"evaluation"`
}

// MaxEvaluationBytes bounds an evaluation as it is recorded.
const MaxEvaluationBytes = 4 << 20

// Recorded is what came of recording an evaluation.
type Recorded struct {
	Evaluation registry.Evaluation
	Changed    []ChangedVerdict             // the verdicts that differ from before
	Promoted   []registry.EnvironmentChange // what the server promoted because of it
}

// ChangedVerdict is a verdict on a version that the evaluation changed.
type ChangedVerdict struct {
	Version registry.Tag
	Verdict registry.Verdict
}

// RecordEvaluation records how well a commit did, lets the gates look at it, and promotes what
// has become promotable.
func (s *Service) RecordEvaluation(ctx context.Context, by Request, m registry.Model, commit registry.ObjectID, in registry.EvaluationInput) (Recorded, error) {
	if err := access.Authorize(by.Identity, access.Evaluate, &m); err != nil {
		return Recorded{}, err
	}
	at := s.Now()
	e, err := registry.NewEvaluation(in, commit, by.newID(m.ID, "evaluation"), by.Identity.Name, at)
	if err != nil {
		return Recorded{}, err
	}
	if len(e.Attachments) > 0 { // nobody lets go of them meanwhile
		use := s.uses.of(m.ID)
		use.RLock()
		defer use.RUnlock()
	}
	unlock, last, turn := s.locks.takeTurn(m.ID)
	defer unlock()
	missing := s.attach(ctx, m, &e)
	before, err := s.Index.EvaluationByID(ctx, m.ID, e.ID)
	switch {
	case err == nil:
		return Recorded{Evaluation: before}, sameEvaluation(before, e)
	case !errors.Is(err, registry.ErrNotFound):
		return Recorded{}, err
	case missing != nil:
		return Recorded{}, missing
	}
	versions, err := s.Index.VersionsAt(ctx, m.ID, commit)
	if err != nil {
		return Recorded{}, err
	}
	// Before, after, and what the server does about it cost what one request may cost.
	const parts = 3
	old, known := s.judgedBefore(m.ID, commit, last)
	if !known {
		if old, err = s.verdictsOf(ctx, gate.NewBudget(ctx.Done(), parts), m.ID, versions); err != nil {
			return Recorded{}, err
		}
	}
	err = s.commit(ctx, registry.Group{At: at, Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.EvaluationRecorded{ModelID: m.ID, Evaluation: e},
		announce(registry.NewEvent(registry.EventEvaluationRecorded, m, by.Identity.Name, at, evaluationEvent{e.Brief()}, e.ID)),
	}})
	if err != nil {
		return Recorded{}, err
	}
	ctx = context.WithoutCancel(ctx) // it is recorded, whether or not the caller still waits
	recorded := Recorded{Evaluation: e}
	budget := gate.NewBudget(nil, parts)
	fresh, err := s.verdictsOf(ctx, budget, m.ID, versions)
	if err != nil {
		return recorded, err
	}
	for i, verdict := range fresh {
		if verdict.Verdict.Evaluation != old[i].Verdict.Evaluation || !sameJSON(verdict, old[i]) {
			recorded.Changed = append(recorded.Changed, verdict)
		}
	}
	var focus []registry.Tag
	for _, v := range versions {
		focus = append(focus, v.Version.Tag)
	}
	if budget.Spent() {
		fresh = nil // not all were looked at
	}
	recorded.Promoted, err = s.settleWithin(ctx, gate.NewBudget(nil, parts), m.ID, focus, false, fresh...)
	if err == nil && fresh != nil && len(recorded.Promoted) == 0 {
		s.mu.Lock()
		keepSome(s.judged, m.ID, judged{turn, commit, fresh}, maxJudged)
		s.mu.Unlock()
	}
	return recorded, err
}

// judged are the verdicts on the versions of a commit after an evaluation. They are those before the next one, when nobody else had the model's
// lock in between: only the age of the evidence may tell otherwise, and what that changes the next evaluation did not.
type judged struct {
	turn     uint64 // of the lock
	commit   registry.ObjectID
	verdicts []ChangedVerdict
}

// maxJudged bounds the models for which they are kept.
const maxJudged = 500

func (s *Service) judgedBefore(modelID string, commit registry.ObjectID, turn uint64) (verdicts []ChangedVerdict, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.judged[modelID]
	return j.verdicts, ok && j.turn == turn && j.commit == commit
}

// sameEvaluation reports a conflict unless the same was recorded under the same key before.
func sameEvaluation(before, again registry.Evaluation) error {
	again.RecordedAt, again.RecordedBy = before.RecordedAt, before.RecordedBy
	again.Intervals = before.Intervals // which the server computes, and did not always
	if !sameJSON(before, again) {
		return registry.Conflict("the idempotency key was used for another evaluation")
	}
	return nil
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && slices.Equal(x, y)
}

func (s *Service) verdictsOf(ctx context.Context, budget *gate.Budget, modelID string, versions []registry.VersionRecord) ([]ChangedVerdict, error) {
	var found []ChangedVerdict
	for _, v := range versions {
		verdicts, err := s.verdicts(ctx, budget, modelID, v)
		if err != nil {
			return nil, err
		}
		for _, verdict := range verdicts {
			found = append(found, ChangedVerdict{v.Version.Tag, verdict})
		}
	}
	return found, nil
}
