package index_test

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// herd makes the groups of the journal that publish versions of many models in turn, as lifecycle
// makes them and as they are read back. Of the five files of a version two are those of the version before.
type herd struct {
	tb      testing.TB
	decoder *registry.Decoder
	models  []registry.Model
	seq     uint64
	number  int // of versions
}

func newHerd(tb testing.TB, models int) *herd {
	h := &herd{tb: tb, decoder: registry.NewDecoder()}
	for i := range models {
		h.models = append(h.models, registry.Model{
			ID: digest.FromString(fmt.Sprint("model", i)).Encoded()[:32], Name: registry.MustModelName(fmt.Sprintf("acme-%d/model-%d", i%20, i)),
			Visibility: registry.Internal, DefaultBranch: "main", CreatedAt: begin, UpdatedAt: begin,
		})
	}
	return h
}

func (h *herd) entry(records ...registry.Record) index.Entry {
	h.seq++
	line, err := registry.EncodeGroup(registry.Group{At: begin.Add(time.Duration(h.seq) * time.Second), Actor: "ada", Records: records})
	if err != nil {
		h.tb.Fatal(err)
	}
	group, encoded, err := h.decoder.DecodeGroup(line)
	if err != nil {
		h.tb.Fatal(err)
	}
	return index.Entry{Seq: h.seq, Group: group, Encoded: encoded}
}

func (h *herd) created() (entries []index.Entry) {
	for _, m := range h.models {
		entries = append(entries, h.entry(registry.ModelCreated{Model: m}))
	}
	return entries
}

// published are the groups of the next n versions.
func (h *herd) published(n int) (entries []index.Entry) {
	for range n {
		m := h.models[h.number%len(h.models)]
		v := h.version(m, h.number/len(h.models))
		h.number++
		announced := registry.NewEvent(registry.EventVersionPublished, m, "ada", v.Version.PublishedAt, map[string]any{
			"commit": v.Version.Commit, "artifact": v.Version.Artifact.Digest,
		}, v.Version.Tag.String())
		announced.Version = v.Version.Tag
		entries = append(entries, h.entry(
			registry.RefMoved{ModelID: m.ID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: "refs/tags/" + v.Version.Tag.String(), New: v.Version.Commit}},
			v,
			registry.EventAnnounced{Event: announced},
		))
	}
	return entries
}

func (h *herd) version(m registry.Model, n int) registry.VersionPublished {
	tag := registry.MustTag(fmt.Sprintf("v1.%d.0", n))
	file := func(path string, of int, bytes int64, lfs bool) registry.File {
		return registry.File{Path: path, Digest: digest.FromString(fmt.Sprint(path, m.ID, of)), SizeBytes: bytes, LFS: lfs}
	}
	front, err := json.Marshal(map[string]any{
		"license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-classification", "language": []string{"en", "de"},
		"tags": []string{"fraud", "calls"}, "datasets": []string{"acme/calls-2026"}, "base_model": "acme/base",
		"model-index": []any{map[string]any{"name": m.Name.String(), "results": []any{map[string]any{"metrics": []any{map[string]any{"type": "f1", "value": 0.84}}}}}},
	})
	if err != nil {
		h.tb.Fatal(err)
	}
	v := registry.Version{
		Tag: tag, Commit: commitOf(m.ID + tag.String()), TagObject: commitOf("tag" + m.ID + tag.String()), Message: "trained on the calls of a week\n",
		PublishedAt: begin.Add(time.Duration(h.seq) * time.Second), PublishedBy: "ada", Format: 1,
		Artifact: registry.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest.FromString(fmt.Sprint("manifest", m.ID, n)), SizeBytes: 2100},
		Config:   registry.Descriptor{MediaType: "application/vnd.cncf.model.config.v1+json", Digest: digest.FromString(fmt.Sprint("config", m.ID, n)), SizeBytes: 900},
		Files: []registry.File{
			file("README.md", n, 4100, false), file("config.json", 0, 700, false), file("eval/results.json", n, 1500, false),
			file("model.safetensors", n, 1<<30, true), file("tokenizer.json", 0, 9<<20, true),
		},
		Card: registry.CardFacts{
			License: "apache-2.0", Library: "transformers", Task: "text-classification", Tags: []string{"fraud", "calls"}, Languages: []string{"en", "de"},
			Datasets: []string{"acme/calls-2026"}, BaseModels: []registry.BaseModel{{Model: "acme/base", Relation: registry.Finetune}},
			FrontMatter: front, Sections: []string{"Intended use", "Training data", "Limitations"},
		},
	}
	node := registry.VersionNodeID(m.ID, tag)
	edges := []registry.LineageEdge{{From: node, To: registry.DatasetNodeID("acme/calls-2026"), Kind: registry.Used}}
	if n == 0 {
		edges = append(edges, registry.LineageEdge{From: node, To: registry.ExternalModelNodeID("acme/base", ""), Kind: registry.DerivedFrom, Relation: registry.Finetune})
	} else {
		before := registry.VersionNodeID(m.ID, registry.MustTag(fmt.Sprintf("v1.%d.0", n-1)))
		edges = append(edges, registry.LineageEdge{From: node, To: before, Kind: registry.DerivedFrom, Relation: registry.Previous})
	}
	manifest := registry.StoredManifest{Descriptor: v.Artifact, ArtifactType: "application/vnd.cncf.model.manifest.v1+json"}
	return registry.VersionPublished{ModelID: m.ID, Version: v, Manifest: manifest, Edges: edges}
}

// BenchmarkRebuild applies the groups of 120,000 versions of 300 models to an empty index, in batches as a start of the server does.
// Only the time in Apply counts, that of the collector included. One run takes long enough: -benchtime 1x.
func BenchmarkRebuild(b *testing.B) {
	const versions = 120_000
	for _, size := range []int{1000, 2500, 5000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			var cpu, wall time.Duration
			var fileBytes, rss int64
			for b.Loop() {
				k := newBook(b)
				h := newHerd(b, 300)
				before, start := cpuTime(b), time.Now()
				stop := func() { cpu, wall = cpu+cpuTime(b)-before, wall+time.Since(start) }
				err := k.Bulk(func(apply func([]index.Entry) error) error {
					if err := apply(h.created()); err != nil {
						return err
					}
					for done := 0; done < versions; done += size {
						stop()
						batch := h.published(size)
						runtime.GC()
						before, start = cpuTime(b), time.Now()
						if err := apply(batch); err != nil {
							return err
						}
						rss = max(rss, anonymousBytes(b))
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				stop()
				info, err := os.Stat(k.path)
				if err != nil {
					b.Fatal(err)
				}
				fileBytes = info.Size()
				k.close()
			}
			n := float64(b.N * versions)
			b.ReportMetric(n/cpu.Seconds(), "versions/cpu-s")
			b.ReportMetric(cpu.Seconds()*1e6/n, "cpu-us/version")
			b.ReportMetric(wall.Seconds()*1e6/n, "wall-us/version")
			b.ReportMetric(float64(fileBytes)/versions, "file-B/version")
			b.ReportMetric(float64(rss)/(1<<20), "peak-anon-MiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime is what the process has used so far, of its own and of the kernel's time.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// anonymousBytes is how much memory the process has that is no file.
func anonymousBytes(tb testing.TB) int64 {
	tb.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}
