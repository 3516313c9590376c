package build_test

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// canonicalName knows the ABI versions of two libraries.
func canonicalName(name string) string {
	for _, known := range []string{"libjson-c", "libfoo2"} {
		if rest, ok := strings.CutPrefix(name, known); ok && strings.Trim(rest, "-0123456789") == "" {
			return known
		}
	}
	return name
}

var facts = build.Facts{
	Distribution: "OpenWrt", Version: "24.10.5", Revision: "r29087-d9c5716d1d", Target: "x86/64", Profile: "generic",
	Defaults:  []string{"base-files", "busybox", "dnsmasq", "dropbear", "kernel", "libc", "libjson-c5", "opkg", "ppp", "apk-mbedtls", "kmod-e1000"},
	Mandatory: []string{"kmod-e1000"},
}

func resolve(r build.Request) build.Plan { return build.Resolve(&r, facts, nil, canonicalName) }

func TestResolve(t *testing.T) {
	for _, test := range []struct {
		name        string
		packages    []string
		versions    map[string]string
		diff        bool
		add, remove []string
	}{
		{name: "nothing asked is the stock image"},
		{name: "what is there already adds nothing", packages: []string{"busybox", "dnsmasq"}},
		{name: "an addition", packages: []string{"tmux", "luci"}, add: []string{"luci", "tmux"}},
		{name: "a plus sign means nothing", packages: []string{"+luci", "luci"}, add: []string{"luci"}},
		{name: "a removal", packages: []string{"-ppp"}, remove: []string{"ppp"}},
		{name: "removing what is not there changes nothing", packages: []string{"-tmux"}},
		{name: "a removal beats an addition", packages: []string{"luci", "-luci", "ppp", "-ppp"}, remove: []string{"ppp"}},
		{name: "what a router needs to live stays", packages: []string{"-kernel", "-libc", "-base-files", "-opkg"}},
		{name: "the package manager stays", packages: []string{"-apk-mbedtls"}},
		{name: "it gives way to another variant", packages: []string{"-apk-mbedtls", "apk-openssl"}, add: []string{"apk-openssl"}, remove: []string{"apk-mbedtls"}},
		{name: "but not to one that is removed as well", packages: []string{"-apk-mbedtls", "apk-openssl", "-apk-openssl"}},
		{name: "an ABI version is no other package", packages: []string{"libfoo2-3", "libfoo2", "-libjson-c"}, add: []string{"libfoo2"}, remove: []string{"libjson-c"}},
		{name: "a pin in the list is cut off", packages: []string{"luci=26.1~abc-r1"}, add: []string{"luci"}},
		{name: "pinned versions are additions", versions: map[string]string{"luci": "26.1", "busybox": "1.36"}, add: []string{"luci"}},
		{name: "exactly these", packages: []string{"busybox", "dropbear", "luci"}, diff: true, add: []string{"luci"}, remove: []string{"dnsmasq", "libjson-c", "ppp"}},
		{name: "exactly these pins", versions: map[string]string{"busybox": "1.36"}, diff: true, remove: []string{"dnsmasq", "dropbear", "libjson-c", "ppp"}},
		{name: "exactly nothing is the stock image", packages: nil, diff: true},
		{name: "exactly a removal is the stock image without it", packages: []string{"-ppp"}, diff: true, remove: []string{"ppp"}},
		{name: "exactly these with another package manager", packages: []string{"apk-openssl", "busybox", "dnsmasq", "dropbear", "libjson-c", "ppp"}, diff: true, add: []string{"apk-openssl"}, remove: []string{"apk-mbedtls"}},
		{name: "exactly what is removed as well is the stock image", packages: []string{"luci", "-luci"}, diff: true},
		{name: "what is mandatory goes only by name", packages: []string{"busybox", "-kmod-e1000"}, diff: true, remove: []string{"dnsmasq", "dropbear", "kmod-e1000", "libjson-c", "ppp"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := resolve(build.Request{Packages: test.packages, PackagesVersions: test.versions, DiffPackages: test.diff})
			if !slices.Equal(p.Add, test.add) || !slices.Equal(p.Remove, test.remove) {
				t.Errorf("adds %q and removes %q, not %q and %q", p.Add, p.Remove, test.add, test.remove)
			}
			if err := p.Check(); err != nil {
				t.Errorf("the plan does not pass its own check: %v", err)
			}
		})
	}
}

func TestResolveCopiesTheRest(t *testing.T) {
	repos := []build.Repository{{Name: "b", URL: "https://feed.example/b"}, {Name: "a", URL: "https://feed.example/a"}}
	p := build.Resolve(&build.Request{
		PackagesVersions: map[string]string{"libjson-c5": "0.18", "base-files": "1"}, Filesystem: "squashfs", RootfsSizeMB: 256,
		Defaults: "echo hi\n", Repositories: repos, RepositoryKeys: []string{"k"},
	}, facts, []string{"b", "a"}, canonicalName)
	want := build.Plan{
		Distribution: facts.Distribution, Version: facts.Version, Revision: facts.Revision, Target: facts.Target, Profile: facts.Profile,
		Pins:       []build.Pin{{Name: "base-files", Version: "1"}, {Name: "libjson-c", Version: "0.18"}},
		Filesystem: "squashfs", RootfsSizeMB: 256, Repositories: repos, RepositoriesMode: "replace", RepositoryKeys: []string{"k"},
		Settings: []string{"a", "b"}, Private: true, Defaults: "echo hi\n",
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("resolved to\n%+v, not\n%+v", p, want)
	}
	if p := resolve(build.Request{RepositoriesMode: "append"}); p.RepositoriesMode != "" {
		t.Errorf("a mode without repositories gives another plan: %q", p.RepositoriesMode)
	}
}

// TestFeedSpellings: what changes no image changes no ID: the case of a host,
// its scheme's own port, a slash at the end, the order of keys and how often
// each is sent, keys without feeds, and the mode that is meant without one.
// What changes one does: another path, port or scheme, and the order of feeds.
func TestFeedSpellings(t *testing.T) {
	feeds := func(urls ...string) build.Request {
		r := build.Request{Version: "24.10.5", Target: "x86/64", RepositoryKeys: []string{"a", "b"}}
		for i, url := range urls {
			r.Repositories = append(r.Repositories, build.Repository{Name: string(rune('a' + i)), URL: url})
		}
		return r
	}
	keys := func(r build.Request, keys ...string) build.Request { r.RepositoryKeys = keys; return r }
	swapped := feeds("https://a.example/x", "http://b.example:8080/y")
	slices.Reverse(swapped.Repositories)
	base := feeds("https://a.example/x", "http://b.example:8080/y")
	replace := base
	replace.RepositoriesMode = "replace"
	for _, test := range []struct {
		name string
		a, b build.Request
		same bool
	}{
		{"the case of the host", base, feeds("https://A.Example/x", "http://B.EXAMPLE:8080/y"), true},
		{"a slash at the end", base, feeds("https://a.example/x/", "http://b.example:8080/y/"), true},
		{"the port of https", base, feeds("https://a.example:443/x", "http://b.example:8080/y"), true},
		{"the port of http", feeds("http://a.example"), feeds("http://A.example:80/"), true},
		{"the mode that is meant", base, replace, true},
		{"the order of keys", base, keys(base, "b", "a"), true},
		{"a key twice", base, keys(base, "b", "a", "b"), true},
		{"keys without feeds", feeds(), keys(feeds()), true},
		{"the case of the path", base, feeds("https://a.example/X", "http://b.example:8080/y"), false},
		{"another port", feeds("http://a.example:443"), feeds("http://a.example"), false},
		{"the port of the other scheme", feeds("https://a.example:80"), feeds("https://a.example"), false},
		{"the scheme", feeds("https://a.example"), feeds("http://a.example"), false},
		{"the order of feeds", base, swapped, false},
		{"a key less", base, keys(base, "a"), false},
	} {
		before := slices.Clone(test.b.Repositories)
		p, q := resolve(test.a), resolve(test.b)
		if same := p.ID(secret) == q.ID(secret); same != test.same {
			t.Errorf("%s: do they share an ID? %v\n%+v\n%+v", test.name, same, p, q)
		}
		if !slices.Equal(before, test.b.Repositories) {
			t.Errorf("%s: the request was changed to %v", test.name, test.b.Repositories)
		}
	}
}

// FuzzFeedAddress: an address that may be sent stays one, in a spelling that
// does not change again.
func FuzzFeedAddress(f *testing.F) {
	for _, seed := range []string{"https://a.example", "HTTP://a", "http://A.example:80/", "https://a:443/x.adb/", "http://a:/", "http://:80", "https://a/+~/.._", "http://a:99999/b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, url string) {
		r := baseRequest()
		r.Repositories = []build.Repository{{Name: "a", URL: url}}
		if r.Check() != nil {
			return
		}
		once := resolve(r)
		if err := once.Check(); err != nil {
			t.Fatalf("%q became %v: %v", url, once.Repositories, err)
		}
		r.Repositories = once.Repositories
		if twice := resolve(r); once.ID(secret) != twice.ID(secret) {
			t.Errorf("%q became %v, then %v", url, once.Repositories, twice.Repositories)
		}
	})
}

// TestPinsThatDoNotCount: clients send versions of the kernel and of libc, or
// leave them out; both mean one image.
func TestPinsThatDoNotCount(t *testing.T) {
	with := func(names ...string) build.Plan {
		versions := map[string]string{}
		for _, name := range names {
			versions[name] = "1-" + name
		}
		return resolve(build.Request{PackagesVersions: versions, Packages: []string{"busybox"}})
	}
	few, all := with("luci"), with("luci", "kernel", "libc")
	if few.ID(secret) != all.ID(secret) || len(all.Pins) != 1 {
		t.Errorf("with versions that do not count the pins are %v", all.Pins)
	}
	if none := with("kernel", "libc"); none.Pins != nil {
		t.Errorf("the pins are %v", none.Pins)
	}
	if more := with("busybox", "luci"); few.ID(secret) == more.ID(secret) {
		t.Error("a version that counts is not hashed")
	}
}

// universe are the names that the random requests are made of; every default
// package is one.
var universe = []string{
	"base-files", "busybox", "dnsmasq", "dropbear", "kernel", "libc", "libjson-c", "opkg", "ppp", "kmod-e1000",
	"apk-mbedtls", "apk-openssl", "luci", "tmux", "libfoo2",
}

// someRequest asks for a few of the universe.
func someRequest(rnd *rand.Rand) build.Request {
	r := build.Request{Version: "24.10.5", Target: "x86/64", DiffPackages: rnd.IntN(2) == 0}
	for range rnd.IntN(5) {
		sign := []string{"", "", "-"}[rnd.IntN(3)]
		r.Packages = append(r.Packages, sign+universe[rnd.IntN(len(universe))])
	}
	if rnd.IntN(4) == 0 {
		r.PackagesVersions = map[string]string{universe[rnd.IntN(len(universe))]: "1.0"}
	}
	return r
}

// respelled says the same in other words.
func respelled(r build.Request, rnd *rand.Rand) build.Request {
	var list []string
	for _, entry := range r.Packages {
		sign, name := "", entry
		if strings.HasPrefix(entry, "-") {
			sign, name = "-", entry[1:]
		}
		for range 1 + rnd.IntN(2) { // duplicates
			if sign == "" && rnd.IntN(2) == 0 {
				sign = "+"
			}
			if canonicalName(name+"-5") == name && rnd.IntN(2) == 0 {
				name += "-5"
			}
			list = append(list, sign+name)
		}
	}
	rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	r.Packages = list
	versions := map[string]string{}
	for name, version := range r.PackagesVersions {
		if canonicalName(name+"7") == name {
			name += "7"
		}
		versions[name] = version
	}
	r.PackagesVersions = versions
	r.Client = "another/1.0"
	return r
}

// image is what the packages of the image are to be, decided name by name.
func image(r build.Request) map[string]bool {
	has := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(entry string) bool { return canonicalName(strings.TrimPrefix(entry, "+")) == name })
	}
	dropped := func(name string) bool {
		return slices.ContainsFunc(r.Packages, func(entry string) bool { return strings.HasPrefix(entry, "-") && canonicalName(entry[1:]) == name })
	}
	wanted := func(name string) bool {
		_, pinned := r.PackagesVersions[name]
		return (pinned || has(r.Packages, name)) && !dropped(name)
	}
	removable := func(name string) bool {
		switch name {
		case "base-files", "kernel", "libc", "opkg":
			return false
		case "apk-mbedtls", "apk-openssl":
			return wanted("apk-mbedtls") || wanted("apk-openssl")
		}
		return true
	}
	exact := r.DiffPackages && slices.ContainsFunc(universe, wanted)
	packages := map[string]bool{}
	for _, name := range universe {
		stock := has(facts.Defaults, name)
		switch {
		case dropped(name) && removable(name):
		case wanted(name):
			packages[name] = true
		case stock && exact && removable(name) && name != "kmod-e1000":
		case stock:
			packages[name] = true
		}
	}
	return packages
}

type resolver func(r build.Request) build.Plan

// wantSameImage checks a plan against the model: applied to the stock image it
// gives the packages that were asked for.
func wantSameImage(t testing.TB, to resolver, r build.Request) {
	t.Helper()
	p := to(r)
	got := map[string]bool{}
	for _, name := range facts.Defaults {
		if name = canonicalName(name); slices.Contains(universe, name) && !slices.Contains(p.Remove, name) {
			got[name] = true
		}
	}
	for _, name := range p.Add {
		got[name] = true
	}
	if want := image(r); !reflect.DeepEqual(got, want) {
		t.Errorf("%q %v (exactly: %v) gives %v, not %v", r.Packages, r.PackagesVersions, r.DiffPackages, got, want)
	}
}

// wantOneID checks that two requests share an ID exactly if they mean one
// image with one set of pins.
func wantOneID(t testing.TB, to resolver, a, b build.Request) {
	t.Helper()
	p, q := to(a), to(b)
	same := reflect.DeepEqual(image(a), image(b)) && reflect.DeepEqual(p.Pins, q.Pins)
	if (p.ID(secret) == q.ID(secret)) != same {
		t.Errorf("do these mean the same? %v, but share an ID? %v\n%q %v %v\n%q %v %v", same, !same,
			a.Packages, a.PackagesVersions, a.DiffPackages, b.Packages, b.PackagesVersions, b.DiffPackages)
	}
}

func manyRequests(t testing.TB, to resolver) {
	for seed := range uint64(2000) {
		if t.Failed() {
			return
		}
		rnd := rand.New(rand.NewPCG(seed, 2))
		a := someRequest(rnd)
		wantSameImage(t, to, a)
		wantSpelling(t, to, a, respelled(a, rnd))
		wantOneID(t, to, a, someRequest(rnd))
	}
}

func wantSpelling(t testing.TB, to resolver, a, b build.Request) {
	t.Helper()
	p, q := to(a), to(b)
	if p.ID(secret) != q.ID(secret) {
		t.Errorf("two spellings of one image have two IDs:\n%q %v\n%q %v", a.Packages, a.PackagesVersions, b.Packages, b.PackagesVersions)
	}
}

func TestSpellingsShareAnID(t *testing.T) { manyRequests(t, resolve) }

// TestSpellingTestsNoticeCarelessPlans seeds what a careless resolution does.
func TestSpellingTestsNoticeCarelessPlans(t *testing.T) {
	for name, to := range map[string]resolver{
		"the order is kept": func(r build.Request) build.Plan {
			p := resolve(r)
			for _, entry := range r.Packages {
				if i := slices.Index(p.Add, entry); i > 0 {
					p.Add[0], p.Add[i] = p.Add[i], p.Add[0]
				}
			}
			return p
		},
		"the list is taken as it is": func(r build.Request) build.Plan {
			p := resolve(r)
			p.Add = r.Packages
			return p
		},
		"ABI versions are other packages": func(r build.Request) build.Plan {
			return build.Resolve(&r, facts, nil, func(name string) string { return name })
		},
		"the flag is part of the plan": func(r build.Request) build.Plan {
			p := resolve(r)
			if r.DiffPackages {
				p.Rules = "diff"
			}
			return p
		},
		"the flag is ignored": func(r build.Request) build.Plan {
			r.DiffPackages = false
			return resolve(r)
		},
		"everything can be removed": func(r build.Request) build.Plan {
			p := resolve(r)
			if slices.Contains(r.Packages, "-kernel") {
				p.Remove = append(p.Remove, "kernel")
			}
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			buildtest.Fails(t, func(t testing.TB) { manyRequests(t, to) })
		})
	}
}

func FuzzSpelling(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, seed*7)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		rnd := rand.New(rand.NewPCG(a, b))
		r := someRequest(rnd)
		wantSameImage(t, resolve, r)
		wantSpelling(t, resolve, r, respelled(r, rnd))
		wantOneID(t, resolve, r, someRequest(rnd))
	})
}

// TestPlanCheck: the builder holds a plan against the patterns once more.
func TestPlanCheck(t *testing.T) {
	good := basePlan()
	for _, test := range pinned {
		plan := good
		test.alter(&plan)
		if err := plan.Check(); err != nil && test.field != "RepositoryKeys" {
			t.Errorf("a plan with another %q does not pass: %v", test.field, err)
		}
	}
	for name, alter := range map[string]func(*build.Plan){
		"distribution": func(p *build.Plan) { p.Distribution = "Open Wrt" },
		"version":      func(p *build.Plan) { p.Version = "../24.10" },
		"revision":     func(p *build.Plan) { p.Revision = "$(id)" },
		"target":       func(p *build.Plan) { p.Target = "x86/../64" },
		"profile":      func(p *build.Plan) { p.Profile = "" },
		"add":          func(p *build.Plan) { p.Add = []string{"luci;id"} },
		"remove":       func(p *build.Plan) { p.Remove = []string{"$(shell id)"} },
		"pin":          func(p *build.Plan) { p.Pins = []build.Pin{{Name: "luci", Version: "1`id`"}} },
		"filesystem":   func(p *build.Plan) { p.Filesystem = "ext4 x" },
		"size":         func(p *build.Plan) { p.RootfsSizeMB = 100_000 },
		"repository":   func(p *build.Plan) { p.Repositories = []build.Repository{{Name: "a", URL: "file:///etc"}} },
		"mode":         func(p *build.Plan) { p.RepositoriesMode = "both" },
		"key":          func(p *build.Plan) { p.RepositoryKeys = []string{"x"} },
		"defaults":     func(p *build.Plan) { p.Defaults = "\x00" },
	} {
		plan := good
		alter(&plan)
		if err := plan.Check(); err == nil {
			t.Errorf("a plan with a bad %s passes", name)
		}
	}
}
