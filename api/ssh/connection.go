package ssh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// keyAlgorithms are how clients may sign. RSA with SHA-1 is not among them.
var keyAlgorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256,
	ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512,
}

// What the permissions of a connection hold.
const (
	extensionHash        = "hash" // of the key, under which it is kept
	extensionFingerprint = "fingerprint"
)

// handshake is the configuration of one connection.
func (s *Server) handshake(ctx context.Context) *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		PublicKeyAuthAlgorithms: keyAlgorithms,
		MaxAuthTries:            maxAuthTries,
		ServerVersion:           "SSH-2.0-Herdbook",
		// It is called for keys that the client only asks about: nothing may follow from it but what
		// the permissions say once the key is proven.
		PublicKeyCallback: func(conn ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			hash, fingerprint := auth.KeyHash(key), ssh.FingerprintSHA256(key)
			_, err := s.Index.Token(ctx, hash)
			if err != nil && !errors.Is(err, registry.ErrNotFound) {
				s.Log.ErrorContext(ctx, "an SSH key cannot be looked up", "key", fingerprint, "error", err.Error())
			}
			if err != nil {
				s.Log.DebugContext(ctx, "an SSH key is not known", "key", fingerprint, "remote", conn.RemoteAddr().String())
				return nil, errUnknownKey
			}
			return &ssh.Permissions{Extensions: map[string]string{extensionHash: hash, extensionFingerprint: fingerprint}}, nil
		},
	}
	config.AddHostKey(s.hostKey)
	return config
}

var errUnknownKey = errors.New("unknown key")

// connection is a client with a proven key.
type connection struct {
	*Server
	conn        *ssh.ServerConn
	hash        string // of the key
	fingerprint string
	gate        gate
	sessions    sync.WaitGroup
}

// serve serves a connection until it is over. Commands run until work ends; once ending has ended none begins. Proven is
// called when the client has proven its key.
func (s *Server) serve(work, ending context.Context, raw net.Conn, proven func()) {
	defer raw.Close()
	defer s.guard(work, "an SSH connection failed")
	defer context.AfterFunc(work, func() { _ = raw.Close() })()
	stopped := context.AfterFunc(ending, func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(s.Handshake))
	conn, channels, requests, err := ssh.NewServerConn(raw, s.handshake(work))
	if err != nil {
		s.Log.DebugContext(work, "an SSH client did not come in", "remote", raw.RemoteAddr().String(), "reason", err.Error())
		return
	}
	proven()
	_ = raw.SetDeadline(time.Time{})
	c := &connection{
		Server: s, conn: conn,
		hash: conn.Permissions.Extensions[extensionHash], fingerprint: conn.Permissions.Extensions[extensionFingerprint],
	}
	c.gate.open(s.Idle, func() { _ = conn.Close() })
	defer c.gate.shut()
	if !stopped() {
		return // the server stops
	}
	defer context.AfterFunc(ending, c.gate.end)()
	c.converse(work, channels, requests)
}

// converse answers what the client asks for until the connection is over and all commands have ended.
func (c *connection) converse(work context.Context, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(work)
	defer c.sessions.Wait()
	defer cancel()
	defer c.conn.Close()
	c.sessions.Go(func() { refuse(requests) })
	places := make(chan struct{}, maxSessions)
	for asked := range channels {
		switch asked.ChannelType() {
		case "session":
		case "direct-tcpip", "direct-streamlocal@openssh.com", "x11", "auth-agent@openssh.com":
			_ = asked.Reject(ssh.Prohibited, "Herdbook forwards nothing")
			continue
		default:
			_ = asked.Reject(ssh.UnknownChannelType, "Herdbook has sessions only")
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			_ = asked.Reject(ssh.ResourceShortage, fmt.Sprintf("a connection has at most %d sessions", maxSessions))
			continue
		}
		channel, requests, err := asked.Accept()
		if err != nil {
			break // the connection is over
		}
		c.sessions.Go(func() {
			defer func() { <-places }()
			c.session(ctx, channel, requests)
		})
	}
}

// refuse answers requests that ask for what is not there, such as forwarding. A client that asks whether somebody
// is there gets an answer.
func refuse(requests <-chan *ssh.Request) {
	for r := range requests {
		if r.WantReply {
			_ = r.Reply(r.Type == "keepalive@openssh.com", nil)
		}
	}
}

// identity is who holds the key of the connection, as it is now. The key may have been revoked.
func (c *connection) identity(ctx context.Context) (access.Identity, error) {
	token, err := c.Index.Token(ctx, c.hash)
	if errors.Is(err, registry.ErrNotFound) {
		return access.Identity{}, registry.ErrWrongToken
	}
	if err != nil {
		return access.Identity{}, err
	}
	return access.Of(token)
}

// gate lets commands of a connection begin, and closes the connection when none ran for a while.
type gate struct {
	mu       sync.Mutex
	running  int
	ending   bool // no command begins any more
	idle     *time.Timer
	patience time.Duration
}

// open begins to wait for a command; close closes the connection.
func (g *gate) open(patience time.Duration, close func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.patience = patience
	g.idle = time.AfterFunc(patience, func() {
		g.mu.Lock()
		idle := g.running == 0
		g.ending = g.ending || idle
		g.mu.Unlock()
		if idle {
			close()
		}
	})
}

// enter reports whether a command may begin. It then has to leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ending {
		return false
	}
	g.running++
	g.idle.Stop()
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running--; g.running == 0 {
		g.idle.Reset(g.patience)
	}
}

// end lets no command begin any more, and closes the connection when none runs.
func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ending, g.patience = true, min(g.patience, endingGrace)
	if g.running == 0 {
		g.idle.Reset(0)
	}
}

// shut stops waiting.
func (g *gate) shut() { g.idle.Stop() }
