package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crashRounds is how often TestCrash kills the server; HERDBOOK_CRASH_ROUNDS says another number. HERDBOOK_CRASH_SEED
// repeats the choices of an earlier run, though not its timing.
const crashRounds = 8

func seed(t testing.TB) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("HERDBOOK_CRASH_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HERDBOOK_CRASH_SEED=%d", n)
	return rand.New(rand.NewPCG(n, n))
}

// TestCrash kills a server under mixed load, again and again, and looks each time whether all is there that clients were
// told is done.
func TestCrash(t *testing.T) {
	rounds := crashRounds
	if text := os.Getenv("HERDBOOK_CRASH_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	random := seed(t)
	hook := newReceiver(t)
	m := newMachine(t, "", "--config", hook.config())
	m.start()
	l := newLoad(m, random, 3)

	for round := range rounds {
		stop := l.run()
		time.Sleep(time.Duration(200+random.IntN(1300)) * time.Millisecond)
		alone := random.IntN(2) == 0
		if alone {
			m.kill()
		} else {
			m.killAll()
		}
		// Git programs that the server started see that it is gone, or that their input is.
		eventuallyNil(t, 3*time.Second, func() error {
			if left := m.family(); len(left) > 0 {
				return fmt.Errorf("round %d: processes outlive the server: %v", round, left)
			}
			return nil
		})
		stop()
		m.start()
		eventuallyNil(t, 3*time.Second, m.temporary)
		m.check(l.now())
		if t.Failed() {
			t.Fatalf("round %d of %d, server killed alone: %v, %s", round, rounds, alone, l.summary())
		}
	}
	stop := l.run()
	time.Sleep(300 * time.Millisecond)
	stop()
	m.settled(l.models()...)
	m.check(l.now())
	hook.check(t, m)
	t.Log(l.summary())
	if done := l.done(); done < 4*rounds {
		t.Errorf("clients were told of %d things in %d rounds: too little load to say anything", done, rounds)
	}

	// Nothing half is left, and the index is what follows from the journal.
	m.halt()
	m.fsck()
	if err := m.temporary(); err != nil {
		t.Error(err)
	}
	if open := openPushes(t, m.data); len(open) > 0 {
		t.Errorf("pushes that the journal takes to be under way: %v", open)
	}
	m.start()
	m.settled(l.models()...)
	before, sent := m.answers(l.models()...), hook.count()
	m.halt()
	if out, code := m.command("reindex"); code != 0 {
		t.Fatalf("reindex = status %d\n%s", code, out)
	}
	m.start()
	if after := m.answers(l.models()...); after != before {
		t.Errorf("the answers differ after reindex: %s", firstDifference(before, after))
	}
	if n := hook.count() - sent; n != 0 {
		t.Errorf("%d events were sent again after reindex, want none", n)
	}
	m.halt()
}

func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return fmt.Sprintf("line %d behind %s\n-%s\n+%s", i, as[max(0, i-1)], as[i], bs[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(as), len(bs))
}

// openPushes are the pushes that the journal says have started and not that they have ended.
func openPushes(t testing.TB, data string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "journal", "*.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("journal = %v, %v", files, err)
	}
	open := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			parts := strings.SplitN(line, " ", 5)
			var g struct {
				Records []struct {
					Type string
					Data struct {
						PushID string `json:"push_id"`
					}
				}
			}
			if json.Unmarshal([]byte(parts[len(parts)-1]), &g) != nil {
				continue
			}
			for _, r := range g.Records {
				switch r.Type {
				case "push_started":
					open[r.Data.PushID] = true
				case "push_finished":
					delete(open, r.Data.PushID)
				}
			}
		}
	}
	var ids []string
	for id := range open {
		ids = append(ids, id)
	}
	return ids
}

// load is what clients do to a server.
type load struct {
	ledger
	m       *machine
	clients []*worker
	failed  atomic.Int64
}

// worker is one client. Something that failed it asks for again before all else.
type worker struct {
	*load
	model   string
	random  *rand.Rand
	step    func(*worker) func() error // chooses what to do next
	again   func() error
	dir     string // of its clone, when it has one
	commits int

	versions *versions
}

// versions of a model that its clients know of.
type versions struct {
	mu   sync.Mutex
	tags []string
}

func (v *versions) add(tag string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tags = append(v.tags, tag)
}

func (v *versions) pick(random *rand.Rand) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.tags) == 0 {
		return ""
	}
	return v.tags[random.IntN(len(v.tags))]
}

// newLoad makes clients for some models: one each that pushes, and one that calls the API; and one that pushes artifacts that no model
// stands behind.
func newLoad(m *machine, random *rand.Rand, models int) *load {
	l := &load{m: m}
	for i := range models {
		model := fmt.Sprintf("acme/model%d", i)
		v := &versions{}
		git := &worker{load: l, model: model, random: rand.New(rand.NewPCG(random.Uint64(), 1)), step: (*worker).gitStep, versions: v}
		git.dir = m.clone(model, fmt.Sprintf("clone%d", i))
		api := &worker{load: l, model: model, random: rand.New(rand.NewPCG(random.Uint64(), 2)), step: (*worker).apiStep, versions: v}
		l.clients = append(l.clients, git, api)
	}
	l.clients = append(l.clients, &worker{load: l, model: "team/tools", random: rand.New(rand.NewPCG(random.Uint64(), 3)), step: (*worker).ociStep})
	return l
}

func (l *load) models() (names []string) {
	for _, c := range l.clients {
		if c.dir != "" { // its git client
			names = append(names, c.model)
		}
	}
	return names
}

// run lets all clients work until stop is called, which waits for them.
func (l *load) run() (stop func()) {
	end := make(chan struct{})
	var wait sync.WaitGroup
	for _, c := range l.clients {
		wait.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				what := c.again
				if what == nil {
					what = c.step(c)
				}
				c.again = nil
				err := what()
				if err == nil {
					continue
				}
				c.failed.Add(1)
				if status := statusOf(err); status == 0 || status > 499 {
					c.again = what
				}
				select {
				case <-end:
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
	return func() {
		close(end)
		wait.Wait()
	}
}

func (l *load) done() (n int) {
	for _, f := range l.now() {
		if f.Done {
			n++
		}
	}
	return n
}

// summary says how much was done.
func (l *load) summary() string {
	done, asked := map[string]int{}, map[string]int{}
	for _, f := range l.now() {
		if asked[f.Kind]++; f.Done {
			done[f.Kind]++
		}
	}
	return fmt.Sprintf("done %v of %v, %d failures", done, asked, l.failed.Load())
}

// gitStep commits an LFS object that it uploads, and pushes a branch or a version.
func (w *worker) gitStep() func() error {
	w.commits++
	content := make([]byte, 1000+w.random.IntN(200_000))
	for i := 0; i < len(content); i += 8 {
		content[i] = byte(w.random.Uint32())
	}
	copy(content, fmt.Sprintf("%s %d", w.model, w.commits))
	w.m.write(w.dir, "weights.bin", pointerTo(content))
	w.m.write(w.dir, "notes.txt", strings.Repeat(fmt.Sprintln(w.random.Uint64()), 50))
	commit := w.m.commit(w.dir, "change "+strconv.Itoa(w.commits))
	branch := "main"
	if w.random.IntN(4) == 0 {
		branch = "work/topic" + strconv.Itoa(w.random.IntN(3))
	}
	spec := "+HEAD:refs/heads/" + branch
	facts := []fact{{Kind: factRef, Model: w.model, Name: "refs/heads/" + branch, Value: commit}}
	args := []string{"push", "-q", "origin", spec}
	tag := ""
	if w.random.IntN(3) > 0 {
		tag = "v1.0." + strconv.Itoa(w.commits)
		w.m.mustGit(w.dir, "tag", tag)
		args = append(args, "refs/tags/"+tag)
		facts = append(facts, fact{Kind: factRef, Model: w.model, Name: "refs/tags/" + tag, Value: commit}, fact{Kind: factVersion, Model: w.model, Name: tag, Value: commit})
	}
	uploaded, upload := false, w.m.upload
	if w.random.IntN(2) == 0 {
		upload = w.m.uploadParts
	}
	return func() error {
		if !uploaded {
			object := fact{Kind: factObject, Model: w.model, Name: oidOf(content), Value: strconv.Itoa(len(content))}
			if err := w.note(func() error { return upload(w.model, content) }, object); err != nil {
				return err
			}
			uploaded = true
		}
		if err := w.note(func() error { _, err := w.m.git(w.dir, args...); return err }, facts...); err != nil {
			uploaded = false // git-lfs asks each time
			return err
		}
		if tag != "" {
			w.versions.add(tag)
		}
		return nil
	}
}

// apiStep records an evaluation, promotes a version, locks a file or unlocks it.
func (w *worker) apiStep() func() error {
	tag := w.versions.pick(w.random)
	if tag == "" {
		time.Sleep(5 * time.Millisecond)
		return func() error { return nil }
	}
	w.commits++
	name := fmt.Sprintf("%s-%d", filepath.Base(w.model), w.commits)
	path := "/models/" + w.model
	switch w.random.IntN(3) {
	case 0:
		return func() error {
			return w.note(func() error {
				return w.m.call(http.MethodPost, path+"/evaluations/"+tag, evaluation(name), nil, "Idempotency-Key", name)
			}, fact{Kind: factEvaluated, Model: w.model, Name: name, Value: tag})
		}
	case 1:
		return func() error {
			return w.note(func() error {
				return w.m.call(http.MethodPost, path+"/environments/staging/promotions", map[string]any{"version": tag, "reason": name}, nil, "Idempotency-Key", name)
			}, fact{Kind: factPromoted, Model: w.model, Name: name, Value: tag})
		}
	}
	return func() error {
		file := "files/" + name
		err := w.note(func() error {
			_, _, err := w.m.send(http.MethodPost, "/"+w.model+".git/info/lfs/locks", strings.NewReader(fmt.Sprintf(`{"path":%q}`, file)))
			if statusOf(err) == http.StatusConflict {
				err = nil // by the request whose answer got lost
			}
			return err
		}, fact{Kind: factLocked, Model: w.model, Name: file})
		if err != nil || w.random.IntN(2) == 0 {
			return err
		}
		locks, err := w.m.locks(w.model)
		if err != nil || locks[file] == "" {
			return err
		}
		return w.note(func() error {
			_, _, err := w.m.send(http.MethodPost, "/"+w.model+".git/info/lfs/locks/"+locks[file]+"/unlock", strings.NewReader(`{}`))
			return err
		}, fact{Kind: factUnlocked, Model: w.model, Name: file})
	}
}

// hookReceiver is a webhook receiver that remembers what it got.
type hookReceiver struct {
	dir string
	url string

	mu      sync.Mutex
	got     int
	content map[string]string   // id -> SHA-256 of the body
	order   map[string][]string // model -> ids in the order in which they came first
	changed []string            // ids that came with two contents
}

func newReceiver(t *testing.T) *hookReceiver {
	t.Helper()
	r := &hookReceiver{dir: t.TempDir(), content: map[string]string{}, order: map[string][]string{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.url = "http://" + l.Addr().String()
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { _ = server.Serve(l); close(done) }()
	t.Cleanup(func() { server.Close(); <-done })
	return r
}

// config is the path of a configuration that names the receiver.
func (r *hookReceiver) config() string {
	path := filepath.Join(r.dir, "config.yaml")
	secret := filepath.Join(r.dir, "secret")
	text := fmt.Sprintf("hooks:\n  - {name: notify, type: webhook, url: %q, secret_file: %q, allow_private: true}\n", r.url, secret)
	if os.WriteFile(path, []byte(text), 0o600) != nil || os.WriteFile(secret, []byte("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="), 0o600) != nil {
		return ""
	}
	return path
}

func (r *hookReceiver) ServeHTTP(_ http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	var event struct {
		ID   string
		Data struct{ Model string }
	}
	if err != nil || json.Unmarshal(body, &event) != nil {
		return // the server was killed meanwhile
	}
	sum := sha256.Sum256(body)
	content := hex.EncodeToString(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got++
	switch before, ok := r.content[event.ID]; {
	case !ok:
		r.content[event.ID] = content
		r.order[event.Data.Model] = append(r.order[event.Data.Model], event.ID)
	case before != content:
		r.changed = append(r.changed, event.ID)
	}
}

func (r *hookReceiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got
}

// check compares what came with the events that the server lists.
func (r *hookReceiver) check(t *testing.T, m *machine) {
	t.Helper()
	events, err := list[struct{ ID, Model, Type string }](m, "/events?limit=200")
	if err != nil || len(events) == 0 {
		t.Fatalf("events = %d, %v", len(events), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	want := map[string][]string{}
	for _, e := range events {
		want[e.Model] = append(want[e.Model], e.ID)
		if r.content[e.ID] == "" {
			t.Errorf("event %s (%s of %s) was never delivered", e.ID, e.Type, e.Model)
		}
	}
	for model, ids := range want {
		if got := r.order[model]; strings.Join(got, " ") != strings.Join(ids, " ") {
			t.Errorf("events of %s came in the order\n%v, want\n%v", model, got, ids)
		}
	}
	if len(r.content) != len(events) {
		t.Errorf("%d events came, and the server lists %d", len(r.content), len(events))
	}
	if len(r.changed) > 0 {
		t.Errorf("events that came with two contents: %v", r.changed)
	}
	t.Logf("%d events, delivered in %d requests", len(events), r.got)
}
