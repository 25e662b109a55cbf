package lifecycle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

func BenchmarkReconcileOfNothingChanged(b *testing.B) {
	s := open(b)
	m := s.model(fraud)
	commit := s.commit(m.Name, "main", map[string]string{"README.md": "# Model\n"})
	var in strings.Builder
	for i := range 99 {
		fmt.Fprintf(&in, "create refs/heads/branch-%d %s\n", i, commit)
	}
	s.gitInput(m.Name, in.String(), "update-ref", "--stdin")
	s.reconcile(m)
	for b.Loop() {
		s.reconcile(m)
	}
}

// BenchmarkSweepOfNothingChanged is what each minute costs for a model.
func BenchmarkSweepOfNothingChanged(b *testing.B) {
	s := open(b)
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
	for b.Loop() {
		if err := s.look(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublishOf100PlainFiles(b *testing.B) {
	s := open(b)
	m := s.model(fraud)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		files := map[string]string{}
		for f := range 100 {
			files[fmt.Sprintf("config/part-%d.json", f)] = fmt.Sprintf(`{"version": %d, "part": %d}`, i, f)
		}
		s.tag(m.Name, fmt.Sprintf("v1.%d.0", i), s.commit(m.Name, "main", files))
		b.StartTimer()
		if report := s.reconcile(m); len(report.Published) != 1 {
			b.Fatalf("published %v, want one version", publishedTags(report))
		}
	}
}

func BenchmarkPromote(b *testing.B) {
	s, m := prepared(b, manual)
	for _, tag := range []string{"v1.0.0", "v1.1.0"} {
		s.evaluate(m, s.release(m, tag), 0.9)
	}
	tags := []registry.Tag{registry.MustTag("v1.0.0"), registry.MustTag("v1.1.0")}
	for i := 0; b.Loop(); i++ {
		if _, err := s.Promote(b.Context(), by("ada"), m, production, lifecycle.Promotion{Version: tags[i%2], Reason: "again"}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRecordEvaluation is what an evaluation costs that follows others of its commit.
func BenchmarkRecordEvaluation(b *testing.B) {
	for _, before := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("after %d", before), func(b *testing.B) {
			s, m := prepared(b, automatic)
			v := s.release(m, "v1.0.0")
			s.evaluationsFrom(m, v, 0, before)
			s.evaluate(m, v, 0.9)
			for b.Loop() {
				s.evaluate(m, v, 0.9)
			}
		})
	}
}

// evaluationsFrom records many evaluations of a version in few groups; their ids count from first.
func (s *site) evaluationsFrom(m registry.Model, v registry.VersionRecord, first, count int) {
	s.tb.Helper()
	for some := range slices.Chunk(numbered(first, count), 1000) {
		g := registry.Group{At: s.Now(), Actor: "jenkins"}
		for _, id := range some {
			e, err := registry.NewEvaluation(f1Of(0.9), v.Version.Commit, id, "jenkins", s.Now())
			if err != nil {
				s.tb.Fatal(err)
			}
			g.Records = append(g.Records, registry.EvaluationRecorded{ModelID: m.ID, Evaluation: e})
		}
		if err := s.data.Commit(s.tb.Context(), g); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// BenchmarkMirrorEvaluations is what it costs to write one more evaluation of a commit into the repository.
func BenchmarkMirrorEvaluations(b *testing.B) {
	for _, before := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("after %d", before), func(b *testing.B) {
			s, m := prepared(b, automatic)
			v := s.release(m, "v1.0.0")
			s.evaluationsFrom(m, v, 0, before)
			s.mirror()
			for b.Loop() {
				b.StopTimer()
				s.evaluate(m, v, 0.9)
				b.StartTimer()
				s.mirror()
			}
		})
	}
}
