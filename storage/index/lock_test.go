package index_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// locked is the record of a lock.
func locked(m registry.Model, id, path string) registry.LockCreated {
	return registry.LockCreated{ModelID: m.ID, Lock: registry.Lock{ID: id, Path: path, Owner: "ada", LockedAt: begin}}
}

// locks lists the locks of a model as "ID PATH", in the order of the index, and asks for each of them in
// every other way.
func (b *book) locks(m registry.Model) []string {
	b.tb.Helper()
	all, err := b.Locks(b.tb.Context(), m.ID)
	if err != nil {
		b.tb.Fatal(err)
	}
	list := []string{}
	for _, l := range all {
		list = append(list, l.ID+" "+l.Path)
		if got, err := b.Lock(b.tb.Context(), m.ID, l.ID); got != l || err != nil {
			b.tb.Errorf("Lock(%s) = %+v, %v, want %+v", l.ID, got, err, l)
		}
		if got, err := b.LockOf(b.tb.Context(), m.ID, l.Path); got != l || err != nil {
			b.tb.Errorf("LockOf(%s) = %+v, %v, want %+v", l.Path, got, err, l)
		}
	}
	if n, err := b.LockCount(b.tb.Context(), m.ID); n != len(all) || err != nil {
		b.tb.Errorf("LockCount = %d, %v, want %d", n, err, len(all))
	}
	return list
}

func TestLocks(t *testing.T) {
	b := newBook(t)
	m, other := b.model("acme/fraud", registry.Public), b.model("acme/fraud2", registry.Public)
	b.add(locked(m, "l2", "b.bin"), locked(m, "l1", "z.bin"), locked(other, "l3", "b.bin"))
	if diff := cmp.Diff([]string{"l1 z.bin", "l2 b.bin"}, b.locks(m)); diff != "" {
		t.Errorf("locks (-want +got):\n%s", diff)
	}
	for _, ask := range []func() (registry.Lock, error){
		func() (registry.Lock, error) { return b.Lock(t.Context(), m.ID, "l3") },
		func() (registry.Lock, error) { return b.Lock(t.Context(), other.ID, "l1") },
		func() (registry.Lock, error) { return b.LockOf(t.Context(), other.ID, "z.bin") },
		func() (registry.Lock, error) { return b.LockOf(t.Context(), m.ID, "") },
		func() (registry.Lock, error) { return b.Lock(t.Context(), "", "l1") },
	} {
		if got, err := ask(); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("a lock of another model is found: %+v, %v, want ErrNotFound", got, err)
		}
	}
	// Whatever order records come in, a path has one lock and a removed one leaves nothing.
	b.add(locked(m, "l4", "b.bin"))
	b.add(registry.LockRemoved{ModelID: m.ID, LockID: "l2"}, registry.LockRemoved{ModelID: other.ID, LockID: "l1"})
	if diff := cmp.Diff([]string{"l1 z.bin", "l4 b.bin"}, b.locks(m)); diff != "" {
		t.Errorf("locks after one was replaced (-want +got):\n%s", diff)
	}
	b.add(registry.LockRemoved{ModelID: m.ID, LockID: "l4"})
	b.add(locked(m, "l5", "b.bin"))
	b.add(registry.ModelDeleted{ModelID: other.ID})
	if diff := cmp.Diff([]string{"l1 z.bin", "l5 b.bin"}, b.locks(m)); diff != "" {
		t.Errorf("locks after one was removed and made anew (-want +got):\n%s", diff)
	}
	if got := b.locks(other); len(got) != 0 {
		t.Errorf("locks of a deleted model = %v, want none", got)
	}
	for line := range strings.Lines(dump(t, b.DB)) {
		if strings.HasPrefix(line, "lock") && strings.Contains(line, other.ID) {
			t.Errorf("a deleted model left the row %s", line)
		}
	}
}

func TestLocksPage(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	var records []registry.Record
	var want []string
	for i := range 7 {
		id := fmt.Sprintf("l%d", i)
		records = append(records, locked(m, id, strings.Repeat("x", registry.MaxLockPathLen-1)+fmt.Sprint(i)))
		want = append(want, id)
	}
	b.add(records...)
	var got []string
	for at := (registry.Page{Limit: 3}); ; {
		locks, next, err := b.LocksPage(t.Context(), m.ID, at)
		if err != nil || len(locks) > 3 {
			t.Fatalf("LocksPage(%+v) = %d locks, %v, want at most 3", at, len(locks), err)
		}
		for _, l := range locks {
			got = append(got, l.ID)
		}
		if next == "" {
			break
		}
		at.Cursor = next
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("locks by pages of three (-want +got):\n%s", diff)
	}
}

// The longest path is a key: what Check lets through Apply takes.
func TestLockOfTheLongestPath(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	b.add(locked(m, "l1", strings.Repeat("ü", registry.MaxLockPathLen/2)))
	for _, r := range []registry.Record{locked(m, "l\x00", "a"), locked(m, "l", "a\x00b"), locked(m, "l", strings.Repeat("a", 40_000)), registry.LockRemoved{LockID: "l1"}} {
		if err := index.Check(registry.Group{Records: []registry.Record{r}}); err == nil {
			t.Errorf("Check(%.80v) = nil, want an error", r)
		}
	}
}

// An index that an older server left lacks the buckets of locks; it is no reason to make it anew.
func TestIndexFromBeforeThereWereLocks(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	for _, bucket := range []string{"locks", "lock_paths"} {
		if err := b.DropBucket(bucket); err != nil {
			t.Fatal(err)
		}
	}
	b.close()
	b.open()
	if applied, err := b.Applied(t.Context()); applied != b.seq || err != nil {
		t.Errorf("Applied of an index without locks = %d, %v, want %d: it was made anew", applied, err, b.seq)
	}
	b.add(locked(m, "l1", "a.bin"))
	if got := b.locks(m); len(got) != 1 {
		t.Errorf("locks = %v, want one", got)
	}
}

func BenchmarkLocks1000(b *testing.B) {
	k := newBook(b)
	m := k.model("acme/fraud", registry.Public)
	var records []registry.Record
	for i := range 1000 {
		records = append(records, locked(m, fmt.Sprintf("l%05d", i), fmt.Sprintf("models/%d.bin", i)))
	}
	k.add(records...)
	b.ReportAllocs()
	for b.Loop() {
		if locks, err := k.Locks(b.Context(), m.ID); len(locks) != 1000 || err != nil {
			b.Fatalf("Locks = %d, %v", len(locks), err)
		}
	}
}
