package imagebuilder

import (
	"regexp"
	"slices"
	"strings"
)

// imageName is what the name of an image tells, in trees that write no
// profiles.json.
type imageName struct {
	prefix, filesystem, kind string
}

var (
	// rootNames are the file systems as names of images spell them.
	rootNames = []string{"squashfs", "ext4", "jffs2", "ubifs", "erofs", "initramfs"}
	// jffs2 comes in several block sizes.
	blockSize = regexp.MustCompile(`^([0-9]+k|nand)$`)
	// diskKinds stand before the file system in the images of PCs up to 19.07.
	diskKinds = []string{"combined", "combined-efi", "rootfs"}
	imageEnd  = regexp.MustCompile(`^[a-z0-9]{1,8}(\.gz)?$`)
	// otherEnds are of files that nobody flashes: machines for emulators, lists,
	// archives of the root file system.
	otherEnds = []string{"vdi", "vmdk", "iso", "elf", "manifest", "json", "txt", "cpio.gz", "tar.gz", "dtb"}
)

// parseImageName reads a name as build systems since 17.01 compose it:
//
//	<prefix>-<profile>-<filesystem>-<kind>.<end>   …-squashfs-sysupgrade.bin
//	<prefix>-<profile>-<filesystem>.<end>          …-squashfs.trx: the end is the kind
//	<prefix>-<kind>-<filesystem>.<end>             …-combined-squashfs.img.gz
//
// A file whose name tells no file system is no image to flash.
func parseImageName(name string) (imageName, bool) {
	words := strings.Split(name, "-")
	last, end, _ := strings.Cut(words[len(words)-1], ".")
	if words[len(words)-1] = last; !imageEnd.MatchString(end) || slices.Contains(otherEnds, end) {
		return imageName{}, false
	}
	at := lastRoot(words)
	if at < 1 {
		return imageName{}, false
	}
	before, after := words[:at], words[at+1:]
	image := imageName{filesystem: words[at]}
	if len(after) > 0 && words[at] == "jffs2" && blockSize.MatchString(after[0]) {
		image.filesystem, after = "jffs2-"+after[0], after[1:]
	}
	image.kind, image.prefix = strings.Join(after, "-"), strings.Join(before, "-")
	if image.kind != "" {
		return image, true
	}
	image.kind = strings.TrimSuffix(end, ".gz")
	for _, kind := range diskKinds {
		if prefix, ok := strings.CutSuffix(image.prefix, "-"+kind); ok {
			image.prefix, image.kind = prefix, kind
		}
	}
	return image, true
}

// installs tells whether the name is of an image that stays on a device.
func installs(name string) bool {
	image, ok := parseImageName(name)
	return ok && image.filesystem != "initramfs"
}

// lastRoot is where the file system stands; earlier words may belong to a
// profile that is called so.
func lastRoot(words []string) int {
	for i := len(words) - 1; i >= 0; i-- {
		if slices.Contains(rootNames, words[i]) {
			return i
		}
	}
	return -1
}
