package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/herdbook/herdbook/api"
)

// tokenCommand groups what is done with tokens.
type tokenCommand struct {
	Create tokenCreateCommand `cmd:"" help:"Make an access token."`
	AddKey tokenAddKeyCommand `cmd:"" help:"Let the owner of an SSH key in."`
	List   tokenListCommand   `cmd:"" help:"List the tokens and keys."`
	Revoke tokenRevokeCommand `cmd:"" help:"Make a token or a key worth nothing."`
}

// Help describes the command.
func (tokenCommand) Help() string {
	return "Tokens are the administrators' business: the token that the command itself calls the server with has the role admin.\n\nExamples:\n\n" +
		"  herdbook token create jenkins --role writer\n  herdbook token list"
}

type tokenCreateCommand struct {
	Owner string `arg:"" help:"Who it stands for: a person or a program."`
	Role  string `name:"role" default:"writer" enum:"reader,writer,maintainer,admin" help:"reader, writer, maintainer or admin."`
	remote
}

// Help describes the command.
func (tokenCreateCommand) Help() string {
	return "It writes to the server and prints the token, which is shown this once only. The role says what may be done with it: a reader reads, a writer " +
		"also pushes and evaluates, a maintainer also promotes and overrides, an admin does everything.\n\nExample:\n\n  herdbook token create jenkins --role writer"
}

// Run makes a token.
func (c tokenCreateCommand) Run(ctx context.Context, t terminal) error {
	server, err := c.connect()
	if err != nil {
		return err
	}
	token, err := server.CreateToken(ctx, api.TokenRequest{Owner: c.Owner, Role: c.Role})
	if err != nil {
		return err
	}
	if c.JSON {
		return c.show(t, token, nil)
	}
	fmt.Fprintf(t.err, "Token %s of %s with the role %s. It is shown this once:\n", token.ID, token.Owner, token.Role)
	_, err = fmt.Fprintln(t.out, token.Secret)
	return err
}

type tokenAddKeyCommand struct {
	Owner string `arg:"" help:"Whose key it is."`
	File  string `arg:"" help:"File with the public key; - reads it from standard input."`
	Role  string `name:"role" default:"writer" enum:"reader,writer,maintainer,admin" help:"reader, writer, maintainer or admin."`
	remote
}

// Help describes the command.
func (tokenAddKeyCommand) Help() string {
	return "It writes to the server, which takes Git over SSH when it was started with --ssh-listen.\n\nExample:\n\n  herdbook token add-key ada ~/.ssh/id_ed25519.pub --role maintainer"
}

// maxKeyFile bounds the file of a public key.
const maxKeyFile = 16 << 10

// Run adds a key.
func (c tokenAddKeyCommand) Run(ctx context.Context, t terminal) error {
	in := t.in
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		defer f.Close()
		in = f
	}
	line, err := io.ReadAll(io.LimitReader(in, maxKeyFile))
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	token, err := server.CreateToken(ctx, api.TokenRequest{Owner: c.Owner, Role: c.Role, SSHKey: string(line)})
	if err != nil {
		return err
	}
	return c.show(t, token, func(w io.Writer) {
		fmt.Fprintf(w, "%s may come in with this key, with the role %s. Its id is %s.\n", token.Owner, token.Role, token.ID)
	})
}

type tokenListCommand struct {
	remote
}

// Help describes the command.
func (tokenListCommand) Help() string { return "Example:\n\n  herdbook token list" }

// Run lists tokens.
func (c tokenListCommand) Run(ctx context.Context, t terminal) error {
	server, err := c.connect()
	if err != nil {
		return err
	}
	tokens, err := server.Tokens(ctx)
	if err != nil {
		return err
	}
	return c.show(t, tokens, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tOWNER\tROLE\tCREATED\tKIND")
		for _, token := range tokens {
			kind := "token"
			if token.SSHKey != "" {
				kind = "SSH key"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", token.ID, token.Owner, token.Role, token.CreatedAt.Format("2006-01-02 15:04"), kind)
		}
	})
}

type tokenRevokeCommand struct {
	ID string `arg:"" help:"The id of the token, as 'herdbook token list' shows it."`
	remote
}

// Help describes the command.
func (tokenRevokeCommand) Help() string {
	return "It writes to the server: from now on nobody comes in with the token or key. That cannot be taken back.\n\nExample:\n\n  herdbook token revoke 3f2a9c0d17b4e655"
}

// Run revokes a token.
func (c tokenRevokeCommand) Run(ctx context.Context, t terminal) error {
	server, err := c.connect()
	if err != nil {
		return err
	}
	if err := server.RevokeToken(ctx, c.ID); err != nil {
		return err
	}
	fmt.Fprintf(t.err, "Token %s is worth nothing any more.\n", c.ID)
	return nil
}
