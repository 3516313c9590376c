package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// tomorrow is a catalogue with the release 25.12.1 and three targets of it.
type tomorrow struct{ *olderCatalog }

// olderCatalog counts how often it was asked for a device.
type olderCatalog struct {
	*fakeCatalog
	asked int
	away  error // of a device, if the upstream is
}

func (c *olderCatalog) Device(ctx context.Context, version, target, profile, model string) (*catalog.Device, error) {
	c.asked++
	if c.away != nil {
		return nil, c.away
	}
	return c.fakeCatalog.Device(ctx, version, target, profile, model)
}

const (
	filogicDefaults = "apk-mbedtls base-files dnsmasq dropbear firewall4 fitblk kmod-nft-offload libc kernel odhcpd-ipv6only ppp procd-ujail wpad-basic-mbedtls"
	filogicPackages = "luci owut luci-app-package-manager luci-i18n-package-manager-de luci-i18n-base-de apk-openssl dnsmasq-full nano kmod-nft-nat"
)

func (c tomorrow) Device(ctx context.Context, version, target, profile, model string) (*catalog.Device, error) {
	facts := build.Facts{
		Distribution: "OpenWrt", Version: version, Revision: "r32500-0123456789", Target: target, Profile: strings.ReplaceAll(profile, ",", "_"),
		Defaults: strings.Fields(filogicDefaults),
	}
	switch {
	case version == "SNAPSHOT" && target == "qualcommax/ipq807x":
		facts.Snapshot = true
		return catalog.NewDevice(facts, knownPackages...), nil
	case version == "26.11.0" && target == "x86/64": // newer than the table of changes
		facts.Defaults = strings.Fields("base-files libc kernel busybox dnsmasq dropbear kmod-brand-new")
		return catalog.NewDevice(facts, append(facts.Defaults, knownPackages...)...), nil
	case version != "25.12.1":
		return c.olderCatalog.Device(ctx, version, target, profile, model)
	case target == "qualcommax/ipq807x" && facts.Profile != "xiaomi_ax3600":
		return nil, refuse(build.CodeUnknownDevice, "25.12.1 qualcommax/ipq807x has no profile %q.", profile)
	case !slices.Contains([]string{"mediatek/filogic", "qualcommax/ipq807x", "ipq806x/generic"}, target):
		return nil, refuse(build.CodeUnsupported, "25.12.1 has no target %q.", target)
	}
	return catalog.NewDevice(facts, strings.Fields(filogicDefaults+" "+filogicPackages)...), nil
}

// Revision is that of one target only, and not of one that moved away.
func (c tomorrow) Revision(ctx context.Context, version, target string) (string, error) {
	device, err := c.Device(ctx, version, target, "xiaomi_ax3600", "")
	if err != nil {
		return "", err
	}
	return device.Facts.Revision, nil
}

func newTomorrow(t *testing.T) (*rig, http.Handler) {
	r, h, _ := newTomorrowAnd(t)
	return r, h
}

func newTomorrowAnd(t *testing.T) (*rig, http.Handler, *olderCatalog) {
	r := newRig(t)
	older := &olderCatalog{fakeCatalog: r.catalog}
	r.config.Catalog = tomorrow{older}
	return r, r.handler(), older
}

// changed reads the changes of an answer, as "auc>owut".
func changed(t *testing.T, w *httptest.ResponseRecorder) (words []string) {
	t.Helper()
	var answer struct {
		Changes []map[string]string `json:"changes"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	for _, c := range answer.Changes {
		if c["reason"] == "" {
			t.Errorf("%v has no reason", c)
		}
		words = append(words, c["from"]+">"+c["to"])
	}
	return words
}

// upgrade is what LuCI sends on a router with 23.05 and its packages.
func upgrade(more ...string) string {
	packages := append([]string{
		"base-files", "dnsmasq-full", "dropbear", "firewall4", "kmod-nft-offload", "libc", "kernel", "opkg", "auc", "luci",
		"luci-app-opkg", "luci-i18n-opkg-de", "luci-i18n-base-en", "kmod-nft-nat6", "odhcpd-ipv6only", "wpad-basic-mbedtls",
	}, more...)
	list, _ := json.Marshal(packages)
	return `{"version":"25.12.1","target":"mediatek/filogic","profile":"glinet,gl-mt6000","diff_packages":true,"packages":` + string(list) + `}`
}

func TestUpgradeOverReleases(t *testing.T) {
	rig, h := newTomorrow(t)
	w := call(h, "POST", "/api/v1/build", upgrade())
	if w.Code != http.StatusAccepted {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	told := []string{
		">fitblk", ">procd-ujail", "auc>owut", "kmod-nft-nat6>", "luci-app-opkg>luci-app-package-manager",
		"luci-i18n-base-en>", "luci-i18n-opkg-de>luci-i18n-package-manager-de", "opkg>apk-mbedtls",
	}
	if got := changed(t, w); !slices.Equal(got, told) {
		t.Errorf("changes are %q, want %q", got, told)
	}
	rec := rig.only()
	if want := strings.Fields("dnsmasq-full luci luci-app-package-manager luci-i18n-package-manager-de owut"); !slices.Equal(rec.Plan.Add, want) {
		t.Errorf("added are %q, want %q", rec.Plan.Add, want)
	}
	// What the user took out before is out; what 23.05 could not have is not.
	if want := []string{"dnsmasq", "ppp"}; !slices.Equal(rec.Plan.Remove, want) {
		t.Errorf("removed are %q, want %q", rec.Plan.Remove, want)
	}
	if !slices.Contains(rec.Request.Packages, "auc") || len(rec.Plan.Rules) != 64 {
		t.Errorf("the echo is %q, the rules are %q", rec.Request.Packages, rec.Plan.Rules)
	}
	rig.finish("squashfs-sysupgrade")
	if got := changed(t, call(h, "GET", "/api/v1/build/"+string(rec.ID), "")); !slices.Equal(got, told) {
		t.Errorf("the answer about the done build has the changes %q", got)
	}
}

// TestUpgradesShareABuild: who has the new defaults already asks for the same
// image as who cannot, and the order does not count.
func TestUpgradesShareABuild(t *testing.T) {
	rig, h := newTomorrow(t)
	first := call(h, "POST", "/api/v1/build", upgrade())
	second := call(h, "POST", "/api/v1/build", upgrade("fitblk", "procd-ujail"))
	if first.Code != http.StatusAccepted || second.Code != http.StatusAccepted {
		t.Fatalf("%d, %d", first.Code, second.Code)
	}
	rig.only()
	call(h, "POST", "/api/v1/build", upgrade("-procd-ujail")) // an explicit wish is another image
	if n := len(rig.records.All()); n != 2 {
		t.Errorf("%d builds, want 2", n)
	}
	for _, rec := range rig.records.All() {
		if removed := slices.Contains(rec.Plan.Remove, "procd-ujail"); removed != slices.Contains(rec.Request.Packages, "-procd-ujail") {
			t.Errorf("%q removes %q", rec.Request.Packages, rec.Plan.Remove)
		}
	}
}

// TestReleaseNewerThanTheTable: what a release installs by default that nobody
// wrote into the table yet is found out from the release before.
func TestReleaseNewerThanTheTable(t *testing.T) {
	const list = `"packages":["base-files","libc","kernel","luci"]}`
	rig, h, older := newTomorrowAnd(t)
	w := call(h, "POST", "/api/v1/build", `{"version":"26.11.0","target":"x86/64","profile":"generic","diff_packages":true,`+list)
	if got := changed(t, w); w.Code != http.StatusAccepted || !slices.Equal(got, []string{">kmod-brand-new"}) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if plan := rig.only().Plan; !slices.Equal(plan.Remove, []string{"busybox", "dnsmasq", "dropbear"}) {
		t.Errorf("removed are %q", plan.Remove)
	}
	asked := older.asked
	call(h, "POST", "/api/v1/build", `{"version":"26.11.0","target":"x86/64","profile":"generic",`+list)
	if older.asked != asked {
		t.Error("the release before was looked up for a list that takes nothing away")
	}
}

// TestNoReleaseBefore: without older releases to look at, the table is all
// there is, and no request fails for it.
func TestNoReleaseBefore(t *testing.T) {
	rig, h := newTomorrow(t)
	rig.catalog.offer.Branches = rig.catalog.offer.Branches[1:]
	w := call(h, "POST", "/api/v1/build", `{"version":"26.11.0","target":"x86/64","profile":"generic","diff_packages":true,"packages":["base-files","luci"]}`)
	if got := changed(t, w); w.Code != http.StatusAccepted || len(got) > 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestReleaseBeforeOutOfReach: an image without what nobody could name would
// not start, so what is new has to be known. Once it is, the same request means
// the same image.
func TestReleaseBeforeOutOfReach(t *testing.T) {
	const list = `{"version":"26.11.0","target":"x86/64","profile":"generic","diff_packages":true,"packages":["base-files","libc","kernel","luci"]}`
	for name, away := range map[string]error{"down": refuse(build.CodeUnavailable, "24.10.5 is being fetched."), "slow": context.DeadlineExceeded} {
		rig, h, older := newTomorrowAnd(t)
		older.away = away
		if w := call(h, "POST", "/api/v1/build", list); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || rig.records.Writes() > 0 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	// A device that no older release had comes from a version like this one.
	rig, h, older := newTomorrowAnd(t)
	older.away = refuse(build.CodeUnknownDevice, "24.10.5 x86/64 has no such profile.")
	if w := call(h, "POST", "/api/v1/build", list); w.Code != http.StatusAccepted || !slices.Contains(rig.only().Plan.Remove, "kmod-brand-new") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPinnedVersionOfARenamedPackage(t *testing.T) {
	rig, h := newTomorrow(t)
	w := call(h, "POST", "/api/v1/build", `{"version":"25.12.1","target":"mediatek/filogic","profile":"a","diff_packages":true,"packages_versions":{"auc":"0.3","luci":"1"}}`)
	if w.Code != http.StatusAccepted {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if plan := rig.only().Plan; !slices.Equal(plan.Add, []string{"luci", "owut"}) || len(plan.Pins) != 1 || plan.Pins[0].Name != "luci" {
		t.Errorf("added %q, pinned %v", plan.Add, plan.Pins)
	}
}

func TestMovedDevice(t *testing.T) {
	rig, h := newTomorrow(t)
	w := call(h, "POST", "/api/v1/build", `{"version":"25.12.1","target":"ipq807x/generic","profile":"xiaomi,ax3600"}`)
	if got := changed(t, w); w.Code != http.StatusAccepted || !slices.Equal(got, []string{"ipq807x/generic xiaomi_ax3600>qualcommax/ipq807x xiaomi_ax3600"}) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	rec := rig.only()
	if rec.Plan.Target != "qualcommax/ipq807x" || rec.Plan.Profile != "xiaomi_ax3600" || rec.Request.Target != "ipq807x/generic" {
		t.Errorf("the plan is for %s %s, the echo for %s", rec.Plan.Target, rec.Plan.Profile, rec.Request.Target)
	}
}

// TestMovedDeviceOfASnapshot: the revision that is compared is that of where the
// device is now.
func TestMovedDeviceOfASnapshot(t *testing.T) {
	rig, h := newTomorrow(t)
	for code, want := range map[string]int{"r32500-0123456789": http.StatusAccepted, "r1-0": http.StatusBadRequest} {
		w := call(h, "POST", "/api/v1/build", `{"version":"SNAPSHOT","version_code":"`+code+`","target":"ipq807x/generic","profile":"xiaomi_ax3600"}`)
		if w.Code != want {
			t.Errorf("%s: %d %s", code, w.Code, w.Body)
		}
	}
	if plan := rig.only().Plan; plan.Target != "qualcommax/ipq807x" || !plan.Snapshot {
		t.Errorf("built is %s", plan.Target)
	}
}

func TestDeviceRefusals(t *testing.T) {
	_, h := newTomorrow(t)
	for name, tt := range map[string]struct{ body, want string }{
		"dropped":             {`{"version":"25.12.1","target":"ar71xx/generic","profile":"archer-c7-v2"}`, "Read https://openwrt.org/docs/guide-user/installation/ar71xx.to.ath79 first."},
		"moved, but unknown":  {`{"version":"25.12.1","target":"ipq807x/generic","profile":"unheard_of"}`, "no target \"ipq807x/generic\""},
		"never heard of":      {`{"version":"25.12.1","target":"vax/generic","profile":"a"}`, "no target \"vax/generic\""},
		"dropped later":       {`{"version":"24.10.5","target":"mvebu/cortexa9","profile":"linksys_wrt1900ac-v1"}`, "has no target"},
		"a version not there": {`{"version":"1.2.3","target":"x86/64","profile":"generic"}`, "no version 1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			w := call(h, "POST", "/api/v1/build", tt.body)
			if w.Code != http.StatusBadRequest || !strings.Contains(sentence(w), tt.want) {
				t.Errorf("%d %s, want 400 with %q", w.Code, w.Body, tt.want)
			}
		})
	}
}

// TestCompatNote: that settings cannot be kept is told before anybody flashes.
func TestCompatNote(t *testing.T) {
	_, h := newTomorrow(t)
	w := call(h, "POST", "/api/v1/build", `{"version":"25.12.1","target":"ipq806x/generic","profile":"netgear_r7800"}`)
	if got := changed(t, w); w.Code != http.StatusAccepted || !slices.Equal(got, []string{">"}) || !strings.Contains(w.Body.String(), "settings cannot be kept") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestNothingChanged: most requests have no changes, and no word about them.
func TestNothingChanged(t *testing.T) {
	rig, h := newTomorrow(t)
	w := call(h, "POST", "/api/v1/build", stock)
	if w.Code != http.StatusAccepted || strings.Contains(w.Body.String(), "changes") || rig.only().Plan.Rules != "" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
