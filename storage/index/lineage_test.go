package index_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

func node(m registry.Model, tag string) string {
	return registry.VersionNodeID(m.ID, registry.MustTag(tag))
}

func derived(to string) registry.LineageEdge {
	return registry.LineageEdge{To: to, Kind: registry.DerivedFrom}
}

func used(to string) registry.LineageEdge { return registry.LineageEdge{To: to, Kind: registry.Used} }

// shown is a graph as text: its nodes in order, then its edges.
func shown(g registry.Graph) []string {
	list := []string{}
	for _, n := range g.Nodes {
		list = append(list, n.ID)
	}
	for _, e := range g.Edges {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s -%s-> %s %s", e.From, e.Kind, e.To, e.Relation)))
	}
	if g.Truncated {
		list = append(list, "and more")
	}
	return list
}

func TestLineage(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	b.publish(m, "v1.0.0", used("dataset:calls"), derived("model:other/base"))
	b.publish(m, "v1.1.0", registry.LineageEdge{To: node(m, "v1.0.0"), Kind: registry.DerivedFrom, Relation: registry.Previous})
	b.publish(m, "v2.0.0", used("dataset:calls"), registry.LineageEdge{To: "model:acme/fraud@v1.1.0", Kind: registry.DerivedFrom, Relation: registry.Finetune})
	const (
		v1, v11, v2   = "version:id-acme-fraud:v1.0.0", "version:id-acme-fraud:v1.1.0", "version:id-acme-fraud:v2.0.0"
		v1calls       = v1 + " -used-> dataset:calls"
		v1base        = v1 + " -derived_from-> model:other/base"
		v11v1         = v11 + " -derived_from-> " + v1 + " previous"
		v2calls       = v2 + " -used-> dataset:calls"
		v2v11         = v2 + " -derived_from-> " + v11 + " finetune"
		calls, base   = "dataset:calls", "model:other/base"
		both          = registry.Both
		up, down      = registry.Ancestors, registry.Descendants
		usedK, derivK = registry.Used, registry.DerivedFrom
	)
	tests := []struct {
		start     string
		direction registry.Direction
		depth     int
		kinds     []registry.EdgeKind
		want      []string
	}{
		{v1, up, 0, nil, []string{v1, calls, base, v1calls, v1base}},
		{v1, down, 0, nil, []string{v1, v11, v2, v11v1, v2v11}},
		{v1, down, 1, nil, []string{v1, v11, v11v1, "and more"}},
		{v1, down, 2, nil, []string{v1, v11, v2, v11v1, v2v11}},
		{v11, both, 1, nil, []string{v11, v1, v2, v11v1, v2v11, "and more"}},
		{"model:acme/fraud@v1.1.0", down, 0, nil, []string{v11, v2, v2v11}},
		{v2, up, 0, []registry.EdgeKind{derivK}, []string{v2, v11, v1, base, v1base, v11v1, v2v11}},
		{v2, up, 0, []registry.EdgeKind{usedK}, []string{v2, calls, v2calls}},
		{calls, down, 0, nil, []string{calls, v1, v2, v11, v1calls, v11v1, v2calls, v2v11}},
		{base, up, 0, nil, []string{base}},
		{"dataset:never", both, 0, nil, []string{"dataset:never"}},
		{"version:id-acme-fraud:v9.0.0", both, 0, nil, []string{}},
		{"version:nonsense", both, 0, nil, []string{}},
		{"model:acme/fraud@v9.0.0", both, 0, nil, []string{"model:acme/fraud@v9.0.0"}},
	}
	for _, tt := range tests {
		g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: tt.start, Direction: tt.direction, Depth: tt.depth, Kinds: tt.kinds}))
		nodes := len(g.Nodes)
		want := slices.Clone(tt.want)
		// Edges come sorted by where they start and lead; nodes as the walk meets them.
		slices.SortFunc(want[nodes:], func(a, b string) int { return cmp.Compare(edgeOrder(a), edgeOrder(b)) })
		got := shown(g)
		slices.SortFunc(got[nodes:], func(a, b string) int { return cmp.Compare(edgeOrder(a), edgeOrder(b)) })
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("Lineage(%q, %s, depth %d, %v) (-want +got):\n%s", tt.start, tt.direction, tt.depth, tt.kinds, diff)
		}
	}
}

func edgeOrder(edge string) string {
	if edge == "and more" {
		return "~"
	}
	return edge
}

// Names and versions are what a node shows of a model.
func TestLineageNodes(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	b.publish(m, "v1.0.0", used("dataset:calls:2026"), derived("model:other/base@main"))
	b.add(registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{{From: node(m, "v1.0.0"), To: "run:jenkins/7", Kind: registry.GeneratedBy}}})
	g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: node(m, "v1.0.0"), Direction: registry.Ancestors}))
	want := []registry.Node{
		{ID: node(m, "v1.0.0"), Kind: registry.VersionNode, Model: "acme/fraud", Tag: registry.MustTag("v1.0.0"), State: registry.Published, Commit: commitOf("v1.0.0"), PublishedAt: begin},
		{ID: "dataset:calls:2026", Kind: registry.DatasetNode, Name: "calls:2026"},
		{ID: "model:other/base@main", Kind: registry.ExternalModelNode, Name: "other/base@main"},
		{ID: "run:jenkins/7", Kind: registry.RunNode, Name: "jenkins/7"},
	}
	if diff := gocmp.Diff(want, g.Nodes, sameNames...); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

// A cycle, which a client can declare, ends the walk like any node that was met before.
func TestLineageCycle(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	tags := []string{"v1.0.0", "v1.1.0", "v1.2.0"}
	for i, tag := range tags {
		b.publish(m, tag, derived(node(m, tags[(i+1)%3])), derived(node(m, tag)))
	}
	for _, d := range []registry.Direction{registry.Ancestors, registry.Descendants, registry.Both} {
		g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: node(m, "v1.0.0"), Direction: d}))
		if len(g.Nodes) != 3 || len(g.Edges) != 6 || g.Truncated {
			t.Errorf("Lineage %s of a cycle of three = %v, want 3 nodes and 6 edges", d, shown(g))
		}
	}
}

func TestLineageDepth(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	const length = registry.MaxLineageDepth + 5
	for i := range length {
		if i == 0 {
			b.publish(m, "v0.0.0")
			continue
		}
		b.publish(m, fmt.Sprintf("v0.%d.0", i), derived(node(m, fmt.Sprintf("v0.%d.0", i-1))))
	}
	tests := []struct {
		depth, nodes int
		truncated    bool
	}{
		{0, registry.MaxLineageDepth + 1, true},
		{-3, registry.MaxLineageDepth + 1, true},
		{1000, registry.MaxLineageDepth + 1, true},
		{1, 2, true},
		{3, 4, true},
	}
	for _, tt := range tests {
		g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: node(m, "v0.0.0"), Direction: registry.Descendants, Depth: tt.depth}))
		if len(g.Nodes) != tt.nodes || len(g.Edges) != tt.nodes-1 || g.Truncated != tt.truncated {
			t.Errorf("Lineage to depth %d = %d nodes, %d edges, truncated %t, want %d, %d, %t", tt.depth, len(g.Nodes), len(g.Edges), g.Truncated, tt.nodes, tt.nodes-1, tt.truncated)
		}
	}
	exact := fmt.Sprintf("v0.%d.0", registry.MaxLineageDepth)
	g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: node(m, exact), Direction: registry.Ancestors}))
	if len(g.Nodes) != registry.MaxLineageDepth+1 || g.Truncated {
		t.Errorf("Lineage of a chain as long as the limit = %d nodes, truncated %t, want all of it", len(g.Nodes), g.Truncated)
	}
}

// The limit of nodes counts what the caller sees; what is beyond is said to be there, and no edge
// leads to a node that is not.
func TestLineageNodesLimit(t *testing.T) {
	for _, extra := range []int{-1, 0, 1, 20} {
		b := newBook(t)
		hidden, open := b.model("acme/hidden", registry.Private), b.model("acme/open", registry.Public)
		var edges []registry.LineageEdge
		children := registry.MaxLineageNodes - 1 + extra
		for i := range children {
			edges = append(edges, registry.LineageEdge{From: fmt.Sprintf("run:%d", i), To: "dataset:calls", Kind: registry.Used})
		}
		// What is hidden is as good as not there, whether it comes before or behind.
		b.add(registry.EdgesAdded{ModelID: hidden.ID, Edges: []registry.LineageEdge{{From: "run:hidden", To: "dataset:calls", Kind: registry.Used}}})
		b.publish(hidden, "v0.1.0", used("dataset:calls"))
		b.add(registry.EdgesAdded{ModelID: open.ID, Edges: edges})
		for i := range 30 {
			b.publish(hidden, fmt.Sprintf("v1.%d.0", i), used("dataset:calls"))
		}
		g := must[registry.Graph](t)(b.Lineage(t.Context(), reader, registry.Walk{Start: "dataset:calls", Direction: registry.Both}))
		want := min(children, registry.MaxLineageNodes-1) + 1
		if len(g.Nodes) != want || len(g.Edges) != want-1 || g.Truncated != (extra > 0) {
			t.Errorf("Lineage of %d runs = %d nodes, %d edges, truncated %t, want %d, %d, %t", children, len(g.Nodes), len(g.Edges), g.Truncated, want, want-1, extra > 0)
		}
		ids := map[string]bool{}
		for _, n := range g.Nodes {
			ids[n.ID] = true
		}
		for _, e := range g.Edges {
			if !ids[e.From] || !ids[e.To] {
				t.Errorf("edge %+v leads to a node that is not in the answer", e)
			}
		}
	}
}

// A version that was deleted is no node, from wherever one comes.
func TestLineageOfDeletedModels(t *testing.T) {
	b := newBook(t)
	gone, m := b.model("acme/gone", registry.Public), b.model("acme/fraud", registry.Public)
	b.publish(gone, "v1.0.0", used("dataset:calls"))
	b.publish(m, "v1.0.0", derived(node(gone, "v1.0.0")), derived("model:acme/gone@v1.0.0"))
	b.add(registry.ModelDeleted{ModelID: gone.ID})
	tests := []struct {
		start string
		want  []string
	}{
		{node(m, "v1.0.0"), []string{node(m, "v1.0.0"), "model:acme/gone@v1.0.0", node(m, "v1.0.0") + " -derived_from-> model:acme/gone@v1.0.0"}},
		{"dataset:calls", []string{"dataset:calls"}},
		{node(gone, "v1.0.0"), []string{}},
	}
	for _, tt := range tests {
		g := must[registry.Graph](t)(b.Lineage(t.Context(), admin, registry.Walk{Start: tt.start, Direction: registry.Both}))
		if diff := gocmp.Diff(tt.want, shown(g)); diff != "" {
			t.Errorf("Lineage(%s) (-want +got):\n%s", tt.start, diff)
		}
	}
}

// A name without a version leads to the model's page, for those who may read the model. For all
// others it is the name of a model of somewhere else.
func TestLineageNamesModels(t *testing.T) {
	b := newBook(t)
	public, private := b.model("acme/base", registry.Public), b.model("acme/hidden", registry.Private)
	m := b.model("acme/fraud", registry.Public)
	b.publish(public, "v1.0.0")
	b.publish(private, "v1.0.0")
	b.publish(m, "v1.0.0", derived("model:acme/base"), derived("model:acme/hidden"), derived("model:acme/never"), derived("model:acme/base@main"),
		derived("model:acme/base@v1.0.0"), derived("model:acme/hidden@v1.0.0"), derived("model:acme/base@"), derived("model:"), derived("model:Not A Name"))
	for id, want := range map[string]struct{ reader, admin string }{
		"model:acme/base":          {"acme/base", "acme/base"},
		"model:acme/hidden":        {"", "acme/hidden"},
		"model:acme/never":         {"", ""},
		"model:acme/base@main":     {"", ""},
		"model:acme/hidden@v1.0.0": {"", "gone"}, // for who may read it, it is the version
		"model:acme/base@":         {"", ""},
		"model:":                   {"", ""},
		"model:Not A Name":         {"", ""},
	} {
		for caller, want := range map[access.Identity]string{reader: want.reader, admin: want.admin} {
			g := must[registry.Graph](t)(b.Lineage(t.Context(), caller, registry.Walk{Start: node(m, "v1.0.0"), Direction: registry.Ancestors, Depth: 1}))
			got := "gone"
			for _, n := range g.Nodes {
				if n.ID == id {
					got = n.Model
					if want := (registry.Node{ID: id, Kind: registry.ExternalModelNode, Name: strings.TrimPrefix(id, "model:"), Model: n.Model}); n != want {
						t.Errorf("node %s for role %d = %+v, want %+v", id, caller.Role, n, want)
					}
				}
			}
			if got != want {
				t.Errorf("node %s for role %d names model %q, want %q", id, caller.Role, got, want)
			}
		}
	}
}

// Where a version came from is told by its own model, and not by another one that calls the version by its name.
func TestLineageOfAVersionIsItsModels(t *testing.T) {
	b := newBook(t)
	base, hidden, other := b.model("acme/base", registry.Public), b.model("acme/hidden", registry.Private), b.model("acme/other", registry.Public)
	b.publish(base, "v1.0.0", used("dataset:calls"))
	b.publish(hidden, "v1.0.0")
	b.publish(other, "v1.0.0")
	say := func(m registry.Model, from, to string) {
		b.add(registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{{From: from, To: to, Kind: registry.DerivedFrom}}})
	}
	say(other, "model:acme/base@v1.0.0", "dataset:stolen")
	say(other, "model:acme/hidden@v1.0.0", "dataset:stolen")
	say(other, "model:far/away@v1.0.0", "dataset:stolen")
	say(base, "model:acme/base@v1.0.0", "dataset:own")
	for range 2 {
		for _, tt := range []struct {
			id        access.Identity
			start     string
			direction registry.Direction
			want      []string
		}{
			{reader, node(base, "v1.0.0"), registry.Ancestors, []string{node(base, "v1.0.0"), "dataset:calls", "dataset:own"}},
			{admin, node(hidden, "v1.0.0"), registry.Ancestors, []string{node(hidden, "v1.0.0")}},
			{admin, "dataset:stolen", registry.Descendants, []string{"dataset:stolen", "model:far/away@v1.0.0"}},
			// For who may not read it, the name is a name as any other.
			{reader, "dataset:stolen", registry.Descendants, []string{"dataset:stolen", "model:acme/hidden@v1.0.0", "model:far/away@v1.0.0"}},
		} {
			g := must[registry.Graph](t)(b.Lineage(t.Context(), tt.id, registry.Walk{Start: tt.start, Direction: tt.direction}))
			var got []string
			for _, n := range g.Nodes {
				got = append(got, n.ID)
			}
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s of %s for role %d (-want +got):\n%s", tt.direction, tt.start, tt.id.Role, diff)
			}
			if len(g.Edges) != len(tt.want)-1 {
				t.Errorf("%s of %s for role %d has edges %v, want %d", tt.direction, tt.start, tt.id.Role, g.Edges, len(tt.want)-1)
			}
		}
		b.close()
		b.open()
	}
}

// When all who named each other are gone, nothing of them is left in lineage, whoever went first.
func TestDeletedModelsLeaveNoNodes(t *testing.T) {
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		b := newBook(t)
		all := []registry.Model{b.model("acme/base", registry.Public), b.model("acme/fraud", registry.Public)}
		b.publish(all[0], "v1.0.0", used("dataset:calls"))
		b.publish(all[0], "v1.1.0")
		b.publish(all[1], "v1.0.0", derived(node(all[0], "v1.0.0")), derived(node(all[0], "v1.1.0")))
		for _, i := range order {
			b.add(registry.ModelDeleted{ModelID: all[i].ID})
		}
		for line := range strings.Lines(dump(t, b.DB)) {
			for _, bucket := range []string{"node", "edges", "same", "declared"} {
				if strings.HasPrefix(line, bucket) {
					t.Errorf("deleted in the order %v, there is left: %s", order, line)
				}
			}
		}
	}
}
