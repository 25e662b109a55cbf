package lfs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// validFor is how long a signed address may be used to start a transfer.
const validFor = 15 * time.Minute

// Signer signs addresses of objects with a key that only this server has.
type Signer struct{ key []byte }

// NewSigner makes a Signer; a key has at least 32 random bytes.
func NewSigner(key []byte) *Signer { return &Signer{key} }

// Grant is what a signed address lets its bearer do, as long as whoever asked for it still may.
type Grant struct {
	Method  string
	Model   string // by name
	ModelID string // empty when there was none of that name yet
	OID     string
	Size    int64
	TokenID string // of who asked for it; empty for callers without a token
}

func (s *Signer) mac(g Grant, expires int64) string {
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "lfs 2\n%s\n%s\n%s\n%s\n%d\n%d\n%s", g.Method, g.Model, g.ModelID, g.OID, g.Size, expires, g.TokenID)
	return hex.EncodeToString(mac.Sum(nil))
}

// Sign gives the query of an address.
func (s *Signer) Sign(g Grant, now time.Time) url.Values {
	expires := now.Add(validFor).Unix()
	return url.Values{
		"expires": {strconv.FormatInt(expires, 10)}, "size": {strconv.FormatInt(g.Size, 10)}, "model": {g.ModelID},
		"token": {g.TokenID}, "signature": {s.mac(g, expires)},
	}
}

// Verify reads the model's id, the size and the token from the query and reports whether the query was
// signed for them, for what asked says of the others, and is still in time.
func (s *Signer) Verify(q url.Values, asked Grant, now time.Time) (Grant, bool) {
	expires, err := strconv.ParseInt(q.Get("expires"), 10, 64)
	if err != nil || now.Unix() > expires {
		return asked, false
	}
	if asked.Size, err = strconv.ParseInt(q.Get("size"), 10, 64); err != nil {
		return asked, false
	}
	asked.ModelID, asked.TokenID = q.Get("model"), q.Get("token")
	return asked, hmac.Equal([]byte(s.mac(asked, expires)), []byte(q.Get("signature")))
}
