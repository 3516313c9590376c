package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// TestCatalogScript runs the scripts that have an upstream of their own, of
// which 23.05.5 is like 17.01 to 19.07: it has no profiles.json. Their commands
// are those of TestScript, and
//
//	count N PATTERN  wants so many files to match
func TestCatalogScript(t *testing.T) {
	var uid atomic.Int64
	uid.Store(65700)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/catalog",
		Setup: func(env *testscript.Env) error {
			up, url := instantUpstream(env.T().(testing.TB), instant.Options{Versions: []string{"23.05.5", "24.10.0", "25.12.0", "SNAPSHOT"}, Bare: []string{"23.05.5"}})
			env.Values["server"] = &running{}
			env.Vars = append(env.Vars, "SYSUP_UPSTREAM="+url, "SYSUP_UPSTREAM_KEY="+up.KeyFile, "SYSUP_LISTEN=127.0.0.1:0",
				"SYSUP_DATA="+filepath.Join(env.WorkDir, "data"), "SYSUP_BUILD_UID="+strconv.FormatInt(uid.Add(2), 10))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": exitCommand, "start": startCommand, "ready": readyCommand, "finish": finishCommand, "count": countCommand,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func countCommand(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	found, err := filepath.Glob(ts.MkAbs(args[1]))
	ts.Check(err)
	if neg || len(found) != want {
		ts.Fatalf("%s matches %d files, want %d: %q", args[1], len(found), want, found)
	}
}

// TestOldVersionOnDemand is the whole way of a version without profiles.json: a
// client is put off once, and then has its image, signed.
func TestOldVersionOnDemand(t *testing.T) {
	folder, held := t.TempDir(), make(chan struct{})
	files := http.FileServer(http.Dir(folder))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "imagebuilder") {
			<-held
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	up, err := instant.Write(folder, instant.Options{Versions: []string{"23.05.5", "24.10.0"}, Bare: []string{"23.05.5"}, URL: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	server := startServer(t, serveCmd{Upstream: web.URL, UpstreamKey: []string{up.KeyFile}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	remote := &client.Client{URL: server.url, Poll: 100 * time.Millisecond}
	request := client.Request{Version: "23.05.5", Target: "ath79/generic", Profile: "tplink_archer-c7-v2", Packages: []string{"nano"}}
	for prepared := false; ; time.Sleep(100 * time.Millisecond) {
		_, err := remote.Submit(ctx, request)
		failed, ok := err.(*client.Error)
		if err == nil && prepared {
			break
		}
		if !ok || failed.Status != http.StatusServiceUnavailable || failed.RetryAfter == 0 {
			t.Fatalf("before the ImageBuilder was there: %v", err)
		}
		if !prepared && strings.Contains(failed.Detail, "is being prepared") {
			prepared = true
			close(held)
		}
	}
	result, err := remote.Wait(ctx, request, nil)
	if err != nil {
		t.Fatal(err)
	}
	imageOf(t, result, "sysupgrade", "squashfs")
	if result.Manifest["nano"] == "" || result.VersionCode != "r24106-10cc5fcd00" || !strings.Contains(result.BuildAt, "2024-09-23") {
		t.Errorf("the result is %+v", result)
	}
	dir := t.TempDir()
	if err := remote.Download(ctx, result, dir, nil); err != nil {
		t.Fatal(err)
	}
	keys, err := readPublics([]string{server.key()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Verify(dir, keys, time.Now()); err != nil {
		t.Error(err)
	}
}

// TestDemoOldVersion is the same with the demo distribution's version that is
// like 19.07: real packages, a tree that asks for Python 2 and writes no
// profiles.json.
func TestDemoOldVersion(t *testing.T) {
	d := startDemo(t)
	flash := client.Request{Version: "19.07.90", Target: "demo/flash", Profile: "demo,router-a1", Packages: []string{"nano", "jq", "-firewall4"}}
	d.prepared(t, flash)
	result, dir := d.build(t, flash)
	imageOf(t, result, "sysupgrade", "squashfs")
	imageOf(t, result, "factory", "squashfs")
	if len(result.Images) != 2 || result.VersionCode != "r11900-0d9e8f7a6b" || result.ArchPackages != "x86_64" || !strings.HasPrefix(result.BuildAt, "2022-04-15") ||
		result.Manifest["nano"] == "" || result.Manifest["libncurses"] == "" || result.Manifest["firewall4"] != "" {
		t.Errorf("the result is %+v", result)
	}
	text, err := os.ReadFile(filepath.Join(dir, "profiles.json"))
	if err != nil || !strings.Contains(string(text), `"title":"Demo Router A1"`) || !strings.Contains(string(text), result.Images[0].SHA256) {
		t.Errorf("profiles.json is %s (%v)", text, err)
	}

	disk := client.Request{Version: "19.07.90", Target: "x86/64", Profile: "generic", Filesystem: "squashfs"}
	d.prepared(t, disk)
	result, _ = d.build(t, disk)
	for _, kind := range []string{"combined", "rootfs"} {
		for _, filesystem := range []string{"squashfs", "ext4"} {
			imageOf(t, result, kind, filesystem)
		}
	}
	if len(result.Images) != 4 || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "all were built") {
		t.Errorf("the images are %+v, the notes %q", result.Images, result.Notes)
	}

	flash.Packages = []string{"too-big"}
	if sentence := d.fails(t, flash, 500); !strings.Contains(sentence, "too big") || !strings.Contains(sentence, "15859712") {
		t.Errorf("what is too big is refused by %q", sentence)
	}
	flash.Packages, flash.Profile = []string{"too-big"}, "demo_quiet-c3"
	if sentence := d.fails(t, flash, 500); !strings.Contains(sentence, "too big") {
		t.Errorf("what is too big without a word is refused by %q", sentence)
	}
	flash.Packages, flash.Profile = []string{"nanoo"}, "demo_router-a1"
	if sentence := d.fails(t, flash, 422); !strings.Contains(sentence, "nano") {
		t.Errorf("an unknown package is refused by %q", sentence)
	}
}

// TestOldVersionOnPremises: a server without workers leaves a wish, a worker
// fulfils it, and a third machine initialises the rest over the same stores
// while both go on.
func TestOldVersionOnPremises(t *testing.T) {
	t.Parallel()
	p, name := newPremises(t, instant.Options{Bare: []string{"24.10.0"}}), awstest.Name()
	p.prepare(name)
	server := p.serve("serve", "127.0.0.1:0", "127.0.0.1:0", 0)
	remote := &client.Client{URL: "http://" + server.url, Poll: 100 * time.Millisecond}
	_, err := remote.Submit(t.Context(), usual("nano"))
	if failed, ok := err.(*client.Error); !ok || failed.Status != http.StatusServiceUnavailable || !strings.Contains(failed.Detail, "is being prepared") {
		t.Fatalf("at first it is refused by %v", err)
	}
	worker := p.worker("one", server.certifier)
	for begin := time.Now(); err != nil; time.Sleep(200 * time.Millisecond) {
		if _, err = remote.Submit(t.Context(), usual("nano")); err != nil && time.Since(begin) > time.Minute {
			t.Fatalf("after a minute: %v\n%s\n%s", err, server.log, worker.log)
		}
	}
	if _, err := remote.Wait(t.Context(), usual("nano"), nil); err != nil {
		t.Fatal(err)
	}
	said := p.run("catalog", "sync", "--data", p.path("third"))
	if !strings.Contains(said, "24.10.0 ath79/generic: ready\n") || strings.Count(said, "\n") != 2 {
		t.Errorf("sync says %q", said)
	}
	var archives []string
	for info, err := range p.cloud(name).Objects().List(t.Context(), "imagebuilder/") {
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, filepath.Dir(info.Key))
	}
	if !slices.Equal(archives, []string{"imagebuilder/24.10.0/ath79/generic", "imagebuilder/24.10.0/x86/64"}) {
		t.Errorf("archives in the bucket are %q", archives)
	}
	if trees, err := filepath.Glob(p.path("third/imagebuilder/*/tree")); err != nil || len(trees) != 1 {
		t.Errorf("unpacked on the third machine are %q, not only the one that had to be asked (%v)", trees, err)
	}
	request := usual("nano")
	request.Target, request.Profile = "ath79/generic", "8dev_carambola2"
	if _, err := remote.Wait(t.Context(), request, nil); err != nil {
		t.Errorf("what was initialised ahead: %v", err)
	}
	worker.stop()
	server.stop()
}

// prepared asks until the server takes the request: the client would wait for
// half a minute each time.
func (d demo) prepared(t *testing.T, r client.Request) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		_, err := (&client.Client{URL: d.url}).Submit(t.Context(), r)
		if failed, ok := err.(*client.Error); !ok || failed.Status != http.StatusServiceUnavailable || time.Since(begin) > time.Minute {
			return
		}
	}
}
