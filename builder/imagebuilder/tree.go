package imagebuilder

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func sortByUse(list []storedTree) {
	slices.SortFunc(list, func(a, b storedTree) int { return a.used.Compare(b.used) })
}

// offers is what a tree can do, read from its own files and not from its
// version number.
type offers struct {
	callImage bool     // the inner target by which single file systems are chosen
	chain     bool     // that target is the chain that the fast path knows
	before    []string // targets that make image runs first, and _call_image does not
	rootfs    []string // file systems that are switched on, as CONFIG_TARGET_ROOTFS_ names
	apk       bool     // packages are apk's

	overviews bool   // it writes a profiles.json beside the images
	arch      string // of its packages, "" if it does not say
	revision  string
	epoch     int64 // SOURCE_DATE_EPOCH

	partitioned bool // images are disks whose root file system has a partition
	partition   int  // its size in MiB
}

// rootfsNames translates what clients call a file system into the name of its
// configuration symbol.
var rootfsNames = map[string]string{
	"squashfs": "SQUASHFS", "ext4": "EXT4FS", "ubifs": "UBIFS", "erofs": "EROFS", "jffs2": "JFFS2",
	"jffs2-nand": "JFFS2_NAND", "targz": "TARGZ", "cpiogz": "CPIOGZ",
}

const maxTreeFile = 4 << 20

// inspect reads the Makefile and the configuration of a tree.
func inspect(tree string) (offers, error) {
	var o offers
	var links chainReader
	err := eachLine(filepath.Join(tree, "Makefile"), func(line string) {
		links.line(line)
		o.overviews = o.overviews || strings.Contains(line, "json_overview_image_info")
		o.callImage = o.callImage || strings.HasPrefix(line, "_call_image:")
		for _, target := range []string{"_check_profile", "_check_keys"} {
			if strings.Contains(line, target) && !slices.Contains(o.before, target) {
				o.before = append(o.before, target) // it may be defined in a file that this one includes
			}
		}
	})
	if err != nil {
		return o, err
	}
	err = eachLine(filepath.Join(tree, ".config"), func(line string) {
		if name, ok := strings.CutPrefix(line, "CONFIG_TARGET_ROOTFS_"); ok && strings.HasSuffix(name, "=y") {
			o.rootfs = append(o.rootfs, strings.TrimSuffix(name, "=y"))
		}
		if size, ok := strings.CutPrefix(line, "CONFIG_TARGET_ROOTFS_PARTSIZE="); ok {
			o.partition, _ = strconv.Atoi(size)
		}
		o.partitioned = o.partitioned || line == "CONFIG_USES_ROOTFS_PART=y"
		o.apk = o.apk || line == "CONFIG_USE_APK=y"
		o.overviews = o.overviews && line != "# CONFIG_JSON_OVERVIEW_IMAGE_INFO is not set" // 19.07 has both
		if arch, ok := strings.CutPrefix(line, "CONFIG_TARGET_ARCH_PACKAGES="); ok {
			o.arch = strings.Trim(arch, `"`)
		}
	})
	if err == nil {
		err = o.inspectVersion(tree)
	}
	o.chain = o.overviews && links.known() && len(o.before) == 2
	if o.overviews {
		return o, err
	}
	o.callImage = false // not tried on any such tree
	return o, cmp.Or(err, o.inspectAge(tree))
}

// feedsFile is the list of feeds.
func (o offers) feedsFile() string {
	if o.apk {
		return "repositories"
	}
	return "repositories.conf"
}

// feedArch is the part of a feed's address that names the architecture.
var feedArch = regexp.MustCompile(`/packages/([A-Za-z0-9][A-Za-z0-9_.+-]{0,63})/`)

// inspectVersion reads what make info may leave out.
func (o *offers) inspectVersion(tree string) error {
	err := eachLine(filepath.Join(tree, "include", "version.mk"), func(line string) {
		name, value, _ := strings.Cut(line, ":=")
		switch strings.TrimSpace(name) {
		case "REVISION":
			o.revision = cmp.Or(o.revision, strings.TrimSpace(value))
		case "SOURCE_DATE_EPOCH":
			if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				o.epoch = max(n, 0)
			}
		}
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, list := range []string{"repositories.conf", "repositories"} {
		err := eachLine(filepath.Join(tree, list), func(line string) {
			if m := feedArch.FindStringSubmatch(line); m != nil && o.arch == "" {
				o.arch = m[1]
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// inspectAge takes the tree's own age for its SOURCE_DATE_EPOCH where it says
// none, as up to 18.06: archives keep times.
func (o *offers) inspectAge(tree string) error {
	if o.epoch > 0 {
		return nil
	}
	info, err := os.Stat(filepath.Join(tree, ".config"))
	if err == nil {
		o.epoch = max(info.ModTime().Unix(), 0)
	}
	return err
}

func eachLine(name string, f func(string)) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read the ImageBuilder: %w", err)
	}
	defer file.Close()
	scanner := bufio.NewScanner(io.LimitReader(file, maxTreeFile))
	scanner.Buffer(nil, maxTreeFile)
	for scanner.Scan() {
		f(scanner.Text())
	}
	return scanner.Err()
}

// only returns the variables that switch every file system off but the wanted
// one, and a note if the images will not be what was asked. Without variables
// the tree makes what it always does.
func (o offers) only(wanted string) (variables []string, note string) {
	if wanted == "" {
		return nil, ""
	}
	symbol := rootfsNames[wanted]
	if symbol == "" || !slices.Contains(o.rootfs, symbol) {
		note = fmt.Sprintf("This target cannot make %s images; squashfs was built instead.", wanted)
		symbol = rootfsNames["squashfs"]
	}
	if !slices.Contains(o.rootfs, symbol) {
		return nil, fmt.Sprintf("This target can make neither %s nor squashfs images; what it makes was built instead.", wanted)
	}
	for _, name := range rootfsNames {
		if name != symbol && slices.Contains(o.rootfs, name) {
			variables = append(variables, "CONFIG_TARGET_ROOTFS_"+name+"=")
		}
	}
	if len(variables) > 0 && !o.callImage {
		return nil, fmt.Sprintf("The ImageBuilder of this version cannot make %s images alone; all were built.", wanted)
	}
	slices.Sort(variables)
	return variables, note
}
