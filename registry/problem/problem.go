// Package problem tells what class of answer an error is. It holds the one table; each door of
// the server maps the class to what its protocol says for it.
package problem

import (
	"context"
	"errors"
	"syscall"

	"github.com/herdbook/herdbook/registry"
)

// Class of an answer.
type Class int

// The classes. Internal is the zero value: what is not in the table is a fault of the server,
// logged in full and told to nobody.
const (
	Internal Class = iota
	Invalid
	Unauthenticated
	Forbidden
	NotFound
	Conflict
	TooLarge
	NotReady
	Unavailable
	NoSpace
	Canceled
)

// Status is the HTTP status of a class.
// Source: RFC 9110, section 15; 507 is RFC 4918, section 11.5; 499 is what proxies log for a
// client that went away, and nobody reads it.
func (c Class) Status() int {
	return [...]int{
		Internal: 500, Invalid: 400, Unauthenticated: 401, Forbidden: 403, NotFound: 404, Conflict: 409,
		TooLarge: 413, NotReady: 404, Unavailable: 503, NoSpace: 507, Canceled: 499,
	}[c]
}

// Title is a short name of a class, the same for all its errors.
func (c Class) Title() string {
	return [...]string{
		Internal: "internal error", Invalid: "invalid request", Unauthenticated: "authentication required",
		Forbidden: "not allowed", NotFound: "not found", Conflict: "conflict", TooLarge: "too large",
		NotReady: "not ready yet", Unavailable: "unavailable", NoSpace: "out of space", Canceled: "canceled",
	}[c]
}

// table maps errors to classes; the first that fits wins.
var table = []struct {
	err   error
	class Class
}{
	{registry.ErrInvalid, Invalid},
	{registry.ErrUnauthenticated, Unauthenticated},
	{registry.ErrWrongToken, Unauthenticated},
	{registry.ErrForbidden, Forbidden},
	{registry.ErrGateClosed, Conflict},
	{registry.ErrImmutable, Conflict},
	{registry.ErrExists, Conflict},
	{registry.ErrConflict, Conflict},
	{registry.ErrTooLarge, TooLarge},
	{registry.ErrNotReady, NotReady},
	{registry.ErrNotFound, NotFound},
	{registry.ErrQuota, NoSpace},
	{syscall.ENOSPC, NoSpace},
	{syscall.EDQUOT, NoSpace},
	{syscall.EROFS, Unavailable},
	{syscall.EMFILE, Unavailable},
	{syscall.ENFILE, Unavailable},
	{registry.ErrUnavailable, Unavailable},
	{context.Canceled, Canceled},
	{context.DeadlineExceeded, Unavailable},
}

// Of is the class of an error.
func Of(err error) Class {
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.class
		}
	}
	return Internal
}

// Detail is what the caller may read of an error: all of it, unless it is internal or speaks
// of the server's disk.
func Detail(err error) string {
	switch c := Of(err); c {
	case Internal:
		return "internal error"
	case Unauthenticated:
		if errors.Is(err, registry.ErrWrongToken) {
			return "the token is wrong, or it was revoked"
		}
		return "this needs a token: send it as a bearer token, or as the password of HTTP Basic authentication with any user name"
	case NoSpace:
		if errors.Is(err, registry.ErrQuota) {
			return err.Error()
		}
		return "the server has no space left for new content; reading still works"
	case Unavailable:
		return "the server cannot do this now; try again later"
	case Canceled:
		return "the request was canceled"
	}
	return err.Error()
}
