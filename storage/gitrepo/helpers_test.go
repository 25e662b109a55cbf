package gitrepo_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

// envServe makes the test binary a server of the directory that it names, for tests that kill it.
const envServe = "HERDBOOK_TEST_SERVE"

func TestMain(m *testing.M) {
	if hook.Wanted() {
		syscall.Exit(hook.Main()) // os.Exit sleeps for a second in a program with the race detector
	}
	if dir := os.Getenv(envServe); dir != "" {
		serveUntilKilled(dir)
	}
	// All that the tests start works below one directory, by which what is left is found.
	root, err := os.MkdirTemp("", "gitrepo-test-")
	if err != nil {
		panic(err)
	}
	if err := os.Setenv("TMPDIR", root); err != nil {
		panic(err)
	}
	code := m.Run()
	if left := processesBelow(root); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "processes left behind: %q\n", left)
		code = 1
	}
	_ = os.RemoveAll(root)
	os.Exit(code)
}

// processesBelow returns the processes other than this one that work in root or were started by us.
func processesBelow(root string) (found []string) {
	for range 50 {
		found = nil
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			if dir == fmt.Sprintf("/proc/%d", os.Getpid()) {
				continue
			}
			cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
			stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
			_, after, _ := strings.Cut(string(stat), ") ")
			fields := strings.Fields(after)
			ours := len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid())
			if strings.HasPrefix(cwd, root) || ours {
				cmd, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
				found = append(found, strings.ReplaceAll(string(cmd), "\x00", " "))
			}
		}
		if len(found) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return found
}

var fraud = registry.MustModelName("acme/fraud")

func openStore(tb testing.TB, dir string, change ...func(*gitrepo.Config)) *gitrepo.Store {
	tb.Helper()
	cfg := gitrepo.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(testLog{tb}, nil)), CloseWait: 2 * time.Second}
	for _, c := range change {
		c(&cfg)
	}
	s, err := gitrepo.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Errorf("Close: %v", err)
		}
	})
	return s
}

type testLog struct{ tb testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.tb.Logf("log: %s", bytes.TrimSpace(p))
	return len(p), nil
}

// happened puts what a test and its server do for each other by way of a git in order, for the race detector: it does not see the order
// that a connection of another process makes.
var happened atomic.Int64

// receive completes a push with what the test does in it.
func (s *server) receive(req gitrepo.ReceivePack, lines ...string) gitrepo.ReceivePack {
	happened.Add(1)
	req.PushID = fmt.Sprintf("push-%d", s.pushes.Add(1))
	check, finish := s.check, s.finish
	if check == nil {
		check = func(context.Context, *gitrepo.Push) error { return nil }
	}
	if finish == nil {
		finish = func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
			return lines, req.Repository.Sync(ctx, updates)
		}
	}
	req.Check = func(ctx context.Context, p *gitrepo.Push) error {
		happened.Add(1)
		defer happened.Add(1)
		return check(ctx, p)
	}
	req.Finish = func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
		happened.Add(1)
		defer happened.Add(1)
		return finish(ctx, updates)
	}
	return req
}

// server serves one store by smart HTTP, as simply as it goes.
type server struct {
	*httptest.Server
	store *gitrepo.Store
	check func(context.Context, *gitrepo.Push) error
	// finish defaults to Sync.
	finish func(context.Context, []registry.RefUpdate) ([]string, error)
	errs   sync.Map // push id -> error of ReceivePack
	wrap   func(io.Writer) io.Writer
	pushes atomic.Int64
	ended  chan string // if set, gets the id of each push that ended
}

func newServer(tb testing.TB, change ...func(*gitrepo.Config)) *server {
	tb.Helper()
	s := &server{store: openStore(tb, filepath.Join(tb.TempDir(), "repos"), change...)}
	s.start(tb)
	return s
}

func (s *server) start(tb testing.TB) {
	s.Server = httptest.NewServer(s)
	tb.Cleanup(s.Close)
}

func (s *server) url() string { return s.URL + "/acme/fraud.git" }

func (s *server) repo() *gitrepo.Repository { return s.store.Repository(fraud) }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), ".git/")
	name, err := registry.ParseModelName(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := &startedWriter{ResponseWriter: w}
	if err := s.serve(out, r, s.store.Repository(name), action); err != nil && !out.started {
		status := http.StatusInternalServerError
		switch {
		case errors.Is(err, registry.ErrNotFound):
			status = http.StatusNotFound
		case errors.Is(err, registry.ErrInvalid):
			status = http.StatusBadRequest
		case errors.Is(err, registry.ErrUnavailable):
			status = http.StatusServiceUnavailable
		}
		http.Error(w, err.Error(), status)
	}
}

// startedWriter knows whether the answer began, after which its status cannot be changed.
type startedWriter struct {
	http.ResponseWriter
	started bool
}

func (w *startedWriter) Write(p []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(p)
}

func (w *startedWriter) Flush() { w.ResponseWriter.(http.Flusher).Flush() }

func (w *startedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (s *server) serve(w http.ResponseWriter, r *http.Request, repo *gitrepo.Repository, action string) error {
	ctx, protocol := r.Context(), r.Header.Get("Git-Protocol")
	if action == "info/refs" {
		service, err := gitrepo.ParseService(r.URL.Query().Get("service"))
		if err != nil {
			return err
		}
		if ok, err := repo.Exists(); err != nil {
			return err
		} else if !ok && service == gitrepo.ReceivePackService {
			repo = nil
		}
		w.Header().Set("Content-Type", "application/x-"+string(service)+"-advertisement")
		return s.store.AdvertiseRefs(ctx, repo, service, protocol, w)
	}
	var in io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if in, err = gzip.NewReader(r.Body); err != nil {
			return err
		}
	}
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-"+action+"-result")
	if action == string(gitrepo.UploadPackService) {
		return s.store.UploadPack(ctx, gitrepo.UploadPack{Repository: repo, GitProtocol: protocol, In: in, Out: w})
	}
	if _, err := s.store.Create(ctx, repo.Name()); err != nil {
		return err
	}
	req := s.receive(gitrepo.ReceivePack{Repository: repo, GitProtocol: protocol, In: in, Out: w})
	if s.wrap != nil {
		req.Out = s.wrap(w)
	}
	err := s.store.ReceivePack(ctx, req)
	happened.Add(1)
	if s.ended != nil {
		s.errs.Store(req.PushID, fmt.Sprint(err))
		s.ended <- req.PushID
	}
	return err
}

// client is a user's git in one directory.
type client struct {
	tb  testing.TB
	dir string
	env []string
}

func newClient(tb testing.TB) *client {
	tb.Helper()
	home := tb.TempDir()
	config := "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n[advice]\n\tdetachedHead = false\n"
	writeFile(tb, filepath.Join(home, ".gitconfig"), config)
	return &client{tb: tb, dir: home, env: []string{
		"HOME=" + home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_DATE=1700000000 +0000", "GIT_COMMITTER_DATE=1700000000 +0000",
	}}
}

// in is the same user in a directory below.
func (c *client) in(dir string) *client {
	return &client{tb: c.tb, dir: filepath.Join(c.dir, dir), env: c.env}
}

func (c *client) command(ctx context.Context, args ...string) *exec.Cmd {
	happened.Add(1)
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = c.dir, c.env
	return cmd
}

// try runs git and returns all that it says.
func (c *client) try(args ...string) (string, error) {
	out, err := c.command(context.Background(), args...).CombinedOutput()
	happened.Add(1)
	return string(out), err
}

// git runs git, which has to succeed, and returns its standard output.
func (c *client) git(args ...string) string {
	c.tb.Helper()
	cmd := c.command(context.Background(), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	happened.Add(1)
	if err != nil {
		c.tb.Fatalf("git %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// fails runs git, which has to fail, and returns all that it says.
func (c *client) fails(args ...string) string {
	c.tb.Helper()
	out, err := c.try(args...)
	if err == nil {
		c.tb.Fatalf("git %s succeeded, want a failure:\n%s", strings.Join(args, " "), out)
	}
	return out
}

func (c *client) write(path, content string) {
	c.tb.Helper()
	path = filepath.Join(c.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.tb.Fatal(err)
	}
	writeFile(c.tb, path, content)
}

// commit changes a file and returns the commit.
func (c *client) commit(path, content string) registry.ObjectID {
	c.tb.Helper()
	c.write(path, content)
	c.git("add", "-A")
	c.git("commit", "-q", "-m", "change "+path)
	return c.rev("HEAD")
}

func (c *client) rev(rev string) registry.ObjectID {
	c.tb.Helper()
	return registry.ObjectID(c.git("rev-parse", rev))
}

// work is a working copy with n commits, whose origin is the server.
func (c *client) work(s *server, n int) *client {
	c.tb.Helper()
	c.git("init", "-q", "work")
	w := c.in("work")
	for i := range n {
		w.commit("README.md", fmt.Sprintf("# model, take %d\n", i))
	}
	w.git("remote", "add", "origin", s.url())
	return w
}

func writeFile(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
}

// refs are those of the server's repository.
func refs(tb testing.TB, repo *gitrepo.Repository) map[string]registry.ObjectID {
	tb.Helper()
	list, err := repo.Refs(tb.Context())
	if err != nil {
		tb.Fatalf("Refs: %v", err)
	}
	m := map[string]registry.ObjectID{}
	for _, r := range list {
		m[r.Name] = r.ID
	}
	return m
}

// must returns v of a call that has to succeed.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func contains(tb testing.TB, what, text string, wants ...string) {
	tb.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			tb.Errorf("%s lacks %q:\n%s", what, want, text)
		}
	}
}

// noLeftovers fails the test if the server's repository holds quarantined objects or locks.
func noLeftovers(tb testing.TB, dir string) {
	tb.Helper()
	var left []string
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		name := e.Name()
		if strings.HasPrefix(name, "tmp_") || strings.HasPrefix(name, "fast_import_crash") ||
			strings.HasSuffix(name, ".lock") && path != filepath.Join(dir, ".lock") || strings.HasPrefix(name, ".herdbook-tmp-") {
			left = append(left, path)
		}
		return nil
	})
	if len(left) > 0 {
		tb.Errorf("left behind: %q", left)
	}
}

// serveUntilKilled serves dir. A push to the branch "stuck-check" stays in its check, one to "stuck-finish" in its
// finish, and each says so in the directory.
func serveUntilKilled(dir string) {
	store, err := gitrepo.Open(context.Background(), gitrepo.Config{Dir: filepath.Join(dir, "repos")})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	stick := func(at string, updates []registry.RefUpdate) {
		if slices.ContainsFunc(updates, func(u registry.RefUpdate) bool { return u.Ref == "refs/heads/stuck-"+at }) {
			if err := os.WriteFile(filepath.Join(dir, "stuck-"+at), nil, 0o600); err != nil {
				panic(err)
			}
			select {}
		}
	}
	s := &server{store: store}
	s.check = func(_ context.Context, p *gitrepo.Push) error {
		stick("check", p.Updates)
		return nil
	}
	s.finish = func(_ context.Context, updates []registry.RefUpdate) ([]string, error) {
		stick("finish", updates)
		return nil, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("http://" + l.Addr().String())
	panic(http.Serve(l, s))
}
