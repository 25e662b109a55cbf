package storage_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
)

// withRepositories gives a data directory, beside what fill does, a repository without a model, and what a client pushed into that and
// into those of the model. It gives the digests by what they are.
func withRepositories(t *testing.T, d *storage.Data) map[string]digest.Digest {
	t.Helper()
	fill(t, d)
	found := map[string]digest.Digest{}
	put := func(text string) registry.LinkedBlob {
		b := putBlob(t, d, text)
		found[text] = b.Digest
		return b
	}
	manifest := func(text string) registry.StoredManifest {
		b := put(text)
		return registry.StoredManifest{Descriptor: registry.Descriptor{MediaType: "application/x", Digest: b.Digest, SizeBytes: b.SizeBytes}, PushedBy: "ada"}
	}
	shared := put("layer of both")
	for _, record := range []registry.Record{
		registry.RepositoryCreated{Repository: registry.Repository{ID: "r1", Name: "acme/tools/scan"}},
		registry.BlobsLinked{ModelID: "r1", Blobs: []registry.LinkedBlob{put("layer of a tool"), shared}},
		registry.BlobsLinked{ModelID: "m1", Blobs: []registry.LinkedBlob{shared}},
		registry.ManifestPushed{Repository: "r1", Manifest: manifest("manifest of a tool"), Tags: []string{"latest"}},
		registry.ManifestPushed{Repository: "m1", Manifest: manifest("signature"), Tags: []string{"Signed"}},
		registry.ManifestPushed{Repository: registry.ImageRepository("m1"), Manifest: manifest("variant")},
		registry.ManifestPushed{Repository: "r1", Manifest: manifest("deleted manifest")},
	} {
		commit(t, d, record)
	}
	return found
}

func commit(t *testing.T, d *storage.Data, records ...registry.Record) {
	t.Helper()
	if err := d.Commit(t.Context(), registry.Group{At: begin, Actor: "ada", Records: records}); err != nil {
		t.Fatal(err)
	}
}

// What a client pushed, and is lost or damaged, is told with the names of who has it.
func TestFsckOfRepositories(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	defer closeData(t, d)
	blobs := withRepositories(t, d)
	fsck := func() []string {
		t.Helper()
		found := []string{}
		_, err := d.Fsck(t.Context(), storage.FsckOptions{}, storage.Report{Found: func(f storage.Finding) {
			for text, dgst := range blobs {
				if dgst.String() == f.Name {
					f.Name = text
				}
			}
			found = append(found, fmt.Sprintf("%s: %s %s: %s", f.Severity, f.What, f.Name, f.Problem))
		}})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if got := fsck(); len(got) != 0 {
		t.Fatalf("Fsck = %q, want nothing", got)
	}
	owners := map[string]string{
		"layer of a tool": "acme/tools/scan", "layer of both": "acme/fraud, acme/tools/scan", "manifest of a tool": "acme/tools/scan",
		"signature": "acme/fraud", "variant": "acme/fraud/image",
	}
	want := []string{}
	for text, of := range owners {
		if err := d.Blobs.Delete(t.Context(), blobs[text]); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("damage: blob %s: it is gone; it belongs to %s", text, of))
	}
	got := fsck()
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Fsck after all were lost (-want +got):\n%s", diff)
	}
	for text := range owners {
		putBlob(t, d, text)
	}
	spoil(t, dir, blobs["manifest of a tool"])
	if got := strings.Join(fsck(), "\n"); !strings.Contains(got, "manifest of a tool: it holds content of") {
		t.Errorf("Fsck after a manifest was spoiled = %q, want it to tell of that", got)
	}
	if got, want := fsck(), []string{"damage: blob manifest of a tool: it was damaged and is set aside; it belongs to acme/tools/scan"}; !slices.Equal(got, want) {
		t.Errorf("Fsck after that = %q, want %q", got, want)
	}
}

func TestCollectKeepsWhatClientsPushed(t *testing.T) {
	d := openDir(t, t.TempDir())
	defer closeData(t, d)
	blobs := withRepositories(t, d)
	removed := func() []string {
		t.Helper()
		texts := map[digest.Digest]string{}
		for text, dgst := range blobs {
			texts[dgst] = text
		}
		var list []string
		collect(t, d, func(dgst digest.Digest) { list = append(list, texts[dgst]) })
		slices.Sort(list)
		return list
	}
	if got := removed(); len(got) != 0 {
		t.Errorf("Collect removes %q, want nothing", got)
	}
	commit(t, d, registry.ManifestDeleted{Repository: "r1", Digest: blobs["deleted manifest"]})
	if got := removed(); !slices.Equal(got, []string{"deleted manifest"}) {
		t.Errorf("Collect after a manifest was deleted removes %q, want its content", got)
	}
	commit(t, d, registry.RepositoryDeleted{RepositoryID: "r1"})
	if got, want := removed(), []string{"layer of a tool", "manifest of a tool"}; !slices.Equal(got, want) {
		t.Errorf("Collect after a repository was deleted removes %q, want %q", got, want)
	}
	commit(t, d, registry.ModelDeleted{ModelID: "m1"})
	if got, want := removed(), []string{"", "layer of both", "signature", "variant"}; !slices.Equal(got, want) { // the first is of fill
		t.Errorf("Collect after the model was deleted removes %q, want %q", got, want)
	}
	if left := slices.Collect(maps.Values(blobs)); slices.ContainsFunc(left, func(dgst digest.Digest) bool { _, err := d.Blobs.Stat(t.Context(), dgst); return err == nil }) {
		t.Error("some of what was pushed is in the store still")
	}
}

// A manifest whose content was removed as garbage, before it was named, is not taken.
func TestManifestThatWasRemoved(t *testing.T) {
	d := openDir(t, t.TempDir())
	defer closeData(t, d)
	fill(t, d)
	b := putBlob(t, d, "manifest")
	collect(t, d, func(digest.Digest) {})
	record := registry.ManifestPushed{Repository: "m1", Manifest: registry.StoredManifest{Descriptor: registry.Descriptor{Digest: b.Digest, SizeBytes: b.SizeBytes}}}
	if err := d.Commit(t.Context(), registry.Group{At: begin, Records: []registry.Record{record}}); err == nil || !strings.Contains(err.Error(), "sent again") {
		t.Errorf("Commit of a manifest without its content = %v, want an error that it has to be sent again", err)
	}
	putBlob(t, d, "manifest")
	commit(t, d, record)
}
