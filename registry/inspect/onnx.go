package inspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// An ONNX file is one protobuf message, ModelProto. It is walked while it is read: the content of
// tensors is passed over, and no message is ever held.
// Source: https://github.com/onnx/onnx, onnx/onnx.proto3, for all field numbers.
const (
	maxONNXFields  = 20_000_000
	maxONNXNesting = 64  // of messages in messages; a subgraph takes three
	maxONNXRank    = 255 // dimensions of one tensor
)

// Source: onnx.proto3, TensorProto.DataType; the names are those of safetensors where it has them.
var onnxTypes = map[int64]string{
	1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 8: "STRING", 9: "BOOL", 10: "F16", 11: "F64",
	12: "U32", 13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2",
	20: "F8_E5M2FNUZ", 21: "U4", 22: "I4", 23: "F4", 24: "F8_E8M0", 25: "U2", 26: "I2",
}

// message kinds, each with what to do about its fields.
type onnxMessage int

const (
	onnxModel onnxMessage = iota
	onnxOpset
	onnxGraph
	onnxNode
	onnxAttribute
	onnxTensor
	onnxSparseTensor
	onnxFunction
	onnxExternal // StringStringEntryProto; read for a list of tensors only
)

// inside are the fields of each message that hold a message worth reading.
var inside = map[onnxMessage]map[protowire.Number]onnxMessage{
	onnxModel:        {7: onnxGraph, 8: onnxOpset, 25: onnxFunction},
	onnxGraph:        {1: onnxNode, 5: onnxTensor, 15: onnxSparseTensor},
	onnxNode:         {5: onnxAttribute},
	onnxAttribute:    {5: onnxTensor, 6: onnxGraph, 10: onnxTensor, 11: onnxGraph, 22: onnxSparseTensor, 23: onnxSparseTensor},
	onnxSparseTensor: {1: onnxTensor}, // the values; the indices are no parameters
	onnxFunction:     {7: onnxNode},
}

type onnxReader struct {
	*reader
	w      *Weights
	count  tally
	fields int

	producer, producerVersion string
	graphs                    int
	opset                     opset
	tensor                    tensor
	at                        onnxPlace
	entry                     [2]string // key and value of what says where a tensor lies
	sparse                    bool      // the indices of a sparse tensor are read
	indices                   string    // the name of that tensor
}

// opset is the message OperatorSetIdProto: a version of the operators of a domain, of which the
// empty one is ONNX's own.
type opset struct {
	domain  string
	version int64
}

// tensor is what is kept of the message TensorProto.
type tensor struct {
	elements    int64
	rank        int
	dataType    int64
	onnxContent // for a list of tensors only
}

func readONNX(w *Weights, plain *reader) error {
	w.Format = ONNX
	r := &onnxReader{reader: plain, w: w}
	if err := r.message(onnxModel, r.size, 0); err != nil {
		return err
	}
	if r.graphs == 0 {
		return errors.New("it is no ONNX model: it has no graph")
	}
	w.Producer = r.producer
	if r.producer != "" && r.producerVersion != "" {
		w.Producer += " " + r.producerVersion
	}
	r.count.describe(w)
	return nil
}

var errNotProtobuf = errors.New("it is no protobuf message")

// message reads the fields of a message that ends at end.
func (r *onnxReader) message(kind onnxMessage, end int64, nesting int) error {
	if nesting > maxONNXNesting {
		return fmt.Errorf("messages are nested more than %d deep", maxONNXNesting)
	}
	if r.list != nil {
		defer r.enter(kind)()
	}
	switch kind {
	case onnxGraph:
		r.graphs++
	case onnxOpset:
		r.opset = opset{}
	case onnxTensor:
		r.tensor = tensor{elements: 1}
	}
	for r.pos < end {
		if r.fields++; r.fields > maxONNXFields {
			return fmt.Errorf("the model has more than %d fields", maxONNXFields)
		}
		key, err := r.varint(end)
		if err != nil {
			return err
		}
		number, wireType := protowire.DecodeTag(key)
		if number < protowire.MinValidNumber {
			return errNotProtobuf
		}
		switch wireType {
		case protowire.VarintType:
			value, err := r.varint(end)
			if err != nil {
				return err
			}
			if err := r.number(kind, number, int64(value)); err != nil {
				return err
			}
		case protowire.Fixed32Type:
			err = r.fixed(kind, number, 4, end)
		case protowire.Fixed64Type:
			err = r.fixed(kind, number, 8, end)
		case protowire.BytesType:
			err = r.bytes(kind, number, end, nesting)
		default:
			return errNotProtobuf // groups, which ONNX has none of, and what protobuf has none of
		}
		if err != nil {
			return err
		}
	}
	switch kind {
	case onnxOpset:
		if r.opset.domain == "" || r.opset.domain == "ai.onnx" {
			r.w.Opset = max(r.w.Opset, r.opset.version)
		}
	case onnxTensor:
		return r.addTensor()
	}
	return nil
}

func (r *onnxReader) addTensor() error {
	name, ok := onnxTypes[r.tensor.dataType]
	if !ok {
		return fmt.Errorf("a tensor is of the unknown type %d", r.tensor.dataType)
	}
	if r.list != nil {
		if err := r.addListed(name); err != nil || r.sparse {
			return err
		}
	}
	return r.count.add(name, r.tensor.elements)
}

// number takes a field that is a number.
func (r *onnxReader) number(kind onnxMessage, number protowire.Number, value int64) (err error) {
	switch {
	case kind == onnxOpset && number == 2:
		r.opset.version = value
	case kind == onnxTensor && number == 1:
		return r.dimension(value)
	case kind == onnxTensor && number == 2:
		r.tensor.dataType = value
	case r.list != nil && kind == onnxTensor:
		r.content(number, value)
	}
	return nil
}

func (r *onnxReader) dimension(value int64) (err error) {
	if r.tensor.rank++; r.tensor.rank > maxONNXRank {
		return fmt.Errorf("a tensor has more than %d dimensions", maxONNXRank)
	}
	if r.list != nil {
		r.tensor.shape = append(r.tensor.shape, value)
	}
	r.tensor.elements, err = multiply(r.tensor.elements, value)
	return err
}

// bytes takes a field with a length: a message, a text, packed numbers or the content of a tensor.
func (r *onnxReader) bytes(kind onnxMessage, number protowire.Number, end int64, nesting int) error {
	length, err := r.varint(end)
	if err != nil {
		return err
	}
	if length > math.MaxInt64 || int64(length) > end-r.pos {
		return errNotProtobuf
	}
	n := int64(length)
	if inner, ok := inside[kind][number]; ok {
		return r.message(inner, r.pos+n, nesting+1)
	}
	switch {
	case kind == onnxModel && number == 2:
		r.producer, err = r.text(n)
	case kind == onnxModel && number == 3:
		r.producerVersion, err = r.text(n)
	case kind == onnxOpset && number == 1:
		if r.opset.domain, err = r.text(n); r.opset.domain == "" && n > 0 {
			r.opset.domain = "unreadable" // and so not ONNX's own
		}
	case kind == onnxTensor && number == 1:
		for packed := r.pos + n; r.pos < packed; {
			value, err := r.varint(packed)
			if err != nil {
				return err
			}
			if err := r.dimension(int64(value)); err != nil {
				return err
			}
		}
	case r.list != nil:
		err = r.listBytes(kind, number, n, nesting)
	default:
		err = r.skip(n)
	}
	return err
}

// fixed takes a field of 4 or 8 bytes.
func (r *onnxReader) fixed(kind onnxMessage, number protowire.Number, n, end int64) error {
	if n > end-r.pos {
		return errNotProtobuf
	}
	if r.list != nil && kind == onnxTensor && (number == onnxFloatData || number == onnxDoubleData) {
		r.tensor.bytes += n
		return r.list.hash(r.reader, n)
	}
	return r.skip(n)
}

// varint reads a number of protobuf's variable length that ends before end.
func (r *onnxReader) varint(end int64) (uint64, error) {
	v, err := binary.ReadUvarint(r)
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return 0, errNotProtobuf // more than 64 bits
	case err != nil:
		return 0, err
	case r.pos > end:
		return 0, errNotProtobuf
	}
	return v, nil
}
