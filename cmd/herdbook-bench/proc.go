package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of times in /proc: Linux shows 100 a second to every program.
// Source: proc(5), times(2).
const clockTick = 10 * time.Millisecond

// stat is what is read of /proc/PID/stat.
type stat struct {
	pid, parent, session int
	ended                bool          // and not yet waited for
	own                  time.Duration // processor time of the process
	children             time.Duration // of its children that ended and were waited for, and of theirs
}

// parseStat reads a line of /proc/PID/stat. Source: proc(5): the program's name stands in parentheses and may
// hold any byte, also parentheses and newlines, so that the last one ends it.
func parseStat(line string) (stat, error) {
	bad := func() (stat, error) { return stat{}, fmt.Errorf("not a line of /proc/PID/stat: %.60q", line) }
	pid, _, ok := strings.Cut(line, " (")
	end := strings.LastIndexByte(line, ')')
	if !ok || end < 0 {
		return bad()
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 15 {
		return bad()
	}
	s := stat{ended: fields[0] == "Z" || fields[0] == "X"}
	for _, f := range []struct {
		text string
		to   *int
	}{{pid, &s.pid}, {fields[1], &s.parent}, {fields[3], &s.session}} {
		n, err := strconv.ParseInt(f.text, 10, 32)
		if err != nil || n < -1 { // a process that is being reaped is in session -1
			return bad()
		}
		*f.to = int(n)
	}
	for i, to := range []*time.Duration{&s.own, &s.own, &s.children, &s.children} { // utime, stime, cutime, cstime
		n, err := strconv.ParseUint(fields[11+i], 10, 38)
		if err != nil {
			return bad()
		}
		*to += time.Duration(n) * clockTick
	}
	return s, nil
}

// parseAnonymous reads the anonymous memory out of /proc/PID/status: heap and stacks, not mapped files.
func parseAnonymous(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 48)
			if err != nil || kib < 0 {
				return 0, fmt.Errorf("RssAnon of /proc/PID/status: %.40q", value)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("no RssAnon in /proc/PID/status")
}

// anonymousBytes is the anonymous memory that the process has now.
func anonymousBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseAnonymous(string(text))
}

// processes are all that there are.
func processes() ([]stat, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []stat
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		s, err := parseStat(string(line))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// busy is the processor time that a server spent so far: its process, its children that ended, and what
// else runs below it or in its session.
func busy(pid int) (time.Duration, error) {
	all, err := processes()
	if err != nil {
		return 0, err
	}
	for i := range all {
		if exact, err := processClock(all[i].pid); err == nil {
			all[i].own = exact
		}
	}
	return sumBusy(all, pid)
}

// processClock is the processor time of all threads of a process, by the nanosecond. The kernel keeps no such
// clock of children that ended.
// Source: clock_getcpuclockid(3); include/linux/posix-timers_types.h of Linux has CPUCLOCK_SCHED.
func processClock(pid int) (time.Duration, error) {
	const sched = 2
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &at); err != nil {
		return 0, err
	}
	return time.Duration(at.Nano()), nil
}

// sumBusy adds up the process root, what descends from it and what is in its session.
func sumBusy(all []stat, root int) (time.Duration, error) {
	byPID := map[int]stat{}
	for _, s := range all {
		byPID[s.pid] = s
	}
	if _, ok := byPID[root]; !ok {
		return 0, fmt.Errorf("process %d has ended", root)
	}
	var sum time.Duration
	for _, s := range all {
		of := s.session == root
		for p, steps := s, 0; !of && steps < len(all); steps++ {
			if of = p.pid == root; !of {
				p = byPID[p.parent]
			}
		}
		if of {
			sum += s.own + s.children
		}
	}
	return sum, nil
}

// settle waits until the server has been quiet for a while, and gives the processor time that it spent so far. After
// the time most it is taken as it is.
func settle(ctx context.Context, pid int, quiet, most time.Duration) (time.Duration, error) {
	const (
		every = 25 * time.Millisecond
		idle  = time.Millisecond // of processor time that a quiet server may spend meanwhile
	)
	now, err := busy(pid)
	last, since := now, time.Now()
	for start := since; err == nil && time.Since(since) < quiet && time.Since(start) < most; {
		select {
		case <-ctx.Done():
			return now, context.Cause(ctx)
		case <-time.After(every):
		}
		if now, err = busy(pid); now > last+idle {
			last, since = now, time.Now()
		}
	}
	return now, err
}
