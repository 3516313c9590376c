package main

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// rootfs is the root folder that a package manager fills.
type rootfs struct {
	dir       string
	owner     map[string]string // of each file, the package that put it there
	overwrite bool              // a later package may replace an earlier one's file
}

// clash says that two packages hold one file.
type clash struct{ file, newer, older string }

func (c clash) Error() string {
	return fmt.Sprintf("Package %s wants to install file %s\n\tBut that file is already provided by package  * %s", c.newer, c.file, c.older)
}

// unpack puts the files of the package file name under the root and returns the package and their paths.
func (r *rootfs) unpack(name string) (pack.Package, []string, error) {
	head, err := pack.Read(name, nil)
	if err != nil {
		return head, nil, err
	}
	var files []string
	_, err = pack.Read(name, func(h *tar.Header, content io.Reader) error {
		target := filepath.Join(r.dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			return os.MkdirAll(target, 0o755)
		}
		if older, taken := r.owner[h.Name]; taken && older != head.Name && !r.overwrite {
			return clash{target, head.Name, older}
		}
		r.owner[h.Name] = head.Name
		files = append(files, "/"+h.Name)
		return place(target, h, content)
	})
	return head, files, err
}

// place writes one file or link, over what was there.
func place(target string, h *tar.Header, content io.Reader) error {
	if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return os.Symlink(h.Linkname, target)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(h.Mode).Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// write puts a small file under the root, with its folders.
func (r *rootfs) write(name, text string, mode fs.FileMode) error {
	target := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.WriteFile(target, []byte(text), mode)
}
