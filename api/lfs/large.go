package lfs

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
)

// readBatch reads a batch request. Done must be called when it is answered. Git LFS names 100 objects at a time, in some 12 KiB.
func (h *Handler) readBatch(c echo.Context, in *batchRequest) (done func(), err error) {
	text, done, err := h.batchTexts.Read(c, maxBatchBytes)
	if err == nil {
		if err = json.Unmarshal(text, in); err == nil {
			return done, nil
		}
		done()
	}
	var busy *door.BusyError
	switch {
	case errors.Is(err, registry.ErrTooLarge):
		return nil, err
	case errors.As(err, &busy):
		return nil, tooOftenError{busy.Wait}
	case errors.Is(err, door.ErrLate):
		return nil, statusError{http.StatusRequestTimeout, "the batch request did not come in time; name fewer objects at a time"}
	}
	return nil, unprocessableError{registry.Invalid("", "the body is not a batch request in JSON")}
}
