package registry

import (
	"bytes"
	_ "crypto/sha512" // for digests
	"encoding/json"
	"errors"
	"mime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of manifests before OCI.
// Source: distribution project, docs/spec/manifest-v2-2.md.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// AnnotationEnvironment names the environment that a statement about a version is about.
const AnnotationEnvironment = "com.github.herdbook.environment"

// EvaluationsPredicate is the type of a statement of what was measured of a version; docs/formats.md describes it.
const EvaluationsPredicate = "https://github.com/herdbook/herdbook/blob/main/docs/formats.md#evaluations-v1"

// LineagePredicate is the type of a statement of what a version came from. Each of these comes with one of what was measured, if something was.
const LineagePredicate = "https://github.com/herdbook/herdbook/blob/main/docs/formats.md#lineage-v1"

// MaxManifestBytes is the longest manifest that is taken.
// Source: OCI distribution specification v1.1, "Pushing Manifests": at least 4 MiB.
const MaxManifestBytes = 4 << 20

// Manifest is what a manifest that a client pushes says.
type Manifest struct {
	MediaType    string
	ArtifactType string // of what refers to something: its own, or the media type of its config
	Annotations  map[string]string
	Subject      digest.Digest   // empty when it refers to nothing
	Blobs        []v1.Descriptor // config and layers that have to be there
	Manifests    []v1.Descriptor // of an index
}

// ParseManifest reads a manifest that was sent as mediaType. What the two kinds of manifests cannot have, and what could be read as either, is
// refused: two programs must not see two things in one manifest. The error is a [FieldError] on "manifest".
// Source: OCI image specification v1.1, "manifest.md", "image-index.md"; OCI distribution specification v1.1, security advisory GHSA-mc8v-mgrf-8f4m.
func ParseManifest(mediaType string, data []byte) (Manifest, error) {
	invalid := func(format string, args ...any) (Manifest, error) {
		return Manifest{}, Invalid("manifest", format, args...)
	}
	if mediaType != "" {
		parsed, _, err := mime.ParseMediaType(mediaType)
		if err != nil {
			return invalid("%.100q is no media type", mediaType)
		}
		mediaType = parsed
	}
	var in struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        *part             `json:"config"`
		Layers        []part            `json:"layers"`
		Manifests     []part            `json:"manifests"`
		Subject       *part             `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
		// Of the first version, which had no digests for its parts.
		FSLayers json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		var field *FieldError
		if errors.As(err, &field) {
			return Manifest{}, field
		}
		return invalid("it is not JSON of the form of a manifest: %v", err)
	}
	if err := checkKeys(json.NewDecoder(bytes.NewReader(data)), true); err != nil {
		return Manifest{}, err
	}
	if in.MediaType != "" && mediaType != "" && in.MediaType != mediaType {
		return invalid("it says that it is %.100q and was sent as %.100q", in.MediaType, mediaType)
	}
	if mediaType == "" {
		mediaType = in.MediaType
	}
	m := Manifest{MediaType: mediaType, ArtifactType: in.ArtifactType, Annotations: in.Annotations}
	index := false
	switch mediaType {
	case v1.MediaTypeImageManifest, dockerManifest:
	case v1.MediaTypeImageIndex, dockerManifestList:
		index = true
	default:
		return invalid("%.100q is not the media type of a manifest that is taken here: %s, %s, %s or %s", mediaType,
			v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, dockerManifest, dockerManifestList)
	}
	switch {
	case in.SchemaVersion != 2:
		return invalid("schemaVersion is %d, not 2", in.SchemaVersion)
	case in.FSLayers != nil:
		return invalid("it has fsLayers, which belong to another version")
	case index && (in.Config != nil || in.Layers != nil):
		return invalid("an index has manifests, and neither a config nor layers")
	case !index && in.Manifests != nil:
		return invalid("a manifest has a config and layers, and no manifests")
	case !index && in.Config == nil:
		return invalid("it has no config")
	}
	if in.Subject != nil {
		m.Subject = in.Subject.Digest
	}
	if index {
		m.Manifests = descriptors(in.Manifests)
		return m, nil
	}
	if m.ArtifactType == "" {
		m.ArtifactType = in.Config.MediaType
	}
	m.Blobs = append(descriptors([]part{*in.Config}), slices.DeleteFunc(descriptors(in.Layers), distributedElsewhere)...)
	return m, nil
}

// part is what is read of a descriptor. It is checked while it is read: of a list of a million objects with nothing in them the first is
// an error, and no room is made for the others.
type part struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *part) UnmarshalJSON(data []byte) error {
	type plain part
	if err := json.Unmarshal(data, (*plain)(p)); err != nil {
		return err
	}
	switch {
	case CheckDigest(p.Digest) != nil:
		return Invalid("manifest", "it names %.100q, which is no digest: sha256: or sha512: and lower-case hex digits", p.Digest)
	case p.Size < 0:
		return Invalid("manifest", "%s has a size of %d", p.Digest, p.Size)
	case p.MediaType == "":
		return Invalid("manifest", "%s has no media type", p.Digest)
	}
	return nil
}

func descriptors(parts []part) []v1.Descriptor {
	all := make([]v1.Descriptor, len(parts))
	for i, p := range parts {
		all[i] = v1.Descriptor{MediaType: p.MediaType, Digest: p.Digest, Size: p.Size}
	}
	return all
}

// manifestKeys are the keys of manifests and descriptors that are read, and whether their values have such keys too.
var manifestKeys = map[string]bool{
	"schemaVersion": false, "mediaType": false, "artifactType": false, "annotations": false, "fsLayers": false, "digest": false, "size": false,
	"config": true, "layers": true, "manifests": true, "subject": true,
}

// checkKeys refuses the next value of a manifest, which is JSON, if an object in it has a key twice, or one that is read in
// other upper and lower case letters: which of the values counts, and whether it does, is for each program to say.
// Source: RFC 8259, section 4, "The names within an object SHOULD be unique".
func checkKeys(d *json.Decoder, read bool) error {
	token, err := d.Token()
	open, nested := token.(json.Delim)
	if err != nil || !nested {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		below := read
		if open == '{' {
			if token, err = d.Token(); err != nil {
				return err
			}
			key, _ := token.(string)
			if seen[key] {
				return Invalid("manifest", "it has %.100q twice in one object", key)
			}
			seen[key] = true
			below = read && manifestKeys[key]
			for known := range manifestKeys {
				if read && key != known && strings.EqualFold(key, known) {
					return Invalid("manifest", "it has %.100q, which some programs take for %q", key, known)
				}
			}
		}
		if err := checkKeys(d, below); err != nil {
			return err
		}
	}
	_, err = d.Token() // the end of it
	return err
}

// distributedElsewhere reports whether a layer need not be in the registry.
// Source: OCI image specification v1.1, "layer.md", "Non-Distributable Layers".
func distributedElsewhere(d v1.Descriptor) bool {
	return strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.") ||
		strings.HasPrefix(d.MediaType, "application/vnd.docker.image.rootfs.foreign.")
}

// CheckDigest says why something is not a digest that is taken here, or nil. The error is a [FieldError] on "digest".
// Source: OCI image specification v1.1, "descriptor.md", "Registered Algorithms".
func CheckDigest(d digest.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512 {
		return Invalid("digest", "a digest is sha256: and 64, or sha512: and 128 lower-case hex digits")
	}
	return nil
}
