package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// floorServer is a floor server with a client of it, and its directory.
func floorServer(t testing.TB) (*client, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := openFloor(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(f)
	c := connect(&server{kind: kind{name: floorName}, address: h.Listener.Addr().String()}, lfsConnections)
	t.Cleanup(func() {
		c.close()
		h.Close()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, dir
}

// names are the files in a folder of a floor server's directory.
func names(t *testing.T, dir, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, folder))
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestFloorLFS(t *testing.T) {
	c, dir := floorServer(t)
	ctx := t.Context()
	all := append(assets(1, 120, 3000), assets(500, 1, 3<<20+17)...)
	all = append(all, assets(600, 1, 0)...)
	var want int64
	for _, a := range all {
		want += a.size
	}
	if err := c.held(ctx, all); err == nil {
		t.Error("an empty floor offers objects")
	}
	if sent, err := c.transfer(ctx, "upload", all); err != nil || sent != want {
		t.Fatalf("first push sent %d bytes of objects, %v, want %d", sent, err, want)
	}
	if sent, err := c.transfer(ctx, "upload", all); err != nil || sent != 0 {
		t.Errorf("the same push again sent %d bytes of objects, %v, want 0", sent, err)
	}
	if _, err := c.transfer(ctx, "download", all); err != nil {
		t.Errorf("pull: %v", err)
	}
	if got := names(t, dir, "blobs"); len(got) != len(all) {
		t.Errorf("the store has %d blobs, want %d", len(got), len(all))
	}
	if got := names(t, dir, "partial"); len(got) != 0 {
		t.Errorf("the pushes left %v behind", got)
	}
}

// TestTransferSeesWrongBytes is the check of the check: a server that changes what it was given is found out.
func TestTransferSeesWrongBytes(t *testing.T) {
	c, dir := floorServer(t)
	a := assets(1, 1, 5000)
	if _, err := c.transfer(t.Context(), "upload", a); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "blobs", a[0].oid)
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(right)
	flipped[4999] ^= 1
	for name, wrong := range map[string][]byte{"a flipped bit": flipped, "too short": right[:4999], "too long": append(bytes.Clone(right), 0), "empty": {}} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, wrong, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.transfer(t.Context(), "download", a); err == nil {
			t.Errorf("%s: the pull found nothing wrong", name)
		}
	}
}

func TestFloorRefusesOtherContent(t *testing.T) {
	c, dir := floorServer(t)
	a := assets(1, 1, 2<<20)[0]
	other := assets(2, 1, 2<<20)[0]
	lfs := c.server.url() + "/acme/bench.git/info/lfs/objects/" + a.oid
	tests := []struct {
		name string
		do   func() (*http.Response, error)
	}{
		{"another digest", func() (*http.Response, error) {
			return c.do(t.Context(), http.MethodPut, lfs, other.reader(), other.size, nil, http.StatusUnprocessableEntity)
		}},
		{"too short", func() (*http.Response, error) {
			return c.do(t.Context(), http.MethodPut, lfs, io.LimitReader(a.reader(), a.size-1), a.size-1, nil, http.StatusUnprocessableEntity)
		}},
		{"a layer of another digest", func() (*http.Response, error) {
			err := c.pushBlob(t.Context(), artifact, a.oid, other.reader(), other.size)
			var status *statusError
			if !errors.As(err, &status) || status.status != http.StatusUnprocessableEntity {
				return nil, fmt.Errorf("pushBlob = %w, want status 422", err)
			}
			return &http.Response{Body: http.NoBody}, nil
		}},
		{"a manifest of another digest", func() (*http.Response, error) {
			at := c.server.url() + "/v2/" + artifact + "/manifests/sha256:" + a.oid
			return c.do(t.Context(), http.MethodPut, at, strings.NewReader("{}"), 2, nil, http.StatusUnprocessableEntity)
		}},
	}
	for _, tt := range tests {
		answer, err := tt.do()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		answer.Body.Close()
		if got := append(names(t, dir, "blobs"), names(t, dir, "partial")...); len(got) != 0 {
			t.Errorf("%s: the refused upload left %v", tt.name, got)
		}
	}
}

// TestFloorCutUpload breaks the connection off in the middle, once where a buffer is full and once where it is not.
func TestFloorCutUpload(t *testing.T) {
	c, dir := floorServer(t)
	a := assets(1, 1, 3<<20)[0]
	for _, sent := range []int64{0, 1, 1 << 20, 2<<20 + 5} {
		conn, err := net.Dial("tcp", c.server.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "PUT /acme/bench.git/info/lfs/objects/%s HTTP/1.1\r\nHost: floor\r\nContent-Length: %d\r\n\r\n", a.oid, a.size)
		if _, err := io.Copy(conn, io.LimitReader(a.reader(), sent)); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		// The answer comes when the server has seen the end of it.
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if strings.HasPrefix(string(answer), "HTTP/1.1 200") {
			t.Errorf("an upload cut after %d bytes was answered %q", sent, answer)
		}
		if got := append(names(t, dir, "blobs"), names(t, dir, "partial")...); len(got) != 0 {
			t.Errorf("an upload cut after %d bytes left %v", sent, got)
		}
	}
}

// TestFloorCrash ends the process in the middle of an upload: no final name may be there, and the next start clears up.
func TestFloorCrash(t *testing.T) {
	dir := t.TempDir()
	k := testKind(t, floorName)
	a := assets(1, 1, 8<<20)[0]
	s, err := k.start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c := connect(s, 1)
	body, feed := io.Pipe()
	answered := make(chan error, 1)
	go func() {
		_, err := c.do(context.Background(), http.MethodPut, s.url()+"/m.git/info/lfs/objects/"+a.oid, body, a.size, nil, http.StatusOK)
		answered <- err
	}()
	if _, err := io.Copy(feed, io.LimitReader(a.reader(), a.size-1)); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(s.dir, "data")
	for deadline := time.Now().Add(10 * time.Second); len(names(t, data, "partial")) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the upload does not begin")
		}
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	feed.Close()
	if err := <-answered; err == nil {
		t.Error("the upload was acknowledged")
	}
	if got := names(t, data, "blobs"); len(got) != 0 {
		t.Errorf("a crash during an upload left the names %v", got)
	}
	if got := names(t, data, "partial"); len(got) != 1 {
		t.Errorf("a crash during an upload left %v of what was being received, want one file", got)
	}
	f, err := openFloor(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, data, "partial"); len(got) != 0 {
		t.Errorf("the next start left %v", got)
	}
	s.stop()
}

func TestFloorRange(t *testing.T) {
	c, _ := floorServer(t)
	a := assets(1, 1, 2<<20)[0]
	if _, err := c.transfer(t.Context(), "upload", []asset{a}); err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(a.reader())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/acme/bench.git/info/lfs/objects/" + a.oid, "/v2/acme/bench/blobs/sha256:" + a.oid} {
		for _, tt := range []struct {
			header   string
			from, to int
		}{{"bytes=0-0", 0, 1}, {"bytes=1048570-1048580", 1048570, 1048581}, {"bytes=-5", 2<<20 - 5, 2 << 20}, {"bytes=2097151-", 2<<20 - 1, 2 << 20}} {
			got, _, err := c.read(t.Context(), http.MethodGet, c.server.url()+path, nil, map[string]string{"Range": tt.header}, http.StatusPartialContent)
			if err != nil || !bytes.Equal(got, whole[tt.from:tt.to]) {
				t.Errorf("GET %s with Range %s gives %d bytes, %v, want those from %d to %d", path, tt.header, len(got), err, tt.from, tt.to)
			}
		}
		if _, _, err := c.read(t.Context(), http.MethodGet, c.server.url()+path, nil, map[string]string{"Range": "bytes=2097152-"}, http.StatusRequestedRangeNotSatisfiable); err != nil {
			t.Error(err)
		}
	}
}

func TestFloorOCI(t *testing.T) {
	c, _ := floorServer(t)
	j := &job{fixture: &fixture{size: sizes["small"], large: assets(1, 1, 2<<20+3)[0]}, client: c}
	if err := publish(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if _, err := pullManifests(t.Context(), j); err != nil {
		t.Error(err)
	}
	if err := c.fetch(t.Context(), c.server.url()+"/v2/"+artifact+"/blobs/sha256:"+j.large.oid, nil, j.large.content); err != nil {
		t.Error(err)
	}
	// In pieces. Source: OCI distribution specification v1.1, "Pushing a blob in chunks".
	text := []byte("in two pieces")
	sum := sha256.Sum256(text)
	answer, err := c.do(t.Context(), http.MethodPost, c.server.url()+"/v2/a/b/blobs/uploads/", nil, 0, nil, http.StatusAccepted)
	if err != nil {
		t.Fatal(err)
	}
	at := c.server.url() + answer.Header.Get("Location")
	if _, _, err := c.read(t.Context(), http.MethodPatch, at, text[:6], nil, http.StatusAccepted); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.read(t.Context(), http.MethodPut, at+"?digest=sha256:"+hex.EncodeToString(sum[:]), text[6:], nil, http.StatusCreated); err != nil {
		t.Fatal(err)
	}
	if got, _, err := c.read(t.Context(), http.MethodGet, c.server.url()+"/v2/a/b/blobs/sha256:"+hex.EncodeToString(sum[:]), nil, nil, http.StatusOK); string(got) != string(text) {
		t.Errorf("a blob in pieces reads %q, %v, want %q", got, err, text)
	}
}

func TestFloorHasNothingElse(t *testing.T) {
	c, dir := floorServer(t)
	sum := strings.Repeat("0", 64)
	for _, r := range [][2]string{
		{http.MethodGet, "/"},
		{http.MethodGet, "/m.git/info/lfs/objects/" + sum},
		{http.MethodGet, "/m.git/info/lfs/objects/..%2f..%2fpartial"},
		{http.MethodGet, "/v2/a/blobs/sha256:" + sum},
		{http.MethodGet, "/v2/a/manifests/none"},
		{http.MethodPut, "/v2/a/blobs/uploads/NONE?digest=sha256:" + sum},
		{http.MethodPut, "/v2/a/blobs/uploads/"},
		{http.MethodGet, "/v2/../../a/manifests/x"},
		{http.MethodPut, "/m.git/info/lfs/objects/" + sum[1:]},
	} {
		w := httptest.NewRecorder()
		f, err := openFloor(dir)
		if err != nil {
			t.Fatal(err)
		}
		f.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), r[0], r[1], strings.NewReader("x")))
		if w.Code != http.StatusNotFound {
			t.Errorf("%s %s answers %d, want 404", r[0], r[1], w.Code)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := c.read(t.Context(), http.MethodPost, c.server.url()+"/m.git/info/lfs/objects/batch", []byte("{"), nil, http.StatusUnprocessableEntity); err != nil {
		t.Error(err)
	}
}

func FuzzFloorBatch(f *testing.F) {
	dir := f.TempDir()
	floor, err := openFloor(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { floor.Close() })
	held := strings.Repeat("a", 64)
	if err := os.WriteFile(floor.path(held), nil, 0o644); err != nil {
		f.Fatal(err)
	}
	for _, operation := range []string{"upload", "download", "delete"} {
		for _, oid := range []string{held, strings.Repeat("b", 64), "../blobs/" + held, ""} {
			body, err := json.Marshal(lfsBatch{Operation: operation, Objects: []lfsObject{{OID: oid, Size: 1}}})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(body))
		}
	}
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		floor.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/m.git/info/lfs/objects/batch", strings.NewReader(body)))
		if w.Code == http.StatusUnprocessableEntity {
			return
		}
		var out lfsBatch
		if err := json.Unmarshal(w.Body.Bytes(), &out); w.Code != http.StatusOK || err != nil {
			t.Fatalf("batch %q answers %d %q", body, w.Code, w.Body)
		}
		for _, o := range out.Objects {
			if _, ok := o.Actions["download"]; ok != (o.OID == held && ok) {
				t.Errorf("batch %q offers %q, which is not there", body, o.OID)
			}
			if _, ok := o.Actions["upload"]; ok && o.OID == held {
				t.Errorf("batch %q asks for what is there", body)
			}
		}
	})
}

// TestSyncedDirGroups lets many ask while a sync runs: the next one serves them all, and none returns before a sync that
// began after it had asked.
func TestSyncedDirGroups(t *testing.T) {
	d, err := openSyncedDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.running.Lock() // as a sync that is under way does
	const callers = 50
	var asked sync.WaitGroup
	returned := make(chan error, callers)
	for range callers {
		asked.Go(func() { returned <- d.Sync() })
	}
	for {
		d.mu.Lock()
		begun := d.next != nil
		d.mu.Unlock()
		if begun {
			break
		}
	}
	select {
	case <-returned:
		t.Error("Sync returned while the sync before it was still running")
	default:
	}
	d.running.Unlock()
	asked.Wait()
	for range callers {
		if err := <-returned; err != nil {
			t.Errorf("Sync = %v", err)
		}
	}
	if err := d.File.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err == nil {
		t.Error("Sync of a closed directory reports nothing")
	}
	d.next = nil
}

func TestContent(t *testing.T) {
	for _, size := range []int64{0, 1, 15, 16, 17, 1<<20 - 1, 1 << 20, 1<<20 + 1, 1<<20 + 16, 3<<20 + 100} {
		c := content{7, size}
		whole, err := io.ReadAll(c.reader())
		if err != nil || int64(len(whole)) != size {
			t.Fatalf("content of %d bytes has %d, %v", size, len(whole), err)
		}
		if sum := sha256.Sum256(whole); hex.EncodeToString(sum[:]) != c.sum() {
			t.Errorf("sum of %d bytes = %s, want %x", size, c.sum(), sum)
		}
		for _, piece := range []int{1 << 20, 4096, 7} {
			if piece == 7 && size > 1<<20 {
				continue
			}
			if err := c.same(io.MultiReader(bytes.NewReader(whole)), make([]byte, piece)); err != nil {
				t.Errorf("content of %d bytes is not the same as itself, read by %d bytes: %v", size, piece, err)
			}
		}
		if err := (content{8, size}).same(bytes.NewReader(whole), make([]byte, 4096)); err == nil && size > 7 {
			t.Errorf("content of %d bytes is the same as that of another seed", size)
		}
	}
	broken := errors.New("broken")
	if err := (content{1, 10}).same(io.MultiReader(strings.NewReader(""), failing{broken}), make([]byte, 10)); !errors.Is(err, broken) {
		t.Errorf("same of a reader that fails = %v, want its error", err)
	}
	if diff := cmp.Diff(assets(5, 1, 100)[0].oid, assets(4, 2, 100)[1].oid); diff != "" {
		t.Errorf("the same seed gives another content: %s", diff)
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func BenchmarkFloorPut(b *testing.B) {
	c, dir := floorServer(b)
	a := assets(1, 1, 64<<20)
	b.SetBytes(a[0].size)
	for b.Loop() {
		if _, err := c.transfer(b.Context(), "upload", a); err != nil {
			b.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "blobs", a[0].oid)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFloorGet(b *testing.B) {
	c, _ := floorServer(b)
	a := assets(1, 1, 64<<20)
	if _, err := c.transfer(b.Context(), "upload", a); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(a[0].size)
	for b.Loop() {
		if _, err := c.transfer(b.Context(), "download", a); err != nil {
			b.Fatal(err)
		}
	}
}
