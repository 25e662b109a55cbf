// Package provenance writes lineage in the formats that other tools read: OpenLineage run events and W3C PROV-JSON.
package provenance

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/herdbook/herdbook/registry"
)

// producer is who states the events.
const producer = "https://github.com/herdbook/herdbook"

// The schemas that the events follow. Source: OpenLineage 2-0-2, spec/OpenLineage.json and spec/facets.
const (
	runEventSchema = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
	versionSchema  = "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
	sourceSchema   = "https://openlineage.io/spec/facets/1-0-1/SourceCodeLocationJobFacet.json#/$defs/SourceCodeLocationJobFacet"
	parentSchema   = "https://openlineage.io/spec/facets/1-1-0/ParentRunFacet.json#/$defs/ParentRunFacet"
)

// RunEvent says that a version was made, and of what.
type RunEvent struct {
	EventType string    `json:"eventType"`
	EventTime time.Time `json:"eventTime"`
	Run       Run       `json:"run"`
	Job       Job       `json:"job"`
	Inputs    []Dataset `json:"inputs"`
	Outputs   []Dataset `json:"outputs"`
	Producer  string    `json:"producer"`
	SchemaURL string    `json:"schemaURL"`
}

// Run is what made the version. Its id follows from the version's, so that the same version always has the same one.
type Run struct {
	RunID  uuid.UUID `json:"runId"`
	Facets struct {
		Parent *parentFacet `json:"parent,omitempty"`
	} `json:"facets"`
}

// Job is the model: each of its versions is a run of it.
type Job struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Facets    struct {
		Source *sourceFacet `json:"sourceCodeLocation,omitempty"`
	} `json:"facets"`
}

// Dataset is what a version came from, or the version itself.
type Dataset struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Facets    struct {
		Version *versionFacet `json:"version,omitempty"`
	} `json:"facets"`
}

type facet struct {
	Producer  string `json:"_producer"`
	SchemaURL string `json:"_schemaURL"`
}

type versionFacet struct {
	facet
	DatasetVersion string `json:"datasetVersion"` // a commit, or the revision by which a card names a base model
}

type sourceFacet struct {
	facet
	Type    string `json:"type"`
	URL     string `json:"url"`
	Version string `json:"version,omitempty"`
	Tag     string `json:"tag,omitempty"`
}

type parentFacet struct {
	facet
	Run struct {
		RunID uuid.UUID `json:"runId"`
	} `json:"run"`
	Job struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"job"`
}

// OpenLineage are the events of the versions of a graph, a START and a COMPLETE each, the oldest first. What a run used that made a version counts as
// used by the version. The address of the server is the namespace of what has no own.
func OpenLineage(g registry.Graph, server *url.URL) []RunEvent {
	nodes := map[string]registry.Node{}
	var versions []registry.Node
	for _, n := range g.Nodes {
		nodes[n.ID] = n
		if n.Kind == registry.VersionNode {
			versions = append(versions, n)
		}
	}
	slices.SortStableFunc(versions, func(a, b registry.Node) int {
		return cmp.Or(a.PublishedAt.Compare(b.PublishedAt), strings.Compare(a.ID, b.ID))
	})
	events := []RunEvent{}
	for _, v := range versions {
		e := event(v, nodes, g.Edges, server)
		for _, kind := range []string{"START", "COMPLETE"} {
			e.EventType = kind
			events = append(events, e)
		}
	}
	return events
}

func event(v registry.Node, nodes map[string]registry.Node, edges []registry.LineageEdge, server *url.URL) RunEvent {
	namespace := strings.TrimSuffix(server.String(), "/")
	e := RunEvent{EventTime: v.PublishedAt, Inputs: []Dataset{}, Producer: producer, SchemaURL: runEventSchema}
	e.Run.RunID = runID(v.ID)
	e.Job.Namespace, e.Job.Name = namespace, v.Model
	e.Job.Facets.Source = &sourceFacet{facet{producer, sourceSchema}, "git", namespace + "/" + v.Model + ".git", string(v.Commit), v.Tag.String()}
	e.Outputs = []Dataset{dataset(v, namespace)}
	made := map[string]bool{v.ID: true} // the version and the runs that made it
	for _, edge := range edges {
		run := nodes[edge.To]
		if edge.From != v.ID || edge.Kind != registry.GeneratedBy || run.Kind != registry.RunNode {
			continue
		}
		made[run.ID] = true
		if e.Run.Facets.Parent == nil {
			p := &parentFacet{facet: facet{producer, parentSchema}}
			p.Run.RunID, p.Job.Namespace, p.Job.Name = runID(run.ID), namespace, run.Name
			e.Run.Facets.Parent = p
		}
	}
	seen := map[string]bool{}
	for _, edge := range edges {
		to := nodes[edge.To]
		if !made[edge.From] || seen[edge.To] || to.ID == "" || edge.Kind != registry.DerivedFrom && edge.Kind != registry.Used {
			continue
		}
		seen[edge.To] = true
		if to.Kind == registry.CodeNode {
			address, revision := cutRevision(to.Name)
			e.Job.Facets.Source = &sourceFacet{facet{producer, sourceSchema}, "git", address, revision, ""}
			continue
		}
		e.Inputs = append(e.Inputs, dataset(to, namespace))
	}
	return e
}

func runID(id string) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceURL, []byte(producer+"#"+id)) }

// dataset names a node. A name that is a URL has its own namespace, as OpenLineage's naming conventions want it.
func dataset(n registry.Node, namespace string) Dataset {
	d := Dataset{Namespace: namespace, Name: n.Name}
	version := ""
	switch n.Kind {
	case registry.VersionNode:
		d.Name, version = n.Model, string(n.Commit)
	case registry.ExternalModelNode:
		d.Name, version = cutRevision(n.Name)
	}
	if u, err := url.Parse(d.Name); err == nil && u.Scheme != "" && u.Host != "" {
		d.Namespace, d.Name = u.Scheme+"://"+u.Host, strings.TrimPrefix(u.Path, "/")
	}
	if version != "" {
		d.Facets.Version = &versionFacet{facet{producer, versionSchema}, version}
	}
	return d
}

// cutRevision splits NAME@REVISION. The name itself may hold an @, as the user in a URL does.
func cutRevision(name string) (string, string) {
	i := strings.LastIndexByte(name, '@')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, ""
	}
	return name[:i], name[i+1:]
}
