package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/hooks/ocipush"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/modelpack"
	"github.com/herdbook/herdbook/storage"
)

type pushCommand struct {
	From        string   `arg:"" name:"model:version" help:"What to push: NAMESPACE/NAME and a version, an environment, or a pattern of versions such as 'v1.*'."`
	To          string   `arg:"" name:"registry/repo" help:"Where the artifact goes; the image goes to REPO/image."`
	PlainHTTP   bool     `name:"plain-http" help:"The registry has no TLS."`
	NoImage     bool     `name:"no-image" help:"Push the artifact only."`
	ImageRepo   string   `name:"image-repo" help:"Repository of that registry for the image, where it takes no REPO/image." placeholder:"REPO"`
	NoReferrers bool     `name:"no-referrers" help:"Leave out what refers to them, such as signatures."`
	Tag         []string `name:"tag" sep:"none" help:"Give it this tag too; it moves if there is one. May be repeated." placeholder:"TAG"`
	Concurrency int      `name:"concurrency" default:"3" help:"Blobs sent at a time." placeholder:"N"`
	remote
}

// Help describes the command.
func (pushCommand) Help() string {
	return "It writes the artifact, the image and what refers to them to another registry, and the tags last; on the server it changes nothing. What is there already is " +
		"skipped, so that a push that was cut off goes on when it is called again. The tag of a version is never taken from something else; other tags move. " +
		"User and password come from the configuration of Docker: log in with docker login or oras login.\n\nExamples:\n\n" +
		"  herdbook push acme/fraud:v1.2.0 registry.example.org/team/fraud\n" +
		"  herdbook push acme/fraud:production registry.example.org/team/fraud --no-image\n" +
		"  herdbook push 'acme/fraud:v1.*' 127.0.0.1:5000/team/fraud --plain-http --tag latest"
}

// Run pushes.
func (c pushCommand) Run(ctx context.Context, t terminal) error {
	name, version, ok := strings.Cut(c.From, ":")
	m, err := registry.ParseModelName(name)
	if err != nil {
		return err
	}
	if !ok || version == "" {
		return fmt.Errorf("%q names no version: say %s:v1.0.0", c.From, m)
	}
	if c.Concurrency < 1 {
		return errors.New("--concurrency is a number of blobs, 1 or more")
	}
	versions, err := c.versions(ctx, m, version)
	if err != nil {
		return err
	}
	from, err := c.source(m)
	if err != nil {
		return err
	}
	to, err := c.destination()
	if err != nil {
		return err
	}
	var all []ocipush.Pushed
	for _, from.Tag = range versions {
		pushed, err := c.push(ctx, t, from, to)
		if err != nil {
			return fmt.Errorf("push %s:%s to %s: %w%s", m, from.Tag, c.To, err, c.advice(err, to))
		}
		all = append(all, pushed)
	}
	return c.show(t, all, func(w io.Writer) {
		for _, pushed := range all {
			for _, one := range []*ocipush.Copied{&pushed.Artifact, pushed.Image} {
				if one != nil {
					fmt.Fprintf(w, "%s:%s\t%s\t%s\n", one.Repository, strings.Join(one.Tags, ","), one.Digest, counts(one))
				}
			}
		}
	})
}

// counts says what became of the manifests and blobs.
func counts(c *ocipush.Copied) string {
	var said []string
	for _, n := range []struct {
		ocipush.Count
		what string
	}{{c.Copied, "copied"}, {c.Mounted, "mounted"}, {c.Skipped, "skipped"}} {
		said = append(said, fmt.Sprintf("%d %s (%s)", n.Items, n.what, registry.ByteSize(n.Bytes)))
	}
	return strings.Join(said, ", ")
}

// versions are those that a pattern stands for, the oldest first; anything else is a tag.
func (c pushCommand) versions(ctx context.Context, m registry.ModelName, pattern string) ([]string, error) {
	if !strings.ContainsAny(pattern, "*?[") {
		return []string{pattern}, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("%q is not a pattern such as v1.*", pattern)
	}
	server, err := c.connect()
	if err != nil {
		return nil, err
	}
	all, err := server.Versions(ctx, m)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, v := range all {
		if ok, _ := path.Match(pattern, v.Tag.String()); ok {
			found = append([]string{v.Tag.String()}, found...)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no version %s", m, pattern)
	}
	return found, nil
}

// source is the model as the server's registry shows it.
func (c pushCommand) source(m registry.ModelName) (ocipush.Version, error) {
	server, err := c.connect()
	if err != nil {
		return ocipush.Version{}, err
	}
	address, err := url.Parse(server.URL)
	if err != nil || address.Host == "" {
		return ocipush.Version{}, fmt.Errorf("%q is not the address of a server", server.URL)
	}
	config := ocipush.Config{PlainHTTP: address.Scheme == "http", UserAgent: "herdbook/" + programVersion()}
	name := address.Host + "/" + m.String()
	if server.Token != "" {
		if config.Credentials, err = ocipush.Password(name, "herdbook", server.Token); err != nil {
			return ocipush.Version{}, err
		}
	}
	artifact, err := ocipush.NewRepository(name, config)
	if err != nil {
		return ocipush.Version{}, err
	}
	image, err := ocipush.NewRepository(name+"/image", config)
	return ocipush.Version{Artifact: artifact, Image: image}, err
}

func (c pushCommand) destination() (to ocipush.Destination, err error) {
	config := ocipush.Config{PlainHTTP: c.PlainHTTP, UserAgent: "herdbook/" + programVersion()}
	if config.Credentials, err = ocipush.DockerConfig(""); err != nil {
		return to, err
	}
	if to.Artifact, err = ocipush.NewRepository(c.To, config); err != nil || c.NoImage {
		return to, err
	}
	image := c.To + "/image"
	if c.ImageRepo != "" {
		image = to.Artifact.Host() + "/" + c.ImageRepo
	}
	to.Image, err = ocipush.NewRepository(image, config)
	return to, err
}

// push pushes one version and shows how far it is.
func (c pushCommand) push(ctx context.Context, t terminal, from ocipush.Version, to ocipush.Destination) (ocipush.Pushed, error) {
	meter := &ocipush.Meter{}
	v, step := newViewer(t, false), "push "+from.Tag
	show := func() {
		done, total := meter.Bytes()
		v.hear(said{Progress: &storage.Progress{Step: step, Done: done, Total: total, Unit: "bytes"}})
	}
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second / 5)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				show()
			}
		}
	}()
	pushed, err := ocipush.Push(ctx, from, to, ocipush.Options{Concurrency: c.Concurrency, NoReferrers: c.NoReferrers, Tags: c.Tag, Meter: meter})
	close(ended)
	<-stopped
	show()
	v.end()
	return pushed, err
}

// advice is what to do about an error.
func (c pushCommand) advice(err error, to ocipush.Destination) string {
	var fault *ocipush.Fault
	if !errors.As(err, &fault) {
		return ""
	}
	var cut *url.Error
	there := strings.HasPrefix(fault.Repository+"/", to.Artifact.Host()+"/")
	image := to.Image != nil && fault.Repository == to.Image.Name()
	switch {
	case errors.Is(err, registry.ErrNotFound) && !there && strings.HasSuffix(fault.Repository, "/image"):
		return "; the image may still be being made: try again in a moment, or leave it out with --no-image"
	case there && errors.Is(err, http.ErrSchemeMismatch):
		return "; if that is meant, add --plain-http"
	case there && fault.Status == http.StatusUnauthorized:
		return "; log in with: docker login " + to.Artifact.Host()
	case !there && fault.Status == http.StatusUnauthorized:
		return "; set HERDBOOK_TOKEN or --token-file"
	case image && (fault.Status == http.StatusForbidden || fault.Status == http.StatusNotFound || fault.Status == http.StatusBadRequest):
		return "; if the registry takes no such name, give another with --image-repo, or --no-image"
	case fault.Status >= 500 || errors.As(err, &cut) || errors.Is(err, context.Canceled):
		return "; call it again to go on from there"
	}
	return ""
}

// ociSource is a repository of a model as the server itself has it. It implements ocipush.Source.
type ociSource struct {
	data    *storage.Data
	blobs   blobs
	modelID string
	key     string
}

// ociSources are the repositories of a model for artifacts and for images.
func ociSources(data *storage.Data, content blobs) func(modelID string) (artifact, image ocipush.Source) {
	return func(modelID string) (artifact, image ocipush.Source) {
		return ociSource{data, content, modelID, modelID}, ociSource{data, content, modelID, registry.ImageRepository(modelID)}
	}
}

func (s ociSource) Resolve(ctx context.Context, tag string) (v1.Descriptor, error) {
	d, err := s.data.Index.TagDigest(ctx, s.key, tag)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if d, err = s.data.Index.Canonical(ctx, s.key, d); err != nil {
		return v1.Descriptor{}, err
	}
	m, err := s.data.Index.Manifest(ctx, s.key, d)
	return ocipush.Descriptor(m), err
}

func (s ociSource) Open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	content, err := s.open(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	return content, nil
}

func (s ociSource) open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	of, err := s.data.Index.Canonical(ctx, s.key, d)
	if err == nil {
		if _, err = s.data.Index.Manifest(ctx, s.key, of); err == nil {
			return s.blobs.Open(ctx, of)
		}
	}
	if !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	if of, err = s.data.Index.Canonical(ctx, s.modelID, d); err == nil {
		if _, err = s.data.Index.BlobSize(ctx, s.modelID, of.String()); err == nil {
			return s.blobs.Open(ctx, of)
		}
	}
	if !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	layer, err := s.data.Index.Layer(ctx, s.modelID, d)
	if err != nil {
		return nil, err
	}
	return modelpack.OpenLayer(layer, func(d digest.Digest) (io.ReadSeekCloser, error) { return s.blobs.Open(ctx, d) })
}

func (s ociSource) Referrers(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
	found, err := s.data.Index.Referrers(ctx, s.key, d.Digest)
	referrers := make([]v1.Descriptor, len(found))
	for i, m := range found {
		referrers[i] = ocipush.Descriptor(m)
	}
	return referrers, err
}
