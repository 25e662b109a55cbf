package ocipush_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/hooks/ocipush"
	"github.com/herdbook/herdbook/registry"
)

// destination is team/x in a registry.
func destination(tb testing.TB, h http.Handler, change ...func(*ocipush.Config)) ocipush.Destination {
	return ocipush.Destination{Artifact: repository(tb, h, "team/x", change...), Image: repository(tb, h, "team/x/image", change...)}
}

// checkCopied compares what a registry has with what it should have. The lists of referrers that are kept under tags do not
// count: they alone are indexes that refer to nothing.
func checkCopied(t *testing.T, from here, to *other) {
	t.Helper()
	manifests, blobs := from.copied()
	got := slices.DeleteFunc(slices.Sorted(maps.Keys(to.manifests)), func(key string) bool {
		m := to.manifests[key]
		return to.noReferrers && m.mediaType == v1.MediaTypeImageIndex && subjectOf(m.data) == ""
	})
	if diff := cmp.Diff(manifests, got); diff != "" {
		t.Errorf("manifests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(blobs, slices.Sorted(maps.Keys(to.blobs))); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	for key, data := range to.blobs {
		if _, d, _ := strings.Cut(key, "@"); digest.FromBytes(data).String() != d {
			t.Errorf("%s has other content", key)
		}
	}
	for tag, want := range map[string]digest.Digest{"team/x:v1.0.0": from.artifact.Digest, "team/x/image:v1.0.0": from.image.Digest} {
		if got := to.tags[tag]; got != want {
			t.Errorf("tag %s = %q, want %s", tag, got, want)
		}
	}
}

func TestPush(t *testing.T) {
	tests := []struct {
		name  string
		other func(*other)
		puts  int // of blobs
	}{
		// Nine of the artifact's repository, and the signature that only the image's has.
		{"plain", func(*other) {}, 10},
		{"no mounts", func(o *other) { o.noMount = true }, 14},
		{"no list of referrers", func(o *other) { o.noReferrers = true }, 10},
		{"with a password", func(o *other) { o.password = "hunter2" }, 10},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			from, to := newHere(), newOther()
			test.other(to)
			credentials, err := ocipush.Password("registry.example/team/x", "robot", to.password)
			if err != nil {
				t.Fatal(err)
			}
			known := func(c *ocipush.Config) { c.Credentials = credentials }
			meter := &ocipush.Meter{}
			pushed, err := ocipush.Push(t.Context(), from.version(t), destination(t, to, known), ocipush.Options{Tags: []string{"stable"}, Meter: meter})
			if err != nil {
				t.Fatal(err)
			}
			checkCopied(t, from, to)
			if got := to.count("PUT blobs"); got != test.puts {
				t.Errorf("blobs sent = %d, want %d", got, test.puts)
			}
			if done, total := meter.Bytes(); done != total || total < 3*bigBytes {
				t.Errorf("meter = %d of %d bytes, want all", done, total)
			}
			if diff := cmp.Diff([]string{"v1.0.0", "stable"}, pushed.Artifact.Tags); diff != "" || to.tags["team/x/image:stable"] != from.image.Digest {
				t.Errorf("tags (-want +got):\n%s, image:stable = %s", diff, to.tags["team/x/image:stable"])
			}
			if a, i := pushed.Artifact, pushed.Image; a.Digest != from.artifact.Digest || i.Digest != from.image.Digest || a.Repository != "registry.example/team/x" ||
				a.Copied.Items != 15 || a.Skipped.Items != 0 || i.Copied.Items+i.Mounted.Items != 9 || (i.Mounted.Items > 0) == to.noMount {
				t.Errorf("Push = %+v, %+v", a, i)
			}
			// What the target says refers to the artifact.
			referrers, err := repository(t, to, "team/x", known).Referrers(t.Context(), from.artifact)
			if err != nil || len(referrers) != 2 {
				t.Errorf("referrers of the artifact there = %+v, %v; want the image and a signature", referrers, err)
			}

			to.forget()
			again, err := ocipush.Push(t.Context(), from.version(t), destination(t, to, known), ocipush.Options{Tags: []string{"stable"}, Meter: meter})
			if err != nil {
				t.Fatal(err)
			}
			if got := to.count("PUT blobs") + to.count("POST blobs") + to.count("PUT manifests"); got != 0 || again.Artifact.Copied.Items != 0 || again.Artifact.Skipped.Items != 15 || again.Image.Skipped.Items != 9 {
				t.Errorf("the second time: %d writes, %+v, %+v; want everything skipped", got, again.Artifact, again.Image)
			}
			if done, total := meter.Bytes(); done != total {
				t.Errorf("meter after the second time = %d of %d bytes, want all", done, total)
			}
		})
	}
}

func TestPushLeavesOut(t *testing.T) {
	tests := []struct {
		name                   string
		change                 func(*ocipush.Version, *ocipush.Destination, *ocipush.Options)
		manifests, blobs, tags int
	}{
		{"nothing", func(*ocipush.Version, *ocipush.Destination, *ocipush.Options) {}, 10, 14, 2},
		{"the image", func(_ *ocipush.Version, to *ocipush.Destination, _ *ocipush.Options) { to.Image = nil }, 3, 6, 1},
		{"an image that is not there", func(v *ocipush.Version, _ *ocipush.Destination, _ *ocipush.Options) { v.Image = nil }, 6, 9, 1},
		{"referrers", func(_ *ocipush.Version, _ *ocipush.Destination, o *ocipush.Options) { o.NoReferrers = true }, 4, 6, 2},
		{"the image and referrers", func(_ *ocipush.Version, to *ocipush.Destination, o *ocipush.Options) {
			to.Image, o.NoReferrers = nil, true
		}, 1, 3, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			from, to := newHere(), newOther()
			v, d, o := from.version(t), destination(t, to), ocipush.Options{}
			test.change(&v, &d, &o)
			if _, err := ocipush.Push(t.Context(), v, d, o); err != nil {
				t.Fatal(err)
			}
			if m, b, n := len(to.manifests), len(to.blobs), len(to.tags); m != test.manifests || b != test.blobs || n != test.tags {
				t.Errorf("the registry has %d manifests, %d blobs, %d tags; want %d, %d, %d", m, b, n, test.manifests, test.blobs, test.tags)
			}
		})
	}
}

// fault is a registry that fails now and then.
type fault struct {
	*other
	mu    sync.Mutex
	left  int
	when  func(*http.Request) bool
	fails func(o *other, w http.ResponseWriter, r *http.Request)
}

func (f *fault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	hit := f.left > 0 && f.when(r)
	if hit {
		f.left--
	}
	f.mu.Unlock()
	if hit {
		f.fails(f.other, w, r)
		return
	}
	f.other.ServeHTTP(w, r)
}

func bigPut(r *http.Request) bool {
	return r.Method == http.MethodPut && r.ContentLength >= bigBytes
}

func half(r *http.Request) { _, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2) }

func TestFaultsThatPass(t *testing.T) {
	lost := func(status int, code string) func(*other, http.ResponseWriter, *http.Request) {
		return func(o *other, w http.ResponseWriter, r *http.Request) {
			_, id, _ := strings.Cut(r.URL.Path, "/uploads/")
			o.mu.Lock()
			delete(o.uploads, id)
			o.mu.Unlock()
			_, _ = io.Copy(io.Discard, r.Body)
			refuse(w, status, code)
		}
	}
	tests := []struct {
		name        string
		times       int
		when        func(*http.Request) bool
		fails       func(o *other, w http.ResponseWriter, r *http.Request)
		least, most time.Duration // for all of it
	}{
		{"503 in the middle of a large blob", 2, bigPut, func(_ *other, w http.ResponseWriter, r *http.Request) {
			half(r)
			w.WriteHeader(http.StatusServiceUnavailable)
		}, time.Second, 6 * time.Second},
		{"a connection that breaks in the middle of a large blob", 2, bigPut, func(_ *other, _ http.ResponseWriter, r *http.Request) {
			half(r)
			panic(http.ErrAbortHandler)
		}, time.Second, 6 * time.Second},
		{"a lost upload", 2, bigPut, lost(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN"), time.Second, 6 * time.Second},
		{"an upload with other content in it", 1, bigPut, lost(http.StatusBadRequest, "BLOB_UPLOAD_INVALID"), time.Second / 2, 2 * time.Second},
		{"a token that ends in the middle of a large blob", 1, bigPut, func(o *other, w http.ResponseWriter, r *http.Request) {
			half(r)
			o.expire()
			o.ServeHTTP(w, r)
		}, time.Second / 2, 2 * time.Second},
		{"429 for a blob", 1, bigPut, func(_ *other, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(http.StatusTooManyRequests)
		}, 20 * time.Second, 25 * time.Second},
		{"429 with more patience than there is", 1, bigPut, func(_ *other, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
		}, time.Minute, 65 * time.Second},
		{"503 with a date for a question", 1, func(r *http.Request) bool { return r.Method == http.MethodHead }, func(_ *other, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", time.Now().Add(30*time.Second).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 29 * time.Second, 31 * time.Second},
		{"500 for manifests", 3, func(r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
		}, func(_ *other, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, time.Second / 2, 10 * time.Second},
		{
			"mounts that are refused", 100, func(r *http.Request) bool { return r.URL.Query().Has("mount") },
			func(_ *other, w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusNotFound, "NAME_UNKNOWN") }, 0, 0,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from, to := newHere(), newOther()
				to.password = "hunter2"
				credentials, err := ocipush.Password("registry.example/team/x", "robot", to.password)
				if err != nil {
					t.Fatal(err)
				}
				f := &fault{other: to, left: test.times, when: test.when, fails: test.fails}
				began, meter := time.Now(), &ocipush.Meter{}
				_, err = ocipush.Push(t.Context(), from.version(t), destination(t, f, func(c *ocipush.Config) { c.Credentials = credentials }), ocipush.Options{Meter: meter})
				if err != nil {
					t.Fatalf("Push = %v, want it to go on", err)
				}
				checkCopied(t, from, to)
				if took := time.Since(began); took < test.least || took > test.most {
					t.Errorf("it took %v, want %v to %v", took, test.least, test.most)
				}
				if f.left != 0 && test.times < 100 {
					t.Errorf("%d faults never happened", f.left)
				}
				if done, total := meter.Bytes(); done != total {
					t.Errorf("meter = %d of %d bytes, want all", done, total)
				}
			})
		})
	}
}

// TestUploadLostAfterAMount loses the upload that the registry offered instead of a mount.
func TestUploadLostAfterAMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := newHere(), newOther()
		to.noMount = true
		f := &fault{
			other: to, left: 1, when: func(r *http.Request) bool { return bigPut(r) && strings.Contains(r.URL.Path, "/image/") },
			fails: func(_ *other, w http.ResponseWriter, r *http.Request) {
				half(r)
				refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			},
		}
		if _, err := ocipush.Push(t.Context(), from.version(t), destination(t, f), ocipush.Options{}); err != nil || f.left != 0 {
			t.Fatalf("Push = %v, %d faults left; want it to go on", err, f.left)
		}
		checkCopied(t, from, to)
	})
}

// TestSourceThatBreaks reads the blob again when the server that it comes from breaks off.
func TestSourceThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := newHere(), newOther()
		v := from.version(t)
		v.Artifact = &breaking{Source: v.Artifact, left: 2}
		if _, err := ocipush.Push(t.Context(), v, destination(t, to), ocipush.Options{}); err != nil {
			t.Fatalf("Push = %v, want it to go on", err)
		}
		checkCopied(t, from, to)
	})
}

// breaking is a source whose first readers of a large blob get half of it.
type breaking struct {
	ocipush.Source
	left int
}

func (b *breaking) Open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	r, err := b.Source.Open(ctx, d)
	if err != nil || d.Size < bigBytes || b.left == 0 {
		return r, err
	}
	b.left--
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, d.Size/2), broken{}), r}, nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestFaultsThatStay(t *testing.T) {
	tests := []struct {
		name   string
		when   func(*http.Request) bool
		fails  func(o *other, w http.ResponseWriter, r *http.Request)
		want   string
		status int
		hits   int
	}{
		{
			"403 for a blob", bigPut, func(_ *other, w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusForbidden, "DENIED") },
			"the registry answered 403 Forbidden: denied: no", 403, 1,
		},
		{
			"413 for a blob", bigPut, func(_ *other, w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			},
			"the registry answered 413 Request Entity Too Large", 413, 1,
		},
		{
			"503 for a blob", bigPut, func(_ *other, w http.ResponseWriter, r *http.Request) {
				half(r)
				w.WriteHeader(http.StatusServiceUnavailable)
			},
			"the registry answered 503 Service Unavailable", 503, 6,
		},
		{
			"an upload that is always lost", bigPut, func(_ *other, w http.ResponseWriter, r *http.Request) {
				half(r)
				refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			},
			"404 Not Found: blob upload unknown", 404, 6,
		},
		{
			"a connection that always breaks", bigPut, func(*other, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			"broken pipe", 0, 6,
		},
		{
			"400 for the manifest", func(r *http.Request) bool {
				return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
			},
			func(_ *other, w http.ResponseWriter, _ *http.Request) {
				refuse(w, http.StatusBadRequest, "MANIFEST_INVALID")
			},
			"400 Bad Request: manifest invalid", 400, 1,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from, to := newHere(), newOther()
				f := &fault{other: to, left: 1000, when: test.when, fails: test.fails}
				// One after the other, so that only one blob fails.
				_, err := ocipush.Push(t.Context(), from.version(t), destination(t, f), ocipush.Options{Concurrency: 1, NoReferrers: true})
				var is *ocipush.Fault
				if !errors.As(err, &is) || is.Status != test.status || is.Repository != "registry.example/team/x" || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("Push = %v, want %q with status %d", err, test.want, test.status)
				}
				if !strings.Contains(err.Error(), "sha256:") || strings.Contains(err.Error(), "secret-state") || strings.Contains(err.Error(), "?") {
					t.Errorf("Push = %v, want what it was, and no address", err)
				}
				if hits := 1000 - f.left; hits != test.hits {
					t.Errorf("it was tried %d times, want %d", hits, test.hits)
				}
				if len(to.tags) != 0 {
					t.Errorf("tags = %v, want none before all is there", to.tags)
				}
				// What came over stays, and the next push goes on from there.
				before := len(to.blobs)
				f.left = 0
				to.forget()
				if _, err := ocipush.Push(t.Context(), from.version(t), destination(t, f), ocipush.Options{}); err != nil {
					t.Fatal(err)
				}
				checkCopied(t, from, to)
				if sent := to.count("PUT blobs"); sent != 10-before {
					t.Errorf("the next push sent %d blobs, want 10 without the %d that were there", sent, before)
				}
			})
		})
	}
}

func TestPushEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := newHere(), newOther()
		f := &fault{other: to, left: 1000, when: bigPut, fails: func(_ *other, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "50")
			w.WriteHeader(http.StatusServiceUnavailable)
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := ocipush.Push(ctx, from.version(t), destination(t, f), ocipush.Options{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Second {
			t.Errorf("Push = %v after %v, want the end of its time", err, time.Since(began))
		}
	})
}

func TestPasswordStaysWithItsRegistry(t *testing.T) {
	to := newOther()
	to.password = "hunter2"
	for name, elsewhere := range map[string]string{"another registry": "elsewhere.example/team/x", "another password": "registry.example/team/x"} {
		credentials, err := ocipush.Password(elsewhere, "robot", "wrong")
		if err != nil {
			t.Fatal(err)
		}
		_, err = ocipush.Push(t.Context(), newHere().version(t), destination(t, to, func(c *ocipush.Config) { c.Credentials = credentials }), ocipush.Options{})
		var is *ocipush.Fault
		if !errors.As(err, &is) || is.Status != http.StatusUnauthorized || strings.Contains(err.Error(), "wrong") {
			t.Errorf("with the password of %s: Push = %v, want 401", name, err)
		}
	}
}

// TestBasic is a registry that wants user and password with each request, and no token.
func TestBasic(t *testing.T) {
	from, to := newHere(), newOther()
	asks := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "robot" || password != "hunter2" {
			w.Header().Set("Www-Authenticate", `Basic realm="other"`)
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return
		}
		to.ServeHTTP(w, r)
	})
	_, err := ocipush.Push(t.Context(), from.version(t), destination(t, asks), ocipush.Options{})
	var is *ocipush.Fault
	if !errors.As(err, &is) || is.Status != http.StatusUnauthorized || !strings.Contains(err.Error(), "wants a user and a password") {
		t.Errorf("Push without a password = %v, want 401 and to be told", err)
	}
	home := t.TempDir()
	login := `{"auths":{"registry.example":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("robot:hunter2")) + `"}}}`
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(login), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", home)
	for _, path := range []string{"", filepath.Join(home, "config.json")} {
		credentials, err := ocipush.DockerConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ocipush.Push(t.Context(), from.version(t), destination(t, asks, func(c *ocipush.Config) { c.Credentials = credentials }), ocipush.Options{}); err != nil {
			t.Errorf("Push with Docker's configuration %q = %v", path, err)
		}
	}
	checkCopied(t, from, to)
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ocipush.DockerConfig(""); err == nil {
		t.Error("DockerConfig of a file that is no JSON = nil, want an error")
	}
}

func TestTags(t *testing.T) {
	from, to := newHere(), newOther()
	foreign := to.putManifest("team/x", v1.MediaTypeImageIndex, map[string]any{"schemaVersion": 2, "mediaType": v1.MediaTypeImageIndex, "manifests": []any{}}, "v1.0.0", "production")
	_, err := ocipush.Push(t.Context(), from.version(t), destination(t, to), ocipush.Options{})
	if err == nil || !strings.Contains(err.Error(), "tag v1.0.0: it names "+foreign.Digest.String()) || to.tags["team/x:v1.0.0"] != foreign.Digest {
		t.Errorf("Push = %v and the tag names %s; want it refused, for a version's tag does not move", err, to.tags["team/x:v1.0.0"])
	}
	v := from.version(t)
	v.Tag = "production"
	if _, err := ocipush.Push(t.Context(), v, destination(t, to), ocipush.Options{}); err != nil || to.tags["team/x:production"] != from.artifact.Digest {
		t.Errorf("Push of an environment = %v and the tag names %s; want it to move", err, to.tags["team/x:production"])
	}
	to.forget()
	for _, tag := range []string{"", "-a", "a b", "a:b", "a/b", "sha256:" + strings.Repeat("0", 64), strings.Repeat("a", 129)} {
		if _, err := ocipush.Push(t.Context(), v, destination(t, to), ocipush.Options{Tags: []string{tag}}); err == nil || !strings.Contains(err.Error(), "is no tag") || len(to.requests) != 0 {
			t.Errorf("Push with the tag %q = %v after %d requests, want an error before anything is sent", tag, err, len(to.requests))
		}
	}
	v.Tag = "v2.0.0"
	if _, err := ocipush.Push(t.Context(), v, destination(t, to), ocipush.Options{}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Push of a version that is not there = %v, want ErrNotFound", err)
	}
}

// TestListOfReferrersThatWasCutOff has the manifests there, but not the list of them.
func TestListOfReferrersThatWasCutOff(t *testing.T) {
	from, to := newHere(), newOther()
	to.noReferrers = true
	if _, err := ocipush.Push(t.Context(), from.version(t), destination(t, to), ocipush.Options{}); err != nil {
		t.Fatal(err)
	}
	list := "team/x:" + strings.Replace(from.artifact.Digest.String(), ":", "-", 1)
	if to.tags[list] == "" {
		t.Fatalf("tags = %v, want a list of referrers", to.tags)
	}
	delete(to.tags, list)
	if _, err := ocipush.Push(t.Context(), from.version(t), destination(t, to), ocipush.Options{}); err != nil {
		t.Fatal(err)
	}
	if referrers, err := repository(t, to, "team/x").Referrers(t.Context(), from.artifact); err != nil || len(referrers) != 2 {
		t.Errorf("referrers = %+v, %v; want both on the list again", referrers, err)
	}
}

func TestNewRepository(t *testing.T) {
	for _, name := range []string{"", "team", "registry.example/", "registry.example/Team", "registry.example/a:v1", "registry.example/a@sha256:" + strings.Repeat("0", 64), "https://registry.example/a", "registry.example/{name}"} {
		if r, err := ocipush.NewRepository(name, ocipush.Config{}); err == nil {
			t.Errorf("NewRepository(%q) = %s, want an error", name, r.Name())
		}
	}
	r, err := ocipush.NewRepository("registry.example:5000/team/sub/x", ocipush.Config{})
	if err != nil || r.Name() != "registry.example:5000/team/sub/x" || r.Host() != "registry.example:5000" {
		t.Errorf("NewRepository = %v, %v", r, err)
	}
}

// TestOverTheNetwork has a real connection that is cut, and a registry that answers in plain HTTP.
func TestOverTheNetwork(t *testing.T) {
	from, to := newHere(), newOther()
	f := &fault{other: to, left: 2, when: bigPut, fails: func(_ *other, w http.ResponseWriter, r *http.Request) {
		half(r)
		panic(http.ErrAbortHandler)
	}}
	server := httptest.NewServer(f)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	c := ocipush.Config{PlainHTTP: true, FirstDelay: time.Millisecond}
	var d ocipush.Destination
	var err error
	if d.Artifact, err = ocipush.NewRepository(host+"/team/x", c); err == nil {
		d.Image, err = ocipush.NewRepository(host+"/team/x/image", c)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ocipush.Push(t.Context(), from.version(t), d, ocipush.Options{}); err != nil || f.left != 0 {
		t.Fatalf("Push = %v, %d faults left; want it to go on", err, f.left)
	}
	checkCopied(t, from, to)

	c.PlainHTTP, c.FirstDelay = false, time.Hour // there is no use in trying again
	if d.Artifact, err = ocipush.NewRepository(host+"/team/x", c); err != nil {
		t.Fatal(err)
	}
	if _, err := ocipush.Push(t.Context(), from.version(t), d, ocipush.Options{}); err == nil || !strings.Contains(err.Error(), "speaks plain HTTP") {
		t.Errorf("Push with TLS to a registry without = %v, want to be told", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		status int
		text   string
		want   time.Duration
	}{
		{429, "7", 7 * time.Second},
		{503, "7", 7 * time.Second},
		{503, "Mon, 23 Nov 2026 12:00:30 GMT", 30 * time.Second},
		{503, "Mon, 23 Nov 2026 11:00:00 GMT", 0},
		{500, "7", 0},
		{200, "7", 0},
		{429, "", 0},
		{429, "-7", 0},
		{429, "99999999999999999999", 0},
		{429, "soon", 0},
	} {
		if got := ocipush.RetryAfter(&http.Response{StatusCode: test.status, Header: http.Header{"Retry-After": {test.text}}}, now); got != test.want {
			t.Errorf("retryAfter(%d, %q) = %v, want %v", test.status, test.text, got, test.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, text := range []string{"", "0", "7", "-1", "2147483647", "99999999999", "Mon, 23 Nov 2026 12:00:30 GMT", "Monday, 23-Nov-26 12:00:30 GMT"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got := ocipush.RetryAfter(&http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {text}}}, time.Unix(0, 0)); got < 0 {
			t.Errorf("retryAfter(%q) = %v, want no time before now", text, got)
		}
	})
}

func FuzzParts(f *testing.F) {
	h := newHere()
	for _, m := range h.manifests {
		f.Add(m.data)
	}
	for _, text := range []string{
		"", "null", "[]", `{"layers":[{"digest":"sha256:00","size":1}]}`, `{"manifests":[{"size":-1}]}`, `{"config":null,"layers":null}`,
		`{"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"sha256:` + strings.Repeat("a", 64) + `","urls":["http://x"]}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := ocipush.Parts(data)
		if err != nil {
			return
		}
		for _, d := range got {
			if registry.CheckDigest(d.Digest) != nil || d.Size < 0 || strings.Contains(d.MediaType, ".foreign.") {
				t.Fatalf("parts(%q) = %+v, want what can be copied", data, d)
			}
		}
		// Written down as an index again, they are the same.
		text, err := json.Marshal(v1.Index{Manifests: got})
		if err != nil {
			return
		}
		again, err := ocipush.Parts(text)
		if err != nil || len(again) != len(got) {
			t.Fatalf("parts of %s = %d, %v; want the same %d", text, len(again), err, len(got))
		}
	})
}

func BenchmarkPush(b *testing.B) {
	from := newHere()
	b.SetBytes(2 * bigBytes)
	for b.Loop() {
		if _, err := ocipush.Push(b.Context(), from.version(b), destination(b, newOther()), ocipush.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPushOfWhatIsThere(b *testing.B) {
	from, to := newHere(), newOther()
	for b.Loop() {
		if _, err := ocipush.Push(b.Context(), from.version(b), destination(b, to), ocipush.Options{}); err != nil {
			b.Fatal(err)
		}
		to.forget()
	}
}
