package hook_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

func TestMain(m *testing.M) {
	if hook.Wanted() {
		syscall.Exit(hook.Main()) // os.Exit sleeps for a second in a program with the race detector
	}
	os.Exit(m.Run())
}

// answer serves hooks on a socket, each with what it writes.
func answer(tb testing.TB, write func(conn net.Conn, req hook.Request)) (socket string) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "hook")
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	tb.Cleanup(func() {
		_ = l.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			req, err := hook.ReadRequest(conn)
			if err != nil {
				tb.Errorf("ReadRequest: %v", err)
			}
			write(conn, req)
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// start prepares a hook as git would start it.
func start(tb testing.TB, program, socket string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(tb.Context(), program)
	cmd.Args[0] = "/run/hooks/pre-receive"
	cmd.Env = append([]string{hook.EnvSocket + "=" + socket, hook.EnvPush + "=7", hook.EnvSecret + "=s3cret"}, env...)
	return cmd
}

func TestHook(t *testing.T) {
	var got hook.Request
	tests := []struct {
		name   string
		answer string
		code   int
		want   string
	}{
		{"accepted", "=0\n", 0, ""},
		{"refused", ">herdbook: no\n>\n>a\tb\n=1\n", 1, "herdbook: no\n\na\tb\n"},
		{"another code", "=7\n", 7, ""},
		{"hung up at once", "", 1, "nothing was changed; push again"},
		{"hung up later", ">wait\n>hal", 1, "wait\nherdbook: the push was refused"},
		{"no code", "=\n", 1, "makes no sense"},
		{"a code too large", "=256\n", 1, "makes no sense"},
		{"an empty line", "\n", 1, "makes no sense"},
		{"another protocol", "HTTP/1.1 200 OK\n", 1, "makes no sense"},
		{"an endless line", ">" + strings.Repeat("x", 1<<20), 1, "nothing was changed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			socket := answer(t, func(conn net.Conn, req hook.Request) {
				got = req
				_, _ = io.WriteString(conn, test.answer)
			})
			cmd := start(t, os.Args[0], socket, "GIT_QUARANTINE_PATH=/q", "GIT_OBJECT_DIRECTORY=/o", "GIT_ALTERNATE_OBJECT_DIRECTORIES=/a",
				"GIT_PUSH_OPTION_COUNT=2", "GIT_PUSH_OPTION_0=x=y", "GIT_PUSH_OPTION_1=")
			cmd.Stdin = strings.NewReader("old new refs/heads/\xff\n")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code = %d (%v), want %d", code, err, test.code)
			}
			if test.code == 0 && stderr.Len() > 0 || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("the user reads %q, want %q", stderr.String(), test.want)
			}
		})
	}
	want := hook.Request{
		Version: hook.Version, Push: "7", Secret: "s3cret", Quarantine: "/q", ObjectDirectory: "/o", Alternates: "/a",
		Options: []string{"x=y", ""}, Updates: []byte("old new refs/heads/\xff\n"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("request: (-want +got)\n%s", diff)
	}
}

func TestHookWithoutServer(t *testing.T) {
	out, err := start(t, os.Args[0], filepath.Join(t.TempDir(), "absent")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "it does not answer") {
		t.Errorf("hook without a server = %v, %q, want a failure that says so", err, out)
	}
}

func TestReadRequest(t *testing.T) {
	for name, in := range map[string]string{
		"nothing": "", "no JSON": "hello\n", "half": `{"version":1`, "another version": `{"version":2}`,
		"too long": `{"version":1,"push":"` + strings.Repeat("x", hook.MaxRequestBytes) + `"}`,
	} {
		if _, err := hook.ReadRequest(strings.NewReader(in)); err == nil {
			t.Errorf("ReadRequest of %s = nil, want an error", name)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain \tü": "plain \tü", "two\nlines\r\n": "two lines  ", "\x1b[2Jcleared\a\x00": "[2Jcleared", "\u009bred": "red",
	} {
		if got := hook.Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// A push pays for the start of the hook: at most 10 ms of CPU.
func TestStartIsCheap(t *testing.T) {
	program := filepath.Join(t.TempDir(), "herdbook-hook")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "github.com/herdbook/herdbook/cmd/herdbook-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hook: %v\n%s", err, out)
	}
	socket := answer(t, func(conn net.Conn, _ hook.Request) {
		if err := hook.WriteExit(conn, 0); err != nil {
			t.Error(err)
		}
	})
	const runs = 20
	var cpu time.Duration
	for range runs {
		cmd := start(t, program, socket)
		cmd.Stdin = strings.NewReader("a b c\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("hook: %v\n%s", err, out)
		}
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s of CPU a start, %d KiB, %s/%s", cpu/runs, info.Size()/1024, runtime.GOOS, runtime.GOARCH)
	if cpu/runs > 10*time.Millisecond {
		t.Errorf("the hook takes %s of CPU to start, want at most 10 ms", cpu/runs)
	}
}

func FuzzReadRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"push":"1","secret":"x","options":["a"],"updates":"YQ=="}`))
	f.Add([]byte(`{"version":1,"updates":{}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := hook.ReadRequest(bytes.NewReader(in))
		if err == nil && req.Version != hook.Version {
			t.Errorf("ReadRequest(%q) took version %d", in, req.Version)
		}
	})
}

// What a server writes comes out on the other side, and only an exit code of 0 lets a push pass.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(">a\n=0\n"), "text", byte(0))
	f.Add([]byte("=1\n"), "two\nlines", byte(1))
	f.Fuzz(func(t *testing.T, in []byte, text string, code byte) {
		var shown bytes.Buffer
		if got, err := hook.ReadAnswer(bytes.NewReader(in), &shown); err == nil && got == 0 && !bytes.Contains(in, []byte("=0")) {
			t.Errorf("readAnswer(%q) lets the push pass", in)
		}
		var wire bytes.Buffer
		if err := hook.WriteText(&wire, text); err != nil {
			t.Fatal(err)
		}
		if err := hook.WriteExit(&wire, int(code)); err != nil {
			t.Fatal(err)
		}
		shown.Reset()
		got, err := hook.ReadAnswer(&wire, &shown)
		want := hook.Printable(text)
		if err != nil || got != int(code) || len(want) < 60_000 && shown.String() != want+"\n" {
			t.Errorf("readAnswer of WriteText(%q) and WriteExit(%d) = %d, %v, %q", text, code, got, err, shown.String())
		}
		if strings.ContainsAny(strings.TrimSuffix(shown.String(), "\n"), "\n\r\x1b\x00") {
			t.Errorf("the terminal gets %q", shown.String())
		}
	})
}

func ExampleWriteText() {
	_ = hook.WriteText(os.Stdout, "herdbook: v1.0.0 is published\nand stays")
	_ = hook.WriteExit(os.Stdout, 1)
	fmt.Println()
	// Output:
	// >herdbook: v1.0.0 is published and stays
	// =1
}
