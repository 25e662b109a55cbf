package inspect

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// Limits of a list of tensors. The largest known models have some 100,000 tensors, in many files.
const (
	MaxTensors    = 200_000
	maxNameLen    = 4096     // bytes of one name
	maxNamesBytes = 32 << 20 // of all names and shapes together
)

// List is what a weight file holds.
type List struct {
	Format  string
	Tensors []registry.Tensor // by name, each name once
}

// FormatOf names the format of a file that [Tensors] reads, by the file's extension; it is empty for others.
func FormatOf(name string) string {
	return formats[strings.ToLower(path.Ext(name))]
}

var formats = map[string]string{".safetensors": Safetensors, ".gguf": GGUF, ".onnx": ONNX}

// Tensors lists the tensors of the weight file at r, which is size bytes long, each with the SHA-256 of its bytes. It reads forward, at most to
// the end of the last tensor, and keeps nothing of the tensors. The path's extension says what the format is. The error is a
// [FormatError] when it is the file's fault; any other is one of reading.
//
// Tensors of an ONNX file are its initializers and the constants in its graphs. One of a subgraph is named by the way that leads there:
// the node, its attribute, and the name within. The same values have the same sum whether they are written as raw data or as
// numbers.
func Tensors(name string, r io.Reader, size int64) (List, error) {
	parse, ok := parsers[strings.ToLower(path.Ext(name))]
	if !ok {
		return List{}, &FormatError{"its format is not known"}
	}
	src := &source{ReadSeeker: &forward{Reader: r}}
	l := &lister{sum: sha256.New(), buf: make([]byte, 256<<10), names: map[string]int{}}
	in := &reader{src: src, buf: bufio.NewReaderSize(src, 32<<10), size: size, list: l}
	var w Weights
	err := parse(&w, in)
	if err == nil {
		err = l.hashAll(in)
	}
	switch {
	case err == nil:
		return List{w.Format, l.sorted()}, nil
	case src.err != nil:
		return List{}, src.err
	case eof(err):
		return List{}, &FormatError{"the file ends before its last tensor does"}
	}
	return List{}, &FormatError{err.Error()}
}

// forward lets a reader be sought in forwards, by reading.
type forward struct {
	io.Reader
	pos int64
}

func (f *forward) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	f.pos += int64(n)
	return n, err
}

// Seek implements io.Seeker for places that lie ahead. Beyond the end it stays there, as in a file.
func (f *forward) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < f.pos {
		return f.pos, errors.New("a stream cannot be read backwards")
	}
	_, err := io.CopyN(io.Discard, f, offset-f.pos)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return f.pos, err
}

// lister collects tensors while a header is read.
type lister struct {
	found []listed
	names map[string]int // each with the last number that made another name of it
	bytes int
	sum   hash.Hash
	buf   []byte
}

// listed is a tensor and its place in the file, from begin up to end. One that was hashed already has none.
type listed struct {
	registry.Tensor
	begin, end int64
}

// add takes a tensor whose name is its own.
func (l *lister) add(t registry.Tensor, begin, end int64) error {
	switch {
	case len(l.found) == MaxTensors:
		return fmt.Errorf("it has more than %d tensors", MaxTensors)
	case len(t.Name) > maxNameLen:
		return fmt.Errorf("the name of a tensor is longer than %d bytes", maxNameLen)
	case !utf8.ValidString(t.Name):
		return fmt.Errorf("the name of a tensor is no text: %q", clip(t.Name))
	case l.names[t.Name] > 0:
		return fmt.Errorf("two tensors are named %q", clip(t.Name))
	}
	if l.bytes += len(t.Name) + 8*len(t.Shape); l.bytes > maxNamesBytes {
		return fmt.Errorf("the names and shapes of the tensors take more than %d bytes", maxNamesBytes)
	}
	if t.Shape == nil {
		t.Shape = []int64{}
	}
	l.names[t.Name] = 1
	l.found = append(l.found, listed{t, begin, end})
	return nil
}

// free is a name that no tensor has: the one that is wanted, or that one with a number.
func (l *lister) free(name string) string {
	if l.names[name] == 0 {
		return name
	}
	for {
		l.names[name]++
		if next := name + "#" + strconv.Itoa(l.names[name]); l.names[next] == 0 {
			return next
		}
	}
}

// hashAll reads the tensors that were not hashed yet, in the order in which they lie in the file.
func (l *lister) hashAll(r *reader) error {
	l.names = nil
	slices.SortFunc(l.found, func(a, b listed) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end))
	})
	for i := range l.found {
		t := &l.found[i]
		if t.Digest != "" || t.External != nil {
			continue
		}
		if t.begin < r.pos {
			return fmt.Errorf("tensor %q overlaps with another, or with the header", clip(t.Name))
		}
		if err := r.skip(t.begin - r.pos); err != nil {
			return err
		}
		l.sum.Reset()
		if err := l.hash(r, t.end-t.begin); err != nil {
			return err
		}
		t.Digest = digest.NewDigest(digest.SHA256, l.sum)
	}
	return nil
}

// hash adds the next n bytes of the file to the sum.
func (l *lister) hash(r *reader, n int64) error {
	if n < 0 || n > r.size-r.pos {
		return io.ErrUnexpectedEOF
	}
	copied, err := io.CopyBuffer(l.sum, io.LimitReader(r, n), l.buf)
	if err == nil && copied < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (l *lister) sorted() []registry.Tensor {
	slices.SortFunc(l.found, func(a, b listed) int { return strings.Compare(a.Name, b.Name) })
	tensors := make([]registry.Tensor, len(l.found))
	for i, t := range l.found {
		tensors[i] = t.Tensor
	}
	return tensors
}

// name reads a name of n bytes.
func (r *reader) name(n int64) (string, error) {
	if n > maxNameLen {
		return "", fmt.Errorf("a name is longer than %d bytes", maxNameLen)
	}
	if n > r.size-r.pos {
		return "", io.ErrUnexpectedEOF
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return "", err
	}
	return string(data), nil
}
