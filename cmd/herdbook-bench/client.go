package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// client talks HTTP to a server and counts what it sends.
type client struct {
	*http.Client
	server *server
	sent   atomic.Int64 // bytes, with all headers
	bearer string       // token of an OCI registry that asked for one
}

// connect makes a client that keeps up to connections open.
func connect(s *server, connections int) *client {
	c := &client{server: s}
	dialer := net.Dialer{Timeout: 10 * time.Second}
	c.Client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countingConn{conn, &c.sent}, nil
		},
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
		WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10,
	}}
	return c
}

func (c *client) close() { c.CloseIdleConnections() }

type countingConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// statusError is an answer that was not hoped for.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// do sends a request and gives the answer when its status is want.
func (c *client) do(ctx context.Context, method, address string, body io.Reader, size int64, header map[string]string, want int) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, err
	}
	if r.ContentLength = size; size == 0 {
		r.Body = http.NoBody
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	answer, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		answer.Body.Close()
		return nil, &statusError{answer.StatusCode, fmt.Sprintf("%s %s answered %s, want %d: %s", method, r.URL.Path, answer.Status, want, text)}
	}
	return answer, nil
}

// read is do for an answer that fits into memory.
func (c *client) read(ctx context.Context, method, address string, body []byte, header map[string]string, want int) ([]byte, http.Header, error) {
	answer, err := c.do(ctx, method, address, bytes.NewReader(body), int64(len(body)), header, want)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	return got, answer.Header, err
}

// fetch reads an answer and compares it with the content.
func (c *client) fetch(ctx context.Context, address string, header map[string]string, want content) error {
	answer, err := c.do(ctx, http.MethodGet, address, nil, 0, header, http.StatusOK)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	buf := buffers.Get().(*[bufferBytes]byte)
	defer buffers.Put(buf)
	if err := want.same(answer.Body, buf[:]); err != nil {
		return fmt.Errorf("GET %s: %w", answer.Request.URL.Path, err)
	}
	return nil
}

// basic is the credentials as a header; none where everybody may do everything.
func (s *server) basic() map[string]string {
	if s.password == "" {
		return nil
	}
	return map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("bench:"+s.password))}
}

const jsonMediaType = "application/json"

// makeModel makes the model, so that a first push to it makes nothing but what a push makes.
func (c *client) makeModel(ctx context.Context) error {
	body, err := json.Marshal(map[string]string{"name": model, "visibility": "public"})
	if err != nil {
		return err
	}
	_, _, err = c.read(ctx, http.MethodPost, c.server.url()+"/api/v1/models", body, with(c.server.basic(), "Content-Type", jsonMediaType), http.StatusCreated)
	return err
}

// with adds a header.
func with(header map[string]string, name, value string) map[string]string {
	out := map[string]string{name: value}
	for n, v := range header {
		out[n] = v
	}
	return out
}

// challengePart is one parameter of a WWW-Authenticate header. Source: RFC 9110, section 11.6.1.
var challengePart = regexp.MustCompile(`([a-z]+)="([^"]*)"`)

// tokenAddress is where a challenge says that a token for the repository is to be had.
// Source: distribution project, docs/spec/auth/token.md.
func tokenAddress(challenge, repository string) (string, error) {
	text, ok := strings.CutPrefix(challenge, "Bearer ")
	query := url.Values{"scope": {"repository:" + repository + ":pull,push"}}
	var realm *url.URL
	var err error
	for _, m := range challengePart.FindAllStringSubmatch(text, -1) {
		switch m[1] {
		case "realm":
			realm, err = url.Parse(m[2])
		case "service":
			query.Set("service", m[2])
		}
	}
	if !ok || err != nil || realm == nil || realm.Host == "" {
		return "", fmt.Errorf("no address for a token in %.100q", challenge)
	}
	realm.RawQuery = query.Encode()
	return realm.String(), nil
}

// login asks an OCI registry for a token for the repository, if it wants one.
func (c *client) login(ctx context.Context, repository string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server.url()+"/v2/", http.NoBody)
	if err != nil {
		return err
	}
	answer, err := c.Do(r)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusUnauthorized {
		return nil
	}
	at, err := tokenAddress(answer.Header.Get("WWW-Authenticate"), repository)
	if err != nil {
		return err
	}
	text, _, err := c.read(ctx, http.MethodGet, at, nil, c.server.basic(), http.StatusOK)
	if err != nil {
		return err
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(text, &got); err != nil {
		return fmt.Errorf("answer with a token: %w", err)
	}
	if c.bearer = got.Token; c.bearer == "" {
		c.bearer = got.AccessToken
	}
	if c.bearer == "" {
		return errors.New("the registry gave no token")
	}
	return nil
}

func (c *client) registryHeader() map[string]string {
	if c.bearer == "" {
		return nil
	}
	return map[string]string{"Authorization": "Bearer " + c.bearer}
}

// pushBlob uploads content by a POST and one PUT. Source: OCI distribution specification v1.1, "POST then PUT".
func (c *client) pushBlob(ctx context.Context, repository, sum string, body io.Reader, size int64) error {
	answer, err := c.do(ctx, http.MethodPost, c.server.url()+"/v2/"+repository+"/blobs/uploads/", nil, 0, c.registryHeader(), http.StatusAccepted)
	if err != nil {
		return err
	}
	answer.Body.Close()
	at, err := answer.Request.URL.Parse(answer.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("address of an upload: %w", err)
	}
	query := at.Query()
	query.Set("digest", "sha256:"+sum)
	at.RawQuery = query.Encode()
	header := with(c.registryHeader(), "Content-Type", "application/octet-stream")
	if answer, err = c.do(ctx, http.MethodPut, at.String(), body, size, header, http.StatusCreated); err == nil {
		answer.Body.Close()
	}
	return err
}
