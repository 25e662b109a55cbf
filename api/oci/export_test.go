package oci

import (
	"context"
	"time"
)

// ParseContentRange is parseContentRange.
func ParseContentRange(text string) (start, length int64, err error) { return parseContentRange(text) }

// SetWait says how long a long manifest waits for its place.
func (c *Config) SetWait(wait time.Duration) { c.documents.Wait = wait }

// Few is few's only method.
func Few(n int) func(context.Context) (leave func(), err error) { return make(few, n).enter }
