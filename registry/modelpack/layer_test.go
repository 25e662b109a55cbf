package modelpack

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// blobs is a store in memory. It counts what is open.
type blobs struct {
	content map[digest.Digest][]byte
	opened  int
}

type memoryBlob struct {
	*bytes.Reader
	of *blobs
}

func (b memoryBlob) Close() error {
	b.of.opened--
	return nil
}

func newBlobs() *blobs { return &blobs{content: map[digest.Digest][]byte{}} }

func (b *blobs) put(path string, content []byte) registry.File {
	d := digest.FromBytes(content)
	b.content[d] = content
	return registry.File{Path: path, Digest: d, SizeBytes: int64(len(content))}
}

func (b *blobs) open(d digest.Digest) (io.ReadSeekCloser, error) {
	content, ok := b.content[d]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, registry.ErrNotFound)
	}
	b.opened++
	return memoryBlob{bytes.NewReader(content), b}, nil
}

// archive is what archive/tar writes for the files: the promise that a layer keeps.
func archive(t *testing.T, files []registry.File, content func(digest.Digest) []byte) []byte {
	t.Helper()
	byName := map[string]*registry.File{}
	for i, f := range files {
		byName["models/"+f.Path] = &files[i]
		for dir := filepath.Dir("models/" + f.Path); dir != "."; dir = filepath.Dir(dir) {
			byName[dir+"/"] = nil
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	sort.Strings(names)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: time.Unix(0, 0)}
		var data []byte
		if f := byName[name]; f != nil {
			data = content(f.Digest)
			h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(data))
			if f.Executable {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var randomNames = []string{
	"a", "b.txt", "config.json", "weights.safetensors", "ünïcode.bin", "模型.onnx", "with space", strings.Repeat("n", 99),
	strings.Repeat("n", 101), strings.Repeat("long", 60), "x'y\"z", "-dash", "100%", "#", "a+b",
}

// randomFiles puts files of random names, depths and sizes into a store; sizes near the size of a
// block are likely.
func randomFiles(r *rand.Rand, b *blobs) []registry.File {
	var files []registry.File
	seen := map[string]bool{}
	for range 1 + r.IntN(12) {
		var parts []string
		for range r.IntN(4) {
			parts = append(parts, "dir "+randomNames[r.IntN(len(randomNames))])
		}
		path := strings.Join(append(parts, randomNames[r.IntN(len(randomNames))]), "/")
		if seen[path] {
			continue
		}
		seen[path] = true
		size := []int{0, 1, r.IntN(600), 511, 512, 513, 1024, r.IntN(70_000)}[r.IntN(8)]
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(r.Uint32())
		}
		f := b.put(path, content)
		f.Executable = r.IntN(4) == 0
		files = append(files, f)
	}
	return files
}

func TestLayerIsTheArchive(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		store := newBlobs()
		files := randomFiles(r, store)
		want := archive(t, files, func(d digest.Digest) []byte { return store.content[d] })
		layer, err := NewLayer(files, store.open)
		if err != nil {
			t.Fatalf("seed %d: NewLayer: %v", seed, err)
		}
		if layer.Digest != digest.FromBytes(want) || layer.SizeBytes != int64(len(want)) {
			t.Fatalf("seed %d: NewLayer = %s of %d bytes, want %s of %d", seed, layer.Digest, layer.SizeBytes, digest.FromBytes(want), len(want))
		}
		l, err := OpenLayer(layer, store.open)
		if err != nil {
			t.Fatalf("seed %d: OpenLayer: %v", seed, err)
		}
		if got, err := io.ReadAll(l); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the layer read to its end is not the archive (%d bytes of %d, %v)", seed, len(got), len(want), err)
		}
		for range 40 {
			from := r.IntN(len(want) + 1)
			length := r.IntN(len(want) - from + 1)
			switch r.IntN(3) {
			case 0: // seek, then read in small pieces
				checkRead(t, r, l, want, from, length)
			case 1:
				var got bytes.Buffer
				if err := l.WriteRange(&got, int64(from), int64(length)); err != nil || !bytes.Equal(got.Bytes(), want[from:from+length]) {
					t.Fatalf("seed %d: WriteRange(%d, %d) wrote %d bytes that are not the archive's, %v", seed, from, length, got.Len(), err)
				}
			case 2:
				seek(t, l, int64(from)-int64(len(want)), io.SeekEnd, int64(from))
				var got bytes.Buffer
				if n, err := l.WriteTo(&got); err != nil || n != int64(got.Len()) || !bytes.Equal(got.Bytes(), want[from:]) {
					t.Fatalf("seed %d: WriteTo from %d = %d, %v, and wrote %d bytes", seed, from, n, err, got.Len())
				}
			}
		}
		if err := l.Close(); err != nil || store.opened != 0 {
			t.Fatalf("seed %d: after Close (%v) %d blobs are open", seed, err, store.opened)
		}
	}
}

func seek(t *testing.T, l *Layer, offset int64, whence int, want int64) {
	t.Helper()
	if got, err := l.Seek(offset, whence); err != nil || got != want {
		t.Fatalf("Seek(%d, %d) = %d, %v, want %d", offset, whence, got, err, want)
	}
}

func checkRead(t *testing.T, r *rand.Rand, l *Layer, want []byte, from, length int) {
	t.Helper()
	seek(t, l, int64(from), io.SeekStart, int64(from))
	got := make([]byte, 0, length)
	for len(got) < length {
		piece := make([]byte, 1+r.IntN(900))
		n, err := l.Read(piece[:min(len(piece), length-len(got))])
		got = append(got, piece[:n]...)
		if err != nil {
			t.Fatalf("Read at %d: %v", from+len(got), err)
		}
	}
	if !bytes.Equal(got, want[from:from+length]) {
		t.Fatalf("Read of %d bytes at %d is not the archive's", length, from)
	}
	seek(t, l, 0, io.SeekCurrent, int64(from+length))
}

func TestLayerDoesNotDependOnOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	store := newBlobs()
	files := randomFiles(r, store)
	want, err := NewLayer(files, store.open)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		got, err := NewLayer(files, store.open)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Fatalf("NewLayer of the same files in another order: %v\n%s", err, diff)
		}
	}
}

func TestLayerIsReadableAsTar(t *testing.T) {
	store := newBlobs()
	script := store.put("bin/run.sh", []byte("#!/bin/sh\n"))
	script.Executable = true
	layer, err := NewLayer([]registry.File{store.put("a/b/ü.txt", []byte("x")), script, store.put("empty", nil)}, store.open)
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenLayer(layer, store.open)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(l); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("header of %s = %+v, want uid, gid and time of change 0", h.Name, h)
		}
		got = append(got, fmt.Sprintf("%c %o %s %q", h.Typeflag, h.Mode, h.Name, content))
	}
	want := []string{
		`5 755 models/ ""`, `5 755 models/a/ ""`, `5 755 models/a/b/ ""`, `0 644 models/a/b/ü.txt "x"`,
		`5 755 models/bin/ ""`, `0 755 models/bin/run.sh "#!/bin/sh\n"`, `0 644 models/empty ""`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries of the layer (-want +got):\n%s", diff)
	}
}

// sparse is a blob of zeros that takes no space.
type sparse struct{ pos, size int64 }

func (s *sparse) Read(p []byte) (int, error) {
	if s.pos >= s.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), s.size-s.pos)
	clear(p[:n])
	s.pos += n
	return int(n), nil
}

func (s *sparse) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.ErrUnsupported
	}
	s.pos = offset
	return offset, nil
}

func (s *sparse) Close() error { return nil }

func TestLayerOfMoreThanUSTARHolds(t *testing.T) {
	const size = 9 << 30
	huge := registry.File{Path: "huge.bin", Digest: digest.FromString("huge"), SizeBytes: size}
	after := registry.File{Path: "zero.bin", Digest: digest.FromString("zero"), SizeBytes: 8 << 30}
	files := []registry.File{huge, after}
	_, total, err := layout(files)
	if err != nil {
		t.Fatal(err)
	}
	// The folder, and for each file a PAX header, its record, the USTAR header and the content.
	if want := int64(512 + (1536 + size) + (1536 + 8<<30) + 1024); total != want {
		t.Fatalf("layer of 9 and 8 GiB has %d bytes, want %d", total, want)
	}
	l, err := OpenLayer(registry.ImageLayer{Digest: "sha256:x", SizeBytes: total, Files: files}, func(d digest.Digest) (io.ReadSeekCloser, error) {
		if d == huge.Digest {
			return &sparse{size: size}, nil
		}
		return &sparse{size: 8 << 30}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(l) // which seeks over content
	if h, err := r.Next(); err != nil || h.Name != "models/" {
		t.Fatalf("first entry: %+v, %v", h, err)
	}
	for _, f := range files {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("header of %s: %v", f.Path, err)
		}
		if h.Name != "models/"+f.Path || h.Size != f.SizeBytes || h.Format != tar.FormatPAX || h.PAXRecords["size"] != fmt.Sprint(f.SizeBytes) {
			t.Errorf("header of %s = %+v, want a PAX header with size %d", f.Path, h, f.SizeBytes)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last file: %v, want the end of the archive", err)
	}
	// A range across the end of the content of the first file.
	var got bytes.Buffer
	if err := l.WriteRange(&got, 512+1536+size-100, 612); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes()[:100], make([]byte, 100)) || !bytes.Contains(got.Bytes(), []byte("zero.bin")) {
		t.Errorf("range across the end of a file of 9 GiB = %q", got.Bytes())
	}
}

func TestLayerWithWrongBlobs(t *testing.T) {
	store := newBlobs()
	f := store.put("f", []byte("twelve bytes"))
	layer, err := NewLayer([]registry.File{f}, store.open)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"short", "more than twelve bytes"} {
		store.content[f.Digest] = []byte(content)
		if _, err := NewLayer([]registry.File{f}, store.open); err == nil || !strings.Contains(err.Error(), "is not 12 bytes long") {
			t.Errorf("NewLayer with a blob %q for a file of 12 bytes: %v, want an error about its length", content, err)
		}
	}
	store.content[f.Digest] = []byte("short")
	l, err := OpenLayer(layer, store.open)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(l); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reading a layer whose blob is cut: %v, want an unexpected end", err)
	}
	if err := l.WriteRange(io.Discard, 0, layer.SizeBytes); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("WriteRange of a layer whose blob is cut: %v, want an unexpected end", err)
	}
	delete(store.content, f.Digest)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	seek(t, l, 0, io.SeekStart, 0)
	if _, err := io.ReadAll(l); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("reading a layer whose blob is gone: %v, want what opening it said", err)
	}
	if store.opened != 0 {
		t.Errorf("%d blobs are open, want none", store.opened)
	}
}

func TestBadLayers(t *testing.T) {
	store := newBlobs()
	good := store.put("a", nil)
	tests := []struct {
		name  string
		files []registry.File
	}{
		{"none", nil},
		{"twice", []registry.File{good, good}},
		{"file and folder", []registry.File{good, store.put("a/b", nil)}},
		{"bad path", []registry.File{store.put("../a", nil)}},
		{"negative size", []registry.File{{Path: "a", Digest: good.Digest, SizeBytes: -1}}},
	}
	for _, tt := range tests {
		if layer, err := NewLayer(tt.files, store.open); err == nil {
			t.Errorf("NewLayer(%s) = %v, want an error", tt.name, layer)
		}
	}
	if _, err := OpenLayer(registry.ImageLayer{SizeBytes: 1, Files: []registry.File{good}}, store.open); err == nil {
		t.Error("OpenLayer of a layer whose size does not fit its files: no error")
	}
	l, err := OpenLayer(registry.ImageLayer{SizeBytes: 2048, Files: []registry.File{good}}, store.open)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {0, 2049}, {2048, 1}, {1 << 62, 1 << 62}} {
		if err := l.WriteRange(io.Discard, bad[0], bad[1]); err == nil {
			t.Errorf("WriteRange(%d, %d) of 2048 bytes: no error", bad[0], bad[1])
		}
	}
	if _, err := l.Seek(-1, io.SeekStart); err == nil {
		t.Error("Seek(-1): no error")
	}
	if _, err := l.Seek(0, 9); err == nil {
		t.Error("Seek with whence 9: no error")
	}
	seek(t, l, 5000, io.SeekStart, 5000)
	if n, err := l.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read behind the end = %d, %v, want 0 and the end", n, err)
	}
	if n, err := l.WriteTo(io.Discard); n != 0 || err != nil {
		t.Errorf("WriteTo behind the end = %d, %v, want nothing", n, err)
	}
}

// fileBlob opens a blob as a file.
func fileBlob(t testing.TB, path string, content []byte) (registry.File, Open) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return registry.File{Path: path, Digest: digest.FromBytes(content), SizeBytes: int64(len(content))},
		func(digest.Digest) (io.ReadSeekCloser, error) { return os.Open(name) }
}

// spy is a writer that can take over a reader, as net/http's response does, and tells what it took.
type spy struct {
	bytes.Buffer
	took []io.Reader
}

func (s *spy) ReadFrom(r io.Reader) (int64, error) {
	s.took = append(s.took, r)
	return s.Buffer.ReadFrom(r)
}

// The condition under which net.TCPConn uses sendfile: an *os.File, bare or in one io.LimitedReader.
func TestWriteRangeHandsOverTheFile(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	file, open := fileBlob(t, "big.bin", content)
	layer, err := NewLayer([]registry.File{file}, open)
	if err != nil {
		t.Fatal(err)
	}
	want := archive(t, layer.Files, func(digest.Digest) []byte { return content })
	l, err := OpenLayer(layer, open)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	writes := map[string]func(w io.Writer) (from, to int, err error){
		"WriteTo after Seek": func(w io.Writer) (int, int, error) {
			seek(t, l, 5000, io.SeekStart, 5000)
			_, err := l.WriteTo(w)
			return 5000, len(want), err
		},
		"WriteRange": func(w io.Writer) (int, int, error) {
			return 700, 500_700, l.WriteRange(w, 700, 500_000)
		},
		"io.Copy": func(w io.Writer) (int, int, error) {
			seek(t, l, 2000, io.SeekStart, 2000)
			_, err := io.Copy(w, l)
			return 2000, len(want), err
		},
	}
	for name, write := range writes {
		var w spy
		from, to, err := write(&w)
		if err != nil || !bytes.Equal(w.Bytes(), want[from:to]) {
			t.Errorf("%s wrote %d bytes, %v, want those from %d to %d", name, w.Len(), err, from, to)
		}
		if !slices.ContainsFunc(w.took, func(r io.Reader) bool {
			limited, ok := r.(*io.LimitedReader)
			if !ok {
				return false
			}
			_, ok = limited.R.(*os.File)
			return ok
		}) {
			t.Errorf("%s gave the writer %T, want an *io.LimitedReader around the *os.File", name, w.took)
		}
	}
}

func TestWriteRangeOverHTTP(t *testing.T) {
	content := bytes.Repeat([]byte("abcdefg"), 300_000)
	file, open := fileBlob(t, "big.bin", content)
	layer, err := NewLayer([]registry.File{file}, open)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		l, err := OpenLayer(layer, open)
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		w.Header().Set("Content-Length", fmt.Sprint(layer.SizeBytes))
		if _, err := l.WriteTo(w); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	answer, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, answer.Body); err != nil {
		t.Fatal(err)
	}
	if got := digest.NewDigest(digest.SHA256, hash); got != layer.Digest {
		t.Errorf("the layer over HTTP is %s, want %s", got, layer.Digest)
	}
}

func TestLayerFiles(t *testing.T) {
	file := func(path string, size int64) registry.File { return registry.File{Path: path, SizeBytes: size} }
	const mib = 1 << 20
	tests := []struct {
		name  string
		files []registry.File
		want  [][]string
	}{
		{"none", nil, nil},
		{"small and empty together", []registry.File{file("b", mib-1), file("a", 0)}, [][]string{{"a", "b"}}},
		{"large alone, by path", []registry.File{file("z", mib), file("m", 9*mib)}, [][]string{{"m"}, {"z"}}},
		{"small first", []registry.File{file("a", mib), file("z", 1)}, [][]string{{"z"}, {"a"}}},
	}
	for _, tt := range tests {
		var got [][]string
		for _, layer := range LayerFiles(tt.files) {
			got = append(got, paths(layer))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("LayerFiles(%s) (-want +got):\n%s", tt.name, diff)
		}
	}
}

func paths(files []registry.File) []string {
	var list []string
	for _, f := range files {
		list = append(list, f.Path)
	}
	return list
}

func TestLayerFilesBounded(t *testing.T) {
	for _, small := range []int{0, 1, 50} {
		for _, large := range []int{1, 118, 119, 120, 121, 500} {
			var files []registry.File
			for i := range small {
				files = append(files, registry.File{Path: fmt.Sprintf("s%d", i)})
			}
			for i := range large {
				files = append(files, registry.File{Path: fmt.Sprintf("l%d", i), SizeBytes: largeFile + int64(i*7919%large)})
			}
			want := LayerFiles(files)
			rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
			layers := LayerFiles(files)
			if diff := cmp.Diff(want, layers); diff != "" {
				t.Errorf("LayerFiles of %d small and %d large files depends on their order:\n%s", small, large, diff)
			}
			if len(layers) > maxLayers {
				t.Errorf("LayerFiles of %d small and %d large files = %d layers, want at most %d", small, large, len(layers), maxLayers)
			}
			if fits := min(small, 1)+large <= maxLayers; fits != (len(layers) == min(small, 1)+large) {
				t.Errorf("LayerFiles of %d small and %d large files = %d layers, want a layer for each large file where there is room", small, large, len(layers))
			}
			seen := map[string]bool{}
			var biggestShared, smallestAlone int64 = 0, 1 << 62
			for i, layer := range layers {
				for _, f := range layer {
					if seen[f.Path] {
						t.Errorf("%s is in two layers", f.Path)
					}
					seen[f.Path] = true
					switch {
					case f.SizeBytes < largeFile && i != 0:
						t.Errorf("small file %s is in layer %d, want the first", f.Path, i)
					case f.SizeBytes >= largeFile && len(layer) > 1:
						biggestShared = max(biggestShared, f.SizeBytes)
					case f.SizeBytes >= largeFile:
						smallestAlone = min(smallestAlone, f.SizeBytes)
					}
				}
			}
			if len(seen) != small+large {
				t.Errorf("%d of %d files are in layers", len(seen), small+large)
			}
			if biggestShared > smallestAlone {
				t.Errorf("a file of %d bytes shares a layer and one of %d has its own", biggestShared, smallestAlone)
			}
		}
	}
}

func BenchmarkNewLayer(b *testing.B) {
	file, open := fileBlob(b, "weights.safetensors", make([]byte, 256<<20))
	b.SetBytes(file.SizeBytes)
	for b.Loop() {
		if _, err := NewLayer([]registry.File{file}, open); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenLayerOfSmallFiles(b *testing.B) {
	store := newBlobs()
	var files []registry.File
	for i := range 5000 {
		files = append(files, store.put(fmt.Sprintf("dir%d/file%d", i%50, i), []byte("x")))
	}
	layer, err := NewLayer(files, store.open)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := OpenLayer(layer, store.open); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteRange sends the middle of a layer over loopback: handed over, as WriteRange does
// it, and copied through Read, as http.ServeContent would.
func BenchmarkWriteRange(b *testing.B) {
	file, open := fileBlob(b, "weights.safetensors", make([]byte, 256<<20))
	layer, err := NewLayer([]registry.File{file}, open)
	if err != nil {
		b.Fatal(err)
	}
	const offset = 1000
	length := layer.SizeBytes - 2*offset
	send := map[string]func(w io.Writer, l *Layer) error{
		"handed over": func(w io.Writer, l *Layer) error { return l.WriteRange(w, offset, length) },
		"copied": func(w io.Writer, l *Layer) error {
			if _, err := l.Seek(offset, io.SeekStart); err != nil {
				return err
			}
			_, err := io.CopyN(w, l, length)
			return err
		},
	}
	for _, name := range []string{"handed over", "copied"} {
		b.Run(name, func(b *testing.B) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				l, err := OpenLayer(layer, open)
				if err != nil {
					b.Error(err)
					return
				}
				defer l.Close()
				w.Header().Set("Content-Length", fmt.Sprint(length))
				if err := send[name](w, l); err != nil {
					b.Error(err)
				}
			}))
			defer server.Close()
			b.SetBytes(length)
			for b.Loop() {
				answer, err := http.Get(server.URL)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, answer.Body); err != nil || n != length {
					b.Fatalf("%d of %d bytes came, %v", n, length, err)
				}
				answer.Body.Close()
			}
		})
	}
}
