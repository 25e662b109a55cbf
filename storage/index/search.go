package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/search"
)

// What is searched is kept apart from the records, packed, so that a query reads one short row of a version and decodes no JSON. Models and
// versions have numbers for it, in the order in which the journal made them. The numbers are the index's own and never told.
//
//	catalog  model id -> catalogRow
//	facts    number of the model (4) | tag -> facts
//	order    what it orders, NUL, inverted value (8), inverted number of the version (4) -> number of the model (4) | tag
//	digests  first bytes of an artifact's or image's digest (8) | number of the model (4) | tag -> nothing
//
// An order holds the highest value first, and among equal ones the version that was published last: [orderPublished] by time, "m" and a metric's name by
// the metric of the evaluation that speaks for the version, "r" and its name by what is self-reported of a version that has no other evaluation.
const (
	orderPublished = "p"
	orderMetric    = "m"
	orderReported  = "r"
)

// catalogRow is what is searched of a model as a whole. Its facts are those of all versions it ever had, each with the letter of its kind and
// folded: a model without a fact has no version with it.
type catalogRow struct {
	number   uint32
	versions uint64
	latest   string // tag of the latest version, see registry.Latest
	many     bool   // there are more facts than are kept
	facts    []string
	holds    []holding
}

// holding says which version an environment holds.
type holding struct{ env, tag string }

// The letters of facts.
const (
	factLicense  = "l"
	factTask     = "t"
	factLibrary  = "b"
	factTag      = "g"
	factLanguage = "n"
	factDataset  = "d"
	factBase     = "s"
	factEnv      = "e"
)

// maxCatalogFacts bounds the facts of a model. One with more is looked at by every query.
const maxCatalogFacts = 1000

func (r *catalogRow) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, r.number)
	b = binary.AppendUvarint(b, r.versions)
	b = appendText(b, r.latest)
	many := byte(0)
	if r.many {
		many = 1
	}
	b = append(b, many)
	b = appendTexts(b, r.facts)
	b = binary.AppendUvarint(b, uint64(len(r.holds)))
	for _, h := range r.holds {
		b = appendText(appendText(b, h.env), h.tag)
	}
	return b
}

func decodeCatalog(data []byte) (catalogRow, error) {
	u := unpacker{rest: data}
	r := catalogRow{number: u.uint32(), versions: u.uvarint(), latest: string(u.text()), many: u.byte() == 1}
	for range u.count() {
		r.facts = append(r.facts, string(u.text()))
	}
	for range u.count() {
		r.holds = append(r.holds, holding{string(u.text()), string(u.text())})
	}
	return r, u.end("catalog")
}

// learn adds facts of a version.
func (r *catalogRow) learn(kind string, values ...string) {
	for _, v := range values {
		if v == "" {
			continue
		}
		fact := kind + search.Fold(v)
		at, known := slices.BinarySearch(r.facts, fact)
		switch {
		case known:
		case len(r.facts) >= maxCatalogFacts:
			r.many = true
		default:
			r.facts = slices.Insert(r.facts, at, fact)
		}
	}
}

// facts are what is searched of a version. The bytes are those of the row that it was read from.
type facts struct {
	serial    uint32
	state     stateCode
	published int64 // ns of Unix time

	own, reported measured // by an evaluation; by the author's own word

	license, task, library, by       []byte
	tags, languages, datasets, bases [][]byte
	environments                     [][]byte
}

// measured are the metrics that speak for a version, see registry.Headline, sorted by name.
type measured struct {
	is      bool // there is an evaluation
	slice   bool // it was of a part of the data
	metrics []metricValue
}

type metricValue struct {
	name  []byte
	value float64
}

func (f *facts) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, f.serial)
	b = append(b, byte(f.state))
	b = binary.BigEndian.AppendUint64(b, uint64(f.published))
	for _, m := range []measured{f.own, f.reported} {
		flags := byte(0)
		if m.is {
			flags |= 1
		}
		if m.slice {
			flags |= 2
		}
		b = append(b, flags)
		b = binary.AppendUvarint(b, uint64(len(m.metrics)))
		for _, v := range m.metrics {
			b = appendText(b, v.name)
			b = binary.BigEndian.AppendUint64(b, math.Float64bits(v.value))
		}
	}
	for _, s := range [][]byte{f.license, f.task, f.library, f.by} {
		b = appendText(b, s)
	}
	for _, l := range [][][]byte{f.tags, f.languages, f.datasets, f.bases, f.environments} {
		b = appendTexts(b, l)
	}
	return b
}

// decode reads a row into f, whose slices are used again.
func (f *facts) decode(data []byte) error {
	u := unpacker{rest: data}
	f.serial, f.state, f.published = u.uint32(), stateCode(u.byte()), int64(u.uint64())
	if int(f.state) >= len(stateNames) {
		u.bad = true
	}
	for _, m := range [2]*measured{&f.own, &f.reported} {
		flags := u.byte()
		m.is, m.slice = flags&1 != 0, flags&2 != 0
		m.metrics = m.metrics[:0]
		for range u.count() {
			m.metrics = append(m.metrics, metricValue{u.text(), math.Float64frombits(u.uint64())})
		}
	}
	for _, s := range [4]*[]byte{&f.license, &f.task, &f.library, &f.by} {
		*s = u.text()
	}
	for _, l := range [5]*[][]byte{&f.tags, &f.languages, &f.datasets, &f.bases, &f.environments} {
		*l = (*l)[:0]
		for range u.count() {
			*l = append(*l, u.text())
		}
	}
	return u.end("facts")
}

// metrics that are searched, and whether they are the author's own word.
func (f *facts) metrics(reported bool) (list []metricValue, self bool) {
	if f.own.is || !reported {
		return f.own.metrics, false
	}
	return f.reported.metrics, f.reported.is
}

// metric is the value of a metric that is searched.
func (f *facts) metric(name string, reported bool) (float64, bool) {
	list, _ := f.metrics(reported)
	for _, m := range list {
		if string(m.name) == name {
			return m.value, true
		}
	}
	return 0, false
}

// orders are the keys of the version in the bucket of orders.
func (f *facts) orders() map[string]bool {
	keys := map[string]bool{string(orderKey(orderPublished, invertTime(f.published), f.serial)): true}
	kind, list := orderMetric, f.own.metrics
	if !f.own.is {
		kind, list = orderReported, f.reported.metrics
	}
	for _, m := range list {
		keys[string(orderKey(kind+string(m.name), invert(m.value), f.serial))] = true
	}
	return keys
}

// maxMetricName is the longest name of a metric that is searched, in bytes.
const maxMetricName = 64

// heard takes in an evaluation: the same rule as registry.Headline, one at a time.
func (f *facts) heard(e registry.Evaluation) {
	m := &f.own
	if e.SelfReported {
		m = &f.reported
	}
	if m.is && e.Dataset.Slice != "" && !m.slice {
		return
	}
	*m = measured{is: true, slice: e.Dataset.Slice != ""}
	for _, name := range slices.Sorted(maps.Keys(e.Metrics)) {
		if len(name) > maxMetricName || strings.Contains(name, "\x00") {
			continue // registry.CheckMetric lets none through
		}
		m.metrics = append(m.metrics, metricValue{[]byte(name), e.Metrics[name]})
	}
}

// invert is a number as text that sorts the highest first.
func invert(v float64) uint64 {
	if v == 0 {
		v = 0 // not the negative one
	}
	bits := math.Float64bits(v)
	if bits>>63 != 0 {
		return bits
	}
	return ^(bits | 1<<63)
}

func invertTime(ns int64) uint64 { return ^(uint64(ns) ^ 1<<63) }

func orderKey(what string, inverted uint64, serial uint32) []byte {
	k := make([]byte, 0, len(what)+1+8+4)
	k = append(append(k, what...), 0)
	k = binary.BigEndian.AppendUint64(k, inverted)
	return binary.BigEndian.AppendUint32(k, ^serial)
}

func factsKey(model uint32, tag string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, model), tag...)
}

func digestKey(d digest.Digest, model uint32, tag string) []byte {
	_, hexDigits, _ := strings.Cut(string(d), ":")
	k := append(make([]byte, 0, 8+4+len(tag)), digestStart(hexDigits)...)
	return append(k, factsKey(model, tag)...)
}

// digestStart is the first 8 bytes that hex digits stand for.
func digestStart(hexDigits string) []byte {
	b := make([]byte, 8)
	for i := range min(16, len(hexDigits)) {
		n := strings.IndexByte("0123456789abcdef", hexDigits[i])
		b[i/2] |= byte(max(0, n)) << (4 * (1 - i%2))
	}
	return b
}

// findings are what groups change about what is searched. They are written together at the end of the transaction, in the order of their keys.
type findings struct {
	models   map[string]*foundModel
	versions map[string]*foundVersion // by key
	digests  map[string]bool          // rows that are to be there, or gone
	changed  []catalogChange
}

type foundModel struct {
	row   catalogRow
	dirty bool
	model *registry.Model // as it is now, when that changed
}

type foundVersion struct {
	before map[string]bool // keys of the orders that are in the file
	model  uint32
	tag    string
	now    facts
}

// catalogChange is what a transaction changes of the catalog in memory.
type catalogChange struct {
	id    string
	gone  bool
	row   catalogRow
	model *registry.Model // nil when it did not change
}

// foundModel is what is searched of a model, or nil when there is no such model.
func (t tx) foundModel(id string) (*foundModel, error) {
	if m, ok := t.found.models[id]; ok {
		return m, nil
	}
	data, err := t.bytes(bucketCatalog, key(id))
	if err != nil || data == nil {
		return nil, err
	}
	row, err := decodeCatalog(data)
	if err != nil {
		return nil, err
	}
	return t.keepModel(id, &foundModel{row: row}), nil
}

// ensureModel is foundModel for a model that gets a number when it has none.
func (t tx) ensureModel(id string) (*foundModel, error) {
	if m, err := t.foundModel(id); err != nil || m != nil {
		return m, err
	}
	number, err := t.number32(bucketCatalog)
	return t.keepModel(id, &foundModel{row: catalogRow{number: number}, dirty: true}), err
}

func (t tx) keepModel(id string, m *foundModel) *foundModel {
	if t.found.models == nil {
		t.found.models = map[string]*foundModel{}
	}
	t.found.models[id] = m
	return m
}

func (t tx) number32(bucket string) (uint32, error) {
	n, err := t.next(bucket)
	if err == nil && n >= math.MaxUint32 {
		err = fmt.Errorf("%s has no number left", bucket)
	}
	return uint32(n), err
}

// foundVersion is what is searched of a version, or nil when it was not published.
func (t tx) foundVersion(m *foundModel, tag string) (*foundVersion, error) {
	k := factsKey(m.row.number, tag)
	if v, ok := t.found.versions[string(k)]; ok {
		return v, nil
	}
	data, err := t.bytes(bucketFacts, k)
	if err != nil || data == nil {
		return nil, err
	}
	v := &foundVersion{model: m.row.number, tag: tag}
	if err := v.now.decode(bytes.Clone(data)); err != nil {
		return nil, err
	}
	v.before = v.now.orders()
	t.keep(v)
	return v, nil
}

func (t tx) keep(v *foundVersion) {
	if t.found.versions == nil {
		t.found.versions = map[string]*foundVersion{}
	}
	t.found.versions[string(factsKey(v.model, v.tag))] = v
}

// searchModel takes in a model that is new or changed.
func (t tx) searchModel(id string) error {
	var m registry.Model
	if found, err := t.get(bucketModels, key(id), &m); err != nil || !found {
		return err
	}
	f, err := t.ensureModel(id)
	if err != nil {
		return err
	}
	f.dirty, f.model = true, &m
	return nil
}

// searchPublished takes in a version, of whose commit there may be evaluations already.
func (t tx) searchPublished(modelID string, v registry.Version, before []registry.Evaluation) error {
	m, err := t.ensureModel(modelID)
	if err != nil {
		return err
	}
	tag := v.Tag.String()
	found, err := t.foundVersion(m, tag)
	if err != nil {
		return err
	}
	if found == nil {
		found = &foundVersion{model: m.row.number, tag: tag}
		if found.now.serial, err = t.number32(bucketFacts); err != nil {
			return err
		}
		m.row.versions++
		t.keep(found)
	}
	c := v.Card
	found.now = facts{
		serial: found.now.serial, state: codeOfState(registry.Published), published: v.PublishedAt.UnixNano(),
		license: []byte(c.License), task: []byte(c.Task), library: []byte(c.Library), by: []byte(v.PublishedBy),
		tags: texts(c.Tags), languages: texts(c.Languages), datasets: texts(c.Datasets),
	}
	for _, base := range c.BaseModels {
		found.now.bases = append(found.now.bases, []byte(baseName(base)))
		name, _, _ := strings.Cut(baseName(base), "@")
		m.row.learn(factBase, name, baseName(base))
	}
	for _, e := range before {
		found.now.heard(e)
	}
	for _, h := range m.row.holds {
		if h.tag == tag {
			found.now.environments = append(found.now.environments, []byte(h.env))
		}
	}
	m.row.learn(factLicense, licenses(c.License)...)
	m.row.learn(factTask, c.Task)
	m.row.learn(factLibrary, c.Library)
	m.row.learn(factTag, c.Tags...)
	m.row.learn(factLanguage, c.Languages...)
	m.row.learn(factDataset, c.Datasets...)
	if later(m.row.latest, v.Tag) {
		m.row.latest = tag
	}
	m.dirty = true
	t.searchDigest(v.Artifact.Digest, m.row.number, tag, true)
	return nil
}

// searchDigest takes in that a version has a digest, or has it no longer.
func (t tx) searchDigest(d digest.Digest, model uint32, tag string, has bool) {
	if t.found.digests == nil {
		t.found.digests = map[string]bool{}
	}
	if d != "" {
		t.found.digests[string(digestKey(d, model, tag))] = has
	}
}

// licenseSeparator joins the licences of a card, see registry/card.
const licenseSeparator = ", "

func licenses(joined string) []string { return strings.Split(joined, licenseSeparator) }

func baseName(b registry.BaseModel) string {
	if b.Revision == "" {
		return b.Model
	}
	return b.Model + "@" + b.Revision
}

func texts(list []string) [][]byte {
	var out [][]byte
	for _, s := range list {
		out = append(out, []byte(s))
	}
	return out
}

// later reports whether a version takes the place of the latest one, by the rule of registry.Latest.
func later(latest string, tag registry.Tag) bool {
	was, err := registry.ParseTag(latest)
	switch {
	case err != nil:
		return true
	case was.Prerelease() != tag.Prerelease():
		return was.Prerelease()
	}
	return tag.Compare(was) > 0
}

// searchEvaluated takes in an evaluation of a version.
func (t tx) searchEvaluated(modelID, tag string, e registry.Evaluation) error {
	return t.changeFacts(modelID, tag, func(f *facts) { f.heard(e) })
}

// searchState takes in the state of a version.
func (t tx) searchState(modelID string, tag registry.Tag, s registry.VersionState) error {
	return t.changeFacts(modelID, tag.String(), func(f *facts) { f.state = codeOfState(s) })
}

func (t tx) changeFacts(modelID, tag string, change func(*facts)) error {
	m, err := t.foundModel(modelID)
	if err != nil || m == nil {
		return err
	}
	v, err := t.foundVersion(m, tag)
	if err != nil || v == nil {
		return err
	}
	change(&v.now)
	return nil
}

// searchImage takes in the digest of a version's image, which had another one before.
func (t tx) searchImage(modelID string, tag registry.Tag, before, now digest.Digest) error {
	if before == now {
		return nil
	}
	m, err := t.foundModel(modelID)
	if err != nil || m == nil {
		return err
	}
	t.searchDigest(before, m.row.number, tag.String(), false)
	t.searchDigest(now, m.row.number, tag.String(), true)
	return nil
}

// searchMoved takes in that an environment holds a version, and no longer the one before.
func (t tx) searchMoved(modelID string, env registry.EnvironmentName, tag registry.Tag) error {
	m, err := t.foundModel(modelID)
	if err != nil || m == nil {
		return err
	}
	name, holds := env.String(), []holding{{env.String(), tag.String()}}
	for _, h := range m.row.holds {
		if h.env != name {
			holds = append(holds, h)
			continue
		}
		err := t.changeFacts(modelID, h.tag, func(f *facts) {
			f.environments = slices.DeleteFunc(f.environments, func(e []byte) bool { return string(e) == name })
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(holds, func(a, b holding) int { return strings.Compare(a.env, b.env) })
	m.row.holds, m.dirty = holds, true
	m.row.learn(factEnv, name)
	return t.changeFacts(modelID, tag.String(), func(f *facts) {
		f.environments = append(f.environments, []byte(name))
		slices.SortFunc(f.environments, bytes.Compare)
	})
}

// unsearch removes all that is searched of a model with those versions.
func (t tx) unsearch(modelID string, rows []registry.VersionRecord) error {
	if err := t.writeFindings(); err != nil {
		return err
	}
	m, err := t.foundModel(modelID)
	if err != nil || m == nil {
		return err
	}
	p := binary.BigEndian.AppendUint32(nil, m.row.number)
	var f facts
	var orders []string
	for r := range t.scan(bucketFacts, p, nil) {
		if err := r.check(); err != nil {
			return err
		}
		if err := f.decode(r.value[sum:]); err != nil {
			return err
		}
		orders = slices.AppendSeq(orders, maps.Keys(f.orders()))
	}
	for _, k := range orders {
		if err := t.delete(bucketOrder, []byte(k)); err != nil {
			return err
		}
	}
	for _, row := range rows {
		t.searchDigest(row.Version.Artifact.Digest, m.row.number, row.Version.Tag.String(), false)
		t.searchDigest(row.Image.Digest, m.row.number, row.Version.Tag.String(), false)
	}
	delete(t.found.models, modelID)
	t.found.changed = append(t.found.changed, catalogChange{id: modelID, gone: true})
	return errors.Join(t.deletePrefix(bucketFacts, p), t.delete(bucketCatalog, key(modelID)))
}

// writeFindings writes what the groups so far have changed.
func (t tx) writeFindings() error {
	for _, id := range slices.Sorted(maps.Keys(t.found.models)) {
		m := t.found.models[id]
		if !m.dirty {
			continue
		}
		if err := t.putBytes(bucketCatalog, key(id), m.row.encode()); err != nil {
			return err
		}
		t.found.changed = append(t.found.changed, catalogChange{id: id, row: m.row, model: m.model})
	}
	for _, k := range slices.Sorted(maps.Keys(t.found.digests)) {
		change := t.delete
		if t.found.digests[k] {
			change = func(bucket string, k []byte) error { return t.putBytes(bucket, k, nil) }
		}
		if err := change(bucketDigests, []byte(k)); err != nil {
			return err
		}
	}
	orders := map[string][]byte{} // to be there, or nil to be gone
	for _, k := range slices.Sorted(maps.Keys(t.found.versions)) {
		v := t.found.versions[k]
		if err := t.putBytes(bucketFacts, []byte(k), v.now.encode()); err != nil {
			return err
		}
		now := v.now.orders()
		for order := range v.before {
			if !now[order] {
				orders[order] = nil
			}
		}
		for order := range now {
			if !v.before[order] {
				orders[order] = []byte(k)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(orders)) {
		var err error
		if value := orders[k]; value != nil {
			err = t.putBytes(bucketOrder, []byte(k), value)
		} else {
			err = t.delete(bucketOrder, []byte(k))
		}
		if err != nil {
			return err
		}
	}
	t.found.models, t.found.versions, t.found.digests = nil, nil, nil
	return nil
}

func appendText[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTexts[S ~string | ~[]byte](b []byte, list []S) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendText(b, s)
	}
	return b
}

// unpacker reads what was packed. What does not fit makes it bad, and then all it gives is zero.
type unpacker struct {
	rest []byte
	bad  bool
}

func (u *unpacker) take(n uint64) []byte {
	if u.bad || n > uint64(len(u.rest)) {
		u.bad = true
		return nil
	}
	b := u.rest[:n:n]
	u.rest = u.rest[n:]
	return b
}

func (u *unpacker) byte() byte {
	if b := u.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (u *unpacker) uint32() uint32 {
	if b := u.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (u *unpacker) uint64() uint64 {
	if b := u.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (u *unpacker) uvarint() uint64 {
	n, size := binary.Uvarint(u.rest)
	if u.bad || size <= 0 {
		u.bad = true
		return 0
	}
	u.rest = u.rest[size:]
	return n
}

// count is the length of a list, whose elements take a byte at least.
func (u *unpacker) count() int {
	n := u.uvarint()
	if n > uint64(len(u.rest)) {
		u.bad = true
		return 0
	}
	return int(n)
}

func (u *unpacker) text() []byte { return u.take(u.uvarint()) }

func (u *unpacker) end(what string) error {
	if u.bad || len(u.rest) > 0 {
		return fmt.Errorf("a row of %s: %w", what, ErrDamaged)
	}
	return nil
}
