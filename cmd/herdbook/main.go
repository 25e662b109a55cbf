// Command herdbook is a Git-native model registry: the server and its command line.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"unicode"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

func main() {
	if hook.Wanted() {
		// Git started this program as a hook of a push; see storage/gitrepo.
		os.Exit(hook.Main())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], terminal{os.Stdin, printing(os.Stdout), printing(os.Stderr)})
	stop()
	os.Exit(code)
}

// terminal is where a command reads and writes: data to out, all else to err.
type terminal struct {
	in       io.Reader
	out, err io.Writer
}

// printing is where to print to: f itself, unless it is a terminal.
func printing(f *os.File) io.Writer {
	if term.IsTerminal(int(f.Fd())) {
		return printable{f}
	}
	return f
}

// printable is a terminal that what other people wrote into names and reasons cannot steer: a
// control character becomes a question mark.
type printable struct{ io.Writer }

func (p printable) Write(b []byte) (int, error) {
	clean := bytes.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' {
			return '?'
		}
		return r
	}, b)
	if _, err := p.Writer.Write(clean); err != nil {
		return 0, err
	}
	return len(b), nil
}

// commands is the command line.
type commands struct {
	Serve      serveCommand      `cmd:"" help:"Run the server."`
	Models     modelsCommand     `cmd:"" help:"List the models."`
	Search     searchCommand     `cmd:"" help:"Find models and versions by what their cards, evaluations and environments say."`
	Versions   versionsCommand   `cmd:"" help:"List the versions of a model, with their metrics."`
	Show       showCommand       `cmd:"" help:"Show a version, and how to pull it."`
	Compare    compareCommand    `cmd:"" help:"Show how two versions differ: files, card, metrics, policy and tensors."`
	Lineage    lineageCommand    `cmd:"" help:"Show and declare what versions came from."`
	Impact     impactCommand     `cmd:"" help:"Show what came from a dataset, a model or a file, and where it runs."`
	Evaluate   evaluateCommand   `cmd:"" help:"Record an evaluation of a version or a commit."`
	Gate       gateCommand       `cmd:"" help:"Show what the gates say of a version; exits 1 when one is closed."`
	Policy     policyCommand     `cmd:"" help:"Check a policy before it is pushed."`
	Promote    promoteCommand    `cmd:"" help:"Put a version into an environment, if its gates are open."`
	Rollback   rollbackCommand   `cmd:"" help:"Put an earlier version back into an environment."`
	Approve    approveCommand    `cmd:"" help:"Approve of a version for an environment."`
	Env        envCommand        `cmd:"" help:"Show which version is in which environment."`
	Freeze     freezeCommand     `cmd:"" help:"Keep an environment as it is."`
	Unfreeze   unfreezeCommand   `cmd:"" help:"Let an environment go again."`
	Deprecate  deprecateCommand  `cmd:"" help:"Warn everybody of a version."`
	Quarantine quarantineCommand `cmd:"" help:"Close all gates for a version."`
	Revoke     revokeCommand     `cmd:"" help:"Withdraw a version for ever."`
	Reinstate  reinstateCommand  `cmd:"" help:"Undo a deprecation or a quarantine."`
	Push       pushCommand       `cmd:"" help:"Copy a version to another registry."`
	Fsck       fsckCommand       `cmd:"" help:"Check a data directory: journal, index, repositories and files."`
	Gc         gcCommand         `cmd:"" help:"Find and remove files that nobody needs."`
	Backup     backupCommand     `cmd:"" help:"Write a backup of a data directory, or bring one up to date."`
	Restore    restoreCommand    `cmd:"" help:"Make a data directory from a backup."`
	Reindex    reindexCommand    `cmd:"" help:"Make the index of a data directory anew."`
	Token      tokenCommand      `cmd:"" help:"Make, list and revoke access tokens, and add SSH keys."`
	Completion completionCommand `cmd:"" help:"Print a completion script for bash, zsh or fish."`
	Version    versionCommand    `cmd:"" help:"Print the version of this program."`
	Help       helpCommand       `cmd:"" help:"Show help for a command."`
}

// remote are the flags of the commands that call a server.
type remote struct {
	Server string `name:"server" env:"HERDBOOK_URL" default:"http://127.0.0.1:8080" help:"Address of the server." placeholder:"URL"`
	Token  string `name:"token-file" env:"HERDBOOK_TOKEN_FILE" help:"File with the access token; the variable HERDBOOK_TOKEN holds the token itself." placeholder:"FILE"`
	JSON   bool   `name:"json" help:"Print the server's answer as JSON."`
}

const description = "Herdbook keeps the register of machine-learning models: Git repositories whose version tags become immutable artifacts, " +
	"evaluated, held against gates, promoted and told about.\n\nServe a registry:\n\n  herdbook serve\n\nPush a model to it:\n\n" +
	"  git push http://127.0.0.1:8080/acme/fraud.git main v1.0.0"

// run parses and carries out a command, and gives the exit status.
func run(ctx context.Context, args []string, t terminal) int {
	var cli commands
	exited := -1
	parser, err := kong.New(&cli,
		kong.Name("herdbook"), kong.Description(description), kong.UsageOnError(),
		kong.Writers(t.out, t.err), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(t),
	)
	if err != nil {
		panic(err) // the command line above does not hold together
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if exited >= 0 {
		return exited // help was asked for and printed
	}
	if err != nil {
		fmt.Fprintf(t.err, "herdbook: %v\nRun 'herdbook help' for what there is.\n", err)
		return 2
	}
	err = command.Run(parser)
	if exited >= 0 {
		return exited // help printed; what else is missing in its command line does not matter
	}
	if err != nil {
		var quiet exitError
		if errors.As(err, &quiet) {
			return int(quiet)
		}
		fmt.Fprintf(t.err, "herdbook: %v\n", err)
		return 1
	}
	return 0
}

// exitError ends the command with a status when everything was said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// release is set by the linker; see the Makefile.
var release = ""

// programVersion is the version of this program as people read it.
func programVersion() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(t terminal) error {
	_, err := fmt.Fprintf(t.out, "herdbook %s\n", programVersion())
	return err
}

type helpCommand struct {
	Command []string `arg:"" optional:"" help:"The command."`
}

// Run shows the help of a command.
func (c helpCommand) Run(parser *kong.Kong) error {
	_, err := parser.Parse(append(c.Command, "--help"))
	return err
}
