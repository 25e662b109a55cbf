package ocipush

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	"github.com/herdbook/herdbook/registry"
)

// Source is a repository to copy from. It may be called by several goroutines at once.
type Source interface {
	// Resolve finds the manifest that a tag names, or says [registry.ErrNotFound].
	Resolve(ctx context.Context, tag string) (v1.Descriptor, error)
	// Open reads a manifest or a blob from its beginning. It is called again for each try.
	Open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// Referrers lists the manifests whose subject is d.
	Referrers(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error)
}

// Version is one to copy.
type Version struct {
	Tag      string // the version's own, or another that names it, such as that of an environment
	Artifact Source
	Image    Source // nil when there is none
}

// Destination is where a version goes.
type Destination struct {
	Artifact *Repository
	Image    *Repository // nil when the image is not wanted
}

// Options of a copy; the zero value copies everything.
type Options struct {
	Concurrency int // blobs at a time; 3 by default
	NoReferrers bool
	Tags        []string // given beside the version's; they move
	Meter       *Meter   // may be nil
}

// Pushed says what was copied.
type Pushed struct {
	Artifact Copied  `json:"artifact"`
	Image    *Copied `json:"image,omitempty"`
}

// Copied says what was copied to one repository.
type Copied struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	Tags       []string      `json:"tags"`
	Copied     Count         `json:"copied"`
	Mounted    Count         `json:"mounted"` // the registry had it in another repository
	Skipped    Count         `json:"skipped"` // it was there

	root v1.Descriptor
}

// Count is a number of manifests and blobs, and their size.
type Count struct {
	Items int   `json:"items"`
	Bytes int64 `json:"bytes"`
}

func (c *Count) add(d v1.Descriptor) { c.Items, c.Bytes = c.Items+1, c.Bytes+d.Size }

// Meter shows how far a copy is. Its methods may be called while the copy goes on.
type Meter struct{ done, total atomic.Int64 }

// Bytes says how many are there of those that have to be there; both grow, and done shrinks when something has to be sent again.
func (m *Meter) Bytes() (done, total int64) { return m.done.Load(), m.total.Load() }

// Push copies a version: its artifact with all that refers to it, and its image. The tags come last, when all is there.
func Push(ctx context.Context, v Version, to Destination, o Options) (Pushed, error) {
	var pushed Pushed
	if o.Meter == nil {
		o.Meter = &Meter{}
	}
	for _, tag := range slices.Concat([]string{v.Tag}, o.Tags) {
		if err := to.Artifact.checkTag(tag); err != nil {
			return pushed, err
		}
	}
	root, err := v.Artifact.Resolve(ctx, v.Tag)
	if err != nil {
		return pushed, err
	}
	c := copier{Options: o, from: v.Artifact, to: to.Artifact}
	var image v1.Descriptor
	if v.Image != nil {
		image, err = v.Image.Resolve(ctx, v.Tag)
		if err != nil && (to.Image != nil || !errors.Is(err, registry.ErrNotFound)) {
			return pushed, err
		}
	}
	if to.Image == nil {
		c.without = image.Digest // the image refers to the artifact
	}
	if pushed.Artifact, err = c.copy(ctx, root); err != nil {
		return pushed, err
	}
	if to.Image != nil && v.Image != nil {
		c := copier{Options: o, from: v.Image, to: to.Image}
		if to.Image.Host() == to.Artifact.Host() {
			c.mountFrom = to.Artifact.remote.Reference.Repository
		}
		copied, err := c.copy(ctx, image)
		if err == nil {
			err = copied.tag(ctx, to.Image, v.Tag, o.Tags)
		}
		pushed.Image = &copied
		if err != nil {
			return pushed, err
		}
	}
	return pushed, pushed.Artifact.tag(ctx, to.Artifact, v.Tag, o.Tags)
}

// tag gives what was copied the tag that it has here, and those that move.
func (c *Copied) tag(ctx context.Context, to *Repository, own string, moving []string) error {
	_, err := registry.ParseTag(own)
	for i, tag := range append([]string{own}, moving...) {
		if err := to.Tag(ctx, c.root, tag, i == 0 && err == nil); err != nil {
			return err
		}
		c.Tags = append(c.Tags, tag)
	}
	return nil
}

// copier copies from one repository to one other.
type copier struct {
	Options
	from      Source
	to        *Repository
	without   digest.Digest // a referrer that is left out
	mountFrom string        // a repository of the same registry that may have the blobs

	manifests map[digest.Digest][]byte
	nodes     map[digest.Digest]v1.Descriptor
	referrers map[digest.Digest][]v1.Descriptor // by subject

	mu    sync.Mutex
	there map[digest.Digest]bool // counted by the meter
}

// copy copies a manifest, all below it and what refers to any of that. What is there already is skipped, so that a copy that was
// cut off goes on where it was.
func (c *copier) copy(ctx context.Context, root v1.Descriptor) (Copied, error) {
	result := Copied{Repository: c.to.Name(), Digest: root.Digest, root: root}
	roots, err := c.walk(ctx, root)
	if err != nil {
		return result, err
	}
	var all Count
	for _, d := range c.nodes {
		all.add(d)
	}
	c.Meter.total.Add(all.Bytes)
	t := &target{Repository: c.to, from: c.from, meter: c.Meter}
	arrived := func(n *Count) func(context.Context, v1.Descriptor) error {
		return func(_ context.Context, d v1.Descriptor) error {
			c.arrived(d, n, n == &result.Copied && !isManifest(d))
			return nil
		}
	}
	options := oras.CopyGraphOptions{
		Concurrency: c.Concurrency, MaxMetadataBytes: registry.MaxManifestBytes, FindSuccessors: c.successors,
		PostCopy: arrived(&result.Copied), OnMounted: arrived(&result.Mounted), OnCopySkipped: arrived(&result.Skipped),
	}
	if c.mountFrom != "" {
		options.MountFrom = func(context.Context, v1.Descriptor) ([]string, error) { return []string{c.mountFrom}, nil }
	}
	for _, d := range roots {
		if err := oras.CopyGraph(ctx, c, t, d, options); err != nil {
			var fault *Fault
			if errors.As(err, &fault) {
				err = fault // oras says "failed to perform" and no name
			}
			return result, err
		}
	}
	return result, c.refer(ctx, t)
}

// walk reads the manifests. It finds what CopyGraph has to start at: the root, and then the referrers, each after its subject.
func (c *copier) walk(ctx context.Context, root v1.Descriptor) (roots []v1.Descriptor, err error) {
	c.manifests, c.nodes, c.referrers = map[digest.Digest][]byte{}, map[digest.Digest]v1.Descriptor{}, map[digest.Digest][]v1.Descriptor{}
	c.there = map[digest.Digest]bool{}
	roots = []v1.Descriptor{root}
	for queue := []v1.Descriptor{root}; len(queue) > 0; queue = queue[1:] {
		d := queue[0]
		if _, seen := c.nodes[d.Digest]; seen {
			continue
		}
		c.nodes[d.Digest] = d
		if !isManifest(d) {
			continue
		}
		data, err := c.read(ctx, d)
		if err != nil {
			return nil, err
		}
		below, err := parts(data)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		c.manifests[d.Digest] = data
		queue = append(queue, below...)
		if c.NoReferrers {
			continue
		}
		referrers, err := c.from.Referrers(ctx, d)
		if err != nil {
			return nil, err
		}
		referrers = slices.DeleteFunc(referrers, func(r v1.Descriptor) bool { return r.Digest == c.without })
		c.referrers[d.Digest] = referrers
		queue, roots = append(queue, referrers...), append(roots, referrers...)
	}
	return roots, nil
}

func (c *copier) read(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Size > registry.MaxManifestBytes {
		return nil, fmt.Errorf("manifest %s has %d bytes; the most is %d", d.Digest, d.Size, registry.MaxManifestBytes)
	}
	r, err := c.from.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := content.ReadAll(r, d)
	if err != nil {
		err = fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return data, err
}

// parts are what a manifest or an index names. Its subject is not a part: it is reached before, or it is in another repository.
func parts(data []byte) ([]v1.Descriptor, error) {
	var m struct {
		Config    *v1.Descriptor  `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	all := slices.Concat(m.Manifests, m.Layers)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	for _, d := range all {
		if registry.CheckDigest(d.Digest) != nil || d.Size < 0 {
			return nil, fmt.Errorf("it names %.100q of %d bytes", d.Digest, d.Size)
		}
	}
	// What may not be distributed is in no registry.
	// Source: OCI image specification v1.1, "layer.md", "Non-Distributable Layers".
	return slices.DeleteFunc(all, func(d v1.Descriptor) bool {
		return strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.") ||
			strings.HasPrefix(d.MediaType, "application/vnd.docker.image.rootfs.foreign.")
	}), nil
}

func (c *copier) successors(_ context.Context, _ content.Fetcher, d v1.Descriptor) ([]v1.Descriptor, error) {
	if data, ok := c.manifests[d.Digest]; ok {
		return parts(data)
	}
	return nil, nil
}

// Fetch implements the storage that oras copies from.
func (c *copier) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if data, ok := c.manifests[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	r, err := c.from.Open(ctx, d)
	if err != nil {
		var fault *Fault
		if !errors.As(err, &fault) {
			err = &Fault{Repository: "here", What: what(d), Err: err}
		}
	}
	return r, err
}

// Exists implements the storage that oras copies from.
func (c *copier) Exists(context.Context, v1.Descriptor) (bool, error) { return true, nil }

// arrived counts what is there now, and all below it, once. Bytes that were sent are on the meter already.
func (c *copier) arrived(d v1.Descriptor, n *Count, sent bool) {
	c.mu.Lock()
	first := !c.there[d.Digest]
	if first {
		c.there[d.Digest] = true
		n.add(d)
	}
	c.mu.Unlock()
	if !first {
		return
	}
	if !sent {
		c.Meter.done.Add(d.Size)
	}
	below, _ := parts(c.manifests[d.Digest])
	for _, d := range below {
		c.arrived(d, n, false)
	}
}

// refer makes sure that the registry lists the referrers. One that keeps no list of its own has it under a tag, which is
// written after the manifest: whoever was cut off in between has the manifest there and not on the list.
// Source: OCI distribution specification v1.1, "Referrers Tag Schema".
func (c *copier) refer(ctx context.Context, t *target) error {
	for subject, referrers := range c.referrers {
		if len(referrers) == 0 {
			continue
		}
		listed, err := c.to.Referrers(ctx, c.nodes[subject])
		if err != nil {
			return err
		}
		for _, d := range referrers {
			if slices.ContainsFunc(listed, func(l v1.Descriptor) bool { return l.Digest == d.Digest }) {
				continue
			}
			if err := t.Push(ctx, d, bytes.NewReader(c.manifests[d.Digest])); err != nil {
				return err
			}
		}
	}
	return nil
}

// isManifest reports whether something goes to the place of the manifests. It agrees with oras.
func isManifest(d v1.Descriptor) bool {
	switch d.MediaType {
	case v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.artifact.manifest.v1+json":
		return true
	}
	return false
}

func what(d v1.Descriptor) string {
	if isManifest(d) {
		return "manifest " + d.Digest.String()
	}
	return fmt.Sprintf("blob %s (%s)", d.Digest, registry.ByteSize(d.Size))
}

// target is a repository that is copied to.
type target struct {
	*Repository
	from  Source
	meter *Meter
}

// Fetch implements the storage that oras copies to.
func (t *target) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return t.Open(ctx, d)
}

// Exists implements the storage that oras copies to.
func (t *target) Exists(ctx context.Context, d v1.Descriptor) (bool, error) {
	there, err := t.remote.Exists(ctx, d)
	if unauthorized(err) {
		there, err = t.remote.Exists(ctx, d) // see unauthorized
	}
	return there, t.fault(what(d), err)
}

// Push implements the storage that oras copies to.
func (t *target) Push(ctx context.Context, d v1.Descriptor, r io.Reader) error {
	if isManifest(d) {
		return t.fault(what(d), t.remote.Push(ctx, d, r))
	}
	return t.send(ctx, d, r)
}

// Mount implements registry.Mounter of oras: get is called when the blob has to be sent after all.
func (t *target) Mount(ctx context.Context, d v1.Descriptor, from string, get func() (io.ReadCloser, error)) error {
	var body *sending
	err := t.remote.Mount(ctx, d, from, func() (io.ReadCloser, error) {
		r, err := get()
		if err != nil {
			return nil, err
		}
		body = &sending{r: r, meter: t.meter}
		return io.NopCloser(body), nil
	})
	if body != nil {
		body.end(err != nil)
		defer body.r.(io.Closer).Close()
	}
	if err == nil || ctx.Err() != nil || (body != nil && !again(err)) {
		return t.fault(what(d), err)
	}
	// The upload was lost, or the registry refused where it should have offered one.
	r, err := get()
	if err != nil {
		return err
	}
	defer r.Close()
	return t.send(ctx, d, r)
}

// send uploads a blob. The client of oras sends one again only when its body can be rewound, which that of a copy cannot; and to send
// another body into the same upload is no good either: registries keep what came of the first, or forget the upload.
// So each try begins an upload of its own, with the content from its beginning.
func (t *target) send(ctx context.Context, d v1.Descriptor, r io.Reader) error {
	for n := 1; ; n++ {
		body := &sending{r: r, meter: t.meter}
		err := t.remote.Push(ctx, d, body)
		body.end(err != nil)
		if err == nil || ctx.Err() != nil || n >= t.Tries || !again(err) && !(n == 1 && unauthorized(err)) {
			return t.fault(what(d), err)
		}
		if err := wait(ctx, t.delay(n)); err != nil {
			return t.fault(what(d), err)
		}
		next, err := t.from.Open(ctx, d)
		if err != nil {
			return err
		}
		defer next.Close()
		r = next
	}
}

// sending is content on its way, and tells the meter.
type sending struct {
	mu    sync.Mutex
	r     io.Reader
	meter *Meter
	sent  int64
	ended bool
}

func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, io.ErrClosedPipe
	}
	n, err := s.r.Read(p)
	s.sent += int64(n)
	s.meter.done.Add(int64(n))
	return n, err
}

// end makes sure that the content can be closed: the transport may try to read even when the request has failed. In that
// case it was sent in vain.
func (s *sending) end(inVain bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if inVain {
		s.meter.done.Add(-s.sent)
	}
}
