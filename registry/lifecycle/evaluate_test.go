package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
	"github.com/herdbook/herdbook/registry/lifecycle"
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

// numbered are the ids of the evaluations that record many, from the number first on.
func numbered(first, count int) (ids []string) {
	for i := range count {
		ids = append(ids, fmt.Sprintf("e%06d", first+i))
	}
	return ids
}

// noted are the ids in the note of a commit, and archived those in the files before it.
func (s *site) noted(m registry.Model, commit registry.ObjectID) (noted, archived []string) {
	s.tb.Helper()
	ids := func(text string) (list []string) {
		for line := range strings.Lines(text) {
			var e registry.Evaluation
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				s.tb.Fatalf("line %q: %v", line, err)
			}
			list = append(list, e.ID)
		}
		return list
	}
	if s.git(m.Name, "for-each-ref", registry.EvaluationsRef) != "" {
		for _, path := range strings.Fields(s.git(m.Name, "ls-tree", "-r", "--name-only", registry.EvaluationsRef)) {
			archived = append(archived, ids(s.git(m.Name, "cat-file", "blob", registry.EvaluationsRef+":"+path))...)
		}
	}
	return ids(s.git(m.Name, "notes", "--ref=evaluations", "show", string(commit))), archived
}

// A note stays short: the oldest evaluations move to files that never change, and every clone has all of them.
func TestManyEvaluations(t *testing.T) {
	s, m := prepared(t, alone)
	v := s.release(m, "v1.0.0")
	steps := []struct{ count, archived int }{{128, 0}, {1, 64}, {63, 64}, {1, 128}, {200, 320}}
	total := 0
	for _, step := range steps {
		s.evaluationsFrom(m, v, total, step.count)
		total += step.count
		s.mirror()
		noted, archived := s.noted(m, v.Version.Commit)
		if diff := cmp.Diff(numbered(0, step.archived), archived); diff != "" {
			t.Errorf("archive of %d evaluations (-want +got):\n%s", total, diff)
		}
		if diff := cmp.Diff(numbered(step.archived, total-step.archived), noted); diff != "" {
			t.Errorf("note of %d evaluations (-want +got):\n%s", total, diff)
		}
	}
	// Neither a restart nor a new index writes anything again.
	refs := s.serverRefs(m.Name)
	s.close()
	if err := os.Remove(filepath.Join(s.dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, s.dir)
	s.mirror()
	if diff := cmp.Diff(refs, s.serverRefs(m.Name)); diff != "" {
		t.Errorf("refs of the server after the index was rebuilt (-want +got):\n%s", diff)
	}
	// The archive of what was noted before there was one is made when it is missing.
	s.git(m.Name, "update-ref", "-d", registry.EvaluationsRef)
	s.evaluationsFrom(m, v, total, 1)
	total++
	s.mirror()
	if noted, archived := s.noted(m, v.Version.Commit); !slices.Equal(slices.Concat(archived, noted), numbered(0, total)) {
		t.Errorf("%d evaluations are archived and %d noted after the archive was lost, want all %d", len(archived), len(noted), total)
	}
	want, err := s.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	if err != nil || len(want) != total {
		t.Fatalf("Evaluations = %d, %v, want %d", len(want), err, total)
	}
	dir := t.TempDir()
	s.clone(m, dir, fraud)
	there := openDir(t, dir)
	if err := there.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := there.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("evaluations of a clone: %v (-there +here):\n%s", err, diff)
	}
	there.evaluationsFrom(m, v, total, 100)
	there.mirror()
	noted, archived := there.noted(m, v.Version.Commit)
	if got := slices.Concat(archived, noted); !slices.Equal(got, numbered(0, total+100)) {
		t.Errorf("after 100 more in the clone %d are archived and %d noted, want all %d in their order", len(archived), len(noted), total+100)
	}
}

// crashing fails to write notes.
type crashing struct {
	lifecycle.Repositories
	now bool
}

type crashingRepository struct {
	lifecycle.Repository
	of *crashing
}

func (c *crashing) Open(ctx context.Context, name registry.ModelName) (lifecycle.Repository, error) {
	r, err := c.Repositories.Open(ctx, name)
	return crashingRepository{r, c}, err
}

func (r crashingRepository) WriteRecords(ctx context.Context, commits []registry.RecordCommit) error {
	if r.of.now && slices.ContainsFunc(commits, func(c registry.RecordCommit) bool { return c.Ref == registry.EvaluationNotesRef }) {
		return errBroken
	}
	return r.Repository.WriteRecords(ctx, commits)
}

// Evaluations are in the archive before they leave the note, and are archived once.
func TestArchiveComesBeforeTheNote(t *testing.T) {
	broken := &crashing{}
	s, m := prepared(t, alone, func(f *faults) { broken.Repositories, f.Repositories = f.Repositories, broken })
	v := s.release(m, "v1.0.0")
	s.evaluationsFrom(m, v, 0, 128)
	s.mirror()
	s.evaluationsFrom(m, v, 128, 10)
	broken.now = true
	if err := s.Mirror(t.Context()); !errors.Is(err, errBroken) {
		t.Fatalf("Mirror = %v, want %v", err, errBroken)
	}
	noted, archived := s.noted(m, v.Version.Commit)
	if !slices.Equal(noted, numbered(0, 128)) || !slices.Equal(archived, numbered(0, 64)) {
		t.Errorf("%d are noted and %d archived after a crash between the two, want the old note and the archive", len(noted), len(archived))
	}
	dir := t.TempDir()
	s.clone(m, dir, fraud)
	there := openDir(t, dir)
	if err := there.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ids []string
	evaluations, err := there.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	for _, e := range evaluations {
		ids = append(ids, e.ID)
	}
	if !slices.Equal(ids, numbered(0, 128)) {
		t.Errorf("a clone between the two has %d evaluations, %v, want 128, each once", len(ids), err)
	}
	tip := s.git(m.Name, "rev-parse", registry.EvaluationsRef)
	broken.now = false
	s.serve() // as after a start, when nothing is remembered
	s.mirror()
	if noted, _ := s.noted(m, v.Version.Commit); !slices.Equal(noted, numbered(64, 74)) || s.git(m.Name, "rev-parse", registry.EvaluationsRef) != tip {
		t.Errorf("%d are noted after the next try and the archive is at %s, want 74, and the archive at %s", len(noted), s.git(m.Name, "rev-parse", registry.EvaluationsRef), tip)
	}
}

// What gates decide from the few evaluations that they look at is what they decide from all.
func TestVerdictsFromWhatIsSelected(t *testing.T) {
	const gates = `["metrics.f1 >= 0.5", "incumbent == null || metrics.f1 >= incumbent.metrics.f1"]`
	s, m := prepared(t, `
environments:
  any: {gates: `+gates+`}
  named: {evidence: {dataset: calls}, gates: `+gates+`}
  whole: {evidence: {dataset: calls, slice: ""}, gates: `+gates+`, slices: {required: [dawn], gates: ["incumbent == null || metrics.f1 >= incumbent.metrics.f1"]}}
  young: {evidence: {dataset: calls, max_age: 30d, evaluators: [jenkins]}, gates: `+gates+`}
  listed: {gates: ["evaluations.exists(e, e.metrics.f1 > 0.8)"]}
`)
	check := func(when string, v registry.VersionRecord) {
		t.Helper()
		verdicts, err := s.Verdicts(t.Context(), m, v)
		if err != nil || len(verdicts) != 5 {
			t.Fatalf("Verdicts = %d, %v, want 5", len(verdicts), err)
		}
		for _, got := range verdicts {
			d, err := s.Decision(t.Context(), by("ada"), m, v, got.Environment)
			if diff := cmp.Diff(d.Verdict, got, named); err != nil || diff != "" {
				t.Errorf("%s, verdict of %s: %v (-from all evaluations +from those that it looks at):\n%s", when, got.Environment, err, diff)
			}
			if again, same, err := gatesOf(t).Replay(d); err != nil || !same {
				t.Errorf("%s, Replay of the decision of %s = %+v, %t, %v, want the same", when, got.Environment, again, same, err)
			}
		}
	}
	first, second := s.release(m, "v1.0.0"), s.release(m, "v2.0.0")
	check("nothing measured", first)
	for i, e := range []struct {
		dataset, slice, evaluator string
		f1                        float64
	}{
		{"calls", "", "jenkins", 0.9},
		{"calls", "", "jenkins", 0.7},
		{"calls", "night", "jenkins", 0.6},
		{"calls", "", "ada", 0.95},
		{"calls", "dawn", "", 0.4},
		{"news", "", "jenkins", 0.9},
		{"calls", "night", "jenkins", 0.3},
	} {
		in := f1Of(e.f1)
		in.Dataset.Name, in.Dataset.Slice, in.Evaluator = e.dataset, e.slice, e.evaluator
		for _, v := range []registry.VersionRecord{first, second} {
			if _, err := s.RecordEvaluation(t.Context(), by("jenkins"), m, v.Version.Commit, in); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			for _, env := range []string{"any", "named", "young"} {
				s.promote(m, registry.MustEnvironmentName(env), "v1.0.0")
			}
		}
		if i == 4 {
			s.promote(m, registry.MustEnvironmentName("whole"), "v1.0.0")
		}
		check(fmt.Sprintf("after evaluation %d", i+1), second)
	}
}

func gatesOf(tb testing.TB) *gate.Judge {
	tb.Helper()
	j, err := gate.New()
	if err != nil {
		tb.Fatal(err)
	}
	return j
}

// All gates of one request share what it may cost; what was announced of a gate stays when nobody could look at it again.
func TestGatesOfARequestShareItsCost(t *testing.T) {
	bomb := "true"
	for _, name := range []string{"f", "e", "d", "c", "b", "a"} {
		bomb = "[1,2,3,4,5,6,7,8,9,0].all(" + name + "," + bomb + ")"
	}
	s, m := prepared(t, alone)
	for i, tag := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
		s.evaluate(m, s.release(m, tag), []float64{0.9, 0.7, 0.9}[i])
	}
	dear := "environments:\n  slow: {gates: [" + strings.TrimSuffix(strings.Repeat(`"`+bomb+`", `, 12), ", ") + "]}\n" + strings.TrimPrefix(alone, "\nenvironments:\n")
	run, err := s.TryPolicy(t.Context(), by("ada"), m, []byte(dear), registry.Tag{})
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int{}
	for _, v := range run.Versions {
		for _, e := range v.Environments {
			for _, g := range e.Verdict.Gates {
				switch {
				case g.Open:
					reasons["open"]++
				case strings.Contains(g.Reason, "cost limit exceeded"):
					reasons["too much"]++
				case strings.Contains(g.Reason, "was not looked at: the gates before it used up the cost"):
					reasons["not reached"]++
				}
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"too much": 4, "not reached": len(run.Versions)*13 - 4}, reasons); diff != "" {
		t.Errorf("gates of a trial over %d versions (-want +got):\n%s", len(run.Versions), diff)
	}
	last := s.lastEvent()
	s.policy(m, dear)
	s.evaluate(m, s.version(m, "v1.2.0"), 0.1)
	if got := told(s.events(last)); slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, "gate.") && strings.Contains(e, "staging") }) {
		t.Errorf("events %q, want none about the gate of staging, which nobody could look at", got)
	}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := s.TryPolicy(ctx, by("ada"), m, []byte(dear), registry.Tag{}); !errors.Is(err, context.Canceled) {
		t.Errorf("TryPolicy for somebody who has left = %v, want %v", err, context.Canceled)
	}
}

// An evaluation is said to have changed what it changed, and not what a person did before it.
func TestEvaluationChangesVerdicts(t *testing.T) {
	s, m := prepared(t, `
environments:
  staging: {evidence: {dataset: calls}, approvals: 1, gates: ["metrics.f1 >= 0.8"]}
`)
	v := s.release(m, "v1.0.0")
	record := func(dataset string) (changed []bool) {
		t.Helper()
		in := f1Of(0.9)
		in.Dataset.Name = dataset
		recorded, err := s.RecordEvaluation(t.Context(), by("jenkins"), m, v.Version.Commit, in)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range recorded.Changed {
			changed = append(changed, c.Verdict.Open)
		}
		return changed
	}
	approve := func() {
		t.Helper()
		if _, err := s.Approve(t.Context(), by("grace"), m, staging, v.Version.Tag, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name    string
		do      func()
		dataset string
		want    []bool
	}{
		{"the first", func() {}, "calls", []bool{false}},
		{"one of other data", func() {}, "news", nil},
		{"one of other data, after an approval", approve, "news", nil},
		{"a newer one", func() {}, "calls", []bool{true}},
		{"one of other data again", func() {}, "news", nil},
		{"a newer one, quarantined", func() { s.state(m, "v1.0.0", registry.Quarantined) }, "calls", []bool{false}},
	} {
		step.do()
		if got := record(step.dataset); !slices.Equal(got, step.want) {
			t.Errorf("%s changed the verdict to open: %v, want %v", step.name, got, step.want)
		}
	}
}
