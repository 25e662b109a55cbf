package ssh_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	xssh "golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/ssh"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// basicUser is the user name of a header with HTTP Basic authentication.
func basicUser(header string) (string, bool) {
	text, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(header, "Basic "))
	user, _, ok := strings.Cut(string(text), ":")
	return user, ok && err == nil
}

// pipes is a network in memory, whose time is that of the test.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 22} }

// from is a connection from an address.
type from struct {
	net.Conn
	addr string
}

func (c from) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", c.addr)
	if err != nil {
		panic(err)
	}
	return a
}

// buffered is an end of a pipe that takes what is written before the other end reads it: both ends of SSH begin by
// writing. What was written before Close is sent.
type buffered struct {
	net.Conn
	mu     sync.Mutex
	closed bool
	queue  chan []byte
}

func newBuffered(c net.Conn) *buffered {
	b := &buffered{Conn: c, queue: make(chan []byte, 10_000)}
	go func() {
		defer c.Close()
		for p := range b.queue {
			if _, err := c.Write(p); err != nil {
				break
			}
		}
	}()
	return b
}

func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, net.ErrClosed
	}
	b.queue <- bytes.Clone(p)
	return len(p), nil
}

func (b *buffered) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.queue)
	}
	return b.SetReadDeadline(time.Now())
}

// connect connects to the server.
func (p *pipes) connect(tb testing.TB, addr string) net.Conn {
	tb.Helper()
	one, two := net.Pipe()
	here, there := newBuffered(one), newBuffered(two)
	tb.Cleanup(func() {
		here.Close()
		one.Close()
	})
	select {
	case p.conns <- from{there, addr}:
	case <-p.done:
		tb.Fatal("nobody listens")
	}
	return here
}

// oneModel knows one model and one key.
type oneModel struct{ token registry.Token }

func (m oneModel) ModelByName(_ context.Context, name registry.ModelName) (registry.Model, error) {
	return registry.Model{ID: "m", Name: name, Visibility: registry.Public}, nil
}

func (m oneModel) Token(_ context.Context, hash string) (registry.Token, error) {
	if hash != m.token.Hash {
		return registry.Token{}, registry.ErrNotFound
	}
	return m.token, nil
}

// steered does what the test wants.
type steered struct {
	fetch func(ctx context.Context, s ssh.Stream) error
	push  func(ctx context.Context, r ssh.Receive) error
}

func (t steered) ConnectUploadPack(ctx context.Context, _ registry.ModelName, _ string, s ssh.Stream) error {
	return t.fetch(ctx, s)
}

func (t steered) ConnectReceivePack(ctx context.Context, r ssh.Receive) error { return t.push(ctx, r) }

// bubble is a server in memory with one key.
type bubble struct {
	*pipes
	tb    testing.TB
	key   xssh.Signer
	end   context.CancelFunc
	ended chan error
}

func newBubble(t *testing.T, transport steered) *bubble {
	key := newKey(t)
	token, err := auth.NewKey("ada", access.Admin, string(xssh.MarshalAuthorizedKey(key.PublicKey())))
	if err != nil {
		t.Fatal(err)
	}
	door, err := ssh.New(ssh.Config{
		Index: oneModel{token}, Transport: transport, HostKey: ssh.NewHostKey(), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Pushed: func(string) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	b := &bubble{pipes: newPipes(), tb: t, key: key, end: cancel, ended: make(chan error, 1)}
	go func() { b.ended <- door.Serve(ctx, b.pipes) }()
	return b
}

// login connects as the holder of the key.
func (b *bubble) login(addr string) (*xssh.Client, net.Conn) {
	b.tb.Helper()
	raw := b.connect(b.tb, addr)
	conn, channels, requests, err := xssh.NewClientConn(raw, "herdbook", &xssh.ClientConfig{
		User: "git", Auth: []xssh.AuthMethod{xssh.PublicKeys(b.key)}, HostKeyCallback: xssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		b.tb.Fatal(err)
	}
	return xssh.NewClient(conn, channels, requests), raw
}

// closed reports whether the server closed a connection.
func closed(conn net.Conn) bool {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	synctest.Wait()
	select {
	case <-gone:
		return true
	default:
		return false
	}
}

// over waits for the end of a connection, and says when it was.
func over(client *xssh.Client) time.Duration {
	start := time.Now()
	_ = client.Wait()
	return time.Since(start)
}

func TestHandshakeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{})
		silent := b.connect(t, "10.0.0.7:1")
		start := time.Now()
		if _, err := io.Copy(io.Discard, silent); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("a client that says nothing is kept for %s, want 10 s", took)
		}
		b.end()
		<-b.ended
	})
}

func TestIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{fetch: func(context.Context, ssh.Stream) error {
			time.Sleep(5 * time.Minute)
			return nil
		}})
		client, _ := b.login("10.0.0.7:1")
		if _, err := client.NewSession(); err != nil { // a session is no command
			t.Fatal(err)
		}
		if took := over(client); took != time.Minute {
			t.Errorf("a connection without a command is kept for %s, want 1 min", took)
		}
		client, _ = b.login("10.0.0.7:1")
		time.Sleep(50 * time.Second)
		if a := run(t, client, "git-upload-pack acme/fraud", ""); a.status != 0 {
			t.Errorf("a command of five minutes: %+v", a)
		}
		time.Sleep(50 * time.Second)
		if a := run(t, client, "git-upload-pack acme/fraud", ""); a.status != 0 {
			t.Errorf("a second command: %+v", a)
		}
		if took := over(client); took != time.Minute {
			t.Errorf("a connection is kept for %s after its last command, want 1 min", took)
		}
		b.end()
		<-b.ended
	})
}

// TestStallEnds: a command of which nothing is heard is cut off, one that says something now and then is not.
func TestStallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{fetch: func(ctx context.Context, s ssh.Stream) error {
			for range 3 {
				time.Sleep(14 * time.Minute)
				if _, err := s.Out.Write([]byte("progress")); err != nil {
					return err
				}
			}
			_, err := io.Copy(io.Discard, s.In) // ends when the connection is cut
			<-ctx.Done()
			return err
		}})
		client, _ := b.login("10.0.0.7:1")
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := session.StdinPipe(); err != nil { // which stays open
			t.Fatal(err)
		}
		if err := session.Start("git-upload-pack acme/fraud"); err != nil {
			t.Fatal(err)
		}
		if took, want := over(client), 3*14*time.Minute+15*time.Minute; took != want {
			t.Errorf("the command was cut off after %s, want %s", took, want)
		}
		b.end()
		<-b.ended
	})
}

func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{})
		var silent []net.Conn
		for range 10 {
			silent = append(silent, b.connect(t, "10.0.0.7:1"))
		}
		if !closed(b.connect(t, "10.0.0.7:2")) {
			t.Error("an eleventh stranger from one address was let wait")
		}
		if closed(b.connect(t, "10.0.0.8:1")) {
			t.Error("a stranger from another address was sent away")
		}
		silent[0].Close()
		synctest.Wait()
		for range 30 { // who has a key makes place for the next
			client, _ := b.login("10.0.0.7:3")
			defer client.Close()
			synctest.Wait()
		}
		if closed(b.connect(t, "10.0.0.7:4")) {
			t.Error("a tenth stranger was sent away while others with a key were connected")
		}
		b.end()
		<-b.ended
	})
}

func TestMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{})
		first := b.connect(t, "10.1.0.0:1")
		for i := 1; i < 1000; i++ {
			b.connect(t, net.IPv4(10, 1, byte(i>>8), byte(i)).String()+":1")
		}
		if !closed(b.connect(t, "10.0.0.8:1")) {
			t.Error("there are 1001 connections")
		}
		first.Close()
		synctest.Wait()
		if closed(b.connect(t, "10.0.0.8:1")) {
			t.Error("a connection that is over left no place")
		}
		b.end()
		<-b.ended
	})
}

// TestMaxCommands: one key does not take the processes of all others, over however many connections.
func TestMaxCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newBubble(t, steered{fetch: func(context.Context, ssh.Stream) error {
			<-release
			return nil
		}})
		const line = "git-upload-pack acme/fraud"
		var running []*xssh.Session
		for range 10 {
			client, _ := b.login("10.0.0.7:1")
			defer client.Close()
			for range 10 {
				session, err := client.NewSession()
				if err != nil {
					t.Fatal(err)
				}
				if err := session.Start(line); err != nil {
					t.Fatal(err)
				}
				running = append(running, session)
			}
		}
		synctest.Wait()
		client, _ := b.login("10.0.0.8:1")
		defer client.Close()
		if a := run(t, client, line, ""); a.status != 128 || !strings.Contains(a.stderr, "try again later") {
			t.Errorf("command 101 of a key ends with %d and says %q, want 128 and that it may try again later", a.status, a.stderr)
		}
		close(release)
		for _, session := range running {
			if err := session.Wait(); err != nil {
				t.Errorf("one of 100 commands of a key: %v", err)
			}
		}
		if a := run(t, client, line, ""); a.status != 0 {
			t.Errorf("a command behind 100 that ended ends with %d and says %q, want 0", a.status, a.stderr)
		}
		b.end()
		<-b.ended
	})
}

// TestDrain: when the server stops, commands that run may end, and no other begins.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{fetch: func(_ context.Context, s ssh.Stream) error {
			time.Sleep(20 * time.Second)
			_, err := s.Out.Write([]byte("whole"))
			return err
		}})
		idle, _ := b.login("10.0.0.7:1")
		stranger := b.connect(t, "10.0.0.7:2")
		client, _ := b.login("10.0.0.7:3")
		waiting, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		result := make(chan answer, 1)
		go func() { result <- run(t, client, "git-upload-pack acme/fraud", "") }()
		time.Sleep(time.Second)
		b.end()
		synctest.Wait()
		if took := over(idle); took != 0 || !closed(stranger) {
			t.Errorf("a connection without a command was kept for %s, a stranger %v", took, !closed(stranger))
		}
		var stderr strings.Builder
		waiting.Stderr = &stderr
		if err := waiting.Run("git-upload-pack acme/fraud"); err == nil || !strings.HasPrefix(stderr.String(), "herdbook: the server cannot do this now") {
			t.Errorf("a command of a server that stops: %v, %q", err, stderr.String())
		}
		if a := <-result; a.status != 0 || a.out != "whole" {
			t.Errorf("a command that ran when the server was stopped: %+v, want all of it", a)
		}
		start := time.Now()
		if err := <-b.ended; err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("Serve = %v, %s after the last command", err, time.Since(start))
		}
	})
}

// TestCut: a command that takes too long to end is cut off, and its context ends.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{fetch: func(ctx context.Context, _ ssh.Stream) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		client, _ := b.login("10.0.0.7:3")
		result := make(chan answer, 1)
		go func() { result <- run(t, client, "git-upload-pack acme/fraud", "") }()
		time.Sleep(time.Second)
		start := time.Now()
		b.end()
		if err := <-b.ended; err != nil || time.Since(start) != 30*time.Second {
			t.Errorf("Serve = %v after %s, want 30 s", err, time.Since(start))
		}
		if a := <-result; a.status == 0 {
			t.Errorf("a command that was cut off: %+v", a)
		}
	})
}

// TestClientLeaves: the context of a command ends when the client closes its session or the connection.
func TestClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan struct{}, 2)
		b := newBubble(t, steered{fetch: func(ctx context.Context, _ ssh.Stream) error {
			<-ctx.Done()
			left <- struct{}{}
			return ctx.Err()
		}})
		client, raw := b.login("10.0.0.7:3")
		for i, leave := range []func(*xssh.Session){func(s *xssh.Session) { s.Close() }, func(*xssh.Session) { raw.Close() }} {
			session, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if err := session.Start("git-upload-pack acme/fraud"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if len(left) > 0 {
				t.Fatalf("the context of command %d ended at once", i)
			}
			leave(session)
			<-left
		}
		b.end()
		<-b.ended
	})
}

// TestPanic: a bug costs one command.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{fetch: func(context.Context, ssh.Stream) error { panic("secret") }, push: func(context.Context, ssh.Receive) error { return errors.New("secret") }})
		client, _ := b.login("10.0.0.7:3")
		for _, line := range []string{"git-upload-pack acme/fraud", "git-receive-pack acme/fraud", "git-upload-pack acme/fraud"} {
			if a := run(t, client, line, ""); a.status != 128 || !strings.HasPrefix(a.stderr, "herdbook: internal error (request ") || strings.Contains(a.stderr, "secret") {
				t.Errorf("%s: %+v, want an internal error", line, a)
			}
		}
		b.end()
		<-b.ended
	})
}

// TestStop: input that nobody wants any more ends, though the client keeps it open.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, steered{fetch: func(_ context.Context, s ssh.Stream) error {
			first := make([]byte, 5)
			if _, err := io.ReadFull(s.In, first); err != nil || string(first) != "hello" {
				return errors.New("not what was sent")
			}
			s.Stop()
			_, err := io.ReadAll(s.In)
			return err
		}})
		client, _ := b.login("10.0.0.7:3")
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		in, err := session.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := session.Start("git-upload-pack acme/fraud"); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := session.Wait(); err != nil {
			t.Errorf("a command that stopped reading: %v", err)
		}
		client.Close()
		b.end()
		<-b.ended
	})
}
