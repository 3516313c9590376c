package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/api/apitest"
)

// TestClients runs the whole conversations of the clients in docs/clients.md
// with the program, over an ImageBuilder that takes no time. Beside the
// commands of apitest and of TestScript the scripts have
//
//	upstream hold     lets whoever asks for an ImageBuilder wait, so that its build stays
//	                  where it is and the next one is queued
//	upstream release  lets them go on
//
// and a variable UPSTREAM, the host and port of the upstream.
func TestClients(t *testing.T) {
	commands := apitest.Commands()
	maps.Copy(commands, map[string]func(*testscript.TestScript, bool, []string){
		"start": startCommand, "ready": readyCommand, "finish": finishCommand, "upstream": upstreamCommand,
	})
	var uid atomic.Int64
	uid.Store(65600)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/clients",
		Setup: func(env *testscript.Env) error {
			gate := &gate{}
			up, url := instantUpstreamBehind(env, gate)
			env.Values["gate"], env.Values["server"] = gate, &running{}
			env.Vars = append(env.Vars, "SYSUP_UPSTREAM="+url, "SYSUP_UPSTREAM_KEY="+up.KeyFile, "SYSUP_LISTEN=127.0.0.1:0",
				"SYSUP_DATA="+filepath.Join(env.WorkDir, "data"), "SYSUP_BUILD_UID="+strconv.FormatInt(uid.Add(1), 10),
				"SYSUP_PUBLIC_URL=https://sysup.example", "UPSTREAM="+strings.TrimPrefix(url, "http://"))
			apitest.Begin(env)
			return nil
		},
		Cmds: commands, RequireExplicitExec: true, RequireUniqueNames: true,
	})
}

// instantUpstreamBehind serves an upstream of the script's own through the gate.
func instantUpstreamBehind(env *testscript.Env, g *gate) (instant.Upstream, string) {
	t := env.T().(testing.TB)
	dir := t.TempDir()
	files := http.FileServer(http.Dir(dir))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if held := g.closed.Load(); held != nil && strings.Contains(r.URL.Path, "imagebuilder") {
			select {
			case <-*held:
			case <-r.Context().Done():
			}
		}
		w.Header().Set("Access-Control-Allow-Origin", "*") // as the real one does
		files.ServeHTTP(w, r)
	}))
	env.Defer(web.Close)
	env.Defer(g.open)
	up, err := instant.Write(dir, instant.Options{URL: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	return up, web.URL
}

// gate is in the way of whoever fetches an ImageBuilder.
type gate struct{ closed atomic.Pointer[chan struct{}] }

func (g *gate) close() {
	held := make(chan struct{})
	g.closed.Store(&held)
}

func (g *gate) open() {
	if held := g.closed.Swap(nil); held != nil {
		close(*held)
	}
}

func upstreamCommand(ts *testscript.TestScript, neg bool, args []string) {
	g := ts.Value("gate").(*gate)
	switch args[0] {
	case "hold":
		g.close()
	case "release":
		g.open()
	default:
		ts.Fatalf("usage: upstream hold|release")
	}
}
