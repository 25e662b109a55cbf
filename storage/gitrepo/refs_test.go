package gitrepo_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/storage/gitrepo"
)

// bareGit runs git in a repository of the server, as somebody would behind the server's back.
func bareGit(tb testing.TB, dir, stdin string, args ...string) string {
	tb.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org",
		"GIT_AUTHOR_DATE=1700000000 +0000", "GIT_COMMITTER_DATE=1700000000 +0000",
	}
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// refRepos are repositories with all kinds of refs. Each is made in an empty one.
var refRepos = []struct {
	name string
	make func(tb testing.TB, dir string, git func(stdin string, args ...string) string)
	// byGit says that git has to list these refs.
	byGit bool
}{
	{name: "empty"},
	{name: "unborn HEAD beside a branch", make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		git("", "update-ref", "refs/heads/other", commitIn(git, "a"))
	}},
	{name: "branches and tags", make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		a, b := commitIn(git, "a"), commitIn(git, "b")
		git("", "update-ref", "refs/heads/main", a)
		git("", "update-ref", "refs/heads/feature/x", b)
		git("", "tag", "light", a)
		git("", "tag", "-a", "-m", "one", "v1.0.0", a)
		git("", "tag", "-a", "-m", "nested", "nested", "v1.0.0")
		git("", "tag", "-a", "-m", "of a tree", "tree", a+"^{tree}")
		git("", "update-ref", "refs/other/tagged", "refs/tags/v1.0.0")
	}},
	{name: "detached HEAD", make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		git("", "update-ref", "refs/heads/main", commitIn(git, "b"))
		writeFile(tb, filepath.Join(dir, "HEAD"), a+"\n")
	}},
	{name: "HEAD detached at a tag object", make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		git("", "tag", "-a", "-m", "one", "v1.0.0", commitIn(git, "a"))
		writeFile(tb, filepath.Join(dir, "HEAD"), git("", "rev-parse", "v1.0.0")+"\n")
	}},
	{name: "HEAD leads to a tag", make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		git("", "tag", "-a", "-m", "one", "v1.0.0", commitIn(git, "a"))
		writeFile(tb, filepath.Join(dir, "HEAD"), "ref: refs/tags/v1.0.0\n")
	}},
	{name: "packed and loose", make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		a, b := commitIn(git, "a"), commitIn(git, "b")
		for _, ref := range []string{"refs/heads/main", "refs/heads/a", "refs/heads/a-b", "refs/heads/a.b", "refs/heads/z", "refs/tags/x"} {
			git("", "update-ref", ref, a)
		}
		git("", "tag", "-a", "-m", "one", "v1.0.0", a)
		git("", "pack-refs", "--all")
		git("", "update-ref", "refs/heads/main", b)
		git("", "update-ref", "refs/heads/a-c/d", b)
		git("", "tag", "-a", "-m", "two", "v2.0.0", b)
		git("", "tag", "-f", "-a", "-m", "one again", "v1.0.0", b)
		git("", "update-ref", "-d", "refs/heads/z")
	}},
	{name: "packed without what tags lead to, not in order", make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		git("", "tag", "-a", "-m", "one", "v1.0.0", a)
		tag := git("", "rev-parse", "v1.0.0")
		writeFile(tb, filepath.Join(dir, "packed-refs"), tag+" refs/tags/v1.0.0\n"+a+" refs/heads/main\n")
		git("", "tag", "-d", "v1.0.0")
		writeFile(tb, filepath.Join(dir, "packed-refs"), tag+" refs/tags/v1.0.0\n"+a+" refs/heads/main\n")
	}},
	{name: "5,000 refs", make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		var packed strings.Builder
		for line := range strings.Lines(manyRefs(a, 5000)) {
			fields := strings.Fields(line)
			fmt.Fprintf(&packed, "%s %s\n", fields[2], fields[1])
		}
		writeFile(tb, filepath.Join(dir, "packed-refs"), packed.String())
		git("", "update-ref", "refs/heads/main", a)
	}},
	{name: "refs in other places", make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		for _, ref := range []string{"refs/stash", "refs/herdbook/versions", "refs/notes/evaluations", "refs/x/y/z", "refs/heads/main"} {
			git("", "update-ref", ref, a)
		}
	}},
	{name: "unusual bytes", make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		for _, name := range []string{"\xff\xfe", "ü", "a b"[:1] + "\u00a0b", "'\"$(x);&|<>!", "-x", "@", "{}", "a]", strings.Repeat("long/", 40) + "x", "a=b,c", "refs"} {
			git("", "update-ref", "refs/heads/"+name, a)
		}
	}},
	{name: "symbolic refs", make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		git("", "update-ref", "refs/heads/main", commitIn(git, "a"))
		git("", "tag", "-a", "-m", "one", "v1.0.0", "refs/heads/main")
		git("", "symbolic-ref", "refs/remotes/origin/HEAD", "refs/heads/main")
		git("", "symbolic-ref", "refs/heads/one", "refs/heads/two")
		git("", "symbolic-ref", "refs/heads/two", "refs/tags/v1.0.0")
		git("", "symbolic-ref", "HEAD", "refs/heads/one")
	}},
	{name: "locks and hidden files", make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		git("", "update-ref", "refs/heads/main", a)
		for _, name := range []string{"refs/heads/b.lock", "refs/heads/.hidden", "refs/tags/empty/x.lock"} {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
				tb.Fatal(err)
			}
			writeFile(tb, filepath.Join(dir, name), a+"\n")
		}
	}},
	{name: "a shallow repository", byGit: true, make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		git("", "update-ref", "refs/heads/main", a)
		writeFile(tb, filepath.Join(dir, "shallow"), a+"\n")
	}},
	{name: "hidden refs", byGit: true, make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		git("", "update-ref", "refs/heads/main", commitIn(git, "a"))
		git("", "update-ref", "refs/secret/x", "refs/heads/main")
		git("", "config", "transfer.hideRefs", "refs/secret")
	}},
	{name: "a broken ref", byGit: true, make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		git("", "update-ref", "refs/heads/main", commitIn(git, "a"))
		writeFile(tb, filepath.Join(dir, "refs/heads/broken"), "nonsense\n")
	}},
	{name: "a ref to what is not there", byGit: true, make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		git("", "update-ref", "refs/heads/main", commitIn(git, "a"))
		writeFile(tb, filepath.Join(dir, "refs/heads/gone"), string(absentID)+"\n")
	}},
	{name: "a symbolic ref that leads nowhere", byGit: true, make: func(_ testing.TB, _ string, git func(string, ...string) string) {
		git("", "update-ref", "refs/heads/main", commitIn(git, "a"))
		git("", "symbolic-ref", "refs/heads/dangling", "refs/heads/absent")
	}},
	{name: "white space behind a ref", byGit: true, make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		writeFile(tb, filepath.Join(dir, "refs/heads/main"), a+" \n")
	}},
	{name: "links", byGit: true, make: func(tb testing.TB, dir string, git func(string, ...string) string) {
		a := commitIn(git, "a")
		git("", "update-ref", "refs/heads/main", a)
		outside := filepath.Join(tb.TempDir(), "outside")
		writeFile(tb, outside, a+"\n")
		if err := os.Symlink(outside, filepath.Join(dir, "refs/heads/link")); err != nil {
			tb.Fatal(err)
		}
	}},
}

func commitIn(git func(string, ...string) string, message string) string {
	return git(message, "commit-tree", git("", "mktree"))
}

// manyRefs are n refs as git update-ref --stdin takes them.
func manyRefs(id string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "create refs/%s/ref-%05d %s\n", []string{"heads", "tags", "heads/deep/er"}[i%3], i, id)
	}
	return b.String()
}

// newRefRepo makes the repository of the model acme/fraud as one of refRepos.
func newRefRepo(tb testing.TB, s *gitrepo.Store, i int) (repo *gitrepo.Repository, dir string) {
	tb.Helper()
	repo, err := s.Create(tb.Context(), fraud)
	if err != nil {
		tb.Fatal(err)
	}
	dir = filepath.Join(s.Dir(), "acme/fraud.git")
	if refRepos[i].make != nil {
		refRepos[i].make(tb, dir, func(stdin string, args ...string) string { return bareGit(tb, dir, stdin, args...) })
	}
	return repo, dir
}

func lsRefs(args ...string) string {
	var b strings.Builder
	b.WriteString(pkt("command=ls-refs\n") + pkt("agent=git/2.39.5") + pkt("object-format=sha1") + "0001")
	for _, arg := range args {
		b.WriteString(pkt(arg + "\n"))
	}
	return b.String() + "0000"
}

// Whatever the refs are, clients read the same bytes as from git itself.
func TestRefsAreThoseOfGit(t *testing.T) {
	requests := []struct{ name, in string }{
		{"bare", pkt("command=ls-refs\n") + "0000"},
		{"no arguments", lsRefs()},
		{"peel", lsRefs("peel")},
		{"symrefs", lsRefs("symrefs")},
		{"unborn", lsRefs("unborn")},
		{"as git asks", lsRefs("peel", "symrefs", "unborn", "ref-prefix refs/heads/", "ref-prefix refs/tags/", "ref-prefix HEAD")},
		{"one ref in all places", lsRefs("peel", "symrefs", "ref-prefix main", "ref-prefix refs/main", "ref-prefix refs/heads/main", "ref-prefix refs/tags/main")},
		{"overlapping prefixes", lsRefs("ref-prefix refs/heads/a", "ref-prefix refs/heads/", "ref-prefix refs/heads/a", "ref-prefix refs/tags/v")},
		{"an empty prefix", lsRefs("symrefs", "ref-prefix ")},
		{"no match", lsRefs("peel", "ref-prefix refs/none/")},
		{"server options", pkt("command=ls-refs") + pkt("server-option=x") + "0001" + pkt("peel") + "0000"},
		{"many prefixes", lsRefs(strings.Split(strings.Repeat("ref-prefix refs/heads/x,", 3000)+"ref-prefix refs/tags/", ",")...)},
	}
	for i, rr := range refRepos {
		t.Run(rr.name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir())
			repo, dir := newRefRepo(t, s, i)
			if byGit := s.ListedByGit(t.Context(), repo); byGit != rr.byGit {
				t.Errorf("git lists these refs: %v, want %v", byGit, rr.byGit)
			}
			for _, req := range requests {
				want, err := gitServes(s, dir, "version=2", req.in, "--stateless-rpc")
				if err != nil {
					t.Fatalf("%s: git = %v", req.name, err)
				}
				for range 2 {
					var out bytes.Buffer
					err = s.UploadPack(t.Context(), gitrepo.UploadPack{Repository: repo, GitProtocol: "version=2", In: strings.NewReader(req.in), Out: &out})
					if diff := cmp.Diff(want, out.String()); err != nil || diff != "" {
						t.Errorf("ls-refs, %s = %v (-want +got)\n%s", req.name, err, clip(diff))
					}
				}
			}
			for _, service := range []gitrepo.Service{gitrepo.UploadPackService, gitrepo.ReceivePackService} {
				for _, version := range []string{"version=0", "version=1"} {
					want, err := gitServes(s, dir, version, "", string(service), "--http-backend-info-refs")
					if err != nil {
						t.Fatalf("%s: git = %v", service, err)
					}
					want = pkt("# service="+string(service)+"\n") + "0000" + want
					for range 2 {
						var out bytes.Buffer
						err = s.AdvertiseRefs(t.Context(), repo, service, version, &out)
						if diff := cmp.Diff(want, out.String()); err != nil || diff != "" {
							t.Errorf("AdvertiseRefs(%s, %s) = %v (-want +got)\n%s", service, version, err, clip(diff))
						}
					}
				}
			}
		})
	}
}

func clip(s string) string { return s[:min(len(s), 2000)] }

// gitServes is what git itself answers with the server's configuration.
func gitServes(s *gitrepo.Store, dir, protocol, in string, args ...string) (string, error) {
	if strings.HasPrefix(args[0], "--") {
		args = append([]string{string(gitrepo.UploadPackService)}, args...)
	}
	args[0] = strings.TrimPrefix(args[0], "git-")
	cmd := exec.Command("git", append(args, dir)...)
	cmd.Dir = dir
	cmd.Env = append(s.Environment(), "GIT_PROTOCOL="+protocol)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.Output()
	return string(out), err
}

// A request that git does not understand is refused, or answered, as git does.
func TestMalformedLsRefs(t *testing.T) {
	s := openStore(t, t.TempDir())
	repo, dir := newRefRepo(t, s, 2)
	for name, in := range map[string]string{
		"an unknown argument":      lsRefs("peel", "what"),
		"an argument in two words": lsRefs("peel now"),
		"a prefix without space":   lsRefs("ref-prefix"),
		"a NUL":                    lsRefs("peel\x00now"),
		"a NUL in a prefix":        lsRefs("ref-prefix refs/heads/\x00x"),
		"an error":                 lsRefs("ERR no"),
		"two commands":             pkt("command=ls-refs") + pkt("command=ls-refs") + "0000",
		"an unknown capability":    pkt("command=ls-refs") + pkt("what") + "0000",
		"another format":           pkt("command=ls-refs") + pkt("object-format=sha256") + "0000",
		"no end":                   pkt("command=ls-refs") + "0001" + pkt("peel"),
		"an end in a packet":       pkt("command=ls-refs") + "0001" + pkt("peel")[:6],
		"two delimiters":           pkt("command=ls-refs") + "00010001" + pkt("peel") + "0000",
		"nothing":                  "",
		"only a flush":             "0000",
		"no length":                "zzzz",
		"more behind the end":      lsRefs("peel") + lsRefs("symrefs"),
		"two line feeds":           pkt("command=ls-refs") + "0001" + pkt("peel\n\n") + "0000",
	} {
		want, gitErr := gitServes(s, dir, "version=2", in, "--stateless-rpc")
		var out bytes.Buffer
		err := s.UploadPack(t.Context(), gitrepo.UploadPack{Repository: repo, GitProtocol: "version=2", In: strings.NewReader(in), Out: &out})
		if out.String() != want || (err == nil) != (gitErr == nil) {
			t.Errorf("%s: %q, %v; want %q, %v", name, out.String(), err, want, gitErr)
		}
	}
}

// listed is what a client lists now.
func listed(tb testing.TB, repo *gitrepo.Repository, s *gitrepo.Store) string {
	tb.Helper()
	var out bytes.Buffer
	err := s.UploadPack(tb.Context(), gitrepo.UploadPack{Repository: repo, GitProtocol: "version=2", In: strings.NewReader(lsRefs("symrefs")), Out: &out})
	if err != nil {
		tb.Fatalf("ls-refs = %v", err)
	}
	return out.String()
}

// However fast the refs change, and whoever changes them, the next listing shows them as they are.
func TestChangedRefsAreSeen(t *testing.T) {
	for _, settle := range []bool{false, true} {
		t.Run(fmt.Sprint("files settle between the changes: ", settle), func(t *testing.T) {
			s := openStore(t, t.TempDir())
			if settle {
				s.SetTimeSlack(20 * time.Millisecond)
			}
			repo, dir := newRefRepo(t, s, 6)
			ids := []string{}
			for i := range 4 {
				ids = append(ids, commitIn(func(in string, args ...string) string { return bareGit(t, dir, in, args...) }, fmt.Sprint(i)))
			}
			write := func(name, content string) {
				temp := filepath.Join(dir, "refs/heads/.new")
				writeFile(t, temp, content)
				if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			steps := map[string]func(i int){
				"replace a file":   func(i int) { write("refs/heads/main", ids[i%4]+"\n") },
				"overwrite a file": func(i int) { writeFile(t, filepath.Join(dir, "refs/heads/main"), ids[i%4]+"\n") },
				"HEAD":             func(i int) { write("HEAD", "ref: refs/heads/"+[]string{"a", "a-b", "main", "x"}[i%4]+"\n") },
				"overwrite HEAD":   func(i int) { writeFile(t, filepath.Join(dir, "HEAD"), ids[i%4]+"\n") },
				"packed-refs":      func(i int) { write("packed-refs", ids[i%4]+" refs/tags/packed\n") },
				"a directory":      func(i int) { mustDo(t, os.MkdirAll(filepath.Join(dir, fmt.Sprint("refs/heads/dir", i)), 0o755)) },
				"deep":             func(i int) { write("refs/heads/a-c/d", ids[i%4]+"\n") },
				"removed and made": func(i int) {
					_ = os.Remove(filepath.Join(dir, "refs/heads/rm"))
					if i%2 == 0 {
						write("refs/heads/rm", ids[i%4]+"\n")
					}
				},
				"a directory and ref": func(i int) {
					_ = os.RemoveAll(filepath.Join(dir, "refs/heads/df"))
					if i%2 == 0 {
						write("refs/heads/df", ids[i%4]+"\n")
					} else {
						mustDo(t, os.MkdirAll(filepath.Join(dir, "refs/heads/df"), 0o755))
						write("refs/heads/df/x", ids[i%4]+"\n")
					}
				},
			}
			for name, step := range steps {
				for i := range 12 {
					for settle && !s.RefsSettled(t.Context(), repo) {
						time.Sleep(time.Millisecond)
					}
					step(i)
					want, err := gitServes(s, dir, "version=2", lsRefs("symrefs"), "--stateless-rpc")
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(want, listed(t, repo, s)); diff != "" {
						t.Fatalf("%s, step %d: (-want +got)\n%s", name, i, diff)
					}
				}
			}
		})
	}
}

// Changes that leave a file all that can be seen of it from outside: its inode, its length, and its times, which are those
// of the last tick of a clock.
func TestChangesWithinOneTickAreSeen(t *testing.T) {
	s := openStore(t, t.TempDir())
	repo, dir := newRefRepo(t, s, 2)
	ids := []string{bareGit(t, dir, "", "rev-parse", "refs/heads/main"), bareGit(t, dir, "", "rev-parse", "refs/heads/feature/x")}
	s.SetCoarseTimes()
	file := must(os.OpenFile(filepath.Join(dir, "refs/heads/main"), os.O_WRONLY, 0))
	defer file.Close()
	for i := range 1000 {
		must(file.WriteAt([]byte(ids[i%2]), 0))
		if want := ids[i%2] + " refs/heads/main"; !strings.Contains(listed(t, repo, s), want) {
			t.Fatalf("after change %d: ls-refs lacks %q", i, want)
		}
	}
}

func mustDo(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
