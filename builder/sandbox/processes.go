package sandbox

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What takes the place of a pid namespace at LevelProcess: the first process is the subreaper of all that the command
// starts, so a daemon, however often it forked, is its descendant.

// killAll ends every descendant of this process.
func (o order) killAll() {
	for {
		if o.Drop {
			killUser(o.Spec.UID)
		}
		killDescendants()
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.ECHILD) {
				return
			}
			if pid <= 0 {
				break
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// killUser kills all processes of the user at once, in the kernel: a process that does nothing but fork cannot outrun
// it. It does so as that user, on a thread that then ends.
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
	children := map[int][]int{}
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p.pid)
	}
	for next := children[os.Getpid()]; len(next) > 0; next = next[1:] {
		_ = unix.Kill(next[0], unix.SIGKILL)
		next = append(next, children[next[0]]...)
	}
}

type process struct{ pid, parent, threads int }

// processes lists what /proc shows, by proc_pid_stat(5).
func processes() []process {
	entries, _ := os.ReadDir("/proc")
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
		// After the name, which may hold anything: state, parent, …, the number of threads as the 18th.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 18 {
			continue // it is gone
		}
		parent, _ := strconv.Atoi(string(fields[1]))
		threads, _ := strconv.Atoi(string(fields[17]))
		list = append(list, process{pid, parent, threads})
	}
	return list
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
