package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
)

type compareCommand struct {
	Model    string `arg:"" help:"NAMESPACE/NAME."`
	A        string `arg:"" name:"a" help:"Version, commit, env:NAME or branch:NAME."`
	B        string `arg:"" name:"b" help:"What to compare with it."`
	Base     string `name:"base" help:"Model of A, when it is another one." placeholder:"NAMESPACE/NAME"`
	ExitCode bool   `name:"exit-code" help:"Exit 1 when they differ."`
	remote
}

// Help describes the command.
func (compareCommand) Help() string {
	return "It changes nothing but a cache of the server, which reads each weight file once to sum its tensors; the command waits for that. " +
		"With --exit-code it exits 1 when the files differ, or the metrics on the same data.\n\nExamples:\n\n" +
		"  herdbook compare acme/fraud v1.0.0 v1.1.0\n  herdbook compare acme/fraud env:production main --exit-code"
}

// pollEvery is the time between two questions, beside what the server waits itself.
const pollEvery = 200 * time.Millisecond

// Run compares.
func (c compareCommand) Run(ctx context.Context, t terminal) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	var base registry.ModelName
	if c.Base != "" {
		if base, err = registry.ParseModelName(c.Base); err != nil {
			return err
		}
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	d, err := c.wait(ctx, t, server, m, base)
	if err != nil {
		return err
	}
	if err := c.show(t, d, func(w io.Writer) { printComparison(w, d) }); err != nil {
		return err
	}
	if c.ExitCode && !d.Identical {
		return exitError(1)
	}
	return nil
}

// wait asks until everything is known, and shows how far the server is.
func (c compareCommand) wait(ctx context.Context, t terminal, server *client.Client, m, base registry.ModelName) (registry.Comparison, error) {
	v := newViewer(t, false)
	defer v.end()
	for {
		d, err := server.Compare(ctx, m, base, c.A, c.B)
		if err != nil || !d.Computing() {
			return d, err
		}
		p := storage.Progress{Step: "tensors", Unit: "bytes"}
		for _, w := range d.Weights {
			p.Done += w.ReadBytes
			p.Total += w.TotalBytes
		}
		v.hear(said{Progress: &p})
		select {
		case <-ctx.Done():
			return d, ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

func printComparison(w io.Writer, d registry.Comparison) {
	fmt.Fprintf(w, "%s  ->  %s\n", comparedText(d.A), comparedText(d.B))
	if d.Identical {
		fmt.Fprintln(w, "They are identical.")
	}
	printFiles(w, d.Files)
	printCard(w, d.Card)
	printMetrics(w, d.Evaluations)
	printPolicy(w, d.Policy)
	for _, one := range d.Weights {
		printWeights(w, one)
	}
}

func comparedText(c registry.Compared) string {
	text := c.Model.String() + " " + c.Rev
	if !c.Version.IsZero() && c.Version.String() != c.Rev {
		text += " (" + c.Version.String() + ")"
	}
	return text + " at " + c.Commit.Short()
}

func printFiles(w io.Writer, d registry.FileDiff) {
	fmt.Fprintf(w, "\nFiles: %d added, %d removed, %d changed, %d renamed, %d the same; %s -> %s\n", d.AddedCount, d.RemovedCount, d.ChangedCount,
		d.RenamedCount, d.Same, registry.ByteSize(d.SizeBytesA), registry.ByteSize(d.SizeBytesB))
	for _, f := range d.Added {
		fmt.Fprintf(w, "  added\t%s\t%s\n", f.Path, registry.ByteSize(f.SizeBytes))
	}
	for _, f := range d.Removed {
		fmt.Fprintf(w, "  removed\t%s\t%s\n", f.Path, registry.ByteSize(f.SizeBytes))
	}
	for _, p := range d.Changed {
		fmt.Fprintf(w, "  changed\t%s\t%s -> %s\n", p.B.Path, registry.ByteSize(p.A.SizeBytes), registry.ByteSize(p.B.SizeBytes))
	}
	for _, p := range d.Renamed {
		fmt.Fprintf(w, "  renamed\t%s -> %s\t%s\n", p.A.Path, p.B.Path, registry.ByteSize(p.B.SizeBytes))
	}
	printTruncated(w, d.Truncated)
}

func printTruncated(w io.Writer, truncated bool) {
	if truncated {
		fmt.Fprintln(w, "  and more, which are counted and not listed")
	}
}

func printCard(w io.Writer, d registry.CardDiff) {
	if len(d.Fields) == 0 && !d.TextDiffers && d.ProblemA == "" && d.ProblemB == "" {
		return
	}
	fmt.Fprint(w, "\nModel card:\n")
	for _, problem := range []string{d.ProblemA, d.ProblemB} {
		if problem != "" {
			fmt.Fprintf(w, "  cannot be read: %s\n", problem)
		}
	}
	printFields(w, "  ", d.Fields)
	if d.TextDiffers {
		fmt.Fprintln(w, "  the text differs")
	}
}

func printFields(w io.Writer, indent string, fields []registry.FieldDiff) {
	for _, f := range fields {
		fmt.Fprintf(w, "%s%s\t%s\t-> %s\n", indent, f.Name, valueText(f.A), valueText(f.B))
	}
}

// valueText is a value on one line that is not too long; JSON but for texts.
func valueText(v json.RawMessage) string {
	const most = 60
	if len(v) == 0 {
		return "none"
	}
	var text string
	if v[0] != '"' || json.Unmarshal(v, &text) != nil {
		text = string(v)
	}
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "..."
	}
	return text
}

func printMetrics(w io.Writer, evaluations []registry.EvaluationDiff) {
	for _, e := range evaluations {
		var parts []string
		for _, part := range []string{e.Dataset.Name, e.Dataset.Revision, e.Dataset.Split, e.Dataset.Slice} {
			if part != "" {
				parts = append(parts, part)
			}
		}
		fmt.Fprintf(w, "\nMetrics on %s:\n  METRIC\tA\tB\tDIFFERENCE\n", strings.Join(parts, ", "))
		for _, m := range e.Metrics {
			difference := ""
			if m.Difference != nil {
				difference = fmt.Sprintf("%+.6g", *m.Difference)
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", m.Name, metricText(m.A), metricText(m.B), difference)
		}
	}
}

func metricText(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.6g", *v)
}

func printPolicy(w io.Writer, d registry.PolicyDiff) {
	if len(d.Environments) == 0 && d.A.Problem == "" && d.B.Problem == "" {
		return
	}
	fmt.Fprintf(w, "\nPolicy:\n")
	for _, problem := range []string{d.A.Problem, d.B.Problem} {
		if problem != "" {
			fmt.Fprintf(w, "  cannot be read: %s\n", problem)
		}
	}
	for _, e := range d.Environments {
		fmt.Fprintf(w, "  %s %s\n", e.Name, e.Change)
		printFields(w, "    ", e.Fields)
		for _, g := range e.Gates {
			fmt.Fprintf(w, "    gate %s\t%s\t-> %s\n", g.Name, orNone(g.A), orNone(g.B))
		}
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func printWeights(w io.Writer, d registry.WeightsDiff) {
	name := d.PathB
	if d.PathA != d.PathB {
		name = d.PathA + " -> " + d.PathB
	}
	if d.Tensors == nil {
		fmt.Fprintf(w, "\nWeights %s: %s\n", name, d.State)
		if d.Reason != "" {
			fmt.Fprintf(w, "  %s\n", d.Reason)
		}
		return
	}
	t := d.Tensors
	fmt.Fprintf(w, "\nWeights %s: %d tensors -> %d; %d added, %d removed, %d of another type or shape, %d with other bytes, %d the same\n",
		name, t.CountA, t.CountB, t.AddedCount, t.RemovedCount, t.ChangedCount, t.BytesCount, t.Same)
	if t.UnknownCount > 0 {
		fmt.Fprintf(w, "  %d lie in other files, which differ\n", t.UnknownCount)
	}
	for _, p := range t.Items {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", p.Change, p.Name, tensorText(p))
	}
	printTruncated(w, t.Truncated)
}

// tensorText says what is worth knowing of a tensor that differs.
func tensorText(p registry.TensorPair) string {
	one := func(t *registry.Tensor) string {
		text := t.Type + " " + registry.ShapeText(t.Shape)
		if t.External != nil {
			text += " in " + t.External.Location
		}
		return text
	}
	switch {
	case p.A == nil:
		return one(p.B)
	case p.B == nil:
		return one(p.A)
	case one(p.A) == one(p.B):
		return one(p.B)
	}
	return one(p.A) + " -> " + one(p.B)
}
