package provenance_test

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/provenance"
)

var (
	server = &url.URL{Scheme: "https", Host: "models.example"}
	at     = time.Date(2026, 3, 4, 5, 6, 7, 890_000_000, time.UTC)
)

func version(model, tag string, at time.Time) registry.Node {
	return registry.Node{
		ID: "version:id-" + strings.ReplaceAll(model, "/", "-") + ":" + tag, Kind: registry.VersionNode, Model: model, Tag: registry.MustTag(tag), State: registry.Published,
		Commit: registry.ObjectID(strings.Repeat("4f1c", 10)), PublishedAt: at,
	}
}

func node(id string) registry.Node { return registry.ParseNodeID(id) }

// graph is a version that a run made from a base, a dataset and code, and the version after it.
func graph() registry.Graph {
	v1, v2, base := version("acme/fraud", "v1.0.0", at), version("acme/fraud", "v2.0.0", at.Add(time.Hour)), version("acme/base", "v1.0.0", at.Add(-time.Hour))
	edge := func(from, to string, kind registry.EdgeKind, r registry.Relation) registry.LineageEdge {
		return registry.LineageEdge{From: from, To: to, Kind: kind, Relation: r}
	}
	return registry.Graph{
		Nodes: []registry.Node{v2, v1, base, node("dataset:calls 2026"), node("dataset:s3://data/calls/a.csv"), node("run:jenkins/7"), node("code:https://git.example/train@4f1"), node("model:other/base@main"), node("dataset:tests")},
		Edges: []registry.LineageEdge{
			edge(v2.ID, v1.ID, registry.DerivedFrom, registry.Previous), edge(v1.ID, base.ID, registry.DerivedFrom, registry.Finetune), edge(v1.ID, "dataset:calls 2026", registry.Used, ""),
			edge(v1.ID, "run:jenkins/7", registry.GeneratedBy, ""), edge("run:jenkins/7", "dataset:s3://data/calls/a.csv", registry.Used, ""), edge("run:jenkins/7", "code:https://git.example/train@4f1", registry.Used, ""),
			edge("run:jenkins/7", "dataset:calls 2026", registry.Used, ""), edge(v1.ID, "model:other/base@main", registry.DerivedFrom, registry.Merge),
			edge(v1.ID, "dataset:tests", registry.EvaluatedWith, ""), edge(base.ID, "dataset:tests", registry.Used, ""), edge(v2.ID, "dataset:on another page", registry.Used, ""),
		},
	}
}

func TestOpenLineage(t *testing.T) {
	events := provenance.OpenLineage(graph(), server)
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.EventType+" "+e.Job.Name+" "+e.Job.Facets.Source.Tag+e.Job.Facets.Source.URL)
	}
	want := []string{
		"START acme/base v1.0.0https://models.example/acme/base.git", "COMPLETE acme/base v1.0.0https://models.example/acme/base.git",
		"START acme/fraud https://git.example/train", "COMPLETE acme/fraud https://git.example/train",
		"START acme/fraud v2.0.0https://models.example/acme/fraud.git", "COMPLETE acme/fraud v2.0.0https://models.example/acme/fraud.git",
	}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	// The run of a version is the same at every time, and another one for every version.
	if a, b := events[2].Run.RunID, events[4].Run.RunID; a == b || a != events[3].Run.RunID || a != provenance.OpenLineage(graph(), server)[2].Run.RunID {
		t.Errorf("runs of two versions = %s and %s", a, b)
	}
	const facet = `"_producer":"https://github.com/herdbook/herdbook","_schemaURL":"https://openlineage.io/spec/facets/`
	commit := strings.Repeat("4f1c", 10)
	wantText := `{"eventType":"COMPLETE","eventTime":"2026-03-04T05:06:07.89Z","run":{"runId":"RUN","facets":{"parent":{` + facet + `1-1-0/ParentRunFacet.json#/$defs/ParentRunFacet",` +
		`"run":{"runId":"PARENT"},"job":{"namespace":"https://models.example","name":"jenkins/7"}}}},` +
		`"job":{"namespace":"https://models.example","name":"acme/fraud","facets":{"sourceCodeLocation":{` + facet + `1-0-1/SourceCodeLocationJobFacet.json#/$defs/SourceCodeLocationJobFacet",` +
		`"type":"git","url":"https://git.example/train","version":"4f1"}}},"inputs":[` +
		`{"namespace":"https://models.example","name":"acme/base","facets":{"version":{` + facet + `1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet","datasetVersion":"` + commit + `"}}},` +
		`{"namespace":"https://models.example","name":"calls 2026","facets":{}},` +
		`{"namespace":"s3://data","name":"calls/a.csv","facets":{}},` +
		`{"namespace":"https://models.example","name":"other/base","facets":{"version":{` + facet + `1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet","datasetVersion":"main"}}}],` +
		`"outputs":[{"namespace":"https://models.example","name":"acme/fraud","facets":{"version":{` + facet + `1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet","datasetVersion":"` + commit + `"}}}],` +
		`"producer":"https://github.com/herdbook/herdbook","schemaURL":"https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"}`
	text, err := json.Marshal(events[3])
	if err != nil {
		t.Fatal(err)
	}
	got := strings.NewReplacer(events[3].Run.RunID.String(), "RUN", events[3].Run.Facets.Parent.Run.RunID.String(), "PARENT").Replace(string(text))
	if diff := cmp.Diff(wantText, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if got, _ := json.Marshal(provenance.OpenLineage(registry.Graph{}, server)); string(got) != "[]" {
		t.Errorf("events of nothing = %s, want a list", got)
	}
}

func TestPROV(t *testing.T) {
	text, err := json.Marshal(provenance.PROV(graph(), server))
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]map[string]json.RawMessage
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var got []string
	for kind, records := range d {
		for id, record := range records {
			if kind == "entity" || kind == "activity" {
				got = append(got, kind+" "+id)
				continue
			}
			if kind != "prefix" && !strings.HasPrefix(id, "_:") {
				t.Errorf("the name of a relation is %q, want a blank one", id)
			}
			got = append(got, kind+" "+string(record))
		}
	}
	slices.Sort(got)
	const making = "hb:making/version%3Aid-acme-base%3Av1.0.0"
	want := []string{
		"activity " + making, "activity hb:run/jenkins/7",
		"entity hb:acme/base/versions/v1.0.0", "entity hb:acme/fraud/versions/v1.0.0", "entity hb:acme/fraud/versions/v2.0.0",
		"entity hb:code/https%3A//git.example/train@4f1", "entity hb:dataset/calls%202026", "entity hb:dataset/s3%3A//data/calls/a.csv", "entity hb:dataset/tests", "entity hb:model/other/base@main",
		`prefix "https://github.com/herdbook/herdbook/blob/main/docs/lineage.md#"`, `prefix "https://models.example/"`,
		`used {"prov:activity":"` + making + `","prov:entity":"hb:dataset/tests"}`,
		`used {"prov:activity":"hb:run/jenkins/7","prov:entity":"hb:code/https%3A//git.example/train@4f1"}`,
		`used {"prov:activity":"hb:run/jenkins/7","prov:entity":"hb:dataset/calls%202026"}`,
		`used {"prov:activity":"hb:run/jenkins/7","prov:entity":"hb:dataset/s3%3A//data/calls/a.csv"}`,
		`wasDerivedFrom {"herdbook:relation":"finetune","prov:generatedEntity":"hb:acme/fraud/versions/v1.0.0","prov:usedEntity":"hb:acme/base/versions/v1.0.0"}`,
		`wasDerivedFrom {"herdbook:relation":"merge","prov:generatedEntity":"hb:acme/fraud/versions/v1.0.0","prov:usedEntity":"hb:model/other/base@main"}`,
		`wasDerivedFrom {"herdbook:relation":"previous","prov:generatedEntity":"hb:acme/fraud/versions/v2.0.0","prov:type":{"$":"prov:Revision","type":"prov:QUALIFIED_NAME"},"prov:usedEntity":"hb:acme/fraud/versions/v1.0.0"}`,
		`wasGeneratedBy {"prov:activity":"` + making + `","prov:entity":"hb:acme/base/versions/v1.0.0"}`,
		`wasGeneratedBy {"prov:activity":"hb:run/jenkins/7","prov:entity":"hb:acme/fraud/versions/v1.0.0"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	wantEntity := `{"herdbook:commit":"` + strings.Repeat("4f1c", 10) + `","herdbook:publishedAt":{"$":"2026-03-04T05:06:07.89Z","type":"xsd:dateTime"},"herdbook:state":"published",` +
		`"prov:label":"acme/fraud v1.0.0","prov:type":{"$":"herdbook:ModelVersion","type":"prov:QUALIFIED_NAME"}}`
	if got := string(d["entity"]["hb:acme/fraud/versions/v1.0.0"]); got != wantEntity {
		t.Errorf("entity of a version = %s, want %s", got, wantEntity)
	}
}
