package sandbox

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What takes the place of a pid namespace at LevelProcess: the first process is the subreaper of all that the command
// starts, so a daemon, however often it forked, is its descendant.

// killAll ends every descendant of this process.
func (o order) killAll() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.ECHILD) {
			return
		}
		if pid <= 0 {
			o.kill()
			time.Sleep(time.Millisecond)
		}
	}
}

func (o order) kill() {
	if o.Drop {
		killUser(o.Spec.UID)
	} else {
		killDescendants()
	}
}

// killUser kills all processes of the user at once, in the kernel: a process that does nothing but fork cannot outrun
// it. It does so as that user, on a thread that then ends. The caller has locked the main thread, which would not end
// but stay that user's, and by it the whole process.
func killUser(uid int) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
		id := uintptr(uid)
		_, _, failed := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id)
		if failed != 0 || hasCapabilities() {
			return // with a capability kept, the kill would reach all of the machine
		}
		_ = unix.Kill(-1, unix.SIGKILL)
	}()
	<-done
}

func hasCapabilities() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	return err != nil || sets[0].Effective|sets[0].Permitted|sets[1].Effective|sets[1].Permitted != 0
}

func killDescendants() {
	children := map[int][]process{}
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p)
	}
	for next := children[os.Getpid()]; len(next) > 0; next = next[1:] {
		next[0].kill()
		next = append(next, children[next[0].pid]...)
	}
}

type process struct {
	pid, parent, threads int
	started              string // since boot; with the pid it tells processes apart
}

// kill kills this process and no later one that got its pid.
func (p process) kill() {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, err := readProcess(p.pid); err == nil && now.started == p.started {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// processes lists what /proc shows.
func processes() []process {
	entries, _ := os.ReadDir("/proc")
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := readProcess(pid); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// readProcess reads proc_pid_stat(5): after the name, which may hold anything, come the state, the parent, as 18th field
// the number of threads and as 20th the start.
func readProcess(pid int) (process, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return process{}, os.ErrNotExist
	}
	parent, _ := strconv.Atoi(fields[1])
	threads, _ := strconv.Atoi(fields[17])
	return process{pid, parent, threads, fields[19]}, nil
}

func threadsOf(uid int) int {
	sum := 0
	for _, p := range processes() {
		info, err := os.Stat("/proc/" + strconv.Itoa(p.pid))
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) == uid {
			sum += p.threads
		}
	}
	return sum
}
