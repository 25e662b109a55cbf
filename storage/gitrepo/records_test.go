package gitrepo_test

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// plainGit is what anybody's git sees in the server's repository.
func plainGit(tb testing.TB, s *server, args ...string) string {
	tb.Helper()
	cmd := exec.Command("git", append([]string{"-c", "safe.directory=*"}, args...)...)
	cmd.Dir = repoDir(s)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

func TestWriteRecords(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	w := newClient(t).work(s, 2)
	w.git("push", "-q", "origin", "main")
	head, first := w.rev("HEAD"), w.rev("HEAD~1")
	repo := s.repo()
	production := registry.EnvironmentsPrefix + "production"

	if _, _, err := repo.RecordTip(ctx, production); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("RecordTip of no ref = %v, want ErrNotFound", err)
	}
	if err := repo.WriteRecords(ctx, nil); err != nil {
		t.Errorf("WriteRecords of nothing = %v", err)
	}
	records := func(n int) []registry.RecordCommit {
		at := ada
		at.At = ada.At.Add(time.Duration(n) * time.Hour)
		return []registry.RecordCommit{
			{
				Ref: production, Message: fmt.Sprintf("promote v1.%d.0\n\nHerdbook-Seq: %d\n", n, 10*n), Author: at,
				Files: map[string][]byte{"environment.json": fmt.Appendf(nil, `{"n":%d}`, n), fmt.Sprintf("history/%d.json", n): []byte("\"x\"\n\x00")},
			},
			{Ref: production, Message: fmt.Sprintf("approve\n\nHerdbook-Seq: %d\n", 10*n+1), Author: at},
			{
				Ref: registry.EvaluationNotesRef, Message: "evaluations", Author: registry.Signature{Name: "Eve <eve>\nauthor", Email: "e>ve@x", At: at.At},
				Notes: map[registry.ObjectID][]byte{head: fmt.Appendf(nil, "{\"n\":%d}\n", n), first: []byte("{}\n")},
			},
		}
	}
	for n := range 3 {
		if err := repo.WriteRecords(ctx, records(n)); err != nil {
			t.Fatalf("WriteRecords %d: %v", n, err)
		}
		message, id, err := repo.RecordTip(ctx, production)
		if err != nil || message != fmt.Sprintf("approve\n\nHerdbook-Seq: %d\n", 10*n+1) || string(id) != plainGit(t, s, "rev-parse", production) {
			t.Errorf("RecordTip = %q, %s, %v", message, id, err)
		}
		if got, want := plainGit(t, s, "notes", "--ref=evaluations", "show", string(head)), fmt.Sprintf("{\"n\":%d}", n); got != want {
			t.Errorf("notes of %s = %q, want %q", head, got, want)
		}
	}
	if got := plainGit(t, s, "log", "--format=%s|%an|%ae|%at|%cn|%ct", production); got != strings.Join([]string{
		"approve|Ada|ada@example.org|1700007200|Ada|1700007200", "promote v1.2.0|Ada|ada@example.org|1700007200|Ada|1700007200",
		"approve|Ada|ada@example.org|1700003600|Ada|1700003600", "promote v1.1.0|Ada|ada@example.org|1700003600|Ada|1700003600",
		"approve|Ada|ada@example.org|1700000000|Ada|1700000000", "promote v1.0.0|Ada|ada@example.org|1700000000|Ada|1700000000",
	}, "\n") {
		t.Errorf("history of production:\n%s", got)
	}
	if got := plainGit(t, s, "ls-tree", "-r", "--name-only", production); got != "environment.json\nhistory/0.json\nhistory/1.json\nhistory/2.json" {
		t.Errorf("files of production:\n%s", got)
	}
	if got := plainGit(t, s, "show", production+":history/0.json"); got != "\"x\"\n\x00" {
		t.Errorf("content of a record = %q", got)
	}
	if got := plainGit(t, s, "log", "-1", "--format=%an|%ae", registry.EvaluationNotesRef); got != "Eve eveauthor|eve@x" {
		t.Errorf("author = %q", got)
	}
	plainGit(t, s, "fsck", "--strict")

	// The same records make the same commits.
	tips := plainGit(t, s, "rev-parse", production, registry.EvaluationNotesRef)
	t2 := newServer(t)
	w.git("push", "-q", t2.url(), "main")
	for n := range 3 {
		if err := t2.repo().WriteRecords(ctx, records(n)); err != nil {
			t.Fatal(err)
		}
	}
	if got := plainGit(t, t2, "rev-parse", production, registry.EvaluationNotesRef); got != tips {
		t.Errorf("commits of the same records = %s, want %s", got, tips)
	}

	// One that cannot be written leaves everything as it was.
	bad := []registry.RecordCommit{
		{Ref: registry.EvaluationNotesRef, Author: ada, Notes: map[registry.ObjectID][]byte{absentID: nil}},
		{Ref: "refs/heads/../../config", Author: ada},
		{Ref: production, Author: ada, Files: map[string][]byte{"../x": nil}},
		{Ref: production, Author: ada, Files: map[string][]byte{"a/.GIT/x": nil}},
		{Ref: production, Author: ada, Files: map[string][]byte{"a\nb": nil}},
		{Ref: production, Author: ada, Files: map[string][]byte{"": nil}},
		{Ref: production + "/below", Author: ada}, // git itself refuses: there is such a file
	}
	for _, c := range bad {
		err := repo.WriteRecords(ctx, []registry.RecordCommit{{Ref: production, Message: "good", Author: ada}, c})
		if err == nil {
			t.Errorf("WriteRecords(%s, %v, %v) = nil, want an error", c.Ref, c.Files, c.Notes)
		}
		if len(c.Notes) > 0 && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("WriteRecords with a note about an absent commit = %v, want ErrNotFound", err)
		}
	}
	noLeftovers(t, s.store.Dir())
}

// Notes stay readable when there are so many that Git spreads them over directories.
func TestManyNotes(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	var stream strings.Builder
	for i := range 300 {
		fmt.Fprintf(&stream, "commit refs/heads/main\ncommitter A <a@b> %d +0000\ndata 1\nx\n", 1700000000+i)
	}
	cmd := w.command(t.Context(), "fast-import", "--quiet", "--force")
	cmd.Stdin = strings.NewReader(stream.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fast-import: %v\n%s", err, out)
	}
	w.git("push", "-q", "origin", "main")
	commits := strings.Fields(w.git("rev-list", "main"))
	for half := range 2 {
		notes := map[registry.ObjectID][]byte{}
		for _, id := range commits[half*150 : half*150+150] {
			notes[registry.ObjectID(id)] = []byte(id)
		}
		err := s.repo().WriteRecords(t.Context(), []registry.RecordCommit{{Ref: registry.EvaluationNotesRef, Message: "m", Author: ada, Notes: notes}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(commits); i += 37 {
		if got := plainGit(t, s, "notes", "--ref=evaluations", "show", commits[i]); got != commits[i] {
			t.Errorf("note of %s = %q", commits[i], got)
		}
	}
	if got := len(strings.Split(plainGit(t, s, "notes", "--ref=evaluations", "list"), "\n")); got != len(commits) {
		t.Errorf("%d notes, want %d", got, len(commits))
	}
	// The smallest batch and the smallest push make a pack as well, and no loose objects: Sync knows of no others.
	if err := s.repo().WriteRecords(t.Context(), []registry.RecordCommit{{Ref: registry.VersionsRef, Message: "m", Author: ada}}); err != nil {
		t.Fatal(err)
	}
	w.git("commit", "-q", "--allow-empty", "-m", "one object")
	w.git("push", "-q", "origin", "main")
	if loose := must(filepath.Glob(filepath.Join(repoDir(s), "objects/??"))); len(loose) > 0 {
		t.Errorf("loose objects in %v, want packs only", loose)
	}
}
