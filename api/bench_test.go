package api_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// BenchmarkLineagePages asks for pages of 200 nodes over HTTP, in an index of HERDBOOK_BENCH_VERSIONS versions: chains of fifty that came from one of
// twenty bases, with datasets. The goal is 5 ms at the 99th percentile with a million.
func BenchmarkLineagePages(b *testing.B) {
	versions := 20_000
	if text := os.Getenv("HERDBOOK_BENCH_VERSIONS"); text != "" {
		var err error
		if versions, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	s := apitest.Start(b)
	chains := fill(b, s, versions)
	client := &http.Client{}
	for name, target := range map[string]func(i int) string{
		"ancestors": func(i int) string {
			return fmt.Sprintf("/models/team/m%d/lineage/v1.49.0?direction=ancestors", i*7919%chains)
		},
		"descendants": func(i int) string { return fmt.Sprintf("/models/base/b%d/lineage/v1.0.0?direction=descendants", i%20) },
		"both": func(i int) string {
			return fmt.Sprintf("/models/team/m%d/lineage/v1.%d.0?direction=both", i*7919%chains, i%50)
		},
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				answer, err := client.Get(s.URL + "/api/v1" + target(i))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if err != nil || answer.StatusCode != http.StatusOK || n < 1000 {
					b.Fatalf("%s = %d with %d bytes, %v", target(i), answer.StatusCode, n, err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}

// fill applies versions to the index behind the journal's back, and returns how many chains there are.
func fill(b *testing.B, s *apitest.Server, versions int) (chains int) {
	b.Helper()
	seq, err := s.Data.Index.Applied(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var entries []index.Entry
	apply := func(records ...registry.Record) {
		seq++
		entries = append(entries, index.Entry{Seq: seq, Group: registry.Group{At: at, Actor: "ada", Records: records}})
		if len(entries) == 5000 {
			if err := s.Data.Index.Apply(entries); err != nil {
				b.Fatal(err)
			}
			entries = entries[:0]
		}
	}
	publish := func(m registry.Model, tag string, edges ...registry.LineageEdge) {
		descriptor := registry.Descriptor{Digest: digest.FromString(m.ID + tag), SizeBytes: 1}
		v := registry.Version{Tag: registry.MustTag(tag), Commit: registry.ObjectID(digest.FromString(m.ID + tag).Encoded()[:40]), PublishedAt: at, Artifact: descriptor, Config: descriptor}
		for i := range edges {
			edges[i].From = registry.VersionNodeID(m.ID, v.Tag)
		}
		apply(registry.VersionPublished{ModelID: m.ID, Version: v, Manifest: registry.StoredManifest{Descriptor: descriptor}, Edges: edges})
	}
	model := func(name string) registry.Model {
		m := registry.Model{ID: digest.FromString(name).Encoded()[:32], Name: registry.MustModelName(name), Visibility: registry.Public, CreatedAt: at, UpdatedAt: at}
		apply(registry.ModelCreated{Model: m})
		return m
	}
	for i := range 20 {
		publish(model(fmt.Sprintf("base/b%d", i)), "v1.0.0")
	}
	chains = versions / 50
	for i := range chains {
		m := model(fmt.Sprintf("team/m%d", i))
		from := registry.ExternalModelNodeID(fmt.Sprintf("base/b%d", i%20), "v1.0.0")
		for v := range 50 {
			tag := fmt.Sprintf("v1.%d.0", v)
			publish(m, tag, registry.LineageEdge{To: from, Kind: registry.DerivedFrom}, registry.LineageEdge{To: registry.DatasetNodeID(fmt.Sprintf("d%d", (i+v)%2000)), Kind: registry.Used})
			from = registry.VersionNodeID(m.ID, registry.MustTag(tag))
		}
	}
	if err := s.Data.Index.Apply(entries); err != nil {
		b.Fatal(err)
	}
	return chains
}
