package sandbox

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock confines the thread that starts the command, and with it all of the job, to some folders of what it sees.
// It is called here and not through a library, since those restrict all threads of a process: the first process, then
// of the same domain as the job, could be killed by it.

const (
	mayRead  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	mayWrite = mayRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	mayMake  = mayWrite | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
	devices = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK

	// of which a rule on a file may speak
	ofFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// landlockVersion is what the kernel has, 0 if none. The first version does not count: it allows no link or move from
// folder to folder, which a build needs.
func landlockVersion() int {
	v, _, failed := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if failed != 0 || v < 2 {
		return 0
	}
	return int(v)
}

// knownTo leaves out of a set of rights what a version does not know.
func knownTo(version int, rights uint64) uint64 {
	if version < 3 {
		rights &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version < 5 {
		rights &^= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return rights
}

// confineFiles leaves this thread and what it starts with the job's folders, the programs and what those need. From
// version 6 on it also reaches no process and no abstract socket outside. It returns the version.
func (o order) confineFiles() (version int, err error) {
	if version = landlockVersion(); version == 0 {
		return 0, nil
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: knownTo(version, mayMake|devices)}
	if version >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	fd, _, failed := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if failed != 0 {
		return 0, fmt.Errorf("landlock: making rules: %w", failed)
	}
	defer unix.Close(int(fd))
	for path, rights := range o.reach() {
		if err := permit(int(fd), path, knownTo(version, rights)); err != nil {
			return 0, err
		}
	}
	if _, _, failed := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); failed != 0 {
		return 0, fmt.Errorf("landlock: %w", failed)
	}
	return version, nil
}

// reach is what a job may do where. What is not there is left out.
func (o order) reach() map[string]uint64 {
	j := Job{spec: o.Spec}
	paths := map[string]uint64{"/proc": mayRead, "/dev": mayWrite}
	for _, path := range append(needed, resolver()) {
		paths[path] = mayRead
	}
	for _, b := range o.Spec.Binds {
		paths[j.Path(b.Inside)] = mayRead
		if b.Writable {
			paths[j.Path(b.Inside)] = mayMake
		}
	}
	paths[j.Path("/tmp")], paths[j.Path(o.Spec.Dir)] = mayMake, mayMake
	if o.Spec.Mechanism.namespaced() {
		paths["/dev/shm"] = mayMake
	}
	return paths
}

// permit adds a rule for all below path.
func permit(rules int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTDIR) {
		return nil // nor will the job reach it
	}
	if err != nil {
		return fmt.Errorf("landlock: %s: %w", path, err)
	}
	defer unix.Close(fd)
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return fmt.Errorf("landlock: %s: %w", path, err)
	}
	if info.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= ofFiles
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, failed := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if failed != 0 {
		return fmt.Errorf("landlock: a rule for %s: %w", path, failed)
	}
	return nil
}
