package lfs_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/api/internal/apitest"
)

// largeBatch is longer than a batch that needs no place.
var largeBatch = `{"operation":"download","objects":[],"x":"` + strings.Repeat("x", 64<<10) + `"}`

// half sends a batch of a stranger of a length, but for what comes behind the last but one byte of largeBatch.
func half(t *testing.T, s *apitest.Server, length int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "POST %s/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", base, length, largeBatch[:len(largeBatch)-1])
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// Who sends large batches and does not end them takes no memory but that of few.
func TestLargeBatches(t *testing.T) {
	const wait = 100 * time.Millisecond
	s, _ := start(t, func(c *apitest.Config) { c.LFS.SetLarge(wait, time.Minute) })
	send := func(body string, header ...string) apitest.Answer {
		return s.Do("POST", base+"/batch", body, header...)
	}
	name, value := s.Bearer()
	if a := send(largeBatch); a.Status != 200 {
		t.Fatalf("a large batch = %d %s, want 200", a.Status, a.Body)
	}
	var halves []net.Conn
	for range 4 {
		halves = append(halves, half(t, s, len(largeBatch)))
	}
	deadline := time.Now().Add(10 * time.Second)
	a := send(largeBatch)
	for a.Status == 200 && time.Now().Before(deadline) { // until all four are there
		a = send(largeBatch)
	}
	if a.Status != http.StatusTooManyRequests || a.Header.Get("Retry-After") != "1" {
		t.Errorf("a large batch beside four that do not end = %d %s with Retry-After %q, want 429 and 1", a.Status, a.Body, a.Header.Get("Retry-After"))
	}
	if a := send(`{"operation":"download","objects":[]}`); a.Status != 200 {
		t.Errorf("a small batch beside them = %d %s, want 200", a.Status, a.Body)
	}
	if a := send(largeBatch, name, value); a.Status != 200 {
		t.Errorf("a large batch with a token beside them = %d %s, want 200", a.Status, a.Body)
	}
	for _, conn := range halves {
		if _, err := fmt.Fprint(conn, "}"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || r.StatusCode != 200 {
			t.Errorf("one of the four, once it ended = %v, %v, want 200", r, err)
		}
	}
	if a := send(largeBatch); a.Status != 200 {
		t.Errorf("a large batch after they ended = %d %s, want 200", a.Status, a.Body)
	}
}

func TestLargeBatchThatComesTooSlowly(t *testing.T) {
	const all = 200 * time.Millisecond
	s, _ := start(t, func(c *apitest.Config) { c.LFS.SetLarge(0, all) })
	conn := half(t, s, len(largeBatch)+10_000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			time.Sleep(all / 10)
			if _, err := fmt.Fprint(conn, " "); err != nil {
				return
			}
		}
	}()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || r.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a large batch that comes byte by byte = %v, %v, want 408", r, err)
	}
	_ = conn.Close()
	<-ended
}
