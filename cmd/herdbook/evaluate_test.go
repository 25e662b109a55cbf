package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

func TestSplitType(t *testing.T) {
	there := filepath.Join(t.TempDir(), "a:text")
	if err := os.MkdirAll(there, 0o700); err != nil {
		t.Fatal(err)
	}
	there = filepath.Join(there, "plain")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for argument, want := range map[string][2]string{
		"plots/roc.PNG":         {"plots/roc.PNG", "image/png"},
		"report.html":           {"report.html", "text/html"},
		"explanation.json":      {"explanation.json", registry.ExplanationType},
		"shap.explanation.json": {"shap.explanation.json", registry.ExplanationType},
		"metrics.json":          {"metrics.json", "application/json"},
		"weights":               {"weights", "application/octet-stream"},
		"notes:text/markdown":   {"notes", "text/markdown"},
		"a:b":                   {"a:b", "application/octet-stream"},
		":text/plain":           {":text/plain", "application/octet-stream"},
		there:                   {there, "application/octet-stream"},
	} {
		if file, mediaType := splitType(argument); [2]string{file, mediaType} != want {
			t.Errorf("splitType(%q) = %q, %q, want %q", argument, file, mediaType, want)
		}
	}
}

func TestWithAttachments(t *testing.T) {
	file := attachedFile{registry.Attachment{Name: "a", Digest: digest.FromString("a"), SizeBytes: 1}, "a"}
	tests := []struct {
		name, data string
		want       int // attachments; -1 for an error
	}{
		{"none before", `{"dataset": {"name": "d"}, "unknown": 1}`, 1},
		{"one before", `{"attachments": [{"name": "b", "digest": "sha256:b", "more": 1}]}`, 2},
		{"a list", `[]`, -1},
		{"null", `null`, -1},
		{"attachments that are no list", `{"attachments": {}}`, -1},
	}
	for _, tt := range tests {
		data, err := withAttachments([]byte(tt.data), []attachedFile{file})
		if tt.want < 0 {
			if err == nil {
				t.Errorf("%s: withAttachments = %s, want an error", tt.name, data)
			}
			continue
		}
		var got struct{ Attachments []registry.Attachment }
		if err != nil || json.Unmarshal(data, &got) != nil || len(got.Attachments) != tt.want || got.Attachments[tt.want-1] != file.Attachment {
			t.Errorf("%s: withAttachments = %s, %v, want %d attachments and the new one last", tt.name, data, err, tt.want)
		}
	}
	if same, err := withAttachments([]byte("not JSON"), nil); err != nil || string(same) != "not JSON" {
		t.Errorf("withAttachments of none = %q, %v, want what was given", same, err)
	}
}

// What takes less than a moment shows nothing; what takes longer, a bar on a terminal and a line elsewhere.
func TestMetered(t *testing.T) {
	for _, tt := range []struct {
		name     string
		terminal bool
		pause    time.Duration
		want     string
	}{
		{"quick", true, 0, ""},
		{"slow, on a terminal", true, time.Second, "[###############...............]  50 %"},
		{"slow, elsewhere", false, time.Second, "read a.csv ...\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				screen := terminal{err: &out}
				if tt.terminal {
					screen.err = printable{&out}
				}
				r := &metered{Reader: strings.NewReader("1234"), view: newViewer(screen, false), step: "read a.csv", total: 4}
				for {
					if _, err := r.Read(make([]byte, 1)); err == io.EOF {
						break
					}
					time.Sleep(tt.pause)
				}
				if got := out.String(); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
					t.Errorf("shown: %q, want %q in it", got, tt.want)
				}
			})
		})
	}
}
