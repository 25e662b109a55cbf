package api

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/auth"
	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// Identity is who sent a request that passed a [Server]'s middleware.
func Identity(c echo.Context) access.Identity { return door.Identity(c) }

// NewToken makes an access token: the secret, which is shown once, and what is kept of it.
func NewToken(owner string, role access.Role) (secret string, kept registry.Token) {
	return auth.NewToken(owner, role)
}

// Token is an access token, or the public key of an SSH client.
type Token struct {
	ID        string    `json:"id"`
	Owner     string    `json:"owner"`
	Role      string    `json:"role"`
	SSHKey    string    `json:"ssh_key,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Secret    string    `json:"secret,omitempty"` // in the answer that made it, and never again
}

func tokenOf(t registry.Token, secret string) Token {
	return Token{ID: t.ID, Owner: t.Owner, Role: t.Role, SSHKey: t.SSHKey, CreatedAt: t.CreatedAt, Secret: secret}
}

// TokenRequest is what a token is made from. With an SSH key it is that key, and there is no secret.
type TokenRequest struct {
	Owner  string `json:"owner"`
	Role   string `json:"role"`
	SSHKey string `json:"ssh_key,omitempty"` // a line of authorized_keys(5)
}

// maxTokenRequest bounds the body that asks for a token.
const maxTokenRequest = 32 << 10

func (s *Server) createToken(c echo.Context) error {
	if err := access.Authorize(door.Identity(c), access.ManageTokens, nil); err != nil {
		return err
	}
	var in TokenRequest
	if err := decode(c, maxTokenRequest, &in); err != nil {
		return err
	}
	role, err := access.ParseRole(in.Role)
	if err != nil {
		return err
	}
	var secret string
	var kept registry.Token
	if in.SSHKey != "" {
		kept, err = auth.NewKey(in.Owner, role, in.SSHKey)
	} else {
		secret, kept = auth.NewToken(in.Owner, role)
	}
	if err != nil {
		return err
	}
	if kept, err = s.Lifecycle.CreateToken(c.Request().Context(), door.Request(c), kept); err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderCacheControl, "no-store")
	return c.JSON(http.StatusCreated, tokenOf(kept, secret))
}

func (s *Server) listTokens(c echo.Context) error {
	if err := access.Authorize(door.Identity(c), access.ManageTokens, nil); err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	tokens, next, err := s.Index.Tokens(c.Request().Context(), at)
	if err != nil {
		return err
	}
	items := make([]Token, len(tokens))
	for i, t := range tokens {
		items[i] = tokenOf(t, "")
	}
	return answerList(c, items, next)
}

func (s *Server) revokeToken(c echo.Context) error {
	if err := s.Lifecycle.RevokeToken(c.Request().Context(), door.Request(c), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
