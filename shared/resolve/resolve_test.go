package resolve

import (
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// parse reads a universe as opkg spells it; kernel is granted.
func parse(t *testing.T, stanzas string) *world {
	t.Helper()
	list, err := feed.ParsePackages([]byte(stanzas))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{granted: map[string]bool{"kernel": true, "libc": true}}
	for i := range list {
		if list[i].ABI != "" {
			list[i].Priority = 10 // as OpenWrt gives it
		}
		if list[i].Name == "twice" && list[i].Version == "1" {
			list[i].Priority = 10 // it does not count among versions of one name
		}
		w.packages = append(w.packages, &list[i])
	}
	return w
}

const sample = `Package: luci-app-x
Version: 1
Depends: libc, luci-base, libfoo

Package: luci-base
Version: 26.1
Installed-Size: 700
Size: 300

Package: luci-app-y
Version: 1
Depends: luci-app-x

Package: dnsmasq
Version: 2.90-r4

Package: dnsmasq-full
Version: 2.90-r4
Provides: dnsmasq=2.90-r4
Depends: luci-base

Package: wpad-basic-mbedtls
Version: 2025-r1
Provides: hostapd=2025-r1

Package: wpad-mesh-openssl
Version: 2025-r1
Provides: hostapd=2025-r1
Conflicts: wpad-basic-mbedtls

Package: mesh11sd
Version: 1
Depends: wpad-mesh-openssl

Package: firstwifi
Version: 1
Depends: wpad-basic-mbedtls

Package: newer
Version: 1
Depends: luci-base (>= 27)

Package: kmod-x
Version: 6.6.1-r1
Depends: kernel (= 6.6.1~0-r1)

Package: libubox20240329
Version: 2024.03.29-r1
ABIVersion: 20240329
Provides: libubox

Package: old-style
Version: 1
Depends: wget (<< 2)

Package: new-style
Version: 1
Depends: wget (>= 2)

Package: wget-ssl
Version: 1
Provides: wget

Package: wget-nossl
Version: 1
Provides: wget

Package: twice
Version: 1

Package: twice
Version: 2

Package: takes-twice
Version: 1
Depends: twice

Package: plain
Version: 1

Package: usurper
Version: 1
Conflicts: plain
Provides: plain

Package: kept
Version: 1

Package: needs-kept
Version: 1
Depends: kept

Package: hater
Version: 1
Conflicts: kept

Package: needs-plain
Version: 1
Depends: plain

Package: needs-usurper
Version: 1
Depends: usurper

Package: needs-both
Version: 1
Depends: usurper, needs-plain

`

var release = Release{Name: "OpenWrt 25.12.5", Target: "x86/64", Defaults: []string{"dnsmasq", "wpad-basic-mbedtls", "firstwifi"}, Near: []string{"libfoo2"}}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		format Format
		want   string
		pins   map[string]string
		says   string // "" = nothing is refused
	}{
		{Opkg, "no-such", nil, `OpenWrt 25.12.5 has no package "no-such" for x86/64. Did you mean libfoo2?`},
		{APK, "no-such", nil, `OpenWrt 25.12.5 has no package "no-such" for x86/64. Did you mean libfoo2?`},
		{Opkg17, "no-such", nil, `OpenWrt 25.12.5 has no package "no-such" for x86/64. Did you mean libfoo2?`},
		{Opkg, "luci-app-x", nil, "luci-app-x needs libfoo, which OpenWrt 25.12.5 does not have. Did you mean libfoo2? Leave luci-app-x out."},
		{APK, "luci-app-y", nil, "luci-app-y needs luci-app-x, luci-app-x needs libfoo, which OpenWrt 25.12.5 does not have. Did you mean libfoo2? Leave luci-app-y out."},
		{Opkg17, "luci-app-y", nil, ""}, // goes on without
		{Opkg, "newer", nil, ""},        // it does not always look
		{APK, "newer", nil, "newer needs luci-base (>= 27), which OpenWrt 25.12.5 has as 26.1 only. Did you mean libfoo2? Leave newer out."},
		{Opkg, "dnsmasq-full dnsmasq", nil, "dnsmasq-full conflicts with dnsmasq, which is a default package: send -dnsmasq, too."},
		{Opkg, "dnsmasq dnsmasq-full", nil, "dnsmasq-full conflicts with dnsmasq, which is a default package: send -dnsmasq, too."},
		{Opkg17, "dnsmasq dnsmasq-full", nil, ""}, // overwrites
		{APK, "dnsmasq-full dnsmasq", nil, ""},    // the one stands for the other
		{Opkg, "dnsmasq-full", nil, ""},
		{APK, "wpad-mesh-openssl wpad-basic-mbedtls", nil, "wpad-mesh-openssl conflicts with wpad-basic-mbedtls, which is a default package: send -wpad-basic-mbedtls, too."},
		{Opkg, "wpad-basic-mbedtls mesh11sd", nil, "wpad-mesh-openssl, which mesh11sd needs, conflicts with wpad-basic-mbedtls, which is a default package: send -wpad-basic-mbedtls, too."},
		{APK, "mesh11sd firstwifi", nil, "wpad-mesh-openssl, which mesh11sd needs, conflicts with wpad-basic-mbedtls, which the default package firstwifi needs: send -firstwifi, too."},
		{Opkg, "wpad-mesh-openssl wpad-basic-mbedtls", nil, "wpad-mesh-openssl conflicts with wpad-basic-mbedtls, which is a default package: send -wpad-basic-mbedtls, too."}, // variants
		{Opkg17, "wpad-basic-mbedtls wpad-mesh-openssl", nil, ""}, // it was told not to look
		{Opkg, "usurper plain", nil, ""},                          // plain is not there yet when it is looked for
		{Opkg, "needs-usurper plain", nil, ""},
		{Opkg, "needs-both plain", nil, ""}, // plain may come first or last
		{Opkg, "plain usurper", nil, "usurper conflicts with plain. Leave one of them out."},
		{Opkg, "needs-plain needs-usurper", nil, ""}, // usurper may be what needs-plain needs,
		{Opkg, "hater needs-kept", nil, ""},
		{Opkg, "needs-kept hater", nil, "hater conflicts with kept, which needs-kept needs. Leave one of them out."},
		{APK, "hater needs-kept", nil, "hater conflicts with kept, which needs-kept needs. Leave one of them out."},
		{APK, "usurper plain", nil, ""}, // it provides what it excludes, so it stands for it
		{Opkg, "kmod-x kernel", nil, ""},
		{APK, "libubox", map[string]string{"libubox": "2024.03.29-r1"}, ""},
		{APK, "libubox luci-base", map[string]string{"libubox": "2023-r1", "luci-base": "26.1", "nothing": "9"}, "The packages are not the asked versions: libubox is 2024.03.29-r1 instead of 2023-r1. Look for updates again and send the request anew."},
		{Opkg, "dnsmasq-full", map[string]string{"dnsmasq": "2.89"}, ""},                           // what stands for it may have any
		{APK, "libubox luci-base", map[string]string{"libubox": "2025-r1", "luci-base": "27"}, ""}, // of a newer index
		{APK, "wget", nil, ""},
		{APK, "old-style", nil, ""}, // no version is an old one
		{APK, "new-style", nil, "new-style needs wget (>= 2), which OpenWrt 25.12.5 has without a version only. Did you mean libfoo2? Leave new-style out."},
	} {
		q := Query{Format: c.format, Want: strings.Fields(c.want), Pins: c.pins}
		_, problem := Resolve(parse(t, sample), q)
		says := ""
		if problem != nil {
			says = problem.Sentence(release)
		}
		if says != c.says {
			t.Errorf("format %d, %s:\n got %s\nwant %s", c.format, c.want, says, c.says)
		}
	}
}

// TestSentences are those that only builds come to, and other turns.
func TestSentences(t *testing.T) {
	for _, c := range []struct {
		p    Problem
		says string
	}{
		{Problem{Kind: Unknown, Name: "x"}, `This version has no package "x".`},
		{Problem{Kind: Missing, Name: "y", Chain: []string{"dnsmasq"}}, "dnsmasq needs y, which this version does not have. dnsmasq is a default package: send -dnsmasq to build without it."},
		{Problem{Kind: Missing, Name: "y", Chain: []string{"x"}, Bound: ">= 3", Have: []string{"1", "", "2"}}, "x needs y (>= 3), which this version has as 1 and 2 and without a version only. Leave x out."},
		{Problem{Kind: Conflict, Name: "a", With: "b"}, "a conflicts with b. Leave one of them out."},
		{Problem{Kind: Conflict, Name: "a", With: "b", WithChain: []string{"d", "c"}}, "a conflicts with b, which c needs. Leave one of them out."},
		{Problem{Kind: Conflict, Name: "dnsmasq", With: "b", File: "/etc/x"}, "b conflicts with dnsmasq, which is a default package, for both bring the file /etc/x: send -dnsmasq, too."},
		{Problem{Kind: Versions, Pins: []Mismatch{{"a", "1", ""}, {"b", "1", "2"}}}, "The packages are not the asked versions: a is not installed instead of 1, b is 2 instead of 1. Look for updates again and send the request anew."},
	} {
		if got := c.p.Sentence(Release{Defaults: []string{"dnsmasq"}}); got != c.says {
			t.Errorf("%+v:\n got %s\nwant %s", c.p, got, c.says)
		}
	}
}

func TestSolution(t *testing.T) {
	for _, c := range []struct {
		format Format
		want   string
		gets   string
		sure   bool
	}{
		{APK, "dnsmasq dnsmasq-full kernel", "dnsmasq-full luci-base", true},
		{Opkg, "dnsmasq", "dnsmasq", true},
		{APK, "libubox kmod-x", "kmod-x libubox20240329", true},
		{Opkg, "wget wget-ssl", "wget-ssl", true},
		{Opkg, "wget", "wget-ssl", false},
		{APK, "wget", "wget-ssl", false}, // it wants to be told which
		{APK, "wget wget-nossl", "wget-nossl", true},
		{APK, "hostapd mesh11sd", "mesh11sd wpad-mesh-openssl", true},
		{APK, "twice", "twice-2", true},
		{APK, "takes-twice", "takes-twice twice-2", true},
	} {
		got, problem := Resolve(parse(t, sample), Query{Format: c.format, Want: strings.Fields(c.want)})
		if problem != nil {
			t.Errorf("%s: %s", c.want, problem.Sentence(release))
			continue
		}
		var names []string
		for _, p := range got.Packages {
			if p.Name == "twice" {
				names = append(names, p.Name+"-"+p.Version)
			} else {
				names = append(names, p.Name)
			}
		}
		slices.Sort(names)
		if strings.Join(names, " ") != c.gets || got.Sure != c.sure {
			t.Errorf("%s: %v, sure %v; want %s, %v", c.want, names, got.Sure, c.gets, c.sure)
		}
	}
	got, _ := Resolve(parse(t, sample), Query{Format: Opkg, Want: []string{"luci-base"}})
	if got.Installed != 700 || got.Download != 300 {
		t.Errorf("sizes are %d and %d", got.Installed, got.Download)
	}
}

// half is a universe in which not everything is known.
type half struct{ *world }

func (half) Whole() bool { return false }

func TestHalf(t *testing.T) {
	u := half{parse(t, sample)}
	if got, problem := Resolve(u, Query{Want: []string{"luci-app-y"}}); problem != nil || got.Sure {
		t.Errorf("%+v, %+v", got, problem)
	}
	if _, problem := Resolve(u, Query{Want: []string{"no-such"}}); problem == nil || problem.Kind != Unknown {
		t.Errorf("%+v", problem)
	}
}

// A chain or a circle of any length comes to an end in time.
func TestEndless(t *testing.T) {
	w := &world{}
	for i := range 3000 {
		name := func(i int) string { return "p" + strings.Repeat("x", i%60) + string(rune('a'+i/60)) }
		w.packages = append(w.packages, &feed.Package{Name: name(i), Version: "1", Depends: []feed.Dependency{{Name: name((i + 1) % 3000)}}})
	}
	if got, problem := Resolve(w, Query{Want: []string{w.packages[0].Name}}); problem != nil || got.Sure {
		t.Errorf("sure: %v, %+v", got.Sure, problem)
	}
}
