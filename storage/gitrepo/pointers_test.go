package gitrepo_test

import (
	"slices"
	"strings"
	"testing"
)

func TestSmallBlobs(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 0)
	w.write("big", strings.Repeat("x", 2000))
	w.write("exact", strings.Repeat("e", 100))
	w.commit("old", "was here")
	w.git("rm", "-q", "old")
	w.commit("dir/small", "is here")
	w.git("tag", "-a", "-m", "tagged", "tagged")
	w.git("checkout", "-q", "--orphan", "other")
	w.git("rm", "-rfq", ".")
	w.commit("elsewhere", "on another branch")
	w.git("push", "-q", "origin", "main", "other", "tagged")
	w.git("checkout", "-q", "main")
	w.commit("never", "never pushed")
	w.git("push", "-q", "origin", "main:gone")
	w.git("push", "-q", "origin", ":gone")
	var got []string
	err := s.repo().SmallBlobs(t.Context(), 100, func(data []byte) error {
		got = append(got, string(data))
		return nil
	})
	slices.Sort(got)
	want := []string{strings.Repeat("e", 100), "is here", "on another branch", "was here"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("SmallBlobs = %q, %v, want %q", got, err, want)
	}
}
