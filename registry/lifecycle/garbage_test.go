package lifecycle_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// released lets models go of what nobody has sent since a time, and gives the digests by model.
func released(t *testing.T, s *site, before time.Time, dryRun bool) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := s.Release(t.Context(), before, dryRun, func(r lifecycle.Released) {
		if r.Busy {
			found[r.Model.Name.String()] = []string{"busy"}
		}
		for _, b := range r.Blobs {
			found[r.Model.Name.String()] = append(found[r.Model.Name.String()], b.Digest.String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestRelease(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	versioned, branched, gone, named := s.upload(m, "of a version"), s.upload(m, "on a branch"), s.upload(m, "of a branch that is gone"), s.upload(m, "named by an evaluation")
	s.publish(m, "v1.0.0", map[string]string{"w.bin": pointer("of a version")})
	s.commit(m.Name, "main", map[string]string{"w.bin": pointer("on a branch")})
	s.commit(m.Name, "lost", map[string]string{"w.bin": pointer("of a branch that is gone")})
	s.reconcile(m)
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := f1Of(0.9)
	in.Attachments = []registry.Attachment{{Name: "report", Digest: named}}
	if _, err := s.RecordEvaluation(t.Context(), by("ada"), m, s.version(m, "v1.0.0").Version.Commit, in); err != nil {
		t.Fatal(err)
	}
	owned := func() int {
		t.Helper()
		all, err := s.data.Index.OwnedBlobs(t.Context(), m.ID)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	later, before := time.Now().Add(time.Hour), owned()

	if got := released(t, s, later, false); len(got) != 0 {
		t.Fatalf("Release while every object is named = %v, want nothing", got)
	}
	s.git(m.Name, "update-ref", "-d", "refs/heads/lost")
	s.reconcile(m)
	if got := released(t, s, time.Now().Add(-time.Hour), false); len(got) != 0 {
		t.Errorf("Release of what came an hour ago or longer = %v, want nothing: it came just now", got)
	}
	want := map[string][]string{"acme/fraud": {gone.String()}}
	if diff := cmp.Diff(want, released(t, s, later, true)); diff != "" {
		t.Errorf("dry run (-want +got):\n%s", diff)
	}
	if got := owned(); got != before {
		t.Errorf("the model owns %d blobs after a dry run, want %d", got, before)
	}
	if diff := cmp.Diff(want, released(t, s, later, false)); diff != "" {
		t.Errorf("Release (-want +got):\n%s", diff)
	}
	if got := owned(); got != before-1 {
		t.Errorf("the model owns %d blobs after Release, want %d", got, before-1)
	}
	for _, d := range []string{versioned.String(), branched.String(), named.String()} {
		if _, err := s.data.Index.BlobSize(t.Context(), m.ID, d); err != nil {
			t.Errorf("BlobSize(%s) after Release = %v, want the size", d, err)
		}
	}
	// Who pushes it again is told to send it.
	p := &push{id: "again", updates: manyBranches(1), blobs: []pushedBlob{{path: "w.bin", content: pointer("of a branch that is gone")}}}
	if text := refusal(t, s.CheckPush(t.Context(), by("ada"), m, p)); !strings.Contains(text, "git lfs push --all") {
		t.Errorf("a push of what was let go of is refused with\n%s", text)
	}
}

// A push that was checked keeps what it names, until it has ended.
func TestReleaseWaitsForPushes(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	kept := s.upload(m, "about to be named")
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	s.reconcile(m)
	p := &push{id: "slow", updates: []registry.RefUpdate{{Ref: "refs/heads/next", New: commit}}, blobs: []pushedBlob{{path: "w.bin", content: pointer("about to be named")}}}
	if err := s.CheckPush(t.Context(), by("ada"), m, p); err != nil {
		t.Fatal(err)
	}
	done := make(chan map[string][]string)
	go func() { done <- released(t, s, time.Now().Add(time.Hour), false) }()
	select {
	case got := <-done:
		t.Fatalf("Release during a push = %v, want it to wait", got)
	case <-time.After(300 * time.Millisecond):
	}
	s.commit(m.Name, "next", map[string]string{"w.bin": pointer("about to be named")})
	if err := s.EndPush(t.Context(), m, "slow"); err != nil {
		t.Fatal(err)
	}
	if got := <-done; len(got["acme/fraud"]) != 1 || got["acme/fraud"][0] != "busy" {
		t.Errorf("Release after a push moved a ref = %v, want the model to be looked at the next time", got)
	}
	if got := released(t, s, time.Now().Add(time.Hour), false); len(got) != 0 {
		t.Errorf("Release after that = %v, want nothing: %s is named", got, kept)
	}
}

// unavailableOnce is a journal that refuses the next commit once.
type unavailableOnce struct {
	lifecycle.Journal
	refuse bool
}

func (j *unavailableOnce) Commit(ctx context.Context, g registry.Group) error {
	if j.refuse {
		j.refuse = false
		return fmt.Errorf("removed as garbage: %w", registry.ErrUnavailable)
	}
	return j.Journal.Commit(ctx, g)
}

// A version whose files were collected before it named them is published by the same push.
func TestFinishPushAfterACollection(t *testing.T) {
	journal := &unavailableOnce{}
	s := open(t, func(f *faults) { journal.Journal, f.Journal = f.Journal, journal })
	m := s.model(fraud)
	s.commit(m.Name, "main", map[string]string{"README.md": "x"})
	s.git(m.Name, "update-ref", "refs/tags/v1.0.0", "refs/heads/main")
	journal.refuse = true
	report, err := s.FinishPush(t.Context(), m, "p1", nil)
	if err != nil || len(report.Published) != 1 {
		t.Errorf("FinishPush whose first commit is refused = %d versions, %v, want 1", len(report.Published), err)
	}
	if journal.refuse {
		t.Error("no commit was refused: the test tests nothing")
	}
}

// A push whose refs did not move, because another was faster, is over when its door says so.
func TestEndPush(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	p := &push{id: "p1", updates: manyBranches(1)}
	if err := s.CheckPush(t.Context(), by("ada"), m, p); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second time does nothing
		if err := s.EndPush(t.Context(), m, "p1"); err != nil {
			t.Fatal(err)
		}
	}
	if intents, err := s.data.Index.Intents(t.Context(), m.ID); err != nil || len(intents) != 0 {
		t.Errorf("Intents after a push that moved nothing = %v, %v, want none", intents, err)
	}
}
