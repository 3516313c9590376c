package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

type kind uint8

const (
	missing kind = iota
	folder
	file
	link
)

type unpacker struct {
	limits   Limits
	stripTop bool
	top      string
	root     *os.Root
	seen     map[string]kind
	folders  map[string]*tar.Header // finished last, since writing into a folder changes its time
	entries  int
	bytes    int64
	buffer   []byte

	open     *os.Root // the folder of the last entry: archives list one folder's files together
	openName string
}

func newUnpacker(dest string, limits Limits) (*unpacker, error) {
	there, err := os.ReadDir(dest)
	if err != nil {
		return nil, err
	}
	if len(there) > 0 {
		return nil, fmt.Errorf("the folder %s is not empty: unpack into a new one", dest)
	}
	root, err := os.OpenRoot(dest)
	if err != nil {
		return nil, err
	}
	return &unpacker{
		limits: limits, root: root, seen: map[string]kind{".": folder}, folders: map[string]*tar.Header{},
		buffer: make([]byte, 256<<10), open: root, openName: ".",
	}, nil
}

func (u *unpacker) close() {
	if u.open != u.root {
		_ = u.open.Close()
	}
	_ = u.root.Close()
}

func (u *unpacker) entry(header *tar.Header, content io.Reader, stream *stream) error {
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w of %d entries", ErrLimit, u.limits.Entries)
	}
	if header.Typeflag == tar.TypeXGlobalHeader { // a comment on the whole archive, as git writes one
		return nil
	}
	name, err := u.localName(header.Name)
	if err != nil {
		return err
	}
	if header.Typeflag == tar.TypeDir {
		return u.folder(name, header)
	}
	if u.seen[name] != missing {
		return fmt.Errorf("%w: its name is there already", ErrUnsafe)
	}
	parent, err := u.parent(name)
	if err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeReg:
		return u.file(parent, name, header, content, stream)
	case tar.TypeSymlink:
		return u.symlink(parent, name, header)
	case tar.TypeLink:
		return u.hardLink(name, header)
	}
	return fmt.Errorf("%w: it is neither a file nor a folder nor a link", ErrUnsafe)
}

func (u *unpacker) folder(name string, header *tar.Header) error {
	if err := u.makeFolders(name); err != nil {
		return err
	}
	if name != "." {
		u.folders[name] = header
	}
	return nil
}

// makeFolders makes the folder and those above it that are missing. What is there must be a folder of this archive.
func (u *unpacker) makeFolders(name string) error {
	switch u.seen[name] {
	case folder:
		return nil
	case missing:
	default:
		return fmt.Errorf("%w: %s is not a folder", ErrUnsafe, name)
	}
	if err := u.makeFolders(path.Dir(name)); err != nil {
		return err
	}
	u.seen[name] = folder
	return u.root.Mkdir(name, 0o755)
}

func (u *unpacker) file(parent *os.Root, name string, header *tar.Header, content io.Reader, stream *stream) error {
	if header.Size > u.limits.FileBytes {
		return fmt.Errorf("%w of %d bytes a file", ErrLimit, u.limits.FileBytes)
	}
	if u.bytes += header.Size; u.bytes > u.limits.Bytes { // a sparse file is larger than its part of the stream
		return fmt.Errorf("%w of %d bytes in all", ErrLimit, u.limits.Bytes)
	}
	base := path.Base(name)
	out, err := parent.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	u.seen[name] = file
	err = u.write(out, content, stream)
	if err == nil {
		err = out.Chmod(permissions(header))
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return parent.Chtimes(base, header.ModTime, header.ModTime)
}

// write tells an error of the archive from one of the disk.
func (u *unpacker) write(out *os.File, content io.Reader, stream *stream) error {
	for {
		n, readErr := content.Read(u.buffer)
		if n > 0 {
			if _, err := out.Write(u.buffer[:n]); err != nil {
				return err
			}
		}
		if readErr == io.EOF {
			return nil
		}
		if readErr != nil {
			return stream.failure(readErr)
		}
	}
}

func (u *unpacker) symlink(parent *os.Root, name string, header *tar.Header) error {
	if target := header.Linkname; target == "" || len(target) > u.limits.Path {
		return fmt.Errorf("%w: its target has %d bytes, allowed are %d", ErrUnsafe, len(target), u.limits.Path)
	}
	base := path.Base(name)
	if err := parent.Symlink(header.Linkname, base); err != nil {
		return err
	}
	u.seen[name] = link
	return touchLink(parent, base, header.ModTime)
}

// touchLink sets the time of the link itself, which os.Root cannot.
func touchLink(parent *os.Root, base string, t time.Time) error {
	folder, err := parent.Open(".")
	if err != nil {
		return err
	}
	defer folder.Close()
	stamp, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(folder.Fd()), base, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
}

// hardLink gives a file of this archive a second name.
func (u *unpacker) hardLink(name string, header *tar.Header) error {
	target, err := u.localName(header.Linkname)
	if err != nil {
		return err
	}
	if u.seen[target] != file {
		return fmt.Errorf("%w: it is a second name of %q, which is not a file before it", ErrUnsafe, header.Linkname)
	}
	u.seen[name] = file
	return u.root.Link(target, name)
}

// finishFolders gives the folders their permissions and times, each before the one that it lies in.
func (u *unpacker) finishFolders() error {
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(u.folders))) {
		header := u.folders[name]
		err := errors.Join(u.root.Chmod(name, permissions(header)), u.root.Chtimes(name, header.ModTime, header.ModTime))
		if err != nil {
			return err
		}
	}
	return nil
}

func permissions(header *tar.Header) os.FileMode { return os.FileMode(header.Mode) & 0o777 }
