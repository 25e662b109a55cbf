package lfs_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/api/lfs"
)

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lfs.NewLimits(30)
		for i := range 30 {
			if wait := l.Take("ada"); wait != 0 {
				t.Fatalf("Take number %d of 30 a minute = %v, want 0", i+1, wait)
			}
		}
		for range 3 { // to ask costs nothing
			if wait := l.Take("ada"); wait != 2*time.Second {
				t.Errorf("Take number 31 = %v, want 2s", wait)
			}
		}
		if wait := l.Take("bob"); wait != 0 {
			t.Errorf("Take of another caller = %v, want 0", wait)
		}
		time.Sleep(1500 * time.Millisecond)
		if wait := l.Take("ada"); wait != 500*time.Millisecond {
			t.Errorf("Take after 1.5 s = %v, want 500ms", wait)
		}
		time.Sleep(500 * time.Millisecond)
		if wait := l.Take("ada"); wait != 0 {
			t.Errorf("Take after the wait = %v, want 0", wait)
		}
		time.Sleep(time.Hour)
		for i := range 30 {
			if wait := l.Take("ada"); wait != 0 {
				t.Fatalf("Take number %d after an hour = %v, want 0", i+1, wait)
			}
		}
		if wait := l.Take("ada"); wait == 0 {
			t.Error("Take number 31 after an hour = 0: what was not used was saved up")
		}
	})
}

func TestNoLimits(t *testing.T) {
	l := lfs.NewLimits(0)
	for range 10_000 {
		if wait := l.Take("ada"); wait != 0 {
			t.Fatalf("Take without a limit = %v, want 0", wait)
		}
	}
	if n := l.Callers(); n != 0 {
		t.Errorf("%d callers are remembered without a limit, want none", n)
	}
}

func TestLimitsForgetCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lfs.NewLimits(2)
		for i := range lfs.MaxCallers - 1 {
			l.Take(fmt.Sprint("address ", i))
		}
		time.Sleep(time.Minute)
		l.Take("busy")
		l.Take("busy")
		l.Take("one more")
		if n := l.Callers(); n != 2 {
			t.Errorf("%d callers are remembered, want the 2 of the last minute", n)
		}
		if wait := l.Take("busy"); wait == 0 {
			t.Error("Take of a caller at its limit = 0: it was forgotten with the others")
		}
		for i := range 3 * lfs.MaxCallers { // all of them in no time
			l.Take(fmt.Sprint("address ", i))
		}
		if n := l.Callers(); n > lfs.MaxCallers {
			t.Errorf("%d callers are remembered, want at most %d", n, lfs.MaxCallers)
		}
	})
}

func TestBatchRate(t *testing.T) {
	s, _ := start(t, func(c *apitest.Config) { c.LFS.BatchRate = 2 })
	const body = `{"operation":"download","objects":[]}`
	ask := func(header ...string) apitest.Answer {
		return s.Do("POST", base+"/batch", body, append([]string{"Content-Type", mediaType, "Accept", mediaType}, header...)...)
	}
	name, value := s.Bearer()
	for range 2 {
		if a := ask(name, value); a.Status != 200 {
			t.Fatalf("batch = %d %s, want 200", a.Status, a.Body)
		}
	}
	a := ask(name, value)
	if after, err := strconv.Atoi(a.Header.Get("Retry-After")); a.Status != 429 || err != nil || after < 1 || after > 30 || !strings.Contains(a.Body, "try again in") {
		t.Errorf("third batch in a minute = %d, Retry-After %q, %s; want 429 and at most 30 s", a.Status, a.Header.Get("Retry-After"), a.Body)
	}
	if a := ask(); a.Status != 200 {
		t.Errorf("batch by another caller = %d %s, want 200", a.Status, a.Body)
	}
}
