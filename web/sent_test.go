package web_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/web"
)

// A hook has one line: of what holds the others up, or else of what came last.
func TestSentTo(t *testing.T) {
	delivery := func(hook, event string, outcomes ...registry.Outcome) registry.Delivery {
		d := registry.Delivery{ID: hook + "/" + event, Sink: hook}
		for i, o := range outcomes {
			d.State = o
			d.Attempts = append(d.Attempts, registry.Attempt{Number: i + 1, Outcome: o})
		}
		return d
	}
	const delivered, failed, dead, requeued = registry.Delivered, registry.Failed, registry.Dead, registry.Requeued
	tests := []struct {
		name   string
		oldest []registry.Delivery // the oldest first
		want   []string
	}{
		{"nothing", nil, nil},
		{"one", []registry.Delivery{delivery("a", "1", delivered)}, []string{"a/1 delivered 1 []"}},
		{"never tried", []registry.Delivery{delivery("a", "1")}, []string{"a/1 waiting 0 []"}},
		{"failed", []registry.Delivery{delivery("a", "1", failed, failed)}, []string{"a/1 failed 2 []"}},
		{"asked for again", []registry.Delivery{delivery("a", "1", dead, requeued)}, []string{"a/1 waiting 2 []"}},
		{"the last of those that went", []registry.Delivery{delivery("a", "1", dead), delivery("a", "2", delivered)}, []string{"a/2 delivered 1 [{1 delivered} {1 dead}]"}},
		{"the last is dead", []registry.Delivery{delivery("a", "1", delivered), delivery("a", "2", failed, dead)}, []string{"a/2 dead 2 [{1 delivered} {1 dead}]"}},
		{
			"the one that holds up the others",
			[]registry.Delivery{delivery("a", "1", delivered), delivery("a", "2", failed), delivery("a", "3"), delivery("a", "4", requeued)},
			[]string{"a/2 failed 1 [{1 delivered} {2 waiting} {1 failed}]"},
		},
		{"hooks by name", []registry.Delivery{delivery("b", "1"), delivery("c", "1", delivered), delivery("a", "1", dead)}, []string{"a/1 dead 1 []", "b/1 waiting 0 []", "c/1 delivered 1 []"}},
	}
	for _, tt := range tests {
		slices.Reverse(tt.oldest)
		var got []string
		for _, v := range web.SentTo(tt.oldest) {
			got = append(got, fmt.Sprint(v.Delivery.ID, " ", v.Says, " ", v.Last.Number, " ", v.Counts))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: sentTo (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Each client has one part of the page, which says what is pulled.
func TestPullViews(t *testing.T) {
	pulls := []registry.Pull{
		{Client: "oras", By: "tag", Text: "o1"},
		{Client: "oras", By: "digest", Text: "o2"},
		{Client: "curl", By: "tag", Text: "c1"},
		{Client: "curl", By: "digest", Text: "c2"},
		{Client: "kserve", By: "digest", Text: "k"},
	}
	var got []string
	for _, v := range web.PullViews(pulls) {
		got = append(got, fmt.Sprintf("%s: %s, %s: %s", v.Title, v.ByTag, v.Digest, v.ByDigest))
	}
	want := []string{"Artifact: o1, by digest: o2", "curl: c1, the largest file, by digest: c2", "KServe: , YAML, by digest: k"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pullViews (-want +got):\n%s", diff)
	}
}
