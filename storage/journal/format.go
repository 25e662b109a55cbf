package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"strconv"
	"strings"
)

// The journal is a directory of segments. A segment is a text file that is named by the number of its
// first group, 16 hex digits, and ".log". Its first line is a header, every other line is a group:
//
//	<crc> herdbook-journal 1 <chain> <seq>\n
//	<crc> <chain> <batch> <seq> <payload>\n
//
// All numbers are hex digits in lower case:
//
//	crc      8 digits   CRC-32C of the line after the crc and one space, without the newline
//	chain    64 digits  of a group: SHA-256(chain of the group before || seq as 8 bytes big endian || payload);
//	                    in the header: the chain of the last group before this segment; 64 zeros before the first
//	batch    16 digits  seq of the first group of the batch, see below
//	seq      16 digits  number of the group, one more than that before it, from 1; in the header: of the first
//	                    group of this segment, whether it is there yet or not
//	payload             the rest, at least one byte, no newline
//
// In the last segment empty lines may follow: room for what comes next, which the writer fills before it needs it.
//
// A batch is what was written and synced together. It lies in one segment, and a batch is written only
// after that before it was synced. So a group whose batch is b proves that every group before b was
// durable. That is what tells damage from the torn end that a crash leaves.
const (
	segmentSuffix = ".log"
	headerMark    = "herdbook-journal 1"

	seqDigits   = 16
	chainAt     = 8 + 1
	batchAt     = chainAt + 64 + 1
	seqAt       = batchAt + seqDigits + 1
	payloadAt   = seqAt + seqDigits + 1
	headerBytes = 8 + 1 + len(headerMark) + 1 + 64 + 1 + seqDigits + 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type chain [sha256.Size]byte

// entry is a group as it is stored.
type entry struct {
	chain      chain
	batch, seq uint64
	payload    []byte
}

// link computes the chain of a group from that of the group before it.
func link(h hash.Hash, before chain, seq uint64, payload []byte) (c chain) {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], seq)
	h.Reset()
	h.Write(before[:])
	h.Write(number[:])
	h.Write(payload)
	h.Sum(c[:0])
	return c
}

func appendEntry(dst []byte, e entry) []byte {
	start := len(dst)
	dst = append(dst, "00000000 "...)
	dst = hex.AppendEncode(dst, e.chain[:])
	dst = append(dst, ' ')
	dst = appendNumber(dst, e.batch)
	dst = append(dst, ' ')
	dst = appendNumber(dst, e.seq)
	dst = append(dst, ' ')
	dst = append(dst, e.payload...)
	return finishLine(dst, start)
}

// Errors of a single line. Nothing is known about a line with one of them.
var (
	errCutOff   = errors.New("the line is cut off")
	errForm     = errors.New("the line is not of the right form")
	errChecksum = errors.New("the checksum does not match")
)

// parseEntry reads the line of a group, with its newline. It accepts exactly what appendEntry writes.
// The payload is a part of line.
func parseEntry(line []byte) (e entry, err error) {
	body, err := checkLine(line)
	if err != nil {
		return entry{}, err
	}
	if len(body) <= payloadAt || line[batchAt-1] != ' ' || line[seqAt-1] != ' ' || line[payloadAt-1] != ' ' ||
		!decodeHex(e.chain[:], body[chainAt:]) ||
		!parseNumber(&e.batch, body[batchAt:]) || !parseNumber(&e.seq, body[seqAt:]) {
		return entry{}, errForm
	}
	e.payload = body[payloadAt:]
	return e, nil
}

// header is the first line of a segment.
type header struct {
	chain chain
	first uint64
}

func appendHeader(dst []byte, h header) []byte {
	start := len(dst)
	dst = append(dst, "00000000 "+headerMark+" "...)
	dst = hex.AppendEncode(dst, h.chain[:])
	dst = append(dst, ' ')
	dst = appendNumber(dst, h.first)
	return finishLine(dst, start)
}

// parseHeader reads the first line of a segment, with its newline. It accepts exactly what appendHeader
// writes.
func parseHeader(line []byte) (h header, err error) {
	body, err := checkLine(line)
	if err != nil {
		return header{}, err
	}
	rest, ok := bytes.CutPrefix(body[chainAt:], []byte(headerMark+" "))
	if !ok {
		return header{}, errors.New("the line is no header of this version")
	}
	if len(line) != headerBytes || rest[64] != ' ' ||
		!decodeHex(h.chain[:], rest) || !parseNumber(&h.first, rest[65:]) {
		return header{}, errForm
	}
	return h, nil
}

// finishLine ends the line that begins at start with a newline, and fills in its checksum.
func finishLine(dst []byte, start int) []byte {
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.Checksum(dst[start+chainAt:], castagnoli))
	hex.Encode(dst[start:], sum[:])
	return append(dst, '\n')
}

// checkLine returns the line without its newline if the checksum at its begin is right.
func checkLine(line []byte) (body []byte, err error) {
	body, ok := bytes.CutSuffix(line, []byte("\n"))
	if !ok {
		return nil, errCutOff
	}
	want, ok := lineChecksum(body)
	if !ok {
		return nil, errForm
	}
	if crc32.Checksum(body[chainAt:], castagnoli) != want {
		return nil, errChecksum
	}
	return body, nil
}

func lineChecksum(line []byte) (sum uint32, ok bool) {
	var b [4]byte
	if len(line) < chainAt || line[chainAt-1] != ' ' || !decodeHex(b[:], line) {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[:]), true
}

func appendNumber(dst []byte, n uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return hex.AppendEncode(dst, b[:])
}

func parseNumber(n *uint64, digits []byte) bool {
	var b [8]byte
	ok := decodeHex(b[:], digits)
	*n = binary.BigEndian.Uint64(b[:])
	return ok
}

// decodeHex fills dst from the digits that src begins with. Upper case is refused: it differs from
// lower case by one bit, and no change of a bit may go unnoticed.
func decodeHex(dst, src []byte) bool {
	if len(src) < 2*len(dst) {
		return false
	}
	for i := range dst {
		high, low := hexValue[src[2*i]], hexValue[src[2*i+1]]
		if high|low > 0xf {
			return false
		}
		dst[i] = high<<4 | low
	}
	return true
}

// hexValue is the value of a hex digit in lower case, and more than 0xf for every other byte.
var hexValue = func() (values [256]byte) {
	for i := range values {
		values[i] = 0xff
	}
	for i, c := range []byte("0123456789abcdef") {
		values[c] = byte(i)
	}
	return values
}()

func segmentName(first uint64) string { return fmt.Sprintf("%016x%s", first, segmentSuffix) }

// parseSegmentName returns the number in the name of a segment file, and whether it is one.
func parseSegmentName(name string) (first uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 16, 64)
	return first, err == nil && name == segmentName(first)
}
