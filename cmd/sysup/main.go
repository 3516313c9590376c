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
)

// version is set by the linker in releases.
var version = "development"

type cli struct {
	Config string `help:"TOML file with settings; a key is a flag's name." type:"path" env:"SYSUP_CONFIG" placeholder:"FILE"`

	Serve   serveCmd   `cmd:"" help:"Run the server with its builders on this machine."`
	Build   buildCmd   `cmd:"" help:"Have an image built, download it and verify it."`
	Verify  verifyCmd  `cmd:"" help:"Verify a downloaded folder against a server's key."`
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
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it. It returns the exit
// status: 0, 1 after a failure, 2 after a wrong call.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	parser, err := kong.New(&c, kong.Name("sysup"), kong.UsageOnError(), kong.Writers(stdout, stderr),
		kong.Description("Firmware on demand for OpenWrt routers."),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(stdout, (*io.Writer)(nil)),
		kong.Bind(newLog(stderr)), kong.Exit(func(code int) { panic(exit(code)) }))
	if err != nil {
		fmt.Fprintln(stderr, "sysup:", err)
		return 2
	}
	return guarded(func() int {
		parsed, err := parse(parser, args)
		if err != nil {
			fmt.Fprintln(stderr, "sysup:", err)
			return 2
		}
		if err := parsed.Run(); err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(stderr, "sysup:", err)
			return 1
		}
		return 0
	})
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
