package api

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
)

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// requestID gives each request an id, or keeps the one that a proxy gave it.
func (s *Server) requestID(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := c.Request().Header.Get(echo.HeaderXRequestID)
		if !requestIDForm.MatchString(id) {
			var random [12]byte
			rand.Read(random[:]) // crypto/rand never fails
			id = hex.EncodeToString(random[:])
		}
		c.Response().Header().Set(echo.HeaderXRequestID, id)
		return next(c)
	}
}

// patience ends requests whose body does not come: a body may take hours on a slow line, but
// something of it has to arrive now and then.
func (s *Server) patience(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if r := c.Request(); r.Body != nil && r.Body != http.NoBody {
			r.Body = &patientBody{r.Body, http.NewResponseController(c.Response().Writer), s.Patience}
		}
		return next(c)
	}
}

// patientBody sets a deadline for each read.
type patientBody struct {
	io.ReadCloser
	connection *http.ResponseController
	patience   time.Duration
}

// Read implements io.Reader.
func (b *patientBody) Read(p []byte) (int, error) {
	// It fails where a test has no connection; then nobody can stall.
	_ = b.connection.SetReadDeadline(time.Now().Add(b.patience))
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		// From here on the server listens for whether the client is still there, for as long as the
		// answer takes.
		_ = b.connection.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing came of the body for %s: %w", b.patience, registry.ErrUnavailable)
	}
	return n, err
}

// sameOrigin refuses what a page of another site makes a browser do here: a browser adds the
// password that it was given once, or none where everybody may do everything.
func (s *Server) sameOrigin(next echo.HandlerFunc) echo.HandlerFunc {
	protection := http.NewCrossOriginProtection()
	return func(c echo.Context) error {
		if protection.Check(c.Request()) != nil {
			return fmt.Errorf("a page of another site sent this request: %w", registry.ErrForbidden)
		}
		return next(c)
	}
}

// identify finds out who sent the request. Health and readiness answer everybody.
func (s *Server) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if p := c.Path(); p == "/healthz" || p == "/readyz" {
			return next(c)
		}
		id, err := s.auth.Identify(c.Request())
		if err != nil {
			return err
		}
		door.SetIdentity(c, id)
		return next(c)
	}
}

// recover turns a panic into an internal error. A connection that a handler broke off on
// purpose stays broken off.
func (s *Server) recover(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if r := recover(); r != nil {
				if r == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
					panic(r)
				}
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		return next(c)
	}
}

// observe counts the request and writes a line of the access log. The query is left out: it
// may hold a signature.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		err := next(c)
		if err != nil {
			c.Error(err)
		}
		r, w, took := c.Request(), c.Response(), time.Since(start)
		protocol := protocolOf(c)
		s.metrics.requests.WithLabelValues(protocol, methodOf(r), strconv.Itoa(w.Status)).Inc()
		s.metrics.seconds.WithLabelValues(protocol).Observe(took.Seconds())
		s.metrics.bytes.WithLabelValues(protocol, "out").Add(float64(max(0, w.Size)))
		s.metrics.bytes.WithLabelValues(protocol, "in").Add(float64(max(0, r.ContentLength)))
		if c.Path() == "/healthz" || c.Path() == "/readyz" || c.Path() == "/metrics" {
			return nil
		}
		s.Log.LogAttrs(r.Context(), slog.LevelInfo, "request",
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", w.Status),
			slog.Int64("bytes", w.Size), slog.Duration("took", took), slog.String("actor", door.Identity(c).Name),
			slog.String("remote", c.RealIP()), slog.String("request", w.Header().Get(echo.HeaderXRequestID)))
		return nil
	}
}

// methodOf is the method of a request as a label of few values: a client may send any word.
func methodOf(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return r.Method
	}
	return "other"
}

// protocolOf is the door that a request came through, as a label of few values.
func protocolOf(c echo.Context) string {
	route := c.Path()
	switch {
	case strings.HasPrefix(route, "/api/"):
		return "api"
	case strings.HasPrefix(route, "/v2"):
		return "oci"
	case strings.Contains(route, "/info/lfs"):
		return "lfs"
	case strings.HasSuffix(route, "/info/refs"), strings.HasSuffix(route, "/git-upload-pack"), strings.HasSuffix(route, "/git-receive-pack"):
		return "git"
	case route == "/healthz", route == "/readyz", route == "/metrics":
		return "operations"
	}
	return "web"
}

// requestMetrics are what is counted of every request.
type requestMetrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
}

func newRequestMetrics(r *prometheus.Registry) requestMetrics {
	m := requestMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "herdbook_http_requests_total", Help: "HTTP requests answered, by protocol, method and status.",
		}, []string{"protocol", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "herdbook_http_request_duration_seconds", Help: "Time to answer an HTTP request, by protocol.",
			Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 600},
		}, []string{"protocol"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "herdbook_http_body_bytes_total", Help: "Bytes of HTTP bodies, by protocol and direction as the server sees it.",
		}, []string{"protocol", "direction"}),
	}
	r.MustRegister(m.requests, m.seconds, m.bytes)
	return m
}

func (s *Server) exposeMetrics(c echo.Context) error {
	promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{}).ServeHTTP(c.Response(), c.Request())
	return nil
}

func (s *Server) health(c echo.Context) error { return c.String(http.StatusOK, "ok\n") }

func (s *Server) ready(c echo.Context) error {
	if err := s.Ready(c.Request().Context()); err != nil {
		s.Log.WarnContext(c.Request().Context(), "not ready", "reason", err.Error())
		return c.String(http.StatusServiceUnavailable, "not ready\n")
	}
	return c.String(http.StatusOK, "ok\n")
}

// intParam reads a whole number of the query; 0 when it is not there.
func intParam(c echo.Context, name string, highest int) (int, error) {
	text := c.QueryParam(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > highest {
		return 0, registry.Invalid(name, "%s is a whole number from 1 to %d", name, highest)
	}
	return n, nil
}
