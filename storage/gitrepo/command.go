package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// environment is the whole environment of every git. Configuration from the environment beats that of a
// repository, and there is no other; so a file in a repository cannot change how it is served.
func environment(cfg Config) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/bin:/usr/bin:/bin"
	}
	env := []string{
		"PATH=" + path,
		"HOME=/nonexistent",
		"LC_ALL=C",
		"TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_OPTIONAL_LOCKS=0",
		// A published commit never reads as another one.
		"GIT_NO_REPLACE_OBJECTS=1",
		"GIT_NO_LAZY_FETCH=1",
		// No more memory at once than the largest file that git's clients send as a delta: a delta of 2 KB can stand for
		// gigabytes, and an object other than a file is held whole.
		// Source: git, wrapper.c, memory_limit_check(); git-config(1), core.bigFileThreshold.
		"GIT_ALLOC_LIMIT=512m",
	}
	config := []struct{ key, value string }{
		{"safe.directory", "*"}, // the data directory may be a volume that somebody else owns
		{"core.hooksPath", hooksDir(cfg.RunDir)},
		{"core.fsync", "all"},
		{"core.fsyncMethod", "fsync"},
		{"core.logAllRefUpdates", "false"},
		// 2 MiB instead of 191 MiB of memory for a push of one file of 200 MB.
		{"core.bigFileThreshold", "16m"},
		// Saves a for-each-ref on each push that would list our own refs once more. An empty value
		// makes git print an error to the user.
		{"core.alternateRefsCommand", "true"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"pack.threads", "2"},
		{"pack.windowMemory", "100m"},
		{"transfer.fsckObjects", "true"},
		{"receive.fsckObjects", "true"},
		{"receive.autogc", "false"},
		// Always one pack, so that there is one directory to sync: receive-pack unpacks fewer objects than the
		// limit, fast-import as many as the limit too.
		{"receive.unpackLimit", "1"},
		{"fastimport.unpackLimit", "0"},
		{"receive.maxInputSize", strconv.FormatInt(cfg.MaxPushBytes, 10)},
		{"receive.advertisePushOptions", "true"},
		{"receive.advertiseAtomic", "true"},
		{"receive.denyDeletes", "false"},
		{"receive.denyNonFastForwards", "false"},
		{"uploadpack.allowFilter", "true"},
		{"uploadpack.allowAnySHA1InWant", "false"},
		// A partial clone by protocol v0 asks for single files later; v2 may do so anyway.
		{"uploadpack.allowReachableSHA1InWant", "true"},
	}
	env = append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)))
	for i, c := range config {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, c.key), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, c.value))
	}
	return env
}

func hooksDir(runDir string) string { return filepath.Join(runDir, "hooks") }

// process is one git program. Its process group is killed when its context ends.
type process struct {
	*exec.Cmd
	spawner *spawner
	what    string       // for errors
	stopped func() error // why its context ended, if it did
	stderr  clipped
}

// command prepares a git program that works in dir.
func (s *Store) command(ctx context.Context, dir string, args ...string) *process {
	p := &process{
		spawner: s.spawner,
		what:    "git " + args[0],
		stopped: func() error { return context.Cause(ctx) },
		stderr:  clipped{most: 4 << 10},
	}
	p.Cmd = exec.CommandContext(ctx, s.program, args...)
	p.Env = append(p.Env, s.env...)
	if dir != "" {
		p.Dir = dir
		p.Env = append(p.Env, "GIT_DIR="+dir)
	}
	p.Stderr = &p.stderr
	p.SysProcAttr = childAttributes()
	p.Cancel = func() error { return killGroup(p.Process) }
	p.WaitDelay = 5 * time.Second
	return p
}

// holdLock makes the program share the lock of the directory: a server that opens it next waits for the
// program's end. The program's own children share it too.
func (p *process) holdLock(s *Store) { p.ExtraFiles = []*os.File{s.lock} }

func (p *process) start() error {
	if err := p.spawner.start(p.Cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.what, err)
	}
	return nil
}

// wait waits for the end of the program and says in its own words what went wrong. All output must have been read.
func (p *process) wait() error {
	err := p.Wait()
	if err == nil {
		return nil
	}
	if why := p.stopped(); why != nil {
		return fmt.Errorf("%s: %w", p.what, why)
	}
	if text := p.stderr.line(); text != "" {
		return fmt.Errorf("%s: %w: %s", p.what, err, text)
	}
	return fmt.Errorf("%s: %w", p.what, err)
}

func (p *process) run() error {
	if err := p.start(); err != nil {
		return err
	}
	return p.wait()
}

// output runs the program and returns what it wrote.
func (p *process) output() ([]byte, error) {
	var out bytes.Buffer
	p.Stdout = &out
	err := p.run()
	return out.Bytes(), err
}

// abandon ends a program whose output is of no more interest.
func (p *process) abandon(out io.Closer) {
	_ = killGroup(p.Process)
	_ = out.Close()
	_ = p.Wait()
}

// exitCode is the code that err says the program ended with, or -1.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// crashed reports whether err says that the program ended by a fault of its own, not because somebody killed it.
func crashed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && (status.Signal() == syscall.SIGSEGV || status.Signal() == syscall.SIGABRT || status.Signal() == syscall.SIGBUS)
}

// clipped keeps the beginning of what is written to it.
type clipped struct {
	most int
	buf  bytes.Buffer
}

func (c *clipped) Write(p []byte) (int, error) {
	c.buf.Write(p[:min(len(p), max(0, c.most-c.buf.Len()))])
	return len(p), nil
}

// line is the text on one line.
func (c *clipped) line() string {
	return strings.Join(strings.Split(strings.TrimSpace(c.buf.String()), "\n"), "; ")
}

// spawner starts all children from one thread of the operating system. The kernel kills a child when the
// thread that started it ends, not the process, and Go ends threads as it likes.
type spawner struct {
	jobs chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // and never unlocked: nobody else gets the thread
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	s.jobs <- func() { started <- cmd.Start() }
	return <-started
}

// close must only be called when all children have ended.
func (s *spawner) close() {
	close(s.jobs)
	<-s.done
}

func killGroup(p *os.Process) error { return syscall.Kill(-p.Pid, syscall.SIGKILL) }
