package web

import (
	"cmp"
	"context"
	"errors"
	"html/template"
	"io"
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/card"
)

func isNotFound(err error) bool { return errors.Is(err, registry.ErrNotFound) }

const (
	modelsPerPage   = 50
	versionsPerPage = 25
	maxCardBytes    = 1 << 20 // a longer card is not rendered
)

// modelRow is a model in the list of models.
type modelRow struct {
	registry.Model
	Versions int
	Latest   registry.Tag
	Running  []registry.EnvironmentState
	Metrics  []metric
}

func (p *Pages) index(c echo.Context) error {
	id := p.Identity(c)
	if id.Role == access.Nobody {
		return registry.ErrUnauthenticated
	}
	ctx := c.Request().Context()
	models, next, err := p.Index.Models(ctx, id, registry.Page{Cursor: c.QueryParam("cursor"), Limit: modelsPerPage})
	if err != nil {
		return err
	}
	rows := make([]modelRow, len(models))
	for i, m := range models {
		if rows[i], err = p.modelRow(ctx, m); err != nil {
			return err
		}
	}
	return p.show(c, http.StatusOK, "index", "Models", struct {
		Models    []modelRow
		Next      string
		First     bool
		PublicURL string
	}{rows, next, c.QueryParam("cursor") == "", p.PublicURL.String()})
}

func (p *Pages) modelRow(ctx context.Context, m registry.Model) (modelRow, error) {
	row := modelRow{Model: m}
	versions, err := p.Index.Versions(ctx, m.ID)
	if err != nil {
		return row, err
	}
	row.Versions = len(versions)
	if latest, ok := registry.Latest(versions); ok {
		row.Latest = latest.Version.Tag
		e, err := p.Index.Headline(ctx, m.ID, latest.Version.Commit)
		if err != nil {
			return row, err
		}
		row.Metrics = headline(e)
	}
	row.Running, err = p.running(ctx, m)
	return row, err
}

// running are the environments that hold a version, in the order of the policy.
func (p *Pages) running(ctx context.Context, m registry.Model) ([]registry.EnvironmentState, error) {
	places, err := p.environments(ctx, m)
	var running []registry.EnvironmentState
	for _, e := range places {
		if e.State.Current != nil {
			running = append(running, e.State)
		}
	}
	return running, err
}

// environments are those of the policy and those that once held a version.
func (p *Pages) environments(ctx context.Context, m registry.Model) ([]registry.Place, error) {
	policy, err := p.Index.Policy(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	states, err := p.Index.Environments(ctx, m.ID)
	return registry.Places(policy.Policy, states), err
}

// metric is one number of an evaluation.
type metric struct {
	Name     string
	Value    float64
	Interval *registry.Interval // nil where it is not shown or there is none
}

// preferred are the metrics that a page shows first, in this order.
var preferred = []string{"f1", "precision", "recall", "accuracy", "mcc", "f1_macro", "balanced_accuracy", "auc", "loss", "perplexity"}

// metricOrder sorts metrics for people.
func metricOrder(a, b string) int {
	rank := func(name string) int {
		if i := slices.Index(preferred, name); i >= 0 {
			return i
		}
		return len(preferred)
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}

func sorted(metrics map[string]float64) []metric {
	list := make([]metric, 0, len(metrics))
	for name, value := range metrics {
		list = append(list, metric{Name: name, Value: value})
	}
	slices.SortFunc(list, func(a, b metric) int { return metricOrder(a.Name, b.Name) })
	return list
}

// maxHeadline is how many metrics stand in a list of versions.
const maxHeadline = 4

// headline are the first metrics of the evaluation that speaks for a commit, if there is one.
func headline(e *registry.Evaluation) []metric {
	if e == nil {
		return nil
	}
	metrics := sorted(e.Metrics)
	return metrics[:min(len(metrics), maxHeadline)]
}

// versionRow is a version in the list of a model's versions.
type versionRow struct {
	registry.VersionRecord
	Metrics     []*float64 // one for each column; nil where there is none
	Evaluations int
	Gates       []gateCell
}

// gateCell says where a version stands with one environment.
type gateCell struct {
	registry.Verdict
	Live bool // the version is in the environment now
}

// modelView is the page of a model.
type modelView struct {
	registry.Model
	Usage       registry.Usage
	CloneURL    string
	PublicURL   string
	Card        template.HTML
	CardProblem string
	Facts       registry.CardFacts
	Policy      registry.PolicyState
	Places      []registry.Place
	Columns     []string // of metrics
	Versions    []versionRow
	Total       int
	Latest      registry.Tag
	Older       string // the cursor of the next page
	First       bool
}

func (p *Pages) model(c echo.Context) error {
	m, err := p.read(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	view := modelView{Model: m, CloneURL: p.PublicURL.JoinPath(m.Name.String() + ".git").String(), PublicURL: p.PublicURL.String(), First: c.QueryParam("before") == ""}
	if view.Policy, err = p.Index.Policy(ctx, m.ID); err != nil {
		return err
	}
	if view.Usage, err = p.Index.Usage(ctx, m.ID); err != nil {
		return err
	}
	if view.Places, err = p.environments(ctx, m); err != nil {
		return err
	}
	if err := p.addVersions(ctx, &view, c.QueryParam("before")); err != nil {
		return err
	}
	if err := p.addCard(ctx, &view); err != nil {
		return err
	}
	return p.show(c, http.StatusOK, "model", m.Name.String(), view)
}

// addVersions fills in a page of the versions, the highest first, from behind a tag.
func (p *Pages) addVersions(ctx context.Context, view *modelView, before string) error {
	versions, err := p.Index.Versions(ctx, view.ID)
	if err != nil {
		return err
	}
	view.Total = len(versions)
	if latest, ok := registry.Latest(versions); ok {
		view.Latest = latest.Version.Tag
	}
	if before != "" {
		last, err := registry.ParseTag(before)
		if err != nil {
			return err
		}
		versions = slices.DeleteFunc(versions, func(v registry.VersionRecord) bool { return v.Version.Tag.Compare(last) >= 0 })
	}
	if len(versions) > versionsPerPage {
		versions = versions[:versionsPerPage]
		view.Older = versions[len(versions)-1].Version.Tag.String()
	}
	gates, err := p.gates(ctx, view.Model, versions, view.Places)
	if err != nil {
		return err
	}
	found := make([]map[string]float64, len(versions))
	counts := map[string]int{}
	for i, v := range versions {
		row := versionRow{VersionRecord: v, Gates: gates[i]}
		var err error
		if row.Evaluations, err = p.Index.CountEvaluations(ctx, view.ID, v.Version.Commit); err != nil {
			return err
		}
		e, err := p.Index.Headline(ctx, view.ID, v.Version.Commit)
		if err != nil {
			return err
		}
		if e != nil {
			found[i] = e.Metrics
			for name := range e.Metrics {
				counts[name]++
			}
		}
		view.Versions = append(view.Versions, row)
	}
	for name := range counts {
		view.Columns = append(view.Columns, name)
	}
	slices.SortFunc(view.Columns, metricOrder)
	view.Columns = view.Columns[:min(len(view.Columns), maxHeadline)]
	for i := range view.Versions {
		for _, name := range view.Columns {
			var cell *float64
			if value, ok := found[i][name]; ok {
				cell = &value
			}
			view.Versions[i].Metrics = append(view.Versions[i].Metrics, cell)
		}
	}
	return nil
}

// gates are the verdicts of all environments on each of some versions.
func (p *Pages) gates(ctx context.Context, m registry.Model, versions []registry.VersionRecord, places []registry.Place) ([][]gateCell, error) {
	verdicts, err := p.Judge.VerdictsOf(ctx, m, versions)
	if err != nil {
		return nil, err
	}
	all := make([][]gateCell, len(versions))
	for i, v := range versions {
		for _, verdict := range verdicts[i] {
			all[i] = append(all[i], gateCell{verdict, slices.ContainsFunc(places, func(at registry.Place) bool {
				return at.State.Name == verdict.Environment && at.State.Version() == v.Version.Tag
			})})
		}
	}
	return all, nil
}

// addCard renders the card of the default branch as it is now.
func (p *Pages) addCard(ctx context.Context, view *modelView) error {
	refs, err := p.Index.Refs(ctx, view.ID)
	if err != nil || view.DefaultBranch == "" {
		return err
	}
	head := refs[registry.BranchRef(view.DefaultBranch)].ID
	if head == "" {
		return nil
	}
	file, size, err := p.Files.OpenFile(ctx, view.Name, head, card.File)
	if isNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer file.Close()
	if size > maxCardBytes {
		view.CardProblem = "The card is longer than 1 MiB and is not shown."
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(file, maxCardBytes))
	if err != nil {
		return err
	}
	view.Facts = card.Parse(text)
	view.CardProblem = view.Facts.Problem
	view.Card, err = p.markdown.render(ctx, card.Body(text), "/"+view.Name.String()+"/raw/"+string(head)+"/")
	return err
}
