package ssh_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	xssh "golang.org/x/crypto/ssh"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/api/ssh"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// server is a server with SSH beside HTTP.
type server struct {
	*apitest.Server
	addr    string
	metrics *prometheus.Registry
	signer  *lfs.Signer
	seen    *transport
	ended   <-chan error
	end     context.CancelFunc
}

// transport fetches from the store, and notes what it is asked.
type transport struct {
	store *gitrepo.Store

	mu        sync.Mutex
	protocols []string
}

func (t *transport) note(protocol string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.protocols = append(t.protocols, protocol)
}

func (t *transport) ConnectUploadPack(ctx context.Context, name registry.ModelName, protocol string, s ssh.Stream) error {
	t.note(protocol)
	return t.store.ConnectUploadPack(ctx, gitrepo.UploadPack{
		Repository: t.store.Repository(name), GitProtocol: protocol, In: s.In, Out: s.Out, Stop: s.Stop, Allowed: s.Allowed,
	})
}

// ConnectReceivePack takes no push: what comes of one is tested with real clients, in cmd/herdbook.
func (t *transport) ConnectReceivePack(ctx context.Context, r ssh.Receive) error {
	t.note(r.Protocol)
	return t.store.ConnectReceivePack(ctx, gitrepo.ReceivePack{
		Repository: t.store.Repository(r.Model), GitProtocol: r.Protocol, PushID: r.PushID, In: r.Stream.In, Out: r.Stream.Out, Stop: r.Stream.Stop,
		Check: func(context.Context, *gitrepo.Push) error { return errors.New("no push is taken here") },
	}, r.Exists, r.Begin)
}

// start starts a server with a public model acme/fraud.
func start(tb testing.TB, change ...func(*ssh.Config)) *server {
	tb.Helper()
	s := &server{metrics: prometheus.NewRegistry(), Server: apitest.Start(tb)}
	s.signer = s.Signer
	s.Model("acme/fraud", registry.Public)
	s.seen = &transport{store: s.Data.Repositories}
	public, err := url.Parse(s.URL)
	if err != nil {
		tb.Fatal(err)
	}
	config := ssh.Config{
		Index: s.Data.Index, Lifecycle: s.Lifecycle, Transport: s.seen,
		Lines: func(registry.Model, lifecycle.Report) []string { return nil }, Pushed: func(string) {},
		Authorization: func(m registry.Model, tokenID string, upload bool) (string, time.Duration) {
			return s.signer.Authorization(lfs.Session{Model: m.Name.String(), ModelID: m.ID, TokenID: tokenID, Upload: upload}, time.Now())
		},
		PublicURL: public, HostKey: ssh.NewHostKey(), Log: slog.New(slog.NewJSONHandler(s.Log, &slog.HandlerOptions{Level: slog.LevelDebug})), Metrics: s.metrics,
	}
	for _, f := range change {
		f(&config)
	}
	s.addr, s.end, s.ended = serve(tb, config)
	return s
}

// serve serves until the test ends or end is called; ended then gets what Serve returns.
func serve(tb testing.TB, config ssh.Config) (addr string, end context.CancelFunc, ended <-chan error) {
	tb.Helper()
	door, err := ssh.New(config)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		defer close(done)
		result <- door.Serve(ctx, l)
	}()
	tb.Cleanup(func() {
		cancel()
		<-done
	})
	return l.Addr().String(), cancel, result
}

// newKey is a key that nobody knows.
func newKey(tb testing.TB) xssh.Signer {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := xssh.NewSignerFromKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return signer
}

// add lets the holder of a key in.
func (s *server) add(tb testing.TB, owner string, role access.Role, key xssh.Signer) registry.Token {
	tb.Helper()
	token, err := auth.NewKey(owner, role, string(xssh.MarshalAuthorizedKey(key.PublicKey())))
	if err != nil {
		tb.Fatal(err)
	}
	s.Commit(registry.TokenCreated{Token: token})
	return token
}

// user is a client whose key the server knows.
func (s *server) user(tb testing.TB, owner string, role access.Role) *xssh.Client {
	tb.Helper()
	key := newKey(tb)
	s.add(tb, owner, role, key)
	return s.dial(tb, key)
}

func dial(addr string, methods ...xssh.AuthMethod) (*xssh.Client, error) {
	return xssh.Dial("tcp", addr, &xssh.ClientConfig{
		User: "git", Auth: methods, HostKeyCallback: xssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second,
	})
}

func (s *server) dial(tb testing.TB, keys ...xssh.Signer) *xssh.Client {
	tb.Helper()
	c, err := dial(s.addr, xssh.PublicKeys(keys...))
	if err != nil {
		tb.Fatalf("the key does not let its holder in: %v", err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// answer is how a command ended.
type answer struct {
	status      int // -1 when the server did not say
	out, stderr string
}

func run(tb testing.TB, c *xssh.Client, line, in string) answer {
	tb.Helper()
	session, err := c.NewSession()
	if err != nil {
		tb.Fatalf("a session: %v", err)
	}
	defer session.Close()
	var out, stderr bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = strings.NewReader(in), &out, &stderr
	err = session.Run(line)
	a := answer{0, out.String(), stderr.String()}
	if exit := new(xssh.ExitError); errors.As(err, &exit) {
		a.status = exit.ExitStatus()
	} else if err != nil {
		a.status = -1
	}
	return a
}

func TestCommands(t *testing.T) {
	s := start(t)
	s.Model("acme/secret", registry.Private)
	reader, writer := s.user(t, "rita", access.Reader), s.user(t, "will", access.Writer)
	tests := []struct {
		name, line, in string
		client         *xssh.Client
		status         int
		out, stderr    string // begin so; empty is empty
	}{
		{"fetch", "git-upload-pack '/acme/fraud.git'", "0000", reader, 0, "", ""},
		{"fetch what is private", "git-upload-pack acme/secret", "0000", reader, 0, "", ""},
		{"fetch from no model", "git-upload-pack '/acme/none.git'", "", reader, 128, "", "herdbook: model acme/none: not found\n"},
		{"fetch from a name that cannot be", "git-upload-pack '/api/none.git'", "", reader, 128, "", "herdbook: \"api\" in a model's name is a word reserved"},
		{"fetch, and what is no request", "git-upload-pack '/acme/fraud.git'", "hello", reader, 128, "", "herdbook: fetch of acme/fraud: the request is not one of Git's protocol"},
		{"push", "git-receive-pack '/acme/fraud.git'", "0000", writer, 0, "", ""},
		{"push to a model that is to be", "git-receive-pack '/acme/fresh.git'", "0000", writer, 0, "", ""},
		{"push by a reader", "git-receive-pack '/acme/fraud.git'", "", reader, 128, "", "herdbook: model acme/fraud: not allowed\n"},
		{"push by a reader to a model that is to be", "git-receive-pack '/acme/fresh.git'", "", reader, 128, "", "herdbook: not allowed\n"},
		{"download", "git-lfs-authenticate /acme/fraud.git download", "", reader, 0, `{"href":"` + s.URL + `/acme/fraud.git/info/lfs","header":{"Authorization":"Basic `, ""},
		{"upload", "git-lfs-authenticate acme/fraud upload", "", writer, 0, `{"href":"` + s.URL + `/acme/fraud.git/info/lfs"`, ""},
		{"upload to a model that is to be", "git-lfs-authenticate /acme/fresh.git upload", "", writer, 0, `{"href":"` + s.URL + `/acme/fresh.git/info/lfs"`, ""},
		{"upload by a reader", "git-lfs-authenticate /acme/fraud.git upload", "", reader, 128, "", "herdbook: not allowed\n"},
		{"download from no model", "git-lfs-authenticate /acme/fresh.git download", "", reader, 128, "", "herdbook: model acme/fresh: not found\n"},
		{"LFS over SSH alone", "git-lfs-transfer /acme/fraud.git upload", "", writer, 1, "", "herdbook: Git LFS goes on over HTTP"},
		{"another command", "ls", "", writer, 128, "", "herdbook: Herdbook runs no commands but those of Git and Git LFS"},
		{"two commands", "git-upload-pack '/acme/fraud.git'; ls", "", writer, 128, "", "herdbook: Herdbook runs no commands"},
	}
	for _, test := range tests {
		a := run(t, test.client, test.line, test.in)
		if a.status != test.status || !begins(a.out, test.out) && !strings.Contains(test.line, "-pack") || !begins(a.stderr, test.stderr) {
			t.Errorf("%s: %+v, want %d with %q and %q", test.name, a, test.status, test.out, test.stderr)
		}
	}
	if _, err := s.Data.Index.ModelByName(t.Context(), registry.MustModelName("acme/fresh")); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("ModelByName of what was only looked at = %v, want ErrNotFound", err)
	}
}

// begins reports whether text begins with want, or is empty when that is.
func begins(text, want string) bool {
	return strings.HasPrefix(text, want) && (want != "" || text == "")
}

func TestShell(t *testing.T) {
	s := start(t)
	client := s.user(t, "ada", access.Writer)
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	session.Stderr = &stderr
	if err := session.RequestPty("xterm", 24, 80, nil); err == nil {
		t.Error("a terminal was given out")
	}
	if err := session.Shell(); err != nil {
		t.Fatal(err)
	}
	var exit *xssh.ExitError
	if err := session.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 1 || !strings.HasPrefix(stderr.String(), "Hi ada! Herdbook gives no shell") {
		t.Errorf("a shell: %v, %q; want status 1 and a greeting", err, stderr.String())
	}
}

// TestRefusedRequests: what sshd has, and nobody gets here.
func TestRefusedRequests(t *testing.T) {
	s := start(t)
	client := s.user(t, "ada", access.Admin)
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	type env struct{ Name, Value string }
	for _, test := range []struct {
		kind    string
		payload any
		want    bool
	}{
		{"pty-req", nil, false},
		{"x11-req", nil, false},
		{"auth-agent-req@openssh.com", nil, false},
		{"subsystem", struct{ Name string }{"sftp"}, false},
		{"window-change", nil, false},
		{"signal", nil, false},
		{"env", nil, false},
		{"exec", nil, false},
		{"env", env{"LD_PRELOAD", "/tmp/x.so"}, false},
		{"env", env{"GIT_SSH_COMMAND", "id"}, false},
		{"env", env{"GIT_PROTOCOL_FROM_USER", "version=2"}, false},
		{"env", env{"git_protocol", "version=2"}, false},
		{"env", env{"GIT_PROTOCOL", "version=3"}, false},
		{"env", env{"GIT_PROTOCOL", "version=2:x"}, false},
		{"env", env{"GIT_PROTOCOL", "version=2\nLD_PRELOAD=x"}, false},
		{"env", env{"GIT_PROTOCOL", ""}, false},
		{"env", env{"GIT_PROTOCOL", "version=2"}, true},
		{"keepalive@openssh.com", nil, true},
	} {
		var payload []byte
		if test.payload != nil {
			payload = xssh.Marshal(test.payload)
		}
		if got, err := session.SendRequest(test.kind, true, payload); err != nil || got != test.want {
			t.Errorf("request %s %q = %v, %v; want %v", test.kind, payload, got, err, test.want)
		}
	}
	for _, kind := range []string{"tcpip-forward", "streamlocal-forward@openssh.com", "no-more-sessions@openssh.com", "keepalive@openssh.com"} {
		if got, _, err := client.SendRequest(kind, true, nil); err != nil || got != (kind == "keepalive@openssh.com") {
			t.Errorf("request %s of the connection = %v, %v", kind, got, err)
		}
	}
	for kind, want := range map[string]xssh.RejectionReason{
		"direct-tcpip": xssh.Prohibited, "direct-streamlocal@openssh.com": xssh.Prohibited, "x11": xssh.Prohibited,
		"auth-agent@openssh.com": xssh.Prohibited, "tun@openssh.com": xssh.UnknownChannelType,
	} {
		_, _, err := client.OpenChannel(kind, nil)
		var refused *xssh.OpenChannelError
		if !errors.As(err, &refused) || refused.Reason != want {
			t.Errorf("channel %s: %v, want %v", kind, err, want)
		}
	}
	if _, err := client.Dial("tcp", strings.TrimPrefix(s.URL, "http://")); err == nil {
		t.Error("a connection was forwarded")
	}
	var sessions []*xssh.Session
	for range 9 {
		more, err := client.NewSession()
		if err != nil {
			t.Fatalf("session %d: %v", len(sessions)+2, err)
		}
		sessions = append(sessions, more)
	}
	if _, err := client.NewSession(); err == nil {
		t.Error("a connection has eleven sessions")
	}
	sessions[0].Close()
	session.Close()
}

// TestProtocol: the version of the protocol is all that reaches the transport of what the client sets.
func TestProtocol(t *testing.T) {
	s := start(t)
	client := s.user(t, "ada", access.Writer)
	for _, value := range []string{"version=2", "version=1", "version=4", ""} {
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		session.Stdin = strings.NewReader("0000")
		_ = session.Setenv("GIT_PROTOCOL", value)
		out, err := session.Output("git-upload-pack '/acme/fraud.git'")
		if err != nil {
			t.Errorf("with GIT_PROTOCOL %q: %v", value, err)
		}
		if want := map[string]string{"version=2": "000eversion 2\n", "version=1": "000eversion 1\n"}[value]; !strings.HasPrefix(string(out), want) {
			t.Errorf("with GIT_PROTOCOL %q the answer begins with %.40q, want %q", value, out, want)
		}
	}
	if got := strings.Join(s.seen.protocols, ","); got != "version=2,version=1,," {
		t.Errorf("the transport was told %q", got)
	}
}

// stolen offers a public key whose private half somebody else has.
type stolen struct {
	xssh.Signer
	public xssh.PublicKey
}

func (s stolen) PublicKey() xssh.PublicKey { return s.public }

// TestAuthentication: a known key, proven, and nothing else.
func TestAuthentication(t *testing.T) {
	s := start(t)
	admin, own := newKey(t), newKey(t)
	s.add(t, "ada", access.Admin, admin)
	s.add(t, "rita", access.Reader, own)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := xssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	s.add(t, "ron", access.Reader, rsaKey)
	with := func(algorithm string) xssh.Signer {
		signer, err := xssh.NewSignerWithAlgorithms(rsaKey.(xssh.AlgorithmSigner), []string{algorithm})
		if err != nil {
			t.Fatal(err)
		}
		return signer
	}
	cert := &xssh.Certificate{Key: admin.PublicKey(), CertType: xssh.UserCert, ValidBefore: xssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, newKey(t)); err != nil {
		t.Fatal(err)
	}
	certified, err := xssh.NewCertSigner(cert, admin)
	if err != nil {
		t.Fatal(err)
	}
	many := []xssh.Signer{newKey(t), newKey(t), newKey(t), newKey(t), newKey(t), newKey(t), own}
	tests := []struct {
		name   string
		method xssh.AuthMethod
		want   string // who it is; empty for nobody
	}{
		{"own key", xssh.PublicKeys(own), "rita"},
		{"rsa with SHA-256", xssh.PublicKeys(with(xssh.KeyAlgoRSASHA256)), "ron"},
		{"rsa with SHA-512", xssh.PublicKeys(with(xssh.KeyAlgoRSASHA512)), "ron"},
		{"rsa with SHA-1", xssh.PublicKeys(with(xssh.KeyAlgoRSA)), ""},
		{"unknown key", xssh.PublicKeys(newKey(t)), ""},
		{"key of somebody else", xssh.PublicKeys(stolen{own, admin.PublicKey()}), ""},
		{"unknown key, then the own", xssh.PublicKeys(newKey(t), own), "rita"},
		{"certificate that nobody here signed", xssh.PublicKeys(certified), ""},
		{"too many keys", xssh.PublicKeys(many...), ""},
		{"token as a password", xssh.Password(s.Token), ""},
		{"questions", xssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil }), ""},
	}
	for _, test := range tests {
		got := ""
		if c, err := dial(s.addr, test.method); err == nil {
			a := run(t, c, "git-lfs-authenticate acme/fraud download", "")
			var endpoint struct{ Header map[string]string }
			if err := json.Unmarshal([]byte(a.out), &endpoint); err != nil {
				t.Errorf("%s: %+v: %v", test.name, a, err)
			}
			got = s.owner(t, endpoint.Header["Authorization"])
			c.Close()
		}
		if got != test.want {
			t.Errorf("%s: the client is %q, want %q", test.name, got, test.want)
		}
	}
	if _, err := dial(s.addr); err == nil {
		t.Error("a client without a key came in")
	}
	if log := s.Log.String(); strings.Contains(log, strings.Fields(string(xssh.MarshalAuthorizedKey(own.PublicKey())))[1]) || !strings.Contains(log, xssh.FingerprintSHA256(own.PublicKey())) {
		t.Error("the log does not name keys by their fingerprint only")
	}
}

// owner is who a session of Git LFS is for.
func (s *server) owner(tb testing.TB, header string) string {
	tb.Helper()
	user, ok := basicUser(header)
	session, valid := s.signer.Session(user, time.Now())
	if !ok || !valid {
		tb.Fatalf("Session of %q is none", header)
	}
	token, err := s.Data.Index.TokenByID(tb.Context(), session.TokenID)
	if err != nil {
		tb.Fatal(err)
	}
	return token.Owner
}

// TestRevoked: a key is worth nothing from then on, also on a connection that is open.
func TestRevoked(t *testing.T) {
	s := start(t)
	key := newKey(t)
	token := s.add(t, "ada", access.Writer, key)
	client := s.dial(t, key)
	if a := run(t, client, "git-upload-pack '/acme/fraud.git'", "0000"); a.status != 0 {
		t.Fatalf("a fetch with the key: %+v", a)
	}
	by := lifecycle.Request{Identity: access.Identity{Name: apitest.Admin, Role: access.Admin}}
	if err := s.Lifecycle.RevokeToken(t.Context(), by, token.ID); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"git-upload-pack '/acme/fraud.git'", "git-receive-pack '/acme/fraud.git'", "git-lfs-authenticate acme/fraud download", "git-upload-pack acme/none", "ls",
	} {
		if a := run(t, client, line, "0000"); a.status != 128 || a.out != "" || a.stderr != "herdbook: this key does not let you in any more: it was revoked\n" {
			t.Errorf("%s with a revoked key: %+v", line, a)
		}
	}
	if _, err := dial(s.addr, xssh.PublicKeys(key)); err == nil {
		t.Error("a revoked key let its holder in")
	}
}

// TestObserved: commands are counted and logged.
func TestObserved(t *testing.T) {
	s := start(t)
	client := s.user(t, "ada", access.Writer)
	run(t, client, "git-upload-pack '/acme/fraud.git'", "0000")
	run(t, client, "git-upload-pack '/acme/none.git'", "")
	run(t, client, "rm -rf secret", "")
	client.Close()
	s.end()
	<-s.ended
	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		if family.GetName() == "herdbook_ssh_commands_total" {
			for _, m := range family.GetMetric() {
				got[m.GetLabel()[0].GetValue()+" "+m.GetLabel()[1].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if diff := cmp.Diff(map[string]float64{"git-upload-pack 0": 1, "git-upload-pack 128": 1, "other 128": 1}, got); diff != "" {
		t.Errorf("the counts of commands by program and status (-want +got):\n%s", diff)
	}
	log := s.Log.String()
	for _, want := range []string{
		`"protocol":"ssh","program":"git-upload-pack","model":"acme/fraud","status":0,`, `"program":"git-upload-pack","model":"acme/none","status":128`, `"actor":"ada","key":"SHA256:`, `"remote":"127.0.0.1:`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	if strings.Contains(log, "secret") {
		t.Errorf("the log has a command line in it:\n%s", log)
	}
}

func TestHostKey(t *testing.T) {
	key := ssh.NewHostKey()
	config := ssh.Config{HostKey: key, Metrics: prometheus.NewRegistry()}
	one, err := ssh.New(config)
	if err != nil {
		t.Fatal(err)
	}
	config.Metrics = prometheus.NewRegistry()
	two, err := ssh.New(config)
	if err != nil || one.Fingerprint() != two.Fingerprint() || !strings.HasPrefix(one.Fingerprint(), "SHA256:") {
		t.Errorf("Fingerprint of one key = %q and %q, %v", one.Fingerprint(), two.Fingerprint(), err)
	}
	if !bytes.HasPrefix(key, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\n")) || bytes.Equal(key, ssh.NewHostKey()) {
		t.Errorf("NewHostKey = %s", key)
	}
	for _, wrong := range []string{"", "hello", string(key[:100])} {
		if _, err := ssh.New(ssh.Config{HostKey: []byte(wrong), Metrics: prometheus.NewRegistry()}); err == nil || len(wrong) > 10 && strings.Contains(err.Error(), wrong) {
			t.Errorf("New with the host key %q = %v, want an error without the key", wrong, err)
		}
	}
}

// BenchmarkConnect is what a command costs beside its work: a connection, its handshake and an answer.
func BenchmarkConnect(b *testing.B) {
	s := start(b)
	key := newKey(b)
	s.add(b, "ada", access.Writer, key)
	for b.Loop() {
		c, err := dial(s.addr, xssh.PublicKeys(key))
		if err != nil {
			b.Fatal(err)
		}
		if a := run(b, c, "git-lfs-authenticate acme/fraud download", ""); a.status != 0 {
			b.Fatalf("%+v", a)
		}
		c.Close()
	}
}

// BenchmarkLsRefs lists the refs on a connection that is there.
func BenchmarkLsRefs(b *testing.B) {
	s := start(b)
	client := s.user(b, "ada", access.Writer)
	for b.Loop() {
		session, err := client.NewSession()
		if err != nil {
			b.Fatal(err)
		}
		_ = session.Setenv("GIT_PROTOCOL", "version=2")
		session.Stdin = strings.NewReader("0014command=ls-refs\n00010009peel\n000csymrefs\n00000000")
		out, err := session.Output("git-upload-pack acme/fraud")
		if err != nil || !bytes.HasSuffix(out, []byte("0000")) {
			b.Fatalf("%q, %v", out, err)
		}
	}
}

// BenchmarkStream sends bytes through a session.
func BenchmarkStream(b *testing.B) {
	const size = 16 << 20
	s := start(b, func(c *ssh.Config) { c.Transport = flood(size) })
	client := s.user(b, "ada", access.Writer)
	b.SetBytes(size)
	for b.Loop() {
		session, err := client.NewSession()
		if err != nil {
			b.Fatal(err)
		}
		out, err := session.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := session.Start("git-upload-pack acme/fraud"); err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, out); n != size || err != nil {
			b.Fatalf("%d bytes came, %v", n, err)
		}
		session.Close()
	}
}

// flood sends so many bytes.
type flood int

func (f flood) ConnectUploadPack(_ context.Context, _ registry.ModelName, _ string, s ssh.Stream) error {
	buf := make([]byte, 64<<10)
	for sent := 0; sent < int(f); sent += len(buf) {
		if _, err := s.Out.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func (flood) ConnectReceivePack(context.Context, ssh.Receive) error { return nil }
