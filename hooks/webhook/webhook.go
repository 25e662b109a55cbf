// Package webhook posts events to an HTTP address as CloudEvents 1.0 in JSON, signed as the
// Standard Webhooks specification says, so that the receiver can tell that they are from this
// server and not a repetition.
//
// An address on the server's own network is refused unless the operator allows it: by the
// address that the name resolves to at the moment of the connection, not before. Redirects are
// not followed.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// Config of a webhook.
type Config struct {
	URL          string
	Secret       string // "whsec_" and base64, or any text
	AllowPrivate bool   // the address may be on loopback or in a private network
	Source       string // the public address of this server: the "source" of the events
	UserAgent    string
}

// Sink posts to one address.
type Sink struct {
	Config
	key    []byte
	client *http.Client
}

// secretPrefix marks a secret that is written in base64.
// Source: Standard Webhooks specification, "Signature scheme".
const secretPrefix = "whsec_"

// New checks a configuration and makes a Sink of it.
func New(c Config) (*Sink, error) {
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, errors.New("url is not an http or https address")
	}
	key := []byte(c.Secret)
	if text, ok := strings.CutPrefix(c.Secret, secretPrefix); ok {
		if key, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, errors.New("the secret begins with whsec_ and is not base64 after that")
		}
	}
	if len(key) < 16 {
		return nil, errors.New("the secret is shorter than 16 bytes; make one with: echo whsec_$(openssl rand -base64 32)")
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: guard(c.AllowPrivate)}
	return &Sink{Config: c, key: key, client: &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// guard refuses to connect to addresses that only this machine or its network reaches.
func guard(allowPrivate bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		host, err := netip.ParseAddrPort(address)
		if err != nil {
			return errors.New("the address cannot be read")
		}
		ip := embedded(host.Addr())
		switch {
		case ip.IsLinkLocalUnicast() || ip.IsMulticast() || never.Contains(ip) || ip == broadcast || ip.IsUnspecified():
			return fmt.Errorf("%s is never called", ip) // cloud metadata lives there
		case !allowPrivate && (ip.IsLoopback() || ip.IsPrivate() || shared.Contains(ip)):
			return fmt.Errorf("%s is in a private network; set allow_private on the hook if that is meant", ip)
		}
		return nil
	}
}

// Source: the IANA special-purpose address registries.
var (
	never      = netip.MustParsePrefix("0.0.0.0/8") // this network; 0.0.0.0 reaches this machine
	broadcast  = netip.MustParseAddr("255.255.255.255")
	shared     = netip.MustParsePrefix("100.64.0.0/10") // of a provider
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	compatible = netip.MustParsePrefix("::/96")
)

// embedded is the IPv4 address that an IPv6 address leads to, if it does, else the address itself.
func embedded(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	b := ip.As16()
	switch {
	case ip.Is4() || ip.IsLoopback() || ip.IsUnspecified():
		return ip
	case nat64.Contains(ip) || compatible.Contains(ip):
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(ip):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return ip
}

// cloudEvent is the structured form. Source: CloudEvents 1.0.2, JSON event format, section 3.
type cloudEvent struct {
	SpecVersion string                     `json:"specversion"`
	ID          string                     `json:"id"`
	Source      string                     `json:"source"`
	Type        registry.EventType         `json:"type"`
	Subject     string                     `json:"subject,omitempty"`
	Time        time.Time                  `json:"time"`
	ContentType string                     `json:"datacontenttype"`
	Data        map[string]json.RawMessage `json:"data"`
}

// Body is an event as it is posted.
func (s *Sink) Body(e registry.Event) ([]byte, error) {
	data := map[string]json.RawMessage{}
	if len(e.Data) > 0 {
		if err := json.Unmarshal(e.Data, &data); err != nil {
			return nil, fmt.Errorf("data of event %s: %w", e.ID, err)
		}
	}
	add := func(name, value string) {
		if value != "" {
			data[name], _ = json.Marshal(value) // a string always encodes
		}
	}
	add("model", e.Model.String())
	add("version", e.Version.String())
	add("environment", e.Environment.String())
	add("actor", e.Actor)
	subject := e.Version.String()
	if !e.Environment.IsZero() {
		subject = strings.TrimSuffix(e.Environment.String()+"/"+subject, "/")
	}
	return json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: e.ID, Source: strings.TrimSuffix(s.Source, "/") + "/" + e.Model.String(), Type: e.Type,
		Subject: subject, Time: e.At, ContentType: "application/json", Data: data,
	})
}

// signature of a message. Source: Standard Webhooks specification, "Signature scheme".
func (s *Sink) signature(id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// Deliver implements the dispatcher's sink. Any answer of the 2xx kind is success.
func (s *Sink) Deliver(ctx context.Context, e registry.Event) (int, error) {
	body, err := s.Body(e)
	if err != nil {
		return 0, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("the address of the hook cannot be used")
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	r.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	r.Header.Set("User-Agent", s.UserAgent)
	r.Header.Set("Webhook-Id", e.ID)
	r.Header.Set("Webhook-Timestamp", timestamp)
	r.Header.Set("Webhook-Signature", s.signature(e.ID, timestamp, body))
	answer, err := s.client.Do(r)
	if err != nil {
		// The address may hold a secret, and url.Error prints it.
		var withURL *url.Error
		if errors.As(err, &withURL) {
			err = withURL.Err
		}
		return 0, err
	}
	defer answer.Body.Close()
	_, _ = io.CopyN(io.Discard, answer.Body, 64<<10) // so that the connection can be used again
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return answer.StatusCode, fmt.Errorf("the receiver answered %s", strings.TrimSpace(fmt.Sprint(answer.StatusCode, " ", http.StatusText(answer.StatusCode))))
	}
	return answer.StatusCode, nil
}
