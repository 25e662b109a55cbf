package lifecycle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
	"github.com/herdbook/herdbook/registry/modelpack"
)

// Bounds of what is read of a commit that is no version, while somebody waits.
const (
	maxComparedFiles      = 100_000
	maxComparedPlainBytes = 128 << 20
)

// Compare says how b differs from a: files, model cards, evaluations, policies, and the tensors of the weight files. Callers have made
// sure that both may be read. What it takes long to find out about tensors is found out behind it: it waits for at most
// Config.CompareWait, and what it knows by then is what it gives.
func (s *Service) Compare(ctx context.Context, a, b registry.Side) (registry.Comparison, error) {
	var c registry.Comparison
	left, err := s.gatherSide(ctx, a)
	if err != nil {
		return c, err
	}
	right, err := s.gatherSide(ctx, b)
	if err != nil {
		return c, err
	}
	c.A, c.B = left.named(), right.named()
	c.Files = registry.CompareFiles(left.files, right.files)
	if c.Card, err = s.compareCards(ctx, left, right); err != nil {
		return c, err
	}
	if c.Policy, err = s.comparePolicies(ctx, left, right); err != nil {
		return c, err
	}
	if c.Evaluations, err = s.compareEvaluations(ctx, left, right); err != nil {
		return c, err
	}
	c.Identical = !c.Files.Differ() && !slices.ContainsFunc(c.Evaluations, func(d registry.EvaluationDiff) bool {
		return slices.ContainsFunc(d.Metrics, registry.MetricDiff.Differs)
	})
	c.Weights, err = s.compareWeights(ctx, left, right)
	return c, err
}

// compared is one side with what its commit holds.
type compared struct {
	registry.Side
	version *registry.Version // that stands there; nil when none does
	files   []registry.File
	plain   map[string]registry.ObjectID // Git blobs by path; only without a version, whose files are all in the store
}

func (c *compared) named() registry.Compared {
	n := registry.Compared{Model: c.Model.Name, Rev: c.Rev, Commit: c.Commit}
	if c.version != nil {
		n.Version = c.version.Tag
	}
	return n
}

// file finds a file by its path.
func (c *compared) file(name string) (registry.File, bool) {
	i, ok := slices.BinarySearchFunc(c.files, name, func(f registry.File, name string) int { return strings.Compare(f.Path, name) })
	if !ok {
		return registry.File{}, false
	}
	return c.files[i], true
}

// gatherSide lists the files of a commit: those of the version that stands there, or those that one would have.
func (s *Service) gatherSide(ctx context.Context, side registry.Side) (*compared, error) {
	c := &compared{Side: side}
	versions, err := s.Index.VersionsAt(ctx, side.Model.ID, side.Commit)
	if err != nil {
		return nil, err
	}
	if len(versions) > 0 {
		v := versions[0].Version
		for _, other := range versions {
			if other.Version.Tag.String() == side.Rev {
				v = other.Version
			}
		}
		c.version, c.files = &v, v.Files
		return c, nil
	}
	repo, err := s.Repositories.Open(ctx, side.Model.Name)
	if err != nil {
		return nil, err
	}
	leave, err := s.tensors.summing.take(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	c.plain = map[string]registry.ObjectID{}
	read := int64(0)
	for entry, err := range repo.Files(ctx, side.Commit) {
		if err != nil {
			return nil, err
		}
		if entry.Mode == registry.Symlink || entry.Mode == registry.Submodule || modelpack.BadPath(entry.Path) != "" {
			continue
		}
		if read += entry.SizeBytes; len(c.files) == maxComparedFiles || read > maxComparedPlainBytes {
			return nil, fmt.Errorf("commit %s has more than %d files or %d bytes outside of LFS; put a version tag on it and compare that: %w",
				side.Commit.Short(), maxComparedFiles, maxComparedPlainBytes, registry.ErrTooLarge)
		}
		f, err := summed(ctx, repo, entry)
		if err != nil {
			return nil, err
		}
		if !f.LFS {
			c.plain[f.Path] = entry.ID
		}
		c.files = append(c.files, f)
	}
	slices.SortFunc(c.files, func(a, b registry.File) int { return compareText(a.Path, b.Path) })
	return c, nil
}

// summed is an entry of a tree as a version would have it.
func summed(ctx context.Context, repo Repository, entry registry.TreeEntry) (registry.File, error) {
	f := registry.File{Path: entry.Path, SizeBytes: entry.SizeBytes, Executable: entry.Mode == registry.Executable}
	content, _, err := repo.OpenBlob(ctx, entry.ID)
	if err != nil {
		return f, err
	}
	defer content.Close()
	var head []byte
	if entry.SizeBytes < registry.MaxPointerLen {
		if head, err = io.ReadAll(io.LimitReader(content, registry.MaxPointerLen)); err != nil {
			return f, err
		}
		if pointer, ok := registry.ParsePointer(head); ok {
			f.Digest, f.SizeBytes, f.LFS = pointer.Digest, pointer.SizeBytes, true
			return f, nil
		}
	}
	sum := sha256.New()
	sum.Write(head)
	_, err = io.Copy(sum, content)
	f.Digest = digest.NewDigest(digest.SHA256, sum)
	return f, err
}

// open reads a file of a side. It is registry.ErrNotFound for an LFS object that the model does not own.
func (s *Service) open(ctx context.Context, c *compared, f registry.File) (io.ReadCloser, error) {
	if id, ok := c.plain[f.Path]; ok {
		repo, err := s.Repositories.Open(ctx, c.Model.Name)
		if err != nil {
			return nil, err
		}
		content, _, err := repo.OpenBlob(ctx, id)
		return content, err
	}
	if c.version == nil {
		if _, err := s.Index.BlobSize(ctx, c.Model.ID, f.Digest.String()); err != nil {
			return nil, err
		}
	}
	return s.Blobs.Get(ctx, f.Digest)
}

// document reads a file of at most so many bytes. problem says why it cannot be read; there says whether there is one.
func (s *Service) document(ctx context.Context, c *compared, name string, maxBytes int64) (data []byte, there bool, problem string, err error) {
	f, there := c.file(name)
	switch {
	case !there:
		return nil, false, "", nil
	case f.SizeBytes > maxBytes:
		return nil, true, fmt.Sprintf("%s is larger than %d bytes", name, maxBytes), nil
	}
	content, err := s.open(ctx, c, f)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, true, "LFS object " + f.Digest.Encoded() + " is not on the server", nil
	}
	if err != nil {
		return nil, true, "", err
	}
	defer content.Close()
	data, err = io.ReadAll(io.LimitReader(content, maxBytes))
	return data, true, "", err
}

func (s *Service) compareCards(ctx context.Context, a, b *compared) (registry.CardDiff, error) {
	var facts [2]registry.CardFacts
	var texts [2][]byte
	before, _ := a.file(card.File)
	after, _ := b.file(card.File)
	for i, side := range []*compared{a, b} {
		if side.version != nil {
			facts[i] = side.version.Card
			if before.Digest == after.Digest {
				continue
			}
		}
		data, there, problem, err := s.document(ctx, side, card.File, maxCardBytes)
		if err != nil {
			return registry.CardDiff{}, err
		}
		if side.version == nil && there {
			facts[i] = card.Parse(data)
		}
		if problem != "" {
			facts[i].Problem = problem
		}
		texts[i] = card.Body(data)
	}
	d := registry.CompareCards(facts[0], facts[1])
	d.TextDiffers = before.Digest != after.Digest && !bytes.Equal(bytes.TrimSpace(texts[0]), bytes.TrimSpace(texts[1]))
	return d, nil
}

func (s *Service) comparePolicies(ctx context.Context, a, b *compared) (registry.PolicyDiff, error) {
	d := registry.PolicyDiff{Environments: []registry.EnvironmentDiff{}}
	var policies [2]*registry.Policy
	for i, side := range []*compared{a, b} {
		data, there, problem, err := s.document(ctx, side, registry.PolicyFile, maxPolicyBytes)
		if err != nil {
			return d, err
		}
		if there && problem == "" {
			policy, err := card.ParsePolicy(data, s.gates.Check)
			if err != nil {
				problem = err.Error()
			}
			policies[i] = policy
		}
		*[]*registry.PolicyPresence{&d.A, &d.B}[i] = registry.PolicyPresence{Present: there, Problem: problem}
	}
	if d.A.Problem == "" && d.B.Problem == "" {
		d.Environments = registry.ComparePolicies(policies[0], policies[1])
	}
	return d, nil
}

func (s *Service) compareEvaluations(ctx context.Context, a, b *compared) ([]registry.EvaluationDiff, error) {
	before, err := s.Index.Evaluations(ctx, a.Model.ID, a.Commit)
	if err != nil {
		return nil, err
	}
	after, err := s.Index.Evaluations(ctx, b.Model.ID, b.Commit)
	if err != nil {
		return nil, err
	}
	return registry.CompareEvaluations(before, after), nil
}
