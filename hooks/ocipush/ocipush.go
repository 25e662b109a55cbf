// Package ocipush copies versions to other registries: the artifact with all that refers to it, and the image.
//
// What is there already is skipped, blobs that the registry has in the other of the two repositories are mounted, and what was cut
// off is sent again in a new upload. Tags come last. The tag of a version is never taken from another manifest; that of an
// environment follows the environment as it is when the tag is set, not as the event says that it was.
package ocipush

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
)

// Index tells the sink what there is to copy.
type Index interface {
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	Environment(ctx context.Context, modelID string, name registry.EnvironmentName) (registry.EnvironmentState, error)
}

// SinkConfig of a sink. It takes versions, environments, or both.
type SinkConfig struct {
	Config
	Repository      string   // REGISTRY/NAME with {namespace} and {name} of the model in it
	ImageRepository string   // the same for images; Repository and "/image" by default
	NoImage         bool     // artifacts only
	NoReferrers     bool     // not what refers to them, such as signatures
	Versions        []string // patterns of tags as in path.Match, such as "v1.*"
	Environments    []string
	Concurrency     int // see [Options]

	Index   Index
	Sources func(modelID string) (artifact, image Source)
}

// Sink copies what happens here to one registry.
type Sink struct {
	SinkConfig
}

// NewSink checks a configuration and makes a Sink of it.
func NewSink(c SinkConfig) (*Sink, error) {
	if c.ImageRepository == "" {
		c.ImageRepository = c.Repository + "/image"
	}
	if len(c.Versions)+len(c.Environments) == 0 {
		return nil, errors.New("set versions or environments, or nothing is ever pushed")
	}
	for _, pattern := range c.Versions {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("versions: %q is not a pattern such as v1.*", pattern)
		}
	}
	for _, name := range c.Environments {
		if _, err := registry.ParseEnvironmentName(name); err != nil {
			return nil, fmt.Errorf("environments: %w", err)
		}
	}
	s := &Sink{c}
	_, err := s.destination(registry.MustModelName("namespace/name"))
	return s, err
}

// destination is where a model goes.
func (s *Sink) destination(m registry.ModelName) (to Destination, err error) {
	in := strings.NewReplacer("{namespace}", m.Namespace(), "{name}", m.Name())
	if to.Artifact, err = NewRepository(in.Replace(s.Repository), s.Config); err != nil || s.NoImage {
		return to, err
	}
	to.Image, err = NewRepository(in.Replace(s.ImageRepository), s.Config)
	return to, err
}

// Wants reports whether an event may have something to copy.
func (s *Sink) Wants(e registry.Event) bool {
	switch e.Type {
	case registry.EventVersionPublished:
		return s.matches(e.Version)
	case registry.EventVersionImageReady:
		return !s.NoImage && (s.matches(e.Version) || len(s.Environments) > 0)
	case registry.EventEnvironmentPromoted, registry.EventEnvironmentRolledBack:
		return slices.Contains(s.Environments, e.Environment.String())
	}
	return false
}

func (s *Sink) matches(tag registry.Tag) bool {
	return slices.ContainsFunc(s.Versions, func(pattern string) bool {
		ok, _ := path.Match(pattern, tag.String()) // checked by NewSink
		return ok
	})
}

// Deliver implements the dispatcher's sink. An event only says what to look at: what is copied is what the index knows now.
func (s *Sink) Deliver(ctx context.Context, e registry.Event) (int, error) {
	err := s.deliver(ctx, e)
	var fault *Fault
	if errors.As(err, &fault) {
		return fault.Status, err
	}
	return 0, err
}

func (s *Sink) deliver(ctx context.Context, e registry.Event) error {
	if !e.Environment.IsZero() {
		return s.follow(ctx, e, e.Environment)
	}
	if s.matches(e.Version) {
		if _, err := s.push(ctx, e, e.Version); err != nil {
			return err
		}
	}
	for _, name := range s.Environments {
		env := registry.MustEnvironmentName(name)
		state, err := s.Index.Environment(ctx, e.ModelID, env)
		if err != nil {
			return err
		}
		if state.Version() == e.Version {
			if err := s.follow(ctx, e, env); err != nil {
				return err
			}
		}
	}
	return nil
}

// follow copies the version that is in an environment now, and gives it the environment's tag.
func (s *Sink) follow(ctx context.Context, e registry.Event, env registry.EnvironmentName) error {
	state, err := s.Index.Environment(ctx, e.ModelID, env)
	if err != nil || state.Version().IsZero() {
		return err
	}
	version := state.Version()
	pushed, err := s.push(ctx, e, version)
	if err != nil || pushed.record.Version.Tag.IsZero() {
		return err
	}
	if !s.NoImage && pushed.record.Image.State == registry.ImageBuilding {
		return nil // both tags move when the image is ready, which is an event of its own
	}
	// The copy may have taken hours. When another version has come, so has another event.
	if state, err = s.Index.Environment(ctx, e.ModelID, env); err != nil || state.Version() != version {
		return err
	}
	if pushed.Image != nil {
		if err := pushed.to.Image.Tag(ctx, pushed.Image.root, env.String(), false); err != nil {
			return err
		}
	}
	if err := pushed.to.Artifact.Tag(ctx, pushed.Artifact.root, env.String(), false); err != nil {
		return err
	}
	if pushed.Image == nil && !s.NoImage {
		return fmt.Errorf("%s %s has no image, so that the tag %s of the images still names what was there before: %s", e.Model, version, env, pushed.record.Image.Error)
	}
	return nil
}

// delivered is a version that was copied; its record is the zero value when there is nothing to copy any more.
type delivered struct {
	Pushed
	record registry.VersionRecord
	to     Destination
}

func (s *Sink) push(ctx context.Context, e registry.Event, tag registry.Tag) (delivered, error) {
	record, err := s.Index.Version(ctx, e.ModelID, tag)
	if errors.Is(err, registry.ErrNotFound) || record.State == registry.Revoked || record.State == registry.Quarantined {
		return delivered{}, nil // deleted, or not to be spread
	}
	if err != nil {
		return delivered{}, err
	}
	to, err := s.destination(e.Model)
	if err != nil {
		return delivered{}, err
	}
	v := Version{Tag: tag.String()}
	v.Artifact, v.Image = s.Sources(e.ModelID)
	if record.Image.State != registry.ImageReady {
		v.Image = nil
	}
	pushed, err := Push(ctx, v, to, Options{Concurrency: s.Concurrency, NoReferrers: s.NoReferrers})
	return delivered{pushed, record, to}, err
}

// Descriptor is a manifest as the registry keeps it.
func Descriptor(m registry.StoredManifest) v1.Descriptor {
	return v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.SizeBytes, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
}
