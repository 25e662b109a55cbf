package registry

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// NodeKind says what a node of lineage is.
type NodeKind string

// The kinds of nodes.
const (
	VersionNode       NodeKind = "version"
	CommitNode        NodeKind = "commit"
	DatasetNode       NodeKind = "dataset"
	ExternalModelNode NodeKind = "external_model"
	RunNode           NodeKind = "run"
	CodeNode          NodeKind = "code"
)

// EdgeKind says how one node came from another, in the words of W3C PROV-DM.
type EdgeKind string

// The kinds of edges. Source: PROV-DM, W3C Recommendation of 30 April 2013, section 5.
const (
	DerivedFrom EdgeKind = "derived_from" // wasDerivedFrom: an earlier version, a base model
	Used        EdgeKind = "used"         // used: a dataset, code
	GeneratedBy EdgeKind = "generated_by" // wasGeneratedBy: a run

	// EvaluatedWith says that a version was measured on a dataset. It came from nothing of it, so that only who asks for this kind gets
	// it.
	EvaluatedWith EdgeKind = "evaluated_with"
)

// Relation says how a model was derived from its base.
type Relation string

// The relations: those of a Hugging Face model card; "previous" for the version before in
// precedence; "ancestor" for another version that Git knows as an ancestor.
const (
	Finetune  Relation = "finetune"
	Adapter   Relation = "adapter"
	Merge     Relation = "merge"
	Quantized Relation = "quantized"
	Previous  Relation = "previous"
	Ancestor  Relation = "ancestor"
)

// Node of lineage. Its ID is derived from what it is, so that two sources that name the same
// thing meet in one node.
type Node struct {
	ID    string       `json:"id"`
	Kind  NodeKind     `json:"kind"`
	Model string       `json:"model,omitempty"`
	Tag   Tag          `json:"tag,omitzero"`
	State VersionState `json:"state,omitempty"`
	Name  string       `json:"name,omitempty"` // of a dataset, a run or an external model

	// Of a version.
	Commit      ObjectID  `json:"commit,omitempty"`
	PublishedAt time.Time `json:"published_at,omitzero"`

	// RevokedAncestor is the id of the nearest version that this node came from and that was revoked, of those that the caller may read.
	RevokedAncestor string `json:"revoked_ancestor,omitempty"`
}

// LineageEdge says that From came from To.
type LineageEdge struct {
	From     string   `json:"from"`
	To       string   `json:"to"`
	Kind     EdgeKind `json:"kind"`
	Relation Relation `json:"relation,omitempty"`
}

// VersionNodeID is the node of a version. It holds the model's id, so that a model of the same
// name that comes after a deletion is another node.
func VersionNodeID(modelID string, tag Tag) string {
	return "version:" + modelID + ":" + tag.String()
}

// ParseVersionNodeID is the inverse of VersionNodeID.
func ParseVersionNodeID(id string) (modelID string, tag Tag, ok bool) {
	rest, ok := strings.CutPrefix(id, "version:")
	if !ok {
		return "", Tag{}, false
	}
	modelID, text, ok := strings.Cut(rest, ":")
	if !ok {
		return "", Tag{}, false
	}
	tag, err := ParseTag(text)
	return modelID, tag, err == nil
}

// DatasetNodeID is the node of a dataset, by the name that a card or an evaluation gives it.
func DatasetNodeID(name string) string { return "dataset:" + name }

// ExternalModelNodeID is the node of a base model by its name: a model of another registry, or
// one of this registry that was not there, or not with that version, when it was named.
func ExternalModelNodeID(name, revision string) string {
	if revision != "" {
		name += "@" + revision
	}
	return "model:" + name
}

// ParseNodeID reads the kind and the name in a node's id.
func ParseNodeID(id string) Node {
	kind, name, _ := strings.Cut(id, ":")
	n := Node{ID: id, Name: name}
	switch kind {
	case "dataset":
		n.Kind = DatasetNode
	case "model":
		n.Kind = ExternalModelNode
	case "commit":
		n.Kind = CommitNode
	case "run":
		n.Kind = RunNode
	case "code":
		n.Kind = CodeNode
	case "version":
		n.Kind, n.Name = VersionNode, ""
	}
	return n
}

// Graph is the answer to a question about lineage. Every edge joins two nodes of this page, or one of it with one of a page before.
type Graph struct {
	Nodes     []Node        `json:"nodes"`
	Edges     []LineageEdge `json:"edges"`
	Truncated bool          `json:"truncated,omitempty"` // there is more beyond the limits
	Next      string        `json:"-"`                   // the cursor of the next page, when there is one
}

// Path is how two nodes are related.
type Path struct {
	// Nodes lead from the first to the second, each joined with the next by one of Edges. There are none when the two are not related.
	Nodes []Node        `json:"nodes"`
	Edges []LineageEdge `json:"edges"`
	// Common is the node that both came from, when neither came from the other.
	Common string `json:"common_ancestor,omitempty"`
	// Truncated says that the way is longer than MaxLineageNodes, and ends there.
	Truncated bool `json:"truncated,omitempty"`
}

// Affected is a node that came from something, at whatever distance.
type Affected struct {
	Node
	Depth        int               `json:"depth"` // edges on the shortest way; 0 for what was asked about
	Environments []EnvironmentName `json:"environments,omitempty"`
}

// Impact is a page of what came from something, the nearest first.
type Impact struct {
	Items     []Affected `json:"items"`
	Running   []Running  `json:"running"` // on the first page: all of it that runs somewhere now, up to MaxLineageNodes
	Truncated bool       `json:"truncated,omitempty"`
	Next      string     `json:"-"`
}

// Running is a version that an environment holds now.
type Running struct {
	Model       string          `json:"model"`
	Tag         Tag             `json:"tag"`
	Environment EnvironmentName `json:"environment"`
	State       VersionState    `json:"state"`
	Since       time.Time       `json:"since"`
}

// Membership says which of two lineages a node is in.
type Membership string

// The memberships.
const (
	OnlyA Membership = "a"
	OnlyB Membership = "b"
	InAB  Membership = "both"
)

// Related is a node of the lineage of one of two versions, or of both.
type Related struct {
	Node
	In Membership `json:"in"`
}

// SharedFile is a file of a version whose bytes another model has too.
type SharedFile struct {
	Path      string        `json:"path"`
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes"`
	Model     ModelName     `json:"model"`    // the other one
	Versions  []Tag         `json:"versions"` // of it, that have a file with these bytes, the highest first, at most MaxSharedVersions; none when only a push has them
}

// MaxSharedVersions bounds the versions that a SharedFile lists.
const MaxSharedVersions = 20

// Direction of a walk through lineage.
type Direction string

// The directions.
const (
	Ancestors   Direction = "ancestors"
	Descendants Direction = "descendants"
	Both        Direction = "both"
)
