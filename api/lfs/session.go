package lfs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Session is what a client that came over SSH may do here, as long as the key that it came with still may.
type Session struct {
	Model   string // by name
	ModelID string // empty when there was none of that name yet
	TokenID string // of the key
	Upload  bool   // or only read
}

// A session travels as the user name of HTTP Basic authentication:
//
//	lfs-session.<base64url of the fields and the time of its end in Unix seconds, a line each>.<hex MAC>
//
// with the password of callers without credentials: at every other door its bearer is a stranger.
const sessionPrefix = "lfs-session."

func (s *Signer) sessionMAC(payload string) string {
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "lfs session 1\n%s", payload)
	return hex.EncodeToString(mac.Sum(nil))
}

// Authorization gives the value of the header that a session is used with, and for how long it is.
func (s *Signer) Authorization(session Session, now time.Time) (header string, expiresIn time.Duration) {
	payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s\n%s\n%s\n%t\n%d",
		session.Model, session.ModelID, session.TokenID, session.Upload, now.Add(validFor).Unix()))
	user := sessionPrefix + payload + "." + s.sessionMAC(payload)
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+auth.Anonymous)), validFor
}

// Session reads the user name of HTTP Basic authentication. It is ok if this Signer made it and it is still in time.
func (s *Signer) Session(user string, now time.Time) (session Session, ok bool) {
	payload, mac, found := strings.Cut(strings.TrimPrefix(user, sessionPrefix), ".")
	if !found || !strings.HasPrefix(user, sessionPrefix) || !hmac.Equal([]byte(s.sessionMAC(payload)), []byte(mac)) {
		return session, false
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	fields := strings.Split(string(text), "\n")
	if err != nil || len(fields) != 5 {
		return session, false
	}
	expires, err := strconv.ParseInt(fields[4], 10, 64)
	if err != nil || now.Unix() > expires {
		return session, false
	}
	return Session{Model: fields[0], ModelID: fields[1], TokenID: fields[2], Upload: fields[3] == "true"}, true
}

// errSession does not say why, like [errNotGranted].
var errSession = fmt.Errorf("the session is not valid: %w", registry.ErrWrongToken)

// enter makes a request that brings a session that of the key which it was made for, with the right that the key
// has now, and no more than reading when the session is for a download. Other requests stay what they are.
func (h *Handler) enter(c echo.Context) error {
	user, _, ok := c.Request().BasicAuth()
	if !ok || !strings.HasPrefix(user, sessionPrefix) {
		return nil
	}
	session, ok := h.Signer.Session(user, time.Now())
	name, err := door.ModelName(c)
	if !ok || err != nil || session.Model != name.String() {
		return errSession
	}
	ctx := c.Request().Context()
	m, err := h.Index.ModelByName(ctx, name)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	if session.ModelID != "" && session.ModelID != m.ID {
		return errSession // deleted, and perhaps another has its name
	}
	token, err := h.Index.TokenByID(ctx, session.TokenID)
	if errors.Is(err, registry.ErrNotFound) {
		return errSession
	}
	if err != nil {
		return err
	}
	id, err := access.Of(token)
	if err != nil {
		return errSession
	}
	if !session.Upload {
		id.Role = min(id.Role, access.Reader)
	}
	door.SetIdentity(c, id)
	return nil
}
