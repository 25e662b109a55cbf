package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	}
	return nil
}
