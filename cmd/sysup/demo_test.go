package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/demo/distro"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// demoPort is where these tests serve the demo distribution. It is fixed,
// since the feeds' addresses are in the ImageBuilders, which are kept.
const demoPort = "127.0.0.1:18079"

// demo is a server over the demo distribution: real packages, real file
// systems, an ImageBuilder that fails as OpenWrt's does.
type demo struct {
	testServer
	upstream distro.Upstream
	keys     []string
}

// startDemo lets clients bring feeds from below the addresses.
func startDemo(t *testing.T, feeds ...string) demo {
	t.Helper()
	for _, tool := range []string{"unsquashfs", "mksquashfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing; run scripts/setup", tool)
		}
	}
	up := layOut(t, "")
	listener, err := net.Listen("tcp", demoPort)
	if err != nil {
		t.Fatalf("the demo distribution cannot be served: %v", err)
	}
	web := &http.Server{Handler: up.Handler()}
	go web.Serve(listener)
	t.Cleanup(func() { web.Close() })
	server := startServer(t, serveCmd{Upstream: up.URL, UpstreamKey: []string{up.KeyFile}, Workers: 2, AllowDefaults: true, RepositoryAllow: feeds, TimeLimit: 5 * time.Minute})
	return demo{server, up, []string{server.key()}}
}

func layOut(t *testing.T, snapshot string) distro.Upstream {
	t.Helper()
	root, err := distro.Root()
	if err != nil {
		t.Fatal(err)
	}
	up, err := distro.Make(context.Background(), filepath.Join(root, "build", "demo"), distro.Options{
		URL: "http://" + demoPort, Output: filepath.Join(root, "build", "demo-test"), Snapshot: snapshot, Log: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// build requests, waits, downloads and verifies.
func (d demo) build(t *testing.T, r client.Request) (client.Result, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	remote := &client.Client{URL: d.url, Poll: 100 * time.Millisecond}
	result, err := remote.Wait(ctx, r, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, lastWords(err))
	}
	dir := t.TempDir()
	if err := remote.Download(ctx, result, dir, nil); err != nil {
		t.Fatal(err)
	}
	keys, err := readPublics(d.keys)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Verify(dir, keys, time.Now()); err != nil {
		t.Fatal(err)
	}
	return result, dir
}

func lastWords(err error) string {
	if failed, ok := err.(*client.Error); ok {
		return failed.Stdout + failed.Stderr
	}
	return ""
}

// fails requests what cannot be built and returns the server's sentence.
func (d demo) fails(t *testing.T, r client.Request, status int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	_, err := (&client.Client{URL: d.url, Poll: 100 * time.Millisecond}).Wait(ctx, r, nil)
	failed, ok := err.(*client.Error)
	if !ok || failed.Status != status {
		t.Fatalf("want a failure with status %d, got %v", status, err)
	}
	return failed.Detail
}

func TestDemo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test runs builds as another user; run it as root")
	}
	d := startDemo(t)
	x86 := client.Request{Version: "24.10.90", Target: "x86/64", Profile: "generic", Filesystem: "squashfs"}
	flash := client.Request{Version: "24.10.90", Target: "demo/flash", Profile: "demo,router-a1"}

	t.Run("opkg", func(t *testing.T) {
		t.Parallel()
		r := x86
		r.Packages, r.Defaults = []string{"nano", "jq", "-firewall4"}, "uci set system.@system[0].hostname=secret-name\n"
		result, dir := d.build(t, r)
		image := imageOf(t, result, "rootfs", "squashfs")
		script := squashFile(t, filepath.Join(dir, image.Name), "etc/uci-defaults/99-asu-defaults")
		if script != r.Defaults {
			t.Errorf("the first-boot script in the image is %q", script)
		}
		for _, name := range []string{"nano", "jq", "libjq", "libncurses", "busybox"} {
			if result.Manifest[name] == "" {
				t.Errorf("the manifest lacks %s: %v", name, result.Manifest)
			}
		}
		if result.Manifest["firewall4"] != "" {
			t.Error("firewall4 was to be left out")
		}
		if result.Request.Defaults != "(private)" || !strings.HasPrefix(result.BinDir, "private/") {
			t.Errorf("a private request is answered as %q in %q", result.Request.Defaults, result.BinDir)
		}
		for _, other := range result.Images {
			if other.Filesystem == "ext4" || other.SHA256 != other.SHA256Unsigned {
				t.Errorf("unasked or signed image: %+v", other)
			}
		}
		nowhere(t, d.data, "secret-name")
		d.agrees(t, r, result)
	})
	t.Run("apk", func(t *testing.T) {
		t.Parallel()
		r := x86
		r.Version, r.Packages, r.Filesystem = "25.12.90", []string{"nano", "dnsmasq-full"}, "ext4"
		result, dir := d.build(t, r)
		image := imageOf(t, result, "combined", "ext4")
		if info, err := os.Stat(filepath.Join(dir, image.Name)); err != nil || info.Size() != image.Size {
			t.Errorf("the image has %v bytes, want %d (%v)", info, image.Size, err)
		}
		if result.Manifest["libncurses"] == "" || result.Manifest["libncurses6"] != "" {
			t.Errorf("the manifest has ABI names: %v", result.Manifest)
		}
		d.agrees(t, r, result)
	})
	t.Run("exactly the router's packages", func(t *testing.T) {
		t.Parallel()
		r := flash
		r.Version, r.DiffPackages = "23.05.90", true
		r.Packages = []string{"base-files", "libc", "kernel", "busybox", "dropbear", "fstools", "procd", "uci", "mtd", "netifd", "logd", "less"}
		result, _ := d.build(t, r)
		imageOf(t, result, "sysupgrade", "squashfs")
		for name, want := range map[string]bool{"less": true, "busybox": true, "firewall4": false, "dnsmasq": false, "opkg": true} {
			if got := result.Manifest[name] != ""; got != want && !(name == "opkg" && !slices.Contains(result.DefaultPackages, "opkg")) {
				t.Errorf("%s in the image: %v, want %v", name, got, want)
			}
		}
		if result.ID != "demo_router-a1" {
			t.Errorf("the profile is %q", result.ID)
		}
	})
	t.Run("from opkg to apk", func(t *testing.T) {
		t.Parallel()
		r := flash
		r.Version, r.DiffPackages = "25.12.90", true
		r.Packages = []string{"base-files", "libc", "kernel", "busybox", "dropbear", "fstools", "procd", "uci", "mtd", "netifd", "logd", "opkg", "less"}
		result, dir := d.build(t, r)
		if result.Manifest["apk-mbedtls"] == "" || result.Manifest["opkg"] != "" || result.Manifest["dnsmasq"] != "" {
			t.Errorf("the manifest is %v", result.Manifest)
		}
		signed, err := os.ReadFile(filepath.Join(dir, "build.json"))
		if err != nil {
			t.Fatal(err)
		}
		var made build.Provenance
		if err := json.Unmarshal(signed, &made); err != nil {
			t.Fatal(err)
		}
		for _, list := range [][]build.Amendment{result.Changes, made.Plan.Changes} {
			if !slices.ContainsFunc(list, func(c build.Amendment) bool { return c.From == "opkg" && c.To == "apk-mbedtls" }) {
				t.Errorf("the changes are %v", list)
			}
		}
	})
	t.Run("file system that the target lacks", func(t *testing.T) {
		t.Parallel()
		r := flash
		r.Filesystem, r.Packages = "ubifs", []string{"less"}
		result, _ := d.build(t, r)
		imageOf(t, result, "sysupgrade", "squashfs")
		if len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "ubifs") {
			t.Errorf("notes are %q", result.Notes)
		}
	})
	t.Run("hostile package", func(t *testing.T) {
		t.Parallel()
		for _, version := range []string{"24.10.90", "25.12.90"} {
			r := with(x86, version)
			r.Packages = []string{"demo-hostile"}
			_, err := (&client.Client{URL: d.url, Poll: 100 * time.Millisecond}).Wait(t.Context(), r, nil)
			if words := lastWords(err); err == nil || !strings.Contains(err.Error(), "replaced by demo-hostile") || strings.Contains(words, "has reached") {
				t.Errorf("%s: error %v\n%s", version, err, words)
			}
		}
		commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range commands {
			if text, _ := os.ReadFile(file); strings.Contains(string(text), "sysup-demo-hostile") {
				t.Errorf("%s runs on", file)
			}
		}
	})
	for _, failure := range []struct {
		name     string
		request  client.Request
		packages []string
		status   int
		says     []string
	}{
		{"unknown package", x86, []string{"nanoo"}, 422, []string{"nanoo", "nano"}},
		{"conflict, opkg", x86, []string{"conflict-a", "conflict-b"}, 500, []string{"conflict-a conflicts with conflict-b"}},
		{"conflict, apk", with(x86, "25.12.90"), []string{"conflict-a", "conflict-b"}, 500, []string{"conflict-a conflicts with conflict-b"}},
		{"clash", x86, []string{"dnsmasq-full"}, 500, []string{"dnsmasq-full conflicts with dnsmasq", "send -dnsmasq"}},
		{"missing dependency", x86, []string{"broken-dep"}, 422, []string{"broken-dep needs"}},
		{"missing dependency, apk", with(x86, "25.12.90"), []string{"broken-dep"}, 422, []string{"broken-dep needs"}},
		{"too big", withFilesystem(x86, "ext4"), []string{"too-big"}, 500, []string{"too big"}},
		{"too big for its partition, as only we notice", withRootfs(x86, 2), []string{"tcpdump"}, 500, []string{"does not fit", "its partition 2"}},
		{"too big for flash", flash, []string{"too-big"}, 500, []string{"too big", "15859712"}},
		{"too big for flash, said nowhere", withProfile(flash, "demo_quiet-c3"), []string{"too-big"}, 500, []string{"too big"}},
		{"no device", withProfile(flash, ""), nil, 400, []string{"demo_router-a1"}},
		{"unknown version", with(x86, "9.9.9"), nil, 400, []string{"24.10.90"}},
	} {
		t.Run(failure.name, func(t *testing.T) {
			t.Parallel()
			failure.request.Packages = failure.packages
			sentence := d.fails(t, failure.request, failure.status)
			for _, text := range failure.says {
				if !strings.Contains(sentence, text) {
					t.Errorf("the sentence lacks %q: %s", text, sentence)
				}
			}
		})
	}
}

// TestDemoSnapshotMoves: a client that relies on a revision is told when it
// is gone, and what is built from then on is another build.
func TestDemoSnapshotMoves(t *testing.T) {
	d := startDemo(t)
	r := client.Request{Version: "SNAPSHOT", Target: "demo/flash", Profile: "demo_router-b2", Packages: []string{"less"}}
	before, _ := d.build(t, r)
	layOut(t, "r34001-9876543210")
	t.Cleanup(func() { layOut(t, "") })
	time.Sleep(11 * time.Second) // a snapshot's revision is asked anew after 10 s
	r.VersionCode = before.VersionCode
	sentence := d.fails(t, r, 400)
	if !strings.Contains(sentence, before.VersionCode) || !strings.Contains(sentence, "r34001-9876543210") {
		t.Errorf("the sentence names not both revisions: %s", sentence)
	}
	r.VersionCode = "r34001-9876543210"
	after, _ := d.build(t, r)
	if after.RequestHash == before.RequestHash || after.VersionCode != r.VersionCode {
		t.Errorf("after the move %s is %s, before %s was %s", after.RequestHash, after.VersionCode, before.RequestHash, before.VersionCode)
	}
}

func with(r client.Request, version string) client.Request { r.Version = version; return r }

func withProfile(r client.Request, profile string) client.Request { r.Profile = profile; return r }

func withRootfs(r client.Request, size int) client.Request { r.RootfsSizeMB = &size; return r }

func withFilesystem(r client.Request, name string) client.Request { r.Filesystem = name; return r }

func imageOf(t *testing.T, r client.Result, kind, filesystem string) build.Image {
	t.Helper()
	for _, image := range r.Images {
		if image.Type == kind && image.Filesystem == filesystem {
			return build.Image(image)
		}
	}
	t.Fatalf("no %s image with %s in %+v", kind, filesystem, r.Images)
	return build.Image{}
}

// squashFile reads a file of a gzipped squashfs image with the tool of its makers.
func squashFile(t *testing.T, image, name string) string {
	t.Helper()
	script := `gzip -dc "$1" > "$2/root.img" 2>/dev/null; unsquashfs -no-xattrs -cat "$2/root.img" "$3"`
	out, err := exec.Command("bash", "-c", script, "-", image, t.TempDir(), name).Output()
	if err != nil {
		t.Fatalf("read %s of the image: %v", name, err)
	}
	return string(out)
}

// nowhere holds that a secret is in no file of the server but the images.
func nowhere(t *testing.T, data, secret string) {
	t.Helper()
	out, err := exec.Command("grep", "-rlaF", "--exclude=*.img.gz", secret, data).CombinedOutput()
	if err == nil {
		t.Errorf("the secret stands in\n%s", out)
	}
}
