package storage_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/journal"
)

// BenchmarkReindex opens a data directory without an index, whose journal has 20,000 versions of 100 models.
func BenchmarkReindex(b *testing.B) {
	const versions, models = 20_000, 100
	dir := b.TempDir()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		b.Fatal(err)
	}
	var wait sync.WaitGroup
	add := func(records ...registry.Record) {
		line, err := registry.EncodeGroup(registry.Group{At: begin, Records: records})
		if err != nil {
			b.Fatal(err)
		}
		wait.Go(func() {
			if _, err := j.Append(context.Background(), line); err != nil {
				b.Error(err)
			}
		})
	}
	for i := range versions + models {
		m := registry.Model{ID: fmt.Sprint("m-", i%models), Name: registry.MustModelName(fmt.Sprint("acme/m", i%models)), CreatedAt: begin}
		if i < models {
			add(registry.ModelCreated{Model: m})
			wait.Wait()
			continue
		}
		tag := fmt.Sprintf("v1.%d.0", i/models)
		v, _ := published(m, tag, m.ID+tag, registry.LineageEdge{To: registry.DatasetNodeID("calls"), Kind: registry.Used})
		add(v, registry.EventAnnounced{Event: registry.NewEvent(registry.EventVersionPublished, m, "ada", begin, map[string]any{"commit": v.Version.Commit}, tag)})
		if i%256 == 0 {
			wait.Wait()
		}
	}
	wait.Wait()
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	var cpu time.Duration
	for b.Loop() {
		b.StopTimer()
		if err := os.RemoveAll(filepath.Join(dir, "index.db")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		before := cpuTime(b)
		d, err := storage.Open(b.Context(), storage.Config{Dir: dir, Log: discard})
		if err != nil {
			b.Fatal(err)
		}
		cpu += cpuTime(b) - before
		b.StopTimer()
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N*versions)/b.Elapsed().Seconds(), "versions/s")
	b.ReportMetric(cpu.Seconds()*1e6/float64(b.N*versions), "cpu-us/version")
}

// cpuTime is what the process has used so far, of its own and of the kernel's time.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
