package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"html/template"
	"io"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/alecthomas/chroma/v2"
	chromahtml "github.com/alecthomas/chroma/v2/formatters/html"
	"github.com/alecthomas/chroma/v2/lexers"
	"github.com/alecthomas/chroma/v2/styles"
	"github.com/microcosm-cc/bluemonday"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer"
	goldmarkhtml "github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// markdown renders model cards. A card may hold HTML, as many on the Hugging Face Hub do, so
// everything that comes out is sanitised; the page's content security policy stands behind it.
//
// Markdown can be written so that it takes long, and everybody who may push can write a card.
// So one card is laid out at a time, long ones are not, colours have a budget of time, and what
// was made is kept.
type markdown struct {
	goldmark goldmark.Markdown
	policy   *bluemonday.Policy
	code     *chromahtml.Formatter
	slot     chan struct{} // holds a value while a card is laid out

	mu        sync.Mutex
	kept      map[[sha256.Size]byte]template.HTML // by base and text
	keptBytes int
}

const (
	// maxLaidOut is the longest card that is laid out, in bytes; a longer one is shown as text.
	// The worst one known of this length takes 6 s (pairs of delimiters that never match).
	maxLaidOut = 128 << 10
	// maxKept bounds the memory for cards that are kept, in bytes of HTML.
	maxKept = 16 << 20
	// colourBudget is the time for the colours of all code of one card.
	colourBudget = 200 * time.Millisecond
)

func newMarkdown() *markdown {
	m := &markdown{slot: make(chan struct{}, 1), kept: map[[sha256.Size]byte]template.HTML{}, code: chromahtml.New(chromahtml.WithClasses(true), chromahtml.PreventSurroundingPre(true))}
	m.goldmark = goldmark.New(
		goldmark.WithExtensions(extension.GFM, extension.Footnote),
		goldmark.WithParserOptions(parser.WithAutoHeadingID()),
		goldmark.WithRendererOptions(goldmarkhtml.WithUnsafe(), renderer.WithNodeRenderers(util.Prioritized(codeRenderer{m.code}, 100))),
	)
	m.policy = bluemonday.UGCPolicy()
	m.policy.AllowAttrs("class").Matching(regexp.MustCompile(`^(code|[a-z][a-z0-9]{0,2})$`)).OnElements("span", "code", "pre")
	m.policy.AllowAttrs("type").Matching(regexp.MustCompile(`^checkbox$`)).OnElements("input")
	m.policy.AllowAttrs("checked", "disabled").OnElements("input")
	m.policy.AllowAttrs("align").Matching(regexp.MustCompile(`^(left|center|right)$`)).OnElements("p", "div", "td", "th", "h1", "h2", "h3")
	return m
}

// render gives the HTML of a card. Relative addresses are below base; pictures of other sites
// become links, so that reading a card tells nobody.
func (m *markdown) render(ctx context.Context, card []byte, base string) (template.HTML, error) {
	if len(card) > maxLaidOut {
		return template.HTML(`<pre class="code">` + html.EscapeString(string(card)) + "</pre>"), nil //nolint:gosec // escaped
	}
	key := sha256.Sum256(slices.Concat([]byte(base), []byte{0}, card))
	if out, ok := m.find(key); ok {
		return out, nil
	}
	select {
	case m.slot <- struct{}{}:
		defer func() { <-m.slot }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if out, ok := m.find(key); ok { // made while this waited
		return out, nil
	}
	document := m.goldmark.Parser().Parse(text.NewReader(card))
	document.OwnerDocument().AddMeta(budgetKey, time.Now().Add(colourBudget))
	var laidOut bytes.Buffer
	if err := m.goldmark.Renderer().Render(&laidOut, card, document); err != nil {
		return "", fmt.Errorf("render card: %w", err)
	}
	safe, err := rebase(m.policy.SanitizeReader(&laidOut), base)
	if err != nil {
		return "", err
	}
	out := template.HTML(safe) //nolint:gosec // sanitised
	m.keep(key, out)
	return out, nil
}

func (m *markdown) find(key [sha256.Size]byte) (template.HTML, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, ok := m.kept[key]
	return out, ok
}

func (m *markdown) keep(key [sha256.Size]byte, out template.HTML) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keptBytes += len(out); m.keptBytes > maxKept {
		clear(m.kept)
		m.keptBytes = len(out)
	}
	m.kept[key] = out
}

// rebase turns the addresses in sanitised HTML into what a page may use.
func rebase(sanitised io.Reader, base string) (string, error) {
	var out strings.Builder
	for z := html.NewTokenizer(sanitised); ; {
		switch z.Next() {
		case html.ErrorToken:
			if err := z.Err(); err != io.EOF { //nolint:errorlint // io.Reader's contract
				return "", fmt.Errorf("render card: %w", err)
			}
			return out.String(), nil
		case html.StartTagToken, html.SelfClosingTagToken:
			t := z.Token()
			switch t.DataAtom {
			case atom.Img:
				writeImage(&out, t, base)
				continue
			case atom.A:
				for i, a := range t.Attr {
					if a.Key == "href" {
						t.Attr[i].Val = below(base, a.Val)
					}
				}
			}
			out.WriteString(t.String())
		default:
			out.Write(z.Raw())
		}
	}
}

func attribute(t html.Token, key string) string {
	for _, a := range t.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func writeImage(out *strings.Builder, t html.Token, base string) {
	source, alt := attribute(t, "src"), attribute(t, "alt")
	address := below(base, source)
	if !strings.HasPrefix(address, base) {
		if alt == "" {
			alt = "picture"
		}
		if address = safeLink(source); address != "" {
			fmt.Fprintf(out, `<a href="%s" rel="nofollow noreferrer">%s</a>`, html.EscapeString(address), html.EscapeString(alt))
		}
		return
	}
	fmt.Fprintf(out, `<img src="%s" alt="%s" loading="lazy">`, html.EscapeString(address), html.EscapeString(alt))
}

// below is an address of a card as seen from its page: what is relative is a file of the same
// commit and never leaves it; a place on the page and what is elsewhere stay as they are.
func below(base, address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	if u.Scheme != "" || u.Host != "" || (u.Path == "" && u.Fragment != "") {
		return address
	}
	clean := path.Clean("/" + u.Path)
	return base + (&url.URL{Path: strings.TrimPrefix(clean, "/")}).EscapedPath()
}

// stylesheet are the colours of code, for light and dark.
func (m *markdown) stylesheet() ([]byte, error) {
	var out bytes.Buffer
	if err := m.code.WriteCSS(&out, styles.Get(lightStyle)); err != nil {
		return nil, fmt.Errorf("colours of code: %w", err)
	}
	out.WriteString("@media (prefers-color-scheme: dark) {\n")
	if err := m.code.WriteCSS(&out, styles.Get(darkStyle)); err != nil {
		return nil, fmt.Errorf("colours of code: %w", err)
	}
	out.WriteString("}\n")
	return out.Bytes(), nil
}

// codeRenderer colours fenced code whose language is known.
type codeRenderer struct{ formatter *chromahtml.Formatter }

// RegisterFuncs implements renderer.NodeRenderer.
func (r codeRenderer) RegisterFuncs(reg renderer.NodeRendererFuncRegisterer) {
	reg.Register(ast.KindFencedCodeBlock, r.render)
}

func (r codeRenderer) render(w util.BufWriter, source []byte, node ast.Node, entering bool) (ast.WalkStatus, error) {
	block, ok := node.(*ast.FencedCodeBlock)
	if !ok || !entering {
		return ast.WalkContinue, nil
	}
	var code strings.Builder
	for i := range block.Lines().Len() {
		line := block.Lines().At(i)
		code.Write(line.Value(source))
	}
	until, _ := node.OwnerDocument().Meta()[budgetKey].(time.Time)
	fmt.Fprint(w, `<pre class="code"><code>`)
	if tokens := colour(string(block.Language(source)), code.String(), until); tokens == nil {
		fmt.Fprint(w, html.EscapeString(code.String()))
	} else if err := r.formatter.Format(w, styles.Get(lightStyle), chroma.Literator(tokens...)); err != nil {
		return ast.WalkStop, err
	}
	fmt.Fprint(w, "</code></pre>\n")
	return ast.WalkSkipChildren, nil
}

// budgetKey of a document holds the time at which colouring ends.
const budgetKey = "colour until"

// maxColoured is the longest code that is coloured, in bytes.
const maxColoured = 16 << 10

// colour divides code into tokens; nil when its language is not known, when it is too long, or
// when the time is over. Lexers use backtracking expressions, which code can make slow; each
// of them stops by itself after 250 ms.
func colour(language, code string, until time.Time) []chroma.Token {
	if language == "" || len(code) > maxColoured || time.Now().After(until) {
		return nil
	}
	lexer := lexers.Get(language)
	if lexer == nil {
		return nil
	}
	next, err := chroma.Coalesce(lexer).Tokenise(nil, code)
	if err != nil {
		return nil
	}
	var tokens []chroma.Token
	for t := next(); t != chroma.EOF; t = next() {
		if time.Now().After(until) {
			return nil
		}
		tokens = append(tokens, t)
	}
	return tokens
}

const (
	lightStyle = "github"
	darkStyle  = "github-dark"
)
