// Package lifecycle moves a version from a pushed tag to an artifact, through its gates into
// an environment and out of it again.
//
// Each step decides from what is known and then commits once: the changes and the events that
// announce them are one group of the journal. What a crash interrupts is found again by
// [Service.Reconcile], which compares what Git holds with what was announced, and does what is
// missing; it does not matter who calls it or how often. Nothing here talks to the outside
// world: that is done from the stored events.
package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/gate"
)

// Journal commits. When Commit returns nil the group survives a power cut and every reading
// of the [Index] shows it.
type Journal interface {
	Commit(ctx context.Context, g registry.Group) error
}

// Index answers from what was committed.
type Index interface {
	modelIndex
	versionIndex
	environmentIndex
	tokenIndex
	lockIndex
}

type tokenIndex interface {
	Token(ctx context.Context, hash string) (registry.Token, error)
	TokenByID(ctx context.Context, id string) (registry.Token, error)
}

type modelIndex interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
	ModelByID(ctx context.Context, id string) (registry.Model, error)
	AllModels(ctx context.Context) ([]registry.Model, error)
	Deleted(ctx context.Context, name registry.ModelName) (bool, error)
	UsedTags(ctx context.Context, name registry.ModelName) ([]registry.Tag, error)
	Refs(ctx context.Context, modelID string) (map[string]registry.AnnouncedRef, error)
	Intents(ctx context.Context, modelID string) ([]registry.PushIntent, error)
	// WithIntents are the models with pushes that are not known to have ended.
	WithIntents(ctx context.Context) ([]registry.Model, error)
	// Signatures are what KeepSignatures kept, by model id. They may be lost.
	Signatures(ctx context.Context) (map[string]string, error)
	KeepSignatures(ctx context.Context, signatures map[string]string) error
	BlobSize(ctx context.Context, modelID, digest string) (int64, error)
	// Usages is how much each model and each repository owns, by id.
	Usages(ctx context.Context) (map[string]registry.Usage, error)
	// OwnedBlobs are the sizes of all blobs that the model or the repository owns, by digest.
	OwnedBlobs(ctx context.Context, modelID string) (map[string]int64, error)
	RepositoryByName(ctx context.Context, name string) (registry.Repository, error)
	Repositories(ctx context.Context) ([]registry.Repository, error)
	Manifest(ctx context.Context, repository string, d digest.Digest) (registry.StoredManifest, error)
	TagDigest(ctx context.Context, repository, tag string) (digest.Digest, error)
	Layer(ctx context.Context, modelID string, d digest.Digest) (registry.ImageLayer, error)
	// Canonical is the SHA-256 digest of what an owner of blobs or a repository of manifests knows by d.
	Canonical(ctx context.Context, owner string, d digest.Digest) (digest.Digest, error)
	// AttachmentsOf are the blobs that the evaluations of the model name.
	AttachmentsOf(ctx context.Context, modelID string) ([]digest.Digest, error)
	// ManifestsOf are the manifests of the model and of its image, or of a repository without a model.
	ManifestsOf(ctx context.Context, modelID string) ([]registry.StoredManifest, error)
}

type versionIndex interface {
	Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error)
	Versions(ctx context.Context, modelID string) ([]registry.VersionRecord, error)
	VersionsAt(ctx context.Context, modelID string, commit registry.ObjectID) ([]registry.VersionRecord, error)
	BuildingImages(ctx context.Context) ([]registry.VersionRecord, error)
	Evaluations(ctx context.Context, modelID string, commit registry.ObjectID) ([]registry.Evaluation, error)
	evidenceIndex
	Lineage(ctx context.Context, id access.Identity, w registry.Walk) (registry.Graph, error)
	// Reached are those of some nodes that a node came from, or is, on ways that go through nothing that id may not read.
	Reached(ctx context.Context, id access.Identity, start string, among []string) (map[string]bool, error)
	// Way is the shortest way from a node up to one that it came from, or is; empty when there is none that id may read.
	Way(ctx context.Context, id access.Identity, from, to string) ([]registry.Node, error)
	EvaluationByID(ctx context.Context, modelID, id string) (registry.Evaluation, error)
	// UnmirroredAfter are the records that are not in the repositories, sorted by model and then by time, behind one of them or from the first on.
	UnmirroredAfter(ctx context.Context, after registry.Mark, limit int) ([]registry.Mark, error)
	Mirrored(marks []registry.Mark) error
	JournalID(ctx context.Context) (string, error)
}

// evidenceIndex knows the evaluations of a commit by their numbers, which begin at 1.
type evidenceIndex interface {
	Catalog(ctx context.Context, modelID string, commit registry.ObjectID) (*registry.Catalog, error)
	Evaluation(ctx context.Context, modelID string, commit registry.ObjectID, number uint64) (*registry.Evaluation, error)
	CountEvaluations(ctx context.Context, modelID string, commit registry.ObjectID) (int, error)
	NewestEvaluations(ctx context.Context, modelID string, commit registry.ObjectID, limit int) (newest []registry.Evaluation, total int, err error)
	// EvaluationLines are evaluations as JSON without a newline, from the number first on.
	EvaluationLines(ctx context.Context, modelID string, commit registry.ObjectID, first uint64, limit int) ([][]byte, error)
	// Unattested are versions of which an evaluation was recorded after they were attested last.
	Unattested(ctx context.Context, limit int) ([]registry.VersionRecord, error)
}

type environmentIndex interface {
	Policy(ctx context.Context, modelID string) (registry.PolicyState, error)
	AnnouncedGate(ctx context.Context, modelID string, tag registry.Tag, env registry.EnvironmentName) (registry.Verdict, bool, error)
	Environment(ctx context.Context, modelID string, env registry.EnvironmentName) (registry.EnvironmentState, error)
	Approvals(ctx context.Context, modelID string, tag registry.Tag, env registry.EnvironmentName) ([]registry.Approval, error)
	Environments(ctx context.Context, modelID string) ([]registry.EnvironmentState, error)
	ChangeByID(ctx context.Context, modelID, id string) (registry.EnvironmentChange, error)
	StateChangeByID(ctx context.Context, modelID, id string) (registry.StateChange, error)
}

// Repositories are the Git repositories of the models.
type Repositories interface {
	// Open makes the repository when it is missing.
	Open(ctx context.Context, name registry.ModelName) (Repository, error)
	// Remove takes the repository away; it is no error when there is none.
	Remove(ctx context.Context, name registry.ModelName) error
	// SetAside moves the repository out of the way and says where to; nowhere when there is none.
	SetAside(ctx context.Context, name registry.ModelName) (path string, err error)
	// List names the repositories on disk.
	List(ctx context.Context) ([]registry.ModelName, error)
}

// Repository is one of them.
type Repository interface {
	reader
	// Sync makes the updates of a push, and the objects they brought, durable; without
	// updates it makes everything durable, whoever wrote it.
	Sync(ctx context.Context, updates []registry.RefUpdate) error
	// HEAD is the branch that HEAD points to, which need not exist.
	HEAD() (branch string, err error)
	// SetHEAD points HEAD to a branch.
	SetHEAD(ctx context.Context, branch string) error
	// SetRef points a ref to an object, whatever it pointed to, durably. It is
	// registry.ErrNotFound when the repository does not hold the object.
	SetRef(ctx context.Context, ref string, id registry.ObjectID) error
	// WriteRecords adds commits to refs of the server, durably.
	WriteRecords(ctx context.Context, commits []registry.RecordCommit) error
	// Signature differs whenever a ref differs from what it was at the last call.
	Signature(ctx context.Context) (string, error)
	// Repack joins packs when there are many; it does nothing while something is written.
	Repack(ctx context.Context) (repacked bool, err error)
}

type reader interface {
	Refs(ctx context.Context) ([]registry.Ref, error)
	Commit(ctx context.Context, id registry.ObjectID) (registry.Commit, error)
	TagObject(ctx context.Context, id registry.ObjectID) (registry.TagObject, error)
	// Files are all files of a commit, by path. An error is the last that it yields.
	Files(ctx context.Context, commit registry.ObjectID) iter.Seq2[registry.TreeEntry, error]
	File(ctx context.Context, commit registry.ObjectID, path string) (registry.TreeEntry, error)
	ReadFile(ctx context.Context, commit registry.ObjectID, path string, maxBytes int64) ([]byte, error)
	OpenBlob(ctx context.Context, id registry.ObjectID) (content io.ReadCloser, sizeBytes int64, err error)
	// SmallBlobs gives the content of each blob of at most maxBytes that a ref leads to.
	SmallBlobs(ctx context.Context, maxBytes int64, give func(data []byte) error) error
	// Ancestors walks from a commit to its parents and gives the first commits on each way at
	// which stop says so.
	Ancestors(ctx context.Context, from registry.ObjectID, stop func(registry.ObjectID) bool) ([]registry.ObjectID, error)
	// RecordTip is the newest commit of a ref of the server and its message, or
	// registry.ErrNotFound.
	RecordTip(ctx context.Context, ref string) (message string, id registry.ObjectID, err error)
}

// Blobs is the content-addressed store.
type Blobs interface {
	Put(ctx context.Context, r io.Reader) (registry.BlobInfo, error)
	Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error)
	// UsedAt is when the content was put last, also when it was there already. It is
	// registry.ErrNotFound without such content.
	UsedAt(ctx context.Context, d digest.Digest) (time.Time, error)
	// Touch makes content count as put now. It is registry.ErrNotFound without such content.
	Touch(ctx context.Context, d digest.Digest) error
}

// Config is what a Service works with. All fields without a default named are needed.
type Config struct {
	Journal      Journal
	Index        Index
	Repositories Repositories
	Blobs        Blobs
	Log          *slog.Logger

	// Visibility of a model that a push creates; by default Public, which is what callers
	// without a token read where the operator lets them in at all.
	Visibility registry.Visibility
	// Route names the sinks that an event goes to; by default none.
	Route func(registry.Event) []string
	// Deployer reports why a hook that a policy names under deploy cannot be used by the
	// model, or nil; by default no hook can.
	Deployer func(m registry.ModelName, hook string) error
	// MaxPlainBytes is the largest file that may be pushed as a plain Git blob; by default
	// 10 MiB.
	MaxPlainBytes int64
	// Poked is called after a commit that may have put events into the outbox; it must not
	// block.
	Poked func()
	// Quotas bound what models own; by default nothing does.
	Quotas []registry.Quota
	// FullShare is the share of the models that a sweep reconciles although their refs look as they did,
	// so that what a signature does not show is found too; by default 0.01. With less than 0 it is none.
	FullShare float64
	// TensorCache keeps the lists of tensors that comparisons need; without one no tensors are compared.
	TensorCache TensorCache
	// CompareWait is how long a comparison waits for such lists; by default 2 s.
	CompareWait time.Duration
	// Now is the clock, by default time.Now in UTC, cut to microseconds.
	Now func() time.Time
}

// Service carries out the steps. It is safe for use by many goroutines; the steps of one model
// follow each other.
type Service struct {
	Config
	gates   *gate.Judge
	locks   locks
	uses    uses
	quotas  quotas
	tensors *tensorWork

	// They poke the background work; see Run.
	records, images, statements chan struct{}

	declaring sync.Mutex // held while lineage is declared, see Declare

	mu         sync.Mutex
	active     map[string]func() // pushes whose refs may still move, by id -> what ends their use of the model
	signatures map[string]string // of the repositories as they were reconciled last, by model id
	archived   map[string]int    // files of evaluations that are known to be in the repository, by model id and commit
	judged     map[string]judged // what was decided at the last evaluation, by model id
	reached    map[string]place  // how far the record refs go that were written since the start, by model id and ref
}

// New assembles a Service.
func New(c Config) (*Service, error) {
	judge, err := gate.New()
	if err != nil {
		return nil, err
	}
	if c.Visibility == "" {
		c.Visibility = registry.Public
	}
	if c.Route == nil {
		c.Route = func(registry.Event) []string { return nil }
	}
	if c.Deployer == nil {
		c.Deployer = func(_ registry.ModelName, hook string) error {
			return registry.Invalid("deploy", "no hook %q is configured", hook)
		}
	}
	if c.MaxPlainBytes == 0 {
		c.MaxPlainBytes = 10 << 20
	}
	if c.FullShare == 0 {
		c.FullShare = 0.01
	}
	if c.CompareWait == 0 {
		c.CompareWait = 2 * time.Second
	}
	if c.Poked == nil {
		c.Poked = func() {}
	}
	if c.Now == nil {
		// Microseconds survive JSON and every database, so that what is answered now is what
		// is answered after a rebuild.
		c.Now = func() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
	}
	return &Service{
		Config: c, gates: judge, tensors: newTensorWork(),
		records: make(chan struct{}, 1), images: make(chan struct{}, 1), statements: make(chan struct{}, 1),
		active: map[string]func(){}, signatures: map[string]string{}, archived: map[string]int{}, reached: map[string]place{}, judged: map[string]judged{},
	}, nil
}

// Request is who asks for a step, and how to recognise that it was asked before.
type Request struct {
	Identity access.Identity
	ID       string // of the HTTP request, for the journal
	Key      string // Idempotency-Key of the client, if it sent one
}

// newID makes an id that no other has: derived from the client's key where there is one, so
// that the same request again finds what the first one made.
func (r Request) newID(modelID, what string) string {
	if r.Key != "" {
		return registry.EventID(modelID, registry.EventType(what), r.Identity.Name, r.Key)
	}
	var random [16]byte
	rand.Read(random[:]) // never fails: crypto/rand
	return hex.EncodeToString(random[:])
}

// commit routes the events of a group and commits it. Once begun it is seen through, though the
// caller goes away: what follows a commit must not be left out after one.
func (s *Service) commit(ctx context.Context, g registry.Group) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var events, published, stale bool
	for i, r := range g.Records {
		switch r := r.(type) {
		case registry.EventAnnounced:
			if !r.Event.Withheld {
				r.Event.Sinks = s.Route(r.Event)
			}
			g.Records[i] = r
			events = true
		case registry.VersionPublished:
			published = true
		case registry.EvaluationRecorded, registry.EdgesAdded, registry.ModelChanged, registry.ModelDeleted:
			stale = true // what is stated of some version
		}
	}
	if err := s.Journal.Commit(context.WithoutCancel(ctx), g); err != nil {
		return err
	}
	if events {
		s.Poked()
	}
	poke(s.records)
	if published {
		poke(s.images)
	}
	if stale {
		poke(s.statements)
	}
	return nil
}

func announce(e registry.Event) registry.Record { return registry.EventAnnounced{Event: e} }

// locks holds one lock for each model while somebody wants it.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
	turn uint64            // counts who has had any of them
	last map[string]uint64 // turn of the last who had that of a model; who is forgotten had turn 0
}

type lock struct {
	sync.Mutex
	wanted int
}

// lock waits for the model's lock and gives the function that lets go of it.
func (l *locks) lock(modelID string) (unlock func()) {
	unlock, _, _ = l.takeTurn(modelID)
	return unlock
}

// takeTurn is lock that tells who had the lock before: when it is who had it at a turn that is remembered, nobody has changed the model
// since.
func (l *locks) takeTurn(modelID string) (unlock func(), before, turn uint64) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	one, ok := l.held[modelID]
	if !ok {
		one = &lock{}
		l.held[modelID] = one
	}
	one.wanted++
	l.mu.Unlock()
	one.Lock()
	l.mu.Lock()
	l.turn++
	before, turn = l.last[modelID], l.turn
	if l.last == nil {
		l.last = map[string]uint64{}
	}
	keepSome(l.last, modelID, turn, maxKnown)
	l.mu.Unlock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		if one.wanted--; one.wanted == 0 {
			delete(l.held, modelID)
		}
		l.mu.Unlock()
	}, before, turn
}
