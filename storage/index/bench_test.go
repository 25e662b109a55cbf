package index_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/storage/index"
)

func BenchmarkApply(b *testing.B) {
	for _, size := range []int{1, 1000} {
		b.Run(fmt.Sprintf("groups=%d", size), func(b *testing.B) {
			k := newBook(b)
			m := k.model("acme/fraud", registry.Public)
			n := 0
			for b.Loop() {
				batch := make([]index.Entry, size)
				for i := range batch {
					n++
					k.seq++
					v := version(m, fmt.Sprintf("v1.%d.0", n), used("dataset:calls"))
					batch[i] = index.Entry{Seq: k.seq, Group: registry.Group{At: begin, Records: []registry.Record{v, event(m, v.Version.Tag.String(), "notify")}}}
				}
				if err := k.Apply(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "groups/s")
		})
	}
}

// versions is an index with one model of n versions that were all made with one dataset.
func versions(tb testing.TB, n int) (*book, registry.Model) {
	tb.Helper()
	k := newBook(tb)
	m := k.model("acme/fraud", registry.Public)
	var records []registry.Record
	for i := range n {
		records = append(records, version(m, fmt.Sprintf("v1.%d.0", i), used("dataset:calls")))
	}
	k.add(records...)
	return k, m
}

func BenchmarkCheck(b *testing.B) {
	m := registry.Model{ID: "m1"}
	g := registry.Group{Records: []registry.Record{version(m, "v1.0.0", used("dataset:calls")), event(m, "1", "notify")}}
	for b.Loop() {
		if err := index.Check(g); err != nil {
			b.Fatal(err)
		}
	}
}

// What each request looks up.
func BenchmarkModelByName(b *testing.B) {
	k, m := versions(b, 10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.ModelByName(b.Context(), m.Name); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVersion(b *testing.B) {
	k, m := versions(b, 1000)
	tag := registry.MustTag("v1.500.0")
	for b.Loop() {
		if _, err := k.Version(b.Context(), m.ID, tag); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVersions(b *testing.B) {
	k, m := versions(b, 1000)
	for b.Loop() {
		if rows, err := k.Versions(b.Context(), m.ID); err != nil || len(rows) != 1000 {
			b.Fatalf("Versions = %d rows, %v", len(rows), err)
		}
	}
}

func BenchmarkModels(b *testing.B) {
	k := newBook(b)
	for i := range 1000 {
		k.model(fmt.Sprintf("acme/m%d", i), registry.Public)
	}
	for b.Loop() {
		if models, _, err := k.Models(b.Context(), reader, registry.Page{Limit: 50}); err != nil || len(models) != 50 {
			b.Fatalf("Models = %d, %v", len(models), err)
		}
	}
}

func BenchmarkLineage(b *testing.B) {
	k, _ := versions(b, registry.MaxLineageNodes-1)
	for b.Loop() {
		g, err := k.Lineage(b.Context(), reader, registry.Walk{Start: "dataset:calls", Direction: registry.Descendants})
		if err != nil || len(g.Nodes) != registry.MaxLineageNodes {
			b.Fatalf("Lineage = %d nodes, %v", len(g.Nodes), err)
		}
	}
}

// A sink that is down has 10,000 events waiting, nearly all of one model.
func BenchmarkWaiting(b *testing.B) {
	k := newBook(b)
	busy := k.model("acme/busy", registry.Public)
	var records []registry.Record
	for i := range 10_000 {
		records = append(records, event(busy, fmt.Sprint(i), "notify"))
	}
	for i := range 10 {
		m := busy
		m.ID = fmt.Sprintf("m%d", i)
		records = append(records, event(m, "1", "notify"))
	}
	k.add(records...)
	for b.Loop() {
		if _, err := k.Waiting(b.Context(), "notify", 20_000); err != nil {
			b.Fatal(err)
		}
	}
}

// What the page of a version asks for, among 10,000 events of other models.
func BenchmarkDeliveries(b *testing.B) {
	k := newBook(b)
	m, busy := k.model("acme/fraud", registry.Public), k.model("acme/busy", registry.Public)
	about := event(m, "1", "notify")
	about.Event.Version = registry.MustTag("v1.0.0")
	records := []registry.Record{about}
	for i := range 10_000 {
		records = append(records, event(busy, fmt.Sprint(i), "notify"))
	}
	k.add(records...)
	for b.Loop() {
		if d, _, err := k.Deliveries(b.Context(), admin, registry.DeliveryFilter{ModelID: m.ID, Version: about.Event.Version}, registry.Page{}); err != nil || len(d) != 1 {
			b.Fatalf("Deliveries = %v, %v, want one", d, err)
		}
	}
}

// The same among 10,000 events of the model's own other versions.
func BenchmarkDeliveriesOfBusyModel(b *testing.B) {
	k := newBook(b)
	m := k.model("acme/fraud", registry.Public)
	var records []registry.Record
	for i := range 10_000 {
		e := event(m, fmt.Sprint(i), "notify")
		e.Event.Version = registry.MustTag(fmt.Sprintf("v1.%d.0", i))
		records = append(records, e)
	}
	k.add(records...)
	for b.Loop() {
		if d, _, err := k.Deliveries(b.Context(), admin, registry.DeliveryFilter{ModelID: m.ID, Version: registry.MustTag("v1.0.0")}, registry.Page{}); err != nil || len(d) != 1 {
			b.Fatalf("Deliveries = %v, %v, want one", d, err)
		}
	}
}

func BenchmarkReopen(b *testing.B) {
	k, _ := versions(b, 1000)
	for b.Loop() {
		if err := k.Close(); err != nil {
			b.Fatal(err)
		}
		k.open()
	}
}

// shelves is an index of models of 50 versions each, all evaluated, of which every tenth model is in production and one is all that a stranger may read.
func shelves(b *testing.B, versions int) *book {
	b.Helper()
	k := newBook(b)
	var batch []index.Entry
	add := func(records ...registry.Record) {
		k.seq++
		batch = append(batch, index.Entry{Seq: k.seq, Group: registry.Group{At: begin, Records: records}})
		if len(batch) == 2000 {
			if err := k.Apply(batch); err != nil {
				b.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	for n := range versions / 50 {
		name := fmt.Sprintf("team-%d/model-%d", n%40, n)
		m := registry.Model{ID: fmt.Sprintf("%032d", n), Name: registry.MustModelName(name), Visibility: registry.Internal, Description: "finds " + pick("fraud", "voices", "faults")}
		if n == versions/100 {
			m.Visibility = registry.Public
		}
		add(registry.ModelCreated{Model: m})
		card := registry.CardFacts{License: pick("mit", "apache-2.0", "cc-by-4.0"), Task: pick("text-classification", "image-classification"), Library: "onnx", Tags: []string{pick("calls", "images"), "prod"}, Languages: []string{"en"}}
		for i := range 50 {
			v := version(m, fmt.Sprintf("v1.%d.0", i))
			v.Version.Commit = commitOf(m.ID + v.Version.Tag.String())
			v.Version.PublishedAt, v.Version.PublishedBy, v.Version.Card = begin.Add(time.Duration(rnd.IntN(1e9))*time.Millisecond), "ada", card
			e := registry.Evaluation{ID: fmt.Sprintf("e%d", i), Commit: v.Version.Commit, Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{"f1": rnd.Float64(), "recall": rnd.Float64(), "precision": rnd.Float64(), "accuracy": rnd.Float64()}}
			add(v, registry.EvaluationRecorded{ModelID: m.ID, Evaluation: e})
			if n%10 == 0 && i == 49 {
				add(change(m, v, registry.MustEnvironmentName("production"), "c"))
			}
		}
	}
	if err := k.Apply(batch); err != nil {
		b.Fatal(err)
	}
	return k
}

// shelfVersions is the size of the index that is searched.
const shelfVersions = 100_000

func BenchmarkSearch(b *testing.B) {
	k := shelves(b, shelfVersions)
	everybody := access.Identity{Name: "ada", Role: access.Reader}
	page := func(id access.Identity, text, cursor string, limit int) (string, error) {
		hits, next, err := k.Search(b.Context(), id, query(b, text), registry.Page{Cursor: cursor, Limit: limit})
		if err == nil && len(hits) == 0 {
			err = fmt.Errorf("nothing is found by %q", text)
		}
		return next, err
	}
	deep := ""
	for range 200 {
		next, err := page(everybody, "sort:f1", deep, 200)
		if err != nil {
			b.Fatal(err)
		}
		deep = next
	}
	tests := []struct {
		name         string
		id           access.Identity
		text, cursor string
		limit        int
	}{
		{"by metric", everybody, "sort:f1", "", 50},
		{"by metric, 200", everybody, "sort:f1", "", 200},
		{"by metric, deep", everybody, "sort:f1", deep, 50},
		{"by metric, lowest first", everybody, "sort:-f1", "", 50},
		{"by metric, one model", everybody, "model:team-7/model-7 sort:f1", "", 50},
		{"by metric, latest of models", everybody, "kind:model sort:f1", "", 50},
		{"newest", everybody, "kind:version", "", 50},
		{"three filters", everybody, "license:mit task:text-classification f1>0.5", "", 50},
		{"three filters by metric", everybody, "license:mit state:published recall>0.5 sort:f1", "", 50},
		{"rare by metric", everybody, "f1>0.99 recall>0.9", "", 50},
		{"environment", everybody, "env:production sort:f1", "", 50},
		{"words", everybody, "fraud", "", 50},
		{"stranger", reader, "sort:f1", "", 50},
		{"stranger by words", reader, "finds kind:version", "", 50},
	}
	for _, tt := range tests {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := page(tt.id, tt.text, tt.cursor, tt.limit); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("nothing found", func(b *testing.B) { // as much as one page may look at
		for b.Loop() {
			if hits, next, err := k.Search(b.Context(), everybody, query(b, "by:nobody"), registry.Page{}); err != nil || len(hits) > 0 || next == "" {
				b.Fatalf("Search = %d hits, next %q, %v, want none and more", len(hits), next, err)
			}
		}
	})
}

// Evaluations of five metrics by 64 clients for 64 models, as they come together in a batch.
func BenchmarkApplyEvaluations(b *testing.B) {
	k := newBook(b)
	models := make([]registry.Model, 64)
	for i := range models {
		models[i] = k.model(fmt.Sprintf("acme/m%d", i), registry.Public)
		k.publish(models[i], "v1.0.0")
	}
	n := 0
	for b.Loop() {
		batch := make([]index.Entry, len(models))
		for i := range batch {
			n++
			k.seq++
			e := evaluation(models[i], "v1.0.0", fmt.Sprintf("e%d", n))
			e.Evaluation.Dataset.Name = "calls"
			for m := range 5 {
				e.Evaluation.Metrics[fmt.Sprintf("m%d", m)] = float64(n%997) / 997
			}
			batch[i] = index.Entry{Seq: k.seq, Group: registry.Group{At: begin, Records: []registry.Record{e}}}
		}
		if err := k.Apply(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "evaluations/s")
}
