package main

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata/script run real clients against the real binary, which is built when the
// first of them starts. Commands beside those of testscript:
//
//	start [FLAG...]      starts a server on a free port and waits until it is ready. Sets ADDR, URL and
//	                     HERDBOOK_URL, and on the first start HERDBOOK_TOKEN; the data directory is $WORK/data
//	halt, crash          ends it with SIGTERM, which it has to follow with status 0, or with SIGKILL
//	eventually CMD ...   runs a program until it exits 0, for at most 20 s; its output is that of the last run
//	receiver FILE        starts a webhook receiver that writes a line of JSON a request to FILE; sets HOOK
//	signed FILE SECRET   checks the signature of each request in such a FILE, and that there is one
//	random FILE SIZE N   writes SIZE bytes that the number N stands for
//	safetensors FILE NAME=BYTES...  writes a weight file of tensors of bytes; see safetensors
//	sumtree DIR          prints the SHA-256 and the path of each file below DIR but for .git
//	api METHOD PATH [FILE]  calls the JSON API with the token; prints status and body; fails above 399
//	proxy ...            a network between clients and the server that breaks; see proxyCommand
//	daemon SOCKET PROGRAM ARGS...  starts another server and waits until it listens; see daemon
func TestScripts(t *testing.T) {
	p := params(t)
	p.Dir = "testdata/script"
	testscript.Run(t, p)
}

// distributionLFS is the git-lfs that a Linux distribution has, which is some years older than the one in
// .tools/bin. HERDBOOK_DISTRIBUTION_LFS names another place.
const distributionLFS = "/usr/bin/git-lfs"

// TestScriptsDistributionLFS runs the scripts of Git LFS with that one.
func TestScriptsDistributionLFS(t *testing.T) {
	program := os.Getenv("HERDBOOK_DISTRIBUTION_LFS")
	if program == "" {
		program = distributionLFS
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("HERDBOOK_TEST_ALL") != "" {
			t.Fatalf("the git-lfs of the distribution is not there: %v", err)
		}
		t.Skipf("no git-lfs of a distribution: %v", err)
	}
	old := t.TempDir()
	if err := os.Symlink(program, filepath.Join(old, "git-lfs")); err != nil {
		t.Fatal(err)
	}
	p := params(t)
	for _, pattern := range []string{"lfs*.txtar", "tus.txtar", "locks.txtar"} {
		files, err := filepath.Glob(filepath.Join("testdata", "script", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("scripts %s = %v, %v, want some", pattern, files, err)
		}
		p.Files = append(p.Files, files...)
	}
	p.Setup = func(e *testscript.Env) error {
		err := setup(e)
		e.Setenv("PATH", old+":"+e.Getenv("PATH"))
		return err
	}
	testscript.Run(t, p)
}

// params are those of all scripts.
func params(t *testing.T) testscript.Params {
	return testscript.Params{
		WorkdirRoot:         t.TempDir(),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Condition:           condition,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "halt": halt, "crash": crash, "eventually": eventually, "receiver": receiver, "signed": signed,
			"random": random, "sumtree": sumtree, "api": callAPI, "safetensors": safetensors, "proxy": proxyCommand, "daemon": daemon,
		},
	}
}

// binDir holds the program under test, as herdbook, once buildOnce was called.
var binDir string

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "herdbook-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(binDir)
	os.Exit(code)
}

var buildOnce = sync.OnceValue(func() error {
	out, err := exec.Command("go", "build", "-o", filepath.Join(binDir, "herdbook"), ".").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the program under test: %w\n%s", err, out)
	}
	return nil
})

func setup(e *testscript.Env) error {
	if err := buildOnce(); err != nil {
		return err
	}
	if tools, err := filepath.Abs(filepath.Join("..", "..", ".tools", "bin")); err == nil {
		e.Setenv("PATH", binDir+":"+tools+":"+os.Getenv("PATH"))
	}
	home := filepath.Join(e.WorkDir, "home")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": home, "DOCKER_CONFIG": home, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
		"LC_ALL": "C", "NO_COLOR": "1",
	} {
		e.Setenv(name, value)
	}
	const config = "[user]\n name = Ada\n email = ada@example.org\n[init]\n defaultBranch = main\n[advice]\n detachedHead = false\n" +
		"[credential]\n helper = \"!f() { [ \\\"$1\\\" != get ] || printf 'username=ada\\\\npassword=%s\\\\n' \\\"$HERDBOOK_TOKEN\\\"; }; f\"\n" +
		"[filter \"lfs\"]\n clean = git-lfs clean -- %f\n smudge = git-lfs smudge -- %f\n process = git-lfs filter-process\n required = true\n" +
		"[lfs]\n locksverify = false\n"
	return os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(config), 0o644)
}

// condition knows [exec:NAME] from testscript; [all] holds where a missing client is a failure, and [namespaces] where a daemon
// can be started: as root, who in some containers may not, which is a failure too where all holds.
func condition(cond string) (bool, error) {
	all := os.Getenv("HERDBOOK_TEST_ALL") != ""
	switch cond {
	case "all":
		return all, nil
	case "namespaces":
		probe := exec.Command("true")
		probe.SysProcAttr = namespaces()
		return os.Geteuid() == 0 && (all || probe.Run() == nil), nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// namespaces are those of a daemon: with its first process end all that it started, and go all its mounts.
func namespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
}

// daemon runs a server of somebody else's, which the script's end kills with everything that it started. It has to listen at a
// unix socket. Its own view of /proc is that of its processes.
func daemon(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: daemon SOCKET PROGRAM ARGS...")
	}
	logName := args[1] + ".log"
	log, err := os.Create(ts.MkAbs(logName))
	ts.Check(err)
	cmd := exec.Command("sh", append([]string{"-c", `mount -t proc proc /proc && exec "$@"`, "sh"}, args[1:]...)...)
	cmd.Dir, cmd.Stderr, cmd.Stdout = ts.Getenv("WORK"), log, log
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME")}
	cmd.SysProcAttr = namespaces()
	ts.Check(cmd.Start())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); log.Close(); close(done) }()
	ts.Defer(func() { _ = cmd.Process.Kill(); <-done })
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("unix", ts.MkAbs(args[0]))
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-done:
			ts.Fatalf("%s ended:\n%s", args[1], ts.ReadFile(logName))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not listen: %v\n%s", args[1], err, ts.ReadFile(logName))
		}
	}
}

// process is a running server.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

var (
	serversMu sync.Mutex
	servers   = map[string]*process{} // by working directory of the script
)

func start(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("! start: run 'exec herdbook serve' instead")
	}
	serversMu.Lock()
	running := servers[ts.Getenv("WORK")] != nil
	serversMu.Unlock()
	if running {
		ts.Fatalf("start: a server runs already")
	}
	addr := ts.Getenv("ADDR")
	if addr == "" {
		addr = freeAddress(ts)
	}
	data := ts.MkAbs("data")
	logFile, err := os.OpenFile(ts.MkAbs("server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	cmd := exec.Command(filepath.Join(binDir, "herdbook"), append([]string{"serve", "--listen", addr, "--data", data}, args...)...)
	cmd.Dir, cmd.Stderr, cmd.Stdout = ts.Getenv("WORK"), logFile, logFile
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	p := &process{cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		logFile.Close()
		close(p.done)
	}()
	work := ts.Getenv("WORK")
	serversMu.Lock()
	servers[work] = p
	serversMu.Unlock()
	ts.Defer(func() { end(work, syscall.SIGKILL) })
	url := "http://" + addr
	awaitReady(ts, p, url)
	token, err := os.ReadFile(filepath.Join(data, "admin-token"))
	ts.Check(err)
	for name, value := range map[string]string{"ADDR": addr, "URL": url, "HERDBOOK_URL": url, "HERDBOOK_TOKEN": strings.TrimSpace(string(token))} {
		ts.Setenv(name, value)
	}
}

func awaitReady(ts *testscript.TestScript, p *process, url string) {
	for deadline := time.Now().Add(20 * time.Second); ; {
		if r, err := http.Get(url + "/readyz"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-p.done:
			ts.Fatalf("the server ended:\n%s", ts.ReadFile("server.log"))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the server is not ready:\n%s", ts.ReadFile("server.log"))
		}
	}
}

func freeAddress(ts *testscript.TestScript) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	return l.Addr().String()
}

// end stops the script's server and waits for it; nil when none runs.
func end(work string, signal syscall.Signal) *os.ProcessState {
	serversMu.Lock()
	p := servers[work]
	delete(servers, work)
	serversMu.Unlock()
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
	case <-time.After(40 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.cmd.ProcessState
}

func halt(ts *testscript.TestScript, _ bool, _ []string) {
	switch state := end(ts.Getenv("WORK"), syscall.SIGTERM); {
	case state == nil:
		ts.Fatalf("no server runs")
	case state.ExitCode() != 0:
		ts.Fatalf("the server ended with %v:\n%s", state, ts.ReadFile("server.log"))
	}
}

func crash(ts *testscript.TestScript, _ bool, _ []string) {
	if end(ts.Getenv("WORK"), syscall.SIGKILL) == nil {
		ts.Fatalf("no server runs")
	}
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 || neg {
		ts.Fatalf("usage: eventually PROGRAM ARGS...")
	}
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = ts.Exec(args[0], args[1:]...); err == nil {
			return
		}
	}
	ts.Fatalf("eventually %s: %v", strings.Join(args, " "), err)
}

// receiver answers 200, or what the file FILE.status holds.
func receiver(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: receiver FILE")
	}
	path := ts.MkAbs(args[0])
	out, err := os.Create(path)
	ts.Check(err)
	var mu sync.Mutex
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if text, err := os.ReadFile(path + ".status"); err == nil {
			if status, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				w.WriteHeader(status)
				return
			}
		}
		line, _ := json.Marshal(map[string]any{"headers": r.Header, "body": json.RawMessage(body)})
		fmt.Fprintf(out, "%s\n", line)
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	done := make(chan struct{})
	go func() { _ = server.Serve(l); close(done) }()
	ts.Defer(func() { server.Close(); <-done; out.Close() })
	ts.Setenv("HOOK", "http://"+l.Addr().String())
}

// signed computes each signature anew. Source: Standard Webhooks specification, "Signature scheme".
func signed(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: signed FILE SECRET")
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(args[1], "whsec_"))
	ts.Check(err)
	lines := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var got struct {
			Headers http.Header
			Body    json.RawMessage
		}
		ts.Check(json.Unmarshal([]byte(line), &got))
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", got.Headers.Get("Webhook-Id"), got.Headers.Get("Webhook-Timestamp"), got.Body)
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); got.Headers.Get("Webhook-Signature") != want {
			ts.Fatalf("signature is %s, want %s, of %s", got.Headers.Get("Webhook-Signature"), want, line)
		}
		lines++
	}
	if lines == 0 {
		ts.Fatalf("%s holds no request", args[0])
	}
}

func random(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: random FILE SIZE N")
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	path := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	ts.Check(err)
	w := bufio.NewWriter(f)
	for block, written := sha256.Sum256([]byte(args[2])), int64(0); written < size; block = sha256.Sum256(block[:]) {
		n, err := w.Write(block[:min(int64(len(block)), size-written)])
		ts.Check(err)
		written += int64(n)
	}
	ts.Check(errors.Join(w.Flush(), f.Close()))
}

// safetensors writes a file: the length of the header, the header, the bytes of the tensors.
// Source: https://github.com/huggingface/safetensors, README.md, "Format".
func safetensors(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: safetensors FILE NAME=BYTES...")
	}
	header, data := map[string]any{}, ""
	for _, arg := range args[1:] {
		name, content, _ := strings.Cut(arg, "=")
		header[name] = map[string]any{"dtype": "U8", "shape": []int{len(content)}, "data_offsets": []int{len(data), len(data) + len(content)}}
		data += content
	}
	text, err := json.Marshal(header)
	ts.Check(err)
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), append(append(file, text...), data...), 0o644))
}

func sumtree(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: sumtree DIR")
	}
	root := ts.MkAbs(args[0])
	ts.Check(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == ".git" {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		fmt.Fprintf(ts.Stdout(), "%s  %s\n", hex.EncodeToString(h.Sum(nil)), name)
		return err
	}))
}

func callAPI(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: api METHOD PATH [FILE]")
	}
	var body io.Reader
	if len(args) == 3 {
		body = strings.NewReader(ts.ReadFile(args[2]))
	}
	r, err := http.NewRequestWithContext(context.Background(), args[0], ts.Getenv("URL")+args[1], body)
	ts.Check(err)
	r.Header.Set("Authorization", "Bearer "+ts.Getenv("HERDBOOK_TOKEN"))
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	ts.Check(err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s", answer.StatusCode, data)
	if failed := answer.StatusCode > 399; failed != neg {
		ts.Fatalf("%s %s: %d\n%s", args[0], args[1], answer.StatusCode, data)
	}
}

// TestNothingSkips makes a missing client a failure where all tests have to run.
func TestNothingSkips(t *testing.T) {
	if os.Getenv("HERDBOOK_TEST_ALL") == "" {
		t.Skip("only where every client has to be there")
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	needs := regexp.MustCompile(`\[!exec:([a-z-]+)\] skip`)
	var missing []string
	path := os.Getenv("PATH")
	t.Setenv("PATH", filepath.Join("..", "..", ".tools", "bin")+":"+path)
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range needs.FindAllStringSubmatch(string(text), -1) {
			_, err := exec.LookPath(m[1])
			if err != nil && !errors.Is(err, exec.ErrDot) && !slices.Contains(missing, m[1]) {
				missing = append(missing, m[1])
			}
		}
	}
	if len(missing) > 0 {
		t.Errorf("not installed, so that scripts would be skipped: %s", strings.Join(missing, ", "))
	}
}
