package catalogtest

import (
	"fmt"
	"strings"
)

// Sample returns an upstream with two releases and a snapshot, each with
// x86/64 (the sole profile generic) and ath79/generic. 24.10.5 is made for
// opkg, 25.12.0 and SNAPSHOT for apk.
func Sample() (*Upstream, error) {
	u, err := New()
	if err != nil {
		return nil, err
	}
	u.Versions("24.10.5", "", "25.12.0-rc1", "24.10.4")
	for _, version := range []string{"24.10.5", "25.12.0-rc1", "SNAPSHOT"} {
		u.Release(version, "r29233-443ec4032a")
	}
	return u, nil
}

// Release puts one of Sample's versions with that revision.
func (u *Upstream) Release(version, revision string) {
	apk := version != "24.10.5"
	defaults := []string{"base-files", "busybox", "dnsmasq", "dropbear", "kernel", "libc", "opkg", "procd"}
	u.Target(version, Target{
		Name: "x86/64", Arch: "x86_64", Revision: revision, Defaults: defaults, APK: apk,
		Profiles: map[string]Profile{"generic": {
			Packages: []string{"kmod-e1000"}, Titles: []map[string]string{{"title": "Generic x86/64"}}, Prefix: "openwrt-x86-64-generic",
			Images: []map[string]string{{"name": "openwrt-x86-64-generic-squashfs-combined.img.gz", "type": "combined", "filesystem": "squashfs", "sha256": strings.Repeat("0", 64)}},
		}},
		Packages: []Package{{Name: "base-files", Version: "1"}}, Kmods: []Package{{Name: "kmod-e1000", Version: "6.6.1-r1"}, {Name: "kmod-wireguard", Version: "6.6.1-r1"}},
	})
	title := func(model, variant string) []map[string]string {
		return []map[string]string{{"vendor": "TP-Link", "model": model, "variant": variant}}
	}
	u.Target(version, Target{
		Name: "ath79/generic", Arch: "mips_24kc", Revision: revision, Defaults: defaults, APK: apk,
		Profiles: map[string]Profile{
			"tplink_archer-c7-v2": {Packages: []string{"kmod-ath9k", "-dnsmasq"}, Devices: []string{"tplink,archer-c7-v2", "archer-c7"}, Titles: title("Archer C7", "v2")},
			"tplink_archer-c7-v5": {Packages: []string{"kmod-ath9k"}, Devices: []string{"tplink,archer-c7-v5", "archer-c7"}, Titles: title("Archer C7", "v5")},
			"8dev_carambola2":     {Devices: []string{"8dev,carambola2", "carambola2"}, Titles: []map[string]string{{"title": "8devices Carambola2"}}},
		},
		Packages: []Package{{Name: "base-files", Version: "1"}}, Kmods: []Package{{Name: "kmod-ath9k", Version: "6.6.1-r1"}},
	})
	for _, arch := range []string{"x86_64", "mips_24kc"} {
		u.Feed(version, arch, "base", apk,
			Package{Name: "busybox", Version: "1.36.1-r2"}, Package{Name: "dnsmasq", Version: "2.90-r4"},
			Package{Name: "libubox", ABI: "20240329", Version: "2024.03.29-r1"}, Package{Name: "libfoo2", ABI: "-3", Version: "2.1-r1"},
			Package{Name: "wpad-mbedtls", Version: "2024.09-r1", Provides: "hostapd, wpa-supplicant (= 2.10)"})
		u.Feed(version, arch, "luci", apk, Package{Name: "luci", Version: "25.1"}, Package{Name: "luci-ssl", Version: "25.1"})
		u.Feed(version, arch, "packages", apk, Package{Name: "nano", Version: "8.3-r1"}, Package{Name: "tcpdump", Version: "4.99-r1"}, Package{Name: "lib++", Version: "1"})
	}
}

// Big returns an upstream with one release, 24.10.5, of a real branch's size:
// so many targets, each with an architecture of its own and 30 profiles, and
// so many packages for each, which need each other as real ones do: 40 default
// packages and 20 others make an image of about 200.
func Big(targets, packages int) (*Upstream, error) { return BigBranches(targets, packages, "24.10.5") }

// BigBranches is Big with several releases, newest first. Those from 25.12 on
// are made for apk.
func BigBranches(targets, packages int, versions ...string) (*Upstream, error) {
	u, err := New()
	if err != nil {
		return nil, err
	}
	u.Versions(versions[0], "", "", versions...)
	for _, version := range versions {
		u.big(version, targets, packages)
	}
	return u, nil
}

func (u *Upstream) big(version string, targets, packages int) {
	apk := version >= "25.12"
	defaults := make([]string, 40)
	for i := range defaults {
		defaults[i] = PackageName(i)
	}
	profiles := map[string]Profile{}
	for i := range 30 {
		profiles[fmt.Sprintf("vendor_device-%d", i)] = Profile{
			Packages: []string{"kmod-module-1", "kmod-module-2", PackageName(100 + i)},
			Devices:  []string{fmt.Sprintf("vendor,device-%d", i), fmt.Sprintf("device-%d", i)},
			Titles:   []map[string]string{{"vendor": "Vendor", "model": fmt.Sprintf("Device %d", i)}},
		}
	}
	var kmods, base []Package
	for i := range 600 {
		kmods = append(kmods, Package{Name: kmodName(i), Version: "6.6.1-r1", Depends: fmt.Sprintf("kernel (= 6.6.1~0-r1), %s", kmodName(i/4))})
	}
	for i := range packages - len(kmods) {
		p := Package{Name: PackageName(i), ABI: abiOf(i), Version: fmt.Sprintf("2024.%d-r1", i)}
		p.Depends = fmt.Sprintf("libc, %s%s, %s%s", PackageName(i/3), abiOf(i/3), PackageName(i/7), abiOf(i/7))
		if i%20 == 0 {
			p.Depends += ", " + kmodName(i%600)
		}
		if i%50 == 0 {
			p.Provides = fmt.Sprintf("virtual-%d", i/100)
		}
		base = append(base, p)
	}
	for i := range targets {
		t := Target{
			Name: fmt.Sprintf("board%d/generic", i), Arch: fmt.Sprintf("arch_%d", i), Revision: "r29233-443ec4032a",
			Defaults: defaults, Profiles: profiles, Packages: []Package{{Name: "base-files", Version: "1"}}, APK: apk,
		}
		u.Target(version, t)
		u.share(i, Folder(version)+"/targets/board%d/generic/kmods/"+kernel, apk, kmods)
		u.share(i, Folder(version)+"/packages/arch_%d/base", apk, base)
		u.Put(Folder(version)+"/packages/"+t.Arch+"/feeds.conf", nil)
	}
}

func kmodName(i int) string { return fmt.Sprintf("kmod-module-%d", i) }

// abiOf is the ABI version of some of Big's libraries.
func abiOf(i int) string {
	if i%30 == 1 {
		return "-20240101"
	}
	return ""
}

// share puts the same feed for the i-th of many, which costs nothing after
// the first.
func (u *Upstream) share(i int, dir string, apk bool, packages []Package) {
	first := fmt.Sprintf(dir, 0)
	if i == 0 {
		u.feed(first, apk, packages)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, name := range []string{"Packages", "Packages.sig", "Packages.gz", "packages.adb", "index.json"} {
		if f, ok := u.files[first+"/"+name]; ok {
			u.files[fmt.Sprintf(dir, i)+"/"+name] = f
		}
	}
}

// PackageName is the name of the i-th package of Big.
func PackageName(i int) string {
	kinds := []string{"luci-app-", "lib", "python3-", "luci-i18n-", "collectd-mod-", "tool-"}
	return fmt.Sprintf("%s%x-%d", kinds[i%len(kinds)], i*2654435761%65521, i)
}
