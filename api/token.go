package api

import (
	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/registry"
)

// NewToken makes an access token: the secret, which is shown once, and what is kept of it.
func NewToken(owner, role string) (secret string, kept registry.Token) {
	return auth.NewToken(owner, role)
}
