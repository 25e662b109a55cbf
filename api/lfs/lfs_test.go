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
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/registry"
)

const (
	mediaType = "application/vnd.git-lfs+json"
	base      = "/acme/fraud.git/info/lfs/objects"
)

type object struct {
	OID  string `json:"oid"`
	Size int64  `json:"size"`
}

// objectAnswer is what the batch API says of an object.
type objectAnswer struct {
	object
	Authenticated bool
	Actions       map[string]struct {
		Href      string
		ExpiresIn int `json:"expires_in"`
	}
	Error *struct {
		Code    int
		Message string
	}
}

type batchAnswer struct {
	Transfer string
	HashAlgo string `json:"hash_algo"`
	Objects  []objectAnswer
}

func oidOf(content string) string { return digest.FromString(content).Encoded() }

// batch asks for one operation on objects, as the administrator.
func batch(t testing.TB, s *apitest.Server, operation string, objects ...object) batchAnswer {
	t.Helper()
	body, err := json.Marshal(map[string]any{"operation": operation, "transfers": []string{"basic"}, "objects": objects})
	if err != nil {
		t.Fatal(err)
	}
	a := s.As("POST", base+"/batch", string(body), "Content-Type", mediaType, "Accept", mediaType)
	var got batchAnswer
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil || a.Status != 200 || a.Header.Get("Content-Type") != mediaType || len(got.Objects) != len(objects) {
		t.Fatalf("batch %s = %d %s %s", operation, a.Status, a.Header.Get("Content-Type"), a.Body)
	}
	return got
}

// href is the signed address of an action on one object.
func href(t testing.TB, s *apitest.Server, operation, action string, o object) string {
	t.Helper()
	a := batch(t, s, operation, o).Objects[0]
	if a.Actions[action].Href == "" {
		t.Fatalf("batch %s of %v has no action %s: %+v", operation, o, action, a)
	}
	return a.Actions[action].Href
}

// start starts a server with a model that has one object.
func start(tb testing.TB, change ...func(*apitest.Config)) (*apitest.Server, registry.Model) {
	s := apitest.Start(tb, change...)
	m := s.Model("acme/fraud", registry.Public)
	s.Blob(m, []byte(owned))
	return s, m
}

const (
	owned   = "content of a model"
	foreign = "content of another model"
)

func TestBatch(t *testing.T) {
	s, _ := start(t)
	s.Blob(s.Model("acme/other", registry.Public), []byte(foreign))
	has, lacks, alien := object{oidOf(owned), int64(len(owned))}, object{oidOf("new"), 3}, object{oidOf(foreign), int64(len(foreign))}
	bad := []object{{"", 1}, {"abc", 1}, {strings.ToUpper(has.OID), has.Size}, {strings.Repeat("g", 64), 1}, {has.OID + "/..", 1}, {has.OID, -1}}

	down := batch(t, s, "download", has, lacks, alien, has, object{has.OID, 1})
	if down.Transfer != "basic" || down.HashAlgo != "sha256" {
		t.Errorf("transfer %q, hash_algo %q; want basic and sha256", down.Transfer, down.HashAlgo)
	}
	for i, wantCode := range []int{0, 404, 404, 0, 422} {
		o := down.Objects[i]
		if code := codeOf(o); code != wantCode || (code == 0) != (o.Actions["download"].Href != "" && o.Authenticated && o.Actions["download"].ExpiresIn > 0) || len(o.Actions) > 1 {
			t.Errorf("download: object %d = %+v, want error %d", i, o, wantCode)
		}
	}
	if !cmp.Equal(down.Objects[1].Error, down.Objects[2].Error) {
		t.Errorf("an object of another model is told from one that is not there: %+v, %+v", down.Objects[1], down.Objects[2])
	}

	up := batch(t, s, "upload", has, lacks, alien, lacks, object{has.OID, 1})
	for i, test := range []struct {
		code    int
		actions int
	}{{0, 0}, {0, 1}, {0, 1}, {0, 1}, {422, 0}} {
		o := up.Objects[i]
		if codeOf(o) != test.code || len(o.Actions) != test.actions {
			t.Errorf("upload: object %d = %+v, want error %d and %d actions", i, o, test.code, test.actions)
		}
	}
	for _, operation := range []string{"download", "upload"} {
		for i, o := range batch(t, s, operation, bad...).Objects {
			if codeOf(o) != 422 || len(o.Actions) != 0 || o.OID != bad[i].OID {
				t.Errorf("%s of %+v = %+v, want the same object with error 422", operation, bad[i], o)
			}
		}
	}
}

// tokenOf is the id of the administrator's token.
func tokenOf(s *apitest.Server) string {
	_, rest, _ := strings.Cut(s.Token, "_")
	id, _, _ := strings.Cut(rest, "_")
	return id
}

func codeOf(o objectAnswer) int {
	if o.Error == nil {
		return 0
	}
	return o.Error.Code
}

func TestBatchRequests(t *testing.T) {
	s, _ := start(t)
	s.Model("acme/hidden", registry.Private)
	many := `{"operation":"download","objects":[` + strings.Repeat(`{"oid":"a","size":1},`, 10_000) + `{"oid":"a","size":1}]}`
	name, value := s.Bearer()
	admin := []string{name, value}
	tests := []struct {
		name, path, body string
		header           []string
		status           int
	}{
		{"download by a stranger", base, `{"operation":"download","objects":[]}`, nil, 200},
		{"without .git", "/acme/fraud/info/lfs/objects", `{"operation":"download","objects":[]}`, nil, 200},
		{"no objects", base, `{"operation":"download"}`, nil, 200},
		{"fields that are new", base, `{"operation":"download","ref":{"name":"refs/heads/main"},"new":1,"objects":[]}`, nil, 200},
		{"upload by a stranger", base, `{"operation":"upload","objects":[]}`, nil, 401},
		{"upload to a model that is to be", "/acme/fresh.git/info/lfs/objects", `{"operation":"upload","objects":[]}`, admin, 200},
		{"download from no model", "/acme/none.git/info/lfs/objects", `{"operation":"download","objects":[]}`, admin, 404},
		{"the same by a stranger", "/acme/none.git/info/lfs/objects", `{"operation":"download","objects":[]}`, nil, 401},
		{"download from a private model by a stranger", "/acme/hidden.git/info/lfs/objects", `{"operation":"download","objects":[]}`, nil, 401},
		{"upload to a name that cannot be", "/acme/UP.git/info/lfs/objects", `{"operation":"upload","objects":[]}`, admin, 400},
		{"unknown operation", base, `{"operation":"verify","objects":[]}`, admin, 422},
		{"no operation", base, `{}`, admin, 422},
		{"not JSON", base, `{"operation":`, admin, 422},
		{"empty", base, ``, admin, 422},
		{"wrong type", base, `{"operation":"download","objects":[{"oid":1}]}`, admin, 422},
		{"size that is no whole number", base, `{"operation":"download","objects":[{"oid":"a","size":1.5}]}`, admin, 422},
		{"hash algorithm by its other name", base, `{"operation":"download","objects":[],"hash_algo":"sha_256"}`, admin, 200},
		{"another hash algorithm", base, `{"operation":"download","objects":[],"hash_algo":"sha512"}`, admin, 409},
		{"transfers with basic", base, `{"operation":"download","objects":[],"transfers":["tus","basic"]}`, admin, 200},
		{"resumable download", base, `{"operation":"download","objects":[],"transfers":["tus"]}`, admin, 422},
		{"resumable upload", base, `{"operation":"upload","objects":[],"transfers":["tus"]}`, admin, 200},
		{"transfers that the server has not", base, `{"operation":"upload","objects":[],"transfers":["ssh","multipart"]}`, admin, 422},
		{"too many objects", base, many, admin, 413},
		{"too long", base, `{"operation":"download","x":"` + strings.Repeat("x", 8<<20) + `"}`, admin, 413},
		{"wrong token", base, `{"operation":"download","objects":[]}`, []string{"Authorization", "Basic eDp5"}, 401},
	}
	for _, test := range tests {
		a := s.Do("POST", test.path+"/batch", test.body, append([]string{"Content-Type", mediaType, "Accept", mediaType}, test.header...)...)
		if a.Status != test.status {
			t.Errorf("%s: %d %.200s, want %d", test.name, a.Status, a.Body, test.status)
		}
		var m struct{ Message string }
		if got := a.Header.Get("Content-Type"); got != mediaType || (test.status >= 400 && (json.Unmarshal([]byte(a.Body), &m) != nil || m.Message == "")) {
			t.Errorf("%s: %s %.200s, want %s with a message", test.name, got, a.Body, mediaType)
		}
		if got := a.Header.Get("LFS-Authenticate") != ""; got != (test.status == 401) {
			t.Errorf("%s: LFS-Authenticate is there: %v, want %v", test.name, got, test.status == 401)
		}
	}
	if strings.Contains(s.Log.String(), `"level":"ERROR"`) {
		t.Errorf("bad requests are logged as faults of the server:\n%s", s.Log)
	}
}

func TestUploadAndDownload(t *testing.T) {
	s, _ := start(t)
	for _, content := range []string{"new content", "", strings.Repeat("x", 3<<20)} {
		o := object{oidOf(content), int64(len(content))}
		if a := s.Do("PUT", href(t, s, "upload", "upload", o), content); a.Status != 200 {
			t.Fatalf("PUT of %d bytes = %d %s", len(content), a.Status, a.Body)
		}
		verify, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		// Only an object that is not there yet has an address to verify it at.
		u := s.URL + base + "/" + o.OID + "/verify"
		if a := s.As("POST", u, string(verify), "Content-Type", mediaType); a.Status != 200 {
			t.Errorf("verify of %d bytes = %d %s", len(content), a.Status, a.Body)
		}
		if a := s.Do("GET", href(t, s, "download", "download", o), ""); a.Status != 200 || a.Body != content {
			t.Errorf("GET = %d, %d bytes; want the %d bytes that were put", a.Status, len(a.Body), len(content))
		}
	}
}

// TestObjectThatIsLostIsSentAgain: a model may own what the store does not have, after a mirror
// clone was taken over without its objects, or after a loss.
func TestObjectThatIsLostIsSentAgain(t *testing.T) {
	s, m := start(t)
	const content = "known, and not there"
	o := object{oidOf(content), int64(len(content))}
	s.Commit(registry.BlobsLinked{ModelID: m.ID, Blobs: []registry.LinkedBlob{{Digest: digest.FromString(content), SizeBytes: o.Size}}})
	if a := s.Do("PUT", href(t, s, "upload", "upload", o), content); a.Status != 200 {
		t.Fatalf("PUT = %d %s", a.Status, a.Body)
	}
	if a := s.Do("GET", href(t, s, "download", "download", o), ""); a.Status != 200 || a.Body != content {
		t.Errorf("GET = %d %q, want what was put", a.Status, a.Body)
	}
	if a := batch(t, s, "upload", o).Objects[0]; len(a.Actions) != 0 {
		t.Errorf("batch upload of what is there now = %+v, want no action", a)
	}
}

// TestOwnerOfASignedUpload: who asked for the address is who sent the object, in the journal and
// in the access log, although the transfer itself carries no credentials.
func TestOwnerOfASignedUpload(t *testing.T) {
	s, _ := start(t)
	o := object{oidOf("signed"), 6}
	if a := s.Do("PUT", href(t, s, "upload", "upload", o), "signed"); a.Status != 200 {
		t.Fatalf("PUT = %d %s", a.Status, a.Body)
	}
	var line struct{ Method, Actor string }
	for text := range strings.Lines(s.Log.String()) {
		if strings.Contains(text, `"method":"PUT"`) {
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				t.Fatal(err)
			}
		}
	}
	if line.Actor != apitest.Admin {
		t.Errorf("the access log says %q put the object, want %q", line.Actor, apitest.Admin)
	}
	segments, err := filepath.Glob(filepath.Join(s.Dir, "journal", "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no journal: %v", err)
	}
	var journal []byte
	for _, name := range segments {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		journal = append(journal, data...)
	}
	i := bytes.Index(journal, []byte(o.OID))
	if i < 0 {
		t.Fatal("the journal has no record of the object")
	}
	group := journal[bytes.LastIndex(journal[:i], []byte(`{"at":`)):i]
	if !bytes.Contains(group, []byte(`"actor":"`+apitest.Admin+`"`)) {
		t.Errorf("the journal has %s, want the actor %s", group, apitest.Admin)
	}
}

func TestRefusedUploads(t *testing.T) {
	s, _ := start(t)
	const content = "exactly this"
	o := object{oidOf(content), int64(len(content))}
	to := href(t, s, "upload", "upload", o)
	plain := s.URL + base + "/" + o.OID
	name, value := s.Bearer()
	tests := []struct {
		name, target, body string
		header             []string
		chunked            bool
		status             int
	}{
		{"other content of that size", to, "exactly thus", nil, false, 422},
		{"too short", to, "exactly", nil, false, 422},
		{"too short, in chunks", to, "exactly", nil, true, 422},
		{"empty", to, "", nil, false, 422},
		{"too long", to, content + "!", nil, false, 422},
		{"too long, in chunks", to, content + "!", nil, true, 422},
		{"much too long, in chunks", to, strings.Repeat("x", 1<<20), nil, true, 422},
		{"other content with a token", plain, "exactly thus", []string{name, value}, false, 422},
		{"by a stranger", plain, content, nil, false, 401},
		{"with the address of a download", strings.Replace(to, o.OID, oidOf(owned), 1), owned, nil, false, 403},
		{"an oid that is none", s.URL + base + "/" + strings.ToUpper(o.OID), content, []string{name, value}, false, 400},
	}
	for _, test := range tests {
		var body io.Reader = strings.NewReader(test.body)
		if test.chunked {
			body = struct{ io.Reader }{body} // of unknown length
		}
		r, err := http.NewRequestWithContext(t.Context(), "PUT", test.target, body)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(test.header); i += 2 {
			r.Header.Set(test.header[i], test.header[i+1])
		}
		if a := s.Send(r); a.Status != test.status || !strings.Contains(a.Body, `"message"`) {
			t.Errorf("%s: PUT = %d %s, want %d with a message", test.name, a.Status, a.Body, test.status)
		}
	}
	// Nothing of it was stored, nor linked.
	if a := s.As("GET", base+"/"+o.OID, ""); a.Status != 404 {
		t.Errorf("GET after refused uploads = %d, want 404", a.Status)
	}
	for _, wrong := range []string{"exactly thus", "exactly", content, content + "!"} {
		if _, err := s.Data.Blobs.Stat(t.Context(), digest.FromString(wrong)); err == nil {
			t.Errorf("%q was stored", wrong)
		}
	}
	if n, _, err := s.Data.Blobs.Usage(t.Context()); err != nil || n != 1 {
		t.Errorf("the store has %d blobs (%v), want the one of the model", n, err)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, "uploads", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("refused uploads left %v (%v)", left, err)
	}
}

// TestBrokenOffUpload: a client that goes away in the middle leaves nothing.
func TestBrokenOffUpload(t *testing.T) {
	s, _ := start(t)
	content := strings.Repeat("x", 1<<20)
	o := object{oidOf(content), int64(len(content))}
	u, err := url.Parse(href(t, s, "upload", "upload", o))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", u.RequestURI(), u.Host, o.Size, content[:500_000])
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	conn.Close()
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		t.Errorf("the answer to half an object = %.100s (%v), want 400", answer, err)
	}
	if a := s.As("GET", base+"/"+o.OID, ""); a.Status != 404 {
		t.Errorf("GET of half an object = %d, want 404", a.Status)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, "uploads", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("half an object left %v (%v)", left, err)
	}
	if a := s.Do("PUT", u.String(), content); a.Status != 200 {
		t.Errorf("PUT of the whole object afterwards = %d %s, want 200", a.Status, a.Body)
	}
}

func TestConcurrentUploadsOfOneObject(t *testing.T) {
	s, _ := start(t)
	content := strings.Repeat("y", 300_000)
	o := object{oidOf(content), int64(len(content))}
	to := href(t, s, "upload", "upload", o)
	var wait sync.WaitGroup
	status := make([]int, 8)
	for i := range status {
		wait.Go(func() { status[i] = s.Do("PUT", to, content).Status })
	}
	wait.Wait()
	for i, got := range status {
		if got != 200 {
			t.Errorf("upload %d = %d, want 200", i, got)
		}
	}
	if a := s.As("GET", base+"/"+o.OID, ""); a.Body != content {
		t.Errorf("GET = %d, %d bytes; want what was put", a.Status, len(a.Body))
	}
	if n, _, err := s.Data.Blobs.Usage(t.Context()); err != nil || n != 2 {
		t.Errorf("the store has %d blobs (%v), want 2: one copy of each", n, err)
	}
}

func TestSignedAddresses(t *testing.T) {
	s, m := start(t)
	s.Blob(s.Model("acme/other", registry.Public), []byte(foreign))
	private := s.Model("acme/hidden", registry.Private)
	s.Blob(private, []byte(owned))
	o := object{oidOf(owned), int64(len(owned))}
	down := href(t, s, "download", "download", o)
	up := href(t, s, "upload", "upload", object{oidOf(foreign), int64(len(foreign))})
	sign := func(g lfs.Grant, at time.Time) string {
		return s.URL + base + "/" + g.OID + "?" + s.Signer.Sign(g, at).Encode()
	}
	grant := lfs.Grant{Method: "GET", Model: "acme/fraud", ModelID: m.ID, OID: o.OID, Size: o.Size, TokenID: tokenOf(s)}
	hidden := grant
	hidden.Model, hidden.ModelID = "acme/hidden", private.ID
	unborn := grant
	unborn.ModelID = ""
	tests := []struct {
		name, method, target string
		status               int
	}{
		{"download", "GET", down, 200},
		{"head", "HEAD", down, 200},
		{"download of an address for uploads", "GET", up, 403},
		{"upload to an address for downloads", "PUT", down, 403},
		{"verify at an address for downloads", "POST", strings.Replace(down, o.OID, o.OID+"/verify", 1), 403},
		{"another object", "GET", strings.Replace(down, o.OID, oidOf(foreign), 1), 403},
		{"another model", "GET", strings.Replace(down, "fraud", "other", 1), 403},
		{"a model that is not there", "GET", strings.Replace(down, "fraud", "none", 1), 403},
		{"a private model", "GET", strings.Replace(down, "fraud", "hidden", 1), 403},
		{"signed for a private model", "GET", strings.Replace(sign(hidden, time.Now()), "fraud", "hidden", 1), 200},
		{"another signature", "GET", strings.Replace(down, "signature=", "signature=0", 1), 403},
		{"expired", "GET", sign(grant, time.Now().Add(-16*time.Minute)), 403},
		{"about to expire", "GET", sign(grant, time.Now().Add(-14*time.Minute)), 200},
		{"without a signature", "GET", s.URL + base + "/" + o.OID, 200},
		{"with an empty signature", "GET", s.URL + base + "/" + o.OID + "?signature=", 200},
		{"signed when there was no model", "GET", sign(unborn, time.Now()), 403},
		{"signed, of what the model has not", "GET", sign(lfs.Grant{Method: "GET", Model: "acme/fraud", ModelID: m.ID, OID: oidOf(foreign), TokenID: grant.TokenID}, time.Now()), 404},
		{"of what the model has not", "GET", s.URL + base + "/" + oidOf(foreign), 401},
	}
	for _, test := range tests {
		if a := s.Do(test.method, test.target, ""); a.Status != test.status {
			t.Errorf("%s: %s = %d %s, want %d", test.name, test.method, a.Status, a.Body, test.status)
		}
	}
	// What a caller without a token was given ends when the model is public no more.
	stranger := grant
	stranger.TokenID = ""
	if a := s.Do("GET", sign(stranger, time.Now()), ""); a.Status != 200 {
		t.Errorf("GET of a stranger's address of a public model = %d %s, want 200", a.Status, a.Body)
	}
	if a := s.As("PATCH", "/api/v1/models/acme/fraud", `{"visibility":"private"}`); a.Status != 200 {
		t.Fatalf("PATCH = %d %s", a.Status, a.Body)
	}
	if a := s.Do("GET", sign(stranger, time.Now()), ""); a.Status != 403 {
		t.Errorf("GET of a stranger's address of a model that is private now = %d, want 403", a.Status)
	}
	if a := s.Do("GET", down, ""); a.Status != 200 {
		t.Errorf("GET of the administrator's address of a model that is private now = %d %s, want 200", a.Status, a.Body)
	}
	// An address does not outlive the model that it was made for.
	if a := s.As("DELETE", "/api/v1/models/acme/fraud", ""); a.Status != 204 {
		t.Fatalf("DELETE = %d %s", a.Status, a.Body)
	}
	s.Blob(s.Model("acme/fraud", registry.Private), []byte(owned))
	if a := s.Do("GET", down, ""); a.Status != 403 {
		t.Errorf("GET of the address under another model of the same name = %d, want 403", a.Status)
	}
	if log := s.Log.String(); strings.Contains(log, "signature=") || strings.Contains(log, s.Signer.Sign(grant, time.Now()).Get("signature")) {
		t.Errorf("the log holds signatures:\n%s", log)
	}
}

func TestDownloadRanges(t *testing.T) {
	var sent apitest.Sendfile
	s, m := start(t, sent.Watch)
	content := strings.Repeat("0123456789", 100_000)
	s.Blob(m, []byte(content))
	o := object{oidOf(content), int64(len(content))}
	to := href(t, s, "download", "download", o)
	etag := strconv.Quote(o.OID)
	tests := []struct {
		name     string
		header   []string
		status   int
		from, to int
	}{
		{"all", nil, 200, 0, len(content)},
		{"first byte", []string{"Range", "bytes=0-0"}, 206, 0, 1},
		{"middle", []string{"Range", "bytes=5-500004"}, 206, 5, 500_005},
		{"from there on", []string{"Range", "bytes=999990-"}, 206, 999_990, 1_000_000},
		{"last bytes", []string{"Range", "bytes=-7"}, 206, 999_993, 1_000_000},
		{"same object", []string{"Range", "bytes=0-9", "If-Range", etag}, 206, 0, 10},
		{"other object", []string{"Range", "bytes=0-9", "If-Range", `"other"`}, 200, 0, len(content)},
		{"weak tag", []string{"Range", "bytes=0-9", "If-Range", "W/" + etag}, 200, 0, len(content)},
		{"behind the end", []string{"Range", "bytes=1000000-"}, 416, 0, 0},
		{"client has it", []string{"If-None-Match", etag}, 304, 0, 0},
	}
	for _, test := range tests {
		sent.Take()
		a := s.Do("GET", to, "", test.header...)
		if want := content[test.from:test.to]; a.Status != test.status || (a.Status < 300 && a.Body != want) {
			t.Errorf("%s: %d, %d bytes; want %d, %d bytes", test.name, a.Status, len(a.Body), test.status, len(want))
		}
		s.Do("GET", "/healthz", "")                                 // by the same connection: the server is done with the one before
		if got := sent.Take(); got < int64(test.to-test.from-512) { // net/http copies the first 512 bytes itself
			t.Errorf("%s: %d of %d bytes went by sendfile", test.name, got, test.to-test.from)
		}
		if a.Header.Get("ETag") != etag && a.Status != 416 {
			t.Errorf("%s: ETag = %s, want %s", test.name, a.Header.Get("ETag"), etag)
		}
	}
	if a := s.Do("HEAD", to, ""); a.Status != 200 || a.Header.Get("Content-Length") != "1000000" || a.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("HEAD = %d %v", a.Status, a.Header)
	}
}

func TestVerifyCallback(t *testing.T) {
	s, _ := start(t)
	const content = "to be verified"
	o := object{oidOf(content), int64(len(content))}
	// No client is sent there, but those that were once may come.
	to := "/acme/fraud.git/info/lfs/objects/" + o.OID + "/verify"
	body := func(o object) string {
		data, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if a := s.As("POST", to, body(o), "Content-Type", mediaType); a.Status != 404 {
		t.Errorf("verify before the upload = %d %s, want 404", a.Status, a.Body)
	}
	if a := s.Do("PUT", href(t, s, "upload", "upload", o), content); a.Status != 200 {
		t.Fatalf("PUT = %d %s", a.Status, a.Body)
	}
	tests := []struct {
		name, body string
		status     int
	}{
		{"right", body(o), 200},
		{"wrong size", body(object{o.OID, o.Size + 1}), 422},
		{"another object", body(object{oidOf(owned), int64(len(owned))}), 422},
		{"not JSON", "x", 422},
		{"empty", "", 422},
		{"too long", `{"oid":"` + strings.Repeat("a", 5000) + `"}`, 422},
	}
	for _, test := range tests {
		if a := s.As("POST", to, test.body, "Content-Type", mediaType); a.Status != test.status {
			t.Errorf("verify with %s = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
	}
}

// failing is a store without space.
type failing struct{ lfs.Blobs }

func (failing) Put(context.Context, io.Reader, digest.Digest, int64) error {
	return &os.PathError{Op: "write", Path: "/srv/data/uploads/x", Err: os.ErrPermission}
}

func TestStoreThatFails(t *testing.T) {
	s, _ := start(t, func(c *apitest.Config) { c.LFS.Blobs = failing{c.LFS.Blobs} })
	o := object{oidOf("x"), 1}
	a := s.Do("PUT", href(t, s, "upload", "upload", o), "x")
	if a.Status != 500 || strings.Contains(a.Body, "srv") {
		t.Errorf("PUT = %d %s, want 500 and nothing of the disk", a.Status, a.Body)
	}
	if a := s.As("GET", base+"/"+o.OID, ""); a.Status != 404 {
		t.Errorf("GET of what could not be stored = %d, want 404", a.Status)
	}
}

// FuzzBatch: an answer is 200 with one entry for each object, or it says what is wrong with the
// request; it is never the server's fault.
func FuzzBatch(f *testing.F) {
	s, _ := start(f)
	for _, seed := range []string{
		`{"operation":"download","transfers":["basic"],"objects":[{"oid":"` + oidOf(owned) + `","size":18}],"hash_algo":"sha256"}`,
		`{"operation":"upload","objects":[{"oid":"` + oidOf("x") + `","size":1},{"oid":"` + oidOf("x") + `","size":0}]}`,
		`{"operation":"upload","objects":[{"oid":"..","size":9223372036854775807}]}`, `{"operation":"x"}`, `{}`, `[]`, ``, `null`, `{"objects":null,"operation":"download"}`,
		`{"operation":"download","objects":[{"oid":"` + strings.Repeat("0", 64) + `","size":-1}],"hash_algo":"sha_256"}{}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", base+"/batch", bytes.NewReader(body))
		r.Header.Set(s.Bearer())
		r.Header.Set("Content-Type", mediaType)
		w := httptest.NewRecorder()
		s.API.ServeHTTP(w, r)
		switch w.Code {
		case 409, 413, 422:
			return
		case 200:
		default:
			t.Fatalf("batch %q = %d %s", body, w.Code, w.Body)
		}
		var in struct{ Objects []object }
		var out batchAnswer
		if err := json.NewDecoder(bytes.NewReader(body)).Decode(&in); err != nil {
			t.Fatalf("batch %q was taken and is not JSON: %v", body, err)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || len(out.Objects) != len(in.Objects) {
			t.Fatalf("batch %q = %s, want an entry for each object", body, w.Body)
		}
		for _, o := range out.Objects {
			if len(o.Actions) > 0 && (o.Error != nil || len(o.OID) != 64 || o.Size < 0) {
				t.Fatalf("batch %q lets a bad object be sent: %+v", body, o)
			}
			for _, a := range o.Actions {
				if u, err := url.Parse(a.Href); err != nil || !strings.HasPrefix(u.Path, base+"/"+o.OID) {
					t.Fatalf("batch %q has the address %s for %s", body, a.Href, o.OID)
				}
			}
		}
	})
}

func BenchmarkBatch100(b *testing.B) {
	s, m := start(b)
	var objects []object
	for i := range 100 {
		content := fmt.Sprint("object ", i)
		s.Blob(m, []byte(content))
		objects = append(objects, object{oidOf(content), int64(len(content))})
	}
	body, err := json.Marshal(map[string]any{"operation": "download", "objects": objects})
	if err != nil {
		b.Fatal(err)
	}
	name, value := s.Bearer()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", base+"/batch", bytes.NewReader(body))
		r.Header.Set(name, value)
		w := httptest.NewRecorder()
		s.API.ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatalf("batch = %d %s", w.Code, w.Body)
		}
	}
}

func BenchmarkDownload64MiB(b *testing.B) {
	s, m := start(b)
	content := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	d := s.Blob(m, content)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		answer, err := http.Get(s.URL + base + "/" + d.Encoded())
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, answer.Body)
		if answer.Body.Close(); err != nil || n != int64(len(content)) {
			b.Fatalf("%d bytes, %v", n, err)
		}
	}
}
