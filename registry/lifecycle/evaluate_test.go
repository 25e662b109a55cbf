package lifecycle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// The outcome of each example is kept with the evaluation, and nobody is told it in an event.
func TestEvaluationKeepsOutcomes(t *testing.T) {
	s, m := prepared(t, automatic)
	commit := s.commit(m.Name, "work", map[string]string{"README.md": "# Model\n"})
	in := registry.EvaluationInput{
		Dataset:  registry.Dataset{Name: "calls"},
		Outcomes: &registry.Outcomes{Examples: digest.FromString("examples"), Count: 20, Correct: registry.Bitmap{0xff, 0x3f, 0x02}},
	}
	recorded, err := s.RecordEvaluation(t.Context(), by("jenkins"), m, commit, in)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := s.data.Index.EvaluationByID(t.Context(), m.ID, recorded.Evaluation.ID)
	if err != nil || kept.Outcomes == nil || kept.Outcomes.Correct.Ones() != 15 {
		t.Errorf("what is kept = %+v, %v, want the outcomes of 20 examples of which 15 were right", kept.Outcomes, err)
	}
	told := ""
	for _, e := range s.events(0) {
		if e.Type == registry.EventEvaluationRecorded {
			told = string(e.Data)
		}
	}
	if !strings.Contains(told, `"count":20`) || strings.Contains(told, `"correct"`) {
		t.Errorf("the event tells %s, want the number of examples without their outcomes", told)
	}
}

// The same key finds what was recorded, also by a server of before there were intervals; with other outcomes it is a conflict.
func TestEvaluationAgain(t *testing.T) {
	s, m := prepared(t, automatic)
	commit := s.commit(m.Name, "work", map[string]string{"README.md": "# Model\n"})
	in := func() registry.EvaluationInput {
		return registry.EvaluationInput{
			Dataset:   registry.Dataset{Name: "calls"},
			Confusion: &registry.Confusion{Labels: []string{"yes", "no"}, Matrix: [][]int64{{1, 0}, {1, 1}}},
			Outcomes:  &registry.Outcomes{Examples: digest.FromString("examples"), Count: 3, Correct: registry.Bitmap{3}},
		}
	}
	again := by("jenkins")
	again.Key = "job 7"
	old, err := registry.NewEvaluation(in(), commit, registry.EventID(m.ID, "evaluation", "jenkins", again.Key), "jenkins", s.Now())
	if err != nil {
		t.Fatal(err)
	}
	old.Intervals = nil
	if err := s.data.Commit(t.Context(), registry.Group{At: s.Now(), Actor: "jenkins", Records: []registry.Record{registry.EvaluationRecorded{ModelID: m.ID, Evaluation: old}}}); err != nil {
		t.Fatal(err)
	}
	recorded, err := s.RecordEvaluation(t.Context(), again, m, commit, in())
	if err != nil || recorded.Evaluation.ID != old.ID || recorded.Evaluation.Intervals != nil {
		t.Errorf("RecordEvaluation again = %+v, %v, want what was recorded", recorded.Evaluation, err)
	}
	other := in()
	other.Outcomes.Correct = registry.Bitmap{5}
	if _, err := s.RecordEvaluation(t.Context(), again, m, commit, other); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("RecordEvaluation with the key of another = %v, want a conflict", err)
	}
}

// The note of a commit holds the outcomes of the newest evaluations, as far as there is room; every evaluation stands there.
func TestNotesHoldTheNewestOutcomes(t *testing.T) {
	s, m := prepared(t, automatic)
	commit := s.commit(m.Name, "work", map[string]string{"README.md": "# Model\n"})
	const many, room = 35, 32 // 32 times 128 KiB are 4 MiB
	g := registry.Group{At: s.Now(), Actor: "jenkins"}
	for i := range many {
		g.Records = append(g.Records, registry.EvaluationRecorded{ModelID: m.ID, Evaluation: registry.Evaluation{
			ID: fmt.Sprintf("e%02d", i), Commit: commit, Dataset: registry.Dataset{Name: "calls"}, RecordedAt: s.Now(),
			Outcomes: &registry.Outcomes{Examples: digest.FromString("examples"), Count: registry.MaxExamples, Correct: make(registry.Bitmap, registry.MaxExamples/8)},
		}})
	}
	if err := s.data.Commit(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	s.mirror()
	lines := strings.Split(strings.TrimSpace(s.git(m.Name, "notes", "--ref=evaluations", "show", string(commit))), "\n")
	if len(lines) != many {
		t.Fatalf("the note holds %d evaluations, want %d", len(lines), many)
	}
	for i, line := range lines {
		if got, want := strings.Contains(line, `"correct"`), i >= many-room; got != want || !strings.Contains(line, fmt.Sprintf(`"id":"e%02d"`, i)) {
			t.Errorf("line %d of the note, %.40s..., has the outcomes: %t, want %t", i, line, got, want)
		}
	}
	if kept, err := s.data.Index.EvaluationByID(t.Context(), m.ID, "e00"); err != nil || len(kept.Outcomes.Correct) == 0 {
		t.Errorf("the oldest evaluation is kept with %+v, %v, want its outcomes", kept.Outcomes, err)
	}
}
