package index_test

import (
	"fmt"
	"testing"

	"github.com/herdbook/herdbook/registry"
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
