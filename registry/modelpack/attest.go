package modelpack

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
)

// Media types and names of attestations.
// Source: in-toto attestation framework v1.1, spec/v1/statement.md and spec/v1/envelope.md; DSSE v1.0, envelope.md.
const (
	statementType      = "https://in-toto.io/Statement/v1"
	statementMediaType = "application/vnd.in-toto+json"
	envelopeMediaType  = "application/vnd.dsse.envelope.v1+json"
	annotationPredict  = "in-toto.io/predicate-type"

	// VerdictPredicate is, with [registry.EvaluationsPredicate] and [registry.LineagePredicate], a type of what is stated of a version;
	// docs/formats.md describes them.
	VerdictPredicate = "https://github.com/herdbook/herdbook/blob/main/docs/formats.md#verdict-v1"

	// annotationEnvironment names the environment that a verdict is about.
	annotationEnvironment = registry.AnnotationEnvironment
)

// MaxStated is how many evaluations are stated: the newest.
const MaxStated = 200

type statement struct {
	Type          string           `json:"_type"`
	Subject       []statementAbout `json:"subject"`
	PredicateType string           `json:"predicateType"`
	Predicate     any              `json:"predicate"`
}

type statementAbout struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// envelope is a statement that may be signed. So far nobody signs it.
type envelope struct {
	PayloadType string     `json:"payloadType"`
	Payload     []byte     `json:"payload"` // base64 in JSON
	Signatures  []struct{} `json:"signatures"`
}

// evaluationsPredicate is what was measured of the version's commit.
type evaluationsPredicate struct {
	Model       registry.ModelName `json:"model"`
	Version     registry.Tag       `json:"version"`
	Evaluations []statedEvaluation `json:"evaluations"` // the newest last
	Omitted     int                `json:"omitted,omitempty"`
}

type statedEvaluation struct {
	ID           string             `json:"id"`
	Dataset      registry.Dataset   `json:"dataset"`
	Metrics      map[string]float64 `json:"metrics"`
	Samples      *int64             `json:"samples,omitempty"`
	Harness      *registry.Harness  `json:"harness,omitempty"`
	Evaluator    string             `json:"evaluator,omitempty"`
	SourceURL    string             `json:"source_url,omitempty"`
	SelfReported bool               `json:"self_reported"`
	RecordedBy   string             `json:"recorded_by"`
	RecordedAt   time.Time          `json:"recorded_at"`
}

// lineagePredicate is what the version came from.
type lineagePredicate struct {
	Model     registry.ModelName     `json:"model"`
	Version   registry.Tag           `json:"version"`
	Published time.Time              `json:"published_at"`
	By        string                 `json:"published_by"`
	From      []registry.Node        `json:"nodes"`
	Edges     []registry.LineageEdge `json:"edges"`
}

// Attestation is a statement about a version, with the manifest by which registries find it: a referrer of the artifact.
type Attestation struct {
	PredicateType string
	Manifest      Document
	Envelope      Document
	Config        Document
}

// AttestEvaluations states what was measured of a version.
func AttestEvaluations(model registry.ModelName, v registry.Version, newest []registry.Evaluation, total int) (Attestation, error) {
	newest = newest[max(0, len(newest)-MaxStated):]
	p := evaluationsPredicate{Model: model, Version: v.Tag, Omitted: total - len(newest)}
	for _, e := range newest {
		p.Evaluations = append(p.Evaluations, statedEvaluation{
			ID: e.ID, Dataset: e.Dataset, Metrics: e.Metrics, Samples: e.Samples, Harness: e.Harness, Evaluator: e.Evaluator,
			SourceURL: e.SourceURL, SelfReported: e.SelfReported, RecordedBy: e.RecordedBy, RecordedAt: e.RecordedAt,
		})
	}
	return attest(model, v, registry.EvaluationsPredicate, p)
}

// AttestLineage states what a version came from: the edges that begin at it.
func AttestLineage(model registry.ModelName, v registry.Version, nodes []registry.Node, edges []registry.LineageEdge) (Attestation, error) {
	p := lineagePredicate{Model: model, Version: v.Tag, Published: v.PublishedAt, By: v.PublishedBy, From: slices.Clone(nodes), Edges: slices.Clone(edges)}
	for i := range p.From {
		p.From[i].State, p.From[i].RevokedAncestor = "", "" // which may change, while this does not
	}
	return attest(model, v, registry.LineagePredicate, p)
}

// AttestVerdict states why a version went to an environment. The predicate is a decision as registry/gate writes it.
func AttestVerdict(model registry.ModelName, v registry.Version, env registry.EnvironmentName, predicate any) (Attestation, error) {
	return attestAbout(model, v, VerdictPredicate, predicate, map[string]string{annotationEnvironment: env.String()})
}

func attest(model registry.ModelName, v registry.Version, predicateType string, predicate any) (Attestation, error) {
	return attestAbout(model, v, predicateType, predicate, map[string]string{})
}

// attestAbout adds the type of the predicate to the annotations.
func attestAbout(model registry.ModelName, v registry.Version, predicateType string, predicate any, annotations map[string]string) (a Attestation, err error) {
	a.PredicateType = predicateType
	payload, err := json.Marshal(statement{
		Type: statementType,
		Subject: []statementAbout{
			{model.String() + ":" + v.Tag.String(), map[string]string{"sha256": v.Artifact.Digest.Encoded()}},
			{model.String() + ".git", map[string]string{"gitCommit": string(v.Commit)}},
		},
		PredicateType: predicateType, Predicate: predicate,
	})
	if err != nil {
		return a, err
	}
	if a.Envelope, err = newDocument(envelopeMediaType, envelope{PayloadType: statementMediaType, Payload: payload, Signatures: []struct{}{}}); err != nil {
		return a, err
	}
	a.Config = Document{Bytes: ocispec.DescriptorEmptyJSON.Data}
	a.Config.Descriptor = registry.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON, Digest: digest.FromBytes(a.Config.Bytes), SizeBytes: int64(len(a.Config.Bytes))}
	layer := a.Envelope.descriptor()
	layer.Annotations = map[string]string{annotationPredict: predicateType}
	subject := ociDescriptor(v.Artifact)
	annotations[annotationPredict] = predicateType
	a.Manifest, err = newDocument(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: statementMediaType,
		Config: a.Config.descriptor(), Layers: []ocispec.Descriptor{layer}, Subject: &subject, Annotations: annotations,
	})
	a.Manifest.ArtifactType, a.Manifest.Annotations, a.Manifest.Subject = statementMediaType, annotations, v.Artifact.Digest
	return a, err
}
