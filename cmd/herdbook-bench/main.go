// Command herdbook-bench measures what a server costs: a load generator, a floor server and side-by-side runs with rivals.
//
// It starts every server by itself on this machine, gives each the same work in turn, checks what came of
// it, and reports the servers' processor time as a ratio within one run. The client's own time is not
// counted. The floor does what no server that keeps its promises can leave out, and nothing else, so
// that its figures are the limit of the machine.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// commands is the command line.
type commands struct {
	Run         runCommand         `cmd:"" help:"Measure servers side by side."`
	Floor       floorCommand       `cmd:"" help:"Run the floor server."`
	HTTPBackend httpBackendCommand `cmd:"" name:"http-backend" help:"Run a web server with git http-backend behind it."`
}

// output is where a command writes: data to out, all else to err.
type output struct{ out, err io.Writer }

const description = "Measures what Herdbook costs beside a server that does only what must be done, git http-backend and other registries.\n\n" +
	"Example:\n\n  herdbook-bench run --size small --rounds 3"

// run parses and carries out a command, and gives the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var cli commands
	exited := -1
	parser, err := kong.New(&cli,
		kong.Name("herdbook-bench"), kong.Description(description), kong.UsageOnError(),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(output{stdout, stderr}),
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
		fmt.Fprintf(stderr, "herdbook-bench: %v\nRun 'herdbook-bench --help' for what there is.\n", err)
		return 2
	}
	if err := command.Run(); err != nil {
		fmt.Fprintf(stderr, "herdbook-bench: %v\n", err)
		return 1
	}
	return 0
}
