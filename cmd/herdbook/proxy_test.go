package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// proxies are those of the scripts that run, by working directory.
var (
	proxiesMu sync.Mutex
	proxies   = map[string]*proxy{}
)

// proxy stands between clients and the server of a script, and is the network that breaks:
//
//	proxy start     listens, and sets ADDR, where the server is to listen, and PROXY, its own URL
//	proxy cut N     lets N bytes more go from clients to the server; then all connections break, and
//	                there are no new ones
//	proxy stall N   the same, but the connection that sends the last of them stays open and is silent
//	proxy stalled   waits until that has happened
//	proxy open      lets everything through again; what is silent breaks
//	proxy sent      prints how many bytes went from clients to the server since it was asked last
func proxyCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 || neg {
		ts.Fatalf("usage: proxy start | cut N | stall N | stalled | open | sent")
	}
	work := ts.Getenv("WORK")
	proxiesMu.Lock()
	p := proxies[work]
	proxiesMu.Unlock()
	if (p == nil) != (args[0] == "start") {
		ts.Fatalf("proxy %s: a proxy runs: %v", args[0], p != nil)
	}
	switch args[0] {
	case "start":
		startProxy(ts, work)
	case "cut", "stall":
		if len(args) != 2 {
			ts.Fatalf("usage: proxy %s N", args[0])
		}
		n, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		p.limit(n, args[0] == "stall")
	case "stalled":
		select {
		case <-p.silence():
		case <-time.After(20 * time.Second):
			ts.Fatalf("proxy stalled: no connection has sent so much")
		}
	case "open":
		p.limit(-1, false)
	case "sent":
		p.mu.Lock()
		fmt.Fprintf(ts.Stdout(), "%d\n", p.sent)
		p.sent = 0
		p.mu.Unlock()
	default:
		ts.Fatalf("proxy: there is no %s", args[0])
	}
}

type proxy struct {
	server string

	mu     sync.Mutex
	sent   int64
	left   int64         // bytes that may still be sent; less than 0 is any number
	stall  bool          // what comes then is silence
	silent chan struct{} // closed when it is there
	once   *sync.Once    // closes it
	over   chan struct{} // closed when the limit is another one
	open   map[net.Conn]bool
}

func startProxy(ts *testscript.TestScript, work string) {
	if ts.Getenv("ADDR") == "" {
		ts.Setenv("ADDR", freeAddress(ts))
	}
	p := &proxy{server: ts.Getenv("ADDR"), left: -1, silent: make(chan struct{}), once: &sync.Once{}, over: make(chan struct{}), open: map[net.Conn]bool{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv("PROXY", "http://"+l.Addr().String())
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { p.serve(client) })
		}
	})
	proxiesMu.Lock()
	proxies[work] = p
	proxiesMu.Unlock()
	ts.Defer(func() {
		l.Close()
		p.limit(0, false)
		wait.Wait()
		proxiesMu.Lock()
		delete(proxies, work)
		proxiesMu.Unlock()
	})
}

func (p *proxy) limit(n int64, stall bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.over)
	p.left, p.stall, p.silent, p.once, p.over = n, stall, make(chan struct{}), &sync.Once{}, make(chan struct{})
	if n == 0 {
		p.breakAll()
	}
}

func (p *proxy) silence() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.silent
}

// breakAll is called with mu held.
func (p *proxy) breakAll() {
	for c := range p.open {
		c.Close()
	}
	clear(p.open)
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	if p.left == 0 {
		p.mu.Unlock()
		return
	}
	p.open[client], p.open[server] = true, true
	p.mu.Unlock()
	var wait sync.WaitGroup
	wait.Go(func() {
		_, _ = io.Copy(client, server)
		client.Close()
	})
	p.forward(server, client)
	server.Close()
	wait.Wait()
	p.mu.Lock()
	delete(p.open, client)
	delete(p.open, server)
	p.mu.Unlock()
}

// forward sends what the client sends, as far as it may.
func (p *proxy) forward(server, client net.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := client.Read(buffer)
		pass, over := p.take(n)
		if _, writeErr := server.Write(buffer[:pass]); writeErr != nil || err != nil {
			return
		}
		if over != nil {
			<-over
			return
		}
	}
}

// take says how many of n bytes may pass. After the last that may, the connection ends when the channel
// is closed.
func (p *proxy) take(n int) (pass int, over <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pass = n
	if p.left >= 0 {
		pass = int(min(int64(n), p.left))
		p.left -= int64(pass)
	}
	p.sent += int64(pass)
	switch {
	case p.left != 0:
		return pass, nil
	case p.stall:
		p.once.Do(func() { close(p.silent) })
		return pass, p.over
	}
	now := make(chan struct{})
	close(now)
	return pass, now
}
