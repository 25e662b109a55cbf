// Package ssh serves repositories over SSH, at ssh://HOST/NAMESPACE/NAME.git: fetches, pushes, and the credentials
// with which Git LFS goes on over HTTP.
//
// A client proves who it is with a key that an administrator added; the user name does not matter, and there is
// no other way in, for strangers neither. What it may do is asked for each command, of the key as it is then.
// There is no shell, no terminal and no forwarding, and of the client's environment only the version of Git's
// protocol is looked at.
//
// The same lifecycle that takes pushes over HTTP takes them here.
// Source: RFC 4252 to 4254; git, connect.c; docs/api/server-discovery.md of Git LFS, "SSH".
package ssh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// Index finds models by name and keys by what is kept of them.
type Index interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
	auth.Tokens
}

// Config is what a Server works with.
type Config struct {
	Index     Index
	Lifecycle *lifecycle.Service
	Transport Transport
	// Lines tells the user what came of a push.
	Lines func(m registry.Model, r lifecycle.Report) []string
	// Pushed counts a push by what came of it: "accepted", "refused" or "failed".
	Pushed func(outcome string)
	// Authorization makes the value of the header by which the holder of a key may use Git LFS of a model, without an ID
	// when there is none of that name yet, for a while: to read, or to upload too.
	Authorization func(m registry.Model, tokenID string, upload bool) (header string, expiresIn time.Duration)
	PublicURL     *url.URL // where clients reach the server over HTTP
	HostKey       []byte   // a private key as OpenSSH keeps it; see [NewHostKey]
	Log           *slog.Logger
	Metrics       prometheus.Registerer

	// Handshake is how long a client may take to prove who it is; by default 10 s.
	Handshake time.Duration
	// Idle is how long a connection stays on which no command runs; by default 1 min.
	Idle time.Duration
	// Stall is how long a command runs of which no byte goes either way; by default 15 min. It is longer than any
	// pause of Git's: both sides send something while they compute.
	Stall time.Duration
	// Drain is how long commands may take to end when the server stops; by default 30 s.
	Drain time.Duration
	// MaxConnections is how many there are at a time; by default 1000.
	MaxConnections int
	// MaxStrangers is how many connections from one address may be without a proven key; by default 10.
	MaxStrangers int
	// MaxCommands is how many commands of one key run at a time; by default 100. By protocols v0 and v1 each fetch keeps
	// a process of git, whether or not the client says anything.
	MaxCommands int
}

// The limits that nobody has to change.
const (
	maxAuthTries = 6               // keys that a client may offer
	maxSessions  = 10              // of one connection at a time, like that of sshd
	endingGrace  = time.Second     // for a client to read the last answer when the server stops
	cutGrace     = 5 * time.Second // for commands to end that were cut off
	acceptPause  = 50 * time.Millisecond
)

func (c *Config) setDefaults() {
	for field, value := range map[*time.Duration]time.Duration{
		&c.Handshake: 10 * time.Second, &c.Idle: time.Minute, &c.Stall: 15 * time.Minute, &c.Drain: 30 * time.Second,
	} {
		if *field == 0 {
			*field = value
		}
	}
	for field, value := range map[*int]int{&c.MaxConnections: 1000, &c.MaxStrangers: 10, &c.MaxCommands: 100} {
		if *field == 0 {
			*field = value
		}
	}
}

// Server is the door.
type Server struct {
	Config
	hostKey ssh.Signer
	metrics metrics

	mu        sync.Mutex
	open      int                // connections
	strangers map[netip.Addr]int // connections without a proven key, by address
	commands  map[string]int     // that run, by the hash of the key
}

// New assembles a Server.
func New(c Config) (*Server, error) {
	c.setDefaults()
	key, err := parseHostKey(c.HostKey)
	if err != nil {
		return nil, err
	}
	return &Server{Config: c, hostKey: key, metrics: newMetrics(c.Metrics), strangers: map[netip.Addr]int{}, commands: map[string]int{}}, nil
}

// Fingerprint is that of the host key, as clients show it.
func (s *Server) Fingerprint() string { return ssh.FingerprintSHA256(s.hostKey.PublicKey()) }

// Serve answers until ctx ends, and then waits for the commands that run, at most for the configured time. It closes
// the listener. A Server serves one listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()

	ending, end := context.WithCancel(ctx)
	defer end()
	var connections sync.WaitGroup
	err := s.accept(ctx, l, func(conn net.Conn) {
		proven, left, ok := s.admit(address(conn.RemoteAddr()))
		if !ok {
			s.metrics.refused.Inc()
			s.Log.DebugContext(ctx, "there are too many SSH connections", "remote", conn.RemoteAddr().String())
			_ = conn.Close()
			return
		}
		connections.Go(func() {
			defer left()
			s.serve(work, ending, conn, proven)
		})
	})
	end()
	ended := make(chan struct{})
	go func() {
		connections.Wait()
		close(ended)
	}()
	for _, step := range []struct {
		patience time.Duration
		left     string
	}{{s.Drain, "SSH sessions were cut off"}, {cutGrace, "pushes over SSH that were cut off are still being finished"}} {
		patience := time.NewTimer(step.patience)
		select {
		case <-ended:
			patience.Stop()
			return err
		case <-patience.C:
			s.Log.WarnContext(ctx, step.left)
			cut()
		}
	}
	return err
}

// accept gives each connection to serve until ctx ends.
func (s *Server) accept(ctx context.Context, l net.Listener, serve func(net.Conn)) error {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			serve(conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept SSH connections: %w", err)
		default: // out of descriptors, most likely
			s.Log.ErrorContext(ctx, "an SSH connection cannot be accepted", "error", err.Error())
			pause := time.NewTimer(acceptPause)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
		}
	}
}

// admit takes a connection in, unless there are too many. Proven is called when its key is proven or the
// connection is over, left when it is over.
func (s *Server) admit(from netip.Addr) (proven, left func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= s.MaxConnections || s.strangers[from] >= s.MaxStrangers {
		return nil, nil, false
	}
	s.open++
	s.strangers[from]++
	proven = sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.strangers[from]--; s.strangers[from] == 0 {
			delete(s.strangers, from)
		}
	})
	left = func() {
		proven()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open--
	}
	return proven, left, true
}

// beginCommand lets a command of a key run, unless too many do. End must be called when it has ended.
func (s *Server) beginCommand(hash string) (end func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.commands[hash] >= s.MaxCommands {
		return nil, false
	}
	s.commands[hash]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.commands[hash]--; s.commands[hash] == 0 {
			delete(s.commands, hash)
		}
	}, true
}

// address is whose connections are counted together: those from one IPv4 address, or from one IPv6 network of the
// smallest size that is given out.
func address(a net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip
	}
	network, err := ip.Prefix(64)
	if err != nil {
		return ip
	}
	return network.Addr()
}

// guard ends what panics, and not the server.
func (s *Server) guard(ctx context.Context, what string) {
	if v := recover(); v != nil {
		s.Log.ErrorContext(ctx, what, "error", fmt.Sprintf("panic: %v\n%s", v, debug.Stack()))
	}
}

// metrics are what is counted of every command.
type metrics struct {
	commands *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	refused  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "herdbook_ssh_commands_total", Help: "Commands run over SSH, by program and exit status.",
		}, []string{"program", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "herdbook_ssh_command_duration_seconds", Help: "Time to run a command over SSH, by program.",
			Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 600},
		}, []string{"program"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "herdbook_ssh_bytes_total", Help: "Bytes of commands over SSH, by direction as the server sees it.",
		}, []string{"direction"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "herdbook_ssh_connections_refused_total", Help: "SSH connections that were closed at once because there were too many.",
		}),
	}
	r.MustRegister(m.commands, m.seconds, m.bytes, m.refused)
	return m
}
