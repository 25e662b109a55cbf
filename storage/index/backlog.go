package index

import "sync"

// backlog holds what transactions change of a structure in memory until that is read: a commit must not wait for whoever walks through it. It is
// safe for use by many goroutines.
type backlog[T any] struct {
	mu     sync.Mutex
	wanted bool // the structure is there, or is being made
	held   []T
}

// maxBacklog is how many changes are held before whoever brings one takes them in, if nobody reads just then.
const maxBacklog = 1 << 12

// want begins to hold changes. What was held is forgotten: the structure is made anew.
func (l *backlog[T]) want() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted, l.held = true, nil
}

// stop ends what want began: the structure was not made.
func (l *backlog[T]) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted, l.held = false, nil
}

// add holds a change, if somebody wants it, and reports whether there are many.
func (l *backlog[T]) add(change T) (many bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wanted {
		l.held = append(l.held, change)
	}
	return len(l.held) >= maxBacklog
}

// none reports whether no change is held.
func (l *backlog[T]) none() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held) == 0
}

// take gives the changes that are held, the oldest first.
func (l *backlog[T]) take() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held
	l.held = nil
	return held
}
