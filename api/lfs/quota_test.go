package lfs_test

import (
	"io"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// limited starts a server whose model may own so many bytes more than it does.
func limited(t *testing.T, more int64) *apitest.Server {
	s, _ := start(t)
	s.Lifecycle.Quotas = []registry.Quota{{Models: "acme/*", Bytes: int64(len(owned)) + more}}
	return s
}

// What exceeds a quota is refused before it is stored: what nobody owns would stay on the disk.
func TestUploadsAboveTheQuota(t *testing.T) {
	const content = "more than is left"
	o := object{oidOf(content), int64(len(content))}
	s, _ := start(t)
	bearer, token := s.Bearer()
	addresses := map[string]string{
		"PUT, by a signed address": href(t, s, "upload", "upload", o),
		"PATCH":                    tusHref(t, s, "acme/fraud", content, admin(s)),
		"PUT, with a token":        s.URL + base + "/" + o.OID,
	}
	s.Lifecycle.Quotas = []registry.Quota{{Models: "acme/*", Bytes: int64(len(owned)+len(content)) - 1}}
	for name, address := range addresses {
		method, _, _ := strings.Cut(name, ",")
		header := []string{bearer, token, "Tus-Resumable", "1.0.0", "Upload-Offset", "0", "Content-Type", "application/offset+octet-stream"}
		if a := s.Do(method, address, content, header...); a.Status != http.StatusInsufficientStorage {
			t.Errorf("%s above the quota = %d %s, want 507", name, a.Status, a.Body)
		}
	}
	if _, err := s.Data.Blobs.Stat(t.Context(), digest.FromString(content)); err == nil {
		t.Error("content above the quota was stored")
	}
	if left := unfinished(t, s); len(left) > 0 {
		t.Errorf("uploads above the quota left %v", left)
	}
	s.Lifecycle.Quotas[0].Bytes++
	for name, address := range addresses {
		if name == "PATCH" {
			continue
		}
		if a := s.Do("PUT", address, content, bearer, token); a.Status != http.StatusOK {
			t.Errorf("%s of as much as the quota allows = %d %s, want 200", name, a.Status, a.Body)
		}
	}
}

// What the model owns already takes no more of its quota.
func TestUploadOfWhatIsOwnedWithAFullQuota(t *testing.T) {
	s := limited(t, 0)
	name, value := s.Bearer()
	if a := s.Do("PUT", s.URL+base+"/"+oidOf(owned), owned, name, value); a.Status != http.StatusOK {
		t.Errorf("PUT of an object that the model owns = %d %s, want 200", a.Status, a.Body)
	}
}

// What nobody says the length of is received as long as there is room for anything.
func TestUploadOfUnknownLength(t *testing.T) {
	for quota, want := range map[int64]int{100: http.StatusOK, 3: http.StatusInsufficientStorage} {
		s := limited(t, quota)
		name, value := s.Bearer()
		put := func(content string) int {
			r, err := http.NewRequestWithContext(t.Context(), "PUT", s.URL+base+"/"+oidOf(content), struct{ io.Reader }{strings.NewReader(content)})
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set(name, value)
			return s.Send(r).Status
		}
		if got := put("abc"); got != http.StatusOK {
			t.Errorf("PUT of an unknown length with a quota of %d bytes = %d, want 200", quota, got)
		}
		if got := put("def"); got != want {
			t.Errorf("the next one = %d, want %d", got, want)
		}
	}
}

// Sizes that nothing has do not add up to less than the quota.
func TestBatchOfHugeObjects(t *testing.T) {
	s := limited(t, 100)
	for _, test := range []struct {
		name  string
		sizes []int64
		code  int
	}{
		{"the largest number", []int64{math.MaxInt64}, 422},
		{"two of them", []int64{math.MaxInt64, math.MaxInt64}, 422},
		{"the largest size", []int64{1 << 48}, 507},
		{"above the quota together", []int64{60, 60}, 507},
		{"within the quota", []int64{60, 40}, 0},
	} {
		var objects []object
		for i, size := range test.sizes {
			objects = append(objects, object{oidOf(test.name + string(rune('a'+i))), size})
		}
		for _, o := range batch(t, s, "upload", objects...).Objects {
			if got := codeOf(o); got != test.code || (o.Actions != nil) != (test.code == 0) {
				t.Errorf("%s: object of %d bytes = code %d, %d actions, want code %d", test.name, o.Size, got, len(o.Actions), test.code)
			}
		}
	}
}
