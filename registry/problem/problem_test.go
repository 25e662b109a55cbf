package problem_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/problem"
)

// sentinels are all of registry/errors.go, with the class that each has.
var sentinels = map[string]struct {
	err    error
	class  problem.Class
	status int
}{
	"ErrInvalid":         {registry.ErrInvalid, problem.Invalid, 400},
	"ErrNotFound":        {registry.ErrNotFound, problem.NotFound, 404},
	"ErrExists":          {registry.ErrExists, problem.Conflict, 409},
	"ErrImmutable":       {registry.ErrImmutable, problem.Conflict, 409},
	"ErrConflict":        {registry.ErrConflict, problem.Conflict, 409},
	"ErrGateClosed":      {registry.ErrGateClosed, problem.Conflict, 409},
	"ErrUnauthenticated": {registry.ErrUnauthenticated, problem.Unauthenticated, 401},
	"ErrWrongToken":      {registry.ErrWrongToken, problem.Unauthenticated, 401},
	"ErrForbidden":       {registry.ErrForbidden, problem.Forbidden, 403},
	"ErrQuota":           {registry.ErrQuota, problem.NoSpace, 507},
	"ErrTooLarge":        {registry.ErrTooLarge, problem.TooLarge, 413},
	"ErrNotReady":        {registry.ErrNotReady, problem.NotReady, 404},
	"ErrUnavailable":     {registry.ErrUnavailable, problem.Unavailable, 503},
}

// constants are the names that the source declares at the top level and that keep says are wanted.
func constants(t *testing.T, path string, kind token.Token, keep func(name string) bool) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, decl := range file.Decls {
		general, ok := decl.(*ast.GenDecl)
		if !ok || general.Tok != kind {
			continue
		}
		for _, spec := range general.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if keep(name.Name) {
					found = append(found, name.Name)
				}
			}
		}
	}
	return found
}

func TestEverySentinelHasAClass(t *testing.T) {
	paths, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range paths {
		for _, name := range constants(t, path, token.VAR, func(name string) bool { return strings.HasPrefix(name, "Err") }) {
			count++
			if _, ok := sentinels[name]; !ok {
				t.Errorf("registry.%s has no row in this test: give it a class", name)
			}
		}
	}
	if count != len(sentinels) {
		t.Errorf("the source declares %d sentinels and this test has %d", count, len(sentinels))
	}
	for name, s := range sentinels {
		for depth, err := range []error{s.err, fmt.Errorf("version v1.0.0: %w", s.err), fmt.Errorf("a: %w", fmt.Errorf("b: %w", s.err)), errors.Join(io.EOF, s.err)} {
			if got := problem.Of(err); got != s.class || got == problem.Internal || got.Status() != s.status {
				t.Errorf("Of(%s, wrapped in way %d) = %d with status %d, want %d with %d", name, depth, got, got.Status(), s.class, s.status)
			}
		}
	}
}

func TestOf(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want problem.Class
	}{
		{"a field", registry.Invalid("name", "bad"), problem.Invalid},
		{"a conflict", fmt.Errorf("x: %w", registry.Conflict("it is there already")), problem.Conflict},
		{"a closed gate", &registry.GateClosedError{}, problem.Conflict},
		{"a full disk", &fs.PathError{Op: "write", Path: "/srv/data/blobs/x", Err: syscall.ENOSPC}, problem.NoSpace},
		{"a full quota", &fs.PathError{Op: "write", Path: "/srv/data/blobs/x", Err: syscall.EDQUOT}, problem.NoSpace},
		{"a full disk that stops writes", fmt.Errorf("journal: %w: %w", registry.ErrUnavailable, syscall.ENOSPC), problem.NoSpace},
		{"a disk that cannot be written to", &fs.PathError{Op: "open", Path: "/srv/data/blobs/x", Err: syscall.EROFS}, problem.Unavailable},
		{"too many open files", fmt.Errorf("git: %w", syscall.EMFILE), problem.Unavailable},
		{"too many open files of the machine", fmt.Errorf("git: %w", syscall.ENFILE), problem.Unavailable},
		{"a client that went away", context.Canceled, problem.Canceled},
		{"a client that waits no longer", fmt.Errorf("git: %w", context.DeadlineExceeded), problem.Unavailable},
		{"not ready, and so not found", fmt.Errorf("%w: %w", registry.ErrNotFound, registry.ErrNotReady), problem.NotReady},
		{"a missing file of the server", &fs.PathError{Op: "open", Path: "/srv/data/x", Err: fs.ErrNotExist}, problem.Internal},
		{"no rights on a file of the server", fs.ErrPermission, problem.Internal},
		{"a short read", io.ErrUnexpectedEOF, problem.Internal},
		{"the text of a sentinel alone", errors.New(registry.ErrNotFound.Error()), problem.Internal},
		{"nothing", nil, problem.Internal},
	}
	for _, tt := range tests {
		if got := problem.Of(tt.err); got != tt.want {
			t.Errorf("Of(%s) = %q, want %q", tt.name, got.Title(), tt.want.Title())
		}
	}
}

// The caller reads the text of its own mistakes in full, and nothing of the server's.
func TestDetail(t *testing.T) {
	const secret = "/srv/data/blobs/0123"
	tests := []struct {
		err   error
		want  string
		shown bool // the whole text
	}{
		{err: registry.Invalid("name", "the name is bad"), shown: true},
		{err: fmt.Errorf("model acme/fraud: %w", registry.ErrNotFound), shown: true},
		{err: fmt.Errorf("version v1.0.0 of acme/fraud: %w", registry.ErrImmutable), shown: true},
		{err: registry.Conflict("v1.0.0 is in production already"), shown: true},
		{err: fmt.Errorf("an evaluation is at most 4 MiB: %w", registry.ErrTooLarge), shown: true},
		{err: fmt.Errorf("the image: %w", registry.ErrNotReady), shown: true},
		{err: fmt.Errorf("push: %w", registry.ErrForbidden), shown: true},

		{err: errors.New("open " + secret), want: "internal error"},
		{err: &fs.PathError{Op: "open", Path: secret, Err: fs.ErrNotExist}, want: "internal error"},
		{err: &fs.PathError{Op: "write", Path: secret, Err: syscall.ENOSPC}, want: "no space left"},
		{err: fmt.Errorf("sync %s: %w", secret, registry.ErrUnavailable), want: "try again later"},
		{err: fmt.Errorf("read %s: %w", secret, context.DeadlineExceeded), want: "try again later"},
		{err: fmt.Errorf("read %s: %w", secret, context.Canceled), want: "canceled"},
		{err: fmt.Errorf("token %s: %w", secret, registry.ErrUnauthenticated), want: "needs a token"},
		{err: nil, want: "internal error"},
	}
	for _, tt := range tests {
		got := problem.Detail(tt.err)
		switch {
		case tt.shown && got != tt.err.Error():
			t.Errorf("Detail(%v) = %q, want the whole text", tt.err, got)
		case !tt.shown && (!strings.Contains(got, tt.want) || strings.Contains(got, secret)):
			t.Errorf("Detail(%v) = %q, want %q and nothing of the server's files", tt.err, got, tt.want)
		}
	}
}

func TestClasses(t *testing.T) {
	names := constants(t, "problem.go", token.CONST, func(name string) bool { return name != "_" })
	if len(names) < 5 {
		t.Fatalf("the source has the classes %v: the search for them is broken", names)
	}
	titles := map[string]string{}
	for i, name := range names {
		c := problem.Class(i)
		if s := c.Status(); s < 400 || s > 599 {
			t.Errorf("status of %s = %d, want one of an error", name, s)
		}
		if other, ok := titles[c.Title()]; ok || c.Title() == "" {
			t.Errorf("title of %s = %q, and so is that of %q", name, c.Title(), other)
		}
		titles[c.Title()] = name
	}
	if got := problem.Class(0); got != problem.Internal || got.Status() != 500 {
		t.Errorf("the zero class is %q with status %d, want an internal error", got.Title(), got.Status())
	}
}

func BenchmarkOf(b *testing.B) {
	for name, err := range map[string]error{
		"first": registry.Invalid("name", "bad"), "wrapped": fmt.Errorf("a: %w", fmt.Errorf("b: %w", registry.ErrNotFound)), "unknown": fmt.Errorf("a: %w", io.EOF),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				problem.Of(err)
			}
		})
	}
}
