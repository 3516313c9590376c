package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The mounts are made by each command's first process in its own mount namespace, over the same upper folder: nothing
// is ever mounted on the host, so nothing can be left there, however the server dies. It costs well under a millisecond.

// overlay mounts the tree, the job's changes above it, at the view's place in the scratch folder.
func (o order) overlay() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if !o.Overlay {
		return nil
	}
	if err := os.Chdir(o.Spec.Scratch); err != nil { // paths in the options need no escaping then
		return err
	}
	tree, err := detach(o.Spec.Tree)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if o.IDMap {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: idMapFile}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("mapping the owner of the tree: %w", err)
		}
	}
	if err := attach(tree, lowerDir); err != nil {
		return err
	}
	// userxattr: user namespaces may not write the other kind. volatile: what a job wrote is worth nothing after a
	// crash, and without it the end of each overlay would sync the whole file system below.
	options := "lowerdir=" + lowerDir + ",upperdir=" + upperDir + ",workdir=" + o.Work + ",userxattr,volatile,index=off"
	if err := unix.Mount("overlay", viewDir, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mounting an overlay: %w", err)
	}
	return nil
}

// needed is what programs need of the machine, beside /proc and /dev: themselves, and what they are told by. Whatever else
// lies on it, home folders and the sockets of services above all, is not there for a job.
var needed = []string{
	"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/opt", "/nix/store", "/gnu/store",
	"/etc", "/var/lib/ca-certificates",
}

// resolver is the file that says where names are resolved, which on many machines is not below /etc.
func resolver() string {
	path, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return "/etc/resolv.conf"
	}
	return path
}

// nodes are the devices that a build has use for.
var nodes = []string{"null", "zero", "full", "random", "urandom", "tty"}

// mounts gives the command its view of the machine: a root folder with what programs need, read-only, an own /tmp with
// the tree and the bound folders in it, an own /proc and /dev.
func (o order) mounts() error {
	places, err := o.places()
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("sysup")); err != nil {
		return fmt.Errorf("setting the host's name: %w", err)
	}
	root := filepath.Join(o.Spec.Scratch, rootDir)
	if err := mount("tmpfs", root, unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := errors.Join(o.system(), o.devices(), o.temporary()); err != nil {
		return err
	}
	for _, p := range places {
		if err := p.show(); err != nil {
			return err
		}
	}
	return o.enter()
}

// system shows the programs and what they need, and processes.
func (o order) system() error {
	for _, path := range append(needed, resolver()) {
		if err := showSame(path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID); err != nil {
			return err
		}
	}
	return errors.Join(os.Mkdir("proc", 0o755), mount("proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
}

// devices makes a /dev without the machine's disks, terminals and the like.
func (o order) devices() error {
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := errors.Join(os.Mkdir("dev", 0o755), mount("tmpfs", "dev", flags, "mode=0755,size=64k,nr_inodes=64")); err != nil {
		return err
	}
	for _, name := range nodes {
		if err := showSame("/dev/"+name, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink("/proc/self/"+to, "dev/"+name); err != nil {
			return err
		}
	}
	if err := os.Mkdir("dev/shm", 0o755); err != nil {
		return err
	}
	return setReadOnly("dev")
}

// temporary makes the folders in which everybody may write; they are memory.
func (o order) temporary() error {
	options := fmt.Sprintf("mode=1777,size=%d,nr_inodes=%d", o.Spec.Limits.Tmp, o.Spec.Limits.Tmp/4096)
	return errors.Join(
		os.Mkdir("tmp", 0o755), mount("tmpfs", "tmp", unix.MS_NOSUID|unix.MS_NODEV, options),
		mount("tmpfs", "dev/shm", unix.MS_NOSUID|unix.MS_NODEV, options),
	)
}

// enter makes the folder that this process is in its root, and lets go of the one before.
func (o order) enter() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("entering the view of the machine: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the machine's own: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	var err error
	for _, path := range o.Spec.Hide {
		err = errors.Join(err, ifThere(hide(path)))
	}
	return errors.Join(err, setReadOnly("/"))
}

func setReadOnly(folder string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, folder, 0, &attr); err != nil {
		return fmt.Errorf("closing %s: %w", folder, err)
	}
	return nil
}

// showSame shows a file or folder of the machine, if it is there, at the same path below this one. Links stay links.
func showSame(path string, attributes uint64) error {
	info, err := os.Lstat(path)
	if err != nil {
		return ifThere(err)
	}
	inside := path[1:]
	if _, err := os.Lstat(inside); err == nil {
		return nil // it lies in what is shown already
	}
	if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
		return err
	}
	if info.Mode()&os.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, inside)
	}
	if info.IsDir() {
		err = os.Mkdir(inside, 0o755)
	} else {
		err = os.WriteFile(inside, nil, 0o644)
	}
	if err != nil {
		return err
	}
	taken, err := detach(path)
	if err != nil {
		return err
	}
	return showAt(taken, inside, attributes)
}

// showAt puts a taken mount at a path, with attributes for all of it, and lets go of it.
func showAt(taken int, inside string, attributes uint64) error {
	defer unix.Close(taken)
	attr := unix.MountAttr{Attr_set: attributes}
	if err := unix.MountSetattr(taken, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("limiting the mount at %s: %w", inside, err)
	}
	return attach(taken, inside)
}

// hide shows an empty folder, or an empty file, in the place of path.
func hide(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, unix.EACCES) && os.Geteuid() != 0 {
		return nil // the job, the same user, does not reach it either
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return mount("tmpfs", path, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=0555,size=4k")
	}
	if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hiding the file %s: %w", path, err)
	}
	return nil
}

// place is a folder taken from the host before the job's root is made.
type place struct {
	Bind
	mount int
}

func (o order) places() ([]place, error) {
	binds := append([]Bind{{Host: filepath.Join(o.Spec.Scratch, viewDir), Inside: o.Spec.Dir, Writable: true}}, o.Spec.Binds...)
	places := make([]place, len(binds))
	for i, b := range binds {
		taken, err := detach(b.Host)
		if err != nil {
			return nil, err
		}
		places[i] = place{b, taken}
	}
	return places, nil
}

func (p place) show() error {
	attributes := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if !p.Writable {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	inside := p.Inside[1:]
	if err := os.MkdirAll(inside, 0o755); err != nil {
		return err
	}
	return showAt(p.mount, inside, attributes)
}

// detach takes the folder, and what is mounted in it, as a mount that has no place yet.
func detach(folder string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("taking the folder %s: %w", folder, err)
	}
	return fd, nil
}

func attach(mount int, folder string) error {
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, folder, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("showing a folder at %s: %w", folder, err)
	}
	return nil
}

func mount(kind, folder string, flags uintptr, options string) error {
	if err := unix.Mount(kind, folder, kind, flags, options); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", kind, folder, err)
	}
	return nil
}

// ifThere: a folder that is missing needs no hiding.
func ifThere(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
