package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/herdbook/herdbook/registry"
)

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	dockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
	configType  = "application/vnd.oci.image.config.v1+json"
	layerType   = "application/vnd.oci.image.layer.v1.tar"
)

// described is a descriptor of a text, as JSON.
func described(mediaType, text string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest.FromString(text), len(text))
}

func descriptor(mediaType, text string) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}
}

func TestParseManifest(t *testing.T) {
	config, layer, other := described(configType, "config"), described(layerType, "layer"), described(ociManifest, "other")
	wide := digest.SHA512.FromString("wide")
	tests := []struct {
		name, mediaType, in string
		want                registry.Manifest
		refusal             string // in the error
	}{
		{
			"an image", ociManifest, `{"schemaVersion":2,"mediaType":"` + ociManifest + `","config":` + config + `,"layers":[` + layer + `]}`,
			registry.Manifest{MediaType: ociManifest, ArtifactType: configType, Blobs: []v1.Descriptor{descriptor(configType, "config"), descriptor(layerType, "layer")}},
			"",
		},
		{
			"an artifact that refers to something", ociManifest + "; charset=utf-8", `{"schemaVersion":2,"artifactType":"application/x-sig","config":` + config + `,"layers":[],"subject":` + other + `,"annotations":{"a":"b"}}`,
			registry.Manifest{
				MediaType: ociManifest, ArtifactType: "application/x-sig", Annotations: map[string]string{"a": "b"},
				Subject: digest.FromString("other"), Blobs: []v1.Descriptor{descriptor(configType, "config")},
			},
			"",
		},
		{
			"an index", ociIndex, `{"schemaVersion":2,"manifests":[` + other + `]}`,
			registry.Manifest{MediaType: ociIndex, Manifests: []v1.Descriptor{descriptor(ociManifest, "other")}},
			"",
		},
		{"an empty index", ociIndex, `{"schemaVersion":2,"manifests":[]}`, registry.Manifest{MediaType: ociIndex}, ""},
		{
			"one of Docker, sent without a type", "", `{"schemaVersion":2,"mediaType":"` + dockerImage + `","config":` + config + `}`,
			registry.Manifest{MediaType: dockerImage, ArtifactType: configType, Blobs: []v1.Descriptor{descriptor(configType, "config")}},
			"",
		},
		{"a list of Docker", dockerList, `{"schemaVersion":2,"mediaType":"` + dockerList + `","manifests":[]}`, registry.Manifest{MediaType: dockerList}, ""},
		{
			"a layer that lies elsewhere", ociManifest,
			`{"schemaVersion":2,"config":` + config + `,"layers":[` + described("application/vnd.oci.image.layer.nondistributable.v1.tar", "x") + `,` + described("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "y") + `]}`,
			registry.Manifest{MediaType: ociManifest, ArtifactType: configType, Blobs: []v1.Descriptor{descriptor(configType, "config")}},
			"",
		},
		{
			"a digest of SHA-512", ociManifest, `{"schemaVersion":2,"config":{"mediaType":"` + configType + `","digest":"` + wide.String() + `","size":4}}`,
			registry.Manifest{MediaType: ociManifest, ArtifactType: configType, Blobs: []v1.Descriptor{{MediaType: configType, Digest: wide, Size: 4}}},
			"",
		},
		{
			"annotations in any letters, and unknown keys", ociManifest, `{"schemaVersion":2,"config":` + config + `,"annotations":{"Digest":"a","digest":"b"},"x":{"Layers":1}}`,
			registry.Manifest{
				MediaType: ociManifest, ArtifactType: configType, Annotations: map[string]string{"Digest": "a", "digest": "b"},
				Blobs: []v1.Descriptor{descriptor(configType, "config")},
			},
			"",
		},

		{"no JSON", ociManifest, `{"schemaVersion":2`, registry.Manifest{}, "not JSON"},
		{"something after it", ociManifest, `{"schemaVersion":2,"config":` + config + `}{}`, registry.Manifest{}, "not JSON"},
		{"a list", ociManifest, `[]`, registry.Manifest{}, "not JSON of the form of a manifest"},
		{"null", ociManifest, `null`, registry.Manifest{}, "schemaVersion is 0"},
		{"nothing", ociManifest, ``, registry.Manifest{}, "not JSON"},
		{"no type at all", "", `{"schemaVersion":2,"config":` + config + `}`, registry.Manifest{}, `"" is not the media type`},
		{"a type that is none", "a/b/c", `{}`, registry.Manifest{}, "is no media type"},
		{"an unknown type", "application/json", `{"schemaVersion":2}`, registry.Manifest{}, "is not the media type of a manifest"},
		{"two types", ociManifest, `{"schemaVersion":2,"mediaType":"` + ociIndex + `","config":` + config + `}`, registry.Manifest{}, "was sent as"},
		{"another version", ociManifest, `{"schemaVersion":1,"config":` + config + `}`, registry.Manifest{}, "schemaVersion is 1, not 2"},
		{"layers of the first version", ociManifest, `{"schemaVersion":2,"config":` + config + `,"fsLayers":[]}`, registry.Manifest{}, "fsLayers"},
		{"a manifest with manifests", ociManifest, `{"schemaVersion":2,"config":` + config + `,"manifests":[]}`, registry.Manifest{}, "no manifests"},
		{"an index with layers", ociIndex, `{"schemaVersion":2,"manifests":[],"layers":[]}`, registry.Manifest{}, "neither a config nor layers"},
		{"an index with a config", ociIndex, `{"schemaVersion":2,"manifests":[],"config":` + config + `}`, registry.Manifest{}, "neither a config nor layers"},
		{"no config", ociManifest, `{"schemaVersion":2,"layers":[` + layer + `]}`, registry.Manifest{}, "no config"},
		{"a digest of another algorithm", ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[{"mediaType":"x","digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":0}]}`, registry.Manifest{}, "which is no digest"},
		{"a digest in upper case", ociManifest, `{"schemaVersion":2,"config":` + config + `,"subject":{"mediaType":"x","digest":"sha256:` + strings.Repeat("A", 64) + `","size":0}}`, registry.Manifest{}, "which is no digest"},
		{"a size below zero", ociIndex, `{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"` + digest.FromString("").String() + `","size":-1}]}`, registry.Manifest{}, "has a size of -1"},
		{"a descriptor without a type", ociManifest, `{"schemaVersion":2,"config":{"digest":"` + digest.FromString("").String() + `","size":0}}`, registry.Manifest{}, "has no media type"},

		{"layers twice", ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[],"layers":[` + layer + `]}`, registry.Manifest{}, `"layers" twice`},
		{"layers and Layers", ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[],"Layers":[` + layer + `]}`, registry.Manifest{}, `"Layers", which some programs take for "layers"`},
		{"only Layers", ociManifest, `{"schemaVersion":2,"config":` + config + `,"Layers":[` + layer + `]}`, registry.Manifest{}, `which some programs take for "layers"`},
		{"a letter that folds to k or s", ociManifest, `{"schemaVersion":2,"config":` + config + `,"layer\u017f":[]}`, registry.Manifest{}, `which some programs take for "layers"`},
		{"an escaped key", ociManifest, `{"schemaVersion":2,"config":` + config + `,"\u0063onfig":` + layer + `}`, registry.Manifest{}, `"config" twice`},
		{"a digest twice in the config", ociManifest, `{"schemaVersion":2,"config":{"mediaType":"x","digest":"` + digest.FromString("a").String() + `","digest":"` + digest.FromString("b").String() + `","size":1}}`, registry.Manifest{}, `"digest" twice`},
		{"a Size in a layer", ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[{"mediaType":"x","digest":"` + digest.FromString("a").String() + `","Size":1}]}`, registry.Manifest{}, `"Size", which some programs take for "size"`},
		{"an annotation twice", ociManifest, `{"schemaVersion":2,"config":` + config + `,"annotations":{"a":"1","a":"2"}}`, registry.Manifest{}, `"a" twice`},
	}
	for _, tt := range tests {
		got, err := registry.ParseManifest(tt.mediaType, []byte(tt.in))
		if tt.refusal != "" {
			if !errors.Is(err, registry.ErrInvalid) || fieldOf(err) != "manifest" || !strings.Contains(err.Error(), tt.refusal) {
				t.Errorf("ParseManifest of %s = %v, want an error on manifest with %q", tt.name, err, tt.refusal)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("ParseManifest of %s = %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

// asWritten is a manifest without what is not read of it, by a reader to whom the case of letters matters.
func asWritten(tb testing.TB, data []byte) []byte {
	tb.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var all map[string]any
	if err := d.Decode(&all); err != nil {
		tb.Fatalf("%.200q was accepted and is no JSON object: %v", data, err)
	}
	only := func(v any, keys string) any {
		if object, ok := v.(map[string]any); ok {
			maps.DeleteFunc(object, func(key string, _ any) bool { return !strings.Contains(" "+keys+" ", " "+key+" ") })
		}
		return v
	}
	only(all, "schemaVersion mediaType artifactType config layers manifests subject annotations")
	for _, one := range []string{"config", "subject"} {
		only(all[one], "mediaType digest size")
	}
	for _, list := range []string{"layers", "manifests"} {
		items, _ := all[list].([]any)
		for _, item := range items {
			only(item, "mediaType digest size")
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// What is accepted says one thing, whoever reads it.
func FuzzParseManifest(f *testing.F) {
	config, layer, other := described(configType, "config"), described(layerType, "layer"), described(ociManifest, "other")
	for _, seed := range [][2]string{
		{ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `],"subject":` + other + `,"annotations":{"a":"b"}}`},
		{ociIndex, `{"schemaVersion":2,"mediaType":"` + ociIndex + `","artifactType":"x","manifests":[` + other + `]}`},
		{"", `{"schemaVersion":2,"mediaType":"` + dockerImage + `","config":` + config + `}`},
		{dockerList, `{"schemaVersion":2,"manifests":null}`},
		{ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[],"Layers":[` + layer + `]}`},
		{ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[],"layers":[` + layer + `]}`},
		{ociManifest, `{"schemaVersion":2,"config":` + config + `,"\u017fubject":` + other + `}`},
		{ociManifest, `{"schemaVersion":2,"config":` + strings.Replace(config, "digest", "Digest", 1) + `}`},
		{ociManifest, `{"schemaVersion":2,"config":` + config + `,"annotations":{"A":"1","a":"2"}}`},
		{"a/b; c", `{}`},
		{"", ``},
		{ociIndex, `[[[`},
	} {
		f.Add(seed[0], []byte(seed[1]))
	}
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		m, err := registry.ParseManifest(mediaType, data)
		if err != nil {
			if fieldOf(err) != "manifest" || !cmp.Equal(m, registry.Manifest{}) {
				t.Errorf("ParseManifest(%q, %.200q) = %+v, %v, want nothing and an error on manifest", mediaType, data, m, err)
			}
			return
		}
		index := m.MediaType == ociIndex || m.MediaType == dockerList
		switch {
		case !index && m.MediaType != ociManifest && m.MediaType != dockerImage:
			t.Errorf("ParseManifest(%q, %.200q) has the media type %q", mediaType, data, m.MediaType)
		case index && len(m.Blobs) > 0, !index && (len(m.Manifests) > 0 || len(m.Blobs) == 0):
			t.Errorf("ParseManifest(%q, %.200q) has %d blobs and %d manifests", mediaType, data, len(m.Blobs), len(m.Manifests))
		case m.Subject != "" && registry.CheckDigest(m.Subject) != nil:
			t.Errorf("ParseManifest(%q, %.200q) has the subject %q", mediaType, data, m.Subject)
		}
		for _, d := range append(m.Blobs, m.Manifests...) {
			if registry.CheckDigest(d.Digest) != nil || d.Size < 0 || d.MediaType == "" {
				t.Errorf("ParseManifest(%q, %.200q) has the part %+v", mediaType, data, d)
			}
		}
		again, err := registry.ParseManifest(m.MediaType, data)
		if diff := cmp.Diff(m, again); diff != "" || err != nil {
			t.Errorf("ParseManifest(%q, %.200q) as what it is = %v (-first +again):\n%s", mediaType, data, err, diff)
		}
		read := asWritten(t, data)
		strict, err := registry.ParseManifest(m.MediaType, read)
		clear := func(m registry.Manifest) registry.Manifest {
			for _, list := range [][]v1.Descriptor{m.Blobs, m.Manifests} {
				for i, d := range list {
					list[i] = v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
				}
			}
			return m
		}
		if diff := cmp.Diff(clear(m), clear(strict), cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("ParseManifest(%q, %.200q) for a reader to whom case matters, who sees %s = %v (-first +strict):\n%s", mediaType, data, read, err, diff)
		}
	})
}

func TestCheckDigest(t *testing.T) {
	tests := []struct {
		in   string
		want bool
	}{
		{"sha256:" + strings.Repeat("0a", 32), true},
		{"sha512:" + strings.Repeat("0a", 64), true},
		{"sha384:" + strings.Repeat("0a", 48), false},
		{"sha256:" + strings.Repeat("0a", 31), false},
		{"sha256:" + strings.Repeat("0a", 64), false},
		{"sha512:" + strings.Repeat("0a", 32), false},
		{"sha256:" + strings.Repeat("0A", 32), false},
		{"SHA256:" + strings.Repeat("0a", 32), false},
		{"sha256:" + strings.Repeat("0g", 32), false},
		{"sha256:" + strings.Repeat("0a", 32) + "\n", false},
		{strings.Repeat("0a", 32), false},
		{"sha256:", false},
		{"", false},
	}
	for _, tt := range tests {
		if err := registry.CheckDigest(digest.Digest(tt.in)); (err == nil) != tt.want || err != nil && fieldOf(err) != "digest" {
			t.Errorf("CheckDigest(%q) = %v, want it to be one: %t", tt.in, err, tt.want)
		}
	}
}

func BenchmarkParseManifest(b *testing.B) {
	for _, layers := range []int{2, 20_000} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			in := []byte(`{"schemaVersion":2,"config":` + described(configType, "config") + `,"layers":[` + strings.TrimSuffix(strings.Repeat(described(layerType, "layer")+",", layers), ",") + `]}`)
			b.SetBytes(int64(len(in)))
			for b.Loop() {
				if _, err := registry.ParseManifest(ociManifest, in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Who reads a manifest of the most bytes makes no room for a million descriptors with nothing in them.
func TestParseManifestTakesLittleMemory(t *testing.T) {
	head := `{"schemaVersion":2,"config":{"mediaType":"a","digest":"` + digest.FromString("").String() + `","size":0},"layers":[`
	text := []byte(head + strings.Repeat("{},", (registry.MaxManifestBytes-len(head))/3-1) + "{}]}")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := registry.ParseManifest(v1.MediaTypeImageManifest, text); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("ParseManifest of empty layers = %v, want ErrInvalid", err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("ParseManifest of empty layers in %d bytes takes %d bytes, want next to nothing", len(text), took)
	}
}
