package lifecycle_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

const statesF1 = "---\nmodel-index:\n- name: fraud\n  results:\n  - dataset: {type: calls, split: test}\n    metrics: [{type: f1, value: 0.9}, {type: accuracy, value: 93}]\n---\n# Model\n"

// stating are files of a version that states two evaluations.
func stating(more string) map[string]string {
	return map[string]string{
		"README.md": statesF1, ".eval_results/swe.yaml": "- dataset: {id: swe, task_id: all}\n  value: 75.8\n", "more.txt": more,
		".eval_results/notes.txt": "not one",
	}
}

// stated lists the evaluations of a commit as "DATASET METRICS, self-reported, by ACTOR".
func (s *site) stated(m registry.Model, commit registry.ObjectID) []string {
	s.tb.Helper()
	evaluations, err := s.data.Index.Evaluations(s.tb.Context(), m.ID, commit)
	if err != nil {
		s.tb.Fatal(err)
	}
	list := []string{}
	for _, e := range evaluations {
		kind := ""
		if e.SelfReported {
			kind = ", self-reported"
		}
		list = append(list, fmt.Sprintf("%s%s%s %v%s, by %s", e.Dataset.Name, e.Dataset.Split, e.Dataset.Slice, e.Metrics, kind, e.RecordedBy))
	}
	return list
}

func TestStatedEvaluations(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	before := s.lastEvent()
	v := s.publish(m, "v1.0.0", stating(""))
	want := []string{"callstest map[f1:0.9], self-reported, by herdbook", "sweall map[score:75.8], self-reported, by herdbook"}
	if diff := cmp.Diff(want, s.stated(m, v.Version.Commit)); diff != "" {
		t.Errorf("evaluations of a version that states them (-want +got):\n%s", diff)
	}
	if got := strings.Join(v.Version.Warnings, "\n"); !strings.Contains(got, "not all evaluations in README.md are recorded: line 6: accuracy is 93, and lies between 0 and 1") {
		t.Errorf("warnings = %q, want one of the accuracy", got)
	}
	if diff := cmp.Diff([]string{"ref.updated refs/heads/main by herdbook", "version.published v1.0.0 by herdbook", "evaluation.recorded by herdbook", "evaluation.recorded by herdbook"},
		slices.DeleteFunc(told(s.events(before)), func(e string) bool { return strings.HasPrefix(e, "policy") || strings.HasPrefix(e, "gate") })); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}

	// Another version at the commit adds none, nor does a look at what is there.
	s.tag(m.Name, "v1.0.1", v.Version.Commit)
	s.reconcile(m)
	s.reconcile(m)
	if diff := cmp.Diff(want, s.stated(m, v.Version.Commit)); diff != "" {
		t.Errorf("evaluations after a second version at the commit (-want +got):\n%s", diff)
	}

	// Two versions that are found at once have theirs once; another commit has its own.
	next := s.commit(m.Name, "main", stating("more"))
	s.tag(m.Name, "v2.0.0", next)
	s.tag(m.Name, "v2.0.1", next)
	s.reconcile(m)
	if diff := cmp.Diff(want, s.stated(m, next)); diff != "" {
		t.Errorf("evaluations of two versions at one commit (-want +got):\n%s", diff)
	}
}

// What a crash keeps of a publication is all of it or nothing; what is found again after it has the same id.
func TestStatedEvaluationsAreRecordedWithTheVersion(t *testing.T) {
	s, m := prepared(t, "environments: {staging: {}}")
	groups := s.groups()
	v := s.publish(m, "v1.0.0", stating(""))
	if got := s.groups() - groups; got != 1 {
		t.Errorf("the publication took %d groups of the journal, want 1", got)
	}
	evaluations, err := s.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	if err != nil || len(evaluations) != 2 {
		t.Fatalf("Evaluations = %v, %v, want two", evaluations, err)
	}
	s.mirror()

	// Rebuilt from the journal.
	s.close()
	if err := os.Remove(filepath.Join(s.dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, s.dir)
	rebuilt, err := s.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	if diff := cmp.Diff(evaluations, rebuilt); err != nil || diff != "" {
		t.Errorf("after a rebuild: %v (-before +after):\n%s", err, diff)
	}

	// Imported from a clone, with its records; a new tag at the commit adds none.
	dir := t.TempDir()
	s.clone(m, dir, m.Name)
	there := openDir(t, dir)
	if err := there.look(); err != nil {
		t.Fatalf("look = %v", err)
	}
	imported := there.reload(m)
	there.tag(m.Name, "v1.0.1", v.Version.Commit)
	there.reconcile(imported)
	copied, err := there.data.Index.Evaluations(t.Context(), m.ID, v.Version.Commit)
	if diff := cmp.Diff(evaluations, copied); err != nil || diff != "" {
		t.Errorf("evaluations of an imported model with one more version: %v (-here +there):\n%s", err, diff)
	}
}

func TestGatesAndStatedEvaluations(t *testing.T) {
	for _, tt := range []struct {
		evidence string
		want     string
	}{
		{"{dataset: calls, self_reported: true}", "v1.0.0"},
		{"{dataset: calls}", ""},
	} {
		s, m := prepared(t, "environments: {staging: {}}")
		policy := "environments:\n  staging:\n    promote: auto\n    evidence: " + tt.evidence + "\n    gates: ['metrics.f1 > 0.8']\n"
		files := stating("")
		files[registry.PolicyFile] = policy
		s.publish(m, "v1.0.0", files)
		if got := s.in(m, staging); got != tt.want {
			t.Errorf("staging with evidence %s holds %q, want %q", tt.evidence, got, tt.want)
		}
	}
}

// Whatever a version says of itself, it is published.
func TestBadStatementsKeepNoVersion(t *testing.T) {
	var many strings.Builder
	for i := range 200 {
		fmt.Fprintf(&many, "- {dataset: {id: %s%d}, value: 1}\n", strings.Repeat("x", 900), i)
	}
	files := map[string]string{
		"README.md":               "---\nmodel-index: [\n---\n",
		".eval_results/a.yaml":    "- dataset: {id: a}\n  value: many\n- dataset: {id: b}\n  value: 1\n",
		".eval_results/lfs.yaml":  pointer("weights"),
		".eval_results/long.yaml": strings.Repeat("# a comment\n", 30_000),
	}
	for i := range 4 {
		files[fmt.Sprintf(".eval_results/many%d.yaml", i)] = strings.ReplaceAll(many.String(), "id: x", fmt.Sprintf("id: %dx", i))
	}
	s, m := prepared(t, "environments: {staging: {}}")
	s.upload(m, "weights")
	v := s.publish(m, "v1.0.0", files)
	if got := len(s.stated(m, v.Version.Commit)); got != 256 {
		t.Errorf("%d evaluations are recorded, want the most, 256", got)
	}
	all := strings.Join(v.Version.Warnings, "\n")
	for _, want := range []string{
		"the model card of v1.0.0 cannot be read", `not all evaluations in .eval_results/a.yaml are recorded: line 2: score is "many", which is no number`,
		"the evaluations in .eval_results/lfs.yaml are not read: it is in Git LFS", "the evaluations in .eval_results/long.yaml are not read: it is larger than 262144 bytes",
		"evaluations in .eval_results/many1.yaml are left out: a version may state 256 of them, and 524288 bytes",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("warnings lack %q; they are:\n%s", want, all)
		}
	}
}
