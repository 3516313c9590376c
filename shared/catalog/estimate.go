package catalog

import (
	"fmt"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

const (
	// rootfsMB is what ImageBuilders make the root partition of x86 if nobody
	// asks for a size, in MiB.
	rootfsMB = 104
	// squashed is what is left of a root file system as squashfs: 30 % of
	// programs and libraries with the build system's options for mksquashfs;
	// scripts and pages shrink more.
	squashed = 30
)

// TooBig returns a sentence for people if the image will probably not fit, and
// nothing where no limit is known. It is an estimate, by what the packages say
// of their sizes: only the build knows.
func (d *Device) TooBig(p *build.Plan, s resolve.Solution) string {
	small := s.Installed / 100 * squashed
	if strings.HasPrefix(d.Facts.Target, "x86/") {
		size := rootfsMB
		if p.RootfsSizeMB > 0 {
			size = p.RootfsSizeMB
		}
		installed := s.Installed
		if p.Filesystem == "squashfs" {
			installed = small
		}
		if installed > int64(size)<<20 {
			return fmt.Sprintf("The packages need about %d MB, more than the %d MB of the root file system: the build will probably fail. Ask for a larger one by rootfs_size_mb, or leave packages out.", megabytes(installed), size)
		}
		return ""
	}
	if d.limit > 0 && small > d.limit {
		return fmt.Sprintf("The packages need about %d MB, and this device has room for %d MB together with the kernel: the build will probably fail. Leave packages out.", megabytes(small), d.limit>>20)
	}
	return ""
}

// megabytes rounds up, so that more is never told as the same.
func megabytes(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }
