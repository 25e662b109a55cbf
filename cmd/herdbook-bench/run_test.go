package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// asProgram is set for a child of the tests that is to be the program: a run starts the floor from its own file.
const asProgram = "HERDBOOK_BENCH_AS_PROGRAM"

func TestMain(m *testing.M) {
	// The race detector waits a second at the end of each program otherwise.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// testKind is a server whose program is the test's own file.
func testKind(t *testing.T, name string) kind {
	t.Helper()
	t.Setenv(asProgram, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	all, err := runCommand{}.kinds(self)
	if err != nil {
		t.Fatal(err)
	}
	return all[slices.IndexFunc(all, func(k kind) bool { return k.name == name })]
}

// herdbook is the server, built once.
var herdbook = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "herdbook-bench-test-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "herdbook")
	if out, err := exec.Command("go", "build", "-o", program, "../herdbook").CombinedOutput(); err != nil {
		return "", &buildError{err, out}
	}
	return program, nil
})

type buildError struct {
	error
	out []byte
}

func (e *buildError) Error() string { return e.error.Error() + ": " + string(e.out) }

// TestRun takes every step with the real servers, at a size at which it costs little.
func TestRun(t *testing.T) {
	program, err := herdbook()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(program)) })
	t.Setenv(asProgram, "1")
	t.Setenv("TMPDIR", t.TempDir())
	dir := t.TempDir()
	out, values := filepath.Join(dir, "benchmarks.md"), filepath.Join(dir, "values.json")
	if err := os.WriteFile(out, []byte("# Kept\n"+beginMark+"\nold\n"+endMark+"\nkept too\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	args := []string{
		"run", "--size", "tiny", "--rounds", "1", "--quiet", "5ms", "--herdbook", program,
		"--servers", "herdbook,floor,git http-backend", "--out", out, "--json", values,
	}
	if code := run(t.Context(), args, &stdout, &stderr); code != 0 {
		t.Fatalf("run exits with %d:\n%s", code, stderr.String())
	}
	text, err := os.ReadFile(values)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	got, tiny := map[string][]string{}, sizes["tiny"]
	for _, s := range r.Figures {
		got[s.Step] = append(got[s.Step], s.Server)
		if len(s.Samples) != 1 {
			t.Errorf("%s at %s has %d samples of 1 round", s.Step, s.Server, len(s.Samples))
			continue
		}
		x := s.Samples[0]
		if x.CPU <= 0 || x.CPU < x.LaterCPU || x.Wall <= 0 || x.PeakBytes < 1<<20 {
			t.Errorf("%s at %s was measured as %+v", s.Step, s.Server, x)
		}
		objects := map[string]int64{
			"lfs-push": tiny.largeBytes, "lfs-push-many": int64(tiny.many) * tiny.manyBytes, "oci-push": tiny.largeBytes,
			"oci-push-many": int64(tiny.layers) * tiny.manyBytes,
		}[s.Step]
		if s.BodyBytes != objects || s.SentBytes < max(objects, 100) {
			t.Errorf("%s at %s sent %d bytes and %d of the objects, want %d", s.Step, s.Server, s.SentBytes, s.BodyBytes, objects)
		}
		if rest := s.SentBytes - objects; s.Step != "git-push" && s.Step != "git-push-one" && rest > 64<<10 {
			t.Errorf("%s at %s sent %d bytes beside the objects", s.Step, s.Server, rest)
		}
	}
	want := map[string][]string{}
	for _, sc := range scenarios {
		for _, st := range sc.steps {
			want[st.name] = map[string][]string{floorName: {judged, floorName}, gitBackend: {judged, gitBackend}, "": {judged}}[st.base]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("measured (-want +got):\n%s", diff)
	}
	// Those beside a registry that is not there have none.
	if beside := 4; len(r.Verdicts) != len(goals)-beside {
		t.Errorf("%d goals of %d have a verdict: %+v", len(r.Verdicts), len(goals), r.Verdicts)
	}
	document, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"# Kept\n", "\nkept too\n", "| LFS push of 20 objects of 64 KiB over 8 connections | herdbook |", "git ls-remote: CPU beside git http-backend"} {
		if !strings.Contains(string(document), part) {
			t.Errorf("the document does not have %q:\n%s", part, document)
		}
	}
	if host, err := os.Hostname(); err == nil && len(host) > 3 && strings.Contains(string(document), host) || strings.Contains(string(document), dir) {
		t.Errorf("the document names the machine or its folders:\n%s", document)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "herdbook-bench-") }) {
		t.Errorf("the run left %v behind, %v", left, err)
	}
}

func TestRunRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"no round":            {"run", "--rounds", "0"},
		"no such work":        {"run", "--only", "lfs-pusch"},
		"no such server":      {"run", "--servers", "nobody"},
		"a rival without one": {"run", "--rival", "zot"},
		"no such size":        {"run", "--size", "huge"},
		"no such herdbook":    {"run", "--size", "small", "--only", "api-model", "--herdbook", "/nonexistent/herdbook"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, io.Discard, &stderr); code == 0 || !strings.Contains(stderr.String(), "herdbook-bench: ") {
			t.Errorf("%s: run exits with %d and says %q", name, code, stderr.String())
		}
	}
	t.Run("a server that ends", func(t *testing.T) {
		c := runCommand{Rival: []string{"gone=echo sorry >&2; exit 3"}}
		all, err := c.kinds("")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if s, err := all[len(all)-1].start(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "sorry") {
			t.Errorf("start = %v, %v, want an error with what it said", s, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("start left %v, %v", left, err)
		}
	})
}

// TestRival runs a floor as a rival that only a command line is known of.
func TestRival(t *testing.T) {
	t.Setenv(asProgram, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	all, err := runCommand{Rival: []string{`mine="` + self + `" floor --listen "$LISTEN" --data "$DATA/$PORT"`}}.kinds("")
	if err != nil {
		t.Fatal(err)
	}
	s, err := all[len(all)-1].start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	c := connect(s, 1)
	defer c.close()
	j := &job{fixture: &fixture{size: sizes["small"], large: assets(1, 1, 1<<20)[0]}, client: c}
	if err := publish(t.Context(), j); err != nil {
		t.Error(err)
	}
}

// TestStopEndsAll looks for what a server started in its session.
func TestStopEndsAll(t *testing.T) {
	k := kind{name: "family", ready: "/", command: func(address, dir string) ([]string, error) {
		self, err := os.Executable()
		return []string{"sh", "-c", `sleep 600 & "$0" floor --listen "$1" --data "$2"`, self, address, dir}, err
	}}
	t.Setenv(asProgram, "1")
	s, err := k.start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pid := s.pid()
	s.stop()
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.session == pid && !p.ended {
			t.Errorf("after stop, process %d of the server's session still runs", p.pid)
		}
	}
}

// TestHTTPBackend pushes and clones a history, through the relay and past it, and finds a clone that lacks commits.
func TestHTTPBackend(t *testing.T) {
	k := testKind(t, gitBackend)
	dir := t.TempDir()
	h, err := makeHistory(t.Context(), filepath.Join(dir, "history.git"), 120) // more than git sends without chunks
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	c := connect(s, 1)
	defer c.close()
	j := &job{fixture: &fixture{size: sizes["small"], history: h}, client: c, dir: dir, counting: true}
	r, err := j.push(t.Context(), "main:main")
	if err != nil {
		t.Fatal(err)
	}
	if pack := int64(120 * 12 << 10); r.sent < pack || r.sent > 3*pack {
		t.Errorf("the push sent %d bytes, want those of a pack, %d or some more", r.sent, pack)
	}
	if err := j.mainIs(t.Context(), "refs/heads/main"); err != nil {
		t.Error(err)
	}
	if err := j.mainIs(t.Context(), "refs/heads/single/1"); err == nil {
		t.Error("main is said to be where it was not pushed to")
	}
	j.counting = false
	if r, err := j.clone(t.Context(), 2); err != nil || r.sent >= 0 {
		t.Errorf("clone sent %d, %v, want a number below 0, which is not counted", r.sent, err)
	}
	if err := checkClones(t.Context(), j); err != nil {
		t.Error(err)
	}
	j.history.commits++
	if err := checkClones(t.Context(), j); err == nil {
		t.Error("clones with a commit less than they should have pass the check")
	}
	if _, err := advertise(t.Context(), j); err != nil {
		t.Error(err)
	}
	at := s.url() + "/" + model + ".git/info/refs?service=git-upload-pack"
	got, _, err := c.read(t.Context(), http.MethodGet, at, nil, map[string]string{"Git-Protocol": "version=2"}, http.StatusOK)
	if err != nil || !bytes.Contains(got, []byte("version 2\n")) || bytes.Contains(got, []byte("refs/heads/main")) {
		t.Errorf("asked for protocol 2, the server answers %q, %v", got, err)
	}
	if _, err := pushSingles(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if _, err := advertise(t.Context(), j); err == nil {
		t.Error("an advertisement with another main passes the check")
	}
}

// TestHistoryIsTheSame makes the history twice: runs on different days push the same bytes.
func TestHistoryIsTheSame(t *testing.T) {
	dir := t.TempDir()
	var tips [2]string
	for i := range tips {
		h, err := makeHistory(t.Context(), filepath.Join(dir, []string{"a.git", "b.git"}[i]), 25)
		if err != nil {
			t.Fatal(err)
		}
		tips[i] = h.tip
		if err := h.check(t.Context(), h.dir); err != nil {
			t.Error(err)
		}
		refs, err := git(t.Context(), h.dir, nil, nil, "for-each-ref", "--format=%(refname)")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(strings.Split(refs, "\n")), 1+topics+singles; got != want {
			t.Errorf("the history has %d refs, want %d:\n%s", got, want, refs)
		}
	}
	if tips[0] != tips[1] {
		t.Errorf("two histories end with %v", tips)
	}
}

func TestBetween(t *testing.T) {
	got, err := between("a\n"+beginMark+"\nold\n"+endMark+"\nb\n", "new\n")
	if want := "a\n" + beginMark + "\nnew\n" + endMark + "\nb\n"; err != nil || got != want {
		t.Errorf("between = %q, %v, want %q", got, err, want)
	}
	if again, err := between(got, "new\n"); err != nil || again != got {
		t.Errorf("between a second time = %q, %v, want %q", again, err, got)
	}
	for _, document := range []string{"", beginMark, endMark, endMark + "\n" + beginMark} {
		if got, err := between(document, "new"); err == nil {
			t.Errorf("between(%q) = %q, want an error", document, got)
		}
	}
}

func TestReportText(t *testing.T) {
	f := figures{measured("a", judged, floorName, 1, 120, 120), measured("a", floorName, floorName, 1, 100, 100), measured("later", judged, "", 1)}
	f[0].What, f[0].SentBytes = "work", -1
	verdicts := judge(f, []goal{{"cheap", []string{"a"}, 1.1, cpuRatio, timesText}, {"small", []string{"a"}, 200 << 20, peakBytes, bytesOf}})
	m := machine{CPUs: 2, Kernel: "6.1", Git: "2.39.5", Go: "1.26"}
	got := report{m, "full", 2, verdicts, f}.text()
	for _, want := range []string{
		"Measured with 2 rounds of size full on 2 CPUs, Linux 6.1, git 2.39.5, Go 1.26.\n",
		"| cheap | 1.10 x | 1.20 x | **missed** |\n", "| small | 200 MiB | 120 MiB | met |\n",
		"| work | herdbook | 120 ms | 1.20 x | 0 | 1 s | 1.00 x | ? | 120 MiB |\n", "|  | floor | 100 ms |  | 0 | 1 s |  | 0 B | 100 MiB |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report does not have %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "later | herdbook") || strings.Contains(report{m, "small", 2, verdicts, f}.text(), "missed") {
		t.Errorf("the report has work that was not measured, or judges a small run:\n%s", got)
	}
}

func TestTokenAddress(t *testing.T) {
	got, err := tokenAddress(`Bearer realm="http://127.0.0.1:1/v2/token",service="127.0.0.1:1"`, "a/b")
	if want := "http://127.0.0.1:1/v2/token?scope=repository%3Aa%2Fb%3Apull%2Cpush&service=127.0.0.1%3A1"; err != nil || got != want {
		t.Errorf("tokenAddress = %q, %v, want %q", got, err, want)
	}
	for _, bad := range []string{"", `Basic realm="x"`, "Bearer", `Bearer realm=""`, `Bearer service="http://x/"`, `Bearer realm="://"`} {
		if got, err := tokenAddress(bad, "a/b"); err == nil {
			t.Errorf("tokenAddress(%q) = %q, want an error", bad, got)
		}
	}
}

func FuzzTokenAddress(f *testing.F) {
	for _, seed := range []string{`Bearer realm="http://h/t",service="s"`, `Bearer realm="http://h/t?a=b#c"`, "Basic", `Bearer realm="`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, challenge string) {
		at, err := tokenAddress(challenge, "a/b")
		if err != nil {
			return
		}
		r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, at, http.NoBody)
		if err != nil || r.URL.Host == "" || r.URL.Query().Get("scope") != "repository:a/b:pull,push" {
			t.Errorf("tokenAddress(%q) = %q, %v, which does not ask a host for a/b", challenge, at, err)
		}
	})
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"run", "--help"}, {"floor", "--help"}, {"http-backend", "--help"}} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), args, &stdout, &stderr); code != 0 || stdout.Len() == 0 || stderr.Len() != 0 {
			t.Errorf("%v exits with %d, prints %d bytes and says %q", args, code, stdout.Len(), stderr.String())
		}
	}
	if code := run(t.Context(), []string{"floor"}, io.Discard, io.Discard); code != 2 {
		t.Errorf("floor without its directory exits with %d, want 2", code)
	}
}
