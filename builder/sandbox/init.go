package sandbox

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A program that is started again as a sandbox's first process becomes that here, not in main: that would come after
// all of sysup's packages are initialized, which took 6 of 11 ms. (Go goes by import path, so most of them come later.)
//
// The first process stays as pid 1 of its namespace (or as the subreaper) beside the command, rather than becoming it:
// a pid 1 ignores signals that it does not handle, SIGXFSZ and its own SIGTERM included, and make is no reaper.
func init() {
	if len(os.Args) == 2 && os.Args[0] == initName {
		syscall.Exit(first()) // not os.Exit, whose hooks (coverage, the race detector's second of sleep) are for a program
	}
}

// Init stands first in main and TestMain of programs that run sandboxes. It does nothing: importing this package is what
// counts. It tells the reader of main that the program has a second life as a sandbox's first process.
func Init() {}

const (
	answerFile   = 3
	idMapFile    = 4
	listenerFile = 5
)

func first() int {
	runtime.LockOSThread() // what is dropped is dropped for a thread and those that it starts; see killUser, too
	debug.SetGCPercent(-1) // it allocates next to nothing
	unix.CloseOnExec(answerFile)
	unix.CloseOnExec(idMapFile)
	unix.CloseOnExec(listenerFile)
	unix.CloseOnExec(0)
	// Notified of every signal and reading none: no process of the job's uid ends this one by a signal, and the
	// command still starts with all signals at their defaults.
	signal.Notify(make(chan os.Signal, 1))
	var o order
	var r report
	lifeline := gob.NewDecoder(os.Stdin)
	if err := lifeline.Decode(&o); err != nil {
		return 1 // the server died
	}
	if r.prepare(o) {
		if err := lifeline.Decode(&r.Code); err != nil { // whatever comes, it says that all is ready
			return 1
		}
		go o.endWithServer()
		r.run(o)
	}
	_ = gob.NewEncoder(os.NewFile(answerFile, "answer")).Encode(r)
	return 0
}

// endWithServer waits for the end of the lifeline.
func (o order) endWithServer() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	if os.Getpid() == 1 {
		syscall.Exit(1) // the kernel kills all of the namespace
	}
	for { // the command's end is what r.run waits for
		o.kill()
		time.Sleep(time.Millisecond)
	}
}

// prepare does all that can be done while the server puts this process into its control group, which takes the kernel
// 10 ms. It tells whether it went well.
func (r *report) prepare(o order) bool {
	if !o.Spec.Mechanism.namespaced() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			r.Failure = err.Error()
		}
		return r.Failure == ""
	}
	if err := o.overlay(); err != nil {
		r.NoOverlay = err.Error()
		return false
	}
	if err := errors.Join(o.network(), o.mounts()); err != nil {
		r.Failure = err.Error()
	}
	return r.Failure == ""
}

func (r *report) run(o order) {
	pid, err := o.start(r)
	if err != nil {
		r.Failure = err.Error()
		o.end()
		return
	}
	status := reap(pid)
	o.end()
	r.Code = status.ExitStatus()
	if status.Signaled() {
		r.Code, r.Signal = 128+int(status.Signal()), int(status.Signal())
	}
}

// end ends what the command started, where the kernel does not do it with this process.
func (o order) end() {
	if os.Getpid() != 1 {
		o.killAll()
	}
}

// reap waits for the command, and meanwhile for whatever was left to this process.
func reap(command int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == command || err != nil && !errors.Is(err, syscall.EINTR) {
			return status
		}
	}
}

// start starts the command from a thread that is confined for good. It is not the main one: by that the kernel tells
// what may kill this process. It stays as long as the process does, since the command ends with it.
func (o order) start(r *report) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		pid, err = o.startHere(r)
		close(done)
		select {}
	}()
	<-done
	return pid, err
}

func (o order) startHere(r *report) (int, error) {
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	program, err := o.program()
	if err != nil {
		return 0, err
	}
	attributes := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if o.Drop {
		attributes.Credential = &syscall.Credential{Uid: uint32(o.Spec.UID), Gid: uint32(o.Spec.GID)}
		o.ownOutput()
	}
	if r.Guards, err = o.confine(); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(program, o.Args, &syscall.ProcAttr{
		Dir: o.dir(), Env: o.Env, Files: []uintptr{null.Fd(), 1, 2}, Sys: attributes,
	})
	if err != nil {
		return 0, fmt.Errorf("starting %s in %s: %w", program, o.dir(), err)
	}
	return pid, nil
}

func (o order) dir() string { return (&Job{spec: o.Spec}).Path(o.Spec.Dir) }

// program looks the command up as its own environment says.
func (o order) program() (string, error) {
	if len(o.Args) == 0 {
		return "", errors.New("no command was given")
	}
	os.Unsetenv("PATH")
	for _, variable := range o.Env {
		if value, found := strings.CutPrefix(variable, "PATH="); found {
			os.Setenv("PATH", value)
		}
	}
	if err := os.Chdir(o.dir()); err != nil {
		return "", err
	}
	return exec.LookPath(o.Args[0])
}

// ownOutput gives the pipes of stdout and stderr to the user, who else could not open /dev/stderr.
func (o order) ownOutput() {
	for _, fd := range []int{1, 2} {
		var info unix.Stat_t
		if unix.Fstat(fd, &info) == nil && info.Mode&unix.S_IFMT == unix.S_IFIFO {
			_ = unix.Fchown(fd, o.Spec.UID, o.Spec.GID)
		}
	}
}
