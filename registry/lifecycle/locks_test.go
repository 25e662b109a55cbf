package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// lock locks a file for somebody who may push.
func (s *site) lock(m registry.Model, name, path string) registry.Lock {
	s.tb.Helper()
	l, err := s.LockFile(s.tb.Context(), as(name, access.Writer), m, path)
	if err != nil {
		s.tb.Fatalf("LockFile(%s, %q) = %v", name, path, err)
	}
	return l
}

// locked lists the locks of a model as "PATH OWNER", by path.
func (s *site) locked(m registry.Model) []string {
	s.tb.Helper()
	locks, err := s.data.Index.Locks(s.tb.Context(), m.ID)
	if err != nil {
		s.tb.Fatal(err)
	}
	list := []string{}
	for _, l := range locks {
		list = append(list, l.Path+" "+l.Owner)
	}
	slices.Sort(list)
	return list
}

func TestLockFile(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	first := s.lock(m, "ada", "weights.bin")
	if first.ID == "" || first.Path != "weights.bin" || first.Owner != "ada" || first.LockedAt.IsZero() {
		t.Errorf("LockFile = %+v, want a lock of weights.bin by ada", first)
	}
	tests := []struct {
		name string
		by   lifecycle.Request
		path string
		want error
		text string
		held registry.Lock
	}{
		{"another file", as("bob", access.Writer), "other.bin", nil, "", registry.Lock{}},
		{"locked by somebody else", as("bob", access.Writer), "weights.bin", registry.ErrConflict, `"weights.bin" is locked by ada since 20`, first},
		{"locked by an administrator's word", as("root", access.Admin), "weights.bin", registry.ErrConflict, "locked by ada", first},
		{"locked by oneself", as("ada", access.Writer), "weights.bin", registry.ErrConflict, `you have locked "weights.bin" since 20`, first},
		{"by a reader", as("rea", access.Reader), "free.bin", registry.ErrForbidden, "", registry.Lock{}},
		{"by a stranger", lifecycle.Request{Identity: access.Anonymous(true)}, "free.bin", registry.ErrUnauthenticated, "", registry.Lock{}},
		{"no path in a repository", as("ada", access.Writer), "../free.bin", registry.ErrInvalid, "path", registry.Lock{}},
	}
	for _, test := range tests {
		got, err := s.LockFile(t.Context(), test.by, m, test.path)
		if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: LockFile = %v, want %v with %q", test.name, err, test.want, test.text)
		}
		if err != nil && got != test.held {
			t.Errorf("%s: LockFile = %+v, want the lock that there is: %+v", test.name, got, test.held)
		}
	}
	if diff := cmp.Diff([]string{"other.bin bob", "weights.bin ada"}, s.locked(m)); diff != "" {
		t.Errorf("locks (-want +got):\n%s", diff)
	}
}

func TestUnlockFile(t *testing.T) {
	s := open(t)
	m, other := s.model(fraud), s.model(registry.MustModelName("acme/other"))
	tests := []struct {
		name  string
		by    lifecycle.Request
		force bool
		want  error
		text  string
	}{
		{"own", as("ada", access.Writer), false, nil, ""},
		{"own with force", as("ada", access.Writer), true, nil, ""},
		{"foreign", as("bob", access.Writer), false, registry.ErrForbidden, "only ada or a maintainer may unlock it"},
		{"foreign with force", as("bob", access.Writer), true, registry.ErrForbidden, "only ada or a maintainer may unlock it"},
		{"by a maintainer", as("mia", access.Maintainer), false, registry.ErrForbidden, "unlock it with --force"},
		{"by a maintainer with force", as("mia", access.Maintainer), true, nil, ""},
		{"by an administrator with force", as("root", access.Admin), true, nil, ""},
		{"own, as a reader now", as("ada", access.Reader), false, registry.ErrForbidden, ""},
		{"by a stranger", lifecycle.Request{Identity: access.Anonymous(true)}, true, registry.ErrUnauthenticated, ""},
	}
	for i, test := range tests {
		l := s.lock(m, "ada", fmt.Sprintf("%d.bin", i))
		if _, err := s.UnlockFile(t.Context(), as("ada", access.Admin), other, l.ID, true); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: UnlockFile by way of another model = %v, want ErrNotFound", test.name, err)
		}
		got, err := s.UnlockFile(t.Context(), test.by, m, l.ID, test.force)
		if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: UnlockFile = %v, want %v with %q", test.name, err, test.want, test.text)
		}
		if err == nil && got != l {
			t.Errorf("%s: UnlockFile = %+v, want the lock that there was: %+v", test.name, got, l)
		}
		if gone := !slices.Contains(s.locked(m), l.Path+" ada"); gone != (test.want == nil) {
			t.Errorf("%s: the lock is gone: %v, want %v", test.name, gone, test.want == nil)
		}
		if _, err := s.UnlockFile(t.Context(), as("ada", access.Writer), m, l.ID, false); test.want == nil && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: UnlockFile again = %v, want ErrNotFound", test.name, err)
		}
	}
}

// Of many who lock one file at a time one has it.
func TestLockFileAtOnce(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	const many = 16
	errs := make([]error, many)
	var wait sync.WaitGroup
	for i := range many {
		wait.Go(func() {
			_, errs[i] = s.LockFile(t.Context(), as(fmt.Sprintf("p%d", i), access.Writer), m, "weights.bin")
		})
	}
	wait.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, registry.ErrConflict):
			t.Errorf("LockFile = %v, want nil or ErrConflict", err)
		}
	}
	if won != 1 || len(s.locked(m)) != 1 {
		t.Errorf("%d of %d have locked the file, and the locks are %v; want one", won, many, s.locked(m))
	}
}

func TestLocksOfAModelAreLimited(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	g := registry.Group{At: s.Now(), Actor: "ada"}
	for i := range registry.MaxLocks - 1 {
		g.Records = append(g.Records, registry.LockCreated{ModelID: m.ID, Lock: registry.Lock{ID: fmt.Sprintf("l%05d", i), Path: fmt.Sprintf("%d.bin", i), Owner: "ada", LockedAt: g.At}})
	}
	if err := s.data.Commit(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	s.lock(m, "ada", "last.bin")
	if _, err := s.LockFile(t.Context(), as("ada", access.Writer), m, "more.bin"); !errors.Is(err, registry.ErrTooLarge) || !strings.Contains(err.Error(), "acme/fraud has 10000 locks") {
		t.Errorf("LockFile of one too many = %v, want ErrTooLarge", err)
	}
	if _, err := s.UnlockFile(t.Context(), as("ada", access.Writer), m, "l00007", false); err != nil {
		t.Fatal(err)
	}
	s.lock(m, "ada", "more.bin")
}

func TestLocksEndWithTheModel(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	l := s.lock(m, "ada", "weights.bin")
	if err := s.DeleteModel(t.Context(), by("root"), m); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LockFile(t.Context(), as("ada", access.Writer), m, "other.bin"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("LockFile in a deleted model = %v, want ErrNotFound", err)
	}
	again := s.model(fraud)
	if got := append(s.locked(m), s.locked(again)...); len(got) != 0 {
		t.Errorf("locks after the model was deleted = %v, want none", got)
	}
	if _, err := s.UnlockFile(t.Context(), as("ada", access.Writer), again, l.ID, false); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("UnlockFile of a lock of the deleted model = %v, want ErrNotFound", err)
	}
}

// touching is a push of which the test says which files its updates change, by "OLD..NEW".
type touching struct {
	*push
	changes map[string][]string
	asked   []string
	err     error
}

func (p *touching) TouchedPaths(_ context.Context, from, to registry.ObjectID, paths []string) ([]string, error) {
	p.asked = append(p.asked, string(from)+".."+string(to))
	var touched []string
	for _, path := range p.changes[string(from)+".."+string(to)] {
		if slices.Contains(paths, path) {
			touched = append(touched, path)
		}
	}
	return touched, p.err
}

func TestCheckPushHoldsLocks(t *testing.T) {
	s := open(t)
	m, free := s.model(fraud), s.model(registry.MustModelName("acme/free"))
	s.lock(m, "ada", "a.bin")
	s.lock(m, "bob", "b.bin")
	s.lock(m, "cy", "c.bin")
	old, tip, tree := blobID(1), blobID(2), blobID(3)
	moved := string(old) + ".." + string(tip)
	main := registry.RefUpdate{Ref: "refs/heads/main", Old: old, New: tip}
	tests := []struct {
		name    string
		model   registry.Model
		by      string
		updates []registry.RefUpdate
		changes map[string][]string
		want    []string // in the refusal
		asked   []string
	}{
		{"another file", m, "bob", []registry.RefUpdate{main}, map[string][]string{moved: {"d.bin"}}, nil, []string{moved}},
		{"one's own", m, "ada", []registry.RefUpdate{main}, map[string][]string{moved: {"a.bin"}}, nil, []string{moved}},
		{
			"somebody else's", m, "bob",
			[]registry.RefUpdate{main},
			map[string][]string{moved: {"d.bin", "a.bin"}},
			[]string{"files that somebody else has locked:\n", `  "a.bin", locked by ada since 20`, "Ask ada to unlock", `git lfs unlock "a.bin"`, "--force"},
			[]string{moved},
		},
		{
			"those of two", m, "bob",
			[]registry.RefUpdate{main},
			map[string][]string{moved: {"c.bin", "a.bin", "b.bin"}},
			[]string{"  \"a.bin\", locked by ada", "  \"c.bin\", locked by cy", "Ask ada, cy to unlock"},
			[]string{moved},
		},
		{
			"a new branch", m, "bob",
			[]registry.RefUpdate{{Ref: "refs/heads/new", New: tip}},
			map[string][]string{".." + string(tip): {"a.bin"}},
			[]string{`"a.bin", locked by ada`},
			[]string{".." + string(tip)},
		},
		{
			"a tag that moves brings only what is new", m, "bob",
			[]registry.RefUpdate{{Ref: "refs/tags/nightly", Old: old, New: tip}},
			map[string][]string{moved: {"a.bin"}},
			nil,
			[]string{".." + string(tip)},
		},
		{
			"the second of two refs", m, "bob",
			[]registry.RefUpdate{{Ref: "refs/heads/new", New: old}, main},
			map[string][]string{moved: {"a.bin"}},
			[]string{`"a.bin", locked by ada`},
			[]string{".." + string(old), moved},
		},
		{"a branch that goes away", m, "bob", []registry.RefUpdate{{Ref: "refs/heads/old", Old: old}}, nil, nil, nil},
		{"a tag of a tree", m, "bob", []registry.RefUpdate{{Ref: "refs/tags/tree", New: tree}}, nil, nil, nil},
		{"a model without locks", free, "bob", []registry.RefUpdate{main}, map[string][]string{moved: {"a.bin"}}, nil, nil},
	}
	for i, test := range tests {
		p := &touching{push: &push{id: fmt.Sprintf("p%d", i), updates: test.updates, trees: []registry.ObjectID{tree}}, changes: test.changes}
		err := s.CheckPush(t.Context(), as(test.by, access.Writer), test.model, p)
		if len(test.want) == 0 && err != nil {
			t.Errorf("%s: CheckPush = %v, want nil", test.name, err)
		}
		for _, want := range test.want {
			if text := refusal(t, err); !strings.Contains(text, want) {
				t.Errorf("%s: CheckPush says %q, want it to say %q", test.name, text, want)
			}
		}
		if len(test.want) > 0 && strings.Contains(refusal(t, err), "b.bin") {
			t.Errorf("%s: CheckPush says %q, and b.bin is the pusher's own", test.name, refusal(t, err))
		}
		if diff := cmp.Diff(test.asked, p.asked); diff != "" {
			t.Errorf("%s: git was asked for the changes of (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestCheckPushWithTooManyCommitsToTell(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.lock(m, "ada", "a.bin")
	updates := []registry.RefUpdate{{Ref: "refs/heads/main", New: blobID(1)}}
	p := &touching{push: &push{id: "p1", updates: updates}, err: fmt.Errorf("so many: %w", registry.ErrTooLarge)}
	if text := refusal(t, s.CheckPush(t.Context(), as("bob", access.Writer), m, p)); !strings.Contains(text, "Push fewer commits at a time") {
		t.Errorf("CheckPush says %q, want what to do", text)
	}
	// What cannot tell its changes is not let through either.
	if err := s.CheckPush(t.Context(), as("bob", access.Writer), m, &push{id: "p2", updates: updates}); err == nil {
		t.Error("CheckPush of a push that cannot tell its changes = nil, want an error")
	}
}

func TestRefusalOfManyLocksIsShort(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	var paths []string
	for i := range 30 {
		path := fmt.Sprintf("%02d.bin", i)
		s.lock(m, fmt.Sprintf("p%d", i%5), path)
		paths = append(paths, path)
	}
	p := &touching{
		push:    &push{id: "p1", updates: []registry.RefUpdate{{Ref: "refs/heads/main", New: blobID(1)}}},
		changes: map[string][]string{".." + string(blobID(1)): paths},
	}
	text := refusal(t, s.CheckPush(t.Context(), as("bob", access.Writer), m, p))
	if n := strings.Count(text, "locked by"); n != 20 || !strings.Contains(text, "  and 10 more\nAsk p0, p1, p2, others to unlock") {
		t.Errorf("CheckPush says %q, with %d locks; want 20 and how many more", text, n)
	}
}

// UploadTarget makes no model, and lets through who may make one.
func TestUploadTarget(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	deleted := s.model(registry.MustModelName("acme/gone"))
	if err := s.DeleteModel(t.Context(), by("root"), deleted); err != nil {
		t.Fatal(err)
	}
	fresh := registry.MustModelName("acme/fresh")
	tests := []struct {
		name   string
		by     lifecycle.Request
		model  registry.ModelName
		wantID string
		want   error
	}{
		{"a model", as("ada", access.Writer), fraud, m.ID, nil},
		{"a model, by a reader", as("rea", access.Reader), fraud, "", registry.ErrForbidden},
		{"no model yet", as("ada", access.Writer), fresh, "", nil},
		{"no model yet, by a reader", as("rea", access.Reader), fresh, "", registry.ErrForbidden},
		{"no model yet, by a stranger", lifecycle.Request{Identity: access.Anonymous(true)}, fresh, "", registry.ErrUnauthenticated},
		{"a deleted model", as("ada", access.Writer), deleted.Name, "", registry.ErrForbidden},
		{"a deleted model, by an administrator", as("root", access.Admin), deleted.Name, "", nil},
	}
	before := s.groups()
	for _, test := range tests {
		got, err := s.UploadTarget(t.Context(), test.by, test.model)
		if !errors.Is(err, test.want) || err == nil && (got.ID != test.wantID || got.Name != test.model) {
			t.Errorf("%s: UploadTarget(%s) = %+v, %v, want id %q, %v", test.name, test.model, got, err, test.wantID, test.want)
		}
	}
	if after := s.groups(); after != before {
		t.Errorf("UploadTarget committed %d groups, want none", after-before)
	}
}

// BenchmarkCheckLocks is what a push to a model with many locks of others pays before git is asked.
func BenchmarkCheckLocks(b *testing.B) {
	s := open(b)
	m := s.model(fraud)
	g := registry.Group{At: s.Now(), Actor: "ada"}
	for i := range 1000 {
		g.Records = append(g.Records, registry.LockCreated{ModelID: m.ID, Lock: registry.Lock{ID: fmt.Sprintf("l%05d", i), Path: fmt.Sprintf("%d.bin", i), Owner: "ada", LockedAt: g.At}})
	}
	if err := s.data.Commit(b.Context(), g); err != nil {
		b.Fatal(err)
	}
	p := &touching{push: &push{id: "p", updates: []registry.RefUpdate{{Ref: "refs/heads/main", New: blobID(1)}}}}
	p.changes = map[string][]string{".." + string(blobID(1)): {"7.bin"}}
	b.ReportAllocs()
	for b.Loop() {
		var refused *lifecycle.RefusedError
		if err := s.CheckPush(b.Context(), as("bob", access.Writer), m, p); !errors.As(err, &refused) {
			b.Fatalf("CheckPush = %v, want a RefusedError", err)
		}
	}
}
