package ocipush

// For tests.
var (
	Parts      = parts
	RetryAfter = retryAfter
)
