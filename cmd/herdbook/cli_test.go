package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/herdbook/herdbook/registry"
)

// runCLI runs a command as main does.
func runCLI(t *testing.T, in string, args ...string) (code int, out, errText string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, terminal{strings.NewReader(in), &o, &e})
	return code, o.String(), e.String()
}

// commandNames are the commands that the program has.
func commandNames() []string {
	var names []string
	for f := range reflect.TypeFor[commands]().Fields() {
		names = append(names, strings.ToLower(f.Name))
	}
	return names
}

// everyCommand are the commands and those below them, as they are typed.
func everyCommand() []string {
	var names []string
	var add func(above string, t reflect.Type)
	add = func(above string, t reflect.Type) {
		for _, f := range reflect.VisibleFields(t) {
			if _, ok := f.Tag.Lookup("cmd"); !ok {
				continue
			}
			name := above + strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(f.Name, "$1-$2"))
			names = append(names, name)
			add(name+" ", f.Type)
		}
	}
	add("", reflect.TypeFor[commands]())
	return names
}

func TestHelp(t *testing.T) {
	code, out, errText := runCLI(t, "")
	if code != 0 || errText != "" || !strings.Contains(out, "herdbook serve") {
		t.Errorf("no arguments = %d, %q, %q; want the help", code, out, errText)
	}
	for _, name := range everyCommand() {
		if !strings.Contains(name, " ") && !strings.Contains(out, "\n  "+name) {
			t.Errorf("the help does not list %s:\n%s", name, out)
		}
		code, byFlag, _ := runCLI(t, "", append(strings.Fields(name), "--help")...)
		if code != 0 || !strings.HasPrefix(byFlag, "Usage: herdbook "+name) {
			t.Errorf("herdbook %s --help = %d, %q", name, code, byFlag)
		}
		if code, byCommand, _ := runCLI(t, "", append([]string{"help"}, strings.Fields(name)...)...); code != 0 || byCommand != byFlag {
			t.Errorf("herdbook help %s = %d, %q; want what --help says: %q", name, code, byCommand, byFlag)
		}
		if name == "version" || name == "help" {
			continue // there is nothing to explain
		}
		if i := strings.Index(byFlag, "Example"); i < 0 || !strings.Contains(byFlag[i:], "herdbook "+name) {
			t.Errorf("the help of %s has no example:\n%s", name, byFlag)
		}
	}
}

// TestExamplesParse: every example in the help is a command that the program takes.
func TestExamplesParse(t *testing.T) {
	example := regexp.MustCompile(`(?m)^ +(herdbook [a-z].*)$`)
	for _, name := range everyCommand() {
		_, help, _ := runCLI(t, "", append(strings.Fields(name), "--help")...)
		_, examples, _ := strings.Cut(help, "Example")
		for _, m := range example.FindAllStringSubmatch(examples, -1) {
			line, _, _ := strings.Cut(strings.ReplaceAll(m[1], `> "${fpath[1]}/_herdbook"`, ""), " | ")
			line, _, _ = strings.Cut(line, " > ")
			fields := regexp.MustCompile(`'[^']*'|\S+`).FindAllString(line, -1)
			for i, f := range fields {
				fields[i] = strings.Trim(f, "'")
			}
			// --help behind its flags: the line is parsed and not carried out.
			at := len(fields)
			if i := slices.Index(fields, "--"); i > 0 {
				at = i
			}
			if code, out, errText := runCLI(t, "", slices.Insert(fields, at, "--help")[1:]...); code != 0 || !strings.HasPrefix(out, "Usage: herdbook "+fields[1]) {
				t.Errorf("the example %q of %s = %d, %s", m[1], name, code, errText)
			}
		}
	}
}

func TestErrorsOfTheCommandLine(t *testing.T) {
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	t.Setenv("HERDBOOK_URL", down.URL)
	t.Setenv("HERDBOOK_TOKEN", "hb_sesame")
	evaluation := filepath.Join(t.TempDir(), "evaluation.json")
	if err := os.WriteFile(evaluation, []byte(`{"metrics":`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"nonsense"}, 2, "nonsense"},
		{[]string{"models", "--nonsense"}, 2, "--nonsense"},
		{[]string{"help", "nonsense"}, 1, "nonsense"},
		{[]string{"promote", "acme/fraud", "--env", "x"}, 2, "version"},
		{[]string{"promote", "acme/fraud", "v1.0.0"}, 2, "--env"},
		{[]string{"completion", "tcsh"}, 2, "bash"},
		{[]string{"models"}, 1, "cannot be reached"},
		{[]string{"versions", "acme"}, 1, "NAMESPACE/NAME"},
		{[]string{"versions", "acme/UP"}, 1, "UP"},
		{[]string{"gate", "acme/fraud", "v1.0.0"}, 1, "cannot be reached"},
		{[]string{"evaluate", "acme/fraud", "v1.0.0", "--file", evaluation}, 1, "is not JSON"},
		{[]string{"evaluate", "acme/fraud", "v1.0.0", "--file", evaluation + ".none"}, 1, "no such file"},
		{[]string{"evaluate", "acme/fraud", "v1.0.0", "--file", "-"}, 1, "is not JSON"},
		{[]string{"models", "--token-file", evaluation + ".none"}, 1, "token"},
		{[]string{"models", "--server", "::"}, 1, "address of the server"},
		{[]string{"serve", "--listen", "nonsense"}, 1, "HOST:PORT"},
		{[]string{"serve", "--listen", "0.0.0.0:0", "--insecure-no-auth"}, 1, "refused"},
		{[]string{"serve", "--log-level", "loud"}, 1, "log_level"},
	}
	for _, test := range tests {
		code, out, errText := runCLI(t, "not JSON", test.args...)
		if code != test.code || out != "" || !strings.HasPrefix(errText, "herdbook: ") || !strings.Contains(errText, test.want) {
			t.Errorf("herdbook %s = %d, out %q, err %q; want %d, nothing on out, and %q on err", strings.Join(test.args, " "), code, out, errText, test.code, test.want)
		}
		if strings.Contains(errText, "sesame") {
			t.Errorf("herdbook %s tells the token: %s", strings.Join(test.args, " "), errText)
		}
	}
}

func TestVersion(t *testing.T) {
	if code, out, errText := runCLI(t, "", "version"); code != 0 || !strings.HasPrefix(out, "herdbook ") || errText != "" {
		t.Errorf("herdbook version = %d, %q, %q", code, out, errText)
	}
}

// TestCompletion lets each shell that is here read its script, and asks bash for words.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, script, errText := runCLI(t, "", "completion", shell)
		if code != 0 || errText != "" {
			t.Fatalf("herdbook completion %s = %d, %s", shell, code, errText)
		}
		for _, name := range commandNames() {
			if !strings.Contains(script, name) {
				t.Errorf("the script for %s does not know %s", shell, name)
			}
		}
		if strings.Count(script, "'")%2 != 0 {
			t.Errorf("the script for %s has a quote that does not end:\n%s", shell, script)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	_, script, _ := runCLI(t, "", "completion", "bash")
	complete := func(words ...string) []string {
		t.Helper()
		quoted := "'" + strings.Join(words, "' '") + "'"
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", "-c", script+"\nCOMP_WORDS=("+quoted+"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _herdbook; echo \"${COMPREPLY[@]}\"")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("bash: %v\n%s", err, out)
		}
		return strings.Fields(string(out))
	}
	if got, want := complete("herdbook", ""), commandNames(); !slices.Equal(got, want) {
		t.Errorf("words behind herdbook = %v, want %v", got, want)
	}
	if got, want := complete("herdbook", "ver"), []string{"versions", "version"}; !slices.Equal(got, want) {
		t.Errorf("words behind ver = %v, want %v", got, want)
	}
	if got := complete("herdbook", "promote", "--"); !slices.Contains(got, "--env") || !slices.Contains(got, "--token-file") || slices.Contains(got, "--listen") {
		t.Errorf("words behind promote = %v, want its flags", got)
	}
	if got := complete("herdbook", "serve", "--li"); !slices.Equal(got, []string{"--listen"}) {
		t.Errorf("words behind serve --li = %v, want --listen", got)
	}
}

// startInProcess puts the parts together as serve does.
func startInProcess(t *testing.T, dir string) (s *server, log *bytes.Buffer) {
	t.Helper()
	settings, err := readSettings("", map[string]any{"data": dir, "public_url": "http://models.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	log = &bytes.Buffer{}
	if s, err = open(t.Context(), settings, slog.New(slog.NewJSONHandler(log, nil))); err != nil {
		t.Fatal(err)
	}
	if err := s.assemble(); err != nil {
		t.Fatal(err)
	}
	return s, log
}

func TestMetricsAndFirstToken(t *testing.T) {
	dir := t.TempDir()
	s, log := startInProcess(t, dir)
	if err := s.firstToken(t.Context(), io.Discard); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin-token")
	token, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has the mode %v (%v), want 0600", path, info.Mode(), err)
	}
	secret := strings.TrimSpace(string(token))
	if !strings.Contains(log.String(), path) || strings.Contains(log.String(), secret) {
		t.Errorf("the log = %s, want the file and not the token", log)
	}

	ask := func(method, target, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+secret)
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		return w
	}
	var made struct {
		CloneURL string `json:"clone_url"`
	}
	if w := ask("POST", "/api/v1/models", `{"name":"acme/fraud"}`); w.Code != 201 || json.Unmarshal(w.Body.Bytes(), &made) != nil || made.CloneURL != "http://models.example.org/acme/fraud.git" {
		t.Errorf("POST with the first token = %d %s", w.Code, w.Body)
	}
	metrics := ask("GET", "/metrics", "").Body.String()
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics that Prometheus would not like: %v %v", problems, err)
	}
	for _, want := range []string{
		"herdbook_models 1", "herdbook_versions 0", "herdbook_evaluations 0", "herdbook_outbox_events 0", "herdbook_outbox_oldest_age_seconds 0", "herdbook_blobs 0",
		"herdbook_blobs_size_bytes 0", `herdbook_gate_verdicts_total{outcome="open"} 0`, `herdbook_gate_verdicts_total{outcome="closed"} 0`,
		`herdbook_git_pushes_total{outcome="accepted"} 0`, `herdbook_git_pushes_total{outcome="refused"} 0`, `herdbook_git_pushes_total{outcome="failed"} 0`, "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(metrics, "\n"+want) {
			t.Errorf("the metrics have no line %q in:\n%s", want, metrics)
		}
	}
	documented, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(metrics) {
		if name, ok := strings.CutPrefix(line, "# TYPE herdbook_"); ok {
			name, _, _ = strings.Cut(name, " ")
			if !strings.Contains(string(documented), "`herdbook_"+name+"`") {
				t.Errorf("docs/operations.md does not name the metric herdbook_%s", name)
			}
		}
	}
	if err := s.data.Close(); err != nil {
		t.Fatal(err)
	}

	// The next start makes no other token.
	s, log = startInProcess(t, dir)
	defer func() {
		if err := s.data.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.firstToken(t.Context(), io.Discard); err != nil || strings.Contains(log.String(), "token") {
		t.Errorf("second start: %v, log %s; want no word of a token", err, log)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, token) {
		t.Errorf("second start: the token's file changed (%v)", err)
	}
}

func TestOpenHooks(t *testing.T) {
	t.Setenv("HOOK_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
	public := &url.URL{Scheme: "https", Host: "models.example.org"}
	hook := hookSettings{Name: "notify", Type: "webhook", URL: "https://example.org", SecretEnv: "HOOK_SECRET", Models: []string{"acme/*"}, Events: []string{"gate.opened"}}
	opened, err := openHooks(settings{public: public, Hooks: []hookSettings{hook}}, nil)
	if err != nil || len(opened) != 1 || opened[0].Name != "notify" || len(opened[0].Events) != 1 || opened[0].Models[0] != "acme/*" {
		t.Errorf("openHooks = %+v, %v", opened, err)
	}
	hook.URL = "example.org"
	if _, err := openHooks(settings{public: public, Hooks: []hookSettings{hook}}, nil); err == nil || !strings.Contains(err.Error(), "hook notify") {
		t.Errorf("openHooks with a bad address = %v, want an error that names the hook", err)
	}

	s, _ := startInProcess(t, t.TempDir())
	defer func() {
		if err := s.data.Close(); err != nil {
			t.Error(err)
		}
	}()
	hook = hookSettings{Name: "mirror", Type: "ocipush", Repository: "registry.example.org/{namespace}/{name}", Versions: []string{"v1.*"}, User: "robot", SecretEnv: "HOOK_SECRET", Models: []string{"acme/*"}}
	opened, err = openHooks(settings{public: public, Hooks: []hookSettings{hook}}, s.data)
	e := registry.Event{Type: registry.EventVersionPublished, Model: registry.MustModelName("acme/fraud"), Version: registry.MustTag("v1.0.0")}
	if err != nil || len(opened) != 1 || opened[0].Name != "mirror" || opened[0].Timeout != pushTime || opened[0].Models[0] != "acme/*" || !opened[0].Wants(e) {
		t.Errorf("openHooks = %+v, %v; want one for versions that has hours", opened, err)
	}
	hook.SecretEnv = "HOOK_SECRET_NOT_SET"
	if _, err := openHooks(settings{public: public, Hooks: []hookSettings{hook}}, s.data); err == nil || !strings.Contains(err.Error(), "hook mirror: the variable HOOK_SECRET_NOT_SET") {
		t.Errorf("openHooks without its secret = %v, want an error that names hook and variable", err)
	}
}

func TestWhatOthersWroteDoesNotSteerTheTerminal(t *testing.T) {
	var shown bytes.Buffer
	const in = "a\x1b[31mred\x00\x7f\u009b2J\ttab\nline – ok\r\n"
	n, err := printable{&shown}.Write([]byte(in))
	if want := "a?[31mred???2J\ttab\nline – ok\r\n"; n != len(in) || err != nil || shown.String() != want {
		t.Errorf("Write(%q) = %d, %v and shows %q, want %d, nil and %q", in, n, err, shown.String(), len(in), want)
	}
}
