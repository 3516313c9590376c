package main

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// agrees holds what was built against the lists that clients read before: owut
// and auc refuse an image whose manifest has other versions.
func (d demo) agrees(t *testing.T, r client.Request, result client.Result) {
	t.Helper()
	base := d.url + "/json/v1/releases/" + r.Version
	profile := listed[catalog.Profile](t, base+"/targets/"+r.Target+"/generic.json")
	own := listed[struct{ Packages map[string]string }](t, base+"/targets/"+r.Target+"/index.json").Packages
	feeds := listed[map[string]string](t, base+"/packages/"+profile.ArchPackages+"-index.json")
	if profile.VersionCode != result.VersionCode || len(own) == 0 || len(feeds) == 0 {
		t.Errorf("the profile is of %s, the image of %s; there are %d and %d packages", profile.VersionCode, result.VersionCode, len(own), len(feeds))
	}
	for name, version := range result.Manifest {
		if name == "libc" || name == "kernel" { // not listed everywhere, and not asked for
			continue
		}
		if own[name] != version && feeds[name] != version {
			t.Errorf("the image has %s %s, the lists have %q and %q", name, version, own[name], feeds[name])
		}
	}
}

func listed[T any](t *testing.T, address string) (v T) {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", address, resp.Status, err)
	}
	return v
}
