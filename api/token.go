package api

import (
	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Identity is who sent a request that passed a [Server]'s middleware.
func Identity(c echo.Context) access.Identity { return door.Identity(c) }

// NewToken makes an access token: the secret, which is shown once, and what is kept of it.
func NewToken(owner, role string) (secret string, kept registry.Token) {
	return auth.NewToken(owner, role)
}
