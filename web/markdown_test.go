package web_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/herdbook/herdbook/web"
)

const base = "/acme/fraud/raw/0123456789abcdef0123456789abcdef01234567/"

func TestCardIsRendered(t *testing.T) {
	tests := []struct{ name, card, want string }{
		{"heading", "# Finds fraud", `<h1 id="finds-fraud">Finds fraud</h1>`},
		{"table", "|a|\n|-|\n|b|", "<td>b</td>"},
		{"task list", "- [x] done", `type="checkbox"`},
		{"strikethrough", "~~no~~", "<del>no</del>"},
		{"code of a known language", "```python\nimport os\n```", `<span class="kn">import</span>`},
		{"code of an unknown language", "```nonsense\na<b\n```", "a&lt;b"},
		{"code without a language", "```\na<b\n```", "a&lt;b"},
		{"html that cards use", `<p align="center"><b>bold</b></p>`, `<p align="center"><b>bold</b></p>`},
		{"picture of the repository", "![plot](plots/roc.png)", `<img src="` + base + `plots/roc.png" alt="plot" loading="lazy">`},
		{"picture in html", `<img src="./a%20b.png">`, `<img src="` + base + `a%20b.png"`},
		{"picture that climbs out", "![x](../../../../etc/passwd)", `src="` + base + `etc/passwd"`},
		{"picture of another site becomes a link", "![badge](https://img.example/b.svg)", `<a href="https://img.example/b.svg" rel="nofollow noreferrer">badge</a>`},
		{"picture of another site without a scheme", "![badge](//img.example/b.svg)", ""},
		{"link to a file", "[config](config.json)", `href="` + base + `config.json"`},
		{"link from the root of the repository", "[config](/config.json)", `href="` + base + `config.json"`},
		{"link on the page", "[usage](#usage)", `href="#usage"`},
		{"link to a site", "[site](https://example.org/a?b=c&d=e)", `href="https://example.org/a?b=c&amp;d=e"`},
	}
	renderer := web.NewRenderer()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := renderer.Render(t.Context(), tt.card, base)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("a card %q is rendered as %q, want it to hold %q", tt.card, got, tt.want)
			}
		})
	}
}

// hostile are cards that try to run a script, to load something, or to look like the page.
var hostile = []string{
	"<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "[x](  JaVaScRiPt:alert(1))",
	"<a href=\"java\tscript:alert(1)\">x</a>", "[x](data:text/html;base64,PHNjcmlwdD4=)", "<svg onload=alert(1)>", "<iframe src=//evil.example>",
	"<style>body{display:none}</style>", `<p style="position:fixed">x</p>`, `<div class="notice">signed</div>`, "<form action=//evil.example><input name=a>",
	"<base href=//evil.example/>", "<meta http-equiv=refresh content='0;url=//evil.example'>", "<link rel=stylesheet href=//evil.example>", "<object data=x>",
	"![x](javascript:alert(1))", "![x](data:image/svg+xml;base64,AAAA)", "<math><mi xlink:href=javascript:alert(1)>", "```<img/src=x onerror=alert(1)>\nx\n```",
	"<<script>script>alert(1)</script>", "<img src=\"x\" alt=\"&quot; onerror=alert(1) x=&quot;\">", "</article></main><script>1</script>",
	"<a href='//evil.example' target=_blank>x</a>", "<video src=//evil.example autoplay>", "[x]: javascript:alert(1)\n[x]", "<!--><script>alert(1)</script>-->",
	"`<script>`", "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">", "<textarea><script>1</script>", "[a](\x00javascript:alert(1))",
	"<img srcset='//evil.example/a 1x' src=a>", "<td background=//evil.example>", "<input type=image src=//evil.example>",
}

// checkHarmless parses rendered HTML as a browser does and fails for anything but text and links.
func checkHarmless(t *testing.T, card, rendered string) {
	t.Helper()
	allowed := map[string]bool{}
	for name := range strings.FieldsSeq(`a abbr acronym b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn div dl dt em
		figcaption figure h1 h2 h3 h4 h5 h6 hr i img input ins kbd li map mark area meter ol optgroup p pre progress q rp rt ruby s samp section small span strike
		strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr article aside header hgroup nav footer`) {
		allowed[name] = true
	}
	body := &html.Node{Type: html.ElementNode, Data: "body", DataAtom: atom.Body}
	nodes, err := html.ParseFragment(strings.NewReader(rendered), body)
	if err != nil {
		t.Fatalf("a card %q is rendered as %q, which is no HTML: %v", card, rendered, err)
	}
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.ElementNode {
			if !allowed[n.Data] {
				t.Errorf("a card %q is rendered with the element %s: %q", card, n.Data, rendered)
			}
			for _, a := range n.Attr {
				checkAttribute(t, card, n.Data, a)
			}
		}
		for c := range n.ChildNodes() {
			walk(c)
		}
	}
	for _, n := range nodes {
		walk(n)
	}
}

func checkAttribute(t *testing.T, card, element string, a html.Attribute) {
	t.Helper()
	if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "srcset" || a.Key == "background" || a.Key == "action" || a.Key == "name" && element == "input" {
		t.Errorf("a card %q is rendered with the attribute %s=%q", card, a.Key, a.Val)
	}
	if a.Key != "href" && a.Key != "src" && a.Key != "cite" {
		return
	}
	u, err := url.Parse(a.Val)
	if err != nil {
		t.Errorf("a card %q is rendered with the address %q: %v", card, a.Val, err)
		return
	}
	switch u.Scheme {
	case "", "http", "https", "mailto":
	default:
		t.Errorf("a card %q is rendered with the address %q", card, a.Val)
	}
	if element == "img" && !strings.HasPrefix(a.Val, base) {
		t.Errorf("a card %q is rendered with the picture %q, which is no file of the commit", card, a.Val)
	}
}

func TestHostileCardIsHarmless(t *testing.T) {
	renderer := web.NewRenderer()
	for _, card := range hostile {
		got, err := renderer.Render(t.Context(), card, base)
		if err != nil {
			t.Fatal(err)
		}
		checkHarmless(t, card, got)
	}
}

func FuzzRender(f *testing.F) {
	for _, card := range hostile {
		f.Add(card)
	}
	f.Add("# Title\n\n|a|b|\n|-|-|\n\n![p](a.png) [l](b.md)\n\n```go\nfunc main() {}\n```\n[^1]: note")
	renderer := web.NewRenderer()
	f.Fuzz(func(t *testing.T, card string) {
		start := time.Now()
		got, err := renderer.Render(t.Context(), card, base)
		if took := time.Since(start); took > time.Second {
			t.Errorf("a card of %d bytes took %s", len(card), took)
		}
		if err != nil {
			t.Fatalf("Render(%q) = %v", card, err)
		}
		checkHarmless(t, card, got)
	})
}

// TestSlowCardEnds renders what is slow in the libraries, of moderate length: without the
// budget for colours the first alone takes longer than a minute.
func TestSlowCardEnds(t *testing.T) {
	renderer := web.NewRenderer()
	for _, card := range []string{
		strings.Repeat("```bash\n"+strings.Repeat("$(", 500)+"\n```\n", 40),
		strings.Repeat("```nonsense\n```\n", 2000), strings.Repeat("```\n", 8000), strings.Repeat("*a_", 4000), strings.Repeat("[a](", 4000),
	} {
		start := time.Now()
		if _, err := renderer.Render(t.Context(), card, base); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("a card of %d bytes that begins with %q took %s, want at most some seconds", len(card), card[:12], took)
		}
	}
}

func TestLongCardIsShownAsText(t *testing.T) {
	card := "# Title\n" + strings.Repeat("*a_", 100_000) + "<script>"
	start := time.Now()
	got, err := web.NewRenderer().Render(t.Context(), card, base)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got, `<pre class="code"># Title`) || strings.Contains(got, "<script>") {
		t.Errorf("a card of %d bytes is rendered as %.60q…, want its escaped text", len(card), got)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a card of %d bytes took %s", len(card), took)
	}
}

func BenchmarkRender(b *testing.B) {
	card := strings.Repeat("## Use\n\nSome *text* with `code` and [a link](a.md).\n\n```python\nimport herd\nprint(herd.book)\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n", 20)
	for _, warm := range []bool{false, true} {
		b.Run(map[bool]string{false: "cold", true: "warm"}[warm], func(b *testing.B) {
			renderer := web.NewRenderer()
			b.SetBytes(int64(len(card)))
			for b.Loop() {
				if _, err := renderer.Render(b.Context(), card, base); err != nil {
					b.Fatal(err)
				}
				if !warm {
					renderer.Forget()
				}
			}
		})
	}
}
