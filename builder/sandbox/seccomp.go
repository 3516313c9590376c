package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A build needs the plain calls of programs that read, write and start others. The filter denies what reaches other
// parts of the kernel, where most of its holes were found, and what other mechanisms deny too, so that a hole in one of
// them is none. It lists what is denied and not what is allowed: an ImageBuilder's programs are many and of all ages.

// denied are answered with EPERM.
var denied = []uint32{
	// mounts and the view of files
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN,
	unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_ACCT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	// namespaces; clone is looked at below
	unix.SYS_UNSHARE, unix.SYS_SETNS,
	// other processes
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_PIDFD_GETFD,
	// the kernel itself and the machine
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_KEXEC_LOAD,
	unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_REBOOT,
	unix.SYS_SYSLOG, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
}

// newNamespaces are the flags of clone that make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// families of sockets that a build may open: those by which programs fetch files, and resolve names before. The others
// lead to the host of a virtual machine, to raw packets, or to parts of the kernel that nobody looks at.
func families(network bool) []uint32 {
	if network {
		return []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}
	}
	return []uint32{unix.AF_UNIX}
}

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64}

// x32 is a bit of the numbers of a second set of calls on amd64, which the filter would not know.
const x32 = 0x40000000

// program is a filter in the kernel's classic BPF.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jump ...uint8) {
	in := unix.SockFilter{Code: code, K: k}
	if len(jump) == 2 {
		in.Jt, in.Jf = jump[0], jump[1]
	}
	*p = append(*p, in)
}

const (
	load      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpFrom  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	jumpSet   = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	give      = unix.BPF_RET | unix.BPF_K

	allow   = unix.SECCOMP_RET_ALLOW
	noCall  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	refused = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	noKind  = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)

	// Where struct seccomp_data has them; of the first argument the lower half, on machines that begin with it.
	callField, archField, argumentField = 0, 4, 16
)

func filter(network bool) program {
	var p program
	p.add(load, archField)
	p.add(jumpEqual, auditArch[runtime.GOARCH], 1, 0)
	p.add(give, unix.SECCOMP_RET_KILL_PROCESS) // 32-bit calls have other numbers
	p.add(load, callField)
	p.add(jumpFrom, x32, 0, 1)
	p.add(give, noCall)
	for _, call := range denied {
		p.add(jumpEqual, call, 0, 1)
		p.add(give, refused)
	}
	// Its flags lie in memory, where a filter cannot look; libraries then take clone.
	p.add(jumpEqual, unix.SYS_CLONE3, 0, 1)
	p.add(give, noCall)
	p.add(jumpEqual, unix.SYS_CLONE, 0, 4)
	p.add(load, argumentField)
	p.add(jumpSet, newNamespaces, 0, 1)
	p.add(give, refused)
	p.add(give, allow)
	allowed := families(network)
	p.add(jumpEqual, unix.SYS_SOCKET, 0, uint8(len(allowed)*2+2))
	p.add(load, argumentField)
	for _, family := range allowed {
		p.add(jumpEqual, family, 0, 1)
		p.add(give, allow)
	}
	p.add(give, noKind)
	p.add(give, allow)
	return p
}

// filterCalls puts the filter on this thread and what it starts. Where the kernel has none, guarded is false.
func filterCalls(network bool) (guarded bool, err error) {
	if auditArch[runtime.GOARCH] == 0 {
		return false, nil
	}
	failed := filter(network).install()
	switch {
	case failed == 0:
		return true, nil
	case errors.Is(failed, unix.ENOSYS), errors.Is(failed, unix.EINVAL):
		return false, nil
	}
	return false, fmt.Errorf("seccomp: %w", failed)
}

func (p program) install() syscall.Errno {
	code := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	// SPEC_ALLOW: older kernels else slow a filtered process down for a flaw that matters where one process keeps
	// secrets from code that it runs itself.
	_, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&code)))
	return failed
}
