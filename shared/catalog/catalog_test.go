package catalog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func sample(t testing.TB) *catalogtest.Upstream {
	t.Helper()
	u, err := catalogtest.Sample()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// world is a catalogue over an upstream in memory.
type world struct {
	*Catalog
	up  *catalogtest.Upstream
	dir string
	log *bytes.Buffer
}

func open(t testing.TB, u *catalogtest.Upstream, dir string) world {
	t.Helper()
	var log bytes.Buffer
	c, err := New(Options{
		Upstream: "https://upstream.test/", Keys: u.Keys(), Dir: dir, Client: u.Client(),
		Log: slog.New(slog.NewTextHandler(&lockedWriter{w: &log}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return world{c, u, dir, &log}
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// fetched is open after the first round.
func fetched(t testing.TB, u *catalogtest.Upstream) world {
	t.Helper()
	w := open(t, u, t.TempDir())
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w world) device(t testing.TB, version, target, profile, model string) *Device {
	t.Helper()
	d, err := w.Device(t.Context(), version, target, profile, model)
	if err != nil {
		t.Fatalf("Device(%q, %q, %q, %q): %v", version, target, profile, model, err)
	}
	return d
}

// refused asserts a refusal of that code whose sentence holds every word.
func refused(t testing.TB, err error, code build.Code, words ...string) *build.Refusal {
	t.Helper()
	var r *build.Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Fatalf("got %v, want a refusal %s", err, code)
	}
	for _, word := range words {
		if !strings.Contains(r.Detail, word) {
			t.Errorf("the refusal %q does not say %q", r.Detail, word)
		}
	}
	return r
}

// failing asserts a failure to be tried again whose sentence holds every word.
func failing(t testing.TB, err error, words ...string) {
	t.Helper()
	var f *build.Failure
	if !errors.As(err, &f) || f.Kind != build.KindUpstream {
		t.Fatalf("got %v, want a failure of the upstream", err)
	}
	for _, word := range words {
		if !strings.Contains(f.Detail, word) {
			t.Errorf("the failure %q does not say %q", f.Detail, word)
		}
	}
}

const (
	x86   = "x86/64"
	ath79 = "ath79/generic"
)

func TestDevice(t *testing.T) {
	w := fetched(t, sample(t))
	for _, c := range []struct{ version, target, profile, model, want string }{
		{"24.10.5", x86, "generic", "", "generic"},
		{"24.10.5", x86, "", "", "generic"},
		{"24.10.5", x86, "PC Engines, apu2", "", "generic"}, // the board name of whatever machine
		{"24.10.5", ath79, "tplink_archer-c7-v2", "", "tplink_archer-c7-v2"},
		{"24.10.5", ath79, "tplink,archer-c7-v2", "", "tplink_archer-c7-v2"},
		{"24.10.5", ath79, "carambola2", "", "8dev_carambola2"},
		{"24.10.5", ath79, "", "tp-link ARCHER C7 v5", "tplink_archer-c7-v5"},
		{"24.10.5", ath79, "archer-c7", "TP-Link Archer C7 v2", "tplink_archer-c7-v2"}, // two have that alias
		{"24.10.5", ath79, "no-such-board", "8devices Carambola2", "8dev_carambola2"},
		{"24.10.5", ath79, "tplink_archer-c7-v2", "TP-Link Archer C7 v5", "tplink_archer-c7-v2"}, // the board decides
		{"SNAPSHOT", x86, "", "", "generic"},
		{"snapshot", ath79, "8dev,carambola2", "", "8dev_carambola2"},
	} {
		d := w.device(t, c.version, c.target, c.profile, c.model)
		if d.Facts.Profile != c.want {
			t.Errorf("Device(%q, %q, %q, %q) is %q, want %q", c.version, c.target, c.profile, c.model, d.Facts.Profile, c.want)
		}
	}
}

func TestFacts(t *testing.T) {
	w := fetched(t, sample(t))
	d := w.device(t, "snapshot", ath79, "tplink,archer-c7-v2", "")
	f := d.Facts
	if f.Distribution != "OpenWrt" || f.Version != "SNAPSHOT" || !f.Snapshot || f.Revision != "r29233-443ec4032a" || f.Target != ath79 {
		t.Errorf("facts are %+v", f)
	}
	// The device leaves dnsmasq out.
	want := []string{"base-files", "busybox", "dropbear", "kernel", "libc", "opkg", "procd", "kmod-ath9k"}
	if !slices.Equal(f.Defaults, want) {
		t.Errorf("default packages are %v, want %v", f.Defaults, want)
	}
	if d.Arch != "mips_24kc" || !slices.Equal(d.Titles, []string{"TP-Link Archer C7 v2"}) || !slices.Contains(d.SupportedDevices, "tplink,archer-c7-v2") {
		t.Errorf("device is %+v", d)
	}
	if f := w.device(t, "24.10.5", x86, "", "").Facts; f.Snapshot {
		t.Error("a release is taken for a snapshot")
	}
}

func TestRefusals(t *testing.T) {
	w := fetched(t, sample(t))
	for _, c := range []struct {
		version, target, profile, model string
		code                            build.Code
		words                           []string
	}{
		{"24.10.6", x86, "", "", build.CodeUnsupported, []string{`"24.10.6"`, "24.10.5", "25.12.0-rc1", "SNAPSHOT"}},
		{"24.10-SNAPSHOT", x86, "", "", build.CodeUnsupported, []string{"24.10.5"}},
		{"../24.10.5", x86, "", "", build.CodeUnsupported, nil},
		{"24.10.5", "x86/65", "", "", build.CodeUnsupported, []string{`"x86/65"`, "Did you mean x86/64?"}},
		{"24.10.5", "../x86", "", "", build.CodeUnsupported, nil},
		{"24.10.5", ath79, "", "", build.CodeUnknownDevice, []string{"8dev_carambola2", "tplink_archer-c7-v2", "tplink_archer-c7-v5"}},
		{"24.10.5", ath79, "tplink,archer-c7-v3", "", build.CodeUnknownDevice, []string{"Did you mean", "tplink_archer-c7-v2"}},
		{"24.10.5", ath79, "carambola", "", build.CodeUnknownDevice, []string{"8dev_carambola2"}},
		{"24.10.5", ath79, "archer-c7", "", build.CodeUnknownDevice, []string{"several", "tplink_archer-c7-v2", "tplink_archer-c7-v5"}},
		{"24.10.5", ath79, "", "No Such Model", build.CodeUnknownDevice, []string{`"No Such Model"`, "8dev_carambola2"}},
	} {
		_, err := w.Device(t.Context(), c.version, c.target, c.profile, c.model)
		refused(t, err, c.code, c.words...)
	}
}

// withoutADB leaves a release of apk with what index.json tells.
func withoutADB(u *catalogtest.Upstream, dir string) {
	for _, target := range []string{"x86/64", "ath79/generic"} {
		u.Drop(dir + "/targets/" + target + "/packages/packages.adb")
		u.Drop(dir + "/targets/" + target + "/kmods/6.6.1-1-0123456789abcdef/packages.adb")
		u.Sign(dir + "/targets/" + target)
	}
	for _, arch := range []string{"x86_64", "mips_24kc"} {
		for _, name := range []string{"base", "luci", "packages"} {
			u.Drop(dir + "/packages/" + arch + "/" + name + "/packages.adb")
		}
	}
}

func TestCheckPackages(t *testing.T) {
	t.Run("whole", func(t *testing.T) { testCheckPackages(t, sample(t), true) })
	t.Run("index.json", func(t *testing.T) {
		u := sample(t)
		withoutADB(u, "releases/25.12.0-rc1")
		testCheckPackages(t, u, false)
	})
}

// testCheckPackages: what no index.json lists may still be provided, unless it
// is a plain typing error.
func testCheckPackages(t *testing.T, u *catalogtest.Upstream, whole bool) {
	w := fetched(t, u)
	for _, c := range []struct {
		version string
		list    string
		unknown string
		nearest string
	}{
		{"24.10.5", "nano tcpdump luci-ssl lib++", "", ""},
		{"24.10.5", "libubox libubox20240329 libfoo2 libfoo2-3", "", ""},
		{"24.10.5", "hostapd wpa-supplicant wpad-mbedtls", "", ""},
		{"24.10.5", "kernel libc base-files procd dropbear", "", ""}, // defaults, in no index
		{"24.10.5", "kmod-e1000 kmod-wireguard", "", ""},             // in a folder of their own
		{"24.10.5", "+nano -no-such-thing nano=8.3-r1", "", ""},
		{"24.10.5", "nano tcpdumpp nanoo", "tcpdumpp", "tcpdump"},
		{"24.10.5", "libubox20210516", "libubox20210516", "libubox"},
		{"24.10.5", "kmod-ath9k", "kmod-ath9k", ""}, // of another target
		{"25.12.0-rc1", "libubox libubox20240329 libfoo2-3 nano luci", "", ""},
		{"25.12.0-rc1", "libnope20240329", "libnope20240329", ""},
		{"25.12.0-rc1", "nano8", "nano8", "nano"}, // only libraries have ABI versions
		{"25.12.0-rc1", "luci-ssll", "luci-ssll", "luci-ssl"},
		{"25.12.0-rc1", "NANO", "NANO", "Did you mean nano?"},
		{"25.12.0-rc1", "hostapd", "", ""},
	} {
		if !whole && strings.HasPrefix(c.version, "25.12") && c.unknown != "luci-ssll" {
			c.unknown = ""
		}
		d := w.device(t, c.version, x86, "", "")
		err := d.CheckPackages(strings.Fields(c.list))
		if c.unknown == "" {
			if err != nil {
				t.Errorf("%s: %s: %v", c.version, c.list, err)
			}
			continue
		}
		r := refused(t, err, build.CodeUnknownPackage, c.unknown, c.nearest, c.version, x86)
		if r.Package != c.unknown {
			t.Errorf("%s: the refusal is about %q, want %q", c.list, r.Package, c.unknown)
		}
	}
}

func TestNames(t *testing.T) {
	w := fetched(t, sample(t))
	for _, version := range []string{"24.10.5", "25.12.0-rc1"} {
		d := w.device(t, version, x86, "", "")
		for name, want := range map[string]string{
			"libubox": "libubox", "libubox20240329": "libubox", "libfoo2-3": "libfoo2", "libfoo2": "libfoo2",
			"nano": "nano", "nano8": "nano8", "hostapd": "hostapd", "no-such-name": "no-such-name", "kmod-e10001": "kmod-e10001", "": "",
		} {
			if got := d.Canonical(name); got != want {
				t.Errorf("%s: Canonical(%q) = %q, want %q", version, name, got, want)
			}
		}
		for _, c := range []struct{ name, version, want string }{
			{"libubox20240329", "2024.03.29-r1", "libubox"}, {"libfoo2-3", "2.1-r1", "libfoo2"}, {"libfoo2", "2.1-r1", "libfoo2"},
			{"nano", "8.3-r1", "nano"}, {"libbar1", "1.0", "libbar1"}, {"kmod-e10001", "6.6.1-r1", "kmod-e10001"},
		} {
			if got := d.ABIFree(c.name, c.version); got != c.want {
				t.Errorf("%s: ABIFree(%q, %q) = %q, want %q", version, c.name, c.version, got, c.want)
			}
		}
	}
	// Without names with ABI versions, the version tells what is one.
	u := sample(t)
	withoutADB(u, "releases/25.12.0-rc1")
	w = fetched(t, u)
	d := w.device(t, "25.12.0-rc1", x86, "", "")
	if got := d.ABIFree("libubox20240329", "2024.03.29-r1"); got != "libubox" {
		t.Errorf("ABIFree with the version = %q, want libubox", got)
	}
	if got := d.ABIFree("libubox20240329", "2024.04.01-r1"); got != "libubox20240329" {
		t.Errorf("ABIFree with another version = %q, want the name as it is", got)
	}
}

func TestOverview(t *testing.T) {
	w := fetched(t, sample(t))
	o, err := w.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Upstream != "https://upstream.test" || o.Distribution != "OpenWrt" {
		t.Errorf("overview is of %s at %s", o.Distribution, o.Upstream)
	}
	if want := []string{"25.12.0-rc1", "24.10.5"}; !slices.Equal(o.Latest, want) {
		t.Errorf("latest is %v, want %v", o.Latest, want)
	}
	if want := []string{"25.12.0-rc1", "24.10.5", "24.10.4", "SNAPSHOT"}; !slices.Equal(o.Versions, want) {
		t.Errorf("versions are %v, want %v", o.Versions, want)
	}
	var names []string
	for _, b := range o.Branches {
		names = append(names, b.Name+" "+b.Path)
		if !b.Enabled || b.Trouble != "" || b.Targets[x86] != "x86_64" || b.Targets[ath79] != "mips_24kc" || b.Snapshot != (b.Name == "SNAPSHOT") {
			t.Errorf("branch %+v", b)
		}
	}
	if want := []string{"SNAPSHOT snapshots", "25.12 releases/{version}", "24.10 releases/{version}"}; !slices.Equal(names, want) {
		t.Errorf("branches are %v, want %v", names, want)
	}
}

func TestBranchSnapshot(t *testing.T) {
	u := sample(t)
	u.Release("24.10-SNAPSHOT", "r29300-0123456789")
	w := fetched(t, u)
	o, _ := w.Overview(t.Context())
	if want := []string{"25.12.0-rc1", "24.10.5", "24.10.4", "SNAPSHOT", "24.10-SNAPSHOT"}; !slices.Equal(o.Versions, want) {
		t.Errorf("versions are %v, want %v", o.Versions, want)
	}
	d := w.device(t, "24.10-snapshot", x86, "", "")
	if d.Facts.Version != "24.10-SNAPSHOT" || !d.Facts.Snapshot || d.Facts.Revision != "r29300-0123456789" {
		t.Errorf("facts are %+v", d.Facts)
	}
}

func TestImageBuilder(t *testing.T) {
	w := fetched(t, sample(t))
	a, err := w.ImageBuilder(t.Context(), "24.10.5", x86)
	if err != nil {
		t.Fatal(err)
	}
	path := "releases/24.10.5/targets/x86/64/openwrt-imagebuilder-24.10.5-x86-64.Linux-x86_64.tar.zst"
	if a.URL != "https://upstream.test/"+path || a.SHA256 != sumOf(w.up.Get(path)) || !strings.HasSuffix(a.URL, "/"+a.Name) {
		t.Errorf("archive is %+v", a)
	}
	_, err = w.ImageBuilder(t.Context(), "9.9", x86)
	failing(t, err, "9.9")
	w.up.Drop("snapshots/targets/x86/64/openwrt-imagebuilder")
	w.up.Sign("snapshots/targets/x86/64")
	_, err = w.ImageBuilder(t.Context(), "SNAPSHOT", x86)
	failing(t, err, "no ImageBuilder")
}

// The last good state is kept whatever the upstream does, across restarts.
func TestUpstreamDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		w.device(t, "24.10.5", x86, "", "")
		w.device(t, "SNAPSHOT", x86, "", "")
		u.SetFault(func(rw http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) })
		time.Sleep(2 * time.Hour)

		check := func(w world) {
			t.Helper()
			if err := w.Ready(); err != nil {
				t.Errorf("not ready from the cache: %v", err)
			}
			for _, version := range []string{"24.10.5", "SNAPSHOT"} {
				before := time.Now()
				d := w.device(t, version, x86, "", "")
				if err := d.CheckPackages([]string{"nano", "kmod-wireguard"}); err != nil {
					t.Error(err)
				}
				if waited := time.Since(before); waited > freshPatience {
					t.Errorf("%s: waited %s for an upstream that is down", version, waited)
				}
				if _, err := w.ImageBuilder(t.Context(), version, x86); err != nil {
					t.Errorf("%s: %v", version, err)
				}
			}
			before := time.Now()
			_, err := w.Device(t.Context(), "24.10.5", ath79, "carambola2", "")
			if waited := time.Since(before); waited > 3*time.Second {
				t.Errorf("waited %s although the upstream answers nobody", waited)
			}
			if r := refused(t, err, build.CodeUnavailable, "at the moment", "https://upstream.test"); r.RetryAfter <= 0 {
				t.Error("the refusal does not say when to try again")
			}
			if strings.Contains(err.Error(), "connection lost") {
				t.Errorf("the refusal shows our innards: %v", err)
			}
			_, err = w.ImageBuilder(t.Context(), "24.10.5", ath79)
			failing(t, err, "at the moment")
		}
		check(w)
		restarted := open(t, u, w.dir)
		check(restarted)
		if err := restarted.Refresh(t.Context()); err == nil {
			t.Error("a round without an upstream succeeds")
		}

		u.SetFault(nil)
		time.Sleep(updateLimit + updateRest)
		restarted.device(t, "24.10.5", ath79, "carambola2", "")
	})
}

func TestStartWithoutUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		u.SetFault(func(rw http.ResponseWriter, _ *http.Request) bool {
			http.Error(rw, "", http.StatusServiceUnavailable)
			return true
		})
		w := open(t, u, t.TempDir())
		refused(t, w.Ready(), build.CodeUnavailable, "https://upstream.test")
		_, err := w.Overview(t.Context())
		refused(t, err, build.CodeUnavailable)
		_, err = w.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnavailable)
		_, err = w.ImageBuilder(t.Context(), "24.10.5", x86)
		failing(t, err)

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.Run(ctx) }()
		time.Sleep(3 * time.Minute)
		tries := u.Asked(".versions.json").Asked
		if tries < 5 || tries > 30 {
			t.Errorf("%d tries in 3 minutes: not a pause that grows", tries)
		}
		u.SetFault(nil)
		time.Sleep(5 * time.Minute)
		if err := w.Ready(); err != nil {
			t.Error(err)
		}
		w.device(t, "24.10.5", x86, "", "")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// lie puts something and expects that nothing comes of it.
func TestLies(t *testing.T) {
	const dir = "releases/24.10.5/targets/x86/64/"
	evil, err := usign.Generate("evil")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		lie     func(u *catalogtest.Upstream)
		refused []string // of a catalogue without a cache; nil: it gets by
		failed  []string
	}{
		{"sums changed", func(u *catalogtest.Upstream) {
			u.Put(dir+"sha256sums", append(u.Get(dir+"sha256sums"), "\n"...))
		}, []string{"cannot be verified"}, []string{"signature"}},
		{"sums with a new line, signed by another", func(u *catalogtest.Upstream) {
			u.SignBy(evil)
			u.Put(dir+"x", []byte("x"))
			u.Sign(dir[:len(dir)-1])
		}, []string{"--upstream-key", evil.Public().Fingerprint.String()}, []string{"--upstream-key", evil.Public().Fingerprint.String()}},
		{"no signature", func(u *catalogtest.Upstream) {
			u.Drop(dir + "sha256sums.sig")
			u.Put(dir+"sha256sums", nil)
		}, []string{"lacks the files"}, []string{"lacks the files"}},
		{"signature is none", func(u *catalogtest.Upstream) {
			u.Put(dir+"sha256sums.sig", []byte("<html>"))
			u.Put(dir+"sha256sums", nil)
		}, []string{"cannot be verified"}, nil},
		{"profiles.json changed", func(u *catalogtest.Upstream) {
			u.Put(dir+"profiles.json", bytes.Replace(u.Get(dir+"profiles.json"), []byte("dropbear"), []byte("backdoor"), 1))
			u.Put(dir+"x", []byte("x"))
			touch(u, dir)
		}, []string{"cannot be verified"}, nil},
		{"profiles.json truncated", func(u *catalogtest.Upstream) {
			b := u.Get(dir + "profiles.json")
			u.Put(dir+"profiles.json", b[:len(b)/2])
			u.Sign(dir[:len(dir)-1])
		}, []string{"at the moment"}, nil},
		{"profiles.json of another version", func(u *catalogtest.Upstream) {
			u.Put(dir+"profiles.json", u.Get("releases/25.12.0-rc1/targets/x86/64/profiles.json"))
			u.Sign(dir[:len(dir)-1])
		}, []string{"at the moment"}, nil},
		{"all of another version, its own signature", func(u *catalogtest.Upstream) {
			for _, name := range []string{"profiles.json", "sha256sums", "sha256sums.sig"} {
				u.Put(dir+name, u.Get("releases/25.12.0-rc1/targets/x86/64/"+name))
			}
		}, []string{"at the moment"}, nil},
		{"no profiles.json", func(u *catalogtest.Upstream) {
			u.Drop(dir + "profiles.json")
			u.Sign(dir[:len(dir)-1])
		}, []string{"lacks the files"}, nil},
		{"package index changed", func(u *catalogtest.Upstream) {
			u.Put("releases/24.10.5/packages/x86_64/packages/Packages.gz", []byte("Package: nanu\nVersion: 1\n\n"))
		}, []string{"cannot be verified"}, nil},
		{"package index truncated", func(u *catalogtest.Upstream) {
			b := u.Get("releases/24.10.5/packages/x86_64/packages/Packages.gz")
			u.Put("releases/24.10.5/packages/x86_64/packages/Packages.gz", b[:len(b)-20])
		}, []string{"at the moment"}, nil},
		{"listed package index changed", func(u *catalogtest.Upstream) {
			u.Put(dir+"packages/Packages.gz", []byte("Package: nanu\nVersion: 1\n\n"))
			u.Put(dir+"packages/Packages.sig", evil.Sign([]byte("Package: nanu\nVersion: 1\n\n")).Marshal())
		}, []string{"cannot be verified"}, nil},
		{"signature without an end", func(u *catalogtest.Upstream) {
			u.Put(dir+"sha256sums.sig", append(u.Get(dir+"sha256sums.sig"), make([]byte, maxSignature)...))
			u.Put(dir+"sha256sums", nil)
		}, []string{"at the moment"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := sample(t)
				w := fetched(t, u)
				w.device(t, "24.10.5", x86, "", "")
				archive, err := w.ImageBuilder(t.Context(), "24.10.5", x86)
				if err != nil {
					t.Fatal(err)
				}
				c.lie(u)

				// One that knew better keeps to that.
				time.Sleep(2 * time.Hour)
				w.device(t, "24.10.5", x86, "", "")
				time.Sleep(3 * time.Minute)
				d := w.device(t, "24.10.5", x86, "", "")
				if !slices.Contains(d.Facts.Defaults, "dropbear") {
					t.Errorf("default packages are %v", d.Facts.Defaults)
				}
				if err := d.CheckPackages([]string{"nano"}); err != nil {
					t.Error(err)
				}
				if a, err := w.ImageBuilder(t.Context(), "24.10.5", x86); a != archive || err != nil {
					t.Errorf("the ImageBuilder became %+v, %v", a, err)
				}

				// One that never saw the truth says what is wrong.
				fresh := fetched(t, u)
				_, err = fresh.Device(t.Context(), "24.10.5", x86, "", "")
				var r *build.Refusal
				if !errors.As(err, &r) {
					t.Fatalf("Device: %v, want a refusal", err)
				}
				refused(t, err, r.Code, c.refused...)
				if c.failed != nil {
					_, err = fresh.ImageBuilder(t.Context(), "24.10.5", x86)
					failing(t, err, c.failed...)
				}
			})
		})
	}
}

// touch signs the sums of a folder as they would be without profiles.json's
// latest change.
func touch(u *catalogtest.Upstream, dir string) {
	changed := u.Get(dir + "profiles.json")
	u.Put(dir+"profiles.json", bytes.Replace(changed, []byte("backdoor"), []byte("dropbear"), 1))
	u.Sign(dir[:len(dir)-1])
	u.Put(dir+"profiles.json", changed)
}

// Nobody waits forever for a slow upstream, and what was begun is finished.
func TestSlowUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		u.SetFault(func(rw http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "profiles.json") {
				time.Sleep(20 * time.Second)
			}
			return false
		})
		before := time.Now()
		_, err := w.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnavailable, "is being fetched")
		if waited := time.Since(before); waited != patience {
			t.Errorf("waited %s, want %s", waited, patience)
		}
		var g sync.WaitGroup
		for range 20 { // they join
			g.Go(func() { w.Device(t.Context(), "24.10.5", x86, "", "") })
		}
		g.Wait()
		time.Sleep(5 * time.Second)
		before = time.Now()
		w.device(t, "24.10.5", x86, "", "")
		if waited := time.Since(before); waited != 0 {
			t.Errorf("waited %s for what was fetched behind", waited)
		}
		if n := u.Asked("releases/24.10.5/targets/x86/64/profiles.json").Asked; n != 1 {
			t.Errorf("profiles.json was fetched %d times, want once", n)
		}
	})
}

// A caller that leaves does not take the fetch with it.
func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		u.SetFault(func(rw http.ResponseWriter, r *http.Request) bool {
			time.Sleep(time.Second)
			return false
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := w.Device(ctx, "24.10.5", x86, "", ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Device after its context: %v", err)
		}
		time.Sleep(time.Minute)
		before := time.Now()
		if w.device(t, "24.10.5", x86, "", ""); time.Since(before) > 10*time.Second {
			t.Errorf("waited %s", time.Since(before))
		}
	})
}

func TestConditionalRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		w.device(t, "24.10.5", x86, "", "")
		asked := u.AskedAll()
		for range 100 {
			w.device(t, "24.10.5", x86, "", "")
			w.Overview(t.Context())
		}
		if u.AskedAll() != asked {
			t.Error("what is known is asked of the upstream again")
		}

		time.Sleep(2 * time.Hour)
		w.device(t, "24.10.5", x86, "", "") // starts the update
		time.Sleep(time.Minute)
		again := u.AskedAll()
		if n := again.Unchanged - asked.Unchanged; n != again.Asked-asked.Asked || n == 0 {
			t.Errorf("of %d requests after two hours, %d were answered «unchanged»: want all", again.Asked-asked.Asked, n)
		}
		// The sums vouch for the rest of the target, so nobody asks for it.
		if n := u.Asked("releases/24.10.5/targets/x86/64/packages/Packages.gz").Asked; n != 1 {
			t.Errorf("the target's index was asked for %d times, want once", n)
		}

		if err := w.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c := u.Asked(".versions.json"); c.Asked != 2 || c.Unchanged != 1 {
			t.Errorf(".versions.json: %+v", c)
		}
	})
}

// 200 requests at once for what nobody asked before make one fetch.
func TestTogether(t *testing.T) {
	u := sample(t)
	w := fetched(t, u)
	const sums = "releases/24.10.5/targets/ath79/generic/sha256sums"
	probed := u.Asked(sums).Asked
	var g sync.WaitGroup
	for range 200 {
		g.Go(func() {
			if _, err := w.Device(t.Context(), "24.10.5", ath79, "carambola2", ""); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if n := u.Asked(sums).Asked - probed; n != 1 {
		t.Errorf("the sums were fetched %d times, want once", n)
	}
	for _, name := range []string{"targets/ath79/generic/profiles.json", "packages/mips_24kc/base/Packages.gz"} {
		if n := u.Asked("releases/24.10.5/" + name).Asked; n != 1 {
			t.Errorf("%s was fetched %d times, want once", name, n)
		}
	}
}

func TestSnapshotMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		const moved = "r29999-fedcba9876"
		before, err := w.ImageBuilder(t.Context(), "SNAPSHOT", x86)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		u.Release("SNAPSHOT", moved)
		if r := w.device(t, "SNAPSHOT", x86, "", "").Facts.Revision; r == moved {
			t.Error("the upstream is asked for each request")
		}
		if r, err := w.Revision(t.Context(), "snapshot", x86); r != moved || err != nil {
			t.Errorf("revision is %q, %v; want %q", r, err, moved)
		}
		if r := w.device(t, "SNAPSHOT", x86, "", "").Facts.Revision; r != moved {
			t.Errorf("after a look at the revision the device is of %q, want %q", r, moved)
		}
		if a, err := w.ImageBuilder(t.Context(), "SNAPSHOT", x86); err != nil || a.SHA256 == before.SHA256 {
			t.Errorf("the ImageBuilder is still %+v, %v", a, err)
		}

		u.Release("SNAPSHOT", "r30000-0000000000")
		time.Sleep(6 * time.Minute)
		if r := w.device(t, "SNAPSHOT", x86, "", "").Facts.Revision; r != "r30000-0000000000" {
			t.Errorf("six minutes later the device is still of %q", r)
		}
	})
}

// Between two files of an upstream that is just being rewritten, the old
// state is served and the new one found soon.
func TestRewriteUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		w.device(t, "SNAPSHOT", x86, "", "")
		profiles := u.Get("snapshots/targets/x86/64/profiles.json")
		u.Release("SNAPSHOT", "r30000-0000000000")
		newer := u.Get("snapshots/targets/x86/64/profiles.json")
		u.Put("snapshots/targets/x86/64/profiles.json", profiles)
		time.Sleep(6 * time.Minute)
		if r := w.device(t, "SNAPSHOT", x86, "", "").Facts.Revision; r != "r29233-443ec4032a" {
			t.Errorf("half way the device is of %q", r)
		}
		u.Put("snapshots/targets/x86/64/profiles.json", newer)
		time.Sleep(30 * time.Second)
		if r := w.device(t, "SNAPSHOT", x86, "", "").Facts.Revision; r != "r30000-0000000000" {
			t.Errorf("afterwards the device is of %q", r)
		}
	})
}

func TestUnknownKey(t *testing.T) {
	u := sample(t)
	other, err := usign.Generate("25.12")
	if err != nil {
		t.Fatal(err)
	}
	u.SignBy(other)
	u.Release("25.12.0-rc1", "r1-0123456789")
	w := fetched(t, u)
	if err := w.Ready(); err != nil {
		t.Errorf("one unknown key makes all of it unusable: %v", err)
	}
	o, _ := w.Overview(t.Context())
	if want := []string{"24.10.5"}; !slices.Equal(o.Latest, want) {
		t.Errorf("latest is %v, want %v", o.Latest, want)
	}
	if slices.Contains(o.Versions, "25.12.0-rc1") || o.Branches[1].Name != "25.12" || o.Branches[1].Enabled {
		t.Errorf("offered all the same: %v, %+v", o.Versions, o.Branches[1])
	}
	fingerprint := other.Public().Fingerprint.String()
	if !strings.Contains(o.Branches[1].Trouble, fingerprint) || !strings.Contains(w.log.String(), fingerprint) {
		t.Errorf("the operator is not told: %q, %s", o.Branches[1].Trouble, w.log)
	}
	_, err = w.Device(t.Context(), "25.12.0-rc1", x86, "", "")
	refused(t, err, build.CodeUnsupported, fingerprint, "--upstream-key")
	_, err = w.ImageBuilder(t.Context(), "25.12.0-rc1", x86)
	failing(t, err, fingerprint, "--upstream-key")

	// The key is given at the next start.
	c, err := New(Options{Upstream: "https://upstream.test", Keys: append(u.Keys(), other.Public()), Dir: w.dir, Client: u.Client()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Device(t.Context(), "25.12.0-rc1", x86, "", ""); err != nil {
		t.Errorf("with the key: %v", err)
	}
}

func TestNoKnownKey(t *testing.T) {
	u := sample(t)
	w := open(t, u, t.TempDir())
	w.keys = nil
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused(t, w.Ready(), build.CodeUnavailable, "--upstream-key", u.Keys()[0].Fingerprint.String())
}

// A key that the operator takes away is no longer good for what it signed.
func TestKeyTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		w.device(t, "24.10.5", x86, "", "")
		again := open(t, u, w.dir)
		again.keys = nil
		_, err := again.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnavailable, "--upstream-key")
	})
}

// What lies in the cache may be damaged, or of another upstream.
func TestCacheOfNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		w.device(t, "24.10.5", x86, "", "")
		for _, key := range []string{"24.10.5/x86/64/.target", "24.10.5/.targets", "24.10.5/.feeds/x86_64/.names", ".versions", "24.10.5/x86/64/.packages", "24.10.5/.feeds/x86_64/packages"} {
			m, text, err := w.disk.read(key)
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			if err := w.disk.write(key, m, []byte("{"+text[1:len(text)/2])); err != nil {
				t.Fatal(err)
			}
			again := open(t, u, w.dir)
			if err := again.Refresh(t.Context()); err != nil && key != ".versions" {
				t.Fatal(err)
			} else if err != nil {
				if err := again.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			d := again.device(t, "24.10.5", x86, "", "")
			_ = d.CheckPackages([]string{"nano"}) // must not panic
			if err := w.disk.write(key, m, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		c, err := New(Options{Upstream: "https://other.test", Dir: w.dir, Client: u.Client()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		refused(t, c.Ready(), build.CodeUnavailable, "https://other.test")
	})
}

// A restart finds everything again without a request.
func TestRestartIsQuiet(t *testing.T) {
	u := sample(t)
	w := fetched(t, u)
	want := w.device(t, "24.10.5", ath79, "carambola2", "")
	asked := u.AskedAll()
	again := open(t, u, w.dir)
	o, err := again.Overview(t.Context())
	if err != nil || len(o.Versions) != 4 {
		t.Errorf("overview after a restart: %v, %v", o.Versions, err)
	}
	u.SetFault(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
	got := again.device(t, "24.10.5", ath79, "carambola2", "")
	if got.Facts.Revision != want.Facts.Revision || !slices.Equal(got.Facts.Defaults, want.Facts.Defaults) || got.CheckPackages([]string{"nano", "kmod-ath9k"}) != nil {
		t.Errorf("after a restart: %+v", got.Facts)
	}
	if full := u.AskedAll().Asked - asked.Asked; full > 4 {
		t.Errorf("%d requests", full)
	}
}

// What cannot be helped by trying again is not tried for every request.
func TestHopeless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		const dir = "releases/24.10.5/targets/x86/64/"
		evil, err := usign.Generate("evil")
		if err != nil {
			t.Fatal(err)
		}
		u.Put(dir+"sha256sums.sig", evil.Sign(u.Get(dir+"sha256sums")).Marshal())
		for range 600 { // over a minute
			_, err := w.Device(t.Context(), "24.10.5", x86, "", "")
			refused(t, err, build.CodeUnavailable, "--upstream-key")
			time.Sleep(100 * time.Millisecond)
		}
		if n := u.Asked(dir + "sha256sums").Asked; n < 2 || n > 3 {
			t.Errorf("asked %d times, want twice or three times", n)
		}
	})
}

// Modules of a kernel that was replaced are not taken for those of the new.
func TestKernelMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := sample(t)
		w := fetched(t, u)
		if err := w.device(t, "SNAPSHOT", x86, "", "").CheckPackages([]string{"kmod-wireguard"}); err != nil {
			t.Fatal(err)
		}
		const dir = "snapshots/targets/x86/64"
		u.Put(dir+"/profiles.json", bytes.Replace(u.Get(dir+"/profiles.json"), []byte("6.6.1"), []byte("6.6.2"), 1))
		u.Sign(dir)
		time.Sleep(6 * time.Minute)
		s, err := w.device(t, "SNAPSHOT", x86, "", "").Resolve(&build.Plan{Add: []string{"kmod-wireguard"}})
		if err != nil || s.Sure || len(s.Packages) == 0 || slices.ContainsFunc(s.Packages, func(p *feed.Package) bool { return p.Name == "kmod-wireguard" }) {
			t.Errorf("before the modules of the new kernel are there: %v, sure %v, %v", s.Packages, s.Sure, err)
		}
	})
}

func TestNoIndexNoJudgement(t *testing.T) {
	u := sample(t)
	u.Drop("releases/24.10.5/targets/x86/64/packages")
	u.Drop("releases/24.10.5/targets/x86/64/kmods")
	u.Sign("releases/24.10.5/targets/x86/64")
	w := fetched(t, u)
	if err := w.device(t, "24.10.5", x86, "", "").CheckPackages([]string{"whatever"}); err != nil {
		t.Errorf("refused without an index: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, upstream := range []string{"", "downloads.openwrt.org", "ftp://downloads.openwrt.org", "https://user:secret@downloads.openwrt.org", "https://x/?y"} {
		_, err := New(Options{Upstream: upstream, Dir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "cannot be an upstream") {
			t.Errorf("upstream %q: %v", upstream, err)
		}
	}
}

func TestReleaseKeys(t *testing.T) {
	keys, err := ReleaseKeys()
	if err != nil {
		t.Fatal(err)
	}
	// The file names under which OpenWrt publishes them.
	want := []string{"792d9d9b39f180dc", "1035ac73cc4e59e3", "f94b9dd6febac963", "2f8b0b98e08306bf", "4d017e6f1ed5d616", "d310c6f2833e97f7", "b5043e70f9a75cde"}
	for i, k := range keys {
		if k.Fingerprint.String() != want[i] || !strings.HasPrefix(k.Comment, "OpenWrt, ") {
			t.Errorf("key %d is %s, %q; want %s", i, k.Fingerprint, k.Comment, want[i])
		}
	}
	if len(keys) != len(want) {
		t.Errorf("%d keys, want %d", len(keys), len(want))
	}
}

// The upstream that the rest of the project builds against, over HTTP.
func TestInstantUpstream(t *testing.T) {
	u, err := instant.Write(t.TempDir(), instant.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(u.Dir)))
	defer server.Close()
	c, err := New(Options{Upstream: server.URL, Keys: []usign.PublicKey{u.Key.Public()}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"23.05.5", "24.10.0", "25.12.0", "snapshot"} {
		for _, target := range []string{x86, ath79} {
			d, err := c.Device(t.Context(), version, target, "tplink,archer-c7-v5", "")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.CheckPackages([]string{"libubox", "libubox20240329", "luci", "kmod-wireguard", "htop"}); err != nil {
				t.Error(err)
			}
			refused(t, d.CheckPackages([]string{"htopp"}), build.CodeUnknownPackage, "htop")
			a, err := c.ImageBuilder(t.Context(), version, target)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.Get(a.URL)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || sumOf(body) != a.SHA256 {
				t.Errorf("%s is not what its sum says: %v", a.URL, err)
			}
		}
	}
}
