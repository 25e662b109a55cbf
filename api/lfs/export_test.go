package lfs

import (
	"time"
)

// NewLimits makes limits for their test.
func NewLimits(perMinute int) *limits { return newLimits(perMinute) }

// Take is limits.take.
func (l *limits) Take(caller string) time.Duration { return l.take(caller) }

// Callers is how many are remembered.
func (l *limits) Callers() int { return len(l.callers) }

// MaxCallers is how many are remembered at most.
const MaxCallers = maxCallers

// ParseOffset is parseOffset.
func ParseOffset(text string) (int64, error) { return parseOffset(text) }

// SetLarge says how long a large batch waits for its place, and how long it may take to come.
func (c *Config) SetLarge(wait, time time.Duration) { c.documents.Wait, c.documents.Time = wait, time }
