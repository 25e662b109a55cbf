package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// size says how much work a run does.
type size struct {
	name       string
	largeBytes int64 // of the one large object
	many       int   // objects of manyBytes
	manyBytes  int64
	layers     int // of manyBytes
	commits    int
	requests   int // of each small kind
	lsRemotes  int
	clones     int

	evaluated   int // models, and clients that evaluate them
	evaluations int // by all clients
	deep        int // evaluations of one commit
	few         int // evaluations that are timed before and after those
}

var sizes = map[string]size{
	"tiny":  {"tiny", 4 << 20, 20, 64 << 10, 20, 40, 10, 2, 2, 4, 64, 50, 20},
	"small": {"small", 64 << 20, 200, 64 << 10, 100, 200, 100, 5, 8, 64, 4_000, 2_000, 100},
	"full":  {"full", 1 << 30, 2000, 64 << 10, 500, 2000, 500, 20, 8, 64, 20_000, 10_000, 500},
}

// pulls is how often the large object is pulled in one step: a single pull is too short to be measured well.
const pulls = 3

// fixture is what every server is given; it is made once a run.
type fixture struct {
	size
	dir     string
	large   asset
	many    []asset
	layers  []asset
	history history
}

// makeFixture makes what the steps need.
func makeFixture(ctx context.Context, dir string, s size, scenarios []scenario) (*fixture, error) {
	f := &fixture{size: s, dir: dir}
	var err error
	for _, sc := range scenarios {
		switch sc.name {
		case "lfs-many":
			f.many = assets(1000, s.many, s.manyBytes)
		case "oci-many":
			f.layers = assets(5000, s.layers, s.manyBytes)
		case "git":
			f.history, err = makeHistory(ctx, filepath.Join(dir, "history.git"), s.commits)
		case "evaluations":
			// What is evaluated is made with the models.
		default:
			f.large = assets(1, 1, s.largeBytes)[0]
		}
	}
	return f, err
}

// job is one server with which the steps of a scenario are taken, in one round.
type job struct {
	*fixture
	*client
	counting   bool   // whether the bytes that git sends are counted, which costs time
	dir        string // for clones and such
	repository string // of OCI, and the reference of the manifest in it
	reference  string
	cloneDir   string            // directory of those that the last step made
	newest     map[string]string // id of the last evaluation of each model
}

// result is what a step tells beside its time.
type result struct {
	sent   int64 // bytes on the wire; below 0: not counted
	bodies int64 // bytes of objects among them
}

// errUnsupported reports that the server cannot do the step.
var errUnsupported = errors.New("not supported")

// step is one piece of work.
type step struct {
	name string
	// what it is, with the numbers of the size.
	what  func(s size) string
	needs protocol
	base  string // the server whose figure is the measure
	// operations is how often it does the same; times are given for one.
	operations func(s size) int
	// setup is set when later steps build on it, so that it is taken even where it is not asked for.
	setup bool
	// prepare is not measured. It may return errUnsupported, as may run.
	prepare func(ctx context.Context, j *job) error
	run     func(ctx context.Context, j *job) (result, error)
	// verify is not measured either: it reports when the server does not have what was pushed.
	verify func(ctx context.Context, j *job) error
}

// scenario is steps that follow each other on fresh servers.
type scenario struct {
	name  string
	steps []step
	// manyFiles has the directories of the servers removed at the end of the scenario and not after each round:
	// ext4 without a journal looks for a while at each inode that was deleted when it makes a file.
	manyFiles bool
}

// scenarios is all work there is, in the order of the report.
var scenarios = []scenario{
	{name: "lfs-many", steps: []step{
		{
			name: "lfs-push-many", needs: speaksLFS, base: floorName, setup: true, prepare: prepareModel,
			what: func(s size) string {
				return fmt.Sprintf("LFS push of %d objects of %s over %d connections", s.many, bytesText(s.manyBytes), lfsConnections)
			},
			run:    func(ctx context.Context, j *job) (result, error) { return j.lfs(ctx, "upload", j.many) },
			verify: func(ctx context.Context, j *job) error { return j.held(ctx, j.many) },
		},
		{
			name: "lfs-push-many-again", needs: speaksLFS, base: floorName,
			what: func(size) string { return "the same push again" },
			run:  func(ctx context.Context, j *job) (result, error) { return j.lfs(ctx, "upload", j.many) },
		},
		{
			name: "lfs-pull-many", needs: speaksLFS, base: floorName,
			what: func(s size) string { return fmt.Sprintf("LFS pull of the %d objects", s.many) },
			run:  func(ctx context.Context, j *job) (result, error) { return j.lfs(ctx, "download", j.many) },
		},
	}, manyFiles: true},
	{name: "lfs-large", steps: []step{
		{
			name: "lfs-push", needs: speaksLFS, base: floorName, setup: true, prepare: prepareModel,
			what:   func(s size) string { return "LFS push of one object of " + bytesText(s.largeBytes) },
			run:    func(ctx context.Context, j *job) (result, error) { return j.lfs(ctx, "upload", []asset{j.large}) },
			verify: func(ctx context.Context, j *job) error { return j.held(ctx, []asset{j.large}) },
		},
		{
			name: "lfs-push-again", needs: speaksLFS, base: floorName,
			what: func(size) string { return "the same push again" },
			run:  func(ctx context.Context, j *job) (result, error) { return j.lfs(ctx, "upload", []asset{j.large}) },
		},
		{
			name: "lfs-pull", needs: speaksLFS, base: floorName,
			what:       func(s size) string { return "LFS pull of one object of " + bytesText(s.largeBytes) },
			operations: func(size) int { return pulls },
			run: func(ctx context.Context, j *job) (result, error) {
				return j.counted(func() error {
					for range pulls {
						if _, err := j.transfer(ctx, "download", []asset{j.large}); err != nil {
							return err
						}
					}
					return nil
				})
			},
		},
	}},
	{name: "oci-many", steps: []step{
		{
			name: "oci-push-many", needs: pushesOCI, base: floorName, setup: true, prepare: preparePush,
			what: func(s size) string {
				return fmt.Sprintf("OCI push of %d layers of %s over %d connections, and their manifest", s.layers, bytesText(s.manyBytes), lfsConnections)
			},
			run: pushLayers,
		},
		{
			name: "oci-pull-many", needs: pushesOCI, base: floorName,
			what: func(s size) string { return fmt.Sprintf("OCI pull of the %d layers", s.layers) },
			run: func(ctx context.Context, j *job) (result, error) {
				return j.counted(func() error {
					return atOnce(ctx, j.fixture.layers, func(ctx context.Context, a asset) error {
						return j.fetch(ctx, j.server.url()+"/v2/"+artifact+"/blobs/sha256:"+a.oid, j.registryHeader(), a.content)
					})
				})
			},
		},
	}, manyFiles: true},
	{name: "oci", steps: []step{
		{
			name: "oci-push", needs: pushesOCI, base: floorName, prepare: preparePush,
			what: func(s size) string { return "OCI push of one layer of " + bytesText(s.largeBytes) },
			run:  pushArtifact,
		},
		{
			name: "oci-manifest", needs: speaksOCI, base: floorName, prepare: publish,
			what:       func(size) string { return fmt.Sprintf("GET of a manifest by tag, over %d connections", lfsConnections) },
			operations: func(s size) int { return s.requests * lfsConnections },
			run:        pullManifests,
		},
		{
			name: "oci-pull", needs: speaksOCI, base: floorName, prepare: publish,
			what:       func(s size) string { return "OCI pull of one layer of " + bytesText(s.largeBytes) },
			operations: func(size) int { return pulls },
			run:        pullLayer,
		},
	}},
	{name: "git", steps: []step{
		{
			name: "git-push", needs: speaksGit, base: gitBackend, setup: true, prepare: prepareModel,
			what:   func(s size) string { return fmt.Sprintf("git push of %d commits", s.commits) },
			run:    func(ctx context.Context, j *job) (result, error) { return j.push(ctx, "main:main") },
			verify: func(ctx context.Context, j *job) error { return j.mainIs(ctx, "refs/heads/main") },
		},
		{
			name: "git-clone", needs: speaksGit, base: gitBackend,
			what:   func(s size) string { return fmt.Sprintf("git clone of %d commits", s.commits) },
			run:    func(ctx context.Context, j *job) (result, error) { return j.clone(ctx, 1) },
			verify: checkClones,
		},
		{
			name: "git-clone-8", needs: speaksGit, base: gitBackend,
			what:   func(s size) string { return fmt.Sprintf("%d clones at once, together", s.clones) },
			run:    func(ctx context.Context, j *job) (result, error) { return j.clone(ctx, j.clones) },
			verify: checkClones,
		},
		{
			name: "git-ls-remote", needs: speaksGit, base: gitBackend, prepare: pushTopics,
			what:       func(size) string { return fmt.Sprintf("git ls-remote of %d refs", topics+1) },
			operations: func(s size) int { return s.lsRemotes },
			run:        lsRemote,
		},
		{
			name: "git-advertise", needs: speaksGit, base: gitBackend, prepare: pushTopics,
			what:       func(size) string { return "the same refs over HTTP, protocol 0" },
			operations: func(s size) int { return s.requests },
			run:        advertise,
		},
		{
			name: "git-push-one", needs: speaksGit, base: gitBackend,
			what:       func(size) string { return "git push of one commit" },
			operations: func(size) int { return singles },
			run:        pushSingles,
			verify: func(ctx context.Context, j *job) error {
				return j.mainIs(ctx, fmt.Sprintf("refs/heads/single/%d", singles))
			},
		},
		{
			name: "api-model", needs: speaksAPI,
			what:       func(size) string { return "JSON GET of a model" },
			operations: func(s size) int { return s.requests },
			run: func(ctx context.Context, j *job) (result, error) {
				return j.repeat(ctx, j.requests, "/api/v1/models/"+model, nil, func(body []byte, _ http.Header) error {
					if !json.Valid(body) || !bytes.Contains(body, []byte(model)) {
						return fmt.Errorf("GET of a model answered %.100q", body)
					}
					return nil
				})
			},
		},
	}},
	{name: "evaluations", steps: []step{
		{
			name: "evaluations", needs: speaksAPI, setup: true, prepare: makeEvaluated,
			what: func(s size) string {
				return fmt.Sprintf("evaluations of %d bytes by %d clients to as many models", len(evaluation), s.evaluated)
			},
			operations: func(s size) int { return s.evaluations },
			run: func(ctx context.Context, j *job) (result, error) {
				return j.evaluate(ctx, j.evaluated, j.fixture.evaluations)
			},
			verify: noted,
		},
		{
			name: "evaluations-first", needs: speaksAPI, setup: true, prepare: func(ctx context.Context, j *job) error { return j.makeEvaluatedModel(ctx, 0, "deep") },
			what:       func(s size) string { return fmt.Sprintf("the first %d evaluations of a commit by one client", s.few) },
			operations: func(s size) int { return s.few },
			run:        func(ctx context.Context, j *job) (result, error) { return j.evaluateOne(ctx, j.few) },
		},
		{
			name: "evaluations-last", needs: speaksAPI,
			prepare: func(ctx context.Context, j *job) error {
				_, err := j.evaluateOne(ctx, j.deep-2*j.few)
				return err
			},
			what:       func(s size) string { return fmt.Sprintf("the last %d of %d evaluations of a commit", s.few, s.deep) },
			operations: func(s size) int { return s.few },
			run:        func(ctx context.Context, j *job) (result, error) { return j.evaluateOne(ctx, j.few) },
			verify:     noted,
		},
	}},
}

// counted takes a step and counts what the client sends meanwhile.
func (j *job) counted(do func() error) (result, error) {
	before := j.sent.Load()
	err := do()
	return result{sent: j.sent.Load() - before}, err
}

// prepareModel makes the model where models are made.
func prepareModel(ctx context.Context, j *job) error {
	if j.server.does(speaksAPI) {
		return j.makeModel(ctx)
	}
	return nil
}

func (k kind) does(p protocol) bool { return slices.Contains(k.speaks, p) }

func (j *job) lfs(ctx context.Context, operation string, all []asset) (result, error) {
	before := j.sent.Load()
	bodies, err := j.transfer(ctx, operation, all)
	return result{j.sent.Load() - before, bodies}, err
}

// repeat gets an address of the server some times.
func (j *job) repeat(ctx context.Context, times int, path string, header map[string]string, check func([]byte, http.Header) error) (result, error) {
	return j.counted(func() error {
		for range times {
			body, h, err := j.read(ctx, http.MethodGet, j.server.url()+path, nil, header, http.StatusOK)
			if err != nil {
				return err
			}
			if err := check(body, h); err != nil {
				return err
			}
		}
		return nil
	})
}

const (
	manifestMediaType = "application/vnd.oci.image.manifest.v1+json"
	configMediaType   = "application/vnd.oci.image.config.v1+json"
	layerMediaType    = "application/vnd.oci.image.layer.v1.tar"
)

// preparePush finds out whether the registry takes pushes.
func preparePush(ctx context.Context, j *job) error {
	if err := j.login(ctx, artifact); err != nil {
		return err
	}
	err := j.pushBlob(ctx, artifact, emptyConfigSum, strings.NewReader(emptyConfig), int64(len(emptyConfig)))
	var status *statusError
	if errors.As(err, &status) && (status.status == http.StatusMethodNotAllowed || status.status == http.StatusNotImplemented) {
		return errUnsupported
	}
	return err
}

const emptyConfig = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`

var emptyConfigSum = func() string {
	sum := sha256.Sum256([]byte(emptyConfig))
	return hex.EncodeToString(sum[:])
}()

// pushArtifact pushes the layer and a manifest that names it.
func pushArtifact(ctx context.Context, j *job) (result, error) {
	before := j.sent.Load()
	if err := j.pushBlob(ctx, artifact, j.large.oid, j.large.reader(), j.large.size); err != nil {
		return result{}, err
	}
	err := j.pushManifest(ctx, j.large)
	return result{j.sent.Load() - before, j.large.size}, err
}

// pushLayers pushes many layers and a manifest that names them, as clients do: each layer is asked for first.
func pushLayers(ctx context.Context, j *job) (result, error) {
	before := j.sent.Load()
	err := atOnce(ctx, j.fixture.layers, func(ctx context.Context, a asset) error {
		answer, err := j.do(ctx, http.MethodHead, j.server.url()+"/v2/"+artifact+"/blobs/sha256:"+a.oid, nil, 0, j.registryHeader(), http.StatusNotFound)
		if err != nil {
			return err
		}
		answer.Body.Close()
		return j.pushBlob(ctx, artifact, a.oid, a.reader(), a.size)
	})
	if err == nil {
		err = j.pushManifest(ctx, j.fixture.layers...)
	}
	return result{j.sent.Load() - before, int64(len(j.fixture.layers)) * j.manyBytes}, err
}

// atOnce does something with all assets over several connections.
func atOnce(ctx context.Context, all []asset, do func(context.Context, asset) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan asset)
	var workers sync.WaitGroup
	for range lfsConnections {
		workers.Go(func() {
			for a := range next {
				if err := do(ctx, a); err != nil {
					cancel(fmt.Errorf("layer %.12s: %w", a.oid, err))
				}
			}
		})
	}
	for _, a := range all {
		if ctx.Err() != nil {
			break
		}
		next <- a
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}

// pushManifest pushes a manifest that names layers.
func (j *job) pushManifest(ctx context.Context, layers ...asset) error {
	var list []string
	for _, l := range layers {
		list = append(list, fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":%d}`, layerMediaType, l.oid, l.size))
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":"sha256:%s","size":%d},"layers":[%s]}`,
		manifestMediaType, configMediaType, emptyConfigSum, len(emptyConfig), strings.Join(list, ","))
	_, _, err := j.read(ctx, http.MethodPut, j.server.url()+"/v2/"+artifact+"/manifests/latest", []byte(manifest),
		with(j.registryHeader(), "Content-Type", manifestMediaType), http.StatusCreated)
	j.repository, j.reference = artifact, "latest"
	return err
}

func pullLayer(ctx context.Context, j *job) (result, error) {
	return j.counted(func() error {
		for range pulls {
			if err := j.fetch(ctx, j.server.url()+"/v2/"+j.repository+"/blobs/sha256:"+j.large.oid, j.registryHeader(), j.large.content); err != nil {
				return err
			}
		}
		return nil
	})
}

// publish brings the large object into a registry: as a version of a model where there are models, by a push elsewhere.
func publish(ctx context.Context, j *job) error {
	if !j.server.does(speaksAPI) {
		if j.repository != "" {
			return nil
		}
		if err := preparePush(ctx, j); err != nil {
			return err
		}
		_, err := pushArtifact(ctx, j)
		return err
	}
	if j.repository == model {
		return nil
	}
	if err := j.makeModel(ctx); err != nil {
		return err
	}
	if _, err := j.transfer(ctx, "upload", []asset{j.large}); err != nil {
		return err
	}
	repository := filepath.Join(j.dir, "version.git")
	if err := makeVersion(ctx, repository, j.large); err != nil {
		return err
	}
	if _, err := git(ctx, repository, j.server.basic(), nil, "push", "-q", j.server.url()+"/"+model+".git", "main", "v1.0.0"); err != nil {
		return err
	}
	if err := j.login(ctx, model); err != nil {
		return err
	}
	j.repository, j.reference = model, "v1.0.0"
	return j.awaitManifest(ctx)
}

func (j *job) awaitManifest(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := j.pullManifest(ctx)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (j *job) pullManifest(ctx context.Context) (result, error) { return j.getManifest(ctx, 1) }

func pullManifests(ctx context.Context, j *job) (result, error) {
	return j.counted(func() error {
		return atOnce(ctx, make([]asset, lfsConnections), func(ctx context.Context, _ asset) error {
			_, err := j.getManifest(ctx, j.requests)
			return err
		})
	})
}

func (j *job) getManifest(ctx context.Context, times int) (result, error) {
	header := with(j.registryHeader(), "Accept", manifestMediaType)
	return j.repeat(ctx, times, "/v2/"+j.repository+"/manifests/"+j.reference, header, func(body []byte, h http.Header) error {
		sum := sha256.Sum256(body)
		if got, want := h.Get("Docker-Content-Digest"), "sha256:"+hex.EncodeToString(sum[:]); got != want {
			return fmt.Errorf("the manifest's digest is said to be %s and is %s", got, want)
		}
		if !bytes.Contains(body, []byte(j.large.oid)) {
			return errors.New("the manifest does not name the layer")
		}
		return nil
	})
}

// remote gives the address of the repository to git, and what counts the bytes to it.
func (j *job) remote(ctx context.Context, do func(address string) error) (result, error) {
	if !j.counting {
		return result{sent: -1}, do(j.server.url() + "/" + model + ".git")
	}
	r, err := startRelay(ctx, j.server.address)
	if err != nil {
		return result{}, err
	}
	err = do("http://" + r.listener.Addr().String() + "/" + model + ".git")
	return result{sent: r.stop()}, err
}

// push pushes refs of the history.
func (j *job) push(ctx context.Context, refs ...string) (result, error) {
	return j.remote(ctx, func(address string) error {
		_, err := git(ctx, j.history.dir, j.server.basic(), nil, append([]string{"push", "-q", address}, refs...)...)
		return err
	})
}

// mainIs asks the server whether its main is the commit of a ref of the history.
func (j *job) mainIs(ctx context.Context, ref string) error {
	want, err := git(ctx, j.history.dir, nil, nil, "rev-parse", ref)
	if err != nil {
		return err
	}
	got, err := git(ctx, j.dir, j.server.basic(), nil, "ls-remote", j.server.url()+"/"+model+".git", "refs/heads/main")
	if err != nil {
		return err
	}
	if got, _, _ = strings.Cut(got, "\t"); got != want {
		return fmt.Errorf("main is at %q after the push, want %s", got, want)
	}
	return nil
}

func pushTopics(ctx context.Context, j *job) error {
	_, err := git(ctx, j.history.dir, j.server.basic(), nil, "push", "-q", j.server.url()+"/"+model+".git", "refs/heads/topic/*:refs/heads/topic/*")
	return err
}

func pushSingles(ctx context.Context, j *job) (result, error) {
	return j.remote(ctx, func(address string) error {
		for i := range singles {
			if _, err := git(ctx, j.history.dir, j.server.basic(), nil, "push", "-q", address, fmt.Sprintf("single/%d:main", i+1)); err != nil {
				return err
			}
		}
		return nil
	})
}

// clone clones n times at once.
func (j *job) clone(ctx context.Context, n int) (result, error) {
	dir, err := os.MkdirTemp(j.dir, "clone-")
	if err != nil {
		return result{}, err
	}
	j.cloneDir = dir
	return j.remote(ctx, func(address string) error {
		failed := make([]error, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				_, failed[i] = git(ctx, dir, j.server.basic(), nil, "clone", "-q", "--bare", address, fmt.Sprint(i))
			})
		}
		all.Wait()
		return errors.Join(failed...)
	})
}

// checkClones looks for all of the history in each clone.
func checkClones(ctx context.Context, j *job) error {
	dirs, err := os.ReadDir(j.cloneDir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := j.history.check(ctx, filepath.Join(j.cloneDir, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

func lsRemote(ctx context.Context, j *job) (result, error) {
	return j.remote(ctx, func(address string) error {
		for range j.lsRemotes {
			out, err := git(ctx, j.dir, j.server.basic(), nil, "ls-remote", "--heads", address)
			if err != nil {
				return err
			}
			if got := len(strings.Split(out, "\n")); got != topics+1 || !strings.Contains(out, j.history.tip) {
				return fmt.Errorf("git ls-remote gives %d refs, want %d and main at %s: %s", got, topics+1, j.history.tip, out)
			}
		}
		return nil
	})
}

func advertise(ctx context.Context, j *job) (result, error) {
	return j.repeat(ctx, j.requests, "/"+model+".git/info/refs?service=git-upload-pack", j.server.basic(), func(body []byte, _ http.Header) error {
		if !bytes.Contains(body, []byte(j.history.tip+" refs/heads/main\n")) {
			return fmt.Errorf("the advertisement does not have main at %s: %.200q", j.history.tip, body)
		}
		return nil
	})
}
