package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// newShop is a rig with a real catalogue, of a release that knows what its
// packages need.
func newShop(t *testing.T) (*rig, http.Handler, *catalogtest.Upstream) {
	t.Helper()
	up, err := catalogtest.New()
	if err != nil {
		t.Fatal(err)
	}
	up.Versions("24.10.5", "", "")
	up.Target("24.10.5", catalogtest.Target{
		Name: "x86/64", Arch: "x86_64", Revision: "r1-0123456789", Defaults: []string{"busybox", "dnsmasq"},
		Profiles: map[string]catalogtest.Profile{"generic": {}}, Packages: []catalogtest.Package{{Name: "busybox", Version: "1"}},
	})
	up.Feed("24.10.5", "x86_64", "base", false,
		catalogtest.Package{Name: "dnsmasq", Version: "2.90-r1"}, catalogtest.Package{Name: "dnsmasq-full", Version: "2.90-r1", Provides: "dnsmasq"},
		catalogtest.Package{Name: "luci-app-x", Version: "1", Depends: "libc, luci-base"}, catalogtest.Package{Name: "luci-base", Version: "1", Depends: "libfoo"},
		catalogtest.Package{Name: "libfoo2", Version: "1"}, catalogtest.Package{Name: "nano", Version: "8.3-r1", Size: 200 << 20},
	)
	c, err := catalog.New(catalog.Options{Upstream: "https://upstream.test", Keys: up.Keys(), Dir: t.TempDir(), Client: up.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.config.Catalog = c
	return r, r.handler(), up
}

// order posts a request for x86/64 with more fields.
func order(h http.Handler, more string) (*httptest.ResponseRecorder, client.Status) {
	w := call(h, "POST", "/api/v1/build", `{"version":"24.10.5","target":"x86/64","profile":"generic",`+more+`}`)
	var status client.Status
	if json.Unmarshal(w.Body.Bytes(), &status) != nil {
		status.Detail = "no JSON: " + w.Body.String()
	}
	return w, status
}

// TestRefusedAtOnce: what cannot be built is answered by the sentence with which
// its build would end, and is never queued.
func TestRefusedAtOnce(t *testing.T) {
	rig, h, _ := newShop(t)
	for _, c := range []struct {
		more, says, unknown string
		status              int
	}{
		{`"packages":["luci-app-x"]`, "luci-app-x needs luci-base, luci-base needs libfoo, which OpenWrt 24.10.5 does not have. Did you mean libfoo2? Leave luci-app-x out.", "libfoo", 422},
		{`"packages":["nanoo"]`, `OpenWrt 24.10.5 has no package "nanoo" for x86/64. Did you mean nano?`, "nanoo", 422},
		{`"packages":["dnsmasq-full"]`, "dnsmasq-full conflicts with dnsmasq, which is a default package: send -dnsmasq, too.", "", 500},
		{`"packages_versions":{"nano":"8.2-r1"}`, "The packages are not the asked versions: nano is 8.3-r1 instead of 8.2-r1. Look for updates again and send the request anew.", "", 500},
	} {
		w, status := order(h, c.more)
		if w.Code != c.status || status.Detail != c.says || w.Header().Get("X-Unknown-Package") != c.unknown {
			t.Errorf("%s: %d, about %q: %s", c.more, w.Code, w.Header().Get("X-Unknown-Package"), status.Detail)
		}
	}
	if all := rig.records.All(); len(all) > 0 {
		t.Errorf("%d builds are queued", len(all))
	}
	for _, more := range []string{
		`"packages":["dnsmasq-full","-dnsmasq"]`, `"packages_versions":{"nano":"8.4-r1","kernel":"1"}`,
		`"packages":["luci-app-x"],"repositories":{"mine":"https://feeds.example.org/packages/mine"},"repositories_mode":"append"`,
	} {
		if w, status := order(h, more); w.Code != http.StatusAccepted {
			t.Errorf("%s: %d %s", more, w.Code, status.Detail)
		}
	}
}

// TestEarlierVersions: an image with the pinned versions is answered as long as
// it is kept, though nobody could build it now.
func TestEarlierVersions(t *testing.T) {
	rig, h, up := newShop(t)
	const more = `"packages_versions":{"nano":"8.3-r1"}`
	if w, status := order(h, more); w.Code != http.StatusAccepted {
		t.Fatalf("%d %s", w.Code, status.Detail)
	}
	rig.finish("squashfs-combined")
	const private = more + `,"defaults":"true"`
	if w, status := order(h, private); w.Code != http.StatusAccepted {
		t.Fatalf("%d %s", w.Code, status.Detail)
	}
	up.Feed("24.10.5", "x86_64", "base", false, catalogtest.Package{Name: "nano", Version: "8.4-r1"}, catalogtest.Package{Name: "dnsmasq", Version: "2.90-r1"})
	c, err := catalog.New(catalog.Options{Upstream: "https://upstream.test", Keys: up.Keys(), Dir: t.TempDir(), Client: up.Client()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	rig.config.Catalog = c
	h = rig.handler()
	if w, status := order(h, more); w.Code != http.StatusOK {
		t.Errorf("the image that is there is answered as %d %s", w.Code, status.Detail)
	}
	if w, status := order(h, more+`,"rootfs_size_mb":200`); w.Code != http.StatusInternalServerError || !strings.Contains(status.Detail, "nano is 8.4-r1 instead of 8.3-r1") {
		t.Errorf("another image: %d %s", w.Code, status.Detail)
	}
	if w, status := order(h, private); w.Code != http.StatusInternalServerError {
		t.Errorf("a private one: %d %s", w.Code, status.Detail)
	}
}

// TestToldTooBig: the estimate is told and refuses nothing.
func TestToldTooBig(t *testing.T) {
	_, h, _ := newShop(t)
	for more, says := range map[string]string{
		`"packages":["nano"]`:                                             "need about 201 MB, more than the 104 MB of the root file system",
		`"packages":["nano"],"rootfs_size_mb":300`:                        "",
		`"packages":["nano"],"filesystem":"squashfs"`:                     "",
		`"packages":["nano"],"filesystem":"squashfs","rootfs_size_mb":20`: "need about 61 MB, more than the 20 MB",
	} {
		w, status := order(h, more)
		told := ""
		for _, c := range status.Changes {
			told += c.Reason
		}
		if w.Code != http.StatusAccepted || says == "" && told != "" || !strings.Contains(told, says) {
			t.Errorf("%s: %d, told %q", more, w.Code, told)
		}
	}
}
