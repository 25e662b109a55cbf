package ssh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// Transport speaks Git's protocol on a repository, with a client that stays connected.
type Transport interface {
	ConnectUploadPack(ctx context.Context, name registry.ModelName, protocol string, s Stream) error
	ConnectReceivePack(ctx context.Context, r Receive) error
}

// Stream is a client that stays connected.
type Stream struct {
	In   io.Reader
	Stop func() // ends In
	Out  io.Writer
	// Allowed says before each request of a fetch whether the client may still make it; nil is always.
	Allowed func(ctx context.Context) error
}

// Receive is a push on its way in.
type Receive struct {
	Model    registry.ModelName
	Exists   bool // or the client is shown an empty repository
	Protocol string
	PushID   string
	Stream   Stream
	// Begin is called when the client has something to push, before there is a repository for it. Its error ends
	// the push.
	Begin func(ctx context.Context) error
	Check func(ctx context.Context, p lifecycle.Push) error
	// Finish is called when the refs have moved; its lines are shown to the user before the
	// push is reported as done, and its error replaces the report.
	Finish func(ctx context.Context, updates []registry.RefUpdate) (lines []string, err error)
}

// authorized is the model of the command, when the caller may do action to it.
func (x *execution) authorized(ctx context.Context, action access.Action) (registry.Model, error) {
	m, err := x.Index.ModelByName(ctx, x.model)
	known := &m
	if errors.Is(err, registry.ErrNotFound) {
		known = nil
	} else if err != nil {
		return m, err
	}
	if err := access.Authorize(x.by.Identity, action, known); err != nil {
		return m, fmt.Errorf("model %s: %w", x.model, err)
	}
	return m, nil
}

// connect lets what the client sends be read until Stop is called. Whoever reads it does not have to wait for the
// client then, which does not say that it is done before the session is closed.
func (x *execution) connect() Stream {
	in, sent := io.Pipe()
	x.sessions.Go(func() {
		_, err := io.Copy(sent, x.stream)
		_ = sent.CloseWithError(err)
	})
	return Stream{In: in, Stop: func() { _ = sent.Close() }, Out: x.stream}
}

// identifyAgain asks once more who holds the key.
func (x *execution) identifyAgain(ctx context.Context) (err error) {
	x.by.Identity, err = x.identity(ctx)
	return err
}

func (x *execution) fetch(ctx context.Context) error {
	m, err := x.authorized(ctx, access.Read)
	if err != nil {
		return err
	}
	s := x.connect()
	defer s.Stop()
	// A client may stay connected and ask again and again: the key may have been revoked, and the model hidden.
	s.Allowed = func(ctx context.Context) (err error) {
		if err = x.identifyAgain(ctx); err == nil {
			_, err = x.authorized(ctx, access.Read)
		}
		return err
	}
	return x.Transport.ConnectUploadPack(ctx, m.Name, x.protocol, s)
}

// mayPush reports whether the model is there; it need not be for a caller that may make it.
func (x *execution) mayPush(ctx context.Context) (exists bool, err error) {
	_, err = x.authorized(ctx, access.Write)
	if errors.Is(err, registry.ErrNotFound) {
		return false, access.Authorize(x.by.Identity, access.Create, nil)
	}
	return true, err
}

func (x *execution) push(ctx context.Context) error {
	id := lifecycle.NewPushID()
	exists, err := x.mayPush(ctx)
	if err != nil {
		return err
	}
	var m registry.Model
	outcome := ""
	defer func() {
		if outcome != "" {
			x.Pushed(outcome)
		}
	}()
	defer func() {
		if m.ID == "" {
			return
		}
		if err := x.Lifecycle.EndPush(context.WithoutCancel(ctx), m, id); err != nil {
			x.Log.ErrorContext(ctx, "end of a push", "model", x.model, "push", id, "error", err.Error())
		}
	}()
	s := x.connect()
	defer s.Stop()
	return x.Transport.ConnectReceivePack(ctx, Receive{
		Model: x.model, Exists: exists, Protocol: x.protocol, PushID: id, Stream: s,
		Begin: func(ctx context.Context) (err error) {
			if err = x.identifyAgain(ctx); err != nil {
				return err
			}
			if m, err = x.Lifecycle.PushTarget(ctx, x.by, x.model); err == nil {
				outcome = "failed"
			}
			return err
		},
		Check: func(ctx context.Context, p lifecycle.Push) error {
			err := x.identifyAgain(ctx) // the pack may have been on its way for hours
			if err != nil {
				return err
			}
			if m.ID == "" {
				m, err = x.Lifecycle.CheckFirstPush(ctx, x.by, x.model, p)
			} else {
				err = x.Lifecycle.CheckPush(ctx, x.by, m, p)
			}
			var refused *lifecycle.RefusedError
			if errors.As(err, &refused) {
				outcome = "refused"
			}
			return err
		},
		Finish: func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
			report, err := x.Lifecycle.FinishPush(ctx, m, id, updates)
			if err != nil {
				return nil, err
			}
			if len(updates) > 0 {
				outcome = "accepted"
			}
			return x.Lines(m, report), nil
		},
	})
}

// endpoint is where Git LFS goes on. Source: docs/api/server-discovery.md of Git LFS, "SSH".
type endpoint struct {
	Href      string            `json:"href"`
	Header    map[string]string `json:"header"`
	ExpiresIn int               `json:"expires_in"` // seconds
}

// authenticate tells Git LFS where it goes on over HTTP, and by what right.
func (x *execution) authenticate(ctx context.Context) error {
	var m registry.Model
	var err error
	if x.upload {
		m, err = x.Lifecycle.UploadTarget(ctx, x.by, x.model)
	} else {
		m, err = x.authorized(ctx, access.Read)
	}
	if err != nil {
		return err
	}
	header, expiresIn := x.Authorization(m, x.by.Identity.TokenID, x.upload)
	return json.NewEncoder(x.stream).Encode(endpoint{
		Href:      publicURL(x.PublicURL, x.conn.LocalAddr()).JoinPath(x.model.String()+".git", "info/lfs").String(),
		Header:    map[string]string{"Authorization": header},
		ExpiresIn: int(expiresIn.Seconds()),
	})
}

// publicURL is where the client reaches the server over HTTP: where the operator says, or, when that is only that the
// server listens on all addresses, at the address that the client called.
func publicURL(configured *url.URL, called net.Addr) *url.URL {
	u := *configured
	ip, err := netip.ParseAddr(u.Hostname())
	at, errAt := netip.ParseAddrPort(called.String())
	if err != nil || errAt != nil || !ip.IsUnspecified() {
		return &u
	}
	u.Host = at.Addr().Unmap().WithZone("").String()
	if at.Addr().Unmap().Is6() {
		u.Host = "[" + u.Host + "]"
	}
	if port := configured.Port(); port != "" {
		u.Host += ":" + port
	}
	return &u
}
