package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// safetensors writes a file of tensors of bytes, by name.
func safetensors(tensors map[string]string) string {
	var header, data strings.Builder
	for i, name := range slices.Sorted(maps.Keys(tensors)) {
		if i > 0 {
			header.WriteByte(',')
		}
		begin := data.Len()
		data.WriteString(tensors[name])
		fmt.Fprintf(&header, `%q:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`, name, data.Len()-begin, begin, data.Len())
	}
	text := "{" + header.String() + "}"
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(text)))) + text + data.String()
}

// reading lets the service read tensors until the test ends.
func (s *site) reading() {
	ctx, stop := context.WithCancel(s.tb.Context())
	var running sync.WaitGroup
	running.Go(func() { s.ReadTensors(ctx) })
	s.tb.Cleanup(func() { stop(); running.Wait() })
}

// patient waits for what a comparison needs, as long as that takes.
func patient(f *faults) { f.compareWait = time.Hour }

func sideOf(m registry.Model, v registry.VersionRecord) registry.Side {
	return registry.Side{Model: m, Rev: v.Version.Tag.String(), Commit: v.Version.Commit}
}

func (s *site) compare(a, b registry.Side) registry.Comparison {
	s.tb.Helper()
	return s.compareIn(s.tb.Context(), a, b)
}

// compareIn compares in a context, which in a bubble is the bubble's.
func (s *site) compareIn(ctx context.Context, a, b registry.Side) registry.Comparison {
	s.tb.Helper()
	c, err := s.Compare(ctx, a, b)
	if err != nil {
		s.tb.Fatalf("Compare(%s, %s) = %v", a.Rev, b.Rev, err)
	}
	return c
}

// weightsText is "PATH PATH STATE REASON" and then "CHANGE NAME" of each tensor.
func weightsText(c registry.Comparison) []string {
	list := []string{}
	for _, w := range c.Weights {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", w.PathA, w.PathB, w.State, w.Reason)))
		if w.Tensors != nil {
			for _, p := range w.Tensors.Items {
				list = append(list, fmt.Sprintf("%s %s", p.Change, p.Name))
			}
		}
	}
	return list
}

func (s *site) wantWeights(what string, c registry.Comparison, want ...string) {
	s.tb.Helper()
	if diff := cmp.Diff(want, weightsText(c)); diff != "" {
		s.tb.Errorf("weights of %s (-want +got):\n%s", what, diff)
	}
}

func TestCompare(t *testing.T) {
	s := open(t, patient)
	s.reading()
	m := s.model(fraud)
	const policy = "environments:\n  production:\n    gates: [\"metrics.f1 >= %s\"]\n"
	before := safetensors(map[string]string{"embed": "1234", "head": "56", "old": "7"})
	after := safetensors(map[string]string{"embed": "1234", "head": "57", "new": "8"})
	s.upload(m, before)
	s.upload(m, after)
	v1 := s.publish(m, "v1.0.0", map[string]string{
		"README.md": "---\nlicense: mit\ntags: [a]\n---\n# Finds fraud\n", registry.PolicyFile: fmt.Sprintf(policy, "0.8"), "model.safetensors": pointer(before),
		"same.txt": "same", "gone.txt": "gone", "a.txt": "moved",
	})
	v2 := s.publish(m, "v2.0.0", map[string]string{
		"README.md": "---\nlicense: apache-2.0\ntags: [a]\n---\n\n# Finds fraud\n", registry.PolicyFile: fmt.Sprintf(policy, "0.9"), "model.safetensors": pointer(after),
		"same.txt": "same", "new.txt": "new", "b.txt": "moved",
	})
	s.evaluate(m, v1, 0.75)
	s.evaluate(m, v2, 0.5)
	s.evaluate(m, v2, 1)
	c := s.compare(sideOf(m, v1), sideOf(m, v2))
	if c.A.Version.String() != "v1.0.0" || c.B.Commit != v2.Version.Commit || c.B.Model != fraud || c.Identical || c.Computing() {
		t.Errorf("Compare = %+v and %+v, identical %t, computing %t; want v1.0.0 and v2.0.0, different and all known", c.A, c.B, c.Identical, c.Computing())
	}
	f := c.Files
	if got := [5]int{f.AddedCount, f.RemovedCount, f.ChangedCount, f.RenamedCount, f.Same}; got != [5]int{1, 1, 3, 1, 1} {
		t.Errorf("files added, removed, changed, renamed, same = %v, want [1 1 3 1 1]", got)
	}
	if len(c.Card.Fields) != 1 || c.Card.Fields[0].Name != "license" || string(c.Card.Fields[0].B) != `"apache-2.0"` || c.Card.TextDiffers {
		t.Errorf("card = %+v, want only another license", c.Card)
	}
	if len(c.Policy.Environments) != 1 || len(c.Policy.Environments[0].Gates) != 2 || !c.Policy.A.Present {
		t.Errorf("policy = %+v, want production with another gate", c.Policy)
	}
	if len(c.Evaluations) != 1 || len(c.Evaluations[0].Metrics) != 1 || *c.Evaluations[0].Metrics[0].Difference != 0.25 {
		t.Errorf("evaluations = %+v, want the newest f1 of each, and 0.25 as their difference", c.Evaluations)
	}
	s.wantWeights("v1.0.0 and v2.0.0", c, "model.safetensors model.safetensors ready", "bytes head", "added new", "removed old")
	if n := c.Weights[0].Tensors; n.Same != 1 || n.CountA != 3 || n.CountB != 3 {
		t.Errorf("tensors = %+v, want 3 on each side, 1 the same", n)
	}

	same := s.compare(sideOf(m, v2), sideOf(m, v2))
	if !same.Identical || same.Files.Differ() || same.Card.TextDiffers || len(same.Policy.Environments) > 0 {
		t.Errorf("Compare of a version with itself = %+v, want nothing that differs", same)
	}
	s.wantWeights("a version and itself", same, "model.safetensors model.safetensors same")

	// The same files and another evaluation: not identical.
	s.tag(fraud, "v3.0.0", registry.ObjectID(s.git(fraud, "commit-tree", "-m", "again", "-p", string(v2.Version.Commit), string(v2.Version.Commit)+"^{tree}")))
	v3 := s.reconcile(m).Published[0].Record
	if c := s.compare(sideOf(m, v2), sideOf(m, v3)); c.Identical || c.Files.Differ() {
		t.Errorf("Compare of versions with the same files, one evaluated = identical %t, files %+v; want not identical, the same files", c.Identical, c.Files)
	}
}

// What a commit holds is compared also when no version stands there: plain files come from Git, and a policy that cannot be read is said to be one.
func TestCompareOfACommitWithoutVersion(t *testing.T) {
	s := open(t, patient)
	s.reading()
	m := s.model(fraud)
	large := safetensors(map[string]string{"embed": "1234"})
	s.upload(m, large)
	files := map[string]string{
		"README.md": "---\nlicense: mit\n---\n# Finds\n", "plain.safetensors": safetensors(map[string]string{"w": "1"}), "large.safetensors": pointer(large), "a.txt": "a",
	}
	v1 := s.publish(m, "v1.0.0", files)
	files["plain.safetensors"] = safetensors(map[string]string{"w": "2"})
	files["README.md"] = "---\nlicense: mit\n---\n# Finds more\n"
	files[registry.PolicyFile] = "environments: nonsense\n"
	head := registry.Side{Model: m, Rev: "main", Commit: s.commit(fraud, "main", files)}
	c := s.compare(sideOf(m, v1), head)
	if f := c.Files; f.ChangedCount != 2 || f.AddedCount != 1 || f.Same != 2 || !c.B.Version.IsZero() {
		t.Errorf("files = %+v, B %+v; want 2 changed, 1 added, 2 the same and no version", f, c.B)
	}
	if len(c.Card.Fields) != 0 || !c.Card.TextDiffers {
		t.Errorf("card = %+v, want only another text", c.Card)
	}
	if p := c.Policy; p.A.Present || !p.B.Present || !strings.Contains(p.B.Problem, "environments is a text") || len(p.Environments) > 0 {
		t.Errorf("policy = %+v, want none on A and a problem on B", p)
	}
	s.wantWeights("a version and a commit", c,
		"large.safetensors large.safetensors same", "plain.safetensors plain.safetensors ready", "bytes w")
}

// counted counts how often each blob is read, and lets no one read while it is held.
type counted struct {
	lifecycle.Blobs
	mu    sync.Mutex
	reads map[digest.Digest]int
	held  chan struct{}
}

func (c *counted) Get(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	c.mu.Lock()
	c.reads[d]++
	held := c.held
	c.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return c.Blobs.Get(ctx, d)
}

// A file is read once, however many ask for it, and never when it is the same on both sides.
func TestCompareReadsAFileOnce(t *testing.T) {
	c := &counted{reads: map[digest.Digest]int{}}
	s := open(t, patient)
	m := s.model(fraud)
	shared, before, after := safetensors(map[string]string{"s": "1"}), safetensors(map[string]string{"w": "1"}), safetensors(map[string]string{"w": "2"})
	v1 := s.publish(m, "v1.0.0", map[string]string{"shared.safetensors": shared, "w.safetensors": before})
	v2 := s.publish(m, "v2.0.0", map[string]string{"moved.safetensors": shared, "w.safetensors": after})
	synctest.Test(t, func(t *testing.T) {
		s.serve(patient, func(f *faults) { c.Blobs, f.Blobs, c.held = f.Blobs, c, make(chan struct{}) })
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.ReadTensors(ctx)
		var asking sync.WaitGroup
		for range 16 {
			asking.Go(func() {
				got, err := s.Compare(t.Context(), sideOf(m, v1), sideOf(m, v2))
				if err != nil || got.Computing() {
					t.Errorf("Compare = %v, %v, want all known", weightsText(got), err)
				}
			})
		}
		synctest.Wait() // all want the files, and none is read
		close(c.held)
		asking.Wait()
		s.wantWeights("v1.0.0 and v2.0.0", s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2)),
			"shared.safetensors moved.safetensors same", "w.safetensors w.safetensors ready", "bytes w")
	})
	for name, tt := range map[string]struct {
		content string
		want    int
	}{"the file that is the same": {shared, 0}, "the file of A": {before, 1}, "the file of B": {after, 1}} {
		if got := c.reads[digest.FromString(tt.content)]; got != tt.want {
			t.Errorf("%s was read %d times by 17 comparisons, want %d", name, got, tt.want)
		}
	}
}

func TestCompareTellsWhyItCannot(t *testing.T) {
	s := open(t, patient)
	s.reading()
	m, other := s.model(fraud), s.model(registry.MustModelName("acme/other"))
	whole := safetensors(map[string]string{"w": "1"})
	hidden := safetensors(map[string]string{"secret": "2"})
	s.upload(other, hidden)
	v1 := s.publish(m, "v1.0.0", map[string]string{"a.safetensors": whole, "b.gguf": "GGUF", "c.pt": "1", "d.safetensors": whole})
	v2 := registry.Side{Model: m, Rev: "main", Commit: s.commit(fraud, "main", map[string]string{
		"a.safetensors": "no header", "b.gguf": "GGML", "c.pt": "2", "d.safetensors": pointer(hidden),
	})}
	for range 2 { // found out, and remembered
		s.wantWeights("files that cannot be read", s.compare(sideOf(m, v1), v2),
			"a.safetensors a.safetensors failed the tensors of a.safetensors cannot be listed: the header of 7306071583668334446 bytes is longer than the file",
			"b.gguf b.gguf failed the tensors of b.gguf cannot be listed: the file ends before its last tensor does",
			"c.pt c.pt unsupported the tensors of this format are not read; the bytes of the files differ",
			"d.safetensors d.safetensors failed LFS object "+digest.FromString(hidden).Encoded()+" of d.safetensors is not on the server")
	}
	if entries, err := os.ReadDir(filepath.Join(s.dir, "cache", "tensors")); err != nil || len(entries) != 4 {
		t.Errorf("lists that are kept = %v, %v, want those of four files: not the one that the model does not own", entries, err)
	}
}

// A list that is damaged is made again; a file that is damaged gives none.
func TestCompareWithDamage(t *testing.T) {
	s := open(t, patient)
	s.reading()
	m := s.model(fraud)
	before, after := safetensors(map[string]string{"w": "1"}), safetensors(map[string]string{"w": "2"})
	v1 := s.publish(m, "v1.0.0", map[string]string{"w.safetensors": before})
	v2 := s.publish(m, "v2.0.0", map[string]string{"w.safetensors": after})
	list := filepath.Join(s.dir, "cache", "tensors", digest.FromString(after).Encoded()+".jsonl")
	blob := filepath.Join(s.dir, "blobs", "sha256", digest.FromString(after).Encoded()[:2], digest.FromString(after).Encoded())
	good, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	write(blob, append(bytes.Clone(good[:len(good)-1]), '1'))
	s.wantWeights("a damaged file", s.compare(sideOf(m, v1), sideOf(m, v2)), "w.safetensors w.safetensors failed the server cannot read the files now; its log says why")
	if _, err := os.Stat(list); err == nil || len(s.log.lines("the file is damaged")) == 0 {
		t.Errorf("after a damaged file was read: a list is kept: %t; want none, and what is damaged in the log", err == nil)
	}
	write(blob, good)
	s.wantWeights("the file when it is whole again", s.compare(sideOf(m, v1), sideOf(m, v2)), "w.safetensors w.safetensors ready", "bytes w")
	whole, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s.serve()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.ReadTensors(ctx)
		for name, damage := range map[string][]byte{"nothing": {}, "half": whole[:len(whole)/2], "another version": bytes.Replace(whole, []byte(`:1`), []byte(`:9`), 1)} {
			write(list, damage)
			if c := s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2)); !c.Computing() {
				t.Errorf("Compare with %s in a list = %v, want that it is computed again", name, weightsText(c))
			}
			synctest.Wait()
			s.wantWeights("lists, one of which held "+name, s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2)), "w.safetensors w.safetensors ready", "bytes w")
		}
	})
}

// An answer does not wait for long, says how far the work is, and the work goes on behind it.
func TestCompareDoesNotWaitForLong(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	before, after := safetensors(map[string]string{"w": "1"}), safetensors(map[string]string{"w": "2"})
	v1 := s.publish(m, "v1.0.0", map[string]string{"w.safetensors": before})
	v2 := s.publish(m, "v2.0.0", map[string]string{"w.safetensors": after})
	c := &counted{reads: map[digest.Digest]int{}}
	synctest.Test(t, func(t *testing.T) {
		s.serve(func(f *faults) { c.Blobs, f.Blobs, c.held = f.Blobs, c, make(chan struct{}) })
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.ReadTensors(ctx)
		start := time.Now()
		got := s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2))
		if took := time.Since(start); took != 2*time.Second || !got.Computing() || got.Weights[0].TotalBytes != int64(len(before)+len(after)) {
			t.Errorf("Compare while files are read = %+v after %v, want computing, with the bytes to be read, after 2 s", got.Weights, took)
		}
		close(c.held)
		synctest.Wait()
		start = time.Now()
		s.wantWeights("files that were read", s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2)), "w.safetensors w.safetensors ready", "bytes w")
		if took := time.Since(start); took != 0 {
			t.Errorf("Compare of what is known took %v, want no time", took)
		}
	})
}

// What a stop breaks off is done by the next start.
func TestReadTensorsStops(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	v1 := s.publish(m, "v1.0.0", map[string]string{"w.safetensors": safetensors(map[string]string{"w": "1"})})
	v2 := s.publish(m, "v2.0.0", map[string]string{"w.safetensors": safetensors(map[string]string{"w": "2"})})
	c := &counted{reads: map[digest.Digest]int{}}
	synctest.Test(t, func(t *testing.T) {
		s.serve(func(f *faults) { c.Blobs, f.Blobs, c.held = f.Blobs, c, make(chan struct{}) })
		ctx, stop := context.WithCancel(t.Context())
		ended := false
		go func() {
			s.ReadTensors(ctx)
			ended = true
		}()
		s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2))
		stop()
		synctest.Wait()
		if !ended {
			t.Errorf("ReadTensors did not end with its context")
		}
		c.held = nil
		next, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.ReadTensors(next)
		s.wantWeights("files after a stop", s.compareIn(t.Context(), sideOf(m, v1), sideOf(m, v2)), "w.safetensors w.safetensors ready", "bytes w")
	})
}

// onnx writes a model with one tensor whose bytes lie in another file.
// Source: onnx.proto3, fields 7 of ModelProto, 5 of GraphProto, 2, 8, 13 and 14 of TensorProto.
func onnx(location string) string {
	text := func(number byte, s string) string { return string([]byte{number<<3 | 2, byte(len(s))}) + s }
	where := text(1, "location") + text(2, location)
	tensor := "\x10\x01" + text(8, "far") + text(13, where) + "\x70\x01"
	return text(7, text(5, tensor))
}

// Bytes in another file are compared by that file.
func TestCompareExternalData(t *testing.T) {
	s := open(t, patient)
	s.reading()
	m := s.model(fraud)
	v1 := s.publish(m, "v1.0.0", map[string]string{"onnx/m.onnx": onnx("w.bin"), "onnx/w.bin": "1", "w.bin": "0"})
	v2 := s.publish(m, "v2.0.0", map[string]string{"onnx/m.onnx": onnx("w.bin") + "\x08\x01", "onnx/w.bin": "1", "w.bin": "0"})
	v3 := s.publish(m, "v3.0.0", map[string]string{"onnx/m.onnx": onnx("w.bin") + "\x08\x02", "onnx/w.bin": "2", "w.bin": "0"})
	v4 := s.publish(m, "v4.0.0", map[string]string{"onnx/m.onnx": onnx("../w.bin"), "onnx/w.bin": "1", "w.bin": "1"})
	c := s.compare(sideOf(m, v1), sideOf(m, v2))
	if w := c.Weights[0]; w.Tensors == nil || w.Tensors.Same != 1 {
		t.Errorf("a tensor in the same other file = %+v, want it the same", weightsText(c))
	}
	if c := s.compare(sideOf(m, v2), sideOf(m, v3)); !slices.Contains(weightsText(c), "unknown far") {
		t.Errorf("a tensor in another file that differs = %v, want it unknown", weightsText(c))
	}
	if c := s.compare(sideOf(m, v1), sideOf(m, v4)); len(c.Weights) == 0 || c.Weights[0].Tensors == nil || c.Weights[0].Tensors.Same != 1 {
		t.Errorf("a tensor in a file of the same bytes elsewhere = %v, want it the same", weightsText(c))
	}
}

func BenchmarkCompare(b *testing.B) {
	s := open(b, patient)
	s.reading()
	m := s.model(fraud)
	large := func(seed byte) string {
		tensors := map[string]string{}
		for i := range 10_000 {
			content := bytes.Repeat([]byte{byte(i)}, 64)
			if i%10 == 0 {
				content[0] = seed
			}
			tensors[fmt.Sprintf("model.layers.%05d.weight", i)] = string(content)
		}
		return safetensors(tensors)
	}
	v1 := s.publish(m, "v1.0.0", map[string]string{"w.safetensors": large(1)})
	v2 := s.publish(m, "v2.0.0", map[string]string{"w.safetensors": large(2)})
	for b.Loop() {
		if c := s.compare(sideOf(m, v1), sideOf(m, v2)); c.Weights[0].State != registry.WeightsReady {
			b.Fatalf("Compare = %v, want ready", weightsText(c))
		}
	}
}
