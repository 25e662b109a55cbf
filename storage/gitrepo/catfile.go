package gitrepo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// objectReader asks one "git cat-file --batch-command --buffer" for many objects. It is not safe for
// concurrent use. After an error that it does not mark as of one object, it is broken.
// Source: git-cat-file(1), "BATCH OUTPUT".
type objectReader struct {
	p      *process
	in     io.WriteCloser
	out    *bufio.Reader
	pipe   io.Closer
	broken bool
}

// objectInfo is what git knows of an object without its content. Kind is empty for one that is absent.
type objectInfo struct {
	id   registry.ObjectID
	kind string // commit, tree, blob or tag
	size int64
}

func startObjectReader(p *process) (*objectReader, error) {
	in, err := p.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	return &objectReader{p: p, in: in, out: bufio.NewReaderSize(out, 64<<10), pipe: out}, nil
}

// ask sends a command for each name. Git answers none before it read them all, so that both sides cannot
// wait for each other.
func (o *objectReader) ask(command string, names []string) error {
	var b bytes.Buffer
	for _, name := range names {
		b.WriteString(command)
		b.WriteByte(' ')
		b.WriteString(name)
		b.WriteByte('\n')
	}
	b.WriteString("flush\n")
	_, err := o.in.Write(b.Bytes())
	return o.check(err)
}

// check marks the reader as broken when err is not nil.
func (o *objectReader) check(err error) error {
	if err == nil {
		return nil
	}
	o.broken = true
	return fmt.Errorf("%s: %w", o.p.what, err)
}

// infos looks up the objects that names name in any of Git's ways; no name may contain a line feed.
func (o *objectReader) infos(names []string) ([]objectInfo, error) {
	if err := o.ask("info", names); err != nil {
		return nil, err
	}
	infos := make([]objectInfo, len(names))
	for i := range infos {
		var err error
		if infos[i], err = readObjectInfo(o.out); err != nil {
			return nil, o.check(err)
		}
	}
	return infos, nil
}

// contents is [Push.ReadBlobs] for as many blobs as can be asked for at once.
func (o *objectReader) contents(ids []registry.ObjectID, maxSize int64, fn func(registry.ObjectID, []byte) error) error {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	if err := o.ask("contents", names); err != nil {
		return err
	}
	var buf []byte
	for _, id := range ids {
		info, err := readObjectInfo(o.out)
		if err != nil {
			return o.check(err)
		}
		switch {
		case info.kind == "":
			return o.check(fmt.Errorf("blob %s: %w", id, registry.ErrNotFound))
		case info.size > maxSize:
			return o.check(fmt.Errorf("blob %s has %d bytes, more than %d: %w", id, info.size, maxSize, registry.ErrTooLarge))
		}
		if int64(cap(buf)) < info.size+1 {
			buf = make([]byte, info.size+1)
		}
		buf = buf[:info.size+1] // a line feed follows
		if _, err := io.ReadFull(o.out, buf); err != nil {
			return o.check(err)
		}
		if err := fn(info.id, buf[:info.size]); err != nil {
			o.broken = true // answers are left unread
			return err
		}
	}
	return nil
}

func (o *objectReader) kill() { _ = killGroup(o.p.Process) }

func (o *objectReader) close() {
	_ = o.in.Close()
	o.p.abandon(o.pipe)
}

var errObjectInfo = errors.New("git's answer about an object makes no sense")

// readObjectInfo reads the first line of an answer: "ID SP KIND SP SIZE", or "NAME SP missing" and the like.
func readObjectInfo(r *bufio.Reader) (objectInfo, error) {
	slice, err := r.ReadSlice('\n')
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return objectInfo{}, err
	}
	line := strings.TrimSuffix(string(slice), "\n")
	if strings.HasSuffix(line, " missing") || strings.HasSuffix(line, " ambiguous") {
		return objectInfo{}, nil
	}
	fields := strings.Split(line, " ")
	if len(fields) != 3 {
		return objectInfo{}, fmt.Errorf("%w: %.100q", errObjectInfo, line)
	}
	id, err := registry.ParseObjectID(fields[0])
	if err != nil {
		return objectInfo{}, fmt.Errorf("%w: %.100q", errObjectInfo, line)
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || size < 0 || fields[1] == "" {
		return objectInfo{}, fmt.Errorf("%w: %.100q", errObjectInfo, line)
	}
	return objectInfo{id: id, kind: fields[1], size: size}, nil
}
