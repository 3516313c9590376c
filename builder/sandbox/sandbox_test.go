package sandbox_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
)

// The users of the tests, which nothing else on a machine has, other runs of these tests included: jobUser runs the
// commands, where the tests are root, ordinaryUser the tests of what needs no root.
var jobUser, ordinaryUser = users()

func users() (job, ordinary int) {
	first, err := strconv.Atoi(os.Getenv("SANDBOX_TEST_USERS"))
	if err != nil {
		first = 1<<24 + 2*os.Getpid()
	}
	return first, first + 1
}

// sameUsers lets another process of the tests have the same.
func sameUsers() string { return fmt.Sprint("SANDBOX_TEST_USERS=", jobUser) }

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func TestMain(m *testing.M) {
	sandbox.Init()
	if spec := os.Getenv("SANDBOX_TEST_SERVER"); spec != "" {
		server(spec)
	}
	os.Exit(m.Run())
}

// TestContract runs every promise at every level that this user can reach, and, as root, again as an ordinary user.
func TestContract(t *testing.T) {
	levels := []sandbox.Mechanism{sandbox.UserNamespaces, sandbox.Plain}
	if os.Geteuid() == 0 {
		levels[0] = sandbox.Namespaces
		t.Run("ordinary", contractAsOrdinaryUser)
	} else {
		t.Logf("the tests run as user %d: levels %v only; as root they test all", os.Geteuid(), levels)
	}
	for _, level := range levels {
		t.Run(string(level), func(t *testing.T) { contract(t, level) })
	}
}

func contractAsOrdinaryUser(t *testing.T) {
	again := exec.Command("/proc/self/exe", "-test.run=^TestContract$", "-test.v", "-test.timeout=120s")
	again.Dir, again.Env = "/", []string{path, sameUsers()}
	again.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(ordinaryUser), Gid: uint32(ordinaryUser)}}
	output, err := again.CombinedOutput()
	for _, level := range []sandbox.Mechanism{sandbox.UserNamespaces, sandbox.Plain} {
		if !strings.Contains(string(output), "--- PASS: TestContract/"+string(level)) {
			err = errors.Join(err, fmt.Errorf("level %s did not pass", level))
		}
	}
	if err != nil {
		t.Errorf("as user %d: %v\n%s", ordinaryUser, err, output)
	}
}

func contract(t *testing.T, level sandbox.Mechanism) {
	for _, c := range []struct {
		promise string
		test    func(*testing.T, *fixture)
	}{
		{"Identity", testIdentity},
		{"NoPrivileges", testNoPrivileges},
		{"Environment", testEnvironment},
		{"Umask", testUmask},
		{"Output", testOutput},
		{"ExitCodes", testExitCodes},
		{"NothingRuns", testNothingRuns},
		{"TreeUnchanged", testTreeUnchanged},
		{"TreeUnchangedByCopy", testTreeUnchangedByCopy},
		{"TwoJobs", testTwoJobs},
		{"Paths", testPaths},
		{"Binds", testBinds},
		{"Hide", testHide},
		{"HideFile", testHideFile},
		{"HostReadOnly", testHostReadOnly},
		{"Daemon", testDaemon},
		{"TimeLimit", testTimeLimit},
		{"Cancel", testCancel},
		{"OutputError", testOutputError},
		{"ServerKilled", testServerKilled},
		{"ForkBomb", testForkBomb},
		{"Limits", testLimits},
		{"Network", testNetwork},
		{"Proxy", testProxy},
		{"Calls", testCalls},
		{"Sockets", testSockets},
		{"Files", testFiles},
		{"Signals", testSignals},
		{"Memory", testMemory},
		{"Disk", testDisk},
		{"DiskLow", testDiskLow},
		{"ManyArguments", testManyArguments},
		{"ServerUnreadable", testServerUnreadable},
		{"Leftovers", testLeftovers},
	} {
		t.Run(c.promise, func(t *testing.T) { c.test(t, newFixture(t, level)) })
	}
}

// fixture is a small tree and a Spec for it.
type fixture struct {
	dir  string // holds tree, scratch, out; open to all
	spec sandbox.Spec
	root bool
	uid  int // of the commands
}

func newFixture(t testing.TB, level sandbox.Mechanism) *fixture {
	t.Helper()
	f := &fixture{dir: tempDir(t), root: os.Geteuid() == 0, uid: os.Geteuid()}
	f.spec = sandbox.Spec{Tree: filepath.Join(f.dir, "tree"), Scratch: filepath.Join(f.dir, "scratch"), Mechanism: level}
	f.spec.Limits.Time = 20 * time.Second
	if f.root {
		f.spec.UID, f.spec.GID, f.uid = jobUser, jobUser, jobUser
	}
	for name, content := range map[string]string{
		"Makefile": "all:\n", "scripts/image.py": "honest\n", "build_dir/old/a": "a", "build_dir/old/b": "b",
	} {
		file := filepath.Join(f.spec.Tree, name)
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, []byte(content), 0o644))
	}
	must(t, os.Link(filepath.Join(f.spec.Tree, "Makefile"), filepath.Join(f.spec.Tree, "Makefile.again")))
	must(t, os.Symlink("/usr/bin/env", filepath.Join(f.spec.Tree, "link")))
	must(t, os.Chtimes(filepath.Join(f.spec.Tree, "build_dir"), time.Time{}, time.Unix(1e9, 5)))
	return f
}

// tempDir is like t.TempDir, but its folders can be entered by other users, and are not hidden by a private /tmp.
func tempDir(t testing.TB) string {
	t.Helper()
	place, err := filepath.EvalSymlinks("/var/tmp") // a link in the builder's container
	must(t, err)
	dir, err := os.MkdirTemp(place, "sandbox-test-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must(t, sandbox.RemoveAll(dir)) })
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) prepare(t testing.TB) *sandbox.Job {
	t.Helper()
	job, err := sandbox.Prepare(t.Context(), f.spec)
	must(t, err)
	t.Cleanup(func() { must(t, job.Close()) })
	return job
}

// sh runs a script and gives what it printed.
func sh(t testing.TB, job *sandbox.Job, script string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := job.Run(t.Context(), sandbox.Command{Args: []string{"sh", "-c", script}, Env: []string{path}, Stdout: &out, Stderr: &out})
	return out.String(), err
}

// want runs a script that must succeed and print exactly this.
func want(t testing.TB, job *sandbox.Job, script, output string) {
	t.Helper()
	got, err := sh(t, job, script)
	if err != nil || strings.TrimSpace(got) != strings.TrimSpace(output) {
		t.Errorf("%s\nprinted %q (%v), want %q", script, got, err, output)
	}
}

// fails runs a script that must not succeed.
func fails(t testing.TB, job *sandbox.Job, script string) {
	t.Helper()
	got, err := sh(t, job, script)
	if exit := (*sandbox.ExitError)(nil); !errors.As(err, &exit) {
		t.Errorf("%s\nprinted %q (%v), want a failure", script, got, err)
	}
}

func testIdentity(t *testing.T, f *fixture) {
	job := f.prepare(t)
	if f.root {
		want(t, job, "id -u; id -g; id -G", fmt.Sprintf("%[1]d\n%[1]d\n%[1]d", jobUser))
		fails(t, job, "cat /etc/shadow")
	} else {
		want(t, job, "id -u; id -g", fmt.Sprintf("%d\n%d", f.uid, os.Getegid()))
	}
	want(t, job, "stat -c %u Makefile scripts .", fmt.Sprintf("%[1]d\n%[1]d\n%[1]d", f.uid))
	f.spec.Scratch += "2"
	for _, uid := range []int{0, -1, 1 << 32, 1<<32 - 1} { // the kernel's numbers have 32 bits, and -1 is none
		f.spec.UID = uid
		if _, err := sandbox.Prepare(t.Context(), f.spec); f.root != errors.Is(err, sandbox.ErrSetup) {
			t.Errorf("a job as uid %d: error %v", uid, err)
		}
		_ = os.RemoveAll(f.spec.Scratch)
	}
}

func testNoPrivileges(t *testing.T, f *fixture) {
	job := f.prepare(t)
	none := "0000000000000000"
	lines := fmt.Sprintf("CapInh:\t%[1]s\nCapPrm:\t%[1]s\nCapEff:\t%[1]s\nCapAmb:\t%[1]s\nNoNewPrivs:\t1", none)
	want(t, job, "grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs):' /proc/self/status", lines)
	if inContainer() {
		none = containerMask // it takes a capability to give them up for good; without new privileges none comes back
	}
	if f.root || f.spec.Mechanism.Namespaced() {
		want(t, job, "grep CapBnd /proc/self/status", "CapBnd:\t"+none)
	}
	fails(t, job, "chown 0:0 Makefile")
	fails(t, job, "mount -t tmpfs none .")
	fails(t, job, "umount /tmp")
	fails(t, job, "ls /proc/$PPID/fd")
	want(t, job, "for s in HUP INT QUIT TERM USR1 CHLD; do kill -$s $PPID 2>&-; done; sleep 0.05; echo alive", "alive")
}

func testEnvironment(t *testing.T, f *fixture) {
	t.Setenv("SECRET", "of the server")
	var out bytes.Buffer
	env := []string{path, "LC_ALL=C", "ODD=a b\xff'\"$x", "EMPTY="}
	must(t, f.prepare(t).Run(t.Context(), sandbox.Command{Args: []string{"env"}, Env: env, Stdout: &out}))
	if got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"); !slices.Equal(got, env) {
		t.Errorf("the environment is %q, want %q", got, env)
	}
}

func testUmask(t *testing.T, f *fixture) {
	defer syscall.Umask(syscall.Umask(0o077))
	want(t, f.prepare(t), "umask; touch new; mkdir sub; stat -c %a new sub", "0022\n644\n755")
}

func testOutput(t *testing.T, f *fixture) {
	job := f.prepare(t)
	var out, err bytes.Buffer
	must(t, job.Run(t.Context(), sandbox.Command{
		Args: []string{"sh", "-c", "echo out; echo err > /dev/stderr; cat; readlink /proc/self/fd/3 || echo none"}, Env: []string{path}, Stdout: &out, Stderr: &err,
	}))
	if out.String() != "out\nnone\n" || err.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), err.String())
	}
}

func testExitCodes(t *testing.T, f *fixture) {
	job := f.prepare(t)
	for script, want := range map[string]sandbox.ExitError{
		"exit 3":        {Code: 3},
		"kill -TERM $$": {Code: 128 + 15, Signal: syscall.SIGTERM},
		"kill -KILL $$": {Code: 128 + 9, Signal: syscall.SIGKILL},
	} {
		_, err := sh(t, job, script)
		if exit := (*sandbox.ExitError)(nil); !errors.As(err, &exit) || *exit != want {
			t.Errorf("%s: error %v, want %v", script, err, want)
		}
	}
	for _, args := range [][]string{{"no-such-program"}, {"./Makefile"}, nil} {
		err := job.Run(t.Context(), sandbox.Command{Args: args, Env: []string{path}})
		if !errors.Is(err, sandbox.ErrSetup) {
			t.Errorf("%q: error %v, want %v", args, err, sandbox.ErrSetup)
		}
	}
}

// testNothingRuns: the command sees no process but its own at the levels that promise it.
func testNothingRuns(t *testing.T, f *fixture) {
	if !f.spec.Mechanism.Namespaced() {
		return
	}
	want(t, f.prepare(t), "hostname; for p in /proc/[0-9]*; do cat $p/comm; done | sort -u | grep -v -E '^(sh|cat|exe|sort|grep|sandbox.test)$' || echo none", "sysup\nnone")
}

const damage = `set -e
echo hostile > scripts/image.py
rm Makefile; mkdir Makefile
mv build_dir/old build_dir/new 2>/dev/null || { cp -a build_dir/old build_dir/new; rm -r build_dir/old; }
chmod 600 link/../scripts/image.py 2>/dev/null || chmod 600 scripts/image.py
touch added; rm link; echo more >> Makefile.again
rm -r build_dir/new; mkdir build_dir/old; echo c > build_dir/old/c`

func testTreeUnchanged(t *testing.T, f *fixture) {
	before := listing(t, f.spec.Tree)
	job, err := sandbox.Prepare(t.Context(), f.spec)
	must(t, err)
	want(t, job, damage, "")
	want(t, job, "cat scripts/image.py; ls build_dir/old; test -d Makefile", "hostile\nc") // a second command in the same view
	if f.spec.Mechanism.Namespaced() != (job.View() == "overlay") && !f.spec.Copy {
		t.Errorf("the view is %s", job.View())
	}
	must(t, job.Close())
	if after := listing(t, f.spec.Tree); after != before {
		t.Errorf("the tree was\n%s\nis now\n%s", before, after)
	}
	if _, err := os.Lstat(f.spec.Scratch); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the scratch folder is left: %v", err)
	}
	noMounts(t, f)
	want(t, f.prepare(t), "cat scripts/image.py; ls build_dir/old", "honest\na\nb") // the next job
}

func testTreeUnchangedByCopy(t *testing.T, f *fixture) {
	f.spec.Copy = true
	testTreeUnchanged(t, f)
	f.spec.Scratch += "2"
	job := f.prepare(t)
	if job.View() != "copy" {
		t.Errorf("the view is %s", job.View())
	}
	view := filepath.Join(f.spec.Scratch, "view")
	if original, copied := listing(t, f.spec.Tree), listing(t, view); original != copied {
		t.Errorf("the tree is\n%s\nthe copy is\n%s", original, copied)
	}
	want(t, job, "test Makefile -ef Makefile.again && echo one file", "one file")
}

// listing shows all that a tree is: names, kinds, permissions, times, contents.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var lines strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, _ := os.Readlink(path)
		if info.Mode().IsRegular() {
			bytes, _ := os.ReadFile(path)
			content = string(bytes)
		}
		fmt.Fprintf(&lines, "%s %s %d %q\n", path[len(dir):], info.Mode(), info.ModTime().UnixNano(), content)
		return nil
	}))
	return lines.String()
}

// noMounts: the host has no mount in the fixture's folders.
func noMounts(t testing.TB, f *fixture) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if bytes.Contains(mounts, []byte(f.dir)) {
		t.Errorf("a mount is left:\n%s", mounts)
	}
}

func testTwoJobs(t *testing.T, f *fixture) {
	one := f.prepare(t)
	f.spec.Scratch += "2"
	two := f.prepare(t)
	want(t, one, "echo one > mine; echo one > /dev/stdout; touch "+one.Path("/tmp/one"), "one")
	want(t, two, "ls mine "+two.Path("/tmp/one")+" 2>/dev/null | wc -l", "0")
}

func testPaths(t *testing.T, f *fixture) {
	job := f.prepare(t)
	if f.spec.Mechanism.Namespaced() && job.Path("/tmp/imagebuilder/scripts") != "/tmp/imagebuilder/scripts" {
		t.Errorf("the tree is seen at %s", job.Path("/tmp/imagebuilder"))
	}
	want(t, job, "pwd -P", job.Path("/tmp/imagebuilder"))
	want(t, job, "cat "+job.Path("/tmp/imagebuilder/scripts/image.py"), "honest")
	want(t, job, "echo x > "+job.Path("/tmp/x")+" && cat "+job.Path("/tmp/x"), "x")
}

func testBinds(t *testing.T, f *fixture) {
	out, files := filepath.Join(f.dir, "out"), filepath.Join(f.dir, "files")
	must(t, errors.Join(os.Mkdir(out, 0o755), os.Mkdir(files, 0o755), os.WriteFile(filepath.Join(files, "f"), []byte("data"), 0o644)))
	f.spec.Binds = []sandbox.Bind{{Host: out, Inside: "/tmp/out", Writable: true}, {Host: files, Inside: "/tmp/imagebuilder/files"}}
	f.spec.Hide = []string{f.dir}
	if !f.spec.Mechanism.Namespaced() {
		f.spec.Hide = nil
	}
	job := f.prepare(t)
	want(t, job, "cat "+job.Path("/tmp/imagebuilder/files/f")+"; echo image > "+job.Path("/tmp/out/image"), "data")
	if image, err := os.ReadFile(filepath.Join(out, "image")); string(image) != "image\n" {
		t.Errorf("the output is %q, %v", image, err)
	}
	if f.root || f.spec.Mechanism.Namespaced() {
		fails(t, job, "touch "+job.Path("/tmp/imagebuilder/files/new"))
	}
	f.spec.Binds, f.spec.Scratch = []sandbox.Bind{{Host: out, Inside: "/etc/x"}}, f.spec.Scratch+"2"
	if _, err := sandbox.Prepare(t.Context(), f.spec); !errors.Is(err, sandbox.ErrSetup) {
		t.Errorf("a folder shown over the host's: error %v", err)
	}
}

func testHide(t *testing.T, f *fixture) {
	data := filepath.Join(f.dir, "data")
	key := filepath.Join(data, "keys", "secret")
	must(t, os.MkdirAll(filepath.Dir(key), 0o755))
	must(t, os.WriteFile(key, []byte("key"), 0o644))
	f.spec.Hide = []string{data, filepath.Join(f.dir, "missing")}
	if !f.spec.Mechanism.Namespaced() && f.root {
		if _, err := sandbox.Prepare(t.Context(), f.spec); !errors.Is(err, sandbox.ErrSetup) {
			t.Fatalf("folders open to all cannot be hidden: error %v", err)
		}
		must(t, os.Chmod(data, 0o700))
	}
	job := f.prepare(t)
	if f.weak() {
		want(t, job, "cat "+key, "key") // what this is not good for, as its comment says
		return
	}
	fails(t, job, "cat "+key)
	if f.spec.Mechanism.Namespaced() {
		want(t, job, "for d in /root /home /run /sys /srv /mnt /var/tmp /var/log /boot; do test ! -e $d || echo $d; done", "")
		fails(t, job, fmt.Sprintf("ls -d %s || ls -d %s || ls -d %s", data, f.spec.Tree, f.spec.Scratch))
	}
}

// weak tells whether the job has the user of the tests and all of their files.
func (f *fixture) weak() bool {
	return !f.root && !f.spec.Mechanism.Namespaced() && sandbox.LandlockVersion() == 0
}

// testHideFile: a secret need not have a folder of its own.
func testHideFile(t *testing.T, f *fixture) {
	key, link := filepath.Join(f.dir, "key"), filepath.Join(f.dir, "link")
	must(t, os.WriteFile(key, []byte("secret"), 0o600))
	must(t, os.Chmod(key, 0o644))
	must(t, os.Symlink(key, link)) // as Kubernetes mounts secrets
	f.spec.Hide = []string{link, "/root/closed/to/ordinary/users"}
	if !f.spec.Mechanism.Namespaced() && f.root {
		if _, err := sandbox.Prepare(t.Context(), f.spec); !errors.Is(err, sandbox.ErrSetup) {
			t.Fatalf("a file open to all cannot be hidden: error %v", err)
		}
		must(t, os.Chmod(key, 0o600))
	}
	job := f.prepare(t)
	if f.weak() {
		return
	}
	for _, name := range []string{key, link} {
		want(t, job, "cat "+name+" 2> /dev/null; echo done", "done")
	}
	if text, err := os.ReadFile(key); string(text) != "secret" {
		t.Errorf("the file has %q (%v)", text, err)
	}
}

func testHostReadOnly(t *testing.T, f *fixture) {
	if !f.spec.Mechanism.Namespaced() {
		return
	}
	job := f.prepare(t)
	name := "sandbox-test-" + rand.Text()
	for _, dir := range []string{"/var/tmp", "/tmp", "/dev/shm"} {
		_, _ = sh(t, job, "touch "+dir+"/"+name)
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a build left a file in %s (%v)", dir, err)
			_ = os.Remove(filepath.Join(dir, name))
		}
	}
	want(t, job, "touch /tmp/a /dev/shm/a; ls /tmp /dev/shm", "/dev/shm:\na\n\n/tmp:\na\nimagebuilder")
	fails(t, job, "touch /var/tmp/"+name)
}

// marked makes arguments by which the processes of a script are found: every fork of the shell carries them.
func marked(script string) (args []string, marker string) {
	marker = "mark-" + rand.Text()
	return []string{"sh", "-c", script, marker}, marker
}

// running lists the processes that carry the marker, this one and zombies excepted.
func running(marker string) []string {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, file := range entries {
		text, _ := os.ReadFile(file)
		if bytes.Contains(text, []byte(marker)) && file != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
			found = append(found, file+" "+string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func nothingRuns(t testing.TB, markers ...string) {
	t.Helper()
	for _, marker := range markers {
		if left := running(marker); len(left) > 0 {
			t.Errorf("still running: %q", left)
		}
	}
}

// daemon leaves a process that no group, session, pipe or parent ties to the script, prints a line once it runs, and
// ignores what can be ignored.
const daemon = `trap "" TERM INT HUP QUIT
setsid sh -c 'trap "" TERM HUP; (sh -c "while :; do sleep 0.05; done" "$0" &) & ' "$0"
sleep 0.1; echo ready; `

func testDaemon(t *testing.T, f *fixture) {
	args, marker := marked(daemon)
	var out bytes.Buffer
	must(t, f.prepare(t).Run(t.Context(), sandbox.Command{Args: args, Env: []string{path}, Stdout: &out}))
	if out.String() != "ready\n" {
		t.Errorf("printed %q", out.String())
	}
	nothingRuns(t, marker)
}

func testTimeLimit(t *testing.T, f *fixture) {
	f.spec.Limits.Time = 400 * time.Millisecond
	args, marker := marked(daemon + "while :; do sleep 0.05; done")
	start := time.Now()
	err := f.prepare(t).Run(t.Context(), sandbox.Command{Args: args, Env: []string{path}, Stdout: io.Discard})
	if took := time.Since(start); !errors.Is(err, sandbox.ErrTimeLimit) || took > 10*time.Second {
		t.Errorf("error %v after %s", err, took)
	}
	nothingRuns(t, marker, f.spec.Scratch)
}

// onWrite calls a function at the first output.
type onWrite func() error

func (w onWrite) Write(p []byte) (int, error) { return len(p), w() }

func testCancel(t *testing.T, f *fixture) {
	reason := errors.New("the server shuts down")
	ctx, cancel := context.WithCancelCause(t.Context())
	args, marker := marked(daemon + "while :; do sleep 0.05; done")
	err := f.prepare(t).Run(ctx, sandbox.Command{Args: args, Env: []string{path}, Stdout: onWrite(func() error { cancel(reason); return nil })})
	if !errors.Is(err, reason) {
		t.Errorf("error %v, want %v", err, reason)
	}
	nothingRuns(t, marker, f.spec.Scratch)
}

func testOutputError(t *testing.T, f *fixture) {
	full := errors.New("the log's disk is full")
	err := f.prepare(t).Run(t.Context(), sandbox.Command{
		Args: []string{"sh", "-c", "echo x"}, Env: []string{path}, Stdout: onWrite(func() error { return full }),
	})
	if !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
}

func testForkBomb(t *testing.T, f *fixture) {
	f.spec.Limits.Processes, f.spec.Limits.Time = 60, time.Second
	bombs := []string{`b() { b | b & }; b; while :; do sleep 0.05 || :; done`}
	if f.root || f.spec.Mechanism.Namespaced() { // each process of this one is gone before it can be found
		bombs = append(bombs, `c() { c & exit; }; c & sleep 0.3; exit 1`)
	}
	job := f.prepare(t)
	for _, bomb := range bombs {
		args, marker := marked(bomb)
		start := time.Now()
		err := job.Run(t.Context(), sandbox.Command{Args: args, Env: []string{path}})
		if err == nil || time.Since(start) > 20*time.Second {
			t.Errorf("%s: error %v after %s", bomb, err, time.Since(start))
		}
		for range 10 { // one look could miss it
			nothingRuns(t, marker, f.spec.Scratch)
		}
	}
}

func testLimits(t *testing.T, f *fixture) {
	f.spec.Limits.Files, f.spec.Limits.FileSize, f.spec.Limits.Tmp = 123, 1<<20, 2<<20
	job := f.prepare(t)
	want(t, job, "ulimit -S -n; ulimit -H -n; ulimit -c", "123\n123\n0")
	fails(t, job, "head -c 2000000 /dev/zero > big")
	if f.spec.Mechanism.Namespaced() {
		fails(t, job, "for i in 1 2 3; do head -c 1000000 /dev/zero > /tmp/$i || exit 1; done")
	}
}

func testNetwork(t *testing.T, f *fixture) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	connect := fmt.Sprintf("bash -c 'echo > /dev/tcp/127.0.0.1/%d'", listener.Addr().(*net.TCPAddr).Port)
	want(t, f.prepare(t), connect, "")
	f.spec.DenyNetwork, f.spec.Scratch = true, f.spec.Scratch+"2"
	job := f.prepare(t)
	fails(t, job, connect)
	fails(t, job, "bash -c 'echo > /dev/udp/192.0.2.1/53'")
	if f.spec.Mechanism.Namespaced() {
		// fakeroot speaks with itself by TCP.
		want(t, job, "python3 -c \"import socket; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); print('own')\"", "own")
	}
}

func testManyArguments(t *testing.T, f *fixture) {
	args := []string{"sh", "-c", "echo $#", "sh"}
	for range 10 {
		args = append(args, strings.Repeat("package ", 4000))
	}
	var out bytes.Buffer
	must(t, f.prepare(t).Run(t.Context(), sandbox.Command{Args: args, Env: []string{path}, Stdout: &out}))
	if out.String() != "10\n" {
		t.Errorf("printed %q", out.String())
	}
}

// testServerKilled kills a server, which is a process of its own, with SIGKILL while its job runs, and then at ever
// later moments from its start on. Nothing of it runs afterwards, nothing is mounted, and the folder can be removed.
func testServerKilled(t *testing.T, f *fixture) {
	for i := range 12 {
		args, marker := marked(daemon + "while :; do sleep 0.05; done")
		dir := filepath.Join(f.dir, strconv.Itoa(i))
		must(t, os.Mkdir(dir, 0o755))
		scratch := filepath.Join(dir, "scratch")
		held, hold, err := os.Pipe() // each process of the server holds it open, also while its name is in change
		must(t, err)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{path, sameUsers(),
			"SANDBOX_TEST_SERVER=" + string(f.spec.Mechanism), "TREE=" + f.spec.Tree, "SCRATCH=" + scratch,
			"SCRIPT=" + args[2], "MARKER=" + marker,
		}
		cmd.Stdout = hold
		must(t, cmd.Start())
		must(t, hold.Close())
		must(t, held.SetReadDeadline(time.Now().Add(10*time.Second)))
		if i == 0 {
			if _, err := held.Read(make([]byte, 6)); err != nil {
				t.Errorf("the job did not start: %v", err)
			}
		} else {
			time.Sleep(time.Duration(i) * 2 * time.Millisecond)
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		if _, err := io.Copy(io.Discard, held); err != nil {
			t.Errorf("killed after step %d, its processes go on: %v", i, err)
		}
		must(t, held.Close())
		nothingRuns(t, marker, scratch)
		noMounts(t, f)
		must(t, sandbox.RemoveAll(dir))
		sandbox.RemoveStaleGroups() // as the next server does
		for _, group := range groups(t) {
			if strings.Contains(group, fmt.Sprintf("%s%d-", sandbox.GroupPrefix, cmd.Process.Pid)) {
				t.Errorf("a control group is left: %s", group)
			}
		}
	}
}

// server is the process that testServerKilled kills.
func server(level string) {
	spec := sandbox.Spec{Mechanism: sandbox.Mechanism(level), Tree: os.Getenv("TREE"), Scratch: os.Getenv("SCRATCH")}
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = jobUser, jobUser
	}
	job, err := sandbox.Prepare(context.Background(), spec)
	if err == nil {
		args := []string{"sh", "-c", os.Getenv("SCRIPT"), os.Getenv("MARKER")}
		err = job.Run(context.Background(), sandbox.Command{Args: args, Env: []string{path}, Stdout: os.Stdout, Stderr: os.Stderr})
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
