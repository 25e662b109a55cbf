package registry

import (
	"fmt"
	"slices"
	"time"
)

// Catalog is what evidence is selected by, of all evaluations of one commit: some 50 bytes of each instead of the whole. It finds what
// [Evidence.Select] finds, in time that grows with the number of datasets and evaluators and not with that of the evaluations. Evaluations are
// known by their numbers, which rise in the order of recording and begin at 1.
type Catalog struct {
	kinds []catalogKind
	place map[kindOf]int // of a kind in kinds
	total int
	last  uint64
	bytes int
}

// kindOf is what evaluations of one kind have in common: all that a selector asks for but their age.
type kindOf struct {
	dataset      Dataset // without its URI
	evaluator    string
	selfReported bool
}

type catalogKind struct {
	kindOf
	entries []catalogEntry // by number
	rising  bool           // none was recorded before the one that precedes it
}

type catalogEntry struct {
	number uint64
	at     time.Time
}

// Cost of a kind and of an entry in memory, in bytes; texts come on top.
const (
	kindBytes  = 512
	entryBytes = 48 // slices have room to grow
)

// Add notes an evaluation; its number is above all others. Catalogs that [Catalog.Snapshot] gave before do not have it.
func (c *Catalog) Add(number uint64, e *Evaluation) {
	of := kindOf{e.Dataset, e.Evaluator, e.SelfReported}
	of.dataset.URI = ""
	i, known := c.place[of]
	if !known {
		if c.place == nil {
			c.place = map[kindOf]int{}
		}
		i = len(c.kinds)
		c.place[of] = i
		c.kinds = append(c.kinds, catalogKind{kindOf: of, rising: true})
		d := of.dataset
		c.bytes += kindBytes + len(d.Name) + len(d.Revision) + len(d.Digest) + len(d.Split) + len(d.Slice) + len(of.evaluator)
	}
	k := &c.kinds[i]
	if n := len(k.entries); n > 0 && e.RecordedAt.Before(k.entries[n-1].at) {
		k.rising = false
	}
	k.entries = append(k.entries, catalogEntry{number, e.RecordedAt})
	c.total, c.last, c.bytes = c.total+1, number, c.bytes+entryBytes
}

// Len is the number of evaluations.
func (c *Catalog) Len() int { return c.total }

// Last is the number of the newest evaluation; 0 when there is none.
func (c *Catalog) Last() uint64 { return c.last }

// SizeBytes is about what the catalog takes in memory.
func (c *Catalog) SizeBytes() int { return c.bytes }

// Snapshot is the catalog as it is now. It does not change, so that many may read it; nothing can be added to it.
func (c *Catalog) Snapshot() *Catalog {
	return &Catalog{kinds: slices.Clone(c.kinds), total: c.total, last: c.last, bytes: c.bytes}
}

// Found is [Evidenced] with the number of the evaluation in its place; 0 stands for none.
type Found struct {
	Number    uint64
	Matched   int
	Ambiguous string
}

// window is those entries of a kind that a selector takes, when their age counts.
func (k *catalogKind) window(s *Evidence, now time.Time) []catalogEntry {
	if s == nil || s.MaxAge == 0 {
		return k.entries
	}
	young := func(e catalogEntry) bool { return now.Sub(e.at) <= s.MaxAge }
	if !k.rising { // a clock was set back
		return slices.DeleteFunc(slices.Clone(k.entries), func(e catalogEntry) bool { return !young(e) })
	}
	first, _ := slices.BinarySearchFunc(k.entries, struct{}{}, func(e catalogEntry, _ struct{}) int {
		if young(e) {
			return 1
		}
		return -1
	})
	return k.entries[first:]
}

// selects reports whether a selector takes evaluations of the kind that are young enough.
func (k *catalogKind) selects(s *Evidence) bool {
	e := Evaluation{Dataset: k.dataset, Evaluator: k.evaluator, SelfReported: k.selfReported}
	if s == nil || s.MaxAge == 0 {
		return s.Selects(&e, time.Time{})
	}
	ageless := *s
	ageless.MaxAge = 0
	return ageless.Selects(&e, time.Time{})
}

// Select finds the evidence, as [Evidence.Select] does.
func (c *Catalog) Select(s *Evidence, now time.Time) Found {
	var found Found
	type window struct {
		*catalogKind
		entries []catalogEntry
	}
	var windows []window
	var newest window
	for i := range c.kinds {
		k := &c.kinds[i]
		if !k.selects(s) {
			continue
		}
		entries := k.window(s, now)
		if len(entries) == 0 {
			continue
		}
		windows = append(windows, window{k, entries})
		found.Matched += len(entries)
		if last := entries[len(entries)-1].number; last > found.Number {
			found.Number, newest = last, windows[len(windows)-1]
		}
	}
	if named := s != nil && (s.Dataset != "" || s.Digest != ""); named || len(windows) < 2 {
		return found
	}
	// The last two neighbours that differ: the newest of another dataset than the newest of all, and what follows it.
	var before window
	var at uint64
	for _, w := range windows {
		if last := w.entries[len(w.entries)-1].number; last > at && !w.dataset.Same(newest.dataset) {
			before, at = w, last
		}
	}
	if at > 0 {
		found.Number = 0
		found.Ambiguous = ambiguous(before.dataset, newest.dataset)
	}
	return found
}

// Slices are the slices that the evidence selects at any rate and those of which it selects an evaluation; see [Slices.Names].
func (c *Catalog) Slices(s *Slices, evidence *Evidence, now time.Time) []string {
	of := evidence.ofAllSlices()
	names := slices.Clone(s.Required)
	for i := range c.kinds {
		if k := &c.kinds[i]; k.dataset.Slice != "" && k.selects(&of) && len(k.window(&of, now)) > 0 {
			names = append(names, k.dataset.Slice)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Headline is the number of the evaluation that [Headline] chooses; 0 when there is none.
func (c *Catalog) Headline() uint64 {
	var whole, slice uint64
	for i := range c.kinds {
		k := &c.kinds[i]
		last := k.entries[len(k.entries)-1].number
		switch {
		case k.selfReported:
		case k.dataset.Slice == "":
			whole = max(whole, last)
		default:
			slice = max(slice, last)
		}
	}
	if whole > 0 {
		return whole
	}
	return slice
}

func ambiguous(a, b Dataset) string {
	return fmt.Sprintf("the evaluations differ in their dataset (%s and %s): name one under evidence", a.Label(), b.Label())
}
