package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/modelpack"
)

// BuildImages makes the images that published versions lack. The digest of a layer needs one read of its files, which is why the push does not
// wait for it.
func (s *Service) BuildImages(ctx context.Context) error {
	building, err := s.Index.BuildingImages(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, v := range building {
		if err := s.buildImage(ctx, v); err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

func (s *Service) buildImage(ctx context.Context, v registry.VersionRecord) error {
	m, err := s.Index.ModelByID(ctx, v.ModelID)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // deleted in the meantime
	}
	if err != nil {
		return err
	}
	built, err := s.image(ctx, m, v)
	if ctx.Err() != nil {
		return ctx.Err() // stopped, not failed: the next start goes on
	}
	if passing(err) {
		return fmt.Errorf("make the image of %s %s: %w", m.Name, v.Version.Tag, err) // Run tries again
	}
	if err != nil {
		s.Log.ErrorContext(ctx, "the image of a version cannot be made", "model", m.Name, "version", v.Version.Tag, "error", err.Error())
		built = registry.ImageBuilt{Status: registry.ImageStatus{State: registry.ImageFailed, Error: "the image could not be made; the server's log says why"}}
	}
	built.ModelID, built.Tag = m.ID, v.Version.Tag
	unlock := s.locks.lock(m.ID)
	defer unlock()
	if m, err = s.Index.ModelByID(ctx, m.ID); errors.Is(err, registry.ErrNotFound) {
		return nil // deleted while the image was made
	} else if err != nil {
		return err
	}
	if v, err = s.Index.Version(ctx, m.ID, v.Version.Tag); err != nil {
		return err
	}
	if v.State == registry.Revoked {
		built = registry.ImageBuilt{ModelID: m.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageFailed, Error: "the version is revoked"}}
	}
	statements, err := s.attest(ctx, m, v)
	if err != nil {
		return fmt.Errorf("attest %s %s: %w", m.Name, v.Version.Tag, err) // Run tries again
	}
	now := s.Now()
	g := registry.Group{At: now, Actor: access.System.Name, Records: []registry.Record{built, statements}}
	if built.Status.State == registry.ImageReady {
		e := registry.NewEvent(registry.EventVersionImageReady, m, g.Actor, now, versionEvent{
			Commit: v.Version.Commit, Artifact: v.Version.Artifact.Digest, Image: built.Status.Digest,
		}, v.Version.Tag.String())
		e.Version, e.Withheld = v.Version.Tag, v.Version.Withheld
		g.Records = append(g.Records, announce(e))
	}
	return s.commit(ctx, g)
}

// passing reports whether the same work may succeed later: what is wrong is with the machine.
func passing(err error) bool {
	for _, cause := range []error{registry.ErrUnavailable, syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// image computes the layers and puts the manifests and configs into the store.
func (s *Service) image(ctx context.Context, m registry.Model, v registry.VersionRecord) (registry.ImageBuilt, error) {
	var built registry.ImageBuilt
	open := func(d digest.Digest) (io.ReadSeekCloser, error) { return s.Blobs.Get(ctx, d) }
	for _, files := range modelpack.LayerFiles(v.Version.Files) {
		layer, err := modelpack.NewLayer(files, open)
		if err != nil {
			return built, err
		}
		built.Layers = append(built.Layers, layer)
	}
	manifest, err := s.Blobs.Get(ctx, v.Version.Artifact.Digest)
	if err != nil {
		return built, err
	}
	defer manifest.Close()
	packed, err := io.ReadAll(manifest)
	if err != nil {
		return built, err
	}
	image, err := modelpack.NewImage(packed, v.Version.Artifact, built.Layers)
	if err != nil {
		return built, fmt.Errorf("image of %s %s: %w", m.Name, v.Version.Tag, err)
	}
	for _, document := range append(image.Configs, image.Manifests...) {
		if _, err := s.Blobs.Put(ctx, bytes.NewReader(document.Bytes)); err != nil {
			return built, err
		}
	}
	for _, c := range image.Configs {
		built.Blobs = append(built.Blobs, registry.LinkedBlob{Digest: c.Digest, SizeBytes: c.SizeBytes})
	}
	for _, d := range image.Manifests {
		built.Manifests = append(built.Manifests, d.Stored())
	}
	built.Status = registry.ImageStatus{State: registry.ImageReady, Digest: image.Index().Digest}
	return built, nil
}
