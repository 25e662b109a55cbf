package index

import (
	"context"
	"fmt"

	"github.com/herdbook/herdbook/registry"
)

// Token is the token whose hash is given.
func (db *DB) Token(ctx context.Context, hash string) (registry.Token, error) {
	return get1[registry.Token](ctx, db, bucketTokens, key(hash), "token")
}

// TokenByID is the token with that id, unless it was revoked.
func (db *DB) TokenByID(ctx context.Context, id string) (registry.Token, error) {
	hash, err := get1[string](ctx, db, bucketTokenIDs, key(id), "token")
	if err != nil {
		return registry.Token{}, err
	}
	token, err := db.Token(ctx, hash)
	if err == nil && token.ID != id {
		// A key that was revoked and added again has another id.
		return registry.Token{}, fmt.Errorf("token: %w", registry.ErrNotFound)
	}
	return token, err
}

// Tokens are those that were not revoked, in the order of their ids.
func (db *DB) Tokens(ctx context.Context, at registry.Page) (tokens []registry.Token, next string, err error) {
	err = db.view(ctx, func(t tx) error {
		hashes, after, err := page(t, bucketTokenIDs, nil, at, func(id []byte, hash *string) (bool, error) {
			var token registry.Token
			found, err := t.get(bucketTokens, key(*hash), &token)
			return found && token.ID == string(id), err
		})
		if err != nil {
			return err
		}
		next = after
		tokens = make([]registry.Token, len(hashes))
		for i, hash := range hashes {
			if _, err := t.get(bucketTokens, key(hash), &tokens[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return tokens, next, err
}

// HasTokens reports whether any token was ever made.
func (db *DB) HasTokens(ctx context.Context) (bool, error) {
	var some bool
	err := db.view(ctx, func(t tx) error {
		for range t.scan(bucketTokenIDs, nil, nil) {
			some = true
			break
		}
		return nil
	})
	return some, err
}
