package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/index"
	"github.com/herdbook/herdbook/storage/journal"
)

var discard = slog.New(slog.DiscardHandler)

// openDir opens a data directory and closes it with the test, if that has not.
func openDir(t *testing.T, dir string) *storage.Data {
	t.Helper()
	d, _ := openLogged(t, dir)
	return d
}

// openLogged also gives what was logged while it was opened.
func openLogged(t *testing.T, dir string) (*storage.Data, string) {
	t.Helper()
	var log bytes.Buffer
	d, err := storage.Open(t.Context(), storage.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatalf("Open(%s): %v", dir, err)
	}
	return d, log.String()
}

func closeData(t *testing.T, d *storage.Data) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// openError is the error of a directory that cannot be opened.
func openError(t *testing.T, dir string) error {
	t.Helper()
	d, err := storage.Open(t.Context(), storage.Config{Dir: dir, Log: discard})
	if err == nil {
		closeData(t, d)
		t.Fatalf("Open(%s) = nil, want an error", dir)
	}
	return err
}

// appendRaw puts groups into the journal of a directory that nobody has open, and applies them to
// nothing, as a server does that dies after the sync.
func appendRaw(t *testing.T, dir string, groups []registry.Group) {
	t.Helper()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		line, err := registry.EncodeGroup(g)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := j.Append(t.Context(), line); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// seed makes a data directory that holds the history, and closes it.
func seed(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	groups, _ := history()
	appendRaw(t, dir, groups)
	closeData(t, openDir(t, dir))
	return dir
}

// dumpDir is all that the index of a directory holds once it was opened.
func dumpDir(t *testing.T, dir string) string {
	t.Helper()
	d := openDir(t, dir)
	defer closeData(t, d)
	return dump(t, d.Index)
}

func dump(t *testing.T, db *index.DB) string {
	t.Helper()
	var b strings.Builder
	if err := db.Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func lastSegment(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "journal", "*.log"))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments = %v, %v", names, err)
	}
	return names[len(names)-1]
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// What was acknowledged and is gone from the journal is said loudly, every time, and nothing is
// changed: neither is the rest of the journal cut off nor the index thrown away, which may be all
// that is left of it.
func TestLostGroupsAreAnError(t *testing.T) {
	groups, _ := history()
	total := uint64(len(groups))
	cutLines := func(n int, tail string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := lastSegment(t, dir)
			lines := bytes.SplitAfter(readFile(t, path), []byte("\n"))
			writeFile(t, path, append(bytes.Join(lines[:len(lines)-1-n], nil), tail...))
		}
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   journal.LostError
	}{
		{"the end of the last group is torn off", func(t *testing.T, dir string) {
			path := lastSegment(t, dir)
			data := readFile(t, path)
			writeFile(t, path, data[:len(data)-7])
		}, journal.LostError{Durable: total, Last: total - 1, TornBytes: -1}},
		{"a bit of the last group has flipped", func(t *testing.T, dir string) {
			path := lastSegment(t, dir)
			data := readFile(t, path)
			data[len(data)-20] ^= 4
			writeFile(t, path, data)
		}, journal.LostError{Durable: total, Last: total - 1, TornBytes: -1}},
		{"three groups are gone and half a line is left", cutLines(3, "0123abcd "), journal.LostError{Durable: total, Last: total - 3, TornBytes: 9}},
		{"three groups are gone at the end of a line", cutLines(3, ""), journal.LostError{Durable: total, Last: total - 3}},
		{"the journal is gone", func(t *testing.T, dir string) { remove(t, lastSegment(t, dir)) }, journal.LostError{Durable: total}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := seed(t)
			tt.damage(t, dir)
			before := map[string]string{}
			names, _ := filepath.Glob(filepath.Join(dir, "journal", "*"))
			for _, path := range append(names, filepath.Join(dir, "index.db")) {
				before[path] = string(readFile(t, path))
			}
			for range 2 { // a second start is no way around it
				err := openError(t, dir)
				var lost *journal.LostError
				if !errors.As(err, &lost) {
					t.Fatalf("Open = %v, want a LostError", err)
				}
				want := tt.want
				if want.Last > 0 {
					want.Segment, want.Offset = filepath.Base(names[0]), lost.Offset
				}
				if want.TornBytes < 0 && lost.TornBytes > 0 {
					want.TornBytes = lost.TornBytes
				}
				if *lost != want {
					t.Errorf("Open = %+v, want %+v", *lost, want)
				}
				said := []string{fmt.Sprintf("%d in all", want.Durable-want.Last), "backup", filepath.Join(dir, "index.db")}
				if want.Segment != "" {
					said = append(said, want.Segment, fmt.Sprintf("byte %d", lost.Offset))
				}
				for _, part := range said {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("Open = %q, want it to say %q", err, part)
					}
				}
				// The index was closed in order, with the same content, not replaced.
				delete(before, filepath.Join(dir, "index.db"))
				for path, data := range before {
					if got := string(readFile(t, path)); got != data {
						t.Errorf("%s has changed from %d bytes to %d", filepath.Base(path), len(data), len(got))
					}
				}
				if exists(filepath.Join(dir, "index.db.damaged")) {
					t.Error("the index was set aside: it may be all that is left of the groups")
				}
			}
			// What the message says works.
			if err := os.Rename(filepath.Join(dir, "index.db"), filepath.Join(dir, "kept")); err != nil {
				t.Fatal(err)
			}
			d := openDir(t, dir)
			defer closeData(t, d)
			applied, err := d.Index.Applied(t.Context())
			if want := max(tt.want.Last, 1); err != nil || applied != want { // a new journal has one group, its name
				t.Errorf("with the index moved away the index is at group %d, %v, want %d", applied, err, want)
			}
		})
	}
}

// A torn end that no one was told is done is cut off with a line in the log.
func TestTornEndIsCutOff(t *testing.T) {
	dir := seed(t)
	want := dumpDir(t, dir)
	f, err := os.OpenFile(lastSegment(t, dir), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("0123abcd half a line"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d, log := openLogged(t, dir)
	defer closeData(t, d)
	if !strings.Contains(log, "cut off") || !strings.Contains(log, "bytes=20") {
		t.Errorf("log = %q, want a line about 20 bytes that were cut off", log)
	}
	if diff := cmp.Diff(want, dump(t, d.Index)); diff != "" {
		t.Errorf("index after a torn end (-want +got):\n%s", diff)
	}
	if err := d.Commit(t.Context(), registry.Group{At: begin, Records: []registry.Record{registry.ModelDeleted{ModelID: fraud}}}); err != nil {
		t.Errorf("Commit after a torn end: %v", err)
	}
}

// A server that is killed between the journal's sync and the index leaves the index behind.
func TestCrashBeforeTheIndex(t *testing.T) {
	groups, _ := history()
	dir := t.TempDir()
	appendRaw(t, dir, groups)
	want := dumpDir(t, dir)
	for _, at := range []int{0, 1, 7, len(groups) - 1} {
		dir := t.TempDir()
		appendRaw(t, dir, groups[:at])
		if at > 0 {
			closeData(t, openDir(t, dir))
		}
		appendRaw(t, dir, groups[at:])
		if diff := cmp.Diff(want, dumpDir(t, dir)); diff != "" {
			t.Errorf("index that was stopped at group %d and opened again (-want +got):\n%s", at, diff)
		}
	}
}

func TestDeletedIndexIsRebuilt(t *testing.T) {
	dir := seed(t)
	want := dumpDir(t, dir)
	if !strings.Contains(want, "acme/fraud") {
		t.Fatalf("dump = %q, want it to hold the history", want)
	}
	remove(t, filepath.Join(dir, "index.db"))
	d, log := openLogged(t, dir)
	defer closeData(t, d)
	if diff := cmp.Diff(want, dump(t, d.Index)); diff != "" {
		t.Errorf("index that was deleted and rebuilt (-want +got):\n%s", diff)
	}
	groups, _ := history()
	if want := fmt.Sprintf("groups=%d", len(groups)); !strings.Contains(log, want) {
		t.Errorf("log = %q, want a line with %s", log, want)
	}
}

// The index of another directory has its own groups: it is no view of this journal, however
// well the numbers fit.
func TestIndexOfAnotherJournalIsSetAside(t *testing.T) {
	dir, other := seed(t), t.TempDir()
	want := dumpDir(t, dir)
	closeData(t, openDir(t, other)) // a journal of one group
	for _, suffix := range []string{"", ".state"} {
		writeFile(t, filepath.Join(dir, "index.db"+suffix), readFile(t, filepath.Join(other, "index.db"+suffix)))
	}
	d, log := openLogged(t, dir)
	defer closeData(t, d)
	if diff := cmp.Diff(want, dump(t, d.Index)); diff != "" {
		t.Errorf("index after that of another directory was put there (-want +got):\n%s", diff)
	}
	if !strings.Contains(log, "set aside") || !exists(filepath.Join(dir, "index.db.damaged")) {
		t.Errorf("log = %q, and the foreign index was not kept as index.db.damaged", log)
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	if err := openError(t, dir); !strings.Contains(err.Error(), "another herdbook server has it open") || !strings.Contains(err.Error(), dir) {
		t.Errorf("second Open = %v, want it to say that another server has %s open", err, dir)
	}
	if err := d.Ready(t.Context()); err != nil {
		t.Errorf("Ready of the first after a second was refused: %v", err)
	}
	closeData(t, d)
	closeData(t, openDir(t, dir))
}

// A group that cannot be applied must not get into the journal: every later write would wait for
// it, and every start.
func TestCommitRefusesWhatCannotBeApplied(t *testing.T) {
	d := openDir(t, t.TempDir())
	defer closeData(t, d)
	m := model("m1", "acme/fraud", registry.Public)
	commit := func(records ...registry.Record) error {
		return d.Commit(t.Context(), registry.Group{At: begin, Actor: "ada", Records: records})
	}
	edge := func(from, to string) registry.EdgesAdded {
		return registry.EdgesAdded{ModelID: "m1", Edges: []registry.LineageEdge{{From: from, To: to, Kind: registry.Used}}}
	}
	tests := []struct {
		name    string
		records []registry.Record
		want    string
	}{
		{"no id", []registry.Record{registry.ModelCreated{Model: registry.Model{Name: m.Name}}}, "empty"},
		{"no name", []registry.Record{registry.ModelCreated{Model: registry.Model{ID: "m1"}}}, "empty"},
		{"the second record is bad", []registry.Record{registry.ModelCreated{Model: m}, registry.TokenCreated{}}, "record 1 (registry.TokenCreated)"},
		{"a key that is too long", []registry.Record{edge("version:m1:v1.0.0", "dataset:"+strings.Repeat("x", 40000))}, "too long"},
		{"a NUL", []registry.Record{edge("version:m1:v1.0.0", "dataset:a\x00b")}, "NUL"},
		{"not even a group", []registry.Record{registry.EventAnnounced{Event: registry.Event{ID: "e", Data: []byte("{")}}}, "event_announced"},
		{"nothing to read back", []registry.Record{registry.EventAnnounced{Event: registry.Event{ID: "e", Data: []byte("\n{}\n"), At: begin.AddDate(9000, 0, 0)}}}, "year"},
	}
	for _, tt := range tests {
		if err := commit(tt.records...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Commit of %s = %v, want an error with %q", tt.name, err, tt.want)
		}
		if applied, err := d.Index.Applied(t.Context()); err != nil || applied != 1 {
			t.Errorf("after Commit of %s the index is at %d, %v, want 1", tt.name, applied, err)
		}
	}
	if err := commit(registry.ModelCreated{Model: m}); err != nil {
		t.Errorf("Commit after all these: %v", err)
	}
	if got, err := d.Index.ModelByID(t.Context(), "m1"); err != nil || !cmp.Equal(got, m, cmpopts.EquateComparable(registry.ModelName{})) {
		t.Errorf("ModelByID = %+v, %v, want %+v", got, err, m)
	}
}

func TestCommitErrors(t *testing.T) {
	d := openDir(t, t.TempDir())
	long := registry.Group{At: begin, Records: []registry.Record{registry.PromotionRefused{ModelID: "m1", Tag: registry.MustTag("v1.0.0"), Reason: strings.Repeat("x", 9<<20)}}}
	if err := d.Commit(t.Context(), long); !errors.Is(err, registry.ErrTooLarge) {
		t.Errorf("Commit of 9 MiB = %v, want ErrTooLarge", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Ready(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Ready of a cancelled context = %v, want %v", err, context.Canceled)
	}
	closeData(t, d)
	small := registry.Group{At: begin, Records: []registry.Record{registry.ModelDeleted{ModelID: "m1"}}}
	if err := d.Commit(t.Context(), small); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Commit after Close = %v, want ErrUnavailable", err)
	}
	if err := d.Ready(t.Context()); err == nil {
		t.Error("Ready after Close = nil, want an error")
	}
}

// A record that this version does not know is a fact: it is not passed over.
func TestUnknownRecordStopsTheServer(t *testing.T) {
	dir := seed(t)
	j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(t.Context(), []byte(`{"at":"2026-11-23T12:00:00Z","records":[{"type":"version_teleported","data":{}}]}`)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := openError(t, dir); !strings.Contains(err.Error(), "version_teleported") {
			t.Errorf("Open = %v, want an error that names the record", err)
		}
	}
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	defer closeData(t, d)
	made := 0
	maker := func() []byte { made++; return []byte{0, '\n', byte(made)} }
	for range 3 {
		got, err := d.Secret("lfs", maker)
		if want := "\x00\n\x01"; err != nil || string(got) != want {
			t.Errorf("Secret(lfs) = %q, %v, want %q each time", got, err, want)
		}
	}
	if got, err := d.Secret("other", maker); err != nil || string(got) != "\x00\n\x02" {
		t.Errorf("Secret(other) = %q, %v, want one of its own", got, err)
	}
	path, err := d.WriteAdminToken("hb_1_x")
	if want := filepath.Join(dir, "admin-token"); err != nil || path != want {
		t.Fatalf("WriteAdminToken = %s, %v, want %s", path, err, want)
	}
	if got := string(readFile(t, path)); got != "hb_1_x\n" {
		t.Errorf("%s holds %q, want %q", path, got, "hb_1_x\n")
	}
	for path, want := range map[string]os.FileMode{"secrets": 0o700 | os.ModeDir, "secrets/lfs": 0o600, "secrets/other": 0o600, "admin-token": 0o600, "lock": 0o600, "index.db": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode() != want {
			t.Errorf("mode of %s = %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if err := os.Remove(filepath.Join(dir, "secrets", "lfs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "secrets", "lfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Secret("lfs", maker); err == nil {
		t.Errorf("Secret that cannot be read = %q, want an error and no new one", got)
	}
}

// Whatever happens to the bytes of the index while no server runs: the answers are the same.
func TestDamagedIndexIsRebuilt(t *testing.T) {
	dir := seed(t)
	want := dumpDir(t, dir)
	path := filepath.Join(dir, "index.db")
	good, state := readFile(t, path), readFile(t, path+".state")
	tests := map[string]func(index, state []byte) ([]byte, []byte){
		"a page of zeros":      func(i, s []byte) ([]byte, []byte) { clear(i[4096:8192]); return i, s },
		"half of it is there":  func(i, s []byte) ([]byte, []byte) { return i[:len(i)/2], s },
		"more at the end":      func(i, s []byte) ([]byte, []byte) { return append(i, make([]byte, 4096)...), s },
		"not an index":         func(_, s []byte) ([]byte, []byte) { return []byte("hello"), s },
		"a state of old":       func(i, s []byte) ([]byte, []byte) { return i, bytes.Replace(s, []byte(`"sum":`), []byte(`"sum":1`), 1) },
		"no state that speaks": func(i, _ []byte) ([]byte, []byte) { return i, []byte("{}") },
		"an empty state":       func(i, _ []byte) ([]byte, []byte) { return i, nil },
	}
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 12 {
		tests[fmt.Sprintf("%d flipped bits, trial %d", n%3+1, n)] = func(i, s []byte) ([]byte, []byte) {
			for range n%3 + 1 {
				i[random.IntN(len(i))] ^= 1 << random.IntN(8)
			}
			return i, s
		}
	}
	for name, damage := range tests {
		i, s := damage(bytes.Clone(good), bytes.Clone(state))
		writeFile(t, path, i)
		writeFile(t, path+".state", s)
		_ = os.Remove(path + ".damaged")
		d, log := openLogged(t, dir)
		if diff := cmp.Diff(want, dump(t, d.Index)); diff != "" {
			t.Errorf("index after %s (-want +got):\n%s", name, diff)
		}
		closeData(t, d)
		if !strings.Contains(log, "set aside") {
			t.Errorf("log after %s = %q, want a line that the index was set aside", name, log)
		}
		if got := readFile(t, path+".damaged"); !bytes.Equal(got, i) {
			t.Errorf("after %s index.db.damaged has %d bytes that are not those of the damaged file", name, len(got))
		}
	}
}

// An index that is fine is not rebuilt.
func TestGoodIndexIsKept(t *testing.T) {
	dir := seed(t)
	d, log := openLogged(t, dir)
	defer closeData(t, d)
	if log != "" || exists(filepath.Join(dir, "index.db.damaged")) {
		t.Errorf("log of a start after an orderly stop = %q, want nothing", log)
	}
}

// A copy that was made while the server ran may be of two moments, and is not taken.
func TestCopyOfAnOpenIndexIsSetAside(t *testing.T) {
	dir, copied := seed(t), t.TempDir()
	d := openDir(t, dir)
	want := dump(t, d.Index)
	if err := os.CopyFS(filepath.Join(copied, "journal"), os.DirFS(filepath.Join(dir, "journal"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"index.db", "index.db.state"} {
		writeFile(t, filepath.Join(copied, name), readFile(t, filepath.Join(dir, name)))
	}
	closeData(t, d)
	d, log := openLogged(t, copied)
	defer closeData(t, d)
	if !strings.Contains(log, "set aside") {
		t.Errorf("log = %q, want a line that the index was set aside", log)
	}
	if diff := cmp.Diff(want, dump(t, d.Index)); diff != "" {
		t.Errorf("index of the copy (-want +got):\n%s", diff)
	}
}

// What writers that run at once commit is in the index when they are told so, in the order of the
// journal: a rebuild ends in the same rows.
func TestCommitsAtOnce(t *testing.T) {
	const writers, each = 6, 15
	dir := t.TempDir()
	d := openDir(t, dir)
	if err := d.Commit(t.Context(), registry.Group{At: begin, Records: []registry.Record{registry.ModelCreated{Model: model(fraud, "acme/fraud", registry.Public)}}}); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for w := range writers {
		wait.Go(func() {
			m := model(fraud, "acme/fraud", registry.Public)
			for i := range each {
				id := fmt.Sprintf("e-%d-%d", w, i)
				g := registry.Group{At: begin, Actor: "ada", Records: []registry.Record{evaluation(m, "one", id, 0.5), announced(m, registry.EventEvaluationRecorded, begin, id, sinkA)}}
				if err := d.Commit(t.Context(), g); err != nil {
					t.Errorf("Commit of %s: %v", id, err)
				}
				if got, err := d.Index.EvaluationByID(t.Context(), fraud, id); err != nil || got.ID != id {
					t.Errorf("EvaluationByID(%s) right after its commit = %q, %v", id, got.ID, err)
				}
			}
		})
	}
	wait.Wait()
	want := dump(t, d.Index)
	counts, err := d.Index.Counts(t.Context())
	if err != nil || counts.Evaluations != writers*each || counts.Waiting != writers*each {
		t.Errorf("Counts = %+v, %v, want %d evaluations and as many waiting", counts, err, writers*each)
	}
	closeData(t, d)
	remove(t, filepath.Join(dir, "index.db"))
	if diff := cmp.Diff(want, dumpDir(t, dir)); diff != "" {
		t.Errorf("rows as they were committed and as they were rebuilt (-committed +rebuilt):\n%s", diff)
	}
}
