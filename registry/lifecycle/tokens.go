package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// CreateToken keeps a token that was made for somebody. One hash stands for one token.
func (s *Service) CreateToken(ctx context.Context, by Request, token registry.Token) (registry.Token, error) {
	if err := access.Authorize(by.Identity, access.ManageTokens, nil); err != nil {
		return registry.Token{}, err
	}
	if err := registry.CheckOwner(token.Owner); err != nil {
		return registry.Token{}, err
	}
	if _, err := access.ParseRole(token.Role); err != nil {
		return registry.Token{}, err
	}
	defer s.locks.lock("token:" + token.Hash)()
	switch old, err := s.Index.Token(ctx, token.Hash); {
	case err == nil:
		return registry.Token{}, fmt.Errorf("this is %s's already, as token %s: %w", old.Owner, old.ID, registry.ErrExists)
	case !errors.Is(err, registry.ErrNotFound):
		return registry.Token{}, err
	}
	token.CreatedAt = s.Now()
	return token, s.commit(ctx, registry.Group{At: token.CreatedAt, Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.TokenCreated{Token: token},
	}})
}

// RevokeToken makes a token worth nothing.
func (s *Service) RevokeToken(ctx context.Context, by Request, id string) error {
	if err := access.Authorize(by.Identity, access.ManageTokens, nil); err != nil {
		return err
	}
	if _, err := s.Index.TokenByID(ctx, id); err != nil {
		return err
	}
	return s.commit(ctx, registry.Group{At: s.Now(), Actor: by.Identity.Name, Request: by.ID, Records: []registry.Record{
		registry.TokenRevoked{TokenID: id},
	}})
}
