package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/client"
	"github.com/herdbook/herdbook/api/internal/apitest"
	"github.com/herdbook/herdbook/registry"
)

// found are the models and tags of an answer.
func found(t *testing.T, a apitest.Answer) []string {
	t.Helper()
	var list struct{ Items []api.Found }
	if err := json.Unmarshal([]byte(a.Body), &list); err != nil || a.Status != 200 {
		t.Fatalf("search = %d %s, %v", a.Status, a.Body, err)
	}
	lines := []string{}
	for _, f := range list.Items {
		lines = append(lines, strings.TrimRight(f.Model.String()+" "+f.Tag.String(), " "))
	}
	return lines
}

func TestSearch(t *testing.T) {
	s := apitest.Start(t)
	loop(s, "acme/fraud", registry.Public)
	loop(s, "acme/secret", registry.Private)
	tests := []struct {
		query string
		admin bool
		want  []string
	}{
		{"", false, []string{"acme/fraud"}},
		{"", true, []string{"acme/fraud", "acme/secret"}},
		{"q=kind:version&sort=name", false, []string{"acme/fraud v1.1.0", "acme/fraud v1.0.0"}},
		{"q=env:staging+f1<0.6", true, []string{"acme/secret v1.0.0", "acme/fraud v1.0.0"}},
		{"q=env:staging+f1<0.6&limit=1", true, []string{"acme/secret v1.0.0"}},
		{"q=f1>0.6", true, []string{}},
	}
	for _, tt := range tests {
		ask := s.Do
		if tt.admin {
			ask = s.As
		}
		a := ask("GET", "/api/v1/search?"+strings.NewReplacer("<", "%3C", ">", "%3E").Replace(tt.query), "")
		if got := found(t, a); !slices.Equal(got, tt.want) {
			t.Errorf("GET /search?%s, administrator: %t, = %v, want %v", tt.query, tt.admin, got, tt.want)
		}
		if more := a.Header.Get("Link") != ""; more != strings.Contains(tt.query, "limit=1") {
			t.Errorf("GET /search?%s has the header Link: %q", tt.query, a.Header.Get("Link"))
		}
	}
	a := s.Do("GET", "/api/v1/search?q=version:1.0", "")
	if want := `/acme/fraud/versions/v1.0.0"`; !strings.Contains(a.Body, want) {
		t.Errorf("GET /search = %s, want a url that ends in %s", a.Body, want)
	}
}

// However many pages a search needs, the client gives as many as were asked for.
func TestSearchClient(t *testing.T) {
	s := apitest.Start(t)
	shelf(s, 450)
	c := client.Client{URL: s.URL, Token: s.Token}
	for limit, want := range map[int]int{1: 1, 200: 200, 201: 201, 450: 450, 1000: 450} {
		got, more, err := c.Search(t.Context(), "kind:version", "f1", limit)
		if err != nil || len(got) != want || more != (want < 450) {
			t.Errorf("Search with limit %d = %d, more %t, %v, want %d", limit, len(got), more, err, want)
		}
		if !slices.IsSortedFunc(got, func(a, b api.Found) int { return int(1000 * (b.Metrics["f1"] - a.Metrics["f1"])) }) {
			t.Errorf("Search with limit %d is not in the order of the metric", limit)
		}
	}
}

// shelf are versions with metrics, 50 of each model.
func shelf(s *apitest.Server, versions int) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := 0; n < versions; n += 50 {
		m := s.Model(fmt.Sprintf("acme/m%d", n/50), registry.Public)
		var records []registry.Record
		for i := range 50 {
			tag := registry.MustTag(fmt.Sprintf("v1.%d.0", i))
			artifact := registry.Descriptor{MediaType: "application/json", Digest: digest.FromString(m.ID + tag.String()), SizeBytes: 1}
			v := registry.Version{
				Tag: tag, Commit: apitest.CommitOf(m.ID + tag.String()), PublishedAt: time.Unix(int64(n+i), 0).UTC(), PublishedBy: "ada", Artifact: artifact, Config: artifact,
				Card: registry.CardFacts{License: "apache-2.0", Task: "text-classification"},
			}
			e := registry.Evaluation{ID: fmt.Sprintf("e%d", i), Commit: v.Commit, Dataset: registry.Dataset{Name: "calls"}, Metrics: map[string]float64{}}
			for _, name := range []string{"f1", "precision", "recall", "accuracy", "mcc"} {
				e.Metrics[name] = rnd.Float64()
			}
			records = append(records, registry.VersionPublished{ModelID: m.ID, Version: v, Manifest: registry.StoredManifest{Descriptor: artifact}}, registry.EvaluationRecorded{ModelID: m.ID, Evaluation: e})
		}
		s.Commit(records...)
	}
}

// The longest page, by way of HTTP.
func BenchmarkSearch(b *testing.B) {
	s := apitest.Start(b)
	shelf(s, 10_000)
	target := "/api/v1/search?" + url.Values{"q": {"license:apache-2.0 recall>0.2 sort:f1"}, "limit": {"200"}}.Encode()
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if a := s.Do("GET", target, ""); a.Status != 200 || strings.Count(a.Body, `"model"`) != 200 {
			b.Fatalf("GET %s = %d, %d items", target, a.Status, strings.Count(a.Body, `"model"`))
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
