package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
)

// stall is a server with a real catalogue over an upstream in memory: who
// leads the catalogue publishes, who follows answers. Over a folder both are
// one.
type stall struct {
	t               testing.TB
	up              *catalogtest.Upstream
	objects         *countingObjects
	leader, answers *catalog.Catalog
	config          Config
	handler         http.Handler
}

// overBoth runs a test with the catalogue in a folder and in a store.
func overBoth(t *testing.T, test func(t *testing.T, s *stall)) {
	t.Run("folder", func(t *testing.T) { test(t, newStall(t, false)) })
	t.Run("store", func(t *testing.T) { test(t, newStall(t, true)) })
}

func newStall(t testing.TB, store bool) *stall {
	up, err := catalogtest.Sample()
	if err != nil {
		t.Fatal(err)
	}
	s := &stall{t: t, up: up, objects: &countingObjects{Objects: buildtest.NewObjects(t)}}
	// Whatever is old is looked at anew, at once.
	o := catalog.Options{
		Upstream: "https://upstream.test", Keys: up.Keys(), Client: up.Client(), Log: slog.New(slog.DiscardHandler),
		Interval: time.Nanosecond, ReleaseInterval: time.Nanosecond,
	}
	if store {
		o.Objects = s.objects.Objects
	} else {
		o.Dir = t.TempDir()
	}
	s.leader = openCatalog(t, o)
	s.answers = s.leader
	s.refresh()
	if store {
		o.Follow = true
		s.answers = openCatalog(t, o)
	}
	s.config = Config{Objects: s.objects, Catalog: s.leader, Version: "1", Log: slog.New(slog.DiscardHandler)}
	s.restart()
	return s
}

func openCatalog(t testing.TB, o catalog.Options) *catalog.Catalog {
	c, err := catalog.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// restart makes a server that remembers nothing.
func (s *stall) restart() {
	answering := s.config
	answering.Catalog = s.answers
	s.handler = New(answering)
}

func (s *stall) refresh() {
	s.t.Helper()
	if err := s.leader.Refresh(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stall) publish() {
	s.t.Helper()
	if err := Publish(s.t.Context(), s.config); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stall) get(path string, want int) *httptest.ResponseRecorder {
	s.t.Helper()
	w := call(s.handler, "GET", path, "")
	if w.Code != want {
		s.t.Fatalf("GET %s: %d %s, want %d", path, w.Code, w.Body, want)
	}
	return w
}

// decoded is the answer of a path.
func decoded[T any](s *stall, path string) (v T) {
	s.t.Helper()
	if err := json.Unmarshal(s.get(path, 200).Body.Bytes(), &v); err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return v
}

// stored are the keys below json/v1 that are about parts of the catalogue.
func (s *stall) stored() []string {
	var keys []string
	for info := range s.objects.List(s.t.Context(), staticPrefix) {
		if strings.Count(info.Key, "/") > 2 {
			keys = append(keys, strings.TrimPrefix(info.Key, staticPrefix))
		}
	}
	return keys
}

func (s *stall) object(key string) string {
	s.t.Helper()
	object, _, err := s.objects.Open(s.t.Context(), key)
	if err != nil {
		s.t.Fatalf("%s: %v", key, err)
	}
	defer object.Close()
	text, err := io.ReadAll(object)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

const (
	x86Folder   = "/json/v1/releases/24.10.5/targets/x86/64/"
	ath79Folder = "/json/v1/releases/24.10.5/targets/ath79/generic/"
	mipsFeeds   = "/json/v1/releases/24.10.5/packages/mips_24kc-index.json"
	movingIndex = "/json/v1/snapshots/targets/x86/64/index.json"
	movingFeeds = "/json/v1/snapshots/packages/x86_64-index.json"
)

// TestProfileFile: a device is the upstream's, as auc and its kin want it, by
// every name they ask for.
func TestProfileFile(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		want := `{"arch_packages":"x86_64","default_packages":["base-files","busybox","dnsmasq","dropbear","kernel","libc","opkg","procd"],` +
			`"device_packages":["kmod-e1000"],"image_prefix":"openwrt-x86-64-generic","linux_kernel":{"release":"1","vermagic":"0123456789abcdef","version":"6.6.1"},` +
			`"source_date_epoch":1700000000,"supported_devices":[],"titles":[{"title":"Generic x86/64"}],"version_code":"r29233-443ec4032a","version_number":"24.10.5",` +
			`"id":"generic","images":[{"filesystem":"squashfs","name":"openwrt-x86-64-generic-squashfs-combined.img.gz",` +
			`"sha256":"0000000000000000000000000000000000000000000000000000000000000000","type":"combined"}],"metadata_version":1,"target":"x86/64"}`
		if got := s.get(x86Folder+"generic.json", 200).Body.String(); got != want {
			t.Errorf("generic.json is\n%s\nwant\n%s", got, want)
		}
		for name, want := range map[string]string{
			x86Folder + "qemu_standard-pc.json":         "generic", // a target of one profile for all boards
			ath79Folder + "8dev_carambola2.json":        "8dev_carambola2",
			ath79Folder + "8dev,carambola2.json":        "8dev_carambola2",
			ath79Folder + "carambola2.json":             "8dev_carambola2",
			ath79Folder + "tplink_archer-c7-v2.json":    "tplink_archer-c7-v2",
			"/" + ath79Folder + "carambola2.json?17000": "8dev_carambola2",
		} {
			p := decoded[catalog.Profile](s, name)
			if p.ID != want || p.MetadataVersion != 1 || p.VersionCode != "r29233-443ec4032a" || p.Target == "" {
				t.Errorf("%s is %+v, want %s", name, p, want)
			}
		}
		p := decoded[catalog.Profile](s, ath79Folder+"tplink_archer-c7-v2.json")
		if string(p.Titles) != `[{"vendor":"TP-Link","model":"Archer C7","variant":"v2"}]` || !slices.Equal(p.DevicePackages, []string{"kmod-ath9k", "-dnsmasq"}) || p.Images == nil {
			t.Errorf("the Archer is %+v", p)
		}
		if got := s.stored(); slices.ContainsFunc(got, func(key string) bool { return strings.Contains(key, "qemu") || strings.Contains(key, ",") }) {
			t.Errorf("stored are %v: names that somebody made up", got)
		}
	})
}

// TestPackageFiles: names are ABI-free, kernel modules are among the target's.
func TestPackageFiles(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		got := decoded[targetIndex](s, ath79Folder+"index.json")
		if want := map[string]string{"base-files": "1", "kmod-ath9k": "6.6.1-r1"}; got.Architecture != "mips_24kc" || !maps.Equal(got.Packages, want) {
			t.Errorf("index.json is %+v, want %v", got, want)
		}
		want := map[string]string{
			"busybox": "1.36.1-r2", "dnsmasq": "2.90-r4", "libubox": "2024.03.29-r1", "libfoo2": "2.1-r1", "wpad-mbedtls": "2024.09-r1",
			"luci": "25.1", "luci-ssl": "25.1", "nano": "8.3-r1", "tcpdump": "4.99-r1", "lib++": "1",
		}
		if got := decoded[map[string]string](s, mipsFeeds); !maps.Equal(got, want) {
			t.Errorf("the feeds are %v, want %v", got, want)
		}
		if got := decoded[map[string]string](s, movingFeeds); got["libubox"] != "2024.03.29-r1" || got["nano"] != "8.3-r1" {
			t.Errorf("the snapshot's feeds are %v", got)
		}
	})
}

// TestNoFile: what there is not is 404, in JSON with a sentence, and stores
// nothing.
func TestNoFile(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		s.up.Target("24.10.5", catalogtest.Target{Name: "bare/metal", Arch: "mips_24kc", Revision: "r1-0", Profiles: map[string]catalogtest.Profile{"x": {}}})
		s.up.Drop("releases/24.10.5/targets/bare/metal/openwrt-imagebuilder")
		s.up.Sign("releases/24.10.5/targets/bare/metal")
		s.refresh()
		for _, path := range []string{
			"/json/v1/releases/24.10.9/targets/x86/64/generic.json", "/json/v1/releases/24.10.5/targets/x86/65/index.json",
			"/json/v1/releases/24.10.5/targets/bare/metal/index.json", "/json/v1/releases/24.10.5/targets/bare/metal/x.json",
			ath79Folder + "no_such-board.json", ath79Folder + "archer-c7.json", // two have that alias
			ath79Folder + ".json", ath79Folder + "index", ath79Folder + "index.xml", x86Folder + "a%20b.json", x86Folder + "%2e%2e.json",
			"/json/v1/releases/24.10.5/packages/riscv-index.json", "/json/v1/releases/24.10.5/packages/-index.json",
			"/json/v1/releases/24.10.5/packages/index.json", "/json/v1/releases/SNAPSHOT/targets/x86/64/index.json",
			"/json/v1/releases/snapshot/packages/x86_64-index.json", "/json/v1/snapshots/targets/x86/64", "/json/v1/releases", "/json/v1",
			"/json/releases/24.10.9/targets/x86/64/generic.json", "/json/releases/24.10.5/targets/ath79/generic/no_such-board.json",
			"/json/releases/24.10.5/targets/x86/64/generic", "/json/releases/SNAPSHOT/targets/x86/64/generic.json", "/json/releases/24.10.9/packages/x86_64-index.json",
			"/json/releases/24.10.5/targets/x86/65/index.json", "/json/snapshots", "/json/v1/releases/24.10.5/targets/x86/64/a/generic.json",
			"/json/v1/releases/" + strings.Repeat("a", 2000) + "/targets/x86/64/index.json",
		} {
			w := s.get(path, 404)
			var body struct {
				Status int
				Detail string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Status != 404 || body.Detail == "" || len(body.Detail) > 500 ||
				w.Header().Get("ETag") != "" || w.Header().Get("Cache-Control") != build.CacheNever {
				t.Errorf("%s: %v %s (%v)", path, w.Header(), w.Body, err)
			}
		}
		if got := s.stored(); len(got) != 0 {
			t.Errorf("stored are %v", got)
		}
	})
}

// TestListingsAreKept: the second answer comes from the object, with the ETag
// of the first.
func TestListingsAreKept(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		for _, path := range []string{x86Folder + "generic.json", x86Folder + "index.json", mipsFeeds} {
			first := s.get(path, 200)
			if got := s.object(path[1:]); got != first.Body.String() {
				t.Errorf("%s: stored is %s", path, got)
			}
			opened, puts := s.objects.opens, s.objects.puts
			second := s.get(path, 200)
			if second.Body.String() != first.Body.String() || second.Header().Get("ETag") != first.Header().Get("ETag") || second.Header().Get("ETag") == "" {
				t.Errorf("%s: first %v, then %v", path, first.Header(), second.Header())
			}
			if s.objects.opens != opened+1 || s.objects.puts != puts {
				t.Errorf("%s: the second answer opens %d objects and stores %d", path, s.objects.opens-opened, s.objects.puts-puts)
			}
			for _, w := range []*httptest.ResponseRecorder{first, second} {
				if h := w.Header(); h.Get("Cache-Control") != build.CacheBriefly || h.Get("Content-Type") != "application/json" || h.Get("Content-Length") == "" {
					t.Errorf("%s: %v", path, h)
				}
			}
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("If-None-Match", first.Header().Get("ETag"))
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			if w.Code != 304 || w.Body.Len() != 0 {
				t.Errorf("%s: %d for who has it", path, w.Code)
			}
			if w := call(s.handler, "HEAD", path, ""); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != first.Header().Get("Content-Length") {
				t.Errorf("HEAD %s: %d %v", path, w.Code, w.Header())
			}
		}
	})
}

// TestListingFollows: what the handler answers is what the catalogue has, also
// where the object is still of an earlier state, which it leaves alone.
func TestListingFollows(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		revision := func() string {
			t.Helper()
			return decoded[catalog.Profile](s, "/json/v1/snapshots/targets/x86/64/generic.json").VersionCode
		}
		const key = staticPrefix + "snapshots/targets/x86/64/generic.json"
		first := revision()
		old := s.object(key)
		s.up.Release("SNAPSHOT", "r30000-0123456789")
		s.refresh()
		for _, server := range []string{"that knows the object", "that does not"} {
			// A follower looks into the store once a minute.
			if got := revision(); s.answers == s.leader && (first == got || got != "r30000-0123456789") {
				t.Errorf("first %s, then %s by a server %s", first, got, server)
			}
			s.restart()
		}
		if s.object(key) != old {
			t.Error("an answer replaced an object")
		}
		s.publish()
		if got := s.object(key); got == old || !strings.Contains(got, "r30000-0123456789") {
			t.Errorf("published is %s", got)
		}
	})
}

// TestListingFromBefore: without a catalogue, the object will do.
func TestListingFromBefore(t *testing.T) {
	s := newStall(t, false)
	want := s.get(mipsFeeds, 200).Body.String()
	broken := &fakeCatalog{err: &build.Refusal{Code: build.CodeUnavailable, Detail: "Not yet."}}
	s.config.Catalog = broken
	s.handler = New(s.config)
	if w := s.get(mipsFeeds, 200); w.Body.String() != want || w.Header().Get("Cache-Control") != build.CacheBriefly {
		t.Errorf("%v %s", w.Header(), w.Body)
	}
	if w := s.get(x86Folder+"generic.json", 503); w.Header().Get("Retry-After") == "" {
		t.Errorf("%v", w.Header())
	}
	broken.err = errors.New("a fault")
	s.get(mipsFeeds, 500)
}

// hold has the catalogue fetch a target of a version with its feeds.
func (s *stall) hold(version, target string) {
	s.t.Helper()
	if _, err := s.answers.Device(s.t.Context(), version, target, "carambola2", ""); err != nil {
		s.t.Fatal(err)
	}
}

// TestPublishParts: of each part that is held there is every file, byte for
// byte what the handler answers, and none of a part that is not.
func TestPublishParts(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		s.publish()
		if got := s.stored(); len(got) != 0 {
			t.Errorf("published are %v although nobody asked for anything", got)
		}
		s.hold("24.10.5", "ath79/generic")
		s.refresh()
		s.publish()
		const dir = "releases/24.10.5/targets/ath79/generic/"
		want := []string{
			"releases/24.10.5/packages/mips_24kc-index.json", dir + "8dev_carambola2.json", dir + "carambola2.json", dir + "index.json",
			dir + "tplink_archer-c7-v2.json", dir + "tplink_archer-c7-v5.json",
		}
		if got := s.stored(); !slices.Equal(got, want) {
			t.Fatalf("published are %v, want %v", got, want)
		}
		for _, name := range want {
			if got := s.get("/"+staticPrefix+name, 200).Body.String(); got != s.object(staticPrefix+name) {
				t.Errorf("%s: stored is\n%s, the handler answers\n%s", name, s.object(staticPrefix+name), got)
			}
		}
		s.objects.opens, s.objects.puts = 0, 0
		s.publish()
		if s.objects.puts != 0 || s.objects.opens != 5 { // overview, latest twice, branches, what is published
			t.Errorf("nothing new makes %d writes and %d reads", s.objects.puts, s.objects.opens)
		}
	})
}

// TestPublishChanges: what changed is written and nothing else, what is gone
// is removed, with its device, its target's ImageBuilder, or its version.
func TestPublishChanges(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		s.hold("SNAPSHOT", "ath79/generic")
		s.hold("24.10.5", "x86/64")
		s.refresh()
		s.publish()
		whole := s.stored()
		without := func(prefix string) {
			t.Helper()
			whole = slices.DeleteFunc(whole, func(key string) bool { return strings.HasPrefix(key, prefix) })
			if got := s.stored(); !slices.Equal(got, whole) {
				t.Errorf("left are %v, want %v", got, whole)
			}
		}

		t.Log("A package of a feed: one object and what is known of it.")
		s.up.Feed("SNAPSHOT", "mips_24kc", "packages", true, catalogtest.Package{Name: "nano", Version: "9"})
		s.renew()
		s.objects.puts = 0
		s.publish()
		if got := s.object(staticPrefix + "snapshots/packages/mips_24kc-index.json"); !strings.Contains(got, `"nano":"9"`) || s.objects.puts != 2 {
			t.Errorf("%d writes, published is %s", s.objects.puts, got)
		}

		t.Log("A device is gone.")
		s.up.Target("SNAPSHOT", catalogtest.Target{
			Name: "ath79/generic", Arch: "mips_24kc", Revision: "r29234-443ec4032a", APK: true,
			Profiles: map[string]catalogtest.Profile{"8dev_carambola2": {Devices: []string{"8dev,carambola2", "carambola2"}}},
		})
		s.renew()
		s.publish()
		without("snapshots/targets/ath79/generic/tplink_archer-c7-v")

		t.Log("The ImageBuilder is gone.")
		s.up.Drop("snapshots/targets/ath79/generic/openwrt-imagebuilder")
		s.up.Sign("snapshots/targets/ath79/generic")
		s.renew()
		s.publish()
		without("snapshots/targets/ath79/generic/")

		t.Log("The version is gone.")
		s.up.Versions("25.12.0-rc1", "", "")
		s.refresh()
		s.publish()
		without("releases/24.10.5/")
		if len(whole) != 1 {
			t.Errorf("left are %v, want the feeds of the snapshot", whole)
		}
	})
}

// renew has the catalogue look at the snapshot anew. Over a folder this is
// done, and waited for, when somebody asks.
func (s *stall) renew() {
	s.t.Helper()
	s.refresh()
	for _, p := range []catalog.Part{{Version: "SNAPSHOT", Target: "ath79/generic"}, {Version: "SNAPSHOT", Arch: "mips_24kc"}} {
		if _, err := s.leader.Stamp(s.t.Context(), p); err != nil && !refused(err, build.CodeUnsupported) {
			s.t.Fatal(err)
		}
	}
}

// TestPublishStopped: what was done when the time is over counts.
func TestPublishStopped(t *testing.T) {
	s := newStall(t, true)
	s.hold("24.10.5", "ath79/generic")
	s.hold("25.12.0-rc1", "x86/64")
	s.refresh()
	stopped := 0
	for ; ; stopped++ {
		ctx, cancel := context.WithCancel(t.Context())
		s.objects.left, s.objects.stop = 6, cancel
		s.config.Objects = s.objects
		err := Publish(ctx, s.config)
		cancelled := ctx.Err() != nil
		cancel()
		if !cancelled {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if text := s.object(publishedKey); !strings.Contains(text, "mips_24kc-index.json") {
			t.Errorf("it is only known of %s that they are published", text)
		}
		if stopped == 10 {
			t.Fatalf("ten rounds of six writes do not store %v", s.stored())
		}
	}
	if got := s.stored(); stopped == 0 || len(got) != 9 {
		t.Errorf("stopped %d times; published are %v", stopped, got)
	}
}

// TestPublishAgain: after a day, with another version of sysup, or when what
// is known of them is lost, all objects are compared and put right.
func TestPublishAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStall(t, true)
		s.hold("24.10.5", "ath79/generic")
		s.refresh()
		s.publish()
		key := mipsFeeds[1:]
		want := s.object(key)
		for _, c := range []struct {
			name    string
			damage  func()
			changed bool
		}{
			{"at once", func() {}, false},
			{"after an hour", func() { time.Sleep(time.Hour) }, false},
			{"after a day", func() { time.Sleep(24 * time.Hour) }, true},
			{"by another version", func() { s.config.Version = "2" }, true},
			{"lost", func() { s.objects.Delete(t.Context(), publishedKey) }, true},
			{"damaged", func() { s.put(publishedKey, "{") }, true},
			{"null", func() { s.put(publishedKey, "null") }, true},
		} {
			s.put(key, "{}")
			c.damage()
			s.publish()
			if got := s.object(key); (got == want) != c.changed {
				t.Errorf("%s the object is %.100s", c.name, got)
			}
		}
	})
}

func (s *stall) put(key, text string) {
	s.t.Helper()
	if err := s.objects.Objects.Put(s.t.Context(), key, strings.NewReader(text), build.PolicyCatalog); err != nil {
		s.t.Fatal(err)
	}
}

// TestPublishFaults: a fault is told, and the rest is published all the same.
func TestPublishFaults(t *testing.T) {
	s := newStall(t, true)
	s.hold("24.10.5", "ath79/generic")
	s.refresh()
	s.objects.fail = "mips_24kc-index"
	if err := Publish(t.Context(), s.config); !errors.Is(err, errObjects) {
		t.Errorf("a fault of the store: %v", err)
	}
	if got := s.stored(); len(got) != 5 {
		t.Errorf("published are %v", got)
	}
	s.objects.fail = ""
	s.publish()
	if got := s.stored(); len(got) != 6 {
		t.Errorf("then published are %v", got)
	}
}
