package registry

import (
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Lock says that somebody works on a file of a model: until it is removed nobody else may push a
// change of that file, on any branch.
type Lock struct {
	ID       string    `json:"id"`
	Path     string    `json:"path"`
	Owner    string    `json:"owner"` // the name of an identity
	LockedAt time.Time `json:"locked_at"`
}

// MaxLocks is how many files of a model may be locked at a time.
const MaxLocks = 10_000

// MaxLockPathLen is the longest path that can be locked, in bytes.
const MaxLockPathLen = 4096

// CheckLockPath says why a path cannot be that of a file in a repository, or nil. There need not be
// such a file. The error is a [FieldError] on "path".
func CheckLockPath(p string) error {
	switch {
	case p == "":
		return Invalid("path", "a lock needs the path of a file")
	case len(p) > MaxLockPathLen:
		return Invalid("path", "the path of a lock has at most %d bytes", MaxLockPathLen)
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		return Invalid("path", "the path of a lock is UTF-8 text without control characters")
	case path.IsAbs(p) || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../"):
		return Invalid("path", "the path of a lock begins at the root of the repository, as in models/weights.bin, and has no empty, '.' or '..' parts")
	}
	return nil
}

// The records of locks. Git has no place for them: the journal is where they are.
type (
	// LockCreated says that a file of the model is locked.
	LockCreated struct {
		ModelID string `json:"model_id"`
		Lock    Lock   `json:"lock"`
	}
	// LockRemoved says that it is not any more.
	LockRemoved struct {
		ModelID string `json:"model_id"`
		LockID  string `json:"lock_id"`
		Path    string `json:"path"`
		Owner   string `json:"owner"`
		Forced  bool   `json:"forced,omitempty"` // by somebody else than the owner
	}
)

func (LockCreated) recordType() string { return "lock_created" }
func (LockRemoved) recordType() string { return "lock_removed" }
