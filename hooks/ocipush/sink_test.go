package ocipush_test

import (
	"context"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/hooks/ocipush"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

var (
	model      = registry.Model{ID: "m1", Name: registry.MustModelName("acme/fraud"), Visibility: registry.Public}
	v1tag      = registry.MustTag("v1.0.0")
	v2tag      = registry.MustTag("v2.0.0")
	production = registry.MustEnvironmentName("production")
)

// book is the real index, and the journal before it.
type book struct {
	*index.DB
	tb  testing.TB
	seq uint64
}

func newBook(tb testing.TB) *book {
	tb.Helper()
	db, err := index.Open(filepath.Join(tb.TempDir(), "index.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	b := &book{DB: db, tb: tb}
	b.write(registry.ModelCreated{Model: model})
	return b
}

func (b *book) write(records ...registry.Record) {
	b.tb.Helper()
	b.seq++
	if err := b.Apply([]index.Entry{{Seq: b.seq, Group: registry.Group{At: time.Now(), Actor: "ada", Records: records}}}); err != nil {
		b.tb.Fatal(err)
	}
}

func (b *book) publish(tag registry.Tag) {
	b.write(registry.VersionPublished{ModelID: model.ID, Version: registry.Version{Tag: tag}})
}

func (b *book) image(tag registry.Tag, state registry.ImageState) {
	b.write(registry.ImageBuilt{ModelID: model.ID, Tag: tag, Status: registry.ImageStatus{State: state, Error: "out of paper"}})
}

func (b *book) promote(tag registry.Tag) {
	b.write(registry.EnvironmentChanged{ModelID: model.ID, Change: registry.EnvironmentChange{Environment: production, Kind: registry.Promotion, Version: tag, At: time.Now()}})
}

// newSink copies from h to a registry.
func newSink(t *testing.T, b *book, h here, to http.Handler, change ...func(*ocipush.SinkConfig)) *ocipush.Sink {
	t.Helper()
	c := ocipush.SinkConfig{
		Config:     ocipush.Config{PlainHTTP: true, Transport: wire{to}, FirstDelay: time.Millisecond},
		Repository: "registry.example/{namespace}s/{name}", Versions: []string{"v1.*"}, Environments: []string{"production"},
		Index: b, Sources: func(string) (ocipush.Source, ocipush.Source) { v := h.version(t); return v.Artifact, v.Image },
	}
	for _, f := range change {
		f(&c)
	}
	s, err := ocipush.NewSink(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func event(kind registry.EventType, tag registry.Tag) registry.Event {
	e := registry.NewEvent(kind, model, "ada", time.Now(), struct{}{})
	e.Version = tag
	if kind == registry.EventEnvironmentPromoted || kind == registry.EventEnvironmentRolledBack {
		e.Environment = production
	}
	return e
}

func TestSinkVersions(t *testing.T) {
	h, to, b := newHere(), newOther(), newBook(t)
	s := newSink(t, b, h, to)
	b.publish(v1tag)
	if status, err := s.Deliver(t.Context(), event(registry.EventVersionPublished, v1tag)); status != 0 || err != nil {
		t.Fatalf("Deliver = %d, %v", status, err)
	}
	if to.tags["acmes/fraud:v1.0.0"] != h.artifact.Digest || len(to.tags) != 1 {
		t.Errorf("when it is published, tags = %v, want the artifact's", to.tags)
	}
	b.image(v1tag, registry.ImageReady)
	if _, err := s.Deliver(t.Context(), event(registry.EventVersionImageReady, v1tag)); err != nil {
		t.Fatal(err)
	}
	if to.tags["acmes/fraud/image:v1.0.0"] != h.image.Digest || len(to.tags) != 2 {
		t.Errorf("when its image is ready, tags = %v, want both of the version", to.tags)
	}
	to.forget()
	if _, err := s.Deliver(t.Context(), event(registry.EventVersionImageReady, v1tag)); err != nil || to.count("POST blobs")+to.count("PUT manifests") != 0 {
		t.Errorf("the same event again = %v, %d writes; want none", err, to.count("POST blobs")+to.count("PUT manifests"))
	}
}

func TestSinkWants(t *testing.T) {
	h, b := newHere(), newBook(t)
	versions := func(c *ocipush.SinkConfig) { c.Environments = nil }
	environments := func(c *ocipush.SinkConfig) { c.Versions = nil }
	artifacts := func(c *ocipush.SinkConfig) { c.NoImage = true }
	other := event(registry.EventEnvironmentPromoted, v1tag)
	other.Environment = registry.MustEnvironmentName("staging")
	for _, test := range []struct {
		name   string
		change func(*ocipush.SinkConfig)
		e      registry.Event
		want   bool
	}{
		{"a version", versions, event(registry.EventVersionPublished, v1tag), true},
		{"a version that does not match", versions, event(registry.EventVersionPublished, v2tag), false},
		{"its image", versions, event(registry.EventVersionImageReady, v1tag), true},
		{"an image of another", versions, event(registry.EventVersionImageReady, v2tag), false},
		{"an image that is not wanted", artifacts, event(registry.EventVersionImageReady, v1tag), false},
		{"a promotion without environments", versions, event(registry.EventEnvironmentPromoted, v1tag), false},
		{"a promotion", environments, event(registry.EventEnvironmentPromoted, v2tag), true},
		{"a rollback", environments, event(registry.EventEnvironmentRolledBack, v2tag), true},
		{"a promotion to another environment", environments, other, false},
		{"a version for environments", environments, event(registry.EventVersionPublished, v1tag), false},
		{"an image that may be in an environment", environments, event(registry.EventVersionImageReady, v2tag), true},
		{"another event", versions, event(registry.EventGateOpened, v1tag), false},
	} {
		if got := newSink(t, b, h, newOther(), test.change).Wants(test.e); got != test.want {
			t.Errorf("%s: Wants(%s of %s) = %v, want %v", test.name, test.e.Type, test.e.Version, got, test.want)
		}
	}
}

func TestSinkEnvironments(t *testing.T) {
	h, to, b := newHere(), newOther(), newBook(t)
	// The second version has the same content under another tag, but for the artifact's manifest.
	second := h.putManifest("acme/fraud", "application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "config": h.put("acme/fraud", "application/vnd.cncf.model.config.v1+json", []byte("{}")), "layers": []any{},
	}, "v2.0.0")
	s := newSink(t, b, h, to, func(c *ocipush.SinkConfig) { c.Versions = nil })
	deliver := func(kind registry.EventType, tag registry.Tag) error {
		_, err := s.Deliver(t.Context(), event(kind, tag))
		return err
	}
	b.publish(v1tag)
	b.promote(v1tag)
	if err := deliver(registry.EventEnvironmentPromoted, v1tag); err != nil {
		t.Fatal(err)
	}
	if got := to.tags["acmes/fraud:production"]; got != "" {
		t.Errorf("while the image is being made production names %s, want nothing yet: both tags move together", got)
	}
	b.image(v1tag, registry.ImageReady)
	if err := deliver(registry.EventVersionImageReady, v1tag); err != nil {
		t.Fatal(err)
	}
	if to.tags["acmes/fraud:production"] != h.artifact.Digest || to.tags["acmes/fraud/image:production"] != h.image.Digest {
		t.Errorf("when the image is ready, tags = %v, want production for both", to.tags)
	}

	b.publish(v2tag)
	b.image(v2tag, registry.ImageFailed)
	if err := deliver(registry.EventVersionImageReady, v2tag); err != nil || to.tags["acmes/fraud:v2.0.0"] != "" {
		t.Errorf("a version that is in no environment: %v, tags = %v; want nothing done", err, to.tags)
	}
	b.promote(v2tag)
	err := deliver(registry.EventEnvironmentPromoted, v2tag)
	if err == nil || !strings.Contains(err.Error(), "has no image") || !strings.Contains(err.Error(), "out of paper") {
		t.Errorf("a version without an image in production: %v, want to be told", err)
	}
	if to.tags["acmes/fraud:production"] != second.Digest {
		t.Errorf("production names %s, want %s", to.tags["acmes/fraud:production"], second.Digest)
	}
	// An event of before, delivered once more.
	if err := deliver(registry.EventEnvironmentPromoted, v1tag); err == nil || to.tags["acmes/fraud:production"] != second.Digest {
		t.Errorf("an older event moved production to %s (%v), want it to stay at %s", to.tags["acmes/fraud:production"], err, second.Digest)
	}
	if err := deliver(registry.EventVersionImageReady, v1tag); err != nil || to.tags["acmes/fraud:production"] != second.Digest {
		t.Errorf("an older image moved production to %s (%v), want it to stay at %s", to.tags["acmes/fraud:production"], err, second.Digest)
	}
}

// TestPromotionDuringACopy promotes the next version while the one before is copied.
func TestPromotionDuringACopy(t *testing.T) {
	h, to, b := newHere(), newOther(), newBook(t)
	b.publish(v1tag)
	b.image(v1tag, registry.ImageReady)
	b.promote(v1tag)
	f := &fault{other: to, left: 1, when: bigPut, fails: func(o *other, w http.ResponseWriter, r *http.Request) {
		b.publish(v2tag)
		b.promote(v2tag)
		o.ServeHTTP(w, r)
	}}
	if _, err := newSink(t, b, h, f).Deliver(t.Context(), event(registry.EventEnvironmentPromoted, v1tag)); err != nil || f.left != 0 {
		t.Fatalf("Deliver = %v, %d promotions left", err, f.left)
	}
	if to.tags["acmes/fraud:v1.0.0"] != h.artifact.Digest || to.tags["acmes/fraud:production"] != "" {
		t.Errorf("tags = %v, want v1.0.0 and no production, which another version has", to.tags)
	}
}

// inState is an index whose versions are in another state than published, to which no record brings them yet.
type inState struct {
	*book
	state registry.VersionState
}

func (b inState) Version(ctx context.Context, modelID string, tag registry.Tag) (registry.VersionRecord, error) {
	v, err := b.book.Version(ctx, modelID, tag)
	v.State = b.state
	return v, err
}

func TestSinkDoesNotSpread(t *testing.T) {
	for state, want := range map[registry.VersionState]int{registry.Published: 1, registry.Deprecated: 1, registry.Quarantined: 0, registry.Revoked: 0} {
		h, to, b := newHere(), newOther(), newBook(t)
		b.publish(v1tag)
		s := newSink(t, b, h, to, func(c *ocipush.SinkConfig) { c.Index = inState{b, state} })
		if _, err := s.Deliver(t.Context(), event(registry.EventVersionPublished, v1tag)); err != nil || len(to.tags) != want {
			t.Errorf("Deliver of a version that is %s = %v, %d tags; want %d", state, err, len(to.tags), want)
		}
	}
}

func TestSinkFails(t *testing.T) {
	h, to, b := newHere(), newOther(), newBook(t)
	b.publish(v1tag)
	f := &fault{other: to, left: 1, when: bigPut, fails: func(_ *other, w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusForbidden, "DENIED") }}
	s := newSink(t, b, h, f)
	status, err := s.Deliver(t.Context(), event(registry.EventVersionPublished, v1tag))
	if status != http.StatusForbidden || err == nil || !strings.HasPrefix(err.Error(), "registry.example/acmes/fraud: blob sha256:") || !strings.HasSuffix(err.Error(), "403 Forbidden: denied: no") {
		t.Errorf("Deliver = %d, %v; want which blob, where to and why", status, err)
	}
	if status, err := s.Deliver(t.Context(), event(registry.EventVersionPublished, registry.MustTag("v1.9.0"))); status != 0 || err != nil {
		t.Errorf("Deliver of a version that is gone = %d, %v; want nothing to do", status, err)
	}
}

func TestNewSink(t *testing.T) {
	for name, c := range map[string]ocipush.SinkConfig{
		"nothing to push":        {Repository: "registry.example/a"},
		"no place":               {Versions: []string{"v*"}},
		"no registry":            {Repository: "models", Versions: []string{"v*"}},
		"an unknown word":        {Repository: "registry.example/{model}", Versions: []string{"v*"}},
		"a bad place for images": {Repository: "registry.example/a", ImageRepository: "images", Versions: []string{"v*"}},
		"a bad pattern":          {Repository: "registry.example/a", Versions: []string{"v["}},
		"a bad environment":      {Repository: "registry.example/a", Environments: []string{"Production"}},
	} {
		if _, err := ocipush.NewSink(c); err == nil {
			t.Errorf("NewSink with %s = nil, want an error", name)
		}
	}
	if _, err := ocipush.NewSink(ocipush.SinkConfig{Repository: "registry.example/a", ImageRepository: "images", NoImage: true, Versions: []string{"v*"}}); err != nil {
		t.Errorf("NewSink without images = %v", err)
	}
}

func FuzzRepositoryOfAModel(f *testing.F) {
	for _, text := range []string{"registry.example/{namespace}/{name}", "registry.example:5000/x", "{name}/{namespace}", "registry.example/{name}{name}", "a/b@{name}", "http://x/{name}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, template string) {
		s, err := ocipush.NewSink(ocipush.SinkConfig{Repository: template, NoImage: true, Versions: []string{"v*"}})
		if err != nil {
			return
		}
		if strings.ContainsAny(strings.NewReplacer("{namespace}", "", "{name}", "").Replace(s.Repository), "{} ") {
			t.Errorf("NewSink takes %q, which is no place", template)
		}
	})
}
