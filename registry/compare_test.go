package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// fileOf is a file with that content.
func fileOf(name, content string) registry.File {
	return registry.File{Path: name, Digest: digest.FromString(content), SizeBytes: int64(len(content))}
}

// filesOf are files from "path=content", in the order of their paths.
func filesOf(texts ...string) []registry.File {
	var files []registry.File
	for _, text := range texts {
		name, content, _ := strings.Cut(text, "=")
		files = append(files, fileOf(name, content))
	}
	return files
}

func pathsOf(pairs []registry.FilePair) []string {
	var paths []string
	for _, p := range pairs {
		paths = append(paths, p.A.Path+" "+p.B.Path)
	}
	return paths
}

func TestCompareFiles(t *testing.T) {
	executable := fileOf("run.sh", "x")
	executable.Executable = true
	tests := []struct {
		name                             string
		a, b                             []registry.File
		added, removed, changed, renamed []string
		same                             int
	}{
		{"nothing at all", nil, nil, nil, nil, nil, nil, 0},
		{"the same", filesOf("a=1", "b=2"), filesOf("a=1", "b=2"), nil, nil, nil, nil, 2},
		{"one of each", filesOf("a=1", "b=2", "c=3", "d=4"), filesOf("a=1", "b=9", "e=5", "f=4"), []string{"e"}, []string{"c"}, []string{"b b"}, []string{"d f"}, 1},
		{"the mode only", filesOf("run.sh=x"), []registry.File{executable}, nil, nil, []string{"run.sh run.sh"}, nil, 0},
		{"a copy is no renaming", filesOf("a=1"), filesOf("a=1", "b=1"), []string{"b"}, nil, nil, nil, 1},
		{"two of the same bytes, by the order of paths", filesOf("a=1", "b=1"), filesOf("c=1", "d=1", "e=1"), []string{"e"}, nil, nil, []string{"a c", "b d"}, 0},
		{"two became one", filesOf("a=1", "b=1"), filesOf("c=1"), nil, []string{"b"}, nil, []string{"a c"}, 0},
		{"empty files", filesOf("a="), filesOf("b="), []string{"b"}, []string{"a"}, nil, nil, 0},
		{"two change places", filesOf("a=1", "b=2"), filesOf("a=2", "b=1"), nil, nil, []string{"a a", "b b"}, nil, 0},
	}
	paths := func(files []registry.File) []string {
		var list []string
		for _, f := range files {
			list = append(list, f.Path)
		}
		return list
	}
	for _, tt := range tests {
		d := registry.CompareFiles(tt.a, tt.b)
		got := [][]string{paths(d.Added), paths(d.Removed), pathsOf(d.Changed), pathsOf(d.Renamed)}
		if diff := cmp.Diff([][]string{tt.added, tt.removed, tt.changed, tt.renamed}, got); diff != "" || d.Same != tt.same || d.Truncated {
			t.Errorf("CompareFiles of %s = %+v, same %d, want same %d (-want +got, of added, removed, changed, renamed):\n%s", tt.name, d, d.Same, tt.same, diff)
		}
		if d.CountA != len(tt.a) || d.CountB != len(tt.b) || d.AddedCount != len(tt.added) || d.RemovedCount != len(tt.removed) ||
			d.ChangedCount != len(tt.changed) || d.RenamedCount != len(tt.renamed) {
			t.Errorf("CompareFiles of %s counts %+v, want the lengths of the lists", tt.name, d)
		}
		if want := len(tt.added)+len(tt.removed)+len(tt.changed)+len(tt.renamed) > 0; d.Differ() != want {
			t.Errorf("CompareFiles of %s: Differ() = %t, want %t", tt.name, d.Differ(), want)
		}
	}
}

func TestCompareFilesIsBounded(t *testing.T) {
	var many []registry.File
	for i := range 3 * registry.MaxListed {
		many = append(many, fileOf(fmt.Sprintf("%05d", i), fmt.Sprint(i)))
	}
	d := registry.CompareFiles(nil, many)
	if d.AddedCount != len(many) || len(d.Added) != registry.MaxListed || !d.Truncated || d.Added[0].Path != "00000" {
		t.Errorf("CompareFiles of %d new files: counts %d, lists %d, truncated %t; want all counted and the first %d listed", len(many), d.AddedCount, len(d.Added), d.Truncated, registry.MaxListed)
	}
}

// fieldsText is "name: a -> b".
func fieldsText(fields []registry.FieldDiff) []string {
	var list []string
	for _, f := range fields {
		list = append(list, fmt.Sprintf("%s: %s -> %s", f.Name, f.A, f.B))
	}
	return list
}

func TestCompareCards(t *testing.T) {
	a := registry.CardFacts{FrontMatter: json.RawMessage(`{"license":"mit","tags":["x","y"],"same":{"a":1}}`)}
	b := registry.CardFacts{FrontMatter: json.RawMessage(`{"license":"apache-2.0","language":"en","same":{"a":1}}`), Problem: "line 3"}
	d := registry.CompareCards(a, b)
	want := []string{`language:  -> "en"`, `license: "mit" -> "apache-2.0"`, `tags: ["x","y"] -> `}
	if diff := cmp.Diff(want, fieldsText(d.Fields)); diff != "" || d.ProblemB != "line 3" || d.ProblemA != "" {
		t.Errorf("CompareCards = %+v (-want +got):\n%s", d, diff)
	}
	if d := registry.CompareCards(registry.CardFacts{}, a); len(d.Fields) != 3 {
		t.Errorf("CompareCards of none and one with 3 fields = %v, want 3 fields", fieldsText(d.Fields))
	}
	if d := registry.CompareCards(a, a); len(d.Fields) != 0 {
		t.Errorf("CompareCards of the same = %v, want nothing", fieldsText(d.Fields))
	}
}

func TestCompareEvaluations(t *testing.T) {
	at := func(id string, d registry.Dataset, selfReported bool, metrics map[string]float64) registry.Evaluation {
		return registry.Evaluation{ID: id, Dataset: d, Metrics: metrics, SelfReported: selfReported}
	}
	calls := registry.Dataset{Name: "calls", Revision: "1", Split: "test"}
	moved := calls
	moved.URI = "s3://elsewhere"
	night := calls
	night.Slice = "night"
	a := []registry.Evaluation{
		at("old", calls, false, map[string]float64{"f1": 0.1}),
		at("a", calls, false, map[string]float64{"f1": 0.8, "latency": 5, "zero": 0}),
		at("claimed", calls, true, map[string]float64{"f1": 1}),
		at("a night", night, false, map[string]float64{"f1": 0.5}),
	}
	b := []registry.Evaluation{
		at("b", moved, false, map[string]float64{"f1": 0.75, "mcc": 0.5, "zero": 0}),
		at("b other", registry.Dataset{Name: "calls", Revision: "2", Split: "test"}, true, map[string]float64{"f1": 0.9}),
	}
	var got []string
	for _, d := range registry.CompareEvaluations(a, b) {
		ids := []string{"-", "-"}
		for i, s := range []*registry.EvaluationSummary{d.A, d.B} {
			if s != nil {
				ids[i] = s.ID
			}
		}
		line := fmt.Sprintf("%s@%s/%s: %s and %s:", d.Dataset.Name, d.Dataset.Revision, d.Dataset.Slice, ids[0], ids[1])
		for _, m := range d.Metrics {
			line += " " + m.Name
			if m.A != nil {
				line += fmt.Sprintf(" A %.4g", *m.A)
			}
			if m.B != nil {
				line += fmt.Sprintf(" B %.4g", *m.B)
			}
			if m.Difference != nil {
				line += fmt.Sprintf(" %+.4g", *m.Difference)
			}
			line += fmt.Sprintf(" %t;", m.Differs())
		}
		got = append(got, line)
	}
	want := []string{
		"calls@1/: a and b: f1 A 0.8 B 0.75 -0.05 true; latency A 5 true; mcc B 0.5 true; zero A 0 B 0 +0 false;",
		"calls@1/night: a night and -: f1 A 0.5 true;",
		"calls@2/: - and b other: f1 B 0.9 true;",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("CompareEvaluations (-want +got):\n%s", diff)
	}
	if got := registry.CompareEvaluations(nil, nil); got == nil || len(got) != 0 {
		t.Errorf("CompareEvaluations of nothing = %v, want an empty list", got)
	}
}

func TestComparePolicies(t *testing.T) {
	env := func(name string, change func(*registry.Environment)) registry.Environment {
		e := registry.Environment{Name: registry.MustEnvironmentName(name), Promote: registry.PromoteManual}
		if change != nil {
			change(&e)
		}
		return e
	}
	gates := func(texts ...string) []registry.Gate {
		var list []registry.Gate
		for _, text := range texts {
			name, expr, _ := strings.Cut(text, ":")
			list = append(list, registry.Gate{Name: name, Expr: expr})
		}
		return list
	}
	a := &registry.Policy{Environments: []registry.Environment{
		env("same", func(e *registry.Environment) { e.Gates = gates("g:x") }),
		env("gone", nil),
		env("prod", func(e *registry.Environment) {
			e.Gates = gates("good:f1 > 0.8", "old:x", "twice:1", "twice:2")
			e.Evidence = &registry.Evidence{Dataset: "calls", MaxAge: 720 * time.Hour}
		}),
	}}
	b := &registry.Policy{Environments: []registry.Environment{
		env("new", func(e *registry.Environment) { e.Gates = gates("g:y") }),
		env("prod", func(e *registry.Environment) {
			e.Gates = gates("twice:1", "twice:3", "good:f1 > 0.9")
			e.Evidence = &registry.Evidence{Dataset: "calls", MaxAge: 24 * time.Hour, Split: "test"}
			e.Approvals, e.Promote = 2, registry.PromoteAuto
		}),
		env("same", func(e *registry.Environment) { e.Gates = gates("g:x") }),
	}}
	var got []string
	for _, d := range registry.ComparePolicies(a, b) {
		got = append(got, fmt.Sprintf("%s %s", d.Name, d.Change))
		got = append(got, fieldsText(d.Fields)...)
		for _, g := range d.Gates {
			got = append(got, fmt.Sprintf("gate %s: %s -> %s", g.Name, g.A, g.B))
		}
	}
	want := []string{
		"gone removed", `promote: "manual" -> `,
		"prod changed", "approvals:  -> 2", `evidence.max_age: "720h0m0s" -> "24h0m0s"`, `evidence.split:  -> "test"`, `promote: "manual" -> "auto"`,
		"gate good: f1 > 0.8 -> f1 > 0.9", "gate old: x -> ", "gate twice: 2 -> 3",
		"new added", `promote:  -> "manual"`, "gate g:  -> y",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ComparePolicies (-want +got):\n%s", diff)
	}
	if got := registry.ComparePolicies(nil, nil); got == nil || len(got) != 0 {
		t.Errorf("ComparePolicies of none = %v, want an empty list", got)
	}
}

// tensorOf is from "name dtype content"; content that begins with "@" is the digest of another file.
func tensorOf(text string) registry.Tensor {
	parts := strings.Fields(text)
	t := registry.Tensor{Name: parts[0], Type: parts[1], Shape: []int64{int64(len(parts[2]))}, SizeBytes: int64(len(parts[2]))}
	if from, ok := strings.CutPrefix(parts[2], "@"); ok {
		t.External = &registry.ExternalData{Location: "w", Digest: digest.FromString(from)}
		if from == "missing" {
			t.External.Digest = ""
		}
	} else {
		t.Digest = digest.FromString(parts[2])
	}
	return t
}

func tensorsOf(texts ...string) iter.Seq2[registry.Tensor, error] {
	return func(yield func(registry.Tensor, error) bool) {
		for _, text := range texts {
			if text == "broken" {
				yield(registry.Tensor{}, errBroken)
				return
			}
			if !yield(tensorOf(text), nil) {
				return
			}
		}
	}
}

var errBroken = errors.New("broken")

func TestCompareTensors(t *testing.T) {
	d, err := registry.CompareTensors(
		tensorsOf("b F32 1111", "c F32 22", "d F16 33", "e F32 44", "g F32 @x", "h F32 @x", "i F32 @missing", "j F32 5", "k F32 6", "l F32 7"),
		tensorsOf("a F32 0", "b F32 1111", "d F32 33", "e F32 45", "g F32 @x", "h F32 @y", "i F32 @missing", "j F32 5", "k F32 @", "m F32 7"), 100)
	var got []string
	for _, p := range d.Items {
		got = append(got, fmt.Sprintf("%s %s %t %t", p.Name, p.Change, p.A != nil, p.B != nil))
	}
	want := []string{
		"a added false true", "c removed true false", "d changed true true", "e bytes true true", "h unknown true true", "i unknown true true",
		"k unknown true true", "l removed true false", "m added false true",
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("CompareTensors: %v (-want +got):\n%s", err, diff)
	}
	counts := registry.TensorDiff{CountA: 10, CountB: 10, Same: 3, AddedCount: 2, RemovedCount: 2, ChangedCount: 1, BytesCount: 1, UnknownCount: 3}
	if diff := cmp.Diff(counts, d, cmpopts.IgnoreFields(registry.TensorDiff{}, "Items")); diff != "" {
		t.Errorf("CompareTensors counts (-want +got):\n%s", diff)
	}
	short, err := registry.CompareTensors(tensorsOf("a F32 1", "b F32 1", "c F32 1"), tensorsOf(), 2)
	if err != nil || !short.Truncated || len(short.Items) != 2 || short.RemovedCount != 3 {
		t.Errorf("CompareTensors that lists two of three = %+v, %v, want all counted and two listed", short, err)
	}
}

// Nothing is made of a list that breaks, on whichever side and wherever.
func TestCompareTensorsPassesErrorsOn(t *testing.T) {
	whole := []string{"a F32 1", "b F32 1", "c F32 1"}
	for at := range len(whole) + 1 {
		broken := append(slices.Clone(whole[:at]), "broken")
		if d, err := registry.CompareTensors(tensorsOf(broken...), tensorsOf(whole...), 9); !errors.Is(err, errBroken) {
			t.Errorf("CompareTensors with A broken behind %d = %+v, %v, want its error", at, d, err)
		}
		if d, err := registry.CompareTensors(tensorsOf(whole...), tensorsOf(broken...), 9); !errors.Is(err, errBroken) {
			t.Errorf("CompareTensors with B broken behind %d = %+v, %v, want its error", at, d, err)
		}
	}
}

func TestPairWeights(t *testing.T) {
	format := func(name string) string {
		return map[string]string{".st": "safetensors", ".gguf": "gguf", ".bin": "binary"}[path.Ext(name)]
	}
	tests := []struct {
		name       string
		a, b, want []string
	}{
		{"the same path", []string{"x/a.st=1", "b.st=2", "README=3"}, []string{"b.st=1", "x/a.st=2", "README=4"}, []string{"b.st b.st", "x/a.st x/a.st"}},
		{"the same bytes", []string{"a.st=1", "b.st=2"}, []string{"c.st=2", "d.st=3"}, []string{"b.st c.st", "a.st d.st"}},
		{"the only one of a format", []string{"a.st=1", "a.gguf=2"}, []string{"b.st=3", "q.gguf=4"}, []string{"a.st b.st", "a.gguf q.gguf"}},
		{"two that may be meant", []string{"a.st=1"}, []string{"b.st=2", "c.st=3"}, nil},
		{"other formats", []string{"a.st=1"}, []string{"a.gguf=1"}, nil},
	}
	for _, tt := range tests {
		var got []string
		for _, p := range registry.PairWeights(filesOf(tt.a...), filesOf(tt.b...), format) {
			got = append(got, p.A.Path+" "+p.B.Path)
			if p.Format != format(p.A.Path) {
				t.Errorf("PairWeights of %s: %s is %q, want %q", tt.name, p.A.Path, p.Format, format(p.A.Path))
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("PairWeights of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestExternalPath(t *testing.T) {
	for _, tt := range []struct{ from, location, want string }{
		{"model.onnx", "model.onnx.data", "model.onnx.data"},
		{"onnx/model.onnx", "w/a.bin", "onnx/w/a.bin"},
		{"onnx/model.onnx", "../a.bin", "a.bin"},
		{"model.onnx", "../a.bin", ""},
		{"onnx/model.onnx", "../../etc/passwd", ""},
		{"model.onnx", "/etc/passwd", ""},
		{"model.onnx", "", ""},
	} {
		if got := registry.ExternalPath(tt.from, tt.location); got != tt.want {
			t.Errorf("ExternalPath(%q, %q) = %q, want %q", tt.from, tt.location, got, tt.want)
		}
	}
}

func TestParseRevs(t *testing.T) {
	a, b, err := registry.ParseRevs("v1.0.0...env:production")
	if err != nil || a.Tag.String() != "v1.0.0" || b.Environment.String() != "production" {
		t.Errorf("ParseRevs = %+v, %+v, %v, want v1.0.0 and env:production", a, b, err)
	}
	if a, b, err = registry.ParseRevs("branch:a/b...main"); err != nil || a.Branch != "a/b" || b.Branch != "main" {
		t.Errorf("ParseRevs = %+v, %+v, %v, want the branches a/b and main", a, b, err)
	}
	for _, bad := range []string{"", "v1.0.0", "v1.0.0..v1.1.0", "...", "v1.0.0...", "...v1.0.0", "v1.0.0....v1.1.0", "a...b...c", "env:...main"} {
		if a, b, err := registry.ParseRevs(bad); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("ParseRevs(%q) = %+v, %+v, %v, want ErrInvalid", bad, a, b, err)
		}
	}
}

func BenchmarkCompareTensors(b *testing.B) {
	var texts, other []string
	for i := range 10_000 {
		texts = append(texts, fmt.Sprintf("layer.%05d F32 %d", i, i))
		other = append(other, fmt.Sprintf("layer.%05d F32 %d", i, i/2))
	}
	list := func(texts []string) iter.Seq2[registry.Tensor, error] {
		var all []registry.Tensor
		for _, text := range texts {
			all = append(all, tensorOf(text))
		}
		return func(yield func(registry.Tensor, error) bool) {
			for _, t := range all {
				if !yield(t, nil) {
					return
				}
			}
		}
	}
	left, right := list(texts), list(other)
	for b.Loop() {
		if _, err := registry.CompareTensors(left, right, registry.MaxListed); err != nil {
			b.Fatal(err)
		}
	}
}
