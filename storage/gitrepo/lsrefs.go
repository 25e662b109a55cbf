package gitrepo

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/herdbook/herdbook/registry"
)

// lsRefs is the command of protocol v2 that lists refs.
// Source: gitprotocol-v2(5), "ls-refs".
type lsRefs struct {
	peel, symrefs, unborn bool
	prefixes              []string // any, if there are none
}

// parseLsRefs reads a request. What git's own clients do not send is not taken, though git may take it.
func parseLsRefs(in []byte) (req lsRefs, ok bool) {
	request, ok := parseRequest(in)
	if !ok || request.command != "ls-refs" {
		return lsRefs{}, false
	}
	for _, arg := range request.args {
		prefix, isPrefix := strings.CutPrefix(arg, "ref-prefix ")
		switch {
		case arg == "peel":
			req.peel = true
		case arg == "symrefs":
			req.symrefs = true
		case arg == "unborn":
			req.unborn = true
		case isPrefix:
			req.prefixes = append(req.prefixes, prefix)
		default:
			return lsRefs{}, false
		}
	}
	return req, true
}

// request is one request of protocol v2.
type request struct {
	command string
	args    []string
}

// parseRequest reads a whole request, without what says nothing about the answer.
// Source: gitprotocol-v2(5), "Command Request".
func parseRequest(in []byte) (r request, ok bool) {
	args := false
	for {
		kind, line, rest, ok := nextLine(in)
		if !ok {
			return request{}, false
		}
		in = rest
		command, isCommand := strings.CutPrefix(line, "command=")
		switch {
		case kind == flushLine:
			return r, r.command != "" && len(in) == 0
		case kind == delimLine:
			if args || r.command == "" {
				return request{}, false
			}
			args = true
		case args:
			r.args = append(r.args, line)
		case isCommand && r.command == "":
			r.command = command
		case strings.HasPrefix(line, "agent="), line == "object-format=sha1", strings.HasPrefix(line, "server-option="):
		default:
			return request{}, false
		}
	}
}

// The kinds of packets in a request.
const (
	textLine = iota
	flushLine
	delimLine
)

// nextLine takes the first packet off in, and from its text one final line feed.
// Source: gitprotocol-v2(5), "Packet-Line Framing".
func nextLine(in []byte) (kind int, line string, rest []byte, ok bool) {
	if len(in) < packetStart {
		return 0, "", nil, false
	}
	var length [2]byte
	if _, err := hex.Decode(length[:], in[:packetStart]); err != nil {
		return 0, "", nil, false
	}
	n := int(length[0])<<8 | int(length[1])
	switch {
	case n == 0:
		return flushLine, "", in[packetStart:], true
	case n == 1:
		return delimLine, "", in[packetStart:], true
	case n <= packetStart || n > maxPacket || n > len(in):
		return 0, "", nil, false
	}
	line = strings.TrimSuffix(string(in[packetStart:n]), "\n")
	// Git's lines end at a NUL, and an error ends git.
	if strings.Contains(line, "\x00") || strings.HasPrefix(line, "ERR ") {
		return 0, "", nil, false
	}
	return textLine, line, in[n:], true
}

func (req lsRefs) match(name string) bool {
	for _, prefix := range req.prefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return len(req.prefixes) == 0
}

// answer writes what git answers.
// Source: git, ls-refs.c.
func (req lsRefs) answer(s *snapshot, w io.Writer) error {
	out := newPacketWriter(w)
	defer out.release()
	if (s.head.id != oid{} || req.unborn && req.symrefs && s.head.symref != "") && req.match(s.head.name) {
		req.ref(out, s.head)
	}
	for _, ref := range s.refs {
		if req.match(ref.name) {
			req.ref(out, ref)
		}
	}
	out.flush()
	return out.close()
}

func (req lsRefs) ref(out *packetWriter, ref snapshotRef) {
	out.begin()
	if ref.id == (oid{}) {
		out.text("unborn")
	} else {
		out.oid(ref.id)
	}
	out.text(" ", ref.name)
	if req.symrefs && ref.symref != "" {
		out.text(" symref-target:", ref.symref)
	}
	if req.peel && ref.peeled != (oid{}) {
		out.text(" peeled:")
		out.oid(ref.peeled)
	}
	out.text("\n")
	out.end()
}

// packetWriter writes packets, many at a time.
type packetWriter struct {
	client client
	pooled *[]byte
	buf    []byte
	start  int // of the packet at hand
}

func newPacketWriter(w io.Writer) *packetWriter {
	pooled := getCopyBuffer()
	return &packetWriter{client: client{w: w}, pooled: pooled, buf: (*pooled)[:0]}
}

func (p *packetWriter) release() { putCopyBuffer(p.pooled) }

// longestLine is room for a packet with a ref: its name is that of a file.
const longestLine = 16 << 10

func (p *packetWriter) begin() {
	if cap(p.buf)-len(p.buf) < longestLine {
		p.send()
	}
	p.start = len(p.buf)
	p.buf = append(p.buf, flushPacket...)
}

func (p *packetWriter) text(parts ...string) {
	for _, part := range parts {
		p.buf = append(p.buf, part...)
	}
}

func (p *packetWriter) oid(id oid) { p.buf = hex.AppendEncode(p.buf, id[:]) }

func (p *packetWriter) end() {
	n := len(p.buf) - p.start
	hex.Encode(p.buf[p.start:], []byte{byte(n >> 8), byte(n)})
}

func (p *packetWriter) flush() { p.buf = append(p.buf, flushPacket...) }

func (p *packetWriter) send() {
	p.client.send(p.buf)
	p.buf = p.buf[:0]
}

func (p *packetWriter) close() error {
	p.send()
	return p.client.err
}

// capabilities are what the first ref of an advertisement by protocol v0 or v1 is followed by. Git lists them, once for
// each kind of repository.
type capabilities struct {
	mu    sync.Mutex
	known map[capabilitiesKind]capabilitiesText
}

type capabilitiesKind struct {
	service Service
	symref  bool // HEAD leads to a branch, and is shown
}

// capabilitiesText is all of them, or what comes before and behind the branch that HEAD leads to.
type capabilitiesText struct{ before, behind string }

func (s *Store) capabilities(ctx context.Context, repo *Repository, service Service, snap *snapshot) (string, error) {
	symref := ""
	if service == UploadPackService && snap.head.id != (oid{}) {
		symref = snap.head.symref
	}
	kind := capabilitiesKind{service, symref != ""}
	s.caps.mu.Lock()
	defer s.caps.mu.Unlock()
	text, ok := s.caps.known[kind]
	if !ok {
		out, err := s.advertiseCommand(ctx, repo, service, 0).output()
		if err != nil {
			return "", err
		}
		if text, err = parseCapabilities(out, symref); err != nil {
			return "", err
		}
		if s.caps.known == nil {
			s.caps.known = map[capabilitiesKind]capabilitiesText{}
		}
		s.caps.known[kind] = text
	}
	return text.before + symref + text.behind, nil
}

// parseCapabilities finds them in an advertisement of a repository whose HEAD leads to symref.
func parseCapabilities(advert []byte, symref string) (text capabilitiesText, err error) {
	p, err := readPacket(bytes.NewReader(advert), make([]byte, maxPacket))
	if err != nil {
		return text, err
	}
	_, list, ok := strings.Cut(strings.TrimSuffix(string(p.payload()), "\n"), "\x00")
	if ok && symref == "" && !strings.Contains(list, " symref=") {
		return capabilitiesText{before: list}, nil
	}
	const head = " symref=HEAD:"
	before, behind, found := strings.Cut(list, head+symref+" ")
	if !ok || symref == "" || !found {
		return text, fmt.Errorf("%w: git lists the capabilities %.200q", errUnusual, p.payload())
	}
	return capabilitiesText{before + head, " " + behind}, nil
}

// advertise writes what git advertises by protocol v0 or v1, over HTTP behind the line that names the service.
// Source: git, upload-pack.c and builtin/receive-pack.c; gitprotocol-pack(5), "Reference Discovery".
func advertise(service Service, version int, named bool, s *snapshot, caps string, w io.Writer) error {
	out := newPacketWriter(w)
	defer out.release()
	line := func(id oid, name, suffix string) {
		out.begin()
		out.oid(id)
		out.text(" ", name, suffix)
		if caps != "" {
			out.text("\x00", caps)
			caps = ""
		}
		out.text("\n")
		out.end()
	}
	ref := func(ref snapshotRef) {
		line(ref.id, ref.name, "")
		if service == UploadPackService && ref.peeled != (oid{}) {
			line(ref.peeled, ref.name, "^{}")
		}
	}
	if named {
		out.begin()
		out.text("# service=", string(service), "\n")
		out.end()
		out.flush()
	}
	if version == 1 {
		out.begin()
		out.text("version 1\n")
		out.end()
	}
	if service == UploadPackService && s.head.id != (oid{}) {
		ref(s.head)
	}
	for _, r := range s.refs {
		ref(r)
	}
	if caps != "" {
		line(oid{}, "capabilities^{}", "")
	}
	out.flush()
	return out.close()
}

// snapshotOrGit is the refs of a repository, or nil if git has to list them.
func (r *Repository) snapshotOrGit(ctx context.Context) (*snapshot, error) {
	s, err := r.snapshot(ctx)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, registry.ErrNotFound):
		return nil, err
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	r.store.log.DebugContext(ctx, "git lists the refs of a repository itself", "model", r.name, "reason", err.Error())
	return nil, nil
}
