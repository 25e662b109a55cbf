package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
)

// decode reads a JSON body of at most limit bytes into v, strictly: one value, no field that v
// does not have. The error names the field that is wrong.
func decode(c echo.Context, limit int64, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(c.Response(), c.Request().Body, limit))
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return fmt.Errorf("the body is longer than %d bytes: %w", limit, registry.ErrTooLarge)
	}
	if err != nil {
		return registry.Invalid("", "the body cannot be read")
	}
	return decodeJSON(body, v)
}

func decodeJSON(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return registry.Invalid("", "something follows the JSON value in the body")
		}
		return nil
	}
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	var field *registry.FieldError
	switch {
	case errors.As(err, &field):
		return err
	case errors.As(err, &wrongType):
		name := fieldAt(body, wrongType.Offset)
		return registry.Invalid(name, "%s cannot be a %s here", orBody(name), wrongType.Value)
	case errors.As(err, &syntax):
		name := fieldAt(body, syntax.Offset)
		return registry.Invalid(name, "%s is not JSON: %v", orBody(name), syntax)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return registry.Invalid("", "the body ends before the JSON value does")
	}
	if name, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
		name = strings.Trim(name, `"`)
		return registry.Invalid(name, "there is no field %q", name)
	}
	return registry.Invalid("", "the body cannot be read: %v", err)
}

func orBody(field string) string {
	if field == "" {
		return "the body"
	}
	return field
}

// fieldAt names the field whose value stands at an offset, as in "metrics.f1" or "matrix[0][2]".
// What cannot be parsed at that place is no hindrance.
func fieldAt(body []byte, offset int64) string {
	d := json.NewDecoder(bytes.NewReader(body))
	var path []step
	for {
		token, err := d.Token()
		if err != nil || d.InputOffset() >= offset {
			// An error stands at the value that is about to be read.
			if err != nil && len(path) > 0 {
				path[len(path)-1].begin()
			} else if err == nil {
				path = enter(path, token)
				if len(path) > 0 && token == json.Delim('[') || token == json.Delim('{') {
					path = path[:len(path)-1]
				}
			}
			return join(path)
		}
		path = enter(path, token)
	}
}

// step is an open object or array and the place in it.
type step struct {
	array   bool
	index   int    // of the last element, in an array
	key     string // of the last member, in an object
	waiting bool   // the key was read, its value was not
}

// begin moves on to the next value of the array or object.
func (s *step) begin() {
	if s.array {
		s.index++
	}
	s.waiting = false
}

// enter takes one token into account.
func enter(path []step, token json.Token) []step {
	delim, isDelim := token.(json.Delim)
	if isDelim && (delim == '}' || delim == ']') {
		return path[:len(path)-1]
	}
	if len(path) > 0 {
		top := &path[len(path)-1]
		if key, isText := token.(string); isText && !top.array && !top.waiting {
			top.key, top.waiting = key, true
			return path
		}
		top.begin()
	}
	if isDelim {
		return append(path, step{array: delim == '[', index: -1})
	}
	return path
}

func join(path []step) string {
	var b strings.Builder
	for _, s := range path {
		switch {
		case s.array && s.index >= 0:
			fmt.Fprintf(&b, "[%d]", s.index)
		case !s.array && s.key != "":
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.key)
		}
	}
	return b.String()
}
