package githttp_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// A client that asks for much and reads nothing does not keep git, and its place among the fetches, for ever.
func TestFetchThatNobodyReads(t *testing.T) {
	const patience = 200 * time.Millisecond
	s := apitest.Start(t, func(c *apitest.Config) { c.Git.Patience = patience })
	s.Model("acme/fraud", registry.Public)
	work := t.TempDir()
	mustGit(t, work, "init", "-q", "-b", "main")
	mustGit(t, work, "commit", "-q", "--allow-empty", "-m", "first")
	first := mustGit(t, work, "rev-parse", "HEAD")
	content := make([]byte, 20<<20) // more than a connection holds
	rand.Read(content)
	if err := os.WriteFile(filepath.Join(work, "weights"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	mustGit(t, work, "add", ".")
	mustGit(t, work, "-c", "core.compression=0", "commit", "-q", "-m", "second")
	mustGit(t, filepath.Join(s.Dir, "repos", "acme", "fraud.git"), "fetch", "-q", work, "main:refs/heads/main")
	head := mustGit(t, work, "rev-parse", "HEAD")

	for name, haves := range map[string]string{"clone": "", "fetch": pkt("have " + first + "\n")} {
		t.Run(name, func(t *testing.T) {
			body := pkt("command=fetch") + pkt("object-format=sha1") + "0001" + pkt("want "+head+"\n") + haves + pkt("done\n") + "0000"
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			start := time.Now()
			before := strings.Count(s.Log.String(), "git-upload-pack")
			_, err = fmt.Fprintf(conn, "POST /acme/fraud.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"+
				"Content-Type: application/x-git-upload-pack-request\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			if err != nil {
				t.Fatal(err)
			}
			for strings.Count(s.Log.String(), "git-upload-pack") == before { // a request is logged when it is over
				if time.Since(start) > 10*time.Second {
					t.Fatalf("after 10 s the request still runs, want an end after %s", patience)
				}
				time.Sleep(10 * time.Millisecond)
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, _ := io.Copy(io.Discard, conn); n == 0 || n >= int64(len(content)) {
				t.Errorf("the client got %d bytes, want some and not all of %d", n, len(content))
			}
		})
	}
}

func pkt(text string) string { return fmt.Sprintf("%04x%s", 4+len(text), text) }
