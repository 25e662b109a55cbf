package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// ociStep pushes an artifact under a tag, or deletes the tag.
func (w *worker) ociStep() func() error {
	w.commits++
	tag := "Tag_" + fmt.Sprint(w.random.IntN(4))
	repository := w.model
	if w.random.IntN(6) == 0 {
		return func() error {
			return w.note(func() error {
				_, _, err := w.m.send(http.MethodDelete, "/v2/"+repository+"/manifests/"+tag, nil)
				if statusOf(err) == http.StatusNotFound {
					err = nil // by the request whose answer got lost, or it was never there
				}
				return err
			}, fact{Kind: factTagged, Model: repository, Name: tag})
		}
	}
	layer := make([]byte, 1000+w.random.IntN(200_000))
	for i := 0; i < len(layer); i += 8 {
		layer[i] = byte(w.random.Uint32())
	}
	copy(layer, fmt.Sprintf("%s %d", repository, w.commits))
	const config = "{}"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%s","size":%d},`+
		`"layers":[{"mediaType":"application/octet-stream","digest":"sha256:%s","size":%d}]}`, oidOf([]byte(config)), len(config), oidOf(layer), len(layer))
	parts := 1 + w.random.IntN(2)
	return func() error {
		for _, content := range [][]byte{[]byte(config), layer} {
			if err := w.m.pushBlob(repository, content, parts); err != nil {
				return err
			}
		}
		return w.note(func() error {
			_, _, err := w.m.send(http.MethodPut, "/v2/"+repository+"/manifests/"+tag, strings.NewReader(manifest), "Content-Type", "application/vnd.oci.image.manifest.v1+json")
			return err
		}, fact{Kind: factTagged, Model: repository, Name: tag, Value: "sha256:" + oidOf([]byte(manifest))})
	}
}

// pushBlob sends a blob to a repository in some parts; it goes on where an upload broke off.
func (m *machine) pushBlob(repository string, content []byte, parts int) error {
	digest := "?digest=sha256:" + oidOf(content)
	_, header, err := m.send(http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil)
	if err != nil {
		return err
	}
	at := header.Get("Location")
	from := 0
	for part := 1; part < parts; part++ {
		to := len(content) * part / parts
		if _, header, err = m.send(http.MethodPatch, at, bytes.NewReader(content[from:to]), "Content-Type", "application/octet-stream"); err != nil {
			return err
		}
		at, from = header.Get("Location"), to
	}
	_, _, err = m.send(http.MethodPut, at+digest, bytes.NewReader(content[from:]), "Content-Type", "application/octet-stream")
	return err
}

// checkRepository wants each tag at the manifest that was acknowledged last, or at one that was asked for later, and all of it there.
func (m *machine) checkRepository(repository string, facts []fact) {
	m.t.Helper()
	may := map[string][]string{}
	for _, f := range facts {
		if f.Done {
			may[f.Name] = nil
		} else if _, ok := may[f.Name]; !ok {
			may[f.Name] = []string{""} // it need not be there
		}
		may[f.Name] = append(may[f.Name], f.Value)
	}
	for tag, values := range may {
		text, _, err := m.send(http.MethodGet, "/v2/"+repository+"/manifests/"+tag, nil)
		got := ""
		switch {
		case err == nil:
			got = "sha256:" + oidOf(text)
		case statusOf(err) != http.StatusNotFound:
			m.t.Errorf("%s:%s: %v", repository, tag, err)
			continue
		}
		if !slices.Contains(values, got) {
			m.t.Errorf("%s:%s is %q, want one of %q", repository, tag, got, values)
		}
		if got == "" {
			continue
		}
		var manifest struct {
			Config struct{ Digest string }
			Layers []struct{ Digest string }
		}
		if err := json.Unmarshal(text, &manifest); err != nil {
			m.t.Errorf("%s:%s: %v", repository, tag, err)
		}
		for _, part := range append(manifest.Layers, manifest.Config) {
			blob, _, err := m.send(http.MethodGet, "/v2/"+repository+"/blobs/"+part.Digest, nil)
			if err != nil || "sha256:"+oidOf(blob) != part.Digest {
				m.t.Errorf("%s:%s names %s, of which the server has %d bytes, %v", repository, tag, part.Digest, len(blob), err)
			}
		}
	}
}

// An OCI upload goes on where it was, also when the server was killed in between.
func TestCrashInAnOCIUpload(t *testing.T) {
	m := newMachine(t, "")
	m.start()
	content := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	half := len(content) / 2
	_, header, err := m.send(http.MethodPost, "/v2/team/tools/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	untouched := header.Get("Location")
	_, header, err = m.send(http.MethodPatch, untouched, bytes.NewReader(content[:half]), "Content-Type", "application/octet-stream")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m.kill()
		m.start()
		_, header, err = m.send(http.MethodGet, header.Get("Location"), nil)
		if want := fmt.Sprintf("0-%d", half-1); err != nil || header.Get("Range") != want {
			t.Fatalf("status after the server was killed = %v, Range %q; want %q", err, header.Get("Range"), want)
		}
	}
	if _, _, err := m.send(http.MethodPut, header.Get("Location")+"?digest=sha256:"+oidOf(content), bytes.NewReader(content[half:])); err != nil {
		t.Fatalf("the rest: %v", err)
	}
	got, _, err := m.send(http.MethodGet, "/v2/team/tools/blobs/sha256:"+oidOf(content), nil)
	if err != nil || oidOf(got) != oidOf(content) {
		t.Errorf("the blob = %d bytes, %v", len(got), err)
	}
	m.kill()
	m.start()
	if got, _, err := m.send(http.MethodGet, "/v2/team/tools/blobs/sha256:"+oidOf(content), nil); err != nil || oidOf(got) != oidOf(content) {
		t.Errorf("the blob after the server was killed = %d bytes, %v", len(got), err)
	}
	m.halt()
	m.fsck()
}
