package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// line is /proc/PID/stat of a process with that name and those times, in ticks.
func line(pid int, name string, parent, session, utime, stime, cutime, cstime int) string {
	return fmt.Sprintf("%d (%s) S %d %d %d 0 -1 4194560 22 0 0 0 %d %d %d %d 20 0 1 0 5 100 200 1844\n",
		pid, name, parent, session, session, utime, stime, cutime, cstime)
}

func TestParseStat(t *testing.T) {
	want := stat{pid: 42, parent: 7, session: 40, own: 30 * time.Millisecond, children: 70 * time.Millisecond}
	for _, name := range []string{"git", "a b", "x) R 1 1 1", "(", ")", ") (", "a\nb", ""} {
		if got, err := parseStat(line(42, name, 7, 40, 1, 2, 3, 4)); err != nil || got != want {
			t.Errorf("parseStat of a process named %q = %+v, %v, want %+v", name, got, err, want)
		}
	}
	if got, err := parseStat(strings.Replace(line(42, "git", 7, 40, 1, 2, 3, 4), ") S", ") Z", 1)); err != nil || !got.ended {
		t.Errorf("parseStat of a process that ended = %+v, %v", got, err)
	}
	// As it was seen of a process that another one was just waiting for.
	const reaped = "21420 (git) X 0 -1 -1 0 -1 4227084 136 0 0 0 0 0 0 0 20 0 0 0 2475452 0 0"
	if got, err := parseStat(reaped); err != nil || got != (stat{pid: 21420, session: -1, ended: true}) {
		t.Errorf("parseStat(%q) = %+v, %v", reaped, got, err)
	}
	for _, bad := range []string{
		"", "42", "42 (git", "42 (git) S 7", "x (git) S 7 40 40 0 -1 0 0 0 0 0 1 2 3 4", "42 (git) S 7 40 -40 0 -1 0 0 0 0 0 1 2 3 4",
		"42 (git) S 7 40 40 0 -1 0 0 0 0 0 1 2 3 -4", "42 (git) S 7 40 40 0 -1 0 0 0 0 0 1 2 3 99999999999999999",
	} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) = %+v, want an error", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	for _, seed := range []string{line(1, "init", 0, 1, 0, 0, 0, 0), line(42, "x) R 1 1 1", 7, 40, 1, 2, 3, 4), "", "1 (", ") 1 (", "1 () "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseStat(text)
		if err != nil {
			return
		}
		if s.pid < -1 || s.parent < -1 || s.session < -1 || s.own < 0 || s.children < 0 {
			t.Errorf("parseStat(%q) = %+v, with a number below -1 or a time below 0", text, s)
		}
		s.ended = false
		again := line(s.pid, text, s.parent, s.session, int(s.own/clockTick), 0, 0, int(s.children/clockTick))
		if got, err := parseStat(again); err != nil || got != s {
			t.Errorf("parseStat(%q) = %+v, %v, want %+v", again, got, err, s)
		}
	})
}

func TestParseAnonymous(t *testing.T) {
	tests := []struct {
		name, text string
		want       int64 // below 0: an error
	}{
		{"of a process", "Name:\tgit\nVmRSS:\t    9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t 3 kB\n", 1234 << 10},
		{"nothing", "RssAnon:\t       0 kB\n", 0},
		{"of a thread of the kernel", "Name:\tkthreadd\n", -1},
		{"not a number", "RssAnon:\t lots kB\n", -1},
		{"negative", "RssAnon:\t -1 kB\n", -1},
		{"in a name", "Name:\tRssAnon: 5 kB\n", -1},
	}
	for _, tt := range tests {
		if got, err := parseAnonymous(tt.text); (err != nil) != (tt.want < 0) || (err == nil && got != tt.want) {
			t.Errorf("%s: parseAnonymous(%q) = %d, %v, want %d", tt.name, tt.text, got, err, tt.want)
		}
	}
}

func FuzzParseAnonymous(f *testing.F) {
	for _, seed := range []string{"RssAnon:\t 12 kB\n", "RssAnon:", "RssAnon:\t 99999999999999999999 kB", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseAnonymous(text)
		if err != nil {
			return
		}
		again := fmt.Sprintf("RssAnon: %d kB\n", got>>10)
		if back, err := parseAnonymous(again); err != nil || back != got || got < 0 {
			t.Errorf("parseAnonymous(%q) = %d, which reads back as %d, %v", text, got, back, err)
		}
	})
}

func TestSumBusy(t *testing.T) {
	all := []stat{
		{pid: 1, own: time.Hour},
		{pid: 10, parent: 1, session: 10, own: 1 * time.Second, children: 2 * time.Second},
		{pid: 11, parent: 10, session: 10, own: 4 * time.Second},
		{pid: 12, parent: 11, session: 12, own: 8 * time.Second}, // a daemon that it started
		{pid: 13, parent: 1, session: 10, own: 16 * time.Second}, // whose parent ended
		{pid: 20, parent: 1, session: 20, own: time.Hour},
		{pid: 21, parent: 21, session: 20, own: time.Hour}, // its own parent, which a race between two reads can show
	}
	if got, err := sumBusy(all, 10); err != nil || got != 31*time.Second {
		t.Errorf("sumBusy = %v, %v, want 31s", got, err)
	}
	if got, err := sumBusy(all, 99); err == nil {
		t.Errorf("sumBusy of a process that is not there = %v, want an error", got)
	}
}

// TestBusyCountsChildren runs a shell whose child computes and ends, and one that still runs.
func TestBusyCountsChildren(t *testing.T) {
	const spin = `i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done`
	for _, script := range []string{
		`sh -c '` + spin + `'; echo done; read x`, // ended, and waited for
		`sh -c '` + spin + `; echo done; read x'`, // a child that lives
		spin + `; echo done; read x`,
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		got, err := busy(cmd.Process.Pid)
		in.Close()
		if waitErr := cmd.Wait(); err != nil || waitErr != nil && !strings.Contains(waitErr.Error(), "exit status 1") {
			t.Fatal(err, waitErr)
		}
		want := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		// The end of the processes is in one of the two only, and ticks are rounded.
		if got < 20*time.Millisecond || got > want+clockTick || got < want-4*clockTick {
			t.Errorf("busy while %q waits = %v, and the kernel says %v at its end", script, got, want)
		}
	}
}

func TestProcessClock(t *testing.T) {
	first, err := processClock(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		second, err := processClock(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if second < first {
			t.Fatalf("processClock went back from %v to %v", first, second)
		}
		first = second
	}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	want := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	if diff := want - first; diff < -time.Second || diff > time.Second {
		t.Errorf("processClock of this process = %v, and getrusage says %v", first, want)
	}
}

func TestSettle(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	start := time.Now()
	if _, err := settle(t.Context(), cmd.Process.Pid, 100*time.Millisecond, 400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("settle took a process that computes without end for quiet after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := settle(ctx, cmd.Process.Pid, time.Hour, time.Hour); err == nil {
		t.Error("settle did not end with its context")
	}
}

func TestWatchPeak(t *testing.T) {
	peak := watchPeak(os.Getpid())
	big := make([]byte, 64<<20)
	for i := 0; i < len(big); i += 4096 {
		big[i] = 1
	}
	if got := peak(); got < int64(len(big)) {
		t.Errorf("the peak with %d bytes in use is %d", len(big), got)
	}
	if big[0] != 1 {
		t.Error("unreachable: keeps the bytes in use")
	}
}
