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

// What takes the place of a pid namespace with Plain: the first process is the subreaper of all that the command
// starts, so a daemon, however often it forked, is its descendant.

// killAll ends every descendant of this process.
func (o order) killAll() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.ECHILD) {
			break
		}
		if pid <= 0 {
			o.kill()
			time.Sleep(time.Millisecond)
		}
	}
	if o.Drop {
		asUser(o.Spec.UID, removeIPC)
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
// it.
func killUser(uid int) {
	asUser(uid, func() { _ = unix.Kill(-1, unix.SIGKILL) })
}

// asUser calls f as that user, on a thread that then ends. The caller has locked the main thread, which would not end but
// stay that user's, and by it the whole process.
func asUser(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
		id := uintptr(uid)
		_, _, failed := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id)
		if failed == 0 && !hasCapabilities() { // with a capability kept, f would reach all of the machine
			f()
		}
	}()
	<-done
}

// removeIPC removes the System V shared memory, semaphores and message queues of this thread's user, which outlive the
// processes that made them. The kernel refuses those of others.
func removeIPC() {
	for kind, remove := range map[string]func(id uintptr){
		"shm": func(id uintptr) { _, _, _ = unix.Syscall(unix.SYS_SHMCTL, id, unix.IPC_RMID, 0) },
		"sem": func(id uintptr) { _, _, _ = unix.Syscall(unix.SYS_SEMCTL, id, 0, unix.IPC_RMID) },
		"msg": func(id uintptr) { _, _, _ = unix.Syscall(unix.SYS_MSGCTL, id, unix.IPC_RMID, 0) },
	} {
		list, _ := os.ReadFile("/proc/sysvipc/" + kind) // where it is missing there are none
		for line := range strings.Lines(string(list)) {
			if fields := strings.Fields(line); len(fields) > 1 {
				if id, err := strconv.Atoi(fields[1]); err == nil { // else it is the heading
					remove(uintptr(id))
				}
			}
		}
	}
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
