package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
	"github.com/herdbook/herdbook/registry/modelpack"
)

// attest states what a version came from and what was measured of it, for its artifact's referrers: whoever copies the artifact to another
// registry takes the proof along. The caller holds the model's lock and commits the record.
func (s *Service) attest(ctx context.Context, m registry.Model, v registry.VersionRecord) (registry.VersionAttested, error) {
	graph, err := s.Index.Lineage(ctx, readers(m), registry.Walk{
		Start: registry.VersionNodeID(m.ID, v.Version.Tag), Direction: registry.Ancestors, Depth: 1, Known: m.ID,
	})
	if err != nil {
		return registry.VersionAttested{}, err
	}
	lineage, err := modelpack.AttestLineage(m.Name, v.Version, graph.Nodes, graph.Edges)
	if err != nil {
		return registry.VersionAttested{}, err
	}
	measured, err := s.measured(ctx, m, v)
	if err != nil {
		return registry.VersionAttested{}, err
	}
	return s.storeAttestations(ctx, m, v, append(measured, lineage)...)
}

// maxAttested bounds the versions that are looked at at once.
const maxAttested = 100

// AttestEvaluations states anew what was measured of versions, and what they came from, of which an evaluation was recorded or an edge declared
// since their last statement. Neither waits for it, and many are stated at once; the index knows what lacks a statement, also after a crash.
func (s *Service) AttestEvaluations(ctx context.Context) error {
	var failures []error
	seen := map[string]bool{} // each once, though evaluations come meanwhile
	for {
		versions, err := s.Index.Unattested(ctx, maxAttested+len(seen))
		if err != nil {
			return errors.Join(append(failures, err)...)
		}
		before := len(seen)
		for _, v := range versions {
			id := registry.VersionNodeID(v.ModelID, v.Version.Tag)
			if seen[id] {
				continue
			}
			seen[id] = true
			if v.Image.State == registry.ImageBuilding {
				continue // it is attested with its image
			}
			err := s.attestAgain(ctx, v)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil && !errors.Is(err, registry.ErrNotFound) { // deleted meanwhile
				failures = append(failures, fmt.Errorf("attest %s: %w", v.Version.Tag, err))
			}
		}
		if len(seen) == before {
			return errors.Join(failures...)
		}
	}
}

func (s *Service) attestAgain(ctx context.Context, v registry.VersionRecord) error {
	unlock := s.locks.lock(v.ModelID)
	defer unlock()
	m, err := s.Index.ModelByID(ctx, v.ModelID)
	if err != nil {
		return err
	}
	record, err := s.attest(ctx, m, v)
	if err != nil {
		return err
	}
	return s.commit(ctx, registry.Group{At: s.Now(), Actor: access.System.Name, Records: []registry.Record{record}})
}

// measured is the statement of what was measured of a version; none when nothing was.
func (s *Service) measured(ctx context.Context, m registry.Model, v registry.VersionRecord) ([]modelpack.Attestation, error) {
	newest, total, err := s.Index.NewestEvaluations(ctx, m.ID, v.Version.Commit, modelpack.MaxStated)
	if err != nil || total == 0 {
		return nil, err
	}
	a, err := modelpack.AttestEvaluations(m.Name, v.Version, newest, total)
	return []modelpack.Attestation{a}, err
}

// attestAnew states anew what is known of a model's versions, as those may know it who can read m, which the model is about to become. The caller
// holds the model's lock. What is stated stays correct when the model stays what it was.
func (s *Service) attestAnew(ctx context.Context, m registry.Model) error {
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(versions, 100) { // a group of records is kept in memory
		g := registry.Group{At: s.Now(), Actor: access.System.Name}
		for _, v := range some {
			record, err := s.attest(ctx, m, v)
			if err != nil {
				return err
			}
			g.Records = append(g.Records, record)
		}
		if err := s.commit(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// maxStatedDecision is the longest decision that is stated with its facts, in bytes.
const maxStatedDecision = 4 << 20

// attestVerdict states why a version went to an environment. A promotion does not fail because that cannot be written: the journal has the
// verdict too.
func (s *Service) attestVerdict(ctx context.Context, m registry.Model, v registry.VersionRecord, d gate.Decision, c registry.EnvironmentChange) []registry.Record {
	c.Verdict = nil
	d = lean(d)
	d.Model, d.Change = m.Name, &c
	if data, err := json.Marshal(d); err == nil && len(data) > maxStatedDecision {
		d.Facts = nil
	}
	statement, err := modelpack.AttestVerdict(m.Name, v.Version, c.Environment, d)
	var record registry.VersionAttested
	if err == nil {
		record, err = s.storeAttestations(ctx, m, v, statement)
	}
	if err != nil {
		s.Log.WarnContext(ctx, "why a version went to an environment cannot be stated with its artifact; the journal has the verdict",
			"model", m.Name, "version", v.Version.Tag, "environment", c.Environment, "error", err.Error())
		return nil
	}
	return []registry.Record{record}
}

// storeAttestations puts statements into the store. Until the record is committed nothing names them.
func (s *Service) storeAttestations(ctx context.Context, m registry.Model, v registry.VersionRecord, all ...modelpack.Attestation) (registry.VersionAttested, error) {
	record := registry.VersionAttested{ModelID: m.ID, Tag: v.Version.Tag}
	for _, a := range all {
		for _, d := range []modelpack.Document{a.Config, a.Envelope, a.Manifest} {
			if _, err := s.Blobs.Put(ctx, bytes.NewReader(d.Bytes)); err != nil {
				return record, err
			}
		}
		record.Blobs = append(record.Blobs,
			registry.LinkedBlob{Digest: a.Config.Digest, SizeBytes: a.Config.SizeBytes}, registry.LinkedBlob{Digest: a.Envelope.Digest, SizeBytes: a.Envelope.SizeBytes})
		record.Manifests = append(record.Manifests, a.Manifest.Stored())
	}
	return record, nil
}
