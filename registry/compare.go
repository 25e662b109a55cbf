package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"iter"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// MaxListed bounds each list of a comparison, and the tensors that are listed in all of it. Counts are always exact.
const MaxListed = 1000

// Side is what is compared: a commit of a model.
type Side struct {
	Model  Model
	Rev    string // as it was asked for
	Commit ObjectID
}

// Comparison is how two commits differ.
type Comparison struct {
	A Compared `json:"a"`
	B Compared `json:"b"`

	// Identical says that they have the same files, and the same metrics where they were evaluated on the same data.
	Identical   bool             `json:"identical"`
	Files       FileDiff         `json:"files"`
	Card        CardDiff         `json:"card"`
	Evaluations []EvaluationDiff `json:"evaluations"`
	Policy      PolicyDiff       `json:"policy"`
	Weights     []WeightsDiff    `json:"weights"`
}

// Computing reports whether more will be known later.
func (c *Comparison) Computing() bool {
	return slices.ContainsFunc(c.Weights, func(w WeightsDiff) bool { return w.State == WeightsComputing })
}

// Compared is one side of a comparison.
type Compared struct {
	Model   ModelName `json:"model"`
	Rev     string    `json:"rev"`
	Commit  ObjectID  `json:"commit"`
	Version Tag       `json:"version,omitzero"` // that stands at the commit
}

// FileDiff is how two lists of files differ. Each list has at most MaxListed entries, by path.
type FileDiff struct {
	CountA       int        `json:"count_a"`
	CountB       int        `json:"count_b"`
	SizeBytesA   int64      `json:"size_bytes_a"`
	SizeBytesB   int64      `json:"size_bytes_b"`
	Same         int        `json:"same"` // at the same path, with the same bytes
	AddedCount   int        `json:"added_count"`
	RemovedCount int        `json:"removed_count"`
	ChangedCount int        `json:"changed_count"`
	RenamedCount int        `json:"renamed_count"`
	Added        []File     `json:"added"`
	Removed      []File     `json:"removed"`
	Changed      []FilePair `json:"changed"` // other bytes, or another mode
	Renamed      []FilePair `json:"renamed"` // the same bytes at another path
	Truncated    bool       `json:"truncated"`
}

// FilePair is a file on both sides.
type FilePair struct {
	A File `json:"a"`
	B File `json:"b"`
}

// Differ reports whether anything but the order differs.
func (d FileDiff) Differ() bool {
	return d.AddedCount+d.RemovedCount+d.ChangedCount+d.RenamedCount > 0
}

// CompareFiles says how the files of b differ from those of a. A file that is gone and one that is new with the same bytes are one that was
// renamed; which of several that have them is decided by the order of their paths. Empty files are not taken for renamed.
func CompareFiles(a, b []File) FileDiff {
	d := FileDiff{CountA: len(a), CountB: len(b), Added: []File{}, Removed: []File{}, Changed: []FilePair{}, Renamed: []FilePair{}}
	before, after := filesByPath(a), filesByPath(b)
	gone := map[digest.Digest][]File{}
	var removed, added []File
	for _, name := range slices.Sorted(maps.Keys(before)) {
		f := before[name]
		d.SizeBytesA += f.SizeBytes
		now, there := after[name]
		switch {
		case !there:
			removed = append(removed, f)
			if f.SizeBytes > 0 {
				gone[f.Digest] = append(gone[f.Digest], f)
			}
		case f.Digest != now.Digest || f.Executable != now.Executable:
			d.ChangedCount++
			d.Changed = listed(d.Changed, FilePair{f, now}, &d.Truncated)
		default:
			d.Same++
		}
	}
	renamed := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		f := after[name]
		d.SizeBytesB += f.SizeBytes
		if _, there := before[name]; there {
			continue
		}
		if from := gone[f.Digest]; len(from) > 0 {
			gone[f.Digest] = from[1:]
			renamed[from[0].Path] = true
			d.RenamedCount++
			d.Renamed = listed(d.Renamed, FilePair{from[0], f}, &d.Truncated)
			continue
		}
		added = append(added, f)
	}
	removed = slices.DeleteFunc(removed, func(f File) bool { return renamed[f.Path] })
	d.AddedCount, d.RemovedCount = len(added), len(removed)
	for _, f := range added {
		d.Added = listed(d.Added, f, &d.Truncated)
	}
	for _, f := range removed {
		d.Removed = listed(d.Removed, f, &d.Truncated)
	}
	return d
}

func filesByPath(files []File) map[string]File {
	m := make(map[string]File, len(files))
	for _, f := range files {
		m[f.Path] = f
	}
	return m
}

// listed adds an item to a list, unless it is full.
func listed[T any](list []T, item T, truncated *bool) []T {
	if len(list) >= MaxListed {
		*truncated = true
		return list
	}
	return append(list, item)
}

// FieldDiff is a field that differs; a side that lacks it is empty.
type FieldDiff struct {
	Name string          `json:"name"`
	A    json.RawMessage `json:"a,omitempty"`
	B    json.RawMessage `json:"b,omitempty"`
}

// CardDiff is how two model cards differ.
type CardDiff struct {
	Fields      []FieldDiff `json:"fields"`       // of the front matter, by name
	TextDiffers bool        `json:"text_differs"` // behind the front matter
	ProblemA    string      `json:"problem_a,omitempty"`
	ProblemB    string      `json:"problem_b,omitempty"`
}

// CompareCards says which fields of the front matter differ. A front matter that could not be read counts as one without fields, and the
// problem says so.
func CompareCards(a, b CardFacts) CardDiff {
	return CardDiff{Fields: compareFields(members(a.FrontMatter), members(b.FrontMatter)), ProblemA: a.Problem, ProblemB: b.Problem}
}

// members of a JSON object; none of anything else.
func members(data json.RawMessage) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(data, &m) != nil {
		return nil
	}
	return m
}

func compareFields(a, b map[string]json.RawMessage) []FieldDiff {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]json.RawMessage{}
	}
	maps.Copy(all, b)
	fields := []FieldDiff{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !bytes.Equal(a[name], b[name]) {
			fields = append(fields, FieldDiff{name, a[name], b[name]})
		}
	}
	return fields
}

// EvaluationDiff holds what was measured on the same data. A side without such an evaluation is nil.
type EvaluationDiff struct {
	Dataset Dataset            `json:"dataset"`
	A       *EvaluationSummary `json:"a,omitempty"`
	B       *EvaluationSummary `json:"b,omitempty"`
	Metrics []MetricDiff       `json:"metrics"` // by name
}

// EvaluationSummary is an evaluation without what it measured.
type EvaluationSummary struct {
	ID           string    `json:"id"`
	Samples      *int64    `json:"samples,omitempty"`
	Evaluator    string    `json:"evaluator,omitempty"`
	SelfReported bool      `json:"self_reported"`
	RecordedBy   string    `json:"recorded_by"`
	RecordedAt   time.Time `json:"recorded_at"`
}

// MetricDiff is one metric on both sides. A side without it is nil, and then so is the difference, which is B less A.
type MetricDiff struct {
	Name       string   `json:"name"`
	A          *float64 `json:"a,omitempty"`
	B          *float64 `json:"b,omitempty"`
	Difference *float64 `json:"difference,omitempty"`
}

// Differs reports whether there are values on both sides that are not the same, or one on only one of them.
func (m MetricDiff) Differs() bool { return m.Difference == nil || *m.Difference != 0 }

// CompareEvaluations puts side by side the newest evaluations of the same dataset: name, revision, digest, split and slice. One that is not
// self-reported comes before one that is. Evaluations are in the order in which they were recorded. Those that both sides have come first.
// At most MaxListed are given.
func CompareEvaluations(a, b []Evaluation) []EvaluationDiff {
	before, after := newest(a), newest(b)
	keys := slices.SortedFunc(maps.Keys(union(before, after)), func(x, y Dataset) int {
		return cmp.Or(
			cmp.Compare(sides(before, after, y), sides(before, after, x)), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Revision, y.Revision),
			cmp.Compare(x.Digest, y.Digest), cmp.Compare(x.Split, y.Split), cmp.Compare(x.Slice, y.Slice),
		)
	})
	diffs := []EvaluationDiff{}
	for _, key := range keys[:min(len(keys), MaxListed)] {
		d := EvaluationDiff{Dataset: key, A: summary(before[key]), B: summary(after[key]), Metrics: []MetricDiff{}}
		var left, right map[string]float64
		if e := before[key]; e != nil {
			left, d.Dataset = e.Metrics, e.Dataset
		}
		if e := after[key]; e != nil {
			right, d.Dataset = e.Metrics, e.Dataset
		}
		for _, name := range slices.Sorted(maps.Keys(union(left, right))) {
			d.Metrics = append(d.Metrics, compareMetric(name, left, right))
		}
		diffs = append(diffs, d)
	}
	return diffs
}

func union[K comparable, V any](a, b map[K]V) map[K]V {
	all := make(map[K]V, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// sides is how many of the two sides have an evaluation on the data.
func sides(a, b map[Dataset]*Evaluation, key Dataset) (n int) {
	for _, side := range []map[Dataset]*Evaluation{a, b} {
		if side[key] != nil {
			n++
		}
	}
	return n
}

// newest evaluations, by what makes a dataset the same; see sameData.
func newest(evaluations []Evaluation) map[Dataset]*Evaluation {
	m := map[Dataset]*Evaluation{}
	for i := range evaluations {
		e := &evaluations[i]
		key := e.Dataset
		key.URI = ""
		if before := m[key]; before == nil || !e.SelfReported || before.SelfReported {
			m[key] = e
		}
	}
	return m
}

func summary(e *Evaluation) *EvaluationSummary {
	if e == nil {
		return nil
	}
	return &EvaluationSummary{e.ID, e.Samples, e.Evaluator, e.SelfReported, e.RecordedBy, e.RecordedAt}
}

func compareMetric(name string, a, b map[string]float64) MetricDiff {
	d := MetricDiff{Name: name}
	before, inA := a[name]
	after, inB := b[name]
	if inA {
		d.A = &before
	}
	if inB {
		d.B = &after
	}
	if inA && inB {
		difference := after - before
		d.Difference = &difference
	}
	return d
}

// PolicyDiff is how the policies that stand in two commits differ. Which of them decides is another question: the one of the default branch.
type PolicyDiff struct {
	A            PolicyPresence    `json:"a"`
	B            PolicyPresence    `json:"b"`
	Environments []EnvironmentDiff `json:"environments"` // those that differ, when both sides are readable
}

// PolicyPresence says whether a commit has a policy that can be read.
type PolicyPresence struct {
	Present bool   `json:"present"`
	Problem string `json:"problem,omitempty"` // why it cannot be read
}

// ChangeOf says what became of something from one side to the other.
type ChangeOf string

// What can become of things. The last two are of tensors only.
const (
	WasAdded   ChangeOf = "added"
	WasRemoved ChangeOf = "removed"
	WasChanged ChangeOf = "changed" // of a tensor: another type or shape
	WasWritten ChangeOf = "bytes"   // the same type and shape, other bytes
	IsUnknown  ChangeOf = "unknown" // its bytes lie in another file, which differs
)

// EnvironmentDiff is how an environment of two policies differs.
type EnvironmentDiff struct {
	Name   EnvironmentName `json:"name"`
	Change ChangeOf        `json:"change"`
	Fields []FieldDiff     `json:"fields,omitempty"` // by name; those of evidence are "evidence.NAME"
	Gates  []GateDiff      `json:"gates,omitempty"`
}

// GateDiff is a gate that differs; the side that lacks it is empty.
type GateDiff struct {
	Name string `json:"name"`
	A    string `json:"a,omitempty"` // expression
	B    string `json:"b,omitempty"`
}

// ComparePolicies says which environments differ. Nil is a policy without any.
func ComparePolicies(a, b *Policy) []EnvironmentDiff {
	if a == nil {
		a = &Policy{}
	}
	if b == nil {
		b = &Policy{}
	}
	diffs := []EnvironmentDiff{}
	add := func(name EnvironmentName, change ChangeOf, before, after *Environment) {
		d := EnvironmentDiff{Name: name, Change: change, Fields: compareFields(fieldsOf(before), fieldsOf(after)), Gates: compareGates(before, after)}
		if change != WasChanged || len(d.Fields)+len(d.Gates) > 0 {
			diffs = append(diffs, d)
		}
	}
	for i := range a.Environments {
		before := &a.Environments[i]
		if after, ok := b.Environment(before.Name); ok {
			add(before.Name, WasChanged, before, after)
		} else {
			add(before.Name, WasRemoved, before, nil)
		}
	}
	for i := range b.Environments {
		if after := &b.Environments[i]; !hasEnvironment(a, after.Name) {
			add(after.Name, WasAdded, nil, after)
		}
	}
	return diffs
}

func hasEnvironment(p *Policy, name EnvironmentName) bool {
	_, ok := p.Environment(name)
	return ok
}

// fieldsOf are the fields of an environment as JSON, but for its name and its gates.
func fieldsOf(env *Environment) map[string]json.RawMessage {
	if env == nil {
		return nil
	}
	flat := *env
	flat.Gates, flat.Evidence = nil, nil
	fields := members(encoded(flat))
	delete(fields, "name")
	if env.Evidence == nil {
		return fields
	}
	evidence := members(encoded(env.Evidence))
	if age := env.Evidence.MaxAge; age > 0 {
		evidence["max_age"] = encoded(age.String())
	}
	if len(evidence) == 0 {
		fields["evidence"] = encoded(struct{}{})
	}
	for name, value := range evidence {
		fields["evidence."+name] = value
	}
	return fields
}

// encoded is a value of this package as JSON.
func encoded(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic("registry: " + err.Error()) // a bug: its types have nothing that JSON lacks
	}
	return data
}

// compareGates pairs gates by their names; two of the same name in one environment by their order.
func compareGates(a, b *Environment) []GateDiff {
	left, order := gatesOf(a)
	right, more := gatesOf(b)
	var diffs []GateDiff
	for _, key := range append(order, more...) {
		before, after := left[key], right[key]
		delete(left, key)
		delete(right, key)
		if before != after {
			diffs = append(diffs, GateDiff{key.name, before, after})
		}
	}
	return diffs
}

type gateKey struct {
	name string
	nth  int
}

// gatesOf are the expressions of an environment's gates, and the order of the gates.
func gatesOf(env *Environment) (map[gateKey]string, []gateKey) {
	exprs := map[gateKey]string{}
	if env == nil {
		return exprs, nil
	}
	seen := map[string]int{}
	var order []gateKey
	for _, g := range env.Gates {
		key := gateKey{g.Name, seen[g.Name]}
		seen[g.Name]++
		exprs[key] = g.Expr
		order = append(order, key)
	}
	return exprs, order
}

// Tensor is one tensor of a weight file.
type Tensor struct {
	Name      string        `json:"name"`
	Type      string        `json:"dtype"`
	Shape     []int64       `json:"shape"` // as the file has it: of GGUF the dimension that varies fastest first
	SizeBytes int64         `json:"size_bytes"`
	Digest    digest.Digest `json:"digest,omitempty"` // SHA-256 of its bytes; empty when they lie in another file
	External  *ExternalData `json:"external,omitempty"`
}

// ExternalData is where the bytes of a tensor of an ONNX file lie: in another file.
// Source: onnx/onnx, docs/ExternalData.md.
type ExternalData struct {
	Location    string        `json:"location"` // relative to the folder of the ONNX file
	OffsetBytes int64         `json:"offset_bytes,omitempty"`
	LengthBytes int64         `json:"length_bytes,omitempty"` // 0 is to the end of the file
	Digest      digest.Digest `json:"digest,omitempty"`       // of the whole file; empty when it is not among the files
}

// sameType reports whether two tensors have the same type and shape.
func (t *Tensor) sameType(other *Tensor) bool {
	return t.Type == other.Type && slices.Equal(t.Shape, other.Shape)
}

// TensorDiff is how the tensors of two weight files differ.
type TensorDiff struct {
	CountA       int          `json:"count_a"`
	CountB       int          `json:"count_b"`
	Same         int          `json:"same"`
	AddedCount   int          `json:"added_count"`
	RemovedCount int          `json:"removed_count"`
	ChangedCount int          `json:"changed_count"` // another type or shape
	BytesCount   int          `json:"bytes_count"`   // the same type and shape, other bytes
	UnknownCount int          `json:"unknown_count"` // their bytes lie in another file, which differs
	Items        []TensorPair `json:"items"`         // those that differ, by name
	Truncated    bool         `json:"truncated"`
}

// TensorPair is a tensor that differs; the side that lacks it is nil.
type TensorPair struct {
	Name   string   `json:"name"`
	Change ChangeOf `json:"change"`
	A      *Tensor  `json:"a,omitempty"`
	B      *Tensor  `json:"b,omitempty"`
}

// CompareTensors says how the tensors of b differ from those of a, listing at most limit. Both come sorted by name, each name once, and
// are read to their ends. The first error of either ends the comparison.
func CompareTensors(a, b iter.Seq2[Tensor, error], limit int) (TensorDiff, error) {
	d := TensorDiff{Items: []TensorPair{}}
	nextA, stopA := iter.Pull2(a)
	defer stopA()
	nextB, stopB := iter.Pull2(b)
	defer stopB()
	take := func(next func() (Tensor, error, bool), count *int) (*Tensor, error) {
		t, err, ok := next()
		if !ok || err != nil {
			return nil, err
		}
		*count++
		return &t, nil
	}
	before, err := take(nextA, &d.CountA)
	if err != nil {
		return d, err
	}
	after, err := take(nextB, &d.CountB)
	for err == nil && (before != nil || after != nil) {
		switch {
		case after == nil || before != nil && before.Name < after.Name:
			d.add(TensorPair{before.Name, WasRemoved, before, nil}, limit)
			before, err = take(nextA, &d.CountA)
		case before == nil || after.Name < before.Name:
			d.add(TensorPair{after.Name, WasAdded, nil, after}, limit)
			after, err = take(nextB, &d.CountB)
		default:
			d.add(TensorPair{before.Name, changeOf(before, after), before, after}, limit)
			if before, err = take(nextA, &d.CountA); err == nil {
				after, err = take(nextB, &d.CountB)
			}
		}
	}
	return d, err
}

// changeOf is what became of a tensor, or nothing.
func changeOf(a, b *Tensor) ChangeOf {
	switch {
	case !a.sameType(b):
		return WasChanged
	case a.External != nil && b.External != nil:
		if x, y := *a.External, *b.External; x.Digest != "" && x.Digest == y.Digest && x.OffsetBytes == y.OffsetBytes && x.LengthBytes == y.LengthBytes {
			return ""
		}
		return IsUnknown
	case a.External != nil || b.External != nil:
		return IsUnknown
	case a.Digest != b.Digest:
		return WasWritten
	}
	return ""
}

func (d *TensorDiff) add(p TensorPair, limit int) {
	switch p.Change {
	case WasAdded:
		d.AddedCount++
	case WasRemoved:
		d.RemovedCount++
	case WasChanged:
		d.ChangedCount++
	case WasWritten:
		d.BytesCount++
	case IsUnknown:
		d.UnknownCount++
	default:
		d.Same++
		return
	}
	if len(d.Items) >= limit {
		d.Truncated = true
		return
	}
	d.Items = append(d.Items, p)
}

// WeightsState says how far the comparison of two weight files is.
type WeightsState string

// The states of a comparison of weight files.
const (
	WeightsSame        WeightsState = "same"      // their bytes are
	WeightsReady       WeightsState = "ready"     // see the tensors
	WeightsComputing   WeightsState = "computing" // ask again
	WeightsFailed      WeightsState = "failed"    // see the reason
	WeightsUnsupported WeightsState = "unsupported"
)

// WeightsDiff is how two weight files differ.
type WeightsDiff struct {
	PathA      string       `json:"path_a"`
	PathB      string       `json:"path_b"`
	Format     string       `json:"format"`
	State      WeightsState `json:"state"`
	Reason     string       `json:"reason,omitempty"`      // of failed and unsupported
	ReadBytes  int64        `json:"read_bytes,omitempty"`  // while it is computed: what was read so far
	TotalBytes int64        `json:"total_bytes,omitempty"` // of so much
	Tensors    *TensorDiff  `json:"tensors,omitempty"`     // when it is ready
}

// WeightPair are the weight files of one format on both sides that belong together.
type WeightPair struct {
	A, B   File
	Format string
}

// PairWeights finds the weight files that belong together: those at the same path, then those with the same bytes, then the only ones that are
// left of a format on each side. format names the format of a file by its path; it is empty for what is no weight file. What has no other
// is left out. Pairs are sorted by the path of b.
func PairWeights(a, b []File, format func(path string) string) []WeightPair {
	var pairs []WeightPair
	left, right := map[string]File{}, map[string]File{}
	for _, f := range a {
		if format(f.Path) != "" {
			left[f.Path] = f
		}
	}
	for _, f := range b {
		if format(f.Path) != "" {
			right[f.Path] = f
		}
	}
	pair := func(from, to File) {
		if x, y := format(from.Path), format(to.Path); x == y {
			delete(left, from.Path)
			delete(right, to.Path)
			pairs = append(pairs, WeightPair{from, to, x})
		}
	}
	for name, from := range left {
		if to, ok := right[name]; ok {
			pair(from, to)
		}
	}
	byDigest := map[digest.Digest][]string{}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		byDigest[left[name].Digest] = append(byDigest[left[name].Digest], name)
	}
	for _, name := range slices.Sorted(maps.Keys(right)) {
		to := right[name]
		if from := byDigest[to.Digest]; len(from) > 0 {
			byDigest[to.Digest] = from[1:]
			pair(left[from[0]], to)
		}
	}
	only := func(files map[string]File) map[string][]File {
		m := map[string][]File{}
		for name, f := range files {
			m[format(name)] = append(m[format(name)], f)
		}
		return m
	}
	after := only(right)
	for name, from := range only(left) {
		if to := after[name]; len(from) == 1 && len(to) == 1 {
			pair(from[0], to[0])
		}
	}
	slices.SortFunc(pairs, func(x, y WeightPair) int { return strings.Compare(x.B.Path, y.B.Path) })
	return pairs
}

// ExternalPath is the path, among the files of a model, of what an ONNX file at from names as the location of tensors; it is empty when
// that leads out of the model.
// Source: onnx/onnx, docs/ExternalData.md: a location is relative to the ONNX file, and ".." is not allowed in it.
func ExternalPath(from, location string) string {
	name := path.Join(path.Dir(from), location)
	if location == "" || path.IsAbs(location) || name == ".." || strings.HasPrefix(name, "../") {
		return ""
	}
	return name
}

// ShapeText is a shape as people write it: "[2, 3]".
func ShapeText(shape []int64) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, n := range shape {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.FormatInt(n, 10))
	}
	return b.String() + "]"
}
