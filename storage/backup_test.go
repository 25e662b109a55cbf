package storage_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/internal/durable/durabletest"
)

// backedUp is a data directory with a model whose repository has commits, and a backup of it.
type backedUp struct {
	*storage.Data
	t    *testing.T
	dir  string
	to   string
	fail durable.Op // the step that fails, if it is set
}

func newBackedUp(t *testing.T) *backedUp {
	t.Helper()
	b := &backedUp{t: t, dir: t.TempDir(), to: filepath.Join(t.TempDir(), "backup")}
	fsys := durable.FS{Hook: func(op durable.Op, path string, do func() error) error {
		if op == b.fail {
			return &os.PathError{Op: string(op), Path: path, Err: syscall.EIO}
		}
		return durabletest.NoSync().Hook(op, path, do)
	}}
	var err error
	if b.Data, err = storage.Open(t.Context(), storage.Config{Dir: b.dir, Log: discard, FS: fsys}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeData(t, b.Data) })
	fill(t, b.Data)
	b.add("first")
	return b
}

// add brings a commit, in a pack of its own, and a blob that the model owns.
func (b *backedUp) add(text string) {
	b.t.Helper()
	stream := fmt.Sprintf("commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\ndata %d\n%s\nfrom refs/heads/main^0\nM 100644 inline f\ndata %d\n%s\n", len(text), text, len(text), text)
	git := func(in string, args ...string) error {
		cmd := exec.CommandContext(b.t.Context(), "git", append([]string{"-c", "fastimport.unpackLimit=0"}, args...)...)
		cmd.Dir = filepath.Join(b.dir, "repos", "acme", "fraud.git")
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
		cmd.Stdin = strings.NewReader(in)
		return cmd.Run()
	}
	if git("", "rev-parse", "--verify", "-q", "main") != nil {
		stream = strings.Replace(stream, "from refs/heads/main^0\n", "", 1)
	}
	if err := git(stream, "fast-import", "--quiet"); err != nil {
		b.t.Fatalf("git fast-import: %v", err)
	}
	record := registry.BlobsLinked{ModelID: "m1", Blobs: []registry.LinkedBlob{putBlob(b.t, b.Data, "blob of "+text)}}
	if err := b.Commit(b.t.Context(), registry.Group{At: begin, Records: []registry.Record{record}}); err != nil {
		b.t.Fatal(err)
	}
}

// backup makes a backup, or one that is broken off at a step.
func (b *backedUp) backup(fail durable.Op) storage.Backup {
	b.t.Helper()
	b.fail = fail
	defer func() { b.fail = "" }()
	made, err := b.Backup(b.t.Context(), b.to, storage.Report{Found: func(f storage.Finding) { b.t.Errorf("Backup finds %+v, want nothing", f) }})
	if want := fail != ""; (err != nil) != want || want && !errors.Is(err, syscall.EIO) {
		b.t.Fatalf("Backup with a fault at %q = %v", fail, err)
	}
	return made
}

// files are the blobs and the files of objects in the backup, by their paths in it.
func (b *backedUp) files() map[string]fs.FileMode {
	b.t.Helper()
	found := map[string]fs.FileMode{}
	err := filepath.WalkDir(b.to, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(path, "/blobs/") && !strings.Contains(path, "/objects/") {
			return err
		}
		info, err := e.Info()
		found[strings.TrimPrefix(path, b.to+"/")] = info.Mode()
		return err
	})
	if err != nil || len(found) == 0 {
		b.t.Fatalf("files of the backup = %v, %v", found, err)
	}
	return found
}

// zero makes zeros of files of the backup, in place, as a power cut does of what was not synced.
func (b *backedUp) zero(files map[string]fs.FileMode) {
	b.t.Helper()
	for name, mode := range files {
		path := filepath.Join(b.to, name)
		zeros := make([]byte, len(readFile(b.t, path)))
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, zeros, 0o600), os.Chmod(path, mode)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// check restores the backup and compares.
func (b *backedUp) check(name string) {
	b.t.Helper()
	to := filepath.Join(b.t.TempDir(), "data")
	found := []string{}
	report := storage.Report{Found: func(f storage.Finding) {
		if f.Severity == storage.Damage {
			found = append(found, fmt.Sprint(f.What, ": ", f.Problem))
		}
	}}
	if err := storage.RestoreOn(b.t.Context(), durabletest.NoSync(), b.to, to); err != nil {
		b.t.Errorf("%s: Restore = %v", name, err)
		return
	}
	d, err := storage.Open(b.t.Context(), storage.Config{Dir: to, Log: discard})
	if err != nil {
		b.t.Errorf("%s: Open of what was restored = %v", name, err)
		return
	}
	defer closeData(b.t, d)
	if _, err := d.Fsck(b.t.Context(), storage.FsckOptions{}, report); err != nil || len(found) > 0 {
		b.t.Errorf("%s: Fsck of what was restored = %v and finds %q, want nothing", name, err, found)
	}
	one, two := b.Repositories.Repository(registry.MustModelName("acme/fraud")), d.Repositories.Repository(registry.MustModelName("acme/fraud"))
	want, err := one.Refs(b.t.Context())
	got, gotErr := two.Refs(b.t.Context())
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 || err != nil || gotErr != nil {
		b.t.Errorf("%s: refs of what was restored (-want +got), %v, %v:\n%s", name, err, gotErr, diff)
	}
}

// since are the files of the backup that were not there before.
func since(before, now map[string]fs.FileMode) map[string]fs.FileMode {
	added := map[string]fs.FileMode{}
	for name, mode := range now {
		if _, there := before[name]; !there {
			added[name] = mode
		}
	}
	return added
}

// kinds are the extensions of files, each once; those of blobs are empty.
func kinds(files map[string]fs.FileMode) []string {
	var kinds []string
	for name := range files {
		kinds = append(kinds, filepath.Ext(name))
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// What a power cut has left of a backup that was broken off may have the right size and the wrong content.
func TestBackupOverAnUnfinishedOne(t *testing.T) {
	tests := []struct {
		name string
		do   func(b *backedUp)
	}{
		{"the first one", func(b *backedUp) {
			b.backup(durable.OpSyncTree)
			b.zero(b.files())
		}},
		{"the second one", func(b *backedUp) {
			b.backup("")
			before := b.files()
			b.add("second")
			b.backup(durable.OpSyncTree)
			written := since(before, b.files())
			if diff := cmp.Diff([]string{"", ".idx", ".pack"}, kinds(written)); diff != "" {
				b.t.Errorf("what the second backup has written (-want +got):\n%s", diff)
			}
			b.zero(written)
		}},
		{"the second one, again and again", func(b *backedUp) {
			b.backup("")
			before := b.files()
			for i := range 3 {
				b.add(fmt.Sprint("number ", i))
				b.backup(durable.OpSyncTree)
				b.zero(since(before, b.files()))
			}
			b.backup(durable.OpSyncTree)
		}},
		{"the first one, beside a second that was broken off at once", func(b *backedUp) {
			b.backup(durable.OpSyncTree)
			b.zero(b.files())
			b.backup(durable.OpCreate)
		}},
		{"one of which only the files are there", func(b *backedUp) {
			b.backup("")
			b.zero(b.files())
			remove(b.t, filepath.Join(b.to, "backup.json"))
			writeFile(b.t, filepath.Join(b.to, "backup.unfinished"), nil)
		}},
		{"a second one that has no refs", func(b *backedUp) {
			b.backup("")
			before := b.files()
			b.add("second")
			b.backup(durable.OpRemove) // of the refs of the first
			b.zero(since(before, b.files()))
		}},
	}
	for _, test := range tests {
		b := newBackedUp(t)
		test.do(b)
		made := b.backup("")
		b.check("over " + test.name)
		for name, mode := range b.files() {
			if mode&0o222 != 0 {
				t.Errorf("over %s: mode of %s in a finished backup = %v, want it to be read only", test.name, name, mode)
			}
		}
		if again := b.backup(""); again.Models != 1 || again.Models != made.Models || again.Blobs != made.Blobs || again.Bytes != made.Bytes {
			t.Errorf("over %s: Backup = %+v, and once more %+v, want it to have the same", test.name, made, again)
		}
	}
}

// What was durable is not read again: neither for a backup on top of one that was finished, nor when that is broken off.
func TestBackupReadsWhatIsNew(t *testing.T) {
	for _, fail := range []durable.Op{"", durable.OpSyncTree} {
		b := newBackedUp(t)
		b.backup("")
		before := b.files()
		// Not what a power cut does, but it shows what is read.
		b.zero(before)
		b.add("second")
		b.backup(fail)
		b.backup("")
		for name := range before {
			if text := readFile(t, filepath.Join(b.to, name)); strings.Trim(string(text), "\x00") != "" {
				t.Errorf("Backup after one with a fault at %q has read %s, which was durable", fail, name)
			}
		}
	}
}
