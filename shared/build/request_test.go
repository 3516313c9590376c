package build_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

func baseRequest() build.Request { return build.Request{Version: "24.10.5", Target: "x86/64"} }

// fields are the texts of a request, each with what is good in it.
var fields = map[string]struct {
	set  func(*build.Request, string)
	good []string
}{
	"distro":       {func(r *build.Request, s string) { r.Distro = s }, []string{"", "openwrt", "OpenWrt", "Libre-Mesh_2"}},
	"version":      {func(r *build.Request, s string) { r.Version = s }, []string{"24.10.5", "SNAPSHOT", "24.10-SNAPSHOT", "25.12.0-rc1"}},
	"version_code": {func(r *build.Request, s string) { r.VersionCode = s }, []string{"", "r29087-d9c5716d1d", "r28427+12-6df0e3d02a"}},
	"target":       {func(r *build.Request, s string) { r.Target = s }, []string{"x86/64", "ath79/generic", "mediatek/filogic", "bcm27xx/bcm2711"}},
	"profile":      {func(r *build.Request, s string) { r.Profile = s }, []string{"", "generic", "tplink,archer-c7-v5", "tplink_archer-c7-v5", "8dev_carambola2"}},
	"model":        {func(r *build.Request, s string) { r.Model = s }, []string{"", "TP-Link Archer C7 v5 (US)", "QEMU Standard PC (i440FX + PIIX, 1996)", "Größe 1/2"}},
	"package":      {func(r *build.Request, s string) { r.Packages = []string{s} }, []string{"luci", "+luci", "-ppp", "libstdc++6", "base-files=1~r1", "kmod-usb3", "luci-i18n-base-zh_Hans"}},
	"pin name":     {func(r *build.Request, s string) { r.PackagesVersions = map[string]string{s: "1"} }, []string{"luci", "libstdc++6"}},
	"pin version":  {func(r *build.Request, s string) { r.PackagesVersions = map[string]string{"luci": s} }, []string{"26.123~abc-r1", "1:2.0_rc1", "2024.10+git"}},
	"filesystem":   {func(r *build.Request, s string) { r.Filesystem = s }, []string{"", "squashfs", "ext4", "jffs2-64k"}},
	"feed name": {func(r *build.Request, s string) {
		r.Repositories = []build.Repository{{Name: s, URL: "https://a.example/x"}}
	}, []string{"mine", "openwrt_core"}},
	"feed address": {func(r *build.Request, s string) { r.Repositories = []build.Repository{{Name: "a", URL: s}} }, []string{"https://a.example", "http://127.0.0.1:8080/a/b/", "https://a.example/x/packages.adb"}},
	"feed key":     {func(r *build.Request, s string) { r.RepositoryKeys = []string{s} }, []string{"RWQ" + strings.Repeat("A", 53), pemKey, strings.TrimSpace(pemKey)}},
	"client":       {func(r *build.Request, s string) { r.Client = s }, []string{"", "luci/26.123~abc", "auc (0.3.2)"}},
}

const pemKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElHAPZM9WHSF87oIYlGyHcD12ksOJ
qdOYcDYPvpLE8EUSd5ek/FWmxWHv3xhf61JqCWQjUIUFzNMZUzrWPvgoFQ==
-----END PUBLIC KEY-----
`

// hostile is what no field may hold: all of it means something to make, a
// shell, a path or a header.
var hostile = []string{
	"$(shell id)", "${HOME}", "`id`", "a;id", "a&b", "a|b", "a>b", "a<b", "a\nb", "a\x00b", "a\tb", "a'b", `a"b`, `a\b`, "a*b", "a%b",
	"$$", "!x", "{a,b}", "~root/x", "\xff", "a\u2028b", " a", "a\r\nX-Header: y",
}

func TestRequestFields(t *testing.T) {
	for name, f := range fields {
		t.Run(name, func(t *testing.T) {
			for _, value := range f.good {
				r := baseRequest()
				f.set(&r, value)
				if err := r.Check(); err != nil {
					t.Errorf("%q is refused: %v", value, err)
				}
			}
			for _, value := range append(hostile, "../"+f.good[len(f.good)-1]+"/..", strings.Repeat("a", 3000)) {
				if name == "client" && value == "a;id" {
					continue // user agents have semicolons, and reach no shell
				}
				r := baseRequest()
				f.set(&r, value)
				wantInvalid(t, r.Check(), value)
			}
		})
	}
}

func wantInvalid(t testing.TB, err error, value string) {
	t.Helper()
	var refusal *build.Refusal
	if !errors.As(err, &refusal) || refusal.Code != build.CodeInvalid {
		t.Errorf("%.60q is not refused as invalid: %v", value, err)
		return
	}
	if len(refusal.Detail) > 600 || strings.ContainsAny(refusal.Detail, "\x00\r\n\t\x7f") || !utf8.ValidString(refusal.Detail) {
		t.Errorf("the sentence about %.60q passes its characters on: %q", value, refusal.Detail)
	}
}

func TestRequestLimits(t *testing.T) {
	many := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("package-%d", i))
		}
		return list
	}
	feeds := func(n int) (list []build.Repository) {
		for _, name := range many(n) {
			list = append(list, build.Repository{Name: name, URL: "https://a.example/" + name})
		}
		return list
	}
	keys := func(n int) (list []string) {
		for range n {
			list = append(list, "RWQ"+strings.Repeat("A", 53))
		}
		return list
	}
	for _, test := range []struct {
		name  string
		good  bool
		alter func(*build.Request)
	}{
		{"nothing but what is needed", true, func(*build.Request) {}},
		{"no version", false, func(r *build.Request) { r.Version = "" }},
		{"no target", false, func(r *build.Request) { r.Target = "" }},
		{"a target without subtarget", false, func(r *build.Request) { r.Target = "x86" }},
		{"1000 packages", true, func(r *build.Request) { r.Packages = many(1000) }},
		{"1001 packages", false, func(r *build.Request) { r.Packages = many(1001) }},
		{"1000 packages and a pin", false, func(r *build.Request) { r.Packages, r.PackagesVersions = many(1000), map[string]string{"a": "1"} }},
		{"an empty package", false, func(r *build.Request) { r.Packages = []string{""} }},
		{"a sign without a package", false, func(r *build.Request) { r.Packages = []string{"-"} }},
		{"an empty version pin", false, func(r *build.Request) { r.Packages = []string{"luci="} }},
		{"the largest image", true, func(r *build.Request) { r.RootfsSizeMB = build.MaxRootfsSizeMB }},
		{"a larger image", false, func(r *build.Request) { r.RootfsSizeMB = build.MaxRootfsSizeMB + 1 }},
		{"a negative size", false, func(r *build.Request) { r.RootfsSizeMB = -1 }},
		{"the longest script", true, func(r *build.Request) { r.Defaults = strings.Repeat("x", build.MaxDefaults) }},
		{"a longer script", false, func(r *build.Request) { r.Defaults = strings.Repeat("x", build.MaxDefaults+1) }},
		{"any text in a script", true, func(r *build.Request) { r.Defaults = "#!/bin/sh\n$(id) `id` \"grüße\" \t\\ 😀\r\n" }},
		{"a script that is no text", false, func(r *build.Request) { r.Defaults = "\xff" }},
		{"a script with a zero byte", false, func(r *build.Request) { r.Defaults = "a\x00" }},
		{"32 feeds", true, func(r *build.Request) { r.Repositories = feeds(32) }},
		{"33 feeds", false, func(r *build.Request) { r.Repositories = feeds(33) }},
		{"a feed twice", false, func(r *build.Request) { r.Repositories = append(feeds(1), feeds(1)...) }},
		{"a feed that climbs", false, func(r *build.Request) {
			r.Repositories = []build.Repository{{Name: "a", URL: "https://a.example/../x"}}
		}},
		{"16 keys", true, func(r *build.Request) { r.RepositoryKeys = keys(16) }},
		{"17 keys", false, func(r *build.Request) { r.RepositoryKeys = keys(17) }},
		{"feeds appended", true, func(r *build.Request) { r.RepositoriesMode = "append" }},
		{"feeds in another mode", false, func(r *build.Request) { r.RepositoriesMode = "merge" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := baseRequest()
			test.alter(&r)
			if err := r.Check(); test.good && err != nil {
				t.Errorf("refused: %v", err)
			} else if !test.good {
				wantInvalid(t, err, test.name)
			}
		})
	}
}

// FuzzRequest: whatever passes the check holds nothing that make, a shell or a
// path takes for more than a name. Only the script may, which reaches none.
func FuzzRequest(f *testing.F) {
	f.Add("24.10.5", "x86/64", "generic", "luci", "1.0", "squashfs", "https://a.example/x", "luci/1")
	for _, s := range hostile {
		f.Add("24.10.5", "x86/64", s, s, s, s, s, s)
	}
	f.Fuzz(func(t *testing.T, version, target, profile, pkg, pin, filesystem, url, client string) {
		r := build.Request{
			Distro: version, Version: version, VersionCode: version, Target: target, Profile: profile,
			Packages: []string{pkg}, PackagesVersions: map[string]string{"luci": pin}, Filesystem: filesystem,
			Repositories: []build.Repository{{Name: profile, URL: url}}, RepositoryKeys: []string{pin}, Client: client,
		}
		for _, one := range []build.Request{r, {Version: version, Target: target, Packages: []string{pkg}}} {
			if one.Check() == nil {
				wantHarmless(t, one)
			}
		}
	})
}

func wantHarmless(t *testing.T, r build.Request) {
	t.Helper()
	r.Client = "" // is shown, and reaches neither
	v := reflect.ValueOf(r)
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			if s := v.String(); strings.ContainsAny(s, "$`\\\"'();&|<>*?[]{}!#% \n\r\t\x00") || strings.Contains(s, "/..") || len(s) > 600 {
				t.Errorf("the check passes %q", s)
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Map:
			for _, key := range v.MapKeys() {
				walk(key)
				walk(v.MapIndex(key))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i))
			}
		}
	}
	walk(v)
}

// TestNoKeys: what looks like a key and is none is refused at once, and not by
// a build.
func TestNoKeys(t *testing.T) {
	good := "RWRNAX5vHtXWFmt+n5di7XX8rTu0w+c8X7Ihv4oCyD6tzsUwmH0A6kO0"
	for name, key := range map[string]string{
		"too short": good[:55], "too long": good + "A", "with an end": good[:54] + "==", "of another kind": "A" + good[1:], "another letter": "RWU" + good[3:],
		"all the same": strings.Repeat("A", 56), "a signature": good + good[:44], "PEM of nothing": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"PEM of no base64": strings.Replace(pemKey, "A", "=", 1), "cut PEM": strings.Replace(pemKey, "qdOYcDYP", "", 1), "more than a key": strings.Replace(pemKey, "FQ==", "FQAAAA==", 1),
		"PEM of a usign key": "-----BEGIN PUBLIC KEY-----\n" + good + "\n-----END PUBLIC KEY-----\n", "two": pemKey + pemKey,
	} {
		r := baseRequest()
		r.RepositoryKeys = []string{key}
		wantInvalid(t, r.Check(), name)
	}
}
