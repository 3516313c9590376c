package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
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
	up, url := instantUpstream(t, instant.Options{Versions: []string{"23.05.5", "24.10.0"}, Bare: []string{"23.05.5"}})
	server := startServer(t, serveCmd{Upstream: url, UpstreamKey: []string{up.KeyFile}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	remote := &client.Client{URL: server.url, Poll: 100 * time.Millisecond}
	result, err := remote.Wait(ctx, client.Request{Version: "23.05.5", Target: "ath79/generic", Profile: "tplink_archer-c7-v2", Packages: []string{"nano"}}, nil)
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
	_, err := (&client.Client{URL: d.url}).Submit(t.Context(), flash)
	if failed, ok := err.(*client.Error); err != nil && (!ok || failed.Status != 503 || !strings.Contains(failed.Detail, "is being prepared")) {
		t.Errorf("at first it is refused by %v", err)
	}
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
