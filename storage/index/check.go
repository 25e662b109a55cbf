package index

import (
	"errors"
	"fmt"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/herdbook/herdbook/registry"
)

// Check returns an error when a group cannot be applied to any index. Whatever it lets through,
// [DB.Apply] takes, unless the disk is full or the file damaged. It has to be asked before a group
// becomes durable: one that cannot be applied would stop every write after it.
func Check(g registry.Group) error {
	for i, record := range g.Records {
		if err := checkRecord(record); err != nil {
			return fmt.Errorf("record %d (%T): %w", i, record, err)
		}
	}
	return nil
}

// checkRecord looks at all that applyRecord makes keys of.
func checkRecord(record registry.Record) error {
	var c checker
	switch r := record.(type) {
	case registry.JournalStarted:
	case registry.ModelImported:
		c.parts(r.ModelID)
	case registry.ModelCreated:
		c.parts(r.Model.ID)
		c.parts(r.Model.Name.String())
	case registry.ModelChanged:
		c.parts(r.ModelID)
	case registry.DefaultBranchSet:
		c.parts(r.ModelID)
	case registry.ModelDeleted:
		c.parts(r.ModelID)
	case registry.PushStarted:
		c.parts(r.ModelID, r.PushID)
	case registry.PushFinished:
		c.parts(r.ModelID, r.PushID)
	case registry.RefMoved:
		c.parts(r.ModelID, r.Ref)
	case registry.BlobsLinked:
		c.blobs(r.ModelID, r.Blobs)
	case registry.BlobsUnlinked:
		for _, d := range r.Digests {
			c.parts(r.ModelID, d.String())
		}
	case registry.LayerLinked:
		c.parts(r.ModelID, r.Layer.Digest.String())
		for _, f := range r.Layer.Files {
			c.parts(r.ModelID, f.Digest.String())
		}
	case registry.RepositoryCreated:
		c.parts(r.Repository.ID)
		c.parts(r.Repository.Name)
	case registry.RepositoryDeleted:
		c.parts(r.RepositoryID)
	case registry.ManifestPushed:
		c.manifest(r.Repository, r.Manifest)
		c.parts(r.Repository, r.Alias.String())
		for _, tag := range r.Tags {
			c.parts(r.Repository, tag)
		}
	case registry.ManifestDeleted:
		c.parts(r.Repository, r.Digest.String())
	case registry.TagDeleted:
		c.parts(r.Repository, r.Tag)
	case registry.VersionPublished:
		v := r.Version
		c.parts(r.ModelID, v.Tag.String(), string(v.Commit))
		for _, f := range v.Files {
			c.parts(r.ModelID, f.Digest.String())
		}
		c.parts(r.ModelID, v.Config.Digest.String())
		c.manifest(r.ModelID, r.Manifest)
		c.edges(r.Edges)
	case registry.ImageBuilt:
		c.parts(r.ModelID, r.Tag.String())
		for _, m := range r.Manifests {
			c.manifest(registry.ImageRepository(r.ModelID), m)
		}
		c.blobs(r.ModelID, r.Blobs)
		for _, l := range r.Layers {
			c.parts(r.ModelID, l.Digest.String())
		}
	case registry.VersionAttested:
		c.blobs(r.ModelID, r.Blobs)
		for _, m := range r.Manifests {
			c.manifest(r.ModelID, m)
		}
	case registry.EvaluationRecorded:
		c.parts(r.ModelID, string(r.Evaluation.Commit))
		c.parts(r.ModelID, r.Evaluation.ID)
		c.parts(registry.DatasetNodeID(r.Evaluation.Dataset.Name))
	case registry.PolicySet:
		c.parts(r.ModelID)
	case registry.GateMoved:
		c.parts(r.ModelID, r.Tag.String(), r.Verdict.Environment.String())
	case registry.PromotionRefused:
		c.parts(r.ModelID)
	case registry.EnvironmentChanged:
		c.parts(r.ModelID, r.Change.Environment.String(), r.Change.Version.String())
		c.parts(r.ModelID, r.Change.ID)
	case registry.ApprovalGiven:
		c.parts(r.ModelID, r.Approval.Version.String(), r.Approval.Environment.String(), r.Approval.By)
	case registry.VersionStateSet:
		c.parts(r.ModelID, r.Change.Version.String())
		c.parts(r.ModelID, r.Change.ID)
		for _, d := range r.Withdrawn {
			c.parts(r.ModelID, d.String())
		}
	case registry.EnvironmentFrozen:
		c.parts(r.ModelID, r.Freeze.Environment.String())
	case registry.EdgesAdded:
		c.parts(r.ModelID)
		c.edges(r.Edges)
	case registry.EventAnnounced:
		c.parts(r.Event.ID)
		c.parts(r.Event.ModelID)
		for _, sink := range r.Event.Sinks {
			c.parts(sink)
		}
	case registry.DeliveryTried:
		c.parts(r.Attempt.EventID)
		c.parts(r.Attempt.Sink)
	case registry.TokenCreated:
		c.parts(r.Token.ID)
		c.parts(r.Token.Hash)
	case registry.TokenRevoked:
		c.parts(r.TokenID)
	case registry.LockCreated:
		c.parts(r.ModelID, r.Lock.ID)
		c.parts(r.ModelID, r.Lock.Path)
	case registry.LockRemoved:
		c.parts(r.ModelID, r.LockID)
	default:
		return errors.New("no rule to apply it")
	}
	return c.err
}

// checker keeps the first thing that is wrong.
type checker struct{ err error }

// maxKeyBytes leaves room for the numbers that some keys end in.
const maxKeyBytes = bolt.MaxKeySize - 64

// parts refuses what cannot be a key: one that says of nothing whose it is, a NUL, by which a part
// would reach into other keys, or too many bytes.
func (c *checker) parts(parts ...string) {
	if c.err == nil && parts[0] == "" {
		c.err = errors.New("an id or a name is empty")
	}
	length := 0
	for _, p := range parts {
		if c.err == nil && strings.Contains(p, "\x00") {
			c.err = fmt.Errorf("%.100q holds a NUL", p)
		}
		length += len(p) + 1
	}
	if c.err == nil && length > maxKeyBytes {
		c.err = fmt.Errorf("an id or a name is too long, it begins with %.100q", parts[len(parts)-1])
	}
}

func (c *checker) blobs(modelID string, blobs []registry.LinkedBlob) {
	for _, b := range blobs {
		c.parts(modelID, b.Digest.String())
		c.parts(modelID, b.Alias.String())
	}
}

func (c *checker) manifest(repository string, m registry.StoredManifest) {
	c.parts(repository, m.Digest.String())
	if m.Subject != "" {
		c.parts(repository, m.Subject.String(), m.Digest.String())
	}
}

func (c *checker) edges(edges []registry.LineageEdge) {
	for _, e := range edges {
		c.parts(e.From)
		c.parts(e.To)
		if _, ok := labelOf(e); c.err == nil && !ok {
			c.err = fmt.Errorf("an edge has a kind %.100q and a relation %.100q, of which one is not known", e.Kind, e.Relation)
		}
	}
}
