package gitrepo

import (
	"bytes"
	"container/list"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// answers lets equal fetches of clients that have nothing yet, such as clones, share what one git answers. It
// goes into a file, from which each client reads at its own pace while it grows, and which is kept for the next
// one as long as the refs stay what they are.
type answers struct {
	dir     string // nobody else's
	most    int64  // bytes that are kept together
	mostOne int64  // bytes of one answer that is kept
	idle    time.Duration

	mu    sync.Mutex
	byKey map[answerKey]*answer // those that another client may join
	kept  *list.List            // of *answer: those that ended well, the last used first
	bytes int64                 // of kept
	files int                   // that were made
	made  int                   // answers to share that were begun
	disk  int64                 // bytes of all files, also of those that only their readers know
}

// maxAnswers is the number of answers that are kept.
const maxAnswers = 1000

// answerKey tells equal fetches from others.
type answerKey struct {
	path    string            // of the repository
	state   [sha256.Size]byte // of its refs
	request [sha256.Size]byte // see sharedFetch
	private string            // of one that nobody else asks for
}

// answer is what one git answers.
type answer struct {
	key  answerKey
	path string // of its file

	// Under answers.mu:
	readers int
	running bool
	stop    context.CancelFunc
	place   *list.Element // in answers.kept
	usedAt  time.Time
	timer   *time.Timer
	freed   int64 // bytes that are no longer on the disk

	mu      sync.Mutex
	size    int64              // bytes that can be read
	at      map[*os.File]int64 // how far each reader has come
	ended   bool               // it does not grow any more
	err     error              // why it is not whole
	full    bool               // the writer waits for a reader
	changed chan struct{}      // closed when any of the above changes; nil when nobody waits
}

// errSpool reports that an answer could not be written down, for which git is not to blame.
var errSpool = errors.New("keep an answer")

func newAnswers(cfg Config) (*answers, error) {
	dir := filepath.Join(cfg.RunDir, "answers")
	if err := os.RemoveAll(dir); err != nil { // what a crash left
		return nil, err
	}
	return &answers{
		dir: dir, most: cfg.MaxAnswerBytes, mostOne: cfg.MaxAnswerFileBytes, idle: cfg.AnswerIdle,
		byKey: map[answerKey]*answer{}, kept: list.New(),
	}, os.Mkdir(dir, 0o700)
}

// answerJob is how an answer is made.
type answerJob struct {
	// begin admits the job; done is called at its end.
	begin func() (ctx context.Context, done func(), err error)
	// fill writes the answer. Its context ends when the last reader left, too.
	fill func(ctx context.Context, w io.Writer) error
	// valid reports, after that, whether the key still stands for the same answer.
	valid func(ctx context.Context) bool
}

// get sends the answer of a key to w; job makes it where there is none. An errSpool without a byte sent leaves the
// work to the caller.
func (as *answers) get(ctx context.Context, fsys durable.FS, key answerKey, w io.Writer, job answerJob) (sent int64, err error) {
	a, f, err := as.join(fsys, key, job)
	if err != nil {
		return 0, err
	}
	defer as.leave(a, f)
	sent, err = a.sendTo(ctx, w, f)
	return sent, closeAnd(err, f)
}

// join finds or begins an answer and opens its file.
func (as *answers) join(fsys durable.FS, key answerKey, job answerJob) (*answer, *os.File, error) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a := as.byKey[key]; a != nil {
		f, err := os.Open(a.path)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errSpool, err)
		}
		a.readers++
		a.joined(f)
		if a.place != nil {
			as.kept.MoveToFront(a.place)
		}
		return a, f, nil
	}
	as.files++
	if key.private == "" {
		as.made++
	}
	a := &answer{key: key, path: filepath.Join(as.dir, strconv.Itoa(as.files)), readers: 1, running: true}
	file, err := fsys.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errSpool, err)
	}
	f, err := os.Open(a.path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errSpool, errors.Join(err, file.Close(), os.Remove(a.path)))
	}
	ctx, done, err := job.begin()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close(), file.Close(), os.Remove(a.path))
	}
	ctx, a.stop = context.WithCancel(ctx)
	as.byKey[key] = a
	a.joined(f)
	go func() {
		defer done()
		defer a.stop()
		err := job.fill(ctx, writerFunc(func(p []byte) (int, error) {
			n, err := file.Write(p)
			a.grow(n)
			most := as.room(int64(n))
			if err != nil {
				return n, fmt.Errorf("%w: %w", errSpool, err)
			}
			return n, as.bound(ctx, a, file, most)
		}))
		err = closeAnd(err, file)
		as.end(a, err, err == nil && job.valid(ctx))
	}()
	return a, f, nil
}

// maxCrowded is what an answer may take on the disk ahead of its readers when all together take too much.
const maxCrowded = 4 << 20

// room counts what was written and returns how much the answer may take on the disk. What is kept for others goes first.
func (as *answers) room(wrote int64) int64 {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.disk += wrote
	for e := as.kept.Back(); e != nil && as.disk > as.most; {
		a, before := e.Value.(*answer), e.Prev()
		if a.readers == 0 {
			as.forget(a)
		}
		e = before
	}
	if as.disk > as.most {
		return min(as.mostOne, maxCrowded)
	}
	return as.mostOne
}

// letGo counts the space of an answer that nobody reads or writes any more and that is not kept.
func (as *answers) letGo(a *answer) {
	if a.readers == 0 && !a.running && a.place == nil && as.byKey[a.key] != a {
		as.disk -= a.size - a.freed
		a.freed = a.size
	}
}

// bound keeps what an answer takes on the disk within most, as far as its readers allow: behind the slowest of them it is let go
// of, and it waits for the fastest.
func (as *answers) bound(ctx context.Context, a *answer, file *durable.File, most int64) error {
	a.mu.Lock()
	large := a.size > most // only we change it
	a.mu.Unlock()
	if !large {
		return nil
	}
	err := a.wait(ctx, func() bool {
		_, fastest := a.pace()
		a.full = a.size-fastest > most
		return !a.full
	})
	if err != nil || a.passed() < min(freeStep, most) {
		return err
	}
	// It will not be kept, and who comes from now on would miss its beginning.
	as.mu.Lock()
	if as.byKey[a.key] == a {
		as.forget(a)
	}
	n := max(0, a.passed()) // somebody may have come just before
	from := a.freed
	a.freed += n
	as.disk -= n
	as.mu.Unlock()
	if n == 0 {
		return nil
	}
	return punchHole(file.OS(), from, n)
}

// freeStep is how much is let go of at a time.
const freeStep = 16 << 20

// end is called when an answer is complete, or never will be.
func (as *answers) end(a *answer, err error, valid bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a.running = false
	if errors.Is(err, errSpool) { // a full disk needs what is kept more than we do
		for as.kept.Len() > 0 {
			as.forget(as.kept.Front().Value.(*answer))
		}
	}
	if as.byKey[a.key] == a {
		if err == nil && valid && a.size <= as.mostOne {
			as.keep(a)
		} else {
			as.forget(a)
		}
	}
	as.letGo(a)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended, a.err = true, err
	a.wake()
}

func (as *answers) keep(a *answer) {
	a.place = as.kept.PushFront(a)
	as.bytes += a.size
	a.usedAt = time.Now()
	a.timer = time.AfterFunc(as.idle, func() { as.expire(a) })
	for as.bytes > as.most || as.kept.Len() > maxAnswers {
		as.forget(as.kept.Back().Value.(*answer))
	}
}

// forget lets nobody join an answer any more. Those who read it do so to its end.
func (as *answers) forget(a *answer) {
	delete(as.byKey, a.key)
	_ = os.Remove(a.path) // else the next Open does
	if a.place == nil {
		return
	}
	as.kept.Remove(a.place)
	as.bytes -= a.size
	a.place = nil
	a.timer.Stop()
	as.letGo(a)
}

func (as *answers) expire(a *answer) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a.place == nil {
		return
	}
	if left := as.idle - time.Since(a.usedAt); left > 0 || a.readers > 0 {
		a.timer.Reset(max(left, as.idle/10))
		return
	}
	as.forget(a)
}

// leave is called by each reader at its end.
func (as *answers) leave(a *answer, f *os.File) {
	a.mu.Lock()
	delete(a.at, f)
	a.mu.Unlock()
	as.mu.Lock()
	defer as.mu.Unlock()
	a.readers--
	a.usedAt = time.Now()
	if a.readers > 0 {
		return
	}
	if !a.running {
		as.letGo(a)
		return
	}
	if as.byKey[a.key] == a {
		as.forget(a)
	}
	a.stop()
}

// drop forgets the answers of the repository at path, but for those of one state of its refs, if given.
func (as *answers) drop(path string, but *snapshot) {
	as.mu.Lock()
	defer as.mu.Unlock()
	for key, a := range as.byKey {
		if key.path == path && (but == nil || key.state != but.state) {
			as.forget(a)
		}
	}
}

// close must only be called when nobody reads or writes.
func (as *answers) close() error {
	as.mu.Lock()
	defer as.mu.Unlock()
	for as.kept.Len() > 0 {
		as.forget(as.kept.Front().Value.(*answer))
	}
	return os.RemoveAll(as.dir)
}

// grow is called when so many bytes more can be read.
func (a *answer) grow(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.size += int64(n)
	a.wake()
}

// joined is called for each reader, by its file.
func (a *answer) joined(f *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at = map[*os.File]int64{}
	}
	a.at[f] = 0
}

// readUpTo is called by each reader when it has sent so many bytes.
func (a *answer) readUpTo(f *os.File, sent int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at[f] = sent
	if a.full {
		a.wake()
	}
}

// passed is how much is on the disk that every reader is past.
func (a *answer) passed() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	slowest, _ := a.pace()
	return slowest - a.freed
}

// pace is how far the slowest and the fastest reader have come, under a.mu.
func (a *answer) pace() (slowest, fastest int64) {
	slowest = a.size
	for _, at := range a.at {
		slowest, fastest = min(slowest, at), max(fastest, at)
	}
	return slowest, fastest
}

// wake lets those who wait look again.
func (a *answer) wake() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// wait returns when ready holds, under a.mu, or ctx ends.
func (a *answer) wait(ctx context.Context, ready func() bool) error {
	for {
		a.mu.Lock()
		if ready() {
			a.mu.Unlock()
			return nil
		}
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writerFunc is a writer.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// sizedWriter is a writer that does better when it knows how much will be written.
type sizedWriter interface {
	io.ReaderFrom
	// ExpectBytes is told the length of the whole answer before its first byte.
	ExpectBytes(n int64)
}

// sendTo writes the answer from its file f to w, from the beginning to the end.
func (a *answer) sendTo(ctx context.Context, w io.Writer, f *os.File) (sent int64, err error) {
	var size int64
	var ended bool
	wait := func() error {
		return a.wait(ctx, func() bool {
			size, ended, err = a.size, a.ended, a.err
			return size > sent || ended
		})
	}
	if waitErr := wait(); waitErr != nil {
		return 0, waitErr
	}
	if ended && errors.Is(err, errSpool) {
		return 0, err
	}
	if sized, ok := w.(sizedWriter); ok && ended && err == nil && size > 0 {
		sized.ExpectBytes(size)
		sent, err = sized.ReadFrom(io.LimitReader(f, size))
		if err == nil && sent != size {
			err = io.ErrUnexpectedEOF
		}
		return sent, err
	}
	c := client{w: w}
	buf := getCopyBuffer()
	defer putCopyBuffer(buf)
	for {
		if sent == size && ended {
			return sent, err
		}
		for sent < size {
			if ctx.Err() != nil {
				return sent, context.Cause(ctx)
			}
			part := (*buf)[:min(int64(len(*buf)), size-sent)]
			if _, err := io.ReadFull(f, part); err != nil {
				return sent, fmt.Errorf("%w: %w", errSpool, err)
			}
			if c.write(part); c.err != nil {
				return sent, c.err
			}
			sent += int64(len(part))
			a.readUpTo(f, sent)
		}
		c.flush()
		if waitErr := wait(); waitErr != nil {
			return sent, waitErr
		}
	}
}

// sharedFetch is a fetch whose answer depends on nothing but the request and the refs: it is one of a client that
// has nothing, and will be the last.
type sharedFetch struct {
	version int
	wants   []oid
	sum     [sha256.Size]byte // of what the answer depends on
	all     bool              // everything that the wants reach, in a form that every git writes
	tags    bool              // with the annotated tags of what is sent
	quiet   bool              // without progress
}

// parseShareable reads a request, if its answer can be shared.
// Source: gitprotocol-v2(5), "fetch"; gitprotocol-pack(5), "Packfile Negotiation"; gitprotocol-capabilities(5).
func parseShareable(in []byte, version int) (req sharedFetch, ok bool) {
	lines, ok := fetchLines(in, version)
	if !ok {
		return sharedFetch{}, false
	}
	req.version, req.all = version, true
	can := map[string]bool{"side-band-64k": version == 2} // v2 always has it
	for i, line := range lines {
		word, value, _ := strings.Cut(line, " ")
		switch word {
		case "want":
			if version < 2 && i == 0 {
				var caps string
				value, caps, _ = strings.Cut(value, " ")
				for one := range strings.FieldsSeq(caps) {
					can[one] = true
				}
			}
			id, ok := parseOID(value)
			if !ok {
				return sharedFetch{}, false
			}
			req.wants = append(req.wants, id)
		case "deepen", "deepen-since", "deepen-not", "filter":
			req.all = false
		case "thin-pack", "no-progress", "include-tag", "ofs-delta", "deepen-relative":
			if version < 2 {
				return sharedFetch{}, false
			}
			can[line] = true
		default: // what the client has, for one
			return sharedFetch{}, false
		}
	}
	req.all = req.all && can["ofs-delta"] && can["side-band-64k"]
	req.tags, req.quiet = can["include-tag"], can["no-progress"]
	sum := sha256.New()
	fmt.Fprintln(sum, version)
	for _, line := range lines {
		// What the client calls itself changes nothing.
		words := slices.DeleteFunc(strings.Fields(line), func(word string) bool {
			return version < 2 && (strings.HasPrefix(word, "agent=") || strings.HasPrefix(word, "session-id="))
		})
		fmt.Fprintf(sum, "%q\n", words)
	}
	sum.Sum(req.sum[:0])
	return req, len(req.wants) > 0
}

// fetchLines are what a fetch asks for, if nothing else follows.
func fetchLines(in []byte, version int) (lines []string, ok bool) {
	const done = "done"
	if version == 2 {
		r, ok := parseRequest(in)
		last := len(r.args) - 1
		if !ok || r.command != "fetch" || last < 0 || r.args[last] != done {
			return nil, false
		}
		return r.args[:last], true
	}
	for {
		kind, line, rest, ok := nextLine(in)
		switch {
		case !ok || kind == delimLine:
			return nil, false
		case kind == flushLine:
			kind, line, rest, ok = nextLine(rest)
			return lines, ok && kind == textLine && line == done && len(rest) == 0
		}
		lines, in = append(lines, line), rest
	}
}

// wantsAll reports whether all wants are refs that the client was shown.
func (s *snapshot) wantsAll(wants []oid) bool {
	left := map[oid]struct{}{}
	for _, id := range wants {
		left[id] = struct{}{}
	}
	delete(left, s.head.id)
	for _, ref := range s.refs {
		if len(left) == 0 {
			break
		}
		delete(left, ref.id)
	}
	return len(left) == 0
}

// answerFetch answers a fetch by what git answers, or has answered to an equal one. The answer goes into a file on its way, so that a
// client that reads slowly takes no turn from others.
func (s *Store) answerFetch(ctx context.Context, r fetchRequest) error {
	repo := r.req.Repository
	var snap *snapshot
	begun := false
	defer func() {
		if !begun {
			r.close()
		}
	}()
	key := answerKey{path: repo.path, private: rand.Text()}
	job := answerJob{
		begin: func() (context.Context, func(), error) {
			ctx, done, err := s.begin(context.WithoutCancel(ctx), draining)
			if err != nil {
				return nil, nil, err
			}
			begun = true
			return ctx, func() { r.close(); done() }, nil
		},
		fill:  func(ctx context.Context, w io.Writer) error { return s.answerByGit(ctx, r, snap, w) },
		valid: func(context.Context) bool { return false },
	}
	if len(r.wants) > 0 {
		now, err := repo.snapshotOrGit(ctx)
		if err != nil {
			return err
		}
		if now != nil && now.wantsAll(r.wants) {
			snap = now
			s.answers.drop(repo.path, snap)
			key = answerKey{path: repo.path, state: snap.state, request: r.sum}
			job.valid = func(ctx context.Context) bool {
				now, err := repo.snapshotOrGit(ctx)
				return err == nil && now != nil && now.state == snap.state
			}
		}
	}
	sent, err := s.answers.get(ctx, s.fsys, key, r.req.Out, job)
	if sent > 0 || !errors.Is(err, errSpool) || r.file != nil {
		return err
	}
	s.log.WarnContext(ctx, "an answer to a fetch cannot be kept on its way", "model", repo.name, "err", err)
	return s.answerByGit(ctx, r, snap, flushed{&client{w: r.req.Out}})
}

// answerByGit writes the answer, once it is its turn.
func (s *Store) answerByGit(ctx context.Context, r fetchRequest, snap *snapshot, w io.Writer) error {
	release, err := s.waitForTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	repo := r.req.Repository
	if snap != nil {
		if answered, err := repo.answerWhole(ctx, snap, r.sharedFetch, w); answered {
			return err
		}
	}
	in := io.Reader(bytes.NewReader(r.text))
	if r.file != nil {
		in = io.NewSectionReader(r.file, 0, math.MaxInt64)
	}
	return s.uploadPack(ctx, repo, r.version, in, w)
}

// close closes the file of the request, if it is in one.
func (r fetchRequest) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
}
