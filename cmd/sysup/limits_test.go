package main

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// TestLimits: one address gets its builds of the hour and no more, and may have
// again what it has; behind a trusted proxy it is the one that the proxy names.
func TestLimits(t *testing.T) {
	up, url := instantUpstream(t, instant.Options{Versions: []string{"24.10.0"}})
	c := serveCmd{Upstream: url, UpstreamKey: []string{up.KeyFile}, BuildsPerClient: 1, TrustedProxy: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	server := startServer(t, c)
	ask := func(forwarded, pkg string) (int, string) {
		t.Helper()
		body := `{"version":"24.10.0","target":"x86/64","profile":"generic","packages":["` + pkg + `"]}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.url+"/api/v1/build", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Forwarded-For", forwarded)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	remote := &client.Client{URL: server.url, Poll: 50 * time.Millisecond}
	if _, err := remote.Wait(ctx, client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: []string{"nano"}}, nil); err != nil {
		t.Fatal(err) // also waits for the catalogue; counts for 127.0.0.1
	}
	for _, step := range []struct {
		forwarded, pkg string
		status         int
	}{
		{"203.0.113.1", "nano", http.StatusOK},
		{"203.0.113.1", "htop", http.StatusAccepted},
		{"198.51.100.9, 203.0.113.1", "jansson", http.StatusServiceUnavailable},
		{"203.0.113.1, 127.0.0.2", "jansson", http.StatusServiceUnavailable},
		{"203.0.113.2", "jansson", http.StatusAccepted},
		{"", "luci-base", http.StatusServiceUnavailable},
	} {
		if status, retry := ask(step.forwarded, step.pkg); status != step.status || status == http.StatusServiceUnavailable && retry == "" {
			t.Errorf("%s for %q is answered with %d, Retry-After %q, not with %d", step.pkg, step.forwarded, status, retry, step.status)
		}
	}
}

// TestLimitsOfServe: each flag is the limit of its name.
func TestLimitsOfServe(t *testing.T) {
	got := (&serveCmd{MaxPending: 1, BuildsPerDay: 2, BuildsPerClient: 3}).limits()
	if got != (build.Limits{Pending: 1, PerDay: 2, PerClient: 3}) {
		t.Errorf("the limits are %+v", got)
	}
}
