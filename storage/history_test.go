package storage_test

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// begin is when the history of these tests begins; each group comes a minute after the one before.
var begin = time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)

// The names in the history.
const (
	fraud, secret, gone, again = "m-fraud", "m-secret", "m-gone", "m-again"

	sinkA, sinkB = "audit", "notify"
)

var (
	staging    = registry.MustEnvironmentName("staging")
	production = registry.MustEnvironmentName("production")
)

// content is what the blobs of the history hold, by digest.
func content(texts ...string) (d digest.Digest, size int64) {
	text := strings.Join(texts, " ")
	return digest.FromString(text), int64(len(text))
}

func commitOf(text string) registry.ObjectID {
	sum := sha1.Sum([]byte(text))
	return registry.ObjectID(hex.EncodeToString(sum[:]))
}

func hashOf(text string) string { return digest.FromString(text).Encoded() }

func describe(mediaType, text string) registry.Descriptor {
	d, size := content(text)
	return registry.Descriptor{MediaType: mediaType, Digest: d, SizeBytes: size}
}

// published is the record of a version, and texts are the contents of its blobs.
func published(m registry.Model, tag, commit string, edges ...registry.LineageEdge) (r registry.VersionPublished, texts []string) {
	name := m.Name.String() + " " + tag
	readme, weights, config, manifest := "README of "+name, "weights of "+name, `{"config":"`+name+`"}`, `{"manifest":"`+name+`"}`
	file := func(path, text string, lfs bool) registry.File {
		d, size := content(text)
		return registry.File{Path: path, Digest: d, SizeBytes: size, LFS: lfs}
	}
	v := registry.Version{
		Tag: registry.MustTag(tag), Commit: commitOf(commit), TagObject: commitOf("tag " + tag), Message: "version " + tag, PublishedAt: begin, PublishedBy: "ada",
		Format:   1,
		Artifact: describe("application/vnd.oci.image.manifest.v1+json", manifest),
		Config:   describe("application/vnd.cncf.model.config.v1+json", config),
		Files:    []registry.File{file("README.md", readme, false), file("weights.bin", weights, true)},
		Card:     registry.CardFacts{License: "mit", Datasets: []string{"calls-2026"}, FrontMatter: json.RawMessage(`{"license":"mit"}`)},
	}
	for i := range edges {
		edges[i].From = registry.VersionNodeID(m.ID, v.Tag)
	}
	return registry.VersionPublished{
		ModelID: m.ID, Version: v, Edges: edges,
		Manifest: registry.StoredManifest{Descriptor: v.Artifact, ArtifactType: "application/vnd.cncf.model.manifest.v1+json"},
	}, []string{readme, weights, config, manifest}
}

// imaged is the record of the image of a version.
func imaged(v registry.VersionPublished, state registry.ImageState) registry.ImageBuilt {
	r := registry.ImageBuilt{ModelID: v.ModelID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: state}}
	if state == registry.ImageFailed {
		r.Status.Error = "no space left"
		return r
	}
	manifest := registry.StoredManifest{
		Descriptor: describe("application/vnd.oci.image.manifest.v1+json", "image of "+v.ModelID+v.Version.Tag.String()), Subject: v.Version.Artifact.Digest,
	}
	r.Status.Digest, r.Manifests = manifest.Digest, []registry.StoredManifest{manifest}
	d, size := content("image config of", v.ModelID, v.Version.Tag.String())
	r.Blobs = []registry.LinkedBlob{{Digest: d, SizeBytes: size}}
	layer, _ := content("layer of", v.ModelID, v.Version.Tag.String())
	r.Layers = []registry.ImageLayer{{Digest: layer, SizeBytes: 2048, Files: v.Version.Files[1:]}}
	return r
}

func evaluation(m registry.Model, commit, id string, f1 float64) registry.EvaluationRecorded {
	samples := int64(200)
	return registry.EvaluationRecorded{ModelID: m.ID, Evaluation: registry.Evaluation{
		ID: id, Commit: commitOf(commit), Dataset: registry.Dataset{Name: "calls-2026", Revision: "9f3c", Split: "test"},
		Metrics: map[string]float64{"f1": f1, "latency_p95_ms": 11.5}, Samples: &samples, Evaluator: "jenkins", RecordedBy: "ada", RecordedAt: begin,
	}}
}

func verdict(env registry.EnvironmentName, open bool) registry.Verdict {
	reason := "it holds"
	if !open {
		reason = "metrics.f1 is 0.7, which is less than 0.8"
	}
	return registry.Verdict{
		Environment: env, Open: open, PolicyCommit: commitOf("policy"), Evaluation: "e-1", Matched: 1,
		Gates: []registry.GateVerdict{{Name: "good", Expr: "metrics.f1 >= 0.8", Open: open, Values: map[string]any{"metrics.f1": 0.9}, Reason: reason}},
	}
}

func changed(v registry.VersionPublished, env registry.EnvironmentName, id string, kind registry.ChangeKind, previous string, at time.Time) registry.EnvironmentChanged {
	c := registry.EnvironmentChange{
		ID: id, Environment: env, Kind: kind, Version: v.Version.Tag, Commit: v.Version.Commit, Artifact: v.Version.Artifact.Digest,
		Reason: "because", By: "ada", At: at, Live: true, Deploy: []string{sinkB},
	}
	if previous != "" {
		c.Previous = registry.MustTag(previous)
	}
	open := verdict(env, true)
	c.Verdict = &open
	return registry.EnvironmentChanged{ModelID: v.ModelID, Change: c}
}

func announced(m registry.Model, kind registry.EventType, at time.Time, what string, sinks ...string) registry.EventAnnounced {
	e := registry.NewEvent(kind, m, "ada", at, map[string]string{"what": what}, what)
	e.Sinks = sinks
	return registry.EventAnnounced{Event: e}
}

func attempt(e registry.EventAnnounced, sink string, n int, outcome registry.Outcome, at time.Time) registry.DeliveryTried {
	a := registry.Attempt{Sink: sink, EventID: e.Event.ID, Number: n, Outcome: outcome, At: at, Duration: time.Second, StatusCode: 200}
	if outcome == registry.Failed {
		a.StatusCode, a.Detail, a.NextAt = 503, "busy", at.Add(time.Minute)
	}
	return registry.DeliveryTried{Attempt: a}
}

func model(id, name string, v registry.Visibility) registry.Model {
	return registry.Model{ID: id, Name: registry.MustModelName(name), Visibility: v, Description: "about " + name, CreatedAt: begin, CreatedBy: "ada", UpdatedAt: begin}
}

// history is the life of four models, with every type of record in it, and the contents of the
// blobs that it speaks of. It is the same each time.
func history() (groups []registry.Group, blobs []string) {
	at := begin
	add := func(records ...registry.Record) {
		groups = append(groups, registry.Group{At: at, Actor: "ada", Request: fmt.Sprintf("r%d", len(groups)+1), Records: records})
		at = at.Add(time.Minute)
	}
	publish := func(m registry.Model, tag, commit string, edges ...registry.LineageEdge) registry.VersionPublished {
		r, texts := published(m, tag, commit, edges...)
		blobs = append(blobs, texts...)
		return r
	}
	public, private := model(fraud, "acme/fraud", registry.Public), model(secret, "acme/secret", registry.Private)
	doomed, reborn := model(gone, "acme/gone", registry.Public), model(again, "acme/gone", registry.Public)
	dataset := registry.LineageEdge{To: registry.DatasetNodeID("calls-2026"), Kind: registry.Used}

	add(registry.JournalStarted{ID: "00112233445566778899aabbccddeeff"})
	for _, m := range []registry.Model{public, private, doomed} {
		add(registry.ModelCreated{Model: m}, announced(m, registry.EventModelCreated, at, m.Name.String(), sinkA, sinkB))
	}
	for _, m := range []registry.Model{public, private} {
		add(registry.DefaultBranchSet{ModelID: m.ID, Branch: "main"})
	}
	add(registry.TokenCreated{Token: registry.Token{ID: "t-1", Owner: "ada", Role: "admin", Hash: hashOf("no secret: the first"), CreatedAt: at}})
	add(registry.TokenCreated{Token: registry.Token{ID: "t-2", Owner: "bob", Role: "admin", Hash: hashOf("no secret: the second"), CreatedAt: at}})
	add(registry.TokenRevoked{TokenID: "t-2"})

	main := registry.RefUpdate{Ref: registry.BranchRef("main"), New: commitOf("one")}
	add(registry.PushStarted{PushID: "p-1", ModelID: fraud, Updates: []registry.RefUpdate{main}})
	linked, size := content("attached report")
	add(registry.BlobsLinked{ModelID: fraud, Blobs: []registry.LinkedBlob{{Digest: linked, SizeBytes: size}}})
	blobs = append(blobs, "attached report")
	first := publish(public, "v1.0.0", "one", dataset)
	moved := announced(public, registry.EventRefUpdated, at, "main 1", sinkB)
	born := announced(public, registry.EventVersionPublished, at, "v1.0.0", sinkA, sinkB)
	add(registry.RefMoved{ModelID: fraud, Generation: 1, RefUpdate: main}, moved)
	add(first, born)
	add(registry.PushFinished{PushID: "p-1", ModelID: fraud})
	add(registry.PolicySet{ModelID: fraud, Policy: registry.PolicyState{Commit: commitOf("policy"), Blob: commitOf("herdbook.yaml"), Policy: &registry.Policy{
		Environments: []registry.Environment{{Name: staging, Promote: registry.PromoteAuto, Gates: []registry.Gate{{Name: "good", Expr: "metrics.f1 >= 0.8"}}}},
	}}})
	add(imaged(first, registry.ImageReady))
	add(evaluation(public, "one", "e-1", 0.9), registry.GateMoved{ModelID: fraud, Tag: first.Version.Tag, Verdict: verdict(staging, true)})
	add(evaluation(public, "one", "e-2", 0.7))
	add(changed(first, staging, "c-1", registry.Promotion, "", at), announced(public, registry.EventEnvironmentPromoted, at, "c-1", sinkB))
	add(registry.ApprovalGiven{ModelID: fraud, Approval: registry.Approval{Environment: production, Version: first.Version.Tag, By: "grace", At: at, Reason: "read it"}})

	previous := registry.LineageEdge{To: registry.VersionNodeID(fraud, first.Version.Tag), Kind: registry.DerivedFrom, Relation: registry.Previous}
	second := publish(public, "v1.1.0-rc.1", "two", dataset, previous)
	add(registry.RefMoved{ModelID: fraud, Generation: 2, RefUpdate: registry.RefUpdate{Ref: main.Ref, Old: main.New, New: commitOf("two")}}, second)
	add(imaged(second, registry.ImageFailed))
	add(changed(second, staging, "c-2", registry.Promotion, "v1.0.0", at))
	add(changed(first, staging, "c-3", registry.Rollback, "v1.1.0-rc.1", at), registry.GateMoved{ModelID: fraud, Tag: second.Version.Tag, Verdict: verdict(staging, false)})
	add(registry.PromotionRefused{ModelID: fraud, Tag: second.Version.Tag, Verdict: verdict(production, false), Reason: "try it"})

	base := registry.LineageEdge{To: registry.ExternalModelNodeID("acme/fraud", "v1.0.0"), Kind: registry.DerivedFrom, Relation: registry.Finetune}
	hidden := publish(private, "v2.0.0", "three", dataset, base)
	add(hidden, announced(private, registry.EventVersionPublished, at, "v2.0.0", sinkA, sinkB))
	add(evaluation(private, "three", "e-3", 0.95))
	add(changed(hidden, production, "c-4", registry.Promotion, "", at))
	add(registry.EdgesAdded{ModelID: secret, Edges: []registry.LineageEdge{{From: registry.VersionNodeID(secret, hidden.Version.Tag), To: "run:jenkins/7", Kind: registry.GeneratedBy}}})

	add(attempt(moved, sinkB, 1, registry.Failed, at))
	add(attempt(moved, sinkB, 2, registry.Delivered, at))
	add(attempt(born, sinkA, 1, registry.Dead, at))
	add(attempt(born, sinkA, 0, registry.Requeued, at))
	add(attempt(born, sinkB, 1, registry.Failed, at))
	add(moved) // found twice, announced once

	lost := publish(doomed, "v0.1.0", "four", dataset)
	add(lost, evaluation(doomed, "four", "e-4", 0.5))
	add(registry.ModelChanged{ModelID: gone, Description: "soon gone", Visibility: registry.Internal})
	add(registry.ModelDeleted{ModelID: gone}, announced(doomed, registry.EventModelDeleted, at, "gone", sinkA))
	add(registry.ModelCreated{Model: reborn}, announced(reborn, registry.EventModelCreated, at, "again"))
	after := publish(reborn, "v0.2.0", "five", dataset)
	add(registry.ModelImported{ModelID: again}, after, evaluation(reborn, "five", "e-5", 0.6))
	add(registry.PushStarted{PushID: "p-2", ModelID: again, Options: []string{"promote=staging"}, Updates: []registry.RefUpdate{{Ref: "refs/heads/x", New: commitOf("six")}}})
	for i, path := range []string{"weights.bin", "onnx/model.onnx", "README.md"} {
		add(registry.LockCreated{ModelID: fraud, Lock: registry.Lock{ID: fmt.Sprintf("l-%d", i+1), Path: path, Owner: "ada", LockedAt: at}})
	}
	add(registry.LockRemoved{ModelID: fraud, LockID: "l-2", Path: "onnx/model.onnx", Owner: "ada", Forced: true})
	add(registry.ModelChanged{ModelID: again, Visibility: registry.Public, Protected: registry.Protection{Branches: []string{"main", "release/*"}, Tags: []string{"audited-*"}}})
	let := digest.FromString("let go of")
	add(registry.BlobsLinked{ModelID: again, Blobs: []registry.LinkedBlob{{Digest: let, SizeBytes: 9}}})
	add(registry.BlobsUnlinked{ModelID: again, Digests: []digest.Digest{let}})

	tools, passing := registry.Repository{ID: "r-tools", Name: "acme/tools", Visibility: registry.Private, CreatedAt: at, CreatedBy: "ada"}, registry.Repository{ID: "r-passing", Name: "acme/passing/by"}
	stored := func(text string, subject digest.Digest) registry.StoredManifest {
		return registry.StoredManifest{Descriptor: describe("application/vnd.oci.image.manifest.v1+json", text), Subject: subject, Annotations: map[string]string{"a": "b"}, PushedBy: "ada"}
	}
	image, signature := stored("pushed image", ""), stored("pushed signature", first.Version.Artifact.Digest)
	wide := digest.SHA512.FromString("pushed image")
	layer, size := content("pushed layer")
	blobs = append(blobs, "pushed image", "pushed signature", "pushed layer")
	add(registry.RepositoryCreated{Repository: tools})
	add(registry.BlobsLinked{ModelID: tools.ID, Blobs: []registry.LinkedBlob{{Digest: layer, SizeBytes: size, Alias: digest.SHA512.FromString("pushed layer")}, {Digest: let, SizeBytes: 9, Alias: digest.SHA512.FromString("let go of")}}})
	add(registry.ManifestPushed{Repository: tools.ID, Manifest: image, Alias: wide, Tags: []string{"latest", "old"}})
	add(registry.ManifestPushed{Repository: tools.ID, Manifest: stored("pushed index", ""), Tags: []string{"latest"}})
	add(registry.ManifestPushed{Repository: fraud, Manifest: signature, Tags: []string{"Signed"}})
	add(registry.ManifestPushed{Repository: registry.ImageRepository(fraud), Manifest: signature, Alias: digest.SHA512.FromString("pushed signature")})
	add(registry.TagDeleted{Repository: tools.ID, Tag: "old"})
	add(registry.ManifestDeleted{Repository: tools.ID, Digest: digest.FromString("pushed index")})
	add(registry.BlobsUnlinked{ModelID: tools.ID, Digests: []digest.Digest{let}})
	composed := registry.ImageLayer{Digest: digest.FromString("composed"), SizeBytes: 10240, Files: []registry.File{{Path: "a", Digest: layer, SizeBytes: size}}}
	add(registry.LayerLinked{ModelID: tools.ID, Layer: composed})
	composed.Digest, composed.Files = digest.FromString("composed of what goes"), append(composed.Files, registry.File{Path: "b", Digest: let, SizeBytes: 9})
	add(registry.LayerLinked{ModelID: tools.ID, Layer: composed}, registry.BlobsUnlinked{ModelID: tools.ID, Digests: []digest.Digest{let}})
	add(registry.RepositoryCreated{Repository: passing}, registry.ManifestPushed{Repository: passing.ID, Manifest: image, Tags: []string{"latest"}})
	add(registry.RepositoryDeleted{RepositoryID: passing.ID})
	statement := func(text, kind string) registry.StoredManifest {
		m := stored(text, first.Version.Artifact.Digest)
		m.PushedBy, m.ArtifactType, m.Annotations = "", "application/vnd.in-toto+json", map[string]string{"in-toto.io/predicate-type": kind}
		blobs = append(blobs, text)
		return m
	}
	proof, size := content("proof")
	blobs = append(blobs, "proof")
	attested := registry.VersionAttested{ModelID: fraud, Tag: first.Version.Tag, Blobs: []registry.LinkedBlob{{Digest: proof, SizeBytes: size}}}
	for _, manifests := range [][]registry.StoredManifest{{statement("said first", "x"), statement("said of another", "y")}, {statement("said then", "x")}} {
		attested.Manifests = manifests
		add(attested)
	}
	set := func(v registry.VersionPublished, id string, from, to registry.VersionState) registry.VersionStateSet {
		return registry.VersionStateSet{ModelID: v.ModelID, Change: registry.StateChange{
			ID: id, Version: v.Version.Tag, Previous: from, State: to, Reason: "it hears voices", By: "grace", At: at,
		}}
	}
	add(set(first, "s-1", registry.Published, registry.Quarantined), announced(public, registry.EventVersionQuarantined, at, "s-1", sinkB))
	add(set(first, "s-2", registry.Quarantined, registry.Published))
	revoked := set(second, "s-3", registry.Published, registry.Revoked)
	revoked.Withdrawn = []digest.Digest{second.Version.Artifact.Digest, first.Version.Artifact.Digest}
	add(revoked)
	add(publish(public, "v1.2.0", "seven", dataset)) // has what was withdrawn, as far as the tests' content is the same
	for i, freeze := range []registry.Freeze{{Environment: staging, Frozen: true}, {Environment: production, Frozen: true}, {Environment: staging}} {
		freeze.ID, freeze.Reason, freeze.By, freeze.At = fmt.Sprintf("f-%d", i+1), "the holidays", "grace", at
		add(registry.EnvironmentFrozen{ModelID: fraud, Freeze: freeze})
	}
	slices.Sort(blobs)
	return groups, blobs
}

func TestHistoryHasEveryTypeOfRecord(t *testing.T) {
	seen := map[string]bool{}
	groups, _ := history()
	for _, g := range groups {
		for _, r := range g.Records {
			encoded, err := registry.EncodeRecord(r)
			if err != nil {
				t.Fatal(err)
			}
			seen[encoded.Type] = true
		}
	}
	for _, kind := range registry.RecordTypes() {
		if !seen[kind] {
			t.Errorf("the history of these tests has no record of type %s: add one", kind)
		}
	}
}
