package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// git runs the real client with no configuration but ours. What the server wrote to the terminal is part of
// an error.
func git(ctx context.Context, dir string, header map[string]string, stdin io.Reader, args ...string) (string, error) {
	settings := [][2]string{{"gc.auto", "0"}, {"maintenance.auto", "false"}, {"pack.threads", "1"}, {"safe.directory", "*"}}
	for name, value := range header {
		settings = append(settings, [2]string{"http.extraHeader", name + ": " + value})
	}
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, gitEnvironment(dir, settings), stdin
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// Refs of the history beside main: some that a poll lists, and commits on top of main to push one by one.
const (
	topics  = 20
	singles = 5
)

// history is a bare repository that pushes and clones are made from.
type history struct {
	dir     string
	commits int
	tip     string // commit of main
}

// makeHistory makes a repository of some commits, each of which changes a text, a file of numbers and some bytes
// that cannot be compressed: 2,000 of them are a pack of about 30 MB. The same number gives the same commits.
func makeHistory(ctx context.Context, dir string, commits int) (history, error) {
	h := history{dir: dir, commits: commits}
	if _, err := git(ctx, filepath.Dir(dir), nil, nil, "init", "-q", "--bare", "--initial-branch=main", dir); err != nil {
		return h, err
	}
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriterSize(w, 1<<20)
		writeHistory(b, commits)
		w.CloseWithError(b.Flush())
	}()
	_, err := git(ctx, dir, nil, r, "fast-import", "--quiet")
	r.Close() // ends the writer, if git ended before it
	if err != nil {
		return h, err
	}
	if _, err := git(ctx, dir, nil, nil, "repack", "-a", "-d", "-q"); err != nil {
		return h, err
	}
	h.tip, err = git(ctx, dir, nil, nil, "rev-parse", "refs/heads/main")
	return h, err
}

// writeHistory writes the stream. Source: git-fast-import(1), "Input format".
func writeHistory(w *bufio.Writer, commits int) {
	random := rand.New(rand.NewChaCha8([32]byte{'h', 'i', 's', 't', 'o', 'r', 'y'}))
	lines := make([]string, 60)
	for i := range lines {
		lines[i] = sentence(random)
	}
	junk := make([]byte, 12<<10)
	for i := range commits + singles {
		branch := "refs/heads/main"
		if i >= commits {
			branch = fmt.Sprintf("refs/heads/single/%d", i-commits+1)
		}
		fmt.Fprintf(w, "commit %s\nmark :%d\ncommitter Ada <ada@example.org> %d +0000\n", branch, i+1, 1_700_000_000+i*60)
		writeData(w, "Change number "+fmt.Sprint(i)+"\n")
		switch i - commits {
		case 0:
			fmt.Fprint(w, "from refs/heads/main\n")
		case 1, 2, 3, 4:
			fmt.Fprintf(w, "from refs/heads/single/%d\n", i-commits)
		}
		lines[random.IntN(len(lines))] = sentence(random)
		fmt.Fprint(w, "M 100644 inline README.md\n")
		writeData(w, strings.Join(lines, "\n")+"\n")
		var numbers strings.Builder
		for range 200 {
			fmt.Fprintf(&numbers, "%.9f\n", random.NormFloat64())
		}
		fmt.Fprintf(w, "M 100644 inline config/%02d.txt\n", i%40)
		writeData(w, numbers.String())
		for j := range junk {
			junk[j] = byte(random.Uint32())
		}
		fmt.Fprintf(w, "M 100644 inline assets/%02d/%02d.bin\n", i%20, i/20%20)
		writeData(w, string(junk))
	}
	for i := range topics {
		fmt.Fprintf(w, "reset refs/heads/topic/%02d\nfrom :%d\n\n", i, commits-i*(commits/2)/topics)
	}
}

func writeData(w *bufio.Writer, text string) { fmt.Fprintf(w, "data %d\n%s\n", len(text), text) }

var words = strings.Fields("the model finds speech in audio with a small network that was trained on calls and reads frames of ten milliseconds " +
	"its threshold weights layer loss batch epoch recall precision of every version are held against what runs")

func sentence(random *rand.Rand) string {
	var s strings.Builder
	for range 9 {
		s.WriteString(words[random.IntN(len(words))])
		s.WriteByte(' ')
	}
	return s.String()
}

// makeVersion makes a repository whose tag v1.0.0 is a model with the asset as its weights, under Git LFS.
// Source: docs/spec.md of Git LFS, "The Pointer".
func makeVersion(ctx context.Context, dir string, weights asset) error {
	if _, err := git(ctx, filepath.Dir(dir), nil, nil, "init", "-q", "--bare", "--initial-branch=main", dir); err != nil {
		return err
	}
	var text strings.Builder
	w := bufio.NewWriter(&text)
	fmt.Fprint(w, "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\n")
	writeData(w, "First model\n")
	for _, f := range [][2]string{
		{".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"},
		{"README.md", "# Finds speech\n"},
		{"weights.bin", fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", weights.oid, weights.size)},
	} {
		fmt.Fprintf(w, "M 100644 inline %s\n", f[0])
		writeData(w, f[1])
	}
	fmt.Fprint(w, "reset refs/tags/v1.0.0\nfrom refs/heads/main\n\n")
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := git(ctx, dir, nil, strings.NewReader(text.String()), "fast-import", "--quiet")
	return err
}

// check reports a clone that lacks commits. It reads no other objects: git clone itself has computed the id of every one.
func (h history) check(ctx context.Context, dir string) error {
	count, err := git(ctx, dir, nil, nil, "rev-list", "--count", h.tip)
	if err != nil {
		return err
	}
	if want := fmt.Sprint(h.commits); count != want {
		return fmt.Errorf("the clone has %s commits, want %s", count, want)
	}
	return nil
}

// relay passes connections on to a server and counts the bytes that clients send.
type relay struct {
	listener net.Listener
	to       string
	sent     atomic.Int64
	done     sync.WaitGroup
}

func startRelay(ctx context.Context, to string) (*relay, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{listener: l, to: to}
	r.done.Go(func() {
		for {
			in, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				r.done.Go(func() { r.pass(in) })
			}
		}
	})
	return r, nil
}

func (r *relay) pass(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer out.Close()
	var up sync.WaitGroup
	up.Go(func() {
		n, _ := io.Copy(out, in)
		r.sent.Add(n)
		_ = out.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(in, out)
	_ = in.(*net.TCPConn).CloseWrite()
	up.Wait()
}

// stop waits for the connections, which the clients have closed.
func (r *relay) stop() int64 {
	r.listener.Close()
	r.done.Wait()
	return r.sent.Load()
}
