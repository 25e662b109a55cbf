package door_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
)

// patient serves handler.
func patient(t *testing.T, patience time.Duration, handler echo.HandlerFunc) *httptest.Server {
	e := echo.New()
	e.GET("/", func(c echo.Context) error {
		defer door.Patient(c, patience)()
		return handler(c)
	})
	e.GET("/plain", func(c echo.Context) error { return c.String(http.StatusOK, "hello") })
	s := httptest.NewServer(e)
	t.Cleanup(s.Close)
	return s
}

// get sends a request.
func get(t *testing.T, s *httptest.Server) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	ask(t, conn, "/")
	return conn, bufio.NewReader(conn)
}

func ask(t *testing.T, conn net.Conn, target string) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
		t.Fatal(err)
	}
}

func TestPatient(t *testing.T) {
	const size = 32 << 20 // more than a connection holds
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	path := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(c echo.Context) error{
		"one write": func(c echo.Context) error { return c.Blob(http.StatusOK, "text/plain", content) },
		"many flushed writes": func(c echo.Context) error {
			for part := content; len(part) > 0; part = part[1<<10:] {
				if _, err := c.Response().Write(part[:1<<10]); err != nil {
					return err
				}
				c.Response().Flush()
			}
			return nil
		},
		"a file": func(c echo.Context) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			c.Response().Header().Set(echo.HeaderContentLength, fmt.Sprint(size))
			_, err = door.Writer{Response: c.Response()}.ReadFrom(f)
			return err
		},
		"a part of a file": func(c echo.Context) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			c.Response().Header().Set(echo.HeaderContentLength, fmt.Sprint(size))
			_, err = io.CopyN(door.Writer{Response: c.Response()}, f, size)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("not taken", func(t *testing.T) {
				t.Parallel()
				ended := make(chan error, 1)
				s := patient(t, 200*time.Millisecond, func(c echo.Context) error {
					err := write(c)
					ended <- err
					return err
				})
				get(t, s)
				select {
				case err := <-ended:
					if err == nil {
						t.Errorf("an answer of %d bytes that nobody takes was written", size)
					}
				case <-time.After(10 * time.Second):
					t.Error("an answer that nobody takes is still being written after 10 s, want an end after 200 ms")
				}
			})
			t.Run("taken", func(t *testing.T) {
				t.Parallel()
				const patience = 300 * time.Millisecond
				s := patient(t, patience, write)
				conn, in := get(t, s)
				for i := range 2 {
					if i > 0 {
						time.Sleep(2 * patience) // the connection may be idle for longer
						ask(t, conn, "/")
					}
					r, err := http.ReadResponse(in, nil)
					if err != nil {
						t.Fatalf("answer %d: %v", i, err)
					}
					// Longer than the patience in all, and never without a byte for so long.
					for range 4 {
						time.Sleep(patience / 3)
						if _, err := io.CopyN(io.Discard, r.Body, size/8); err != nil {
							t.Fatalf("answer %d: %v", i, err)
						}
					}
					if n, err := io.Copy(io.Discard, r.Body); n != size/2 || err != nil {
						t.Errorf("rest of answer %d = %d bytes, %v, want %d", i, n, err, size/2)
					}
				}
				time.Sleep(2 * patience)
				ask(t, conn, "/plain")
				r, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatalf("another request on the connection, later: %v", err)
				}
				if body, err := io.ReadAll(r.Body); string(body) != "hello" || err != nil {
					t.Errorf("another request on the connection, later = %q, %v, want hello", body, err)
				}
			})
		})
	}
}

// The handler may work for long between what it writes, and behind that.
func TestPatientWithSlowHandler(t *testing.T) {
	const patience = 100 * time.Millisecond
	s := patient(t, patience, func(c echo.Context) error {
		for i, part := range []string{"one ", "two ", "three"} {
			if _, err := io.WriteString(c.Response(), part); err != nil {
				return err
			}
			if i == 1 {
				c.Response().Flush()
			}
			time.Sleep(3 * patience)
		}
		return nil
	})
	_, in := get(t, s)
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r.Body); string(body) != "one two three" || err != nil {
		t.Errorf("answer of a slow handler = %q, %v, want one two three", body, err)
	}
}

func TestPatientWithoutConnection(t *testing.T) {
	w := serve("/", "/", func(c echo.Context) error {
		defer door.Patient(c, time.Minute)()
		return c.String(http.StatusOK, "hello")
	})
	if w.Body.String() != "hello" {
		t.Errorf("body = %q, want hello", w.Body)
	}
}
