package gitrepo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/herdbook/herdbook/registry"
)

// ConnectUploadPack serves a whole fetch to a client that stays connected, as over SSH: the server speaks first, and
// In goes on until the client has what it wants. The request needs a Stop.
//
// By protocol v2 the client sends one request after the other, each whole in itself and answered as over HTTP; by v0
// and v1 one git talks to it, and takes a turn from others when the client has said that it wants something.
// Source: gitprotocol-v2(5), "Command Request"; gitprotocol-pack(5), "Fetching Data From a Server".
func (s *Store) ConnectUploadPack(ctx context.Context, req UploadPack) error {
	_, version := UploadPackService.protocol(req.GitProtocol)
	if version < 2 {
		return s.connectUploadPack(ctx, req, version)
	}
	if err := s.advertise(ctx, req.Repository, UploadPackService, req.GitProtocol, false, flushed{&client{w: req.Out}}); err != nil {
		return err
	}
	in := bufio.NewReader(req.In)
	for {
		one := &oneRequest{in: in}
		if more, err := one.begins(); err != nil || !more {
			return err
		}
		if req.Allowed != nil {
			if err := req.Allowed(ctx); err != nil {
				return err
			}
		}
		err := s.UploadPack(ctx, UploadPack{Repository: req.Repository, GitProtocol: req.GitProtocol, In: one, Out: req.Out})
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, one); err != nil {
			return fmt.Errorf("fetch of %s: %w", req.Repository.name, err)
		}
	}
}

// connectUploadPack lets one git talk to a client by protocol v0 or v1.
func (s *Store) connectUploadPack(ctx context.Context, req UploadPack, version int) error {
	ctx, done, err := s.begin(ctx, open)
	if err != nil {
		return err
	}
	defer done()
	if err := req.Repository.mustExist(); err != nil {
		return err
	}
	release, turnErr := func() {}, error(nil)
	defer func() { release() }()
	in := &held{in: bufio.NewReader(req.In), wait: func() error {
		free, err := s.waitForTurn(ctx)
		if err != nil {
			turnErr = err
			return err
		}
		release = free
		return nil
	}}
	err = s.runUploadPack(ctx, req.Repository, version, "", in, flushed{&client{w: req.Out}}, req.Stop)
	if turnErr != nil {
		err = turnErr
	}
	if err != nil {
		return fmt.Errorf("fetch of %s: %w", req.Repository.name, err)
	}
	return nil
}

// held is what a client says by protocol v0 or v1, held back until wait lets it through. A client that only
// looked at the refs does not wait.
type held struct {
	in    *bufio.Reader
	wait  func() error
	begun bool
}

// Read implements io.Reader.
func (h *held) Read(p []byte) (int, error) {
	if !h.begun {
		h.begun = true
		first, err := h.in.Peek(packetStart)
		if err == nil && !packet(first).flush() {
			if err := h.wait(); err != nil {
				return 0, err
			}
		}
	}
	return h.in.Read(p)
}

// maxRequest bounds one request of a fetch that comes on a connection, in bytes.
const maxRequest = 64 << 20

// oneRequest reads one request of protocol v2 from a connection: packets up to a flush, which belongs to it.
type oneRequest struct {
	in   *bufio.Reader
	left int   // of the packet that is being read, in bytes
	read int64 // in bytes
	last bool  // the packet that is being read is the flush
}

// begins waits for the first packet and reports whether there is a request: a client that wants no more sends a
// flush, or is gone.
func (r *oneRequest) begins() (bool, error) {
	first, err := r.in.Peek(packetStart)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil && !packet(first).flush(), err
}

// Read implements io.Reader. The end of the connection within a request is io.ErrUnexpectedEOF.
func (r *oneRequest) Read(p []byte) (n int, err error) {
	if r.left == 0 {
		if r.last {
			return 0, io.EOF
		}
		err = r.next()
	}
	if err == nil {
		n, err = r.in.Read(p[:min(len(p), r.left)])
		r.left -= n
		r.read += int64(n)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next begins a packet.
func (r *oneRequest) next() error {
	head, err := r.in.Peek(packetStart)
	if err != nil {
		return err
	}
	switch n, ok := packetLen(head); {
	case !ok || n == 3 || n > maxPacket:
		return registry.Invalid("", "%.4q is not the length of a pkt-line", head)
	case n < packetStart: // a flush, or a mark within the request
		r.left, r.last = packetStart, n == 0
	default:
		r.left = n
	}
	if r.read+int64(r.left) > maxRequest {
		return fmt.Errorf("a request of a fetch is at most %d bytes long: %w", maxRequest, registry.ErrTooLarge)
	}
	return nil
}

// packetLen reads the length that a packet begins with: four hex digits.
func packetLen(head []byte) (n int, ok bool) {
	for _, c := range head[:packetStart] {
		n <<= 4
		switch {
		case '0' <= c && c <= '9':
			n += int(c - '0')
		case 'a' <= c && c <= 'f':
			n += int(c-'a') + 10
		case 'A' <= c && c <= 'F':
			n += int(c-'A') + 10
		default:
			return 0, false
		}
	}
	return n, true
}

// ConnectReceivePack serves a push from a client that stays connected: the server speaks first, and once the client
// has something to push it goes on as over HTTP, since a push is one request and one answer. Where exists is
// false an empty repository is shown. Begin is called when a push comes, before its repository is made; its
// error ends it. A client that looks and has nothing to push is no error.
func (s *Store) ConnectReceivePack(ctx context.Context, req ReceivePack, exists bool, begin func(context.Context) error) error {
	name := req.Repository.name
	var shown *Repository
	if exists {
		var err error
		if shown, err = s.Create(ctx, name); err != nil {
			return err
		}
	}
	if err := s.advertise(ctx, shown, ReceivePackService, req.GitProtocol, false, flushed{&client{w: req.Out}}); err != nil {
		return err
	}
	in := bufio.NewReader(req.In)
	first, err := in.Peek(packetStart)
	switch {
	case errors.Is(err, io.EOF), err == nil && packet(first).flush():
		return nil
	case err != nil:
		return fmt.Errorf("read a push to %s: %w", name, err)
	}
	if err := begin(ctx); err != nil {
		return err
	}
	if _, err := s.Create(ctx, name); err != nil {
		return err
	}
	req.In = in
	return s.ReceivePack(ctx, req)
}
