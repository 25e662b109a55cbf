package index_test

import (
	"bytes"
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
			nil, s, digest.Digest(s), i, u, registry.Usage{Blobs: i}, registry.AnnouncedRef{Generation: u},
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
	of := index.Members(entry.Encoded[0].Data, "manifest", "version", "nothing")
	numbered := sent
	numbered.Seq = 77
	at := begin.Add(time.Microsecond)
	for name, pair := range map[string][2]any{
		"version":    {index.VersionText(row, of[1]), row},
		"manifest":   {of[0], r.Manifest},
		"event":      {index.EventText(numbered, index.Members(entry.Encoded[1].Data, "event")[0]), numbered},
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

// What is cut out of an object is what encoding/json reads there; text that it would not write is not read behind its end.
func FuzzMembers(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":{"b":[1,"]}"]},"b":"x\\"}`, `{"b":"\"","a":null}`, `{"a"`, `{"a":`, `{"a":"`, `{"a":[`, `{"a":1,`, `{"a\\":1}`, `[1,2]`, `{"a":1}}`, `"a"`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got := index.Members(text, "a", "b")
		var values map[string]json.RawMessage
		if json.Unmarshal(text, &values) != nil || values == nil {
			return // it has only not to panic
		}
		canonical, err := json.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		got = index.Members(canonical, "a", "b")
		for i, name := range []string{"a", "b"} {
			var want bytes.Buffer
			if v, ok := values[name]; ok {
				text, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				want.Write(text)
			}
			if string(got[i]) != want.String() {
				t.Errorf("members(%s)[%s] = %q, want %q", canonical, name, got[i], want.String())
			}
		}
	})
}

func BenchmarkMembers(b *testing.B) {
	h := newHerd(b, 1)
	text := h.entry(h.version(h.models[0], 1)).Encoded[0].Data
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if index.Members(text, "version", "manifest")[1] == nil {
			b.Fatal("no manifest")
		}
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
