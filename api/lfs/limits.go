package lfs

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/time/rate"

	"github.com/herdbook/herdbook/api/internal/door"
)

// caller is whose requests are counted together: those with one token, or from one address without a
// token.
func caller(c echo.Context) string {
	if id := door.Identity(c).TokenID; id != "" {
		return "token " + id
	}
	return "address " + c.RealIP()
}

// limits bounds how often each caller may do something. It is safe for use by many goroutines.
type limits struct {
	perMinute int

	mu      sync.Mutex
	callers map[string]*rate.Limiter
}

// newLimits lets every caller do something perMinute times at once and as often each minute; with 0,
// any number of times.
func newLimits(perMinute int) *limits {
	return &limits{perMinute: perMinute, callers: map[string]*rate.Limiter{}}
}

// maxCallers is how many callers are remembered: those who did nothing for a minute are forgotten first.
const maxCallers = 10_000

// take counts one time, or says how long the caller has to wait for it.
func (l *limits) take(caller string) (wait time.Duration) {
	if l.perMinute <= 0 {
		return 0
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	one, known := l.callers[caller]
	if !known {
		l.forget(now)
		one = rate.NewLimiter(rate.Limit(float64(l.perMinute)/60), l.perMinute)
		l.callers[caller] = one
	}
	r := one.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// forget makes place for one caller more.
func (l *limits) forget(now time.Time) {
	if len(l.callers) < maxCallers {
		return
	}
	for name, one := range l.callers {
		if one.TokensAt(now) >= float64(l.perMinute) {
			delete(l.callers, name)
		}
	}
	if len(l.callers) >= maxCallers {
		clear(l.callers) // rather let some through than grow for ever
	}
}

// tooOftenError is a 429: the client has to wait.
type tooOftenError struct{ wait time.Duration }

func (e tooOftenError) seconds() int { return int(math.Ceil(e.wait.Seconds())) }

func (e tooOftenError) Error() string {
	return fmt.Sprintf("too many batch requests in a short time; try again in %d s", e.seconds())
}
