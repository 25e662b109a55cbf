package index

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Lineage walks from a node and gives what it meets, the nearest first, and of nodes that are as near as each other in the order in which
// the edges to them came. A node that stands for
// a version of a model of this server is given as that version when id may read it. What
// belongs to a model that id may not read is left out, and nothing is counted for it. An unknown cursor is a [registry.FieldError].
func (db *DB) Lineage(ctx context.Context, id access.Identity, w registry.Walk) (registry.Graph, error) {
	g := registry.Graph{Nodes: []registry.Node{}, Edges: []registry.LineageEdge{}}
	err := db.walk(ctx, id, func(wk *walker) error {
		wk.known = w.Known
		wk.look(w.Kinds)
		start, ok := wk.find(w.Start)
		if !ok {
			return wk.err
		}
		limit := w.Limit
		if limit <= 0 || limit > registry.MaxLineageNodes {
			limit = registry.MaxLineageNodes
		}
		if start == 0 { // no edge names it
			if w.Cursor != "" {
				return badCursor()
			}
			n, err := wk.named(registry.ParseNodeID(w.Start))
			g.Nodes = append(g.Nodes, n)
			return err
		}
		from, err := wk.cursor(w.Cursor)
		if err != nil {
			return err
		}
		depth := w.Depth
		if depth <= 0 || depth > registry.MaxLineageDepth {
			depth = registry.MaxLineageDepth
		}
		g.Truncated = wk.roam(w.Direction, start, from, limit, depth)
		page, more, err := wk.page(limit)
		if err != nil {
			return err
		}
		if err := wk.fill(&g, page); err != nil {
			return err
		}
		if more {
			g.Truncated = true
			if len(g.Nodes) > 0 {
				g.Next = g.Nodes[len(g.Nodes)-1].ID
			}
		}
		return nil
	})
	return g, err
}

// roam walks from a node in one direction, or in both, and reports whether there was more below the depth. A node that both find counts
// where it is nearer.
func (w *walker) roam(d registry.Direction, start, after uint32, limit, depth int) (cut bool) {
	if d == registry.Ancestors || d == registry.Descendants {
		w.until(after, limit)
		w.meet(start, 0, noParent)
		return w.spread([]uint32{0}, d == registry.Ancestors, depth)
	}
	var both []visit
	for _, up := range []bool{true, false} {
		one, done := w.another()
		if after == 0 {
			one.until(0, limit)
		}
		one.meet(start, 0, noParent)
		if one.spread([]uint32{0}, up, depth) {
			cut = true
		}
		both = append(both, one.order...)
		w.err = cmp.Or(w.err, one.err)
		done()
	}
	slices.SortStableFunc(both, func(a, b visit) int { return cmp.Compare(a.depth, b.depth) })
	w.until(after, limit)
	for _, m := range both {
		if w.meet(m.node, m.depth, noParent); w.done() {
			break
		}
	}
	return cut
}

// walker is one walk through the lineage by one caller.
type walker struct {
	tx
	ctx   context.Context
	lines *graph
	id    access.Identity
	known string // model, see registry.Walk
	kinds uint16 // bit by place in edgeKinds

	readable []int8 // by place in lines.models: 0 is not known yet
	models   map[uint32]registry.Model

	marks *marks
	order []visit

	after  uint32 // node that the page before ended with, or 0
	limit  int    // of a page
	at     int    // its place, or -1 while it was not met
	enough int    // the walk may end when so many were met; 0 while that is not known

	err error
}

// visit is a node that a walk has met, and how.
type visit struct {
	node   uint32
	depth  int32
	parent int32 // place of the node from which it was met
	label  label // of the edge
	up     bool  // the edge begins at the parent
}

const noParent = -1

func (db *DB) walk(ctx context.Context, id access.Identity, fn func(*walker) error) error {
	// Before the view: a view that waits for the graph could keep a change waiting that has to move the file.
	g, done, err := db.hold(ctx)
	if err != nil {
		return err
	}
	defer done()
	return db.view(ctx, func(t tx) error {
		w := &walker{tx: t, ctx: ctx, lines: g, id: id, readable: make([]int8, len(g.models)), models: map[uint32]registry.Model{}, marks: g.newMarks(), at: -1}
		w.look(nil)
		defer func() { g.scratch.Put(w.marks) }()
		if err := fn(w); err != nil {
			return err
		}
		return w.err
	})
}

// look chooses the kinds of edges that the walk follows.
func (w *walker) look(kinds []registry.EdgeKind) {
	w.kinds = 0
	for i, kind := range edgeKinds {
		if slices.Contains(kinds, kind) || len(kinds) == 0 && kind != registry.EvaluatedWith {
			w.kinds |= 1 << i
		}
	}
}

// reads reports whether the caller may read the model at a place.
func (w *walker) reads(place uint32) bool {
	if place == 0 {
		return false
	}
	if w.readable[place] == 0 {
		w.readable[place] = -1
		var m registry.Model
		found, err := w.get(bucketModels, key(w.lines.models[place]), &m)
		if err != nil {
			w.err = err
		}
		if found && (m.ID == w.known || access.CanRead(w.id, &m)) {
			w.readable[place] = 1
			w.models[place] = m
		}
	}
	return w.readable[place] > 0
}

// sees reports whether the caller may know of a node that is its own.
func (w *walker) sees(n uint32) bool {
	switch w.lines.kinds[n] {
	case modelCode:
		return false
	case versionCode:
		return w.reads(w.lines.owners[n])
	}
	return true
}

// shownAs is the node that the caller sees for one: the version that a name stands for, when it may read that.
func (w *walker) shownAs(n uint32) uint32 {
	if w.lines.kinds[n] == namedCode {
		if v, ok := w.lines.versionOf[n]; ok && w.sees(v) {
			return v
		}
	}
	return n
}

// find is the node with that id as the caller sees it. It is 0 for one that no edge names, and false for a version that the caller
// does not see.
func (w *walker) find(id string) (uint32, bool) {
	kind := registry.ParseNodeID(id).Kind
	if kind == "" {
		return 0, false
	}
	n, err := w.number(id)
	if n == 0 && kind == registry.ExternalModelNode && err == nil {
		// No edge names the version so, but it may be there.
		n, err = w.namedVersion(id)
		if int(n) >= len(w.lines.kinds) || !w.sees(uint32(n)) {
			n = 0
		}
	}
	if err != nil {
		w.err = err
		return 0, false
	}
	if n == 0 || int(n) >= len(w.lines.kinds) {
		return 0, kind != registry.VersionNode
	}
	shown := w.shownAs(uint32(n))
	if kind != registry.VersionNode && !w.isNamed(shown) {
		return 0, true // what only others named is as good as not there
	}
	return shown, w.sees(shown)
}

// isNamed reports whether the caller can know that something names the node: it is a version, or at the end of an edge that the caller
// sees.
func (w *walker) isNamed(n uint32) (named bool) {
	if w.lines.kinds[n] == versionCode {
		return true
	}
	all := *w
	all.kinds = 1<<len(edgeKinds) - 1
	for _, up := range []bool{false, true} {
		all.around(n, up, func(uint32, label) bool {
			named = true
			return false
		})
	}
	w.err = all.err
	return named
}

// around calls fn for each edge at n that the caller sees, up to what n came from or down, until fn says that it is enough.
func (w *walker) around(n uint32, up bool, fn func(next uint32, l label) bool) {
	a := &w.lines.in
	if up {
		a = &w.lines.out
	}
	if !w.list(a, n, fn) {
		return
	}
	if name, ok := w.lines.nameOf[n]; ok && w.lines.kinds[n] == versionCode {
		w.list(a, name, fn)
	}
}

func (w *walker) list(a *adjacency, n uint32, fn func(uint32, label) bool) bool {
	for _, edges := range [2][]half{a.packed(n), a.since[n]} {
		for _, h := range edges {
			if w.kinds&(1<<(h.label()>>4)) == 0 || !w.reads(h.owner()) || w.foreign(a, n, h) {
				continue
			}
			next := w.shownAs(h.other)
			if w.sees(next) && !fn(next, h.label()) {
				return false
			}
		}
	}
	return true
}

// foreign reports whether an edge at n begins at a name that is shown as a version of another model than the one that owns the edge: where a version
// came from is for its own model to say, by whatever name it is called.
func (w *walker) foreign(a *adjacency, n uint32, h half) bool {
	from := n
	if a == &w.lines.in {
		from = h.other
	}
	if w.lines.kinds[from] != namedCode {
		return false
	}
	v, ok := w.lines.versionOf[from]
	return ok && h.owner() != w.lines.owners[v] && w.sees(v)
}

// met is around for edges to nodes that the walk has met. Of a node at which many edges end it looks at few.
func (w *walker) met(n uint32, up bool, fn func(next uint32, l label) bool) {
	a := &w.lines.in
	if up {
		a = &w.lines.out
	}
	names := [2]uint32{n, 0}
	if w.lines.kinds[n] == versionCode {
		names[1] = w.lines.nameOf[n]
	}
	for _, name := range names {
		for _, edges := range [2][]half{a.packed(name), a.since[name]} {
			for _, h := range edges {
				next := h.other
				if w.marks.place(next) < 0 && w.lines.kinds[next] == namedCode {
					next = w.lines.versionOf[next]
				}
				if w.marks.place(next) < 0 || w.kinds&(1<<(h.label()>>4)) == 0 || !w.reads(h.owner()) || w.foreign(a, name, h) {
					continue
				}
				if !fn(next, h.label()) {
					return
				}
			}
		}
	}
}

// cursor is the node that the page before ended with.
func (w *walker) cursor(text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	if n, ok := w.find(text); ok && n != 0 {
		return n, w.err
	}
	return 0, badCursor()
}

func badCursor() error {
	return registry.Invalid("cursor", "the cursor is not one that this server gave for this question; begin with the first page")
}

// until lets the walk end when the page behind a node is complete.
func (w *walker) until(after uint32, limit int) {
	w.after, w.limit = after, limit
	if after == 0 {
		w.enough = limit + 1
	}
}

// meet notes that a node was met, unless it was before.
func (w *walker) meet(n uint32, depth int32, by int32) bool {
	if w.marks.place(n) >= 0 {
		return false
	}
	w.marks.set(n, len(w.order))
	if n == w.after {
		w.at = len(w.order)
		w.enough = w.at + 1 + w.limit + 1
	}
	w.order = append(w.order, visit{node: n, depth: depth, parent: by})
	return true
}

// done reports whether the walk need not go on.
func (w *walker) done() bool {
	return w.enough > 0 && len(w.order) >= w.enough || w.err != nil
}

// spread walks breadth first from the nodes at some places, and reports whether there was more below the depth.
func (w *walker) spread(level []uint32, up bool, depth int) (cut bool) {
	for d := int32(1); len(level) > 0 && !w.done(); d++ {
		if int(d) > depth {
			return w.leadsOn(level, up)
		}
		var below []uint32
		for i, place := range level {
			if i%1024 == 0 && w.err == nil {
				w.err = w.ctx.Err()
			}
			w.around(w.order[place].node, up, func(next uint32, l label) bool {
				if w.meet(next, d, int32(place)) {
					m := &w.order[len(w.order)-1]
					m.label, m.up = l, up
					below = append(below, uint32(len(w.order)-1))
				}
				return !w.done()
			})
			if w.done() {
				return false
			}
		}
		level = below
	}
	return false
}

// leadsOn reports whether there is a node beyond the last level.
func (w *walker) leadsOn(level []uint32, up bool) (more bool) {
	for _, place := range level {
		w.around(w.order[place].node, up, func(next uint32, _ label) bool {
			more = w.marks.place(next) < 0
			return !more
		})
		if more {
			break
		}
	}
	return more
}

// page is the part of the walk that was asked for, and whether there is more behind it.
func (w *walker) page(limit int) (page []visit, more bool, err error) {
	if w.after != 0 && w.at < 0 {
		return nil, false, badCursor()
	}
	page = w.order[w.at+1:]
	if len(page) > limit {
		return page[:limit], true, nil
	}
	return page, false, nil
}

// fewEdges is how many edges that end at a node are looked at one by one.
const fewEdges = 64

// ending is how many edges end at a node.
func (g *graph) ending(n uint32) int {
	count := len(g.in.packed(n)) + len(g.in.since[n])
	if name, ok := g.nameOf[n]; ok {
		count += len(g.in.packed(name)) + len(g.in.since[name])
	}
	return count
}

// fill shows a page of the walk: its nodes, and the edges that join them with each other and with those of the pages before.
func (w *walker) fill(g *registry.Graph, page []visit) error {
	revoked, done := w.revoked()
	defer done()
	g.Nodes = slices.Grow(g.Nodes, len(page))
	ids := make([]string, len(w.order)) // by place
	for _, m := range page {
		n, ok, err := w.show(m.node)
		if err != nil {
			return err
		}
		if ok {
			ids[w.marks.place(m.node)] = n.ID
			n.RevokedAncestor = revoked(m.node)
			g.Nodes = append(g.Nodes, n)
		}
	}
	id := func(n uint32) string {
		at := &ids[w.marks.place(n)]
		if *at == "" {
			shown, _, err := w.show(n)
			if err != nil {
				w.err = err
			}
			*at = shown.ID
		}
		return *at
	}
	g.Edges = slices.Grow(g.Edges, len(page))
	add := func(from, to uint32, l label) bool {
		if len(g.Edges) == registry.MaxLineageEdges {
			g.Truncated = true
			return false
		}
		if a, b := id(from), id(to); a != "" && b != "" {
			g.Edges = append(g.Edges, registry.LineageEdge{From: a, To: b, Kind: l.kind(), Relation: l.relation()})
		}
		return true
	}
	// Where many edges end, those that begin at what the walk has met are fewer.
	last, hubs := 0, map[uint32]bool{}
	for _, m := range page {
		place := w.marks.place(m.node)
		w.met(m.node, true, func(next uint32, l label) bool { return w.marks.place(next) > place || add(m.node, next, l) })
		if w.lines.ending(m.node) > fewEdges {
			last, hubs[m.node] = max(last, place), true
			continue
		}
		w.met(m.node, false, func(next uint32, l label) bool { return w.marks.place(next) >= place || add(next, m.node, l) })
	}
	for place, m := range w.order[:last] {
		w.met(m.node, true, func(next uint32, l label) bool {
			return !hubs[next] || w.marks.place(next) <= place || add(m.node, next, l)
		})
	}
	slices.SortFunc(g.Edges, compareEdges)
	g.Edges = slices.Compact(g.Edges) // models may say the same of things that are not theirs
	return w.err
}

// revoked finds the nearest revoked version that a node came from, or nothing. The caller calls done.
func (w *walker) revoked() (above func(n uint32) string, done func()) {
	if len(w.lines.revoked) == 0 {
		return func(uint32) string { return "" }, func() {}
	}
	below, done := w.another()
	below.look(nil)
	var level []uint32
	for _, n := range slices.Sorted(maps.Keys(w.lines.revoked)) {
		if w.sees(n) {
			below.meet(n, 0, noParent)
			level = append(level, uint32(len(level)))
		}
	}
	below.spread(level, false, noDepth)
	w.err = cmp.Or(w.err, below.err)
	return func(n uint32) string {
		place := below.marks.place(n)
		if place < 0 || below.order[place].parent == noParent {
			return ""
		}
		for below.order[place].parent != noParent {
			place = int(below.order[place].parent)
		}
		shown, _, err := w.show(below.order[place].node)
		w.err = cmp.Or(w.err, err)
		return shown.ID
	}, done
}

// show is a node as the caller sees it, and false for one that the transaction does not know.
func (w *walker) show(n uint32) (registry.Node, bool, error) {
	row, found, err := w.node(nodeNumber(n))
	if err != nil || !found {
		return registry.Node{}, false, err
	}
	if row.kind != versionCode {
		shown, err := w.named(registry.ParseNodeID(row.name))
		return shown, true, err
	}
	tag, err := registry.ParseTag(row.name)
	if err != nil {
		return registry.Node{}, false, nil
	}
	place := w.lines.owners[n]
	if !w.reads(place) || row.state == 0 {
		return registry.Node{}, false, w.err
	}
	m := w.models[place]
	return registry.Node{
		ID: registry.VersionNodeID(m.ID, tag), Kind: registry.VersionNode,
		Model: m.Name.String(), Tag: tag, State: stateNames[row.state], Commit: row.commit, PublishedAt: row.published,
	}, true, nil
}

// named says of the name of a model, when it has no revision, what model of this server it names.
func (w *walker) named(n registry.Node) (registry.Node, error) {
	if n.Kind != registry.ExternalModelNode || strings.Contains(n.Name, "@") {
		return n, nil
	}
	var m registry.Model
	found, err := modelByName(w.tx, n.Name, &m)
	if err == nil && found && (m.ID == w.known || access.CanRead(w.id, &m)) {
		n.Model = m.Name.String()
	}
	return n, err
}

func compareEdges(a, b registry.LineageEdge) int {
	return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Relation, b.Relation))
}
