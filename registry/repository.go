package registry

import (
	"strings"
	"time"
)

// Repository is a place for artifacts that OCI clients push and that no model stands behind. A model has such places of its own,
// see [ImageRepository].
type Repository struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"` // see [CheckRepositoryName]
	Visibility Visibility `json:"visibility"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by"`
}

// MaxRepositoryNameLen is the longest name of a repository, in bytes.
// Source: OCI distribution specification v1.1, "Pulling manifests": what clients can be expected to take.
const MaxRepositoryNameLen = 255

// CheckRepositoryName says why no repository can have that name, or nil. The error is a [FieldError] on "name".
// Source: OCI distribution specification v1.1, "Pulling manifests".
func CheckRepositoryName(name string) error {
	if len(name) > MaxRepositoryNameLen {
		return Invalid("name", "a repository's name is at most %d bytes long", MaxRepositoryNameLen)
	}
	for part := range strings.SplitSeq(name, "/") {
		if !nameComponent.MatchString(part) {
			return Invalid("name", "%q in a repository's name is not lower-case letters and digits, joined by single '.', '_', '__' or '-'", clip(part))
		}
	}
	return nil
}

// OCIRepository is where OCI clients find artifacts, with or without a model behind it.
type OCIRepository struct {
	Key     string // of its manifests and tags
	OwnerID string // who owns its blobs: a model, or the repository itself
	Name    string // as clients spell it
	Model   Model  // the zero value without one
	Image   bool   // it is that of a model's images
}
