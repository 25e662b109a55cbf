package registry

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/opencontainers/go-digest"
)

// Group is what the journal commits at once: the changes of one decision and the events that
// announce them. A crash loses all of it or nothing.
type Group struct {
	At      time.Time
	Actor   string
	Request string // id of the request that caused it, if one did
	Records []Record
}

// Record is one fact that the journal keeps. The set of types is closed: the ones of this
// package. What a type once meant it always means; a new meaning is a new type.
type Record interface{ recordType() string }

// The records. Each is written as {"type": ..., "data": {...}}.
type (
	// JournalStarted is the first record of a journal. Its id tells the places of one journal
	// from those of another, in repositories that came from elsewhere.
	JournalStarted struct {
		ID string `json:"id"`
	}
	// ModelImported stands first in a group whose other records were read from the model's own
	// repository, where they stand already. Nothing in such a group is announced.
	ModelImported struct {
		ModelID string `json:"model_id"`
	}
	// ModelCreated says that a model came to be. Its repository is made from this record when it is
	// missing.
	ModelCreated struct {
		Model Model `json:"model"`
	}
	// ModelChanged says that description, visibility or protection were set, and what all of them are now.
	ModelChanged struct {
		ModelID     string     `json:"model_id"`
		Description string     `json:"description"`
		Visibility  Visibility `json:"visibility"`
		Protected   Protection `json:"protected,omitzero"`
	}
	// ModelDeleted says that the model is gone; its name and its tags leave a tombstone.
	ModelDeleted struct {
		ModelID string `json:"model_id"`
	}
	// DefaultBranchSet says that HEAD of the repository points to this branch.
	DefaultBranchSet struct {
		ModelID string `json:"model_id"`
		Branch  string `json:"branch"`
	}
	// PushStarted says that a push passed its checks and its refs are about to move. While it has no
	// PushFinished, refs that moved are taken for its work.
	PushStarted struct {
		PushID  string      `json:"push_id"`
		ModelID string      `json:"model_id"`
		Options []string    `json:"options,omitempty"`
		Updates []RefUpdate `json:"updates"`
	}
	// PushFinished says that the refs of the push were announced.
	PushFinished struct {
		PushID  string `json:"push_id"`
		ModelID string `json:"model_id"`
	}
	// RefMoved says that a ref of the repository has a new value, and that was announced. Generation
	// counts the moves of the ref, so that coming back to an old value is another event.
	RefMoved struct {
		ModelID    string `json:"model_id"`
		Generation uint64 `json:"generation"`
		RefUpdate
	}
	// BlobsLinked says that the model, or the repository without a model, owns these blobs: it was shown their content.
	BlobsLinked struct {
		ModelID string       `json:"model_id"` // or the id of the repository
		Blobs   []LinkedBlob `json:"blobs"`
	}
	// BlobsUnlinked says that the model, or the repository without a model, does not own these blobs any more: nothing in its
	// repository names them, or a client has deleted them.
	BlobsUnlinked struct {
		ModelID string          `json:"model_id"` // or the id of the repository
		Digests []digest.Digest `json:"digests"`
	}
	// LayerLinked says that the model or the repository may serve a layer of somebody's image, which is composed of blobs that it owns
	// from now on.
	LayerLinked struct {
		ModelID string     `json:"model_id"`
		Layer   ImageLayer `json:"layer"`
	}
	// RepositoryCreated is a repository for what OCI clients push, without a model.
	RepositoryCreated struct {
		Repository Repository `json:"repository"`
	}
	// RepositoryDeleted says that the repository and all in it are gone.
	RepositoryDeleted struct {
		RepositoryID string `json:"repository_id"`
	}
	// ManifestPushed says that an OCI client has stored a manifest, and what tags name it from now on.
	ManifestPushed struct {
		Repository string         `json:"repository"` // the key, see OCIRepository
		Manifest   StoredManifest `json:"manifest"`
		Alias      digest.Digest  `json:"alias,omitempty"`
		Tags       []string       `json:"tags,omitempty"`
	}
	// ManifestDeleted says that a manifest is gone, and with it the tags that named it.
	ManifestDeleted struct {
		Repository string        `json:"repository"`
		Digest     digest.Digest `json:"digest"`
	}
	// TagDeleted says that a tag names nothing any more.
	TagDeleted struct {
		Repository string `json:"repository"`
		Tag        string `json:"tag"`
	}
	// VersionPublished says that the tag is a version from now on, for ever.
	VersionPublished struct {
		ModelID  string         `json:"model_id"`
		Version  Version        `json:"version"`
		Manifest StoredManifest `json:"manifest"`
		Edges    []LineageEdge  `json:"edges,omitempty"`
	}
	// ImageBuilt says that the runnable image of a version is there, or cannot be made.
	ImageBuilt struct {
		ModelID   string           `json:"model_id"`
		Tag       Tag              `json:"tag"`
		Status    ImageStatus      `json:"status"`
		Manifests []StoredManifest `json:"manifests,omitempty"`
		Blobs     []LinkedBlob     `json:"blobs,omitempty"` // the configs
		Layers    []ImageLayer     `json:"layers,omitempty"`
	}
	// VersionAttested says what is stated of a version, in referrers of its artifact. A statement takes the place of an earlier one of the
	// same kind.
	VersionAttested struct {
		ModelID   string           `json:"model_id"`
		Tag       Tag              `json:"tag"`
		Manifests []StoredManifest `json:"manifests"`
		Blobs     []LinkedBlob     `json:"blobs"`
	}
	// EvaluationRecorded is an evaluation of a commit.
	EvaluationRecorded struct {
		ModelID    string     `json:"model_id"`
		Evaluation Evaluation `json:"evaluation"`
	}
	// PolicySet says that the default branch has this policy.
	PolicySet struct {
		ModelID string      `json:"model_id"`
		Policy  PolicyState `json:"policy"`
	}
	// GateMoved says that the verdict of an environment on a version went from closed to open or back.
	GateMoved struct {
		ModelID string  `json:"model_id"`
		Tag     Tag     `json:"tag"`
		Verdict Verdict `json:"verdict"`
	}
	// PromotionRefused says that a promotion was asked for and a gate was closed.
	PromotionRefused struct {
		ModelID string  `json:"model_id"`
		Tag     Tag     `json:"tag"`
		Verdict Verdict `json:"verdict"`
		Reason  string  `json:"reason,omitempty"`
	}
	// EnvironmentChanged says that another version is in the environment.
	EnvironmentChanged struct {
		ModelID string            `json:"model_id"`
		Change  EnvironmentChange `json:"change"`
	}
	// ApprovalGiven says that somebody approves of a version for an environment.
	ApprovalGiven struct {
		ModelID  string   `json:"model_id"`
		Approval Approval `json:"approval"`
	}
	// VersionStateSet says that a version came into another state. Of a revoked one it names the content that no other version has, which
	// OCI clients are refused from then on.
	VersionStateSet struct {
		ModelID   string          `json:"model_id"`
		Change    StateChange     `json:"change"`
		Withdrawn []digest.Digest `json:"withdrawn,omitempty"`
	}
	// EnvironmentFrozen says that nothing is promoted to the environment from then on, or that it is again.
	EnvironmentFrozen struct {
		ModelID string `json:"model_id"`
		Freeze  Freeze `json:"freeze"`
	}
	// EdgesAdded is lineage that a client declared.
	EdgesAdded struct {
		ModelID string        `json:"model_id"`
		Edges   []LineageEdge `json:"edges"`
	}
	// EventAnnounced is something to tell the sinks.
	EventAnnounced struct {
		Event Event `json:"event"`
	}
	// DeliveryTried says that an event was sent to a sink, and what came of it.
	DeliveryTried struct {
		Attempt Attempt `json:"attempt"`
	}
	// TokenCreated is an access token, kept as the SHA-256 of its secret.
	TokenCreated struct {
		Token Token `json:"token"`
	}
	// TokenRevoked says that the token is worth nothing from now on.
	TokenRevoked struct {
		TokenID string `json:"token_id"`
	}
)

// LinkedBlob is a blob that a model owns.
type LinkedBlob struct {
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes"`
	Alias     digest.Digest `json:"alias,omitempty"` // by which a client knows it, of another algorithm than SHA-256
}

// Token is what somebody proves with who they are, as it is kept: an access token, of which the server
// does not know the secret, or the public key of an SSH client.
type Token struct {
	ID        string    `json:"id"`
	Owner     string    `json:"owner"`
	Role      string    `json:"role"`              // reader, writer, maintainer or admin
	Hash      string    `json:"hash"`              // hex SHA-256 of the whole token as it was shown, or "ssh:" and that of the public key
	SSHKey    string    `json:"ssh_key,omitempty"` // as in authorized_keys(5): type and base64
	CreatedAt time.Time `json:"created_at"`
}

// ownerForm is the name of a person or a program.
var ownerForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// CheckOwner says why nobody can have that name, or nil. The error is a [FieldError] on "owner".
func CheckOwner(name string) error {
	switch {
	case !ownerForm.MatchString(name):
		return Invalid("owner", "an owner is named by 1 to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit")
	case name == "anonymous" || name == "unauthenticated" || name == "herdbook":
		return Invalid("owner", "%s stands for something else in the records of the server; choose another name", name)
	}
	return nil
}

func (JournalStarted) recordType() string     { return "journal_started" }
func (ModelImported) recordType() string      { return "model_imported" }
func (ModelCreated) recordType() string       { return "model_created" }
func (ModelChanged) recordType() string       { return "model_changed" }
func (ModelDeleted) recordType() string       { return "model_deleted" }
func (DefaultBranchSet) recordType() string   { return "default_branch_set" }
func (PushStarted) recordType() string        { return "push_started" }
func (PushFinished) recordType() string       { return "push_finished" }
func (RefMoved) recordType() string           { return "ref_moved" }
func (BlobsLinked) recordType() string        { return "blobs_linked" }
func (BlobsUnlinked) recordType() string      { return "blobs_unlinked" }
func (LayerLinked) recordType() string        { return "layer_linked" }
func (RepositoryCreated) recordType() string  { return "repository_created" }
func (RepositoryDeleted) recordType() string  { return "repository_deleted" }
func (ManifestPushed) recordType() string     { return "manifest_pushed" }
func (ManifestDeleted) recordType() string    { return "manifest_deleted" }
func (TagDeleted) recordType() string         { return "tag_deleted" }
func (VersionPublished) recordType() string   { return "version_published" }
func (ImageBuilt) recordType() string         { return "image_built" }
func (VersionAttested) recordType() string    { return "version_attested" }
func (EvaluationRecorded) recordType() string { return "evaluation_recorded" }
func (PolicySet) recordType() string          { return "policy_set" }
func (GateMoved) recordType() string          { return "gate_moved" }
func (PromotionRefused) recordType() string   { return "promotion_refused" }
func (EnvironmentChanged) recordType() string { return "environment_changed" }
func (ApprovalGiven) recordType() string      { return "approval_given" }
func (VersionStateSet) recordType() string    { return "version_state_set" }
func (EnvironmentFrozen) recordType() string  { return "environment_frozen" }
func (EdgesAdded) recordType() string         { return "edges_added" }
func (EventAnnounced) recordType() string     { return "event_announced" }
func (DeliveryTried) recordType() string      { return "delivery_tried" }
func (TokenCreated) recordType() string       { return "token_created" }
func (TokenRevoked) recordType() string       { return "token_revoked" }

// RecordTypes are the names of all types of records, sorted.
func RecordTypes() []string { return sortedKeys(recordDecoders()) }

// recordDecoders maps each type's name to the function that reads its data.
func recordDecoders() map[string]func(json.RawMessage) (Record, error) {
	all := map[string]func(json.RawMessage) (Record, error){}
	for _, add := range []func(map[string]func(json.RawMessage) (Record, error)){
		decode[JournalStarted], decode[ModelImported], decode[ModelCreated], decode[ModelChanged], decode[ModelDeleted], decode[DefaultBranchSet],
		decode[PushStarted], decode[PushFinished], decode[RefMoved], decode[BlobsLinked],
		decode[VersionPublished], decode[ImageBuilt], decode[VersionAttested], decode[EvaluationRecorded], decode[PolicySet],
		decode[GateMoved], decode[PromotionRefused], decode[EnvironmentChanged], decode[ApprovalGiven],
		decode[EdgesAdded], decode[EventAnnounced], decode[DeliveryTried], decode[TokenCreated],
		decode[TokenRevoked], decode[LockCreated], decode[LockRemoved],
		decode[BlobsUnlinked], decode[LayerLinked], decode[RepositoryCreated], decode[RepositoryDeleted], decode[ManifestPushed], decode[ManifestDeleted], decode[TagDeleted],
		decode[VersionStateSet], decode[EnvironmentFrozen],
	} {
		add(all)
	}
	return all
}

func decode[R Record](all map[string]func(json.RawMessage) (Record, error)) {
	var zero R
	all[zero.recordType()] = func(data json.RawMessage) (Record, error) {
		var r R
		err := json.Unmarshal(data, &r)
		return r, err
	}
}

type groupJSON struct {
	At      time.Time       `json:"at"`
	Actor   string          `json:"actor,omitempty"`
	Request string          `json:"request,omitempty"`
	Records []EncodedRecord `json:"records"`
}

// EncodeGroup writes a group as one line of JSON.
func EncodeGroup(g Group) ([]byte, error) {
	out := groupJSON{At: g.At, Actor: g.Actor, Request: g.Request, Records: make([]EncodedRecord, len(g.Records))}
	for i, r := range g.Records {
		encoded, err := EncodeRecord(r)
		if err != nil {
			return nil, err
		}
		out.Records[i] = encoded
	}
	return json.Marshal(out)
}

// EncodedRecord is a record that can be kept on its own.
type EncodedRecord struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// EncodeRecord writes one record on its own.
func EncodeRecord(r Record) (EncodedRecord, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return EncodedRecord{}, fmt.Errorf("encode record %s: %w", r.recordType(), err)
	}
	return EncodedRecord{r.recordType(), data}, nil
}

// Decoder reads groups back.
type Decoder struct {
	decoders map[string]func(json.RawMessage) (Record, error)
}

// NewDecoder makes a Decoder of all record types of this program.
func NewDecoder() *Decoder { return &Decoder{recordDecoders()} }

// Decode reads what EncodeGroup wrote. A type that this program does not know is an error: a
// newer Herdbook wrote it, and to pass over it would lose a fact.
func (d *Decoder) Decode(line []byte) (Group, error) {
	g, _, err := d.DecodeGroup(line)
	return g, err
}

// DecodeGroup is Decode that also gives the text of each record: what EncodeRecord makes of it, or made of it in the version
// of Herdbook that wrote it. The text may be a part of line.
func (d *Decoder) DecodeGroup(line []byte) (Group, []EncodedRecord, error) {
	in, ok := splitGroup(line)
	if !ok {
		in = groupJSON{}
		if err := json.Unmarshal(line, &in); err != nil {
			return Group{}, nil, fmt.Errorf("decode journal group: %w", err)
		}
	}
	g := Group{At: in.At, Actor: in.Actor, Request: in.Request, Records: make([]Record, len(in.Records))}
	for i, r := range in.Records {
		record, err := d.DecodeRecord(r)
		if err != nil {
			return Group{}, nil, err
		}
		g.Records[i] = record
	}
	return g, in.Records, nil
}

// DecodeRecord reads what EncodeRecord wrote.
func (d *Decoder) DecodeRecord(r EncodedRecord) (Record, error) {
	read, ok := d.decoders[r.Type]
	if !ok {
		return nil, fmt.Errorf("the journal holds a record of type %q, which this version of Herdbook does not know; start the newer version that wrote it", r.Type)
	}
	record, err := read(r.Data)
	if err != nil {
		return nil, fmt.Errorf("decode record %s: %w", r.Type, err)
	}
	return record, nil
}
