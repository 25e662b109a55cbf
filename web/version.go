package web

import (
	"cmp"
	"context"
	"html/template"
	"io"
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/card"
)

// versionView is the page of a version.
type versionView struct {
	Model registry.Model
	registry.VersionRecord
	Pulls       []pullView
	Places      []registry.Place
	Policy      registry.PolicyState
	Verdicts    []gateCell
	Evaluations []evaluationView
	Lineage     lineageView
	History     []registry.EnvironmentChange
	Sent        []sentView
	TotalBytes  int64
	Previous    registry.Tag // the version before by precedence; zero when there is none
	Card        template.HTML
}

func (p *Pages) version(c echo.Context) error {
	m, err := p.read(c)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Param("tag"))
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	v, err := p.Index.Version(ctx, m.ID, tag)
	if err != nil {
		return err
	}
	view := versionView{
		Model: m, VersionRecord: v, Pulls: pullViews(registry.Pulls(p.PublicURL, m.Name, v)),
	}
	for _, f := range v.Version.Files {
		view.TotalBytes += f.SizeBytes
	}
	for _, add := range []func(context.Context, *versionView) error{p.addVerdicts, p.addEvaluations, p.addAttachments, p.addHistory, p.addVersionCard} {
		if err := add(ctx, &view); err != nil {
			return err
		}
	}
	versions, err := p.Index.Versions(ctx, m.ID)
	if err != nil {
		return err
	}
	view.Previous = previous(versions, tag)
	if err := p.addSent(ctx, c, &view); err != nil {
		return err
	}
	walk := registry.Walk{Start: registry.VersionNodeID(m.ID, tag), Direction: registry.Both, Depth: 1}
	graph, err := p.Index.Lineage(ctx, p.Identity(c), walk)
	if err != nil {
		return err
	}
	view.Lineage = newLineage(graph, walk.Start)
	return p.show(c, http.StatusOK, "version", m.Name.String()+" "+tag.String(), view)
}

// pullView is how one client gets the version.
type pullView struct {
	Title, Note     string
	ByTag, ByDigest string
	Digest          string // what is pulled by digest
}

// pullTitles are what the page calls the clients, and what it says of them.
var pullTitles = map[string]pullView{
	"oras":       {Title: "Artifact"},
	"docker":     {Title: "Image", Note: "the files are under /models"},
	"git":        {Title: "Git"},
	"curl":       {Title: "curl", Note: "the manifest; add -H \"Authorization: Bearer $HERDBOOK_TOKEN\" where not everybody may read", Digest: "the largest file, by digest"},
	"kserve":     {Title: "KServe", Digest: "YAML, by digest"},
	"kubernetes": {Title: "Kubernetes image volume", Digest: "YAML, by digest"},
}

// pullViews puts what belongs to one client together.
func pullViews(pulls []registry.Pull) []pullView {
	var views []pullView
	for i, pull := range pulls {
		if i == 0 || pull.Client != pulls[i-1].Client {
			view := pullTitles[pull.Client]
			view.Digest = cmp.Or(view.Digest, "by digest")
			views = append(views, view)
		}
		view := &views[len(views)-1]
		if pull.By == "tag" {
			view.ByTag = pull.Text
		} else {
			view.ByDigest = pull.Text
		}
	}
	return views
}

func (p *Pages) addVerdicts(ctx context.Context, view *versionView) (err error) {
	if view.Policy, err = p.Index.Policy(ctx, view.Model.ID); err != nil {
		return err
	}
	if view.Places, err = p.environments(ctx, view.Model); err != nil {
		return err
	}
	gates, err := p.gates(ctx, view.Model, []registry.VersionRecord{view.VersionRecord}, view.Places)
	if err != nil {
		return err
	}
	view.Verdicts = gates[0]
	return nil
}

// maxShown bounds the evaluations on a page; the API has all.
const maxShown = 50

// maxMatrixSide is the largest confusion matrix that a page draws.
const maxMatrixSide = 25

// evaluationView is one evaluation with its metrics in order and its matrix ready to draw.
type evaluationView struct {
	registry.Evaluation
	First, Rest []metric    // in order; Rest is folded
	Rows        []matrixRow // empty when there is no matrix or it is too large
	Link        string      // of the program that evaluated, when it can be followed
	Attachments []attachmentView
}

type matrixRow struct {
	Label string
	Cells []matrixCell
	Class registry.ClassMetrics
}

// matrixCell is one count; Heat is its share of the row in tenths.
type matrixCell struct {
	Count   int64
	Heat    int
	Correct bool
}

func (p *Pages) addEvaluations(ctx context.Context, view *versionView) error {
	evaluations, _, err := p.Index.NewestEvaluations(ctx, view.Model.ID, view.Version.Commit, maxShown)
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(evaluations) {
		metrics := sorted(e.Metrics)
		for i, m := range metrics {
			if in, ok := e.Intervals[m.Name]; ok {
				metrics[i].Interval = &in
			}
		}
		first := min(len(metrics), maxHeadline)
		view.Evaluations = append(view.Evaluations, evaluationView{
			Evaluation: e, First: metrics[:first], Rest: metrics[first:], Rows: rows(e), Link: safeLink(e.SourceURL),
		})
	}
	return nil
}

func rows(e registry.Evaluation) []matrixRow {
	if e.Confusion == nil || len(e.Confusion.Labels) > maxMatrixSide {
		return nil
	}
	var list []matrixRow
	for i, label := range e.Confusion.Labels {
		total := int64(0)
		for _, count := range e.Confusion.Matrix[i] {
			total += count
		}
		row := matrixRow{Label: label, Class: e.Classes[label]}
		for j, count := range e.Confusion.Matrix[i] {
			cell := matrixCell{Count: count, Correct: i == j}
			if total > 0 {
				cell.Heat = int((10*float64(count))/float64(total) + 0.5)
			}
			row.Cells = append(row.Cells, cell)
		}
		list = append(list, row)
	}
	return list
}

func (p *Pages) addHistory(ctx context.Context, view *versionView) error {
	for _, at := range view.Places {
		for cursor := ""; ; {
			changes, next, err := p.Index.History(ctx, view.Model.ID, at.State.Name, registry.Page{Cursor: cursor})
			if err != nil {
				return err
			}
			for _, change := range changes {
				if change.Version == view.Version.Tag || change.Previous == view.Version.Tag {
					view.History = append(view.History, change)
				}
			}
			if cursor = next; cursor == "" {
				break
			}
		}
	}
	slices.SortStableFunc(view.History, func(a, b registry.EnvironmentChange) int { return b.At.Compare(a.At) })
	return nil
}

// addVersionCard renders the card that was published with the version.
func (p *Pages) addVersionCard(ctx context.Context, view *versionView) error {
	i := slices.IndexFunc(view.Version.Files, func(f registry.File) bool { return f.Path == card.File })
	if i < 0 || view.Version.Files[i].SizeBytes > maxCardBytes {
		return nil
	}
	file, err := p.Blobs.Open(ctx, view.Version.Files[i].Digest)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCardBytes))
	if err != nil {
		return err
	}
	view.Card, err = p.markdown.render(ctx, card.Body(text), "/"+view.Model.Name.String()+"/raw/"+string(view.Version.Commit)+"/")
	return err
}

// lineageView is what a version came from and what came of it.
type lineageView struct {
	From, To  []relative
	Truncated bool
	Revoked   bool // it came from a version that was revoked
}

// relative is a node next to the version.
type relative struct {
	Says  string // how the two are related
	Node  registry.Node
	Label string
	Link  string // of the node's page, if it has one
}

func newLineage(g registry.Graph, start string) lineageView {
	nodes := map[string]registry.Node{}
	for _, n := range g.Nodes {
		nodes[n.ID] = n
	}
	view := lineageView{Truncated: g.Truncated, Revoked: nodes[start].RevokedAncestor != ""}
	for _, e := range g.Edges {
		switch start {
		case e.From:
			view.From = append(view.From, newRelative(nodes[e.To], e, true))
		case e.To:
			view.To = append(view.To, newRelative(nodes[e.From], e, false))
		}
	}
	order := func(a, b relative) int { return cmp.Or(cmp.Compare(a.Says, b.Says), cmp.Compare(a.Label, b.Label)) }
	slices.SortFunc(view.From, order)
	slices.SortFunc(view.To, order)
	return view
}

func newRelative(n registry.Node, e registry.LineageEdge, from bool) relative {
	r := relative{Node: n, Label: n.Name}
	switch {
	case n.Kind == registry.VersionNode:
		r.Label = n.Model + " " + n.Tag.String()
		r.Link = "/" + n.Model + "/versions/" + n.Tag.String()
	case n.Model != "": // a model of this server, named without a version
		r.Link = "/" + n.Model
	}
	r.Says = says(e, from)
	return r
}

// says puts an edge in words, seen from one end.
func says(e registry.LineageEdge, from bool) string {
	words := map[registry.Relation][2]string{
		registry.Previous:  {"follows", "followed by"},
		registry.Ancestor:  {"descends from", "ancestor of"},
		registry.Finetune:  {"fine-tuned from", "fine-tuned to"},
		registry.Adapter:   {"adapter for", "adapted by"},
		registry.Merge:     {"merged from", "merged into"},
		registry.Quantized: {"quantized from", "quantized to"},
	}
	pair, ok := words[e.Relation]
	if !ok {
		pair = map[registry.EdgeKind][2]string{
			registry.DerivedFrom: {"derived from", "origin of"},
			registry.Used:        {"used", "used by"},
			registry.GeneratedBy: {"generated by", "generated"},
		}[e.Kind]
	}
	if from {
		return pair[0]
	}
	return pair[1]
}
