package index_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/storage/index"
)

// world is an index with two public models, and hidden ones between, before and behind them when
// it is told so. What is public is the same in both.
func world(tb testing.TB, hidden bool) *book {
	tb.Helper()
	b := newBook(tb)
	secret := func(name string, v registry.Visibility, edges ...registry.LineageEdge) {
		if !hidden {
			return
		}
		m := b.model(name, v)
		r := version(m, "v1.0.0", append(edges, registry.LineageEdge{To: "dataset:secret", Kind: registry.Used}, registry.LineageEdge{To: "dataset:calls", Kind: registry.Used})...)
		r.Version.Files = append(r.Version.Files, registry.File{Path: "a.bin", Digest: digest.FromString("shared"), SizeBytes: 7}, registry.File{Path: "b.bin", Digest: digest.FromString("of the secret ones"), SizeBytes: 8})
		b.add(r)
		e := evaluation(m, "v1.0.0", "e2-"+name)
		e.Evaluation.Dataset.Name = "secret test"
		b.add(evaluation(m, "v1.0.0", "e1-"+name), e, change(m, r, staging, "c-"+name), event(m, "main", "notify"))
		// What a hidden model says about things that others know too.
		b.add(registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{
			{From: "dataset:calls", To: "dataset:raw of " + name, Kind: registry.DerivedFrom},
			{From: "dataset:calls", To: "dataset:raw", Kind: registry.DerivedFrom},
			{From: "run:7", To: "dataset:calls", Kind: registry.Used},
			{From: "model:acme/never", To: "dataset:calls", Kind: registry.Used},
		}})
	}
	fraud := registry.VersionNodeID("id-acme-fraud", registry.MustTag("v1.0.0"))
	secret("acme/aaa", registry.Private)
	m := b.model("acme/fraud", registry.Public)
	r := version(m, "v1.0.0", registry.LineageEdge{To: "dataset:calls", Kind: registry.Used}, registry.LineageEdge{To: registry.ExternalModelNodeID("acme/aaa", "v1.0.0"), Kind: registry.DerivedFrom},
		registry.LineageEdge{To: registry.ExternalModelNodeID("acme/aaa", ""), Kind: registry.DerivedFrom})
	r.Version.Files = append(r.Version.Files, registry.File{Path: "a.json", Digest: digest.FromString("shared"), SizeBytes: 7})
	b.add(r, registry.EdgesAdded{ModelID: m.ID, Edges: []registry.LineageEdge{
		{From: fraud, To: "run:7", Kind: registry.GeneratedBy},
		{From: "run:7", To: "dataset:first", Kind: registry.Used},
		{From: "run:7", To: "dataset:calls", Kind: registry.Used},
		{From: "dataset:calls", To: "dataset:raw", Kind: registry.DerivedFrom},
	}})
	secret("acme/middle", registry.Internal, registry.LineageEdge{To: fraud, Kind: registry.DerivedFrom})
	for n := range 5 {
		b.add(evaluation(m, "v1.0.0", fmt.Sprintf("e%d", n)), change(m, r, staging, fmt.Sprintf("c%d", n)), event(m, fmt.Sprintf("main %d", n), "notify"))
		secret(fmt.Sprintf("acme/n%d", n), registry.Private, registry.LineageEdge{To: registry.ExternalModelNodeID("acme/fraud", "v1.0.0"), Kind: registry.DerivedFrom, Relation: registry.Finetune})
	}
	other := b.model("acme/other", registry.Public)
	v := version(other, "v1.0.0", registry.LineageEdge{To: fraud, Kind: registry.DerivedFrom})
	v.Version.Files = append(v.Version.Files, registry.File{Path: "tokenizer.json", Digest: digest.FromString("shared"), SizeBytes: 7})
	b.add(v, change(other, v, staging, "c"))
	secret("acme/zzz", registry.Private, registry.LineageEdge{To: registry.VersionNodeID(other.ID, registry.MustTag("v1.0.0")), Kind: registry.DerivedFrom})
	return b
}

// asked is everything that a caller may ask for and page through, as text. The numbers of events
// are left out: they count the events of all models.
func asked(tb testing.TB, b *book, id access.Identity) string {
	tb.Helper()
	var out strings.Builder
	tell := func(what string, v any, err error) {
		if err != nil {
			v = err.Error()
		}
		fmt.Fprintf(&out, "%s: %s\n", what, toJSON(tb, v))
	}
	ctx := tb.Context()
	for _, limit := range []int{0, 1, 2} {
		for cursor, page := "", 0; page == 0 || cursor != ""; page++ {
			models, next, err := b.Models(ctx, id, registry.Page{Cursor: cursor, Limit: limit})
			tell(fmt.Sprintf("models %d/%d next %q", page, limit, next), models, err)
			cursor = next
		}
		deliveries, _, err := b.Deliveries(ctx, id, registry.DeliveryFilter{}, registry.Page{Limit: limit})
		for i := range deliveries {
			deliveries[i].Event.Seq = 0
		}
		tell(fmt.Sprintf("deliveries, %d", limit), deliveries, err)
		events, err := b.Events(ctx, id, 0, limit)
		for i := range events {
			events[i].Seq = 0
		}
		tell(fmt.Sprintf("events, %d", limit), events, err)
		for _, text := range []string{"", "kind:version", "sort:f1", "sort:-f1 state:published", "f1>0.5", "kind:version sort:name", "env:staging", "acme", "model:acme/aaa kind:version", "base:acme/aaa"} {
			for _, few := range []int{0, 1} { // all candidates are read, and an order is gone along
				b.SetEffort(few, 2*few)
				for cursor, page := "", 0; page == 0 || cursor != ""; page++ {
					hits, next, err := b.Search(ctx, id, query(tb, text), registry.Page{Cursor: cursor, Limit: limit})
					tell(fmt.Sprintf("search %q, %d/%d of %d, next %q", text, page, limit, few, next), hits, err)
					cursor = next
				}
			}
		}
		commit := commitOf("v1.0.0")
		evaluations, next, err := b.EvaluationsPage(ctx, "id-acme-fraud", commit, registry.Page{Limit: limit})
		tell(fmt.Sprintf("evaluations, %d, next %s", limit, next), evaluations, err)
		history, next, err := b.History(ctx, "id-acme-fraud", staging, registry.Page{Limit: limit})
		tell(fmt.Sprintf("history, %d, next %s", limit, next), history, err)
	}
	for _, start := range []string{
		"dataset:calls", "dataset:raw", "dataset:raw of acme/aaa", "dataset:secret", "dataset:secret test", "run:7", "model:acme/never", "model:acme/aaa", "model:acme/aaa@v1.0.0", "model:acme/fraud@v1.0.0", "model:acme/n0@v1.0.0", "version:id-acme-fraud:v1.0.0", "version:id-acme-aaa:v1.0.0", "version:id-acme-middle:v1.0.0",
	} {
		for _, depth := range []int{0, 1, 2} {
			for _, d := range []registry.Direction{registry.Ancestors, registry.Descendants, registry.Both} {
				g, err := b.Lineage(ctx, id, registry.Walk{Start: start, Direction: d, Depth: depth})
				tell(fmt.Sprintf("lineage %s of %s to %d", d, start, depth), g, err)
			}
		}
		for _, limit := range []int{0, 1, 2} {
			for cursor, page := "", 0; page == 0 || cursor != ""; page++ {
				g, err := b.Lineage(ctx, id, registry.Walk{Start: start, Limit: limit, Cursor: cursor, Kinds: []registry.EdgeKind{registry.DerivedFrom, registry.Used, registry.EvaluatedWith}})
				tell(fmt.Sprintf("page %d of %d of lineage of %s, next %q", page, limit, start, g.Next), g, err)
				cursor = g.Next
			}
			for cursor, page := "", 0; page == 0 || cursor != ""; page++ {
				impact, err := b.Impact(ctx, id, registry.Concern{Node: start}, registry.Page{Cursor: cursor, Limit: limit})
				tell(fmt.Sprintf("page %d of %d of impact of %s, next %q", page, limit, start, impact.Next), impact, err)
				cursor = impact.Next
			}
			for cursor, page := "", 0; page == 0 || cursor != ""; page++ {
				items, next, err := b.LineageDiff(ctx, id, start, "version:id-acme-other:v1.0.0", registry.Page{Cursor: cursor, Limit: limit})
				tell(fmt.Sprintf("page %d of %d of %s against other, next %q", page, limit, start, next), items, err)
				cursor = next
			}
		}
		for _, to := range []string{"dataset:calls", "model:acme/aaa", "model:acme/n0@v1.0.0", "version:id-acme-other:v1.0.0", "version:id-acme-zzz:v1.0.0", "version:id-acme-fraud:v1.0.0"} {
			path, err := b.Path(ctx, id, start, to)
			tell(fmt.Sprintf("path from %s to %s", start, to), path, err)
			reached, err := b.Reached(ctx, id, start, []string{to})
			tell(fmt.Sprintf("whether %s came from %s", start, to), reached, err)
			way, err := b.Way(ctx, id, start, to)
			tell(fmt.Sprintf("way from %s to %s", start, to), way, err)
		}
		for _, cursor := range []string{"dataset:secret", "model:acme/n0@v1.0.0", "version:id-acme-aaa:v1.0.0", "dataset:never"} {
			g, err := b.Lineage(ctx, id, registry.Walk{Start: start, Cursor: cursor})
			tell(fmt.Sprintf("lineage of %s behind %s", start, cursor), g, err)
			impact, err := b.Impact(ctx, id, registry.Concern{Node: start}, registry.Page{Cursor: cursor})
			tell(fmt.Sprintf("impact of %s behind %s", start, cursor), impact, err)
		}
	}
	for _, of := range []registry.Concern{
		{Dataset: "calls"},
		{Dataset: "secret"},
		{Model: "acme/aaa"},
		{Model: "acme/fraud"},
		{Model: "acme/fraud@v1.0.0"},
		{Model: "acme/n0"},
		{Model: "acme/n0@v1.0.0"},
		{Model: "acme/never"},
		{Digest: digest.FromString("shared")},
		{Digest: digest.FromString("of the secret ones")},
	} {
		impact, err := b.Impact(ctx, id, of, registry.Page{})
		tell(fmt.Sprintf("impact of %+v", of), impact, err)
	}
	for _, limit := range []int{0, 1} {
		for cursor, page := "", 0; page == 0 || cursor != ""; page++ {
			items, next, err := b.Shared(ctx, id, "id-acme-fraud", registry.MustTag("v1.0.0"), registry.Page{Cursor: cursor, Limit: limit})
			tell(fmt.Sprintf("page %d of %d of shared, next %q", page, limit, next), items, err)
			cursor = next
		}
	}
	return out.String()
}

// Who may not read a model gets the same bytes whether it exists or not: in lists, pages, cursors
// and lineage.
func TestHiddenModelsLeaveNoTrace(t *testing.T) {
	with, without := world(t, true), world(t, false)
	if diff := cmp.Diff(asked(t, without, reader), asked(t, with, reader)); diff != "" {
		t.Errorf("what a reader sees without the hidden models and with them (-without +with):\n%s", diff)
	}
	all := asked(t, with, admin)
	for _, name := range []string{"acme/aaa", "acme/middle", "acme/n4", "acme/zzz"} {
		if !strings.Contains(all, `"model": "`+name+`"`) || !strings.Contains(all, `"name": "`+name+`"`) {
			t.Errorf("an administrator does not see %s in lists and lineage", name)
		}
	}
	models, next, err := with.Models(t.Context(), nobody, registry.Page{})
	if err != nil || len(models) != 0 || next != "" {
		t.Errorf("Models of nobody = %v, %q, %v, want none", names(models), next, err)
	}
	if events := must[[]registry.Event](t)(with.Events(t.Context(), nobody, 0, 0)); len(events) != 0 {
		t.Errorf("Events of nobody = %v, want none", events)
	}
	deliveries, next, err := with.Deliveries(t.Context(), nobody, registry.DeliveryFilter{}, registry.Page{})
	if err != nil || len(deliveries) != 0 || next != "" {
		t.Errorf("Deliveries of nobody = %v, %q, %v, want none", deliveries, next, err)
	}
	g := must[registry.Graph](t)(with.Lineage(t.Context(), nobody, registry.Walk{Start: "dataset:calls"}))
	if len(g.Nodes) != 1 || len(g.Edges) != 0 {
		t.Errorf("Lineage of nobody = %+v, want the dataset that was asked for alone", g)
	}
}

// The events of a model that is gone are an administrator's: whether it was public then is no
// reason to tell of it now.
func TestEventsOfADeletedModel(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	b.add(event(m, "1", "notify"))
	b.add(registry.ModelDeleted{ModelID: m.ID}, event(m, "gone", "notify"))
	for id, want := range map[access.Identity]int{nobody: 0, reader: 0, admin: 2} {
		events := must[[]registry.Event](t)(b.Events(t.Context(), id, 0, 0))
		deliveries, _, err := b.Deliveries(t.Context(), id, registry.DeliveryFilter{}, registry.Page{})
		if len(events) != want || len(deliveries) != want || err != nil {
			t.Errorf("role %d sees %d events and %d deliveries of a deleted model, %v, want %d", id.Role, len(events), len(deliveries), err, want)
		}
	}
	if got := b.waiting("notify"); len(got) != 2 {
		t.Errorf("Waiting = %v, want both: what was announced is delivered", got)
	}
}

// However long the pages are, together they are the list.
func TestPaging(t *testing.T) {
	b := newBook(t)
	const n = 7
	var m registry.Model
	for i := range n {
		m = b.model(fmt.Sprintf("acme/m%d", i), registry.Public)
		b.model(fmt.Sprintf("acme/m%d-hidden", i), registry.Private)
	}
	v := b.publish(m, "v1.0.0")
	near := b.publish(m, "v1.0.1")
	for i := range n {
		b.add(evaluation(m, "v1.0.0", fmt.Sprintf("e%d", i)), evaluation(m, "v1.0.1", "other"), change(m, v, staging, fmt.Sprintf("c%d", i)),
			change(m, near, registry.MustEnvironmentName("staging2"), "other"), event(m, fmt.Sprint(i), "a", "b"))
	}
	lists := map[string]func(registry.Page) ([]string, string, error){
		"Models": func(p registry.Page) ([]string, string, error) {
			models, next, err := b.Models(t.Context(), reader, p)
			return names(models), next, err
		},
		"EvaluationsPage": func(p registry.Page) (ids []string, next string, err error) {
			items, next, err := b.EvaluationsPage(t.Context(), m.ID, v.Version.Commit, p)
			for _, e := range items {
				ids = append(ids, e.ID)
			}
			return ids, next, err
		},
		"History": func(p registry.Page) (ids []string, next string, err error) {
			items, next, err := b.History(t.Context(), m.ID, staging, p)
			for _, c := range items {
				ids = append(ids, c.ID)
			}
			return ids, next, err
		},
		"Deliveries": func(p registry.Page) (ids []string, next string, err error) {
			items, next, err := b.Deliveries(t.Context(), reader, registry.DeliveryFilter{}, p)
			for _, d := range items {
				ids = append(ids, d.ID)
			}
			return ids, next, err
		},
	}
	for hook, what := range map[string]string{"": "Deliveries of the model", "b": "Deliveries of the model to b"} {
		lists[what] = func(p registry.Page) (ids []string, next string, err error) {
			items, next, err := b.Deliveries(t.Context(), reader, registry.DeliveryFilter{ModelID: m.ID, Hook: hook}, p)
			for _, d := range items {
				ids = append(ids, d.ID)
			}
			return ids, next, err
		}
	}
	for name, list := range lists {
		want, next, err := list(registry.Page{})
		if size := len(want); err != nil || next != "" || size != n && (!strings.HasPrefix(name, "Deliveries") || size != 2*n) {
			t.Fatalf("%s of everything = %d items, next %q, %v, want %d", name, size, next, err, n)
		}
		for limit := 1; limit <= len(want)+1; limit++ {
			var got []string
			var cursor string
			for range want { // no more pages than items, or the cursor does not move
				items, next, err := list(registry.Page{Cursor: cursor, Limit: limit})
				if err != nil {
					t.Fatalf("%s with limit %d and cursor %q: %v", name, limit, cursor, err)
				}
				if len(items) > limit || len(items) == 0 {
					t.Fatalf("%s with limit %d gives a page of %d", name, limit, len(items))
				}
				got = append(got, items...)
				if cursor = next; cursor == "" {
					break
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s in pages of %d (-want +got):\n%s", name, limit, diff)
			}
		}
		for _, cursor := range []string{"?", "a b", "AAA=", strings.Repeat("A", 4000)} {
			if items, next, err := list(registry.Page{Cursor: cursor}); !errors.Is(err, registry.ErrInvalid) || len(items) > 0 || next != "" {
				t.Errorf("%s with cursor %.20q = %v, %q, %v, want ErrInvalid", name, cursor, items, next, err)
			}
		}
		for _, raw := range []string{"\x00", "\xff\xff\xff\xff", "m", "id-acme-m0"} {
			cursor := base64.RawURLEncoding.EncodeToString([]byte(raw))
			if items, _, err := list(registry.Page{Cursor: cursor}); err != nil || slices.ContainsFunc(items, func(s string) bool { return !slices.Contains(want, s) }) {
				t.Errorf("%s with the cursor of %q = %v, %v, want a part of %v", name, raw, items, err, want)
			}
		}
	}
}

// Of all deliveries, those of one model, version or hook are found, the newest first.
func TestDeliveriesAreFiltered(t *testing.T) {
	b := newBook(t)
	one, two := b.model("acme/one", registry.Public), b.model("acme/two", registry.Private)
	about := func(m registry.Model, what, tag string, sinks ...string) registry.EventAnnounced {
		e := event(m, what, sinks...)
		if tag != "" {
			e.Event.Version = registry.MustTag(tag)
		}
		return e
	}
	b.add(about(one, "1", "v1.0.0", "a", "b"), about(two, "2", "v1.0.0", "a"), about(one, "3", "", "b"))
	b.add(about(one, "4", "v1.0.0"), about(one, "5", "v1.0.1", "a", "b"), about(one, "6", "v1.0.0", "b"))
	v := registry.MustTag("v1.0.0")
	tests := []struct {
		id     access.Identity
		filter registry.DeliveryFilter
		want   string
	}{
		{admin, registry.DeliveryFilter{}, "6b 5b 5a 3b 2a 1b 1a"},
		{admin, registry.DeliveryFilter{Hook: "a"}, "5a 2a 1a"},
		{admin, registry.DeliveryFilter{ModelID: one.ID}, "6b 5b 5a 3b 1b 1a"},
		{admin, registry.DeliveryFilter{ModelID: one.ID, Hook: "a"}, "5a 1a"},
		{admin, registry.DeliveryFilter{ModelID: one.ID, Version: v}, "6b 1b 1a"},
		{admin, registry.DeliveryFilter{ModelID: one.ID, Version: v, Hook: "a"}, "1a"},
		{admin, registry.DeliveryFilter{ModelID: one.ID, Version: registry.MustTag("v1.0.0-rc.1")}, ""},
		{admin, registry.DeliveryFilter{ModelID: two.ID}, "2a"},
		{admin, registry.DeliveryFilter{ModelID: "id-acme-on"}, ""},
		{admin, registry.DeliveryFilter{Hook: "c"}, ""},
		{reader, registry.DeliveryFilter{ModelID: two.ID}, ""},
		{reader, registry.DeliveryFilter{Hook: "a"}, "5a 1a"},
	}
	for _, tt := range tests {
		deliveries, next, err := b.Deliveries(t.Context(), tt.id, tt.filter, registry.Page{})
		var got []string
		for _, d := range deliveries {
			got = append(got, fmt.Sprint(d.Event.Seq, d.Sink))
		}
		if text := strings.Join(got, " "); text != tt.want || next != "" || err != nil {
			t.Errorf("Deliveries(role %d, %+v) = %q, next %q, %v, want %q", tt.id.Role, tt.filter, text, next, err, tt.want)
		}
	}
}

// A page that ends right before rows which the caller may not read has no next page.
func TestNoNextPageOfHiddenRows(t *testing.T) {
	b := newBook(t)
	b.model("acme/a", registry.Public)
	b.model("acme/b", registry.Private)
	b.model("acme/c", registry.Private)
	models, next, err := b.Models(t.Context(), reader, registry.Page{Limit: 1})
	if err != nil || next != "" || !slices.Equal(names(models), []string{"acme/a"}) {
		t.Errorf("Models = %v, next %q, %v, want acme/a and no next page", names(models), next, err)
	}
}

func TestEventsAfter(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	for i := range 5 {
		b.add(event(m, fmt.Sprint(i)))
	}
	tests := []struct {
		after uint64
		limit int
		want  []uint64
	}{
		{0, 0, []uint64{1, 2, 3, 4, 5}},
		{0, 2, []uint64{1, 2}},
		{2, 2, []uint64{3, 4}},
		{4, 9, []uint64{5}},
		{5, 9, nil},
		{1 << 63, 9, nil},
	}
	for _, tt := range tests {
		var got []uint64
		for _, e := range must[[]registry.Event](t)(b.Events(t.Context(), reader, tt.after, tt.limit)) {
			got = append(got, e.Seq)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("Events after %d, at most %d = %v, want %v", tt.after, tt.limit, got, tt.want)
		}
	}
}

func TestVersions(t *testing.T) {
	b := newBook(t)
	m, near := b.model("acme/fraud", registry.Public), b.model("acme/fraud2", registry.Public)
	b.publish(near, "v7.0.0")
	for _, tag := range []string{"v1.2.0", "v1.10.0", "v1.2.0-rc.2", "v1.2.0-rc.10", "v0.9.0"} {
		b.publish(m, tag)
	}
	alias := version(m, "v1.2.1")
	alias.Version.Commit = commitOf("v1.2.0")
	b.add(alias)
	tags := func(rows []registry.VersionRecord) (list []string) {
		for _, r := range rows {
			list = append(list, r.Version.Tag.String())
		}
		return list
	}
	want := []string{"v1.10.0", "v1.2.1", "v1.2.0", "v1.2.0-rc.10", "v1.2.0-rc.2", "v0.9.0"}
	if got := tags(must[[]registry.VersionRecord](t)(b.Versions(t.Context(), m.ID))); !slices.Equal(got, want) {
		t.Errorf("Versions = %v, want %v", got, want)
	}
	if got := tags(must[[]registry.VersionRecord](t)(b.VersionsAt(t.Context(), m.ID, commitOf("v1.2.0")))); !slices.Equal(got, []string{"v1.2.1", "v1.2.0"}) {
		t.Errorf("VersionsAt = %v, want both tags of the commit", got)
	}
	if got, err := b.Version(t.Context(), near.ID, registry.MustTag("v1.2.0")); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Version of another model = %v, %v, want ErrNotFound", got, err)
	}
	got := must[registry.VersionRecord](t)(b.Version(t.Context(), m.ID, registry.MustTag("v1.2.1")))
	if diff := cmp.Diff(alias.Version, got.Version, sameNames...); diff != "" || got.State != registry.Published || got.Image.State != registry.ImageBuilding {
		t.Errorf("Version = %s, image %s (-want +got):\n%s", got.State, got.Image.State, diff)
	}
	names, more, err := b.Tags(t.Context(), m.ID, "v1.10.0", 2)
	if want := []string{"v1.2.0", "v1.2.0-rc.10"}; err != nil || !more || !slices.Equal(names, want) {
		t.Errorf("Tags behind v1.10.0 = %v, %t, %v, want %v and more", names, more, err, want)
	}
}

func TestByID(t *testing.T) {
	b := newBook(t)
	m, other := b.model("acme/fraud", registry.Public), b.model("acme/other", registry.Public)
	v := b.publish(m, "v1.0.0")
	b.add(evaluation(m, "v1.0.0", "e1"), change(m, v, staging, "c1"))
	if got, err := b.EvaluationByID(t.Context(), m.ID, "e1"); err != nil || got.ID != "e1" {
		t.Errorf("EvaluationByID(e1) = %+v, %v", got, err)
	}
	if got, err := b.ChangeByID(t.Context(), m.ID, "c1"); err != nil || got.ID != "c1" {
		t.Errorf("ChangeByID(c1) = %+v, %v", got, err)
	}
	for _, id := range []string{"c1", "", "e", "e2"} {
		if got, err := b.EvaluationByID(t.Context(), m.ID, id); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("EvaluationByID(%q) = %+v, %v, want ErrNotFound", id, got, err)
		}
	}
	if got, err := b.EvaluationByID(t.Context(), other.ID, "e1"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("EvaluationByID of another model's = %+v, %v, want ErrNotFound", got, err)
	}
	if got, err := b.ChangeByID(t.Context(), m.ID, "e1"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("ChangeByID(e1) = %+v, %v, want ErrNotFound", got, err)
	}
}

func TestReferrers(t *testing.T) {
	b := newBook(t)
	m := b.model("acme/fraud", registry.Public)
	v, other := b.publish(m, "v1.0.0"), b.publish(m, "v1.1.0")
	var want []digest.Digest
	var manifests []registry.StoredManifest
	for _, name := range []string{"a", "b", "c"} {
		d := digest.FromString(name)
		want = append(want, d)
		manifests = append(manifests, registry.StoredManifest{Descriptor: registry.Descriptor{Digest: d}, Subject: v.Version.Artifact.Digest})
	}
	b.add(registry.ImageBuilt{ModelID: m.ID, Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady, Digest: want[0]}, Manifests: manifests})
	slices.Sort(want)
	for _, repository := range []string{m.ID, registry.ImageRepository(m.ID)} {
		var got []digest.Digest
		for _, r := range must[[]registry.StoredManifest](t)(b.Referrers(t.Context(), repository, v.Version.Artifact.Digest)) {
			got = append(got, r.Digest)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Referrers in %s = %v, want %v", repository, got, want)
		}
	}
	if got := must[[]registry.StoredManifest](t)(b.Referrers(t.Context(), m.ID, other.Version.Artifact.Digest)); len(got) != 0 {
		t.Errorf("Referrers of another version = %v, want none", got)
	}
}

// A type of record without a rule would pass into the journal, or out of it never.
func TestEveryTypeOfRecordHasARule(t *testing.T) {
	decoder := registry.NewDecoder()
	for _, kind := range registry.RecordTypes() {
		r, err := decoder.DecodeRecord(registry.EncodedRecord{Type: kind, Data: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
		g := registry.Group{At: begin, Records: []registry.Record{r}}
		check := index.Check(g)
		apply := newBook(t).Apply([]index.Entry{{Seq: 1, Group: g}})
		for name, err := range map[string]error{"Check": check, "Apply": apply} {
			if err != nil && strings.Contains(err.Error(), "no rule") {
				t.Errorf("%s of %s = %v", name, kind, err)
			}
		}
		if apply != nil && check == nil {
			t.Errorf("an empty %s passes Check, and Apply = %v", kind, apply)
		}
	}
}

// Whatever Check lets through can be applied, and an index that is made again has the same rows.
func FuzzCheck(f *testing.F) {
	m := registry.Model{ID: "m1", Name: registry.MustModelName("acme/fraud"), Visibility: registry.Public}
	v := version(m, "v1.0.0", registry.LineageEdge{To: "dataset:calls", Kind: registry.Used})
	e := event(m, "1", "notify")
	for _, records := range [][]registry.Record{
		{registry.ModelCreated{Model: m}, v, e, registry.ModelDeleted{ModelID: "m1"}},
		{registry.ModelCreated{Model: m}, v, evaluation(m, "v1.0.0", "e1"), change(m, v, staging, "c1"), registry.DeliveryTried{Attempt: registry.Attempt{Sink: "notify", EventID: e.Event.ID}}},
		{registry.ModelImported{ModelID: "m1"}, v, registry.ImageBuilt{ModelID: "m1", Tag: v.Version.Tag, Status: registry.ImageStatus{State: registry.ImageReady}, Manifests: []registry.StoredManifest{{Subject: "x"}}}},
		{
			registry.RepositoryCreated{Repository: registry.Repository{ID: "r1", Name: "acme/tools"}},
			registry.BlobsLinked{ModelID: "r1", Blobs: []registry.LinkedBlob{{Digest: "sha256:b", SizeBytes: 1, Alias: "sha512:b"}}},
			registry.ManifestPushed{Repository: "r1", Manifest: registry.StoredManifest{Descriptor: registry.Descriptor{Digest: "sha256:m"}, Subject: "sha256:s"}, Alias: "sha512:m", Tags: []string{"a", "b"}},
			registry.TagDeleted{Repository: "r1", Tag: "a"},
			registry.ManifestDeleted{Repository: "r1", Digest: "sha256:m"},
			registry.BlobsUnlinked{ModelID: "r1", Digests: []digest.Digest{"sha256:b"}},
		},
		{registry.RepositoryCreated{Repository: registry.Repository{ID: "r1", Name: "a"}}, registry.ManifestPushed{Repository: "r1", Tags: []string{"a\x00b"}}, registry.RepositoryDeleted{RepositoryID: "r1"}, registry.RepositoryCreated{}},
		{registry.TokenCreated{}, registry.TokenRevoked{}},
		{registry.TokenCreated{Token: registry.Token{ID: "t", Hash: "h"}}, registry.TokenRevoked{TokenID: "t"}},
		{registry.EdgesAdded{ModelID: "m1", Edges: []registry.LineageEdge{{From: "a\x00b", To: "c", Kind: "used"}}}},
		{registry.EdgesAdded{ModelID: "m1", Edges: []registry.LineageEdge{{From: "a", To: strings.Repeat("x", 33000), Kind: "used"}}}},
		{registry.ApprovalGiven{ModelID: "m1"}, registry.GateMoved{ModelID: "m1"}, registry.PolicySet{}, registry.PushStarted{}, registry.RefMoved{}, registry.BlobsLinked{}},
	} {
		line, err := registry.EncodeGroup(registry.Group{At: begin, Records: records})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	decoder := registry.NewDecoder()
	f.Fuzz(func(t *testing.T, line []byte) {
		g, err := decoder.Decode(line)
		if err != nil || index.Check(g) != nil {
			return
		}
		b := newBook(t)
		for range 2 { // the second time over what the first has left
			b.seq++
			if err := b.Apply([]index.Entry{{Seq: b.seq, Group: g}}); err != nil {
				t.Fatalf("Check lets %s through, and Apply = %v", line, err)
			}
		}
		again := newBook(t)
		if err := again.Apply([]index.Entry{{Seq: 1, Group: g}, {Seq: 2, Group: g}}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(dump(t, b.DB), dump(t, again.DB)); diff != "" {
			t.Errorf("rows of %s in two transactions and in one:\n%s", line, diff)
		}
	})
}

// A cursor of anybody's making shows nothing but rows of the list that it is for.
func FuzzModelsCursor(f *testing.F) {
	b := world(f, true)
	_, next, err := b.Models(f.Context(), reader, registry.Page{Limit: 1})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", next, "?", "AA", base64.RawURLEncoding.EncodeToString([]byte("acme/middle"))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		p := registry.Page{Cursor: cursor, Limit: 1}
		models, next, err := b.Models(t.Context(), reader, p)
		if err != nil && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Models(%q) = %v", cursor, err)
		}
		for _, m := range models {
			if m.Visibility != registry.Public {
				t.Errorf("Models(%q) shows %s", cursor, m.Name)
			}
		}
		if next != "" && base64.RawURLEncoding.EncodeToString([]byte(models[0].Name.String())) != next {
			t.Errorf("Models(%q) gives cursor %q, want one made of the model that it shows, %s", cursor, next, models[0].Name)
		}
		deliveries, _, err := b.Deliveries(t.Context(), reader, registry.DeliveryFilter{}, p)
		if err != nil && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Deliveries(%q) = %v", cursor, err)
		}
		for _, d := range deliveries {
			if d.Event.Model.String() != "acme/fraud" {
				t.Errorf("Deliveries(%q) shows one of %s", cursor, d.Event.Model)
			}
		}
		if _, _, err := b.EvaluationsPage(t.Context(), "id-acme-fraud", commitOf("v1.0.0"), p); err != nil && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("EvaluationsPage(%q) = %v", cursor, err)
		}
	})
}

// What is known of the evaluations of a commit follows each that is recorded.
func TestCatalog(t *testing.T) {
	b := newBook(t)
	m, other := b.model("acme/fraud", registry.Public), b.model("acme/other", registry.Public)
	b.add(evaluation(other, "v1.0.0", "x1"))
	for i := 1; i <= 5; i++ {
		id := fmt.Sprint("e", i)
		b.add(evaluation(m, "v1.0.0", id))
		if i%2 == 0 { // not each is looked at when it comes
			continue
		}
		c := must[*registry.Catalog](t)(b.Catalog(t.Context(), m.ID, commitOf("v1.0.0")))
		found := c.Select(nil, begin)
		if c.Len() != i || found.Number != uint64(i) || found.Matched != i {
			t.Errorf("catalog of %d evaluations has %d, and selects %+v, want the last", i, c.Len(), found)
		}
		if e, err := b.Evaluation(t.Context(), m.ID, commitOf("v1.0.0"), found.Number); err != nil || e.ID != id {
			t.Errorf("Evaluation(%d) = %+v, %v, want %s", found.Number, e, err, id)
		}
		if e, err := b.Headline(t.Context(), m.ID, commitOf("v1.0.0")); err != nil || e == nil || e.ID != id {
			t.Errorf("Headline = %+v, %v, want %s", e, err, id)
		}
		if n, err := b.CountEvaluations(t.Context(), m.ID, commitOf("v1.0.0")); err != nil || n != i {
			t.Errorf("CountEvaluations = %d, %v, want %d", n, err, i)
		}
	}
	newest, total, err := b.NewestEvaluations(t.Context(), m.ID, commitOf("v1.0.0"), 2)
	if err != nil || total != 5 || len(newest) != 2 || newest[0].ID != "e4" || newest[1].ID != "e5" {
		t.Errorf("NewestEvaluations(2) = %+v of %d, %v, want e4 and e5 of 5", newest, total, err)
	}
	if newest, total, err := b.NewestEvaluations(t.Context(), m.ID, commitOf("v1.0.0"), 9); err != nil || total != 5 || len(newest) != 5 {
		t.Errorf("NewestEvaluations(9) = %d of %d, %v, want all 5", len(newest), total, err)
	}
	lines := must[[][]byte](t)(b.EvaluationLines(t.Context(), m.ID, commitOf("v1.0.0"), 2, 2))
	if len(lines) != 2 || !strings.Contains(string(lines[0]), `"id":"e2"`) || !strings.Contains(string(lines[1]), `"id":"e3"`) {
		t.Errorf("EvaluationLines(2, 2) = %s, want e2 and e3", lines)
	}
	if e, err := b.Headline(t.Context(), m.ID, commitOf("v2.0.0")); err != nil || e != nil {
		t.Errorf("Headline of what was not evaluated = %+v, %v, want none", e, err)
	}
	if _, err := b.Evaluation(t.Context(), m.ID, commitOf("v1.0.0"), 6); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Evaluation(6) of 5 = %v, want %v", err, registry.ErrNotFound)
	}
	b.add(registry.ModelDeleted{ModelID: m.ID})
	if n, err := b.CountEvaluations(t.Context(), m.ID, commitOf("v1.0.0")); err != nil || n != 0 {
		t.Errorf("CountEvaluations of a deleted model = %d, %v, want 0", n, err)
	}
	if n, err := b.CountEvaluations(t.Context(), other.ID, commitOf("v1.0.0")); err != nil || n != 1 {
		t.Errorf("CountEvaluations of another model = %d, %v, want 1", n, err)
	}
}
