package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
)

// containerCapabilities are all that the builder's container keeps.
var containerCapabilities = []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE}

const containerMask = "00000000000000e3"

// inContainer tells whether these tests run as in the builder's container.
func inContainer() bool {
	status, _ := os.ReadFile("/proc/self/status")
	var effective uint64
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "CapEff:\t%x", &effective)
	}
	return fmt.Sprintf("%016x", effective) == containerMask
}

// TestContainer holds that root with the container's few capabilities, and no way to more, keeps every promise of
// Plain, with Landlock and, as on Fargate, without, and that Probe finds the levels that this gives.
func TestContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root has capabilities to give up")
		return
	}
	if !inContainer() {
		runtime.LockOSThread() // for good: what is dropped here is dropped for this thread and what it starts
		must(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_READ, c, 0, 0, 0) == nil; c++ {
			if !slices.Contains(containerCapabilities, c) {
				must(t, unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0))
			}
		}
		again(t, "TestContainer", &syscall.SysProcAttr{})
		must(t, sandbox.WithoutLandlock()) // as Fargate's kernel
		again(t, "TestContainer", &syscall.SysProcAttr{}, "SANDBOX_TEST_LANDLOCK=0")
		return
	}
	if os.Getenv("SANDBOX_TEST_LANDLOCK") == "0" && sandbox.LandlockVersion() != 0 {
		t.Error("there is a Landlock where there should be none")
	}
	dir := tempDir(t)
	got, err := sandbox.Probe(t.Context(), dir, sandbox.Spec{UID: jobUser, GID: jobUser})
	must(t, err)
	if got.Mechanism != sandbox.Plain || got.View != "copy" || got.Level != sandbox.LevelNetworkOpen || !slices.Contains(got.Guards, "seccomp") {
		t.Errorf("found %+v", got)
	}
	got, err = sandbox.Probe(t.Context(), dir, sandbox.Spec{UID: jobUser, GID: jobUser, DenyNetwork: true})
	must(t, err)
	if got.Level != sandbox.LevelOffline {
		t.Errorf("without network, found %+v", got)
	}
	contract(t, sandbox.Plain)
}

// testServerUnreadable: what the server was given, such as where its credentials come from, is not the job's to read.
func testServerUnreadable(t *testing.T, f *fixture) {
	job := f.prepare(t)
	for _, name := range []string{"environ", "maps", "mem", "fd/0", "cwd/Makefile", "root/etc/passwd"} {
		fails(t, job, fmt.Sprintf("cat /proc/%d/%s", os.Getpid(), name))
	}
}

// testLeftovers: what a job leaves is gone after Close, however it is closed against that and wherever it lies.
func testLeftovers(t *testing.T, f *fixture) {
	if !f.root && !f.spec.Mechanism.Namespaced() {
		return // the same user's: nothing says whose job it was
	}
	job := f.prepare(t)
	want(t, job, `for d in "$PWD" /tmp /var/tmp /dev/shm; do
	mkdir -p $d/left-by-a-job/sticky/closed/deep
	echo x | tee $d/left-by-a-job/file $d/left-by-a-job/sticky/file > $d/left-by-a-job/sticky/closed/deep/file
	chmod 0 $d/left-by-a-job/sticky/closed
	chmod 1777 $d/left-by-a-job/sticky
	ln -s /etc $d/link-left-by-a-job
done 2> /dev/null; echo done`, "done")
	want(t, job, "for kind in '-M 4096' '-S 1' -Q; do ipcmk $kind > /dev/null || exit; done; echo done", "done")
	must(t, job.Close())
	for _, kind := range []string{"shm", "sem", "msg"} {
		list, err := os.ReadFile("/proc/sysvipc/" + kind)
		if err != nil || regexp.MustCompile(fmt.Sprintf(`(?m) %d `, jobUser)).Match(list) {
			t.Errorf("left behind in %s (%v):\n%s", kind, err, list)
		}
	}
	for _, pattern := range []string{f.spec.Scratch, "/tmp/*left-by-a-job", "/var/tmp/*left-by-a-job", "/dev/shm/*left-by-a-job"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

// TestWithoutLandlock: on kernels without it namespaces alone keep what they promise of files, and a server what it has
// in memory.
func TestWithoutLandlock(t *testing.T) {
	runtime.LockOSThread() // for good, as above
	must(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	must(t, sandbox.WithoutLandlock())
	ordinary := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		ordinary.Credential = &syscall.Credential{Uid: uint32(ordinaryUser), Gid: uint32(ordinaryUser)}
	}
	for _, run := range []struct {
		mechanism sandbox.Mechanism
		promises  string
		as        *syscall.SysProcAttr
	}{
		{bestMechanism(), "Hide|HideFile|HostReadOnly|Files|Signals|Leftovers", &syscall.SysProcAttr{}},
		{sandbox.UserNamespaces, "Hide|HostReadOnly|Files|Signals", ordinary},
		{sandbox.Plain, "ServerUnreadable|Calls|Network|Hide", ordinary},
	} {
		cmd := exec.Command("/proc/self/exe", "-test.v", "-test.timeout=60s", fmt.Sprintf("-test.run=^TestContract$/^%s$/^(%s)$", run.mechanism, run.promises))
		cmd.Dir, cmd.Env, cmd.SysProcAttr = "/", []string{path, sameUsers()}, run.as
		output, err := cmd.CombinedOutput()
		for name := range strings.SplitSeq(run.promises, "|") {
			if !strings.Contains(string(output), fmt.Sprintf("--- PASS: TestContract/%s/%s", run.mechanism, name)) {
				err = errors.Join(err, fmt.Errorf("%s did not pass", name))
			}
		}
		if err != nil {
			t.Errorf("%v\n%s", err, output)
		}
	}
}
