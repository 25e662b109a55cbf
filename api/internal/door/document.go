package door

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
)

// smallBytes is what every request may be held in memory of.
const smallBytes = 64 << 10

// Documents reads the bodies of requests that are held in memory as a whole. Of those that are longer than 64 KiB few are held at a
// time: Places of callers with a token, and as many of those without.
type Documents struct {
	// Places defaults to 4.
	Places int
	// Wait is how long a long one waits for its place, and after how long somebody whose document has none should come
	// again. The default is 10 s.
	Wait time.Duration
	// Time is how long the rest of a long one may take to come. The default is 30 s.
	Time time.Duration

	known, strangers chan struct{}
}

// NewDocuments makes Documents ready for use by many goroutines.
func NewDocuments(d Documents) *Documents {
	if d.Places == 0 {
		d.Places = 4
	}
	if d.Wait == 0 {
		d.Wait = 10 * time.Second
	}
	if d.Time == 0 {
		d.Time = 30 * time.Second
	}
	d.known, d.strangers = make(chan struct{}, d.Places), make(chan struct{}, d.Places)
	return &d
}

// BusyError says that there is no place for a long document.
type BusyError struct{ Wait time.Duration }

func (e *BusyError) Error() string {
	return fmt.Sprintf("there are too many long requests at this moment; try again in %d s", int(e.Wait.Seconds()))
}

// Unwrap implements errors.
func (e *BusyError) Unwrap() error { return registry.ErrUnavailable }

// ErrLate reports that a long document did not come in time. The connection is closed after the answer.
var ErrLate = errors.New("the body did not come in time")

// Read reads the body of a request. Done must be called when the text is not needed any more. The errors are [registry.ErrTooLarge],
// [*BusyError], ErrLate, and what a connection that ends returns.
func (d *Documents) Read(c echo.Context, maxBytes int64) (text []byte, done func(), err error) {
	body := http.MaxBytesReader(c.Response(), c.Request().Body, maxBytes)
	var in bytes.Buffer
	done = func() {}
	_, err = io.Copy(&in, io.LimitReader(body, smallBytes+1))
	if err == nil && in.Len() > smallBytes {
		if done, err = d.take(c.Request().Context(), Identity(c).Authenticated()); err != nil {
			return nil, nil, err
		}
		_, err = io.Copy(&in, timely{body, time.Now().Add(d.Time)})
	}
	if err == nil {
		return in.Bytes(), done, nil
	}
	done()
	if errors.As(err, new(*http.MaxBytesError)) {
		err = fmt.Errorf("the body is longer than %d bytes: %w", maxBytes, registry.ErrTooLarge)
	}
	if errors.Is(err, ErrLate) {
		c.Response().Header().Set(echo.HeaderConnection, "close") // or net/http waits for the rest before it answers
	}
	return nil, nil, err
}

// take waits for a place, and gives the function that leaves it.
func (d *Documents) take(ctx context.Context, known bool) (leave func(), err error) {
	free := d.strangers
	if known {
		free = d.known
	}
	patience := time.NewTimer(d.Wait)
	defer patience.Stop()
	select {
	case free <- struct{}{}:
		return func() { <-free }, nil
	case <-patience.C:
		return nil, &BusyError{d.Wait}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// timely reads until a point in time.
type timely struct {
	io.Reader
	end time.Time
}

// Read implements io.Reader.
func (r timely) Read(p []byte) (int, error) {
	if time.Now().After(r.end) {
		return 0, ErrLate
	}
	return r.Reader.Read(p)
}
