package inspect

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"

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
			var next struct {
				registry.Tensor
				listEnd
			}
			if err := json.Unmarshal(line, &next); err != nil {
				yield(registry.Tensor{}, fmt.Errorf("%w: %w", err, ErrDamaged))
				return
			}
			if next.listEnd.Tensors != nil {
				if *next.listEnd.Tensors != n || next.CRC32C != l.sum {
					yield(registry.Tensor{}, fmt.Errorf("its sum is another: %w", ErrDamaged))
				}
				return
			}
			if n > 0 && next.Name <= last {
				yield(registry.Tensor{}, fmt.Errorf("its tensors are not in order: %w", ErrDamaged))
				return
			}
			l.sum = crc32.Update(l.sum, castagnoli, line)
			n, last = n+1, next.Name
			if !yield(next.Tensor, nil) {
				return
			}
		}
	}
}
