package ssh

import (
	"net"
	"net/url"

	"github.com/herdbook/herdbook/registry"
)

// Command is a command for its test.
type Command struct {
	Program string
	Model   registry.ModelName
	Upload  bool
}

// ParseCommand is parseCommand.
func ParseCommand(line string) (Command, error) {
	c, err := parseCommand(line)
	return Command{c.program, c.model, c.upload}, err
}

// SplitWords is splitWords.
func SplitWords(line string) ([]string, bool) { return splitWords(line) }

// MaxCommandLen is the longest command line that is read.
const MaxCommandLen = maxCommandLen

// PublicURL is publicURL.
func PublicURL(configured *url.URL, called net.Addr) *url.URL { return publicURL(configured, called) }

// Address is address.
func Address(a net.Addr) string { return address(a).String() }
