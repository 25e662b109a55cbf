package lfs

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// locks tells which files are locked. A lock is found in its model only, whoever knows its id.
type locks interface {
	Lock(ctx context.Context, modelID, id string) (registry.Lock, error)
	LockOf(ctx context.Context, modelID, path string) (registry.Lock, error)
	LocksPage(ctx context.Context, modelID string, at registry.Page) ([]registry.Lock, string, error)
}

// lockJSON is a lock as clients read it. Source: docs/api/locking.md, "Create Lock".
type lockJSON struct {
	ID       string    `json:"id"`
	Path     string    `json:"path"`
	LockedAt string    `json:"locked_at"` // RFC 3339, whole seconds
	Owner    lockOwner `json:"owner"`
}

type lockOwner struct {
	Name string `json:"name"`
}

func lockOf(l registry.Lock) lockJSON {
	return lockJSON{l.ID, l.Path, l.LockedAt.UTC().Format(time.RFC3339), lockOwner{l.Owner}}
}

// lockAnswer is a lock, and why it could not be made.
type lockAnswer struct {
	Lock      lockJSON `json:"lock"`
	Message   string   `json:"message,omitempty"`
	RequestID string   `json:"request_id,omitempty"`
}

// maxLockBytes bounds a request about locks: a path, each byte of it escaped.
const maxLockBytes = 8*registry.MaxLockPathLen + 4096

// lockRequest reads the body of a request. What it says of a ref is of no use: a lock is for all.
func lockRequest(c echo.Context, into any) error {
	c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, maxLockBytes)
	if err := c.Echo().JSONSerializer.Deserialize(c, into); err != nil {
		return unprocessableError{registry.Invalid("", "the body is not a request about locks in JSON, or it is longer than %d bytes", maxLockBytes)}
	}
	return nil
}

func (h *Handler) lock(c echo.Context) error {
	m, err := door.Model(c, h.Index, access.Write)
	if err != nil {
		return err
	}
	var in struct {
		Path string `json:"path"`
	}
	if err := lockRequest(c, &in); err != nil {
		return err
	}
	l, err := h.Lifecycle.LockFile(c.Request().Context(), door.Request(c), m, in.Path)
	if errors.Is(err, registry.ErrConflict) {
		return answer(c, http.StatusConflict, lockAnswer{lockOf(l), err.Error(), requestID(c)})
	}
	if err != nil {
		return err
	}
	return answer(c, http.StatusCreated, lockAnswer{Lock: lockOf(l)})
}

func (h *Handler) unlock(c echo.Context) error {
	m, err := door.Model(c, h.Index, access.Write)
	if err != nil {
		return err
	}
	var in struct {
		Force bool `json:"force"`
	}
	if err := lockRequest(c, &in); err != nil {
		return err
	}
	l, err := h.Lifecycle.UnlockFile(c.Request().Context(), door.Request(c), m, c.Param("id"), in.Force)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, lockAnswer{Lock: lockOf(l)})
}

// listLocks lists all locks, or the one that a path or an id is asked for.
func (h *Handler) listLocks(c echo.Context) error {
	m, err := door.Model(c, h.Index, access.Read)
	if err != nil {
		return err
	}
	limit, err := lockLimit(c.QueryParam("limit"))
	if err != nil {
		return err
	}
	out := struct {
		Locks      []lockJSON `json:"locks"`
		NextCursor string     `json:"next_cursor,omitempty"`
	}{Locks: []lockJSON{}}
	ctx, path, id := c.Request().Context(), c.QueryParam("path"), c.QueryParam("id")
	var found []registry.Lock
	switch {
	case id != "":
		found, err = one(h.Index.Lock(ctx, m.ID, id))
	case path != "":
		found, err = one(h.Index.LockOf(ctx, m.ID, path))
	default:
		found, out.NextCursor, err = h.Index.LocksPage(ctx, m.ID, registry.Page{Cursor: c.QueryParam("cursor"), Limit: limit})
	}
	if err != nil {
		return err
	}
	for _, l := range found {
		if path == "" || l.Path == path {
			out.Locks = append(out.Locks, lockOf(l))
		}
	}
	return answer(c, http.StatusOK, out)
}

// one is a list of what was found, if anything was.
func one(l registry.Lock, err error) ([]registry.Lock, error) {
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	return []registry.Lock{l}, err
}

// lockLimit reads a limit. Clients ask for any number and go on with the cursor when they get less.
func lockLimit(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, registry.Invalid("limit", "limit is a whole number, 0 or more")
	}
	return n, nil
}

// verifyLocks is what clients ask before a push: which locks are the caller's own, and which are not.
// A model that the push will make has none.
func (h *Handler) verifyLocks(c echo.Context) error {
	name, err := door.ModelName(c)
	if err != nil {
		return err
	}
	by := door.Request(c)
	m, err := h.Lifecycle.UploadTarget(c.Request().Context(), by, name)
	if err != nil {
		return err
	}
	var in struct {
		Cursor string `json:"cursor"`
		Limit  int    `json:"limit"`
	}
	if err := lockRequest(c, &in); err != nil {
		return err
	}
	found, next, err := h.Index.LocksPage(c.Request().Context(), m.ID, registry.Page{Cursor: in.Cursor, Limit: in.Limit})
	if err != nil {
		return err
	}
	out := struct {
		Ours       []lockJSON `json:"ours"`
		Theirs     []lockJSON `json:"theirs"`
		NextCursor string     `json:"next_cursor,omitempty"`
	}{[]lockJSON{}, []lockJSON{}, next}
	for _, l := range found {
		if l.Owner == by.Identity.Name {
			out.Ours = append(out.Ours, lockOf(l))
		} else {
			out.Theirs = append(out.Theirs, lockOf(l))
		}
	}
	return answer(c, http.StatusOK, out)
}
