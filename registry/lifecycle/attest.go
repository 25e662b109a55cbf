package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
	"github.com/herdbook/herdbook/registry/modelpack"
)

// attest states what a version came from and what was measured of it, for its artifact's referrers: whoever copies the artifact to another
// registry takes the proof along. The caller holds the model's lock and commits the record.
func (s *Service) attest(ctx context.Context, m registry.Model, v registry.VersionRecord) (registry.VersionAttested, error) {
	// Only what everybody may know who can read the model.
	reader := access.Identity{Name: access.System.Name, Role: access.Reader}
	if m.Visibility == registry.Public {
		reader = access.Anonymous(true)
	}
	graph, err := s.Index.Lineage(ctx, reader, registry.Walk{
		Start: registry.VersionNodeID(m.ID, v.Version.Tag), Direction: registry.Ancestors, Depth: 1, Known: m.ID,
	})
	if err != nil {
		return registry.VersionAttested{}, err
	}
	lineage, err := modelpack.AttestLineage(m.Name, v.Version, graph.Nodes, graph.Edges)
	if err != nil {
		return registry.VersionAttested{}, err
	}
	all := []modelpack.Attestation{lineage}
	evaluations, err := s.Index.Evaluations(ctx, m.ID, v.Version.Commit)
	if err != nil {
		return registry.VersionAttested{}, err
	}
	if len(evaluations) > 0 {
		measured, err := modelpack.AttestEvaluations(m.Name, v.Version, evaluations)
		if err != nil {
			return registry.VersionAttested{}, err
		}
		all = append(all, measured)
	}
	return s.storeAttestations(ctx, m, v, all...)
}

// attestEvaluation states what was measured of versions of one commit, with an evaluation that is about to be recorded. What the machine cannot do
// now is done later: an evaluation needs no space for files.
func (s *Service) attestEvaluation(ctx context.Context, m registry.Model, versions []registry.VersionRecord, e registry.Evaluation) ([]registry.Record, error) {
	records, err := s.evaluationStatements(ctx, m, versions, e)
	if !passing(err) {
		return records, err
	}
	s.Log.WarnContext(ctx, "what was measured of a version cannot be stated now; it will be tried again", "model", m.Name, "error", err.Error())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range versions {
		s.unattested[registry.VersionNodeID(m.ID, v.Version.Tag)] = v
	}
	return nil, nil
}

// attestLate states what could not be stated when it became known.
func (s *Service) attestLate(ctx context.Context) error {
	s.mu.Lock()
	late := maps.Clone(s.unattested)
	clear(s.unattested) // an evaluation that comes now may put it there again
	s.mu.Unlock()
	var failures []error
	for id, v := range late {
		err := s.attestAgain(ctx, v)
		if err == nil || errors.Is(err, registry.ErrNotFound) { // deleted meanwhile
			continue
		}
		failures = append(failures, fmt.Errorf("attest %s: %w", v.Version.Tag, err))
		s.mu.Lock()
		s.unattested[id] = v
		s.mu.Unlock()
	}
	return errors.Join(failures...)
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

func (s *Service) evaluationStatements(ctx context.Context, m registry.Model, versions []registry.VersionRecord, e registry.Evaluation) ([]registry.Record, error) {
	if len(versions) == 0 {
		return nil, nil
	}
	evaluations, err := s.Index.Evaluations(ctx, m.ID, e.Commit)
	if err != nil {
		return nil, err
	}
	var records []registry.Record
	for _, v := range versions {
		a, err := modelpack.AttestEvaluations(m.Name, v.Version, append(evaluations[:len(evaluations):len(evaluations)], e))
		if err != nil {
			return nil, err
		}
		record, err := s.storeAttestations(ctx, m, v, a)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
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
