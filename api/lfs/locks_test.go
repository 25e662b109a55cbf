package lfs_test

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

const locksBase = "/acme/fraud.git/info/lfs/locks"

// person makes a token and gives the headers of requests with it.
func person(s *apitest.Server, name string, role access.Role) []string {
	secret, kept := api.NewToken(name, role)
	s.Commit(registry.TokenCreated{Token: kept})
	return []string{"Authorization", "Bearer " + secret, "Content-Type", mediaType, "Accept", mediaType}
}

type lock struct {
	ID, Path string
	LockedAt time.Time `json:"locked_at"`
	Owner    struct{ Name string }
}

// lockAnswer is any answer about locks.
type lockAnswer struct {
	Lock                lock
	Locks, Ours, Theirs []lock
	NextCursor          string `json:"next_cursor"`
	Message             string
}

// names lists locks as "PATH OWNER", by path.
func names(locks []lock) []string {
	list := []string{}
	for _, l := range locks {
		list = append(list, l.Path+" "+l.Owner.Name)
	}
	slices.Sort(list)
	return list
}

// ask sends a request about locks, and fails the test when the answer has another status.
func ask(t testing.TB, s *apitest.Server, header []string, method, target, body string, status int) (got lockAnswer) {
	t.Helper()
	a := s.Do(method, target, body, header...)
	if a.Status != status || a.Header.Get("Content-Type") != mediaType {
		t.Errorf("%s %s %.100s = %d %s %s, want %d", method, target, body, a.Status, a.Header.Get("Content-Type"), a.Body, status)
	}
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
		t.Errorf("%s %s: the answer %s is not JSON: %v", method, target, a.Body, err)
	}
	if status >= 400 && got.Message == "" {
		t.Errorf("%s %s %.100s = %d %s, want a message", method, target, body, a.Status, a.Body)
	}
	return got
}

func TestLocks(t *testing.T) {
	s, _ := start(t)
	ada, bob, mia, rea := person(s, "ada", access.Writer), person(s, "bob", access.Writer), person(s, "mia", access.Maintainer), person(s, "rea", access.Reader)
	before := time.Now().Truncate(time.Second)
	made := ask(t, s, ada, "POST", locksBase, `{"path":"a b/weights.bin","ref":{"name":"refs/heads/main"}}`, 201).Lock
	if made.ID == "" || made.Path != "a b/weights.bin" || made.Owner.Name != "ada" || made.LockedAt.Before(before) || made.LockedAt.Nanosecond() != 0 {
		t.Errorf("the lock is %+v, want one of a b/weights.bin by ada, of now in whole seconds", made)
	}
	for _, who := range [][]string{ada, bob} {
		again := ask(t, s, who, "POST", locksBase, `{"path":"a b/weights.bin"}`, 409)
		if again.Lock != made || !strings.Contains(again.Message, "since") {
			t.Errorf("a second lock = %+v, want the first one and a message", again)
		}
	}
	ask(t, s, bob, "POST", locksBase, `{"path":"bob.bin"}`, 201)
	for _, body := range []string{`{"path":"../x"}`, `{"path":"/x"}`, `{"path":""}`, `{}`, `{"path":"a\nb"}`, `{"path":"` + strings.Repeat("a", 4097) + `"}`} {
		ask(t, s, ada, "POST", locksBase, body, 400)
	}
	for _, body := range []string{``, `{`, `{"path":1}`, `{"path":"` + strings.Repeat("a", 50_000) + `"}`} {
		ask(t, s, ada, "POST", locksBase, body, 422)
	}

	both := []string{"a b/weights.bin ada", "bob.bin bob"}
	tests := []struct {
		query string
		want  []string
	}{
		{"", both},
		{"?refspec=refs/heads/any", both},
		{"?limit=100000", both},
		{"?path=" + url.QueryEscape("a b/weights.bin"), both[:1]},
		{"?path=bob.bin", both[1:]},
		{"?path=none.bin", []string{}},
		{"?id=" + made.ID, both[:1]},
		{"?id=none", []string{}},
		{"?path=bob.bin&id=" + made.ID, []string{}},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, names(ask(t, s, rea, "GET", locksBase+test.query, "", 200).Locks)); diff != "" {
			t.Errorf("GET locks%s (-want +got):\n%s", test.query, diff)
		}
	}
	for _, query := range []string{"?limit=-1", "?limit=x", "?cursor=%21"} {
		ask(t, s, rea, "GET", locksBase+query, "", 400)
	}
	if a := s.Do("GET", locksBase, ""); a.Status != 200 || strings.Contains(a.Body, "null") {
		t.Errorf("GET locks of a public model by a stranger = %d %s, want 200", a.Status, a.Body)
	}

	for _, test := range []struct {
		who          []string
		ours, theirs []string
	}{
		{ada, both[:1], both[1:]}, {bob, both[1:], both[:1]}, {mia, []string{}, both},
	} {
		got := ask(t, s, test.who, "POST", locksBase+"/verify", `{"ref":{"name":"refs/heads/main"},"limit":50}`, 200)
		if diff := cmp.Diff([2][]string{test.ours, test.theirs}, [2][]string{names(got.Ours), names(got.Theirs)}); diff != "" {
			t.Errorf("locks/verify, ours and theirs (-want +got):\n%s", diff)
		}
	}

	unlock := locksBase + "/" + made.ID + "/unlock"
	ask(t, s, bob, "POST", unlock, `{}`, 403)
	ask(t, s, bob, "POST", unlock, `{"force":true}`, 403)
	ask(t, s, mia, "POST", unlock, `{"force":false}`, 403)
	ask(t, s, mia, "POST", unlock, `{"force":"yes"}`, 422)
	if got := ask(t, s, mia, "POST", unlock, `{"force":true,"ref":{"name":"refs/heads/main"}}`, 200); got.Lock != made {
		t.Errorf("unlock = %+v, want the lock that there was", got)
	}
	ask(t, s, ada, "POST", unlock, `{}`, 404)
	ask(t, s, ada, "POST", locksBase+"/none/unlock", `{}`, 404)
}

func TestRightsToLocks(t *testing.T) {
	s, m := start(t)
	s.Model("acme/hidden", registry.Private)
	rea, ada := person(s, "rea", access.Reader), person(s, "ada", access.Writer)
	l, err := json.Marshal(ask(t, s, ada, "POST", locksBase, `{"path":"a.bin"}`, 201).Lock.ID)
	if err != nil {
		t.Fatal(err)
	}
	unlock := "/locks/" + strings.Trim(string(l), `"`) + "/unlock"
	tests := []struct {
		name, method, model, path string
		header                    []string
		status                    int
	}{
		{"lock by a stranger", "POST", "acme/fraud", "/locks", nil, 401},
		{"lock by a reader", "POST", "acme/fraud", "/locks", rea, 403},
		{"verify by a reader", "POST", "acme/fraud", "/locks/verify", rea, 403},
		{"verify by a stranger", "POST", "acme/fraud", "/locks/verify", nil, 401},
		{"unlock by a reader", "POST", "acme/fraud", unlock, rea, 403},
		{"unlock by a stranger", "POST", "acme/fraud", unlock, nil, 401},
		{"unlock by way of another model", "POST", "acme/hidden", unlock, ada, 404},
		{"list of a private model by a stranger", "GET", "acme/hidden", "/locks", nil, 401},
		{"list of no model by a stranger", "GET", "acme/none", "/locks", nil, 401},
		{"list of no model", "GET", "acme/none", "/locks", ada, 404},
		{"lock in no model", "POST", "acme/none", "/locks", ada, 404},
		{"verify for a model that the push will make", "POST", "acme/none", "/locks/verify", ada, 200},
		{"the same by a reader", "POST", "acme/none", "/locks/verify", rea, 403},
		{"a name that cannot be", "GET", "acme/UP", "/locks", ada, 400},
	}
	for _, test := range tests {
		a := s.Do(test.method, "/"+test.model+".git/info/lfs"+test.path, `{"path":"x.bin","force":true}`, test.header...)
		if a.Status != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, a.Status, a.Body, test.status)
		}
		if test.name == "verify for a model that the push will make" && a.Body != `{"ours":[],"theirs":[]}`+"\n" {
			t.Errorf("%s: %s, want two empty lists", test.name, a.Body)
		}
	}
	if locks, err := s.Data.Index.Locks(t.Context(), m.ID); err != nil || len(locks) != 1 {
		t.Errorf("after refused requests the locks are %v, %v, want the one of ada", locks, err)
	}
}

func TestLocksByPages(t *testing.T) {
	s, m := start(t)
	var records []registry.Record
	var want []string
	for i := range 450 {
		path := fmt.Sprintf("%03d.bin", i)
		owner := []string{apitest.Admin, "bob"}[i%2]
		records = append(records, registry.LockCreated{ModelID: m.ID, Lock: registry.Lock{ID: fmt.Sprint("l", 449-i), Path: path, Owner: owner}})
		want = append(want, path+" "+owner)
	}
	s.Commit(records...)
	name, value := s.Bearer()
	admin := []string{name, value}
	for _, limit := range []int{0, 7, 200, 1000} {
		var listed, verified []lock
		for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
			got := ask(t, s, admin, "GET", fmt.Sprintf("%s?limit=%d&cursor=%s", locksBase, limit, cursor), "", 200)
			if n := len(got.Locks); n > 200 || limit > 0 && n > limit || pages > 450 {
				t.Fatalf("GET locks?limit=%d = %d locks on page %d", limit, n, pages)
			}
			listed, cursor = append(listed, got.Locks...), got.NextCursor
		}
		for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
			got := ask(t, s, admin, "POST", locksBase+"/verify", fmt.Sprintf(`{"limit":%d,"cursor":%q}`, limit, cursor), 200)
			verified, cursor = append(verified, append(got.Ours, got.Theirs...)...), got.NextCursor
		}
		if diff := cmp.Diff(want, names(listed)); diff != "" {
			t.Errorf("GET locks by pages of %d (-want +got):\n%s", limit, diff)
		}
		if diff := cmp.Diff(want, names(verified)); diff != "" {
			t.Errorf("locks/verify by pages of %d (-want +got):\n%s", limit, diff)
		}
	}
}

func TestLocksOfOnePathAtOnce(t *testing.T) {
	s, _ := start(t)
	var wait sync.WaitGroup
	statuses := make([]int, 12)
	for i := range statuses {
		header := person(s, fmt.Sprint("p", i), access.Writer)
		wait.Go(func() { statuses[i] = s.Do("POST", locksBase, `{"path":"weights.bin"}`, header...).Status })
	}
	wait.Wait()
	slices.Sort(statuses)
	want := slices.Repeat([]int{409}, len(statuses))
	want[0] = 201
	if diff := cmp.Diff(want, statuses); diff != "" {
		t.Errorf("statuses of locks of one path at once (-want +got):\n%s", diff)
	}
}

// FuzzLock: a lock that is made is of a path that can be one, and is found by it; all else is the client's
// fault.
func FuzzLock(f *testing.F) {
	s, m := start(f)
	for _, seed := range []string{
		`{"path":"weights.bin"}`, `{"path":"a/../b"}`, `{"path":"\u0000"}`, `{"path":"` + strings.Repeat("a", 5000) + `"}`, `{"path":"\ud800"}`,
		`{"path":"a","ref":{"name":"refs/heads/main"}}`, `{"path":"a","ref":7}`, `[]`, `null`, `{}`, ``, `{"path":"a"}{`,
	} {
		f.Add(seed)
	}
	name, value := s.Bearer()
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", locksBase, strings.NewReader(body))
		r.Header.Set(name, value)
		w := httptest.NewRecorder()
		s.API.ServeHTTP(w, r)
		var got lockAnswer
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("lock %q = %d %s, want JSON", body, w.Code, w.Body)
		}
		switch w.Code {
		case 400, 409, 422:
			return
		case 201:
		default:
			t.Fatalf("lock %q = %d %s", body, w.Code, w.Body)
		}
		if err := registry.CheckLockPath(got.Lock.Path); err != nil {
			t.Errorf("lock %q made %+v: %v", body, got.Lock, err)
		}
		if l, err := s.Data.Index.LockOf(t.Context(), m.ID, got.Lock.Path); err != nil || l.ID != got.Lock.ID {
			t.Errorf("lock %q made %+v, and LockOf finds %+v, %v", body, got.Lock, l, err)
		}
	})
}

func BenchmarkVerifyLocks(b *testing.B) {
	s, m := start(b)
	var records []registry.Record
	for i := range 100 {
		records = append(records, registry.LockCreated{ModelID: m.ID, Lock: registry.Lock{ID: fmt.Sprint("l", i), Path: fmt.Sprint(i, ".bin"), Owner: "bob"}})
	}
	s.Commit(records...)
	name, value := s.Bearer()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", locksBase+"/verify", strings.NewReader("{}"))
		r.Header.Set(name, value)
		w := httptest.NewRecorder()
		s.API.ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatalf("locks/verify = %d %s", w.Code, w.Body)
		}
	}
}
