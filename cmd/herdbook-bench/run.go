package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type runCommand struct {
	Rounds         int           `name:"rounds" default:"5" help:"How often everything is measured, after a round that only warms up (default 5)." placeholder:"N"`
	Only           []string      `name:"only" help:"Work to measure: names of steps or of scenarios; without it, all." placeholder:"NAME"`
	Servers        []string      `name:"servers" help:"Servers to measure; without it, all that are there." placeholder:"NAME"`
	Size           string        `name:"size" enum:"tiny,small,full" default:"full" help:"How much work: full, small for a quick look, or tiny, which shows only that all works (default full)." placeholder:"SIZE"`
	Quiet          time.Duration `name:"quiet" default:"300ms" help:"How long a server has to be quiet until a step counts as done; what it computes before that is counted (default 300ms)." placeholder:"TIME"`
	Out            string        `name:"out" help:"Markdown file to write the tables into, between two marked lines; without it they are printed." placeholder:"FILE"`
	JSON           string        `name:"json" help:"File to write every single value to, as JSON." placeholder:"FILE"`
	Dir            string        `name:"dir" help:"Directory for all data while it runs; it has to be on the disk that is to be measured (default: that of temporary files)." placeholder:"DIR"`
	Herdbook       string        `name:"herdbook" default:"bin/herdbook" help:"The server to judge (default bin/herdbook)." placeholder:"FILE"`
	Registry       string        `name:"registry" help:"CNCF distribution's registry; without it, the one on the PATH, if any." placeholder:"FILE"`
	DockerRegistry string        `name:"docker-registry" help:"Debian's docker-registry; without it, the one on the PATH, if any." placeholder:"FILE"`
	Rival          []string      `name:"rival" sep:"none" help:"One more OCI registry; sh runs the command with LISTEN (host:port), PORT and DATA (an empty directory) in its environment." placeholder:"NAME=COMMAND"`
}

// Help describes the command.
func (runCommand) Help() string {
	return "It starts each server on a free port of 127.0.0.1 with empty directories below --dir, which it removes at the end; a full run needs 8 GiB there and some ten minutes. " +
		"It writes to the files named by --out and --json and nothing else.\n\nScenarios and steps for --only: " + strings.Join(stepNames(), ", ") +
		".\n\nExamples:\n\n  herdbook-bench run --out docs/benchmarks.md\n  herdbook-bench run --size small --rounds 3 --only git-clone,lfs-push\n" +
		"  herdbook-bench run --only oci --rival 'zot=exec zot serve --port $PORT --dir $DATA'"
}

// Run measures and reports.
func (c runCommand) Run(ctx context.Context, o output) error {
	if c.Rounds < 1 {
		return errors.New("at least one round is needed")
	}
	work, err := chosen(scenarios, c.Only)
	if err != nil {
		return err
	}
	kinds, err := c.chosenKinds()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.Dir, "herdbook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m, err := describeMachine(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(o.err, "making what is to be pushed")
	b := &bench{kinds: kinds, quiet: c.Quiet, progress: o.err}
	if b.fixture, err = makeFixture(ctx, dir, sizes[c.Size], work); err != nil {
		return err
	}
	for _, sc := range work {
		if err := b.measure(ctx, sc, c.Rounds); err != nil {
			return err
		}
	}
	f := b.figures.asked(work, c.Only, kinds)
	return c.write(o.out, report{m, c.Size, c.Rounds, judge(f, goals), f})
}

// chosenKinds are the servers to measure.
func (c runCommand) chosenKinds() ([]kind, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	all, err := c.kinds(self)
	if err != nil {
		return nil, err
	}
	for _, name := range c.Servers {
		if !slices.ContainsFunc(all, func(k kind) bool { return k.name == name }) {
			return nil, fmt.Errorf("there is no server %q here", name)
		}
	}
	return slices.DeleteFunc(all, func(k kind) bool { return len(c.Servers) > 0 && !slices.Contains(c.Servers, k.name) }), nil
}

// asked leaves out the steps that were only taken because others need them, and sorts by step and server.
func (f figures) asked(work []scenario, names []string, kinds []kind) figures {
	var out figures
	for _, sc := range work {
		for _, st := range sc.steps {
			if len(names) > 0 && !slices.Contains(names, sc.name) && !slices.Contains(names, st.name) {
				continue
			}
			for _, k := range kinds {
				if s := f.of(st.name, k.name); s != nil {
					out = append(out, s)
				}
			}
		}
	}
	return out
}

func (c runCommand) write(out io.Writer, r report) error {
	if c.JSON != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.JSON, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if c.Out != "" {
		return writeReport(filepath.Clean(c.Out), r.text())
	}
	_, err := io.WriteString(out, r.text())
	return err
}
