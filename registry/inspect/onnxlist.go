package inspect

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/herdbook/herdbook/registry"
)

// The fields of TensorProto that hold values. Numbers are written packed, or one by one.
// Source: onnx.proto3, TensorProto.
const (
	onnxFloatData  = 4
	onnxInt32Data  = 5 // all types of at most 32 bits, but floats
	onnxStringData = 6
	onnxInt64Data  = 7
	onnxRawData    = 9 // little-endian
	onnxDoubleData = 10
	onnxUint64Data = 11 // also of uint32
)

// onnxExternalData is the data_location of a tensor whose bytes lie in another file.
// Source: onnx.proto3, TensorProto.DataLocation.
const onnxExternalData = 1

// onnxPlace is where in a model its reader is. Initializers of the graph of the model have their own names, and those of graphs within
// it the way that leads there before theirs.
type onnxPlace struct {
	prefix       string // of the names in this graph
	nodes        int    // of this graph, so far
	node, output string // of the node that is read: its name, and that of its first output
	attribute    string
	attributes   int
}

// here names what the attribute that is read holds.
func (p *onnxPlace) here() string {
	node := p.node
	if node == "" {
		node = p.output
	}
	if node == "" {
		node = "node[" + strconv.Itoa(p.nodes-1) + "]"
	}
	attribute := p.attribute
	if attribute == "" {
		attribute = "attribute[" + strconv.Itoa(p.attributes-1) + "]"
	}
	return p.prefix + node + "." + attribute
}

// onnxContent is what is kept of a tensor for a list.
type onnxContent struct {
	name     string
	shape    []int64
	bytes    int64 // that were summed
	external bool
	where    registry.ExternalData
}

// enter begins a message, and gives what to do at its end.
func (r *onnxReader) enter(kind onnxMessage) (leave func()) {
	switch kind {
	case onnxGraph, onnxFunction:
		before := r.at
		r.at = onnxPlace{}
		if before.nodes > 0 {
			r.at.prefix = before.here() + "/"
		}
		return func() { r.at = before }
	case onnxNode:
		r.at.nodes++
		r.at.node, r.at.output, r.at.attributes = "", "", 0
		return func() { r.at.attributes = 0 }
	case onnxAttribute:
		r.at.attributes++
		r.at.attribute = ""
	case onnxTensor:
		r.list.sum.Reset()
	case onnxExternal:
		r.entry = [2]string{}
	default:
	}
	return func() {}
}

// listBytes takes what a list wants and a header does not.
func (r *onnxReader) listBytes(kind onnxMessage, number protowire.Number, n int64, nesting int) (err error) {
	switch {
	case kind == onnxFunction && number == 1:
		r.at.prefix, err = r.name(n)
		r.at.prefix = "function " + r.at.prefix + "/"
	case kind == onnxNode && number == 3:
		r.at.node, err = r.name(n)
	case kind == onnxNode && number == 2 && r.at.output == "":
		r.at.output, err = r.name(n)
	case kind == onnxAttribute && number == 1:
		r.at.attribute, err = r.name(n)
	case kind == onnxSparseTensor && number == 2:
		r.indices = r.tensor.name
		r.sparse = true
		err = r.message(onnxTensor, r.pos+n, nesting+1)
		r.sparse = false
	case kind == onnxExternal && (number == 1 || number == 2):
		r.entry[number-1], err = r.name(n)
	case kind == onnxTensor:
		err = r.tensorBytes(number, n, nesting)
	default:
		err = r.skip(n)
	}
	return err
}

func (r *onnxReader) tensorBytes(number protowire.Number, n int64, nesting int) (err error) {
	switch number {
	case 8:
		r.tensor.name, err = r.name(n)
	case 13:
		if err = r.message(onnxExternal, r.pos+n, nesting+1); err == nil {
			err = r.located()
		}
	case onnxStringData:
		var length [8]byte
		binary.LittleEndian.PutUint64(length[:], uint64(n))
		r.list.sum.Write(length[:])
		fallthrough
	case onnxFloatData, onnxDoubleData, onnxRawData:
		r.tensor.bytes += n
		err = r.list.hash(r.reader, n)
	case onnxInt32Data, onnxInt64Data, onnxUint64Data:
		for packed := r.pos + n; r.pos < packed && err == nil; {
			var value uint64
			if value, err = r.varint(packed); err == nil {
				r.content(number, int64(value))
			}
		}
	default:
		err = r.skip(n)
	}
	return err
}

// onnxWidth are the bytes of an element of each type in raw data, or of the two elements of half a byte that one number holds. The type stands
// before the content in every file that programs write; where it does not, all are taken for 8 bytes wide.
var onnxWidth = map[int64]int{
	2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 9: 1, 10: 2, 12: 4, 16: 2, 17: 1, 18: 1, 19: 1, 20: 1, 21: 1, 22: 1, 23: 1, 24: 1, 25: 1, 26: 1,
}

// content takes one number: of the content, as it would stand in raw data, or where it lies.
func (r *onnxReader) content(number protowire.Number, value int64) {
	switch number {
	case onnxInt32Data, onnxInt64Data, onnxUint64Data:
		width := onnxWidth[r.tensor.dataType]
		if width == 0 {
			width = 8
		}
		var bytes [8]byte
		binary.LittleEndian.PutUint64(bytes[:], uint64(value))
		r.list.sum.Write(bytes[:width])
		r.tensor.bytes += int64(width)
	case 14:
		r.tensor.external = value == onnxExternalData
	default:
	}
}

// located takes one entry of what says where a tensor lies.
// Source: onnx/onnx, docs/ExternalData.md.
func (r *onnxReader) located() (err error) {
	number := func() (n int64) {
		if n, err = strconv.ParseInt(r.entry[1], 10, 64); err != nil || n < 0 {
			err = fmt.Errorf("the %s of a tensor in another file is %q", clip(r.entry[0]), clip(r.entry[1]))
		}
		return n
	}
	switch r.entry[0] {
	case "location":
		r.tensor.where.Location = r.entry[1]
	case "offset":
		r.tensor.where.OffsetBytes = number()
	case "length":
		r.tensor.where.LengthBytes = number()
	default:
	}
	return err
}

// addListed ends a tensor. Names need not be different in different graphs, and constants have none.
func (r *onnxReader) addListed(elementType string) error {
	t := registry.Tensor{Type: elementType, Shape: r.tensor.shape}
	name := r.tensor.name
	if r.sparse {
		name = r.indices
	}
	switch {
	case r.at.attributes > 0:
		t.Name = r.at.here()
	case name == "":
		t.Name = r.at.prefix + "unnamed"
	default:
		t.Name = r.at.prefix + name
	}
	if r.sparse {
		t.Name += ".indices"
	}
	if r.tensor.external {
		where := r.tensor.where
		t.External, t.SizeBytes = &where, where.LengthBytes
	} else {
		t.Digest, t.SizeBytes = digest.NewDigest(digest.SHA256, r.list.sum), r.tensor.bytes
	}
	t.Name = r.list.free(t.Name)
	return r.list.add(t, 0, 0)
}
