// Package web shows the registry to people.
package web

import (
	"context"
	"log/slog"
	"net/url"
	"os"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// Index answers queries.
type Index interface {
	ModelByName(ctx context.Context, name registry.ModelName) (registry.Model, error)
}

// Blobs is the store of content.
type Blobs interface {
	Open(ctx context.Context, d digest.Digest) (*os.File, error)
}

// Config is what the pages work with.
type Config struct {
	Index     Index
	Lifecycle *lifecycle.Service
	Blobs     Blobs
	PublicURL *url.URL
	Version   string
	Log       *slog.Logger
}

// Pages are the web pages.
type Pages struct{ Config }

// New makes the pages.
func New(c Config) (*Pages, error) { return &Pages{c}, nil }

// Register adds the routes.
func (p *Pages) Register(*echo.Echo) {}

// Error shows an error to a person.
func (p *Pages) Error(c echo.Context, status int, title, detail string) error {
	return c.String(status, title+": "+detail+"\n")
}
