package index

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Lineage walks from a node and gives what it meets, in a fixed order. A node that stands for
// a version of a model of this server is given as that version when id may read it. What
// belongs to a model that id may not read is left out, and nothing is counted for it.
func (db *DB) Lineage(ctx context.Context, id access.Identity, w registry.Walk) (registry.Graph, error) {
	var g registry.Graph
	err := db.view(ctx, func(t tx) (err error) {
		g, err = walk(t, id, w)
		return err
	})
	return g, err
}

type walker struct {
	tx
	id    access.Identity
	known string // model, see registry.Walk
	kinds []registry.EdgeKind
}

func (w walker) reads(m *registry.Model) bool { return m.ID == w.known || access.CanRead(w.id, m) }

// step is an edge with the nodes that it joins, as the caller sees them.
type step struct {
	edge registry.LineageEdge
	next registry.Node
}

func walk(t tx, id access.Identity, w registry.Walk) (registry.Graph, error) {
	wk := walker{t, id, w.Known, w.Kinds}
	start, ok, err := wk.resolve(w.Start)
	g := registry.Graph{Nodes: []registry.Node{}, Edges: []registry.LineageEdge{}}
	if err != nil || !ok {
		return g, err
	}
	depth := w.Depth
	if depth <= 0 || depth > registry.MaxLineageDepth {
		depth = registry.MaxLineageDepth
	}
	seen := map[string]bool{start.ID: true}
	edges := map[registry.LineageEdge]bool{}
	g.Nodes = append(g.Nodes, start)
	for _, expand := range wk.directions(w.Direction) {
		level := []registry.Node{start}
		for range depth {
			var below []registry.Node
			for _, n := range level {
				steps, err := expand(n)
				if err != nil {
					return g, err
				}
				for _, s := range steps {
					if !seen[s.next.ID] {
						if len(g.Nodes) == registry.MaxLineageNodes {
							g.Truncated = true
							continue
						}
						seen[s.next.ID] = true
						g.Nodes = append(g.Nodes, s.next)
						below = append(below, s.next)
					}
					edges[s.edge] = true
				}
			}
			level = below
		}
		if len(level) > 0 {
			if more, err := wk.leadsOn(expand, level, seen); err != nil || more {
				g.Truncated = g.Truncated || more
				if err != nil {
					return g, err
				}
			}
		}
	}
	for e := range edges {
		g.Edges = append(g.Edges, e)
	}
	slices.SortFunc(g.Edges, func(a, b registry.LineageEdge) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Relation, b.Relation))
	})
	return g, nil
}

// leadsOn reports whether there is a node beyond the last level.
func (w walker) leadsOn(expand func(registry.Node) ([]step, error), level []registry.Node, seen map[string]bool) (bool, error) {
	for _, n := range level {
		steps, err := expand(n)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(steps, func(s step) bool { return !seen[s.next.ID] }) {
			return true, nil
		}
	}
	return false, nil
}

func (w walker) directions(d registry.Direction) []func(registry.Node) ([]step, error) {
	switch d {
	case registry.Ancestors:
		return []func(registry.Node) ([]step, error){w.up}
	case registry.Descendants:
		return []func(registry.Node) ([]step, error){w.down}
	}
	return []func(registry.Node) ([]step, error){w.up, w.down}
}

// up are the edges from n to what it came from.
func (w walker) up(n registry.Node) ([]step, error) {
	return w.steps(bucketOut, n, func(k []byte) (registry.LineageEdge, string) {
		e := outEdge(k)
		e.From = n.ID
		return e, e.To
	}, func(e *registry.LineageEdge, id string) { e.To = id })
}

// down are the edges from what came from n to n.
func (w walker) down(n registry.Node) ([]step, error) {
	return w.steps(bucketIn, n, func(k []byte) (registry.LineageEdge, string) {
		p := parts(k)
		e := registry.LineageEdge{To: n.ID, Kind: registry.EdgeKind(p[1]), From: p[2], Relation: registry.Relation(p[3])}
		return e, e.From
	}, func(e *registry.LineageEdge, id string) { e.From = id })
}

func outEdge(k []byte) registry.LineageEdge {
	p := parts(k)
	return registry.LineageEdge{From: p[0], Kind: registry.EdgeKind(p[1]), To: p[2], Relation: registry.Relation(p[3])}
}

func (w walker) steps(bucket string, n registry.Node, read func([]byte) (registry.LineageEdge, string), set func(*registry.LineageEdge, string)) ([]step, error) {
	names, err := w.aliases(n)
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, name := range names {
		for r := range w.scan(bucket, prefix(name), nil) {
			if err := r.check(); err != nil {
				return nil, err
			}
			e, other := read(r.key)
			if len(w.kinds) > 0 && !slices.Contains(w.kinds, e.Kind) {
				continue
			}
			next, ok, err := w.resolve(other)
			if err != nil {
				return nil, err
			}
			if ok {
				set(&e, next.ID)
				steps = append(steps, step{e, next})
			}
		}
	}
	return steps, nil
}

// aliases are the ids under which edges to n may be kept: a version is also known by the name
// that a card calls it by, perhaps written before the version was there.
func (w walker) aliases(n registry.Node) ([]string, error) {
	if n.Kind != registry.VersionNode {
		return []string{n.ID}, nil
	}
	return []string{n.ID, registry.ExternalModelNodeID(n.Model, n.Tag.String())}, nil
}

// resolve gives the node that the caller sees for an id, or false when it may not see it.
func (w walker) resolve(id string) (registry.Node, bool, error) {
	n := registry.ParseNodeID(id)
	switch n.Kind {
	case registry.VersionNode:
		modelID, tag, ok := registry.ParseVersionNodeID(id)
		if !ok {
			return n, false, nil
		}
		return w.version(modelID, tag)
	case registry.ExternalModelNode:
		return w.external(n)
	}
	return n, true, nil
}

// external gives the node for a model's name, with or without a revision: the version of this server
// that it names, or the node itself, which says what model of this server it names. A model that
// the caller may not read is as one that is not there.
func (w walker) external(n registry.Node) (registry.Node, bool, error) {
	name, revision, revised := strings.Cut(n.Name, "@")
	var m registry.Model
	if found, err := modelByName(w.tx, name, &m); err != nil || !found || !w.reads(&m) {
		return n, true, err
	}
	if !revised {
		n.Model = m.Name.String()
		return n, true, nil
	}
	if tag, err := registry.ParseTag(revision); err == nil {
		if v, ok, err := w.version(m.ID, tag); err != nil || ok {
			return v, ok, err
		}
	}
	return n, true, nil
}

func (w walker) version(modelID string, tag registry.Tag) (registry.Node, bool, error) {
	var m registry.Model
	if found, err := w.get(bucketModels, key(modelID), &m); err != nil || !found || !w.reads(&m) {
		return registry.Node{}, false, err
	}
	var row registry.VersionRecord
	if found, err := w.get(bucketVersions, key(modelID, tag.String()), &row); err != nil || !found {
		return registry.Node{}, false, err
	}
	return registry.Node{
		ID: registry.VersionNodeID(modelID, tag), Kind: registry.VersionNode,
		Model: m.Name.String(), Tag: tag, State: row.State,
	}, true, nil
}
