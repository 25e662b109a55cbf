package search_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/search"
)

func TestParse(t *testing.T) {
	tests := []struct {
		query string
		want  string // as it is written back
		kind  search.Kind
		order string
	}{
		{"", "", search.Models, "name"},
		{"  fraud\tcalls ", "fraud calls", search.Models, "name"},
		{"f1>0.9 env:production base:acme/bert", "f1>0.9 env:production base:acme/bert", search.Versions, "published"},
		{"-state:revoked license:Apache-2.0", "-state:revoked license:Apache-2.0", search.Versions, "published"},
		{`tag:"call centre" -"not this"`, `tag:"call centre" -"not this"`, search.Models, "name"},
		{`"f1>0.9" "-x" "a \"b\" \\"`, `"f1>0.9" "-x" "a \"b\" \\"`, search.Models, "name"},
		{`license:"mit"`, "license:mit", search.Models, "name"},
		{"kind:version fraud", "fraud kind:version", search.Versions, "published"},
		{"kind:model f1>=0.5 sort:-f1", "f1>=0.5 kind:model sort:-f1", search.Models, "-f1"},
		{"sort:f1", "sort:f1", search.Versions, "f1"},
		{"sort:-published fraud", "fraud sort:-published", search.Versions, "-published"},
		{"sort:name", "sort:name", search.Models, "name"},
		{"reported:true", "reported:true", search.Versions, "published"},
		{"reported:false", "", search.Models, "name"},
		{"metric:f1 metric:state>0.5 sort:metric:name", "metric:f1 metric:state>0.5 sort:metric:name", search.Versions, "metric:name"},
		{"f1>.9 mcc>=-0 loss<1e-3 f1=1", "f1>0.9 mcc>=0 loss<0.001 f1=1", search.Versions, "published"},
		{"Version>=1.2 STATE:published", "version>=v1.2 state:published", search.Versions, "published"},
		{"version=1 env=staging", "version:v1 env:staging", search.Versions, "published"},
		{"digest:9F86D08", "digest:sha256:9f86d08", search.Versions, "published"},
		{"digest:sha256:9f86d081", "digest:sha256:9f86d081", search.Versions, "published"},
		{"published>2026-01-01 published<=2026-02-01T00:00:00+01:00", "published>2026-01-01 published<=2026-02-01T00:00:00+01:00", search.Versions, "published"},
		{"squad.f1_macro@5/a-b>3", "squad.f1_macro@5/a-b>3", search.Versions, "published"},
		{"name:fraud model:acme/* by:ada env:*", "name:fraud model:acme/* by:ada env:*", search.Versions, "published"},
	}
	for _, tt := range tests {
		q, err := search.Parse(tt.query)
		if err != nil {
			t.Errorf("Parse(%q) = %v", tt.query, err)
			continue
		}
		if q.String() != tt.want || q.Finds() != tt.kind || q.Order().String() != tt.order {
			t.Errorf("Parse(%q) = %q, finds %s by %s, want %q, %s by %s", tt.query, q, q.Finds(), q.Order(), tt.want, tt.kind, tt.order)
		}
	}
}

// What is wrong is named with its place, and what to write instead.
func TestParseErrors(t *testing.T) {
	tests := []struct{ query, want string }{
		{"f1>high", "f1>high, at character 1: f1 is compared with a number, such as f1>0.9"},
		{"größe f1>", "at character 7: there is no value"},
		{"a license:", "at character 3: there is no value"},
		{"f1>NaN", "compared with a number"},
		{"f1<Inf", "compared with a number"},
		{"f1>0x1p3", "compared with a number"},
		{"licence:mit", `there is no field "licence"; there are name, model, tag, license`},
		{"f1:0.9", "as in f1>0.9"},
		{"http://x", "text that holds a colon stands in quotes"},
		{":x", "there is no field before :"},
		{">1", "there is no field before >"},
		{"é>1", "not a metric's name"},
		{"-", "a - stands before what must not hold"},
		{`"open`, "the quote is not closed"},
		{`"a"b`, "something follows the closing quote"},
		{`a"b"`, "a quote stands in the middle"},
		{`license:a"b`, "a quote stands in the middle"},
		{"license>mit", "license has no order; write license:mit"},
		{"state:gone", "a version is published, deprecated, quarantined or revoked"},
		{"env:UP", "not an environment's name"},
		{"version:latest", "a version is MAJOR"},
		{"version>=1.2+b", "a version is MAJOR"},
		{"version:1.2.3.4", "a version is MAJOR"},
		{"published>yesterday", "a time is a day"},
		{"published>0001-01-01", "a time is a day"},
		{"digest:sha256:xyz", "a digest is sha256: and 7 to 64"},
		{"digest:abcdef", "a digest is sha256: and 7 to 64"},
		{"-digest:9f86d081", "leave the - out"},
		{"metric>3", "compare a metric by its own name"},
		{"metric:3", "not a metric's name"},
		{"metric:3>3", "not a metric's name"},
		{"kind:run", "write kind:model or kind:version"},
		{"-kind:model", "no - before it"},
		{"kind>model", "write kind:model"},
		{"kind:model kind:model", "kind stands there twice"},
		{"reported:yes", "write reported:true or reported:false"},
		{"sort:3", "sort by published, name or a metric"},
		{"sort:", "there is no value"},
		{"a\x00b", "control character"},
		{"\xff", "not UTF-8"},
		{strings.Repeat("x", 1025), "at most 1024 bytes"},
		{strings.Repeat("x ", 33), "at most 32 terms"},
	}
	for _, tt := range tests {
		q, err := search.Parse(tt.query)
		var field *registry.FieldError
		if !errors.As(err, &field) || field.Field != "q" || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %q, %v, want an error on q that says %q", tt.query, q, err, tt.want)
		}
	}
}

func TestParseSort(t *testing.T) {
	if s, err := search.ParseSort("-loss"); err != nil || s != (search.Sort{Field: search.ByMetric, Metric: "loss", Reverse: true}) {
		t.Errorf("ParseSort(-loss) = %+v, %v", s, err)
	}
	var field *registry.FieldError
	if s, err := search.ParseSort("f 1"); !errors.As(err, &field) || field.Field != "sort" {
		t.Errorf("ParseSort(f 1) = %+v, %v, want an error on sort", s, err)
	}
}

// term is the only term of a query.
func term(t *testing.T, query string) search.Term {
	t.Helper()
	q, err := search.Parse(query)
	if err != nil || len(q.Terms) != 1 {
		t.Fatalf("Parse(%q) = %q, %v, want one term", query, q, err)
	}
	return q.Terms[0]
}

func TestMatches(t *testing.T) {
	tests := []struct {
		query, value string
		want         bool
	}{
		{"license:mit", "MIT", true},
		{"license:MIT", "mit", true},
		{"license:mit", "mit-0", false},
		{"license:mit-0", "mit", false},
		{"tag:ÄRGER", "ärger", true},
		{"tag:ärger", "aerger", false},
		{"tag:call*", "Call-Centre", true},
		{"tag:*centre", "call-centre", true},
		{"tag:c*l*e", "call-centre", true},
		{"tag:c*x*e", "call-centre", false},
		{"tag:ab*ba", "aba", false},
		{"tag:*", "", true},
		{"model:acme/*", "acme/fraud", true},
		{"model:acme/*", "acme2/fraud", false},
		{"name:rau", "acme/fraud", true},
		{"name:*", "acme/fraud", false},
		{"Rau", "acme/fraud", true},
		{"fraud*", "acme/fraud", false},
	}
	for _, tt := range tests {
		if got := term(t, tt.query).Matches(tt.value); got != tt.want {
			t.Errorf("%s matches %q = %t, want %t", tt.query, tt.value, got, tt.want)
		}
	}
}

func TestMatchesNumber(t *testing.T) {
	for query, want := range map[string][3]bool{ // of 0.4, 0.5 and 0.6
		"f1<0.5": {true, false, false}, "f1<=0.5": {true, true, false}, "f1=0.5": {false, true, false},
		"f1>=0.5": {false, true, true}, "f1>0.5": {false, false, true}, "metric:f1": {true, true, true},
	} {
		for i, v := range []float64{0.4, 0.5, 0.6} {
			if got := term(t, query).MatchesNumber(v); got != want[i] {
				t.Errorf("%s matches %v = %t, want %t", query, v, got, want[i])
			}
		}
	}
}

func TestMatchesTag(t *testing.T) {
	tags := []string{"v1.1.9", "v1.2.0-rc.1", "v1.2.0", "v1.2.1", "v1.10.0", "v2.0.0"}
	for query, want := range map[string]string{
		"version>=1.2":        "v1.2.0 v1.2.1 v1.10.0 v2.0.0",
		"version>1.2":         "v1.2.1 v1.10.0 v2.0.0",
		"version<1.2":         "v1.1.9 v1.2.0-rc.1",
		"version<=v1.2.0":     "v1.1.9 v1.2.0-rc.1 v1.2.0",
		"version:1.2":         "v1.2.0-rc.1 v1.2.0 v1.2.1",
		"version:1":           "v1.1.9 v1.2.0-rc.1 v1.2.0 v1.2.1 v1.10.0",
		"version:1.2.0":       "v1.2.0",
		"version=v1.2.0-rc.1": "v1.2.0-rc.1",
	} {
		var got []string
		for _, tag := range tags {
			if term(t, query).MatchesTag(tag) {
				got = append(got, tag)
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s matches %s, want %s", query, text, want)
		}
	}
}

// A day is all of it, in UTC; a moment is itself.
func TestMatchesTime(t *testing.T) {
	before, first, last, after := "2026-01-30T23:59:59Z", "2026-01-31T00:00:00Z", "2026-01-31T23:59:59.999999999Z", "2026-02-01T00:00:00Z"
	all := []string{before, first, last, after}
	for query, want := range map[string][]string{
		"published<2026-01-31":                {before},
		"published<=2026-01-31":               {before, first, last},
		"published:2026-01-31":                {first, last},
		"published>=2026-01-31":               {first, last, after},
		"published>2026-01-31":                {after},
		"published>2026-01-31T00:00:00Z":      {last, after},
		"published<=2026-01-31T00:00:00Z":     {before, first},
		"published=2026-02-01T01:00:00+01:00": {after},
	} {
		var got []string
		for _, text := range all {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				t.Fatal(err)
			}
			if term(t, query).MatchesTime(at) {
				got = append(got, text)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s matches %v, want %v", query, got, want)
		}
	}
}

// A query that is taken is written so that it reads the same again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "f1>0.9 env:production base:acme/bert", `-"a b" tag:"x\"y" license:*`, "kind:model sort:-metric:name reported:true", "metric:state<=-1e300",
		"version>=1.2 published>2026-01-01 digest:9f86d081", "a\u00a0b \"\u00a0\"", `"\\"`, "-- a:b", "metric:metric:f1>1", `name:"-x" tag:=y tag:">1"`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := search.Parse(text)
		var field *registry.FieldError
		if err != nil {
			if !errors.As(err, &field) || field.Field != "q" {
				t.Fatalf("Parse(%q) = %v, want an error on the field q", text, err)
			}
			return
		}
		if len(q.Terms) > search.MaxTerms {
			t.Fatalf("Parse(%q) has %d terms, want at most %d", text, len(q.Terms), search.MaxTerms)
		}
		written := q.String()
		if len(written) > search.MaxQueryBytes {
			return // quotes and fields in full are longer
		}
		again, err := search.Parse(written)
		if err != nil || !reflect.DeepEqual(q, again) {
			t.Fatalf("Parse(%q) = %q, which reads as %q, %v", text, written, again, err)
		}
		for _, term := range q.Terms { // whatever passed can be asked
			term.Matches(text)
			term.MatchesTag("v1.0.0")
			term.MatchesNumber(1)
			term.MatchesTime(time.Time{})
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := search.Parse(`f1>0.9 env:production base:acme/bert license:apache-2.0 -state:revoked sort:f1`); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatches(b *testing.B) {
	q, err := search.Parse("license:apache-2.0")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		q.Terms[0].Matches("Apache-2.0")
	}
}
