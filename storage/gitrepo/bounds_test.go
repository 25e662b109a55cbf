package gitrepo_test

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/herdbook/herdbook/storage/gitrepo"
)

// packWith is a pack of entries, each a header and zlib data.
func packWith(entries ...[]byte) []byte {
	pack := binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), uint32(len(entries)))
	pack = append(pack, bytes.Join(entries, nil)...)
	sum := sha1.Sum(pack)
	return append(pack, sum[:]...)
}

var zlibWriters = sync.Pool{New: func() any { return zlib.NewWriter(io.Discard) }}

// entry is an object of a pack. Source: gitformat-pack(5).
func entry(kind byte, size int64, base, data []byte) []byte {
	head := []byte{kind<<4 | byte(size&15)}
	for size >>= 4; size > 0; size >>= 7 {
		head[len(head)-1] |= 0x80
		head = append(head, byte(size&0x7f))
	}
	var packed bytes.Buffer
	z := zlibWriters.Get().(*zlib.Writer)
	defer zlibWriters.Put(z)
	z.Reset(&packed)
	_, _ = z.Write(data)
	_ = z.Close()
	return append(append(head, base...), packed.Bytes()...)
}

func objectID(kind string, data []byte) []byte {
	sum := sha1.Sum(append(fmt.Appendf(nil, "%s %d\x00", kind, len(data)), data...))
	return sum[:]
}

// send sends a push or fetch as it is, and returns all of the answer.
func send(t *testing.T, s *server, service string, body io.Reader) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.url()+"/"+service, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-"+service+"-request")
	r.Header.Set("Git-Protocol", "version=2")
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(text)
}

// Few bytes of a pack do not become gigabytes of memory.
func TestPushOfABomb(t *testing.T) {
	commit := []byte("tree " + hex.EncodeToString(objectID("tree", nil)) + "\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nx\n")
	small := [][]byte{entry(1, int64(len(commit)), nil, commit), entry(2, 0, nil, nil)}
	base := make([]byte, 8<<20)
	// Of 8 MiB a delta makes 1 GiB: its sizes, and 128 times "copy 8 MiB from the beginning".
	delta := append(binary.AppendUvarint(binary.AppendUvarint(nil, 8<<20), 1<<30), bytes.Repeat([]byte{0xc0, 0x80}, 128)...)
	for name, bomb := range map[string][][]byte{
		"delta":  {entry(3, int64(len(base)), nil, base), entry(7, int64(len(delta)), objectID("blob", base), delta)},
		"commit": {entry(1, 1<<30, nil, make([]byte, 1<<10))},
		"tree":   {entry(2, 1<<30, nil, make([]byte, 1<<10))},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			head := pkt(zero+" "+hex.EncodeToString(objectID("commit", commit))+" refs/heads/main\x00report-status side-band-64k") + "0000"
			_, answer := send(t, s, "git-receive-pack", io.MultiReader(strings.NewReader(head), bytes.NewReader(packWith(append(small, bomb...)...))))
			contains(t, "answer to a push of a bomb", answer, "over limit", "ng refs/heads/main")
		})
	}
}

func TestPushHead(t *testing.T) {
	command := func(ref, capabilities string) string {
		return pkt(zero + " " + strings.Repeat("1", 40) + " " + ref + capabilities)
	}
	options := "\x00report-status push-options"
	for _, test := range []struct{ name, body, want string }{
		{"too many refs", strings.Repeat(command("refs/heads/"+strings.Repeat("a", 60_000), "\x00report-status"), 300) + "0000", "too large"},
		{"too long options", command("refs/heads/main", options) + "0000" + strings.Repeat(pkt(strings.Repeat("o", 60_000)), 300) + "0000", "too large"},
		{"two lines for the hook", command("refs/heads/a\n"+zero+" "+zero+" refs/tags/v1.0.0", "\x00report-status") + "0000", "one line"},
		{"signed", pkt("push-cert\x00report-status") + pkt("certificate version 0.1\n") + pkt("push-cert-end\n") + "0000", "no signed pushes"},
		{"signed, on a line without a NUL", pkt("push-cert\n") + pkt("certificate version 0.1\n") + "0000", "no signed pushes"},
		{"signed, on a later line", pkt("shallow "+strings.Repeat("1", 40)+"\x00x") + pkt("push-cert\x00report-status") + "0000", "no signed pushes"},
		{"options that a later line tells of", command("refs/heads/a", "") + command("refs/heads/main", "\x00push-options=x") + "0000" + pkt("a\nb") + "0000", "one line"},
		{"an end within a packet", "00ffabc", "not a push"},
		{"no packet", "zzzz", "not a push"},
	} {
		s := newServer(t)
		status, answer := send(t, s, "git-receive-pack", strings.NewReader(test.body))
		if status < 400 || !strings.Contains(answer, test.want) {
			t.Errorf("%s: %d %.200q, want an error with %q", test.name, status, answer, test.want)
		}
	}
}

// A client that sends its request byte by byte keeps nobody from fetching.
func TestFetchBesideASlowRequest(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxFetches = 1 })
	w := newClient(t).work(s, 2)
	w.git("push", "-q", "origin", "HEAD:refs/heads/main")
	in, slow := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := http.NewRequestWithContext(t.Context(), "POST", s.url()+"/git-upload-pack", in)
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Content-Type", "application/x-git-upload-pack-request")
		r.Header.Set("Git-Protocol", "version=2")
		if a, err := http.DefaultClient.Do(r); err == nil {
			_ = a.Body.Close()
		}
	}()
	// Longer than what is read before a fetch takes its turn.
	request := pkt("command=fetch") + "0001" + strings.Repeat(pkt("have "+strings.Repeat("1", 40)), 3000)
	if _, err := io.WriteString(slow, request); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	newClient(t).git("clone", "-q", s.url(), "clone")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("a clone beside a request that does not end took %s, want no wait", took)
	}
	_ = slow.Close()
	<-done
}

// Directories that lie very deep within each other are refused before they cost much, and the user reads why.
func TestPushOfDeepTrees(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	var entries [][]byte
	id := objectID("blob", []byte("x"))
	entries = append(entries, entry(3, 1, nil, []byte("x")))
	mode := "100644 f"
	for range 30_000 {
		tree := append([]byte(mode+"\x00"), id...)
		entries = append(entries, entry(2, int64(len(tree)), nil, tree))
		id, mode = objectID("tree", tree), "40000 d"
	}
	commit := []byte("tree " + hex.EncodeToString(id) + "\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nx\n")
	entries = append(entries, entry(1, int64(len(commit)), nil, commit))
	head := pkt(zero+" "+hex.EncodeToString(objectID("commit", commit))+" refs/heads/main\x00report-status side-band-64k") + "0000"
	_, answer := send(t, s, "git-receive-pack", io.MultiReader(strings.NewReader(head), bytes.NewReader(packWith(entries...))))
	contains(t, "answer to a push of deep trees", answer, "has a path of more than 4096 bytes", "ng refs/heads/main")
}
