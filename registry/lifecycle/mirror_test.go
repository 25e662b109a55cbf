package lifecycle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// lived is a model that went through everything: versions with images, evaluations, promotions, an
// approval and a rollback.
func lived(tb testing.TB, change ...func(*faults)) (*site, registry.Model) {
	tb.Helper()
	s, m := prepared(tb, `
environments:
  staging: {promote: auto, gates: ["metrics.f1 >= 0.80"]}
  production: {after: staging, approvals: 1}
`, change...)
	s.upload(m, "weights")
	s.tag(m.Name, "v1.0.0", s.commit(m.Name, "main", map[string]string{
		"README.md": "# Model\n", "weights.bin": pointer("weights"), registry.PolicyFile: s.git(m.Name, "show", "main:"+registry.PolicyFile),
	}))
	s.reconcile(m)
	s.git(m.Name, "tag", "-a", "-m", "Second", "v2.0.0", "main")
	s.reconcile(m)
	for _, tag := range []string{"v1.0.0", "v2.0.0"} {
		s.evaluate(m, s.version(m, tag), 0.9)
	}
	if _, err := s.Approve(tb.Context(), by("grace"), m, production, registry.MustTag("v2.0.0"), "read it"); err != nil {
		tb.Fatal(err)
	}
	if _, err := s.RecordEvaluation(tb.Context(), by("alan"), m, s.version(m, "v2.0.0").Version.Commit, f1Of(0.95)); err != nil {
		tb.Fatal(err)
	}
	s.promote(m, production, "v2.0.0")
	if err := s.BuildImages(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	s.promote(m, staging, "v1.0.0")
	if _, err := s.RollBack(tb.Context(), by("grace"), m, staging, registry.MustTag("v2.0.0"), "slow"); err != nil {
		tb.Fatal(err)
	}
	return s, s.reload(m)
}

func (s *site) mirror() {
	s.tb.Helper()
	if err := s.Mirror(s.tb.Context()); err != nil {
		s.tb.Fatalf("Mirror = %v", err)
	}
}

// serverRefs are the refs that the server writes, with their objects.
func (s *site) serverRefs(name registry.ModelName) string {
	s.tb.Helper()
	return s.git(name, "for-each-ref", "refs/herdbook", "refs/notes")
}

func TestMirror(t *testing.T) {
	s, m := lived(t)
	s.mirror()
	for ref, want := range map[string]string{
		registry.VersionsRef:                       "image of v2.0.0\nimage of v1.0.0\npublish v2.0.0\npublish v1.0.0",
		registry.EnvironmentsPrefix + "staging":    "rollback: v2.0.0\npromotion: v1.0.0\npromotion: v2.0.0",
		registry.EnvironmentsPrefix + "production": "promotion: v2.0.0\napproval: v2.0.0",
		registry.EvaluationNotesRef:                "record evaluations",
	} {
		if diff := cmp.Diff(want, s.git(m.Name, "log", "--format=%s", ref)); diff != "" {
			t.Errorf("log of %s (-want +got):\n%s", ref, diff)
		}
	}
	// The same commit has both versions, and one note.
	note := s.git(m.Name, "notes", "--ref=evaluations", "show", "v1.0.0^{commit}")
	var f1 []float64
	for line := range strings.Lines(note) {
		var e registry.Evaluation
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("line %q of the note: %v", line, err)
		}
		f1 = append(f1, e.Metrics["f1"])
	}
	if diff := cmp.Diff([]float64{0.9, 0.9, 0.95}, f1); diff != "" {
		t.Errorf("f1 of the evaluations in the note (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("grace grace@herdbook", s.git(m.Name, "log", "-1", "--format=%an %ae", registry.EnvironmentsPrefix+"staging")); diff != "" {
		t.Errorf("author of the rollback's record (-want +got):\n%s", diff)
	}
	events := s.lastEvent()
	s.reconcile(m)
	if got := s.lastEvent(); got != events {
		t.Errorf("%q: the server announced its own records", told(s.events(events)))
	}
}

// amnesiac forgets that records were written.
type amnesiac struct {
	lifecycle.Index
	forgets bool
}

func (a *amnesiac) Mirrored(marks []registry.Mark) error {
	if a.forgets {
		return errBroken
	}
	return a.Index.Mirrored(marks)
}

func TestMirrorAfterACrash(t *testing.T) {
	index := &amnesiac{forgets: true}
	s, m := lived(t, func(f *faults) { index.Index, f.Index = f.Index, index })
	if err := s.Mirror(t.Context()); !errors.Is(err, errBroken) {
		t.Fatalf("Mirror = %v, want %v", err, errBroken)
	}
	refs := s.serverRefs(m.Name)
	if strings.Count(refs, "\n") != 3 {
		t.Fatalf("refs of the server after the first Mirror:\n%s\nwant four", refs)
	}
	index.forgets = false
	s.mirror()
	if diff := cmp.Diff(refs, s.serverRefs(m.Name)); diff != "" {
		t.Errorf("refs of the server after a second Mirror (-want +got):\n%s", diff)
	}
	if marks, err := s.data.Index.Unmirrored(t.Context(), 1); err != nil || len(marks) != 0 {
		t.Errorf("Unmirrored after a second Mirror = %v, %v, want none", marks, err)
	}
}

func TestMirrorAfterARebuild(t *testing.T) {
	s, m := lived(t)
	s.mirror()
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
	s.promote(m, staging, "v1.0.0")
	s.mirror()
	if got := s.git(m.Name, "log", "--format=%s", "-1", registry.EnvironmentsPrefix+"staging"); got != "promotion: v1.0.0" {
		t.Errorf("newest record of staging = %q, want the new promotion", got)
	}
}

// One model that cannot be written does not keep the others from it.
func TestMirrorGoesOnWithOtherModels(t *testing.T) {
	broken := &breakable{lost: map[string]bool{}}
	s := open(t, func(f *faults) { broken.Blobs, f.Blobs = f.Blobs, broken })
	var models []registry.Model
	for _, name := range []string{"acme/a", "acme/b", "acme/c"} {
		m := s.model(registry.MustModelName(name))
		v := s.publish(m, "v1.0.0", map[string]string{"README.md": "# " + name + "\n"})
		if models = append(models, m); len(models) == 2 {
			broken.lost[v.Version.Config.Digest.String()] = true
		}
	}
	if err := s.Mirror(t.Context()); !errors.Is(err, errBroken) {
		t.Errorf("Mirror = %v, want %v", err, errBroken)
	}
	for i, m := range models {
		if got, want := s.serverRefs(m.Name) != "", i != 1; got != want {
			t.Errorf("records of %s are written: %v, want %v", m.Name, got, want)
		}
	}
	clear(broken.lost)
	s.mirror()
	if s.serverRefs(models[1].Name) == "" {
		t.Errorf("records of %s are not written once they can be", models[1].Name)
	}
}

func TestMirrorOfEvaluationsWithoutTheirCommit(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	v := s.release(m, "v1.0.0")
	for _, commit := range []registry.ObjectID{blobID(99), v.Version.Commit} {
		if _, err := s.RecordEvaluation(t.Context(), by("jenkins"), m, commit, f1Of(0.9)); err != nil {
			t.Fatal(err)
		}
	}
	s.promote(m, production, "v1.0.0")
	s.mirror()
	if got := s.git(m.Name, "notes", "--ref=evaluations", "list"); strings.Count(got, "\n") != 0 || !strings.HasSuffix(got, string(v.Version.Commit)) {
		t.Errorf("notes = %q, want one, on %s", got, v.Version.Commit)
	}
	if got := s.git(m.Name, "log", "--format=%s", registry.EnvironmentsPrefix+"production"); got != "promotion: v1.0.0" {
		t.Errorf("log of production = %q, want the promotion", got)
	}
}

// story is a model as its records tell it, wherever it is.
type story struct {
	Versions     []registry.VersionRecord
	Evaluations  []registry.Evaluation
	Environments []registry.EnvironmentState
	Staging      []registry.EnvironmentChange
	Production   []registry.EnvironmentChange
	Approvals    []registry.Approval
	Verdicts     []registry.Verdict
	Edges        []registry.LineageEdge
	Policy       registry.PolicyState
	Branch       string
}

func (s *site) story(m registry.Model) story {
	s.tb.Helper()
	ctx, index := s.tb.Context(), s.data.Index
	seen := s.visible(m)
	v := story{Versions: seen.Versions, Environments: seen.Environments, Policy: seen.Policy, Branch: s.reload(m).DefaultBranch}
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	var err error
	v.Staging, _, err = index.History(ctx, m.ID, staging, registry.Page{})
	add(err)
	v.Production, _, err = index.History(ctx, m.ID, production, registry.Page{})
	add(err)
	v.Approvals, err = index.Approvals(ctx, m.ID, registry.MustTag("v2.0.0"), production)
	add(err)
	for _, version := range v.Versions {
		v.Evaluations, err = index.Evaluations(ctx, m.ID, version.Version.Commit)
		add(err)
		verdicts, err := s.Verdicts(ctx, m, version)
		add(err)
		v.Verdicts = append(v.Verdicts, verdicts...)
		v.Edges = append(v.Edges, s.edges(registry.VersionNodeID(m.ID, version.Version.Tag))...)
	}
	if err := errors.Join(errs...); err != nil {
		s.tb.Fatal(err)
	}
	return v
}

// clone puts a mirror clone of a model's repository into another data directory.
func (s *site) clone(m registry.Model, dir string, as registry.ModelName) string {
	s.tb.Helper()
	path := filepath.Join(dir, "repos", as.String()+".git")
	runGit(s.tb, s.tb.TempDir(), "", "clone", "-q", "--mirror", filepath.Join(s.dir, "repos", m.Name.String()+".git"), path)
	return path
}

func TestImport(t *testing.T) {
	s, m := lived(t)
	s.mirror()
	dir := t.TempDir()
	moved := registry.MustModelName("elsewhere/fraud")
	s.clone(m, dir, moved)
	want, record := s.story(m), s.version(m, "v1.0.0")

	there := openDir(t, dir)
	for range 2 {
		if err := there.Start(t.Context()); err != nil {
			t.Fatalf("Start = %v", err)
		}
	}
	got, err := there.data.Index.ModelByName(t.Context(), moved)
	if err != nil {
		t.Fatalf("ModelByName after the start = %v; log:\n%s", err, strings.Join(there.log.lines(""), ""))
	}
	if got.ID != m.ID || got.Visibility != registry.Private {
		t.Errorf("imported model = %+v, want the id %s, private", got, m.ID)
	}
	if diff := cmp.Diff(want, there.story(got), named, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("what the records tell (-here +there):\n%s", diff)
	}
	if events := there.events(0); len(events) != 0 {
		t.Errorf("events of an import: %q, want none", told(events))
	}
	for _, d := range []registry.Descriptor{record.Version.Artifact, record.Version.Config, {Digest: record.Image.Digest}} {
		if _, err := there.read(d.Digest); err != nil {
			t.Errorf("document %s: %v, want it in the store", d.Digest, err)
		}
	}
	for _, f := range record.Version.Files {
		if content, err := there.read(f.Digest); (err == nil) == f.LFS || (!f.LFS && int64(len(content)) != f.SizeBytes) {
			t.Errorf("content of %s (LFS: %v): %d bytes, %v; want what is in Git, and that alone", f.Path, f.LFS, len(content), err)
		}
	}

	// It goes on from there.
	last := there.lastEvent()
	there.tag(moved, "v3.0.0", record.Version.Commit)
	report := there.reconcile(got)
	if report.Pending || len(report.Published) != 1 {
		t.Fatalf("Reconcile of a new tag: Pending = %v, published %v", report.Pending, publishedTags(report))
	}
	if diff := cmp.Diff([]string{
		"version.published v3.0.0 by herdbook", "gate.opened v3.0.0 staging by herdbook", "environment.promoted v3.0.0 staging by herdbook",
	}, told(there.events(last))); diff != "" {
		t.Errorf("events of a new version (-want +got):\n%s", diff)
	}
	there.mirror()
	if got := there.git(moved, "log", "-2", "--format=%s", registry.EnvironmentsPrefix+"staging"); got != "promotion: v3.0.0\nrollback: v2.0.0" {
		t.Errorf("log of staging = %q, want the new record behind the old ones", got)
	}
}

func (s *site) read(d digest.Digest) ([]byte, error) {
	s.tb.Helper()
	content, err := blobs{s.data.Blobs}.Get(s.tb.Context(), d)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	return io.ReadAll(content)
}

func TestImportWithoutRecords(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.git(m.Name, "tag", "v1.0.0", string(s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})))
	dir := t.TempDir()
	s.clone(m, dir, m.Name)
	there := openDir(t, dir)
	if err := there.Start(t.Context()); err != nil {
		t.Fatalf("Start = %v", err)
	}
	// What nobody published is published now.
	if diff := cmp.Diff([]string{"version.published v1.0.0 by herdbook"}, told(there.events(0))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// Whoever made the repository could have written anything into it.
func TestImportTrustsNobody(t *testing.T) {
	token := `{"type": "token_created", "data": {"token": {"id": "t", "owner": "mallory", "role": "admin", "hash": "00"}}}`
	tests := []struct {
		name   string
		change func(tb testing.TB, path string)
		want   string // in the log
	}{
		{"a token among the versions", func(tb testing.TB, path string) {
			addRecord(tb, path, registry.VersionsRef, "z/record.json", token)
		}, "token_created does not belong there"},
		{"a token among the changes of an environment", func(tb testing.TB, path string) {
			runGit(tb, path, "", "update-ref", "-d", registry.VersionsRef)
			addRecord(tb, path, registry.EnvironmentsPrefix+"a", "record.json", token)
		}, "token_created does not belong there"},
		{"a change of another environment", func(tb testing.TB, path string) {
			runGit(tb, path, "", "update-ref", registry.EnvironmentsPrefix+"lab", registry.EnvironmentsPrefix+"staging")
		}, "environment_changed does not belong there"},
		{"a document under another name", func(tb testing.TB, path string) {
			addRecord(tb, path, registry.VersionsRef, "v1.0.0/documents/"+strings.Repeat("0", 64), "{}")
		}, "holds something else than its name says"},
		{"records of two models", func(tb testing.TB, path string) {
			addRecord(tb, path, registry.VersionsRef, "v9.0.0/image.json", `{"type": "image_built", "data": {"model_id": "another", "tag": "v9.0.0"}}`)
		}, "records of two models"},
		{"a record of a later version", func(tb testing.TB, path string) {
			addRecord(tb, path, registry.VersionsRef, "v9.0.0/record.json", `{"type": "version_blessed", "data": {}}`)
		}, "version_blessed"},
		{"a note that is no evaluation", func(tb testing.TB, path string) {
			runGit(tb, path, "", "notes", "--ref=evaluations", "add", "-f", "-m", "well done", "v1.0.0^{commit}")
		}, "note of"},
	}
	s, m := lived(t)
	s.mirror()
	dir := t.TempDir()
	var names []registry.ModelName
	for i, tt := range tests {
		name := registry.MustModelName(fmt.Sprintf("acme/clone-%d", i))
		tt.change(t, s.clone(m, dir, name))
		names = append(names, name)
	}
	there := openDir(t, dir)
	if err := there.Start(t.Context()); err != nil {
		t.Fatalf("Start = %v", err)
	}
	for i, tt := range tests {
		if got := there.log.lines("model=" + names[i].String()); len(got) != 1 || !strings.Contains(got[0], tt.want) {
			t.Errorf("%s: logged %q, want one line with %q", tt.name, got, tt.want)
		}
	}
	if some, err := there.data.Index.HasTokens(t.Context()); err != nil || some {
		t.Errorf("HasTokens = %v, %v, want false", some, err)
	}
	if models, err := there.data.Index.AllModels(t.Context()); err != nil || len(models) != 0 {
		t.Errorf("models = %v, %v, want none", models, err)
	}
}

// addRecord writes one commit with a file onto a ref.
func addRecord(tb testing.TB, path, ref, file, content string) {
	tb.Helper()
	var in strings.Builder
	fmt.Fprintf(&in, "commit %s\ncommitter M <m@example.org> 1700000000 +0000\ndata 1\nx\n", ref)
	if runGit(tb, path, "", "for-each-ref", ref) != "" {
		fmt.Fprintf(&in, "from %s^0\n", ref)
	}
	fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", file, len(content), content)
	runGit(tb, path, in.String(), "fast-import", "--quiet")
}

// Two models cannot have the same id: a copy beside the original must not take its place.
func TestImportOfACopy(t *testing.T) {
	s, m := lived(t)
	s.mirror()
	before := s.story(m)
	s.clone(m, s.dir, registry.MustModelName("acme/copy"))
	if err := s.Start(t.Context()); err != nil {
		t.Fatalf("Start = %v", err)
	}
	if got, err := s.data.Index.ModelByName(t.Context(), registry.MustModelName("acme/copy")); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("ModelByName of the copy = %+v, %v, want ErrNotFound", got, err)
	}
	if got := s.log.lines("it is a copy of acme/fraud"); len(got) != 1 {
		t.Errorf("logged %q, want one line that it is a copy", got)
	}
	if got := s.reload(m); got.Name != fraud {
		t.Errorf("the original is named %s now, want %s", got.Name, fraud)
	}
	if diff := cmp.Diff(before, s.story(m), named); diff != "" {
		t.Errorf("the original changed (-want +got):\n%s", diff)
	}
}

// The record says what was published, not the tag that came along.
func TestImportPutsTagsBack(t *testing.T) {
	s, m := lived(t)
	s.mirror()
	annotated := s.git(m.Name, "rev-parse", "v2.0.0")
	dir := t.TempDir()
	path := s.clone(m, dir, m.Name)
	runGit(t, path, "", "update-ref", "refs/tags/v2.0.0", "main~1")
	runGit(t, path, "", "tag", "-d", "v1.0.0")
	there := openDir(t, dir)
	if err := there.Start(t.Context()); err != nil {
		t.Fatalf("Start = %v", err)
	}
	for tag, want := range map[string]string{"v2.0.0": annotated, "v1.0.0": string(s.version(m, "v1.0.0").Version.Commit)} {
		if got := runGit(t, path, "", "rev-parse", "refs/tags/"+tag); got != want {
			t.Errorf("%s = %s after the import, want %s as published", tag, got, want)
		}
	}
	if events := there.events(0); len(events) != 0 {
		t.Errorf("events of an import: %q, want none", told(events))
	}
}

func TestParsePlace(t *testing.T) {
	tests := []struct {
		name, message string
		seq           uint64
		index         int
	}{
		{"of this journal", "publish v1.0.0\n\nHerdbook-Seq: 12.3 abc\n", 12, 3},
		{"behind a reason with one of another", "promotion\n\nHerdbook-Seq: 9.9 other\n\nHerdbook-Seq: 12.3 abc\n", 12, 3},
		{"of another journal", "publish v1.0.0\n\nHerdbook-Seq: 12.3 other\n", 0, 0},
		{"without", "publish v1.0.0\n", 0, 0},
		{"half", "Herdbook-Seq: 12 abc\n", 0, 0},
		{"negative", "Herdbook-Seq: 12.-3 abc\n", 0, 0},
		{"with something behind", "Herdbook-Seq: 12.3 abc def\n", 0, 0},
		// A person gives the reason, and must not make the server believe that its record is there.
		{"a reason that looks like one", "promotion\n\nHerdbook-Seq: 99.0 abc\n\nHerdbook-Seq: 12.3 abc\n", 12, 3},
	}
	for _, tt := range tests {
		if seq, index := lifecycle.ParsePlace(tt.message, "abc"); seq != tt.seq || index != tt.index {
			t.Errorf("%s: ParsePlace(%q) = %d.%d, want %d.%d", tt.name, tt.message, seq, index, tt.seq, tt.index)
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	f.Add("publish v1.0.0\n\nHerdbook-Seq: 12.3 abc\n", uint64(12), 3)
	f.Add("Herdbook-Seq: 1.+1 abc", uint64(0), 0)
	f.Add("Herdbook-Seq: 0x1.1 abc\r\n", uint64(1<<63), 1<<40)
	f.Fuzz(func(t *testing.T, message string, seq uint64, index int) {
		// Whatever stands before it, the last line counts.
		index = max(index, 0)
		whole := message + "\n" + lifecycle.Trailer(seq, index, "abc") + "\n"
		if gotSeq, gotIndex := lifecycle.ParsePlace(whole, "abc"); gotSeq != seq || gotIndex != index {
			t.Errorf("ParsePlace(%q) = %d.%d, want %d.%d", whole, gotSeq, gotIndex, seq, index)
		}
		// What is found stands there, as the server writes it.
		gotSeq, gotIndex := lifecycle.ParsePlace(message, "abc")
		if line := lifecycle.Trailer(gotSeq, gotIndex, "abc"); (gotSeq != 0 || gotIndex != 0) && !strings.Contains(message, line) {
			t.Errorf("ParsePlace(%q) = %d.%d, and %q does not stand there", message, gotSeq, gotIndex, line)
		}
	})
}
