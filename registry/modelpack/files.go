package modelpack

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/herdbook/herdbook/registry"
)

// Limits of a path, in bytes. Source: Linux, limits.h, PATH_MAX and NAME_MAX.
const (
	maxPath = 4096
	maxPart = 255
)

// BadPath says why a file of this path cannot be in an artifact, in words that go on from "its
// path", or nothing. A client writes the file where its path says, on any system, and a container
// runtime unpacks it as root.
func BadPath(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > maxPath:
		return fmt.Sprintf("is longer than %d bytes", maxPath)
	case !utf8.ValidString(name):
		return "is not UTF-8"
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || (r >= 0x7f && r < 0xa0) }):
		return "holds a control character"
	case strings.Contains(name, `\`):
		return "holds a backslash, which separates folders on Windows"
	case name[0] == '/':
		return "is absolute"
	}
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "":
			return "has an empty part"
		case p == "." || p == "..":
			return "has a part " + p
		case len(p) > maxPart:
			return fmt.Sprintf("has a part that is longer than %d bytes", maxPart)
		case git(p):
			return "goes through .git"
		case strings.HasPrefix(p, ".wh."):
			// OCI image specification v1.1.1, layer.md, "Whiteouts".
			return "has a part that begins with .wh., which deletes a file when an image is unpacked"
		}
	}
	return ""
}

// git reports whether a part of a path is the folder .git on some file system: those of Windows
// and macOS know no case, Windows drops dots and spaces at the end and has short names.
// Source: Git, path.c, is_ntfs_dotgit.
func git(p string) bool {
	p = strings.TrimRight(p, ". ")
	return strings.EqualFold(p, ".git") || strings.EqualFold(p, "git~1")
}

// kind of a file. Source: model-spec v0.0.7, docs/spec.md, layer media types.
type kind string

const (
	weight       kind = "weight"
	weightConfig kind = "weight.config"
	doc          kind = "doc"
	code         kind = "code"
	dataset      kind = "dataset"
)

// mediaType of a layer that is one file, as it is.
func (k kind) mediaType() string { return "application/vnd.cncf.model." + string(k) + ".v1.raw" }

// kinds is the table of rules: the first that fits a path decides. A pattern without a slash is
// for the file's name, one that ends in a slash for a folder at the root; letters' case does not
// matter. What no rule fits is weight.config, as for Docker's model runner: most unknown files
// beside weights are the tokenizer's.
var kinds = []struct {
	kind     kind
	patterns []string // as path.Match has them
}{
	{doc, []string{
		"readme*", "license*", "licence*", "copying*", "notice*", "changelog*", "citation*", "contributing*", "authors*",
		"use_policy*", "*.md", "*.rst", "*.adoc", "*.pdf", "*.html",
	}},
	{code, []string{
		"requirements*.txt", "dockerfile*", "makefile", ".git*", ".lfsconfig", "jenkinsfile*", "*.py", "*.pyi", "*.ipynb",
		"*.sh", "*.js", "*.mjs", "*.cjs", "*.ts", "*.go", "*.rs", "*.c", "*.cc", "*.cpp", "*.h", "*.hpp", "*.cu",
		"*.java", "*.kt", "*.scala", "*.swift", "*.rb", "*.r", "*.jl", "*.lua", "*.sql", "*.so", "*.dll", "*.dylib", "*.whl",
	}},
	{weightConfig, []string{"tokenizer*", "*.tiktoken", "spiece.model", "sentencepiece*.model", "vocab*", "merges*.txt"}},
	{weight, []string{
		"*.safetensors", "*.gguf", "*.ggml", "*.onnx", "*.onnx_data", "*.onnx.data", "*.bin", "*.pt", "*.pth", "*.pt2", "*.pte",
		"*.ckpt", "*.mar", "*.h5", "*.hdf5", "*.keras", "*.pb", "*.tflite", "*.index", "*.data-[0-9]*-of-[0-9]*", "*.msgpack",
		"*.mlmodel", "*.joblib", "*.pkl", "*.pickle", "*.skops", "*.npy", "*.npz", "*.model", "*.pdparams", "*.caffemodel",
		"*.engine", "*.plan", "*.trt", "*.weights", "*.llamafile", "*.ubj", "*.cbm",
	}},
	{dataset, []string{"data/", "dataset/", "datasets/", "*.parquet", "*.arrow", "*.csv", "*.tsv", "*.tfrecord", "*.wav", "*.flac"}},
	{doc, []string{"*.txt", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"}},
	{weightConfig, []string{"*"}},
}

func kindOf(name string) kind {
	lower := strings.ToLower(name)
	for _, rule := range kinds {
		for _, pattern := range rule.patterns {
			if folder := strings.HasSuffix(pattern, "/"); folder && strings.HasPrefix(lower, pattern) {
				return rule.kind
			}
			if matched, _ := path.Match(pattern, path.Base(lower)); matched {
				return rule.kind
			}
		}
	}
	return weightConfig
}

// sorted gives the files in the order of their paths, which must be good and different.
func sorted(files []registry.File) ([]registry.File, error) {
	files = slices.SortedFunc(slices.Values(files), byPath)
	for i, f := range files {
		if why := BadPath(f.Path); why != "" {
			return nil, fmt.Errorf("file %q: its path %s", f.Path, why)
		}
		if i > 0 && files[i-1].Path == f.Path {
			return nil, fmt.Errorf("file %q stands twice", f.Path)
		}
		if f.SizeBytes < 0 {
			return nil, fmt.Errorf("file %q has a size of %d", f.Path, f.SizeBytes)
		}
	}
	return files, nil
}

func byPath(a, b registry.File) int { return strings.Compare(a.Path, b.Path) }
