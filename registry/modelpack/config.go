package modelpack

import (
	"cmp"
	"maps"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/inspect"
)

// modelConfig is the config of a ModelPack artifact. Its schema is closed: a field that is not
// the specification's makes it invalid.
// Source: model-spec v0.0.7, schema/config-schema.json and docs/config.md.
type modelConfig struct {
	Descriptor modelDescriptor `json:"descriptor"`
	Config     modelTechnical  `json:"config"`
	ModelFS    modelFS         `json:"modelfs"`
}

type modelDescriptor struct {
	CreatedAt   *time.Time `json:"createdAt,omitempty"`
	Authors     []string   `json:"authors,omitempty"`
	Vendor      string     `json:"vendor,omitempty"`
	Name        string     `json:"name,omitempty"`
	Version     string     `json:"version,omitempty"`
	Title       string     `json:"title,omitempty"`
	DatasetsURL []string   `json:"datasetsURL,omitempty"`
	Revision    string     `json:"revision,omitempty"`
	Licenses    []string   `json:"licenses,omitempty"`
}

type modelTechnical struct {
	Architecture string        `json:"architecture,omitempty"`
	Format       string        `json:"format,omitempty"`
	ParamSize    string        `json:"paramSize,omitempty"`
	Precision    string        `json:"precision,omitempty"`
	Quantization string        `json:"quantization,omitempty"`
	Capabilities *capabilities `json:"capabilities,omitempty"`
}

type capabilities struct {
	Languages []string `json:"languages,omitempty"`
}

type modelFS struct {
	Type    string          `json:"type"`
	DiffIDs []digest.Digest `json:"diffIds"`
}

var twoLetters = regexp.MustCompile(`^[a-z]{2}$`) // the schema takes no other languages

func newModelConfig(s Source, files []registry.File) modelConfig {
	c := modelConfig{
		Descriptor: modelDescriptor{
			CreatedAt: s.created(), Vendor: s.Model.Namespace(), Name: s.Model.Name(), Version: s.Tag.String(),
			Title: s.Model.String(), Revision: string(s.Commit), Licenses: s.licenses(),
		},
		Config:  technical(s.Weights, files),
		ModelFS: modelFS{Type: "layers"},
	}
	if author := s.author(); author != "" {
		c.Descriptor.Authors = []string{author}
	}
	for _, dataset := range s.Card.Datasets {
		if strings.Contains(dataset, "://") {
			c.Descriptor.DatasetsURL = append(c.Descriptor.DatasetsURL, dataset)
		}
	}
	var languages []string
	for _, language := range s.Card.Languages {
		if twoLetters.MatchString(language) {
			languages = append(languages, language)
		}
	}
	if len(languages) > 0 {
		c.Config.Capabilities = &capabilities{languages}
	}
	for _, f := range files {
		c.ModelFS.DiffIDs = append(c.ModelFS.DiffIDs, f.Digest) // a raw layer is its own content
	}
	return c
}

// formats by the extension of a weight file; those that inspect knows have its names.
var formats = map[string]string{
	".safetensors": inspect.Safetensors, ".gguf": inspect.GGUF, ".onnx": inspect.ONNX,
	".bin": "pytorch", ".pt": "pytorch", ".pth": "pytorch", ".pt2": "pytorch", ".ckpt": "pytorch",
	".h5": "keras", ".keras": "keras", ".pb": "tensorflow", ".tflite": "tflite", ".msgpack": "flax",
	".joblib": "joblib", ".mlmodel": "coreml",
}

// technical says what the weights are. A repository often holds one model several times, in other
// formats or precisions; so it speaks of the format of the largest weight file, and in it of the
// model with the most parameters. Files that are parts of one ("-00001-of-00003") are one model.
func technical(weights []inspect.Weights, files []registry.File) modelTechnical {
	var largest registry.File
	for _, f := range files {
		if kindOf(f.Path) == weight && (largest.Path == "" || f.SizeBytes > largest.SizeBytes) {
			largest = f
		}
	}
	t := modelTechnical{Format: formats[strings.ToLower(path.Ext(largest.Path))]}
	models := map[string][]inspect.Weights{}
	for _, w := range weights {
		if w.Format == t.Format {
			whole := part.ReplaceAllString(w.Path, "")
			models[whole] = append(models[whole], w)
		}
	}
	parameters := int64(-1)
	var chosen []inspect.Weights
	for _, name := range slices.Sorted(maps.Keys(models)) {
		total := int64(0)
		for _, w := range models[name] {
			if total += w.Parameters; total < 0 {
				total = math.MaxInt64
				break
			}
		}
		if total > parameters {
			parameters, chosen = total, models[name]
		}
	}
	if len(chosen) == 0 {
		return t
	}
	// The parts say the same of the model, but a small one may lack some of its types.
	main := slices.MaxFunc(chosen, func(a, b inspect.Weights) int {
		return cmp.Or(cmp.Compare(a.Parameters, b.Parameters), cmp.Compare(b.Path, a.Path))
	})
	t.ParamSize, t.Precision, t.Quantization = paramSize(parameters), precision(main.Precision), main.Quantization
	for _, w := range chosen { // the first part of a GGUF model holds the metadata
		t.Architecture = cmp.Or(t.Architecture, w.Architecture)
		t.Quantization = cmp.Or(t.Quantization, w.Quantization)
	}
	return t
}

var part = regexp.MustCompile(`-\d{5}-of-\d{5}`)

// paramSize writes a number of parameters as a count with at most one decimal and a letter: 8b,
// 6.7b, 463k. Source: model-spec v0.0.7, docs/config.md, "paramSize".
func paramSize(n int64) string {
	if n < 50 {
		return "" // less than 0.1k
	}
	const letters = "kmbtq"
	count := float64(n) / 1000
	letter := 0
	for count >= 999.5 && letter < len(letters)-1 {
		count /= 1000
		letter++
	}
	decimals := 1
	if count >= 99.95 {
		decimals = 0
	}
	text := strings.TrimSuffix(strconv.FormatFloat(count, 'f', decimals, 64), ".0")
	return text + letters[letter:letter+1]
}

var longPrecision = map[string]string{
	"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
	"F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2", "F4": "float4",
	"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "I4": "int4",
	"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "U4": "uint4",
}

// precision spells types as the specification's examples do: "float16,float8_e4m3".
func precision(types string) string {
	if types == "" {
		return ""
	}
	list := strings.Split(types, ",")
	for i, name := range list {
		list[i] = cmp.Or(longPrecision[name], strings.ToLower(name))
	}
	return strings.Join(list, ",")
}
