package registry_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

// What is cut out of a record is what encoding/json reads there; of text that it would not write, a part.
func FuzzFields(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":{"b":[1,"]}"]},"b":"x\\"}`, `{"b":"\"","a":null}`, `{"a"`, `{"a":`, `{"a":"`, `{"a":[`, `{"a":1,`, `{"a\\":1}`, `{"a":1}}`, `[1,2]`, `"a"`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		registry.EncodedRecord{Data: text}.Fields("a", "b") // has only not to panic
		var values map[string]json.RawMessage
		if json.Unmarshal(text, &values) != nil || values == nil {
			return
		}
		canonical, err := json.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		got := registry.EncodedRecord{Data: canonical}.Fields("a", "b")
		for i, name := range []string{"a", "b"} {
			var want []byte
			if v, ok := values[name]; ok {
				if want, err = json.Marshal(v); err != nil {
					t.Fatal(err)
				}
			}
			if string(got[i]) != string(want) {
				t.Errorf("Fields of %s: %s = %q, want %q", canonical, name, got[i], want)
			}
		}
	})
}

// A group that is split is the one that encoding/json reads, and what that refuses is refused.
func FuzzSplitGroup(f *testing.F) {
	for _, r := range samples() {
		f.Add(encode(f, group(r, r)))
	}
	for _, s := range []string{
		`{"at":"2026-03-04T05:06:07Z","records":[]}`, `{"at":"2026-03-04T05:06:07Z","records":[]} `, `{"at":"2026-03-04T05:06:07Z","records":[]}}`,
		`{"at":"yesterday","records":[]}`, `{"at":"2026-03-04T05:06:07Z","actor":"a\u0041","records":[]}`, `{"at":"2026-03-04T05:06:07Z","actor":"\x7f","request":"r","records":[]}`,
		`{"at":"2026-03-04T05:06:07Z","records":[{"type":"push_finished","data":{}},]}`, `{"at":"2026-03-04T05:06:07Z","records":[{"type":"push_finished","data":}]}`,
		`{"at":"2026-03-04T05:06:07Z","records":[{"type":"push_finished","data":{}}{}]}`, `{"at":"2026-03-04T05:06:07Z","records":[{"type":"push_finished","data":{"model_id":"m"}`,
		`{"at":"2026-03-04T05:06:07Z","records":[{"type":"push_finished","data":{"model_id":"]}"}}]}`,
	} {
		f.Add([]byte(s))
	}
	d := registry.NewDecoder()
	f.Fuzz(func(t *testing.T, line []byte) {
		got, records, ok := registry.SplitGroup(line)
		if !ok {
			return
		}
		var read error
		for _, r := range records {
			_, err := d.DecodeRecord(r)
			read = errors.Join(read, err)
		}
		if read != nil {
			return // as it is read in any case
		}
		want, wantRecords, err := registry.UnmarshalGroup(line)
		if err != nil {
			t.Fatalf("%q is split, and encoding/json says: %v", line, err)
		}
		if diff := cmp.Diff(want, got, sameGroups...) + cmp.Diff(wantRecords, records); diff != "" {
			t.Errorf("%q is split into something else (-encoding/json +split):\n%s", line, diff)
		}
	})
}

// What EncodeGroup writes is split, so that encoding/json does not have to.
func TestSplitGroup(t *testing.T) {
	for _, g := range []registry.Group{group(), group(samples()...), {}} {
		line := encode(t, g)
		if _, records, ok := registry.SplitGroup(line); !ok || len(records) != len(g.Records) {
			t.Errorf("splitGroup(%s) = %d records, %t, want %d", line, len(records), ok, len(g.Records))
		}
	}
}

func BenchmarkFields(b *testing.B) {
	var text registry.EncodedRecord
	for _, r := range samples() {
		if v, ok := r.(registry.VersionPublished); ok {
			var err error
			if text, err = registry.EncodeRecord(v); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.SetBytes(int64(len(text.Data)))
	for b.Loop() {
		if text.Fields("version", "manifest")[1] == nil {
			b.Fatal("no manifest")
		}
	}
}
