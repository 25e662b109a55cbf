package index

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// Nodes of lineage have numbers, given in the order in which the journal first names them, so that edges are short and a walk is over
// arrays. The numbers are the index's own and never told: they count what a caller may not read too.

// nodeNumber is the number of a node; none has the number 0.
type nodeNumber uint64

// nodeRow is what is known of a node. It is kept as
//
//	kind (1) | state (1) | owner (8) | published, in ns of Unix time (8) | length of the commit (1) | commit | name
//
// where the name is a version's tag, a model's id, and the whole id of any other node.
type nodeRow struct {
	kind      nodeCode
	state     stateCode
	owner     nodeNumber // of a version: the node of its model
	published time.Time
	commit    registry.ObjectID
	name      string
}

// nodeCode says in a byte what a node is. The codes are in the file: they are only ever added to.
type nodeCode byte

const (
	otherCode   nodeCode = 0
	versionCode nodeCode = 1
	modelCode   nodeCode = 2 // a model of this server, by its id: it owns edges, and no edge leads to it
	namedCode   nodeCode = 3 // a model by its name
)

// stateCode says in a byte what state a version is in. 0 is one that edges name and that was not published.
type stateCode byte

// stateNames are the states by their code.
var stateNames = []registry.VersionState{"", registry.Published, registry.Deprecated, registry.Quarantined, registry.Revoked}

func codeOfState(s registry.VersionState) stateCode {
	return stateCode(max(0, slices.Index(stateNames, s)))
}

const nodeHead = 1 + 1 + 8 + 8 + 1

func (r nodeRow) encode() []byte {
	b := make([]byte, 0, nodeHead+len(r.commit)+len(r.name))
	b = append(b, byte(r.kind), byte(r.state))
	b = binary.BigEndian.AppendUint64(b, uint64(r.owner))
	var at int64
	if !r.published.IsZero() {
		at = r.published.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = append(b, byte(len(r.commit)))
	b = append(b, r.commit...)
	return append(b, r.name...)
}

func decodeNode(b []byte) (nodeRow, error) {
	if len(b) < nodeHead || len(b) < nodeHead+int(b[nodeHead-1]) || int(b[1]) >= len(stateNames) {
		return nodeRow{}, fmt.Errorf("a node of %d bytes: %w", len(b), ErrDamaged)
	}
	r := nodeRow{kind: nodeCode(b[0]), state: stateCode(b[1]), owner: nodeNumber(binary.BigEndian.Uint64(b[2:]))}
	if at := int64(binary.BigEndian.Uint64(b[10:])); at != 0 {
		r.published = time.Unix(0, at).UTC()
	}
	rest := b[nodeHead:]
	n := int(b[nodeHead-1])
	r.commit, r.name = registry.ObjectID(rest[:n]), string(rest[n:])
	return r, nil
}

func numberOf(k []byte) nodeNumber { return nodeNumber(binary.BigEndian.Uint64(k)) }

func (n nodeNumber) key() []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// node reads a node. It is the zero row when there is none.
func (t tx) node(n nodeNumber) (nodeRow, bool, error) {
	data, err := t.bytes(bucketNodes, n.key())
	if err != nil || data == nil {
		return nodeRow{}, false, err
	}
	r, err := decodeNode(data)
	return r, err == nil, err
}

func (t tx) putNode(n nodeNumber, r nodeRow) error {
	return t.putBytes(bucketNodes, n.key(), r.encode())
}

// number is the number of the node with that id, or 0.
func (t tx) number(id string) (nodeNumber, error) {
	data, err := t.bytes(bucketNodeIDs, []byte(id))
	if err != nil || data == nil {
		return 0, err
	}
	if len(data) != 8 {
		return 0, fmt.Errorf("the number of node %q: %w", id, ErrDamaged)
	}
	return nodeNumber(binary.BigEndian.Uint64(data)), nil
}

// modelNodeID is the id of the node of a model of this server, which no edge can name.
func modelNodeID(modelID string) string { return "\x01" + modelID }

// ensureNode is the number of the node with that id, which gets one when it has none.
func (t tx) ensureNode(id string) (nodeNumber, error) {
	if n, err := t.number(id); err != nil || n != 0 {
		return n, err
	}
	row := nodeRow{name: id}
	if modelID, ok := strings.CutPrefix(id, modelNodeID("")); ok {
		row.kind, row.name = modelCode, modelID
	} else if modelID, tag, ok := registry.ParseVersionNodeID(id); ok {
		owner, err := t.ensureNode(modelNodeID(modelID))
		if err != nil {
			return 0, err
		}
		row.kind, row.name, row.owner = versionCode, tag.String(), owner
	} else if strings.HasPrefix(id, "model:") {
		row.kind = namedCode
	}
	seq, err := t.next(bucketNodes)
	if err != nil {
		return 0, err
	}
	n := nodeNumber(seq)
	if err := t.putNode(n, row); err != nil {
		return 0, err
	}
	if err := t.putBytes(bucketNodeIDs, []byte(id), n.key()); err != nil {
		return 0, err
	}
	t.grown.node(n, row)
	if row.kind != namedCode {
		return n, nil
	}
	// The version that it names may be there already.
	version, err := t.namedVersion(id)
	if err != nil || version == 0 {
		return n, err
	}
	return n, t.join(version, n)
}

// namedVersion is the published version that the id of a named model stands for now, or 0.
func (t tx) namedVersion(id string) (nodeNumber, error) {
	name, revision, ok := strings.Cut(registry.ParseNodeID(id).Name, "@")
	if !ok {
		return 0, nil
	}
	tag, err := registry.ParseTag(revision)
	if err != nil {
		return 0, nil
	}
	var m registry.Model
	if found, err := modelByName(t, name, &m); err != nil || !found {
		return 0, err
	}
	n, err := t.number(registry.VersionNodeID(m.ID, tag))
	if err != nil || n == 0 {
		return 0, err
	}
	row, _, err := t.node(n)
	if err != nil || row.state == 0 {
		return 0, err
	}
	return n, nil
}

// join says that a version is what a name with a revision stands for.
func (t tx) join(version, name nodeNumber) error {
	t.grown.alias(version, name)
	return t.putBytes(bucketSame, append(name.key(), version.key()...), nil)
}

// nodePublished gives the node of a version what is known of it, and joins it to the name by which a card may have named it before.
func (t tx) nodePublished(modelID string, v registry.Version) (nodeNumber, error) {
	n, err := t.ensureNode(registry.VersionNodeID(modelID, v.Tag))
	if err != nil {
		return 0, err
	}
	row, _, err := t.node(n)
	if err != nil {
		return 0, err
	}
	row.state, row.published, row.commit = codeOfState(registry.Published), v.PublishedAt, v.Commit
	if err := t.putNode(n, row); err != nil {
		return 0, err
	}
	t.grown.node(n, row)
	var m registry.Model
	if found, err := t.get(bucketModels, key(modelID), &m); err != nil || !found {
		return n, err
	}
	name, err := t.number(registry.ExternalModelNodeID(m.Name.String(), v.Tag.String()))
	if err != nil || name == 0 {
		return n, err
	}
	return n, t.join(n, name)
}

// nodeState sets the state of the node of a version.
func (t tx) nodeState(modelID string, tag registry.Tag, s registry.VersionState) error {
	n, err := t.number(registry.VersionNodeID(modelID, tag))
	if err != nil || n == 0 {
		return err
	}
	row, _, err := t.node(n)
	if err != nil {
		return err
	}
	row.state = codeOfState(s)
	t.grown.node(n, row)
	return t.putNode(n, row)
}

// label says in a byte what an edge is: its kind in the upper half, its relation in the lower one.
type label byte

// The places of these are in the file: they are only ever added to.
var (
	edgeKinds = []registry.EdgeKind{registry.DerivedFrom, registry.Used, registry.GeneratedBy, registry.EvaluatedWith}
	relations = []registry.Relation{"", registry.Finetune, registry.Adapter, registry.Merge, registry.Quantized, registry.Previous, registry.Ancestor}
)

func labelOf(e registry.LineageEdge) (label, bool) {
	kind, relation := slices.Index(edgeKinds, e.Kind), slices.Index(relations, e.Relation)
	return label(kind<<4 | relation), kind >= 0 && relation >= 0
}

func (l label) valid() bool { return int(l>>4) < len(edgeKinds) && int(l&15) < len(relations) }

func (l label) kind() registry.EdgeKind { return edgeKinds[l>>4] }

func (l label) relation() registry.Relation { return relations[l&15] }

// An edge is kept twice, under each of its ends, as
//
//	this end (8) | the other end (8) | label (1) | owner (8) -> number in the order of all edges (8)
//
// Who owns it says who may read it: the model whose version it begins at, or for which it was declared.
const edgeKeyLen = 8 + 8 + 1 + 8

type edgeRow struct {
	this, other, owner nodeNumber
	label              label
}

func (e edgeRow) key() []byte {
	k := make([]byte, 0, edgeKeyLen)
	k = binary.BigEndian.AppendUint64(k, uint64(e.this))
	k = binary.BigEndian.AppendUint64(k, uint64(e.other))
	k = append(k, byte(e.label))
	return binary.BigEndian.AppendUint64(k, uint64(e.owner))
}

func (e edgeRow) turned() edgeRow {
	e.this, e.other = e.other, e.this
	return e
}

// decodeEdge reads an edge and its place in the order of all.
func decodeEdge(r row) (edgeRow, uint64, error) {
	if err := r.check(); err != nil {
		return edgeRow{}, 0, err
	}
	k, v := r.key, r.value[sum:]
	if len(k) != edgeKeyLen || len(v) != 8 || !label(k[16]).valid() {
		return edgeRow{}, 0, fmt.Errorf("an edge of %d and %d bytes: %w", len(k), len(v), ErrDamaged)
	}
	return edgeRow{
		this: nodeNumber(binary.BigEndian.Uint64(k)), other: nodeNumber(binary.BigEndian.Uint64(k[8:])),
		label: label(k[16]), owner: nodeNumber(binary.BigEndian.Uint64(k[17:])),
	}, binary.BigEndian.Uint64(v), nil
}

// declareEdges adds edges that were declared for a model, and remembers that they were.
func declareEdges(t tx, r registry.EdgesAdded) error {
	if err := addEdges(t, r.ModelID, r.Edges); err != nil {
		return err
	}
	owner, err := t.number(modelNodeID(r.ModelID))
	if err != nil {
		return err
	}
	for _, e := range r.Edges {
		from, err := t.number(e.From)
		if err != nil {
			return err
		}
		to, err := t.number(e.To)
		if err != nil {
			return err
		}
		if modelID, tag, ok := registry.ParseVersionNodeID(e.From); ok && modelID == r.ModelID {
			if err := unattested(t, modelID, tag); err != nil {
				return err
			}
		}
		l, _ := labelOf(e)
		k := edgeRow{from, to, owner, l}.key()[:edgeKeyLen-8]
		if err := t.putBytes(bucketDeclared, append(owner.key(), k...), nil); err != nil {
			return err
		}
	}
	return nil
}

// addEdges adds what a model says about lineage. An edge that it said before stays as it was.
func addEdges(t tx, modelID string, edges []registry.LineageEdge) error {
	owner, err := t.ensureNode(modelNodeID(modelID))
	if err != nil {
		return err
	}
	for _, e := range edges {
		l, ok := labelOf(e)
		if !ok {
			continue // Check lets none through
		}
		from, err := t.ensureNode(e.From)
		if err != nil {
			return err
		}
		to, err := t.ensureNode(e.To)
		if err != nil {
			return err
		}
		if err := t.addEdge(edgeRow{from, to, owner, l}); err != nil {
			return err
		}
	}
	return nil
}

func (t tx) addEdge(e edgeRow) error {
	k := e.key()
	if t.has(bucketOut, k) {
		return nil
	}
	seq, err := t.next(bucketOut)
	if err != nil {
		return err
	}
	t.grown.edge(e)
	if err := t.putBytes(bucketOut, k, nodeNumber(seq).key()); err != nil {
		return err
	}
	return t.putBytes(bucketIn, e.turned().key(), nodeNumber(seq).key())
}

// deleteEdge removes an edge.
func (t tx) deleteEdge(e edgeRow) error {
	if err := t.delete(bucketOut, e.key()); err != nil {
		return err
	}
	return t.delete(bucketIn, e.turned().key())
}

// deleteLineage removes what a model said about lineage. Edges that lead to its versions stay, because they say where another node came
// from; a node that no edge names any more goes.
func deleteLineage(t tx, m registry.Model, tags []registry.Tag) error {
	self, err := t.number(modelNodeID(m.ID))
	if err != nil || self == 0 {
		return err
	}
	var left []nodeNumber // that may be named no more
	for _, tag := range tags {
		n, err := t.number(registry.VersionNodeID(m.ID, tag))
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		for r := range t.scan(bucketOut, n.key(), nil) {
			e, _, err := decodeEdge(r)
			if err != nil {
				return err
			}
			left = append(left, e.other)
			if err := t.delete(bucketIn, e.turned().key()); err != nil {
				return err
			}
		}
		if err := t.deletePrefix(bucketOut, n.key()); err != nil {
			return err
		}
		name, err := t.number(registry.ExternalModelNodeID(m.Name.String(), tag.String()))
		if err != nil {
			return err
		}
		if name != 0 {
			if err := t.delete(bucketSame, append(name.key(), n.key()...)); err != nil {
				return err
			}
		}
		if err := t.putNode(n, nodeRow{kind: versionCode, owner: self, name: tag.String()}); err != nil {
			return err
		}
		left = append(left, n)
	}
	for r := range t.scan(bucketDeclared, self.key(), nil) {
		if err := r.check(); err != nil {
			return err
		}
		e := edgeRow{numberOf(r.key[8:]), numberOf(r.key[16:]), self, label(r.key[24])}
		if err := t.deleteEdge(e); err != nil {
			return err
		}
		left = append(left, e.this, e.other)
	}
	if err := t.deletePrefix(bucketDeclared, self.key()); err != nil {
		return err
	}
	for _, n := range left {
		if err := t.dropNode(n); err != nil {
			return err
		}
	}
	return t.dropModelNode(self, m.ID)
}

// dropModelNode removes the node of a model that is gone, when none of its versions is named any more.
func (t tx) dropModelNode(n nodeNumber, modelID string) error {
	for range t.scan(bucketNodeIDs, []byte("version:"+modelID+":"), nil) {
		return nil
	}
	return t.forgetNode(n, modelNodeID(modelID))
}

// dropNode removes a node that no edge names, and that is no version of a model that is there.
func (t tx) dropNode(n nodeNumber) error {
	row, found, err := t.node(n)
	if err != nil || !found || row.state != 0 {
		return err
	}
	for _, bucket := range []string{bucketOut, bucketIn} {
		for range t.scan(bucket, n.key(), nil) {
			return nil
		}
	}
	if err := t.deletePrefix(bucketSame, n.key()); err != nil {
		return err
	}
	if row.kind != versionCode {
		return t.forgetNode(n, row.name)
	}
	owner, _, err := t.node(row.owner)
	if err != nil {
		return err
	}
	if err := t.forgetNode(n, "version:"+owner.name+":"+row.name); err != nil || t.has(bucketModels, key(owner.name)) {
		return err
	}
	return t.dropModelNode(row.owner, owner.name)
}

func (t tx) forgetNode(n nodeNumber, id string) error {
	if err := t.delete(bucketNodeIDs, []byte(id)); err != nil {
		return err
	}
	return t.delete(bucketNodes, n.key())
}

// restateKin notes that what is stated of versions of other models is older than what is known, of those that came from the model's: who may read
// theirs is about to see another part of it, or it is about to go.
func restateKin(t tx, m registry.Model) error {
	p := prefix(m.ID)
	for r := range t.scan(bucketVersions, p, nil) {
		tag, err := registry.ParseTag(string(r.key[len(p):]))
		if err != nil {
			return err
		}
		for _, id := range []string{registry.VersionNodeID(m.ID, tag), registry.ExternalModelNodeID(m.Name.String(), tag.String())} {
			if err := restateChildren(t, id); err != nil {
				return err
			}
		}
	}
	return restateChildren(t, registry.ExternalModelNodeID(m.Name.String(), ""))
}

// restateChildren is restateKin for what came from one node at once.
func restateChildren(t tx, id string) error {
	n, err := t.number(id)
	if err != nil || n == 0 {
		return err
	}
	for r := range t.scan(bucketIn, n.key(), nil) {
		e, _, err := decodeEdge(r)
		if err != nil {
			return err
		}
		child, _, err := t.node(e.other)
		if err != nil {
			return err
		}
		if child.kind != versionCode || child.state == 0 {
			continue
		}
		owner, _, err := t.node(child.owner)
		if err != nil {
			return err
		}
		tag, err := registry.ParseTag(child.name)
		if err != nil {
			return err
		}
		if err := unattested(t, owner.name, tag); err != nil {
			return err
		}
	}
	return nil
}
