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
	"strings"
	"sync"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

// Push is a push whose objects lie in quarantine and of which no ref has moved yet. Its methods see the
// objects of the repository and those of the push. It is of use until the Check that got it returns.
type Push struct {
	ID         string
	Repository *Repository
	Updates    []registry.RefUpdate // with ref names that are well-formed
	Options    []string             // of git push -o

	store      *Store
	quarantine []string // environment
	out        io.Writer

	mu      sync.Mutex
	objects *objectReader
	reached int // objects that the push makes reachable, once NewBlobs listed them all
}

// Refusal is the error of a Check that refuses a push for a reason that the user can do something about. The lines appear
// in the user's terminal, each behind "remote: ".
type Refusal struct {
	Lines []string
}

func (r *Refusal) Error() string { return strings.Join(r.Lines, "; ") }

// Blob is a file's content that a push brings and the repository did not have.
type Blob struct {
	ID   registry.ObjectID
	Size int64
	Path string // one of the paths where it appears, if it appears in a directory
}

// Tell shows a line to the user at once, whether or not the push is refused later.
func (p *Push) Tell(line string) error { return hook.WriteText(p.out, line) }

// NewBlobs yields each blob that the push makes reachable and no ref reached before. An error ends it; when
// the push lacks objects that it needs, that is a [Refusal].
func (p *Push) NewBlobs(ctx context.Context) iter.Seq2[Blob, error] {
	return func(yield func(Blob, error) bool) {
		if err := p.newBlobs(ctx, func(b Blob) bool { return yield(b, nil) }); err != nil {
			yield(Blob{}, err)
		}
	}
}

// How many objects are asked for at a time: the questions fit in a pipe.
const objectBatch = 512

func (p *Push) newBlobs(ctx context.Context, yield func(Blob) bool) error {
	var tips bytes.Buffer
	for _, u := range p.Updates {
		if u.New != "" {
			fmt.Fprintln(&tips, u.New)
		}
	}
	if tips.Len() == 0 {
		return nil
	}
	revs := p.command(ctx, "rev-list", "--objects", "--stdin", "--not", "--all")
	revs.Stdin = &tips
	out, err := revs.StdoutPipe()
	if err != nil {
		return err
	}
	if err := revs.start(); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(out, 64<<10)
	reached := 0
	for blobs := 0; ; {
		objects, done, err := readObjectLines(lines, objectBatch)
		if err != nil {
			revs.abandon(out)
			if errors.As(err, new(*Refusal)) {
				return err
			}
			return fmt.Errorf("list the objects of the push: %w", err)
		}
		reached += len(objects)
		batch, err := p.blobsOf(ctx, objects)
		if err != nil {
			revs.abandon(out)
			return err
		}
		if blobs += len(batch); blobs > p.store.cfg.MaxPushObjects {
			revs.abandon(out)
			return &Refusal{Lines: []string{fmt.Sprintf("herdbook: push refused: it brings more than %d files; push the history in parts", p.store.cfg.MaxPushObjects)}}
		}
		// Nothing is held here: the caller may read other objects between two blobs.
		for _, b := range batch {
			if !yield(b) {
				revs.abandon(out)
				return nil
			}
		}
		if done {
			break
		}
	}
	if err = revs.wait(); err == nil {
		p.reached = reached
	}
	if exitCode(err) > 0 && ctx.Err() == nil {
		// Git shows us a shallow push whole, before it refuses it. A repository that lost objects ends here too.
		p.store.log.Warn("the objects of a push are incomplete", "model", p.Repository.name, "push", p.ID, "err", err)
		return &Refusal{Lines: []string{
			"herdbook: push refused: it builds on commits or files that are neither in it nor on the server",
			"herdbook: from a shallow clone, run first: git fetch --unshallow",
		}}
	}
	return err
}

// maxPathBytes is the longest path that a push may have: none longer can be checked out, and to list what lies deeper within each other than
// that takes more time the deeper it is.
// Source: PATH_MAX of Linux.
const maxPathBytes = 4096

// objectLine is an object as rev-list names it.
type objectLine struct {
	id     registry.ObjectID
	path   string
	commit bool // it has no place for a path
}

// readObjectLines reads up to most lines: "ID" of a commit, or "ID SP PATH" of another object, where the path may be empty.
// Source: git, builtin/rev-list.c, show_commit() and show_object().
func readObjectLines(r *bufio.Reader, most int) (objects []objectLine, done bool, err error) {
	for len(objects) < most {
		line, err := r.ReadString('\n')
		if line != "" {
			id, path, other := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			parsed, err := registry.ParseObjectID(id)
			if err != nil {
				return nil, false, err
			}
			if len(path) > maxPathBytes {
				return nil, false, &Refusal{Lines: []string{fmt.Sprintf("herdbook: push refused: it has a path of more than %d bytes, %.60q...", maxPathBytes, path)}}
			}
			objects = append(objects, objectLine{parsed, path, !other})
		}
		switch {
		case err == io.EOF:
			return objects, true, nil
		case err != nil:
			return nil, false, err
		}
	}
	return objects, false, nil
}

// blobsOf keeps those objects that are blobs, with their sizes.
func (p *Push) blobsOf(ctx context.Context, objects []objectLine) (blobs []Blob, err error) {
	objects = slices.DeleteFunc(objects, func(o objectLine) bool { return o.commit })
	if len(objects) == 0 {
		return nil, nil
	}
	names := make([]string, len(objects))
	for i, o := range objects {
		names[i] = string(o.id)
	}
	infos, err := p.infos(ctx, names)
	if err != nil {
		return nil, err
	}
	for i, info := range infos {
		if info.kind == "" {
			return nil, fmt.Errorf("object %s of the push is not there", objects[i].id)
		}
		if info.kind == "blob" {
			blobs = append(blobs, Blob{ID: objects[i].id, Size: info.size, Path: objects[i].path})
		}
	}
	return blobs, nil
}

// ReadBlobs calls fn with the content of each blob. Data is of use until fn returns. A blob larger than
// maxSize is a [registry.ErrTooLarge], an absent one a [registry.ErrNotFound]; fn is then not called for it nor for those behind it.
func (p *Push) ReadBlobs(ctx context.Context, ids []registry.ObjectID, maxSize int64, fn func(id registry.ObjectID, data []byte) error) error {
	for len(ids) > 0 {
		batch := ids[:min(objectBatch, len(ids))]
		ids = ids[len(batch):]
		err := p.withObjects(ctx, func(o *objectReader) error {
			return o.contents(batch, maxSize, fn)
		})
		if err != nil {
			return fmt.Errorf("read blobs of the push: %w", err)
		}
	}
	return nil
}

// Peel returns the commit that id is or, as a tag, leads to. Anything else is a [registry.ErrNotFound].
func (p *Push) Peel(ctx context.Context, id registry.ObjectID) (registry.ObjectID, error) {
	infos, err := p.infos(ctx, []string{string(id) + "^{commit}"})
	if err != nil {
		return "", err
	}
	if infos[0].kind != "commit" {
		return "", fmt.Errorf("commit of %s: %w", id, registry.ErrNotFound)
	}
	return infos[0].id, nil
}

// IsAncestor reports whether the commit ancestor is descendant or one of its ancestors.
func (p *Push) IsAncestor(ctx context.Context, ancestor, descendant registry.ObjectID) (bool, error) {
	err := p.command(ctx, "merge-base", "--is-ancestor", string(ancestor), string(descendant)).run()
	if exitCode(err) == 1 {
		return false, nil
	}
	return err == nil, err
}

// ReadFile returns the content of the file at path in commit. No such file is a [registry.ErrNotFound], one
// larger than maxSize a [registry.ErrTooLarge].
func (p *Push) ReadFile(ctx context.Context, commit registry.ObjectID, path string, maxSize int64) (data []byte, err error) {
	absent := fmt.Errorf("file %q in commit %s: %w", path, commit.Short(), registry.ErrNotFound)
	if !fs.ValidPath(path) || strings.ContainsAny(path, "\n\x00") {
		return nil, absent
	}
	infos, err := p.infos(ctx, []string{string(commit) + ":" + path})
	if err != nil {
		return nil, err
	}
	if infos[0].kind != "blob" {
		return nil, absent
	}
	err = p.ReadBlobs(ctx, []registry.ObjectID{infos[0].id}, maxSize, func(_ registry.ObjectID, content []byte) error {
		data = bytes.Clone(content)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("file %q in commit %s: %w", path, commit.Short(), err)
	}
	return data, nil
}

func (p *Push) infos(ctx context.Context, names []string) (infos []objectInfo, err error) {
	err = p.withObjects(ctx, func(o *objectReader) error {
		infos, err = o.infos(names)
		return err
	})
	return infos, err
}

// withObjects calls fn with the git that reads the objects of the push, which it starts at the first call.
func (p *Push) withObjects(ctx context.Context, fn func(*objectReader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.objects == nil {
		o, err := startObjectReader(p.command(p.store.killed, "cat-file", "--batch-command", "--buffer"))
		if err != nil {
			return err
		}
		p.objects = o
	}
	stop := context.AfterFunc(ctx, p.objects.kill)
	err := fn(p.objects)
	if !stop() || p.objects.broken {
		p.objects.close()
		p.objects = nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// command prepares a git program that sees the objects in quarantine.
func (p *Push) command(ctx context.Context, args ...string) *process {
	cmd := p.store.command(ctx, p.Repository.path, args...)
	cmd.Env = append(cmd.Env, p.quarantine...)
	return cmd
}

// close ends the git that reads for the push.
func (p *Push) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.objects != nil {
		p.objects.close()
		p.objects = nil
	}
}
