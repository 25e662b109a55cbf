package gitrepo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// packet is one pkt-line as it travels: four hex digits, its length with them, and a payload. "0000", a flush,
// has no payload.
// Source: gitprotocol-common(5), "pkt-line Format".
type packet []byte

const (
	maxPacket   = 65520 // bytes, with the length
	packetStart = 4     // where the payload begins
)

var flushPacket = packet("0000")

func (p packet) flush() bool { return len(p) == packetStart && string(p) == string(flushPacket) }

func (p packet) payload() []byte { return p[packetStart:] }

var errPacket = errors.New("malformed pkt-line")

// readPacket reads one packet into buf, which has to hold maxPacket bytes. The error is io.EOF only between
// two packets.
func readPacket(r io.Reader, buf []byte) (packet, error) {
	if _, err := io.ReadFull(r, buf[:packetStart]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ends within its length", errPacket)
		}
		return nil, err
	}
	n, err := strconv.ParseUint(string(buf[:packetStart]), 16, 16)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: length %q", errPacket, buf[:packetStart])
	case n == 0:
		return buf[:packetStart], nil
	case n < packetStart || n > maxPacket: // 1 to 3 have a meaning in v2 only, which has no pushes
		return nil, fmt.Errorf("%w: length %d", errPacket, n)
	}
	if _, err := io.ReadFull(r, buf[packetStart:n]); err != nil {
		return nil, fmt.Errorf("%w: it ends within its %d bytes", errPacket, n)
	}
	return buf[:n], nil
}

// appendPacket appends payload as one packet.
func appendPacket(b, payload []byte) []byte {
	b = fmt.Appendf(b, "%04x", packetStart+len(payload))
	return append(b, payload...)
}

// The bands of the answer to a push.
// Source: gitprotocol-pack(5), "Packfile Data".
const (
	bandData     = 1 // the status report
	bandProgress = 2 // shown to the user behind "remote: "
	bandError    = 3 // shown, and ends the push
)

// appendBand appends text in packets of a band.
func appendBand(b []byte, band byte, text []byte) []byte {
	const most = maxPacket - packetStart - 1
	for len(text) > 0 {
		part := text[:min(most, len(text))]
		text = text[len(part):]
		b = fmt.Appendf(b, "%04x%c", packetStart+1+len(part), band)
		b = append(b, part...)
	}
	return b
}

// keepAlivePacket says nothing on the progress band.
var keepAlivePacket = packet("0005\x02")

// maxHeld is the longest status report that is kept, in bytes: about a million refs.
const maxHeld = 64 << 20

// pushAnswer takes apart what receive-pack writes: what the client is to see at once, and the status report, which
// is held.
type pushAnswer struct {
	bands  bool   // the client takes side-bands
	any    bool   // there was a packet with a payload
	held   []byte // packets as the client will get them
	report []byte // the status report, itself packets
}

// take returns p if it is to be sent now, and otherwise keeps it.
func (a *pushAnswer) take(p packet) (now packet, err error) {
	if len(a.held)+len(p) > maxHeld {
		return nil, fmt.Errorf("status report of a push is longer than %d bytes", maxHeld)
	}
	payload := p.payload()
	if !a.any && len(payload) > 0 {
		a.any = true
		// Without bands, a report begins with the word "unpack".
		a.bands = payload[0] <= bandError
	}
	switch {
	case p.flush():
		if a.any && !a.bands {
			a.report = append(a.report, p...)
		}
	case len(payload) == 0:
		return nil, fmt.Errorf("%w: empty", errPacket)
	case !a.bands:
		a.report = append(a.report, p...)
	case payload[0] == bandProgress, len(payload) == 1: // the latter is git's keep-alive
		return p, nil
	case payload[0] == bandData:
		a.report = append(a.report, payload[1:]...)
	case payload[0] != bandError:
		return nil, fmt.Errorf("%w: band %d", errPacket, payload[0])
	}
	a.held = append(a.held, p...)
	return nil, nil
}

// pushReport is what became of each ref of a push.
type pushReport struct {
	unpack string // "ok", or why the pack was refused
	refs   []refResult
}

type refResult struct {
	ref     string
	refused string // why; empty when the ref moved
}

// moved are those of updates that took place.
func (r pushReport) moved(updates []registry.RefUpdate) []registry.RefUpdate {
	ok := map[string]bool{}
	for _, ref := range r.refs {
		ok[ref.ref] = ref.refused == ""
	}
	var moved []registry.RefUpdate
	for _, u := range updates {
		if ok[u.Ref] {
			moved = append(moved, u)
		}
	}
	return moved
}

var errReport = errors.New("malformed status report")

// parseReport reads a whole status report, with or without the options of version 2.
// Source: gitprotocol-pack(5), "Report Status".
func parseReport(report []byte) (pushReport, error) {
	r := bufio.NewReader(bytes.NewReader(report))
	buf := make([]byte, maxPacket)
	var parsed pushReport
	for first := true; ; first = false {
		p, err := readPacket(r, buf)
		if err != nil {
			return pushReport{}, fmt.Errorf("%w: %w", errReport, err)
		}
		if p.flush() {
			if first {
				return pushReport{}, fmt.Errorf("%w: empty", errReport)
			}
			return parsed, nil
		}
		line := strings.TrimSuffix(string(p.payload()), "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case first:
			if word != "unpack" || rest == "" {
				return pushReport{}, fmt.Errorf("%w: begins with %.100q", errReport, line)
			}
			parsed.unpack = rest
		case word == "ok" && rest != "":
			parsed.refs = append(parsed.refs, refResult{ref: rest})
		case word == "ng" && rest != "":
			ref, why, _ := strings.Cut(rest, " ")
			if why == "" {
				why = "refused"
			}
			parsed.refs = append(parsed.refs, refResult{ref: ref, refused: why})
		case word == "option" && len(parsed.refs) > 0: // of the ref before it; only a proc-receive hook sets some
		default:
			return pushReport{}, fmt.Errorf("%w: line %.100q", errReport, line)
		}
	}
}

// failedReport is a report for a client without side-bands: why went wrong with every ref that moved in r.
func (r pushReport) failedReport(why string) []byte {
	b := appendPacket(nil, []byte("unpack "+why+"\n"))
	for _, ref := range r.refs {
		reason := ref.refused
		if reason == "" {
			reason = "not recorded"
		}
		b = appendPacket(b, []byte("ng "+ref.ref+" "+reason+"\n"))
	}
	return append(b, flushPacket...)
}
