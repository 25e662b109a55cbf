package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// sample is what one server spent on one step, in one round.
type sample struct {
	CPU       time.Duration `json:"cpu_ns"`       // of the server and its children, until it was quiet again
	LaterCPU  time.Duration `json:"later_cpu_ns"` // of it, what came after the client had its last answer
	Wall      time.Duration `json:"wall_ns"`      // as the client saw it
	PeakBytes int64         `json:"peak_bytes"`   // anonymous memory of the server's process, without its children
}

// series is one server's samples of one step, by round.
type series struct {
	Step       string   `json:"step"`
	What       string   `json:"what"`
	Server     string   `json:"server"`
	Base       string   `json:"base,omitempty"`
	Operations int      `json:"operations"` // that the times are to be divided by
	SentBytes  int64    `json:"sent_bytes"` // by the client, in the round that warms up
	BodyBytes  int64    `json:"body_bytes"` // of objects among them
	Samples    []sample `json:"samples"`
}

func (s *series) seconds(of func(sample) time.Duration) []float64 {
	out := make([]float64, len(s.Samples))
	for i, x := range s.Samples {
		out[i] = of(x).Seconds() / float64(s.Operations)
	}
	return out
}

func (s *series) cpu() []float64 { return s.seconds(func(x sample) time.Duration { return x.CPU }) }

func (s *series) later() []float64 {
	return s.seconds(func(x sample) time.Duration { return x.LaterCPU })
}

func (s *series) wall() []float64 { return s.seconds(func(x sample) time.Duration { return x.Wall }) }

func (s *series) peak() (most int64) {
	for _, x := range s.Samples {
		most = max(most, x.PeakBytes)
	}
	return most
}

// figures are the series of a run, in the order of the report.
type figures []*series

// of finds the series of a server, or nil.
func (f figures) of(step, server string) *series {
	i := slices.IndexFunc(f, func(s *series) bool { return s.Step == step && s.Server == server })
	if i < 0 {
		return nil
	}
	return f[i]
}

// chosen gives the scenarios with the steps that were asked for by their names or that of the scenario, and those
// that they need. Without names it is all.
func chosen(all []scenario, names []string) ([]scenario, error) {
	known := map[string]bool{}
	var out []scenario
	for _, sc := range all {
		known[sc.name] = true
		pick := scenario{name: sc.name, manyFiles: sc.manyFiles}
		any := false
		for _, st := range sc.steps {
			known[st.name] = true
			wanted := len(names) == 0 || slices.Contains(names, sc.name) || slices.Contains(names, st.name)
			any = any || wanted
			if wanted || st.setup {
				pick.steps = append(pick.steps, st)
			}
		}
		if any {
			out = append(out, pick)
		}
	}
	for _, name := range names {
		if !known[name] {
			return nil, fmt.Errorf("there is no work %q", name)
		}
	}
	return out, nil
}

// bench is a run.
type bench struct {
	fixture  *fixture
	kinds    []kind
	quiet    time.Duration // that a server has to be, until a step counts as done
	figures  figures
	progress io.Writer
}

// measure takes all steps of a scenario: rounds times, after one round that only warms up. In a round every
// server is started afresh and takes each step in turn, and each round begins with another server.
func (b *bench) measure(ctx context.Context, sc scenario, rounds int) error {
	var kinds []kind
	for _, k := range b.kinds {
		if slices.ContainsFunc(sc.steps, func(st step) bool { return k.does(st.needs) }) {
			kinds = append(kinds, k)
		}
	}
	left := []string{}
	defer func() { removeAll(left) }()
	for round := range rounds + 1 {
		fmt.Fprintf(b.progress, "%s: round %d of %d\n", sc.name, round, rounds)
		turned := slices.Concat(kinds[round%len(kinds):], kinds[:round%len(kinds)])
		dirs, err := b.round(ctx, sc, turned, round == 0)
		left = append(left, dirs...)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		if !sc.manyFiles {
			removeAll(left)
			left = left[:0]
		}
	}
	return nil
}

func removeAll(dirs []string) {
	for _, dir := range dirs {
		os.RemoveAll(dir)
	}
}

// round gives the directories that are left behind.

func (b *bench) round(ctx context.Context, sc scenario, kinds []kind, warming bool) (left []string, err error) {
	var jobs []*job
	defer func() {
		var all sync.WaitGroup
		for _, j := range jobs {
			all.Go(func() {
				j.close()
				j.server.stop()
			})
		}
		all.Wait()
	}()
	for _, k := range kinds {
		s, err := k.start(ctx, b.fixture.dir)
		if err != nil {
			return left, err
		}
		j := &job{fixture: b.fixture, client: connect(s, lfsConnections), counting: warming}
		jobs, left = append(jobs, j), append(left, s.dir)
		if j.dir, err = os.MkdirTemp(b.fixture.dir, "client-"); err != nil {
			return left, err
		}
		left = append(left, j.dir)
	}
	for _, st := range sc.steps {
		for _, j := range jobs {
			if !j.server.does(st.needs) {
				continue
			}
			x, r, err := take(ctx, st, j, b.quiet)
			if errors.Is(err, errUnsupported) {
				continue
			}
			if err != nil {
				said, _ := os.ReadFile(filepath.Join(j.server.dir, "log"))
				return left, fmt.Errorf("%s at %s: %w\nthe server said: %s", st.name, j.server.name, err, lastLines(said))
			}
			b.note(st, j.server.name, warming, x, r)
		}
	}
	return left, nil
}

const (
	mostSettle = 60 * time.Second // that is waited for a server to be quiet
	samplePeak = 5 * time.Millisecond
)

// take takes a step and measures it.
func take(ctx context.Context, st step, j *job, quiet time.Duration) (x sample, r result, err error) {
	wait := time.Duration(0) // the step before this one has waited
	if st.prepare != nil {
		if err := st.prepare(ctx, j); err != nil {
			return x, r, err
		}
		wait = quiet
	}
	pid := j.server.pid()
	before, err := settle(ctx, pid, wait, mostSettle)
	if err != nil {
		return x, r, err
	}
	peak := watchPeak(pid)
	start := time.Now()
	r, err = st.run(ctx, j)
	x.Wall = time.Since(start)
	x.PeakBytes = peak()
	if err != nil {
		return x, r, err
	}
	atAnswer, err := busy(pid)
	if err != nil {
		return x, r, err
	}
	after, err := settle(ctx, pid, quiet, mostSettle)
	if err != nil {
		return x, r, err
	}
	x.CPU, x.LaterCPU = after-before, after-atAnswer
	if st.verify != nil {
		err = st.verify(ctx, j)
	}
	return x, r, err
}

// watchPeak samples the anonymous memory of a process until the function that it gives is called.
func watchPeak(pid int) func() int64 {
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		for {
			if now, err := anonymousBytes(pid); err == nil {
				most = max(most, now)
			}
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(samplePeak):
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-peak
	}
}

func (b *bench) note(st step, server string, warming bool, x sample, r result) {
	s := b.figures.of(st.name, server)
	if s == nil {
		s = &series{Step: st.name, What: st.what(b.fixture.size), Server: server, Base: st.base, Operations: 1}
		if st.operations != nil {
			s.Operations = st.operations(b.fixture.size)
		}
		b.figures = append(b.figures, s)
	}
	if warming {
		s.SentBytes, s.BodyBytes = r.sent, r.bodies
		return
	}
	s.Samples = append(s.Samples, x)
}
