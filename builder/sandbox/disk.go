package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Disk quotas need rights or file systems that few machines have, and a disk of memory has no room for images. So the
// server watches: ten times a second it asks how full the disks are, which costs nothing, and when one has lost much, or
// some time has passed, it counts what the job's folders hold. What is written but has no name any more is in the first
// figure alone: a job is stopped as well when a disk to which it, or who else, has written much is all but full.
const (
	diskInterval  = 100 * time.Millisecond
	countInterval = 2 * time.Second
	// What has to be gone since the command began before a disk that is all but full is held against it.
	suspectBytes, suspectEntries = 64 << 20, 20_000
	// What is to be left of a disk: a part of it, but of a large one not more than so much.
	reservePart, reserveBytes = 50, 1 << 30
)

// disk is what is free of a file system.
type disk struct{ bytes, entries, allBytes, allEntries int64 }

func diskOf(folder string) (disk, bool) {
	var s unix.Statfs_t
	if unix.Statfs(folder, &s) != nil {
		return disk{}, false
	}
	block := int64(s.Bsize)
	return disk{int64(s.Bavail) * block, int64(s.Ffree), int64(s.Blocks) * block, int64(s.Files)}, true
}

// written lists the host's folders in which the job can leave what takes space.
func (j *Job) written() []string {
	folders := []string{j.spec.Scratch}
	for _, b := range j.spec.Binds {
		if b.Writable {
			folders = append(folders, b.Host)
		}
	}
	return folders
}

// watchDisk stops a command that writes too much. The caller calls end when the command has ended.
func (j *Job) watchDisk(ctx context.Context, stop context.CancelCauseFunc) (end func()) {
	before := map[string]disk{}
	for _, folder := range j.written() {
		if d, ok := diskOf(folder); ok {
			before[folder] = d
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(diskInterval)
		defer tick.Stop()
		for due := time.Now().Add(countInterval); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			suspect, err := j.compareDisks(before)
			if begin := time.Now(); err == nil && (suspect || begin.After(due)) {
				err = j.countDisk()
				took := time.Since(begin) // counting is not to become the work
				due = time.Now().Add(max(countInterval, 20*took))
				tick.Reset(max(diskInterval, 4*took))
			}
			if err != nil {
				stop(err)
				return
			}
		}
	}()
	return func() { stop(nil); <-done }
}

// compareDisks tells whether a disk has lost as much as would be too much for this job.
func (j *Job) compareDisks(before map[string]disk) (suspect bool, err error) {
	limits := j.spec.Limits
	for folder, first := range before {
		now, ok := diskOf(folder)
		if !ok {
			continue
		}
		bytes, entries := first.bytes-now.bytes, first.entries-now.entries
		if bytes > suspectBytes && now.bytes < min(now.allBytes/reservePart, reserveBytes) ||
			entries > suspectEntries && now.entries < now.allEntries/reservePart {
			return true, ErrDiskLow
		}
		suspect = suspect || bytes > limits.Disk/2 || entries > limits.Entries/2
	}
	return suspect, nil
}

func (j *Job) countDisk() error {
	c := count{limits: j.spec.Limits, seen: map[inode]bool{}}
	for _, folder := range j.written() {
		if err := c.folder(folder, 0); err != nil {
			return ErrDisk
		}
	}
	return nil
}

// count adds up what folders hold, until it is too much.
type count struct {
	limits         Limits
	bytes, entries int64
	seen           map[inode]bool // files of more than one name
}

var errTooMuch = errors.New("too much")

// deepest is how many folders may lie in each other; nobody but who hides something goes beyond.
const deepest = 500

func (c *count) folder(path string, depth int) error {
	if depth > deepest {
		return errTooMuch
	}
	dir, err := os.Open(path)
	if err != nil {
		if errors.Is(err, unix.ENAMETOOLONG) {
			return errTooMuch
		}
		return nil // gone, or closed to this user, as the kernel makes it for overlays
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256) // not all at once: there may be millions
		for _, e := range entries {
			if err := c.entry(filepath.Join(path, e.Name()), e, depth); err != nil {
				return err
			}
		}
		if err != nil { // its end, as a rule
			return nil
		}
	}
}

func (c *count) entry(path string, e fs.DirEntry, depth int) error {
	info, err := e.Info()
	if err != nil {
		return nil // gone
	}
	stat := info.Sys().(*syscall.Stat_t)
	if id := (inode{uint64(stat.Dev), stat.Ino}); stat.Nlink > 1 && !info.IsDir() {
		if c.seen[id] {
			return nil
		}
		c.seen[id] = true
	}
	c.bytes += stat.Blocks * 512
	c.entries++
	if c.bytes > c.limits.Disk || c.entries > c.limits.Entries {
		return errTooMuch
	}
	if info.IsDir() {
		return c.folder(path, depth+1)
	}
	return nil
}
