package index

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/search"
)

// catalog is what is searched of all models, in memory, so that a query knows without reading the file which models it may look into and whether those
// are few. It is made from the file when the first query comes and changes with every group that is applied.
//
// A model takes some 500 bytes, most of it the facts of its cards, which are shared among models.
type catalog struct {
	mu      sync.RWMutex
	built   bool
	backlog backlog[[]catalogChange]

	byID     map[string]*entry
	byNumber []*entry // nil for a model that is gone
	byName   []*entry // sorted
	byFact   map[string][]*entry
	many     []*entry // with more facts than are kept
}

// entry is one model.
type entry struct {
	model registry.Model // without a name while only its versions are known
	text  string         // name and description, folded
	catalogRow
}

func (e *entry) name() string { return e.model.Name.String() }

// has reports whether a version of the model may have a fact.
func (e *entry) has(fact string) bool {
	_, ok := slices.BinarySearch(e.facts, fact)
	return ok || e.many
}

// held is the version that an environment holds.
func (e *entry) held(env string) (tag string, ok bool) {
	for _, h := range e.holds {
		if h.env == env {
			return h.tag, true
		}
	}
	return "", false
}

// set makes the entry that of a model as it is now.
func (e *entry) set(m registry.Model) {
	e.model, e.text = m, search.Fold(m.Name.String()+"\n"+m.Description)
}

// compareNames orders entries by name. While a name is given to a second model the first one may still be there.
func compareNames(a, b *entry) int {
	return cmp.Or(strings.Compare(a.name(), b.name()), strings.Compare(a.model.ID, b.model.ID))
}

// change notes what a transaction changed, after it is in the file.
func (c *catalog) change(changes []catalogChange) {
	if len(changes) == 0 {
		return
	}
	if c.backlog.add(changes) && c.mu.TryLock() {
		c.takeIn()
		c.mu.Unlock()
	}
}

// takeIn takes in what came since the catalog was read last. The caller holds the lock.
func (c *catalog) takeIn() {
	if !c.built {
		return
	}
	for _, changes := range c.backlog.take() {
		c.apply(changes)
	}
}

func (c *catalog) apply(changes []catalogChange) {
	for _, change := range changes {
		if change.gone {
			c.remove(c.byID[change.id])
			continue
		}
		c.put(change)
	}
}

// put adds a model or changes it.
func (c *catalog) put(change catalogChange) {
	e := c.byID[change.id]
	fresh := e == nil
	if fresh {
		e = &entry{model: registry.Model{ID: change.id}}
		c.byID[change.id] = e
		for len(c.byNumber) <= int(change.row.number) {
			c.byNumber = append(c.byNumber, nil)
		}
		c.byNumber[change.row.number] = e
	}
	if change.model != nil {
		if !fresh {
			c.unname(e)
		}
		e.set(*change.model)
	}
	if fresh || change.model != nil {
		at, _ := slices.BinarySearchFunc(c.byName, e, compareNames)
		c.byName = slices.Insert(c.byName, at, e)
	}
	before := e.catalogRow
	e.catalogRow = change.row
	for _, f := range e.facts { // they only ever become more
		if _, known := slices.BinarySearch(before.facts, f); !known {
			c.byFact[f] = append(c.byFact[f], e)
		}
	}
	if e.many && !before.many {
		c.many = append(c.many, e)
	}
}

func (c *catalog) unname(e *entry) {
	if at, ok := slices.BinarySearchFunc(c.byName, e, compareNames); ok {
		c.byName = slices.Delete(c.byName, at, at+1)
	}
}

func (c *catalog) remove(e *entry) {
	if e == nil {
		return
	}
	is := func(other *entry) bool { return other == e }
	c.unname(e)
	delete(c.byID, e.model.ID)
	c.byNumber[e.number] = nil
	for _, f := range e.facts {
		if c.byFact[f] = slices.DeleteFunc(c.byFact[f], is); len(c.byFact[f]) == 0 {
			delete(c.byFact, f)
		}
	}
	c.many = slices.DeleteFunc(c.many, is)
}

// number is the model with a number, or nil.
func (c *catalog) number(n uint32) *entry {
	if int(n) >= len(c.byNumber) {
		return nil
	}
	return c.byNumber[n]
}

// named are the models with a name: one, but while a change is on its way.
func (c *catalog) named(name string) []*entry {
	at, _ := slices.BinarySearchFunc(c.byName, name, func(e *entry, name string) int { return strings.Compare(e.name(), name) })
	end := at
	for end < len(c.byName) && c.byName[end].name() == name {
		end++
	}
	return c.byName[at:end]
}

// holdCatalog gives the catalog for reading, made when it is not there yet. The caller calls done.
func (db *DB) holdCatalog(ctx context.Context) (c *catalog, done func(), err error) {
	c = &db.catalog
	c.mu.RLock()
	if c.built && c.backlog.none() {
		return c, c.mu.RUnlock, nil
	}
	c.mu.RUnlock()
	if err := db.buildCatalog(ctx); err != nil {
		return nil, nil, err
	}
	c.mu.RLock()
	return c, c.mu.RUnlock, nil
}

// buildCatalog reads the catalog from the file, if it is not there, and takes in what came since. What is applied while it reads is taken in once
// more.
func (db *DB) buildCatalog(ctx context.Context) error {
	c := &db.catalog
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.takeIn()
	if c.built {
		return nil
	}
	c.backlog.want()
	c.byID, c.byNumber, c.byName, c.byFact, c.many = map[string]*entry{}, nil, nil, map[string][]*entry{}, nil
	shared := map[string]string{} // one copy of a fact that many models have
	var changes []catalogChange
	err := db.view(ctx, func(t tx) error {
		for r := range t.scan(bucketCatalog, nil, nil) {
			if err := r.check(); err != nil {
				return err
			}
			row, err := decodeCatalog(r.value[sum:])
			if err != nil {
				return err
			}
			for i, f := range row.facts {
				if known, ok := shared[f]; ok {
					row.facts[i] = known
				} else {
					shared[f] = f
				}
			}
			change := catalogChange{id: string(r.key), row: row}
			var m registry.Model
			found, err := t.get(bucketModels, r.key, &m)
			if err != nil {
				return err
			}
			if found {
				change.model = &m
			}
			changes = append(changes, change)
		}
		return nil
	})
	if err != nil {
		c.backlog.stop()
		return err
	}
	name := func(c catalogChange) string {
		if c.model == nil {
			return ""
		}
		return c.model.Name.String()
	}
	// In order of the names, each goes to the end of the list.
	slices.SortFunc(changes, func(a, b catalogChange) int {
		return cmp.Or(strings.Compare(name(a), name(b)), strings.Compare(a.id, b.id))
	})
	for _, change := range changes {
		c.put(change)
	}
	c.built = true
	return nil
}
