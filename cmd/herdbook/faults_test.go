package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// site is a model on a server, with a clone, a version and an LFS object.
type site struct {
	*machine
	model   string
	dir     string
	content []byte
}

// newSite starts a server on a data directory and fills it.
func newSite(t *testing.T, data string) *site {
	t.Helper()
	m := newMachine(t, data)
	m.start()
	s := &site{machine: m, model: "acme/fraud", content: noise(300_000)}
	s.dir = m.clone(s.model, "clone")
	if err := m.upload(s.model, s.content); err != nil {
		t.Fatal(err)
	}
	m.write(s.dir, "weights.bin", pointerTo(s.content))
	m.commit(s.dir, "second")
	m.mustGit(s.dir, "tag", "v1.0.0")
	m.mustGit(s.dir, "push", "-q", "origin", "main", "v1.0.0")
	m.settled(s.model)
	return s
}

// noise is content that nothing makes shorter.
func noise(n int) []byte {
	content := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(time.Now().UnixNano())})
	_, _ = random.Read(content)
	return content
}

// evaluate records an evaluation of a name of its own.
func (s *site) evaluate(name string) error {
	return s.call(http.MethodPost, "/models/"+s.model+"/evaluations/v1.0.0", evaluation(name), nil)
}

// pushNew pushes a commit with a file to a branch.
func (s *site) pushNew(branch string, content []byte) (string, error) {
	s.t.Helper()
	s.write(s.dir, "file-"+branch, string(content))
	s.commit(s.dir, "for "+branch)
	return s.git(s.dir, "push", "-q", "origin", "HEAD:refs/heads/"+branch)
}

// reads looks whether everything can be read.
func (s *site) reads(when string) {
	s.t.Helper()
	for _, path := range []string{"/api/v1/models", "/api/v1/models/" + s.model + "/versions/v1.0.0", "/api/v1/events", "/" + s.model, "/healthz", "/metrics"} {
		if _, _, err := s.send(http.MethodGet, path, nil); err != nil {
			s.t.Errorf("%s: GET %s = %v", when, path, err)
		}
	}
	if _, _, err := s.send(http.MethodGet, "/v2/"+s.model+"/manifests/v1.0.0", nil, "Accept", "application/vnd.oci.image.manifest.v1+json"); err != nil {
		s.t.Errorf("%s: manifest = %v", when, err)
	}
	if err := s.download(s.model, oidOf(s.content), len(s.content)); err != nil {
		s.t.Errorf("%s: LFS download = %v", when, err)
	}
	into := filepath.Join(s.work, "read-"+strings.ReplaceAll(when, " ", "-"))
	if _, err := s.git(s.work, "clone", "-q", s.url()+"/"+s.model+".git", into); err != nil {
		s.t.Errorf("%s: %v", when, err)
	}
}

// writes looks whether everything can be written.
func (s *site) writes(when string) {
	s.t.Helper()
	name := strings.ReplaceAll(when, " ", "-")
	if err := s.evaluate(name); err != nil {
		s.t.Errorf("%s: evaluation = %v", when, err)
	}
	content := noise(100_000)
	if err := s.upload(s.model, content); err != nil {
		s.t.Errorf("%s: LFS upload = %v", when, err)
	} else if err := s.download(s.model, oidOf(content), len(content)); err != nil {
		s.t.Errorf("%s: LFS download = %v", when, err)
	}
	if _, err := s.pushNew(name, noise(10_000)); err != nil {
		s.t.Errorf("%s: %v", when, err)
	}
}

// fill takes all space of a file system but for some bytes, until free is called.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var full error
	size := int64(0)
	for _, step := range []int{1 << 20, 4 << 10} {
		for full = nil; full == nil; {
			var n int
			n, full = f.Write(make([]byte, step))
			size += int64(n)
		}
	}
	if !errors.Is(full, syscall.ENOSPC) {
		t.Fatalf("filling the disk ends with %v", full)
	}
	if err := errors.Join(f.Truncate(max(0, size-leave)), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A full disk refuses what is new and says why; it reads on, and goes on by itself when there is space again.
func TestFaultDiskFull(t *testing.T) {
	mustHaveLoop(t)
	tests := []struct {
		name string
		disk func(t *testing.T) string
	}{
		{"tmpfs", func(t *testing.T) string {
			mount := t.TempDir()
			if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=48m", "none", mount).CombinedOutput(); err != nil {
				t.Fatalf("mount: %v\n%s", err, out)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(mount, 0); err != nil {
					t.Errorf("unmount: %v, %v", err, syscall.Unmount(mount, syscall.MNT_DETACH))
				}
			})
			return mount
		}},
		{"ext4", func(t *testing.T) string { return newDisk(t).mount }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			mount := test.disk(t)
			s := newSite(t, filepath.Join(mount, "data"))
			free := fill(t, mount, 256<<10)
			big := noise(1 << 20)
			refused := func(what string, err error) {
				t.Helper()
				if statusOf(err) != http.StatusInsufficientStorage || !strings.Contains(err.Error(), "no space left") || strings.Contains(err.Error(), mount) {
					t.Errorf("%s on a disk that is full = %v, want 507 and why, and no path", what, err)
				}
			}
			refused("LFS upload", s.upload(s.model, big))
			if out, err := s.pushNew("big", big); err == nil || !strings.Contains(out, "No space left") {
				t.Errorf("push to a disk that is full = %v\n%s\nwant what is wrong", err, out)
			}
			free()
			free = fill(t, mount, 0)
			var err error
			for i := 0; i < 200 && err == nil; i++ { // a page of the journal may have room left
				err = s.evaluate(fmt.Sprintf("full-%d", i))
			}
			refused("evaluation", err)
			refused("LFS upload", s.upload(s.model, noise(70_000)))
			if out, err := s.pushNew("small", noise(5000)); err == nil || !strings.Contains(out, "remote: herdbook: the server has no space left") {
				t.Errorf("push to a disk without a byte = %v\n%s\nwant what is wrong", err, out)
			}
			s.reads("disk full")
			if err := s.temporary(); err != nil {
				t.Error(err)
			}
			free()
			s.writes("space again")
			s.reads("space again")
			s.fsck()
			s.halt()
			s.start()
			s.reads("after a restart")
			s.halt()
			s.fsck()
		})
	}
}

// A disk that the kernel made read-only, as it does after an error of the hardware, is still read.
func TestFaultReadOnlyDisk(t *testing.T) {
	mustHaveLoop(t)
	d := newDisk(t)
	s := newSite(t, d.data())
	out, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", d.image).Output()
	if err != nil {
		t.Fatal(err)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(out))), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("test\n"), 0); err != nil {
		t.Skipf("the kernel does not make a file system read-only on demand: %v", err)
	}
	for what, err := range map[string]error{"LFS upload": s.upload(s.model, noise(70_000)), "evaluation": s.evaluate("read-only")} {
		if statusOf(err) != http.StatusServiceUnavailable {
			t.Errorf("%s on a read-only disk = %v, want 503", what, err)
		}
	}
	if out, err := s.pushNew("refused", noise(100)); err == nil || !strings.Contains(out, "remote: herdbook: the server cannot write to its disk") {
		t.Errorf("push to a read-only disk = %v\n%s\nwant what is wrong", err, out)
	}
	s.reads("read-only")
	s.kill()
}

// A server without file descriptors refuses, and goes on when there are some.
func TestFaultTooManyOpenFiles(t *testing.T) {
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skipf("no program sets limits of the running server: %v", err)
	}
	s := newSite(t, "")
	pid := strconv.Itoa(s.cmd.Process.Pid)
	limit := func(soft string) {
		t.Helper()
		if out, err := exec.Command("prlimit", "--pid", pid, "--nofile="+soft+":").CombinedOutput(); err != nil {
			t.Fatalf("prlimit: %v\n%s", err, out)
		}
	}
	before, err := exec.Command("prlimit", "--pid", pid, "--nofile", "--output", "SOFT", "--noheadings").Output()
	if err != nil {
		t.Fatal(err)
	}
	content := noise(70_000)
	href, err := s.lfsAction(s.model, "upload", "basic", oidOf(content), len(content))
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		_, _, err := s.send(http.MethodPut, href, bytes.NewReader(content), "Content-Type", "application/octet-stream")
		return err
	}
	// The connections that there are stay; nothing else can be opened.
	limit("3")
	if err := put(); statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("LFS upload without a file descriptor = %v, want 503", err)
	}
	if err := s.evaluate("no-file"); err != nil {
		t.Errorf("evaluation without a file descriptor = %v: what is open serves it", err)
	}
	for _, spare := range []int{1, 2, 3, 5, 8, 12} {
		open, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		limit(strconv.Itoa(len(open) + spare))
		out, err := s.pushNew(fmt.Sprintf("few%d", spare), noise(5000))
		if err != nil && !strings.Contains(out, "error: 503") && !strings.Contains(out, "cannot do this now") {
			t.Errorf("push with %d file descriptors left: %v\nwant no error, or 503 and a hint", spare, err)
		}
	}
	limit(strings.TrimSpace(string(before)))
	if err := put(); err != nil {
		t.Errorf("LFS upload after that = %v", err)
	}
	s.writes("files again")
	s.reads("files again")
	s.halt()
	s.fsck()
	if open := openPushes(t, s.data); len(open) > 0 {
		t.Errorf("pushes that the journal takes to be under way: %v", open)
	}
}

// Clients that stop in the middle, or say nothing at all, keep nobody from anything.
func TestFaultStalledClients(t *testing.T) {
	s := newSite(t, "")
	auth := "Authorization: Bearer " + s.token + "\r\nHost: " + s.addr + "\r\n"
	begin := func(text string) {
		t.Helper()
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		begin("")
		begin("GET /api/v1/models HTTP/1.1\r\n")
	}
	content := noise(50_000)
	href, err := s.lfsAction(s.model, "upload", "basic", oidOf(content), len(content))
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(href, s.url())
	// A push to the branch that others push to, and a fetch whose answer nobody reads.
	push := "00a00000000000000000000000000000000000000000 " + strings.Repeat("1", 40) + " refs/heads/main\x00 report-status side-band-64k object-format=sha1 agent=git/2.39.5-and-some\n"
	for range 8 {
		begin("PUT " + path + " HTTP/1.1\r\n" + auth + "Content-Length: 50000\r\n\r\n" + string(content[:100]))
		begin("POST /" + s.model + ".git/git-receive-pack HTTP/1.1\r\n" + auth + "Content-Type: application/x-git-receive-pack-request\r\nContent-Length: 100000\r\n\r\n" + push[:100])
		begin("POST /" + s.model + ".git/git-upload-pack HTTP/1.1\r\n" + auth + "Content-Type: application/x-git-upload-pack-request\r\nContent-Length: 1000\r\n\r\n0011command=fetch")
		begin("POST /api/v1/models/" + s.model + "/evaluations/v1.0.0 HTTP/1.1\r\n" + auth + "Content-Length: 1000\r\n\r\n{")
	}
	start := time.Now()
	s.writes("beside stalled clients")
	s.reads("beside stalled clients")
	if err := s.upload(s.model, content); err != nil {
		t.Errorf("upload of what a stalled client sends too = %v", err)
	}
	s.write(s.dir, "more", "more")
	s.commit(s.dir, "more")
	if _, err := s.git(s.dir, "push", "-q", "origin", "main"); err != nil {
		t.Errorf("push to the branch that stalled clients push to: %v", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("all that took %s: stalled clients keep others waiting", took)
	}
	s.kill()
}

// A second server on the same directory is refused, and the first does not notice.
func TestFaultSecondServer(t *testing.T) {
	s := newSite(t, "")
	out, code := s.command("serve", "--listen", "127.0.0.1:0")
	if code != 1 || !strings.Contains(out, "another herdbook server has it open") {
		t.Errorf("second server = status %d, want 1 and why\n%s", code, out)
	}
	s.writes("beside a second server")
	s.halt()
}

// flip turns a bit at an offset of a file; a negative one counts from the end.
func flip(t *testing.T, path string, offset int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if offset < 0 {
		offset += len(text)
	}
	text[offset] ^= 4
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(text[offset:offset+1], int64(offset))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func onlyFile(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("files %s = %v, %v", pattern, found, err)
	}
	return found[0]
}

func TestFaultFlippedBit(t *testing.T) {
	t.Run("in the index", func(t *testing.T) {
		s := newSite(t, "")
		s.halt()
		s.start()
		before := s.answers(s.model)
		s.halt()
		flip(t, filepath.Join(s.data, "index.db"), 20_000)
		s.start()
		if after := s.answers(s.model); after != before {
			t.Errorf("the answers differ: %s", firstDifference(before, after))
		}
		if !strings.Contains(s.log(), "set aside and rebuilt") {
			t.Errorf("the log does not say that the index was rebuilt\n%s", tail(s.log()))
		}
		s.halt()
		s.fsck()
	})
	t.Run("in the journal", func(t *testing.T) {
		s := newSite(t, "")
		path := onlyFile(t, filepath.Join(s.data, "journal", "*.log"))
		// While the server runs fsck finds it, and what is in the index is still answered.
		flip(t, path, 600)
		if out, code := s.command("fsck"); code != 1 || !strings.Contains(out, "damage: journal") {
			t.Errorf("fsck = status %d, want damage of the journal\n%s", code, out)
		}
		s.reads("damaged journal")
		s.halt()
		damaged, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// Nothing of it is cut off: what stands behind the damage was acknowledged.
		if err := s.tryStart(); err == nil {
			t.Error("the server starts on a damaged journal")
		} else if !strings.Contains(s.log(), "journal is corrupt") {
			t.Errorf("the log does not say that the journal is damaged\n%s", tail(s.log()))
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, damaged) {
			t.Errorf("the damaged journal was changed: %d bytes, want %d (%v)", len(now), len(damaged), err)
		}
		flip(t, path, 600)
		s.start()
		s.reads("mended journal")
		s.halt()
		s.fsck()
	})
	t.Run("in a pack", func(t *testing.T) {
		s := newSite(t, "")
		other := s.clone("acme/other", "other")
		s.mustGit(other, "push", "-q", "origin", "main")
		packs, err := filepath.Glob(filepath.Join(s.data, "repos", s.model+".git", "objects", "pack", "*.pack"))
		if err != nil || len(packs) == 0 {
			t.Fatalf("packs = %v, %v", packs, err)
		}
		for _, pack := range packs {
			flip(t, pack, -40) // in the last object
		}
		if out, code := s.command("fsck"); code != 1 || !strings.Contains(out, "damage: repository "+s.model) {
			t.Errorf("fsck = status %d, want damage of the repository\n%s", code, out)
		}
		if out, err := s.git(s.work, "clone", s.url()+"/"+s.model+".git", "damaged"); err == nil {
			t.Errorf("clone of a damaged repository succeeds\n%s", out)
		}
		s.mustGit(s.work, "clone", "-q", s.url()+"/acme/other.git", "whole")
		s.mustGit(other, "push", "-q", "origin", "main:more")
		s.halt()
	})
	t.Run("in a blob", func(t *testing.T) {
		s := newSite(t, "")
		oid := oidOf(s.content)
		path := filepath.Join(s.data, "blobs", "sha256", oid[:2], oid)
		flip(t, path, 1000)
		if err := s.download(s.model, oid, len(s.content)); err == nil || !strings.Contains(err.Error(), "holds") {
			t.Errorf("download of a damaged object = %v, want content of another digest", err)
		}
		if out, code := s.command("fsck"); code != 1 || !strings.Contains(out, "damage: blob sha256:"+oid) {
			t.Errorf("fsck = status %d, want damage of the blob\n%s", code, out)
		}
		if err := s.download(s.model, oid, len(s.content)); statusOf(err) != http.StatusInternalServerError {
			t.Errorf("download of an object that was set aside = %v, want 500", err)
		}
		if !strings.Contains(s.log(), oid) {
			t.Errorf("the log does not name the object\n%s", tail(s.log()))
		}
		if err := s.upload(s.model, s.content); err != nil {
			t.Errorf("upload again = %v", err)
		}
		s.reads("mended blob")
		s.fsck()
		s.halt()
	})
}

// rejected is what git says of a push that somebody else was before, by the server's words or its own.
var rejected = regexp.MustCompile(`rejected\] +main -> main`)

// Of pushes to one branch that begin at the same commit one is taken, and the others are told so.
func TestFaultPushesToOneRef(t *testing.T) {
	const clients, rounds = 8, 4
	m := newMachine(t, "")
	m.start()
	const model = "acme/fraud"
	first := m.clone(model, "first")
	m.mustGit(first, "push", "-q", "origin", "main")
	dirs := make([]string, clients)
	for i := range dirs {
		dirs[i] = filepath.Join(m.work, "clone"+strconv.Itoa(i))
		m.mustGit(m.work, "clone", "-q", m.url()+"/"+model+".git", dirs[i])
	}
	for round := range rounds {
		commits := make([]string, clients)
		for i, dir := range dirs {
			m.mustGit(dir, "fetch", "-q", "origin")
			m.mustGit(dir, "reset", "-q", "--hard", "origin/main")
			m.write(dir, "file", fmt.Sprintf("%d of round %d", i, round))
			commits[i] = m.commit(dir, fmt.Sprintf("%d of round %d", i, round))
		}
		outs, errs := make([]string, clients), make([]error, clients)
		var wait sync.WaitGroup
		for i, dir := range dirs {
			wait.Go(func() { outs[i], errs[i] = m.git(dir, "push", "origin", "main") })
		}
		wait.Wait()
		winner := ""
		for i := range dirs {
			switch {
			case errs[i] == nil && winner == "":
				winner = commits[i]
			case errs[i] == nil:
				t.Errorf("round %d: a second push was taken", round)
			case !rejected.MatchString(outs[i]):
				t.Errorf("round %d: a push that lost says\n%s\nwant git's words", round, outs[i])
			}
		}
		refs, err := m.refs(model)
		if err != nil || winner == "" || refs["refs/heads/main"] != winner {
			t.Errorf("round %d: main is at %q (%v), want %q of the push that was taken\n%s", round, refs["refs/heads/main"], err, winner, strings.Join(outs, "\n"))
		}
	}
	m.mustGit(dirs[0], "fetch", "-q", "origin")
	if got := m.mustGit(dirs[0], "rev-list", "--count", "origin/main"); got != strconv.Itoa(rounds+1) {
		t.Errorf("main has %s commits, want %d", got, rounds+1)
	}
	m.halt()
	if open := openPushes(t, m.data); len(open) > 0 {
		t.Errorf("pushes that the journal takes to be under way: %v", open)
	}
	m.fsck()
}

// Garbage that is collected without any patience is nothing that somebody was told the server has, unless nothing names it.
func TestFaultCollectWhileUploading(t *testing.T) {
	m := newMachine(t, "")
	m.start()
	l := newLoad(m, seed(t), 2)
	stop := l.run()
	end := make(chan struct{})
	var wait sync.WaitGroup
	objects := 0
	var collections atomic.Int64
	wait.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if out, code := m.command("gc", "--grace", "0s", "--remove"); code != 0 {
				t.Errorf("gc = status %d\n%s", code, out)
				return
			}
			collections.Add(1)
		}
	})
	// Objects that nobody pushes come and go; what a model is said to have, it has.
	wait.Go(func() {
		const model = "acme/uploads"
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			content := fmt.Appendf(nil, "object %d", i%20)
			if err := m.upload(model, content); err != nil {
				t.Errorf("upload = %v", err)
				return
			}
			objects++
			if err := m.download(model, oidOf(content), len(content)); err != nil && statusOf(err) != http.StatusNotFound {
				t.Errorf("download of an object that is there or is let go of = %v", err)
				return
			}
		}
	})
	const enough = 5
	for begin := time.Now(); time.Since(begin) < 4*time.Second || collections.Load() < enough && time.Since(begin) < 20*time.Second; {
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	close(end)
	wait.Wait()
	facts := l.now()
	pushed := 0
	for i, f := range facts {
		switch f.Kind {
		case factObject:
			facts[i].Done = false // what no push named may be gone; fsck looks for what one did
		case factVersion:
			if f.Done {
				pushed++
			}
		}
	}
	m.check(facts)
	m.fsck()
	for _, model := range l.models() {
		if _, err := m.git(m.work, "clone", "-q", m.url()+"/"+model+".git", filepath.Join("whole", model)); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d collections, %d objects, %s", collections.Load(), objects, l.summary())
	if collections.Load() < enough || pushed == 0 || objects < 20 {
		t.Errorf("%d collections beside %d versions and %d objects: too few to say anything", collections.Load(), pushed, objects)
	}
	m.halt()
}
