// Package auth turns the credentials of an HTTP request into an identity.
//
// A token comes as a bearer token or as the password of HTTP Basic authentication with any
// user name, which is what Git, Git LFS and OCI clients send. A request without credentials
// is anonymous; one with wrong credentials is refused, also where it could read without any,
// because to go on as somebody else than one thinks is a trap. Where a protocol wants a token of who
// has none, it is [Anonymous]. The tokens that OCI clients are given are known at their door only, see
// [RegistryPrefix].
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// maxTokenLen bounds what is taken for a token, in bytes. That of an OCI client names all that it is for.
const maxTokenLen = 16 << 10

// Tokens finds a token by the SHA-256 of its text, in hex; registry.ErrNotFound without one.
type Tokens interface {
	Token(ctx context.Context, hash string) (registry.Token, error)
}

// Authenticator identifies callers.
type Authenticator struct {
	Tokens        Tokens
	AnonymousRead bool // callers without credentials read public models
	NoAuth        bool // everybody is an administrator: for experiments on loopback
}

// Identify tells who sent the request. Wrong credentials are registry.ErrUnauthenticated.
func (a *Authenticator) Identify(r *http.Request) (access.Identity, error) {
	if a.NoAuth {
		return access.Identity{Name: "unauthenticated", Role: access.Admin}, nil
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return access.Anonymous(a.AnonymousRead), nil
	}
	token, err := credentials(r, header)
	if err != nil {
		return access.Identity{}, err
	}
	if token == Anonymous {
		return access.Anonymous(a.AnonymousRead), nil
	}
	if strings.HasPrefix(token, RegistryPrefix) && (r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/")) {
		return access.Anonymous(a.AnonymousRead), nil
	}
	return Of(r.Context(), a.Tokens, token)
}

// Of is who a token stands for; registry.ErrWrongToken when it is worth nothing.
func Of(ctx context.Context, tokens Tokens, token string) (access.Identity, error) {
	known, err := tokens.Token(ctx, Hash(token))
	if errors.Is(err, registry.ErrNotFound) {
		return access.Identity{}, registry.ErrWrongToken
	}
	if err != nil {
		return access.Identity{}, err
	}
	return access.Of(known)
}

// RegistryPrefix begins the tokens that the door of OCI clients gives out. Only that door knows them; until it has looked, who brings
// one is a stranger there. At every other door such a token is wrong.
const RegistryPrefix = "hbr_"

// Anonymous is the token of a caller without credentials, where a protocol wants one.
const Anonymous = "anonymous"

// TokenOf is the token that a request brought; Anonymous when it brought none.
func TokenOf(r *http.Request) string {
	token, err := credentials(r, r.Header.Get("Authorization"))
	if err != nil {
		return Anonymous
	}
	return token
}

func credentials(r *http.Request, header string) (string, error) {
	scheme, rest, _ := strings.Cut(header, " ")
	token := strings.TrimSpace(rest)
	if strings.EqualFold(scheme, "basic") {
		// Some clients send the token as the user and nothing, or a fixed word, as the password.
		user, password, ok := r.BasicAuth()
		if !ok {
			return "", fmt.Errorf("malformed Basic credentials: %w", registry.ErrWrongToken)
		}
		if token = password; strings.HasPrefix(user, tokenPrefix) {
			token = user
		}
	} else if !strings.EqualFold(scheme, "bearer") {
		return "", fmt.Errorf("credentials that are neither Bearer nor Basic: %w", registry.ErrWrongToken)
	}
	if token == "" || len(token) > maxTokenLen {
		return "", fmt.Errorf("no token in the credentials: %w", registry.ErrWrongToken)
	}
	return token, nil
}

const tokenPrefix = "hb_"

// Hash is what is kept of a token: it has 256 bits of chance, so that a slow hash adds nothing.
func Hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// NewToken makes a token and what is kept of it.
func NewToken(owner string, role access.Role) (secret string, kept registry.Token) {
	var id [8]byte
	var random [32]byte
	rand.Read(id[:]) // crypto/rand never fails
	rand.Read(random[:])
	kept = registry.Token{ID: hex.EncodeToString(id[:]), Owner: owner, Role: role.String()}
	secret = tokenPrefix + kept.ID + "_" + hex.EncodeToString(random[:])
	kept.Hash = Hash(secret)
	return secret, kept
}
