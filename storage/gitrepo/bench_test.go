package gitrepo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo"
)

// cpuTime is the CPU that this process and the children that it waited for have used.
func cpuTime() (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			panic(err)
		}
		d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return d
}

// reportCPU adds the CPU of each round to what the benchmark reports, with that of the git processes.
func reportCPU(b *testing.B, loop func()) {
	before := cpuTime()
	loop()
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N)/1000, "cpu-ms/op")
}

func benchServer(b *testing.B, commits int) (*server, *client) {
	s := newServer(b)
	w := newClient(b).work(s, commits)
	w.git("push", "-q", "origin", "main")
	return s, w
}

func BenchmarkAdvertiseRefs(b *testing.B) {
	s, _ := benchServer(b, 20)
	for _, bench := range []struct {
		service  gitrepo.Service
		protocol string
	}{{gitrepo.UploadPackService, "version=2"}, {gitrepo.UploadPackService, ""}, {gitrepo.ReceivePackService, ""}} {
		b.Run(fmt.Sprintf("%s %s", bench.service, bench.protocol), func(b *testing.B) {
			reportCPU(b, func() {
				for b.Loop() {
					if err := s.store.AdvertiseRefs(b.Context(), s.repo(), bench.service, bench.protocol, io.Discard); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// A push of one commit with one file, without a client: what the server spends.
func BenchmarkSmallPush(b *testing.B) {
	for _, bench := range []struct {
		name  string
		check func(context.Context, *gitrepo.Push) error
		sync  bool
	}{
		{"no checks, no sync", func(context.Context, *gitrepo.Push) error { return nil }, false},
		{"sync", func(context.Context, *gitrepo.Push) error { return nil }, true},
		{"checks and sync", allChecks, true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s, w := benchServer(b, 1)
			var bodies []string
			old := w.rev("HEAD")
			for i := range 40 {
				id := w.commit("README.md", fmt.Sprint("take ", i))
				cmd := w.command(b.Context(), "pack-objects", "--stdout", "-q", "--revs")
				cmd.Stdin = strings.NewReader(string(id) + "\n^" + string(old) + "\n")
				bodies = append(bodies, pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status side-band-64k", old, id))+"0000"+string(must(cmd.Output())))
				old = id
			}
			back := pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status side-band-64k", old, w.rev(fmt.Sprintf("HEAD~%d", len(bodies))))) +
				"0000" + string(must(w.command(b.Context(), "pack-objects", "--stdout", "-q").Output()))
			push := func(body string, check func(context.Context, *gitrepo.Push) error) {
				var out bytes.Buffer
				err := s.store.ReceivePack(b.Context(), gitrepo.ReceivePack{
					Repository: s.repo(), PushID: "bench", In: strings.NewReader(body), Out: &out, Check: check,
					Finish: func(ctx context.Context, updates []registry.RefUpdate) ([]string, error) {
						if !bench.sync {
							return nil, nil
						}
						return nil, s.repo().Sync(ctx, updates)
					},
				})
				if err != nil || !strings.Contains(out.String(), "ok refs/heads/main") {
					b.Fatalf("push: %v, %q", err, out.String())
				}
			}
			reportCPU(b, func() {
				i := 0
				for b.Loop() {
					if i == len(bodies) {
						b.StopTimer()
						push(back, func(context.Context, *gitrepo.Push) error { return nil })
						i = 0
						b.StartTimer()
					}
					push(bodies[i], bench.check)
					i++
				}
			})
		})
	}
}

func BenchmarkRead(b *testing.B) {
	s, w := benchServer(b, 50)
	head := w.rev("HEAD")
	ctx := b.Context()
	for name, read := range map[string]func() error{
		"Commit":    func() error { _, err := s.repo().Commit(ctx, head); return err },
		"ReadFile":  func() error { _, err := s.repo().ReadFile(ctx, head, "README.md", 100); return err },
		"Refs":      func() error { _, err := s.repo().Refs(ctx); return err },
		"Log":       func() error { _, err := s.repo().Log(ctx, head, 0, 50); return err },
		"Signature": func() error { _, err := s.repo().Signature(ctx); return err },
		"Files": func() error {
			for _, err := range s.repo().Files(ctx, head) {
				if err != nil {
					return err
				}
			}
			return nil
		},
	} {
		b.Run(name, func(b *testing.B) {
			reportCPU(b, func() {
				for b.Loop() {
					if err := read(); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func BenchmarkCreate(b *testing.B) {
	s := openStore(b, b.TempDir())
	i := 0
	for b.Loop() {
		i++
		if _, err := s.Create(b.Context(), registry.MustModelName(fmt.Sprintf("bench/m%d", i))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteRecords(b *testing.B) {
	s, w := benchServer(b, 1)
	head := w.rev("HEAD")
	i := 0
	for b.Loop() {
		i++
		err := s.repo().WriteRecords(b.Context(), []registry.RecordCommit{
			{Ref: registry.VersionsRef, Message: "published", Author: ada, Files: map[string][]byte{"v1.json": fmt.Append(nil, i)}},
			{Ref: registry.EvaluationNotesRef, Message: "evaluated", Author: ada, Notes: map[registry.ObjectID][]byte{head: fmt.Append(nil, i)}},
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// What a client that polls costs, with refs packed and loose.
func BenchmarkLsRefs(b *testing.B) {
	for _, bench := range []struct {
		refs   int
		packed bool
	}{{10, false}, {100, false}, {10_000, true}, {10_000, false}} {
		s := openStore(b, b.TempDir())
		repo, dir := newRefRepo(b, s, 0)
		git := func(in string, args ...string) string { return bareGit(b, dir, in, args...) }
		git(manyRefs(commitIn(git, "a"), bench.refs), "update-ref", "--stdin")
		if bench.packed {
			git("", "pack-refs", "--all")
		}
		request := lsRefs("peel", "symrefs", "unborn", "ref-prefix refs/heads/", "ref-prefix refs/tags/", "ref-prefix HEAD")
		b.Run(fmt.Sprintf("%d refs, packed %v", bench.refs, bench.packed), func(b *testing.B) {
			for !s.RefsSettled(b.Context(), repo) {
				time.Sleep(10 * time.Millisecond)
			}
			reportCPU(b, func() {
				for b.Loop() {
					err := s.UploadPack(b.Context(), gitrepo.UploadPack{Repository: repo, GitProtocol: "version=2", In: strings.NewReader(request), Out: io.Discard})
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		b.Run(fmt.Sprintf("%d refs, packed %v, git", bench.refs, bench.packed), func(b *testing.B) {
			reportCPU(b, func() {
				for b.Loop() {
					if _, err := gitServes(s, dir, "version=2", request, "--stateless-rpc"); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// gitBackend serves the repositories of a store by git's own server, with the same configuration.
func gitBackend(b *testing.B, s *gitrepo.Store) *httptest.Server {
	path := filepath.Join(strings.TrimSpace(string(must(exec.Command("git", "--exec-path").Output()))), "git-http-backend")
	if _, err := os.Stat(path); err != nil {
		b.Skip("git http-backend is not installed")
	}
	env := slices.DeleteFunc(s.Environment(), func(v string) bool { return strings.HasPrefix(v, "PATH=") || strings.Contains(v, "/hooks") })
	for i, v := range env {
		if strings.HasSuffix(v, "=core.hooksPath") {
			env[i] = strings.Replace(v, "core.hooksPath", "herdbook.none", 1)
		}
	}
	// The number of the value that went.
	for i := range 100 {
		if key := fmt.Sprintf("GIT_CONFIG_KEY_%d=herdbook.none", i); slices.Contains(env, key) {
			env = append(env, fmt.Sprintf("GIT_CONFIG_VALUE_%d=x", i))
		}
	}
	h := httptest.NewServer(&cgi.Handler{Path: path, Env: append(env, "GIT_PROJECT_ROOT="+s.Dir(), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=ada")})
	b.Cleanup(h.Close)
	return h
}

// post sends a raw request and reads the answer, with as little CPU of a client as it goes.
func post(b *testing.B, url, service, body string) {
	req := must(http.NewRequest(http.MethodPost, url+"/"+service, strings.NewReader(body)))
	req.Header.Set("Content-Type", "application/x-"+service+"-request")
	req.Header.Set("Git-Protocol", "version=2")
	resp := must(http.DefaultClient.Do(req))
	n, err := io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK || n == 0 {
		b.Fatalf("POST %s = %s, %d bytes, %v", service, resp.Status, n, err)
	}
}

// A clone of 2,000 commits, with 31 MB of pack.
func BenchmarkClone(b *testing.B) {
	s := newServer(b)
	must(s.store.Create(b.Context(), fraud))
	importCommits(b, repoDir(s), "main", "", 2000, 15_500)
	request := strings.Replace(fetchRequest(registry.ObjectID(bareGit(b, repoDir(s), "", "rev-parse", "main"))), "0001", "0001"+pkt("no-progress")+pkt("ofs-delta"), 1)
	backend := gitBackend(b, s.store).URL + "/acme/fraud.git"
	run := func(name, url string, clients int, before func()) {
		b.Run(fmt.Sprintf("%s, %d at once", name, clients), func(b *testing.B) {
			reportCPU(b, func() {
				for b.Loop() {
					before()
					var all sync.WaitGroup
					for range clients {
						all.Go(func() { post(b, url, "git-upload-pack", request) })
					}
					all.Wait()
				}
			})
		})
	}
	forget := func() { s.store.ForgetAnswers() }
	for _, clients := range []int{1, 8} {
		run("git http-backend", backend, clients, func() {})
		run("ours, not repacked, answer not kept", s.url(), clients, forget)
	}
	must(s.repo().Repack(b.Context()))
	for _, clients := range []int{1, 8} {
		run("git http-backend, bitmap", backend, clients, func() {})
		run("ours, answer not kept", s.url(), clients, forget)
		run("ours", s.url(), clients, func() {})
	}
}

// allChecks asks what the checks of a push ask.
func allChecks(ctx context.Context, p *gitrepo.Push) error {
	var ids []registry.ObjectID
	for blob, err := range p.NewBlobs(ctx) {
		if err != nil {
			return err
		}
		if blob.Size < 1024 {
			ids = append(ids, blob.ID)
		}
	}
	if _, err := p.Peel(ctx, p.Updates[0].New); err != nil {
		return err
	}
	return p.ReadBlobs(ctx, ids, 1023, func(registry.ObjectID, []byte) error { return nil })
}

// Pushes of one commit and of 2,000 with 31 MB, to us and to git's own server.
func BenchmarkPush(b *testing.B) {
	s := newServer(b)
	s.check = allChecks
	backend := gitBackend(b, s.store).URL
	must(s.store.Create(b.Context(), fraud))
	dir := repoDir(s)
	importCommits(b, dir, "main", "", 2000, 15_500)
	head := bareGit(b, dir, "", "rev-parse", "main")
	pack := func(revs string) string {
		cmd := exec.Command("git", "pack-objects", "--stdout", "-q", "--revs", "--thin")
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(revs)
		return string(must(cmd.Output()))
	}
	all := pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status side-band-64k", zero, head)) + "0000" + pack(head+"\n")
	importCommits(b, dir, "main", "refs/heads/main^0", 1, 1000)
	next := bareGit(b, dir, "", "rev-parse", "main")
	one := pkt(fmt.Sprintf("%s %s refs/heads/main\x00report-status side-band-64k", head, next)) + "0000" + pack(next+"\n^"+head+"\n")
	n := 0
	for _, to := range []struct{ name, url string }{{"git http-backend", backend}, {"ours", s.URL}} {
		model := func() string {
			n++
			must(s.store.Create(b.Context(), registry.MustModelName(fmt.Sprintf("bench/m%d", n))))
			bareGit(b, filepath.Join(s.store.Dir(), fmt.Sprintf("bench/m%d.git", n)), "", "config", "http.receivepack", "true")
			return fmt.Sprintf("%s/bench/m%d.git", to.url, n)
		}
		b.Run(to.name+", 2,000 commits", func(b *testing.B) {
			reportCPU(b, func() {
				for b.Loop() {
					post(b, model(), "git-receive-pack", all)
				}
			})
		})
		b.Run(to.name+", one commit", func(b *testing.B) {
			var cpu time.Duration
			url := model()
			post(b, url, "git-receive-pack", all)
			path := filepath.Join(s.store.Dir(), fmt.Sprintf("bench/m%d.git", n))
			for b.Loop() {
				before := cpuTime()
				post(b, url, "git-receive-pack", one)
				cpu += cpuTime() - before
				if got := bareGit(b, path, "", "rev-parse", "refs/heads/main"); got != next {
					b.Fatalf("after the push main is %s, want %s", got, next)
				}
				bareGit(b, path, "", "update-ref", "refs/heads/main", head)
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N)/1000, "cpu-ms/op")
		})
	}
}
