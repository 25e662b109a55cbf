package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage"
)

// released lets models go of what nobody has sent since a time, and gives the digests by model.
func released(t *testing.T, s *site, before time.Time, dryRun bool) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := s.Release(t.Context(), before, dryRun, func(r lifecycle.Released) {
		if r.Busy {
			found[r.Name] = []string{"busy"}
		}
		for _, b := range r.Blobs {
			found[r.Name] = append(found[r.Name], b.Digest.String())
		}
		if r.Gone {
			found[r.Name] = append(found[r.Name], "gone")
		}
		if r.Error != "" {
			found[r.Name] = append(found[r.Name], r.Error)
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

// collect removes from the store what nobody owns, however new.
func (s *site) collect() {
	s.tb.Helper()
	if _, err := s.data.Collect(s.tb.Context(), time.Now().Add(time.Hour), false, storage.Report{}, func(digest.Digest, int64) {}); err != nil {
		s.tb.Fatal(err)
	}
}

// kept reports whether the store has content.
func (s *site) kept(d digest.Digest) bool {
	s.tb.Helper()
	_, err := s.data.Blobs.Stat(s.tb.Context(), d)
	return err == nil
}

func TestReleaseOfRepositories(t *testing.T) {
	s := open(t)
	r, empty := s.ensure("acme/tools"), s.ensure("acme/empty")
	image := s.pushManifest(r, "latest", "config", "layer")
	if _, err := s.PushManifest(t.Context(), by("ada"), r, indexOf(manifestOf("config", "layer"))); err != nil {
		t.Fatal(err)
	}
	wide := "named by its SHA-512"
	info, err := blobs{s.data.Blobs}.Put(t.Context(), strings.NewReader(wide))
	if err == nil {
		err = s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: info.Digest, SizeBytes: info.SizeBytes, Alias: digest.SHA512.FromString(wide)})
	}
	if err == nil {
		_, err = s.PushManifest(t.Context(), by("ada"), r, lifecycle.PushedManifest{MediaType: ociManifest, Content: fmt.Appendf(nil, `{"schemaVersion":2,"config":%s}`, part(digest.SHA512.FromString(wide), len(wide)))})
	}
	if err != nil {
		t.Fatal(err)
	}
	unnamed := s.link(r, "sent, and never named")
	s.link(empty, "the only one")
	only := digest.FromString("the only one")
	later := time.Now().Add(time.Hour)

	if got := released(t, s, time.Now().Add(-time.Hour), false); len(got) != 0 {
		t.Errorf("Release of what came an hour ago or longer = %v, want nothing: all came just now", got)
	}
	want := map[string][]string{"acme/tools": {unnamed.String()}, "acme/empty": {only.String(), "gone"}}
	groups := s.groups()
	if diff := cmp.Diff(want, released(t, s, later, true)); diff != "" || s.groups() != groups {
		t.Errorf("dry run, which adds %d groups to the journal (-want +got):\n%s", s.groups()-groups, diff)
	}
	if diff := cmp.Diff(want, released(t, s, later, false)); diff != "" {
		t.Errorf("Release (-want +got):\n%s", diff)
	}
	if got := released(t, s, later, false); len(got) != 0 {
		t.Errorf("Release again = %v, want nothing", got)
	}
	if _, err := s.data.Index.RepositoryByName(t.Context(), "acme/empty"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("the empty repository = %v, want it gone", err)
	}
	s.collect()
	for what, d := range map[string]digest.Digest{
		"config": digest.FromString("config"), "layer": digest.FromString("layer"), "manifest": image.Digest, "one with two digests": info.Digest,
	} {
		if !s.kept(d) {
			t.Errorf("the %s of what was pushed is gone from the store", what)
		}
	}
	if s.kept(unnamed) || s.kept(only) {
		t.Error("what was let go of is in the store still")
	}
	// Who believed that the blob was there is told to send it.
	var missing *lifecycle.MissingPartError
	p := manifestOf("config", "sent, and never named")
	if _, err := s.PushManifest(t.Context(), by("ada"), r, p); !errors.As(err, &missing) || missing.Digest != unnamed {
		t.Errorf("PushManifest of what was let go of = %v, want a MissingPartError", err)
	}
	if _, err := s.data.Index.Manifest(t.Context(), r.Key, digest.FromBytes(p.Content)); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("the manifest of what was let go of = %v, want ErrNotFound", err)
	}
	s.pushManifest(r, "", "config", "sent, and never named")
	if err := s.DeleteManifest(t.Context(), by("ada"), r, image.Digest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{"acme/tools": {digest.FromString("layer").String()}}, released(t, s, later, false)); diff != "" {
		t.Errorf("Release after a manifest was deleted (-want +got):\n%s", diff)
	}
	s.collect()
	if s.kept(image.Digest) || s.kept(digest.FromString("layer")) || !s.kept(digest.FromString("config")) {
		t.Errorf("after a manifest was deleted its content is kept: %t, its layer: %t, the config that another names: %t; want only that",
			s.kept(image.Digest), s.kept(digest.FromString("layer")), s.kept(digest.FromString("config")))
	}
}

// What clients pushed beside the versions of a model is kept with what it names, and goes when it is deleted.
func TestReleaseOfWhatWasPushedToAModel(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	for _, name := range []string{"acme/fraud", "acme/fraud/image"} {
		r, payload := s.ensure(name), "payload of "+name
		signature := s.pushManifest(r, "Signed", "config", payload)
		if got := released(t, s, time.Now().Add(time.Hour), false); len(got) != 0 {
			t.Errorf("Release with a signature in %s = %v, want nothing", name, got)
		}
		s.collect()
		if !s.kept(signature.Digest) || !s.kept(digest.FromString(payload)) {
			t.Errorf("a signature in %s is kept: %t, its payload: %t, want both", name, s.kept(signature.Digest), s.kept(digest.FromString(payload)))
		}
		if err := s.DeleteManifest(t.Context(), by("ada"), r, signature.Digest); err != nil {
			t.Fatal(err)
		}
		if got := released(t, s, time.Now().Add(time.Hour), false)["acme/fraud"]; len(got) != 2 {
			t.Errorf("Release after the signature in %s was deleted = %v, want its config and its payload", name, got)
		}
	}
}

// hookedIndex does something when the manifests of an owner have been listed, once.
type hookedIndex struct {
	lifecycle.Index
	owner  string
	listed func()
}

func (i *hookedIndex) ManifestsOf(ctx context.Context, owner string) ([]registry.StoredManifest, error) {
	manifests, err := i.Index.ManifestsOf(ctx, owner)
	if owner == i.owner {
		i.owner = ""
		i.listed()
	}
	return manifests, err
}

// What is pushed while it is looked for what is needed is not let go of.
func TestReleaseDuringAPush(t *testing.T) {
	index := &hookedIndex{}
	s := open(t, func(f *faults) { index.Index, f.Index = f.Index, index })
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	later := time.Now().Add(time.Hour)
	for _, name := range []string{"acme/fraud", "acme/tools"} {
		r := s.ensure(name)
		for _, c := range []string{"config", "layer", "of no use"} {
			s.link(r, c)
		}
		index.owner, index.listed = r.OwnerID, func() {
			if _, err := s.PushManifest(t.Context(), by("ada"), r, manifestOf("config", "layer")); err != nil {
				t.Errorf("PushManifest while it is looked for garbage = %v", err)
			}
		}
		want := map[string][]string{name: {digest.FromString("of no use").String()}}
		if diff := cmp.Diff(want, released(t, s, later, false)); diff != "" {
			t.Errorf("Release during a push to %s (-want +got):\n%s", name, diff)
		}
		if _, err := s.data.Index.BlobSize(t.Context(), r.OwnerID, digest.FromString("layer").String()); err != nil {
			t.Errorf("the layer of a manifest in %s = %v, want it there", name, err)
		}
	}
	// An upload keeps a repository that was empty, and so does a manifest without parts.
	for name, push := range map[string]func(r registry.OCIRepository) error{
		"acme/upload": func(r registry.OCIRepository) error {
			return s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: digest.FromString("config"), SizeBytes: 6})
		},
		"acme/manifest": func(r registry.OCIRepository) error {
			_, err := s.PushManifest(t.Context(), by("ada"), r, indexOf())
			return err
		},
	} {
		r := s.ensure(name)
		var pushed error
		index.owner, index.listed = r.OwnerID, func() { pushed = push(r) }
		got := released(t, s, later, false)
		if _, err := s.data.Index.RepositoryByName(t.Context(), name); err != nil || len(got[name]) != 0 || pushed != nil {
			t.Errorf("%s after Release during a push, which is %v: %v, let go of: %v; want it as it is", name, pushed, err, got[name])
		}
	}
}

// What is mounted is as new as what is sent, however old its content.
func TestReleaseOfWhatWasMounted(t *testing.T) {
	s := open(t)
	from, to := s.ensure("acme/from"), s.ensure("acme/to")
	s.pushManifest(from, "latest", "config", "old")
	d := digest.FromString("old")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(s.dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded()), old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.LinkOCI(t.Context(), by("ada"), to, registry.LinkedBlob{Digest: d, SizeBytes: 3}); err != nil {
		t.Fatal(err)
	}
	if got := released(t, s, time.Now().Add(-time.Minute), false)["acme/to"]; len(got) != 0 {
		t.Errorf("Release of what came more than a minute ago = %v of acme/to, want nothing: the blob was linked just now", got)
	}
}

// leaving are repositories that go while their blobs are read.
type leaving struct {
	lifecycle.Repositories
	gone func()
}

func (l *leaving) Open(ctx context.Context, name registry.ModelName) (lifecycle.Repository, error) {
	r, err := l.Repositories.Open(ctx, name)
	return leavingOne{r, l}, err
}

type leavingOne struct {
	lifecycle.Repository
	*leaving
}

func (l leavingOne) SmallBlobs(context.Context, int64, func([]byte) error) error {
	l.gone()
	return errBroken
}

// A model that is deleted while it is looked into is no damage; another that cannot be read is.
func TestReleaseOfAModelThatIsDeleted(t *testing.T) {
	repositories := &leaving{}
	s := open(t, func(f *faults) { repositories.Repositories, f.Repositories = f.Repositories, repositories })
	m := s.model(fraud)
	s.link(s.ensure("acme/fraud"), "of no use")
	repositories.gone = func() {}
	if got := released(t, s, time.Now().Add(time.Hour), false)["acme/fraud"]; len(got) != 1 || !strings.Contains(got[0], errBroken.Error()) {
		t.Errorf("Release of a model that cannot be read = %v, want the error", got)
	}
	repositories.gone = func() {
		if err := s.DeleteModel(t.Context(), by("ada"), m); err != nil {
			t.Error(err)
		}
	}
	if got := released(t, s, time.Now().Add(time.Hour), false); len(got) != 0 {
		t.Errorf("Release of a model that is deleted meanwhile = %v, want nothing", got)
	}
}

// unreadable is a store that cannot read one blob.
type unreadable struct {
	lifecycle.Blobs
	blob digest.Digest
	err  error
}

func (u *unreadable) Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	if d == u.blob {
		return nil, u.err
	}
	return u.Blobs.Get(ctx, d)
}

// When a manifest cannot be read nobody knows what it names.
func TestReleaseWithoutAManifest(t *testing.T) {
	store := &unreadable{}
	s := open(t, func(f *faults) { store.Blobs, f.Blobs = f.Blobs, store })
	broken, other := s.ensure("acme/tools"), s.ensure("acme/zoo")
	s.pushManifest(other, "latest", "config")
	for _, store.err = range []error{errBroken, registry.ErrNotFound} {
		store.blob = s.pushManifest(broken, "latest", "config", "layer").Digest
		s.link(broken, "unnamed")
		unnamed := s.link(other, "unnamed")
		want := map[string][]string{"acme/tools": {"manifest " + store.blob.String() + ": " + store.err.Error()}, "acme/zoo": {unnamed.String()}}
		if diff := cmp.Diff(want, released(t, s, time.Now().Add(time.Hour), false)); diff != "" {
			t.Errorf("Release with a manifest whose content is %v (-want +got):\n%s", store.err, diff)
		}
		if owned, err := s.data.Index.OwnedBlobs(t.Context(), broken.OwnerID); err != nil || len(owned) != 3 {
			t.Errorf("the repository with a manifest whose content is %v owns %v, %v, want all three", store.err, owned, err)
		}
	}
}
