package gitrepo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

func packets(payloads ...string) []byte {
	var b []byte
	for _, p := range payloads {
		if p == "" {
			b = append(b, flushPacket...)
		} else {
			b = appendPacket(b, []byte(p))
		}
	}
	return b
}

// split feeds what git wrote to a pushAnswer and returns what went through at once.
func split(in []byte) (a pushAnswer, now []byte, err error) {
	buf := make([]byte, maxPacket)
	r := bytes.NewReader(in)
	for {
		p, err := readPacket(r, buf)
		if err == io.EOF {
			return a, now, nil
		}
		if err != nil {
			return a, now, err
		}
		sent, err := a.take(p)
		if err != nil {
			return a, now, err
		}
		now = append(now, sent...)
	}
}

func TestPushAnswer(t *testing.T) {
	report := packets("unpack ok\n", "ok refs/heads/a\n", "")
	half := len(report) / 2
	tests := []struct {
		name        string
		in          []byte
		now, report string
		bands       bool
	}{
		{"nothing", nil, "", "", false},
		{"only a flush", packets(""), "", "", false},
		{"without bands", report, "", string(report), false},
		{"bands", packets("\x02hello\n", "\x01"+string(report), ""), string(packets("\x02hello\n")), string(report), true},
		{"report in parts", packets("\x01"+string(report[:half]), "\x02late\n", "\x01"+string(report[half:]), ""), string(packets("\x02late\n")), string(report), true},
		{"git's keep-alive", packets("\x01", "\x01"+string(report), ""), string(packets("\x01")), string(report), true},
		{"a fatal error", packets("\x03fatal: x\n"), "", "", true},
	}
	for _, test := range tests {
		a, now, err := split(test.in)
		if err != nil || string(now) != test.now || string(a.report) != test.report || a.bands != test.bands {
			t.Errorf("%s: now %q, report %q, bands %v, %v; want %q, %q, %v", test.name, now, a.report, a.bands, err, test.now, test.report, test.bands)
		}
		if got, want := len(now)+len(a.held), len(test.in); got != want {
			t.Errorf("%s: %d bytes sent or held, want %d", test.name, got, want)
		}
	}
	for _, bad := range []string{"0004", "0001", "0003", "fff1", "00", "00zz", "+005\x02x", "0009\x02x", "0006\x09x"} {
		if _, _, err := split(append(packets("\x02x"), bad...)); err == nil {
			t.Errorf("%q after a packet = nil, want an error", bad)
		}
	}
}

func TestParseReport(t *testing.T) {
	in := packets("unpack ok\n", "ok refs/heads/a\n", "option refname refs/heads/b\n", "ng refs/heads/c pre-receive hook declined\n", "ng refs/heads/d\n", "ok refs/heads/ü\n", "")
	got, err := parseReport(in)
	want := pushReport{"ok", []refResult{{"refs/heads/a", ""}, {"refs/heads/c", "pre-receive hook declined"}, {"refs/heads/d", "refused"}, {"refs/heads/ü", ""}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(pushReport{}, refResult{})); err != nil || diff != "" {
		t.Errorf("parseReport = %v: (-want +got)\n%s", err, diff)
	}
	updates := []registry.RefUpdate{{Ref: "refs/heads/a"}, {Ref: "refs/heads/c"}, {Ref: "refs/heads/x"}, {Ref: "refs/heads/ü"}}
	if moved := got.moved(updates); !slices.Equal(moved, []registry.RefUpdate{updates[0], updates[3]}) {
		t.Errorf("moved = %v", moved)
	}
	for _, bad := range [][]byte{nil, packets(""), packets("unpack ok\n"), packets("ok x\n", ""), packets("unpack ok\n", "what\n", ""), packets("unpack ok\n", "option x\n", ""), []byte("00")} {
		if _, err := parseReport(bad); !errors.Is(err, errReport) {
			t.Errorf("parseReport(%q) = %v, want errReport", bad, err)
		}
	}
}

func TestParseUpdates(t *testing.T) {
	id := strings.Repeat("a", 40)
	good := id + " " + zeroID + " refs/heads/x\n" + zeroID + " " + id + " refs/tags/ü\n"
	got, err := parseUpdates([]byte(good), 2)
	want := []registry.RefUpdate{{Ref: "refs/heads/x", Old: registry.ObjectID(id)}, {Ref: "refs/tags/ü", New: registry.ObjectID(id)}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("parseUpdates = %v: (-want +got)\n%s", err, diff)
	}
	var refusal *Refusal
	if _, err := parseUpdates([]byte(good), 1); !errors.As(err, &refusal) {
		t.Errorf("parseUpdates beyond the limit = %v, want a Refusal", err)
	}
	if _, err := parseUpdates([]byte(id+" "+id+" refs/heads/../x\n"), 1); !errors.As(err, &refusal) {
		t.Errorf("parseUpdates of a hostile name = %v, want a Refusal", err)
	}
	for _, bad := range []string{"x", id + " " + id, id + " " + id + "0 refs/heads/x\n", id + "  refs/heads/x\n"} {
		if _, err := parseUpdates([]byte(bad), 9); err == nil || errors.As(err, &refusal) {
			t.Errorf("parseUpdates(%q) = %v, want an internal error", bad, err)
		}
	}
}

func TestReadObjectInfo(t *testing.T) {
	id := strings.Repeat("a", 40)
	for in, want := range map[string]objectInfo{
		id + " blob 12\n":                    {registry.ObjectID(id), "blob", 12},
		id + " missing\n":                    {},
		id + ":path with blob 1 missing\n":   {},
		"abc ambiguous\n":                    {},
		id + " commit 9223372036854775807\n": {registry.ObjectID(id), "commit", 1<<63 - 1},
	} {
		if got, err := readObjectInfo(bufio.NewReader(strings.NewReader(in))); err != nil || got != want {
			t.Errorf("readObjectInfo(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", id, id + "\n", id + " blob\n", id + " blob -1\n", id + " blob 9223372036854775808\n", "abc blob 1\n", id + "  1\n"} {
		if got, err := readObjectInfo(bufio.NewReader(strings.NewReader(bad))); err == nil {
			t.Errorf("readObjectInfo(%q) = %v, want an error", bad, got)
		}
	}
}

func FuzzPushAnswer(f *testing.F) {
	f.Add(packets("\x02hello\n", "\x01"+string(packets("unpack ok\n", "ok refs/heads/a\n", "")), ""))
	f.Add(packets("unpack ok\n", "ng refs/heads/a no\n", ""))
	f.Add(packets("\x01", "\x03x", ""))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, now, err := split(in)
		if err == nil && len(now)+len(a.held) != len(in) {
			t.Errorf("of %q were sent %q and held %q", in, now, a.held)
		}
		if a.bands {
			for r := bytes.NewReader(now); r.Len() > 0; {
				p, err := readPacket(r, make([]byte, maxPacket))
				if err != nil || p.flush() || p.payload()[0] != bandProgress && len(p.payload()) > 1 {
					t.Fatalf("%q went through, %v", p, err)
				}
			}
		} else if len(now) > 0 {
			t.Errorf("without bands, %q went through", now)
		}
	})
}

func FuzzParseReport(f *testing.F) {
	f.Add(packets("unpack ok\n", "ok refs/heads/a\n", "option forced-update\n", "ng refs/heads/b no\n", ""))
	f.Add(packets("unpack bad\n", ""))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := parseReport(in)
		if err != nil {
			return
		}
		// What a client without bands reads in its place is a report as well, of nothing that moved.
		failed, err := parseReport(r.failedReport("why"))
		if err != nil || failed.unpack != "why" || len(failed.refs) != len(r.refs) {
			t.Fatalf("failedReport of %v = %v, %v", r, failed, err)
		}
		for _, ref := range failed.refs {
			if ref.refused == "" {
				t.Errorf("failedReport says that %q moved", ref.ref)
			}
		}
	})
}

func FuzzObjectInfo(f *testing.F) {
	f.Add([]byte(strings.Repeat("a", 40) + " blob 3\nabc\nx missing\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		for {
			info, err := readObjectInfo(r)
			if err != nil {
				return
			}
			if (info.kind == "") != (info.id == "") || info.size < 0 {
				t.Fatalf("readObjectInfo of %q = %v", in, info)
			}
		}
	})
}

func FuzzParseUpdates(f *testing.F) {
	f.Add([]byte(zeroID + " " + strings.Repeat("a", 40) + " refs/heads/x\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		updates, err := parseUpdates(in, 10)
		if err != nil {
			return
		}
		for _, u := range updates {
			if !registry.ValidRefName(u.Ref) {
				t.Errorf("parseUpdates(%q) took the ref %q", in, u.Ref)
			}
		}
	})
}

func FuzzParseRefs(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add([]byte(fmt.Sprintf("%s refs/heads/x\n%s refs/tags/y\n%s refs/tags/y^{}\n", id, id, id)))
	f.Fuzz(func(t *testing.T, in []byte) {
		refs, err := parseRefs(in)
		for _, r := range refs {
			if err == nil && (r.Name == "" || len(r.ID) != 40 || len(r.Peeled) != 40) {
				t.Errorf("parseRefs(%q) = %v", in, refs)
			}
		}
	})
}

func FuzzParseTreeEntry(f *testing.F) {
	f.Add("100644 blob " + strings.Repeat("a", 40) + "      12\tpath\x00")
	f.Add("160000 commit " + strings.Repeat("a", 40) + "       -\tpath\x00")
	f.Fuzz(func(t *testing.T, in string) {
		e, dir, err := parseTreeEntry(in, nil)
		if err == nil && (len(e.ID) != 40 || !dir && e.Mode == "") {
			t.Errorf("parseTreeEntry(%q) = %v", in, e)
		}
	})
}

// A request that is taken says the same when it is written anew.
func FuzzLsRefs(f *testing.F) {
	f.Add([]byte("0014command=ls-refs\n0014agent=git/2.39.50016object-format=sha10001000bsymrefs000apeel\n001bref-prefix refs/heads/\n0000"))
	f.Add([]byte("0013command=ls-refs0000"))
	f.Add([]byte("0013command=ls-refs00010009peel\x000000"))
	f.Add([]byte("0013command=ls-refs0001000aunborn0010ref-prefix \n0000"))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, ok := parseLsRefs(in)
		if !ok {
			return
		}
		out := append(packets("command=ls-refs"), "0001"...)
		for arg, given := range map[string]bool{"peel": req.peel, "symrefs": req.symrefs, "unborn": req.unborn} {
			if given {
				out = append(out, packets(arg)...)
			}
		}
		for _, prefix := range req.prefixes {
			if strings.Contains(prefix, "\x00") {
				t.Errorf("parseLsRefs(%q) took the prefix %q", in, prefix)
			}
			out = append(out, packets("ref-prefix "+prefix+"\n")...)
		}
		again, ok := parseLsRefs(append(out, flushPacket...))
		if diff := cmp.Diff(req, again, cmp.AllowUnexported(lsRefs{})); !ok || diff != "" {
			t.Errorf("parseLsRefs(%q), written anew: %v, (-want +got)\n%s", in, ok, diff)
		}
	})
}

func TestParsePackedRefs(t *testing.T) {
	id, tag := strings.Repeat("a", 40), strings.Repeat("b", 40)
	for name, in := range map[string]string{
		"no line feed at the end":   id + " refs/heads/x",
		"a header in the middle":    id + " refs/heads/x\n# pack-refs with: peeled\n",
		"no name":                   id + "\n",
		"an empty name":             id + " \n",
		"an empty line":             "\n",
		"a name outside refs":       id + " HEAD\n",
		"a name that leads out":     id + " refs/../x\n",
		"a space in a name":         id + " refs/heads/x y\n",
		"capital letters":           strings.ToUpper(id) + " refs/heads/x\n",
		"a short id":                id[1:] + " refs/heads/x\n",
		"no object":                 zeroID + " refs/heads/x\n",
		"a ref twice":               id + " refs/heads/x\n" + id + " refs/heads/x\n",
		"the end of a tag first":    "^" + id + "\n",
		"a tag that leads to two":   tag + " refs/tags/x\n^" + id + "\n^" + id + "\n",
		"a tag that leads nowhere":  tag + " refs/tags/x\n^\n",
		"another header":            "# packed by hand\n",
		"a return before line feed": id + " refs/heads/x\r\n",
	} {
		full := "# pack-refs with: peeled fully-peeled sorted \n" + in
		if strings.HasPrefix(in, "# packed") {
			full = in
		}
		if refs, err := parsePackedRefs(full); !errors.Is(err, errUnusual) {
			t.Errorf("parsePackedRefs with %s = %v, %v, want errUnusual", name, refs, err)
		}
	}
	for header, peeled := range map[string]bool{"# pack-refs with: peeled fully-peeled sorted \n": true, "# pack-refs with: peeled \n": false, "": false} {
		refs, err := parsePackedRefs(header + tag + " refs/tags/x\n^" + id + "\n" + id + " refs/heads/y\n")
		if err != nil || len(refs) != 2 || refs[0].name != "refs/heads/y" || refs[1].id.String() != tag || (refs[1].peeled != oid{}) != peeled {
			t.Errorf("parsePackedRefs with the header %q = %v, %v", header, refs, err)
		}
	}
}

func FuzzPackedRefs(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add("# pack-refs with: peeled fully-peeled sorted \n" + id + " refs/heads/x\n" + id + " refs/tags/y\n^" + id + "\n")
	f.Add(id + " refs/tags/y\n" + id + " refs/heads/x\n")
	f.Fuzz(func(t *testing.T, in string) {
		refs, err := parsePackedRefs(in)
		if err != nil {
			return
		}
		text := "# pack-refs with: peeled fully-peeled sorted \n"
		for i, ref := range refs {
			if !wellFormedRef(ref.name) || i > 0 && refs[i-1].name >= ref.name || ref.id == (oid{}) {
				t.Errorf("parsePackedRefs(%q) has %v at %d", in, ref, i)
			}
			text += ref.id.String() + " " + ref.name + "\n"
			if ref.peeled != (oid{}) {
				text += "^" + ref.peeled.String() + "\n"
			}
		}
		again, err := parsePackedRefs(text)
		if err != nil || !slices.Equal(refs, again) {
			t.Errorf("parsePackedRefs(%q) = %v, written anew %v, %v", in, refs, again, err)
		}
	})
}

func FuzzLooseRef(f *testing.F) {
	f.Add([]byte(strings.Repeat("a", 40) + "\n"))
	f.Add([]byte("ref: refs/heads/main\n"))
	f.Add([]byte("ref: ../../etc/passwd\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		id, symref, err := parseLooseRef(in)
		if err != nil {
			return
		}
		out := id.String() + "\n"
		if symref != "" {
			out = "ref: " + symref + "\n"
		}
		if out != string(in) || symref != "" && !wellFormedRef(symref) {
			t.Errorf("parseLooseRef(%q) = %v, %q", in, id, symref)
		}
	})
}

func TestWellFormedRef(t *testing.T) {
	for _, name := range []string{
		"refs/heads/x", "refs/x", "refs/heads/a.b", "refs/heads/\xff", "refs/heads/ü", "refs/heads/@", "refs/heads/-x", "refs/heads/x.locked", "refs/heads/a{b}",
	} {
		if !wellFormedRef(name) {
			t.Errorf("wellFormedRef(%q) = false, want true", name)
		}
	}
	for _, name := range []string{
		"", "refs", "refs/", "HEAD", "heads/x", "/refs/x", "refs/heads/", "refs//x", "refs/heads/.x", "refs/heads/x.lock", "refs/a.lock/x", "refs/heads/..", "refs/heads/a..b",
		"refs/heads/x.", "refs/heads/a@{b", "refs/heads/a b", "refs/heads/a~", "refs/heads/a^", "refs/heads/a:b", "refs/heads/a?", "refs/heads/a*", "refs/heads/[a", "refs/heads/a\\b",
		"refs/heads/a\x7f", "refs/heads/a\nb", "refs/heads/a\x00",
	} {
		if wellFormedRef(name) {
			t.Errorf("wellFormedRef(%q) = true, want false", name)
		}
	}
}

func TestParseCapabilities(t *testing.T) {
	advert := func(line string) []byte { return packets(zeroID+" HEAD\x00"+line+"\n", "") }
	if got, err := parseCapabilities(advert("a symref=HEAD:refs/heads/x b=c"), "refs/heads/x"); err != nil || got.before+"Y"+got.behind != "a symref=HEAD:Y b=c" {
		t.Errorf("parseCapabilities = %q, %v", got, err)
	}
	if got, err := parseCapabilities(advert("a b=c"), ""); err != nil || got.before+got.behind != "a b=c" {
		t.Errorf("parseCapabilities without a branch = %q, %v", got, err)
	}
	for in, symref := range map[string]string{"a b=c": "refs/heads/x", "a symref=HEAD:refs/heads/y b": "refs/heads/x", "a symref=HEAD:refs/heads/x b": ""} {
		if got, err := parseCapabilities(advert(in), symref); !errors.Is(err, errUnusual) {
			t.Errorf("parseCapabilities(%q) with the branch %q = %q, %v, want errUnusual", in, symref, got, err)
		}
	}
}
