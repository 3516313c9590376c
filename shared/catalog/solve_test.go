package catalog

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// market puts packages that need and exclude each other into both package
// managers' releases.
func market(t testing.TB) *catalogtest.Upstream {
	t.Helper()
	u := sample(t)
	for _, version := range []string{"24.10.5", "25.12.0-rc1"} {
		u.Feed(version, "x86_64", "packages", version != "24.10.5",
			catalogtest.Package{Name: "nano", Version: "8.3-r1", Depends: "libc, libncurses6"}, catalogtest.Package{Name: "libncurses", ABI: "6", Version: "6.5-r1"},
			catalogtest.Package{Name: "luci-app-x", Version: "1", Depends: "libc, libfoo"},
			catalogtest.Package{Name: "hermit", Version: "1", Conflicts: "nano"}, catalogtest.Package{Name: "misanthrope", Version: "1", Conflicts: "hermit", Depends: "nano"},
			catalogtest.Package{Name: "kmod-user", Version: "1", Depends: "kmod-wireguard, kernel (= 6.6.1~0-r1)"})
	}
	return u
}

func TestResolve(t *testing.T) {
	w := fetched(t, market(t))
	for _, version := range []string{"24.10.5", "25.12.0-rc1"} {
		d := w.device(t, version, x86, "", "")
		for _, c := range []struct {
			add, remove string
			gets        string // some of what the image holds
			code        build.Code
			about, says string
		}{
			{add: "nano", gets: "nano libncurses6 busybox dnsmasq kmod-e1000"},
			{add: "libncurses", remove: "dnsmasq", gets: "libncurses6"},
			{add: "kmod-user", gets: "kmod-user kmod-wireguard"},
			{add: "luci-app-x", code: build.CodeUnknownPackage, about: "libfoo", says: "luci-app-x needs libfoo, which OpenWrt " + version + " does not have. Did you mean libfoo2? Leave luci-app-x out."},
			{add: "hermit misanthrope", code: build.CodeConflict, says: "hermit"},
			{add: "nano2", code: build.CodeUnknownPackage, about: "nano2", says: `OpenWrt ` + version + ` has no package "nano2" for x86/64. Did you mean nano?`},
		} {
			s, err := d.Resolve(&build.Plan{Add: strings.Fields(c.add), Remove: strings.Fields(c.remove)})
			if version == "24.10.5" && c.code == build.CodeConflict {
				continue // opkg does not mind one side's word
			}
			if c.code != "" {
				if r := refused(t, err, c.code, c.says); c.about != "" && r.Package != c.about {
					t.Errorf("%s: about %q, want %q", c.add, r.Package, c.about)
				}
				continue
			}
			var names []string
			for _, p := range s.Packages {
				names = append(names, p.Name)
			}
			for _, name := range strings.Fields(c.gets) {
				if !slices.Contains(names, name) {
					t.Errorf("%s: %s is missing in %v", c.add, name, names)
				}
			}
			if err != nil || !s.Sure || slices.Contains(names, "dnsmasq") == (c.remove != "") || s.Installed != int64(10240*len(names)) {
				t.Errorf("%s: %v, sure %v, %v", c.add, names, s.Sure, err)
			}
		}
	}
}

// TestSignedADB: an index of apk that no checksums list is of a known key if
// any is known; without one it is taken as it is.
func TestSignedADB(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		keys  func(*catalogtest.Upstream) []*ecdsa.PublicKey
		spoil func(*catalogtest.Upstream)
		says  string // "" = it is taken
	}{
		{"no key", func(*catalogtest.Upstream) []*ecdsa.PublicKey { return nil }, nil, ""},
		{"the key", (*catalogtest.Upstream).APKKeys, nil, ""},
		{"another key", func(*catalogtest.Upstream) []*ecdsa.PublicKey { return []*ecdsa.PublicKey{&other.PublicKey} }, nil, "--upstream-key"},
		{"no signature", (*catalogtest.Upstream).APKKeys, func(u *catalogtest.Upstream) {
			const name = "releases/25.12.0-rc1/packages/x86_64/base/packages.adb"
			b, err := feed.WriteADB([]feed.Package{{Name: "nano", Version: "1"}}, other)
			if err != nil {
				t.Fatal(err)
			}
			u.Put(name, b)
		}, "--upstream-key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := sample(t)
				if c.spoil != nil {
					c.spoil(u)
				}
				cat, err := New(Options{Upstream: "https://upstream.test", Keys: u.Keys(), APKKeys: c.keys(u), Dir: t.TempDir(), Client: u.Client()})
				if err != nil {
					t.Fatal(err)
				}
				defer cat.Close()
				if err := cat.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				d, err := cat.Device(t.Context(), "25.12.0-rc1", x86, "", "")
				if c.says != "" {
					refused(t, err, build.CodeUnavailable, c.says)
					return
				}
				if err != nil || d.Canonical("libubox20240329") != "libubox" {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

// aged makes a stored unit one of the first form, in which indices had names and
// versions only.
func aged(t *testing.T, s *site, unit string) {
	t.Helper()
	b, err := unpack(s.object(storePrefix+unit), "https://upstream.test")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range b.files {
		f.Form = 1
		if head, rest, _ := strings.Cut(f.text, "\n"); head+"\n" == headOpkg {
			f.text = headKnown
			for line := range strings.Lines(rest) {
				fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
				if fields[1] == alias {
					f.text += fields[0] + "\t" + fields[0] + "\t\n"
				} else {
					f.text += fields[0] + "\t" + fields[0] + "\t" + fields[2] + "\n"
				}
			}
		}
		b.files[name] = f
	}
	packed, err := b.pack()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := unzip(packed, maxUnpacked)
	if err != nil {
		t.Fatal(err)
	}
	s.put(storePrefix+unit, pack([]byte(strings.Replace(string(plain), `{"form":3`, `{"form":1`, 1))))
}

// TestOldForm: what an earlier program stored is read until the leader of the
// new one has stored it anew, which it does in its first round.
func TestOldForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, market(t))
		leader := s.leader()
		leader.refresh(t)
		leader.device(t, "24.10.5", x86, "", "")
		leader.refresh(t)
		for _, unit := range []string{indexUnit, "24.10.5/" + x86, "24.10.5/.feeds/x86_64"} {
			aged(t, s, unit)
		}
		time.Sleep(time.Second)
		d := s.recluse().device(t, "24.10.5", x86, "", "")
		got, err := d.Resolve(&build.Plan{Add: []string{"luci-app-x", "libncurses"}})
		if err != nil || got.Sure {
			t.Errorf("by the old form it is sure %v, %v", got.Sure, err)
		}
		refused(t, d.CheckPackages([]string{"no-such"}), build.CodeUnknownPackage)

		s.leader().refresh(t)
		d = s.recluse().device(t, "24.10.5", x86, "", "")
		refused(t, d.CheckPackages([]string{"luci-app-x"}), build.CodeUnknownPackage, "libfoo")
	})
}

// TestBetterIndex: index.json is only made do with.
func TestBetterIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := market(t)
		whole := map[string][]byte{}
		for _, name := range []string{"base", "luci", "packages"} {
			file := "releases/25.12.0-rc1/packages/x86_64/" + name + "/packages.adb"
			whole[file] = u.Get(file)
			u.Drop(file)
		}
		w := fetched(t, u)
		d := w.device(t, "25.12.0-rc1", x86, "", "")
		if s, err := d.Resolve(&build.Plan{Add: []string{"luci-app-x"}}); err != nil || s.Sure {
			t.Errorf("sure %v, %v", s.Sure, err)
		}
		for name, b := range whole {
			u.Put(name, b)
		}
		time.Sleep(2 * time.Hour)
		w.device(t, "25.12.0-rc1", x86, "", "")
		synctest.Wait()
		refused(t, w.device(t, "25.12.0-rc1", x86, "", "").CheckPackages([]string{"luci-app-x"}), build.CodeUnknownPackage, "libfoo")
	})
}

func TestTooBig(t *testing.T) {
	for _, c := range []struct {
		target    string
		limit     int64
		plan      build.Plan
		installed int64
		says      string // "" = it may fit
	}{
		{"x86/64", 0, build.Plan{}, 100 << 20, ""},
		{"x86/64", 0, build.Plan{}, 105 << 20, "about 105 MB, more than the 104 MB"},
		{"x86/64", 0, build.Plan{RootfsSizeMB: 200}, 105 << 20, ""},
		{"x86/64", 0, build.Plan{Filesystem: "squashfs"}, 300 << 20, ""},
		{"x86/64", 0, build.Plan{Filesystem: "squashfs"}, 400 << 20, "about 120 MB, more than the 104 MB"},
		{"ath79/generic", 0, build.Plan{}, 1 << 30, ""},
		{"ath79/generic", 15859712, build.Plan{}, 40 << 20, ""},
		{"ath79/generic", 15859712, build.Plan{}, 60 << 20, "about 18 MB, and this device has room for 15 MB"},
	} {
		d := &Device{Facts: build.Facts{Target: c.target}, limit: c.limit}
		got := d.TooBig(&c.plan, resolve.Solution{Installed: c.installed})
		if c.says == "" && got != "" || !strings.Contains(got, c.says) {
			t.Errorf("%s, %d of %d bytes: %q, want %q", c.target, c.installed, c.limit, got, c.says)
		}
	}
}

func TestLimit(t *testing.T) {
	for raw, want := range map[string]int64{`{"image":15859712,"kernel":4096}`: 15859712, `{"image":"16064k"}`: 0, `{"image":-1}`: 0, `[]`: 0, `null`: 0, ``: 0} {
		file := strings.Replace(profilesFile, `"a":{`, `"a":{"file_size_limits":`+raw+`,`, 1)
		if raw == "" {
			file = profilesFile
		}
		p, err := parseProfiles([]byte(file), "24.10.5", "ath79/generic")
		if err != nil || p.Profiles[0].Limit != want {
			t.Errorf("%s: %v, want %d", raw, err, want)
		}
	}
}

func TestTrust(t *testing.T) {
	secret, err := usign.Generate("upstream")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, text []byte) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	public := secret.Public().Marshal()
	usignFile, pemFile := write("key.pub", public), write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	var o Options
	if err := o.Trust([]string{usignFile, "", pemFile, strings.Split(string(public), "\n")[1], base64.StdEncoding.EncodeToString(der)}); err != nil {
		t.Fatal(err)
	}
	if len(o.Keys) != 2 || len(o.APKKeys) != 2 || o.Keys[1].Fingerprint != secret.Public().Fingerprint || !o.APKKeys[1].Equal(&key.PublicKey) {
		t.Errorf("trusted are %v and %v", o.Keys, o.APKKeys)
	}
	for _, bad := range []string{"absent.pub", write("text", []byte("text\n")), write("long", make([]byte, maxKeyFile+1)), write("bad.pem", []byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"))} {
		if err := o.Trust([]string{bad}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestInDoubt: where more may be there than is known, nothing is refused for
// want of it, and nothing is sure.
func TestInDoubt(t *testing.T) {
	const x86Feeds = "releases/24.10.5/packages/x86_64"
	for _, c := range []struct {
		name          string
		doubt         func(*catalogtest.Upstream)
		version       string
		passes, fails string
	}{
		{"the feeds are guessed", func(u *catalogtest.Upstream) { u.Drop(x86Feeds + "/feeds.conf") }, "24.10.5", "falter-common luci-app-x", ""},
		{"a feed is elsewhere", func(u *catalogtest.Upstream) { u.Drop(x86Feeds + "/falter/") }, "24.10.5", "falter-common luci-app-x", ""},
		{"no folder of modules", func(u *catalogtest.Upstream) { u.Drop("releases/24.10.5/targets/x86/64/kmods") }, "24.10.5", "kmod-wireguard kmod-user", "nanoo luci-app-x"},
		{"names only", func(u *catalogtest.Upstream) { withoutADB(u, "releases/25.12.0-rc1") }, "25.12.0-rc1", "hostapd editor kmod-other libfoo3 luci-app-x", "luci-ssll dnsmasc"},
	} {
		for _, doubtful := range []bool{false, true} {
			u := market(t)
			u.Feed("24.10.5", "x86_64", "falter", false, catalogtest.Package{Name: "falter-common", Version: "1", Depends: "libc"})
			if doubtful {
				c.doubt(u)
			}
			d := fetched(t, u).device(t, c.version, x86, "", "")
			for _, name := range strings.Fields(c.passes) {
				s, err := d.Resolve(&build.Plan{Add: []string{name}})
				if doubtful && (err != nil || s.Sure) {
					t.Errorf("%s: %s: sure %v, %v", c.name, name, s.Sure, err)
				}
			}
			for _, name := range strings.Fields(c.fails) {
				refused(t, d.CheckPackages([]string{name}), build.CodeUnknownPackage)
			}
			if s, err := d.Resolve(&build.Plan{Add: []string{"nano"}}); err != nil || s.Sure == doubtful {
				t.Errorf("%s (%v): nano: sure %v, %v", c.name, doubtful, s.Sure, err)
			}
		}
	}
}

// TestLongABI: ABI versions are as long as indices may have them.
func TestLongABI(t *testing.T) {
	long := "5." + strings.Repeat("7", 62)
	x := newIndex(string(distill(headLost, []feed.Package{{Name: "libwolfssl", Version: "5.7.4"}})))
	for name, want := range map[string]bool{"libwolfssl" + long: true, "libwolfssl" + long + "7": false} {
		if _, ok := cutABI(name, x.find, func(entry) bool { return true }); ok != want {
			t.Errorf("%s: found %v, want %v", name, ok, want)
		}
	}
}
