package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// The bounds of what is declared at once.
const (
	MaxDeclaredEdges = 100
	maxNodeIDLen     = 1024 // bytes
)

// Declare adds edges of lineage that a client knows of: the run that made a version, its code, the data of a dataset. They belong to the model: who may
// not read it sees none of them. An edge that was declared before is no change. A cycle is a [registry.ErrConflict] that names it; what the
// caller may not read closes none.
func (s *Service) Declare(ctx context.Context, by Request, m registry.Model, edges []registry.LineageEdge) error {
	if err := access.Authorize(by.Identity, access.Relate, &m); err != nil {
		return err
	}
	if len(edges) == 0 || len(edges) > MaxDeclaredEdges {
		return registry.Invalid("edges", "declare 1 to %d edges at once", MaxDeclaredEdges)
	}
	// Two models may close a cycle together.
	s.declaring.Lock()
	defer s.declaring.Unlock()
	unlock := s.locks.lock(m.ID)
	defer unlock()
	if _, err := s.Index.ModelByID(ctx, m.ID); err != nil {
		return err
	}
	for i, e := range edges {
		if err := s.checkEdge(ctx, by.Identity, m, e); err != nil {
			return registry.InField(err, fmt.Sprintf("edges[%d].", i))
		}
	}
	if err := s.checkCycles(ctx, by.Identity, edges); err != nil {
		return err
	}
	now := s.Now()
	return s.commit(ctx, registry.Group{At: now, Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{registry.EdgesAdded{ModelID: m.ID, Edges: edges}}})
}

// readers is who may know what every reader of the model may know, and no more.
func readers(m registry.Model) access.Identity {
	if m.Visibility == registry.Public {
		return access.Anonymous(true)
	}
	return access.Identity{Name: access.System.Name, Role: access.Reader}
}

// edgeEnds are what an edge of a kind may join, in the sense of PROV-DM: what is derived is a thing, what uses things is done, or is a thing
// that stands for how it was made.
var edgeEnds = map[registry.EdgeKind][2][]registry.NodeKind{
	registry.DerivedFrom: {
		{registry.VersionNode, registry.ExternalModelNode, registry.DatasetNode, registry.CodeNode},
		{registry.VersionNode, registry.ExternalModelNode, registry.DatasetNode, registry.CodeNode},
	},
	registry.Used: {
		{registry.VersionNode, registry.ExternalModelNode, registry.RunNode},
		{registry.VersionNode, registry.ExternalModelNode, registry.DatasetNode, registry.CodeNode},
	},
	registry.GeneratedBy: {
		{registry.VersionNode, registry.ExternalModelNode, registry.DatasetNode, registry.CodeNode},
		{registry.RunNode},
	},
}

// declaredRelations are those that a client may declare.
var declaredRelations = []registry.Relation{"", registry.Finetune, registry.Adapter, registry.Merge, registry.Quantized}

// checkEdge says what is wrong with an edge.
func (s *Service) checkEdge(ctx context.Context, id access.Identity, m registry.Model, e registry.LineageEdge) error {
	ends, ok := edgeEnds[e.Kind]
	if !ok {
		return registry.Invalid("kind", "%.100q is no kind of edge that is declared: say derived_from, used or generated_by", e.Kind)
	}
	if e.Relation != "" && e.Kind != registry.DerivedFrom || !slices.Contains(declaredRelations, e.Relation) {
		return registry.Invalid("relation", "a relation says how something is derived_from a model: finetune, adapter, merge or quantized")
	}
	for i, end := range []struct{ field, id string }{{"from", e.From}, {"to", e.To}} {
		n, err := parseNode(end.id)
		if err != nil {
			return registry.InField(err, end.field)
		}
		if !slices.Contains(ends[i], n.Kind) {
			return registry.Invalid(end.field, "an edge %s cannot join a %s there", e.Kind, n.Kind)
		}
		if n.Kind != registry.VersionNode {
			continue
		}
		modelID, t, _ := registry.ParseVersionNodeID(end.id)
		if i == 0 && modelID != m.ID {
			return registry.Invalid("from", "the edge begins at a version of another model: declare it there")
		}
		other := m
		if modelID != m.ID {
			if other, err = s.Index.ModelByID(ctx, modelID); err != nil {
				return err
			}
			if err := access.Authorize(id, access.Read, &other); err != nil {
				return err
			}
		}
		if _, err := s.Index.Version(ctx, modelID, t); err != nil {
			return err
		}
	}
	if e.From == e.To {
		return registry.Conflict("%s cannot come from itself", e.From)
	}
	return nil
}

// parseNode reads a node's id as clients give it.
func parseNode(id string) (registry.Node, error) {
	n := registry.ParseNodeID(id)
	if n.Kind == "" || n.Kind == registry.CommitNode {
		return n, registry.Invalid("", "%.100q names no node: say NAMESPACE/NAME@TAG, dataset:NAME, model:NAME[@REVISION], run:NAME or code:URL@REVISION", id)
	}
	if n.Kind == registry.VersionNode {
		if _, _, ok := registry.ParseVersionNodeID(id); !ok {
			return n, registry.Invalid("", "%.100q names no version", id)
		}
		return n, nil
	}
	if base, revision, pinned := strings.Cut(n.Name, "@"); n.Kind == registry.ExternalModelNode && (base == "" || pinned && revision == "") {
		return n, registry.Invalid("", "%.100q names no model: say model:NAME or model:NAME@REVISION", id)
	}
	if n.Name == "" || len(id) > maxNodeIDLen || strings.TrimSpace(n.Name) != n.Name || !printable(n.Name) || strings.ContainsAny(n.Name, "\n\r\t") {
		return n, registry.Invalid("", "the name of a node is text of 1 to %d bytes, without control characters and without space around it", maxNodeIDLen)
	}
	return n, nil
}

// checkCycles refuses edges that would close a cycle, together with each other and with what is there.
func (s *Service) checkCycles(ctx context.Context, id access.Identity, edges []registry.LineageEdge) error {
	var begins []string // where new edges begin
	for _, e := range edges {
		if !slices.Contains(begins, e.From) {
			begins = append(begins, e.From)
		}
	}
	reached := map[string]map[string]bool{} // from each end of a new edge: where new edges begin that it came from
	for _, e := range edges {
		if reached[e.To] != nil {
			continue
		}
		before, err := s.Index.Reached(ctx, id, e.To, begins)
		if err != nil {
			return err
		}
		before[e.To] = true
		reached[e.To] = before
	}
	for _, e := range edges {
		stops := cycle(e.To, e.From, edges, reached, map[string]bool{})
		if stops == nil {
			continue
		}
		var way []string
		for pair := range slices.Chunk(stops, 2) {
			nodes, err := s.Index.Way(ctx, id, pair[0], pair[1])
			if err != nil {
				return err
			}
			if len(nodes) == 0 { // no edge names it yet
				nodes = []registry.Node{registry.ParseNodeID(pair[0])}
			}
			way = append(way, shownNodes(nodes)...)
		}
		return registry.Conflict("that %s came from %s would close a cycle: %s", way[len(way)-1], way[0], shownWay(append(way, way[0])))
	}
	return nil
}

// cycle is a way from one node up to another, along what is there and new edges, or nil: pairs of nodes that are joined by what is there, each joined
// with the next by a new edge.
func cycle(from, to string, edges []registry.LineageEdge, reached map[string]map[string]bool, seen map[string]bool) []string {
	if seen[from] {
		return nil
	}
	seen[from] = true
	if reached[from][to] {
		return []string{from, to}
	}
	for _, e := range edges {
		if !reached[from][e.From] {
			continue
		}
		if rest := cycle(e.To, to, edges, reached, seen); rest != nil {
			return append([]string{from, e.From}, rest...)
		}
	}
	return nil
}

// maxShown is how many nodes of a way are named.
const maxShown = 12

// shownWay is a way as people read it, without the middle of a long one.
func shownWay(way []string) string {
	if left := len(way) - maxShown; left > 0 {
		way = slices.Concat(way[:maxShown/2], []string{fmt.Sprintf("%d more", left)}, way[len(way)-maxShown/2:])
	}
	return strings.Join(way, " <- ")
}

func shownNodes(nodes []registry.Node) []string {
	var names []string
	for _, n := range nodes {
		names = append(names, shownNode(n))
	}
	return names
}

// shownNode is a node as people name it.
func shownNode(n registry.Node) string {
	if n.Kind == registry.VersionNode {
		return n.Model + "@" + n.Tag.String()
	}
	return n.ID
}
