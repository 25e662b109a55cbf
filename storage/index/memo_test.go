package index_test

import (
	"fmt"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

// What was decoded once is not what is read after a change, nor after the thing is gone.
func TestModelsAndTokensAreReadAsTheyAre(t *testing.T) {
	k := newBook(t)
	m := k.model("acme/fraud", registry.Public)
	for i := range 3 {
		want := fmt.Sprint("description ", i)
		k.add(registry.ModelChanged{ModelID: m.ID, Description: want, Visibility: registry.Private})
		for range 2 {
			got, err := k.ModelByName(t.Context(), m.Name)
			if err != nil || got.Description != want || got.Visibility != registry.Private {
				t.Errorf("ModelByName = %+v, %v, want the description %q", got, err, want)
			}
			got.Description = "changed by who got it"
			if again, err := k.ModelByID(t.Context(), m.ID); err != nil || again.Description != want {
				t.Errorf("ModelByID = %+v, %v, want the description %q", again, err, want)
			}
		}
	}
	for _, id := range []string{"t1", "t2"} {
		token := registry.Token{ID: id, Owner: "ada", Role: "writer", Hash: "ssh:abc", CreatedAt: begin}
		k.add(registry.TokenCreated{Token: token})
		for range 2 {
			if got, err := k.Token(t.Context(), token.Hash); err != nil || got != token {
				t.Errorf("Token = %+v, %v, want %+v", got, err, token)
			}
		}
		k.add(registry.TokenRevoked{TokenID: id})
		if got, err := k.Token(t.Context(), token.Hash); err == nil {
			t.Errorf("Token that was revoked = %+v, want none", got)
		}
	}
}
