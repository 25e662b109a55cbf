package door

import (
	"errors"
	"io"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
)

// Patience is how long a client may take for a part of an answer; see [Patient].
const Patience = time.Minute

// patientPart is how much of an answer has to be taken within the patience, in bytes: all lines are faster than this.
const patientPart = 1 << 20

// smallPart is up to how many bytes one copy is cheaper than to have the kernel send them by itself.
const smallPart = 4 << 10

var smallParts = sync.Pool{New: func() any { return new([smallPart]byte) }}

// Patient makes a client that does not take its answer lose the connection, when a part of the answer has waited
// for longer than patience: it would keep a process or a file open for as long as it likes. How long the whole
// answer takes does not matter. End must be called when the handler has written it: it gives the client as long for what the server
// still holds. The next request on the connection may come later than that, since net/http ends the deadline with the answer.
func Patient(c echo.Context, patience time.Duration) (end func()) {
	w := &patientWriter{c.Response().Writer, http.NewResponseController(c.Response().Writer), patience}
	c.Response().Writer = w
	return w.begin
}

// patientWriter sets a deadline for each part that it writes.
type patientWriter struct {
	http.ResponseWriter
	connection *http.ResponseController
	patience   time.Duration
}

// Unwrap implements what [http.ResponseController] looks for.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// begin begins to write a part.
func (w *patientWriter) begin() {
	// It fails where a test has no connection; then nobody can stall.
	_ = w.connection.SetWriteDeadline(time.Now().Add(w.patience))
}

// Write implements io.Writer.
func (w *patientWriter) Write(p []byte) (n int, err error) {
	for {
		w.begin()
		part := p[n:min(len(p), n+patientPart)]
		wrote, err := w.ResponseWriter.Write(part)
		if n += wrote; n == len(p) || err != nil {
			return n, err
		}
	}
}

// ReadFrom implements io.ReaderFrom, so that the kernel sends files.
func (w *patientWriter) ReadFrom(r io.Reader) (n int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: r, N: math.MaxInt64}
	}
	if limited.N <= smallPart {
		return w.sendSmall(limited)
	}
	for limited.N > 0 {
		w.begin()
		// The connection looks through one io.LimitedReader only.
		part := &io.LimitedReader{R: limited.R, N: min(limited.N, patientPart)}
		sent, err := io.Copy(w.ResponseWriter, part)
		n += sent
		limited.N -= sent
		if err != nil || part.N > 0 {
			return n, err
		}
	}
	return n, nil
}

// sendSmall sends something with the header in front of it, where the kernel would be given the one and then the other.
func (w *patientWriter) sendSmall(r io.Reader) (int64, error) {
	buffer := smallParts.Get().(*[smallPart]byte)
	defer smallParts.Put(buffer)
	filled := 0
	var readErr error
	for readErr == nil && filled < len(buffer) {
		var n int
		n, readErr = r.Read(buffer[filled:])
		filled += n
	}
	if readErr == io.EOF {
		readErr = nil
	}
	if filled == 0 {
		return 0, readErr
	}
	n, err := w.Write(buffer[:filled])
	return int64(n), errors.Join(readErr, err)
}

// FlushError implements what [http.ResponseController] looks for.
func (w *patientWriter) FlushError() error {
	w.begin()
	return w.connection.Flush()
}
