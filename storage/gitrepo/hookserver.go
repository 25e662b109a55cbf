package gitrepo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

//go:embed hookbin
var hookbin embed.FS

// The hook program in hookbin, put there by "make build".
const embeddedHook = "hookbin/herdbook-hook"

// How long a hook may take to say what it wants.
const hookRequestWait = 10 * time.Second

// The longest path of a Unix socket that every system takes.
// Source: sun_path in unix(7) has 108 bytes, 104 on BSD, with the final NUL.
const maxSocketPath = 103

// hookServer installs the hook and answers it.
type hookServer struct {
	store    *Store
	program  string // the installed hook
	socket   string
	tempDir  string // holds the socket where the run directory's path is too long for it
	listener net.Listener

	accepting sync.WaitGroup

	mu     sync.Mutex
	last   uint64
	pushes map[string]*pendingPush
}

// pendingPush is a push that a running receive-pack serves.
type pendingPush struct {
	number string
	secret string

	id    string
	repo  *Repository
	check func(hookCtx context.Context, push *Push) error // its context ends when the hook does

	handling sync.WaitGroup // connections
	asked    atomic.Bool    // a hook was here; there is one for each push

	// accepted is set before the hook is told to let the refs move; updates are from then on constant.
	accepted atomic.Bool
	updates  []registry.RefUpdate
	whole    wholePack // what it brings, if that is one
}

func openHookServer(s *Store) (*hookServer, error) {
	h := &hookServer{
		store:   s,
		program: filepath.Join(hooksDir(s.cfg.RunDir), hook.Name),
		socket:  filepath.Join(s.cfg.RunDir, "hook.sock"),
		pushes:  map[string]*pendingPush{},
	}
	if err := h.install(); err != nil {
		return nil, fmt.Errorf("install the hook: %w", err)
	}
	if len(h.socket) > maxSocketPath {
		dir, err := shortTempDir()
		if err != nil {
			return nil, fmt.Errorf("make a directory for the hook's socket: %w", err)
		}
		h.tempDir, h.socket = dir, filepath.Join(dir, "hook.sock")
	}
	if err := h.listen(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the hook: %w", err), os.RemoveAll(h.tempDir))
	}
	h.accepting.Go(h.accept)
	return h, nil
}

// shortTempDir makes a directory for us alone with a path that is short enough for a socket.
func shortTempDir() (string, error) {
	dir, err := os.MkdirTemp("", "herdbook-")
	if err == nil && len(dir) > maxSocketPath-len("/hook.sock") {
		err = errors.Join(os.Remove(dir), fs.ErrInvalid)
	}
	if err != nil {
		dir, err = os.MkdirTemp("/tmp", "herdbook-")
	}
	return dir, err
}

func (h *hookServer) listen() error {
	if err := os.Remove(h.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(h.socket, 0o600); err != nil {
		return closeAnd(err, l)
	}
	h.listener = l
	return nil
}

// install puts the hook in its place: the small program if this one carries it, or this one itself, whose
// main then has to ask [hook.Wanted].
func (h *hookServer) install() error {
	dir := filepath.Dir(h.program)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp := filepath.Join(dir, ".new-"+rand.Text())
	program, err := hookbin.ReadFile(embeddedHook)
	switch {
	case err == nil:
		// A child that is started meanwhile would keep the file open for writing, and so from being executed.
		syscall.ForkLock.RLock()
		err = os.WriteFile(temp, program, 0o700)
		syscall.ForkLock.RUnlock()
	case errors.Is(err, fs.ErrNotExist):
		var self string
		if self, err = os.Executable(); err == nil {
			err = os.Symlink(self, temp)
		}
	}
	if err == nil {
		err = os.Rename(temp, h.program)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return nil
}

// ready makes sure that git will find the hook. Git lets a push pass where there is none that it may execute.
func (h *hookServer) ready() error {
	if unix.Access(h.program, unix.X_OK) == nil {
		return nil
	}
	h.store.log.Warn("the hook is gone; installing it again", "path", h.program)
	if err := h.install(); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	if err := unix.Access(h.program, unix.X_OK); err != nil {
		return fmt.Errorf("execute the hook %s: %w", h.program, err)
	}
	return nil
}

// try runs the hook as git would.
func (h *hookServer) try(ctx context.Context) error {
	if err := h.ready(); err != nil {
		return err
	}
	p := h.expect("", nil, func(context.Context, *Push) error { return nil })
	defer h.forget(p)
	cmd := h.store.command(ctx, "", "hook")
	cmd.Path, cmd.Args, cmd.Err = h.program, []string{h.program}, nil
	cmd.what = "hook"
	cmd.Env = append(cmd.Env, h.environment(p)...)
	if err := cmd.run(); err != nil {
		return err
	}
	if !p.accepted.Load() {
		return errors.New("it ended well and did not call back: the program's main has to call hook.Main when hook.Wanted")
	}
	return nil
}

// environment is what the hook of p finds in its environment.
func (h *hookServer) environment(p *pendingPush) []string {
	return []string{hook.EnvSocket + "=" + h.socket, hook.EnvPush + "=" + p.number, hook.EnvSecret + "=" + p.secret}
}

// expect makes the hook of a push known. It must be forgotten.
func (h *hookServer) expect(id string, repo *Repository, check func(context.Context, *Push) error) *pendingPush {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	p := &pendingPush{number: strconv.FormatUint(h.last, 10), secret: rand.Text(), id: id, repo: repo, check: check}
	h.pushes[p.number] = p
	return p
}

// forget waits until the hook's connection is answered and takes no other.
func (h *hookServer) forget(p *pendingPush) {
	h.mu.Lock()
	delete(h.pushes, p.number)
	h.mu.Unlock()
	p.handling.Wait()
}

// find returns the push that a hook belongs to, marked as being handled.
func (h *hookServer) find(req hook.Request) (*pendingPush, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pushes[req.Push]
	if p == nil || subtle.ConstantTimeCompare([]byte(p.secret), []byte(req.Secret)) != 1 || p.asked.Swap(true) {
		return nil, false
	}
	p.handling.Add(1)
	return p, true
}

func (h *hookServer) accept() {
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := h.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, most likely. Hooks wait in the queue meanwhile.
			h.store.log.Error("accept the connection of a hook", "err", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		serving.Go(func() {
			defer conn.Close()
			h.serve(conn)
		})
	}
}

func (h *hookServer) close() error {
	err := h.listener.Close() // removes the socket too
	h.accepting.Wait()
	if h.tempDir != "" {
		err = errors.Join(err, os.RemoveAll(h.tempDir))
	}
	return err
}

// serve answers one hook. When an answer cannot be written, the hook refuses the push.
func (h *hookServer) serve(conn net.Conn) {
	log := h.store.log
	_ = conn.SetReadDeadline(time.Now().Add(hookRequestWait))
	req, err := hook.ReadRequest(conn)
	if err != nil {
		log.Error("a hook is not understood", "err", err)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	p, ok := h.find(req)
	if !ok {
		log.Error("a hook belongs to no push that runs")
		return
	}
	defer p.handling.Done()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer cancel()
		var b [1]byte
		_, _ = conn.Read(b[:]) // a hook says no more: this returns when it ends, or on our Close
	}()
	defer func() {
		_ = conn.Close()
		<-gone
	}()

	err = h.checkPush(ctx, p, req, conn)
	var refusal *Refusal
	switch {
	case err == nil:
		p.accepted.Store(true) // from the next step on refs may move
		_ = hook.WriteExit(conn, 0)
		return
	case errors.As(err, &refusal):
		for _, line := range refusal.Lines {
			_ = hook.WriteText(conn, line)
		}
	case errors.Is(err, context.Canceled): // the client is gone, or the hook, or we close
	default:
		log.Error("check a push", "model", p.repo.name, "push", p.id, "err", err)
		_ = hook.WriteText(conn, fmt.Sprintf("herdbook: %s; the push was refused (push %s)", cmp.Or(trouble(err), "internal error"), p.id))
	}
	_ = hook.WriteExit(conn, 1)
}

func (h *hookServer) checkPush(ctx context.Context, p *pendingPush, req hook.Request, conn net.Conn) error {
	updates, err := parseUpdates(req.Updates, h.store.cfg.MaxPushRefs)
	if err != nil {
		return err
	}
	p.updates = updates
	push := &Push{ID: p.id, Repository: p.repo, Updates: updates, Options: req.Options, store: h.store, out: conn}
	if req.Quarantine != "" {
		push.quarantine = []string{
			"GIT_QUARANTINE_PATH=" + req.Quarantine,
			"GIT_OBJECT_DIRECTORY=" + req.ObjectDirectory,
			"GIT_ALTERNATE_OBJECT_DIRECTORIES=" + req.Alternates,
		}
	}
	defer push.close()
	if err := guard(func() error { return p.check(ctx, push) }); err != nil {
		return err
	}
	if p.whole, err = push.whole(req.ObjectDirectory); err != nil {
		h.store.log.Warn("the pack of a push is not looked at", "model", p.repo.name, "push", p.id, "reason", err.Error())
	}
	return nil
}

// guard turns a panic of fn into an error: a bug in what a push calls costs this push, not the server.
func guard(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return fn()
}

// parseUpdates reads the standard input of pre-receive: lines of "OLD SP NEW SP REF". It refuses names that
// Git would refuse later, so that the checks see none of them.
// Source: githooks(5), "pre-receive".
func parseUpdates(stdin []byte, most int) ([]registry.RefUpdate, error) {
	var updates []registry.RefUpdate
	for line := range bytes.Lines(stdin) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("update %q of a push is not OLD NEW REF", line)
		}
		u := registry.RefUpdate{Ref: fields[2]}
		for i, id := range []*registry.ObjectID{&u.Old, &u.New} {
			if fields[i] == zeroID {
				continue
			}
			var err error
			if *id, err = registry.ParseObjectID(fields[i]); err != nil {
				return nil, fmt.Errorf("update %q of a push: %w", line, err)
			}
		}
		if !registry.ValidRefName(u.Ref) {
			return nil, &Refusal{Lines: []string{fmt.Sprintf("herdbook: push refused: %q is not a name for a branch or a tag", u.Ref)}}
		}
		if updates = append(updates, u); len(updates) > most {
			return nil, &Refusal{Lines: []string{fmt.Sprintf("herdbook: push refused: it moves more than %d refs; push them in parts", most)}}
		}
	}
	return updates, nil
}

// zeroID stands for no object in Git's protocols.
const zeroID = "0000000000000000000000000000000000000000"
