package gitrepo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"

	"github.com/herdbook/herdbook/registry"
)

// Refs returns all refs in order of their names. One that somebody made beside the server may have a name that
// [registry.ValidRefName] does not accept, such as refs/stash.
//
// Where the files of the refs are not as git writes them, git lists them. Go-git never does: it takes the lock file of a push
// that runs for a ref.
func (r *Repository) Refs(ctx context.Context) ([]registry.Ref, error) {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return nil, err
	}
	defer done()
	snap, err := r.snapshotOrGit(ctx)
	if err != nil {
		return nil, err
	}
	if snap == nil {
		return r.refsByGit(ctx)
	}
	refs := make([]registry.Ref, len(snap.refs))
	for i, ref := range snap.refs {
		id := registry.ObjectID(ref.id.String())
		refs[i] = registry.Ref{Name: ref.name, ID: id, Peeled: id}
		if ref.peeled != (oid{}) {
			refs[i].Peeled = registry.ObjectID(ref.peeled.String())
		}
	}
	return refs, nil
}

func (r *Repository) refsByGit(ctx context.Context) ([]registry.Ref, error) {
	cmd := r.store.command(ctx, r.path, "show-ref", "--dereference")
	out, err := cmd.output()
	if exitCode(err) == 1 && len(out) == 0 && cmd.stderr.line() == "" {
		return nil, nil // there are none
	}
	if exitCode(err) == exitFatal && ctx.Err() == nil {
		// One ref whose object is missing ends git's listing; what it tells about the others is worth having.
		r.store.log.ErrorContext(ctx, "the refs of a repository cannot be listed with what they lead to: an object is missing", "model", r.name, "reason", err.Error())
		return r.refsOneByOne(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("list the refs of %s: %w", r.name, err)
	}
	refs, err := parseRefs(out)
	if err != nil {
		return nil, fmt.Errorf("list the refs of %s: %w", r.name, err)
	}
	return refs, nil
}

// refsOneByOne lists the refs of a repository in which objects are missing. A ref to such an object leads to nothing
// but its own ID.
func (r *Repository) refsOneByOne(ctx context.Context) ([]registry.Ref, error) {
	out, err := r.store.command(ctx, r.path, "for-each-ref", "--format=%(objectname) %(refname)").output()
	if err != nil {
		return nil, fmt.Errorf("list the refs of %s: %w", r.name, err)
	}
	refs, err := parseRefs(out)
	if err != nil {
		return nil, fmt.Errorf("list the refs of %s: %w", r.name, err)
	}
	for i, ref := range refs {
		found, err := r.Resolve(ctx, ref.Name)
		if err == nil && found.ID == ref.ID {
			refs[i].Peeled = found.Peeled
		} else if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return nil, err
		}
	}
	return refs, nil
}

// parseRefs reads lines of "ID SP REF"; a tag is followed by a line of what it leads to, its name with "^{}".
// Source: git-show-ref(1), "OUTPUT".
func parseRefs(out []byte) ([]registry.Ref, error) {
	var refs []registry.Ref
	for line := range strings.Lines(string(out)) {
		id, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		parsed, err := registry.ParseObjectID(id)
		if err != nil || name == "" {
			return nil, fmt.Errorf("git lists the ref %.100q", line)
		}
		if tag, ok := strings.CutSuffix(name, "^{}"); ok {
			if len(refs) == 0 || refs[len(refs)-1].Name != tag {
				return nil, fmt.Errorf("git lists the ref %.100q without its tag", line)
			}
			refs[len(refs)-1].Peeled = parsed
			continue
		}
		refs = append(refs, registry.Ref{Name: name, ID: parsed, Peeled: parsed})
	}
	return refs, nil
}

// Resolve returns one ref by its full name. There being none is a [registry.ErrNotFound].
func (r *Repository) Resolve(ctx context.Context, ref string) (registry.Ref, error) {
	if !registry.ValidRefName(ref) {
		return registry.Ref{}, fmt.Errorf("ref %.100q: %w", ref, registry.ErrNotFound)
	}
	return read(ctx, r, "ref "+ref, func(s *reader) (registry.Ref, error) {
		found, err := storer.ResolveReference(s, plumbing.ReferenceName(ref))
		if err != nil {
			return registry.Ref{}, err
		}
		id := found.Hash()
		peeled := id
		for range maxTagChain {
			tag, err := object.GetTag(s, peeled)
			if errors.Is(err, plumbing.ErrObjectNotFound) { // something else, or nothing: the ref says so either way
				return registry.Ref{Name: ref, ID: objectID(id), Peeled: objectID(peeled)}, nil
			}
			if err != nil {
				return registry.Ref{}, err
			}
			peeled = tag.Target
		}
		return registry.Ref{}, fmt.Errorf("more than %d tags lead from one to the next", maxTagChain)
	})
}

// maxTagChain is the longest chain of tags of tags that is followed.
const maxTagChain = 10

// Commit reads a commit.
func (r *Repository) Commit(ctx context.Context, id registry.ObjectID) (registry.Commit, error) {
	return read(ctx, r, "commit "+string(id), func(s *reader) (registry.Commit, error) {
		c, err := getCommit(s, id)
		if err != nil {
			return registry.Commit{}, err
		}
		return newCommit(c), nil
	})
}

// TagObject reads a tag object. What a lightweight tag names is none, and then it is a [registry.ErrNotFound].
func (r *Repository) TagObject(ctx context.Context, id registry.ObjectID) (registry.TagObject, error) {
	return read(ctx, r, "tag object "+string(id), func(s *reader) (registry.TagObject, error) {
		t, err := object.GetTag(s, plumbing.NewHash(string(id)))
		if err != nil {
			return registry.TagObject{}, err
		}
		return registry.TagObject{
			ID:      id,
			Target:  objectID(t.Target),
			Name:    t.Name,
			Tagger:  newPerson(t.Tagger),
			Message: t.Message,
		}, nil
	})
}

// Files yields all files of a commit in order of their paths. An error ends it: [registry.ErrTooLarge] when there
// are more files, or deeper directories, than the configuration allows.
//
// Git lists them: for 2,000 files it takes 12 ms of CPU, go-git 36 to 98 ms.
func (r *Repository) Files(ctx context.Context, commit registry.ObjectID) iter.Seq2[registry.TreeEntry, error] {
	return func(yield func(registry.TreeEntry, error) bool) {
		if err := r.files(ctx, commit, func(e registry.TreeEntry) bool { return yield(e, nil) }); err != nil {
			yield(registry.TreeEntry{}, fmt.Errorf("files of commit %s of %s: %w", commit.Short(), r.name, err))
		}
	}
}

func (r *Repository) files(ctx context.Context, commit registry.ObjectID, yield func(registry.TreeEntry) bool) error {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return err
	}
	defer done()
	// This also tells an absent commit from git's other failures.
	if _, err := r.Commit(ctx, commit); err != nil {
		return err
	}
	return r.store.listFiles(r.store.command(ctx, r.path, listFilesArgs(commit)...), yield)
}

// listFilesArgs are the arguments of a git that lists the files of a commit for listFiles: with the directories (-t), so
// that a tree of nothing but directories has an end too.
func listFilesArgs(commit registry.ObjectID) []string {
	return []string{"ls-tree", "-r", "-t", "-l", "-z", "--full-tree", string(commit)}
}

func (s *Store) listFiles(cmd *process, yield func(registry.TreeEntry) bool) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.start(); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(out, 64<<10)
	for n := 0; ; n++ {
		line, err := lines.ReadString(0)
		if err == io.EOF && line == "" {
			return cmd.wait()
		}
		entry, dir, err := parseTreeEntry(line, err)
		switch {
		case err != nil:
		case n == s.cfg.MaxFiles:
			err = fmt.Errorf("more than %d files and directories: %w", n, registry.ErrTooLarge)
		case strings.Count(entry.Path, "/") >= s.cfg.MaxDepth:
			err = fmt.Errorf("directories deeper than %d: %w", s.cfg.MaxDepth, registry.ErrTooLarge)
		}
		if err != nil || !dir && !yield(entry) {
			cmd.abandon(out)
			return err
		}
	}
}

// parseTreeEntry reads "MODE SP KIND SP ID SP+ SIZE TAB PATH NUL".
// Source: git-ls-tree(1), "OUTPUT FORMAT".
func parseTreeEntry(line string, err error) (entry registry.TreeEntry, dir bool, _ error) {
	nonsense := func() (registry.TreeEntry, bool, error) {
		return registry.TreeEntry{}, false, fmt.Errorf("git lists the file %.100q", line)
	}
	if err != nil {
		return registry.TreeEntry{}, false, err
	}
	head, path, ok := strings.Cut(strings.TrimSuffix(line, "\x00"), "\t")
	fields := strings.Fields(head)
	if !ok || len(fields) != 4 {
		return nonsense()
	}
	id, err := registry.ParseObjectID(fields[2])
	if err != nil {
		return nonsense()
	}
	entry = registry.TreeEntry{Path: path, ID: id}
	switch mode := fields[0]; {
	case fields[1] == "tree":
		return entry, true, nil
	case fields[1] == "commit":
		entry.Mode = registry.Submodule
		return entry, false, nil
	case mode == "120000":
		entry.Mode = registry.Symlink
	case mode == "100755":
		entry.Mode = registry.Executable
	default:
		entry.Mode = registry.Regular
	}
	if entry.SizeBytes, err = strconv.ParseInt(fields[3], 10, 64); err != nil {
		return nonsense()
	}
	return entry, false, nil
}

// File returns the entry at path in commit, without reading its content. A directory is none.
func (r *Repository) File(ctx context.Context, commit registry.ObjectID, path string) (registry.TreeEntry, error) {
	return read(ctx, r, fmt.Sprintf("file %q in commit %s", path, commit.Short()), func(s *reader) (registry.TreeEntry, error) {
		return findFile(s, commit, path)
	})
}

// ReadFile returns the content of the file at path in commit. Anything but a file there is a
// [registry.ErrNotFound], a file larger than maxSize a [registry.ErrTooLarge].
func (r *Repository) ReadFile(ctx context.Context, commit registry.ObjectID, path string, maxSize int64) ([]byte, error) {
	entry, err := r.File(ctx, commit, path)
	what := fmt.Sprintf("file %q in commit %s", path, commit.Short())
	switch {
	case err != nil:
		return nil, err
	case entry.Mode != registry.Regular && entry.Mode != registry.Executable:
		return nil, fmt.Errorf("%s is a %s: %w", what, entry.Mode, registry.ErrNotFound)
	case entry.SizeBytes > maxSize:
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", what, entry.SizeBytes, maxSize, registry.ErrTooLarge)
	}
	content, _, err := r.OpenBlob(ctx, entry.ID)
	if err != nil {
		return nil, err
	}
	data := bytes.NewBuffer(make([]byte, 0, entry.SizeBytes+bytes.MinRead))
	_, err = data.ReadFrom(content)
	if err := closeAnd(err, content); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return data.Bytes(), nil
}

// OpenBlob opens the content of a blob, which has size bytes. It ends with an error if ctx does. What is larger
// than 1 MiB is not held in memory: a git process streams it.
func (r *Repository) OpenBlob(ctx context.Context, id registry.ObjectID) (content io.ReadCloser, size int64, err error) {
	type opened struct {
		small []byte
		size  int64
	}
	blob, err := read(ctx, r, "blob "+string(id), func(s *reader) (opened, error) {
		o, err := s.EncodedObject(plumbing.BlobObject, plumbing.NewHash(string(id)))
		if err != nil || o.Size() > maxInMemory {
			return opened{size: sizeOf(o)}, err
		}
		rd, err := o.Reader()
		if err != nil {
			return opened{}, err
		}
		small, err := io.ReadAll(io.LimitReader(rd, o.Size()))
		return opened{small: small, size: o.Size()}, closeAnd(err, rd)
	})
	if err != nil {
		return nil, 0, err
	}
	if blob.size <= maxInMemory {
		return io.NopCloser(bytes.NewReader(blob.small)), blob.size, nil
	}

	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return nil, 0, err
	}
	cmd := r.store.command(ctx, r.path, "cat-file", "blob", string(id))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.start()
	}
	if err != nil {
		done()
		return nil, 0, err
	}
	return &blobStream{cmd: cmd, out: out, left: blob.size, done: done}, blob.size, nil
}

func sizeOf(o plumbing.EncodedObject) int64 {
	if o == nil {
		return 0
	}
	return o.Size()
}

// blobStream is the content of a blob that git writes.
type blobStream struct {
	cmd  *process
	out  io.ReadCloser
	left int64
	err  error // sticky
	done func()
}

func (b *blobStream) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.out.Read(p)
	b.left -= int64(n)
	if err == io.EOF {
		if err = b.finish(); err == nil {
			err = io.EOF
		}
	}
	b.err = err
	return n, err
}

// finish is called when git wrote all that it writes.
func (b *blobStream) finish() error {
	err := b.cmd.wait()
	b.release()
	if err == nil && b.left != 0 {
		err = fmt.Errorf("%s: %w", b.cmd.what, io.ErrUnexpectedEOF)
	}
	return err
}

func (b *blobStream) Close() error {
	if b.done != nil {
		b.cmd.abandon(b.out)
		b.release()
	}
	if b.err == nil {
		b.err = fs.ErrClosed
	}
	return nil
}

func (b *blobStream) release() {
	b.done()
	b.done = nil
}

// Log returns up to limit commits of the history of from, itself the first, newest first, after skipping some.
func (r *Repository) Log(ctx context.Context, from registry.ObjectID, skip, limit int) ([]registry.Commit, error) {
	return read(ctx, r, "history of commit "+string(from), func(s *reader) ([]registry.Commit, error) {
		tip, err := getCommit(s, from)
		if err != nil {
			return nil, err
		}
		if skip+limit > r.store.cfg.MaxCommits {
			return nil, fmt.Errorf("it is walked for %d commits only: %w", r.store.cfg.MaxCommits, registry.ErrTooLarge)
		}
		commits := object.NewCommitIterCTime(tip, nil, nil)
		defer commits.Close()
		var log []registry.Commit
		for n := 0; len(log) < limit; n++ {
			c, err := commits.Next()
			if err == io.EOF {
				return log, nil
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return nil, err
			}
			if n >= skip {
				log = append(log, newCommit(c))
			}
		}
		return log, nil
	})
}

// Ancestors returns the nearest ancestors of a commit for which stop holds, newest first: it follows each line of
// the history up to such a commit, and not beyond. The commit itself is not one of them. A history longer than
// the configuration allows is a [registry.ErrTooLarge].
func (r *Repository) Ancestors(ctx context.Context, from registry.ObjectID, stop func(registry.ObjectID) bool) ([]registry.ObjectID, error) {
	found, err := r.ancestors(ctx, from, stop)
	if err != nil {
		return nil, fmt.Errorf("ancestors of commit %s of %s: %w", from.Short(), r.name, err)
	}
	return found, nil
}

func (r *Repository) ancestors(ctx context.Context, from registry.ObjectID, stop func(registry.ObjectID) bool) ([]registry.ObjectID, error) {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := r.Commit(ctx, from); err != nil {
		return nil, err
	}
	most := r.store.cfg.MaxCommits
	// Each commit before its parents: when we meet one, we know already whether a line leads to it.
	cmd := r.store.command(ctx, r.path, "rev-list", "--topo-order", "--parents", "--max-count="+strconv.Itoa(most+1), "--end-of-options", string(from))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20) // a commit with 25,000 parents
	var found []registry.ObjectID
	follow := map[string]bool{string(from): true}
	for n := 0; len(follow) > 0; n++ {
		if !lines.Scan() {
			return found, errors.Join(lines.Err(), cmd.wait())
		}
		if n == most {
			err = fmt.Errorf("more than %d commits: %w", most, registry.ErrTooLarge)
			break
		}
		ids := strings.Fields(lines.Text())
		if len(ids) == 0 || !follow[ids[0]] {
			continue
		}
		delete(follow, ids[0])
		if n > 0 && stop(registry.ObjectID(ids[0])) {
			found = append(found, registry.ObjectID(ids[0]))
			continue
		}
		for _, parent := range ids[1:] {
			follow[parent] = true
		}
	}
	cmd.abandon(out)
	return found, err
}

// read calls fn with a reader of the repository, and turns what it does not find into [registry.ErrNotFound].
func read[T any](ctx context.Context, r *Repository, what string, fn func(*reader) (T, error)) (result T, err error) {
	ctx, done, err := r.store.begin(ctx, draining)
	if err != nil {
		return result, err
	}
	defer done()
	if err := ctx.Err(); err != nil {
		return result, err
	}
	s, err := r.store.readers.get(r.path)
	if err == nil {
		result, err = fn(s)
		err = errors.Join(err, r.store.readers.put(s))
	}
	switch {
	case err == nil:
		return result, nil
	case stale(err), errors.Is(err, plumbing.ErrReferenceNotFound):
		err = registry.ErrNotFound
	}
	return result, fmt.Errorf("%s of %s: %w", what, r.name, err)
}

func getCommit(s *reader, id registry.ObjectID) (*object.Commit, error) {
	return object.GetCommit(s, plumbing.NewHash(string(id)))
}

func findFile(s *reader, commit registry.ObjectID, path string) (registry.TreeEntry, error) {
	if !fs.ValidPath(path) || path == "." {
		return registry.TreeEntry{}, registry.ErrNotFound
	}
	c, err := getCommit(s, commit)
	if err != nil {
		return registry.TreeEntry{}, err
	}
	// Not by Tree.FindEntry, which refuses some names that Git allows.
	e := object.TreeEntry{Mode: filemode.Dir, Hash: c.TreeHash}
	for name := range strings.SplitSeq(path, "/") {
		if e.Mode != filemode.Dir {
			return registry.TreeEntry{}, registry.ErrNotFound
		}
		tree, err := object.GetTree(s, e.Hash)
		if err != nil {
			return registry.TreeEntry{}, err
		}
		i := slices.IndexFunc(tree.Entries, func(e object.TreeEntry) bool { return e.Name == name })
		if i < 0 {
			return registry.TreeEntry{}, registry.ErrNotFound
		}
		e = tree.Entries[i]
	}
	entry := registry.TreeEntry{Path: path, ID: objectID(e.Hash)}
	switch e.Mode {
	case filemode.Dir:
		return registry.TreeEntry{}, registry.ErrNotFound
	case filemode.Submodule:
		entry.Mode = registry.Submodule
		return entry, nil
	case filemode.Symlink:
		entry.Mode = registry.Symlink
	case filemode.Executable:
		entry.Mode = registry.Executable
	default:
		entry.Mode = registry.Regular
	}
	o, err := s.EncodedObject(plumbing.BlobObject, e.Hash)
	entry.SizeBytes = sizeOf(o)
	return entry, err
}

func newCommit(c *object.Commit) registry.Commit {
	commit := registry.Commit{
		ID:        objectID(c.Hash),
		Tree:      objectID(c.TreeHash),
		Author:    newPerson(c.Author),
		Committer: newPerson(c.Committer),
		Message:   c.Message,
	}
	for _, p := range c.ParentHashes {
		commit.Parents = append(commit.Parents, objectID(p))
	}
	return commit
}

func newPerson(s object.Signature) registry.Signature {
	return registry.Signature{Name: s.Name, Email: s.Email, At: s.When}
}

func objectID(h plumbing.Hash) registry.ObjectID { return registry.ObjectID(h.String()) }
