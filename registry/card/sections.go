package card

import (
	"bytes"
	"html"
	"regexp"
	"strings"
	"unicode"
)

// unfilled is what the template of a Hugging Face model card has below each heading that nobody filled in.
// Source: huggingface_hub, templates/modelcard_template.md.
const unfilled = "[More Information Needed]"

// The lines of Markdown that matter here, at the begin of which stand up to three spaces.
// Source: CommonMark 0.31.2, sections 4.1 to 4.5.
var (
	atx      = regexp.MustCompile(`^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$`)
	setext   = regexp.MustCompile(`^ {0,3}(=+|-+)[ \t]*$`)
	rule     = regexp.MustCompile(`^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$`)
	fence    = regexp.MustCompile("^ {0,3}(`{3,}|~{3,})")
	noTitle  = regexp.MustCompile(`^(?: {4}|\t| {0,3}(?:>|[-+*][ \t]|[0-9]{1,9}[.)][ \t]|\|))`)
	emphasis = strings.NewReplacer("*", "", "`", "", "__", "")
)

// sections are the headings of a card's text that have something below them, in their order, each once. They are found line by line, because to
// lay out the text of a stranger can take seconds: a heading within a list or a quotation is none.
func sections(body []byte) []string {
	var s sectionReader
	text := string(withoutComments(body))
	for line := range strings.Lines(text) {
		s.line(strings.TrimRight(line, "\r\n"))
	}
	s.paragraph()
	var titles []string
	seen := map[string]bool{}
	for _, h := range s.all {
		if h.full && h.title != "" && badText(h.title) == "" && !seen[h.title] && len(titles) < maxItems {
			titles = append(titles, h.title)
			seen[h.title] = true
		}
	}
	return titles
}

// withoutComments is a text without what stands between "<!--" and "-->".
func withoutComments(text []byte) []byte {
	var kept []byte
	for {
		before, rest, found := bytes.Cut(text, []byte("<!--"))
		kept = append(kept, before...)
		if !found {
			return kept
		}
		_, text, found = bytes.Cut(rest, []byte("-->"))
		if !found {
			return kept
		}
	}
}

// says reports whether a line shows a reader something: a letter, a digit or a picture, and not only marks, spaces and tags.
func says(line string) bool {
	shown := html.UnescapeString(tag.ReplaceAllStringFunc(line, func(tag string) string {
		if picture.MatchString(tag) {
			return "x"
		}
		return ""
	}))
	return strings.ContainsFunc(shown, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.Is(unicode.So, r) })
}

// HTML in a line. Source: CommonMark 0.31.2, section 6.6.
var (
	tag     = regexp.MustCompile(`</?[A-Za-z][^<>]*>`)
	picture = regexp.MustCompile(`(?i)^<(?:img|picture|svg|video|audio|iframe|object|embed)\b`)
)

type heading struct {
	title string
	level int
	full  bool // something is below it
}

// sectionReader goes through the lines of a text.
type sectionReader struct {
	all     []heading
	open    []int  // the headings that what comes next is below of, the outermost first
	fence   string // that ends the block of code
	pending string // a line of text that the next one may make a heading of
}

func (s *sectionReader) line(line string) {
	mark := fence.FindStringSubmatch(line)
	switch {
	case s.fence != "":
		if mark != nil && strings.HasPrefix(mark[1], s.fence) && strings.TrimSpace(line) == mark[1] {
			s.fence = ""
		} else if strings.TrimSpace(line) != "" {
			s.content()
		}
		return
	case mark != nil:
		s.paragraph()
		s.fence = mark[1]
		return
	}
	if m := atx.FindStringSubmatch(line); m != nil {
		s.paragraph()
		s.heading(m[2], len(m[1]))
		return
	}
	if m := setext.FindStringSubmatch(line); m != nil && s.pending != "" {
		title := s.pending
		s.pending = ""
		s.heading(title, map[byte]int{'=': 1, '-': 2}[m[1][0]])
		return
	}
	s.paragraph()
	switch text := strings.TrimSpace(line); {
	case text == unfilled, rule.MatchString(line), !says(text):
	case noTitle.MatchString(line):
		s.content()
	default:
		s.pending = text
	}
}

// paragraph takes the line that waits for what it is as text.
func (s *sectionReader) paragraph() {
	if s.pending != "" {
		s.content()
	}
	s.pending = ""
}

func (s *sectionReader) heading(title string, level int) {
	for len(s.open) > 0 && s.all[s.open[len(s.open)-1]].level >= level {
		s.open = s.open[:len(s.open)-1]
	}
	s.open = append(s.open, len(s.all))
	s.all = append(s.all, heading{title: strings.TrimSpace(emphasis.Replace(title)), level: level})
}

func (s *sectionReader) content() {
	for _, i := range s.open {
		s.all[i].full = true
	}
}
