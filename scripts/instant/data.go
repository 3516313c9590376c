package instant

import (
	"cmp"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/scripts/upstream"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// release is what sets one version apart.
type release struct {
	version, revision string
	apk               bool   // 25.12 and later: apk, EC keys
	kmods             bool   // kernel modules in a feed of their own: 24.10 and later
	archive           string // end of the archive's name
	epoch             int64  // SOURCE_DATE_EPOCH
	kernel            upstream.Kernel
	bare, listing     bool // Options.Bare and Listing
}

var releases = []release{
	{"23.05.5", "r24106-10cc5fcd00", false, false, "tar.xz", 1727094886,
		upstream.Kernel{Version: "5.15.167", Release: "1", Vermagic: "00d0c2f7a5b1c7de9a62b6d1a1b5c1f0"}, false, false},
	{"24.10.0", "r28427-6df0e3d02a", false, true, "tar.zst", 1738624177,
		upstream.Kernel{Version: "6.6.73", Release: "1", Vermagic: "60a938df1b4c2f8f0c1e2d3a4b5c6d7e"}, false, false},
	{"25.12.0", "r32000-89abcdef01", true, true, "tar.zst", 1765500000,
		upstream.Kernel{Version: "6.12.60", Release: "1", Vermagic: "7c1f0e9d8b6a5c4d3e2f1a0b9c8d7e6f"}, false, false},
	{"SNAPSHOT", "", true, true, "tar.gz", 1770000000,
		upstream.Kernel{Version: "6.12.70", Release: "1", Vermagic: "0f1e2d3c4b5a69788796a5b4c3d2e1f0"}, false, false},
}

// device is one profile; its images are words "<filesystem>|<type>|<end of
// name>" for scripts/image.sh, without a type if profiles.json leaves it out.
type device struct {
	id, vendor, model string
	packages, boards  []string
	images            []string
}

type target struct {
	name, cpu, arch string // x86/64, x86_64, x86_64
	devices         []device
	kmods           []string
	config          []string // filesystems: SQUASHFS, EXT4FS, TARGZ
	partsize        int      // MB
	flash           int64    // largest image in bytes, 0: none
}

var targets = []target{
	{
		name: "x86/64", cpu: "x86_64", arch: "x86_64",
		kmods:  []string{"kmod-e1000", "kmod-igb", "kmod-r8169", "kmod-usb-net", "kmod-wireguard"},
		config: []string{"SQUASHFS", "EXT4FS", "TARGZ"}, partsize: 104,
		devices: []device{{
			id: "generic", vendor: "Generic", model: "x86/64",
			packages: []string{"kmod-e1000", "kmod-igb", "kmod-r8169"},
			images: []string{
				"-||kernel.bin", "targz||rootfs.tar.gz",
				"squashfs|combined|squashfs-combined.img.gz", "squashfs|combined-efi|squashfs-combined-efi.img.gz",
				"squashfs|rootfs|squashfs-rootfs.img.gz", "ext4|combined|ext4-combined.img.gz",
				"ext4|combined-efi|ext4-combined-efi.img.gz", "ext4|rootfs|ext4-rootfs.img.gz",
			},
		}},
	},
	{
		name: "ath79/generic", cpu: "mips", arch: "mips_24kc",
		kmods:  []string{"kmod-ath9k", "kmod-ath10k-ct", "kmod-usb2", "kmod-usb-net", "kmod-wireguard"},
		config: []string{"SQUASHFS"}, partsize: 0, flash: 15859712,
		devices: []device{
			{"8dev_carambola2", "8devices", "Carambola2", []string{"kmod-ath9k", "kmod-usb2"},
				[]string{"8dev,carambola2", "carambola2"}, []string{sysupgrade}},
			{"tplink_archer-c7-v2", "TP-Link", "Archer C7 v2", []string{"kmod-ath9k", "kmod-ath10k-ct", "kmod-usb2"},
				[]string{"tplink,archer-c7-v2", "archer-c7-v2"}, []string{sysupgrade, factory}},
			{"tplink_archer-c7-v5", "TP-Link", "Archer C7 v5", []string{"kmod-ath9k", "kmod-ath10k-ct", "-luci-ssl"},
				[]string{"tplink,archer-c7-v5"}, []string{sysupgrade, factory}},
			{"sample_factory-only", "Sample", "Factory Only", []string{"kmod-ath9k"},
				[]string{"sample,factory-only"}, []string{factory}},
		},
	},
}

const (
	sysupgrade = "squashfs|sysupgrade|squashfs-sysupgrade.bin"
	factory    = "squashfs|factory|squashfs-factory.bin"
)

// defaultPackages are those of every target; "manager" stands for the
// version's package manager.
func (r release) defaultPackages() []string {
	return []string{"base-files", "busybox", "ca-bundle", "dnsmasq", "dropbear", "firewall4", "fstools",
		"kernel", "libc", "libustream-mbedtls", "logd", "mtd", "netifd", r.manager(), "procd", "uci", "urandom-seed"}
}

func (r release) manager() string {
	if r.apk {
		return "apk-mbedtls"
	}
	return "opkg"
}

// core are the packages that belong to a target.
func (r release) core() []upstream.Package {
	return []upstream.Package{
		{Name: "base-files", Version: "1700~" + r.revision, Size: 40 << 10},
		{Name: "kernel", Version: r.kernel.Version + "~" + r.kernel.Vermagic + "-r" + r.kernel.Release, Size: 500},
		{Name: "libc", Version: "1.2.5-r4", Size: 400 << 10},
	}
}

// feeds are the same for every version and architecture, but for the manager.
func (r release) feeds() upstream.Feeds {
	feeds := upstream.Feeds{}
	for name, text := range feedTable {
		for line := range strings.Lines(text) {
			if strings.TrimSpace(line) != "" {
				feeds[name] = append(feeds[name], parsePackage(line))
			}
		}
	}
	feeds["base"] = append(feeds["base"], upstream.Package{Name: r.manager(), Version: "2024.10~" + r.revision, Size: 60 << 10})
	return feeds
}

// parsePackage reads "name version size [+depends] [=provides] [!conflicts]
// [~ABI version]".
func parsePackage(line string) upstream.Package {
	words := strings.Fields(line)
	p := upstream.Package{Name: words[0], Version: words[1], Size: parseSize(words[2])}
	for _, word := range words[3:] {
		switch rest := word[1:]; word[0] {
		case '+':
			p.Depends = append(p.Depends, rest)
		case '=':
			p.Provides = append(p.Provides, rest)
		case '!':
			p.Conflicts = append(p.Conflicts, rest)
		case '~':
			p.ABIVersion = rest
		}
	}
	return p
}

var feedTable = map[string]string{
	"base": `
		busybox             1.36.1-r2               220k  +libc
		ca-bundle           20240203-r1             110k
		dnsmasq             2.90-r4                 160k  +libc +libubox
		dnsmasq-full        2.90-r4                 210k  +libc +libubox
		dropbear            2024.86-r1              120k  +libc
		firewall4           2024.12.18~18fc0ead-r1   30k
		fstools             2024.07.14~408c2cc4-r1   60k  +libubox
		iperf3              3.17.1-r3                80k  +libc
		jansson             2.14-r3                  20k  +libc ~4
		libfoo2             1.0-r1                   10k  +libc ~3
		libubox             2024.03.29~eb9bcb64-r1   30k  +libc ~20240329
		libustream-mbedtls  2024.07.28~99bd3d2b-r1   10k  +libubox
		logd                2024.04.26~85f10530-r1   15k  +libubox
		mtd                 26                       20k
		netifd              2024.12.17~ea01ed41-r1   90k  +libubox
		procd               2024.12.22~42d39376-r1   70k  +libubox
		uci                 2023.08.10~5781664d-r1   20k  +libubox
		urandom-seed        3                         2k
		wireguard-tools     1.0.20210914-r4          40k  +kmod-wireguard`,
	"luci": `
		luci                24.339                    1k  +luci-base
		luci-app-attendedsysupgrade 24.339           10k  +luci-base
		luci-base           24.339                  150k  +jansson
		luci-ssl            24.339                    1k  +luci`,
	"packages": `
		broken-dep          1.0-r1                    1k  +no-such-library
		conflict-a          1.0-r1                    1k  !conflict-b
		conflict-b          1.0-r1                    1k
		htop                3.3.0-r1                 70k  +libc
		lib++               1.0-r1                    1k
		nano                8.3-r1                   90k  +libc
		too-big             1.0-r1                  200M
		tmux                3.4-r1                  200k  +libfoo2
		vim                 9.1.0-r1                500k  =editor
		wget-ssl            1.24.5-r1               250k  =wget =gnu-wget`,
	"routing":   `babeld 1.13.1-r1 60k +libc`,
	"telephony": `asterisk 20.8.1-r1 2M +jansson`,
}

func parseSize(s string) int64 {
	unit := map[byte]int64{'k': 1 << 10, 'M': 1 << 20}
	n := int64(0)
	for _, c := range []byte(s) {
		if c >= '0' && c <= '9' {
			n = 10*n + int64(c-'0')
		}
	}
	return n * max(1, unit[s[len(s)-1]])
}

// make is the release with its ImageBuilders.
func (r release) make(o Options, key usign.PublicKey) (upstream.Release, error) {
	if r.version == "SNAPSHOT" {
		r.revision = o.Snapshot
	}
	r.bare, r.listing = slices.Contains(o.Bare, r.version), o.Listing
	made := upstream.Release{Version: r.version, APK: r.apk, ADB: r.apk, Bare: r.bare, Feeds: map[string]upstream.Feeds{}}
	for _, t := range targets {
		made.Feeds[t.arch] = r.feeds()
		target := upstream.Target{Profiles: r.profiles(t), Packages: r.core(), Kmods: r.modules(t)}
		if !r.kmods {
			target.Packages, target.Kmods = append(target.Packages, target.Kmods...), nil
		}
		archive, err := r.imageBuilder(t, o, key)
		if err != nil {
			return upstream.Release{}, err
		}
		if target.Archive = archive; !r.apk {
			target.Packages = slices.DeleteFunc(target.Packages, unindexed)
		}
		made.Targets = append(made.Targets, target)
	}
	return made, nil
}

// unindexed are the packages that opkg's indices leave out.
func unindexed(p upstream.Package) bool { return p.Name == "kernel" || p.Name == "libc" }

func (r release) modules(t target) []upstream.Package {
	var list []upstream.Package
	for _, name := range t.kmods {
		list = append(list, upstream.Package{Name: name, Version: r.kernel.Version + "-r" + r.kernel.Release,
			Size: 20 << 10, Depends: []string{"kernel"}, Section: "kernel"})
	}
	return list
}

// all are the packages that an ImageBuilder of t can install.
func (r release) all(t target) []upstream.Package {
	list := append(r.core(), r.modules(t)...)
	for _, packages := range r.feeds() {
		list = append(list, packages...)
	}
	slices.SortFunc(list, func(p, q upstream.Package) int { return cmp.Compare(p.Name, q.Name) })
	return list
}
