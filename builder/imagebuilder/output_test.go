package imagebuilder

import (
	"bytes"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The lines are those of real opkg (23.05, 24.10) and apk (25.12)
// ImageBuilders.
func TestExplain(t *testing.T) {
	for _, test := range []struct {
		name           string
		stdout, stderr string
		kind           build.Kind
		pkg            string
		says           []string // in the sentence
	}{
		{"profile", "Profile \"nope\" does not exist!\nUse \"make info\" to get a list of available profile names.\n", "", build.KindProfile, "", []string{`"nope"`}},
		{"opkg unknown", "", "Collected errors:\n * opkg_install_cmd: Cannot install package no-such-pkg.\n", build.KindUnknownPackage, "no-such-pkg", []string{"no-such-pkg"}},
		{"apk unknown", "", "ERROR: unable to select packages:\n  no-such-pkg (no such package):\n    required by: world[no-such-pkg]\n", build.KindUnknownPackage, "no-such-pkg", nil},
		{"opkg conflict", "", "Collected errors:\n * check_conflicts_for: The following packages conflict with conflict-b:\n * check_conflicts_for: \tconflict-a * \n * opkg_install_cmd: Cannot install package conflict-b.\n", build.KindConflict, "conflict-b", []string{"conflict-a", "conflict-b"}},
		{"apk conflict", "", "ERROR: unable to select packages:\n  conflict-b-1.0-r1:\n    breaks: conflict-a-1.0-r1[!conflict-b]\n    satisfies: world[conflict-b]\n", build.KindConflict, "conflict-b", []string{"conflict-b conflicts with conflict-a"}},
		{"opkg clash", "", " * check_data_file_clashes: Package dnsmasq wants to install file /x/root-x86/etc/init.d/dnsmasq\n\tBut that file is already provided by package  * dnsmasq-full\n * opkg_install_cmd: Cannot install package dnsmasq.\n", build.KindConflict, "dnsmasq", []string{"dnsmasq-full", "dnsmasq conflicts with", "file /etc/init.d/dnsmasq."}},
		{"opkg missing", "", " * pkg_hash_check_unresolved: cannot find dependency no-such-library for broken-dep\n * pkg_hash_fetch_best_installation_candidate: Packages for broken-dep found, but incompatible with the architectures configured\n * opkg_install_cmd: Cannot install package broken-dep.\n", build.KindMissing, "broken-dep", []string{"broken-dep needs no-such-library"}},
		{"apk missing", "", "ERROR: unable to select packages:\n  no-such-library (no such package):\n    required by: broken-dep-1.0-r1[no-such-library]\n", build.KindMissing, "broken-dep", []string{"broken-dep needs no-such-library"}},
		{"too big ext4", "", "error: ext4_allocate_best_fit_partial: failed to allocate 8 blocks, out of space?\n", build.KindTooBig, "", []string{"too big"}},
		{"too big flash", "", "WARNING: Image file /b/sysupgrade.bin is too big: 15990788 > 15859712\n", build.KindTooBig, "", []string{"15990788", "15859712"}},
		{"opkg bad signature", "Signature check failed.\nRemove wrong Signature file.\n", " * opkg_install_cmd: Cannot install package nano.\n", build.KindUpstream, "", []string{"signature"}},
		{"opkg feed down", "*** Failed to download the package list from http://x/Packages.gz\n", "", build.KindUpstream, "", nil},
		{"opkg package down", "", " * opkg_download: Failed to download http://x/nano.ipk, wget returned 8.\n", build.KindUpstream, "", nil},
		{"apk bad signature", "", "WARNING: updating and opening http://x/packages.adb: UNTRUSTED signature\nERROR: unable to select packages:\n  nano (no such package):\n    required by: world[nano]\n", build.KindUpstream, "", nil},
		{"apk feed down", "", "ERROR: wget: exited with error 4\nWARNING: updating and opening http://x/packages.adb: unexpected end of file\n", build.KindUpstream, "", nil},
		{"opkg package changed", "", " * opkg_install_pkg: Package nano sha256sum mismatch. Either the opkg or the package index are corrupt. Try 'opkg update'.\n * opkg_install_cmd: Cannot install package nano.\n", build.KindUpstream, "", []string{"nano sha256sum mismatch"}},
		{"opkg missing, older words", "", "Collected errors:\n * satisfy_dependencies_for: Cannot satisfy the following dependencies for kmod-foo:\n * \tkernel (= 5.4.52-1-abc) * \n * opkg_install_cmd: Cannot install package kmod-foo.\n", build.KindMissing, "kmod-foo", []string{"kmod-foo needs kernel"}},
		{"apk package changed", "", "ERROR: nano-8.3-r1: BAD signature\n", build.KindUpstream, "", nil},
		{"apk package gone", "", "ERROR: nano-8.3-r1: package mentioned in index not found (try 'apk update')\n", build.KindUpstream, "", nil},
		{"apk names in conflict", "", "ERROR: unable to select packages:\n  wget-nossl-1.24.5-r1:\n    conflicts: wget-ssl-1.24.5-r1[wget=1.24.5-r1]\n    satisfies: world[wget-nossl]\n", build.KindConflict, "wget-nossl", []string{"wget-nossl conflicts with wget-ssl"}},
		{"a tool was killed", "", "make[2]: *** [Makefile:199: build_image] Killed\nmake[1]: *** [Makefile:150: _call_image] Error 2\n", build.KindWorker, "", []string{"killed"}},
		{"the shell that ran it says so", "", "make[1]: *** [Makefile:59: _call_image] Error 137\n", build.KindWorker, "", nil},
		{"apk clash", "", "ERROR: clash-b-1.0-r1: trying to overwrite usr/share/clashing owned by clash-a-1.0-r1.\n", build.KindConflict, "clash-b", []string{"clash-b conflicts with clash-a", "file /usr/share/clashing."}},
		{"opkg script", "", "postinst script ./usr/lib/opkg/info/postinst-fails.postinst has failed with exit code 7\n", build.KindBuild, "postinst-fails", []string{"install script of postinst-fails"}},
		{"opkg script at install", "", " * pkg_run_script: package \"postinst-fails\" postinst script returned status 7.\n * opkg_configure: postinst-fails.postinst returned 7.\n", build.KindBuild, "postinst-fails", nil},
		{"apk script", "", "postinst script ./lib/apk/db/postinst-fails-1.0-r1.X16b8aa.post-install has failed with exit code 7\n", build.KindBuild, "postinst-fails", nil},
		{"too big, first figure missing", "    WARNING: Image file x-sysupgrade.bin is too big:  > 15728640\n", "", build.KindTooBig, "", []string{"too big"}},
		{"too big by", "", "[mktplinkfw] *** error: images are too big by 4848417 bytes\n", build.KindTooBig, "", []string{"by 4848417 bytes"}},
		{"apk feed from cache", "", "WARNING: opening from cache http://x/packages.adb: No such file or directory\n", build.KindUpstream, "", nil},
		{"disk full", "", "cp: error writing '/x': No space left on device\n", build.KindDisk, "", nil},
		{"nothing known", "make: *** [Makefile:10: image] Error 2", "", build.KindBuild, "", []string{"log"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			transcript := follow(test.stdout, test.stderr, nil)
			failure := transcript.Explain()
			if failure.Kind != test.kind || failure.Package != test.pkg {
				t.Errorf("got %s about %q, want %s about %q: %s", failure.Kind, failure.Package, test.kind, test.pkg, failure.Detail)
			}
			for _, text := range test.says {
				if !strings.Contains(failure.Detail, text) {
					t.Errorf("the sentence lacks %q: %s", text, failure.Detail)
				}
			}
		})
	}
}

// What a good run prints too. A first apk run in a fresh tree always warns about
// the index that it is about to make.
func TestHarmless(t *testing.T) {
	for _, line := range []string{
		"WARNING: opening /tmp/imagebuilder/packages/packages.adb: No such file or directory",
		"WARNING: updating and opening file:///tmp/imagebuilder/packages/packages.adb: No such file or directory",
		"Downloading https://downloads.openwrt.org/releases/24.10.0/packages/x86_64/base/Packages.gz",
		"Signature check passed.",
		"Updated list of available packages in dl/openwrt_base",
		"(3/90) Installing libc (1.2.5-r4)",
		"Configuring base-files.",
		"Generate local signing keys...",
	} {
		if f := follow(line+"\n", line+"\n", nil).Feed(); f != nil {
			t.Errorf("%q was taken for a fault: %v", line, f)
		}
	}
}

func TestTranscriptKeeps(t *testing.T) {
	var log bytes.Buffer
	var stages []build.Stage
	transcript := NewTranscript(&log, func(s build.Stage) { stages = append(stages, s) })
	stdout, stderr := transcript.Writers()
	stdout.Write([]byte("Installing pack"))
	stderr.Write([]byte("a warning\n"))
	stdout.Write([]byte("ages...\nFinalizing root filesystem...\nno end"))
	transcript.Flush()
	if want := "a warning\nInstalling packages...\nFinalizing root filesystem...\nno end\n"; log.String() != want {
		t.Errorf("log is %q, want %q", log.String(), want)
	}
	if len(stages) != 1 || stages[0] != build.StageImage {
		t.Errorf("stages are %q", stages)
	}
	if transcript.Stderr.String() != "a warning\n" || !strings.HasPrefix(transcript.Stdout.String(), "Installing") {
		t.Errorf("tails are %q and %q", transcript.Stdout.String(), transcript.Stderr.String())
	}
}

func TestTranscriptLimits(t *testing.T) {
	var log bytes.Buffer
	transcript := NewTranscript(&log, func(build.Stage) {})
	stdout, _ := transcript.Writers()
	long := bytes.Repeat([]byte("x"), 1<<20)
	for range 20 {
		stdout.Write(long) // no line end at all
	}
	transcript.Flush()
	if log.Len() > maxLog+maxLine {
		t.Errorf("the log has %d bytes", log.Len())
	}
	if n := len(transcript.Stdout.String()); n > maxTail {
		t.Errorf("the tail has %d bytes", n)
	}
}

func follow(stdout, stderr string, stage func(build.Stage)) *Transcript {
	if stage == nil {
		stage = func(build.Stage) {}
	}
	transcript := NewTranscript(new(bytes.Buffer), stage)
	out, err := transcript.Writers()
	out.Write([]byte(stdout))
	err.Write([]byte(stderr))
	transcript.Flush()
	return transcript
}

// Whatever a package script prints, there is one sentence of valid text.
func FuzzExplain(f *testing.F) {
	f.Add([]byte(" * opkg_install_cmd: Cannot install package x.\n"), []byte("  y (no such package):\n required by: world[y]\n"))
	f.Add([]byte("check_data_file_clashes: Package a wants to install file \xff\x00\n"), []byte("is too big: 1 > 0"))
	f.Fuzz(func(t *testing.T, stdout, stderr []byte) {
		failure := follow(string(stdout), string(stderr), nil).Explain()
		if failure.Detail == "" || len(failure.Detail) > 1000 || strings.ToValidUTF8(failure.Detail, "") != failure.Detail {
			t.Errorf("the sentence is %q", failure.Detail)
		}
	})
}
