package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

var (
	fraud      = registry.MustModelName("acme/fraud")
	production = registry.MustEnvironmentName("production")
)

// TestLoop goes once through everything that the client can do, against the real server.
func TestLoop(t *testing.T) {
	s := apitest.Start(t)
	m := s.Model("acme/fraud", registry.Public)
	s.Publish(m, "v1.0.0", map[string]string{"f": "1"})
	s.Publish(m, "v1.1.0", map[string]string{"f": "2"})
	s.Policy(m, registry.Environment{Name: production, Promote: registry.PromoteManual, Gates: []registry.Gate{{Name: "good", Expr: "metrics.f1 >= 0.9"}}})
	c := &client.Client{URL: s.URL + "/", Token: s.Token}
	ctx := t.Context()

	models, err := c.Models(ctx)
	if err != nil || len(models) != 1 || models[0].Name != fraud {
		t.Errorf("Models = %+v, %v, want %s", models, err, fraud)
	}
	versions, err := c.Versions(ctx, fraud)
	if err != nil || len(versions) != 2 || versions[0].Tag.String() != "v1.1.0" {
		t.Errorf("Versions = %+v, %v, want v1.1.0 first", versions, err)
	}
	verdicts, err := c.Gates(ctx, fraud, "v1.0.0")
	if err != nil || len(verdicts) != 1 || verdicts[0].Open {
		t.Errorf("Gates = %+v, %v, want one that is closed", verdicts, err)
	}
	_, err = c.Promote(ctx, fraud, "production", client.Change{Version: "v1.0.0"})
	if verdict, closed := client.Closed(err); !closed || verdict.Environment != production || len(verdict.Gates) != 1 {
		t.Errorf("Promote through a closed gate = %v, want its verdict", err)
	}
	for _, tag := range []string{"v1.0.0", "v1.1.0"} {
		recorded, err := c.Evaluate(ctx, fraud, tag, json.RawMessage(`{"dataset":{"name":"d"},"metrics":{"f1":0.95}}`))
		if err != nil || recorded.Metrics["f1"] != 0.95 || len(recorded.Verdicts) != 1 || !recorded.Verdicts[0].Open {
			t.Fatalf("Evaluate = %+v, %v, want the gate to open", recorded, err)
		}
		env, err := c.Promote(ctx, fraud, "production", client.Change{Version: tag, Reason: "it passes"})
		if err != nil || env.Current == nil || env.Current.Version.String() != tag || env.Current.Reason != "it passes" {
			t.Fatalf("Promote = %+v, %v, want %s there", env, err, tag)
		}
	}
	approval, err := c.Approve(ctx, fraud, "production", client.Change{Version: "v1.1.0"})
	if err != nil || approval.By != apitest.Admin {
		t.Errorf("Approve = %+v, %v", approval, err)
	}
	env, err := c.RollBack(ctx, fraud, "production", client.Change{Reason: "false alarms"})
	if err != nil || env.Current.Version.String() != "v1.0.0" || len(env.Barred) != 1 {
		t.Errorf("RollBack = %+v, %v, want v1.0.0 there and v1.1.0 barred", env, err)
	}
	all, err := c.Environments(ctx, fraud)
	if err != nil || len(all) != 1 || all[0].Current.Version.String() != "v1.0.0" {
		t.Errorf("Environments = %+v, %v", all, err)
	}
}

func TestListsHaveAllPages(t *testing.T) {
	s := apitest.Start(t)
	var made []registry.Record
	for i := range registry.MaxPage + 5 {
		made = append(made, registry.ModelCreated{Model: registry.Model{
			ID: fmt.Sprintf("id-%03d", i), Name: registry.MustModelName(fmt.Sprintf("acme/m%03d", i)), Visibility: registry.Public,
		}})
	}
	s.Commit(made...)
	models, err := (&client.Client{URL: s.URL}).Models(t.Context())
	if err != nil || len(models) != registry.MaxPage+5 || models[registry.MaxPage+4].Name.String() != "acme/m204" {
		t.Errorf("Models = %d of them, %v; want %d in their order", len(models), err, registry.MaxPage+5)
	}
}

func TestRevisionsAreOnePartOfThePath(t *testing.T) {
	s := apitest.Start(t)
	m := s.Model("acme/fraud", registry.Public)
	s.Publish(m, "v1.0.0", map[string]string{"f": "1"})
	s.Commit(registry.RefMoved{ModelID: m.ID, Generation: 1, RefUpdate: registry.RefUpdate{Ref: registry.BranchRef("feature/a%2Fb#d&e"), New: apitest.CommitOf("v1.0.0")}})
	c := &client.Client{URL: s.URL, Token: s.Token}
	if _, err := c.Evaluate(t.Context(), fraud, "branch:feature/a%2Fb#d&e", json.RawMessage(`{"dataset":{"name":"d"},"metrics":{"f1":0.95}}`)); err != nil {
		t.Errorf("Evaluate of a branch with odd letters = %v, want nil", err)
	}
}

func TestErrors(t *testing.T) {
	s := apitest.Start(t)
	s.Model("acme/fraud", registry.Public)
	tests := []struct {
		name   string
		token  string
		call   func(ctx context.Context, c *client.Client) error
		status int
		want   string
	}{
		{"field", s.Token, func(ctx context.Context, c *client.Client) error {
			_, err := c.Promote(ctx, fraud, "production", client.Change{Version: "1"})
			return err
		}, 400, "version: "},
		{"absent", s.Token, func(ctx context.Context, c *client.Client) error {
			_, err := c.Versions(ctx, registry.MustModelName("acme/none"))
			return err
		}, 404, "acme/none"},
		{"no token", "", func(ctx context.Context, c *client.Client) error {
			_, err := c.Approve(ctx, fraud, "production", client.Change{Version: "v1.0.0"})
			return err
		}, 401, "token"},
		{"wrong token", "hb_wrong", func(ctx context.Context, c *client.Client) error {
			_, err := c.Models(ctx)
			return err
		}, 401, "token"},
	}
	for _, test := range tests {
		err := test.call(t.Context(), &client.Client{URL: s.URL, Token: test.token})
		var e *client.Error
		if !errors.As(err, &e) || e.Status != test.status || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an Error with status %d that says %q", test.name, err, test.status, test.want)
		}
		if _, closed := client.Closed(err); closed {
			t.Errorf("%s: Closed = true for an error that is no closed gate", test.name)
		}
	}
}

// TestOtherServers: what is no Herdbook server is said to be none, whatever it answers.
func TestOtherServers(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"a page", 404, "<html>nginx</html>", "404 Not Found, and not as a Herdbook server does"},
		{"JSON of another kind", 500, `{"error":"x"}`, "500 Internal Server Error, and not as"},
		{"an empty error", 502, "", "502 Bad Gateway, and not as"},
		{"success that is not JSON", 200, "<html>", "read the server's answer"},
		{"success of another type", 200, `{"items":7}`, "read the server's answer"},
	}
	for _, test := range tests {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, test.body)
		}))
		_, err := (&client.Client{URL: s.URL}).Models(t.Context())
		s.Close()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error that says %q", test.name, err, test.want)
		}
	}
	if _, err := (&client.Client{URL: "http://127.0.0.1:1"}).Models(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody listens: %v, want an error that says so", err)
	}
	if _, err := (&client.Client{URL: "::"}).Models(t.Context()); err == nil || !strings.Contains(err.Error(), "address of the server") {
		t.Errorf("address that is none: %v, want an error that says so", err)
	}
}
