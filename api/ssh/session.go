package ssh

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/registry/problem"
)

// How commands end.
const (
	exitOK      = 0
	exitRefused = 1   // there is no such thing here: a shell, LFS over SSH alone
	exitFatal   = 128 // as git ends when it gives up
)

// protocolForm is what a client may put into GIT_PROTOCOL.
var protocolForm = regexp.MustCompile(`^version=[0-2]$`)

// asked is what a client wants of a session.
type asked struct {
	shell    bool
	line     string // the command line, unless it is a shell
	protocol string // the value of GIT_PROTOCOL; empty for one that is none
}

// await reads the requests of a session up to the one that begins a command; ok is false when the client left before.
func await(requests <-chan *ssh.Request) (a asked, ok bool) {
	for r := range requests {
		accepted := false
		switch r.Type {
		case "env":
			var variable struct{ Name, Value string }
			if ssh.Unmarshal(r.Payload, &variable) == nil && variable.Name == "GIT_PROTOCOL" && protocolForm.MatchString(variable.Value) {
				a.protocol, accepted = variable.Value, true
			}
		case "exec":
			var command struct{ Line string }
			ok = ssh.Unmarshal(r.Payload, &command) == nil
			a.line, accepted = command.Line, ok
		case "shell":
			a.shell, accepted, ok = true, true, true
		case "keepalive@openssh.com":
			accepted = true
		}
		if r.WantReply {
			_ = r.Reply(accepted, nil)
		}
		if ok {
			return a, true
		}
	}
	return a, false
}

// session waits for what the client wants of a session, does it, and says how it ended.
func (c *connection) session(ctx context.Context, channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	defer c.guard(ctx, "an SSH session failed")
	a, ok := await(requests)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.sessions.Go(func() {
		defer cancel() // the client closed the session
		refuse(requests)
	})
	status := exitFatal
	if c.gate.enter() {
		defer c.gate.leave()
		status = c.run(ctx, channel, a)
	} else {
		say(channel.Stderr(), problem.Detail(registry.ErrUnavailable))
	}
	_ = channel.CloseWrite()
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
}

// say tells the user on the terminal.
func say(w io.Writer, text string) { fmt.Fprintf(w, "herdbook: %s\n", text) }

// execution is a command that runs.
type execution struct {
	*connection
	command
	by       lifecycle.Request
	protocol string
	stream   *stream
}

// run runs a command, counts it and writes a line of the access log.
func (c *connection) run(ctx context.Context, channel ssh.Channel, a asked) (status int) {
	start := time.Now()
	var id [12]byte
	rand.Read(id[:]) // crypto/rand never fails
	x := &execution{
		connection: c, by: lifecycle.Request{ID: hex.EncodeToString(id[:])}, protocol: a.protocol, stream: c.newStream(ctx, channel),
	}
	defer x.stream.end()
	status, err := x.do(ctx, a)
	if err != nil {
		status = exitFatal
		x.fail(ctx, err)
	}
	program, took := x.program, time.Since(start)
	switch {
	case a.shell:
		program = "shell"
	case program == "":
		program = "other"
	}
	in, out := x.stream.in.Load(), x.stream.out.Load()
	c.metrics.commands.WithLabelValues(program, strconv.Itoa(status)).Inc()
	c.metrics.seconds.WithLabelValues(program).Observe(took.Seconds())
	c.metrics.bytes.WithLabelValues("in").Add(float64(in))
	c.metrics.bytes.WithLabelValues("out").Add(float64(out))
	c.Log.LogAttrs(ctx, slog.LevelInfo, "request",
		slog.String("protocol", "ssh"), slog.String("program", program), slog.String("model", x.model.String()), slog.Int("status", status),
		slog.Int64("bytes", out), slog.Duration("took", took), slog.String("actor", x.by.Identity.Name), slog.String("key", c.fingerprint),
		slog.String("remote", c.conn.RemoteAddr().String()), slog.String("request", x.by.ID))
	return status
}

// do does what the client asked for, by the right that it has now. A panic is an error of this command only.
func (x *execution) do(ctx context.Context, a asked) (status int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	if x.by.Identity, err = x.identity(ctx); err != nil {
		return 0, err
	}
	end, ok := x.beginCommand(x.hash)
	if !ok {
		return 0, fmt.Errorf("%d commands of the key %s are running: %w", x.MaxCommands, x.fingerprint, registry.ErrUnavailable)
	}
	defer end()
	if a.shell {
		fmt.Fprintf(x.stream.channel.Stderr(), "Hi %s! Herdbook gives no shell: an address to clone from is ssh://HOST/NAMESPACE/NAME.git\n", x.by.Identity.Name)
		return exitRefused, nil
	}
	if x.command, err = parseCommand(a.line); err != nil {
		return 0, err
	}
	switch x.program {
	case uploadPack:
		return exitOK, x.fetch(ctx)
	case receivePack:
		return exitOK, x.push(ctx)
	case lfsAuthenticate:
		return exitOK, x.authenticate(ctx)
	case lfsTransfer:
		say(x.stream.channel.Stderr(), "Git LFS goes on over HTTP; this is no error")
		return exitRefused, nil
	}
	return 0, fmt.Errorf("nothing runs the program %s", x.program) // parseCommand and this list do not fit
}

// fail tells the client what is wrong, in the words of all other doors.
func (x *execution) fail(ctx context.Context, err error) {
	text := problem.Detail(err)
	switch class := problem.Of(err); {
	case ctx.Err() != nil: // nobody reads it
		x.Log.DebugContext(ctx, "an SSH client left", "request", x.by.ID, "reason", err.Error())
	case class == problem.Internal:
		x.Log.ErrorContext(ctx, "SSH command failed", "program", x.program, "model", x.model.String(), "request", x.by.ID, "error", err.Error())
		text += " (request " + x.by.ID + ")"
	case class == problem.Unauthenticated:
		text = "this key does not let you in any more: it was revoked"
	}
	say(x.stream.channel.Stderr(), text)
}

// stream is what a command reads and writes. When no byte goes either way for too long, the connection is closed.
type stream struct {
	channel ssh.Channel
	in, out atomic.Int64 // bytes

	mu       sync.Mutex
	patience time.Duration
	stall    *time.Timer // nil once the command has ended: what is left of its input may still come
}

func (c *connection) newStream(ctx context.Context, channel ssh.Channel) *stream {
	return &stream{channel: channel, patience: c.Stall, stall: time.AfterFunc(c.Stall, func() {
		c.Log.WarnContext(ctx, "an SSH command was cut off: nothing came or went", "for", c.Stall, "remote", c.conn.RemoteAddr().String())
		_ = c.conn.Close()
	})}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.channel.Read(p)
	s.moved(&s.in, n)
	return n, err
}

// Write implements io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.channel.Write(p)
	s.moved(&s.out, n)
	return n, err
}

// moved counts bytes that came or went.
func (s *stream) moved(way *atomic.Int64, n int) {
	if n == 0 {
		return
	}
	way.Add(int64(n))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stall != nil {
		s.stall.Reset(s.patience)
	}
}

// end stops waiting.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stall.Stop()
	s.stall = nil
}
