package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/provenance"
)

// lineageOf is the model and the node of the version that the path names.
func (s *Server) lineageOf(c echo.Context, action access.Action) (m registry.Model, v registry.VersionRecord, id string, err error) {
	if m, err = s.model(c, action); err != nil {
		return m, v, "", err
	}
	v, err = s.versionAt(c, m)
	return m, v, registry.VersionNodeID(m.ID, v.Version.Tag), err
}

func (s *Server) getLineage(c echo.Context) error {
	_, _, start, err := s.lineageOf(c, access.Read)
	if err != nil {
		return err
	}
	walk := registry.Walk{Start: start, Direction: registry.Both}
	if walk.Depth, err = intParam(c, "depth", registry.MaxLineageDepth); err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	walk.Limit, walk.Cursor = at.Bound(), at.Cursor
	switch d := registry.Direction(c.QueryParam("direction")); d {
	case "":
	case registry.Ancestors, registry.Descendants, registry.Both:
		walk.Direction = d
	default:
		return registry.Invalid("direction", "direction is ancestors, descendants or both")
	}
	if walk.Kinds, err = kindsParam(c.QueryParam("kinds")); err != nil {
		return err
	}
	write, err := s.lineageFormat(c)
	if err != nil {
		return err
	}
	graph, err := s.Index.Lineage(c.Request().Context(), door.Identity(c), walk)
	if err != nil {
		return err
	}
	if graph.Next != "" {
		link(c, "cursor", graph.Next)
	}
	return c.JSON(http.StatusOK, write(graph))
}

// lineageFormat is how an answer is written that asks for a "format".
func (s *Server) lineageFormat(c echo.Context) (func(registry.Graph) any, error) {
	switch c.QueryParam("format") {
	case "", "json":
		return func(g registry.Graph) any { return g }, nil
	case "openlineage":
		return func(g registry.Graph) any { return provenance.OpenLineage(g, s.PublicURL) }, nil
	case "prov":
		return func(g registry.Graph) any { return provenance.PROV(g, s.PublicURL) }, nil
	}
	return nil, registry.Invalid("format", "format is json, openlineage or prov")
}

// Edge is an edge of lineage as a client declares it. From is the version of the address when it is not said. Nodes are
// dataset:NAME, run:NAME, code:URL@REVISION, model:NAME[@REVISION], or NAMESPACE/NAME@TAG for a version of this server.
type Edge struct {
	From     string            `json:"from"`
	To       string            `json:"to"`
	Kind     registry.EdgeKind `json:"kind"`
	Relation registry.Relation `json:"relation,omitempty"`
}

// Edges are what a client declares at once.
type Edges struct {
	Edges []Edge `json:"edges"`
}

func (s *Server) declareEdges(c echo.Context) error {
	m, _, self, err := s.lineageOf(c, access.Relate)
	if err != nil {
		return err
	}
	var in Edges
	if err := decode(c, maxBodyBytes, &in); err != nil {
		return err
	}
	edges := []registry.LineageEdge{}
	for i, e := range in.Edges {
		edge := registry.LineageEdge{From: self, Kind: e.Kind, Relation: e.Relation}
		if e.From != "" {
			if edge.From, err = s.node(c, e.From); err != nil {
				return registry.InField(err, fmt.Sprintf("edges[%d].from", i))
			}
		}
		if edge.To, err = s.node(c, e.To); err != nil {
			return registry.InField(err, fmt.Sprintf("edges[%d].to", i))
		}
		edges = append(edges, edge)
	}
	if err := s.Lifecycle.Declare(c.Request().Context(), door.Request(c), m, edges); err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, struct {
		Edges []registry.LineageEdge `json:"edges"`
	}{edges})
}

// node is the id of a node that a client names: NAMESPACE/NAME@TAG of a version that it may read, or an id.
func (s *Server) node(c echo.Context, text string) (string, error) {
	if registry.ParseNodeID(text).Kind != "" {
		return text, nil
	}
	model, revision, ok := strings.Cut(text, "@")
	name, err := registry.ParseModelName(model)
	if !ok || err != nil {
		return text, nil // and whoever reads it says what is wrong
	}
	tag, err := registry.ParseTag(revision)
	if err != nil {
		return "", registry.Invalid("", "%v", err)
	}
	m, err := door.Authorized(c, s.Index, name, access.Read)
	if err != nil {
		return "", err
	}
	if _, err := s.Index.Version(c.Request().Context(), m.ID, tag); err != nil {
		return "", err
	}
	return registry.VersionNodeID(m.ID, tag), nil
}

// otherNode reads a parameter that names a node.
func (s *Server) otherNode(c echo.Context, param string) (string, error) {
	id, err := s.node(c, c.QueryParam(param))
	if err != nil {
		return "", registry.InField(err, param)
	}
	if registry.ParseNodeID(id).Kind == "" {
		return "", registry.Invalid(param, "name a node: NAMESPACE/NAME@TAG, dataset:NAME, model:NAME[@REVISION], run:NAME or code:URL@REVISION")
	}
	return id, nil
}

func (s *Server) getPath(c echo.Context) error {
	_, _, from, err := s.lineageOf(c, access.Read)
	if err != nil {
		return err
	}
	to, err := s.otherNode(c, "to")
	if err != nil {
		return err
	}
	path, err := s.Index.Path(c.Request().Context(), door.Identity(c), from, to)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, path)
}

func (s *Server) diffLineage(c echo.Context) error {
	_, _, a, err := s.lineageOf(c, access.Read)
	if err != nil {
		return err
	}
	b, err := s.otherNode(c, "with")
	if err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	items, next, err := s.Index.LineageDiff(c.Request().Context(), door.Identity(c), a, b, at)
	if err != nil {
		return err
	}
	return answerList(c, items, next)
}

func (s *Server) listShared(c echo.Context) error {
	m, v, _, err := s.lineageOf(c, access.Read)
	if err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	items, next, err := s.Index.Shared(c.Request().Context(), door.Identity(c), m.ID, v.Version.Tag, at)
	if err != nil {
		return err
	}
	return answerList(c, items, next)
}

func (s *Server) getImpact(c echo.Context) error {
	if err := s.mayList(c); err != nil {
		return err
	}
	var of registry.Concern
	asked := 0
	for param, field := range map[string]*string{"node": &of.Node, "dataset": &of.Dataset, "model": &of.Model} {
		if *field = c.QueryParam(param); *field != "" {
			asked++
		}
	}
	if text := c.QueryParam("digest"); text != "" {
		d, err := digest.Parse(text)
		if err != nil || d.Algorithm() != digest.SHA256 {
			return registry.Invalid("digest", "a digest is sha256: and 64 hex digits")
		}
		of.Digest = d
		asked++
	}
	if asked != 1 {
		return registry.Invalid("dataset", "say what the impact is asked for, by one of dataset, model, digest and node")
	}
	if of.Node != "" {
		id, err := s.otherNode(c, "node")
		if err != nil {
			return err
		}
		of.Node = id
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	impact, err := s.Index.Impact(c.Request().Context(), door.Identity(c), of, at)
	if err != nil {
		return err
	}
	if impact.Next != "" {
		link(c, "cursor", impact.Next)
	}
	return c.JSON(http.StatusOK, impact)
}
