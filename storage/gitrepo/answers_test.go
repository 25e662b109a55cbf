package gitrepo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// cloneOf is what a clone by protocol v2 gets.
func cloneOf(ctx context.Context, s *server, request string, out io.Writer) error {
	return s.store.UploadPack(ctx, gitrepo.UploadPack{Repository: s.repo(), GitProtocol: "version=2", In: strings.NewReader(request), Out: out})
}

// answerFiles are the files of answers that are kept.
func answerFiles(s *server) []string {
	return must(filepath.Glob(filepath.Join(s.store.Dir(), ".run/answers/*")))
}

func TestEqualFetchesShareOneAnswer(t *testing.T) {
	s := newServer(t)
	c := newClient(t)
	w := c.work(s, 3)
	w.commit("noise", noise(2<<20))
	w.git("tag", "-a", "-m", "one", "v1.0.0")
	w.git("push", "-q", "origin", "main", "v1.0.0")
	head, old := w.rev("HEAD"), w.rev("HEAD~1")
	made := s.store.AnswersMade

	for i, args := range [][]string{{}, {"--depth=1"}, {"--filter=blob:none", "--no-checkout"}, {"-c", "protocol.version=0"}} {
		for n := range 3 {
			dir := fmt.Sprintf("clone-%d-%d", i, n)
			c.git(append(append([]string{"clone", "-q"}, args...), s.url(), dir)...)
			if got := c.in(dir).rev("HEAD"); got != head {
				t.Errorf("clone %v, the %d. time, is at %s, want %s", args, n, got, head)
			}
		}
		if got := made(); got != i+1 {
			t.Errorf("after 3 clones %v: %d answers made, want %d", args, got, i+1)
		}
	}
	c.in("clone-0-2").git("fsck", "--strict")

	before := made()
	for name, request := range map[string]string{
		"what the client has": strings.Replace(fetchRequest(head), pkt("done\n"), pkt("have "+string(old)+"\n")+pkt("done\n"), 1),
		"no end":              strings.Replace(fetchRequest(head), pkt("done\n"), "", 1),
		"no ref":              fetchRequest(old),
		"a shallow client":    strings.Replace(fetchRequest(head), pkt("done\n"), pkt("shallow "+string(old)+"\n")+pkt("done\n"), 1),
		"more behind it":      fetchRequest(head) + "0000",
	} {
		if err := cloneOf(t.Context(), s, request, io.Discard); err != nil {
			t.Errorf("fetch with %s = %v", name, err)
		}
		if got := made(); got != before {
			t.Errorf("the answer to a fetch with %s is shared", name)
		}
	}

	// Other refs, another answer, and none of the old ones is kept.
	w.commit("f", "x")
	w.git("push", "-q", "origin", "main")
	if err := cloneOf(t.Context(), s, fetchRequest(w.rev("HEAD")), io.Discard); err != nil || made() != before+1 {
		t.Errorf("clone after a push = %v, %d answers made, want %d", err, made(), before+1)
	}
	eventually(t, "the answers from before the push are gone", func() bool { return len(answerFiles(s)) == 1 })
	if err := s.store.Remove(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	if left := answerFiles(s); len(left) > 0 {
		t.Errorf("answers of a removed repository: %q", left)
	}
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	tb.Errorf("not within 2 s: %s", what)
}

// Clients at different paces get the same, from one git; and when all of them went away, git does too.
func TestAnswerWhileItGrows(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxAnswerFileBytes = 1 << 20 })
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(8<<20))
	w.git("push", "-q", "origin", "main")
	request := fetchRequest(w.rev("HEAD"))
	slow := &slowClient{first: make(chan struct{}), leave: make(chan struct{})}
	gone, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- cloneOf(gone, s, request, slow) }()
	<-slow.first

	var all sync.WaitGroup
	outs := make([]bytes.Buffer, 8)
	for i := range outs {
		all.Go(func() {
			if err := cloneOf(t.Context(), s, request, &outs[i]); err != nil {
				t.Errorf("clone %d = %v", i, err)
			}
		})
	}
	all.Wait()
	for i := range outs {
		if !bytes.Equal(outs[i].Bytes(), outs[0].Bytes()) || outs[i].Len() < 8<<20 {
			t.Errorf("clone %d is another than clone 0: %d and %d bytes", i, outs[i].Len(), outs[0].Len())
		}
	}
	if got := s.store.AnswersMade(); got != 1 {
		t.Errorf("answers made = %d, want 1", got)
	}
	leave()
	close(slow.leave)
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("clone of the client that went away = %v, want nil or Canceled", err)
	}
	eventually(t, "an answer that is too long to be kept is gone", func() bool { return len(answerFiles(s)) == 0 })

	slow = &slowClient{first: make(chan struct{}), leave: make(chan struct{})}
	gone, leave = context.WithCancel(t.Context())
	go func() { ended <- cloneOf(gone, s, request, slow) }()
	<-slow.first
	leave()
	close(slow.leave)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("clone of the only client, which went away = %v, want Canceled", err)
	}
	if left := processesBelow(s.store.Dir()); len(left) > 0 {
		t.Errorf("after the last client went away: %q", left)
	}
	eventually(t, "the answer is gone with its last reader", func() bool { return len(answerFiles(s)) == 0 })
}

// An answer of which a part could not be written down reaches nobody as a whole one.
func TestAnswerOnAFullDisk(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(1<<20))
	w.git("push", "-q", "origin", "main")
	request := strings.Replace(fetchRequest(w.rev("HEAD")), "0001", "0001"+pkt("no-progress"), 1)
	var whole bytes.Buffer
	if err := cloneOf(t.Context(), s, request, &whole); err != nil {
		t.Fatal(err)
	}
	for _, op := range []durable.Op{durable.OpCreate, durable.OpWrite} {
		for _, passes := range []int{0, 3} {
			if op == durable.OpCreate && passes > 0 {
				continue
			}
			if err := s.repo().SetRef(t.Context(), fmt.Sprintf("refs/x/%s-%d", op, passes), w.rev("HEAD")); err != nil {
				t.Fatal(err)
			}
			first := make(chan struct{})
			var mu sync.Mutex
			n := 0
			s.store.SetFS(durable.FS{Hook: func(got durable.Op, path string, do func() error) error {
				mu.Lock()
				defer mu.Unlock()
				if got != op || !strings.Contains(path, "answers") {
					return do()
				}
				if n++; n <= passes {
					return do()
				}
				if passes > 0 {
					<-first // what was written down has reached the client
				}
				return syscall.ENOSPC
			}})
			var out bytes.Buffer
			err := cloneOf(t.Context(), s, request, writerFunc(func(p []byte) (int, error) {
				if passes > 0 {
					select {
					case <-first:
					default:
						close(first)
					}
				}
				return out.Write(p)
			}))
			switch {
			case passes == 0 && (err != nil || out.Len() < 1<<20):
				t.Errorf("%s fails at once: clone = %v and %d bytes, want %d from a git of its own", op, err, out.Len(), whole.Len())
			case passes > 0 && (!errors.Is(err, syscall.ENOSPC) || out.Len() >= 1<<20):
				t.Errorf("%s fails later: clone = %v and %d of %d bytes, want ENOSPC and a part", op, err, out.Len(), whole.Len())
			}
			s.store.SetFS(durable.FS{})
			out.Reset()
			if err := cloneOf(t.Context(), s, request, &out); err != nil || out.Len() < 1<<20 {
				t.Errorf("clone after %s failed = %v and %d bytes, want %d", op, err, out.Len(), whole.Len())
			}
		}
	}
}

// sized is a client that wants to know the length first.
type sized struct {
	http.ResponseWriter
}

func (w sized) ExpectBytes(n int64) { w.Header().Set("Content-Length", fmt.Sprint(n)) }

func (w sized) ReadFrom(r io.Reader) (int64, error) {
	return w.ResponseWriter.(io.ReaderFrom).ReadFrom(r)
}

func TestFinishedAnswerHasALength(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(1<<20))
	w.git("push", "-q", "origin", "main")
	request := fetchRequest(w.rev("HEAD"))
	var whole bytes.Buffer
	if err := cloneOf(t.Context(), s, request, &whole); err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := cloneOf(r.Context(), s, request, sized{w}); err != nil {
			t.Errorf("clone = %v", err)
		}
	}))
	defer h.Close()
	resp := must(http.Get(h.URL))
	body := must(io.ReadAll(resp.Body))
	if resp.ContentLength != int64(whole.Len()) || !bytes.Equal(body, whole.Bytes()) {
		t.Errorf("a kept answer has length %d and %d bytes, want %d", resp.ContentLength, len(body), whole.Len())
	}
}

func TestAnswersAreBounded(t *testing.T) {
	dir := t.TempDir()
	s := &server{store: openStore(t, dir, func(c *gitrepo.Config) { c.MaxAnswerBytes, c.AnswerIdle = 5<<20, 20*time.Millisecond })}
	s.start(t)
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(2<<20))
	w.git("push", "-q", "origin", "main")
	request := func(i int) string {
		want := pkt("want " + string(w.rev("HEAD")) + "\n")
		return strings.Replace(fetchRequest(w.rev("HEAD")), want, strings.Repeat(want, i+1), 1)
	}
	for i := range 5 {
		if err := cloneOf(t.Context(), s, request(i), io.Discard); err != nil {
			t.Fatal(err)
		}
		if n := len(answerFiles(s)); n > 3 {
			t.Errorf("%d answers of 2 MiB are kept, want at most 5 MiB and one that is being made", n)
		}
	}
	eventually(t, "answers that nobody asks for are gone", func() bool { return len(answerFiles(s)) == 0 })
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, ".run", "left"), "x")
	if err := os.MkdirAll(filepath.Join(dir, ".run/answers"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, ".run/answers/7"), "of a server that was killed")
	s.store = openStore(t, dir)
	if left := answerFiles(s); len(left) > 0 {
		t.Errorf("Open left the answers %q", left)
	}
}

// What a client calls itself makes no other answer.
func TestClientsOfAllNamesShareAnAnswer(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	for i := range 3 {
		for _, protocol := range []string{"0", "2"} {
			newClient(t).git("-c", "http.userAgent="+fmt.Sprint("client/", i), "-c", "protocol.version="+protocol, "clone", "-q", s.url(), "clone")
			request := strings.Replace(fetchRequest(w.rev("HEAD")), "0001", pkt(fmt.Sprint("agent=git/", i))+pkt(fmt.Sprint("server-option=", i))+"0001", 1)
			if err := cloneOf(t.Context(), s, request, io.Discard); err != nil {
				t.Error(err)
			}
		}
	}
	if got := s.store.AnswersMade(); got != 3 { // v0, v2, and one without what git can do
		t.Errorf("answers made = %d, want 3", got)
	}
}

// However many clients read nothing of however many answers, these take a bounded part of the disk; and those who fetch meanwhile get
// what they want.
func TestClientsThatReadNothing(t *testing.T) {
	const most = 8 << 20
	s := newServer(t, func(c *gitrepo.Config) { c.MaxAnswerBytes, c.MaxAnswerFileBytes, c.MaxFetches = most, most, 20 })
	w := newClient(t).work(s, 1)
	for i := range 6 {
		w.commit(fmt.Sprint("noise", i), fresh(1<<20))
	}
	w.git("push", "-q", "origin", "main")
	gone, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	leaving := make(chan struct{})
	for i := range 12 {
		slow := &slowClient{first: make(chan struct{}), leave: leaving}
		request := fetchRequest(w.rev("HEAD"))
		if i%2 == 1 { // one that shares with nobody
			request = strings.Replace(request, pkt("done\n"), pkt("have "+string(w.rev("HEAD~6"))+"\n")+pkt("done\n"), 1)
		} else {
			want := pkt("want " + string(w.rev("HEAD")) + "\n")
			request = strings.Replace(request, want, strings.Repeat(want, i+1), 1)
		}
		ended := make(chan error, 1)
		all.Go(func() { ended <- cloneOf(gone, s, request, slow) })
		select {
		case <-slow.first:
		case err := <-ended:
			leave()
			close(leaving)
			t.Fatalf("clone %d = %v before it got anything", i, err)
		}
	}
	if got := s.store.AnswerBytes(); got > 12*(5<<20) || got < most {
		t.Errorf("12 clients that read nothing of 6 MiB take %d bytes of the disk, want some %d, and 5 MiB for each above that", got, most)
	}
	var out bytes.Buffer
	if err := cloneOf(t.Context(), s, fetchRequest(w.rev("HEAD")), &out); err != nil || out.Len() < 6<<20 {
		t.Errorf("clone beside them = %v and %d bytes", err, out.Len())
	}
	leave()
	close(leaving)
	all.Wait()
	eventually(t, "their answers are gone", func() bool {
		s.store.ForgetAnswers()
		return s.store.AnswerBytes() == 0
	})
}

// A failure is not kept: once its cause is gone, so is it.
func TestFailedAnswerIsNotKept(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 2)
	w.git("push", "-q", "origin", "main")
	request := fetchRequest(w.rev("HEAD"))
	bad := strings.Replace(request, pkt("done\n"), pkt("deepen none\n")+pkt("done\n"), 1)
	for range 2 {
		if err := cloneOf(t.Context(), s, bad, io.Discard); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("a request that git does not take = %v, want ErrInvalid", err)
		}
	}
	if got := s.store.AnswersMade(); got != 2 {
		t.Errorf("two requests that git does not take: %d answers made, want 2", got)
	}
	eventually(t, "an answer that failed is gone", func() bool { return len(answerFiles(s)) == 0 })
}
