// Package hooks delivers events to the outside world, at least once.
//
// What has to be delivered stands in the outbox, which was committed together with the change
// that it announces; each attempt is committed too, so that after a crash nothing is forgotten
// and what was delivered is not delivered again, but for the one whose answer the crash cut
// off. The id of an event is always the same, so that a receiver can tell. Events of one model
// reach one sink in their order; a sink that is down delays no other sink, and no other model
// once it is back.
package hooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// Sink is one place outside.
type Sink interface {
	// Deliver sends an event. status is the HTTP status of the answer, 0 without one. The
	// error says what went wrong without telling a secret.
	Deliver(ctx context.Context, e registry.Event) (status int, err error)
}

// Outbox holds what was not delivered yet.
type Outbox interface {
	Waiting(ctx context.Context, sink string, limit int) ([]registry.Delivery, error)
	Delivery(ctx context.Context, sink, eventID string) (registry.Delivery, error)
}

// Journal commits what came of an attempt.
type Journal interface {
	Commit(ctx context.Context, g registry.Group) error
}

// Hook is a sink as the operator configured it.
type Hook struct {
	Name   string
	Sink   Sink
	Models []string             // patterns as in path.Match, such as "acme/*"; empty means all
	Events []registry.EventType // empty means all

	Wants   func(registry.Event) bool // what else an event has to be; nil takes all
	Timeout time.Duration             // of one attempt; that of the dispatcher by default
}

// wants reports whether an event goes to the hook.
func (h Hook) wants(e registry.Event) bool {
	return h.covers(e.Model) && (len(h.Events) == 0 || slices.Contains(h.Events, e.Type)) && (h.Wants == nil || h.Wants(e))
}

func (h Hook) covers(m registry.ModelName) bool {
	return len(h.Models) == 0 || slices.ContainsFunc(h.Models, func(pattern string) bool {
		ok, _ := path.Match(pattern, m.String()) // checked when the configuration is read
		return ok
	})
}

// Config is what a Dispatcher works with.
type Config struct {
	Hooks   []Hook
	Outbox  Outbox
	Journal Journal
	Log     *slog.Logger

	Timeout     time.Duration // of one attempt; 10 s by default
	MaxAttempts int           // after which an event is dead; 20 by default, which is some hours
	FirstDelay  time.Duration // before the second attempt, then twice as long each time; 1 s by default
	MaxDelay    time.Duration // between two attempts; 10 min by default
}

// inFlight bounds the attempts that go on at once for one sink.
const inFlight = 16

// Dispatcher takes events from the outbox to the sinks.
type Dispatcher struct {
	Config
	pokes map[string]chan struct{}
}

// New assembles a Dispatcher; Run sets it going.
func New(c Config) *Dispatcher {
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 20
	}
	if c.FirstDelay == 0 {
		c.FirstDelay = time.Second
	}
	if c.MaxDelay == 0 {
		c.MaxDelay = 10 * time.Minute
	}
	d := &Dispatcher{Config: c, pokes: map[string]chan struct{}{}}
	for _, h := range c.Hooks {
		d.pokes[h.Name] = make(chan struct{}, 1)
	}
	return d
}

// Route names the hooks that an event goes to.
func (d *Dispatcher) Route(e registry.Event) []string {
	var names []string
	for _, h := range d.Hooks {
		if h.wants(e) {
			names = append(names, h.Name)
		}
	}
	return names
}

// Usable reports why a model's policy cannot name a hook, or nil.
func (d *Dispatcher) Usable(m registry.ModelName, name string) error {
	i := slices.IndexFunc(d.Hooks, func(h Hook) bool { return h.Name == name })
	switch {
	case i < 0:
		return fmt.Errorf("the operator has configured no hook %q", name)
	case !d.Hooks[i].covers(m):
		return fmt.Errorf("the operator does not let %s use the hook %q", m, name)
	}
	return nil
}

// Poke says that there may be something new in the outbox. It does not block.
func (d *Dispatcher) Poke() {
	for _, c := range d.pokes {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Run delivers until ctx ends, and returns when the attempts that are under way have ended.
func (d *Dispatcher) Run(ctx context.Context) {
	var wait sync.WaitGroup
	for _, h := range d.Hooks {
		wait.Go(func() { (&line{Dispatcher: d, hook: h, busy: map[string]bool{}}).run(ctx) })
	}
	wait.Wait()
}

// Redeliver puts an event back into the outbox of a sink, whatever became of it before.
func (d *Dispatcher) Redeliver(ctx context.Context, actor, sink, eventID string) error {
	if _, known := d.pokes[sink]; !known {
		return fmt.Errorf("hook %s: %w", sink, registry.ErrNotFound)
	}
	if _, err := d.Outbox.Delivery(ctx, sink, eventID); err != nil {
		return err
	}
	now := time.Now().UTC()
	err := d.Journal.Commit(ctx, registry.Group{At: now, Actor: actor, Records: []registry.Record{
		registry.DeliveryTried{Attempt: registry.Attempt{Sink: sink, EventID: eventID, Outcome: registry.Requeued, At: now, Detail: "asked for by " + actor}},
	}})
	if err == nil {
		d.Poke()
	}
	return err
}

// line is the way to one sink.
type line struct {
	*Dispatcher
	hook Hook

	mu   sync.Mutex
	busy map[string]bool // models with an attempt under way
	wait sync.WaitGroup
}

// lookAhead is how many waiting events are looked at first to find one of each model.
const lookAhead = 512

func (l *line) run(ctx context.Context) {
	defer l.wait.Wait()
	for ctx.Err() == nil {
		next, err := l.round(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			l.Log.ErrorContext(ctx, "the outbox cannot be read", "hook", l.hook.Name, "error", err.Error())
			next = time.Second
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-l.pokes[l.hook.Name]:
		}
		timer.Stop()
	}
}

// round starts an attempt for the first waiting event of each model that is due, and says how
// long there is nothing to do. It looks further where none of the first events can be sent, so
// that many events of a model whose turn has not come do not hide those of another.
func (l *line) round(ctx context.Context) (time.Duration, error) {
	for limit := lookAhead; ; limit *= 8 {
		// Before the outbox is read: an attempt that ends after that is still shown as waiting.
		busy := l.underWay()
		full := len(busy) >= inFlight
		waiting, err := l.Outbox.Waiting(ctx, l.hook.Name, limit)
		if err != nil {
			return 0, err
		}
		started, next := l.start(ctx, waiting, busy)
		if started > 0 || len(waiting) < limit || full {
			return next, nil
		}
	}
}

// start starts what can be started of the waiting events. seen holds the models whose turn it is
// not.
func (l *line) start(ctx context.Context, waiting []registry.Delivery, seen map[string]bool) (started int, next time.Duration) {
	next = time.Minute
	for _, delivery := range waiting {
		model := delivery.Event.ModelID
		if seen[model] {
			continue
		}
		seen[model] = true
		if due := time.Until(delivery.NextAt); due > 0 {
			next = min(next, due)
			continue
		}
		if !l.take(model) {
			continue
		}
		started++
		l.wait.Go(func() {
			defer l.done(model)
			l.attempt(ctx, delivery)
		})
	}
	return started, next
}

// underWay names the models with an attempt under way.
func (l *line) underWay() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.busy)
}

// take reserves a model for an attempt; false when too many are under way.
func (l *line) take(model string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.busy) >= inFlight {
		return false
	}
	l.busy[model] = true
	return true
}

func (l *line) done(model string) {
	l.mu.Lock()
	delete(l.busy, model)
	l.mu.Unlock()
	select {
	case l.pokes[l.hook.Name] <- struct{}{}:
	default:
	}
}

// attempt ends in its own time when stopping ends, but for one that takes longer than others may: that is cut off, and
// made again by the next start as if it had never been.
func (l *line) attempt(stopping context.Context, delivery registry.Delivery) {
	ctx := context.WithoutCancel(stopping)
	a := registry.Attempt{Sink: l.hook.Name, EventID: delivery.Event.ID, Number: len(delivery.Attempts) + 1, Outcome: registry.Delivered, At: time.Now().UTC()}
	timeout := cmp.Or(l.hook.Timeout, l.Timeout)
	try, cancel := context.WithTimeout(ctx, timeout)
	released := context.AfterFunc(stopping, func() { time.AfterFunc(l.Timeout, cancel) })
	status, err := l.hook.Sink.Deliver(try, delivery.Event)
	released()
	cut := errors.Is(try.Err(), context.Canceled)
	cancel()
	if err != nil && cut {
		return
	}
	a.StatusCode, a.Duration = status, time.Since(a.At)
	if err != nil {
		a.Outcome, a.Detail = registry.Failed, err.Error()
		if errors.Is(err, context.DeadlineExceeded) {
			a.Detail = fmt.Sprintf("no answer within %v", timeout)
		}
		if a.Number >= l.MaxAttempts {
			a.Outcome = registry.Dead
		} else {
			a.NextAt = time.Now().UTC().Add(l.delay(a.Number))
		}
		l.Log.WarnContext(ctx, "an event was not delivered", "hook", a.Sink, "event", a.EventID, "attempt", a.Number, "outcome", a.Outcome, "reason", a.Detail)
	}
	err = l.Journal.Commit(ctx, registry.Group{At: time.Now().UTC(), Actor: "herdbook", Records: []registry.Record{registry.DeliveryTried{Attempt: a}}})
	if err != nil {
		l.Log.ErrorContext(ctx, "a delivery cannot be recorded and will be made again", "hook", a.Sink, "event", a.EventID, "error", err.Error())
		time.Sleep(l.FirstDelay) // or the same event would be sent without a pause
	}
}

// delay before the attempt after the n-th: it doubles, and a part of it is left to chance so
// that those who failed together do not all come back together.
func (d *Dispatcher) delay(n int) time.Duration {
	delay := d.MaxDelay
	if n < 30 {
		delay = min(delay, d.FirstDelay<<(n-1))
	}
	return delay/2 + rand.N(delay/2+1)
}
