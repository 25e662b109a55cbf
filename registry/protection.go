package registry

import (
	"slices"
	"strings"
)

// Protection names the branches and tags of a model that not everybody who may push may move. A
// pattern is a name in which each * stands for any text, also with slashes in it: main, release/*.
//
// A protected branch is pushed to by maintainers, and keeps its history: nobody deletes it or moves it to a
// commit that does not come after the one before. A protected tag is made by maintainers, and stays.
type Protection struct {
	Branches []string `json:"branches,omitempty"`
	Tags     []string `json:"tags,omitempty"`
}

// Limits of a Protection.
const (
	maxProtected   = 100 // patterns of one kind
	maxPatternLen  = 200 // bytes
	patternForbids = " \t\r\n~^:?[\\"
)

// Check says what is wrong with a protection. The error is a [FieldError] that names the field below "protected".
func (p Protection) Check() error {
	for field, patterns := range map[string][]string{"protected.branches": p.Branches, "protected.tags": p.Tags} {
		if len(patterns) > maxProtected {
			return Invalid(field, "a model has at most %d patterns of one kind", maxProtected)
		}
		for _, pattern := range patterns {
			if pattern == "" || len(pattern) > maxPatternLen || strings.ContainsAny(pattern, patternForbids) || strings.HasPrefix(pattern, "refs/") {
				return Invalid(field, "%.80q is no pattern for names; write the name of a branch or tag, in which * stands for any text: release/*", pattern)
			}
		}
	}
	return nil
}

// Covers reports whether a branch or a tag is protected. Ref is its full name.
func (p Protection) Covers(ref string) bool {
	patterns, name := p.Tags, ""
	if tag, ok := TagOf(ref); ok {
		name = tag
	} else if branch, ok := BranchOf(ref); ok {
		patterns, name = p.Branches, branch
	} else {
		return false
	}
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, name) })
}

// matches reports whether name has the form of pattern. It takes as long as the product of both lengths at
// most.
func matches(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	// Each part at the first place where it stands leaves the most for those behind it.
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, part)
		if i < 0 {
			return false
		}
		rest = rest[i+len(part):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}
