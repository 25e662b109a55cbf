package journal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"
)

func FuzzEntry(f *testing.F) {
	f.Add(appendEntry(nil, entry{batch: 1, seq: 2, payload: []byte(`{"kind":"model.created"}`)}))
	f.Add(appendEntry(nil, entry{seq: 1<<64 - 1, payload: []byte("\r\x00 \xff")}))
	f.Add(appendHeader(nil, header{first: 1}))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, line := range [][]byte{data, rechecked(data)} {
			e, err := parseEntry(line)
			if err != nil {
				continue
			}
			if again := appendEntry(nil, e); !bytes.Equal(again, line) {
				t.Errorf("parseEntry accepted %q, which appendEntry writes as %q", line, again)
			}
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, header{first: 1}))
	f.Add(appendHeader(nil, header{first: 1<<64 - 1, chain: chain{0xff}}))
	f.Add(appendEntry(nil, entry{batch: 1, seq: 2, payload: []byte("herdbook-journal 1")}))
	f.Add([]byte("00000000 herdbook-journal 1 "))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, line := range [][]byte{data, rechecked(data)} {
			h, err := parseHeader(line)
			if err != nil {
				continue
			}
			if again := appendHeader(nil, h); !bytes.Equal(again, line) {
				t.Errorf("parseHeader accepted %q, which appendHeader writes as %q", line, again)
			}
		}
	})
}

// Whatever the file, the scan ends, and what it accepted is what the journal would have written.
func FuzzScan(f *testing.F) {
	whole := segment(1, []string{"a"}, []string{"b", "c"}, []string{"d"})
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(bytes.Replace(whole, []byte("\n"), []byte("\x0b"), 3))
	f.Add(append(bytes.Clone(whole), make([]byte, 200)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		scanAll(t, data)
		scanAll(t, rechecked(data))
	})
}

func scanAll(t *testing.T, data []byte) {
	s, err := newScanner(io.NopCloser(bytes.NewReader(data)), segmentName(1), 1)
	if err != nil {
		return
	}
	accepted := appendHeader(nil, header{chain: s.at.chain, first: 1})
	for {
		e, err := s.next()
		if err != nil {
			break
		}
		accepted = appendEntry(accepted, e)
	}
	if !bytes.HasPrefix(data, accepted) {
		t.Errorf("scan of %q accepted %q, which is not how it begins", data, accepted)
	}
	if s.start != int64(len(accepted)) {
		t.Errorf("scan stopped at byte %d, want %d, the end of what it accepted", s.start, len(accepted))
	}
	if later, err := s.laterBatch(); err != nil || !later && s.end != int64(len(data)) {
		t.Errorf("laterBatch = %v, %v at byte %d of %d, want it to look at all of them", later, err, s.end, len(data))
	}
}

// rechecked returns data with the right checksum at the begin of every line that has room for one. Without
// it no change that the fuzzer makes would come past the checksum.
func rechecked(data []byte) []byte {
	var fixed []byte
	for line := range bytes.Lines(data) {
		start := len(fixed)
		fixed = append(fixed, line...)
		if len(line) > chainAt && line[len(line)-1] == '\n' {
			fixed[start+chainAt-1] = ' '
			fixed = finishLine(fixed[:len(fixed)-1], start)
		}
	}
	return fixed
}

func FuzzSegmentName(f *testing.F) {
	f.Add(segmentName(1))
	f.Add("+000000000000001.log")
	f.Fuzz(func(t *testing.T, name string) {
		if first, ok := parseSegmentName(name); ok && segmentName(first) != name {
			t.Errorf("parseSegmentName(%q) = %d, whose name is %q", name, first, segmentName(first))
		}
	})
}

func TestNoBitOfALineCanChange(t *testing.T) {
	lines := [][]byte{
		appendEntry(nil, entry{chain: sha256.Sum256([]byte("x")), batch: 0xabc, seq: 0xabcdef, payload: []byte(`{"n":1}`)}),
		appendHeader(nil, header{chain: sha256.Sum256([]byte("x")), first: 0xabcdef}),
	}
	for _, line := range lines {
		for i := range line {
			for bit := range 8 {
				changed := bytes.Clone(line)
				changed[i] ^= 1 << bit
				if e, err := parseEntry(changed); err == nil {
					t.Errorf("parseEntry(%q) = %+v, want an error", changed, e)
				}
				if h, err := parseHeader(changed); err == nil {
					t.Errorf("parseHeader(%q) = %+v, want an error", changed, h)
				}
			}
		}
	}
}

// segment returns the file of a first segment with the given batches, each a list of payloads.
func segment(first uint64, batches ...[]string) []byte {
	data, _ := continued(header{first: first}, batches...)
	return data
}

// continued returns the file of a segment, and the header of the segment after it.
func continued(h header, batches ...[]string) ([]byte, header) {
	data := appendHeader(nil, h)
	at := position{seq: h.first - 1, chain: h.chain}
	for _, batch := range batches {
		first := at.seq + 1
		for _, payload := range batch {
			at.seq++
			at.chain = link(sha256.New(), at.chain, at.seq, []byte(payload))
			data = appendEntry(data, entry{chain: at.chain, batch: first, seq: at.seq, payload: []byte(payload)})
		}
	}
	return data, header{chain: at.chain, first: at.seq + 1}
}

func payloads(first, last int) (list []string) {
	for i := first; i <= last; i++ {
		list = append(list, fmt.Sprintf(`{"n":%d}`, i))
	}
	return list
}
