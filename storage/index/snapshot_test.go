package index_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

func difference(t *testing.T, a, b *index.DB) string {
	t.Helper()
	var text string
	err := a.Snapshot(t.Context(), func(one index.Snapshot) error {
		return b.Snapshot(t.Context(), func(other index.Snapshot) (err error) {
			text, err = index.Difference(one, other)
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestDifference(t *testing.T) {
	a, b := newBook(t), newBook(t)
	for _, book := range []*book{a, b} {
		m := registry.Model{ID: "m1", Name: registry.MustModelName("acme/fraud"), Visibility: registry.Public, CreatedAt: begin, UpdatedAt: begin}
		book.add(registry.ModelCreated{Model: m})
		book.add(registry.TokenCreated{Token: registry.Token{ID: "t1", Owner: "ada", Role: "admin", Hash: "h1", CreatedAt: begin}})
	}
	if got := difference(t, a.DB, b.DB); got != "" {
		t.Errorf("difference of two indexes of the same groups = %q, want none", got)
	}
	a.add(registry.TokenRevoked{TokenID: "t1"})
	if got := difference(t, a.DB, b.DB); !strings.Contains(got, "meta") {
		t.Errorf("difference of an index that is one group ahead = %q, want the row of meta that says how far it is", got)
	}
	b.add(registry.TokenCreated{Token: registry.Token{ID: "t2", Owner: "bob", Role: "admin", Hash: "h2 secret", CreatedAt: begin}})
	got := difference(t, a.DB, b.DB)
	if want := `row "t1"`; got == "" || strings.Contains(got, "bob") {
		t.Errorf("difference of indexes of other groups = %q, want the keys of two rows such as %s, and nothing of their values", got, want)
	}
}

func TestOpenCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "copy.db")
	db, err := index.OpenCopy(path)
	if err != nil {
		t.Fatal(err)
	}
	if applied, err := db.Applied(t.Context()); applied != 0 || err != nil {
		t.Errorf("Applied of a new copy = %d, %v, want 0", applied, err)
	}
	if err := db.Discard(); err != nil {
		t.Errorf("Discard = %v", err)
	}
	if _, err := index.OpenCopy(filepath.Join(path, "below", "a", "file")); err == nil {
		t.Error("OpenCopy below a file = nil, want an error")
	}
}

// While somebody looks at the index as it was, it goes on growing.
func TestApplyDuringASnapshot(t *testing.T) {
	k, m := versions(t, 10)
	err := k.Snapshot(t.Context(), func(index.Snapshot) error {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 8 {
				var records []registry.Record
				for n := range 1000 {
					records = append(records, version(m, fmt.Sprintf("v2.%d.%d", i, n), used("dataset:calls")))
				}
				k.add(records...)
			}
		}()
		select {
		case <-done:
			return nil
		case <-time.After(20 * time.Second):
			return errors.New("a change waits for who reads")
		}
	})
	if err != nil {
		t.Error(err)
	}
}
