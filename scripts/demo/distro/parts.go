package distro

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// contentOnly are the Debian packages of which only files are wanted, none of what they depend on.
var contentOnly = []string{"ca-certificates", "grub-pc-bin", "grub-efi-amd64-bin", "ncurses-base", "busybox-static"}

// makeParts makes everything that does not depend on the upstream's address, keys and revision.
func (m *maker) makeParts(ctx context.Context) error {
	work, err := os.MkdirTemp(m.dir, "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for _, folder := range []string{m.parts.Folder, filepath.Join(m.dir, "upstream")} {
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}

	done := m.step("Debian packages")
	image, err := kernelPackage(ctx)
	if err != nil {
		return err
	}
	unpacked := filepath.Join(work, "debian")
	if err := os.MkdirAll(unpacked, 0o755); err != nil {
		return err
	}
	d, err := fetchDebian(ctx, filepath.Join(m.dir, "debs"), unpacked, m.withLibraries(), append(slices.Clone(contentOnly), image))
	if err != nil {
		return err
	}
	k, err := d.kernel(image)
	if err != nil {
		return err
	}
	m.parts.Kernel = kernelID{k.version, k.vermagic}
	done()

	done = m.step("packages")
	if err := m.makePackages(ctx, d, k); err != nil {
		return err
	}
	done()

	defer m.step("ImageBuilders")()
	return m.makeBulk(ctx, d, k, work)
}

// step tells the log what goes on, and how long it took.
func (m *maker) step(what string) (done func()) {
	start := time.Now()
	return func() { fmt.Fprintf(m.options.Log, "%-20s %5.1f s\n", what, time.Since(start).Seconds()) }
}

// withLibraries are the Debian packages whose programs need libraries.
func (m *maker) withLibraries() []string {
	var names []string
	for _, r := range m.plan.packages {
		names = append(names, r.Debian...)
	}
	for _, p := range hostPrograms {
		names = append(names, p[0])
	}
	names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(contentOnly, name) })
	slices.Sort(names)
	return slices.Compact(names)
}

func (m *maker) makePackages(ctx context.Context, d *debian, k *kernel) error {
	busybox, err := d.find([]string{"busybox-static"}, "bin/busybox")
	if err != nil {
		return err
	}
	applets, err := run(ctx, m.dir, busybox, "--list")
	if err != nil {
		return err
	}
	w := newPacker(m.plan, d, k, applets)
	if _, err := w.packages(); err != nil {
		return err
	}
	for _, format := range []pack.Format{pack.IPK, pack.APK} {
		m.parts.Packages[format], err = w.write(filepath.Join(m.parts.Folder, string(format)), format)
		if err != nil {
			return err
		}
	}
	return nil
}

// flashKernel is the size of what stands for a kernel in flash images, which do not boot.
const flashKernel = 2 << 20

// makeBulk packs the parts of the ImageBuilders that are the same for every upstream: tools, kernels.
func (m *maker) makeBulk(ctx context.Context, d *debian, k *kernel, work string) error {
	host, err := d.hostTools(ctx, m.root, work)
	if err != nil {
		return err
	}
	pc, err := d.pcFiles(ctx, k, work)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(m.parts.Folder, "bulk"), 0o755); err != nil {
		return err
	}
	noise := filler(recipe{Name: "kernel", Random: flashKernel})[0].Data
	boards := map[string][]pack.File{
		"x86":  pc,
		"demo": {{Path: kernelFolder("demo", "flash") + "kernel.bin", Mode: 0o644, Data: noise}},
	}
	for _, v := range m.plan.versions {
		for _, t := range m.plan.targets {
			files := slices.Concat(host, boards[t.board()])
			if err := packPart(ctx, bulkName(m.parts.Folder, v, t), v, t, files, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func kernelFolder(board, subtarget string) string {
	return "build_dir/target-x86_64_glibc/linux-" + board + "_" + subtarget + "/"
}

// pcFiles are GRUB, the kernel and its initramfs.
func (d *debian) pcFiles(ctx context.Context, k *kernel, work string) ([]pack.File, error) {
	files, err := d.grub(ctx, work)
	if err != nil {
		return nil, err
	}
	busybox, err := d.file([]string{"busybox-static"}, "bin/busybox")
	if err != nil {
		return nil, err
	}
	initrd, err := k.initramfs(busybox.Data)
	folder := kernelFolder("x86", "64")
	return append(files,
		pack.File{Path: folder + "vmlinuz", Mode: 0o644, Data: k.image},
		pack.File{Path: folder + "initrd.gz", Mode: 0o644, Data: initrd}), err
}
