package lifecycle

import "context"

// Trailer is the line that says how far a record ref goes.
func Trailer(seq uint64, index int, journal string) string { return place{seq, index}.trailer(journal) }

// ParsePlace finds it in a commit's message.
func ParsePlace(message, journal string) (seq uint64, index int) {
	p := parsePlace(message, journal)
	return p.seq, p.index
}

// Sweep looks at all models, as Run does each minute.
func (s *Service) Sweep(ctx context.Context) error { return s.sweep(ctx) }
