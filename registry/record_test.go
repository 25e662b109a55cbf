package registry_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

var update = flag.Bool("update", false, "write the golden file; only before the first release of a type of record")

// samples hold a value in every field of every type of record, so that the golden file pins the
// name of each.
func samples() []registry.Record {
	tag, staging := registry.MustTag("v1.2.0"), registry.MustEnvironmentName("staging")
	const tree, old = "89abcdef0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210fedcba98"
	other := digest.Digest("sha256:" + strings.Repeat("cd", 32))
	descriptor := registry.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: someDigest, SizeBytes: 512}
	manifest := registry.StoredManifest{Descriptor: descriptor, ArtifactType: "application/vnd.cncf.model.manifest.v1+json", Annotations: map[string]string{"a": "b"}, Subject: other, PushedBy: "ada"}
	file := registry.File{Path: "onnx/model.onnx", Digest: other, SizeBytes: 1 << 40, Executable: true, LFS: true}
	blob := registry.LinkedBlob{Digest: other, SizeBytes: 1 << 40, Alias: digest.SHA512.FromString("weights")}
	edge := registry.LineageEdge{From: registry.VersionNodeID("m1", tag), To: registry.DatasetNodeID("calls-2026"), Kind: registry.DerivedFrom, Relation: registry.Finetune}
	gate := registry.GateVerdict{Name: "good", Expr: "metrics.f1 >= 0.8", Open: true, Values: map[string]any{"metrics.f1": 0.8421052631578947, "incumbent": nil, "version.prerelease": false}, Reason: "it holds: <f1> & \"so\"", Slice: "night", Evaluation: "e2"}
	verdict := registry.Verdict{Environment: staging, Open: true, PolicyCommit: tree, Gates: []registry.GateVerdict{gate}, Evaluation: "e1", Matched: 2}
	in := fullInput()
	evaluation := registry.Evaluation{
		ID: "e1", Commit: someCommit, Dataset: in.Dataset, Confusion: in.Confusion, Classes: map[string]registry.ClassMetrics{"speech": {Precision: ptr(0.8), Recall: ptr(8.0 / 9), Specificity: ptr(9.0 / 11), F1: ptr(16.0 / 19), Support: 90}},
		Metrics: map[string]float64{"f1": 16.0 / 19, "tiny": 5e-324}, Intervals: map[string]registry.Interval{"f1": {Lower: 0.75, Upper: 0.9, Level: 0.95, Method: registry.Delta}},
		Outcomes: &registry.Outcomes{Examples: someDigest, Count: 10, Correct: registry.Bitmap{0xf7, 0x03}}, Samples: in.Samples, Harness: in.Harness, Evaluator: "jenkins", SourceURL: in.SourceURL, Attachments: in.Attachments,
		SelfReported: true, RecordedBy: "ada", RecordedAt: someTime,
	}
	version := registry.Version{
		Tag: tag, Commit: someCommit, TagObject: tree, Message: "first\n\nof many", PublishedAt: someTime, PublishedBy: "ada", Withheld: true, Format: 1, Artifact: descriptor, Config: descriptor,
		Files: []registry.File{file}, Warnings: []string{"link.txt was left out: it is a symbolic link"},
		Card: registry.CardFacts{
			License: "mit", Library: "onnx", Task: "voice-activity-detection", Tags: []string{"vad"}, Languages: []string{"en"}, Datasets: []string{"calls-2026"},
			BaseModels: []registry.BaseModel{{Model: "snakers4/silero-vad", Relation: registry.Finetune, Revision: "v5.0.0"}}, FrontMatter: json.RawMessage(`{"license":"mit"}`), Problem: "line 2",
			Sections: []string{"Intended use"},
		},
	}
	policy := &registry.Policy{Environments: []registry.Environment{{
		Name: registry.MustEnvironmentName("production"), After: staging, Promote: registry.PromoteAuto, Prereleases: true, Approvals: 2,
		Evidence: &registry.Evidence{Dataset: "calls-2026", Revision: "9f3c", Digest: someDigest, Split: "test", Slice: ptr("night"), Evaluators: []string{"jenkins"}, MaxAge: 720 * time.Hour, SelfReported: true},
		Gates:    []registry.Gate{{Name: "good", Expr: "metrics.f1 >= 0.8"}}, Deploy: []string{"notify"},
		Slices:  &registry.Slices{Required: []string{"night"}, Gates: []registry.Gate{{Name: "fair", Expr: "metrics.recall >= 0.7"}}},
		Card:    &registry.CardRules{Sections: []string{"Intended use"}, Fields: []string{"license"}},
		Monitor: &registry.Monitor{Alerts: []registry.Alert{{Name: "F1Low", Expr: "model_f1 < 0.8", For: "5m", Action: "rollback"}}},
	}}}
	protected := registry.Protection{Branches: []string{"main"}, Tags: []string{"audited-*"}}
	update := registry.RefUpdate{Ref: "refs/heads/main", Old: old, New: someCommit}
	event := registry.Event{
		Seq: 7, ID: "0123456789abcdef0123456789abcdef", Type: registry.EventEnvironmentPromoted, ModelID: "m1", Model: registry.MustModelName("acme/fraud"), Version: tag, Environment: staging,
		Actor: "ada", At: someTime, Data: json.RawMessage(`{"a":1}`), Sinks: []string{"notify"}, Withheld: true,
	}
	change := registry.EnvironmentChange{
		ID: "c1", Environment: staging, Kind: registry.Promotion, Version: tag, Commit: someCommit, Artifact: someDigest, Previous: registry.MustTag("v1.1.0"), Reason: "it is better", Automatic: true,
		By: "ada", At: someTime, Live: true, Deploy: []string{"notify"}, Verdict: &verdict,
	}
	return []registry.Record{
		registry.JournalStarted{ID: "j1"},
		registry.ModelImported{ModelID: "m1"},
		registry.ModelCreated{Model: registry.Model{
			ID: "m1", Name: registry.MustModelName("acme/fraud"), Visibility: registry.Private, Description: "finds fraud", DefaultBranch: "main", Protected: protected,
			CreatedAt: someTime, CreatedBy: "ada", UpdatedAt: someTime.Add(time.Hour),
		}},
		registry.ModelChanged{ModelID: "m1", Description: "finds more", Visibility: registry.Internal, Protected: protected},
		registry.ModelDeleted{ModelID: "m1"},
		registry.DefaultBranchSet{ModelID: "m1", Branch: "main"},
		registry.PushStarted{PushID: "p1", ModelID: "m1", Options: []string{"promote=staging"}, Updates: []registry.RefUpdate{update}},
		registry.PushFinished{PushID: "p1", ModelID: "m1"},
		registry.RefMoved{ModelID: "m1", Generation: 3, RefUpdate: update},
		registry.BlobsLinked{ModelID: "m1", Blobs: []registry.LinkedBlob{blob}},
		registry.LayerLinked{ModelID: "r1", Layer: registry.ImageLayer{Digest: someDigest, SizeBytes: 1024, Files: []registry.File{file}}},
		registry.RepositoryCreated{Repository: registry.Repository{ID: "r1", Name: "tools/scan/rules", Visibility: registry.Internal, CreatedAt: someTime, CreatedBy: "ada"}},
		registry.RepositoryDeleted{RepositoryID: "r1"},
		registry.ManifestPushed{Repository: "r1", Manifest: manifest, Alias: digest.SHA512.FromString("manifest"), Tags: []string{"latest"}},
		registry.ManifestDeleted{Repository: "r1", Digest: someDigest},
		registry.TagDeleted{Repository: "r1", Tag: "latest"},
		registry.VersionPublished{ModelID: "m1", Version: version, Manifest: manifest, Edges: []registry.LineageEdge{edge}},
		registry.ImageBuilt{
			ModelID: "m1", Tag: tag, Status: registry.ImageStatus{State: registry.ImageFailed, Digest: someDigest, Error: "no space"}, Manifests: []registry.StoredManifest{manifest},
			Blobs: []registry.LinkedBlob{blob}, Layers: []registry.ImageLayer{{Digest: someDigest, SizeBytes: 1024, Files: []registry.File{file}}},
		},
		registry.VersionAttested{ModelID: "m1", Tag: tag, Manifests: []registry.StoredManifest{manifest}, Blobs: []registry.LinkedBlob{blob}},
		registry.EvaluationRecorded{ModelID: "m1", Evaluation: evaluation},
		registry.PolicySet{ModelID: "m1", Policy: registry.PolicyState{Commit: someCommit, Blob: tree, Policy: policy, Problem: "line 3"}},
		registry.GateMoved{ModelID: "m1", Tag: tag, Verdict: verdict},
		registry.PromotionRefused{ModelID: "m1", Tag: tag, Verdict: verdict, Reason: "try it"},
		registry.EnvironmentChanged{ModelID: "m1", Change: change},
		registry.VersionStateSet{
			ModelID: "m1", Withdrawn: []digest.Digest{manifest.Digest},
			Change: registry.StateChange{ID: "s1", Version: tag, State: registry.Revoked, Previous: registry.Deprecated, Reason: "it hears voices", By: "grace", At: someTime},
		},
		registry.EnvironmentFrozen{ModelID: "m1", Freeze: registry.Freeze{ID: "f1", Environment: staging, Frozen: true, Reason: "the holidays", By: "grace", At: someTime}},
		registry.ApprovalGiven{ModelID: "m1", Approval: registry.Approval{Environment: staging, Version: tag, By: "grace", At: someTime, Reason: "looked at it"}},
		registry.EdgesAdded{ModelID: "m1", Edges: []registry.LineageEdge{edge}},
		registry.EventAnnounced{Event: event},
		registry.DeliveryTried{Attempt: registry.Attempt{
			Sink: "notify", EventID: event.ID, Number: 2, Outcome: registry.Failed, At: someTime, Duration: 1500 * time.Millisecond, StatusCode: 503, Detail: "busy", NextAt: someTime.Add(time.Minute),
		}},
		registry.TokenCreated{Token: registry.Token{ID: "t1", Owner: "ada", Role: "admin", Hash: strings.Repeat("ef", 32), SSHKey: "ssh-ed25519 AAAA", CreatedAt: someTime}},
		registry.TokenRevoked{TokenID: "t1"},
		registry.BlobsUnlinked{ModelID: "m1", Digests: []digest.Digest{digest.FromString("weights")}},
		registry.LockCreated{ModelID: "m1", Lock: registry.Lock{ID: "l1", Path: "onnx/model.onnx", Owner: "ada", LockedAt: someTime}},
		registry.LockRemoved{ModelID: "m1", LockID: "l1", Path: "onnx/model.onnx", Owner: "ada", Forced: true},
	}
}

func group(records ...registry.Record) registry.Group {
	return registry.Group{At: someTime, Actor: "ada", Request: "r1", Records: records}
}

func encode(t testing.TB, g registry.Group) []byte {
	t.Helper()
	line, err := registry.EncodeGroup(g)
	if err != nil {
		t.Fatalf("EncodeGroup(%+v): %v", g, err)
	}
	return line
}

// typeOf is the name that a record is written with.
func typeOf(t testing.TB, r registry.Record) string {
	t.Helper()
	encoded, err := registry.EncodeRecord(r)
	if err != nil {
		t.Fatalf("EncodeRecord(%+v): %v", r, err)
	}
	return encoded.Type
}

// sourceTypes reads from the source which Go types are records, and by what name.
func sourceTypes(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv == nil || f.Name.Name != "recordType" {
				continue
			}
			literal := f.Body.List[0].(*ast.ReturnStmt).Results[0].(*ast.BasicLit)
			text, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			found[f.Recv.List[0].Type.(*ast.Ident).Name] = text
		}
	}
	if len(found) < 10 {
		t.Fatalf("the source has %d types of records: the search for them is broken", len(found))
	}
	return found
}

func TestEveryRecordTypeIsRegistered(t *testing.T) {
	registered := registry.RecordTypes()
	if !slices.IsSorted(registered) {
		t.Errorf("RecordTypes() = %v, want them sorted", registered)
	}
	sampled := map[string]string{}
	for _, r := range samples() {
		sampled[reflect.TypeOf(r).Name()] = typeOf(t, r)
	}
	for goType, name := range sourceTypes(t) {
		if !slices.Contains(registered, name) {
			t.Errorf("%s (%q) is a record and recordDecoders does not list it: what is written cannot be read", goType, name)
		}
		if sampled[goType] != name {
			t.Errorf("%s (%q) has no sample in this test: add one", goType, name)
		}
	}
	if len(sourceTypes(t)) != len(registered) {
		t.Errorf("RecordTypes() lists %d types and the source has %d: two share a name", len(registered), len(sourceTypes(t)))
	}
}

// empty finds the fields of a value that are empty, so that nothing would pin their names.
func empty(path string, v reflect.Value) []string {
	if z, ok := v.Interface().(interface{ IsZero() bool }); ok {
		if z.IsZero() {
			return []string{path}
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		var found []string
		for i := range v.NumField() {
			found = append(found, empty(path+"."+v.Type().Field(i).Name, v.Field(i))...)
		}
		return found
	case reflect.Pointer:
		if !v.IsNil() {
			return empty(path, v.Elem())
		}
	case reflect.Slice:
		if v.Len() > 0 {
			return empty(path+"[0]", v.Index(0))
		}
	case reflect.Map:
		if v.Len() > 0 {
			key := v.MapKeys()[0]
			if v.Type().Elem().Kind() == reflect.Interface {
				return nil
			}
			return empty(fmt.Sprintf("%s[%v]", path, key), v.MapIndex(key))
		}
	default:
		if !v.IsZero() {
			return nil
		}
	}
	return []string{path}
}

func TestRecordSamplesAreFull(t *testing.T) {
	for _, r := range samples() {
		for _, path := range empty(reflect.TypeOf(r).Name(), reflect.ValueOf(r)) {
			t.Errorf("the sample has nothing in %s: give it a value, so that the golden file pins the field", path)
		}
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	d := registry.NewDecoder()
	groups := []registry.Group{group(), group(samples()...), {At: someTime, Records: []registry.Record{}}}
	for _, r := range samples() {
		groups = append(groups, group(r), group(reflect.Zero(reflect.TypeOf(r)).Interface().(registry.Record)))
	}
	for _, g := range groups {
		line := encode(t, g)
		if bytes.ContainsAny(line, "\n\r") {
			t.Errorf("EncodeGroup gives more than one line: %s", line)
		}
		back, err := d.Decode(line)
		if err != nil {
			t.Errorf("Decode(%s): %v", line, err)
			continue
		}
		if again := encode(t, back); !bytes.Equal(again, line) {
			t.Errorf("a group changes when it is read and written:\n%s\n%s", line, again)
		}
		if diff := cmp.Diff(g, back, sameGroups...); diff != "" {
			t.Errorf("Decode of what EncodeGroup wrote (-want +got):\n%s", diff)
		}
	}
}

// sameGroups compares groups by what they say: a list that is empty and one that is absent are
// the same, and so are two spellings of one JSON value.
var sameGroups = []cmp.Option{
	cmpopts.EquateEmpty(),
	cmp.FilterValues(func(x, y json.RawMessage) bool { return len(x) > 0 || len(y) > 0 }, cmp.Transformer("JSON", func(raw json.RawMessage) string {
		var compact, escaped bytes.Buffer
		if err := json.Compact(&compact, raw); err != nil {
			return string(raw)
		}
		// EncodeGroup escapes what HTML would read, as encoding/json does.
		json.HTMLEscape(&escaped, compact.Bytes())
		return escaped.String()
	})),
	cmp.Comparer(func(a, b registry.ModelName) bool { return a == b }),
	cmp.Comparer(func(a, b registry.Tag) bool { return a == b }),
	cmp.Comparer(func(a, b registry.EnvironmentName) bool { return a == b }),
}

// The file holds the encoding of each type, one a line. A journal on somebody's disk is written so:
// a line may be added, none may change.
func TestRecordsGolden(t *testing.T) {
	var got bytes.Buffer
	for _, r := range samples() {
		got.Write(encode(t, group(r)))
		got.WriteByte('\n')
	}
	path := filepath.Join("testdata", "records.golden")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); diff != "" {
		t.Fatalf("records are written in another way than the journals of earlier servers hold them (-want +got):\n%s", diff)
	}
	d := registry.NewDecoder()
	for i, line := range bytes.Split(bytes.TrimSpace(want), []byte("\n")) {
		g, err := d.Decode(line)
		if err != nil {
			t.Errorf("line %d of %s: %v", i+1, path, err)
			continue
		}
		if diff := cmp.Diff(group(samples()[i]), g, sameGroups...); diff != "" {
			t.Errorf("line %d of %s reads as another record (-want +got):\n%s", i+1, path, diff)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	tests := []struct{ line, want string }{
		{`{"at":"2026-03-04T05:06:07Z","records":[{"type":"version_teleported","data":{}}]}`, `of type "version_teleported", which this version of Herdbook does not know`},
		{`{"records":[{"type":"model_deleted","data":{"model_id":"m1"}},{"type":"","data":{}}]}`, `of type ""`},
		{`{"records":[{"type":"Model_Deleted","data":{}}]}`, `of type "Model_Deleted"`},
		{`{"records":[{"type":"model_deleted","data":{"model_id":7}}]}`, "decode record model_deleted: "},
		{`{"records":[{"type":"model_deleted"}]}`, "decode record model_deleted: "},
		{`{"records":[{"type":"image_built","data":{"tag":"1.0"}}]}`, "decode record image_built: "},
		{`{"records":[{"type":"model_created","data":{"model":{"name":"NO"}}}]}`, "decode record model_created: "},
		{`{"at":"yesterday","records":[]}`, "decode journal group: "},
		{`{"records":[]} {}`, "decode journal group: "},
		{`{"records":[`, "decode journal group: "},
		{``, "decode journal group: "},
		{`[]`, "decode journal group: "},
	}
	d := registry.NewDecoder()
	for _, tt := range tests {
		g, err := d.Decode([]byte(tt.line))
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(g.Records) != 0 {
			t.Errorf("Decode(%s) = %+v, %v, want nothing and an error with %q", tt.line, g, err, tt.want)
		}
	}
	if _, err := d.DecodeRecord(registry.EncodedRecord{Type: "x", Data: json.RawMessage(`{}`)}); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("DecodeRecord of type x: %v, want an error that names it", err)
	}
}

func TestEncodeErrors(t *testing.T) {
	bad := registry.EventAnnounced{Event: registry.Event{Data: json.RawMessage(`{`)}}
	if line, err := registry.EncodeGroup(group(registry.ModelDeleted{ModelID: "m1"}, bad)); err == nil || !strings.Contains(err.Error(), "event_announced") || line != nil {
		t.Errorf("EncodeGroup of a record that JSON cannot hold = %s, %v, want an error that names its type", line, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range samples() {
		f.Add(encode(f, group(r)))
	}
	for _, seed := range []string{
		`{}`, `null`, `{"at":"0001-01-01T00:00:00Z","records":null}`, `{"records":[{"type":"event_announced","data":{"event":{"data": {"a" : "<"}}}}]}`,
		`{"at":"2026-01-01T00:00:00+23:59","records":[{"type":"ref_moved","data":null}]}`, `{"RECORDS":[{"TYPE":"push_started","DATA":{"Options":[]}}]}`,
		`{"records":[{"type":"gate_moved","data":{"verdict":{"gates":[{"values":{"n":9007199254740993,"x":1e300,"l":[null,{}]}}]}}}]}`,
		"{\"actor\":\"\xff\",\"records\":[]}",
	} {
		f.Add([]byte(seed))
	}
	d := registry.NewDecoder()
	f.Fuzz(func(t *testing.T, line []byte) {
		g, err := d.Decode(line)
		if err != nil {
			return
		}
		written := encode(t, g)
		back, err := d.Decode(written)
		if err != nil {
			t.Fatalf("Decode(%s), which was read from %q: %v", written, line, err)
		}
		if diff := cmp.Diff(g, back, sameGroups...); diff != "" {
			t.Errorf("%q reads as another group when it is written again:\n%s", line, diff)
		}
		if again := encode(t, back); !bytes.Equal(again, written) {
			t.Errorf("%q is written in two ways:\n%s\n%s", line, written, again)
		}
	})
}

func BenchmarkEncodeGroup(b *testing.B) {
	g := group(samples()...)
	b.SetBytes(int64(len(encode(b, g))))
	for b.Loop() {
		if _, err := registry.EncodeGroup(g); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	line := encode(b, group(samples()...))
	d := registry.NewDecoder()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := d.Decode(line); err != nil {
			b.Fatal(err)
		}
	}
}
