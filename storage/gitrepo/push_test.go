package gitrepo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

func TestPush(t *testing.T) {
	for _, version := range []string{"0", "1", "2"} {
		t.Run("protocol v"+version, func(t *testing.T) {
			s := newServer(t)
			var checked, finished []registry.RefUpdate
			s.check = func(_ context.Context, p *gitrepo.Push) error {
				checked = p.Updates
				return nil
			}
			s.finish = func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
				finished = updates
				return []string{"herdbook: recorded\twith \x1b[31mcolour"}, s.repo().Sync(ctx, updates)
			}
			w := newClient(t).work(s, 3)
			w.git("config", "protocol.version", version)
			first, second, third := w.rev("HEAD~2"), w.rev("HEAD~1"), w.rev("HEAD")

			steps := []struct {
				name string
				args []string
				want []registry.RefUpdate
			}{
				{"create", []string{"origin", "HEAD~1:refs/heads/main"}, []registry.RefUpdate{{Ref: "refs/heads/main", New: second}}},
				{"update", []string{"origin", "HEAD:refs/heads/main"}, []registry.RefUpdate{{Ref: "refs/heads/main", Old: second, New: third}}},
				{"force", []string{"--force", "origin", "HEAD~2:refs/heads/main"}, []registry.RefUpdate{{Ref: "refs/heads/main", Old: third, New: first}}},
				{
					"many, atomically",
					[]string{"--atomic", "origin", "HEAD:refs/heads/main", "HEAD:refs/heads/a/b", "HEAD:refs/tags/v1.0.0"},
					[]registry.RefUpdate{
						{Ref: "refs/heads/a/b", New: third},
						{Ref: "refs/heads/main", Old: first, New: third},
						{Ref: "refs/tags/v1.0.0", New: third},
					},
				},
				{"delete", []string{"origin", ":refs/heads/a/b"}, []registry.RefUpdate{{Ref: "refs/heads/a/b", Old: third}}},
			}
			for _, step := range steps {
				checked, finished = nil, nil
				out, err := w.try(append([]string{"push"}, step.args...)...)
				if err != nil {
					t.Fatalf("%s: push = %v\n%s", step.name, err, out)
				}
				contains(t, step.name+": what the user reads", out, "remote: herdbook: recorded\twith [31mcolour")
				byRef := func(a, b registry.RefUpdate) int { return strings.Compare(a.Ref, b.Ref) }
				slices.SortFunc(checked, byRef)
				slices.SortFunc(finished, byRef)
				if diff := cmp.Diff(step.want, checked); diff != "" {
					t.Errorf("%s: updates that were checked: (-want +got)\n%s", step.name, diff)
				}
				if diff := cmp.Diff(step.want, finished); diff != "" {
					t.Errorf("%s: updates that were finished: (-want +got)\n%s", step.name, diff)
				}
			}
			want := map[string]registry.ObjectID{"refs/heads/main": third, "refs/tags/v1.0.0": third}
			if diff := cmp.Diff(want, refs(t, s.repo())); diff != "" {
				t.Errorf("refs after all pushes: (-want +got)\n%s", diff)
			}
		})
	}
}

// Almost every second push of a real client brings deltas against objects that only the server has.
func TestPushThinPack(t *testing.T) {
	s := newServer(t)
	c := newClient(t)
	w := c.work(s, 1)
	big := strings.Repeat("one line of weights among many\n", 2000)
	w.commit("weights.txt", big)
	w.git("push", "-q", "origin", "main")
	w.commit("weights.txt", big+"and one more\n")
	w.git("push", "-q", "--thin", "origin", "main")
	c.git("clone", "-q", s.url(), "again")
	if got, want := c.in("again").rev("HEAD:weights.txt"), w.rev("HEAD:weights.txt"); got != want {
		t.Errorf("blob after a thin push = %s, want %s", got, want)
	}
	fsck := exec.Command("git", "fsck", "--full", "--strict")
	fsck.Dir = repoDir(s)
	if out, err := fsck.CombinedOutput(); err != nil {
		t.Errorf("fsck of the server's repository = %v\n%s", err, out)
	}
}

func repoDir(s *server) string { return filepath.Join(s.store.Dir(), "acme", "fraud.git") }

func TestPushOptions(t *testing.T) {
	s := newServer(t)
	var got []string
	s.check = func(_ context.Context, p *gitrepo.Push) error {
		got = p.Options
		return nil
	}
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "-o", "promote=production", "-o", "", "-o", "reason=a b c", "origin", "main")
	if diff := cmp.Diff([]string{"promote=production", "", "reason=a b c"}, got); diff != "" {
		t.Errorf("push options: (-want +got)\n%s", diff)
	}
}

func TestRefusal(t *testing.T) {
	tests := []struct {
		name  string
		check func(context.Context, *gitrepo.Push) error
		want  []string
		not   string
	}{
		{
			"refused",
			func(_ context.Context, p *gitrepo.Push) error {
				if err := p.Tell("herdbook: looking at 1 file"); err != nil {
					t.Error(err)
				}
				return fmt.Errorf("wrapped: %w", &gitrepo.Refusal{Lines: []string{"herdbook: v1.0.0 is published", "herdbook: push another\nversion"}})
			},
			[]string{
				"remote: herdbook: looking at 1 file", "remote: herdbook: v1.0.0 is published", "remote: herdbook: push another version",
				"main -> main (pre-receive hook declined)", "v1.0.0 -> v1.0.0 (pre-receive hook declined)",
			},
			"wrapped",
		},
		{
			"another error",
			func(context.Context, *gitrepo.Push) error { return errors.New("the disk is on fire") },
			[]string{"remote: herdbook: internal error; the push was refused (push push-1)"},
			"fire",
		},
		{
			"panic",
			func(context.Context, *gitrepo.Push) error { panic("the disk is on fire") },
			[]string{"remote: herdbook: internal error; the push was refused (push push-1)"},
			"fire",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.check = test.check
			s.finish = func(context.Context, []registry.RefUpdate) ([]string, error) {
				t.Error("Finish was called although nothing moved")
				return nil, nil
			}
			w := newClient(t).work(s, 1)
			w.git("tag", "v1.0.0")
			out := w.fails("push", "origin", "main", "v1.0.0")
			contains(t, "what the user reads", out, test.want...)
			if strings.Contains(out, test.not) {
				t.Errorf("the user reads %q:\n%s", test.not, out)
			}
			if got := refs(t, s.repo()); len(got) != 0 {
				t.Errorf("refs after a refused push = %v, want none", got)
			}
			noLeftovers(t, s.store.Dir())
		})
	}
}

// recorder keeps what is written to a client.
type recorder struct {
	http.ResponseWriter
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf.Write(p)
	return r.ResponseWriter.Write(p)
}

func (r *recorder) Flush() { r.ResponseWriter.(http.Flusher).Flush() }

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

func TestReportWaitsForFinish(t *testing.T) {
	s := newServer(t)
	s.store.SetKeepAlive(5 * time.Millisecond)
	var rec *recorder
	s.wrap = func(w io.Writer) io.Writer {
		rec = &recorder{ResponseWriter: w.(http.ResponseWriter)}
		return rec
	}
	entered, leave := make(chan struct{}), make(chan struct{})
	s.finish = func(context.Context, []registry.RefUpdate) ([]string, error) {
		close(entered)
		<-leave
		return []string{"herdbook: finished"}, nil
	}
	w := newClient(t).work(s, 1)
	push := w.command(t.Context(), "push", "origin", "main")
	var out bytes.Buffer
	push.Stderr = &out
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	<-entered
	if got := refs(t, s.repo()); len(got) != 1 {
		t.Errorf("refs while Finish runs = %v, want main", got)
	}
	for strings.Count(rec.String(), "0005\x02") < 3 {
		time.Sleep(time.Millisecond)
	}
	if sent := rec.String(); strings.Contains(sent, "unpack") {
		t.Errorf("the report was sent before Finish returned: %q", sent)
	}
	close(leave)
	if err := push.Wait(); err != nil {
		t.Errorf("push = %v\n%s", err, out.String())
	}
	sent := rec.String()
	if lines, report := strings.Index(sent, "herdbook: finished\n"), strings.Index(sent, "unpack ok"); lines < 0 || report < lines {
		t.Errorf("the lines of Finish do not come before the report: %q", sent)
	}
	if !strings.HasSuffix(sent, "00000000") { // of the report, and of the band that holds it
		t.Errorf("the answer ends in %q, want two flushes", sent[max(0, len(sent)-8):])
	}
}

func TestFinishFails(t *testing.T) {
	for _, how := range []string{"error", "panic"} {
		t.Run(how, func(t *testing.T) {
			s := newServer(t)
			s.finish = func(context.Context, []registry.RefUpdate) ([]string, error) {
				if how == "panic" {
					panic("a bug")
				}
				return []string{"not shown"}, errors.New("the journal is full")
			}
			w := newClient(t).work(s, 1)
			out := w.fails("push", "origin", "main")
			contains(t, "what the user reads", out, "herdbook: the push was received but could not be recorded (push push-1); push again")
			for _, not := range []string{"journal", "bug", "not shown", "new branch"} {
				if strings.Contains(out, not) {
					t.Errorf("the user reads %q:\n%s", not, out)
				}
			}
		})
	}
}

// rawPush sends a push that no real client would, and returns the answer.
func rawPush(t *testing.T, s *server, body io.Reader) string {
	t.Helper()
	resp, err := http.Post(s.url()+"/git-receive-pack", "application/x-git-receive-pack-request", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("answer to a raw push: %v after %q", err, answer)
	}
	return string(answer)
}

// noise is n bytes that nothing can compress.
func noise(n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return string(b)
}

func pkt(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

const zero = "0000000000000000000000000000000000000000"

// packOf is a pack of exactly these objects.
func packOf(t *testing.T, c *client, ids ...registry.ObjectID) string {
	t.Helper()
	cmd := c.command(t.Context(), "pack-objects", "--stdout", "-q")
	var list strings.Builder
	for _, id := range ids {
		fmt.Fprintln(&list, id)
	}
	cmd.Stdin = strings.NewReader(list.String())
	return string(must(cmd.Output()))
}

func TestClientWithoutSideBand(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 2)
	push := func(old, ref string) string {
		command := pkt(fmt.Sprintf("%s %s %s\x00report-status delete-refs", old, w.rev("HEAD"), ref))
		return rawPush(t, s, strings.NewReader(command+"0000"+packOf(t, w, w.rev("HEAD"), w.rev("HEAD^{tree}"), w.rev("HEAD:README.md"),
			w.rev("HEAD~1"), w.rev("HEAD~1^{tree}"), w.rev("HEAD~1:README.md"))))
	}
	if got, want := push(zero, "refs/heads/main"), pkt("unpack ok\n")+pkt("ok refs/heads/main\n")+"0000"; got != want {
		t.Errorf("report = %q, want %q", got, want)
	}
	s.finish = func(context.Context, []registry.RefUpdate) ([]string, error) { return nil, errors.New("no") }
	want := pkt("unpack herdbook: the push was received but could not be recorded (push push-2); push again\n") +
		pkt("ng refs/heads/b not recorded\n") + "0000"
	if got := push(zero, "refs/heads/b"); got != want {
		t.Errorf("report after Finish failed = %q, want %q", got, want)
	}
}

// A client need not ask for a report. What moved is known all the same.
func TestClientWithoutReport(t *testing.T) {
	s := newServer(t)
	var finished []registry.RefUpdate
	s.finish = func(_ context.Context, updates []registry.RefUpdate) ([]string, error) {
		finished = updates
		return nil, nil
	}
	w := newClient(t).work(s, 1)
	head := w.rev("HEAD")
	w.git("push", "-q", "origin", "main")
	finished = nil
	body := pkt(fmt.Sprintf("%s %s refs/heads/b\x00delete-refs", zero, head)) + pkt(fmt.Sprintf("%s %s refs/heads/main", zero, head)) +
		"0000" + packOf(t, w)
	if got := rawPush(t, s, strings.NewReader(body)); got != "" {
		t.Errorf("answer = %q, want nothing", got)
	}
	// main exists and does not move, which looks the same as if it had just been created.
	want := []registry.RefUpdate{{Ref: "refs/heads/b", New: head}, {Ref: "refs/heads/main", New: head}}
	if diff := cmp.Diff(want, finished); diff != "" {
		t.Errorf("updates that were finished: (-want +got)\n%s", diff)
	}
}

func TestBadRequest(t *testing.T) {
	s := newServer(t)
	s.ended = make(chan string, 1)
	for _, body := range []string{"hello", "00", "0010rubbish rubb0000", "fffe" + strings.Repeat("x", 65530), ""} {
		resp, err := http.Post(s.url()+"/git-receive-pack", "", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		<-s.ended
		if body != "" && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("status of a push of %.20q = %d, want %d", body, resp.StatusCode, http.StatusBadRequest)
		}
	}
}

// Exactly one of several pushes that race for a ref wins, and each client knows which.
func TestRacingPushes(t *testing.T) {
	s := newServer(t)
	var finished sync.Map
	s.finish = func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
		for _, u := range updates {
			finished.Store(u.New, true)
		}
		return nil, s.repo().Sync(ctx, updates)
	}
	c := newClient(t)
	w := c.work(s, 1)
	w.git("push", "-q", "origin", "main")

	const racers = 6
	var start, checking, end sync.WaitGroup
	start.Add(1)
	checking.Add(racers)
	// None moves its ref before all of them could.
	s.check = func(context.Context, *gitrepo.Push) error {
		checking.Done()
		checking.Wait()
		return nil
	}
	won := make([]bool, racers)
	outs := make([]string, racers)
	heads := make([]registry.ObjectID, racers)
	for i := range racers {
		dir := fmt.Sprintf("racer%d", i)
		c.git("clone", "-q", s.url(), dir)
		r := c.in(dir)
		heads[i] = r.commit("mine", dir)
		end.Go(func() {
			start.Wait()
			out, err := r.try("push", "origin", "main")
			won[i], outs[i] = err == nil, out
		})
	}
	start.Done()
	end.Wait()
	main := refs(t, s.repo())["refs/heads/main"]
	winners := 0
	for i := range racers {
		_, recorded := finished.Load(heads[i])
		if won[i] {
			winners++
		}
		if won[i] != (heads[i] == main) || won[i] != recorded {
			t.Errorf("racer %d: told that it won = %v, main is its commit = %v, finished = %v\n%s", i, won[i], heads[i] == main, recorded, outs[i])
		}
	}
	if winners != 1 {
		t.Errorf("%d of %d racing pushes were told that they won, want 1", winners, racers)
	}
}

// Of several refs of one push some may fail in git itself. Those that moved are finished, no others.
func TestPartialPush(t *testing.T) {
	s := newServer(t)
	var finished []registry.RefUpdate
	s.finish = func(_ context.Context, updates []registry.RefUpdate) ([]string, error) {
		finished = updates
		return nil, nil
	}
	w := newClient(t).work(s, 1)
	head := w.rev("HEAD")
	out := w.fails("push", "origin", "main", "main:refs/heads/main/below")
	contains(t, "what the user reads", out, "main -> main/below")
	if want := []registry.RefUpdate{{Ref: "refs/heads/main", New: head}}; !cmp.Equal(finished, want) {
		t.Errorf("finished = %v, want %v", finished, want)
	}
	finished = nil
	w.fails("push", "--atomic", "origin", "main:refs/heads/x", "main:refs/heads/x/y")
	if finished != nil {
		t.Errorf("finished after an atomic push that failed = %v, want nothing", finished)
	}
	if _, ok := refs(t, s.repo())["refs/heads/x"]; ok {
		t.Error("an atomic push moved one of its refs")
	}
}

func TestPushCanRead(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.commit("old.txt", "old")
	w.git("push", "-q", "origin", "main")
	base := w.rev("HEAD")

	w.write("a/pointer", "version https://git-lfs.github.com/spec/v1\n")
	w.write("b.bin", strings.Repeat("b", 5000))
	w.write("empty", "")
	w.commit("odd name \"x\" ü", "odd")
	w.git("tag", "-a", "-m", "one", "v1.0.0")
	w.git("tag", "-a", "-m", "tag of a tag", "nested", "v1.0.0")
	w.git("tag", "file", w.git("hash-object", "-w", w.dir+"/../.gitconfig"))
	head, tag := w.rev("HEAD"), w.rev("nested")

	type blob struct {
		Path string
		Size int64
	}
	var got []blob
	contents := map[string]string{}
	s.check = func(ctx context.Context, p *gitrepo.Push) error {
		var ids []registry.ObjectID
		byID := map[registry.ObjectID]string{}
		for b, err := range p.NewBlobs(ctx) {
			if err != nil {
				return err
			}
			got = append(got, blob{b.Path, b.Size})
			byID[b.ID] = b.Path
			if b.Size < 1024 {
				ids = append(ids, b.ID)
			}
			// Others can be read meanwhile.
			if _, err := p.Peel(ctx, head); err != nil {
				t.Errorf("Peel between two blobs: %v", err)
			}
		}
		err := p.ReadBlobs(ctx, ids, 1023, func(id registry.ObjectID, data []byte) error {
			contents[byID[id]] = string(data)
			return nil
		})
		if err != nil {
			t.Errorf("ReadBlobs: %v", err)
		}
		if commit, err := p.Peel(ctx, tag); err != nil || commit != head {
			t.Errorf("Peel(tag of a tag) = %s, %v, want %s", commit, err, head)
		}
		for _, id := range []registry.ObjectID{w.rev("HEAD^{tree}"), "1234567890123456789012345678901234567890"} {
			if _, err := p.Peel(ctx, id); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("Peel(%s) = %v, want ErrNotFound", id, err)
			}
		}
		for _, test := range []struct {
			a, b registry.ObjectID
			want bool
		}{{base, head, true}, {head, base, false}, {head, head, true}} {
			if got, err := p.IsAncestor(ctx, test.a, test.b); err != nil || got != test.want {
				t.Errorf("IsAncestor(%s, %s) = %v, %v, want %v", test.a, test.b, got, err, test.want)
			}
		}
		if data, err := p.ReadFile(ctx, head, "a/pointer", 100); err != nil || !strings.HasPrefix(string(data), "version ") {
			t.Errorf("ReadFile(a/pointer) = %q, %v", data, err)
		}
		for path, want := range map[string]error{
			"absent": registry.ErrNotFound, "a": registry.ErrNotFound, "": registry.ErrNotFound, "../x": registry.ErrNotFound,
			"a\nb": registry.ErrNotFound, "./a/pointer": registry.ErrNotFound, "b.bin": registry.ErrTooLarge,
		} {
			if _, err := p.ReadFile(ctx, head, path, 100); !errors.Is(err, want) {
				t.Errorf("ReadFile(%q) = %v, want %v", path, err, want)
			}
		}
		if _, err := p.Peel(ctx, head); err != nil {
			t.Errorf("Peel after the reader broke: %v", err)
		}
		stop := errors.New("stop")
		if err := p.ReadBlobs(ctx, ids, 1023, func(registry.ObjectID, []byte) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("ReadBlobs with a function that fails = %v", err)
		}
		for range p.NewBlobs(ctx) {
			break
		}
		return nil
	}
	w.git("push", "-q", "origin", "main", "v1.0.0", "nested", "file")
	slices.SortFunc(got, func(a, b blob) int { return strings.Compare(a.Path, b.Path) })
	want := []blob{{"", 104}, {"a/pointer", 43}, {"b.bin", 5000}, {"empty", 0}, {"odd name \"x\" ü", 3}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("new blobs: (-want +got)\n%s", diff)
	}
	if contents["odd name \"x\" ü"] != "odd" || len(contents) != 4 {
		t.Errorf("contents = %q", contents)
	}

	// What is there already is not new, and a deletion brings nothing.
	s.check = func(ctx context.Context, p *gitrepo.Push) error {
		for b, err := range p.NewBlobs(ctx) {
			t.Errorf("new blob of a push that brings none: %v, %v", b, err)
		}
		return nil
	}
	for _, args := range [][]string{{"origin", "main:refs/heads/again"}, {"origin", ":refs/heads/again"}} {
		w.git(append([]string{"push", "-q"}, args...)...)
	}
}

func TestPushLimits(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.MaxPushObjects, c.MaxPushRefs, c.MaxPushBytes = 3, 2, 20_000 })
	s.check = func(ctx context.Context, p *gitrepo.Push) error {
		for _, err := range p.NewBlobs(ctx) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	w := newClient(t).work(s, 3)
	w.git("push", "-q", "origin", "main")
	contains(t, "push of many refs", w.fails("push", "origin", "main:refs/heads/a", "main:refs/heads/b", "main:refs/heads/c"), "more than 2 refs")
	for i := range 4 {
		w.write(fmt.Sprintf("f%d", i), fmt.Sprint(i))
	}
	w.commit("f", "")
	contains(t, "push of many files", w.fails("push", "origin", "main"), "more than 3 files")
	w.git("reset", "-q", "--hard", "HEAD~1")
	w.commit("noise", noise(40_000))
	contains(t, "push of a large pack", w.fails("push", "origin", "main"), "remote: fatal: pack exceeds maximum allowed size")
	if got := refs(t, s.repo()); len(got) != 1 {
		t.Errorf("refs = %v, want only main", got)
	}
	noLeftovers(t, s.store.Dir())
}

func TestShallowPush(t *testing.T) {
	s := newServer(t)
	s.check = func(ctx context.Context, p *gitrepo.Push) error {
		for _, err := range p.NewBlobs(ctx) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	c := newClient(t)
	w := c.work(s, 3)
	w.git("push", "-q", "origin", "main")
	c.git("clone", "-q", "--depth=1", s.url(), "shallow")
	shallow := c.in("shallow")
	head := shallow.commit("more", "x")
	shallow.git("push", "-q", "origin", "main")
	if got := refs(t, s.repo())["refs/heads/main"]; got != head {
		t.Errorf("main after a push from a shallow clone = %s, want %s", got, head)
	}
	// To where its history is not, it cannot go.
	out := shallow.fails("push", s.URL+"/acme/other.git", "main")
	contains(t, "push of a shallow clone into an empty repository", out, "git fetch --unshallow", "shallow update not allowed")
}

func TestHostilePushes(t *testing.T) {
	s := newServer(t)
	c := newClient(t)
	w := c.work(s, 1)
	w.git("push", "-q", "origin", "main")
	blob := w.rev("HEAD:README.md")
	object := func(kind, content string) registry.ObjectID {
		cmd := w.command(t.Context(), "hash-object", "-t", kind, "-w", "--literally", "--stdin")
		cmd.Stdin = strings.NewReader(content)
		return registry.ObjectID(strings.TrimSpace(string(must(cmd.Output()))))
	}
	binary := func(id registry.ObjectID) string {
		var b []byte
		if _, err := fmt.Sscanf(string(id), "%x", &b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	tree := func(mode, name string, id registry.ObjectID) registry.ObjectID {
		return object("tree", mode+" "+name+"\x00"+binary(id))
	}
	commit := func(tree registry.ObjectID) registry.ObjectID {
		return object("commit", fmt.Sprintf("tree %s\nauthor A <a@b> 1700000000 +0000\ncommitter A <a@b> 1700000000 +0000\n\nx\n", tree))
	}
	dotGit, dotDot := tree("100644", ".git", blob), tree("40000", "..", w.rev("HEAD^{tree}"))
	absent := registry.ObjectID("1234567890123456789012345678901234567890")
	holes := tree("100644", "hole", absent)
	tests := []struct {
		name string
		tip  registry.ObjectID
		pack []registry.ObjectID
		ref  string
	}{
		{"a tree with .git", commit(dotGit), []registry.ObjectID{commit(dotGit), dotGit}, "refs/heads/x"},
		{"a tree with ..", commit(dotDot), []registry.ObjectID{commit(dotDot), dotDot}, "refs/heads/x"},
		{"a commit without its tree", commit(absent), []registry.ObjectID{commit(absent)}, "refs/heads/x"},
		{"a tree without its blob", commit(holes), []registry.ObjectID{commit(holes), holes}, "refs/heads/x"},
		{"an absent tip", absent, nil, "refs/heads/x"},
		{"a ref outside", w.rev("HEAD"), nil, "refs/heads/../../config"},
		{"a ref that is no ref", w.rev("HEAD"), nil, "config"},
		{"a ref with two dots", w.rev("HEAD"), nil, "refs/heads/a..b"},
		{"a lock", w.rev("HEAD"), nil, "refs/heads/main.lock"},
	}
	for _, test := range tests {
		body := pkt(fmt.Sprintf("%s %s %s\x00report-status side-band-64k", zero, test.tip, test.ref)) + "0000" + packOf(t, w, test.pack...)
		answer := rawPush(t, s, strings.NewReader(body))
		if strings.Contains(answer, "ok "+test.ref) || !strings.Contains(answer, "ng "+test.ref) && !strings.Contains(answer, "unpack ") {
			t.Errorf("%s: answer = %q, want a refusal", test.name, answer)
		}
	}
	want := map[string]registry.ObjectID{"refs/heads/main": w.rev("HEAD")}
	if diff := cmp.Diff(want, refs(t, s.repo())); diff != "" {
		t.Errorf("refs after hostile pushes: (-want +got)\n%s", diff)
	}
	noLeftovers(t, s.store.Dir())
}

// A stale old value does not overwrite what another push wrote.
func TestStalePush(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 2)
	w.git("push", "-q", "origin", "main")
	body := pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status", zero, w.rev("HEAD~1"))) + "0000" + packOf(t, w)
	contains(t, "answer to a push with a stale value", rawPush(t, s, strings.NewReader(body)), "ng refs/heads/main")
	if got, want := refs(t, s.repo())["refs/heads/main"], w.rev("HEAD"); got != want {
		t.Errorf("main = %s, want %s", got, want)
	}
}

func TestClientGoneWhileItSends(t *testing.T) {
	s := newServer(t)
	s.ended = make(chan string, 1)
	s.finish = func(context.Context, []registry.RefUpdate) ([]string, error) {
		t.Error("Finish was called for a push that did not arrive")
		return nil, nil
	}
	w := newClient(t).work(s, 1)
	w.commit("noise", noise(1<<20))
	pack := packOf(t, w, w.rev("HEAD"), w.rev("HEAD^{tree}"), w.rev("HEAD:noise"), w.rev("HEAD:README.md"))
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url()+"/git-receive-pack", in)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(out, pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status side-band-64k", zero, w.rev("HEAD")))+"0000"+pack[:len(pack)/2])
		_ = out.CloseWithError(errors.New("the train enters a tunnel"))
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
	}
	id := <-s.ended
	if err, _ := s.errs.Load(id); err == "<nil>" {
		t.Error("ReceivePack = nil for a push that did not arrive")
	}
	if got := refs(t, s.repo()); len(got) != 0 {
		t.Errorf("refs = %v, want none", got)
	}
	noLeftovers(t, s.store.Dir())
}

// A client that is killed in the check fails its push; one that is killed later does not, and its push is finished.
func TestClientKilled(t *testing.T) {
	for _, at := range []string{"check", "finish"} {
		t.Run(at, func(t *testing.T) {
			s := newServer(t)
			s.ended = make(chan string, 1)
			var push *exec.Cmd
			killed := make(chan struct{})
			started := make(chan struct{})
			kill := func() {
				<-started
				// With the child of git that speaks HTTP.
				_ = syscall.Kill(-push.Process.Pid, syscall.SIGKILL)
				_ = push.Wait()
				close(killed)
			}
			finished := false
			s.check = func(ctx context.Context, _ *gitrepo.Push) error {
				if at == "check" {
					kill()
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}
			s.finish = func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
				if at == "finish" {
					kill()
				}
				if ctx.Err() != nil {
					t.Errorf("the context of Finish ended with the client: %v", ctx.Err())
				}
				finished = true
				return nil, s.repo().Sync(ctx, updates)
			}
			w := newClient(t).work(s, 1)
			push = w.command(context.Background(), "push", "origin", "main")
			push.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := push.Start(); err != nil {
				t.Fatal(err)
			}
			close(started)
			<-killed
			<-s.ended
			if want := at == "finish"; finished != want || (len(refs(t, s.repo())) == 1) != want {
				t.Errorf("finished = %v, refs = %v, want both: %v", finished, refs(t, s.repo()), want)
			}
			noLeftovers(t, s.store.Dir())
		})
	}
}

func TestServerKilled(t *testing.T) {
	dir := t.TempDir()
	c := newClient(t)
	serve := func() (url string, kill func()) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envServe+"="+dir)
		cmd.Dir = dir
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var line string
		if _, err := fmt.Fscanln(out, &line); err != nil || !strings.HasPrefix(line, "http") {
			t.Fatalf("the server says %q, %v", line, err)
		}
		return line, func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	waitFor := func(name string) {
		for {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	c.git("init", "-q", "work")
	w := c.in("work")
	head := w.commit("f", "x")
	for _, at := range []string{"check", "finish"} {
		url, kill := serve()
		push := w.command(context.Background(), "push", url+"/acme/fraud.git", "main:refs/heads/stuck-"+at)
		var out bytes.Buffer
		push.Stdout, push.Stderr = &out, &out
		if err := push.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor("stuck-" + at)
		kill()
		if err := push.Wait(); err == nil {
			t.Errorf("%s: the client took the push for done:\n%s", at, out.String())
		}
	}
	// The next server waits for what the last one left, and finds every ref as it was.
	store := openStore(t, filepath.Join(dir, "repos"))
	want := map[string]registry.ObjectID{"refs/heads/stuck-finish": head}
	if diff := cmp.Diff(want, refs(t, store.Repository(fraud))); diff != "" {
		t.Errorf("refs after two kills: (-want +got)\n%s", diff)
	}
	noLeftovers(t, store.Dir())
	s := &server{store: store}
	s.start(t)
	w.git("push", "-q", s.url(), "main:refs/heads/stuck-check")
}

func TestHookIsPutBack(t *testing.T) {
	s := newServer(t)
	s.check = func(context.Context, *gitrepo.Push) error { return &gitrepo.Refusal{Lines: []string{"herdbook: no"}} }
	w := newClient(t).work(s, 1)
	if err := os.Remove(filepath.Join(s.store.Dir(), ".run", "hooks", "pre-receive")); err != nil {
		t.Fatal(err)
	}
	contains(t, "push without a hook", w.fails("push", "origin", "main"), "remote: herdbook: no")
}

// Only the hook of a push that runs gets an answer, and only once.
func TestForgedHook(t *testing.T) {
	s := newServer(t)
	socket := filepath.Join(s.store.Dir(), ".run", "hook.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket = %v, %v, want 0600", info.Mode(), err)
	}
	ask := func() string {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Error(err)
			return ""
		}
		defer conn.Close()
		for push := range 5 {
			_, _ = fmt.Fprintf(conn, `{"version":1,"push":"%d","secret":"x","updates":""}`, push)
		}
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	s.check = func(context.Context, *gitrepo.Push) error {
		if got := ask(); got != "" {
			t.Errorf("answer to a hook with a wrong secret = %q, want none", got)
		}
		return nil
	}
	newClient(t).work(s, 1).git("push", "-q", "origin", "main")
}

func TestCloseWaitsForPushes(t *testing.T) {
	s := newServer(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	s.finish = func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
		close(entered)
		<-leave
		// Finish may still read and write.
		if _, err := s.repo().Refs(ctx); err != nil {
			t.Errorf("Refs while the store closes: %v", err)
		}
		return nil, s.repo().Sync(ctx, updates)
	}
	w := newClient(t).work(s, 1)
	pushed := make(chan error, 1)
	go func() {
		_, err := w.try("push", "origin", "main")
		pushed <- err
	}()
	<-entered
	closed := make(chan error, 1)
	go func() { closed <- s.store.Close() }()
	for {
		err := s.store.AdvertiseRefs(t.Context(), nil, gitrepo.ReceivePackService, "", io.Discard)
		if errors.Is(err, registry.ErrUnavailable) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case <-closed:
		t.Error("Close did not wait for the push")
	default:
	}
	close(leave)
	if err := <-pushed; err != nil {
		t.Errorf("push while the store closes = %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
	if _, err := s.repo().Refs(t.Context()); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Refs after Close = %v, want ErrUnavailable", err)
	}
}

func TestCloseKills(t *testing.T) {
	s := newServer(t, func(c *gitrepo.Config) { c.CloseWait = 10 * time.Millisecond })
	entered := make(chan struct{})
	s.check = func(ctx context.Context, _ *gitrepo.Push) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}
	w := newClient(t).work(s, 1)
	pushed := make(chan error, 1)
	go func() {
		_, err := w.try("push", "origin", "main")
		pushed <- err
	}()
	<-entered
	if err := s.store.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := <-pushed; err == nil {
		t.Error("push to a store that was closed = nil, want an error")
	}
}
