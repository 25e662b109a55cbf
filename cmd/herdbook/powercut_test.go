package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// disk is a file system in a file, on which a server keeps its data.
type disk struct {
	t     testing.TB
	dir   string
	image string
	mount string

	journal string // the image that the journal is on, if that has one of its own
}

// mustBeRoot skips a test that mounts file systems where that cannot be done.
func mustBeRoot(t testing.TB, programs ...string) {
	t.Helper()
	skip := func(why string) {
		t.Helper()
		t.Skipf("power cuts and broken disks are simulated with file systems of their own: %s", why)
	}
	if os.Geteuid() != 0 {
		skip("this needs root")
	}
	for _, program := range append(programs, "mount", "umount", "unshare") {
		if _, err := exec.LookPath(program); err != nil {
			skip(err.Error())
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "none", dir).CombinedOutput(); err != nil {
		skip(fmt.Sprintf("mount: %s", bytes.TrimSpace(out)))
	}
	if err := syscall.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
}

// mustHaveLoop is mustBeRoot for tests that need loop devices too.
func mustHaveLoop(t testing.TB) {
	t.Helper()
	mustBeRoot(t, "mkfs.ext4", "losetup")
	if out, err := exec.Command("losetup", "--find").CombinedOutput(); err != nil {
		t.Skipf("no loop device: %s", bytes.TrimSpace(out))
	}
}

// newDisk makes a file system that by itself writes nothing for a long time, so that it hides no missing sync.
func newDisk(t testing.TB) *disk {
	t.Helper()
	d := &disk{t: t, dir: t.TempDir()}
	d.mount = filepath.Join(d.dir, "mount")
	d.image = d.newImage("image", 192<<20)
	if err := os.Mkdir(d.mount, 0o755); err != nil {
		t.Fatal(err)
	}
	mountImage(t, d.image, d.mount)
	return d
}

// newSplitDisk is a disk with another one for the journal. On one file system each sync of a file takes along the names that
// were made before it, and so the journal's hides that those of the repositories and blobs are missing.
func newSplitDisk(t testing.TB) *disk {
	t.Helper()
	d := newDisk(t)
	d.journal = d.newImage("image.journal", 64<<20)
	at := journalOf(d.mount)
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	mountImage(t, d.journal, at)
	d.run("sync", "-f", d.mount)
	return d
}

// journalOf is where the journal is on a disk.
func journalOf(mount string) string { return filepath.Join(mount, "data", "journal") }

func (d *disk) newImage(name string, bytes int64) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(bytes), f.Close())
	}
	if err != nil {
		d.t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
	return path
}

func (d *disk) data() string { return filepath.Join(d.mount, "data") }

func (d *disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// mountImage mounts a file system until the test ends. The loop device goes with it.
func mountImage(t testing.TB, image, at string, options ...string) (unmount func()) {
	t.Helper()
	o := strings.Join(append([]string{"loop", "commit=600", "errors=remount-ro"}, options...), ",")
	if out, err := exec.Command("mount", "-t", "ext4", "-o", o, image, at).CombinedOutput(); err != nil {
		t.Fatalf("mount %s: %v\n%s", image, err, out)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		// A process that was killed just now may hold it for a moment.
		var err error
		for range 100 {
			if err = syscall.Unmount(at, 0); !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			err = syscall.Unmount(at, syscall.MNT_DETACH)
			t.Errorf("unmount %s: it was busy, and is detached: %v", at, err)
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// cut copies the disk as it is at this moment, while the server and its git programs stand still: what only the page cache
// has is not in the copy.
func (d *disk) cut(m *machine, name string) (image string) {
	d.t.Helper()
	family := m.family()
	for _, pid := range family {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	// A thread that is in the kernel stands still when it comes back from there: until then it may write behind the copy's back.
	eventuallyNil(d.t, 10*time.Second, func() error {
		for _, pid := range family {
			if task := moving(pid); task != "" {
				return fmt.Errorf("a task of process %d does not stop: %s", pid, task)
			}
		}
		return nil
	})
	image = filepath.Join(d.dir, name)
	out, err := exec.Command("cp", "--sparse=always", d.image, image).CombinedOutput()
	if err == nil && d.journal != "" {
		out, err = exec.Command("cp", "--sparse=always", d.journal, image+".journal").CombinedOutput()
	}
	for _, pid := range family {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	if err != nil {
		d.t.Fatalf("copy the disk: %v\n%s", err, out)
	}
	return image
}

// moving is a task of a process that does not stand still.
func moving(pid int) string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		// Source: proc_pid_stat(5): the state is behind the name, which is in parentheses.
		_, state, _ := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), " ")
		if state != "" && !strings.ContainsAny(state[:1], "TtZX") {
			return string(stat)
		}
	}
	return ""
}

// newBoot is a command before which another command runs as after a restart of the machine: the kernel gives another id for
// its run.
func newBoot(t testing.TB) []string {
	t.Helper()
	id := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(id, []byte("00000000-0000-4000-8000-000000000000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, id}
}

// afterCut starts a server on a copy of a disk and gives it to look.
func (d *disk) afterCut(m *machine, image string, look func(after *machine)) {
	d.t.Helper()
	at := image + ".mount"
	if err := os.Mkdir(at, 0o755); err != nil {
		d.t.Fatal(err)
	}
	unmount := mountImage(d.t, image, at)
	defer os.Remove(image)
	defer unmount()
	if d.journal != "" {
		unmountJournal := mountImage(d.t, image+".journal", journalOf(at))
		defer os.Remove(image + ".journal")
		defer unmountJournal()
	}
	after := newMachine(d.t, filepath.Join(at, "data"))
	after.token, after.under = m.token, newBoot(d.t)
	defer after.kill()
	if err := after.tryStart(); err != nil {
		d.t.Errorf("the server does not start after the power cut: %v\n%s", err, tail(after.log()))
		return
	}
	look(after)
	after.halt()
	after.under = nil
	after.fsck()
}

// TestPowerCut takes the power at the moment at which something was acknowledged. Git alone does not keep a push then, see
// docs/operations.md.
func TestPowerCut(t *testing.T) {
	mustHaveLoop(t)
	d := newSplitDisk(t)
	m := newMachine(t, d.data())
	m.start()
	l := &ledger{}
	const rounds = 3
	type cut struct {
		what, image string
		facts       []fact
	}
	var cuts []cut
	// After each step the power goes, and comes again on a copy.
	step := func(what string, do func() error, asked ...fact) {
		t.Helper()
		if err := l.note(do, asked...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		cuts = append(cuts, cut{what, d.cut(m, "cut"+strconv.Itoa(len(cuts))), l.now()})
	}
	for round := range rounds {
		model := fmt.Sprintf("acme/model%d", round)
		dir := m.clone(model, "clone"+strconv.Itoa(round))
		first := m.mustGit(dir, "rev-parse", "HEAD")
		push := func(args ...string) func() error {
			return func() error { _, err := m.git(dir, append([]string{"push", "-q", "origin"}, args...)...); return err }
		}
		main := func(commit string) fact {
			return fact{Kind: factRef, Model: model, Name: "refs/heads/main", Value: commit}
		}
		step("first push", push("main"), main(first))
		content := bytes.Repeat([]byte(model), 50_000)
		step("LFS upload", func() error { return m.upload(model, content) }, fact{Kind: factObject, Model: model, Name: oidOf(content), Value: strconv.Itoa(len(content))})
		m.write(dir, "weights.bin", pointerTo(content))
		commit := m.commit(dir, "second")
		m.mustGit(dir, "tag", "v1.0.0")
		step("version", push("main", "v1.0.0"), main(commit), fact{Kind: factRef, Model: model, Name: "refs/tags/v1.0.0", Value: commit},
			fact{Kind: factVersion, Model: model, Name: "v1.0.0", Value: commit})
		commit = m.commit(dir, "third")
		step("push to a branch in a folder", push("HEAD:refs/heads/work/deep/topic"), fact{Kind: factRef, Model: model, Name: "refs/heads/work/deep/topic", Value: commit})
		step("deletion of a branch", push(":refs/heads/work/deep/topic"), fact{Kind: factRef, Model: model, Name: "refs/heads/work/deep/topic", Value: ""})
		step("evaluation", func() error {
			return m.call(http.MethodPost, "/models/"+model+"/evaluations/v1.0.0", evaluation("calls"), nil)
		}, fact{Kind: factEvaluated, Model: model, Name: "calls", Value: "v1.0.0"})
		step("promotion", func() error {
			return m.call(http.MethodPost, "/models/"+model+"/environments/staging/promotions", map[string]any{"version": "v1.0.0", "reason": "good"}, nil)
		}, fact{Kind: factPromoted, Model: model, Name: "good", Value: "v1.0.0"})
		step("lock", func() error {
			_, _, err := m.send(http.MethodPost, "/"+model+".git/info/lfs/locks", strings.NewReader(`{"path":"weights.bin"}`))
			return err
		}, fact{Kind: factLocked, Model: model, Name: "weights.bin"})
		var token struct{ ID string }
		if err := m.call(http.MethodPost, "/tokens", map[string]any{"owner": "ada", "role": "writer"}, &token); err != nil {
			t.Fatal(err)
		}
		step("token", func() error { return nil }, fact{Kind: factToken, Name: token.ID})
	}
	// The server writes the records into the repositories within seconds.
	records := map[int]map[string]string{} // by cut
	for round := range rounds {
		var refs map[string]string
		eventuallyNil(t, 5*time.Second, func() (err error) {
			if refs, err = m.refs(fmt.Sprintf("acme/model%d", round)); err == nil && (refs["refs/herdbook/versions"] == "" || refs["refs/notes/evaluations"] == "" || refs["refs/herdbook/environments/staging"] == "") {
				err = fmt.Errorf("refs of the server = %v, want those of the version, the evaluation and the environment", refs)
			}
			return err
		})
		records[len(cuts)] = refs
		step("records in the repository", func() error { return nil })
	}
	for round := range rounds {
		model := fmt.Sprintf("acme/model%d", round)
		step("deletion of a model", func() error { return m.call(http.MethodDelete, "/models/"+model, nil, nil) }, fact{Kind: factDeleted, Model: model})
	}
	m.kill()

	for i, c := range cuts {
		d.afterCut(m, c.image, func(after *machine) {
			after.check(c.facts)
			if records[i] == nil {
				return
			}
			// Whether they were written before the cut or are written after it, they are what they were.
			model := fmt.Sprintf("acme/model%d", slices.Index(slices.Sorted(maps.Keys(records)), i))
			eventuallyNil(t, 5*time.Second, func() error {
				got, err := after.refs(model)
				if err == nil && fmt.Sprint(got) != fmt.Sprint(records[i]) {
					err = fmt.Errorf("refs = %v, want %v", got, records[i])
				}
				return err
			})
		})
		if t.Failed() {
			t.Fatalf("power was cut after: %s", c.what)
		}
	}
}

// TestPowerCutUnderLoad takes the power at moments that nobody chose.
func TestPowerCutUnderLoad(t *testing.T) {
	mustHaveLoop(t)
	random := seed(t)
	d := newSplitDisk(t)
	m := newMachine(t, d.data())
	m.start()
	l := newLoad(m, random, 2)
	type cut struct {
		image string
		facts []fact
	}
	var cuts []cut
	stop := l.run()
	for i := range 4 {
		time.Sleep(time.Duration(300+random.IntN(700)) * time.Millisecond)
		done := l.now()
		image := d.cut(m, "cut"+strconv.Itoa(i))
		cuts = append(cuts, cut{image, allowed(done, l.now())})
	}
	stop()
	t.Log(l.summary())
	m.kill()
	for i, c := range cuts {
		d.afterCut(m, c.image, func(after *machine) { after.check(c.facts) })
		if t.Failed() {
			t.Fatalf("cut %d of %d", i, len(cuts))
		}
	}
}
