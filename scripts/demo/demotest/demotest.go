// Package demotest gives tests a running upstream of the demo distribution.
package demotest

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/demo/distro"
)

// Upstream is a demo distribution being served.
type Upstream struct {
	distro.Upstream

	tb      testing.TB
	folder  string // of the demo
	options distro.Options
}

// Folder is where the demo distribution is kept between tests, below the repository.
const Folder = "build/demo"

// Start lays out an upstream of its own for the test and serves it on loopback until the test ends;
// options.URL and options.Output are set by it. wrap, when not nil, may let the server misbehave.
//
// The first call on a machine makes the distribution, which takes a minute; after that it takes a
// second or two.
func Start(tb testing.TB, options distro.Options, wrap func(http.Handler) http.Handler) *Upstream {
	tb.Helper()
	root, err := distro.Root()
	if err != nil {
		tb.Fatal(err)
	}
	made := exec.Command("go", "run", "./scripts/demo", "--output", Folder) // not in this process: it may be slow under -race
	made.Dir = root
	if out, err := made.CombinedOutput(); err != nil {
		tb.Fatalf("make the demo distribution: %v\n%s", err, out)
	}
	server := httptest.NewUnstartedServer(nil)
	tb.Cleanup(server.Close)
	options.URL, options.Output = "http://"+server.Listener.Addr().String(), tb.TempDir()
	u := &Upstream{tb: tb, folder: filepath.Join(root, Folder), options: options}
	u.layOut()
	server.Config.Handler = u.Handler()
	if wrap != nil {
		server.Config.Handler = wrap(server.Config.Handler)
	}
	server.Start()
	return u
}

// Move lets the snapshot move to another revision, like "r34001-0123456789".
func (u *Upstream) Move(revision string) {
	u.tb.Helper()
	u.options.Snapshot = revision
	u.layOut()
}

func (u *Upstream) layOut() {
	u.tb.Helper()
	made, err := distro.Make(u.tb.Context(), u.folder, u.options)
	if err != nil {
		u.tb.Fatal(err)
	}
	u.Upstream = made
}
