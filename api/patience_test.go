package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/apitest"
)

// slow is a door whose handler reads its body and then works for long.
type slow struct{ takes time.Duration }

func (s slow) Register(e *echo.Echo) {
	e.POST("/slow", func(c echo.Context) error {
		body, err := io.ReadAll(c.Request().Body)
		if err != nil {
			return err
		}
		select {
		case <-c.Request().Context().Done():
			return fmt.Errorf("the request was given up: %w", c.Request().Context().Err())
		case <-time.After(s.takes):
		}
		return c.String(http.StatusOK, string(body))
	})
}

func TestBodiesThatStall(t *testing.T) {
	const patience = 150 * time.Millisecond
	s := apitest.Start(t, func(c *apitest.Config) {
		c.API.Patience = patience
		c.API.Doors = append(c.API.Doors, slow{4 * patience})
	})
	dial := func(request string) (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		return conn, bufio.NewReader(conn)
	}
	post := "POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

	t.Run("nothing more comes", func(t *testing.T) {
		start := time.Now()
		_, answer := dial(fmt.Sprintf(post, 100) + "some of it")
		r, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Fatalf("a body that stalls: %v, want an answer", err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusServiceUnavailable || time.Since(start) < patience {
			t.Errorf("a body that stalls is answered with %d after %s, want 503 after %s", r.StatusCode, time.Since(start), patience)
		}
	})

	t.Run("a slow line", func(t *testing.T) {
		conn, answer := dial(fmt.Sprintf(post, 6))
		for _, b := range "abcdef" {
			time.Sleep(patience / 3)
			if _, err := conn.Write([]byte(string(b))); err != nil {
				t.Fatal(err)
			}
		}
		r, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		// The handler works for longer than a body may stall, and is not given up.
		if body, _ := io.ReadAll(r.Body); r.StatusCode != 200 || string(body) != "abcdef" {
			t.Errorf("a body in six pieces, each in time, is answered with %d %q, want 200 and the body", r.StatusCode, body)
		}
		// Nor is the connection, which may be idle for longer than that.
		time.Sleep(2 * patience)
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if r, err := http.ReadResponse(answer, nil); err != nil || r.StatusCode != 200 {
			t.Errorf("the next request on the connection: %v, %v, want 200", r, err)
		}
	})
}
