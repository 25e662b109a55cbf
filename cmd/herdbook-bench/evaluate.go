package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// evaluation is what is recorded: metrics, and a matrix from which the server computes more.
const evaluation = `{"dataset":{"name":"calls-2026","uri":"s3://data/calls","revision":"9f3c","split":"test"},` +
	`"confusion":{"labels":["speech","silence"],"positive":"speech","matrix":[[80,10],[20,90]]},"metrics":{"latency_p95_ms":11.5,"loss":0.125},` +
	`"samples":200,"harness":{"name":"vad-eval","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},` +
	`"source_url":"https://ci.example/job/7","evaluator":"jenkins"}`

// policy is that of the models: gates of two environments look at each evaluation.
const policy = `environments:
  staging: {promote: auto, evidence: {dataset: calls-2026, split: test}, gates: ["metrics.f1 >= 0.80"]}
  production: {after: staging, approvals: 1, gates: ["metrics.f1 >= 0.84 && (incumbent == null || metrics.f1 >= incumbent.metrics.f1 - 0.005)"]}
`

// evaluatedTag is the version whose commit is evaluated.
const evaluatedTag = "v1.0.0"

func evaluatedModel(i int, kind string) string { return fmt.Sprintf("acme/%s-%d", kind, i) }

// makeEvaluated makes the models that are evaluated, each with a policy and a version.
func makeEvaluated(ctx context.Context, j *job) error {
	for i := range j.evaluated {
		if err := j.makeEvaluatedModel(ctx, i, "evaluated"); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) makeEvaluatedModel(ctx context.Context, i int, kind string) error {
	name := evaluatedModel(i, kind)
	body, err := json.Marshal(map[string]string{"name": name, "visibility": "public"})
	if err != nil {
		return err
	}
	if _, _, err := j.read(ctx, http.MethodPost, j.server.url()+"/api/v1/models", body, with(j.server.basic(), "Content-Type", jsonMediaType), http.StatusCreated); err != nil {
		return err
	}
	dir := filepath.Join(j.dir, fmt.Sprintf("%s-%d", kind, i))
	if _, err := git(ctx, j.dir, nil, nil, "init", "-q", "--bare", "--initial-branch=main", dir); err != nil {
		return err
	}
	var stream strings.Builder
	fmt.Fprintf(&stream, "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 6\nfirst\n\n")
	for _, f := range [][2]string{{"README.md", "# Finds speech\n"}, {"herdbook.yaml", policy}} {
		fmt.Fprintf(&stream, "M 100644 inline %s\ndata %d\n%s\n", f[0], len(f[1]), f[1])
	}
	fmt.Fprintf(&stream, "reset refs/tags/%s\nfrom refs/heads/main\n\n", evaluatedTag)
	if _, err := git(ctx, dir, nil, strings.NewReader(stream.String()), "fast-import", "--quiet"); err != nil {
		return err
	}
	_, err = git(ctx, dir, j.server.basic(), nil, "push", "-q", j.server.url()+"/"+name+".git", "main", evaluatedTag)
	return err
}

// evaluate records evaluations by clients at once, each of a model of its own.
func (j *job) evaluate(ctx context.Context, clients, count int) (result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := connect(j.server, clients)
	defer c.close()
	newest := make([]string, clients)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for range (count + clients - 1 - i) / clients {
				id, err := c.recordEvaluation(ctx, evaluatedModel(i, "evaluated"))
				if err != nil {
					cancel(err)
					return
				}
				newest[i] = id
			}
		})
	}
	all.Wait()
	j.newest = map[string]string{}
	for i, id := range newest {
		j.newest[evaluatedModel(i, "evaluated")] = id
	}
	return result{sent: c.sent.Load()}, context.Cause(ctx)
}

// evaluateOne records evaluations of one commit, one after the other.
func (j *job) evaluateOne(ctx context.Context, count int) (result, error) {
	name := evaluatedModel(0, "deep")
	return j.counted(func() error {
		for range count {
			id, err := j.recordEvaluation(ctx, name)
			if err != nil {
				return err
			}
			j.newest = map[string]string{name: id}
		}
		return nil
	})
}

// recordEvaluation gives the id of an evaluation that was recorded.
func (c *client) recordEvaluation(ctx context.Context, name string) (string, error) {
	body, _, err := c.read(ctx, http.MethodPost, c.server.url()+"/api/v1/models/"+name+"/evaluations/"+evaluatedTag, []byte(evaluation),
		with(c.server.basic(), "Content-Type", jsonMediaType), http.StatusCreated)
	if err != nil {
		return "", err
	}
	var recorded struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(body, &recorded); err != nil || recorded.ID == "" {
		return "", fmt.Errorf("evaluation of %s answered %.100q", name, body)
	}
	return recorded.ID, nil
}

// noteWait is how long is waited for notes, which follow within two seconds on a machine that does nothing else.
const noteWait = 30 * time.Second

// noted waits until the newest evaluation of each model is in the notes that everybody can fetch.
func noted(ctx context.Context, j *job) error {
	deadline := time.Now().Add(noteWait)
	for name, id := range j.newest {
		dir := filepath.Join(j.dir, strings.TrimPrefix(name, "acme/"))
		for {
			_, err := git(ctx, dir, nil, nil, "fetch", "-q", j.server.url()+"/"+name+".git", "+refs/notes/evaluations:refs/notes/evaluations")
			text := ""
			if err == nil {
				text, err = git(ctx, dir, nil, nil, "notes", "--ref=evaluations", "show", evaluatedTag+"^{commit}")
			}
			if err == nil && strings.Contains(text, id) {
				break
			}
			if err == nil {
				err = errors.New("the note does not have it")
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("evaluation %s of %s is not in its note %s later: %w", id, name, noteWait, err)
			}
		}
	}
	return nil
}
