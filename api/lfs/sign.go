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

// Grant is what a signed address lets its bearer do.
type Grant struct {
	Method  string
	ModelID string
	OID     string
	Size    int64
	Actor   string // who asked for it
}

func (s *Signer) mac(g Grant, expires int64) string {
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "lfs\n%s\n%s\n%s\n%d\n%d\n%s", g.Method, g.ModelID, g.OID, g.Size, expires, g.Actor)
	return hex.EncodeToString(mac.Sum(nil))
}

// Sign gives the query of an address.
func (s *Signer) Sign(g Grant, now time.Time) url.Values {
	expires := now.Add(validFor).Unix()
	return url.Values{
		"expires": {strconv.FormatInt(expires, 10)}, "size": {strconv.FormatInt(g.Size, 10)},
		"actor": {g.Actor}, "signature": {s.mac(g, expires)},
	}
}

// Verify reads size and actor from the query and reports whether the query was signed for
// them, for what asked says, and is still in time.
func (s *Signer) Verify(q url.Values, asked Grant, now time.Time) (Grant, bool) {
	expires, err := strconv.ParseInt(q.Get("expires"), 10, 64)
	if err != nil || now.Unix() > expires {
		return asked, false
	}
	if asked.Size, err = strconv.ParseInt(q.Get("size"), 10, 64); err != nil {
		return asked, false
	}
	asked.Actor = q.Get("actor")
	return asked, hmac.Equal([]byte(s.mac(asked, expires)), []byte(q.Get("signature")))
}
