package gitrepo_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// connected serves one store by the protocol of git-daemon(1), which is that of SSH once the client has said what it
// wants.
type connected struct {
	*server
	listener net.Listener
	begun    func(context.Context) error
	errs     chan error // of each connection
}

func newConnected(tb testing.TB, change ...func(*gitrepo.Config)) *connected {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	c := &connected{server: newServer(tb, change...), listener: l, begun: func(context.Context) error { return nil }, errs: make(chan error, 1000)}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				c.errs <- c.serveConn(tb.Context(), conn)
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return c
}

func (c *connected) address() string {
	return "git://" + c.listener.Addr().String() + "/acme/fraud.git"
}

// serveConn reads the line with which a client begins. Source: gitprotocol-pack(5), "Git Transport".
func (c *connected) serveConn(ctx context.Context, conn net.Conn) error {
	in := bufio.NewReader(conn)
	head, err := in.Peek(4)
	if err != nil {
		return err
	}
	var length int
	if _, err := fmt.Sscanf(string(head), "%04x", &length); err != nil {
		return err
	}
	line := make([]byte, length)
	if _, err := io.ReadFull(in, line); err != nil {
		return err
	}
	words := strings.Split(string(line[4:]), "\x00")
	service, _, _ := strings.Cut(words[0], " ")
	protocol := ""
	for _, w := range words[1:] {
		if strings.HasPrefix(w, "version=") {
			protocol = w
		}
	}
	sent, all := io.Pipe()
	go func() {
		_, err := io.Copy(all, in)
		all.CloseWithError(err)
	}()
	stop := func() { all.Close() }
	defer stop()
	repo := c.repo()
	if service == string(gitrepo.UploadPackService) {
		return c.store.ConnectUploadPack(ctx, gitrepo.UploadPack{Repository: repo, GitProtocol: protocol, In: sent, Out: conn, Stop: stop})
	}
	exists, err := repo.Exists()
	if err != nil {
		return err
	}
	req := c.receive(gitrepo.ReceivePack{Repository: repo, GitProtocol: protocol, In: sent, Out: conn, Stop: stop}, "it is recorded")
	return c.store.ConnectReceivePack(ctx, req, exists, func(ctx context.Context) error {
		happened.Add(1)
		defer happened.Add(1)
		return c.begun(ctx)
	})
}

// ended fails the test unless the next connection that ends does so without an error.
func (c *connected) ended(tb testing.TB, what string) {
	tb.Helper()
	select {
	case err := <-c.errs:
		if err != nil {
			tb.Errorf("%s: %v", what, err)
		}
	case <-time.After(30 * time.Second):
		tb.Fatalf("%s: the connection does not end", what)
	}
}

func TestConnect(t *testing.T) {
	for _, version := range []string{"0", "1", "2"} {
		t.Run("protocol "+version, func(t *testing.T) {
			t.Parallel()
			s, user := newConnected(t), newClient(t)
			user.git("config", "--global", "protocol.version", version)
			w := user.work(s.server, 3)
			w.git("remote", "set-url", "origin", s.address())

			if out := w.fails("ls-remote", "origin"); strings.Contains(out, "refs/") {
				t.Errorf("refs of no repository:\n%s", out)
			}
			if err := <-s.errs; !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("a fetch from no repository: %v, want ErrNotFound", err)
			}
			out, err := w.try("push", "origin", "main")
			if err != nil {
				t.Fatalf("push: %v\n%s", err, out)
			}
			contains(t, "what the client says of a push", out, "remote: it is recorded", "* [new branch]")
			s.ended(t, "push")

			// With nothing to push there is no push.
			pushes := 0
			s.begun = func(context.Context) error { pushes++; return nil }
			w.git("push", "origin", "main")
			s.ended(t, "push of nothing")
			if pushes != 0 {
				t.Error("a push of nothing began")
			}

			if got, want := user.git("ls-remote", s.address(), "main"), string(w.rev("HEAD")); !strings.HasPrefix(got, want) {
				t.Errorf("ls-remote = %q, want %s", got, want)
			}
			s.ended(t, "ls-remote")
			user.git("clone", "-q", s.address(), "clone")
			s.ended(t, "clone")
			clone := user.in("clone")
			if got, want := clone.rev("HEAD"), w.rev("HEAD"); got != want {
				t.Errorf("HEAD of a clone = %s, want %s", got, want)
			}
			user.git("clone", "-q", "--depth=1", s.address(), "shallow")
			s.ended(t, "shallow clone")
			if got := user.in("shallow").git("rev-list", "--count", "HEAD"); got != "1" {
				t.Errorf("a clone of one commit has %s", got)
			}
			user.in("shallow").git("fetch", "-q", "--unshallow")
			s.ended(t, "the rest")
			if got := user.in("shallow").git("rev-list", "--count", "HEAD"); got != "3" {
				t.Errorf("a clone with all commits has %s, want 3", got)
			}
			user.git("clone", "-q", "--filter=blob:none", "--no-checkout", s.address(), "partial")
			s.ended(t, "partial clone")

			// A long history that both sides have parts of takes several rounds.
			for i := range 40 {
				clone.git("commit", "-q", "--allow-empty", "-m", fmt.Sprint("here ", i))
			}
			want := w.commit("there", "x")
			w.git("push", "-q", "origin", "main")
			s.ended(t, "second push")
			clone.git("fetch", "-q")
			s.ended(t, "fetch")
			if got := clone.rev("origin/main"); got != want {
				t.Errorf("fetch got %s, want %s", got, want)
			}
			clone.git("fetch", "-q")
			s.ended(t, "fetch of nothing")

			// A refused push is told of, and moves nothing.
			s.check = func(context.Context, *gitrepo.Push) error {
				return &gitrepo.Refusal{Lines: []string{"herdbook: not today"}}
			}
			w.commit("there", "y")
			contains(t, "a refused push", w.fails("push", "origin", "main", "HEAD:other"), "remote: herdbook: not today", "[remote rejected]")
			s.ended(t, "refused push")
			if got := refs(t, s.repo()); got["refs/heads/main"] != want || got["refs/heads/other"] != "" {
				t.Errorf("refs after a refused push: %v", got)
			}
			s.check, s.begun = nil, func(context.Context) error { return registry.ErrForbidden }
			w.fails("push", "origin", "main")
			if err := <-s.errs; !errors.Is(err, registry.ErrForbidden) {
				t.Errorf("a push that may not begin: %v", err)
			}
			s.begun = func(context.Context) error { return nil }
			w.git("push", "-q", "origin", "main", "HEAD:other")
			s.ended(t, "push")
			w.git("push", "-q", "origin", ":other")
			s.ended(t, "push that deletes")
			if got := refs(t, s.repo()); got["refs/heads/main"] != w.rev("HEAD") || got["refs/heads/other"] != "" {
				t.Errorf("refs after a push that deletes: %v", got)
			}
			noLeftovers(t, s.store.Dir())
		})
	}
}

// dialGit begins a conversation, and gives the advertisement.
func (c *connected) dialGit(tb testing.TB, service, protocol string) (conn *net.TCPConn, in *bufio.Reader) {
	tb.Helper()
	conn, err := net.DialTCP("tcp", nil, c.listener.Addr().(*net.TCPAddr))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	line := service + " /acme/fraud.git\x00host=x\x00\x00" + protocol + "\x00"
	fmt.Fprintf(conn, "%04x%s", len(line)+4, line)
	in = bufio.NewReader(conn)
	readUntilFlush(tb, in)
	return conn, in
}

func readUntilFlush(tb testing.TB, in *bufio.Reader) (lines []string) {
	tb.Helper()
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(in, head); err != nil {
			tb.Fatalf("after %q: %v", lines, err)
		}
		var n int
		if _, err := fmt.Sscanf(string(head), "%04x", &n); err != nil {
			tb.Fatal(err)
		}
		if n == 0 {
			return lines
		}
		line := make([]byte, max(0, n-4))
		if _, err := io.ReadFull(in, line); err != nil {
			tb.Fatal(err)
		}
		lines = append(lines, string(line))
	}
}

// TestConnectTurns: who only looks takes no turn from others, and nor does who says nothing.
func TestConnectTurns(t *testing.T) {
	s, user := newConnected(t, func(c *gitrepo.Config) { c.MaxFetches = 1 }), newClient(t)
	w := user.work(s.server, 2)
	w.git("push", "-q", s.address(), "main")
	for _, protocol := range []string{"version=0", "version=1", "version=2"} {
		s.dialGit(t, "git-upload-pack", protocol)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, version := range []string{"0", "2"} {
		if out, err := user.command(ctx, "-c", "protocol.version="+version, "clone", "-q", s.address(), "clone"+version).CombinedOutput(); err != nil {
			t.Fatalf("a clone by protocol %s while others say nothing: %v\n%s", version, err, out)
		}
	}
	// One that has said that it wants something has the only turn until it leaves.
	waiting, in := s.dialGit(t, "git-upload-pack", "version=0")
	want := fmt.Sprintf("want %s side-band-64k ofs-delta\n", w.rev("HEAD"))
	fmt.Fprintf(waiting, "%04x%s0000", len(want)+4, want)
	fmt.Fprintf(waiting, "0032have %s\n0000", strings.Repeat("1", 40))
	if nak := make([]byte, 8); true {
		if _, err := io.ReadFull(in, nak); err != nil || string(nak) != "0008NAK\n" {
			t.Fatalf("the answer to what is not there is %q, %v", nak, err)
		}
	}
	soon, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if err := user.command(soon, "-c", "protocol.version=0", "clone", "-q", s.address(), "later").Run(); err == nil {
		t.Error("two fetches ran where one may")
	}
	waiting.Close()
	if out, err := user.command(ctx, "clone", "-q", s.address(), "after").CombinedOutput(); err != nil {
		t.Errorf("a clone after the other left: %v\n%s", err, out)
	}
}

// TestConnectStays: a push is over when the server has answered, though the client keeps the connection open.
func TestConnectStays(t *testing.T) {
	s, user := newConnected(t), newClient(t)
	w := user.work(s.server, 1)
	w.git("push", "-q", s.address(), "main", "main:other")
	s.ended(t, "push")
	conn, in := s.dialGit(t, "git-receive-pack", "")
	line := fmt.Sprintf("%s %s refs/heads/other\x00report-status delete-refs", w.rev("HEAD"), strings.Repeat("0", 40))
	fmt.Fprintf(conn, "%04x%s0000", len(line)+4, line)
	if got := readUntilFlush(t, in); len(got) != 2 || got[1] != "ok refs/heads/other\n" {
		t.Errorf("the report is %q", got)
	}
	s.ended(t, "a push whose client stays")
}

// TestConnectWrong: what is no request ends the conversation, and is nobody's fault here.
func TestConnectWrong(t *testing.T) {
	s, user := newConnected(t), newClient(t)
	user.work(s.server, 1).git("push", "-q", s.address(), "main")
	s.ended(t, "push")
	for _, in := range []string{"hello world", "0003", "fff5", "0014command=ls-refs\n", "0014command=ls-refs\n0001zzzz", "000fcommand=what0000", "0032want 1111111111111111111111111111111111111111\n0000"} {
		for _, protocol := range []string{"", "version=2"} {
			conn, out := s.dialGit(t, "git-upload-pack", protocol)
			if _, err := io.WriteString(conn, in); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, out); err != nil {
				t.Fatal(err)
			}
			if err := <-s.errs; !errors.Is(err, registry.ErrInvalid) {
				t.Errorf("%q with %q: %v, want ErrInvalid", in, protocol, err)
			}
		}
	}
}

// FuzzSplitRequests: requests that are put together are found again, as they were and in their order, and nothing
// else is taken for one.
func FuzzSplitRequests(f *testing.F) {
	for _, seed := range []string{
		"", "0000", "0014command=ls-refs\n0000", "0014command=ls-refs\n00010009peel\n00000011command=fetch00010009done\n00000000", "0004", "00020000", "0003", "zzzz", "000aabc", "FFF0", "0014command=ls-refs\n", "00050000",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		all, err := gitrepo.SplitRequests(bytes.NewReader(in))
		joined := bytes.Join(all, nil)
		if !bytes.HasPrefix(in, joined) {
			t.Fatalf("SplitRequests(%q) = %q, which is not how it begins", in, all)
		}
		for _, one := range all {
			if !bytes.HasSuffix(one, []byte("0000")) || len(one) < 8 {
				t.Errorf("SplitRequests(%q) has the request %q, which ends without a flush or is only that", in, one)
			}
		}
		again, err2 := gitrepo.SplitRequests(bytes.NewReader(append(joined, "0000and more"...)))
		if err2 != nil || len(again) != len(all) {
			t.Errorf("SplitRequests(%q) = %q, and of these alone %q, %v", in, all, again, err2)
		}
		if rest := in[len(joined):]; err == nil && len(rest) >= 4 && !bytes.HasPrefix(rest, []byte("0000")) {
			t.Errorf("SplitRequests(%q) leaves %q without an error", in, rest)
		}
	})
}

// BenchmarkConnectClone is a whole fetch on a connection.
func BenchmarkConnectClone(b *testing.B) {
	s, user := newConnected(b), newClient(b)
	user.work(s.server, 50).git("push", "-q", s.address(), "main")
	i := 0
	for b.Loop() {
		dir := fmt.Sprint("clone", i)
		i++
		user.git("clone", "-q", "--bare", s.address(), dir)
		b.StopTimer()
		_ = os.RemoveAll(user.in(dir).dir)
		b.StartTimer()
	}
}
