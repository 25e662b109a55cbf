package web_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/web"
)

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 10 << 10: "10 KiB", 5 << 30: "5.0 GiB", math.MaxInt64: "8.0 EiB",
	} {
		if got := web.Size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestNumber(t *testing.T) {
	for f, want := range map[float64]string{0.842105263: "0.8421", 0: "0", -3: "-3", 12345: "12345", 0.00001234567: "1.235e-05", 1e300: "1e+300", 11.5: "11.5"} {
		if got := web.Number(f); got != want {
			t.Errorf("number(%g) = %q, want %q", f, got, want)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1 000", 1234567: "1 234 567", -1000: "-1 000", -100: "-100"} {
		if got := strings.ReplaceAll(web.Grouped(n), "\u2009", " "); got != want {
			t.Errorf("grouped(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestAbbreviate(t *testing.T) {
	for s, want := range map[string]string{"": "", "9f3c": "9f3c", "sha256:0123456789abcdef": "sha256:0123456789abc…", "exactly twenty-one ch": "exactly twenty-one ch"} {
		if got := web.Abbreviate(s); got != want {
			t.Errorf("abbreviate(%q) = %q, want %q", s, got, want)
		}
	}
}

func TestSafeLink(t *testing.T) {
	for address, want := range map[string]string{
		"https://ci.example/job/7": "https://ci.example/job/7", "http://a": "http://a", "javascript:alert(1)": "", "//evil.example": "", "/path": "", "": "", "https://": "", "data:text/html,x": "", ":": "",
	} {
		if got := web.SafeLink(address); got != want {
			t.Errorf("safeLink(%q) = %q, want %q", address, got, want)
		}
	}
}

func TestLineageIsSaidFromTheVersion(t *testing.T) {
	tag := func(s string) registry.Tag {
		t.Helper()
		parsed, err := registry.ParseTag(s)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	version := func(id, model, text string) registry.Node {
		return registry.Node{ID: id, Kind: registry.VersionNode, Model: model, Tag: tag(text)}
	}
	dataset := registry.Node{ID: "dataset:calls", Kind: registry.DatasetNode, Name: "calls"}
	graph := registry.Graph{
		Nodes: []registry.Node{version("self", "acme/a", "v2.0.0"), version("before", "acme/a", "v1.0.0"), version("child", "acme/b", "v1.0.0"), dataset},
		Edges: []registry.LineageEdge{
			{From: "self", To: "before", Kind: registry.DerivedFrom, Relation: registry.Previous},
			{From: "self", To: dataset.ID, Kind: registry.Used},
			{From: "child", To: "self", Kind: registry.DerivedFrom, Relation: registry.Finetune},
			{From: "child", To: dataset.ID, Kind: registry.Used}, // not of this version
		},
	}
	got := web.NewLineage(graph, "self")
	var said []string
	for _, r := range got.From {
		said = append(said, "from: "+r.Says+" "+r.Label+" "+r.Link)
	}
	for _, r := range got.To {
		said = append(said, "to: "+r.Says+" "+r.Label+" "+r.Link)
	}
	want := []string{
		"from: follows acme/a v1.0.0 /acme/a/versions/v1.0.0",
		"from: used calls ",
		"to: fine-tuned to acme/b v1.0.0 /acme/b/versions/v1.0.0",
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("what the page says of lineage (-want +got):\n%s", diff)
	}
}
