package web

import "context"

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
