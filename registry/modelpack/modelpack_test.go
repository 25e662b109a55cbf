package modelpack

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/inspect"
)

var update = flag.Bool("update", false, "write the golden files; only before the first release of a Format")

// example is a version with one file of each kind and all that a card can say.
func example() (Source, *blobs) {
	store := newBlobs()
	script := store.put("scripts/serve.sh", []byte("#!/bin/sh\nexec serve\n"))
	script.Executable = true
	weights := store.put("onnx/model.onnx", bytes.Repeat([]byte("weights!"), 200_000))
	weights.LFS = true
	return Source{
		Model: registry.MustModelName("acme/voice-detector"), Tag: registry.MustTag("v1.2.0-rc.1"),
		Commit:    "0123456789abcdef0123456789abcdef01234567",
		CreatedAt: time.Date(2026, 11, 5, 14, 30, 15, 999, time.FixedZone("", 3600)),
		Author:    "Ada <Lovelace> & Söhne\n",
		Files: []registry.File{
			weights, script,
			store.put("README.md", []byte("# Voice detector\n")), store.put("config.json", []byte("{}")),
			store.put("data/calls.csv", []byte("a,b\n")), store.put("empty", nil),
			store.put("ünïcode/"+strings.Repeat("long name ", 12)+".txt", []byte("x")),
		},
		Card: registry.CardFacts{
			License: "apache-2.0, mit", Languages: []string{"en", "de", "multilingual"},
			Datasets: []string{"acme/calls", "s3://acme/calls"},
		},
		Weights: []inspect.Weights{{
			Path: "onnx/model.onnx", Format: inspect.ONNX, Parameters: 462_594, Precision: "F32,I64", Tensors: 40, Opset: 16, Producer: "pytorch 2.1.0",
		}},
	}, store
}

// pack makes artifact and image of a version.
func pack(t *testing.T, s Source, store *blobs) (Artifact, Image, []registry.ImageLayer) {
	t.Helper()
	artifact, err := Pack(s)
	if err != nil {
		t.Fatalf("Pack: %v", err)
	}
	var layers []registry.ImageLayer
	for _, files := range LayerFiles(s.Files) {
		layer, err := NewLayer(files, store.open)
		if err != nil {
			t.Fatalf("NewLayer: %v", err)
		}
		layers = append(layers, layer)
	}
	image, err := NewImage(artifact.Manifest.Bytes, artifact.Manifest.Descriptor, layers)
	if err != nil {
		t.Fatalf("NewImage: %v", err)
	}
	return artifact, image, layers
}

// TestFormat1 holds every byte of Format 1. When it fails, do not write the files anew: make a new
// Format. A new Go that writes other tar headers needs the old ones kept, too: published images
// are composed of them.
func TestFormat1(t *testing.T) {
	if Format != 1 {
		t.Fatalf("Format = %d: keep the golden files of 1 and its rules, and add a test beside this one", Format)
	}
	source, store := example()
	artifact, image, layers := pack(t, source, store)
	golden := map[string][]byte{
		"artifact-manifest.json": artifact.Manifest.Bytes,
		"artifact-config.json":   artifact.Config.Bytes,
		"image-amd64.json":       image.Manifests[0].Bytes,
		"image-arm64.json":       image.Manifests[1].Bytes,
		"image-index.json":       image.Index().Bytes,
		"config-amd64.json":      image.Configs[0].Bytes,
		"config-arm64.json":      image.Configs[1].Bytes,
	}
	l, err := OpenLayer(layers[0], store.open)
	if err != nil {
		t.Fatal(err)
	}
	if golden["first-layer.tar"], err = io.ReadAll(l); err != nil {
		t.Fatal(err)
	}
	huge := entry{name: "models/huge.bin", file: &registry.File{Path: "huge.bin", SizeBytes: 9 << 30, Executable: true}}
	header, err := huge.header()
	if err != nil {
		t.Fatal(err)
	}
	golden["header-of-9-gib.hex"] = []byte(strings.Join(lines(hex.EncodeToString(header), 64), "\n") + "\n")
	for name, got := range golden {
		file := filepath.Join("testdata", "format1", name)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what Format 1 makes (-want +got):\n%s", name, cmp.Diff(string(want), string(got)))
		}
	}
	entries, err := os.ReadDir(filepath.Join("testdata", "format1"))
	if err != nil || len(entries) != len(golden) {
		t.Errorf("testdata/format1 holds %d files, want %d (%v)", len(entries), len(golden), err)
	}
}

func lines(s string, width int) []string {
	var list []string
	for len(s) > width {
		list = append(list, s[:width])
		s = s[width:]
	}
	return append(list, s)
}

func TestPackDoesNotDependOnOrder(t *testing.T) {
	source, store := example()
	want, wantImage, _ := pack(t, source, store)
	for range 5 {
		slices.Reverse(source.Files)
		source.CreatedAt = source.CreatedAt.In(time.UTC)
		got, gotImage, _ := pack(t, source, store)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("Pack of the same files in another order:\n%s", diff)
		}
		if diff := cmp.Diff(wantImage, gotImage); diff != "" {
			t.Fatalf("NewImage of the same files in another order:\n%s", diff)
		}
		source.Files = append(source.Files[1:], source.Files[0])
	}
}

// An unchanged file has the same layer in the next version, whatever else changed.
func TestLayersAreShared(t *testing.T) {
	source, store := example()
	_, _, before := pack(t, source, store)
	source.Tag, source.Commit, source.CreatedAt = registry.MustTag("v2.0.0"), "ffff", source.CreatedAt.Add(time.Hour)
	source.Files = append(source.Files, store.put("more.txt", []byte("more")))
	_, _, after := pack(t, source, store)
	if before[1].Digest != after[1].Digest {
		t.Errorf("layer of the unchanged weights = %s, then %s", before[1].Digest, after[1].Digest)
	}
	if before[0].Digest == after[0].Digest {
		t.Error("the layer of small files is the same, and there is one more")
	}
}

func TestPackRefuses(t *testing.T) {
	for name, files := range map[string][]registry.File{
		"no files":       nil,
		"a bad path":     {{Path: "../x"}},
		"the same twice": {{Path: "x"}, {Path: "x"}},
	} {
		source, _ := example()
		source.Files = files
		if a, err := Pack(source); err == nil {
			t.Errorf("Pack with %s = %s, want an error", name, a.Manifest.Bytes)
		}
	}
}

// The time of a Git object is whatever its author says.
func TestPackWithOddTimes(t *testing.T) {
	for _, at := range []time.Time{{}, time.Unix(math.MaxInt32*1e4, 0), time.Unix(-math.MaxInt32*1e4, 0)} {
		source, _ := example()
		source.CreatedAt = at
		artifact, err := Pack(source)
		if err != nil {
			t.Errorf("Pack of a commit of %v: %v", at, err)
			continue
		}
		if strings.Contains(string(artifact.Config.Bytes), "createdAt") || artifact.Manifest.Annotations["org.opencontainers.image.created"] != "" {
			t.Errorf("Pack of a commit of %v says when it was created, want nothing", at)
		}
	}
}

// schema is the part of JSON Schema that the specifications' schemas need.
type schema struct {
	is       string // of the value: "object", "array", "string", "number"
	fields   map[string]schema
	required []string
	items    *schema
	pattern  string
	least    int // items of an array
	open     bool
}

func (s schema) check(path string, v any) (problems []string) {
	say := func(format string, args ...any) {
		problems = append(problems, path+": "+fmt.Sprintf(format, args...))
	}
	is := map[bool]string{}
	switch v := v.(type) {
	case map[string]any:
		is[true] = "object"
		for _, name := range s.required {
			if _, ok := v[name]; !ok {
				say("has no %q", name)
			}
		}
		for name, field := range v {
			known, ok := s.fields[name]
			switch {
			case ok:
				problems = append(problems, known.check(path+"."+name, field)...)
			case s.items != nil:
				problems = append(problems, s.items.check(path+"."+name, field)...)
			case !s.open:
				say("has a field %q that is not the specification's", name)
			}
		}
	case []any:
		is[true] = "array"
		if len(v) < s.least {
			say("has %d items, want %d", len(v), s.least)
		}
		for i, item := range v {
			problems = append(problems, s.items.check(fmt.Sprintf("%s[%d]", path, i), item)...)
		}
	case string:
		is[true] = "string"
		if s.pattern != "" && !regexp.MustCompile(s.pattern).MatchString(v) {
			say("is %q, want a text like %s", v, s.pattern)
		}
	case float64:
		is[true] = "number"
	default:
		is[true] = "another kind of value"
	}
	if is[true] != s.is {
		say("is %s, want %s", is[true], s.is)
	}
	return problems
}

var (
	textSchema    = schema{is: "string"}
	textsSchema   = schema{is: "array", items: &textSchema}
	digestSchema  = schema{is: "string", pattern: `^sha256:[a-f0-9]{64}$`}
	timeSchema    = schema{is: "string", pattern: `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`}
	notesSchema   = schema{is: "object", items: &textSchema}
	digestsSchema = schema{is: "array", items: &digestSchema, least: 1}

	// Source: model-spec v0.0.7, schema/config-schema.json.
	modelConfigSchema = schema{is: "object", required: []string{"descriptor", "config", "modelfs"}, fields: map[string]schema{
		"descriptor": {is: "object", fields: map[string]schema{
			"createdAt": timeSchema, "authors": textsSchema, "family": textSchema, "name": {is: "string", pattern: "."}, "docURL": textSchema,
			"sourceURL": textSchema, "datasetsURL": textsSchema, "version": textSchema, "revision": textSchema, "vendor": textSchema,
			"licenses": textsSchema, "title": textSchema, "description": textSchema,
		}},
		"config": {is: "object", fields: map[string]schema{
			"architecture": textSchema, "format": textSchema, "paramSize": {is: "string", pattern: `^\d+(\.\d)?[kmbtqKMBTQ]$`}, "precision": textSchema, "quantization": textSchema,
			"capabilities": {is: "object", fields: map[string]schema{"languages": {is: "array", items: &schema{is: "string", pattern: "^[a-z]{2}$"}}}},
		}},
		"modelfs": {is: "object", required: []string{"type", "diffIds"}, fields: map[string]schema{"type": {is: "string", pattern: "^layers$"}, "diffIds": digestsSchema}},
	}}

	// Source: image-spec v1.1.1, schema/content-descriptor.json.
	descriptorSchema = schema{is: "object", required: []string{"mediaType", "digest", "size"}, fields: map[string]schema{
		"mediaType": {is: "string", pattern: `^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$`},
		"digest":    digestSchema, "size": {is: "number"}, "annotations": notesSchema,
		"platform": {is: "object", required: []string{"architecture", "os"}, fields: map[string]schema{"architecture": textSchema, "os": textSchema}},
	}}

	// Source: image-spec v1.1.1, schema/image-manifest-schema.json.
	manifestSchema = schema{is: "object", required: []string{"schemaVersion", "config", "layers"}, fields: map[string]schema{
		"schemaVersion": {is: "number"}, "mediaType": {is: "string", pattern: `^application/vnd\.oci\.image\.manifest\.v1\+json$`},
		"artifactType": textSchema, "config": descriptorSchema, "layers": {is: "array", items: &descriptorSchema, least: 1}, "annotations": notesSchema,
	}}

	// Source: image-spec v1.1.1, schema/image-index-schema.json.
	indexSchema = schema{is: "object", required: []string{"schemaVersion", "manifests"}, fields: map[string]schema{
		"schemaVersion": {is: "number"}, "mediaType": {is: "string", pattern: `^application/vnd\.oci\.image\.index\.v1\+json$`},
		"manifests": {is: "array", items: &descriptorSchema, least: 2}, "subject": descriptorSchema, "annotations": notesSchema,
	}}

	// Source: image-spec v1.1.1, schema/config-schema.json.
	imageConfigSchema = schema{is: "object", required: []string{"architecture", "os", "rootfs"}, fields: map[string]schema{
		"created": timeSchema, "author": textSchema, "architecture": textSchema, "os": textSchema,
		"config": {is: "object", fields: map[string]schema{"Labels": notesSchema}},
		"rootfs": {is: "object", required: []string{"type", "diff_ids"}, fields: map[string]schema{"type": {is: "string", pattern: "^layers$"}, "diff_ids": digestsSchema}},
		"history": {is: "array", items: &schema{is: "object", fields: map[string]schema{
			"created": timeSchema, "created_by": textSchema,
		}}},
	}}
)

func TestDocumentsAreAsSpecified(t *testing.T) {
	full, store := example()
	bare, _ := example()
	bare.Card, bare.Weights, bare.Author, bare.CreatedAt = registry.CardFacts{}, nil, "", time.Time{}
	for _, source := range []Source{full, bare} {
		artifact, image, _ := pack(t, source, store)
		documents := []struct {
			name   string
			schema schema
			Document
		}{
			{"artifact manifest", manifestSchema, artifact.Manifest},
			{"artifact config", modelConfigSchema, artifact.Config},
			{"amd64 manifest", manifestSchema, image.Manifests[0]},
			{"arm64 manifest", manifestSchema, image.Manifests[1]},
			{"amd64 config", imageConfigSchema, image.Configs[0]},
			{"arm64 config", imageConfigSchema, image.Configs[1]},
			{"index", indexSchema, image.Index()},
		}
		for _, d := range documents {
			var v any
			if err := json.Unmarshal(d.Bytes, &v); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
			for _, problem := range d.schema.check(d.name, v) {
				t.Error(problem)
			}
			if d.Digest != digest.FromBytes(d.Bytes) || d.SizeBytes != int64(len(d.Bytes)) {
				t.Errorf("%s: descriptor %v is not of its bytes", d.name, d.Descriptor)
			}
			if strings.Contains(string(d.Bytes), "localhost") {
				t.Errorf("%s names a server", d.name)
			}
		}
	}
}

func TestPackedArtifact(t *testing.T) {
	source, _ := example()
	artifact, err := Pack(source)
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		ArtifactType string
		Config       struct{ MediaType, Digest string }
		Annotations  map[string]string
		Layers       []struct {
			MediaType   string
			Digest      digest.Digest
			Size        int64
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(artifact.Manifest.Bytes, &m); err != nil {
		t.Fatal(err)
	}
	if m.ArtifactType != "application/vnd.cncf.model.manifest.v1+json" || m.Config.MediaType != "application/vnd.cncf.model.config.v1+json" ||
		m.Config.Digest != artifact.Config.Digest.String() {
		t.Errorf("manifest = %+v, want ModelPack's artifact type and the config", m)
	}
	wantAnnotations := map[string]string{
		"org.opencontainers.image.title":    "acme/voice-detector",
		"org.opencontainers.image.version":  "v1.2.0-rc.1",
		"org.opencontainers.image.revision": "0123456789abcdef0123456789abcdef01234567",
		"org.opencontainers.image.created":  "2026-11-05T13:30:15Z",
		"org.opencontainers.image.licenses": "apache-2.0 AND mit",
		"org.opencontainers.image.authors":  "Ada <Lovelace> & Söhne",
	}
	if diff := cmp.Diff(wantAnnotations, m.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	stored := artifact.Manifest.Stored()
	if diff := cmp.Diff(wantAnnotations, stored.Annotations); diff != "" || stored.ArtifactType != m.ArtifactType || stored.Digest != artifact.Manifest.Digest {
		t.Errorf("Stored() = %+v, want what the manifest says\n%s", stored, diff)
	}
	media := map[string]string{}
	for _, l := range m.Layers {
		path := l.Annotations["org.opencontainers.image.title"]
		media[path] = l.MediaType + " " + l.Annotations["org.cncf.model.file.mediatype.untested"]
		i := slices.IndexFunc(source.Files, func(f registry.File) bool { return f.Path == path })
		if i < 0 || l.Annotations["org.cncf.model.filepath"] != path || l.Digest != source.Files[i].Digest || l.Size != source.Files[i].SizeBytes {
			t.Errorf("layer %+v is not a file of the version", l)
			continue
		}
		var metadata map[string]any
		if err := json.Unmarshal([]byte(l.Annotations["org.cncf.model.file.metadata+json"]), &metadata); err != nil {
			t.Errorf("metadata of %s: %v", path, err)
		}
		mode := 0o644
		if source.Files[i].Executable {
			mode = 0o755
		}
		want := map[string]any{
			"name": filepath.Base(path), "mode": float64(mode), "uid": 0.0, "gid": 0.0, "size": float64(source.Files[i].SizeBytes), "mtime": "1970-01-01T00:00:00Z", "typeflag": 0.0,
		}
		if diff := cmp.Diff(want, metadata); diff != "" {
			t.Errorf("metadata of %s (-want +got):\n%s", path, diff)
		}
	}
	wantMedia := map[string]string{
		"onnx/model.onnx":    "application/vnd.cncf.model.weight.v1.raw false",
		"scripts/serve.sh":   "application/vnd.cncf.model.code.v1.raw true",
		"README.md":          "application/vnd.cncf.model.doc.v1.raw true",
		"config.json":        "application/vnd.cncf.model.weight.config.v1.raw true",
		"data/calls.csv":     "application/vnd.cncf.model.dataset.v1.raw true",
		"empty":              "application/vnd.cncf.model.weight.config.v1.raw true",
		source.Files[6].Path: "application/vnd.cncf.model.doc.v1.raw true",
	}
	if diff := cmp.Diff(wantMedia, media); diff != "" {
		t.Errorf("media types of the layers (-want +got):\n%s", diff)
	}
}

func TestImage(t *testing.T) {
	source, store := example()
	artifact, image, layers := pack(t, source, store)
	type manifest struct {
		ArtifactType string
		Config       struct {
			MediaType string
			Digest    digest.Digest
		}
		Layers []struct {
			MediaType string
			Digest    digest.Digest
			Size      int64
		}
		Subject *struct{ Digest digest.Digest }
	}
	for i, architecture := range []string{"amd64", "arm64"} {
		var m manifest
		if err := json.Unmarshal(image.Manifests[i].Bytes, &m); err != nil {
			t.Fatal(err)
		}
		if m.ArtifactType != "" || m.Subject != nil || m.Config.MediaType != "application/vnd.oci.image.config.v1+json" || m.Config.Digest != image.Configs[i].Digest {
			t.Errorf("manifest of %s = %+v, want a plain image with its own config", architecture, m)
		}
		var c struct {
			Architecture, OS string
			Created          time.Time
			RootFS           struct {
				DiffIDs []digest.Digest `json:"diff_ids"`
			}
			History []any
		}
		if err := json.Unmarshal(image.Configs[i].Bytes, &c); err != nil {
			t.Fatal(err)
		}
		if c.Architecture != architecture || c.OS != "linux" || len(c.History) != len(layers) || !c.Created.Equal(source.CreatedAt.Truncate(time.Second)) {
			t.Errorf("config of %s = %+v, want its platform, the time of the tag and an entry of history for each layer", architecture, c)
		}
		for j, layer := range layers {
			if l := m.Layers[j]; l.Digest != layer.Digest || l.Size != layer.SizeBytes || l.MediaType != "application/vnd.oci.image.layer.v1.tar" || c.RootFS.DiffIDs[j] != layer.Digest {
				t.Errorf("layer %d of %s = %+v with diff id %s, want %s", j, architecture, l, c.RootFS.DiffIDs[j], layer.Digest)
			}
		}
	}
	var index struct {
		Manifests []struct {
			Digest   digest.Digest
			Platform struct{ Architecture, OS string }
		}
		Subject struct {
			MediaType string
			Digest    digest.Digest
			Size      int64
		}
	}
	if err := json.Unmarshal(image.Index().Bytes, &index); err != nil {
		t.Fatal(err)
	}
	if s := index.Subject; s.Digest != artifact.Manifest.Digest || s.Size != artifact.Manifest.SizeBytes || s.MediaType != "application/vnd.oci.image.manifest.v1+json" {
		t.Errorf("subject of the index = %+v, want the artifact %+v", s, artifact.Manifest.Descriptor)
	}
	for i, architecture := range []string{"amd64", "arm64"} {
		if m := index.Manifests[i]; m.Digest != image.Manifests[i].Digest || m.Platform.Architecture != architecture || m.Platform.OS != "linux" {
			t.Errorf("manifest %d of the index = %+v, want that of linux/%s", i, m, architecture)
		}
	}
	stored := image.Index().Stored()
	if stored.Subject != artifact.Manifest.Digest || stored.ArtifactType != "" {
		t.Errorf("Stored() of the index = %+v, want the artifact as its subject and no type", stored)
	}
	if diff := cmp.Diff(artifact.Manifest.Annotations, stored.Annotations); diff != "" {
		t.Errorf("annotations of the index are not the artifact's (-want +got):\n%s", diff)
	}
}

func TestNewImageRefuses(t *testing.T) {
	source, store := example()
	artifact, _, layers := pack(t, source, store)
	if _, err := NewImage([]byte("{}"), artifact.Manifest.Descriptor, layers); err == nil {
		t.Error("NewImage with another manifest than the artifact's: no error")
	}
	if _, err := NewImage(artifact.Manifest.Bytes, artifact.Manifest.Descriptor, nil); err == nil {
		t.Error("NewImage without layers: no error")
	}
	text := []byte("no JSON")
	if _, err := NewImage(text, registry.Descriptor{Digest: digest.FromBytes(text)}, layers); err == nil {
		t.Error("NewImage with a manifest that is no JSON: no error")
	}
}

func TestParamSize(t *testing.T) {
	tests := []struct {
		n    int64
		want string
	}{
		{0, ""},
		{49, ""},
		{50, "0.1k"},
		{999, "1k"},
		{1000, "1k"},
		{1550, "1.6k"},
		{99_940, "99.9k"},
		{99_960, "100k"},
		{462_594, "463k"},
		{999_400, "999k"},
		{999_500, "1m"},
		{6_700_000, "6.7m"},
		{109_482_240, "109m"},
		{8_030_261_248, "8b"},
		{70_553_706_496, "70.6b"},
		{671_026_419_200, "671b"},
		{1_000_000_000_000, "1t"},
		{math.MaxInt64, "9223q"},
	}
	for _, tt := range tests {
		if got := paramSize(tt.n); got != tt.want {
			t.Errorf("paramSize(%d) = %q, want %q", tt.n, got, tt.want)
		}
	}
}

func TestTechnical(t *testing.T) {
	file := func(path string, size int64) registry.File { return registry.File{Path: path, SizeBytes: size} }
	tests := []struct {
		name    string
		files   []registry.File
		weights []inspect.Weights
		want    modelTechnical
	}{
		{"no weights", []registry.File{file("README.md", 10)}, nil, modelTechnical{}},
		{"a header that could not be read", []registry.File{file("a.onnx", 10)}, nil, modelTechnical{Format: "onnx"}},
		{"a format that is not inspected", []registry.File{file("a.pt", 10)}, nil, modelTechnical{Format: "pytorch"}},
		{
			"the format of the largest file",
			[]registry.File{file("a.onnx", 10), file("a.safetensors", 20), file("big.csv", 500)},
			[]inspect.Weights{
				{Path: "a.onnx", Format: "onnx", Parameters: 9_000_000, Precision: "F32"},
				{Path: "a.safetensors", Format: "safetensors", Parameters: 8_000_000, Precision: "BF16,F8_E4M3"},
			},
			modelTechnical{Format: "safetensors", ParamSize: "8m", Precision: "bfloat16,float8_e4m3"},
		},
		{
			"parts are one model, variants are not",
			[]registry.File{file("q4-00001-of-00002.gguf", 10), file("q4-00002-of-00002.gguf", 10), file("small.gguf", 5)},
			[]inspect.Weights{
				{Path: "q4-00001-of-00002.gguf", Format: "gguf", Parameters: 1_000_000, Precision: "F32", Architecture: "llama", Quantization: "Q4_K_M"},
				{Path: "q4-00002-of-00002.gguf", Format: "gguf", Parameters: 7_000_000, Precision: "Q4_K,F32"},
				{Path: "small.gguf", Format: "gguf", Parameters: 7_500_000, Precision: "Q8_0", Architecture: "gemma"},
			},
			modelTechnical{Format: "gguf", ParamSize: "8m", Precision: "q4_k,float32", Architecture: "llama", Quantization: "Q4_K_M"},
		},
		{
			"more parameters than can be counted",
			[]registry.File{file("a-00001-of-00002.onnx", 1)},
			[]inspect.Weights{{Path: "a-00001-of-00002.onnx", Format: "onnx", Parameters: math.MaxInt64}, {Path: "a-00002-of-00002.onnx", Format: "onnx", Parameters: math.MaxInt64}},
			modelTechnical{Format: "onnx", ParamSize: "9223q"},
		},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, technical(tt.weights, tt.files)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
