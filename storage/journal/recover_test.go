package journal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

// Four groups in two batches that are durable, and a last batch of three.
var (
	durableBatches = [][]string{payloads(1, 1), payloads(2, 4)}
	lastBatch      = payloads(5, 7)
)

func wholeSegment() (whole []byte, lastStart int) {
	before := segment(1, durableBatches...)
	return segment(1, append(slices.Clone(durableBatches), lastBatch)...), len(before)
}

// What a crash can leave of the last batch: a part of it up to some byte, followed by nothing, by zeros, by room for more
// or by other bytes; or all of it with a hole; and room behind it.
func TestTornEndIsCutOff(t *testing.T) {
	dir := t.TempDir()
	whole, lastStart := wholeSegment()
	check := func(name string, torn []byte) {
		t.Helper()
		writeJournal(t, dir, torn)
		j, err := Open(Config{Dir: dir, FS: durabletest.NoSync()})
		if err != nil {
			t.Errorf("%s: Open = %v", name, err)
			return
		}
		got := readAll(t, j)
		if n := len(got); n < 4 || n > 7 || !slices.Equal(got, payloads(1, n)) {
			t.Errorf("%s: groups = %q, want the first 4 and perhaps some of the last batch", name, got)
		}
		kept := segment(1, append(slices.Clone(durableBatches), lastBatch[:len(got)-4])...)
		want := Recovery{}
		text := min(len(torn), len(bytes.TrimRight(torn, "\n"))+1)
		if cut := text - len(kept); cut > 0 { // room is nothing that was lost
			want = Recovery{TruncatedBytes: int64(cut), Segment: segmentName(1), Offset: int64(len(kept))}
		}
		if diff := cmp.Diff(want, j.Recovery()); diff != "" {
			t.Errorf("%s: Recovery (-want +got):\n%s", name, diff)
		}
		if data := readFile(t, dir, 1); !bytes.Equal(data, kept) {
			t.Errorf("%s: file after Open = %q, want %q", name, data, kept)
		}
		seq, err := j.Append(t.Context(), []byte(`{"n":"after"}`))
		if err != nil || seq != uint64(len(got)+1) {
			t.Errorf("%s: Append = %d, %v, want %d", name, seq, err, len(got)+1)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		again, err := Open(Config{Dir: dir, FS: durabletest.NoSync()})
		if err != nil {
			t.Errorf("%s: Open after the recovery = %v", name, err)
			return
		}
		defer again.Close()
		if head, err := again.Verify(t.Context()); err != nil || head.Seq != seq || again.Recovery() != (Recovery{}) {
			t.Errorf("%s: after the recovery Verify = %d, %v, Recovery = %v, want %d and nothing cut",
				name, head.Seq, err, again.Recovery(), seq)
		}
	}
	for end := lastStart; end < len(whole); end++ {
		rest := len(whole) - end
		random := make([]byte, rest)
		for i := range random {
			random[i] = byte(rand.Uint32())
		}
		check(fmt.Sprintf("cut at %d", end), whole[:end])
		check(fmt.Sprintf("zeros from %d", end), append(bytes.Clone(whole[:end]), make([]byte, rest)...))
		check(fmt.Sprintf("random bytes from %d", end), append(bytes.Clone(whole[:end]), random...))
		hole := bytes.Clone(whole)
		clear(hole[end:min(end+100, len(hole))])
		check(fmt.Sprintf("hole at %d", end), hole)
		room := bytes.Repeat([]byte("\n"), rest+500)
		check(fmt.Sprintf("room from %d", end), append(bytes.Clone(whole[:end]), room...))
		hole = append(bytes.Clone(whole), room...)
		copy(hole[end:min(end+100, len(whole))], room)
		check(fmt.Sprintf("room at %d", end), hole)
	}
	check("nothing torn", whole)
	check("room behind it", append(bytes.Clone(whole), bytes.Repeat([]byte("\n"), 5000)...))
}

// A changed bit in anything that later groups prove durable must be found, and nothing may be cut off.
// That no bit of a line can change unnoticed is tested above the parsers; here every byte has its turn.
func TestChangedBitIsCorruption(t *testing.T) {
	dir := t.TempDir()
	whole, lastStart := wholeSegment()
	for i := range lastStart {
		bits := []int{i % 8}
		if whole[i] == '\n' {
			bits = []int{0, 1, 2, 3, 4, 5, 6, 7} // joins two lines, each time in another way
		}
		for _, bit := range bits {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1 << bit
			writeJournal(t, dir, damaged)
			j, err := Open(Config{Dir: dir, FS: durabletest.NoSync()})
			if err == nil {
				t.Errorf("byte %d, bit %d: Open = nil and Recovery = %+v, want ErrCorrupt", i, bit, j.Recovery())
				j.Close()
				continue
			}
			line := bytes.Count(whole[:i], []byte("\n")) + 1
			place := fmt.Sprintf("%s, line %d at byte %d:", segmentName(1), line, bytes.LastIndexByte(whole[:i], '\n')+1)
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), place) {
				t.Errorf("byte %d, bit %d: Open = %v, want ErrCorrupt at %q", i, bit, err, place)
			}
			if data := readFile(t, dir, 1); !bytes.Equal(data, damaged) {
				t.Errorf("byte %d, bit %d: Open changed the file", i, bit)
			}
		}
	}
}

// In the last batch a changed bit cannot be told from a torn write. It is reported as cut off, and
// never read.
func TestChangedBitInLastBatch(t *testing.T) {
	dir := t.TempDir()
	whole, lastStart := wholeSegment()
	for i := lastStart; i < len(whole); i++ {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 1 << (i % 8)
		j, err := Open(Config{Dir: writeJournal(t, dir, damaged), FS: durabletest.NoSync()})
		if err != nil {
			t.Errorf("byte %d: Open = %v", i, err)
			continue
		}
		got := readAll(t, j)
		if len(got) < 4 || len(got) > 6 || !slices.Equal(got, payloads(1, len(got))) || j.Recovery().TruncatedBytes == 0 {
			t.Errorf("byte %d: groups = %q, Recovery = %+v, want a begin of the groups and the rest cut off",
				i, got, j.Recovery())
		}
		j.Close()
	}
}

// Every byte of a sealed segment is under the checksums, the chain and the numbers.
func TestVerifyFindsChangedBitInSealedSegment(t *testing.T) {
	dir := t.TempDir()
	sealed, next := continued(header{first: 1}, durableBatches...)
	last, _ := continued(next, lastBatch)
	for i := range sealed {
		damaged := bytes.Clone(sealed)
		damaged[i] ^= 1 << (i % 8)
		j, err := Open(Config{Dir: writeJournal(t, dir, damaged, last), FS: durabletest.NoSync()})
		if err != nil {
			t.Fatalf("byte %d: Open = %v", i, err)
		}
		if _, err := j.Verify(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), segmentName(1)) {
			t.Errorf("byte %d: Verify = %v, want ErrCorrupt in %s", i, err, segmentName(1))
		}
		var read []string
		var readErr error
		for g, err := range j.Read(t.Context(), 1) {
			if readErr = err; err == nil {
				read = append(read, string(g.Payload))
			}
		}
		if !errors.Is(readErr, ErrCorrupt) || !slices.Equal(read, payloads(1, len(read))) {
			t.Errorf("byte %d: Read = %q, %v, want the groups before the damage and ErrCorrupt", i, read, readErr)
		}
		j.Close()
	}
}

func TestChangesByHand(t *testing.T) {
	whole, lastStart := wholeSegment()
	lines := bytes.SplitAfter(whole, []byte("\n"))
	join := func(lines ...[]byte) []byte { return bytes.Join(lines, nil) }
	// Somebody who knows the format changes group 3 with its own chain, or with its checksum only.
	at := position{seq: 2, chain: mustParse(t, lines[2]).chain}
	forged := entry{batch: 2, seq: 3, payload: []byte(`{"n":33}`)}
	forged.chain = link(sha256.New(), at.chain, forged.seq, forged.payload)
	rehashed := appendEntry(nil, forged)
	forged.chain = mustParse(t, lines[3]).chain
	rechecked := appendEntry(nil, forged)
	// A segment of which a checksum in the last line fits and the chain does not.
	lastChanged := mustParse(t, lines[7])
	lastChanged.payload = []byte(`{"n":77}`)

	otherBatch := mustParse(t, lines[7])
	otherBatch.batch = 4

	tests := map[string][]byte{
		"last group of an older batch":  join(whole[:lastStart], lines[5], lines[6], appendEntry(nil, otherBatch)),
		"line removed":                  join(lines[0], lines[1], lines[3], lines[4], lines[5]),
		"lines swapped":                 join(lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]),
		"line twice":                    join(lines[0], lines[1], lines[1], lines[2]),
		"empty line":                    join(lines[0], lines[1], []byte("\n"), lines[2], lines[3], lines[4], lines[5]),
		"group with new checksum":       join(lines[0], lines[1], lines[2], rechecked, lines[4], lines[5]),
		"group with new chain":          join(lines[0], lines[1], lines[2], rehashed, lines[4], lines[5]),
		"last group with new checksum":  join(whole[:lastStart], lines[5], lines[6], appendEntry(nil, lastChanged)),
		"header of another segment":     join(segment(2)[:headerBytes], whole[headerBytes:]),
		"header with another chain":     join(appendHeader(nil, header{first: 1, chain: chain{1}}), whole[headerBytes:]),
		"header missing":                whole[headerBytes:],
		"empty file":                    nil,
		"header of a version to come":   bytes.Replace(whole, []byte(headerMark), []byte("herdbook-journal 2"), 1),
		"header cut off":                whole[:headerBytes-1],
		"newline changed, then a group": bytes.Replace(join(lines[0], lines[1], lines[2]), []byte("}\n"), []byte("}\x0b"), 1),
	}
	for name, data := range tests {
		dir := writeJournal(t, t.TempDir(), data)
		if j, err := Open(Config{Dir: dir, FS: durabletest.NoSync()}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Open = %v, want ErrCorrupt", name, err)
			if err == nil {
				j.Close()
			}
		}
		if got := readFile(t, dir, 1); !bytes.Equal(got, data) {
			t.Errorf("%s: Open changed the file", name)
		}
	}
}

func TestChangedSegments(t *testing.T) {
	first, next := continued(header{first: 1}, payloads(1, 3))
	second, next := continued(next, payloads(4, 6))
	third, _ := continued(next, payloads(7, 9))
	other, _ := continued(header{first: 4, chain: chain{1}}, payloads(4, 6))
	lines := bytes.SplitAfter(second, []byte("\n"))
	tests := map[string][][]byte{
		"segment of another journal":    {first, other, third},
		"sealed segment cut at a line":  {first, bytes.Join(lines[:3], nil), third},
		"sealed segment cut in a line":  {first, second[:len(second)-5], third},
		"sealed segment with more":      {first, append(bytes.Clone(second), "more\n"...), third},
		"sealed segment with a newline": {first, append(bytes.Clone(second), '\n'), third},
	}
	for name, segments := range tests {
		j, err := Open(Config{Dir: writeJournal(t, t.TempDir(), segments...), FS: durabletest.NoSync()})
		if err != nil {
			t.Errorf("%s: Open = %v", name, err)
			continue
		}
		if _, err := j.Verify(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Verify = %v, want ErrCorrupt", name, err)
		}
		j.Close()
	}

	dir := writeJournal(t, t.TempDir(), first, second, third)
	if err := os.Remove(filepath.Join(dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Open without the first segment = %v, want ErrCorrupt", err)
	}
	dir = writeJournal(t, t.TempDir(), first, second, third)
	if err := os.Remove(filepath.Join(dir, segmentName(4))); err != nil {
		t.Fatal(err)
	}
	j, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Verify(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Verify without the second segment = %v, want ErrCorrupt", err)
	}
}

// A read from the middle does not check the lines it passes over, but it never begins at another group.
func TestReadFromTheMiddleOfADamagedSegment(t *testing.T) {
	whole := segment(1, payloads(1, 6))
	lines := bytes.SplitAfter(whole, []byte("\n"))
	join := func(lines ...[]byte) []byte { return bytes.Join(lines, nil) }
	tests := map[string][]byte{
		"line before it removed": join(lines[0], lines[1], lines[2], lines[4], lines[5], lines[6]),
		"line removed":           join(lines[0], lines[1], lines[2], lines[3], lines[5], lines[6]),
		"line before it changed": bytes.Replace(whole, []byte(`{"n":3}`), []byte(`{"n":4}`), 1),
		"line changed":           bytes.Replace(whole, []byte(`{"n":4}`), []byte(`{"n":5}`), 1),
		"all gone behind it":     join(lines[:3]...),
		"newline before it gone": bytes.Replace(whole, append([]byte(`{"n":3}`), '\n'), []byte(`{"n":3} `), 1),
	}
	for name, data := range tests {
		dir := writeJournal(t, t.TempDir(), whole)
		j, err := Open(Config{Dir: dir, FS: durabletest.NoSync()})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, segmentName(1)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		for g, err := range j.Read(t.Context(), 4) {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: Read from 4 = group %d, %v, want ErrCorrupt", name, g.Seq, err)
			}
		}
		j.Close()
	}
}

func mustParse(t *testing.T, line []byte) entry {
	t.Helper()
	e, err := parseEntry(line)
	if err != nil {
		t.Fatalf("parseEntry(%q) = %v", line, err)
	}
	return e
}

// writeJournal makes the segments the only files in dir, and returns it. The first is named 1, the
// others after their headers.
func writeJournal(t *testing.T, dir string, segments ...[]byte) string {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for i, data := range segments {
		first := uint64(1)
		if i > 0 {
			line, _, _ := bytes.Cut(data, []byte("\n"))
			h, err := parseHeader(append(bytes.Clone(line), '\n'))
			if err != nil {
				t.Fatal(err)
			}
			first = h.first
		}
		if err := os.WriteFile(filepath.Join(dir, segmentName(first)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readFile(t *testing.T, dir string, first uint64) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, segmentName(first)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readAll(t *testing.T, j *Journal) (list []string) {
	t.Helper()
	for g, err := range j.Read(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(g.Payload))
	}
	return list
}
