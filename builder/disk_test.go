package builder_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestDiskFull: a disk without space, wherever it shows itself, makes the build
// wait; nothing half done is left, and with space it goes on by itself.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts small disks; run it as root")
	}
	// A job needs 1 MiB of the tree's disk for a moment and leaves 2 MiB more
	// to publish.
	need := instant.Options{Before: `head -c 1048576 /dev/zero >fill && rm fill`, After: `head -c 2097152 /dev/urandom >"$BIN_DIR/more.bin"`}
	for _, full := range []string{"scratch", "objects", "imagebuilder"} {
		t.Run(full, func(t *testing.T) {
			t.Parallel()
			disk := smallDisk(t)
			o := setting{workers: -1, upstream: need}
			switch full {
			case "scratch":
				o.scratch = disk
			case "objects":
				o.store = disk
			case "imagebuilder":
				o.trees = disk
			}
			s := newSite(t, o)
			ballast := s.fill(disk)
			id := s.submit(request())
			s.start()
			rec := s.until(id, "an attempt has failed", func(rec build.Record) bool { return rec.Failure != nil })
			if full == "scratch" {
				// What make cannot write is in its log, which may have no space either.
				s.onlyLogs(rec)
			}
			s.failed(rec, build.KindDisk, "disk is full")
			for _, pattern := range []string{"#tmp/*", "quarantine-*", "store/*/*/*.bin"} {
				if left, _ := filepath.Glob(filepath.Join(disk, pattern)); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			s.done(s.wait(id))
			s.clean()
		})
	}
}

// smallDisk mounts a disk of 8 MiB that goes when the test ends.
func smallDisk(t *testing.T) string {
	t.Helper()
	parent := t.TempDir()
	disk := filepath.Join(parent, "disk")
	err := errors.Join(os.Chmod(parent, 0o711), os.Chmod(filepath.Dir(parent), 0o711), os.Mkdir(disk, 0o711))
	if err == nil {
		err = syscall.Mount("sysup-test", disk, "tmpfs", 0, "size=8m,mode=0711")
	}
	if err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		err := syscall.Unmount(disk, 0)
		for range 50 { // the kernel closes the files of what was killed a little later
			if !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(100 * time.Millisecond)
			err = syscall.Unmount(disk, 0)
		}
		if err != nil {
			t.Errorf("unmount the small disk: %v", err)
		}
	})
	return disk
}

// fill takes all but a little of the disk and returns the file that does.
func (s *site) fill(disk string) string {
	s.Helper()
	name := filepath.Join(disk, "ballast")
	f, err := os.Create(name)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	chunk := bytes.Repeat([]byte{1}, 4096)
	for err == nil {
		_, err = f.Write(chunk)
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Truncate(info.Size() - 64<<10)
	}
	if err != nil {
		s.Fatal(err)
	}
	return name
}
