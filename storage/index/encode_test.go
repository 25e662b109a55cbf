package index_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// A value is encoded as encoding/json does it, whatever is in it.
func FuzzAppendJSON(f *testing.F) {
	for _, s := range []string{"", "sha256:ab", "v1.0.0", "a \"b\" \\", "<&>", "\u2028", "\x00\n", "\xff", "k\u00e4se"} {
		f.Add(s, int64(len(s)), uint64(len(s)))
	}
	f.Add("x", int64(math.MinInt64), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, s string, i int64, u uint64) {
		for _, v := range []any{
			nil, s, digest.Digest(s), i, u,
			registry.Usage{Blobs: i},
			registry.AnnouncedRef{Generation: u},
			registry.AnnouncedRef{ID: registry.ObjectID(s), Generation: u},
		} {
			want, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := index.AppendJSON([]byte("before"), v); err != nil || string(got) != "before"+string(want) {
				t.Errorf("appendJSON(%T %v) = %s, %v, want before%s", v, v, got, err, want)
			}
		}
	})
}

// The rows that are made of the text of a record are those that its value gives.
func TestRowsFromText(t *testing.T) {
	h := newHerd(t, 1)
	r := h.version(h.models[0], 7)
	r.Version.Message = "a \"quoted\" {message}, with <brackets> and \\"
	r.Manifest.Annotations = map[string]string{"version": "x", "a": `","version":{`}
	sent := registry.NewEvent(registry.EventVersionPublished, h.models[0], "ada <a@b>", begin, map[string]any{"event": "}"}, "x")
	entry := h.entry(r, registry.EventAnnounced{Event: sent})
	row := registry.VersionRecord{ModelID: r.ModelID, Version: r.Version, State: registry.Published, Image: registry.ImageStatus{State: registry.ImageBuilding}}
	of := entry.Encoded[0].Fields("manifest", "version", "nothing")
	numbered := sent
	numbered.Seq = 77
	at := begin.Add(time.Microsecond)
	for name, pair := range map[string][2]any{
		"version":    {index.VersionText(row, of[1]), row},
		"manifest":   {of[0], r.Manifest},
		"event":      {index.EventText(numbered, entry.Encoded[1].Fields("event")[0]), numbered},
		"evaluated":  {index.EvaluatedText(at, "c0ffee"), map[string]any{"at": at, "evaluated": "c0ffee"}},
		"unmirrored": {index.UnmirroredText(at, entry.Encoded[0]), map[string]any{"at": at, "record": entry.Encoded[0]}},

		"version without text": {index.VersionText(row, nil), row},
		"event without text":   {index.EventText(numbered, nil), numbered},
	} {
		want, err := json.Marshal(pair[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := index.AppendJSON(nil, pair[0])
		if diff := cmp.Diff(string(want), string(got)); err != nil || diff != "" {
			t.Errorf("row of %s: %v (-value +text):\n%s", name, err, diff)
		}
	}
	if of[2] != nil {
		t.Errorf("member of another name = %s, want none", of[2])
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	ref := registry.AnnouncedRef{ID: commitOf("x"), Generation: 3}
	var dst []byte
	for b.Loop() {
		var err error
		if dst, err = index.AppendJSON(dst[:0], ref); err != nil {
			b.Fatal(err)
		}
	}
}
