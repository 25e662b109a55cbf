package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
	"github.com/herdbook/herdbook/registry/gate"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// policyCommand groups what is done with policies.
type policyCommand struct {
	Check policyCheckCommand `cmd:"" help:"Check a herdbook.yaml, and tell what it would mean."`
}

// Help describes the command.
func (policyCommand) Help() string {
	return "It changes nothing.\n\nExample:\n\n  herdbook policy check herdbook.yaml --model acme/fraud"
}

type policyCheckCommand struct {
	File    string `arg:"" optional:"" default:"herdbook.yaml" help:"The policy; - reads it from standard input."`
	Model   string `name:"model" help:"Also ask the server what it would mean for this model." placeholder:"NAMESPACE/NAME"`
	Version string `name:"version" help:"Only for this version of the model." placeholder:"VERSION"`
	remote
}

// Help describes the command.
func (policyCheckCommand) Help() string {
	return "It changes nothing. Without --model it asks no server. It exits 1 when the policy cannot be used.\n\nExamples:\n\n" +
		"  herdbook policy check\n  herdbook policy check herdbook.yaml --model acme/fraud --version v1.2.0"
}

// Run checks a policy.
func (c policyCheckCommand) Run(ctx context.Context, t terminal) error {
	if c.Version != "" && c.Model == "" {
		return fmt.Errorf("say of which model %s is a version: --model NAMESPACE/NAME", c.Version)
	}
	text, err := c.read(t)
	if err != nil {
		return err
	}
	judge, err := gate.New()
	if err != nil {
		return err
	}
	policy, err := card.ParsePolicy(text, judge.Check)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if c.Model == "" {
		return c.show(t, policy, func(w io.Writer) {
			fmt.Fprintf(w, "%s can be used\n", c.File)
			for _, e := range policy.Environments {
				fmt.Fprintf(w, "  %s\t%s\t%s\n", e.Name, e.Promote, gateCount(e))
			}
		})
	}
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	out, err := server.TryPolicy(ctx, m, api.PolicyTrial{Policy: string(text), Version: c.Version})
	if err != nil {
		return err
	}
	return c.show(t, out, func(w io.Writer) { printOutcome(w, m, out) })
}

func (c policyCheckCommand) read(t terminal) ([]byte, error) {
	if c.File == "-" {
		return io.ReadAll(t.in)
	}
	return os.ReadFile(c.File)
}

func gateCount(e registry.Environment) string {
	n := len(e.Gates)
	if e.Slices != nil {
		n += len(e.Slices.Gates)
	}
	if n == 1 {
		return "1 gate"
	}
	return fmt.Sprintf("%d gates", n)
}

func printOutcome(w io.Writer, m registry.ModelName, out api.PolicyOutcome) {
	for _, warning := range out.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	if len(out.Items) == 0 {
		fmt.Fprintf(w, "The policy can be used. %s has no version that it would concern.\n", m)
		return
	}
	fmt.Fprintln(w, "VERSION\tENVIRONMENT\tNOW\tTHEN\tWHY")
	for _, v := range out.Items {
		for _, e := range v.Environments {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Version, e.Verdict.Environment, openNow(e.Now), then(e), e.Verdict.Reason())
		}
	}
}

func openNow(open *bool) string {
	switch {
	case open == nil:
		return "-"
	case *open:
		return "open"
	}
	return "closed"
}

func then(e lifecycle.EnvironmentOutcome) string {
	switch {
	case e.Held:
		return "stays there"
	case e.Promotes:
		return "is promoted"
	case e.Verdict.Open:
		return "open"
	}
	return "closed"
}
