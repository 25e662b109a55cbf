package lifecycle_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// as is a request of a person with a role.
func as(name string, role access.Role) lifecycle.Request {
	return lifecycle.Request{Identity: access.Identity{Name: name, Role: role}}
}

const gated = `environments:
  staging: {gates: ["metrics.f1 >= 0.8"]}
  open: {}
`

// pushed moves refs as a push with options does.
func (s *site) pushed(m registry.Model, id string, by lifecycle.Request, options []string, updates ...registry.RefUpdate) lifecycle.Report {
	s.tb.Helper()
	if err := s.CheckPush(s.tb.Context(), by, m, &push{id: id, updates: updates, options: options}); err != nil {
		s.tb.Fatalf("CheckPush = %v", err)
	}
	for _, u := range updates {
		s.git(m.Name, "update-ref", u.Ref, string(u.New))
	}
	report, err := s.FinishPush(s.tb.Context(), m, id, updates)
	if err != nil {
		s.tb.Fatalf("FinishPush = %v", err)
	}
	return report
}

func TestPushOptionPromote(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.policy(m, gated)
	m = s.reload(m)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n", "herdbook.yaml": gated})
	report := s.pushed(m, "p1", as("grace", access.Maintainer), []string{"promote=open", "promote=staging", "promote=nowhere", "promote=open"},
		registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit})
	want := []string{
		"v1.0.0 was promoted to open",
		"v1.0.0 was not promoted to staging: ",
		"v1.0.0 was not promoted to nowhere: ",
	}
	if len(report.Notes) != len(want) {
		t.Fatalf("notes = %q, want %q", report.Notes, want)
	}
	for i, note := range report.Notes {
		if !strings.HasPrefix(note, want[i]) {
			t.Errorf("note %d = %q, want it to begin with %q", i, note, want[i])
		}
	}
	state, err := s.data.Index.Environment(t.Context(), m.ID, registry.MustEnvironmentName("open"))
	if err != nil || state.Version().String() != "v1.0.0" || state.Current.By != "grace" || !strings.Contains(state.Current.Reason, "git push -o promote=open") {
		t.Errorf("open holds %+v, %v, want v1.0.0 by grace with the option as the reason", state.Current, err)
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 0 {
		t.Errorf("Intents after the push = %v, %v, want none", intents, err)
	}
}

func TestPushOptionPromoteWithoutVersion(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	report := s.pushed(m, "p1", by("ada"), []string{"promote=staging", "ci.skip"}, registry.RefUpdate{Ref: "refs/heads/main", New: commit})
	for _, want := range []string{"nothing was promoted: the push brought no version", `"ci.skip" is not known`} {
		if !slices.ContainsFunc(report.Notes, func(n string) bool { return strings.Contains(n, want) }) {
			t.Errorf("notes = %q, want one with %q", report.Notes, want)
		}
	}
}

// The server dies after the version was published and before it was promoted: the next one promotes it, once.
func TestPushOptionPromoteAfterACrash(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.policy(m, gated)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n", "herdbook.yaml": gated})
	update := registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit}
	if err := s.CheckPush(t.Context(), by("ada"), m, &push{id: "p1", updates: []registry.RefUpdate{update}, options: []string{"promote=open"}}); err != nil {
		t.Fatal(err)
	}
	s.git(m.Name, "update-ref", update.Ref, string(update.New))
	s.close()
	s = openDir(t, s.dir)
	for range 2 {
		s.reconcile(m)
	}
	if diff := cmp.Diff([]string{"promotion v1.0.0"}, kinds(t, s, m)); diff != "" {
		t.Errorf("history of open (-want +got):\n%s", diff)
	}
}

func kinds(t *testing.T, s *site, m registry.Model) []string {
	t.Helper()
	history, _, err := s.data.Index.History(t.Context(), m.ID, registry.MustEnvironmentName("open"), registry.Page{})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, c := range history {
		found = append(found, string(c.Kind)+" "+c.Version.String())
	}
	return found
}

// Everything is recorded, and nobody is told: not of the push, nor of what follows from it.
func TestPushOptionNoDeliver(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	auto := "environments:\n  staging: {promote: auto}\n"
	commit := s.commit(m.Name, "draft", map[string]string{"README.md": "# Model\n", "herdbook.yaml": auto})
	s.reconcile(m)
	last := s.lastEvent()
	s.pushed(m, "p1", as("grace", access.Maintainer), []string{"no-deliver"},
		registry.RefUpdate{Ref: "refs/heads/main", New: commit}, registry.RefUpdate{Ref: "refs/tags/v1.0.0", New: commit})
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	events := s.events(last)
	if !slices.Contains(told(events), "environment.promoted v1.0.0 staging by herdbook") {
		t.Errorf("events = %q, want the automatic promotion among them", told(events))
	}
	for _, e := range events {
		if len(e.Sinks) > 0 || !e.Withheld {
			t.Errorf("event %s of a push with no-deliver goes to %v, withheld %t", e.Type, e.Sinks, e.Withheld)
		}
	}
	next := s.commit(m.Name, "other", map[string]string{"README.md": "# Other\n"})
	s.reconcile(m)
	last = s.lastEvent()
	s.pushed(m, "p2", by("ada"), nil, registry.RefUpdate{Ref: "refs/heads/main", Old: commit, New: next})
	for _, e := range s.events(last) {
		if e.Withheld {
			t.Errorf("event %s of a push without options is withheld", e.Type)
		}
	}
}

func TestPushOptionsThatMayNotBeGiven(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	for _, test := range []struct {
		option string
		role   access.Role
		want   string
	}{
		{"promote=staging", access.Writer, "you may push to acme/fraud and not promote"},
		{"no-deliver", access.Writer, "only maintainers of acme/fraud push without telling anybody"},
		{"promote=Prod!", access.Admin, "names no environment"},
		{"promote", access.Admin, "names no environment"},
	} {
		before := s.groups()
		p := &push{id: "p", updates: manyBranches(1), options: []string{test.option}}
		if text := refusal(t, s.CheckPush(t.Context(), as("bob", test.role), m, p)); !strings.Contains(text, test.want) {
			t.Errorf("-o %s as a %s is refused with\n%s\nwant %q in it", test.option, test.role, text, test.want)
		}
		if got := s.groups(); got != before {
			t.Errorf("-o %s: a refused push added %d groups to the journal", test.option, got-before)
		}
	}
}

func TestProtectedRefs(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	protected := registry.Protection{Branches: []string{"main", "release/*"}, Tags: []string{"audited-*"}}
	m, err := s.ChangeModel(t.Context(), by("ada"), m, lifecycle.ModelChange{Protected: &protected})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(protected, s.reload(m).Protected); diff != "" {
		t.Fatalf("protection of the model (-want +got):\n%s", diff)
	}
	one, two, three := blobID(1), blobID(2), blobID(3)
	for _, test := range []struct {
		name   string
		role   access.Role
		update registry.RefUpdate
		want   string // in the refusal; none without one
	}{
		{"a writer to main", access.Writer, registry.RefUpdate{Ref: "refs/heads/main", Old: one, New: two}, "main is protected in acme/fraud: only maintainers push to it"},
		{"a writer elsewhere", access.Writer, registry.RefUpdate{Ref: "refs/heads/feature", Old: two, New: one}, ""},
		{"a writer makes a release branch", access.Writer, registry.RefUpdate{Ref: "refs/heads/release/1.0", New: one}, "release/1.0 is protected"},
		{"a writer makes a tag", access.Writer, registry.RefUpdate{Ref: "refs/tags/audited-1", New: one}, "audited-1 is protected"},
		{"a maintainer goes on", access.Maintainer, registry.RefUpdate{Ref: "refs/heads/main", Old: one, New: two}, ""},
		{"a maintainer makes a branch", access.Maintainer, registry.RefUpdate{Ref: "refs/heads/release/1.0", New: one}, ""},
		{"a maintainer rewrites", access.Maintainer, registry.RefUpdate{Ref: "refs/heads/main", Old: one, New: three}, "would take commits out of its history"},
		{"an administrator rewrites", access.Admin, registry.RefUpdate{Ref: "refs/heads/main", Old: one, New: three}, "git pull --rebase origin main"},
		{"an administrator deletes", access.Admin, registry.RefUpdate{Ref: "refs/heads/release/1.0", Old: one}, "release/1.0 is protected in acme/fraud and cannot be deleted"},
		{"a maintainer makes a tag", access.Maintainer, registry.RefUpdate{Ref: "refs/tags/audited-1", New: one}, ""},
		{"a maintainer moves a tag", access.Maintainer, registry.RefUpdate{Ref: "refs/tags/audited-1", Old: one, New: two}, "audited-1 is protected in acme/fraud and cannot be moved"},
		{"a maintainer deletes a tag", access.Maintainer, registry.RefUpdate{Ref: "refs/tags/audited-1", Old: one}, "cannot be deleted"},
	} {
		p := &push{id: test.name, updates: []registry.RefUpdate{test.update}, follows: [][2]registry.ObjectID{{one, two}}}
		err := s.CheckPush(t.Context(), as("bob", test.role), m, p)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: CheckPush = %v, want nil", test.name, err)
		case test.want != "":
			if text := refusal(t, err); !strings.Contains(text, test.want) {
				t.Errorf("%s is refused with\n%s\nwant %q in it", test.name, text, test.want)
			}
		}
	}
}

// Whoever may push may not lower the bar that their own version has to pass.
func TestPolicyIsChangedByMaintainers(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	first := &push{id: "first", updates: []registry.RefUpdate{{Ref: "refs/heads/main", New: blobID(1)}}, files: map[string]registry.ObjectID{string(blobID(1)) + ":herdbook.yaml": blobID(7)}}
	if err := s.CheckPush(t.Context(), as("wanda", access.Writer), m, first); err != nil {
		t.Errorf("the first policy of a model, by a writer: %v, want nil", err)
	}
	if err := s.EndPush(t.Context(), m, "first"); err != nil {
		t.Fatal(err)
	}
	s.policy(m, gated)
	m = s.reload(m)
	state, err := s.data.Index.Policy(t.Context(), m.ID)
	if err != nil || state.Blob == "" {
		t.Fatalf("Policy = %+v, %v, want one", state, err)
	}
	same, other, none := blobID(2), blobID(3), blobID(4)
	files := map[string]registry.ObjectID{string(same) + ":herdbook.yaml": state.Blob, string(other) + ":herdbook.yaml": blobID(8)}
	for _, test := range []struct {
		name string
		role access.Role
		ref  string
		to   registry.ObjectID
		ok   bool
	}{
		{"a writer leaves it", access.Writer, "refs/heads/main", same, true},
		{"a writer changes it", access.Writer, "refs/heads/main", other, false},
		{"a writer takes it away", access.Writer, "refs/heads/main", none, false},
		{"a writer changes it elsewhere", access.Writer, "refs/heads/draft", other, true},
		{"a maintainer changes it", access.Maintainer, "refs/heads/main", other, true},
	} {
		p := &push{id: test.name, updates: []registry.RefUpdate{{Ref: test.ref, Old: blobID(1), New: test.to}}, files: files}
		err := s.CheckPush(t.Context(), as("bob", test.role), m, p)
		switch {
		case test.ok && err != nil:
			t.Errorf("%s: CheckPush = %v, want nil", test.name, err)
		case !test.ok:
			if text := refusal(t, err); !strings.Contains(text, "changes herdbook.yaml on main, and only maintainers of acme/fraud do that") {
				t.Errorf("%s is refused with\n%s", test.name, text)
			}
		}
	}
}

func TestCheckPushRefusesHostileTrees(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.upload(m, "weights")
	bomb := blobID(9)
	oid := strings.Repeat("a", 64)
	for _, test := range []struct {
		name string
		push push
		want string
	}{
		{"a version with too many files", push{updates: []registry.RefUpdate{{Ref: "refs/tags/v1.0.0", New: bomb}}, bombs: []registry.ObjectID{bomb}}, "v1.0.0 cannot become a version: more than 7 files"},
		{"a pointer whose size is beyond int64", push{blobs: []pushedBlob{{path: "w.bin", content: strings.Replace(pointerTo(oid, 7), "size 7", "size 9223372036854775808", 1)}}}, "    w.bin"},
		{"a pointer with two objects", push{blobs: []pushedBlob{{path: "w.bin", content: strings.Replace(pointer("weights"), "size", "oid sha256:"+oid+"\nsize", 1)}}}, "look like Git LFS pointers and are none"},
		{"a pointer with CRLF", push{blobs: []pushedBlob{{path: "w.bin", content: strings.ReplaceAll(pointer("weights"), "\n", "\r\n")}}}, "git rm --cached FILE"},
		{"a submodule's path with CR", push{blobs: []pushedBlob{{path: "sub/.gitmodules", content: "[submodule \"x\"]\n\tpath = \"x\r\"\n"}}}, "sub/.gitmodules has a carriage return"},
	} {
		p := test.push
		p.id = "p"
		if p.updates == nil {
			p.updates = manyBranches(1)
		}
		if text := refusal(t, s.CheckPush(t.Context(), by("ada"), m, &p)); !strings.Contains(text, test.want) {
			t.Errorf("%s is refused with\n%s\nwant %q in it", test.name, text, test.want)
		}
	}
}
