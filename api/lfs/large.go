package lfs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
)

// A batch that is longer than smallBatchBytes is held in memory together with few others: of callers with a token
// largeBatches at a time, and of those without as many. Git LFS names 100 objects at a time, in some 12 KiB.
const (
	smallBatchBytes = 64 << 10
	largeBatches    = 4
	// largeWait is how long a large batch waits for its place, and after how long somebody whose batch has none
	// should come again.
	largeWait = 10 * time.Second
	// largeTime is how long the rest of a large batch may take to come.
	largeTime = 30 * time.Second
)

// places are what large batches take. They are safe for use by many goroutines.
type places struct {
	known, strangers chan struct{}
	wait, time       time.Duration
}

func newPlaces(wait, time time.Duration) *places {
	return &places{
		make(chan struct{}, largeBatches), make(chan struct{}, largeBatches), cmp.Or(wait, largeWait), cmp.Or(time, largeTime),
	}
}

// take waits for a place, and gives the function that leaves it.
func (p *places) take(ctx context.Context, known bool) (leave func(), err error) {
	free := p.strangers
	if known {
		free = p.known
	}
	patience := time.NewTimer(p.wait)
	defer patience.Stop()
	select {
	case free <- struct{}{}:
		return func() { <-free }, nil
	case <-patience.C:
		return nil, tooOftenError{p.wait}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readBatch reads a batch request. Done must be called when it is answered.
func (h *Handler) readBatch(c echo.Context, in *batchRequest) (done func(), err error) {
	body := http.MaxBytesReader(c.Response(), c.Request().Body, maxBatchBytes)
	var text bytes.Buffer
	done = func() {}
	_, err = io.Copy(&text, io.LimitReader(body, smallBatchBytes+1))
	if err == nil && text.Len() > smallBatchBytes {
		if done, err = h.large.take(c.Request().Context(), door.Identity(c).Authenticated()); err != nil {
			return nil, err
		}
		_, err = io.Copy(&text, timely{body, time.Now().Add(h.large.time)})
	}
	if err == nil {
		err = json.NewDecoder(&text).Decode(in)
	}
	if err == nil {
		return done, nil
	}
	done()
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return nil, fmt.Errorf("a batch is at most %d bytes long: %w", maxBatchBytes, registry.ErrTooLarge)
	case errors.Is(err, errLate):
		c.Response().Header().Set(echo.HeaderConnection, "close") // or net/http waits for the rest before it answers
		return nil, err
	}
	return nil, unprocessableError{registry.Invalid("", "the body is not a batch request in JSON")}
}

// timely reads until a point in time.
type timely struct {
	io.Reader
	end time.Time
}

var errLate = statusError{http.StatusRequestTimeout, "the batch request did not come in time; name fewer objects at a time"}

// Read implements io.Reader.
func (r timely) Read(p []byte) (int, error) {
	if time.Now().After(r.end) {
		return 0, errLate
	}
	return r.Reader.Read(p)
}
