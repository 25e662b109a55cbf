package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/gate"
)

// gateCommand shows verdicts, and decides once more.
type gateCommand struct {
	Show   gateShowCommand   `cmd:"" default:"withargs" help:"Show what the gates say of a version; exits 1 when one is closed."`
	Replay gateReplayCommand `cmd:"" help:"Decide once more from what a decision was made from, without a server."`
}

// Help describes the command.
func (gateCommand) Help() string {
	return "It changes nothing. It exits 1 when a gate is closed.\n\nExamples:\n\n  herdbook gate acme/fraud v1.0.0 --env production\n" +
		"  herdbook gate acme/fraud v1.0.0 --env production --facts > decision.json\n  herdbook gate replay decision.json"
}

type gateShowCommand struct {
	Model string `arg:"" help:"NAMESPACE/NAME."`
	Rev   string `arg:"" help:"Version, or a commit, env:NAME or branch:NAME where one stands."`
	Env   string `name:"env" short:"e" help:"Only this environment." placeholder:"NAME"`
	Facts bool   `name:"facts" help:"Print the decision as JSON with all that it is made from, for 'herdbook gate replay'; needs --env."`
	remote
}

// Help describes the command.
func (gateShowCommand) Help() string {
	return "It changes nothing. It exits 1 when a gate is closed. The word 'show' can be left out.\n\nExamples:\n\n" +
		"  herdbook gate show acme/fraud v1.0.0\n  herdbook gate acme/fraud v1.0.0 --env production --facts > decision.json"
}

// Run shows verdicts.
func (c gateShowCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	if c.Facts {
		if c.Env == "" {
			return errors.New("say which environment's decision: --env NAME")
		}
		decision, err := server.Decision(ctx, m, c.Rev, c.Env)
		if err != nil {
			return err
		}
		c.JSON = true
		return c.show(t, decision, nil)
	}
	verdicts, err := server.Gates(ctx, m, c.Rev)
	if err != nil {
		return err
	}
	if c.Env != "" {
		verdicts = slices.DeleteFunc(verdicts, func(v registry.Verdict) bool { return v.Environment.String() != c.Env })
		if len(verdicts) == 0 {
			return fmt.Errorf("%s has no environment %q: it would stand in %s on the default branch", m, c.Env, registry.PolicyFile)
		}
	}
	if err := c.show(t, verdicts, func(w io.Writer) { printVerdicts(w, verdicts) }); err != nil {
		return err
	}
	if len(verdicts) == 0 {
		return fmt.Errorf("%s has no environments: they stand in %s on the default branch", m, registry.PolicyFile)
	}
	if slices.ContainsFunc(verdicts, func(v registry.Verdict) bool { return !v.Open }) {
		return exitError(1)
	}
	return nil
}

type gateReplayCommand struct {
	File string `arg:"" help:"The decision, or the statement about it that is attached to the artifact; - reads it from standard input."`
}

// Help describes the command.
func (gateReplayCommand) Help() string {
	return "It asks no server and changes nothing. It exits 1 when this program decides otherwise than the file says.\n\nExample:\n\n" +
		"  oras blob fetch --output - HOST/acme/fraud@sha256:... | herdbook gate replay -"
}

// Run decides once more.
func (c gateReplayCommand) Run(t terminal) error {
	data, err := c.read(t)
	if err != nil {
		return err
	}
	decision, err := gate.ParseDecision(data)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	judge, err := gate.New()
	if err != nil {
		return err
	}
	again, same, err := judge.Replay(decision)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s %s, decided from what was known at %s:\n", decision.Model, decision.Facts.Tag, decision.Facts.Now.Format("2006-01-02 15:04:05"))
	printVerdicts(w, []registry.Verdict{again})
	if err := w.Flush(); err != nil {
		return err
	}
	if !same {
		fmt.Fprintln(t.err, "herdbook: the file says otherwise:")
		w := tabwriter.NewWriter(t.err, 0, 0, 2, ' ', 0)
		printVerdicts(w, []registry.Verdict{decision.Verdict})
		return errors.Join(w.Flush(), exitError(1))
	}
	_, err = fmt.Fprintln(t.out, "The same as it was decided then.")
	return err
}

func (c gateReplayCommand) read(t terminal) ([]byte, error) {
	in := t.in
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, gate.MaxDecisionBytes+1))
}
