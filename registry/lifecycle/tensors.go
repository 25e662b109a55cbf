package lifecycle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/inspect"
)

// TensorCache keeps what weight files hold, by the digest of the file. It may lose that, and give what is damaged.
type TensorCache interface {
	// Open opens what Keep kept. Without any it is registry.ErrNotFound.
	Open(d digest.Digest) (io.ReadCloser, error)
	// Keep keeps what write writes, all of it or nothing.
	Keep(d digest.Digest, write func(io.Writer) error) error
}

// Bounds of the comparison of weights.
const (
	tensorReaders  = 2    // files that are read at a time
	maxTensorJobs  = 1024 // files that wait to be read; those beyond it have to be asked for again
	maxWeightPairs = 500  // of one comparison
	tensorMerges   = 2    // pairs of lists that are compared at a time, in all requests together
	commitSums     = 2    // commits without a version whose files are summed at a time
)

// tensorWork is the weight files that are wanted, each once however many ask for it.
type tensorWork struct {
	mu      sync.Mutex
	jobs    map[digest.Digest]*tensorJob
	queue   chan *tensorJob
	merging places
	summing places
}

func newTensorWork() *tensorWork {
	return &tensorWork{jobs: map[digest.Digest]*tensorJob{}, queue: make(chan *tensorJob, maxTensorJobs), merging: make(places, tensorMerges), summing: make(places, commitSums)}
}

// places bound what is done at a time.
type places chan struct{}

// take waits for a place, and gives the function that leaves it.
func (p places) take(ctx context.Context) (leave func(), err error) {
	select {
	case p <- struct{}{}:
		return func() { <-p }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tensorJob is one file whose tensors are to be listed.
type tensorJob struct {
	file registry.File
	open func(context.Context) (io.ReadCloser, error)
	read atomic.Int64 // bytes, so far
	done chan struct{}
	err  error // why it was not done; valid when done is closed
}

// want gives the job of a file, which may be somebody else's; nil when there are too many.
func (w *tensorWork) want(f registry.File, open func(context.Context) (io.ReadCloser, error)) *tensorJob {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j := w.jobs[f.Digest]; j != nil {
		return j
	}
	j := &tensorJob{file: f, open: open, done: make(chan struct{})}
	select {
	case w.queue <- j:
		w.jobs[f.Digest] = j
		return j
	default:
		return nil
	}
}

func (w *tensorWork) end(j *tensorJob, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.jobs, j.file.Digest)
	j.err = err
	close(j.done)
}

// ReadTensors reads the weight files that comparisons want, until ctx ends, and returns when it has stopped. [Service.Run] calls it.
func (s *Service) ReadTensors(ctx context.Context) {
	var wait sync.WaitGroup
	for range tensorReaders {
		wait.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-s.tensors.queue:
					err := s.listTensors(ctx, j)
					if err != nil && ctx.Err() == nil {
						s.Log.ErrorContext(ctx, "the tensors of a file cannot be listed", "digest", j.file.Digest, "error", err.Error())
					}
					s.tensors.end(j, err)
				}
			}
		})
	}
	wait.Wait()
}

// listTensors reads a weight file from its beginning to its end, once. What is kept of it is what content with this digest holds: a file
// that is damaged on the disk is an error.
func (s *Service) listTensors(ctx context.Context, j *tensorJob) error {
	content, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer content.Close()
	sum := sha256.New()
	in := io.TeeReader(&followed{ctx, content, &j.read}, sum)
	list, err := inspect.Tensors(j.file.Path, in, j.file.SizeBytes)
	problem := ""
	var bad *inspect.FormatError
	if errors.As(err, &bad) {
		// As much a fact of the content as its tensors would be.
		list, problem, err = inspect.List{Format: inspect.FormatOf(j.file.Path)}, bad.Detail, nil
	}
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	if err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != j.file.Digest {
		return fmt.Errorf("the content of %s has the digest %s: the file is damaged", j.file.Digest, got)
	}
	return s.TensorCache.Keep(j.file.Digest, func(w io.Writer) error { return inspect.WriteList(w, list, problem) })
}

// followed is a reader that counts, and that ends with ctx.
type followed struct {
	ctx context.Context
	io.Reader
	read *atomic.Int64
}

func (f *followed) Read(p []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := f.Reader.Read(p)
	f.read.Add(int64(n))
	return n, err
}

// opaque are formats of weights that are compared as files only, by extension.
var opaque = map[string]string{
	".pt": "pytorch", ".pth": "pytorch", ".ckpt": "pytorch", ".bin": "binary", ".h5": "hdf5", ".hdf5": "hdf5", ".keras": "keras", ".tflite": "tflite",
	".pb": "tensorflow", ".pkl": "pickle", ".pickle": "pickle", ".joblib": "pickle", ".msgpack": "msgpack", ".npz": "numpy", ".npy": "numpy",
}

// weightFormat names the format of a weight file, also of one whose tensors are not read.
func weightFormat(name string) string {
	return cmp.Or(inspect.FormatOf(name), opaque[strings.ToLower(path.Ext(name))])
}

// weights is the comparison of two weight files while it is made.
type weights struct {
	registry.WeightPair
	diff registry.WeightsDiff
	jobs []*tensorJob // that it waits for
}

func (s *Service) compareWeights(ctx context.Context, a, b *compared) ([]registry.WeightsDiff, error) {
	pairs := registry.PairWeights(a.files, b.files, weightFormat)
	all := make([]weights, len(pairs))
	read := 0
	for i, p := range pairs {
		w := &all[i]
		w.WeightPair, w.diff = p, registry.WeightsDiff{PathA: p.A.Path, PathB: p.B.Path, Format: p.Format}
		switch {
		case p.A.Digest == p.B.Digest:
			w.diff.State = registry.WeightsSame
		case inspect.FormatOf(p.A.Path) == "":
			w.diff.State, w.diff.Reason = registry.WeightsUnsupported, "the tensors of this format are not read; the bytes of the files differ"
		case s.TensorCache == nil:
			w.diff.State, w.diff.Reason = registry.WeightsUnsupported, "this server does not read tensors"
		case read == maxWeightPairs:
			w.diff.State, w.diff.Reason = registry.WeightsUnsupported, fmt.Sprintf("only %d pairs of weight files are compared at once", maxWeightPairs)
		default:
			read++
			w.diff.State = registry.WeightsComputing
			if err := s.begin(w, a, b); err != nil {
				return nil, err
			}
		}
	}
	if err := s.await(ctx, all); err != nil {
		return nil, err
	}
	diffs := make([]registry.WeightsDiff, len(all))
	room := registry.MaxListed
	for i := range all {
		w := &all[i]
		if w.diff.State == registry.WeightsComputing {
			if err := s.finish(ctx, w, a, b, room); err != nil {
				return nil, err
			}
			if w.diff.Tensors != nil {
				room -= len(w.diff.Tensors.Items)
			}
		}
		diffs[i] = w.diff
	}
	return diffs, nil
}

// begin asks for the lists of both files that are not there.
func (s *Service) begin(w *weights, a, b *compared) error {
	for _, one := range []struct {
		side *compared
		file registry.File
	}{{a, w.A}, {b, w.B}} {
		list, err := s.TensorCache.Open(one.file.Digest)
		if err == nil {
			list.Close()
			continue
		}
		if !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		s.order(w, one.side, one.file)
	}
	return nil
}

func (s *Service) order(w *weights, side *compared, f registry.File) {
	if j := s.tensors.want(f, func(ctx context.Context) (io.ReadCloser, error) { return s.open(ctx, side, f) }); j != nil {
		w.jobs = append(w.jobs, j)
	}
	w.diff.TotalBytes += f.SizeBytes
}

// await waits for all jobs, but not longer than anybody likes to wait.
func (s *Service) await(ctx context.Context, all []weights) error {
	timer := time.NewTimer(s.CompareWait)
	defer timer.Stop()
	for i := range all {
		for _, j := range all[i].jobs {
			select {
			case <-j.done:
			case <-timer.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// finish says what is known by now.
func (s *Service) finish(ctx context.Context, w *weights, a, b *compared, room int) error {
	for _, j := range w.jobs {
		select {
		case <-j.done:
			if j.err != nil && !errors.Is(j.err, context.Canceled) {
				w.diff.State, w.diff.TotalBytes = registry.WeightsFailed, 0
				w.diff.Reason = "the server cannot read the files now; its log says why"
				if errors.Is(j.err, registry.ErrNotFound) {
					w.diff.Reason = "LFS object " + j.file.Digest.Encoded() + " of " + j.file.Path + " is not on the server"
				}
				return nil
			}
		default:
		}
	}
	tensors, problem, err := s.diffTensors(ctx, w, a, b, room)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		for _, j := range w.jobs {
			w.diff.ReadBytes += min(j.read.Load(), j.file.SizeBytes)
		}
	case errors.Is(err, inspect.ErrDamaged):
		s.Log.WarnContext(ctx, "a list of tensors is damaged and is made again", "a", w.A.Digest, "b", w.B.Digest, "reason", err.Error())
		s.order(w, a, w.A)
		s.order(w, b, w.B)
	case err != nil:
		return err
	case problem != "":
		w.diff.State, w.diff.Reason, w.diff.TotalBytes = registry.WeightsFailed, problem, 0
	default:
		w.diff.State, w.diff.Tensors, w.diff.TotalBytes = registry.WeightsReady, &tensors, 0
	}
	return nil
}

// diffTensors compares the lists of two files. A problem says why one of them has none.
func (s *Service) diffTensors(ctx context.Context, w *weights, a, b *compared, room int) (diff registry.TensorDiff, problem string, err error) {
	leave, err := s.tensors.merging.take(ctx)
	if err != nil {
		return diff, "", err
	}
	defer leave()
	var lists [2]iter.Seq2[registry.Tensor, error]
	for i, one := range []struct {
		side *compared
		file registry.File
	}{{a, w.A}, {b, w.B}} {
		kept, err := s.TensorCache.Open(one.file.Digest)
		if err != nil {
			return diff, "", err
		}
		defer kept.Close()
		list, err := inspect.ReadList(kept)
		if err != nil {
			return diff, "", err
		}
		if list.Problem != "" {
			return diff, fmt.Sprintf("the tensors of %s cannot be listed: %s", one.file.Path, list.Problem), nil
		}
		lists[i] = located(ctx, list, one.side, one.file.Path)
	}
	diff, err = registry.CompareTensors(lists[0], lists[1], room)
	return diff, "", err
}

// located are the tensors of a list; those in other files come with the digest of that file.
func located(ctx context.Context, list *inspect.ListReader, side *compared, from string) iter.Seq2[registry.Tensor, error] {
	return func(yield func(registry.Tensor, error) bool) {
		for t, err := range list.Tensors() {
			if err == nil {
				err = ctx.Err()
			}
			if t.External != nil {
				f, _ := side.file(registry.ExternalPath(from, t.External.Location))
				t.External.Digest = f.Digest
			}
			if !yield(t, err) || err != nil {
				return
			}
		}
	}
}
