package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/registry"
)

// lineageCommand groups what is asked and said about where versions come from.
type lineageCommand struct {
	Show   lineageShowCommand   `cmd:"" default:"withargs" help:"Show what a version came from and what came of it."`
	Add    lineageAddCommand    `cmd:"" help:"Declare what a version came from."`
	Path   lineagePathCommand   `cmd:"" help:"Show how a version is related to something else."`
	Diff   lineageDiffCommand   `cmd:"" help:"Show what two versions came from that the other did not."`
	Shared lineageSharedCommand `cmd:"" help:"List the files of a version that other models have too."`
}

// Help describes the command.
func (lineageCommand) Help() string {
	return "What is not a version is named dataset:NAME, run:NAME, code:URL@REVISION or model:NAME[@REVISION].\n\nExamples:\n\n" +
		"  herdbook lineage show acme/fraud v1.2.0\n  herdbook lineage add acme/fraud v1.2.0 --run jenkins/42"
}

// ofVersion is the version that a command is about.
type ofVersion struct {
	Model string `arg:"" help:"NAMESPACE/NAME."`
	Rev   string `arg:"" name:"version" help:"Version, commit, env:NAME or branch:NAME."`
	remote
}

// open reads the model's name and makes a client.
func (o ofVersion) open() (registry.ModelName, *client.Client, error) {
	m, err := registry.ParseModelName(o.Model)
	if err != nil {
		return m, nil, err
	}
	server, err := o.connect()
	return m, server, err
}

type lineageShowCommand struct {
	ofVersion
	Direction string `name:"direction" enum:"ancestors,descendants,both" default:"both" help:"ancestors, descendants or both."`
	Depth     int    `name:"depth" default:"0" help:"Edges from the version; 0 means as far as the server goes." placeholder:"N"`
	Kinds     string `name:"kinds" help:"Only these kinds of edges: derived_from, used, generated_by, evaluated_with; joined by commas." placeholder:"KINDS"`
	Limit     int    `name:"limit" default:"1000" help:"Nodes at most." placeholder:"N"`
	Format    string `name:"format" enum:"text,openlineage,prov" default:"text" help:"text, or openlineage or prov (PROV-JSON), of which the first 200 nodes are printed."`
}

// Help describes the command.
func (lineageShowCommand) Help() string {
	return "It changes nothing.\n\nExamples:\n\n  herdbook lineage show acme/fraud v1.2.0 --direction ancestors\n" +
		"  herdbook lineage show acme/fraud env:production --format openlineage"
}

// Run shows lineage.
func (c lineageShowCommand) Run(ctx context.Context, t terminal) error {
	m, server, err := c.open()
	if err != nil {
		return err
	}
	query := url.Values{"direction": {c.Direction}}
	if c.Depth != 0 {
		query.Set("depth", strconv.Itoa(c.Depth))
	}
	if c.Kinds != "" {
		query.Set("kinds", c.Kinds)
	}
	if c.Format != "text" {
		query.Set("format", c.Format)
		text, err := server.LineageAs(ctx, m, c.Rev, query)
		if err != nil {
			return err
		}
		e := json.NewEncoder(t.out)
		e.SetIndent("", "  ")
		return e.Encode(text)
	}
	graph, err := server.Lineage(ctx, m, c.Rev, query, c.Limit)
	if err != nil {
		return err
	}
	return c.show(t, graph, func(w io.Writer) { printLineage(w, graph) })
}

// printLineage prints a graph as two trees that begin at its first node: what that came from, and what came of it.
func printLineage(w io.Writer, g registry.Graph) {
	if len(g.Nodes) == 0 {
		return
	}
	fmt.Fprintln(w, nodeText(g.Nodes[0]))
	for _, up := range []bool{true, false} {
		title := "came from"
		if !up {
			title = "led to"
		}
		newLineageTree(w, g, up, "\n"+title+"\n").print(g.Nodes[0].ID, 1)
	}
	if g.Truncated {
		fmt.Fprintln(w, "\nThere is more: see --depth and --limit.")
	}
}

// lineageTree prints one direction of a graph. A node stands below the nearest of those that lead to it, and is only named below the others.
type lineageTree struct {
	w     io.Writer
	nodes map[string]registry.Node
	next  map[string][]registry.LineageEdge // by node, in the order in which the walk met the other ends
	above map[string]string                 // where a node stands
	up    bool
	title string // before the first line
}

func newLineageTree(w io.Writer, g registry.Graph, up bool, title string) *lineageTree {
	t := &lineageTree{w, map[string]registry.Node{}, map[string][]registry.LineageEdge{}, map[string]string{g.Nodes[0].ID: ""}, up, title}
	order := map[string]int{}
	for i, n := range g.Nodes {
		t.nodes[n.ID], order[n.ID] = n, i
	}
	for _, e := range g.Edges {
		here, _ := t.ends(e)
		t.next[here] = append(t.next[here], e)
	}
	for _, edges := range t.next {
		slices.SortStableFunc(edges, func(a, b registry.LineageEdge) int {
			_, first := t.ends(a)
			_, second := t.ends(b)
			return cmp.Compare(order[first], order[second])
		})
	}
	level := []string{g.Nodes[0].ID}
	for len(level) > 0 {
		var below []string
		for _, id := range level {
			for _, e := range t.next[id] {
				_, there := t.ends(e)
				if _, met := t.above[there]; !met {
					t.above[there] = id
					below = append(below, there)
				}
			}
		}
		level = below
	}
	return t
}

// ends are the end of an edge at which the tree comes to it, and the other one.
func (t *lineageTree) ends(e registry.LineageEdge) (here, there string) {
	if t.up {
		return e.From, e.To
	}
	return e.To, e.From
}

func (t *lineageTree) print(id string, depth int) {
	printed := map[string]bool{}
	for _, e := range t.next[id] {
		fmt.Fprint(t.w, t.title)
		t.title = ""
		how := strings.ReplaceAll(string(e.Kind), "_", " ")
		if e.Relation != "" {
			how += " (" + string(e.Relation) + ")"
		}
		_, there := t.ends(e)
		elsewhere := ""
		if t.above[there] != id || printed[there] {
			elsewhere = ", listed elsewhere"
		}
		fmt.Fprintf(t.w, "%s%s: %s%s\n", strings.Repeat("  ", depth), how, nodeText(t.nodes[there]), elsewhere)
		if elsewhere == "" {
			printed[there] = true
			t.print(there, depth+1)
		}
	}
}

// nodeText is a node as people name it.
func nodeText(n registry.Node) string {
	if n.Kind != registry.VersionNode {
		return n.ID
	}
	text := n.Model + "@" + n.Tag.String()
	if n.State != registry.Published {
		text += " (" + string(n.State) + ")"
	}
	if n.RevokedAncestor != "" {
		text += " (from a revoked version)"
	}
	return text
}

type lineageAddCommand struct {
	ofVersion
	Dataset  []string `name:"dataset" help:"It used this dataset. May be repeated." placeholder:"NAME"`
	Code     []string `name:"code" help:"It used this code. May be repeated." placeholder:"URL@REVISION"`
	Runs     []string `name:"run" help:"This run made it. May be repeated." placeholder:"NAME"`
	Base     []string `name:"base" help:"It came from this model: NAMESPACE/NAME@TAG, or a name elsewhere. May be repeated." placeholder:"NAME"`
	Relation string   `name:"relation" enum:"finetune,adapter,merge,quantized," default:"" help:"How it came from the base: finetune, adapter, merge or quantized."`
}

// Help describes the command.
func (lineageAddCommand) Help() string {
	return "What was declared stays. What would close a cycle is refused, with the way that it would close; declaring the same again changes nothing.\n\nExamples:\n\n" +
		"  herdbook lineage add acme/fraud v1.2.0 --run jenkins/42 --code https://git.example/train@4f1c2aa --dataset calls-2026\n" +
		"  herdbook lineage add acme/fraud v1.2.0 --base acme/bert@v2.0.0 --relation finetune"
}

// edges are what the flags declare.
func (c lineageAddCommand) edges() (edges []api.Edge) {
	add := func(names []string, prefix string, kind registry.EdgeKind, relation string) {
		for _, name := range names {
			edges = append(edges, api.Edge{To: prefix + strings.TrimPrefix(name, prefix), Kind: kind, Relation: registry.Relation(relation)})
		}
	}
	add(c.Dataset, "dataset:", registry.Used, "")
	add(c.Code, "code:", registry.Used, "")
	add(c.Runs, "run:", registry.GeneratedBy, "")
	add(c.Base, "model:", registry.DerivedFrom, c.Relation)
	return edges
}

// Run declares edges.
func (c lineageAddCommand) Run(ctx context.Context, t terminal) error {
	edges := c.edges()
	if len(edges) == 0 {
		return errors.New("say what it came from: --dataset, --code, --run or --base")
	}
	m, server, err := c.open()
	if err != nil {
		return err
	}
	added, err := server.Declare(ctx, m, c.Rev, api.Edges{Edges: edges})
	if err != nil {
		return err
	}
	return c.show(t, added, func(w io.Writer) {
		for _, e := range added {
			fmt.Fprintf(w, "%s %s: %s %s\n", m, c.Rev, strings.ReplaceAll(string(e.Kind), "_", " "), e.To)
		}
	})
}

type lineagePathCommand struct {
	ofVersion
	To string `arg:"" name:"to" help:"NAMESPACE/NAME@TAG, or a node such as dataset:NAME."`
}

// Help describes the command.
func (lineagePathCommand) Help() string {
	return "It changes nothing. It exits 1 when the two are not related.\n\nExample:\n\n  herdbook lineage path acme/fraud v1.2.0 acme/bert@v2.0.0"
}

// Run shows a path.
func (c lineagePathCommand) Run(ctx context.Context, t terminal) error {
	m, server, err := c.open()
	if err != nil {
		return err
	}
	path, err := server.Path(ctx, m, c.Rev, c.To)
	if err != nil {
		return err
	}
	err = c.show(t, path, func(w io.Writer) {
		if len(path.Nodes) == 0 {
			fmt.Fprintf(w, "%s %s and %s are not related.\n", m, c.Rev, c.To)
		}
		for i, n := range path.Nodes {
			line := nodeText(n)
			if n.ID == path.Common {
				line += "  (both came from it)"
			}
			fmt.Fprintln(w, line)
			if i < len(path.Edges) {
				e := path.Edges[i]
				arrow := "came from, " + strings.ReplaceAll(string(e.Kind), "_", " ")
				if e.From != n.ID {
					arrow = "led to, " + strings.ReplaceAll(string(e.Kind), "_", " ")
				}
				if e.Relation != "" {
					arrow += " (" + string(e.Relation) + ")"
				}
				fmt.Fprintf(w, "  %s\n", arrow)
			}
		}
	})
	return cmp.Or(err, exitIf(len(path.Nodes) == 0))
}

// exitIf is how a command ends whose answer is no.
func exitIf(no bool) error {
	if no {
		return exitError(1)
	}
	return nil
}

type lineageDiffCommand struct {
	ofVersion
	With     string `arg:"" name:"with" help:"NAMESPACE/NAME@TAG."`
	ExitCode bool   `name:"exit-code" help:"Exit 1 when they came from different things."`
}

// Help describes the command.
func (lineageDiffCommand) Help() string {
	return "It changes nothing.\n\nExample:\n\n  herdbook lineage diff acme/fraud v1.2.0 acme/fraud@v1.1.0"
}

// Run shows how two lineages differ.
func (c lineageDiffCommand) Run(ctx context.Context, t terminal) error {
	m, server, err := c.open()
	if err != nil {
		return err
	}
	items, err := server.LineageDiff(ctx, m, c.Rev, c.With)
	if err != nil {
		return err
	}
	differ := false
	for _, i := range items {
		differ = differ || i.In != registry.InAB
	}
	err = c.show(t, items, func(w io.Writer) {
		marks := map[registry.Membership]string{registry.OnlyA: "-", registry.OnlyB: "+", registry.InAB: " "}
		for _, i := range items {
			fmt.Fprintf(w, "%s %s\n", marks[i.In], nodeText(i.Node))
		}
	})
	return cmp.Or(err, exitIf(c.ExitCode && differ))
}

type lineageSharedCommand struct{ ofVersion }

// Help describes the command.
func (lineageSharedCommand) Help() string {
	return "It changes nothing. Files are compared by digest, whatever they are called.\n\nExample:\n\n  herdbook lineage shared acme/fraud v1.2.0"
}

// Run lists shared files.
func (c lineageSharedCommand) Run(ctx context.Context, t terminal) error {
	m, server, err := c.open()
	if err != nil {
		return err
	}
	items, err := server.Shared(ctx, m, c.Rev)
	if err != nil {
		return err
	}
	return c.show(t, items, func(w io.Writer) {
		if len(items) == 0 {
			fmt.Fprintln(w, "No other model that you may read has a file of it.")
			return
		}
		fmt.Fprintln(w, "FILE\tSIZE\tMODEL\tVERSIONS\tDIGEST")
		for _, i := range items {
			var tags []string
			for _, tag := range i.Versions {
				tags = append(tags, tag.String())
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", i.Path, registry.ByteSize(i.SizeBytes), i.Model, cmp.Or(strings.Join(tags, " "), "none"), i.Digest)
		}
	})
}

type impactCommand struct {
	Dataset  string `name:"dataset" xor:"of" help:"Of a dataset, by its name." placeholder:"NAME"`
	Model    string `name:"model" xor:"of" help:"Of a model and all its versions, or of one: NAMESPACE/NAME@TAG." placeholder:"NAME"`
	Digest   string `name:"digest" xor:"of" help:"Of a file, by its digest." placeholder:"sha256:HEX"`
	Node     string `name:"node" xor:"of" help:"Of anything in lineage, such as run:NAME." placeholder:"NODE"`
	Limit    int    `name:"limit" default:"1000" help:"Nodes at most." placeholder:"N"`
	ExitCode bool   `name:"exit-code" help:"Exit 1 when something of it runs somewhere."`
	remote
}

// Help describes the command.
func (impactCommand) Help() string {
	return "It changes nothing. It lists what you may read.\n\nExamples:\n\n  herdbook impact --dataset calls-2026\n  herdbook impact --model acme/bert@v2.0.0 --exit-code"
}

// Run shows what came from something.
func (c impactCommand) Run(ctx context.Context, t terminal) error {
	query := url.Values{}
	for name, value := range map[string]string{"dataset": c.Dataset, "model": c.Model, "digest": c.Digest, "node": c.Node} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if len(query) == 0 {
		return errors.New("say what the impact is asked for: --dataset, --model, --digest or --node")
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	impact, err := server.Impact(ctx, query, c.Limit)
	if err != nil {
		return err
	}
	err = c.show(t, impact, func(w io.Writer) { printImpact(w, impact) })
	return cmp.Or(err, exitIf(c.ExitCode && len(impact.Running) > 0))
}

func printImpact(w io.Writer, impact registry.Impact) {
	if len(impact.Items) == 0 {
		fmt.Fprintln(w, "Nothing that you may read came from it.")
		return
	}
	if len(impact.Running) == 0 {
		fmt.Fprintln(w, "Nothing of it runs anywhere.")
	} else {
		fmt.Fprintln(w, "RUNS IN\tMODEL\tVERSION\tSTATE\tSINCE")
	}
	for _, r := range impact.Running {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Environment, r.Model, r.Tag, r.State, r.Since.Format("2006-01-02 15:04"))
	}
	fmt.Fprintln(w, "\nDISTANCE\tNODE\tENVIRONMENTS")
	for _, i := range impact.Items {
		var names []string
		for _, e := range i.Environments {
			names = append(names, e.String())
		}
		fmt.Fprintf(w, "%d\t%s\t%s\n", i.Depth, nodeText(i.Node), strings.Join(names, " "))
	}
	if impact.Truncated {
		fmt.Fprintln(w, "There is more: see --limit.")
	}
}
