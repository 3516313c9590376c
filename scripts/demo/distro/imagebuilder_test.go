package distro_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/demo/demotest"
	"github.com/attended-sysupgrade/sysup/scripts/demo/distro"
	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

const (
	opkg = "24.10.90"
	apk  = "25.12.90"
)

// trees are ImageBuilders, unpacked once and copied for each build.
type trees struct {
	*demotest.Upstream
	t       *testing.T
	mu      sync.Mutex
	folders map[string]string
}

// unpacked is the folder of the ImageBuilder as its archive holds it.
func (x *trees) unpacked(version, target string) string {
	x.t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	key := version + " " + target
	if folder, ok := x.folders[key]; ok {
		return folder
	}
	base := "releases/" + version
	if version == "SNAPSHOT" {
		base = "snapshots"
	}
	archives, err := filepath.Glob(filepath.Join(x.Dir, base, "targets", target, "openwrt-imagebuilder-*"))
	if err != nil || len(archives) != 1 {
		x.t.Fatalf("the ImageBuilders of %s: %v, %v", key, archives, err)
	}
	folder := x.t.TempDir()
	command(x.t, "tar", "-C", folder, "--strip-components=1", "-xf", archives[0])
	x.folders[key] = folder
	return folder
}

// warm is such a folder after a run that has downloaded packages, without the indices and what else
// belongs to a run.
func (x *trees) warm(version, target string) string {
	x.t.Helper()
	pristine := x.unpacked(version, target)
	x.mu.Lock()
	defer x.mu.Unlock()
	key := version + " " + target + " warm"
	if folder, ok := x.folders[key]; ok {
		return folder
	}
	folder := filepath.Join(x.t.TempDir(), "imagebuilder")
	command(x.t, "cp", "-al", pristine, folder)
	b := tree{t: x.t, path: folder}
	if r := b.make("manifest", "PACKAGES=nano jq htop kmod-tun"); r.status != 0 {
		x.t.Fatalf("make manifest: %s", r)
	}
	command(x.t, "bash", "-c", "cd '"+folder+"' && rm -rf dl/.opkg.lock dl/APKINDEX* dl/openwrt_* dl/imagebuilder* packages/Packages* packages/packages.adb "+
		"build_dir/*/root* key-build* p*-key.pem keys/local-* staging_dir/host/.prereq-build tmp && find keys -type f -newer Makefile -delete")
	x.folders[key] = folder
	return folder
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: scripts/setup installs it", name)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// tree is a copy of an ImageBuilder for builds of one test.
type tree struct {
	t    *testing.T
	path string
	out  string // BIN_DIR
	user *syscall.Credential
}

// copy makes links where files are the same: nothing is written in place.
func (x *trees) copy(t *testing.T, version, target string) tree {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "imagebuilder")
	command(t, "cp", "-al", x.warm(version, target), folder)
	return tree{t: t, path: folder, out: filepath.Join(filepath.Dir(folder), "out")}
}

// result is how a call of make ended.
type result struct {
	status         int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("status %d\n--- stdout\n%s--- stderr\n%s", r.status, r.stdout, r.stderr)
}

// make runs make with no more environment than the builder gives it.
func (b tree) make(args ...string) result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", args...)
	cmd.Dir = b.path
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "LC_ALL=C"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.user}
	cmd.WaitDelay = 5 * time.Second // a process that a package leaves behind holds the output open
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// image runs make image, which must succeed, and returns the images by name.
func (b tree) image(profile, packages string, more ...string) (map[string]image, result) {
	b.t.Helper()
	r := b.make(append([]string{"image", "PROFILE=" + profile, "PACKAGES=" + packages, "BIN_DIR=" + b.out}, more...)...)
	if r.status != 0 {
		b.t.Fatalf("make image: %s", r)
	}
	return b.images(), r
}

// image is what profiles.json says of one.
type image struct {
	Name, Type, Filesystem string
	SHA256                 string
	SHA256Unsigned         string `json:"sha256_unsigned"`
	Size                   *int64
}

// profiles is profiles.json.
type profiles struct {
	VersionCode string `json:"version_code"`
	Epoch       int64  `json:"source_date_epoch"`
	Profiles    map[string]struct {
		Images           []image
		ImagePrefix      string   `json:"image_prefix"`
		SupportedDevices []string `json:"supported_devices"`
	}
}

func (b tree) profiles() profiles {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.out, "profiles.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	var p profiles
	if err := json.Unmarshal(text, &p); err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b tree) images() map[string]image {
	b.t.Helper()
	images := map[string]image{}
	for _, p := range b.profiles().Profiles {
		for _, i := range p.Images {
			images[strings.TrimPrefix(i.Filesystem+"-"+i.Type, "-")] = i
		}
	}
	return images
}

func (b tree) exists(pattern string) bool {
	found, err := filepath.Glob(filepath.Join(b.out, pattern))
	return err == nil && len(found) > 0
}

// manifest is the list of packages of the images.
func (b tree) manifest() string {
	b.t.Helper()
	names, err := filepath.Glob(filepath.Join(b.out, "*.manifest"))
	if err != nil || len(names) != 1 {
		b.t.Fatalf("the manifests are %v, %v", names, err)
	}
	text, err := os.ReadFile(names[0])
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// edit replaces text in a file of the tree.
func (b tree) edit(name, old, text string) {
	b.t.Helper()
	path := filepath.Join(b.path, name)
	content, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(content, []byte(old)) {
		b.t.Fatalf("%s does not hold %q: %v", name, old, err)
	}
	err = os.WriteFile(path+".new", bytes.ReplaceAll(content, []byte(old), []byte(text)), 0o644)
	if err := errors.Join(err, os.Rename(path+".new", path)); err != nil {
		b.t.Fatal(err)
	}
}

// feedsFile is where a version lists its feeds.
func feedsFile(version string) string {
	if version == apk {
		return "repositories"
	}
	return "repositories.conf"
}

// faults serves an upstream with a feed signed wrongly below /bad-signature/, nothing below /gone/, and
// nothing below /moody/ once it is down.
type faults struct {
	good         http.Handler
	foreignIndex []byte
	down         atomic.Bool
}

func (f *faults) wrap(good http.Handler) http.Handler {
	f.good = good
	return f
}

func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mood, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case mood == "gone" || mood == "moody" && f.down.Load():
		http.NotFound(w, r)
		return
	case mood == "bad-signature" && strings.HasSuffix(path, "/packages.adb"):
		w.Write(f.foreignIndex)
		return
	case mood == "bad-signature": // opkg: the signature of another feed
		path = strings.Replace(path, "/luci/Packages.sig", "/base/Packages.sig", 1)
	case mood != "moody":
		path = strings.TrimPrefix(r.URL.Path, "/")
	}
	r.URL.Path = "/" + path
	f.good.ServeHTTP(w, r)
}

// foreignIndex is an index that another distribution has signed.
func foreignIndex(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	index, err := pack.APKIndex([]pack.Meta{{Name: "luci", Version: "1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// failure is a build that goes wrong, or is said to.
type failure struct {
	name              string
	target, profile   string // default: demo/flash, demo_router-a1
	packages          string
	feed              string         // luci's feed is under this path
	status            map[string]int // by version; 0 where there is none
	lines             map[string][]string
	profilesJSON, not string // must there be a profiles.json ("yes", "no"); a line that must not be there
}

func both(s ...string) map[string][]string { return map[string][]string{opkg: s, apk: s} }

var fails = map[string]int{opkg: 2, apk: 2}

var failures = []failure{
	{
		name: "unknown profile", profile: "nope", status: fails, profilesJSON: "no",
		lines: both(`out:Profile "nope" does not exist!`),
	},
	{
		name: "unknown package", packages: "nano no-such-pkg", status: fails, profilesJSON: "no",
		lines: map[string][]string{
			opkg: {"out:Unknown package 'no-such-pkg'.", "Collected errors:", " * opkg_install_cmd: Cannot install package no-such-pkg."},
			apk:  {"ERROR: unable to select packages:", "  no-such-pkg (no such package):", "    required by: world[no-such-pkg]"},
		},
	},
	{
		name: "conflict", packages: "conflict-a conflict-b", status: fails, profilesJSON: "no",
		lines: map[string][]string{
			opkg: {" * check_conflicts_for: The following packages conflict with conflict-b:", " * check_conflicts_for: \tconflict-a * ",
				" * opkg_install_cmd: Cannot install package conflict-b."},
			apk: {"ERROR: unable to select packages:", "  conflict-b-1.0-r1:", "    breaks: conflict-a-1.0-r1[!conflict-b]", "    satisfies: world[conflict-b]"},
		},
	},
	{
		name: "missing dependency", packages: "broken-dep", status: fails, profilesJSON: "no",
		lines: map[string][]string{
			opkg: {" * pkg_hash_check_unresolved: cannot find dependency no-such-library for broken-dep", " * opkg_install_cmd: Cannot install package broken-dep."},
			apk:  {"  no-such-library (no such package):", "    required by: broken-dep-1.0-r1[no-such-library]"},
		},
	},
	{
		name: "file clash", packages: "dnsmasq-full", status: map[string]int{opkg: 2}, profilesJSON: "",
		lines: map[string][]string{opkg: {
			" * check_data_file_clashes: Package dnsmasq wants to install file <tree>/build_dir/target-x86_64_glibc/root-demo/etc/config/dhcp",
			"\tBut that file is already provided by package  * dnsmasq-full", " * opkg_install_cmd: Cannot install package dnsmasq."}},
	},
	{name: "clash avoided", packages: "dnsmasq-full -dnsmasq", profilesJSON: "yes"},
	{
		name: "failing script", packages: "demo-postinst-fails", status: fails, profilesJSON: "no",
		lines: both("demo-postinst-fails: this script always fails"),
	},
	{
		name: "too big for flash", packages: "too-big", profilesJSON: "no",
		lines: both("~WARNING: Image file .*-squashfs-sysupgrade.bin is too big: [0-9]+ > 15859712"),
	},
	{name: "too big without a word", profile: "demo_quiet-c3", packages: "too-big", profilesJSON: "no", not: "too big"},
	{
		name: "too big for ext4", target: "x86/64", profile: "generic", packages: "too-big", status: fails, profilesJSON: "no",
		lines: both("error: ext4_allocate_best_fit_partial: failed to allocate 8 blocks, out of space?"),
	},
	{
		name: "bad signature of a feed", feed: "/bad-signature", profilesJSON: "yes",
		lines: map[string][]string{
			opkg: {"Signature check failed.", "Remove wrong Signature file."},
			apk:  {"WARNING: updating and opening <url>/bad-signature/releases/25.12.90/packages/x86_64/luci/packages.adb: UNTRUSTED signature"},
		},
	},
	{
		name: "feed down", feed: "/gone", profilesJSON: "yes",
		lines: map[string][]string{
			opkg: {"*** Failed to download the package list from <url>/gone/releases/24.10.90/packages/x86_64/luci/Packages.gz",
				" * opkg_download: Failed to download <url>/gone/releases/24.10.90/packages/x86_64/luci/Packages.gz, wget returned 8."},
			apk: {"ERROR: wget: exited with error 8", "~WARNING: updating and opening <url>/gone/.*/luci/packages.adb: "},
		},
	},
	{
		name: "feed down and package missing", feed: "/gone", packages: "luci", status: fails, profilesJSON: "no",
		lines: map[string][]string{
			opkg: {"~\\*\\*\\* Failed to download the package list from ", " * opkg_install_cmd: Cannot install package luci."},
			apk:  {"ERROR: wget: exited with error 8", "  luci (no such package):"},
		},
	},
}

// TestImageBuilder runs make on the ImageBuilders of both kinds against the served feeds.
func TestImageBuilder(t *testing.T) {
	f := &faults{foreignIndex: foreignIndex(t)}
	x := &trees{Upstream: demotest.Start(t, distro.Options{}, f.wrap), t: t, folders: map[string]string{}}
	t.Run("builds", func(t *testing.T) {
		for _, version := range []string{opkg, apk} {
			for _, f := range failures {
				t.Run(f.name+" "+version, func(t *testing.T) {
					t.Parallel()
					f.check(t, x, version)
				})
			}
		}
		for name, test := range map[string]func(*testing.T, *trees){
			"info": info, "disk images": diskImages, "root file system": rootFilesystem, "ordinary user": ordinaryUser,
			"removal": removal, "manifest": manifest, "expansion": expansion, "old version": oldVersion, "version without profiles.json": bareVersion,
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); test(t, x) })
		}
		for _, version := range []string{opkg, apk} {
			t.Run("equal bytes "+version, func(t *testing.T) { t.Parallel(); equalBytes(t, x, version) })
		}
		t.Run("warm tree", func(t *testing.T) { t.Parallel(); warmTree(t, x, f) })
	})
	t.Run("snapshot", func(t *testing.T) { snapshot(t, x) })
}

func (f failure) check(t *testing.T, x *trees, version string) {
	target, profile := "demo/flash", "demo_router-a1"
	if f.target != "" {
		target = f.target
	}
	if f.profile != "" {
		profile = f.profile
	}
	b := x.copy(t, version, target)
	if f.feed != "" {
		luci := "/releases/" + version + "/packages/x86_64/luci"
		b.edit(feedsFile(version), x.URL+luci, x.URL+f.feed+luci)
	}
	r := b.make("image", "PROFILE="+profile, "PACKAGES="+f.packages, "BIN_DIR="+b.out)
	if r.status != f.status[version] {
		t.Fatalf("make image ended with %d, not %d: %s", r.status, f.status[version], r)
	}
	place := strings.NewReplacer("<tree>", b.path, "<url>", x.URL)
	for _, line := range f.lines[version] {
		stream := r.stderr
		if text, ok := strings.CutPrefix(line, "out:"); ok {
			stream, line = r.stdout, text
		}
		if !hasLine(stream, place.Replace(line)) {
			t.Errorf("%q is not printed: %s", place.Replace(line), r)
		}
	}
	if f.not != "" && strings.Contains(r.stderr+r.stdout, f.not) {
		t.Errorf("%q is printed: %s", f.not, r)
	}
	if f.profilesJSON != "" && b.exists("profiles.json") != (f.profilesJSON == "yes") {
		t.Errorf("profiles.json should be there: %s; %s", f.profilesJSON, r)
	}
	if r.status == 0 && !(b.exists("*.manifest") && b.exists("sha256sums")) {
		t.Error("make ended well without a manifest or sums")
	}
}

// hasLine looks for a whole line, or for a pattern after "~".
func hasLine(text, line string) bool {
	pattern, isPattern := strings.CutPrefix(line, "~")
	if !isPattern {
		pattern = "^" + regexp.QuoteMeta(line) + "$"
	}
	return regexp.MustCompile("(?m)" + pattern).MatchString(text)
}

func info(t *testing.T, x *trees) {
	r := x.copy(t, opkg, "demo/flash").make("info")
	for _, line := range []string{
		`Current Target: "demo/flash"`, `Current Architecture: "x86_64"`, `Current Revision: "r28900-2a1b3c4d5e"`,
		"~^Default Packages: base-files busybox .* opkg ", "Available Profiles:", "",
		"demo_router-b2:", "    Demo Router B2", "    Packages: kmod-tun -mtd", "    hasImageMetadata: 1",
		"    SupportedDevices: demo,router-b2 demo,router-b2-v1 router-b2",
	} {
		if r.status != 0 || !hasLine(r.stdout, line) {
			t.Errorf("make info does not print %q: %s", line, r)
		}
	}
}

// diskImages builds all images for PCs, then one file system only, by the inner target, in the same tree.
func diskImages(t *testing.T, x *trees) {
	b := x.copy(t, opkg, "x86/64")
	all, _ := b.image("generic", "", "ROOTFS_PARTSIZE=48", "EXTRA_IMAGE_NAME=My_Extra 1", "CONFIG_TARGET_ROOTFS_EXT4FS=")
	var kinds []string
	for kind, i := range all {
		kinds = append(kinds, kind)
		if !strings.HasPrefix(i.Name, "openwrt-24.10.90-my-extra-1-x86-64-generic-") {
			t.Errorf("an image is called %s", i.Name)
		}
	}
	slices.Sort(kinds)
	want := "ext4-combined ext4-combined-efi ext4-rootfs kernel squashfs-combined squashfs-combined-efi squashfs-rootfs"
	if got := strings.Join(kinds, " "); got != want {
		t.Errorf("the images are %s, not %s", got, want)
	}
	if !b.exists("*-rootfs.tar.gz") || !b.exists("*.bom.cdx.json") {
		t.Error("the archive of the root file system or the bill of materials is missing")
	}
	disk := b.gunzip(all["ext4-combined"])
	const start = 2048*512 + 24<<20
	if len(disk) != start+48<<20 || disk[510] != 0x55 || disk[511] != 0xaa || string(disk[512+0x180:512+0x18c]) == "" {
		t.Errorf("the disk has %d bytes and ends its first sector with %x", len(disk), disk[510:512])
	}
	root := filepath.Join(t.TempDir(), "root.ext4")
	if err := os.WriteFile(root, disk[start:], 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "/usr/sbin/e2fsck", "-fn", root)
	if efi := b.gunzip(all["squashfs-combined-efi"]); string(efi[512:520]) != "EFI PART" || string(efi[start:start+4]) != "hsqs" {
		t.Error("the image for EFI has no partition table or no squashfs")
	}

	b.out = b.out + "-one"
	r := b.make("-s", "_call_image", "USER_PROFILE=DEVICE_generic", "BIN_DIR="+b.out, "EXTRA_IMAGE_NAME=my-extra-1",
		"CONFIG_TARGET_ROOTFS_PARTSIZE=48", "CONFIG_TARGET_ROOTFS_EXT4FS=", "CONFIG_TARGET_ROOTFS_TARGZ=")
	if r.status != 0 {
		t.Fatalf("make _call_image: %s", r)
	}
	one := b.images()
	if b.exists("*-rootfs.tar.gz") || len(one) != 4 || one["squashfs-combined"] != all["squashfs-combined"] {
		t.Errorf("squashfs alone gives %+v", one)
	}
}

// gunzip is the content of an image; a signature behind it is no part of that.
func (b tree) gunzip(i image) []byte {
	b.t.Helper()
	f, err := os.Open(filepath.Join(b.out, i.Name))
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		b.t.Fatal(err)
	}
	size, signed, err := usign.CutSignature(f, info.Size())
	if err != nil || !signed {
		b.t.Fatalf("%s is not signed by the tree's own key: %v", i.Name, err)
	}
	r, err := gzip.NewReader(io.NewSectionReader(f, 0, size))
	if err != nil {
		b.t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return content
}

// rootFilesystem looks for what packages' scripts, services, FILES and DISABLED_SERVICES leave.
func rootFilesystem(t *testing.T, x *trees) {
	files := t.TempDir()
	if err := os.MkdirAll(filepath.Join(files, "etc/uci-defaults"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(files, "etc/uci-defaults/99-asu-defaults"), []byte("uci set\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := x.copy(t, opkg, "demo/flash")
	images, _ := b.image("demo_router-a1", "nano", "FILES="+files, "DISABLED_SERVICES=cron dropbear")
	listing := command(t, "unsquashfs", "-lls", filepath.Join(b.path, "build_dir/target-x86_64_glibc/linux-demo_flash/root.squashfs"))
	for _, line := range []string{
		`~^-rw-r--r-- root/root .* squashfs-root/etc/uci-defaults/99-asu-defaults$`,
		`~squashfs-root/etc/rc.d/S19dnsmasq -> ../init.d/dnsmasq$`,
		`~squashfs-root/sbin/init -> /bin/busybox$`,
		`~^-rwxr-xr-x root/root .* squashfs-root/usr/bin/nano$`,
		`~squashfs-root/usr/lib/libncursesw.so.6$`,
		`~^drwxr-xr-x root/root .* 2025-05-23 11:33 squashfs-root/proc$`, // SOURCE_DATE_EPOCH
	} {
		if !hasLine(listing, line) {
			t.Errorf("the root file system has no %s:\n%s", line, listing)
		}
	}
	for _, name := range []string{"S50cron", "S19dropbear"} {
		if strings.Contains(listing, name) {
			t.Errorf("%s is enabled", name)
		}
	}
	passwd, err := os.ReadFile(filepath.Join(b.path, "build_dir/target-x86_64_glibc/root-demo/etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "\ndnsmasq:x:453:") {
		t.Errorf("dnsmasq's script has not made its user: %v\n%s", err, passwd)
	}
	sysupgrade, err := os.ReadFile(filepath.Join(b.out, images["squashfs-sysupgrade"].Name))
	if err != nil || !bytes.Contains(sysupgrade, []byte(`"supported_devices": ["demo,router-a1", "router-a1"]`)) {
		t.Errorf("the image does not say which boards it is for: %v", err)
	}
}

// equalBytes builds the same in two trees at different paths.
func equalBytes(t *testing.T, x *trees, version string) {
	one, other := x.copy(t, version, "demo/flash"), x.copy(t, version, "demo/flash")
	a, _ := one.image("demo_router-b2", "jq -firewall4")
	b, _ := other.image("demo_router-b2", "jq -firewall4")
	for kind, i := range a {
		if i.SHA256Unsigned != b[kind].SHA256Unsigned {
			t.Errorf("%s images differ", kind)
		}
		// Trees up to 24.10 sign by keys of their own what sysupgrade reads.
		if signed := i.SHA256 != i.SHA256Unsigned; signed != (version == opkg && kind == "squashfs-sysupgrade") {
			t.Errorf("%s image: signed %v", kind, signed)
		}
		if (i.Size != nil) != (version == apk) {
			t.Errorf("%s image: size %v", kind, i.Size)
		}
		checkUnsigned(t, filepath.Join(one.out, i.Name), i)
	}
	for _, name := range []string{"key-build", "key-build.pub", "key-build.ucert"} {
		if version == opkg {
			command(t, "cp", filepath.Join(one.path, name), other.path)
		}
	}
	if c, _ := other.image("demo_router-b2", "jq -firewall4"); c["squashfs-sysupgrade"].SHA256 != a["squashfs-sysupgrade"].SHA256 {
		t.Error("with the same keys the images still differ")
	}
}

// checkUnsigned cuts the signature off an image, if there is one, and compares with both sums.
func checkUnsigned(t *testing.T, name string, i image) {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	size, signed, err := usign.CutSignature(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	whole, cut := fmt.Sprintf("%x", sha256.Sum256(content)), fmt.Sprintf("%x", sha256.Sum256(content[:size]))
	if whole != i.SHA256 || cut != i.SHA256Unsigned || signed != (whole != cut) {
		t.Errorf("%s has the sums %s and %s, profiles.json says %s and %s", i.Name, whole, cut, i.SHA256, i.SHA256Unsigned)
	}
}

// warmTree shows that apk's indices are not fetched again, so that a dead feed goes unseen, and opkg's are.
func warmTree(t *testing.T, x *trees, f *faults) {
	builds := map[string]tree{}
	for _, version := range []string{opkg, apk} {
		b := x.copy(t, version, "demo/flash")
		b.edit(feedsFile(version), x.URL, x.URL+"/moody")
		_, r := b.image("demo_router-b2", "")
		if want := "WARNING: opening " + b.path + "/packages/packages.adb: No such file or directory"; hasLine(r.stderr, want) != (version == apk) {
			t.Errorf("a first run of %s: %q should be printed by apk alone: %s", version, want, r)
		}
		builds[version] = b
	}
	f.down.Store(true)
	if _, r := builds[apk].image("demo_router-b2", ""); strings.Contains(r.stderr, "WARNING") || strings.Contains(r.stderr, "ERROR") {
		t.Errorf("a warm tree notices that its feeds are down: %s", r)
	}
	if _, r := builds[opkg].image("demo_router-b2", ""); strings.Count(r.stderr, "*** Failed to download the package list") != 5 {
		t.Errorf("opkg does not notice that its feeds are down: %s", r)
	}
}

// ordinaryUser builds as a user whom the host does not know, as the builder does.
func ordinaryUser(t *testing.T, x *trees) {
	if os.Getuid() != 0 {
		return // every other build was one
	}
	const uid = 64123
	b := x.copy(t, apk, "x86/64")
	work, err := os.MkdirTemp("", "demo-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	command(t, "cp", "-a", b.path, work)
	command(t, "chown", "-R", fmt.Sprint(uid), work)
	b = tree{t: t, path: filepath.Join(work, "imagebuilder"), out: filepath.Join(work, "out"), user: &syscall.Credential{Uid: uid, Gid: uid}}
	b.make("-s", "_check_keys")
	r := b.make("-s", "_call_image", "USER_PACKAGES=kmod-wireguard", "BIN_DIR="+b.out, "CONFIG_GRUB_IMAGES=", "CONFIG_TARGET_ROOTFS_TARGZ=")
	if r.status != 0 || len(b.images()) != 5 {
		t.Errorf("the images are not made: %s", r)
	}
}

func removal(t *testing.T, x *trees) {
	b := x.copy(t, apk, "demo/flash")
	b.image("demo_router-b2", "nano -terminfo -uclient-fetch")
	m := b.manifest()
	if !strings.Contains(m, "terminfo - ") || strings.Contains(m, "uclient-fetch - ") || strings.Contains(m, "mtd - ") {
		t.Errorf("removals take out what is needed, or leave what is not:\n%s", m)
	}
	world, err := os.ReadFile(filepath.Join(b.path, "build_dir/target-x86_64_glibc/root-demo/etc/apk/world"))
	if err != nil || !hasLine(string(world), "~^base-files=1700~3c5d7e9f1a$") || !hasLine(string(world), "nano") {
		t.Errorf("the world is %v\n%s", err, world)
	}
}

func manifest(t *testing.T, x *trees) {
	b := x.copy(t, opkg, "demo/flash")
	r := b.make("manifest", "PROFILE=demo_router-a1", "PACKAGES=jq htop")
	stripped := b.make("manifest", "PROFILE=demo_router-a1", "PACKAGES=jq htop", "STRIP_ABI=1")
	for full, bare := range map[string]string{"libjq1.6": "libjq", "libnl3-200": "libnl3", "libncurses6": "libncurses", "jq": "jq"} {
		if !hasLine(r.stdout, "~^"+full+" - ") || !hasLine(stripped.stdout, "~^"+bare+" - ") {
			t.Errorf("the manifests do not hold %s and %s: %s%s", full, bare, r, stripped)
		}
	}
	if first, _, _ := strings.Cut(r.stdout, "\n"); first != "base-files - 1700~2a1b3c4d5e" {
		t.Errorf("a manifest begins with %q", first)
	}
}

// expansion shows that names are expanded by make and a shell: whoever calls make must check them.
func expansion(t *testing.T, x *trees) {
	b := x.copy(t, apk, "demo/flash")
	b.make("image", "PROFILE=$(shell touch by-make)")
	b.make("_call_image", "USER_PACKAGES=nano'; touch by-shell; '")
	for _, name := range []string{"by-make", "by-shell"} {
		if _, err := os.Stat(filepath.Join(b.path, name)); err != nil {
			t.Errorf("%v: the demo is tamer than OpenWrt", err)
		}
	}
}

func oldVersion(t *testing.T, x *trees) {
	b := x.copy(t, "23.05.90", "demo/flash")
	images, _ := b.image("demo_factory-only", "luci-app-attendedsysupgrade")
	if _, ok := images["squashfs-factory"]; !ok || len(images) != 1 || b.exists("*.bom.cdx.json") {
		t.Errorf("the images are %v", images)
	}
}

// bareVersion is like 19.07: what it builds only the names tell.
func bareVersion(t *testing.T, x *trees) {
	for target, want := range map[string][]string{
		"demo/flash": {"demo-flash-demo_router-a1-squashfs-factory.bin", "demo-flash-demo_router-a1-squashfs-sysupgrade.bin", "demo-flash-demo_router-a1.manifest"},
		"x86/64": {"x86-64-combined-ext4.img.gz", "x86-64-combined-squashfs.img.gz", "x86-64-generic-rootfs.tar.gz", "x86-64-generic.manifest",
			"x86-64-rootfs-ext4.img.gz", "x86-64-rootfs-squashfs.img.gz", "x86-64-vmlinuz"},
	} {
		b := tree{t: t, path: filepath.Join(t.TempDir(), "imagebuilder"), out: filepath.Join(t.TempDir(), "out")}
		command(t, "cp", "-al", x.unpacked("19.07.90", target), b.path)
		if r := b.make("info"); !hasLine(r.stdout, `Current Revision: "r11900-0d9e8f7a6b"`) || strings.Contains(r.stdout, "Architecture") {
			t.Errorf("make info: %s", r)
		}
		profile := map[string]string{"demo/flash": "demo_router-a1", "x86/64": "generic"}[target]
		if r := b.make("image", "PROFILE="+profile, "BIN_DIR="+b.out); r.status == 0 || !strings.Contains(r.stderr, "Please install 'python2'") {
			t.Errorf("it does without Python 2: %s", r)
		}
		command(t, "touch", filepath.Join(b.path, "staging_dir/host/.prereq-build"))
		if r := b.make("image", "PROFILE="+profile, "BIN_DIR="+b.out); r.status != 0 {
			t.Fatalf("make image: %s", r)
		}
		entries, err := os.ReadDir(b.out)
		var names []string
		for _, e := range entries {
			names = append(names, strings.TrimPrefix(e.Name(), "openwrt-19.07.90-"))
		}
		if !slices.Equal(names, append(want, "sha256sums")) {
			t.Errorf("%s leaves %q, want %q (%v)", target, names, want, err)
		}
	}
	upstream, err := filepath.Glob(filepath.Join(x.Dir, "releases/19.07.90/targets/*/*/*.json"))
	if err != nil || len(upstream) > 0 {
		t.Errorf("the upstream has %q (%v)", upstream, err)
	}
}

// snapshot builds before and after the snapshot has moved.
func snapshot(t *testing.T, x *trees) {
	for _, revision := range []string{"r34000-0123456789", "r34123-abcdef0123"} {
		x.Move(revision)
		x.folders = map[string]string{}
		b := x.copy(t, "SNAPSHOT", "demo/flash")
		images, _ := b.image("demo_router-a1", "")
		if p := b.profiles(); p.VersionCode != revision || !strings.HasPrefix(images["squashfs-sysupgrade"].Name, "openwrt-demo-flash-") {
			t.Errorf("the snapshot %s builds %+v", revision, p)
		}
		if !hasLine(b.manifest(), "base-files - 1700~"+revision[len("r34000-"):]) {
			t.Errorf("the snapshot %s holds\n%s", revision, b.manifest())
		}
	}
}

func TestMain(m *testing.M) {
	syscall.Umask(0o022)
	os.Exit(m.Run())
}
