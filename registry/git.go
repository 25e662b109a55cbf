package registry

import "strings"

// RefUpdate is one ref that a push moves, or that moved: created when Old is empty, deleted
// when New is.
type RefUpdate struct {
	Ref string   `json:"ref"`
	Old ObjectID `json:"old,omitempty"`
	New ObjectID `json:"new,omitempty"`
}

// Refs that the server writes and nobody else: it refuses them from clients.
const (
	EvaluationNotesRef = "refs/notes/evaluations"
	ServerRefPrefix    = "refs/herdbook/"
	VersionsRef        = ServerRefPrefix + "versions"
	EvaluationsRef     = ServerRefPrefix + "evaluations" // those that have no room in the notes
	EnvironmentsPrefix = ServerRefPrefix + "environments/"
)

const (
	branchPrefix = "refs/heads/"
	tagPrefix    = "refs/tags/"
)

// BranchOf is the branch that ref names, if it names one.
func BranchOf(ref string) (branch string, ok bool) { return strings.CutPrefix(ref, branchPrefix) }

// BranchRef is the ref of a branch.
func BranchRef(branch string) string { return branchPrefix + branch }

// TagOf is the text of the tag that ref names, if it names one.
func TagOf(ref string) (tag string, ok bool) { return strings.CutPrefix(ref, tagPrefix) }

// TagRef is the ref of a version's tag.
func TagRef(t Tag) string { return tagPrefix + t.String() }

// VersionOf is the version that ref names, if it names one.
func VersionOf(ref string) (Tag, bool) {
	text, ok := TagOf(ref)
	if !ok {
		return Tag{}, false
	}
	tag, err := ParseTag(text)
	return tag, err == nil
}

// ServerOwned reports whether only the server writes ref. refs/replace is among them because
// it would make a published commit read as another one; what lies below the notes because Git
// could not write the notes beside it.
func ServerOwned(ref string) bool {
	return ref == EvaluationNotesRef || strings.HasPrefix(ref, EvaluationNotesRef+"/") || strings.HasPrefix(ref, ServerRefPrefix) || strings.HasPrefix(ref, "refs/replace/")
}
