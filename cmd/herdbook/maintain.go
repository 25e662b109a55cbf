package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
)

// local are the flags of the commands that look after a data directory.
type local struct {
	Config string `name:"config" env:"HERDBOOK_CONFIG" help:"YAML file with the server's settings." placeholder:"FILE"`
	Data   string `name:"data" help:"Data directory (default ./herdbook-data; HERDBOOK_DATA)." placeholder:"DIR"`
	JSON   bool   `name:"json" help:"Print what there is to say as a line of JSON each."`
}

func (l local) settings() (settings, error) {
	flags := map[string]any{}
	if l.Data != "" {
		flags["data"] = l.Data
	}
	return readSettings(l.Config, flags)
}

// run has the server of the data directory do a task, or does it when no server runs. Result gets what came of it.
func (l local) run(ctx context.Context, t terminal, name string, in, result any) (damages int, err error) {
	s, err := l.settings()
	if err != nil {
		return 0, err
	}
	v := newViewer(t, l.JSON)
	defer v.end()
	err = askServer(ctx, s.Data, name, in, v.hear)
	if errors.Is(err, errNoServer) {
		err = l.here(ctx, s, name, in, v)
	}
	switch {
	case err != nil:
		return 0, err
	case v.last.Error != "":
		return v.damages, errors.New(v.last.Error)
	}
	return v.damages, json.Unmarshal(v.last.Result, result)
}

// here does a task in this process, which has the data directory to itself.
func (l local) here(ctx context.Context, s settings, name string, in any, v *viewer) error {
	if _, err := filepath.EvalSymlinks(s.Data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	srv, err := open(ctx, s, slog.New(slog.NewTextHandler(v.t.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	v.hear(srv.carryOut(ctx, tasks[name], body, v.hear))
	return srv.data.Close()
}

// viewer shows what a task says: a bar on a terminal, else a line for each step and each finding.
type viewer struct {
	t        terminal
	json     bool
	terminal bool
	step     string
	shown    int // columns of the bar that stands there
	last     said
	damages  int
}

func newViewer(t terminal, asJSON bool) *viewer {
	_, isTerminal := t.err.(printable)
	return &viewer{t: t, json: asJSON, terminal: isTerminal && !asJSON}
}

func (v *viewer) hear(s said) {
	v.last = s
	if s.Finding != nil && s.Finding.Severity == storage.Damage {
		v.damages++
	}
	switch {
	case v.json:
		_ = json.NewEncoder(v.t.out).Encode(s)
	case s.Progress != nil:
		v.progress(*s.Progress)
	case s.Finding != nil:
		v.clear()
		f := s.Finding
		fmt.Fprintf(v.t.out, "%s: %s\n", f.Severity, strings.TrimSpace(strings.Join([]string{f.What, f.Name}, " "))+": "+f.Problem)
		if f.Advice != "" {
			fmt.Fprintf(v.t.out, "  %s\n", f.Advice)
		}
	}
}

// barWidth is that of the bar itself, in columns.
const barWidth = 30

func (v *viewer) progress(p storage.Progress) {
	if !v.terminal {
		if p.Step != v.step {
			fmt.Fprintf(v.t.err, "%s ...\n", p.Step)
		}
		v.step = p.Step
		return
	}
	if v.step != "" && p.Step != v.step {
		fmt.Fprintln(v.t.err)
		v.shown = 0
	}
	v.step = p.Step
	line := fmt.Sprintf("%-12s %s %s", p.Step, amount(p.Done, p.Unit), p.Unit)
	if p.Total > 0 {
		full := int(min(barWidth, barWidth*p.Done/p.Total))
		line = fmt.Sprintf("%-12s [%s%s] %3d %%  %s of %s %s", p.Step, strings.Repeat("#", full), strings.Repeat(".", barWidth-full),
			min(100, 100*p.Done/p.Total), amount(p.Done, p.Unit), amount(p.Total, p.Unit), p.Unit)
	}
	line = strings.TrimSuffix(line, " bytes")
	fmt.Fprintf(v.t.err, "\r%s%s", line, strings.Repeat(" ", max(0, v.shown-len(line))))
	v.shown = len(line)
}

// clear ends the line of the bar, so that something else can be said.
func (v *viewer) clear() {
	if v.shown > 0 {
		fmt.Fprintln(v.t.err)
		v.shown = 0
	}
}

func (v *viewer) end() { v.clear() }

// amount is a number as people read it.
func amount(n int64, unit string) string {
	if unit == "bytes" {
		return registry.ByteSize(n)
	}
	return fmt.Sprint(n)
}

type fsckCommand struct {
	Rate        int64 `name:"rate" help:"Read at most so many MiB of files a second." placeholder:"MIB"`
	SkipContent bool  `name:"skip-content" help:"Do not read files and objects: only whether they are there."`
	local
}

// Help describes the command.
func (fsckCommand) Help() string {
	return "It looks whether everything that was acknowledged is there: the journal's chain, the index, the repositories, every file by its SHA-256. A damaged file is set " +
		"aside, so that nobody gets it and sending it again mends it; beside that nothing is changed. The server may be running. Exits 1 when there is damage." +
		"\n\nExample:\n\n  herdbook fsck --data /var/lib/herdbook --rate 100"
}

// Run checks a data directory.
func (c fsckCommand) Run(ctx context.Context, t terminal) error {
	var r storage.FsckResult
	damages, err := c.run(ctx, t, "/fsck", storage.FsckOptions{BytesPerSecond: c.Rate << 20, SkipContent: c.SkipContent}, &r)
	if err != nil {
		return err
	}
	if !c.JSON {
		fmt.Fprintf(t.out, "%d groups of the journal, %d models with %d versions, %d files with %s (%d of them unused): %s\n",
			r.Groups, r.Models, r.Versions, r.Blobs, registry.ByteSize(r.Bytes), r.Unnamed, verdictOn(damages))
	}
	if damages > 0 {
		return exitError(1)
	}
	return nil
}

func verdictOn(damages int) string {
	switch damages {
	case 0:
		return "no damage"
	case 1:
		return "1 damage"
	}
	return fmt.Sprintf("%d damages", damages)
}

type gcCommand struct {
	Grace  time.Duration `name:"grace" default:"336h" help:"Keep what was sent within this time (default 336h, two weeks)." placeholder:"TIME"`
	Remove bool          `name:"remove" help:"Remove what was found. Without it nothing is changed."`
	local
}

// Help describes the command.
func (gcCommand) Help() string {
	return "It looks for files that nobody needs: LFS objects that no branch, tag or version leads to any more, and files that nothing names. It says what it would remove; " +
		"with --remove it removes them, and that cannot be taken back. The server may be running.\n\nExamples:\n\n" +
		"  herdbook gc --data /var/lib/herdbook\n  herdbook gc --data /var/lib/herdbook --remove"
}

// Run collects garbage.
func (c gcCommand) Run(ctx context.Context, t terminal) (err error) {
	if c.Grace < 0 {
		return errors.New("grace is a time, such as 336h")
	}
	var r gcResult
	damages, err := c.run(ctx, t, "/gc", gcOptions{Grace: c.Grace, Remove: c.Remove}, &r)
	if err != nil {
		return err
	}
	if damages > 0 {
		defer func() { err = exitError(1) }()
	}
	if c.JSON {
		return nil
	}
	artifacts := ""
	if r.Unlinked+int64(r.Repositories) > 0 {
		artifacts = fmt.Sprintf("%d blobs of artifacts that no manifest names, %d empty repositories, ", r.Unlinked, r.Repositories)
	}
	did := "would be removed (--remove does it)"
	if c.Remove {
		did = "are removed"
	}
	fmt.Fprintf(t.out, "%d LFS objects that no model needs, %s%d files with %s that nothing names %s; %d files stay, %d of them because they came lately\n",
		r.Released, artifacts, r.Blobs, registry.ByteSize(r.Bytes), did, r.Kept+r.Recent, r.Recent)
	return nil
}

type backupCommand struct {
	To string `arg:"" help:"Directory to write to: an empty one, or one with an earlier backup, which is brought up to date." placeholder:"DIR"`
	local
}

// Help describes the command.
func (backupCommand) Help() string {
	return "It writes everything that was acknowledged into a directory of its own; an earlier backup there is brought up to date, which is much faster. The server may " +
		"be running, and then it is the server that writes. Secrets are left out.\n\nExample:\n\n  herdbook backup /mnt/backup/herdbook --data /var/lib/herdbook"
}

// Run writes a backup.
func (c backupCommand) Run(ctx context.Context, t terminal) error {
	to, err := filepath.Abs(c.To)
	if err != nil {
		return err
	}
	start := time.Now()
	var b storage.Backup
	damages, err := c.run(ctx, t, "/backup", to, &b)
	if err != nil {
		return err
	}
	if !c.JSON {
		fmt.Fprintf(t.out, "%s holds %d models and %d files with %s, up to group %d of the journal (%s)\n", c.To, b.Models, b.Blobs, registry.ByteSize(b.Bytes), b.LastGroup,
			time.Since(start).Round(time.Millisecond))
	}
	if damages > 0 {
		return exitError(1)
	}
	return nil
}

type restoreCommand struct {
	From       string `arg:"" help:"Directory with a backup." placeholder:"DIR"`
	Unfinished bool   `name:"unfinished" help:"Take what is there of a backup that was broken off; run 'herdbook fsck' then."`
	local
}

// Help describes the command.
func (restoreCommand) Help() string {
	return "It makes a data directory from a backup. The directory must not be there yet, or be empty; each file is compared with its SHA-256.\n\nExample:\n\n" +
		"  herdbook restore /mnt/backup/herdbook --data /var/lib/herdbook"
}

// Run restores a backup.
func (c restoreCommand) Run(ctx context.Context, t terminal) error {
	s, err := c.settings()
	if err != nil {
		return err
	}
	v := newViewer(t, c.JSON)
	b, err := storage.Restore(ctx, c.From, s.Data, c.Unfinished, storage.Report{
		Progress: func(p storage.Progress) { v.hear(said{Progress: &p}) },
		Found:    func(f storage.Finding) { v.hear(said{Finding: &f}) },
	})
	v.end()
	if err != nil {
		return err
	}
	if err := storage.Reindex(ctx, storage.Config{Dir: s.Data, Log: slog.New(slog.DiscardHandler)}); err != nil {
		return err
	}
	if !c.JSON {
		fmt.Fprintf(t.out, "%s is restored from the backup of %s: %d models, %d files\n", s.Data, b.CreatedAt.Format("2006-01-02 15:04 UTC"), b.Models, b.Blobs)
	}
	if v.damages > 0 {
		return exitError(1)
	}
	return nil
}

type reindexCommand struct{ local }

// Help describes the command.
func (reindexCommand) Help() string {
	return "It makes the index of a data directory anew from the journal. Stop the server first.\n\nExample:\n\n  herdbook reindex --data /var/lib/herdbook"
}

// Run makes the index anew.
func (c reindexCommand) Run(ctx context.Context, t terminal) error {
	s, err := c.settings()
	if err != nil {
		return err
	}
	if _, err := filepath.EvalSymlinks(s.Data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	start := time.Now()
	if err := storage.Reindex(ctx, storage.Config{Dir: s.Data, Log: slog.New(slog.DiscardHandler)}); err != nil {
		return err
	}
	if !c.JSON {
		fmt.Fprintf(t.out, "the index of %s is new (%s)\n", s.Data, time.Since(start).Round(time.Millisecond))
	}
	return nil
}
