package registry

import (
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Pull is one way to get a version, ready to be pasted.
type Pull struct {
	Client string `json:"client"` // "oras", "docker", "git", "curl", "kserve" or "kubernetes"
	By     string `json:"by"`     // "tag", which a person reads; or "digest", which can stand for nothing else
	Text   string `json:"text"`   // a command of the shell, or YAML
}

// Pulls are the ways to get a version from a server. Those to its image are left out until it is ready.
// Source: KServe, "Serving models with OCI images" (the files are below /models); Kubernetes, "Use an Image Volume With a Pod".
func Pulls(server *url.URL, model ModelName, v VersionRecord) []Pull {
	artifact := server.Host + "/" + model.String()
	image := artifact + "/image"
	plain := ""
	if server.Scheme == "http" {
		plain = "--plain-http "
	}
	tag := v.Version.Tag.String()
	clone := server.JoinPath(model.String() + ".git").String()
	blobs := server.JoinPath("v2", model.String(), "blobs").String()
	pulls := []Pull{
		{"oras", "tag", fmt.Sprintf("oras pull %s%s:%s", plain, artifact, tag)},
		{"oras", "digest", fmt.Sprintf("oras pull %s%s@%s", plain, artifact, v.Version.Artifact.Digest)},
	}
	ready := v.Image.State == ImageReady
	if ready {
		pulls = append(pulls,
			Pull{"docker", "tag", fmt.Sprintf("docker pull %s:%s", image, tag)},
			Pull{"docker", "digest", fmt.Sprintf("docker pull %s@%s", image, v.Image.Digest)},
		)
	}
	pulls = append(pulls,
		Pull{"git", "tag", fmt.Sprintf("git clone --branch %s %s", tag, clone)},
		Pull{"git", "digest", fmt.Sprintf("git clone --no-checkout %s && git -C %s checkout --detach %s", clone, model.Name(), v.Version.Commit)},
		Pull{"curl", "tag", fmt.Sprintf("curl -fsSL %s", server.JoinPath("v2", model.String(), "manifests", tag))},
	)
	if f := largest(v.Version.Files); f.Digest != "" {
		pulls = append(pulls, Pull{"curl", "digest", fmt.Sprintf("curl -fL -o %s %s/%s", quoted(path.Base(f.Path)), blobs, f.Digest)})
	}
	if ready {
		name := objectName(model)
		pulls = append(pulls,
			Pull{"kserve", "digest", kserve(name, servingFormat(v.Version.Files), image, v.Image.Digest)},
			Pull{"kubernetes", "digest", imageVolume(name, image, v.Image.Digest)},
		)
	}
	return pulls
}

// largest is the longest file: the weights.
func largest(files []File) (longest File) {
	for _, f := range files {
		if longest.Digest == "" || f.SizeBytes > longest.SizeBytes {
			longest = f
		}
	}
	return longest
}

// quoted makes text one word of a POSIX shell.
func quoted(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,/"
	if strings.Trim(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// objectName makes a name that Kubernetes takes of that of a model.
// Source: RFC 1123 labels, as the documentation of Kubernetes has them.
func objectName(model ModelName) string {
	const longest = 63
	name := strings.NewReplacer(".", "-", "_", "-").Replace(model.Name())
	return strings.Trim(name[:min(len(name), longest)], "-")
}

// servingFormat is what KServe calls the format of the weights, by the names of the files.
// Source: KServe, "Supported Model Formats".
func servingFormat(files []File) string {
	formats := map[string]string{
		".onnx": "onnx", ".safetensors": "huggingface", ".pt": "pytorch", ".pth": "pytorch", ".joblib": "sklearn", ".pkl": "sklearn",
		".bst": "xgboost", ".ubj": "xgboost", ".pmml": "pmml", ".pb": "tensorflow",
	}
	var weights File
	for _, f := range files {
		if formats[path.Ext(f.Path)] != "" && (weights.Path == "" || f.SizeBytes > weights.SizeBytes) {
			weights = f
		}
	}
	if format := formats[path.Ext(weights.Path)]; format != "" {
		return format
	}
	return "custom"
}

func kserve(name, format, image string, d digest.Digest) string {
	return fmt.Sprintf(`apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: %q
spec:
  predictor:
    model:
      modelFormat:
        name: %s
      storageUri: oci://%s@%s
`, name, format, image, d)
}

func imageVolume(name, image string, d digest.Digest) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %q
spec:
  containers:
    - name: server
      image: registry.example/your-server
      volumeMounts:
        - name: model
          mountPath: /mnt/model # the files are below /mnt/model/models
          readOnly: true
  volumes:
    - name: model
      image:
        reference: %s@%s
        pullPolicy: IfNotPresent
`, name, image, d)
}
