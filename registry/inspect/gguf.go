package inspect

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"github.com/herdbook/herdbook/registry"
)

// A GGUF file begins with "GGUF", its version, the number of tensors and of metadata entries, all
// little-endian; then come the entries (name, type, value) and the tensors' descriptions (name,
// dimensions, type, offset). Version 2 and 3 differ only in that the latter may be big-endian.
// Source: https://github.com/ggml-org/ggml, docs/gguf.md, "File Structure".
const (
	// Vocabularies lie in the metadata: the largest known take some 30 MB.
	maxGGUFHeader     = 128 << 20
	maxGGUFEntries    = 100_000
	maxGGUFTensors    = 1_000_000
	maxGGUFKey        = 1<<16 - 1
	maxGGUFTensorName = 1024 // the format says 64
	maxGGUFDimensions = 8    // the format says 4 for now
	maxGGUFNesting    = 4    // of arrays in arrays
)

// types of metadata values. Source: docs/gguf.md, gguf_metadata_value_type.
const (
	ggufUint32 = 4
	ggufString = 8
	ggufArray  = 9
)

// bytes of a value of each type but strings and arrays.
var ggufWidth = map[uint32]int64{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

// Source: docs/gguf.md, ggml_type, and ggml/include/ggml.h for those above 39.
var ggmlTypes = map[uint32]string{
	0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
	12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
	20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
	29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}

// ggmlBlocks are the number of elements in a block of each type, and the bytes that it takes. Blocks lie along the first dimension.
// Source: ggml/src/ggml.c, type_traits, and gguf-py/gguf/constants.py, GGML_QUANT_SIZES, which disagree about Q8_1: no file has it.
var ggmlBlocks = map[uint32][2]int64{
	0: {1, 4}, 1: {1, 2}, 2: {32, 18}, 3: {32, 20}, 6: {32, 22}, 7: {32, 24}, 8: {32, 34}, 10: {256, 84}, 11: {256, 110},
	12: {256, 144}, 13: {256, 176}, 14: {256, 210}, 15: {256, 292}, 16: {256, 66}, 17: {256, 74}, 18: {256, 98}, 19: {256, 50},
	20: {32, 18}, 21: {256, 110}, 22: {256, 82}, 23: {256, 136}, 24: {1, 1}, 25: {1, 2}, 26: {1, 4}, 27: {1, 8}, 28: {1, 8},
	29: {256, 56}, 30: {1, 2}, 34: {256, 54}, 35: {256, 66}, 39: {32, 17}, 40: {64, 36}, 41: {128, 18},
}

// Tensors begin at multiples of the alignment, the first one behind the header.
// Source: docs/gguf.md, "general.alignment".
const (
	defaultGGUFAlignment = 32
	maxGGUFAlignment     = 1 << 20
)

// Source: docs/gguf.md, "general.file_type", and llama.cpp's include/llama.h, llama_ftype.
var ggufFileTypes = map[uint32]string{
	0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_1_SOME_F16", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
	11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
	19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S",
	27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
	38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}

type ggufReader struct {
	*reader
	alignment *uint32
}

func readGGUF(w *Weights, plain *reader) error {
	w.Format = GGUF
	r := ggufReader{plain, new(uint32)}
	*r.alignment = defaultGGUFAlignment
	var magic [4]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return err
	}
	if string(magic[:]) != "GGUF" {
		return errors.New("it does not begin with GGUF")
	}
	version, err := r.uint32()
	switch {
	case err != nil:
		return err
	case version&0xffff == 0:
		return errors.New("a big-endian GGUF file is not read")
	case version != 2 && version != 3:
		return fmt.Errorf("version %d of GGUF is not read, only 2 and 3", version)
	}
	tensors, err := r.uint64(maxGGUFTensors, "tensors")
	if err != nil {
		return err
	}
	entries, err := r.uint64(maxGGUFEntries, "metadata entries")
	if err != nil {
		return err
	}
	for range entries {
		if err := r.entry(w); err != nil {
			return err
		}
	}
	var count tally
	for range tensors {
		if err := r.tensor(&count); err != nil {
			return err
		}
	}
	count.describe(w)
	if r.list != nil {
		return r.place()
	}
	return nil
}

// place turns the offsets of the tensors into places in the file, and ends those of a type whose size is not known where the next
// one begins.
func (r ggufReader) place() error {
	alignment := int64(*r.alignment)
	if alignment == 0 || alignment > maxGGUFAlignment || alignment&(alignment-1) != 0 {
		return fmt.Errorf("the alignment is %d, not a power of two up to %d", alignment, maxGGUFAlignment)
	}
	data := (r.pos + alignment - 1) / alignment * alignment
	found := r.list.found
	slices.SortFunc(found, func(a, b listed) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(uint64(a.SizeBytes), uint64(b.SizeBytes))) // -1 comes last
	})
	for i := range found {
		t := &found[i]
		if t.begin%alignment != 0 {
			return fmt.Errorf("tensor %q begins at %d, which is no multiple of %d", clip(t.Name), t.begin, alignment)
		}
		if t.begin > r.size {
			return fmt.Errorf("tensor %q begins at %d, behind the end of the file", clip(t.Name), t.begin)
		}
		t.begin += data
		if t.SizeBytes < 0 {
			end := r.size - data
			if i+1 < len(found) {
				end = min(end, found[i+1].begin)
			}
			t.SizeBytes = max(0, end+data-t.begin)
		}
		if t.SizeBytes > r.size-t.begin {
			return fmt.Errorf("tensor %q takes %d bytes from %d on, and the file ends at %d", clip(t.Name), t.SizeBytes, t.begin, r.size)
		}
		t.end = t.begin + t.SizeBytes
	}
	return nil
}

// entry reads one of the metadata, most only to pass over it.
func (r ggufReader) entry(w *Weights) error {
	length, err := r.uint64(maxGGUFKey, "bytes in a key")
	if err != nil {
		return err
	}
	key, err := r.text(length)
	if err != nil {
		return err
	}
	valueType, err := r.uint32()
	if err != nil {
		return err
	}
	switch {
	case key == "general.architecture" && valueType == ggufString:
		w.Architecture, err = r.string()
	case key == "general.file_type" && valueType == ggufUint32:
		var fileType uint32
		fileType, err = r.uint32()
		w.Quantization = ggufFileTypes[fileType]
	case key == "general.alignment" && valueType == ggufUint32:
		*r.alignment, err = r.uint32()
	default:
		err = r.pass(valueType, 0)
	}
	return err
}

func (r ggufReader) string() (string, error) {
	length, err := r.uint64(maxGGUFHeader, "bytes in a text")
	if err != nil {
		return "", err
	}
	return r.text(length)
}

// pass goes over a value.
func (r ggufReader) pass(valueType uint32, nesting int) error {
	if r.pos > maxGGUFHeader {
		return fmt.Errorf("the metadata is longer than %d bytes", maxGGUFHeader)
	}
	if width, ok := ggufWidth[valueType]; ok {
		return r.skip(width)
	}
	switch {
	case valueType == ggufString:
		length, err := r.uint64(maxGGUFHeader, "bytes in a text")
		if err != nil {
			return err
		}
		return r.skip(length)
	case valueType == ggufArray && nesting < maxGGUFNesting:
	case valueType == ggufArray:
		return fmt.Errorf("arrays are nested more than %d deep", maxGGUFNesting)
	default:
		return fmt.Errorf("a metadata value is of the unknown type %d", valueType)
	}
	itemType, err := r.uint32()
	if err != nil {
		return err
	}
	items, err := r.uint64(maxGGUFHeader, "items in an array")
	if err != nil {
		return err
	}
	if width, ok := ggufWidth[itemType]; ok {
		return r.skip(items * width)
	}
	for range items {
		if err := r.pass(itemType, nesting+1); err != nil {
			return err
		}
	}
	return nil
}

func (r ggufReader) tensor(count *tally) error {
	if r.pos > 2*maxGGUFHeader {
		return fmt.Errorf("the header is longer than %d bytes", 2*maxGGUFHeader)
	}
	length, err := r.uint64(maxGGUFTensorName, "bytes in a tensor's name")
	if err != nil {
		return err
	}
	var found registry.Tensor
	if r.list == nil {
		err = r.skip(length)
	} else {
		found.Name, err = r.name(length)
	}
	if err != nil {
		return err
	}
	dimensions, err := r.uint32()
	if err != nil {
		return err
	}
	if dimensions > maxGGUFDimensions {
		return fmt.Errorf("a tensor has %d dimensions", dimensions)
	}
	elements := int64(1)
	for range dimensions {
		dimension, err := r.uint64(math.MaxInt64, "elements in a dimension")
		if err != nil {
			return err
		}
		if elements, err = multiply(elements, dimension); err != nil {
			return err
		}
		if r.list != nil {
			found.Shape = append(found.Shape, dimension)
		}
	}
	elementType, err := r.uint32()
	if err != nil {
		return err
	}
	offset, err := r.uint64(math.MaxInt64, "bytes before a tensor")
	if err != nil {
		return err
	}
	name, ok := ggmlTypes[elementType]
	if !ok {
		name = "GGML_" + strconv.FormatUint(uint64(elementType), 10)
	}
	if r.list != nil {
		found.Type = name
		if found.SizeBytes, err = ggufSize(elementType, elements, found.Shape); err != nil {
			return fmt.Errorf("tensor %q: %w", clip(found.Name), err)
		}
		if err := r.list.add(found, offset, 0); err != nil {
			return err
		}
	}
	return count.add(name, elements)
}

// ggufSize is how many bytes a tensor takes, or -1 when its type is not known.
func ggufSize(elementType uint32, elements int64, shape []int64) (int64, error) {
	block, ok := ggmlBlocks[elementType]
	switch {
	case elements == 0:
		return 0, nil
	case !ok:
		return -1, nil
	case block[0] > 1 && (len(shape) == 0 || shape[0]%block[0] != 0):
		return 0, fmt.Errorf("its rows are no multiple of the %d elements in a block of %s", block[0], ggmlTypes[elementType])
	}
	return multiply(elements/block[0], block[1])
}

func (r ggufReader) uint32() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

// uint64 reads a count of things, of which there can be at most so many.
func (r ggufReader) uint64(most uint64, of string) (int64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(b[:])
	if n > most {
		return 0, fmt.Errorf("%d %s are more than %d", n, of, most)
	}
	return int64(n), nil
}
