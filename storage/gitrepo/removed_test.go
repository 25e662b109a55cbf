package gitrepo_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/storage/gitrepo"
)

// A repository that is removed while a push to it is on its way is gone, and the next Open finds nothing wrong.
func TestRemoveDuringPush(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	content := make([]byte, 200_000)
	rand.Read(content)
	w.commit("weights", string(content))
	head := string(w.rev("HEAD"))
	pack, err := w.command(t.Context(), "pack-objects", "--stdout", "--all", "-q").Output()
	if err != nil {
		t.Fatal(err)
	}
	in, client := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.url()+"/git-receive-pack", in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	ended := make(chan error, 1)
	go func() {
		answer, err := http.DefaultClient.Do(r)
		if err == nil {
			_, _ = io.Copy(io.Discard, answer.Body)
			err = answer.Body.Close()
		}
		ended <- err
	}()
	command := strings.Repeat("0", 40) + " " + head + " refs/heads/main\x00report-status side-band-64k"
	if _, err := client.Write(append(fmt.Appendf(nil, "%04x%s0000", 4+len(command), command), pack[:len(pack)/2]...)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(gitrepo.DirOf(s.store), "acme", "fraud.git")
	for begun := false; !begun; time.Sleep(5 * time.Millisecond) {
		found, err := filepath.Glob(filepath.Join(path, "objects", "tmp_objdir-*", "pack", "tmp_*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			// Git has read the commits, and keeps what it found out about the repository.
			info, err := os.Stat(found[0])
			begun = err == nil && info.Size() > int64(len(content)/4)
		}
	}
	if err := s.store.Remove(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write(pack[len(pack)/2:]); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a push that was under way left something at the place of the removed repository (%v)", err)
	}
}

func TestOpenBesideRemainsOfARepository(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "acme", "fraud.git", "objects", "tmp_objdir-incoming-x", "pack"), 0o750); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir) // fails the test when it cannot
}

// What a first push that was refused leaves is taken away; a repository with anything in it, or that somebody pushes to, is not.
func TestRemoveUnused(t *testing.T) {
	s := newServer(t)
	there := func() bool { return must(s.repo().Exists()) }
	remove := func() {
		t.Helper()
		mustDo(t, s.store.RemoveUnused(t.Context(), fraud))
	}
	remove() // there is none
	must(s.store.Create(t.Context(), fraud))
	unlock := s.store.SharePush(s.repo())
	remove()
	if !there() {
		t.Error("a repository that somebody pushes to is removed")
	}
	unlock()
	in, client := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- s.store.ReceivePack(t.Context(), gitrepo.ReceivePack{
			Repository: s.repo(), In: in, Out: io.Discard, Check: func(context.Context, *gitrepo.Push) error { return nil },
		})
	}()
	if _, err := io.WriteString(client, "00"); err != nil {
		t.Fatal(err)
	}
	remove()
	if !there() {
		t.Error("a repository is removed to which somebody begins to push")
	}
	_ = client.Close()
	<-ended
	mustDo(t, os.WriteFile(filepath.Join(repoDir(s), "HEAD"), []byte("ref: refs/heads/trunk\n"), 0o640))
	remove()
	if !there() {
		t.Error("a repository with a branch that somebody chose is removed")
	}
	mustDo(t, os.WriteFile(filepath.Join(repoDir(s), "HEAD"), []byte("ref: refs/heads/main\n"), 0o640))
	remove()
	if there() {
		t.Error("a repository without anything in it is still there")
	}
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	remove()
	bareGit(t, repoDir(s), "", "update-ref", "-d", "refs/heads/main")
	remove()
	if !there() {
		t.Error("a repository with objects is removed")
	}
}
