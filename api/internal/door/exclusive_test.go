package door_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
)

func TestExclusive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e door.Exclusive
		ctx := t.Context()
		release, err := e.Hold(ctx, "a", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := e.Hold(ctx, "a", 20*time.Second); !errors.Is(err, registry.ErrConflict) || time.Since(begin) != 20*time.Second {
			t.Errorf("Hold of what is held = %v after %v, want ErrConflict after 20s", err, time.Since(begin))
		}
		other, err := e.Hold(ctx, "b", time.Second)
		if err != nil {
			t.Errorf("Hold of another name = %v", err)
		}
		other()
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := e.Hold(ended, "a", time.Second); !errors.Is(err, context.Canceled) {
			t.Errorf("Hold by a client that is gone = %v, want context.Canceled", err)
		}
		go func() {
			time.Sleep(5 * time.Second)
			release()
		}()
		begin = time.Now()
		release, err = e.Hold(ctx, "a", 20*time.Second)
		if err != nil || time.Since(begin) != 5*time.Second {
			t.Fatalf("Hold of what is let go of after 5s = %v after %v, want nil", err, time.Since(begin))
		}
		release()
		// Of many at once each gets it, and no two have it at a time.
		var wait sync.WaitGroup
		held := 0
		for range 50 {
			wait.Go(func() {
				release, err := e.Hold(ctx, "a", time.Hour)
				if err != nil {
					t.Errorf("Hold = %v", err)
					return
				}
				if held++; held != 1 {
					t.Errorf("%d have it at a time", held)
				}
				time.Sleep(time.Second)
				held--
				release()
			})
		}
		wait.Wait()
	})
}
