package registry

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
)

// Visibility says who may read a model without a right of their own to it.
type Visibility string

// The visibilities, from the widest to the narrowest.
const (
	Public   Visibility = "public"   // everybody whom the server lets in at all
	Internal Visibility = "internal" // everybody with a token
	Private  Visibility = "private"  // only those who were given a right to it
)

// ParseVisibility reads a visibility; an empty text is given back as fallback.
func ParseVisibility(s string, fallback Visibility) (Visibility, error) {
	switch v := Visibility(s); v {
	case Public, Internal, Private:
		return v, nil
	case "":
		return fallback, nil
	}
	return "", Invalid("visibility", "%q is not a visibility: public, internal or private", clip(s))
}

// Model is one repository of versions. ID never changes and is never used twice.
type Model struct {
	ID            string     `json:"id"`
	Name          ModelName  `json:"name"`
	Visibility    Visibility `json:"visibility"`
	Description   string     `json:"description"`
	DefaultBranch string     `json:"default_branch,omitempty"` // empty until a branch was pushed
	Protected     Protection `json:"protected,omitzero"`
	CreatedAt     time.Time  `json:"created_at"`
	CreatedBy     string     `json:"created_by"`
	UpdatedAt     time.Time  `json:"updated_at"` // the last change of a ref, an evaluation or an environment
}

// MaxDescriptionLen is the longest description of a model, in bytes.
const MaxDescriptionLen = 4096

// File is one file of a version, as an artifact holds it: its content is a blob.
type File struct {
	Path       string        `json:"path"` // slash-separated, relative
	Digest     digest.Digest `json:"digest"`
	SizeBytes  int64         `json:"size_bytes"`
	Executable bool          `json:"executable,omitempty"`
	LFS        bool          `json:"lfs,omitempty"`
}

// Descriptor of a manifest or of a config that was stored.
type Descriptor struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes"`
}

// VersionState says what may be done with a version.
type VersionState string

// The states of a version.
const (
	Published   VersionState = "published"
	Deprecated  VersionState = "deprecated"
	Quarantined VersionState = "quarantined"
	Revoked     VersionState = "revoked"
)

// Version is a published tag: it never changes, but for its state and its image.
type Version struct {
	Tag         Tag       `json:"tag"`
	Commit      ObjectID  `json:"commit"`
	TagObject   ObjectID  `json:"tag_object,omitempty"` // of an annotated tag
	Message     string    `json:"message,omitempty"`
	PublishedAt time.Time `json:"published_at"`
	PublishedBy string    `json:"published_by"`

	// Format is the version of the packaging rules that made the artifact; later rules never
	// touch what earlier ones published.
	Format   int        `json:"format"`
	Artifact Descriptor `json:"artifact"` // the ModelPack manifest
	Config   Descriptor `json:"config"`
	Files    []File     `json:"files"`
	Warnings []string   `json:"warnings,omitempty"` // what was left out of the artifact, and why
	Withheld bool       `json:"withheld,omitempty"` // its events are not delivered

	Card CardFacts `json:"card"`
}

// CardFacts are the parts of a model card that gates and pages read.
type CardFacts struct {
	License     string          `json:"license,omitempty"`
	Library     string          `json:"library_name,omitempty"`
	Task        string          `json:"pipeline_tag,omitempty"`
	Tags        []string        `json:"tags,omitempty"`
	Languages   []string        `json:"language,omitempty"`
	Datasets    []string        `json:"datasets,omitempty"`
	BaseModels  []BaseModel     `json:"base_models,omitempty"`
	FrontMatter json.RawMessage `json:"front_matter,omitempty"` // the whole of it, as JSON
	Sections    []string        `json:"sections,omitempty"`     // headings with something below them, in their order
	Problem     string          `json:"problem,omitempty"`      // why the card could not be read
}

// BaseModel is what a card says its model was made from.
type BaseModel struct {
	Model    string   `json:"model"`              // as the card spells it: NAMESPACE/NAME, or elsewhere
	Relation Relation `json:"relation,omitempty"` // finetune, adapter, merge, quantized
	Revision string   `json:"revision,omitempty"`
}

// ImageState says how far the runnable image of a version is.
type ImageState string

// The states of a version's image.
const (
	ImageBuilding ImageState = "building"
	ImageReady    ImageState = "ready"
	ImageFailed   ImageState = "failed"
)

// ImageStatus is the state of a version's image and, when it is ready, its index.
type ImageStatus struct {
	State  ImageState    `json:"state"`
	Digest digest.Digest `json:"digest,omitempty"`
	Error  string        `json:"error,omitempty"`
}

// ImageLayer is one layer of an image: the recipe that composes its bytes from blobs.
type ImageLayer struct {
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes"`
	Files     []File        `json:"files"`
}

// StoredManifest is a manifest that an artifact repository serves.
type StoredManifest struct {
	Descriptor
	ArtifactType string            `json:"artifact_type,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Subject      digest.Digest     `json:"subject,omitempty"`
	PushedBy     string            `json:"pushed_by,omitempty"` // who sent it; empty when the server made it
}

// Latest is the version of the highest precedence that is no pre-release, or the highest of all
// when there are only those. Versions are sorted, the highest first; ok is false without any.
func Latest(versions []VersionRecord) (v VersionRecord, ok bool) {
	for _, v := range versions {
		if !v.Version.Tag.Prerelease() {
			return v, true
		}
	}
	if len(versions) > 0 {
		return versions[0], true
	}
	return VersionRecord{}, false
}
