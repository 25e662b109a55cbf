package registry

import (
	"encoding"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/semver"
)

// MaxNameLen is the longest namespace and the longest name of a model, in bytes. It leaves
// room for both, their separator and "/image" in an OCI repository name of 255 bytes, the
// limit that the distribution specification v1.1 advises ("Pulling manifests").
const MaxNameLen = 96

// MaxTagLen is the longest version tag, in bytes.
// Source: OCI distribution specification v1.1, "Pulling manifests".
const MaxTagLen = 128

// Source: OCI distribution specification v1.1, "Pulling manifests": one path component of
// a repository name.
var nameComponent = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// reserved are the words that the server's own addresses use; a namespace or a name that
// is one of them would make an address mean two things.
var reserved = []string{
	"admin", "api", "assets", "audit", "commit", "compare", "datasets", "deliveries", "deployments", "docs",
	"events", "favicon.ico", "healthz", "hooks", "image", "impact", "info", "lineage", "login", "logout",
	"metrics", "new", "oauth", "ollama", "raw", "readyz", "resolve", "robots.txt", "search", "settings",
	"spaces", "static", "tokens", "tree", "v1", "v2", "versions", "whoami",
}

// ModelName names a model: a namespace and a name in it, such as "acme/fraud". The zero
// value is no name. One name serves Git, OCI and HTTP.
type ModelName struct{ text string }

// ParseModelName reads "namespace/name". The error is a [FieldError] on "name" that says
// which rule the name breaks.
func ParseModelName(s string) (ModelName, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || strings.Contains(name, "/") {
		return ModelName{}, Invalid("name", "a model's name is NAMESPACE/NAME, got %q", clip(s))
	}
	for _, part := range []string{namespace, name} {
		if why := badComponent(part); why != "" {
			return ModelName{}, Invalid("name", "%q in a model's name %s", clip(part), why)
		}
	}
	return ModelName{s}, nil
}

// badComponent says what is wrong with one part of a model's name, or nothing.
func badComponent(part string) string {
	switch {
	case len(part) > MaxNameLen:
		return fmt.Sprintf("is longer than %d bytes", MaxNameLen)
	case !nameComponent.MatchString(part):
		return "is not lower-case letters and digits, joined by single '.', '_', '__' or '-'"
	case strings.HasSuffix(part, ".git"):
		return "ends in .git"
	case slices.Contains(reserved, part):
		return "is a word reserved for the server's own addresses"
	}
	return ""
}

// MustModelName is ParseModelName for names that are written in the program.
func MustModelName(s string) ModelName {
	n, err := ParseModelName(s)
	if err != nil {
		panic(err)
	}
	return n
}

func (n ModelName) String() string { return n.text }

// IsZero reports whether n names no model.
func (n ModelName) IsZero() bool { return n.text == "" }

// Namespace is the part before the slash.
func (n ModelName) Namespace() string {
	namespace, _, _ := strings.Cut(n.text, "/")
	return namespace
}

// Name is the part behind the slash.
func (n ModelName) Name() string {
	_, name, _ := strings.Cut(n.text, "/")
	return name
}

// MarshalText writes the name as it is printed.
func (n ModelName) MarshalText() ([]byte, error) { return []byte(n.text), nil }

// UnmarshalText reads what MarshalText wrote; an empty text is the zero name.
func (n *ModelName) UnmarshalText(b []byte) error { return unmarshal(n, b, ParseModelName) }

// Tag is a version's tag: "v", a semantic version without build metadata, such as "v1.2.0"
// or "v2.0.0-rc.1". The zero value is no tag.
type Tag struct{ text string }

// ParseTag reads a version tag strictly: all three numbers, no leading zeros, no build
// metadata. The error is a [FieldError] on "version".
// Source: Semantic Versioning 2.0.0, items 2, 9 and 10.
func ParseTag(s string) (Tag, error) {
	switch {
	case len(s) > MaxTagLen:
		return Tag{}, Invalid("version", "a version tag is at most %d bytes long", MaxTagLen)
	case strings.HasSuffix(s, ".lock"): // see [ValidRefName]
		return Tag{}, Invalid("version", "%q ends in .lock, which Git takes for no tag", s)
	case HasBuildMetadata(s):
		return Tag{}, Invalid("version", "%q carries build metadata (+), which an OCI tag cannot", s)
	case !semver.IsValid(s) || semver.Canonical(s) != s:
		return Tag{}, Invalid("version", "%q is not a version tag of the form vMAJOR.MINOR.PATCH or vMAJOR.MINOR.PATCH-PRERELEASE", clip(s))
	}
	return Tag{s}, nil
}

// HasBuildMetadata reports whether s is a full semantic version with build metadata. Such a
// tag looks like a version and can never be one here, so that a push of it is refused.
func HasBuildMetadata(s string) bool {
	return strings.Contains(s, "+") && semver.IsValid(s) && semver.Build(s) != "" && semver.Canonical(s)+semver.Build(s) == s
}

// MustTag is ParseTag for tags that are written in the program.
func MustTag(s string) Tag {
	t, err := ParseTag(s)
	if err != nil {
		panic(err)
	}
	return t
}

func (t Tag) String() string { return t.text }

// IsZero reports whether t is no tag.
func (t Tag) IsZero() bool { return t.text == "" }

// Prerelease reports whether t names a pre-release, such as v2.0.0-rc.1.
func (t Tag) Prerelease() bool { return semver.Prerelease(t.text) != "" }

// Compare orders tags by the precedence of Semantic Versioning 2.0.0, item 11: negative
// when t comes before u. The zero tag comes before all others.
func (t Tag) Compare(u Tag) int { return semver.Compare(t.text, u.text) }

// MarshalText writes the tag as it is printed.
func (t Tag) MarshalText() ([]byte, error) { return []byte(t.text), nil }

// UnmarshalText reads what MarshalText wrote; an empty text is the zero tag.
func (t *Tag) UnmarshalText(b []byte) error { return unmarshal(t, b, ParseTag) }

var (
	environmentName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	versionShaped   = regexp.MustCompile(`^v[0-9]`)
)

// EnvironmentName names an environment, such as "production". It serves as an OCI tag too,
// so that it is never "latest" and never looks like a version.
type EnvironmentName struct{ text string }

// ParseEnvironmentName reads the name of an environment. The error is a [FieldError] on
// "environment".
func ParseEnvironmentName(s string) (EnvironmentName, error) {
	switch {
	case !environmentName.MatchString(s):
		return EnvironmentName{}, Invalid("environment", "%q is not an environment's name: a lower-case letter, then at most 30 of a-z, 0-9 and '-'", clip(s))
	case s == "latest" || versionShaped.MatchString(s):
		return EnvironmentName{}, Invalid("environment", "%q cannot name an environment: it would read as a version", s)
	}
	return EnvironmentName{s}, nil
}

// ServerTag reports whether an OCI tag in the repositories of a model is the server's to give: it looks like a version, or could
// name an environment, now or later.
func ServerTag(tag string) bool {
	return versionShaped.MatchString(tag) || environmentName.MatchString(tag) && tag != "latest"
}

// MustEnvironmentName is ParseEnvironmentName for names that are written in the program.
func MustEnvironmentName(s string) EnvironmentName {
	n, err := ParseEnvironmentName(s)
	if err != nil {
		panic(err)
	}
	return n
}

func (n EnvironmentName) String() string { return n.text }

// IsZero reports whether n names no environment.
func (n EnvironmentName) IsZero() bool { return n.text == "" }

// MarshalText writes the name as it is printed.
func (n EnvironmentName) MarshalText() ([]byte, error) { return []byte(n.text), nil }

// UnmarshalText reads what MarshalText wrote; an empty text is the zero name.
func (n *EnvironmentName) UnmarshalText(b []byte) error {
	return unmarshal(n, b, ParseEnvironmentName)
}

var objectID = regexp.MustCompile(`^[0-9a-f]{40}$`)

// ObjectID names a Git object: 40 lower-case hex digits. The empty ObjectID is no object;
// it stands for the old value of a ref that is created and the new value of one that is
// deleted.
type ObjectID string

// ParseObjectID reads an object's name. The error is a [FieldError] on "commit".
func ParseObjectID(s string) (ObjectID, error) {
	if !objectID.MatchString(s) {
		return "", Invalid("commit", "%q is not a commit's name of 40 lower-case hex digits", clip(s))
	}
	return ObjectID(s), nil
}

// Short is the form that people read: the first twelve digits.
func (id ObjectID) Short() string { return string(id[:min(12, len(id))]) }

// RevKind says how a [Rev] names a commit.
type RevKind int

// The ways to name a commit in an address.
const (
	RevCommit      RevKind = iota + 1 // 40 hex digits
	RevVersion                        // a version's tag
	RevEnvironment                    // "env:NAME", what is promoted there now
	RevBranch                         // "branch:NAME", or a bare name
)

// Rev names a commit of a model in one path segment of an address: 40 hex digits, a version
// tag, "env:NAME", "branch:NAME", or a branch's bare name where that reads as none of those.
type Rev struct {
	Kind        RevKind
	Commit      ObjectID
	Tag         Tag
	Environment EnvironmentName
	Branch      string
}

// ParseRev reads a revision, already percent-decoded. The error is a [FieldError] on "rev".
func ParseRev(s string) (Rev, error) {
	if objectID.MatchString(s) {
		return Rev{Kind: RevCommit, Commit: ObjectID(s)}, nil
	}
	if name, ok := strings.CutPrefix(s, "env:"); ok {
		env, err := ParseEnvironmentName(name)
		if err != nil {
			return Rev{}, Invalid("rev", "%v", err)
		}
		return Rev{Kind: RevEnvironment, Environment: env}, nil
	}
	branch, explicit := strings.CutPrefix(s, "branch:")
	if !explicit {
		if tag, err := ParseTag(s); err == nil {
			return Rev{Kind: RevVersion, Tag: tag}, nil
		}
	}
	if !ValidRefName("refs/heads/" + branch) {
		return Rev{}, Invalid("rev", "%q is neither a commit, a version, env:NAME nor a branch", clip(s))
	}
	return Rev{Kind: RevBranch, Branch: branch}, nil
}

// ParseRevs reads two revisions, as in "v1.0.0...v1.1.0". No revision has two dots that follow each other.
func ParseRevs(s string) (a, b Rev, err error) {
	left, right, ok := strings.Cut(s, "...")
	if !ok {
		return Rev{}, Rev{}, Invalid("rev", "%q is not two revisions with three dots between, such as v1.0.0...v1.1.0", clip(s))
	}
	if a, err = ParseRev(left); err != nil {
		return Rev{}, Rev{}, err
	}
	b, err = ParseRev(right)
	return a, b, err
}

// MaxRefNameLen is the longest ref name that a push may create, in bytes: what a file name
// of most file systems can hold, with room for ".lock".
const MaxRefNameLen = 250

// ValidRefName reports whether name is a full ref name that Git itself would accept. One that is
// not UTF-8 is not valid here: JSON cannot carry it, so that the journal would hold another name.
// Source: git-check-ref-format(1).
func ValidRefName(name string) bool {
	if len(name) > MaxRefNameLen || !utf8.ValidString(name) || !strings.HasPrefix(name, "refs/") || strings.HasSuffix(name, ".") ||
		strings.Contains(name, "..") || strings.Contains(name, "@{") || strings.Count(name, "/") < 2 {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r == 0x7f || strings.ContainsRune(" ~^:?*[\\", r)
	})
}

// unmarshal parses text into *p, taking an empty text for the zero value.
func unmarshal[T any](p *T, text []byte, parse func(string) (T, error)) error {
	if len(text) == 0 {
		var zero T
		*p = zero
		return nil
	}
	v, err := parse(string(text))
	if err != nil {
		return err
	}
	*p = v
	return nil
}

// clip bounds what an error repeats of its input.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

var (
	_ encoding.TextMarshaler = ModelName{}
	_ encoding.TextMarshaler = Tag{}
	_ encoding.TextMarshaler = EnvironmentName{}
)
