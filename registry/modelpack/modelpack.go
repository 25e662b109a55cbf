// Package modelpack builds what registry clients pull of a version: the artifact, which is a
// manifest of the CNCF ModelPack specification over the very files of the version, and the
// runnable image, whose layers are tar archives of the same files.
//
// It is pure. The same model, tag object and [Format] give the same bytes, and nothing of them
// comes from the server's configuration: two servers that were pushed the same tag have the same
// digests. A layer of the image exists nowhere as a whole: its bytes are composed of tar headers
// and blobs while they are read, from any offset.
package modelpack

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/inspect"
)

// Format is the version of the packaging rules. Published versions keep their manifests, and
// their images are composed by the rules of their Format for ever: a rule that would change one
// byte needs a new Format beside this one. The golden files in testdata hold this one.
const Format = 1

// Open opens the blob of a digest.
type Open = func(digest.Digest) (io.ReadSeekCloser, error)

// Source is what an artifact is packed from.
type Source struct {
	Model     registry.ModelName
	Tag       registry.Tag
	Commit    registry.ObjectID
	CreatedAt time.Time // of the tag object, or of the commit when there is none
	Author    string
	Files     []registry.File
	Card      registry.CardFacts
	Weights   []inspect.Weights
}

// Document is a manifest or a config, with what a registry has to know of it.
type Document struct {
	registry.Descriptor
	Bytes        []byte
	ArtifactType string
	Annotations  map[string]string
	Subject      digest.Digest
}

// newDocument encodes a manifest or a config. Go writes struct fields in their order and maps by
// sorted keys, so that the bytes are always the same.
func newDocument(mediaType string, content any) (Document, error) {
	data, err := json.Marshal(content)
	if err != nil {
		return Document{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d := Document{Bytes: data}
	d.MediaType, d.Digest, d.SizeBytes = mediaType, digest.FromBytes(data), int64(len(data))
	return d, nil
}

// Stored is the document as an artifact repository keeps it.
func (d Document) Stored() registry.StoredManifest {
	return registry.StoredManifest{
		Descriptor: d.Descriptor, ArtifactType: d.ArtifactType, Annotations: d.Annotations, Subject: d.Subject,
	}
}

func (d Document) descriptor() ocispec.Descriptor { return ociDescriptor(d.Descriptor) }

func ociDescriptor(d registry.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.SizeBytes}
}

// Artifact is a version in the form of the ModelPack specification.
type Artifact struct {
	Manifest Document
	Config   Document
}

// Media types and annotations of a ModelPack artifact.
// Source: github.com/modelpack/model-spec v0.0.7, docs/spec.md and specs-go/v1/annotations.go.
const (
	artifactType        = "application/vnd.cncf.model.manifest.v1+json"
	configMediaType     = "application/vnd.cncf.model.config.v1+json"
	annotationPath      = "org.cncf.model.filepath"
	annotationMetadata  = "org.cncf.model.file.metadata+json"
	annotationUntested  = "org.cncf.model.file.mediatype.untested"
	fileMode            = 0o644
	executableMode      = 0o755
	regularFileTypeflag = 0 // as modctl and kit write it
)

// fileMetadata is the value of annotationMetadata.
// Source: model-spec v0.0.7, specs-go/v1/annotations.go, FileMetadata.
type fileMetadata struct {
	Name     string    `json:"name"`
	Mode     uint32    `json:"mode"`
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Size     int64     `json:"size"`
	ModTime  time.Time `json:"mtime"`
	Typeflag byte      `json:"typeflag"`
}

// epoch is the time of change of every file: it does not depend on the version, so that neither
// does what is derived from an unchanged file.
var epoch = time.Unix(0, 0).UTC()

// Pack makes the artifact of a version: one raw layer for each file, whose digest is the file's
// own. The paths must be good by BadPath.
func Pack(s Source) (Artifact, error) {
	files, err := sorted(s.Files)
	if err != nil {
		return Artifact{}, err
	}
	if len(files) == 0 {
		return Artifact{}, fmt.Errorf("%s %s has no files", s.Model, s.Tag)
	}
	inspected := map[string]bool{}
	for _, w := range s.Weights {
		inspected[w.Path] = true
	}
	layers := make([]ocispec.Descriptor, len(files))
	for i, f := range files {
		if layers[i], err = rawLayer(f, inspected[f.Path]); err != nil {
			return Artifact{}, err
		}
	}
	config, err := newDocument(configMediaType, newModelConfig(s, files))
	if err != nil {
		return Artifact{}, err
	}
	annotations := s.annotations()
	manifest, err := newDocument(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       config.descriptor(),
		Layers:       layers,
		Annotations:  annotations,
	})
	if err != nil {
		return Artifact{}, err
	}
	manifest.ArtifactType, manifest.Annotations = artifactType, annotations
	return Artifact{Manifest: manifest, Config: config}, nil
}

// rawLayer describes a file as a layer. The title is where oras writes it, the path where modctl
// and kit do.
func rawLayer(f registry.File, inspected bool) (ocispec.Descriptor, error) {
	mode := uint32(fileMode)
	if f.Executable {
		mode = executableMode
	}
	metadata, err := json.Marshal(fileMetadata{
		Name: path.Base(f.Path), Mode: mode, Size: f.SizeBytes, ModTime: epoch, Typeflag: regularFileTypeflag,
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("metadata of %s: %w", f.Path, err)
	}
	kind := kindOf(f.Path)
	return ocispec.Descriptor{
		MediaType: kind.mediaType(), Digest: f.Digest, Size: f.SizeBytes,
		Annotations: map[string]string{
			ocispec.AnnotationTitle: f.Path,
			annotationPath:          f.Path,
			annotationMetadata:      string(metadata),
			// Only of weights whose header was read is the kind more than a guess by the name.
			annotationUntested: fmt.Sprint(kind != weight || !inspected),
		},
	}, nil
}

// annotations of the manifest.
// Source: OCI image specification v1.1.1, annotations.md, "Pre-Defined Annotation Keys".
func (s Source) annotations() map[string]string {
	annotations := map[string]string{
		ocispec.AnnotationTitle:    s.Model.String(),
		ocispec.AnnotationVersion:  s.Tag.String(),
		ocispec.AnnotationRevision: string(s.Commit),
		ocispec.AnnotationLicenses: strings.Join(s.licenses(), " AND "),
		ocispec.AnnotationAuthors:  s.author(),
	}
	if created := s.created(); created != nil {
		annotations[ocispec.AnnotationCreated] = created.Format(time.RFC3339)
	}
	maps.DeleteFunc(annotations, func(_, value string) bool { return value == "" })
	return annotations
}

// created is when the version was made, to the second, as Git keeps it. A time that RFC 3339
// cannot write, which Git takes from anybody, is none.
func (s Source) created() *time.Time {
	t := s.CreatedAt.UTC().Truncate(time.Second)
	if s.CreatedAt.IsZero() || t.Year() < 1 || t.Year() > 9999 {
		return nil
	}
	return &t
}

// licenses are those that the card names; it joins several by commas.
func (s Source) licenses() []string {
	if s.Card.License == "" {
		return nil
	}
	return strings.Split(s.Card.License, ", ")
}

// author as Git knows it, bounded and printable.
func (s Source) author() string {
	const longest = 256
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s.Author, ""))
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "")
	}
	return strings.TrimSpace(text)
}
