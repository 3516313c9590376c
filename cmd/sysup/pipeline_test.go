package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// TestPipeline is the product's main job: one request, one signed image, by
// the program's own commands.
func TestPipeline(t *testing.T) {
	up, url := instantUpstream(t, instant.Options{})
	server := startServer(t, serveCmd{Upstream: url, UpstreamKey: []string{up.KeyFile}})
	output := filepath.Join(t.TempDir(), "image")
	text := sysup(t, 0, "build", "--server", server.url, "--version", "24.10.0", "--target", "x86/64",
		"--package", "nano", "--package", "jansson", "--output", output, "--key", server.key(), "--poll", "20ms")
	for _, want := range []string{"built: ", "verified: ", "combined"} {
		if !strings.Contains(text, want) {
			t.Errorf("sysup build does not say %q:\n%s", want, text)
		}
	}
	sysup(t, 0, "verify", "--key", server.key(), output)
}

// sysup runs the program in this process and returns what it prints.
func sysup(t *testing.T, status int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if got := run(context.Background(), args, &out, &out); got != status {
		t.Fatalf("sysup %s ended with %d:\n%s", strings.Join(args, " "), got, out.String())
	}
	return out.String()
}

// TestOneBuildForAll: 200 clients ask for the same thing at once, in several
// spellings, and share one record and one build.
func TestOneBuildForAll(t *testing.T) {
	up, url := instantUpstream(t, instant.Options{Versions: []string{"24.10.0"}, Before: "sleep 0.2"})
	var made, created atomic.Int64
	server := startServer(t, serveCmd{Upstream: url, UpstreamKey: []string{up.KeyFile}, Workers: 4, hook: func(step build.Step, after bool) {
		switch {
		case step == build.StepMake && !after:
			made.Add(1)
		case step == build.StepCreate && after:
			created.Add(1)
		}
	}})
	spellings := [][]string{{"nano", "htop"}, {"htop", "nano"}, {"nano", "htop", "nano"}, {"+nano", "htop", "-no-such-thing"}}
	var hashes sync.Map
	var clients errgroup.Group
	for i := range 200 {
		clients.Go(func() error {
			remote := &client.Client{URL: server.url, Poll: 50 * time.Millisecond}
			result, err := remote.Wait(t.Context(), client.Request{Version: "24.10.0", Target: "x86/64", Profile: []string{"generic", "any,board"}[i%2], Packages: spellings[i%4]}, nil)
			hashes.Store(result.RequestHash+" "+result.BinDir, true)
			return err
		})
	}
	if err := clients.Wait(); err != nil {
		t.Fatal(err)
	}
	different := 0
	hashes.Range(func(any, any) bool { different++; return true })
	if different != 1 || made.Load() != 1 || created.Load() != 1 {
		t.Errorf("%d results, %d records, %d runs of make; want one of each", different, created.Load(), made.Load())
	}
}

// TestShutdownGivesBack: a server that is told to stop while it builds leaves
// the build to the next one, without counting it as an attempt.
func TestShutdownGivesBack(t *testing.T) {
	up, url := instantUpstream(t, instant.Options{Versions: []string{"24.10.0"}, Before: "sleep 3"})
	making := make(chan bool, 10)
	c := serveCmd{Upstream: url, UpstreamKey: []string{up.KeyFile}, Data: filepath.Join(t.TempDir(), "data"), hook: func(step build.Step, after bool) {
		if step == build.StepMake && !after {
			making <- true
		}
	}}
	request := client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic"}
	for range build.MaxAttempts + 1 { // more often than a build has attempts
		server := startServer(t, c)
		waiting, cancel := context.WithCancel(t.Context())
		go (&client.Client{URL: server.url}).Wait(waiting, request, nil)
		<-making
		cancel()
		server.stop()
	}
	server := startServer(t, c)
	if _, err := (&client.Client{URL: server.url, Poll: 50 * time.Millisecond}).Wait(t.Context(), request, nil); err != nil {
		t.Errorf("after %d shutdowns: %v", build.MaxAttempts+1, err)
	}
}
