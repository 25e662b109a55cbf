package lifecycle_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

func TestMain(m *testing.M) {
	if hook.Wanted() { // storage tries the hook with this program
		syscall.Exit(hook.Main()) // os.Exit sleeps for a second in a program with the race detector
	}
	os.Exit(m.Run())
}

var (
	fraud      = registry.MustModelName("acme/fraud")
	staging    = registry.MustEnvironmentName("staging")
	production = registry.MustEnvironmentName("production")
)

// named lets cmp compare the names of the registry.
var named = cmpopts.EquateComparable(registry.ModelName{}, registry.Tag{}, registry.EnvironmentName{})

// by is a request of a person with all rights.
func by(name string) lifecycle.Request {
	return lifecycle.Request{Identity: access.Identity{Name: name, Role: access.Admin}}
}

// faults are what a test breaks or counts of the storage below a Service.
type faults struct {
	lifecycle.Journal
	lifecycle.Index
	lifecycle.Repositories
	lifecycle.Blobs
	deployer    func(registry.ModelName, string) error
	compareWait time.Duration
}

// site is a data directory with a Service over it.
type site struct {
	*lifecycle.Service
	tb   testing.TB
	dir  string
	data *storage.Data
	log  *logged
}

// open opens an empty data directory.
func open(tb testing.TB, change ...func(*faults)) *site {
	tb.Helper()
	return openDir(tb, tb.TempDir(), change...)
}

// openDir opens a data directory. Its storage is closed with the test at the latest.
func openDir(tb testing.TB, dir string, change ...func(*faults)) *site {
	tb.Helper()
	s := &site{tb: tb, dir: dir, log: &logged{}}
	var err error
	if s.data, err = storage.Open(tb.Context(), storage.Config{Dir: dir, Log: s.logger()}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.close)
	s.serve(change...)
	return s
}

func (s *site) logger() *slog.Logger { return slog.New(slog.NewTextHandler(s.log, nil)) }

// serve puts a new Service over the open storage, as after a start.
func (s *site) serve(change ...func(*faults)) {
	s.tb.Helper()
	f := faults{
		Journal: s.data, Index: s.data.Index, Repositories: repositories{s.data.Repositories}, Blobs: blobs{s.data.Blobs},
	}
	for _, c := range change {
		c(&f)
	}
	var err error
	s.Service, err = lifecycle.New(lifecycle.Config{
		Journal: f.Journal, Index: f.Index, Repositories: f.Repositories, Blobs: f.Blobs, Log: s.logger(), Deployer: f.deployer, FullShare: -1,
		TensorCache: s.data.TensorLists(), CompareWait: f.compareWait,
		Route: func(registry.Event) []string { return []string{"notify"} },
	})
	if err != nil {
		s.tb.Fatal(err)
	}
}

func (s *site) close() {
	if s.data == nil {
		return
	}
	if err := s.data.Close(); err != nil {
		s.tb.Error(err)
	}
	s.data = nil
}

// look does what the server does until it has looked at every model.
func (s *site) look() error {
	return errors.Join(s.Start(s.tb.Context()), s.Sweep(s.tb.Context()))
}

// model makes a model.
func (s *site) model(name registry.ModelName) registry.Model {
	s.tb.Helper()
	m, err := s.CreateModel(s.tb.Context(), by("ada"), name, registry.Public, "")
	if err != nil {
		s.tb.Fatal(err)
	}
	return m
}

// reload is the model as the index has it now.
func (s *site) reload(m registry.Model) registry.Model {
	s.tb.Helper()
	m, err := s.data.Index.ModelByID(s.tb.Context(), m.ID)
	if err != nil {
		s.tb.Fatal(err)
	}
	return m
}

// git runs git in the repository of a model, behind the server's back.
func (s *site) git(name registry.ModelName, args ...string) string {
	s.tb.Helper()
	return s.gitInput(name, "", args...)
}

func (s *site) gitInput(name registry.ModelName, in string, args ...string) string {
	s.tb.Helper()
	return runGit(s.tb, filepath.Join(s.dir, "repos", name.String()+".git"), in, args...)
}

func runGit(tb testing.TB, dir, in string, args ...string) string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(in)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org", "GIT_COMMITTER_DATE=1700000000 +0000", "GIT_AUTHOR_DATE=1700000000 +0000")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("git %v: %v: %s", args, err, stderr.String())
	}
	return strings.TrimSuffix(string(out), "\n")
}

// commit adds a commit of exactly these files to a branch, behind the server's back.
func (s *site) commit(name registry.ModelName, branch string, files map[string]string) registry.ObjectID {
	s.tb.Helper()
	ref := registry.BranchRef(branch)
	var in strings.Builder
	fmt.Fprintf(&in, "commit %s\nmark :1\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 6\nchange\n", ref)
	if s.git(name, "for-each-ref", ref) != "" {
		fmt.Fprintf(&in, "from %s^0\n", ref)
	}
	in.WriteString("deleteall\n")
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", path, len(files[path]), files[path])
	}
	in.WriteString("get-mark :1\n")
	return registry.ObjectID(s.gitInput(name, in.String(), "fast-import", "--quiet"))
}

// tag points a tag at an object, behind the server's back.
func (s *site) tag(name registry.ModelName, tag string, id registry.ObjectID) {
	s.tb.Helper()
	s.git(name, "update-ref", "refs/tags/"+tag, string(id))
}

func (s *site) reconcile(m registry.Model) lifecycle.Report {
	s.tb.Helper()
	report, err := s.Reconcile(s.tb.Context(), m.ID)
	if err != nil {
		s.tb.Fatalf("Reconcile(%s) = %v", m.Name, err)
	}
	return report
}

// publish makes a version of files: a commit on main, its tag, and the look at both.
func (s *site) publish(m registry.Model, tag string, files map[string]string) registry.VersionRecord {
	s.tb.Helper()
	s.tag(m.Name, tag, s.commit(m.Name, "main", files))
	report := s.reconcile(m)
	if len(report.Published) != 1 || report.Published[0].Record.Version.Tag.String() != tag {
		s.tb.Fatalf("Reconcile after %s was written: published %v, notes %q", tag, publishedTags(report), report.Notes)
	}
	return report.Published[0].Record
}

func publishedTags(r lifecycle.Report) []string {
	tags := []string{}
	for _, p := range r.Published {
		tags = append(tags, p.Record.Version.Tag.String())
	}
	return tags
}

// policy puts a policy on main, beside a README.
func (s *site) policy(m registry.Model, yaml string) lifecycle.Report {
	s.tb.Helper()
	s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n", registry.PolicyFile: yaml})
	return s.reconcile(m)
}

// evaluate records the f1 of a version.
func (s *site) evaluate(m registry.Model, v registry.VersionRecord, f1 float64) lifecycle.Recorded {
	s.tb.Helper()
	recorded, err := s.RecordEvaluation(s.tb.Context(), by("jenkins"), m, v.Version.Commit, f1Of(f1))
	if err != nil {
		s.tb.Fatalf("RecordEvaluation(%s, f1 %v) = %v", v.Version.Tag, f1, err)
	}
	return recorded
}

func f1Of(f1 float64) registry.EvaluationInput {
	return registry.EvaluationInput{Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{"f1": f1}}
}

func (s *site) promote(m registry.Model, env registry.EnvironmentName, tag string) registry.EnvironmentChange {
	s.tb.Helper()
	c, err := s.Promote(s.tb.Context(), by("ada"), m, env, lifecycle.Promotion{Version: registry.MustTag(tag)})
	if err != nil {
		s.tb.Fatalf("Promote(%s, %s) = %v", env, tag, err)
	}
	return c
}

// version reads a version of the index.
func (s *site) version(m registry.Model, tag string) registry.VersionRecord {
	s.tb.Helper()
	v, err := s.data.Index.Version(s.tb.Context(), m.ID, registry.MustTag(tag))
	if err != nil {
		s.tb.Fatalf("Version(%s) = %v", tag, err)
	}
	return v
}

// in is the version in an environment; empty while there is none.
func (s *site) in(m registry.Model, env registry.EnvironmentName) string {
	s.tb.Helper()
	state, err := s.data.Index.Environment(s.tb.Context(), m.ID, env)
	if err != nil {
		s.tb.Fatal(err)
	}
	return state.Version().String()
}

// history lists the changes of an environment, the oldest first, as "KIND VERSION, before PREVIOUS".
func (s *site) history(m registry.Model, env registry.EnvironmentName) []string {
	s.tb.Helper()
	changes, _, err := s.data.Index.History(s.tb.Context(), m.ID, env, registry.Page{})
	if err != nil {
		s.tb.Fatal(err)
	}
	list := []string{}
	for _, c := range changes {
		list = append(list, fmt.Sprintf("%s %s, before %s", c.Kind, c.Version, c.Previous))
	}
	return list
}

// events lists what was announced behind the event with number after, the oldest first.
func (s *site) events(after uint64) []registry.Event {
	s.tb.Helper()
	events, err := s.data.Index.Events(s.tb.Context(), access.System, after, 0)
	if err != nil {
		s.tb.Fatal(err)
	}
	return events
}

func (s *site) lastEvent() uint64 {
	s.tb.Helper()
	var last uint64
	for events := s.events(0); len(events) > 0; events = s.events(last) {
		last = events[len(events)-1].Seq
	}
	return last
}

// told lists events as "TYPE WHAT ACTOR", where WHAT is the version, the environment or the ref.
func told(events []registry.Event) []string {
	list := []string{}
	for _, e := range events {
		what := strings.TrimSpace(e.Version.String() + " " + e.Environment.String())
		if _, ref, found := strings.Cut(string(e.Data), `"ref":"`); found && what == "" {
			what, _, _ = strings.Cut(ref, `"`)
		}
		list = append(list, strings.Join(strings.Fields(fmt.Sprintf("%s %s by %s", e.Type, what, e.Actor)), " "))
	}
	return list
}

// edges lead from a version to what it came from.
func (s *site) edges(node string) []registry.LineageEdge {
	s.tb.Helper()
	graph, err := s.data.Index.Lineage(s.tb.Context(), access.System, registry.Walk{Start: node, Direction: registry.Ancestors, Depth: 1})
	if err != nil {
		s.tb.Fatal(err)
	}
	return graph.Edges
}

// groups is the number of groups in the journal.
func (s *site) groups() uint64 {
	s.tb.Helper()
	n, err := s.data.Index.Applied(s.tb.Context())
	if err != nil {
		s.tb.Fatal(err)
	}
	return n
}

// pointer is the Git LFS pointer to content.
func pointer(content string) string {
	sum := sha256.Sum256([]byte(content))
	return pointerTo(hex.EncodeToString(sum[:]), len(content))
}

func pointerTo(oid string, size int) string {
	return "version https://git-lfs.github.com/spec/v1\noid sha256:" + oid + "\nsize " + strconv.Itoa(size) + "\n"
}

// upload stores content and shows it to a model, as an LFS upload does.
func (s *site) upload(m registry.Model, content string) digest.Digest {
	s.tb.Helper()
	info, err := blobs{s.data.Blobs}.Put(s.tb.Context(), strings.NewReader(content))
	if err == nil {
		err = s.LinkBlobs(s.tb.Context(), by("ada"), m, registry.LinkedBlob{Digest: info.Digest, SizeBytes: info.SizeBytes})
	}
	if err != nil {
		s.tb.Fatal(err)
	}
	return info.Digest
}

// push is a push whose refs and blobs the test names.
type push struct {
	id      string
	updates []registry.RefUpdate
	blobs   []pushedBlob
	options []string
	trees   []registry.ObjectID // objects that are no commits
	bombs   []registry.ObjectID // commits with too many files
	follows [][2]registry.ObjectID
	files   map[string]registry.ObjectID // by COMMIT:PATH
}

type pushedBlob struct {
	path, content string
	sizeBytes     int64 // if it is not that of content
}

func (p *push) ID() string                    { return p.id }
func (p *push) Updates() []registry.RefUpdate { return p.updates }
func (p *push) Options() []string             { return p.options }

func (p *push) Peel(_ context.Context, id registry.ObjectID) (registry.ObjectID, error) {
	if slices.Contains(p.trees, id) {
		return "", registry.ErrNotFound
	}
	return id, nil
}

func (p *push) IsAncestor(_ context.Context, ancestor, descendant registry.ObjectID) (bool, error) {
	return slices.Contains(p.follows, [2]registry.ObjectID{ancestor, descendant}), nil
}

func (p *push) FileID(_ context.Context, commit registry.ObjectID, path string) (registry.ObjectID, error) {
	if id, ok := p.files[string(commit)+":"+path]; ok {
		return id, nil
	}
	return "", registry.ErrNotFound
}

func (p *push) Files(_ context.Context, commit registry.ObjectID) iter.Seq2[registry.TreeEntry, error] {
	return func(yield func(registry.TreeEntry, error) bool) {
		if slices.Contains(p.bombs, commit) {
			yield(registry.TreeEntry{}, fmt.Errorf("more than 7 files: %w", registry.ErrTooLarge))
		}
	}
}

func (p *push) NewBlobs(context.Context) iter.Seq2[lifecycle.NewBlob, error] {
	return func(yield func(lifecycle.NewBlob, error) bool) {
		for i, b := range p.blobs {
			if !yield(lifecycle.NewBlob{ID: blobID(i), SizeBytes: max(b.sizeBytes, int64(len(b.content))), Path: b.path}, nil) {
				return
			}
		}
	}
}

func (p *push) ReadBlobs(_ context.Context, ids []registry.ObjectID, maxBytes int64, give func(registry.ObjectID, []byte) error) error {
	for _, id := range ids {
		for i, b := range p.blobs {
			if blobID(i) != id {
				continue
			}
			if int64(len(b.content)) > maxBytes {
				return registry.ErrTooLarge
			}
			if err := give(id, []byte(b.content)); err != nil {
				return err
			}
		}
	}
	return nil
}

func blobID(i int) registry.ObjectID { return registry.ObjectID(fmt.Sprintf("%040x", i+1)) }

// refusal is the text of a RefusedError; the test fails when err is none.
func refusal(tb testing.TB, err error) string {
	tb.Helper()
	var refused *lifecycle.RefusedError
	if !errors.As(err, &refused) {
		tb.Fatalf("CheckPush = %v, want a RefusedError", err)
	}
	return strings.Join(refused.Lines, "\n")
}

// logged collects what a Service logs.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines are the logged lines with a text in them.
func (l *logged) lines(with string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := []string{}
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, with) {
			found = append(found, line)
		}
	}
	return found
}

// repositories, repository and blobs hand the storage to a Service as cmd/herdbook does.
type repositories struct{ *gitrepo.Store }

func (r repositories) Open(ctx context.Context, name registry.ModelName) (lifecycle.Repository, error) {
	repo, err := r.Create(ctx, name)
	return repository{r.Store, repo}, err
}

type repository struct {
	store *gitrepo.Store
	*gitrepo.Repository
}

func (r repository) Sync(ctx context.Context, updates []registry.RefUpdate) error {
	// Without updates everything on the file system is synced, which has nothing to do with what
	// these tests ask and depends on who else writes there.
	return r.Repository.Sync(ctx, updates)
}

// watchedRepositories counts how often refs are listed, and does something then.
type watchedRepositories struct {
	lifecycle.Repositories
	listed                atomic.Int64
	beforeRefs, afterRefs func()
}

func (w *watchedRepositories) Open(ctx context.Context, name registry.ModelName) (lifecycle.Repository, error) {
	repo, err := w.Repositories.Open(ctx, name)
	return watchedRepository{repo, w}, err
}

type watchedRepository struct {
	lifecycle.Repository
	watch *watchedRepositories
}

func (r watchedRepository) Refs(ctx context.Context) ([]registry.Ref, error) {
	r.watch.listed.Add(1)
	if r.watch.beforeRefs != nil {
		r.watch.beforeRefs()
	}
	refs, err := r.Repository.Refs(ctx)
	if r.watch.afterRefs != nil {
		r.watch.afterRefs()
	}
	return refs, err
}

type blobs struct{ dir *blob.Dir }

func (b blobs) Put(ctx context.Context, r io.Reader) (registry.BlobInfo, error) {
	w, err := b.dir.Create(ctx)
	if err != nil {
		return registry.BlobInfo{}, err
	}
	defer w.Abort()
	if _, err := io.Copy(w, r); err != nil {
		return registry.BlobInfo{}, err
	}
	d, err := w.Commit("", -1)
	return registry.BlobInfo{Digest: d.Digest, SizeBytes: d.Size}, err
}

func (b blobs) Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	f, err := b.dir.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return f.File, nil
}

func (b blobs) UsedAt(ctx context.Context, d digest.Digest) (time.Time, error) {
	at, err := b.dir.UsedAt(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		err = registry.ErrNotFound
	}
	return at, err
}

func (b blobs) Touch(ctx context.Context, d digest.Digest) error {
	err := b.dir.Touch(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		err = fmt.Errorf("%w: %w", err, registry.ErrNotFound)
	}
	return err
}

// breakable is a store that lost the blobs that a test names.
type breakable struct {
	lifecycle.Blobs
	lost map[string]bool // digests
	get  func()          // is called before each read, if it is set
}

func (b *breakable) Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	if b.get != nil {
		b.get()
	}
	if b.lost[d.String()] {
		return nil, errBroken
	}
	return b.Blobs.Get(ctx, d)
}

// errBroken is what a broken part says.
var errBroken = errors.New("broken by the test")
