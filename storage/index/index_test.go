package index_test

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/storage/index"
)

var (
	discard = slog.New(slog.DiscardHandler)
	nobody  = access.Anonymous(false)
	reader  = access.Anonymous(true)
	admin   = access.System
	begin   = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	staging = registry.MustEnvironmentName("staging")
)

// book is an index and the number of the last group in it.
type book struct {
	*index.DB
	tb   testing.TB
	path string
	seq  uint64
}

func newBook(tb testing.TB) *book {
	tb.Helper()
	b := &book{tb: tb, path: filepath.Join(tb.TempDir(), "index.db")}
	b.open()
	tb.Cleanup(b.close)
	return b
}

func (b *book) open() {
	b.tb.Helper()
	db, err := index.Open(b.path, discard)
	if err != nil {
		b.tb.Fatalf("Open: %v", err)
	}
	b.DB = db
}

func (b *book) close() {
	if b.DB == nil {
		return
	}
	if err := b.Close(); err != nil {
		b.tb.Errorf("Close: %v", err)
	}
	b.DB = nil
}

// add applies a group, a minute after the one before.
func (b *book) add(records ...registry.Record) {
	b.tb.Helper()
	b.seq++
	g := registry.Group{At: begin.Add(time.Duration(b.seq) * time.Minute), Actor: "ada", Records: records}
	if err := index.Check(g); err != nil {
		b.tb.Fatalf("Check: %v", err)
	}
	if err := b.Apply([]index.Entry{{Seq: b.seq, Group: g}}); err != nil {
		b.tb.Fatalf("Apply: %v", err)
	}
}

// model makes a model whose id is "id-" and its name.
func (b *book) model(name string, v registry.Visibility) registry.Model {
	b.tb.Helper()
	m := registry.Model{ID: "id-" + strings.ReplaceAll(name, "/", "-"), Name: registry.MustModelName(name), Visibility: v, CreatedAt: begin, UpdatedAt: begin}
	b.add(registry.ModelCreated{Model: m})
	return m
}

// publish makes a version at the commit whose name is that of its tag.
func (b *book) publish(m registry.Model, tag string, edges ...registry.LineageEdge) registry.VersionPublished {
	b.tb.Helper()
	r := version(m, tag, edges...)
	b.add(r)
	return r
}

func version(m registry.Model, tag string, edges ...registry.LineageEdge) registry.VersionPublished {
	descriptor := func(what string) registry.Descriptor {
		text := what + m.ID + tag
		return registry.Descriptor{MediaType: "application/" + what, Digest: digest.FromString(text), SizeBytes: int64(len(text))}
	}
	v := registry.Version{
		Tag: registry.MustTag(tag), Commit: commitOf(tag), Format: 1, PublishedAt: begin, Artifact: descriptor("manifest"), Config: descriptor("config"),
		Files: []registry.File{{Path: "weights.bin", Digest: digest.FromString("weights" + m.ID + tag), SizeBytes: 1 << 30, LFS: true}},
	}
	for i := range edges {
		edges[i].From = registry.VersionNodeID(m.ID, v.Tag)
	}
	return registry.VersionPublished{ModelID: m.ID, Version: v, Manifest: registry.StoredManifest{Descriptor: v.Artifact}, Edges: edges}
}

func commitOf(text string) registry.ObjectID {
	sum := sha1.Sum([]byte(text))
	return registry.ObjectID(hex.EncodeToString(sum[:]))
}

func evaluation(m registry.Model, commit, id string) registry.EvaluationRecorded {
	return registry.EvaluationRecorded{ModelID: m.ID, Evaluation: registry.Evaluation{ID: id, Commit: commitOf(commit), Metrics: map[string]float64{"f1": 0.9}, RecordedAt: begin}}
}

func change(m registry.Model, v registry.VersionPublished, env registry.EnvironmentName, id string) registry.EnvironmentChanged {
	return registry.EnvironmentChanged{ModelID: m.ID, Change: registry.EnvironmentChange{
		ID: id, Environment: env, Kind: registry.Promotion, Version: v.Version.Tag, Commit: v.Version.Commit, Artifact: v.Version.Artifact.Digest, At: begin,
	}}
}

func event(m registry.Model, what string, sinks ...string) registry.EventAnnounced {
	e := registry.NewEvent(registry.EventRefUpdated, m, "ada", begin, struct{}{}, what)
	e.Sinks = sinks
	return registry.EventAnnounced{Event: e}
}

// must fails the test when a query fails.
func must[T any](tb testing.TB) func(T, error) T {
	return func(v T, err error) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

func dump(tb testing.TB, db *index.DB) string {
	tb.Helper()
	var b strings.Builder
	if err := db.Dump(&b); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

func names(models []registry.Model) []string {
	list := []string{}
	for _, m := range models {
		list = append(list, m.Name.String())
	}
	return list
}

func toJSON(tb testing.TB, v any) string {
	tb.Helper()
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

var sameNames = []cmp.Option{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b registry.ModelName) bool { return a == b }),
	cmp.Comparer(func(a, b registry.Tag) bool { return a == b }),
	cmp.Comparer(func(a, b registry.EnvironmentName) bool { return a == b }),
}

func TestApplyOrder(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	b.publish(m, "v1.0.0")
	b.add(evaluation(m, "v1.0.0", "e1"))
	before := dump(t, b.DB)
	group := func(records ...registry.Record) registry.Group { return registry.Group{At: begin, Records: records} }

	again := []index.Entry{{Seq: 1, Group: group(registry.ModelDeleted{ModelID: m.ID})}, {Seq: 3, Group: group(evaluation(m, "v1.0.0", "e1"))}}
	if err := b.Apply(again); err != nil {
		t.Errorf("Apply of groups that are there = %v, want nil", err)
	}
	if err := b.Apply(nil); err != nil {
		t.Errorf("Apply of nothing = %v, want nil", err)
	}
	gap := []index.Entry{{Seq: 4, Group: group(evaluation(m, "v1.0.0", "e2"))}, {Seq: 6, Group: group(registry.ModelDeleted{ModelID: m.ID})}}
	if err := b.Apply(gap); !errors.Is(err, index.ErrDamaged) {
		t.Errorf("Apply of 4 and 6 = %v, want ErrDamaged", err)
	}
	bad := []index.Entry{{Seq: 4, Group: group(evaluation(m, "v1.0.0", "e2"))}, {Seq: 5, Group: group(registry.TokenCreated{})}}
	if err := b.Apply(bad); err == nil || !strings.Contains(err.Error(), "group 5") || !strings.Contains(err.Error(), "registry.TokenCreated") {
		t.Errorf("Apply of a bad group = %v, want an error that names group 5 and its record", err)
	}
	if diff := cmp.Diff(before, dump(t, b.DB)); diff != "" {
		t.Errorf("rows after groups that were not applied (-want +got):\n%s", diff)
	}
	if got, err := b.Applied(t.Context()); err != nil || got != 3 {
		t.Errorf("Applied = %d, %v, want 3", got, err)
	}
}

func TestReopen(t *testing.T) {
	b := newBook(t)
	b.model("acme/fraud", registry.Public)
	want := dump(t, b.DB)
	steps := []struct {
		name string
		do   func()
		kept bool
	}{
		{"an orderly stop", func() { b.close() }, true},
		{"a killed process", func() {
			if err := b.Kill(); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"another schema", func() {
			if err := b.SetSchema(99); err != nil {
				t.Fatal(err)
			}
			b.close()
		}, false},
		{"a machine that stopped", func() {
			if err := b.Kill(); err != nil {
				t.Fatal(err)
			}
			state, err := os.ReadFile(b.path + ".state")
			if err != nil {
				t.Fatal(err)
			}
			var said map[string]any
			if err := json.Unmarshal(state, &said); err != nil || said["boot"] == nil {
				t.Fatalf("state of a killed process = %s, %v, want it to name the boot", state, err)
			}
			said["boot"] = "11111111-2222-3333-4444-555555555555"
			writeFile(t, b.path+".state", []byte(toJSON(t, said)))
		}, false},
		{"a deleted file", func() {
			b.close()
			if err := os.Remove(b.path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a state without its file's content", func() {
			b.close()
			writeFile(t, b.path, nil)
		}, false},
	}
	for _, step := range steps {
		step.do()
		b.open()
		got := dump(t, b.DB)
		if kept := got == want; kept != step.kept {
			t.Errorf("after %s the rows were kept: %t, want %t", step.name, kept, step.kept)
		}
		if applied, err := b.Applied(t.Context()); err != nil || (applied == 1) != step.kept {
			t.Errorf("after %s Applied = %d, %v, want 1: %t", step.name, applied, err, step.kept)
		}
		if !step.kept {
			b.seq = 0
			b.model("acme/fraud", registry.Public)
		}
	}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenErrors(t *testing.T) {
	b := newBook(t)
	b.model("acme/fraud", registry.Public)
	if db, err := index.Open(b.path, discard); err == nil {
		t.Errorf("a second Open of the same file = %v, want an error", db)
	}
	if db, err := index.Open(filepath.Join(t.TempDir(), "no", "index.db"), discard); err == nil {
		t.Errorf("Open in a directory that is not there = %v, want an error", db)
	}
	if _, err := os.Stat(b.path + ".damaged"); err == nil {
		t.Error("an index that somebody has open was set aside")
	}
	if got := names(must[[]registry.Model](t)(b.AllModels(t.Context()))); !slices.Equal(got, []string{"acme/fraud"}) {
		t.Errorf("AllModels = %v, want acme/fraud", got)
	}
}

// Whichever bit of a row flips, in its key or its value: whoever reads the row gets ErrDamaged or
// nothing, never another value, and the next Open sets the file aside.
func TestFlippedBits(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	v := b.publish(m, "v1.0.0", registry.LineageEdge{To: "dataset:calls", Kind: registry.Used})
	b.add(evaluation(m, "v1.0.0", "e1"), change(m, v, staging, "c1"), event(m, "one", "notify"))
	r := b.repository("acme/tools")
	b.add(wide(pushed(r.ID, "image"), "image"))
	b.close()
	good, state := readFile(t, b.path), readFile(t, b.path+".state")
	tests := []struct {
		bucket string
		read   func() (any, error)
	}{
		{"models", func() (any, error) { return b.ModelByID(t.Context(), m.ID) }},
		{"names", func() (any, error) { v, _, err := b.Models(t.Context(), admin, registry.Page{}); return v, err }},
		{"versions", func() (any, error) { return b.Versions(t.Context(), m.ID) }},
		{"commits", func() (any, error) { return b.VersionsAt(t.Context(), m.ID, v.Version.Commit) }},
		{"tags", func() (any, error) { v, _, err := b.Tags(t.Context(), m.ID, "", 9); return v, err }},
		{"evaluations", func() (any, error) { return b.Evaluations(t.Context(), m.ID, v.Version.Commit) }},
		{"edges_out", func() (any, error) { return b.Lineage(t.Context(), admin, registry.Walk{Start: v.Edges[0].From}) }},
		{"edges_in", func() (any, error) { return b.Lineage(t.Context(), admin, registry.Walk{Start: "dataset:calls"}) }},
		{"events", func() (any, error) { return b.Events(t.Context(), admin, 0, 0) }},
		{"outbox", func() (any, error) { return b.Waiting(t.Context(), "notify", 9) }},
		{"deliveries", func() (any, error) {
			v, _, err := b.Deliveries(t.Context(), admin, registry.DeliveryFilter{}, registry.Page{})
			return v, err
		}},
		{"sent", func() (any, error) {
			v, _, err := b.Deliveries(t.Context(), admin, registry.DeliveryFilter{ModelID: m.ID}, registry.Page{})
			return v, err
		}},
		{"catalog", func() (any, error) { return b.search("kind:version") }},
		{"facts", func() (any, error) { return b.search("kind:version") }},
		{"order", func() (any, error) {
			b.SetEffort(0, 9)
			return b.search("sort:f1")
		}},
		{"digests", func() (any, error) { return b.search("digest:" + v.Version.Artifact.Digest.String()) }},
		{"ids", func() (any, error) { return b.ChangeByID(t.Context(), m.ID, "c1") }},
		{"repositories", func() (any, error) { return b.RepositoryByName(t.Context(), r.Name) }},
		{"aliases", func() (any, error) { return b.Canonical(t.Context(), r.ID, digest.SHA512.FromString("image")) }},
	}
	for _, tt := range tests {
		b.open()
		want, err := tt.read()
		if err != nil {
			t.Fatalf("read of %s = %v", tt.bucket, err)
		}
		b.close()
		for bit := range 24 {
			writeFile(t, b.path, good)
			writeFile(t, b.path+".state", state)
			b.open()
			inKey, bit := bit%2 == 0, bit*37+5
			if err := b.Flip(tt.bucket, 0, inKey, bit); err != nil {
				t.Fatal(err)
			}
			got, err := tt.read()
			switch {
			case errors.Is(err, index.ErrDamaged):
				b.close()
				if _, err := os.Stat(b.path + ".state"); err == nil {
					t.Errorf("%s: the file in which damage was met was closed as a good one", tt.bucket)
				}
			case err == nil && !inKey:
				t.Errorf("%s with bit %d of a value flipped reads as %s, want ErrDamaged", tt.bucket, bit, toJSON(t, got))
			case err == nil && toJSON(t, got) != toJSON(t, want) && len(toJSON(t, got)) > len(toJSON(t, want)):
				t.Errorf("%s with bit %d of a key flipped reads as %s, want %s or less", tt.bucket, bit, toJSON(t, got), toJSON(t, want))
			}
			b.close()
		}
		writeFile(t, b.path, good)
		writeFile(t, b.path+".state", state)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The same event found twice is one event, with one delivery to each sink, whatever became of it.
func TestEventsAreAnnouncedOnce(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	e := event(m, "main 1", "a", "b")
	b.add(e)
	b.add(e, e)
	b.add(registry.DeliveryTried{Attempt: registry.Attempt{Sink: "a", EventID: e.Event.ID, Number: 1, Outcome: registry.Delivered, At: begin}})
	before := dump(t, b.DB)
	other := e
	other.Event.Sinks = []string{"a", "b", "c"} // the operator has another sink now
	b.add(other)
	if diff := cmp.Diff(strings.Replace(before, `"applied" 4`, `"applied" 5`, 1), dump(t, b.DB)); diff != "" {
		t.Errorf("rows after an event that was there (-want +got):\n%s", diff)
	}
	if got := must[[]registry.Event](t)(b.Events(t.Context(), admin, 0, 0)); len(got) != 1 || got[0].Seq != 1 {
		t.Errorf("Events = %+v, want one with number 1", got)
	}
	if got := must[registry.Counts](t)(b.Counts(t.Context())); got.Waiting != 1 {
		t.Errorf("Counts.Waiting = %d, want 1: it was delivered to a, not to b", got.Waiting)
	}
}

// ids of what waits for a sink, with the number of tries of each.
func (b *book) waiting(sink string) []string {
	b.tb.Helper()
	list := []string{}
	for _, d := range must[[]registry.Delivery](b.tb)(b.Waiting(b.tb.Context(), sink, 100)) {
		list = append(list, fmt.Sprintf("%s %d %d", d.Event.ID, d.Event.Seq, len(d.Attempts)))
	}
	return list
}

func TestOutbox(t *testing.T) {
	b := newBook(t)
	m1, m2 := b.model("acme/one", registry.Public), b.model("acme/two", registry.Private)
	e1, e2, e3 := event(m1, "1", "x", "y"), event(m2, "2", "y"), event(m1, "3", "x", "y")
	b.add(e1)
	b.add(e2, e3)
	try := func(e registry.EventAnnounced, sink string, n int, o registry.Outcome) {
		b.add(registry.DeliveryTried{Attempt: registry.Attempt{Sink: sink, EventID: e.Event.ID, Number: n, Outcome: o, At: begin, NextAt: begin.Add(time.Hour)}})
	}
	line := func(e registry.EventAnnounced, seq, tries int) string {
		return fmt.Sprintf("%s %d %d", e.Event.ID, seq, tries)
	}
	check := func(when string, wantX, wantY []string, waiting int64) {
		t.Helper()
		for sink, want := range map[string][]string{"x": wantX, "y": wantY, "z": {}, "": {}} {
			if diff := cmp.Diff(want, b.waiting(sink), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s, Waiting(%q) (-want +got):\n%s", when, sink, diff)
			}
		}
		if got := must[registry.Counts](t)(b.Counts(t.Context())); got.Waiting != waiting || got.OldestWaiting.IsZero() != (waiting == 0) {
			t.Errorf("%s, Counts = %+v, want %d waiting", when, got, waiting)
		}
	}
	check("after three events", []string{line(e1, 1, 0), line(e3, 3, 0)}, []string{line(e1, 1, 0), line(e2, 2, 0), line(e3, 3, 0)}, 5)
	try(e1, "y", 1, registry.Failed)
	try(e1, "x", 1, registry.Delivered)
	try(e1, "nobody", 1, registry.Delivered) // a sink that the event was not for
	check("after a failure and a delivery", []string{line(e3, 3, 0)}, []string{line(e1, 1, 1), line(e2, 2, 0), line(e3, 3, 0)}, 4)
	try(e1, "y", 2, registry.Dead)
	try(e3, "x", 1, registry.Delivered)
	check("after the last try", nil, []string{line(e2, 2, 0), line(e3, 3, 0)}, 2)
	try(e1, "y", 0, registry.Requeued)
	try(e3, "x", 0, registry.Requeued)
	check("after two were asked for again", []string{line(e3, 3, 0)}, []string{line(e1, 1, 0), line(e2, 2, 0), line(e3, 3, 0)}, 4)
	try(e3, "x", 1, registry.Delivered)
	for _, e := range []registry.EventAnnounced{e1, e2, e3} {
		try(e, "y", 1, registry.Delivered)
	}
	check("after all was delivered", nil, nil, 0)
	b.add(registry.DeliveryTried{Attempt: registry.Attempt{Sink: "x", EventID: "no such event", Number: 1, Outcome: registry.Failed, At: begin}})
	check("after a try of no event", nil, nil, 0)

	d := must[registry.Delivery](t)(b.Delivery(t.Context(), "y", e1.Event.ID))
	var outcomes []registry.Outcome
	for _, a := range d.Attempts {
		outcomes = append(outcomes, a.Outcome)
	}
	if want := []registry.Outcome{registry.Failed, registry.Dead, registry.Requeued, registry.Delivered}; !slices.Equal(outcomes, want) || d.State != registry.Delivered {
		t.Errorf("Delivery = %s after %v, want delivered after %v", d.State, outcomes, want)
	}
	for _, id := range [][2]string{{"y", "no such event"}, {"z", e1.Event.ID}, {"x", e2.Event.ID}} {
		if d, err := b.Delivery(t.Context(), id[0], id[1]); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Delivery(%s, %s) = %+v, %v, want ErrNotFound", id[0], id[1], d, err)
		}
	}
}

func TestAttemptsKept(t *testing.T) {
	b := newBook(t)
	e := event(b.model("acme/fraud", registry.Public), "1", "x")
	b.add(e)
	for n := range 60 {
		b.add(registry.DeliveryTried{Attempt: registry.Attempt{Sink: "x", EventID: e.Event.ID, Number: n + 1, Outcome: registry.Failed, At: begin}})
	}
	got := must[registry.Delivery](t)(b.Delivery(t.Context(), "x", e.Event.ID)).Attempts
	if len(got) != 50 || got[0].Number != 11 || got[49].Number != 60 {
		t.Errorf("attempts kept = %d, from %d to %d, want the last 50 of 60", len(got), got[0].Number, got[len(got)-1].Number)
	}
	if w := b.waiting("x"); len(w) != 1 || !strings.HasSuffix(w[0], " 60") {
		t.Errorf("Waiting = %v, want one with 60 tries", w)
	}
}

func TestDeletedModelLeavesATombstone(t *testing.T) {
	b := newBook(t)
	other := b.model("acme/other", registry.Public)
	b.publish(other, "v9.0.0", registry.LineageEdge{To: registry.VersionNodeID("id-acme-fraud", registry.MustTag("v1.0.0")), Kind: registry.DerivedFrom})
	empty := dump(t, b.DB)
	m := b.model("acme/fraud", registry.Public)
	v := b.publish(m, "v1.0.0", registry.LineageEdge{To: "dataset:calls", Kind: registry.Used})
	b.publish(m, "v1.1.0")
	manifest := registry.StoredManifest{Descriptor: registry.Descriptor{Digest: digest.FromString("image"), SizeBytes: 1}, Subject: v.Version.Artifact.Digest}
	b.add(
		registry.RefMoved{ModelID: m.ID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: "refs/heads/main", New: v.Version.Commit}},
		registry.PushStarted{ModelID: m.ID, PushID: "p"},
		registry.ImageBuilt{
			ModelID: m.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady, Digest: manifest.Digest}, Manifests: []registry.StoredManifest{manifest},
			Layers: []registry.ImageLayer{{Digest: digest.FromString("layer")}},
		},
		evaluation(m, "v1.0.0", "e1"), evaluation(m, "v1.1.0", "e2"),
		registry.PolicySet{ModelID: m.ID, Policy: registry.PolicyState{Commit: v.Version.Commit}},
		registry.GateMoved{ModelID: m.ID, Tag: v.Version.Tag, Verdict: registry.Verdict{Environment: staging, Open: true}},
		registry.PromotionRefused{ModelID: m.ID, Tag: v.Version.Tag},
		change(m, v, staging, "c1"),
		registry.ApprovalGiven{ModelID: m.ID, Approval: registry.Approval{Environment: staging, Version: v.Version.Tag, By: "grace"}},
		registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{{Digest: digest.FromString("b"), SizeBytes: 1}}},
	)
	b.add(registry.ModelDeleted{ModelID: m.ID})
	b.add(registry.ModelDeleted{ModelID: m.ID})                                                // of a model that is gone
	b.add(registry.ModelChanged{ModelID: m.ID, Description: "x", Visibility: registry.Public}) // too late

	keep := func(text string) string {
		var lines []string
		for line := range strings.Lines(text) {
			// What came from it has to be stated anew.
			if !strings.HasPrefix(line, "meta ") && !strings.HasPrefix(line, "tombstones ") && !strings.HasPrefix(line, `unattested "id-acme-other`) {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "")
	}
	if diff := cmp.Diff(keep(empty), keep(dump(t, b.DB))); diff != "" {
		t.Errorf("rows that a deleted model leaves beside its tombstone (-want +got):\n%s", diff)
	}
	counts := must[registry.Counts](t)(b.Counts(t.Context()))
	if counts.Models != 1 || counts.Versions != 1 || counts.Evaluations != 0 {
		t.Errorf("Counts = %+v, want those of one model with one version", counts)
	}

	tags := func() (list []string) {
		for _, tag := range must[[]registry.Tag](t)(b.UsedTags(t.Context(), m.Name)) {
			list = append(list, tag.String())
		}
		return list
	}
	if got, want := tags(), []string{"v1.0.0", "v1.1.0"}; !slices.Equal(got, want) {
		t.Errorf("UsedTags = %v, want %v", got, want)
	}
	if got := must[bool](t)(b.Deleted(t.Context(), other.Name)); got {
		t.Errorf("Deleted(%s) = true, want false", other.Name)
	}
	if _, err := b.ModelByName(t.Context(), m.Name); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("ModelByName of a deleted model = %v, want ErrNotFound", err)
	}

	// The name is used again: another model, which starts with nothing.
	next := m
	next.ID = "id-second"
	b.add(registry.ModelCreated{Model: next})
	if got := must[registry.Model](t)(b.ModelByName(t.Context(), m.Name)); got.ID != next.ID {
		t.Errorf("ModelByName after the name was used again = %s, want %s", got.ID, next.ID)
	}
	if got := must[[]registry.VersionRecord](t)(b.Versions(t.Context(), next.ID)); len(got) != 0 {
		t.Errorf("Versions of the second model = %v, want none", got)
	}
	b.publish(next, "v2.0.0")
	b.add(registry.ModelDeleted{ModelID: next.ID})
	if got, want := tags(), []string{"v1.0.0", "v1.1.0", "v2.0.0"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("UsedTags after both = %v, want %v", got, want)
	}
}

// A model's blob is not another's, although the store holds it once.
func TestBlobSizeIsByModel(t *testing.T) {
	b := newBook(t)
	m1, m2 := b.model("acme/one", registry.Public), b.model("acme/one-more", registry.Public)
	v := b.publish(m1, "v1.0.0")
	linked := digest.FromString("linked")
	b.add(registry.BlobsLinked{ModelID: m1.ID, Blobs: []registry.LinkedBlob{{Digest: linked, SizeBytes: 7}}})
	b.add(registry.ImageBuilt{ModelID: m1.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady}, Blobs: []registry.LinkedBlob{{Digest: digest.FromString("image config"), SizeBytes: 8}}})
	for what, want := range map[digest.Digest]int64{
		linked: 7, v.Version.Files[0].Digest: 1 << 30, v.Version.Config.Digest: v.Version.Config.SizeBytes, digest.FromString("image config"): 8,
	} {
		if got, err := b.BlobSize(t.Context(), m1.ID, what.String()); err != nil || got != want {
			t.Errorf("BlobSize(its owner, %s) = %d, %v, want %d", what, got, err, want)
		}
		for _, id := range []string{m2.ID, "", "id-acme", "never"} {
			if got, err := b.BlobSize(t.Context(), id, what.String()); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("BlobSize(%q, %s) = %d, %v, want ErrNotFound", id, what, got, err)
			}
		}
	}
	for _, d := range []string{"", "sha256:", digest.FromString("other").String()} {
		if got, err := b.BlobSize(t.Context(), m1.ID, d); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("BlobSize(its owner, %q) = %d, %v, want ErrNotFound", d, got, err)
		}
	}
}

// The tag of an environment names the same version in both artifact repositories, or none in that
// of the images, whichever of promotion and image comes first.
func TestEnvironmentTags(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	first, second := b.publish(m, "v1.0.0"), b.publish(m, "v1.1.0")
	image := func(v registry.VersionPublished) registry.ImageBuilt {
		return registry.ImageBuilt{ModelID: m.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady, Digest: digest.FromString("image of " + v.Version.Tag.String())}}
	}
	check := func(when string, artifact, wantImage digest.Digest) {
		t.Helper()
		if got, err := b.TagDigest(t.Context(), m.ID, "staging"); err != nil || got != artifact {
			t.Errorf("%s the artifact's tag is %s, %v, want %s", when, got, err, artifact)
		}
		got, err := b.TagDigest(t.Context(), registry.ImageRepository(m.ID), "staging")
		if wantImage == "" && !errors.Is(err, registry.ErrNotFound) || wantImage != "" && (err != nil || got != wantImage) {
			t.Errorf("%s the image's tag is %q, %v, want %q", when, got, err, wantImage)
		}
	}
	b.add(image(first))
	b.add(change(m, first, staging, "c1"))
	check("after a version with an image", first.Version.Artifact.Digest, image(first).Status.Digest)
	b.add(change(m, second, staging, "c2"))
	check("after a version without one", second.Version.Artifact.Digest, "")
	failed := image(second)
	failed.Status = registry.ImageStatus{State: registry.ImageFailed, Error: "no space"}
	b.add(failed)
	check("after its image failed", second.Version.Artifact.Digest, "")
	b.add(image(second))
	check("after its image was ready", second.Version.Artifact.Digest, image(second).Status.Digest)
	b.add(image(first))
	check("after the image of another version", second.Version.Artifact.Digest, image(second).Status.Digest)
	if got := must[[]registry.VersionRecord](t)(b.BuildingImages(t.Context())); len(got) != 0 {
		t.Errorf("BuildingImages = %v, want none", got)
	}
}

func TestTokens(t *testing.T) {
	b := newBook(t)
	if got := must[bool](t)(b.HasTokens(t.Context())); got {
		t.Error("HasTokens of a new index = true, want false")
	}
	token := registry.Token{ID: "t1", Owner: "ada", Role: "admin", Hash: strings.Repeat("ef", 32), CreatedAt: begin}
	b.add(registry.TokenCreated{Token: token})
	if got, err := b.Token(t.Context(), token.Hash); err != nil || got != token {
		t.Errorf("Token = %+v, %v, want %+v", got, err, token)
	}
	for _, hash := range []string{"", "ef", "t1", strings.Repeat("EF", 32)} {
		if got, err := b.Token(t.Context(), hash); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Token(%q) = %+v, %v, want ErrNotFound", hash, got, err)
		}
	}
	b.add(registry.TokenRevoked{TokenID: "never"})
	b.add(registry.TokenRevoked{TokenID: "t1"})
	if got, err := b.Token(t.Context(), token.Hash); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Token that was revoked = %+v, %v, want ErrNotFound", got, err)
	}
	if got := must[bool](t)(b.HasTokens(t.Context())); !got {
		t.Error("HasTokens after the only one was revoked = false, want true: no other must be made by itself")
	}
}

func TestUnmirrored(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	b.publish(m, "v1.0.0")
	b.add(registry.PolicySet{ModelID: m.ID}, evaluation(m, "v1.0.0", "e1"), evaluation(m, "v1.0.0", "e2"))
	b.add(registry.ModelImported{ModelID: m.ID}, evaluation(m, "v1.0.0", "e3")) // came from the repository
	places := func(marks []registry.Mark) (list []string) {
		for _, mark := range marks {
			list = append(list, fmt.Sprintf("%s %d.%d %s", mark.ModelID, mark.Seq, mark.Place, mark.Record.Type+string(mark.Evaluated)))
		}
		return list
	}
	want := []string{"id-acme-fraud 2.0 version_published", "id-acme-fraud 3.1 " + string(commitOf("v1.0.0")), "id-acme-fraud 3.2 " + string(commitOf("v1.0.0"))}
	marks := must[[]registry.Mark](t)(b.Unmirrored(t.Context(), 10))
	if diff := cmp.Diff(want, places(marks)); diff != "" {
		t.Errorf("Unmirrored (-want +got):\n%s", diff)
	}
	if got := places(must[[]registry.Mark](t)(b.Unmirrored(t.Context(), 2))); !slices.Equal(got, want[:2]) {
		t.Errorf("Unmirrored(2) = %v, want %v", got, want[:2])
	}
	if got := places(must[[]registry.Mark](t)(b.UnmirroredAfter(t.Context(), marks[1], 10))); !slices.Equal(got, want[2:]) {
		t.Errorf("UnmirroredAfter the second = %v, want %v", got, want[2:])
	}
	if got, want := marks[1].At, begin.Add(3*time.Minute); !got.Equal(want) {
		t.Errorf("the time of a mark = %v, want that of its group, %v", got, want)
	}
	if err := b.Mirrored(marks[:2]); err != nil {
		t.Fatal(err)
	}
	if got := places(must[[]registry.Mark](t)(b.Unmirrored(t.Context(), 10))); !slices.Equal(got, want[2:]) {
		t.Errorf("Unmirrored after two were written = %v, want %v", got, want[2:])
	}
}
