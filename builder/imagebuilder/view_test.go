package imagebuilder

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// A squashfs that its partition would cut off is refused; nothing else says so.
func TestPartition(t *testing.T) {
	dir := t.TempDir()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(make([]byte, 3<<20))
	w.Close()
	for name, content := range map[string][]byte{"rootfs.img.gz": packed.Bytes(), "rootfs.img": make([]byte, 3<<20)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		image, kind string
		partitioned bool
		config, ask int
		fits        bool
	}{
		{"rootfs.img.gz", "rootfs", true, 3, 0, true},
		{"rootfs.img.gz", "rootfs", true, 2, 0, false},
		{"rootfs.img", "rootfs", true, 2, 0, false},
		{"rootfs.img.gz", "rootfs", true, 104, 2, false},
		{"rootfs.img.gz", "rootfs", true, 2, 3, true},
		{"rootfs.img.gz", "rootfs", false, 2, 0, true},
		{"rootfs.img.gz", "sysupgrade", true, 2, 0, true},
		{"rootfs.img.gz", "rootfs", true, 0, 0, true},
	} {
		v := &View{out: dir, plan: &build.Plan{RootfsSizeMB: test.ask}, offered: offers{partitioned: test.partitioned, partition: test.config}}
		err := v.checkPartition(&Output{Images: []build.Image{{Name: test.image, Filesystem: "squashfs", Type: test.kind}}})
		failure, _ := errors.AsType[*build.Failure](err)
		if test.fits != (err == nil) || err != nil && failure.Kind != build.KindTooBig {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// The feeds of a tree from a mirror are that mirror's.
func TestFeedsOfMirror(t *testing.T) {
	const list = "src/gz openwrt_core https://downloads.openwrt.org/releases/24.10.5/targets/x86/64/packages\nsrc imagebuilder file:packages\noption check_signature\n"
	own := []build.Repository{{Name: "own", URL: "https://feeds.example/own"}}
	for _, test := range []struct {
		name, upstream string
		plan           build.Plan
		want           string // "" for no list of the job's own
	}{
		{"openwrt itself", "https://downloads.openwrt.org", build.Plan{}, ""},
		{"no word on it", "", build.Plan{}, ""},
		{"mirror", "http://mirror.example/openwrt", build.Plan{}, "src/gz openwrt_core http://mirror.example/openwrt/releases/24.10.5/targets/x86/64/packages\nsrc imagebuilder file:packages\noption check_signature\n"},
		{"append", "", build.Plan{Repositories: own, RepositoriesMode: "append"}, "src/gz request_own https://feeds.example/own\n" + list},
		{"replace", "http://mirror.example", build.Plan{Repositories: own, RepositoriesMode: "replace"}, "src/gz request_own https://feeds.example/own\nsrc imagebuilder file:packages\noption check_signature\n"},
	} {
		tree, folder := t.TempDir(), t.TempDir()
		if err := os.WriteFile(filepath.Join(tree, "repositories.conf"), []byte(list), 0o644); err != nil {
			t.Fatal(err)
		}
		v := &View{out: filepath.Join(folder, outFolder), plan: &test.plan, setting: Setting{Folder: folder, Upstream: test.upstream}}
		if err := errors.Join(v.folders(), v.writeFeeds(tree)); err != nil {
			t.Fatal(err)
		}
		got, _ := os.ReadFile(filepath.Join(folder, feedsFolder, "repositories.conf"))
		if string(got) != test.want || v.ownFeeds != (test.want != "") {
			t.Errorf("%s: the list is %q, want %q", test.name, got, test.want)
		}
	}
}
