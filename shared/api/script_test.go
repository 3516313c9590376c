package api

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/shared/api/apitest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestScripts runs conversations with clients, requests as they send them.
// Beside the commands of apitest there are worker, builds and server.
func TestScripts(t *testing.T) {
	commands := apitest.Commands()
	for name, command := range map[string]func(*rig, *testscript.TestScript, []string){
		"worker": (*rig).workerCommand, "builds": (*rig).buildsCommand, "server": (*rig).serverCommand,
	} {
		commands[name] = func(ts *testscript.TestScript, neg bool, args []string) { command(ts.Value(rigKey{}).(*rig), ts, args) }
	}
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true, Setup: setUpScript, Cmds: commands})
}

type rigKey struct{}

// setUpScript starts a server whose settings the script may change.
func setUpScript(env *testscript.Env) error {
	r := newRig(env.T().(testing.TB))
	r.config.Client = func(r *http.Request) string { return r.Header.Get("X-Test-Client") }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.handler().ServeHTTP(w, request)
	}))
	env.Defer(server.Close)
	env.Setenv("ADDRESS", server.Listener.Addr().String())
	env.Values[rigKey{}] = r
	apitest.Begin(env)
	return nil
}

// worker stage WORD | finish IMAGE... | fail KIND PACKAGE SENTENCE | expire IMAGE...:
// what becomes of the one build that there is.
func (r *rig) workerCommand(ts *testscript.TestScript, args []string) {
	switch args[0] {
	case "stage":
		r.claim(build.Stage(args[1]))
	case "finish":
		rec := r.finish(args[1:]...)
		ts.Setenv("BINDIR", binDir(rec.Result.Prefix))
		ts.Setenv("IMAGEHASH", rec.Result.ImageHash)
	case "fail":
		rec := r.fail(build.Kind(args[1]), args[2], args[3])
		ts.Setenv("BINDIR", binDir(rec.Failure.Prefix))
	case "expire":
		r.lifetimes = brief
		rec := r.finish(args[1:]...)
		ts.Setenv("BINDIR", binDir(rec.Result.Prefix))
		r.outlive(rec)
	default:
		ts.Fatalf("unknown: %v", args)
	}
}

// builds N: so many there are.
func (r *rig) buildsCommand(ts *testscript.TestScript, args []string) {
	if got := strconv.Itoa(len(r.records.All())); got != args[0] {
		ts.Fatalf("%s builds, want %s", got, args[0])
	}
}

// server SETTING VALUE changes the server for what follows.
func (r *rig) serverCommand(ts *testscript.TestScript, args []string) {
	switch args[0] {
	case "public-url":
		r.config.PublicURL = args[1]
	case "allow-defaults":
		r.config.AllowDefaults = args[1] == "true"
	case "max-pending", "builds-per-day", "builds-per-client":
		n, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		limits := &r.config.Service.Limits
		*map[string]*int64{"max-pending": &limits.Pending, "builds-per-day": &limits.PerDay, "builds-per-client": &limits.PerClient}[args[0]] = n
	case "snapshot":
		r.catalog.revision = args[1]
	case "snapshot-moves-to":
		r.catalog.moved = args[1]
	default:
		ts.Fatalf("unknown: %v", args)
	}
}

func (r *rig) handler() http.Handler { return New(r.config) }
