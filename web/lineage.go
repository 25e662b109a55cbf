package web

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
)

// lineagePage is the page with the graph of what a version came from and what came of it.
type lineagePage struct {
	Model     registry.Model
	Tag       registry.Tag
	Depth     int
	Deeper    int // the depth that shows more, 0 when there is none
	Drawing   drawing
	Edges     []shownEdge
	Truncated bool
	Shared    []registry.SharedFile
	More      bool // more files are shared
}

// shownEdge is a row of the table below the graph.
type shownEdge struct{ From, To relative }

// drawing is a graph as it is drawn: what came first is on the left. Lengths are in pixels.
type drawing struct {
	Width, Height int
	Boxes         []box
	Lines         []line
}

type box struct {
	relative
	X, Y  int
	Class string
	Short string // the label, as far as it fits
	Note  string // what kind of thing it is
}

// Where the texts of a box are written, and how large it is.
func (b box) TextX() int  { return b.X + 12 }
func (b box) NoteY() int  { return b.Y + 18 }
func (b box) LabelY() int { return b.Y + 36 }
func (box) Width() int    { return boxWidth }
func (box) Height() int   { return boxHeight }

type line struct {
	Path  string // as SVG writes it
	Says  string
	Class string
}

// The sizes of a drawing.
const (
	boxWidth, boxHeight = 216, 48
	layerGap, rowGap    = 84, 18
	margin              = 8
	maxLabel            = 26 // letters
	maxDrawn            = 120
	defaultDepth        = 3
)

func (p *Pages) lineage(c echo.Context) error {
	m, err := p.read(c)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Param("tag"))
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if _, err := p.Index.Version(ctx, m.ID, tag); err != nil {
		return err
	}
	view := lineagePage{Model: m, Tag: tag, Depth: defaultDepth}
	if text := c.QueryParam("depth"); text != "" {
		if view.Depth, err = strconv.Atoi(text); err != nil || view.Depth < 1 || view.Depth > registry.MaxLineageDepth {
			return registry.Invalid("depth", "depth is a number from 1 to %d", registry.MaxLineageDepth)
		}
	}
	walk := registry.Walk{Start: registry.VersionNodeID(m.ID, tag), Direction: registry.Both, Depth: view.Depth, Limit: maxDrawn}
	g, err := p.Index.Lineage(ctx, p.Identity(c), walk)
	if err != nil {
		return err
	}
	view.Truncated = g.Truncated
	if g.Truncated && g.Next == "" && view.Depth < registry.MaxLineageDepth {
		view.Deeper = min(2*view.Depth, registry.MaxLineageDepth)
	}
	view.Drawing = draw(g, walk.Start)
	nodes := map[string]registry.Node{}
	for _, n := range g.Nodes {
		nodes[n.ID] = n
	}
	for _, e := range g.Edges {
		view.Edges = append(view.Edges, shownEdge{newRelative(nodes[e.From], e, true), newRelative(nodes[e.To], e, false)})
	}
	var next string
	if view.Shared, next, err = p.Index.Shared(ctx, p.Identity(c), m.ID, tag, registry.Page{Limit: 50}); err != nil {
		return err
	}
	view.More = next != ""
	return p.show(c, http.StatusOK, "lineage", "Lineage of "+m.Name.String()+" "+tag.String(), view)
}

// draw lays a graph out in layers: the start in the middle, what it came from to the left, what came of it to the right.
func draw(g registry.Graph, start string) drawing {
	layers := layersOf(g, start)
	if len(layers) == 0 {
		return drawing{}
	}
	lowest, highest := 0, 0
	for _, l := range layers {
		lowest, highest = min(lowest, l), max(highest, l)
	}
	rows := make([][]registry.Node, highest-lowest+1)
	for _, n := range g.Nodes {
		if l, ok := layers[n.ID]; ok {
			rows[l-lowest] = append(rows[l-lowest], n)
		}
	}
	tallest := 0
	for _, r := range rows {
		tallest = max(tallest, len(r))
	}
	d := drawing{
		Width:  2*margin + len(rows)*boxWidth + (len(rows)-1)*layerGap,
		Height: 2*margin + tallest*boxHeight + (tallest-1)*rowGap,
	}
	at := map[string]box{}
	// From the middle outward, each node as near as can be to those that it hangs on.
	order := []int{-lowest}
	for i := 1; i < len(rows); i++ {
		order = append(order, -lowest-i, -lowest+i)
	}
	for _, l := range order {
		if l < 0 || l >= len(rows) {
			continue
		}
		slices.SortStableFunc(rows[l], func(a, b registry.Node) int { return cmp.Compare(height(a.ID, g.Edges, at), height(b.ID, g.Edges, at)) })
		top := (d.Height - len(rows[l])*boxHeight - (len(rows[l])-1)*rowGap) / 2
		for i, n := range rows[l] {
			b := newBox(n, start)
			b.X, b.Y = margin+l*(boxWidth+layerGap), top+i*(boxHeight+rowGap)
			at[n.ID] = b
			d.Boxes = append(d.Boxes, b)
		}
	}
	for _, e := range g.Edges {
		from, known := at[e.From]
		to, there := at[e.To]
		if known && there {
			d.Lines = append(d.Lines, newLine(from, to, e))
		}
	}
	return d
}

// layersOf are the places of nodes left and right of the start: each is left of all that came from it, unless the graph has a cycle.
func layersOf(g registry.Graph, start string) map[string]int {
	near := nearest(g, start)
	far := maps.Clone(near)
	for range len(far) + 1 {
		moved := false
		for _, e := range g.Edges {
			from, known := far[e.From]
			to, there := far[e.To]
			switch {
			case !known || !there || from > to:
			case near[e.To] < 0:
				far[e.To], moved = from-1, true
			case near[e.From] > 0:
				far[e.From], moved = to+1, true
			}
		}
		if !moved {
			return far
		}
	}
	return near
}

// nearest are the distances of nodes from the start, negative for what it came from.
func nearest(g registry.Graph, start string) map[string]int {
	places := map[string]int{}
	if len(g.Nodes) == 0 {
		return places
	}
	places[start] = 0
	for _, step := range []int{-1, 1} {
		level := []string{start}
		for at := step; len(level) > 0; at += step {
			var next []string
			for _, e := range g.Edges {
				here, there := e.From, e.To
				if step > 0 {
					here, there = there, here
				}
				if _, met := places[there]; !met && slices.Contains(level, here) {
					places[there] = at
					next = append(next, there)
				}
			}
			level = next
		}
	}
	return places
}

// height is the mean height of what is drawn already and joined with a node.
func height(id string, edges []registry.LineageEdge, at map[string]box) int {
	sum, n := 0, 0
	for _, e := range edges {
		other := ""
		switch id {
		case e.From:
			other = e.To
		case e.To:
			other = e.From
		}
		if b, ok := at[other]; ok {
			sum, n = sum+b.Y, n+1
		}
	}
	return sum / max(n, 1)
}

func newBox(n registry.Node, start string) box {
	b := box{relative: newRelative(n, registry.LineageEdge{}, true), Class: string(n.Kind), Note: kindNames[n.Kind]}
	b.Short = b.Label
	if utf8.RuneCountInString(b.Short) > maxLabel {
		runes := []rune(b.Short)
		b.Short = string(runes[:maxLabel/2-1]) + "…" + string(runes[len(runes)-maxLabel/2:])
	}
	if n.Kind == registry.VersionNode && n.State != registry.Published {
		b.Class, b.Note = b.Class+" "+string(n.State), string(n.State)
	}
	if n.RevokedAncestor != "" && n.State.Usable() {
		b.Class, b.Note = b.Class+" tainted", "from a revoked version"
	}
	if n.ID == start {
		b.Class, b.Note = b.Class+" here", "this version"
		if n.State != registry.Published {
			b.Note += ", " + string(n.State)
		}
	}
	return b
}

// kindNames are what people call the kinds of nodes.
var kindNames = map[registry.NodeKind]string{
	registry.VersionNode: "version", registry.ExternalModelNode: "base model", registry.DatasetNode: "dataset", registry.RunNode: "run", registry.CodeNode: "code",
}

// newLine draws an edge from the right side of what came first to the left side of what came of it; within a layer it bows to the right.
func newLine(from, to box, e registry.LineageEdge) line {
	x1, y1, x2, y2 := to.X+boxWidth, to.Y+boxHeight/2, from.X, from.Y+boxHeight/2
	bend := layerGap / 2
	l := line{Says: from.Label + " " + says(e, true) + " " + to.Label, Class: string(e.Kind)}
	switch {
	case to.X == from.X:
		x2 += boxWidth
		l.Path = fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+bend, y1, x2+bend, y2, x2, y2)
	case to.X > from.X:
		x1, x2 = to.X, from.X+boxWidth
		l.Path = fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1-bend, y1, x2+bend, y2, x2, y2)
	default:
		l.Path = fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+bend, y1, x2-bend, y2, x2, y2)
	}
	return l
}
