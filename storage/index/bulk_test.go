package index_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// story is a journal of n groups in which models come and go, share blobs and let go of them.
func story(tb testing.TB, seed uint64, n int) []index.Entry {
	h := newHerd(tb, 6)
	random := rand.New(rand.NewPCG(seed, 1))
	var entries []index.Entry
	add := func(records ...registry.Record) { entries = append(entries, h.entry(records...)) }
	versions := map[string][]registry.VersionPublished{}
	born := map[string]bool{}
	blob := func() registry.LinkedBlob {
		n := random.IntN(20)
		return registry.LinkedBlob{Digest: digest.FromString(fmt.Sprint("shared", n)), SizeBytes: int64(n)}
	}
	for len(entries) < n {
		m := h.models[random.IntN(len(h.models))]
		if !born[m.ID] {
			born[m.ID] = true
			add(registry.ModelCreated{Model: m})
			continue
		}
		published := versions[m.ID]
		switch random.IntN(16) {
		case 0:
			add(registry.ModelDeleted{ModelID: m.ID})
			delete(born, m.ID)
			delete(versions, m.ID)
		case 1, 2:
			add(registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{blob(), blob(), blob()}})
		case 3:
			b := blob()
			add(registry.BlobsUnlinked{ModelID: m.ID, Digests: []digest.Digest{b.Digest}})
		case 4:
			b := blob()
			manifest := registry.StoredManifest{Descriptor: registry.Descriptor{MediaType: "x", Digest: b.Digest, SizeBytes: 3}, PushedBy: "ada"}
			add(registry.ManifestPushed{Repository: m.ID, Manifest: manifest, Tags: []string{"latest"}})
		case 5:
			add(registry.ManifestDeleted{Repository: m.ID, Digest: blob().Digest})
		case 6:
			add(event(m, fmt.Sprint(random.IntN(30)), "notify"))
		case 7:
			add(registry.DeliveryTried{Attempt: registry.Attempt{EventID: event(m, fmt.Sprint(random.IntN(30))).Event.ID, Sink: "notify", Outcome: registry.Delivered, At: begin}})
		case 8:
			if len(published) > 0 {
				v := published[random.IntN(len(published))]
				add(registry.VersionStateSet{ModelID: m.ID, Withdrawn: []digest.Digest{v.Version.Files[1].Digest, v.Manifest.Digest}, Change: registry.StateChange{
					ID: fmt.Sprint("s", len(entries)), Version: v.Version.Tag, State: registry.Revoked, At: begin,
				}})
			}
		case 9:
			if len(published) > 0 {
				v := published[random.IntN(len(published))]
				add(evaluation(m, string(v.Version.Commit), fmt.Sprint("e", len(entries))), change(m, v, staging, fmt.Sprint("c", len(entries))))
			}
		default:
			v := h.version(m, len(published))
			versions[m.ID] = append(published, v)
			add(registry.RefMoved{ModelID: m.ID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: "refs/tags/" + v.Version.Tag.String(), New: v.Version.Commit}}, v,
				event(m, v.Version.Tag.String()))
		}
	}
	return entries
}

// applied is a new index with the entries applied one by one, without the text of their records.
func applied(tb testing.TB, entries []index.Entry) string {
	tb.Helper()
	k := newBook(tb)
	for _, e := range entries {
		e.Encoded = nil
		if err := k.Apply([]index.Entry{e}); err != nil {
			tb.Fatal(err)
		}
	}
	return dump(tb, k.DB)
}

// batches calls apply with the entries in batches of any size.
func batches(random *rand.Rand, entries []index.Entry, most int, apply func([]index.Entry) error) error {
	for len(entries) > 0 {
		n := min(1+random.IntN(most), len(entries))
		if err := apply(entries[:n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// However a journal is applied, the rows are the same.
func TestBulk(t *testing.T) {
	for seed := range uint64(6) {
		entries := story(t, seed, 300)
		want := applied(t, entries)
		for _, most := range []int{3, 40, 300} {
			k := newBook(t)
			k.MergeInSteps(most * 100)
			err := k.Bulk(func(apply func([]index.Entry) error) error {
				return batches(rand.New(rand.NewPCG(seed, 2)), entries, most, apply)
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, dump(t, k.DB)); diff != "" {
				t.Errorf("rows of story %d in batches of at most %d, merged at the end (-one by one +merged):\n%s", seed, most, diff)
			}
			if n := k.Runs(); n != 0 {
				t.Errorf("blocks of runs after Bulk = %d, want 0", n)
			}
		}
	}
}

// What only a revoked version named, a version that is published in a later batch brings back.
func TestBulkBringsBack(t *testing.T) {
	k := newBook(t)
	m := k.model("acme/fraud", registry.Public)
	v := k.publish(m, "v1.0.0")
	file := v.Version.Files[0].Digest
	k.add(registry.VersionStateSet{ModelID: m.ID, Withdrawn: []digest.Digest{file}, Change: registry.StateChange{
		ID: "s1", Version: v.Version.Tag, State: registry.Revoked, At: begin,
	}})
	if gone, err := k.Withdrawn(t.Context(), m.ID, file); err != nil || gone == nil {
		t.Fatalf("Withdrawn(file of the revoked version) = %v, %v, want why", gone, err)
	}
	next := version(m, "v1.1.0")
	next.Version.Files = v.Version.Files
	entry := index.Entry{Seq: k.seq + 1, Group: registry.Group{At: begin, Records: []registry.Record{next}}}
	if err := k.Bulk(func(apply func([]index.Entry) error) error { return apply([]index.Entry{entry}) }); err != nil {
		t.Fatal(err)
	}
	if gone, err := k.Withdrawn(t.Context(), m.ID, file); err != nil || gone != nil {
		t.Errorf("Withdrawn(file that v1.1.0 has too) = %v, %v, want nothing", gone, err)
	}
}

// A process that is killed in the middle leaves an index that says how far it is and goes on from there.
func TestBulkKilled(t *testing.T) {
	entries := story(t, 7, 300)
	want := applied(t, entries)
	for _, at := range []int{1, 150, 299} {
		k := newBook(t)
		killed := errors.New("killed")
		err := k.Bulk(func(apply func([]index.Entry) error) error {
			if err := batches(rand.New(rand.NewPCG(1, 2)), entries[:at], 20, apply); err != nil {
				return err
			}
			if k.Runs() == 0 && at > 1 {
				t.Error("no runs are kept, so that this test shows nothing")
			}
			return errors.Join(k.Kill(), killed)
		})
		if !errors.Is(err, killed) {
			t.Fatal(err)
		}
		k.open()
		if got, err := k.Applied(t.Context()); err != nil || got != uint64(at) {
			t.Errorf("Applied after a kill at %d = %d, %v", at, got, err)
		}
		if diff := cmp.Diff(applied(t, entries[:at]), dump(t, k.DB)); diff != "" {
			t.Errorf("rows after a kill at %d (-one by one +killed):\n%s", at, diff)
		}
		if err := k.Bulk(func(apply func([]index.Entry) error) error { return apply(entries) }); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, dump(t, k.DB)); diff != "" {
			t.Errorf("rows after a kill at %d and the rest (-one by one +killed):\n%s", at, diff)
		}
	}
}

// A batch that cannot be applied leaves the index as it was, and those before it are there.
func TestBulkWithABadBatch(t *testing.T) {
	entries := story(t, 3, 100)
	bad := index.Entry{Seq: 101, Group: registry.Group{At: begin, Records: []registry.Record{
		registry.VersionPublished{ModelID: "m", Version: registry.Version{Config: registry.Descriptor{Digest: "sha256:x"}}}, registry.TokenCreated{},
	}}}
	k := newBook(t)
	err := k.Bulk(func(apply func([]index.Entry) error) error {
		if err := apply(entries); err != nil {
			return err
		}
		return apply([]index.Entry{bad})
	})
	if err == nil || !strings.Contains(err.Error(), "group 101") {
		t.Errorf("Bulk with a bad group = %v, want an error that names group 101", err)
	}
	if diff := cmp.Diff(applied(t, entries), dump(t, k.DB)); diff != "" {
		t.Errorf("rows after a bad batch (-without it +got):\n%s", diff)
	}
}

// A bit that flips in a run while it is kept is not read as data: the file is set aside.
func TestBulkDamaged(t *testing.T) {
	entries := story(t, 5, 200)
	for _, bit := range []int{3, 40, 77777} {
		k := newBook(t)
		_ = k.Bulk(func(apply func([]index.Entry) error) error {
			if err := apply(entries); err != nil {
				t.Fatal(err)
			}
			return errors.Join(k.FlipRun(1, bit), k.Kill())
		})
		k.open()
		if got, err := k.Applied(t.Context()); err != nil || got != 0 {
			t.Errorf("Applied after bit %d of a run flipped = %d, %v, want a new index", bit, got, err)
		}
	}
}

// A read of a damaged run ends the batch.
func TestBulkReadsDamage(t *testing.T) {
	k := newBook(t)
	h := newHerd(t, 1)
	first := append(h.created(), h.published(1)...)
	err := k.Bulk(func(apply func([]index.Entry) error) error {
		if err := apply(first); err != nil {
			t.Fatal(err)
		}
		if err := k.FlipRun(0, 99); err != nil { // of the blobs
			t.Fatal(err)
		}
		read := apply(h.published(1))
		if !errors.Is(read, index.ErrDamaged) {
			t.Errorf("Apply that reads a damaged run = %v, want ErrDamaged", read)
		}
		return read
	})
	if !errors.Is(err, index.ErrDamaged) {
		t.Errorf("Bulk with a damaged run = %v, want ErrDamaged", err)
	}
}

// Keys are put in the order in which bbolt keeps them.
func FuzzSorted(f *testing.F) {
	f.Add([]byte("b\xffa\xffa\x00\xffa\x00\x00\xff\xffmodel-1\x00sha256:ab\xffmodel-1\x00sha256:aa\xffmodel-11"), uint8(0))
	f.Add([]byte("\xff\x00\xff\x00\x00"), uint8(40))
	f.Fuzz(func(t *testing.T, text []byte, same uint8) {
		seen := map[string]bool{}
		var keys [][]byte
		add := func(k []byte) {
			if !seen[string(k)] {
				seen[string(k)] = true
				keys = append(keys, k)
			}
		}
		for k := range bytes.SplitSeq(text, []byte{0xff}) {
			add(k)
			for i := range int(same % 64) { // keys that agree for long, and are each the beginning of the next
				add(append(bytes.Repeat([]byte("p"), 3*int(same%64)), bytes.Repeat([]byte{0}, i)...))
				add(append(bytes.Clone(k), bytes.Repeat([]byte{0}, 7*i)...))
			}
		}
		want := slices.SortedFunc(slices.Values(keys), bytes.Compare)
		if diff := cmp.Diff(want, index.Sorted(keys)); diff != "" {
			t.Errorf("order of %q (-want +got):\n%s", keys, diff)
		}
	})
}

// What is read of a block is what was written; of any other bytes nothing behind their end.
func FuzzRows(f *testing.F) {
	f.Add([]byte("\x01a\x00\x02bc\x01\x01d\x03xy"))
	f.Add([]byte("\x01a\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01"))
	f.Add([]byte("\x00"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, block []byte) {
		again, ok := index.Rows(block)
		if !ok {
			return
		}
		if twice, ok := index.Rows(again); !ok || !bytes.Equal(twice, again) || len(again) > len(block) {
			t.Errorf("rows of %q = %q, of these %q, %t", block, again, twice, ok)
		}
	})
}

func TestFilter(t *testing.T) {
	for _, n := range []int{0, 1, 10, 10_000} {
		var keys, others [][]byte
		for i := range max(n, 1000) {
			if i < n {
				keys = append(keys, fmt.Append(nil, "key", i))
			}
			others = append(others, fmt.Append(nil, "other", i))
		}
		own, wrong := index.Filtered(keys, others)
		if own != n {
			t.Errorf("keys that a filter of %d knows = %d, want all", n, own)
		}
		if wrong > len(others)/50 {
			t.Errorf("keys that a filter of %d takes for its own = %d of %d, want at most 2 %%", n, wrong, len(others))
		}
	}
}
