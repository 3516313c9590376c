package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func TestParse(t *testing.T) {
	a := parse([]string{"-l", "42", "--title", "", "out", "--strip-abi", "in"}, "strip-abi")
	want := arguments{map[string]string{"l": "42", "title": "", "strip-abi": "1"}, []string{"out", "in"}}
	if !reflect.DeepEqual(a, want) {
		t.Errorf("parsed %v, not %v", a, want)
	}
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestExt4 makes a file system of folders whose files came in different orders.
func TestExt4(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	names := []string{"b/with space", "a", "b/c", "z"}
	var images [][]byte
	for range 2 {
		root, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
		for i, name := range names {
			write(t, filepath.Join(root, name), bytes.Repeat([]byte{'x'}, 5000*(len(name)%3+1)))
			names[i], names[0] = names[0], names[i]
		}
		if err := os.Symlink("b/c", filepath.Join(root, "link")); err != nil {
			t.Fatal(err)
		}
		if err := makeExt4Main([]string{"-L", "rootfs", "-l", "8388608", "-t", "1700000000", image, root}); err != nil {
			t.Fatalf("%v (scripts/setup installs e2fsprogs)", err)
		}
		if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("the file system is damaged: %v\n%s", err, out)
		}
		images = append(images, read(t, image))
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("equal folders give different bytes")
	}
}

func TestExt4TooBig(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	root, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	write(t, filepath.Join(root, "big"), make([]byte, 9<<20))
	if err := makeExt4Main([]string{"-L", "rootfs", "-l", "8388608", "-t", "1", image, root}); !errors.Is(err, errReported) {
		t.Errorf("9 MiB in 8: %v", err)
	}
}

func TestGPT(t *testing.T) {
	dir := t.TempDir()
	boot, disk := filepath.Join(dir, "boot"), filepath.Join(dir, "disk")
	write(t, boot, []byte("boot"))
	args := []string{"--output", disk, "--signature", "1234abcd", "--boot", boot, "--boot-mb", "2", "--rootfs-mb", "3", "--gpt", "1"}
	if err := genImageMain(args); err != nil {
		t.Fatal(err)
	}
	d := read(t, disk)
	if len(d) != 3<<20 || string(d[1<<20:1<<20+4]) != "boot" || binary.LittleEndian.Uint32(d[440:]) != 0x1234abcd {
		t.Errorf("the disk begins with %d bytes", len(d))
	}
	header := bytes.Clone(d[512 : 512+92])
	sum := binary.LittleEndian.Uint32(header[16:])
	copy(header[16:], []byte{0, 0, 0, 0})
	if crc32.ChecksumIEEE(header) != sum || crc32.ChecksumIEEE(d[1024:1024+128*128]) != binary.LittleEndian.Uint32(header[88:]) {
		t.Error("the partition table's sums are wrong")
	}
	write(t, boot, make([]byte, 2<<20+1))
	if err := genImageMain(args); err == nil {
		t.Error("a boot file system larger than its partition passes")
	}
}

// TestTrailers puts metadata and a signature behind an image; only the signature is cut off again.
func TestTrailers(t *testing.T) {
	dir := t.TempDir()
	image, metadata, signature := filepath.Join(dir, "image"), filepath.Join(dir, "metadata"), filepath.Join(dir, "signature")
	write(t, image, []byte("an image"))
	write(t, metadata, []byte("{}"))
	write(t, signature, []byte("signature"))
	if err := fwtoolMain([]string{"-I", metadata, image}); err != nil {
		t.Fatal(err)
	}
	unsigned := read(t, image)
	trailer := unsigned[len(unsigned)-16:]
	if crc := ^crc32.ChecksumIEEE(unsigned[:len(unsigned)-16]); binary.BigEndian.Uint32(trailer[4:]) != crc || trailer[8] != 1 {
		t.Errorf("the metadata's trailer is %x, its sum should be %x", trailer, crc)
	}
	if err := fwtoolMain([]string{"-S", signature, image}); err != nil {
		t.Fatal(err)
	}
	signed := read(t, image)
	size, found, err := usign.CutSignature(bytes.NewReader(signed), int64(len(signed)))
	if err != nil || !found || !bytes.Equal(signed[:size], unsigned) || len(unsigned) != len("an image")+8+len("{}")+16 {
		t.Errorf("cut to %d bytes of %d: %v, %v", size, len(signed), found, err)
	}
}
