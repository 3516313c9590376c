package archive_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/builder/archive"
)

// BenchmarkUnpack unpacks a tree of an ImageBuilder's size and kind (the Go toolchain's own: some 15,000 files, text
// and programs) and, beside it, has tar do the same. Figures are in bytes of the plain tar. Packed with the tools'
// fast settings, since making the archive is no part of what is measured.
func BenchmarkUnpack(b *testing.B) {
	dir := b.TempDir()
	plain := filepath.Join(dir, "tree.tar")
	toolchain, err := exec.Command("go", "env", "GOROOT").Output()
	must(b, err)
	goroot := strings.TrimSpace(string(toolchain))
	run(b, "tar", "-C", filepath.Dir(goroot), "-cf", plain, filepath.Base(goroot))
	info, err := os.Stat(plain)
	must(b, err)
	for _, packer := range [][]string{{"gzip", "-6", "gz"}, {"xz", "-T2", "-1", "xz"}, {"zstd", "-q", "-T2", "-9", "zst"}} {
		tool, ending := packer[:len(packer)-1], packer[len(packer)-1]
		run(b, tool[0], append(tool[1:], "-k", plain)...)
		packed := plain + "." + ending
		b.Run(ending+"/sysup", func(b *testing.B) {
			each(b, info.Size(), func(dest string) { unpackFile(b, packed, dest) })
		})
		b.Run(ending+"/tar", func(b *testing.B) {
			each(b, info.Size(), func(dest string) { run(b, "tar", "-C", dest, "-xf", packed) })
		})
	}
}

func each(b *testing.B, bytes int64, unpack func(dest string)) {
	b.SetBytes(bytes)
	dir := b.TempDir()
	i := 0
	for b.Loop() {
		i++
		dest := filepath.Join(dir, strconv.Itoa(i))
		must(b, os.Mkdir(dest, 0o755))
		unpack(dest)
		b.StopTimer()
		must(b, os.RemoveAll(dest))
		b.StartTimer()
	}
}

func unpackFile(b *testing.B, packed, dest string) {
	file, err := os.Open(packed)
	must(b, err)
	defer file.Close()
	must(b, archive.Unpack(b.Context(), file, packed, dest, archive.Limits{}, archive.StripTop))
}

func run(b *testing.B, name string, args ...string) {
	if output, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v (apt-get install tar gzip xz-utils zstd brings what this benchmark calls)\n%s", name, err, output)
	}
}
