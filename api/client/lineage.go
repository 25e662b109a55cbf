package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/registry"
)

// Lineage is what a version came from and what came of it. The query has "direction", "depth" and "kinds"; all pages are read, up to most
// nodes.
func (c *Client) Lineage(ctx context.Context, m registry.ModelName, rev string, query url.Values, most int) (registry.Graph, error) {
	graph := registry.Graph{Nodes: []registry.Node{}, Edges: []registry.LineageEdge{}}
	for at := path(m, "lineage", rev) + "?" + query.Encode(); at != ""; {
		var page registry.Graph
		next, err := c.call(ctx, http.MethodGet, at, nil, &page)
		if err != nil {
			return graph, err
		}
		graph.Nodes, graph.Edges, graph.Truncated = append(graph.Nodes, page.Nodes...), append(graph.Edges, page.Edges...), page.Truncated
		if at = next; len(graph.Nodes) >= most {
			break
		}
	}
	return graph, nil
}

// LineageAs is one page of the same in another format, as the server writes it.
func (c *Client) LineageAs(ctx context.Context, m registry.ModelName, rev string, query url.Values) (json.RawMessage, error) {
	var text json.RawMessage
	return text, c.Do(ctx, http.MethodGet, path(m, "lineage", rev)+"?"+query.Encode(), nil, &text)
}

// Declare adds edges of lineage.
func (c *Client) Declare(ctx context.Context, m registry.ModelName, rev string, edges api.Edges) ([]registry.LineageEdge, error) {
	var added struct {
		Edges []registry.LineageEdge `json:"edges"`
	}
	return added.Edges, c.Do(ctx, http.MethodPost, path(m, "lineage", rev), edges, &added)
}

// Path is how a version and another node are related.
func (c *Client) Path(ctx context.Context, m registry.ModelName, rev, to string) (registry.Path, error) {
	var p registry.Path
	return p, c.Do(ctx, http.MethodGet, path(m, "lineage", rev, "path")+"?to="+url.QueryEscape(to), nil, &p)
}

// LineageDiff is what a version and another node came from, and which of the two.
func (c *Client) LineageDiff(ctx context.Context, m registry.ModelName, rev, with string) ([]registry.Related, error) {
	return all[registry.Related](ctx, c, path(m, "lineage", rev, "diff")+"?with="+url.QueryEscape(with))
}

// Shared are the files of a version whose bytes other models have too.
func (c *Client) Shared(ctx context.Context, m registry.ModelName, rev string) ([]registry.SharedFile, error) {
	return all[registry.SharedFile](ctx, c, path(m, "shared", rev))
}

// Impact is what came from something: the query has one of "dataset", "model", "digest" and "node". All pages are read, up to most nodes.
func (c *Client) Impact(ctx context.Context, query url.Values, most int) (registry.Impact, error) {
	impact := registry.Impact{Items: []registry.Affected{}, Running: []registry.Running{}}
	for at := "/impact?" + query.Encode(); at != ""; {
		var page registry.Impact
		next, err := c.call(ctx, http.MethodGet, at, nil, &page)
		if err != nil {
			return impact, err
		}
		impact.Items, impact.Running, impact.Truncated = append(impact.Items, page.Items...), append(impact.Running, page.Running...), page.Truncated
		if at = next; len(impact.Items) >= most {
			break
		}
	}
	return impact, nil
}
