package index

import (
	"cmp"
	"context"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/herdbook/herdbook/registry"
)

// graph is the lineage in memory, so that a walk over many nodes reads arrays and the file only for what it shows. It is made from the
// file when the first question comes and grows with every group that is applied. Nothing is ever taken out of it: what belongs
// to a model that was deleted is left out when a walk meets it, as what the caller may not read is.
//
// A million versions with two million edges take some 50 MB.
type graph struct {
	mu      sync.RWMutex
	built   bool
	backlog backlog[growth]

	kinds  []nodeCode // by node number, as owners is
	owners []uint32   // of a version: its model, as a place in models
	models []string   // ids; the first is of no model
	places map[nodeNumber]uint32

	out, in adjacency

	// A version and the name by which cards may call it.
	versionOf, nameOf map[uint32]uint32

	revoked map[uint32]bool

	scratch sync.Pool // *marks
}

// adjacency are the edges at each node, in the order in which they came: most of them packed, and those that came since.
type adjacency struct {
	start []uint32 // where the edges of a node begin; those of the last node end where edges does
	edges []half
	since map[uint32][]half
	added int
}

// half is an edge as one of its ends has it.
type half struct {
	other uint32
	rest  uint32 // owner, as a place in graph.models, and label
}

// maxOwners is how many models the graph tells apart. What more there are own nothing that anybody sees.
const maxOwners = 1 << 24

func newHalf(other nodeNumber, owner uint32, l label) half {
	return half{uint32(other), owner<<8 | uint32(l)}
}

func (h half) owner() uint32 { return h.rest >> 8 }

func (h half) label() label { return label(h.rest) }

// growth is what a transaction adds to the graph, when it is kept.
type growth struct {
	nodes   []grownNode
	edges   []edgeRow
	aliases [][2]nodeNumber // version, name
}

type grownNode struct {
	number nodeNumber
	row    nodeRow
}

func (g *growth) node(n nodeNumber, r nodeRow) { g.nodes = append(g.nodes, grownNode{n, r}) }

func (g *growth) edge(e edgeRow) { g.edges = append(g.edges, e) }

func (g *growth) alias(version, name nodeNumber) {
	g.aliases = append(g.aliases, [2]nodeNumber{version, name})
}

func (g *graph) grow(by growth) {
	if len(by.nodes)+len(by.edges)+len(by.aliases) == 0 {
		return
	}
	if g.backlog.add(by) && g.mu.TryLock() {
		g.takeIn()
		g.mu.Unlock()
	}
}

// takeIn adds what came since the graph was read last. The caller holds the lock.
func (g *graph) takeIn() {
	if !g.built {
		return
	}
	for _, by := range g.backlog.take() {
		g.add(by)
	}
}

func (g *graph) add(by growth) {
	for _, n := range by.nodes {
		g.addNode(n.number, n.row)
	}
	for _, e := range by.edges {
		owner := g.places[e.owner]
		g.out.add(uint32(e.this), newHalf(e.other, owner, e.label))
		g.in.add(uint32(e.other), newHalf(e.this, owner, e.label))
	}
	for _, a := range by.aliases {
		g.versionOf[uint32(a[1])], g.nameOf[uint32(a[0])] = uint32(a[0]), uint32(a[1])
	}
	g.out.pack(len(g.kinds))
	g.in.pack(len(g.kinds))
}

func (g *graph) addNode(n nodeNumber, r nodeRow) {
	for len(g.kinds) <= int(n) {
		g.kinds, g.owners = append(g.kinds, otherCode), append(g.owners, 0)
	}
	g.kinds[n] = r.kind
	switch r.kind {
	case modelCode:
		if _, known := g.places[n]; !known && len(g.models) < maxOwners {
			g.places[n] = uint32(len(g.models))
			g.models = append(g.models, r.name)
		}
	case versionCode:
		g.owners[n] = g.places[r.owner]
		if r.state == 0 {
			g.kinds[n] = modelCode // nothing that is shown
		}
		if stateNames[r.state] == registry.Revoked {
			g.revoked[uint32(n)] = true
		}
	}
}

func (a *adjacency) add(n uint32, h half) {
	if a.since == nil {
		a.since = map[uint32][]half{}
	}
	a.since[n] = append(a.since[n], h)
	a.added++
}

// packed are the edges of a node that are packed.
func (a *adjacency) packed(n uint32) []half {
	if int(n) >= len(a.start) {
		return nil
	}
	end := len(a.edges)
	if int(n)+1 < len(a.start) {
		end = int(a.start[n+1])
	}
	return a.edges[a.start[n]:end]
}

// minPack is how many edges come before they are packed, while there are few.
const minPack = 1 << 12

// pack takes in what came since, when it is a good part of the whole.
func (a *adjacency) pack(nodes int) {
	if a.added < minPack || a.added < len(a.edges)/4 {
		return
	}
	start, edges := make([]uint32, nodes), make([]half, 0, len(a.edges)+a.added)
	for n := range uint32(nodes) {
		start[n] = uint32(len(edges))
		edges = append(append(edges, a.packed(n)...), a.since[n]...)
	}
	a.start, a.edges, a.since, a.added = start, edges, nil, 0
}

// hold gives the graph for reading, made when it is not there yet. The caller calls done.
func (db *DB) hold(ctx context.Context) (g *graph, done func(), err error) {
	g = &db.graph
	g.mu.RLock()
	if g.built && g.backlog.none() {
		return g, g.mu.RUnlock, nil
	}
	g.mu.RUnlock()
	if err := db.buildGraph(ctx); err != nil {
		return nil, nil, err
	}
	g.mu.RLock()
	return g, g.mu.RUnlock, nil
}

// buildGraph reads the graph from the file, if it is not there, and takes in what came since. What is applied while it reads may then be there
// twice.
func (db *DB) buildGraph(ctx context.Context) error {
	g := &db.graph
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.takeIn()
	if g.built {
		return nil
	}
	g.backlog.want()
	g.places, g.models = map[nodeNumber]uint32{}, []string{""}
	g.versionOf, g.nameOf, g.revoked = map[uint32]uint32{}, map[uint32]uint32{}, map[uint32]bool{}
	g.kinds, g.owners = []nodeCode{otherCode}, []uint32{0}
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketNodes, nil, nil) {
			if err := r.check(); err != nil {
				return err
			}
			row, err := decodeNode(r.value[sum:])
			if err != nil {
				return err
			}
			g.addNode(numberOf(r.key), row)
		}
		for r := range t.scan(bucketSame, nil, nil) {
			if err := r.check(); err != nil {
				return err
			}
			g.add(growth{aliases: [][2]nodeNumber{{numberOf(r.key[8:]), numberOf(r.key)}}})
		}
		var err error
		if g.out, err = readAdjacency(t, bucketOut, g); err != nil {
			return err
		}
		g.in, err = readAdjacency(t, bucketIn, g)
		return err
	})
	if g.built = err == nil; !g.built {
		g.backlog.stop()
	}
	return err
}

func readAdjacency(t tx, bucket string, g *graph) (adjacency, error) {
	var a adjacency
	a.edges = make([]half, 0, keys(t.bolt, bucket))
	type placed struct {
		half
		seq uint64
	}
	var here []placed
	at := uint32(0)
	flush := func() {
		slices.SortFunc(here, func(x, y placed) int { return cmp.Compare(x.seq, y.seq) })
		for _, p := range here {
			a.edges = append(a.edges, p.half)
		}
		here = here[:0]
	}
	a.start = make([]uint32, 1, len(g.kinds))
	for r := range t.scan(bucket, nil, nil) {
		e, seq, err := decodeEdge(r)
		if err != nil {
			return a, err
		}
		if n := uint32(e.this); n != at {
			flush()
			for ; at < n; at++ {
				a.start = append(a.start, uint32(len(a.edges)))
			}
		}
		here = append(here, placed{newHalf(e.other, g.places[e.owner], e.label), seq})
	}
	flush()
	for ; int(at)+1 < len(g.kinds); at++ {
		a.start = append(a.start, uint32(len(a.edges)))
	}
	return a, nil
}

// keys is about how many rows a bucket has.
func keys(b *bolt.Tx, bucket string) int { return int(b.Bucket([]byte(bucket)).Sequence()) }

// marks say of each node whether a walk has met it, and where in the walk. They are used again and again: a place counts when it lies
// above base.
type marks struct {
	places []uint32
	base   uint32
	used   uint32
}

func (g *graph) newMarks() *marks {
	m, _ := g.scratch.Get().(*marks)
	if m == nil {
		m = &marks{}
	}
	if len(m.places) < len(g.kinds) {
		m.places, m.base, m.used = make([]uint32, len(g.kinds)+len(g.kinds)/8), 0, 0
	}
	m.base, m.used = m.base+m.used, 0
	if m.base > 1<<31 {
		clear(m.places)
		m.base = 0
	}
	return m
}

// place is where in the walk the node was met, from 0, or -1.
func (m *marks) place(n uint32) int {
	if p := m.places[n]; p > m.base {
		return int(p - m.base - 1)
	}
	return -1
}

func (m *marks) set(n uint32, place int) {
	m.places[n] = m.base + uint32(place) + 1
	m.used = max(m.used, uint32(place)+1)
}
