package lifecycle_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

func TestReconcileTwice(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.tag(m.Name, "v1.0.0", s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n", registry.PolicyFile: "environments: {staging: {promote: auto}}\n"}))
	if got := publishedTags(s.reconcile(m)); !slices.Equal(got, []string{"v1.0.0"}) {
		t.Fatalf("first Reconcile published %q, want v1.0.0", got)
	}
	if got := s.in(m, staging); got != "v1.0.0" {
		t.Fatalf("staging holds %q, want v1.0.0", got)
	}
	groups, events := s.groups(), s.events(0)
	report := s.reconcile(m)
	if diff := cmp.Diff(lifecycle.Report{}, report); diff != "" {
		t.Errorf("second Reconcile reports (-want +got):\n%s", diff)
	}
	if got := s.groups(); got != groups {
		t.Errorf("second Reconcile added %d groups to the journal, want 0", got-groups)
	}
	if diff := cmp.Diff(told(events), told(s.events(0))); diff != "" {
		t.Errorf("events after a second Reconcile (-want +got):\n%s", diff)
	}
}

// forgetful has not seen what was announced, as an index that is behind.
type forgetful struct{ lifecycle.Index }

func (forgetful) Refs(context.Context, string) (map[string]registry.AnnouncedRef, error) {
	return map[string]registry.AnnouncedRef{}, nil
}

func TestSameChangeFoundTwiceIsOneEvent(t *testing.T) {
	s := open(t, func(f *faults) { f.Index = forgetful{f.Index} })
	m := s.model(fraud)
	s.tag(m.Name, "v1.0.0", s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"}))
	s.reconcile(m)
	groups, events := s.groups(), s.events(0)
	s.reconcile(m)
	if s.groups() == groups {
		t.Fatal("the second Reconcile found nothing to announce: the test tests nothing")
	}
	if diff := cmp.Diff(events, s.events(0), named); diff != "" {
		t.Errorf("events after the same change was announced again (-want +got):\n%s", diff)
	}
}

func TestRefThatComesBackIsAnotherEvent(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	first := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	s.reconcile(m)
	second := s.commit(m.Name, "main", map[string]string{"README.md": "# Model 2\n"})
	s.reconcile(m)
	last := s.lastEvent()
	for _, id := range []registry.ObjectID{first, second} {
		s.git(m.Name, "update-ref", "refs/heads/main", string(id))
		s.reconcile(m)
	}
	s.git(m.Name, "update-ref", "-d", "refs/heads/main")
	s.reconcile(m)
	s.git(m.Name, "update-ref", "refs/heads/main", string(first))
	s.reconcile(m)
	moves := slices.DeleteFunc(s.events(last), func(e registry.Event) bool { return e.Type != registry.EventRefUpdated })
	if len(moves) != 4 {
		t.Errorf("a branch moved four times, back and forth, and %d moves were announced: %q", len(moves), told(moves))
	}
}

func TestRefBehindTheServersBack(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	last := s.lastEvent()
	s.tag(m.Name, "v1.1.0", s.commit(m.Name, "main", map[string]string{"README.md": "# Model 2\n"}))
	want := []string{"ref.updated refs/heads/main by herdbook", "version.published v1.1.0 by herdbook"}
	for range 2 { // starts
		s.close()
		s = openDir(t, dir)
		if err := s.look(); err != nil {
			t.Fatalf("look = %v", err)
		}
		if diff := cmp.Diff(want, told(s.events(last))); diff != "" {
			t.Errorf("events of refs that were written while the server was stopped (-want +got):\n%s", diff)
		}
	}
}

func TestPublishedTagIsPutBack(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *site, m registry.Model, other registry.ObjectID)
	}{
		{"moved", func(s *site, m registry.Model, other registry.ObjectID) { s.tag(m.Name, "v1.0.0", other) }},
		{"deleted", func(s *site, m registry.Model, _ registry.ObjectID) { s.git(m.Name, "tag", "-d", "v1.0.0") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			m := s.model(fraud)
			commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
			s.git(m.Name, "tag", "-a", "-m", "First", "v1.0.0", string(commit))
			annotated := s.git(m.Name, "rev-parse", "v1.0.0")
			s.reconcile(m)
			before, last := s.version(m, "v1.0.0"), s.lastEvent()
			tt.change(s, m, s.commit(m.Name, "main", map[string]string{"README.md": "# Other\n"}))
			report := s.reconcile(m)
			if got := s.git(m.Name, "rev-parse", "v1.0.0"); got != annotated {
				t.Errorf("refs/tags/v1.0.0 = %s, want the published tag object %s", got, annotated)
			}
			if diff := cmp.Diff(before, s.version(m, "v1.0.0"), named); diff != "" {
				t.Errorf("the version changed (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"ref.updated refs/heads/main by herdbook"}, told(s.events(last))); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "v1.0.0 was published already") {
				t.Errorf("notes = %q, want one that v1.0.0 was published already", report.Notes)
			}
			if got := s.log.lines("is put back"); len(got) != 1 {
				t.Errorf("logged lines about the tag = %q, want 1", got)
			}
		})
	}
}

func TestTagThatCannotBePutBack(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	v := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	s.git(m.Name, "tag", "-d", "v1.0.0")
	s.git(m.Name, "update-ref", "-d", "refs/heads/main")
	s.git(m.Name, "-c", "gc.reflogExpire=now", "gc", "-q", "--prune=now")
	other := s.commit(m.Name, "other", map[string]string{"README.md": "# Other\n"})
	s.tag(m.Name, "v0.9.0", other)
	s.tag(m.Name, "v2.0.0", other)
	report := s.reconcile(m)
	if diff := cmp.Diff([]string{"v0.9.0", "v2.0.0"}, publishedTags(report)); diff != "" {
		t.Errorf("published beside a tag whose object is gone (-want +got):\n%s", diff)
	}
	if got := s.log.lines("cannot be put back"); len(got) != 1 || !strings.Contains(got[0], "version=v1.0.0") || !strings.Contains(got[0], string(v.Version.Commit)) {
		t.Errorf("logged lines about the tag = %q, want one that names v1.0.0 and %s", got, v.Version.Commit)
	}
	if got := s.version(m, "v1.0.0").Version.Artifact; got != v.Version.Artifact {
		t.Errorf("artifact of v1.0.0 = %v, want %v", got, v.Version.Artifact)
	}
}

func TestTagsThatCanBeNoVersion(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	s.tag(m.Name, "v0.1.0", registry.ObjectID(s.git(m.Name, "rev-parse", "main^{tree}")))
	s.tag(m.Name, "v0.2.0", registry.ObjectID(s.git(m.Name, "rev-parse", "main:README.md")))
	s.git(m.Name, "tag", "-a", "-m", "a tree", "v0.3.0", "main^{tree}")
	s.tag(m.Name, "v0.4.0", s.commit(m.Name, "empty", nil))
	s.tag(m.Name, "v1.0.0", commit)
	for range 2 {
		report := s.reconcile(m)
		if diff := cmp.Diff([]string{
			"v0.1.0 is not published: it names no commit: not a version",
			"v0.2.0 is not published: it names no commit: not a version",
			"v0.3.0 is not published: it names no commit: not a version",
		}, report.Notes[:3]); diff != "" {
			t.Errorf("notes (-want +got):\n%s", diff)
		}
		if len(report.Notes) != 4 || !strings.Contains(report.Notes[3], "has no file") {
			t.Errorf("notes = %q, want a fourth that the tree has no file", report.Notes)
		}
		if report.Pending {
			t.Error("Pending = true, want false: nothing but another tag can help")
		}
	}
	versions, err := s.data.Index.Versions(t.Context(), m.ID)
	if err != nil || len(versions) != 1 || versions[0].Version.Tag.String() != "v1.0.0" {
		t.Errorf("versions = %v, %v, want v1.0.0 alone", versions, err)
	}
}

func TestVersionWaitsForItsObjects(t *testing.T) {
	watch := &watchedRepositories{}
	s := open(t, func(f *faults) { watch.Repositories, f.Repositories = f.Repositories, watch })
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n", "weights.bin": pointer("weights")})
	s.tag(m.Name, "v1.0.0", commit)
	s.tag(m.Name, "v0.9.0", s.commit(m.Name, "old", map[string]string{"README.md": "# Model\n"}))
	report := s.reconcile(m)
	if !report.Pending || !slices.Equal(publishedTags(report), []string{"v0.9.0"}) {
		t.Fatalf("Reconcile without the object: Pending = %v, published %v, want true and v0.9.0", report.Pending, publishedTags(report))
	}
	if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "of weights.bin is not on the server") {
		t.Errorf("notes = %q, want one that names weights.bin", report.Notes)
	}
	sweep := func(want int64, what string) {
		t.Helper()
		watch.listed.Store(0)
		if err := s.look(); err != nil {
			t.Fatalf("look = %v", err)
		}
		if got := watch.listed.Load(); got != want {
			t.Errorf("%s: the refs were listed %d times, want %d", what, got, want)
		}
	}
	groups := s.groups()
	sweep(1, "sweep while the object is missing")
	sweep(1, "another sweep while the object is missing")
	if got := s.groups(); got != groups {
		t.Errorf("the sweeps added %d groups to the journal, want 0", got-groups)
	}
	d := s.upload(m, "weights")
	sweep(1, "sweep after the object came")
	v := s.version(m, "v1.0.0").Version
	want := registry.File{Path: "weights.bin", Digest: d, SizeBytes: 7, LFS: true}
	if i := slices.IndexFunc(v.Files, func(f registry.File) bool { return f.Path == want.Path }); i < 0 || v.Files[i] != want {
		t.Errorf("files of v1.0.0 = %v, want %v among them", v.Files, want)
	}
	sweep(0, "sweep after all is published")
}

// Only the push knows who published: what is published later is still theirs.
func TestVersionThatWaitedHasItsActor(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"weights.bin": pointer("weights")})
	update := registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit}
	if err := s.CheckPush(t.Context(), by("grace"), m, &push{id: "p1", updates: []registry.RefUpdate{update}}); err != nil {
		t.Fatal(err)
	}
	s.tag(m.Name, "v1.0.0", commit)
	if report, err := s.FinishPush(t.Context(), m, "p1", []registry.RefUpdate{update}); err != nil || !report.Pending {
		t.Fatalf("FinishPush = Pending %v, %v, want true, nil", report.Pending, err)
	}
	s.upload(m, "weights")
	s.reconcile(m)
	if got := s.version(m, "v1.0.0").Version.PublishedBy; got != "grace" {
		t.Errorf("PublishedBy of a version that waited for its objects = %q, want grace", got)
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 0 {
		t.Errorf("Intents after the version is published = %v, %v, want none", intents, err)
	}
}

func TestSweepDoesNothingWhenNoRefMoved(t *testing.T) {
	watch := &watchedRepositories{}
	s := open(t, func(f *faults) { watch.Repositories, f.Repositories = f.Repositories, watch })
	m := s.model(fraud)
	other := s.model(registry.MustModelName("acme/other"))
	for _, of := range []registry.Model{m, other} {
		s.publish(of, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	}
	sweep := func() int64 {
		t.Helper()
		watch.listed.Store(0)
		if err := s.look(); err != nil {
			t.Fatalf("look = %v", err)
		}
		return watch.listed.Load()
	}
	if got := sweep(); got != 2 {
		t.Errorf("first sweep listed the refs of %d models, want both", got)
	}
	for i := range 2 {
		if got := sweep(); got != 0 {
			t.Errorf("sweep %d without a change listed the refs of %d models, want 0", i+2, got)
		}
	}
	s.git(m.Name, "update-ref", "refs/heads/new", "main")
	if got := sweep(); got != 1 {
		t.Errorf("sweep after a ref of one model moved listed the refs of %d models, want 1", got)
	}
}

func TestOneVersionThatFailsDoesNotStopTheRest(t *testing.T) {
	broken := &breakable{lost: map[string]bool{}}
	s := open(t, func(f *faults) { broken.Blobs, f.Blobs = f.Blobs, broken })
	m := s.model(fraud)
	d := s.upload(m, "weights") // the server owns it, and the store has lost it
	broken.lost[d.String()] = true
	s.tag(m.Name, "v1.0.0", s.commit(m.Name, "main", map[string]string{"model.safetensors": pointer("weights")}))
	s.tag(m.Name, "v1.1.0", s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"}))
	last := s.lastEvent()
	if _, err := s.Reconcile(t.Context(), m.ID); err == nil || !strings.Contains(err.Error(), "publish v1.0.0") {
		t.Errorf("Reconcile = %v, want an error that names v1.0.0", err)
	}
	if diff := cmp.Diff([]string{
		"policy.changed by herdbook",
		"ref.updated refs/heads/main by herdbook",
		"version.published v1.1.0 by herdbook",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events beside a version that fails (-want +got):\n%s", diff)
	}
	clear(broken.lost)
	if got := publishedTags(s.reconcile(m)); !slices.Equal(got, []string{"v1.0.0"}) {
		t.Errorf("published when the store is whole again: %q, want v1.0.0", got)
	}
}

// manyFiles are files of some 3,700 bytes each in the record of a version.
func manyFiles(n int) map[string]string {
	files := map[string]string{}
	for i := range n {
		files[fmt.Sprintf("%s%06d", strings.Repeat(strings.Repeat("d", 240)+"/", 15), i)] = pointer("weights")
	}
	return files
}

func TestLongMessageIsCut(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	s.gitInput(m.Name, strings.Repeat("é long message ", 1<<15), "tag", "-a", "-F", "-", "v1.0.0", string(commit))
	s.reconcile(m)
	v, err := s.data.Index.Version(t.Context(), m.ID, registry.MustTag("v1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Version.Message; len(got) > 17<<10 || !strings.HasPrefix(got, "é long message") || !strings.HasSuffix(got, "...") || !utf8.ValidString(got) {
		t.Errorf("the message of the version has %d bytes and ends in %q, want at most 17 KiB that end in dots", len(got), got[max(0, len(got)-10):])
	}
}

// A push can bring more versions than one group of the journal holds.
func TestManyVersionsAtOnce(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.upload(m, "weights")
	commit := s.commit(m.Name, "main", manyFiles(150))
	var want []string
	for i := range 3 {
		tag := fmt.Sprintf("v1.%d.0", i)
		s.tag(m.Name, tag, commit)
		want = append(want, tag)
	}
	groups, last := s.groups(), s.lastEvent()
	report := s.reconcile(m)
	if diff := cmp.Diff(want, publishedTags(report)); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	if got := s.groups() - groups; got < 2 {
		t.Fatalf("all were published in %d group: the test tests nothing", got)
	}
	if got := len(s.events(last)); got != len(want)+2 {
		t.Errorf("%d events, want one for each of %d versions, the branch and the policy", got, len(want))
	}
	for i, tag := range want[1:] {
		self, before := registry.VersionNodeID(m.ID, registry.MustTag(tag)), registry.VersionNodeID(m.ID, registry.MustTag(want[i]))
		if edges := s.edges(self); !slices.Contains(edges, registry.LineageEdge{From: self, To: before, Kind: registry.DerivedFrom, Relation: registry.Previous}) {
			t.Errorf("edges of %s = %v, want one to %s, its previous version", tag, edges, want[i])
		}
	}
	if diff := cmp.Diff(lifecycle.Report{}, s.reconcile(m)); diff != "" {
		t.Errorf("second Reconcile reports (-want +got):\n%s", diff)
	}
}

func TestVersionThatIsTooLargeToRecord(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.upload(m, "weights")
	s.tag(m.Name, "v1.0.0", s.commit(m.Name, "main", manyFiles(1800)))
	s.tag(m.Name, "v1.1.0", s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"}))
	report := s.reconcile(m)
	if diff := cmp.Diff([]string{"v1.1.0"}, publishedTags(report)); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "v1.0.0 is not published: its record would have") {
		t.Errorf("notes = %q, want one that the record of v1.0.0 is too large", report.Notes)
	}
}

func TestVersion(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	d := s.upload(m, "weights")
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	readme := "---\nlicense: mit\nbase_model: acme/base\ndatasets: [calls]\n---\n# Model\n"
	commit := s.commit(m.Name, "main", map[string]string{"README.md": readme, "weights.bin": pointer("weights")})
	s.git(m.Name, "tag", "-a", "-m", "Second", "v1.1.0", string(commit))
	object := registry.ObjectID(s.git(m.Name, "rev-parse", "v1.1.0"))
	s.reconcile(m)
	got := s.version(m, "v1.1.0")
	want := registry.VersionRecord{
		ModelID: m.ID, State: registry.Published, Image: registry.ImageStatus{State: registry.ImageBuilding},
		Version: registry.Version{
			Tag: registry.MustTag("v1.1.0"), Commit: commit, TagObject: object, Message: "Second\n", PublishedBy: "herdbook", Format: got.Version.Format,
			Files: []registry.File{
				{Path: "README.md", Digest: digest.FromString(readme), SizeBytes: int64(len(readme))},
				{Path: "weights.bin", Digest: d, SizeBytes: 7, LFS: true},
			},
		},
	}
	if diff := cmp.Diff(want, got, named, cmpopts.IgnoreFields(registry.Version{}, "PublishedAt", "Artifact", "Config", "Card")); diff != "" {
		t.Errorf("version (-want +got):\n%s", diff)
	}
	if got := got.Version.Card.License; got != "mit" {
		t.Errorf("license of the card = %q, want mit", got)
	}
	for _, blob := range []registry.Descriptor{got.Version.Artifact, got.Version.Config} {
		content, err := blobs{s.data.Blobs}.Get(t.Context(), blob.Digest)
		if err != nil {
			t.Errorf("%s %s: %v, want it in the store", blob.MediaType, blob.Digest, err)
			continue
		}
		content.Close()
	}
}
