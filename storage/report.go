package storage

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// Severity says how bad a [Finding] is.
type Severity string

// The severities.
const (
	Damage Severity = "damage" // something that was acknowledged is lost or wrong
	Note   Severity = "note"   // nothing is lost
)

// Finding is something that is not as it should be.
type Finding struct {
	Severity Severity `json:"severity"`
	What     string   `json:"what"`           // journal, index, repository, blob, upload
	Name     string   `json:"name,omitempty"` // of the model, the blob, the file
	Problem  string   `json:"problem"`
	Advice   string   `json:"advice,omitempty"`
}

// Progress is how far a long task is.
type Progress struct {
	Step  string `json:"step"`
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"` // 0 when nobody knows
	Unit  string `json:"unit"`            // bytes, groups, models, blobs
}

// Report takes what a long task has to say. Its zero value takes nothing.
type Report struct {
	Progress func(Progress)
	Found    func(Finding)
}

func (r Report) found(f Finding) {
	if r.Found != nil {
		r.Found(f)
	}
}

// step counts one step of a task.
type step struct {
	report Report
	at     Progress
	told   time.Time
}

func (r Report) step(name, unit string, total int64) *step {
	s := &step{report: r, at: Progress{Step: name, Unit: unit, Total: total}}
	s.tell()
	return s
}

func (s *step) tell() {
	if s.report.Progress != nil {
		s.report.Progress(s.at)
	}
	s.told = time.Now()
}

// tellAfter is how long a task says nothing of its progress.
const tellAfter = 200 * time.Millisecond

func (s *step) add(n int64) {
	if s.at.Done += n; time.Since(s.told) >= tellAfter {
		s.tell()
	}
}

func (s *step) done() { s.tell() }

// pace bounds how fast something is read.
type pace struct{ limiter *rate.Limiter }

// paceBurst is what may be read at once.
const paceBurst = 4 << 20

// newPace makes a pace of so many bytes a second; 0 is as fast as it goes.
func newPace(bytesPerSecond int64) pace {
	if bytesPerSecond <= 0 {
		return pace{}
	}
	return pace{rate.NewLimiter(rate.Limit(bytesPerSecond), paceBurst)}
}

// wait waits until n bytes more may be read.
func (p pace) wait(ctx context.Context, n int) error {
	if p.limiter == nil {
		return nil
	}
	return p.limiter.WaitN(ctx, min(n, paceBurst))
}
