// Package apitest starts the HTTP server in the process of a test, over a real data directory.
//
// Journal, index, blobs, repositories and lifecycle are the real ones. Versions are seeded as the
// records that a push commits, without Git: what a push does is tested with real clients, in
// cmd/herdbook. The web pages are left out.
package apitest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/githttp"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/api/oci"
	"github.com/herdbook/herdbook/hooks"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/registry/modelpack"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// Server is a running server. Token is an administrator's, whose name is Admin.
type Server struct {
	URL       string
	Token     string
	Dir       string // of the data
	API       *api.Server
	Data      *storage.Data
	Lifecycle *lifecycle.Service
	Signer    *lfs.Signer
	Log       *Log

	tb testing.TB
}

// Admin is the owner of a Server's token.
const Admin = "ada"

// Config is what a test may change before the server starts.
type Config struct {
	API      api.Config
	Git      githttp.Config
	LFS      lfs.Config
	OCI      oci.Config
	Listener func(*httptest.Server) // sees the server before it listens
}

// Start starts a server that ends with the test. Callers without a token read public models,
// unless change says otherwise.
func Start(tb testing.TB, change ...func(*Config)) *Server {
	tb.Helper()
	s := &Server{Dir: tb.TempDir(), Log: &Log{}, Signer: lfs.NewSigner([]byte("0123456789abcdef0123456789abcdef")), tb: tb}
	log := slog.New(slog.NewJSONHandler(s.Log, nil))
	var err error
	if s.Data, err = storage.Open(tb.Context(), storage.Config{Dir: s.Dir, Log: log}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Data.Close(); err != nil {
			tb.Error(err)
		}
	})
	content := blobs{s.Data.Blobs}
	sinks := hooks.New(hooks.Config{
		Hooks: []hooks.Hook{{Name: "notify"}}, Outbox: s.Data.Index, Journal: s.Data, Log: log,
	})
	s.Lifecycle, err = lifecycle.New(lifecycle.Config{
		Journal: s.Data, Index: s.Data.Index, Repositories: repositories{s.Data.Repositories}, Blobs: content, Log: log, Route: sinks.Route,
		TensorCache: s.Data.TensorLists(), CompareWait: 50 * time.Millisecond,
	})
	if err != nil {
		tb.Fatal(err)
	}
	secret, kept := api.NewToken(Admin, access.Admin)
	s.Token = secret
	s.Commit(registry.TokenCreated{Token: kept})

	web := httptest.NewUnstartedServer(nil)
	public := &url.URL{Scheme: "http", Host: web.Listener.Addr().String()}
	s.URL = public.String()
	c := Config{
		API: api.Config{
			Index: s.Data.Index, Lifecycle: s.Lifecycle, Commits: commits{s.Data.Repositories}, Store: s.Data.Blobs, Content: uploads{content}, Sinks: sinks, Log: log,
			Metrics: prometheus.NewRegistry(), Ready: s.Data.Ready, PublicURL: public, AnonymousRead: true, Version: "test",
		},
		Git: githttp.Config{
			Models: s.Data.Index, Lifecycle: s.Lifecycle, Transport: transport{s.Data.Repositories},
			Lines: func(registry.Model, lifecycle.Report) []string { return nil }, Pushed: func(string) {}, Log: log,
		},
		LFS: lfs.Config{Index: s.Data.Index, Blobs: uploads{content}, Lifecycle: s.Lifecycle, Signer: s.Signer, PublicURL: public, Log: log},
		OCI: oci.Config{
			Index: s.Data.Index, Blobs: content, Uploads: ociUploads{content}, Lifecycle: s.Lifecycle,
			Sessions: oci.Sessions{Key: []byte("0123456789abcdef")}, PublicURL: public, Log: log,
		},
	}
	for _, f := range change {
		f(&c)
	}
	c.API.Doors = append(c.API.Doors, githttp.New(c.Git), lfs.New(c.LFS), oci.New(c.OCI))
	s.API = api.New(c.API)
	web.Config.Handler = s.API
	web.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelError)
	if c.Listener != nil {
		c.Listener(web)
	}
	web.Start()
	tb.Cleanup(web.Close)
	return s
}

// Commit makes records durable and visible.
func (s *Server) Commit(records ...registry.Record) {
	s.tb.Helper()
	err := s.Data.Commit(s.tb.Context(), registry.Group{At: now(), Actor: Admin, Records: records})
	if err != nil {
		s.tb.Fatal(err)
	}
}

func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// Model makes a model.
func (s *Server) Model(name string, visibility registry.Visibility) registry.Model {
	s.tb.Helper()
	by := lifecycle.Request{Identity: access.Identity{Name: Admin, Role: access.Admin}}
	m, err := s.Lifecycle.CreateModel(s.tb.Context(), by, registry.MustModelName(name), visibility, "")
	if err != nil {
		s.tb.Fatal(err)
	}
	return m
}

// Blob stores content that the model was shown, as after an upload.
func (s *Server) Blob(m registry.Model, content []byte) digest.Digest {
	s.tb.Helper()
	d := s.put(content)
	s.Commit(registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{{Digest: d, SizeBytes: int64(len(content))}}})
	return d
}

func (s *Server) put(content []byte) digest.Digest {
	s.tb.Helper()
	info, err := blobs{s.Data.Blobs}.Put(s.tb.Context(), bytes.NewReader(content))
	if err != nil {
		s.tb.Fatal(err)
	}
	return info.Digest
}

// CommitOf is the commit at which [Server.Publish] puts a tag.
func CommitOf(tag string) registry.ObjectID {
	sum := sha1.Sum([]byte(tag))
	return registry.ObjectID(hex.EncodeToString(sum[:]))
}

// Publish makes a version of files with its artifact and its image.
func (s *Server) Publish(m registry.Model, tag string, files map[string]string) registry.VersionRecord {
	s.tb.Helper()
	at := now()
	v := registry.Version{
		Tag: registry.MustTag(tag), Commit: CommitOf(tag), PublishedAt: at, PublishedBy: Admin, Format: modelpack.Format,
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		v.Files = append(v.Files, registry.File{Path: path, Digest: s.put([]byte(files[path])), SizeBytes: int64(len(files[path]))})
	}
	artifact, err := modelpack.Pack(modelpack.Source{Model: m.Name, Tag: v.Tag, Commit: v.Commit, CreatedAt: at, Files: v.Files})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.put(artifact.Config.Bytes)
	s.put(artifact.Manifest.Bytes)
	v.Artifact, v.Config = artifact.Manifest.Descriptor, artifact.Config.Descriptor
	self := registry.VersionNodeID(m.ID, v.Tag)
	s.Commit(
		registry.RefMoved{ModelID: m.ID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: registry.BranchRef("main"), New: v.Commit}},
		registry.VersionPublished{
			ModelID: m.ID, Version: v, Manifest: artifact.Manifest.Stored(),
			Edges: []registry.LineageEdge{{From: self, To: registry.DatasetNodeID("calls"), Kind: registry.Used}},
		},
		s.image(m, v, artifact.Manifest.Bytes),
	)
	record, err := s.Data.Index.Version(s.tb.Context(), m.ID, v.Tag)
	if err != nil {
		s.tb.Fatal(err)
	}
	return record
}

func (s *Server) image(m registry.Model, v registry.Version, manifest []byte) registry.ImageBuilt {
	s.tb.Helper()
	built := registry.ImageBuilt{ModelID: m.ID, Tag: v.Tag}
	for _, files := range modelpack.LayerFiles(v.Files) {
		layer, err := modelpack.NewLayer(files, s.Open)
		if err != nil {
			s.tb.Fatal(err)
		}
		built.Layers = append(built.Layers, layer)
	}
	image, err := modelpack.NewImage(manifest, v.Artifact, built.Layers)
	if err != nil {
		s.tb.Fatal(err)
	}
	for _, c := range image.Configs {
		s.put(c.Bytes)
		built.Blobs = append(built.Blobs, registry.LinkedBlob{Digest: c.Digest, SizeBytes: c.SizeBytes})
	}
	for _, d := range image.Manifests {
		s.put(d.Bytes)
		built.Manifests = append(built.Manifests, d.Stored())
	}
	built.Status = registry.ImageStatus{State: registry.ImageReady, Digest: image.Index().Digest}
	return built
}

// Open opens a blob.
func (s *Server) Open(d digest.Digest) (io.ReadSeekCloser, error) {
	return blobs{s.Data.Blobs}.Open(s.tb.Context(), d)
}

// Policy puts a policy in force.
func (s *Server) Policy(m registry.Model, environments ...registry.Environment) {
	s.tb.Helper()
	s.Commit(registry.PolicySet{ModelID: m.ID, Policy: registry.PolicyState{
		Commit: CommitOf("policy"), Blob: CommitOf("policy file"), Policy: &registry.Policy{Environments: environments},
	}})
}

// Answer is what came back.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Do sends a request over the network and reads the answer. header holds names and values in turn.
func (s *Server) Do(method, target, body string, header ...string) Answer {
	s.tb.Helper()
	if !strings.HasPrefix(target, "http") {
		target = s.URL + target
	}
	r, err := http.NewRequestWithContext(s.tb.Context(), method, target, strings.NewReader(body))
	if err != nil {
		s.tb.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return s.Send(r)
}

// Send sends a request and reads the answer. Redirects are not followed.
func (s *Server) Send(r *http.Request) Answer {
	s.tb.Helper()
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.tb.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		s.tb.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	return Answer{answer.StatusCode, answer.Header, string(data)}
}

// Bearer is the header that carries the token.
func (s *Server) Bearer() (name, value string) { return "Authorization", "Bearer " + s.Token }

// As calls Do as the administrator, with a body of JSON.
func (s *Server) As(method, target, body string, header ...string) Answer {
	s.tb.Helper()
	name, value := s.Bearer()
	return s.Do(method, target, body, append([]string{name, value, "Content-Type", "application/json"}, header...)...)
}

// Sendfile counts the bytes that go from a file to a connection in one piece, which the kernel
// does without copying them through the server.
type Sendfile struct{ bytes atomic.Int64 }

// Watch is for [Start].
func (f *Sendfile) Watch(c *Config) {
	c.Listener = func(web *httptest.Server) { web.Listener = watched{web.Listener, f} }
}

// Take gives the bytes since the last call.
func (f *Sendfile) Take() int64 { return f.bytes.Swap(0) }

type watched struct {
	net.Listener
	*Sendfile
}

func (l watched) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{conn.(*net.TCPConn), l.Sendfile}, nil
}

type watchedConn struct {
	*net.TCPConn
	seen *Sendfile
}

// ReadFrom is what net/http calls with a body that it does not have to look into. The connection
// uses sendfile(2) for a file, or a part of one, and for nothing else.
func (c *watchedConn) ReadFrom(r io.Reader) (int64, error) {
	inner := r
	if part, ok := r.(*io.LimitedReader); ok {
		inner = part.R
	}
	_, isFile := inner.(*os.File)
	n, err := c.TCPConn.ReadFrom(r)
	if isFile {
		c.seen.bytes.Add(n)
	}
	return n, err
}

// Log collects what the server logs.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is all that was logged so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// repositories hands the repositories to the lifecycle as far as models need them.
type repositories struct{ *gitrepo.Store }

func (r repositories) Open(ctx context.Context, name registry.ModelName) (lifecycle.Repository, error) {
	_, err := r.Create(ctx, name)
	return nil, err
}

// commits implements api.Commits.
type commits struct{ *gitrepo.Store }

func (c commits) HasCommit(ctx context.Context, name registry.ModelName, id registry.ObjectID) (bool, error) {
	_, err := c.Repository(name).Commit(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (c commits) DiskUsage(ctx context.Context, name registry.ModelName) (int64, error) {
	return c.Repository(name).DiskUsage(ctx)
}

// transport implements githttp.Transport for clients that fetch.
type transport struct{ store *gitrepo.Store }

func (t transport) AdvertiseRefs(ctx context.Context, name registry.ModelName, exists bool, service, protocol string, w io.Writer) error {
	s, err := gitrepo.ParseService(service)
	if err != nil {
		return err
	}
	var repo *gitrepo.Repository
	if exists {
		repo = t.store.Repository(name)
	}
	return t.store.AdvertiseRefs(ctx, repo, s, protocol, w)
}

func (t transport) UploadPack(ctx context.Context, name registry.ModelName, protocol string, in io.Reader, out io.Writer) error {
	return t.store.UploadPack(ctx, gitrepo.UploadPack{Repository: t.store.Repository(name), GitProtocol: protocol, In: in, Out: out})
}

// ReceivePack takes the whole body and no push.
func (t transport) ReceivePack(_ context.Context, r githttp.Receive) error {
	if _, err := io.Copy(io.Discard, r.In); err != nil {
		return registry.Invalid("", "the body cannot be read: %v", err)
	}
	return nil
}

// blobs hands the store of content to lifecycle and doors.
type blobs struct{ dir *blob.Dir }

func (b blobs) Put(ctx context.Context, r io.Reader) (registry.BlobInfo, error) {
	d, err := b.store(ctx, r, "", -1)
	return registry.BlobInfo{Digest: d.Digest, SizeBytes: d.Size}, err
}

func (b blobs) Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	return b.Open(ctx, d)
}

func (b blobs) UsedAt(ctx context.Context, d digest.Digest) (time.Time, error) {
	return b.dir.UsedAt(ctx, d)
}

func (b blobs) Touch(ctx context.Context, d digest.Digest) error {
	err := b.dir.Touch(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		err = fmt.Errorf("%w: %w", err, registry.ErrNotFound)
	}
	return err
}

func (b blobs) Open(ctx context.Context, d digest.Digest) (*os.File, error) {
	f, err := b.dir.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return f.File, nil
}

func (b blobs) store(ctx context.Context, r io.Reader, want digest.Digest, size int64) (blob.Descriptor, error) {
	w, err := b.dir.Create(ctx)
	if err != nil {
		return blob.Descriptor{}, err
	}
	defer w.Abort()
	if _, err := io.Copy(w, r); err != nil {
		return blob.Descriptor{}, err
	}
	return w.Commit(want, size)
}

// uploads implements lfs.Blobs.
type uploads struct{ blobs }

// Has implements lfs.Blobs.
func (u uploads) Has(ctx context.Context, d digest.Digest) (bool, error) {
	_, err := u.dir.Stat(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (u uploads) Put(ctx context.Context, r io.Reader, d digest.Digest, sizeBytes int64) error {
	_, err := u.store(ctx, r, d, sizeBytes)
	return notTheObject(err)
}

// Resume implements lfs.Blobs.
func (u uploads) Resume(ctx context.Context, id string, begin bool) (lfs.Upload, error) {
	one, err := u.resume(ctx, id, begin)
	return upload{one}, err
}

func (b blobs) resume(ctx context.Context, id string, begin bool) (*blob.Upload, error) {
	open := b.dir.OpenUpload
	if begin {
		open = b.dir.ResumeUpload
	}
	one, err := open(ctx, id)
	switch {
	case errors.Is(err, blob.ErrNotFound):
		err = fmt.Errorf("%w: %w", err, registry.ErrNotFound)
	case errors.Is(err, blob.ErrInUse):
		err = registry.Conflict("the upload is in use; try again")
	}
	return one, err
}

// upload implements lfs.Upload.
type upload struct{ *blob.Upload }

func (u upload) Commit(d digest.Digest, sizeBytes int64) error {
	_, err := u.Upload.Commit(d, sizeBytes)
	return notTheObject(err)
}

// ociUploads implements oci.Uploads. It takes digests of SHA-256 only.
type ociUploads struct{ blobs }

func (u ociUploads) Resume(ctx context.Context, id string, begin bool) (oci.Upload, error) {
	one, err := u.resume(ctx, id, begin)
	return ociUpload{one}, err
}

func (u ociUploads) Put(ctx context.Context, r io.Reader, want digest.Digest) (registry.LinkedBlob, error) {
	d, err := u.store(ctx, r, want, -1)
	return registry.LinkedBlob{Digest: d.Digest, SizeBytes: d.Size}, notTheObject(err)
}

// ociUpload implements oci.Upload.
type ociUpload struct{ *blob.Upload }

func (u ociUpload) Commit(want digest.Digest) (registry.LinkedBlob, error) {
	d, err := u.Upload.Commit(want, -1)
	return registry.LinkedBlob{Digest: d.Digest, SizeBytes: d.Size}, notTheObject(err)
}

// notTheObject makes the client's fault of content that is not what it was said to be.
func notTheObject(err error) error {
	if errors.Is(err, blob.ErrDigestMismatch) || errors.Is(err, blob.ErrSizeMismatch) {
		return registry.Invalid("", "what was sent is not the object: %v", err)
	}
	return err
}
