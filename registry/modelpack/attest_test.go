package modelpack

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// The same facts give the same bytes, and many evaluations a statement of bounded length with the newest.
func TestAttest(t *testing.T) {
	version := registry.Version{
		Tag: registry.MustTag("v1.0.0"), Commit: "0123456789abcdef0123456789abcdef01234567", PublishedAt: time.Unix(1_800_000_000, 0).UTC(),
		Artifact: registry.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest.FromString("artifact"), SizeBytes: 8},
	}
	model := registry.MustModelName("acme/fraud")
	var evaluations []registry.Evaluation
	for i := range MaxStated + 5 {
		evaluations = append(evaluations, registry.Evaluation{ID: fmt.Sprint("e", i), Metrics: map[string]float64{"f1": 0.5, "a": 1}})
	}
	for range 2 {
		a, err := AttestEvaluations(model, version, evaluations, len(evaluations))
		if err != nil {
			t.Fatal(err)
		}
		b, err := AttestEvaluations(model, version, evaluations, len(evaluations))
		if err != nil || a.Manifest.Digest != b.Manifest.Digest {
			t.Errorf("AttestEvaluations twice = %s and %s, %v; want the same", a.Manifest.Digest, b.Manifest.Digest, err)
		}
		var e struct{ Payload []byte }
		var s struct{ Predicate evaluationsPredicate }
		if err := json.Unmarshal(a.Envelope.Bytes, &e); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(e.Payload, &s); err != nil {
			t.Fatal(err)
		}
		stated := s.Predicate.Evaluations
		if len(stated) != MaxStated || s.Predicate.Omitted != 5 || stated[0].ID != "e5" || stated[len(stated)-1].ID != fmt.Sprint("e", MaxStated+4) {
			t.Errorf("of %d evaluations %d are stated, from %s on, and %d omitted; want the newest %d", len(evaluations), len(stated), stated[0].ID, s.Predicate.Omitted, MaxStated)
		}
	}
	nodes := []registry.Node{{ID: "version:1:v0.9.0", Kind: registry.VersionNode, State: registry.Published}}
	a, err := AttestLineage(model, version, nodes, []registry.LineageEdge{{From: "a", To: "b", Kind: registry.Used}})
	if err != nil {
		t.Fatal(err)
	}
	nodes[0].State = "revoked"
	b, err := AttestLineage(model, version, nodes, []registry.LineageEdge{{From: "a", To: "b", Kind: registry.Used}})
	if err != nil || a.Manifest.Digest != b.Manifest.Digest {
		t.Errorf("AttestLineage before and after an ancestor was revoked = %s and %s, %v; want the same", a.Manifest.Digest, b.Manifest.Digest, err)
	}
	if a.Manifest.Subject != version.Artifact.Digest || nodes[0].State != "revoked" {
		t.Errorf("subject = %s, state of the caller's node = %s", a.Manifest.Subject, nodes[0].State)
	}
}
