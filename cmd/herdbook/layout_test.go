package main

import (
	"encoding/json"
	"errors"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/herdbook/herdbook/"

// imports lists what each package of the project may import of the project. A new package gets
// a line here first. "registry" stands for the package itself, not for those below it.
var imports = map[string][]string{
	"registry":                             {"registry/statistics"},
	"registry/statistics":                  {}, // and no dependency
	"registry/access":                      {"registry"},
	"registry/problem":                     {"registry"},
	"registry/gate":                        {"registry", "registry/statistics"},
	"registry/card":                        {"registry"},
	"registry/provenance":                  {"registry"},
	"registry/results":                     {"registry", "registry/card"},
	"registry/search":                      {"registry"},
	"registry/inspect":                     {"registry"},
	"registry/modelpack":                   {"registry", "registry/inspect"},
	"registry/lifecycle":                   {"registry", "registry/access", "registry/gate", "registry/card", "registry/inspect", "registry/modelpack"},
	"docs/schemas":                         {},
	"storage":                              {"registry", "storage/blob", "storage/gitrepo", "storage/index", "storage/internal/durable", "storage/journal"},
	"storage/blob":                         {"storage/internal/durable"},
	"storage/blob/blobtest":                {"storage/blob"},
	"storage/journal":                      {"storage/internal/durable"},
	"storage/index":                        {"registry", "registry/access", "registry/search"},
	"storage/gitrepo":                      {"registry", "storage/gitrepo/hook", "storage/internal/durable"},
	"storage/gitrepo/hook":                 {},
	"storage/internal/durable":             {},
	"storage/internal/durable/durabletest": {"storage/internal/durable"},
	"api":                                  {"registry", "registry/access", "registry/lifecycle", "registry/problem", "registry/provenance", "registry/search", "api/internal/auth", "api/internal/door", "docs/schemas"},
	"api/githttp":                          {"registry", "registry/access", "registry/lifecycle", "registry/problem", "api/internal/door"},
	"api/lfs":                              {"registry", "registry/access", "registry/lifecycle", "registry/problem", "api/internal/auth", "api/internal/door"},
	"api/ssh":                              {"registry", "registry/access", "registry/lifecycle", "registry/problem", "api/internal/auth"},
	"api/oci":                              {"registry", "registry/access", "registry/lifecycle", "registry/modelpack", "registry/problem", "api/internal/auth", "api/internal/door"},
	"api/client":                           {"registry", "registry/gate", "api"},
	"api/internal/auth":                    {"registry", "registry/access"},
	"api/internal/door":                    {"registry", "registry/access", "registry/lifecycle"},
	"api/internal/apitest": { // for tests only
		"registry", "registry/access", "registry/lifecycle", "registry/modelpack", "storage", "storage/blob", "storage/gitrepo",
		"api", "api/githttp", "api/lfs", "api/oci", "hooks",
	},
	"hooks":              {"registry"},
	"hooks/webhook":      {"registry"},
	"hooks/ocipush":      {"registry"},
	"web":                {"registry", "registry/access", "registry/card", "registry/search"},
	"cmd/herdbook-hook":  {"storage/gitrepo/hook"},
	"cmd/herdbook-bench": {},
	"cmd/herdbook": {
		"registry", "registry/access", "registry/card", "registry/gate", "registry/lifecycle", "registry/modelpack", "registry/results", "registry/search", "storage", "storage/blob", "storage/gitrepo",
		"storage/gitrepo/hook", "api", "api/githttp", "api/lfs", "api/oci", "api/ssh", "api/client", "hooks", "hooks/ocipush", "hooks/webhook", "web",
	},
}

// owners names the packages that alone may import a dependency: those that begin so.
var owners = map[string][]string{
	"cel.dev/cel-go":                     {"registry/gate"},
	"github.com/google/uuid":             {"registry/provenance"},
	"go.yaml.in/yaml/v3":                 {"registry/card"},
	"google.golang.org/protobuf":         {"registry/inspect"},
	"golang.org/x/mod":                   {"registry"},
	"golang.org/x/crypto":                {"api"},
	"go.etcd.io/bbolt":                   {"storage/index"},
	"github.com/go-git/go-git":           {"storage/gitrepo"},
	"github.com/go-git/go-billy":         {"storage/gitrepo"},
	"golang.org/x/sys":                   {"storage", "cmd/herdbook-bench"},
	"golang.org/x/time":                  {"api/lfs", "storage"},
	"github.com/labstack/echo":           {"api", "web"},
	"github.com/yuin/goldmark":           {"web"},
	"github.com/microcosm-cc/bluemonday": {"web"},
	"github.com/alecthomas/chroma":       {"web"},
	"golang.org/x/net":                   {"web"},
	"github.com/alecthomas/kong":         {"cmd/herdbook", "cmd/herdbook-bench"},
	"github.com/knadh/koanf":             {"cmd/herdbook"},
	"github.com/go-viper/mapstructure":   {"cmd/herdbook"},
	"golang.org/x/term":                  {"cmd/herdbook"},
	"oras.land/oras-go":                  {"hooks/ocipush"},
	"github.com/rogpeppe/go-internal":    {"cmd/herdbook"},
	"github.com/google/go-cmp":           {""},              // in tests
	"modernc.org/sqlite":                 {"storage/index"}, // in a benchmark
	// Of common use.
	"github.com/opencontainers/go-digest":   {""},
	"github.com/opencontainers/image-spec":  {""},
	"github.com/prometheus/client_golang":   {"api", "cmd/herdbook", "hooks", "storage"},
	"github.com/prometheus/client_model":    {""},
	"github.com/santhosh-tekuri/jsonschema": {""},
	"golang.org/x/sync":                     {""},
}

type listed struct {
	ImportPath                         string
	Dir                                string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
	Standard                           bool
}

// packages are those of the module, as the go command lists them.
func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
}

func TestLayoutImports(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := imports[name]
		if !known {
			t.Errorf("package %s has no line in the layout test: say there what it may import", name)
			continue
		}
		for _, path := range p.Imports {
			if of, ours := strings.CutPrefix(path, module); ours && !slices.Contains(allowed, of) {
				t.Errorf("%s imports %s, which its line in the layout test does not allow", name, of)
			}
		}
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			checkOwner(t, name, path)
		}
	}
}

func checkOwner(t *testing.T, name, path string) {
	t.Helper()
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") || strings.HasPrefix(path, module) {
		return // of the standard library, or ours
	}
	for dependency, allowed := range owners {
		if path == dependency || strings.HasPrefix(path, dependency+"/") {
			if !slices.ContainsFunc(allowed, func(owner string) bool { return owner == "" || name == owner || strings.HasPrefix(name, owner+"/") }) {
				t.Errorf("%s imports %s, which belongs to %s", name, path, strings.Join(allowed, ", "))
			}
			return
		}
	}
	t.Errorf("%s imports %s, which no line in the layout test gives to a package", name, path)
}

func TestLayoutPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		with := 0
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc == nil {
				continue
			}
			with++
			name := strings.TrimPrefix(p.ImportPath, module)
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command " + filepath.Base(name) + " "
			}
			if s := new(doc.Package).Synopsis(f.Doc.Text()); !strings.HasPrefix(s, want) {
				t.Errorf("the comment of package %s begins with %q, want %q", name, s, want)
			}
		}
		if len(p.GoFiles) > 0 && with != 1 {
			t.Errorf("package %s has %d files with a package comment, want 1", p.ImportPath, with)
		}
	}
}
