package hooks_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/hooks"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

// outbox is the real index, and a journal that brings groups right into it. Commit fails as often
// as fail says.
type outbox struct {
	*index.DB
	tb testing.TB

	mu   sync.Mutex
	seq  uint64
	fail int
}

func newOutbox(tb testing.TB) *outbox {
	tb.Helper()
	db, err := index.Open(filepath.Join(tb.TempDir(), "index.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &outbox{DB: db, tb: tb}
}

func (o *outbox) Commit(_ context.Context, g registry.Group) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail > 0 {
		o.fail--
		return errors.New("the disk is full")
	}
	o.seq++
	return o.Apply([]index.Entry{{Seq: o.seq, Group: g}})
}

// announce puts events of a model into the outbox of the hook "notify". Their ids are the model's
// name and a number.
func (o *outbox) announce(model string, from, to int) {
	o.tb.Helper()
	g := registry.Group{At: time.Now(), Actor: "ada"}
	m := registry.Model{ID: model, Name: registry.MustModelName("acme/" + model), Visibility: registry.Public}
	if from == 1 {
		g.Records = append(g.Records, registry.ModelCreated{Model: m})
	}
	for i := from; i <= to; i++ {
		e := registry.NewEvent(registry.EventVersionPublished, m, "ada", g.At, struct{}{})
		e.ID, e.Sinks = fmt.Sprintf("%s-%d", model, i), []string{"notify"}
		g.Records = append(g.Records, registry.EventAnnounced{Event: e})
	}
	if err := o.Commit(o.tb.Context(), g); err != nil {
		o.tb.Fatal(err)
	}
}

func (o *outbox) delivery(id string) registry.Delivery {
	o.tb.Helper()
	d, err := o.Delivery(o.tb.Context(), "notify", id)
	if err != nil {
		o.tb.Fatal(err)
	}
	return d
}

// receiver is somebody else's server: it remembers what it got, and answers what answer says.
type receiver struct {
	answer func(ctx context.Context, e registry.Event, try int) (int, error)

	mu     sync.Mutex
	got    []string
	at     []time.Duration // since the first
	begin  time.Time
	active int
	most   int // at once
}

func (r *receiver) Deliver(ctx context.Context, e registry.Event) (int, error) {
	r.mu.Lock()
	if r.begin.IsZero() {
		r.begin = time.Now()
	}
	r.got = append(r.got, e.ID)
	r.at = append(r.at, time.Since(r.begin))
	try := 0
	for _, id := range r.got {
		if id == e.ID {
			try++
		}
	}
	r.active++
	r.most = max(r.most, r.active)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.active--
		r.mu.Unlock()
	}()
	if r.answer == nil {
		return 200, nil
	}
	return r.answer(ctx, e, try)
}

func (r *receiver) received() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// of picks the ids of a model.
func of(model string, ids []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !strings.HasPrefix(id, model+"-") })
}

func numbered(model string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%d", model, i+1)
	}
	return ids
}

// run starts a dispatcher with one hook. stop ends it and waits until it has ended.
func run(o *outbox, r hooks.Sink, change ...func(*hooks.Config)) (d *hooks.Dispatcher, stop func()) {
	c := hooks.Config{Hooks: []hooks.Hook{{Name: "notify", Sink: r}}, Outbox: o, Journal: o, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&c)
	}
	d = hooks.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		d.Run(ctx)
		close(done)
	}()
	return d, func() {
		cancel()
		<-done
	}
}

var errDown = errors.New("the receiver is down")

func TestOrderOfAModelAndFreedomOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 3)
		o.announce("b", 1, 3)
		r := &receiver{answer: func(_ context.Context, e registry.Event, try int) (int, error) {
			if e.ID == "a-2" && try < 5 {
				return 503, errDown
			}
			return 200, nil
		}}
		_, stop := run(o, r)
		time.Sleep(time.Second / 4)
		if got := r.received(); !slices.Equal(of("b", got), numbered("b", 3)) || slices.Contains(got, "a-3") {
			t.Errorf("while a-2 fails the receiver got %v, want all of b and nothing behind a-2", got)
		}
		time.Sleep(time.Minute)
		stop()
		if diff := cmp.Diff([]string{"a-1", "a-2", "a-2", "a-2", "a-2", "a-2", "a-3"}, of("a", r.received())); diff != "" {
			t.Errorf("events of a (-want +got):\n%s", diff)
		}
	})
}

func TestNewEventsAreSentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		r := &receiver{}
		d, stop := run(o, r)
		defer stop()
		synctest.Wait()
		o.announce("a", 1, 1)
		d.Poke()
		synctest.Wait()
		if got := r.received(); !slices.Equal(got, []string{"a-1"}) {
			t.Errorf("after Poke the receiver got %v, want a-1 without any wait", got)
		}
		o.announce("a", 2, 2) // and nobody says so
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.received(); !slices.Equal(got, []string{"a-1", "a-2"}) {
			t.Errorf("without Poke the receiver got %v within a minute, want a-2 too", got)
		}
	})
}

func TestBackoffAndDeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 2)
		r := &receiver{answer: func(_ context.Context, e registry.Event, _ int) (int, error) {
			if e.ID == "a-1" {
				return 500, errDown
			}
			return 200, nil
		}}
		_, stop := run(o, r)
		time.Sleep(24 * time.Hour)
		stop()
		if got, want := r.received(), append(slices.Repeat([]string{"a-1"}, 20), "a-2"); !slices.Equal(got, want) {
			t.Fatalf("the receiver got %v, want a-1 twenty times and then a-2", got)
		}
		for i := 1; i < 20; i++ {
			full := min(time.Second<<(i-1), 10*time.Minute)
			if delay := r.at[i] - r.at[i-1]; delay < full/2 || delay > full+time.Millisecond {
				t.Errorf("attempt %d came %v after the one before, want between %v and %v", i+1, delay, full/2, full)
			}
		}
		d := o.delivery("a-1")
		if d.State != registry.Dead || !d.NextAt.IsZero() {
			t.Errorf("a-1 = %s, next at %v; want dead and no next attempt", d.State, d.NextAt)
		}
		last := d.Attempts[len(d.Attempts)-1]
		if last.Number != 20 || last.StatusCode != 500 || last.Detail != errDown.Error() {
			t.Errorf("last attempt = %+v, want number 20 with status and reason", last)
		}
		if d := o.delivery("a-2"); d.State != registry.Delivered {
			t.Errorf("a-2 behind the dead letter = %s, want delivered", d.State)
		}
	})
}

func TestSinkThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 1)
		o.announce("b", 1, 1)
		r := &receiver{answer: func(ctx context.Context, e registry.Event, try int) (int, error) {
			if e.ID == "a-1" && try == 1 {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return 200, nil
		}}
		_, stop := run(o, r, func(c *hooks.Config) { c.Timeout = 3 * time.Second })
		time.Sleep(2 * time.Second)
		if d := o.delivery("b-1"); d.State != registry.Delivered {
			t.Errorf("b-1 while a-1 hangs = %q, want delivered", d.State)
		}
		time.Sleep(3 * time.Second)
		stop()
		d := o.delivery("a-1")
		if d.State != registry.Delivered || len(d.Attempts) != 2 {
			t.Fatalf("a-1 = %s after %d attempts, want delivered at the second", d.State, len(d.Attempts))
		}
		first := d.Attempts[0]
		if first.Outcome != registry.Failed || first.Detail != "no answer within 3s" || first.Duration != 3*time.Second {
			t.Errorf("first attempt = %+v, want one that failed after 3s and says so", first)
		}
	})
}

func TestBoundOfAttemptsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		for i := range 40 {
			o.announce(fmt.Sprintf("m%d", i), 1, 2)
		}
		r := &receiver{answer: func(context.Context, registry.Event, int) (int, error) {
			time.Sleep(time.Second)
			return 200, nil
		}}
		_, stop := run(o, r)
		time.Sleep(time.Minute)
		stop()
		if len(r.got) != 80 || r.most != 16 {
			t.Errorf("%d events were delivered, %d at once; want 80, 16 at once", len(r.got), r.most)
		}
	})
}

// TestLongQueueOfAModelThatFails: what waits for one model does not hide what waits behind it.
func TestLongQueueOfAModelThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 2000)
		o.announce("b", 1, 2)
		r := &receiver{answer: func(_ context.Context, e registry.Event, _ int) (int, error) {
			if e.ModelID == "a" {
				return 500, errDown
			}
			return 200, nil
		}}
		_, stop := run(o, r)
		time.Sleep(2 * time.Second)
		stop()
		if got := of("b", r.received()); !slices.Equal(got, numbered("b", 2)) {
			t.Errorf("behind 2000 events of a model that fails, the receiver got %v of another, want all", got)
		}
	})
}

// TestStopWaits: Run returns when the attempt under way has ended and was recorded, and starts no
// other.
func TestStopWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 2)
		r := &receiver{answer: func(context.Context, registry.Event, int) (int, error) {
			time.Sleep(5 * time.Second)
			return 200, nil
		}}
		_, stop := run(o, r)
		time.Sleep(time.Second)
		start := time.Now()
		stop()
		if waited := time.Since(start); waited != 4*time.Second {
			t.Errorf("the end of Run took %v, want the 4s that the attempt still needed", waited)
		}
		if d := o.delivery("a-1"); d.State != registry.Delivered {
			t.Errorf("a-1 = %q, want delivered", d.State)
		}
		if got := r.received(); !slices.Equal(got, []string{"a-1"}) {
			t.Errorf("the receiver got %v, want no new attempt after the end was asked for", got)
		}
	})
}

// TestRestart: what was delivered and could not be recorded is delivered again with the same id;
// what was recorded is not.
func TestHookWithATimeoutOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 1)
		patient := func(c *hooks.Config) { c.Hooks[0].Timeout = 6 * time.Hour }
		takes := func(d time.Duration) *receiver {
			return &receiver{answer: func(ctx context.Context, _ registry.Event, _ int) (int, error) {
				select {
				case <-ctx.Done():
					return 0, ctx.Err()
				case <-time.After(d):
					return 200, nil
				}
			}}
		}

		_, stop := run(o, takes(5*time.Hour), patient)
		time.Sleep(time.Hour)
		began := time.Now()
		stop()
		if d := o.delivery("a-1"); time.Since(began) != 10*time.Second || len(d.Attempts) != 0 {
			t.Errorf("stopped in the middle of an attempt: it took %v and left the attempts %+v, want 10s and none", time.Since(began), d.Attempts)
		}

		_, stop = run(o, takes(5*time.Hour), patient)
		time.Sleep(5*time.Hour + time.Second)
		stop()
		if d := o.delivery("a-1"); d.State != registry.Delivered || len(d.Attempts) != 1 {
			t.Errorf("after an attempt of 5 hours = %q, %d attempts; want delivered by the first", d.State, len(d.Attempts))
		}

		o.announce("a", 2, 2)
		_, stop = run(o, takes(7*time.Hour), patient)
		time.Sleep(6*time.Hour + time.Second/10)
		stop()
		if d := o.delivery("a-2"); d.State != registry.Failed || d.Attempts[0].Detail != "no answer within 6h0m0s" {
			t.Errorf("after an attempt of 7 hours = %q, %+v; want failed for want of an answer within 6 h", d.State, d.Attempts)
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 3)
		first := &receiver{answer: func(_ context.Context, e registry.Event, _ int) (int, error) {
			if e.ID == "a-2" {
				o.mu.Lock()
				o.fail = 1_000_000 // the crash
				o.mu.Unlock()
			}
			return 200, nil
		}}
		_, stop := run(o, first)
		time.Sleep(time.Second / 2)
		stop()
		o.fail = 0
		second := &receiver{}
		_, stop = run(o, second)
		time.Sleep(time.Second)
		stop()
		if got := first.received(); !slices.Equal(got, []string{"a-1", "a-2"}) {
			t.Errorf("before the crash the receiver got %v, want a-1 and a-2", got)
		}
		if got := second.received(); !slices.Equal(got, []string{"a-2", "a-3"}) {
			t.Errorf("after the crash the receiver got %v, want a-2 again and a-3", got)
		}
	})
}

func TestDeliveryThatCannotBeRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 1)
		o.fail = 3
		r := &receiver{}
		_, stop := run(o, r)
		time.Sleep(time.Minute)
		stop()
		if got := r.received(); !slices.Equal(got, []string{"a-1", "a-1", "a-1", "a-1"}) {
			t.Errorf("the receiver got %v, want a-1 until it could be recorded", got)
		}
		for i := 1; i < len(r.at); i++ {
			if pause := r.at[i] - r.at[i-1]; pause < time.Second {
				t.Errorf("repetition %d came after %v, want a pause of a second or more", i, pause)
			}
		}
	})
}

// failing is an outbox that cannot be read at first.
type failing struct {
	*outbox
	times int
}

func (f *failing) Waiting(ctx context.Context, sink string, limit int) ([]registry.Delivery, error) {
	if f.times > 0 {
		f.times--
		return nil, io.ErrUnexpectedEOF
	}
	return f.outbox.Waiting(ctx, sink, limit)
}

func TestOutboxThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(t)
		o.announce("a", 1, 1)
		r := &receiver{}
		start := time.Now()
		_, stop := run(o, r, func(c *hooks.Config) { c.Outbox = &failing{o, 3} })
		time.Sleep(10 * time.Second)
		stop()
		if got := r.received(); !slices.Equal(got, []string{"a-1"}) || r.begin.Sub(start) != 3*time.Second {
			t.Errorf("the receiver got %v after %v, want a-1 after three tries a second apart", got, r.begin.Sub(start))
		}
	})
}

func TestRedeliver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		o := newOutbox(t)
		o.announce("a", 1, 2)
		up := false
		var mu sync.Mutex
		r := &receiver{answer: func(context.Context, registry.Event, int) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if up {
				return 200, nil
			}
			return 500, errDown
		}}
		d, stop := run(o, r, func(c *hooks.Config) { c.MaxAttempts = 3 })
		defer stop()
		time.Sleep(time.Hour)
		if a := o.delivery("a-1"); a.State != registry.Dead {
			t.Fatalf("a-1 = %s, want dead", a.State)
		}

		// A dead one gets a whole round of tries.
		if err := d.Redeliver(ctx, "ada", "notify", "a-1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second / 10)
		if a := o.delivery("a-1"); a.State != registry.Failed {
			t.Errorf("a-1 after another try = %s, want failed and more tries to come", a.State)
		}
		time.Sleep(time.Hour)
		tries := 0
		for _, id := range r.received() {
			if id == "a-1" {
				tries++
			}
		}
		if a := o.delivery("a-1"); tries != 6 || a.State != registry.Dead {
			t.Errorf("a-1 was tried %d times and is %s, want 6 times and dead again", tries, a.State)
		}

		// One that was delivered is delivered again.
		mu.Lock()
		up = true
		mu.Unlock()
		for range 2 {
			if err := d.Redeliver(ctx, "ada", "notify", "a-1"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		a := o.delivery("a-1")
		var outcomes []registry.Outcome
		for _, attempt := range a.Attempts[len(a.Attempts)-4:] {
			outcomes = append(outcomes, attempt.Outcome)
		}
		if want := []registry.Outcome{registry.Requeued, registry.Delivered, registry.Requeued, registry.Delivered}; !slices.Equal(outcomes, want) {
			t.Errorf("the last outcomes = %v, want %v", outcomes, want)
		}
		if detail := a.Attempts[len(a.Attempts)-2].Detail; detail != "asked for by ada" {
			t.Errorf("detail of the request = %q, want who asked", detail)
		}

		for _, unknown := range [][2]string{{"none", "a-1"}, {"notify", "a-9"}, {"", ""}} {
			if err := d.Redeliver(ctx, "ada", unknown[0], unknown[1]); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("Redeliver(%q, %q) = %v, want ErrNotFound", unknown[0], unknown[1], err)
			}
		}
	})
}

func TestRouteAndUsable(t *testing.T) {
	d := hooks.New(hooks.Config{Hooks: []hooks.Hook{
		{Name: "all"},
		{Name: "acme", Models: []string{"acme/*"}},
		{Name: "fraud", Models: []string{"other/x", "*/fraud"}, Events: []registry.EventType{registry.EventVersionPublished, registry.EventGateOpened}},
		{Name: "picky", Models: []string{"other/*"}, Wants: func(e registry.Event) bool { return e.Type == registry.EventRefUpdated }},
	}})
	routes := []struct {
		model string
		kind  registry.EventType
		want  []string
	}{
		{"acme/fraud", registry.EventVersionPublished, []string{"all", "acme", "fraud"}},
		{"acme/fraud", registry.EventRefUpdated, []string{"all", "acme"}},
		{"acme/other", registry.EventGateOpened, []string{"all", "acme"}},
		{"bank/fraud", registry.EventGateOpened, []string{"all", "fraud"}},
		{"other/x", registry.EventGateOpened, []string{"all", "fraud"}},
		{"other/y", registry.EventGateOpened, []string{"all"}},
		{"other/y", registry.EventRefUpdated, []string{"all", "picky"}},
	}
	for _, test := range routes {
		e := registry.Event{Model: registry.MustModelName(test.model), Type: test.kind}
		if got := d.Route(e); !slices.Equal(got, test.want) {
			t.Errorf("Route(%s of %s) = %v, want %v", test.kind, test.model, got, test.want)
		}
	}
	for _, test := range []struct {
		model, hook, want string
	}{
		{"acme/fraud", "fraud", ""},
		{"acme/other", "fraud", "does not let acme/other use"},
		{"acme/other", "none", "no hook"},
	} {
		err := d.Usable(registry.MustModelName(test.model), test.hook)
		if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
			t.Errorf("Usable(%s, %s) = %v, want %q", test.model, test.hook, err, test.want)
		}
	}
}

func BenchmarkDispatch(b *testing.B) {
	o := newOutbox(b)
	delivered := make(chan struct{}, 1024)
	r := &receiver{answer: func(context.Context, registry.Event, int) (int, error) {
		delivered <- struct{}{}
		return 200, nil
	}}
	d, stop := run(o, r)
	n := 0
	for b.Loop() {
		n++
		o.announce("a", n, n)
		d.Poke()
		<-delivered
	}
	stop()
}
