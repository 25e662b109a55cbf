package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// The floor keeps in its directory:
//
//	blobs/HEX       content by its SHA-256; a name is there only when all of the content is
//	partial/RANDOM  what is being received; cleared at start
//	tags/NAME:TAG   the hex digest of the manifest, with %2F for a slash
type floor struct {
	dir   string
	blobs *syncedDir
	tags  *syncedDir
	types sync.Map // hex digest of a manifest -> its media type

	mu      sync.Mutex
	uploads map[string]*upload // those of OCI that are open
}

// openFloor opens the directory of a floor server, and makes it if it is missing.
func openFloor(dir string) (*floor, error) {
	f := &floor{dir: dir, uploads: map[string]*upload{}}
	if err := os.RemoveAll(filepath.Join(dir, "partial")); err != nil {
		return nil, err
	}
	for _, name := range []string{"blobs", "partial", "tags"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if f.blobs, err = openSyncedDir(filepath.Join(dir, "blobs")); err != nil {
		return nil, err
	}
	if f.tags, err = openSyncedDir(filepath.Join(dir, "tags")); err != nil {
		return nil, errors.Join(err, f.blobs.Close())
	}
	return f, nil
}

// Close closes the directories.
func (f *floor) Close() error { return errors.Join(f.blobs.Close(), f.tags.Close()) }

// syncedDir is a directory whose names are made durable in groups: who asks while a sync runs waits for
// the next one, which all of them share.
type syncedDir struct {
	*os.File
	running sync.Mutex
	mu      sync.Mutex
	next    *syncGroup
}

type syncGroup struct {
	done chan struct{}
	err  error
}

func openSyncedDir(path string) (*syncedDir, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &syncedDir{File: f}, nil
}

// Sync returns when every name that was there when it was called is on the disk.
func (d *syncedDir) Sync() error {
	d.mu.Lock()
	g := d.next
	leads := g == nil
	if leads {
		g = &syncGroup{done: make(chan struct{})}
		d.next = g
	}
	d.mu.Unlock()
	if !leads {
		<-g.done
		return g.err
	}
	d.running.Lock()
	defer d.running.Unlock()
	d.mu.Lock()
	d.next = nil // whoever comes now is in the next group: its name may be too late for this one
	d.mu.Unlock()
	g.err = d.File.Sync()
	close(g.done)
	return g.err
}

const bufferBytes = 1 << 20

var buffers = sync.Pool{New: func() any { return new([bufferBytes]byte) }}

// upload is content that is being received.
type upload struct {
	file *os.File
	sum  hash.Hash
	size int64
}

func (f *floor) create() (*upload, error) {
	file, err := os.OpenFile(filepath.Join(f.dir, "partial", rand.Text()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return nil, err
	}
	return &upload{file: file, sum: sha256.New()}, nil
}

// receive appends what r yields and hashes it on the way.
func (u *upload) receive(r io.Reader) error {
	buf := buffers.Get().(*[bufferBytes]byte)
	defer buffers.Put(buf)
	for {
		n, err := fill(r, buf[:])
		u.sum.Write(buf[:n])
		if _, err := u.file.Write(buf[:n]); err != nil {
			return err
		}
		u.size += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fill reads until buf is full. Other than of io.ReadFull, its error is r's own: io.ErrUnexpectedEOF is a
// body that broke off.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (u *upload) drop() {
	u.file.Close()
	os.Remove(u.file.Name())
}

// errContent reports content that is not what was announced.
var errContent = errors.New("the content has another digest or size than was announced")

// finish gives the content its name, durably. A size below 0 is not known. A crash before the rename
// leaves a file in partial; after it, the content is whole.
func (f *floor) finish(u *upload, sum string, size int64) error {
	if got := hex.EncodeToString(u.sum.Sum(nil)); got != sum || (size >= 0 && u.size != size) {
		u.drop()
		return errContent
	}
	err := u.file.Sync()
	if err == nil {
		err = os.Rename(u.file.Name(), f.path(sum))
	}
	if err != nil {
		u.drop()
		return err
	}
	if err := u.file.Close(); err != nil {
		return err
	}
	return f.blobs.Sync()
}

// put receives content whole.
func (f *floor) put(r io.Reader, sum string, size int64) error {
	u, err := f.create()
	if err != nil {
		return err
	}
	if err := u.receive(r); err != nil {
		u.drop()
		return err
	}
	return f.finish(u, sum, size)
}

func (f *floor) path(sum string) string { return filepath.Join(f.dir, "blobs", sum) }

var hex256 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// hexOf takes the hex digits out of a digest.
func hexOf(digest string) (string, bool) {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	return sum, ok && hex256.MatchString(sum)
}

var (
	lfsBatchPath  = regexp.MustCompile(`^/.+/info/lfs/objects/batch$`)
	lfsObjectPath = regexp.MustCompile(`^/.+/info/lfs/objects/([0-9a-f]{64})$`)
	blobPath      = regexp.MustCompile(`^/v2/.+/blobs/(sha256:[0-9a-f]{64})$`)
	uploadPath    = regexp.MustCompile(`^/v2/(.+)/blobs/uploads/([A-Z2-7]*)$`)
	manifestPath  = regexp.MustCompile(`^/v2/(.+)/manifests/([A-Za-z0-9_.:-]+)$`)
)

// ServeHTTP implements http.Handler.
func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	path := r.URL.Path
	var err error
	if m := lfsObjectPath.FindStringSubmatch(path); m != nil && read {
		f.serve(w, r, m[1])
	} else if m != nil && r.Method == http.MethodPut {
		err = f.put(r.Body, m[1], r.ContentLength)
	} else if lfsBatchPath.MatchString(path) && r.Method == http.MethodPost {
		err = f.batch(w, r)
	} else if m := blobPath.FindStringSubmatch(path); m != nil && read {
		f.serve(w, r, strings.TrimPrefix(m[1], "sha256:"))
	} else if m := uploadPath.FindStringSubmatch(path); m != nil {
		err = f.upload(w, r, m[1], m[2])
	} else if m := manifestPath.FindStringSubmatch(path); m != nil && read {
		f.manifest(w, r, m[1], m[2])
	} else if m != nil && r.Method == http.MethodPut {
		err = f.putManifest(w, r, m[1], m[2])
	} else if path != "/v2/" {
		http.NotFound(w, r)
	}
	switch {
	case errors.Is(err, errContent):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// serve sends content; net/http has the kernel copy it from the file to the socket.
func (f *floor) serve(w http.ResponseWriter, r *http.Request, sum string) {
	file, err := os.Open(f.path(sum))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer file.Close()
	if t, ok := f.types.Load(sum); ok {
		w.Header().Set("Content-Type", t.(string))
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	w.Header().Set("Docker-Content-Digest", "sha256:"+sum)
	http.ServeContent(w, r, "", time.Time{}, file)
}

func (f *floor) has(sum string) bool {
	_, err := os.Lstat(f.path(sum))
	return err == nil
}

// batch answers what is to be sent or fetched. Source: docs/api/batch.md of Git LFS.
func (f *floor) batch(w http.ResponseWriter, r *http.Request) error {
	var in lfsBatch
	if err := json.NewDecoder(io.LimitReader(r.Body, 8<<20)).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return nil
	}
	at := "http://" + r.Host + strings.TrimSuffix(r.URL.Path, "batch")
	out := lfsBatch{Transfer: "basic", Objects: make([]lfsObject, len(in.Objects))}
	for i, o := range in.Objects {
		o.Actions, o.Error = nil, nil
		held := hex256.MatchString(o.OID) && f.has(o.OID)
		switch {
		case in.Operation == "upload" && !held:
			o.Actions = map[string]lfsAction{"upload": {Href: at + o.OID}}
		case in.Operation == "download" && held:
			o.Actions = map[string]lfsAction{"download": {Href: at + o.OID}}
		case in.Operation == "download":
			o.Error = &lfsError{Code: http.StatusNotFound, Message: "not here"}
		}
		out.Objects[i] = o
	}
	w.Header().Set("Content-Type", lfsMediaType)
	return json.NewEncoder(w).Encode(out)
}

// upload takes a blob in one PUT or in PATCHes before it. Source: OCI distribution specification v1.1, "Pushing a blob".
func (f *floor) upload(w http.ResponseWriter, r *http.Request, name, id string) error {
	if r.Method == http.MethodPost && id == "" {
		u, err := f.create()
		if err != nil {
			return err
		}
		id = filepath.Base(u.file.Name())
		f.mu.Lock()
		f.uploads[id] = u
		f.mu.Unlock()
		w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/uploads/%s", name, id))
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	f.mu.Lock()
	u := f.uploads[id]
	delete(f.uploads, id)
	f.mu.Unlock()
	sum, ok := hexOf(r.URL.Query().Get("digest"))
	if u == nil || (r.Method != http.MethodPatch && (r.Method != http.MethodPut || !ok)) {
		if u != nil {
			u.drop()
		}
		http.NotFound(w, r)
		return nil
	}
	if err := u.receive(r.Body); err != nil {
		u.drop()
		return err
	}
	if r.Method == http.MethodPatch {
		f.mu.Lock()
		f.uploads[id] = u
		f.mu.Unlock()
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if err := f.finish(u, sum, -1); err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/sha256:%s", name, sum))
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (f *floor) tagPath(name, tag string) string {
	return filepath.Join(f.dir, "tags", strings.ReplaceAll(name+":"+tag, "/", "%2F"))
}

func (f *floor) manifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	sum, ok := hexOf(ref)
	if !ok {
		held, err := os.ReadFile(f.tagPath(name, ref))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		sum = string(held)
	}
	f.serve(w, r, sum)
}

// maxManifestBytes is the size that a registry takes at least.
// Source: OCI distribution specification v1.1, "Pushing Manifests".
const maxManifestBytes = 4 << 20

func (f *floor) putManifest(w http.ResponseWriter, r *http.Request, name, ref string) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxManifestBytes))
	if err != nil {
		return err
	}
	digest := sha256.Sum256(body)
	sum := hex.EncodeToString(digest[:])
	want, byDigest := hexOf(ref)
	if byDigest && want != sum {
		return errContent
	}
	if err := f.put(strings.NewReader(string(body)), sum, int64(len(body))); err != nil {
		return err
	}
	f.types.Store(sum, r.Header.Get("Content-Type"))
	if !byDigest {
		temporary := filepath.Join(f.dir, "partial", rand.Text())
		if err := writeSynced(temporary, sum); err != nil {
			return err
		}
		if err := os.Rename(temporary, f.tagPath(name, ref)); err != nil {
			return err
		}
		if err := f.tags.Sync(); err != nil {
			return err
		}
	}
	w.Header().Set("Docker-Content-Digest", "sha256:"+sum)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func writeSynced(path, text string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Sync(), file.Close())
}
