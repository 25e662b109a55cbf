package lifecycle_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// troubled is an index that fails to say what has to be written, and counts how often it is asked.
type troubled struct {
	lifecycle.Index
	fails atomic.Bool
	asked atomic.Int64
}

func (t *troubled) UnmirroredAfter(context.Context, registry.Mark, int) ([]registry.Mark, error) {
	t.asked.Add(1)
	if t.fails.Load() {
		return nil, errBroken
	}
	return nil, nil
}

// closedRepositories cannot be opened, and counts who tries.
type closedRepositories struct {
	lifecycle.Repositories
	tried atomic.Int64
}

func (c *closedRepositories) Open(context.Context, registry.ModelName) (lifecycle.Repository, error) {
	c.tried.Add(1)
	return nil, errBroken
}

// forgetfulJournal takes everything and keeps nothing. A real one cannot be used from within a bubble,
// because it works outside.
type forgetfulJournal struct{}

func (forgetfulJournal) Commit(context.Context, registry.Group) error { return nil }

// The times of the background work. The bubble ends only when all its goroutines have.
func TestRunSweepsAndTriesAgain(t *testing.T) {
	index, repos := &troubled{}, &closedRepositories{}
	s := open(t)
	s.model(fraud)
	synctest.Test(t, func(t *testing.T) {
		s.serve(func(f *faults) {
			index.Index, f.Index, f.Repositories, f.Journal = f.Index, index, repos, forgetfulJournal{}
		})
		ctx, stop := context.WithCancel(t.Context())
		var ended atomic.Bool
		go func() {
			s.Run(ctx)
			ended.Store(true)
		}()
		poke := func() {
			if err := s.LinkBlobs(t.Context(), by("ada"), registry.Model{}, registry.LinkedBlob{Digest: digest.FromString("new")}); err != nil {
				t.Error(err)
			}
		}
		steps := []struct {
			name         string
			do           func()
			wait         time.Duration
			asked, tried int64
		}{
			{"at the start", func() {}, 0, 1, 1},
			{"nothing to do for 59 s", func() {}, 59 * time.Second, 1, 1},
			{"a minute after the start", func() {}, time.Second, 1, 2},
			{"another minute", func() {}, time.Minute, 1, 3},
			{"the index fails", func() { index.fails.Store(true); poke() }, 0, 2, 3},
			{"less than 5 s later", func() {}, 4999 * time.Millisecond, 2, 3},
			{"5 s later", func() {}, time.Millisecond, 3, 3},
			{"10 s later, mended", func() { index.fails.Store(false) }, 5 * time.Second, 4, 3},
			{"mended", func() {}, 40 * time.Second, 4, 3},
			{"something new", poke, 0, 5, 3},
			{"more within a second", func() { poke(); poke() }, 999 * time.Millisecond, 5, 3},
			{"a second after the first", func() {}, time.Millisecond, 6, 3},
			{"nothing to do", func() {}, 5 * time.Second, 6, 3},
		}
		for _, step := range steps {
			step.do()
			time.Sleep(step.wait)
			synctest.Wait()
			if asked, tried := index.asked.Load(), repos.tried.Load(); asked != step.asked || tried != step.tried {
				t.Errorf("%s: records were looked for %d times and models opened %d times, want %d and %d", step.name, asked, tried, step.asked, step.tried)
			}
		}
		stop()
		synctest.Wait()
		if !ended.Load() {
			t.Error("Run goes on although its context ended")
		}
		if got := index.asked.Load(); got != 7 {
			t.Errorf("records were looked for %d times in all, want once more at the end: 7", got)
		}
	})
	if got := s.log.lines("a model cannot be reconciled"); len(got) != 3 || !strings.Contains(got[0], "model=acme/fraud") {
		t.Errorf("logged %q, want a line for each of 3 sweeps that names the model", got)
	}
}

// Commits wake the background work; when it is told to stop it first writes what is left.
func TestRunDoesWhatCommitsLeave(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	ctx, stop := context.WithCancel(t.Context())
	stop()
	s.Run(ctx)
	if got := s.git(m.Name, "log", "--format=%s", registry.VersionsRef); got != "publish v1.0.0" {
		t.Errorf("records after Run was stopped = %q, want publish v1.0.0", got)
	}

	ctx, stop = context.WithCancel(t.Context())
	done := make(chan struct{})
	ready := make(chan struct{})
	var once atomic.Bool
	s.serve(func(f *faults) {
		f.Index = onMirrored{f.Index, func() {
			v, err := s.data.Index.Version(ctx, m.ID, registry.MustTag("v1.1.0"))
			if (err != nil || v.Image.State == registry.ImageReady) && once.CompareAndSwap(false, true) {
				close(ready)
			}
		}}
	})
	s.publish(m, "v1.1.0", map[string]string{"README.md": "# Model 2\n"})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	<-ready // the image is made, and a record of it or of the version is written
	stop()
	<-done
	for _, tag := range []string{"v1.0.0", "v1.1.0"} {
		if got := s.version(m, tag).Image; got.State != registry.ImageReady {
			t.Errorf("image of %s = %+v, want ready", tag, got)
		}
	}
	if diff := cmp.Diff(4, strings.Count(s.git(m.Name, "log", "--format=%s", registry.VersionsRef), "v1.")); diff != "" {
		t.Errorf("records of two versions and two images (-want +got):\n%s", diff)
	}
}

// onMirrored says when records were written.
type onMirrored struct {
	lifecycle.Index
	told func()
}

func (o onMirrored) Mirrored(marks []registry.Mark) error {
	err := o.Index.Mirrored(marks)
	o.told()
	return err
}
