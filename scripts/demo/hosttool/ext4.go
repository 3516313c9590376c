package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	blockSize = 4096
	inodeSize = 256
)

// makeExt4Main is make_ext4fs -l BYTES -t TIME -L LABEL OUTPUT FOLDER. It needs no privileges: all
// files are root's, all times are TIME, and equal folders give equal bytes, whatever the order in
// which the host lists them.
func makeExt4Main(args []string) error {
	a := parse(args)
	if len(a.rest) != 2 {
		return errors.New("an output file and a folder must be given")
	}
	size, err := strconv.ParseInt(a.options["l"], 10, 64)
	if err != nil {
		return err
	}
	script, need, err := ext4Script(a.rest[1], a.options["t"])
	if err != nil {
		return err
	}
	if need.bytes(size) > size {
		return outOfSpace(a.rest[0])
	}
	out, err := formatExt4(a, size, need.inodes, script)
	if strings.Contains(out, "Could not allocate") || strings.Contains(out, "No space left") {
		return outOfSpace(a.rest[0])
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// outOfSpace says that the folder does not fit as OpenWrt's make_ext4fs does.
func outOfSpace(output string) error {
	fmt.Fprintln(os.Stderr, "error: ext4_allocate_best_fit_partial: failed to allocate 8 blocks, out of space?")
	return errors.Join(errReported, os.RemoveAll(output))
}

// contents is what a folder asks of a file system.
type contents struct{ blocks, inodes int64 }

// bytes estimates the room that is taken in a file system of that size, its own tables included.
func (c contents) bytes(size int64) int64 {
	groups := size/(128<<20) + 1
	return c.blocks*blockSize + (c.inodes+spareInodes)*inodeSize + (groups*2+64)*blockSize
}

const spareInodes = 1024 // for what the device writes later

// ext4Script is the list of debugfs commands that copies a folder, in the order of its names.
func ext4Script(folder, when string) ([]byte, contents, error) {
	var b bytes.Buffer
	need := contents{blocks: 16, inodes: 16}
	err := filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(folder, name)
		if err != nil {
			return err
		}
		need.inodes++
		need.blocks += (info.Size() + blockSize - 1) / blockSize
		return ext4Commands(&b, name, "/"+rel, info, when)
	})
	return b.Bytes(), need, err
}

func ext4Commands(b *bytes.Buffer, source, target string, info fs.FileInfo, when string) error {
	mode := uint32(info.Mode().Perm())
	switch info.Mode().Type() {
	case 0:
		fmt.Fprintf(b, "write %q %q\n", source, target)
		mode |= 0o100000
	case fs.ModeDir:
		mode |= 0o040000
		if target == "/." {
			target = "/"
		} else {
			fmt.Fprintf(b, "mkdir %q\n", target)
		}
	case fs.ModeSymlink:
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "symlink %q %q\n", target, link)
		mode = 0o120777
	default:
		return fmt.Errorf("%s is neither a file, a folder nor a symbolic link", source)
	}
	fmt.Fprintf(b, "sif %q mode 0%o\nsif %q uid 0\nsif %q gid 0\n", target, mode, target, target)
	for _, field := range []string{"atime", "ctime", "mtime", "crtime"} {
		fmt.Fprintf(b, "sif %q %s @%s\n", target, field, when)
	}
	return nil
}

// formatExt4 makes the file system and runs the script in it; it returns what the programs printed.
func formatExt4(a arguments, size, inodes int64, script []byte) (string, error) {
	output := a.rest[0]
	f, err := os.Create(output)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return "", err
	}
	id := fmt.Sprintf("00000000-0000-4000-8000-%012x", size)
	mkfs := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize),
		"-N", strconv.FormatInt(inodes+spareInodes, 10), "-m", "0", "-O", "^has_journal,^resize_inode,^metadata_csum",
		"-L", a.options["L"], "-U", id, "-E", "hash_seed="+id+",root_owner=0:0,lazy_itable_init=1", output)
	if out, err := ext4Run(mkfs, a.options["t"]); err != nil {
		return out, err
	}
	list := output + ".debugfs"
	defer os.Remove(list)
	if err := os.WriteFile(list, script, 0o644); err != nil {
		return "", err
	}
	return ext4Run(exec.Command("debugfs", "-w", "-f", list, output), a.options["t"])
}

func ext4Run(cmd *exec.Cmd, when string) (string, error) {
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME="+when, "MKE2FS_CONFIG=/dev/null")
	var out bytes.Buffer
	cmd.Stderr = &out
	err := cmd.Run()
	return out.String(), err
}
