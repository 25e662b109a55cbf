// Package hook is what Git runs on a push, after the objects arrived and before any ref moves: it calls the
// server, hands over what the push wants, shows the server's lines to the user and ends with the server's
// answer. Git then moves the refs or refuses the push.
//
// Whatever goes wrong refuses the push: no server, a lost connection, an answer that is not one.
//
// It uses the standard library only, and little of it, because a push pays for its start.
package hook

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The environment through which the server tells the hook where to call, which push it serves, and how to
// prove it.
const (
	EnvSocket = "HERDBOOK_HOOK_SOCKET"
	EnvPush   = "HERDBOOK_HOOK_PUSH"
	EnvSecret = "HERDBOOK_HOOK_SECRET"
)

// Name is the hook's name to Git.
const Name = "pre-receive"

// Version is the version of the protocol between hook and server. The server refuses any other.
const Version = 1

// MaxRequestBytes is the longest request that a server reads: about 50,000 refs of the longest names.
const MaxRequestBytes = 32 << 20

// maxLineBytes is the longest line of an answer.
const maxLineBytes = 64 << 10

// Request is what the hook sends: one JSON object.
type Request struct {
	Version int    `json:"version"`
	Push    string `json:"push"`
	Secret  string `json:"secret"`

	// Where the objects of the push lie, in the words of githooks(5) and git(1); empty for a push
	// that brings none, such as the deletion of a ref.
	Quarantine      string `json:"quarantine,omitempty"`       // GIT_QUARANTINE_PATH
	ObjectDirectory string `json:"object_directory,omitempty"` // GIT_OBJECT_DIRECTORY
	Alternates      string `json:"alternates,omitempty"`       // GIT_ALTERNATE_OBJECT_DIRECTORIES

	Options []string `json:"options,omitempty"`
	// Updates is the standard input of the hook: lines of old object, new object and ref. They are
	// bytes, since the name of a ref need not be UTF-8.
	Updates []byte `json:"updates"`
}

// ReadRequest reads what a hook sent.
func ReadRequest(r io.Reader) (Request, error) {
	var req Request
	limited := &io.LimitedReader{R: r, N: MaxRequestBytes}
	err := json.NewDecoder(limited).Decode(&req)
	switch {
	case err != nil && limited.N == 0:
		return Request{}, fmt.Errorf("request of a hook is longer than %d bytes", MaxRequestBytes)
	case err != nil:
		return Request{}, fmt.Errorf("read the request of a hook: %w", err)
	case req.Version != Version:
		return Request{}, fmt.Errorf("the hook speaks version %d, this server %d: build both from one source", req.Version, Version)
	}
	return req, nil
}

// The answer is a series of lines. Each begins with one of these, and the last is an exit code:
//
//	>text for the user
//	=0
const (
	markText = '>'
	markExit = '='
)

// WriteText sends one line for the user. What could steer a terminal is left out of it.
func WriteText(w io.Writer, text string) error {
	text = Printable(text)
	if len(text) > maxLineBytes-2 {
		text = text[:maxLineBytes-2]
	}
	_, err := fmt.Fprintf(w, "%c%s\n", markText, text)
	return err
}

// WriteExit ends the answer. With code 0 Git moves the refs, with any other it refuses the push.
func WriteExit(w io.Writer, code int) error {
	_, err := fmt.Fprintf(w, "%c%d\n", markExit, code)
	return err
}

// Printable is text on one line, without control characters other than tabs.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r':
			return ' '
		case r < ' ' && r != '\t', r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, text)
}

// Wanted reports whether Git started this process as the hook. A program that may serve as one asks it
// first in main, and if so exits with [Main].
func Wanted() bool {
	return os.Getenv(EnvSocket) != "" && filepath.Base(os.Args[0]) == Name
}

// Main is the hook. It returns the code to exit with.
func Main() int {
	code, err := run(os.Stdin, os.Stderr, os.Getenv)
	if err != nil {
		fmt.Fprintf(os.Stderr, "herdbook: the push was refused, because the server could not check it: %v\nherdbook: nothing was changed; push again in a moment\n", err)
		return 1
	}
	return code
}

func run(stdin io.Reader, stderr io.Writer, getenv func(string) string) (code int, err error) {
	updates, err := io.ReadAll(stdin)
	if err != nil {
		return 1, fmt.Errorf("read the updates: %w", err)
	}
	req := Request{
		Version:         Version,
		Push:            getenv(EnvPush),
		Secret:          getenv(EnvSecret),
		Quarantine:      getenv("GIT_QUARANTINE_PATH"),
		ObjectDirectory: getenv("GIT_OBJECT_DIRECTORY"),
		Alternates:      getenv("GIT_ALTERNATE_OBJECT_DIRECTORIES"),
		Updates:         updates,
	}
	options, _ := strconv.Atoi(getenv("GIT_PUSH_OPTION_COUNT"))
	for i := range options {
		req.Options = append(req.Options, getenv("GIT_PUSH_OPTION_"+strconv.Itoa(i)))
	}
	conn, err := net.Dial("unix", getenv(EnvSocket))
	if err != nil {
		return 1, errors.New("it does not answer")
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return 1, errors.New("it hung up")
	}
	return readAnswer(conn, stderr)
}

// readAnswer shows the text lines of an answer and returns its exit code.
func readAnswer(r io.Reader, show io.Writer) (code int, err error) {
	lines := bufio.NewReaderSize(r, maxLineBytes)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return 1, errors.New("it hung up before it answered")
		case err != nil:
			return 1, fmt.Errorf("read the answer: %w", err)
		}
		mark, text := byte(0), ""
		if line = line[:len(line)-1]; len(line) > 0 {
			mark, text = line[0], string(line[1:])
		}
		switch mark {
		case markText:
			if _, err := fmt.Fprintln(show, text); err != nil {
				return 1, fmt.Errorf("show the answer: %w", err)
			}
		case markExit:
			code, err := strconv.ParseUint(text, 10, 8)
			if err != nil {
				return 1, errors.New("its answer makes no sense")
			}
			return int(code), nil
		default:
			return 1, errors.New("its answer makes no sense")
		}
	}
}
