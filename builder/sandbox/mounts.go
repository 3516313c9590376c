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

// mounts gives the command its view of the machine: all of the host's files read-only, what is hidden empty, an own
// /tmp with the tree and the bound folders in it, and an own /proc.
func (o order) mounts() error {
	places, err := o.places()
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("sysup")); err != nil {
		return fmt.Errorf("setting the host's name: %w", err)
	}
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &readOnly); err != nil {
		return fmt.Errorf("making the host's files read-only: %w", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	tmp := fmt.Sprintf("mode=1777,size=%d", o.Spec.Limits.Tmp)
	err = errors.Join(
		mount("proc", "/proc", plain|unix.MS_NOEXEC, ""),
		mount("tmpfs", "/tmp", plain, tmp),
		ifThere(mount("tmpfs", "/dev/shm", plain, tmp)),
	)
	for _, path := range append(o.Spec.Hide, o.Spec.Tree, o.Spec.Scratch) {
		err = errors.Join(err, ifThere(hide(path)))
	}
	for _, p := range places {
		err = errors.Join(err, p.show())
	}
	return err
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

// place is a folder taken from the host before it is hidden there.
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
	defer unix.Close(p.mount)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if !p.Writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(p.mount, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("limiting the mount of %s: %w", p.Host, err)
	}
	if err := os.MkdirAll(p.Inside, 0o755); err != nil {
		return err
	}
	return attach(p.mount, p.Inside)
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
