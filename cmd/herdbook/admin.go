package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage"
)

// The server listens on a socket in its data directory for commands that look after the directory. Whoever may
// open the socket may read and write the directory anyway. The protocol is HTTP: POST /fsck and the like with a
// JSON body; the answer is a line of JSON for each thing there is to say, of which the last is the result or an error.

// adminSocket is the name of the socket in the data directory.
const adminSocket = "admin.sock"

// said is one line of an answer.
type said struct {
	Progress *storage.Progress `json:"progress,omitempty"`
	Finding  *storage.Finding  `json:"finding,omitempty"`
	Result   json.RawMessage   `json:"result,omitempty"`
	Error    string            `json:"error,omitempty"`
}

// task is something to do for the data directory, with what it is told and what comes of it in JSON.
type task func(ctx context.Context, s *server, in json.RawMessage, report storage.Report) (result any, err error)

// tasks are the addresses on the socket.
var tasks = map[string]task{
	"/fsck": told(func(ctx context.Context, s *server, o storage.FsckOptions, report storage.Report) (any, error) {
		return s.data.Fsck(ctx, o, report)
	}),
	"/gc": told(func(ctx context.Context, s *server, o gcOptions, report storage.Report) (any, error) {
		return s.collect(ctx, o, report)
	}),
	"/backup": told(func(ctx context.Context, s *server, to string, report storage.Report) (any, error) {
		return s.data.Backup(ctx, to, report)
	}),
}

// told makes a task of a function that is told an I.
func told[I any](do func(ctx context.Context, s *server, in I, report storage.Report) (any, error)) task {
	return func(ctx context.Context, s *server, in json.RawMessage, report storage.Report) (any, error) {
		var i I
		if err := json.Unmarshal(in, &i); err != nil {
			return nil, err
		}
		return do(ctx, s, i, report)
	}
}

// gcOptions say what garbage is.
type gcOptions struct {
	Grace  time.Duration `json:"grace"` // what was sent within it stays
	Remove bool          `json:"remove"`
}

// gcResult is what garbage collection removed, or would.
type gcResult struct {
	Released int64 `json:"released"` // LFS objects that models do not own any more
	Busy     int   `json:"busy"`     // models and repositories that were in use

	Unlinked     int64 `json:"unlinked"`     // blobs that repositories without a model do not own any more
	Repositories int   `json:"repositories"` // that were empty, without a model
	storage.Collected
}

// collect lets models and repositories go of what they do not need, and removes what nobody owns. In a dry run what would be let go of is
// still owned, so that only what is unowned already is counted as removed.
func (s *server) collect(ctx context.Context, o gcOptions, report storage.Report) (gcResult, error) {
	var r gcResult
	before := time.Now().Add(-o.Grace)
	note := func(what, name, problem string, args ...any) {
		report.Found(storage.Finding{Severity: storage.Note, What: what, Name: name, Problem: fmt.Sprintf(problem, args...)})
	}
	err := s.lifecycle.Release(ctx, before, !o.Remove, func(l lifecycle.Released) {
		what, unnamed, count := "model", "LFS objects with %s are named by no commit that a branch or tag leads to", &r.Released
		if l.Repository {
			what, unnamed, count = "repository", "blobs with %s are named by no manifest in it", &r.Unlinked
		}
		if l.Busy {
			r.Busy++
			note(what, l.Name, "is in use; what it owns is looked at the next time")
			return
		}
		if l.Error != "" {
			report.Found(storage.Finding{Severity: storage.Damage, What: what, Name: l.Name, Problem: "what it needs cannot be found out: " + l.Error, Advice: "run: herdbook fsck"})
			return
		}
		var bytes int64
		for _, b := range l.Blobs {
			bytes += b.SizeBytes
		}
		*count += int64(len(l.Blobs))
		if len(l.Blobs) > 0 {
			note(what, l.Name, "%d "+unnamed, len(l.Blobs), registry.ByteSize(bytes))
		}
		if l.Gone {
			r.Repositories++
			note(what, l.Name, "nothing is in it")
		}
	})
	if err != nil {
		return r, err
	}
	r.Collected, err = s.data.Collect(ctx, before, !o.Remove, report, func(d digest.Digest, size int64) {
		note("blob", d.String(), "%s that nothing names", registry.ByteSize(size))
	})
	return r, err
}

// socketAddress is an address for a socket in a directory, whatever the length of its path: the kernel takes no more
// than 107 bytes. It is of use until the directory that is returned is closed.
func socketAddress(dir string) (address string, held *os.File, err error) {
	held, err = os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", held.Fd(), adminSocket), held, nil
}

// listenAdmin opens the socket. The data directory is this server's, so that one that lies there is of a server that
// was killed.
func listenAdmin(dir string) (net.Listener, error) {
	path := filepath.Join(dir, adminSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	address, held, err := socketAddress(dir)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	// Nobody may come before its mode is set. The umask is that of the whole process, in which nothing else runs yet.
	umask := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	syscall.Umask(umask)
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	l.SetUnlinkOnClose(false) // its address is gone; the next server removes it
	return socket{l, path}, nil
}

// socket removes its name when it is closed.
type socket struct {
	net.Listener
	path string
}

func (s socket) Close() error { return errors.Join(s.Listener.Close(), os.Remove(s.path)) }

// admin answers commands until ctx ends, and waits for those that run then.
func (s *server) admin(ctx context.Context, l net.Listener) {
	h := &http.Server{
		Handler: http.HandlerFunc(s.command), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = h.Shutdown(context.WithoutCancel(ctx)) // the commands see that ctx has ended
	})
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.log.ErrorContext(ctx, "commands are not taken any more", "error", err.Error())
	}
	if !stop() {
		<-ended
	}
}

// maxCommand bounds what a command is told.
const maxCommand = 64 << 10

func (s *server) command(w http.ResponseWriter, r *http.Request) {
	do, ok := tasks[r.URL.Path]
	if !ok || r.Method != http.MethodPost {
		http.Error(w, "there is no such command here", http.StatusNotFound)
		return
	}
	in, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCommand))
	if err != nil {
		return
	}
	var mu sync.Mutex
	out := json.NewEncoder(w)
	say := func(line said) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(line) // who does not read any more is gone, and ends the context
		_ = http.NewResponseController(w).Flush()
	}
	s.log.InfoContext(r.Context(), "command", "name", r.URL.Path)
	say(s.carryOut(r.Context(), do, in, say))
}

// carryOut does a task and gives its last line.
func (s *server) carryOut(ctx context.Context, do task, in json.RawMessage, say func(said)) said {
	result, err := do(ctx, s, in, storage.Report{
		Progress: func(p storage.Progress) { say(said{Progress: &p}) },
		Found:    func(f storage.Finding) { say(said{Finding: &f}) },
	})
	if err != nil {
		return said{Error: err.Error()}
	}
	text, err := json.Marshal(result)
	if err != nil {
		return said{Error: err.Error()}
	}
	return said{Result: text}
}

// errNoServer reports that no server has a data directory open.
var errNoServer = errors.New("no server runs there")

// askServer has the server of a data directory do a task, and gives what it says line by line.
func askServer(ctx context.Context, dir, name string, in any, hear func(said)) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	address, held, err := socketAddress(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoServer
	}
	if err != nil {
		return err
	}
	defer held.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return errNoServer
	}
	if err != nil {
		return fmt.Errorf("talk to the server of %s: %w", dir, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://server"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("talk to the server of %s: %w", dir, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the server of %s does not know this command: it is of another version", dir)
	}
	lines := bufio.NewReader(answer.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("the server of %s ended before it was done: %w", dir, err)
		}
		var s said
		if err := json.Unmarshal(line, &s); err != nil {
			return fmt.Errorf("the server of %s answers %.100q", dir, line)
		}
		hear(s)
		if s.Result != nil || s.Error != "" {
			return nil
		}
	}
}
