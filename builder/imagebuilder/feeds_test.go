package imagebuilder

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// writeFeeds returns what a job's own feeds and keys become over a tree with
// the list: names of files to their texts.
func writeFeeds(t *testing.T, apk bool, list string, plan build.Plan) map[string]string {
	t.Helper()
	tree, folder := t.TempDir(), t.TempDir()
	file := map[bool]string{false: "repositories.conf", true: "repositories"}[apk]
	if err := os.WriteFile(filepath.Join(tree, file), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	v := &View{out: filepath.Join(folder, outFolder), plan: &plan, setting: Setting{Folder: folder}, offered: offers{apk: apk}}
	if err := errors.Join(v.folders(), v.writeFeeds(tree)); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, pattern := range []string{"*", "keys/*"} {
		found, _ := filepath.Glob(filepath.Join(folder, feedsFolder, pattern))
		for _, name := range found {
			if text, err := os.ReadFile(name); err == nil {
				relative, _ := filepath.Rel(filepath.Join(folder, feedsFolder), name)
				files[relative] = string(text)
			}
		}
	}
	if v.ownFeeds != (len(files) > 0) {
		t.Errorf("the job's own feeds are used: %v, with %v", v.ownFeeds, files)
	}
	return files
}

const (
	opkgFeeds = "src/gz openwrt_core https://downloads.openwrt.org/core\nsrc/gz openwrt_base https://downloads.openwrt.org/base\nsrc imagebuilder file:packages\noption check_signature\n"
	apkFeeds  = "https://downloads.openwrt.org/core/packages.adb\nhttps://downloads.openwrt.org/base/packages.adb\n"
)

// TestOwnFeeds: the list of feeds and the keys of a job, in both formats.
func TestOwnFeeds(t *testing.T) {
	key, err := usign.Generate("own")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(strings.TrimSpace(string(key.Public().Marshal())), "\n")
	const pem = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
	own := []build.Repository{{Name: "b", URL: "https://feeds.example/b"}, {Name: "a", URL: "https://feeds.example/a/"}}
	for _, test := range []struct {
		name, list, mode string
		want             string
	}{
		{"opkg, append", opkgFeeds, "append", "src/gz request_b https://feeds.example/b\nsrc/gz request_a https://feeds.example/a/\n" + opkgFeeds},
		{"opkg, replace", opkgFeeds, "replace", "src/gz request_b https://feeds.example/b\nsrc/gz request_a https://feeds.example/a/\nsrc imagebuilder file:packages\noption check_signature\n"},
		{"apk, append", apkFeeds, "append", "https://feeds.example/b/packages.adb\nhttps://feeds.example/a/packages.adb\n" + apkFeeds},
		{"apk, replace", apkFeeds, "replace", "https://feeds.example/b/packages.adb\nhttps://feeds.example/a/packages.adb\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			apk := strings.HasPrefix(test.name, "apk")
			files := writeFeeds(t, apk, test.list, build.Plan{Repositories: own, RepositoriesMode: test.mode, RepositoryKeys: []string{line, pem}})
			if got := files["repositories.conf"] + files["repositories"]; got != test.want {
				t.Errorf("the list is\n%s, want\n%s", got, test.want)
			}
			public, err := usign.ParsePublicKey([]byte(files["keys/"+key.Public().Fingerprint.String()]))
			if err != nil || public.Fingerprint != key.Public().Fingerprint {
				t.Errorf("the usign key: %v (%v)", public, err)
			}
			if files["keys/request-1.pem"] != pem+"\n" || len(files) != 3 {
				t.Errorf("the files are %q", files)
			}
		})
	}
	if files := writeFeeds(t, false, opkgFeeds, build.Plan{}); len(files) != 0 {
		t.Errorf("a job without feeds has %q", files)
	}
}

// TestFeedNames: no name of a feed that passes the request's check can change
// the list beyond its own line, or take the place of a feed of the tree.
func TestFeedNames(t *testing.T) {
	tree := strings.Split(strings.TrimSpace(opkgFeeds), "\n")
	for _, name := range []string{
		"own", "openwrt_base", "imagebuilder", "option", "src", "a b", "a\nsrc/gz x http://evil.example", "a\tb", "a#b", "--x", "../../keys/x", "a/b", "$(id)", "a;b", "", "é", ".a", "a\x00b", strings.Repeat("a", 65),
	} {
		plan := build.Plan{
			Distribution: "OpenWrt", Version: "24.10.0", Target: "x86/64", Profile: "generic",
			Repositories: []build.Repository{{Name: name, URL: "https://feeds.example/x"}}, RepositoriesMode: "append",
		}
		if plan.Check() != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(writeFeeds(t, false, opkgFeeds, plan)["repositories.conf"]), "\n")
		if len(lines) != len(tree)+1 || !slices.Equal(lines[1:], tree) || lines[0] != "src/gz request_"+name+" https://feeds.example/x" {
			t.Errorf("%q makes the list %q", name, lines)
		}
		for _, line := range tree {
			if fields := strings.Fields(line); fields[1] == strings.Fields(lines[0])[1] {
				t.Errorf("%q takes the place of %q", name, line)
			}
		}
	}
	for _, name := range []string{"a b", "a\nb", "--x", "a/b", ""} {
		plan := build.Plan{Distribution: "OpenWrt", Version: "1", Target: "a/b", Profile: "x", Repositories: []build.Repository{{Name: name, URL: "https://feeds.example/x"}}}
		if plan.Check() == nil {
			t.Errorf("the feed name %q passes", name)
		}
	}
}

// TestFeedFailure: who brings feeds is told to look at them; a full disk and
// other people's feeds are not blamed on them.
func TestFeedFailure(t *testing.T) {
	own := &build.Plan{Repositories: []build.Repository{{Name: "a", URL: "https://feeds.example/a"}}}
	for _, test := range []struct {
		plan *build.Plan
		kind build.Kind
		said bool
	}{{own, build.KindUpstream, true}, {own, build.KindDisk, false}, {&build.Plan{}, build.KindUpstream, false}} {
		v := &View{plan: test.plan}
		if f := v.explainFeed(build.Fail(test.kind, "A feed failed.")); strings.Contains(f.Detail, "repository_keys") != test.said {
			t.Errorf("%+v: %s", test, f.Detail)
		}
	}
}
