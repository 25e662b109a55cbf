package api_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

const png = "\x89PNG\r\n\x1a\n and then the picture"

// attachmentOf is the address of an attachment.
func attachmentOf(content string) string {
	return mainPage + "/attachments/" + digest.FromString(content).String()
}

func TestAttachments(t *testing.T) {
	const report = "<script>alert(1)</script>"
	s := apitest.Start(t, func(c *apitest.Config) { c.API.MaxAttachmentBytes = 64 })
	loop(s, "acme/fraud", registry.Public)
	steps := []struct {
		name, method, target, body string
		status                     int
		want                       string // in the answer
	}{
		{"before it is there", "GET", attachmentOf(report), "", 404, "not found"},
		{"first upload", "PUT", attachmentOf(report), report, 201, `{"digest":"` + digest.FromString(report).String() + `","size_bytes":25}`},
		{"second upload", "PUT", attachmentOf(report), report, 200, `"size_bytes":25`},
		{"download", "GET", attachmentOf(report), "", 200, report},
		{"an empty one", "PUT", attachmentOf(""), "", 201, `"size_bytes":0`},
		{"another file", "PUT", attachmentOf("x"), "y", 400, "the body of 1 bytes is not sha256:"},
		{"too large", "PUT", attachmentOf(strings.Repeat("x", 65)), strings.Repeat("x", 65), 413, "at most 64 bytes"},
		{"the largest", "PUT", attachmentOf(strings.Repeat("x", 64)), strings.Repeat("x", 64), 201, `"size_bytes":64`},
		{"no digest", "PUT", mainPage + "/attachments/report.html", report, 400, `"field":"digest"`},
		{"another algorithm", "PUT", mainPage + "/attachments/" + digest.SHA512.FromString(report).String(), report, 400, `"field":"digest"`},
	}
	for _, step := range steps {
		if a := s.As(step.method, step.target, step.body); a.Status != step.status || !strings.Contains(a.Body, step.want) {
			t.Errorf("%s: %s %s = %d %s, want %d with %q", step.name, step.method, step.target, a.Status, a.Body, step.status, step.want)
		}
	}
	if a := s.Do("PUT", attachmentOf(report), report); a.Status != http.StatusUnauthorized {
		t.Errorf("PUT without a token = %d, want 401", a.Status)
	}
	for _, content := range []string{"y", strings.Repeat("x", 65)} {
		if _, err := s.Data.Blobs.Stat(t.Context(), digest.FromString(content)); err == nil {
			t.Errorf("the refused %q was stored", content)
		}
	}
	named := func(content string) string {
		return `{"dataset":{"name":"calls"},"metrics":{"f1":0.5},"attachments":[{"name":"report.html","digest":"` + digest.FromString(content).String() + `"}]}`
	}
	if a := s.As("POST", mainPage+"/evaluations/v1.0.0", named(report)); a.Status != 201 || !strings.Contains(a.Body, `"size_bytes":25`) {
		t.Errorf("evaluation with an attachment = %d %s, want 201 and its size", a.Status, a.Body)
	}
	a := s.As("POST", mainPage+"/evaluations/v1.0.0", named("y"))
	for _, want := range []string{`"field":"attachments[0].digest"`, "PUT " + attachmentOf("y"), "herdbook evaluate --attach FILE"} {
		if a.Status != 400 || !strings.Contains(a.Body, want) {
			t.Errorf("evaluation with an attachment that was not sent = %d %s, want 400 with %q", a.Status, a.Body, want)
		}
	}
}

// The length that a client says is not believed: a body without one is bounded all the same.
func TestAttachmentOfUnknownLength(t *testing.T) {
	s := apitest.Start(t, func(c *apitest.Config) { c.API.MaxAttachmentBytes = 64 })
	s.Model("acme/fraud", registry.Public)
	for n, want := range map[int]int{64: 201, 65: 413} {
		content := strings.Repeat("x", n)
		header, value := s.Bearer()
		r, err := http.NewRequestWithContext(t.Context(), "PUT", s.URL+attachmentOf(content), struct{ *strings.Reader }{strings.NewReader(content)})
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(header, value)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if r.ContentLength != 0 || answer.StatusCode != want {
			t.Errorf("PUT of %d bytes of unknown length (%d) = %d, want %d", n, r.ContentLength, answer.StatusCode, want)
		}
	}
}

func TestAttachmentsAreNotActive(t *testing.T) {
	s := apitest.Start(t)
	m := s.Model("acme/fraud", registry.Public)
	for content, kind := range map[string]string{
		"<html><script>alert(1)</script></html>": "application/octet-stream", `<svg xmlns="http://www.w3.org/2000/svg"/>`: "application/octet-stream",
		png: "image/png", "\xff\xd8\xff\xe0 jpeg": "image/jpeg", "RIFF\x00\x00\x00\x00WEBPVP8 ": "image/webp",
		"GIF89a": "application/octet-stream", "%PDF-1.7": "application/octet-stream", "text": "application/octet-stream", "": "application/octet-stream",
	} {
		s.Blob(m, []byte(content))
		a := s.Do("GET", attachmentOf(content), "")
		got := map[string]string{}
		for _, name := range []string{"Content-Type", "Content-Disposition", "X-Content-Type-Options", "Content-Security-Policy", "Content-Length"} {
			got[name] = a.Header.Get(name)
		}
		if diff := cmp.Diff(map[string]string{
			"Content-Type": kind, "Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff",
			"Content-Security-Policy": "default-src 'none'; sandbox", "Content-Length": strconv.Itoa(len(content)),
		}, got); a.Status != 200 || diff != "" {
			t.Errorf("GET of %q = %d (-want +got):\n%s", content, a.Status, diff)
		}
	}
	a := s.Do("GET", attachmentOf(png), "", "Range", "bytes=1-3")
	if a.Status != http.StatusPartialContent || a.Body != "PNG" {
		t.Errorf("GET of bytes 1 to 3 = %d %q, want 206 PNG", a.Status, a.Body)
	}
	if a := s.Do("GET", attachmentOf(png), "", "If-None-Match", `"`+digest.FromString(png).String()+`"`); a.Status != http.StatusNotModified {
		t.Errorf("GET of what the client has = %d, want 304", a.Status)
	}
}

// What a model does not own is not there, though another model has it.
func TestAttachmentsOfOtherModels(t *testing.T) {
	s := apitest.Start(t)
	other := s.Model("acme/other", registry.Public)
	s.Model("acme/fraud", registry.Public)
	s.Blob(other, []byte("theirs"))
	if a := s.As("GET", attachmentOf("theirs"), ""); a.Status != 404 {
		t.Errorf("GET of what another model owns = %d %s, want 404", a.Status, a.Body)
	}
}

func TestAttachmentsCountTowardQuotas(t *testing.T) {
	s := apitest.Start(t)
	s.Model("acme/fraud", registry.Public)
	s.Lifecycle.Quotas = []registry.Quota{{Models: "acme/*", Bytes: 10}}
	if a := s.As("PUT", attachmentOf("12345678"), "12345678"); a.Status != 201 {
		t.Errorf("PUT within the quota = %d %s, want 201", a.Status, a.Body)
	}
	if a := s.As("PUT", attachmentOf("abc"), "abc"); a.Status != http.StatusInsufficientStorage {
		t.Errorf("PUT above the quota = %d %s, want 507", a.Status, a.Body)
	}
	if _, err := s.Data.Blobs.Stat(t.Context(), digest.FromString("abc")); err == nil {
		t.Error("an attachment above the quota was stored")
	}
	if a := s.As("PUT", attachmentOf("12345678"), "12345678"); a.Status != 200 {
		t.Errorf("PUT of what is there, with the quota all but full = %d %s, want 200", a.Status, a.Body)
	}
}
