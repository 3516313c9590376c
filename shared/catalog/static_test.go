package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
)

// overEach runs a test with the catalogue in a folder, as leader of a store
// and as its follower.
func overEach(t *testing.T, up func(testing.TB) *catalogtest.Upstream, test func(t *testing.T, w world)) {
	t.Run("folder", func(t *testing.T) { test(t, fetched(t, up(t))) })
	t.Run("leader", func(t *testing.T) {
		w := newSite(t, up(t)).leader()
		w.refresh(t)
		test(t, w)
	})
	t.Run("follower", func(t *testing.T) {
		s := newSite(t, up(t))
		s.leader().refresh(t)
		test(t, s.follower())
	})
}

func (w world) listing(t testing.TB, p Part) *Listing {
	t.Helper()
	stamp, err := w.Stamp(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.Listing(t.Context(), p)
	if err != nil || l.Stamp != stamp {
		t.Fatalf("the listing of %s, whose stamp is %s: %+v, %v", p, stamp, l, err)
	}
	return l
}

func TestListing(t *testing.T) {
	overEach(t, sample, func(t *testing.T, w world) {
		l := w.listing(t, Part{Version: "24.10.5", Target: ath79})
		if want := []string{"8dev_carambola2", "carambola2", "tplink_archer-c7-v2", "tplink_archer-c7-v5"}; !slices.Equal(l.Profiles(), want) || l.Arch != "mips_24kc" {
			t.Errorf("of %s there are %v, want %v", l.Arch, l.Profiles(), want)
		}
		for _, name := range l.Profiles() {
			d := w.device(t, "24.10.5", ath79, name, "")
			if p, err := l.Profile(name); err != nil || p.ID != d.Facts.Profile || p.VersionCode != d.Facts.Revision {
				t.Errorf("%s is %+v, %v", name, p, err)
			}
		}
		for _, name := range []string{"", "index", "archer-c7", "a b", strings.Repeat("a", 1000)} {
			_, err := l.Profile(name)
			refused(t, err, build.CodeUnknownDevice)
		}
		feeds := w.listing(t, Part{Version: "24.10.5", Arch: "mips_24kc"})
		if names := feeds.Profiles(); names != nil {
			t.Errorf("feeds have the profiles %v", names)
		}
		_, err := feeds.Profile("generic")
		refused(t, err, build.CodeUnknownDevice)
		for name, version := range feeds.Packages() {
			d := w.device(t, "24.10.5", ath79, "carambola2", "")
			if d.Canonical(name) != name || version == "" {
				t.Errorf("the feeds have %s %s, whose name is %s", name, version, d.Canonical(name))
			}
		}
	})
}

// TestListingAbsent: what was never fetched is not there for Listing, and what
// does not exist is not for Stamp.
func TestListingAbsent(t *testing.T) {
	overEach(t, sample, func(t *testing.T, w world) {
		for _, p := range []Part{{Version: "24.10.5", Target: x86}, {Version: "24.10.5", Arch: "x86_64"}} {
			_, err := w.Listing(t.Context(), p)
			refused(t, err, build.CodeUnavailable)
		}
		for _, p := range []Part{
			{}, {Version: "24.10.5"}, {Version: "24.10.5", Target: "x86"}, {Version: "24.10.5", Target: "x86/65"}, {Version: "24.10.5", Arch: "arm"},
			{Version: "1", Target: x86}, {Version: "snapshot", Target: x86}, {Version: "..", Arch: "x86_64"}, {Version: "24.10.5", Arch: "../x86_64"},
		} {
			_, err := w.Stamp(t.Context(), p)
			refused(t, err, build.CodeUnsupported)
		}
	})
}

// TestParts: the stamps of what is held change when it does, and only then.
func TestParts(t *testing.T) {
	parts := func(t *testing.T, w world) map[Part]string {
		t.Helper()
		held, err := w.Parts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	test := func(t *testing.T, w world, renew func(t *testing.T)) {
		target, feeds := Part{Version: "SNAPSHOT", Target: x86}, Part{Version: "SNAPSHOT", Arch: "x86_64"}
		if held := parts(t, w); len(held) != 0 {
			t.Errorf("at first there is %v", held)
		}
		w.device(t, "SNAPSHOT", x86, "", "")
		renew(t)
		first := parts(t, w)
		if first[target] == "" || first[feeds] == "" || len(first) != 2 {
			t.Fatalf("there is %v", first)
		}
		w.up.Feed("SNAPSHOT", "x86_64", "luci", true, catalogtest.Package{Name: "luci", Version: "26"})
		renew(t)
		second := parts(t, w)
		if second[target] != first[target] || second[feeds] == first[feeds] {
			t.Errorf("a feed changed: %v, then %v", first, second)
		}
		w.up.Release("SNAPSHOT", "r30000-0123456789")
		renew(t)
		third := parts(t, w)
		if third[target] == second[target] || len(third) != 2 {
			t.Errorf("the target changed: %v, then %v", second, third)
		}
		if again := parts(t, w); again[target] != third[target] || again[feeds] != third[feeds] {
			t.Errorf("nothing changed: %v, then %v", third, again)
		}
	}
	t.Run("folder", func(t *testing.T) {
		w := fetched(t, sample(t))
		w.maxAgeMoving = 0
		test(t, w, func(t *testing.T) {
			w.listing(t, Part{Version: "SNAPSHOT", Target: x86})
			w.listing(t, Part{Version: "SNAPSHOT", Arch: "x86_64"})
		})
	})
	t.Run("store", func(t *testing.T) {
		w := newSite(t, sample(t)).leader()
		w.refresh(t)
		test(t, w, func(t *testing.T) { w.refresh(t) })
	})
}

// noBuilders is a sample whose 24.10.5 has no ImageBuilder, and whose SNAPSHOT
// has none for ath79.
func noBuilders(t testing.TB) *catalogtest.Upstream {
	up := sample(t)
	for _, dir := range []string{"releases/24.10.5/targets/ath79/generic", "releases/24.10.5/targets/x86/64", "snapshots/targets/ath79/generic"} {
		up.Drop(dir + "/openwrt-imagebuilder")
		up.Sign(dir)
	}
	return up
}

// TestNoImageBuilder: a version is offered only if its ImageBuilder can be
// had, and of an offered one no target that has none.
func TestNoImageBuilder(t *testing.T) {
	overEach(t, noBuilders, func(t *testing.T, w world) {
		o, err := w.Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"25.12.0-rc1", "SNAPSHOT"}; !slices.Equal(o.Versions, want) || slices.Contains(o.Latest, "24.10.5") {
			t.Errorf("offered are %v, the latest %v; want %v", o.Versions, o.Latest, want)
		}
		_, err = w.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnsupported, "24.10.5 cannot be built", "no ImageBuilder")
		w.device(t, "SNAPSHOT", x86, "", "")
		_, err = w.Device(t.Context(), "SNAPSHOT", ath79, "carambola2", "")
		refused(t, err, build.CodeUnsupported, "SNAPSHOT cannot be built for ath79/generic", "no ImageBuilder")
		_, err = w.Listing(t.Context(), Part{Version: "SNAPSHOT", Target: ath79})
		refused(t, err, build.CodeUnsupported, "no ImageBuilder")
	})
}

// TestImageBuilderComes: one that was missing is seen.
func TestImageBuilderComes(t *testing.T) {
	up := noBuilders(t)
	w := fetched(t, up)
	w.maxAgeRelease = 0
	up.Release("24.10.5", "r29233-443ec4032a")
	w.refresh(t)
	w.device(t, "24.10.5", x86, "", "")
}

// TestProfileLeavesTheTarget: what is answered may be changed, what it was
// made of may not. The upstream's order is the answer's.
func TestProfileLeavesTheTarget(t *testing.T) {
	up := sample(t)
	up.Target("24.10.5", catalogtest.Target{
		Name: x86, Arch: "x86_64", Revision: "r1-0", Defaults: []string{"procd", "base-files", "-ppp", "libc"},
		Profiles: map[string]catalogtest.Profile{"generic": {Packages: []string{"kmod-z", "-libc", "kmod-a"}, Devices: []string{"z,z", "a,a"}}},
	})
	w := fetched(t, up)
	l := w.listing(t, Part{Version: "24.10.5", Target: x86})
	before, _ := json.Marshal(l.target)
	p, err := l.Profile("generic")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p.DefaultPackages, p.DevicePackages, p.SupportedDevices), "[procd base-files -ppp libc] [kmod-z -libc kmod-a] [z,z a,a]"; got != want {
		t.Errorf("the profile has %s, want %s", got, want)
	}
	if after, _ := json.Marshal(l.target); string(after) != string(before) {
		t.Errorf("the target was\n%s\nand is\n%s", before, after)
	}
}

// TestProfileWithoutFacts: half of an update, or a profile of which nothing
// more is known, is answered by what is there.
func TestProfileWithoutFacts(t *testing.T) {
	for name, facts := range map[string]string{
		"none": "", "no line": "\t{", "of another state": "\t" + `{"version_code":"r9-9","default_packages":["x"],"source_date_epoch":5}` + "\n",
	} {
		w := fetched(t, sample(t))
		w.device(t, "24.10.5", ath79, "carambola2", "")
		if err := w.disk.write("24.10.5/ath79/generic/"+factsFile, w.disk.meta("24.10.5/ath79/generic/.target"), []byte(facts)); err != nil {
			t.Fatal(err)
		}
		l := w.listing(t, Part{Version: "24.10.5", Target: ath79})
		p, err := l.Profile("tplink,archer-c7-v2")
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprintf("%v %v %s %v %v", p.DevicePackages, p.SupportedDevices, p.Titles, p.Images, p.SourceDateEpoch) !=
			`[kmod-ath9k -dnsmasq] [tplink,archer-c7-v2 archer-c7] [{"title":"TP-Link Archer C7 v2"}] [] 0` || len(p.DefaultPackages) != 8 || p.ArchPackages != "mips_24kc" {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// TestDistillProfiles: odd values are left out, and leave the rest.
func TestDistillProfiles(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	text, err := distillProfiles([]byte(`{"version_code":"r1-0","source_date_epoch":"1700000000","linux_kernel":{"version":"6.6.1","release":"1","vermagic":"$(x)"},"profiles":{
		"a":{"image_prefix":"p","device_packages":["x","-y"],"titles":[{"title":"A\u0000\n"},{"vendor":"V","model":"M"},{}],"supported_devices":["a,b","../c"],"images":[
			{"name":"i.bin","type":"sysupgrade","filesystem":"squashfs","sha256":"` + sum + `","sha256_unsigned":"zz","extra":1},
			{"name":"../i.bin","type":"sysupgrade"},{"name":"j.bin","type":"a b"},{"name":"k.bin","type":"t","filesystem":"a/b"}]},
		"b":{"images":"none"}, "../c":{}, "d":{"device_packages":["$(x)"]}, "e":{"image_prefix":"a/b"}}}`))
	want := "\t" + `{"default_packages":[],"source_date_epoch":1700000000,"version_code":"r1-0"}` + "\n" +
		"a\t" + `{"device_packages":["x","-y"],"image_prefix":"p","images":[{"filesystem":"squashfs","name":"i.bin","sha256":"` + sum + `","type":"sysupgrade"},{"name":"k.bin","type":"t"}],` +
		`"supported_devices":["a,b"],"titles":[{"title":"A"},{"vendor":"V","model":"M"}]}` + "\n" +
		"e\t" + `{"device_packages":[],"image_prefix":"","images":[],"supported_devices":[],"titles":[]}` + "\n"
	if err != nil || string(text) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, text, want)
	}
	for _, bad := range []string{"", "[]", "{}", `{"version_code":"a b"}`, `{"version_code":"r1","default_packages":["a b"]}`, `{"version_code":"r1","profiles":[]}`} {
		if text, err := distillProfiles([]byte(bad)); err == nil {
			t.Errorf("%s is read as %s", bad, text)
		}
	}
}

// FuzzDistillProfiles: whatever the upstream writes, each line is JSON of one
// profile, nothing in it breaks its pattern, and its bytes come back as they are.
func FuzzDistillProfiles(f *testing.F) {
	up, err := catalogtest.Sample()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(up.Get("releases/24.10.5/targets/x86/64/profiles.json"))
	f.Add(up.Get("snapshots/targets/ath79/generic/profiles.json"))
	f.Add([]byte(`{"version_code":"r1","source_date_epoch":"5","profiles":{"a":{"titles":[{"title":"\u2028<\t"}]}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := distillProfiles(b)
		if err != nil {
			return
		}
		common, profiles := splitProfiles(string(text))
		if strings.Count(string(text), "\n") != len(profiles)+1 || !json.Valid([]byte(common)) {
			t.Fatalf("%q has %d profiles", text, len(profiles))
		}
		for id, facts := range profiles {
			var d deviceFacts
			if err := json.Unmarshal([]byte(facts), &d); err != nil || !profilePattern.MatchString(id) || !d.clean() {
				t.Fatalf("%q: %q %v", id, facts, err)
			}
			if again, err := json.Marshal(d); err != nil || string(again) != facts {
				t.Fatalf("%q: %s, then %s, %v", id, facts, again, err)
			}
		}
	})
}

// TestPartNames: units and parts name each other.
func TestPartNames(t *testing.T) {
	for unit, want := range map[string]Part{
		"24.10.5/x86/64":           {Version: "24.10.5", Target: x86},
		"SNAPSHOT/.feeds/aarch64_": {Version: "SNAPSHOT", Arch: "aarch64_"},
		"24.10.5/.targets":         {}, "24.10.5/x86": {}, "24.10.5/.feeds/": {}, "24.10.5/.feeds/a/b": {}, ".index": {}, ".wanted/24.10.5/x86/64": {}, "../x86/64": {}, "": {},
	} {
		p, ok := parsePart(unit)
		if ok != (want != Part{}) || ok && (p != want || p.String() != unit) {
			t.Errorf("%q is %+v, %t", unit, p, ok)
		}
	}
}

func BenchmarkListing(b *testing.B) {
	up, err := catalogtest.Big(1, 9000)
	if err != nil {
		b.Fatal(err)
	}
	w := fetched(b, up)
	part := Part{Version: "24.10.5", Target: "board0/generic"}
	w.listing(b, part)
	for b.Loop() {
		l, err := w.Listing(context.Background(), part)
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range l.Profiles() {
			if _, err := l.Profile(name); err != nil {
				b.Fatal(err)
			}
		}
	}
}
