package registry

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrQuota reports that models would own more than their quota allows; see [QuotaError].
var ErrQuota = errors.New("quota is used up")

// Quota bounds how much the models that fit a pattern own together, in bytes; what they share with each other counts for
// each of them.
type Quota struct {
	Models string // a pattern such as acme/*, see [path.Match]
	Bytes  int64
}

// Covers reports whether the quota is about a model or a repository of that name. Of a repository with more than two parts in its
// name the first two count too: acme/* covers acme/tools/scan, or nothing would bound who pushes there.
func (q Quota) Covers(name string) bool {
	matches := func(name string) bool {
		ok, err := path.Match(q.Models, name)
		return ok && err == nil
	}
	parts := strings.SplitN(name, "/", 3)
	return matches(name) || matches(strings.Join(parts[:min(2, len(parts))], "/"))
}

// QuotaError says which quota is used up. It is an [ErrQuota].
type QuotaError struct {
	Quota
	UsedBytes, WantedBytes int64
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("the models %s may hold %s together and hold %s; this needs %s more: delete what is not needed, or ask the operator of the server for more",
		e.Models, ByteSize(e.Bytes), ByteSize(e.UsedBytes), ByteSize(e.WantedBytes))
}

func (e *QuotaError) Unwrap() error { return ErrQuota }

// ByteSize is a number of bytes as people read it.
func ByteSize(n int64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/step, 0
	for value >= step && unit < 5 {
		value /= step
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTPE"[unit])
}
