package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/registry"
)

// connect makes a client from the flags and the environment.
func (r remote) connect() (*client.Client, error) {
	c := &client.Client{URL: r.Server, Token: os.Getenv("HERDBOOK_TOKEN")}
	if r.Token != "" {
		data, err := os.ReadFile(r.Token)
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		c.Token = strings.TrimSpace(string(data))
	}
	return c, nil
}

// show prints v as JSON when that was asked for, else by text.
func (r remote) show(t terminal, v any, text func(w io.Writer)) error {
	if r.JSON {
		e := json.NewEncoder(t.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

type modelsCommand struct {
	remote
}

// Help describes the command.
func (modelsCommand) Help() string {
	return "Example:\n\n  herdbook models --server https://models.example.org"
}

// Run lists models.
func (c modelsCommand) Run(ctx context.Context, t terminal) error {
	server, err := c.connect()
	if err != nil {
		return err
	}
	models, err := server.Models(ctx)
	if err != nil {
		return err
	}
	return c.show(t, models, func(w io.Writer) {
		fmt.Fprintln(w, "MODEL\tVISIBILITY\tUPDATED\tDESCRIPTION")
		for _, m := range models {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Name, m.Visibility, m.UpdatedAt.Format("2006-01-02 15:04"), firstLine(m.Description))
		}
	})
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

type versionsCommand struct {
	Model string `arg:"" help:"NAMESPACE/NAME."`
	remote
}

// Help describes the command.
func (versionsCommand) Help() string { return "Example:\n\n  herdbook versions acme/fraud" }

// Run lists versions.
func (c versionsCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	versions, err := server.Versions(ctx, m)
	if err != nil {
		return err
	}
	return c.show(t, versions, func(w io.Writer) {
		fmt.Fprintln(w, "VERSION\tSTATE\tPUBLISHED\tIMAGE\tMETRICS\tDIGEST")
		for _, v := range versions {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Tag, v.State, v.PublishedAt.Format("2006-01-02 15:04"), v.Image.State,
				headline(v.Metrics), v.Artifact.Digest)
		}
	})
}

type showCommand struct {
	Model string `arg:"" help:"NAMESPACE/NAME."`
	Tag   string `arg:"" name:"version" help:"The version, such as v1.2.0."`
	remote
}

// Help describes the command.
func (showCommand) Help() string {
	return "It changes nothing. The commands that it prints hold no token: where not everybody may read, log in first with oras login or " +
		"docker login, and give curl -H \"Authorization: Bearer $HERDBOOK_TOKEN\".\n\nExample:\n\n  herdbook show acme/fraud v1.2.0"
}

// Run shows a version.
func (c showCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Tag)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	v, err := server.Version(ctx, m, tag)
	if err != nil {
		return err
	}
	if c.JSON {
		return c.show(t, v, nil)
	}
	evaluations, err := server.Evaluations(ctx, m, tag.String())
	if err != nil {
		return err
	}
	return c.show(t, v, func(w io.Writer) {
		fmt.Fprintf(w, "Version:\t%s %s, %s\n", v.Model, v.Tag, v.State)
		fmt.Fprintf(w, "Published:\t%s by %s\n", v.PublishedAt.Format("2006-01-02 15:04"), v.PublishedBy)
		fmt.Fprintf(w, "Commit:\t%s\n", v.Commit)
		fmt.Fprintf(w, "Artifact:\t%s\n", v.Artifact.Digest)
		fmt.Fprintf(w, "Image:\t%s %s%s\n", v.Image.State, v.Image.Digest, v.Image.Error)
		if len(v.Metrics) > 0 {
			fmt.Fprintf(w, "Metrics:\t%s\n", headline(v.Metrics))
		}
		fmt.Fprintf(w, "Page:\t%s\n", v.URL)
		printEvaluations(w, evaluations)
		for _, p := range v.Pull {
			fmt.Fprintf(w, "\n%s, by %s:\n", pullTitle(p), p.By)
			for line := range strings.Lines(p.Text) {
				fmt.Fprintf(w, "  %s\n", strings.TrimSuffix(line, "\n"))
			}
		}
	})
}

// maxEvaluationsShown bounds the evaluations that are printed; --json of the API has all.
const maxEvaluationsShown = 20

// printEvaluations lists the newest evaluations first.
func printEvaluations(w io.Writer, evaluations []registry.Evaluation) {
	for i, e := range slices.Backward(evaluations) {
		if i == len(evaluations)-1 {
			fmt.Fprintln(w, "\nEvaluations:")
		}
		if len(evaluations)-i > maxEvaluationsShown {
			fmt.Fprintf(w, "  and %d older ones\n", i+1)
			break
		}
		by := cmp.Or(e.Evaluator, e.RecordedBy)
		if e.SelfReported {
			by = "self-reported"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", datasetLine(e.Dataset), headline(e.Metrics), by)
	}
}

// pullTitle says what a way to pull gives, and with which client.
func pullTitle(p registry.Pull) string {
	titles := map[string]string{
		"oras": "Artifact with oras", "docker": "Image with docker", "git": "Repository with git", "curl tag": "Manifest with curl",
		"curl digest": "Largest file with curl", "kserve": "KServe", "kubernetes": "Kubernetes image volume",
	}
	return cmp.Or(titles[p.Client], titles[p.Client+" "+p.By], p.Client)
}

// headline are the metrics that most people look at first.
func headline(metrics map[string]float64) string {
	var shown []string
	for _, name := range []string{"f1", "precision", "recall", "accuracy"} {
		if value, ok := metrics[name]; ok {
			shown = append(shown, fmt.Sprintf("%s %.4g", name, value))
		}
	}
	if len(shown) == 0 {
		for _, name := range slices.Sorted(maps.Keys(metrics))[:min(3, len(metrics))] {
			shown = append(shown, fmt.Sprintf("%s %.4g", name, metrics[name]))
		}
	}
	return strings.Join(shown, ", ")
}

func verdictLine(v registry.Verdict) string {
	if v.Open {
		return "open: " + v.Reason()
	}
	return "closed: " + v.Reason()
}

type gateCommand struct {
	Model string `arg:"" help:"NAMESPACE/NAME."`
	Rev   string `arg:"" help:"Version, or a commit, env:NAME or branch:NAME where one stands."`
	Env   string `name:"env" short:"e" help:"Only this environment." placeholder:"NAME"`
	remote
}

// Help describes the command.
func (gateCommand) Help() string {
	return "It changes nothing. It exits 1 when a gate is closed.\n\nExample:\n\n  herdbook gate acme/fraud v1.0.0 --env production"
}

// Run shows verdicts.
func (c gateCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
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

func printVerdicts(w io.Writer, verdicts []registry.Verdict) {
	for _, v := range verdicts {
		state := "closed"
		if v.Open {
			state = "open"
		}
		fmt.Fprintf(w, "%s: %s\n", v.Environment, state)
		for _, g := range v.Gates {
			mark := "closed"
			if g.Open {
				mark = "open"
			}
			fmt.Fprintf(w, "  %s\t%s\n", mark, g.Reason)
		}
	}
}

// change are the arguments of the commands that change an environment.
type change struct {
	Model  string `arg:"" help:"NAMESPACE/NAME."`
	Tag    string `arg:"" name:"version" help:"The version, such as v1.2.0."`
	Env    string `name:"env" short:"e" required:"" help:"The environment." placeholder:"NAME"`
	Reason string `name:"reason" short:"m" help:"Why, for the record." placeholder:"TEXT"`
}

type promoteCommand struct {
	change
	remote
}

// Help describes the command.
func (promoteCommand) Help() string {
	return "It changes the environment on the server and tells the hooks. It exits 1 and shows the verdict when a gate is closed.\n\n" +
		"Example:\n\n  herdbook promote acme/fraud v1.2.0 --env production --reason 'release 12'"
}

// Run promotes.
func (c promoteCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	env, err := server.Promote(ctx, m, c.Env, client.Change{Version: c.Tag, Reason: c.Reason})
	if verdict, closed := client.Closed(err); closed {
		fmt.Fprintf(t.err, "herdbook: %s %s was not promoted\n", m, c.Tag)
		w := tabwriter.NewWriter(t.err, 0, 0, 2, ' ', 0)
		printVerdicts(w, []registry.Verdict{verdict})
		return errors.Join(w.Flush(), exitError(1))
	}
	if err != nil {
		return err
	}
	return c.show(t, env, func(w io.Writer) { fmt.Fprintf(w, "%s %s is in %s\n", m, env.Current.Version, env.Name) })
}

type rollbackCommand struct {
	Model  string `arg:"" help:"NAMESPACE/NAME."`
	Env    string `name:"env" short:"e" required:"" help:"The environment." placeholder:"NAME"`
	To     string `name:"to" help:"The version to go back to; by default the one before." placeholder:"VERSION"`
	Reason string `name:"reason" short:"m" help:"Why, for the record." placeholder:"TEXT"`
	remote
}

// Help describes the command.
func (rollbackCommand) Help() string {
	return "It changes the environment on the server and tells the hooks. What is taken out is not promoted there automatically again.\n\n" +
		"Example:\n\n  herdbook rollback acme/fraud --env production --reason 'false alarms'"
}

// Run rolls back.
func (c rollbackCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	env, err := server.RollBack(ctx, m, c.Env, client.Change{Version: c.To, Reason: c.Reason})
	if err != nil {
		return err
	}
	return c.show(t, env, func(w io.Writer) { fmt.Fprintf(w, "%s %s is in %s again\n", m, env.Current.Version, env.Name) })
}

type approveCommand struct {
	change
	remote
}

// Help describes the command.
func (approveCommand) Help() string {
	return "It writes your approval to the server.\n\nExample:\n\n  herdbook approve acme/fraud v1.2.0 --env production"
}

// Run approves.
func (c approveCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	a, err := server.Approve(ctx, m, c.Env, client.Change{Version: c.Tag, Reason: c.Reason})
	if err != nil {
		return err
	}
	return c.show(t, a, func(w io.Writer) { fmt.Fprintf(w, "%s approves of %s %s for %s\n", a.By, m, a.Version, a.Environment) })
}

type envCommand struct {
	Model string `arg:"" help:"NAMESPACE/NAME."`
	remote
}

// Help describes the command.
func (envCommand) Help() string { return "Example:\n\n  herdbook env acme/fraud" }

// Run shows environments.
func (c envCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	environments, err := server.Environments(ctx, m)
	if err != nil {
		return err
	}
	return c.show(t, environments, func(w io.Writer) {
		fmt.Fprintln(w, "ENVIRONMENT\tVERSION\tSINCE\tBY\tREASON")
		for _, e := range environments {
			if e.Current == nil {
				fmt.Fprintf(w, "%s\t-\t\t\t\n", e.Name)
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Name, e.Current.Version, e.Current.At.Format("2006-01-02 15:04"), e.Current.By, firstLine(e.Current.Reason))
		}
	})
}
