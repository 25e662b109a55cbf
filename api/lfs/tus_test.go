package lfs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// tusHref is the address of a resumable upload, as the batch answer gives it to somebody.
func tusHref(t testing.TB, s *apitest.Server, model, content string, header []string) string {
	t.Helper()
	body := fmt.Sprintf(`{"operation":"upload","transfers":["lfs-standalone-file","tus","basic"],"objects":[{"oid":%q,"size":%d}]}`, oidOf(content), len(content))
	a := s.Do("POST", "/"+model+".git/info/lfs/objects/batch", body, header...)
	var got batchAnswer
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil || len(got.Objects) != 1 || got.Transfer != "tus" || got.Objects[0].Actions["upload"].Href == "" {
		t.Fatalf("batch upload with tus = %d %s, want its action", a.Status, a.Body)
	}
	return got.Objects[0].Actions["upload"].Href
}

func admin(s *apitest.Server) []string {
	name, value := s.Bearer()
	return []string{name, value, "Content-Type", mediaType, "Accept", mediaType}
}

// offsetOf asks how far an upload is.
func offsetOf(t testing.TB, s *apitest.Server, href string) int64 {
	t.Helper()
	a := s.Do("HEAD", href, "", "Tus-Resumable", "1.0.0")
	n, err := strconv.ParseInt(a.Header.Get("Upload-Offset"), 10, 64)
	if err != nil || a.Status != 200 || a.Header.Get("Tus-Resumable") != "1.0.0" || a.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("HEAD = %d %v, want 200 with Upload-Offset", a.Status, a.Header)
	}
	return n
}

// patch sends a part of an upload. More headers replace the usual ones.
func patch(s *apitest.Server, href string, offset int64, part string, header ...string) apitest.Answer {
	return s.Do("PATCH", href, part, append([]string{
		"Tus-Resumable", "1.0.0", "Upload-Offset", strconv.FormatInt(offset, 10), "Content-Type", "application/offset+octet-stream",
	}, header...)...)
}

// unfinished lists the uploads that the server keeps.
func unfinished(t testing.TB, s *apitest.Server) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.Dir, "uploads", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// fetch is the object that a model has under the oid of content.
func fetch(s *apitest.Server, model, content string) apitest.Answer {
	return s.As("GET", "/"+model+".git/info/lfs/objects/"+oidOf(content), "")
}

func TestResumableUpload(t *testing.T) {
	s, _ := start(t)
	content := strings.Repeat("a model ", 100_000)
	href := tusHref(t, s, "acme/fraud", content, admin(s))
	size := int64(len(content))
	for at := int64(0); at < size; {
		if got := offsetOf(t, s, href); got != at {
			t.Fatalf("HEAD = %d, want %d", got, at)
		}
		end := min(at+123_456, size)
		a := patch(s, href, at, content[at:end])
		if a.Status != 204 || a.Header.Get("Upload-Offset") != strconv.FormatInt(end, 10) {
			t.Fatalf("PATCH at %d = %d %s, Upload-Offset %q, want 204, %d", at, a.Status, a.Body, a.Header.Get("Upload-Offset"), end)
		}
		if end < size && fetch(s, "acme/fraud", content).Status != 404 {
			t.Fatalf("after %d of %d bytes the object can be fetched", end, size)
		}
		at = end
	}
	if got := offsetOf(t, s, href); got != size {
		t.Errorf("HEAD of what is complete = %d, want %d", got, size)
	}
	if a := patch(s, href, size, ""); a.Status != 204 {
		t.Errorf("PATCH of nothing behind the end = %d %s, want 204", a.Status, a.Body)
	}
	if a := fetch(s, "acme/fraud", content); a.Status != 200 || a.Body != content {
		t.Errorf("GET = %d, %d bytes, want the %d that were sent", a.Status, len(a.Body), len(content))
	}
	if left := unfinished(t, s); len(left) != 0 {
		t.Errorf("a complete upload left %v", left)
	}
}

func TestRefusedParts(t *testing.T) {
	s, _ := start(t)
	const content, begin = "exactly this", "exactly"
	href := tusHref(t, s, "acme/fraud", content, admin(s))
	if a := patch(s, href, 0, begin); a.Status != 204 {
		t.Fatalf("PATCH = %d %s", a.Status, a.Body)
	}
	at := int64(len(begin))
	unsigned, _, _ := strings.Cut(href, "?")
	name, value := s.Bearer()
	basicHref := batch(t, s, "upload", object{oidOf(content), int64(len(content))}).Objects[0].Actions["upload"].Href
	_, basicQuery, _ := strings.Cut(basicHref, "?")
	tests := []struct {
		name, href string
		offset     int64
		part       string
		header     []string
		status     int
	}{
		{"at the begin", href, 0, content, nil, 409},
		{"before", href, at - 1, "y this", nil, 409},
		{"behind", href, at + 1, "this", nil, 409},
		{"longer than the object", href, at, " this!", nil, 413},
		{"an offset that is none", href, at, " this", []string{"Upload-Offset", "x"}, 400},
		{"an offset in another spelling", href, at, " this", []string{"Upload-Offset", "+7"}, 400},
		{"a negative offset", href, -1, " this", nil, 400},
		{"no offset", href, at, " this", []string{"Upload-Offset", ""}, 400},
		{"another type", href, at, " this", []string{"Content-Type", "application/octet-stream"}, 415},
		{"no type", href, at, " this", []string{"Content-Type", ""}, 415},
		{"another version of tus", href, at, " this", []string{"Tus-Resumable", "0.2.2"}, 412},
		{"no version of tus", href, at, " this", []string{"Tus-Resumable", ""}, 412},
		{"without a signature", unsigned, at, " this", nil, 401},
		{"without a signature, with a token", unsigned, at, " this", []string{name, value}, 400},
		{"with the signature of another transfer", unsigned + "?" + basicQuery, at, " this", nil, 403},
		{"to another object", strings.Replace(href, oidOf(content), oidOf("x"), 1), at, " this", nil, 403},
		{"to another model", strings.Replace(href, "acme/fraud", "acme/other", 1), at, " this", nil, 403},
	}
	for _, test := range tests {
		a := patch(s, test.href, test.offset, test.part, test.header...)
		if a.Status != test.status || !strings.Contains(a.Body, `"message"`) {
			t.Errorf("%s: PATCH = %d %s, want %d with a message", test.name, a.Status, a.Body, test.status)
		}
		if got := offsetOf(t, s, href); got != at {
			t.Fatalf("%s: the upload is at %d now, want %d as before", test.name, got, at)
		}
	}
	// In chunks nobody says how much will come.
	r, err := http.NewRequestWithContext(t.Context(), "PATCH", href, struct{ io.Reader }{strings.NewReader(" this, and more")})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Tus-Resumable": "1.0.0", "Upload-Offset": "7", "Content-Type": "application/offset+octet-stream"} {
		r.Header.Set(name, value)
	}
	if a := s.Send(r); a.Status != 413 {
		t.Errorf("PATCH of too much in chunks = %d %s, want 413", a.Status, a.Body)
	}
	for _, wrong := range []string{"exactly this, and more", "exactly this,"} {
		if _, err := s.Data.Blobs.Stat(t.Context(), digest.FromString(wrong)); err == nil {
			t.Errorf("%q was stored", wrong)
		}
	}
}

// What is not the object ends the upload, and the object can be sent then.
func TestPartsThatAreNotTheObject(t *testing.T) {
	s, _ := start(t)
	const content = "exactly this"
	href := tusHref(t, s, "acme/fraud", content, admin(s))
	if a := patch(s, href, 0, "exactly thus"); a.Status != 422 || !strings.Contains(a.Body, "what was sent is not the object") {
		t.Errorf("PATCH of other content = %d %s, want 422", a.Status, a.Body)
	}
	if left := unfinished(t, s); len(left) != 0 {
		t.Errorf("other content left %v", left)
	}
	if got := offsetOf(t, s, href); got != 0 {
		t.Errorf("HEAD after other content = %d, want 0", got)
	}
	if a := patch(s, href, 0, content); a.Status != 204 {
		t.Errorf("PATCH of the object afterwards = %d %s, want 204", a.Status, a.Body)
	}
	if a := fetch(s, "acme/fraud", content); a.Body != content {
		t.Errorf("GET = %d %s, want the object", a.Status, a.Body)
	}
}

// An object of nothing is complete before any part comes: the client sends none.
func TestResumableUploadOfNothing(t *testing.T) {
	s, _ := start(t)
	if got := offsetOf(t, s, tusHref(t, s, "acme/fraud", "", admin(s))); got != 0 {
		t.Errorf("HEAD = %d, want 0", got)
	}
	if a := fetch(s, "acme/fraud", ""); a.Status != 200 || a.Body != "" {
		t.Errorf("GET = %d %q, want 200 with nothing", a.Status, a.Body)
	}
	grant := lfs.Grant{Method: "PATCH", Model: "acme/fraud", OID: oidOf("something"), TokenID: tokenOf(s)}
	href := s.URL + base + "/" + grant.OID + "/tus?" + s.Signer.Sign(grant, time.Now()).Encode()
	if a := s.Do("HEAD", href, "", "Tus-Resumable", "1.0.0"); a.Status != 422 {
		t.Errorf("HEAD of something with the size of nothing = %d, want 422", a.Status)
	}
}

// cutOff sends the begin of a part and breaks the connection.
func cutOff(t *testing.T, href, part string, announced int) {
	t.Helper()
	u, err := url.Parse(href)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: %s\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\nContent-Length: %d\r\n\r\n%s", u.RequestURI(), u.Host, announced, part)
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		t.Errorf("the answer to a part that was cut off = %.100s (%v), want 400", answer, err)
	}
}

// A connection may break at any byte: what came before is kept, and only the rest is sent.
func TestUploadThatIsCutOff(t *testing.T) {
	s, _ := start(t)
	for _, at := range []int{0, 1, 4096, 512<<10 - 1, 512 << 10, 512<<10 + 1, 1<<20 - 1} {
		content := strings.Repeat("0123456789abcdef", 1<<16-1) + fmt.Sprintf("%016d", at)
		href := tusHref(t, s, "acme/fraud", content, admin(s))
		cutOff(t, href, content[:at], len(content))
		got := offsetOf(t, s, href)
		if got != int64(at) {
			t.Errorf("HEAD after a cut at byte %d = %d", at, got)
		}
		if a := patch(s, href, got, content[got:]); a.Status != 204 {
			t.Errorf("PATCH of the rest behind byte %d = %d %s, want 204", at, a.Status, a.Body)
		}
		if a := fetch(s, "acme/fraud", content); a.Body != content {
			t.Errorf("GET of what was cut at byte %d = %d, not the object", at, a.Status)
		}
	}
}

// The server may die behind the last byte, before it made an object of the upload. The client sees that
// all has come and sends nothing more.
func TestUploadThatWasNotFinished(t *testing.T) {
	s, _ := start(t)
	for _, content := range []string{"all of it", "all of it?"} {
		href := tusHref(t, s, "acme/fraud", content, admin(s))
		if a := patch(s, href, 0, "all"); a.Status != 204 {
			t.Fatalf("PATCH = %d %s", a.Status, a.Body)
		}
		u, err := s.Data.Blobs.OpenUpload(t.Context(), filepath.Base(unfinished(t, s)[0]))
		if err != nil {
			t.Fatal(err)
		}
		rest := strings.Replace(content[3:], "?", "!", 1) // not the object, the second time
		if _, err := u.Append(t.Context(), 3, strings.NewReader(rest)); err != nil {
			t.Fatal(err)
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		want, status := int64(len(content)), 200
		if !strings.HasSuffix(content, rest) {
			want, status = 0, 404
		}
		if got := offsetOf(t, s, href); got != want {
			t.Errorf("HEAD of %q that is complete as %q = %d, want %d", content, "all"+rest, got, want)
		}
		if a := fetch(s, "acme/fraud", content); a.Status != status {
			t.Errorf("GET of %q that is complete as %q = %d, want %d", content, "all"+rest, a.Status, status)
		}
		if left := unfinished(t, s); len(left) != 0 {
			t.Errorf("%q left %v", content, left)
		}
	}
}

// What one person sends is not continued, or spoiled, by another.
func TestUploadsOfTwoPeople(t *testing.T) {
	s, _ := start(t)
	const content = "the same object"
	ada, bob := tusHref(t, s, "acme/fraud", content, person(s, "ada", access.Writer)), tusHref(t, s, "acme/fraud", content, person(s, "bob", access.Writer))
	again := tusHref(t, s, "acme/fraud", content, person(s, "ada", access.Writer)) // with another token of hers
	if a := patch(s, ada, 0, "the same"); a.Status != 204 {
		t.Fatalf("PATCH = %d %s", a.Status, a.Body)
	}
	if got := offsetOf(t, s, bob); got != 0 {
		t.Errorf("HEAD by another person = %d, want 0", got)
	}
	if a := patch(s, bob, 0, "other bytes"); a.Status != 204 {
		t.Errorf("PATCH by another person = %d %s, want 204", a.Status, a.Body)
	}
	if got := offsetOf(t, s, again); got != 8 {
		t.Errorf("HEAD by the same person with another token = %d, want 8", got)
	}
	if a := patch(s, again, 8, " object"); a.Status != 204 {
		t.Errorf("PATCH of the rest = %d %s, want 204", a.Status, a.Body)
	}
	if got := offsetOf(t, s, bob); got != int64(len(content)) {
		t.Errorf("HEAD by another person when the model has the object = %d, want %d", got, len(content))
	}
	if a := fetch(s, "acme/fraud", content); a.Body != content {
		t.Errorf("GET = %d %q, want %q", a.Status, a.Body, content)
	}
}

// However many clients of one person send one object, in parts of any size, it ends as the object.
func TestUploadByManyClientsAtOnce(t *testing.T) {
	s, _ := start(t)
	content := strings.Repeat("0123456789abcdef", 1<<15)
	href := tusHref(t, s, "acme/fraud", content, admin(s))
	var wait sync.WaitGroup
	for i := range 6 {
		wait.Go(func() {
			for range 200 {
				at := offsetOf(t, s, href)
				if at == int64(len(content)) {
					return
				}
				end := min(at+int64(20_000*(i+1)), int64(len(content)))
				if a := patch(s, href, at, content[at:end]); a.Status != 204 && a.Status != 409 {
					t.Errorf("PATCH at %d = %d %s, want 204 or 409", at, a.Status, a.Body)
					return
				}
			}
			t.Error("200 parts were not enough")
		})
	}
	wait.Wait()
	if a := fetch(s, "acme/fraud", content); a.Body != content {
		t.Errorf("GET = %d, %d bytes, want the object", a.Status, len(a.Body))
	}
	if n, _, err := s.Data.Blobs.Usage(t.Context()); err != nil || n != 2 {
		t.Errorf("the store has %d blobs (%v), want the object and the one of the model", n, err)
	}
}

// A client that comes back while the server still reads from its dead connection waits until that ends.

// An upload makes its model only when an object is complete.
func TestUploadThatMakesTheModel(t *testing.T) {
	s, _ := start(t)
	ada, rea := person(s, "ada", access.Writer), person(s, "rea", access.Reader)
	exists := func() bool {
		_, err := s.Data.Index.ModelByName(t.Context(), registry.MustModelName("acme/fresh"))
		return err == nil
	}
	const first, second = "the first object", "the second object"
	one, two := tusHref(t, s, "acme/fresh", first, ada), tusHref(t, s, "acme/fresh", second, ada)
	for _, step := range []struct {
		name   string
		do     func() apitest.Answer
		status int
		want   bool
	}{
		{"batch by a reader", func() apitest.Answer {
			return s.Do("POST", "/acme/fresh.git/info/lfs/objects/batch", `{"operation":"upload","objects":[]}`, rea...)
		}, 403, false},
		{"part of an object", func() apitest.Answer { return patch(s, one, 0, first[:5]) }, 204, false},
		{"object that is not what it should be", func() apitest.Answer { return patch(s, two, 0, strings.ToUpper(second)) }, 422, false},
		{"whole object", func() apitest.Answer { return patch(s, one, 5, first[5:]) }, 204, true},
		{"another object, by the address from before", func() apitest.Answer { return patch(s, two, 0, second) }, 204, true},
	} {
		if a := step.do(); a.Status != step.status {
			t.Errorf("%s = %d %s, want %d", step.name, a.Status, a.Body, step.status)
		}
		if got := exists(); got != step.want {
			t.Errorf("after %s the model is there: %v, want %v", step.name, got, step.want)
		}
	}
	m, err := s.Data.Index.ModelByName(t.Context(), registry.MustModelName("acme/fresh"))
	if err != nil || m.CreatedBy != "ada" {
		t.Errorf("the model = %+v, %v, want one that ada made", m, err)
	}
	for _, content := range []string{first, second} {
		if a := fetch(s, "acme/fresh", content); a.Body != content {
			t.Errorf("GET = %d %s, want %q", a.Status, a.Body, content)
		}
	}
}

// An address is worth what its token is worth when it is used.
func TestAddressesEndWithTheirToken(t *testing.T) {
	s, public := start(t)
	s.Model("acme/hidden", registry.Private)
	s.Commit(registry.TokenCreated{Token: registry.Token{ID: "t1", Owner: "ada", Role: "writer", Hash: "h1"}})
	m, err := s.Data.Index.ModelByName(t.Context(), registry.MustModelName("acme/hidden"))
	if err != nil {
		t.Fatal(err)
	}
	s.Blob(m, []byte(owned))
	signFor := func(m registry.Model, method, content, suffix string) string {
		g := lfs.Grant{Method: method, Model: m.Name.String(), ModelID: m.ID, OID: oidOf(content), Size: int64(len(content)), TokenID: "t1"}
		return s.URL + "/" + g.Model + ".git/info/lfs/objects/" + g.OID + suffix + "?" + s.Signer.Sign(g, time.Now()).Encode()
	}
	sign := func(method, content, suffix string) string { return signFor(m, method, content, suffix) }
	use := func(n int) (statuses [5]int) {
		fresh := fmt.Sprint("object ", n)
		statuses[0] = s.Do("GET", sign("GET", owned, ""), "").Status
		statuses[1] = s.Do("PUT", sign("PUT", fresh, ""), fresh).Status
		statuses[2] = patch(s, sign("PATCH", "more of "+fresh, "/tus"), 0, "more of "+fresh).Status
		statuses[3] = s.Do("POST", sign("POST", fresh, "/verify"), fmt.Sprintf(`{"oid":%q,"size":%d}`, oidOf(fresh), len(fresh))).Status
		statuses[4] = s.Do("GET", signFor(public, "GET", owned, ""), "").Status
		return statuses
	}
	if got, want := use(1), [5]int{200, 200, 204, 200, 200}; got != want {
		t.Errorf("with a token that may write: GET, PUT, PATCH, verify, and GET of a public model = %v, want %v", got, want)
	}
	s.Commit(registry.TokenCreated{Token: registry.Token{ID: "t1", Owner: "ada", Role: "reader", Hash: "h1"}})
	if got, want := use(2), [5]int{200, 403, 403, 403, 200}; got != want {
		t.Errorf("with a token that may only read now: GET, PUT, PATCH, verify, and GET of a public model = %v, want %v", got, want)
	}
	s.Commit(registry.TokenCreated{Token: registry.Token{ID: "t1", Owner: "ada", Role: "owner of later days", Hash: "h1"}})
	if got, want := use(3), [5]int{403, 403, 403, 403, 403}; got != want {
		t.Errorf("with a token of an unknown role: GET, PUT, PATCH, verify, and GET of a public model = %v, want %v", got, want)
	}
	s.Commit(registry.TokenRevoked{TokenID: "t1"})
	if got, want := use(4), [5]int{403, 403, 403, 403, 403}; got != want {
		t.Errorf("with a revoked token: GET, PUT, PATCH, verify, and GET of a public model = %v, want %v", got, want)
	}
	if strings.Contains(s.Log.String(), "signature=") {
		t.Errorf("the log holds signatures:\n%s", s.Log)
	}
}

// smallDisk makes t.TempDir, which nobody called yet, one of a file system with so many bytes.
func smallDisk(t *testing.T, size int64) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "small-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", size)); err != nil {
		t.Skipf("a small file system cannot be made here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", dir)
	return dir
}

// freeBytes is the space that the file system has left.
func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bavail) * fs.Bsize
}

// On a full disk an upload is told so and leaves nothing behind, reading goes on, and when there is space
// again so does all else.
func TestUploadOnFullDisk(t *testing.T) {
	disk := smallDisk(t, 64<<20)
	s, _ := start(t)
	content := strings.Repeat("0123456789abcdef", 4<<16)
	o := object{oidOf(content), int64(len(content))}
	put := href(t, s, "upload", "upload", o)
	parts := tusHref(t, s, "acme/fraud", content, admin(s))
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, freeBytes(t, disk)-1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := freeBytes(t, disk)
	for name, do := range map[string]func() apitest.Answer{
		"PUT":   func() apitest.Answer { return s.Do("PUT", put, content) },
		"PATCH": func() apitest.Answer { return patch(s, parts, 0, content) },
	} {
		a := do()
		if a.Status != 507 || !strings.Contains(a.Body, "the server has no space left for new content; reading still works") {
			t.Errorf("%s on a full disk = %d %s, want 507 and why", name, a.Status, a.Body)
		}
		if after := freeBytes(t, disk); after < before-64<<10 {
			t.Errorf("%s on a full disk left %d bytes behind", name, before-after)
		}
		if a := fetch(s, "acme/fraud", owned); a.Body != owned {
			t.Errorf("GET on a full disk = %d %s, want the object", a.Status, a.Body)
		}
	}
	if got := offsetOf(t, s, parts); got != 0 {
		t.Errorf("HEAD after a part that found no space = %d, want 0", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if a := patch(s, parts, 0, content); a.Status != 204 {
		t.Errorf("PATCH with space again = %d %s, want 204", a.Status, a.Body)
	}
	if a := s.Do("PUT", put, content); a.Status != 200 {
		t.Errorf("PUT with space again = %d %s, want 200", a.Status, a.Body)
	}
	if a := fetch(s, "acme/fraud", content); a.Body != content {
		t.Errorf("GET = %d, want the object", a.Status)
	}
	if left := unfinished(t, s); len(left) != 0 {
		t.Errorf("in the end there are still %v", left)
	}
}

func FuzzParseOffset(f *testing.F) {
	for _, seed := range []string{"0", "7", "9223372036854775807", "9223372036854775808", "-1", "+1", "01", " 1", "1 ", "", "0x1", "1e3", "٣"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := lfs.ParseOffset(text)
		if err == nil && (n < 0 || strconv.FormatInt(n, 10) != text) {
			t.Errorf("ParseOffset(%q) = %d, want an error: it is not how that number is written", text, n)
		}
	})
}

// BenchmarkResumableUpload8MiB is a whole object in one part, as git-lfs sends it: HEAD, PATCH.
func BenchmarkResumableUpload8MiB(b *testing.B) {
	s, _ := start(b)
	content := bytes.Repeat([]byte("0123456789abcdef"), 8<<16)
	b.SetBytes(int64(len(content)))
	for i := 0; b.Loop(); i++ {
		copy(content, fmt.Sprintf("%016d", i))
		href := tusHref(b, s, "acme/fraud", string(content), admin(s))
		if got := offsetOf(b, s, href); got != 0 {
			b.Fatalf("HEAD = %d", got)
		}
		if a := patch(s, href, 0, string(content)); a.Status != 204 {
			b.Fatalf("PATCH = %d %s", a.Status, a.Body)
		}
	}
}

// goneClient is a body whose sender goes away with its last byte.
type goneClient struct {
	io.Reader
	leave context.CancelFunc
}

func (b goneClient) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		b.leave()
	}
	return n, err
}

// What has come as a whole becomes the model's, also when nobody waits for the answer: to send it again
// would be for nothing.
func TestUploadOfAClientThatIsGone(t *testing.T) {
	s, _ := start(t)
	for method, address := range map[string]func(content string) string{
		"PUT": func(content string) string {
			return href(t, s, "upload", "upload", object{oidOf(content), int64(len(content))})
		},
		"PATCH": func(content string) string { return tusHref(t, s, "acme/fraud", content, admin(s)) },
	} {
		content := "sent by " + method
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, method, address(content), goneClient{strings.NewReader(content), cancel})
		r.ContentLength = int64(len(content))
		r.Header.Set("Tus-Resumable", "1.0.0")
		r.Header.Set("Upload-Offset", "0")
		r.Header.Set("Content-Type", "application/offset+octet-stream")
		s.API.ServeHTTP(httptest.NewRecorder(), r)
		if a := fetch(s, "acme/fraud", content); a.Status != 200 || a.Body != content {
			t.Errorf("GET after a %s whose client went away with the last byte = %d %q, want %q", method, a.Status, a.Body, content)
		}
	}
}
