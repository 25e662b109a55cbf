package ssh

import (
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// The programs that clients ask for.
const (
	uploadPack      = "git-upload-pack"
	receivePack     = "git-receive-pack"
	lfsAuthenticate = "git-lfs-authenticate"
	lfsTransfer     = "git-lfs-transfer" // Git LFS over SSH alone, which is tried before lfsAuthenticate
)

// command is what a client asks for.
type command struct {
	program string // one of the above
	model   registry.ModelName
	upload  bool // what lfsAuthenticate is for, instead of a download
}

// maxCommandLen is the longest command line that is read, in bytes.
const maxCommandLen = 4096

// parseCommand reads a command line as Git and Git LFS send it. The error is a [registry.FieldError].
func parseCommand(line string) (c command, err error) {
	words, ok := splitWords(line)
	if !ok || len(words) == 0 {
		return c, errCommand
	}
	c.program, words = words[0], words[1:]
	if c.program == "git" && len(words) > 0 {
		c.program, words = "git-"+words[0], words[1:]
		if c.program != uploadPack && c.program != receivePack {
			return command{}, errCommand
		}
	}
	switch c.program {
	case lfsTransfer:
		return c, nil // refused whatever it is about
	case lfsAuthenticate:
		if len(words) != 2 || words[1] != "download" && words[1] != "upload" {
			return command{}, errCommand
		}
		c.upload = words[1] == "upload"
	case uploadPack, receivePack:
		if len(words) != 1 {
			return command{}, errCommand
		}
	default:
		return command{}, errCommand
	}
	c.model, err = parsePath(words[0])
	if err != nil {
		return command{}, err
	}
	return c, nil
}

// errCommand refuses all that no client of Git asks for.
var errCommand = registry.Invalid("", "Herdbook runs no commands but those of Git and Git LFS; an address to clone from is ssh://HOST/NAMESPACE/NAME.git")

// parsePath reads the path of an address: with a slash in front when it is a URL, without one in the form
// HOST:PATH, and with or without ".git".
func parsePath(path string) (registry.ModelName, error) {
	return registry.ParseModelName(strings.TrimSuffix(strings.TrimPrefix(path, "/"), ".git"))
}

// plain are the characters that a shell takes as they are.
const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+:,./-"

// escaped are the characters before which a backslash between double quotes is one. Source: POSIX, "Double-Quotes".
const escaped = "$`\"\\"

// splitWords takes a command line apart as a shell does. What would make a shell do anything else than that is
// not ok: no variable, pattern, comment or second command comes out of here, and no control character.
func splitWords(line string) (words []string, ok bool) {
	if len(line) > maxCommandLen {
		return nil, false
	}
	var word strings.Builder
	var quote byte   // ' or " within quotes
	begun := false   // there is a word, if only an empty one in quotes
	literal := false // the character behind a backslash
	for i := range len(line) {
		c := line[i]
		switch {
		case c < ' ' || c == 0x7f:
			return nil, false
		case literal:
			literal = false
			if quote == '"' && !strings.ContainsRune(escaped, rune(c)) {
				word.WriteByte('\\')
			}
			word.WriteByte(c)
		case c == '\\' && quote != '\'':
			literal, begun = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == '\'':
			word.WriteByte(c)
		case quote == '"':
			if c == '$' || c == '`' {
				return nil, false
			}
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, begun = c, true
		case c == ' ':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		case strings.IndexByte(plain, c) >= 0:
			word.WriteByte(c)
			begun = true
		default:
			return nil, false
		}
	}
	if quote != 0 || literal {
		return nil, false
	}
	if begun {
		words = append(words, word.String())
	}
	return words, true
}
