package index_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	_ "modernc.org/sqlite" // what the index is measured against

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/search"
	"github.com/herdbook/herdbook/storage/index"
)

// The benchmarks of this file ask the same of the index and of SQLite, in turn, so that what else the machine does hits both. The world
// has bases that other models were made from, each of these with a chain of versions, and datasets:
//
//	HERDBOOK_BENCH_VERSIONS=1000000 go test ./storage/index -run XXX -bench Beside -timeout 60m
//
// is the size of the goals; without it the world is small.
const (
	chainLen = 50
	tuned    = 1000 // models that were made from each base
	datasets = 2000
)

// beside is the same world in both.
type beside struct {
	*book
	sql    *sql.DB
	bases  int
	models int // made from the bases
}

func benchVersions(tb testing.TB) int {
	text := os.Getenv("HERDBOOK_BENCH_VERSIONS")
	if text == "" {
		return 2000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func baseName(i int) string { return fmt.Sprintf("base/b%d", i) }

func tunedName(i int) string { return fmt.Sprintf("team/m%d", i) }

// f1 is a metric that no two versions share.
func f1(model, i int) float64 { return 0.5 + float64((model*chainLen+i)*7919%1_000_003)/2_000_006 }

// schema is what somebody would write who knows SQLite: integer keys, both directions of the edges without row ids, and indexes for each query.
const schema = `
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, visibility INTEGER NOT NULL);
CREATE TABLE nodes (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, model INTEGER, tag TEXT, name TEXT, state INTEGER, published INTEGER, commit_id TEXT, f1 REAL, record TEXT);
CREATE UNIQUE INDEX versions ON nodes (model, tag);
CREATE INDEX best ON nodes (f1 DESC, id) WHERE f1 IS NOT NULL;
CREATE TABLE edges (src INTEGER NOT NULL, dst INTEGER NOT NULL, kind INTEGER NOT NULL, PRIMARY KEY (src, dst, kind)) WITHOUT ROWID;
CREATE TABLE edges_in (dst INTEGER NOT NULL, src INTEGER NOT NULL, kind INTEGER NOT NULL, PRIMARY KEY (dst, src, kind)) WITHOUT ROWID;
CREATE TABLE environments (model INTEGER NOT NULL, name TEXT NOT NULL, node INTEGER NOT NULL, PRIMARY KEY (model, name)) WITHOUT ROWID;
`

func newBeside(b *testing.B) *beside {
	b.Helper()
	versions := benchVersions(b)
	w := &beside{book: newBook(b), bases: max(1, versions/(tuned*chainLen)), models: versions / chainLen}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "beside.db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(normal)&_pragma=cache_size(-262144)&_pragma=mmap_size(2147483648)")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	w.sql = db
	w.load(b)
	return w
}

func (w *beside) load(b *testing.B) {
	b.Helper()
	tx, err := w.sql.Begin()
	if err != nil {
		b.Fatal(err)
	}
	exec := func(query string, args ...any) {
		if _, err := tx.Exec(query, args...); err != nil {
			b.Fatal(err)
		}
	}
	exec(schema)
	prepare := func(query string) *sql.Stmt {
		s, err := tx.Prepare(query)
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	addModel := prepare("INSERT INTO models VALUES (?, ?, 1)")
	addNode := prepare("INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
	addOut, addIn := prepare("INSERT INTO edges VALUES (?, ?, ?)"), prepare("INSERT INTO edges_in VALUES (?, ?, ?)")
	run := func(s *sql.Stmt, args ...any) {
		if _, err := s.Exec(args...); err != nil {
			b.Fatal(err)
		}
	}
	const datasetIDs, baseIDs, versionIDs = 1, 1 + datasets, 10_000
	for i := range datasets {
		run(addNode, datasetIDs+i, 1, nil, nil, fmt.Sprintf("d%d", i), nil, nil, nil, nil, nil)
	}
	var entries []index.Entry
	start := time.Now()
	var spent [2]time.Duration
	flush := func() {
		spent[1] += time.Since(start)
		start = time.Now()
		if err := w.Apply(entries); err != nil {
			b.Fatal(err)
		}
		spent[0] += time.Since(start)
		start = time.Now()
		entries = entries[:0]
	}
	apply := func(records ...registry.Record) {
		w.seq++
		entries = append(entries, index.Entry{Seq: w.seq, Group: registry.Group{At: begin, Actor: "ada", Records: records}})
		if len(entries) == 10_000 {
			flush()
		}
	}
	modelIDs := 0
	model := func(name string) registry.Model {
		modelIDs++
		m := registry.Model{ID: fmt.Sprintf("%032x", modelIDs), Name: registry.MustModelName(name), Visibility: registry.Public, CreatedAt: begin, UpdatedAt: begin}
		apply(registry.ModelCreated{Model: m})
		run(addModel, modelIDs, name)
		return m
	}
	publish := func(m registry.Model, id int, tag string, score float64, dataset int, kind string, from int) {
		edges := []registry.LineageEdge{used(registry.DatasetNodeID(fmt.Sprintf("d%d", dataset)))}
		run(addOut, id, datasetIDs+dataset, 1)
		run(addIn, datasetIDs+dataset, id, 1)
		if kind != "" {
			edges = append(edges, derived(kind))
			run(addOut, id, from, 0)
			run(addIn, from, id, 0)
		}
		r := version(m, tag, edges...)
		e := evaluation(m, tag, strconv.Itoa(id))
		e.Evaluation.Dataset.Name, e.Evaluation.Metrics = "test", map[string]float64{"f1": score}
		apply(r, e)
		record, err := json.Marshal(registry.VersionRecord{ModelID: m.ID, Version: r.Version, State: registry.Published, Image: registry.ImageStatus{State: registry.ImageBuilding}})
		if err != nil {
			b.Fatal(err)
		}
		run(addNode, id, 0, modelIDs, tag, nil, 1, begin.UnixNano(), string(r.Version.Commit), score, string(record))
	}
	for i := range w.bases {
		publish(model(baseName(i)), baseIDs+i, "v1.0.0", 0.1, i%datasets, "", 0)
	}
	for i := range w.models {
		m := model(tunedName(i))
		from, fromID := registry.ExternalModelNodeID(baseName(i%w.bases), "v1.0.0"), baseIDs+i%w.bases
		for v := range chainLen {
			id := versionIDs + i*chainLen + v
			tag := fmt.Sprintf("v1.%d.0", v)
			publish(m, id, tag, f1(i, v), (i+v)%datasets, from, fromID)
			from, fromID = registry.VersionNodeID(m.ID, registry.MustTag(tag)), id
		}
		if i%49 == 0 { // one in 49 runs somewhere, of each base
			last := version(m, fmt.Sprintf("v1.%d.0", chainLen-1))
			apply(change(m, last, staging, "c"+m.ID))
			exec("INSERT INTO environments VALUES (?, 'staging', ?)", modelIDs, fromID)
		}
	}
	flush()
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
	if _, err := w.sql.Exec("ANALYZE"); err != nil {
		b.Fatal(err)
	}
	b.Logf("%d models, loaded in %v, beside in %v", modelIDs, spent[0].Round(time.Millisecond), spent[1].Round(time.Millisecond))
}

// both measures a question to the index and the same to SQLite, one after the other, and reports how many times faster the index is.
func (w *beside) both(b *testing.B, name string, ours, theirs func(ctx context.Context, i int) int) {
	b.Helper()
	b.Run(name, func(b *testing.B) {
		ours(b.Context(), 0) // what the first question has to make is not counted
		theirs(b.Context(), 0)
		var spent [2]time.Duration
		i := 0
		for b.Loop() {
			var found [2]int
			for k, ask := range []func(context.Context, int) int{ours, theirs} {
				start := time.Now()
				found[k] = ask(b.Context(), i)
				spent[k] += time.Since(start)
			}
			if found[0] != found[1] || found[0] == 0 {
				b.Fatalf("question %d: the index finds %d, SQLite %d", i, found[0], found[1])
			}
			i++
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(spent[0].Nanoseconds())/float64(b.N)/1000, "index-us/op")
		b.ReportMetric(float64(spent[1].Nanoseconds())/float64(b.N)/1000, "sqlite-us/op")
		b.ReportMetric(float64(spent[1])/float64(spent[0]), "times")
	})
}

// countBest reads versions with their f1.
func countBest(b *testing.B) func(*sql.Rows, error) int {
	return func(rows *sql.Rows, err error) (n int) {
		if err != nil {
			b.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var f1 float64
			var id, kind int
			var state, published sql.NullInt64
			var tag, commit, name, model sql.NullString
			if err := rows.Scan(&f1, &id, &kind, &tag, &state, &published, &commit, &name, &model); err != nil {
				b.Fatal(err)
			}
			n++
		}
		if err := rows.Err(); err != nil {
			b.Fatal(err)
		}
		return n
	}
}

func BenchmarkBesideSQLite(b *testing.B) {
	w := newBeside(b)
	prepare := func(query string) *sql.Stmt {
		s, err := w.sql.Prepare(query)
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	pick := func(i int) (model, v int) { return i * 7919 % w.models, i * 31 % chainLen }
	modelID := func(model int) string { return fmt.Sprintf("%032x", 1+w.bases+model) }

	point := prepare("SELECT record FROM nodes WHERE model = ? AND tag = ?")
	w.both(b, "point", func(ctx context.Context, i int) int {
		model, v := pick(i)
		if _, err := w.Version(ctx, modelID(model), registry.MustTag(fmt.Sprintf("v1.%d.0", v))); err != nil {
			b.Fatal(err)
		}
		return 1
	}, func(ctx context.Context, i int) int {
		model, v := pick(i)
		var text []byte
		if err := point.QueryRowContext(ctx, 1+w.bases+model, fmt.Sprintf("v1.%d.0", v)).Scan(&text); err != nil {
			b.Fatal(err)
		}
		var r registry.VersionRecord
		if err := json.Unmarshal(text, &r); err != nil {
			b.Fatal(err)
		}
		return 1
	})

	// The nodes of a walk, as they are shown; SQLite is not asked for the edges.
	const shown = " SELECT w.id, min(w.depth), n.kind, n.tag, n.state, n.published, n.commit_id, n.name, m.name FROM walk w JOIN nodes n ON n.id = w.id LEFT JOIN models m ON m.id = n.model WHERE m.visibility IS NULL OR m.visibility = 1 GROUP BY w.id ORDER BY 2"
	ancestors := prepare("WITH RECURSIVE walk (id, depth) AS (VALUES (?, 0) UNION SELECT e.dst, walk.depth + 1 FROM walk JOIN edges e ON e.src = walk.id WHERE walk.depth < 50)" + shown)
	count := func(rows *sql.Rows, err error) (n int) {
		if err != nil {
			b.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, depth, kind int
			var state, published sql.NullInt64
			var tag, commit, name, model sql.NullString
			if err := rows.Scan(&id, &depth, &kind, &tag, &state, &published, &commit, &name, &model); err != nil {
				b.Fatal(err)
			}
			n++
		}
		if err := rows.Err(); err != nil {
			b.Fatal(err)
		}
		return n
	}
	w.both(b, "ancestors50", func(ctx context.Context, i int) int {
		model, _ := pick(i)
		g, err := w.Lineage(ctx, reader, registry.Walk{Start: registry.VersionNodeID(modelID(model), registry.MustTag("v1.49.0")), Direction: registry.Ancestors})
		if err != nil {
			b.Fatal(err)
		}
		return len(g.Nodes)
	}, func(ctx context.Context, i int) int {
		model, _ := pick(i)
		return count(ancestors.QueryContext(ctx, 10_000+model*chainLen+chainLen-1))
	})

	// A page of the best, and one somewhere behind, as a reader goes on.
	best, err := search.Parse("sort:f1")
	if err != nil {
		b.Fatal(err)
	}
	// CROSS JOIN keeps SQLite from reading all versions of each model: it goes along the index of the metric.
	first := prepare("SELECT n.f1, n.id, n.kind, n.tag, n.state, n.published, n.commit_id, n.name, m.name FROM nodes n CROSS JOIN models m ON m.id = n.model WHERE n.f1 IS NOT NULL AND m.visibility = 1 ORDER BY n.f1 DESC, n.id LIMIT 50")
	behind := prepare("SELECT n.f1, n.id, n.kind, n.tag, n.state, n.published, n.commit_id, n.name, m.name FROM nodes n CROSS JOIN models m ON m.id = n.model WHERE n.f1 IS NOT NULL AND n.f1 < ? AND m.visibility = 1 ORDER BY n.f1 DESC, n.id LIMIT 50")
	cursors := []string{""}
	floors := []float64{2}
	for range 20 {
		hits, next, err := w.Search(b.Context(), reader, best, registry.Page{Limit: 50, Cursor: cursors[len(cursors)-1]})
		if err != nil || next == "" {
			b.Fatalf("Search = %d hits, %q, %v", len(hits), next, err)
		}
		cursors, floors = append(cursors, next), append(floors, hits[len(hits)-1].Metrics["f1"])
	}
	w.both(b, "page50", func(ctx context.Context, i int) int {
		hits, _, err := w.Search(ctx, reader, best, registry.Page{Limit: 50, Cursor: cursors[i%len(cursors)]})
		if err != nil {
			b.Fatal(err)
		}
		return len(hits)
	}, func(ctx context.Context, i int) int {
		if i%len(cursors) == 0 {
			return countBest(b)(first.QueryContext(ctx))
		}
		return countBest(b)(behind.QueryContext(ctx, floors[i%len(cursors)]))
	})

	// All that came from a base, of which a page is shown, with what of it runs.
	descendants := prepare("WITH RECURSIVE walk (id) AS (VALUES (?) UNION SELECT e.src FROM walk JOIN edges_in e ON e.dst = walk.id) SELECT count(*), count(e.node) FROM walk JOIN nodes n ON n.id = walk.id JOIN models m ON m.id = n.model AND m.visibility = 1 LEFT JOIN environments e ON e.model = n.model AND e.node = n.id")
	w.both(b, "impact", func(ctx context.Context, i int) int {
		impact, err := w.Impact(ctx, reader, registry.Concern{Model: baseName(i%w.bases) + "@v1.0.0"}, registry.Page{})
		if err != nil || len(impact.Items) != registry.MaxPage {
			b.Fatalf("Impact = %d, %v", len(impact.Items), err)
		}
		return len(impact.Running)
	}, func(ctx context.Context, i int) int {
		var all, running int
		if err := descendants.QueryRowContext(ctx, 1+datasets+i%w.bases).Scan(&all, &running); err != nil {
			b.Fatal(err)
		}
		return running
	})
}
