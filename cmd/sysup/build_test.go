package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
)

// TestBuildTells: who waits is told what for, in a line per change; who stops
// waiting, that the server does not.
func TestBuildTells(t *testing.T) {
	hash := strings.Repeat("a", 64)
	answers := []string{
		`{"status":503,"detail":"The list of versions is being fetched."}`,
		`{"status":202,"request_hash":"` + hash + `","detail":"queued","queue_position":2}`,
		`{"status":202,"request_hash":"` + hash + `","detail":"queued","queue_position":2}`,
		`{"status":202,"request_hash":"` + hash + `","detail":"started","imagebuilder_status":"calculate_packages_hash"}`,
		`{"status":202,"request_hash":"` + hash + `","detail":"started","imagebuilder_status":"polishing"}`,
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked == len(answers) {
			cancel()
			return
		}
		if asked == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		} else {
			w.WriteHeader(http.StatusAccepted)
		}
		fmt.Fprint(w, answers[asked])
		asked++
	}))
	t.Cleanup(web.Close)
	key := filepath.Join(t.TempDir(), "keys")
	sysup(t, 0, "keys", "new", key)
	output := filepath.Join(t.TempDir(), "image")

	var stdout, stderr bytes.Buffer
	status := run(ctx, []string{"build", "--server", web.URL, "--version", "24.10.0", "--target", "x86/64", "--poll", "1ms",
		"--output", output, "--key", filepath.Join(key, publicName)}, &stdout, &stderr)
	if status != exitFailure {
		t.Errorf("the exit status is %d", status)
	}
	want := []string{
		"waiting: The list of versions is being fetched.", "waiting: place 2 in the queue",
		"building: installing packages", "building: polishing",
	}
	if got := strings.Split(strings.TrimSpace(stdout.String()), "\n"); !slices.Equal(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
	if !strings.Contains(stderr.String(), "interrupted. The server goes on") {
		t.Errorf("at the end it says %q", stderr.String())
	}
	if _, err := os.Stat(output); !os.IsNotExist(err) {
		t.Errorf("the output folder was made before there was anything to put into it: %v", err)
	}
}

// TestBuildOfAnotherDevice: between the client and a good server sits one that
// asks for something else. Its signature chain is whole, and still nothing of
// it is kept.
func TestBuildOfAnotherDevice(t *testing.T) {
	up, upstream := instantUpstream(t, instant.Options{Versions: []string{"24.10.0", "25.12.0"}})
	server := startServer(t, serveCmd{Upstream: upstream, UpstreamKey: []string{up.KeyFile}, BuildUID: 65390})
	const body = `{"version":"24.10.0","target":"ath79/generic","profile":"tplink_archer-c7-v2"}`
	goal, err := url.Parse(server.url)
	if err != nil {
		t.Fatal(err)
	}
	between := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(goal)
		if r.In.Method == http.MethodPost {
			r.Out.Body, r.Out.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
	}})
	t.Cleanup(between.Close)

	for _, test := range []struct {
		version, target, profile string
		status                   int
	}{
		{"24.10.0", "ath79/generic", "tplink_archer-c7-v2", 0},
		{"24.10.0", "ath79/generic", "tplink,archer-c7-v2", 0},
		{"24.10.0", "ath79/generic", "tplink_archer-c7-v5", exitFailure},
		{"25.12.0", "ath79/generic", "tplink_archer-c7-v2", exitFailure},
		{"24.10.0", "x86/64", "generic", exitFailure},
	} {
		t.Run(test.version+" "+test.target+" "+test.profile, func(t *testing.T) {
			output := filepath.Join(t.TempDir(), "image")
			text := sysup(t, test.status, "build", "--server", between.URL, "--version", test.version, "--target", test.target,
				"--profile", test.profile, "--poll", "20ms", "--output", output, "--key", server.key())
			kept, err := os.ReadDir(output)
			if err != nil {
				t.Fatal(err)
			}
			if test.status == 0 && len(kept) == 0 {
				t.Error("nothing was kept")
			}
			if test.status != 0 && (len(kept) > 0 || !strings.Contains(text, "not what was asked for")) {
				t.Errorf("it says %q and keeps %v", text, kept)
			}
		})
	}
}
