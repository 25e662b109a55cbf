package lifecycle_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

func TestCreateModel(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	if _, err := os.Stat(filepath.Join(s.dir, "repos", "acme", "fraud.git", "HEAD")); err != nil {
		t.Errorf("repository of a new model: %v", err)
	}
	if _, err := s.CreateModel(t.Context(), by("ada"), fraud, registry.Public, ""); !errors.Is(err, registry.ErrExists) {
		t.Errorf("CreateModel of a name that is taken = %v, want ErrExists", err)
	}
	if _, err := s.CreateModel(t.Context(), by("ada"), registry.MustModelName("acme/long"), registry.Public, strings.Repeat("x", 4097)); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("CreateModel with a description of 4097 bytes = %v, want ErrInvalid", err)
	}
	same, err := s.EnsureModel(t.Context(), by("ada"), fraud)
	if diff := cmp.Diff(m, same, named); err != nil || diff != "" {
		t.Errorf("EnsureModel of a model that is there: %v (-want +got):\n%s", err, diff)
	}
	made, err := s.EnsureModel(t.Context(), by("grace"), registry.MustModelName("acme/pushed"))
	if err != nil || made.Visibility != registry.Public || made.CreatedBy != "grace" {
		t.Errorf("EnsureModel of a new name = %+v, %v, want a public model by grace", made, err)
	}
	if diff := cmp.Diff([]string{"model.created by ada", "model.created by grace"}, told(s.events(0))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestWithoutRights(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	v := s.release(m, "v1.0.0")
	tag := v.Version.Tag
	groups := s.groups()
	reader := lifecycle.Request{Identity: access.Anonymous(true)}
	for name, do := range map[string]func(context.Context) error{
		"CreateModel": func(ctx context.Context) error {
			_, err := s.CreateModel(ctx, reader, registry.MustModelName("acme/other"), registry.Public, "")
			return err
		},
		"EnsureModel": func(ctx context.Context) error {
			_, err := s.EnsureModel(ctx, reader, registry.MustModelName("acme/other"))
			return err
		},
		"EnsureModel of one that is there": func(ctx context.Context) error {
			_, err := s.EnsureModel(ctx, reader, fraud)
			return err
		},
		"ChangeModel": func(ctx context.Context) error {
			_, err := s.ChangeModel(ctx, reader, m, lifecycle.ModelChange{})
			return err
		},
		"DeleteModel": func(ctx context.Context) error { return s.DeleteModel(ctx, reader, m) },
		"RecordEvaluation": func(ctx context.Context) error {
			_, err := s.RecordEvaluation(ctx, reader, m, v.Version.Commit, f1Of(0.9))
			return err
		},
		"Promote": func(ctx context.Context) error {
			_, err := s.Promote(ctx, reader, m, production, lifecycle.Promotion{Version: tag})
			return err
		},
		"RollBack": func(ctx context.Context) error {
			_, err := s.RollBack(ctx, reader, m, production, tag, "")
			return err
		},
		"Approve": func(ctx context.Context) error {
			_, err := s.Approve(ctx, reader, m, production, tag, "")
			return err
		},
	} {
		if err := do(t.Context()); !errors.Is(err, registry.ErrUnauthenticated) {
			t.Errorf("%s by an anonymous reader = %v, want ErrUnauthenticated", name, err)
		}
	}
	if got := s.groups(); got != groups {
		t.Errorf("%d groups were added to the journal, want 0", got-groups)
	}
}

func TestChangeModel(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	last := s.lastEvent()
	text, private, long := "finds fraud", registry.Private, strings.Repeat("x", 4097)
	got, err := s.ChangeModel(t.Context(), by("ada"), m, lifecycle.ModelChange{Description: &text})
	if err != nil || got.Description != text || got.Visibility != registry.Public {
		t.Errorf("ChangeModel of the description = %+v, %v", got, err)
	}
	got, err = s.ChangeModel(t.Context(), by("ada"), m, lifecycle.ModelChange{Visibility: &private})
	if err != nil || got.Description != text || got.Visibility != private {
		t.Errorf("ChangeModel of the visibility = %+v, %v, want the description that was set before", got, err)
	}
	if _, err := s.ChangeModel(t.Context(), by("ada"), m, lifecycle.ModelChange{Description: &long}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("ChangeModel to a description of 4097 bytes = %v, want ErrInvalid", err)
	}
	if diff := cmp.Diff([]string{"model.visibility_changed by ada"}, told(s.events(last))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestDeletionAndReuseOfAName(t *testing.T) {
	s := open(t)
	old := s.model(fraud)
	s.publish(old, "v1.0.0", map[string]string{"README.md": "# Old\n"})
	last := s.lastEvent()
	if err := s.DeleteModel(t.Context(), by("ada"), old); err != nil {
		t.Fatalf("DeleteModel = %v", err)
	}
	if diff := cmp.Diff([]string{"model.deleted by ada"}, told(s.events(last))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if names, err := s.data.Repositories.List(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("repositories after the deletion = %v, %v, want none", names, err)
	}
	if err := s.DeleteModel(t.Context(), by("ada"), old); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("DeleteModel again = %v, want ErrNotFound", err)
	}
	if _, err := s.Reconcile(t.Context(), old.ID); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Reconcile of a deleted model = %v, want ErrNotFound", err)
	}

	m := s.model(fraud)
	if m.ID == old.ID {
		t.Fatalf("the new model has the id of the old one, %s", m.ID)
	}
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# New\n"})
	s.tag(m.Name, "v1.0.0", commit) // behind the server's back; CheckPush refuses it
	s.tag(m.Name, "v1.0.1", commit)
	report := s.reconcile(m)
	if diff := cmp.Diff([]string{"v1.0.1"}, publishedTags(report)); diff != "" {
		t.Errorf("published of the new model (-want +got):\n%s", diff)
	}
	if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "v1.0.0 is not published: a deleted model of this name had that version") {
		t.Errorf("notes = %q, want one that v1.0.0 was used", report.Notes)
	}
}

// stubborn does not remove repositories.
type stubborn struct{ lifecycle.Repositories }

func (stubborn) Remove(context.Context, registry.ModelName) error { return errBroken }

func TestCrashOfADeletion(t *testing.T) {
	tests := []struct {
		name string
		next func(s *site) error
	}{
		{"the next start", func(s *site) error { return s.look() }},
		{"a model of the same name", func(s *site) error {
			m, err := s.CreateModel(s.tb.Context(), by("ada"), fraud, registry.Public, "")
			if err == nil {
				_, err = s.Reconcile(s.tb.Context(), m.ID)
			}
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, func(f *faults) { f.Repositories = stubborn{f.Repositories} })
			m := s.model(fraud)
			s.publish(m, "v1.0.0", map[string]string{"README.md": "# Old\n"})
			s.git(fraud, "update-ref", "refs/tags/v2.0.0", "main") // not announced yet
			if err := s.DeleteModel(t.Context(), by("ada"), m); !errors.Is(err, errBroken) {
				t.Fatalf("DeleteModel = %v, want %v", err, errBroken)
			}
			last := s.lastEvent()
			s.serve()
			if err := tt.next(s); err != nil {
				t.Fatal(err)
			}
			if got := told(s.events(last)); slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, "version.published") }) {
				t.Errorf("events %q, want nothing of the deleted model", got)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "repos", "acme", "fraud.git", "refs", "heads", "main")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("branch of the deleted model: %v, want it gone", err)
			}
		})
	}
}

func TestFailingJournalChangesNothingVisible(t *testing.T) {
	journal := &failing{}
	s, m := prepared(t, "environments: {production: {}, staging: {approvals: 1}}", func(f *faults) { journal.Journal, f.Journal = f.Journal, journal })
	v := s.release(m, "v1.0.0")
	s.promote(m, production, "v1.0.0")
	s.release(m, "v1.1.0")
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Not seen\n", registry.PolicyFile: "environments: {}\n"})
	s.tag(m.Name, "v2.0.0", commit)
	tag := registry.MustTag("v1.1.0")
	text := "another"

	steps := []struct {
		name string
		do   func(ctx context.Context) error
	}{
		{"Reconcile", func(ctx context.Context) error { _, err := s.Reconcile(ctx, m.ID); return err }},
		{"CheckPush", func(ctx context.Context) error {
			return s.CheckPush(ctx, by("ada"), m, &push{id: "p", updates: manyBranches(1)})
		}},
		{"RecordEvaluation", func(ctx context.Context) error {
			_, err := s.RecordEvaluation(ctx, by("ada"), m, v.Version.Commit, f1Of(0.9))
			return err
		}},
		{"Promote", func(ctx context.Context) error {
			_, err := s.Promote(ctx, by("ada"), m, production, lifecycle.Promotion{Version: tag})
			return err
		}},
		{"Promote behind a closed gate", func(ctx context.Context) error {
			_, err := s.Promote(ctx, by("ada"), m, staging, lifecycle.Promotion{Version: tag})
			if errors.Is(err, registry.ErrGateClosed) {
				return errors.New("the refusal was given and is not recorded")
			}
			return err
		}},
		{"Approve", func(ctx context.Context) error { _, err := s.Approve(ctx, by("ada"), m, staging, tag, ""); return err }},
		{"BuildImages", s.BuildImages},
		{"ChangeModel", func(ctx context.Context) error {
			_, err := s.ChangeModel(ctx, by("ada"), m, lifecycle.ModelChange{Description: &text})
			return err
		}},
		{"CreateModel", func(ctx context.Context) error {
			_, err := s.CreateModel(ctx, by("ada"), registry.MustModelName("acme/other"), registry.Public, "")
			return err
		}},
		{"DeleteModel", func(ctx context.Context) error { return s.DeleteModel(ctx, by("ada"), m) }},
		{"LinkBlobs", func(ctx context.Context) error {
			return s.LinkBlobs(ctx, by("ada"), m, registry.LinkedBlob{Digest: v.Version.Artifact.Digest})
		}},
	}
	before := s.visible(m)
	for _, step := range steps {
		journal.err = errBroken
		if err := step.do(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("%s with a broken journal = %v, want %v", step.name, err, errBroken)
		}
		if diff := cmp.Diff(before, s.visible(m), named); diff != "" {
			t.Errorf("visible after %s with a broken journal (-want +got):\n%s", step.name, diff)
		}
	}
	for _, step := range steps[:1] { // nothing of the failed attempts stands in the way
		journal.err = nil
		if err := step.do(t.Context()); err != nil {
			t.Errorf("%s with the journal mended = %v", step.name, err)
		}
	}
	if got := s.version(m, "v2.0.0").Version.Commit; got != commit {
		t.Errorf("commit of v2.0.0 = %s, want %s", got, commit)
	}
}

// failing is a journal that takes nothing while there is an error.
type failing struct {
	lifecycle.Journal
	err error
}

func (j *failing) Commit(ctx context.Context, g registry.Group) error {
	if j.err != nil {
		return j.err
	}
	return j.Journal.Commit(ctx, g)
}

// seen is what anybody can see of a site with one model.
type seen struct {
	Groups       uint64
	Models       []registry.Model
	Refs         map[string]registry.AnnouncedRef
	Intents      []registry.PushIntent
	Versions     []registry.VersionRecord
	Evaluations  [][]registry.Evaluation
	Policy       registry.PolicyState
	Environments []registry.EnvironmentState
	Events       []registry.Event
	Repositories []registry.ModelName
}

func (s *site) visible(m registry.Model) seen {
	s.tb.Helper()
	ctx, index := s.tb.Context(), s.data.Index
	must := func(err error) {
		s.tb.Helper()
		if err != nil {
			s.tb.Fatal(err)
		}
	}
	v := seen{Groups: s.groups(), Events: s.events(0)}
	var err error
	v.Models, err = index.AllModels(ctx)
	must(err)
	v.Refs, err = index.Refs(ctx, m.ID)
	must(err)
	v.Intents, err = index.Intents(ctx, m.ID)
	must(err)
	v.Versions, err = index.Versions(ctx, m.ID)
	must(err)
	for _, version := range v.Versions {
		evaluations, err := index.Evaluations(ctx, m.ID, version.Version.Commit)
		must(err)
		v.Evaluations = append(v.Evaluations, evaluations)
	}
	v.Policy, err = index.Policy(ctx, m.ID)
	must(err)
	v.Environments, err = index.Environments(ctx, m.ID)
	must(err)
	v.Repositories, err = s.data.Repositories.List(ctx)
	must(err)
	return v
}
