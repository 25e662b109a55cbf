package oci_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/oci"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// user is somebody with a token.
type user struct {
	*apitest.Server
	tb    testing.TB
	token string
}

func admin(tb testing.TB, s *apitest.Server) user { return user{s, tb, s.Token} }

// someone gets a token of a role.
func someone(tb testing.TB, s *apitest.Server, name string, role access.Role) user {
	tb.Helper()
	secret, token := api.NewToken(name, role)
	s.Commit(registry.TokenCreated{Token: token})
	return user{s, tb, secret}
}

func (u user) do(method, target, body string, header ...string) apitest.Answer {
	u.tb.Helper()
	return u.Do(method, target, body, append(header, "Authorization", "Bearer "+u.token)...)
}

// begin begins an upload and returns where it goes on.
func (u user) begin(repository string) string {
	u.tb.Helper()
	a := u.do("POST", "/v2/"+repository+"/blobs/uploads/", "")
	location := a.Header.Get("Location")
	if a.Status != 202 || !strings.HasPrefix(location, "/v2/"+repository+"/blobs/uploads/") {
		u.tb.Fatalf("POST to begin = %d %s, Location %q; want 202 and a relative one", a.Status, a.Body, location)
	}
	return location
}

// push uploads a blob as most clients do.
func (u user) push(repository, content string) v1.Descriptor {
	u.tb.Helper()
	d := digest.FromString(content)
	a := u.do("PUT", u.begin(repository)+"?digest="+d.String(), content)
	if want := fmt.Sprintf("/v2/%s/blobs/%s", repository, d); a.Status != 201 || a.Header.Get("Location") != want || a.Header.Get("Docker-Content-Digest") != d.String() {
		u.tb.Fatalf("PUT of a blob = %d %s %v, want 201 at %s", a.Status, a.Body, a.Header, want)
	}
	return v1.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(content))}
}

// manifestOf is one of these parts.
func manifestOf(change func(*v1.Manifest), config v1.Descriptor, layers ...v1.Descriptor) string {
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: config, Layers: layers, Annotations: map[string]string{"made": "by a test"}}
	m.SchemaVersion = 2
	if change != nil {
		change(&m)
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func (u user) put(repository, ref, manifest string, header ...string) apitest.Answer {
	u.tb.Helper()
	return u.do("PUT", "/v2/"+repository+"/manifests/"+ref, manifest, append([]string{"Content-Type", v1.MediaTypeImageManifest}, header...)...)
}

// artifact pushes a manifest with a config and a layer.
func (u user) artifact(repository, tag, content string) digest.Digest {
	u.tb.Helper()
	manifest := manifestOf(nil, u.push(repository, "{}"), u.push(repository, content))
	if a := u.put(repository, tag, manifest); a.Status != 201 || a.Header.Get("Docker-Content-Digest") != digest.FromString(manifest).String() {
		u.tb.Fatalf("PUT of a manifest = %d %s %v", a.Status, a.Body, a.Header)
	}
	return digest.FromString(manifest)
}

func (u user) tags(repository string) []string {
	u.tb.Helper()
	a := u.do("GET", "/v2/"+repository+"/tags/list", "")
	var list struct{ Tags []string }
	if a.Status != 200 || json.Unmarshal([]byte(a.Body), &list) != nil {
		u.tb.Fatalf("tags of %s = %d %s", repository, a.Status, a.Body)
	}
	return list.Tags
}

// What is pushed to a name without a model is there for who may read it.
func TestPush(t *testing.T) {
	var kernel apitest.Sendfile
	s := apitest.Start(t, kernel.Watch)
	for _, repository := range []string{"team/tools", "tools", "a/b/c/d-e__f.g"} {
		u := admin(t, s)
		content := string(bytesOf(1<<20, 3)) + repository
		d := u.artifact(repository, "latest", content)
		for _, ref := range []string{"latest", d.String()} {
			a := u.do("GET", "/v2/"+repository+"/manifests/"+ref, "")
			if a.Status != 200 || digest.FromString(a.Body) != d || a.Header.Get("Content-Type") != v1.MediaTypeImageManifest || a.Header.Get("Docker-Content-Digest") != d.String() {
				t.Errorf("manifest %s of %s = %d %s %v", ref, repository, a.Status, a.Body, a.Header)
			}
		}
		kernel.Take()
		a := u.do("GET", "/v2/"+repository+"/blobs/"+digest.FromString(content).String(), "")
		if sent := kernel.Take(); a.Status != 200 || a.Body != content || sent < int64(len(content))-512 { // net/http looks at the beginning
			t.Errorf("blob of %s = %d, %d bytes, %d by the kernel; want all of %d", repository, a.Status, len(a.Body), sent, len(content))
		}
		part := u.do("GET", "/v2/"+repository+"/blobs/"+digest.FromString(content).String(), "", "Range", "bytes=-5")
		if part.Status != 206 || part.Body != content[len(content)-5:] {
			t.Errorf("the last 5 bytes = %d %q", part.Status, part.Body)
		}
		if got := u.tags(repository); !slices.Equal(got, []string{"latest"}) {
			t.Errorf("tags of %s = %v, want latest", repository, got)
		}
	}
	catalog := admin(t, s).do("GET", "/v2/_catalog", "")
	if want := `{"repositories":["a/b/c/d-e__f.g","team/tools","tools"]}`; strings.TrimSpace(catalog.Body) != want {
		t.Errorf("catalog = %s, want %s", catalog.Body, want)
	}
}

// A blob comes at once or in parts, as the client likes.
func TestUploads(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	const repository = "team/blobs"
	check := func(how, content string, a apitest.Answer) {
		t.Helper()
		d := digest.FromString(content)
		if a.Status != 201 || a.Header.Get("Docker-Content-Digest") != d.String() {
			t.Errorf("%s = %d %s, want 201 with %s", how, a.Status, a.Body, d)
		}
		if got := u.do("GET", "/v2/"+repository+"/blobs/"+d.String(), ""); got.Status != 200 || got.Body != content {
			t.Errorf("GET after %s = %d and %d bytes, want the %d of before", how, got.Status, len(got.Body), len(content))
		}
	}
	for name, n := range map[string]int{"nothing": 0, "little": 100, "much": 9 << 20} {
		content := string(bytesOf(n, 5))
		at := "?digest=" + digest.FromString(content).String()
		check("PUT of "+name, content, u.do("PUT", u.begin(repository)+at, content))
		content += "POST"
		at = "?digest=" + digest.FromString(content).String()
		check("POST of "+name, content, u.do("POST", "/v2/"+repository+"/blobs/uploads/"+at, content))

		content += "PATCH"
		half := len(content) / 2
		a := u.do("PATCH", u.begin(repository), content[:half], "Content-Type", "application/octet-stream")
		if want := fmt.Sprintf("0-%d", max(0, half-1)); a.Status != 202 || a.Header.Get("Range") != want {
			t.Errorf("PATCH of %s = %d %s with Range %q, want 202 with %q", name, a.Status, a.Body, a.Header.Get("Range"), want)
		}
		next := a.Header.Get("Location")
		a = u.do("PATCH", next, content[half:], "Content-Range", fmt.Sprintf("%d-%d", half, len(content)-1))
		if a.Status != 202 {
			t.Errorf("second PATCH of %s = %d %s", name, a.Status, a.Body)
		}
		at = "?digest=" + digest.FromString(content).String()
		check("PUT after PATCH of "+name, content, u.do("PUT", a.Header.Get("Location")+at, ""))
		if a := u.do("GET", next, ""); a.Status != 404 || codeOf(a) != "BLOB_UPLOAD_UNKNOWN" {
			t.Errorf("status of a finished upload = %d %s, want 404 BLOB_UPLOAD_UNKNOWN", a.Status, a.Body)
		}

		content += "with the end"
		a = u.do("PATCH", u.begin(repository), content[:half])
		at = "?digest=" + digest.FromString(content).String()
		check("PUT of the last part of "+name, content, u.do("PUT", a.Header.Get("Location")+at, content[half:]))
	}
}

// Parts that do not follow each other are refused, and the upload is where it was.
func TestUploadsOutOfOrder(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	const content = "0123456789"
	location := u.begin("team/blobs")
	if a := u.do("PATCH", location, content[5:], "Content-Range", "5-9"); a.Status != 416 || a.Header.Get("Range") != "0-0" || a.Header.Get("Location") == "" {
		t.Errorf("a part that comes too early = %d %s %v, want 416 and where the upload is", a.Status, a.Body, a.Header)
	}
	a := u.do("PATCH", location, content[:5], "Content-Range", "0-4")
	location = a.Header.Get("Location")
	tests := []struct {
		name, contentRange, body string
		status                   int
	}{
		{"a part that was there", "0-4", content[:5], 416},
		{"a part behind a gap", "6-9", content[6:], 416},
		{"a range of another length", "5-9", content[5:7], 400},
		{"a range that ends before it begins", "5-3", content[5:], 400},
		{"no range", "five to nine", content[5:], 400},
		{"a range beyond all numbers", "99999999999999999999-99999999999999999999", content[5:], 400},
	}
	for _, test := range tests {
		if a := u.do("PATCH", location, test.body, "Content-Range", test.contentRange); a.Status != test.status || codeOf(a) == "" {
			t.Errorf("%s = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
		if a := u.do("PUT", location+"?digest="+digest.FromString(content).String(), test.body, "Content-Range", test.contentRange); a.Status != test.status {
			t.Errorf("%s, as the last = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
		if a := u.do("GET", location, ""); a.Status != 204 || a.Header.Get("Range") != "0-4" {
			t.Errorf("status after %s = %d, Range %q; want 204 and 0-4", test.name, a.Status, a.Header.Get("Range"))
		}
	}
	if a := u.do("PUT", location+"?digest="+digest.FromString(content).String(), content[5:]); a.Status != 201 {
		t.Errorf("the last part = %d %s, want 201", a.Status, a.Body)
	}
}

// A connection that breaks costs nothing of what has come.
func TestUploadThatIsCut(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	content := string(bytesOf(9<<20, 7))
	d := digest.FromString(content)
	for _, method := range []string{"PATCH", "PUT"} {
		location := u.begin("team/blobs")
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		const sent = 6 << 20
		_, err = fmt.Fprintf(conn, "%s %s?digest=%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", method, location, d, u.token, len(content), content[:sent])
		if err := errors.Join(err, conn.Close()); err != nil {
			t.Fatal(err)
		}
		a := u.do("GET", location, "")
		for deadline := time.Now().Add(10 * time.Second); a.Header.Get("Range") == "0-0" && time.Now().Before(deadline); {
			a = u.do("GET", location, "") // the server may not have read the request yet
		}
		_, end, _ := strings.Cut(a.Header.Get("Range"), "-")
		at, err := strconv.Atoi(end)
		if a.Status != 204 || err != nil || at == 0 || at >= sent {
			t.Fatalf("status after a %s that was cut = %d %v, want where it was cut", method, a.Status, a.Header)
		}
		a = u.do("PATCH", a.Header.Get("Location"), content[at+1:], "Content-Range", fmt.Sprintf("%d-%d", at+1, len(content)-1))
		if a = u.do("PUT", a.Header.Get("Location")+"?digest="+d.String(), ""); a.Status != 201 {
			t.Errorf("the rest after a %s that was cut = %d %s, want 201", method, a.Status, a.Body)
		}
	}
}

// What is wrong is refused with the code of the specification, and leaves nothing, not even the repository.
func TestPushRefused(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	const other = "0123456789"
	present := u.push("team/there", other)
	config := u.push("team/there", "{}")
	absent := v1.Descriptor{MediaType: "x/y", Digest: digest.FromString("absent"), Size: 6}
	both := strings.Replace(manifestOf(nil, config, present), `"layers"`, `"manifests":[],"layers"`, 1)
	index := func(list string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, v1.MediaTypeImageIndex, list)
	}
	sized := present
	sized.Size++
	tests := []struct {
		name, method, target, body, mediaType string
		status                                int
		code                                  string
	}{
		{"a wrong digest", "POST", "team/new/blobs/uploads/?digest=" + present.Digest.String(), "others", "", 400, "DIGEST_INVALID"},
		{"a digest that is none", "POST", "team/new/blobs/uploads/?digest=sha256:short", other, "", 400, "DIGEST_INVALID"},
		{"a digest of another algorithm", "POST", "team/new/blobs/uploads/?digest=md5:d41d8cd98f00b204e9800998ecf8427e", other, "", 400, "DIGEST_INVALID"},
		{"an upload that nobody began", "PUT", "team/new/blobs/uploads/1-2-3?digest=" + present.Digest.String(), other, "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"a name that is none", "POST", "team/NEW/blobs/uploads/", "", "", 400, "NAME_INVALID"},
		{"a name that leads elsewhere", "POST", "team/../x/blobs/uploads/", "", "", 400, "NAME_INVALID"},
		{"a name with an escape", "POST", "team%2fx/blobs/uploads/", "", "", 404, "NAME_INVALID"},
		{"a name that is too long", "POST", strings.Repeat("a/", 130) + "x/blobs/uploads/", "", "", 400, "NAME_INVALID"},
		{"a mount by a digest that is none", "POST", "team/new/blobs/uploads/?mount=x&from=team/there", "", "", 400, "DIGEST_INVALID"},
		{"a manifest that is too long", "PUT", "team/new/manifests/x", strings.Repeat(" ", 4<<20+1), v1.MediaTypeImageManifest, 413, "MANIFEST_INVALID"},
		{"a manifest that is no JSON", "PUT", "team/new/manifests/x", "{", v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		{"a manifest of another type", "PUT", "team/new/manifests/x", manifestOf(nil, config, present), "application/json", 400, "MANIFEST_INVALID"},
		{"a manifest that says another type", "PUT", "team/new/manifests/x", manifestOf(nil, config, present), v1.MediaTypeImageIndex, 400, "MANIFEST_INVALID"},
		{"a manifest that is an index, too", "PUT", "team/there/manifests/x", both, v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		{"a tag that is none", "PUT", "team/there/manifests/.x", manifestOf(nil, config, present), v1.MediaTypeImageManifest, 400, "TAG_INVALID"},
		{"a tag that is too long", "PUT", "team/there/manifests/" + strings.Repeat("x", 129), manifestOf(nil, config, present), v1.MediaTypeImageManifest, 400, "TAG_INVALID"},
		{"a manifest by another digest", "PUT", "team/there/manifests/" + absent.Digest.String(), manifestOf(nil, config, present), v1.MediaTypeImageManifest, 400, "DIGEST_INVALID"},
		{"a layer that is not there", "PUT", "team/there/manifests/x", manifestOf(nil, config, present, absent), v1.MediaTypeImageManifest, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"a config that is not there", "PUT", "team/there/manifests/x", manifestOf(nil, absent), v1.MediaTypeImageManifest, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"a layer that only another repository has", "PUT", "team/new/manifests/x", manifestOf(nil, config, present), v1.MediaTypeImageManifest, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"a layer of another size", "PUT", "team/there/manifests/x", manifestOf(nil, config, sized), v1.MediaTypeImageManifest, 400, "MANIFEST_INVALID"},
		{"an index of what is not there", "PUT", "team/there/manifests/x", index(`{"mediaType":"` + v1.MediaTypeImageManifest + `","digest":"` + absent.Digest.String() + `","size":6}`), v1.MediaTypeImageIndex, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"no such manifest", "DELETE", "team/there/manifests/" + absent.Digest.String(), "", "", 404, "MANIFEST_UNKNOWN"},
		{"no such tag", "DELETE", "team/there/manifests/x", "", "", 404, "MANIFEST_UNKNOWN"},
		{"no such blob", "DELETE", "team/there/blobs/" + absent.Digest.String(), "", "", 404, "BLOB_UNKNOWN"},
		{"no such repository", "DELETE", "team/none/manifests/x", "", "", 404, "MANIFEST_UNKNOWN"},
	}
	for _, test := range tests {
		a := u.do(test.method, "/v2/"+test.target, test.body, "Content-Type", test.mediaType)
		if a.Status != test.status || codeOf(a) != test.code {
			t.Errorf("%s: %s %.80s = %d %.300s, want %d %s", test.name, test.method, test.target, a.Status, a.Body, test.status, test.code)
		}
	}
	if a := u.do("GET", "/v2/_catalog", ""); strings.Contains(a.Body, "team/new") {
		t.Errorf("catalog after refused pushes = %s, want nothing of team/new", a.Body)
	}
	if got := u.tags("team/there"); len(got) > 0 {
		t.Errorf("tags after refused pushes = %v, want none", got)
	}
}

// A blob is linked from another repository if the caller may read that; whoever may not learns nothing.
func TestMount(t *testing.T) {
	s := apitest.Start(t)
	u, writer := admin(t, s), someone(t, s, "wanda", access.Writer)
	public := s.Blob(s.Model("acme/open", registry.Public), []byte("public weights"))
	d := u.push("team/source", "weights").Digest
	tests := []struct {
		name, from string
		d          digest.Digest
		status     int
	}{
		{"of a repository", "team/source", d, 201},
		{"of a model", "acme/open", public, 201},
		{"of a repository that is not there", "team/none", d, 202},
		{"of a repository that has another", "acme/open", d, 202},
		{"from nowhere", "", d, 202},
		{"from a name that is none", "../x", d, 202},
	}
	for i, test := range tests {
		repository := fmt.Sprintf("team/target%d", i)
		a := writer.do("POST", fmt.Sprintf("/v2/%s/blobs/uploads/?mount=%s&from=%s", repository, test.d, test.from), "")
		if a.Status != test.status {
			t.Errorf("mount %s = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
		want := map[int]int{201: 200, 202: 404}[test.status]
		if got := writer.do("HEAD", fmt.Sprintf("/v2/%s/blobs/%s", repository, test.d), ""); got.Status != want {
			t.Errorf("HEAD after a mount %s = %d, want %d", test.name, got.Status, want)
		}
	}
}

// A layer of an image is mounted as what it is composed of, and takes no space of its own.
func TestMountOfAnImageLayer(t *testing.T) {
	s := apitest.Start(t)
	m, _ := fraud(s)
	u := someone(t, s, "wanda", access.Writer)
	before := func() int64 {
		_, bytes, err := s.Data.Blobs.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	const repository = "team/copy"
	var all []v1.Descriptor
	config := u.push(repository, "{}")
	used := before()
	for _, l := range layers(t, s) {
		a := u.do("POST", fmt.Sprintf("/v2/%s/blobs/uploads/?mount=%s&from=acme/fraud/image", repository, l.Digest), "")
		if a.Status != 201 {
			t.Fatalf("mount of a layer = %d %s, want 201", a.Status, a.Body)
		}
		all = append(all, l)
	}
	if now := before(); now != used {
		t.Errorf("mounted layers take %d bytes, want none", now-used)
	}
	manifest := manifestOf(nil, config, all...)
	if a := u.put(repository, "x", manifest); a.Status != 201 {
		t.Fatalf("PUT of a manifest that names them = %d %s", a.Status, a.Body)
	}
	check := func(when string, repository string, status int) {
		t.Helper()
		for _, l := range all {
			a := u.do("GET", "/v2/"+repository+"/blobs/"+l.Digest.String(), "")
			if a.Status != status || status == 200 && digest.FromString(a.Body) != l.Digest {
				t.Errorf("layer %s, %d bytes, of %s %s = %d, want %d", l.Digest, len(a.Body), repository, when, a.Status, status)
			}
		}
	}
	check("when it was mounted", repository, 200)
	check("that was not mounted there", "team/none", 404)
	// What the manifest needs stays, also without the model.
	if err := s.Lifecycle.DeleteModel(t.Context(), lifecycle.Request{Identity: access.System}, m); err != nil {
		t.Fatal(err)
	}
	release := func() {
		t.Helper()
		if err := s.Lifecycle.Release(t.Context(), time.Now().Add(time.Hour), false, func(lifecycle.Released) {}); err != nil {
			t.Fatal(err)
		}
	}
	release()
	check("after its model was deleted", repository, 200)
	if a := u.do("DELETE", "/v2/"+repository+"/manifests/"+digest.FromString(manifest).String(), ""); a.Status != 202 {
		t.Fatalf("DELETE = %d %s", a.Status, a.Body)
	}
	release()
	check("that nothing names any more", repository, 404)
}

// Who is asked for a token is told of both repositories.
func TestMountChallenge(t *testing.T) {
	s := apitest.Start(t)
	for from, want := range map[string]string{
		"team/source": `scope="repository:team/target:pull,push repository:team/source:pull"`,
		`x"y`:         `scope="repository:team/target:pull,push"`,
	} {
		a := s.Do("POST", "/v2/team/target/blobs/uploads/?mount="+digest.FromString("x").String()+"&from="+url.QueryEscape(from), "")
		if got := a.Header.Get("WWW-Authenticate"); a.Status != 401 || !strings.Contains(got, want) {
			t.Errorf("mount from %s by a stranger = %d, %s; want 401 with %s", from, a.Status, got, want)
		}
	}
}

// In a model's repositories nobody takes what the server makes, and everybody who may write adds to it.
func TestPushToAModel(t *testing.T) {
	s := apitest.Start(t)
	m, v := fraud(s)
	s.Policy(m, registry.Environment{Name: registry.MustEnvironmentName("staging"), Promote: registry.PromoteManual})
	u := someone(t, s, "wanda", access.Writer)
	artifact := v.Version.Artifact
	for _, repository := range []string{"acme/fraud", "acme/fraud/image"} {
		manifest := manifestOf(nil, u.push(repository, "{}"), u.push(repository, "layer"))
		for _, tag := range []string{"v1.0.0", "v7.0.0-rc.1", "staging", "may-become-one"} {
			if a := u.put(repository, tag, manifest); a.Status != 403 || codeOf(a) != "DENIED" {
				t.Errorf("PUT %s:%s = %d %s, want 403 DENIED", repository, tag, a.Status, a.Body)
			}
		}
		if a := u.put(repository, "scratch_1", manifest); a.Status != 201 {
			t.Errorf("PUT %s:scratch_1 = %d %s, want 201", repository, a.Status, a.Body)
		}
		if a := u.do("DELETE", "/v2/"+repository+"/manifests/v1.0.0", ""); a.Status != 403 {
			t.Errorf("DELETE of a version's tag = %d %s, want 403", a.Status, a.Body)
		}
	}
	signature := manifestOf(func(m *v1.Manifest) {
		m.ArtifactType = "application/vnd.example.signature"
		m.Subject = &v1.Descriptor{MediaType: artifact.MediaType, Digest: artifact.Digest, Size: artifact.SizeBytes}
	}, u.push("acme/fraud", "{}"), u.push("acme/fraud", "signed"))
	d := digest.FromString(signature)
	if a := u.put("acme/fraud", d.String(), signature); a.Status != 201 || a.Header.Get("OCI-Subject") != artifact.Digest.String() {
		t.Errorf("PUT of a signature = %d %s, OCI-Subject %q; want 201 with %s", a.Status, a.Body, a.Header.Get("OCI-Subject"), artifact.Digest)
	}
	referrers := func(query string) []digest.Digest {
		t.Helper()
		a := s.Do("GET", "/v2/acme/fraud/referrers/"+artifact.Digest.String()+query, "")
		var list v1.Index
		if a.Status != 200 || json.Unmarshal([]byte(a.Body), &list) != nil {
			t.Fatalf("referrers = %d %s", a.Status, a.Body)
		}
		var digests []digest.Digest
		for _, m := range list.Manifests {
			digests = append(digests, m.Digest)
		}
		return digests
	}
	if got, want := referrers("?artifactType=application/vnd.example.signature"), []digest.Digest{d}; !cmp.Equal(got, want) {
		t.Errorf("signatures of v1.0.0 = %v, want %v", got, want)
	}
	if a := u.do("DELETE", "/v2/acme/fraud/manifests/"+artifact.Digest.String(), ""); a.Status != 403 || codeOf(a) != "DENIED" {
		t.Errorf("DELETE of a version's manifest = %d %s, want 403 DENIED", a.Status, a.Body)
	}
	if a := u.do("DELETE", "/v2/acme/fraud/blobs/"+v.Version.Files[0].Digest.String(), ""); a.Status != 403 {
		t.Errorf("DELETE of a version's file = %d %s, want 403", a.Status, a.Body)
	}
	if a := u.do("DELETE", "/v2/acme/fraud/manifests/"+d.String(), ""); a.Status != 202 {
		t.Errorf("DELETE of a signature = %d %s, want 202", a.Status, a.Body)
	}
	if got := referrers("?artifactType=application/vnd.example.signature"); len(got) > 0 {
		t.Errorf("signatures after they were deleted = %v, want none", got)
	}
	if a := s.Do("GET", "/v2/acme/fraud/manifests/v1.0.0", ""); digest.FromString(a.Body) != artifact.Digest {
		t.Errorf("v1.0.0 after all that is %s, want %s", digest.FromString(a.Body), artifact.Digest)
	}
}

func TestDelete(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	const repository = "team/tools"
	d := u.artifact(repository, "a", "content")
	manifest := u.do("GET", "/v2/"+repository+"/manifests/a", "").Body
	for _, tag := range []string{"b", "c"} {
		if a := u.put(repository, tag, manifest); a.Status != 201 {
			t.Fatalf("PUT %s = %d %s", tag, a.Status, a.Body)
		}
	}
	steps := []struct {
		target string
		tags   []string
		there  int // whether the manifest is
	}{
		{"manifests/b", []string{"a", "c"}, 200},
		{"manifests/" + d.String(), nil, 404},
		{"blobs/" + digest.FromString("content").String(), nil, 404},
	}
	for _, step := range steps {
		if a := u.do("DELETE", "/v2/"+repository+"/"+step.target, ""); a.Status != 202 {
			t.Errorf("DELETE %s = %d %s, want 202", step.target, a.Status, a.Body)
		}
		if got := u.tags(repository); !slices.Equal(got, step.tags) {
			t.Errorf("tags after DELETE %s = %v, want %v", step.target, got, step.tags)
		}
		if a := u.do("GET", "/v2/"+repository+"/manifests/"+d.String(), ""); a.Status != step.there {
			t.Errorf("manifest after DELETE %s = %d, want %d", step.target, a.Status, step.there)
		}
		if a := u.do("GET", "/v2/"+repository+"/"+step.target, ""); a.Status != 404 {
			t.Errorf("GET of what was deleted, %s = %d, want 404", step.target, a.Status)
		}
		if a := u.do("DELETE", "/v2/"+repository+"/"+step.target, ""); a.Status != 404 {
			t.Errorf("DELETE %s again = %d, want 404", step.target, a.Status)
		}
	}
}

// Only who may write pushes, and nobody learns what he may not read.
func TestRightsOfPushes(t *testing.T) {
	s := apitest.Start(t)
	s.Model("acme/hidden", registry.Private)
	s.Model("acme/open", registry.Public)
	reader := someone(t, s, "rita", access.Reader)
	location := admin(t, s).begin("acme/open")
	for _, request := range []struct{ method, path string }{
		{"POST", "/blobs/uploads/"},
		{"PUT", "/manifests/x"},
		{"DELETE", "/manifests/x"},
		{"DELETE", "/blobs/" + digest.FromString("x").String()},
	} {
		if a := reader.do(request.method, "/v2/acme/open"+request.path, ""); a.Status != 403 || codeOf(a) != "DENIED" {
			t.Errorf("%s %s by a reader = %d %s, want 403 DENIED", request.method, request.path, a.Status, a.Body)
		}
		for _, name := range []string{"acme/open", "acme/hidden", "acme/none"} {
			if a := s.Do(request.method, "/v2/"+name+request.path, ""); a.Status != 401 || a.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s to %s by a stranger = %d %s, want 401 with a challenge", request.method, request.path, name, a.Status, a.Body)
			}
		}
	}
	if a := reader.do("PATCH", location, "x"); a.Status != 403 {
		t.Errorf("PATCH of somebody's upload by a reader = %d %s, want 403", a.Status, a.Body)
	}
}

// The address of an upload is for one repository, and for a day.
func TestSessions(t *testing.T) {
	sessions := oci.Sessions{Key: []byte("key")}
	now := time.Unix(1_800_000_000, 0)
	const id = "0123456789abcdef0123456789abcdef"
	address := sessions.Sign("team/a", id, now)
	tests := []struct {
		name, repository, address string
		at                        time.Time
		ok                        bool
	}{
		{"as it was given", "team/a", address, now, true},
		{"almost a day later", "team/a", address, now.Add(24*time.Hour - time.Second), true},
		{"more than a day later", "team/a", address, now.Add(24*time.Hour + time.Second), false},
		{"of another repository", "team/b", address, now, false},
		{"of another server", "team/a", oci.Sessions{Key: []byte("other")}.Sign("team/a", id, now), now, false},
		{"with another id", "team/a", strings.Replace(address, "0123", "1123", 1), now, false},
		{"with another time", "team/a", strings.Replace(address, "-6", "-7", 1), now, false},
		{"empty", "team/a", "", now, false},
	}
	for _, test := range tests {
		got, ok := sessions.Verify(test.repository, test.address, test.at)
		if ok != test.ok || ok && got != id {
			t.Errorf("Verify of an address %s = %q, %t, want %t", test.name, got, ok, test.ok)
		}
	}
}

func FuzzSessions(f *testing.F) {
	sessions := oci.Sessions{Key: []byte("key")}
	now := time.Unix(1_800_000_000, 0)
	f.Add(sessions.Sign("team/a", strings.Repeat("a", 32), now))
	f.Add("a-b-c")
	f.Fuzz(func(t *testing.T, address string) {
		if id, ok := sessions.Verify("team/a", address, now); ok && sessions.Sign("team/a", id, now) != address {
			t.Errorf("Verify(%q) = %q, which was not signed", address, id)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"", "0-1", "bytes 5-9/10", "9-5", "1-", "-1", "99999999999999999999-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		start, length, err := oci.ParseContentRange(text)
		if err == nil && text != "" && (start < 0 || length < 1 || start+length < start) {
			t.Errorf("ParseContentRange(%q) = %d, %d", text, start, length)
		}
	})
}

// An upload that exceeds the quota is refused before it is received.
func TestPushAboveTheQuota(t *testing.T) {
	s := apitest.Start(t)
	s.Lifecycle.Quotas = []registry.Quota{{Models: "team/*", Bytes: 100}}
	u := admin(t, s)
	content := strings.Repeat("x", 101)
	at := u.begin("team/tools")
	for _, a := range []apitest.Answer{
		u.do("PATCH", at, content),
		u.do("PUT", at+"?digest="+digest.FromString(content).String(), content),
		u.do("POST", "/v2/team/tools/blobs/uploads/?digest="+digest.FromString(content).String(), content),
	} {
		if a.Status != http.StatusInsufficientStorage || codeOf(a) == "" {
			t.Errorf("an upload above the quota = %d %s, want 507", a.Status, a.Body)
		}
	}
	if _, err := s.Data.Blobs.Stat(t.Context(), digest.FromString(content)); err == nil {
		t.Error("content above the quota was stored")
	}
	u.push("team/tools", content[:100])
	u.push("team/tools", content[:100]) // what it owns already needs no room
	if a := u.do("POST", "/v2/team/tools/blobs/uploads/?digest="+digest.FromString("y").String(), "y"); a.Status != 507 {
		t.Errorf("an upload to a full quota = %d %s, want 507", a.Status, a.Body)
	}
}

// Many clients that send long manifests and do not end them take no memory but that of few.
func TestLongManifests(t *testing.T) {
	s := apitest.Start(t, func(c *apitest.Config) { c.OCI.SetWait(50 * time.Millisecond) })
	u := admin(t, s)
	long := manifestOf(func(m *v1.Manifest) { m.Annotations["x"] = strings.Repeat("x", 100<<10) }, u.push("team/tools", "{}"))
	half := func() {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := fmt.Fprintf(conn, "PUT /v2/team/tools/manifests/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			u.token, v1.MediaTypeImageManifest, len(long), long[:len(long)-1]); err != nil {
			t.Fatal(err)
		}
	}
	// One of them may find no place while ours has one.
	a := u.put("team/tools", "y", long)
	for deadline := time.Now().Add(20 * time.Second); a.Status == 201 && time.Now().Before(deadline); a = u.put("team/tools", "y", long) {
		half()
	}
	if a.Status != 429 || codeOf(a) != "TOOMANYREQUESTS" || a.Header.Get("Retry-After") == "" {
		t.Errorf("a long manifest beside those that do not end = %d %s, want 429 with Retry-After", a.Status, a.Body)
	}
	if a := u.put("team/tools", "z", manifestOf(nil, u.push("team/tools", "{}"))); a.Status != 201 {
		t.Errorf("a short one beside them = %d %s, want 201", a.Status, a.Body)
	}
}

// Referrers with long annotations come in pages, and each once.
func TestReferrersInPages(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	const repository = "team/tools"
	subject := u.artifact(repository, "a", "content")
	want := map[string]int{}
	for i := range 3 {
		manifest := manifestOf(func(m *v1.Manifest) {
			m.Subject = &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: subject, Size: 1}
			m.ArtifactType = "application/x.note"
			m.Annotations["long"] = strings.Repeat(strconv.Itoa(i), 3<<20)
		}, u.push(repository, "{}"))
		if a := u.put(repository, digest.FromString(manifest).String(), manifest); a.Status != 201 {
			t.Fatalf("PUT of a referrer = %d %.200s", a.Status, a.Body)
		}
		want[digest.FromString(manifest).String()] = 1
	}
	for _, query := range []string{"?artifactType=application/x.note"} {
		got, pages := map[string]int{}, 0
		for next := "/v2/" + repository + "/referrers/" + subject.String() + query; next != "" && pages < 10; pages++ {
			a := u.do("GET", next, "")
			var list v1.Index
			if a.Status != 200 || json.Unmarshal([]byte(a.Body), &list) != nil || len(a.Body) > 4<<20 {
				t.Fatalf("GET %s = %d, %d bytes", next, a.Status, len(a.Body))
			}
			for _, m := range list.Manifests {
				got[m.Digest.String()]++
			}
			next, _, _ = strings.Cut(strings.TrimPrefix(a.Header.Get("Link"), "<"), ">")
		}
		if diff := cmp.Diff(want, got); diff != "" || pages < 2 {
			t.Errorf("referrers for %q in %d pages (-want +got):\n%s", query, pages, diff)
		}
	}
	if a := u.do("GET", "/v2/"+repository+"/referrers/"+subject.String()+"?artifactType=application/x.other", ""); strings.Contains(a.Body, "x.note") || a.Header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("referrers of another type = %.300s %v, want none", a.Body, a.Header)
	}
}

// Annotations that grow when they are written down are no fault of the server's.
func TestLongAnnotations(t *testing.T) {
	u := admin(t, apitest.Start(t))
	config := u.push("team/tools", "{}")
	long := func(subject *v1.Descriptor) string {
		manifest := manifestOf(func(m *v1.Manifest) { m.Subject, m.Annotations["long"] = subject, "@" }, config)
		return strings.Replace(manifest, `"@"`, `"`+strings.Repeat("<", 3<<20)+`"`, 1)
	}
	if a := u.put("team/tools", "x", long(nil)); a.Status != 201 {
		t.Errorf("PUT of 3 MiB of '<' = %d %.200s, want 201", a.Status, a.Body)
	}
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 7}
	if a := u.put("team/tools", "y", long(&subject)); a.Status != 413 || codeOf(a) != "MANIFEST_INVALID" || strings.Contains(a.Body, "journal") {
		t.Errorf("PUT of the same with a subject = %d %.200s, want 413 MANIFEST_INVALID that speaks of annotations", a.Status, a.Body)
	}
	if tags := u.tags("team/tools"); len(tags) != 1 || tags[0] != "x" {
		t.Errorf("tags = %v, want x only", tags)
	}
}

func TestFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		enter := oci.Few(2)
		var in, most, done atomic.Int64
		for range 10 {
			go func() {
				leave, err := enter(t.Context())
				if err != nil {
					return
				}
				most.Store(max(most.Load(), in.Add(1)))
				time.Sleep(time.Second)
				in.Add(-1)
				done.Add(1)
				leave()
			}()
		}
		time.Sleep(time.Second / 2)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := enter(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("enter by who is gone, beside two who are in = %v, want context.Canceled", err)
		}
		time.Sleep(5 * time.Second)
		if most.Load() != 2 || done.Load() != 10 {
			t.Errorf("of 10, %d were in at once and %d came out after 5.5 s, want 2 and 10", most.Load(), done.Load())
		}
	})
}

// A manifest that the disk has changed is never served.
func TestDamagedManifest(t *testing.T) {
	s := apitest.Start(t)
	u := admin(t, s)
	d := u.artifact("team/tools", "a", "content")
	hex := d.Encoded()
	path := filepath.Join(s.Dir, "blobs", "sha256", hex[:2], hex)
	text, err := os.ReadFile(path)
	if err == nil {
		text[len(text)/2] ^= 1
		err = errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, text, 0o444))
	}
	if err != nil {
		t.Fatal(err)
	}
	if a := u.do("GET", "/v2/team/tools/manifests/a", ""); a.Status != 500 || codeOf(a) != "UNKNOWN" {
		t.Errorf("a damaged manifest = %d %s, want 500", a.Status, a.Body)
	}
}
