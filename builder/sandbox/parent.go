package sandbox

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// order is what the server tells the sandbox's first process. Afterwards the server keeps the pipe open: its end is
// the order to end, and it also comes if the server dies in whatever way. PR_SET_PDEATHSIG would not do: it fires when
// the *thread* dies that started the process, and the Go runtime ends threads as it likes.
type order struct {
	Spec    Spec
	Args    []string
	Env     []string
	Overlay bool   // mount an overlay, else show the copy
	Work    string // the overlay's work folder: a new one each time, since a volatile overlay refuses a used one
	IDMap   bool   // file 4 is the user namespace that maps the tree's owner
	Drop    bool   // run the command as Spec.UID
	Proxy   bool   // hand the listener of the proxy over by file 5
}

// report is what the first process answers once all is over.
type report struct {
	Failure      string   // what of the setup failed
	NoOverlay    string   // why no overlay could be mounted
	Guards       []string // as in Support
	Code, Signal int
}

// grace is how long ending a job may take beyond its time limit before its first process is given up and killed.
const grace = 20 * time.Second

const initName = "sysup-sandbox"

func (j *Job) run(ctx context.Context, c Command) (report, error) {
	j.runs++
	o := order{
		Spec: j.spec, Args: c.Args, Env: c.Env, Drop: j.root,
		Overlay: !j.copied, Work: "work-" + strconv.Itoa(j.runs), IDMap: j.idMap != nil, Proxy: j.spec.Proxy != nil,
	}
	if err := os.Mkdir(j.scratch(o.Work), 0o700); err != nil {
		return report{}, fmt.Errorf("%w: %w", ErrSetup, err)
	}
	answers, answer, err := os.Pipe()
	if err != nil {
		return report{}, fmt.Errorf("%w: %w", ErrSetup, err)
	}
	defer answers.Close()
	door, err := j.openDoor()
	if err != nil {
		answer.Close()
		return report{}, fmt.Errorf("%w: %w", ErrSetup, err)
	}
	defer door.close()
	first := exec.CommandContext(ctx, "/proc/self/exe")
	first.Args, first.Env = []string{initName, j.spec.Scratch}, []string{} // the folder is for who reads ps
	first.Stdout, first.Stderr = c.Stdout, c.Stderr
	first.ExtraFiles = []*os.File{answer, j.idMap, door.theirs}
	first.SysProcAttr = j.attributes()
	lifeline, err := first.StdinPipe()
	if err == nil {
		j.endBy(first, lifeline)
		err = first.Start()
	}
	answer.Close()
	if err != nil {
		return report{}, fmt.Errorf("%w: mechanism %s: %w", ErrSetup, j.spec.Mechanism, err)
	}
	door.serve(j.spec.Proxy)
	return j.converse(first, o, lifeline, answers)
}

// endBy sets how the first process is ended before its time.
func (j *Job) endBy(first *exec.Cmd, lifeline io.Closer) {
	first.WaitDelay = grace
	first.Cancel = func() error {
		if j.spec.Mechanism.namespaced() {
			return first.Process.Kill() // and with it, by the kernel, its whole pid namespace
		}
		return lifeline.Close()
	}
}

func (j *Job) converse(first *exec.Cmd, o order, lifeline io.Writer, answers io.Reader) (report, error) {
	var result report
	// gob, since JSON would change arguments that are not UTF-8
	send := gob.NewEncoder(lifeline)
	sendErr := send.Encode(o)
	j.group.add(first.Process.Pid) // before it starts anything
	if sendErr == nil {
		_ = send.Encode(0) // that it is in its group; if it has ended by now, its answer says why
	}
	answerErr := gob.NewDecoder(answers).Decode(&result)
	err := first.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return result, err // of writing to Stdout or Stderr
	}
	if sendErr != nil || answerErr != nil {
		return result, ErrKilled
	}
	return result, nil
}

// attributes asks the kernel for the namespaces of the mechanism.
func (j *Job) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if !j.spec.Mechanism.namespaced() {
		return a
	}
	a.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if j.spec.DenyNetwork {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	if j.spec.Mechanism == UserNamespaces {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = oneID(os.Geteuid(), os.Geteuid())
		a.GidMappings = oneID(os.Getegid(), os.Getegid())
		// The first process keeps the own uid, since tools that believe to be root act otherwise (tar changes
		// owners); what it may do to its namespace thus has to outlive its exec as ambient capabilities.
		a.AmbientCaps = []uintptr{
			unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH,
			unix.CAP_FOWNER, unix.CAP_CHOWN, unix.CAP_MKNOD, unix.CAP_NET_ADMIN,
		}
	}
	return a
}

func oneID(inside, outside int) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: inside, HostID: outside, Size: 1}}
}

// mapOwner makes a user namespace that maps the owner of the shared tree to the job's user; nil if they are the same.
// By it the tree is mounted so that all of it seems to be that user's, while nothing of it changes on disk.
func (j *Job) mapOwner() (*os.File, error) {
	info, err := os.Stat(j.spec.Tree)
	if err != nil {
		return nil, err
	}
	owner, uid, gid := info.Sys().(*syscall.Stat_t), os.Geteuid(), os.Getegid()
	if j.root {
		uid, gid = j.spec.UID, j.spec.GID
	}
	if int(owner.Uid) == uid {
		return nil, nil
	}
	if !j.root {
		return nil, fmt.Errorf("the tree %s belongs to user %d, not to this one", j.spec.Tree, owner.Uid)
	}
	return userNamespace(oneID(int(owner.Uid), uid), oneID(int(owner.Gid), gid))
}

// userNamespace opens a new user namespace. It is held by a process that, being traced, stops before its first
// instruction, and is then killed.
func userNamespace(uids, gids []syscall.SysProcIDMap) (*os.File, error) {
	runtime.LockOSThread() // only the tracing thread may handle a traced process
	defer runtime.UnlockOSThread()
	holder, err := os.StartProcess("/proc/self/exe", []string{initName}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: uids, GidMappings: gids, Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Pid))
	_ = holder.Kill()
	_, waitErr := holder.Wait()
	if waitErr != nil && err == nil {
		err = errors.Join(waitErr, namespace.Close())
	}
	return namespace, err
}
