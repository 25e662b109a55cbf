package api

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
)

// decode reads a JSON body of at most limit bytes into v, strictly: one value, no field that v
// does not have. The error names the field that is wrong.
func decode(c echo.Context, limit int64, v any) error {
	if text := c.Request().Header.Get(echo.HeaderContentType); text != "" {
		kind, _, err := mime.ParseMediaType(text)
		// A form is what curl -d says when nobody tells it otherwise. Requests that the pages of
		// other sites could send are refused before, see sameOrigin.
		if err != nil || (kind != echo.MIMEApplicationJSON && kind != echo.MIMEApplicationForm && !strings.HasSuffix(kind, "+json")) {
			return &echo.HTTPError{Code: http.StatusUnsupportedMediaType, Message: "the body is JSON, and its Content-Type says so: application/json"}
		}
	}
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

// decodeJSON reads one JSON object, strictly, into the struct that v points to.
func decodeJSON(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(v); err != nil {
		return decodeError(body, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return registry.Invalid("", "something follows the JSON value in the body")
	}
	if trimmed := bytes.TrimLeft(body, " \t\r\n"); trimmed[0] != '{' {
		return registry.Invalid("", "the body is not a JSON object")
	}
	return fields{json.NewDecoder(bytes.NewReader(body))}.check(reflect.TypeOf(v), nil)
}

// decodeError says which field it is that encoding/json could not read, and why.
func decodeError(body []byte, err error) error {
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	var field *registry.FieldError
	switch {
	case errors.As(err, &field):
		return err
	case errors.As(err, &wrongType):
		name := fieldAt(body, wrongType.Offset)
		return registry.Invalid(name, "%s cannot be of the JSON type %s", orBody(name), wrongType.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return registry.Invalid("", "the body ends before the JSON value does")
	case errors.As(err, &syntax):
		name := fieldAt(body, syntax.Offset)
		return registry.Invalid(name, "%s is not JSON: %v", orBody(name), syntax)
	}
	return registry.Invalid("", "the body cannot be read: %v", err)
}

// fields looks at the names of the members in a body, which encoding/json takes in any case and
// more than once: what one program reads in it and another does not is how checks are got around.
type fields struct{ *json.Decoder }

// check reads a value that was decoded into a t before and stands at path.
func (f fields) check(t reflect.Type, path []step) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if !hasFields(t) {
		var passed json.RawMessage
		if err := f.Decode(&passed); err != nil {
			return err
		}
		if readsItself(t) && string(passed) != "null" {
			return nil
		}
		return nullIn(passed, path)
	}
	open, err := f.Token()
	if err != nil {
		return err
	}
	if open == nil {
		return element(path)
	}
	at := step{array: open == json.Delim('['), index: -1}
	seen := map[string]bool{}
	for f.More() {
		of := t
		if at.array {
			at.index++
			of = t.Elem()
		} else {
			key, err := f.Token()
			if err != nil {
				return err
			}
			at.key, _ = key.(string) // a key is a text
			at.named, at.entry = true, t.Kind() == reflect.Map
			if seen[at.key] {
				return registry.Invalid(join(append(path, at)), "the field %q stands there twice", clip(at.key))
			}
			seen[at.key] = true
			var known bool
			if of, known = member(t, at.key); !known {
				return registry.Invalid(join(append(path, at)), "there is no field %q", clip(at.key))
			}
		}
		if err := f.check(of, append(path, at)); err != nil {
			return err
		}
	}
	_, err = f.Token()
	return err
}

// nullIn reports a null among the elements of a value. encoding/json makes a zero of it, which a
// count or a metric must never become.
func nullIn(value json.RawMessage, path []step) error {
	if !bytes.Contains(value, []byte("null")) {
		return nil
	}
	var within []step
	for d := json.NewDecoder(bytes.NewReader(value)); ; {
		token, err := d.Token()
		if err != nil { // the value's end
			return nil
		}
		if within = enter(within, token); token == nil {
			if err := element(slices.Concat(path, within)); err != nil {
				return err
			}
		}
	}
}

// element is the error for a null at path: a field of an object may be null, which is as if it
// were left out; an element of a list or an entry of a map may not.
func element(path []step) error {
	if n := len(path); n > 0 && (path[n-1].array || path[n-1].entry) {
		return registry.Invalid(join(path), "null is no value here")
	}
	return nil
}

// hasFields reports whether there are names of members in the JSON of a t.
func hasFields(t reflect.Type) bool {
	if readsItself(t) {
		return false
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return true
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return hasFields(t.Elem())
	}
	return false
}

// readsItself reports whether a t reads its own JSON.
func readsItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// member is the type of the member of t with exactly that name.
func member(t reflect.Type, name string) (of reflect.Type, ok bool) {
	if t.Kind() == reflect.Map {
		return t.Elem(), true
	}
	for i := range t.NumField() {
		if tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); tag == name && tag != "" && tag != "-" {
			return t.Field(i).Type, true
		}
	}
	return nil, false
}

// clip bounds what an error repeats of its input.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
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
				if token == json.Delim('[') || token == json.Delim('{') {
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
	named   bool   // there was a member
	entry   bool   // of a map, not of a struct
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
			top.key, top.named, top.waiting = key, true, true
			return path
		}
		top.begin()
	}
	if isDelim {
		return append(path, step{array: delim == '[', index: -1})
	}
	return path
}

// maxFieldLen is the longest name of a field in an answer, in bytes: what is deeper is named by
// what it is in.
const maxFieldLen = 256

func join(path []step) string {
	name := ""
	for i, s := range path {
		next := name
		switch {
		case s.array && s.index >= 0:
			next += fmt.Sprintf("[%d]", s.index)
		case s.named && i > 0:
			next += "." + s.key
		case s.named:
			next += s.key
		}
		if len(next) > maxFieldLen {
			break
		}
		name = next
	}
	return name
}
