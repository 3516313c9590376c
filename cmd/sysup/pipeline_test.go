package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
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
