package api

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/api/apitest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// agents are the User-Agents by which clients are known.
var agents = map[string]string{"auc": "auc/0.3.2-1", "auc-2021": "auc (0.2.4-1)", "owut": "owut/2026.04.01", "luci-2021": "Mozilla/5.0"}

// heard is the answer to a request as the client gets it.
func heard(t *testing.T, h http.Handler, client, method, path, body string) apitest.Answer {
	t.Helper()
	w := call(h, method, path, body, "User-Agent: "+agents[client])
	a := apitest.Answer{
		Head: method == "HEAD", Status: w.Code, Header: w.Header(), Body: w.Body.Bytes(), Length: int64(w.Body.Len()),
	}
	if err := a.Sound(); err != nil {
		t.Errorf("%s %s for %s: %v: %d %s", method, path, client, err, w.Code, w.Body)
	}
	return a
}

// buildsOf is where a client sends its requests for images.
func buildsOf(client string) string {
	if client == "luci-2021" {
		return "/api/build"
	}
	return "/api/v1/build"
}

// TestEveryStageForEveryClient: while its build waits and is under way each
// client goes on asking, at each stage, at one of a newer sysup too; then it
// has its images.
func TestEveryStageForEveryClient(t *testing.T) {
	for name, reads := range apitest.Clients {
		rig := newRig(t)
		h := rig.handler()
		path := buildsOf(name)
		expect := func(state, want string) {
			t.Helper()
			poll := path + "/" + string(rig.only().ID)
			post, get, head := heard(t, h, name, "POST", path, stock), heard(t, h, name, "GET", poll, ""), heard(t, h, name, "HEAD", poll, "")
			for _, a := range []apitest.Answer{post, get} {
				if got := reads(a); !strings.HasPrefix(got, want) {
					t.Errorf("%s reads %q %s, want %q: %s", name, got, state, want, a.Body)
				}
			}
			if !maps.EqualFunc(get.Header, head.Header, slices.Equal) || get.Status != head.Status {
				t.Errorf("%s: HEAD says %d %v, GET says %d %v", state, head.Status, head.Header, get.Status, get.Header)
			}
			if want == apitest.Done {
				want = "asks by GET"
			}
			if got := reads(head); name == "owut" && !strings.HasPrefix(got, want) {
				t.Errorf("owut reads %q in %v %s, want %q", got, head.Header, state, want)
			}
		}
		call(h, "POST", path, stock)
		expect("while it waits", apitest.AsksOn)
		for _, stage := range append(slices.Clone(stages), "", "signing_with_a_comet") {
			rig.claim(stage)
			expect("in stage "+string(stage), apitest.AsksOn)
		}
		rig.finish("squashfs-combined", "squashfs-sysupgrade")
		expect("when it is done", apitest.Done)
	}
}

// TestEveryEndingForEveryClient: whatever ends a request, each client shows
// the sentence if it can show one at all, and none stumbles.
func TestEveryEndingForEveryClient(t *testing.T) {
	const sentence = "dnsmasq and dnsmasq-full have a file in common."
	failed := func(kind build.Kind, pkg string) func(*rig) {
		return func(r *rig) { r.fail(kind, pkg, sentence) }
	}
	unavailable := func(err error) func(*rig) { return func(r *rig) { r.catalog.err = err } }
	for _, test := range []struct {
		name, body string
		spoil      func(*rig) // before the request
		after      func(*rig) // what becomes of its build
		says       string     // the sentence
		auc        string     // what auc shows, where it has no sentence
		luciAsks   bool       // LuCI knows no such status and asks again
	}{
		{name: "invalid", body: with(`"packages":"luci"`), says: `"packages" has to be a list`, auc: "Invalid argument"},
		{name: "no version", body: with(`"version":"1.2.3"`), says: "There is no version 1.2.3", auc: "Invalid argument"},
		{name: "too large", body: with(`"x":"` + strings.Repeat("a", maxBody) + `"`), says: "larger than", auc: "Invalid argument"},
		{name: "unknown package", body: with(`"packages":["luci-app-gone"]`), says: "luci-app-gone", auc: "unknown package luci-app-gone"},
		{name: "another revision", body: with(`"version_code":"r1-abc"`), says: "You expect revision r1-abc", auc: "Invalid argument"},
		{name: "conflict", body: stock, after: failed(build.KindConflict, "dnsmasq"), says: sentence},
		{name: "too big", body: stock, after: failed(build.KindTooBig, ""), says: sentence},
		{name: "no more of that package", body: stock, after: failed(build.KindUnknownPackage, "dnsmasq"), says: sentence, auc: "unknown package dnsmasq"},
		{name: "a failure that passes", body: stock, after: failed(build.KindUpstream, ""), says: sentence},
		{name: "no room", body: stock, spoil: func(r *rig) {
			r.config.Service.Limits.Pending = 1
			call(r.handler(), "POST", "/api/v1/build", with(`"packages":["nano"]`))
		}, says: "waiting now", luciAsks: true},
		{name: "no catalogue", body: stock, spoil: unavailable(&build.Refusal{Code: build.CodeUnavailable, Detail: sentence}), says: sentence, luciAsks: true},
		{name: "upstream down", body: stock, spoil: unavailable(build.Fail(build.KindUpstream, sentence)), says: sentence, luciAsks: true},
		{name: "a defect", body: stock, spoil: unavailable(errors.New("open /srv/secret")), says: "Something went wrong"},
		{name: "a crash", body: stock, spoil: func(r *rig) { r.catalog.panics = true }, says: "Something went wrong"},
	} {
		for _, name := range slices.Sorted(maps.Keys(apitest.Clients)) {
			rig := newRig(t)
			if test.spoil != nil {
				test.spoil(rig)
			}
			h := rig.handler()
			path := buildsOf(name)
			a := heard(t, h, name, "POST", path, test.body)
			if test.after != nil {
				test.after(rig)
				a = heard(t, h, name, "GET", path+"/"+string(rig.only().ID), "")
			}
			want := apitest.Stops + ": "
			shown := test.says
			switch {
			case strings.HasPrefix(name, "luci") && test.luciAsks:
				want, shown = apitest.ForEver+": 503", ""
			case name == "auc" && test.auc != "":
				shown = test.auc
			case name == "auc-2021" && a.Status == http.StatusBadRequest:
				shown = "Bad message"
			case name == "auc-2021" && test.auc != "":
				shown = test.auc
			case name == "firmware-selector" && test.after != nil:
				shown = "tr-image-too-big" // the outputs of rig.fail say so
			}
			if got := apitest.Clients[name](a); !strings.HasPrefix(got, want) || !strings.Contains(got, shown) {
				t.Errorf("%s: %s reads %q, want %q with %q: %d %s", test.name, name, got, want, shown, a.Status, a.Body)
			}
			if a.Status == 503 && a.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %s is not told when to come again", test.name, name)
			}
			if name == "luci-2021" && !strings.Contains(string(a.Body), `"message":"`) {
				t.Errorf("%s: no message for the first of its kind: %s", test.name, a.Body)
			}
		}
	}
}

// TestUnknownHashForEveryClient: a build that is gone ends the run of those
// that look at it. LuCI asks on, which docs/clients.md says.
func TestUnknownHashForEveryClient(t *testing.T) {
	h := newRig(t).handler()
	for name, reads := range apitest.Clients {
		a := heard(t, h, name, "GET", buildsOf(name)+"/"+strings.Repeat("0", 64), "")
		want := apitest.Stops
		if strings.HasPrefix(name, "luci") {
			want = apitest.ForEver
		}
		if got := reads(a); !strings.HasPrefix(got, want) {
			t.Errorf("%s reads %q, want %q", name, got, want)
		}
	}
}

// TestKeySpellings: one key in several spellings is one build.
func TestKeySpellings(t *testing.T) {
	const usign = "RWRNAX5vHtXWFmt+n5di7XX8rTu0w+c8X7Ihv4oCyD6tzsUwmH0A6kO0"
	const pem = `-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElHAPZM9WHSF87oIYlGyHcD12ksOJ\nqdOYcDYPvpLE8EUSd5ek/FWmxWHv3xhf61JqCWQjUIUFzNMZUzrWPvgoFQ==\n-----END PUBLIC KEY-----`
	for _, spellings := range [][]string{
		{usign, usign + `\n`, `untrusted comment: our feed\n` + usign + `\n`, `untrusted comment: our feed\r\n` + usign + `\r\n`, " " + usign + " "},
		{pem, pem + `\n`, strings.ReplaceAll(pem, `\n`, `\r\n`), `untrusted comment: our feed\n\n` + pem + `\n`, `# ours\r\n` + pem + `\r\n\r\n`},
	} {
		rig := newRig(t)
		h := rig.handler()
		for _, key := range spellings {
			body := with(`"repositories":{"a":"https://feeds.example.org/packages"},"repository_keys":["` + key + `"]`)
			if w := call(h, "POST", "/api/v1/build", body); w.Code != 202 {
				t.Errorf("%q: %d %s", key, w.Code, w.Body)
			}
		}
		if rec := rig.only(); len(rec.Plan.RepositoryKeys) != 1 {
			t.Errorf("the plan's keys are %q", rec.Plan.RepositoryKeys)
		}
	}
}

// TestPackagesWithoutVersion: null and "" for a version ask for the package.
func TestPackagesWithoutVersion(t *testing.T) {
	rig := newRig(t)
	w := call(rig.handler(), "POST", "/api/v1/build", with(`"packages_versions":{"nano":"","luci":null,"tcpdump":"4.99-r1"}`))
	if w.Code != 202 {
		t.Fatal(w.Code, w.Body)
	}
	plan := rig.only().Plan
	if !slices.Equal(plan.Add, []string{"luci", "nano", "tcpdump"}) || len(plan.Pins) != 1 || plan.Pins[0].Name != "tcpdump" {
		t.Errorf("the plan is %+v", plan)
	}
}

// TestAddressesForAuc: auc writes addresses into 255 bytes. A server whose own
// has up to 28 leaves enough for the longest names of images that there are, of
// private results too; docs/clients.md says so.
func TestAddressesForAuc(t *testing.T) {
	server := "https://" + strings.Repeat("a", 20)
	id := build.ID(strings.Repeat("a", 64))
	for _, name := range []string{
		"openwrt-24.10.5-" + string(id[:12]) + "-ath79-mikrotik-mikrotik_routerboard-wap-g-5hact2hnd-squashfs-sysupgrade.bin",
		"openwrt-23.05.6-" + string(id[:12]) + "-mvebu-cortexa53-globalscale_espressobin-v7-emmc-squashfs-sysupgrade.img.gz",
		"openwrt-24.10-snapshot-r29233-443ec4032a-" + string(id[:12]) + "-mediatek-filogic-bananapi_bpi-r4-poe-squashfs-sysupgrade.itb",
	} {
		address := server + "/" + build.Prefix(id, build.NewAttempt(), true) + name
		if len(address) > 255 {
			t.Errorf("%d bytes: %s", len(address), address)
		}
	}
}

// FuzzBareKey: a key is the same text whatever people paste along with it, and
// what is left of it once is left of it always.
func FuzzBareKey(f *testing.F) {
	for _, seed := range []string{"RWQ=", "untrusted comment: x\nRWQ=\n", "-----BEGIN PUBLIC KEY-----\r\nAA\r\n-----END PUBLIC KEY-----", "#\n\n", "", "a\nb"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		bare := bareKey(key)
		for _, other := range []string{bare, "untrusted comment: ours\r\n" + key, strings.ReplaceAll(key, "\n", "\r\n"), "\n" + key + "\n\n", key + "\n# end"} {
			if got := bareKey(other); got != bare {
				t.Errorf("%q is left of %q, but %q of %q", bare, key, got, other)
			}
		}
	})
}
