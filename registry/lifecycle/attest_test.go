package lifecycle_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// stated is a statement about a version as a registry client finds it.
type stated struct {
	Type    string `json:"_type"`
	Subject []struct {
		Name   string
		Digest map[string]string
	}
	PredicateType string
	Predicate     struct {
		Model, Version string
		Evaluations    []struct {
			Dataset struct{ Name string }
			Metrics map[string]float64
		}
		Edges []registry.LineageEdge
	}
}

// statements reads what the referrers of a version's artifact say, by the end of the type of what they say.
func (s *site) statements(m registry.Model, v registry.VersionRecord) map[string]stated {
	s.tb.Helper()
	referrers, err := s.data.Index.Referrers(s.tb.Context(), m.ID, v.Version.Artifact.Digest)
	if err != nil {
		s.tb.Fatal(err)
	}
	found := map[string]stated{}
	for _, r := range referrers {
		if r.MediaType == v1.MediaTypeImageIndex {
			continue // the image
		}
		if r.Subject != v.Version.Artifact.Digest || r.ArtifactType != "application/vnd.in-toto+json" {
			s.tb.Errorf("referrer %s is of type %q about %s", r.Digest, r.ArtifactType, r.Subject)
		}
		var manifest struct {
			Layers []struct{ Digest string }
		}
		text, err := s.read(r.Digest)
		if err == nil {
			err = json.Unmarshal(text, &manifest)
		}
		if err != nil || len(manifest.Layers) != 1 {
			s.tb.Fatalf("manifest of a referrer = %q, %v", text, err)
		}
		if _, err := s.Index.BlobSize(s.tb.Context(), m.ID, manifest.Layers[0].Digest); err != nil {
			s.tb.Errorf("the model does not own the statement %s: %v", manifest.Layers[0].Digest, err)
		}
		var envelope struct {
			PayloadType string
			Payload     []byte
			Signatures  *[]any
		}
		text, err = s.read(digest.Digest(manifest.Layers[0].Digest))
		if err == nil {
			err = json.Unmarshal(text, &envelope)
		}
		if err != nil || envelope.PayloadType != "application/vnd.in-toto+json" || envelope.Signatures == nil {
			s.tb.Fatalf("envelope = %q, %v", text, err)
		}
		var one stated
		if err := json.Unmarshal(envelope.Payload, &one); err != nil {
			s.tb.Fatalf("statement %q: %v", envelope.Payload, err)
		}
		_, kind, _ := strings.Cut(one.PredicateType, "#")
		if _, twice := found[kind]; twice {
			s.tb.Errorf("two statements of type %s", one.PredicateType)
		}
		found[kind] = one
		if one.Type != "https://in-toto.io/Statement/v1" || len(one.Subject) != 2 || one.Subject[0].Digest["sha256"] != v.Version.Artifact.Digest.Encoded() ||
			one.Subject[1].Digest["gitCommit"] != string(v.Version.Commit) || one.Predicate.Model != m.Name.String() || one.Predicate.Version != v.Version.Tag.String() {
			s.tb.Errorf("statement = %+v, want one about the artifact and the commit of %s", one, v.Version.Tag)
		}
	}
	return found
}

// Whoever copies an artifact with its referrers has the proof of what it came from, and of what was measured last.
func TestVersionsAreAttested(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	first := s.publish(m, "v1.0.0", map[string]string{"README.md": "---\ndatasets: [acme/calls]\n---\n# 1\n"})
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := s.statements(m, first)
	if len(got) != 1 || !slices.ContainsFunc(got["lineage-v1"].Predicate.Edges, func(e registry.LineageEdge) bool { return e.Kind == registry.Used }) {
		t.Errorf("statements about a version that nobody evaluated = %+v, want its lineage with the dataset", got)
	}
	for i, f1 := range []float64{0.5, 0.75} {
		s.evaluate(m, first, f1)
		s.attest()
		got = s.statements(m, first)
		measured := got["evaluations-v1"].Predicate.Evaluations
		if len(got) != 2 || len(measured) != i+1 || measured[i].Metrics["f1"] != f1 {
			t.Errorf("statements after evaluation %d = %+v, want lineage, and %d evaluations with an F1 of %v at last", i+1, got, i+1, f1)
		}
	}
	before := s.groups()
	if err := errors.Join(s.BuildImages(t.Context()), s.AttestEvaluations(t.Context())); err != nil || s.groups() != before {
		t.Errorf("BuildImages and AttestEvaluations of what is there = %v, %d groups, want none", err, s.groups()-before)
	}
}

// attest states what was measured.
func (s *site) attest() {
	s.tb.Helper()
	if err := s.AttestEvaluations(s.tb.Context()); err != nil {
		s.tb.Fatalf("AttestEvaluations = %v", err)
	}
}

// Many evaluations need one statement, which is made though the server was stopped before, and though the index was made anew.
func TestEvaluationsAreAttestedTogether(t *testing.T) {
	for _, rebuilt := range []bool{false, true} {
		s := open(t)
		m := s.model(fraud)
		first := s.publish(m, "v1.0.0", map[string]string{"README.md": "# 1\n"})
		second := s.publish(m, "v2.0.0", map[string]string{"README.md": "# 2\n"})
		if err := s.BuildImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.evaluate(m, second, 0.25)
		s.attest()
		for range 20 {
			s.evaluate(m, first, 0.5)
		}
		s.close()
		if rebuilt {
			if err := os.Remove(filepath.Join(s.dir, "index.db")); err != nil {
				t.Fatal(err)
			}
		}
		s = openDir(t, s.dir)
		before := s.groups()
		s.attest()
		if got := s.groups() - before; got != 1 {
			t.Errorf("AttestEvaluations after a restart, rebuilt: %t, made %d groups, want one for the version whose statement was old", rebuilt, got)
		}
		if got := s.statements(m, first)["evaluations-v1"].Predicate.Evaluations; len(got) != 20 {
			t.Errorf("%d evaluations are stated after a restart, rebuilt: %t, want 20", len(got), rebuilt)
		}
	}
}

// What a private model descends from may be private too: everybody who can read the model after it was made public reads of what is public only.
func TestAttestationOfWhatBecomesPublic(t *testing.T) {
	s := open(t)
	base := s.model(registry.MustModelName("acme/base"))
	s.publish(base, "v1.0.0", map[string]string{"README.md": "# base\n"})
	m := s.model(fraud)
	private, public := registry.Private, registry.Public
	for _, x := range []registry.Model{base, m} {
		if _, err := s.ChangeModel(t.Context(), by("ann"), x, lifecycle.ModelChange{Visibility: &private}); err != nil {
			t.Fatal(err)
		}
	}
	first := s.publish(m, "v1.0.0", map[string]string{"README.md": "---\nbase_model: acme/base@v1.0.0\ndatasets: [calls]\n---\n# 1\n"})
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.evaluate(m, first, 0.5)
	wantBase := func(when, want string) {
		t.Helper()
		edges := s.statements(m, first)["lineage-v1"].Predicate.Edges
		if !slices.ContainsFunc(edges, func(e registry.LineageEdge) bool { return e.Kind == registry.DerivedFrom && e.To == want }) || len(edges) != 2 {
			t.Errorf("lineage of %s = %v, want a dataset and the base model as %s", when, edges, want)
		}
	}
	wantBase("a private model", registry.VersionNodeID(base.ID, registry.MustTag("v1.0.0")))
	if _, err := s.ChangeModel(t.Context(), by("ann"), m, lifecycle.ModelChange{Visibility: &public}); err != nil {
		t.Fatal(err)
	}
	wantBase("a model that became public", "model:acme/base@v1.0.0")

	// The statement follows what everybody may know of the base.
	for _, step := range []struct {
		visibility registry.Visibility
		want       string
	}{{public, registry.VersionNodeID(base.ID, registry.MustTag("v1.0.0"))}, {private, "model:acme/base@v1.0.0"}, {public, registry.VersionNodeID(base.ID, registry.MustTag("v1.0.0"))}, {"", "model:acme/base@v1.0.0"}} {
		what := "a model whose base became " + string(step.visibility)
		if step.visibility == "" {
			what = "a model whose base is gone"
			if err := s.DeleteModel(t.Context(), by("ann"), s.reload(base)); err != nil {
				t.Fatal(err)
			}
		} else if _, err := s.ChangeModel(t.Context(), by("ann"), s.reload(base), lifecycle.ModelChange{Visibility: &step.visibility}); err != nil {
			t.Fatal(err)
		}
		s.attest()
		wantBase(what, step.want)
	}
	if got := s.statements(m, first); len(got) != 2 {
		t.Errorf("statements of a model that became public = %+v, want 2", got)
	}
}

// What was measured of a commit before the image was made is stated with it.
func TestAttestationOfWhatWasThere(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	first := s.publish(m, "v1.0.0", map[string]string{"README.md": "# 1\n"})
	s.evaluate(m, first, 0.5)
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.statements(m, first); len(got) != 2 {
		t.Errorf("statements about a version whose commit was evaluated before its image = %+v, want 2", got)
	}
}

// An evaluation is recorded also when no file can be written; it is stated when that is possible again.
func TestAttestationOnAFullDisk(t *testing.T) {
	disk := &full{}
	s := open(t, func(f *faults) { disk.Blobs, f.Blobs = f.Blobs, disk })
	m := s.model(fraud)
	first := s.publish(m, "v1.0.0", map[string]string{"README.md": "# 1\n"})
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk.now = true
	s.evaluate(m, first, 0.5)
	if got := s.statements(m, first); len(got) != 1 {
		t.Errorf("statements on a full disk = %+v, want the one that was there", got)
	}
	if err := s.AttestEvaluations(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("AttestEvaluations = %v, want that it is to be tried again", err)
	}
	disk.now = false
	for range 2 {
		s.attest()
		if got := s.statements(m, first); len(got["evaluations-v1"].Predicate.Evaluations) != 1 {
			t.Errorf("statements when there is space again = %+v, want one with the evaluation", got)
		}
	}
}
