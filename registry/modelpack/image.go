package modelpack

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
)

// Image is the runnable image of a version: the same files in the form that container runtimes
// pull and mount.
type Image struct {
	Configs   []Document // one for each platform
	Manifests []Document // one for each platform, then the index
}

// Index lists the image's manifests, and names the artifact as its subject.
func (i Image) Index() Document { return i.Manifests[len(i.Manifests)-1] }

// architectures that the image is listed for. Files run on none, but a runtime takes only what is
// listed for its own; the layers are shared.
var architectures = []string{"amd64", "arm64"}

// NewImage makes the image of a version from its layers and the manifest of its artifact, whose
// annotations it takes over.
//
// The manifests have no artifactType and the config is a plain one: containerd refuses to unpack
// an image with either.
func NewImage(artifactManifest []byte, artifact registry.Descriptor, layers []registry.ImageLayer) (Image, error) {
	if got := digest.FromBytes(artifactManifest); got != artifact.Digest {
		return Image{}, fmt.Errorf("the artifact's manifest is %s, not %s", got, artifact.Digest)
	}
	var packed ocispec.Manifest
	if err := json.Unmarshal(artifactManifest, &packed); err != nil {
		return Image{}, fmt.Errorf("the artifact's manifest: %w", err)
	}
	if len(layers) == 0 {
		return Image{}, fmt.Errorf("an image has at least one layer")
	}
	subject := ociDescriptor(artifact)
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Subject: &subject, Annotations: packed.Annotations,
	}
	var image Image
	for _, architecture := range architectures {
		platform := ocispec.Platform{Architecture: architecture, OS: "linux"}
		config, manifest, err := platformImage(platform, packed.Annotations, layers)
		if err != nil {
			return Image{}, err
		}
		image.Configs = append(image.Configs, config)
		image.Manifests = append(image.Manifests, manifest)
		listed := manifest.descriptor()
		listed.Platform = &platform
		index.Manifests = append(index.Manifests, listed)
	}
	document, err := newDocument(ocispec.MediaTypeImageIndex, index)
	if err != nil {
		return Image{}, err
	}
	document.Annotations, document.Subject = maps.Clone(packed.Annotations), artifact.Digest
	image.Manifests = append(image.Manifests, document)
	return image, nil
}

func platformImage(platform ocispec.Platform, annotations map[string]string, layers []registry.ImageLayer) (config, manifest Document, err error) {
	c := ocispec.Image{
		Created: createdIn(annotations), Author: annotations[ocispec.AnnotationAuthors], Platform: platform,
		Config: ocispec.ImageConfig{Labels: annotations},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: annotations,
	}
	for _, layer := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, layer.Digest) // it is not compressed
		c.History = append(c.History, ocispec.History{Created: c.Created, CreatedBy: "herdbook: " + contents(layer)})
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: layer.Digest, Size: layer.SizeBytes})
	}
	if config, err = newDocument(ocispec.MediaTypeImageConfig, c); err != nil {
		return config, manifest, err
	}
	m.Config = config.descriptor()
	manifest, err = newDocument(ocispec.MediaTypeImageManifest, m)
	manifest.Annotations = maps.Clone(annotations)
	return config, manifest, err
}

// contents of a layer in a few words.
func contents(layer registry.ImageLayer) string {
	if len(layer.Files) == 1 {
		return root + layer.Files[0].Path
	}
	return fmt.Sprintf("%d files", len(layer.Files))
}

func createdIn(annotations map[string]string) *time.Time {
	t, err := time.Parse(time.RFC3339, annotations[ocispec.AnnotationCreated])
	if err != nil {
		return nil
	}
	return &t
}
