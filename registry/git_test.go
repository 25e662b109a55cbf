package registry_test

import (
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestServerOwned(t *testing.T) {
	for ref, want := range map[string]bool{
		"refs/notes/evaluations":              true,
		"refs/notes/evaluations/x":            true, // with it Git could not write the notes
		"refs/herdbook/versions":              true,
		"refs/herdbook/evaluations":           true,
		"refs/herdbook/environments/staging":  true,
		"refs/herdbook/":                      true,
		"refs/replace/" + someCommit:          true,
		registry.EnvironmentsPrefix + "p":     true,
		"refs/heads/main":                     false,
		"refs/heads/refs/herdbook/versions":   false,
		"refs/tags/v1.0.0":                    false,
		"refs/notes/commits":                  false,
		"refs/notes/evaluations2":             false,
		"refs/herdbooks/versions":             false,
		"refs/replacement/x":                  false,
		"":                                    false,
		"refs/heads/herdbook":                 false,
		"refs/tags/refs/notes/evaluations":    false,
		"refs/remotes/origin/herdbook/copies": false,
	} {
		if got := registry.ServerOwned(ref); got != want {
			t.Errorf("ServerOwned(%q) = %t, want %t", ref, got, want)
		}
	}
}

func TestRefs(t *testing.T) {
	tests := []struct {
		ref, branch, tag, version string // empty where it names none
	}{
		{ref: "refs/heads/main", branch: "main"},
		{ref: "refs/heads/a/b", branch: "a/b"},
		{ref: "refs/heads/v1.0.0", branch: "v1.0.0"},
		{ref: "refs/tags/v1.0.0", tag: "v1.0.0", version: "v1.0.0"},
		{ref: "refs/tags/v1.0.0-rc.1", tag: "v1.0.0-rc.1", version: "v1.0.0-rc.1"},
		{ref: "refs/tags/v1.0", tag: "v1.0"},
		{ref: "refs/tags/v1.0.0+b", tag: "v1.0.0+b"},
		{ref: "refs/tags/x/v1.0.0", tag: "x/v1.0.0"},
		{ref: "refs/notes/v1.0.0"},
		{ref: "refs/headsmain"},
		{ref: "v1.0.0"},
		{ref: ""},
	}
	for _, tt := range tests {
		branch, isBranch := registry.BranchOf(tt.ref)
		if isBranch != (tt.branch != "") || isBranch && branch != tt.branch {
			t.Errorf("BranchOf(%q) = %q, %t, want %q", tt.ref, branch, isBranch, tt.branch)
		}
		if isBranch && registry.BranchRef(branch) != tt.ref {
			t.Errorf("BranchRef(%q) = %q, want %q", branch, registry.BranchRef(branch), tt.ref)
		}
		tag, isTag := registry.TagOf(tt.ref)
		if isTag != (tt.tag != "") || isTag && tag != tt.tag {
			t.Errorf("TagOf(%q) = %q, %t, want %q", tt.ref, tag, isTag, tt.tag)
		}
		version, isVersion := registry.VersionOf(tt.ref)
		if isVersion != (tt.version != "") || version.String() != tt.version {
			t.Errorf("VersionOf(%q) = %q, %t, want %q", tt.ref, version, isVersion, tt.version)
		}
		if isVersion && registry.TagRef(version) != tt.ref {
			t.Errorf("TagRef(%s) = %q, want %q", version, registry.TagRef(version), tt.ref)
		}
	}
}
