package sandbox

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// RemoveAll removes dir as os.RemoveAll does, and also what that cannot remove: closed folders, such as those of an
// overlay, where this is not root, and folders nested deeper than a process may open files. It is for what jobs left when
// the server died; no process may be at work in dir.
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
		} else if err = os.Chmod(deep, 0o700); err == nil {
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
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	return os.ReadDir(dir)
}
