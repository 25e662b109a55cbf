package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// attach fills in the sizes of what an evaluation names as attachments, and refuses it when the model was not shown one of them. The model is
// in use.
func (s *Service) attach(ctx context.Context, m registry.Model, e *registry.Evaluation) error {
	e.Attachments = slices.Clone(e.Attachments) // the caller's stay as they are
	for i := range e.Attachments {
		a := &e.Attachments[i]
		field := fmt.Sprintf("attachments[%d]", i)
		size, err := s.Index.BlobSize(ctx, m.ID, a.Digest.String())
		switch {
		case errors.Is(err, registry.ErrNotFound):
			return registry.Invalid(field+".digest",
				"the attachment %s was not uploaded to %s: send it first with PUT /api/v1/models/%s/attachments/%s, or let herdbook evaluate --attach FILE do both",
				a.Name, m.Name, m.Name, a.Digest)
		case err != nil:
			return err
		case a.SizeBytes != 0 && a.SizeBytes != size:
			return registry.Invalid(field+".size_bytes", "the attachment %s has %d bytes, not %d; leave size_bytes out", a.Name, size, a.SizeBytes)
		}
		a.SizeBytes = size
		if a.MediaType != registry.ExplanationType {
			continue
		}
		if err := s.CheckExplanation(ctx, a.Digest); err != nil {
			var bad *registry.FieldError
			if errors.As(err, &bad) {
				return registry.Invalid(field, "the attachment %s is no explanation: %s", a.Name, describe(bad))
			}
			return err
		}
	}
	return nil
}

func describe(e *registry.FieldError) string {
	if e.Field == "" {
		return e.Detail
	}
	return e.Field + ": " + e.Detail
}

// CheckExplanation reports what is wrong with content of the store that is said to be an explanation, as a [registry.FieldError].
func (s *Service) CheckExplanation(ctx context.Context, d digest.Digest) error {
	content, err := s.Blobs.Get(ctx, d)
	if err != nil {
		return err
	}
	defer content.Close()
	data, err := io.ReadAll(io.LimitReader(content, registry.MaxExplanationBytes+1))
	if err != nil {
		return err
	}
	_, err = registry.ParseExplanation(data)
	return err
}
