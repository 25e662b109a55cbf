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
	"time"

	"github.com/herdbook/herdbook/api"
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
				headline(v.Metrics, nil), v.Artifact.Digest)
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
		if s := v.Changed; s != nil {
			fmt.Fprintf(w, "State:\t%s since %s, by %s: %s\n", s.State, s.At.Format("2006-01-02 15:04"), s.By, firstLine(s.Reason))
		}
		fmt.Fprintf(w, "Published:\t%s by %s\n", v.PublishedAt.Format("2006-01-02 15:04"), v.PublishedBy)
		fmt.Fprintf(w, "Commit:\t%s\n", v.Commit)
		fmt.Fprintf(w, "Artifact:\t%s\n", v.Artifact.Digest)
		fmt.Fprintf(w, "Image:\t%s %s%s\n", v.Image.State, v.Image.Digest, v.Image.Error)
		if len(v.Metrics) > 0 {
			fmt.Fprintf(w, "Metrics:\t%s\n", headline(v.Metrics, v.Intervals))
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
		fmt.Fprintf(w, "  %s\t%s\t%s\n", datasetLine(e.Dataset), headline(e.Metrics, e.Intervals), by)
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

// headline are the metrics that most people look at first, with the intervals that are given.
func headline(metrics map[string]float64, intervals map[string]registry.Interval) string {
	var shown []string
	show := func(name string) {
		text := fmt.Sprintf("%s %.4g", name, metrics[name])
		if in, ok := intervals[name]; ok {
			text += fmt.Sprintf(" (%s)", in)
		}
		shown = append(shown, text)
	}
	for _, name := range []string{"f1", "precision", "recall", "accuracy"} {
		if _, ok := metrics[name]; ok {
			show(name)
		}
	}
	if len(shown) == 0 {
		for _, name := range slices.Sorted(maps.Keys(metrics))[:min(3, len(metrics))] {
			show(name)
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
	Replaces *string `name:"replaces" help:"Only if this version is there now; with '' only if nothing is." placeholder:"VERSION"`
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
	env, err := server.Promote(ctx, m, c.Env, client.Change{Version: c.Tag, Reason: c.Reason, Replaces: c.Replaces})
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
	Model   string    `arg:"" help:"NAMESPACE/NAME."`
	Env     string    `arg:"" optional:"" name:"env" help:"Only this environment."`
	At      time.Time `name:"at" help:"What it held at this time, such as 2026-11-23T12:00:00Z." format:"2006-01-02T15:04:05Z07:00" placeholder:"TIME"`
	History bool      `name:"history" help:"All that was ever there."`
	remote
}

// Help describes the command.
func (envCommand) Help() string {
	return "It changes nothing.\n\nExamples:\n\n  herdbook env acme/fraud\n  herdbook env acme/fraud production --at 2026-11-23T12:00:00Z\n  herdbook env acme/fraud production --history"
}

// Run shows environments.
func (c envCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	if c.Env == "" && (c.History || !c.At.IsZero()) {
		return errors.New("say of which environment: herdbook env MODEL ENVIRONMENT")
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	switch {
	case c.History:
		changes, err := server.History(ctx, m, c.Env)
		if err != nil {
			return err
		}
		return c.show(t, changes, func(w io.Writer) {
			fmt.Fprintln(w, "AT\tCHANGE\tVERSION\tBEFORE\tBY\tREASON")
			for _, e := range changes {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.At.Format(time.RFC3339), e.Kind, e.Version, orDash(e.Previous.String()), e.By, firstLine(e.Reason))
			}
		})
	case !c.At.IsZero():
		then, err := server.EnvironmentAt(ctx, m, c.Env, c.At.Format(time.RFC3339Nano))
		if err != nil {
			return err
		}
		return c.show(t, then, func(w io.Writer) {
			if then.Current == nil {
				fmt.Fprintf(w, "nothing was in %s of %s at %s\n", then.Name, m, then.At.Format(time.RFC3339))
				return
			}
			fmt.Fprintf(w, "%s %s was in %s at %s, since %s by %s\n", m, then.Current.Version, then.Name, then.At.Format(time.RFC3339), then.Current.At.Format(time.RFC3339), then.Current.By)
		})
	}
	environments, err := server.Environments(ctx, m)
	if err != nil {
		return err
	}
	if c.Env != "" {
		environments = slices.DeleteFunc(environments, func(e api.Environment) bool { return e.Name.String() != c.Env })
		if len(environments) == 0 {
			return fmt.Errorf("%s has no environment %q: it would stand in %s on the default branch", m, c.Env, registry.PolicyFile)
		}
	}
	return c.show(t, environments, func(w io.Writer) { printEnvironments(w, m, environments) })
}

func printEnvironments(w io.Writer, m registry.ModelName, environments []api.Environment) {
	fmt.Fprintln(w, "ENVIRONMENT\tVERSION\tSINCE\tBY\tREASON")
	var remarks []string
	for _, e := range environments {
		if f := e.Freeze; f != nil {
			remarks = append(remarks, fmt.Sprintf("%s is frozen by %s since %s%s", e.Name, f.By, f.At.Format(time.RFC3339), inParentheses(firstLine(f.Reason))))
		}
		if e.Current == nil {
			fmt.Fprintf(w, "%s\t-\t\t\t\n", e.Name)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Name, e.Current.Version, e.Current.At.Format("2006-01-02 15:04"), e.Current.By, firstLine(e.Current.Reason))
		if e.State != "" && e.State != registry.Published {
			remark := fmt.Sprintf("%s in %s is %s", e.Current.Version, e.Name, e.State)
			if e.Fallback != nil {
				remark += fmt.Sprintf(": 'herdbook rollback %s --env %s' puts %s back", m, e.Name, e.Fallback)
			}
			remarks = append(remarks, remark)
		}
	}
	for _, r := range remarks {
		fmt.Fprintln(w, r)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func inParentheses(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
