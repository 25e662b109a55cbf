package registry

import "encoding/json"

// SplitGroup is splitGroup: the group without its records, and these.
func SplitGroup(line []byte) (Group, []EncodedRecord, bool) {
	in, ok := splitGroup(line)
	return Group{At: in.At, Actor: in.Actor, Request: in.Request}, in.Records, ok
}

// UnmarshalGroup is the same by encoding/json.
func UnmarshalGroup(line []byte) (Group, []EncodedRecord, error) {
	var in groupJSON
	err := json.Unmarshal(line, &in)
	return Group{At: in.At, Actor: in.Actor, Request: in.Request}, in.Records, err
}
