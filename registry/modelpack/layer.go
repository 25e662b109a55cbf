package modelpack

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

const (
	// root is the folder of the files in an image: where KServe's modelcars, its oci+native and
	// oci+fetch modes and Kubernetes image volumes with subPath look for them.
	root = "models/"

	// A file of this size has a layer of its own, so that a new version shares it with the old.
	largeFile = 1 << 20

	// maxLayers is the most layers of an image: overlay file systems mount about 127.
	// Source: Linux, the size of the mount options; moby, daemon/graphdriver/overlay2, maxDepth = 128.
	maxLayers = 120

	blockSize   = 512
	trailerSize = 2 * blockSize // two blocks of zeros end an archive
)

// LayerFiles divides the files of a version into layers: all small and empty files in the first,
// then each large file in one of its own, by path. When that would be more than maxLayers, the
// smallest of the large files share one layer, which comes after the first.
func LayerFiles(files []registry.File) [][]registry.File {
	var small, large []registry.File
	for _, f := range slices.SortedFunc(slices.Values(files), byPath) {
		if f.SizeBytes < largeFile {
			small = append(small, f)
		} else {
			large = append(large, f)
		}
	}
	room := maxLayers
	var layers [][]registry.File
	if len(small) > 0 {
		layers = append(layers, small)
		room--
	}
	if surplus := len(large) - room; surplus > 0 {
		bySize := slices.SortedStableFunc(slices.Values(large), func(a, b registry.File) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) })
		shared := slices.SortedFunc(slices.Values(bySize[:surplus+1]), byPath)
		layers = append(layers, shared)
		large = slices.SortedFunc(slices.Values(bySize[surplus+1:]), byPath)
	}
	for _, f := range large {
		layers = append(layers, []registry.File{f})
	}
	return layers
}

// entry is one entry of a layer's archive: a header, the content of a blob, zeros up to the next
// block. Content is nil for a folder.
type entry struct {
	name       string // in the archive
	file       *registry.File
	offset     int64 // of the header in the archive
	headerSize int64
}

// layout places the entries of a layer: the folders that its files lie in and the files, by name.
// It does not depend on the order of the files.
func layout(files []registry.File) (entries []entry, size int64, err error) {
	files, err = sorted(files)
	if err != nil {
		return nil, 0, err
	}
	if len(files) == 0 {
		return nil, 0, errors.New("a layer has at least one file")
	}
	folders := map[string]bool{}
	for i := range files {
		name := root + files[i].Path
		entries = append(entries, entry{name: name, file: &files[i]})
		for dir := path.Dir(name) + "/"; dir != "./" && !folders[dir]; dir = path.Dir(path.Clean(dir)) + "/" {
			folders[dir] = true
			entries = append(entries, entry{name: dir})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	for i := range entries {
		e := &entries[i]
		if e.file != nil && folders[e.name+"/"] {
			return nil, 0, fmt.Errorf("%q is a file and a folder", e.file.Path)
		}
		e.offset = size
		if e.headerSize, err = e.sizeOfHeader(); err != nil {
			return nil, 0, err
		}
		size = e.end()
	}
	return entries, size + trailerSize, nil
}

// sizeOfHeader is a block, but for the names and sizes that the USTAR format cannot hold.
func (e *entry) sizeOfHeader() (int64, error) {
	const (
		ustarName = 100
		ustarSize = 8 << 30
	)
	ascii := !strings.ContainsFunc(e.name, func(r rune) bool { return r >= 0x80 })
	if ascii && len(e.name) <= ustarName && e.contentSize() < ustarSize {
		return blockSize, nil
	}
	header, err := e.header()
	return int64(len(header)), err
}

// header is what archive/tar writes before the content: USTAR, with a PAX header before it where
// name or size need one. All that could differ between two runs or two servers is fixed.
func (e *entry) header() ([]byte, error) {
	h := tar.Header{Name: e.name, Mode: fileMode, Size: e.contentSize(), ModTime: epoch, Typeflag: tar.TypeReg}
	switch {
	case e.file == nil:
		h.Mode, h.Typeflag = executableMode, tar.TypeDir
	case e.file.Executable:
		h.Mode = executableMode
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return nil, fmt.Errorf("tar header of %q: %w", e.name, err)
	}
	return b.Bytes(), nil
}

func (e *entry) contentSize() int64 {
	if e.file == nil {
		return 0
	}
	return e.file.SizeBytes
}

// content is where the content begins.
func (e *entry) content() int64 { return e.offset + e.headerSize }

// end is where the next entry begins.
func (e *entry) end() int64 {
	size := e.contentSize()
	return e.content() + size + (blockSize-size%blockSize)%blockSize
}

// NewLayer computes the digest and the size of the layer of some files: an uncompressed tar
// archive with each file at models/PATH and the folders before it. It reads every blob once, and
// fails when one is not exactly as long as its file says.
func NewLayer(files []registry.File, open Open) (registry.ImageLayer, error) {
	entries, size, err := layout(files)
	if err != nil {
		return registry.ImageLayer{}, err
	}
	layer := registry.ImageLayer{SizeBytes: size}
	hash := sha256.New()
	buf := make([]byte, 256<<10)
	for i := range entries {
		e := &entries[i]
		header, err := e.header()
		if err != nil {
			return registry.ImageLayer{}, err
		}
		hash.Write(header)
		if e.file == nil {
			continue
		}
		layer.Files = append(layer.Files, *e.file)
		if err := hashBlob(hash, *e.file, open, buf); err != nil {
			return registry.ImageLayer{}, err
		}
		hash.Write(zeros[:e.end()-e.content()-e.contentSize()])
	}
	hash.Write(zeros[:trailerSize])
	layer.Digest = digest.NewDigest(digest.SHA256, hash)
	return layer, nil
}

var zeros [trailerSize]byte

func hashBlob(w io.Writer, f registry.File, open Open, buf []byte) error {
	blob, err := open(f.Digest)
	if err != nil {
		return fmt.Errorf("content of %s: %w", f.Path, err)
	}
	defer blob.Close()
	// One byte more than the file has, to see one that is there and should not be.
	n, err := io.CopyBuffer(onlyWriter{w}, io.LimitReader(blob, f.SizeBytes+1), buf)
	if err == nil && n != f.SizeBytes {
		err = fmt.Errorf("blob %s is not %d bytes long", f.Digest, f.SizeBytes)
	}
	if err != nil {
		return fmt.Errorf("content of %s: %w", f.Path, err)
	}
	return nil
}

// onlyWriter hides what else a writer can do, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// Layer is the content of an image layer, composed while it is read. It is for one goroutine.
type Layer struct {
	entries []entry
	size    int64
	open    Open

	pos     int64
	current int    // index of the entry that was read last
	header  []byte // of the current entry, once it was read
	blob    io.ReadSeekCloser
	blobPos int64
}

var (
	_ io.ReadSeekCloser = (*Layer)(nil)
	_ io.WriterTo       = (*Layer)(nil)
)

// OpenLayer opens the content of a layer that NewLayer made. It reads nothing yet.
func OpenLayer(layer registry.ImageLayer, open Open) (*Layer, error) {
	entries, size, err := layout(layer.Files)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", layer.Digest, err)
	}
	if size != layer.SizeBytes {
		return nil, fmt.Errorf("layer %s has %d bytes and its files make %d", layer.Digest, layer.SizeBytes, size)
	}
	return &Layer{entries: entries, size: size, open: open, current: -1}, nil
}

// Size is the length of the layer in bytes.
func (l *Layer) Size() int64 { return l.size }

// Seek sets where the next Read begins.
func (l *Layer) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += l.pos
	case io.SeekEnd:
		offset += l.size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, errors.New("seek in a layer: no such place")
	}
	l.pos = offset
	return offset, nil
}

// Read reads on from where it is.
func (l *Layer) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	piece, err := l.pieceAt(l.pos, int64(len(p)))
	if err != nil {
		return 0, err
	}
	var n int
	if piece.blob {
		if n, err = l.blob.Read(p[:piece.size]); n > 0 && err == io.EOF { //nolint:errorlint // io.Reader's own
			err = nil
		}
		l.blobPos += int64(n)
		if n == 0 && errors.Is(err, io.EOF) {
			err = l.truncated()
		}
	} else {
		n = copy(p, piece.bytes)
	}
	l.pos += int64(n)
	return n, err
}

// WriteTo writes the rest of the layer.
func (l *Layer) WriteTo(w io.Writer) (int64, error) {
	if l.pos >= l.size {
		return 0, nil
	}
	start := l.pos
	err := l.writeOn(w, l.size-l.pos)
	return l.pos - start, err
}

// WriteRange writes length bytes from an offset on. Content goes to w from the opened blob by
// io.Copy and an io.LimitedReader around nothing else, so that a response of net/http sends a blob
// that is an *os.File by sendfile(2), without copying it through this program.
func (l *Layer) WriteRange(w io.Writer, offset, length int64) error {
	if offset < 0 || length < 0 || length > l.size-offset {
		return fmt.Errorf("bytes %d to %d of a layer of %d", offset, offset+length, l.size)
	}
	l.pos = offset
	return l.writeOn(w, length)
}

func (l *Layer) writeOn(w io.Writer, length int64) error {
	for length > 0 {
		piece, err := l.pieceAt(l.pos, length)
		if err != nil {
			return err
		}
		var n int64
		if piece.blob {
			n, err = io.Copy(w, &io.LimitedReader{R: l.blob, N: piece.size})
			l.blobPos += n
			if err == nil && n < piece.size {
				err = l.truncated()
			}
		} else {
			var written int
			written, err = w.Write(piece.bytes)
			n = int64(written)
		}
		l.pos += n
		length -= n
		if err != nil {
			return err
		}
	}
	return nil
}

// piece is a stretch of a layer that comes from one place.
type piece struct {
	blob  bool   // the opened blob, which stands at the right place
	size  int64  // of what is to be read from the blob
	bytes []byte // otherwise
}

// pieceAt finds the piece at an offset, at most so long.
func (l *Layer) pieceAt(offset, most int64) (piece, error) {
	if offset >= l.size {
		return piece{}, io.EOF
	}
	if err := l.enter(offset); err != nil {
		return piece{}, err
	}
	e := &l.entries[l.current]
	within := offset - e.offset
	content := e.headerSize + e.contentSize()
	switch {
	case within < e.headerSize:
		return piece{bytes: clamp(l.header[within:], most)}, nil
	case within < content:
		return piece{blob: true, size: min(most, content-within)}, l.seekBlob(within - e.headerSize)
	}
	// Padding, and behind the last entry the end of the archive.
	end := e.end()
	if l.current == len(l.entries)-1 {
		end = l.size
	}
	return piece{bytes: clamp(zeros[:min(end-offset, int64(len(zeros)))], most)}, nil
}

func clamp(b []byte, most int64) []byte { return b[:min(int64(len(b)), most)] }

// enter makes the entry at an offset the current one.
func (l *Layer) enter(offset int64) error {
	i, found := slices.BinarySearchFunc(l.entries, offset, func(e entry, offset int64) int { return cmp.Compare(e.offset, offset) })
	if !found {
		i-- // the last that begins before
	}
	if i == l.current {
		return nil
	}
	l.current = -1 // until its header is there
	if err := l.Close(); err != nil {
		return err
	}
	header, err := l.entries[i].header()
	if err != nil {
		return err
	}
	l.current, l.header = i, header
	return nil
}

// seekBlob opens the blob of the current entry, unless it is open, and goes to a place in it.
func (l *Layer) seekBlob(offset int64) error {
	e := &l.entries[l.current]
	if l.blob == nil {
		blob, err := l.open(e.file.Digest)
		if err != nil {
			return fmt.Errorf("content of %s: %w", e.file.Path, err)
		}
		l.blob, l.blobPos = blob, 0
	}
	if l.blobPos != offset {
		if _, err := l.blob.Seek(offset, io.SeekStart); err != nil {
			return fmt.Errorf("content of %s: %w", e.file.Path, err)
		}
		l.blobPos = offset
	}
	return nil
}

func (l *Layer) truncated() error {
	f := l.entries[l.current].file
	return fmt.Errorf("content of %s: blob %s is shorter than %d bytes: %w", f.Path, f.Digest, f.SizeBytes, io.ErrUnexpectedEOF)
}

// Close closes the blob that is open. The layer can still be read, which opens it again.
func (l *Layer) Close() error {
	if l.blob == nil {
		return nil
	}
	err := l.blob.Close()
	l.blob = nil
	return err
}
