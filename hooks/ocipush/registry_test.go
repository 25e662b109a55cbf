package ocipush_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/hooks/ocipush"
)

// other is somebody else's registry, in memory.
// Source: OCI distribution specification v1.1.
type other struct {
	noMount     bool // answers 202 where it could mount
	noReferrers bool // has no list of referrers
	password    string

	mu        sync.Mutex
	token     int // the number of the one that is good
	uploads   map[string]bool
	blobs     map[string][]byte // by REPOSITORY@DIGEST
	manifests map[string]manifest
	tags      map[string]digest.Digest // by REPOSITORY:TAG
	requests  []string                 // METHOD and kind, in order
}

type manifest struct {
	mediaType string
	data      []byte
}

func newOther() *other {
	return &other{uploads: map[string]bool{}, blobs: map[string][]byte{}, manifests: map[string]manifest{}, tags: map[string]digest.Digest{}}
}

// count says how many requests of a kind there were.
func (o *other) count(request string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.requests {
		if r == request {
			n++
		}
	}
	return n
}

func (o *other) forget() { o.mu.Lock(); o.requests = nil; o.mu.Unlock() }

// expire ends the token that was given out.
func (o *other) expire() { o.mu.Lock(); o.token++; o.mu.Unlock() }

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"no"}]}`, code)
}

func (o *other) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	token := fmt.Sprintf("token-%d", o.token)
	if r.URL.Path == "/token" {
		if _, password, _ := r.BasicAuth(); password != o.password {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return
		}
		fmt.Fprintf(w, `{"token":%q}`, token)
		return
	}
	if o.password != "" && r.Header.Get("Authorization") != "Bearer "+token {
		w.Header().Set("Www-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="other"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	rest := strings.TrimPrefix(r.URL.Path, "/v2/")
	for _, kind := range []string{"/blobs/uploads/", "/blobs/", "/manifests/", "/referrers/"} {
		if repository, ref, ok := strings.Cut(rest, kind); ok {
			o.requests = append(o.requests, r.Method+" "+strings.Split(kind, "/")[1])
			map[string]func(http.ResponseWriter, *http.Request, string, string){
				"/blobs/uploads/": o.upload, "/blobs/": o.blob, "/manifests/": o.manifest, "/referrers/": o.referrers,
			}[kind](w, r, repository, ref)
			return
		}
	}
	refuse(w, http.StatusNotFound, "NAME_UNKNOWN")
}

func (o *other) upload(w http.ResponseWriter, r *http.Request, repository, id string) {
	if r.Method == http.MethodPost {
		q := r.URL.Query()
		if data, ok := o.blobs[q.Get("from")+"@"+q.Get("mount")]; ok && !o.noMount {
			o.requests = append(o.requests, "mount")
			o.blobs[repository+"@"+q.Get("mount")] = data
			w.WriteHeader(http.StatusCreated)
			return
		}
		id = fmt.Sprint("u", len(o.requests))
		o.uploads[id] = true
		w.Header().Set("Location", "/v2/"+repository+"/blobs/uploads/"+id+"?_state=secret-state")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if !o.uploads[id] {
		refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		return
	}
	delete(o.uploads, id)
	o.mu.Unlock() // two bodies may come at a time
	data, err := io.ReadAll(r.Body)
	o.mu.Lock()
	d := digest.Digest(r.URL.Query().Get("digest"))
	if err != nil || digest.FromBytes(data) != d {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID")
		return
	}
	o.blobs[repository+"@"+d.String()] = data
	w.WriteHeader(http.StatusCreated)
}

func (o *other) blob(w http.ResponseWriter, r *http.Request, repository, ref string) {
	data, ok := o.blobs[repository+"@"+ref]
	if !ok {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(data)
	}
}

func (o *other) manifest(w http.ResponseWriter, r *http.Request, repository, ref string) {
	if r.Method == http.MethodPut {
		data, _ := io.ReadAll(r.Body)
		if missing := o.missing(repository, data); missing != "" {
			refuse(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
			return
		}
		d := digest.FromBytes(data)
		o.manifests[repository+"@"+d.String()] = manifest{r.Header.Get("Content-Type"), data}
		if !strings.Contains(ref, ":") {
			o.requests = append(o.requests, "tag "+ref)
			o.tags[repository+":"+ref] = d
		}
		if subject := subjectOf(data); subject != "" && !o.noReferrers {
			w.Header().Set("OCI-Subject", subject.String())
		}
		w.WriteHeader(http.StatusCreated)
		return
	}
	d := digest.Digest(ref)
	if !strings.Contains(ref, ":") {
		d = o.tags[repository+":"+ref]
	}
	m, ok := o.manifests[repository+"@"+d.String()]
	switch {
	case !ok:
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	case r.Method == http.MethodDelete:
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", fmt.Sprint(len(m.data)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(m.data)
	}
}

// missing is what a manifest names and the repository does not have.
func (o *other) missing(repository string, data []byte) string {
	var m struct {
		Config            *v1.Descriptor
		Layers, Manifests []v1.Descriptor
	}
	_ = json.Unmarshal(data, &m)
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, d := range m.Layers {
		if _, ok := o.blobs[repository+"@"+d.Digest.String()]; !ok {
			return d.Digest.String()
		}
	}
	for _, d := range m.Manifests {
		if _, ok := o.manifests[repository+"@"+d.Digest.String()]; !ok {
			return d.Digest.String()
		}
	}
	return ""
}

func subjectOf(data []byte) digest.Digest {
	var m struct{ Subject v1.Descriptor }
	_ = json.Unmarshal(data, &m)
	return m.Subject.Digest
}

func (o *other) referrers(w http.ResponseWriter, _ *http.Request, repository, ref string) {
	if o.noReferrers {
		http.NotFound(w, nil)
		return
	}
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	index.SchemaVersion = 2
	for _, key := range slices.Sorted(maps.Keys(o.manifests)) {
		m := o.manifests[key]
		if name, d, _ := strings.Cut(key, "@"); name == repository && subjectOf(m.data).String() == ref {
			index.Manifests = append(index.Manifests, v1.Descriptor{MediaType: m.mediaType, Digest: digest.Digest(d), Size: int64(len(m.data))})
		}
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
	_ = json.NewEncoder(w).Encode(index)
}

// put puts a blob there behind the clients' back.
func (o *other) put(repository, mediaType string, data []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	o.blobs[repository+"@"+d.Digest.String()] = data
	return d
}

// putManifest does the same with a manifest.
func (o *other) putManifest(repository, mediaType string, content any, tags ...string) v1.Descriptor {
	data, err := json.Marshal(content)
	if err != nil {
		panic(err)
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	o.manifests[repository+"@"+d.Digest.String()] = manifest{mediaType, data}
	for _, tag := range tags {
		o.tags[repository+":"+tag] = d.Digest
	}
	return d
}

// wire brings requests to a handler without a network, so that time can be made to pass. A handler that panics
// breaks the connection.
type wire struct{ http.Handler }

func (h wire) RoundTrip(r *http.Request) (answer *http.Response, err error) {
	defer func() {
		if r.Body != nil {
			r.Body.Close()
		}
		if broken := recover(); broken != nil {
			answer, err = nil, fmt.Errorf("write: %w", syscall.EPIPE)
		}
	}()
	in := r.Clone(r.Context())
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, in)
	answer = w.Result()
	answer.Request = r
	return answer, nil
}

// repository is a client of one in o.
func repository(tb testing.TB, h http.Handler, name string, change ...func(*ocipush.Config)) *ocipush.Repository {
	tb.Helper()
	c := ocipush.Config{PlainHTTP: true, Transport: wire{h}}
	for _, f := range change {
		f(&c)
	}
	r, err := ocipush.NewRepository("registry.example/"+name, c)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// here is a registry with the version v1.0.0 of acme/fraud as Herdbook serves it: the image refers to the artifact, and so
// do signatures, one of them to the image for one platform.
type here struct {
	*other
	artifact, image v1.Descriptor
}

const bigBytes = 1 << 20

func newHere() here {
	o := newOther()
	const a, i = "acme/fraud", "acme/fraud/image"
	big := bytes.Repeat([]byte("weights "), bigBytes/8)
	layers := []v1.Descriptor{o.put(a, "application/vnd.cncf.model.weight.v1.raw", big), o.put(a, "application/vnd.cncf.model.doc.v1.raw", nil)}
	config := o.put(a, "application/vnd.cncf.model.config.v1+json", []byte(`{"descriptor":{}}`))
	of := func(config v1.Descriptor, layers []v1.Descriptor, subject *v1.Descriptor) v1.Manifest {
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: config, Layers: layers, Subject: subject}
		m.SchemaVersion = 2
		return m
	}
	h := here{other: o}
	h.artifact = o.putManifest(a, v1.MediaTypeImageManifest, of(config, layers, nil), "v1.0.0", "production")
	tar := append([]byte("header"), big...)
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Subject: &h.artifact}
	index.SchemaVersion = 2
	var platform v1.Descriptor
	for _, architecture := range []string{"amd64", "arm64"} {
		for _, in := range []string{a, i} {
			layer := o.put(in, v1.MediaTypeImageLayer, tar)
			config := o.put(in, v1.MediaTypeImageConfig, []byte(`{"architecture":"`+architecture+`"}`))
			platform = o.putManifest(in, v1.MediaTypeImageManifest, of(config, []v1.Descriptor{layer}, nil))
		}
		index.Manifests = append(index.Manifests, platform)
	}
	o.putManifest(a, v1.MediaTypeImageIndex, index)
	h.image = o.putManifest(i, v1.MediaTypeImageIndex, index, "v1.0.0", "production")
	sign := func(in, text string, subject v1.Descriptor) v1.Descriptor {
		return o.putManifest(in, v1.MediaTypeImageManifest, of(o.put(in, v1.MediaTypeEmptyJSON, []byte("{}")), []v1.Descriptor{o.put(in, "text/plain", []byte(text))}, &subject))
	}
	sign(a, "countersigned", sign(a, "signed", h.artifact))
	sign(i, "signed for arm64", platform)
	return h
}

func (h here) version(tb testing.TB, change ...func(*ocipush.Config)) ocipush.Version {
	return ocipush.Version{Tag: "v1.0.0", Artifact: repository(tb, h.other, "acme/fraud", change...), Image: repository(tb, h.other, "acme/fraud/image", change...)}
}

// copied are the manifests and blobs of h as they should be in a registry to which team/x is where the artifact goes.
func (h here) copied() (manifests, blobs []string) {
	as := func(key string) string { return strings.Replace(key, "acme/fraud", "team/x", 1) }
	for key := range h.manifests {
		manifests = append(manifests, as(key))
	}
	for key := range h.blobs {
		blobs = append(blobs, as(key))
	}
	slices.Sort(manifests)
	slices.Sort(blobs)
	return manifests, blobs
}
