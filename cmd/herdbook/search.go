package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/search"
)

type searchCommand struct {
	Query []string `arg:"" optional:"" help:"Terms that all have to hold; in quotes where the shell would read > or * itself."`
	Sort  string   `name:"sort" help:"A metric, published or name; with a - before it the other way round." placeholder:"[-]KEY"`
	Limit int      `name:"limit" default:"50" help:"At most so many." placeholder:"N"`
	remote
}

// Help describes the command.
func (searchCommand) Help() string {
	return "It changes nothing. Words are looked for in the names, descriptions and tags of models. name: model: tag: license: task: library: language: dataset: base: " +
		"look at one thing, with * for any characters; version: state: env: by: published: digest: and metrics look at versions. A - before a term says that it must not hold; kind:model " +
		"and kind:version say what to find. A query that begins with a - stands behind --.\n\nExamples:\n\n" +
		"  herdbook search fraud\n" +
		"  herdbook search 'f1>0.9 env:production base:acme/bert'\n" +
		"  herdbook search 'license:apache-* version>=1.2 published>2026-01-01' --sort f1\n" +
		"  herdbook search --sort=-loss -- -state:revoked 'model:acme/*'"
}

// Run searches.
func (c searchCommand) Run(ctx context.Context, t terminal) error {
	text := strings.Join(c.Query, " ")
	q, err := search.Parse(text)
	if err != nil {
		return err
	}
	if c.Limit < 1 {
		return fmt.Errorf("--limit is a number from 1, not %d", c.Limit)
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	found, more, err := server.Search(ctx, text, c.Sort, c.Limit)
	if err != nil {
		return err
	}
	if c.Sort != "" && q.Sort.Field == "" {
		q.Sort, _ = search.ParseSort(c.Sort) // the server has taken it
	}
	if err := c.show(t, found, func(w io.Writer) { printFound(w, q, found) }); err != nil {
		return err
	}
	switch {
	case len(found) == 0:
		fmt.Fprintln(t.err, "herdbook: nothing is found that you may read")
	case more:
		fmt.Fprintf(t.err, "herdbook: there is more; --limit %d shows twice as many\n", 2*c.Limit)
	}
	return nil
}

func printFound(w io.Writer, q search.Query, found []api.Found) {
	if len(found) == 0 {
		return
	}
	metrics := searchedMetrics(q)
	if q.Finds() == search.Models {
		fmt.Fprintln(w, "MODEL\tLATEST\tMETRICS\tENVIRONMENTS\tLICENSE\tTASK\tDESCRIPTION")
	} else {
		fmt.Fprintln(w, "MODEL\tVERSION\tSTATE\tMETRICS\tENVIRONMENTS\tLICENSE\tTASK\tPUBLISHED")
	}
	for _, f := range found {
		values := foundMetrics(f, metrics)
		if q.Finds() == search.Models {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Model, orDash(f.Latest.String()), values, joinEnvironments(f.Environments), orDash(f.License), orDash(f.Task), firstLine(f.Description))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Model, f.Tag, f.State, values, joinEnvironments(f.Environments), orDash(f.License), orDash(f.Task),
			f.PublishedAt.Format("2006-01-02 15:04"))
	}
}

// searchedMetrics are those that a query names.
func searchedMetrics(q search.Query) (names []string) {
	if q.Sort.Field == search.ByMetric {
		names = append(names, q.Sort.Metric)
	}
	for _, t := range q.Terms {
		if t.Field == search.Metric && !t.Not && !slices.Contains(names, t.Text) {
			names = append(names, t.Text)
		}
	}
	return names
}

// foundMetrics are the metrics that the query names, or those that most people look at first.
func foundMetrics(f api.Found, names []string) string {
	text := headline(f.Metrics, nil)
	if len(names) > 0 {
		var shown []string
		for _, name := range names {
			if v, ok := f.Metrics[name]; ok {
				shown = append(shown, fmt.Sprintf("%s %.4g", name, v))
			}
		}
		text = strings.Join(shown, ", ")
	}
	if f.SelfReported && text != "" {
		text += " (self-reported)"
	}
	return orDash(text)
}

func joinEnvironments(names []registry.EnvironmentName) string {
	var list []string
	for _, n := range names {
		list = append(list, n.String())
	}
	return orDash(strings.Join(list, ", "))
}
