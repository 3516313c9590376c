package catalog_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func TestSmoke(t *testing.T) {
	u, err := instant.Write(t.TempDir(), instant.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.FileServer(http.Dir(u.Dir)))
	defer s.Close()
	c, err := catalog.New(catalog.Options{Upstream: s.URL, Keys: []usign.PublicKey{u.Key.Public()}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(c.Ready())
	t.Log(c.Refresh(t.Context()))
	o, err := c.Overview(t.Context())
	t.Logf("%+v %v", o, err)
	for _, v := range []string{"23.05.5", "24.10.0", "25.12.0", "snapshot"} {
		for _, tg := range []string{"x86/64", "ath79/generic"} {
			d, err := c.Device(t.Context(), v, tg, "tplink,archer-c7-v5", "")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v %s", d.Facts, d.Arch)
			t.Log(d.CheckPackages([]string{"libubox", "kmod-wireguard", "libubox20240329", "editor", "nanox"}), d.Canonical("libubox20240329"), d.Canonical("libfoo2-3"), d.ABIFree("libfoo2-3", "2.1-r1"))
			a, err := c.ImageBuilder(t.Context(), v, tg)
			t.Log(a, err)
		}
	}
	_, err = c.Device(t.Context(), "24.10.0", "ath79/generic", "archer", "")
	t.Log(err)
	_, err = c.Device(t.Context(), "24.10.0", "ath79/generic", "", "")
	t.Log(err)
}
