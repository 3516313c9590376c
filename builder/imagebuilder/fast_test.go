package imagebuilder

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

const knownChain = "image:\n\t$(MAKE) -s _check_profile\n\t$(MAKE) -s _check_keys\n\t$(MAKE) -s _call_image\n\n" +
	"_call_image: staging_dir/host/.prereq-build\n\techo 'Building images for $(BOARD)'\n\techo\n" +
	"\trm -rf $(TARGET_DIR) $(TARGET_DIR_ORIG)\n\tmkdir -p $(TARGET_DIR) $(BIN_DIR) $(TMP_DIR) $(DL_DIR)\n" +
	"\t$(MAKE) package_reload\n\t$(MAKE) package_install\n\t$(MAKE) -s prepare_rootfs\n\t$(MAKE) -s build_image\n" +
	"\t$(MAKE) -s json_overview_image_info\n\t$(MAKE) -s checksum\n\n_call_manifest: FORCE\n\t$(MAKE) package_reload\n"

// A tree is known by its chain; one link that is other, more or less makes it a
// foreign one.
func TestChain(t *testing.T) {
	for _, test := range []struct {
		about, old, text string
		known            bool
	}{
		{"as it is", "", "", true},
		{"quiet", "\techo 'B", "\t@echo 'B", true},
		{"a step more", "\t$(MAKE) -s build_image\n", "\t$(MAKE) -s build_image\n\t$(MAKE) -s sign_images\n", false},
		{"a step less", "\t$(MAKE) -s checksum\n", "", false},
		{"another order", "\t$(MAKE) package_reload\n\t$(MAKE) package_install\n", "\t$(MAKE) package_install\n\t$(MAKE) package_reload\n", false},
		{"a command", "\techo\n", "\techo\n\tcp -r extra $(TARGET_DIR)\n", false},
		{"a variable", "\t$(MAKE) -s checksum\n", "\t$(MAKE) -s checksum STRICT=1\n", false},
		{"a command after echo's", "\trm -rf $(TARGET_DIR)", "\trm -rf $(TARGET_DIR); sh extra", false},
		{"a condition", "\t$(MAKE) -s build_image\n", "ifdef X\n\t$(MAKE) -s build_image\nendif\n", false},
		{"without keys", "\t$(MAKE) -s _check_keys\n", "", false},
		{"none", "_call_image:", "_make_image:", false},
	} {
		text := strings.Replace(knownChain, test.old, test.text, 1)
		if test.old != "" && text == knownChain {
			t.Fatalf("%s: nothing was changed", test.about)
		}
		o, err := inspect(writeTree(t, text, disk))
		if err != nil || o.chain != test.known {
			t.Errorf("%s: known %t, %v", test.about, o.chain, err)
		}
	}
	if o, err := inspect(writeTree(t, knownChain, "# CONFIG_JSON_OVERVIEW_IMAGE_INFO is not set\n")); err != nil || o.chain {
		t.Errorf("a tree without profiles.json is known: %v", err)
	}
}

const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestFacts(t *testing.T) {
	good := "root=/tmp/imagebuilder/build_dir/target-x86_64_musl/root-x86\nprofile=DEVICE_generic\npackages=base-files -x \"libc=1\"\n" +
		sum + "  openwrt_base\n" + sum + "  openwrt_base.sig\nanything\n"
	f, err := readFacts(good, "/tmp/imagebuilder")
	if err != nil || f.root != "build_dir/target-x86_64_musl/root-x86" || f.packages != `base-files -x "libc=1"` || strings.Count(f.indices, "\n") != 2 {
		t.Errorf("%+v, %v", f, err)
	}
	for _, change := range [][2]string{
		{"root=/tmp/imagebuilder/", "root=/etc/"}, {"/build_dir/", "/../build_dir/"}, {"root-x86", "root-x86/../../../etc"}, {"root-x86", "other"},
		{"DEVICE_generic", ""}, {"packages=base-files -x \"libc=1\"", "packages="}, {"root=", "toor="},
	} {
		if f, err := readFacts(strings.Replace(good, change[0], change[1], 1), "/tmp/imagebuilder"); err == nil {
			t.Errorf("%q instead of %q gives %+v", change[1], change[0], f)
		}
	}
}

// Whatever is printed, a root folder is one of the tree.
func FuzzFacts(f *testing.F) {
	f.Add("root=/t/build_dir/target-a/root-b\nprofile=P\npackages=a\n" + sum + "  x\n")
	f.Add("root=/t/build_dir/../root-b\nprofile=\n")
	f.Fuzz(func(t *testing.T, text string) {
		told, err := readFacts(text, "/t")
		if err == nil && (!filepath.IsLocal(told.root) || strings.Count(told.root, "/") != 2 || told.packages == "") {
			t.Errorf("%+v", told)
		}
	})
}

// packed is a tar of the entries; name "a -> b" is a link.
func packed(t testing.TB, entries map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(entries[name])), Typeflag: tar.TypeReg, ModTime: time.Unix(2114380800, 0)}
		if link, target, ok := strings.Cut(name, " -> "); ok {
			header.Name, header.Linkname, header.Typeflag, header.Size = link, target, tar.TypeSymlink, 0
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, strings.NewReader(entries[name]), header.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What is prepared holds the known files and nothing else, and its links move
// along with the tree.
func TestRepack(t *testing.T) {
	var kept, handed bytes.Buffer
	before := packed(t, map[string]string{
		"./.profiles.mk": "PROFILE_NAMES = DEVICE_generic\n", "./key-build": "k", "./key-build.ucert.revoke": "r", "./keys/35b29a503db04ebd": "p",
		"./packages/Packages.gz": "g", "./packages/packages.adb": "a", "./staging_dir/host/.prereq-build": "",
		"./staging_dir/host/bin/python3 -> /usr/bin/python3": "", "./staging_dir/host/bin/ldconfig -> /old/tree/scripts/noop.sh": "",
	})
	err := repack(&kept, bytes.NewReader(before), "/old/tree", atTree, true)
	if err == nil {
		err = repack(&handed, bytes.NewReader(kept.Bytes()), atTree, "/new/tree", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	links, r := map[string]string{}, tar.NewReader(&handed)
	files := 0
	for header, err := r.Next(); err != io.EOF; header, err = r.Next() {
		if err != nil {
			t.Fatal(err)
		}
		if files++; header.Typeflag == tar.TypeSymlink {
			links[filepath.Base(header.Name)] = header.Linkname
		}
		if header.ModTime.Unix() != 2114380800 {
			t.Errorf("%s is dated %s", header.Name, header.ModTime)
		}
	}
	if files != 9 || !maps.Equal(links, map[string]string{"python3": "/usr/bin/python3", "ldconfig": "/new/tree/scripts/noop.sh"}) {
		t.Errorf("%d files, links %v", files, links)
	}
	for _, entry := range []string{
		"./.config", "./scripts/json_overview_image_info.py", "./staging_dir/host/bin/gzip", "./packages/evil.ipk", "../key-build",
		"./keys/../scripts/x", "./key-build -> /etc/shadow", "./staging_dir/host/bin/gzip -> ../../../x", "./include/image.mk",
	} {
		if err := repack(io.Discard, bytes.NewReader(packed(t, map[string]string{entry: "x"})), "/old/tree", atTree, true); err == nil {
			t.Errorf("%s may be prepared", entry)
		}
	}
	if err := repack(io.Discard, bytes.NewReader(packed(t, map[string]string{"./.profiles.mk": "see /old/tree/x"})), "/old/tree", atTree, true); err == nil {
		t.Error("a file that names its own place may be prepared")
	}
}

const opkgStatus = "Package: libubox20240329\nVersion: 1\nProvides: libubox, libubox-any (= 1)\nStatus: install ok installed\nAuto-Installed: yes\n\n" +
	"Package: dropbear\nStatus: install user installed\n\nPackage: ubus\nAuto-Installed: yes\n"

func TestAutomatic(t *testing.T) {
	names, err := automatic(bytes.NewReader(packed(t, map[string]string{"root-x86/etc/a": "x", "root-x86/usr/lib/opkg/status": opkgStatus})))
	if err != nil || !slices.Equal(names, []string{"libubox20240329", "libubox", "libubox-any", "ubus"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := automatic(bytes.NewReader(packed(t, map[string]string{"root-x86/etc/a": "x"}))); err == nil {
		t.Error("a root without a status is taken")
	}
}

// Every name that is found stands in the text.
func FuzzAutomatic(f *testing.F) {
	f.Add(opkgStatus)
	f.Add("Auto-Installed: yes\nPackage: a,b c\n")
	f.Fuzz(func(t *testing.T, text string) {
		names, _ := automaticOf(strings.NewReader(text))
		for _, name := range names {
			if !strings.Contains(text, name) {
				t.Errorf("%q is not in %q", name, text)
			}
		}
	})
}

// A base root serves those who name nothing that it holds as a dependency. It is
// another one with every other package, profile or index, and is made when it is
// missed again.
func TestBaseRoot(t *testing.T) {
	tree := storedIn(t, openStore(t, 1<<20))
	told := facts{root: "build_dir/target-a/root-b", profile: "DEVICE_a", packages: "base-files", indices: sum + "  core\n"}
	root := tree.baseRoot(told)
	for i, want := range []bool{false, true, true} {
		if use, worth := root.there(&build.Plan{}); use || worth != want {
			t.Errorf("miss %d: use %t, worth %t", i, use, worth)
		}
	}
	status := packed(t, map[string]string{"root-b/usr/lib/opkg/status": opkgStatus})
	if err := root.keep(bytes.NewReader(status)); err != nil {
		t.Fatal(err)
	}
	for add, want := range map[string]bool{"nano": true, "dropbear": true, "ubus": false, "libubox": false} {
		if use, worth := root.there(&build.Plan{Add: []string{add}}); use != want || worth {
			t.Errorf("with %s: use %t, worth %t", add, use, worth)
		}
	}
	for _, other := range []facts{
		{root: "build_dir/target-a/root-c", packages: told.packages, indices: told.indices},
		{root: told.root, packages: "base-files -x", indices: told.indices},
		{root: told.root, packages: told.packages, indices: strings.Replace(told.indices, "e3", "e4", 1)},
		{root: told.root, packages: told.packages + told.indices},
	} {
		if use, _ := tree.baseRoot(other).there(&build.Plan{}); use {
			t.Errorf("%+v gets the root of others", other)
		}
	}
}

// storedIn puts an empty tree into a store.
func storedIn(t *testing.T, s *Store) *Tree {
	t.Helper()
	tree := s.hold(sum, ignore)
	err := os.MkdirAll(tree.Path, 0o755)
	if err == nil {
		err = os.WriteFile(tree.beside(sizeFile), []byte("100"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// Base roots count as trees do, and go before trees that were used later.
func TestRootsKeepBudget(t *testing.T) {
	s := openStore(t, 4000)
	tree := storedIn(t, s)
	var roots []baseRoot
	for i, packages := range []string{"a", "b", "c"} {
		root := tree.baseRoot(facts{packages: packages})
		if err := root.keep(bytes.NewReader(packed(t, map[string]string{"root-b/usr/lib/opkg/status": opkgStatus}))); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(root.file(rootEnding), used, used); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	s.trim()
	for i, want := range []bool{false, false, true} {
		_, err := os.Stat(roots[i].file(rootEnding))
		_, autoErr := os.Stat(roots[i].file(autoEnding))
		if (err == nil) != want || (autoErr == nil) != want {
			t.Errorf("root %d: %v, %v", i, err, autoErr)
		}
	}
	tree.Release()
	s.options.Budget = 0
	s.trim()
	if left := content(t, s); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestTrust(t *testing.T) {
	tree := storedIn(t, openStore(t, 1<<20))
	write := func(makefile string) {
		for name, text := range map[string]string{"Makefile": makefile, ".config": disk} {
			if err := os.WriteFile(filepath.Join(tree.Path, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(oldMakefile)
	if got := tree.Trust(); got != TrustOff {
		t.Errorf("a foreign tree is trusted: %d", got)
	}
	write(knownChain)
	if got := tree.Trust(); got != TrustUnknown {
		t.Errorf("a new tree: %d", got)
	}
	for difference, want := range map[string]Trust{"": TrustOn, "other bytes of x": TrustOff, "on": TrustOff} {
		if err := tree.Judge(difference); err != nil || tree.Trust() != want {
			t.Errorf("judged %q: %d, %v", difference, tree.Trust(), err)
		}
	}
}

func TestDiffers(t *testing.T) {
	collected := func(change func(files map[string]string)) *Output {
		files := good()
		files["openwrt.bom.cdx.json"] = `{"serialNumber":"urn:uuid:1","components":[{"name":"a"}],"metadata":{"timestamp":"2026-01-01T00:00:00Z"}}`
		files["kernel.bin"] = "kernel"
		change(files)
		out, err := Collect(output(t, files), "dev")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	same := func(map[string]string) {}
	first := collected(same)
	for _, test := range []struct {
		about, want string
		change      func(files map[string]string)
	}{
		{"nothing", "", same},
		{"time and number of the list of parts", "", func(f map[string]string) {
			f["openwrt.bom.cdx.json"] = `{"metadata":{"timestamp":"2027-01-01T00:00:00Z"},"serialNumber":"urn:uuid:2","components":[{"name":"a"}]}`
		}},
		{"bytes", "other bytes of kernel.bin", func(f map[string]string) { f["kernel.bin"] = "another" }},
		{"a part", "another list of parts", func(f map[string]string) {
			f["openwrt.bom.cdx.json"] = strings.Replace(f["openwrt.bom.cdx.json"], `"a"`, `"b"`, 1)
		}},
		{"one file more", "one more file", func(f map[string]string) { f["more.bin"] = "x" }},
		{"the manifest", "manifest", func(f map[string]string) {
			for name := range f {
				if strings.HasSuffix(name, ".manifest") {
					f[name] += "more - 1\n"
				}
			}
		}},
		{"the overview", "another profiles.json", func(f map[string]string) {
			f["profiles.json"] = strings.Replace(f["profiles.json"], `"source_date_epoch":`, `"source_date_epoch":1`, 1)
		}},
	} {
		if got := first.Differs(collected(test.change)); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.about, got, test.want)
		}
	}
}
