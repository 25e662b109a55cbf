package index_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// family is a base that two models came from, one of them through a version of its own, and a dataset of the base.
//
//	raw <- calls <- base v1 <- fraud v1 <- fraud v2
//	                base v1 <- voice v1 -> noise
func family(tb testing.TB) *book {
	tb.Helper()
	b := newBook(tb)
	fraud, voice, base := b.model("acme/fraud", registry.Public), b.model("acme/voice", registry.Public), b.model("acme/base", registry.Public)
	// The base comes last, so that the cards named it before it was there.
	b.publish(fraud, "v1.0.0", registry.LineageEdge{To: "model:acme/base@v1.0.0", Kind: registry.DerivedFrom, Relation: registry.Finetune})
	v2 := b.publish(fraud, "v2.0.0", registry.LineageEdge{To: node(fraud, "v1.0.0"), Kind: registry.DerivedFrom, Relation: registry.Previous})
	b.publish(voice, "v1.0.0", registry.LineageEdge{To: "model:acme/base@v1.0.0", Kind: registry.DerivedFrom, Relation: registry.Adapter}, used("dataset:noise"))
	b.publish(base, "v1.0.0", used("dataset:calls"))
	b.add(registry.EdgesAdded{ModelID: base.ID, Edges: []registry.LineageEdge{{From: "dataset:calls", To: "dataset:raw", Kind: registry.DerivedFrom}}})
	b.add(change(fraud, v2, staging, "c1"))
	return b
}

const (
	fraud1, fraud2 = "version:id-acme-fraud:v1.0.0", "version:id-acme-fraud:v2.0.0"
	voice1, base1  = "version:id-acme-voice:v1.0.0", "version:id-acme-base:v1.0.0"
)

func TestPath(t *testing.T) {
	b := family(t)
	tests := []struct {
		from, to string
		want     string // nodes, and the common ancestor
	}{
		{fraud2, base1, fraud2 + " " + fraud1 + " " + base1},
		{base1, fraud2, base1 + " " + fraud1 + " " + fraud2},
		{fraud2, "dataset:raw", fraud2 + " " + fraud1 + " " + base1 + " dataset:calls dataset:raw"},
		{"dataset:raw", voice1, "dataset:raw dataset:calls " + base1 + " " + voice1},
		{fraud2, voice1, fraud2 + " " + fraud1 + " " + base1 + " " + voice1 + " | " + base1},
		{fraud2, "model:acme/base@v1.0.0", fraud2 + " " + fraud1 + " " + base1},
		{fraud2, fraud2, fraud2},
		{fraud2, "dataset:noise", ""},
		{fraud2, "dataset:never", ""},
		{"dataset:never", fraud2, ""},
		{"dataset:never", "dataset:never", "dataset:never"},
	}
	for _, tt := range tests {
		path := must[registry.Path](t)(b.Path(t.Context(), reader, tt.from, tt.to))
		var ids []string
		for i, n := range path.Nodes {
			ids = append(ids, n.ID)
			if i == 0 {
				continue
			}
			e := path.Edges[i-1]
			if ends := []string{e.From, e.To}; !slices.Contains(ends, n.ID) || !slices.Contains(ends, path.Nodes[i-1].ID) {
				t.Errorf("Path(%s, %s): edge %v does not join %s with %s", tt.from, tt.to, e, path.Nodes[i-1].ID, n.ID)
			}
			g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: e.From, Direction: registry.Ancestors, Depth: 1}))
			if !slices.Contains(g.Edges, e) {
				t.Errorf("Path(%s, %s) goes along %v, which is no edge", tt.from, tt.to, e)
			}
		}
		got := strings.Join(ids, " ")
		if path.Common != "" {
			got += " | " + path.Common
		}
		if got != tt.want || len(path.Edges) != max(0, len(path.Nodes)-1) {
			t.Errorf("Path(%s, %s) = %q with %d edges, want %q", tt.from, tt.to, got, len(path.Edges), tt.want)
		}
	}
	for _, id := range []string{"version:id-acme-fraud:v9.0.0", "nonsense", ""} {
		for _, ends := range [][2]string{{id, fraud1}, {fraud1, id}} {
			if _, err := b.Path(t.Context(), reader, ends[0], ends[1]); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("Path(%q, %q) = %v, want %v", ends[0], ends[1], err, registry.ErrNotFound)
			}
		}
	}
}

func TestImpact(t *testing.T) {
	b := family(t)
	const all = "base v1.0.0 1, fraud v1.0.0 2, voice v1.0.0 2, fraud v2.0.0 3 in staging"
	tests := []struct {
		of            registry.Concern
		want, running string
	}{
		{registry.Concern{Dataset: "calls"}, all, "fraud v2.0.0 staging"},
		{registry.Concern{Dataset: "raw"}, "calls 1, base v1.0.0 2, fraud v1.0.0 3, voice v1.0.0 3, fraud v2.0.0 4 in staging", "fraud v2.0.0 staging"},
		{registry.Concern{Dataset: "noise"}, "voice v1.0.0 1", ""},
		{registry.Concern{Dataset: "never"}, "", ""},
		{registry.Concern{Model: "acme/base"}, "base v1.0.0 0, fraud v1.0.0 1, voice v1.0.0 1, fraud v2.0.0 2 in staging", "fraud v2.0.0 staging"},
		{registry.Concern{Model: "acme/base@v1.0.0"}, "base v1.0.0 0, fraud v1.0.0 1, voice v1.0.0 1, fraud v2.0.0 2 in staging", "fraud v2.0.0 staging"},
		{registry.Concern{Model: "acme/fraud"}, "fraud v1.0.0 0, fraud v2.0.0 0 in staging", "fraud v2.0.0 staging"},
		{registry.Concern{Model: "acme/base@v9.0.0"}, "", ""},
		{registry.Concern{Node: fraud1}, "fraud v1.0.0 0, fraud v2.0.0 1 in staging", "fraud v2.0.0 staging"},
		{registry.Concern{Digest: digest.FromString("weightsid-acme-basev1.0.0")}, "base v1.0.0 0, fraud v1.0.0 1, voice v1.0.0 1, fraud v2.0.0 2 in staging", "fraud v2.0.0 staging"},
		{registry.Concern{Digest: digest.FromString("never")}, "", ""},
	}
	for _, tt := range tests {
		for _, limit := range []int{0, 1, 2, 3} {
			var items, running []string
			for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
				impact := must[registry.Impact](t)(b.Impact(t.Context(), reader, tt.of, registry.Page{Cursor: cursor, Limit: limit}))
				if pages > 0 && len(impact.Running) > 0 {
					t.Errorf("Impact(%+v) tells on page %d what runs: %v", tt.of, pages, impact.Running)
				}
				for _, r := range impact.Running {
					running = append(running, strings.TrimPrefix(r.Model, "acme/")+" "+r.Tag.String()+" "+r.Environment.String())
				}
				for _, i := range impact.Items {
					name := i.Name
					if i.Model != "" {
						name = strings.TrimPrefix(i.Model, "acme/") + " " + i.Tag.String()
					}
					text := fmt.Sprintf("%s %d", name, i.Depth)
					for _, e := range i.Environments {
						text += " in " + e.String()
					}
					items = append(items, text)
				}
				if pages > 10 {
					t.Fatalf("Impact(%+v) does not end: %v", tt.of, items)
				}
				if (impact.Next != "") != impact.Truncated {
					t.Errorf("Impact(%+v) truncated %t with cursor %q", tt.of, impact.Truncated, impact.Next)
				}
				cursor = impact.Next
			}
			if got := strings.Join(items, ", "); got != tt.want || strings.Join(running, ", ") != tt.running {
				t.Errorf("Impact(%+v) in pages of %d = %q, running %v, want %q and %q", tt.of, limit, got, running, tt.want, tt.running)
			}
		}
	}
	if _, err := b.Impact(t.Context(), reader, registry.Concern{}, registry.Page{}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("Impact of nothing = %v, want %v", err, registry.ErrInvalid)
	}
	if _, err := b.Impact(t.Context(), reader, registry.Concern{Node: "version:id-acme-fraud:v9.0.0"}, registry.Page{}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Impact of no version = %v, want %v", err, registry.ErrNotFound)
	}
}

func TestLineageDiff(t *testing.T) {
	b := family(t)
	want := []string{fraud2 + " a", fraud1 + " a", base1 + " both", "dataset:calls both", "dataset:raw both", voice1 + " b", "dataset:noise b"}
	for _, limit := range []int{0, 1, 3} {
		var got []string
		for cursor, pages := "", 0; pages == 0 || cursor != "" && pages < 10; pages++ {
			items, next, err := b.LineageDiff(t.Context(), reader, fraud2, voice1, registry.Page{Cursor: cursor, Limit: limit})
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				got = append(got, i.ID+" "+string(i.In))
			}
			cursor = next
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("LineageDiff in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
}

func TestShared(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	same := func(path, content string, size int64) registry.File {
		return registry.File{Path: path, Digest: digest.FromString(content), SizeBytes: size}
	}
	v := version(m, "v1.0.0")
	v.Version.Files = append(v.Version.Files, same("small.json", "small", 10), same("large.bin", "large", 1000), same("empty", "", 0))
	b.add(v)
	again := version(m, "v1.1.0") // another version of the same model is no news
	again.Version.Files = v.Version.Files
	b.add(again)
	for _, name := range []string{"acme/zebra", "acme/ape"} {
		other := b.model(name, registry.Public)
		for _, tag := range []string{"v1.0.0", "v1.10.0", "v1.9.0"} {
			r := version(other, tag)
			r.Version.Files = append(r.Version.Files, same("model.bin", "large", 1000), same("none", "", 0))
			if name == "acme/ape" && tag == "v1.9.0" {
				r.Version.Files = append(r.Version.Files, same("x.json", "small", 10))
			}
			b.add(r)
		}
	}
	pushed := b.model("acme/pushed", registry.Public)
	b.add(registry.BlobsLinked{ModelID: pushed.ID, Blobs: []registry.LinkedBlob{{Digest: digest.FromString("small"), SizeBytes: 10}}})
	want := []string{
		"large.bin 1000 acme/ape [v1.10.0 v1.9.0 v1.0.0]", "large.bin 1000 acme/zebra [v1.10.0 v1.9.0 v1.0.0]", "small.json 10 acme/ape [v1.9.0]", "small.json 10 acme/pushed []",
	}
	for _, limit := range []int{0, 1, 3} {
		var got []string
		for cursor, pages := "", 0; pages == 0 || cursor != "" && pages < 10; pages++ {
			items, next, err := b.Shared(t.Context(), reader, m.ID, registry.MustTag("v1.0.0"), registry.Page{Cursor: cursor, Limit: limit})
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				got = append(got, fmt.Sprintf("%s %d %s %v", i.Path, i.SizeBytes, i.Model, i.Versions))
			}
			cursor = next
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Shared in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	for _, cursor := range []string{"x", "AA", "bm90aGluZwBmaWxl"} {
		if _, _, err := b.Shared(t.Context(), reader, m.ID, registry.MustTag("v1.0.0"), registry.Page{Cursor: cursor}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Shared with cursor %q = %v, want %v", cursor, err, registry.ErrInvalid)
		}
	}
}

// What a version came from is told page by page, with each edge once.
func TestLineagePages(t *testing.T) {
	b := family(t)
	for _, start := range []string{fraud2, base1, "dataset:raw"} {
		for _, d := range []registry.Direction{registry.Ancestors, registry.Descendants, registry.Both} {
			whole := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: start, Direction: d}))
			for limit := 1; limit < 5; limit++ {
				var got registry.Graph
				for cursor, pages := "", 0; pages == 0 || cursor != "" && pages < 10; pages++ {
					page := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: start, Direction: d, Limit: limit, Cursor: cursor}))
					if len(page.Nodes) > limit {
						t.Fatalf("a page of %d has %d nodes", limit, len(page.Nodes))
					}
					got.Nodes, got.Edges = append(got.Nodes, page.Nodes...), append(got.Edges, page.Edges...)
					cursor = page.Next
				}
				less := func(a, b registry.LineageEdge) int { return strings.Compare(a.From+a.To, b.From+b.To) }
				slices.SortFunc(got.Edges, less)
				edges := slices.SortedFunc(slices.Values(whole.Edges), less)
				if diff := cmp.Diff(whole.Nodes, got.Nodes, sameNames...); diff != "" {
					t.Errorf("%s of %s in pages of %d (-whole +pages):\n%s", d, start, limit, diff)
				}
				if diff := cmp.Diff(edges, got.Edges); diff != "" {
					t.Errorf("edges of %s of %s in pages of %d (-whole +pages):\n%s", d, start, limit, diff)
				}
			}
		}
	}
}

// The graph in memory is the same whether it was made from the file or grew with what came.
func TestLineageGrows(t *testing.T) {
	grown, m := versions(t, 3)
	ask := func(b *book) string {
		var text strings.Builder
		for _, start := range []string{"dataset:calls", "run:0", node(m, "v1.0.0"), node(m, "v2.4000.0")} {
			for _, d := range []registry.Direction{registry.Ancestors, registry.Descendants} {
				g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: start, Direction: d}))
				fmt.Fprintln(&text, start, d, shown(g))
			}
		}
		return text.String()
	}
	ask(grown)
	var records []registry.Record
	for i := range 5000 { // more than what is kept unpacked
		records = append(records, version(m, fmt.Sprintf("v2.%d.0", i), derived(node(m, fmt.Sprintf("v1.%d.0", i%3))), used("dataset:calls"), registry.LineageEdge{To: fmt.Sprintf("run:%d", i%7), Kind: registry.GeneratedBy}))
	}
	grown.add(records...)
	grown.add(registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{{From: "run:0", To: "dataset:calls", Kind: registry.Used}}})
	before := ask(grown)
	grown.close()
	grown.open()
	if diff := cmp.Diff(before, ask(grown)); diff != "" {
		t.Errorf("lineage from the file (-grown +made):\n%s", diff)
	}
}

// What came from a revoked version is marked, for those who may read that; also after a start.
func TestRevokedAncestors(t *testing.T) {
	b := family(t)
	secret := b.model("acme/secret", registry.Private)
	b.publish(secret, "v1.0.0")
	b.add(registry.EdgesAdded{ModelID: "id-acme-voice", Edges: []registry.LineageEdge{{From: voice1, To: node(secret, "v1.0.0"), Kind: registry.DerivedFrom}}})
	marked := func(id access.Identity) string {
		t.Helper()
		var list []string
		for _, start := range []string{base1, "dataset:raw", node(secret, "v1.0.0")} {
			g := must[registry.Graph](t)(b.Lineage(t.Context(), id, registry.Walk{Start: start, Direction: registry.Descendants}))
			impact := must[registry.Impact](t)(b.Impact(t.Context(), id, registry.Concern{Dataset: "raw"}, registry.Page{}))
			for _, n := range g.Nodes {
				if n.RevokedAncestor != "" {
					list = append(list, n.ID+" from "+n.RevokedAncestor)
				}
				for _, i := range impact.Items {
					if i.ID == n.ID && i.RevokedAncestor != n.RevokedAncestor {
						t.Errorf("%s is from %q in an impact and from %q in lineage", n.ID, i.RevokedAncestor, n.RevokedAncestor)
					}
				}
			}
		}
		slices.Sort(list)
		return strings.Join(slices.Compact(list), ", ")
	}
	revoke := func(m registry.Model, tag string) {
		b.add(registry.VersionStateSet{ModelID: m.ID, Change: registry.StateChange{ID: "s" + m.ID + tag, Version: registry.MustTag(tag), State: registry.Revoked, Previous: registry.Published, At: begin}})
	}
	if got := marked(admin); got != "" {
		t.Errorf("marked while nothing is revoked: %s", got)
	}
	revoke(registry.Model{ID: "id-acme-fraud"}, "v1.0.0")
	revoke(secret, "v1.0.0")
	const ofFraud, ofSecret = fraud2 + " from " + fraud1, voice1 + " from version:id-acme-secret:v1.0.0"
	for range 2 {
		if got := marked(reader); got != ofFraud {
			t.Errorf("marked for a reader: %q, want %q", got, ofFraud)
		}
		if got := marked(admin); got != ofFraud+", "+ofSecret {
			t.Errorf("marked for an administrator: %q, want %q", got, ofFraud+", "+ofSecret)
		}
		b.close()
		b.open()
	}
}

// A commit does not wait for whoever walks through lineage or searches, and is seen by who asks next.
func TestCommitsDoNotWaitForReaders(t *testing.T) {
	b := family(t)
	ask := func() (lineage, found int) {
		g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: "dataset:raw", Direction: registry.Descendants}))
		hits, _, err := b.Search(t.Context(), reader, query(t, "kind:version"), registry.Page{})
		if err != nil {
			t.Fatal(err)
		}
		return len(g.Nodes), len(hits)
	}
	nodes, versions := ask()
	release := b.HoldMemory()
	m := registry.Model{ID: "id-acme-late", Name: registry.MustModelName("acme/late"), Visibility: registry.Public, CreatedAt: begin, UpdatedAt: begin}
	b.add(registry.ModelCreated{Model: m}) // waits for ever if it waits
	b.publish(m, "v1.0.0", used("dataset:raw"))
	release()
	if n, v := ask(); n != nodes+1 || v != versions+1 {
		t.Errorf("after a commit beside a reader there are %d nodes and %d versions, want %d and %d", n, v, nodes+1, versions+1)
	}
	// More than is held, while nobody asks.
	for i := range 4200 {
		b.add(version(m, fmt.Sprintf("v2.%d.0", i), used("dataset:raw")))
	}
	if n, v := ask(); n != registry.MaxLineageNodes || v != registry.MaxPage {
		t.Errorf("after many commits there are %d nodes and %d versions, want as many as an answer holds", n, v)
	}
}

// Of a node at which many edges end, those are told that join what the walk met, each once, on whatever page.
func TestLineageOfHubs(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/merged", registry.Public)
	const parents = 150
	var edges, more []registry.LineageEdge
	for i := range parents {
		name := fmt.Sprintf("dataset:part %d", i)
		edges = append(edges, used(name))
		more = append(more, registry.LineageEdge{From: name, To: "dataset:hub", Kind: registry.DerivedFrom}, registry.LineageEdge{From: fmt.Sprintf("dataset:other %d", i), To: "dataset:hub", Kind: registry.DerivedFrom})
	}
	b.publish(m, "v1.0.0", edges...)
	b.add(registry.EdgesAdded{ModelID: m.ID, Edges: more})
	for _, limit := range []int{0, 40, 151} {
		seen := map[registry.LineageEdge]int{}
		nodes := 0
		for cursor, pages := "", 0; pages == 0 || cursor != "" && pages < 10; pages++ {
			g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: node(m, "v1.0.0"), Direction: registry.Ancestors, Limit: limit, Cursor: cursor}))
			nodes += len(g.Nodes)
			for _, e := range g.Edges {
				seen[e]++
			}
			cursor = g.Next
		}
		if nodes != parents+2 || len(seen) != 2*parents {
			t.Errorf("in pages of %d: %d nodes and %d edges, want %d and %d", limit, nodes, len(seen), parents+2, 2*parents)
		}
		for e, times := range seen {
			if times != 1 {
				t.Fatalf("in pages of %d: edge %v came %d times", limit, e, times)
			}
		}
	}
}

// Both directions are two walks: what one meets is no wall for the other, and the nearest come first.
func TestLineageOfBothDirections(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	d := func(from, to string) registry.LineageEdge {
		return registry.LineageEdge{From: "dataset:" + from, To: "dataset:" + to, Kind: registry.DerivedFrom}
	}
	// a and b came from each other, c came from b; a has a child, and far ancestors.
	b.add(registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{d("a", "b"), d("b", "a"), d("c", "b"), d("a", "x"), d("x", "y"), d("y", "z"), d("child", "a")}})
	for _, limit := range []int{0, 1, 3} {
		var got []string
		for cursor, pages := "", 0; pages == 0 || cursor != "" && pages < 10; pages++ {
			g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: "dataset:a", Direction: registry.Both, Limit: limit, Cursor: cursor}))
			for _, n := range g.Nodes {
				got = append(got, n.Name)
			}
			cursor = g.Next
		}
		if diff := cmp.Diff([]string{"a", "b", "x", "child", "y", "c", "z"}, got); diff != "" {
			t.Errorf("both directions in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
}

// That one came from the other counts more than that both came from a third, however near that is.
func TestPathPrefersDescent(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	e := func(from, to string) registry.LineageEdge {
		return registry.LineageEdge{From: "dataset:" + from, To: "dataset:" + to, Kind: registry.DerivedFrom}
	}
	b.add(registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{e("late", "m2"), e("m2", "m1"), e("m1", "early"), e("late", "shared"), e("early", "shared")}})
	for _, ends := range [][2]string{{"dataset:late", "dataset:early"}, {"dataset:early", "dataset:late"}} {
		path := must[registry.Path](t)(b.Path(t.Context(), reader, ends[0], ends[1]))
		if len(path.Nodes) != 4 || path.Common != "" || path.Nodes[0].ID != ends[0] || path.Nodes[3].ID != ends[1] {
			t.Errorf("Path(%v) = %v, common %q, want the four on the way", ends, path.Nodes, path.Common)
		}
	}
}

// What could not be made because its client left is made for the next one, with what came meanwhile.
func TestMemoryIsMadeAgain(t *testing.T) {
	b := family(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if _, err := b.Lineage(gone, reader, registry.Walk{Start: base1}); !errors.Is(err, context.Canceled) {
			t.Errorf("Lineage for a client that left = %v", err)
		}
		if _, _, err := b.Search(gone, reader, query(t, "fraud"), registry.Page{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Search for a client that left = %v", err)
		}
	}
	m := b.model("acme/late", registry.Public)
	b.publish(m, "v1.0.0", derived(base1))
	g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: base1, Direction: registry.Descendants, Depth: 1}))
	hits, _, err := b.Search(t.Context(), reader, query(t, "late"), registry.Page{})
	if len(g.Nodes) != 4 || len(hits) != 1 || err != nil {
		t.Errorf("afterwards there are %d nodes and %d hits, %v, want 4 and 1", len(g.Nodes), len(hits), err)
	}
}
