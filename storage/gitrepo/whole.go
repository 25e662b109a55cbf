package gitrepo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// wholePack is a pack with all objects that some commits and tags reach, and with no other. That stays true whatever
// happens to the refs: so a clone that wants what reaches all of these is answered with the pack as it is, with
// what came later behind it, and git has to walk and compress nothing but that.
type wholePack struct {
	// Pack is the name of its files without their extensions.
	Pack string `json:"pack"`
	// Commits and Tags are what the pack was made for, in hexadecimal: commits, and objects of any kind.
	Commits []string `json:"commits"`
	Tags    []string `json:"tags,omitempty"`
}

// wholeFile is where a repository says which of its packs is whole. Without it, git does the work.
const wholeFile = "objects/info/herdbook-whole.json"

// maxWholeRefs bounds wholeFile, which is read for each clone.
const maxWholeRefs = 10_000

// writeWhole makes w known, if it is a pack. Nothing hangs on it, so that no sync is waited for.
func (r *Repository) writeWhole(w wholePack) error {
	if w.Pack == "" || len(w.Commits)+len(w.Tags) > maxWholeRefs {
		return nil
	}
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	path := filepath.Join(r.path, wholeFile)
	f, err := r.store.fsys.CreateTemp(filepath.Dir(path), 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = closeAnd(err, f)
	if err == nil {
		err = r.store.fsys.RenameUnsynced(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, r.store.fsys.Remove(f.Name()))
	}
	return err
}

// whole is the pack that a push brings, if the repository has nothing yet and the pack nothing but what the push makes reachable:
// then objects are the directory in quarantine. Otherwise it is the zero value.
func (p *Push) whole(objects string) (w wholePack, err error) {
	if p.reached == 0 {
		return wholePack{}, nil
	}
	for _, u := range p.Updates {
		switch {
		case u.New == "":
		case strings.HasPrefix(u.Ref, "refs/heads/"):
			w.Commits = append(w.Commits, string(u.New))
		case strings.HasPrefix(u.Ref, "refs/tags/"):
			w.Tags = append(w.Tags, string(u.New))
		default:
			return wholePack{}, nil
		}
	}
	there, err := storedIn(filepath.Join(p.Repository.path, "objects"))
	if err != nil || len(there) > 0 {
		return wholePack{}, err
	}
	brought, err := storedIn(objects)
	if err != nil || len(brought) != 1 || brought[0] == "" {
		return wholePack{}, err
	}
	f, err := os.Open(filepath.Join(objects, "pack", brought[0]+".pack"))
	if err != nil {
		return wholePack{}, err
	}
	defer f.Close()
	var header [packHeader]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return wholePack{}, err
	}
	n, err := packObjects(header[:])
	if err != nil || uint64(n) != uint64(p.reached) {
		return wholePack{}, err
	}
	w.Pack = brought[0]
	return w, nil
}

// storedIn are the names of the packs in a directory of objects; an empty one stands for objects that are in no pack.
func storedIn(dir string) (packs []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if len(e.Name()) == 2 { // the first two digits of loose objects
			packs = append(packs, "")
		}
	}
	entries, err = os.ReadDir(filepath.Join(dir, "pack"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".pack"); ok {
			packs = append(packs, name)
		}
	}
	return packs, nil
}

// maxAside is which part of a pack may be what no branch and no tag reaches, and what a clone does not ask for.
const maxAside = 1.0 / 8

// noteJoined makes the pack known that has just been made of all that the refs reached before.
func (r *Repository) noteJoined(ctx context.Context, before *snapshot) error {
	after, err := r.snapshotOrGit(ctx)
	if err != nil || before == nil || after == nil || before.state != after.state {
		return err
	}
	bitmaps, err := filepath.Glob(filepath.Join(r.path, "objects", "pack", "pack-*.bitmap"))
	if err != nil || len(bitmaps) != 1 {
		return err
	}
	w := wholePack{Pack: strings.TrimSuffix(filepath.Base(bitmaps[0]), ".bitmap")}
	aside := false
	for _, ref := range after.refs {
		id := ref.id.String()
		if strings.HasPrefix(ref.name, "refs/heads/") || ownRef(ref.name) {
			w.Commits = append(w.Commits, id)
		} else {
			w.Tags = append(w.Tags, id)
		}
		aside = aside || !strings.HasPrefix(ref.name, "refs/heads/") && !strings.HasPrefix(ref.name, "refs/tags/")
	}
	if aside {
		few, err := r.fewAside(ctx, w.Pack)
		if err != nil || !few {
			return err
		}
	}
	return r.writeWhole(w)
}

// ownRef reports whether the server alone writes a ref, which then names a commit.
func ownRef(name string) bool {
	return name == "refs/notes/evaluations" || strings.HasPrefix(name, "refs/herdbook/")
}

// fewAside reports whether nearly all that is in a pack is reached by branches and tags.
func (r *Repository) fewAside(ctx context.Context, pack string) (bool, error) {
	index, err := os.Stat(strings.TrimSuffix(r.packPath(pack), ".pack") + ".idx")
	if err != nil {
		return false, err
	}
	out, err := r.store.command(ctx, r.path, "rev-list", "--count", "--objects", "--use-bitmap-index", "--branches", "--tags").output()
	if err != nil {
		return false, err
	}
	reached, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	all := indexObjects(index.Size())
	return err == nil && float64(all-reached) <= maxAside*float64(all), err
}

// packPath is where a pack of the repository is.
func (r *Repository) packPath(name string) string {
	return filepath.Join(r.path, "objects", "pack", name+".pack")
}

// The parts of a pack. Source: gitformat-pack(5), "pack-*.pack files have the following format".
const (
	packHeader  = 12 // "PACK", version, number of objects
	packTrailer = sha1.Size
)

// packObjects reads how many objects a pack has.
func packObjects(header []byte) (uint32, error) {
	if string(header[:8]) != "PACK\x00\x00\x00\x02" {
		return 0, fmt.Errorf("a pack begins with %q", header[:8])
	}
	return binary.BigEndian.Uint32(header[8:]), nil
}

// wholeAnswer is how a clone is answered from a pack that is there.
type wholeAnswer struct {
	repo    *Repository
	pack    string // its name
	file    *os.File
	size    int64
	objects uint32
	known   []string // what the pack was made for
	later   []string // what is wanted beyond it
}

// answerWhole answers a clone from a pack that is there. When it cannot, it wrote nothing.
func (r *Repository) answerWhole(ctx context.Context, snap *snapshot, req sharedFetch, w io.Writer) (answered bool, err error) {
	a, err := r.whole(ctx, snap, req)
	if a != nil {
		defer a.file.Close()
		answered, err = a.answer(ctx, req, w)
	}
	if err != nil && !answered && ctx.Err() == nil {
		r.store.log.WarnContext(ctx, "a clone is not answered from the pack that is there", "model", r.name, "reason", err.Error())
	}
	return answered, err
}

// whole returns how a clone is answered from a pack that is there, nil when it cannot be. The wants are
// refs of snap.
func (r *Repository) whole(ctx context.Context, snap *snapshot, req sharedFetch) (*wholeAnswer, error) {
	if !req.all {
		return nil, nil
	}
	var w wholePack
	text, err := os.ReadFile(filepath.Join(r.path, wholeFile))
	if err == nil {
		err = json.Unmarshal(text, &w)
	}
	if err != nil || filepath.Base(w.Pack) != w.Pack {
		return nil, nil // none was noted, or a power cut came in between
	}
	f, err := os.Open(r.packPath(w.Pack))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a := &wholeAnswer{repo: r, pack: w.Pack, file: f, known: append(w.Commits, w.Tags...)}
	ok, err := a.answers(ctx, w, snap, req)
	if err != nil || !ok {
		return nil, closeAnd(err, f)
	}
	return a, nil
}

// answers reports whether all that the pack has may be sent to who wants that much, and finds out what is missing.
func (a *wholeAnswer) answers(ctx context.Context, w wholePack, snap *snapshot, req sharedFetch) (bool, error) {
	var header [packHeader]byte
	info, err := a.file.Stat()
	if err == nil {
		_, err = a.file.ReadAt(header[:], 0)
	}
	if err == nil {
		a.size = info.Size()
		a.objects, err = packObjects(header[:])
	}
	if err != nil {
		return false, err
	}
	// What is wanted, and what the server itself notes beside it and shows to everyone.
	reached := map[string]bool{}
	known := map[string]bool{}
	for _, id := range a.known {
		known[id] = true
	}
	for _, id := range req.wants {
		reached[id.String()] = true
	}
	for id := range reached {
		if !known[id] {
			a.later = append(a.later, id)
		}
	}
	for _, ref := range snap.refs {
		if req.tags && ref.peeled != (oid{}) && strings.HasPrefix(ref.name, "refs/tags/") && !reached[ref.id.String()] {
			return false, nil // git knows which tags go with what is wanted
		}
		if !strings.HasPrefix(ref.name, "refs/heads/") && !strings.HasPrefix(ref.name, "refs/tags/") {
			reached[ref.id.String()] = true
		}
	}
	for _, id := range w.Tags {
		if !reached[id] {
			return false, nil
		}
	}
	var in bytes.Buffer
	for _, id := range w.Commits {
		if !reached[id] {
			fmt.Fprintln(&in, id)
		}
	}
	if in.Len() == 0 {
		return true, nil
	}
	// Branches went on since.
	for id := range reached {
		fmt.Fprintln(&in, "^"+id)
	}
	cmd := a.repo.store.command(ctx, a.repo.path, "rev-list", "--objects", "--max-count=1", "--stdin")
	cmd.Stdin = &in
	left, err := cmd.output()
	return err == nil && len(left) == 0, err
}

// answer writes the answer to req to w. When it has not begun to, git can still be asked.
func (a *wholeAnswer) answer(ctx context.Context, req sharedFetch, w io.Writer) (begun bool, err error) {
	later, err := a.packLater(ctx)
	if err != nil {
		return false, err
	}
	defer later.close()
	total := uint64(a.objects) + uint64(later.objects)
	if total > math.MaxUint32 {
		return false, errors.New("a pack would have too many objects")
	}
	if _, err := w.Write(req.answerHead(total)); err != nil {
		return true, err
	}
	out := newBandWriter(w)
	defer out.release()
	if later.objects == 0 {
		_, err = out.ReadFrom(io.NewSectionReader(a.file, 0, a.size))
	} else {
		err = a.join(out, later, uint32(total))
	}
	if err == nil {
		err = later.wait()
	}
	if err == nil {
		err = out.end()
	}
	return true, err
}

// answerHead is what comes in front of a pack.
func (req sharedFetch) answerHead(objects uint64) []byte {
	text := "NAK\n"
	if req.version == 2 {
		text = "packfile\n"
	}
	head := appendPacket(nil, []byte(text))
	if req.quiet {
		return head
	}
	return appendBand(head, bandProgress, fmt.Appendf(nil, "Enumerating objects: %d, done.\n", objects))
}

// join writes both packs as one.
func (a *wholeAnswer) join(out *bandWriter, later *laterPack, total uint32) error {
	sum, own := sha1.New(), sha1.New()
	write := func(r io.Reader, sums ...io.Writer) error {
		_, err := out.ReadFrom(io.TeeReader(r, io.MultiWriter(sums...)))
		return err
	}
	header := binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), total)
	if err := write(bytes.NewReader(header), sum); err != nil {
		return err
	}
	// First what git makes, so that it is done.
	if err := write(&withoutTrailer{in: later.out}, sum); err != nil {
		return err
	}
	if err := later.wait(); err != nil {
		return err
	}
	// A damaged pack must not get a checksum that is right.
	if _, err := io.Copy(own, io.NewSectionReader(a.file, 0, packHeader)); err != nil {
		return err
	}
	if err := write(io.NewSectionReader(a.file, packHeader, a.size-packHeader-packTrailer), sum, own); err != nil {
		return err
	}
	trailer := make([]byte, packTrailer)
	if _, err := a.file.ReadAt(trailer, a.size-packTrailer); err != nil {
		return err
	}
	if !bytes.Equal(trailer, own.Sum(nil)) {
		return fmt.Errorf("%s of %s is damaged: its checksum is another one", a.pack, a.repo.name)
	}
	_, err := out.ReadFrom(bytes.NewReader(sum.Sum(nil)))
	return err
}

// laterPack is what git makes of what is not in a pack yet.
type laterPack struct {
	cmd     *process // nil when there is nothing
	pipe    io.ReadCloser
	out     *bufio.Reader // behind the header
	objects uint32
}

// packLater begins to make it.
func (a *wholeAnswer) packLater(ctx context.Context) (*laterPack, error) {
	if len(a.later) == 0 {
		return &laterPack{}, nil
	}
	var in bytes.Buffer
	for _, id := range a.later {
		fmt.Fprintln(&in, id)
	}
	for _, id := range a.known {
		fmt.Fprintln(&in, "^"+id)
	}
	cmd := a.repo.store.command(ctx, a.repo.path, "pack-objects", "--revs", "--stdout", "--delta-base-offset", "-q", "--keep-pack="+a.pack+".pack")
	cmd.Stdin = &in
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.start(); err != nil {
		return nil, err
	}
	l := &laterPack{cmd: cmd, pipe: pipe, out: bufio.NewReaderSize(pipe, copyBufferSize)}
	header, err := l.out.Peek(packHeader)
	if err == nil {
		l.objects, err = packObjects(header)
	}
	if err == nil {
		_, err = l.out.Discard(packHeader)
	}
	// Git leaves out what the pack has only if the pack was still there when it looked.
	if err == nil {
		_, err = os.Stat(a.repo.packPath(a.pack))
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("pack what is not in %s: %w", a.pack, err)
	}
	return l, nil
}

// wait reads the rest of what git writes and says how it ended.
func (l *laterPack) wait() error {
	if l.cmd == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, l.out)
	err = errors.Join(err, l.cmd.wait())
	l.cmd = nil
	return err
}

func (l *laterPack) close() {
	if l.cmd != nil {
		l.cmd.abandon(l.pipe)
		l.cmd = nil
	}
}

// withoutTrailer reads all but the checksum of a pack.
type withoutTrailer struct{ in *bufio.Reader }

// Read implements io.Reader.
func (t *withoutTrailer) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	ahead, err := t.in.Peek(min(len(p), t.in.Size()-packTrailer) + packTrailer)
	if len(ahead) > packTrailer {
		return t.in.Read(p[:len(ahead)-packTrailer])
	}
	if err == nil || errors.Is(err, io.EOF) && len(ahead) < packTrailer {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

// bandWriter writes a pack as a fetch gets it.
// Source: gitprotocol-v2(5), "fetch", "output"; gitprotocol-pack(5), "Packfile Data".
type bandWriter struct {
	w      io.Writer
	pooled *[]byte
	buf    []byte // a packet, of which n bytes are there
	n      int
}

const bandStart = packetStart + 1 // where the payload of a band begins

func newBandWriter(w io.Writer) *bandWriter {
	pooled := getCopyBuffer()
	return &bandWriter{w: w, pooled: pooled, buf: (*pooled)[:maxPacket], n: bandStart}
}

func (b *bandWriter) release() { putCopyBuffer(b.pooled) }

// ReadFrom writes all that r has, as a part of the pack. It implements io.ReaderFrom.
func (b *bandWriter) ReadFrom(r io.Reader) (total int64, err error) {
	for {
		n, err := r.Read(b.buf[b.n:])
		b.n += n
		total += int64(n)
		if b.n == len(b.buf) {
			if err := b.send(); err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (b *bandWriter) send() error {
	copy(b.buf, fmt.Appendf(nil, "%04x%c", b.n, bandData))
	_, err := b.w.Write(b.buf[:b.n])
	b.n = bandStart
	return err
}

// end writes what is left and the end.
func (b *bandWriter) end() error {
	if b.n > bandStart {
		if err := b.send(); err != nil {
			return err
		}
	}
	_, err := b.w.Write(flushPacket)
	return err
}
