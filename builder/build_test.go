package builder_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestResult: what a finished build leaves, for every format of archive and
// packages.
func TestResult(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: instant.Options{Versions: instant.Versions}, workers: 2})
	for _, test := range []struct {
		version, target, profile string
		images                   int
	}{
		{"23.05.5", "x86/64", "generic", 6},
		{"24.10.0", "ath79/generic", "tplink_archer-c7-v2", 2},
		{"25.12.0", "x86/64", "generic", 6},
		{"SNAPSHOT", "ath79/generic", "8dev_carambola2", 1},
	} {
		t.Run(test.version+" "+test.profile, func(t *testing.T) {
			s := s.in(t)
			rec := s.build(build.Request{Version: test.version, Target: test.target, Profile: test.profile, Packages: []string{"jansson", "htop"}})
			result := s.done(rec)
			if len(result.Images) != test.images || result.Profile.VersionCode != rec.Plan.Revision {
				t.Errorf("%d images of revision %s, want %d of %s", len(result.Images), result.Profile.VersionCode, test.images, rec.Plan.Revision)
			}
			for name, version := range map[string]string{"jansson": "2.14-r3", "htop": "3.3.0-r1", "libubox": "2024.03.29~eb9bcb64-r1"} {
				if result.Manifest[name] != version {
					t.Errorf("the manifest says %s %q, want %q", name, result.Manifest[name], version)
				}
			}
			wantProvenance(t, s, rec)
			wantText(t, result.Stdout, "Building images for ", "Installing packages...")
			if result.Timings["make"] <= 0 || !strings.HasPrefix(result.Command, "make image PROFILE="+test.profile+" ") {
				t.Errorf("timings %v, command %q", result.Timings, result.Command)
			}
		})
	}
	s.clean()
}

// TestSlowCertifier: a result is signed within the dates of its key, however
// long that took to come.
func TestSlowCertifier(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{certify: 1100 * time.Millisecond})
	s.done(s.build(request()))
}

// wantProvenance: the record and the signed build.json say the same, the index
// leads to the build, the log is there.
func wantProvenance(t *testing.T, s *site, rec build.Record) {
	t.Helper()
	if want := build.Prefix(rec.ID, rec.Attempt, false); rec.Result.Prefix != want {
		t.Errorf("the result lies at %s, want %s", rec.Result.Prefix, want)
	}
	var p build.Provenance
	if err := json.Unmarshal(s.object(rec.Result.Prefix+"build.json"), &p); err != nil {
		t.Fatal(err)
	}
	if text(t, p.Result) != text(t, rec.Result) || text(t, p.Plan) != text(t, rec.Plan) || p.RequestHash != rec.ID || p.Attempt != rec.Attempt {
		t.Errorf("build.json is %+v, the record %+v", p, rec)
	}
	if id := string(s.object(build.ImageIndex(rec.Result.ImageHash))); id != string(rec.ID) {
		t.Errorf("the index has %s, want %s", id, rec.ID)
	}
	wantText(t, string(s.object(rec.Result.Prefix+rec.Result.Log)), "$ "+rec.Result.Command, rec.Result.Stdout)
}

func text(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantText(t testing.TB, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

// TestMechanisms: every way to confine a job that there is here gives the same
// bytes.
func TestMechanisms(t *testing.T) {
	t.Parallel()
	support, err := machine()
	if err != nil {
		t.Fatal(err)
	}
	var first map[string]string
	for _, test := range []setting{{mechanism: support.Mechanism}, {mechanism: support.Mechanism, copy: true}, {mechanism: sandbox.Plain}} {
		s := newSite(t, test)
		result := s.done(s.build(request("nano")))
		if first == nil {
			first = sums(result)
		}
		if !maps.Equal(first, sums(result)) {
			t.Errorf("%s, copy %t gives other images", test.mechanism, test.copy)
		}
		s.clean()
	}
}

// TestFilesystem: one file system on every version; what a target cannot make
// is replaced and said.
func TestFilesystem(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: instant.Options{Versions: instant.Versions}, workers: 2})
	for _, version := range instant.Versions {
		all := s.done(s.build(build.Request{Version: version, Target: "x86/64", Profile: "generic"}))
		for _, test := range []struct{ asked, got, note string }{
			{"ext4", "ext4", ""}, {"squashfs", "squashfs", ""}, {"ubifs", "squashfs", "cannot make ubifs"}, {"initramfs", "squashfs", "cannot make initramfs"},
		} {
			t.Run(version+" "+test.asked, func(t *testing.T) {
				t.Parallel()
				s := s.in(t)
				result := s.done(s.build(build.Request{Version: version, Target: "x86/64", Profile: "generic", Filesystem: test.asked}))
				for name, sum := range sums(result) {
					if !strings.HasPrefix(name, test.got+" ") {
						t.Errorf("there is an image %q", name)
					}
					if sum != sums(all)[name] {
						t.Errorf("%s has other bytes than in a build of all file systems", name)
					}
				}
				if len(result.Images) != 3 || len(result.Notes) != min(1, len(test.note)) {
					t.Errorf("%d images, notes %q", len(result.Images), result.Notes)
				}
				wantText(t, strings.Join(result.Notes, ""), test.note)
			})
		}
	}
	// A target with one file system takes the plain way.
	rec := s.build(build.Request{Version: "24.10.0", Target: "ath79/generic", Profile: "8dev_carambola2", Filesystem: "ext4"})
	wantText(t, strings.Join(s.done(rec).Notes, ""), "cannot make ext4")
	wantText(t, rec.Result.Command, "make image ")
}

// TestOptions: what a request asks reaches make, and nothing else does.
func TestOptions(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{workers: 2})
	plain := s.done(s.build(request("nano")))
	if strings.Contains(plain.Command, "FILES") || strings.Contains(plain.Command, "PARTSIZE") {
		t.Errorf("a plain build was called as %s", plain.Command)
	}
	for _, test := range []struct {
		name    string
		change  func(*build.Request)
		command []string
		same    bool // as the plain images
	}{
		{"size of the root file system", func(r *build.Request) { r.RootfsSizeMB = 200 }, []string{"ROOTFS_PARTSIZE=200"}, false},
		{"size with one file system", func(r *build.Request) { r.RootfsSizeMB, r.Filesystem = 200, "ext4" }, []string{"CONFIG_TARGET_ROOTFS_PARTSIZE=200"}, false},
		{"a removal", func(r *build.Request) { r.Packages = append(r.Packages, "-dnsmasq") }, []string{`PACKAGES="nano -dnsmasq"`}, false},
		{"exactly these packages", func(r *build.Request) {
			r.DiffPackages = true
			r.Packages = []string{"nano", "base-files", "busybox", "libc", "kernel", "procd", "opkg"}
		}, []string{" -dnsmasq ", " -netifd ", `PACKAGES="nano -`}, false},
		{"pins that hold", func(r *build.Request) {
			r.PackagesVersions = map[string]string{"nano": "8.3-r1", "libubox": "2024.03.29~eb9bcb64-r1", "kernel": "1-of-the-router"}
		}, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, r := s.in(t), request("nano")
			test.change(&r)
			result := s.done(s.build(r))
			wantText(t, result.Command, test.command...)
			if maps.Equal(sums(result), sums(plain)) != test.same {
				t.Errorf("the images are those of a plain build: %t, want %t", !test.same, test.same)
			}
			if strings.Contains(test.name, "these") && (result.Manifest["dnsmasq"] != "" || result.Manifest["kernel"] == "") {
				t.Errorf("the manifest is %v", result.Manifest)
			}
		})
	}
}

// TestDefaults: the script reaches the image and nothing else; its build is
// private in every way.
func TestDefaults(t *testing.T) {
	t.Parallel()
	const secret = "uci set wireless.default_radio0.key='correct horse'"
	s := newSite(t, setting{workers: 1})
	r := request("nano")
	r.Defaults = "#!/bin/sh\n" + secret + "\n"
	r.RootfsSizeMB = 999
	rec := s.build(r)
	result := s.done(rec)
	wantText(t, string(image(s, result, "squashfs combined")), "file ./etc/uci-defaults/99-asu-defaults\n", secret)
	wantText(t, result.Command, "FILES=")
	if result.Prefix != fmt.Sprintf("store/private/%s/%s/", rec.ID, rec.Attempt) || result.ImageHash != string(rec.ID) {
		t.Errorf("prefix %s, image hash %s", result.Prefix, result.ImageHash)
	}
	if left := rec.ExpiresAt.Sub(rec.EndedAt); left != 30*time.Minute {
		t.Errorf("it is answered for %s", left)
	}
	for _, name := range []string{"build.json", result.Log, "sha256sums", "profiles.json"} {
		if bytes.Contains(s.object(result.Prefix+name), []byte(secret)) {
			t.Errorf("the script is in %s", name)
		}
	}
	if keys := s.keysBelow("index/"); len(keys) > 0 {
		t.Errorf("the index has %q", keys)
	}
	if strings.Contains(text(t, rec), "correct horse") {
		t.Error("the script is in the record after the end")
	}
	s.wantSilent(rec.ID, secret, "99-asu-defaults")

	r.Packages = []string{"no-such-pkg"}
	rec = s.build(r)
	s.failed(rec, build.KindUnknownPackage)
	s.wantLogged(rec)
	if strings.Contains(text(t, rec), "correct horse") || !strings.HasPrefix(rec.Failure.Prefix, "store/private/") {
		t.Errorf("a private failure has its log at %s, the record is %s", rec.Failure.Prefix, text(t, rec))
	}
	s.wantSilent(rec.ID, secret)
	s.clean()
}

// wantSilent holds that the server's own log has none of the words, nor the
// ID, which opens a build's files.
func (s *site) wantSilent(id build.ID, words ...string) {
	s.Helper()
	s.settled() // what is logged at the end comes after the commit
	log := s.log.String()
	if !strings.Contains(log, id.Short()) {
		s.Errorf("the log does not speak of the build at all:\n%s", log)
	}
	for _, word := range append(words, string(id)) {
		if strings.Contains(log, word) {
			s.Errorf("%q is in the log:\n%s", word, log)
		}
	}
}

func image(s *site, result *build.Result, name string) []byte {
	s.Helper()
	i := slices.IndexFunc(result.Images, func(i build.Image) bool { return i.Filesystem+" "+i.Type == name })
	if i < 0 {
		s.Fatalf("there is no image %q", name)
	}
	return s.object(result.Prefix + result.Images[i].Name)
}

// TestDefaultsAreClosed: while a job runs, no other job's user can read its
// script.
func TestDefaultsAreClosed(t *testing.T) {
	t.Parallel()
	var s *site
	var open []string
	s = newSite(t, setting{hook: func(step build.Step, after bool) {
		if step == build.StepMake && !after {
			open = readableByOthers(s.setting.scratch)
		}
	}})
	r := request()
	r.Defaults = "secret"
	s.done(s.build(r))
	if len(open) > 0 {
		t.Errorf("everybody can read %q", open)
	}
}

// readableByOthers lists the files that a stranger could reach.
func readableByOthers(folder string) (list []string) {
	entries, _ := os.ReadDir(folder)
	for _, entry := range entries {
		name := filepath.Join(folder, entry.Name())
		info, err := entry.Info()
		switch {
		case err != nil:
		case entry.IsDir() && info.Mode()&0o001 != 0:
			list = append(list, readableByOthers(name)...)
		case info.Mode().IsRegular() && info.Mode()&0o004 != 0:
			list = append(list, name)
		}
	}
	return list
}

// TestLocalSignature: what is served is what the ImageBuilder made before the
// tree signed it.
func TestLocalSignature(t *testing.T) {
	t.Parallel()
	versions := []string{"23.05.5", "24.10.0"}
	signed := newSite(t, setting{upstream: instant.Options{Versions: versions, LocalSignature: true}, workers: 2})
	plain := newSite(t, setting{upstream: instant.Options{Versions: versions}, workers: 2})
	for _, version := range versions {
		for _, filesystem := range []string{"", "squashfs"} {
			r := build.Request{Version: version, Target: "x86/64", Profile: "generic", Filesystem: filesystem}
			want, got := plain.done(plain.build(r)), signed.done(signed.build(r))
			if !maps.Equal(sums(want), sums(got)) {
				t.Errorf("%s %q: the images differ from those of a tree that does not sign", version, filesystem)
			}
			for _, image := range got.Images {
				if image.SHA256 != image.SHA256Unsigned {
					t.Errorf("%s: sha256 %s, unsigned %s", image.Name, image.SHA256, image.SHA256Unsigned)
				}
				wantText(t, string(signed.object(got.Prefix+"sha256sums")), image.SHA256+" *"+image.Name+"\n")
				wantText(t, string(signed.object(got.Prefix+"profiles.json")), `"name":"`+image.Name+`","sha256":"`+image.SHA256+`","sha256_unsigned":"`+image.SHA256+`"`)
			}
			if filesystem == "" {
				wantText(t, got.Stderr, "Generate local signing keys...") // else this test tests nothing
			}
		}
	}
}

// TestRepositories: feeds and keys of a request reach its own job and no other.
func TestRepositories(t *testing.T) {
	t.Parallel()
	const key = "RWRoKXAGS4epF5gGGh7tVQxiJIuZWQ0geStqgCkwRyviQCWXpufBggaP"
	// The job shows what it sees.
	show := `for f in repositories.conf repositories keys/*; do [ ! -e "$f" ] || sed "s|^|$f: |" "$f"; done`
	s := newSite(t, setting{upstream: instant.Options{Versions: []string{"24.10.0", "25.12.0"}, Before: show}, workers: 2})
	before := s.treeDigestAfter(request("htop"), build.Request{Version: "25.12.0", Target: "x86/64", Profile: "generic"})
	for _, test := range []struct {
		name, version, mode string
		has, lacks          []string
	}{
		{"opkg replaces", "24.10.0", "replace", []string{"repositories.conf: src/gz request_mine https://feeds.example.org/mine\n", "src imagebuilder file:packages\n", "option check_signature\n"}, []string{"src/gz openwrt_core"}},
		{"opkg appends", "24.10.0", "append", []string{"repositories.conf: src/gz request_mine https://feeds.example.org/mine\n", "src/gz openwrt_core"}, nil},
		{"apk replaces", "25.12.0", "replace", []string{"repositories: https://feeds.example.org/mine/packages.adb\n"}, []string{"/packages/x86_64/base/packages.adb"}},
		{"apk appends", "25.12.0", "append", []string{"repositories: https://feeds.example.org/mine/packages.adb\n", "/packages/x86_64/base/packages.adb"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := s.in(t)
			result := s.done(s.build(build.Request{
				Version: test.version, Target: "x86/64", Profile: "generic", RepositoriesMode: test.mode,
				Repositories: []build.Repository{{Name: "mine", URL: "https://feeds.example.org/mine"}}, RepositoryKeys: []string{key},
			}))
			log := string(s.object(result.Prefix + result.Log))
			wantText(t, log, test.has...)
			wantText(t, log, "keys/682970064b87a917: "+key+"\n")
			for _, text := range test.lacks {
				if strings.Contains(log, text) {
					t.Errorf("the job still sees %q", text)
				}
			}
		})
	}
	result := s.done(s.build(request("vim")))
	if log := string(s.object(result.Prefix + result.Log)); strings.Contains(log, "mine") || strings.Contains(log, key) {
		t.Errorf("the feed of another job is seen:\n%s", log)
	}
	if !slices.Equal(before, s.treeDigest()) {
		t.Error("the shared tree was changed")
	}
	plan := s.plan(build.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic"})
	plan.RepositoryKeys = []string{strings.Repeat("A", 56)}
	f := s.failed(s.wait(s.submitPlan(plan)), build.KindBuild, "repository_keys")
	if f.Command != "" {
		t.Errorf("make was called although the key is none: %s", f.Command)
	}
}

// treeDigestAfter is the trees' content once these were built.
func (s *site) treeDigestAfter(requests ...build.Request) []string {
	s.Helper()
	for _, r := range requests {
		s.done(s.build(r))
	}
	return s.treeDigest()
}

// TestEnvironment: make runs with exactly these variables, this umask, another
// user if this is root.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	// The outermost make is what the builder started.
	show := `p=$$
while [ "${p:-0}" -gt 1 ]; do
	[ "$(cat /proc/$p/comm)" != make ] || top=$p
	p=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$p/status)
done
tr '\0' '\n' </proc/$top/environ | sed 's/^/make has /'; umask; id -u`
	s := newSite(t, setting{upstream: instant.Options{Before: show}})
	result := s.done(s.build(request()))
	log := string(s.object(result.Prefix + result.Log))
	var names []string
	for line := range strings.Lines(log) {
		if variable, found := strings.CutPrefix(line, "make has "); found {
			name, _, _ := strings.Cut(variable, "=")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"HOME", "LC_ALL", "PATH", "TMPDIR"}) {
		t.Errorf("make's variables are %q:\n%s", names, log)
	}
	wantText(t, log, "\n0022\n", "make has LC_ALL=C\n")
	if os.Geteuid() == 0 && !strings.Contains(log, fmt.Sprintf("\n%d\n", s.uids[0])) {
		t.Errorf("make did not run as user %d:\n%s", s.uids[0], log)
	}
}

// TestStages: the words by which clients follow a build, in their order.
func TestStages(t *testing.T) {
	t.Parallel()
	// Each stage lasts until it was seen.
	seen := map[build.Stage]bool{}
	slow := "sleep 0.4"
	s := newSite(t, setting{upstream: instant.Options{Before: slow, After: slow}})
	s.web.misbehave(slowed(200 * time.Millisecond))
	id := s.submit(request())
	var stages []build.Stage
	s.until(id, "it has ended", func(rec build.Record) bool {
		if rec.State == build.Building && !seen[rec.Stage] {
			seen[rec.Stage] = true
			stages = append(stages, rec.Stage)
		}
		return rec.Ended()
	})
	order := []build.Stage{build.StageInit, build.StageDownload, build.StageUnpack, build.StagePackages, build.StageImage}
	if !slices.IsSortedFunc(stages, func(a, b build.Stage) int { return slices.Index(order, a) - slices.Index(order, b) }) {
		t.Errorf("the stages came as %q", stages)
	}
	for _, stage := range []build.Stage{build.StageDownload, build.StagePackages, build.StageImage} {
		if !seen[stage] {
			t.Errorf("stage %s was not seen, only %q", stage, stages)
		}
	}
}
