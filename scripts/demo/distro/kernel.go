package distro

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// kernel is Debian's kernel, unpacked.
type kernel struct {
	image    []byte
	release  string            // as uname -r has it
	version  string            // as upstream numbers it
	vermagic string            // 32 hex digits that stand for its configuration
	modules  map[string]string // file of each module, names with '_'
}

func (d *debian) kernel(name string) (*kernel, error) {
	k := &kernel{
		release: strings.TrimPrefix(name, "linux-image-"),
		version: d.upstreamVersion(name),
		modules: map[string]string{},
	}
	var err error
	if k.image, err = os.ReadFile(filepath.Join(d.dir, name, "boot/vmlinuz-"+k.release)); err != nil {
		return nil, err
	}
	config, err := os.ReadFile(filepath.Join(d.dir, name, "boot/config-"+k.release))
	if err != nil {
		return nil, err
	}
	sum := md5.Sum(config)
	k.vermagic = hex.EncodeToString(sum[:])
	return k, filepath.WalkDir(filepath.Join(d.dir, name), func(file string, e fs.DirEntry, err error) error {
		if module, _, ok := strings.Cut(filepath.Base(file), ".ko"); ok && err == nil {
			k.modules[strings.ReplaceAll(module, "-", "_")] = file
		}
		return err
	})
}

// module is a kernel module ready to load.
type module struct {
	name    string
	content []byte
}

// load returns the named modules and those they need, in the order of loading. Names that this kernel
// has not, since it has the code built in or is for other machines, are left out.
func (k *kernel) load(names ...string) ([]module, error) {
	var all []module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		file, ok := k.modules[name]
		if !ok || seen[name] {
			return nil
		}
		seen[name] = true
		content, err := readModule(file)
		if err != nil {
			return err
		}
		needs, err := moduleNeeds(content)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		all = append(all, module{name, content})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// readModule reads a module, which later Debian releases compress.
func readModule(name string) ([]byte, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(name) {
	case ".xz":
		r, err := xz.NewReader(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	case ".zst":
		r, err := zstd.NewReader(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	return content, nil
}

// files are the modules of a package, with the list by which they are loaded at boot.
func (k *kernel) files(name string, modules []string) ([]pack.File, error) {
	loaded, err := k.load(modules...)
	if err == nil && len(loaded) == 0 {
		err = fmt.Errorf("the kernel has none of the modules %s", strings.Join(modules, ", "))
	}
	if err != nil {
		return nil, err
	}
	var files []pack.File
	var list strings.Builder
	for _, m := range loaded {
		list.WriteString(m.name + "\n")
		files = append(files, pack.File{Path: "lib/modules/" + k.release + "/" + m.name + ".ko", Mode: 0o644, Data: m.content})
	}
	return append(files, pack.File{Path: "etc/modules.d/" + name, Mode: 0o644, Data: []byte(list.String())}), nil
}

// bootModules are what it takes to find the root file system on any likely disk.
var bootModules = []string{
	"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "ahci", "nvme", "xen_blkfront",
	"squashfs", "ext4", "overlay",
}

// initramfs holds busybox, the modules and the script that mounts the root file system.
func (k *kernel) initramfs(busybox []byte) ([]byte, error) {
	modules, err := k.load(bootModules...)
	if err != nil {
		return nil, err
	}
	script, err := data.ReadFile("data/init")
	if err != nil {
		return nil, err
	}
	var order strings.Builder
	files := []pack.File{
		{Path: "init", Mode: 0o755, Data: script},
		{Path: "bin/busybox", Mode: 0o755, Data: busybox},
	}
	for _, m := range modules {
		order.WriteString("/lib/" + m.name + ".ko\n")
		files = append(files, pack.File{Path: "lib/" + m.name + ".ko", Mode: 0o644, Data: m.content})
	}
	files = append(files, pack.File{Path: "lib/modules.order", Mode: 0o644, Data: []byte(order.String())})
	var out bytes.Buffer
	zw, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = zw.Write(cpio(files, "bin", "dev", "lib", "mnt", "proc", "rom", "sys", "overlay"))
	err = errors.Join(err, zw.Close())
	return out.Bytes(), err
}

// cpio is an archive in the form that the kernel unpacks, all of root's and without times.
func cpio(files []pack.File, folders ...string) []byte {
	var b bytes.Buffer
	inode := 0
	add := func(name string, mode uint32, content []byte) {
		inode++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, folder := range folders {
		add(folder, 0o040755, nil)
	}
	slices.SortFunc(files, func(a, b pack.File) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		add(f.Path, 0o100000|uint32(f.Mode), f.Data)
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// grub returns the boot files of both kinds of PC: BIOS's boot sector and core image, and EFI's program.
func (d *debian) grub(ctx context.Context, work string) ([]pack.File, error) {
	bios := filepath.Join(d.dir, "grub-pc-bin/usr/lib/grub/i386-pc")
	efi := filepath.Join(d.dir, "grub-efi-amd64-bin/usr/lib/grub/x86_64-efi")
	core, bootx64 := filepath.Join(work, "core.img"), filepath.Join(work, "bootx64.efi")
	common := []string{"normal", "configfile", "linux", "serial", "terminal", "echo", "boot", "test"}
	_, err1 := run(ctx, work, "grub-mkimage", append([]string{"-O", "i386-pc", "-d", bios, "-o", core,
		"-p", "(,msdos1)/boot/grub", "biosdisk", "part_msdos", "ext2"}, common...)...)
	_, err2 := run(ctx, work, "grub-mkimage", append([]string{"-O", "x86_64-efi", "-d", efi, "-o", bootx64,
		"-p", "/boot/grub", "part_gpt", "part_msdos", "fat"}, common...)...)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	var files []pack.File
	for _, name := range []string{filepath.Join(bios, "boot.img"), core, bootx64} {
		f, err := readFile(name, "staging_dir/host/lib/grub/"+filepath.Base(name))
		if err != nil {
			return nil, err
		}
		f.Mode = 0o644
		files = append(files, f)
	}
	return files, nil
}
