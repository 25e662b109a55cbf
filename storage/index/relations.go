package index

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// noDepth is the depth of a walk that goes as far as there is something.
const noDepth = 1 << 30

// Path is the shortest way from one node to another: one came from the other, or both from a third, which is the nearest that they have
// in common. It goes through nothing that id may not read. A version that id does not see is registry.ErrNotFound.
func (db *DB) Path(ctx context.Context, id access.Identity, from, to string) (registry.Path, error) {
	path := registry.Path{Nodes: []registry.Node{}, Edges: []registry.LineageEdge{}}
	err := db.walk(ctx, id, func(w *walker) error {
		a, err := w.start(from)
		if err != nil {
			return err
		}
		b, err := w.start(to)
		if err != nil {
			return err
		}
		if a == 0 || b == 0 {
			if from != to { // of which one is in no lineage
				return nil
			}
			n, err := w.named(registry.ParseNodeID(from))
			path.Nodes = append(path.Nodes, n)
			return err
		}
		w.until(b, -1)
		w.meet(a, 0, noParent)
		w.spread([]uint32{0}, true, noDepth)
		if place := w.marks.place(b); place >= 0 {
			return w.tell(&path, w.back(place), true)
		}
		other, done := w.another()
		defer done()
		other.meet(b, 0, noParent)
		other.spread([]uint32{0}, true, noDepth)
		if err := cmp.Or(w.err, other.err); err != nil {
			return err
		}
		if place := other.marks.place(a); place >= 0 {
			way := other.back(place)
			slices.Reverse(way)
			return w.tell(&path, way, false)
		}
		best, sum := -1, 0
		for place, m := range other.order {
			at := w.marks.place(m.node)
			if at < 0 {
				continue
			}
			if d := int(m.depth + w.order[at].depth); best < 0 || d < sum {
				best, sum = place, d
			}
		}
		if best < 0 {
			return nil
		}
		meeting := other.order[best].node
		up, down := w.back(w.marks.place(meeting)), other.back(best)
		if err := w.tell(&path, up, true); err != nil {
			return err
		}
		shown, _, err := w.show(meeting)
		if err != nil {
			return err
		}
		path.Common = shown.ID
		slices.Reverse(down)
		return w.tell(&path, down, false)
	})
	return path, err
}

// start is the node where a question begins. It is 0 for one that no edge names.
func (w *walker) start(id string) (uint32, error) {
	n, ok := w.find(id)
	if w.err != nil {
		return 0, w.err
	}
	if !ok {
		return 0, fmt.Errorf("node %.200q: %w", id, registry.ErrNotFound)
	}
	return n, nil
}

// another is a walk of the same caller with marks of its own.
func (w *walker) another() (*walker, func()) {
	other := *w
	other.marks, other.order, other.after, other.enough = w.lines.newMarks(), nil, 0, 0
	return &other, func() { w.lines.scratch.Put(other.marks) }
}

// back is the way that a walk took to a place, from its start.
func (w *walker) back(place int) []visit {
	var way []visit
	for ; place != noParent; place = int(w.order[place].parent) {
		way = append(way, w.order[place])
	}
	slices.Reverse(way)
	return way
}

// tell adds a way to a path: up from its first node to what it came from, or down. The first is left out when the path ends with
// it.
func (w *walker) tell(path *registry.Path, way []visit, up bool) error {
	for i, m := range way {
		n, ok, err := w.show(m.node)
		if err != nil || !ok {
			return err
		}
		if len(path.Nodes) == 0 {
			path.Nodes = append(path.Nodes, n)
			continue
		}
		last := path.Nodes[len(path.Nodes)-1]
		if last.ID == n.ID {
			continue
		}
		if len(path.Nodes) == registry.MaxLineageNodes {
			path.Truncated = true
			return nil
		}
		// The label of an edge is kept at the node that was met by it.
		e := registry.LineageEdge{From: last.ID, To: n.ID, Kind: m.label.kind(), Relation: m.label.relation()}
		if !up {
			l := way[i-1].label
			e = registry.LineageEdge{From: n.ID, To: last.ID, Kind: l.kind(), Relation: l.relation()}
		}
		path.Nodes, path.Edges = append(path.Nodes, n), append(path.Edges, e)
	}
	return nil
}

// Impact is a page of what came from something, at whatever distance, the nearest first, with the environments that hold it now. What
// id may not read is left out, and nothing is told of it.
func (db *DB) Impact(ctx context.Context, id access.Identity, of registry.Concern, at registry.Page) (registry.Impact, error) {
	impact := registry.Impact{Items: []registry.Affected{}, Running: []registry.Running{}}
	err := db.walk(ctx, id, func(w *walker) error {
		starts, err := w.concerned(of)
		if err != nil {
			return err
		}
		from, err := w.cursor(at.Cursor)
		if err != nil {
			return err
		}
		if from != 0 { // what runs is known when the whole walk was made, and that is told on the first page
			w.until(from, at.Bound())
		}
		var level []uint32
		for _, n := range starts {
			if w.meet(n, 0, noParent) {
				level = append(level, uint32(len(w.order)-1))
			}
		}
		w.spread(level, false, noDepth)
		if w.err != nil {
			return w.err
		}
		environments := map[uint32]map[string][]registry.EnvironmentName{}
		if from == 0 {
			if impact.Running, err = w.running(environments, &impact.Truncated); err != nil {
				return err
			}
		}
		page, more, err := w.page(at.Bound())
		if err != nil {
			return err
		}
		revoked, done := w.revoked()
		defer done()
		for _, m := range page {
			n, ok, err := w.show(m.node)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			n.RevokedAncestor = revoked(m.node)
			impact.Next = n.ID
			if m.depth == 0 && n.Kind != registry.VersionNode {
				continue // it is what was asked about
			}
			item := registry.Affected{Node: n, Depth: int(m.depth)}
			if n.Kind == registry.VersionNode {
				held, err := w.environments(environments, w.lines.owners[m.node])
				if err != nil {
					return err
				}
				item.Environments = held[n.Tag.String()]
			}
			impact.Items = append(impact.Items, item)
		}
		if impact.Truncated = impact.Truncated || more; !more {
			impact.Next = ""
		}
		return nil
	})
	return impact, err
}

// environments are what the environments of a model hold: their names by tag.
func (w *walker) environments(known map[uint32]map[string][]registry.EnvironmentName, owner uint32) (map[string][]registry.EnvironmentName, error) {
	held, ok := known[owner]
	if ok {
		return held, nil
	}
	states, err := all[registry.EnvironmentState](w.tx, bucketEnvironments, prefix(w.lines.models[owner]))
	if err != nil {
		return nil, err
	}
	held = map[string][]registry.EnvironmentName{}
	for _, s := range states {
		if tag := s.Version(); !tag.IsZero() {
			held[tag.String()] = append(held[tag.String()], s.Name)
		}
	}
	known[owner] = held
	return held, nil
}

// running is what the walk met and some environment holds, by model, environment and tag. It sets cut when there is more than an answer holds.
func (w *walker) running(known map[uint32]map[string][]registry.EnvironmentName, cut *bool) ([]registry.Running, error) {
	running := []registry.Running{}
	asked := map[uint32]bool{}
	for _, m := range w.order {
		if w.lines.kinds[m.node] != versionCode || asked[w.lines.owners[m.node]] {
			continue
		}
		owner := w.lines.owners[m.node]
		asked[owner] = true
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		held, err := w.environments(known, owner)
		if err != nil {
			return nil, err
		}
		if len(held) == 0 {
			continue
		}
		model := w.models[owner]
		states, err := all[registry.EnvironmentState](w.tx, bucketEnvironments, prefix(model.ID))
		if err != nil {
			return nil, err
		}
		for _, s := range states {
			if s.Current == nil {
				continue
			}
			n, err := w.number(registry.VersionNodeID(model.ID, s.Version()))
			if err != nil {
				return nil, err
			}
			if n == 0 || int(n) >= len(w.lines.kinds) || w.marks.place(uint32(n)) < 0 {
				continue
			}
			row, _, err := w.node(n)
			if err != nil {
				return nil, err
			}
			running = append(running, registry.Running{
				Model: model.Name.String(), Tag: s.Version(), Environment: s.Name, State: stateNames[row.state], Since: s.Current.At,
			})
		}
	}
	slices.SortFunc(running, func(a, b registry.Running) int {
		return cmp.Or(strings.Compare(a.Model, b.Model), strings.Compare(a.Environment.String(), b.Environment.String()))
	})
	if len(running) > registry.MaxLineageNodes {
		running, *cut = running[:registry.MaxLineageNodes], true
	}
	return running, nil
}

// concerned are the nodes that an impact is asked for.
func (w *walker) concerned(of registry.Concern) ([]uint32, error) {
	switch {
	case of.Node != "":
		n, err := w.start(of.Node)
		return some(n), err
	case of.Dataset != "":
		n, err := w.start(registry.DatasetNodeID(of.Dataset))
		return some(n), err
	case of.Model != "":
		return w.concernedModel(of.Model)
	case of.Digest != "":
		return w.holding(of.Digest)
	}
	return nil, registry.Invalid("node", "say what the impact is asked for: node, dataset, model or digest")
}

func some(n uint32) []uint32 {
	if n == 0 {
		return nil
	}
	return []uint32{n}
}

// concernedModel are a model by its name, in whatever way cards name it, and its versions.
func (w *walker) concernedModel(name string) ([]uint32, error) {
	id := registry.ExternalModelNodeID(name, "")
	n, err := w.start(id)
	if err != nil {
		return nil, err
	}
	nodes := some(n)
	if strings.Contains(name, "@") {
		return nodes, nil
	}
	add := func(p []byte) error {
		for r := range w.scan(bucketNodeIDs, p, nil) {
			if err := r.check(); err != nil {
				return err
			}
			n := numberOf(r.value[sum:])
			if int(n) >= len(w.lines.kinds) {
				continue
			}
			if shown := w.shownAs(uint32(n)); w.sees(shown) && w.isNamed(shown) {
				nodes = append(nodes, shown)
			}
		}
		return w.err
	}
	var m registry.Model
	found, err := modelByName(w.tx, name, &m)
	if err != nil {
		return nil, err
	}
	if found && access.CanRead(w.id, &m) {
		if err := add([]byte("version:" + m.ID + ":")); err != nil {
			return nil, err
		}
	}
	return nodes, add([]byte(id + "@"))
}

// holding are the versions that have a file with these bytes.
func (w *walker) holding(d digest.Digest) ([]uint32, error) {
	var nodes []uint32
	err := w.holders(d, func(v registry.VersionRecord) error {
		n, err := w.number(registry.VersionNodeID(v.ModelID, v.Version.Tag))
		if n != 0 && int(n) < len(w.lines.kinds) {
			nodes = append(nodes, uint32(n))
		}
		return err
	})
	slices.Sort(nodes)
	return nodes, err
}

// holders calls fn with each version that has a file with these bytes, of the models that the caller may read, in the order of their
// ids.
func (w *walker) holders(d digest.Digest, fn func(registry.VersionRecord) error) error {
	p := prefix(d.String())
	for r := range w.scan(bucketOwners, p, nil) {
		if err := r.check(); err != nil {
			return err
		}
		var m registry.Model
		found, err := w.get(bucketModels, r.key[len(p):], &m)
		if err != nil {
			return err
		}
		if !found || !access.CanRead(w.id, &m) {
			continue
		}
		for r := range w.scan(bucketVersions, prefix(m.ID), nil) {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			var v registry.VersionRecord
			if err := r.decode(&v); err != nil {
				return err
			}
			if slices.ContainsFunc(v.Version.Files, func(f registry.File) bool { return f.Digest == d }) {
				if err := fn(v); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// LineageDiff is a page of what two nodes came from, and which of the two: first the ancestors of a, the nearest first, then those of b alone.
func (db *DB) LineageDiff(ctx context.Context, id access.Identity, a, b string, at registry.Page) (items []registry.Related, next string, err error) {
	items = []registry.Related{}
	err = db.walk(ctx, id, func(w *walker) error {
		first, err := w.start(a)
		if err != nil {
			return err
		}
		second, err := w.start(b)
		if err != nil {
			return err
		}
		from, err := w.cursor(at.Cursor)
		if err != nil {
			return err
		}
		other, done := w.another()
		defer done()
		for wk, n := range map[*walker]uint32{w: first, other: second} {
			if n != 0 {
				wk.meet(n, 0, noParent)
				wk.spread([]uint32{0}, true, noDepth)
			}
			if wk.err != nil {
				return wk.err
			}
		}
		all := slices.Clone(w.order)
		for _, m := range other.order {
			if w.marks.place(m.node) < 0 {
				all = append(all, m)
			}
		}
		if from != 0 {
			i := slices.IndexFunc(all, func(m visit) bool { return m.node == from })
			if i < 0 {
				return badCursor()
			}
			all = all[i+1:]
		}
		for _, m := range all {
			n, ok, err := w.show(m.node)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if len(items) == at.Bound() {
				next = items[len(items)-1].ID
				return nil
			}
			items = append(items, registry.Related{Node: n, In: membership(w.marks.place(m.node) >= 0, other.marks.place(m.node) >= 0)})
		}
		return nil
	})
	return items, next, err
}

func membership(inA, inB bool) registry.Membership {
	switch {
	case inA && inB:
		return registry.InAB
	case inA:
		return registry.OnlyA
	}
	return registry.OnlyB
}

// Shared is a page of the files of a version whose bytes other models have too that id may read: the largest first, then by path and the other
// model's name.
func (db *DB) Shared(ctx context.Context, id access.Identity, modelID string, tag registry.Tag, at registry.Page) (items []registry.SharedFile, next string, err error) {
	items = []registry.SharedFile{}
	// It walks no lineage: what it reads can take long, and would keep the graph from growing.
	err = db.view(ctx, func(t tx) error {
		w := &walker{tx: t, ctx: ctx, id: id}
		var v registry.VersionRecord
		found, err := w.get(bucketVersions, key(modelID, tag.String()), &v)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("version %s: %w", tag, registry.ErrNotFound)
		}
		files := slices.Clone(v.Version.Files)
		slices.SortStableFunc(files, func(a, b registry.File) int {
			return cmp.Or(cmp.Compare(b.SizeBytes, a.SizeBytes), strings.Compare(a.Path, b.Path))
		})
		path, after, err := sharedCursor(at.Cursor)
		if err != nil {
			return err
		}
		if path != "" {
			i := slices.IndexFunc(files, func(f registry.File) bool { return f.Path == path })
			if i < 0 {
				return badCursor()
			}
			files = files[i:]
		}
		for _, f := range files {
			others, err := w.others(f, modelID)
			if err != nil {
				return err
			}
			for _, s := range others {
				if f.Path == path && s.Model.String() <= after {
					continue
				}
				if len(items) == at.Bound() {
					last := items[len(items)-1]
					next = base64.RawURLEncoding.EncodeToString([]byte(last.Path + "\x00" + last.Model.String()))
					return w.sharing(items)
				}
				items = append(items, s)
			}
		}
		return w.sharing(items)
	})
	return items, next, err
}

func sharedCursor(text string) (path, model string, err error) {
	if text == "" {
		return "", "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	path, model, ok := strings.Cut(string(raw), "\x00")
	if err != nil || !ok || path == "" {
		return "", "", badCursor()
	}
	return path, model, nil
}

// others are the other models that have the bytes of a file, by name.
func (w *walker) others(f registry.File, modelID string) ([]registry.SharedFile, error) {
	var found []registry.SharedFile
	if f.SizeBytes == 0 {
		return nil, nil // all empty files are the same
	}
	p := prefix(f.Digest.String())
	for r := range w.scan(bucketOwners, p, nil) {
		if err := r.check(); err != nil {
			return nil, err
		}
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		var m registry.Model
		ok, err := w.get(bucketModels, r.key[len(p):], &m)
		if err != nil {
			return nil, err
		}
		if ok && m.ID != modelID && access.CanRead(w.id, &m) {
			found = append(found, registry.SharedFile{Path: f.Path, Digest: f.Digest, SizeBytes: f.SizeBytes, Model: m.Name, Versions: []registry.Tag{}})
		}
	}
	slices.SortFunc(found, func(a, b registry.SharedFile) int { return strings.Compare(a.Model.String(), b.Model.String()) })
	return found, nil
}

// sharing finds the versions of the other models that have the files. Each model's are read once.
func (w *walker) sharing(items []registry.SharedFile) error {
	byModel := map[registry.ModelName]map[digest.Digest][]int{}
	for i, item := range items {
		if byModel[item.Model] == nil {
			byModel[item.Model] = map[digest.Digest][]int{}
		}
		byModel[item.Model][item.Digest] = append(byModel[item.Model][item.Digest], i)
	}
	for name, places := range byModel {
		var m registry.Model
		if found, err := modelByName(w.tx, name.String(), &m); err != nil || !found {
			return err
		}
		for r := range w.scan(bucketVersions, prefix(m.ID), nil) {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			var v registry.VersionRecord
			if err := r.decode(&v); err != nil {
				return err
			}
			had := map[digest.Digest]bool{}
			for _, f := range v.Version.Files {
				if had[f.Digest] {
					continue
				}
				had[f.Digest] = true
				for _, i := range places[f.Digest] {
					items[i].Versions = append(items[i].Versions, v.Version.Tag)
				}
			}
		}
	}
	for i := range items {
		tags := items[i].Versions
		slices.SortFunc(tags, func(a, b registry.Tag) int { return b.Compare(a) })
		items[i].Versions = tags[:min(len(tags), registry.MaxSharedVersions)]
	}
	return nil
}

// Reached are those of some nodes that a node came from, or is, on ways that go through nothing that id may not read.
func (db *DB) Reached(ctx context.Context, id access.Identity, start string, among []string) (map[string]bool, error) {
	reached := map[string]bool{}
	err := db.walk(ctx, id, func(w *walker) error {
		a, ok := w.find(start)
		if w.err != nil || !ok || a == 0 {
			return w.err
		}
		w.meet(a, 0, noParent)
		w.spread([]uint32{0}, true, noDepth)
		for _, to := range among {
			if b, ok := w.find(to); ok && b != 0 && w.marks.place(b) >= 0 {
				reached[to] = true
			}
		}
		return w.err
	})
	return reached, err
}

// Way is the shortest way from a node up to one that it came from, or is; empty when there is none that id may read.
func (db *DB) Way(ctx context.Context, id access.Identity, from, to string) ([]registry.Node, error) {
	var path registry.Path
	err := db.walk(ctx, id, func(w *walker) error {
		a, ok := w.find(from)
		b, there := w.find(to)
		if w.err != nil || !ok || !there || a == 0 || b == 0 {
			return w.err
		}
		w.until(b, -1)
		w.meet(a, 0, noParent)
		w.spread([]uint32{0}, true, noDepth)
		if w.marks.place(b) < 0 {
			return w.err
		}
		return w.tell(&path, w.back(w.marks.place(b)), true)
	})
	return path.Nodes, err
}
