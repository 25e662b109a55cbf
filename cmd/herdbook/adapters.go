package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/githttp"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/api/oci"
	"github.com/herdbook/herdbook/api/ssh"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// The types below hand storage to registry and api behind the interfaces that those declare.

// repositories is the store of Git repositories as the lifecycle wants it.
type repositories struct{ store *gitrepo.Store }

func (r repositories) Open(ctx context.Context, name registry.ModelName) (lifecycle.Repository, error) {
	repo, err := r.store.Create(ctx, name)
	return repository{r.store, repo}, err
}

func (r repositories) SetAside(ctx context.Context, name registry.ModelName) (string, error) {
	return r.store.SetAside(ctx, name)
}

func (r repositories) Remove(ctx context.Context, name registry.ModelName) error {
	return r.store.Remove(ctx, name)
}

func (r repositories) List(ctx context.Context) ([]registry.ModelName, error) {
	return r.store.List(ctx)
}

// HasCommit implements api.Commits.
func (r repositories) HasCommit(ctx context.Context, name registry.ModelName, id registry.ObjectID) (bool, error) {
	_, err := r.store.Repository(name).Commit(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// DiskUsage implements api.Commits.
func (r repositories) DiskUsage(ctx context.Context, name registry.ModelName) (int64, error) {
	return r.store.Repository(name).DiskUsage(ctx)
}

// OpenFile implements web.Files.
func (r repositories) OpenFile(ctx context.Context, name registry.ModelName, commit registry.ObjectID, path string) (io.ReadCloser, int64, error) {
	repo := r.store.Repository(name)
	entry, err := repo.File(ctx, commit, path)
	if err == nil && entry.Mode != registry.Regular && entry.Mode != registry.Executable {
		err = fmt.Errorf("%q is no file: %w", path, registry.ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	return repo.OpenBlob(ctx, entry.ID)
}

// repository is one of them.
type repository struct {
	store *gitrepo.Store
	*gitrepo.Repository
}

func (r repository) Sync(ctx context.Context, updates []registry.RefUpdate) error {
	if updates == nil {
		return r.store.SyncAll(ctx)
	}
	return r.Repository.Sync(ctx, updates)
}

// transport is the store of Git repositories as the doors for Git want it.
type transport struct {
	store *gitrepo.Store
	log   *slog.Logger
}

func (t transport) AdvertiseRefs(ctx context.Context, name registry.ModelName, exists bool, service, protocol string, w io.Writer) error {
	s, err := gitrepo.ParseService(service)
	if err != nil {
		return err
	}
	var repo *gitrepo.Repository
	if exists {
		if repo, err = t.store.Create(ctx, name); err != nil {
			return err
		}
	}
	return t.store.AdvertiseRefs(ctx, repo, s, protocol, w)
}

func (t transport) UploadPack(ctx context.Context, name registry.ModelName, protocol string, in io.Reader, out io.Writer) error {
	return t.store.UploadPack(ctx, gitrepo.UploadPack{Repository: t.store.Repository(name), GitProtocol: protocol, In: in, Out: out})
}

func (t transport) ReceivePack(ctx context.Context, r githttp.Receive) error {
	defer t.tidy(ctx, r.Model)()
	repo, err := t.store.Create(ctx, r.Model)
	if err != nil {
		return err
	}
	return t.store.ReceivePack(ctx, gitrepo.ReceivePack{
		Repository: repo, GitProtocol: r.Protocol, PushID: r.PushID, In: r.In, Out: r.Out, Check: checked(r.Check), Finish: r.Finish,
	})
}

// ConnectUploadPack implements ssh.Transport.
func (t transport) ConnectUploadPack(ctx context.Context, name registry.ModelName, protocol string, s ssh.Stream) error {
	repo, err := t.store.Create(ctx, name)
	if err != nil {
		return err
	}
	return t.store.ConnectUploadPack(ctx, gitrepo.UploadPack{Repository: repo, GitProtocol: protocol, In: s.In, Out: s.Out, Stop: s.Stop, Allowed: s.Allowed})
}

// ConnectReceivePack implements ssh.Transport.
func (t transport) ConnectReceivePack(ctx context.Context, r ssh.Receive) error {
	defer t.tidy(ctx, r.Model)()
	return t.store.ConnectReceivePack(ctx, gitrepo.ReceivePack{
		Repository: t.store.Repository(r.Model), GitProtocol: r.Protocol, PushID: r.PushID, In: r.Stream.In, Out: r.Stream.Out, Stop: r.Stream.Stop,
		Check: checked(r.Check), Finish: r.Finish,
	}, r.Exists, r.Begin)
}

// tidy returns what to do after a push: to take away the repository that was made for it, when nothing of the push is in it.
func (t transport) tidy(ctx context.Context, name registry.ModelName) func() {
	if there, err := t.store.Repository(name).Exists(); there || err != nil {
		return func() {}
	}
	return func() {
		if err := t.store.RemoveUnused(context.WithoutCancel(ctx), name); err != nil {
			t.log.WarnContext(ctx, "what a push left cannot be removed", "model", name, "error", err.Error())
		}
	}
}

// checked shows the store a push as the lifecycle sees it, and a refusal the other way.
func checked(check func(context.Context, lifecycle.Push) error) func(context.Context, *gitrepo.Push) error {
	return func(ctx context.Context, p *gitrepo.Push) error {
		err := check(ctx, push{p})
		var refused *lifecycle.RefusedError
		if errors.As(err, &refused) {
			return &gitrepo.Refusal{Lines: refused.Lines}
		}
		return err
	}
}

// push is a push in quarantine as the lifecycle wants it.
type push struct{ *gitrepo.Push }

func (p push) ID() string                    { return p.Push.ID }
func (p push) Updates() []registry.RefUpdate { return p.Push.Updates }
func (p push) Options() []string             { return p.Push.Options }

func (p push) NewBlobs(ctx context.Context) iter.Seq2[lifecycle.NewBlob, error] {
	return func(yield func(lifecycle.NewBlob, error) bool) {
		for b, err := range p.Push.NewBlobs(ctx) {
			if !yield(lifecycle.NewBlob{ID: b.ID, SizeBytes: b.Size, Path: b.Path}, err) {
				return
			}
		}
	}
}

// blobs is the store of content as registry and api want it.
type blobs struct {
	dir    *blob.Dir
	verify bool // compare content with its digest before it is read
}

// Put implements lifecycle.Blobs.
func (b blobs) Put(ctx context.Context, r io.Reader) (registry.BlobInfo, error) {
	d, err := b.store(ctx, r, "", -1)
	return registry.BlobInfo{Digest: d.Digest, SizeBytes: d.Size}, err
}

// Get implements lifecycle.Blobs.
func (b blobs) Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	return b.Open(ctx, d)
}

// UsedAt implements lifecycle.Blobs.
func (b blobs) UsedAt(ctx context.Context, d digest.Digest) (time.Time, error) {
	at, err := b.dir.UsedAt(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		err = fmt.Errorf("%w: %w", err, registry.ErrNotFound)
	}
	return at, err
}

// Touch implements lifecycle.Blobs.
func (b blobs) Touch(ctx context.Context, d digest.Digest) error {
	err := b.dir.Touch(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		err = fmt.Errorf("%w: %w", err, registry.ErrNotFound)
	}
	return err
}

// Open opens a blob as a file, so that the kernel can send it.
func (b blobs) Open(ctx context.Context, d digest.Digest) (*os.File, error) {
	if b.verify {
		if err := b.dir.Verify(ctx, d, nil); errors.Is(err, blob.ErrDamaged) {
			return nil, fmt.Errorf("%w: %w", err, errMissingBlob)
		}
	}
	f, err := b.dir.Open(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		// Something names the blob, or nobody would have asked for it.
		return nil, fmt.Errorf("blob %s is missing from the store: %w", d, errMissingBlob)
	}
	if err != nil {
		return nil, err
	}
	return f.File, nil
}

// errMissingBlob is an internal error: the index names a blob that the store does not have.
var errMissingBlob = errors.New("the data directory is damaged")

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

// uploads takes content whose digest the client has said.
type uploads struct{ blobs }

// Has implements lfs.Blobs.
func (u uploads) Has(ctx context.Context, d digest.Digest) (bool, error) {
	_, err := u.dir.Stat(ctx, d)
	if errors.Is(err, blob.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Put implements lfs.Blobs.
func (u uploads) Put(ctx context.Context, r io.Reader, d digest.Digest, sizeBytes int64) error {
	_, err := u.store(ctx, r, d, sizeBytes)
	return notTheObject(err)
}

// Resume implements lfs.Blobs.
func (u uploads) Resume(ctx context.Context, id string, begin bool) (lfs.Upload, error) {
	one, err := resume(ctx, u.dir, id, begin)
	if err != nil {
		return nil, err
	}
	return upload{one}, nil
}

func resume(ctx context.Context, dir *blob.Dir, id string, begin bool) (*blob.Upload, error) {
	open := dir.OpenUpload
	if begin {
		open = dir.ResumeUpload
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

// ociUploads takes the blobs that OCI clients send.
type ociUploads struct{ blobs }

// Resume implements oci.Uploads.
func (u ociUploads) Resume(ctx context.Context, id string, begin bool) (oci.Upload, error) {
	one, err := resume(ctx, u.dir, id, begin)
	if err != nil {
		return nil, err
	}
	return ociUpload{one, u.blobs}, nil
}

// Put implements oci.Uploads.
func (u ociUploads) Put(ctx context.Context, r io.Reader, want digest.Digest) (registry.LinkedBlob, error) {
	if want.Algorithm() == digest.SHA256 {
		d, err := u.store(ctx, r, want, -1)
		return registry.LinkedBlob{Digest: d.Digest, SizeBytes: d.Size}, notTheObject(err)
	}
	verifier := want.Verifier()
	d, err := u.store(ctx, io.TeeReader(r, verifier), "", -1)
	if err == nil && !verifier.Verified() {
		err = registry.Invalid("", "what was sent is not %s", want)
	}
	return registry.LinkedBlob{Digest: d.Digest, SizeBytes: d.Size, Alias: want}, err
}

// ociUpload implements oci.Upload.
type ociUpload struct {
	*blob.Upload
	blobs blobs
}

func (u ociUpload) Commit(want digest.Digest) (registry.LinkedBlob, error) {
	if want.Algorithm() == digest.SHA256 {
		d, err := u.Upload.Commit(want, -1)
		return registry.LinkedBlob{Digest: d.Digest, SizeBytes: d.Size}, notTheObject(err)
	}
	// Only the SHA-256 is computed on the way; this one takes a second look.
	d, err := u.Upload.Commit("", -1)
	if err != nil {
		return registry.LinkedBlob{}, err
	}
	content, err := u.blobs.Open(context.Background(), d.Digest)
	if err != nil {
		return registry.LinkedBlob{}, err
	}
	defer content.Close()
	got, err := want.Algorithm().FromReader(content)
	if err == nil && got != want {
		err = registry.Invalid("", "what was sent is %s", got)
	}
	return registry.LinkedBlob{Digest: d.Digest, SizeBytes: d.Size, Alias: want}, err
}

// notTheObject makes the client's fault of content that is not what it was said to be.
func notTheObject(err error) error {
	if errors.Is(err, blob.ErrDigestMismatch) || errors.Is(err, blob.ErrSizeMismatch) {
		return registry.Invalid("", "what was sent is not the object: %v", err)
	}
	return err
}

// pushLines tells the user on the terminal what came of a push.
func pushLines(host string, page func(parts ...string) string) func(m registry.Model, r lifecycle.Report) []string {
	return func(m registry.Model, r lifecycle.Report) []string {
		var lines []string
		say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
		for _, p := range r.Published {
			v := p.Record.Version
			say("%s is published as a version of %s", v.Tag, m.Name)
			say("  artifact    %s/%s:%s", host, m.Name, v.Tag)
			say("              %s", v.Artifact.Digest)
			say("  image       %s/%s/image:%s (being made)", host, m.Name, v.Tag)
			for _, verdict := range p.Verdicts {
				say("  %-11s %s", verdict.Environment, verdictLine(verdict))
			}
			say("  page        %s", page(m.Name.String(), "versions", v.Tag.String()))
		}
		for _, c := range r.Promoted {
			say("%s was promoted to %s automatically", c.Version, c.Environment)
		}
		if r.Policy != nil && r.Policy.Policy != nil {
			say("%s of %s is in force", registry.PolicyFile, r.Policy.Commit.Short())
		}
		for _, note := range r.Notes {
			say("note: %s", note)
		}
		if len(r.Published) == 0 {
			say("page: %s", page(m.Name.String()))
		}
		return slices.Clip(lines)
	}
}
