package registry_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
)

// fieldOf is the field that an error names; "no error" or the error's text when it names none.
func fieldOf(err error) string {
	var field *registry.FieldError
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &field) && errors.Is(err, registry.ErrInvalid):
		return field.Field
	}
	return err.Error()
}

func TestParseModelName(t *testing.T) {
	tests := []struct{ in, want string }{ // want is a part of the error, empty for a good name
		{"acme/fraud", ""},
		{"a/b", ""},
		{"0/1", ""},
		{"acme.ai/fraud-v2_x", ""},
		{"a__b/c--d", ""},
		{"acme/my.git.model", ""},
		{"acme/images", ""},
		{"image2/v3", ""},
		{strings.Repeat("a", 96) + "/" + strings.Repeat("b", 96), ""},

		{"", "NAMESPACE/NAME"},
		{"acme", "NAMESPACE/NAME"},
		{"acme/fraud/image", "NAMESPACE/NAME"},
		{"acme//fraud", "NAMESPACE/NAME"},
		{"/", "lower-case letters"},
		{"/fraud", "lower-case letters"},
		{"acme/", "lower-case letters"},
		{"Acme/fraud", "lower-case letters"},
		{"acme/Fraud", "lower-case letters"},
		{"acme/fr aud", "lower-case letters"},
		{"acme/fraud\n", "lower-case letters"},
		{"acme/\x00", "lower-case letters"},
		{"acme/..", "lower-case letters"},
		{"../fraud", "lower-case letters"},
		{"acme/a..b", "lower-case letters"},
		{"acme/a___b", "lower-case letters"},
		{"acme/-a", "lower-case letters"},
		{"acme/a-", "lower-case letters"},
		{"acme/a.-b", "lower-case letters"},
		{"acme/ü", "lower-case letters"},
		{"acme/\xff", "lower-case letters"},
		{"acme/fraud%2f", "lower-case letters"},
		{"acme/fraud@sha256", "lower-case letters"},
		{"acme/fraud:v1", "lower-case letters"},
		{"acme/fraud.git", "ends in .git"},
		{"acme.git/fraud", "ends in .git"},
		{"api/fraud", "reserved"},
		{"v2/fraud", "reserved"},
		{"acme/image", "reserved"},
		{"acme/info", "reserved"},
		{strings.Repeat("a", 97) + "/b", "longer than 96 bytes"},
		{"a/" + strings.Repeat("b", 97), "longer than 96 bytes"},
	}
	for _, tt := range tests {
		got, err := registry.ParseModelName(tt.in)
		switch {
		case tt.want == "" && (err != nil || got.String() != tt.in):
			t.Errorf("ParseModelName(%q) = %q, %v, want the same text", tt.in, got, err)
		case tt.want != "" && (fieldOf(err) != "name" || !strings.Contains(err.Error(), tt.want) || !got.IsZero()):
			t.Errorf("ParseModelName(%q) = %q, %v, want an error on name with %q", tt.in, got, err, tt.want)
		}
	}
}

func TestModelNameParts(t *testing.T) {
	n := registry.MustModelName("acme/fraud")
	if n.Namespace() != "acme" || n.Name() != "fraud" || n.IsZero() {
		t.Errorf("parts of %s = %q, %q, zero %t, want acme, fraud, false", n, n.Namespace(), n.Name(), n.IsZero())
	}
	var zero registry.ModelName
	if zero.Namespace() != "" || zero.Name() != "" || !zero.IsZero() {
		t.Errorf("parts of the zero name = %q, %q, zero %t, want empty", zero.Namespace(), zero.Name(), zero.IsZero())
	}
}

func TestParseTag(t *testing.T) {
	tests := []struct{ in, want string }{ // want is a part of the error, empty for a good tag
		{"v0.0.0", ""},
		{"v1.2.3", ""},
		{"v10.20.30", ""},
		{"v1.0.0-alpha", ""},
		{"v1.0.0-rc.1", ""},
		{"v1.0.0-0", ""},
		{"v1.0.0-x.7.z.92", ""},
		{"v1.0.0-X--", ""},
		{"v1.0.0-0a", ""},
		{"v999999999999999999999.0.0", ""},
		{"v1.0.0-" + strings.Repeat("a", 121), ""},

		{"", "not a version tag"},
		{"v", "not a version tag"},
		{"1.2.3", "not a version tag"},
		{"V1.2.3", "not a version tag"},
		{"v1", "not a version tag"},
		{"v1.2", "not a version tag"},
		{"v1.2.3.4", "not a version tag"},
		{"v01.2.3", "not a version tag"},
		{"v1.02.3", "not a version tag"},
		{"v1.2.03", "not a version tag"},
		{"v1.0.0-01", "not a version tag"},
		{"v1.0.0-", "not a version tag"},
		{"v1.0.0-a..b", "not a version tag"},
		{"v1.0.0-a.", "not a version tag"},
		{"v1.0.0-ä", "not a version tag"},
		{"v1.0.0 ", "not a version tag"},
		{"v1.0.0\n", "not a version tag"},
		{" v1.0.0", "not a version tag"},
		{"v-1.0.0", "not a version tag"},
		{"v1.0.0-a_b", "not a version tag"},
		{"latest", "not a version tag"},
		{"v1.0.0+", "not a version tag"},
		{"v1.2+build", "not a version tag"},
		{"v1.0.0+build", "build metadata"},
		{"v1.0.0-rc.1+build.7", "build metadata"},
		{"v1.0.0-a.lock", ".lock"},
		{"v1.0.0-" + strings.Repeat("a", 122), "at most 128 bytes"},
	}
	for _, tt := range tests {
		got, err := registry.ParseTag(tt.in)
		switch {
		case tt.want == "" && (err != nil || got.String() != tt.in):
			t.Errorf("ParseTag(%q) = %q, %v, want the same text", tt.in, got, err)
		case tt.want != "" && (fieldOf(err) != "version" || !strings.Contains(err.Error(), tt.want) || !got.IsZero()):
			t.Errorf("ParseTag(%q) = %q, %v, want an error on version with %q", tt.in, got, err, tt.want)
		}
	}
}

func TestHasBuildMetadata(t *testing.T) {
	for in, want := range map[string]bool{
		"v1.0.0+b": true, "v1.0.0-rc.1+b.2": true, "v1.0.0": false, "v1.0.0-rc.1": false, "v1+b": false, "v1.2+b": false, "v1.0.0+": false,
		"c++": false, "v1.0.0+b+c": false, "": false,
	} {
		if got := registry.HasBuildMetadata(in); got != want {
			t.Errorf("HasBuildMetadata(%q) = %t, want %t", in, got, want)
		}
	}
}

// Source: Semantic Versioning 2.0.0, item 11, with its own examples.
func TestTagPrecedence(t *testing.T) {
	rising := []string{
		"", "v0.0.0-0", "v0.0.0", "v0.0.1",
		"v1.0.0-0", "v1.0.0-1", "v1.0.0-2", "v1.0.0-10", "v1.0.0-99999999999999999999", "v1.0.0--", "v1.0.0-1a", "v1.0.0-A", "v1.0.0-Z", "v1.0.0-a",
		"v1.0.0-alpha", "v1.0.0-alpha.1", "v1.0.0-alpha.beta", "v1.0.0-beta", "v1.0.0-beta.2", "v1.0.0-beta.11", "v1.0.0-rc.1", "v1.0.0",
		"v1.0.1", "v1.0.2", "v1.0.10", "v1.1.0", "v1.2.0", "v1.10.0",
		"v2.0.0", "v2.1.0", "v2.1.1", "v10.0.0", "v99999999999999999999.0.0",
	}
	tag := func(s string) registry.Tag {
		if s == "" {
			return registry.Tag{}
		}
		return registry.MustTag(s)
	}
	for i, a := range rising {
		for j, b := range rising {
			want := 0
			switch {
			case i < j:
				want = -1
			case i > j:
				want = 1
			}
			if got := tag(a).Compare(tag(b)); got != want {
				t.Errorf("%q.Compare(%q) = %d, want %d", a, b, got, want)
			}
		}
	}
	for in, want := range map[string]bool{"v1.0.0": false, "v1.0.0-0": true, "v1.0.0-rc.1": true, "": false} {
		if got := tag(in).Prerelease(); got != want {
			t.Errorf("%q.Prerelease() = %t, want %t", in, got, want)
		}
	}
}

func TestServerTag(t *testing.T) {
	for in, want := range map[string]bool{
		"v1.0.0": true, "v1.0.0-rc.1": true, "v1": true, "v2-slim": true, "v0x": true, "production": true, "a": true, "staging-eu": true, "vnext": true,
		"latest": false, "1.0.0": false, "V1.0.0": false, "Production": false, "my_tag": false, "slim.1": false, "": false, strings.Repeat("a", 32): false,
		"sha256-" + strings.Repeat("0", 64): false, "sha256-" + strings.Repeat("0", 64) + ".sig": false,
	} {
		if got := registry.ServerTag(in); got != want {
			t.Errorf("ServerTag(%q) = %t, want %t", in, got, want)
		}
	}
}

func TestParseEnvironmentName(t *testing.T) {
	tests := []struct {
		in   string
		good bool
	}{
		{"production", true},
		{"p", true},
		{"eu-west-1", true},
		{"vnext", true},
		{"v-1", true},
		{"a" + strings.Repeat("b", 30), true},
		{"latest2", true},

		{"", false},
		{"latest", false},
		{"v1", false},
		{"v1-0-0", false},
		{"1st", false},
		{"-a", false},
		{"Production", false},
		{"pro duction", false},
		{"a_b", false},
		{"a.b", false},
		{"a/b", false},
		{"prod\n", false},
		{"prö", false},
		{"a\x00", false},
		{"a" + strings.Repeat("b", 31), false},
	}
	for _, tt := range tests {
		got, err := registry.ParseEnvironmentName(tt.in)
		switch {
		case tt.good && (err != nil || got.String() != tt.in):
			t.Errorf("ParseEnvironmentName(%q) = %q, %v, want the same text", tt.in, got, err)
		case !tt.good && (fieldOf(err) != "environment" || !got.IsZero()):
			t.Errorf("ParseEnvironmentName(%q) = %q, %v, want an error on environment", tt.in, got, err)
		}
	}
}

const someCommit = "0123456789abcdef0123456789abcdef01234567"

func TestParseObjectID(t *testing.T) {
	for in, good := range map[string]bool{
		someCommit: true, strings.Repeat("0", 40): true, "": false, someCommit[:39]: false, someCommit + "8": false, strings.ToUpper(someCommit): false,
		someCommit[:39] + "g": false, someCommit + "\n": false,
	} {
		got, err := registry.ParseObjectID(in)
		if good && (err != nil || string(got) != in) || !good && (fieldOf(err) != "commit" || got != "") {
			t.Errorf("ParseObjectID(%q) = %q, %v, want good %t", in, got, err, good)
		}
	}
	if got := registry.ObjectID(someCommit).Short(); got != "0123456789ab" {
		t.Errorf("Short() = %q, want the first twelve digits", got)
	}
	if got := registry.ObjectID("").Short(); got != "" {
		t.Errorf("Short() of no object = %q, want nothing", got)
	}
}

func TestParseRev(t *testing.T) {
	branch := func(name string) registry.Rev { return registry.Rev{Kind: registry.RevBranch, Branch: name} }
	tests := []struct {
		in   string
		want registry.Rev // zero when it is refused
	}{
		{someCommit, registry.Rev{Kind: registry.RevCommit, Commit: someCommit}},
		{"v1.2.0", registry.Rev{Kind: registry.RevVersion, Tag: registry.MustTag("v1.2.0")}},
		{"v1.2.0-rc.1", registry.Rev{Kind: registry.RevVersion, Tag: registry.MustTag("v1.2.0-rc.1")}},
		{"env:production", registry.Rev{Kind: registry.RevEnvironment, Environment: registry.MustEnvironmentName("production")}},
		{"branch:main", branch("main")},
		{"main", branch("main")},
		{"feature/x", branch("feature/x")},
		{"branch:v1.2.0", branch("v1.2.0")},
		{"branch:" + someCommit, branch(someCommit)},
		{"v1.2", branch("v1.2")},
		{"production", branch("production")},
		{strings.ToUpper(someCommit), branch(strings.ToUpper(someCommit))},
		{someCommit[:12], branch(someCommit[:12])},

		{in: ""},
		{in: "env:"},
		{in: "env:latest"},
		{in: "env:v1"},
		{in: "branch:"},
		{in: "branch:env:production"},
		{in: "branch:branch:x"},
		{in: "a..b"},
		{in: "a b"},
		{in: "a~1"},
		{in: "HEAD^"},
		{in: "main@{1}"},
		{in: "a\x00b"},
		{in: "/main"},
		{in: "main/"},
		{in: ".hidden"},
		{in: "x.lock"},
		{in: "a\\b"},
		{in: "\xff"},
		{in: strings.Repeat("a", 240)},
	}
	for _, tt := range tests {
		got, err := registry.ParseRev(tt.in)
		refused := tt.want == registry.Rev{}
		if got != tt.want || refused != (fieldOf(err) == "rev") || !refused && err != nil {
			t.Errorf("ParseRev(%q) = %+v, %v, want %+v and an error on rev: %t", tt.in, got, err, tt.want, refused)
		}
	}
}

// Git itself is the judge of the names, but for what the comment of ValidRefName makes stricter.
func TestValidRefName(t *testing.T) {
	tests := []struct {
		name     string
		stricter bool // Git takes it and we do not
	}{
		{name: "refs/heads/main"},
		{name: "refs/heads/a/b/c"},
		{name: "refs/heads/@"},
		{name: "refs/heads/a@b"},
		{name: "refs/heads/a{b"},
		{name: "refs/heads/-x"},
		{name: "refs/heads/ünï/模型"},
		{name: "refs/heads/a.b"},
		{name: "refs/heads/lock"},
		{name: "refs/heads/.lock"},
		{name: "refs/notes/evaluations"},
		{name: "refs/heads/a\"b'c"},
		{name: "refs/heads/a$(b)`c`"},
		{name: "refs/heads/\u2028"},

		{name: "refs/heads/"},
		{name: "refs/heads//a"},
		{name: "refs/heads/a/"},
		{name: "/refs/heads/a"},
		{name: "refs/heads/.a"},
		{name: "refs/heads/a/.b"},
		{name: "refs/heads/a..b"},
		{name: "refs/heads/a."},
		{name: "refs/heads/a.lock"},
		{name: "refs/heads/a.lock/b"},
		{name: "refs/heads/a@{b"},
		{name: "refs/heads/a b"},
		{name: "refs/heads/a~b"},
		{name: "refs/heads/a^b"},
		{name: "refs/heads/a:b"},
		{name: "refs/heads/a?b"},
		{name: "refs/heads/a*b"},
		{name: "refs/heads/a[b"},
		{name: "refs/heads/a\\b"},
		{name: "refs/heads/a\x01b"},
		{name: "refs/heads/a\tb"},
		{name: "refs/heads/a\x7fb"},
		{name: "refs"},
		{name: ""},

		{name: "heads/main", stricter: true},
		{name: "refs/main", stricter: true},
		{name: "refs/heads/\xff", stricter: true},
		{name: "refs/heads/" + strings.Repeat("a", 240), stricter: true},
	}
	for _, tt := range tests {
		ofGit := exec.CommandContext(t.Context(), "git", "check-ref-format", tt.name).Run() == nil
		if want := ofGit && !tt.stricter; registry.ValidRefName(tt.name) != want {
			t.Errorf("ValidRefName(%q) = %t, want %t; git says %t", tt.name, !want, want, ofGit)
		}
		if tt.stricter && !ofGit {
			t.Errorf("git refuses %q too: the row does not test what is stricter here", tt.name)
		}
	}
	if name := "refs/heads/" + strings.Repeat("a", 239); !registry.ValidRefName(name) || registry.ValidRefName("refs/heads/a\x00b") {
		t.Errorf("ValidRefName takes %d bytes: %t, want true; takes a NUL: %t, want false", len(name), registry.ValidRefName(name), registry.ValidRefName("refs/heads/a\x00b"))
	}
}

func TestNamesInJSON(t *testing.T) {
	type all struct {
		Model       registry.ModelName                  `json:"model,omitzero"`
		Tag         registry.Tag                        `json:"tag,omitzero"`
		Environment registry.EnvironmentName            `json:"environment,omitzero"`
		ByTag       map[registry.Tag]int                `json:"by_tag,omitempty"`
		Always      registry.Tag                        `json:"always"`
		ByName      map[registry.EnvironmentName]string `json:"by_name,omitempty"`
	}
	tests := []struct {
		value all
		want  string
	}{
		{all{}, `{"always":""}`},
		{
			all{
				Model: registry.MustModelName("acme/fraud"), Tag: registry.MustTag("v1.0.0"), Environment: registry.MustEnvironmentName("staging"),
				ByTag: map[registry.Tag]int{registry.MustTag("v1.0.0-rc.1"): 1}, Always: registry.MustTag("v2.0.0"),
				ByName: map[registry.EnvironmentName]string{registry.MustEnvironmentName("staging"): "x"},
			},
			`{"model":"acme/fraud","tag":"v1.0.0","environment":"staging","by_tag":{"v1.0.0-rc.1":1},"always":"v2.0.0","by_name":{"staging":"x"}}`,
		},
	}
	for _, tt := range tests {
		data, err := json.Marshal(tt.value)
		if err != nil || string(data) != tt.want {
			t.Errorf("JSON = %s, %v, want %s", data, err, tt.want)
		}
		var back all
		if err := json.Unmarshal(data, &back); err != nil {
			t.Errorf("Unmarshal(%s): %v", data, err)
		}
		if again, err := json.Marshal(back); err != nil || string(again) != tt.want {
			t.Errorf("JSON of what was read = %s, %v, want %s", again, err, tt.want)
		}
	}
	for in, field := range map[string]string{
		`{"model":"ACME/x"}`: "name", `{"tag":"1.0.0"}`: "version", `{"environment":"latest"}`: "environment", `{"by_tag":{"v1":1}}`: "version",
	} {
		v := all{Tag: registry.MustTag("v3.0.0")}
		if err := json.Unmarshal([]byte(in), &v); fieldOf(err) != field {
			t.Errorf("Unmarshal(%s): %v, want an error on %s", in, err, field)
		}
	}
	kept := all{Tag: registry.MustTag("v3.0.0")}
	if err := json.Unmarshal([]byte(`{"tag":""}`), &kept); err != nil || !kept.Tag.IsZero() {
		t.Errorf(`Unmarshal({"tag":""}) leaves %q, %v, want the zero tag`, kept.Tag, err)
	}
}

func TestMustPanics(t *testing.T) {
	for name, parse := range map[string]func(){
		"MustModelName":       func() { registry.MustModelName("X") },
		"MustTag":             func() { registry.MustTag("1") },
		"MustEnvironmentName": func() { registry.MustEnvironmentName("latest") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a bad name does not panic", name)
				}
			}()
			parse()
		}()
	}
}

// An error repeats its input, and stays short and printable whatever the input is.
func TestErrorsClipTheirInput(t *testing.T) {
	long := strings.Repeat("ü", 5000)
	for name, parse := range map[string]func(string) error{
		"ParseModelName":       func(s string) error { _, err := registry.ParseModelName(s); return err },
		"ParseModelName/part":  func(s string) error { _, err := registry.ParseModelName("acme/" + s); return err },
		"ParseTag":             func(s string) error { _, err := registry.ParseTag(s); return err },
		"ParseEnvironmentName": func(s string) error { _, err := registry.ParseEnvironmentName(s); return err },
		"ParseObjectID":        func(s string) error { _, err := registry.ParseObjectID(s); return err },
		"ParseRev":             func(s string) error { _, err := registry.ParseRev(s); return err },
		"ParseRev/env":         func(s string) error { _, err := registry.ParseRev("env:" + s); return err },
		"ParseVisibility":      func(s string) error { _, err := registry.ParseVisibility(s, ""); return err },
	} {
		for _, in := range []string{long, "x" + long, "\x1b[31m", "\xff"} {
			if err := parse(in); err == nil || len(err.Error()) > 300 || !utf8.ValidString(err.Error()) || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("%s of %d bytes: error %q, want a short, printable one", name, len(in), err)
			}
		}
	}
}

// Source of both: OCI distribution specification v1.1, "Pulling manifests".
var (
	ociRepository = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	ociTag        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// unsafe says why a name cannot be a path, a word of a command line or a part of an address.
func unsafe(name string) string {
	switch {
	case name == "":
		return "it is empty"
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return "it holds a control character"
	case strings.Contains(name, ".."):
		return "it holds .."
	case strings.HasPrefix(name, "-") || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/"):
		return "of its first or last byte"
	case strings.ContainsAny(name, " \\%?#&\"'<>:@"):
		return "it holds a character with a meaning in addresses"
	}
	return ""
}

// textual is a value that prints itself and is read back.
type textual interface {
	comparable
	String() string
	MarshalText() ([]byte, error)
}

// roundTrips checks what holds for everything that parses.
func roundTrips[T textual](t *testing.T, in string, v T, parse func(string) (T, error)) {
	t.Helper()
	if v.String() != in {
		t.Errorf("%q prints itself as %q", in, v)
	}
	if again, err := parse(v.String()); err != nil || again != v {
		t.Errorf("%q parses again as %v, %v", v, again, err)
	}
	if text, err := v.MarshalText(); err != nil || string(text) != in {
		t.Errorf("MarshalText of %q = %q, %v", in, text, err)
	}
	if why := unsafe(in); why != "" {
		t.Errorf("%q parses, and must not: %s", in, why)
	}
}

func FuzzParseModelName(f *testing.F) {
	for _, seed := range []string{"acme/fraud", "a/b", "api/x", "acme/image", "a.git/b", "A/b", "a/..", "a//b", "a/b/c", "a__b/c--d", "\x00/a", "ü/x", ""} {
		f.Add(seed)
	}
	reserved := []string{"api", "v2", "assets", "image", "healthz", "readyz", "metrics", "resolve", "versions", "lineage", "compare", "info", "tree", "raw", "commit"}
	f.Fuzz(func(t *testing.T, in string) {
		n, err := registry.ParseModelName(in)
		if err != nil {
			if fieldOf(err) != "name" || !n.IsZero() {
				t.Errorf("ParseModelName(%q) = %q, %v, want the zero name and an error on name", in, n, err)
			}
			return
		}
		roundTrips(t, in, n, registry.ParseModelName)
		if !ociRepository.MatchString(in) || len(in+"/image") > 255 {
			t.Errorf("%q parses and is no name of an OCI repository", in)
		}
		for _, part := range []string{n.Namespace(), n.Name()} {
			if strings.HasSuffix(part, ".git") || slices.Contains(reserved, part) || part != strings.ToLower(part) {
				t.Errorf("part %q of %q is reserved, ends in .git or is not lower case", part, in)
			}
		}
		if n.Namespace()+"/"+n.Name() != in {
			t.Errorf("parts of %q are %q and %q", in, n.Namespace(), n.Name())
		}
	})
}

func FuzzParseTag(f *testing.F) {
	for _, seed := range []string{"v1.2.3", "v1.0.0-rc.1", "v1.0.0+b", "v1", "v01.0.0", "v1.0.0-01", "v1.0.0-a.lock", "v1.0.0-", "latest", "v0.0.0--.-", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		tag, err := registry.ParseTag(in)
		if err != nil {
			if fieldOf(err) != "version" || !tag.IsZero() {
				t.Errorf("ParseTag(%q) = %q, %v, want the zero tag and an error on version", in, tag, err)
			}
			return
		}
		roundTrips(t, in, tag, registry.ParseTag)
		if !ociTag.MatchString(in) {
			t.Errorf("%q parses and is no OCI tag", in)
		}
		if !registry.ValidRefName(registry.TagRef(tag)) {
			t.Errorf("%q parses and Git takes no tag of that name", in)
		}
		if !registry.ServerTag(in) {
			t.Errorf("%q is a version, and clients may push it as a tag", in)
		}
		if tag.Compare(tag) != 0 || tag.Compare(registry.Tag{}) <= 0 || registry.HasBuildMetadata(in) {
			t.Errorf("%q is not equal to itself, or not above no tag, or has build metadata", in)
		}
		if _, err := registry.ParseEnvironmentName(in); err == nil {
			t.Errorf("%q is a version and an environment at once", in)
		}
	})
}

func FuzzParseEnvironmentName(f *testing.F) {
	for _, seed := range []string{"production", "latest", "v1", "vnext", "a-", "A", "a_b", "a\n", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		n, err := registry.ParseEnvironmentName(in)
		if err != nil {
			if fieldOf(err) != "environment" || !n.IsZero() {
				t.Errorf("ParseEnvironmentName(%q) = %q, %v, want the zero name and an error on environment", in, n, err)
			}
			return
		}
		roundTrips(t, in, n, registry.ParseEnvironmentName)
		if !ociTag.MatchString(in) || in != strings.ToLower(in) || !registry.ValidRefName(registry.EnvironmentsPrefix+in) {
			t.Errorf("%q parses and is no OCI tag, not lower case, or Git takes no ref of that name", in)
		}
		if !registry.ServerTag(in) {
			t.Errorf("%q names an environment, and clients may push it as a tag", in)
		}
		if _, err := registry.ParseTag(in); err == nil || in == "latest" {
			t.Errorf("%q parses and reads as a version", in)
		}
	})
}

func FuzzParseRev(f *testing.F) {
	for _, seed := range []string{someCommit, "v1.0.0", "env:production", "branch:main", "main", "a/b", "branch:v1.0.0", "branch:branch:x", "env:", "a..b", "\x00", "\xff", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		rev, err := registry.ParseRev(in)
		if err != nil {
			if fieldOf(err) != "rev" || rev != (registry.Rev{}) {
				t.Errorf("ParseRev(%q) = %+v, %v, want nothing and an error on rev", in, rev, err)
			}
			return
		}
		// The plainest text that means the same, and the one fact that the revision holds.
		var text string
		var only registry.Rev
		switch rev.Kind {
		case registry.RevCommit:
			text, only = string(rev.Commit), registry.Rev{Commit: rev.Commit}
		case registry.RevVersion:
			text, only = rev.Tag.String(), registry.Rev{Tag: rev.Tag}
		case registry.RevEnvironment:
			text, only = "env:"+rev.Environment.String(), registry.Rev{Environment: rev.Environment}
		case registry.RevBranch:
			text, only = "branch:"+rev.Branch, registry.Rev{Branch: rev.Branch}
			if !registry.ValidRefName(registry.BranchRef(rev.Branch)) {
				t.Errorf("ParseRev(%q) names branch %q, which Git does not take", in, rev.Branch)
			}
		default:
			t.Fatalf("ParseRev(%q) has kind %d", in, rev.Kind)
		}
		if only.Kind = rev.Kind; rev != only {
			t.Errorf("ParseRev(%q) = %+v, want nothing but %+v", in, rev, only)
		}
		if in != text && "branch:"+in != text {
			t.Errorf("ParseRev(%q) reads as %q", in, text)
		}
		if again, err := registry.ParseRev(text); err != nil || again != rev {
			t.Errorf("ParseRev(%q) = %+v, %v, want %+v as of %q", text, again, err, rev, in)
		}
	})
}

func BenchmarkParseModelName(b *testing.B) {
	for b.Loop() {
		if _, err := registry.ParseModelName("acme-research/fraud-detection.v2"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseTag(b *testing.B) {
	for b.Loop() {
		if _, err := registry.ParseTag("v12.34.56-rc.1"); err != nil {
			b.Fatal(err)
		}
	}
}
