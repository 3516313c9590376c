package distro

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/scripts/upstream"
)

// treeFiles are the files of an ImageBuilder that depend on the upstream, and its Makefiles.
func (l *layout) treeFiles(v version, t target, base entry) ([]pack.File, error) {
	all, err := tree("data/imagebuilder")
	if err != nil {
		return nil, err
	}
	files := slices.DeleteFunc(all, func(f pack.File) bool {
		return strings.HasPrefix(f.Path, "target/linux/") && !strings.HasPrefix(f.Path, "target/linux/"+t.board()+"/")
	})
	text := func(name, content string) {
		files = append(files, pack.File{Path: name, Mode: 0o644, Data: []byte(content)})
	}
	text("include/version.mk", l.versionMk(v, t))
	text(".config", config(v, t))
	text(".targetinfo", targetInfo(v, t))
	text("target/linux/"+t.board()+"/image/devices.mk", devicesMk(t))
	if v.Format == pack.APK {
		text("repositories", l.repositories(v, t))
	} else {
		text("repositories.conf", l.repositories(v, t))
	}
	key, err := l.trusted(v)
	if err != nil {
		return nil, err
	}
	packages, err := l.local(v, base)
	return slices.Concat(files, []pack.File{key}, packages), err
}

// trusted is the key that the tree trusts feeds by.
func (l *layout) trusted(v version) (pack.File, error) {
	if v.Format == pack.APK {
		pem, err := pack.MarshalECPublic(&l.ec.PublicKey)
		return pack.File{Path: "keys/demo.pem", Mode: 0o644, Data: pem}, err
	}
	public := l.key.Public()
	return pack.File{Path: "keys/" + public.Fingerprint.String(), Mode: 0o644, Data: public.Marshal()}, nil
}

// local are the packages that lie in the tree.
func (l *layout) local(v version, base entry) ([]pack.File, error) {
	var files []pack.File
	for _, e := range append([]entry{base}, l.parts.Packages[v.Format]...) {
		if e.Feed != "core" {
			continue
		}
		content, err := os.ReadFile(e.File)
		if err != nil {
			return nil, err
		}
		files = append(files, pack.File{Path: "packages/" + filepath.Base(e.File), Mode: 0o644, Data: content})
	}
	return files, nil
}

func (l *layout) versionMk(v version, t target) string {
	var b strings.Builder
	for _, line := range [][2]string{
		{"BOARD", t.board()}, {"SUBTARGET", t.subtarget()}, {"ARCH", "x86_64"}, {"ARCH_PACKAGES", t.Arch},
		{"VERSION_NUMBER", v.Number}, {"VERSION_PREFIX", v.infix()}, {"REVISION", v.Revision},
		{"SOURCE_DATE_EPOCH", fmt.Sprint(v.Epoch)},
		{"LINUX_VERSION", l.parts.Kernel.Version}, {"LINUX_RELEASE", "1"}, {"LINUX_VERMAGIC", l.parts.Kernel.Vermagic},
	} {
		fmt.Fprintf(&b, "%s := %s\n", line[0], line[1])
	}
	if v.Old {
		b.WriteString("OLD := y\n")
	}
	return b.String()
}

func config(v version, t target) string {
	var b strings.Builder
	set := func(name string, value any) { fmt.Fprintf(&b, "CONFIG_%s=%v\n", name, value) }
	filesystems := map[string]string{"squashfs": "SQUASHFS", "ext4": "EXT4FS", "targz": "TARGZ"}
	for _, fs := range t.Filesystems {
		set("TARGET_ROOTFS_"+filesystems[fs], "y")
	}
	if t.PartSize > 0 {
		set("TARGET_KERNEL_PARTSIZE", 24)
		set("TARGET_ROOTFS_PARTSIZE", t.PartSize)
		set("USES_ROOTFS_PART", "y")
		set("GRUB_IMAGES", "y")
		if !v.Old {
			set("GRUB_EFI_IMAGES", "y")
		}
	}
	if v.Old {
		b.WriteString("# CONFIG_JSON_OVERVIEW_IMAGE_INFO is not set\n")
	} else {
		set("JSON_OVERVIEW_IMAGE_INFO", "y")
		set("SIGNATURE_CHECK", "y")
	}
	if v.Format == pack.APK {
		set("USE_APK", "y")
	}
	if v.BOM {
		set("BOM", "y")
	}
	return b.String()
}

// targetInfo is what the Makefile derives its lists of packages and profiles from.
func targetInfo(v version, t target) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Target: %s\nDefault-Packages: %s\n", t.Name, strings.Join(v.defaults(t), " "))
	for _, p := range t.Profile {
		hasMetadata := min(len(p.Supported), 1)
		fmt.Fprintf(&b, "\nTarget-Profile: DEVICE_%s\nTarget-Profile-Name: %s\nTarget-Profile-Packages: %s\n"+
			"Target-Profile-hasImageMetadata: %d\nTarget-Profile-SupportedDevices: %s\n",
			p.ID, p.name(), strings.Join(p.Packages, " "), hasMetadata, strings.Join(p.Supported, " "))
	}
	return b.String()
}

func (p profile) name() string {
	if p.Title != "" {
		return p.Title
	}
	return p.Vendor + " " + p.Model
}

func devicesMk(t target) string {
	var b strings.Builder
	for _, p := range t.Profile {
		fmt.Fprintf(&b, "%s_VENDOR := %s\n%[1]s_MODEL := %[3]s\n%[1]s_IMAGES := %[4]s\n", p.ID, p.Vendor, p.Model, strings.Join(p.Images, " "))
		if p.Limit > 0 {
			fmt.Fprintf(&b, "%s_LIMIT := %d\n", p.ID, p.Limit)
		}
		if p.Quiet {
			fmt.Fprintf(&b, "%s_QUIET := 1\n", p.ID)
		}
	}
	return b.String()
}

// repositories is the list of feeds in the version's form.
func (l *layout) repositories(v version, t target) string {
	base := l.options.URL + "/" + upstream.Path(v.Number)
	urls := [][2]string{{"core", base + "/targets/" + t.Name + "/packages"}}
	if v.Kmods {
		kernel := upstream.Kernel{Version: l.parts.Kernel.Version, Release: "1", Vermagic: l.parts.Kernel.Vermagic}
		urls = append(urls, [2]string{"kmods", base + "/targets/" + t.Name + "/" + path.Join("kmods", kmodsName(kernel))})
	}
	for _, feed := range commonFeeds {
		urls = append(urls, [2]string{feed, base + "/packages/" + t.Arch + "/" + feed})
	}
	var b strings.Builder
	for _, u := range urls {
		if v.Format == pack.APK {
			fmt.Fprintf(&b, "%s/%s\n", u[1], pack.APKIndexName)
		} else {
			fmt.Fprintf(&b, "src/gz openwrt_%s %s\n", u[0], u[1])
		}
	}
	if v.Format == pack.IPK {
		b.WriteString("src imagebuilder file:packages\n")
		if !v.Old {
			b.WriteString("option check_signature\n")
		}
	}
	return b.String()
}
