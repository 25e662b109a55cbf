package gitrepo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

func TestFetch(t *testing.T) {
	for _, version := range []string{"0", "1", "2"} {
		t.Run("protocol v"+version, func(t *testing.T) {
			s := newServer(t)
			c := newClient(t)
			w := c.work(s, 10)
			w.commit("data/weights.txt", strings.Repeat("0.5 ", 1000))
			w.git("tag", "-a", "-m", "one", "v1.0.0")
			w.git("push", "-q", "origin", "main", "v1.0.0")
			head := w.rev("HEAD")
			clone := func(dir string, args ...string) *client {
				t.Helper()
				c.git(append(append([]string{"-c", "protocol.version=" + version, "clone", "-q"}, args...), s.url(), dir)...)
				r := c.in(dir)
				r.git("config", "protocol.version", version)
				if got := r.rev("HEAD"); got != head {
					t.Errorf("clone %v is at %s, want %s", args, got, head)
				}
				return r
			}
			count := func(r *client) string { return r.git("rev-list", "--count", "HEAD") }

			full := clone("full")
			if got := full.rev("v1.0.0^{commit}"); got != head {
				t.Errorf("tag in the clone leads to %s, want %s", got, head)
			}

			shallow := clone("shallow", "--depth=1")
			for _, step := range []struct {
				args []string
				want string
			}{{nil, "1"}, {[]string{"--depth=3"}, "3"}, {[]string{"--deepen=2"}, "5"}, {[]string{"--unshallow"}, "11"}} {
				if step.args != nil {
					shallow.git(append([]string{"fetch", "-q"}, step.args...)...)
				}
				if got := count(shallow); got != step.want {
					t.Errorf("commits after fetch %v = %s, want %s", step.args, got, step.want)
				}
			}

			for _, filter := range []string{"blob:none", "tree:0"} {
				partial := clone(strings.ReplaceAll(filter, ":", "-"), "--filter="+filter, "--no-checkout")
				if missing := partial.git("rev-list", "--objects", "--all", "--missing=print"); !strings.Contains(missing, "?") {
					t.Errorf("a clone with the filter %s has all objects", filter)
				}
				partial.git("checkout", "-q", "HEAD")
				if got, want := partial.rev("HEAD:data/weights.txt"), w.rev("HEAD:data/weights.txt"); got != want {
					t.Errorf("file fetched later = %s, want %s", got, want)
				}
			}

			// More than one round of negotiation.
			for i := range 60 {
				full.git("commit", "-q", "--allow-empty", "-m", fmt.Sprint("local ", i))
			}
			newer := w.commit("README.md", "newer")
			w.git("push", "-q", "origin", "main")
			full.git("fetch", "-q")
			if got := full.rev("origin/main"); got != newer {
				t.Errorf("fetch after the clone = %s, want %s", got, newer)
			}
			if out := full.git("ls-remote", "origin", "refs/tags/*"); !strings.Contains(out, "refs/tags/v1.0.0^{}") {
				t.Errorf("ls-remote lacks the peeled tag:\n%s", out)
			}
		})
	}
}

// What the server records is part of a mirror.
func TestMirrorHasRecords(t *testing.T) {
	s := newServer(t)
	c := newClient(t)
	w := c.work(s, 1)
	w.git("push", "-q", "origin", "main")
	err := s.repo().WriteRecords(t.Context(), []registry.RecordCommit{
		{Ref: registry.VersionsRef, Message: "published", Author: ada},
		{Ref: registry.EvaluationNotesRef, Message: "evaluated", Author: ada, Notes: map[registry.ObjectID][]byte{w.rev("HEAD"): []byte("{}\n")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.git("clone", "-q", "--mirror", s.url(), "mirror")
	out := c.in("mirror").git("for-each-ref", "--format=%(refname)")
	if want := "refs/heads/main\nrefs/herdbook/versions\nrefs/notes/evaluations"; out != want {
		t.Errorf("refs of a mirror = %s, want %s", out, want)
	}
}

func TestEmptyRepository(t *testing.T) {
	s := newServer(t)
	c := newClient(t)
	if _, err := s.store.Create(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	out, err := c.try("clone", s.url(), "empty")
	if err != nil {
		t.Fatalf("clone of an empty repository = %v\n%s", err, out)
	}
	if got := c.in("empty").git("symbolic-ref", "HEAD"); got != "refs/heads/main" {
		t.Errorf("HEAD of the clone = %s, want refs/heads/main", got)
	}
	contains(t, "clone of an absent repository", c.fails("clone", s.URL+"/acme/absent.git"), "not found")
}

func TestAdvertiseRefs(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	head := string(w.rev("HEAD"))
	tests := []struct {
		service  gitrepo.Service
		protocol string
		absent   bool
		prefix   string
		want     []string
		not      string
	}{
		{gitrepo.UploadPackService, "", false, "001e# service=git-upload-pack\n0000", []string{head + " HEAD\x00", "filter", "symref=HEAD:refs/heads/main"}, "version"},
		{gitrepo.UploadPackService, "version=1", false, "001e# service=git-upload-pack\n0000000eversion 1\n", []string{head}, ""},
		{gitrepo.UploadPackService, "version=2", false, "000eversion 2\n", []string{"ls-refs", "shallow", "filter"}, head},
		{gitrepo.UploadPackService, "x=y:version=2", false, "000eversion 2\n", nil, head},
		{gitrepo.UploadPackService, "version=3", false, "001e# service=git-upload-pack\n0000", []string{head}, "version"},
		{gitrepo.UploadPackService, "version=2 --upload-pack=x", false, "001e# service=git-upload-pack\n0000", []string{head}, "version"},
		{gitrepo.ReceivePackService, "version=2", false, "001f# service=git-receive-pack\n0000", []string{
			head + " refs/heads/main\x00", "report-status-v2", "side-band-64k", "atomic", "push-options", "delete-refs",
		}, "version"},
		{gitrepo.ReceivePackService, "", true, "001f# service=git-receive-pack\n0000", []string{zero + " capabilities^{}\x00", "atomic"}, head},
	}
	for _, test := range tests {
		repo := s.repo()
		if test.absent {
			repo = nil
		}
		var out bytes.Buffer
		if err := s.store.AdvertiseRefs(t.Context(), repo, test.service, test.protocol, &out); err != nil {
			t.Errorf("AdvertiseRefs(%s, %q) = %v", test.service, test.protocol, err)
			continue
		}
		text := out.String()
		if !strings.HasPrefix(text, test.prefix) || !strings.HasSuffix(text, "0000") {
			t.Errorf("AdvertiseRefs(%s, %q) = %q, want it to begin with %q and to end with a flush", test.service, test.protocol, text, test.prefix)
		}
		contains(t, fmt.Sprintf("AdvertiseRefs(%s, %q)", test.service, test.protocol), text, test.want...)
		if test.not != "" && strings.Contains(strings.ReplaceAll(text, "deepen", ""), test.not) {
			t.Errorf("AdvertiseRefs(%s, %q) = %q, want no %q", test.service, test.protocol, text, test.not)
		}
	}
	err := s.store.AdvertiseRefs(t.Context(), s.store.Repository(registry.MustModelName("a/b")), gitrepo.UploadPackService, "", io.Discard)
	if !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("AdvertiseRefs of an absent repository = %v, want ErrNotFound", err)
	}
	if _, err := gitrepo.ParseService("git-upload-archive"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("ParseService(git-upload-archive) = %v, want ErrInvalid", err)
	}
}

// fetchRequest is a v2 fetch of everything.
func fetchRequest(want registry.ObjectID) string {
	return pkt("command=fetch") + "0001" + pkt("want "+string(want)+"\n") + pkt("done\n") + "0000"
}

// slowClient takes one write and then nothing until it is let go.
type slowClient struct {
	first, leave chan struct{}
	n            int
}

func (c *slowClient) Write(p []byte) (int, error) {
	if c.n++; c.n == 1 {
		close(c.first)
	}
	<-c.leave
	return len(p), nil
}

func TestFetchesAreLimitedAndKilled(t *testing.T) {
	// The answer is longer than what is written down ahead of its reader, so that git keeps its turn until a slow client is gone.
	s := newServer(t, func(c *gitrepo.Config) { c.MaxFetches, c.MaxAnswerFileBytes = 1, 1<<20 })
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(3<<20))
	w.git("push", "-q", "origin", "main")
	fetch := func(ctx context.Context, request string, out io.Writer) error {
		return s.store.UploadPack(ctx, gitrepo.UploadPack{Repository: s.repo(), GitProtocol: "version=2", In: strings.NewReader(request), Out: out})
	}
	// That of a client which has something, so that its answer is its own.
	request := strings.Replace(fetchRequest(w.rev("HEAD")), pkt("done\n"), pkt("have "+string(absentID)+"\n")+pkt("done\n"), 1)
	ctx, cancel := context.WithCancel(t.Context())
	slow := &slowClient{first: make(chan struct{}), leave: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- fetch(ctx, request, slow) }()
	<-slow.first

	short, cancelShort := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelShort()
	if err := fetch(short, fetchRequest(w.rev("HEAD")), io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fetch beyond the limit = %v, want it to wait", err)
	}
	var out bytes.Buffer
	if err := fetch(t.Context(), pkt("command=ls-refs\n")+"00010000", &out); err != nil || !strings.Contains(out.String(), "refs/heads/main") {
		t.Errorf("ls-refs beyond the limit = %v, %q, want the refs", err, out.String())
	}
	cancel()
	close(slow.leave)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a fetch whose client is gone = %v, want Canceled", err)
	}
	if left := processesBelow(s.store.Dir()); len(left) > 0 {
		t.Errorf("a fetch whose client is gone left %q", left)
	}
	out.Reset()
	if err := fetch(t.Context(), fetchRequest(w.rev("HEAD")), &out); err != nil || out.Len() < 3<<20 {
		t.Errorf("the fetch after it = %v and %d bytes", err, out.Len())
	}
	broken := errors.New("broken pipe")
	if err := fetch(t.Context(), fetchRequest(w.rev("HEAD")), writerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("a fetch whose client takes nothing = %v, want %v", err, broken)
	}
	if err := fetch(t.Context(), "0009junk\n0000", io.Discard); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("a request that makes no sense = %v, want ErrInvalid", err)
	}
	if err := fetch(t.Context(), fetchRequest(absentID), io.Discard); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("a request for what is not there = %v, want ErrInvalid", err)
	}
}

// A client that does not say what it wants keeps nobody from fetching.
func TestFetchThatSaysNothingTakesNoTurn(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxFetches = 1 })
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	fetch := func(ctx context.Context, in io.Reader) error {
		return s.store.UploadPack(ctx, gitrepo.UploadPack{Repository: s.repo(), GitProtocol: "version=2", In: in, Out: io.Discard})
	}
	in, silent := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- fetch(t.Context(), in) }()
	if _, err := io.WriteString(silent, pkt("command=fetch\n")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := fetch(ctx, strings.NewReader(fetchRequest(w.rev("HEAD")))); err != nil {
		t.Errorf("a fetch beside one that says nothing = %v", err)
	}
	silent.CloseWithError(errors.New("gone"))
	if err := <-ended; err == nil {
		t.Error("the fetch of a client that went away = nil, want an error")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A client that goes away in the middle of a clone leaves no process behind.
func TestCloneKilled(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(8<<20))
	w.git("push", "-q", "origin", "main")
	req, err := http.NewRequest(http.MethodPost, s.url()+"/git-upload-pack", strings.NewReader(fetchRequest(w.rev("HEAD"))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Git-Protocol", "version=2")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 100_000); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if left := processesBelow(s.store.Dir()); len(left) > 0 {
		t.Errorf("a clone that was broken off left %q", left)
	}
}

// Neither the server's environment nor a repository's own configuration change how it is served.
func TestCleanEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"GIT_DIR": "/nowhere", "GIT_OBJECT_DIRECTORY": "/nowhere", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "receive.denyDeletes",
		"GIT_CONFIG_VALUE_0": "true", "GIT_TRACE": filepath.Join(t.TempDir(), "trace"), "GIT_REPLACE_REF_BASE": "refs/tags/",
	} {
		t.Setenv(name, value)
	}
	s := newServer(t)
	w := newClient(t).work(s, 2)
	w.git("push", "-q", "origin", "main")
	config, err := os.OpenFile(filepath.Join(repoDir(s), "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = config.WriteString("[core]\n\thooksPath = /nowhere\n\tfsync = none\n[receive]\n\tdenyDeletes = true\n\tdenyNonFastForwards = true\n\tfsckObjects = false\n")
	if err := errors.Join(err, config.Close()); err != nil {
		t.Fatal(err)
	}
	checks := 0
	s.check = func(context.Context, *gitrepo.Push) error {
		checks++
		return nil
	}
	w.git("push", "-q", "--force", "origin", "HEAD~1:refs/heads/main", "HEAD:refs/heads/x")
	w.git("push", "-q", "origin", ":refs/heads/x")
	if checks != 2 {
		t.Errorf("checked %d pushes, want 2", checks)
	}
	if _, err := os.Stat(os.Getenv("GIT_TRACE")); err == nil {
		t.Error("git took GIT_TRACE from the server's environment")
	}
	want := map[string]registry.ObjectID{"refs/heads/main": w.rev("HEAD~1")}
	if diff := cmp.Diff(want, refs(t, s.repo())); diff != "" {
		t.Errorf("refs: (-want +got)\n%s", diff)
	}
}
