package changes

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// has is a release with those packages.
func has(names string) func(string) bool {
	list := strings.Fields(names)
	return func(name string) bool { return slices.Contains(list, name) }
}

// brief words changes as "auc>owut".
func brief(list []Change) string {
	var words []string
	for _, c := range list {
		words = append(words, c.From+">"+c.To)
	}
	return strings.Join(words, " ")
}

func sorted(list []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(list))), " ")
}

// defaults2512 is what an image of mediatek/filogic holds in 25.12, as far as
// that matters here.
const (
	defaults2410 = "base-files busybox dnsmasq dropbear firewall4 fitblk fstools kmod-nft-offload libustream-mbedtls logd opkg odhcpd-ipv6only ppp procd-ujail wpad-basic-mbedtls"
	defaults2512 = "apk-mbedtls base-files dnsmasq dropbear firewall4 fitblk fstools kmod-nft-offload libustream-mbedtls logd odhcpd-ipv6only ppp procd-ujail wpad-basic-mbedtls"
	release2512  = defaults2512 + " apk-openssl luci luci-app-package-manager luci-i18n-package-manager-de luci-i18n-base-de owut nano kmod-nft-nat dnsmasq-full wpad-openssl"
)

func TestApply(t *testing.T) {
	for name, tt := range map[string]struct {
		version, revision string // 25.12.1 if empty
		packages          string
		has               string // release2512 if empty
		want              string // packages, sorted
		changes           string
	}{
		"nothing to do":                       {packages: "luci nano -ppp", want: "-ppp luci nano"},
		"a rename":                            {packages: "auc nano", want: "nano owut", changes: "auc>owut"},
		"not before its branch":               {version: "23.05.5", packages: "auc", has: "auc", want: "auc"},
		"not while the old name is there":     {packages: "auc", has: "auc owut", want: "auc"},
		"not if the new name is not there":    {packages: "auc", has: "nano", want: "auc"},
		"always":                              {version: "22.03.7", packages: "firewall", has: "firewall firewall4", want: "firewall4", changes: "firewall>firewall4"},
		"removals follow":                     {packages: "-firewall luci", want: "-firewall4 luci", changes: "-firewall>-firewall4"},
		"a removal yields to a wish":          {packages: "-firewall firewall4", want: "firewall4"},
		"a wish by the old name, too":         {packages: "-libustream-wolfssl libustream-mbedtls", want: "libustream-mbedtls"},
		"what is left out stays out":          {packages: "firewall -firewall4", want: "-firewall4 firewall"},
		"a drop":                              {packages: "kmod-nft-nat6 kmod-nft-nat", want: "kmod-nft-nat", changes: "kmod-nft-nat6>"},
		"a removal of what is gone":           {packages: "-kmod-nft-nat6 luci", want: "luci"},
		"a version is forgotten":              {packages: "auc=1.0 base-files=1~r1", want: "base-files=1~r1 owut", changes: "auc>owut"},
		"an app and its language pack":        {packages: "luci-app-opkg luci-i18n-opkg-de", want: "luci-app-package-manager luci-i18n-package-manager-de", changes: "luci-app-opkg>luci-app-package-manager luci-i18n-opkg-de>luci-i18n-package-manager-de"},
		"a language that the new app has not": {packages: "luci-i18n-opkg-zh-cn luci", want: "luci", changes: "luci-i18n-opkg-zh-cn>"},
		"no language pack":                    {packages: "luci-i18n-opkg-other-thing", want: "luci-i18n-opkg-other-thing"},
		"an English pack":                     {packages: "luci-i18n-base-en luci-i18n-base-de", want: "luci-i18n-base-de", changes: "luci-i18n-base-en>"},
		"the package manager":                 {packages: "opkg luci", want: "apk-mbedtls luci", changes: "opkg>apk-mbedtls"},
		"another apk serves as well":          {packages: "opkg apk-openssl", want: "apk-openssl", changes: "opkg>apk-openssl"},
		"a snapshot before the revision":      {version: "SNAPSHOT", revision: "r26000-0123456789", packages: "auc", want: "auc"},
		"a snapshot after it":                 {version: "SNAPSHOT", revision: "r32500+3-0123456789", packages: "auc", want: "owut", changes: "auc>owut"},
		"a snapshot of a branch":              {version: "24.10-SNAPSHOT", revision: "r28000-0", packages: "auc", want: "owut", changes: "auc>owut"},
		"a version of another scheme":         {version: "gluon", packages: "auc", want: "auc"},
	} {
		t.Run(name, func(t *testing.T) {
			img := &Image{Version: or(tt.version, "25.12.1"), Revision: tt.revision, Target: "mediatek/filogic", Profile: "p", Packages: strings.Fields(tt.packages), Has: has(or(tt.has, release2512))}
			out := Builtin().Apply(img)
			if got := sorted(out.Packages); got != tt.want {
				t.Errorf("packages are %q, want %q", got, tt.want)
			}
			if got := brief(out.Changes); got != tt.changes {
				t.Errorf("changes are %q, want %q", got, tt.changes)
			}
			if (out.Rules != "") != (tt.changes != "") {
				t.Errorf("rules are %q with changes %q", out.Rules, tt.changes)
			}
			for _, c := range out.Changes {
				if c.Reason == "" {
					t.Errorf("no reason for %v", c)
				}
			}
		})
	}
}

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

// TestNewDefaultsStay is what a router on 24.10 or older sends when it wants
// 25.12: its packages, in which the new defaults cannot be.
func TestNewDefaultsStay(t *testing.T) {
	for name, tt := range map[string]struct {
		target, profile string // mediatek/filogic if empty
		packages        string
		defaults        string // defaults2512 if empty
		before          []string
		want            string // mandatory among the defaults
		changes         string
	}{
		"from 24.10": {packages: defaults2410, want: "apk-mbedtls fitblk kmod-nft-offload procd-ujail", changes: "opkg>apk-mbedtls"},
		"from 23.05, before fitblk": {
			packages: strings.Replace(defaults2410, "fitblk", "", 1),
			want:     "apk-mbedtls fitblk kmod-nft-offload procd-ujail", changes: ">fitblk opkg>apk-mbedtls",
		},
		"from 21.02": {
			packages: "base-files busybox dnsmasq dropbear firewall ip6tables kmod-ipt-offload libustream-wolfssl opkg wpad-basic-wolfssl",
			want:     "apk-mbedtls fitblk kmod-nft-offload procd-ujail",
			changes:  ">fitblk >kmod-nft-offload >procd-ujail firewall>firewall4 libustream-wolfssl>libustream-mbedtls opkg>apk-mbedtls wpad-basic-wolfssl>wpad-basic-mbedtls",
		},
		"a dumb access point without a firewall gets none": {packages: "base-files dropbear opkg fitblk procd-ujail", want: "apk-mbedtls fitblk procd-ujail", changes: "opkg>apk-mbedtls"},
		"only a minus removes":                             {packages: "base-files dropbear opkg fitblk -procd-ujail", want: "apk-mbedtls fitblk procd-ujail", changes: "opkg>apk-mbedtls"},
		"another apk":                                      {packages: "base-files dropbear apk-openssl fitblk procd-ujail", want: "fitblk procd-ujail"},
		"the switch of a device": {
			target: "lantiq/xrx200", profile: "bt_homehub-v5a", packages: "base-files opkg procd-ujail", defaults: "base-files apk-mbedtls procd-ujail kmod-dsa-gswip",
			want: "apk-mbedtls kmod-dsa-gswip procd-ujail", changes: ">kmod-dsa-gswip opkg>apk-mbedtls",
		},
		"what the table does not know": {
			packages: defaults2410, defaults: defaults2512 + " kmod-brand-new", before: []string{defaults2410},
			want: "apk-mbedtls fitblk kmod-brand-new kmod-nft-offload procd-ujail", changes: ">kmod-brand-new opkg>apk-mbedtls",
		},
		"new to one of the older branches is new": {
			packages: "base-files apk-mbedtls fitblk procd-ujail", before: []string{strings.Replace(defaults2410, "ppp", "", 1), defaults2410},
			want: "apk-mbedtls fitblk ppp procd-ujail", changes: ">ppp",
		},
		"an old default under its old name is none": {
			packages: "base-files opkg fitblk procd-ujail", before: []string{strings.NewReplacer("firewall4", "firewall", "-mbedtls", "-wolfssl").Replace(defaults2410)},
			want: "apk-mbedtls fitblk procd-ujail", changes: "opkg>apk-mbedtls",
		},
	} {
		t.Run(name, func(t *testing.T) {
			defaults := or(tt.defaults, defaults2512)
			img := &Image{
				Version: "25.12.1", Target: or(tt.target, "mediatek/filogic"), Profile: tt.profile, Packages: strings.Fields(tt.packages), Exact: true,
				Defaults: strings.Fields(defaults), Has: has(defaults + " " + release2512),
			}
			for _, list := range tt.before {
				img.Before = append(img.Before, strings.Fields(list))
			}
			out := Builtin().Apply(img)
			var among []string
			for _, name := range out.Mandatory {
				if slices.Contains(img.Defaults, name) {
					among = append(among, name)
				}
			}
			if got := sorted(among); got != tt.want {
				t.Errorf("mandatory are %q, want %q", got, tt.want)
			}
			if got := brief(out.Changes); got != tt.changes {
				t.Errorf("changes are %q, want %q", got, tt.changes)
			}
		})
	}
}

// TestOnlyExactListsLackDefaults: a list that adds to the defaults lacks none,
// nor does an empty one, which means the stock image. What stays is no rule.
func TestOnlyExactListsLackDefaults(t *testing.T) {
	img := Image{Version: "25.12.1", Target: "mediatek/filogic", Packages: []string{"luci", "auc"}, Defaults: strings.Fields(defaults2512), Has: has(release2512)}
	if out := Builtin().Apply(&img); brief(out.Changes) != "auc>owut" || !slices.Contains(out.Mandatory, "fitblk") {
		t.Errorf("changes are %q, mandatory %q", brief(out.Changes), out.Mandatory)
	}
	exact := img
	exact.Exact = true
	if a, b := Builtin().Apply(&img), Builtin().Apply(&exact); a.Rules != b.Rules || len(b.Changes) < 4 {
		t.Errorf("the rules are %s and, with %v, %s", a.Rules, b.Changes, b.Rules)
	}
	exact.Packages = []string{"-ppp"}
	if out := Builtin().Apply(&exact); len(out.Changes) > 0 {
		t.Errorf("the stock image has changes: %v", out.Changes)
	}
}

func TestVersionsFollow(t *testing.T) {
	img := &Image{Version: "24.10.5", Versions: map[string]string{"auc": "0.3", "nano": "8.3"}, Has: has("owut nano")}
	out := Builtin().Apply(img)
	if !reflect.DeepEqual(out.Versions, map[string]string{"nano": "8.3"}) || sorted(out.Packages) != "owut" {
		t.Errorf("versions %v and packages %v", out.Versions, out.Packages)
	}
	if img.Versions["auc"] == "" {
		t.Error("the request itself was changed")
	}
}

// TestDigest: the digest is over what was done, so a table that changed
// elsewhere makes no other build.
func TestDigest(t *testing.T) {
	apply := func(packages string) string {
		return Builtin().Apply(&Image{Version: "25.12.1", Packages: strings.Fields(packages), Has: has(release2512)}).Rules
	}
	if apply("auc nano") != apply("nano luci auc auc") {
		t.Error("the same rules have two digests")
	}
	if apply("auc") == apply("opkg") || apply("auc") == apply("-auc owut") {
		t.Error("other rules have the same digest")
	}
	if digest([]Change{{From: "a", To: "bc"}}) == digest([]Change{{From: "ab", To: "c"}}) {
		t.Error("names run into each other")
	}
	if apply("owut") != "" || len(apply("auc")) != 64 {
		t.Errorf("digests %q and %q", apply("owut"), apply("auc"))
	}
}

// TestProperties tries lists at random, of the table's names and others, over
// releases that have any of them.
func TestProperties(t *testing.T) {
	table := Builtin()
	var pool []string
	for _, row := range table.packages {
		pool = append(pool, strings.Replace(row.From, "*", "x", 1))
		pool = append(pool, row.To...)
	}
	pool = append(pool, strings.Fields("luci nano luci-i18n-opkg-de luci-i18n-package-manager-de luci-i18n-opkg-pt-br apk-openssl fitblk procd-ujail")...)
	versions := []string{"21.02.7", "22.03.7", "23.05.6", "24.10.5", "25.12.1", "25.12-SNAPSHOT", "SNAPSHOT"}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		release := map[string]bool{}
		for _, name := range pool {
			release[name] = r.IntN(3) > 0
		}
		img := Image{
			Version: versions[r.IntN(len(versions))], Revision: fmt.Sprintf("r%d-abc", 15000+r.IntN(25000)), Target: "mediatek/filogic", Exact: r.IntN(2) == 0,
			Has: func(name string) bool { return release[name] }, Versions: map[string]string{pool[r.IntN(len(pool))]: "1"},
		}
		for range r.IntN(12) {
			img.Packages = append(img.Packages, []string{"", "", "-"}[r.IntN(3)]+pool[r.IntN(len(pool))])
		}
		holds(t, table, img, r)
	}
}

func holds(t *testing.T, table *Table, img Image, r *rand.Rand) {
	t.Helper()
	before := slices.Clone(img.Packages)
	out := table.Apply(&img)
	if !slices.Equal(before, img.Packages) {
		t.Fatalf("the request itself was changed: %q", img.Packages)
	}
	again := img
	again.Packages, again.Versions = out.Packages, out.Versions
	if second := table.Apply(&again); sorted(second.Packages) != sorted(out.Packages) || second.Rules != "" || !reflect.DeepEqual(second.Mandatory, out.Mandatory) {
		t.Fatalf("%s %q became %q, and then %q", img.Version, before, out.Packages, second.Packages)
	}
	mixed := img
	mixed.Packages = slices.Clone(img.Packages)
	r.Shuffle(len(mixed.Packages), func(i, k int) { mixed.Packages[i], mixed.Packages[k] = mixed.Packages[k], mixed.Packages[i] })
	third := table.Apply(&mixed)
	if sorted(third.Packages) != sorted(out.Packages) || third.Rules != out.Rules || !reflect.DeepEqual(third.Changes, out.Changes) {
		t.Fatalf("%s %q became %q, and in another order %q", img.Version, before, out.Packages, third.Packages)
	}
	for _, name := range out.Packages {
		asked := slices.Contains(before, name) || img.Versions[name] != ""
		if short := strings.TrimPrefix(name, "-"); !asked && !img.Has(short) {
			t.Fatalf("%s %q became %q, but the release has no %q", img.Version, before, out.Packages, short)
		}
		if asked || strings.HasPrefix(name, "-") {
			continue
		}
		if slices.Contains(before, "-"+name) {
			t.Fatalf("%s: %q left %q out, and it came in", img.Version, before, name)
		}
	}
}
