package index_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// repository makes a repository without a model, whose id is "r-" and its name.
func (b *book) repository(name string) registry.Repository {
	b.tb.Helper()
	r := registry.Repository{ID: "r-" + strings.ReplaceAll(name, "/", "-"), Name: name, Visibility: registry.Public, CreatedAt: begin, CreatedBy: "ada"}
	b.add(registry.RepositoryCreated{Repository: r})
	return r
}

// pushed is the record of a manifest of that content.
func pushed(repository, text string, tags ...string) registry.ManifestPushed {
	return registry.ManifestPushed{Repository: repository, Tags: tags, Manifest: registry.StoredManifest{
		Descriptor: registry.Descriptor{MediaType: "application/x", Digest: digest.FromString(text), SizeBytes: int64(len(text))}, PushedBy: "ada",
	}}
}

// wide is the record of a manifest that is known by its SHA-512 too.
func wide(r registry.ManifestPushed, text string) registry.ManifestPushed {
	r.Alias = digest.SHA512.FromString(text)
	return r
}

func linked(text string) registry.LinkedBlob {
	return registry.LinkedBlob{Digest: digest.FromString(text), SizeBytes: int64(len(text)), Alias: digest.SHA512.FromString(text)}
}

// tags are the tags of a repository, each as TAG=DIGEST.
func (b *book) tags(repository string) []string {
	b.tb.Helper()
	names, _, err := b.Tags(b.tb.Context(), repository, "", 20_000)
	if err != nil {
		b.tb.Fatal(err)
	}
	for i, name := range names {
		names[i] = name + "=" + must[digest.Digest](b.tb)(b.TagDigest(b.tb.Context(), repository, name)).String()
	}
	return names
}

// rows is all that the index holds, but for what counts groups.
func rows(tb testing.TB, b *book) string {
	tb.Helper()
	lines := slices.Collect(strings.Lines(dump(tb, b.DB)))
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, `meta "applied"`) }), "")
}

func TestRepositories(t *testing.T) {
	b := newBook(t)
	b.model("acme/fraud", registry.Public)
	if got := must[[]registry.Repository](t)(b.Repositories(t.Context())); len(got) != 0 {
		t.Errorf("Repositories without any = %v, want none: a model is none of them", got)
	}
	near := b.repository("acme/tools2")
	empty := rows(t, b)
	r := b.repository("acme/tools")
	b.add(registry.BlobsLinked{ModelID: r.ID, Blobs: []registry.LinkedBlob{linked("layer"), linked("config")}})
	refers := wide(pushed(r.ID, "signature", "sig"), "signature")
	refers.Manifest.Subject = digest.FromString("image")
	b.add(pushed(r.ID, "image", "latest", "1.0"), refers)
	if diff := cmp.Diff([]registry.Repository{r, near}, must[[]registry.Repository](t)(b.Repositories(t.Context()))); diff != "" {
		t.Errorf("Repositories (-want +got):\n%s", diff)
	}
	if got, err := b.RepositoryByName(t.Context(), "acme/tools"); err != nil || got != r {
		t.Errorf("RepositoryByName(acme/tools) = %+v, %v, want %+v", got, err, r)
	}
	for _, name := range []string{"", "acme", "acme/tool", "acme/tools/", r.ID, "acme/fraud"} {
		if got, err := b.RepositoryByName(t.Context(), name); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("RepositoryByName(%q) = %+v, %v, want ErrNotFound", name, got, err)
		}
	}
	if got := must[registry.Usage](t)(b.Usage(t.Context(), r.ID)); got != (registry.Usage{Blobs: 2, LogicalBytes: 11}) {
		t.Errorf("Usage = %+v, want 2 blobs with 11 bytes", got)
	}
	if got := must[[]string](t)(b.Owners(t.Context(), digest.FromString("layer").String())); !slices.Equal(got, []string{"acme/tools"}) {
		t.Errorf("Owners = %v, want the repository", got)
	}
	if got := must[[]registry.StoredManifest](t)(b.Referrers(t.Context(), r.ID, digest.FromString("image"))); len(got) != 1 || got[0].Digest != refers.Manifest.Digest {
		t.Errorf("Referrers = %+v, want the signature", got)
	}
	b.add(registry.RepositoryDeleted{RepositoryID: r.ID})
	b.add(registry.RepositoryDeleted{RepositoryID: r.ID}, registry.RepositoryDeleted{RepositoryID: "never"})
	if diff := cmp.Diff(empty, rows(t, b)); diff != "" {
		t.Errorf("rows that a deleted repository leaves (-want +got):\n%s", diff)
	}
}

func TestPushedManifests(t *testing.T) {
	one, two := digest.FromString("one"), digest.FromString("two")
	wideOne := digest.SHA512.FromString("one")
	tests := []struct {
		name    string
		records []registry.Record
		want    []string // tags
		there   []digest.Digest
		gone    []digest.Digest
	}{
		{"one with tags", []registry.Record{pushed("r", "one", "a", "b")}, []string{"a=" + one.String(), "b=" + one.String()}, []digest.Digest{one}, []digest.Digest{two, wideOne}},
		{"one without tags", []registry.Record{pushed("r", "one")}, nil, []digest.Digest{one}, nil},
		{"a tag that moves", []registry.Record{pushed("r", "one", "a", "b"), pushed("r", "two", "a")}, []string{"a=" + two.String(), "b=" + one.String()}, []digest.Digest{one, two}, nil},
		{"one by another digest", []registry.Record{wide(pushed("r", "one", "a"), "one")}, []string{"a=" + wideOne.String()}, []digest.Digest{one, wideOne}, nil},
		{"by its first digest later", []registry.Record{wide(pushed("r", "one", "a"), "one"), pushed("r", "one", "b")}, []string{"a=" + wideOne.String(), "b=" + one.String()}, []digest.Digest{one, wideOne}, nil},
		{"a deleted tag", []registry.Record{pushed("r", "one", "a", "b"), registry.TagDeleted{Repository: "r", Tag: "a"}}, []string{"b=" + one.String()}, []digest.Digest{one}, nil},
		{"a tag that is not there", []registry.Record{pushed("r", "one", "a"), registry.TagDeleted{Repository: "r", Tag: "b"}}, []string{"a=" + one.String()}, []digest.Digest{one}, nil},
		{
			"a deleted manifest",
			[]registry.Record{pushed("r", "one", "a", "b"), pushed("r", "two", "c"), registry.ManifestDeleted{Repository: "r", Digest: one}},
			[]string{"c=" + two.String()},
			[]digest.Digest{two},
			[]digest.Digest{one},
		},
		{
			"a deleted manifest with two digests",
			[]registry.Record{wide(pushed("r", "one", "a"), "one"), pushed("r", "one", "b"), wide(pushed("r", "two", "c"), "two"), registry.ManifestDeleted{Repository: "r", Digest: one}},
			[]string{"c=" + digest.SHA512.FromString("two").String()},
			[]digest.Digest{two, digest.SHA512.FromString("two")},
			[]digest.Digest{one, wideOne},
		},
		{
			"a manifest deleted in the next repository",
			[]registry.Record{pushed("r", "one", "a"), pushed("r2", "one", "a"), registry.ManifestDeleted{Repository: "r2", Digest: one}},
			[]string{"a=" + one.String()},
			[]digest.Digest{one},
			nil,
		},
		{"a manifest that is not there", []registry.Record{pushed("r", "one", "a"), registry.ManifestDeleted{Repository: "r", Digest: two}}, []string{"a=" + one.String()}, []digest.Digest{one}, nil},
	}
	for _, tt := range tests {
		b := newBook(t)
		b.add(tt.records...)
		if got := b.tags("r"); !slices.Equal(got, tt.want) {
			t.Errorf("%s: tags = %v, want %v", tt.name, got, tt.want)
		}
		find := func(d digest.Digest) error {
			of, err := b.Canonical(t.Context(), "r", d)
			if err == nil {
				_, err = b.Manifest(t.Context(), "r", of)
			}
			return err
		}
		for _, d := range tt.there {
			if err := find(d); err != nil {
				t.Errorf("%s: manifest %s = %v, want it", tt.name, d, err)
			}
		}
		for _, d := range tt.gone {
			if err := find(d); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("%s: manifest %s = %v, want ErrNotFound", tt.name, d, err)
			}
		}
	}
}

// The same digest may name a blob and a manifest: its alias stays until neither is there.
func TestAliases(t *testing.T) {
	b := newBook(t)
	r := b.repository("acme/tools")
	empty := rows(t, b)
	text, other := "both", "other"
	alias := digest.SHA512.FromString(text)
	link := registry.BlobsLinked{ModelID: r.ID, Blobs: []registry.LinkedBlob{linked(text), linked(other)}}
	unlink := registry.BlobsUnlinked{ModelID: r.ID, Digests: []digest.Digest{digest.FromString(text)}}
	push, remove := wide(pushed(r.ID, text), text), registry.ManifestDeleted{Repository: r.ID, Digest: digest.FromString(text)}
	known := func(when string, d digest.Digest, want bool) {
		t.Helper()
		of, err := b.Canonical(t.Context(), r.ID, d)
		if want && err != nil || !want && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s Canonical(%.20s) = %q, %v, want it known: %t", when, d, of, err, want)
		}
	}
	b.add(link)
	known("after an upload", alias, true)
	if of := must[digest.Digest](t)(b.Canonical(t.Context(), r.ID, alias)); of != digest.FromString(text) {
		t.Errorf("Canonical = %s, want %s", of, digest.FromString(text))
	}
	b.add(unlink)
	known("after the blob was let go of", alias, false)
	known("after another blob was let go of", digest.SHA512.FromString(other), true)
	b.add(link, push)
	b.add(remove)
	known("after only the manifest was deleted", alias, true)
	b.add(push)
	b.add(unlink)
	known("after only the blob was let go of", alias, true)
	b.add(remove)
	known("after both", alias, false)
	b.add(registry.BlobsUnlinked{ModelID: r.ID, Digests: []digest.Digest{digest.FromString(other)}})
	if diff := cmp.Diff(empty, rows(t, b)); diff != "" {
		t.Errorf("rows when nothing is left (-want +got):\n%s", diff)
	}
	if of := must[digest.Digest](t)(b.Canonical(t.Context(), "nobody", digest.FromString("never"))); of != digest.FromString("never") {
		t.Errorf("Canonical of a SHA-256 = %s, want itself", of)
	}
}

// What clients pushed into the repositories of a model goes with the model.
func TestDeletedModelTakesWhatWasPushed(t *testing.T) {
	b := newBook(t)
	other := b.model("acme/other", registry.Public)
	b.add(wide(pushed(other.ID, "signature", "sig"), "signature"))
	before := rows(t, b)
	m := b.model("acme/fraud", registry.Public)
	v := b.publish(m, "v1.0.0")
	signature := wide(pushed(m.ID, "signature", "sig"), "signature")
	signature.Manifest.Subject = v.Version.Artifact.Digest
	b.add(registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{linked("payload")}}, signature, wide(pushed(registry.ImageRepository(m.ID), "variant", "slim"), "variant"))
	b.add(registry.ModelDeleted{ModelID: m.ID})
	keep := func(text string) string {
		lines := slices.Collect(strings.Lines(text))
		return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "tombstones ") }), "")
	}
	if diff := cmp.Diff(before, keep(rows(t, b))); diff != "" {
		t.Errorf("rows that a deleted model leaves beside its tombstone (-want +got):\n%s", diff)
	}
}

// An upload that ends after its model or its repository is gone leaves nothing.
func TestBlobsOfWhatIsGone(t *testing.T) {
	b := newBook(t)
	m, r := b.model("acme/fraud", registry.Public), b.repository("acme/tools")
	b.add(registry.ModelDeleted{ModelID: m.ID}, registry.RepositoryDeleted{RepositoryID: r.ID})
	before := rows(t, b)
	for _, owner := range []string{m.ID, r.ID, "never"} {
		b.add(registry.BlobsLinked{ModelID: owner, Blobs: []registry.LinkedBlob{linked("too late")}})
	}
	if diff := cmp.Diff(before, rows(t, b)); diff != "" {
		t.Errorf("rows after blobs of what is gone were linked (-want +got):\n%s", diff)
	}
}

func TestNamedBlobsAndTheirOwners(t *testing.T) {
	b := newBook(t)
	m, r := b.model("acme/fraud", registry.Public), b.repository("acme/tools/scan")
	b.add(registry.BlobsLinked{ModelID: r.ID, Blobs: []registry.LinkedBlob{linked("layer")}}, pushed(r.ID, "image"), pushed(m.ID, "signature"), pushed(registry.ImageRepository(m.ID), "variant"))
	got := map[string]string{}
	err := b.Snapshot(t.Context(), func(s index.Snapshot) error {
		if name, err := s.OwnerName("gone"); name != "" || err != nil {
			t.Errorf("OwnerName of what is gone = %q, %v, want none", name, err)
		}
		return s.NamedBlobs(func(n index.NamedBlob) error {
			name, err := s.OwnerName(n.Owner)
			got[n.Digest] = fmt.Sprintf("%s %d", name, n.SizeBytes)
			return err
		})
	})
	want := map[string]string{
		digest.FromString("layer").String(): "acme/tools/scan 5", digest.FromString("image").String(): "acme/tools/scan 5",
		digest.FromString("signature").String(): "acme/fraud 9", digest.FromString("variant").String(): "acme/fraud/image 7",
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("NamedBlobs: %v (-want +got):\n%s", err, diff)
	}
}

// A repository of 10,000 tags loses one of its manifests.
func BenchmarkDeleteManifest(b *testing.B) {
	k := newBook(b)
	var records []registry.Record
	for i := range 10_000 {
		records = append(records, pushed("r", fmt.Sprint(i), fmt.Sprintf("tag-%d", i)))
	}
	k.add(records...)
	for b.Loop() {
		k.add(registry.ManifestDeleted{Repository: "r", Digest: digest.FromString("5000")})
		b.StopTimer()
		k.add(records[5000])
		b.StartTimer()
	}
}

// A repository of 10,000 blobs lets go of a thousand of them.
func BenchmarkUnlink(b *testing.B) {
	for _, alias := range []bool{false, true} {
		b.Run(fmt.Sprintf("aliases=%t", alias), func(b *testing.B) {
			k := newBook(b)
			r := k.repository("acme/tools")
			var blobs []registry.LinkedBlob
			var digests []digest.Digest
			for i := range 10_000 {
				l := linked(fmt.Sprint(i))
				if !alias {
					l.Alias = ""
				}
				blobs, digests = append(blobs, l), append(digests, l.Digest)
			}
			k.add(registry.BlobsLinked{ModelID: r.ID, Blobs: blobs})
			for b.Loop() {
				k.add(registry.BlobsUnlinked{ModelID: r.ID, Digests: digests[:1000]})
				b.StopTimer()
				k.add(registry.BlobsLinked{ModelID: r.ID, Blobs: blobs[:1000]})
				b.StartTimer()
			}
		})
	}
}
