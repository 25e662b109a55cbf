package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
)

// The batch API of Git LFS. Source: docs/api/batch.md of Git LFS.
const lfsMediaType = "application/vnd.git-lfs+json"

type lfsBatch struct {
	Operation string      `json:"operation,omitempty"`
	Transfer  string      `json:"transfer,omitempty"`
	Transfers []string    `json:"transfers,omitempty"`
	Objects   []lfsObject `json:"objects"`
}

type lfsObject struct {
	OID     string               `json:"oid"`
	Size    int64                `json:"size"`
	Actions map[string]lfsAction `json:"actions,omitempty"`
	Error   *lfsError            `json:"error,omitempty"`
}

type lfsAction struct {
	Href   string            `json:"href"`
	Header map[string]string `json:"header,omitempty"`
}

type lfsError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// asset is content with its name in LFS and OCI.
type asset struct {
	content
	oid string
}

// assets makes n contents that differ.
func assets(seed uint64, n int, size int64) []asset {
	all := make([]asset, n)
	for i := range all {
		c := content{seed + uint64(i), size}
		all[i] = asset{c, c.sum()}
	}
	return all
}

// As git-lfs has them. Source: docs/man/git-lfs-config.adoc, lfs.concurrenttransfers and lfs.transfer.batchSize.
const (
	lfsConnections = 8
	lfsBatchSize   = 100
)

// task is one object with what is to be done about it.
type task struct {
	asset
	actions map[string]lfsAction
}

// transfer moves the assets as git-lfs does: batches of a hundred, the next of which is asked for while
// objects of the last are under way over eight connections. It gives the bytes of objects that were sent.
func (c *client) transfer(ctx context.Context, operation string, all []asset) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tasks := make(chan task, lfsBatchSize)
	var sent atomic.Int64
	done := make(chan struct{})
	for range lfsConnections {
		go func() {
			defer func() { done <- struct{}{} }()
			for t := range tasks {
				n, err := c.act(ctx, t)
				sent.Add(n)
				if err != nil {
					cancel(fmt.Errorf("object %.12s: %w", t.oid, err))
				}
			}
		}()
	}
	for from := 0; from < len(all) && ctx.Err() == nil; from += lfsBatchSize {
		part, err := c.ask(ctx, operation, all[from:min(len(all), from+lfsBatchSize)])
		if err != nil {
			cancel(err)
		}
		for _, t := range part {
			if len(t.actions) > 0 {
				tasks <- t
			}
		}
	}
	close(tasks)
	for range lfsConnections {
		<-done
	}
	return sent.Load(), context.Cause(ctx)
}

// held reports an asset that the server does not offer for download.
func (c *client) held(ctx context.Context, all []asset) error {
	for part := range slices.Chunk(all, lfsBatchSize) {
		if _, err := c.ask(ctx, "download", part); err != nil {
			return err
		}
	}
	return nil
}

// ask sends one batch request.
func (c *client) ask(ctx context.Context, operation string, part []asset) ([]task, error) {
	in := lfsBatch{Operation: operation, Transfers: []string{"basic"}, Objects: make([]lfsObject, len(part))}
	byOID := map[string]asset{}
	for i, a := range part {
		in.Objects[i] = lfsObject{OID: a.oid, Size: a.size}
		byOID[a.oid] = a
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	header := with(with(c.server.basic(), "Content-Type", lfsMediaType), "Accept", lfsMediaType)
	text, _, err := c.read(ctx, http.MethodPost, c.server.url()+"/"+model+".git/info/lfs/objects/batch", body, header, http.StatusOK)
	if err != nil {
		return nil, err
	}
	var out lfsBatch
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("answer to a batch: %w", err)
	}
	if len(out.Objects) != len(part) {
		return nil, fmt.Errorf("answer to a batch of %d objects has %d", len(part), len(out.Objects))
	}
	tasks := make([]task, 0, len(part))
	for _, o := range out.Objects {
		a, ok := byOID[o.OID]
		if !ok {
			return nil, fmt.Errorf("answer to a batch has object %.12q, which was not asked for", o.OID)
		}
		if o.Error != nil {
			return nil, fmt.Errorf("object %.12s: %d %s", o.OID, o.Error.Code, o.Error.Message)
		}
		if _, ok := o.Actions["download"]; operation == "download" && !ok {
			return nil, fmt.Errorf("object %.12s: no address to download it", o.OID)
		}
		tasks = append(tasks, task{a, o.Actions})
	}
	return tasks, nil
}

// act transfers one object and gives the bytes of it that were sent. Transfers carry the headers of the answer
// and no credentials of their own.
func (c *client) act(ctx context.Context, t task) (sent int64, err error) {
	if ctx.Err() != nil {
		return 0, nil
	}
	if a, ok := t.actions["download"]; ok {
		return 0, c.fetch(ctx, a.Href, a.Header, t.content)
	}
	if a, ok := t.actions["upload"]; ok {
		body := t.reader()
		answer, err := c.do(ctx, http.MethodPut, a.Href, body, t.size, with(a.Header, "Content-Type", "application/octet-stream"), http.StatusOK)
		if err != nil {
			return body.offset, err
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		sent = body.offset
	}
	if a, ok := t.actions["verify"]; ok {
		body, err := json.Marshal(lfsObject{OID: t.oid, Size: t.size})
		if err != nil {
			return sent, err
		}
		if _, _, err := c.read(ctx, http.MethodPost, a.Href, body, with(a.Header, "Content-Type", lfsMediaType), http.StatusOK); err != nil {
			return sent, err
		}
	}
	return sent, nil
}
