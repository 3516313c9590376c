package builder_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// attack is what a hostile package's script tries against the machine, the server and other jobs. Whatever it does by
// means of the output folder is among the deeds of TestHostileBuild.
type attack struct {
	name string
	// script is shell; {dir} has what is not to be reached, {port} is the server's on loopback, {pid} its process. What
	// it has reached it prints as "REACHED …".
	script string
	kind   build.Kind // of the failure; "" = one or another
	says   string
	// landlock is the version without which nothing prevents it where jobs have the server's own user and no namespaces.
	landlock int
}

// tried makes a script of which each line is a try that has to fail; it then ends the build.
func tried(lines string) string {
	var b strings.Builder
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		fmt.Fprintf(&b, "if ( %s ) >/dev/null 2>&1 </dev/null; then echo 'REACHED %s'; fi\n", line, strings.NewReplacer("'", "", "{", "", "}", "").Replace(line))
	}
	return b.String() + "exit 1"
}

const python = `python3 -c '%s'`

var attacks = []attack{
	{"reads the machine's files", tried(`cat /etc/shadow
		cat {dir}/secret
		cat {dir}/open
		ls {dir}/objects
		cat /root/.bash_history
		ls /home/*/.ssh`), build.KindBuild, "log", 2},
	{"reads keys", tried(`cat {dir}/keys/secret
		cat {dir}/sysup.db
		grep -r secret {dir}/catalog`), build.KindBuild, "log", 2},
	{"reads environments", tried(`cat /proc/*/environ | grep -a HOSTILE_TEST_SECRET
		cat /proc/{pid}/environ
		cat /proc/{pid}/maps
		head -c 1 /proc/{pid}/mem
		ls /proc/{pid}/fd/
		ls /proc/{pid}/root/
		ls /proc/{pid}/cwd/`), build.KindBuild, "log", 0},
	{"reads another job", tried(`cat {dir}/other/job/out/image
		ls {dir}/scratch/
		cat {dir}/scratch/*/log {dir}/scratch/*/out/*`), build.KindBuild, "log", 2},
	{"writes the tree", tried(`for f in {dir}/imagebuilder/*/Makefile {dir}/imagebuilder/*/*/Makefile; do echo evil >> $f && exit 0; done; exit 1
		touch {dir}/imagebuilder/evil
		rm -r {dir}/imagebuilder/*/`), build.KindBuild, "log", 2},
	{"writes the cache", tried(`touch {dir}/catalog/evil
		touch {dir}/objects/evil
		echo >> {dir}/sysup.db`), build.KindBuild, "log", 2},
	{"writes another job's output", tried(`echo evil > {dir}/other/job/out/image
		touch {dir}/other/job/out/more
		touch {dir}/scratch/evil`), build.KindBuild, "log", 2},
	{"reaches the network", tried(`timeout 2 bash -c ": > /dev/tcp/192.0.2.1/80"
		timeout 2 bash -c ": > /dev/udp/192.0.2.1/53"
		` + fmt.Sprintf(python, `import socket; socket.socket(17, 3)`)), build.KindBuild, "log", 0},
	{"reaches the metadata service", tried(`timeout 2 bash -c ": > /dev/tcp/169.254.169.254/80"
		timeout 2 bash -c ": > /dev/tcp/169.254.170.2/80"`), build.KindBuild, "log", 0},
	{"reaches the server on loopback", tried(`timeout 2 bash -c ": > /dev/tcp/127.0.0.1/{port}"
		timeout 2 bash -c ": > /dev/tcp/::1/{port}"`), build.KindBuild, "log", 0},
	{"becomes root of a namespace", tried(`unshare -U true
		unshare -r -m true
		unshare -n true`), build.KindBuild, "log", 0},
	{"makes devices and mounts", tried(`mknod null c 1 3
		mknod disk b 254 0
		mount -t tmpfs none .
		mount --bind / .
		umount /tmp
		chown 0 Makefile
		chroot /
		test -w /dev/mem || test -w /dev/vda || test -w /dev/sda || test -w /dev/kmsg`), build.KindBuild, "log", 0},
	{"kills the server", tried(`kill -9 {pid}
		kill -STOP {pid}
		kill -9 $(cat /proc/*/stat | cut -d " " -f 1 | grep -x {pid})`), build.KindBuild, "log", 6},
	{"kills all that it can", `kill -9 -1; sleep 1; exit 1`, build.KindWorker, "killed", 6},
	{"kills what keeps it", `p=$$; while [ "${p:-0}" -gt 1 ]; do p=$(cut -d ' ' -f 4 /proc/$p/stat 2>/dev/null) || break; kill -9 $p 2>/dev/null; done; kill -9 1 2>/dev/null; sleep 1; exit 1`, "", "", 6},
	{"forks without end", `bomb() { bomb | bomb & }; bomb; sleep 2; exit 1`, "", "", 0},
	{"fills memory", fmt.Sprintf(python, `
import os, time
for i in range(4):
	if os.fork() == 0:
		x = bytearray(200 << 20)
		for j in range(0, len(x), 4096): x[j] = 1
		time.sleep(1); os._exit(0)
x = []
for i in range(600): x.append(bytes(1 << 20))
os._exit(1)`) + "; exit 1", "", "", 0},
	{"fills the disk", `head -c 60000000 /dev/zero > big; head -c 60000000 /dev/zero > "$BIN_DIR/big"; sleep 30`, build.KindBuild, "disk", 0},
	{"fills the disk with nothing", fmt.Sprintf(python, `
import os
for i in range(4500): os.mkdir("d" + str(i))`) + "; sleep 30", build.KindBuild, "disk", 0},
	{"hides what it writes", fmt.Sprintf(python, `
import os
for i in range(2000): os.mkdir("deeper"); os.chdir("deeper")
for i in range(4500): os.mkdir("d" + str(i))`) + "; sleep 30", build.KindBuild, "disk", 0},
	{"takes its time, deaf", `trap '' HUP INT TERM; while :; do sleep 1; done`, build.KindTime, "", 0},
	{"leaves a daemon", `for n in 1 2; do (setsid bash -c 'trap "" TERM HUP; (exec -a {mark} sleep 3600) & sleep 3601' {mark} &) >/dev/null 2>&1 </dev/null; done; sleep 0.1; exit 1`, build.KindBuild, "log", 0},
	{"names 300 bytes long", `touch "$BIN_DIR/$(printf %300s | tr ' ' x)" && echo REACHED; touch "$BIN_DIR/../x" 2>/dev/null; exit 1`, build.KindBuild, "log", 0},
	{"sparse terabytes", `truncate -s 4T "$BIN_DIR/x.bin" && echo REACHED; truncate -s 4T x && echo REACHED; exit 1`, "", "", 0},
}

const firstAttack = 400

// attackScript chooses the attack by the size of the root file system.
func attackScript(dir, port, mark string) string {
	fill := strings.NewReplacer("{dir}", dir, "{port}", port, "{pid}", fmt.Sprint(os.Getpid()), "{mark}", mark)
	var b strings.Builder
	fmt.Fprintln(&b, "case $CONFIG_TARGET_ROOTFS_PARTSIZE in")
	for i, a := range attacks {
		fmt.Fprintf(&b, "%d) %s ;;\n", firstAttack+i, fill.Replace(a.script))
	}
	fmt.Fprintln(&b, "esac")
	return b.String()
}

// ordinaryUser runs these tests without root; nothing else on a machine has it.
var ordinaryUser = nextUID()

// TestSealed runs every attack through the whole builder at each level that root and an ordinary user reach here. Each
// run is a process of its own, so that it has an environment and a user to be attacked.
func TestSealed(t *testing.T) {
	if os.Getenv("HOSTILE_TEST_SECRET") != "" {
		sealed(t)
		return
	}
	t.Parallel()
	users := []int{os.Geteuid()}
	if os.Geteuid() == 0 {
		users = append(users, ordinaryUser)
	} else {
		t.Logf("the tests run as user %d: they test its levels only; as root they test all", os.Geteuid())
	}
	for _, uid := range users {
		t.Run(fmt.Sprint("user ", uid), func(t *testing.T) {
			t.Parallel()
			temp := t.TempDir()
			open := os.Chmod(temp, 0o777)
			if open == nil {
				open = os.Chmod(filepath.Dir(temp), 0o711)
			}
			if open != nil {
				t.Fatal(open)
			}
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestSealed$", "-test.v", "-test.timeout=280s")
			cmd.Dir, cmd.Env = "/", []string{"HOSTILE_TEST_SECRET=of-the-server", "TMPDIR=" + temp, "PATH=" + os.Getenv("PATH")}
			if uid != os.Geteuid() {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
			}
			output, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(output, []byte("--- PASS: TestSealed")) {
				t.Errorf("%v\n%s", err, output)
			}
		})
	}
}

func sealed(t *testing.T) {
	levels := map[sandbox.Mechanism]sandbox.Level{sandbox.UserNamespaces: sandbox.LevelSealed, sandbox.Plain: sandbox.LevelSameUser}
	if os.Geteuid() == 0 {
		levels = map[sandbox.Mechanism]sandbox.Level{sandbox.Namespaces: sandbox.LevelSealed, sandbox.Plain: sandbox.LevelOffline}
	}
	for mechanism, level := range levels {
		t.Run(string(level), func(t *testing.T) { withstand(t, mechanism, level) })
	}
}

// withstand is one run of all attacks.
func withstand(t *testing.T, mechanism sandbox.Mechanism, level sandbox.Level) {
	if got := mechanism.Level(true); got != level {
		t.Fatalf("%s gives the level %s, want %s", mechanism, got, level)
	}
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	dir, mark := bait(t), fmt.Sprint("hostile-test-", os.Getpid(), "-", level)
	_, port, _ := net.SplitHostPort(service.Addr().String())
	s := newSite(t, setting{
		mechanism: mechanism, denyNetwork: true, workers: 2, timeLimit: 8 * time.Second,
		limits:  sandbox.Limits{Processes: 80, Memory: 512 << 20, Disk: 40 << 20, Entries: 3000, Tmp: 16 << 20},
		scratch: filepath.Join(dir, "scratch"), trees: filepath.Join(dir, "imagebuilder"), hide: []string{filepath.Join(dir, "keys")},
		upstream: instant.Options{Before: attackScript(dir, port, mark)},
	})
	honest := sums(s.done(s.build(request("nano"))))
	tree, baits := s.treeDigest(), contents(t, dir)
	t.Run("attacks", func(t *testing.T) {
		for i, a := range attacks {
			if a.landlock > landlock(s.support) && level == sandbox.LevelSameUser {
				t.Logf("not tried without version %d of Landlock: %s", a.landlock, a.name)
				continue
			}
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				s.in(t).withstand(firstAttack+i, a, honest)
			})
		}
	})
	if after := s.treeDigest(); !slices.Equal(tree, after) {
		t.Errorf("the shared tree was %q and is %q", tree, after)
	}
	if after := contents(t, dir); !maps.Equal(baits, after) {
		t.Errorf("the machine's files were %q and are %q", baits, after)
	}
	s.clean()
	nothingLeft(t, dir, mark)
}

func (s *site) withstand(size int, a attack, honest map[string]string) {
	s.Helper()
	r := request("nano")
	r.RootfsSizeMB = size
	rec := s.until(s.submit(r), "it was tried", func(rec build.Record) bool { return rec.Ended() || rec.Failure != nil })
	if rec.Failure == nil {
		s.Fatalf("the build is %s", rec.State)
	}
	kind := a.kind
	if kind == "" {
		kind = rec.Failure.Kind
	}
	f := s.failed(rec, kind, a.says)
	if strings.Contains(f.Stdout+f.Stderr, "REACHED") {
		s.Errorf("%s%s", f.Stdout, f.Stderr)
	}
	s.forget(rec.ID) // what is transient would be tried again
	if again := sums(s.done(s.build(apart(request("nano"), size)))); !maps.Equal(again, honest) {
		s.Errorf("the next build gives %v instead of %v", again, honest)
	}
}

// bait makes a folder with what attacks look for, and as open as on a server.
func bait(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{
		"secret": 0o600, "open": 0o644, "keys/secret": 0o600, "sysup.db": 0o600, "catalog/secret": 0o600, "objects/secret": 0o600, "other/job/out/image": 0o644,
	} {
		file := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o700)
		if err == nil {
			err = os.WriteFile(file, []byte("secret"), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(filepath.Join(dir, "other"), 0o711)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// contents are the files of the bait.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, folder := range []string{"keys", "catalog", "objects", "other", "."} {
		files, _ := filepath.Glob(filepath.Join(dir, folder, "*"))
		more, _ := filepath.Glob(filepath.Join(dir, folder, "*", "*", "*"))
		for _, file := range append(files, more...) {
			if text, err := os.ReadFile(file); err == nil && !strings.HasPrefix(file, filepath.Join(dir, "imagebuilder")) {
				found[file] = string(text)
			}
		}
	}
	return found
}

// landlock is the version that the machine has.
func landlock(s sandbox.Support) (version int) {
	for _, guard := range s.Guards {
		_, _ = fmt.Sscanf(guard, "landlock %d", &version)
	}
	return version
}

// nothingLeft holds that of all jobs no process, mount or control group is there any more.
func nothingLeft(t *testing.T, dir, mark string) {
	t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		if text, _ := os.ReadFile(file); bytes.Contains(text, []byte(mark)) {
			t.Errorf("%s runs on as %q", file, text)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("mounts are left (%v):\n%s", err, mounts)
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(folder string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), fmt.Sprintf("sysup-job-%d-", os.Getpid())) {
			t.Errorf("a control group is left: %s", folder)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
