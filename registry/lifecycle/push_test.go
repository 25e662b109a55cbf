package lifecycle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

const maxPlain = 10 << 20 // the default

func TestCheckPushRefuses(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	v1 := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"}).Version.Commit
	m = s.reload(m)
	deleted := s.model(registry.MustModelName("acme/reused"))
	s.publish(deleted, "v1.0.0", map[string]string{"README.md": "# Old\n"})
	if err := s.DeleteModel(t.Context(), by("ada"), deleted); err != nil {
		t.Fatal(err)
	}
	reused := s.model(deleted.Name)
	s.upload(reused, "weights of another model")
	s.upload(m, "weights")
	other, tree := blobID(7), blobID(8)
	good := registry.RefUpdate{Ref: "refs/heads/good", New: other}

	tests := []struct {
		name    string
		model   registry.Model
		updates []registry.RefUpdate
		blobs   []pushedBlob
		want    []string // in the text
	}{
		{
			"moved version", m,
			[]registry.RefUpdate{{Ref: "refs/tags/v1.0.0", Old: v1, New: other}},
			nil,
			[]string{"v1.0.0 is a published version and cannot be moved", "git fetch --tags --force"},
		},
		{
			"version set to what it is", m,
			[]registry.RefUpdate{{Ref: "refs/tags/v1.0.0", New: v1}},
			nil,
			[]string{"v1.0.0 is a published version and cannot be moved"},
		},
		{
			"version that is a tree", m,
			[]registry.RefUpdate{{Ref: "refs/tags/v3.0.0", New: tree}},
			nil,
			[]string{"v3.0.0 names a tree or a file, not a commit", "git tag -f v3.0.0"},
		},
		{
			"branch that git takes for HEAD", m,
			[]registry.RefUpdate{{Ref: "refs/heads/HEAD", New: other}},
			nil,
			[]string{`"HEAD" is a name that git programs take for something else`},
		},
		{
			"branch that looks like an option", m,
			[]registry.RefUpdate{{Ref: "refs/heads/-x", New: other}},
			nil,
			[]string{`"-x" is a name`},
		},
		{
			"deleted version", m,
			[]registry.RefUpdate{{Ref: "refs/tags/v1.0.0", Old: v1}},
			nil,
			[]string{"v1.0.0 is a published version and cannot be deleted"},
		},
		{
			"build metadata", m,
			[]registry.RefUpdate{{Ref: "refs/tags/v1.1.0+cuda.12", New: other}},
			nil,
			[]string{"v1.1.0+cuda.12 carries build metadata", "git tag v1.1.0 " + other.Short()},
		},
		{
			"version of a deleted model", reused,
			[]registry.RefUpdate{{Ref: "refs/tags/v1.0.0", New: other}},
			nil,
			[]string{"v1.0.0 was a version of a model acme/reused that was deleted"},
		},
		{
			"notes of the server", m,
			[]registry.RefUpdate{{Ref: registry.EvaluationNotesRef, New: other}},
			nil,
			[]string{registry.EvaluationNotesRef + " is written by the server only"},
		},
		{
			"records of the server", m,
			[]registry.RefUpdate{{Ref: "refs/herdbook/environments/production", New: other}},
			nil,
			[]string{"refs/herdbook/environments/production is written by the server only"},
		},
		{
			"replacement of an object", m,
			[]registry.RefUpdate{{Ref: "refs/replace/" + string(v1), New: other}},
			nil,
			[]string{"is written by the server only"},
		},
		{
			"deleted default branch", m,
			[]registry.RefUpdate{{Ref: "refs/heads/main", Old: v1}},
			nil,
			[]string{"main is the default branch of acme/fraud and cannot be deleted"},
		},
		{
			"name that is no ref", m,
			[]registry.RefUpdate{{Ref: "refs/heads/a b", New: other}},
			nil,
			[]string{`"refs/heads/a b" is not a name that a ref may have here`},
		},
		{
			"one bad ref among good ones", m,
			[]registry.RefUpdate{good, {Ref: "refs/tags/v1.0.0", Old: v1, New: other}, {Ref: "refs/tags/v1.1.0", New: other}},
			nil,
			[]string{"v1.0.0 is a published version and cannot be moved"},
		},
		{
			"more refs than may move at once", m,
			manyBranches(10_001), nil,
			[]string{"moves 10001 refs and at most 10000 may move at once"},
		},
		{
			"big plain file", m,
			[]registry.RefUpdate{good},
			[]pushedBlob{{path: "small.txt", content: "x"}, {path: "model/weights.bin", sizeBytes: maxPlain + 1}},
			[]string{"model/weights.bin is a plain Git blob of 10485761 bytes", `git lfs migrate import --include="model/weights.bin" --everything`},
		},
		{
			"missing LFS objects", m,
			[]registry.RefUpdate{good},
			[]pushedBlob{
				{path: "a.bin", content: pointerTo(strings.Repeat("a", 64), 5)},
				{path: "weights.bin", content: pointer("weights")},
				{path: "b.bin", content: pointerTo(strings.Repeat("b", 64), 5)},
			},
			[]string{"2 Git LFS objects", strings.Repeat("a", 64) + " a.bin\n", strings.Repeat("b", 64) + " b.bin\n", "git lfs push --all origin"},
		},
		{
			"LFS object of another model", m,
			[]registry.RefUpdate{good},
			[]pushedBlob{{path: "theirs.bin", content: pointer("weights of another model")}},
			[]string{"1 Git LFS objects", "theirs.bin"},
		},
		{
			"LFS pointer with another size", m,
			[]registry.RefUpdate{good},
			[]pushedBlob{{path: "weights.bin", content: strings.Replace(pointer("weights"), "size 7", "size 8", 1)}},
			[]string{"weights.bin (the object has 7 bytes, the pointer says 8)", "git lfs push --all origin"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := s.groups()
			err := s.CheckPush(t.Context(), by("ada"), tt.model, &push{id: "refused", updates: tt.updates, blobs: tt.blobs, trees: []registry.ObjectID{tree}})
			text := refusal(t, err)
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("CheckPush refuses with\n%s\nwant %q in it", text, want)
				}
			}
			if got := s.groups(); got != before {
				t.Errorf("a refused push added %d groups to the journal, want 0", got-before)
			}
		})
	}
}

func manyBranches(n int) []registry.RefUpdate {
	updates := make([]registry.RefUpdate, n)
	for i := range updates {
		updates[i] = registry.RefUpdate{Ref: fmt.Sprintf("refs/heads/b%d", i), New: blobID(i)}
	}
	return updates
}

func TestCheckPushShowsTwentyMissingObjects(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	p := &push{id: "p", updates: manyBranches(1)}
	for i := range 25 {
		p.blobs = append(p.blobs, pushedBlob{path: fmt.Sprintf("%d.bin", i), content: pointerTo(fmt.Sprintf("%064d", i), 1)})
	}
	text := refusal(t, s.CheckPush(t.Context(), by("ada"), m, p))
	if got := strings.Count(text, ".bin"); got != 20 || !strings.Contains(text, "and 5 more") {
		t.Errorf("CheckPush with 25 missing objects shows %d and says\n%s\nwant 20 and \"and 5 more\"", got, text)
	}
}

func TestCheckPushAccepts(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	v1 := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"}).Version.Commit
	m = s.reload(m)
	s.upload(m, "weights")
	p := &push{
		id: "accepted",
		updates: []registry.RefUpdate{
			{Ref: "refs/tags/v1.1.0", New: v1},
			{Ref: "refs/tags/experiment", New: v1},
			{Ref: "refs/tags/v1", New: v1},
			{Ref: "refs/tags/1.0.0", New: v1},
			{Ref: "refs/tags/v01.0.0", New: v1},
			{Ref: "refs/tags/v1.0.0+old", Old: v1}, // one from before goes away
			{Ref: "refs/heads/main", Old: v1, New: blobID(1)},
			{Ref: "refs/heads/other", Old: v1},
			{Ref: "refs/notes/mine", New: v1},
		},
		options: []string{"ci.skip"},
		blobs: []pushedBlob{
			{path: "weights.bin", content: pointer("weights")},
			{path: "limit.bin", sizeBytes: maxPlain},
			{path: "README.md", content: "version https://git-lfs.github.com/spec/v1 is a line of a text, and this is no pointer"},
		},
	}
	if err := s.CheckPush(t.Context(), by("grace"), m, p); err != nil {
		t.Fatalf("CheckPush = %v, want nil", err)
	}
	intents, err := s.data.Index.Intents(t.Context(), m.ID)
	if err != nil || len(intents) != 1 {
		t.Fatalf("Intents = %v, %v, want the push", intents, err)
	}
	want := registry.PushIntent{
		PushStarted: registry.PushStarted{PushID: "accepted", ModelID: m.ID, Options: p.options, Updates: p.updates}, Actor: "grace", At: intents[0].At,
	}
	if diff := cmp.Diff(want, intents[0]); diff != "" {
		t.Errorf("the push in the journal (-want +got):\n%s", diff)
	}
}

func TestPlainTagsAreKept(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	v := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	last := s.lastEvent()
	s.tag(m.Name, "experiment", v.Version.Commit)
	s.tag(m.Name, "v2", v.Version.Commit)
	report := s.reconcile(m)
	if diff := cmp.Diff([]string{
		"ref.updated refs/tags/experiment by herdbook",
		"ref.updated refs/tags/v2 by herdbook",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events of tags that are no versions (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"tag experiment is not a version of the form v1.2.3; it is kept as a plain Git tag",
		"tag v2 is not a version of the form v1.2.3; it is kept as a plain Git tag",
	}, report.Notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func TestPushIsAnnouncedWithItsActor(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.commit(m.Name, "draft", map[string]string{"README.md": "# Model\n"})
	last := s.lastEvent()
	updates := []registry.RefUpdate{{Ref: "refs/heads/main", New: commit}, {Ref: "refs/tags/v1.0.0", New: commit}}
	if err := s.CheckPush(t.Context(), by("grace"), m, &push{id: "p1", updates: updates}); err != nil {
		t.Fatal(err)
	}
	s.git(m.Name, "update-ref", "refs/heads/main", string(commit))
	s.tag(m.Name, "v1.0.0", commit)
	report, err := s.FinishPush(t.Context(), m, "p1", updates)
	if err != nil {
		t.Fatalf("FinishPush = %v", err)
	}
	if diff := cmp.Diff([]string{"v1.0.0"}, publishedTags(report)); diff != "" {
		t.Errorf("published by FinishPush (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"policy.changed by grace",
		"ref.updated refs/heads/draft by herdbook", // nobody pushed it
		"ref.updated refs/heads/main by grace",
		"version.published v1.0.0 by grace",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events of a push (-want +got):\n%s", diff)
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 0 {
		t.Errorf("Intents after FinishPush = %v, %v, want none", intents, err)
	}
}

// The refs of a push move before it is finished. Another call may see them first, and must not
// take somebody else for the one who published: an approval by the publisher does not count.
func TestVersionOfPushUnderWayHasItsActor(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	s.reconcile(m)
	update := registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit}
	if err := s.CheckPush(t.Context(), by("grace"), m, &push{id: "slow", updates: []registry.RefUpdate{update}}); err != nil {
		t.Fatal(err)
	}
	s.tag(m.Name, "v1.0.0", commit)
	s.reconcile(m)
	if got := s.version(m, "v1.0.0").Version.PublishedBy; got != "grace" {
		t.Errorf("version that another call published while its push was under way: PublishedBy = %q, want grace", got)
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 1 {
		t.Errorf("Intents while the push is under way = %v, %v, want it", intents, err)
	}
	if _, err := s.FinishPush(t.Context(), m, "slow", []registry.RefUpdate{update}); err != nil {
		t.Fatal(err)
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 0 {
		t.Errorf("Intents after FinishPush = %v, %v, want none", intents, err)
	}
}

// Pushes go on while the refs are read.
func TestPushWhileRefsAreRead(t *testing.T) {
	tests := []struct {
		name    string
		started bool // before the refs are read
		ended   bool // behind that, and before all else is read
	}{
		{name: "starts and moves its ref before"},
		{name: "ends behind", started: true, ended: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			watch := &watchedRepositories{}
			s := open(t, func(f *faults) { watch.Repositories, f.Repositories = f.Repositories, watch })
			m, other := s.model(fraud), s.model(registry.MustModelName("acme/other"))
			commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
			s.reconcile(m)
			update := registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit}
			start := func() {
				if err := s.CheckPush(t.Context(), by("grace"), m, &push{id: "p", updates: []registry.RefUpdate{update}}); err != nil {
					t.Error(err)
				}
			}
			if tt.started {
				start()
			}
			watch.beforeRefs = func() {
				watch.beforeRefs = nil
				if !tt.started {
					start()
					s.tag(m.Name, "v1.0.0", commit)
				}
			}
			watch.afterRefs = func() {
				watch.afterRefs = nil
				if tt.ended {
					s.tag(m.Name, "v1.0.0", commit)
					// The end of the push, but for the look at its own model, which waits for this one.
					if _, err := s.FinishPush(t.Context(), other, "p", nil); err != nil {
						t.Error(err)
					}
				}
			}
			s.reconcile(m)
			s.reconcile(m)
			if got := s.version(m, "v1.0.0").Version.PublishedBy; got != "grace" {
				t.Errorf("PublishedBy = %q, want grace", got)
			}
		})
	}
}

func TestCrashBetweenRefsAndIndex(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	m := s.model(fraud)
	commit := s.commit(m.Name, "draft", map[string]string{"README.md": "# Model\n"})
	s.reconcile(m)
	updates := []registry.RefUpdate{{Ref: "refs/heads/feature", New: commit}, {Ref: "refs/tags/v1.0.0", New: commit}}
	if err := s.CheckPush(t.Context(), by("grace"), m, &push{id: "p1", updates: updates}); err != nil {
		t.Fatal(err)
	}
	s.git(m.Name, "update-ref", "refs/heads/feature", string(commit))
	s.tag(m.Name, "v1.0.0", commit)
	last := s.lastEvent()
	s.close()

	s = openDir(t, dir)
	if err := s.Start(t.Context()); err != nil {
		t.Fatalf("Start = %v", err)
	}
	if diff := cmp.Diff([]string{
		"ref.updated refs/heads/feature by grace",
		"version.published v1.0.0 by grace",
	}, told(s.events(last))); diff != "" {
		t.Errorf("events after the start (-want +got):\n%s", diff)
	}
	if got := s.version(m, "v1.0.0").Version.PublishedBy; got != "grace" {
		t.Errorf("PublishedBy = %q, want grace", got)
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 0 {
		t.Errorf("Intents after the start = %v, %v, want none", intents, err)
	}
}

// A first push that is refused leaves no model behind; one that is not makes it.
func TestFirstPush(t *testing.T) {
	s := open(t)
	ctx, last := t.Context(), s.lastEvent()
	target, err := s.PushTarget(ctx, by("ada"), fraud)
	if err != nil || target.ID != "" {
		t.Fatalf("PushTarget of a name without a model = %+v, %v, want no model yet", target, err)
	}
	bad := &push{id: "bad", updates: []registry.RefUpdate{{Ref: registry.VersionsRef, New: blobID(1)}}}
	_, err = s.CheckFirstPush(ctx, by("ada"), fraud, bad)
	refusal(t, err)
	if _, err := s.data.Index.ModelByName(ctx, fraud); !errors.Is(err, registry.ErrNotFound) || len(s.events(last)) != 0 {
		t.Errorf("after a first push that was refused: %v, events %q, want no model and no event", err, told(s.events(last)))
	}
	good := &push{id: "good", updates: manyBranches(1)}
	m, err := s.CheckFirstPush(ctx, by("ada"), fraud, good)
	if err != nil || m.Name != fraud || m.ID == "" {
		t.Fatalf("CheckFirstPush = %+v, %v, want the model", m, err)
	}
	if intents, err := s.data.Index.Intents(ctx, m.ID); len(intents) != 1 || intents[0].PushID != "good" || err != nil {
		t.Errorf("Intents = %+v, %v, want the push", intents, err)
	}
	if target, err := s.PushTarget(ctx, by("ada"), fraud); target.ID != m.ID || err != nil {
		t.Errorf("PushTarget of a model = %+v, %v, want it", target, err)
	}
	// Two first pushes at once: the second finds the model that the first has made.
	if second, err := s.CheckFirstPush(ctx, by("ada"), fraud, &push{id: "second", updates: manyBranches(1)}); second.ID != m.ID || err != nil {
		t.Errorf("second CheckFirstPush = %+v, %v, want the same model", second, err)
	}
	if err := s.DeleteModel(ctx, by("ada"), m); err != nil {
		t.Fatal(err)
	}
	if target, err := s.PushTarget(ctx, by("ada"), fraud); target.ID == "" || target.ID == m.ID || err != nil {
		t.Errorf("PushTarget of a deleted model's name = %+v, %v, want a new model", target, err)
	}
}
