package inspect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/herdbook/herdbook/registry"
)

// streamed is content that can be read forward only, a few bytes at a time.
func streamed(content string) io.Reader { return iotest.HalfReader(strings.NewReader(content)) }

// oneOf is a tensor with those bytes.
func oneOf(name, elementType, content string, shape ...int64) registry.Tensor {
	if shape == nil {
		shape = []int64{}
	}
	return registry.Tensor{Name: name, Type: elementType, Shape: shape, SizeBytes: int64(len(content)), Digest: digest.FromString(content)}
}

// ggufTensors is a file of tensors behind a text whose length shifts where they begin.
func ggufTensors(alignment int, shift string, descriptions, data string) string {
	count := uint64(strings.Count(descriptions, ";"))
	header := gguf(magic, uint32(3), count, uint64(2), "general.alignment", uint32(4), uint32(alignment), "k", uint32(8), shift)
	for one := range strings.SplitSeq(strings.TrimSuffix(descriptions, ";"), ";") {
		var name string
		var offset uint64
		var elementType, rows, columns uint32
		if _, err := fmt.Sscanf(one, "%s %d %d %d %d", &name, &elementType, &columns, &rows, &offset); err != nil {
			panic(err)
		}
		header += gguf(name, uint32(2), uint64(columns), uint64(rows), elementType, offset)
	}
	header += strings.Repeat("\x00", (alignment-len(header)%alignment)%alignment)
	return header + data
}

// onnxOf is a model of a graph with those fields.
func onnxOf(fields ...string) string { return varint(1, 8) + field(7, fields...) }

// typed is an initializer of F32 and I32 and so on with content in the field of that number.
func typed(name string, elementType int64, content string, dims ...int64) string {
	var b strings.Builder
	for _, d := range dims {
		b.WriteString(varint(1, d))
	}
	return field(5, b.String(), varint(2, elementType), field(8, name), content)
}

func packed(number protowire.Number, values ...uint64) string {
	var b []byte
	for _, v := range values {
		b = protowire.AppendVarint(b, v)
	}
	return field(number, string(b))
}

func fixed32(number protowire.Number, value uint32) string {
	return string(protowire.AppendFixed32(protowire.AppendTag(nil, number, protowire.Fixed32Type), value))
}

func external(entries ...string) string {
	all := varint(14, 1)
	for i := 0; i < len(entries); i += 2 {
		all += field(13, field(1, entries[i]), field(2, entries[i+1]))
	}
	return all
}

func TestTensors(t *testing.T) {
	const f1 = "\x00\x00\x80\x3f" // 1 as F32
	tests := []struct {
		name, path, content string
		want                List
	}{
		{
			"safetensors, in another order than their bytes", "dir/MODEL.safetensors",
			safetensors(`{"z":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"__metadata__":{"a":"b"},"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a\u0001":{"dtype":"F16","shape":[0,9],"data_offsets":[4,4]}}   `, 0) + f1 + "xy",
			List{Safetensors, []registry.Tensor{oneOf("a\x01", "F16", "", 0, 9), oneOf("b", "F32", f1), oneOf("z", "U8", "xy", 2)}},
		},
		{"safetensors without tensors", "x.safetensors", safetensors(`{}`, 0), List{Safetensors, []registry.Tensor{}}},
		{
			"GGUF with padding between", "x.gguf",
			ggufTensors(64, "shift", "b 0 3 1 0; a 24 5 1 64; q 8 32 2 128;", "123456789012"+strings.Repeat("-", 52)+"abcde"+strings.Repeat("-", 59)+strings.Repeat("q", 68)),
			List{GGUF, []registry.Tensor{oneOf("a", "I8", "abcde", 5, 1), oneOf("b", "F32", "123456789012", 3, 1), oneOf("q", "Q8_0", strings.Repeat("q", 68), 32, 2)}},
		},
		{
			"GGUF of a type whose size is not known: up to the next tensor", "x.gguf",
			ggufTensors(32, "", "new 99 7 1 0; empty 99 0 1 0; other 99 1 1 32; last 24 2 1 64;", strings.Repeat("n", 32)+strings.Repeat("o", 32)+"zz"),
			List{GGUF, []registry.Tensor{
				oneOf("empty", "GGML_99", "", 0, 1), oneOf("last", "I8", "zz", 2, 1), oneOf("new", "GGML_99", strings.Repeat("n", 32), 7, 1),
				oneOf("other", "GGML_99", strings.Repeat("o", 32), 1, 1),
			}},
		},
		{
			"ONNX: initializers, and the same values in every form", "x.onnx",
			onnxOf(typed("raw", 1, field(9, f1), 1), typed("packed", 1, field(4, f1), 1), typed("single", 1, fixed32(4, math.Float32bits(1)), 1),
				typed("int", 6, packed(5, 1, math.MaxUint64), 2), typed("raw int", 6, field(9, "\x01\x00\x00\x00\xff\xff\xff\xff"), 2),
				typed("byte", 2, varint(5, 7)+varint(5, 8), 2), typed("long", 7, packed(7, 3), 1), typed("double", 11, field(10, "12345678"), 1),
				typed("text", 8, field(6, "a")+field(6, "bc"), 2)),
			List{ONNX, []registry.Tensor{
				oneOf("byte", "U8", "\x07\x08", 2), oneOf("double", "F64", "12345678", 1), oneOf("int", "I32", "\x01\x00\x00\x00\xff\xff\xff\xff", 2),
				oneOf("long", "I64", "\x03\x00\x00\x00\x00\x00\x00\x00", 1), oneOf("packed", "F32", f1, 1), oneOf("raw", "F32", f1, 1),
				oneOf("raw int", "I32", "\x01\x00\x00\x00\xff\xff\xff\xff", 2), oneOf("single", "F32", f1, 1),
				{Name: "text", Type: "STRING", Shape: []int64{2}, SizeBytes: 3, Digest: digest.FromString("\x01\x00\x00\x00\x00\x00\x00\x00a\x02\x00\x00\x00\x00\x00\x00\x00bc")},
			}},
		},
		{
			"ONNX: tensors of nodes are named by the way to them", "x.onnx",
			onnxOf(
				field(1, field(2, "out"), field(4, "Constant"), field(5, field(1, "value"), field(5, varint(2, 2), field(9, "c")))),
				field(1, field(4, "Two"), field(5, field(5, varint(2, 2), field(9, "d"))), field(5, field(10, varint(2, 2), field(9, "e")), field(10, varint(2, 2), field(9, "f")))),
				field(1, field(3, "If_0"), field(5, field(1, "then_branch"), field(6, typed("w", 2, field(9, "t")), constant(varint(2, 2)+field(9, "k"))))),
				typed("w", 2, field(9, "w")), typed("w", 2, field(9, "v")), typed("", 2, field(9, "u")),
				field(15, field(1, varint(2, 2), field(8, "s"), field(9, "1")), field(2, varint(2, 7), packed(7, 5))),
			) + field(25, field(1, "f"), field(7, field(3, "n"), field(5, field(1, "value"), field(5, varint(2, 2), field(9, "g"))))),
			List{ONNX, []registry.Tensor{
				oneOf("If_0.then_branch/node[0].value", "U8", "k"), oneOf("If_0.then_branch/w", "U8", "t"), oneOf("function f/n.value", "U8", "g"),
				oneOf("node[1].attribute[0]", "U8", "d"), oneOf("node[1].attribute[1]", "U8", "e"), oneOf("node[1].attribute[1]#2", "U8", "f"), oneOf("out.value", "U8", "c"), oneOf("s", "U8", "1"),
				oneOf("s.indices", "I64", "\x05\x00\x00\x00\x00\x00\x00\x00"), oneOf("unnamed", "U8", "u"), oneOf("w", "U8", "w"), oneOf("w#2", "U8", "v"),
			}},
		},
		{
			"ONNX: bytes in another file", "x.onnx",
			onnxOf(typed("far", 1, external("location", "weights.bin", "offset", "4096", "length", "64", "checksum", "x"), 16)),
			List{ONNX, []registry.Tensor{{
				Name: "far", Type: "F32", Shape: []int64{16}, SizeBytes: 64,
				External: &registry.ExternalData{Location: "weights.bin", OffsetBytes: 4096, LengthBytes: 64},
			}}},
		},
	}
	for _, tt := range tests {
		got, err := Tensors(tt.path, streamed(tt.content), int64(len(tt.content)))
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("Tensors of %s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func TestTensorsRefuses(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`, i)
		}
		return "{" + b.String()[1:] + "}"
	}
	u8 := func(name string, begin, end int) string {
		return fmt.Sprintf(`%q:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`, name, end-begin, begin, end)
	}
	tests := []struct{ name, path, content, want string }{
		{"another format", "x.bin", "", "its format is not known"},
		{"safetensors that overlap and leave a hole", "x.safetensors", safetensors("{"+u8("a", 0, 4)+","+u8("b", 2, 6)+","+u8("c", 8, 10)+"}", 10), `tensor "b" overlaps with another, or with the header`},
		{"safetensors that lie in each other and leave a hole", "x.safetensors", safetensors("{"+u8("a", 0, 8)+","+u8("b", 4, 6)+"}", 10), `tensor "b" overlaps with another, or with the header`},
		{"safetensors out of range", "x.safetensors", safetensors("{"+u8("a", 0, 9)+"}", 8), `tensor "a": it lies at 0 to 9 of 8 bytes`},
		{"too many safetensors", "x.safetensors", safetensors(many(MaxTensors+1), 0), "it has more than 200000 tensors"},
		{"a long name", "x.safetensors", safetensors(`{"`+strings.Repeat("n", 5000)+`":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "the name of a tensor is longer than 4096 bytes"},

		{"a million tensors of GGUF", "x.gguf", gguf(magic, uint32(3), uint64(1_000_001), uint64(0)), "1000001 tensors are more than 1000000"},
		{"GGUF that overlaps", "x.gguf", ggufTensors(32, "", "a 0 16 1 0; b 0 1 1 32;", strings.Repeat("-", 64)), `tensor "b" overlaps with another, or with the header`},
		{"GGUF out of range", "x.gguf", ggufTensors(32, "", "a 0 16 1 32;", strings.Repeat("-", 64)), `tensor "a" takes 64 bytes from`},
		{"GGUF far out of range", "x.gguf", ggufTensors(32, "", "a 0 16 1 4611686018427387904;", strings.Repeat("-", 64)), `tensor "a" begins at 4611686018427387904, behind the end of the file`},
		{"GGUF with an offset of 2^63", "x.gguf", ggufTensors(32, "", "a 0 16 1 9223372036854775808;", ""), "9223372036854775808 bytes before a tensor are more than 9223372036854775807"},
		{"GGUF between the multiples", "x.gguf", ggufTensors(32, "", "a 0 1 1 4;", strings.Repeat("-", 64)), `tensor "a" begins at 4, which is no multiple of 32`},
		{"GGUF of half a block", "x.gguf", ggufTensors(32, "", "a 8 31 1 0;", strings.Repeat("-", 64)), `tensor "a": its rows are no multiple of the 32 elements in a block of Q8_0`},
		{"GGUF of too many bytes", "x.gguf", ggufTensors(32, "", "a 28 4294967295 2147483647 0;", ""), `tensor "a": the tensors have more elements than can be counted`},
		{"GGUF with a name twice", "x.gguf", ggufTensors(32, "", "a 24 1 1 0; a 24 1 1 32;", strings.Repeat("-", 64)), `two tensors are named "a"`},
		{"GGUF with a name that is no text", "x.gguf", gguf(magic, uint32(3), uint64(1), uint64(0), "\xff", uint32(0), uint32(24), uint64(0)), `the name of a tensor is no text: ""`},
		{"GGUF with an alignment of 0", "x.gguf", gguf(magic, uint32(3), uint64(0), uint64(1), "general.alignment", uint32(4), uint32(0)), "the alignment is 0, not a power of two up to 1048576"},
		{"GGUF with an alignment of 48", "x.gguf", gguf(magic, uint32(3), uint64(0), uint64(1), "general.alignment", uint32(4), uint32(48)), "the alignment is 48, not a power of two up to 1048576"},

		{"ONNX with a bad offset", "x.onnx", onnxOf(typed("a", 1, external("offset", "-1"))), `the offset of a tensor in another file is "-1"`},
		{"ONNX with a long name", "x.onnx", onnxOf(typed(strings.Repeat("n", 5000), 1, "")), "a name is longer than 4096 bytes"},
		{"ONNX with numbers beyond their field", "x.onnx", onnxOf(typed("a", 6, field(5, "\x80")), typed("b", 6, "")), "it is no protobuf message"},
	}
	for _, tt := range tests {
		list, err := Tensors(tt.path, streamed(tt.content), int64(len(tt.content)))
		var bad *FormatError
		if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("Tensors of %s = %+v, %v, want the FormatError %q", tt.name, list.Tensors[:min(len(list.Tensors), 3)], err, tt.want)
		}
	}
}

// A file that is shorter than its size is an error at every place, and never a sum of less.
func TestTensorsOfCutFiles(t *testing.T) {
	for path, content := range map[string]string{
		"x.safetensors": safetensors(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4),
		"x.gguf":        ggufTensors(32, "", "a 24 4 1 0;", "1234"),
		"x.onnx":        onnxOf(typed("a", 2, field(9, "1234"), 4)),
	} {
		for cut := range len(content) {
			list, err := Tensors(path, streamed(content[:cut]), int64(len(content)))
			var bad *FormatError
			if !errors.As(err, &bad) {
				t.Errorf("Tensors(%s) of the first %d of %d bytes = %+v, %v, want a FormatError", path, cut, len(content), list, err)
			}
		}
	}
}

func TestTensorsTellsFaultsOfTheDisk(t *testing.T) {
	content := safetensors(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4)
	for at := range len(content) {
		_, err := Tensors("x.safetensors", io.MultiReader(strings.NewReader(content[:at]), iotest.ErrReader(errDisk)), int64(len(content)))
		var bad *FormatError
		if !errors.Is(err, errDisk) || errors.As(err, &bad) {
			t.Errorf("Tensors from a disk that breaks at %d: %v, want its error", at, err)
		}
	}
}

// zeros is content that nobody holds.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A tensor of 64 MiB is summed in the memory that one of a byte needs.
func TestTensorsHoldsNoTensor(t *testing.T) {
	const size = 64 << 20
	header := safetensors(fmt.Sprintf(`{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%[1]d]}}`, size), 0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Tensors("x.safetensors", io.MultiReader(strings.NewReader(header), zeros{}), int64(len(header))+size); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 1<<20 {
		t.Errorf("Tensors of a tensor of %d bytes allocates %d bytes, want less than 1 MiB", size, bytes)
	}
}

func fuzzTensors(f *testing.F, path string, seeds ...string) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		list, err := Tensors(path, bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		if _, err := Header(path, bytes.NewReader(content), int64(len(content))); err != nil {
			t.Errorf("Tensors = %d tensors, and Header = %v, want no error of either", len(list.Tensors), err)
		}
		known := map[digest.Digest]bool{}
		for i, tensor := range list.Tensors {
			if i > 0 && tensor.Name <= list.Tensors[i-1].Name {
				t.Errorf("Tensors = %q behind %q, want them sorted and each once", tensor.Name, list.Tensors[i-1].Name)
			}
			known[tensor.Digest] = true
			// Raw bytes are bytes of the file.
			if path != "x.onnx" && !hasPart(content, int(tensor.SizeBytes), tensor.Digest) {
				t.Errorf("tensor %q of %d bytes has the sum %s, which no part of the file has", tensor.Name, tensor.SizeBytes, tensor.Digest)
			}
		}
		var kept bytes.Buffer
		if err := WriteList(&kept, list, ""); err != nil {
			t.Fatal(err)
		}
		back, err := readAll(kept.Bytes())
		if diff := cmp.Diff(list.Tensors, back); diff != "" && len(list.Tensors) > 0 || err != nil {
			t.Errorf("ReadList of what WriteList wrote: %v (-want +got):\n%s", err, diff)
		}
	})
}

// hasPart reports whether n bytes that follow each other have that sum.
func hasPart(content []byte, n int, want digest.Digest) bool {
	for at := 0; at+n <= len(content); at++ {
		if digest.FromBytes(content[at:at+n]) == want {
			return true
		}
	}
	return false
}

func readAll(data []byte) ([]registry.Tensor, error) {
	l, err := ReadList(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	var all []registry.Tensor
	for tensor, err := range l.Tensors() {
		if err != nil {
			return nil, err
		}
		all = append(all, tensor)
	}
	return all, nil
}

func FuzzTensorsSafetensors(f *testing.F) {
	fuzzTensors(f, "x.safetensors", safetensors(`{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"U8","shape":[],"data_offsets":[12,13]}}`, 13), safetensors("{}", 0))
}

func FuzzTensorsGGUF(f *testing.F) {
	fuzzTensors(f, "x.gguf", ggufModel(3), ggufTensors(32, "x", "a 24 4 1 0; b 99 1 1 32;", "1234"+strings.Repeat("-", 28)+"xyz"))
}

func FuzzTensorsONNX(f *testing.F) {
	fuzzTensors(f, "x.onnx", onnxModelFile, nested(3), onnxOf(typed("a", 6, packed(5, 1, 2), 2), typed("b", 1, external("location", "w", "offset", "8"))))
}

var someList = List{Safetensors, []registry.Tensor{
	oneOf("a", "F32", "1234", 1), oneOf("b\n<>&\u2028", "F16", "", 0, 9),
	{Name: "c", Type: "F32", Shape: []int64{}, External: &registry.ExternalData{Location: "w", OffsetBytes: 1, LengthBytes: 2}},
}}

func written(t testing.TB, l List, problem string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteList(&b, l, problem); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestListIsReadBack(t *testing.T) {
	data := written(t, someList, "")
	got, err := readAll(data)
	if diff := cmp.Diff(someList.Tensors, got); diff != "" || err != nil {
		t.Errorf("ReadList of what was written: %v (-want +got):\n%s", err, diff)
	}
	l, err := ReadList(bytes.NewReader(written(t, List{Format: GGUF}, "it is cut")))
	if err != nil || l.Format != GGUF || l.Problem != "it is cut" {
		t.Errorf("ReadList of a problem = %+v, %v, want the format and the problem", l, err)
	}
}

// Nothing that is not what was written is taken for a list: no cut, and no other byte.
func TestDamagedListIsSaidToBe(t *testing.T) {
	data := written(t, someList, "")
	for cut := range len(data) {
		if got, err := readAll(data[:cut]); !errors.Is(err, ErrDamaged) {
			t.Errorf("ReadList of the first %d of %d bytes = %v, %v, want ErrDamaged", cut, len(data), got, err)
		}
	}
	end := bytes.LastIndex(data, []byte(`{"tensors"`))
	for at := range data[:end] {
		other := slices.Clone(data)
		other[at] ^= 1
		if got, err := readAll(other); !errors.Is(err, ErrDamaged) {
			t.Errorf("ReadList with another byte at %d = %v, %v, want ErrDamaged", at, got, err)
		}
	}
	counted := bytes.Replace(data, []byte(`{"tensors":3`), []byte(`{"tensors":4`), 1)
	if got, err := readAll(counted); !errors.Is(err, ErrDamaged) {
		t.Errorf("ReadList with another count = %v, %v, want ErrDamaged", got, err)
	}
	disordered := List{Safetensors, []registry.Tensor{someList.Tensors[1], someList.Tensors[0]}}
	if got, err := readAll(written(t, disordered, "")); !errors.Is(err, ErrDamaged) {
		t.Errorf("ReadList of tensors in another order = %v, %v, want ErrDamaged", got, err)
	}
}

func FuzzReadList(f *testing.F) {
	f.Add(written(f, someList, ""))
	f.Add(written(f, List{Format: GGUF}, "why"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ReadList(bytes.NewReader(data))
		if err != nil {
			return
		}
		again := List{Format: l.Format}
		for tensor, err := range l.Tensors() {
			if err != nil {
				return
			}
			again.Tensors = append(again.Tensors, tensor)
		}
		back, err := readAll(written(t, again, l.Problem))
		if diff := cmp.Diff(again.Tensors, back); diff != "" || err != nil {
			t.Errorf("ReadList of what it read and was written anew: %v (-want +got):\n%s", err, diff)
		}
	})
}

// The quick way to read a line gives what the other one gives, or nothing.
func FuzzPlainLine(f *testing.F) {
	for line := range bytes.Lines(written(f, someList, "")) {
		f.Add(line)
	}
	for _, line := range []string{
		`{"name":"a","dtype":"F32","shape":[1,20],"size_bytes":0,"digest":"sha256:0"}`, `{"name":"a","dtype":"F32","shape":[01],"size_bytes":-1,"digest":""}`,
		`{"name":"a","dtype":"F32","shape":[1,],"size_bytes":+1,"digest":""}`, `{"name":"a\\","dtype":"F32","shape":[],"size_bytes":1,"digest":"x"}`,
	} {
		f.Add([]byte(line + "\n"))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		got, ok := plainLine(line)
		if !ok {
			return
		}
		want, end, err := anyLine(line)
		if diff := cmp.Diff(want, got); diff != "" || end != nil || err != nil {
			t.Errorf("plainLine(%q) is not what anyLine reads: %v, end %v (-anyLine +plainLine):\n%s", line, err, end, diff)
		}
	})
}

// Nearly all lines are read the quick way.
func TestPlainLine(t *testing.T) {
	plain := 0
	for line := range bytes.Lines(written(t, someList, "")) {
		if _, ok := plainLine(line); ok {
			plain++
		}
	}
	if plain != 1 {
		t.Errorf("plainLine reads %d lines of a list, want only that of a: one needs escapes, one lies in another file", plain)
	}
}

func BenchmarkTensors(b *testing.B) {
	const size = 64 << 20
	b.Run("one of 64 MiB", func(b *testing.B) {
		header := safetensors(fmt.Sprintf(`{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%[1]d]}}`, size), 0)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := Tensors("x.safetensors", io.MultiReader(strings.NewReader(header), zeros{}), int64(len(header))+size); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("10000 of 6.4 KiB", func(b *testing.B) {
		const n = 10_000
		entries := map[string]any{}
		for i := range n {
			entries[fmt.Sprintf("model.layers.%d.mlp.down_proj.weight", i)] = map[string]any{"dtype": "U8", "shape": []int{6400}, "data_offsets": []int{i * 6400, (i + 1) * 6400}}
		}
		header, err := json.Marshal(entries)
		if err != nil {
			b.Fatal(err)
		}
		file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		file = append(file, header...)
		b.SetBytes(n * 6400)
		for b.Loop() {
			if _, err := Tensors("x.safetensors", io.MultiReader(bytes.NewReader(file), zeros{}), int64(len(file))+n*6400); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReadList(b *testing.B) {
	var l List
	for i := range 10_000 {
		l.Tensors = append(l.Tensors, oneOf(fmt.Sprintf("model.layers.%05d.weight", i), "BF16", fmt.Sprint(i), 4096, 4096))
	}
	data := written(b, l, "")
	b.ReportMetric(float64(len(data)), "bytes")
	for b.Loop() {
		if _, err := readAll(data); err != nil {
			b.Fatal(err)
		}
	}
}
