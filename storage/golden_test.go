package storage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/search"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/index"
	"github.com/herdbook/herdbook/storage/journal"
)

var update = flag.Bool("update", false, "write the golden data directory and its answers anew; never after a release of its format")

const (
	goldenDir     = "testdata/golden-v1"
	goldenAnswers = "testdata/golden-v1.json"
)

// A data directory of this format is on somebody's disk: every later version has to open it and
// answer the same.
func TestGoldenDirectory(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(goldenDir)); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir)
	defer closeData(t, d)
	got := answers(t, d.Index)
	if *update {
		writeFile(t, goldenAnswers, lines(t, got))
	}
	var want map[string]json.RawMessage
	if err := json.Unmarshal(readFile(t, goldenAnswers), &want); err != nil {
		t.Fatal(err)
	}
	if len(want) < 200 {
		t.Errorf("%s has %d answers, want some hundreds", goldenAnswers, len(want))
	}
	for call, answer := range want {
		if diff := cmp.Diff(indented(t, answer), indented(t, got[call])); diff != "" {
			t.Errorf("%s of a data directory of format 1 (-want +got):\n%s", call, diff)
		}
	}
	blobs, err := filepath.Glob(filepath.Join(goldenDir, "blobs", "sha256", "*", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("blobs in %s = %v, %v", goldenDir, blobs, err)
	}
	for _, path := range blobs {
		want := digest.Digest("sha256:" + filepath.Base(path))
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Blobs.Stat(t.Context(), want); err != nil || got != info.Size() {
			t.Errorf("size of blob %s = %d, %v, want %d", want, got, err, info.Size())
		}
	}
}

// lines is a JSON object with one answer a line.
func lines(t *testing.T, answers map[string]any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, call := range slices.Sorted(maps.Keys(answers)) {
		b.WriteString(",\n")
		for i, v := range []any{call, answers[call]} {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(text)
			b.WriteString([]string{": ", ""}[i])
		}
	}
	return append(append([]byte("{"), b.Bytes()[1:]...), "\n}\n"...)
}

func indented(t *testing.T, v any) string {
	t.Helper()
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The directory in testdata holds the begin of the history of these tests, byte for byte: what the
// server writes today is what it wrote then.
func TestGoldenJournalIsWrittenTheSame(t *testing.T) {
	dir := t.TempDir()
	groups, _ := history()
	appendRaw(t, dir, groups)
	names, err := filepath.Glob(filepath.Join(goldenDir, "journal", "*.log"))
	if err != nil || len(names) != 1 {
		t.Fatalf("segments in %s = %v, %v, want one", goldenDir, names, err)
	}
	want, got := string(readFile(t, names[0])), string(readFile(t, lastSegment(t, dir)))
	if begin := got[:min(len(want), len(got))]; begin != want {
		t.Errorf("journal of format 1 (-want +got):\n%s", cmp.Diff(strings.Split(want, "\n"), strings.Split(begin, "\n")))
	}
}

func writeGolden(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(goldenDir); err != nil {
		t.Fatal(err)
	}
	groups, texts := history()
	appendRaw(t, goldenDir, groups)
	store, err := blob.Open(blob.Config{Dir: filepath.Join(goldenDir, "blobs"), UploadsDir: filepath.Join(t.TempDir(), "uploads")})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		w, err := store.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(digest.FromString(text), int64(len(text))); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// question is a call of a query.
type question struct {
	method string
	args   []any
}

// answers asks every query of the index what the history has answers to, and some that it has
// none to. The keys are the calls.
func answers(t *testing.T, db *index.DB) map[string]any {
	t.Helper()
	asked := map[string]bool{}
	all := map[string]any{}
	for _, q := range questions() {
		asked[q.method] = true
		name, answer := ask(t, db, q)
		if _, twice := all[name]; twice {
			t.Errorf("%s is asked twice", name)
		}
		all[name] = answer
	}
	kind := reflect.TypeOf(db)
	for i := range kind.NumMethod() {
		name := kind.Method(i).Name
		if changes := []string{"Apply", "Bulk", "Close", "Discard", "Dump", "KeepSignatures", "Mirrored", "Snapshot"}; !asked[name] && !slices.Contains(changes, name) {
			t.Errorf("no question of this test asks DB.%s: add one", name)
		}
	}
	return all
}

func ask(t *testing.T, db *index.DB, q question) (name string, answer any) {
	t.Helper()
	method := reflect.ValueOf(db).MethodByName(q.method)
	if !method.IsValid() {
		t.Fatalf("the index has no method %s", q.method)
	}
	in := []reflect.Value{reflect.ValueOf(context.Background())}
	var texts []string
	for _, a := range q.args {
		in = append(in, reflect.ValueOf(a))
		switch a := a.(type) {
		case access.Identity:
			texts = append(texts, fmt.Sprintf("role %d", a.Role))
		default:
			texts = append(texts, fmt.Sprintf("%+v", a))
		}
	}
	out := method.Call(in)
	values := []any{}
	for _, v := range out[:len(out)-1] {
		values = append(values, v.Interface())
	}
	if err, _ := out[len(out)-1].Interface().(error); err != nil {
		values = []any{"error: " + err.Error()}
	}
	return q.method + "(" + strings.Join(texts, ", ") + ")", values
}

func questions() (list []question) {
	add := func(method string, args ...any) { list = append(list, question{method, args}) }
	groups, _ := history()
	page := registry.Page{Limit: 2}
	roles := []access.Identity{access.Anonymous(false), access.Anonymous(true), access.System}
	seen := map[string]bool{}
	once := func(method string, args ...any) {
		if k := fmt.Sprint(method, args); !seen[k] {
			seen[k] = true
			add(method, args...)
		}
	}
	for _, role := range roles {
		add("Models", role, registry.Page{})
		add("Models", role, registry.Page{Limit: 1})
		add("Events", role, uint64(0), 0)
		add("Events", role, uint64(2), 1)
		add("Deliveries", role, registry.DeliveryFilter{}, registry.Page{Limit: 4})
		add("Deliveries", role, registry.DeliveryFilter{ModelID: fraud, Hook: sinkA}, registry.Page{Limit: 2})
		add("Deliveries", role, registry.DeliveryFilter{ModelID: fraud, Version: registry.MustTag("v1.0.0")}, registry.Page{})
		for _, text := range []string{"", "kind:version", "f1>0.5 sort:f1", "env:production", "license:mit kind:version sort:name"} {
			q, err := search.Parse(text)
			if err != nil {
				panic(err)
			}
			add("Search", role, q, registry.Page{Limit: 2})
		}
		for _, node := range []string{"dataset:calls-2026", "model:acme/fraud", "model:acme/fraud@v1.0.0", "run:jenkins/7", "version:m-fraud:v1.1.0-rc.1", "version:m-secret:v2.0.0", "version:m-gone:v0.1.0"} {
			add("Lineage", role, registry.Walk{Start: node, Direction: registry.Both})
			add("Impact", role, registry.Concern{Node: node}, page)
			add("Path", role, node, "dataset:calls-2026")
			add("LineageDiff", role, node, "version:m-fraud:v1.0.0", registry.Page{})
			add("Way", role, node, "dataset:calls-2026")
			add("Reached", role, node, []string{"dataset:calls-2026", "run:jenkins/7"})
		}
		add("Impact", role, registry.Concern{Model: "acme/fraud"}, registry.Page{})
	}
	for _, sink := range []string{sinkA, sinkB, "nobody"} {
		add("Waiting", sink, 4)
	}
	add("ModelByID", "m-never")
	add("Tokens", registry.Page{Limit: 1})
	for _, method := range []string{"Applied", "JournalID", "Counts", "AllModels", "BuildingImages", "HasTokens", "WithIntents", "Signatures", "Usages", "Repositories"} {
		add(method)
	}
	add("Unmirrored", 5)
	add("Unattested", 5)
	add("UnmirroredAfter", registry.Mark{ModelID: "m-fraud"}, 2)
	for _, name := range []string{"acme/fraud", "acme/secret", "acme/gone", "acme/never"} {
		n := registry.MustModelName(name)
		add("ModelByName", n)
		add("Deleted", n)
		add("UsedTags", n)
	}
	for _, id := range []string{fraud, secret, gone, again} {
		for _, method := range []string{"ModelByID", "Refs", "Intents", "Versions", "Policy", "Environments", "OwnedBlobs", "Usage", "ExclusiveBytes", "ManifestsOf", "AttachmentsOf"} {
			add(method, id)
		}
		for _, env := range []registry.EnvironmentName{staging, production} {
			add("Environment", id, env)
			add("History", id, env, page)
			for minute := range 3 {
				add("EnvironmentAt", id, env, begin.Add(time.Duration(10+10*minute)*time.Minute))
			}
			for _, tag := range []string{"v1.0.0", "v1.1.0-rc.1", "v2.0.0"} {
				add("AnnouncedGate", id, registry.MustTag(tag), env)
				add("Approvals", id, registry.MustTag(tag), env)
			}
		}
		for _, repository := range []string{id, registry.ImageRepository(id)} {
			add("Tags", repository, "", 100)
			add("Tags", repository, "staging", 1)
			for _, tag := range []string{"v1.0.0", "staging", "production"} {
				add("TagDigest", repository, tag)
			}
		}
		add("Locks", id)
		add("LocksPage", id, registry.Page{Limit: 1})
		add("LockCount", id)
		add("Lock", id, "l-1")
		add("Lock", id, "l-2")
		add("LockOf", id, "weights.bin")
		add("LockOf", id, "onnx/model.onnx")
		add("EvaluationByID", id, "e-1")
		add("EvaluationByID", id, "c-1")
		add("StateChangeByID", id, "s-2")
		add("StateChangeByID", id, "e-1")
		add("ChangeByID", id, "c-4")
		add("ChangeByID", id, "e-3")
	}
	for _, g := range groups {
		for _, r := range g.Records {
			switch r := r.(type) {
			case registry.RepositoryCreated:
				add("RepositoryByName", r.Repository.Name)
				add("Tags", r.Repository.ID, "", 100)
				add("OwnedBlobs", r.Repository.ID)
			case registry.ManifestPushed:
				once("Manifest", r.Repository, r.Manifest.Digest)
				if r.Alias != "" {
					once("Canonical", r.Repository, r.Alias)
				}
			case registry.VersionPublished:
				v := r.Version
				for _, id := range []string{r.ModelID, again} {
					once("Version", id, v.Tag)
					once("StateHistory", id, v.Tag)
					once("Shared", access.System, id, v.Tag, registry.Page{})
					once("Withdrawn", id, v.Artifact.Digest)
					once("Withdrawn", id, v.Files[1].Digest)
					once("VersionsAt", id, v.Commit)
					once("Evaluations", id, v.Commit)
					once("EvaluationsPage", id, v.Commit, registry.Page{Limit: 1})
					once("Catalog", id, v.Commit)
					once("CountEvaluations", id, v.Commit)
					once("Evaluation", id, v.Commit, uint64(1))
					once("EvaluationLines", id, v.Commit, uint64(1), 1)
					once("NewestEvaluations", id, v.Commit, 1)
					once("Headline", id, v.Commit)
					once("Owners", v.Files[1].Digest.String())
					once("BlobSize", id, v.Files[1].Digest.String())
					once("Manifest", id, v.Artifact.Digest)
					once("Referrers", id, v.Artifact.Digest)
					once("ReferrersPage", id, v.Artifact.Digest, "", digest.Digest(""), 1)
				}
			case registry.ImageBuilt:
				for _, l := range r.Layers {
					once("Layer", r.ModelID, l.Digest)
					once("Layer", secret, l.Digest)
				}
			case registry.TokenCreated:
				once("Token", r.Token.Hash)
				once("TokenByID", r.Token.ID)
			case registry.EventAnnounced:
				if len(r.Event.Sinks) > 1 {
					once("Delivery", sinkB, r.Event.ID)
				}
				once("Delivery", "nobody", r.Event.ID[:8])
			}
		}
	}
	return list
}

// The index need not be applied group by group: however a journal is cut into batches, and however
// often an end of it is applied again, the rows are the same. So they are when the batches are merged at the end.
func TestReplayInBatches(t *testing.T) {
	groups, _ := history()
	var values, texts []index.Entry
	for i, g := range groups {
		line, err := registry.EncodeGroup(g)
		if err != nil {
			t.Fatal(err)
		}
		read, encoded, err := registry.NewDecoder().DecodeGroup(line)
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, index.Entry{Seq: uint64(i + 1), Group: g})
		texts = append(texts, index.Entry{Seq: uint64(i + 1), Group: read, Encoded: encoded})
	}
	replay := func(entries []index.Entry, size, overlap int, bulk bool) string {
		db, err := index.Open(filepath.Join(t.TempDir(), "index.db"), discard)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}()
		all := func(apply func([]index.Entry) error) error {
			for at := 0; at < len(entries); at += size {
				if err := apply(entries[max(0, at-overlap):min(at+size, len(entries))]); err != nil {
					return fmt.Errorf("groups %d to %d: %w", at+1, at+size, err)
				}
			}
			return nil
		}
		if bulk {
			err = db.Bulk(all)
		} else {
			err = all(db.Apply)
		}
		if err != nil {
			t.Fatalf("replay in batches of %d: %v", size, err)
		}
		return dump(t, db)
	}
	want := replay(values, 1, 0, false)
	for _, bulk := range []bool{false, true} {
		for _, size := range []int{1, 2, 7, len(texts) - 1, len(texts)} {
			for _, overlap := range []int{0, 1, 5} {
				if diff := cmp.Diff(want, replay(texts, size, overlap, bulk)); diff != "" {
					t.Errorf("rows after batches of %d with %d again, merged at the end: %t (-one by one +batches):\n%s", size, overlap, bulk, diff)
				}
			}
		}
	}
}

// What the journal holds as text gives the same rows as the values that were committed: a rebuild
// reads only the text.
func TestReplayOfTextGivesTheSame(t *testing.T) {
	groups, _ := history()
	db, err := index.Open(filepath.Join(t.TempDir(), "index.db"), discard)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i, g := range groups {
		if err := index.Check(g); err != nil {
			t.Errorf("Check of group %d = %v, want nil", i+1, err)
		}
		if err := db.Apply([]index.Entry{{Seq: uint64(i + 1), Group: g}}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(dump(t, db), dumpDir(t, seed(t))); diff != "" {
		t.Errorf("rows from values and from the journal (-values +journal):\n%s", diff)
	}
}

// More groups than are applied in one transaction when a server starts.
func TestReplayOfALongJournal(t *testing.T) {
	const many = 2500
	dir := t.TempDir()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	var wait []chan error
	for i := range many {
		line, err := registry.EncodeGroup(registry.Group{At: begin, Records: []registry.Record{registry.RefMoved{
			ModelID: fraud, Generation: 1, RefUpdate: registry.RefUpdate{Ref: fmt.Sprintf("refs/heads/b%d", i), New: commitOf("one")},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		wait = append(wait, done)
		go func() {
			_, err := j.Append(context.Background(), bytes.Clone(line))
			done <- err
		}()
	}
	for _, done := range wait {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir)
	defer closeData(t, d)
	refs, err := d.Index.Refs(t.Context(), fraud)
	if err != nil || len(refs) != many {
		t.Errorf("Refs after the replay of %d groups = %d, %v, want as many", many, len(refs), err)
	}
	if applied, err := d.Index.Applied(t.Context()); err != nil || applied != many {
		t.Errorf("Applied = %d, %v, want %d", applied, err, many)
	}
}
