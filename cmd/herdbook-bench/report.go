package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// machine is what the figures depend on beside the programs. It names no host.
type machine struct {
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Git    string `json:"git"`
	Go     string `json:"go"`
}

func describeMachine(ctx context.Context) (machine, error) {
	m := machine{CPUs: runtime.NumCPU(), Go: strings.TrimPrefix(runtime.Version(), "go")}
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return m, fmt.Errorf("uname: %w", err)
	}
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		m.Kernel += string(rune(c))
	}
	out, err := exec.CommandContext(ctx, "git", "version").Output()
	if err != nil {
		return m, fmt.Errorf("git version: %w", err)
	}
	m.Git = strings.TrimPrefix(strings.TrimSpace(string(out)), "git version ")
	return m, nil
}

// report is everything that a run found.
type report struct {
	Machine  machine   `json:"machine"`
	Size     string    `json:"size"`
	Rounds   int       `json:"rounds"`
	Verdicts []verdict `json:"goals"`
	Figures  figures   `json:"figures"`
}

// text writes the report in Markdown.
func (r report) text() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Measured with %d rounds of size %s on %d CPUs, Linux %s, git %s, Go %s.\n",
		r.Rounds, r.Size, r.Machine.CPUs, r.Machine.Kernel, r.Machine.Git, r.Machine.Go)
	if len(r.Verdicts) > 0 {
		b.WriteString("\n### Goals\n\n| goal | limit | measured | |\n|---|---|---|---|\n")
	}
	for _, v := range r.Verdicts {
		word := "met"
		switch {
		case r.Size != "full":
			word = "not judged at this size"
		case !v.Met:
			word = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", v.Goal, v.text(v.Limit), spreadText(v.Measured, v.text), word)
	}
	b.WriteString("\n### Figures\n\n| work | server | CPU | ratio | of it later | wall | ratio | sent | memory |\n|---|---|---|---|---|---|---|---|---|\n")
	last := ""
	for _, s := range r.Figures {
		if len(s.Samples) == 0 {
			continue
		}
		what := ""
		if s.Step != last {
			what, last = s.What, s.Step
		}
		cpu, wall := "", ""
		if base := r.Figures.of(s.Step, s.Base); base != nil && base != s {
			cpu, wall = ratioText(ratios(s.cpu(), base.cpu())), ratioText(ratios(s.wall(), base.wall()))
		}
		sent := "?"
		if s.SentBytes >= 0 {
			sent = bytesText(s.SentBytes)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", what, s.Server, spreadText(spreadOf(s.cpu()), secondsText), cpu,
			secondsText(spreadOf(s.later()).Median), spreadText(spreadOf(s.wall()), secondsText), wall, sent, bytesText(s.peak()))
	}
	return b.String()
}

func spreadText(s spread, text func(float64) string) string {
	if s.N == 0 {
		return "-"
	}
	if s.Min == s.Max {
		return text(s.Median)
	}
	return fmt.Sprintf("%s (%s .. %s)", text(s.Median), text(s.Min), text(s.Max))
}

func ratioText(values []float64) string {
	s := spreadOf(values)
	if s.N == 0 {
		return "-"
	}
	return timesText(s.Median)
}

// The generated part of a document lies between these lines; what is around it is kept.
const (
	beginMark = "<!-- begin: written by make bench -->"
	endMark   = "<!-- end: written by make bench -->"
)

// between replaces what lies between the marks of a document.
func between(document, text string) (string, error) {
	before, rest, ok := strings.Cut(document, beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !ok || !ended {
		return "", fmt.Errorf("the document does not have the lines %q and %q", beginMark, endMark)
	}
	return before + beginMark + "\n" + text + endMark + after, nil
}

// writeReport puts the text into the file, between its marks if the file is there.
func writeReport(path, text string) error {
	document := beginMark + "\n" + endMark + "\n"
	switch old, err := os.ReadFile(path); {
	case err == nil:
		document = string(old)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	document, err := between(document, text)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return os.WriteFile(path, []byte(document), 0o644)
}
