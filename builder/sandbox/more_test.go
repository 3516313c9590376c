package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
)

// again runs one test of this binary in a process of its own, with these attributes.
func again(t *testing.T, test string, attributes *syscall.SysProcAttr, env ...string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v", "-test.timeout=60s")
	cmd.Env, cmd.SysProcAttr = append(env, path, sameUsers(), "SANDBOX_TEST_AGAIN=1"), attributes
	output, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(output, []byte("--- PASS: "+test)) {
		t.Errorf("%v\n%s", err, output)
	}
}

func bestMechanism() sandbox.Mechanism {
	if os.Geteuid() == 0 {
		return sandbox.Namespaces
	}
	return sandbox.UserNamespaces
}

func TestProbe(t *testing.T) {
	dir := tempDir(t)
	got, err := sandbox.Probe(t.Context(), dir, sandbox.Spec{UID: jobUser, GID: jobUser})
	must(t, err)
	if got.Mechanism != bestMechanism() || got.View != "overlay" || got.Lacking != nil || got.Level != sandbox.LevelNamespaced {
		t.Errorf("found %+v", got)
	}
	if version := fmt.Sprint("landlock ", sandbox.LandlockVersion()); !slices.Contains(got.Guards, "seccomp") || slices.Contains(got.Guards, version) != (version != "landlock 0") {
		t.Errorf("guards are %q", got.Guards)
	}
	got, err = sandbox.Probe(t.Context(), dir, sandbox.Spec{UID: jobUser, GID: jobUser, DenyNetwork: true})
	must(t, err)
	if got.Level != sandbox.LevelSealed {
		t.Errorf("without network, found %+v", got)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestProbeWithoutMounts: a server that may not mount, as in most containers, gets the level that is left, and why.
func TestProbeWithoutMounts(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_AGAIN") == "" {
		attributes := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID}
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		if os.Geteuid() == 0 {
			attributes.UidMappings = append(attributes.UidMappings, syscall.SysProcIDMap{ContainerID: jobUser, HostID: jobUser, Size: 1})
			attributes.GidMappings = append(attributes.GidMappings, syscall.SysProcIDMap{ContainerID: jobUser, HostID: jobUser, Size: 1})
			attributes.GidMappingsEnableSetgroups = true
		}
		again(t, "TestProbeWithoutMounts", attributes)
		return
	}
	for name := range map[string]bool{"max_mnt_namespaces": true, "max_user_namespaces": true} {
		must(t, os.WriteFile("/proc/sys/user/"+name, []byte("0"), 0))
	}
	got, err := sandbox.Probe(t.Context(), tempDir(t), sandbox.Spec{UID: jobUser, GID: jobUser})
	must(t, err)
	if got.Mechanism != sandbox.Plain || got.View != "copy" || !errors.Is(got.Lacking, sandbox.ErrSetup) {
		t.Errorf("found %+v", got)
	}
}

// TestViewFallsBackToCopy: a scratch folder that lies on an overlay, as in a container, cannot carry another one.
func TestViewFallsBackToCopy(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_AGAIN") == "" {
		attributes := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if os.Geteuid() != 0 {
			t.Log("as an ordinary user: in a user namespace")
			attributes.Cloneflags |= unix.CLONE_NEWUSER
			attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		}
		again(t, "TestViewFallsBackToCopy", attributes)
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	f := newFixture(t, bestMechanism())
	for _, name := range []string{"l", "u", "w", "merged"} {
		must(t, os.Mkdir(filepath.Join(f.dir, name), 0o755))
	}
	in := func(name string) string { return filepath.Join(f.dir, name) }
	must(t, unix.Mount("overlay", in("merged"), "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", in("l"), in("u"), in("w"))))
	defer func() { must(t, unix.Unmount(in("merged"), 0)) }()
	f.spec.Scratch = in("merged/scratch")
	job := f.prepare(t)
	want(t, job, damage+"\necho done", "done")
	if view := job.View(); !strings.HasPrefix(view, "copy (mounting an overlay") {
		t.Errorf("the view is %s", view)
	}
	want(t, job, "cat added scripts/image.py", "hostile")
	must(t, job.Close())
}

// TestKillUser: it reaches the processes of that user and no others.
func TestKillUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root kills another user's processes")
		return
	}
	if os.Getenv("SANDBOX_TEST_AGAIN") == "" { // it may leave a thread of this process to that user
		again(t, "TestKillUser", &syscall.SysProcAttr{})
		return
	}
	start := func(uid uint32) *exec.Cmd {
		cmd := exec.Command("sleep", "20")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		must(t, cmd.Start())
		return cmd
	}
	theirs, ours := start(uint32(jobUser)), start(uint32(ordinaryUser))
	sandbox.KillUser(jobUser)
	if err := theirs.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the user's process ended with %v", err)
	}
	must(t, ours.Process.Signal(syscall.SIGTERM))
	if err := ours.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("another user's process ended with %v", err)
	}
}

// TestRemoveAll removes, as an ordinary user, what os.RemoveAll does not.
func TestRemoveAll(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_AGAIN") == "" {
		attributes := &syscall.SysProcAttr{}
		if os.Geteuid() == 0 {
			attributes.Credential = &syscall.Credential{Uid: uint32(ordinaryUser), Gid: uint32(ordinaryUser)}
		}
		again(t, "TestRemoveAll", attributes)
		return
	}
	dir := tempDir(t)
	closed := filepath.Join(dir, "work", "work")
	must(t, os.MkdirAll(filepath.Join(closed, "x"), 0o755))
	must(t, errors.Join(os.Chmod(filepath.Join(closed, "x"), 0o500), os.Chmod(closed, 0), os.Chmod(filepath.Dir(closed), 0o500)))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 100, Max: 100}))
	t.Chdir(dir)
	for range 1000 {
		must(t, os.Mkdir("deep", 0o755))
		must(t, os.WriteFile("file", nil, 0o644))
		must(t, os.Symlink("deep", "link"))
		must(t, syscall.Chdir("deep"))
	}
	must(t, syscall.Chdir(dir))
	if os.RemoveAll(dir) == nil {
		t.Fatal("os.RemoveAll can remove it by now: RemoveAll is not needed any more")
	}
	must(t, sandbox.RemoveAll(dir))
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
	must(t, sandbox.RemoveAll(dir)) // what is not there is removed
	must(t, syscall.Chdir("/"))
}

// BenchmarkRun is what a sandbox adds to the cost of a command: prepare, run /bin/true and close, beside the bare command.
func BenchmarkRun(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			must(b, exec.Command("/bin/true").Run())
		}
	})
	for _, level := range []sandbox.Mechanism{bestMechanism(), sandbox.Plain} {
		command := sandbox.Command{Args: []string{"/bin/true"}}
		b.Run(string(level)+"/whole", func(b *testing.B) {
			f := newFixture(b, level)
			for b.Loop() {
				job, err := sandbox.Prepare(b.Context(), f.spec)
				must(b, err)
				must(b, job.Run(b.Context(), command))
				must(b, job.Close())
			}
		})
		b.Run(string(level)+"/next-command", func(b *testing.B) {
			job := newFixture(b, level).prepare(b)
			for b.Loop() {
				must(b, job.Run(b.Context(), command))
			}
		})
	}
}
