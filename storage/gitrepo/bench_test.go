package gitrepo_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
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
	b.ReportMetric(float64((cpuTime()-before).Milliseconds())/float64(b.N), "cpu-ms/op")
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
		{"checks and sync", func(ctx context.Context, p *gitrepo.Push) error {
			var ids []registry.ObjectID
			for blob, err := range p.NewBlobs(ctx) {
				if err != nil {
					return err
				}
				ids = append(ids, blob.ID)
			}
			if _, err := p.Peel(ctx, p.Updates[0].New); err != nil {
				return err
			}
			return p.ReadBlobs(ctx, ids, 1023, func(registry.ObjectID, []byte) error { return nil })
		}, true},
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
