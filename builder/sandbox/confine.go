package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// confine takes from this thread, and so from the command that it starts, all that a build does not need. Each step is
// one that no later one undoes. It returns the names of what not every kernel has.
func (o order) confine() (guards []string, err error) {
	syscall.Umask(0o022)
	// If memory runs out, let it be the build that dies, not the server. (Before dumpable: that closes /proc/self.)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	// No process under the same uid looks into this one, which keeps its capabilities.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	if err := o.setLimits(); err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	version, err := o.confineFiles()
	if err != nil {
		return nil, err
	}
	if version > 0 {
		guards = append(guards, fmt.Sprintf("landlock %d", version))
	}
	if err := dropCapabilities(); err != nil {
		return nil, err
	}
	filtered, err := filterCalls(!o.Spec.DenyNetwork || o.Spec.Mechanism.namespaced())
	switch {
	case err != nil:
		return nil, err
	case filtered:
		guards = append(guards, "seccomp")
	case o.Spec.DenyNetwork && !o.Spec.Mechanism.namespaced():
		return nil, errors.New("without namespaces and without seccomp the network cannot be denied")
	}
	return guards, nil
}

// dropCapabilities leaves none that would pass through the command's exec: the bounding, inheritable and
// ambient sets.
func dropCapabilities() error {
	for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_READ, c, 0, 0, 0) == nil; c++ {
		// Only with CAP_SETPCAP; an ordinary user without a namespace has none to drop, and with no_new_privs gets none.
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0 // which takes the ambient ones along
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

func (o order) setLimits() error {
	l := o.Spec.Limits
	processes := l.Processes
	if o.Spec.Mechanism == Plain && !o.Drop {
		processes += threadsOf(os.Getuid()) // the kernel counts all of the user's
	}
	for _, limit := range []struct {
		name     string
		resource int
		value    int64
	}{
		{"processes", unix.RLIMIT_NPROC, int64(processes)},
		{"the size of a file", unix.RLIMIT_FSIZE, l.FileSize},
		// Not less than this process has already, which would stop itself.
		{"memory", unix.RLIMIT_DATA, max(l.Memory, dataInUse()+64<<20)},
		{"open files", unix.RLIMIT_NOFILE, int64(l.Files)},
		// 1 rather than 0: where cores go to a program, the kernel starts it despite a limit of 0.
		{"cores", unix.RLIMIT_CORE, 1},
	} {
		if err := lower(limit.resource, uint64(limit.value)); err != nil {
			return fmt.Errorf("limiting %s: %w", limit.name, err)
		}
	}
	return nil
}

// lower sets a limit for good, but never raises it above what the server itself may have.
func lower(resource int, value uint64) error {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(resource, &now); err != nil {
		return err
	}
	value = min(value, now.Max)
	return syscall.Setrlimit(resource, &syscall.Rlimit{Cur: value, Max: value})
}

// dataInUse is how much of the memory that is limited this process has, in bytes.
func dataInUse() (bytes int64) {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if kilobytes, found := strings.CutPrefix(line, "VmData:"); found {
			_, _ = fmt.Sscan(kilobytes, &bytes)
		}
	}
	return bytes << 10
}
