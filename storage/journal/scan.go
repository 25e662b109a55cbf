package journal

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
)

// position is what the next group must continue.
type position struct {
	seq   uint64 // of the last group, 0 before the first
	batch uint64 // of the last group, 0 at the begin of a segment
	chain chain  // of the last group
}

// follow returns an error unless e is the group that comes after p.
func (p position) follow(h hash.Hash, e entry) error {
	if e.seq != p.seq+1 {
		return fmt.Errorf("group %d follows group %d", e.seq, p.seq)
	}
	if e.batch != e.seq && e.batch != p.batch {
		return fmt.Errorf("group %d is of batch %d and follows one of batch %d", e.seq, e.batch, p.batch)
	}
	if e.chain != link(h, p.chain, e.seq, e.payload) {
		return fmt.Errorf("the chain breaks at group %d", e.seq)
	}
	return nil
}

// scanner reads one segment line by line and checks that each continues the one before it.
type scanner struct {
	name       string // of the segment, for errors
	file       io.Closer
	lines      *bufio.Reader
	long       []byte // room for a line that does not fit into lines
	hash       hash.Hash
	number     int    // of the current line, from 1
	line       []byte // the current line with its newline, valid until the next is read
	start, end int64  // of the current line, in bytes
	text       int64  // end of the last line that was not empty
	at         position
}

const scanBufferBytes = 256 << 10

// openSegment opens a segment and reads its header.
func openSegment(dir string, first uint64) (*scanner, error) {
	f, err := os.Open(filepath.Join(dir, segmentName(first)))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	s, err := newScanner(f, segmentName(first), first)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func newScanner(file io.ReadCloser, name string, first uint64) (*scanner, error) {
	s := &scanner{name: name, file: file, lines: bufio.NewReaderSize(file, scanBufferBytes), hash: sha256.New()}
	if err := s.readLine(); err != nil && err != io.EOF {
		return nil, err
	}
	h, err := parseHeader(s.line)
	if err == nil && h.first != first {
		err = fmt.Errorf("the header is that of segment %s", segmentName(h.first))
	}
	if err != nil {
		return nil, s.corrupt(err)
	}
	s.at = position{seq: first - 1, chain: h.chain}
	return s, nil
}

func (s *scanner) close() error { return s.file.Close() }

// readLine makes the next line the current one. The last line of a file may lack the newline.
func (s *scanner) readLine() error {
	s.number++
	s.start = s.end
	line, err := s.lines.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		s.long = append(s.long[:0], line...)
		for err == bufio.ErrBufferFull {
			line, err = s.lines.ReadSlice('\n')
			s.long = append(s.long, line...)
		}
		line = s.long
	}
	s.line = line
	s.end += int64(len(line))
	if len(line) > 0 && line[0] != '\n' {
		s.text = s.end
	}
	if err == io.EOF && len(line) > 0 {
		return nil
	}
	if err != nil && err != io.EOF {
		return fmt.Errorf("journal segment %s: %w", s.name, err)
	}
	return err
}

// next returns the next group. At the end of the file the error is io.EOF; where the current line is
// not the next group, it is ErrCorrupt.
func (s *scanner) next() (entry, error) {
	if err := s.readLine(); err != nil {
		return entry{}, err
	}
	e, err := parseEntry(s.line)
	if err == nil {
		err = s.at.follow(s.hash, e)
	}
	if err != nil {
		return entry{}, s.corrupt(err)
	}
	s.at = position{seq: e.seq, batch: e.batch, chain: e.chain}
	return e, nil
}

// skipTo goes to the group that comes before seq, so that next returns that of seq. The lines passed
// over are not checked.
func (s *scanner) skipTo(seq uint64) error {
	for s.at.seq+1 < seq {
		if err := s.readLine(); err != nil {
			return s.ended(err, seq)
		}
		var here uint64
		if len(s.line) > payloadAt && parseNumber(&here, s.line[seqAt:]) && here+1 < seq {
			continue
		}
		e, err := parseEntry(s.line)
		if err == nil && e.seq+1 != seq {
			err = fmt.Errorf("group %d is where group %d should be", e.seq, seq-1)
		}
		if err != nil {
			return s.corrupt(err)
		}
		s.at = position{seq: e.seq, batch: e.batch, chain: e.chain}
	}
	return nil
}

func (s *scanner) corrupt(reason error) error {
	return fmt.Errorf("journal segment %s, line %d at byte %d: %w: %w", s.name, s.number, s.start, reason, ErrCorrupt)
}

// ended turns the end of a segment before the group seq into an error.
func (s *scanner) ended(err error, seq uint64) error {
	if err == io.EOF {
		return s.corrupt(fmt.Errorf("the segment ends before group %d", seq))
	}
	return err
}

// laterBatch reads the rest of the segment after a line that is not a group, and reports whether it
// proves that the group of that line was durable: by a group of a batch that begins behind it.
func (s *scanner) laterBatch() (bool, error) {
	lost := s.at.seq + 1
	proves := func(line []byte) bool {
		e, err := parseEntry(line)
		return err == nil && e.batch > lost
	}
	if proves(s.afterBadNewline()) {
		return true, nil
	}
	for {
		if err := s.readLine(); err == io.EOF {
			return false, nil
		} else if err != nil {
			return false, err
		}
		if proves(s.line) {
			return true, nil
		}
	}
}

// afterBadNewline returns what follows in the current line when that is the next group and something
// other than a newline after it. Nobody can put a group where there is none: the chain goes over the
// whole payload.
func (s *scanner) afterBadNewline() []byte {
	want, ok := lineChecksum(s.line)
	if !ok {
		return nil
	}
	sum := uint32(0)
	for end := chainAt; end < len(s.line); end++ {
		if sum == want {
			line := append(bytes.Clone(s.line[:end]), '\n')
			if e, err := parseEntry(line); err == nil && s.at.follow(s.hash, e) == nil {
				return s.line[end+1:]
			}
		}
		sum = crc32.Update(sum, castagnoli, s.line[end:end+1])
	}
	return nil
}

// Read yields the groups from the one with number from to the last that is durable when the loop
// begins, in order. Each was checked against its checksum and the group before it. After an error,
// which is ErrCorrupt for damage, it yields no more.
func (j *Journal) Read(ctx context.Context, from uint64) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		_, err := j.scan(ctx, from, func(e entry) bool {
			return yield(Group{Seq: e.seq, Batch: e.batch, Payload: bytes.Clone(e.payload)}, nil)
		})
		if err != nil {
			yield(Group{}, err)
		}
	}
}

// Head names a group together with all before it: nobody can change one of them and keep the chain.
type Head struct {
	Seq   uint64 // 0 when there is no group
	Chain [sha256.Size]byte
}

// Verify reads the whole journal as far as it is durable when it begins and checks every checksum, the
// chain and the numbers. It returns the last group. Damage is ErrCorrupt.
func (j *Journal) Verify(ctx context.Context) (Head, error) {
	at, err := j.scan(ctx, 1, func(entry) bool { return true })
	if err != nil {
		return Head{}, err
	}
	return Head{at.seq, at.chain}, nil
}

// scan calls fn for the durable groups from number from, until fn returns false.
func (j *Journal) scan(ctx context.Context, from uint64, fn func(entry) bool) (at position, err error) {
	to, segments := j.durable()
	from = max(from, 1)
	if from >= to {
		return at, nil
	}
	i, exact := slices.BinarySearch(segments, from)
	if !exact {
		i-- // the one that begins before from
	}
	p := part{from: from}
	for ; i < len(segments); i++ {
		p.first, p.end = segments[i], to
		if p.sealed = i+1 < len(segments); p.sealed {
			p.end = segments[i+1]
		}
		at, more, err := j.scanSegment(ctx, p, fn)
		if err != nil || !more {
			return at, err
		}
		p.before = &at
	}
	return *p.before, nil
}

// part says what to scan of a segment.
type part struct {
	first  uint64    // group of the segment
	before *position // that its header must continue, if known
	from   uint64    // group to begin with, if it is behind first
	end    uint64    // group to stop before
	sealed bool      // nothing may come after that
}

func (j *Journal) scanSegment(ctx context.Context, p part, fn func(entry) bool) (at position, more bool, err error) {
	s, err := openSegment(j.dir, p.first)
	if err != nil {
		return at, false, err
	}
	defer s.close()
	if p.before != nil && s.at.chain != p.before.chain {
		return at, false, s.corrupt(errors.New("the chain does not continue that of the segment before"))
	}
	if err := s.skipTo(p.from); err != nil {
		return at, false, err
	}
	for s.at.seq+1 < p.end {
		if err := ctx.Err(); err != nil {
			return at, false, err
		}
		e, err := s.next()
		if err != nil {
			return at, false, s.ended(err, p.end)
		}
		if !fn(e) {
			return s.at, false, nil
		}
	}
	if p.sealed {
		if err := s.readLine(); err == nil {
			return at, false, s.corrupt(fmt.Errorf("the segment goes on after group %d", p.end-1))
		} else if err != io.EOF {
			return at, false, err
		}
	}
	return s.at, true, nil
}
