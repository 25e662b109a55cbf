package card

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSections(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"none", "just text\n", nil},
		{"behind front matter", "---\nlicense: mit\n---\n# Model\n\nIt hears.\n", []string{"Model"}},
		{"empty ones are left out", "# Model\n\n## Intended use\n\nCalls.\n\n## Limitations\n\n## Bias\n\nSome.\n", []string{"Model", "Intended use", "Bias"}},
		{"full by what is below", "# A\n\n## B\n\n### C\n\ntext\n\n## D\n", []string{"A", "B", "C"}},
		{"a template that nobody filled in", "## Uses\n\n[More Information Needed]\n\n## Limits\n\n<!-- say what -->\n\n## Data\n\n---\n\n## Card\n\n<b>ours</b>\n", []string{"Card"}},
		{"underlined, closed and marked", "Use\n===\n\ntext\n\n## *Known* `limits` ##\n\n- a list\n", []string{"Use", "Known limits"}},
		{"no heading in code", "# A\n\n```\n# B\n```\n\n    # C\n", []string{"A"}},
		{"twice", "# A\n\ntext\n\n# A\n\ntext\n", []string{"A"}},
		{"what shows nothing", "# A\n\n&nbsp;\n\n# B\n\n<br>\n<p></p>\n\n# C\n\n```\n\n```\n\n# D\n\n- \n\n# E\n\n| | |\n|---|---|\n\n# F\n\n\u200b\n\n# G\n\n<img src=\"x.png\">\n\n# H\n\n```\ncode\n```\n\n# I\n\n🚀\n", []string{"G", "H", "I"}},
		{"a table and a quote", "# A\n\n> quoted\n\n# B\n\n| x | y |\n|---|---|\n", []string{"A", "B"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, Parse([]byte(tt.text)).Sections); diff != "" {
			t.Errorf("sections of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func FuzzSections(f *testing.F) {
	for _, seed := range []string{"# A\n\ntext\n", "# A\n## B\n# A\ntext", "A\n-\nb", "<!--\n# A\n-->", "# \x00\xff\n\nx", "#\n\n[x]: y\n[x]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := sections(data)
		for i, title := range got {
			if title == "" || badText(title) != "" || slices.Contains(got[:i], title) {
				t.Errorf("section %q is empty, odd or there twice", title)
			}
		}
		// A card with a section in front has that too.
		more := sections(append([]byte("# Added by this test\n\ntext\n\n"), data...))
		if len(more) == 0 || more[0] != "Added by this test" {
			t.Errorf("sections behind one more = %q, want it first", more)
		}
	})
}
