package api

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry/access"
)

// ModelUsage is how much space a model takes.
type ModelUsage struct {
	Blobs        int64 `json:"blobs"`
	LogicalBytes int64 `json:"logical_bytes"` // of its LFS objects and the files of its versions, as if nothing was shared
	GitBytes     int64 `json:"git_bytes"`     // of its repository on disk

	// ExclusiveBytes is what would be free without the model. Only administrators see it: it tells of what is in
	// models that others may not read.
	ExclusiveBytes *int64 `json:"exclusive_bytes,omitempty"`
}

func (s *Server) getModelUsage(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	owned, err := s.Index.Usage(ctx, m.ID)
	if err != nil {
		return err
	}
	u := ModelUsage{Blobs: owned.Blobs, LogicalBytes: owned.LogicalBytes}
	if u.GitBytes, err = s.Commits.DiskUsage(ctx, m.Name); err != nil {
		return err
	}
	if access.Authorize(door.Identity(c), access.ReadUsage, nil) == nil {
		exclusive, err := s.Index.ExclusiveBytes(ctx, m.ID)
		if err != nil {
			return err
		}
		u.ExclusiveBytes = &exclusive
	}
	return c.JSON(http.StatusOK, u)
}

// NamespaceUsage is how much the models of a namespace own.
type NamespaceUsage struct {
	Namespace    string `json:"namespace"`
	Models       int64  `json:"models"`
	Repositories int64  `json:"repositories,omitempty"` // without a model
	Blobs        int64  `json:"blobs"`
	LogicalBytes int64  `json:"logical_bytes"`
}

// Usage is how much all models own, and what is on disk.
type Usage struct {
	Namespaces    []NamespaceUsage `json:"namespaces"`
	LogicalBytes  int64            `json:"logical_bytes"`  // as if models shared nothing
	PhysicalBytes int64            `json:"physical_bytes"` // of the content on disk, each once
	SavedBytes    int64            `json:"saved_bytes"`    // by sharing; what nothing owns is taken off
}

func (s *Server) getUsage(c echo.Context) error {
	if err := access.Authorize(door.Identity(c), access.ReadUsage, nil); err != nil {
		return err
	}
	ctx := c.Request().Context()
	models, err := s.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	owned, err := s.Index.Usages(ctx)
	if err != nil {
		return err
	}
	var u Usage
	spaces := map[string]*NamespaceUsage{}
	for _, m := range models {
		space := spaces[m.Name.Namespace()]
		if space == nil {
			space = &NamespaceUsage{Namespace: m.Name.Namespace()}
			spaces[m.Name.Namespace()] = space
		}
		space.Models++
		space.Blobs += owned[m.ID].Blobs
		space.LogicalBytes += owned[m.ID].LogicalBytes
		u.LogicalBytes += owned[m.ID].LogicalBytes
	}
	repositories, err := s.Index.Repositories(ctx)
	if err != nil {
		return err
	}
	for _, r := range repositories {
		name, _, _ := strings.Cut(r.Name, "/")
		space := spaces[name]
		if space == nil {
			space = &NamespaceUsage{Namespace: name}
			spaces[name] = space
		}
		space.Repositories++
		space.Blobs += owned[r.ID].Blobs
		space.LogicalBytes += owned[r.ID].LogicalBytes
		u.LogicalBytes += owned[r.ID].LogicalBytes
	}
	u.Namespaces = []NamespaceUsage{}
	for _, name := range slices.Sorted(maps.Keys(spaces)) {
		u.Namespaces = append(u.Namespaces, *spaces[name])
	}
	if _, u.PhysicalBytes, err = s.Store.Usage(ctx); err != nil {
		return err
	}
	u.SavedBytes = u.LogicalBytes - u.PhysicalBytes
	return c.JSON(http.StatusOK, u)
}
