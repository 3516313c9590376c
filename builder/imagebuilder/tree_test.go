package imagebuilder

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// writeTree makes a folder with a Makefile and a configuration.
func writeTree(t *testing.T, makefile, config string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"Makefile": makefile, ".config": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	newMakefile = "TOPDIR:=${CURDIR}\n_check_profile: FORCE\nifneq ($(PROFILE),)\nendif\n_check_keys: FORCE\n_call_image: staging_dir/host/.prereq-build\n\techo\n\t$(MAKE) -s json_overview_image_info\nimage:\n"
	oldMakefile = "image:\n\t$(MAKE) _image\n"
	disk        = "CONFIG_TARGET_ROOTFS_EXT4FS=y\nCONFIG_TARGET_ROOTFS_SQUASHFS=y\nCONFIG_TARGET_ROOTFS_TARGZ=y\n# CONFIG_TARGET_ROOTFS_CPIOGZ is not set\nCONFIG_TARGET_ROOTFS_PARTSIZE=104\nCONFIG_TARGET_ROOTFS_PARTNAME=\"\"\n"
	flash       = "CONFIG_TARGET_ROOTFS_SQUASHFS=y\nCONFIG_USE_APK=y\n"
	nand        = "CONFIG_TARGET_ROOTFS_UBIFS=y\nCONFIG_TARGET_ROOTFS_SQUASHFS=y\n"
	noSquashfs  = "CONFIG_TARGET_ROOTFS_EXT4FS=y\n"
)

func TestOnly(t *testing.T) {
	for _, test := range []struct {
		name, makefile, config, wanted string
		off                            []string
		note                           string
	}{
		{"all", newMakefile, disk, "", nil, ""},
		{"ext4", newMakefile, disk, "ext4", []string{"SQUASHFS", "TARGZ"}, ""},
		{"squashfs", newMakefile, disk, "squashfs", []string{"EXT4FS", "TARGZ"}, ""},
		{"unknown", newMakefile, disk, "f2fs", []string{"EXT4FS", "TARGZ"}, "cannot make f2fs images; squashfs"},
		{"switched off", newMakefile, disk, "ubifs", []string{"EXT4FS", "TARGZ"}, "cannot make ubifs"},
		{"the only one", newMakefile, flash, "squashfs", nil, ""},
		{"not the only one", newMakefile, flash, "ext4", nil, "cannot make ext4"},
		{"ubifs", newMakefile, nand, "ubifs", []string{"SQUASHFS"}, ""},
		{"neither", newMakefile, noSquashfs, "ubifs", nil, "neither ubifs nor squashfs"},
		{"without the inner target", oldMakefile, disk, "ext4", nil, "cannot make ext4 images alone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := inspect(writeTree(t, test.makefile, test.config))
			if err != nil {
				t.Fatal(err)
			}
			var off []string
			variables, note := o.only(test.wanted)
			for _, v := range variables {
				name, found := strings.CutPrefix(v, "CONFIG_TARGET_ROOTFS_")
				if !found || !strings.HasSuffix(name, "=") {
					t.Errorf("%q switches nothing off", v)
				}
				off = append(off, strings.TrimSuffix(name, "="))
			}
			if !slices.Equal(off, test.off) {
				t.Errorf("it switches %q off, want %q", off, test.off)
			}
			if (note == "") != (test.note == "") || !strings.Contains(note, test.note) {
				t.Errorf("the note is %q", note)
			}
			if o.apk != (test.config == flash) || (len(o.before) == 2) != (test.makefile == newMakefile) {
				t.Errorf("it offers %+v", o)
			}
		})
	}
	if _, err := inspect(t.TempDir()); err == nil {
		t.Error("an empty folder was taken for an ImageBuilder")
	}
}
