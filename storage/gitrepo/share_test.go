package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// Who comes late to an answer of which only a part could be written down gets nothing of it.
func TestPartOfAnAnswer(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		err  error
		sent int64
	}{{fmt.Errorf("%w: %w", errSpool, broken), 0}, {broken, 4}} {
		as, err := newAnswers(Config{RunDir: t.TempDir(), MaxAnswerBytes: 100, MaxAnswerFileBytes: 100})
		if err != nil {
			t.Fatal(err)
		}
		a, f, err := as.join(durable.FS{}, answerKey{}, answerJob{
			begin: func() (context.Context, func(), error) { return t.Context(), func() {}, nil },
			fill: func(_ context.Context, w io.Writer) error {
				if _, err := io.WriteString(w, "part"); err != nil {
					return err
				}
				return test.err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.wait(t.Context(), func() bool { return a.ended }); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if sent, err := a.sendTo(t.Context(), &out, f); sent != test.sent || int64(out.Len()) != sent || !errors.Is(err, broken) {
			t.Errorf("sendTo of a part that failed with %v = %d, %v, want %d bytes and the failure", test.err, sent, err, test.sent)
		}
		as.leave(a, f)
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(as.dir); len(left) > 0 || err != nil {
			t.Errorf("left of an answer that failed: %v, %v", left, err)
		}
	}
}

// A long answer is on the disk only from where its readers are on, and nobody joins it late.
func TestLongAnswerIsLetGoOf(t *testing.T) {
	const mostOne, total = 1 << 20, 40 << 20
	as, err := newAnswers(Config{RunDir: t.TempDir(), MaxAnswerBytes: mostOne, MaxAnswerFileBytes: mostOne})
	if err != nil {
		t.Fatal(err)
	}
	job := answerJob{
		begin: func() (context.Context, func(), error) { return t.Context(), func() {}, nil },
		fill: func(_ context.Context, w io.Writer) error {
			for i := range total >> 16 {
				if _, err := w.Write(bytes.Repeat([]byte{byte(i)}, 1<<16)); err != nil {
					return err
				}
			}
			return nil
		},
		valid: func(context.Context) bool { return true },
	}
	a, f, err := as.join(durable.FS{}, answerKey{}, job)
	if err != nil {
		t.Fatal(err)
	}
	var most, got int64
	sent, err := a.sendTo(t.Context(), writerFunc(func(p []byte) (int, error) {
		if want := byte(got >> 16); p[0] != want {
			t.Fatalf("byte %d is %d, want %d", got, p[0], want)
		}
		got += int64(len(p))
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, info.Sys().(*syscall.Stat_t).Blocks*512)
		if got == total/2 {
			if again, f, err := as.join(durable.FS{}, answerKey{}, job); err != nil || again == a {
				t.Errorf("who comes late joins an answer whose beginning is gone: %v", err)
			} else {
				as.leave(again, f)
			}
		}
		return len(p), nil
	}), f)
	as.leave(a, f)
	if sent != total || err != nil {
		t.Errorf("sendTo = %d, %v, want %d bytes", sent, err, total)
	}
	if most > 4*mostOne {
		t.Errorf("an answer of %d bytes took %d on the disk, want about %d", total, most, 2*mostOne)
	}
}

func TestParseShareable(t *testing.T) {
	id := strings.Repeat("a", 40)
	v2 := func(args ...string) string {
		b := append(packets("command=fetch", "agent=x"), "0001"...)
		return string(append(append(b, packets(args...)...), flushPacket...))
	}
	v0 := func(lines ...string) string {
		return string(append(packets(lines...), packets("", "done\n")...))
	}
	tests := []struct {
		name    string
		version int
		in      string
		want    int
		all     bool
	}{
		{"a clone", 2, v2("thin-pack", "no-progress", "include-tag", "ofs-delta", "want "+id+"\n", "want "+id+"\n", "done\n"), 2, true},
		{"a clone by a client without offsets", 2, v2("want "+id, "done"), 1, false},
		{"a shallow clone with offsets", 2, v2("ofs-delta", "deepen 1", "want "+id, "done"), 1, false},
		{"a partial clone with offsets", 2, v2("ofs-delta", "filter tree:0", "want "+id, "done"), 1, false},
		{"a clone by v0", 0, v0("want " + id + " ofs-delta side-band-64k no-progress\n"), 1, true},
		{"v0 with short bands", 0, v0("want " + id + " ofs-delta side-band\n"), 1, false},
		{"v0 with a depth and offsets", 0, v0("want "+id+" ofs-delta side-band-64k\n", "deepen 1"), 1, false},
		{"a shallow clone", 2, v2("deepen 1", "want "+id, "done"), 1, false},
		{"a partial clone", 2, v2("filter blob:none", "want "+id, "done"), 1, false},
		{"nothing wanted", 2, v2("done"), 0, false},
		{"an object the client has", 2, v2("want "+id, "have "+id, "done"), 0, false},
		{"a shallow client", 2, v2("want "+id, "shallow "+id, "done"), 0, false},
		{"a ref by name", 2, v2("want-ref refs/heads/main", "done"), 0, false},
		{"no end", 2, v2("want " + id), 0, false},
		{"something behind the end", 2, v2("want "+id, "done", "have "+id), 0, false},
		{"another command", 2, strings.Replace(v2("want "+id, "done"), "0011command=fetch", "0013command=ls-refs", 1), 0, false},
		{"a short name", 2, v2("want "+id[1:], "done"), 0, false},
		{"v0", 0, v0("want "+id+" multi_ack_detailed side-band-64k agent=x\n", "want "+id+"\n"), 2, false},
		{"v0 with a depth", 0, v0("want "+id+" x\n", "deepen 1\n"), 1, false},
		{"v1", 1, v0("want " + id + "\n"), 1, false},
		{"v0 with an object the client has", 0, string(append(packets("want "+id+" x\n", ""), packets("have "+id+"\n", "done\n")...)), 0, false},
		{"v0 with a shallow client", 0, v0("want "+id+" x\n", "shallow "+id), 0, false},
		{"v0 with no end", 0, string(packets("want "+id+" x\n", "")), 0, false},
		{"v2 by v0", 0, v2("want "+id, "done"), 0, false},
		{"v0 by v2", 2, v0("want " + id + "\n"), 0, false},
	}
	for _, test := range tests {
		got, ok := parseShareable([]byte(test.in), test.version)
		if ok != (test.want > 0) || len(got.wants) != test.want && ok {
			t.Errorf("parseShareable of %s = %v, %v, want %d objects", test.name, got, ok, test.want)
		}
		if got.all != test.all {
			t.Errorf("parseShareable of %s: all = %v, want %v", test.name, got.all, test.all)
		}
	}
}

// A request that is shared wants something, and nothing in it tells what its client has.
func FuzzShareable(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add(append(append(packets("command=fetch"), "0001"...), packets("want "+id, "done", "")...), 2)
	f.Add(packets("want "+id+" side-band-64k\n", "deepen 1", "", "done\n")[:90], 0)
	f.Add(append(packets("want "+id+" side-band-64k\n", ""), packets("done\n")...), 1)
	f.Fuzz(func(t *testing.T, in []byte, version int) {
		version = max(0, version%3)
		req, ok := parseShareable(in, version)
		if !ok {
			return
		}
		wants := req.wants
		lines, ok := fetchLines(in, version)
		if !ok || len(wants) == 0 {
			t.Errorf("parseShareable(%q) = %v without a fetch", in, wants)
		}
		var wanted []string
		for _, line := range lines {
			if strings.HasPrefix(line, "have ") || strings.HasPrefix(line, "shallow ") {
				t.Errorf("parseShareable(%q) takes %q", in, line)
			}
			if req.all && (strings.HasPrefix(line, "deepen") || strings.HasPrefix(line, "filter")) {
				t.Errorf("parseShareable(%q) takes %q for all", in, line)
			}
			if id, ok := strings.CutPrefix(line, "want "); ok {
				wanted = append(wanted, id[:40])
			}
		}
		var got []string
		for _, id := range wants {
			got = append(got, id.String())
		}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("parseShareable(%q): (-want +got)\n%s", in, diff)
		}
	})
}

func TestChooseRepack(t *testing.T) {
	const mb = 1 << 20
	set := func(packs int, bytes, objects int64) packSet { return packSet{packs, bytes, objects} }
	tests := []struct {
		name           string
		mapped, others packSet
		indexed        bool
		want           repacking
	}{
		{"empty", packSet{}, packSet{}, false, noRepack},
		{"small", packSet{}, set(2, mb-1, 299), false, noRepack},
		{"small, many packs", packSet{}, set(11, 1000, 20), false, joinSome},
		{"many objects", packSet{}, set(1, 1000, 300), false, joinAll},
		{"many bytes", packSet{}, set(1, mb, 3), false, joinAll},
		{"done", set(1, 100*mb, 1000), packSet{}, false, noRepack},
		{"a little more", set(1, 100*mb, 10_000), set(3, 20*mb, 2000), false, noRepack},
		{"a quarter more bytes", set(1, 100*mb, 10_000), set(3, 25*mb, 10), false, joinAll},
		{"a quarter more objects", set(1, 100*mb, 10_000), set(3, mb, 2500), false, joinAll},
		{"a little more in many packs", set(1, 100*mb, 10_000), set(10, 20*mb, 2000), false, joinSome},
		{"too large", packSet{}, set(1, 1001*mb, 1000), false, joinSomeMapped},
		{"too large, done", packSet{}, set(2, 1001*mb, 1000), true, noRepack},
		{"too large, many packs", packSet{}, set(11, 1001*mb, 1000), true, joinSomeMapped},
	}
	for _, test := range tests {
		if got := chooseRepack(test.mapped, test.others, test.indexed, 10, 1000*mb); got != test.want {
			t.Errorf("chooseRepack of %s = %d, want %d", test.name, got, test.want)
		}
	}
}

func TestWithoutPath(t *testing.T) {
	s := &Store{dir: "/srv/data/repos"}
	for in, want := range map[string]string{
		"\x02error: cannot open /srv/data/repos/acme/fraud.git/objects/x\n": "\x02error: cannot open acme/fraud.git/objects/x\n",
		"\x02Resolving deltas\r": "\x02Resolving deltas\r",
	} {
		if got := s.withoutPath(appendPacket(nil, []byte(in))); string(got) != string(appendPacket(nil, []byte(want))) {
			t.Errorf("withoutPath(%q) = %q, want the packet of %q", in, got, want)
		}
	}
}
