package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// machine is a server with its data directory that tests kill, starve and take the power from.
type machine struct {
	t     testing.TB
	data  string   // its directory
	work  string   // of the clients
	flags []string // of "herdbook serve", beside those that newMachine knows
	under []string // the program, with arguments, that starts the server
	addr  string
	token string

	cmd  *exec.Cmd
	done chan struct{}
}

// httpClient is what HTTP requests of the tests go by. A server that is stopped does not hold a test for ever.
var httpClient = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}

// newMachine prepares a server on a free port. Without a data directory it gets one.
func newMachine(t testing.TB, data string, flags ...string) *machine {
	t.Helper()
	if err := buildOnce(); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, data: data, work: t.TempDir(), flags: flags}
	if data == "" {
		m.data = filepath.Join(m.work, "data")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	l.Close()
	const config = "[user]\n name = Ada\n email = ada@example.org\n[init]\n defaultBranch = main\n[gc]\n auto = 0\n[maintenance]\n auto = false\n"
	if err := os.WriteFile(filepath.Join(m.work, ".gitconfig"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		for _, bug := range []string{"panic", "DATA RACE", "fatal error"} {
			if at := strings.Index(m.log(), bug); at >= 0 {
				t.Errorf("the log of the server tells of a %s\n%.3000s", bug, m.log()[at:])
			}
		}
	})
	return m
}

func (m *machine) url() string     { return "http://" + m.addr }
func (m *machine) logFile() string { return filepath.Join(m.work, "server.log") }

func (m *machine) log() string {
	text, _ := os.ReadFile(m.logFile())
	return string(text)
}

// start starts the server and waits until it is ready.
func (m *machine) start() {
	m.t.Helper()
	if err := m.tryStart(); err != nil {
		m.t.Fatalf("start: %v\n%s", err, tail(m.log()))
	}
}

// tail is the end of a log.
func tail(text string) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

func (m *machine) tryStart() error {
	log, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	args := slices.Concat(m.under, []string{filepath.Join(binDir, "herdbook"), "serve", "--listen", m.addr, "--data", m.data}, m.flags)
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Dir, m.cmd.Stdout, m.cmd.Stderr = m.work, log, log
	m.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.work}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	m.done = done
	go func() {
		_ = m.cmd.Wait()
		log.Close()
		close(done)
	}()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if r, err := httpClient.Get(m.url() + "/readyz"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-done:
			return errors.New("the server ended")
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.New("the server is not ready")
		}
	}
	if m.token == "" {
		token, err := os.ReadFile(filepath.Join(m.data, "admin-token"))
		m.token = strings.TrimSpace(string(token))
		return err
	}
	return nil
}

// running reports whether the server runs.
func (m *machine) running() bool {
	if m.cmd == nil || m.cmd.Process == nil || m.done == nil {
		return false
	}
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// kill ends the server at once, and it alone.
func (m *machine) kill() {
	if m.running() {
		_ = m.cmd.Process.Kill()
		<-m.done
	}
	httpClient.CloseIdleConnections()
}

// killAll ends the server and all that it started, at once.
func (m *machine) killAll() {
	for _, pid := range m.family() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	m.kill()
}

// halt ends the server in order.
func (m *machine) halt() {
	m.t.Helper()
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.done:
	case <-time.After(40 * time.Second):
		m.kill()
	}
	if code := m.cmd.ProcessState.ExitCode(); code != 0 {
		m.t.Fatalf("the server ended with %v\n%s", m.cmd.ProcessState, tail(m.log()))
	}
	httpClient.CloseIdleConnections()
}

// family are the processes that work in or with the data directory: the server and the git programs that it started.
func (m *machine) family() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(m.data)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil || pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		dir, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if bytes.Contains(line, []byte(real+"/")) || strings.HasPrefix(dir, real+"/") || m.running() && pid == m.cmd.Process.Pid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// command runs a subcommand of herdbook and gives what it wrote and its status.
func (m *machine) command(args ...string) (out string, code int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, "herdbook"), append(args, "--data", m.data)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.work}
	text, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		m.t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// fsck checks the data directory; the test fails when there is damage.
func (m *machine) fsck() {
	m.t.Helper()
	if out, code := m.command("fsck"); code != 0 || !strings.Contains(out, "no damage") {
		m.t.Errorf("fsck = status %d, want no damage\n%s", code, out)
	}
}

// answerError is an answer that says no.
type answerError struct {
	Status int
	Body   string
}

func (e *answerError) Error() string { return fmt.Sprintf("%d %s", e.Status, e.Body) }

// statusOf is the status of an answer that said no, 0 of no answer and 200 of no error.
func statusOf(err error) int {
	var a *answerError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &a):
		return a.Status
	}
	return 0
}

// send sends a request with the token. An answer above 299 is an answerError.
func (m *machine) send(method, path string, body io.Reader, header ...string) ([]byte, http.Header, error) {
	url := path
	if strings.HasPrefix(path, "/") {
		url = m.url() + path
	}
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+m.token)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := httpClient.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode > 299 {
		err = &answerError{answer.StatusCode, string(text)}
	}
	return text, answer.Header, err
}

// call calls the JSON API, below /api/v1.
func (m *machine) call(method, path string, in, out any, header ...string) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	answer, _, err := m.send(method, "/api/v1"+path, body, header...)
	if err == nil && out != nil {
		err = json.Unmarshal(answer, out)
	}
	return err
}

// list reads all pages of a list.
func list[T any](m *machine, path string) (items []T, err error) {
	for next := "/api/v1" + path; next != ""; {
		text, header, err := m.send(http.MethodGet, next, nil)
		if err != nil {
			return nil, fmt.Errorf("GET %s: %w", next, err)
		}
		var page struct{ Items []T }
		if err := json.Unmarshal(text, &page); err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
		next = ""
		if _, link, ok := strings.Cut(header.Get("Link"), "<"); ok && len(page.Items) > 0 {
			next, _, _ = strings.Cut(link, ">")
		}
	}
	return items, nil
}

// oidOf is the name of content in Git LFS.
func oidOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// pointerTo is the file that stands for content in a commit.
func pointerTo(content []byte) string {
	return fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", oidOf(content), len(content))
}

// lfsAction is the address of an LFS object; none for an upload means that the model has it.
func (m *machine) lfsAction(model, operation, transfer, oid string, size int) (string, error) {
	in := fmt.Sprintf(`{"operation":%q,"transfers":[%q],"objects":[{"oid":%q,"size":%d}]}`, operation, transfer, oid, size)
	text, header, err := m.send(http.MethodPost, "/"+model+".git/info/lfs/objects/batch", strings.NewReader(in), "Content-Type", "application/vnd.git-lfs+json")
	if after, atoiErr := strconv.Atoi(header.Get("Retry-After")); statusOf(err) == http.StatusTooManyRequests && atoiErr == nil {
		time.Sleep(time.Duration(after) * time.Second)
		return m.lfsAction(model, operation, transfer, oid, size)
	}
	if err != nil {
		return "", err
	}
	var out struct {
		Objects []struct {
			Actions map[string]struct{ Href string }
			Error   *struct {
				Code    int
				Message string
			}
		}
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return "", err
	}
	if len(out.Objects) != 1 {
		return "", fmt.Errorf("a batch of 1 object is answered with %d: %s", len(out.Objects), text)
	}
	if e := out.Objects[0].Error; e != nil {
		return "", &answerError{e.Code, e.Message}
	}
	return out.Objects[0].Actions[operation].Href, nil
}

// upload sends an object as git-lfs does.
func (m *machine) upload(model string, content []byte) error {
	href, err := m.lfsAction(model, "upload", "basic", oidOf(content), len(content))
	if err != nil || href == "" {
		return err
	}
	_, _, err = m.send(http.MethodPut, href, bytes.NewReader(content), "Content-Type", "application/octet-stream")
	return err
}

// uploadParts sends an object in two parts, from where an earlier try came to.
func (m *machine) uploadParts(model string, content []byte) error {
	href, err := m.lfsAction(model, "upload", "tus", oidOf(content), len(content))
	if err != nil || href == "" {
		return err
	}
	_, header, err := m.send(http.MethodHead, href, nil, "Tus-Resumable", "1.0.0")
	if err != nil {
		return err
	}
	at := 0
	if _, err := fmt.Sscan(header.Get("Upload-Offset"), &at); err != nil {
		return fmt.Errorf("the offset of an upload is %q", header.Get("Upload-Offset"))
	}
	for _, end := range []int{len(content) / 2, len(content)} {
		if at >= end {
			continue
		}
		_, _, err := m.send(http.MethodPatch, href, bytes.NewReader(content[at:end]),
			"Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", fmt.Sprint(at))
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}

// download reads an object and compares it with its name.
func (m *machine) download(model, oid string, size int) error {
	href, err := m.lfsAction(model, "download", "basic", oid, size)
	if err != nil {
		return err
	}
	text, _, err := m.send(http.MethodGet, href, nil)
	if err == nil && oidOf(text) != oid {
		err = fmt.Errorf("the object %s holds %s", oid, oidOf(text))
	}
	return err
}

// git runs the client git in a directory and gives what it wrote.
func (m *machine) git(dir string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + m.work, "XDG_CONFIG_HOME=" + m.work, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Bearer " + m.token,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// mustGit is git where nothing may go wrong.
func (m *machine) mustGit(dir string, args ...string) string {
	m.t.Helper()
	out, err := m.git(dir, args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// policy lets every version be promoted by hand.
const policy = "environments:\n  staging:\n    promote: manual\n"

// clone makes a repository with a first commit for a model.
func (m *machine) clone(model, name string) string {
	m.t.Helper()
	dir := filepath.Join(m.work, name)
	m.mustGit(m.work, "init", "-q", dir)
	m.mustGit(dir, "remote", "add", "origin", m.url()+"/"+model+".git")
	m.write(dir, "README.md", "# "+model+"\n")
	m.write(dir, "herdbook.yaml", policy)
	m.commit(dir, "first")
	return dir
}

func (m *machine) write(dir, name, content string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// commit commits everything in a clone and gives the commit.
func (m *machine) commit(dir, message string) string {
	m.t.Helper()
	m.mustGit(dir, "add", ".")
	m.mustGit(dir, "commit", "-q", "--allow-empty", "-m", message)
	return m.mustGit(dir, "rev-parse", "HEAD")
}

// refs are those of a model as a client sees them.
func (m *machine) refs(model string) (map[string]string, error) {
	out, err := m.git(m.work, "ls-remote", "-q", m.url()+"/"+model+".git")
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	for line := range strings.Lines(out) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			refs[name] = id
		}
	}
	return refs, nil
}

// evaluation is the body of one with a name of its own.
func evaluation(name string) map[string]any {
	return map[string]any{"dataset": map[string]any{"name": name}, "metrics": map[string]any{"f1": 0.9}}
}

// eventuallyNil waits until what returns nil.
func eventuallyNil(t testing.TB, within time.Duration, what func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if err = what(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after %s: %v", within, err)
			return
		}
	}
}

// settled waits until the server has nothing left to do: images are built, events delivered, records written.
func (m *machine) settled(models ...string) {
	m.t.Helper()
	eventuallyNil(m.t, 20*time.Second, func() error {
		text, _, err := m.send(http.MethodGet, "/metrics", nil)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(line, "herdbook_outbox_events "); ok && strings.TrimSpace(n) != "0" {
				return fmt.Errorf("events in the outbox: %s", n)
			}
		}
		for _, model := range models {
			versions, err := list[struct {
				Tag   string
				Image struct{ State string }
			}](m, "/models/"+model+"/versions")
			if err != nil {
				return err
			}
			for _, v := range versions {
				if v.Image.State != "ready" {
					return fmt.Errorf("image of %s %s is %s", model, v.Tag, v.Image.State)
				}
			}
		}
		return nil
	})
}

// temporary finds files in the data directory that are not finished.
func (m *machine) temporary() error {
	var found []string
	err := filepath.WalkDir(m.data, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := e.Name()
		for _, pattern := range []string{"tmp_objdir-*", "tmp_pack_*", "tmp_obj_*", "tmp_idx_*", "?*.lock", ".herdbook-tmp-*"} {
			if ok, _ := filepath.Match(pattern, name); ok {
				found = append(found, path)
			}
		}
		return nil
	})
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("unfinished files: %s", strings.Join(found, ", "))
	}
	return err
}

// answers are what the API and the artifacts say about models, in order.
func (m *machine) answers(models ...string) string {
	m.t.Helper()
	var all strings.Builder
	get := func(path string, header ...string) []byte {
		text, _, err := m.send(http.MethodGet, path, nil, header...)
		if err != nil {
			m.t.Fatalf("GET %s: %v", path, err)
		}
		fmt.Fprintf(&all, "GET %s\n%s\n", path, text)
		return text
	}
	for _, path := range []string{"/models", "/tokens", "/events?limit=200", "/deliveries?limit=200"} {
		for next := "/api/v1" + path; next != ""; {
			text, header, err := m.send(http.MethodGet, next, nil)
			if err != nil {
				m.t.Fatalf("GET %s: %v", next, err)
			}
			fmt.Fprintf(&all, "GET %s\n%s\n", next, text)
			next = ""
			if _, link, ok := strings.Cut(header.Get("Link"), "<"); ok && !bytes.Contains(text, []byte(`"items":[]`)) {
				next, _, _ = strings.Cut(link, ">")
			}
		}
	}
	for _, model := range models {
		at := "/api/v1/models/" + model
		get(at)
		get("/" + model + ".git/info/lfs/locks")
		get(at + "/environments")
		get(at + "/environments/staging/history?limit=200")
		var versions struct{ Items []struct{ Tag string } }
		if err := json.Unmarshal(get(at+"/versions?limit=200"), &versions); err != nil {
			m.t.Fatal(err)
		}
		for _, v := range versions.Items {
			get(at + "/versions/" + v.Tag)
			get(at + "/evaluations/" + v.Tag + "?limit=200")
			get(at + "/gates/" + v.Tag)
			get(at + "/lineage/" + v.Tag)
			get("/v2/"+model+"/manifests/"+v.Tag, "Accept", "application/vnd.oci.image.manifest.v1+json")
		}
	}
	return all.String()
}

// fact is something that a client asked for, and whether it was told that it is done.
type fact struct {
	Kind, Model, Name, Value string
	Done                     bool
}

// The kinds of facts, with what their names and values are.
const (
	factRef       = "ref"       // ref -> object
	factVersion   = "version"   // tag -> commit
	factObject    = "object"    // oid -> size
	factEvaluated = "evaluated" // dataset -> tag
	factPromoted  = "promoted"  // reason -> tag
	factLocked    = "locked"    // path
	factUnlocked  = "unlocked"  // path
	factToken     = "token"     // id
	factTagged    = "tagged"    // tag of an OCI repository -> digest, empty when it was deleted
	factDeleted   = "deleted"   // nothing: the model itself
)

// ledger is what clients asked for, in order.
type ledger struct {
	mu    sync.Mutex
	facts []fact
}

// note writes down what is asked for, does it, and writes down when that is done.
func (l *ledger) note(do func() error, asked ...fact) error {
	l.mu.Lock()
	first := len(l.facts)
	l.facts = append(l.facts, asked...)
	l.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range asked {
		l.facts[first+i].Done = true
	}
	return nil
}

// now is what there is at this moment.
func (l *ledger) now() []fact {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.facts)
}

// allowed is a ledger of which part was done by then, and all was perhaps asked for.
func allowed(done, asked []fact) []fact {
	all := slices.Clone(asked)
	for i := range all {
		all[i].Done = i < len(done) && done[i].Done
	}
	return all
}

// check compares a server with what clients were told. What they asked for and were not told of may be there or not.
func (m *machine) check(facts []fact) {
	m.t.Helper()
	byModel := map[string][]fact{}
	for _, f := range facts {
		byModel[f.Model] = append(byModel[f.Model], f)
	}
	for model, facts := range byModel {
		if model == "" {
			m.checkTokens(facts)
			continue
		}
		if facts[0].Kind == factTagged {
			m.checkRepository(model, facts)
			continue
		}
		deleted := slices.IndexFunc(facts, func(f fact) bool { return f.Kind == factDeleted })
		if deleted >= 0 {
			if err := m.call(http.MethodGet, "/models/"+model, nil, nil); facts[deleted].Done && statusOf(err) != http.StatusNotFound {
				m.t.Errorf("%s was deleted, and GET gives %v", model, err)
			} else if statusOf(err) == http.StatusNotFound {
				continue
			}
		}
		m.checkModel(model, facts)
	}
}

func (m *machine) checkTokens(facts []fact) {
	m.t.Helper()
	tokens, err := list[struct{ ID string }](m, "/tokens")
	if err != nil {
		m.t.Errorf("tokens: %v", err)
	}
	ids := map[string]int{}
	for _, t := range tokens {
		ids[t.ID]++
	}
	for _, f := range facts {
		if f.Kind == factToken && ids[f.Name] != 1 {
			m.t.Errorf("the token %s that was made is there %d times, want 1", f.Name, ids[f.Name])
		}
	}
}

func (m *machine) checkModel(model string, facts []fact) {
	m.t.Helper()
	done := slices.ContainsFunc(facts, func(f fact) bool { return f.Done })
	if err := m.call(http.MethodGet, "/models/"+model, nil, nil); err != nil {
		if done || statusOf(err) != http.StatusNotFound {
			m.t.Errorf("GET %s: %v", model, err)
		}
		return
	}
	m.checkRefs(model, facts)
	m.checkVersions(model, facts)
	m.checkPromotions(model, facts)
	m.checkLocks(model, facts)
	for _, f := range facts {
		if f.Kind == factObject && f.Done {
			var size int
			fmt.Sscan(f.Value, &size)
			if err := m.download(model, f.Name, size); err != nil {
				m.t.Errorf("%s: object %s that was acknowledged: %v", model, f.Name, err)
			}
		}
	}
}

// checkRefs wants each ref at the value that was acknowledged last, or at one that was asked for later.
func (m *machine) checkRefs(model string, facts []fact) {
	m.t.Helper()
	refs, err := m.refs(model)
	if err != nil {
		m.t.Errorf("refs of %s: %v", model, err)
		return
	}
	may := map[string][]string{}
	for _, f := range facts {
		if f.Kind != factRef {
			continue
		}
		if f.Done {
			may[f.Name] = nil
		} else if _, ok := may[f.Name]; !ok {
			may[f.Name] = []string{""} // it need not be there
		}
		may[f.Name] = append(may[f.Name], f.Value)
	}
	for name, values := range may {
		if !slices.Contains(values, refs[name]) {
			m.t.Errorf("%s: %s is at %q, want one of %q", model, name, refs[name], values)
		}
	}
}

// checkVersions wants each version and evaluation once, and nothing that nobody asked for.
func (m *machine) checkVersions(model string, facts []fact) {
	m.t.Helper()
	versions, err := list[struct {
		Tag      string
		Commit   string
		Artifact struct{ Digest string }
	}](m, "/models/"+model+"/versions")
	if err != nil {
		m.t.Error(err)
		return
	}
	asked, found := map[string]string{}, map[string]int{}
	for _, f := range facts {
		if f.Kind == factVersion {
			asked[f.Name] = f.Value
		}
	}
	evaluations := map[string]int{}
	for _, v := range versions {
		if found[v.Tag]++; asked[v.Tag] != v.Commit {
			m.t.Errorf("%s: version %s is of commit %s, want %q", model, v.Tag, v.Commit, asked[v.Tag])
		}
		manifest, _, err := m.send(http.MethodGet, "/v2/"+model+"/manifests/"+v.Tag, nil, "Accept", "application/vnd.oci.image.manifest.v1+json")
		if got := "sha256:" + oidOf(manifest); err != nil || got != v.Artifact.Digest {
			m.t.Errorf("%s: the manifest of %s is %s (%v), want %s", model, v.Tag, got, err, v.Artifact.Digest)
		}
		recorded, err := list[struct{ Dataset struct{ Name string } }](m, "/models/"+model+"/evaluations/"+v.Tag)
		if err != nil {
			m.t.Error(err)
		}
		for _, e := range recorded {
			evaluations[e.Dataset.Name]++
		}
	}
	for _, f := range facts {
		switch n := found[f.Name]; {
		case f.Kind == factVersion && (n > 1 || f.Done && n != 1):
			m.t.Errorf("%s: version %s is there %d times, acknowledged: %v", model, f.Name, n, f.Done)
		case f.Kind == factEvaluated && (evaluations[f.Name] > 1 || f.Done && evaluations[f.Name] != 1):
			m.t.Errorf("%s: evaluation %s of %s is there %d times, acknowledged: %v", model, f.Name, f.Value, evaluations[f.Name], f.Done)
		}
	}
}

func (m *machine) checkPromotions(model string, facts []fact) {
	m.t.Helper()
	changes, err := list[struct{ Reason, Version string }](m, "/models/"+model+"/environments/staging/history")
	if err != nil && statusOf(err) != http.StatusNotFound {
		m.t.Error(err)
		return
	}
	found := map[string]int{}
	for _, c := range changes {
		found[c.Reason+" "+c.Version]++
	}
	for _, f := range facts {
		if n := found[f.Name+" "+f.Value]; f.Kind == factPromoted && (n > 1 || f.Done && n != 1) {
			m.t.Errorf("%s: promotion of %s with reason %s is there %d times, acknowledged: %v", model, f.Value, f.Name, n, f.Done)
		}
	}
}

// checkLocks wants each lock that nobody asked to remove, and none that is removed.
func (m *machine) checkLocks(model string, facts []fact) {
	m.t.Helper()
	locks, err := m.locks(model)
	if err != nil {
		m.t.Error(err)
		return
	}
	type state struct{ locked, removing, removed bool }
	want := map[string]state{}
	for _, f := range facts {
		s := want[f.Name]
		switch f.Kind {
		case factLocked:
			s.locked = s.locked || f.Done
		case factUnlocked:
			s.removing, s.removed = true, s.removed || f.Done
		default:
			continue
		}
		want[f.Name] = s
	}
	for path, s := range want {
		switch _, ok := locks[path]; {
		case s.removed && ok:
			m.t.Errorf("%s: the lock of %s was removed and is there", model, path)
		case s.locked && !s.removing && !ok:
			m.t.Errorf("%s: the lock of %s was acknowledged and is not there", model, path)
		}
	}
}

// locks are the ids of locks by path.
func (m *machine) locks(model string) (map[string]string, error) {
	found := map[string]string{}
	for cursor := ""; ; {
		text, _, err := m.send(http.MethodGet, "/"+model+".git/info/lfs/locks?limit=100&cursor="+cursor, nil)
		if err != nil {
			return nil, err
		}
		var page struct {
			Locks []struct{ ID, Path string }
			Next  string `json:"next_cursor"`
		}
		if err := json.Unmarshal(text, &page); err != nil {
			return nil, err
		}
		for _, l := range page.Locks {
			if found[l.Path] != "" {
				return nil, fmt.Errorf("%s has two locks of %s", model, l.Path)
			}
			found[l.Path] = l.ID
		}
		if cursor = page.Next; cursor == "" {
			return found, nil
		}
	}
}
