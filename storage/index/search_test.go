package index_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/search"
	"github.com/herdbook/herdbook/storage/index"
)

// query parses one that is written in a test.
func query(tb testing.TB, text string) search.Query {
	tb.Helper()
	q, err := search.Parse(text)
	if err != nil {
		tb.Fatalf("Parse(%q): %v", text, err)
	}
	return q
}

// lines are hits as NAME or NAME@TAG.
func lines(hits []search.Hit) []string {
	list := []string{}
	for _, h := range hits {
		line := h.Model.String()
		if h.Kind == search.Versions {
			line += "@" + h.Tag.String()
		}
		list = append(list, line)
	}
	return list
}

// search is the first page that an administrator finds.
func (b *book) search(text string) ([]search.Hit, error) {
	hits, _, err := b.Search(b.tb.Context(), admin, query(b.tb, text), registry.Page{})
	return hits, err
}

// searched is all that a query finds, in pages of limit.
func searched(tb testing.TB, b *book, id access.Identity, text string, limit int) []search.Hit {
	tb.Helper()
	var all []search.Hit
	cursor := ""
	for page := 0; page == 0 || cursor != ""; page++ {
		hits, next, err := b.Search(tb.Context(), id, query(tb, text), registry.Page{Cursor: cursor, Limit: limit})
		if err != nil {
			tb.Fatalf("Search(%q), page %d of %d: %v", text, page, limit, err)
		}
		if len(hits) > limit && limit > 0 || page > 10_000 {
			tb.Fatalf("Search(%q), page %d of %d has %d hits, next %q", text, page, limit, len(hits), next)
		}
		all, cursor = append(all, hits...), next
	}
	return all
}

// library is an index with models, versions, evaluations and environments made of chance, applied in groups. What is written to the other index, it gets in one
// transaction.
type library struct {
	*book
	rnd     *rand.Rand
	entries []index.Entry
	models  []registry.Model
	tags    map[string][]registry.VersionPublished
}

func newLibrary(tb testing.TB, seed uint64) *library {
	return &library{book: newBook(tb), rnd: rand.New(rand.NewPCG(seed, 1)), tags: map[string][]registry.VersionPublished{}}
}

func (l *library) pick(list ...string) string { return list[l.rnd.IntN(len(list))] }

// add applies a group and keeps it.
func (l *library) add(records ...registry.Record) {
	l.tb.Helper()
	l.book.add(records...)
	l.entries = append(l.entries, index.Entry{Seq: l.seq, Group: registry.Group{At: begin.Add(time.Duration(l.seq) * time.Minute), Actor: "ada", Records: records}})
}

var (
	visibilities = []registry.Visibility{registry.Public, registry.Internal, registry.Private}
	environments = []string{"staging", "production", "canary"}
	metricNames  = []string{"f1", "loss"}
)

// step makes something happen.
func (l *library) step() {
	n := l.rnd.IntN(20)
	if len(l.models) == 0 || n == 0 && len(l.models) < 12 {
		name := fmt.Sprintf("%s/%s-%d", l.pick("acme", "beta"), l.pick("fraud", "voice"), len(l.tags))
		m := registry.Model{
			ID: "id" + fmt.Sprint(len(l.tags)), Name: registry.MustModelName(name), Visibility: visibilities[l.rnd.IntN(3)],
			Description: l.pick("", "Finds Fraud in calls", "a voice"), CreatedAt: begin,
		}
		l.tags[m.ID], l.models = nil, append(l.models, m)
		l.add(registry.ModelCreated{Model: m})
		return
	}
	at := l.rnd.IntN(len(l.models))
	m := l.models[at]
	versions := l.tags[m.ID]
	if n < 7 || len(versions) == 0 {
		tag := fmt.Sprintf("v%d.%d.0%s", l.rnd.IntN(3), len(versions), l.pick("", "", "-rc.1"))
		v := version(m, tag)
		v.Version.PublishedAt, v.Version.PublishedBy = begin.Add(time.Duration(l.rnd.IntN(20))*time.Hour), l.pick("ada", "Bob")
		v.Version.Card = registry.CardFacts{
			License: l.pick("", "mit", "MIT", "mit, apache-2.0"), Task: l.pick("", "text-classification"), Library: l.pick("", "onnx"),
			Tags: []string{l.pick("calls", "Fraud detection"), "x"}, Languages: []string{l.pick("en", "de")}, Datasets: []string{l.pick("calls-2026", "squad")},
		}
		if l.rnd.IntN(2) == 0 {
			v.Version.Card.BaseModels = []registry.BaseModel{{Model: "acme/bert", Revision: l.pick("", "v1.0.0")}}
		}
		if twin := l.rnd.IntN(6); twin == 0 && len(versions) > 0 {
			v.Version.Commit = versions[0].Version.Commit
		}
		l.tags[m.ID] = append(versions, v)
		l.add(v)
		return
	}
	v := versions[l.rnd.IntN(len(versions))]
	switch {
	case n < 13:
		e := evaluation(m, "", fmt.Sprintf("e%d", l.seq))
		e.Evaluation.Commit, e.Evaluation.SelfReported = v.Version.Commit, l.rnd.IntN(3) == 0
		if l.rnd.IntN(12) == 0 {
			e.Evaluation.Commit = commitOf(fmt.Sprintf("v%d.%d.0", l.rnd.IntN(3), len(versions))) // what comes next, perhaps
		}
		e.Evaluation.Dataset = registry.Dataset{Name: "calls", Slice: l.pick("", "night", "night")}
		e.Evaluation.Metrics = map[string]float64{}
		for _, name := range metricNames {
			if l.rnd.IntN(4) > 0 {
				e.Evaluation.Metrics[name] = float64(l.rnd.IntN(7)-3) / 4
			}
		}
		l.add(e)
	case n < 16:
		l.add(change(m, v, registry.MustEnvironmentName(l.pick(environments...)), fmt.Sprintf("c%d", l.seq)))
	case n < 18:
		state := registry.VersionState(l.pick("published", "deprecated", "quarantined", "revoked"))
		l.add(registry.VersionStateSet{ModelID: m.ID, Change: registry.StateChange{ID: fmt.Sprintf("s%d", l.seq), Version: v.Version.Tag, State: state, At: begin}})
	case n == 18:
		l.models[at].Visibility, l.models[at].Description = visibilities[l.rnd.IntN(3)], l.pick("", "voices of fraud")
		l.add(registry.ModelChanged{ModelID: m.ID, Description: l.models[at].Description, Visibility: l.models[at].Visibility})
	case l.rnd.IntN(4) == 0:
		l.models = slices.Delete(l.models, at, at+1)
		l.add(registry.ModelDeleted{ModelID: m.ID})
	default:
		image := registry.ImageBuilt{ModelID: m.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady, Digest: digest.FromString(fmt.Sprint("image", m.ID, v.Version.Tag, l.rnd.IntN(2)))}}
		l.add(image)
	}
}

// record is a version with all that is known of it, or a model without one.
type record struct {
	model         registry.Model
	row           registry.VersionRecord
	hit, reported search.Hit // without and with what is self-reported
	latest        bool
	published     int // which was published first
}

// records are all that there are.
func records(tb testing.TB, b *book) (all []record) {
	tb.Helper()
	ctx := context.Background()
	published := order(tb, b)
	for _, m := range must[[]registry.Model](tb)(b.AllModels(ctx)) {
		rows := must[[]registry.VersionRecord](tb)(b.Versions(ctx, m.ID))
		latest, _ := registry.Latest(rows)
		if len(rows) == 0 {
			all = append(all, record{model: m, hit: search.Hit{Model: m.Name}, reported: search.Hit{Model: m.Name}, latest: true})
		}
		for _, v := range rows {
			c := v.Version.Card
			h := search.Hit{Model: m.Name, Tag: v.Version.Tag, State: v.State, License: c.License, Task: c.Task, PublishedAt: v.Version.PublishedAt, PublishedBy: v.Version.PublishedBy}
			for _, s := range must[[]registry.EnvironmentState](tb)(b.Environments(ctx, m.ID)) {
				if s.Version() == v.Version.Tag {
					h.Environments = append(h.Environments, s.Name)
				}
			}
			reported := h
			evaluations := must[[]registry.Evaluation](tb)(b.Evaluations(ctx, m.ID, v.Version.Commit))
			if e := registry.Headline(evaluations); e != nil {
				h.Metrics, reported.Metrics = e.Metrics, e.Metrics
			} else {
				for i := range evaluations {
					evaluations[i].SelfReported = !evaluations[i].SelfReported
				}
				if e := registry.Headline(evaluations); e != nil {
					reported.Metrics, reported.SelfReported = e.Metrics, true
				}
			}
			all = append(all, record{m, v, h, reported, v.Version.Tag == latest.Version.Tag, published[m.ID+v.Version.Tag.String()]})
		}
	}
	return all
}

// plainly answers a query from the records that the other questions are answered from, one after the other.
func plainly(id access.Identity, q search.Query, records []record) []search.Hit {
	type found struct {
		search.Hit
		record
	}
	var all []found
	for _, r := range records {
		h := r.hit
		if q.Reported {
			h = r.reported
		}
		h.Kind = q.Finds()
		if h.Kind == search.Models && !r.latest || h.Kind == search.Versions && h.Tag.IsZero() || !access.CanRead(id, &r.model) {
			continue
		}
		if !slices.ContainsFunc(q.Terms, func(t search.Term) bool { return plainTerm(t, r.model, r.row, h) == t.Not }) {
			all = append(all, found{h, r})
		}
	}
	by := q.Order()
	if by.Field != search.ByName {
		all = slices.DeleteFunc(all, func(f found) bool {
			_, has := f.Metrics[by.Metric]
			return f.Tag.IsZero() || by.Field == search.ByMetric && !has
		})
	}
	slices.SortFunc(all, func(a, b found) int {
		c := 0
		switch by.Field {
		case search.ByName:
			c = cmp.Or(strings.Compare(a.Model.String(), b.Model.String()), b.Tag.Compare(a.Tag))
		case search.ByPublished:
			c = cmp.Or(b.PublishedAt.Compare(a.PublishedAt), cmp.Compare(b.published, a.published))
		case search.ByMetric:
			c = cmp.Or(cmp.Compare(b.Metrics[by.Metric], a.Metrics[by.Metric]), cmp.Compare(b.published, a.published))
		}
		if by.Reverse {
			return -c
		}
		return c
	})
	hits := []search.Hit{}
	for _, f := range all {
		if f.Kind == search.Models {
			f.Description, f.Latest, f.Tag = f.model.Description, f.Tag, registry.Tag{}
		}
		hits = append(hits, f.Hit)
	}
	return hits
}

// order is which version was published first.
func order(tb testing.TB, b *book) map[string]int {
	tb.Helper()
	marks := must[[]registry.Mark](tb)(b.Unmirrored(tb.Context(), 1<<20))
	slices.SortFunc(marks, func(x, y registry.Mark) int { return cmp.Compare(x.Seq, y.Seq) })
	places := map[string]int{}
	for i, mark := range marks {
		if r, err := registry.NewDecoder().DecodeRecord(mark.Record); err == nil {
			if v, ok := r.(registry.VersionPublished); ok {
				places[v.ModelID+v.Version.Tag.String()] = i
			}
		}
	}
	return places
}

// plainTerm decides a term as docs/search.md says it.
func plainTerm(t search.Term, m registry.Model, v registry.VersionRecord, h search.Hit) bool {
	c := v.Version.Card
	var texts []string
	switch t.Field {
	case search.Word:
		texts = append(c.Tags, m.Name.String(), m.Description)
	case search.Name, search.Model:
		texts = []string{m.Name.String()}
	case search.CardTag:
		texts = c.Tags
	case search.License:
		texts = strings.Split(c.License, ", ")
	case search.Task:
		texts = []string{c.Task}
	case search.Library:
		texts = []string{c.Library}
	case search.Language:
		texts = c.Languages
	case search.Dataset:
		texts = c.Datasets
	case search.By:
		texts = []string{v.Version.PublishedBy}
	case search.State:
		texts = []string{string(v.State)}
	case search.Base:
		for _, b := range c.BaseModels {
			texts = append(texts, b.Model)
			if b.Revision != "" {
				texts = append(texts, b.Model+"@"+b.Revision)
			}
		}
	case search.Env:
		for _, e := range h.Environments {
			texts = append(texts, e.String())
		}
	case search.Digest:
		return strings.HasPrefix(v.Version.Artifact.Digest.String(), t.Text) || strings.HasPrefix(v.Image.Digest.String(), t.Text)
	case search.Version:
		return !v.Version.Tag.IsZero() && t.MatchesTag(v.Version.Tag.String())
	case search.Published:
		return !v.Version.Tag.IsZero() && t.MatchesTime(v.Version.PublishedAt)
	case search.Metric:
		value, ok := h.Metrics[t.Text]
		return ok && t.MatchesNumber(value)
	}
	return slices.ContainsFunc(texts, func(s string) bool { return s != "" && t.Matches(s) })
}

var queries = []string{
	"", "fraud", "-fraud", "kind:version", "kind:version fraud", "kind:version -fraud", "kind:version -detection", "kind:model x", "x sort:published", "x sort:-published",
	"name:voice", "kind:version model:acme/*", "model:acme/fraud-0 kind:version", "kind:version -model:beta/*", "tag:calls", "tag:calls kind:version", "license:mit", "license:MIT kind:version",
	"license:apache-2.0 kind:version", "license:* kind:version", "-license:mit kind:version", "task:text-classification kind:version", "library:onnx language:de kind:version",
	"dataset:squad kind:version", "base:acme/bert", "base:acme/bert kind:version", "base:acme/bert@v1.0.0 kind:version", "base:acme/* -base:acme/bert@v1.0.0 kind:version",
	"version>=1", "version:1", "-version<2 sort:name", "state:revoked", "-state:published", "env:production", "env:*", "env:production env:staging", "-env:production", "kind:model env:production",
	"by:bob", "by:b*", "published>2026-03-04T15:00:00Z", "published<2026-03-05 sort:-published", "metric:f1", "-metric:f1", "f1>0", "f1>=0.25 loss<0", "f1=0.5", "f1<=0 sort:f1", "f1>0 sort:-f1", "-f1>0 sort:f1",
	"sort:f1", "sort:-f1", "sort:loss reported:true", "sort:-loss reported:true", "f1>0 sort:loss reported:true", "metric:loss reported:true", "kind:model sort:f1", "kind:model sort:-f1 license:mit",
	"kind:version sort:name", "kind:version sort:-name", "kind:model sort:-name", "sort:name f1>0", "sort:-name f1>0 state:published", "kind:model f1>0", "kind:model sort:-published", "sort:f1 env:staging",
	"f1>=0.25 sort:f1", "f1>=0.75 sort:-f1", "f1<=0.25 sort:f1", "f1=0.25 sort:-f1", "f1>=0.75 f1<0.75 sort:f1", "f1>=0.75 sort:published", "f1>0 env:production base:acme/bert", "f1=0.75 sort:published", "loss=-0.75 sort:name", "sort:unknown", "license:none", "model:acme/none",
}

// Whatever happened and whatever is asked by whomever: the answer is that of reading everything, whichever way the query went and
// however long the pages are, and an index that is made again has the same rows.
func TestSearchAgreesWithTheRecords(t *testing.T) {
	for seed := range uint64(3) {
		l := newLibrary(t, seed)
		if seed%2 == 0 {
			l.Search(t.Context(), admin, search.Query{}, registry.Page{}) // from here on what is in memory grows
		}
		for range 120 {
			l.step()
		}
		asked, all := slices.Clone(queries), records(t, l.book)
		for i, r := range all {
			if r.row.ModelID != "" && i%8 == 0 {
				asked = append(asked, "digest:"+r.row.Version.Artifact.Digest.String(), "digest:"+r.row.Version.Artifact.Digest.Encoded()[:9])
			}
			if r.row.Image.Digest != "" {
				asked = append(asked, "digest:"+r.row.Image.Digest.String())
			}
		}
		for _, id := range []access.Identity{admin, reader, nobody} {
			for _, text := range asked {
				want := plainly(id, query(t, text), all)
				for _, how := range []struct{ few, most, limit int }{{0, 0, 0}, {0, 0, 3}, {3, 5, 2}, {12, 4, 2}, {1, 1, 1}, {1, 1000, 3}} {
					l.SetEffort(how.few, how.most)
					if diff := gocmp.Diff(want, searched(t, l.book, id, text, how.limit), sameNames...); diff != "" {
						t.Fatalf("history %d: what role %d finds by %q in pages of %d, with effort %d and %d (-want +got):\n%s", seed, id.Role, text, how.limit, how.few, how.most, diff)
					}
				}
			}
		}
		again := newBook(t)
		if err := again.Apply(l.entries); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(dump(t, l.DB), dump(t, again.DB)); diff != "" {
			t.Errorf("history %d: rows of groups one by one and in one transaction:\n%s", seed, diff)
		}
	}
}

// What speaks for a version is decided as the rest of the program does, whether its evaluations come before it or behind.
func TestSearchedMetricsAreTheHeadline(t *testing.T) {
	kinds := map[string]registry.Evaluation{
		"w": {}, "s": {Dataset: registry.Dataset{Slice: "night"}}, "W": {SelfReported: true}, "S": {SelfReported: true, Dataset: registry.Dataset{Slice: "night"}},
	}
	for _, sequence := range []string{"w", "s", "ww", "ws", "sw", "ss", "sws", "wW", "Ww", "W", "WS", "SS", "sW", "Ss", "SWS"} {
		for published := range len(sequence) + 1 {
			b := newBook(t)
			m := b.model("acme/fraud", registry.Public)
			var evaluations []registry.Evaluation
			for i, kind := range strings.Split(sequence+".", "") {
				if i == published {
					b.publish(m, "v1.0.0")
				}
				if kind == "." {
					break
				}
				e := evaluation(m, "v1.0.0", fmt.Sprintf("e%d", i))
				e.Evaluation.SelfReported, e.Evaluation.Dataset = kinds[kind].SelfReported, kinds[kind].Dataset
				e.Evaluation.Metrics = map[string]float64{"f1": float64(i)}
				b.add(e)
				evaluations = append(evaluations, e.Evaluation)
			}
			var want map[string]float64
			if e := registry.Headline(evaluations); e != nil {
				want = e.Metrics
			}
			got := searched(t, b, reader, "kind:version", 0)
			if len(got) != 1 || !maps.Equal(got[0].Metrics, want) {
				t.Errorf("after the evaluations %s and the version at place %d it has %+v, want the metrics %v", sequence, published, got, want)
			}
		}
	}
}

// Nothing that was searched of a model outlives it.
func TestDeletedModelIsNotSearched(t *testing.T) {
	b := newBook(t)
	before := dump(t, b.DB)
	m := b.model("acme/fraud", registry.Public)
	v := version(m, "v1.0.0")
	v.Version.Card = registry.CardFacts{License: "mit", Tags: []string{"calls"}}
	b.add(v, evaluation(m, "v1.0.0", "e1"), change(m, v, staging, "c1"))
	b.add(registry.ImageBuilt{ModelID: m.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady, Digest: digest.FromString("image")}})
	if got := lines(searched(t, b, reader, "license:mit env:staging f1>0.5", 0)); !slices.Equal(got, []string{"acme/fraud@v1.0.0"}) {
		t.Fatalf("search before the deletion = %v, want the version", got)
	}
	b.add(registry.ModelDeleted{ModelID: m.ID})
	for _, text := range []string{"", "kind:version", "sort:f1", "digest:" + v.Version.Artifact.Digest.String()} {
		if got := lines(searched(t, b, admin, text, 0)); len(got) != 0 {
			t.Errorf("search %q after the deletion = %v, want nothing", text, got)
		}
	}
	for line := range strings.Lines(dump(t, b.DB)) {
		for _, bucket := range []string{"catalog", "facts", "order", "digests"} {
			if strings.HasPrefix(line, bucket+" ") && !strings.Contains(before, line) {
				t.Errorf("a row is left of a deleted model: %s", line)
			}
		}
	}
}

// A model with more facts than are kept of it in memory is found by those too.
func TestSearchOfManyFacts(t *testing.T) {
	b := newBook(t)
	m, other := b.model("acme/polyglot", registry.Public), b.model("acme/other", registry.Public)
	for i := range 5 {
		b.model(fmt.Sprintf("acme/silent%d", i), registry.Public)
	}
	v := version(m, "v1.0.0")
	for i := range 1500 {
		v.Version.Card.Languages = append(v.Version.Card.Languages, fmt.Sprintf("l%d", i))
	}
	b.add(v)
	v = version(other, "v1.0.0")
	v.Version.Card.Languages = []string{"l1499"}
	b.add(v)
	for text, want := range map[string][]string{
		"language:l1":    {"acme/polyglot"},
		"language:l1499": {"acme/other", "acme/polyglot"},
		"language:l1500": {},
	} {
		if got := lines(searched(t, b, reader, text, 0)); !slices.Equal(got, want) {
			t.Errorf("search %q = %v, want %v", text, got, want)
		}
	}
}

func TestSearchCursors(t *testing.T) {
	b := newBook(t)
	m, hidden := b.model("acme/fraud", registry.Public), b.model("acme/hidden", registry.Private)
	for i := range 4 {
		b.publish(m, fmt.Sprintf("v1.%d.0", i))
		b.publish(hidden, fmt.Sprintf("v1.%d.0", i))
	}
	ask := func(id access.Identity, text, cursor string) (string, error) {
		_, next, err := b.Search(t.Context(), id, query(t, text), registry.Page{Cursor: cursor, Limit: 1})
		return next, err
	}
	cursor, err := ask(admin, "kind:version", "")
	if err != nil || cursor == "" {
		t.Fatalf("Search = cursor %q, %v, want one", cursor, err)
	}
	public, err := ask(reader, "kind:version", "")
	if err != nil || public == "" {
		t.Fatalf("Search = cursor %q, %v, want one", public, err)
	}
	bad := map[string][3]any{
		"of what the caller may not read": {reader, "kind:version", cursor}, // the newest version is hidden
		"of another order":                {reader, "kind:version sort:name", public},
		"of another kind":                 {reader, "", public},
		"that is no base64":               {reader, "kind:version", "?"},
		"that is too short":               {reader, "kind:version", "AAAA"},
		"of nobody's":                     {reader, "kind:version", base64.RawURLEncoding.EncodeToString([]byte("version\x00published\x00acme/none\x00v1.0.0\x0012345678"))},
		"without a version":               {reader, "kind:version", base64.RawURLEncoding.EncodeToString([]byte("version\x00published\x00acme/fraud\x00*\x0012345678"))},
		"that is long":                    {reader, "kind:version", strings.Repeat("A", 4000)},
	}
	var said []string
	for _, what := range slices.Sorted(maps.Keys(bad)) {
		args := bad[what]
		var field *registry.FieldError
		if next, err := ask(args[0].(access.Identity), args[1].(string), args[2].(string)); !errors.As(err, &field) || field.Field != "cursor" {
			t.Errorf("Search with a cursor %s = %q, %v, want an error on the cursor", what, next, err)
		} else {
			said = append(said, err.Error())
		}
	}
	if slices.Sort(said); len(slices.Compact(said)) != 1 {
		t.Errorf("cursors are refused with %q, want the same words whether a model exists or not", said)
	}
	if _, err := ask(reader, "kind:version -state:revoked", public); err != nil {
		t.Errorf("Search with a cursor of the same order = %v, want nil", err)
	}
}

// A cursor of anybody's making shows nothing but what the caller may read.
func FuzzSearchCursor(f *testing.F) {
	b := world(f, true)
	for _, text := range queries[:8] {
		_, next, err := b.Search(f.Context(), admin, query(f, text), registry.Page{Limit: 1})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, next)
	}
	f.Fuzz(func(t *testing.T, text, cursor string) {
		q, err := search.Parse(text)
		if err != nil {
			return
		}
		hits, next, err := b.Search(t.Context(), reader, q, registry.Page{Cursor: cursor, Limit: 2})
		if err != nil && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Search(%q, %q) = %v", text, cursor, err)
		}
		for _, h := range hits {
			if m := must[registry.Model](t)(b.ModelByName(t.Context(), h.Model)); m.Visibility != registry.Public {
				t.Errorf("Search(%q, %q) shows %s", text, cursor, h.Model)
			}
		}
		if data, err := base64.RawURLEncoding.DecodeString(next); err != nil || strings.Contains(string(data), "middle") || strings.Contains(string(data), "zzz") {
			t.Errorf("Search(%q, %q) gives cursor %q, %v", text, cursor, data, err)
		}
	})
}

// A request that nobody waits for any more ends.
func TestSearchEndsWithItsContext(t *testing.T) {
	b, _ := versions(t, 600)
	ctx, cancel := context.WithCancel(t.Context())
	searched(t, b, reader, "", 0)
	cancel()
	if hits, _, err := b.Search(ctx, reader, query(t, "kind:version by:nobody"), registry.Page{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Search after its context ended = %d hits, %v, want context.Canceled", len(hits), err)
	}
}

// A version that has one of two digests does not have both.
func TestSearchOfTwoDigests(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	v1, v2 := b.publish(m, "v1.0.0").Version.Artifact.Digest, b.publish(m, "v2.0.0").Version.Artifact.Digest
	image := digest.FromString("image")
	b.add(registry.ImageBuilt{ModelID: m.ID, Tag: registry.MustTag("v1.0.0"), Status: registry.ImageStatus{State: registry.ImageReady, Digest: image}})
	for text, want := range map[string][]string{
		"digest:" + v1.String():                                 {"acme/fraud@v1.0.0"},
		"digest:" + v1.String() + " digest:" + v1.String()[:20]: {"acme/fraud@v1.0.0"},
		"digest:" + v1.String() + " digest:" + image.String():   {"acme/fraud@v1.0.0"},
		"digest:" + v1.String() + " digest:" + v2.String():      {},
		"digest:" + v1.String()[:20] + " digest:" + v2.String(): {},
		"digest:" + image.String() + " digest:" + v2.String():   {},
		"digest:" + v2.String() + " digest:" + v1.String()[:30]: {},
		"digest:" + v2.String() + " version:v2 by:nobody":       {},
	} {
		if diff := gocmp.Diff(want, lines(searched(t, b, admin, text, 0))); diff != "" {
			t.Errorf("Search(%q) (-want +got):\n%s", text, diff)
		}
	}
}

// leaving is a request whose client leaves while it is worked on.
type leaving struct {
	context.Context
	asked int
}

func (l *leaving) Err() error {
	if l.asked++; l.asked > 3 {
		return context.Canceled
	}
	return nil
}

// A query that passes over many rows ends when nobody waits for it any more, though it finds nothing.
func TestSearchEndsWithinManyRows(t *testing.T) {
	b, m := versions(t, 2000)
	var records []registry.Record
	for i := range 2000 {
		records = append(records, evaluation(m, fmt.Sprintf("v1.%d.0", i), fmt.Sprint("e", i)))
	}
	b.add(records...)
	other := b.model("acme/other", registry.Public)
	b.publish(other, "v1.0.0")
	b.publish(other, "v1.1.0")
	b.SetEffort(1, 10_000)
	searched(t, b, reader, "", 0)
	for _, text := range []string{
		"kind:version sort:name by:nobody", "kind:version by:nobody", "f1>0 by:nobody", "-model:acme/fraud f1>0", "-model:acme/fraud sort:f1",
	} {
		if hits, _, err := b.Search(&leaving{Context: t.Context()}, reader, query(t, text), registry.Page{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Search(%q) whose client leaves = %d hits, %v, want %v", text, len(hits), err, context.Canceled)
		}
	}
}
