package gitrepo

import (
	"bufio"
	"io"
)

// SplitRequests reads each request of protocol v2 that comes on a connection.
func SplitRequests(in io.Reader) (all [][]byte, err error) {
	connection := bufio.NewReader(in)
	for {
		one := &oneRequest{in: connection}
		if more, err := one.begins(); err != nil || !more {
			return all, err
		}
		text, err := io.ReadAll(one)
		if err != nil {
			return all, err
		}
		all = append(all, text)
	}
}
