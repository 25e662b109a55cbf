package modelpack

import (
	"archive/tar"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBadPath(t *testing.T) {
	tests := []struct{ path, want string }{
		{"README.md", ""},
		{"a/b/c.bin", ""},
		{"ünïcode/模型.onnx", ""},
		{"with space/and 'quotes' \"too\".txt", ""},
		{".gitattributes", ""},
		{".github/workflows/ci.yml", ""},
		{"my.git/config", ""},
		{"...", ""},
		{"..a/b..", ""},
		{"-rf", ""},
		{strings.Repeat("a", 255), ""},
		{strings.Repeat("a/", 2047) + "ab", ""},

		{"", "is empty"},
		{"/etc/passwd", "is absolute"},
		{"../up", "has a part .."},
		{"a/../../up", "has a part .."},
		{"a/..", "has a part .."},
		{"./a", "has a part ."},
		{"a//b", "has an empty part"},
		{"a/", "has an empty part"},
		{`a\b`, "holds a backslash, which separates folders on Windows"},
		{`..\up`, "holds a backslash, which separates folders on Windows"},
		{"a\x00b", "holds a control character"},
		{"a\nb", "holds a control character"},
		{"a\x7f", "holds a control character"},
		{"a\u0085", "holds a control character"},
		{"a\xff", "is not UTF-8"},
		{".git/config", "goes through .git"},
		{"sub/.GIT/hooks/post-checkout", "goes through .git"},
		{".Git", "goes through .git"},
		{".git . /config", "goes through .git"},
		{"GIT~1/config", "goes through .git"},
		{".wh.weights.bin", "has a part that begins with .wh., which deletes a file when an image is unpacked"},
		{"a/.wh..wh..opq", "has a part that begins with .wh., which deletes a file when an image is unpacked"},
		{strings.Repeat("a", 256), "has a part that is longer than 255 bytes"},
		{strings.Repeat("a/", 2048) + "a", "is longer than 4096 bytes"},
	}
	for _, tt := range tests {
		if got := BadPath(tt.path); got != tt.want {
			t.Errorf("BadPath(%q) = %q, want %q", tt.path, got, tt.want)
		}
	}
}

// A good path stays below the folder that it is unpacked in, and a tar header can hold it.
func FuzzBadPath(f *testing.F) {
	for _, seed := range []string{"a", "a/b", "../a", "/a", "a\x00", ".git/x", ".wh.a", "ü", strings.Repeat("x/", 100)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if BadPath(path) != "" {
			return
		}
		if !filepath.IsLocal(filepath.FromSlash(path)) || filepath.ToSlash(filepath.Clean(path)) != path {
			t.Errorf("BadPath(%q) = \"\", want a reason: it is not a plain relative path", path)
		}
		if strings.Contains(strings.ToLower("/"+path+"/"), "/.git/") {
			t.Errorf("BadPath(%q) = \"\", want a reason: it goes through .git", path)
		}
		h := tar.Header{Typeflag: tar.TypeReg, Name: root + path, ModTime: time.Unix(0, 0)}
		if err := tar.NewWriter(io.Discard).WriteHeader(&h); err != nil {
			t.Errorf("tar header of %q, which BadPath takes: %v", path, err)
		}
	})
}

func TestKindOf(t *testing.T) {
	tests := []struct {
		want  kind
		paths []string
	}{
		{weight, []string{
			"model.safetensors", "onnx/model.ONNX", "model.onnx_data", "model-00001-of-00002.safetensors", "Q4_K_M.gguf",
			"pytorch_model.bin", "checkpoint.pt", "variables/variables.data-00000-of-00001", "variables/variables.index",
			"saved_model.pb", "clf.joblib", "clf.pkl", "xgb.model", "data/model.safetensors",
		}},
		{weightConfig, []string{
			"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
			"vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json", "model.safetensors.index.json", "herdbook.yaml",
			"chat_template.jinja", "unknown.xyz", "no-extension", "tokenizer_config.json",
		}},
		{doc, []string{"README.md", "readme", "LICENSE", "License.txt", "NOTICE", "docs/use.md", "images/plot.png", "notes.txt", "USE_POLICY.md", "data/README.md"}},
		{code, []string{"train.py", "Makefile", "Dockerfile.gpu", "requirements.txt", "requirements-dev.txt", ".gitattributes", ".gitignore", "nb.ipynb", "data/prepare.py"}},
		{dataset, []string{"data/train.json", "datasets/x/y.bin2", "eval.csv", "train.parquet", "sample.wav"}},
	}
	for _, tt := range tests {
		for _, path := range tt.paths {
			if got := kindOf(path); got != tt.want {
				t.Errorf("kindOf(%q) = %s, want %s", path, got, tt.want)
			}
		}
	}
}

func TestKindPatterns(t *testing.T) {
	for _, rule := range kinds {
		for _, pattern := range rule.patterns {
			if _, err := filepath.Match(pattern, "x"); err != nil || strings.ToLower(pattern) != pattern {
				t.Errorf("pattern %q of %s never matches: %v", pattern, rule.kind, err)
			}
		}
	}
}
