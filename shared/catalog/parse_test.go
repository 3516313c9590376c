package catalog

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func TestCompareVersions(t *testing.T) {
	oldestFirst := []string{"17.01.7", "18.06.0-rc2", "18.06.0-rc10", "18.06.0", "18.06.1", "18.06.10", "19.07.0", "24.10.0-rc1", "24.10.0", "25.12.0"}
	for i, a := range oldestFirst {
		for j, b := range oldestFirst {
			if got, want := compareVersions(a, b), min(1, max(-1, i-j)); min(1, max(-1, got)) != want {
				t.Errorf("compareVersions(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestVersionNames(t *testing.T) {
	for _, c := range []struct{ version, canonical, branch, folder string }{
		{"24.10.5", "24.10.5", "24.10", "releases/24.10.5"},
		{"24.10.0-rc6", "24.10.0-rc6", "24.10", "releases/24.10.0-rc6"},
		{"snapshot", "SNAPSHOT", "SNAPSHOT", "snapshots"},
		{"Snapshot", "SNAPSHOT", "SNAPSHOT", "snapshots"},
		{"24.10-snapshot", "24.10-SNAPSHOT", "24.10", "releases/24.10-SNAPSHOT"},
		{"2024.1", "2024.1", "2024.1", "releases/2024.1"},
		{"7", "7", "7", "releases/7"},
	} {
		version := canonicalVersion(c.version)
		if version != c.canonical || branchOf(version) != c.branch || folder(version) != c.folder {
			t.Errorf("%q: %q, %q, %q", c.version, version, branchOf(version), folder(version))
		}
	}
}

func TestLatest(t *testing.T) {
	for _, c := range []struct{ stable, oldstable, upcoming, want string }{
		{"24.10.5", "23.05.6", "", "24.10.5 23.05.6"},
		{"24.10.5", "23.05.6", "25.12.0-rc1", "25.12.0-rc1 24.10.5 23.05.6"},
		{"24.10.5", "23.05.6", "24.10.5", "24.10.5 23.05.6"},
		{"24.10.5", "", "24.10.0-rc6", "24.10.5"}, // left over from before
		{"24.10.5", "", "24.10.6-rc1", "24.10.5"}, // one of each branch
		{"24.10.5", "24.10.5", "", "24.10.5"},
		{"", "", "1.0.0-rc1", "1.0.0-rc1"},
	} {
		v := versionList{Stable: c.stable, Oldstable: c.oldstable, Upcoming: c.upcoming}
		if got := strings.Join(v.latest(), " "); got != c.want {
			t.Errorf("stable %q, oldstable %q, upcoming %q: latest is %q, want %q", c.stable, c.oldstable, c.upcoming, got, c.want)
		}
	}
}

func TestParseVersions(t *testing.T) {
	v, err := parseVersions([]byte(`{"stable_version":"24.10.5","oldstable_version":"../../x","upcoming_version":"",
		"versions_list":["23.05.6","24.10.5","24.10.10","SNAPSHOT","a b","24.10.5"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"24.10.10", "24.10.5", "23.05.6"}; !slices.Equal(v.Versions, want) || v.Oldstable != "" {
		t.Errorf("%+v, want the versions %v and no oldstable one", v, want)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"versions_list":[]}`, `{"versions_list":["$(x)"]}`, `{"versions_list":7}`, `{"versions_list":["` + strings.Repeat(`1","`, 1001) + `1"]}`} {
		if v, err := parseVersions([]byte(bad)); err == nil {
			t.Errorf("%.60s is taken for %+v", bad, v)
		}
	}
}

func TestParseTargets(t *testing.T) {
	list, err := parseTargets([]byte(`{"x86/64":"x86_64","../x":"y","x86":"y","a/b":"../c","a/b/c":"y"}`))
	if err != nil || len(list) != 1 || list["x86/64"] != "x86_64" {
		t.Errorf("targets are %v, %v", list, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"x86/64":7}`, `null`} {
		if list, err := parseTargets([]byte(bad)); err == nil {
			t.Errorf("%s is taken for %v", bad, list)
		}
	}
}

func TestParseFeeds(t *testing.T) {
	got := parseFeeds([]byte("src-git packages https://git.example.org/p.git^0\nsrc-git-full luci https://x\nsrc-git base https://x\n\n# src-git a b\nsrc-git ../x y\nsrc-git packages z\nsrc-git"))
	if want := []string{"base", "packages", "luci"}; !slices.Equal(got, want) {
		t.Errorf("feeds are %v, want %v", got, want)
	}
}

const packagesFile = `Package: libubox20240329
Version: 2024.03.29-r1
Depends: libc
ABIVersion: 20240329
Provides: libubox
Description:  Basic utility library
 Package: not-a-field
	Version: 7

Package: libfoo2-3
Version: 1
ABIVersion: -3
Provides: libfoo2, foo (= 1.0), bar=2,  ../evil

Package: libold
Version: 1
ABIVersion: 9

Package: $(evil)
Version: 1

Package: no-version

Package: last
Version: 1~2+3-r1`

func TestUnzip(t *testing.T) {
	bomb := pack(make([]byte, 1001))
	if _, err := unzip(bomb, 1000); err == nil {
		t.Error("more is unpacked than is allowed")
	}
	if b, err := unzip(bomb, 1001); len(b) != 1001 || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if b, err := unzip(pack([]byte("text")), 4); string(b) != "text" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := unzip([]byte("text"), 4); string(b) != "text" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func pack(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func TestJoin(t *testing.T) {
	x := newIndex(
		string(distill(headOpkg, []feed.Package{{Name: "a", Version: "1", Provides: []feed.Dependency{{Name: "b"}, {Name: "c"}}}, {Name: "libx1", ABI: "1", Version: "1"}})),
		string(distill(headLost, []feed.Package{{Name: "a", Version: "2"}, {Name: "b", Version: "7"}, {Name: "libx", ABI: "x", Version: "9"}})),
	)
	want := "a a 2, b b 7, c c , lib lib 9, libx libx 1, libx1 libx 1"
	var got []string
	for e := range x.all() {
		got = append(got, e.name+" "+e.free+" "+e.version)
	}
	if strings.Join(got, ", ") != want || !x.lost || !x.bare {
		t.Errorf("joined: %s\nwant:   %s", strings.Join(got, ", "), want)
	}
}

const profilesFile = `{"arch_packages":"mips_24kc","default_packages":["libc","base-files","ppp","ppp"],"linux_kernel":{"release":"1","vermagic":"abc","version":"6.6.1"},
	"metadata_version":1,"profiles":{
	"a":{"device_packages":["kmod-a","-ppp","base-files","kmod-a"],"supported_devices":["v,a","$(x)"],"titles":[{"vendor":"V","model":"A"},{"title":"Other"},7,{"vendor":"W","model":"B","variant":"v2"}],"images":[{"name":"x"}]},
	"b":{},"../c":{},"d":{"device_packages":["$(x)"]}},
	"target":"ath79/generic","version_code":"r1-abc","version_number":"24.10.5","source_date_epoch":1}`

func TestParseProfiles(t *testing.T) {
	p, err := parseProfiles([]byte(profilesFile), "24.10.5", "ath79/generic")
	if err != nil {
		t.Fatal(err)
	}
	if p.Revision != "r1-abc" || p.Arch != "mips_24kc" || p.Kernel != "6.6.1-1-abc" || !slices.Equal(p.Defaults, []string{"base-files", "libc", "ppp"}) {
		t.Errorf("target is %+v", p)
	}
	if len(p.Profiles) != 2 || p.Profiles[0].ID != "a" || p.Profiles[1].ID != "b" {
		t.Fatalf("profiles are %+v", p.Profiles)
	}
	a := &p.Profiles[0]
	if !slices.Equal(a.Devices, []string{"v,a"}) || !slices.Equal(a.Titles, []string{"V A", "Other", "W B v2"}) {
		t.Errorf("profile is %+v", a)
	}
	if got, want := p.packagesOf(a), []string{"base-files", "libc", "kmod-a"}; !slices.Equal(got, want) {
		t.Errorf("packages of a are %v, want %v", got, want)
	}
	for old, new := range map[string]string{
		`"24.10.5"`: `"24.10.4"`, `"ath79/generic"`: `"ath79/tiny"`, `"r1-abc"`: `"r1 abc"`, `"mips_24kc"`: `"../x"`,
		`"ppp","ppp"`: `"p;p"`, `"profiles":`: `"profile":`, `"libc"`: `7`,
	} {
		changed := strings.Replace(profilesFile, old, new, 1)
		if p, err := parseProfiles([]byte(changed), "24.10.5", "ath79/generic"); err == nil {
			t.Errorf("with %s for %s it is taken for %+v", new, old, p)
		}
	}
}

func TestNearest(t *testing.T) {
	names := slices.Values([]string{"nano", "nano-full", "tcpdump", "tcpdump-mini", "luci-app-wireguard", "kmod-wireguard", "wireguard-tools", "banana", "luci"})
	for name, want := range map[string]string{
		"nanoo": "nano", "tcpdmp": "tcpdump", "wireguard": "kmod-wireguard wireguard-tools luci-app-wireguard", "xyzzy": "", "lucj": "luci", "": "",
	} {
		if got := strings.Join(nearest(name, names), " "); got != want {
			t.Errorf("nearest to %q are %q, want %q", name, got, want)
		}
	}
}

// FuzzDistill holds what is kept of packages, whoever listed them, against
// them: nothing that the resolver needs is lost or changed, all are found,
// and a canonical name is its own.
func FuzzDistill(f *testing.F) {
	f.Add([]byte(packagesFile), false)
	f.Add([]byte("Package: libx1\nVersion: 1\nABIVersion: 1\n\nPackage: libx\nVersion: 1\nABIVersion: x\n\n"), true)
	f.Add([]byte("Package: a\r\nVersion: 1\r\n\r\n:\n\n\n\n"), false)
	f.Add([]byte("Package: a\nVersion: 1\nDepends: b (>= 1~2), c|d (= 2)|e, f (?)\nConflicts: g (<< 1)\nProvides: a-any, h (= 3)\nInstalled-Size: 7\nSize: 8\n\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, apk bool) {
		list, err := feed.ParsePackages(b)
		if err != nil {
			return
		}
		head := headOpkg
		if apk {
			head = headAPK
		}
		checkIndex(t, head, list)
	})
}

func checkIndex(t *testing.T, head string, list []feed.Package) {
	text := string(distill(head, list))
	x := newIndex(text)
	d := &Device{target: &target{own: x}, feeds: newIndex(text, text)}
	u := d.universe()
	for i := range list {
		p := &list[i]
		if slices.ContainsFunc(list[:i], func(o feed.Package) bool { return o.Name == p.Name && o.Version == p.Version }) {
			continue // the first counts
		}
		names := []string{p.Name, p.Free()}
		for _, o := range p.Provides {
			names = append(names, o.Name)
		}
		for _, name := range names {
			found := u.Find(name)
			once := map[string]bool{}
			for _, o := range found {
				if once[o.Name+"="+o.Version] {
					t.Fatalf("%q finds %s %s twice", name, o.Name, o.Version)
				}
				once[o.Name+"="+o.Version] = true
			}
			if !slices.ContainsFunc(found, func(o *feed.Package) bool { return same(o, p, head == headAPK) }) {
				t.Fatalf("%q finds %+v and not %+v", name, found, p)
			}
			free := d.Canonical(name)
			if again := d.Canonical(free); again != free {
				t.Fatalf("canonical of %q is %q, of that %q", name, free, again)
			}
		}
		d.ABIFree(p.Name, p.Version)
		if err := d.CheckPackages([]string{p.Name}); errors.As(err, new(*build.Refusal)) && err.(*build.Refusal).Package == p.Name && !slices.ContainsFunc(p.Depends, func(o feed.Dependency) bool { return o.Name == p.Name }) {
			t.Fatalf("%+v: %v", p, err)
		}
	}
	var names []string
	for e := range x.all() {
		names = append(names, e.name)
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Fatalf("not sorted, or a name twice: %q", names)
	}
}

// same compares what of packages is kept. What a package provides of itself is
// there whether it was said or not.
func same(got, want *feed.Package, apk bool) bool {
	g, w := *got, *want
	g.ABI, w.ABI = "", ""
	w.Arch, w.File, w.SHA256, w.Description, w.Identity = "", "", "", "", ""
	own := []string{want.Free()}
	if apk {
		own = append(own, want.Name+anySuffix)
	}
	for _, p := range []*feed.Package{&g, &w} {
		p.Provides = slices.DeleteFunc(slices.Clone(p.Provides), func(o feed.Dependency) bool {
			return o.Op == "" && o.Or == nil && slices.Contains(own, o.Name)
		})
	}
	return got.Free() == want.Free() && fmt.Sprintf("%+v", g) == fmt.Sprintf("%+v", w)
}

// A damaged file in the cache is no reason to fall over.
func FuzzDistilled(f *testing.F) {
	f.Add(string(distill(headAPK, []feed.Package{{Name: "a", Version: "1", Depends: []feed.Dependency{{Name: "b", Op: ">=", Version: "2"}}}})), "a")
	f.Add("abi known\na\tb\nc\td\te\tf\n\n\t\t\n", "c")
	f.Add("whole opkg\na\t=\tb\nb\t=\ta\nc\t\t1\t\t\t\tc|c<= <\n", "a")
	f.Fuzz(func(t *testing.T, text, name string) {
		for _, x := range []*index{newIndex(text), newIndex(text, text)} {
			for range x.all() {
			}
			if e, ok := x.find(name); ok && e.name != name {
				t.Fatalf("found %+v for %q", e, name)
			}
			d := &Device{target: &target{own: x}, feeds: x}
			_ = d.CheckPackages([]string{name}) // ends
		}
		parseTarget(text)
	})
}

func FuzzProfiles(f *testing.F) {
	f.Add([]byte(profilesFile))
	f.Add([]byte(`{"arch_packages":"x","profiles":{"generic":{}},"target":"ath79/generic","version_code":"r1","version_number":"24.10.5"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseProfiles(b, "24.10.5", "ath79/generic")
		if err != nil {
			return
		}
		p.SignedBy = (usign.Fingerprint{}).String()
		kept, err := parseTarget(asJSON(t, p))
		if err != nil || len(kept.Profiles) != len(p.Profiles) {
			t.Fatalf("what was parsed cannot be kept: %v", err)
		}
		for i := range kept.Profiles {
			want := &kept.Profiles[i]
			same := 0 // "a,b" and "a_b" may both be there
			for k := range kept.Profiles {
				if bare(kept.Profiles[k].ID) == bare(want.ID) {
					same++
				}
			}
			if got, err := kept.find(want.ID, ""); err != nil || got.ID != want.ID && same == 1 && len(kept.Profiles) > 1 {
				t.Fatalf("%q is found as %+v, %v", want.ID, got, err)
			}
			for _, name := range kept.packagesOf(want) {
				if !namePattern.MatchString(name) {
					t.Fatalf("a default package of %q is %q", want.ID, name)
				}
			}
		}
	})
}

func FuzzLists(f *testing.F) {
	f.Add([]byte(`{"stable_version":"24.10.5","oldstable_version":"23.05.6","upcoming_version":"25.12.0-rc1","versions_list":["24.10.4"]}`))
	f.Add([]byte(`{"x86/64":"x86_64"}`))
	f.Add([]byte("src-git packages https://git.example.org/p.git^0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parseVersions(b); err == nil {
			if !slices.IsSortedFunc(v.Versions, newestFirst) || !slices.IsSortedFunc(v.latest(), newestFirst) {
				t.Fatalf("not newest first: %v, %v", v.Versions, v.latest())
			}
			for _, branch := range v.branches() {
				for _, version := range branch.Versions {
					if !releasePattern.MatchString(strings.TrimSuffix(version, "-"+snapshot)) || strings.Contains(version, "/") {
						t.Fatalf("a version is called %q", version)
					}
				}
			}
		}
		if list, err := parseTargets(b); err == nil {
			for target, arch := range list {
				if strings.Count(target, "/") != 1 || strings.Contains(target+arch, "..") && strings.Contains(arch, "/") {
					t.Fatalf("target %q, architecture %q", target, arch)
				}
			}
		}
		for _, name := range parseFeeds(b) {
			if strings.ContainsAny(name, "/\\") || name[0] == '.' {
				t.Fatalf("a feed is called %q", name)
			}
		}
	})
}
