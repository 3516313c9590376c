package builder_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestRefusedByMake: what opkg, apk and the image tools complain of becomes a
// sentence about the package.
func TestRefusedByMake(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: instant.Options{Versions: []string{"24.10.0", "25.12.0"}}, workers: 2})
	archer := "tplink_archer-c7-v5"
	for _, test := range []struct {
		name              string
		version, target   string
		profile, packages string
		change            func(*build.Plan)
		kind              build.Kind // "" = no failure
		about             string
		says              []string
	}{
		{"opkg unknown", "24.10.0", "x86/64", "generic", "no-such-pkg", nil, build.KindUnknownPackage, "no-such-pkg", nil},
		{"opkg unknown, one file system", "24.10.0", "x86/64", "generic", "no-such-pkg", func(p *build.Plan) { p.Filesystem = "ext4" }, build.KindUnknownPackage, "no-such-pkg", nil},
		{"apk unknown", "25.12.0", "x86/64", "generic", "no-such-pkg", nil, build.KindUnknownPackage, "no-such-pkg", nil},
		{"opkg conflict", "24.10.0", "x86/64", "generic", "conflict-a conflict-b", nil, build.KindConflict, "conflict-a", []string{"conflict-a", "conflict-b"}},
		{"apk conflict", "25.12.0", "x86/64", "generic", "conflict-a conflict-b", nil, build.KindConflict, "conflict-b", []string{"conflict-a", "conflict-b"}},
		{"opkg clash", "24.10.0", "x86/64", "generic", "dnsmasq-full", nil, build.KindConflict, "dnsmasq", []string{"dnsmasq-full conflicts with dnsmasq, which is a default package: send -dnsmasq, too."}},
		{"apk has no clash", "25.12.0", "x86/64", "generic", "dnsmasq-full", nil, "", "", nil},
		{"opkg missing", "24.10.0", "x86/64", "generic", "broken-dep", nil, build.KindMissing, "broken-dep", []string{"no-such-library"}},
		{"apk missing", "25.12.0", "x86/64", "generic", "broken-dep", nil, build.KindMissing, "broken-dep", []string{"no-such-library"}},
		{"too big for a disk image", "24.10.0", "x86/64", "generic", "too-big", nil, build.KindTooBig, "", []string{"rootfs_size_mb"}},
		{"too big for flash", "24.10.0", "ath79/generic", archer, "too-big", nil, build.KindTooBig, "", []string{" bytes, where 15859712 fit"}},
		{"profile gone from the tree", "24.10.0", "x86/64", "generic", "", func(p *build.Plan) { p.Profile = "nope" }, build.KindProfile, "", []string{`"nope"`}},
		{"the same, one file system", "24.10.0", "x86/64", "generic", "", func(p *build.Plan) { p.Profile, p.Filesystem = "nope", "ext4" }, build.KindProfile, "", []string{`"nope"`}},
		{"profile gone from the catalogue", "24.10.0", "ath79/generic", archer, "", func(p *build.Plan) { p.Profile = "nope" }, build.KindProfile, "", []string{"nope"}},
		{"version gone from the catalogue", "24.10.0", "ath79/generic", archer, "", func(p *build.Plan) { p.Version = "24.10.9" }, build.KindProfile, "", []string{"24.10.9"}},
		{"another revision in the catalogue", "24.10.0", "x86/64", "generic", "", func(p *build.Plan) { p.Revision = "r1-abc" }, build.KindRevision, "", []string{"r1-abc", "r28427-6df0e3d02a"}},
		{"other versions", "24.10.0", "x86/64", "generic", "jansson", func(p *build.Plan) {
			p.Pins = []build.Pin{{Name: "htop", Version: "1-r1"}, {Name: "jansson", Version: "9-r9"}, {Name: "libubox", Version: "2024.03.29~eb9bcb64-r1"}}
		}, build.KindPackageVersions, "", []string{"htop is not installed instead of 1-r1", "jansson is 2.14-r3 instead of 9-r9"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			plan := s.plan(build.Request{Version: test.version, Target: test.target, Profile: test.profile, Packages: strings.Fields(test.packages)})
			if test.change != nil {
				test.change(&plan)
			}
			rec := s.wait(s.submitPlan(plan))
			if test.kind == "" {
				s.done(rec)
				return
			}
			f := s.failed(rec, test.kind, append(test.says, test.about)...)
			if f.Package != test.about {
				t.Errorf("it is about %q, want %q", f.Package, test.about)
			}
			if strings.Contains(test.name, "the catalogue") {
				return // make was never called
			}
			s.wantLogged(rec)
		})
	}
}

// wantLogged holds that a failure of make comes with its call, its last words
// and its log.
func (s *site) wantLogged(rec build.Record) {
	s.Helper()
	f := rec.Failure
	if f.Prefix == "" || !strings.HasPrefix(f.Command, "make ") || f.Stdout+f.Stderr == "" {
		s.Fatalf("the log is at %q, the command %q, the output %q", f.Prefix, f.Command, f.Stdout+f.Stderr)
	}
	log := string(s.object(f.Prefix + rec.ID.LogName()))
	wantText(s, log, "$ "+f.Command+"\n")
	for line := range strings.Lines(f.Stdout + f.Stderr) {
		wantText(s, log, line)
	}
}

// TestUnsoundPlan: a plan that breaks a pattern never meets make, whoever
// stored it.
func TestUnsoundPlan(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{})
	for i, change := range []func(*build.Plan){
		func(p *build.Plan) { p.Add = []string{"nano;reboot"} },
		func(p *build.Plan) { p.Remove = []string{"$(shell reboot)"} },
		func(p *build.Plan) { p.Profile = "$(shell reboot)" },
		func(p *build.Plan) { p.Filesystem = "ext4 x" },
		func(p *build.Plan) { p.Repositories = []build.Repository{{Name: "x", URL: "file:///etc"}} },
	} {
		plan := s.plan(request())
		change(&plan)
		plan.Pins = []build.Pin{{Name: "kernel", Version: fmt.Sprint(i)}}
		s.failed(s.wait(s.submitPlan(plan)), build.KindBuild, "not sound")
	}
	if n := s.counts.of(build.StepImageBuilder); n > 0 {
		t.Errorf("%d of them went on", n)
	}
}

// deed is what a package script or a broken tool does in a build.
type deed struct {
	name          string
	before, after string     // shell
	kind          build.Kind // of the failure; "" = the build is fine all the same
	says          string
}

var deeds = []deed{
	{"exits", "exit 1", "", build.KindBuild, "log"},
	{"opkg's feed is not signed", `echo "Signature check failed." >&2; echo "Remove wrong Signature file." >&2`, "", build.KindUpstream, "Signature check failed"},
	{"opkg's feed is down", `echo "*** Failed to download the package list from https://x.example/Packages.gz"`, "", build.KindUpstream, "package list"},
	{"a package is not the feed's", `echo " * opkg_install_pkg: Package nano sha256sum mismatch. Either the opkg or the package index are corrupt. Try 'opkg update'." >&2; exit 1`, "", build.KindUpstream, "sha256sum"},
	{"apk's feed is down", `echo "ERROR: wget: exited with error 4" >&2`, "", build.KindUpstream, "wget"},
	{"the disk is full", `echo "tar: ./usr: Cannot write: No space left on device" >&2; exit 1`, "", build.KindDisk, "disk is full"},
	{"a tool is killed", "kill -9 $$", "", build.KindWorker, "killed"},
	{"a symbolic link", "", `ln -s /etc/passwd "$BIN_DIR/x.bin"`, build.KindOutput, "x.bin, which is not a regular file"},
	{"a link in an image's place", "", `for f in "$BIN_DIR"/*squashfs-combined.img.gz; do mv "$f" "$TOPDIR/away"; ln -s /etc/shadow "$f"; done`, build.KindOutput, "not a regular file"},
	{"a pipe", "", `mkfifo "$BIN_DIR/x.bin"`, build.KindOutput, "not a regular file"},
	{"a folder", "", `mkdir "$BIN_DIR/x.bin"`, build.KindOutput, "not a regular file"},
	{"a hard link", "", `ln "$BIN_DIR/profiles.json" "$BIN_DIR/x.json"`, build.KindOutput, "another name"},
	{"a name like an option", "", `touch -- "$BIN_DIR/-rf"`, build.KindOutput, "name"},
	{"a name with a line end", "", "touch \"$BIN_DIR/a\nb\"", build.KindOutput, "name"},
	{"the name build.json", "", `echo {} >"$BIN_DIR/build.json"`, build.KindOutput, "build.json"},
	{"the name of a key", "", `echo >"$BIN_DIR/worker.pub"`, build.KindOutput, "worker.pub"},
	{"the name of a log", "", `echo >"$BIN_DIR/build-x.log"`, build.KindOutput, "build-x.log"},
	{"too many files", "", `i=0; while [ $i -lt 300 ]; do : >"$BIN_DIR/x$i"; i=$((i+1)); done`, build.KindOutput, "files"},
	{"no profiles.json", "", `rm "$BIN_DIR/profiles.json"`, build.KindTooBig, "no image"},
	{"a huge profiles.json", "", `head -c 300000 /dev/zero | tr '\0' ' ' >>"$BIN_DIR/profiles.json"`, build.KindOutput, "profiles.json"},
	{"a profiles.json that is none", "", `echo '{"profiles":' >"$BIN_DIR/profiles.json"`, build.KindOutput, "cannot be read"},
	{"another profile's profiles.json", "", `sed -i 's/"generic":/"other":/' "$BIN_DIR/profiles.json"`, build.KindTooBig, "no image for generic"},
	{"an image outside", "", `sed -i 's|"name":"[^"]*squashfs-combined.img.gz"|"name":"../../etc/passwd"|' "$BIN_DIR/profiles.json"`, build.KindOutput, "../../etc/passwd"},
	{"an image that is missing", "", `rm "$BIN_DIR"/*squashfs-combined.img.gz`, build.KindOutput, "no such file"},
	{"an image with other bytes", "", `for f in "$BIN_DIR"/*squashfs-combined.img.gz; do echo evil >>"$f"; done`, build.KindOutput, "checksum differs"},
	{"an empty image", "", `for f in "$BIN_DIR"/*squashfs-combined.img.gz; do : >"$f"; done`, build.KindOutput, "checksum differs"},
	{"a tree of another revision", "", `sed -i 's/"version_code":"[^"]*"/"version_code":"r99-fff"/' "$BIN_DIR/profiles.json"`, build.KindRevision, "revision r99-fff, the request was for r28427-6df0e3d02a"},
	{"a revision that is no word", "", `sed -i 's/"version_code":"[^"]*"/"version_code":"<b>"/' "$BIN_DIR/profiles.json"`, build.KindOutput, "<b>"},
	{"no manifest", "", `rm "$BIN_DIR"/*.manifest`, build.KindOutput, "no manifest"},
	{"a broken manifest", "", `for f in "$BIN_DIR"/*.manifest; do echo 'what is this' >>"$f"; done`, build.KindOutput, "what is this"},
	{"damage to the tree", "echo evil >>Makefile; rm -f packages/.all.new; chmod -R a+w .", `rm -rf packages scripts keys .profiles; echo evil >Makefile; ln -s / root`, "", ""},
	{"a file of its own", "", `echo hello >"$BIN_DIR/notes.txt"; chmod 0 "$BIN_DIR/notes.txt"`, "", ""},
	{"a forged sha256sums", "", `echo forged >"$BIN_DIR/sha256sums"`, "", ""},
}

// script chooses the deed by the size of the root file system, so that one tree
// serves all.
func script(of func(deed) string) string {
	var b strings.Builder
	fmt.Fprintln(&b, "case $CONFIG_TARGET_ROOTFS_PARTSIZE in")
	for i, d := range deeds {
		if text := of(d); text != "" {
			fmt.Fprintf(&b, "%d) %s ;;\n", firstDeed+i, text)
		}
	}
	fmt.Fprintln(&b, "esac")
	return b.String()
}

const firstDeed = 300

// TestHostileBuild: whatever a build does, it ends with a sentence, publishes
// nothing that breaks a rule, and the next build of the same tree gives the
// same bytes as ever.
func TestHostileBuild(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{workers: 2, upstream: instant.Options{
		Before: script(func(d deed) string { return d.before }), After: script(func(d deed) string { return d.after }),
	}})
	honest := sums(s.done(s.build(request("nano"))))
	tree := s.treeDigest()
	t.Run("deeds", func(t *testing.T) {
		for i, deed := range deeds {
			t.Run(deed.name, func(t *testing.T) {
				t.Parallel()
				s.in(t).suffer(firstDeed+i, deed, honest)
			})
		}
	})
	if after := s.treeDigest(); !slices.Equal(tree, after) {
		t.Errorf("the shared tree was %q and is %q", tree, after)
	}
	s.clean()
}

func (s *site) suffer(size int, d deed, honest map[string]string) {
	s.Helper()
	r := request("nano")
	r.RootfsSizeMB = size
	rec := s.until(s.submit(r), "it was tried", func(rec build.Record) bool { return rec.Ended() || rec.Failure != nil })
	switch {
	case d.kind == "":
		s.done(rec)
	default:
		f := s.failed(rec, d.kind, d.says)
		s.wantLogged(rec)
		if rec.Ended() == f.Kind.Transient() {
			s.Errorf("a failure of kind %s has left the record %s", f.Kind, rec.State)
		}
	}
	s.forget(rec.ID) // what is transient would be tried again
	if again := sums(s.done(s.build(apart(request("nano"), size)))); !maps.Equal(again, honest) {
		s.Errorf("the next build gives %v instead of %v", again, honest)
	}
}

// TestTimeLimit: what takes too long ends with all that it started, whatever
// that ignores; so does what outlives make.
func TestTimeLimit(t *testing.T) {
	t.Parallel()
	const deaf = `trap '' HUP INT TERM; `
	s := newSite(t, setting{timeLimit: 2 * time.Second, upstream: instant.Options{
		Before: `[ "$CONFIG_TARGET_ROOTFS_PARTSIZE" != 301 ] || { ` + deaf + `setsid sh -c "` + deaf + `sleep 4242" </dev/null >/dev/null 2>&1 & ` + deaf + `sleep 4243; }`,
		After:  deaf + `setsid sh -c "` + deaf + `sleep 4244; sleep 4245" </dev/null >/dev/null 2>&1 &`,
	}})
	r := request()
	r.RootfsSizeMB = 301
	begin := time.Now()
	rec := s.build(r)
	s.failed(rec, build.KindTime, "2s")
	s.wantLogged(rec)
	s.clean()
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	s.done(s.build(request()))
	s.clean()
}

// TestThreeAttempts: what may pass is tried three times with longer and longer
// pauses; then the build is failed with reason and log, and whoever asks again
// starts anew.
func TestThreeAttempts(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: instant.Options{Before: `echo "Signature check failed." >&2`}})
	begin := time.Now()
	rec := s.build(request())
	if took := time.Since(begin); rec.Attempts != 3 || took < 15*time.Second {
		t.Errorf("%d attempts within %s", rec.Attempts, took)
	}
	if n := s.counts.of(build.StepMake); n != 3 {
		t.Errorf("make ran %d times", n)
	}
	s.failed(rec, build.KindUpstream, "Signature check failed")
	s.wantLogged(rec)
	s.settled()
	if again := s.submit(request()); again != rec.ID {
		t.Errorf("asked again, it is another build")
	}
	rec = s.until(rec.ID, "it has begun again", func(rec build.Record) bool { return rec.Attempts == 1 })
	if rec.Failure != nil && rec.Failure.Kind != build.KindUpstream {
		t.Errorf("asked again, it has %+v", rec.Failure)
	}
}

// settled waits until the board counts nothing as pending.
func (s *site) settled() {
	s.Helper()
	var board build.Board
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
		var err error
		if board, err = s.records.Board(s.Context(), "", build.Change{}); err != nil {
			s.Fatal(err)
		}
		if board[build.BoardCreated] == board[build.BoardEnded] {
			return
		}
	}
	s.Errorf("the board is %v", board)
}

// TestSnapshotMoves: a snapshot that moved between request and build is not
// built as something else.
func TestSnapshotMoves(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{workers: -1, upstream: instant.Options{Versions: []string{"24.10.0", "SNAPSHOT"}, Snapshot: "r28000-0123456789"}})
	r := build.Request{Version: "SNAPSHOT", Target: "x86/64", Profile: "generic"}
	id := s.submit(r)
	moved := s.setting.upstream
	moved.Snapshot = "r28001-9876543210"
	if err := s.up.Update(moved); err != nil {
		t.Fatal(err)
	}
	s.agedCatalog()
	s.start()
	s.failed(s.wait(id), build.KindRevision, "r28000-0123456789", "r28001-9876543210")
	if n := s.counts.of(build.StepMake); n > 0 {
		t.Errorf("make ran %d times for nothing", n)
	}
	if again := s.submit(r); again == id {
		t.Error("the request means the same build although the snapshot moved")
	} else {
		s.done(s.wait(again))
	}
}

// agedCatalog is the catalogue after a restart with an empty cache: what it
// knew is not just now any more.
func (s *site) agedCatalog() {
	s.Helper()
	s.openCatalog("catalog-later")
}
