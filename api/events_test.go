package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// eventIDs follows the links from page to page, as one who polls does.
func eventIDs(t *testing.T, get func(method, target, body string, header ...string) apitest.Answer, limit int) (ids []string, seqs []uint64) {
	t.Helper()
	for target := fmt.Sprintf("/api/v1/events?limit=%d", limit); ; {
		a := get("GET", target, "")
		var page struct{ Items []registry.Event }
		if err := json.Unmarshal([]byte(a.Body), &page); a.Status != 200 || err != nil {
			t.Fatalf("GET %s = %d %s", target, a.Status, a.Body)
		}
		if len(page.Items) == 0 {
			return ids, seqs
		}
		for _, e := range page.Items {
			ids, seqs = append(ids, e.ID), append(seqs, e.Seq)
		}
		next, ok := strings.CutSuffix(strings.TrimPrefix(a.Header.Get("Link"), "<"), `>; rel="next"`)
		if !ok || len(ids) > 1000 {
			t.Fatalf("GET %s: Link %q after %d events, want the next page", target, a.Header.Get("Link"), len(ids))
		}
		target = next
	}
}

// What a caller may not read is not counted for it, not even by gaps in numbers.
func TestEventsTellNothingOfHiddenModels(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/open", registry.Public)
	loop(s, "acme/hidden", registry.Private)
	loop(s, "acme/later", registry.Public)
	all, seqs := eventIDs(t, s.As, 200)
	for i, seq := range seqs {
		if seq != uint64(i)+1 {
			t.Errorf("event %d has the number %d for an administrator, want %d", i, seq, i+1)
		}
	}
	whole, numbers := eventIDs(t, s.Do, 200)
	if len(whole) == 0 || len(whole) >= len(all) {
		t.Fatalf("a stranger sees %d of %d events, want some", len(whole), len(all))
	}
	for _, n := range numbers {
		if n != 0 {
			t.Errorf("a stranger sees the number %d of an event", n)
		}
	}
	for _, limit := range []int{1, 2, 3, len(whole)} {
		if got, _ := eventIDs(t, s.Do, limit); cmp.Diff(whole, got) != "" {
			t.Errorf("events in pages of %d (-whole +pages):\n%s", limit, cmp.Diff(whole, got))
		}
	}
	for _, after := range []string{"1", "0", "x", strings.Repeat("0", 32), strings.Repeat("0", 33), strings.Repeat("ff", 40)} {
		if a := s.Do("GET", "/api/v1/events?after="+after, ""); a.Status != 400 || !strings.Contains(a.Body, `"field":"after"`) {
			t.Errorf("GET /api/v1/events?after=%s as a stranger = %d %s, want 400 on after", after, a.Status, a.Body)
		}
	}
	if a := s.As("GET", "/api/v1/events?after=1&limit=1", ""); !strings.Contains(a.Body, `"seq":2`) {
		t.Errorf("the event after number 1 for an administrator = %s, want number 2", a.Body)
	}
}

func FuzzPositions(f *testing.F) {
	key := []byte("0123456789abcdef0123456789abcdef")
	f.Add(uint64(0), "")
	f.Add(uint64(1), "00000000000000000000000000000000")
	f.Add(^uint64(0), "é")
	f.Fuzz(func(t *testing.T, seq uint64, text string) {
		p := api.NewPositions(key)
		if got, ok := p.Decode(p.Encode(seq)); !ok || got != seq {
			t.Errorf("Decode(Encode(%d)) = %d, %v", seq, got, ok)
		}
		if got, ok := p.Decode(text); ok && p.Encode(got) != strings.ToLower(text) {
			t.Errorf("Decode(%q) = %d, whose text is %q", text, got, p.Encode(got))
		}
	})
}
