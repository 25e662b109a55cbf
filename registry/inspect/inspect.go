// Package inspect reads what the headers of weight files say: format, architecture, number of
// parameters, precision, and which tensors there are.
//
// It knows safetensors, GGUF and ONNX by their extensions. [Header] reads headers only; [Tensors] also
// reads the tensors once, to sum their bytes. Both run nothing and trust nothing: every length is checked
// against the size of the file and a bound before anything of that length is read or kept. They do not
// check that the tensors are sound.
package inspect

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// The formats that Header knows.
const (
	Safetensors = "safetensors"
	GGUF        = "gguf"
	ONNX        = "onnx"
)

// Weights is what the header of a weight file says. What the file does not say is empty.
type Weights struct {
	Path         string `json:"path"`
	Format       string `json:"format"`
	Architecture string `json:"architecture,omitempty"`
	// Parameters is the number of elements of all tensors. In an ONNX file these are initializers
	// and the constants in its graphs, subgraphs included.
	Parameters int64 `json:"parameters"`
	// Precision lists the types of the elements, most frequent first, such as "F16,F32", without
	// those of less than a thousandth of the elements.
	Precision    string `json:"precision,omitempty"`
	Tensors      int    `json:"tensors"`
	Opset        int64  `json:"opset,omitempty"` // of ONNX's own operators
	Producer     string `json:"producer,omitempty"`
	Quantization string `json:"quantization,omitempty"` // GGUF's file type, such as "Q4_K_M"
}

var parsers = map[string]func(*Weights, *reader) error{
	".safetensors": readSafetensors,
	".gguf":        readGGUF,
	".onnx":        readONNX,
}

// Knows reports whether a file of this name has a header that Header reads.
func Knows(base string) bool {
	_, ok := parsers[strings.ToLower(path.Ext(base))]
	return ok
}

// FormatError says what is wrong with the header of a file.
type FormatError struct{ Detail string }

func (e *FormatError) Error() string { return e.Detail }

// Header reads the header of the weight file at r, which is size bytes long. The path's extension
// says what it is. The error is a [FormatError] when it is the file's fault; any other is one of
// reading, and reading again may succeed.
func Header(name string, r io.ReadSeeker, size int64) (Weights, error) {
	parse, ok := parsers[strings.ToLower(path.Ext(name))]
	if !ok {
		return Weights{}, &FormatError{"its format is not known"}
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return Weights{}, err
	}
	w := Weights{Path: name}
	src := &source{ReadSeeker: r}
	err := parse(&w, &reader{src: src, buf: bufio.NewReaderSize(src, 32<<10), size: size})
	switch {
	case err == nil:
		return w, nil
	case src.err != nil:
		return Weights{}, src.err
	case eof(err):
		return Weights{}, &FormatError{"the file ends within its header"}
	}
	return Weights{}, &FormatError{err.Error()}
}

// source keeps the error that reading met, so that it is not taken for one of the format.
type source struct {
	io.ReadSeeker
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.ReadSeeker.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) Seek(offset int64, whence int) (int64, error) {
	n, err := s.ReadSeeker.Seek(offset, whence)
	if err != nil {
		s.err = err
	}
	return n, err
}

// eof reports whether err says that the file ended.
func eof(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// reader reads forward through a file and skips without reading.
type reader struct {
	src  io.ReadSeeker
	buf  *bufio.Reader
	pos  int64
	size int64
	list *lister // takes the tensors; nil when only the header is wanted
}

func (r *reader) ReadByte() (byte, error) {
	b, err := r.buf.ReadByte()
	if err == nil {
		r.pos++
	}
	return b, err
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.buf.Read(p)
	r.pos += int64(n)
	return n, err
}

// skip passes over n bytes of the file.
func (r *reader) skip(n int64) error {
	switch {
	case n < 0 || n > r.size-r.pos:
		return io.ErrUnexpectedEOF
	case n <= int64(r.buf.Buffered()):
		_, err := r.buf.Discard(int(n))
		r.pos += n
		return err
	}
	if _, err := r.src.Seek(r.pos+n, io.SeekStart); err != nil {
		return err
	}
	r.pos += n
	r.buf.Reset(r.src)
	return nil
}

// text reads n bytes of text. Of a longer or an unprintable one nothing is kept.
func (r *reader) text(n int64) (string, error) {
	const longest = 256
	if n > longest {
		return "", r.skip(n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return "", err
	}
	s := string(data)
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return "", nil
	}
	return s, nil
}

// tally counts tensors and their elements.
type tally struct {
	tensors int
	total   int64
	types   map[string]int64
}

// maxTypes bounds the element types of one file; no format has as many.
const maxTypes = 64

var errTooManyElements = errors.New("the tensors have more elements than can be counted")

// add counts a tensor.
func (t *tally) add(elementType string, elements int64) error {
	if elements > math.MaxInt64-t.total {
		return errTooManyElements
	}
	if t.types == nil {
		t.types = map[string]int64{}
	}
	t.tensors++
	t.total += elements
	t.types[elementType] += elements
	if len(t.types) > maxTypes {
		return fmt.Errorf("the tensors are of more than %d types", maxTypes)
	}
	return nil
}

// multiply is the product of a tensor's dimensions so far and one more.
func multiply(product, dimension int64) (int64, error) {
	switch {
	case dimension < 0:
		return 0, fmt.Errorf("a tensor has a dimension of %d", dimension)
	case dimension == 0:
		return 0, nil
	case product > math.MaxInt64/dimension:
		return 0, errTooManyElements
	}
	return product * dimension, nil
}

func (t *tally) describe(w *Weights) {
	w.Tensors, w.Parameters = t.tensors, t.total
	var kept []string
	for _, name := range slices.SortedFunc(maps.Keys(t.types), func(a, b string) int {
		return cmp.Or(cmp.Compare(t.types[b], t.types[a]), cmp.Compare(a, b))
	}) {
		if t.types[name] > 0 && t.types[name] >= t.total/1000 {
			kept = append(kept, name)
		}
	}
	w.Precision = strings.Join(kept, ",")
}

// clip bounds what is kept or repeated of a text in a file, and makes it printable.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, ""))
}
