package registry

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrInvalid reports that a value given by a client breaks a rule. It is always wrapped
	// in a [FieldError] that names the field.
	ErrInvalid = errors.New("invalid value")

	// ErrNotFound reports that there is no such thing, or that the caller may not know of it.
	ErrNotFound = errors.New("not found")

	// ErrExists reports that the name is taken.
	ErrExists = errors.New("already exists")

	// ErrImmutable reports that the version was published and its content cannot change.
	ErrImmutable = errors.New("version is immutable")

	// ErrConflict reports that the request does not fit the present state; see [Conflict].
	ErrConflict = errors.New("conflict")

	// ErrGateClosed reports that a gate refused a promotion. It is always wrapped in a
	// [GateClosedError] that carries the verdict.
	ErrGateClosed = errors.New("gate is closed")

	// ErrUnauthenticated reports that the request needs a token and brought none, or a
	// wrong one.
	ErrUnauthenticated = errors.New("authentication required")

	// ErrWrongToken is the ErrUnauthenticated of a request that brought a token.
	ErrWrongToken = fmt.Errorf("the token is wrong: %w", ErrUnauthenticated)

	// ErrForbidden reports that the caller may know of the model and may not do this to it.
	ErrForbidden = errors.New("not allowed")

	// ErrTooLarge reports that a body, a file or a list is over its limit; the text names it.
	ErrTooLarge = errors.New("too large")

	// ErrNotReady reports that the thing is being made and is not there yet.
	ErrNotReady = errors.New("not ready yet")

	// ErrUnavailable reports that the server cannot take writes now, such as after a failed
	// write to its journal or while it stops.
	ErrUnavailable = errors.New("unavailable")
)

// FieldError says which field of a client's request is wrong, and how. It is an [ErrInvalid].
type FieldError struct {
	Field  string // as the client spells it: "confusion.matrix[1][2]"; empty when it is the whole
	Detail string // one sentence
}

// Invalid makes a FieldError.
func Invalid(field, format string, args ...any) error {
	return &FieldError{Field: field, Detail: fmt.Sprintf(format, args...)}
}

// InField says of a [FieldError] where in the request the field is, and of an [ErrNotFound] what named the thing: prefix comes before its name. Other
// errors stay what they are.
func InField(err error, prefix string) error {
	var f *FieldError
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(prefix, "."), err)
	}
	if !errors.As(err, &f) {
		return err
	}
	return &FieldError{Field: prefix + f.Field, Detail: f.Detail}
}

func (e *FieldError) Error() string { return e.Detail }

func (e *FieldError) Unwrap() error { return ErrInvalid }

// Conflict makes an [ErrConflict] whose text is all that the caller reads.
func Conflict(format string, args ...any) error {
	return &conflictError{fmt.Sprintf(format, args...)}
}

type conflictError struct{ detail string }

func (e *conflictError) Error() string { return e.detail }

func (e *conflictError) Unwrap() error { return ErrConflict }

// GateClosedError carries the verdict that refused a promotion. It is an [ErrGateClosed].
type GateClosedError struct {
	Model   ModelName
	Version Tag
	Verdict Verdict
}

func (e *GateClosedError) Error() string {
	return fmt.Sprintf("%s %s may not go to %s: %s", e.Model, e.Version, e.Verdict.Environment, e.Verdict.Reason())
}

func (e *GateClosedError) Unwrap() error { return ErrGateClosed }
