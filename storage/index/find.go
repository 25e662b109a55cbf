package index

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/search"
)

// effort bounds what one query reads. Both bounds count only what the caller may read, so that where a page ends tells nothing of the rest.
type effort struct {
	// few is how many versions, of the models that a query leaves, are all read and sorted. Where there are more, the query goes along an order
	// that the file keeps.
	few int
	// most is how many versions a query that goes along an order looks at for one page. It then gives what it has found, and a cursor.
	most int
}

var defaultEffort = effort{few: 4096, most: 4096}

// Search finds models or versions that id may read, a page of them. A page can be shorter than was asked for, and even empty, while there is a cursor:
// the query has looked at as much as it may for one page. A cursor of another order is a [registry.FieldError].
func (db *DB) Search(ctx context.Context, id access.Identity, q search.Query, at registry.Page) (hits []search.Hit, next string, err error) {
	c, done, err := db.holdCatalog(ctx)
	if err != nil {
		return nil, "", err
	}
	defer done()
	err = db.view(ctx, func(t tx) error {
		f := &finder{tx: t, ctx: ctx, catalog: c, id: id, effort: db.effort, q: q, kind: q.Finds(), order: q.Order(), limit: at.Bound(), rows: t.reader(bucketFacts)}
		if f.effort == (effort{}) {
			f.effort = defaultEffort
		}
		f.prepare()
		if err := f.from(at.Cursor); err != nil {
			return err
		}
		if err := f.run(); err != nil {
			return err
		}
		hits = make([]search.Hit, min(len(f.passed), f.limit))
		for n := range hits {
			if hits[n], err = f.show(f.passed[n]); err != nil {
				return err
			}
		}
		switch {
		case len(f.passed) > f.limit:
			next = f.cursor(f.passed[f.limit-1])
		case f.stopped:
			next = f.cursor(f.last)
		}
		return nil
	})
	return hits, next, err
}

// finder is one query by one caller.
type finder struct {
	tx
	ctx     context.Context
	catalog *catalog
	id      access.Identity
	effort  effort
	q       search.Query
	kind    search.Kind
	order   search.Sort
	limit   int

	ofModels []search.Term // that tell models apart without their versions
	needed   []string      // facts that a model must have
	env      string        // that must hold the version, or ""
	known    []int8        // by number: whether the model is a candidate; 0 is not known yet

	after   *item // the last one of the page before
	passed  []item
	looked  int
	met     int    // rows, whoever may read them
	last    item   // that was looked at
	stopped bool   // before the end
	rows    reader // of facts
	key     []byte // of the last row that was read
	now     facts
	texts   map[string]string // one copy of what many hits have
}

// item is a version, or the model that it is the latest of.
type item struct {
	*entry
	tag      string // empty of a model without a version
	inverted uint64 // what it is ordered by, unless that is the name
	serial   uint32
	whole    bool   // of a cursor by name: it stands behind all versions of its model
	row      []byte // of its facts, until the transaction ends
	hit      *search.Hit
}

// prepare sorts the terms by what they can be decided from.
func (f *finder) prepare() {
	kinds := map[search.Field]string{
		search.License: factLicense, search.Task: factTask, search.Library: factLibrary, search.CardTag: factTag, search.Language: factLanguage,
		search.Dataset: factDataset, search.Base: factBase, search.Env: factEnv,
	}
	for _, t := range f.q.Terms {
		switch t.Field {
		case search.Name, search.Model:
			f.ofModels = append(f.ofModels, t)
		case search.Word:
			if !t.Not {
				f.ofModels = append(f.ofModels, t)
			}
		default:
			text, exact := t.Exact()
			if kind := kinds[t.Field]; kind != "" && exact && !t.Not {
				f.needed = append(f.needed, kind+text)
				if t.Field == search.Env {
					f.env = text
				}
			}
		}
	}
}

// candidate reports whether the caller may read a model and what is known of the model as a whole lets it pass.
func (f *finder) candidate(e *entry) bool {
	if e == nil || e.model.Name.IsZero() {
		return false
	}
	if len(f.ofModels)+len(f.needed) == 0 {
		return access.CanRead(f.id, &e.model)
	}
	if f.known == nil {
		f.known = make([]int8, len(f.catalog.byNumber))
	}
	if f.known[e.number] == 0 {
		f.known[e.number] = -1
		if access.CanRead(f.id, &e.model) && f.fits(e) {
			f.known[e.number] = 1
		}
	}
	return f.known[e.number] > 0
}

func (f *finder) fits(e *entry) bool {
	for _, fact := range f.needed {
		if !e.has(fact) {
			return false
		}
	}
	for _, t := range f.ofModels {
		ok := false
		switch t.Field {
		case search.Model, search.Name:
			ok = t.Matches(e.name())
		case search.Word:
			word, _ := t.Exact()
			ok = strings.Contains(e.text, word) || e.many || slices.ContainsFunc(e.facts, func(fact string) bool {
				return strings.HasPrefix(fact, factTag) && strings.Contains(fact[len(factTag):], word)
			})
		}
		if ok == t.Not {
			return false
		}
	}
	return true
}

// candidates are the models that the query leaves, found from the shortest list that there is.
func (f *finder) candidates() iter.Seq[*entry] {
	lists := [][]*entry{f.catalog.byName}
	for _, t := range f.ofModels {
		if name, exact := t.Exact(); t.Field == search.Model && exact && !t.Not {
			lists = [][]*entry{f.catalog.named(name)}
		}
	}
	for _, fact := range f.needed {
		if list := f.catalog.byFact[fact]; len(list)+len(f.catalog.many) < len(lists[0]) {
			lists = [][]*entry{list, f.catalog.many}
		}
	}
	return func(yield func(*entry) bool) {
		for i, list := range lists {
			for _, e := range list {
				if i == 0 && len(lists) > 1 && e.many {
					continue // comes with the second list
				}
				if f.candidate(e) && !yield(e) {
					return
				}
			}
		}
	}
}

// apart is how many versions of one model are read in the time of one that is read by itself.
const apart = 4

// size is how many versions of a candidate the query has to look at, or would in the time that it takes.
func (f *finder) size(e *entry) int {
	if f.kind == search.Models || f.env != "" {
		return apart
	}
	return int(min(e.versions, math.MaxInt32))
}

// few are all candidates, or false when they have too many versions.
func (f *finder) few() (all []*entry, ok bool) {
	total := 0
	for e := range f.candidates() {
		if total += f.size(e); total > f.effort.few {
			return nil, false
		}
		all = append(all, e)
	}
	return all, true
}

// run finds the page and one more, in order.
func (f *finder) run() error {
	for _, t := range f.q.Terms {
		if t.Field == search.Digest {
			return f.byDigest(t)
		}
	}
	if all, ok := f.few(); ok {
		return f.collect(all)
	}
	if all, ok, err := f.fewByMetric(); err != nil {
		return err
	} else if ok {
		return f.considerAll(all)
	}
	if f.order.Field == search.ByName {
		return f.alongNames()
	}
	return f.alongOrder()
}

// collect reads all versions of some models.
func (f *finder) collect(all []*entry) error {
	for _, e := range all {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		if err := f.each(e, f.consider); err != nil {
			return err
		}
	}
	f.arrange()
	return nil
}

// each calls fn for what the query has to look at of a candidate: its latest version, the one in the environment that the query names, or all.
func (f *finder) each(e *entry, fn func(item) error) error {
	tag := e.latest
	if f.kind == search.Versions {
		var ok bool
		if tag, ok = e.held(f.env); !ok {
			if f.env != "" {
				return nil
			}
			p := binary.BigEndian.AppendUint32(nil, e.number)
			for r := range f.scan(bucketFacts, p, nil) {
				if err := r.check(); err != nil {
					return err
				}
				if err := fn(item{entry: e, tag: string(r.key[len(p):]), row: r.value[sum:]}); err != nil {
					return err
				}
				if err := f.goOn(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	i := item{entry: e, tag: tag}
	if tag == "" {
		return fn(i)
	}
	if found, err := f.read(&i); err != nil || !found {
		return err
	}
	return fn(i)
}

// read brings the row of an item, if there still is one.
func (f *finder) read(i *item) (found bool, err error) {
	f.key = append(binary.BigEndian.AppendUint32(f.key[:0], i.number), i.tag...)
	i.row, err = f.rows.bytes(f.key)
	return i.row != nil, err
}

// goOn counts a row that was read or passed over. It is an error when nobody waits for the answer any more.
func (f *finder) goOn() error {
	if f.met++; f.met%512 != 0 {
		return nil
	}
	return f.ctx.Err()
}

// consider keeps what passes.
func (f *finder) consider(i item) error {
	ok, err := f.passes(&i)
	if err != nil || !ok || f.after != nil && f.compare(i, *f.after) <= 0 {
		return err
	}
	f.passed = append(f.passed, i)
	if len(f.passed) > 4*(f.limit+1) {
		f.arrange()
	}
	return nil
}

// arrange brings what was found into order and drops what lies behind the page and one more.
func (f *finder) arrange() {
	slices.SortFunc(f.passed, f.compare)
	f.passed = f.passed[:min(len(f.passed), f.limit+1)]
}

// compare is the order in which items are shown.
func (f *finder) compare(a, b item) int {
	var c int
	switch {
	case f.order.Field != search.ByName:
		c = cmp.Or(cmp.Compare(a.inverted, b.inverted), cmp.Compare(b.serial, a.serial))
	case a.entry != b.entry:
		c = compareNames(a.entry, b.entry)
	case a.whole != b.whole: // it stands behind the versions whichever way the order goes
		if a.whole {
			return 1
		}
		return -1
	default:
		c = compareTags(b.tag, a.tag)
	}
	if f.order.Reverse {
		return -c
	}
	return c
}

func compareTags(a, b string) int {
	if a == b {
		return 0
	}
	x, _ := registry.ParseTag(a)
	y, _ := registry.ParseTag(b)
	return x.Compare(y)
}

// passes reports whether an item is one that the query looks for, and fills in what it is ordered by.
func (f *finder) passes(i *item) (bool, error) {
	if i.tag == "" {
		return f.order.Field == search.ByName && f.passesWithoutVersion(i.entry), nil
	}
	if err := f.now.decode(i.row); err != nil {
		return false, err
	}
	i.serial = f.now.serial
	switch f.order.Field {
	case search.ByPublished:
		i.inverted = invertTime(f.now.published)
	case search.ByMetric:
		value, ok := f.now.metric(f.order.Metric, f.q.Reported)
		if !ok {
			return false, nil
		}
		i.inverted = invert(value)
	}
	for n := range f.q.Terms {
		t := &f.q.Terms[n]
		if f.holds(t, i) == t.Not {
			return false, nil
		}
	}
	return true, nil
}

// holds decides one term of an item whose facts were just read.
func (f *finder) holds(t *search.Term, i *item) bool {
	v := &f.now
	switch t.Field {
	case search.Word:
		word, _ := t.Exact()
		return strings.Contains(i.text, word) || anyMatch(t, v.tags)
	case search.Name, search.Model:
		return t.Matches(i.name())
	case search.CardTag:
		return anyMatch(t, v.tags)
	case search.License:
		if bytes.Contains(v.license, []byte(licenseSeparator)) {
			return slices.ContainsFunc(licenses(string(v.license)), t.Matches)
		}
		return len(v.license) > 0 && t.Matches(string(v.license))
	case search.Task:
		return len(v.task) > 0 && t.Matches(string(v.task))
	case search.Library:
		return len(v.library) > 0 && t.Matches(string(v.library))
	case search.Language:
		return anyMatch(t, v.languages)
	case search.Dataset:
		return anyMatch(t, v.datasets)
	case search.Base:
		return anyMatch(t, v.bases) || slices.ContainsFunc(v.bases, func(b []byte) bool {
			name, _, pinned := bytes.Cut(b, []byte("@"))
			return pinned && t.Matches(string(name))
		})
	case search.Version:
		return t.MatchesTag(i.tag)
	case search.State:
		return t.Matches(string(stateNames[v.state]))
	case search.Env:
		return anyMatch(t, v.environments)
	case search.By:
		return len(v.by) > 0 && t.Matches(string(v.by))
	case search.Published:
		return t.MatchesTime(time.Unix(0, v.published))
	case search.Metric:
		value, ok := v.metric(t.Text, f.q.Reported)
		return ok && t.MatchesNumber(value)
	}
	return true // a digest: byDigest brings no other versions
}

func anyMatch(t *search.Term, list [][]byte) bool {
	for _, s := range list {
		if t.Matches(string(s)) {
			return true
		}
	}
	return false
}

// passesWithoutVersion decides of a model that has no version: no term about one holds.
func (f *finder) passesWithoutVersion(e *entry) bool {
	for _, t := range f.q.Terms {
		holds := false
		switch t.Field {
		case search.Word:
			word, _ := t.Exact()
			holds = strings.Contains(e.text, word)
		case search.Name, search.Model:
			holds = t.Matches(e.name())
		}
		if holds == t.Not {
			return false
		}
	}
	return true
}

// byDigest looks at the versions that have a digest.
func (f *finder) byDigest(t search.Term) error {
	_, hexDigits, _ := strings.Cut(t.Text, ":")
	from, until := digestStart(hexDigits), digestStart(hexDigits+strings.Repeat("f", max(0, 16-len(hexDigits))))
	seen := map[string]bool{}
	for r := range f.scan(bucketDigests, nil, from) {
		if len(r.key) < 12 || bytes.Compare(r.key[:8], until) > 0 {
			break
		}
		if err := r.check(); err != nil {
			return err
		}
		e, tag := f.catalog.number(binary.BigEndian.Uint32(r.key[8:])), string(r.key[12:])
		if !f.candidate(e) || seen[string(r.key[8:])] || f.kind == search.Models && tag != e.latest {
			continue
		}
		seen[string(r.key[8:])] = true
		var v registry.VersionRecord
		if _, err := f.get(bucketVersions, key(e.model.ID, tag), &v); err != nil {
			return err
		}
		if !f.hasDigests(v) {
			continue
		}
		i := item{entry: e, tag: tag}
		if found, err := f.read(&i); err != nil {
			return err
		} else if !found {
			continue
		}
		if err := f.consider(i); err != nil {
			return err
		}
	}
	f.arrange()
	return nil
}

// hasDigests reports whether a version has all digests that the query names.
func (f *finder) hasDigests(v registry.VersionRecord) bool {
	for _, t := range f.q.Terms {
		if t.Field != search.Digest {
			continue
		}
		if !strings.HasPrefix(string(v.Version.Artifact.Digest), t.Text) && !strings.HasPrefix(string(v.Image.Digest), t.Text) {
			return false
		}
	}
	return true
}

// look takes in the next item of an order, and reports whether the walk goes on.
func (f *finder) look(i item) (bool, error) {
	if f.looked >= f.effort.most {
		f.stopped = true
		return false, nil
	}
	f.looked++
	ok, err := f.passes(&i)
	if err != nil {
		return false, err
	}
	if f.last = i; ok {
		if len(f.passed) < f.limit { // its facts are at hand
			hit, err := f.fill(i)
			if err != nil {
				return false, err
			}
			i.hit = &hit
		}
		f.passed = append(f.passed, i)
	}
	return len(f.passed) <= f.limit, nil
}

// alongNames walks the models by name.
func (f *finder) alongNames() error {
	names := f.catalog.byName
	at, end, step := 0, len(names), 1
	if f.order.Reverse {
		at, end, step = len(names)-1, -1, -1
	}
	if f.after != nil {
		at, _ = slices.BinarySearchFunc(names, f.after.entry, compareNames)
		if f.after.whole {
			at += step
		}
	}
	for ; at != end; at += step {
		e := names[at]
		if !f.candidate(e) {
			continue
		}
		if err := f.ctx.Err(); err != nil {
			return err
		}
		if f.stopped = f.looked >= f.effort.most; f.stopped {
			break
		}
		if err := f.each(e, func(i item) error {
			f.looked++
			return f.consider(i)
		}); err != nil {
			return err
		}
		f.last = item{entry: e, whole: true}
		if len(f.passed) > f.limit {
			break
		}
	}
	f.arrange()
	return nil
}

// span is a part of an order: the inverted values from low to high.
type span struct{ low, high uint64 }

// spanOf is what the terms leave of the values of a metric.
func (f *finder) spanOf(metric string) span {
	s := span{0, math.MaxUint64}
	for _, t := range f.q.Terms {
		if t.Field != search.Metric || t.Text != metric || t.Not {
			continue
		}
		at := invert(t.Number)
		switch t.Op {
		case search.Equal:
			s.low, s.high = max(s.low, at), min(s.high, at)
		case search.Less, search.LessOrEqual:
			s.low = max(s.low, at)
		case search.Greater, search.GreaterOrEqual:
			s.high = min(s.high, at)
		}
	}
	return s
}

// placed is a row of an order.
type placed struct {
	inverted uint64
	serial   uint32
	model    uint32
	tag      []byte
}

// along are the rows of an order within a span, behind a place when that is given.
func (f *finder) along(what string, s span, reverse bool, behind *item) iter.Seq2[placed, error] {
	p := append([]byte(what), 0)
	return func(yield func(placed, error) bool) {
		var rows iter.Seq[row]
		if reverse {
			var before []byte
			switch {
			case behind != nil:
				before = orderKey(what, behind.inverted, behind.serial)
			case s.high < math.MaxUint64:
				before = binary.BigEndian.AppendUint64(slices.Clone(p), s.high+1)
			}
			rows = f.backward(bucketOrder, p, before)
		} else {
			from := binary.BigEndian.AppendUint64(slices.Clone(p), s.low)
			if behind != nil {
				from = orderKey(what, behind.inverted, behind.serial)
			}
			rows = f.scan(bucketOrder, p, from)
		}
		for r := range rows {
			if err := r.check(); err != nil {
				yield(placed{}, err)
				return
			}
			k, v := r.key[len(p):], r.value[sum:]
			if len(k) != 12 || len(v) < 4 {
				yield(placed{}, ErrDamaged)
				return
			}
			at := placed{binary.BigEndian.Uint64(k), ^binary.BigEndian.Uint32(k[8:]), binary.BigEndian.Uint32(v), v[4:]}
			switch {
			case reverse && at.inverted < s.low, !reverse && at.inverted > s.high:
				return
			case at.inverted < s.low || at.inverted > s.high:
				continue // behind a cursor that came with another query
			}
			if !yield(at, nil) {
				return
			}
		}
	}
}

// ordered are the rows of the order that was asked for, where that is also what is self-reported.
func (f *finder) ordered(field search.SortField, metric string, s span, reverse bool, behind *item) iter.Seq2[placed, error] {
	if field == search.ByPublished {
		return f.along(orderPublished, s, reverse, behind)
	}
	own := f.along(orderMetric+metric, s, reverse, behind)
	if !f.q.Reported {
		return own
	}
	return together(own, f.along(orderReported+metric, s, reverse, behind), reverse)
}

// together joins two orders.
func together(a, b iter.Seq2[placed, error], reverse bool) iter.Seq2[placed, error] {
	return func(yield func(placed, error) bool) {
		nextB, stop := iter.Pull2(b)
		defer stop()
		y, errB, more := nextB()
		for x, err := range a {
			for more {
				c := cmp.Or(cmp.Compare(y.inverted, x.inverted), cmp.Compare(x.serial, y.serial))
				if (c > 0) != reverse && errB == nil {
					break
				}
				if !yield(y, errB) {
					return
				}
				y, errB, more = nextB()
			}
			if !yield(x, err) {
				return
			}
		}
		for more {
			if !yield(y, errB) {
				return
			}
			y, errB, more = nextB()
		}
	}
}

// ours is the model that a row of an order is about, or nil when the query does not look for it.
func (f *finder) ours(at placed) *entry {
	e := f.catalog.number(at.model)
	if !f.candidate(e) || f.kind == search.Models && string(at.tag) != e.latest {
		return nil
	}
	if tag, _ := e.held(f.env); f.env != "" && string(at.tag) != tag {
		return nil
	}
	return e
}

// itemAt is what a row of an order is about, if that is still there.
func (f *finder) itemAt(e *entry, at placed) (item, bool, error) {
	i := item{entry: e, tag: string(at.tag), inverted: at.inverted, serial: at.serial}
	found, err := f.read(&i)
	return i, found, err
}

// alongOrder walks an order that the file keeps.
func (f *finder) alongOrder() error {
	s := span{0, math.MaxUint64}
	if f.order.Field == search.ByMetric {
		s = f.spanOf(f.order.Metric)
	}
	f.passed = make([]item, 0, f.limit+1)
	for at, err := range f.ordered(f.order.Field, f.order.Metric, s, f.order.Reverse, f.after) {
		if err != nil {
			return err
		}
		if err := f.goOn(); err != nil {
			return err
		}
		e := f.ours(at)
		if e == nil {
			continue
		}
		i, found, err := f.itemAt(e, at)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if more, err := f.look(i); err != nil || !more {
			return err
		}
	}
	return nil
}

// fewByMetric are the versions of candidates that have a metric in the span that the query names, if that is few. It is of use where the query is ordered
// by something else.
func (f *finder) fewByMetric() (all []placed, ok bool, err error) {
	for _, t := range f.q.Terms {
		if t.Field != search.Metric || t.Not || f.order.Field == search.ByMetric && f.order.Metric == t.Text {
			continue
		}
		all, ok = all[:0], true
		for at, err := range f.ordered(search.ByMetric, t.Text, f.spanOf(t.Text), false, nil) {
			if err != nil {
				return nil, false, err
			}
			if err := f.goOn(); err != nil {
				return nil, false, err
			}
			if f.ours(at) == nil {
				continue
			}
			if ok = len(all) < max(1, f.effort.few/apart); !ok {
				break
			}
			all = append(all, at)
		}
		if ok {
			return all, true, nil
		}
	}
	return nil, false, nil
}

// considerAll looks at what rows of an order are about.
func (f *finder) considerAll(all []placed) error {
	for _, at := range all {
		i, found, err := f.itemAt(f.catalog.number(at.model), at)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if err := f.consider(i); err != nil {
			return err
		}
	}
	f.arrange()
	return nil
}

// wholeModel stands in a cursor by name for all versions of a model.
const wholeModel = "*"

// cursor names what was given or looked at last: the order, the model, the version, and the value by which it stands there.
func (f *finder) cursor(i item) string {
	tag := i.tag
	if i.whole || f.kind == search.Models && f.order.Field == search.ByName {
		tag = wholeModel
	}
	text := strings.Join([]string{string(f.kind), f.order.String(), i.name(), tag}, "\x00")
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64([]byte(text+"\x00"), i.inverted))
}

// from reads a cursor. It is of a version that the caller may read.
func (f *finder) from(cursor string) error {
	if cursor == "" {
		return nil
	}
	bad := registry.Invalid("cursor", "the cursor is not one that this server gave for this query, or what the page before ended with is gone; begin with the first page")
	data, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(data) < 8 || len(data) > 1024 {
		return bad
	}
	parts := strings.SplitN(string(data[:len(data)-8]), "\x00", 5)
	if len(parts) != 5 || parts[0] != string(f.kind) || parts[1] != f.order.String() || parts[4] != "" {
		return bad
	}
	i := item{tag: parts[3], inverted: binary.BigEndian.Uint64(data[len(data)-8:])}
	for _, e := range f.catalog.named(parts[2]) {
		if access.CanRead(f.id, &e.model) {
			i.entry = e
		}
	}
	if i.entry == nil {
		return bad
	}
	f.after = &i
	if i.tag == wholeModel && f.order.Field == search.ByName {
		i.whole = true
		return nil
	}
	if found, err := f.read(&i); err != nil {
		return err
	} else if !found {
		return bad
	}
	if err := f.now.decode(i.row); err != nil {
		return err
	}
	i.serial = f.now.serial
	return nil
}

// show is an item as the caller sees it.
func (f *finder) show(i item) (search.Hit, error) {
	if i.hit != nil {
		return *i.hit, nil
	}
	if i.tag != "" {
		if err := f.now.decode(i.row); err != nil {
			return search.Hit{}, err
		}
	}
	return f.fill(i)
}

// text is a string of b, of which there is one copy.
func (f *finder) text(b []byte) string {
	if s, ok := f.texts[string(b)]; ok {
		return s
	}
	if f.texts == nil {
		f.texts = map[string]string{}
	}
	s := string(b)
	f.texts[s] = s
	return s
}

// fill makes a hit of an item whose facts were just read.
func (f *finder) fill(i item) (search.Hit, error) {
	h := search.Hit{Kind: f.kind, Model: i.model.Name}
	if f.kind == search.Models {
		h.Description = i.model.Description
	}
	if i.tag == "" {
		return h, nil
	}
	tag, err := registry.ParseTag(i.tag)
	if err != nil {
		return h, err
	}
	if h.Tag = tag; f.kind == search.Models {
		h.Tag, h.Latest = registry.Tag{}, tag
	}
	v := &f.now
	h.State, h.License, h.Task = stateNames[v.state], f.text(v.license), f.text(v.task)
	h.PublishedAt, h.PublishedBy = time.Unix(0, v.published).UTC(), f.text(v.by)
	list, self := v.metrics(f.q.Reported)
	if h.SelfReported = self; len(list) > 0 {
		h.Metrics = make(map[string]float64, len(list))
		for _, m := range list {
			h.Metrics[f.text(m.name)] = m.value
		}
	}
	for _, name := range v.environments {
		env, err := registry.ParseEnvironmentName(string(name))
		if err != nil {
			return h, err
		}
		h.Environments = append(h.Environments, env)
	}
	return h, nil
}
