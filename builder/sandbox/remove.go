package sandbox

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// RemoveAll removes dir as os.RemoveAll does, and also what that cannot remove: closed folders, such as those of an
// overlay, where this is not root, sticky ones, where root lacks CAP_FOWNER, and folders nested deeper than a process may
// open files. It is for what jobs left; no process may be at work in dir.
func RemoveAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	for {
		entries, err := open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return os.Remove(dir)
		}
		for _, e := range entries {
			if err := flatten(dir, e); err != nil {
				return err
			}
		}
	}
}

// flatten removes an entry of dir, after moving the folders in it up to dir.
func flatten(dir string, e fs.DirEntry) error {
	path := filepath.Join(dir, e.Name())
	if !e.IsDir() {
		return os.Remove(path)
	}
	inner, err := open(path)
	if err != nil {
		return err
	}
	for _, e := range inner {
		deep := filepath.Join(path, e.Name())
		if !e.IsDir() {
			err = os.Remove(deep)
		} else if err = take(deep); err == nil {
			err = os.Rename(deep, filepath.Join(dir, rand.Text()))
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(path)
}

func open(dir string) ([]fs.DirEntry, error) {
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() { // and must not be followed
		return nil, &fs.PathError{Op: "remove", Path: dir, Err: fs.ErrPermission}
	}
	if err := take(dir); err != nil {
		return nil, err
	}
	return os.ReadDir(dir)
}

// take makes a folder one that this process can empty. Root without CAP_FOWNER, as in a container, has to own it first,
// if it is sticky for example.
func take(dir string) error {
	if os.Geteuid() == 0 {
		_ = os.Lchown(dir, 0, 0) // chmod says whether it matters
	}
	return os.Chmod(dir, 0o700)
}

// shared are the folders of a machine in which everybody may leave files.
var shared = []string{"/tmp", "/var/tmp", "/dev/shm"}

// removeOf removes what the user left in the shared folders: the next job would find it.
func removeOf(uid int) error {
	var errs []error
	for _, folder := range shared {
		entries, _ := os.ReadDir(folder) // one that is missing holds nothing
		for _, e := range entries {
			info, err := e.Info()
			if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) == uid {
				errs = append(errs, removeEntry(filepath.Join(folder, e.Name()), info))
			}
		}
	}
	return errors.Join(errs...)
}

func removeEntry(path string, info fs.FileInfo) error {
	if info.IsDir() {
		return RemoveAll(path)
	}
	return os.Remove(path)
}
