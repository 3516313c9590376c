package imagebuilder

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// What make info prints, by version, as the Makefiles of those have it.
const (
	info1701 = `Current Target: "ar71xx (Generic)"
Default Packages: base-files libc libgcc busybox dropbear mtd uci opkg netifd fstools uclient-fetch logd kmod-gpio-button-hotplug swconfig
Available Profiles:

Default:
    Default Profile (all drivers)
    Packages: kmod-usb-core kmod-usb-ohci
tl-wr841-v9:
    TP-LINK TL-WR841N/ND v9
    Packages: 
nameless:
    Packages: -swconfig kmod-usb2
`
	info1907 = `Current Target: "ath79/generic"
Current Revision: "r11427-9ce6aa9d8d"
Default Packages: base-files libc libgcc busybox dropbear mtd uci opkg netifd fstools uclient-fetch logd swconfig
Available Profiles:

tplink_archer-c7-v2:
    TP-Link Archer C7 v2
    Packages: kmod-usb2 kmod-ath10k-ct -swconfig
    hasImageMetadata: 1
    SupportedDevices: tplink,archer-c7-v2 archer-c7
devolo_dlan:
    devolo's dLAN
    Packages: kmod-usb2
    hasImageMetadata: 0
`
	info2305 = `Current Target: "x86/64"
Current Architecture: "x86_64"
Current Revision: "r24106-10cc5fcd00"
Default Packages: base-files ca-bundle dropbear fstools libc
Available Profiles:

generic:
    Generic x86/64
    Packages: kmod-amazon-ena kmod-amd-xgbe
    hasImageMetadata: 0
`
)

func titleOf(p overviewProfile) string {
	if len(p.Titles) == 0 {
		return ""
	}
	return p.Titles[0].Title
}

func TestInfo(t *testing.T) {
	tree := offers{arch: "mips_24kc", revision: "r7897-9d401013fc", epoch: 1530000000}
	for _, test := range []struct {
		name, text, target string
		revision           string
		profiles           map[string]string // id: title|packages|devices
	}{
		{"17.01, whose revision is in the tree", info1701, "ar71xx/generic", "r7897-9d401013fc", map[string]string{
			"Default":     "Default Profile (all drivers)|kmod-usb-core kmod-usb-ohci|",
			"tl-wr841-v9": "TP-LINK TL-WR841N/ND v9||",
			"nameless":    "|-swconfig kmod-usb2|",
		}},
		{"19.07", info1907, "ath79/generic", "r11427-9ce6aa9d8d", map[string]string{
			"tplink_archer-c7-v2": "TP-Link Archer C7 v2|kmod-usb2 kmod-ath10k-ct -swconfig|tplink,archer-c7-v2 archer-c7",
			"devolo_dlan":         "devolo's dLAN|kmod-usb2|",
		}},
		{"23.05", info2305, "x86/64", "r24106-10cc5fcd00", map[string]string{"generic": "Generic x86/64|kmod-amazon-ena kmod-amd-xgbe|"}},
		{"with carriage returns and lines of others", "checking...\r\n" + strings.ReplaceAll(info2305, "\n", "\r\n") + "done\r\n", "x86/64", "r24106-10cc5fcd00",
			map[string]string{"generic": "Generic x86/64|kmod-amazon-ena kmod-amd-xgbe|"}},
		{"an id that is none", strings.Replace(info1907, "devolo_dlan:", "$(shell id):", 1), "ath79/generic", "r11427-9ce6aa9d8d",
			map[string]string{"tplink_archer-c7-v2": "TP-Link Archer C7 v2|kmod-usb2 kmod-ath10k-ct -swconfig|tplink,archer-c7-v2 archer-c7"}},
		{"packages that are none", strings.NewReplacer("kmod-amd-xgbe", "a;b $(x) -- -/x `y`", "fstools", "f;g").Replace(info2305), "x86/64", "r24106-10cc5fcd00",
			map[string]string{"generic": "Generic x86/64|kmod-amazon-ena|"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := tree.overview([]byte(test.text), "1.2.3", test.target)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for id, p := range o.Profiles {
				got[id] = titleOf(p) + "|" + strings.Join(p.DevicePackages, " ") + "|" + strings.Join(p.SupportedDevices, " ")
			}
			for id, want := range test.profiles {
				if got[id] != want {
					t.Errorf("%s is %q, want %q", id, got[id], want)
				}
			}
			if len(got) != len(test.profiles) || o.VersionCode != test.revision || o.ArchPackages != "mips_24kc" || o.SourceDateEpoch != 1530000000 ||
				o.Target != test.target || o.VersionNumber != "1.2.3" || o.DefaultPackages[0] != "base-files" {
				t.Errorf("it is %+v", o)
			}
		})
	}
}

func TestInfoRefuses(t *testing.T) {
	whole := offers{arch: "x86_64", revision: "r1"}
	for _, test := range []struct {
		name   string
		offers offers
		text   string
		says   string
	}{
		{"nothing", whole, "", "no default packages"},
		{"an error message", whole, "make: *** No rule to make target 'info'.  Stop.\n", "no default packages"},
		{"no profile", whole, strings.Split(info2305, "generic:")[0], "no profile"},
		{"another target", whole, strings.Replace(info2305, "x86/64", "x86/geode", 1), "one for x86/geode"},
		{"no revision", offers{arch: "x86_64"}, strings.Replace(info2305, "Revision", "R", 1), "its revision"},
		{"no architecture", offers{revision: "r1"}, info2305, "architecture"},
		{"a revision of shell", whole, strings.Replace(info2305, "r24106-", "$(id)", 1), "its revision"},
	} {
		_, err := test.offers.overview([]byte(test.text), "23.05.5", "x86/64")
		failure, ok := errors.AsType[*build.Failure](err)
		if !ok || failure.Kind != build.KindOutput || !strings.Contains(failure.Detail, test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
	}
}

// FuzzInfo: what is taken over can be what it is said to be, is written as JSON
// and read back the same, and does not grow.
func FuzzInfo(f *testing.F) {
	for _, text := range []string{info1701, info1907, info2305, "Default Packages: a\nAvailable Profiles:\nx:\n    \xff\n    Packages: a a $(b) c;d\nx:\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := offers{arch: "x86_64", revision: "r1"}.overview(text, "1", "x86/64")
		if err != nil {
			if failure, ok := errors.AsType[*build.Failure](err); !ok || len(failure.Detail) > 1000 {
				t.Errorf("it ended by %v", err)
			}
			return
		}
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 8*len(text)+1000 {
			t.Errorf("%d bytes became %d", len(text), len(b))
		}
		var back overview
		if err := json.Unmarshal(b, &back); err != nil || len(back.Profiles) != len(o.Profiles) || back.VersionCode != o.VersionCode {
			t.Fatalf("read back it is %+v, %v", back, err)
		}
		for id, p := range back.Profiles {
			if !infoProfile.MatchString(id+":") || titleOf(p) != titleOf(o.Profiles[id]) || !slices.Equal(p.DevicePackages, o.Profiles[id].DevicePackages) {
				t.Errorf("%q is %+v, was %+v", id, p, o.Profiles[id])
			}
			for _, name := range p.DevicePackages {
				if !infoPackage.MatchString(name) {
					t.Errorf("%q is no package", name)
				}
			}
		}
	})
}

// What trees without a profiles.json know of themselves beside make info.
func TestInspectOld(t *testing.T) {
	const config = "CONFIG_TARGET_ARCH_PACKAGES=\"mips_24kc\"\n"
	const feeds = "src/gz lede_core http://example.org/releases/17.01.7/targets/ar71xx/generic/packages\nsrc/gz lede_base http://example.org/releases/17.01.7/packages/mips_24kc/base\n"
	const overviews = "_call_image:\n\t$(MAKE) -s json_overview_image_info\n"
	for _, test := range []struct {
		name  string
		files map[string]string
		want  offers
	}{
		{"19.07 as released", map[string]string{"Makefile": overviews, ".config": config + "# CONFIG_JSON_OVERVIEW_IMAGE_INFO is not set\n",
			"include/version.mk": "REVISION:=r11427-9ce6aa9d8d\nSOURCE_DATE_EPOCH:=1645000000\nREVISION:=$(if $(REVISION),$(REVISION),unknown)\n"},
			offers{arch: "mips_24kc", revision: "r11427-9ce6aa9d8d", epoch: 1645000000}},
		{"19.07 configured", map[string]string{"Makefile": overviews, ".config": config + "CONFIG_JSON_OVERVIEW_IMAGE_INFO=y\n"},
			offers{arch: "mips_24kc", overviews: true, callImage: true}},
		{"17.01", map[string]string{"Makefile": "_call_image:\n", ".config": "\n", "repositories.conf": feeds, "include/version.mk": "REVISION:=r4030-6028f00df0\n# SOURCE_DATE_EPOCH:=x\n"},
			offers{arch: "mips_24kc", revision: "r4030-6028f00df0", epoch: -1}},
	} {
		dir := t.TempDir()
		for name, text := range test.files {
			file := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if test.want.epoch < 0 {
			info, err := os.Stat(filepath.Join(dir, ".config"))
			if err != nil {
				t.Fatal(err)
			}
			test.want.epoch = info.ModTime().Unix()
		}
		o, err := inspect(dir)
		if err != nil || o.arch != test.want.arch || o.revision != test.want.revision || o.epoch != test.want.epoch ||
			o.overviews != test.want.overviews || o.callImage != test.want.callImage {
			t.Errorf("%s: %+v, want %+v (%v)", test.name, o, test.want, err)
		}
	}
}

func TestImageName(t *testing.T) {
	for name, want := range map[string]string{
		"openwrt-19.07.10-0123-ath79-generic-tplink_archer-c7-v2-squashfs-sysupgrade.bin": "squashfs sysupgrade openwrt-19.07.10-0123-ath79-generic-tplink_archer-c7-v2",
		"openwrt-19.07.10-ath79-generic-x-squashfs-factory-eu.bin":                        "squashfs factory-eu openwrt-19.07.10-ath79-generic-x",
		"lede-17.01.7-r4030-x86-64-combined-squashfs.img.gz":                              "squashfs combined lede-17.01.7-r4030-x86-64",
		"lede-17.01.7-x86-64-combined-efi-ext4.img.gz":                                    "ext4 combined-efi lede-17.01.7-x86-64",
		"lede-17.01.7-x86-64-rootfs-squashfs.img.gz":                                      "squashfs rootfs lede-17.01.7-x86-64",
		"lede-17.01.7-brcm47xx-mips74k-x-squashfs.trx":                                    "squashfs trx lede-17.01.7-brcm47xx-mips74k-x",
		"lede-17.01.7-brcm47xx-mips74k-x-squashfs.chk":                                    "squashfs chk lede-17.01.7-brcm47xx-mips74k-x",
		"lede-17.01.7-brcm47xx-mips74k-x-squashfs.bin":                                    "squashfs bin lede-17.01.7-brcm47xx-mips74k-x",
		"openwrt-18.06.9-sunxi-cortexa7-x-squashfs-sdcard.img.gz":                         "squashfs sdcard openwrt-18.06.9-sunxi-cortexa7-x",
		"openwrt-18.06.9-ar71xx-nand-x-squashfs-sysupgrade.tar":                           "squashfs sysupgrade openwrt-18.06.9-ar71xx-nand-x",
		"openwrt-18.06.9-ar71xx-generic-x-initramfs-kernel.bin":                           "initramfs kernel openwrt-18.06.9-ar71xx-generic-x",
		"openwrt-18.06.9-kirkwood-x-jffs2-128k-sysupgrade.bin":                            "jffs2-128k sysupgrade openwrt-18.06.9-kirkwood-x",
		"openwrt-18.06.9-x-ext4-board-squashfs-sysupgrade.bin":                            "squashfs sysupgrade openwrt-18.06.9-x-ext4-board",
		"openwrt-18.06.9-x86-64-combined-squashfs.vdi":                                    "",
		"openwrt-18.06.9-x86-64-combined-squashfs.vmdk":                                   "",
		"openwrt-18.06.9-x86-64-generic-rootfs.tar.gz":                                    "",
		"openwrt-18.06.9-x86-64-vmlinuz":                                                  "",
		"openwrt-18.06.9-ar71xx-generic-root.squashfs":                                    "",
		"openwrt-18.06.9-ar71xx-generic-x.manifest":                                       "",
		"openwrt-18.06.9-squashfs.manifest":                                               "",
		"squashfs-sysupgrade.bin":                                                         "",
		"sha256sums":                                                                      "",
		"profiles.json":                                                                   "",
		"":                                                                                "",
		"-":                                                                               "",
	} {
		image, ok := parseImageName(name)
		got := strings.TrimSpace(image.filesystem + " " + image.kind + " " + image.prefix)
		if got != want || ok != (want != "") {
			t.Errorf("%s is %q, %v; want %q", name, got, ok, want)
		}
	}
}

// A tree that writes no profiles.json: the images are known by their names, the
// rest by make info, and the file is there all the same.
func TestCollectOld(t *testing.T) {
	told, err := offers{arch: "mips_24kc", epoch: 1645000000}.overview([]byte(info1907), "19.07.10", "ath79/generic")
	if err != nil {
		t.Fatal(err)
	}
	const id, image = "tplink_archer-c7-v2", "openwrt-19.07.10-ath79-generic-tplink_archer-c7-v2-squashfs-sysupgrade.bin"
	files := map[string]string{image: imageText, "x.manifest": goodManifest, "sha256sums": "forged"}
	dir := output(t, files)
	out, err := collect(dir, id, told)
	if err != nil {
		t.Fatal(err)
	}
	want := build.Image{Name: image, Type: "sysupgrade", Filesystem: "squashfs", Size: int64(len(imageText)), SHA256: imageSum, SHA256Unsigned: imageSum}
	if !slices.Equal(out.Images, []build.Image{want}) {
		t.Errorf("the images are %+v", out.Images)
	}
	if p := out.Profile; p.VersionCode != "r11427-9ce6aa9d8d" || p.ArchPackages != "mips_24kc" || p.SourceDateEpoch != 1645000000 ||
		p.ImagePrefix != "openwrt-19.07.10-ath79-generic-tplink_archer-c7-v2" || p.SupportedDevices[1] != "archer-c7" || string(p.Titles) != `[{"title":"TP-Link Archer C7 v2"}]` {
		t.Errorf("the profile is %+v", p)
	}
	wantServed(t, dir, out)

	delete(files, image)
	files["openwrt-19.07.10-ath79-generic-tplink_archer-c7-v2-initramfs-kernel.bin"] = imageText
	for _, test := range []struct {
		name, id string
		told     *overview
		kind     build.Kind
	}{
		{"no image", id, told, build.KindTooBig},
		{"another profile", "gone", told, build.KindProfile},
		{"a tree that writes one", id, nil, build.KindTooBig},
	} {
		_, err := collect(output(t, files), test.id, test.told)
		if failure, ok := errors.AsType[*build.Failure](err); !ok || failure.Kind != test.kind {
			t.Errorf("%s: %v, want %s", test.name, err, test.kind)
		}
	}
}

// FuzzImageName: what a name tells can stand in a profiles.json, and is in the
// name.
func FuzzImageName(f *testing.F) {
	for _, name := range []string{"a-squashfs-sysupgrade.bin", "a-combined-squashfs.img.gz", "a-jffs2-64k.bin", "a--squashfs-.x", "-ext4."} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		image, ok := parseImageName(name)
		if !ok || !outputName.MatchString(name) {
			return
		}
		if !word.MatchString(image.kind) || !word.MatchString(image.filesystem) || image.kind == "" || image.filesystem == "" ||
			!strings.HasPrefix(name, image.prefix+"-") || !strings.Contains(name, image.kind) || !strings.Contains(name, image.filesystem) {
			t.Errorf("%q is taken for %+v", name, image)
		}
	})
}

// TestHasImages: a warning that an image is too big counts only if none is left.
func TestHasImages(t *testing.T) {
	for _, test := range []struct {
		file string
		told *overview
		want bool
	}{
		{"profiles.json", nil, true},
		{"a-squashfs-sysupgrade.bin", nil, false},
		{"a-squashfs-sysupgrade.bin", &overview{}, true},
		{"a.manifest", &overview{}, false},
		{"a-initramfs-kernel.bin", &overview{}, false},
	} {
		v := &View{out: output(t, map[string]string{test.file: "x"}), told: test.told}
		if got := v.hasImages(); got != test.want {
			t.Errorf("%s, %v: %v", test.file, test.told != nil, got)
		}
	}
}
