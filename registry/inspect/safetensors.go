package inspect

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"

	"github.com/herdbook/herdbook/registry"
)

// The header of a safetensors file: its length as a little-endian uint64, then that many bytes of
// JSON, an object that maps each tensor's name to its element type, shape and place in the bytes
// behind the header, and "__metadata__" to texts.
// Source: https://github.com/huggingface/safetensors, README.md, "Format".
const (
	// The format allows 100,000,000 bytes. No published model comes near: a header of 25 MB names
	// some 200,000 tensors.
	maxSafetensorsHeader = 25 << 20
	safetensorsMetadata  = "__metadata__"
)

// bits of one element of each type. Source: safetensors/src/tensor.rs, Dtype.
var safetensorsBits = map[string]int64{
	"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
	"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64,
	"F64": 64, "I64": 64, "U64": 64,
}

// A type that is newer than this program is counted, if it looks like one.
var safetensorsType = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,15}$`)

type safetensor struct {
	Type    string    `json:"dtype"`
	Shape   shape     `json:"shape"`
	Offsets [2]uint64 `json:"data_offsets"`
}

type shape []int64

// UnmarshalJSON refuses long shapes before anything is made of them.
func (s *shape) UnmarshalJSON(data []byte) error {
	if len(data) > 4096 {
		return errors.New("a tensor's shape is too long")
	}
	return json.Unmarshal(data, (*[]int64)(s))
}

func readSafetensors(w *Weights, r *reader) error {
	w.Format = Safetensors
	var prefix [8]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return err
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	switch {
	case length > math.MaxInt64 || int64(length) > r.size-8:
		return fmt.Errorf("the header of %d bytes is longer than the file", length)
	case length > maxSafetensorsHeader:
		return fmt.Errorf("the header of %d bytes is longer than %d", length, maxSafetensorsHeader)
	}
	dataBytes := uint64(r.size-8) - length
	// The decoder holds one entry at a time.
	d := json.NewDecoder(io.LimitReader(r, int64(length)))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		if eof(err) {
			return io.ErrUnexpectedEOF
		}
		return errors.New("the header is no JSON object")
	}
	var count tally
	var covered uint64
	begin := 8 + int64(length) // of the tensors
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return headerError(err)
		}
		name, _ := key.(string)
		if seen[name] {
			return fmt.Errorf("the header names the tensor %q twice", clip(name))
		}
		seen[name] = true
		if name == safetensorsMetadata {
			var metadata json.RawMessage
			if err := d.Decode(&metadata); err != nil {
				return headerError(err)
			}
			continue
		}
		var t safetensor
		if err := d.Decode(&t); err != nil {
			return headerError(err)
		}
		size, err := t.count(&count, dataBytes)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", clip(name), err)
		}
		// No more can be covered than there is, unless tensors overlap, which the format forbids.
		if covered += size; covered > dataBytes {
			return errors.New("the tensors overlap")
		}
		if r.list != nil {
			found := registry.Tensor{Name: name, Type: t.Type, Shape: t.Shape, SizeBytes: int64(size)}
			if err := r.list.add(found, begin+int64(t.Offsets[0]), begin+int64(t.Offsets[1])); err != nil {
				return err
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return headerError(err)
	}
	if covered != dataBytes {
		return fmt.Errorf("the header describes %d bytes of tensors and the file has %d", covered, dataBytes)
	}
	count.describe(w)
	return nil
}

// count adds a tensor to a tally and gives its size in bytes.
func (t *safetensor) count(count *tally, dataBytes uint64) (size uint64, err error) {
	if !safetensorsType.MatchString(t.Type) {
		return 0, fmt.Errorf("its type is %q", clip(t.Type))
	}
	elements := int64(1)
	for _, dimension := range t.Shape {
		if elements, err = multiply(elements, dimension); err != nil {
			return 0, err
		}
	}
	begin, end := t.Offsets[0], t.Offsets[1]
	if begin > end || end > dataBytes {
		return 0, fmt.Errorf("it lies at %d to %d of %d bytes", begin, end, dataBytes)
	}
	if bits, known := safetensorsBits[t.Type]; known {
		total, err := multiply(elements, bits)
		if err != nil {
			return 0, err
		}
		if (uint64(total)+7)/8 != end-begin {
			return 0, fmt.Errorf("%d elements of %s do not take %d bytes", elements, t.Type, end-begin)
		}
	}
	return end - begin, count.add(t.Type, elements)
}

func headerError(err error) error {
	if eof(err) {
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the header is not as the format wants it: %s", clip(err.Error()))
}
