package registry_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

// dice makes evaluations and selectors out of few values, so that many match and many do not.
type dice struct{ *rand.Rand }

func (d dice) one(of ...string) string { return of[d.IntN(len(of))] }

func (d dice) evaluation(at time.Time) registry.Evaluation {
	if d.IntN(10) == 0 {
		at = at.Add(-time.Duration(d.IntN(20)) * time.Minute) // a clock that was set back
	}
	return registry.Evaluation{
		Dataset: registry.Dataset{
			Name: d.one("calls", "calls", "news"), URI: d.one("", "s3://a"), Revision: d.one("", "", "1"), Split: d.one("test", "test", "dev"),
			Slice: d.one("", "", "night", "day"),
		},
		Evaluator: d.one("", "jenkins"), SelfReported: d.IntN(5) == 0, RecordedAt: at,
	}
}

func (d dice) evidence() *registry.Evidence {
	if d.IntN(8) == 0 {
		return nil
	}
	s := &registry.Evidence{Dataset: d.one("", "calls", "other"), Revision: d.one("", "", "1"), Split: d.one("", "test"), SelfReported: d.IntN(3) == 0}
	if d.IntN(3) == 0 {
		name := d.one("", "night", "dusk")
		s.Slice = &name
	}
	if d.IntN(3) == 0 {
		s.Evaluators = []string{"jenkins"}
	}
	if d.IntN(2) == 0 {
		s.MaxAge = time.Duration(1+d.IntN(40)) * time.Minute
	}
	return s
}

// checkCatalog reports when a catalog finds something else than a look at all evaluations.
func checkCatalog(t *testing.T, seed1, seed2 uint64, count int) {
	t.Helper()
	d := dice{rand.New(rand.NewPCG(seed1, seed2))}
	begin := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	var c registry.Catalog
	var all []registry.Evaluation
	var now time.Time
	check := func(c *registry.Catalog, all []registry.Evaluation) {
		t.Helper()
		s := d.evidence()
		want := s.Select(all, now)
		got := c.Select(s, now)
		var number uint64
		if want.Evaluation != nil {
			number = uint64(slices.IndexFunc(all, func(e registry.Evaluation) bool { return e.ID == want.Evaluation.ID })) + 1
		}
		if diff := cmp.Diff(registry.Found{Number: number, Matched: want.Matched, Ambiguous: want.Ambiguous}, got); diff != "" {
			t.Fatalf("Select(%+v) of %d evaluations, seed %d %d (-all looked at +catalog):\n%s", s, len(all), seed1, seed2, diff)
		}
		rules := &registry.Slices{Required: []string{"dawn"}}
		if diff := cmp.Diff(rules.Names(s, all, now), c.Slices(rules, s, now)); diff != "" {
			t.Fatalf("slices for %+v, seed %d %d (-all looked at +catalog):\n%s", s, seed1, seed2, diff)
		}
		number = 0
		if e := registry.Headline(all); e != nil {
			number = uint64(slices.IndexFunc(all, func(x registry.Evaluation) bool { return x.ID == e.ID })) + 1
		}
		if got := c.Headline(); got != number {
			t.Fatalf("Headline of %d evaluations = %d, want %d; seed %d %d", len(all), got, number, seed1, seed2)
		}
		if c.Len() != len(all) || c.Last() != uint64(len(all)) {
			t.Fatalf("Len, Last = %d, %d, want %d", c.Len(), c.Last(), len(all))
		}
	}
	var old *registry.Catalog
	for i := range count {
		now = begin.Add(time.Duration(i) * time.Minute)
		e := d.evaluation(now)
		e.ID = fmt.Sprint(i + 1)
		c.Add(uint64(i+1), &e)
		all = append(all, e)
		for range 3 {
			check(c.Snapshot(), all)
		}
		if i == count/2 {
			old = c.Snapshot()
		}
	}
	check(old, all[:count/2+1]) // which does not change
}

func TestCatalogFindsWhatIsThere(t *testing.T) {
	for seed := range uint64(40) {
		checkCatalog(t, seed, 1, 60)
	}
}

func FuzzCatalog(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint8(1))
	f.Add(uint64(3), uint64(4), uint8(70))
	f.Fuzz(func(t *testing.T, a, b uint64, count uint8) {
		if count > 0 {
			checkCatalog(t, a, b, int(count))
		}
	})
}

// BenchmarkCatalogSelect is what the evidence of a commit costs that has many evaluations.
func BenchmarkCatalogSelect(b *testing.B) {
	for _, count := range []int{10, 10_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			var c registry.Catalog
			now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
			for i := range count {
				c.Add(uint64(i+1), &registry.Evaluation{Dataset: registry.Dataset{Name: "calls"}, RecordedAt: now})
			}
			s := &registry.Evidence{Dataset: "calls", MaxAge: time.Hour}
			for b.Loop() {
				if found := c.Snapshot().Select(s, now); found.Matched != count {
					b.Fatalf("Select matched %d, want %d", found.Matched, count)
				}
			}
		})
	}
}
