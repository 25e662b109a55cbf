package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/index"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestLayoutFormats holds docs/formats.md to what the program keeps.
func TestLayoutFormats(t *testing.T) {
	text := readDoc(t, "docs/formats.md")
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [^|]+ \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(text, -1) {
		rows[m[1]] = true
	}
	for _, bucket := range index.Buckets() {
		if !rows[bucket] {
			t.Errorf("docs/formats.md has no row for the bucket %s: what is its fact, where is its home, and what rebuilds it?", bucket)
		}
		delete(rows, bucket)
	}
	for name := range rows {
		t.Errorf("docs/formats.md has a row for %s, which is no bucket", name)
	}
	for _, kind := range registry.RecordTypes() {
		if !strings.Contains(text, "`"+kind+"`") {
			t.Errorf("docs/formats.md does not name the record %s", kind)
		}
	}
}

// TestLayoutLinks follows the links between the documents.
func TestLayoutLinks(t *testing.T) {
	docs, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, path := range append(docs, filepath.Join("..", "..", "README.md"), filepath.Join("..", "..", "demo", "README.md")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", filepath.Base(path), m[1])
			}
		}
	}
}
