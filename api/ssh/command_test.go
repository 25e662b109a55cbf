package ssh_test

import (
	"errors"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/api/ssh"
	"github.com/herdbook/herdbook/registry"
)

func TestParseCommand(t *testing.T) {
	fraud := registry.MustModelName("acme/fraud")
	fetch, push := ssh.Command{Program: "git-upload-pack", Model: fraud}, ssh.Command{Program: "git-receive-pack", Model: fraud}
	down, up := ssh.Command{Program: "git-lfs-authenticate", Model: fraud}, ssh.Command{Program: "git-lfs-authenticate", Model: fraud, Upload: true}
	refused := ssh.Command{}
	tests := []struct {
		line string
		want ssh.Command
	}{
		{"git-upload-pack '/acme/fraud.git'", fetch},
		{"git-upload-pack 'acme/fraud.git'", fetch},
		{"git-upload-pack '/acme/fraud'", fetch},
		{"git-upload-pack /acme/fraud.git", fetch},
		{`git-upload-pack "/acme/fraud.git"`, fetch},
		{`git-upload-pack \/acme\/fraud.git`, fetch},
		{`git-upload-pack '/acme/'\''fraud'`, refused},
		{`git-upload-pack "/ac"'me/fr'aud`, fetch},
		{"git upload-pack '/acme/fraud.git'", fetch},
		{"'git-upload-pack' '/acme/fraud.git'", fetch},
		{"  git-upload-pack   '/acme/fraud.git' ", fetch},
		{"git-receive-pack '/acme/fraud.git'", push},
		{"git receive-pack 'acme/fraud.git'", push},
		{"git-lfs-authenticate /acme/fraud.git download", down},
		{"git-lfs-authenticate acme/fraud upload", up},
		{"'git-lfs-authenticate' '/acme/fraud.git' 'upload'", up},
		{"git-lfs-transfer /acme/fraud.git download", ssh.Command{Program: "git-lfs-transfer"}},
		{"git-lfs-transfer", ssh.Command{Program: "git-lfs-transfer"}},

		{"", refused},
		{"ls", refused},
		{"git", refused},
		{"git status", refused},
		{"git lfs-authenticate /acme/fraud.git upload", refused},
		{"git-upload-archive '/acme/fraud.git'", refused},
		{"git-upload-pack", refused},
		{"git-upload-pack --strict '/acme/fraud.git'", refused},
		{"git-upload-pack '/acme/fraud.git' --timeout=1", refused},
		{"git-upload-pack '--help'", refused},
		{"git-upload-pack '-/fraud'", refused},
		{"git-upload-pack ''", refused},
		{"git-upload-pack '/acme/../fraud.git'", refused},
		{"git-upload-pack '/../acme/fraud.git'", refused},
		{"git-upload-pack '//acme/fraud.git'", refused},
		{"git-upload-pack '/acme/fraud.git/'", refused},
		{"git-upload-pack '/acme/fraud.git.git'", refused},
		{"git-upload-pack '/Acme/fraud.git'", refused},
		{"git-upload-pack '/api/fraud.git'", refused},
		{"git-upload-pack '/etc/passwd\x00.git'", refused},
		{"git-upload-pack '~/acme/fraud.git'", refused},
		{"git-upload-pack ~acme/fraud.git", refused},
		{"git-upload-pack '/acme/fraud.git", refused},
		{`git-upload-pack "/acme/fraud.git`, refused},
		{`git-upload-pack /acme/fraud.git\`, refused},
		{"git-upload-pack '/acme/fraud.git'; id", refused},
		{"git-upload-pack '/acme/fraud.git' && id", refused},
		{"git-upload-pack '/acme/fraud.git' | id", refused},
		{"git-upload-pack '/acme/fraud.git' > out", refused},
		{"git-upload-pack '/acme/fraud.git'\nid", refused},
		{"git-upload-pack\t'/acme/fraud.git'", refused},
		{"git-upload-pack /acme/$HOME", refused},
		{`git-upload-pack "/acme/$HOME"`, refused},
		{"git-upload-pack `id`", refused},
		{`git-upload-pack "` + "`id`" + `"`, refused},
		{"git-upload-pack /acme/*", refused},
		{"git-upload-pack /acme/{fraud,other}", refused},
		{"git-upload-pack /acme/fraud.git # it", refused},
		{"LD_PRELOAD=x git-upload-pack /acme/fraud.git", refused},
		{"git-lfs-authenticate /acme/fraud.git", refused},
		{"git-lfs-authenticate /acme/fraud.git delete", refused},
		{"git-lfs-authenticate /acme/fraud.git upload 0123", refused},
		{"git-upload-pack '/acme/" + strings.Repeat("a", ssh.MaxCommandLen) + "'", refused},
	}
	for _, test := range tests {
		got, err := ssh.ParseCommand(test.line)
		if got != test.want || (err != nil) != (test.want == refused) {
			t.Errorf("ParseCommand(%.80q) = %+v, %v; want %+v", test.line, got, err, test.want)
		}
		if err != nil && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("ParseCommand(%.80q) = %v, want an ErrInvalid, which the user may read", test.line, err)
		}
	}
}

// byShell is how a shell takes a line apart.
func byShell(t *testing.T, line string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "printf '%s\\0' "+line).Output()
	if err != nil {
		t.Fatalf("sh of %q: %v", line, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// TestSplitWords compares what is taken with what a shell makes of it.
func TestSplitWords(t *testing.T) {
	for _, line := range []string{
		"a", "a b", " a  b ", "'a b' c", `"a b" c`, `a\ b`, `a\'b`, `'a'\''b'`, `'a'\!'b'`, `"a\"b"`, `"a\\b"`, `"a\$b"`, `"a\b"`, `"a'b"`, `'a"b'`, `'a\b'`, `a""b`, `'' ""`,
		`'$HOME'`, "'`id`'", `\$HOME`, `a'b'"c"\d`, `'#' \#`, `'*' \*`, `'~' \~`, `@%+:,./-_`, "'\u00fc\u4e16'", `\;`, `"a;b"`, `"\ü"`,
	} {
		got, ok := ssh.SplitWords(line)
		if want := byShell(t, line); !ok || !cmp.Equal(got, want) {
			t.Errorf("SplitWords(%q) = %q, %v; a shell has %q", line, got, ok, want)
		}
	}
	for _, line := range []string{"'", `"`, `\`, "a'", "a;b", "a&b", "a|b", "a<b", "a>b", "(a)", "a$b", "`a`", "*", "?", "[a]", "#a", "~a", "{a,b}", "!a", "a=b", "a\nb", "a\tb", "a\x00b", "a\x7fb", "\"$a\"", "ü"} {
		if got, ok := ssh.SplitWords(line); ok {
			t.Errorf("SplitWords(%q) = %q, want that it is refused", line, got)
		}
	}
}

// quote quotes a word as Git does. Source: git, quote.c, sq_quote_buf().
func quote(word string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(word) + "'"
}

func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quote(w)
	}
	return strings.Join(quoted, " ")
}

// FuzzSplitWords: words that come out of a line come out of it again when they are quoted as Git quotes them, whatever
// was between the quotes before; and a line that is refused has no command in it.
func FuzzSplitWords(f *testing.F) {
	for _, seed := range []string{
		"git-upload-pack '/acme/fraud.git'", `a "b c" d\ e ''`, `"\$\"" '\'`, "a;b", `'a'\''b'`, `x'!'y`, "git-lfs-authenticate acme/fraud.git upload", `"`, `\`, "\xff'\xfe'",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, ok := ssh.SplitWords(line)
		command, err := ssh.ParseCommand(line)
		if !ok {
			if err == nil {
				t.Errorf("ParseCommand(%q) = %+v, of a line that no words come out of", line, command)
			}
			return
		}
		for _, w := range words {
			if strings.ContainsAny(w, "\x00\n\r\t\x1b\x7f") {
				t.Errorf("SplitWords(%q) = %q, with a control character", line, words)
			}
		}
		again, ok := ssh.SplitWords(quoteAll(words))
		if quoted := quoteAll(words); len(quoted) <= ssh.MaxCommandLen && (!ok || !cmp.Equal(again, words) && len(words) > 0) {
			t.Errorf("SplitWords(%q) = %q, and of that quoted: %q, %v", line, words, again, ok)
		}
		if err == nil && command.Program != "git-lfs-transfer" {
			if name, err := registry.ParseModelName(command.Model.String()); err != nil || name != command.Model {
				t.Errorf("ParseCommand(%q) = %+v, whose model has no name that can be: %v", line, command, err)
			}
		}
	})
}

func TestPublicURL(t *testing.T) {
	tests := []struct{ configured, called, want string }{
		{"https://models.example.org", "10.0.0.7:2222", "https://models.example.org"},
		{"http://127.0.0.1:8080", "10.0.0.7:2222", "http://127.0.0.1:8080"},
		{"http://0.0.0.0:8080", "10.0.0.7:2222", "http://10.0.0.7:8080"},
		{"http://[::]:8080", "[::ffff:10.0.0.7]:2222", "http://10.0.0.7:8080"},
		{"http://[::]:8080", "[fd00::7]:2222", "http://[fd00::7]:8080"},
		{"http://[::]", "[fe80::7%eth0]:2222", "http://[fe80::7]"},
	}
	for _, test := range tests {
		configured, err := url.Parse(test.configured)
		if err != nil {
			t.Fatal(err)
		}
		called, err := net.ResolveTCPAddr("tcp", test.called)
		if err != nil {
			t.Fatal(err)
		}
		if got := ssh.PublicURL(configured, called).String(); got != test.want {
			t.Errorf("PublicURL(%s, %s) = %s, want %s", test.configured, test.called, got, test.want)
		}
		if configured.String() != test.configured {
			t.Errorf("PublicURL changed what is configured from %s to %s", test.configured, configured)
		}
	}
}

func TestAddress(t *testing.T) {
	for a, want := range map[string]string{
		"10.0.0.7:1": "10.0.0.7", "[::ffff:10.0.0.7]:1": "10.0.0.7", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::", "[fe80::1%eth0]:1": "fe80::",
	} {
		addr, err := net.ResolveTCPAddr("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		if got := ssh.Address(addr); got != want {
			t.Errorf("Address(%s) = %s, want %s", a, got, want)
		}
	}
}

func BenchmarkParseCommand(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ssh.ParseCommand("git-upload-pack '/acme/fraud.git'"); err != nil {
			b.Fatal(err)
		}
	}
}
