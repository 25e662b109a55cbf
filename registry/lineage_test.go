package registry_test

import (
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestNodeIDs(t *testing.T) {
	tag := registry.MustTag("v1.0.0-rc.1")
	tests := []struct {
		id, want string
		node     registry.Node
	}{
		{registry.VersionNodeID("m1", tag), "version:m1:v1.0.0-rc.1", registry.Node{Kind: registry.VersionNode}},
		{registry.DatasetNodeID("calls-2026"), "dataset:calls-2026", registry.Node{Kind: registry.DatasetNode, Name: "calls-2026"}},
		{registry.DatasetNodeID("s3://data:x/calls"), "dataset:s3://data:x/calls", registry.Node{Kind: registry.DatasetNode, Name: "s3://data:x/calls"}},
		{registry.DatasetNodeID("version:m1:v1.0.0"), "dataset:version:m1:v1.0.0", registry.Node{Kind: registry.DatasetNode, Name: "version:m1:v1.0.0"}},
		{registry.ExternalModelNodeID("snakers4/silero-vad", ""), "model:snakers4/silero-vad", registry.Node{Kind: registry.ExternalModelNode, Name: "snakers4/silero-vad"}},
		{registry.ExternalModelNodeID("snakers4/silero-vad", "v5"), "model:snakers4/silero-vad@v5", registry.Node{Kind: registry.ExternalModelNode, Name: "snakers4/silero-vad@v5"}},
		{"commit:" + someCommit, "commit:" + someCommit, registry.Node{Kind: registry.CommitNode, Name: someCommit}},
		{"run:https://ci.example/job/7", "run:https://ci.example/job/7", registry.Node{Kind: registry.RunNode, Name: "https://ci.example/job/7"}},
		{"code:git@example:x", "code:git@example:x", registry.Node{Kind: registry.CodeNode, Name: "git@example:x"}},
		{"other:x", "other:x", registry.Node{Name: "x"}},
		{"x", "x", registry.Node{}},
		{"", "", registry.Node{}},
	}
	for _, tt := range tests {
		if tt.id != tt.want {
			t.Errorf("the id of a node is %q, want %q", tt.id, tt.want)
		}
		tt.node.ID = tt.id
		if got := registry.ParseNodeID(tt.id); got != tt.node {
			t.Errorf("ParseNodeID(%q) = %+v, want %+v", tt.id, got, tt.node)
		}
	}
}

func TestParseVersionNodeID(t *testing.T) {
	for _, id := range []string{"", "version", "version:", "version:m1", "version:m1:", "version:m1:1.0.0", "version:m1:v1.0.0+b", "version:m1:v1.0.0:x", "dataset:m1:v1.0.0", "Version:m1:v1.0.0"} {
		if _, tag, ok := registry.ParseVersionNodeID(id); ok || !tag.IsZero() {
			t.Errorf("ParseVersionNodeID(%q) = %s, %t, want none", id, tag, ok)
		}
	}
}

// Two nodes have the same id only if they are the same.
func FuzzNodeIDs(f *testing.F) {
	f.Add("m1", "v1.0.0", "m2", "v1.0.0")
	f.Add("a", "v1.0.0", "a", "v1.0.0-rc.1")
	f.Add("version:m1", "v1.0.0", "x", "main")
	f.Fuzz(func(t *testing.T, name, rev, otherName, otherRev string) {
		tag, err := registry.ParseTag(rev)
		if err == nil && !strings.Contains(name, ":") { // the server makes models' ids, of hex digits
			id := registry.VersionNodeID(name, tag)
			if modelID, back, ok := registry.ParseVersionNodeID(id); !ok || modelID != name || back != tag {
				t.Errorf("ParseVersionNodeID(%q) = %q, %s, %t, want %q, %s", id, modelID, back, ok, name, tag)
			}
			if other, err := registry.ParseTag(otherRev); err == nil && !strings.Contains(otherName, ":") {
				if same, want := registry.VersionNodeID(otherName, other) == id, name == otherName && tag == other; same != want {
					t.Errorf("VersionNodeID(%q, %s) = VersionNodeID(%q, %s): %t, want %t", name, tag, otherName, other, same, want)
				}
			}
			if n := registry.ParseNodeID(id); n.Kind != registry.VersionNode || n.ID != id {
				t.Errorf("ParseNodeID(%q) = %+v, want a version", id, n)
			}
		}
		if same, want := registry.DatasetNodeID(name) == registry.DatasetNodeID(otherName), name == otherName; same != want {
			t.Errorf("DatasetNodeID(%q) = DatasetNodeID(%q): %t, want %t", name, otherName, same, want)
		}
		if n := registry.ParseNodeID(registry.DatasetNodeID(name)); n.Kind != registry.DatasetNode || n.Name != name {
			t.Errorf("ParseNodeID of dataset %q = %+v", name, n)
		}
		if strings.Contains(name+otherName, "@") {
			return // "a@b" names revision b of a, however it is written
		}
		same, want := registry.ExternalModelNodeID(name, rev) == registry.ExternalModelNodeID(otherName, otherRev), name == otherName && rev == otherRev
		if same != want {
			t.Errorf("ExternalModelNodeID(%q, %q) = ExternalModelNodeID(%q, %q): %t, want %t", name, rev, otherName, otherRev, same, want)
		}
		if n := registry.ParseNodeID(registry.ExternalModelNodeID(name, rev)); n.Kind != registry.ExternalModelNode || !strings.HasPrefix(n.Name, name) {
			t.Errorf("ParseNodeID of external model %q = %+v", name, n)
		}
	})
}
