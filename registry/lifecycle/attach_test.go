package lifecycle_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// with is an evaluation with attachments.
func with(attachments ...registry.Attachment) registry.EvaluationInput {
	in := f1Of(0.9)
	in.Attachments = attachments
	return in
}

func TestAttachments(t *testing.T) {
	s := open(t)
	m, other := s.model(fraud), s.model(registry.MustModelName("acme/other"))
	commit := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"}).Version.Commit
	report, elsewhere := s.upload(m, "a report"), s.upload(other, "of another model")
	good, bad := s.upload(m, `{"method":"shap","features":[{"name":"a","importance":1}]}`), s.upload(m, `{"method":"shap","features":[]}`)
	explanation := func(d digest.Digest) registry.EvaluationInput {
		return with(registry.Attachment{Name: "a", MediaType: registry.ExplanationType, Digest: d})
	}
	never := digest.FromString("never sent")
	tests := []struct {
		name  string
		in    registry.EvaluationInput
		field string // to blame; empty when it is recorded
		bytes int64
	}{
		{"uploaded", with(registry.Attachment{Name: "report.txt", Digest: report}), "", 8},
		{"uploaded, with its size", with(registry.Attachment{Name: "report.txt", Digest: report, SizeBytes: 8}), "", 8},
		{"an explanation", explanation(good), "", 58},
		{"no explanation", explanation(bad), "attachments[0]", 0},
		{"with another size", with(registry.Attachment{Name: "report.txt", Digest: report, SizeBytes: 9}), "attachments[0].size_bytes", 0},
		{"never sent", with(registry.Attachment{Name: "report.txt", Digest: report}, registry.Attachment{Name: "plot.png", Digest: never}), "attachments[1].digest", 0},
		{"sent to another model", with(registry.Attachment{Name: "report.txt", Digest: elsewhere}), "attachments[0].digest", 0},
	}
	for _, tt := range tests {
		groups := s.groups()
		recorded, err := s.RecordEvaluation(t.Context(), by("ada"), m, commit, tt.in)
		var bad *registry.FieldError
		switch {
		case tt.field == "" && err != nil:
			t.Errorf("%s: RecordEvaluation = %v", tt.name, err)
		case tt.field == "" && recorded.Evaluation.Attachments[0].SizeBytes != tt.bytes:
			t.Errorf("%s: recorded with %d bytes, want those of the blob, %d", tt.name, recorded.Evaluation.Attachments[0].SizeBytes, tt.bytes)
		case tt.field != "" && (!errors.As(err, &bad) || bad.Field != tt.field):
			t.Errorf("%s: RecordEvaluation = %v, want a field error on %s", tt.name, err, tt.field)
		case tt.field != "" && s.groups() != groups:
			t.Errorf("%s: a refused evaluation was written to the journal", tt.name)
		}
	}
	if tests[0].in.Attachments[0].SizeBytes != 0 {
		t.Error("RecordEvaluation changed the attachments of its caller")
	}
	// The same request again, with the size filled in or not, finds the first.
	request := by("ada")
	request.Key = "job-7"
	first, err := s.RecordEvaluation(t.Context(), request, m, commit, tests[0].in)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []registry.EvaluationInput{tests[0].in, tests[1].in} {
		if again, err := s.RecordEvaluation(t.Context(), request, m, commit, in); err != nil || again.Evaluation.ID != first.Evaluation.ID {
			t.Errorf("RecordEvaluation again = %s, %v, want %s", again.Evaluation.ID, err, first.Evaluation.ID)
		}
	}
}

func TestReleaseOfAttachments(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	commit := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"}).Version.Commit
	named, unnamed := s.upload(m, "named"), s.upload(m, "never named")
	if _, err := s.RecordEvaluation(t.Context(), by("ada"), m, commit, with(registry.Attachment{Name: "a", Digest: named})); err != nil {
		t.Fatal(err)
	}
	if got := released(t, s, time.Now().Add(-time.Hour), false); len(got) != 0 {
		t.Errorf("Release within the grace period = %v, want nothing", got)
	}
	if diff := cmp.Diff(map[string][]string{"acme/fraud": {unnamed.String()}}, released(t, s, time.Now().Add(time.Hour), false)); diff != "" {
		t.Errorf("Release (-want +got):\n%s", diff)
	}
	s.collect()
	if !s.kept(named) || s.kept(unnamed) {
		t.Errorf("the store keeps the named attachment: %t, the other one: %t; want only the first", s.kept(named), s.kept(unnamed))
	}
	var bad *registry.FieldError
	if _, err := s.RecordEvaluation(t.Context(), by("ada"), m, commit, with(registry.Attachment{Name: "a", Digest: unnamed})); !errors.As(err, &bad) {
		t.Errorf("RecordEvaluation with what was let go of = %v, want a field error", err)
	}
}

// attachingIndex does something when the attachments of a model have been listed, once.
type attachingIndex struct {
	lifecycle.Index
	listed func()
}

func (i *attachingIndex) AttachmentsOf(ctx context.Context, modelID string) ([]digest.Digest, error) {
	attachments, err := i.Index.AttachmentsOf(ctx, modelID)
	if do := i.listed; do != nil {
		i.listed = nil
		do()
	}
	return attachments, err
}

// What an evaluation comes to name while it is looked for what is needed is not let go of.
func TestReleaseDuringAnEvaluation(t *testing.T) {
	index := &attachingIndex{}
	s := open(t, func(f *faults) { index.Index, f.Index = f.Index, index })
	m := s.model(fraud)
	commit := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"}).Version.Commit
	report := s.upload(m, "a report")
	index.listed = func() {
		if _, err := s.RecordEvaluation(t.Context(), by("ada"), m, commit, with(registry.Attachment{Name: "a", Digest: report})); err != nil {
			t.Errorf("RecordEvaluation while it is looked for garbage = %v", err)
		}
	}
	if got := released(t, s, time.Now().Add(time.Hour), false); len(got) != 0 {
		t.Errorf("Release during an evaluation = %v, want nothing", got)
	}
	if _, err := s.data.Index.BlobSize(t.Context(), m.ID, report.String()); err != nil {
		t.Errorf("the attachment of an evaluation = %v, want it there", err)
	}
}
