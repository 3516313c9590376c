package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
)

// testProxy: a command without network reaches what the server serves, at the same address each time, and nothing else.
func testProxy(t *testing.T, f *fixture) {
	f.spec.DenyNetwork = true
	asked := make(chan string, 10)
	f.spec.Proxy = func(l net.Listener) {
		err := http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r.URL.Path
			fmt.Fprintln(w, "from the server")
		}))
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("the proxy ended with %v", err)
		}
		asked <- "ended"
	}
	next := func() string {
		select {
		case what := <-asked:
			return what
		case <-time.After(5 * time.Second):
			return "nothing"
		}
	}
	if !f.spec.Mechanism.Namespaced() {
		if _, err := sandbox.Prepare(t.Context(), f.spec); !errors.Is(err, sandbox.ErrSetup) {
			t.Errorf("without a network of its own there is no proxy: error %v", err)
		}
		return
	}
	job := f.prepare(t)
	for range 2 {
		want(t, job, "wget -q -O - http://"+sandbox.ProxyAddress+"/feed", "from the server")
		if got := []string{next(), next()}; !slices.Equal(got, []string{"/feed", "ended"}) {
			t.Errorf("the proxy saw %q", got)
		}
	}
	fails(t, job, "bash -c 'echo > /dev/tcp/192.0.2.1/80'")
	if got := next(); got != "ended" {
		t.Errorf("the proxy saw %q", got)
	}
	// A server that cannot be set up ends as ever, and so does its proxy.
	if err := job.Run(t.Context(), sandbox.Command{Args: []string{"no-such-program"}, Env: []string{path}}); !errors.Is(err, sandbox.ErrSetup) {
		t.Errorf("error %v", err)
	}
	if conn, err := net.DialTimeout("tcp", sandbox.ProxyAddress, time.Second); err == nil {
		conn.Close()
		t.Errorf("the machine itself reaches %s", sandbox.ProxyAddress)
	}
}

// calls are those that a filter denies, with arguments by which the kernel would else let them do something, or
// complain of something else than missing rights.
var calls = map[string][]int{
	"unshare(CLONE_NEWUSER)": {unix.SYS_UNSHARE, unix.CLONE_NEWUSER},
	"clone(CLONE_NEWUSER)":   {unix.SYS_CLONE, unix.CLONE_NEWUSER | int(unix.SIGCHLD)},
	"setns":                  {unix.SYS_SETNS, -1, 0},
	"ptrace(TRACEME)":        {unix.SYS_PTRACE, 0},
	"process_vm_readv":       {unix.SYS_PROCESS_VM_READV, 1, 0, 0, 0, 0, 0},
	"kcmp":                   {unix.SYS_KCMP, 1, 1, 99},
	"pidfd_getfd":            {unix.SYS_PIDFD_GETFD, -1, 0, 0},
	"keyctl":                 {unix.SYS_KEYCTL, 0, -3, 1},
	"add_key":                {unix.SYS_ADD_KEY, 0, 0, 0, 0, 0},
	"userfaultfd":            {unix.SYS_USERFAULTFD, 1 << 20},
	"io_uring_setup":         {unix.SYS_IO_URING_SETUP, 1, 0},
	"io_uring_enter":         {unix.SYS_IO_URING_ENTER, -1, 0, 0, 0, 0},
	"perf_event_open":        {unix.SYS_PERF_EVENT_OPEN, 0, 0, -1, -1, 0},
	"bpf":                    {unix.SYS_BPF, 99, 0, 0},
	"mount":                  {unix.SYS_MOUNT, 0, 0, 0, 0, 0},
	"umount2":                {unix.SYS_UMOUNT2, 0, 1 << 30},
	"open_tree":              {unix.SYS_OPEN_TREE, -1, 0, 1 << 30},
	"fsopen":                 {unix.SYS_FSOPEN, 0, 0},
	"kexec_load":             {unix.SYS_KEXEC_LOAD, 0, 0, 0, 0},
	"init_module":            {unix.SYS_INIT_MODULE, 0, 0, 0},
	"reboot":                 {unix.SYS_REBOOT, 0, 0, 0, 0},
}

func testCalls(t *testing.T, f *fixture) {
	job := f.prepare(t)
	script := "import ctypes, os\ncall = ctypes.CDLL(None, use_errno=True).syscall\n"
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		script += fmt.Sprintf("n = call(%s)\nif n == 0 and %q.startswith('clone'): os._exit(0)\nprint(%q, n, ctypes.get_errno())\n",
			strings.Trim(strings.ReplaceAll(fmt.Sprint(calls[name]), " ", ", "), "[]"), name, name)
	}
	script += fmt.Sprintf("call(%d, 0, 0); print('clone3', ctypes.get_errno())", unix.SYS_CLONE3)
	var expected strings.Builder
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		fmt.Fprintln(&expected, name, -1, int(unix.EPERM))
	}
	fmt.Fprintln(&expected, "clone3", int(unix.ENOSYS))
	var out bytes.Buffer
	must(t, job.Run(t.Context(), sandbox.Command{Args: []string{"python3", "-c", script}, Env: []string{path}, Stdout: &out, Stderr: &out}))
	if out.String() != expected.String() {
		t.Errorf("got\n%swant\n%s", out.String(), expected.String())
	}
	if runtime.GOARCH == "amd64" { // a 32-bit call, whose number the filter would take for another
		fails(t, job, `python3 -c "
import ctypes, mmap
m = mmap.mmap(-1, 4096, prot=7)
m.write(bytes.fromhex('b814000000cd80c3'))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"`)
	}
}

func testSockets(t *testing.T, f *fixture) {
	script := `python3 -c "
import socket, errno
for family in 1, 2, 10, 16, 17, 31, 38, 40:
	try: socket.socket(family, 3 if family == 16 else 1).close(); print(family, 'yes')
	except OSError as e: print(family, errno.errorcode[e.errno])"`
	const foreign = "\n17 EAFNOSUPPORT\n31 EAFNOSUPPORT\n38 EAFNOSUPPORT\n40 EAFNOSUPPORT" // packet, bluetooth, alg, vsock
	want(t, f.prepare(t), script, "1 yes\n2 yes\n10 yes\n16 yes"+foreign)
	f.spec.DenyNetwork, f.spec.Scratch = true, f.spec.Scratch+"2"
	own := "2 yes\n10 yes\n16 yes"
	if !f.spec.Mechanism.Namespaced() {
		own = "2 EAFNOSUPPORT\n10 EAFNOSUPPORT\n16 EAFNOSUPPORT"
	}
	want(t, f.prepare(t), script, "1 yes\n"+own+foreign)
}

// testFiles: of the machine a job finds programs and what they need, and writes nowhere but into its own folders.
func testFiles(t *testing.T, f *fixture) {
	if !f.spec.Mechanism.Namespaced() && sandbox.LandlockVersion() == 0 {
		return // up to the rights of its user
	}
	must(t, os.WriteFile(filepath.Join(f.dir, "open"), []byte("of the machine"), 0o666))
	must(t, os.Chmod(filepath.Join(f.dir, "open"), 0o666))
	must(t, os.Mkdir(filepath.Join(f.dir, "place"), 0o777))
	must(t, os.Chmod(filepath.Join(f.dir, "place"), 0o777))
	job := f.prepare(t)
	fails(t, job, "cat "+f.dir+"/open")
	fails(t, job, "echo x > "+f.dir+"/open")
	fails(t, job, "echo x > "+f.dir+"/place/x")
	fails(t, job, "ln "+f.dir+"/open mine")
	for _, place := range []string{"/", "/etc", "/usr/bin", "/var/tmp", "/run", "/dev"} {
		fails(t, job, "touch "+place+"/x")
	}
	want(t, job, "cp /etc/passwd x && ln x y && mv y scripts/ && mkdir -p d/e && mv d e && rm -r e && mkfifo p && ln -s x l && echo done", "done")
	want(t, job, "head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; echo x > /dev/null; python3 -c 'print(1)'; perl -e 'print 2'", "3\n3\n1\n2")
	if f.spec.Mechanism.Namespaced() {
		want(t, job, "cd /dev && echo * | sed 's/ tty//'", "fd full null random shm stderr stdin stdout urandom zero")
		want(t, job, `awk '$2 !~ "^/(tmp|proc|dev/)" && $4 !~ /^ro(,|$)/ { print $2 " can be written" }' /proc/mounts`, "")
		want(t, job, "cat /proc/mounts | cut -d ' ' -f 2 | grep -v -E '^(/|/(usr|bin|sbin|lib[x0-9]*|opt|etc|nix/store|gnu/store|var/lib/ca-certificates|proc|dev|tmp)(/.*)?)$' | grep -v -F "+sandbox.Resolver()+" || echo no more", "no more")
	}
}

// testSignals: nothing of the job reaches a process that is not the job's.
func testSignals(t *testing.T, f *fixture) {
	if f.weak() || !f.root && !f.spec.Mechanism.Namespaced() && sandbox.LandlockVersion() < 6 {
		return // the same user's
	}
	job := f.prepare(t)
	fails(t, job, fmt.Sprintf("kill -0 %d", os.Getpid()))
	// The parent is the sandbox's own: were it killed, the rest of the job would be nobody's.
	want(t, job, "kill -9 $PPID 2>&-; sleep 0.05; echo alive", "alive")
	l, err := net.Listen("unix", "@sandbox-test-"+filepath.Base(f.dir)) // an abstract one
	must(t, err)
	defer l.Close()
	if sandbox.LandlockVersion() >= 6 {
		fails(t, job, fmt.Sprintf(`python3 -c "import socket; socket.socket(socket.AF_UNIX).connect('\0sandbox-test-%s')"`, filepath.Base(f.dir)))
	}
}

// eat takes so many MB of memory in each of so many processes.
func eat(mb, processes int) string {
	return fmt.Sprintf(`python3 -c "
import os, time
for i in range(%d):
	if os.fork() == 0:
		x = bytearray(%d << 20)
		for j in range(0, len(x), 4096): x[j] = 1
		time.sleep(0.3)
		os._exit(0)
codes = [os.wait()[1] for i in range(%d)]
os._exit(1 if any(codes) else 0)"`, processes, mb, processes)
}

func testMemory(t *testing.T, f *fixture) {
	f.spec.Limits.Memory, f.spec.Limits.Time = 200<<20, 10*time.Second
	job := f.prepare(t)
	want(t, job, "echo honest", "honest")
	if raceDetector && !grouped(job) {
		return // with it the first process has terabytes, of which it uses nothing
	}
	_, err := sh(t, job, eat(250, 1))
	if exit := (*sandbox.ExitError)(nil); !errors.As(err, &exit) && !errors.Is(err, sandbox.ErrMemory) {
		t.Errorf("one process takes more than all may: error %v", err)
	}
	if !grouped(job) {
		return
	}
	if _, err := sh(t, job, eat(110, 3)); !errors.Is(err, sandbox.ErrMemory) || !errors.Is(err, sandbox.ErrKilled) {
		t.Errorf("three take more than all may: error %v", err)
	}
	if _, err := sh(t, job, "echo honest"); err != nil {
		t.Errorf("after it: %v", err)
	}
	before := groups(t)
	must(t, job.Close())
	if after := groups(t); len(before) == 0 || len(after) >= len(before) {
		t.Errorf("there were the control groups %q, and %q are left", before, after)
	}
}

// grouped tells whether the job has a control group for memory.
func grouped(job *sandbox.Job) bool {
	return slices.ContainsFunc(job.Guards(), func(g string) bool { return strings.HasPrefix(g, "cgroup") && strings.Contains(g, "memory") })
}

// groups lists the control groups of this process's jobs; other processes make and remove theirs meanwhile.
func groups(t *testing.T) (list []string) {
	t.Helper()
	own := fmt.Sprintf("%s%d-", sandbox.GroupPrefix, os.Getpid())
	must(t, filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), own) {
			list = append(list, path)
		}
		return nil
	}))
	return list
}

func testDisk(t *testing.T, f *fixture) {
	f.spec.Limits.Disk, f.spec.Limits.Entries, f.spec.Limits.Time = 20<<20, 3000, 20*time.Second
	out := filepath.Join(f.dir, "out")
	must(t, os.Mkdir(out, 0o755))
	f.spec.Binds = []sandbox.Bind{{Host: out, Inside: "/tmp/out", Writable: true}}
	for i, attack := range []string{
		"head -c 60000000 /dev/zero > big; sleep 15",
		"for i in 1 2 3 4 5 6; do head -c 10000000 /dev/zero > %s/$i; done; sleep 15",
		"python3 -c \"import os\nfor i in range(4500): os.mkdir('d' + str(i))\"; sleep 15",
	} {
		f.spec.Scratch = filepath.Join(f.dir, fmt.Sprint("scratch-", i))
		job := f.prepare(t)
		begin := time.Now()
		if strings.Contains(attack, "%s") {
			attack = fmt.Sprintf(attack, job.Path("/tmp/out"))
		}
		if _, err := sh(t, job, attack); !errors.Is(err, sandbox.ErrDisk) || time.Since(begin) > 10*time.Second {
			t.Errorf("%s: error %v after %s", attack, err, time.Since(begin))
		}
		must(t, job.Close())
	}
	// A sparse file is large in name only; and what others write is not the job's.
	f.spec.Binds = nil
	f.spec.Scratch = filepath.Join(f.dir, "scratch-sparse")
	job := f.prepare(t)
	must(t, os.WriteFile(filepath.Join(f.dir, "others"), make([]byte, 30<<20), 0o644))
	want(t, job, "truncate -s 100M sparse; sleep 0.5; echo honest", "honest")
	fails(t, job, "truncate -s 2T sparse")
}

// testDiskLow: whatever a build hides from who counts, the disk does not get full by it. Only root has a small disk.
func testDiskLow(t *testing.T, f *fixture) {
	if !f.root || inContainer() {
		return
	}
	disk := filepath.Join(f.dir, "disk")
	must(t, os.Mkdir(disk, 0o755))
	must(t, unix.Mount("sandbox-test", disk, "tmpfs", 0, "size=128m,mode=0755"))
	defer func() { must(t, unix.Unmount(disk, 0)) }()
	f.spec.Scratch = filepath.Join(disk, "scratch")
	f.spec.Limits.Time = 15 * time.Second
	job := f.prepare(t)
	_, err := sh(t, job, `python3 -c "
import os, time
f = open('hidden', 'wb'); os.unlink('hidden')
for i in range(127):
	f.write(bytes(1 << 20)); f.flush(); time.sleep(0.005)
time.sleep(10)"`)
	if !errors.Is(err, sandbox.ErrDiskLow) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	must(t, job.Close())
}

// TestDemand: a server that is told how far builds have to be confined starts only where they are, or says what lacks.
func TestDemand(t *testing.T) {
	lacking := errors.New("mechanism namespaces: no")
	for _, test := range []struct {
		support sandbox.Support
		least   sandbox.Level
		says    []string // nil: it is met
	}{
		{sandbox.Support{Level: sandbox.LevelSameUser}, "", nil},
		{sandbox.Support{Level: sandbox.LevelSealed}, sandbox.LevelSealed, nil},
		{sandbox.Support{Level: sandbox.LevelSealed}, sandbox.LevelOffline, nil},
		{sandbox.Support{Level: sandbox.LevelNamespaced, NetworkOpen: true}, sandbox.LevelNetworkOpen, nil},
		{sandbox.Support{Level: sandbox.LevelNamespaced, NetworkOpen: true}, sandbox.LevelSealed, []string{"namespaced", "sealed", "the network is open"}},
		{sandbox.Support{Level: sandbox.LevelNetworkOpen, NetworkOpen: true, Lacking: lacking}, sandbox.LevelOffline, []string{"the network is open", "no"}},
		{sandbox.Support{Level: sandbox.LevelNetworkOpen, NetworkOpen: true, Lacking: lacking}, sandbox.LevelNamespaced, []string{"mechanism namespaces: no"}},
		{sandbox.Support{Level: sandbox.LevelSameUser, NetworkOpen: true}, sandbox.LevelNetworkOpen, []string{"root"}},
		{sandbox.Support{Level: sandbox.LevelSealed}, "best", []string{`"best"`, "same-user"}},
	} {
		err := test.support.Demand(test.least)
		if (err == nil) != (test.says == nil) {
			t.Errorf("%s where %q is demanded: error %v", test.support.Level, test.least, err)
		}
		for _, word := range test.says {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not say %q", err, word)
			}
		}
	}
}

// TestMounted: control groups are where mountinfo says, be it of a machine, of a container, or of both versions at once.
func TestMounted(t *testing.T) {
	const mounts = `30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 /docker/4711 /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
`
	for _, test := range []struct{ kind, controller, path, want string }{
		{"cgroup2", "", "/", "/sys/fs/cgroup/unified"},
		{"cgroup2", "", "/system.slice/sysup.service", "/sys/fs/cgroup/unified/system.slice/sysup.service"},
		{"cgroup", "cpu", "/x", "/sys/fs/cgroup/cpu,cpuacct/x"},
		{"cgroup", "memory", "/docker/4711", "/sys/fs/cgroup/memory"},
		{"cgroup", "memory", "/docker/4711/y", "/sys/fs/cgroup/memory/y"},
		{"cgroup", "memory", "/docker/4712", ""},
		{"cgroup", "mem", "/docker/4711", ""},
		{"cgroup", "pids", "/", ""},
	} {
		if got := sandbox.Mounted(mounts, test.kind, test.controller, test.path); got != test.want {
			t.Errorf("%s %s %s: %q, want %q", test.kind, test.controller, test.path, got, test.want)
		}
	}
}
