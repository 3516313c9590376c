// Demo makes the demo distribution and serves it as an upstream.
//
//	go run ./scripts/demo [--output DIR] [--url URL] [--snapshot-revision rN-hash] [--serve]
//
// The folder it serves, its address and its public keys, usign's and the one of apk's indices, are printed
// as shell variables: UPSTREAM_DIR, UPSTREAM_URL, UPSTREAM_KEY and UPSTREAM_APK_KEY.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/demo/distro"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var o distro.Options
	output := flag.String("output", "build/demo", "`folder` for everything that is made, kept for the next time")
	flag.StringVar(&o.URL, "url", distro.DefaultURL, "`address` under which the upstream is served; the ImageBuilders' feeds begin with it")
	flag.StringVar(&o.Snapshot, "snapshot-revision", "", "`revision` of the snapshot, like r34001-0123456789")
	serve := flag.Bool("serve", false, "serve the upstream at the host and port of --url until interrupted")
	flag.Parse()
	o.Log = os.Stderr

	u, err := distro.Make(ctx, *output, o)
	if err != nil {
		return err
	}
	fmt.Printf("UPSTREAM_DIR=%s\nUPSTREAM_URL=%s\nUPSTREAM_KEY=%s\nUPSTREAM_APK_KEY=%s\n", u.Dir, u.URL, u.KeyFile, u.APKKeyFile)
	if !*serve {
		return nil
	}
	return serveUntil(ctx, u)
}

func serveUntil(ctx context.Context, u distro.Upstream) error {
	address, err := url.Parse(u.URL)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address.Host)
	if err != nil {
		return fmt.Errorf("the upstream cannot be served: %w", err)
	}
	server := &http.Server{Handler: u.Handler(), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
