package web

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// Renderer is what cards go through.
type Renderer struct{ m *markdown }

// NewRenderer makes one.
func NewRenderer() Renderer { return Renderer{newMarkdown()} }

// Render renders a card.
func (r Renderer) Render(ctx context.Context, card, base string) (string, error) {
	out, err := r.m.render(ctx, []byte(card), base)
	return string(out), err
}

// Forget drops what was kept.
func (r Renderer) Forget() { clear(r.m.kept) }

// The functions of templates.
var (
	Size       = size
	Number     = number
	Grouped    = grouped
	Abbreviate = abbreviate
	SafeLink   = safeLink
	NewLineage = newLineage
	SentTo     = sentTo
	PullViews  = pullViews
	PlainValue = plainValue
	Signed     = signed
	Percent    = percent
	Previous   = previous
)

// Draw gives the labels of each layer of a drawing from the left, and how many lines it has.
func Draw(g registry.Graph, start string) (layers string, lines int) {
	d := draw(g, start)
	columns := map[int][]string{}
	for _, b := range d.Boxes {
		columns[b.X] = append(columns[b.X], b.Label)
	}
	var all []string
	for _, x := range slices.Sorted(maps.Keys(columns)) {
		all = append(all, strings.Join(columns[x], " "))
	}
	return strings.Join(all, " | "), len(d.Lines)
}

// DrawProblem says what of a drawing lies outside of it or on something else.
func DrawProblem(g registry.Graph, start string) string {
	d := draw(g, start)
	for i, a := range d.Boxes {
		if a.X < 0 || a.Y < 0 || a.X+boxWidth > d.Width || a.Y+boxHeight > d.Height {
			return fmt.Sprintf("%s at %d,%d is outside of %dx%d", a.Label, a.X, a.Y, d.Width, d.Height)
		}
		for _, b := range d.Boxes[:i] {
			if a.X < b.X+boxWidth && b.X < a.X+boxWidth && a.Y < b.Y+boxHeight && b.Y < a.Y+boxHeight {
				return fmt.Sprintf("%s and %s lie upon each other", a.Label, b.Label)
			}
		}
	}
	return ""
}
