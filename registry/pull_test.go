package registry_test

import (
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

func TestPulls(t *testing.T) {
	address := func(text string) *url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	artifact, image, weights := digest.FromString("artifact"), digest.FromString("image"), digest.FromString("weights")
	v := registry.VersionRecord{Version: registry.Version{
		Tag: registry.MustTag("v1.2.0"), Commit: "0123456789012345678901234567890123456789", Artifact: registry.Descriptor{Digest: artifact},
		Files: []registry.File{
			{Path: "README.md", Digest: digest.FromString("x"), SizeBytes: 10},
			{Path: "deep/the model's.onnx", Digest: weights, SizeBytes: 1000},
		},
	}}
	model := registry.MustModelName("acme/fraud.v2_x")
	texts := func(server string, v registry.VersionRecord) map[string]string {
		all := map[string]string{}
		for _, p := range registry.Pulls(address(server), model, v) {
			all[p.Client+" "+p.By] = p.Text
		}
		return all
	}
	got := texts("http://127.0.0.1:8080", v)
	for name, want := range map[string]string{
		"oras tag":    "oras pull --plain-http 127.0.0.1:8080/acme/fraud.v2_x:v1.2.0",
		"oras digest": "oras pull --plain-http 127.0.0.1:8080/acme/fraud.v2_x@" + artifact.String(),
		"git tag":     "git clone --branch v1.2.0 http://127.0.0.1:8080/acme/fraud.v2_x.git",
		"git digest":  "git clone --no-checkout http://127.0.0.1:8080/acme/fraud.v2_x.git && git -C fraud.v2_x checkout --detach 0123456789012345678901234567890123456789",
		"curl tag":    "curl -fsSL http://127.0.0.1:8080/v2/acme/fraud.v2_x/manifests/v1.2.0",
		"curl digest": `curl -fL -o 'the model'\''s.onnx' http://127.0.0.1:8080/v2/acme/fraud.v2_x/blobs/` + weights.String(),
		"docker tag":  "", "docker digest": "", "kserve digest": "", "kubernetes digest": "", // the image is not there yet
	} {
		if got[name] != want {
			t.Errorf("%s of a version without an image = %q, want %q", name, got[name], want)
		}
	}
	v.Image = registry.ImageStatus{State: registry.ImageReady, Digest: image}
	got = texts("https://models.example", v)
	for name, want := range map[string]string{
		"oras tag":      "oras pull models.example/acme/fraud.v2_x:v1.2.0",
		"docker tag":    "docker pull models.example/acme/fraud.v2_x/image:v1.2.0",
		"docker digest": "docker pull models.example/acme/fraud.v2_x/image@" + image.String(),
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	for name, parts := range map[string][]string{
		"kserve digest":     {"name: \"fraud-v2-x\"\n", "        name: onnx\n", "storageUri: oci://models.example/acme/fraud.v2_x/image@" + image.String()},
		"kubernetes digest": {"name: \"fraud-v2-x\"\n", "reference: models.example/acme/fraud.v2_x/image@" + image.String(), "pullPolicy: IfNotPresent"},
	} {
		for _, part := range parts {
			if !strings.Contains(got[name], part) {
				t.Errorf("%s does not have %q:\n%s", name, part, got[name])
			}
		}
	}
}

// The name of a file that somebody pushed cannot become a part of the command.
func TestPullsAreSafeInAShell(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no sh")
	}
	server, err := url.Parse("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a b", "a'b", `a"b`, "$(touch gotcha)", "`touch gotcha`", "a;touch gotcha", "-rf", "ä ö", "a\\b", "a&b", "*", "~"} {
		v := registry.VersionRecord{Version: registry.Version{Files: []registry.File{{Path: "x/" + name, Digest: digest.FromString("x"), SizeBytes: 1}}}}
		pulls := registry.Pulls(server, registry.MustModelName("acme/fraud"), v)
		i := slices.IndexFunc(pulls, func(p registry.Pull) bool { return p.Client == "curl" && p.By == "digest" })
		command := exec.Command(sh, "-c", strings.Replace(pulls[i].Text, "curl ", `printf '%s\n' `, 1))
		command.Dir = t.TempDir()
		out, err := command.Output()
		words := strings.Split(string(out), "\n")
		if err != nil || len(words) < 3 || words[2] != name {
			t.Errorf("a shell reads %s as %q (%v), want the file %q", pulls[i].Text, words, err, name)
		}
		if left, err := filepath.Glob(filepath.Join(command.Dir, "*")); err != nil || len(left) > 0 {
			t.Errorf("%s ran a command: %v", pulls[i].Text, left)
		}
	}
}
