package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	if settings := os.Getenv(crashSettings); settings != "" {
		crashServer(settings)
	}
	testscript.Main(waiting{m}, map[string]func(){"sysup": main})
}

// waiting runs tests that wait much more than they compute.
type waiting struct{ *testing.M }

func (m waiting) Run() int {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	return m.M.Run()
}

// instantUpstream serves the tiny signed upstream with the ImageBuilder that
// takes no time.
func instantUpstream(t testing.TB, options instant.Options) (instant.Upstream, string) {
	t.Helper()
	dir := t.TempDir()
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(web.Close)
	if options.URL == "" {
		options.URL = web.URL
	}
	up, err := instant.Write(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	return up, web.URL
}

// testServer is the whole program on a free port.
type testServer struct {
	url  string
	data string
	stop func() // and wait
}

func (s testServer) key() string { return filepath.Join(s.data, "keys", "server.pub") }

// startServer runs `sysup serve` in this process until the test ends.
func startServer(t testing.TB, c serveCmd) testServer {
	t.Helper()
	if c.Data == "" {
		c.Data = filepath.Join(t.TempDir(), "data")
	}
	c = withDefaults(c)
	address := make(chan net.Addr, 1)
	c.ready = func(a net.Addr) { address <- a }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, testLog(t)) }()
	stop := func() {
		cancel()
		select {
		case err := <-ended:
			ended <- nil
			if err != nil {
				t.Errorf("serve ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("serve does not end")
		}
	}
	t.Cleanup(stop)
	select {
	case a := <-address:
		return testServer{"http://" + a.String(), c.Data, stop}
	case err := <-ended:
		ended <- nil
		t.Fatalf("serve did not start: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("serve does not start")
	}
	panic("unreachable")
}

// withDefaults fills in what the command line would.
func withDefaults(c serveCmd) serveCmd {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.Workers == 0 {
		c.Workers = 1
	}
	if c.MaxPending == 0 {
		c.MaxPending = 500
	}
	if c.TimeLimit == 0 {
		c.TimeLimit = time.Minute
	}
	if c.CacheSize == 0 {
		c.CacheSize = 1
	}
	if c.BuildUID == 0 {
		c.BuildUID = 64646
	}
	return c
}

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}
