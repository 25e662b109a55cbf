package registry_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestErrors(t *testing.T) {
	closed := &registry.GateClosedError{Model: registry.MustModelName("acme/fraud"), Version: registry.MustTag("v1.0.0"), Verdict: registry.Verdict{
		Environment: registry.MustEnvironmentName("production"), Gates: []registry.GateVerdict{{Reason: "metrics.f1 is not recorded"}, {Open: true, Reason: "ok"}},
	}}
	tests := []struct {
		err  error
		is   error
		text string
	}{
		{registry.Invalid("name", "%q is bad", "x"), registry.ErrInvalid, `"x" is bad`},
		{registry.Invalid("", "%d%% wrong", 100), registry.ErrInvalid, "100% wrong"},
		{registry.Conflict("%s is in %s already", "v1.0.0", "production"), registry.ErrConflict, "v1.0.0 is in production already"},
		{closed, registry.ErrGateClosed, "acme/fraud v1.0.0 may not go to production: metrics.f1 is not recorded"},
	}
	for _, tt := range tests {
		wrapped := fmt.Errorf("while it was tried: %w", tt.err)
		if !errors.Is(tt.err, tt.is) || !errors.Is(wrapped, tt.is) {
			t.Errorf("%v is not a %v", tt.err, tt.is)
		}
		for _, other := range []error{registry.ErrInvalid, registry.ErrConflict, registry.ErrGateClosed, registry.ErrNotFound} {
			if other != tt.is && errors.Is(tt.err, other) {
				t.Errorf("%v is a %v too", tt.err, other)
			}
		}
		if tt.err.Error() != tt.text {
			t.Errorf("the error says %q, want %q", tt.err, tt.text)
		}
	}
	var field *registry.FieldError
	if err := fmt.Errorf("evaluation: %w", registry.Invalid("confusion.matrix[1][2]", "a count is negative: %d", -3)); !errors.As(err, &field) || field.Field != "confusion.matrix[1][2]" || field.Detail != "a count is negative: -3" {
		t.Errorf("the field of %v = %+v", err, field)
	}
	var gate *registry.GateClosedError
	if err := fmt.Errorf("promotion: %w", closed); !errors.As(err, &gate) || gate.Verdict.Environment != closed.Verdict.Environment {
		t.Errorf("the verdict of %v = %+v", err, gate)
	}
}
