package inspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestKnows(t *testing.T) {
	for name, want := range map[string]bool{
		"model.safetensors": true, "MODEL.GGUF": true, "silero_vad.onnx": true, "model.onnx_data": false, "model.bin": false, "onnx": false, "": false,
	} {
		if got := Knows(name); got != want {
			t.Errorf("Knows(%q) = %t, want %t", name, got, want)
		}
	}
}

// safetensors writes a file of a header and so many bytes of tensors.
func safetensors(header string, dataBytes int) string {
	var b strings.Builder
	_ = binary.Write(&b, binary.LittleEndian, uint64(len(header)))
	return b.String() + header + strings.Repeat("\x00", dataBytes)
}

// gguf writes a file from its values; a string is written with its length, bytes as they are.
func gguf(values ...any) string {
	var b bytes.Buffer
	for _, v := range values {
		switch v := v.(type) {
		case string:
			_ = binary.Write(&b, binary.LittleEndian, uint64(len(v)))
			b.WriteString(v)
		case []byte:
			b.Write(v)
		default:
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return b.String()
}

var magic = []byte("GGUF")

func ggufModel(version uint32) string {
	return gguf(
		magic, version, uint64(3), uint64(5),
		"general.architecture", uint32(8), "llama",
		"general.file_type", uint32(4), uint32(15),
		"tokenizer.ggml.tokens", uint32(9), uint32(8), uint64(3), "<s>", "</s>", "a",
		"tokenizer.ggml.scores", uint32(9), uint32(6), uint64(2), float32(1), float32(2),
		"nested", uint32(9), uint32(9), uint64(2), uint32(0), uint64(1), []byte{1}, uint32(7), uint64(0),
		"token_embd.weight", uint32(2), uint64(32), uint64(100), uint32(12), uint64(0),
		"norm.weight", uint32(1), uint64(100), uint32(0), uint64(4096),
		"future", uint32(1), uint64(50), uint32(99), uint64(8192),
		make([]byte, 64),
	)
}

// Builders of protobuf messages.
func field(number protowire.Number, content ...string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), strings.Join(content, "")))
}

func varint(number protowire.Number, value int64) string {
	return string(protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), uint64(value)))
}

func onnxTensorOf(dataType int64, rawBytes int, dims ...int64) string {
	var b strings.Builder
	for _, d := range dims {
		b.WriteString(varint(1, d))
	}
	return b.String() + varint(2, dataType) + field(8, "name") + field(9, strings.Repeat("\x00", rawBytes))
}

func packedDims(dims ...uint64) string {
	var packed []byte
	for _, d := range dims {
		packed = protowire.AppendVarint(packed, d)
	}
	return field(1, string(packed))
}

// constant is a node with a tensor as its attribute.
func constant(tensor string) string {
	return field(1, field(4, "Constant"), field(5, field(1, "value"), varint(20, 4), field(5, tensor)))
}

// ifNode has two graphs as its attributes, as all of Silero's graph is.
func ifNode(then, otherwise string) string {
	return field(1, field(4, "If"), field(5, field(1, "then_branch"), field(6, then)), field(5, field(1, "else_branch"), field(6, otherwise)))
}

var onnxModelFile = varint(1, 8) + field(2, "pytorch") + field(3, "2.1.0") +
	field(8, varint(2, 16)) + field(8, field(1, "com.microsoft"), varint(2, 99)) +
	field(7,
		field(5, onnxTensorOf(1, 4096, 4, 256)),
		field(2, "main_graph"),
		ifNode(
			field(5, packedDims(10, 100), varint(2, 1), field(13, "external"), varint(14, 1))+constant(onnxTensorOf(7, 8)),
			ifNode(constant(onnxTensorOf(10, 0, 500)), field(15, field(1, onnxTensorOf(1, 28, 7)), field(2, onnxTensorOf(7, 56, 7)), varint(3, 1000))),
		),
	) +
	field(25, field(1, "f"), field(7, field(5, field(10, onnxTensorOf(3, 3, 3)), field(11, field(5, onnxTensorOf(3, 2, 2)))))) +
	field(14, field(1, "key"), field(2, "value"))

func TestHeader(t *testing.T) {
	tests := []struct {
		name, path, content string
		want                Weights
	}{
		{
			"safetensors", "model.safetensors",
			safetensors(`{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},"e":{"dtype":"F16","shape":[0,9],"data_offsets":[16,16]}}   `, 16),
			Weights{Format: "safetensors", Parameters: 7, Precision: "F16,F32", Tensors: 3},
		},
		{"safetensors without tensors", "x.safetensors", safetensors(`{}`, 0), Weights{Format: "safetensors"}},
		{
			"safetensors of four bits", "x.safetensors",
			safetensors(`{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}`, 2),
			Weights{Format: "safetensors", Parameters: 4, Precision: "F4", Tensors: 1},
		},
		{
			"safetensors of a new type", "x.safetensors",
			safetensors(`{"a":{"dtype":"F2_NEW","shape":[4],"data_offsets":[0,1]}}`, 1),
			Weights{Format: "safetensors", Parameters: 4, Precision: "F2_NEW", Tensors: 1},
		},
		{
			"rare types are left out", "x.safetensors",
			safetensors(`{"a":{"dtype":"U8","shape":[5000],"data_offsets":[0,5000]},"b":{"dtype":"I8","shape":[4],"data_offsets":[5000,5004]}}`, 5004),
			Weights{Format: "safetensors", Parameters: 5004, Precision: "U8", Tensors: 2},
		},
		{
			"GGUF 3", "Q4.GGUF", ggufModel(3),
			Weights{Format: "gguf", Architecture: "llama", Parameters: 3350, Precision: "Q4_K,F32,GGML_99", Tensors: 3, Quantization: "Q4_K_M"},
		},
		{
			"GGUF 2", "q4.gguf", ggufModel(2),
			Weights{Format: "gguf", Architecture: "llama", Parameters: 3350, Precision: "Q4_K,F32,GGML_99", Tensors: 3, Quantization: "Q4_K_M"},
		},
		{
			"ONNX", "dir/model.onnx", onnxModelFile,
			Weights{Format: "onnx", Parameters: 1024 + 1000 + 1 + 500 + 7 + 3 + 2, Precision: "F32,F16,I8", Tensors: 7, Opset: 16, Producer: "pytorch 2.1.0"},
		},
		{"ONNX without anything", "x.onnx", field(7), Weights{Format: "onnx"}},
		{
			"ONNX in fields of every kind", "x.onnx",
			string(protowire.AppendFixed32(protowire.AppendTag(nil, 100, protowire.Fixed32Type), 1)) +
				string(protowire.AppendFixed64(protowire.AppendTag(nil, 101, protowire.Fixed64Type), 1)) + field(7),
			Weights{Format: "onnx"},
		},
	}
	for _, tt := range tests {
		got, err := Header(tt.path, strings.NewReader(tt.content), int64(len(tt.content)))
		tt.want.Path = tt.path
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("Header of %s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func nested(depth int) string {
	graph := ""
	for range depth {
		graph = ifNode(graph, "")
	}
	return field(7, graph)
}

func TestHeaderRefuses(t *testing.T) {
	tensorOf := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"a":{"dtype":"%s","shape":[%s],"data_offsets":[%s]}}`, dtype, shape, offsets)
	}
	header := func(tensors, entries uint64, rest ...any) string {
		return gguf(append([]any{magic, uint32(3), tensors, entries}, rest...)...)
	}
	tests := []struct{ name, path, content, want string }{
		{"another format", "x.bin", "", "its format is not known"},
		{"empty safetensors", "x.safetensors", "", "the file ends within its header"},
		{"a length and no header", "x.safetensors", "\x02\x00\x00\x00\x00\x00\x00\x00", "the header of 2 bytes is longer than the file"},
		{"a length of 2^64-1", "x.safetensors", strings.Repeat("\xff", 8) + "{}", "the header of 18446744073709551615 bytes is longer than the file"},
		{"no object", "x.safetensors", safetensors(`[]`, 0), "the header is no JSON object"},
		{"cut JSON", "x.safetensors", safetensors(`{"a":`, 0), "the file ends within its header"},
		{"an object that does not end", "x.safetensors", safetensors(tensorOf("F32", "1", "0,4")[:len(tensorOf("F32", "1", "0,4"))-1], 4), "the file ends within its header"},
		{"a tensor twice", "x.safetensors", safetensors(`{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}`, 1), `the header names the tensor "a" twice`},
		{"tensors that overlap", "x.safetensors", safetensors(`{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}`, 1), "the tensors overlap"},
		{"offsets outside", "x.safetensors", safetensors(tensorOf("U8", "9", "0,9"), 8), `tensor "a": it lies at 0 to 9 of 8 bytes`},
		{"offsets in reverse", "x.safetensors", safetensors(tensorOf("U8", "1", "2,1"), 8), `tensor "a": it lies at 2 to 1 of 8 bytes`},
		{"a size that does not fit", "x.safetensors", safetensors(tensorOf("F32", "3", "0,8"), 8), `tensor "a": 3 elements of F32 do not take 8 bytes`},
		{"bytes that nothing describes", "x.safetensors", safetensors(tensorOf("F32", "1", "0,4"), 8), "the header describes 4 bytes of tensors and the file has 8"},
		{"a negative dimension", "x.safetensors", safetensors(tensorOf("F32", "-1", "0,4"), 4), `tensor "a": a tensor has a dimension of -1`},
		{"too many elements", "x.safetensors", safetensors(tensorOf("NEW", "9223372036854775807,2", "0,4"), 4), `tensor "a": the tensors have more elements than can be counted`},
		{"too many bits", "x.safetensors", safetensors(tensorOf("F32", "9223372036854775807", "0,4"), 4), `tensor "a": the tensors have more elements than can be counted`},
		{"a type that is none", "x.safetensors", safetensors(tensorOf("f32", "1", "0,4"), 4), `tensor "a": its type is "f32"`},
		{"a long shape", "x.safetensors", safetensors(tensorOf("F32", strings.Repeat("1,", 4000)+"1", "0,4"), 4), "the header is not as the format wants it: a tensor's shape is too long"},

		{"empty GGUF", "x.gguf", "", "the file ends within its header"},
		{"another magic", "x.gguf", "GGML\x03\x00\x00\x00", "it does not begin with GGUF"},
		{"GGUF 1", "x.gguf", gguf(magic, uint32(1), uint64(0), uint64(0)), "version 1 of GGUF is not read, only 2 and 3"},
		{"big-endian GGUF", "x.gguf", gguf(magic, uint32(3<<24), uint64(0), uint64(0)), "a big-endian GGUF file is not read"},
		{"too many tensors", "x.gguf", header(math.MaxUint64, 0), "18446744073709551615 tensors are more than 1000000"},
		{"too many entries", "x.gguf", header(0, 1<<40), "1099511627776 metadata entries are more than 100000"},
		{"a long key", "x.gguf", header(0, 1, uint64(1<<20)), "1048576 bytes in a key are more than 65535"},
		{"a long text", "x.gguf", header(0, 1, "k", uint32(8), uint64(1<<60)), "1152921504606846976 bytes in a text are more than 134217728"},
		{"a text that is not there", "x.gguf", header(0, 1, "k", uint32(8), uint64(1000)), "the file ends within its header"},
		{"a long architecture that is not there", "x.gguf", header(0, 1, "general.architecture", uint32(8), uint64(100)), "the file ends within its header"},
		{"an array that is not there", "x.gguf", header(0, 1, "k", uint32(9), uint32(10), uint64(1<<20)), "the file ends within its header"},
		{"a long array", "x.gguf", header(0, 1, "k", uint32(9), uint32(10), uint64(1<<61)), "2305843009213693952 items in an array are more than 134217728"},
		{"an unknown type", "x.gguf", header(0, 1, "k", uint32(13)), "a metadata value is of the unknown type 13"},
		{"deep arrays", "x.gguf", header(0, 1, "k", uint32(9), uint32(9), uint64(1), uint32(9), uint64(1), uint32(9), uint64(1), uint32(9), uint64(1)), "arrays are nested more than 4 deep"},
		{"many dimensions", "x.gguf", header(1, 0, "t", uint32(1000)), "a tensor has 1000 dimensions"},
		{"a large dimension", "x.gguf", header(1, 0, "t", uint32(1), uint64(math.MaxUint64)), "18446744073709551615 elements in a dimension are more than 9223372036854775807"},
		{"too many elements", "x.gguf", header(1, 0, "t", uint32(2), uint64(1<<62), uint64(2)), "the tensors have more elements than can be counted"},
		{"too many elements together", "x.gguf", header(2, 0, "t", uint32(1), uint64(1<<62), uint32(0), uint64(0), "u", uint32(1), uint64(1<<62), uint32(0), uint64(0)), "the tensors have more elements than can be counted"},

		{"empty ONNX", "x.onnx", "", "it is no ONNX model: it has no graph"},
		{"text", "x.onnx", "this is no model at all", "it is no protobuf message"},
		{"a field longer than the file", "x.onnx", "\x3a\xff\x01", "it is no protobuf message"},
		{"a field longer than its message", "x.onnx", field(7, "\x2a\x7f") + field(7, strings.Repeat("x", 200)), "it is no protobuf message"},
		{"a cut number", "x.onnx", "\x08\x80", "the file ends within its header"},
		{"a number of eleven bytes", "x.onnx", "\x08" + strings.Repeat("\xff", 11), "it is no protobuf message"},
		{"a number beyond its message", "x.onnx", field(7, "\x08") + "\x01", "it is no protobuf message"},
		{"a fixed number beyond its message", "x.onnx", field(7, "\x0d\x00\x00") + strings.Repeat("\x00", 8), "it is no protobuf message"},
		{"field 0", "x.onnx", "\x00\x00", "it is no protobuf message"},
		{"a group", "x.onnx", "\x0b\x0c", "it is no protobuf message"},
		{"deep graphs", "x.onnx", nested(100), "messages are nested more than 64 deep"},
		{"a negative dimension", "x.onnx", field(7, field(5, onnxTensorOf(1, 0, -1))), "a tensor has a dimension of -1"},
		{"too many elements", "x.onnx", field(7, field(5, onnxTensorOf(1, 0, math.MaxInt64, 2))), "the tensors have more elements than can be counted"},
		{"too many dimensions", "x.onnx", field(7, field(5, strings.Repeat(varint(1, 1), 300))), "a tensor has more than 255 dimensions"},
		{"packed dimensions beyond their field", "x.onnx", field(7, field(5, field(1, "\x80"), varint(2, 1))), "it is no protobuf message"},
		{"an unknown type", "x.onnx", field(7, field(5, onnxTensorOf(77, 0, 1))), "a tensor is of the unknown type 77"},
	}
	for _, tt := range tests {
		w, err := Header(tt.path, strings.NewReader(tt.content), int64(len(tt.content)))
		var bad *FormatError
		if !errors.As(err, &bad) || err.Error() != tt.want {
			t.Errorf("Header of %s = %+v, %v, want the FormatError %q", tt.name, w, err, tt.want)
		}
	}
}

// A blob that is shorter than its size is not read beyond its end.
func TestHeaderOfCutFiles(t *testing.T) {
	for path, content := range map[string]string{
		"x.safetensors": safetensors(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4),
		"x.gguf":        ggufModel(3)[:len(ggufModel(3))-64],
		"x.onnx":        onnxModelFile,
	} {
		for cut := range len(content) {
			w, err := Header(path, strings.NewReader(content[:cut]), int64(len(content)))
			// What is passed over at the end may be missing.
			if err == nil && cut < len(content)-16 {
				t.Errorf("Header(%s) of the first %d of %d bytes = %+v, want an error", path, cut, len(content), w)
			}
		}
	}
}

// counter counts what is read, of a file that is larger than its content.
type counter struct {
	io.ReadSeeker
	read int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadSeeker.Read(p)
	c.read += int64(n)
	return n, err
}

func TestHeaderReadsHeadersOnly(t *testing.T) {
	const data = 8 << 20
	for path, content := range map[string]string{
		"x.safetensors": safetensors(fmt.Sprintf(`{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%[1]d]}}`, data), data),
		"x.gguf":        ggufModel(3) + strings.Repeat("\x00", data),
		"x.onnx":        field(7, field(5, onnxTensorOf(2, data, data)), field(5, onnxTensorOf(2, data, data))),
	} {
		c := &counter{ReadSeeker: strings.NewReader(content)}
		if _, err := Header(path, c, int64(len(content))); err != nil {
			t.Errorf("Header(%s): %v", path, err)
		}
		if c.read > 128<<10 {
			t.Errorf("Header(%s) read %d bytes of %d, want only the header", path, c.read, len(content))
		}
	}
}

var errDisk = errors.New("input/output error")

type broken struct{ io.ReadSeeker }

func (broken) Read([]byte) (int, error) { return 0, errDisk }

func TestHeaderTellsFaultsOfTheDisk(t *testing.T) {
	for _, path := range []string{"x.safetensors", "x.gguf", "x.onnx"} {
		_, err := Header(path, broken{strings.NewReader("")}, 100)
		var bad *FormatError
		if !errors.Is(err, errDisk) || errors.As(err, &bad) {
			t.Errorf("Header(%s) from a broken disk: %v, want its error", path, err)
		}
	}
}

func fuzzHeader(f *testing.F, path string, seeds ...string) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		w, err := Header(path, bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		if w.Parameters < 0 || w.Tensors < 0 || len(w.Precision)+len(w.Producer)+len(w.Architecture) > 4096 {
			t.Errorf("Header = %+v, want no negative counts and short texts", w)
		}
	})
}

func FuzzSafetensors(f *testing.F) {
	fuzzHeader(f, "x.safetensors", safetensors(`{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}`, 12), "", safetensors("{}", 0))
}

func FuzzGGUF(f *testing.F) {
	fuzzHeader(f, "x.gguf", ggufModel(2), ggufModel(3), "GGUF")
}

func FuzzONNX(f *testing.F) {
	fuzzHeader(f, "x.onnx", onnxModelFile, nested(3), "")
}

func BenchmarkHeaderONNX(b *testing.B) {
	graph := strings.Repeat(field(5, onnxTensorOf(1, 64, 16))+constant(onnxTensorOf(7, 8, 1)), 20_000)
	content := field(7, graph)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := Header("x.onnx", strings.NewReader(content), int64(len(content))); err != nil {
			b.Fatal(err)
		}
	}
}
