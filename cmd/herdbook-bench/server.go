package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// protocol is what a server speaks, by which a step finds out whom to ask.
type protocol string

const (
	speaksGit protocol = "git"
	speaksLFS protocol = "lfs"
	speaksOCI protocol = "oci" // pull
	speaksAPI protocol = "api" // Herdbook's own
	pushesOCI protocol = "oci-push"
)

// kind is a server that can be started.
type kind struct {
	name   string
	speaks []protocol
	// command is the program with its arguments; it listens on address and keeps its data in dir.
	command func(address, dir string) ([]string, error)
	ready   string // path that answers below 500 when the server is ready
	token   string // file below dir with the password, if it asks for one
}

// model is the repository that all work is done in, and artifact where OCI content is pushed to.
const (
	model    = "acme/bench"
	artifact = "acme/artifact"
)

// names of the servers that others are compared with, and of the one that is judged.
const (
	judged     = "herdbook"
	floorName  = "floor"
	gitBackend = "git http-backend"
)

// kinds are the servers of a run. The program self is this one.
func (c runCommand) kinds(self string) ([]kind, error) {
	all := []kind{
		{
			name: judged, speaks: []protocol{speaksGit, speaksLFS, speaksOCI, speaksAPI, pushesOCI}, ready: "/readyz", token: "admin-token",
			command: func(address, dir string) ([]string, error) {
				return []string{c.Herdbook, "serve", "--listen", address, "--data", dir}, nil
			},
		},
		{
			name: floorName, speaks: []protocol{speaksLFS, speaksOCI, pushesOCI}, ready: "/v2/",
			command: func(address, dir string) ([]string, error) {
				return []string{self, "floor", "--listen", address, "--data", dir}, nil
			},
		},
		{
			name: gitBackend, speaks: []protocol{speaksGit}, ready: "/",
			command: func(address, dir string) ([]string, error) {
				return []string{self, "http-backend", "--listen", address, "--data", dir, "--repository", model + ".git"}, nil
			},
		},
	}
	for _, r := range []struct{ name, flag, program string }{
		{"distribution", c.Registry, "registry"}, {"docker-registry", c.DockerRegistry, "docker-registry"},
	} {
		program := r.flag
		if program == "" {
			program, _ = exec.LookPath(r.program) // left out where it is not installed
		}
		if program != "" {
			all = append(all, kind{name: r.name, speaks: []protocol{speaksOCI, pushesOCI}, ready: "/v2/", command: distribution(program)})
		}
	}
	for _, text := range c.Rival {
		name, command, ok := strings.Cut(text, "=")
		if !ok || name == "" || command == "" {
			return nil, fmt.Errorf("a rival is NAME=COMMAND, not %q", text)
		}
		all = append(all, kind{name: name, speaks: []protocol{speaksOCI, pushesOCI}, ready: "/v2/", command: func(address, dir string) ([]string, error) {
			_, port, err := net.SplitHostPort(address)
			return []string{"env", "LISTEN=" + address, "PORT=" + port, "DATA=" + dir, "sh", "-c", command}, err
		}})
	}
	return all, nil
}

// distribution is the command line of the CNCF registry; docker-registry is an older release of it.
func distribution(program string) func(address, dir string) ([]string, error) {
	return func(address, dir string) ([]string, error) {
		config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
			"storage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", filepath.Join(dir, "content"), address)
		path := filepath.Join(dir, "config.yml")
		return []string{program, "serve", path}, os.WriteFile(path, []byte(config), 0o644)
	}
}

// server is one that runs.
type server struct {
	kind
	address  string
	password string // of user "bench"; empty where everybody may do everything
	dir      string // all that it keeps, and its log
	cmd      *exec.Cmd
	ended    chan struct{}
}

// start starts a server with an empty directory below dir and waits until it is ready.
func (k kind) start(ctx context.Context, dir string) (_ *server, err error) {
	s := &server{kind: k, ended: make(chan struct{})}
	if s.dir, err = os.MkdirTemp(dir, "server-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %s: %w", k.name, err), os.RemoveAll(s.dir))
		}
	}()
	if s.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	data := filepath.Join(s.dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return nil, err
	}
	args, err := k.command(s.address, data)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return nil, err
	}
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// Of a session of its own, so that all that it starts can be told from the rest.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	err = s.cmd.Start()
	log.Close()
	if err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	if err := s.awaitReady(ctx); err != nil {
		said, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.stop()
		return nil, fmt.Errorf("%w; it said: %s", err, lastLines(said))
	}
	if k.token != "" {
		token, err := os.ReadFile(filepath.Join(data, k.token))
		if err != nil {
			s.stop()
			return nil, err
		}
		s.password = strings.TrimSpace(string(token))
	}
	return s, nil
}

func lastLines(text []byte) []byte {
	return bytes.TrimSpace(text[max(0, len(text)-2000):])
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (s *server) awaitReady(ctx context.Context) error {
	const patience = 30 * time.Second
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+s.ready, http.NoBody)
		if err != nil {
			return err
		}
		if answer, err := client.Do(r); err == nil {
			answer.Body.Close()
			if answer.StatusCode < http.StatusInternalServerError {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ended:
			return fmt.Errorf("it ended: %v", s.cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("not ready after %s", patience)
}

func (s *server) url() string { return "http://" + s.address }

func (s *server) pid() int { return s.cmd.Process.Pid }

// stop ends the server with all that it started. What it kept stays.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	const patience = 15 * time.Second
	select {
	case <-s.ended:
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	for deadline := time.Now().Add(patience); s.killRest() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// killRest kills what is left of the server's session and reports whether there was anything.
func (s *server) killRest() (any bool) {
	all, err := processes()
	if err != nil {
		return false
	}
	for _, p := range all {
		if p.session == s.pid() && !p.ended {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
			any = true
		}
	}
	return any
}
