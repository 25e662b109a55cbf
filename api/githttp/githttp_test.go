package githttp_test

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// git runs the real git, away from the configuration of whoever runs the tests.
func git(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := git(t, dir, args...)
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// start starts a server with a model of three commits; head is the last.
func start(t *testing.T, visibility registry.Visibility) (s *apitest.Server, head string) {
	s = apitest.Start(t)
	s.Model("acme/fraud", visibility)
	work := t.TempDir()
	mustGit(t, work, "init", "-q", "-b", "main")
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(strings.Repeat(name, 5000)), 0o644); err != nil {
			t.Fatal(err)
		}
		mustGit(t, work, "add", ".")
		mustGit(t, work, "commit", "-q", "-m", name)
	}
	mustGit(t, filepath.Join(s.Dir, "repos", "acme", "fraud.git"), "fetch", "-q", work, "main:refs/heads/main", "main:refs/tags/v1.0.0")
	return s, mustGit(t, work, "rev-parse", "HEAD")
}

func TestClone(t *testing.T) {
	s, head := start(t, registry.Public)
	withToken := strings.Replace(s.URL, "http://", "http://any:"+s.Token+"@", 1)
	for _, test := range []struct {
		name, address string
		args          []string
		commits       string
	}{
		{"whole", s.URL + "/acme/fraud.git", nil, "3"},
		{"without .git", s.URL + "/acme/fraud", nil, "3"},
		{"with a token", withToken + "/acme/fraud.git", nil, "3"},
		{"protocol 0", s.URL + "/acme/fraud.git", []string{"-c", "protocol.version=0"}, "3"},
		{"protocol 1", s.URL + "/acme/fraud.git", []string{"-c", "protocol.version=1"}, "3"},
		{"shallow", s.URL + "/acme/fraud.git", []string{"--depth", "1"}, "1"},
		{"without blobs", s.URL + "/acme/fraud.git", []string{"--filter=blob:none"}, "3"},
	} {
		dir := filepath.Join(t.TempDir(), "clone")
		mustGit(t, t.TempDir(), append(append([]string{"clone", "-q"}, test.args...), test.address, dir)...)
		if got := mustGit(t, dir, "rev-parse", "HEAD"); got != head {
			t.Errorf("%s: HEAD = %s, want %s", test.name, got, head)
		}
		if got := mustGit(t, dir, "rev-list", "--count", "HEAD"); got != test.commits {
			t.Errorf("%s: %s commits, want %s", test.name, got, test.commits)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "c")); err != nil || string(data) != strings.Repeat("c", 5000) {
			t.Errorf("%s: file c has %d bytes (%v), want 5000", test.name, len(data), err)
		}
	}
}

func TestInfoRefs(t *testing.T) {
	s, head := start(t, registry.Public)
	name, value := s.Bearer()
	tests := []struct {
		name, target string
		header       []string
		status       int
		want         string
	}{
		{"fetch", "/acme/fraud.git/info/refs?service=git-upload-pack", nil, 200, head + " refs/heads/main"},
		{"fetch by protocol 2", "/acme/fraud.git/info/refs?service=git-upload-pack", []string{"Git-Protocol", "version=2"}, 200, "version 2"},
		{"a protocol that is none", "/acme/fraud.git/info/refs?service=git-upload-pack", []string{"Git-Protocol", "version=2:x=$(id)"}, 200, head + " refs/heads/main"},
		{"push", "/acme/fraud.git/info/refs?service=git-receive-pack", []string{name, value}, 200, "report-status"},
		{"push to a model that is to be", "/acme/fresh.git/info/refs?service=git-receive-pack", []string{name, value}, 200, "report-status"},
		{"push to a name that cannot be", "/acme/api.git/info/refs?service=git-receive-pack", []string{name, value}, 400, "reserved"},
		{"push by a stranger", "/acme/fraud.git/info/refs?service=git-receive-pack", nil, 401, "token"},
		{"fetch with a wrong token", "/acme/fraud.git/info/refs?service=git-upload-pack", []string{"Authorization", "Bearer hb_wrong"}, 401, "herdbook: the token is wrong"},
		{"fetch from no model", "/acme/none.git/info/refs?service=git-upload-pack", []string{name, value}, 404, "acme/none"},
		{"dumb protocol", "/acme/fraud.git/info/refs", nil, 403, "smart HTTP"},
		{"another service", "/acme/fraud.git/info/refs?service=git-upload-archive", nil, 400, "no service"},
		{"objects of the dumb protocol", "/acme/fraud.git/HEAD", nil, 404, ""},
	}
	for _, test := range tests {
		a := s.Do("GET", test.target, "", test.header...)
		if a.Status != test.status || !strings.Contains(a.Body, test.want) {
			t.Errorf("%s: %d %.300q, want %d with %q", test.name, a.Status, a.Body, test.status, test.want)
		}
		if test.status == 200 {
			service := test.target[strings.LastIndexByte(test.target, '=')+1:]
			if got := a.Header.Get("Content-Type"); got != "application/x-"+service+"-advertisement" || !strings.HasPrefix(a.Header.Get("Cache-Control"), "no-cache") {
				t.Errorf("%s: %s with Cache-Control %q", test.name, got, a.Header.Get("Cache-Control"))
			}
		} else if got := a.Header.Get("Content-Type"); test.status != 404 && !strings.HasPrefix(got, "text/plain") {
			t.Errorf("%s: an error of type %s, want plain text, which Git shows", test.name, got)
		}
		if got := a.Header.Get("WWW-Authenticate") != ""; got != (test.status == 401) {
			t.Errorf("%s: WWW-Authenticate is there: %v", test.name, got)
		}
	}
}

func pack(t *testing.T, content []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBodies(t *testing.T) {
	s, head := start(t, registry.Public)
	name, value := s.Bearer()
	const listRefs = "0014command=ls-refs\n0016object-format=sha1" + "0001" + "0000"
	fetch := []string{"Content-Type", "application/x-git-upload-pack-request", "Git-Protocol", "version=2"}
	push := []string{"Content-Type", "application/x-git-receive-pack-request", name, value}
	tests := []struct {
		name, target, body string
		header             []string
		status             int
		want               string
	}{
		{"plain", "/acme/fraud.git/git-upload-pack", listRefs, fetch, 200, head},
		{"packed", "/acme/fraud.git/git-upload-pack", pack(t, []byte(listRefs)), append(fetch, "Content-Encoding", "gzip"), 200, head},
		{"packed, by an old name", "/acme/fraud.git/git-upload-pack", pack(t, []byte(listRefs)), append(fetch, "Content-Encoding", "x-gzip"), 200, head},
		{"said to be packed", "/acme/fraud.git/git-upload-pack", listRefs, append(fetch, "Content-Encoding", "gzip"), 400, "not gzip"},
		{"packed in another way", "/acme/fraud.git/git-upload-pack", listRefs, append(fetch, "Content-Encoding", "br"), 415, "gzip"},
		{"another type", "/acme/fraud.git/git-upload-pack", listRefs, []string{"Content-Type", "text/plain"}, 415, "application/x-git-upload-pack-request"},
		{"the type of a push", "/acme/fraud.git/git-upload-pack", listRefs, push, 415, "application/x-git-upload-pack-request"},
		{"push", "/acme/fraud.git/git-receive-pack", "0000", push, 200, ""},
		{"push of the type of a fetch", "/acme/fraud.git/git-receive-pack", "0000", append(fetch, name, value), 415, "application/x-git-receive-pack-request"},
		{"push by a stranger", "/acme/fraud.git/git-receive-pack", "0000", push[:2], 401, "token"},
		{"push of nothing to a name without a model", "/acme/fresh.git/git-receive-pack", "0000", push, 200, ""},
	}
	for _, test := range tests {
		a := s.Do("POST", test.target, test.body, test.header...)
		if a.Status != test.status || !strings.Contains(a.Body, test.want) {
			t.Errorf("%s: %d %.300q, want %d with %q", test.name, a.Status, a.Body, test.status, test.want)
		}
	}
	if a := s.As("GET", "/api/v1/models/acme/fresh", ""); a.Status != 404 {
		t.Errorf("the model after a push of nothing = %d, want 404", a.Status)
	}
}

// TestBomb: a body that grows without end when it is unpacked is cut off, so that a request which
// would be answered if it were read to its end is not.
func TestBomb(t *testing.T) {
	s, head := start(t, registry.Public)
	fetch := func(wants int) apitest.Answer {
		t.Helper()
		// Members of a gzip file follow each other. A thousand wants are 50 kB.
		body := pack(t, []byte("0011command=fetch0001")) + strings.Repeat(pack(t, []byte(strings.Repeat("0032want "+head+"\n", 1000))), wants/1000) + pack(t, []byte("0009done\n0000"))
		return s.Do("POST", "/acme/fraud.git/git-upload-pack", body, "Content-Type", "application/x-git-upload-pack-request", "Git-Protocol", "version=2", "Content-Encoding", "gzip")
	}
	if a := fetch(1000); a.Status != 200 || !strings.Contains(a.Body, "packfile") {
		t.Fatalf("a thousand wants = %d %.200q, want a pack", a.Status, a.Body)
	}
	if a := fetch(1_400_000); strings.Contains(a.Body, "packfile") {
		t.Errorf("70 MB of wants = %d, want no answer to them", a.Status)
	}
	// What follows the packed part is not read by anybody, and does no harm.
	rest := pack(t, []byte("0014command=ls-refs\n0016object-format=sha100010000")) + strings.Repeat("garbage", 1000)
	s.Do("POST", "/acme/fraud.git/git-upload-pack", rest, "Content-Type", "application/x-git-upload-pack-request", "Git-Protocol", "version=2", "Content-Encoding", "gzip")
	if a := s.Do("GET", "/healthz", ""); a.Status != http.StatusOK {
		t.Errorf("GET /healthz afterwards = %d", a.Status)
	}
	if log := s.Log.String(); strings.Contains(log, "panic") {
		t.Errorf("a request made the server panic:\n%s", log)
	}
}

func TestPrivateModel(t *testing.T) {
	s, _ := start(t, registry.Private)
	for _, name := range []string{"fraud", "none"} {
		out, err := git(t, t.TempDir(), "clone", s.URL+"/acme/"+name+".git")
		if err == nil || !strings.Contains(out, "could not read Username") {
			t.Errorf("git clone of %s as a stranger = %v %s, want to be asked for credentials", name, err, out)
		}
	}
	wrong := strings.Replace(s.URL, "http://", "http://any:hb_wrong@", 1)
	if out, err := git(t, t.TempDir(), "clone", wrong+"/acme/fraud.git"); err == nil || !strings.Contains(out, "Authentication failed") {
		t.Errorf("git clone with a wrong token = %v %s, want it to fail", err, out)
	}
	if strings.Contains(s.Log.String(), "hb_wrong") {
		t.Errorf("the log holds what was sent as a token:\n%s", s.Log)
	}
}
