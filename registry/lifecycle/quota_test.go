package lifecycle_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

func TestQuota(t *testing.T) {
	s := open(t)
	s.Quotas = []registry.Quota{{Models: "acme/*", Bytes: 100}, {Models: "other/*", Bytes: 1000}}
	m, twin := s.model(fraud), s.model(registry.MustModelName("acme/twin"))
	link := func(m registry.Model, content string) error {
		return s.LinkBlobs(t.Context(), by("ada"), m, registry.LinkedBlob{Digest: digest.FromString(content), SizeBytes: int64(len(content))})
	}
	if err := link(m, strings.Repeat("a", 60)); err != nil {
		t.Fatalf("60 of 100 bytes: %v, want them to be taken", err)
	}
	var full *registry.QuotaError
	if err := link(twin, strings.Repeat("b", 60)); !errors.As(err, &full) || full.UsedBytes != 60 || full.WantedBytes != 60 || full.Models != "acme/*" {
		t.Errorf("60 bytes more for another model of the pattern = %v, want a QuotaError with 60 used and 60 wanted", err)
	}
	if owned, err := s.data.Index.Usage(t.Context(), twin.ID); err != nil || owned.Blobs != 0 {
		t.Errorf("the model that was refused owns %+v, %v, want nothing", owned, err)
	}
	if err := link(twin, strings.Repeat("b", 40)); err != nil {
		t.Errorf("the last 40 bytes: %v, want them to be taken", err)
	}
	if err := link(m, strings.Repeat("a", 60)); err != nil {
		t.Errorf("what the model owns already, sent again because it was lost: %v, want it to be taken", err)
	}
	if err := s.CheckQuota(t.Context(), fraud.String(), 1); !errors.Is(err, registry.ErrQuota) {
		t.Errorf("CheckQuota of one byte more = %v, want ErrQuota", err)
	}
	if err := s.CheckQuota(t.Context(), "other/x", 1000); err != nil {
		t.Errorf("CheckQuota of another pattern = %v, want nil", err)
	}
	if err := s.CheckQuota(t.Context(), "free/x", 1<<40); err != nil {
		t.Errorf("CheckQuota without a quota = %v, want nil", err)
	}
	p := &push{id: "p", updates: manyBranches(1), blobs: []pushedBlob{{path: "README.md", content: "x"}}}
	if text := refusal(t, s.CheckPush(t.Context(), by("ada"), m, p)); !strings.Contains(text, "the models acme/* may hold 100 B together and hold 100 B; this needs 1 B more") {
		t.Errorf("a push over the quota is refused with\n%s", text)
	}
}

// What a model owns is counted once, and given back when it goes.
func TestUsage(t *testing.T) {
	s := open(t)
	m, twin := s.model(fraud), s.model(registry.MustModelName("acme/twin"))
	shared := "shared by both"
	for range 2 {
		s.upload(m, shared)
	}
	s.upload(twin, shared)
	s.upload(m, "alone")
	usage := func(m registry.Model) registry.Usage {
		t.Helper()
		u, err := s.data.Index.Usage(t.Context(), m.ID)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if got, want := usage(m), (registry.Usage{Blobs: 2, LogicalBytes: 19}); got != want {
		t.Errorf("Usage = %+v, want %+v", got, want)
	}
	if got, err := s.data.Index.ExclusiveBytes(t.Context(), m.ID); got != 5 || err != nil {
		t.Errorf("ExclusiveBytes = %d, %v, want 5", got, err)
	}
	counts, err := s.data.Index.Counts(t.Context())
	if err != nil || counts.LogicalBytes != 33 {
		t.Errorf("LogicalBytes of all = %d, %v, want 33", counts.LogicalBytes, err)
	}
	if err := s.DeleteModel(t.Context(), by("ada"), twin); err != nil {
		t.Fatal(err)
	}
	if got, err := s.data.Index.ExclusiveBytes(t.Context(), m.ID); got != 19 || err != nil {
		t.Errorf("ExclusiveBytes after the other model went = %d, %v, want 19", got, err)
	}
	if counts, err = s.data.Index.Counts(t.Context()); err != nil || counts.LogicalBytes != 19 {
		t.Errorf("LogicalBytes of all after that = %d, %v, want 19", counts.LogicalBytes, err)
	}
}
