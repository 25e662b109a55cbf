package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

// ensure makes a repository, or finds it.
func (s *site) ensure(name string) registry.OCIRepository {
	s.tb.Helper()
	r, err := s.EnsureOCI(s.tb.Context(), by("ada"), name)
	if err != nil {
		s.tb.Fatalf("EnsureOCI(%s) = %v", name, err)
	}
	return r
}

// link puts content into a repository, as an upload does.
func (s *site) link(r registry.OCIRepository, content string) digest.Digest {
	s.tb.Helper()
	info, err := blobs{s.data.Blobs}.Put(s.tb.Context(), strings.NewReader(content))
	if err == nil {
		err = s.LinkOCI(s.tb.Context(), by("ada"), r, registry.LinkedBlob{Digest: info.Digest, SizeBytes: info.SizeBytes})
	}
	if err != nil {
		s.tb.Fatal(err)
	}
	return info.Digest
}

func part(d digest.Digest, size int) string {
	return fmt.Sprintf(`{"mediaType":"application/x","digest":%q,"size":%d}`, d, size)
}

// manifestOf is a manifest of contents, of which the first is the config.
func manifestOf(contents ...string) lifecycle.PushedManifest {
	var parts []string
	for _, c := range contents {
		parts = append(parts, part(digest.FromString(c), len(c)))
	}
	return lifecycle.PushedManifest{MediaType: ociManifest, Content: fmt.Appendf(nil, `{"schemaVersion":2,"config":%s,"layers":[%s]}`, parts[0], strings.Join(parts[1:], ","))}
}

// indexOf is an index of manifests.
func indexOf(manifests ...lifecycle.PushedManifest) lifecycle.PushedManifest {
	var parts []string
	for _, m := range manifests {
		parts = append(parts, part(digest.FromBytes(m.Content), len(m.Content)))
	}
	return lifecycle.PushedManifest{MediaType: ociIndex, Content: fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[%s]}`, strings.Join(parts, ","))}
}

func tagged(p lifecycle.PushedManifest, tags ...string) lifecycle.PushedManifest {
	p.Tags = tags
	return p
}

// pushManifest stores a manifest, and uploads its contents before.
func (s *site) pushManifest(r registry.OCIRepository, tag string, contents ...string) registry.StoredManifest {
	s.tb.Helper()
	for _, c := range contents {
		s.link(r, c)
	}
	p := manifestOf(contents...)
	if tag != "" {
		p.Tags = []string{tag}
	}
	m, err := s.PushManifest(s.tb.Context(), by("ada"), r, p)
	if err != nil {
		s.tb.Fatalf("PushManifest of %q to %s = %v", contents, r.Name, err)
	}
	return m
}

// tagsOf are the tags of a repository, each as TAG=DIGEST.
func (s *site) tagsOf(r registry.OCIRepository) []string {
	s.tb.Helper()
	tags, _, err := s.data.Index.Tags(s.tb.Context(), r.Key, "", 1000)
	if err != nil {
		s.tb.Fatal(err)
	}
	for i, tag := range tags {
		d, err := s.data.Index.TagDigest(s.tb.Context(), r.Key, tag)
		if err != nil {
			s.tb.Fatal(err)
		}
		tags[i] = tag + "=" + d.String()
	}
	return tags
}

// Who may do what with a repository. Who may not read it learns nothing of whether it is there.
func TestRightsOnRepositories(t *testing.T) {
	s := open(t)
	s.Visibility = registry.Private
	there := s.ensure("acme/tools")
	s.pushManifest(there, "latest", "config")
	hidden, err := s.CreateModel(t.Context(), by("ada"), fraud, registry.Private, "")
	if err != nil {
		t.Fatal(err)
	}
	s.Visibility = registry.Public
	s.ensure("acme/open")
	groups := s.groups()

	for _, role := range []access.Role{access.Nobody, access.Guest} {
		for _, action := range []access.Action{access.Read, access.Write, access.Delete} {
			_, absent := s.OCIRepository(t.Context(), as("somebody", role), "acme/absent", action)
			for _, name := range []string{"acme/tools", hidden.Name.String(), hidden.Name.String() + "/image"} {
				_, err := s.OCIRepository(t.Context(), as("somebody", role), name, action)
				if want := strings.ReplaceAll(fmt.Sprint(absent), "acme/absent", name); absent == nil || fmt.Sprint(err) != want {
					t.Errorf("%s of %s by %s = %v, want what is said of one that is not there: %s", action, name, role, err, want)
				}
			}
		}
	}
	tests := []struct {
		role   access.Role
		action access.Action
		name   string
		want   error
	}{
		{access.Nobody, access.Read, "acme/open", registry.ErrUnauthenticated},
		{access.Guest, access.Read, "acme/open", nil},
		{access.Guest, access.Read, "acme/tools", registry.ErrNotFound},
		{access.Guest, access.Write, "acme/open", registry.ErrUnauthenticated},
		{access.Guest, access.Write, "acme/absent", registry.ErrUnauthenticated},
		{access.Reader, access.Read, "acme/tools", nil},
		{access.Reader, access.Read, "acme/absent", registry.ErrNotFound},
		{access.Reader, access.Write, "acme/tools", registry.ErrForbidden},
		{access.Reader, access.Write, "acme/absent", registry.ErrForbidden},
		{access.Reader, access.Write, "acme/fraud", registry.ErrForbidden},
		{access.Writer, access.Write, "acme/tools", nil},
		{access.Writer, access.Write, "acme/absent", nil},
		{access.Writer, access.Write, "acme/fraud/image", nil},
	}
	for _, tt := range tests {
		if _, err := s.OCIRepository(t.Context(), as("somebody", tt.role), tt.name, tt.action); !errors.Is(err, tt.want) {
			t.Errorf("%s of %s by %s = %v, want %v", tt.action, tt.name, tt.role, err, tt.want)
		}
	}
	for _, role := range []access.Role{access.Nobody, access.Guest, access.Reader} {
		for _, name := range []string{"acme/absent", "acme/tools", "acme/fraud"} {
			if r, err := s.EnsureOCI(t.Context(), as("somebody", role), name); err == nil {
				t.Errorf("EnsureOCI(%s) by %s = %+v, want an error", name, role, r)
			}
		}
	}
	if got := s.groups(); got != groups {
		t.Errorf("%d groups were added to the journal, want 0", got-groups)
	}
}

func TestNamesOfRepositories(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	old := s.model(registry.MustModelName("acme/old"))
	if err := s.DeleteModel(t.Context(), by("ada"), old); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		role  access.Role
		want  error
		owner string // when it is that of a model
	}{
		{"busybox", access.Writer, nil, ""},
		{"acme/tools/scan/deep", access.Writer, nil, ""},
		{"acme/fraud.git", access.Writer, nil, ""}, // no model can have that name
		{"acme/fraud/other", access.Writer, nil, ""},
		{"acme/fraud", access.Writer, nil, m.ID},
		{"acme/fraud/image", access.Writer, nil, m.ID},
		{"acme/none/image", access.Writer, nil, ""}, // as a copy from another server has it
		{"acme/old", access.Writer, registry.ErrForbidden, ""},
		{"acme/old/image", access.Writer, registry.ErrForbidden, ""}, // whoever pulled images from there would get others
		{"acme/old/image", access.Admin, nil, ""},
		{"acme/old", access.Admin, nil, ""},
		{"Acme/tools", access.Writer, registry.ErrInvalid, ""},
		{"acme//tools", access.Writer, registry.ErrInvalid, ""},
		{"", access.Writer, registry.ErrInvalid, ""},
		{strings.Repeat("a/", 200) + "a", access.Writer, registry.ErrInvalid, ""},
	}
	for _, tt := range tests {
		r, err := s.EnsureOCI(t.Context(), as("somebody", tt.role), tt.name)
		if !errors.Is(err, tt.want) || err == nil && (r.Name != tt.name || r.Key == "" || (tt.owner != "") != (r.OwnerID == m.ID)) {
			t.Errorf("EnsureOCI(%s) by %s = %+v, %v, want %v and the owner %q", tt.name, tt.role, r, err, tt.want, tt.owner)
		}
		if err != nil {
			continue
		}
		if again, err := s.EnsureOCI(t.Context(), as("somebody", tt.role), tt.name); err != nil || again.Key != r.Key {
			t.Errorf("EnsureOCI(%s) again = %+v, %v, want %+v", tt.name, again, err, r)
		}
	}
	if image := s.ensure("acme/fraud/image"); !image.Image || image.Key == m.ID {
		t.Errorf("the repository of images = %+v, want it to be one of its own", image)
	}
	s.pushManifest(s.ensure("acme/none/image"), "", "config")
	if _, err := s.EnsureOCI(t.Context(), by("ada"), "acme/none"); err != nil {
		t.Errorf("EnsureOCI of the artifacts that belong to images which are there = %v, want nil: a copy comes in any order", err)
	}
}

func TestPushedManifest(t *testing.T) {
	s := open(t)
	r, other := s.ensure("acme/tools"), s.ensure("acme/other")
	s.link(r, "config")
	s.link(r, "layer")
	s.link(other, "elsewhere")
	wide := "known by its SHA-512"
	info, err := blobs{s.data.Blobs}.Put(t.Context(), strings.NewReader(wide))
	if err == nil {
		err = s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: info.Digest, SizeBytes: info.SizeBytes, Alias: digest.SHA512.FromString(wide)})
	}
	if err != nil {
		t.Fatal(err)
	}
	push := func(p lifecycle.PushedManifest) (registry.StoredManifest, error) {
		return s.PushManifest(t.Context(), by("grace"), r, p)
	}
	image := manifestOf("config", "layer")
	text := image.Content
	by512 := lifecycle.PushedManifest{MediaType: ociManifest, Content: fmt.Appendf(nil, `{"schemaVersion":2,"config":%s}`, part(digest.SHA512.FromString(wide), len(wide)))}
	subject := lifecycle.PushedManifest{MediaType: ociManifest, Content: fmt.Appendf(nil, `{"schemaVersion":2,"config":%s,"subject":%s}`, part(digest.FromString("config"), 6), part(digest.FromString("not there"), 9))}
	short := manifestOf("config")
	short.Content = []byte(strings.Replace(string(short.Content), `"size":6`, `"size":5`, 1))
	wrong := image
	wrong.Digest = digest.FromString("something else")
	wrong512 := image
	wrong512.Digest = digest.SHA512.FromString("something else")
	list := indexOf(image)
	shortList := list
	shortList.Content = []byte(strings.Replace(string(list.Content), fmt.Sprintf(`"size":%d`, len(text)), `"size":1`, 1))
	refused := []struct {
		name    string
		p       lifecycle.PushedManifest
		missing digest.Digest // of a MissingPartError
		field   string
	}{
		{"no manifest", lifecycle.PushedManifest{MediaType: ociManifest, Content: []byte("{}")}, "", "manifest"},
		{"another digest", wrong, "", "digest"},
		{"another SHA-512", wrong512, "", "digest"},
		{"a tag that is none", tagged(image, "-x"), "", "tag"},
		{"a long tag", tagged(image, strings.Repeat("a", 129)), "", "tag"},
		{"a blob that is not there", manifestOf("config", "never sent"), digest.FromString("never sent"), "manifest"},
		{"a config that is not there", manifestOf("never sent"), digest.FromString("never sent"), "manifest"},
		{"a blob of another repository", manifestOf("config", "elsewhere"), digest.FromString("elsewhere"), "manifest"},
		{"a blob with another size", short, "", "manifest"},
		{"a manifest that is not there", list, digest.FromBytes(text), "manifest"},
	}
	groups := s.groups()
	for _, tt := range refused {
		m, err := push(tt.p)
		var missing *lifecycle.MissingPartError
		var field *registry.FieldError
		if !errors.As(err, &field) || field.Field != tt.field || errors.As(err, &missing) != (tt.missing != "") || missing != nil && missing.Digest != tt.missing {
			t.Errorf("PushManifest of %s = %+v, %v, want an error on %s, of a part that is missing: %q", tt.name, m, err, tt.field, tt.missing)
		}
	}
	if got := s.groups(); got != groups {
		t.Errorf("%d groups were added to the journal by what was refused, want 0", got-groups)
	}

	want := registry.StoredManifest{
		Descriptor: registry.Descriptor{MediaType: ociManifest, Digest: digest.FromBytes(text), SizeBytes: int64(len(text))}, ArtifactType: "application/x", PushedBy: "grace",
	}
	named := image
	named.Digest, named.Tags = digest.SHA512.FromBytes(text), []string{"a", "b"}
	for _, p := range []lifecycle.PushedManifest{tagged(image, "latest"), named, image} {
		got, err := push(p)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("PushManifest = %v (-want +got):\n%s", err, diff)
		}
	}
	if _, err := push(shortList); err == nil || !strings.Contains(err.Error(), "bytes; it has") {
		t.Errorf("PushManifest of an index that gives a manifest another size = %v, want an error about the size", err)
	}
	for name, p := range map[string]lifecycle.PushedManifest{"an index": list, "one whose config is known by its SHA-512": by512, "one whose subject is not there": subject} {
		if _, err := push(p); err != nil {
			t.Errorf("PushManifest of %s = %v, want it taken", name, err)
		}
	}
	wantTags := []string{"a=" + named.Digest.String(), "b=" + named.Digest.String(), "latest=" + want.Digest.String()}
	if diff := cmp.Diff(wantTags, s.tagsOf(r)); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}

	// All of it again changes nothing.
	groups = s.groups()
	s.link(r, "layer")
	if err := s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: info.Digest, SizeBytes: info.SizeBytes, Alias: digest.SHA512.FromString(wide)}); err != nil {
		t.Error(err)
	}
	for _, p := range []lifecycle.PushedManifest{tagged(image, "latest"), named, image, list, by512} {
		if _, err := push(p); err != nil {
			t.Errorf("PushManifest again = %v", err)
		}
	}
	if got := s.groups(); got != groups {
		t.Errorf("%d groups were added to the journal by what was there, want 0", got-groups)
	}
	for name, do := range map[string]func() error{
		"a tag that moves": func() error { _, err := push(tagged(by512, "latest")); return err },
		"one more tag":     func() error { _, err := push(tagged(image, "a", "c")); return err },
		"another alias": func() error {
			_, err := push(lifecycle.PushedManifest{MediaType: list.MediaType, Content: list.Content, Digest: digest.SHA512.FromBytes(list.Content)})
			return err
		},
		"the alias of a blob": func() error {
			return s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: digest.FromString("layer"), SizeBytes: 5, Alias: digest.SHA512.FromString("layer")})
		},
	} {
		before := s.groups()
		if err := do(); err != nil || s.groups() != before+1 {
			t.Errorf("%s = %v and %d groups, want one", name, err, s.groups()-before)
		}
	}
}

// What the server made of a version stays as it is, whatever clients push beside it.
func TestTagsOfAModelsRepositories(t *testing.T) {
	s, m := prepared(t, "environments: {production: {}}")
	s.release(m, "v1.0.0")
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.promote(m, production, "v1.0.0")
	v := s.version(m, "v1.0.0")
	for _, name := range []string{"acme/fraud", "acme/fraud/image"} {
		r := s.ensure(name)
		made := s.tagsOf(r)
		if len(made) != 2 {
			t.Fatalf("tags that the server made in %s = %v, want those of the version and the environment", name, made)
		}
		s.link(r, "config")
		own := manifestOf("config")
		for _, tag := range []string{"v1.0.0", "v2.0.0", "v1.0.0-rc.1", "v1", "production", "staging", "slim"} {
			before := s.groups()
			if _, err := s.PushManifest(t.Context(), by("ada"), r, tagged(own, "Mine", tag)); !errors.Is(err, registry.ErrForbidden) || !strings.Contains(err.Error(), tag) {
				t.Errorf("PushManifest to %s:%s = %v, want ErrForbidden", name, tag, err)
			}
			if got := s.groups(); got != before {
				t.Errorf("PushManifest to %s:%s, which is refused, adds %d groups to the journal", name, tag, got-before)
			}
		}
		free := []string{"1.0", "Slim", "latest", "sha256-" + strings.Repeat("0", 64) + ".sig"}
		if _, err := s.PushManifest(t.Context(), by("ada"), r, tagged(own, free...)); err != nil {
			t.Errorf("PushManifest to %s with the tags %q = %v, want it taken", name, free, err)
		}

		// A manifest of the server can get a tag, and stays the server's.
		_, root, _ := strings.Cut(made[1], "=")
		content, err := blobs{s.data.Blobs}.Get(t.Context(), digest.Digest(root))
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 1<<20)
		n, _ := content.Read(data)
		if err := content.Close(); err != nil {
			t.Fatal(err)
		}
		stored, err := s.data.Index.Manifest(t.Context(), r.Key, digest.Digest(root))
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.PushManifest(t.Context(), by("ada"), r, lifecycle.PushedManifest{MediaType: stored.MediaType, Content: data[:n], Tags: []string{"Again"}})
		if diff := cmp.Diff(stored, again); diff != "" || err != nil {
			t.Errorf("PushManifest of what the server made in %s = %v (-want +got):\n%s", name, err, diff)
		}
		if err := s.DeleteManifest(t.Context(), by("ada"), r, digest.Digest(root)); !errors.Is(err, registry.ErrForbidden) {
			t.Errorf("DeleteManifest of what the server made in %s = %v, want ErrForbidden", name, err)
		}
		for _, tag := range []string{"v1.0.0", "production"} {
			if err := s.DeleteTag(t.Context(), by("ada"), r, tag); !errors.Is(err, registry.ErrForbidden) {
				t.Errorf("DeleteTag(%s:%s) = %v, want ErrForbidden", name, tag, err)
			}
		}
		if err := s.UnlinkOCI(t.Context(), by("ada"), r, v.Version.Config.Digest); !errors.Is(err, registry.ErrForbidden) {
			t.Errorf("UnlinkOCI in %s = %v, want ErrForbidden", name, err)
		}
		for _, tag := range append(free, "Again") {
			if err := s.DeleteTag(t.Context(), by("ada"), r, tag); err != nil {
				t.Errorf("DeleteTag(%s:%s) = %v, want it gone", name, tag, err)
			}
		}
		if diff := cmp.Diff(made, s.tagsOf(r)); diff != "" {
			t.Errorf("tags of %s after all that (-want +got):\n%s", name, diff)
		}
		if err := s.DeleteManifest(t.Context(), by("ada"), r, digest.FromBytes(own.Content)); err != nil {
			t.Errorf("DeleteManifest of what a client pushed to %s = %v", name, err)
		}
	}
}

func TestDeleteFromARepository(t *testing.T) {
	s := open(t)
	r := s.ensure("acme/tools")
	one, two := s.pushManifest(r, "latest", "config", "one"), s.pushManifest(r, "v1.0.0", "config", "two") // no model: any tag will do
	p := manifestOf("config", "one")
	p.Digest, p.Tags = digest.SHA512.FromBytes(p.Content), []string{"production"}
	if _, err := s.PushManifest(t.Context(), by("ada"), r, p); err != nil {
		t.Fatal(err)
	}
	absent := digest.FromString("absent")
	for name, err := range map[string]error{
		"DeleteTag":                   s.DeleteTag(t.Context(), by("ada"), r, "absent"),
		"DeleteManifest":              s.DeleteManifest(t.Context(), by("ada"), r, absent),
		"DeleteManifest by SHA-512":   s.DeleteManifest(t.Context(), by("ada"), r, digest.SHA512.FromString("absent")),
		"UnlinkOCI":                   s.UnlinkOCI(t.Context(), by("ada"), r, absent),
		"DeleteManifest with no repo": s.DeleteManifest(t.Context(), by("ada"), registry.OCIRepository{Name: "acme/never"}, one.Digest),
		"DeleteTag with no repo":      s.DeleteTag(t.Context(), by("ada"), registry.OCIRepository{Name: "acme/never"}, "latest"),
		"UnlinkOCI with no repo":      s.UnlinkOCI(t.Context(), by("ada"), registry.OCIRepository{Name: "acme/never"}, absent),
	} {
		if !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s of what is not there = %v, want ErrNotFound", name, err)
		}
	}
	if err := s.DeleteTag(t.Context(), by("ada"), r, "v1.0.0"); err != nil {
		t.Errorf("DeleteTag = %v", err)
	}
	if _, err := s.data.Index.Manifest(t.Context(), r.Key, two.Digest); err != nil {
		t.Errorf("the manifest after its tag was deleted: %v, want it there", err)
	}
	if err := s.DeleteManifest(t.Context(), by("ada"), r, p.Digest); err != nil { // by its SHA-512
		t.Errorf("DeleteManifest = %v", err)
	}
	if got := s.tagsOf(r); len(got) != 0 {
		t.Errorf("tags after the manifest that they name was deleted = %v, want none", got)
	}
	for _, d := range []digest.Digest{one.Digest, p.Digest} {
		if err := s.DeleteManifest(t.Context(), by("ada"), r, d); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("DeleteManifest(%.20s) again = %v, want ErrNotFound", d, err)
		}
	}
	if err := s.UnlinkOCI(t.Context(), by("ada"), r, digest.FromString("one")); err != nil {
		t.Errorf("UnlinkOCI = %v", err)
	}
	var missing *lifecycle.MissingPartError
	if _, err := s.PushManifest(t.Context(), by("ada"), r, manifestOf("config", "one")); !errors.As(err, &missing) {
		t.Errorf("PushManifest of a blob that was deleted = %v, want a MissingPartError", err)
	}
}

// Of many pushes of a tag at once one is the last; all manifests are there.
func TestPushesOfATagAtOnce(t *testing.T) {
	const clients = 8
	s := open(t)
	var keys, digests [clients]string
	var wait sync.WaitGroup
	for i := range clients {
		wait.Go(func() {
			r := s.ensure("acme/tools") // all of them make it
			m := s.pushManifest(r, "latest", "config", fmt.Sprint("layer ", i))
			keys[i], digests[i] = r.Key, m.Digest.String()
		})
	}
	wait.Wait()
	if all := slices.Compact(keys[:]); len(all) != 1 {
		t.Errorf("the clients pushed to %v, want one repository", all)
	}
	r := s.ensure("acme/tools")
	if tags := s.tagsOf(r); len(tags) != 1 || !slices.Contains(digests[:], strings.TrimPrefix(tags[0], "latest=")) {
		t.Errorf("tags = %v, want latest to name one of %v", tags, digests)
	}
	manifests, err := s.data.Index.ManifestsOf(t.Context(), r.Key)
	if err != nil || len(manifests) != clients {
		t.Errorf("the repository has %d manifests, %v, want %d", len(manifests), err, clients)
	}
}

func TestQuotaOfRepositories(t *testing.T) {
	s := open(t)
	s.Quotas = []registry.Quota{{Models: "acme/*", Bytes: 100}}
	r, deep, m := s.ensure("acme/tools"), s.ensure("acme/tools/deep"), s.model(fraud)
	s.link(r, strings.Repeat("a", 60))
	s.link(r, strings.Repeat("a", 60)) // counted once
	over := func(r registry.OCIRepository, size int) error {
		text := strings.Repeat("b", size)
		return s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: digest.FromString(text), SizeBytes: int64(size)})
	}
	for name, err := range map[string]error{
		"the same repository": over(r, 41), "a deeper one": over(deep, 41), "the model's": over(s.ensure("acme/fraud"), 41),
		"a model": s.LinkBlobs(t.Context(), by("ada"), m, registry.LinkedBlob{Digest: digest.FromString("c"), SizeBytes: 41}),
	} {
		var full *registry.QuotaError
		if !errors.As(err, &full) || full.UsedBytes != 60 || full.WantedBytes != 41 {
			t.Errorf("41 bytes more for %s, of 100 with 60 used = %v, want a QuotaError", name, err)
		}
	}
	if err := over(deep, 40); err != nil {
		t.Errorf("the last 40 bytes = %v, want them taken", err)
	}
	// What is counted is counted again from the index.
	s.serve()
	s.Quotas = []registry.Quota{{Models: "acme/*", Bytes: 100}}
	if err := s.CheckQuota(t.Context(), "acme/fraud", 1); !errors.Is(err, registry.ErrQuota) {
		t.Errorf("CheckQuota of one byte more after a start = %v, want ErrQuota", err)
	}
}

// A model takes the name of a repository in which there is nothing, and no other.
func TestModelInThePlaceOfARepository(t *testing.T) {
	makers := map[string]func(s *site, name registry.ModelName) error{
		"CreateModel": func(s *site, name registry.ModelName) error {
			_, err := s.CreateModel(s.tb.Context(), by("ada"), name, registry.Public, "")
			return err
		},
		"a first push": func(s *site, name registry.ModelName) error {
			if _, err := s.PushTarget(s.tb.Context(), by("ada"), name); err != nil {
				return err
			}
			m, err := s.CheckFirstPush(s.tb.Context(), by("ada"), name, &push{id: "p", updates: manyBranches(1)})
			if err == nil {
				err = s.EndPush(s.tb.Context(), m, "p")
			}
			return err
		},
		"an upload": func(s *site, name registry.ModelName) error {
			if _, err := s.UploadTarget(s.tb.Context(), by("ada"), name); err != nil {
				return err
			}
			_, err := s.EnsureModel(s.tb.Context(), by("ada"), name)
			return err
		},
	}
	s := open(t)
	i := 0
	for what, make := range makers {
		i++
		name := registry.MustModelName(fmt.Sprintf("acme/m%d", i))
		r := s.ensure(name.String())
		stored := s.pushManifest(r, "latest", "config")
		s.pushManifest(r, "", "config", "more")
		if err := make(s, name); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "holds 2 manifests: delete them, or choose another name") {
			t.Errorf("%s at the name of a repository with manifests = %v, want a conflict that says what to do", what, err)
		}
		if now := s.ensure(name.String()); now.Key != r.Key {
			t.Errorf("%s that was refused has replaced the repository", what)
		}
		for _, d := range []digest.Digest{stored.Digest, digest.FromBytes(manifestOf("config", "more").Content)} {
			if err := s.DeleteManifest(t.Context(), by("ada"), r, d); err != nil {
				t.Fatal(err)
			}
		}
		before := s.groups()
		if err := make(s, name); err != nil {
			t.Errorf("%s at the name of a repository without manifests = %v, want the model", what, err)
		}
		if what == "CreateModel" && s.groups() != before+1 {
			t.Errorf("%s adds %d groups to the journal, want one for both", what, s.groups()-before)
		}
		if _, err := s.data.Index.RepositoryByName(t.Context(), name.String()); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("the repository after %s = %v, want it gone", what, err)
		}
		if owned, err := s.data.Index.OwnedBlobs(t.Context(), r.OwnerID); err != nil || len(owned) != 0 {
			t.Errorf("the repository owns %v, %v after %s, want nothing", owned, err, what)
		}
		// Who was about to push to the repository is told, and pushes to the model's.
		if err := s.LinkOCI(t.Context(), by("ada"), r, registry.LinkedBlob{Digest: digest.FromString("config"), SizeBytes: 6}); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("LinkOCI to the repository that was there before %s = %v, want ErrNotFound", what, err)
		}
		if _, err := s.PushManifest(t.Context(), by("ada"), r, indexOf()); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("PushManifest to the repository that was there before %s = %v, want ErrNotFound", what, err)
		}
		if now := s.ensure(name.String()); now.Model.Name != name {
			t.Errorf("EnsureOCI after %s = %+v, want the model's", what, now)
		}
	}
}

// A manifest that comes while the model is made is not lost.
func TestManifestWhileAModelIsMade(t *testing.T) {
	index := &hookedIndex{}
	s := open(t, func(f *faults) { index.Index, f.Index = f.Index, index })
	for turn := range 2 { // the first look at the repository, and the one that takes its place
		name := registry.MustModelName(fmt.Sprintf("acme/m%d", turn))
		r := s.ensure(name.String())
		push := func() {
			if _, err := s.PushManifest(t.Context(), by("ada"), r, tagged(indexOf(), "latest")); err != nil {
				t.Errorf("PushManifest while a model is made = %v", err)
			}
		}
		index.owner, index.listed = r.Key, push
		if turn == 1 {
			index.listed = func() { index.owner, index.listed = r.Key, push }
		}
		if _, err := s.CreateModel(t.Context(), by("ada"), name, registry.Public, ""); !errors.Is(err, registry.ErrConflict) {
			t.Errorf("CreateModel while a manifest comes at look %d = %v, want a conflict", turn+1, err)
		}
		if tags := s.tagsOf(s.ensure(name.String())); len(tags) != 1 {
			t.Errorf("tags after that = %v, want that of the manifest", tags)
		}
	}
}

// A mirror clone that was put into the data directory takes the name of no repository in which there is something.
func TestImportInThePlaceOfARepository(t *testing.T) {
	s := open(t)
	r := s.ensure("acme/fraud")
	stored := s.pushManifest(r, "latest", "config")
	if _, err := s.data.Repositories.Create(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	s.commit(fraud, "main", map[string]string{"README.md": "# Model\n"})
	if err := s.look(); err != nil {
		t.Fatal(err)
	}
	if now := s.ensure("acme/fraud"); now.Key != r.Key || len(s.log.lines("holds 1 manifests")) != 1 {
		t.Errorf("after a start there is %+v, and the log says %q; want the repository, and why there is no model", now, s.log.lines("acme/fraud"))
	}
	if err := s.DeleteManifest(t.Context(), by("ada"), r, stored.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.look(); err != nil {
		t.Fatal(err)
	}
	if now := s.ensure("acme/fraud"); now.Model.Name != fraud {
		t.Errorf("after a start with nothing in the way there is %+v, want the model", now)
	}
	if _, err := s.data.Index.RepositoryByName(t.Context(), "acme/fraud"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("the repository after that = %v, want it gone", err)
	}
}

// A repository at NAMESPACE/NAME/image is no model's as long as there is none, and keeps one from being made.
func TestModelWithTheImagesOfARepository(t *testing.T) {
	s := open(t)
	const name = "acme/fraud/image"
	r := s.ensure(name)
	stored := s.pushManifest(r, "", "config")
	if _, err := s.CreateModel(t.Context(), by("ada"), fraud, registry.Public, ""); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "acme/fraud/image is a repository") {
		t.Errorf("CreateModel = %v, want a conflict", err)
	}
	if err := s.DeleteManifest(t.Context(), by("ada"), r, stored.Digest); err != nil {
		t.Fatal(err)
	}
	m := s.model(fraud)
	if now := s.ensure(name); now.OwnerID != m.ID || !now.Image {
		t.Errorf("EnsureOCI(%s) = %+v, want that of the model's images", name, now)
	}
}

// A name is a model's or a repository's, also when both are made at once.
func TestModelAndRepositoryAtOnce(t *testing.T) {
	s := open(t)
	for i := range 10 {
		name := registry.MustModelName(fmt.Sprintf("acme/m%d", i))
		var model, manifest error
		var wait sync.WaitGroup
		wait.Go(func() { _, model = s.CreateModel(context.Background(), by("ada"), name, registry.Public, "") })
		wait.Go(func() {
			r, err := s.EnsureOCI(context.Background(), by("ada"), name.String())
			if err == nil {
				_, err = s.PushManifest(context.Background(), by("ada"), r, tagged(indexOf(), "Latest"))
			}
			manifest = err
		})
		wait.Wait()
		_, noModel := s.data.Index.ModelByName(t.Context(), name)
		_, noRepository := s.data.Index.RepositoryByName(t.Context(), name.String())
		if (noModel == nil) == (noRepository == nil) {
			t.Fatalf("%s: model %v, repository %v, want one of them", name, noModel, noRepository)
		}
		if model != nil && !errors.Is(model, registry.ErrConflict) || (model == nil) != (noModel == nil) {
			t.Errorf("%s: CreateModel = %v, and the model: %v", name, model, noModel)
		}
		tags := s.tagsOf(s.ensure(name.String()))
		switch {
		case manifest == nil && len(tags) != 1:
			t.Errorf("%s: PushManifest = nil, and the tags are %v", name, tags)
		case manifest != nil && !errors.Is(manifest, registry.ErrNotFound):
			t.Errorf("%s: PushManifest = %v, want nil or ErrNotFound", name, manifest)
		}
	}
}

// hookedJournal calls made before it commits that a model is made.
type hookedJournal struct {
	lifecycle.Journal
	made func()
}

func (j *hookedJournal) Commit(ctx context.Context, g registry.Group) error {
	for _, r := range g.Records {
		if _, ok := r.(registry.ModelCreated); ok {
			j.made()
		}
	}
	return j.Journal.Commit(ctx, g)
}

// Nobody makes a repository at the names of a model that is just being made.
func TestRepositoryWhileAModelIsMade(t *testing.T) {
	for _, name := range []string{"acme/fraud", "acme/fraud/image"} {
		journal := &hookedJournal{}
		s := open(t, func(f *faults) { journal.Journal, f.Journal = f.Journal, journal })
		made := make(chan registry.OCIRepository, 1)
		journal.made = func() {
			go func() {
				r, err := s.EnsureOCI(context.Background(), by("ada"), name)
				if err != nil {
					t.Errorf("EnsureOCI(%s) = %v", name, err)
				}
				made <- r
			}()
			select {
			case r := <-made:
				t.Errorf("EnsureOCI(%s) while the model is made = %+v, want it to wait", name, r)
				made <- r
			case <-time.After(100 * time.Millisecond): // only a fault is this quick
			}
		}
		m := s.model(fraud)
		if r := <-made; r.OwnerID != m.ID {
			t.Errorf("EnsureOCI(%s) = %+v, want that of the model", name, r)
		}
	}
}

func BenchmarkPushManifest(b *testing.B) {
	s := open(b)
	r := s.ensure("acme/tools")
	for _, c := range []string{"config", "layer"} {
		s.link(r, c)
	}
	image := manifestOf("config", "layer")
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprintf("again=%t", again), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				p := image
				if !again {
					p.Content = fmt.Appendf(nil, `%s,"annotations":{"n":"%d"}}`, image.Content[:len(image.Content)-1], i)
				}
				if _, err := s.PushManifest(b.Context(), by("ada"), r, tagged(p, "latest")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
