// Command sysup builds OpenWrt firmware on demand: it serves the API with its
// builders, and is the client in a terminal.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/settings"
)

// version is set by the linker in releases.
var version = "development"

const description = `Firmware on demand for OpenWrt routers.

Settings are flags, SYSUP_* variables and keys of the TOML file given by --config, the first of these that has one.
The exit status is 0 if all went well, 1 after a failure, 2 after a wrong call or setting.`

type cli struct {
	Config string `help:"TOML file with settings; a key is the long name of a flag." type:"path" env:"SYSUP_CONFIG" placeholder:"FILE"`

	Serve   serveCmd   `cmd:"" help:"Run the server with its builders on this machine."`
	Worker  workerCmd  `cmd:"" help:"Build for servers on AWS or on engines like it."`
	Prepare prepareCmd `cmd:"" help:"Make the table, the queues and the bucket for servers and workers on machines of your own."`
	Build   buildCmd   `cmd:"" help:"Have an image built, download it and verify it."`
	Verify  verifyCmd  `cmd:"" help:"Verify a downloaded folder against a server's key."`
	Catalog catalogCmd `cmd:"" help:"Look after what the server knows of its upstream."`
	Keys    keysCmd    `cmd:"" help:"Make and look at signing keys."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

type versionCmd struct{}

func (versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, "sysup", version)
	return err
}

func main() {
	sandbox.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { endAtOnce(); stop() })
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// endAtOnce ends the process with the next signal. The kernel would not do it:
// the first process of a container has no default for signals.
func endAtOnce() {
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-again
		os.Exit(exitFailure)
	}()
}

const (
	exitFailure = 1
	exitUsage   = 2
)

// run is the whole program but for the process around it. It returns the exit
// status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	parser, err := kong.New(&c, kong.Name("sysup"), kong.Description(description), kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(stdout, (*io.Writer)(nil)),
		kong.Bind(newLog(stderr)), kong.Exit(func(code int) { panic(exit(code)) }))
	if err != nil {
		fmt.Fprintln(stderr, "sysup:", err)
		return exitUsage
	}
	return guarded(func() int {
		parsed, err := settings.Parse(parser, args)
		if err != nil {
			fmt.Fprintf(stderr, "sysup: %v\n%s\n", err, hint(err))
			return exitUsage
		}
		if err := parsed.Run(); err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(stderr, "sysup:", err)
			return exitFailure
		}
		return 0
	})
}

// hint names the help of the command that was called wrongly.
func hint(err error) string {
	command := "sysup"
	if wrong, ok := errors.AsType[*kong.ParseError](err); ok {
		for _, step := range wrong.Context.Path {
			if step.Command != nil {
				command = "sysup " + step.Command.Path()
			}
		}
	}
	return fmt.Sprintf("Run %q for what there is.", command+" --help")
}

// exit is how kong leaves after --help.
type exit int

func guarded(f func() int) (code int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case exit:
			code = int(r)
		default:
			panic(r)
		}
	}()
	return f()
}

func newLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, nil))
}
