package index

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// appendJSON appends v as [json.Marshal] encodes it. What most rows hold it encodes itself. A [json.RawMessage] has to be
// what Marshal made.
func appendJSON(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...), nil
	case int64:
		return strconv.AppendInt(dst, v, 10), nil
	case uint64:
		return strconv.AppendUint(dst, v, 10), nil
	case string:
		return appendString(dst, v), nil
	case digest.Digest:
		return appendString(dst, string(v)), nil
	case registry.AnnouncedRef:
		dst = append(dst, '{')
		if v.ID != "" {
			dst = append(appendString(append(dst, `"id":`...), string(v.ID)), ',')
		}
		return append(strconv.AppendUint(append(dst, `"generation":`...), v.Generation, 10), '}'), nil
	case json.RawMessage:
		return append(dst, v...), nil
	case versionText:
		return v.appendJSON(dst)
	case eventText:
		return v.appendJSON(dst)
	case unmirroredRow:
		return v.appendJSON(dst)
	}
	data, err := json.Marshal(v)
	return append(dst, data...), err
}

// appendString appends s as a JSON string, as [json.Marshal] does.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			data, _ := json.Marshal(s) // a string always encodes
			return append(dst, data...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

// versionText is the row of a version that was just published, and the text of the version in it if that is known: most
// of the time in which a version is applied would go into encoding it again.
type versionText struct {
	row  registry.VersionRecord
	text json.RawMessage
}

func (v versionText) appendJSON(dst []byte) ([]byte, error) {
	if v.text == nil {
		return appendJSON(dst, v.row)
	}
	dst = append(appendString(append(dst, `{"model_id":`...), v.row.ModelID), `,"version":`...)
	dst = append(append(dst, v.text...), `,"state":`...)
	dst = append(appendString(dst, string(v.row.State)), `,"image":{"state":`...)
	return append(appendString(dst, string(v.row.Image.State)), "}}"...), nil
}

// eventText is an event with its number, and its text without one if that is known.
type eventText struct {
	event registry.Event
	text  json.RawMessage
}

func (e eventText) appendJSON(dst []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(e.text, []byte(`{"id":`))
	if !ok {
		return appendJSON(dst, e.event)
	}
	dst = append(strconv.AppendUint(append(dst, `{"seq":`...), e.event.Seq, 10), `,"id":`...)
	return append(dst, rest...), nil
}

func (u unmirroredRow) appendJSON(dst []byte) ([]byte, error) {
	at, err := u.At.MarshalJSON()
	if err != nil {
		return dst, err
	}
	dst = append(append(dst, `{"at":`...), at...)
	if u.Evaluated != "" {
		return append(appendString(append(dst, `,"evaluated":`...), string(u.Evaluated)), '}'), nil
	}
	dst = append(dst, `,"record":{"type":`...)
	dst = append(appendString(dst, u.Record.Type), `,"data":`...)
	return append(append(dst, u.Record.Data...), "}}"...), nil
}
