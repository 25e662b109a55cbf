package door

import (
	"context"
	"sync"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// Exclusive lets one caller at a time have what a name stands for. Its zero value is ready.
type Exclusive struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go of
}

// Hold waits until nobody has the name, at most for patience, and gives the function that lets go of it. The error is then
// [registry.ErrConflict].
// The same client comes twice when it lost a connection that the server still takes to be there.
func (e *Exclusive) Hold(ctx context.Context, name string, patience time.Duration) (release func(), err error) {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		e.mu.Lock()
		other, taken := e.held[name]
		if !taken {
			mine := make(chan struct{})
			if e.held == nil {
				e.held = map[string]chan struct{}{}
			}
			e.held[name] = mine
			e.mu.Unlock()
			return func() {
				e.mu.Lock()
				delete(e.held, name)
				e.mu.Unlock()
				close(mine)
			}, nil
		}
		e.mu.Unlock()
		select {
		case <-other:
		case <-end.C:
			return nil, registry.Conflict("another client of yours sends this object now; try again when it has ended")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
