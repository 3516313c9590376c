package instant

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/attended-sysupgrade/sysup/scripts/upstream"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// world is an upstream and the ImageBuilders unpacked from it.
type world struct {
	Upstream
	t testing.TB
}

func newWorld(t testing.TB, o Options) world {
	t.Helper()
	for _, tool := range []string{"make", "awk", "flock", "sha256sum", "gzip", "od"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run scripts/setup", tool)
		}
	}
	u, err := Write(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	return world{u, t}
}

func (w world) read(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// verified are the checked sums of a target's folder.
func (w world) verified(folder string) usign.Sums {
	w.t.Helper()
	list := w.read(folder + "/sha256sums")
	sums, err := usign.ParseSums(list)
	if err := errors.Join(err, usign.VerifyFile([]usign.PublicKey{w.Key.Public()}, list, w.read(folder+"/sha256sums.sig"))); err != nil {
		w.t.Fatal(err)
	}
	return sums
}

// builder unpacks a fresh ImageBuilder.
func (w world) builder(version, target string) imageBuilder {
	w.t.Helper()
	folder := upstream.Path(version) + "/targets/" + target
	for name := range w.verified(folder) {
		if strings.Contains(name, "imagebuilder") {
			dir := w.t.TempDir()
			unpack(w.t, dir, name, w.read(folder+"/"+name))
			return imageBuilder{w.t, filepath.Join(dir, name[:strings.Index(name, ".tar")])}
		}
	}
	w.t.Fatalf("%s has no ImageBuilder", folder)
	return imageBuilder{}
}

func unpack(t testing.TB, dir, name string, packed []byte) {
	t.Helper()
	var r io.Reader
	var err error
	switch filepath.Ext(name) {
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(packed))
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(packed))
	case ".zst":
		r, err = zstd.NewReader(bytes.NewReader(packed))
	}
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if err == io.EOF {
			return
		}
		if err == nil && h.Typeflag == tar.TypeDir {
			err = root.Mkdir(strings.TrimSuffix(h.Name, "/"), 0o755)
		} else if err == nil {
			content, _ := io.ReadAll(files)
			err = root.WriteFile(h.Name, content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

type imageBuilder struct {
	t   testing.TB
	dir string
}

// output is what one make left behind.
type output struct {
	dir            string
	stdout, stderr string
	code           int
}

// make runs make with nothing in the environment but a PATH.
func (b imageBuilder) make(args ...string) output {
	b.t.Helper()
	out := output{dir: filepath.Join(b.t.TempDir(), "bin")}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("make", append(args, "BIN_DIR="+out.dir)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = b.dir, []string{"PATH=" + os.Getenv("PATH")}, &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	out.stdout, out.stderr, out.code = stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
	return out
}

func (b imageBuilder) build(args ...string) output {
	b.t.Helper()
	out := b.make(args...)
	if out.code != 0 {
		b.t.Fatalf("make %q: %s", args, out.stderr)
	}
	return out
}

func (o output) files(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(o.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range entries {
		b, err := os.ReadFile(filepath.Join(o.dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(b)
	}
	return files
}

func (o output) profiles(t testing.TB) upstream.Profiles {
	t.Helper()
	var p upstream.Profiles
	if err := json.Unmarshal([]byte(o.files(t)["profiles.json"]), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEveryImageBuilder(t *testing.T) {
	w := newWorld(t, Options{})
	for _, version := range Versions {
		for _, target := range targets {
			t.Run(version+" "+target.name, func(t *testing.T) {
				w := world{w.Upstream, t}
				var listed upstream.Profiles
				if err := json.Unmarshal(w.read(upstream.Path(version)+"/targets/"+target.name+"/profiles.json"), &listed); err != nil {
					t.Fatal(err)
				}
				b := w.builder(version, target.name)
				if info := b.build("info").stdout; !strings.Contains(info, fmt.Sprintf("Current Revision: %q\n", listed.VersionCode)) {
					t.Errorf("make info prints\n%s", info)
				}
				for id, profile := range listed.Profiles {
					w.checkBuild(b.build("image", "PROFILE="+id, "PACKAGES=tmux"), listed, id, profile)
				}
			})
		}
	}
}

// checkBuild holds a build of the stock image against what the target's
// profiles.json says of it.
func (w world) checkBuild(out output, listed upstream.Profiles, id string, want upstream.Profile) {
	t := w.t
	built := out.profiles(t)
	got := built.Profiles[id]
	if len(got.Images) != len(want.Images) || len(want.Images) == 0 {
		t.Fatalf("%d images of %s, not %d", len(got.Images), id, len(want.Images))
	}
	files := out.files(t)
	for i, image := range got.Images {
		if image.Name != want.Images[i].Name || image.Type != want.Images[i].Type || image.Filesystem != want.Images[i].Filesystem {
			t.Errorf("image %v, not %v", image, want.Images[i])
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(files[image.Name]))); image.SHA256 != sum || image.SHA256Unsigned != sum {
			t.Errorf("the sum of %s is %s", image.Name, sum)
		}
	}
	got.Images, want.Images = nil, nil
	built.Profiles, listed.Profiles = nil, nil
	if fmt.Sprint(got) != fmt.Sprint(want) || fmt.Sprint(*built.Kernel) != fmt.Sprint(*listed.Kernel) {
		t.Errorf("profile %v, not %v", got, want)
	}
	built.Kernel, listed.Kernel = nil, nil
	if fmt.Sprint(built) != fmt.Sprint(listed) {
		t.Errorf("target %v, not %v", built, listed)
	}
	manifest := files[got.ImagePrefix+".manifest"]
	if !strings.Contains(manifest, "libfoo2-3 - 1.0-r1\n") || !strings.Contains(manifest, "tmux - 3.4-r1\n") {
		t.Errorf("the manifest of %s is\n%s", id, manifest)
	}
	sums, err := usign.ParseSums([]byte(files["sha256sums"]))
	if err != nil || len(sums) != len(files)-1 {
		t.Errorf("%d sums of %d files, %v", len(sums), len(files), err)
	}
}

func TestLines(t *testing.T) {
	out := newWorld(t, Options{Versions: []string{"24.10.0"}}).builder("24.10.0", "x86/64").build("image", "PROFILE=generic", "PACKAGES=nano -dnsmasq")
	rest := out.stdout
	for _, line := range []string{"Building images for x86 - Generic x86/64\n", "Packages: nano base-files busybox ca-bundle dropbear ",
		"\nInstalling packages...\n", "Installing nano (8.3-r1) to root...\n", "\nFinalizing root filesystem...\n", "\nBuilding images...\n", "\nCalculating checksums...\n"} {
		_, after, found := strings.Cut(rest, line)
		if rest = after; !found {
			t.Fatalf("%q is missing or out of order in\n%s", line, out.stdout)
		}
	}
	if strings.Contains(out.stdout, "dnsmasq") {
		t.Errorf("dnsmasq was installed:\n%s", out.stdout)
	}
}

// Equal inputs give equal bytes in any tree, the SBOM aside; everything that
// is asked for shows in the images.
func TestImagesDependOnWhatWasAsked(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0"}})
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "script"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	images := func(args ...string) string {
		var all strings.Builder
		made := w.builder("24.10.0", "x86/64").build(append([]string{"image", "EXTRA_IMAGE_NAME=abc"}, args...)...).files(t)
		for _, name := range slices.Sorted(maps.Keys(made)) {
			if !strings.HasSuffix(name, ".bom.cdx.json") && name != "sha256sums" {
				all.WriteString(name + "\n" + made[name])
			}
		}
		return all.String()
	}
	stock := images()
	if images("PROFILE=generic") != stock {
		t.Error("equal inputs give different images")
	}
	for _, args := range [][]string{{"PACKAGES=nano"}, {"PACKAGES=-dnsmasq"}, {"FILES=" + files}, {"ROOTFS_PARTSIZE=300"}, {"DISABLED_SERVICES=x"}, {"EXTRA_IMAGE_NAME=def"}} {
		if images(args...) == stock {
			t.Errorf("%q changes nothing", args)
		}
	}
	if !strings.Contains(images("FILES="+files), "secret") {
		t.Error("the images do not hold the file")
	}
	// CONFIG_ variables given to make image are lost, as in the real one.
	if images("CONFIG_TARGET_ROOTFS_EXT4FS=") != stock {
		t.Error("make image takes CONFIG_ variables")
	}
}

func TestOneFilesystem(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"23.05.5"}})
	whole := w.builder("23.05.5", "x86/64").build("image", "PROFILE=generic", "PACKAGES=nano").files(t)
	part := w.builder("23.05.5", "x86/64").build("-s", "_call_image", "USER_PROFILE=DEVICE_generic", "USER_PACKAGES=nano",
		"CONFIG_TARGET_ROOTFS_EXT4FS=", "CONFIG_TARGET_ROOTFS_TARGZ=").files(t)
	for name, content := range part {
		if strings.Contains(name, "ext4") || strings.Contains(name, "tar.gz") {
			t.Errorf("%s was made", name)
		}
		if strings.Contains(name, "squashfs") && content != whole[name] {
			t.Errorf("%s differs", name)
		}
	}
	if len(part) != len(whole)-4 {
		t.Errorf("%d of %d files", len(part), len(whole))
	}
}

func TestStepsOneByOne(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0"}})
	whole := w.builder("24.10.0", "x86/64").build("image", "PACKAGES=nano")
	b := w.builder("24.10.0", "x86/64")
	bin := t.TempDir()
	for _, step := range []string{"package_reload", "package_install", "prepare_rootfs", "build_image", "json_overview_image_info", "checksum"} {
		cmd := exec.Command("make", "-s", step, "USER_PROFILE=DEVICE_generic", "USER_PACKAGES=nano", "BIN_DIR="+bin)
		cmd.Dir = b.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", step, err, out)
		}
	}
	if got := (output{dir: bin}).profiles(t); fmt.Sprint(got.Profiles) != fmt.Sprint(whole.profiles(t).Profiles) {
		t.Errorf("step by step %v", got.Profiles)
	}
}

func TestExtraName(t *testing.T) {
	out := newWorld(t, Options{Versions: []string{"SNAPSHOT"}}).builder("SNAPSHOT", "ath79/generic").build("image", "PROFILE=8dev_carambola2", "EXTRA_IMAGE_NAME=A_b c")
	if prefix := out.profiles(t).Profiles["8dev_carambola2"].ImagePrefix; prefix != "openwrt-a-b-c-ath79-generic-8dev_carambola2" {
		t.Errorf("the prefix is %s", prefix)
	}
}

func TestFailures(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0", "25.12.0"}})
	for _, c := range []struct {
		version, target string
		args            []string
		says            []string
	}{
		{"24.10.0", "x86/64", []string{"PROFILE=nope"}, []string{"Profile \"nope\" does not exist!\n"}},
		{"24.10.0", "x86/64", []string{"PACKAGES=no-such-pkg"}, []string{"Collected errors:\n", " * opkg_install_cmd: Cannot install package no-such-pkg.\n"}},
		{"24.10.0", "x86/64", []string{"PACKAGES=conflict-a conflict-b"}, []string{" * check_conflicts_for: The following packages conflict with conflict-a:\n * check_conflicts_for: \tconflict-b * \n"}},
		{"24.10.0", "x86/64", []string{"PACKAGES=broken-dep"}, []string{" * pkg_hash_check_unresolved: cannot find dependency no-such-library for broken-dep\n"}},
		{"24.10.0", "x86/64", []string{"PACKAGES=dnsmasq-full"}, []string{"But that file is already provided by package  * dnsmasq-full\n"}},
		{"24.10.0", "x86/64", []string{"PACKAGES=too-big"}, []string{"error: ext4_allocate_best_fit_partial: failed to allocate 8 blocks, out of space?\n"}},
		{"25.12.0", "x86/64", []string{"PACKAGES=no-such-pkg"}, []string{"ERROR: unable to select packages:\n  no-such-pkg (no such package):\n    required by: world[no-such-pkg]\n"}},
		{"25.12.0", "x86/64", []string{"PACKAGES=conflict-a conflict-b"}, []string{"conflict-b-1.0-r1:\n", " breaks: conflict-a-1.0-r1[!conflict-b]\n", " satisfies: world[conflict-b]\n"}},
		{"25.12.0", "x86/64", []string{"PACKAGES=broken-dep"}, []string{"no-such-library (no such package):\n    required by: broken-dep-1.0-r1[no-such-library]\n"}},
	} {
		out := w.builder(c.version, c.target).make(append([]string{"image"}, c.args...)...)
		if out.code != 2 {
			t.Errorf("%s %q: exit %d", c.version, c.args, out.code)
		}
		for _, line := range c.says {
			if !strings.Contains(out.stdout+out.stderr, line) {
				t.Errorf("%s %q does not say %q:\n%s", c.version, c.args, line, out.stderr)
			}
		}
		if _, ok := out.files(t)["profiles.json"]; ok {
			t.Errorf("%s %q leaves a profiles.json", c.version, c.args)
		}
	}
}

func TestWhatGoesWell(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0", "25.12.0"}})
	for _, c := range []struct{ version, args, manifest string }{
		{"24.10.0", "PACKAGES=dnsmasq-full -dnsmasq", "dnsmasq-full - "},
		{"25.12.0", "PACKAGES=dnsmasq-full", "dnsmasq-full - "},
		{"24.10.0", "PACKAGES=wget", "wget-ssl - "},
		{"24.10.0", "PACKAGES=libfoo2", "libfoo2-3 - "},
		{"24.10.0", "PACKAGES=-libubox", "libubox20240329 - "},
		{"24.10.0", "ROOTFS_PARTSIZE=512 PACKAGES=too-big", "too-big - "},
	} {
		var args []string
		if size, packages, ok := strings.Cut(c.args, " PACKAGES"); ok {
			args = []string{size, "PACKAGES" + packages}
		} else {
			args = []string{c.args}
		}
		files := w.builder(c.version, "x86/64").build(append([]string{"image"}, args...)...).files(t)
		for name, content := range files {
			if strings.HasSuffix(name, ".manifest") && !strings.Contains("\n"+content, "\n"+c.manifest) {
				t.Errorf("%s %s gives\n%s", c.version, c.args, content)
			}
		}
	}
}

// A flash device's image that is too big is no failure to make, as in the real
// one: only the files tell.
func TestTooBigForFlash(t *testing.T) {
	out := newWorld(t, Options{Versions: []string{"24.10.0"}}).builder("24.10.0", "ath79/generic").build("image", "PROFILE=tplink_archer-c7-v2", "PACKAGES=too-big")
	if !strings.Contains(out.stderr, "-squashfs-sysupgrade.bin is too big: ") {
		t.Errorf("no warning: %s", out.stderr)
	}
	if names := slices.Sorted(maps.Keys(out.files(t))); len(names) != 3 || slices.Contains(names, "profiles.json") {
		t.Errorf("files %q", names)
	}
}

func TestBeforeAndAfter(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0"},
		Before: `echo "Signature check failed." >&2`, After: `rm "$BIN_DIR/profiles.json"; ln -s /etc/passwd "$BIN_DIR/x.bin"`})
	out := w.builder("24.10.0", "x86/64").build("image")
	if _, err := os.Lstat(filepath.Join(out.dir, "profiles.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("profiles.json is there: %v", err)
	}
	if info, err := os.Lstat(filepath.Join(out.dir, "x.bin")); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("no link: %v", err)
	}
	if !strings.HasPrefix(out.stderr, "Signature check failed.\n") {
		t.Errorf("stderr is %q", out.stderr)
	}
	if err := w.Update(Options{Versions: []string{"24.10.0"}, Before: "exit 3"}); err != nil {
		t.Fatal(err)
	}
	out = w.builder("24.10.0", "x86/64").make("image")
	if files := out.files(t); out.code != 2 || len(files) != 0 {
		t.Errorf("exit %d, %d files", out.code, len(files))
	}
}

func TestLocalSignature(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0", "25.12.0"}, LocalSignature: true})
	for version, signs := range map[string]bool{"24.10.0": true, "25.12.0": false} {
		b := w.builder(version, "ath79/generic")
		b.build("_check_keys")
		out := b.build("-s", "_call_image", "USER_PROFILE=DEVICE_tplink_archer-c7-v2")
		files := out.files(t)
		for _, image := range out.profiles(t).Profiles["tplink_archer-c7-v2"].Images {
			content := files[image.Name]
			size, found, err := usign.CutSignature(strings.NewReader(content), int64(len(content)))
			if err != nil || found != (signs && image.Type == "sysupgrade") {
				t.Errorf("%s %s: signature %v, %v", version, image.Name, found, err)
			}
			if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content))); sum != image.SHA256 {
				t.Errorf("%s %s: sha256 is %s", version, image.Name, sum)
			}
			if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content[:size]))); sum != image.SHA256Unsigned {
				t.Errorf("%s %s: sha256_unsigned is not %s", version, image.Name, sum)
			}
		}
	}
}

func TestOneBuildPerTree(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0"}, Before: `echo started; read line`})
	b := w.builder("24.10.0", "x86/64")
	first := exec.Command("make", "image", "BIN_DIR="+t.TempDir())
	first.Dir = b.dir
	in, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	var log []byte
	for buf := make([]byte, 100); !bytes.Contains(log, []byte("started")); {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, buf[:n]...)
	}
	if second := b.make("image"); second.code == 0 || !strings.Contains(second.stderr, "Could not lock") {
		t.Errorf("a second build in the same tree: exit %d, %s", second.code, second.stderr)
	}
	in.Close()
	io.Copy(io.Discard, out)
	first.Wait()
}

func TestUpdateMovesTheSnapshot(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0", "SNAPSHOT"}})
	stat := func(name string) fs.FileInfo {
		info, err := os.Stat(filepath.Join(w.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	release, snapshot := "releases/24.10.0/targets/x86/64/sha256sums", "snapshots/targets/x86/64/sha256sums"
	oldRelease, oldSnapshot := stat(release), stat(snapshot)
	if err := w.Update(Options{Versions: []string{"24.10.0", "SNAPSHOT"}, Snapshot: "r28001-fedcba9876"}); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(oldRelease, stat(release)) || os.SameFile(oldSnapshot, stat(snapshot)) {
		t.Error("the release was written again, or the snapshot was not")
	}
	w.verified("snapshots/targets/x86/64")
	if out := w.builder("SNAPSHOT", "x86/64").build("image"); out.profiles(t).VersionCode != "r28001-fedcba9876" {
		t.Errorf("built revision %s", out.profiles(t).VersionCode)
	}
}

func TestOtherRevision(t *testing.T) {
	w := newWorld(t, Options{Versions: []string{"24.10.0"}, Revision: "r1-other"})
	if info := w.builder("24.10.0", "x86/64").build("info").stdout; !strings.Contains(info, "Current Revision: \"r1-other\"\n") {
		t.Errorf("make info prints\n%s", info)
	}
}

func TestUnknownVersion(t *testing.T) {
	if _, err := Write(t.TempDir(), Options{Versions: []string{"1.2.3"}}); err == nil {
		t.Error("a version that does not exist was made")
	}
}

// BenchmarkMake is what one build costs without anything of ours.
func BenchmarkMake(b *testing.B) {
	tree := newWorld(b, Options{Versions: []string{"24.10.0"}}).builder("24.10.0", "x86/64")
	bin := b.TempDir()
	for b.Loop() {
		cmd := exec.Command("make", "image", "PROFILE=generic", "PACKAGES=nano", "BIN_DIR="+bin)
		cmd.Dir = tree.dir
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	dir, n := b.TempDir(), 0
	for b.Loop() {
		if _, err := Write(filepath.Join(dir, fmt.Sprint(n)), Options{}); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
