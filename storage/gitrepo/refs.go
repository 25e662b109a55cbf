package gitrepo

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/herdbook/herdbook/registry"
)

// oid is the name of an object in the SHA-1 format. The zero value names none.
type oid [20]byte

func parseOID(s string) (id oid, ok bool) {
	if len(s) != 2*len(id) || strings.ToLower(s) != s {
		return oid{}, false
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil && id != oid{}
}

func (id oid) String() string { return hex.EncodeToString(id[:]) }

// snapshot is what the refs of a repository were at one moment. It does not change.
type snapshot struct {
	files *refFiles
	head  snapshotRef   // without an id while its branch is unborn
	refs  []snapshotRef // in order of their names
	state [sha256.Size]byte
}

type snapshotRef struct {
	name   string
	symref string // the ref that a symbolic one leads to in the end
	id     oid
	peeled oid // what a tag object leads to; zero for other objects
}

// errUnusual reports refs that only git can make sense of: broken ones, links, names that git would not have made, or
// a configuration that changes what is shown.
var errUnusual = errors.New("git has to list these refs")

// How long after a change the time of a file may stay what it is while the file changes again.
// Source: FAT keeps two seconds, the coarsest time of the file systems in use.
const defaultTimeSlack = 2 * time.Second

// maxSnapshotBytes bounds the memory of all snapshots that are kept.
const maxSnapshotBytes = 12 << 20

// snapshots keeps the last snapshot of each repository in use.
type snapshots struct {
	slack time.Duration
	lstat func(path string) (fileStamp, error)

	mu     sync.Mutex
	byPath map[string]*list.Element // of *snapshotEntry
	recent *list.List               // the last used first
	bytes  int64
}

type snapshotEntry struct {
	path  string
	bytes int64 // under snapshots.mu

	mu   sync.Mutex
	last *snapshot
}

func newSnapshots() *snapshots {
	return &snapshots{slack: defaultTimeSlack, lstat: lstat, byPath: map[string]*list.Element{}, recent: list.New()}
}

func (s *snapshots) entry(path string) *snapshotEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byPath[path]; e != nil {
		s.recent.MoveToFront(e)
		return e.Value.(*snapshotEntry)
	}
	entry := &snapshotEntry{path: path}
	s.byPath[path] = s.recent.PushFront(entry)
	return entry
}

// resize counts the memory of an entry, and lets go of the longest unused ones when there is too much.
func (s *snapshots) resize(entry *snapshotEntry, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byPath[entry.path]; e == nil || e.Value != entry {
		return
	}
	s.bytes += bytes - entry.bytes
	entry.bytes = bytes
	for s.bytes > maxSnapshotBytes && s.recent.Len() > 1 {
		s.forget(s.recent.Back())
	}
}

func (s *snapshots) forget(e *list.Element) {
	entry := s.recent.Remove(e).(*snapshotEntry)
	delete(s.byPath, entry.path)
	s.bytes -= entry.bytes
}

// drop forgets the snapshot of the repository at path.
func (s *snapshots) drop(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byPath[path]; e != nil {
		s.forget(e)
	}
}

// snapshot returns the refs as they are now: each change that ended before the call is in it. The error is
// errUnusual when git has to be asked instead.
func (r *Repository) snapshot(ctx context.Context) (*snapshot, error) {
	entry := r.store.snapshots.entry(r.path)
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	last := entry.last
	var known *refFiles
	if last != nil {
		known = last.files
	}
	files, err := r.store.snapshots.readRefFiles(r.path, known)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("repository of %s: %w", r.name, registry.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("refs of %s: %w", r.name, err)
	case files == known:
		return last, nil
	case known != nil && files.root.stamp.ino != known.root.stamp.ino: // another repository took its place
		last = nil
	}
	next, err := r.newSnapshot(ctx, files, last)
	if err != nil {
		return nil, fmt.Errorf("refs of %s: %w", r.name, err)
	}
	entry.last = next
	r.store.snapshots.resize(entry, next.memory())
	return next, nil
}

func (s *snapshot) memory() int64 {
	const refBytes, looseBytes = 88, 300 // of a snapshotRef, and of a looseRef with its names
	return 1024 + int64(len(s.refs)+len(s.files.packed.refs))*refBytes + int64(s.files.root.loose())*looseBytes + int64(len(s.files.packed.text))
}

// newSnapshot resolves what the files hold. What last knows of an object is not asked again.
func (r *Repository) newSnapshot(ctx context.Context, files *refFiles, last *snapshot) (*snapshot, error) {
	s := &snapshot{files: files}
	if err := s.resolve(); err != nil {
		return nil, err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s %x\n", s.head.name, s.head.symref, s.head.id)
	for _, ref := range s.refs {
		fmt.Fprintf(sum, "%s %s %x\n", ref.name, ref.symref, ref.id)
	}
	sum.Sum(s.state[:0])
	if last != nil && last.state == s.state {
		s.head, s.refs = last.head, last.refs
		return s, nil
	}
	return s, r.peelRefs(ctx, s, last)
}

// resolve lists the refs: the loose ones, and those packed ones that no loose one stands for.
func (s *snapshot) resolve() error {
	loose := s.files.root.list(nil)
	slices.SortFunc(loose, func(a, b *looseRef) int { return strings.Compare(a.name, b.name) })
	packed := s.files.packed.refs
	s.refs = make([]snapshotRef, 0, len(loose)+len(packed))
	for len(loose) > 0 || len(packed) > 0 {
		if len(loose) == 0 || len(packed) > 0 && packed[0].name < loose[0].name {
			s.refs = append(s.refs, packed[0])
			packed = packed[1:]
			continue
		}
		if len(packed) > 0 && packed[0].name == loose[0].name {
			packed = packed[1:]
		}
		s.refs = append(s.refs, snapshotRef{name: loose[0].name, symref: loose[0].symref, id: loose[0].id})
		loose = loose[1:]
	}
	symbolic := map[int]snapshotRef{}
	for i, ref := range s.refs {
		if ref.symref == "" {
			continue
		}
		target, found := s.follow(ref.symref)
		if !found {
			return fmt.Errorf("%w: the symbolic ref %q leads nowhere", errUnusual, ref.name)
		}
		symbolic[i] = target
	}
	for i, target := range symbolic {
		s.refs[i].symref, s.refs[i].id, s.refs[i].peeled = target.name, target.id, target.peeled
	}
	s.head = snapshotRef{name: "HEAD", symref: s.files.head.symref, id: s.files.head.id}
	if s.head.symref != "" {
		target, found := s.follow(s.head.symref)
		if target.name == "" {
			return fmt.Errorf("%w: HEAD leads in a circle", errUnusual)
		}
		s.head.symref = target.name
		if found {
			s.head.id, s.head.peeled = target.id, target.peeled
		}
	}
	return nil
}

// maxSymrefs is the longest chain of symbolic refs.
// Source: git, refs.c, SYMREF_MAXDEPTH, less the first.
const maxSymrefs = 4

// follow returns the ref that name leads to, of which there is only the name when it is not there.
func (s *snapshot) follow(name string) (ref snapshotRef, found bool) {
	for range maxSymrefs {
		i, ok := s.find(name)
		if !ok {
			return snapshotRef{name: name}, false
		}
		if s.refs[i].symref == "" {
			return s.refs[i], true
		}
		name = s.refs[i].symref
	}
	return snapshotRef{}, false
}

func (s *snapshot) find(name string) (int, bool) {
	return slices.BinarySearchFunc(s.refs, name, func(ref snapshotRef, name string) int { return strings.Compare(ref.name, name) })
}

// peelRefs makes sure that all refs name objects that are there, and finds out what tags lead to.
func (r *Repository) peelRefs(ctx context.Context, s, last *snapshot) error {
	known := map[oid]oid{}
	if last != nil {
		known[last.head.id] = last.head.peeled
		for _, ref := range last.refs {
			known[ref.id] = ref.peeled
		}
	}
	var unknown []oid
	add := func(ref snapshotRef) {
		if _, ok := known[ref.id]; !ok && ref.id != (oid{}) {
			known[ref.id] = ref.peeled
			unknown = append(unknown, ref.id)
		}
	}
	for _, ref := range s.refs {
		add(ref)
	}
	add(s.head)
	if len(unknown) > 0 {
		if err := r.peelObjects(ctx, unknown, known); err != nil {
			return err
		}
	}
	for i := range s.refs {
		s.refs[i].peeled = known[s.refs[i].id]
	}
	s.head.peeled = known[s.head.id]
	return nil
}

// peelObjects asks git for objects, and enters what the tags among them lead to where that is not known yet.
func (r *Repository) peelObjects(ctx context.Context, ids []oid, peeled map[oid]oid) error {
	o, err := startObjectReader(r.store.command(ctx, r.path, "cat-file", "--batch-command", "--buffer"))
	if err != nil {
		return err
	}
	defer o.close()
	ask := func(ids []oid, suffix string, fn func(id oid, info objectInfo) error) error {
		for batch := range slices.Chunk(ids, objectBatch) {
			names := make([]string, len(batch))
			for i, id := range batch {
				names[i] = id.String() + suffix
			}
			infos, err := o.infos(names)
			if err != nil {
				return err
			}
			for i, info := range infos {
				if info.kind == "" {
					return fmt.Errorf("%w: object %s is missing", errUnusual, names[i])
				}
				if err := fn(batch[i], info); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var tags []oid
	err = ask(ids, "", func(id oid, info objectInfo) error {
		if info.kind == "tag" && peeled[id] == (oid{}) {
			tags = append(tags, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return ask(tags, "^{}", func(id oid, info objectInfo) error {
		target, ok := parseOID(string(info.id))
		if !ok {
			return fmt.Errorf("%w: %s", errObjectInfo, info.id)
		}
		peeled[id] = target
		return nil
	})
}

// refFiles are the files of a repository on which its refs depend. They do not change: what is read again
// is another refFiles, which shares what stayed the same.
type refFiles struct {
	head   headFile
	packed packedFile
	config watchedFile
	root   *refDir
}

// watchedFile is a file or directory as it was when it was read.
type watchedFile struct {
	stamp   fileStamp
	settled bool // whatever changes it from now on changes the stamp too
}

// fileStamp tells one state of a file from another; the zero value is that of no file.
type fileStamp struct {
	dev, ino     uint64
	mode         uint32
	size         int64
	mtime, ctime int64 // ns
}

type headFile struct {
	watchedFile
	symref string // one of the two
	id     oid
}

type packedFile struct {
	watchedFile
	text string // that the names are parts of
	refs []snapshotRef
}

type refDir struct {
	watchedFile
	path, name string
	dirs       []*refDir // in order of their names
	files      []*looseRef
}

type looseRef struct {
	watchedFile
	path, name string
	symref     string // one of the two
	id         oid
}

func (d *refDir) loose() int {
	n := len(d.files)
	for _, sub := range d.dirs {
		n += sub.loose()
	}
	return n
}

func (d *refDir) list(refs []*looseRef) []*looseRef {
	refs = append(refs, d.files...)
	for _, sub := range d.dirs {
		refs = sub.list(refs)
	}
	return refs
}

// refReader reads the files anew that may have changed.
//
// A file's inode, size and times do not always tell that it was replaced: the inode may be that of the file before
// the last, and the times are those of the last tick of a clock. So what changed just before it was read is read
// again, until its last change is so long ago that another one gets another time.
type refReader struct {
	*snapshots
	began time.Time
}

// readRefFiles returns known, which may be nil, if nothing changed.
func (s *snapshots) readRefFiles(path string, known *refFiles) (*refFiles, error) {
	r := refReader{snapshots: s, began: time.Now()}
	old := known
	if old == nil {
		old = &refFiles{}
	}
	next := *old
	headChanged, err := r.readHead(path, &next.head)
	if err != nil {
		return nil, err
	}
	configChanged, err := r.readConfig(path, &next.config)
	if err != nil {
		return nil, err
	}
	if next.root, err = r.readDir(filepath.Join(path, "refs"), "refs", old.root); err != nil {
		return nil, err
	}
	// Behind the loose refs: one that git packs meanwhile is found here.
	packedChanged, err := r.readPacked(path, &next.packed)
	if err != nil {
		return nil, err
	}
	if known != nil && !headChanged && !configChanged && !packedChanged && next.root == known.root {
		return known, nil
	}
	return &next, nil
}

// look reports whether the file at path is surely what it was.
func (r *refReader) look(path string, was *watchedFile) (same bool, err error) {
	stamp, err := r.lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if was.settled && was.stamp == stamp {
		return true, err
	}
	// The absence of a file has no time; it shows in that there is none.
	*was = watchedFile{stamp, err != nil || max(stamp.mtime, stamp.ctime) < r.began.Add(-r.slack).UnixNano()}
	return false, err
}

func lstat(path string) (fileStamp, error) {
	var st unix.Stat_t
	for {
		err := unix.Lstat(path, &st)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return fileStamp{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
	}
	return fileStamp{
		dev: uint64(st.Dev), ino: st.Ino, mode: uint32(st.Mode), size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}, nil
}

func (s fileStamp) kind() uint32 { return s.mode & unix.S_IFMT }

// maxLooseRef is the longest content of a file that holds one ref, in bytes.
const maxLooseRef = 4 << 10

// readFile reads a regular file of at most so many bytes, that of a stamp; no link is followed.
func (s fileStamp) readFile(path string, most int64) ([]byte, error) {
	if s.kind() != unix.S_IFREG || s.size > most {
		return nil, fmt.Errorf("%w: %s is no file of at most %d bytes", errUnusual, path, most)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// It may have been replaced meanwhile, by another that is longer.
	b := bytes.NewBuffer(make([]byte, 0, s.size+bytes.MinRead))
	_, err = b.ReadFrom(io.LimitReader(f, most+1))
	if err := closeAnd(err, f); err != nil {
		return nil, err
	}
	if int64(b.Len()) > most {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", errUnusual, path, most)
	}
	return b.Bytes(), nil
}

func (r *refReader) readHead(path string, h *headFile) (changed bool, err error) {
	path = filepath.Join(path, "HEAD")
	same, err := r.look(path, &h.watchedFile)
	if err != nil || same {
		return false, err
	}
	content, err := h.stamp.readFile(path, maxLooseRef)
	if err != nil {
		return false, err
	}
	h.id, h.symref, err = parseLooseRef(content)
	return true, err
}

// parseLooseRef reads what git writes as a loose ref. More is taken by git itself: white space, and anything behind
// it.
// Source: gitrepository-layout(5), "HEAD".
func parseLooseRef(content []byte) (id oid, symref string, err error) {
	text, ended := strings.CutSuffix(string(content), "\n")
	if target, ok := strings.CutPrefix(text, "ref: "); ok && ended && wellFormedRef(target) {
		return oid{}, target, nil
	}
	id, ok := parseOID(text)
	if !ok || !ended {
		return oid{}, "", fmt.Errorf("%w: the content %.60q", errUnusual, content)
	}
	return id, "", nil
}

// wellFormedRef reports whether git takes name for that of a ref.
// Source: git-check-ref-format(1).
func wellFormedRef(name string) bool {
	if !strings.HasPrefix(name, "refs/") || strings.HasSuffix(name, ".") || strings.Contains(name, "..") || strings.Contains(name, "@{") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f || strings.IndexByte("~^:?*[\\", c) >= 0 {
			return false
		}
	}
	return true
}

// Sections of a configuration that do not change what is shown of the refs.
var harmlessSections = []string{"core", "gc", "maintenance", "pack", "repack", "remote", "branch", "user"}

// readConfig makes sure that the repository's own configuration does not change what is shown, and that it
// is no shallow one.
func (r *refReader) readConfig(path string, w *watchedFile) (changed bool, err error) {
	if _, err := lstat(filepath.Join(path, "shallow")); !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w: a shallow repository: %w", errUnusual, err)
	}
	path = filepath.Join(path, "config")
	same, err := r.look(path, w)
	if errors.Is(err, fs.ErrNotExist) || same {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	content, err := w.stamp.readFile(path, 1<<20)
	if err != nil {
		return false, err
	}
	for i, part := range strings.Split(string(content), "[") {
		section := part[:max(0, strings.IndexAny(part, " \t\".]"))]
		if i > 0 && !slices.Contains(harmlessSections, strings.ToLower(section)) {
			return false, fmt.Errorf("%w: the configuration has a section %.40q", errUnusual, section)
		}
	}
	return true, nil
}

// readDir returns known, which may be nil, if nothing in it changed.
func (r *refReader) readDir(path, name string, known *refDir) (*refDir, error) {
	next := &refDir{path: path, name: name}
	if known != nil {
		next.watchedFile = known.watchedFile
	}
	same, err := r.look(path, &next.watchedFile)
	if err != nil {
		return nil, err
	}
	if next.stamp.kind() != unix.S_IFDIR {
		return nil, fmt.Errorf("%w: %s is no directory", errUnusual, path)
	}
	if same {
		// The same names are in it; what they stand for may be other.
		same, err = r.readNames(known, next)
		if same {
			return known, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return next, err
		}
		next.settled = false // one went just now
	}
	return next, r.readEntries(known, next)
}

// readNames fills next with what is in known as it is now.
func (r *refReader) readNames(known, next *refDir) (same bool, err error) {
	same = true
	next.dirs, next.files = known.dirs, known.files
	for i, sub := range known.dirs {
		now, err := r.readDir(sub.path, sub.name, sub)
		if err != nil {
			return false, err
		}
		if now != sub {
			if same = false; &next.dirs[0] == &known.dirs[0] {
				next.dirs = slices.Clone(known.dirs)
			}
			next.dirs[i] = now
		}
	}
	for i, file := range known.files {
		now, err := r.readLoose(file.path, file.name, file)
		if err != nil {
			return false, err
		}
		if now != file {
			if same = false; &next.files[0] == &known.files[0] {
				next.files = slices.Clone(known.files)
			}
			next.files[i] = now
		}
	}
	return same, nil
}

// readEntries fills next with what is in the directory, of which known, which may be nil, is an older state.
func (r *refReader) readEntries(known, next *refDir) error {
	if known == nil {
		known = &refDir{}
	}
	entries, err := os.ReadDir(next.path)
	if err != nil {
		return err
	}
	next.dirs, next.files = nil, nil
	for _, e := range entries {
		base := e.Name()
		if base[0] == '.' || strings.HasSuffix(base, ".lock") {
			continue // git does not look at them either
		}
		path, name := next.path+"/"+base, next.name+"/"+base
		switch {
		case e.IsDir():
			var was *refDir
			if i, ok := slices.BinarySearchFunc(known.dirs, name, func(d *refDir, name string) int { return strings.Compare(d.name, name) }); ok {
				was = known.dirs[i]
			}
			var sub *refDir
			if sub, err = r.readDir(path, name, was); err == nil {
				next.dirs = append(next.dirs, sub)
			}
		default:
			var was *looseRef
			if i, ok := slices.BinarySearchFunc(known.files, name, func(f *looseRef, name string) int { return strings.Compare(f.name, name) }); ok {
				was = known.files[i]
			}
			var file *looseRef
			if file, err = r.readLoose(path, name, was); err == nil {
				next.files = append(next.files, file)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// readLoose returns known, which may be nil, if it did not change.
func (r *refReader) readLoose(path, name string, known *looseRef) (*looseRef, error) {
	var was watchedFile
	if known != nil {
		was = known.watchedFile
	}
	same, err := r.look(path, &was)
	switch {
	case err != nil:
		return nil, err
	case same:
		return known, nil
	case !wellFormedRef(name):
		return nil, fmt.Errorf("%w: a file of the name %.100q", errUnusual, name)
	}
	content, err := was.stamp.readFile(path, maxLooseRef)
	if err != nil {
		return nil, err
	}
	next := &looseRef{watchedFile: was, path: path, name: name}
	if next.id, next.symref, err = parseLooseRef(content); err != nil {
		return nil, fmt.Errorf("ref %q: %w", name, err)
	}
	return next, nil
}

// maxPackedRefs is the longest packed-refs that is read, in bytes.
const maxPackedRefs = maxSnapshotBytes / 3

func (r *refReader) readPacked(path string, p *packedFile) (changed bool, err error) {
	path = filepath.Join(path, "packed-refs")
	same, err := r.look(path, &p.watchedFile)
	if same {
		return false, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		p.text, p.refs = "", nil
		return true, nil
	}
	if err != nil {
		return false, err
	}
	content, err := p.stamp.readFile(path, maxPackedRefs)
	if err != nil {
		return false, err
	}
	p.text = string(content)
	p.refs, err = parsePackedRefs(p.text)
	return true, err
}

// parsePackedRefs reads what git writes as packed-refs, in order of the names.
// Source: git, refs/packed-backend.c, "The on-disk format".
func parsePackedRefs(text string) ([]snapshotRef, error) {
	unusual := func(line string) ([]snapshotRef, error) {
		return nil, fmt.Errorf("%w: packed-refs has the line %.100q", errUnusual, line)
	}
	refs := make([]snapshotRef, 0, strings.Count(text, "\n"))
	peeled := false
	sorted := true
	first := true
	for line := range strings.Lines(text) {
		header := first
		first = false
		whole := line
		line, ended := strings.CutSuffix(line, "\n")
		switch {
		case !ended:
			return unusual(whole)
		case header && strings.HasPrefix(line, "# pack-refs with:"):
			peeled = slices.Contains(strings.Fields(line), "fully-peeled")
		case strings.HasPrefix(line, "^"):
			id, ok := parseOID(line[1:])
			if !ok || len(refs) == 0 || refs[len(refs)-1].peeled != (oid{}) {
				return unusual(whole)
			}
			if peeled {
				refs[len(refs)-1].peeled = id
			}
		default:
			text, name, _ := strings.Cut(line, " ")
			id, ok := parseOID(text)
			if !ok || !wellFormedRef(name) {
				return unusual(whole)
			}
			sorted = sorted && (len(refs) == 0 || refs[len(refs)-1].name < name)
			refs = append(refs, snapshotRef{name: name, id: id})
		}
	}
	if !sorted {
		slices.SortFunc(refs, func(a, b snapshotRef) int { return strings.Compare(a.name, b.name) })
		for i := range refs[1:] {
			if refs[i].name == refs[i+1].name {
				return unusual(refs[i].name)
			}
		}
	}
	return refs, nil
}
