package registry

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// MaxPointerLen is the size in bytes from which a Git blob is no LFS pointer.
// Source: Git LFS specification, docs/spec.md, "The Pointer".
const MaxPointerLen = 1024

// Pointer is what a Git LFS pointer file says: the content and its size.
type Pointer struct {
	Digest    digest.Digest
	SizeBytes int64
}

const pointerVersion = "version https://git-lfs.github.com/spec/v1"

// Source: git-lfs, lfs/pointer.go, extRE.
var pointerExtension = regexp.MustCompile(`^ext-[0-9]-\w`)

// ParsePointer reads a pointer file, or reports that data is none: the lines version, oid and
// size, each once and in this order, as git-lfs itself wants them. Extension lines ("ext-0-...")
// may stand between them and are passed over: the oid is that of what the server holds.
// Source: Git LFS specification, docs/spec.md, "The Pointer".
func ParsePointer(data []byte) (Pointer, bool) {
	if len(data) >= MaxPointerLen || !bytes.HasPrefix(data, []byte(pointerVersion+"\n")) {
		return Pointer{}, false
	}
	var p Pointer
	var sized bool
	for line := range strings.Lines(string(data[len(pointerVersion)+1:])) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch {
		case name == "oid" && p.Digest == "":
			if !sha256Digest(digest.Digest(value)) {
				return Pointer{}, false
			}
			p.Digest = digest.Digest(value)
		case name == "size" && p.Digest != "" && !sized:
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 || value != strconv.FormatInt(n, 10) {
				return Pointer{}, false
			}
			p.SizeBytes, sized = n, true
		case pointerExtension.MatchString(name) && sha256Digest(digest.Digest(value)):
		default:
			return Pointer{}, false
		}
	}
	if !sized {
		return Pointer{}, false
	}
	return p, true
}

// MeansPointer reports whether data begins as a pointer does, and names an object: git-lfs takes it for one,
// or for a broken one.
func MeansPointer(data []byte) bool {
	return bytes.HasPrefix(data, []byte(pointerVersion)) && bytes.Contains(data, []byte("\noid "))
}

func sha256Digest(d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm() == digest.SHA256
}
