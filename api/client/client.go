// Package client calls the JSON API of a Herdbook server, for the command line and for tests.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

// Client calls one server. URL is its public address; Token may be empty.
type Client struct {
	URL   string
	Token string
	HTTP  *http.Client // http.DefaultClient by default
}

// Error is an answer of the server that says no.
type Error struct {
	api.Problem
}

func (e *Error) Error() string {
	text := e.Detail
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	return text
}

// maxAnswerBytes bounds an answer.
const maxAnswerBytes = 64 << 20

// Do calls method on a path below /api/v1 with in as its JSON body, unless that is nil, and
// reads the answer into out, unless that is nil.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	_, err := c.call(ctx, method, path, in, out)
	return err
}

// call does what Do does, and gives the path of the next page of a list.
func (c *Client) call(ctx context.Context, method, path string, in, out any) (next string, err error) {
	header, err := c.send(ctx, method, path, nil, in, out)
	return nextPage(header), err
}

// send does what Do does with more header fields, and gives those of the answer.
func (c *Client) send(ctx context.Context, method, path string, header http.Header, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	r, err := c.request(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(r.Header, header)
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return c.answer(r, out)
}

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+"/api/v1"+path, body)
	if err != nil {
		return nil, fmt.Errorf("address of the server: %w", err)
	}
	r.Header.Set("Accept", "application/json")
	if c.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.Token)
	}
	return r, nil
}

// answer sends a request and reads what is answered into out.
func (c *Client) answer(r *http.Request, out any) (http.Header, error) {
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	answer, err := client.Do(r)
	if err != nil {
		var in *url.Error
		if errors.As(err, &in) {
			err = in.Err // without the method and the path
		}
		return nil, fmt.Errorf("the server at %s cannot be reached: %w", c.URL, err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	if answer.StatusCode > 299 {
		return nil, failure(answer, data)
	}
	if out == nil || len(data) == 0 {
		return answer.Header, nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	return answer.Header, nil
}

// nextPage is where a list goes on, below /api/v1. Source: RFC 8288, section 3.
func nextPage(header http.Header) string {
	link, ok := strings.CutSuffix(header.Get("Link"), `>; rel="next"`)
	if !ok {
		return ""
	}
	next, _ := strings.CutPrefix(link, "</api/v1")
	return next
}

func failure(answer *http.Response, data []byte) error {
	e := &Error{}
	if json.Unmarshal(data, &e.Problem) != nil || e.Detail == "" {
		return fmt.Errorf("the server answered %s, and not as a Herdbook server does", answer.Status)
	}
	return e
}

// Closed gives the verdict of a closed gate that an error carries.
func Closed(err error) (registry.Verdict, bool) {
	var e *Error
	if errors.As(err, &e) && e.Verdict != nil {
		return *e.Verdict, true
	}
	return registry.Verdict{}, false
}

// path of something below a model.
func path(m registry.ModelName, parts ...string) string {
	p := "/models/" + m.String()
	for _, part := range parts {
		p += "/" + url.PathEscape(part)
	}
	return p
}

// list is a page of a list.
type list[T any] struct {
	Items []T `json:"items"`
}

// all reads a list to its last page.
func all[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	var items []T
	for path != "" {
		var l list[T]
		next, err := c.call(ctx, http.MethodGet, path, nil, &l)
		if err != nil {
			return nil, err
		}
		items, path = append(items, l.Items...), next
	}
	return items, nil
}

// Models lists the models that the caller may read.
func (c *Client) Models(ctx context.Context) ([]api.Model, error) {
	return all[api.Model](ctx, c, "/models")
}

// Search finds models or versions, at most limit of them, and reports whether there may be more. An empty order leaves it to the query.
func (c *Client) Search(ctx context.Context, query, order string, limit int) (found []api.Found, more bool, err error) {
	values := url.Values{"q": {query}, "limit": {strconv.Itoa(min(limit, registry.MaxPage))}}
	if order != "" {
		values.Set("sort", order)
	}
	path := "/search?" + values.Encode()
	for path != "" && len(found) < limit {
		var l list[api.Found]
		if path, err = c.call(ctx, http.MethodGet, path, nil, &l); err != nil {
			return nil, false, err
		}
		found = append(found, l.Items...)
	}
	if len(found) > limit {
		return found[:limit], true, nil
	}
	return found, path != "", nil
}

// Versions lists the versions of a model, the highest first.
func (c *Client) Versions(ctx context.Context, m registry.ModelName) ([]api.Version, error) {
	return all[api.Version](ctx, c, path(m, "versions"))
}

// Version gets one version, with its files and the ways to pull it.
func (c *Client) Version(ctx context.Context, m registry.ModelName, tag registry.Tag) (api.Version, error) {
	var v api.Version
	return v, c.Do(ctx, http.MethodGet, path(m, "versions", tag.String()), nil, &v)
}

// Evaluate records an evaluation, which is sent as it is.
func (c *Client) Evaluate(ctx context.Context, m registry.ModelName, rev string, evaluation json.RawMessage) (api.Recorded, error) {
	var r api.Recorded
	err := c.Do(ctx, http.MethodPost, path(m, "evaluations", rev), evaluation, &r)
	return r, err
}

// EvaluateOnce is Evaluate under a key: the same evaluation under the same key is recorded once, however often it is sent.
func (c *Client) EvaluateOnce(ctx context.Context, m registry.ModelName, rev, key string, evaluation json.RawMessage) (api.Recorded, error) {
	var r api.Recorded
	_, err := c.send(ctx, http.MethodPost, path(m, "evaluations", rev), http.Header{"Idempotency-Key": {key}}, evaluation, &r)
	return r, err
}

// Commit is the commit that rev names.
func (c *Client) Commit(ctx context.Context, m registry.ModelName, rev string) (registry.ObjectID, error) {
	header, err := c.send(ctx, http.MethodGet, path(m, "evaluations", rev)+"?limit=1", nil, nil, nil)
	if err != nil {
		return "", err
	}
	return registry.ParseObjectID(header.Get(api.CommitHeader))
}

// Attach uploads a file that an evaluation will name. The media type says what is checked of it.
func (c *Client) Attach(ctx context.Context, m registry.ModelName, a registry.Attachment, content io.Reader) error {
	r, err := c.request(ctx, http.MethodPut, path(m, "attachments", a.Digest.String()), content)
	if err != nil {
		return err
	}
	r.ContentLength = a.SizeBytes
	if a.SizeBytes == 0 {
		r.Body = http.NoBody
	}
	r.Header.Set("Content-Type", a.MediaType)
	_, err = c.answer(r, nil)
	return err
}

// Evaluations lists the evaluations of the commit that rev names, the oldest first.
func (c *Client) Evaluations(ctx context.Context, m registry.ModelName, rev string) ([]registry.Evaluation, error) {
	return all[registry.Evaluation](ctx, c, path(m, "evaluations", rev))
}

// Gates are the verdicts of all environments on a version.
func (c *Client) Gates(ctx context.Context, m registry.ModelName, rev string) ([]registry.Verdict, error) {
	return all[registry.Verdict](ctx, c, path(m, "gates", rev))
}

// Decision is the verdict of an environment on a version, with all that it was decided from.
func (c *Client) Decision(ctx context.Context, m registry.ModelName, rev, env string) (gate.Decision, error) {
	var d gate.Decision
	return d, c.Do(ctx, http.MethodGet, path(m, "gates", rev)+"?facts=true&environment="+url.QueryEscape(env), nil, &d)
}

// TryPolicy tells what a policy would mean.
func (c *Client) TryPolicy(ctx context.Context, m registry.ModelName, trial api.PolicyTrial) (api.PolicyOutcome, error) {
	var out api.PolicyOutcome
	err := c.Do(ctx, http.MethodPost, path(m, "policy", "check"), trial, &out)
	return out, err
}

// Change is a promotion, a rollback or an approval.
type Change struct {
	Version  string  `json:"version,omitempty"`
	Reason   string  `json:"reason,omitempty"`
	Replaces *string `json:"replaces,omitempty"` // by a promotion: what is there now, empty for nothing; nil when that does not matter
}

// Promote puts a version into an environment.
func (c *Client) Promote(ctx context.Context, m registry.ModelName, env string, change Change) (api.Environment, error) {
	var e api.Environment
	err := c.Do(ctx, http.MethodPost, path(m, "environments", env, "promotions"), change, &e)
	return e, err
}

// RollBack puts an earlier version back into an environment.
func (c *Client) RollBack(ctx context.Context, m registry.ModelName, env string, change Change) (api.Environment, error) {
	var e api.Environment
	err := c.Do(ctx, http.MethodPost, path(m, "environments", env, "rollback"), change, &e)
	return e, err
}

// Approve approves of a version for an environment.
func (c *Client) Approve(ctx context.Context, m registry.ModelName, env string, change Change) (registry.Approval, error) {
	var a registry.Approval
	err := c.Do(ctx, http.MethodPost, path(m, "environments", env, "approvals"), change, &a)
	return a, err
}

// SetState says what may be done with a version.
func (c *Client) SetState(ctx context.Context, m registry.ModelName, tag registry.Tag, to api.NewState) (registry.StateChange, error) {
	var done registry.StateChange
	err := c.Do(ctx, http.MethodPost, path(m, "versions", tag.String(), "state"), to, &done)
	return done, err
}

// Freeze keeps an environment as it is, or lets it go again.
func (c *Client) Freeze(ctx context.Context, m registry.ModelName, env string, f api.Freezing) (api.Environment, error) {
	var e api.Environment
	err := c.Do(ctx, http.MethodPost, path(m, "environments", env, "freeze"), f, &e)
	return e, err
}

// EnvironmentAt is what an environment held at a time, in RFC 3339.
func (c *Client) EnvironmentAt(ctx context.Context, m registry.ModelName, env, at string) (api.EnvironmentAt, error) {
	var e api.EnvironmentAt
	return e, c.Do(ctx, http.MethodGet, path(m, "environments", env)+"?at="+url.QueryEscape(at), nil, &e)
}

// History are the changes of an environment, the oldest first.
func (c *Client) History(ctx context.Context, m registry.ModelName, env string) ([]registry.EnvironmentChange, error) {
	return all[registry.EnvironmentChange](ctx, c, path(m, "environments", env, "history"))
}

// Tokens lists the tokens and keys that are worth something.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	return all[api.Token](ctx, c, "/tokens")
}

// CreateToken makes a token, or keeps an SSH key.
func (c *Client) CreateToken(ctx context.Context, in api.TokenRequest) (api.Token, error) {
	var t api.Token
	err := c.Do(ctx, http.MethodPost, "/tokens", in, &t)
	return t, err
}

// RevokeToken makes a token worth nothing.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(id), nil, nil)
}

// Environments are what runs where.
func (c *Client) Environments(ctx context.Context, m registry.ModelName) ([]api.Environment, error) {
	return all[api.Environment](ctx, c, path(m, "environments"))
}

// Compare says how b differs from a. base is the model of a, when that is another one.
func (c *Client) Compare(ctx context.Context, m, base registry.ModelName, a, b string) (registry.Comparison, error) {
	at := path(m, "compare", a+"..."+b)
	if !base.IsZero() {
		at += "?base=" + url.QueryEscape(base.String())
	}
	var diff registry.Comparison
	return diff, c.Do(ctx, http.MethodGet, at, nil, &diff)
}
