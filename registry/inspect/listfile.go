package inspect

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"strconv"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// A list of tensors is kept as lines of JSON: listHead, then one registry.Tensor each, sorted by name, then listEnd. What does not end
// so is damaged. A program that finds more in a file than an earlier one did raises the version.
const (
	listVersion = 1
	maxListLine = 128 << 10 // bytes: a name of which every byte is escaped, and the longest shape
)

// listHead is the first line. A file that could not be read has a problem and no tensors.
type listHead struct {
	Version int    `json:"herdbook_tensors"`
	Format  string `json:"format"`
	Problem string `json:"problem,omitempty"`
}

// listEnd is the last line.
type listEnd struct {
	Tensors *int   `json:"tensors"`
	CRC32C  uint32 `json:"crc32c"` // of the lines before, with their ends
}

// ErrDamaged reports that something is no list of tensors, or only a part of one.
var ErrDamaged = errors.New("the list of tensors is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteList writes a list for [ReadList]. With a problem, which says why the file has no list, it writes that.
func WriteList(w io.Writer, l List, problem string) error {
	sum := crc32.New(castagnoli)
	buffered := bufio.NewWriter(w)
	e := json.NewEncoder(io.MultiWriter(buffered, sum))
	e.SetEscapeHTML(false)
	if err := e.Encode(listHead{listVersion, l.Format, problem}); err != nil {
		return err
	}
	for i := range l.Tensors {
		if err := e.Encode(&l.Tensors[i]); err != nil {
			return err
		}
	}
	n := len(l.Tensors)
	if err := json.NewEncoder(buffered).Encode(listEnd{&n, sum.Sum32()}); err != nil {
		return err
	}
	return buffered.Flush()
}

// ListReader reads a list that [WriteList] wrote.
type ListReader struct {
	Format  string
	Problem string // why there are no tensors
	r       *bufio.Reader
	sum     uint32
}

// ReadList begins to read a list. The error is [ErrDamaged], or one of reading.
func ReadList(r io.Reader) (*ListReader, error) {
	l := &ListReader{r: bufio.NewReaderSize(r, maxListLine)}
	line, err := l.line()
	if err != nil {
		return nil, err
	}
	l.sum = crc32.Update(l.sum, castagnoli, line)
	var head listHead
	if err := json.Unmarshal(line, &head); err != nil || head.Version != listVersion {
		return nil, fmt.Errorf("its first line is not one of version %d: %w", listVersion, ErrDamaged)
	}
	l.Format, l.Problem = head.Format, head.Problem
	return l, nil
}

func (l *ListReader) line() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if errors.Is(err, io.EOF) || errors.Is(err, bufio.ErrBufferFull) {
		err = fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	return line, err
}

// Tensors are the tensors of the list, by name. Only when they were read to their end without an error are they what was
// written. They can be read once.
func (l *ListReader) Tensors() iter.Seq2[registry.Tensor, error] {
	return func(yield func(registry.Tensor, error) bool) {
		n, last := 0, ""
		for {
			line, err := l.line()
			if err != nil {
				yield(registry.Tensor{}, err)
				return
			}
			next, plain := plainLine(line)
			if !plain {
				var end *listEnd
				if next, end, err = anyLine(line); err == nil && end != nil && (*end.Tensors != n || end.CRC32C != l.sum) {
					err = errors.New("its sum is another")
				}
				if err != nil {
					yield(registry.Tensor{}, fmt.Errorf("%w: %w", err, ErrDamaged))
				}
				if err != nil || end != nil {
					return
				}
			}
			if n > 0 && next.Name <= last {
				yield(registry.Tensor{}, fmt.Errorf("its tensors are not in order: %w", ErrDamaged))
				return
			}
			l.sum = crc32.Update(l.sum, castagnoli, line)
			n, last = n+1, next.Name
			if !yield(next, nil) {
				return
			}
		}
	}
}

// anyLine reads a line behind the first: a tensor, or the end.
func anyLine(line []byte) (registry.Tensor, *listEnd, error) {
	var v struct {
		registry.Tensor
		listEnd
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return registry.Tensor{}, nil, err
	}
	if v.listEnd.Tensors != nil {
		return registry.Tensor{}, &v.listEnd, nil
	}
	return v.Tensor, nil, nil
}

// plainLine reads the line of a tensor that lies in the file and whose name needs no escapes, as nearly all are, several
// times as fast as anyLine. What is not exactly as WriteList writes that is not read.
func plainLine(line []byte) (t registry.Tensor, ok bool) {
	rest := line
	take := func(until string) (part []byte) {
		part, rest, ok = bytes.Cut(rest, []byte(until))
		return part
	}
	number := func(part []byte) (n int64) {
		n, err := strconv.ParseInt(string(part), 10, 64)
		ok = err == nil && (part[0] != '0' || len(part) == 1) && part[0] != '-' && part[0] != '+'
		return n
	}
	if start := take(`{"name":"`); !ok || len(start) > 0 {
		return t, false
	}
	name := take(`","dtype":"`)
	if !ok || !isPlain(name) {
		return t, false
	}
	elementType := take(`","shape":[`)
	if !ok || !isPlain(elementType) {
		return t, false
	}
	shape := take(`],"size_bytes":`)
	if !ok {
		return t, false
	}
	t.Shape = []int64{}
	for len(shape) > 0 {
		part, more, found := bytes.Cut(shape, []byte(","))
		if t.Shape = append(t.Shape, number(part)); !ok || found && len(more) == 0 {
			return t, false
		}
		shape = more
	}
	size := take(`,"digest":"`)
	if !ok {
		return t, false
	}
	if t.SizeBytes = number(size); !ok {
		return t, false
	}
	sum := take(`"}` + "\n")
	if !ok || len(rest) > 0 || !isPlain(sum) {
		return t, false
	}
	t.Name, t.Type, t.Digest = string(name), string(elementType), digest.Digest(sum)
	return t, true
}

// isPlain reports whether a text stands in JSON as it is.
func isPlain(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c == '"' || c == '\\' {
			return false
		}
	}
	return utf8.Valid(text)
}
