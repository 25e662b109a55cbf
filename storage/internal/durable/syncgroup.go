package durable

import (
	"errors"
	"sync"
)

// SyncGroup lets callers that need the same thing synced share one sync. The zero value is ready.
type SyncGroup struct {
	mu      sync.Mutex
	current *groupSync // running, or nil
	next    *groupSync // has callers and has not begun, or nil
}

type groupSync struct {
	done chan struct{}
	err  error
}

// Do returns the error of a run of sync that began after Do was called, so what the caller changed
// before is covered. A run serves everybody who came before it began; those who come later wait for the
// next.
func (g *SyncGroup) Do(sync func() error) error {
	g.mu.Lock()
	if s := g.next; s != nil {
		g.mu.Unlock()
		<-s.done
		return s.err
	}
	s := &groupSync{done: make(chan struct{}), err: errors.New("sync panicked")}
	if before := g.current; before != nil {
		g.next = s
		g.mu.Unlock()
		<-before.done
		g.mu.Lock()
		g.next = nil
	}
	g.current = s
	g.mu.Unlock()

	defer func() {
		g.mu.Lock()
		if g.current == s {
			g.current = nil
		}
		g.mu.Unlock()
		close(s.done)
	}()
	s.err = sync()
	return s.err
}
