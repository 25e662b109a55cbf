package storage

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/storage/gitrepo"
	"github.com/herdbook/herdbook/storage/internal/durable"
	"github.com/herdbook/herdbook/storage/journal"
)

// backupFile says what a backup holds. It is written last: a directory without it is no backup, or one that was broken
// off.
const backupFile = "backup.json"

// backupFormat is the version of the layout of a backup, which is that of a data directory without what can be made anew and
// without secrets.
const backupFormat = 1

// Backup is what a backup holds. Times and numbers are those at which it began: it has everything that was
// acknowledged before. Behind the journal of that time stand the deletions of models that went away meanwhile.
type Backup struct {
	Format    int       `json:"format"`
	CreatedAt time.Time `json:"created_at"`
	JournalID string    `json:"journal_id"`
	LastGroup uint64    `json:"last_group"`
	Chain     string    `json:"chain"` // hex SHA-256 of the journal's chain at the last group
	Models    int       `json:"models"`
	Blobs     int64     `json:"blobs"`
	Bytes     int64     `json:"bytes"` // of blobs

	CopiedBytes int64 `json:"-"` // what was not there from an earlier backup
}

// Backup writes a copy of everything that was acknowledged into the directory to, or brings an earlier copy there up to
// date, durably. The server may be running; nothing waits. Blobs are compared with their digests on the way: one that is
// damaged is reported and left out. Secrets of the server are left out too.
//
// The journal is copied first: what it tells of is there, and goes into the copy behind it. What comes meanwhile may
// be in the copy too; a restored server finds moved refs as it finds those that were moved while it did not run. A model
// whose deletion came before its repository was copied is deleted in the copy too.
//
// What an earlier backup left is taken by its size, when that backup was finished: then it was durable. Of one that was
// broken off, which may have been by a power cut, the blobs are compared with their digests and the rest is copied again.
func (d *Data) Backup(ctx context.Context, to string, report Report) (Backup, error) {
	d.collecting.Lock() // what is named by the journal that is copied has to be there until it is copied
	defer d.collecting.Unlock()
	b := Backup{Format: backupFormat, CreatedAt: time.Now().UTC().Truncate(time.Second)}
	w := backupWork{Data: d, to: to, report: report, result: &b, written: map[string]bool{}}
	if err := w.prepare(ctx); err != nil {
		return b, fmt.Errorf("backup to %s: %w", to, err)
	}
	for _, step := range []func(context.Context) error{w.journal, w.repositories, w.blobs, w.finish} {
		if err := step(ctx); err != nil {
			return b, fmt.Errorf("backup to %s: %w", to, err)
		}
	}
	return b, nil
}

type backupWork struct {
	*Data
	to     string
	report Report
	result *Backup

	// models are those that the index had when it had applied so many groups, which was before the journal was copied.
	models  map[string]registry.ModelName
	applied uint64
	// trusted reports whether what a file of an earlier backup holds was durable.
	trusted func(fs.FileInfo) bool
	// written are the paths of blobs and of files of objects whose content is not known to be durable.
	written map[string]bool
}

// writtenPerm is the mode of blobs and of files of objects in a backup until they are durable. Then nobody may write to them, by
// which a run on top of one that was broken off knows them: a mode is as durable as the name of the file.
const writtenPerm = 0o640

// readOnly reports whether the mode of a file says that its content is durable.
func readOnly(info fs.FileInfo) bool { return info.Mode()&0o200 == 0 }

// prepare makes sure that the directory is empty or holds a backup of the same journal.
func (w *backupWork) prepare(ctx context.Context) error {
	var err error
	if w.result.JournalID, err = w.journalID(ctx); err != nil {
		return err
	}
	inside, err := isWithin(w.to, w.dir)
	if err != nil {
		return err
	}
	if inside {
		return errors.New("a backup inside of the data directory is lost with it; choose another place")
	}
	w.trusted = func(fs.FileInfo) bool { return false }
	entries, err := os.ReadDir(w.to)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return w.fsys.MkdirAll(w.to, secretsPerm)
	}
	if err != nil {
		return err
	}
	_, marked := os.Stat(filepath.Join(w.to, unfinishedFile))
	before, err := ReadBackup(w.to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if marked != nil {
			return errors.New("the directory is not empty and holds no backup; choose an empty one")
		}
		return nil
	case err != nil:
		return err
	case before.JournalID != w.result.JournalID:
		return errors.New("the directory holds the backup of another server; choose another one")
	case before.LastGroup >= w.Data.journal.Next():
		return fmt.Errorf("the directory holds a backup that goes up to group %d, and this server was restored from an older one; choose another directory", before.LastGroup)
	}
	if w.trusted = readOnly; errors.Is(marked, fs.ErrNotExist) {
		w.trusted = func(fs.FileInfo) bool { return true }
	}
	return nil
}

// unfinishedFile marks a directory into which a backup is being written.
const unfinishedFile = "backup.unfinished"

// isWithin reports whether a path is below a directory, or the directory.
func isWithin(path, dir string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false, err
	}
	relative, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(relative), err
}

func (w *backupWork) journal(ctx context.Context) error {
	// From here on the directory holds no whole backup.
	if err := w.fsys.WriteFile(filepath.Join(w.to, unfinishedFile), nil, secretPerm); err != nil {
		return err
	}
	var err error
	if w.applied, err = w.Index.Applied(ctx); err != nil {
		return err
	}
	models, err := w.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	w.models = map[string]registry.ModelName{}
	for _, m := range models {
		w.models[m.ID] = m.Name
	}
	s := w.report.step("journal", "bytes", 0)
	head, err := w.Data.journal.CopyTo(ctx, w.fsys, filepath.Join(w.to, journalDir), func(n int) { s.add(int64(n)) })
	if err != nil {
		return err
	}
	s.done()
	w.result.LastGroup, w.result.Chain = head.Seq, hex.EncodeToString(head.Chain[:])
	w.result.CopiedBytes += s.at.Done
	return nil
}

func (w *backupWork) repositories(ctx context.Context) error {
	names, err := w.Repositories.List(ctx)
	if err != nil {
		return err
	}
	s := w.report.step("repositories", "models", int64(len(names)))
	keep := map[string]bool{}
	var copied []string
	for _, name := range names {
		if emptied, err := w.emptied(ctx, name); err != nil {
			return err
		} else if emptied {
			keep[w.repository(name)] = true
			w.lost("repository", name.String())
			continue
		}
		err := w.Repositories.Repository(name).CopyTo(ctx, gitrepo.Copy{
			To: w.repository(name), FS: w.fsys, Trust: w.trusted,
			Object: func(path string) { w.written[path] = true },
			Bytes:  func(n int) { w.result.CopiedBytes += int64(n) },
		})
		if errors.Is(err, registry.ErrNotFound) {
			continue // deleted just now
		}
		if err != nil {
			return err
		}
		keep[w.repository(name)] = true
		copied = append(copied, w.repository(name))
		s.add(1)
	}
	s.done()
	if err := w.lostRepositories(ctx, keep); err != nil {
		return err
	}
	deleted, err := w.deletions(ctx)
	if err != nil {
		return err
	}
	for _, name := range deleted {
		delete(keep, w.repository(name))
	}
	for _, path := range copied {
		if keep[path] {
			w.result.Models++
		}
	}
	return w.dropRepositories(keep)
}

// repository is where the repository of a model is in the backup.
func (w *backupWork) repository(name registry.ModelName) string {
	return filepath.Join(w.to, reposDir, name.Namespace(), name.Name()+".git")
}

// lostRepositories keeps those that the index has and the disk has not: they are lost, and not deleted.
func (w *backupWork) lostRepositories(ctx context.Context, keep map[string]bool) error {
	models, err := w.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	for _, m := range models {
		if keep[w.repository(m.Name)] || m.DefaultBranch == "" {
			continue
		}
		if there, err := w.Repositories.Repository(m.Name).Exists(); err != nil {
			return err
		} else if there {
			continue // made since they were listed
		}
		if _, err := w.Index.ModelByID(ctx, m.ID); errors.Is(err, registry.ErrNotFound) {
			continue // deleted just now
		} else if err != nil {
			return err
		}
		keep[w.repository(m.Name)] = true
		w.lost("repository", m.Name.String())
	}
	return nil
}

// deletions puts the deletions that came since the journal was copied behind that copy, and returns the names of the
// models. So none whose repository was gone when it was to be copied is left in the journal without it: the repository goes after
// the deletion is committed.
func (w *backupWork) deletions(ctx context.Context) (names []registry.ModelName, err error) {
	var groups [][]byte
	later := map[string]bool{} // models that the copied journal does not know
	for g, err := range w.Data.journal.Read(ctx, w.applied+1) {
		if err != nil {
			return nil, err
		}
		group, err := w.decoder.Decode(g.Payload)
		if err != nil {
			return nil, fmt.Errorf("group %d: %w", g.Seq, err)
		}
		copied := g.Seq <= w.result.LastGroup
		for _, record := range group.Records {
			switch r := record.(type) {
			case registry.ModelCreated:
				w.models[r.Model.ID] = r.Model.Name
				later[r.Model.ID] = !copied
			case registry.ModelDeleted:
				if copied {
					continue
				}
				names = append(names, w.models[r.ModelID])
				if !later[r.ModelID] {
					groups = append(groups, g.Payload)
				}
			}
		}
	}
	if len(groups) == 0 {
		return names, nil
	}
	return names, w.appendGroups(ctx, groups)
}

// appendGroups puts groups behind the copy of the journal.
func (w *backupWork) appendGroups(ctx context.Context, groups [][]byte) error {
	j, err := journal.Open(journal.Config{Dir: filepath.Join(w.to, journalDir), FS: w.fsys})
	if err != nil {
		return err
	}
	for _, payload := range groups {
		if _, err := j.Append(ctx, payload); err != nil {
			return errors.Join(err, j.Close())
		}
	}
	head, err := j.Verify(ctx)
	w.result.LastGroup, w.result.Chain = head.Seq, hex.EncodeToString(head.Chain[:])
	return errors.Join(err, j.Close())
}

// lost reports what the server should have and has not. What an earlier backup has of it stays there.
func (w *backupWork) lost(what, name string) {
	w.report.found(Finding{
		Severity: Damage, What: what, Name: name, Problem: "it is gone from the server; what an earlier backup here has of it is kept",
		Advice: "run herdbook fsck, and put it back from this backup",
	})
}

// emptied reports whether a repository has lost what the index knows of it, so that it must not replace an earlier copy.
func (w *backupWork) emptied(ctx context.Context, name registry.ModelName) (bool, error) {
	m, err := w.Index.ModelByName(ctx, name)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	if err != nil || m.DefaultBranch == "" {
		return false, err
	}
	refs, err := w.Repositories.Repository(name).Refs(ctx)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	if err != nil || len(refs) > 0 {
		return false, err
	}
	// It may have been deleted while its refs were read.
	if _, err := w.Index.ModelByID(ctx, m.ID); errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return true, nil
}

// dropRepositories removes from an earlier backup what was deleted since.
func (w *backupWork) dropRepositories(keep map[string]bool) error {
	there, err := filepath.Glob(filepath.Join(w.to, reposDir, "*", "*.git"))
	if err != nil {
		return err
	}
	for _, path := range there {
		if !keep[path] {
			if err := w.fsys.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *backupWork) blobs(ctx context.Context) error {
	_, bytes, err := w.Blobs.Usage(ctx)
	if err != nil {
		return err
	}
	root := filepath.Join(w.to, blobsDir, string(digest.SHA256))
	if err := w.fsys.MkdirAll(root, secretsPerm); err != nil {
		return err
	}
	there, err := w.blobFiles(root)
	if err != nil {
		return err
	}
	s := w.report.step("blobs", "bytes", bytes)
	shards := map[string]bool{}
	err = w.Blobs.Walk(ctx, func(b blob.Descriptor, _ time.Time) error {
		hex := b.Digest.Encoded()
		info, isThere := there[hex]
		delete(there, hex)
		if isThere && info.size == b.Size {
			same, err := w.same(ctx, filepath.Join(root, hex[:2], hex), b.Digest, info)
			if err != nil {
				return err
			}
			if same {
				w.result.Blobs++
				w.result.Bytes += b.Size
				s.add(b.Size)
				return nil
			}
		}
		shard := filepath.Join(root, hex[:2])
		if !shards[shard] {
			if err := w.fsys.MkdirAll(shard, secretsPerm); err != nil {
				return err
			}
			shards[shard] = true
		}
		return w.blob(ctx, b, filepath.Join(shard, hex), s)
	})
	if err != nil {
		return err
	}
	named, err := w.named(ctx)
	if err != nil {
		return err
	}
	for hex := range there {
		if dgst := digest.NewDigestFromEncoded(digest.SHA256, hex); named[dgst] {
			w.lost("blob", dgst.String())
			continue
		}
		// Nothing names it any more: it was collected as garbage.
		if err := w.fsys.Remove(filepath.Join(root, hex[:2], hex)); err != nil {
			return err
		}
	}
	s.done()
	return nil
}

// blob copies one blob and compares it with its digest.
func (w *backupWork) blob(ctx context.Context, b blob.Descriptor, path string, s *step) error {
	in, err := w.Blobs.Open(ctx, b.Digest)
	if errors.Is(err, blob.ErrNotFound) {
		return nil // deleted since
	}
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := copyBlob(ctx, w.fsys, in, b.Digest, path, writtenPerm)
	s.add(n)
	if errors.Is(err, errWrongContent) {
		w.report.found(Finding{Severity: Damage, What: "blob", Name: b.Digest.String(), Problem: err.Error() + "; the backup does not have it", Advice: "run: herdbook fsck"})
		return nil
	}
	if err != nil {
		return err
	}
	w.written[path] = true
	w.result.Blobs++
	w.result.Bytes += n
	w.result.CopiedBytes += n
	return nil
}

// same reports whether a blob that is there from an earlier backup, with the right size, has the right content.
func (w *backupWork) same(ctx context.Context, path string, want digest.Digest, there blobFile) (bool, error) {
	if there.trusted {
		return true, nil
	}
	in, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer in.Close()
	sum := want.Algorithm().Digester()
	_, err = io.CopyBuffer(struct{ io.Writer }{sum.Hash()}, contextReader{ctx, in}, make([]byte, 1<<20))
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	// What cannot be read is copied again.
	if err != nil || sum.Digest() != want {
		return false, nil
	}
	w.written[path] = true
	return true, nil
}

// errWrongContent reports that what was read has another digest.
var errWrongContent = errors.New("the content is not what its digest says")

// copyBlob writes what in holds to path, if it has that digest. Nothing is synced.
func copyBlob(ctx context.Context, fsys durable.FS, in io.Reader, want digest.Digest, path string, perm fs.FileMode) (n int64, err error) {
	out, err := fsys.CreateTemp(filepath.Dir(path), perm)
	if err != nil {
		return 0, err
	}
	sum := want.Algorithm().Digester()
	n, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(out, sum.Hash())}, contextReader{ctx, in}, make([]byte, 1<<20))
	if err == nil && sum.Digest() != want {
		err = errWrongContent
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = fsys.RenameUnsynced(out.Name(), path)
	}
	if err != nil {
		return n, errors.Join(err, fsys.Remove(out.Name()))
	}
	return n, nil
}

// blobPerm is the mode of blobs.
const blobPerm = 0o444

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// blobFile is a blob that is there from an earlier backup.
type blobFile struct {
	size    int64
	trusted bool
}

// blobFiles are the blobs below root, by their hex digits. Unfinished ones are removed.
func (w *backupWork) blobFiles(root string) (map[string]blobFile, error) {
	files := map[string]blobFile{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if digest.NewDigestFromEncoded(digest.SHA256, e.Name()).Validate() != nil {
			return os.Remove(path)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		files[e.Name()] = blobFile{info.Size(), w.trusted(info)}
		return nil
	})
	return files, err
}

// finish makes the copy durable, and then a backup.
func (w *backupWork) finish(context.Context) error {
	s := w.report.step("sync", "files", 0)
	if err := w.fsys.SyncTree(w.to); err != nil {
		return err
	}
	for path := range w.written {
		// A file that cannot be told apart from now on is compared once more if the next run is broken off.
		if info, err := os.Lstat(path); err == nil {
			_ = os.Chmod(path, info.Mode().Perm()&^0o222)
		}
	}
	text, err := json.MarshalIndent(w.result, "", "  ")
	if err != nil {
		return err
	}
	if err := w.fsys.WriteFile(filepath.Join(w.to, backupFile), append(text, '\n'), secretPerm); err != nil {
		return err
	}
	if err := w.fsys.Remove(filepath.Join(w.to, unfinishedFile)); err != nil {
		return err
	}
	s.done()
	return w.fsys.SyncDir(w.to)
}

// ReadBackup says what a backup holds. Without one the error is fs.ErrNotExist.
func ReadBackup(dir string) (Backup, error) {
	var b Backup
	text, err := os.ReadFile(filepath.Join(dir, backupFile))
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("%s: %w", backupFile, err)
	}
	if b.Format != backupFormat {
		return b, fmt.Errorf("the backup has format %d and this version of Herdbook reads %d; use the version that wrote it", b.Format, backupFormat)
	}
	return b, nil
}

// Restore makes a data directory from a backup. The directory must not be there, or be empty. Each blob is compared with
// its digest; a damaged one is reported and left out. The directory appears when all of it is durable.
//
// Of a backup that was broken off, because the server was lost meanwhile, most is there: with unfinished it is restored as far
// as it goes. What the journal then names and the backup has not, a check tells.
func Restore(ctx context.Context, from, to string, unfinished bool, report Report) (Backup, error) {
	return restore(ctx, durable.FS{}, from, to, unfinished, report)
}

func restore(ctx context.Context, fsys durable.FS, from, to string, unfinished bool, report Report) (Backup, error) {
	_, marked := os.Stat(filepath.Join(from, unfinishedFile))
	unfinished = unfinished && marked == nil
	b, err := ReadBackup(from)
	if unfinished && errors.Is(err, fs.ErrNotExist) {
		b, err = Backup{Format: backupFormat}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return b, fmt.Errorf("restore: %s holds no backup: there is no %s in it", from, backupFile)
	}
	if err != nil {
		return b, fmt.Errorf("restore from %s: %w", from, err)
	}
	if marked == nil && !unfinished {
		return b, fmt.Errorf("restore: the backup in %s was being brought up to date and is not finished; run that backup again, take another one, or take what is there with --unfinished", from)
	}
	entries, err := os.ReadDir(to)
	if err == nil && len(entries) > 0 {
		return b, fmt.Errorf("restore: %s is not empty; name a directory that is not there yet", to)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return b, fmt.Errorf("restore: %w", err)
	}
	r := restoring{fsys: fsys, from: from, to: to, unfinished: unfinished, report: report}
	if err := r.run(ctx, b); err != nil {
		return b, fmt.Errorf("restore to %s: %w", to, err)
	}
	return b, nil
}

type restoring struct {
	fsys     durable.FS
	from, to string
	temp     string
	report   Report

	unfinished bool // take what is there
}

// run copies into a directory beside the one that is asked for, and gives it its name at the end.
func (r *restoring) run(ctx context.Context, b Backup) (err error) {
	to, err := filepath.Abs(r.to)
	if err != nil {
		return err
	}
	if err := r.fsys.MkdirAll(filepath.Dir(to), dirPerm); err != nil {
		return err
	}
	r.temp = filepath.Join(filepath.Dir(to), durable.TempName())
	if err := r.fsys.Mkdir(r.temp, dirPerm); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(r.temp))
		}
	}()
	if err := r.files(ctx); err != nil {
		return err
	}
	if err := r.verify(ctx, b); err != nil {
		return err
	}
	s := r.report.step("sync", "files", 0)
	if err := r.fsys.SyncTree(r.temp); err != nil {
		return err
	}
	s.done()
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return r.fsys.Rename(r.temp, to)
}

// files copies all files of the backup.
func (r *restoring) files(ctx context.Context) error {
	s := r.report.step("files", "bytes", 0)
	return filepath.WalkDir(r.from, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(r.from, path)
		if err != nil || name == "." || name == backupFile || name == unfinishedFile || durable.IsTemp(e.Name()) {
			return err
		}
		target := filepath.Join(r.temp, name)
		switch {
		case e.IsDir():
			return os.Mkdir(target, dirPerm)
		case !e.Type().IsRegular():
			return fmt.Errorf("%s in the backup is no file", name)
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		dgst := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if strings.HasPrefix(name, blobsDir+"/") && dgst.Validate() == nil {
			n, err := copyBlob(ctx, r.fsys, in, dgst, target, blobPerm)
			s.add(n)
			if errors.Is(err, errWrongContent) {
				r.report.found(Finding{Severity: Damage, What: "blob", Name: dgst.String(), Problem: "its copy in the backup is damaged and is left out", Advice: "send the file again when the server runs"})
				return nil
			}
			return err
		}
		n, err := copyFile(in, target)
		s.add(n)
		return err
	})
}

func copyFile(in *os.File, target string) (int64, error) {
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	out, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, out.Close())
}

// verify makes sure that the journal of the copy is the one that the backup promises.
func (r *restoring) verify(ctx context.Context, b Backup) error {
	j, err := journal.Open(journal.Config{Dir: filepath.Join(r.temp, journalDir)})
	if err != nil {
		return fmt.Errorf("the journal in the backup: %w", err)
	}
	head, err := j.Verify(ctx)
	if err := errors.Join(err, j.Close()); err != nil {
		return fmt.Errorf("the journal in the backup: %w", err)
	}
	if r.unfinished {
		return nil
	}
	if head.Seq != b.LastGroup || hex.EncodeToString(head.Chain[:]) != b.Chain {
		return fmt.Errorf("the journal in the backup ends with group %d and should end with %d: the backup is damaged; take another one", head.Seq, b.LastGroup)
	}
	return nil
}

// Reindex makes the index of a data directory anew from the journal. No server may have the directory open.
func Reindex(ctx context.Context, c Config) error {
	held, err := lock(filepath.Join(c.Dir, lockFile))
	if err != nil {
		return err
	}
	for _, name := range []string{indexFile, indexFile + ".state"} {
		if err := os.Remove(filepath.Join(c.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, held.Close())
		}
	}
	if err := held.Close(); err != nil {
		return err
	}
	d, err := Open(ctx, c)
	if err != nil {
		return err
	}
	return d.Close()
}
