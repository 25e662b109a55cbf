package web_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/web"
)

// graphOf is a graph with these edges, each "FROM TO", of which the first begins at the start.
func graphOf(edges ...string) registry.Graph {
	var g registry.Graph
	seen := map[string]bool{}
	for _, text := range edges {
		from, to, _ := strings.Cut(text, " ")
		for _, id := range []string{from, to} {
			if !seen[id] {
				seen[id] = true
				g.Nodes = append(g.Nodes, registry.ParseNodeID("dataset:"+id))
			}
		}
		g.Edges = append(g.Edges, registry.LineageEdge{From: "dataset:" + from, To: "dataset:" + to, Kind: registry.DerivedFrom})
	}
	return g
}

func TestDraw(t *testing.T) {
	for _, tt := range []struct {
		edges  []string
		layers string // the labels of each layer from the left
		lines  int
	}{
		{[]string{"start base"}, "base | start", 1},
		{[]string{"start base", "child start"}, "base | start | child", 2},
		{[]string{"start base", "start middle", "middle base"}, "base | middle | start", 3},
		{[]string{"start base", "child start", "late start", "late child"}, "base | start | child | late", 4},
		{[]string{"start a", "a b", "b a"}, "b | a | start", 3}, // a cycle
		{[]string{"start start"}, "start", 1},
		{[]string{"start a", "elsewhere b"}, "a | start", 1},
	} {
		g := graphOf(tt.edges...)
		boxes, lines := web.Draw(g, "dataset:start")
		if diff := cmp.Diff(tt.layers, boxes); diff != "" || lines != tt.lines {
			t.Errorf("draw of %v: %d lines, want %d; layers (-want +got):\n%s", tt.edges, lines, tt.lines, diff)
		}
	}
	if boxes, lines := web.Draw(registry.Graph{}, "dataset:start"); boxes != "" || lines != 0 {
		t.Errorf("draw of nothing = %q, %d", boxes, lines)
	}
}

// What is drawn lies within the picture, and no two boxes upon each other.
func TestDrawFits(t *testing.T) {
	var edges []string
	for i := range 60 {
		edges = append(edges, fmt.Sprintf("n%d n%d", i, i+1+i%7), fmt.Sprintf("n%d n%d", i, i+3))
	}
	if problem := web.DrawProblem(graphOf(edges...), "dataset:n20"); problem != "" {
		t.Error(problem)
	}
}
