package gitrepo_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// readAll is a check that reads what a push brings, as a server does.
func readAll(ctx context.Context, p *gitrepo.Push) error {
	for _, err := range p.NewBlobs(ctx) {
		if err != nil {
			return err
		}
	}
	return nil
}

// wantAll asks for each id of a list.
func wantAll(ids string) string {
	var b strings.Builder
	for id := range strings.FieldsSeq(ids) {
		b.WriteString(pkt("want " + id))
	}
	return b.String()
}

// unpackable checks the pack in an answer by protocol v2 as strictly as git does.
func unpackable(tb testing.TB, answer []byte) error {
	tb.Helper()
	var pack []byte
	for len(answer) > 4 {
		var n int
		if _, err := fmt.Sscanf(string(answer[:4]), "%04x", &n); err != nil {
			return err
		}
		if n > 5 && answer[4] == 1 {
			pack = append(pack, answer[5:n]...)
		}
		answer = answer[max(n, 4):]
	}
	cmd := exec.Command("git", "index-pack", "--strict", "--stdin")
	cmd.Dir = tb.TempDir()
	if out, err := exec.Command("git", "init", "-q", "--bare", cmd.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	cmd.Stdin = bytes.NewReader(pack)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("index-pack: %w: %s", err, out)
	}
	return err
}

// wholeClones makes clones of a server and tells whether they are answered from the pack that is there.
type wholeClones struct {
	*client
	s *server
	n int
}

// clone clones, compares the refs, and returns the copy. Git says how many objects it counted, and we do not.
func (c *wholeClones) clone(whole bool, args ...string) *client {
	c.tb.Helper()
	c.n++
	dir := fmt.Sprint("clone-", c.n)
	args = append([]string{"-c", "fetch.fsckObjects=true", "clone", "--progress"}, append(args, c.s.url(), dir)...)
	said, err := c.try(args...)
	if err != nil {
		c.tb.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, said)
	}
	if got := !strings.Contains(said, "remote: Total") && strings.Contains(said, "remote: Enumerating objects"); got != whole {
		c.tb.Errorf("git %s: answered from the pack that is there: %v, want %v; the server said\n%s", strings.Join(args, " "), got, whole, said)
	}
	copied := c.in(dir)
	copied.git("fsck", "--strict")
	return copied
}

func (c *client) has(id registry.ObjectID) bool {
	_, err := c.try("cat-file", "-e", string(id))
	return err == nil
}

func TestCloneFromThePackThatIsThere(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	c := &wholeClones{client: newClient(t), s: s}
	w := c.work(s, 3)
	w.commit("weights.txt", noise(300_000))
	w.git("tag", "-a", "-m", "one", "v1.0.0")
	w.git("tag", "light")
	w.git("branch", "topic", "HEAD~1")
	w.git("push", "-q", "origin", "main", "topic", "v1.0.0", "light")

	same := func(copied *client) {
		t.Helper()
		if got, want := copied.git("rev-list", "--all", "--objects"), w.git("rev-list", "--objects", "--all"); len(strings.Fields(got)) != len(strings.Fields(want)) {
			t.Errorf("a clone has\n%s\nwant\n%s", got, want)
		}
	}
	same(c.clone(true))
	same(c.clone(true, "--mirror"))
	same(c.clone(true, "-c", "protocol.version=0"))
	same(c.clone(true, "-c", "protocol.version=1"))
	same(c.clone(true, "--no-checkout"))
	c.clone(false, "--depth=1")
	c.clone(false, "--filter=blob:none")
	single := c.clone(false, "--single-branch", "--branch=topic", "--no-tags")
	if head := w.rev("main"); single.has(head) {
		t.Errorf("a clone of one branch has the commit %s of another one", head)
	}

	// What came later, with content that was there before.
	old := w.git("show", "HEAD~2:README.md")
	w.commit("README.md", old+"\n")
	w.commit("weights.txt", noise(1000))
	w.git("push", "-q", "origin", "main")
	same(c.clone(true))
	same(c.clone(true, "--mirror", "-c", "protocol.version=0"))
	w.git("tag", "-a", "-m", "two", "v2.0.0")
	w.git("push", "-q", "origin", "v2.0.0")
	same(c.clone(true))

	// What no ref reaches any more is not given to anyone.
	tag := w.rev("v1.0.0")
	w.git("push", "-q", "origin", ":v1.0.0")
	if copied := c.clone(false); copied.has(tag) {
		t.Errorf("a clone has the tag %s that was deleted", tag)
	}
	w.git("push", "-q", "origin", "v1.0.0")
	same(c.clone(true))
	gone := w.rev("main")
	w.git("reset", "-q", "--hard", "HEAD~3")
	w.git("tag", "-d", "v1.0.0", "v2.0.0", "light")
	w.git("push", "-q", "--force", "origin", "main", ":v1.0.0", ":v2.0.0", ":light")
	if copied := c.clone(false); copied.has(gone) {
		t.Errorf("a clone has the commit %s that nothing reaches any more", gone)
	}
}

// A push that has objects in its pack that it does not make reachable is not passed on as it is.
func TestPackWithMoreThanThePush(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	c := &wholeClones{client: newClient(t), s: s}
	w := c.work(s, 2)
	secret := w.commit("secret", "never meant for others")
	w.git("reset", "-q", "--hard", "HEAD~1")
	head := w.rev("HEAD")
	pack := w.command(t.Context(), "pack-objects", "--stdout", "-q", "--revs")
	pack.Stdin = strings.NewReader(string(head) + "\n" + string(secret) + "\n")
	body := pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status side-band-64k", zero, head)) + "0000" + string(must(pack.Output()))
	if _, err := s.store.Create(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := s.store.ReceivePack(t.Context(), gitrepo.ReceivePack{
		Repository: s.repo(), PushID: "p", In: strings.NewReader(body), Out: &out, Check: readAll,
		Finish: func(context.Context, []registry.RefUpdate) ([]string, error) { return nil, nil },
	})
	if err != nil || !strings.Contains(out.String(), "unpack ok") {
		t.Fatalf("ReceivePack = %v\n%s", err, out.String())
	}
	if copied := c.clone(false); copied.has(secret) || !copied.has(head) {
		t.Errorf("a clone has the commit that was pushed: %v, and one that was not: %v", copied.has(head), copied.has(secret))
	}
}

// After a branch was set back, what it had is not passed on.
func TestCloneOfABranchThatWentBack(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	c := &wholeClones{client: newClient(t), s: s}
	w := c.work(s, 3)
	gone := w.rev("HEAD")
	w.git("push", "-q", "origin", "main")
	c.clone(true)
	w.git("push", "-q", "--force", "origin", "HEAD~1:refs/heads/main")
	if c.clone(false).has(gone) {
		t.Errorf("a clone has the commit %s that nothing reaches any more", gone)
	}
	w.git("push", "-q", "origin", "HEAD:refs/heads/again")
	if !c.clone(true).has(gone) {
		t.Errorf("a clone lacks the commit %s of a branch", gone)
	}
}

// A clone of one branch has the tags that go with it, also those that came later.
func TestCloneOfABranchWithTags(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	c := &wholeClones{client: newClient(t), s: s}
	w := c.work(s, 3)
	w.git("push", "-q", "origin", "main")
	w.git("tag", "-a", "-m", "one", "v1.0.0")
	w.git("push", "-q", "origin", "v1.0.0")
	for _, protocol := range []string{"0", "2"} {
		copied := c.clone(false, "-c", "protocol.version="+protocol, "--single-branch", "--branch=main")
		if got := copied.git("tag"); got != "v1.0.0" {
			t.Errorf("tags of a clone of one branch by protocol %s = %q, want v1.0.0", protocol, got)
		}
	}
}

// A ref may name anything; what one named that was deleted is not passed on.
func TestCloneAfterARefToABlobWasDeleted(t *testing.T) {
	for _, kind := range []string{"blob", "tag"} {
		s := newServer(t)
		s.check = readAll
		c := &wholeClones{client: newClient(t), s: s}
		c.git("init", "-q", "work")
		w := c.in("work")
		for i := range 120 {
			w.git("commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
		}
		w.commit("noise", noise(1<<20))
		w.git("remote", "add", "origin", s.url())
		w.write("secret", "password\n")
		id := registry.ObjectID(w.git("hash-object", "-w", "secret"))
		if kind == "tag" {
			w.git("tag", "-a", "-m", "secret", "secret")
			id = w.rev("secret")
		}
		w.git("push", "-q", "origin", "main")
		w.git("push", "-q", "origin", string(id)+":refs/data/secret")
		if done, err := s.repo().Repack(t.Context()); !done || err != nil {
			t.Fatalf("Repack = %v, %v", done, err)
		}
		w.git("push", "-q", "origin", ":refs/data/secret")
		if c.clone(false).has(id) {
			t.Errorf("a clone has the %s %s of a ref that was deleted", kind, id)
		}
	}
}

func TestCloneFromARepackedPack(t *testing.T) {
	s := newServer(t)
	if _, err := s.store.Create(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	dir := repoDir(s)
	importCommits(t, dir, "main", "", 150, 10_000)
	importCommits(t, dir, "gone", "", 150, 1000)
	gone := registry.ObjectID(bareGit(t, dir, "", "rev-parse", "refs/heads/gone"))
	bareGit(t, dir, "", "update-ref", "-d", "refs/heads/gone")
	if done, err := s.repo().Repack(t.Context()); !done || err != nil {
		t.Fatalf("Repack = %v, %v", done, err)
	}
	c := &wholeClones{client: newClient(t), s: s}
	if c.clone(true).has(gone) {
		t.Error("a clone has a commit of a branch that was deleted")
	}
	// Notes that the server writes come along, and do not stand in the way when they move.
	for range 2 {
		bareGit(t, dir, "", "-c", "user.name=a", "-c", "user.email=a@b", "notes", "--ref=evaluations", "append", "-m", "f1 0.9", "refs/heads/main")
		if notes := c.clone(true, "--mirror").git("for-each-ref", "refs/notes"); notes == "" {
			t.Error("a mirror has no notes")
		}
		c.clone(true)
	}
	importCommits(t, dir, "next", "", 120, 10_000)
	if done, err := s.repo().Repack(t.Context()); !done || err != nil {
		t.Fatalf("Repack = %v, %v", done, err)
	}
	c.clone(true)
	// A repository most of which is in no branch is not cloned whole.
	importCommits(t, dir, "aside", "", 250, 1000)
	bareGit(t, dir, "", "update-ref", "refs/aside", "refs/heads/aside")
	bareGit(t, dir, "", "update-ref", "-d", "refs/heads/aside")
	if done, err := s.repo().Repack(t.Context()); !done || err != nil {
		t.Fatalf("Repack = %v, %v", done, err)
	}
	c.clone(false)
}

// A clone from a pack that is damaged fails, whatever comes behind it.
func TestCloneFromADamagedPack(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	c := &wholeClones{client: newClient(t), s: s}
	w := c.work(s, 2)
	w.commit("weights.txt", noise(300_000))
	w.git("push", "-q", "origin", "main")
	c.clone(true)
	s.store.ForgetAnswers()
	pack := packFiles(repoDir(s), "pack")[0]
	mustDo(t, os.Chmod(pack, 0o640))
	f := must(os.OpenFile(pack, os.O_RDWR, 0))
	defer f.Close()
	size := must(f.Seek(0, io.SeekEnd))
	var b [1]byte
	must(f.ReadAt(b[:], size/2))
	b[0] ^= 1
	must(f.WriteAt(b[:], size/2))
	c.fails("clone", s.url(), "damaged")
	request := pkt("command=fetch") + "0001" + pkt("ofs-delta") + pkt("want "+string(w.rev("HEAD"))) + pkt("done\n") + "0000"
	w.commit("README.md", "more")
	// The push needs nothing of what is damaged.
	w.git("push", "-q", "origin", "HEAD:refs/heads/next")
	c.fails("clone", s.url(), "damaged-too")
	request = strings.Replace(request, pkt("done\n"), pkt("want "+string(w.rev("HEAD")))+pkt("done\n"), 1)
	var answer bytes.Buffer
	if err := cloneOf(t.Context(), s, request, &answer); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a fetch of a damaged pack = %v, want that it is damaged", err)
	}
}

// What notes the pack is of no importance: without it, or when it is not understood, git answers.
func TestNoteOfThePackIsLost(t *testing.T) {
	s := newServer(t)
	s.check = readAll
	c := &wholeClones{client: newClient(t), s: s}
	w := c.work(s, 3)
	w.git("push", "-q", "origin", "main")
	c.clone(true)
	path := filepath.Join(repoDir(s), "objects/info/herdbook-whole.json")
	note := string(must(os.ReadFile(path)))
	for _, text := range []string{
		"", "{", "\x00\x00", "null", `{"pack":"../../x","commits":[]}`, `{"pack":"","commits":[]}`,
		strings.Replace(note, `"pack":"pack-`, `"pack":"pack-0`, 1),
		strings.Replace(note, string(w.rev("main")), zero, 1),
		strings.Replace(note, string(w.rev("main")), "--all", 1),
	} {
		s.store.ForgetAnswers()
		writeFile(t, path, text)
		c.clone(false)
	}
	mustDo(t, os.Remove(path))
	s.store.ForgetAnswers()
	c.clone(false)
}
