package registry_test

import (
	"errors"
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestCheckStateChange(t *testing.T) {
	states := []registry.VersionState{registry.Published, registry.Deprecated, registry.Quarantined, registry.Revoked}
	// Rows are what it was, columns what it is to be.
	possible := map[registry.VersionState][4]bool{
		registry.Published:   {false, true, true, true},
		registry.Deprecated:  {true, false, true, true},
		registry.Quarantined: {true, false, false, true},
		registry.Revoked:     {false, false, false, false},
	}
	for _, from := range states {
		for i, to := range states {
			err := registry.CheckStateChange(registry.MustTag("v1.0.0"), from, to)
			if ok := err == nil; ok != possible[from][i] || (!ok && !errors.Is(err, registry.ErrConflict)) {
				t.Errorf("CheckStateChange(%s, %s) = %v, want possible: %t", from, to, err, possible[from][i])
			}
		}
		if parsed, err := registry.ParseVersionState(string(from)); parsed != from || err != nil {
			t.Errorf("ParseVersionState(%s) = %s, %v, want itself", from, parsed, err)
		}
		if got, want := from.Usable(), from == registry.Published || from == registry.Deprecated; got != want {
			t.Errorf("%s is usable: %t, want %t", from, got, want)
		}
	}
	for _, text := range []string{"", "restored", "Published", "published "} {
		if _, err := registry.ParseVersionState(text); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("ParseVersionState(%q) = %v, want ErrInvalid", text, err)
		}
	}
}
