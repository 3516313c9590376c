package upstream

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func newKey(t *testing.T) usign.SecretKey {
	t.Helper()
	key, err := usign.Generate("test")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sample(t *testing.T) Upstream {
	archive := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(archive, []byte("an ImageBuilder"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := Target{
		Profiles: Profiles{ArchPackages: "x86_64", Target: "x86/64", VersionCode: "r1-abc", VersionNumber: "24.10.0",
			Kernel: &Kernel{Version: "6.6.73", Release: "1", Vermagic: "60a9"}},
		Archive:  File{Name: "openwrt-imagebuilder.tar.zst", Path: archive},
		Packages: []Package{{Name: "base-files", Version: "1"}},
		Kmods:    []Package{{Name: "kmod-igb", Version: "6.6.73-r1"}},
	}
	feeds := map[string]Feeds{"x86_64": {
		"base": {
			{Name: "libubox", Version: "2024", ABIVersion: "20240329", File: File{Data: []byte("content")}},
			{Name: "libnl3", Version: "3", ABIVersion: "200", Depends: []string{"libc", "libubox"}, Provides: []string{"libnl"}, Conflicts: []string{"other"}, Size: 10},
		},
		"luci": {{Name: "luci", Version: "24"}},
	}}
	snapshot := target
	snapshot.Profiles.VersionCode = "r2-def"
	return Upstream{Stable: "24.10.0", Upcoming: "25.12.0-rc1", Releases: []Release{
		{Version: "24.10.0", Targets: []Target{target}, Feeds: feeds},
		{Version: "25.12.0-rc1", APK: true, Targets: []Target{target}, Feeds: feeds},
		{Version: "24.10-SNAPSHOT"},
		{Version: "SNAPSHOT", APK: true, Targets: []Target{snapshot}, Feeds: feeds},
	}}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestJSON(t *testing.T) {
	dir := t.TempDir()
	if err := sample(t).Write(dir, newKey(t)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		".versions.json": `{"stable_version":"24.10.0","oldstable_version":"","upcoming_version":"25.12.0-rc1",
			"versions_list":["24.10.0","25.12.0-rc1"]}`,
		"releases/24.10.0/.targets.json":        `{"x86/64":"x86_64"}`,
		"releases/24.10-SNAPSHOT/.targets.json": `{}`,
		"snapshots/.targets.json":               `{"x86/64":"x86_64"}`,
		"releases/24.10.0/packages/x86_64/base/index.json": `{"version":2,"architecture":"x86_64",
			"packages":{"libubox":"2024","libnl3":"3"}}`,
		"snapshots/targets/x86/64/packages/index.json": `{"version":2,"architecture":"x86_64","packages":{"base-files":"1"}}`,
		"releases/24.10.0/targets/x86/64/kmods/6.6.73-1-60a9/index.json": `{"version":2,"architecture":"x86_64",
			"packages":{"kmod-igb":"6.6.73-r1"}}`,
		"snapshots/targets/x86/64/profiles.json": `{"arch_packages":"x86_64","default_packages":null,"metadata_version":0,
			"linux_kernel":{"release":"1","vermagic":"60a9","version":"6.6.73"},"profiles":null,"source_date_epoch":0,
			"target":"x86/64","version_code":"r2-def","version_number":"24.10.0"}`,
	} {
		var got, expected any
		if err := errors.Join(json.Unmarshal(read(t, dir, name), &got), json.Unmarshal([]byte(want), &expected)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, expected) {
			t.Errorf("%s is %v", name, got)
		}
	}
}

func TestPackages(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	if err := sample(t).Write(dir, key); err != nil {
		t.Fatal(err)
	}
	feed := "releases/24.10.0/packages/x86_64/base/"
	got := read(t, dir, feed+"Packages")
	const want = `Package: libnl3-200
Version: 3
Depends: libc, libubox
Conflicts: other
Provides: libnl3, libnl
License: GPL-2.0
Section: utils
ABIVersion: -200
Architecture: x86_64
Installed-Size: 40
Filename: libnl3-200_3_x86_64.ipk
Size: 10
SHA256sum: c6cbd34c3f57e5ccb8d0a0d77d5c3a2b8bd3ac50ffb1a42ac15ab1dbb7ba76ef
Description: The package libnl3.

Package: libubox20240329
Version: 2024
Provides: libubox
License: GPL-2.0
Section: utils
ABIVersion: 20240329
Architecture: x86_64
Installed-Size: 28
Filename: libubox20240329_2024_x86_64.ipk
Size: 7
SHA256sum: ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73
Description: The package libubox.

`
	// The first package has no file, hence no sum that means anything.
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	gotLines[12], wantLines[12] = "", ""
	if !slices.Equal(gotLines, wantLines) {
		t.Errorf("Packages is\n%s", got)
	}
	z, err := gzip.NewReader(bytes.NewReader(read(t, dir, feed+"Packages.gz")))
	if err != nil {
		t.Fatal(err)
	}
	if inflated, err := io.ReadAll(z); err != nil || !bytes.Equal(inflated, got) {
		t.Errorf("Packages.gz holds something else: %v", err)
	}
	if err := usign.VerifyFile([]usign.PublicKey{key.Public()}, got, read(t, dir, feed+"Packages.sig")); err != nil {
		t.Error(err)
	}
	if file := read(t, dir, feed+"libubox20240329_2024_x86_64.ipk"); string(file) != "content" {
		t.Errorf("the package's file holds %q", file)
	}
	if file := read(t, dir, "snapshots/packages/x86_64/base/libubox20240329-2024.apk"); string(file) != "content" {
		t.Errorf("the package's file holds %q", file)
	}
	if _, err := os.Stat(filepath.Join(dir, "snapshots/packages/x86_64/base/Packages")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an apk feed has a Packages: %v", err)
	}
	if conf := read(t, dir, "releases/24.10.0/packages/x86_64/feeds.conf"); !bytes.HasPrefix(conf, []byte("src-git luci https://")) {
		t.Errorf("feeds.conf is %q", conf)
	}
}

// The sums of a target cover every file of its folder but themselves and the
// kernel modules.
func TestSums(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	if err := sample(t).Write(dir, key); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "releases/24.10.0/targets/x86/64")
	list := read(t, target, "sha256sums")
	if err := usign.VerifyFile([]usign.PublicKey{key.Public()}, list, read(t, target, "sha256sums.sig")); err != nil {
		t.Error(err)
	}
	sums, err := usign.ParseSums(list)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	fs.WalkDir(os.DirFS(target), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && path.Base(name) != "sha256sums" && name != "sha256sums.sig" && !strings.HasPrefix(name, "kmods/") {
			names = append(names, name)
		}
		return err
	})
	if got := slices.Sorted(maps.Keys(sums)); !slices.Equal(got, names) {
		t.Errorf("listed are %q, there are %q", got, names)
	}
	for _, name := range []string{"openwrt-imagebuilder.tar.zst", "profiles.json", "packages/Packages", "packages/index.json"} {
		if err := sums.Check(name, bytes.NewReader(read(t, target, name))); err != nil {
			t.Error(err)
		}
	}
}

// A second Write touches what has changed and nothing else, and leaves no
// unfinished file.
func TestWriteAgain(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	u := sample(t)
	if err := u.Write(dir, key); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	u.Releases[3].Targets[0].Profiles.VersionCode = "r3-fed"
	if err := u.Write(dir, key); err != nil {
		t.Fatal(err)
	}
	after := files(t, dir)
	var changed []string
	for name, info := range after {
		if old, ok := before[name]; !ok || !os.SameFile(old, info) {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	want := []string{"profiles.json", "sha256sums", "sha256sums.sig", "version.buildinfo"}
	for i := range want {
		want[i] = "snapshots/targets/x86/64/" + want[i]
	}
	if !slices.Equal(changed, want) || len(after) != len(before) {
		t.Errorf("changed are %q of %d files, %d before", changed, len(after), len(before))
	}
}

func files(t *testing.T, dir string) map[string]fs.FileInfo {
	t.Helper()
	found := map[string]fs.FileInfo{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found[name], err = entry.Info()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWriteFails(t *testing.T) {
	u := sample(t)
	u.Releases[0].Targets[0].Archive.Path += "-missing"
	if err := u.Write(t.TempDir(), newKey(t)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no archive: %v", err)
	}
	u = sample(t)
	u.Releases[0].Targets[0].Archive.Name = "../../../../../../escaped"
	dir := t.TempDir()
	if err := u.Write(filepath.Join(dir, "upstream"), newKey(t)); err == nil {
		t.Error("an archive outside the folder was written")
	}
	if _, err := os.Stat(filepath.Join(dir, "escaped")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("escaped: %v", err)
	}
}

func TestFullName(t *testing.T) {
	for _, c := range []struct{ name, abi, want string }{
		{"luci", "", "luci"},
		{"libubox", "20240329", "libubox20240329"},
		{"libnl3", "200", "libnl3-200"},
	} {
		if got := (Package{Name: c.name, ABIVersion: c.abi}).FullName(); got != c.want {
			t.Errorf("%s with %s is %s", c.name, c.abi, got)
		}
	}
}
