package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// serve answers on the address until ctx ends.
func serve(ctx context.Context, address string, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
		return server.Close()
	}
}

type floorCommand struct {
	Listen string `name:"listen" default:"127.0.0.1:8081" help:"Address to listen on (default 127.0.0.1:8081)." placeholder:"HOST:PORT"`
	Data   string `name:"data" required:"" help:"Directory of the content." placeholder:"DIR"`
}

// Help describes the command.
func (floorCommand) Help() string {
	return "It keeps content under its SHA-256 in the directory, speaks Git LFS (batch and basic transfer) and the blob and manifest parts of the OCI distribution " +
		"protocol, and trusts everybody: it is for measurements only.\n\nExample:\n\n  herdbook-bench floor --listen 127.0.0.1:8081 --data /tmp/floor"
}

// Run serves until ctx ends.
func (c floorCommand) Run(ctx context.Context) error {
	f, err := openFloor(c.Data)
	if err != nil {
		return err
	}
	defer f.Close()
	return serve(ctx, c.Listen, f)
}

type httpBackendCommand struct {
	Listen string   `name:"listen" default:"127.0.0.1:8082" help:"Address to listen on (default 127.0.0.1:8082)." placeholder:"HOST:PORT"`
	Data   string   `name:"data" required:"" help:"Directory of the repositories." placeholder:"DIR"`
	Repo   []string `name:"repository" help:"Bare repository to make, such as acme/fraud.git." placeholder:"NAME"`
}

// Help describes the command.
func (httpBackendCommand) Help() string {
	return "It makes the bare repositories in the directory and runs git http-backend for each request, with Git's settings as Herdbook has them. Everybody may push: " +
		"it is for measurements only.\n\nExample:\n\n  herdbook-bench http-backend --data /tmp/repositories --repository acme/fraud.git"
}

// Run serves until ctx ends.
func (c httpBackendCommand) Run(ctx context.Context) error {
	programs, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return fmt.Errorf("git --exec-path: %w", err)
	}
	for _, name := range c.Repo {
		cmd := exec.CommandContext(ctx, "git", "init", "-q", "--bare", "--initial-branch=main", filepath.Join(c.Data, name))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the repository %s: %w: %s", name, err, out)
		}
	}
	return serve(ctx, c.Listen, httpBackend(filepath.Join(strings.TrimSpace(string(programs)), "git-http-backend"), c.Data))
}

// gitSettings are those of Herdbook's own git processes that change what is done and kept; see
// storage/gitrepo. Without them the two would not do the same work.
var gitSettings = [][2]string{
	{"core.fsync", "all"},
	{"core.fsyncMethod", "fsync"},
	{"core.logAllRefUpdates", "false"},
	{"core.bigFileThreshold", "16m"},
	{"core.alternateRefsCommand", "true"},
	{"gc.auto", "0"},
	{"maintenance.auto", "false"},
	{"pack.threads", "2"},
	{"pack.windowMemory", "100m"},
	{"transfer.fsckObjects", "true"},
	{"receive.fsckObjects", "true"},
	{"receive.autogc", "false"},
	{"receive.unpackLimit", "1"},
	{"uploadpack.allowFilter", "true"},
	{"http.receivepack", "true"},
	{"safe.directory", "*"},
}

// gitEnvironment hands settings to git, and lets it see no others.
func gitEnvironment(home string, settings [][2]string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C", "TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0",
		fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)),
	}
	for i, s := range settings {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, s[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, s[1]))
	}
	return env
}

// httpBackend serves the repositories below root as a web server does that runs git http-backend.
func httpBackend(program, root string) http.Handler {
	env := append(gitEnvironment("/nonexistent", gitSettings), "GIT_PROJECT_ROOT="+root, "GIT_HTTP_EXPORT_ALL=1")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := cgi.Handler{Path: program, Dir: root, Env: env}
		r.TransferEncoding = nil // a body without a length is refused otherwise; http-backend reads it to its end
		h.ServeHTTP(w, r)
	})
}
