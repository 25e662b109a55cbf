package oci_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

const repository = "/v2/acme/fraud"

// bytesOf are n bytes that a seed stands for.
func bytesOf(n int, seed uint64) []byte {
	data := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

// files of a version: one that is a layer of its own in the image, and some that share one.
var files = map[string]string{
	"README.md": "# Finds fraud", "empty.txt": "", "deep/er/config.json": `{"a":1}`, "model.onnx": string(bytesOf(3<<20+17, 1)),
}

func fraud(s *apitest.Server) (registry.Model, registry.VersionRecord) {
	m := s.Model("acme/fraud", registry.Public)
	return m, s.Publish(m, "v1.0.0", files)
}

func TestBase(t *testing.T) {
	reading := apitest.Start(t)
	closed := apitest.Start(t, func(c *apitest.Config) { c.API.AnonymousRead = false })
	everybody := apitest.Start(t, func(c *apitest.Config) { c.API.NoAuth = true })
	tests := []struct {
		name   string
		server *apitest.Server
		token  string
		status int
	}{
		{"a stranger, where strangers read", reading, "", 401}, // so that the client asks for a token
		{"a stranger with the token of strangers", reading, "anonymous", 200},
		{"an administrator", reading, reading.Token, 200},
		{"a wrong token", reading, "hb_wrong", 401},
		{"a stranger, where strangers read nothing", closed, "", 401},
		{"a stranger there with the token of strangers", closed, "anonymous", 401},
		{"an administrator there", closed, closed.Token, 200},
		{"anybody, where everybody may do everything", everybody, "", 200},
	}
	for _, test := range tests {
		for _, path := range []string{"/v2", "/v2/"} {
			var header []string
			if test.token != "" {
				header = []string{"Authorization", "Bearer " + test.token}
			}
			a := test.server.Do("GET", path, "", header...)
			if a.Status != test.status || (a.Status == 200 && strings.TrimSpace(a.Body) != "{}") {
				t.Errorf("%s: GET %s = %d %s, want %d", test.name, path, a.Status, a.Body, test.status)
			}
			if test.status == 200 {
				continue
			}
			want := fmt.Sprintf("Bearer realm=%q,service=%q", test.server.URL+"/v2/token", strings.TrimPrefix(test.server.URL, "http://"))
			if test.token == "hb_wrong" {
				want += `,error="invalid_token"`
			}
			if got := a.Header.Get("WWW-Authenticate"); got != want || codeOf(a) != "UNAUTHORIZED" {
				t.Errorf("%s: GET %s asks %q, %s; want %q", test.name, path, got, a.Body, want)
			}
		}
	}
}

// codeOf is the code of an error of the distribution specification; empty when it is none.
func codeOf(a apitest.Answer) string {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal([]byte(a.Body), &body) != nil || len(body.Errors) != 1 || body.Errors[0].Message == "" {
		return ""
	}
	return body.Errors[0].Code
}

func TestErrors(t *testing.T) {
	s := apitest.Start(t)
	fraud(s)
	foreign := s.Blob(s.Model("acme/other", registry.Public), []byte("content of another model"))
	absent := digest.FromString("absent").String()
	tests := []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/acme/none/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/acme/none/manifests/v1.0.0", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/acme/none/blobs/" + absent, 404, "NAME_UNKNOWN"},
		{"GET", "/v2/acme/fraud/other/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/acme/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/acme/image/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/ACME/fraud/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/acme/.fraud/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", repository + "/manifests/v9.9.9", 404, "MANIFEST_UNKNOWN"},
		{"GET", repository + "/manifests/production", 404, "MANIFEST_UNKNOWN"},
		{"GET", repository + "/manifests/" + absent, 404, "MANIFEST_UNKNOWN"},
		{"GET", repository + "/image/manifests/v9.9.9", 404, "MANIFEST_UNKNOWN"},
		{"GET", repository + "/manifests/sha256:short", 400, "DIGEST_INVALID"},
		{"GET", repository + "/manifests/" + digest.SHA512.FromString("x").String(), 404, "MANIFEST_UNKNOWN"},
		{"GET", repository + "/manifests/" + digest.SHA384.FromString("x").String(), 400, "DIGEST_INVALID"},
		{"GET", repository + "/blobs/" + absent, 404, "BLOB_UNKNOWN"},
		{"GET", repository + "/blobs/" + foreign.String(), 404, "BLOB_UNKNOWN"},
		{"GET", repository + "/blobs/v1.0.0", 400, "DIGEST_INVALID"},
		{"GET", repository + "/referrers/v1.0.0", 400, "DIGEST_INVALID"},
		{"GET", repository + "/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", repository + "/tags/list?n=many", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/_catalog?n=x", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/acme/fraud/", 404, "UNSUPPORTED"},
		{"GET", "/v2/acme", 404, "UNSUPPORTED"},
		{"POST", repository + "/manifests/v1.0.0", 405, "UNSUPPORTED"},
		{"PATCH", repository + "/tags/list", 405, "UNSUPPORTED"},
		{"POST", "/v2/acme/fraud/x", 404, "UNSUPPORTED"},
	}
	for _, test := range tests {
		a := s.As(test.method, test.path, "")
		if a.Status != test.status || codeOf(a) != test.code {
			t.Errorf("%s %s = %d %s, want %d %s", test.method, test.path, a.Status, a.Body, test.status, test.code)
		}
		if head := s.As("HEAD", test.path, ""); test.method == "GET" && head.Status != test.status {
			t.Errorf("HEAD %s = %d, want %d as with GET", test.path, head.Status, test.status)
		}
	}
}

func TestImageThatIsNotThereYet(t *testing.T) {
	s := apitest.Start(t)
	m, v := fraud(s)
	for state, want := range map[registry.ImageState]string{registry.ImageBuilding: "being made", registry.ImageFailed: "a file is too long"} {
		// As a version stands before its image is ready.
		next := v.Version
		next.Tag = registry.MustTag("v3.0.0")
		if state == registry.ImageFailed {
			next.Tag = registry.MustTag("v3.0.1")
		}
		s.Commit(registry.VersionPublished{ModelID: m.ID, Version: next, Manifest: registry.StoredManifest{Descriptor: next.Artifact}})
		if state == registry.ImageFailed {
			s.Commit(registry.ImageBuilt{ModelID: m.ID, Tag: next.Tag, Status: registry.ImageStatus{State: state, Error: "a file is too long"}})
		}
		a := s.Do("GET", repository+"/image/manifests/"+next.Tag.String(), "")
		if a.Status != 404 || codeOf(a) != "MANIFEST_UNKNOWN" || !strings.Contains(a.Body, want) {
			t.Errorf("image that is %s = %d %s, want 404 MANIFEST_UNKNOWN that says %q", state, a.Status, a.Body, want)
		}
		if a := s.Do("GET", repository+"/manifests/"+next.Tag.String(), ""); a.Status != 200 {
			t.Errorf("artifact of a version whose image is %s = %d, want 200", state, a.Status)
		}
	}
}

func TestManifests(t *testing.T) {
	s := apitest.Start(t)
	m, v := fraud(s)
	s.Policy(m, registry.Environment{Name: registry.MustEnvironmentName("staging"), Promote: registry.PromoteManual})
	if a := s.As("POST", "/api/v1/models/acme/fraud/environments/staging/promotions", `{"version":"v1.0.0"}`); a.Status != 201 {
		t.Fatalf("promotion = %d %s", a.Status, a.Body)
	}
	image := v.Image.Digest.String()
	artifact := v.Version.Artifact.Digest.String()
	tests := []struct {
		path, digest, mediaType, cache string
	}{
		{repository + "/manifests/v1.0.0", artifact, v1.MediaTypeImageManifest, "no-cache"},
		{repository + "/manifests/staging", artifact, v1.MediaTypeImageManifest, "no-cache"},
		{repository + "/manifests/" + artifact, artifact, v1.MediaTypeImageManifest, "public, max-age=31536000, immutable"},
		{repository + "/image/manifests/v1.0.0", image, v1.MediaTypeImageIndex, "no-cache"},
		{repository + "/image/manifests/staging", image, v1.MediaTypeImageIndex, "no-cache"},
		{repository + "/image/manifests/" + image, image, v1.MediaTypeImageIndex, "public, max-age=31536000, immutable"},
		{repository + "/image/manifests/" + artifact, artifact, v1.MediaTypeImageManifest, "public, max-age=31536000, immutable"}, // the subject of the image
		{repository + "/manifests/" + image, image, v1.MediaTypeImageIndex, "public, max-age=31536000, immutable"},
	}
	for _, test := range tests {
		for _, accept := range []string{"", test.mediaType, "*/*", v1.MediaTypeImageManifest + ", " + v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.v2+json"} {
			a := s.Do("GET", test.path, "", "Accept", accept)
			if got := digest.FromString(a.Body).String(); a.Status != 200 || got != test.digest {
				t.Errorf("GET %s for %q = %d, bytes of %s, want those of %s", test.path, accept, a.Status, got, test.digest)
			}
			want := map[string]string{
				"Docker-Content-Digest": test.digest, "Etag": strconv.Quote(test.digest), "Content-Type": test.mediaType,
				"Cache-Control": test.cache, "Content-Length": strconv.Itoa(len(a.Body)), "X-Content-Type-Options": "nosniff",
			}
			for name, value := range want {
				if got := a.Header.Get(name); got != value {
					t.Errorf("GET %s for %q: %s = %q, want %q", test.path, accept, name, got, value)
				}
			}
			head := s.Do("HEAD", test.path, "", "Accept", accept)
			for name, value := range want {
				if got := head.Header.Get(name); got != value || head.Status != 200 || head.Body != "" {
					t.Errorf("HEAD %s for %q = %d, %s = %q, want 200 and %q", test.path, accept, head.Status, name, got, value)
				}
			}
		}
		if a := s.Do("GET", test.path, "", "If-None-Match", strconv.Quote(test.digest)); a.Status != 304 || a.Body != "" || a.Header.Get("Docker-Content-Digest") != test.digest {
			t.Errorf("GET %s of what the client has = %d %q, want 304", test.path, a.Status, a.Body)
		}
		if a := s.Do("GET", test.path, "", "If-None-Match", `"sha256:other"`); a.Status != 200 {
			t.Errorf("GET %s of what the client has not = %d, want 200", test.path, a.Status)
		}
	}
	// Not everybody may read it: no shared cache may keep it.
	hidden := s.Model("acme/hidden", registry.Private)
	h := s.Publish(hidden, "v1.0.0", files)
	a := s.As("GET", "/v2/acme/hidden/manifests/"+h.Version.Artifact.Digest.String(), "")
	if got := a.Header.Get("Cache-Control"); got != "private, max-age=31536000, immutable" {
		t.Errorf("Cache-Control of a private model's manifest = %q, want private", got)
	}
}

// TestEverythingThatIsNamedIsThere follows the manifests down to every blob and layer.
func TestEverythingThatIsNamedIsThere(t *testing.T) {
	s := apitest.Start(t)
	fraud(s)
	blobs := 0
	var follow func(repository, ref string)
	follow = func(repository, ref string) {
		a := s.Do("GET", repository+"/manifests/"+ref, "")
		var m struct {
			Config            v1.Descriptor
			Layers, Manifests []v1.Descriptor
		}
		if err := json.Unmarshal([]byte(a.Body), &m); err != nil || a.Status != 200 {
			t.Fatalf("GET %s/manifests/%s = %d %s", repository, ref, a.Status, a.Body)
		}
		for _, d := range m.Manifests {
			follow(repository, d.Digest.String())
		}
		if m.Config.Digest == "" {
			return
		}
		for _, d := range append(m.Layers, m.Config) {
			a := s.Do("GET", repository+"/blobs/"+d.Digest.String(), "")
			if digest.FromString(a.Body) != d.Digest || int64(len(a.Body)) != d.Size {
				t.Errorf("%s/blobs/%s = %d, %d bytes of %s; want %d bytes of that digest", repository, d.Digest, a.Status, len(a.Body), digest.FromString(a.Body), d.Size)
			}
			blobs++
		}
	}
	follow(repository, "v1.0.0")
	follow(repository+"/image", "v1.0.0")
	if want := len(files) + 1 + 2*(1+2); blobs != want {
		t.Errorf("%d blobs are named, want %d: each file and the config, and two layers and a config a platform", blobs, want)
	}
}

// layers of the image, the largest first.
func layers(tb testing.TB, s *apitest.Server) []v1.Descriptor {
	tb.Helper()
	var index v1.Index
	var manifest v1.Manifest
	a := s.Do("GET", repository+"/image/manifests/v1.0.0", "")
	if err := json.Unmarshal([]byte(a.Body), &index); err != nil {
		tb.Fatal(err)
	}
	a = s.Do("GET", repository+"/image/manifests/"+index.Manifests[0].Digest.String(), "")
	if err := json.Unmarshal([]byte(a.Body), &manifest); err != nil {
		tb.Fatal(err)
	}
	slices.SortFunc(manifest.Layers, func(a, b v1.Descriptor) int { return int(b.Size - a.Size) })
	return manifest.Layers
}

// TestRanges asks for parts of a blob and of layers that are composed while they are read: each is
// that part of the whole.
func TestRanges(t *testing.T) {
	s := apitest.Start(t)
	fraud(s)
	contents := []v1.Descriptor{{Digest: digest.FromString(files["model.onnx"])}, {Digest: digest.FromString(files["empty.txt"])}}
	for _, d := range append(contents, layers(t, s)...) {
		path := repository + "/blobs/" + d.Digest.String()
		whole := s.Do("GET", path, "").Body
		if digest.FromString(whole) != d.Digest {
			t.Fatalf("GET %s has the digest %s", path, digest.FromString(whole))
		}
		n := len(whole)
		if n == 0 {
			continue
		}
		spans := [][2]int{{0, 0}, {0, n - 1}, {0, 511}, {512, 1023}, {511, 512}, {n - 1, n - 1}, {n - 1024, n - 1}, {n / 2, n - 1}, {1, n - 2}}
		r := rand.New(rand.NewPCG(7, 7))
		for range 12 {
			from := r.IntN(n)
			spans = append(spans, [2]int{from, from + r.IntN(n-from)})
		}
		for _, span := range spans {
			from, to := max(0, span[0]), min(span[1], n-1)
			a := s.Do("GET", path, "", "Range", fmt.Sprintf("bytes=%d-%d", from, to))
			if a.Status != 206 || a.Body != whole[from:to+1] {
				t.Errorf("bytes %d-%d of %s = %d, %d bytes that are right: %v", from, to, path, a.Status, len(a.Body), a.Body == whole[from:to+1])
			}
			if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", from, to, n); got != want {
				t.Errorf("Content-Range = %q, want %q", got, want)
			}
		}
		etag := strconv.Quote(d.Digest.String())
		for _, test := range []struct {
			name   string
			header []string
			status int
			want   string
		}{
			{"last bytes", []string{"Range", "bytes=-10"}, 206, whole[max(0, n-10):]},
			{"to the end", []string{"Range", "bytes=5-"}, 206, whole[min(5, n):]},
			{"more than there is", []string{"Range", "bytes=5-99999999999"}, 206, whole[min(5, n):]},
			{"behind the end", []string{"Range", fmt.Sprintf("bytes=%d-", n)}, 416, ""},
			{"nonsense", []string{"Range", "bytes=x"}, 416, ""},
			{"another unit", []string{"Range", "lines=1-2"}, 416, ""},
			{"unchanged", []string{"Range", "bytes=0-3", "If-Range", etag}, 206, whole[:4]},
			{"changed", []string{"Range", "bytes=0-3", "If-Range", `"other"`}, 200, whole},
			{"has it", []string{"If-None-Match", etag}, 304, ""},
		} {
			a := s.Do("GET", path, "", test.header...)
			if a.Status != test.status || (test.status < 300 && a.Body != test.want) {
				t.Errorf("%s of %s = %d, %d bytes; want %d, %d bytes", test.name, path, a.Status, len(a.Body), test.status, len(test.want))
			}
		}
		a := s.Do("HEAD", path, "")
		if a.Status != 200 || a.Header.Get("Content-Length") != strconv.Itoa(n) || a.Header.Get("Docker-Content-Digest") != d.Digest.String() || a.Header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("HEAD %s = %d %v", path, a.Status, a.Header)
		}
	}
	// Two parts at once come as multipart.
	path := repository + "/blobs/" + layers(t, s)[0].Digest.String()
	whole := s.Do("GET", path, "").Body
	a := s.Do("GET", path, "", "Range", "bytes=0-9,600-700")
	if a.Status != 206 || !strings.HasPrefix(a.Header.Get("Content-Type"), "multipart/byteranges") || !strings.Contains(a.Body, whole[600:701]) {
		t.Errorf("two ranges = %d %s", a.Status, a.Header.Get("Content-Type"))
	}
}

func TestSendfile(t *testing.T) {
	var sent apitest.Sendfile
	s := apitest.Start(t, sent.Watch)
	fraud(s)
	size := int64(len(files["model.onnx"]))
	blob := repository + "/blobs/" + digest.FromString(files["model.onnx"]).String()
	layer := repository + "/blobs/" + layers(t, s)[0].Digest.String()
	sent.Take()
	tests := []struct {
		name, path, span string
		want             int64
	}{
		{"blob", blob, "", size},
		{"range of a blob", blob, "bytes=1000-2000999", 2_000_000},
		{"end of a blob", blob, "bytes=-100000", 100_000},
		{"layer that is composed", layer, "", size},
		{"range of a layer that begins in its header", layer, "bytes=100-1000099", 1_000_000},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := s.Do("GET", test.path, "", "Range", test.span)
			if a.Status >= 300 {
				t.Fatalf("GET %s = %d", test.path, a.Status)
			}
			s.Do("GET", "/healthz", "") // by the same connection: the server is done with the one before
			// net/http copies the first 512 bytes of every body itself; a layer's headers are no file.
			if got := sent.Take(); got < test.want-4096 || got > test.want {
				t.Errorf("%d bytes went by sendfile, want %d or up to 4096 less", got, test.want)
			}
		})
	}
}

func TestTags(t *testing.T) {
	s := apitest.Start(t)
	m, _ := fraud(s)
	all := []string{"v1.0.0"}
	for i := range 6 {
		tag := fmt.Sprintf("v2.%d.0", i)
		s.Publish(m, tag, map[string]string{"f": tag})
		all = append(all, tag)
	}
	list := func(target string) (tags []string, next string) {
		t.Helper()
		a := s.Do("GET", target, "")
		var got struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil || a.Status != 200 || got.Tags == nil {
			t.Fatalf("GET %s = %d %s, want a list", target, a.Status, a.Body)
		}
		if want := strings.TrimPrefix(target[:strings.Index(target, "/tags/")], "/v2/"); got.Name != want {
			t.Errorf("GET %s names %q, want %q", target, got.Name, want)
		}
		link, ok := strings.CutSuffix(a.Header.Get("Link"), `>; rel="next"`)
		if ok {
			next = strings.TrimPrefix(link, "<")
		}
		return got.Tags, next
	}
	for _, name := range []string{repository, repository + "/image"} {
		for _, n := range []int{1, 2, 3, 6, 7, 8, 5000} {
			var got []string
			for next := fmt.Sprintf("%s/tags/list?n=%d", name, n); next != ""; {
				var tags []string
				if tags, next = list(next); len(tags) > n {
					t.Errorf("n=%d gives %d tags", n, len(tags))
				}
				if got = append(got, tags...); len(got) > len(all) {
					break
				}
			}
			if diff := cmp.Diff(all, got); diff != "" {
				t.Errorf("tags of %s by %d (-want +got):\n%s", name, n, diff)
			}
		}
	}
	for _, test := range []struct {
		query string
		want  []string
		more  bool
	}{
		{"", all, false},
		{"?n=0", []string{}, false},
		{"?last=v2.3.0", all[5:], false},
		{"?last=v2.3.0&n=1", all[5:6], true},
		{"?last=v2.2.9", all[4:], false}, // need not be there
		{"?last=zzz", []string{}, false},
	} {
		got, next := list(repository + "/tags/list" + test.query)
		if !slices.Equal(got, test.want) || (next != "") != test.more {
			t.Errorf("tags/list%s = %v, more %v; want %v, more %v", test.query, got, next != "", test.want, test.more)
		}
	}
}

func TestCatalog(t *testing.T) {
	s := apitest.Start(t)
	var want []string
	for _, name := range []string{"acme/b", "acme/b-c", "acme/a", "other/z"} {
		s.Model(name, registry.Public)
		want = append(want, name, name+"/image")
	}
	s.Model("acme/hidden", registry.Private)
	slices.Sort(want)
	for _, n := range []int{1, 3, 100} {
		var got []string
		for next := fmt.Sprintf("/v2/_catalog?n=%d", n); next != ""; {
			a := s.Do("GET", next, "")
			var page struct{ Repositories []string }
			if err := json.Unmarshal([]byte(a.Body), &page); err != nil || len(page.Repositories) > n {
				t.Fatalf("GET %s = %d %s", next, a.Status, a.Body)
			}
			got = append(got, page.Repositories...)
			link, _ := strings.CutSuffix(a.Header.Get("Link"), `>; rel="next"`)
			next = strings.TrimPrefix(link, "<")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("catalog by %d (-want +got):\n%s", n, diff)
		}
	}
}

func TestReferrers(t *testing.T) {
	s := apitest.Start(t)
	m, v := fraud(s)
	artifact := v.Version.Artifact.Digest
	const kind = "application/vnd.example.sbom"
	sbom := []byte(`{"schemaVersion":2}`)
	s.Blob(m, sbom)
	// As a manifest that refers to the artifact is kept.
	s.Commit(registry.ImageBuilt{ModelID: m.ID, Tag: v.Version.Tag, Status: v.Image, Manifests: []registry.StoredManifest{{
		Descriptor:   registry.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(sbom), SizeBytes: int64(len(sbom))},
		ArtifactType: kind, Annotations: map[string]string{"a": "b"}, Subject: artifact,
	}}})
	referrers := func(query string) (v1.Index, http.Header) {
		t.Helper()
		a := s.Do("GET", repository+"/referrers/"+query, "")
		var index v1.Index
		if err := json.Unmarshal([]byte(a.Body), &index); err != nil || a.Status != 200 || index.Manifests == nil || index.SchemaVersion != 2 || a.Header.Get("Content-Type") != v1.MediaTypeImageIndex {
			t.Fatalf("GET referrers/%s = %d %s, want an index", query, a.Status, a.Body)
		}
		return index, a.Header
	}
	index, header := referrers(artifact.String())
	if len(index.Manifests) != 2 || header.Get("OCI-Filters-Applied") != "" {
		t.Errorf("referrers of the artifact = %v, filtered by %q; want the image and the SBOM, not filtered", index.Manifests, header.Get("OCI-Filters-Applied"))
	}
	index, header = referrers(artifact.String() + "?artifactType=" + kind)
	want := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(sbom), Size: int64(len(sbom)), ArtifactType: kind, Annotations: map[string]string{"a": "b"}}
	if diff := cmp.Diff([]v1.Descriptor{want}, index.Manifests); diff != "" || header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("referrers of one type, filtered by %q (-want +got):\n%s", header.Get("OCI-Filters-Applied"), diff)
	}
	if index, _ = referrers(artifact.String() + "?artifactType=none"); len(index.Manifests) != 0 {
		t.Errorf("referrers of a type that none has = %v, want none", index.Manifests)
	}
	if index, _ = referrers(digest.FromString("unknown").String()); len(index.Manifests) != 0 {
		t.Errorf("referrers of an unknown manifest = %v, want an empty index", index.Manifests)
	}
}

// cpu is the processor time of this process so far, in both of its roles.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPull pulls over loopback; the processor time is that of server and client.
func BenchmarkPull(b *testing.B) {
	const size = 64 << 20
	s := apitest.Start(b)
	m := s.Model("acme/fraud", registry.Public)
	content := bytes.Repeat(bytesOf(1<<20, 3), 64)
	s.Publish(m, "v1.0.0", map[string]string{"model.onnx": string(content)})
	for _, test := range []struct{ name, path, span string }{
		{"blob", repository + "/blobs/" + digest.FromBytes(content).String(), ""},
		{"range", repository + "/blobs/" + digest.FromBytes(content).String(), fmt.Sprintf("bytes=0-%d", size/2-1)},
		{"layer", repository + "/blobs/" + layers(b, s)[0].Digest.String(), ""},
	} {
		b.Run(test.name, func(b *testing.B) {
			start, total := cpu(), int64(0)
			for b.Loop() {
				r, err := http.NewRequest("GET", s.URL+test.path, nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Range", test.span)
				a, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, a.Body)
				if a.Body.Close(); err != nil || a.StatusCode > 299 {
					b.Fatalf("GET %s = %d, %v", test.path, a.StatusCode, err)
				}
				total += n
				b.SetBytes(n)
			}
			b.ReportMetric((cpu()-start).Seconds()/float64(total)*(1<<30), "cpu-s/GiB")
		})
	}
}

func BenchmarkManifest(b *testing.B) {
	s := apitest.Start(b)
	fraud(s)
	r, err := http.NewRequest("GET", repository+"/manifests/v1.0.0", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.API.ServeHTTP(discard{http.Header{}}, r)
	}
}

// discard is a response that goes nowhere.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
