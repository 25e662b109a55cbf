package registry

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// The types of this file are what a store answers: facts of the records joined as callers
// need them. They live here because both sides of an interface name them.

// AnnouncedRef is the value of a ref that was last announced, and how often it moved.
type AnnouncedRef struct {
	ID         ObjectID `json:"id,omitempty"` // empty after a deletion
	Generation uint64   `json:"generation"`
}

// PushIntent is a push whose refs may have moved and were not announced yet.
type PushIntent struct {
	PushStarted
	Actor string    `json:"actor"`
	At    time.Time `json:"at"`
}

// VersionRecord is a version with what may change about it.
type VersionRecord struct {
	ModelID string       `json:"model_id"`
	Version Version      `json:"version"`
	State   VersionState `json:"state"`
	Image   ImageStatus  `json:"image"`

	Changed *StateChange `json:"changed,omitempty"` // how it came into its state; nil when it was never in another
}

// Refusal is a promotion that a closed gate refused.
type Refusal struct {
	Tag     Tag       `json:"tag"`
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason,omitempty"`
	Actor   string    `json:"actor"`
	At      time.Time `json:"at"`
}

// Page is which part of a list is asked for.
type Page struct {
	Cursor string // of the page before; empty for the first
	Limit  int    // at most so many; 0 means MaxPage
}

// MaxPage is the longest page of a list.
const MaxPage = 200

// Bound is the limit in force: from 1 to MaxPage.
func (p Page) Bound() int {
	if p.Limit <= 0 || p.Limit > MaxPage {
		return MaxPage
	}
	return p.Limit
}

// Walk is a question about lineage.
type Walk struct {
	Start     string // a node's id
	Direction Direction
	Depth     int        // edges from the start, at most MaxLineageDepth; 0 means that
	Kinds     []EdgeKind // empty means all but EvaluatedWith
	Known     string     // id of a model that is shown whoever asks; empty means none
	Limit     int        // nodes of a page, at most MaxLineageNodes; 0 means that
	Cursor    string     // of the page before; empty for the first
}

// The bounds of an answer about lineage.
const (
	MaxLineageDepth = 50
	MaxLineageNodes = 1000
	MaxLineageEdges = 10_000
)

// Concern is what an impact is asked for: one of its fields is set.
type Concern struct {
	Node    string        // a node's id
	Dataset string        // a dataset's name
	Model   string        // NAMESPACE/NAME, or any name that cards give a base model, perhaps with @REVISION; without one all versions are meant
	Digest  digest.Digest // a file's
}

// Mark is the place of a record that has to be written into its model's own repository.
type Mark struct {
	ModelID string
	Seq     uint64 // of the journal group
	Place   int    // of the record in the group
	At      time.Time
	Record  EncodedRecord

	Evaluated ObjectID // commit of an evaluation that was recorded, which has no Record here
}

// ImageRepository is the key of the artifact repository of a model's images; the key of its
// artifacts' repository is the model's id.
func ImageRepository(modelID string) string { return modelID + "/image" }

// Ref is a ref as Git has it.
type Ref struct {
	Name string // in full: refs/heads/main
	ID   ObjectID
	// Peeled is what an annotated tag leads to, or ID when the ref names no tag object. It is a
	// commit, but for odd tags of files or directories.
	Peeled ObjectID
}

// Commit is a Git commit.
type Commit struct {
	ID        ObjectID
	Tree      ObjectID
	Parents   []ObjectID
	Author    Signature
	Committer Signature
	Message   string
}

// Signature is who made a commit or a tag, and when.
type Signature struct {
	Name  string
	Email string
	At    time.Time
}

// TagObject is what an annotated tag consists of beside its ref.
type TagObject struct {
	ID      ObjectID
	Target  ObjectID // what it was put on, perhaps another tag object
	Name    string
	Tagger  Signature
	Message string // without a PGP signature
}

// FileMode says what an entry of a tree is.
type FileMode string

// The modes that Git knows, but for directories.
const (
	Regular    FileMode = "regular file"
	Executable FileMode = "executable file"
	Symlink    FileMode = "symbolic link" // the content is where it leads to, which may be anywhere
	Submodule  FileMode = "submodule"     // the ID is a commit elsewhere
)

// TreeEntry is one file of a commit.
type TreeEntry struct {
	Path      string // with slashes; any bytes but NUL
	Mode      FileMode
	ID        ObjectID
	SizeBytes int64 // of the blob; 0 for a submodule
}

// RecordCommit is one commit that the server writes on top of one of its own refs, which is made
// if it does not exist.
type RecordCommit struct {
	Ref     string
	Message string
	Author  Signature           // also the committer, so that the same records make the same commits
	Files   map[string][]byte   // by path, added to those of the ref or replacing them
	Notes   map[ObjectID][]byte // what the ref, one below refs/notes/, says about commits; each replaces an earlier one
}

// BlobInfo is a blob that was stored.
type BlobInfo struct {
	Digest    digest.Digest
	SizeBytes int64
}

// Counts are totals of what is kept.
type Counts struct {
	Models      int64 `json:"models"`
	Versions    int64 `json:"versions"`
	Evaluations int64 `json:"evaluations"`
	GatesOpened int64 `json:"gates_opened"` // that were announced, ever
	GatesClosed int64 `json:"gates_closed"`
	Refused     int64 `json:"refused"` // promotions, by a closed gate
	Waiting     int64 `json:"waiting"` // deliveries in the outbox

	LogicalBytes int64 `json:"logical_bytes"` // of what all models own, as if nothing was shared

	OldestWaiting time.Time `json:"-"` // the event that waits longest; zero when none does
}

// Usage is how much a model or a repository owns: LFS objects, files of versions, manifests' configs, blobs that OCI clients pushed.
type Usage struct {
	Blobs        int64 `json:"blobs"`
	LogicalBytes int64 `json:"logical_bytes"` // as if nothing was shared with other models
}
