package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

type inode struct{ device, number uint64 }

// copier copies a tree with permissions, times, links and hard links, sharing the files' blocks where the file system can.
type copier struct {
	ctx      context.Context
	from, to string
	uid, gid int              // the owner of the copy; -1 leaves it
	linked   map[inode]string // the copies of files that have more than one name
	folders  []copied         // finished last, since writing into a folder changes its time
}

type copied struct {
	path string
	info fs.FileInfo
}

func (c *copier) copy() error {
	if c.uid >= 0 {
		// Ours until it is finished: see finish.
		if err := os.Lchown(c.to, os.Geteuid(), os.Getegid()); err != nil {
			return fmt.Errorf("copying the tree: %w", err)
		}
	}
	if err := filepath.WalkDir(c.from, c.entry); err != nil {
		return fmt.Errorf("copying the tree: %w", err)
	}
	for _, folder := range slices.Backward(c.folders) {
		if err := c.finish(folder); err != nil {
			return fmt.Errorf("copying the tree: %w", err)
		}
	}
	return nil
}

func (c *copier) entry(from string, d fs.DirEntry, err error) error {
	if err := errors.Join(err, c.ctx.Err()); err != nil {
		return err
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	to := copied{filepath.Join(c.to, from[len(c.from):]), info}
	switch info.Mode().Type() {
	case fs.ModeDir:
		c.folders = append(c.folders, to)
		if from == c.from {
			return nil
		}
		return os.Mkdir(to.path, 0o700)
	case fs.ModeSymlink:
		target, err := os.Readlink(from)
		if err == nil {
			err = os.Symlink(target, to.path)
		}
		if err != nil {
			return err
		}
		return c.finish(to)
	case 0:
		return c.file(from, to)
	}
	return fmt.Errorf("%s is neither a file nor a folder nor a link", from)
}

func (c *copier) file(from string, to copied) error {
	stat := to.info.Sys().(*syscall.Stat_t)
	if stat.Nlink > 1 {
		id := inode{uint64(stat.Dev), stat.Ino}
		if first, found := c.linked[id]; found {
			return os.Link(first, to.path)
		}
		c.linked[id] = to.path
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil {
		_, err = io.Copy(out, in)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return c.finish(to)
}

// finish gives a copy its permissions, its time and, last, its owner: what is another's even root can change only with
// CAP_FOWNER, which it need not have in a container.
func (c *copier) finish(to copied) error {
	var err error
	if to.info.Mode()&fs.ModeSymlink == 0 {
		err = os.Chmod(to.path, to.info.Mode().Perm())
	}
	stamp := unix.NsecToTimespec(to.info.ModTime().UnixNano())
	err = errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, to.path, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW))
	if c.uid >= 0 {
		err = errors.Join(err, os.Lchown(to.path, c.uid, c.gid))
	}
	return err
}
